"""Scorers that die, hang, answer late, twice, or for a version that nobody asked for.

Two versions of one small model, so that a batch which met the wrong one shows in its alerts.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raywatch.actors.pool import ScorerGone
from raywatch.actors.scorer import ScorerReport
from raywatch.models.registry import build, shipped
from raywatch.models.robustz import RobustZ
from raywatch.models.scorer import ModelSpec, Scorer, Scores, Segments, describe
from sim.faults import Plan
from sim.hub import Hub, Process, Task

VERSIONS = ("robustz@1111", "robustz@2222")
HANG_S = 20.0  # Longest time that a scorer stands still before somebody thaws it.


class Steeper(RobustZ):
    """Another version: its scores are four times the first one's, so calibration tells them."""

    def score(self, segments: Segments) -> Scores:
        """Score one batch."""
        scores = super().score(segments)
        steep = (scores.parts["z"] * np.float32(4.0)).astype(np.float32)
        return Scores({"z": steep}, scores.expected, scores.lag, self.version)


PAYMENTS = build(shipped("payments"))  # asked for its name only: lanes score payments themselves
PAID = PAYMENTS.version
MODELS: dict[str, Scorer] = {
    VERSIONS[0]: RobustZ(VERSIONS[0]), VERSIONS[1]: Steeper(VERSIONS[1]), PAID: PAYMENTS,
}  # fmt: skip
SPECS: dict[str, ModelSpec] = {version: describe(model) for version, model in MODELS.items()}


class SimFuture:
    """An answer that may come."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._waiter: Task | None = None
        self._scores: Scores | None = None
        self._error: Exception | None = None

    def done(self) -> bool:
        """Whether it came."""
        return self._scores is not None or self._error is not None

    def give(self, scores: Scores | None, error: Exception | None = None) -> None:
        """The first answer counts, as in Ray."""
        if not self.done():
            self._scores, self._error = scores, error
            if self._waiter is not None:
                self._hub.wake(self._waiter)

    def result(self, timeout: float | None = None) -> Scores:
        """The scores. Raises TimeoutError, ScorerGone."""
        if not self.done():
            self._waiter = self._hub.current
            self._hub.sleep(timeout or 0.0)
            self._waiter = None
        if self._error is not None:
            raise self._error
        if self._scores is None:
            raise TimeoutError
        return self._scores


@dataclass
class SimScorer:
    """A scorer process."""

    hub: Hub
    plan: Plan
    name: str
    version: str
    process: Process
    told: Any
    started: float
    ready: bool = False
    busy_until: float = 0.0
    batches: int = 0
    waiting: list[SimFuture] = field(default_factory=list[SimFuture])

    def __post_init__(self) -> None:
        self.process.mourners.append(self._died)

    def _died(self) -> None:
        for future in self.waiting:
            future.give(None, ScorerGone("simulated death"))
        self.waiting = []

    def score(self, segments: Segments, owner: Process) -> SimFuture:
        """Start scoring. Raises ScorerGone."""
        if not self.process.alive:
            raise ScorerGone("simulated death")
        hub = self.hub
        future = SimFuture(hub)
        fault = self.plan.draw(f"{self.name}/score", "score")
        kind, size = (fault.kind, fault.size) if fault is not None else ("", 0.0)
        self.waiting.append(future)
        if kind == "dies":
            hub.at(0.004 * size, lambda: hub.kill(self.process))
        elif kind == "hangs":
            hub.freeze(self.process, HANG_S * size)
        took_s = 0.002 + 0.006 * self.plan.jitter(f"{self.name}/scoring")
        begin = max(hub.seconds(), self.busy_until)
        self.busy_until = begin + took_s
        late_s = 3.0 * size if kind == "late" else 0.0
        version = self.version
        if kind == "other version":
            version = VERSIONS[1 - VERSIONS.index(version)]

        def answer() -> None:
            hub.sleep(begin + took_s + late_s - hub.seconds())
            if version != self.version:
                self.told("foreign answer", self.name, owner.name)
            scores = MODELS[version].score(segments)
            self.batches += 1
            if future in self.waiting:
                self.waiting.remove(future)
            hub.at(0.0005, lambda: future.give(scores))
            if kind == "twice":
                hub.at(0.8 * size, lambda: future.give(scores))

        hub.spawn(self.process, answer)
        return future

    def report(self) -> ScorerReport:
        """What the supervisor hears."""
        return ScorerReport(
            name=self.name, model=SPECS[self.version], pid=1, records=0, batches=self.batches,
            busy_s=0.0, age_s=self.hub.seconds() - self.started, warm_s=0.1,
            waiting=len(self.waiting), latency_ms=(1.0, 1.0),
        )  # fmt: skip


class SimMember:
    """A scorer as an owner's pool has it."""

    def __init__(self, scorer: SimScorer, owner: Process) -> None:
        self.name, self.version = scorer.name, scorer.version
        self._scorer, self._owner = scorer, owner

    def score(self, payload: Segments) -> Any:
        """See `Member`."""
        return self._scorer.score(payload, self._owner)
