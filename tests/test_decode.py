"""Goal: every record becomes columns or a reject that says why; none costs another.

Method: one record for each reason; then batches of good and bad records that hypothesis mixes,
against a slow decoder written here in plain Python.
"""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raywatch.actors.decode import DETAIL_MAX, decode
from raywatch.actors.grammar import TIME_MAX_MS
from raywatch.actors.ports import Fetched
from raywatch.actors.records import REASONS, Records, RecordSpec, empty_records

SPEC = RecordSpec(values=("x", "y"), key="k", time="t", bytes_max=4_096, key_bytes_max=16)
NOW_MS = 1_700_000_000_000


def fetched(
    values: list[bytes | None],
    *,
    keys: list[bytes | None] | None = None,
    log_ms: int = NOW_MS,
) -> Fetched:
    """A batch of two partitions with holes in the offsets."""
    count = len(values)
    return Fetched(
        partition=np.arange(count, dtype=np.int32) % 2,
        offset=np.arange(count, dtype=np.int64) * 3 + 100,
        time_ms=np.full(count, log_ms, np.int64),
        values=values,
        keys=keys or [],
    )


def record(**fields: Any) -> bytes:
    """A good record, with some fields changed; `...` leaves one out."""
    whole: dict[str, Any] = {"k": "a", "t": NOW_MS, "x": 1.5, "y": 2} | fields
    return json.dumps({name: value for name, value in whole.items() if value is not ...}).encode()


def keys_of(records: Records) -> list[bytes]:
    return [records.key(index) for index in range(len(records))]


def rejected(value: bytes | None, spec: RecordSpec = SPEC, **batch: Any) -> tuple[str, str]:
    """Reason and detail, with a good record on either side that must come through."""
    if batch.get("keys"):
        batch["keys"] = [b"good", batch["keys"][0], b"good"]
    good = record(t=0)
    records = decode(fetched([good, value, good], **batch), spec)
    assert records.offset.tolist() == [100, 106]
    (reject,) = records.rejects
    assert (reject.partition, reject.offset, reject.value) == (1, 103, value)
    assert reject.reason in REASONS
    return reject.reason, reject.detail


@pytest.mark.parametrize(
    ("value", "reason", "shown"),
    [
        (None, "empty value", "tombstone"),
        (b"", "empty value", "no bytes"),
        (b"[" + b" " * 4_096, "too large", "`4097` bytes, at most `4096`"),
        (b" ", "not JSON", ""),
        (b"{", "not JSON", "`{`"),
        (b'{"k":"a","t":1,"x":NaN}', "not JSON", "NaN"),
        (b'{"k":"a","t":1,"x":-Infinity}', "not JSON", "Infinity"),
        (b'{"k":"a","t":1,"x":1e999,"y":NaN}', "not JSON", "`NaN` is no number"),
        (b'{"k":"a","t":1,"x":1e999', "not JSON", "1e999"),
        (b'{"k":"a","t":1,"x":1} {}', "not JSON", "{}"),
        (b'{"k":"a","t":1,"x":01}', "not JSON", "01"),
        (b'{"k":"\xff","t":1,"x":1}', "not JSON", "utf-8"),
        (b"\xef\xbb\xbf{}", "not JSON", ""),
        (b'{"k":"\\ud800","t":1,"x":1}', "not JSON", ""),
        (b"\x00\x01\x02", "not JSON", ""),
        (b"[" * 4_000, "not JSON", "nested too deep"),
        (b'{"t":1,"x":1e999,"k":"\\ud800"}', "bad key", "surrogate"),
        (b"[1]", "not an object", "`[1]`"),
        (b"null", "not an object", "`null`"),
        (b"1e999", "not an object", "`1e999`"),
        (b"{}", "missing field", "`k`"),
        (record(k=...), "missing field", "`k`"),
        (record(k=None), "missing field", "`k`"),
        (record(t=...), "missing field", "`t`"),
        (record(t=None), "missing field", "`t`"),
        (record(x=..., y=...), "missing field", "`x, y`"),
        (record(x=None, y=...), "missing field", "`x, y`"),
        (record(k=True), "wrong type", "`True`"),
        (record(k=1.5), "wrong type", "`1.5`"),
        (record(k=["a"]), "wrong type", "['a']"),
        (record(x=True), "wrong type", "`x`: `True`"),
        (record(x="1.5"), "wrong type", "'1.5'"),
        (record(y={"z": 1}), "wrong type", "`y`"),
        (b'{"k":"a","t":1,"x":1,"y":[1,2]}', "wrong type", "[1, 2]"),
        (b'{"k":"a","t":1,"x":1e999}', "not finite", "`x`: `inf`"),
        (b'{"k":"a","t":1,"x":-1e999}', "not finite", "`-inf`"),
        (b'{"k":"a","t":1,"x":1' + b"0" * 320 + b"}", "not finite", "`x`"),
        (b'{"k":"a","t":1,"y":' + b"9" * 4_000 + b"}", "not finite", "`y`"),
        (record(k=""), "bad key", "0 bytes"),
        (record(k="é" * 9), "bad key", "18 bytes, not 1 to 16"),
        (record(t="soon"), "bad time", "'soon'"),
        (record(t="2023-02-29T00:00:00Z"), "bad time", "2023-02-29"),
        (record(t="1700000000000"), "bad time", "1700000000000"),
        (record(t=False), "bad time", "False"),
        (record(t=[1]), "bad time", "[1]"),
        (record(t=-1), "bad time", "-1"),
        (record(t=-0.5), "bad time", "-0.5"),
        (record(t=TIME_MAX_MS + 1), "bad time", str(TIME_MAX_MS + 1)),
        (record(t=1e300), "bad time", "1e+300"),
        (b'{"k":"a","t":1e999,"x":1}', "bad time", "inf"),
        (record(t=NOW_MS + 86_400_001), "bad time", "86400001 ms ahead"),
        (record(t="2199-01-01T00:00:00Z"), "bad time", "ahead"),
    ],
)
def test_a_reject_says_why(value: bytes | None, reason: str, shown: str) -> None:
    found, detail = rejected(value)
    assert found == reason
    assert shown in detail
    assert len(detail) < DETAIL_MAX + 120


@pytest.mark.parametrize("key", [None, b"", b"a" * 17])
def test_a_kafka_key_that_is_none_is_a_bad_key(key: bytes | None) -> None:
    spec = RecordSpec(values=("x",), time="t", key_bytes_max=16)
    assert rejected(record(), spec, keys=[key])[0] == "bad key"


@pytest.mark.parametrize("log_ms", [-1, TIME_MAX_MS + 1])
def test_a_log_without_a_time_cannot_give_one(log_ms: int) -> None:
    records = decode(fetched([record()], log_ms=log_ms), RecordSpec(values=("x",), key="k"))
    assert [reject.reason for reject in records.rejects] == ["bad time"]


def test_every_reason_but_the_lanes_own_has_been_seen() -> None:
    cases: list[bytes | None] = [
        None, b"x" * 5_000, b"{", b"[]", b"{}", record(x="1"), b'{"k":"a","t":1,"x":1e999}',
        record(k=""), record(t="x"),
    ]  # fmt: skip
    reasons = {reject.reason for reject in decode(fetched(cases), SPEC).rejects}
    assert reasons == set(REASONS) - {"too many keys"}  # which only the key table can know


def test_a_time_far_ahead_is_fine_where_the_log_has_none() -> None:
    far = record(t=NOW_MS + 10**10)
    assert decode(fetched([far], log_ms=-1), SPEC).time_ms.tolist() == [NOW_MS + 10**10]
    assert decode(fetched([record(t=NOW_MS + 86_400_000)]), SPEC).rejects == []


def test_log_time_and_kafka_key_stand_in_for_fields() -> None:
    spec = RecordSpec(values=("x",))
    values = [record(x=1), record(x=2, p="\ud83d"), record(x=10**18)]  # two for the full parser
    keys: list[bytes | None] = [b"host", b"\xff\x00", "é".encode()]
    records = decode(fetched([values[0], values[2], values[2]], keys=keys), spec)
    assert keys_of(records) == keys
    assert records.time_ms.tolist() == [NOW_MS] * 3
    assert records.values.tolist() == [[1.0], [1e18], [1e18]]
    assert decode(fetched([values[1]], keys=[b"a"]), spec).rejects[0].reason == "not JSON"


def test_keys_are_text_or_the_decimal_text_of_an_integer() -> None:
    values: list[bytes | None] = [
        record(k="é"), '{"k":"é","t":1,"x":1}'.encode(), record(k=7), record(k=-7),
        b'{"k":-0,"t":1,"x":1}', record(k=10**15), b'{"k":"a\\tb","t":1,"x":1}',
        record(k="ab\u0000c"),
    ]  # fmt: skip
    expected = ["é", "é", "7", "-7", "0", "1000000000000000", "a\tb", "ab\0c"]
    assert keys_of(decode(fetched(values), SPEC)) == [key.encode() for key in expected]


def test_a_missing_channel_is_nan_while_another_is_there() -> None:
    records = decode(fetched([record(x=None), record(y=...), record(x=..., y=10**20)]), SPEC)
    assert np.array_equal(records.values, [[math.nan, 2], [1.5, math.nan], [math.nan, 1e20]], True)


def test_a_number_out_of_range_in_a_field_nobody_wants_costs_nothing() -> None:
    values: list[bytes | None] = [b'{"k":"\\u0061","t":1,"x":1,"pad":[1e999,' + b"9" * 999 + b"]}"]
    records = decode(fetched(values), SPEC)
    assert (keys_of(records), records.rejects) == ([b"a"], [])


def test_one_field_may_be_two_things() -> None:
    spec = RecordSpec(values=("t", "k"), key="k", time="t")
    records = decode(fetched([b'{"k":5,"t":1700000000123.9}']), spec)
    assert keys_of(records) == [b"5"]
    assert records.time_ms.tolist() == [1_700_000_000_123]
    assert records.values.tolist() == [[1_700_000_000_123.9, 5.0]]


def test_a_huge_value_is_rejected_unread_and_costs_its_neighbours_nothing() -> None:
    huge = b'{"k":"' + b"a" * 10_000_000 + b'","t":1,"x":1}'
    assert rejected(huge, RecordSpec(values=("x",), key="k", time="t"))[0] == "too large"


def test_nothing_decodes_to_nothing() -> None:
    records = decode(fetched([]), SPEC)
    assert (len(records), records.values.shape) == (0, (0, 2))
    assert records.values.dtype == empty_records(2).values.dtype
    only_bad = decode(fetched([None, b"{"]), SPEC)
    assert (len(only_bad), only_bad.values.shape, len(only_bad.rejects)) == (0, (0, 2), 2)


FIELD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=6),
    st.lists(st.integers(), max_size=2),
    st.sampled_from(["2026-11-24T13:43:26.123Z", NOW_MS, 1.5, "host-0001", 10**400]),
)  # fmt: skip
MIXED = st.one_of(
    st.none(),
    st.binary(max_size=12),
    st.dictionaries(st.sampled_from(["k", "t", "x", "y", "z"]), FIELD).map(
        lambda fields: json.dumps(fields).encode()
    ),
    st.builds(record, x=st.floats(allow_nan=False, allow_infinity=False), k=st.text(min_size=1)),
    st.builds(record, x=st.integers(-(2**63), 2**63), p=FIELD),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(MIXED, max_size=12))
def test_a_batch_decodes_as_its_records_do_one_by_one(values: list[bytes | None]) -> None:
    """Whatever the neighbours are, and in order; each is either a record or a reject."""
    batch = fetched(values)
    together = decode(batch, SPEC)
    kept, refused = together.offset.tolist(), [reject.offset for reject in together.rejects]
    assert sorted(kept + refused) == batch.offset.tolist()
    assert kept == sorted(kept)
    assert refused == sorted(refused)
    at = 0
    for index, value in enumerate(values):
        one = slice(index, index + 1)
        alone = decode(
            Fetched(batch.partition[one], batch.offset[one], batch.time_ms[one], [value], []), SPEC
        )
        if alone.rejects:
            assert alone.rejects[0] in together.rejects
            continue
        assert together.key(at) == alone.key(0)
        assert together.time_ms[at] == alone.time_ms[0]
        assert together.partition[at] == index % 2
        assert together.values[at].tobytes() == alone.values[0].tobytes()
        at += 1


@settings(max_examples=150, deadline=None)
@given(st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False))
def test_the_scanner_and_the_full_parser_give_the_same_bits(value: float) -> None:
    plain = record(k="a", x=value)
    escaped = plain.replace(b'"a"', b'"\\u0061"')  # only the full parser reads escaped keys
    records = decode(fetched([plain, escaped]), SPEC)
    assert keys_of(records) == [b"a", b"a"]
    assert records.values[0].tobytes() == records.values[1].tobytes()
    assert records.values[0, 0] == float(value)
