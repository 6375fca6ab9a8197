"""Robust z-score: the baseline that every other scorer has to beat.

    z = |x - median| / max(1.4826 MAD, 1 % of the range, 1e-6 of the largest)

over the 64 values before x; bounded by 1e4, which is what a window of equal values says of any
other value. No say until 16 values are there. The value expected is the median. A level that has
moved is strange for 32 values, then the median is there too.
"""

import numpy as np

from raywatch.models.kernel import readonly
from raywatch.models.kernel_window import WINDOW, robust_z
from raywatch.models.scorer import FINE, Component, Level, Scores, Segments


class RobustZ:
    """The robust z-score on a CPU."""

    levels = (Level(FINE.name, FINE.block, WINDOW),)
    components = (Component("z", sustained=True, weighted=False),)

    def __init__(self, version: str) -> None:
        self.version = version

    def score(self, segments: Segments) -> Scores:
        """Score one batch."""
        assert segments.levels == self.levels, (segments.levels, self.levels)
        values, begin, fresh = segments.rows(0)
        size = int(fresh.sum(dtype=np.int64))
        score = np.empty(size, np.float32)
        expected = np.empty(size, np.float32)
        robust_z(readonly(values), readonly(begin), readonly(fresh), WINDOW, score, expected)
        return Scores({"z": score}, expected, np.zeros(size, np.int32), self.version)
