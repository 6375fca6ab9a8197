"""Goal: whatever a producer writes, each bad record is a reject with its reason and its bytes, said
once, and costs no other record; what is merely odd is scored by a stated rule.

Method: one stream of several keys in several partitions goes through a real lane twice, with and
without bad records between the good ones; everything that was said, the state that is left, and the
rejects with their headers are compared. Once more on real Kafka, with nulls and a value of 10 MB.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lanes import lag, make, read_all, running, spec, until

from raywatch.actors import checkpoint
from raywatch.actors.decode import decode
from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.flow import REJECT_BYTES_MAX, Flow
from raywatch.actors.partitioner import partition_of
from raywatch.actors.ports import Fetched, Log, Out, Partition
from raywatch.actors.records import REASONS, RecordSpec
from raywatch.actors.store import MemoryStore
from raywatch.models.registry import build, shipped
from raywatch.models.scorer import describe

PARTITIONS = 4
KEYS = [f"h{number}" for number in range(12)]
ROWS = 260
LATE_ROW = 200  # from here on every fourth key is off by 30 sigma
BEGIN_MS = 1_700_000_000_000
AHEAD_MS = 86_400_000  # the default of `record.ahead_max_ms`
BIG = b'{"host": "h1", "ts": 1, "value": 1, "note": "' + b"x" * 10_000_000 + b'"}'


def body(**changes: Any) -> bytes:
    return json.dumps({"host": "h1", "ts": BEGIN_MS, "value": 1.0, **changes}).encode()


def without(name: str) -> bytes:
    return json.dumps({k: v for k, v in json.loads(body()).items() if k != name}).encode()


# What a producer wrote -> (reason, a part of the detail).
BAD: dict[str, tuple[bytes | None, str, str]] = {
    "a tombstone": (None, "empty value", "a tombstone"),
    "no bytes": (b"", "empty value", "no bytes"),
    "10 MB": (BIG, "too large", f"`{len(BIG)}` bytes, at most `1048576`"),
    "text": (b"GET / HTTP/1.1", "not JSON", "GET / HTTP/1.1"),
    "half an object": (body()[:-1], "not JSON", '{"host"'),
    "bytes that are no text": (b"\xff\xfe\x00\x01", "not JSON", ""),
    "nested too deep": (b"[" * 100_000, "not JSON", "nested too deep"),
    "an array": (b"[1, 2]", "not an object", "[1, 2]"),
    "a number": (b"7", "not an object", "7"),
    "no key": (without("host"), "missing field", "`host`"),
    "no time": (without("ts"), "missing field", "`ts`"),
    "no value": (without("value"), "missing field", "`value`"),
    "null for a value": (body(value=None), "missing field", "`value`"),
    "text for a number": (body(value="12"), "wrong type", "'12'"),
    "true for a number": (body(value=True), "wrong type", "True"),
    "a list for a number": (body(value=[1]), "wrong type", "[1]"),
    "a list for a key": (body(host=["h1"]), "wrong type", "['h1']"),
    "NaN": (b'{"host": "h1", "ts": 1, "value": NaN}', "not JSON", "NaN"),
    "Infinity": (b'{"host": "h1", "ts": 1, "value": -Infinity}', "not JSON", "Infinity"),
    "past float64": (b'{"host": "h1", "ts": 1, "value": 1e999}', "not finite", "inf"),
    "an empty key": (body(host=""), "bad key", "0 bytes"),
    "a key of 2 KB": (body(host="k" * 2_048), "bad key", "2048 bytes, not 1 to 1024"),
    "half a surrogate": (b'{"host": "\\ud800", "ts": 1, "value": 1}', "not JSON", "surrogate"),
    "a time that is text": (body(ts="yesterday"), "bad time", "'yesterday'"),
    "before 1970": (body(ts=-1), "bad time", "-1"),
    "the year 2300": (body(ts=10_413_792_000_000), "bad time", "10413792000000"),
    "nanoseconds": (body(ts=BEGIN_MS * 1_000_000), "bad time", f"{BEGIN_MS}000000"),
}
assert {reason for _, reason, _ in BAD.values()} == set(REASONS) - {"too many keys"}


def values(seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(ROWS, len(KEYS)))


def good() -> list[Out]:
    """Rows of all keys in turn; every fourth key has an incident that begins at LATE_ROW."""
    drawn = values()
    drawn[LATE_ROW:, ::4] += 30.0
    return [
        Out("in", key.encode(), body(host=key, ts=BEGIN_MS + row * 1_000, value=drawn[row, k]))
        for row in range(ROWS)
        for k, key in enumerate(KEYS)
    ]


def mixed(records: list[Out], topic: str = "in") -> list[Out]:
    """Bad records between good ones: each kind twice, in every stretch and every partition."""
    bad = [(key, value) for value, _, _ in BAD.values() for key in ("h1", "h2")]
    step = len(records) // len(bad)
    found: list[Out] = []
    for number, (_, value) in enumerate(bad):
        # Which partition it lies in is the producer's key, whatever the value says.
        found.append(Out(topic, KEYS[number % len(KEYS)].encode(), value))
        found += records[number * step : (number + 1) * step]
    return found + records[len(bad) * step :]


def world(size: int = PARTITIONS) -> tuple[EmbeddedLog, list[Partition]]:
    log = EmbeddedLog(EmbeddedBroker())
    log.create("in", size)
    for topic in ("d.alerts", "d.rejects", "raywatch.audit"):
        log.create(topic, 1)
    return log, [Partition("in", number) for number in range(size)]


def identity(alert: Mapping[str, Any]) -> tuple[Any, ...]:
    """An alert but for the offset of its record, which the bad ones before it move."""
    return tuple((n, repr(v)) for n, v in sorted(alert.items()) if n != "lineage")


def said(log: Log, topic: str) -> list[tuple[Any, ...]]:
    return sorted(identity(json.loads(out.value or b"")) for out in read_all(log, topic))


def by_key(snapshot: checkpoint.Snapshot) -> dict[bytes, dict[str, bytes]]:
    """What a lane remembers of each key, as bits."""
    arrays = snapshot.arrays
    size = arrays["keys.size"]
    ends = np.cumsum(size)
    text = arrays["keys.text"].tobytes()
    names = [text[end - n : end] for n, end in zip(size.tolist(), ends.tolist(), strict=True)]
    rest = {
        name: array
        for name, array in arrays.items()
        if name.split(".")[0] in ("history", "decider") and array.shape[:1] == size.shape
    }
    assert any(name.startswith("history.") for name in rest), arrays.keys()
    assert any(name.startswith("decider.") for name in rest), arrays.keys()
    return {
        key: {name: array[slot].tobytes() for name, array in rest.items()}
        for slot, key in enumerate(names)
    }


def headers(log: Log, topic: str) -> list[tuple[dict[str, str], bytes]]:
    """Rejects with their headers."""
    partition = Partition(topic, 0)
    bounds = log.bounds([partition])[partition]
    source = log.source("", [partition], keys=True)
    found: list[tuple[dict[str, str], bytes]] = []
    try:
        source.assign({partition: bounds.low})

        def read() -> bool:
            fetched = source.fetch(1_000, 0.1)
            for entry, value in zip(fetched.headers, fetched.values, strict=True):
                found.append(({n: v.decode() for n, v in entry}, value or b""))
            return source.position().get(partition, bounds.low) >= bounds.end

        until(read)
    finally:
        source.close()
    return found


def check_rejects(
    rejects: list[tuple[dict[str, str], bytes]], wrote: dict[tuple[int, int], bytes | None]
) -> None:
    """Each bad record once, with why, where and its bytes.

    Args:
        rejects: headers and value of each.
        wrote: partition and offset -> the value, of the bad records.
    """
    expected = {value: (reason, part) for value, reason, part in BAD.values()}
    places = [(int(h["partition"]), int(h["offset"])) for h, _ in rejects]
    assert sorted(places) == sorted(wrote)
    for (entry, value), place in zip(rejects, places, strict=True):
        original = wrote[place]
        reason, part = expected[original]
        assert entry["reason"] == reason, (entry, value[:80])
        assert part in entry["detail"], entry
        assert len(entry["detail"]) < 500
        assert int(entry["size"]) == len(original or b"")
        assert value == (original or b"")[:REJECT_BYTES_MAX]  # whole, but for more than 512 KiB


def placed(records: list[Out]) -> dict[tuple[int, int], bytes | None]:
    """Where the bad ones of a list lie once it was written."""
    bad = {id(value) for value, _, _ in BAD.values()}
    ends = [0] * PARTITIONS
    found: dict[tuple[int, int], bytes | None] = {}
    for record in records:
        number = partition_of(record.key, PARTITIONS)
        if id(record.value) in bad:
            found[number, ends[number]] = record.value
        ends[number] += 1
    return found


def through(records: list[Out]) -> tuple[EmbeddedLog, checkpoint.Snapshot]:
    """A lane reads all of it and ends: the log, and the state that the lane left."""
    log, partitions = world()
    log.write(records)
    store, detector = MemoryStore(), spec("d", "in")
    with running(make(detector, log, partitions, store=store)):
        until(lambda: lag(log, detector, partitions) == 0)
    (name,) = store.names("snapshots/d/")
    snapshot = checkpoint.decode(store.get(name) or b"")
    assert snapshot is not None
    assert snapshot.offsets == {p: b.end for p, b in log.bounds(partitions).items()}
    return log, snapshot


def test_bad_records_are_rejected_once_each_and_cost_no_other_record() -> None:
    records = good()
    stream = mixed(records)
    wrote = placed(stream)
    assert len(wrote) == 2 * len(BAD)
    assert {partition for partition, _ in wrote} == set(range(PARTITIONS))

    calm, state = through(records)
    log, left = through(stream)

    alerts = said(log, "d.alerts")
    opened = [dict(a)["key"] for a in alerts if dict(a)["state"] == repr("open")]
    assert {repr(key) for key in KEYS[::4]} <= set(opened)  # there was something to lose
    assert alerts == said(calm, "d.alerts")
    assert by_key(left) == by_key(state)
    assert by_key(left).keys() == {key.encode() for key in KEYS}
    check_rejects(headers(log, "d.rejects"), wrote)
    assert headers(calm, "d.rejects") == []


def test_a_new_key_that_finds_no_room_is_rejected_with_its_bytes() -> None:
    log, partitions = world(1)
    records = good()[: 10 * len(KEYS)]
    late = Out("in", b"h1", body(host="one too many"))
    # A bad record in front: where a reject's bytes lie is not where its columns do.
    log.write([*records[:60], Out("in", b"h1", b"["), late, *records[60:]])
    detector = spec("d", "in", keys_max=len(KEYS), keys_full="reject")
    lane = make(detector, log, partitions)
    with running(lane):
        until(lambda: lag(log, detector, partitions) == 0)
    _, (entry, value) = headers(log, "d.rejects")
    assert entry["reason"] == "too many keys"
    assert "one too many" in entry["detail"]
    assert (entry["offset"], value) == ("61", late.value)
    assert lane.stats.records == len(records)


def test_a_key_never_seen_before_is_warmed_up_and_says_nothing() -> None:
    stream = good()
    at = len(stream) // 2
    # 99 records of a wild new key: one less than its warm-up.
    wild = [
        Out("in", b"new", body(host="new", ts=BEGIN_MS + row * 1_000, value=10.0**row))
        for row in range(99)
    ]
    log, left = through([*stream[:at], *wild, *stream[at:]])
    calm, state = through(stream)
    assert said(log, "d.alerts") == said(calm, "d.alerts")
    assert headers(log, "d.rejects") == []
    known = by_key(left)
    assert known.pop(b"new")
    assert known == by_key(state)


def test_a_record_without_a_kafka_key_is_a_bad_key_where_that_is_the_key() -> None:
    log, partitions = world()
    record = RecordSpec(values=("value",), time="ts")
    log.write([Out("in", b"", body()), Out("in", b"a", body())])
    detector = spec("d", "in", record=record)
    lane = make(detector, log, partitions)
    with running(lane):
        until(lambda: lag(log, detector, partitions) == 0)
    ((entry, value),) = headers(log, "d.rejects")
    assert (entry["reason"], value) == ("bad key", body())
    assert lane.stats.keys == 1

    # Kafka knows a null beside the empty key; the embedded log does not.
    column = np.array([BEGIN_MS])
    null = Fetched(np.zeros(1, np.int32), np.zeros(1, np.int64), column, [body()], [None])
    assert [reject.reason for reject in decode(null, record).rejects] == ["bad key"]


# ---- time: records count in offset order, whatever their timestamps say ---------------------


def scored(times: list[int]) -> np.ndarray[Any, Any]:
    """Scores of one key's records, which have these times; the log's own time is BEGIN_MS."""
    scorer = build(shipped("robustz"))
    detector = spec("d", "in")
    flow = Flow(detector, [Partition("in", 0)], describe(scorer))
    drawn = values()[:, 0]
    size = len(times)
    fetched = Fetched(
        np.zeros(size, np.int32),
        np.arange(size),
        np.full(size, BEGIN_MS),
        [body(ts=time, value=drawn[row]) for row, time in enumerate(times)],
        [],
    )
    batch = flow.prepare(fetched, describe(scorer), begin={}, end={})
    assert batch.records.rejects == []
    assert batch.segments is not None
    decided = flow.finish(batch, scorer.score(batch.segments)).decided
    assert decided is not None
    return np.stack([decided.score.view(np.int32), decided.event.view(np.int32)])


def test_late_and_duplicate_times_are_scored_like_any_other() -> None:
    usual = [BEGIN_MS + row * 1_000 for row in range(ROWS)]
    odd = [
        0 if row % 7 == 3 else usual[0] if row % 5 == 2 else usual[-row - 1] for row in range(ROWS)
    ]
    same = [BEGIN_MS] * ROWS
    assert np.count_nonzero(scored(usual)) > ROWS // 2
    assert np.array_equal(scored(odd), scored(usual))
    assert np.array_equal(scored(same), scored(usual))


@pytest.mark.parametrize(
    ("time", "reason"),
    [
        (0, ""),  # far past, but a time that can be
        (-1, "bad time"),
        (BEGIN_MS + AHEAD_MS, ""),
        (BEGIN_MS + AHEAD_MS + 1, "bad time"),
    ],
)
def test_only_a_time_that_cannot_be_or_lies_too_far_ahead_of_the_log_is_bad(
    time: int, reason: str
) -> None:
    column = np.array([BEGIN_MS])
    fetched = Fetched(np.zeros(1, np.int32), np.zeros(1, np.int64), column, [body(ts=time)], [])
    found = decode(fetched, RecordSpec(values=("value",), key="host", time="ts"))
    assert [reject.reason for reject in found.rejects] == ([reason] if reason else [])
    assert len(found) == (0 if reason else 1)


# ---- real Kafka -----------------------------------------------------------------------------


@pytest.mark.kafka
def test_on_real_kafka_a_value_of_10_mb_and_nulls_cost_no_other_record(
    kafka: Any, topic: Callable[[str], str]
) -> None:
    from raywatch.actors.kafka import KafkaLog

    events, name = topic("events"), topic("bad")
    log = KafkaLog(kafka.bootstrap)
    partitions = [Partition(events, number) for number in range(PARTITIONS)]
    try:
        log.create(events, PARTITIONS, {"max.message.bytes": "12000000"})
        for each in (f"{name}.alerts", f"{name}.rejects", "raywatch.audit"):
            log.create(each, 1)
        stream = [Out(events, o.key, o.value) for o in mixed(good(), events)]
        wrote = placed(stream)
        log.write(stream)
        detector = spec(name, events)
        with running(make(detector, log, partitions)):
            until(lambda: lag(log, detector, partitions) == 0, 60.0)
        check_rejects(headers(log, f"{name}.rejects"), wrote)

        calm, _ = through(good())
        expected = [{**dict(a), "detector": repr(name)} for a in said(calm, "d.alerts")]
        found = [dict(a) for a in said(log, f"{name}.alerts")]
        skip = ("id", "detector")  # an id is made of the detector's name, among others
        assert sorted(
            tuple(sorted((n, v) for n, v in a.items() if n not in skip)) for a in found
        ) == sorted(tuple(sorted((n, v) for n, v in a.items() if n not in skip)) for a in expected)
    finally:
        log.close()


# ---- the page -------------------------------------------------------------------------------


def test_every_row_of_the_page_names_a_test_that_is_there() -> None:
    root = Path(__file__).parent
    page = (root.parent / "docs" / "bad-input.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"\[`(test_\w+)`\]\(\.\./tests/(test_\w+\.py)\)", row)
        assert named or "as above" in row or "the same" in row or "as the first" in row, row
        for test, file in named:
            assert f"def {test}(" in (root / file).read_text(), test
    for reason in REASONS:
        assert f"`{reason}`" in page, reason
