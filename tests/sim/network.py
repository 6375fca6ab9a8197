"""Between a process and the brokers: requests that get lost, arrive twice, or late.

Requests take time, get lost, arrive twice, late, or after their sender froze or died; answers get
lost. As librdkafka does, a call repeats what may pass by itself until its own time-out, then fails
with `_TIMED_OUT`. The clients that call are in `client.py`.
"""

from collections.abc import Callable
from typing import Any

from sim.broker import Answer, Broker
from sim.faults import Plan
from sim.hub import Hub, Process

AGAIN = frozenset({
    "NOT_LEADER_OR_FOLLOWER", "NOT_COORDINATOR", "CONCURRENT_TRANSACTIONS",
    "UNSTABLE_OFFSET_COMMIT",
})  # fmt: skip
FATAL = frozenset({"INVALID_PRODUCER_EPOCH"})
RETRY_S = 0.02
AWAY_S = 3.0  # Longest election.
DEAF_S = 45.0  # Longest time in which no answer to one kind of question arrives.
LONG_S = 12.0  # Longest frost: longer than the keeper waits for a report.


class KafkaError:
    """What the client says went wrong; codes are names here."""

    _TIMED_OUT = "_TIMED_OUT"
    _FATAL = "_FATAL"
    _AUTO_OFFSET_RESET = "_AUTO_OFFSET_RESET"
    UNKNOWN_MEMBER_ID = "UNKNOWN_MEMBER_ID"

    def __init__(self, name: str, *, abort: bool = False, fatal: bool = False) -> None:
        self._name, self._abort, self._fatal = name, abort, fatal

    def name(self) -> str:
        return self._name

    def code(self) -> str:
        return self._name

    def str(self) -> str:
        return f"simulated {self._name}"

    def retriable(self) -> bool:
        return self._name in ("_TIMED_OUT", "_TRANSPORT")

    def fatal(self) -> bool:
        return self._fatal

    def txn_requires_abort(self) -> bool:
        return self._abort


class KafkaException(Exception):
    """Carries a KafkaError."""


class Network:
    """Between one process and the brokers."""

    def __init__(self, hub: Hub, plan: Plan, broker: Broker, process: Process) -> None:
        self.hub, self.plan, self.broker, self.process = hub, plan, broker, process
        self.deaf: dict[str, float] = {}  # site -> until when no answer arrives

    def call(
        self, site: str, operation: str, effect: Callable[[], Any], timeout_s: float,
        *, place: Callable[[float], None] | None = None,
    ) -> Any:  # fmt: skip
        """A request until it is answered. Raises KafkaException: `_TIMED_OUT`, or an answer."""
        hub, process = self.hub, self.process
        deadline = hub.seconds() + timeout_s
        name = "_TIMED_OUT"
        while True:
            here = f"{process.name}/{site}"
            fault = self.plan.draw(here, operation)
            kind, size = (fault.kind, fault.size) if fault is not None else ("", 0.0)
            if kind == "abortable":
                raise KafkaException(KafkaError("NOT_COORDINATOR", abort=True))
            if kind == "undelivered":
                raise KafkaException(KafkaError("_MSG_TIMED_OUT"))
            if kind == "all replies lost":
                self.deaf[site] = hub.seconds() + DEAF_S * size
            self._strike(kind, size, place)
            answered = self._send(effect, kind, size, self.plan.jitter(f"{here}/wire"))
            if kind == "reply lost" or hub.seconds() < self.deaf.get(site, 0.0):
                answered = None
            if answered is not None:
                good, what = answered
                if good:
                    return what
                name = what
                if name not in AGAIN:
                    raise KafkaException(KafkaError(name, fatal=name in FATAL))
                hub.sleep(RETRY_S)
            else:
                name = "_TIMED_OUT"
                hub.sleep(min(0.1 + size, max(0.01, deadline - hub.seconds())))
            if hub.seconds() >= deadline:
                raise KafkaException(KafkaError("_TIMED_OUT" if name in AGAIN else name))
            if not process.alive:
                raise KafkaException(KafkaError("_TIMED_OUT"))

    def _strike(self, kind: str, size: float, place: Callable[[float], None] | None) -> None:
        """What befalls the sender before it sends."""
        hub, process = self.hub, self.process
        if kind == "killed before":
            hub.kill(process)
        elif kind == "frozen before":
            hub.freeze(process, LONG_S * size)
            hub.sleep(0.0)
        elif kind == "cut off":
            process.cut_until = hub.now_ns + round(LONG_S * size * 1e9)
        elif kind == "hangs":
            while process.alive:
                hub.sleep(600.0)
        elif kind == "leader moves" and place is not None:
            place(AWAY_S * size)

    def _send(
        self, effect: Callable[[], Any], kind: str, size: float, jitter: float
    ) -> tuple[bool, Any] | None:
        """One copy of a request, or two; None: no answer."""
        hub, process = self.hub, self.process
        box: list[tuple[bool, Any]] = []

        def arrive() -> None:
            try:
                box.append((True, effect()))
            except Answer as answer:
                box.append((False, answer.name))

        lost = kind == "request lost" or process.cut_until > hub.now_ns
        way_s = 0.0005 + 0.002 * jitter + (1.5 * size if kind == "slow" else 0.0)
        if not lost:
            hub.at(way_s, arrive)
            if kind in ("twice", "late twin"):
                hub.at(way_s + (0.001 if kind == "twice" else 4.0 * size), arrive)
            if kind == "killed after":
                hub.at(way_s, lambda: hub.kill(process))
            elif kind == "frozen after":
                hub.at(way_s, lambda: hub.freeze(process, LONG_S * size))
        hub.sleep(2.0 * way_s)
        return box[0] if box else None


def away(broker: Broker, seconds: float, *, lane: str = "") -> None:
    """A leader moves: of a lane's transactions, else of the group and of what lanes write to."""
    until = broker.now_ns() + round(seconds * 1e9)
    if lane and lane in broker.holders:
        broker.holders[lane].away_until = until
        return
    broker.group_away_until = until
    for parts in broker.topics.values():
        if len(parts) == 1:
            parts[0].away_until = until
