"""Kafka as a Log: the only importer of confluent_kafka (settings and errors: `kafka_rules.py`).

A Source assigns partitions itself and never joins a group, so nothing but the transactional id of
a lane's Sink fences: open the Sink first, then read what is committed, then assign.

librdkafka may not know how a transaction ended: a Sink that failed is never used again. Releases
after 2.8 hang in `send_offsets_to_transaction` at times: hence `calling_since` and the pin of
confluent-kafka 2.9.0. Who stands still for `transaction.timeout.ms` is told he was fenced. What is
committed is durable, but brokers may take some ms to show it: `Source.committed` waits for that.
"""

import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from operator import itemgetter
from typing import Any

import confluent_kafka as ck
import numpy as np
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

from raywatch.actors import kafka_reading as reading
from raywatch.actors import kafka_rules as rules
from raywatch.actors import kafka_security as security
from raywatch.actors.fetching import Gathered
from raywatch.actors.kafka_rules import ANSWER_S, CALL_S
from raywatch.actors.kafka_security import Brokers, Right, Rights
from raywatch.actors.ports import Bounds, Committed, Fetched, Out, Partition, Source
from raywatch.models.errors import Fenced, LaneLost, Unreachable

Settings = Mapping[str, str] | None
Offsets = Mapping[Partition, Committed]

FAILURE = ck.KafkaException
LOOKER = "raywatch.look"  # Who reads without a group: librdkafka aborts on an empty one.
CHUNK = 500  # Messages alive at once: the garbage collector walks each of them.


def _asked(partitions: Iterable[Partition]) -> list[ck.TopicPartition]:
    return [ck.TopicPartition(p.topic, p.number) for p in partitions]


def _offsets(offsets: Offsets) -> list[ck.TopicPartition]:
    return [ck.TopicPartition(p.topic, p.number, c.offset, c.note) for p, c in offsets.items()]


def _checked(answers: list[ck.TopicPartition]) -> list[ck.TopicPartition]:
    """Answers without errors. Raises KafkaException for the first one."""
    for error in (a.error for a in answers if a.error is not None):
        raise FAILURE(error)
    return answers


class KafkaSource:
    """Reads the partitions of one lane."""

    def __init__(
        self, log: "KafkaLog", group: str, partitions: Sequence[Partition], *, keys: bool
    ) -> None:
        self._log, self._group, self._keys = log, group, keys
        self._partitions = tuple(partitions)
        self._held: set[Partition] = set()
        self._ear = log.ear()
        fixed = {**rules.READER_RULES, "group.id": group or LOOKER, "error_cb": self._ear}
        self._consumer: Any = log.made(ck.Consumer, rules.READER, fixed)
        self._table = reading.table(self._partitions)
        # Plain tuples and Partitions are equal and hash alike.
        self._index: dict[tuple[str, int], int] = {p: i for i, p in enumerate(self._partitions)}

    def committed(self, deadline: float | None = None) -> dict[Partition, Committed]:
        """See `Source`; `deadline` is monotonic."""
        wait_s = deadline - time.monotonic() if deadline else rules.STABLE_S
        return self._log.told(self._consumer, self._ear, self._group, self._partitions, wait_s)

    def bounds(self) -> dict[Partition, Bounds]:
        """See `Source`."""
        found = self._log.bounds(self._partitions)
        for partition in self._partitions:
            if partition not in found:
                raise reading.unanswered(partition)
        return found

    def assign(self, begin: Mapping[Partition, int]) -> None:
        """See `Source`."""
        reading.check_retained(begin, self.bounds())
        self._held = set()
        self._consumer.assign([ck.TopicPartition(p.topic, p.number, o) for p, o in begin.items()])
        for topic in {p.topic for p in begin}:
            # Left to itself the client asks for leaders at its next full second.
            with suppress(FAILURE):
                self._consumer.list_topics(topic, ANSWER_S)

    def fetch(self, limit: int, wait_s: float) -> Fetched:
        """See `Source`. Chunk by chunk, so that few messages live at once."""
        deadline = time.monotonic() + wait_s
        gathered = Gathered()
        while (want := gathered.want(limit, CHUNK)) > 0:
            left = max(0.0, deadline - time.monotonic())
            messages = self._consumer.consume(want, left)
            full = len(messages) == want
            # A KafkaError is true: one pass in C says that there is none, as nearly always.
            if any(map(ck.Message.error, messages)):
                messages = reading.sifted(messages, self._log.rights, self._group)
            if count := len(messages):
                stamps = map(itemgetter(1), map(ck.Message.timestamp, messages))
                places = map(ck.Message.topic, messages), map(ck.Message.partition, messages)
                gathered.add(
                    reading.indices(self._table, self._index, *places, count),
                    np.fromiter(map(ck.Message.offset, messages), np.int64, count),
                    np.fromiter(stamps, np.int64, count),
                    list(map(ck.Message.value, messages)),
                    list(map(ck.Message.key, messages)) if self._keys else [],
                    [tuple(m.headers() or ()) for m in messages] if self._keys else [],
                )
            if not full and time.monotonic() >= deadline:
                break
        if not len(gathered):
            self._ear.check(lasting_s=10.0)
        return gathered.fetched()

    def hold(self, partitions: Collection[Partition]) -> None:
        """See `Reader`."""
        before, self._held = self._held, set(partitions)
        self._consumer.pause(_asked(self._held - before))
        self._consumer.resume(_asked(before - self._held))

    def position(self) -> dict[Partition, int]:
        """See `Source`."""
        found = self._consumer.position(self._consumer.assignment())
        return {Partition(t.topic, t.partition): t.offset for t in found if t.offset >= 0}

    def group_metadata(self) -> Any:
        """Who commits; to be taken right before each transaction."""
        return self._consumer.consumer_group_metadata()

    def commit(self, offsets: Offsets, deadline: float) -> list[Partition]:
        """Commit without a transaction, forward only; returns where somebody else is ahead."""

        def commit(forward: Offsets) -> None:
            _checked(self._consumer.commit(offsets=_offsets(forward), asynchronous=False))

        there = self.committed(deadline)
        return rules.forward(offsets, there, commit, deadline, FAILURE, self._group)

    def close(self) -> None:
        """See `Source`."""
        consumer, self._consumer = self._consumer, None
        rules.end(consumer)


class KafkaSink:
    """Writes and commits for one lane. After any error it is spent."""

    def __init__(self, log: "KafkaLog", lane: str, group: str, *, exactly_once: bool) -> None:
        self._log, self._lane, self._group = log, lane, group
        self._exactly_once, self._ear = exactly_once, log.ear()
        self._writer: rules.Writer | None = None
        self._since: float | None = None
        self._deadline = 0.0

    @property
    def exactly_once(self) -> bool:
        """See `Sink`."""
        return self._exactly_once

    def calling_since(self) -> float | None:
        """See `Sink`; no call may take longer than `CALL_S`."""
        return self._since

    def open(self) -> None:
        """See `Sink`."""
        if (error := self.attempt()) is not None:
            self.refuse(error)
            raise rules.not_opened(error, self._lane)

    def attempt(self) -> ck.KafkaError | None:
        """Take the lane; the error if brokers refused or did not answer."""
        assert self._writer is None, f"lane {self._lane} was opened before"
        fixed: dict[str, Any] = {"error_cb": self._ear}
        if self._exactly_once:
            fixed |= {"transactional.id": self._lane, "transaction.timeout.ms": int(CALL_S * 1000)}
        writer = self._log.writer(**fixed)
        self._deadline = time.monotonic() + rules.OPEN_S
        try:
            if self._exactly_once:
                hear = partial(self._ear.hear, writer.client)
                self._repeat(writer.client.init_transactions, hear)
        except FAILURE as raised:
            with suppress(FAILURE):  # a fatal error is raised again here
                self._ear.hear(writer.client)
            return raised.args[0]
        self._writer = writer
        return None

    def transact(self, out: Sequence[Out], offsets: Offsets, source: Source) -> None:
        """See `Sink`. With nothing to write and commit no broker is asked: a zombie stays one."""
        assert self._writer is not None, f"lane {self._lane}: not opened, or spent"
        assert isinstance(source, KafkaSource), type(source)
        if not out and not offsets:
            return
        writer, self._writer = self._writer, None
        self._deadline = time.monotonic() + CALL_S
        try:
            self._call(writer.client.poll, 0)
            if self._exactly_once:
                self._call(writer.client.begin_transaction)
            self._call(writer.produce, out, self._deadline)
            if self._exactly_once:
                self._commit(writer, offsets, source)
            else:
                self._flush(writer, offsets, source)
        except FAILURE as raised:
            topics = [o.topic for o in out], [p.topic for p in offsets]
            raise self._spent(writer, raised.args[0], *topics) from raised
        except SystemError as raised:  # flush() of a producer that failed fatally, some releases
            raise LaneLost(f"lane `{self._lane}`: the client broke: {raised}") from raised
        self._writer = writer

    def close(self) -> None:
        """See `Sink`."""
        writer, self._writer = self._writer, None
        rules.end(writer)

    def _commit(self, writer: rules.Writer, offsets: Offsets, source: KafkaSource) -> None:
        client, theirs, group = writer.client, _offsets(offsets), source.group_metadata()
        if offsets:
            self._repeat(lambda wait: client.send_offsets_to_transaction(theirs, group, wait))
        self._repeat(client.commit_transaction)

    def _flush(self, writer: rules.Writer, offsets: Offsets, source: KafkaSource) -> None:
        """At least once: everything is written before anything is committed."""
        waiting = self._call(writer.client.flush, rules.left(self._deadline))
        if writer.failed or waiting:
            raise FAILURE(ck.KafkaError(ck.KafkaError._TIMED_OUT))
        ahead = self._call(source.commit, offsets, self._deadline)
        if ahead:
            raise Fenced(f"lane `{self._lane}`: somebody committed further in `{ahead[0]}`")

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._since = time.monotonic()
        try:
            return function(*arguments)
        finally:
            self._since = None

    def _repeat(self, function: Callable[[float], Any], hear: Any = None) -> None:
        rules.patient(lambda wait: self._call(function, wait), self._deadline, FAILURE, hear)

    def _spent(
        self, writer: rules.Writer, error: ck.KafkaError, *topics: Sequence[str]
    ) -> Exception:
        """Clean up after a failed transaction; what it means for the lane."""
        faults: list[rules.Fault] = [error]
        try:
            self._call(writer.client.poll, 0)  # delivery reports say more than the error
            if error.txn_requires_abort() or error.code() == ck.KafkaError._FATAL:
                self._deadline = time.monotonic() + rules.ABORT_S
                self._repeat(writer.client.abort_transaction)
        except FAILURE as raised:
            faults.append(raised.args[0])
        self._ear.check()
        what = rules.spent(self._lane, faults, writer.failed)
        for fault in () if isinstance(what, Fenced) else (*(f for _, f in writer.failed), *faults):
            self.refuse(fault, *topics)
        return what

    def refuse(self, fault: rules.Fault, written: Sequence[str] = (), read: Any = ()) -> None:
        """Raises ConfigError if a right is missing to take the lane, or to commit these topics."""
        among = security.candidates(
            fault.name(), self._group, read, taken=self._lane, written=written
        )
        self._log.rights.check(fault, *among)


class KafkaLog:
    """A Kafka cluster. Pickles as its arguments; clients are made by the process that asks."""

    def __init__(
        self, bootstrap: str, settings: Settings = None, *, exactly_once: bool | None = None
    ) -> None:
        """Describe a cluster at `host:port,...`; nothing is asked yet.

        `settings` are librdkafka's, for every client: security, tuning; our promises are kept
        anyway. `exactly_once=None` asks the brokers (`probe`) when the first Sink is made.
        """
        self.bootstrap = bootstrap
        self._settings = dict(settings or {})
        self._exactly_once = exactly_once
        self._lock = threading.Lock()
        self.ear = partial(rules.Ear, bootstrap, self._settings)  # each client has its own
        self._ear = self.ear()
        self.rights = Rights(bootstrap, security.principal(self._settings), self.held)
        self._client: Any = None  # Kept: answers never arrive once it is collected.
        self._lookers: dict[str, Any] = {}
        self._writing = threading.Lock()
        self._writer: rules.Writer | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(KafkaLog, exactly_once=self._exactly_once), (self.bootstrap, self._settings)

    def __repr__(self) -> str:
        return f"KafkaLog({self.bootstrap!r})"  # settings hold secrets

    def settings(self, tuned: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of one client: `tuned` may be overridden by the user's, `fixed` not."""
        return {**tuned, **self._settings, **fixed, "bootstrap.servers": self.bootstrap}

    def writer(self, **fixed: Any) -> rules.Writer:
        """A producer of its own."""
        make = partial(self.made, ck.Producer, rules.WRITER)
        return rules.Writer(make, fixed, FAILURE, FAILURE(ck.KafkaError(ck.KafkaError._TIMED_OUT)))

    def made(self, kind: Callable[..., Any], tuned: Mapping[str, Any], fixed: Any) -> Any:
        """A client. Raises ConfigError where it cannot be made of these settings."""
        settings = self.settings(tuned, fixed)
        try:
            return kind(settings, logger=rules.QUIET)
        except FAILURE as raised:
            raise security.unmade(raised.args[0], settings) from None

    def source(
        self, group: str, partitions: Sequence[Partition], *, keys: bool = False
    ) -> KafkaSource:
        """See `Log`."""
        return KafkaSource(self, group, partitions, keys=keys)

    def sink(self, lane: str, group: str) -> KafkaSink:
        """See `Log`. May probe: raises Unreachable, ConfigError."""
        with self._lock:
            if self._exactly_once is None:
                self._exactly_once = self.probe() is None
        return KafkaSink(self, lane, group, exactly_once=self._exactly_once)

    def probe(self) -> str | None:
        """None where transactions work, else why not (a clear no). Raises RaywatchError."""
        sink = KafkaSink(self, security.PROBE, "", exactly_once=True)
        if (error := sink.attempt()) is None:
            return None
        sink.refuse(error)
        if rules.passing(error):
            raise rules.not_opened(error, security.PROBE)
        return f"{error.name()}: {error.str()}"

    def topics(self) -> dict[str, int]:
        """See `Log`; without internal topics."""
        admin = self._admin
        with self._answered("topics"):
            ask, hear = lambda wait: admin.list_topics(timeout=wait), partial(self._ear.hear, admin)
            found = rules.patient(ask, time.monotonic() + ANSWER_S, FAILURE, hear).topics
        return {t: len(m.partitions) for t, m in found.items() if not t.startswith("__")}

    def create(self, topic: str, partitions: int, settings: Settings = None) -> None:
        """See `Log`. Replication is what the brokers' `default.replication.factor` says."""
        wish = NewTopic(topic, partitions, -1, config=dict(settings or {}))
        right, there = Right("topic", topic, "Create"), ck.KafkaError.TOPIC_ALREADY_EXISTS
        with self._answered(topic, but=there, right=right):
            _answer(self._admin.create_topics([wish], request_timeout=ANSWER_S)[topic])
        for _ in rules.tries(ANSWER_S):
            with self._answered(topic):
                if rules.led(self._admin.list_topics(timeout=ANSWER_S).topics.get(topic)):
                    return
        self.rights.ask(Right("topic", topic, "Write"), "it was made, and cannot be seen")
        raise Unreachable(f"topic `{topic}` has no leader after {ANSWER_S:.0f} s")

    def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, Bounds]:
        """See `Log`. Raises Unreachable where nobody answers for any partition."""
        found, left = dict[Partition, Bounds](), list(partitions)
        deadline = time.monotonic() + ANSWER_S
        while left:
            answers, left = self._bounds(left)
            found |= answers
            if time.monotonic() + rules.PAUSE_S > deadline:
                break
            time.sleep(rules.PAUSE_S if left else 0.0)
        if left and not found:
            raise self._silent()
        return found

    def _bounds(self, partitions: Sequence[Partition]) -> reading.Ends:
        """Ask once; the partitions of which nobody said anything come second.

        A question to a broker that just died is not taken to its heir: better to ask anew, soon.
        """
        asked = [
            self._admin.list_offsets(
                dict.fromkeys(_asked(partitions), spec),
                isolation_level=ck.IsolationLevel.READ_COMMITTED,
                request_timeout=rules.ASK_S,
            )
            for spec in (OffsetSpec.earliest(), OffsetSpec.latest())
        ]
        return reading.ends(partitions, asked, _answer, FAILURE)

    def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        """See `Log`."""
        if not partitions:
            return {}
        return self.told(self._looker(group), self._ear, group, partitions, ANSWER_S)

    def told(
        self, consumer: Any, ear: rules.Ear, group: str, asked: Sequence[Partition], wait_s: float
    ) -> dict[Partition, Committed]:
        """What a group committed. Raises Unreachable, ConfigError."""
        where = _asked(asked)
        among = partial(security.candidates, group=group, read=[p.topic for p in asked])
        hearing = rules.Hearing(ear, consumer, self.rights, among)
        return rules.told(
            lambda wait: _checked(consumer.committed(where, wait)), hearing, wait_s, FAILURE
        )

    def members(self, group: str) -> list[str]:
        """See `Log`."""
        ask = partial(rules.members, self._admin, group, _answer)
        read = Right("group", group, "Read")
        with self._answered(
            group, right=read
        ):  # a broker that never had a group has no coordinator at first
            return rules.patient(ask, time.monotonic() + ANSWER_S, FAILURE)

    def write(self, out: Sequence[Out]) -> None:
        """See `Log`. One call at a time; a record that cannot be written is a ConfigError."""
        deadline = time.monotonic() + CALL_S
        with self._writing:
            # Kept again if nothing fails: only then is it known what it holds.
            writer, self._writer = self._writer or self.writer(error_cb=self._ear), None
            if not writer.delivered(out, deadline, self.rights):
                raise self._ear.silent(CALL_S)
            self._writer = writer

    def close(self) -> None:
        """See `Log`."""
        with self._lock, self._writing:
            self._client = self._writer = None
            while self._lookers:
                rules.end(self._lookers.popitem()[1])

    @property
    def _admin(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self.made(AdminClient, rules.CLIENT, {"error_cb": self._ear})
            return self._client

    def _looker(self, group: str) -> Any:
        """Asks for a group's offsets: admin clients crash without coordinator, librdkafka#5040."""
        fixed = {**rules.LOOKER_RULES, "group.id": group, "error_cb": self._ear}
        with self._lock:
            if group not in self._lookers:  # as many as there are detectors
                self._lookers[group] = self.made(ck.Consumer, rules.CLIENT, fixed)
            return self._lookers[group]

    def held(self, wanted: Sequence[Right]) -> dict[Right, bool | None]:
        """Which of these rights there are; see `kafka_security.held`. Fences no lane."""
        asker = Brokers(
            self._admin, _answer, FAILURE, ck.TopicCollection, partial(NewTopic, num_partitions=1),
            lambda lane: KafkaSink(self, lane, lane, exactly_once=True).attempt(), ANSWER_S,
        )  # fmt: skip
        ask, deadline = partial(security.held, asker, wanted), time.monotonic() + ANSWER_S
        with self._answered("rights"):  # a new broker has no coordinator at first
            return rules.patient(lambda _: ask(), deadline, FAILURE)

    def setting(self, topic: str, name: str) -> str | None:
        """What brokers have set for a topic; None where they do not tell this principal."""
        where = ConfigResource(ConfigResource.Type.TOPIC, topic)
        asked = self._admin.describe_configs([where], request_timeout=ANSWER_S)
        with suppress(FAILURE):
            return str(_answer(asked[where])[name].value)
        return None

    def _silent(self) -> Unreachable:
        self._admin.poll(0)  # lets the ear hear
        return self._ear.silent(ANSWER_S)

    @contextmanager
    def _answered(self, name: str, but: Any = None, right: Any = None) -> Generator[None]:
        """Turns the client's errors into ours; the code `but` is no error."""
        try:
            yield
        except FAILURE as raised:
            error: ck.KafkaError = raised.args[0]
            if rules.passing(error):
                raise self._silent() from raised
            if right is not None:
                self.rights.check(error, right)
            if error.code() != but:
                raise rules.refused(error, name) from raised


def _answer(future: Future[Any]) -> Any:
    """What an administrative call was answered. Raises KafkaException."""
    try:
        return future.result(ANSWER_S + 1.0)
    except TimeoutError as raised:
        raise FAILURE(ck.KafkaError(ck.KafkaError._TIMED_OUT)) from raised
