"""Goal: the scanner is never wrong; what it does not take, it asks about.

Method: it reads JSON that hypothesis makes, whole, mutated, cut or of random bytes, and whatever it
takes must be what Python's strict parser gives. Floats are compared bit for bit, times with
datetime. Then a few records that it must take, or it would be useless.
"""

import json
import math
import re
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raywatch.actors.decode import join
from raywatch.actors.grammar import TIME_MAX_MS, iso_ms_of
from raywatch.actors.scan import OK, Scanned, scan, wanted

KEY_MAX = 32
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST = datetime(1969, 12, 31)  # noqa: DTZ001 - hypothesis wants naive times
LAST = datetime(2200, 1, 2)  # noqa: DTZ001


def scanned(values: list[bytes]) -> tuple[Scanned, list[bytes]]:
    """Scan records with key `k`, time `t` and channels `x` and `y`; the keys as bytes."""
    fields = wanted("k", "t", ("x", "y"))
    assert fields is not None
    text, begin, size = join(values, 1 << 20)
    found = scan(text, begin, size, fields, channels=2, key_bytes_max=KEY_MAX)
    keys = [
        text[b : b + s].tobytes() if ok == OK else b""
        for b, s, ok in zip(
            found.key_begin.tolist(), found.key_size.tolist(), found.status.tolist(), strict=True
        )
    ]
    return found, keys


def taken(value: bytes) -> bool:
    return scanned([value])[0].status[0] == OK


def refuse(word: str) -> None:
    raise ValueError(word)


def bits(number: float) -> bytes:
    return struct.pack("<d", number)


def assert_never_wrong(values: list[bytes]) -> None:
    """Whatever was taken is what the strict parser says; floats bit for bit."""
    found, keys = scanned(values)
    for index in np.flatnonzero(found.status == OK).tolist():
        value = values[index]
        record = json.loads(value.decode("utf-8"), parse_constant=refuse)
        assert isinstance(record, dict), value
        key: Any = record["k"]
        assert keys[index] == str(key).encode(), value
        assert type(key) in (str, int), value
        assert 1 <= len(keys[index]) <= KEY_MAX
        time: Any = record["t"]
        time_ms = iso_ms_of(time) if isinstance(time, str) else math.floor(time)
        assert found.time_ms[index] == time_ms, value
        assert 0 <= time_ms <= TIME_MAX_MS
        channels = [record.get("x"), record.get("y")]
        assert channels != [None, None]
        for channel, given_value in enumerate(found.values[index].tolist()):
            expected: Any = channels[channel]
            assert type(expected) in (int, float, type(None)), value
            if expected is None:
                assert math.isnan(given_value), value
            else:
                assert bits(given_value) == bits(float(expected)), value


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60)
TIMES = (
    st.integers(-5, TIME_MAX_MS + 5)
    | st.floats(0, 2e12)
    | st.datetimes(FIRST, LAST).map(lambda time: time.isoformat())
)
LIKELY = st.fixed_dictionaries(
    {"k": st.text(min_size=1, max_size=8) | st.integers(-(10**19), 10**19), "t": TIMES},
    optional={
        "x": NUMBERS | st.none(),
        "y": NUMBERS | ANY_JSON,
        "pad": ANY_JSON,
        "k ": st.text(max_size=5),
        "\u00e4": ANY_JSON,
    },
)


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """A likely record, written in one of the ways producers write."""
    record = draw(LIKELY)
    names = draw(st.permutations(sorted(record)))
    shuffled = {name: record[name] for name in names}
    spaced = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r ")]))
    text = json.dumps(shuffled, separators=spaced, ensure_ascii=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A likely record with bytes replaced, inserted, removed, doubled, or its end cut off."""
    value = bytearray(draw(written()))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(value) - 1, 0)))
        byte = draw(st.sampled_from(b'{}[]",:\\ 0159.-+eEntu\x00\x1f\x80\xc3\xed\xf5\xffNI'))
        match draw(st.sampled_from(["replace", "insert", "remove", "cut", "double"])):
            case "replace":
                value[place : place + 1] = bytes([byte])
            case "insert":
                value.insert(place, byte)
            case "remove":
                del value[place : place + 1]
            case "cut":
                del value[place:]
            case _:
                value[place:place] = value[place : place + 6]
    return bytes(value)


@settings(max_examples=150, deadline=None)
@given(st.lists(written(), min_size=1, max_size=5))
def test_what_is_taken_is_what_a_strict_parser_gives(values: list[bytes]) -> None:
    assert_never_wrong(values)


@settings(max_examples=250, deadline=None)
@given(st.lists(mutated(), min_size=1, max_size=5))
def test_a_mutated_record_is_never_taken_for_another(values: list[bytes]) -> None:
    assert_never_wrong(values)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_random_bytes_do_no_harm(values: list[bytes]) -> None:
    assert_never_wrong(values)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(written(), mutated()), min_size=2, max_size=5))
def test_a_record_is_read_the_same_whatever_travels_with_it(values: list[bytes]) -> None:
    together, keys = scanned(values)
    for index, value in enumerate(values):
        alone, key = scanned([value])
        assert together.status[index] == alone.status[0]
        if alone.status[0] == OK:
            assert keys[index] == key[0]
            assert together.time_ms[index] == alone.time_ms[0]
            assert together.values[index].tobytes() == alone.values[0].tobytes()


NOW_MS = 1_795_527_806_123  # 2026-11-24T13:43:26.123Z
NESTED = b'[{"a":' * 28 + b"1" + b"}]" * 28
ESCAPES = b'["\\"\\\\\\/\\b\\f\\n\\r\\t\\u20AC",true,false,null,{},[]]'
GOOD = b'{"k":"a","t":1700000000123,"x":1.5,"pad":{"a":[1,{"b":[]}],"c":"\\n\\u00e4"}}'


def test_every_cut_of_a_record_is_asked_about() -> None:
    assert taken(GOOD)
    assert not any(taken(GOOD[:size]) for size in range(len(GOOD)))


def test_every_byte_in_every_place_is_read_as_a_strict_parser_reads_it() -> None:
    short = b'{"k":"a","t":17,"x":-1.5e1}'
    for place in range(len(short)):
        assert_never_wrong([short[:place] + bytes([b]) + short[place + 1 :] for b in range(256)])


def number(text: str) -> float | None:
    """What the scanner makes of a channel, None where it asks."""
    found, _ = scanned([b'{"k":"a","t":1,"x":' + text.encode() + b"}"])
    return float(found.values[0, 0]) if found.status[0] == OK else None


@settings(max_examples=400, deadline=None)
@given(st.floats(1e-50, 1e50) | st.floats(-1e9, 1e9))
def test_every_float_that_python_writes_is_read_bit_for_bit(value: float) -> None:
    read = number(repr(value))
    if read is None:  # only where powers of ten are not tabulated
        assert 0.0 < abs(value) < 1e-40
    else:
        assert bits(read) == bits(value)


def test_a_block_of_random_floats_is_taken_whole_and_read_bit_for_bit() -> None:
    rng = np.random.default_rng(11)
    values = (rng.random(3_000) * 10.0 ** rng.integers(-20, 20, 3_000)).tolist()
    texts = [repr(value) for value in values] + [f"{value:.15e}" for value in values]
    found, _ = scanned([f'{{"k":"a","t":1,"x":{text}}}'.encode() for text in texts])
    assert (found.status == OK).mean() > 0.99  # the rest: halves of more than 53 bits
    sure = found.status == OK
    assert np.array_equal(
        found.values[sure, 0], np.array(values + [float(t) for t in texts[3_000:]])[sure]
    )


@settings(max_examples=300, deadline=None)
@given(
    st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
)
@example("9007199254740993")  # 2^53 + 1: half-way, to even
@example("9007199254740993.0")
@example("0.000000000000000000123456789012345678")
@example("18446744073709551616")  # 2^64: wraps to zero in 64 bits
@example("18446744073709551616.5")
@example("1e999")
@example("1e-999")
@example("0e99999999999999999999")
@example("-0")
@example("-0.0")
@example("-0e0")
@example("2.2250738585072011e-308")
@example("8.5e-1" + "0" * 30)
def test_a_number_is_rounded_right_or_asked_about(text: str) -> None:
    read = number(text)
    if read is not None:
        assert bits(read) == bits(float(json.loads(text))), text


@pytest.mark.parametrize(
    "text",
    [
        "01",
        "1.",
        ".5",
        "+1",
        "1e",
        "1e+",
        "-",
        "-a",
        "0x1",
        "1_0",
        "NaN",
        "Infinity",
        "-Infinity",
        "true",
        "false",
        "nul",
        "nulll",
        '"1"',
        "[1]",
        "{}",
        "1.e3",
    ],
)
def test_what_is_no_number_is_asked_about(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    "value",
    [
        b'{"k":"a","t":1,"x":1} x',
        b'{"k":"a","t":1,"x":1}{}',
        b'{"k":"a","t":1,"x":1,}',
        b'{"k":"a","t":1,"x":1,"x":2}',
        b'{"k":"a","k":"b","t":1,"x":1}',
        b'{"k":"a","t":1,"x":1}\0',
        b'{"k":"a","t":1,"x":1,"p":"\0"}',
        b'{"k":"a","t":1,"x":1,"p":"a\nb"}',
        b'{"k":"a","t":1,"x":1,"p":"\xc0\xaf"}',  # overlong
        b'{"k":"a","t":1,"x":1,"p":"\xed\xa0\x80"}',  # a surrogate
        b'{"k":"a","t":1,"x":1,"p":"\\ud800"}',
        b'{"k":"a","t":1,"x":1,"p":"\\x"}',
        b'{"k":"a\\u0062","t":1,"x":1}',
        b'{"\\u006b":"a","t":1,"x":1}',
        b'{"k":"","t":1,"x":1}',
        b'{"k":"' + b"a" * (KEY_MAX + 1) + b'","t":1,"x":1}',
        b'{"k":1.0,"t":1,"x":1}',
        b'{"k":-0,"t":1,"x":1}',
        b'{"k":true,"t":1,"x":1}',
        b'{"k":null,"t":1,"x":1}',
        b'{"t":1,"x":1}',
        b'{"k":"a","x":1}',
        b'{"k":"a","t":1}',
        b'{"k":"a","t":1,"x":null,"y":null}',
        b'{"k":"a","t":-1,"x":1}',
        b'{"k":"a","t":7258118400001,"x":1}',
        b'{"k":"a","t":true,"x":1}',
        b'{"k":"a","t":1,"x":1,"p":[1,]}',
        b'{"k":"a","t":1,"x":1,"p":{"a" 1}}',
        b'{"k":"a","t":1,"x":1,"p":[}',
        b'{"k":"a","t":1,"x":1,"p":{1:2}}',
        b'{"k":"a","t":1,"x":1,"p":' + b"[" * 100 + b"]" * 100 + b"}",
        b'[{"k":"a","t":1,"x":1}]',
        b"\xef\xbb\xbf" + GOOD,
        b"",
        b" ",
        b"{}",
    ],
)
def test_what_is_not_simple_is_asked_about(value: bytes) -> None:
    assert not taken(value)


@pytest.mark.parametrize(
    ("value", "key", "time_ms", "x", "y"),
    [
        (b'{"k":"ab-1","t":1700000000123,"x":12.345678}', b"ab-1", 1700000000123, 12.345678, None),
        (b' {\r\n\t"k" : 17 , "t" : 1.9 , "y" : -1e-3 } ', b"17", 1, None, -1e-3),
        (b'{"x":null,"y":2,"t":"2026-11-24 13:43:26.123Z","k":-5}', b"-5", NOW_MS, None, 2.0),
        ('{"k":"é-😀","t":0,"x":0}'.encode(), "é-😀".encode(), 0, 0.0, None),
        (GOOD, b"a", 1_700_000_000_123, 1.5, None),
        (b'{"p":' + NESTED + b',"k":"a","t":1,"x":1}', b"a", 1, 1.0, None),
        (b'{"p":' + ESCAPES + b',"k":"a","t":1,"x":1e2}', b"a", 1, 100.0, None),
    ],
)
def test_what_producers_write_is_taken(
    value: bytes, key: bytes, time_ms: int, x: float | None, y: float | None
) -> None:
    found, keys = scanned([value])
    assert found.status[0] == OK
    assert keys == [key]
    assert found.time_ms[0] == time_ms
    for read, expected in zip(found.values[0].tolist(), (x, y), strict=True):
        assert math.isnan(read) if expected is None else read == expected


def test_the_order_of_fields_may_change_from_record_to_record() -> None:
    records = [
        b'{"k":"a","t":1,"x":1}',
        b'{"x":2,"k":"b","t":2}',
        b'{"z":0,"x":3,"t":3,"k":"c"}',
        b'{"k":"d","t":4,"y":4}',
        b'{"k":"e","t":5,"yy":0,"y":5}',
    ]
    found, keys = scanned(records)
    assert not found.status.any()
    assert keys == [b"a", b"b", b"c", b"d", b"e"]
    assert np.nanmax(found.values, axis=1).tolist() == [1, 2, 3, 4, 5]


def test_a_name_that_is_two_things_has_no_scanner() -> None:
    assert wanted("k", None, ("k",)) is None
    assert wanted(None, "x", ("x",)) is None


@settings(max_examples=200, deadline=None)
@given(
    st.datetimes(FIRST + timedelta(3), LAST - timedelta(3)),
    st.sampled_from(["T", "t", " "]),
    st.sampled_from(["seconds", "milliseconds", "microseconds", "minutes"]),
    st.integers(-1439, 1439) | st.none(),
    st.booleans(),
)
def test_iso_times_are_those_of_datetime(
    time: datetime, sep: str, timespec: str, minutes: int | None, colon: bool
) -> None:
    text = time.isoformat(sep, timespec)
    meant = datetime.fromisoformat(text.replace("t", "T")).replace(tzinfo=UTC)
    if minutes is not None:
        hour, minute = divmod(abs(minutes), 60)
        text += f"{'-' if minutes < 0 else '+'}{hour:02d}{':' if colon else ''}{minute:02d}"
        meant -= timedelta(minutes=minutes)
    assert iso_ms_of(text) == (meant - EPOCH) // timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("1970-01-01", 0),
        ("1970-01-01T00:00", 0),
        ("1970-01-01T00:00:00z", 0),
        ("1970-01-01T01:00:00+01", 0),
        ("1970-01-01T00:00:00.9999", 999),
        ("1970-01-01T00:00:00,5Z", 500),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),  # a leap second is the next midnight
        ("2000-02-29T00:00:00Z", 951_782_400_000),
        ("2200-01-01T00:00:00Z", TIME_MAX_MS),
    ],
)
def test_an_iso_time_is_read(text: str, time_ms: int) -> None:
    assert iso_ms_of(text) == time_ms


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "1970", "1970-13-01", "1970-00-01", "1970-01-32", "1900-02-29", "2100-02-29",
        "2023-02-29", "1969-12-31T23:59:59Z", "2200-01-01T00:00:00.001Z", "1970-01-01T24:00:00",
        "1970-01-01T00:60:00", "1970-01-01T00:00:61", "1970-01-01T00:00:00.", "1970-01-01T",
        "1970-01-01T00:00:00X", "1970-01-01T00:00:00ZZ", "1970-01-01T00:00:00+1",
        "1970-01-01T00:00:00+25:00", "1970-01-01X00:00:00", "1970-1-1", "19700101T000000Z",
        "1970-01-01T00:00:00 ", " 1970-01-01", "1970-01-01T00:00:00+01:0", "١٩٧٠-01-01",
    ],
)  # fmt: skip
def test_what_is_no_time_is_none(text: str) -> None:
    assert iso_ms_of(text) == -1


def test_digits_behind_a_cut_time_are_not_read() -> None:
    value = b'{"k":"a","t":"2026-11-24T13:43:2","x":1}'
    assert not taken(value)
    assert re.search(rb'"2026-11-24T13:43:2"', value)
