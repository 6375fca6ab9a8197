"""Goal: what the embedded log adds to the contract it shares with Kafka.

Method: the broker's own calls, with transactions held open by hand, small bounds and a clock that
stands still; histories are made by seeded generators and compared with a plain list of records.
"""

import random
import threading
import time
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raywatch.actors.clock import VirtualClock
from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.partitioner import partition_of
from raywatch.actors.ports import Bounds, Committed, Out, Partition
from raywatch.models.errors import ConfigError, Fenced, LaneLost, Unreachable

P = Partition("t", 0)


def broker_with(partitions: int = 1, **bounds: int) -> EmbeddedBroker:
    broker = EmbeddedBroker(clock=VirtualClock(1_000_000), **bounds)  # type: ignore[arg-type]
    broker.create("t", partitions)
    return broker


def outs(*values: bytes) -> list[Out]:
    return [Out("t", b"k", value) for value in values]


def seen(broker: EmbeddedBroker, begin: int = 0) -> list[bytes | None]:
    part = broker.read([(P, begin)], 1_000_000, keys=False).get(P)
    return part.values if part else []


def test_nothing_beyond_an_open_transaction_is_read() -> None:
    broker = broker_with()
    broker.write(outs(b"0"))
    epoch = broker.take("lane")
    broker.begin("lane", epoch, outs(b"1", b"2"), "g", {P: Committed(7)})
    broker.write(outs(b"3"))
    assert seen(broker) == [b"0"]
    assert broker.bounds([P]) == {P: Bounds(0, 1)}
    assert broker.committed("g", [P], stable=False) == {}
    assert broker.committed("g", [P], stable=True) is None
    assert broker.committed("g", [Partition("t", 9)], stable=True) == {}
    broker.end("lane", epoch, commit=True)
    assert seen(broker) == [b"0", b"1", b"2", b"3"]
    assert broker.bounds([P]) == {P: Bounds(0, 5)}  # four records and a marker
    assert broker.committed("g", [P], stable=True) == {P: Committed(7)}


def test_an_aborted_transaction_leaves_holes_only() -> None:
    broker = broker_with()
    epoch = broker.take("lane")
    broker.begin("lane", epoch, outs(b"1", b"2"), "g", {P: Committed(7)})
    broker.write(outs(b"3"))
    broker.end("lane", epoch, commit=False)
    part = broker.read([(P, 0)], 10, keys=True)[P]
    assert part == (array("q", [2]), array("q", [1_000_000]), [b"3"], [b"k"], [()], 4)
    assert broker.committed("g", [P], stable=True) == {}


def test_taking_a_lane_undoes_what_its_last_holder_left_open() -> None:
    broker = broker_with()
    zombie = broker.take("lane")
    broker.begin("lane", zombie, outs(b"zombie"), "g", {P: Committed(1)})
    heir = broker.take("lane")
    assert heir > zombie
    assert broker.bounds([P]) == {P: Bounds(0, 2)}
    assert seen(broker) == []
    with pytest.raises(Fenced):
        broker.end("lane", zombie, commit=True)
    with pytest.raises(Fenced):
        broker.transact("lane", zombie, outs(b"zombie"), "g", {})
    broker.transact("lane", heir, outs(b"heir"), "g", {})
    assert seen(broker) == [b"heir"]


def test_a_transaction_with_a_bad_part_writes_nothing_at_all() -> None:
    broker = broker_with()
    epoch = broker.take("lane")
    bad = [*outs(b"good"), Out("missing", b"k", b"bad")]
    with pytest.raises(ConfigError, match="missing"):
        broker.transact("lane", epoch, bad, "g", {P: Committed(1)})
    with pytest.raises(ConfigError, match="missing/0"):
        broker.transact("lane", epoch, outs(b"good"), "g", {Partition("missing", 0): Committed(1)})
    assert broker.bounds([P]) == {P: Bounds(0, 0)}
    broker.transact("lane", epoch, outs(b"good"), "g", {P: Committed(1)})
    assert seen(broker) == [b"good"]


def test_retention_bounds_records_and_bytes_and_raises_the_low_end() -> None:
    broker = broker_with(records_max=100)
    for number in range(1_000):
        broker.write(outs(b"%d" % number))
    low, end = broker.bounds([P])[P]
    assert end == 1_000
    assert end - 100 <= low <= end - 80  # an eighth more than needed goes at once
    assert seen(broker, low) == [b"%d" % n for n in range(low, 1_000)]
    with pytest.raises(LaneLost, match="offset 5 "):
        broker.read([(P, 5)], 10, keys=False)

    broker = broker_with(bytes_max=10_000)
    for _ in range(50):
        broker.write(outs(bytes(1_000)))
    low, end = broker.bounds([P])[P]
    assert end == 50
    assert 7 <= end - low <= 9  # 9 records of 1001 bytes fit


def test_retention_spares_an_open_transaction() -> None:
    broker = broker_with(records_max=10)
    epoch = broker.take("lane")
    many = outs(*[b"%d" % n for n in range(50)])
    broker.begin("lane", epoch, many, "g", {})
    assert broker.bounds([P]) == {P: Bounds(0, 0)}
    broker.end("lane", epoch, commit=True)
    low, end = broker.bounds([P])[P]
    assert end == 51
    assert low >= 40


def test_a_batch_larger_than_the_bound_keeps_its_newest() -> None:
    broker = broker_with(records_max=10)
    broker.write(outs(*[b"%d" % n for n in range(1_000)]))
    low = broker.bounds([P])[P].low
    assert 990 <= low < 1_000
    assert seen(broker, low)[-1] == b"999"


def test_waiting_for_an_open_transaction_ends() -> None:
    clock = VirtualClock()
    broker = broker_with()
    log = EmbeddedLog(broker, clock=clock)
    epoch = broker.take("lane")
    broker.begin("lane", epoch, [], "g", {P: Committed(1)})
    with pytest.raises(Unreachable, match="does not end"):
        log.source("g", [P]).committed()
    assert 20.0 <= clock.monotonic() < 21.0


def test_an_idle_fetch_waits_its_time_and_no_longer() -> None:
    clock = VirtualClock()
    source = EmbeddedLog(broker_with(), clock=clock).source("g", [P])
    source.assign({P: 0})
    assert len(source.fetch(10, 0.5)) == 0
    assert clock.monotonic() == pytest.approx(0.5)


def test_no_partition_starves_while_others_are_busy() -> None:
    broker = broker_with(partitions=4)
    log = EmbeddedLog(broker, clock=VirtualClock())
    broker.write([Out("t", b"%d" % n, b"v") for n in range(4_000)])
    source = log.source("g", [Partition("t", n) for n in range(4)])
    source.assign({Partition("t", n): 0 for n in range(4)})
    seen_in = {int(i) for _ in range(4) for i in source.fetch(100, 0.0).partition}
    assert seen_in == {0, 1, 2, 3}


def test_a_sink_whose_broker_vanished_does_not_know_and_is_spent() -> None:
    class Vanishing:
        """A broker behind an actor that dies: calls go out, no answer comes."""

        def take(self, lane: str) -> int:
            del lane
            return 1

        def transact(self, *_: object) -> None:
            raise Unreachable("the embedded log is gone")

    log = EmbeddedLog(Vanishing())
    sink, source = log.sink("lane", "g"), log.source("g", [P])
    sink.open()
    with pytest.raises(LaneLost, match="gone"):
        sink.transact(outs(b"v"), {}, source)
    with pytest.raises(AssertionError):
        sink.transact(outs(b"v"), {}, source)


def test_lanes_in_many_threads_lose_and_repeat_nothing() -> None:
    broker = EmbeddedBroker()
    broker.create("t", 4)
    log = EmbeddedLog(broker)

    def write(lane: int) -> None:
        sink, source = log.sink(f"lane-{lane}", "g"), log.source("g", [P])
        sink.open()
        for number in range(50):
            name = b"%d-%d" % (lane, number)
            sink.transact([Out("t", name, name)], {Partition("t", lane): Committed(number)}, source)

    threads = [threading.Thread(target=write, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    partitions = [Partition("t", n) for n in range(4)]
    source = log.source("g", partitions)
    source.assign(dict.fromkeys(partitions, 0))
    found = source.fetch(1_000, 0.05).values
    assert sorted(v or b"" for v in found) == sorted(
        b"%d-%d" % (lane, n) for lane in range(4) for n in range(50)
    )
    assert log.committed("g", partitions) == dict.fromkeys(partitions, Committed(49))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_history_reads_as_its_committed_records(seed: int) -> None:
    """Writes, commits, aborts and take-overs of three lanes, read in pieces at random moments."""
    rng = random.Random(seed)
    broker = broker_with()
    epochs = {lane: broker.take(lane) for lane in ("a", "b", "c")}
    pending: dict[str, list[tuple[int, bytes]]] = {}
    log: dict[int, bytes] = {}  # what must come out, by offset
    end, position, got = 0, 0, list[tuple[int, bytes | None]]()
    for step in range(60):
        lane, value = rng.choice("abc"), b"%d" % step
        act = rng.choice(["write", "begin", "commit", "abort", "take", "read"])
        if act == "write":
            broker.write(outs(value))
            log[end], end = value, end + 1
        elif act == "begin" and lane not in pending:
            broker.begin(lane, epochs[lane], outs(value, value), "g", {})
            pending[lane], end = [(end, value), (end + 1, value)], end + 2
        elif act in ("commit", "abort") and lane in pending:
            broker.end(lane, epochs[lane], commit=act == "commit")
            wrote, end = pending.pop(lane), end + 1  # the marker
            log.update(wrote if act == "commit" else [])
        elif act == "take":
            epochs[lane] = broker.take(lane)
            end += lane in pending  # the marker of the abort
            pending.pop(lane, None)
        elif act == "read":
            part = broker.read([(P, position)], rng.randint(1, 5), keys=False).get(P)
            if part is not None:
                got += zip(part.offset, part.values, strict=True)
                position = part.position
        stable = min((wrote[0][0] for wrote in pending.values()), default=end)
        assert broker.bounds([P]) == {P: Bounds(0, stable)}
        assert got == [(o, v) for o, v in sorted(log.items()) if o < position]


def test_reading_is_fast_enough_for_the_demo() -> None:
    log = EmbeddedLog(EmbeddedBroker())
    log.create("t", 1)
    log.write([Out("t", b"k", b"v" * 100)] * 200_000)
    source = log.source("g", [P])
    source.assign({P: 0})
    began, count = time.perf_counter(), 0
    while count < 200_000:
        count += len(source.fetch(20_000, 0.05))
    rate = count / (time.perf_counter() - began)
    assert rate > 200_000  # records/s; about 10 million on an idle machine


def test_partitions_are_those_of_the_hash() -> None:
    assert partition_of(b"foobar", 10) == ((-790332482) & 0x7FFFFFFF) % 10
    assert partition_of(b"", 10) == 275646681 % 10  # Utils.murmur2 of no bytes
