"""The version of a class that lanes score themselves: a pool holds it, and never asks it."""

import numpy as np

from raywatch.models.scorer import Component, Level, Scores, Segments


class Unasked:
    """A scorer without levels. A class has `components` and a `stage` (actors/stages.py)."""

    levels: tuple[Level, ...] = ()
    components: tuple[Component, ...] = ()
    stage = ""

    def __init__(self, version: str) -> None:
        self.version = version

    def score(self, segments: Segments) -> Scores:
        """Nothing to nothing: no level is asked for."""
        assert segments.fresh.shape[0] == 0, segments.fresh.shape
        return Scores({}, np.zeros(0, np.float32), np.zeros(0, np.int32), self.version)
