"""What goes to a scorer and what comes back: the contract every model keeps.

A score is a function of the last H values of a key and of the model version, and of nothing else:
not of where batches were cut, of which keys travelled together, or of which scorer ran it. So any
scorer may retry any batch, and every alert can be computed again from its evidence.

A batch of K keys with C channels travels as *segments*. For each level (how coarse the values
are) and each key with T > 0 new values there, C rows of H + T float32 values: H values of history
(NaN where the key is younger than that), then the T new ones. Rows lie back to back in one array,
key after key, channel after channel:

    values of a level = [k0c0: H+T0][k0c1: H+T0]...[k1c0: H+T1]...     keys with T = 0 take no room

Levels: `fine` is the values themselves, `c4` and `c8` are means of aligned blocks of 4 and 8
values of the key's own count of records. All values are anchored: the key's first value of the
channel is subtracted in float64 before rounding to float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a key's history."""

    name: str  # one of LEVELS
    block: int  # values averaged into one
    history: int  # H: values before the new ones


FINE = Level("fine", 1, 590)  # 16 + 512 - 1 + 63: the farthest value the lag bank looks at
C4 = Level("c4", 4, 582)  # 8 + 512 - 1 + 63 blocks
C8 = Level("c8", 8, 326)  # 8 + 256 - 1 + 63 blocks
LEVELS = (FINE, C4, C8)  # what is kept of every key; a model may ask for less of each


@dataclass(frozen=True, slots=True)
class Component:
    """One number a scorer gives for each new value of a level; larger is stranger, NaN is "no say".

    `sustained` components are summed into the sustained score (dashboards, VUS-PR); `event`
    components are calibrated to tail probabilities, channel by channel, and judged together.
    `weighted` components are distances in the unit of the channel: where a key has several
    channels, the sustained score divides them by sqrt(unit * deviation) before the largest channel
    is taken, and a channel is blamed by them, in parts of its range, as much as by what is rare.
    `trust`, in (0, 1], is a component's part in what is said of a record: its tail probability is
    divided by it. Half of it suits what looks back over dozens of records.
    """

    name: str
    level: str = "fine"
    sustained: bool = False
    event: bool = True
    weighted: bool = True
    trust: float = 1.0


@dataclass(frozen=True, slots=True)
class Segments:
    """The model input of one batch; see the head of this file for the layout."""

    channels: int  # C
    levels: tuple[Level, ...]  # those the model asks for, each with the history it asks for
    fresh: I32  # (L, K) new values of each key on each level; one row for each of `levels`
    values: F32  # all rows of the first level, then of the second, ...

    def rows(self, level: int) -> tuple[F32, I64, I32]:
        """One level as (values, begin (R,), fresh (R,)), rows without new values left out.

        Row r is values[begin[r] : begin[r] + H + fresh[r]].
        """
        begin = 0
        for index, each in enumerate(self.levels):
            history = each.history
            fresh = np.repeat(self.fresh[index][self.fresh[index] > 0], self.channels)
            size = int(fresh.sum(dtype=np.int64)) + history * fresh.shape[0]
            if index == level:
                length = fresh.astype(np.int64) + history
                starts = np.zeros(fresh.shape[0], np.int64)
                np.cumsum(length[:-1], out=starts[1:])
                return self.values[begin : begin + size], starts, fresh
            begin += size
        raise AssertionError((level, self.levels))

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.values.nbytes + self.fresh.nbytes


@dataclass(frozen=True, slots=True)
class Scores:
    """What a scorer answers.

    `parts[name]` holds one float32 for each new value of that component's level, in row order
    (key after key, channel after channel, oldest first): length = C * sum of fresh on that level.
    `expected` is the value the model expected, anchored like the input, NaN where it cannot say,
    one for each new value of the fine level. `lag` says how many values ago the history looked
    most alike (0: none).
    """

    parts: Mapping[str, F32]
    expected: F32
    lag: I32
    version: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a lane must know of a model to feed it and to decide on its scores."""

    version: str
    levels: tuple[Level, ...]
    components: tuple[Component, ...]
    views: bool = False  # whether the decide stage's views are calibrated beside the components
    stage: str = ""  # a stage of the lane that scores itself (actors/stages.py); "": scorers do


def describe(scorer: "Scorer") -> ModelSpec:
    """The part of a scorer that lanes need."""
    views = bool(getattr(scorer, "views", False))
    stage = str(getattr(scorer, "stage", ""))
    return ModelSpec(scorer.version, scorer.levels, scorer.components, views, stage)


class Scorer(Protocol):
    """A model that is ready to score. Pure: no state survives a call."""

    @property
    def version(self) -> str:
        """`name@hash` of the artifact."""
        ...

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels the model reads; `history` may be shorter than what is kept (see LEVELS)."""
        ...

    @property
    def components(self) -> tuple[Component, ...]:
        """What it answers."""
        ...

    def score(self, segments: Segments) -> Scores:
        """Score one batch. Called by one thread at a time; must not keep or change `segments`."""
        ...
