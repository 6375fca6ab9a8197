"""Goal: two logs are read in an order that is theirs alone, and nobody waits who need not.

Method: an embedded log whose clock is set by hand, a record at a time, beside that of the owner,
which may differ. Hypothesis writes both logs, cuts them into fetches while they grow, and begins
anew wherever it likes; what comes is compared with the rule, written down a second time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raywatch.actors import joining
from raywatch.actors.clock import VirtualClock
from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.joining import Joined
from raywatch.actors.partitioner import partition_of
from raywatch.actors.ports import Bounds, Out, Partition
from raywatch.actors.records import RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.stats import LaneStats
from raywatch.models.errors import ConfigError, Unreachable

PAID, TOLD = "payments", "labels"
DELAY_MS = 6_000
NOW_MS = 1_700_000_000_000
RECORD = RecordSpec(values=("a",), words=("c",), key="k", id="id", label="f")
SPEC = DetectorSpec("d", (PAID,), RECORD, "preset:payments", labels=TOLD, labels_delay_s=6.0)
KEYS = {partition_of(key, 2): key for key in (b"a", b"b", b"c", b"d")}  # by partition of two


class Hand:
    """A clock for the log: the owner's, and how much it differs now."""

    def __init__(self, owner: VirtualClock) -> None:
        self.owner, self.skew_ms = owner, 0

    def now_ms(self) -> int:
        return self.owner.now_ms() + self.skew_ms

    def monotonic(self) -> float:
        return self.owner.monotonic()

    def sleep(self, seconds: float) -> None:
        self.owner.sleep(seconds)


class Away:
    """A Log that does not say where logs end while it is away."""

    def __init__(self, log: EmbeddedLog) -> None:
        self._log, self.error = log, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, Bounds]:
        if self.error is not None:
            raise self.error
        return self._log.bounds(partitions)


class World:
    """Two topics, and what was written to them."""

    def __init__(self, partitions: int = 1) -> None:
        self.clock = VirtualClock(NOW_MS)
        self.hand = Hand(self.clock)
        self.broker = EmbeddedBroker(clock=self.hand)
        self.log: Any = EmbeddedLog(self.broker, clock=self.clock)
        self.partitions = [Partition(t, n) for t in (TOLD, PAID) for n in range(partitions)]
        for topic in (PAID, TOLD):
            self.log.create(topic, partitions)
        self.wrote: dict[Partition, list[int]] = {p: [] for p in self.partitions}
        self.stats = LaneStats()

    def write(self, topic: str, skew_ms: int = 0, number: int = 0, value: bytes = b"{}") -> None:
        self.hand.skew_ms = skew_ms
        key = KEYS[number] if len(self.partitions) > 2 else b"k"
        self.broker.write([Out(topic, key, value)])
        self.wrote[Partition(topic, number)].append(self.hand.now_ms())

    def reader(self, begin: Mapping[Partition, int] | None = None) -> Joined:
        source = self.log.source("g", self.partitions)
        joined = Joined(
            source, SPEC, self.partitions,
            log=self.log, clock=self.clock, stats=self.stats, beside=False,
        )  # fmt: skip
        joined.assign(begin or dict.fromkeys(self.partitions, 0))
        return joined

    def told(self, reader: Joined, limit: int = 1_000) -> list[tuple[Partition, int]]:
        """What one fetch gives."""
        fetched = reader.fetch(limit, 0.0)
        places = [self.partitions[index] for index in fetched.partition.tolist()]
        return list(zip(places, fetched.offset.tolist(), strict=True))

    def due(self, number: int = 0) -> list[tuple[Partition, int]]:
        """Of partitions of this number: the order of both logs, by the rule."""
        paid, told = Partition(PAID, number), Partition(TOLD, number)
        i = j = 0
        found: list[tuple[Partition, int]] = []
        t, late = self.wrote[paid], [each + DELAY_MS for each in self.wrote[told]]
        while i < len(t) or j < len(late):
            if j < len(late) and (i == len(t) or late[j] <= t[i]):
                found.append((told, j))
                j += 1
            else:
                found.append((paid, i))
                i += 1
        return found


def drained(world: World, reader: Joined, limit: int = 1_000) -> list[tuple[Partition, int]]:
    """Everything that is to come once all clocks have passed it."""
    world.clock.advance(4 * DELAY_MS / 1_000)
    found: list[tuple[Partition, int]] = []
    ends = {p: len(wrote) for p, wrote in world.wrote.items() if wrote}
    for _ in range(1_000):
        found += world.told(reader, limit)
        if ends.items() <= {**reader._begin, **reader.position()}.items():
            return found
    raise AssertionError(f"{reader.position()} of {ends}, {reader._waiting}")


MOMENTS = st.lists(
    st.tuples(
        st.sampled_from((PAID, PAID, TOLD)),
        st.integers(0, 1),  # partition
        st.sampled_from((0, 0, 1, 300, 2_000, 7_000)),  # ms that pass before
        st.integers(-DELAY_MS // 2 + 1, DELAY_MS // 2),  # how far the broker's clock is off
        st.sampled_from((0, 0, 1, 2, 1_000)),  # most records of a fetch behind it; 0: none
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(MOMENTS, st.data())
def test_the_order_is_that_of_the_logs_however_they_are_read(moments: Any, data: Any) -> None:
    world = World(2)
    live = world.reader()
    got: list[tuple[Partition, int]] = []
    for topic, number, pause_ms, skew_ms, limit in moments:
        world.clock.advance(pause_ms / 1_000)
        world.write(topic, skew_ms, number)
        if limit:
            got += world.told(live, limit)
    got += drained(world, live)
    for number in (0, 1):
        due = world.due(number)
        assert [each for each in got if each[0].number == number] == due
        # In a backlog, from any place that was reached.
        at = data.draw(st.integers(0, len(due)))
        begin = dict.fromkeys(world.partitions, 0)
        begin |= {p: o + 1 for p, o in due[:at]}
        again = drained(world, world.reader(begin), data.draw(st.sampled_from((1, 3, 1_000))))
        assert [each for each in again if each[0].number == number] == due[at:]
    assert world.stats.late == 0


@settings(max_examples=100, deadline=None)
@given(MOMENTS)
def test_positions_are_a_place_of_the_order(moments: Any) -> None:
    """What a lane commits: all before it was handed on, and nothing behind it."""
    world = World(2)
    reader = world.reader()
    got: dict[Partition, int] = dict.fromkeys(world.partitions, 0)
    for topic, number, pause_ms, skew_ms, limit in moments:
        world.clock.advance(pause_ms / 1_000)
        world.write(topic, skew_ms, number)
        for partition, offset in world.told(reader, limit) if limit else ():
            assert offset == got[partition]
            got[partition] = offset + 1
        assert {**dict.fromkeys(world.partitions, 0), **reader.position()} == got


def test_live_payments_wait_for_nothing() -> None:
    world = World()
    reader = world.reader()
    assert world.told(reader) == []
    for at in range(50):
        world.clock.advance(0.9)
        world.write(PAID)
        assert world.told(reader) == [(Partition(PAID, 0), at)]


def test_a_label_comes_with_the_first_payment_that_is_late_enough_and_not_before() -> None:
    world = World()
    reader = world.reader()
    world.write(TOLD)
    for passed_s in (0.0, 2.0, 3.999):
        world.clock.advance(passed_s)  # 5.999 s in all
        world.write(PAID)
        assert [partition.topic for partition, _ in world.told(reader)] == [PAID]
    world.clock.advance(0.001)
    world.write(PAID)
    assert [partition.topic for partition, _ in world.told(reader)] == [TOLD, PAID]


def test_labels_at_rest_are_told_when_no_payment_can_come_before_them() -> None:
    world = World()
    reader = world.reader()
    world.write(TOLD)
    world.clock.advance(8.999)  # delay and a half are 9 s
    assert world.told(reader) == []
    assert reader.position() == {Partition(TOLD, 0): 0}  # the other was not read yet
    world.clock.advance(1.0)  # ends are asked for once a second
    assert world.told(reader) == [(Partition(TOLD, 0), 0)]
    assert reader.position()[Partition(TOLD, 0)] == 1


def test_a_backlog_waits_for_nothing() -> None:
    world = World()
    for at in range(100):
        world.clock.advance(1.0)
        world.write(PAID if at % 3 else TOLD)
    world.clock.advance(DELAY_MS / 2_000)
    got = world.told(world.reader())
    # Payments are certain; so is each label that one of them comes behind (94 s and later: none).
    assert got == world.due()[: len(got)]
    assert sum(partition.topic == PAID for partition, _ in got) == 66
    assert sum(partition.topic == TOLD for partition, _ in got) == 32


def test_payments_wait_where_nobody_says_where_labels_end_and_say_so() -> None:
    world = World()
    reader = world.reader()
    assert world.told(reader) == []
    away = Away(world.log)
    reader._asking._log = away
    away.error = Unreachable("broker 2 does not answer")
    for at in range(2):  # what is known is good for half the delay
        world.clock.advance(1.0)
        world.write(PAID)
        assert world.told(reader) == [(Partition(PAID, 0), at)]
    world.clock.advance(2.0)
    world.write(PAID)
    for _ in range(7):
        assert world.told(reader) == []
        world.clock.advance(1.0)
    assert "`payments/0` has waited" in world.stats.words
    assert "`labels/0`: broker 2 does not answer" in world.stats.words
    away.error = None
    world.clock.advance(1.0)
    assert world.told(reader) == [(Partition(PAID, 0), 2)]
    assert world.stats.words == ""


def test_a_label_is_enough_to_let_payments_go_where_ends_are_unknown() -> None:
    world = World()
    world.log = Away(world.log)
    world.log.error = Unreachable("nobody is there")
    reader = world.reader()
    world.write(PAID)
    assert world.told(reader) == []
    world.clock.advance(1.0)
    world.write(TOLD)
    assert world.told(reader) == [(Partition(PAID, 0), 0)]


def test_a_right_that_is_missing_is_no_reason_to_wait() -> None:
    world = World()
    world.log = Away(world.log)
    world.log.error = ConfigError("no right to describe `labels`")
    with pytest.raises(ConfigError, match="no right"):
        world.told(world.reader())


def test_a_payment_from_the_future_waits_until_it_is_there_and_says_so() -> None:
    world = World()
    reader = world.reader()
    world.write(PAID, skew_ms=60_000)
    for _ in range(7):
        assert world.told(reader) == []
        world.clock.advance(1.0)
    assert "55 s ahead of this machine's" in world.stats.words  # said after 5 s of 60
    world.clock.advance(51.0)  # 3 s before: half the delay
    assert world.told(reader) == [(Partition(PAID, 0), 0)]


def test_what_comes_too_late_is_taken_and_counted() -> None:
    world = World()
    reader = world.reader()
    assert world.told(reader) == []
    world.write(PAID)
    assert len(world.told(reader)) == 1
    for skew_ms in (-DELAY_MS, -DELAY_MS + 1):  # before the payment, and behind it
        world.write(TOLD, skew_ms=skew_ms)
    world.clock.advance(20.0)
    assert len(world.told(reader)) == 2
    assert world.stats.late == 1
    world.write(PAID, skew_ms=-20_000)  # as the first payment: 1 ms before the second label's place
    assert len(world.told(reader)) == 1
    assert world.stats.late == 2


def test_what_waits_is_bounded_and_none_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "RECORDS_MAX", 200)  # of four partitions: 50 each
    world = World(2)
    for number in (0, 1):
        for _ in range(600):  # all labels first, then a payment for each
            world.write(TOLD, number=number)
    for at in range(600):
        world.clock.advance(1.0)
        world.write(PAID, number=at % 2)
    reader = world.reader()
    got: list[tuple[Partition, int]] = []
    most, held = 0, set[Partition]()
    world.clock.advance(100.0)
    for _ in range(2_000):
        got += world.told(reader, 20)
        most = max(most, *(len(each) for each in reader._waiting))
        held |= reader._held
    for number in (0, 1):
        assert [each for each in got if each[0].number == number] == world.due(number)
    assert 50 < most <= 50 + 20  # and one fetch more
    assert held  # the embedded log gives all labels of a partition before any payment


def test_bytes_are_bounded_too_in_what_waits_and_in_a_fetch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joining, "BYTES_MAX", 2_000)
    monkeypatch.setattr(joining, "FETCH_BYTES", 500)
    world = World()
    for _ in range(40):
        world.write(TOLD, value=b"x" * 99)  # with its key 100 bytes where keys are read
    world.clock.advance(30.0)
    for _ in range(40):
        world.write(PAID, value=b"x" * 99)
    world.clock.advance(30.0)
    reader = world.reader()
    got: list[tuple[Partition, int]] = []
    for _ in range(200):
        part = world.told(reader, 10)
        assert len(part) <= 6  # 594 bytes: the last one may lie above
        assert all(each.nbytes <= 1_000 + 10 * 99 for each in reader._waiting)
        got += part
    assert got == world.due()


def test_times_may_go_back_where_another_broker_took_over() -> None:
    """A running maximum would begin anew, and lower, with what is read again from the middle."""
    world = World()
    for topic, at_s in ((PAID, 100), (TOLD, 50), (PAID, 40), (PAID, 57), (TOLD, 90), (PAID, 97)):
        world.write(topic, skew_ms=1_000 * at_s)
    world.clock.advance(300.0)
    due = world.due()
    # 50 + 6 <= 100: the label comes first of all; then 90 + 6 <= 100 as well.
    assert due[:3] == [(Partition(TOLD, 0), 0), (Partition(TOLD, 0), 1), (Partition(PAID, 0), 0)]
    assert drained(world, world.reader()) == due
    for at in range(len(due) + 1):
        begin = dict.fromkeys(world.partitions, 0) | {p: o + 1 for p, o in due[:at]}
        assert drained(world, world.reader(begin)) == due[at:]


def test_the_kernel_knows_no_more_than_it_may() -> None:
    none = np.zeros(0, np.int64)
    some = np.array([10, 20], np.int64)
    merged, unknown = joining.merged, joining.NO_FLOOR
    assert merged(some, none, 5, unknown, unknown, 9).tolist() == []
    assert merged(some, none, 5, unknown, 5, 9).tolist() == []  # 5 + 5 <= 10: it may be first
    assert merged(some, none, 5, unknown, 6, 9).tolist() == [False]
    assert merged(none, some, 5, 14, unknown, 9).tolist() == []
    assert merged(none, some, 5, 15, unknown, 9).tolist() == [True]
    assert merged(some, some, 5, 15, unknown, 9).tolist() == [False, True, False]
    assert merged(some, some, 5, 99, unknown, 2).tolist() == [False, True]
