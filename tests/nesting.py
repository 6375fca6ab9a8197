"""Records whose fields lie inside of objects, for tests: made by hypothesis, and what they mean.

A record is written by hand from pairs of names and values, and no dict: names may come twice. What
it means is said a second time here, by the words of the rule and not by its code.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

from hypothesis import strategies as st

KEY, TIME = "h.k", "@t"
VALUES = ("a.b", "a.b.c", "x", "a.d", "x..y")
WORDS = ("w.v", "a.w")
NAMES = (KEY, TIME, *VALUES, *WORDS)


class Pairs(list[tuple[str, Any]]):
    """An object as it is written: a name may come twice."""


def meant(fields: Any, name: str) -> Any:
    """What a name means in a parsed record: a field of the whole name, else of its first part."""
    if "" in name.split("."):
        return fields.get(name)
    while isinstance(fields, dict):
        if name in fields:
            return cast("dict[str, Any]", fields)[name]
        first, dot, name = name.partition(".")
        fields = fields.get(first) if dot else None
    return None


def text_of(value: Any, comma: str = ",", colon: str = ":", *, ascii_: bool = True) -> str:
    """A value as JSON."""
    if isinstance(value, Pairs):
        inner = (
            json.dumps(name, ensure_ascii=ascii_) + colon + text_of(each, comma, colon)
            for name, each in value
        )
        return "{" + comma.join(inner) + "}"
    return json.dumps(value, ensure_ascii=ascii_)


def put(fields: Pairs, steps: Sequence[str], value: Any, *, merged: bool) -> None:
    """Write a field into objects; into those that are there, or into others of the same names."""
    for step in steps[:-1]:
        there = [v for n, v in fields if n == step and isinstance(v, Pairs)] if merged else []
        inner = there[-1] if there else Pairs()
        if not there:
            fields.append((step, inner))
        fields = inner
    fields.append((steps[-1], value))


def ways(name: str) -> list[tuple[str, ...]]:
    """All ways to write a name: each dot is a step into an object, or part of a name."""
    parts = name.split(".")
    found = [(parts[0],)]
    for part in parts[1:]:
        found = [
            more for w in found for more in ((*w, part), (*w[:-1], f"{w[-1]}.{part}"))
        ]  # fmt: skip
    return found


NUMBERS = st.floats(-1e9, 1e9) | st.integers(-(2**60), 2**60)
SELDOM = st.sampled_from([None, [], [1, {"b": 2}], Pairs(), Pairs([("b", 1)]), "s", True, 1.5])
GOOD = {
    KEY: st.text(st.characters(codec="utf-8"), min_size=1, max_size=6) | st.integers(-99, 99),
    TIME: st.integers(0, 2_000_000_000_000),
    **dict.fromkeys(WORDS, st.text(max_size=4) | st.integers(0, 9) | st.booleans()),
}


def one_in(count: int) -> st.SearchStrategy[bool]:
    return st.sampled_from([False] * (count - 1) + [True])


@st.composite
def nested(draw: st.DrawFn) -> bytes:
    """A record with some of NAMES, mostly fit to be read, and with what else may stand there."""
    fields, twice = Pairs(), draw(one_in(4))
    fixed = [name for name in (KEY, TIME, "x") if not draw(one_in(20))]
    others = st.sampled_from(NAMES if twice else sorted({*NAMES} - {KEY, TIME, "x"}))
    chosen = draw(st.lists(others, max_size=4, unique=not twice))
    for name in draw(st.permutations([*fixed, *chosen])):
        usual = [way for way in ways(name) if len(way) in (1, name.count(".") + 1)]
        way = draw(st.sampled_from(ways(name) if draw(one_in(3)) else usual))
        if len(way) > 1 and draw(one_in(20)):
            way = way[:-1]  # what should be an object is none
        value = draw(SELDOM if draw(one_in(20)) else GOOD.get(name, NUMBERS))
        put(fields, way, value, merged=not draw(one_in(20)))
        if draw(one_in(20)):
            pad = draw(st.sampled_from(["pad", "a", "h", "\u00e4"]))
            put(fields, (pad, "pad"), draw(SELDOM), merged=True)
    comma, colon = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r ")]))
    text = text_of(fields, comma, colon, ascii_=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass")


def cases(value: bytes) -> Iterator[str]:
    """What is special about a record."""
    twice, record = [], json.loads(value, object_pairs_hook=Pairs)

    def walk(fields: Pairs) -> None:
        names = [name for name, _ in fields]
        twice.extend(name for name in names if names.count(name) > 1)
        for _, each in fields:
            if isinstance(each, Pairs):
                walk(each)

    walk(record)
    yield from ({"a name twice"} if twice else ())
    yield from ({"an object twice"} if {"a", "h", "b", "w"} & set(twice) else ())
    plain = json.loads(value)
    for name in NAMES:
        there = [way for way in ways(name) if reached(plain, way)]
        if len(there) > 1:
            yield "two ways to one field"
        for way in there:
            whole = len(way) == name.count(".") + 1
            yield "flat" if len(way) == 1 else "nested" if whole else "mixed"
        if there and meant(plain, name) is None:
            yield "written so that it is not read, or null"
        first = name.split(".")[0]
        if "." in name and isinstance(plain.get(first, plain), list | str | int | None):
            yield "no object on the way"


def reached(fields: Any, way: Sequence[str]) -> bool:
    """Whether a field is there, by these steps."""
    for step in way:
        if not isinstance(fields, dict) or step not in fields:
            return False
        fields = cast("dict[str, Any]", fields)[step]
    return True
