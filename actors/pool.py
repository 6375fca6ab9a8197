"""Who scores this batch?

Two pools behind one port. `LocalPool` scores where it is called: for the edge, for files and for
tests. `RemotePool` hands batches to scorers elsewhere: to the one with the least work in flight,
again to another when one dies or does not answer in time, and to none but the version the batch
was made for. A lane waits while there is no scorer; it never skips.

Knows nothing of Ray: a scorer is a `Member`, whose call returns a future.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any, Protocol

from raywatch.actors.ports import Clock, Ticket
from raywatch.models.scorer import Scorer, Scores, Segments

SHUN_S = 2.0  # A scorer that failed is not asked again for this long, if there is another,
SHUN_MAX_S = 60.0  # twice as long each time it fails again, up to this: each try costs a time-out.
BUSY_FACTOR = 12.0  # A batch waits at a scorer that answers others for at most so many time-outs.
RETRY_S = 0.02  # Pause before a batch without a scorer looks for one again.


class LocalPool:
    """Scores in the caller's thread."""

    def __init__(self, scorers: Mapping[str, Scorer]) -> None:
        self._scorers = dict(scorers)
        self._done: dict[int, Scores] = {}
        self._number = 0

    def submit(self, segments: Segments, version: str) -> Ticket:
        """Score now."""
        self._number += 1
        self._done[self._number] = self._scorers[version].score(segments)
        return Ticket(self._number, version)

    def result(self, ticket: Ticket, wait_s: float) -> Scores | None:
        """The scores; never waits."""
        return self._done.pop(ticket.number)

    def forget(self) -> None:
        """Drop results nobody asked for."""
        self._done.clear()


class ScorerGone(Exception):
    """The scorer's process is dead or unreachable: take another."""


class Member(Protocol):
    """One scorer of the pool."""

    @property
    def name(self) -> str:
        """Unique among all scorers, dead ones included."""
        ...

    @property
    def version(self) -> str:
        """The model version it holds."""
        ...

    def score(self, payload: Any) -> "Future[Scores]":
        """Start scoring. The future raises ScorerGone, or what the model raised (a bug)."""
        ...


class Members:
    """The scorers an owner knows of. Shared by its lanes; any thread may change them."""

    def __init__(self, clock: Clock, wrap: Callable[[Segments], Any] = lambda x: x) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}
        self._load: dict[str, int] = {}
        self._shunned: dict[str, float] = {}
        self._failures: dict[str, int] = {}  # since its last answer
        self._failed: dict[str, str] = {}
        self._answered: dict[str, float] = {}  # when each last answered any lane of this owner
        self.wrap = wrap  # turns a batch into what is sent; made once for all its tries

    def replace(self, members: Mapping[str, Member]) -> None:
        """Make these the members. Batches in flight elsewhere finish or are sent again."""
        with self._lock:
            self._members = dict(members)
            self._shunned = {n: t for n, t in self._shunned.items() if n in members}
            self._failed = {n: why for n, why in self._failed.items() if n in members}
            self._answered = {n: t for n, t in self._answered.items() if n in members}
            self._failures = {n: k for n, k in self._failures.items() if n in members}

    def take(self, version: str) -> Member | None:
        """The least loaded member of this version, and count one batch on it."""
        now = self._clock.monotonic()
        with self._lock:
            able = [m for m in self._members.values() if m.version == version]
            fit = [m for m in able if self._shunned.get(m.name, 0.0) <= now] or able
            if not fit:
                return None
            best = min(fit, key=lambda m: (self._load.get(m.name, 0), m.name))
            self._load[best.name] = self._load.get(best.name, 0) + 1
            return best

    def give_back(self, name: str, *, failed: str = "") -> None:
        """A batch on this member ended; `failed` says how, where it did not end well."""
        with self._lock:
            self._load[name] = self._load.get(name, 0) - 1
            if self._load[name] <= 0:
                del self._load[name]
            if name not in self._members:
                return
            if failed:
                count = self._failures.get(name, 0)
                self._failures[name] = min(count + 1, 16)
                pause_s = min(SHUN_MAX_S, SHUN_S * 2.0**count)
                self._shunned[name] = self._clock.monotonic() + pause_s
                self._failed[name] = failed
            else:
                self._failures.pop(name, None)
                self._answered[name] = self._clock.monotonic()

    def answered(self, name: str) -> float:
        """When a member last answered, in seconds of the clock; -inf where it never did."""
        with self._lock:
            return self._answered.get(name, float("-inf"))

    def loads(self) -> dict[str, int]:
        """Batches in flight at each scorer that has any, former members included."""
        with self._lock:
            return dict(self._load)

    def names(self) -> list[str]:
        """Names of the members, sorted."""
        with self._lock:
            return sorted(self._members)

    def failures(self) -> dict[str, str]:
        """Members that failed since they were added, and how."""
        with self._lock:
            return dict(self._failed)


@dataclass(slots=True)
class _Job:
    payload: Any
    version: str
    member: Member | None = None
    future: "Future[Scores] | None" = None
    since: float = 0.0
    tries: int = field(default=0)


class RemotePool:
    """Batches of one lane at the scorers."""

    def __init__(self, members: Members, clock: Clock, *, timeout_s: float = 5.0) -> None:
        assert timeout_s > 0.0, timeout_s
        self._members = members
        self._clock = clock
        self._timeout_s = timeout_s
        self._jobs: dict[int, _Job] = {}
        self._number = 0
        self.sent_again = 0  # batches that needed another scorer

    def submit(self, segments: Segments, version: str) -> Ticket:
        """Hand in a batch; it waits here while no scorer has its version."""
        self._number += 1
        job = _Job(self._members.wrap(segments), version)
        self._jobs[self._number] = job
        self._send(job)
        return Ticket(self._number, version)

    def result(self, ticket: Ticket, wait_s: float) -> Scores | None:
        """The scores, or None if they are not there within `wait_s`."""
        job = self._jobs[ticket.number]
        if job.future is None:
            self._send(job)
            if job.future is None:
                self._clock.sleep(min(wait_s, RETRY_S))
                return None
        future, member = job.future, job.member
        assert future is not None
        assert member is not None
        try:
            scores = future.result(timeout=wait_s) if wait_s > 0 or future.done() else None
        except FutureTimeout:
            scores = None
        except ScorerGone as error:
            self._again(job, str(error) or "died")
            return None
        if scores is None:
            now = self._clock.monotonic()
            age, silent = now - job.since, now - self._members.answered(member.name)
            # A scorer that answers others is busy, not hung: to send its queue again would double
            # the work just when there is too much of it.
            if min(age, silent) > self._timeout_s or age > BUSY_FACTOR * self._timeout_s:
                self._again(job, f"no answer in {age:.1f} s")
            return None
        self._members.give_back(member.name)
        del self._jobs[ticket.number]
        return scores

    def forget(self) -> None:
        """Drop every batch in flight."""
        for job in self._jobs.values():
            if job.member is not None:
                self._members.give_back(job.member.name)
        self._jobs.clear()

    def _send(self, job: _Job) -> None:
        member = self._members.take(job.version)
        if member is None:
            return
        job.member, job.since, job.tries = member, self._clock.monotonic(), job.tries + 1
        try:
            job.future = member.score(job.payload)
        except ScorerGone as error:
            self._again(job, str(error) or "died")

    def _again(self, job: _Job, why: str) -> None:
        """Free the batch of the scorer that failed; the next look sends it to another."""
        assert job.member is not None
        self._members.give_back(job.member.name, failed=why)
        job.member, job.future = None, None
        self.sent_again += 1
