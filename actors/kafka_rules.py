"""What librdkafka is told, and what its answers mean. Imports no client: `kafka.py` does.

What librdkafka makes hard (measured on 2.8 with Apache Kafka 4.3): wrong passwords, certificates
and group rights look like time-outs. So `Ear` listens to what the client says on the side, and
hints name the right that may be missing. Errors are known by the names the client gives them.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from raywatch.actors.ports import Bounds, Committed, Partition
from raywatch.models.errors import ConfigError, Fenced, LaneLost, RaywatchError, Unreachable
from raywatch.models.scorer import I32

T = TypeVar("T")

ANSWER_S = 10.0  # One administrative question, retries included.
OPEN_S = 20.0  # Taking a lane: electing a coordinator anew takes up to ~15 s.
STABLE_S = 30.0  # Waiting for committed offsets: a dead holder's transaction ends after 20 s.
CALL_S = 20.0  # One transaction, from begin to durable.
ABORT_S = 5.0  # Undoing one that failed.
PAUSE_S = 0.05  # Between two tries.
STREAK_S = 15.0  # Reports that are further apart are not about the same trouble.

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
RIGHTS = _names(
    "TOPIC_AUTHORIZATION_FAILED GROUP_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED "
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED"
)
UNWRITABLE = RIGHTS | _names(
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


def table(partitions: Sequence[Partition]) -> I32 | None:
    """Index by partition number, -1 elsewhere; None for partitions of several topics."""
    if len({p.topic for p in partitions}) != 1:
        return None
    indices = np.full(max(p.number for p in partitions) + 1, -1, np.int32)
    indices[[p.number for p in partitions]] = np.arange(len(partitions))
    return indices


class Fault(Protocol):
    """The part of the client's error that is judged here."""

    def name(self) -> str:
        """Such as `_TIMED_OUT`; a leading underscore: the client's own, not a broker's."""
        ...

    def str(self) -> str:
        """A sentence."""
        ...

    def retriable(self) -> bool:
        """Whether the client says that the same call may succeed later."""
        ...


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


def patient(ask: Callable[[float], T], deadline: float, failure: type[Exception]) -> T:
    """Repeat the very same call until it succeeds, fails for good or time is over.

    Args:
        ask: the call; gets the seconds that are left.
        deadline: monotonic.
        failure: what the client raises, with a Fault as its first argument; the last one stays.
    """
    while True:
        try:
            return ask(left(deadline))
        except failure as raised:
            if not again(raised.args[0], deadline):
                raise


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


class Ear:
    """Hears what a client reports on the side: bad credentials, brokers that are down.

    One report may be a password that is being changed; clients try again every second or so.
    """

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._last = ""
        self._final = ""
        self._since = self._at = float("-inf")  # begin and end of being turned away

    def __call__(self, fault: Fault) -> None:
        """Called by the client, within its own calls."""
        self._last = fault.str()
        if fault.name() in TURNED_AWAY:
            now = time.monotonic()
            if now - self._at > STREAK_S:
                self._since = now
            self._final, self._at = fault.str(), now

    def check(self, lasting_s: float = 0.0) -> None:
        """Raises ConfigError if the brokers turn this client away, for at least so long."""
        if time.monotonic() - self._at < STREAK_S and self._at - self._since >= lasting_s:
            raise ConfigError(
                f"Kafka at `{self._bootstrap}` turned this client away: {self._final}",
                hint="check `kafka.security`: protocol, user, password, certificate",
            )

    def hear(self, consumer: Any) -> None:
        """The same, after letting a consumer that reads nothing yet report."""
        if not consumer.assignment():  # it would hand out a record otherwise
            consumer.poll(0)
        self.check()

    def silent(self, waited_s: float) -> Unreachable:
        """The error for "nobody answered"; raises ConfigError if that is known to be why."""
        self.check()
        return Unreachable(
            f"no Kafka broker answered at `{self._bootstrap}` within {waited_s:.0f} s",
            hint=f"last heard: {self._last}" if self._last else "is the address right?",
        )


def refused(fault: Fault, name: str) -> ConfigError:
    """Brokers answered no, and will again."""
    hint = "grant the right (ACL)" if fault.name() in RIGHTS else ""
    return ConfigError(f"Kafka refuses `{name}`: {fault.str()}", hint=hint)


def foreign(group: str) -> ConfigError:
    """A group that is not ours alone."""
    return ConfigError(
        f"group `{group}` has members that subscribed: its offsets are theirs",
        hint="stop that consumer, or give the detector another group",
    )


def unnamed(state: str) -> list[str]:
    """Members of a group as its state tells: the newer protocol's (KIP-848) are only listed."""
    return [] if state in ("EMPTY", "DEAD", "UNKNOWN") else [f"unnamed, {state.lower()}"]


def not_said(fault: Fault, group: str) -> dict[Partition, Committed]:
    """Nothing, for a group that never was; raises for any other reason not to be answered."""
    if fault.name() == "GROUP_ID_NOT_FOUND":
        return {}
    if fault.name() in RIGHTS:
        raise refused(fault, group)
    raise Unreachable(
        f"Kafka did not say what group `{group}` has committed: {fault.str()}",
        hint=f"without READ on group `{group}` this looks the same: check the ACLs",
    )


def gone(partition: Partition, offset: int | None, why: str) -> LaneLost:
    """An offset cannot be read."""
    return LaneLost(
        f"offset {offset} of `{partition}` is not retained: {why}",
        hint="retention was shorter than the lag, or the topic was created anew",
    )


def check_retained(begin: Mapping[Partition, int], bounds: Mapping[Partition, Bounds]) -> None:
    """Raises LaneLost unless every partition can be read from its offset on."""
    for partition, offset in begin.items():
        low, end = bounds[partition]
        if not low <= offset <= end:
            raise gone(partition, offset, f"the log holds {low} to {end}")


def unanswered(partition: Partition) -> Unreachable:
    """A partition of which nobody knows the bounds."""
    return Unreachable(
        f"nobody answers for partition `{partition}`",
        hint="the topic is not there, may not be read, or has no leader right now",
    )


def unwritable(topic: str, fault: Fault) -> ConfigError:
    """A record cannot be written, now or later."""
    return ConfigError(
        f"topic `{topic}` cannot be written: {fault.str()}",
        hint="create it, grant WRITE on it, or raise its `max.message.bytes`",
    )


def not_opened(fault: Fault, lane: str) -> RaywatchError:
    """A lane could not be taken."""
    if fault.name() in RIGHTS:
        return refused(fault, lane)
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
    if faults[0].name() in RIGHTS:
        return refused(faults[0], lane)
    return LaneLost(f"lane `{lane}`: a transaction did not end well: {faults[0].str()}")
