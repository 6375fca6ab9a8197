"""Goal: a record is read as a strict reader would read it, or rejected as he would, whatever it is.

Method: records that hypothesis writes and 60 mutants of each are decoded in one batch, by the
scanner with its full parser behind it, by the full parser alone, and by a reference of its own:
Python's json and datetime. All three accept the same records and give the same keys, times and
values, bit for bit.
"""

import json
import math
import re
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.budget import COUNT, INPUTS, SEED, fuzzed
from fuzz.mutate import mutants
from hypothesis import example, given
from hypothesis import strategies as st
from nesting import KEY, TIME, VALUES, WORDS, meant, nested
from test_scan import written

from raywatch.actors import decode as decoding
from raywatch.actors.grammar import TIME_MAX_MS
from raywatch.actors.ports import Fetched
from raywatch.actors.records import RecordSpec
from raywatch.actors.scan import hash_of

MUTANTS = 60
LOG_MS = 1_795_527_806_123
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SPECS = (
    RecordSpec(values=("x", "y"), key="k", time="t", key_bytes_max=32),
    RecordSpec(values=("x",), key="k", time=None, bytes_max=64),
    RecordSpec(values=("x", "\u00e4"), key=None, time="t", ahead_max_ms=1_000),
    RecordSpec(values=("k", "x"), key="k", time="t"),  # one field is two things
    RecordSpec(values=("x",), words=("pad", "y"), key="k", time="t"),
    RecordSpec(values=(), message="pad", session="y", key="k", time="t"),
)
NESTED = (
    RecordSpec(values=VALUES, words=WORDS, key=KEY, time=TIME, key_bytes_max=32),
    RecordSpec(values=("x",), words=("a.b", "a.b.c"), key=KEY, time=TIME),
    RecordSpec(values=("a.d", "x", "@t"), key="a.w", time="@t"),  # one field is two things
    RecordSpec(values=(), message="w.v", session="a.w", key=None, time=None),
)
Row = tuple[bytes, int, tuple[bytes, ...], tuple[int, ...]]  # values bit for bit, hashes of words
ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?"
    r"(?:[Zz]|([+-])(\d\d)(?::?(\d\d))?)?)?",
    re.ASCII,
)


class Unlike(Exception):
    """Why a record is no record."""


def bits(value: float) -> bytes:
    return struct.pack("<d", value) if not math.isnan(value) else b"nan"


def iso(text: str) -> int:
    """ISO 8601 by datetime; second 60 is the next minute."""
    found = ISO.fullmatch(text)
    if found is None:
        raise Unlike(text)
    year, month, day, hour, minute, second, part, sign, zone_h, zone_m = found.groups()
    ahead = int(zone_h or 0) * 60 + int(zone_m or 0)
    if int(second or 0) > 60 or int(zone_h or 0) > 23 or int(zone_m or 0) > 59:
        raise Unlike(text)
    try:
        day_ms = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0))  # noqa: DTZ001
    except ValueError:
        raise Unlike(text) from None
    begin = day_ms.replace(tzinfo=UTC) - EPOCH
    moment = begin + timedelta(seconds=int(second or 0), minutes=-ahead if sign == "+" else ahead)
    return moment // timedelta(milliseconds=1) + int(((part or "") + "000")[:3])


def refuse(word: str) -> None:
    raise Unlike(word)


def whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= 4_300 else math.inf


def texts_of(record: Any, spec: RecordSpec) -> list[str]:
    """The words of a record; a line is a string that is not empty. Raises Unlike."""
    words = [meant(record, name) for name in spec.texts]
    if any(type(each) not in (str, int, bool, type(None)) for each in words):
        raise Unlike
    if spec.message is not None and not (words[0] and type(words[0]) is str):
        raise Unlike
    return ["" if w is None else str(w).lower() if type(w) is bool else str(w) for w in words]


def expected(value: bytes | None, kafka_key: bytes, spec: RecordSpec) -> Row:
    """What a record means. Raises Unlike, or ValueError where it is no JSON."""
    if not value or len(value) > spec.bytes_max:
        raise Unlike
    record: Any = json.loads(value.decode("utf-8"), parse_constant=refuse, parse_int=whole)
    if not isinstance(record, dict):
        raise Unlike
    key: Any = kafka_key
    if spec.key is not None:
        key = meant(record, spec.key)
        if type(key) not in (str, int):
            raise Unlike
        key = str(key).encode()
    if not 1 <= len(key) <= spec.key_bytes_max:
        raise Unlike
    time: Any = LOG_MS
    if spec.time is not None:
        time = meant(record, spec.time)
        if type(time) not in (str, int, float):
            raise Unlike
        time = iso(time) if isinstance(time, str) else math.floor(max(-1e300, min(time, 1e300)))
    if not 0 <= time <= TIME_MAX_MS or time > LOG_MS + spec.ahead_max_ms:
        raise Unlike
    values = [meant(record, name) for name in spec.values]
    if any(type(each) not in (int, float, type(None)) for each in values):
        raise Unlike
    try:
        numbers = [math.nan if each is None else float(each) for each in values]
    except OverflowError:
        raise Unlike from None
    texts = texts_of(record, spec)
    if any(map(math.isinf, numbers)) or (all(map(math.isnan, numbers)) and not any(texts)):
        raise Unlike
    return key, time, tuple(map(bits, numbers)), tuple(hash_of(each.encode()) for each in texts)


def by_reference(value: bytes | None, kafka_key: bytes, spec: RecordSpec) -> Row | None:
    try:
        return expected(value, kafka_key, spec)
    except (ValueError, Unlike):
        return None


def decoded(values: list[bytes], spec: RecordSpec) -> dict[int, Row]:
    """What decode makes of a batch, by the place of the record."""
    count = len(values)
    fetched = Fetched(
        np.zeros(count, np.int32), np.arange(count), np.full(count, LOG_MS), list(values),
        [b"key-%d" % at for at in range(count)],
    )  # fmt: skip
    found = decoding.decode(fetched, spec)
    rejected = {reject.offset for reject in found.rejects}
    assert rejected | set(found.offset.tolist()) == set(range(count))
    assert len(rejected) + len(found) == count
    return {
        int(found.offset[row]): (
            found.key(row), int(found.time_ms[row]), tuple(map(bits, found.values[row].tolist())),
            tuple(found.words[row].tolist()),
        )
        for row in range(len(found))
    }  # fmt: skip


def parsed(value: bytes, kafka_key: bytes, spec: RecordSpec) -> Row | None:
    """What the full parser alone makes of a record."""
    try:
        key, time_ms, values, words = decoding._full(value, kafka_key, LOG_MS, spec)
    except decoding._Bad:
        return None
    return key, time_ms, tuple(map(bits, values)), tuple(map(hash_of, words))


def half_a_pair(value: bytes) -> bool:
    """A lone surrogate, which Python's json lets pass and RFC 8259 leaves open."""
    try:  # all pairs, those that are written over included
        json.dumps(json.loads(value, object_pairs_hook=list), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except ValueError:
        return False
    return False


def assert_read_alike(values: list[bytes], spec: RecordSpec) -> None:
    COUNT["decode"] += len(values)
    found = decoded(values, spec)
    for at, value in enumerate(values):
        key = b"key-%d" % at
        assert found.get(at) == parsed(value, key, spec), (value, spec)
        if not half_a_pair(value):
            assert found.get(at) == by_reference(value, key, spec), (value, spec)


@fuzzed("decode", MUTANTS + 1)
@given(
    st.tuples(written(), st.sampled_from(SPECS)) | st.tuples(nested(), st.sampled_from(NESTED)),
    st.integers(0, 2**32),
)
@example((b'{"k":"a","t":1,"p":"\\ud80a","p":1,"x":1.5}', SPECS[0]), 0)  # half a pair, lost
def test_scanner_parser_and_reference_read_every_record_alike(
    made: tuple[bytes, RecordSpec], seed: int
) -> None:
    value, spec = made
    assert_read_alike([value, *mutants(value, seed, MUTANTS)], spec)


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_every_cut_of_a_record_is_read_alike(spec: RecordSpec) -> None:
    whole = b'{"k":"a\\u00e4","t":"2026-11-24T13:43:26.123+01:00","x":-1.5e1,"p":[{"a":[1]},null]}'
    assert_read_alike([whole[:end] for end in range(1, len(whole) + 1)], spec)


@pytest.mark.parametrize("spec", NESTED, ids=range(len(NESTED)))
def test_every_cut_of_a_record_with_objects_is_read_alike(spec: RecordSpec) -> None:
    whole = (
        b'{"h":{"p":{},"k":"a"},"@t":"2026-11-24T13:43:26.123+01:00","a":{"b":{"c":1.5},"w":"\\u00e4"'
        b',"d":[{"b":1}]},"w":{"v":"line 1"},"x":null,"a":{"w":"b","b.c":-2,"d":3}}'
    )
    assert_read_alike([whole[:end] for end in range(1, len(whole) + 1)], spec)
    once = whole.replace(b',"a":{"w":"b","b.c":-2,"d":3}', b"").replace(b'[{"b":1}]', b"7")
    assert_read_alike([once[:end] for end in range(1, len(once) + 1)], spec)


def test_no_byte_beyond_a_batch_is_read() -> None:
    """Scanned beside memory that may not be read; a byte too far would end the process."""
    count = max(5_000, INPUTS // 20)
    command = [sys.executable, str(Path(__file__).with_name("guarded.py")), str(SEED), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3_600, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2_000:])
    scanned, taken = map(int, re.findall(r"\d+", done.stdout))
    assert scanned >= count
    assert taken > count // 50
    COUNT["decode"] += scanned
