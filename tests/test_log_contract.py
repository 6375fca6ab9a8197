"""Goal: Kafka and the embedded log keep the same promises, so that one may stand in for the other.

Method: every test runs against both, through the ports alone; only `trim` knows which it is.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.partitioner import partition_of
from raywatch.actors.ports import Bounds, Committed, Fetched, Log, Out, Partition, Source
from raywatch.models.errors import ConfigError, Fenced, LaneLost, Unreachable

Name = Callable[[str], str]
WAIT_S = 20.0


class Subject:
    """A log, and what the ports cannot do."""

    def __init__(self, log: Log, trim: Callable[[Partition, int], None]) -> None:
        self.log, self.trim = log, trim


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    if request.param == "embedded":
        broker = EmbeddedBroker()
        yield Subject(EmbeddedLog(broker), broker.delete_records)
        return
    cluster = request.getfixturevalue("kafka")
    # Topics that are not there are given up after 1 s, not 10.
    log = KafkaLog(cluster.bootstrap, {"topic.metadata.propagation.max.ms": "1000"})

    def trim(partition: Partition, before: int) -> None:
        where = {"topic": partition.topic, "partition": partition.number, "offset": before}
        wish = tmp_path / "offsets.json"
        wish.write_text(json.dumps({"partitions": [where], "version": 1}))
        cluster.tool("delete-records", "--offset-json-file", str(wish))

    yield Subject(log, trim)
    log.close()


def made(log: Log, name: str, partitions: int = 1) -> list[Partition]:
    log.create(name, partitions)
    return [Partition(name, number) for number in range(partitions)]


def outs(topic: str, values: Sequence[bytes], key: bytes = b"k") -> list[Out]:
    return [Out(topic, key, value) for value in values]


def read(source: Source, count: int, wait_s: float = WAIT_S) -> list[Fetched]:
    """Fetch until `count` records are there."""
    deadline, batches = time.monotonic() + wait_s, list[Fetched]()
    while (have := sum(map(len, batches))) < count and time.monotonic() < deadline:
        batches.append(source.fetch(count - have, 0.05))
    return batches


def eventually(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def values_of(batches: list[Fetched]) -> list[bytes | None]:
    return [value for batch in batches for value in batch.values]


def everything(log: Log, partitions: list[Partition], group: str, least: int) -> list[bytes | None]:
    """All that may be read, and at least so many: a commit is durable before it is visible."""
    source = log.source(group, partitions)
    source.assign({p: b.low for p, b in source.bounds().items()})
    deadline, found = time.monotonic() + WAIT_S, list[bytes | None]()
    while len(found) < least and time.monotonic() < deadline:
        found += source.fetch(1_000, 0.02).values
    bounds = source.bounds()
    while any(source.position().get(p, b.low) < b.end for p, b in bounds.items()):
        assert time.monotonic() < deadline, (source.position(), bounds)
        found += source.fetch(1_000, 0.02).values
    source.close()
    return found


def reader(log: Log, group: str, partitions: list[Partition]) -> Source:
    source = log.source(group, partitions)
    source.assign(dict.fromkeys(partitions, 0))
    return source


def test_records_come_in_offset_order_with_keys_times_and_index(
    subject: Subject, topic: Name
) -> None:
    log, started = subject.log, time.time_ns() // 1_000_000
    partitions = made(log, topic("order"), 3)
    wrote = [Out(partitions[0].topic, b"key-%d" % (i % 7), b"%d" % i) for i in range(1_200)]
    log.write(wrote)
    source = log.source(topic("g"), partitions, keys=True)
    source.assign(dict.fromkeys(partitions, 0))
    batches = read(source, 1_200)
    expected: list[list[tuple[bytes, bytes]]] = [[], [], []]
    for record in wrote:
        expected[partition_of(record.key, 3)].append((record.key, record.value))
    for index in range(3):
        got, offsets = list[tuple[bytes | None, bytes | None]](), list[int]()
        for batch in batches:
            assert len(batch.keys) == len(batch) == len(batch.partition) == len(batch.time_ms)
            chosen = [i for i in range(len(batch)) if batch.partition[i] == index]
            got += [(batch.keys[i], batch.values[i]) for i in chosen]
            offsets += [int(batch.offset[i]) for i in chosen]
        assert got == expected[index]
        assert offsets == list(range(len(expected[index])))
    stamps = [int(t) for batch in batches for t in batch.time_ms]
    assert min(stamps) >= started - 1_000
    assert max(stamps) <= time.time_ns() // 1_000_000 + 1_000
    source.close()
    source.close()


def test_a_lane_of_several_topics_knows_which_record_is_whose(
    subject: Subject, topic: Name
) -> None:
    log = subject.log
    mine = [*made(log, topic("left"), 1), *made(log, topic("right"), 1)]
    log.write([Out(p.topic, b"k", p.topic.encode()) for p in mine for _ in range(3)])
    source = reader(log, topic("g"), mine)
    seen = [
        (mine[index].topic.encode(), value)
        for batch in read(source, 6)
        for index, value in zip(batch.partition, batch.values, strict=True)
    ]
    assert len(seen) == 6
    assert all(left == right for left, right in seen)
    source.close()


def test_who_only_looks_needs_no_group_and_sees_headers(subject: Subject, topic: Name) -> None:
    log = subject.log
    (partition,) = made(log, topic("headers"))
    headers = (("reason", b"not JSON"), ("reason", b"twice"), ("empty", b""))
    log.write([Out(partition.topic, b"k", b"v", headers), Out(partition.topic, b"k", b"w")])
    looker = log.source("", [partition], keys=True)
    looker.assign({partition: 0})
    batches = read(looker, 2)
    assert [h for batch in batches for h in batch.headers] == [headers, ()]
    assert [k for batch in batches for k in batch.keys] == [b"k", b"k"]
    looker.close()
    plain = reader(log, topic("g"), [partition])
    batch = plain.fetch(2, WAIT_S)
    assert (batch.keys, batch.headers) == ([], [])
    plain.close()


def test_fetch_keeps_the_limit_and_the_time(subject: Subject, topic: Name) -> None:
    log = subject.log
    (partition,) = made(log, topic("limit"))
    log.write(outs(partition.topic, [b"x"] * 700))
    source = reader(log, topic("g"), [partition])
    assert len(read(source, 1)[-1]) == 1
    first = source.fetch(600, WAIT_S)
    assert len(first) == 600
    assert len(values_of(read(source, 99))) == 99
    before = time.monotonic()
    assert len(source.fetch(100, 0.2)) == 0
    assert 0.15 <= time.monotonic() - before < 2.0
    source.close()


def test_position_passes_transaction_markers_and_aborted_records(
    subject: Subject, topic: Name
) -> None:
    log = subject.log
    (partition,) = made(log, topic("markers"))
    group = topic("g")
    source = log.source(group, [partition])
    sink = log.sink(topic("lane"), group)
    sink.open()
    for number in range(3):
        sink.transact(outs(partition.topic, [b"%d" % number]), {}, source)
    eventually(lambda: log.bounds([partition]) == {partition: Bounds(0, 6)})  # 3 + 3 markers
    source.assign({partition: 0})
    assert source.position() == {}
    assert values_of(read(source, 3)) == [b"0", b"1", b"2"]
    deadline = time.monotonic() + WAIT_S
    while source.position() != {partition: 6} and time.monotonic() < deadline:
        assert len(source.fetch(10, 0.05)) == 0
    assert source.position() == {partition: 6}
    source.close()
    sink.close()


def test_committed_offsets_come_back_with_their_notes(subject: Subject, topic: Name) -> None:
    log = subject.log
    partitions = made(log, topic("notes"), 3)
    log.write([Out(partitions[0].topic, b"%d" % i, b"v") for i in range(50)])
    group = topic("g")
    source = log.source(group, partitions)
    assert source.committed() == {}
    assert log.committed(group, partitions) == {}
    sink = log.sink(topic("lane"), group)
    sink.open()
    note = json.dumps({"model": "a" * 64, "since": 3})
    first = {partitions[0]: Committed(2, note), partitions[1]: Committed(1, "")}
    sink.transact([], first, source)
    assert source.committed() == first
    sink.transact([], {partitions[1]: Committed(3, "ü")}, source)
    expected = {**first, partitions[1]: Committed(3, "ü")}
    assert source.committed() == expected
    assert log.committed(group, partitions) == expected
    assert log.committed(topic("other"), partitions) == {}
    assert log.committed(group, []) == {}
    source.close()
    sink.close()


def test_records_and_offsets_appear_together(subject: Subject, topic: Name) -> None:
    log = subject.log
    came = made(log, topic("in"))
    went = made(log, topic("out"), 2)
    log.write(outs(came[0].topic, [b"1", b"2"]))
    group = topic("g")
    source, sink = reader(log, group, came), log.sink(topic("lane"), group)
    assert sink.exactly_once
    sink.open()
    assert len(values_of(read(source, 2))) == 2
    records = [Out(went[0].topic, b"%d" % i, b"alert-%d" % i, (("id", b"7"),)) for i in range(20)]
    sink.transact(records, {came[0]: Committed(2)}, source)
    assert sink.calling_since() is None
    assert sorted(v or b"" for v in everything(log, went, topic("r"), 20)) == sorted(
        o.value for o in records
    )
    eventually(lambda: log.committed(group, came) == {came[0]: Committed(2)})
    source.close()
    sink.close()


def test_a_second_holder_fences_the_first_and_nothing_of_it_is_seen(
    subject: Subject, topic: Name
) -> None:
    log = subject.log
    (partition,) = made(log, topic("fenced"))
    group, lane = topic("g"), topic("lane")
    source = log.source(group, [partition])
    zombie, heir = log.sink(lane, group), log.sink(lane, group)
    zombie.open()
    zombie.transact(outs(partition.topic, [b"before"]), {partition: Committed(0, "z")}, source)
    heir.open()
    with pytest.raises(Fenced, match=lane):
        zombie.transact(outs(partition.topic, [b"zombie"]), {partition: Committed(9)}, source)
    assert source.committed() == {partition: Committed(0, "z")}
    heir.transact(outs(partition.topic, [b"heir"]), {partition: Committed(1, "h")}, source)
    assert everything(log, [partition], topic("r"), 2) == [b"before", b"heir"]
    assert source.committed() == {partition: Committed(1, "h")}
    source.close()
    zombie.close()
    zombie.close()
    heir.close()


def test_a_zombie_with_offsets_alone_is_fenced_too(subject: Subject, topic: Name) -> None:
    log = subject.log
    (partition,) = made(log, topic("fenced"))
    group, lane = topic("g"), topic("lane")
    source = log.source(group, [partition])
    zombie, heir = log.sink(lane, group), log.sink(lane, group)
    zombie.open()
    heir.open()
    with pytest.raises(Fenced):
        zombie.transact([], {partition: Committed(0)}, source)
    assert source.committed() == {}
    source.close()
    heir.close()


def test_an_empty_transaction_asks_nobody(subject: Subject, topic: Name) -> None:
    log = subject.log
    (partition,) = made(log, topic("empty"))
    group, lane = topic("g"), topic("lane")
    source = log.source(group, [partition])
    zombie, heir = log.sink(lane, group), log.sink(lane, group)
    zombie.open()
    heir.open()
    zombie.transact([], {}, source)
    assert log.bounds([partition]) == {partition: Bounds(0, 0)}
    source.close()
    zombie.close()
    heir.close()


def test_several_lanes_share_a_group(subject: Subject, topic: Name) -> None:
    log = subject.log
    partitions = made(log, topic("lanes"), 2)
    group = topic("g")
    for number, partition in enumerate(partitions):
        source, sink = log.source(group, [partition]), log.sink(topic("lane"), group)
        sink.open()
        sink.transact([], {partition: Committed(0, f"lane {number}")}, source)
        source.close()
        sink.close()
    expected = {p: Committed(0, f"lane {n}") for n, p in enumerate(partitions)}
    eventually(lambda: log.committed(group, partitions) == expected)


def test_an_unknown_topic_is_named_and_nothing_is_committed(subject: Subject, topic: Name) -> None:
    log = subject.log
    (partition,) = made(log, topic("known"))
    group, missing = topic("g"), topic("missing")
    source, sink = log.source(group, [partition]), log.sink(topic("lane"), group)
    sink.open()
    records = [*outs(partition.topic, [b"known"]), *outs(missing, [b"lost"])]
    with pytest.raises(ConfigError, match=missing):
        sink.transact(records, {partition: Committed(0)}, source)
    assert source.committed() == {}
    assert everything(log, [partition], topic("r"), 0) == []
    with pytest.raises(ConfigError, match=missing):
        log.write(outs(missing, [b"lost"]))
    log.write(outs(partition.topic, [b"later"]))  # the log itself is still usable
    assert everything(log, [partition], topic("r"), 1) == [b"later"]
    source.close()
    sink.close()


def test_a_partition_that_is_not_there_has_no_bounds(subject: Subject, topic: Name) -> None:
    log = subject.log
    (partition,) = made(log, topic("bounds"))
    beyond, missing = Partition(partition.topic, 5), Partition(topic("missing"), 0)
    log.write(outs(partition.topic, [b"1", b"2"]))
    assert log.bounds([partition, beyond, missing]) == {partition: Bounds(0, 2)}
    assert log.bounds([]) == {}
    source = log.source(topic("g"), [partition, missing])
    with pytest.raises(Unreachable, match=missing.topic):
        source.bounds()
    source.close()


def test_an_offset_that_is_not_retained_loses_the_lane(subject: Subject, topic: Name) -> None:
    log = subject.log
    (partition,) = made(log, topic("retention"))
    log.write(outs(partition.topic, [b"%d" % i for i in range(10)]))
    subject.trim(partition, 4)
    assert log.bounds([partition]) == {partition: Bounds(4, 10)}
    source = log.source(topic("g"), [partition])
    with pytest.raises(LaneLost, match=r"offset 3 of .*" + partition.topic):
        source.assign({partition: 3})
    with pytest.raises(LaneLost, match="offset 11"):
        source.assign({partition: 11})
    source.assign({partition: 4})
    assert values_of(read(source, 6)) == [b"%d" % i for i in range(4, 10)]
    source.close()


def test_large_values_pass(subject: Subject, topic: Name) -> None:
    log, name = subject.log, topic("large")
    log.create(name, 1, {"max.message.bytes": "16000000"})
    partition = Partition(name, 0)
    sizes = [10_000_000, 10, 3_000_000, 0]
    log.write(outs(name, [bytes(size) for size in sizes]))
    source = reader(log, topic("g"), [partition])
    assert [len(v or b"") for v in values_of(read(source, 4))] == sizes
    source.close()


def test_create_is_idempotent_and_names_what_it_cannot_do(subject: Subject, topic: Name) -> None:
    log, name = subject.log, topic("create")
    log.create(name, 3)
    log.create(name, 3)
    assert log.topics()[name] == 3
    with pytest.raises(ConfigError, match="bad-partitions"):
        log.create(topic("bad-partitions"), 0)


def test_a_lane_is_never_a_member_of_its_group(subject: Subject, topic: Name) -> None:
    log = subject.log
    (partition,) = made(log, topic("members"))
    group = topic("g")
    assert log.members(group) == []
    source, sink = reader(log, group, [partition]), log.sink(topic("lane"), group)
    sink.open()
    sink.transact([], {partition: Committed(0)}, source)
    source.fetch(1, 0.1)
    assert log.members(group) == []
    source.close()
    sink.close()


def test_a_new_holder_goes_on_where_the_last_one_committed(subject: Subject, topic: Name) -> None:
    log = subject.log
    (came,) = made(log, topic("in"))
    (went,) = made(log, topic("out"))
    log.write(outs(came.topic, [b"%d" % i for i in range(30)]))
    group, lane = topic("g"), topic("lane")
    for _ in range(3):  # three lives: each copies ten, reads more and dies
        sink = log.sink(lane, group)
        sink.open()
        source = log.source(group, [came])
        start = source.committed().get(came, Committed(0)).offset
        source.assign({came: start})
        copied = values_of(read(source, 10))
        records = outs(went.topic, [v for v in copied if v is not None])
        sink.transact(records, {came: Committed(start + 10)}, source)
        read(source, 5, 0.2)
        source.close()
        sink.close()
    assert everything(log, [went], topic("r"), 30) == [b"%d" % i for i in range(30)]


def test_held_partitions_wait_while_the_others_go_on(subject: Subject, topic: Name) -> None:
    log, name = subject.log, topic("held")
    partitions = made(log, name, 2)
    keys = {partition_of(key, 2): key for key in (b"a", b"b", b"c", b"d")}
    source = log.source("", partitions)
    source.assign(dict.fromkeys(partitions, 0))
    log.write(outs(name, [b"0", b"1"], keys[0]))
    assert values_of(read(source, 2)) == [b"0", b"1"]
    source.hold(partitions[:1])
    log.write([*outs(name, [b"2", b"3"], keys[0]), *outs(name, [b"x", b"y"], keys[1])])
    assert values_of(read(source, 2)) == [b"x", b"y"]
    assert values_of(read(source, 1, wait_s=0.5)) == []
    assert source.position()[partitions[0]] == 2
    source.hold(partitions[1:])
    log.write(outs(name, [b"z"], keys[1]))
    assert values_of(read(source, 2)) == [b"2", b"3"]
    source.hold([])
    assert values_of(read(source, 1)) == [b"z"]
    source.close()


def test_positions_reach_the_end_where_nothing_but_a_marker_is_read(
    subject: Subject, topic: Name
) -> None:
    """Labels of a topic of their own are at rest only where the end is known to be reached."""
    log, name, group = subject.log, topic("ends"), topic("g")
    partitions = made(log, name)
    sink, source = log.sink(topic("lane"), group), log.source(group, partitions)
    sink.open()
    sink.transact(outs(name, [b"0", b"1"]), {}, source)
    source.close()
    end = 3  # two records and the marker
    for begin, count in ((0, 2), (2, 0), (3, 0)):
        source = log.source("", partitions)
        source.assign({partitions[0]: begin})
        assert len(values_of(read(source, count))) == count
        deadline = time.monotonic() + 3.0
        while source.position().get(partitions[0], begin) < end and time.monotonic() < deadline:
            assert len(source.fetch(10, 0.05)) == 0
        assert source.position().get(partitions[0], begin) == end, begin
        source.close()
