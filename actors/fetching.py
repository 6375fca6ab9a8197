"""Chunks of records become one batch of columns."""

from collections.abc import Sequence

import numpy as np

from raywatch.actors.ports import Fetched, Headers
from raywatch.models.scorer import I32, I64


class Gathered:
    """What one fetch has so far."""

    def __init__(self) -> None:
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
        self._partition.append(partition)
        self._offset.append(offset)
        self._time_ms.append(time_ms)
        self._values += values
        self._keys += keys
        self._headers += headers

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
    )
