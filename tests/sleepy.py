"""A scorer that takes a known time for each record, whatever the machine: for tests of scale.

It scores like `robustz` and then sleeps, so a pool of them has the same capacity on two busy cores
as on sixty-four: n scorers serve n / `record_s` records a second.
"""

import time
from typing import Any

from raywatch.models.robustz import RobustZ
from raywatch.models.scorer import Scores, Segments


class Sleepy(RobustZ):
    def __init__(
        self, *, version: str, weights: bytes | None, settings: dict[str, Any], device: str
    ) -> None:
        super().__init__(version=version)
        self.record_s = float(settings["record_s"])

    def score(self, segments: Segments) -> Scores:
        scores = super().score(segments)
        time.sleep(self.record_s * int(segments.fresh[0].sum()))
        return scores


class Broken:
    def __init__(self, **given: Any) -> None:
        raise ValueError("this version cannot be loaded")


class Late(RobustZ):
    """Takes `load_s` to be loaded: a rollout to it takes long enough to be looked at."""

    def __init__(
        self, *, version: str, weights: bytes | None, settings: dict[str, Any], device: str
    ) -> None:
        super().__init__(version=version)
        time.sleep(float(settings["load_s"]))
