"""Goal: a name with dots means one field of a record, whoever reads it: scanner, parser, file.

Method: the rule as a table. Then records that hypothesis nests, doubles and mixes go through the
scanner, through the full parser alone and through a reference of their own (nesting.py), and how
often each case came is counted. Names of samples and patterns; what a config may not say.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nesting import KEY, TIME, VALUES, WORDS, cases, meant, nested

from raywatch.actors import decode as decoding
from raywatch.actors.names import PARTS_MAX, Names, expand, inner_names, names_in, parsed, value_of
from raywatch.actors.ports import Fetched
from raywatch.actors.records import RecordSpec
from raywatch.actors.scan import LAYOUT_MAX, OK, hash_of, scan, wanted
from raywatch.cluster.config import load
from raywatch.models.errors import ConfigError

SPEC = RecordSpec(values=VALUES, words=WORDS, key=KEY, time=TIME, key_bytes_max=32)
Row = tuple[bytes, int, tuple[str, ...], tuple[int, ...]]


def taken(values: list[bytes], spec: RecordSpec = SPEC) -> list[bool]:
    """Which records the scanner takes."""
    fields = wanted(spec.key, spec.time, spec.values, spec.texts)
    assert fields is not None
    text, begin, size = decoding.join(values, spec.bytes_max)
    found = scan(
        text, begin, size, fields,
        channels=len(spec.values), key_bytes_max=spec.key_bytes_max, words=len(spec.texts),
    )  # fmt: skip
    return (found.status == OK).tolist()


def read(values: list[bytes], spec: RecordSpec = SPEC) -> list[Row | str]:
    """What decode makes of each record of a batch: a row, or the reason of its reject."""
    count = len(values)
    place = np.zeros(count, np.int32), np.arange(count), np.full(count, -1)
    records = decoding.decode(Fetched(*place, values=list(values), keys=[]), spec)
    found = dict[int, Row | str]((each.offset, each.reason) for each in records.rejects)
    for at in range(len(records)):
        values = tuple(map(repr, records.values[at].tolist()))
        row = records.key(at), int(records.time_ms[at]), values, tuple(records.words[at].tolist())
        found[int(records.offset[at])] = row
    assert sorted(found) == list(range(count))
    return [found[at] for at in range(count)]


def by_parser(value: bytes, spec: RecordSpec = SPEC) -> Row | str:
    """What the full parser alone makes of a record."""
    try:
        key, time_ms, values, words = decoding._full(value, None, -1, spec)
    except decoding._Bad as bad:
        return bad.reason
    return key, time_ms, tuple(map(repr, values)), tuple(map(hash_of, words))


def by_reference(value: bytes) -> Row | None:
    """What a record means by nesting.py; None where it is none."""
    record = json.loads(value)
    key, time = meant(record, KEY), meant(record, TIME)
    values = [meant(record, name) for name in VALUES]
    words = [meant(record, name) for name in WORDS]
    good = type(key) in (str, int) and 1 <= len(str(key).encode()) <= 32
    good = good and type(time) in (int, float)
    good = good and all(type(each) in (int, float, type(None)) for each in values)
    if not good or any(type(each) not in (str, int, bool, type(None)) for each in words):
        return None
    texts = [b"" if w is None else json.dumps(w).encode() for w in words]
    texts = [w.encode() if isinstance(w, str) else t for w, t in zip(words, texts, strict=True)]
    if all(each is None for each in values) and not any(texts):
        return None
    numbers = tuple(repr(math.nan if each is None else float(each)) for each in values)
    return str(key).encode(), math.floor(time), numbers, tuple(map(hash_of, texts))


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ('{"a.b.c": 1}', 1),
        ('{"a": {"b": {"c": 1}}}', 1),
        ('{"a": {"b.c": 1}}', 1),
        ('{"a.b": {"c": 1}}', None),  # a dot is no half of a step
        ('{"a.b.c": 1, "a": {"b": {"c": 2}, "b.c": 3}}', 1),
        ('{"a": {"b": {"c": 2}, "b.c": 3}, "a.b.c": 1}', 1),
        ('{"a": {"b": {"c": 2}, "b.c": 3}}', 3),
        ('{"a.b.c": null, "a": {"b": {"c": 2}}}', None),  # it is there, and null
        ('{"a": {"b": {"c": 2}, "b.c": null}}', None),
        ('{"a": {"b": {"c": 1}}, "a": {"b": {"c": 2}}}', 2),
        ('{"a": {"b": {"c": 1}}, "a": {"b": {}}}', None),
        ('{"a": {"b": {"c": 1}, "b": {"d": 2}}}', None),
        ('{"a": {"b": {"c": 1}}, "a": 3}', None),
        ('{"a": 3, "a": {"b": {"c": 1}}}', 1),
        ('{"a": null}', None),
        ('{"a": [{"b": {"c": 1}}]}', None),
        ('{"a": {"b": [1]}}', None),
        ('{"a": "b"}', None),
        ('{"a": {"b": {"c": {"d": 1}}}}', ...),  # an object, which is no number
        ('{"\\u0061": {"b": {"\\u0063": 1}}}', 1),
    ],
)
def test_the_rule(record: str, found: Any) -> None:
    spec = RecordSpec(values=("a.b.c", "x"), key="k", time="t")
    line = f'{{"k":"a","t":1,"x":7,{record[1:]}'.encode()
    expected = repr(math.nan if found is None else float(found)) if found is not ... else None
    assert expected is None or meant(json.loads(record), "a.b.c") == found
    for row in (read([line], spec)[0], by_parser(line, spec)):
        if expected is None:
            assert row == "wrong type"
        else:
            assert not isinstance(row, str)
            assert row[2] == (expected, "7.0")


@pytest.mark.parametrize("name", ["a..b", ".a", "a.", ".", "..", ".".join("a" * 33)])
def test_a_name_with_an_empty_part_or_too_many_is_a_field_of_the_record_alone(name: str) -> None:
    parts: list[str] = name.split(".")
    inner: Any = 1
    for part in reversed(parts):
        inner = {part: inner}
    head, _, rest = name.partition(".")
    assert [value_of(each, name) for each in (inner, {head: {rest: 1}}, {name: 2})] == [
        None,
        None,
        2,
    ]
    spec = RecordSpec(values=(name, "x"), key="k", time="t")
    for more, number in ((inner, "nan"), ({head: {rest: 1}}, "nan"), ({name: 2}, "2.0")):
        line = json.dumps({"k": "a", "t": 1, "x": 7, **more}).encode()
        assert read([line], spec) == [by_parser(line, spec)] == [(b"a", 1, (number, "7.0"), ())]


def test_a_name_may_be_empty() -> None:
    spec = RecordSpec(values=("", "x"), key="k", time="t")
    line = b'{"k":"a","t":1,"x":7,"":%d}'
    assert taken([line % 1, line % 2], spec) == [True, True]
    assert [row[2] for row in read([line % 1, line % 2], spec)] == [("1.0", "7.0"), ("2.0", "7.0")]


def test_a_name_of_as_many_parts_as_may_be_is_followed_to_its_end() -> None:
    name, inner = ".".join(["a"] * PARTS_MAX), '{"a":' * (PARTS_MAX - 1) + '{"a":5}'
    line = f'{{"k":"a","t":1,{inner[1:]}{"}" * (PARTS_MAX - 1)}'.encode()
    spec = RecordSpec(values=(name,), key="k", time="t")
    assert taken([line], spec) == [True]
    assert read([line], spec) == [(b"a", 1, ("5.0",), ())]


@settings(max_examples=400, deadline=None)
@given(st.lists(nested(), min_size=1, max_size=5))
def test_scanner_parser_and_reference_mean_the_same_field(values: list[bytes]) -> None:
    together = read(values)
    for value, row in zip(values, together, strict=True):
        assert row == by_parser(value), value
        assert (None if isinstance(row, str) else row) == by_reference(value), value
        assert read([value]) == [row], value


def test_the_records_that_are_made_reach_every_case() -> None:
    seen, records = Counter[str](), 1_000

    @settings(max_examples=records, deadline=None, derandomize=True, database=None)
    @given(nested())
    def made(value: bytes) -> None:
        seen.update({*cases(value), "taken" if taken([value])[0] else "asked"})
        seen["a record" if not isinstance(read([value])[0], str) else "a reject"] += 1

    made()
    common = ("taken", "asked", "a record", "a reject", "a name twice", "flat", "nested")
    rare = ("an object twice", "mixed", "two ways to one field", "no object on the way")
    assert min(seen[case] for case in common) >= 100, seen
    assert min(seen[case] for case in (*rare, "written so that it is not read, or null")) >= 30, (
        seen
    )


ES = RecordSpec(values=("system.cpu.pct",), words=("host.os.name",), key="host.name", time="@t")
FILEBEAT: dict[str, Any] = {
    "@t": 1, "agent": {"name": "fb", "tags": ["a", {"b": []}]}, "ecs": {"version": "8"},
    "host": {"name": "web-1", "ip": ["10.0.0.1"], "os": {"name": "Debian", "family": "debian"}},
    "system": {"cpu": {"cores": 8, "pct": 0.25, "user": {"pct": 0.1}}}, "tags": None,
}  # fmt: skip


def test_the_scanner_takes_nested_records_and_names_without_dots_as_well() -> None:
    flat = {"@t": 1, "host.name": "web-1", "host.os.name": "Debian", "system.cpu.pct": 0.25}
    half = {"@t": 1, "host": {"name": "web-1", "os.name": "Debian"}, "system": {"cpu.pct": 0.25}}
    more = {**FILEBEAT, "host": {"os": {}, "name": "web-1"}, "host.os.name": "Debian"}
    less = {**FILEBEAT, "system": {"cpu": {"pct": 0.25}}, "agent": {}, "ecs": {"version": "9"}}
    lines = [json.dumps(each).encode() for each in (FILEBEAT, flat, half, more, less, FILEBEAT)]
    lines.append(json.dumps(FILEBEAT, indent=2).encode())
    assert all(taken(lines, ES))
    row = (b"web-1", 1, ("0.25",), (hash_of(b"Debian"),))
    assert read(lines, ES) == [row] * len(lines)


def test_what_is_on_the_way_and_no_object_is_missing_and_taken() -> None:
    lines = [
        b'{"@t":1,"host.name":"a","system":%s,"host":%s,"system.cpu.pct":1}' % pair
        for pair in ((b"null", b"{}"), (b"[1]", b'"a"'), (b"3", b"[{}]"), (b'{"cpu":{}}', b"true"))
    ]
    assert all(taken(lines, ES))
    assert read(lines, ES) == [(b"a", 1, ("1.0",), (0,))] * 4


@pytest.mark.parametrize(
    "inner",
    [
        '"host": {"name": "b"}',  # in two ways
        '"system": {"cpu": {"pct": 1}}, "system": {}',  # an object twice
        '"system": {"cpu": {"pct": 1, "pct": 2}}',
        '"system": {"cpu": {"pct": 1}, "cpu": 2}',
        '"system": {"cpu": {"pct": 1}, "cpu.pct": 2}',
        '"system": {"cpu": {"p\\u0063t": 1}}',
        '"system": {"cpu": {"pct": {}}}',
        '"system": {"cpu": {"pct": 1}',
        '"system": {"cpu": {"pct": 1]}',
        '"system": {"cpu": {"pct": 1},}',
        '"system": {"cpu": {"pct" 1}}',
        '"system": {"cpu": {"pct": 1}}}',
        '"system": {,"cpu": {"pct": 1}}',
        '"system": {"cpu": [}',
    ],
)
def test_what_is_not_simple_inside_is_asked_about(inner: str) -> None:
    assert taken([f'{{"@t":1,"host.name":"a",{inner}}}'.encode()], ES) == [False]


def test_more_names_than_are_remembered_are_asked_about_in_objects_too() -> None:
    for count in (LAYOUT_MAX - 20, LAYOUT_MAX + 20):
        host = {f"n{at}": at for at in range(count)}
        line = json.dumps({**FILEBEAT, "host": {**host, **FILEBEAT["host"]}}).encode()
        assert taken([line], ES) == [count < LAYOUT_MAX]
        assert read([line], ES) == [(b"web-1", 1, ("0.25",), (hash_of(b"Debian"),))]


def test_a_place_that_had_a_name_in_one_object_has_it_not_in_another() -> None:
    spec = RecordSpec(values=("a.b", "b", "c.b"), key="k", time="t")
    lines = [
        b'{"k":"a","t":1,"a":{"b":1},"b":2}', b'{"k":"a","t":1,"a":{},"b":2,"b":3}',
        b'{"k":"a","t":1,"a":{},"b":2}', b'{"k":"a","t":1,"c":{"b":3}}',
        b'{"k":"a","t":1,"d":{"b":3},"b":4}', b'{"k":"a","t":1,"a":{"b":1},"c":{"b":5}}',
    ]  # fmt: skip
    assert taken(lines, spec) == [True, False, True, True, True, True]
    assert [row[2] for row in read(lines, spec)] == [
        ("1.0", "2.0", "nan"), ("nan", "3.0", "nan"), ("nan", "2.0", "nan"), ("nan", "nan", "3.0"),
        ("nan", "4.0", "nan"), ("1.0", "nan", "5.0"),
    ]  # fmt: skip


def test_a_value_that_nobody_wants_is_passed_over_as_before_and_never_a_part_of_it() -> None:
    record = b'{"k":"a","t":1,"p":%s,"x":%d}'
    values = [
        b"[1,2]", b"[1,2]", b"[1,2,3]", b"[1,2", b"[1,2]", b"[1,2]]", b'{"a":1}', b'{"a":1}',
        b'{"a":12}', b"1", b"12", b"1", b'{"a":1}', b"tru", b"{}", b"{}", b"[]", b"[]]",
    ]  # fmt: skip
    lines = [record % (value, at) for at, value in enumerate(values)]
    spec = RecordSpec(values=("x",), key="k", time="t")
    good = [b for b in map(valid, values)]
    assert taken(lines, spec) == good
    assert [row != "not JSON" for row in read(lines, spec)] == good


def valid(value: bytes) -> bool:
    try:
        json.loads(value)
    except ValueError:
        return False
    return True


# ---- names of samples, and patterns


@settings(max_examples=300, deadline=None)
@given(nested())
def test_inner_names_are_those_that_mean_something_and_no_object(value: bytes) -> None:
    (record,) = parsed([value])
    found = names_in([record])
    assert found.top == tuple(record)
    every = {name for name in inner_names(record) if not isinstance(meant(record, name), dict)}
    assert {*found.inner} == every - {*record}
    for name in (*VALUES, *WORDS, KEY, "a", "a.b.c.d", "a.pad", "pad.pad"):
        value_there = meant(record, name)
        assert value_of(record, name) == value_there
        if value_there is not None and not isinstance(value_there, dict):
            assert name in found


def test_a_pattern_with_a_dot_reaches_into_objects_and_one_without_does_not() -> None:
    (record,) = parsed([json.dumps({"cpu.flat": 1, "n": 2, "host": "a", **FILEBEAT}).encode()])
    names = names_in([record], only=lambda value: isinstance(value, float))
    assert names.inner == ("system.cpu.cores", "system.cpu.pct", "system.cpu.user.pct")
    assert expand(["*"], names) == ("cpu.flat", "n", "@t")
    assert expand(["system.*.pct", "n"], names) == ("system.cpu.pct", "system.cpu.user.pct", "n")
    assert expand(["*.*"], names, aside=["system.cpu.user"]) == (
        "cpu.flat", "system.cpu.cores", "system.cpu.pct",
    )  # fmt: skip
    assert expand(["cpu*"], names) == ("cpu.flat",)
    with pytest.raises(ConfigError, match=r"no column `pct`") as caught:
        expand(["pct"], names)
    assert caught.value.hint.startswith("did you mean `system.cpu.pct`, `system.cpu.user.pct`? ")
    with pytest.raises(ConfigError) as caught:
        expand(["sytem.cpu.pct"], names)
    assert caught.value.hint.startswith("did you mean `system.cpu.pct`")


def test_what_is_no_object_has_no_names() -> None:
    deep = b'{"a":' * 3_000 + b"1" + b"}" * 3_000
    values = [None, b"", b"[", b"3", deep, b'{"a":{"b":NaN}}', b'{"n":' + b"9" * 5_000 + b"}"]
    assert names_in(parsed(values)) == Names(("a", "n"), ("a.b",))
    long = '{"a":' * (PARTS_MAX + 1) + "1" + "}" * (PARTS_MAX + 1)
    assert names_in(parsed([long.encode()])) == Names(("a",))


# ---- configs


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            "key: user.name, values: [cpu], pseudonymise: [user]",
            "name it in `pseudonymise` as well",
        ),
        ("key: k, words: [user.id], pseudonymise: [user]", "`user.id` lies inside of `user`"),
        ("key: k, values: [user.age], pseudonymise: [user]", "`user.age` is scored as it is"),
        ("key: k, values: [cpu], time: user.at, pseudonymise: [user]", "`user.at` is scored as it"),
        ("key: k, values: ['user.*'], pseudonymise: [user]", "`user.*` is scored as it is"),
        ("key: k, values: [a.b, a.b]", "`a.b` must not be empty and must stand there once"),
    ],
)
def test_a_field_inside_of_one_that_must_not_leave_is_named_as_well(
    tmp_path: Path, record: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        loaded(tmp_path, record)


def test_a_flat_name_that_only_begins_like_another_hides_nothing(tmp_path: Path) -> None:
    found = loaded(tmp_path, "key: user.name, words: [user], pseudonymise: [user]")
    assert found.hidden == (True,)
    assert not found.pseudonymous


def loaded(folder: Path, record: str) -> RecordSpec:
    model = "preset:network" if "words" in record else "robustz"
    detector = f"{{name: d, topics: [t], model: '{model}', record: {{{record}}}}}"
    (folder / "it.yaml").write_text(f"kafka: {{bootstrap: 'a:1'}}\ndetectors: [{detector}]\n")
    return load(folder / "it.yaml").spec().record
