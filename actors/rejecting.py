"""How many rejects are written when everything is rejected?

A flood of garbage must not become a flood of writes, and nothing may be passed over in silence. Of
each WINDOW offsets of a partition (0 to 999, 1,000 to 1,999, ...) the first `rejects_max` rejects
are written whole; the others are counted by reason, and one more record, `many rejects`, says how
many there were. It is written with the first record of the partition, of whatever kind, that lies
beyond the window: so it belongs to that record's transaction, is written once, and a replay writes
the same. Offsets, and not a clock: no second is the same in a replay.

State is (P, COLUMNS) int64: a window's number, rejects written, first and last offset of those that
were only counted, and their number by reason.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raywatch.actors.records import REASONS, Records, Reject
from raywatch.models.errors import ArtifactError
from raywatch.models.scorer import I64

WINDOW = 1_000  # offsets
MANY = "many rejects"  # the reason that the counting record gives
NUMBER, WRITTEN, FIRST, LAST, COUNTS = range(5)  # columns; from the last one on: by reason
COLUMNS = COUNTS + len(REASONS)


class Rejecting:
    """Which rejects of a lane are written. One thread uses it."""

    def __init__(self, most: int, partitions: int) -> None:
        """`most` of a window are written whole."""
        assert most >= 0, most
        self._most = most
        self._state: I64 = np.zeros((partitions, COLUMNS), np.int64)
        self._state[:, NUMBER] = -1

    def sift(self, records: Records) -> list[Reject]:
        """Of a batch, the rejects to write, by partition and offset. Batches come in order."""
        waiting = np.flatnonzero(self._state[:, COUNTS:].any(axis=1)).tolist()
        rejects: dict[int, list[Reject]] = {part: [] for part in waiting}
        for reject in records.rejects:
            rejects.setdefault(reject.partition, []).append(reject)
        return [
            each for part in sorted(rejects) for each in self._of_part(records, part, rejects[part])
        ]

    def _of_part(self, records: Records, part: int, rejects: list[Reject]) -> Iterator[Reject]:
        offsets = records.offset[records.partition == part]
        state = self._state[part]
        for reject in sorted(rejects, key=lambda each: each.offset):
            if reject.offset // WINDOW != state[NUMBER]:
                yield from self._ended(part, offsets, reject.offset)
                state[:] = 0
                state[NUMBER] = reject.offset // WINDOW
            if state[WRITTEN] < self._most:
                state[WRITTEN] += 1
                yield reject
                continue
            counts = state[COUNTS:]
            if not counts.any():
                state[FIRST] = reject.offset
            state[LAST] = reject.offset
            counts[REASONS.index(reject.reason)] += 1
        yield from self._ended(part, offsets, None)

    def _ended(self, part: int, offsets: I64, reject: int | None) -> Iterator[Reject]:
        """The record that counts, once the batch reaches beyond the window (`reject` does)."""
        state = self._state[part]
        counts = state[COUNTS:]
        if not counts.any():
            return
        beyond = offsets[offsets >= (state[NUMBER] + 1) * WINDOW]
        reached = [int(each) for each in beyond[:1]] + ([] if reject is None else [reject])
        if not reached:
            return
        total = int(counts.sum())
        why = ", ".join(f"{n:,} {REASONS[i]}" for i, n in enumerate(counts.tolist()) if n)
        words = f"{total:,} more from offset {state[FIRST]} to {state[LAST]}: {why}"
        yield Reject(part, min(reached), MANY, words, None, count=total)
        counts[:] = 0

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything remembered, by partition."""
        return {"windows": self._state.copy()}

    def load(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Replace everything by what `state` gave. Raises ArtifactError where it is none."""
        found = saved.get("windows")
        if found is None or found.shape != self._state.shape or found.min(initial=0) < -1:
            raise ArtifactError(
                "state of the rejects does not fit",
                hint="delete this snapshot: an older one, or none, gives the same after a replay",
            )
        self._state[:] = found
