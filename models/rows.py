"""How does an array of a million rows get room for more, without a pause and without a copy?

It lies in anonymous memory of its own, which the kernel moves by its page table (mremap) when it
has to: to double 6 GB takes milliseconds, and never twice the room. Pages that no row was written
to take none, so capacity is only a promise; new rows are zero.
"""

import mmap
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

ROWS_MIN = 64  # rows at first; doubled when they do not do
NORESERVE = 0x4000  # MAP_NORESERVE of Linux: capacity does not count as memory that is in use


class Rows:
    """An array that grows by rows: `array` has shape (capacity, *tail). One thread uses it."""

    def __init__(self, tail: tuple[int, ...], dtype: DTypeLike) -> None:
        self._tail, self._dtype = tail, np.dtype(dtype)
        self.row_bytes = prod(tail) * self._dtype.itemsize
        self._map: mmap.mmap | None = None
        self.array: NDArray[Any] = np.zeros((0, *tail), self._dtype)

    def reserve(self, rows: int) -> None:
        """Have room for so many rows. Views of `array` that somebody kept stay with what was."""
        before = self.array.shape[0]
        if rows <= before:
            return
        capacity = max(rows, 2 * before, ROWS_MIN)
        if self.row_bytes == 0:
            self.array = np.zeros((capacity, *self._tail), self._dtype)
            return
        size = capacity * self.row_bytes
        self.array = np.zeros((0, *self._tail), self._dtype)  # a view would hold the memory down
        old = self._map
        if old is not None:
            try:
                old.resize(size)
                self.array = self._rows(old, capacity)
                return
            except BufferError:  # somebody kept a view: it stays valid, at the price of a copy
                pass
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
        self.array = self._rows(self._map, capacity)
        if old is not None:
            self.array[:before] = self._rows(old, before)

    def _rows(self, memory: mmap.mmap, count: int) -> NDArray[Any]:
        flat = np.frombuffer(memory, self._dtype, count * prod(self._tail))
        return flat.reshape((count, *self._tail))
