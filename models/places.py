"""Where does state of a key lie that takes kilobytes? In rows, of which there are few.

A lane has more slots than keys: those that a batch displaced come back behind it. Of rows there are
never more than keys that are known at one time. A key has its row from its first record to the
record that displaces it, also within a batch; numbers of rows mean nothing, and a row that is given
again is zeros.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raywatch.models.pages import Layout, Pages
from raywatch.models.rows import Rows
from raywatch.models.scorer import I32, I64


def bytes_of(layout: Layout) -> int:
    """State of one key."""
    return sum(
        int(np.prod(tail, dtype=int)) * np.dtype(kind).itemsize for tail, kind in layout.values()
    )


class Places:
    """Rows of the keys of one lane. One thread uses it."""

    def __init__(self, layout: Layout, pages: Mapping[str, Pages] | None = None) -> None:
        """`pages`: what keys have beside their rows, by the prefix of its names."""
        self._layout, self._pages = dict(layout), dict(pages or {})
        self._row = Rows((), np.int32)  # by slot: its row + 1, 0: it has none
        self._slots = 0
        self._arrays = {n: Rows(tail, kind) for n, (tail, kind) in self._layout.items()}
        self._used, self._free = 0, list[int]()  # rows that were ever given, and that came back

    @property
    def rows(self) -> int:
        """Rows that were ever given to a key: what memory is taken for."""
        return self._used

    def ensure(self, slots: int) -> None:
        """Have room for slots 0 .. slots-1."""
        self._row.reserve(slots)
        self._slots = max(self._slots, slots)

    def pieces(self, count: int, gone: tuple[I64, I64]) -> Iterator[slice]:
        """Records between two that displaced keys; rows of these keys come back in between.

        `gone`: (G,) records that displaced keys, ascending, and (G,) the slots of these.
        """
        index, slots = gone
        begin = 0
        for at in np.unique(index).tolist():
            if at > begin:
                yield slice(begin, at)
            self._release(slots[index == at])
            begin = at
        if count > begin:
            yield slice(begin, count)

    def placed(self, slots: I32) -> I32:
        """(N,) rows of slots; those that have none are given one."""
        table = self._row.array
        new = np.unique(slots[table[slots] == 0])
        for slot in new.tolist():
            if self._free:
                row = self._free.pop()
                for each in self._arrays.values():
                    each.array[row] = 0
            else:
                row, self._used = self._used, self._used + 1
            table[slot] = row + 1
        for each in self._arrays.values() if new.shape[0] else ():
            each.reserve(self._used)
        for pages in self._pages.values() if new.shape[0] else ():
            pages.reserve(self._used)
        return table[slots] - np.int32(1)

    def _release(self, slots: I64) -> None:
        table = self._row.array
        rows = [row - 1 for row in table[slots].tolist() if row > 0]
        self._free += rows
        table[slots] = 0
        for pages in self._pages.values() if rows else ():
            pages.release(rows)

    def of(self, kind: Any, prefix: str = "", pages: Iterable[str] = ()) -> Any:
        """The arrays of one kernel, a named tuple: those of pages, then those of rows.

        Not to be kept: a view holds memory down.
        """
        paged = [each for name in pages for each in self._pages[name].tables()]
        names = kind._fields[len(paged) :]
        return kind(*paged, *(self._arrays[f"{prefix}{name}"].array for name in names))

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything remembered, as copies: `row` by slot, the rest by row, in order of slots."""
        rows = self._row.array[: self._slots]
        used = np.flatnonzero(rows)
        row = np.zeros(self._slots, np.int32)
        row[used] = np.arange(1, used.shape[0] + 1)
        found = {"row": row, **{n: a.array[rows[used] - 1] for n, a in self._arrays.items()}}
        for prefix, pages in self._pages.items():
            parts = pages.state(rows[used] - 1)
            found |= {f"{prefix}.{name}": each for name, each in parts.items()}
        return found

    def fits(self, saved: Mapping[str, NDArray[Any]]) -> bool:
        """Whether rows and shapes can be what `state` gave."""
        row = saved["row"]
        count = int(np.count_nonzero(row))
        sound = row.ndim == 1 and bool((row[row > 0] == np.arange(1, count + 1)).all())
        sound = sound and bool((row >= 0).all())
        sound = sound and all(
            saved[name].shape == (count, *tail) for name, (tail, _) in self._layout.items()
        )
        return sound and all(
            pages.fits(_below(saved, prefix), count) for prefix, pages in self._pages.items()
        )

    def load(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Replace everything by what `state` gave."""
        assert self.fits(saved), "rows that do not fit"
        row = saved["row"]
        count = int(np.count_nonzero(row))
        self._row = Rows((), np.int32)
        self._row.reserve(row.shape[0])
        self._row.array[: row.shape[0]] = row
        self._slots, self._used, self._free = row.shape[0], count, []
        for name, (tail, kind) in self._layout.items():
            fresh = Rows(tail, kind)
            fresh.reserve(count)
            fresh.array[:count] = saved[name]
            self._arrays[name] = fresh
        for prefix, pages in self._pages.items():
            pages.load(_below(saved, prefix), count)


def _below(saved: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """What stands below a prefix."""
    begin = len(prefix) + 1
    return {name[begin:]: each for name, each in saved.items() if name.startswith(f"{prefix}.")}
