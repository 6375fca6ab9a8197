"""What of a key's past is kept, and how does it reach a scorer?

Of each key and channel: the anchor (first finite value), the last 590 anchored values, 582 means
of aligned blocks of 4 and 326 of 8 (LEVELS, whatever the model asks), the sums of the blocks under
way, count, mean and M2 of all finite values (Welford), and the range of the first 500 of them, the
channel's *unit*. 6,064 bytes; nothing else of the past is needed by any scorer. A snapshot holds of
a young key only the values that it has had.

Blocks are aligned to the key's own count of records. A missing value repeats the last one of its
channel on all levels and is left out of the statistics. Values farther than 1e18 from the anchor
count as 1e18.

    weight(t) = 1 / sqrt(u sqrt(var + (.03 u)^2))     u: unit, var: variance, both including t

A channel without a unit (constant so far) takes the median unit of those channels that have one;
its weight is 0 where none has.

It does not know which scorer reads it, nor what a slot stands for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raywatch.models.errors import ArtifactError
from raywatch.models.kernel import readonly
from raywatch.models.kernel_history import (
    COLUMNS,
    COUNT,
    KEPT,
    RING,
    append_records,
    count_fresh,
    move_rings,
)
from raywatch.models.rows import Rows
from raywatch.models.scorer import F32, F64, I32, I64, LEVELS, Level, Segments

BLOCKS = tuple(level.block for level in LEVELS)
KEY_BYTES = RING * 4 + COLUMNS * 8  # of each channel of a key, beside 8 bytes for its count


@dataclass(frozen=True, slots=True)
class Appended:
    """What a batch added."""

    segments: Segments
    anchor: F64  # (K * C,) row order key, channel; NaN while the channel had no finite value
    weight: F32  # (sum T * C,) row order key, channel, time; empty where C == 1


class History:
    """The history of every key of a lane, by slot. One thread uses it."""

    def __init__(self, channels: int) -> None:
        assert channels > 0, channels
        self._channels = channels
        self._slots = 0
        self._index = Rows((), np.int64)
        self._stats = Rows((channels, COLUMNS), np.float64)
        self._rings = Rows((channels, RING), np.float32)
        for rows in (self._index, self._stats, self._rings):
            rows.reserve(1)

    def ensure(self, slots: int) -> None:
        """Make room for slots 0 .. slots - 1. Memory that no key has touched yet costs nothing."""
        self._slots = max(self._slots, slots)
        for rows in (self._index, self._stats, self._rings):
            rows.reserve(slots)

    def forget(self, slots: I64) -> None:
        """Make these slots those of keys that were never seen."""
        self._index.array[slots] = 0  # so no value of their rings counts
        self._stats.array[slots] = 0.0

    def append(self, touched: I32, counts: I32, values: F64, levels: tuple[Level, ...]) -> Appended:
        """Append a batch in grouped order and build the segments a model asks for.

        Args:
            touched: (K,) slots, each at most once, below what was ensured.
            counts: (K,) records of each, > 0.
            values: (N, C), N = sum of counts; NaN where a channel is missing.
            levels: some of LEVELS, each with at most the history that is kept.
        """
        keys, channels = touched.shape[0], self._channels
        assert values.shape == (int(counts.sum(dtype=np.int64)), channels), values.shape
        assert keys == 0 or self._slots > int(touched.max()), (keys, self._slots)
        kinds = np.array([_kind(level) for level in levels], np.int64)
        asked = np.array([level.history for level in levels], np.int64)
        blocks = np.array([level.block for level in levels], np.int64)

        fresh = np.empty((len(levels), keys), np.int32)
        touched, counts = readonly(touched), readonly(counts)
        count_fresh(self._index.array, touched, counts, blocks, fresh)
        sizes = channels * (fresh.sum(1, dtype=np.int64) + asked * np.count_nonzero(fresh, 1))
        begin = np.cumsum(sizes) - sizes

        out = np.empty(int(sizes.sum()), np.float32)
        anchor = np.empty(keys * channels)
        weight = np.empty(values.size if channels > 1 else 0, np.float32)
        append_records(
            self._index.array,
            self._stats.array,
            self._rings.array,
            touched,
            counts,
            readonly(values),
            kinds,
            asked,
            begin,
            out,
            anchor,
            weight,
        )
        return Appended(Segments(channels, levels, fresh, out), anchor, weight)

    def state(self) -> dict[str, NDArray[Any]]:
        """A copy of everything by slot; `rings`: what each key has had of its rings, in one row."""
        index = self._index.array[: self._slots].copy()
        rings = np.empty(_sizes(index, self._channels), np.float32)
        move_rings(index, self._rings.array, rings, True)
        return {"index": index, "stats": self._stats.array[: self._slots].copy(), "rings": rings}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over a state; what was here is gone. Raises ArtifactError where it does not fit."""
        slots = state["index"].shape[0] if "index" in state else 0
        index = np.array(state["index"] if slots else (), np.int64, order="C")
        if index.shape != (slots,) or not 0 <= index.min(initial=0) <= index.max(initial=0) < FAR:
            raise ArtifactError("history snapshot has counts that cannot be", hint=_HINT)
        shapes = {
            "index": (slots,),
            "stats": (slots, self._channels, COLUMNS),
            "rings": (_sizes(index, self._channels),),
        }
        for name, shape in shapes.items():
            found = state[name].shape if name in state else None
            if found != shape:
                raise ArtifactError(
                    f"history snapshot has `{name}` of shape `{found}`, expected `{shape}`",
                    hint=_HINT,
                )
        counts = state["stats"][:, :, COUNT]
        if not ((counts >= 0.0) & (counts <= index[:, np.newaxis])).all():
            raise ArtifactError("history snapshot has counts that cannot be", hint=_HINT)
        self.__init__(self._channels)
        self.ensure(slots)
        self._slots = slots
        self._index.array[:slots] = index
        self._stats.array[:slots] = state["stats"]
        rings = np.array(state["rings"], np.float32, order="C")
        move_rings(index, self._rings.array, rings, False)


FAR = 1 << 60  # No key has so many records: sums of sizes stay what they are in 64 bits.
_HINT = "it is of another version or number of channels: replay without it"


def _sizes(index: I64, channels: int) -> int:
    """Values in the rings of keys with so many records each."""
    held = (np.minimum(index // block, kept) for block, kept in zip(BLOCKS, KEPT, strict=True))
    return channels * int(sum(each.sum() for each in held))


def _kind(level: Level) -> int:
    for kind, kept in enumerate(LEVELS):
        if level.name == kept.name:
            assert level.block == kept.block, (level, kept)
            assert 0 < level.history <= kept.history, (level, kept)
            return kind
    raise AssertionError(level, LEVELS)
