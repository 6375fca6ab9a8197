"""What a lane says of itself while it works."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raywatch.actors.ports import Partition
from raywatch.models.incident import Decided

State = Literal["opening", "catching up", "running", "waiting", "blocked", "fenced", "stopped"]

CHECKED = (1e-3, 1e-4)  # tail probabilities that are held against what came, beside `alert`'s own


class Tally(NamedTuple):
    """How many records were judged, and how many of them were said to be how rare.

    Judged are those that might have alerted: of a key, or a partition, that is past its warm-up.
    """

    judged: int = 0
    first: int = 0  # at or below the first of CHECKED,
    second: int = 0  # at or below the second,
    alerting: int = 0  # and at or below `alert.probability`
    held: int = 0  # incidents that `alert.per_day` did not let open at once

    def plus(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def less(self, other: "Tally") -> "Tally":
        """What came since `other`."""
        return Tally(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


def tally(decided: Decided, probability: float, spoken: NDArray[np.bool_]) -> Tally:
    """Of a batch. `spoken`: (N,) in grouped order, records that were not judged before."""
    judged = (decided.judged > 0) & spoken
    p = decided.p[judged]
    first, second, alerting = (int(np.count_nonzero(p <= each)) for each in (*CHECKED, probability))
    held = int(np.count_nonzero(decided.judged[judged] == 2))
    return Tally(p.shape[0], first, second, alerting, held)


@dataclass(slots=True)
class LaneStats:
    """Counters of one lane since it was first opened; read by other threads."""

    state: State = "opening"
    words: str = ""
    opened: int = 0
    records: int = 0
    rejects: int = 0
    alerts: int = 0
    commits: int = 0
    in_flight: int = 0
    keys: int = 0
    labels: dict[str, int] = field(default_factory=lambda: {})  # what became of them
    late: int = 0  # payments and labels that came too late for their place (joining.py)
    evicted: int = 0  # keys that were forgotten since the lane was last opened
    tally: Tally = field(default_factory=Tally)  # of records that this lane committed
    # Offsets that the commit under way has, and what it counts: nobody knows yet whether it does.
    tried: tuple[Mapping[Partition, int], Tally] = field(default_factory=lambda: ({}, Tally()))
    version: str = ""
    version_since: dict[str, int] = field(default_factory=lambda: {})  # partition -> first offset
    committed: dict[str, int] = field(default_factory=lambda: {})
    position: dict[str, int] = field(default_factory=lambda: {})
    delay_ms: deque[float] = field(default_factory=lambda: deque(maxlen=512))
    snapshot: str = ""

    def settle(self, committed: Mapping[Partition, int]) -> None:
        """Count what was tried, if that is what is committed now.

        Whoever counted records as it decides on them would count those twice that are decided on
        again: by its successor, or by itself, where a commit failed.
        """
        offsets, tally = self.tried
        if offsets and all(committed.get(p) == offset for p, offset in offsets.items()):
            self.tally = self.tally.plus(tally)
        self.tried = {}, Tally()
