"""Where does a key keep rows of which it may need many, and mostly needs few? In pages that split.

A key has SETS entries, each the number of a page of WAYS rows; a code is in the page that the entry
of its low bits names. At first one page stands for all entries. A full one is split in two by the
next bit of its codes, and rows of one set stay in their order (extendible hashing: Fagin et al.
1979, ACM TODS 4:315). Only a page that stands for a single set forgets: the code in it that was
looked for longest ago. So what is known is what a shelf of SETS * WAYS rows would know
(log_shelf.py), bit for bit, and memory follows use; at most one page for each entry.

Pages of all keys lie in one pool. Their numbers mean nothing, and one that is given is zeros: what
is in it is a function of the key's records alone.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import literal_unroll, njit
from numpy.typing import NDArray

from raywatch.models.log_shelf import WAYS
from raywatch.models.rows import Rows
from raywatch.models.scorer import I32, I64, U8

U64 = NDArray[np.uint64]
Layout = Mapping[str, tuple[tuple[int, ...], Any]]  # shape and kind of each array, by row

USED, FREE, STACK = range(3)  # of the stock: pages ever given, pages that came back, and these


class Shelf(NamedTuple):
    """Which page each key has where, and the codes in it."""

    # (S, SETS) page + 1, 0: none; all entries of a key have one, or none, where it splits
    page: I32
    depth: U8  # (P,) bits of a code that all codes of a page share
    stock: I32  # (STACK + P,)
    code: U64  # (P * WAYS,) 0: free


@njit(cache=True, nogil=True)
def find(
    page: I32, depth: U8, codes: U64, stamps: I64, slot: int, code: np.uint64
) -> tuple[int, bool]:
    """The row of a code, and whether it was there; changes nothing.

    If it was not, the row it may take: the first free one, or in a page of one set that of the code
    unseen for longest; -1: there is to be `room` first. The arrays are those of a Shelf, which
    would count references; `stamps`: (P * WAYS,), when each code was last looked for.
    """
    sets = page.shape[1]
    first = (page[slot, int(code & np.uint64(sets - 1))] - 1) * WAYS
    if first < 0:
        return -1, False
    for row in range(first, first + WAYS):
        if codes[row] == code:
            return row, True
    spare = first
    for row in range(first, first + WAYS):
        if codes[row] == 0:
            return row, False
        if stamps[row] < stamps[spare]:
            spare = row
    return spare if 1 << depth[first // WAYS] >= sets else -1, False


@njit(cache=True, nogil=True)
def fresh(shelf: Shelf, rows: Any, deep: int) -> int:
    """A page of zeros. `rows`: every array of rows beside the codes."""
    depth, stock = shelf.depth, shelf.stock
    if stock[FREE] > 0:
        stock[FREE] -= 1
        page = int(stock[STACK + stock[FREE]])
    else:
        page = int(stock[USED])
        stock[USED] += 1
    depth[page] = deep
    begin, end = page * WAYS, (page + 1) * WAYS
    shelf.code[begin:end] = 0
    for each in literal_unroll(rows):
        each[begin:end] = 0
    return page


@njit(cache=True, nogil=True)
def room(shelf: Shelf, stamps: I64, rows: Any, slot: int, code: np.uint64) -> int:
    """Make room for a code for which `find` has none, and return its row.

    Rows of the key may move: none that was found before is valid. `rows`: see `fresh`.
    """
    page, depth, _, codes = shelf
    entry, row = int(code & np.uint64(page.shape[1] - 1)), -1
    while row < 0:
        if page[slot, entry] == 0:
            page[slot] = fresh(shelf, rows, 0) + 1
        else:
            _split(shelf, rows, slot, entry)
        row, _ = find(page, depth, codes, stamps, slot, code)
    return row


@njit(cache=True, nogil=True)
def _split(shelf: Shelf, rows: Any, slot: int, entry: int) -> None:
    """Split the page of an entry by the next bit."""
    page, depth, _, codes = shelf
    old = page[slot, entry] - 1
    bit = int(depth[old])
    new = fresh(shelf, rows, bit + 1)
    depth[old] = bit + 1
    low = entry & ((1 << bit) - 1)
    for each in range(low + (1 << bit), page.shape[1], 2 << bit):
        page[slot, each] = new + 1
    kept, moved = old * WAYS, new * WAYS
    for row in range(old * WAYS, (old + 1) * WAYS):
        code = codes[row]
        if code == 0:
            continue
        if (code >> np.uint64(bit)) & np.uint64(1):
            to, moved = moved, moved + 1
        else:
            to, kept = kept, kept + 1
        if to != row:
            codes[row], codes[to] = 0, code
            _move(rows, row, to)


@njit(cache=True, nogil=True)
def _move(rows: Any, row: int, to: int) -> None:
    for each in literal_unroll(rows):
        each[to] = each[row]


@njit(cache=True, nogil=True)
def leave(shelf: Shelf, slot: int, entry: int) -> None:
    """Give the page of an entry back if it is empty, where its twin can stand for both."""
    page, depth, stock, codes = shelf
    while page[slot, entry] > 0:
        empty = page[slot, entry] - 1
        for row in range(empty * WAYS, (empty + 1) * WAYS):
            if codes[row] != 0:
                return
        bits = int(depth[empty])
        if bits == 0:
            page[slot] = 0
        else:
            twin = page[slot, entry ^ (1 << (bits - 1))] - 1
            if twin < 0 or depth[twin] != bits:
                return
            for each in range(entry & ((1 << bits) - 1), page.shape[1], 1 << bits):
                page[slot, each] = twin + 1
            depth[twin] = bits - 1
        stock[STACK + stock[FREE]] = empty
        stock[FREE] += 1


class Pages:
    """The pages of one kind of the keys of one lane, by row of the key. One thread uses it."""

    def __init__(self, entries: int, layout: Layout) -> None:
        """`layout`: of a row, `code` not among it. `entries`: of a key, a power of two."""
        assert entries & (entries - 1) == 0, entries
        self._entries, self._depth_max = entries, entries.bit_length() - 1
        self._layout = {"code": ((), np.uint64), **layout}
        self._begin()

    def _begin(self) -> None:
        self._page = Rows((self._entries,), np.int32)
        self._depth, self._stock = Rows((), np.uint8), Rows((), np.int32)
        self._rows = {name: Rows(tail, kind) for name, (tail, kind) in self._layout.items()}

    @property
    def key_bytes_max(self) -> int:
        """State of a key that has a page for each entry."""
        rows = WAYS * sum(each.row_bytes for each in self._rows.values())
        page = self._page.row_bytes // self._entries
        return self._entries * (page + self._depth.row_bytes + self._stock.row_bytes + rows)

    @property
    def used(self) -> int:
        """Pages that keys have."""
        stock = self._stock.array
        return int(stock[USED] - stock[FREE]) if stock.shape[0] else 0

    def reserve(self, keys: int) -> None:
        """Have room for all that so many keys may need: a promise, which takes no memory."""
        self._page.reserve(keys)
        self._depth.reserve(keys * self._entries)
        self._stock.reserve(STACK + keys * self._entries)
        for each in self._rows.values():
            each.reserve(keys * self._entries * WAYS)

    def tables(self) -> tuple[Any, ...]:
        """The Shelf, then the arrays of rows. Not to be kept: a view holds memory down."""
        code, *rest = (each.array for each in self._rows.values())
        return Shelf(self._page.array, self._depth.array, self._stock.array, code), *rest

    def release(self, keys: list[int]) -> None:
        """Take the pages of these keys back."""
        table, stock = self._page.array, self._stock.array
        pages = np.unique(table[keys])
        pages = pages[pages > 0] - 1
        begin = STACK + int(stock[FREE])
        stock[begin : begin + pages.shape[0]] = pages
        stock[FREE] += pages.shape[0]
        table[keys] = 0

    def state(self, keys: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Pages of these keys, numbered as they are first met, as copies."""
        table = self._page.array[keys]
        pages, first, where = np.unique(table, return_index=True, return_inverse=True)
        none = int(pages.shape[0] > 0 and pages[0] == 0)
        order = none + np.argsort(first[none:])
        number = np.zeros(pages.shape[0], np.int32)
        number[order] = np.arange(1, order.shape[0] + 1)
        pages = pages[order].astype(np.int64) - 1
        rows = (pages[:, None] * WAYS + np.arange(WAYS)).reshape(-1)
        return {
            "page": number[where].reshape(table.shape),
            "depth": self._depth.array[pages],
            **{name: each.array[rows] for name, each in self._rows.items()},
        }

    def fits(self, saved: Mapping[str, NDArray[Any]], keys: int) -> bool:
        """Whether it can be what `state` gave of so many keys."""
        table, depth = saved["page"], saved["depth"]
        count = depth.shape[0]
        shapes = {"page": (keys, self._entries), "depth": (count,)}
        shapes |= {name: (count * WAYS, *tail) for name, (tail, _) in self._layout.items()}
        if any(saved[name].shape != shape for name, shape in shapes.items()):
            return False
        if not ((table >= 0) & (table <= count)).all() or depth.max(initial=0) > self._depth_max:
            return False
        # Each page is named, by one key, as often as its depth says.
        flat = table.astype(np.int64) + (np.arange(keys) * (count + 1))[:, None]
        named, often = np.unique(flat[table > 0], return_counts=True)
        page = named % (count + 1) - 1
        known = np.array_equal(np.sort(page), np.arange(count))
        return known and bool((often == self._entries >> depth[page].astype(int)).all())

    def load(self, saved: Mapping[str, NDArray[Any]], keys: int) -> None:
        """Replace everything by what `state` gave of so many keys."""
        assert self.fits(saved, keys), "pages that do not fit"
        self._begin()
        self.reserve(keys)
        count = saved["depth"].shape[0]
        self._page.array[:keys], self._depth.array[:count] = saved["page"], saved["depth"]
        if keys:
            self._stock.array[USED] = count
        for name, each in self._rows.items():
            each.array[: count * WAYS] = saved[name]
