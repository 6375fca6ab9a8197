"""The embedded log: Kafka's promises in memory, for demos, tests and the simulator.

Partitions, retention, transactions with a last stable offset, fencing and committed offsets behave
as Kafka's do; one contract test suite holds both to it. As there, the end of a transaction takes
one offset in every partition it wrote to, and an aborted one leaves holes.

`EmbeddedBroker` has plain picklable calls, so it may live in this process or behind an actor.
It never waits: clients ask again, at most every 20 ms. Unlike Kafka it forgets everything when its
process ends, and does not end an open transaction by itself: `transact` leaves none open.
"""

import threading
from array import array
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from raywatch.actors.clock import SystemClock
from raywatch.actors.fetching import Gathered
from raywatch.actors.partitioner import partition_of
from raywatch.actors.ports import Bounds, Clock, Committed, Fetched, Headers, Out, Partition, Source
from raywatch.models.errors import ConfigError, Fenced, LaneLost, Unreachable

RECORDS_MAX = 500_000  # Most records a partition keeps.
BYTES_MAX = 256 << 20  # Most bytes of keys and values a partition keeps.
PARTITIONS_MAX = 1_024  # Of one topic.
NOTE_BYTES_MAX = 4_096  # Kafka's `offset.metadata.max.bytes`.
POLL_S = (0.002, 0.020)  # Between two questions of a client that waits: doubled up to the latter.
STABLE_S = 20.0  # Longest wait for somebody's open transaction on the offsets.


class Slice(NamedTuple):
    """Records of one partition, and where to go on reading."""

    offset: "array[int]"
    time_ms: "array[int]"
    values: list[bytes | None]
    keys: list[bytes | None]
    headers: list[Headers]
    position: int


@dataclass(slots=True)
class _Partition:
    """Records that may ever be read, in offset order; markers and aborted ones are holes."""

    offset: "array[int]" = field(default_factory=lambda: array("q"))
    time_ms: "array[int]" = field(default_factory=lambda: array("q"))
    values: list[bytes | None] = field(default_factory=list[bytes | None])
    keys: list[bytes | None] = field(default_factory=list[bytes | None])
    headers: list[Headers] = field(default_factory=list[Headers])
    low: int = 0  # first offset that is retained
    end: int = 0  # next offset to be written
    size: int = 0  # bytes of keys and values
    open: dict[str, int] = field(default_factory=dict[str, int])  # lane -> its first offset here

    @property
    def stable(self) -> int:
        """Last stable offset: nothing at or beyond it may be read."""
        return min(self.open.values(), default=self.end)

    def append(self, out: Out, time_ms: int) -> None:
        self.offset.append(self.end)
        self.time_ms.append(time_ms)
        self.keys.append(out.key)
        self.values.append(out.value)
        self.headers.append(out.headers)
        self.size += len(out.key) + len(out.value or b"")
        self.end += 1

    def drop(self, first: int, last: int) -> None:
        """Forget the records at indices [first, last)."""
        gone = zip(self.keys[first:last], self.values[first:last], strict=True)
        self.size -= sum(len(k or b"") + len(v or b"") for k, v in gone)
        for column in (self.offset, self.time_ms, self.values, self.keys, self.headers):
            del column[first:last]

    def retain(self, records_max: int, bytes_max: int) -> None:
        """Drop the oldest; an eighth more than needed, so that it costs little a record."""
        low = -1
        while low < self.low and (len(self.values) > records_max or self.size > bytes_max):
            low = self.low  # an open transaction may forbid to drop anything
            surplus = max(1, len(self.values) - records_max + records_max // 8)
            if self.size > bytes_max:
                surplus = max(1, len(self.values) // 8)
            self.trim(self.offset[surplus] if surplus < len(self.offset) else self.end)

    def trim(self, before: int) -> None:
        """Retain nothing below an offset. Open transactions stay whole."""
        before = min(before, self.stable)
        if before > self.low:
            self.drop(0, bisect_left(self.offset, before))
            self.low = before


@dataclass(slots=True)
class _Lane:
    """A transactional id."""

    epoch: int = 0
    wrote: dict[Partition, list[int]] = field(default_factory=dict[Partition, list[int]])
    group: str = ""
    offsets: dict[Partition, Committed] = field(default_factory=dict[Partition, Committed])
    open: bool = False


class EmbeddedBroker:
    """The log itself. Calls are quick, never wait, and may come from any thread."""

    def __init__(
        self,
        *,
        records_max: int = RECORDS_MAX,
        bytes_max: int = BYTES_MAX,
        clock: Clock | None = None,
    ) -> None:
        assert records_max > 0, records_max
        self._records_max, self._bytes_max = records_max, bytes_max
        self._clock = clock or SystemClock()
        self._topics: dict[str, list[_Partition]] = {}
        self._lanes: dict[str, _Lane] = {}
        self._groups: dict[str, dict[Partition, Committed]] = {}
        self._lock = threading.RLock()

    def create(self, topic: str, partitions: int) -> None:
        """Create a topic unless it is there. Raises ConfigError."""
        if not 1 <= partitions <= PARTITIONS_MAX or not topic:
            message = f"topic `{topic}` cannot be created with {partitions} partitions"
            raise ConfigError(message, hint=f"1 to {PARTITIONS_MAX}")
        with self._lock:
            self._topics.setdefault(topic, [_Partition() for _ in range(partitions)])

    def grow(self, topic: str, size: int) -> None:
        """Add partitions until there are so many; keys move, as they do in Kafka."""
        with self._lock:
            self._topics[topic] += [_Partition() for _ in range(size - len(self._topics[topic]))]

    def topics(self) -> dict[str, int]:
        """Topics and their numbers of partitions."""
        with self._lock:
            return {topic: len(partitions) for topic, partitions in self._topics.items()}

    def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, Bounds]:
        """Retained ranges up to the last stable offset; unknown partitions are left out."""
        with self._lock:
            return {p: Bounds(f.low, f.stable) for p in partitions if (f := self._find(p))}

    def read(
        self, begin: Sequence[tuple[Partition, int]], limit: int, keys: bool
    ) -> dict[Partition, Slice]:
        """Up to `limit` records in total from these offsets on.

        Partitions without anything new to say are left out. Raises LaneLost.
        """
        found: dict[Partition, Slice] = {}
        with self._lock:
            for partition, offset in begin:
                log = self._find(partition)
                if log is None:
                    raise LaneLost(f"partition `{partition}` is gone", hint="was it deleted?")
                stable = log.stable
                if not log.low <= offset <= log.end:
                    raise _gone(partition, offset, Bounds(log.low, log.end))
                if offset >= stable or limit <= 0:
                    continue
                first = bisect_left(log.offset, offset)
                last = min(first + limit, bisect_left(log.offset, stable))
                whole = last == len(log.offset) or log.offset[last] >= stable
                found[partition] = Slice(
                    log.offset[first:last],
                    log.time_ms[first:last],
                    log.values[first:last],
                    log.keys[first:last] if keys else [],
                    log.headers[first:last] if keys else [],
                    stable if whole else log.offset[last - 1] + 1,
                )
                limit -= last - first
        return found

    def write(self, out: Sequence[Out]) -> None:
        """Append by key, outside any transaction. Raises ConfigError."""
        with self._lock:
            self._append(out)

    def take(self, lane: str) -> int:
        """Take a lane: its new epoch. What an earlier holder left open is undone."""
        with self._lock:
            entry = self._lanes.setdefault(lane, _Lane())
            self._end(lane, entry, commit=False)
            entry.epoch += 1
            return entry.epoch

    def transact(
        self,
        lane: str,
        epoch: int,
        out: Sequence[Out],
        group: str,
        offsets: Mapping[Partition, Committed],
    ) -> None:
        """Write and commit at once. Raises Fenced, ConfigError (nothing is written then)."""
        with self._lock:
            self.begin(lane, epoch, out, group, offsets)
            self.end(lane, epoch, commit=True)

    def begin(
        self,
        lane: str,
        epoch: int,
        out: Sequence[Out],
        group: str,
        offsets: Mapping[Partition, Committed],
    ) -> None:
        """The first half of `transact`: written, but not to be read yet."""
        with self._lock:
            entry = self._held(lane, epoch)
            assert not entry.open, f"{lane} has an open transaction"
            for partition, committed in offsets.items():
                assert len(committed.note.encode()) <= NOTE_BYTES_MAX, (partition, committed)
                if self._find(partition) is None:
                    raise ConfigError(f"offsets of `{partition}`, which does not exist")
            entry.wrote = self._append(out, lane)
            entry.group, entry.offsets, entry.open = group, dict(offsets), True

    def end(self, lane: str, epoch: int, *, commit: bool) -> None:
        """The second half: commit, or undo."""
        with self._lock:
            self._end(lane, self._held(lane, epoch), commit=commit)

    def committed(
        self, group: str, partitions: Sequence[Partition], stable: bool
    ) -> dict[Partition, Committed] | None:
        """Committed offsets; None while a transaction may change them, if `stable` is asked."""
        with self._lock:
            asked = set(partitions)
            pending = (e for e in self._lanes.values() if e.open and e.group == group)
            if stable and any(asked & e.offsets.keys() for e in pending):
                return None
            kept = self._groups.get(group, {})
            return {p: kept[p] for p in partitions if p in kept}

    def delete_records(self, partition: Partition, before: int) -> None:
        """Retain nothing below an offset."""
        with self._lock:
            log = self._find(partition)
            assert log is not None, partition
            log.trim(before)

    def _find(self, partition: Partition) -> _Partition | None:
        logs = self._topics.get(partition.topic, [])
        return logs[partition.number] if 0 <= partition.number < len(logs) else None

    def _held(self, lane: str, epoch: int) -> _Lane:
        entry = self._lanes.get(lane)
        if entry is None or entry.epoch != epoch:
            raise Fenced(f"lane `{lane}` has another holder")
        return entry

    def _append(self, out: Sequence[Out], lane: str = "") -> dict[Partition, list[int]]:
        """Append by key; where the records went. With a lane they stay unstable."""
        for topic in {o.topic for o in out}:
            if topic not in self._topics:
                raise ConfigError(f"topic `{topic}` cannot be written: unknown", hint="create it")
        now = self._clock.now_ms()
        wrote: dict[Partition, list[int]] = {}
        for o in out:
            logs = self._topics[o.topic]
            partition = Partition(o.topic, partition_of(o.key, len(logs)))
            log = logs[partition.number]
            wrote.setdefault(partition, []).append(log.end)
            if lane:
                log.open.setdefault(lane, log.end)
            log.append(o, now)
        for partition in wrote:
            self._topics[partition.topic][partition.number].retain(
                self._records_max, self._bytes_max
            )
        return wrote

    def _end(self, lane: str, entry: _Lane, *, commit: bool) -> None:
        if not entry.open:
            return
        for partition, offsets in entry.wrote.items():
            log = self._topics[partition.topic][partition.number]
            if not commit:
                for offset in reversed(offsets):
                    index = bisect_left(log.offset, offset)
                    log.drop(index, index + 1)
            log.end += 1  # the marker
            del log.open[lane]
            log.retain(self._records_max, self._bytes_max)
        if commit and entry.offsets:
            self._groups.setdefault(entry.group, {}).update(entry.offsets)
        entry.wrote, entry.offsets, entry.open = {}, {}, False


def _gone(partition: Partition, offset: int, held: Bounds) -> LaneLost:
    return LaneLost(
        f"offset {offset} of `{partition}` is not retained: the log holds {held.low} to {held.end}",
        hint="retention was shorter than the lag, or the topic was created anew",
    )


class EmbeddedSource:
    """Reads the partitions of one lane."""

    def __init__(
        self, broker: Any, clock: Clock, group: str, partitions: Sequence[Partition], keys: bool
    ) -> None:
        self._broker, self._clock, self._keys = broker, clock, keys
        self.group, self._partitions = group, tuple(partitions)
        self._index = {p: i for i, p in enumerate(self._partitions)}
        self._next: dict[Partition, int] = {}
        self._read: set[Partition] = set()
        self._held: set[Partition] = set()
        self._turn = 0

    def committed(self) -> dict[Partition, Committed]:
        """See `Source`."""
        deadline = self._clock.monotonic() + STABLE_S
        while self._clock.monotonic() < deadline:
            found = self._broker.committed(self.group, self._partitions, True)
            if found is not None:
                return found
            self._clock.sleep(POLL_S[1])
        raise Unreachable(f"a transaction on the offsets of `{self.group}` does not end")

    def bounds(self) -> dict[Partition, Bounds]:
        """See `Source`."""
        found = self._broker.bounds(self._partitions)
        for partition in self._partitions:
            if partition not in found:
                raise Unreachable(f"nobody answers for partition `{partition}`", hint="create it")
        return found

    def assign(self, begin: Mapping[Partition, int]) -> None:
        """See `Source`."""
        bounds = self.bounds()
        for partition, offset in begin.items():
            if not bounds[partition].low <= offset <= bounds[partition].end:
                raise _gone(partition, offset, bounds[partition])
        self._next = dict(begin)
        self._read, self._held = set(), set()

    def fetch(self, limit: int, wait_s: float) -> Fetched:
        """See `Source`."""
        deadline = self._clock.monotonic() + wait_s
        gathered, pause = Gathered(), POLL_S[0]
        while self._next:
            # Another partition comes first each time: none starves while others are busy.
            order = [each for each in self._next.items() if each[0] not in self._held]
            self._turn = (self._turn + 1) % max(1, len(order))
            order = order[self._turn :] + order[: self._turn]
            for partition, part in self._broker.read(
                order, limit - len(gathered), self._keys
            ).items():
                self._next[partition] = part.position
                self._read.add(partition)
                if part.values:
                    gathered.add(
                        np.full(len(part.values), self._index[partition], np.int32),
                        np.array(part.offset, np.int64),
                        np.array(part.time_ms, np.int64),
                        part.values,
                        part.keys,
                        part.headers,
                    )
            left = deadline - self._clock.monotonic()
            if gathered.want(limit, limit) <= 0 or left <= 0.0:
                break
            self._clock.sleep(min(pause, left))
            pause = min(2.0 * pause, POLL_S[1])
        return gathered.fetched()

    def hold(self, partitions: Collection[Partition]) -> None:
        """See `Reader`."""
        self._held = set(partitions)

    def position(self) -> dict[Partition, int]:
        """See `Source`."""
        return {p: o for p, o in self._next.items() if p in self._read}

    def close(self) -> None:
        """See `Source`."""
        self._next = {}


class EmbeddedSink:
    """Writes and commits for one lane. After any error it is spent."""

    def __init__(self, broker: Any, lane: str, group: str) -> None:
        self._broker, self._lane, self._group = broker, lane, group
        self._epoch: int | None = None

    @property
    def exactly_once(self) -> bool:
        """See `Sink`."""
        return True

    def calling_since(self) -> None:
        """See `Sink`: calls of this log have time-outs that hold."""
        return

    def open(self) -> None:
        """See `Sink`."""
        assert self._epoch is None, f"lane {self._lane} was opened before"
        self._epoch = self._broker.take(self._lane)

    def transact(
        self, out: Sequence[Out], offsets: Mapping[Partition, Committed], source: Source
    ) -> None:
        """See `Sink`. With nothing to write and commit nobody is asked: a zombie stays one."""
        assert self._epoch is not None, f"lane {self._lane}: not opened, or spent"
        assert isinstance(source, EmbeddedSource), type(source)
        assert source.group == self._group, (source.group, self._group)
        if not out and not offsets:
            return
        epoch, self._epoch = self._epoch, None
        try:
            self._broker.transact(self._lane, epoch, list(out), self._group, dict(offsets))
        except Unreachable as error:  # the broker's process: nobody knows whether it was done
            raise LaneLost(f"lane `{self._lane}`: {error.message}", hint=error.hint) from error
        self._epoch = epoch

    def close(self) -> None:
        """See `Sink`."""
        self._epoch = None


class EmbeddedLog:
    """The log as clients see it; `broker` is an EmbeddedBroker or forwards to one."""

    def __init__(self, broker: Any, *, clock: Clock | None = None) -> None:
        self._broker = broker
        self._clock = clock or SystemClock()

    def source(
        self, group: str, partitions: Sequence[Partition], *, keys: bool = False
    ) -> EmbeddedSource:
        """See `Log`."""
        return EmbeddedSource(self._broker, self._clock, group, partitions, keys)

    def sink(self, lane: str, group: str) -> EmbeddedSink:
        """See `Log`."""
        return EmbeddedSink(self._broker, lane, group)

    def probe(self) -> str | None:
        """Transactions always work here."""
        return None

    def topics(self) -> dict[str, int]:
        """See `Log`."""
        return self._broker.topics()

    def create(
        self, topic: str, partitions: int, settings: Mapping[str, str] | None = None
    ) -> None:
        """See `Log`. Kafka's settings mean nothing here."""
        del settings
        self._broker.create(topic, partitions)

    def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, Bounds]:
        """See `Log`."""
        return self._broker.bounds(partitions)

    def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        """See `Log`."""
        return self._broker.committed(group, partitions, False)

    def members(self, group: str) -> list[str]:
        """See `Log`: nobody can subscribe here."""
        del group
        return []

    def write(self, out: Sequence[Out]) -> None:
        """See `Log`."""
        self._broker.write(list(out))

    def close(self) -> None:
        """See `Log`: nothing is held."""
