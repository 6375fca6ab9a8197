"""Reads payments and labels of two topics as if they were one log: a Source over another one.

Partition p of the labels belongs to partition p of the payments. Both are read and wait here until
it is certain which record comes next (merging.py has the rule), and `position` is what was handed
on: so offsets that are committed, and those of a snapshot, are always a place of the merged order.

A record that was not read yet has a log's time, too, and what is known of it comes from asking
brokers where the logs end. If a log has been read up to an end that was asked for when the clock
said c, whatever it says later was taken after c; so its time is at least c - delay / 2, where

    (owner's clock - broker's clock) + (time from append until a reader may see it) <= delay / 2

The second is the length of a transaction of who writes, and what a producer waits before it sends
where the log keeps producers' times (`message.timestamp.type`: `CreateTime`). Where this does not
hold, a record may come too late for its place: it is taken where it comes, and counted
(`stats.late`), for a replay would take it where it belongs.

Ends are asked for beside the lane, a few times within half the delay. So

    payments    wait for nothing while labels can be read, and none in a backlog;
    labels      rest for delay, until a payment shows that they are due; where none comes, for half
                of it more, until no earlier one can come any more;
    no answer   and payments wait from half the delay on; what they wait for is in `stats.words`.

What waits is bounded: of a partition with more, no more is read (`Reader.hold`). Its partner then
still is, and only one of the two can wait for the other, so none waits for ever.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from raywatch.actors.fetching import FETCH_BYTES, Gathered
from raywatch.actors.merging import NO_FLOOR, merged, places
from raywatch.actors.ports import Bounds, Clock, Committed, Fetched, Log, Partition, Reader
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.stats import LaneStats
from raywatch.models.errors import Unreachable
from raywatch.models.scorer import I64

RECORDS_MAX = 100_000  # Records of a lane that wait here, one fetch more at most,
BYTES_MAX = 64 << 20  # and bytes of their keys and values: both shared out to its partitions.
ASKS = 3  # Ends are asked for so many times within half the delay,
ASK_MIN_S, ASK_MAX_S = 0.2, 10.0  # within these bounds,
ASKED_MAX = 4  # and so many answers wait until what they tell of has been read.
WORDS_S = 5.0  # Payments that wait for longer are spoken of, and so often.


class Waiting:
    """Records of one partition that were read and not handed on, oldest first."""

    def __init__(self) -> None:
        none = np.zeros(0, np.int64)
        self.offset, self.time_ms, self.size = none, none, none
        self.values: list[bytes | None] = []
        self.keys: list[bytes | None] = []

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return int(self.size.sum(dtype=np.int64))

    def take(self, fetched: Fetched, at: I64) -> None:
        """Records `at` these places of a fetch come in."""
        values = [fetched.values[i] for i in at.tolist()]
        keys = [fetched.keys[i] for i in at.tolist()] if fetched.keys else []
        size = np.fromiter((len(v or b"") for v in values), np.int64, len(values))
        if keys:
            size += np.fromiter((len(k or b"") for k in keys), np.int64, len(keys))
        self.offset = np.concatenate((self.offset, fetched.offset[at]))
        self.time_ms = np.concatenate((self.time_ms, fetched.time_ms[at]))
        self.size = np.concatenate((self.size, size))
        self.values += values
        self.keys += keys

    def drop(self, count: int) -> None:
        """The oldest were handed on."""
        if count:
            self.offset, self.time_ms = self.offset[count:], self.time_ms[count:]
            self.size = self.size[count:]
            del self.values[:count], self.keys[:count]


class Asking:
    """Asks where logs end, again and again. `beside`: in threads of its own, one at a time."""

    def __init__(
        self, log: Log, partitions: Sequence[Partition], clock: Clock, every_s: float, beside: bool
    ) -> None:
        self._log, self._partitions, self._clock = log, partitions, clock
        self._every_s, self._beside = every_s, beside
        self._future: Future[dict[Partition, Bounds]] | None = None
        self._asked_ms, self._next = 0, clock.monotonic()
        self.trouble = ""  # why the last question was not answered

    def answer(self) -> tuple[int, dict[Partition, Bounds]] | None:
        """A new answer, and the clock before it was asked for; begins the next question in time.

        Raises ConfigError.
        """
        found: tuple[int, dict[Partition, Bounds]] | None = None
        future = self._future
        if future is not None and future.done():
            self._future = None
            try:
                found, self.trouble = (self._asked_ms, future.result()), ""
            except Unreachable as error:
                self.trouble = error.message
        if self._future is None and self._clock.monotonic() >= self._next:
            self._next = self._clock.monotonic() + self._every_s
            self._asked_ms, self._future = self._clock.now_ms(), Future()
            if self._beside:
                # A daemon: brokers that never answer must not keep the process from ending.
                threading.Thread(target=self._run, args=(self._future,), daemon=True).start()
            else:
                self._run(self._future)
                return self.answer()
        return found

    def _run(self, future: Future[dict[Partition, Bounds]]) -> None:
        try:
            future.set_result(self._log.bounds(self._partitions))
        except BaseException as error:
            future.set_exception(error)


class Joined:
    """See the head of this file. One thread uses it."""

    def __init__(
        self,
        source: Reader,
        spec: DetectorSpec,
        partitions: Sequence[Partition],
        *,
        log: Log,
        clock: Clock,
        stats: LaneStats,
        beside: bool = True,
    ) -> None:
        """`source` reads `partitions`, whose every partition of `spec.labels` has its partner."""
        assert spec.labels, spec
        self._source, self._clock, self._stats = source, clock, stats
        self._partitions = tuple(partitions)
        self._delay_ms = round(1_000 * spec.labels_delay_s)
        place = {p: i for i, p in enumerate(self._partitions)}
        self._pairs = [
            (place[p._replace(topic=topic)], i)
            for p, i in place.items()
            if p.topic == spec.labels
            for topic in spec.topics
        ]
        assert 2 * len(self._pairs) == len(place), self._partitions
        self._turn = 0
        every_s = min(ASK_MAX_S, max(ASK_MIN_S, spec.labels_delay_s / (2 * ASKS)))
        self._asking = Asking(log, self._partitions, clock, every_s, beside)
        self._records_max = max(1, RECORDS_MAX // len(place))
        self._bytes_max = BYTES_MAX // len(place)
        self._begin: dict[Partition, int] = {}
        self._words = ""
        self._clear()

    def _clear(self) -> None:
        count = len(self._partitions)
        self._waiting = [Waiting() for _ in range(count)]
        self._floor = [NO_FLOOR] * count  # ms: no record of it that was not read is earlier
        self._answers: list[tuple[int, dict[Partition, Bounds]]] = []
        self._held: set[Partition] = set()
        # By pair: since when its next payment waits; the latest time by which a payment, or a
        # label, was handed on while the next record of the other log was not known.
        self._since: list[float | None] = [None] * len(self._pairs)
        self._assumed = [[NO_FLOOR, NO_FLOOR] for _ in self._pairs]
        self._spoken = self._clock.monotonic()

    # ---- what is the other source's --------------------------------------------------------

    def committed(self) -> dict[Partition, Committed]:
        """See `Source`."""
        return self._source.committed()

    def bounds(self) -> dict[Partition, Bounds]:
        """See `Source`."""
        return self._source.bounds()

    def assign(self, begin: Mapping[Partition, int]) -> None:
        """See `Source`."""
        self._source.assign(begin)
        self._begin = dict(begin)
        self._clear()

    def close(self) -> None:
        """See `Source`."""
        self._source.close()

    # ---- reading ---------------------------------------------------------------------------

    def fetch(self, limit: int, wait_s: float) -> Fetched:
        """See `Source`."""
        self._learn()
        found = self._handed_on(limit)
        if not len(found):
            self._take(self._source.fetch(limit, wait_s))
            self._learn()
            found = self._handed_on(limit)
        self._hold()
        self._speak()
        return found

    def position(self) -> dict[Partition, int]:
        """See `Source`: of what was handed on."""
        read = self._source.position()
        for partition, waiting in zip(self._partitions, self._waiting, strict=True):
            if len(waiting):
                read[partition] = int(waiting.offset[0])
        return read

    def _take(self, fetched: Fetched) -> None:
        for index in np.unique(fetched.partition).tolist():
            at = np.flatnonzero(fetched.partition == index)
            if not len(self._waiting[index]):
                self._check(index, fetched.time_ms[at])
            self._waiting[index].take(fetched, at)

    def _check(self, index: int, time_ms: I64) -> None:
        """Count the first of these that belong before what was handed on when nobody knew them."""
        for (paid, label), assumed in zip(self._pairs, self._assumed, strict=True):
            late = np.zeros(0, np.bool_)
            if index == label:
                late, assumed[0] = time_ms + self._delay_ms <= assumed[0], NO_FLOOR
            if index == paid:
                late, assumed[1] = time_ms < assumed[1], NO_FLOOR
            self._stats.late += int(np.logical_and.accumulate(late).sum())

    def _learn(self) -> None:
        """Ends that have been read to: what comes behind them is younger than the question."""
        if (answer := self._asking.answer()) is not None:
            self._answers = [*self._answers, answer][-ASKED_MAX:]
        if not self._answers:
            return
        read = {**self._begin, **self._source.position()}
        left: list[tuple[int, dict[Partition, Bounds]]] = []
        for asked_ms, ends in self._answers:
            floor, behind = asked_ms - self._delay_ms // 2, False
            for index, partition in enumerate(self._partitions):
                if partition in ends and read[partition] >= ends[partition].end:
                    self._floor[index] = max(self._floor[index], floor)
                else:
                    behind = True
            if behind:
                left.append((asked_ms, ends))
        self._answers = left

    def _handed_on(self, limit: int) -> Fetched:
        """Up to `limit` records whose order is certain; each pair has the first turn at times."""
        self._turn = (self._turn + 1) % len(self._pairs)
        gathered = Gathered()
        for each in (*range(self._turn, len(self._pairs)), *range(self._turn)):
            if (room := min(limit - len(gathered), gathered.want(limit, limit))) <= 0:
                break
            self._hand_on(each, room, gathered)
        return gathered.fetched()

    def _hand_on(self, pair: int, limit: int, gathered: Gathered) -> None:
        """Add the records of one pair to what was gathered."""
        pay, tell = self._pairs[pair]
        paid, label = self._waiting[pay], self._waiting[tell]
        of = merged(
            paid.time_ms, label.time_ms, self._delay_ms, self._floor[pay], self._floor[tell], limit
        )
        if of.shape[0]:
            at = places(of, len(paid))
            size = np.concatenate((paid.size, label.size))[at]
            fit = 1 + int(np.searchsorted(np.cumsum(size)[:-1], FETCH_BYTES))
            of, at = of[:fit], at[:fit]
            values, keys = [*paid.values, *label.values], [*paid.keys, *label.keys]
            gathered.add(
                np.array((pay, tell), np.int32)[of],
                np.concatenate((paid.offset, label.offset))[at],
                np.concatenate((paid.time_ms, label.time_ms))[at],
                [values[i] for i in at.tolist()],
                [keys[i] for i in at.tolist()] if keys else [],
            )
            self._assume(pair, of)
        labels, payments = int(of.sum()), int((of == 0).sum())
        paid.drop(payments)
        label.drop(labels)
        if payments or not len(paid):
            self._since[pair] = None
        if len(paid) and not len(label) and self._since[pair] is None:
            self._since[pair] = self._clock.monotonic()

    def _assume(self, pair: int, of: I64) -> None:
        """Remember what was handed on behind the last record that is known of the other log."""
        paid, label = (self._waiting[each] for each in self._pairs[pair])
        labels, payments = int(of.sum()), int((of == 0).sum())
        assumed = self._assumed[pair]
        if labels == len(label):
            alone = int((np.cumsum(of) == labels).sum()) - (labels > 0)
            times = paid.time_ms[payments - alone : payments]
            assumed[0] = max(assumed[0], int(times.max(initial=NO_FLOOR)))
        if payments == len(paid):
            alone = int((np.cumsum(1 - of) == payments).sum()) - (payments > 0)
            times = label.time_ms[labels - alone : labels] + self._delay_ms
            assumed[1] = max(assumed[1], int(times.max(initial=NO_FLOOR)))

    def _hold(self) -> None:
        """Of a partition whose records wait in number no more is read before half of them went."""
        held: set[Partition] = set()
        for partition, waiting in zip(self._partitions, self._waiting, strict=True):
            part = 2 if partition in self._held else 1
            many = part * len(waiting) > self._records_max
            if many or (len(waiting) and part * waiting.nbytes > self._bytes_max):
                held.add(partition)
        if held != self._held:
            self._source.hold(held)
            self._held = held

    def _speak(self) -> None:
        """Say what payments wait for that have waited for long."""
        now, words = self._clock.monotonic(), ""
        since, pair = min(
            ((s, i) for i, s in enumerate(self._since) if s is not None), default=(now, 0)
        )
        if now - since >= WORDS_S:
            paid, label = (self._partitions[each] for each in self._pairs[pair])
            first_ms = int(self._waiting[self._pairs[pair][0]].time_ms[0])
            ahead_s = (first_ms - self._clock.now_ms()) / 1_000
            if ahead_s > self._delay_ms / 2_000:
                words = (
                    f"`{paid}` waits: its log's time is {ahead_s:,.0f} s ahead of this machine's"
                )
            else:
                why = self._asking.trouble or "it was not read to its end"
                words = f"`{paid}` has waited {now - since:.0f} s for labels of `{label}`: {why}"
        if words and now - self._spoken >= WORDS_S:
            self._spoken, self._words, self._stats.words = now, words, words
        elif not words and self._words:
            if self._stats.words == self._words:
                self._stats.words = ""
            self._words = ""
