"""A scorer: one model version on one device, and nothing else.

It keeps no stream state, so it may be killed at any time and any other scorer of its version may
do its work again. Wrapped into a Ray actor by `runtime.py`.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from raywatch.models.artifact import unpack
from raywatch.models.registry import build
from raywatch.models.scorer import FINE, Level, ModelSpec, Scores, Segments, describe

WARM_KEYS = 8  # Rows of the batch that a scorer scores before it is admitted.


@dataclass(frozen=True, slots=True)
class ScorerReport:
    """What a scorer says of itself."""

    name: str
    model: ModelSpec
    pid: int
    records: int  # scored since it started
    batches: int
    busy_s: float  # time spent scoring since it started
    age_s: float
    warm_s: float  # from construction to the end of the warm-up
    waiting: int  # batches accepted and not answered
    latency_ms: tuple[float, float]  # p50 and p99 of the last batches, scoring alone
    node_id: str = ""  # Ray's name of its machine


class ScorerHost:
    """Holds a model and scores what it is sent, one batch at a time."""

    def __init__(self, name: str, blob: bytes, device: str = "cpu") -> None:
        """Load and warm the model: once constructed, the first real batch is as fast as any."""
        began = time.monotonic()
        self._name = name
        self._scorer = build(unpack(blob), device)
        self.model = describe(self._scorer)
        self._began = began
        self._lock = threading.Lock()
        self._records = self._batches = 0
        self._busy_s = 0.0
        self._busy_since: float | None = None
        self._took_ms: deque[float] = deque(maxlen=256)
        self.warm()
        self._warm_s = time.monotonic() - began

    def warm(self) -> None:
        """Score a small batch of each shape that compiles differently."""
        for fresh in (1, 16):
            self._scorer.score(_sample(self.model.levels, fresh))

    def score(self, segments: Segments) -> Scores:
        """Score one batch."""
        began = time.monotonic()
        self._busy_since = began
        scores = self._scorer.score(segments)
        took = time.monotonic() - began
        with self._lock:
            self._busy_since = None
            self._busy_s += took
            self._batches += 1
            self._records += int(segments.fresh[0].sum()) if segments.fresh.shape[0] else 0
            self._took_ms.append(1e3 * took)
        return scores

    def report(self, pid: int) -> ScorerReport:
        """Counters as of now, a batch in progress included."""
        now = time.monotonic()
        with self._lock:
            since = self._busy_since
            busy = self._busy_s + (now - since if since is not None else 0.0)
            took = sorted(self._took_ms)
            p50 = took[len(took) // 2] if took else 0.0
            p99 = took[min(len(took) - 1, len(took) * 99 // 100)] if took else 0.0
            return ScorerReport(
                name=self._name,
                model=self.model,
                pid=pid,
                records=self._records,
                batches=self._batches,
                busy_s=busy,
                age_s=now - self._began,
                warm_s=self._warm_s,
                waiting=int(since is not None),
                latency_ms=(p50, p99),
            )


def _sample(levels: tuple[Level, ...], fresh: int) -> Segments:
    """A batch of noise: what it scores does not matter, that it was scored does."""
    rng = np.random.default_rng(7)
    counts = np.full((len(levels), WARM_KEYS), fresh, np.int32)
    size = sum(WARM_KEYS * (level.history + fresh) for level in levels or (FINE,))
    return Segments(1, levels, counts, rng.standard_normal(size).astype(np.float32))
