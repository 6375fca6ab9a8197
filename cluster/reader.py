"""What the supervisor reads from the log: how far lanes are, and what they said.

A thread of its own, since a broker that is away makes every question wait: the keeper of the
actors must not wait with it. Whatever could not be read stays unknown; nothing is made up.
"""

import json
import os
import threading
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from raywatch.actors.ports import Clock, Log, Out, Partition, Source
from raywatch.cluster.growth import Growth, unwatched
from raywatch.cluster.lag import LagWindow
from raywatch.models.errors import RaywatchError

READ_S = 1.0
GROWTH_S = 10.0  # between two looks for partitions that were added
ALERTS_KEPT = 2_000  # newest alerts of all detectors; the page shows open incidents of them
WRITES_MAX = 10_000  # journal sentences that wait for a broker; older ones are dropped first
CHUNK = 500  # sentences written in one go
TAIL_MAX = 5_000  # alerts read in one go
DIGITS_MAX = 19  # of an integer in an alert


class Reader:
    """Keeps lag windows and recent alerts up to date until it is closed."""

    def __init__(
        self,
        log: Log,
        clock: Clock,
        groups: Mapping[str, Sequence[Partition]],
        alert_topics: Mapping[str, str],
    ) -> None:
        """`groups`: partitions by consumer group; `alert_topics`: detector by topic."""
        self._log, self._clock = log, clock
        self._groups = dict(groups)
        self._alert_topics = dict(alert_topics)
        self.windows = {g: {p: LagWindow() for p in ps} for g, ps in groups.items()}
        self.read_t = float("-inf")  # when offsets were last read, monotonic seconds
        self.trouble = ""  # why the last reading failed
        self._read_to: dict[Partition, int] = {}  # what readers that were given up had read
        self.growth: list[Growth] = []  # topics with partitions that nobody reads
        self._grown_t = float("-inf")
        self.alerts: deque[dict[str, Any]] = deque(maxlen=ALERTS_KEPT)
        self.alerts_total = 0
        self._writes: deque[Out] = deque()
        self._writing = threading.Lock()  # one writer at a time: the order is part of the record
        self._tails: dict[str, Source] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Write what waits to be written, then end. Waits at most 5 s."""
        self._closed.set()
        self._thread.join(5.0)

    def recent(self) -> list[dict[str, Any]]:
        """The newest alerts, oldest first."""
        with self._lock:
            return list(self.alerts)

    def since(self, number: int) -> list[dict[str, Any]]:
        """Alerts after the first `number` that were read; those no longer kept are left out."""
        with self._lock:
            fresh = self.alerts_total - number
            return list(self.alerts)[-fresh:] if fresh > 0 else []

    def write(self, out: Out) -> None:
        """Write a record when the log takes it; does not wait."""
        self._writes.append(out)
        while len(self._writes) > WRITES_MAX:
            self._writes.popleft()

    def write_now(self, out: Out) -> None:
        """Write a record and all before it; it is durable on return. Raises Unreachable."""
        self._writes.append(out)
        try:
            self._flush()
        except RaywatchError:
            with self._writing, suppress(ValueError):
                self._writes.remove(out)  # whoever asked is told that it was not written
            raise

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:
            traceback.print_exception(error)
            os._exit(1)  # a supervisor that no longer reads would call everything unknown for ever

    def _read(self) -> None:
        while not self._closed.is_set():
            try:
                self._round()
                self.trouble = ""
            except RaywatchError as error:
                self.trouble = error.message
            self._closed.wait(READ_S)
        try:
            self._flush()
        except RaywatchError as error:
            self.trouble = error.message
        for tail in self._tails.values():
            tail.close()

    def _round(self) -> None:
        self._flush()  # first: what happened is told although offsets cannot be read
        for group, partitions in self._groups.items():
            bounds = self._log.bounds(partitions)
            committed = self._log.committed(group, partitions)
            now = self._clock.monotonic()
            for partition, window in self.windows[group].items():
                reach = bounds.get(partition)
                done = committed.get(partition)
                window.add(
                    now,
                    done.offset if done is not None else None,
                    reach.end if reach is not None else None,
                    reach.low if reach is not None else None,
                )
            self.read_t = now
        if self._clock.monotonic() - self._grown_t >= GROWTH_S:
            self._grown_t = self._clock.monotonic()
            watched = [p for partitions in self._groups.values() for p in partitions]
            self.growth = unwatched(watched, self._log.topics())
        self._read_alerts()

    def _flush(self) -> None:
        with self._writing:
            while self._writes:
                chunk = [self._writes.popleft() for _ in range(min(len(self._writes), CHUNK))]
                try:
                    self._log.write(chunk)
                except RaywatchError:
                    self._writes.extendleft(reversed(chunk))
                    raise

    def _read_alerts(self) -> None:
        for topic, detector in self._alert_topics.items():
            tail = self._tails.get(topic) or self._open(topic)
            try:
                found = tail.fetch(TAIL_MAX, 0.05)
            except RaywatchError:
                # A reader says once that it may not read: the next round asks by another one.
                self._tails.pop(topic).close()
                raise
            self._read_to |= tail.position()
            for value in found.values:
                alert = _object(value)
                if alert is not None:
                    with self._lock:
                        self.alerts.append({**alert, "detector": detector})
                        self.alerts_total += 1

    def _open(self, topic: str) -> Source:
        """Start a little before the end: incidents that are open should be known."""
        partitions = [Partition(topic, n) for n in range(self._log.topics().get(topic, 0))]
        bounds = self._log.bounds(partitions)
        tail = self._log.source("", partitions)
        begin = {p: max(b.low, b.end - ALERTS_KEPT) for p, b in bounds.items()}
        tail.assign({p: max(b, self._read_to.get(p, b)) for p, b in begin.items()})
        self._tails[topic] = tail
        return tail


def _object(value: bytes | None) -> dict[str, Any] | None:
    """A JSON object, or None: nobody keeps others from writing to a topic.

    An integer that is no float64 is no number of ours, and would break what calculates with it.
    """
    try:
        found = json.loads(value or b"null", parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= DIGITS_MAX else None
