"""Lag bank: a value is strange when no earlier stretch of its own key led up to it like this.

Distances to the nearest past window on three levels (`kernel.py`), plus three small questions that
distances do not see: has the level moved (ls), has a live signal gone flat (lowr) or grown restless
(vs), how large was the last step (diff).

    s    fine, W 16, lags 16 .. 527     event
    l    fine, W 64, lags 32 .. 527     event, sustained
    c4   4-means, W 64, lags 8 .. 519   sustained
    c8   8-means, W 64, lags 8 .. 263   event, sustained
    ls   8-means                        event
    lowr fine                           event
    vs   fine                           event
    diff fine                           event

The value expected is the one that followed the nearest past window of l. Stateless: all comes from
the segment. It does not know what is alarming: scores are calibrated elsewhere.
"""

from dataclasses import dataclass

import numpy as np

from raywatch.models.errors import ConfigError
from raywatch.models.kernel import LANES, LONG, NAN, bank, readonly
from raywatch.models.kernel_window import (
    ROUGH_NOW,
    ROUGH_PAST,
    SHIFT_NOW,
    SHIFT_PAST,
    level_shift,
    roughness,
    variance_shift,
)
from raywatch.models.scorer import C4, C8, F32, FINE, I32, I64, Component, Level, Scores, Segments

FINE_LAG0 = 16  # shortest lag of s
LONG_FROM = 32  # shortest lag of l
COARSE_LAG0 = 8  # shortest lag of c4 and c8, in blocks
SLOW = 0.5  # trust in what looks back over 64 records and more


@dataclass(frozen=True, slots=True)
class Lags:
    """How far back each level looks, in values of that level."""

    fine: int = 512
    c4: int = 512  # 0: without c4
    c8: int = 256

    def __post_init__(self) -> None:
        for name, lags, most in (
            ("fine", self.fine, FINE.history - FINE_LAG0 - LONG + 2),
            ("c4", self.c4, C4.history - COARSE_LAG0 - LONG + 2),
            ("c8", self.c8, C8.history - COARSE_LAG0 - LONG + 2),
        ):
            least = 0 if name == "c4" else LANES
            if not least <= lags <= most or lags % LANES:
                raise ConfigError(
                    f"`{name}_lags` must be a multiple of {LANES} in {least} .. {most}, "
                    f"got `{lags}`",
                    hint="256 fine lags halve the work and cost half a point",
                )

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels with the history that these lags need."""
        fine = max(FINE_LAG0 + self.fine - 2 + LONG, ROUGH_NOW + ROUGH_PAST)
        c8 = max(COARSE_LAG0 + self.c8 - 2 + LONG, SHIFT_NOW + SHIFT_PAST - 1)
        levels = [Level(FINE.name, FINE.block, fine)]
        if self.c4:
            levels.append(Level(C4.name, C4.block, COARSE_LAG0 + self.c4 - 2 + LONG))
        return (*levels, Level(C8.name, C8.block, c8))

    @property
    def components(self) -> tuple[Component, ...]:
        """What a lag bank of these lags answers."""
        c4 = (Component("c4", "c4", sustained=True, event=False),) if self.c4 else ()
        return (
            Component("s"),
            Component("l", sustained=True, trust=SLOW),
            *c4,
            Component("c8", "c8", sustained=True, trust=SLOW),
            Component("ls", "c8", weighted=False, trust=SLOW),
            Component("lowr", weighted=False, trust=SLOW),
            Component("vs", weighted=False, trust=SLOW),
            Component("diff"),
        )


class LagBank:
    """The lag bank on a CPU."""

    views = True  # what it cannot see, the decide stage calibrates beside it

    def __init__(
        self, version: str, *, fine_lags: int = 512, c4_lags: int = 512, c8_lags: int = 256
    ) -> None:
        """Raises ConfigError where a number of lags is not one that is kept."""
        self.version = version
        self._lags = Lags(fine_lags, c4_lags, c8_lags)
        self.levels = self._lags.levels
        self.components = self._lags.components

    def score(self, segments: Segments) -> Scores:
        """Score one batch."""
        assert segments.levels == self.levels, (segments.levels, self.levels)
        parts: dict[str, F32] = {}
        expected, lag = self._fine(segments, parts)
        for level in range(1, len(self.levels)):
            self._coarse(segments, level, parts)
        return Scores(parts, expected, lag, self.version)

    def _fine(self, segments: Segments, parts: dict[str, F32]) -> tuple[F32, I32]:
        history = self.levels[0].history
        values, begin, fresh = rows(segments, 0)
        size = int(fresh.sum(dtype=np.int64))
        for name in ("s", "l", "lowr", "vs", "diff"):
            parts[name] = np.empty(size, np.float32)
        lag = np.empty(size, np.int32)
        short, long = parts["s"], parts["l"]
        bank(values, begin, fresh, history, FINE_LAG0, self._lags.fine, LONG_FROM, short, long, lag)
        roughness(values, begin, fresh, history, parts["diff"], parts["lowr"])
        variance_shift(values, begin, fresh, history, parts["vs"])
        return expectation(values, begin, fresh, history, lag), lag

    def _coarse(self, segments: Segments, level: int, parts: dict[str, F32]) -> None:
        name, history = self.levels[level].name, self.levels[level].history
        values, begin, fresh = rows(segments, level)
        size = int(fresh.sum(dtype=np.int64))
        parts[name] = np.empty(size, np.float32)
        none, lag = np.empty(0, np.float32), np.empty(size, np.int32)
        lags = self._lags.c4 if name == "c4" else self._lags.c8
        bank(values, begin, fresh, history, COARSE_LAG0, lags, COARSE_LAG0, none, parts[name], lag)
        if name == "c8":
            parts["ls"] = np.empty(size, np.float32)
            level_shift(values, begin, fresh, history, parts["ls"])


def rows(segments: Segments, level: int) -> tuple[F32, I64, I32]:
    """The rows of a level as kernels take them."""
    values, begin, fresh = segments.rows(level)
    return readonly(values), readonly(begin), readonly(fresh)


def expectation(values: F32, begin: I64, fresh: I32, history: int, lag: I32) -> F32:
    """The value `lag` before each new one, NaN where there is no such lag."""
    # New value i of all lies at: its row's first new value, plus its place among the row's own.
    before = np.cumsum(fresh, dtype=np.int64) - fresh
    at = np.repeat(begin + history - before, fresh) + np.arange(lag.shape[0])
    return np.where(lag > 0, values[at - lag], NAN)
