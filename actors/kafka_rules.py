"""What librdkafka is told, and what its answers mean. Imports no client: `kafka.py` does.

What librdkafka makes hard (measured on 2.8 with Apache Kafka 4.3): wrong passwords, certificates
and group rights look like time-outs. So `Ear` listens to what the client says on the side, and
hints name the right that may be missing. Errors are known by the names the client gives them.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from raywatch.actors.kafka_security import Fault, Right, Rights, brief, distrust
from raywatch.actors.ports import Committed, Out, Partition
from raywatch.models.errors import ConfigError, Fenced, LaneLost, RaywatchError, Unreachable

T = TypeVar("T")

ANSWER_S = 10.0  # One administrative question, retries included.
ASK_S = 2.0  # Where the ends of partitions are: one try, of several within ANSWER_S.
OPEN_S = 20.0  # Taking a lane: electing a coordinator anew takes up to ~15 s.
STABLE_S = 30.0  # Waiting for committed offsets: a dead holder's transaction ends after 20 s.
CALL_S = 20.0  # One transaction, from begin to durable.
ABORT_S = 5.0  # Undoing one that failed.
PAUSE_S = 0.05  # Between two tries.
STREAK_S = 15.0  # Reports that are further apart are not about the same trouble.
SLICE_S = 1.0  # First wait of a call that is repeated: then the client's reports are heard.

# The client's own log goes nowhere: all that matters in it comes as an error, too.
QUIET = logging.Logger("raywatch.kafka", logging.CRITICAL + 1)

CLIENT = {"log_level": 2, "socket.timeout.ms": 10_000, "reconnect.backoff.max.ms": 1_000}
READER = {
    **CLIENT,
    "fetch.queue.backoff.ms": 10,  # The default of 1 s costs three quarters of the rate.
    "fetch.wait.max.ms": 50,
    # The queue's bound counts compressed bytes, so the size of one fetch has to be bounded too.
    # A larger record still passes: brokers send the first one whatever its size.
    "queued.max.messages.kbytes": 32_768,
    "fetch.message.max.bytes": 1_048_576,
    "fetch.max.bytes": 16_777_216,
    "receive.message.max.bytes": 134_217_728,
}
READER_RULES = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "enable.partition.eof": False,
    "allow.auto.create.topics": False,
}
# Of a client that asks what a group committed and does not wait for open transactions.
LOOKER_RULES = {**READER_RULES, "isolation.level": "read_uncommitted"}
WRITER = {
    **CLIENT,
    "linger.ms": 5,
    "retry.backoff.ms": 20,  # A transaction right after another one is told to wait a moment.
    "compression.type": "lz4",
    "message.max.bytes": 16_777_216,  # The broker's limit decides; batches end at 1 MB anyway.
    "queue.buffering.max.kbytes": 131_072,
    "topic.metadata.propagation.max.ms": 10_000,  # A topic unknown for this long is not there.
}
WRITER_RULES = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",  # Java's: a key lies where every other client looks for it.
    "delivery.report.only.error": True,
}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


TURNED_AWAY = _names("_AUTHENTICATION _SSL SASL_AUTHENTICATION_FAILED")
UNWRITABLE = _names(
    "UNKNOWN_TOPIC_OR_PART _UNKNOWN_TOPIC _UNKNOWN_PARTITION TOPIC_EXCEPTION MSG_SIZE_TOO_LARGE "
    "INVALID_RECORD"
)
FENCED = _names("_FENCED INVALID_PRODUCER_EPOCH PRODUCER_FENCED")
# "Ask again", though librdkafka does not mark all of them as retriable.
AGAIN = _names(
    "NOT_COORDINATOR COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE REQUEST_TIMED_OUT "
    "UNSTABLE_OFFSET_COMMIT CONCURRENT_TRANSACTIONS _TIMED_OUT _TIMED_OUT_QUEUE _TRANSPORT "
    "_WAIT_COORD _ALL_BROKERS_DOWN"
)


def passing(fault: Fault) -> bool:
    """Whether it may go away by itself."""
    return fault.retriable() or fault.name() in AGAIN


def left(deadline: float) -> float:
    """Seconds until a monotonic deadline, at least enough for one answer."""
    return max(0.1, deadline - time.monotonic())


def again(fault: Fault, deadline: float) -> bool:
    """Whether to repeat a call; waits a moment if so."""
    if not passing(fault) or time.monotonic() + PAUSE_S >= deadline:
        return False
    time.sleep(PAUSE_S)
    return True


def patient(
    ask: Callable[[float], T],
    deadline: float,
    failure: type[Exception],
    hear: Callable[[], object] | None = None,
) -> T:
    """Repeat the very same call until it succeeds, fails for good or time is over.

    Args:
        ask: the call; gets the seconds that it may take.
        deadline: monotonic.
        failure: what the client raises, with a Fault as its first argument; the last one stays.
        hear: called between two tries; may raise what ends them.
    """
    # Twice as long each time: brokers that are slow today still get to answer.
    wait = SLICE_S if hear else float("inf")
    while True:
        try:
            return ask(min(wait, left(deadline)))
        except failure as raised:
            if hear and passing(raised.args[0]):
                hear()
            if not again(raised.args[0], deadline):
                raise
            wait *= 2


def tries(wait_s: float) -> Iterator[None]:
    """Try after try, with a pause between two, until time is over; at least one."""
    deadline = time.monotonic() + wait_s
    yield
    while time.monotonic() + PAUSE_S < deadline:
        time.sleep(PAUSE_S)
        yield


def end(client: Any) -> None:
    """Let a client go, if there is one, in the background: ending one takes up to a second."""
    close = getattr(client, "close", None)
    # A producer has no `close`, it ends with its last reference: that is then the thread's.
    if client is not None:
        arguments = () if close else (client,)
        threading.Thread(target=close or id, args=arguments, daemon=True).start()


def found(answers: Iterable[Any]) -> dict[Partition, Committed]:
    """Committed offsets out of the client's TopicPartitions."""
    return {
        Partition(a.topic, a.partition): Committed(a.offset, a.metadata or "")
        for a in answers
        if a.offset >= 0 and a.error is None
    }


# A client that is hung up on guesses why: true of wrong protocols, and of brokers that stop.
LATE = "OAUTHBEARER mechanism handshake failed: Broker: Request not valid"  # too late, or no SASL
GUESSES = ("security.protocol", "PLAINTEXT broker listener", "SSL alert", LATE)
GUESS_S = 2.0  # so it is believed once it is this old and nothing else was heard
NO_TOKENS = ("Failed to connect", "Could not", "Couldn't", "imed out", "imeout")
CURES = {  # what the client's words are about, and what to change
    "certificate verify failed": "`kafka.security.ca` must be the authority of the brokers, "
    "`kafka.bootstrap` a name in their certificates",
    "SSL alert": "these brokers want another `kafka.security.certificate`, or one at all",
    "PLAINTEXT broker": "these brokers speak clear text: correct `kafka.security.protocol`",
    "security.protocol": "do these brokers want TLS or SASL? correct `kafka.security.protocol`",
    "OAUTHBEARER token": "check `kafka.security`: `token_url`, `username`, `password`, `scope`",
    "invalid_token": "brokers do not accept this token: its issuer, audience or times",
    "username or password": "check `kafka.security`: `username`, `password`, `mechanism`",
    "credentials": "check `kafka.security`: `username`, `password`, `mechanism`",
    "mechanism": "correct `kafka.security.mechanism`",
}


class Writer:
    """A producer, the topics it knows and the records it could not deliver."""

    def __init__(
        self,
        make: Callable[..., Any],
        fixed: Mapping[str, Any],
        failure: type[Exception],
        late: Exception,
    ) -> None:
        """`make` makes a producer of settings; `late` is a `failure` that says so."""
        self.failed: list[tuple[str, Fault]] = []  # at most one entry a record
        self._known: set[str] = set()
        self._failure, self._late = failure, late

        def undelivered(fault: Fault, message: Any) -> None:
            self.failed.append((message.topic(), fault))

        self.client: Any = make({**fixed, **WRITER_RULES, "on_delivery": undelivered})

    def produce(self, out: Sequence[Out], deadline: float) -> None:
        """Queue records, waiting while the queue is full. Raises `failure`, and notes it."""
        for topic in {o.topic for o in out} - self._known:
            # Left to itself the client asks at its next full second.
            self.client.list_topics(topic, left(deadline))
            self._known.add(topic)
        for topic, key, value, headers in map(attrgetter("topic", "key", "value", "headers"), out):
            while True:
                try:
                    self.client.produce(topic, value, key, headers=list(headers) or None)
                    break
                except BufferError:
                    if time.monotonic() > deadline:
                        raise self._late from None
                    self.client.poll(PAUSE_S)
                except self._failure as raised:
                    self.failed.append((topic, raised.args[0]))
                    raise

    def delivered(self, out: Sequence[Out], deadline: float, rights: Rights) -> bool:
        """Write records; False if some are not known to be. Raises ConfigError."""
        waiting = len(out)
        with suppress(self._failure, SystemError):  # judged by what was not delivered
            self.produce(out, deadline)
            waiting = self.client.flush(left(deadline))
        for topic, fault in self.failed[:1]:
            rights.check(fault, Right("topic", topic, "Write"))
            if fault.name() in UNWRITABLE:
                raise unwritable(topic, fault)
        return not self.failed and not waiting


class Ear:
    """Hears what a client reports on the side: bad credentials, brokers that are down.

    One report may be a password that is being changed; clients try again every second or so.
    """

    def __init__(self, bootstrap: str, settings: Mapping[str, str]) -> None:
        """`settings` of the client say what may be wrong."""
        self._bootstrap, self._ca = bootstrap, settings.get("ssl.ca.location", "")
        self._tokens = settings.get("sasl.oauthbearer.token.endpoint.url", "")
        self._last = ""
        self._final = ""
        self._since = self._at = float("-inf")  # begin and end of being turned away
        self._guess = False

    def __call__(self, fault: Fault) -> None:
        """Called by the client, within its own calls."""
        said, name = fault.str(), fault.name()
        if name == "_ALL_BROKERS_DOWN" and self._last:
            return  # what was heard before says why
        self._last, now = said, time.monotonic()
        guess = name not in TURNED_AWAY or LATE in said
        if guess and not any(each in said for each in GUESSES):
            if self._guess:
                self._at = float("-inf")  # brokers come or go: it was that
            return
        if now - self._at > STREAK_S:
            self._since = now
        self._final, self._at, self._guess = said, now, guess

    @property
    def heard(self) -> bool:
        """Whether the client reported anything."""
        return bool(self._last)

    def check(self, lasting_s: float = 0.0) -> None:
        """Raises ConfigError if the brokers turn this client away, for at least so long."""
        now = time.monotonic()
        if now - self._at > STREAK_S or self._at - self._since < lasting_s:
            return
        if self._guess and now - self._since < GUESS_S:
            return
        if self._tokens and any(each in self._final for each in NO_TOKENS):
            raise Unreachable(
                f"no token for Kafka at `{self._bootstrap}`: {brief(self._final)}",
                hint=f"does `kafka.security.token_url` answer? It is `{self._tokens}`",
            )
        cure = next((cure for said, cure in CURES.items() if said in self._final), "")
        why = distrust(self._final, self._ca) if "verify failed" in self._final else ""
        raise ConfigError(
            f"Kafka at `{self._bootstrap}` turned this client away: {why or brief(self._final)}",
            hint=cure or "check `kafka.security`",
        )

    def hear(self, client: Any) -> Fault | None:
        """The same, after letting a client report; what a consumer reports without a record."""
        said: Any = None
        if not getattr(client, "assignment", list)():  # it would hand out a record otherwise
            said = client.poll(0)
        self.check()
        return None if said is None or isinstance(said, int) else said.error()

    def silent(self, waited_s: float) -> Unreachable:
        """The error for "nobody answered"; raises ConfigError if that is known to be why."""
        self.check()
        hint = f"last heard: {brief(self._last)}" if self._last else "is the address right?"
        if self._tokens and not self._last:  # the client asks the provider again and again
            hint = f"or no token came: does `kafka.security.token_url` answer? `{self._tokens}`"
        return Unreachable(
            f"no Kafka broker answered at `{self._bootstrap}` within {waited_s:.0f} s", hint=hint
        )


def refused(fault: Fault, name: str) -> ConfigError:
    """Brokers answered no, and will again."""
    return ConfigError(f"Kafka refuses `{name}`: {fault.str()}")


def foreign(group: str) -> ConfigError:
    """A group that is not ours alone."""
    return ConfigError(
        f"group `{group}` has members that subscribed: its offsets are theirs",
        hint="stop that consumer, or give the detector another group",
    )


def forward(
    offsets: Mapping[Partition, Committed],
    there: Mapping[Partition, Committed],
    commit: Callable[[Mapping[Partition, Committed]], None],
    deadline: float,
    failure: type[Exception],
    group: str,
) -> list[Partition]:
    """Commit what lies before what is `there`; returns where somebody else is ahead."""
    ahead = [p for p, c in offsets.items() if there.get(p, c).offset > c.offset]
    before = {p: c for p, c in offsets.items() if p not in ahead}
    try:
        if before:
            patient(lambda _: commit(before), deadline, failure)
    except failure as raised:
        if raised.args[0].name() == "UNKNOWN_MEMBER_ID":
            raise foreign(group) from raised
        raise
    return ahead


def members(admin: Any, group: str, answer: Callable[[Any], Any], wait: float) -> list[str]:
    """Live members of a group as an admin client tells."""
    asked = admin.describe_consumer_groups([group], request_timeout=wait)
    listed = admin.list_consumer_groups(request_timeout=wait)
    found = [f"{m.client_id}@{m.host}" for m in answer(asked[group]).members]
    states = {g.group_id: g.state.name for g in answer(listed).valid}
    return found or unnamed(states.get(group, "EMPTY"))


def unnamed(state: str) -> list[str]:
    """Members of a group as its state tells: the newer protocol's (KIP-848) are only listed."""
    return [] if state in ("EMPTY", "DEAD", "UNKNOWN") else [f"unnamed, {state.lower()}"]


class Hearing(NamedTuple):
    """A client that is listened to, and the rights that its question needs."""

    ear: Ear
    client: Any
    rights: Rights
    among: Callable[[str], list[Right]]

    def __call__(self, fault: Fault | None = None) -> None:
        """Raises ConfigError if a right is missing, or brokers turned the client away."""
        if (fault := fault or self.ear.hear(self.client)) is not None:
            self.rights.check(fault, *self.among(fault.name()))


def told(
    ask: Callable[[float], Iterable[Any]],
    hear: Hearing,
    wait_s: float,
    failure: type[Exception],
) -> dict[Partition, Committed]:
    """What a group committed. Raises Unreachable, ConfigError.

    Without the right to see the group, the client asks for its coordinator for ever, and says so
    on the side.
    """
    try:
        return found(patient(ask, time.monotonic() + wait_s, failure, hear))
    except failure as raised:
        fault: Fault = raised.args[0]
        if fault.name() == "GROUP_ID_NOT_FOUND":
            return {}
        hear(fault)
        hear()
        if passing(fault) and hear.ear.heard:
            raise hear.ear.silent(wait_s) from raised
        raise Unreachable(f"Kafka did not say what is committed: {fault.str()}") from raised


def led(topic: Any) -> bool:
    """Whether each partition of a topic's description has a leader."""
    return bool(topic and topic.partitions) and all(
        each.leader >= 0 for each in topic.partitions.values()
    )


def unwritable(topic: str, fault: Fault) -> ConfigError:
    """A record cannot be written, now or later."""
    return ConfigError(
        f"topic `{topic}` cannot be written: {fault.str()}",
        hint="create it, or raise its `max.message.bytes`",
    )


def not_opened(fault: Fault, lane: str) -> RaywatchError:
    """A lane could not be taken, rights apart."""
    if fault.name() in FENCED:
        return Fenced(f"lane `{lane}` was taken by another holder meanwhile: {fault.str()}")
    if passing(fault):
        return Unreachable(
            f"no coordinator let lane `{lane}` in within {OPEN_S:.0f} s: {fault.str()}"
        )
    return ConfigError(
        f"lane `{lane}`: this Kafka has no transactions: {fault.str()}",
        hint="deploy again: it asks the brokers anew, and works at least once where they have none",
    )


def spent(lane: str, faults: list[Fault], failed: list[tuple[str, Fault]]) -> RaywatchError:
    """What a failed transaction means for its lane.

    Args:
        lane: which.
        faults: of the calls, the first one first.
        failed: topic and reason of each record that was not delivered.
    """
    names = {fault.name() for fault in faults} | {fault.name() for _, fault in failed}
    if names & FENCED:
        return Fenced(f"lane `{lane}` has another holder: {faults[0].str()}")
    for topic, fault in failed:
        if fault.name() in UNWRITABLE:
            return unwritable(topic, fault)
    return LaneLost(f"lane `{lane}`: a transaction did not end well: {faults[0].str()}")
