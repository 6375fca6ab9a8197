"""Chunks of records become one batch of columns."""

from collections.abc import Sequence

import numpy as np

from raywatch.actors.ports import Fetched, Headers
from raywatch.models.scorer import I32, I64

FETCH_BYTES = 16 << 20  # A fetch ends when it has so much: what comes then is for the next one.
CHUNK_BYTES = 4 << 20  # Of messages that are taken out of a client's queue at once.


class Gathered:
    """What one fetch has so far."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._partition: list[I32] = []
        self._offset: list[I64] = []
        self._time_ms: list[I64] = []
        self._values: list[bytes | None] = []
        self._keys: list[bytes | None] = []
        self._headers: list[Headers] = []

    def __len__(self) -> int:
        return len(self._values)

    def add(
        self,
        partition: I32,
        offset: I64,
        time_ms: I64,
        values: list[bytes | None],
        keys: list[bytes | None],
        headers: Sequence[Headers] = (),
    ) -> None:
        """Take columns of some records, at least one; keys and headers only if they are asked."""
        assert len(partition) == len(offset) == len(time_ms) == len(values) > 0, len(values)
        self.nbytes += sum(map(len, filter(None, values))) + sum(map(len, filter(None, keys)))
        self._partition.append(partition)
        self._offset.append(offset)
        self._time_ms.append(time_ms)
        self._values += values
        self._keys += keys
        self._headers += headers

    def want(self, limit: int, most: int) -> int:
        """How many records to ask for next, at most `most` at once; 0: enough.

        As many as made CHUNK_BYTES by the size of those that came.
        """
        if self.nbytes >= FETCH_BYTES:
            return 0
        fit = CHUNK_BYTES * len(self) // max(1, self.nbytes) if self.nbytes else most
        return min(most, limit - len(self), max(1, fit))

    def fetched(self) -> Fetched:
        """Everything that was added, in that order."""
        if not self._values:
            none = np.zeros(0, np.int64)
            return Fetched(np.zeros(0, np.int32), none, none, [], [])
        return Fetched(
            np.concatenate(self._partition),
            np.concatenate(self._offset),
            np.concatenate(self._time_ms),
            self._values,
            self._keys,
            self._headers,
            self.nbytes,
        )


def joined(parts: Sequence[Fetched]) -> Fetched:
    """Several fetches, at least one, as one batch."""
    if len(parts) == 1:
        return parts[0]
    return Fetched(
        np.concatenate([p.partition for p in parts]),
        np.concatenate([p.offset for p in parts]),
        np.concatenate([p.time_ms for p in parts]),
        [v for p in parts for v in p.values],
        [k for p in parts for k in p.keys],
        nbytes=sum(p.nbytes for p in parts),
    )
