"""A Kafka cluster as the simulator has it: what brokers hold and how they answer, in memory.

Partitions with a low end, a high end, records, holes and the transactions that are open in them;
a coordinator for transactional ids (epochs, prepare, markers, time-outs) and one for groups. As in
Kafka 4: the end of a transaction is decided when it is prepared, and shows partition by partition
when its markers are written; markers take offsets; aborted records never show; offsets that a
transaction holds are unstable until then; a request of an older epoch, or of a transaction that
is over (KIP-890), is refused.

Calls here are what happens when a request arrives; `client.py` decides whether it does, and
whether anybody hears the answer. Written from Kafka's documents, apart from `actors/embedded.py`.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raywatch.actors.ports import Committed, Headers, Partition
from sim.hub import START_MS, Hub

Told = Callable[..., None]  # writes an event into the history

SHOW_S = 0.004  # From prepared to the last marker, at most, while no leader moves.


class Answer(Exception):
    """An error code as the answer."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(slots=True)
class Txn:
    """A transaction."""

    number: int
    lane: str
    epoch: int
    sequence: int  # of the producer's transactions
    state: str = "open"  # prepared commit, prepared abort, committed, aborted
    first: dict[Partition, int] = field(default_factory=dict[Partition, int])
    wrote: list[tuple[Partition, int]] = field(default_factory=list[tuple[Partition, int]])
    batches: set[int] = field(default_factory=set[int])
    group: str = ""
    offsets: dict[Partition, Committed] = field(default_factory=dict[Partition, Committed])
    markers: int = 0  # still to be written


@dataclass(slots=True)
class Entry:
    """A record in a partition."""

    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    txn: Txn | None = None


@dataclass(slots=True)
class Part:
    """A partition."""

    entries: list[Entry] = field(default_factory=list[Entry])
    offsets: list[int] = field(default_factory=list[int])
    low: int = 0
    end: int = 0
    open: dict[int, int] = field(default_factory=dict[int, int])  # transaction -> first offset
    away_until: int = 0  # no leader until then

    @property
    def stable(self) -> int:
        """Last stable offset."""
        return min(self.open.values(), default=self.end)

    def append(
        self, time_ms: int, key: bytes | None, value: bytes | None, headers: Headers,
        txn: Txn | None = None,
    ) -> int:  # fmt: skip
        """One record; its offset."""
        offset = self.end
        self.entries.append(Entry(offset, time_ms, key, value, headers, txn))
        self.offsets.append(offset)
        if txn is not None:
            self.open.setdefault(txn.number, offset)
        self.end += 1
        return offset

    def mark(self, txn: Txn, *, commit: bool) -> None:
        """The end of a transaction: a marker, and its records show or are gone."""
        if not commit:
            self.entries = [e for e in self.entries if e.txn is not txn]
            self.offsets = [e.offset for e in self.entries]
        self.end += 1
        self.open.pop(txn.number, None)

    def trim(self, before: int) -> None:
        """Retain nothing below an offset."""
        before = min(before, self.stable)
        if before > self.low:
            cut = bisect_left(self.offsets, before)
            del self.entries[:cut], self.offsets[:cut]
            self.low = before

    def read(self, offset: int, limit: int) -> list[Entry]:
        """Stable records from an offset on."""
        begin = bisect_left(self.offsets, offset)
        return self.entries[begin : min(begin + limit, bisect_left(self.offsets, self.stable))]


@dataclass(slots=True)
class Holder:
    """A transactional id."""

    epoch: int = -1
    timeout_s: float = 60.0
    txn: Txn | None = None  # open or prepared
    last: Txn | None = None  # the one that ended last
    away_until: int = 0  # no coordinator until then


class Broker:
    """The cluster."""

    def __init__(self, hub: Hub, jitter: Callable[[str], float], told: Told) -> None:
        self._hub, self._jitter, self._told = hub, jitter, told
        self.topics: dict[str, list[Part]] = {}
        self.holders: dict[str, Holder] = {}
        self.groups: dict[str, dict[Partition, Committed]] = {}
        self.group_away_until = 0
        self.producers = 0
        self._numbers = 0
        self._plain: set[tuple[int, int]] = set()  # batches of idempotent producers

    # ---- partitions ------------------------------------------------------------------------

    def create(self, topic: str, partitions: int) -> None:
        """A topic."""
        self.topics[topic] = [Part() for _ in range(partitions)]

    def part(self, partition: Partition) -> Part:
        """A partition, if somebody leads it. Raises Answer."""
        found = self.topics[partition.topic][partition.number]
        if found.away_until > self._hub.now_ns:
            raise Answer("NOT_LEADER_OR_FOLLOWER")
        return found

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """First retained and last stable offset. Raises Answer."""
        part = self.part(partition)
        return part.low, part.stable

    def now_ns(self) -> int:
        """Virtual nanoseconds."""
        return self._hub.now_ns

    def now_ms(self) -> int:
        """What a broker stamps records with."""
        return START_MS + self._hub.now_ns // 1_000_000

    # ---- transactions ----------------------------------------------------------------------

    def init(self, lane: str, timeout_s: float) -> int:
        """InitProducerId: ends what is open, and gives the next epoch. Raises Answer."""
        holder = self.holders.setdefault(lane, Holder())
        self._present(holder)
        if holder.txn is not None:
            if holder.txn.state == "open":
                holder.epoch += 1
                self._told("fenced", lane, holder.epoch, "by the next holder")
                self._prepare(holder, holder.txn, commit=False)
            raise Answer("CONCURRENT_TRANSACTIONS")
        holder.epoch += 1
        holder.timeout_s, holder.last = timeout_s, None
        self._told("opened", lane, holder.epoch)
        return holder.epoch

    def produce(
        self, lane: str, epoch: int, sequence: int, batch: int, out: Sequence[tuple[Any, ...]]
    ) -> None:
        """AddPartitions and Produce of (topic, key, value, headers). Raises Answer."""
        txn = self._began(lane, epoch, sequence)
        if batch in txn.batches:
            return
        logs = [self.part(Partition(topic, 0)) for topic, _, _, _ in out]
        txn.batches.add(batch)
        now = self.now_ms()
        for part, (topic, key, value, headers) in zip(logs, out, strict=True):
            partition = Partition(topic, 0)
            offset = part.append(now, key, value, headers, txn)
            txn.first.setdefault(partition, offset)
            txn.wrote.append((partition, offset))

    def offsets(
        self, lane: str, epoch: int, sequence: int, group: str, offsets: Mapping[Any, Committed]
    ) -> None:
        """AddOffsets and TxnOffsetCommit. Raises Answer."""
        txn = self._began(lane, epoch, sequence)
        if self.group_away_until > self._hub.now_ns:
            raise Answer("NOT_COORDINATOR")
        txn.group = group
        txn.offsets.update(offsets)

    def end(self, lane: str, epoch: int, sequence: int, *, commit: bool) -> None:
        """EndTxn; answered once it is decided. Raises Answer."""
        holder = self._held(lane, epoch)
        txn = holder.txn
        if txn is None:
            last = holder.last
            if last is not None and last.sequence == sequence:
                if (last.state == "committed") == commit:
                    return
                raise Answer("INVALID_TXN_STATE")
            if not commit:
                return  # nothing was ever sent: nothing to undo
            raise Answer("INVALID_TXN_STATE")
        if txn.sequence != sequence:
            raise Answer("INVALID_PRODUCER_EPOCH")
        if txn.state == "open":
            self._prepare(holder, txn, commit=commit)
        elif (txn.state == "prepared commit") != commit:
            raise Answer("INVALID_TXN_STATE")

    def _present(self, holder: Holder) -> None:
        if holder.away_until > self._hub.now_ns:
            raise Answer("NOT_COORDINATOR")

    def _held(self, lane: str, epoch: int) -> Holder:
        holder = self.holders.setdefault(lane, Holder())
        self._present(holder)
        if epoch != holder.epoch:
            self._told("refused", lane, epoch, holder.epoch)
            raise Answer("INVALID_PRODUCER_EPOCH")
        return holder

    def _began(self, lane: str, epoch: int, sequence: int) -> Txn:
        """The transaction of a producer, begun by its first request."""
        holder = self._held(lane, epoch)
        txn = holder.txn
        if txn is None:
            if holder.last is not None and sequence <= holder.last.sequence:
                raise Answer("INVALID_PRODUCER_EPOCH")  # a request that comes too late
            self._numbers += 1
            txn = holder.txn = Txn(self._numbers, lane, epoch, sequence)
            self._told("began", lane, epoch, txn.number)
            self._hub.at(holder.timeout_s, lambda: self._expire(holder, txn))
        elif txn.sequence != sequence:
            late = sequence < txn.sequence
            raise Answer("INVALID_PRODUCER_EPOCH" if late else "CONCURRENT_TRANSACTIONS")
        elif txn.state != "open":
            raise Answer("INVALID_TXN_STATE")
        return txn

    def _expire(self, holder: Holder, txn: Txn) -> None:
        """transaction.timeout.ms is over: the broker ends it and fences its producer."""
        if holder.txn is txn and txn.state == "open":
            holder.epoch += 1
            self._told("fenced", txn.lane, holder.epoch, "its transaction took too long")
            self._prepare(holder, txn, commit=False)

    def _prepare(self, holder: Holder, txn: Txn, *, commit: bool) -> None:
        txn.state = "prepared commit" if commit else "prepared abort"
        self._told("decided", txn.lane, txn.epoch, txn.number, commit, dict(txn.offsets), txn.wrote)
        places: list[Partition | None] = [*txn.first, *([None] if txn.offsets else [])]
        txn.markers = len(places)
        if not places:
            self._ended(holder, txn)
        for place in places:
            delay = self._jitter(f"{txn.lane}/marker") * SHOW_S
            self._hub.at(delay, lambda place=place: self._mark(holder, txn, place))

    def _mark(self, holder: Holder, txn: Txn, place: Partition | None) -> None:
        """One marker, at its partition or at the group's coordinator; later if that is away."""
        commit = txn.state == "prepared commit"
        part = None if place is None else self.topics[place.topic][place.number]
        away = self.group_away_until if part is None else part.away_until
        if away > self._hub.now_ns:
            self._hub.at((away - self._hub.now_ns) / 1e9, lambda: self._mark(holder, txn, place))
            return
        if part is not None:
            part.mark(txn, commit=commit)
        elif commit:
            self._commit(txn.group, txn.offsets, txn.lane)
        txn.markers -= 1
        if txn.markers == 0:
            self._ended(holder, txn)

    def _ended(self, holder: Holder, txn: Txn) -> None:
        txn.state = "committed" if txn.state == "prepared commit" else "aborted"
        holder.txn, holder.last = None, txn
        self._told("ended", txn.lane, txn.epoch, txn.number, txn.state)

    # ---- groups ----------------------------------------------------------------------------

    def committed(
        self, group: str, partitions: Sequence[Partition], *, stable: bool
    ) -> dict[Partition, Committed]:
        """Committed offsets. Raises Answer while a transaction may change them, if asked."""
        if self.group_away_until > self._hub.now_ns:
            raise Answer("NOT_COORDINATOR")
        if stable:
            for holder in self.holders.values():
                txn = holder.txn
                if txn is not None and txn.group == group and txn.offsets.keys() & set(partitions):
                    raise Answer("UNSTABLE_OFFSET_COMMIT")
        kept = self.groups.get(group, {})
        return {p: kept[p] for p in partitions if p in kept}

    def commit(self, group: str, offsets: Mapping[Partition, Committed], who: str) -> None:
        """OffsetCommit without a transaction. Raises Answer."""
        if self.group_away_until > self._hub.now_ns:
            raise Answer("NOT_COORDINATOR")
        self._commit(group, offsets, who)

    def _commit(self, group: str, offsets: Mapping[Partition, Committed], who: str) -> None:
        self.groups.setdefault(group, {}).update(offsets)
        self._told("committed", who, group, dict(offsets))

    def write(self, producer: int, batch: int, out: Sequence[tuple[Any, ...]]) -> None:
        """Produce without a transaction, once however often it arrives. Raises Answer."""
        if (producer, batch) in self._plain:
            return
        logs = [self.part(Partition(topic, 0)) for topic, _, _, _ in out]
        self._plain.add((producer, batch))
        for part, (_, key, value, headers) in zip(logs, out, strict=True):
            part.append(self.now_ms(), key, value, headers)
