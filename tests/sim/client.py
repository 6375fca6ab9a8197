"""confluent_kafka as the simulator has it: what `actors/kafka.py` calls, over a network that fails.

Stands in for the client library and for nothing of ours: `KafkaLog`, its Source and its Sink run as
they are. What becomes of a request: `network.py`. A refused epoch is fatal for the producer; a
batch is written once however often it is sent; of a partition that is paused nothing comes. What
the real client does in each case: measured on Apache Kafka 4.3.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from confluent_kafka.admin import OffsetSpec

from raywatch.actors.ports import Committed, Partition
from sim.network import FATAL, KafkaError, KafkaException, Network, away


class TopicPartition:
    """A partition with an offset."""

    def __init__(
        self, topic: str, partition: int, offset: int = -1001, metadata: str | None = None
    ) -> None:
        self.topic, self.partition, self.offset, self.metadata = topic, partition, offset, metadata
        self.error: KafkaError | None = None


class Message:
    """A record, or an error in its place."""

    __slots__ = ("_entry", "_error", "_place")

    def __init__(self, place: Partition, entry: Any, error: KafkaError | None = None) -> None:
        self._place, self._entry, self._error = place, entry, error

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return self._place.topic

    def partition(self) -> int:
        return self._place.number

    def offset(self) -> int:
        return self._entry.offset if self._entry is not None else -1

    def timestamp(self) -> tuple[int, int]:
        return 1, self._entry.time_ms

    def value(self) -> bytes | None:
        return self._entry.value

    def key(self) -> bytes | None:
        return self._entry.key

    def headers(self) -> list[tuple[str, bytes]] | None:
        return list(self._entry.headers) or None


class Consumer:
    """A consumer that assigns its partitions itself."""

    def __init__(self, network: Network, settings: dict[str, Any]) -> None:
        self._net, self._group = network, settings["group.id"]
        self._stable = settings["isolation.level"] == "read_committed"
        self._next: dict[Partition, int] = {}
        self._moved: set[Partition] = set()
        self._gone: set[Partition] = set()
        self._paused: set[Partition] = set()
        self._turn = 0
        self._site = "looker"

    def committed(self, asked: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        places = [Partition(a.topic, a.partition) for a in asked]
        self._site = f"lane of {places[0].number}"
        broker = self._net.broker
        found = self._net.call(
            f"{self._site}/committed", "committed",
            lambda: broker.committed(self._group, places, stable=self._stable), timeout,
            place=lambda s: away(broker, s),
        )  # fmt: skip
        return [
            TopicPartition(p.topic, p.number, found[p].offset, found[p].note)
            if p in found
            else TopicPartition(p.topic, p.number)
            for p in places
        ]

    def assign(self, wanted: list[TopicPartition]) -> None:
        self._next = {Partition(w.topic, w.partition): w.offset for w in wanted}
        self._moved, self._gone, self._paused = set(), set(), set()

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(p.topic, p.number) for p in self._next]

    def pause(self, asked: list[TopicPartition]) -> None:
        self._paused |= {Partition(a.topic, a.partition) for a in asked}

    def resume(self, asked: list[TopicPartition]) -> None:
        self._paused -= {Partition(a.topic, a.partition) for a in asked}

    def position(self, asked: list[TopicPartition]) -> list[TopicPartition]:
        places = [Partition(a.topic, a.partition) for a in asked]
        return [
            TopicPartition(p.topic, p.number, self._next[p] if p in self._moved else -1001)
            for p in places
        ]

    def consume(self, count: int, timeout: float) -> list[Message]:
        hub, process = self._net.hub, self._net.process
        fault = self._net.plan.draw(f"{process.name}/{self._site}/fetch", "fetch")
        kind, size = (fault.kind, fault.size) if fault is not None else ("", 0.0)
        if kind == "passing error":
            return [Message(next(iter(self._next)), None, KafkaError("_TRANSPORT"))]
        if kind == "slow":
            hub.sleep(1.5 * size)
        elif kind == "few":
            count = max(1, min(count, round(5 * size)))
        else:
            self._net._strike(kind, size, None)
        messages = self._take(count)
        if len(messages) < count and timeout > 0.0:
            hub.sleep(timeout)
            messages += self._take(count - len(messages))
        return messages

    def _take(self, count: int) -> list[Message]:
        """What is there, in turns of a few records a partition."""
        net = self._net
        if net.process.cut_until > net.hub.now_ns:
            return []
        self._turn += 1
        places = list(self._next)
        first = self._turn % len(places) if places else 0
        taken: list[Message] = []
        for place in places[first:] + places[:first]:
            part = net.broker.topics[place.topic][place.number]
            if part.away_until > net.hub.now_ns or place in self._gone or place in self._paused:
                continue
            offset = self._next[place]
            if not part.low <= offset <= part.end:
                self._gone.add(place)
                taken.append(Message(place, None, KafkaError("_AUTO_OFFSET_RESET")))
                continue
            stable = part.stable
            if offset >= stable:
                continue
            entries = part.read(offset, count - len(taken)) if count > len(taken) else []
            if entries:
                taken += [Message(place, entry) for entry in entries]
                self._next[place] = entries[-1].offset + 1
                self._moved.add(place)
            elif count > len(taken):
                self._next[place] = stable  # markers and holes, and nothing else
                self._moved.add(place)
        return taken

    def commit(self, offsets: list[TopicPartition], *, asynchronous: bool) -> list[TopicPartition]:
        assert not asynchronous
        theirs = {Partition(o.topic, o.partition): Committed(o.offset, o.metadata or "")
                  for o in offsets}  # fmt: skip
        broker, who = self._net.broker, self._net.process.name
        self._net.call(
            f"{self._site}/plain commit", "plain commit",
            lambda: broker.commit(self._group, theirs, who), 10.0, place=lambda s: away(broker, s),
        )  # fmt: skip
        return offsets

    def consumer_group_metadata(self) -> str:
        return self._group

    def list_topics(self, topic: str, timeout: float) -> None:
        """Nothing that matters here."""

    def poll(self, timeout: float) -> None:
        """Nothing that matters here."""

    def close(self) -> None:
        """Let go."""
        self._next = {}


class Producer:
    """A producer, transactional or not."""

    def __init__(self, network: Network, settings: dict[str, Any]) -> None:
        self._net = network
        self._lane: str = settings.get("transactional.id", "")
        self._timeout_s = settings.get("transaction.timeout.ms", 60_000) / 1e3
        self._report = settings["on_delivery"]
        self._epoch = -1
        self._sequence = 0
        self._queue: list[tuple[Any, ...]] = []
        self._batches = 0
        self._touched = False  # whether the transaction has sent anything
        self._fatal: KafkaError | None = None
        self._site = self._lane or "plain"
        network.broker.producers += 1
        self._number = network.broker.producers

    def list_topics(self, topic: str, timeout: float) -> None:
        """Nothing that matters here."""

    def poll(self, timeout: float) -> int:
        return 0

    def init_transactions(self, timeout: float) -> None:
        broker, lane = self._net.broker, self._lane
        self._epoch = self._call(
            "init", lambda: broker.init(lane, self._timeout_s), timeout, to_lane=True
        )

    def begin_transaction(self) -> None:
        """Local: not even a producer that was fenced learns of it here."""
        self._sequence += 1
        self._touched = False

    def produce(self, topic: str, value: Any, key: Any, headers: Any = None) -> None:
        if self._fatal is not None:
            raise KafkaException(KafkaError("_FATAL", fatal=True))
        self._queue.append((topic, key, value, tuple(headers or ())))

    def send_offsets_to_transaction(
        self, offsets: list[TopicPartition], group: str, timeout: float
    ) -> None:
        theirs = {Partition(o.topic, o.partition): Committed(o.offset, o.metadata or "")
                  for o in offsets if o.offset >= 0}  # fmt: skip
        broker, lane, epoch, sequence = self._net.broker, self._lane, self._epoch, self._sequence
        self._touched = True
        self._call("offsets", lambda: broker.offsets(lane, epoch, sequence, group, theirs), timeout)

    def commit_transaction(self, timeout: float) -> None:
        self._deliver(timeout)
        if not self._touched:
            self._check()
            return
        broker, lane, epoch, sequence = self._net.broker, self._lane, self._epoch, self._sequence
        self._call(
            "commit", lambda: broker.end(lane, epoch, sequence, commit=True), timeout, to_lane=True
        )

    def abort_transaction(self, timeout: float) -> None:
        self._queue = []
        self._batches += 1
        broker, lane, epoch, sequence = self._net.broker, self._lane, self._epoch, self._sequence
        self._call(
            "abort", lambda: broker.end(lane, epoch, sequence, commit=False), timeout, to_lane=True
        )

    def flush(self, timeout: float) -> int:
        """Returns what was not delivered, as the client does; no error but fatal ones."""
        try:
            self._deliver(timeout)
        except KafkaException as raised:
            if raised.args[0].fatal():
                raise
        return len(self._queue)

    def _deliver(self, timeout: float) -> None:
        if not self._queue:
            return
        batch, queue, number = self._batches, list(self._queue), self._number
        broker, lane, epoch, sequence = self._net.broker, self._lane, self._epoch, self._sequence
        send = partial(broker.write, number, batch, queue)
        if lane:
            self._touched = True
            send = partial(broker.produce, lane, epoch, sequence, batch, queue)
        try:
            self._call("produce", send, timeout)
        except KafkaException as raised:
            if raised.args[0].name() != "_MSG_TIMED_OUT":
                raise
            for topic, *_ in queue:
                self._report(raised.args[0], Message(Partition(topic, 0), None))
            raise KafkaException(KafkaError("_INCONSISTENT", abort=bool(lane))) from raised
        self._queue = []
        self._batches += 1

    def _check(self) -> None:
        if self._fatal is not None:
            raise KafkaException(self._fatal)

    def _call(
        self, operation: str, effect: Callable[[], Any], timeout: float, *, to_lane: bool = False
    ) -> Any:
        self._check()
        broker = self._net.broker
        try:
            return self._net.call(
                f"{self._site}/{operation}", operation, effect, timeout,
                place=lambda s: away(broker, s, lane=self._lane if to_lane else ""),
            )  # fmt: skip
        except KafkaException as raised:
            name = raised.args[0].name()
            if name in FATAL:
                self._fatal = KafkaError("_FENCED", fatal=True)
                raise KafkaException(self._fatal) from raised
            if name == "INVALID_TXN_STATE":
                raise KafkaException(KafkaError(name, abort=True)) from raised
            raise


class AdminClient:
    """Asks for offsets."""

    def __init__(self, network: Network, settings: dict[str, Any]) -> None:
        self._net = network

    def list_offsets(
        self, asked: dict[TopicPartition, Any], isolation_level: Any, request_timeout: float
    ) -> dict[TopicPartition, Any]:
        broker = self._net.broker
        first = next(iter(asked.values()))
        side = 0 if isinstance(first, type(OffsetSpec.earliest())) else 1
        places = [Partition(a.topic, a.partition) for a in asked]
        site = f"lane of {places[0].number}/bounds"

        def ask() -> list[int]:
            return [broker.bounds(place)[side] for place in places]

        answers: dict[TopicPartition, Any] = {}
        try:
            found = self._net.call(site, "bounds", ask, request_timeout)
            for each, offset in zip(asked, found, strict=True):
                answers[each] = _Answered(offset=offset)
        except KafkaException as raised:
            answers = {each: _Answered(error=raised) for each in asked}
        return answers

    def poll(self, timeout: float) -> None:
        """Nothing that matters here."""


class _Answered:
    """A future that is done."""

    def __init__(self, *, offset: int = 0, error: Exception | None = None) -> None:
        self.offset, self._error = offset, error

    def result(self, timeout: float) -> "_Answered":
        if self._error is not None:
            raise self._error
        return self


def library(network: Callable[[], Network]) -> SimpleNamespace:
    """The module `confluent_kafka`, for whoever runs now."""
    return SimpleNamespace(
        Producer=lambda settings, **_: Producer(network(), settings),
        Consumer=lambda settings, **_: Consumer(network(), settings),
        KafkaError=KafkaError,
        KafkaException=KafkaException,
        TopicPartition=TopicPartition,
        Message=Message,
        IsolationLevel=SimpleNamespace(READ_COMMITTED=1),
        TopicCollection=list,
    )
