"""Which slot does a record's key have, and which records of a batch share one?

A slot belongs to one (partition, key): slots are handed out in order of first appearance, so they
are a function of the order in which records came and of nothing else. The table is open addressing
with linear probing on a 64-bit hash, at most half full; the bytes of all keys lie in one arena.

`group` sorts a batch by slot, stably, with a radix sort: its cost depends on the batch alone, not
on how many keys there are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.actors.decode import decode
from raywatch.actors.grammar import iso_ms_of
from raywatch.actors.ports import Fetched
from raywatch.actors.records import Records, RecordSpec
from raywatch.models.errors import ArtifactError
from raywatch.models.scorer import I32, I64, U8

CAPACITY_MIN = 1_024  # cells of an empty table
ARENA_MIN = 16_384  # bytes of an empty arena
HASH_ALL = 2**64 - 1
AHEAD = 64  # records whose keys are looked up together
RADIX_BITS = 11  # a pass sorts by this many bits: 2,048 counters stay in the first-level cache


class KeyTable:
    """Slots of at most `keys_max` keys.

    `hash_mask` is which bits of a hash count; tests leave few, so that different keys collide.
    """

    def __init__(self, keys_max: int, *, hash_mask: int = HASH_ALL) -> None:
        assert 0 < keys_max < 2**31, keys_max
        self._keys_max = keys_max
        self._hash_mask = np.uint64(hash_mask)
        self._count = 0
        self._used = 0  # bytes of the arena that hold keys
        # What is looked at together lies together: with many keys, time is cache misses.
        self._cells: I64 = np.full((CAPACITY_MIN, 2), -1, np.int64)  # slot (-1: empty), hash
        self._slots: I64 = np.zeros((CAPACITY_MIN // 2, 3), np.int64)  # begin, size, partition
        self._arena: U8 = np.zeros(ARENA_MIN, np.uint8)

    def __len__(self) -> int:
        return self._count

    def key(self, slot: int) -> bytes:
        """The key of a slot."""
        assert 0 <= slot < self._count, (slot, self._count)
        begin, size, _ = self._slots[slot].tolist()
        return self._arena[begin : begin + size].tobytes()

    def partition(self, slot: int) -> int:
        """The partition of a slot: an index into the lane's tuple."""
        assert 0 <= slot < self._count, (slot, self._count)
        return int(self._slots[slot, 2])

    def intern(self, records: Records) -> I32:
        """(N,) slot of each record; -1 for a new key when the table is full."""
        return self._intern(records.partition, records.text, records.key_begin, records.key_size)

    def state(self) -> dict[str, NDArray[Any]]:
        """The table as arrays: partition (S,), size (S,), text (keys back to back, by slot)."""
        return {
            "partition": self._slots[: self._count, 2].astype(np.int32),
            "size": self._slots[: self._count, 1].astype(np.int32),
            "text": self._arena[: self._used].copy(),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Become the table that gave `state`. Raises ArtifactError where it is torn.

        A state of more than `keys_max` keys is taken whole: the table is then full.
        """
        hint = "delete this snapshot: an older one, or none, gives the same state after a replay"
        if missing := {"partition", "size", "text"} - set(state):
            raise ArtifactError(f"the key table lacks `{min(missing)}`", hint=hint)
        partition, size = state["partition"].astype(np.int32), state["size"].astype(np.int32)
        text = state["text"].astype(np.uint8)
        whole = partition.shape == size.shape and size.sum(dtype=np.int64) == text.shape[0]
        if not whole or size.min(initial=0) < 0:
            raise ArtifactError(f"the key table of `{size.shape[0]}` keys is torn", hint=hint)
        fresh = KeyTable(max(self._keys_max, size.shape[0]), hash_mask=int(self._hash_mask))
        begin = np.cumsum(size, dtype=np.int64) - size
        slots = fresh._intern(partition, text, begin, size)
        if not np.array_equal(slots, np.arange(size.shape[0])):
            raise ArtifactError("a key stands in the key table twice", hint=hint)
        keys_max = self._keys_max
        self.__dict__.update(fresh.__dict__)
        self._keys_max = keys_max

    def _intern(self, partition: I32, text: U8, begin: I64, size: I32) -> I32:
        slots = np.empty(begin.shape[0], np.int32)
        partition, text, begin, size = map(_fixed, (partition, text, begin, size))
        done = 0
        while True:
            done, self._count, self._used, _ = _intern(
                partition, text, begin, size, done, slots, self._cells, self._slots, self._arena,
                self._count, self._used, self._keys_max, self._hash_mask,
            )  # fmt: skip
            if done == begin.shape[0]:
                return slots
            self._grow(int(size[done]))

    def _grow(self, size: int) -> None:
        """Make room for one more slot and `size` more bytes, by doubling."""
        if self._count == self._slots.shape[0]:
            self._slots = _doubled(self._slots)
            cells = np.full((self._cells.shape[0] * 2, 2), -1, np.int64)
            _place(self._cells, cells)
            self._cells = cells
        while self._used + size > self._arena.shape[0]:
            self._arena = _doubled(self._arena)


def _fixed(array: NDArray[Any]) -> NDArray[Any]:
    """The same array, read-only and contiguous: kernels are compiled for that kind alone.

    For another kind numba would compile anew, for seconds, in the middle of a lane's work.
    """
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def _doubled(array: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate((array, np.zeros_like(array)))


@njit(cache=True, nogil=True)
def _hashed(text: U8, begin: int, size: int, partition: int) -> np.uint64:
    """64-bit hash of a key in a partition: multiply and fold eight bytes at a time."""
    prime = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth, TAOCP 3, 6.4)
    fold = np.uint64(32)
    state = (np.uint64(partition) + np.uint64(1)) * prime ^ np.uint64(size)
    word, filled = np.uint64(0), 0
    for index in range(begin, begin + size):
        word = (word << np.uint64(8)) | np.uint64(text[index])
        filled += 1
        if filled == 8:
            state = (state ^ word) * prime
            state ^= state >> fold
            word, filled = np.uint64(0), 0
    state = (state ^ word) * prime
    state = (state ^ (state >> fold)) * prime
    return state ^ (state >> np.uint64(29))


@njit(cache=True, nogil=True)
def _place(old: I64, cells: I64) -> None:
    """Put what is in `old` into empty cells."""
    mask = cells.shape[0] - 1
    for index in range(old.shape[0]):
        if old[index, 0] >= 0:
            cell = old[index, 1] & mask
            while cells[cell, 0] >= 0:
                cell = (cell + 1) & mask
            cells[cell, 0], cells[cell, 1] = old[index, 0], old[index, 1]


@njit(cache=True, nogil=True)
def _equal(arena: U8, known: int, text: U8, begin: int, size: int) -> bool:
    """Whether `size` bytes are the same in both."""
    k = 0
    while k < size and arena[known + k] == text[begin + k]:
        k += 1
    return k == size


@njit(cache=True, nogil=True)
def _ahead(
    partition: I32,
    text: U8,
    begin: I64,
    size: I32,
    first: int,
    cells: I64,
    slots: I64,
    arena: U8,
    hash_mask: np.uint64,
    hashes: I64,
) -> int:
    """Hash the next AHEAD records and touch what they will need, all of it at once.

    With a million keys each look is a cache miss; misses that do not wait for each other overlap.
    Returns a number nobody needs, so that the looks are not optimised away.
    """
    mask, touched = cells.shape[0] - 1, 0
    last = min(first + AHEAD, begin.shape[0])
    for index in range(first, last):
        hashed = _hashed(text, begin[index], size[index], partition[index]) & hash_mask
        hashes[index - first] = np.int64(hashed)
    for index in range(last - first):
        touched += cells[hashes[index] & mask, 0]
    for index in range(last - first):
        slot = cells[hashes[index] & mask, 0]
        touched += slots[max(slot, 0), 0]
    for index in range(last - first):
        slot = cells[hashes[index] & mask, 0]
        touched += np.int64(arena[slots[max(slot, 0), 0]])
    return int(touched)


@njit(cache=True, nogil=True)
def _intern(
    partition: I32,
    text: U8,
    begin: I64,
    size: I32,
    done: int,
    out: I32,
    cells: I64,
    slots: I64,
    arena: U8,
    count: int,
    used: int,
    keys_max: int,
    hash_mask: np.uint64,
) -> tuple[int, int, int, int]:
    """Fill out[done:]; stops before a new key that there is no room for.

    Returns records done, slots and bytes of the arena in use, and what `_ahead` says.
    """
    mask = cells.shape[0] - 1
    hashes, touched = np.empty(AHEAD, np.int64), 0
    for index in range(done, begin.shape[0]):
        if (index - done) % AHEAD == 0:
            touched += _ahead(
                partition, text, begin, size, index, cells, slots, arena, hash_mask, hashes
            )
        source, length, part = begin[index], size[index], partition[index]
        hashed = hashes[(index - done) % AHEAD]
        cell = hashed & mask
        found = -1
        while cells[cell, 0] >= 0:
            slot = cells[cell, 0]
            if (
                cells[cell, 1] == hashed
                and slots[slot, 1] == length
                and slots[slot, 2] == part
                and _equal(arena, slots[slot, 0], text, source, length)
            ):
                found = slot
                break
            cell = (cell + 1) & mask
        if found < 0 and count < keys_max:
            if count == slots.shape[0] or used + length > arena.shape[0]:
                return index, count, used, touched
            found = count
            cells[cell, 0], cells[cell, 1] = found, hashed
            slots[found, 0], slots[found, 1], slots[found, 2] = used, length, part
            arena[used : used + length] = text[source : source + length]
            count, used = count + 1, used + length
        out[index] = found
    return begin.shape[0], count, used, touched


@njit(cache=True, nogil=True)
def _sorted(slots: I32) -> I64:
    """(N,) the stable order of `slots`, all of them >= 0: least significant digits first."""
    count = slots.shape[0]
    highest = 0
    for index in range(count):
        highest = max(highest, slots[index])
    order, spare = np.arange(count), np.empty(count, np.int64)
    shift = 0
    while shift == 0 or highest >> shift > 0:
        place = np.zeros((1 << RADIX_BITS) + 1, np.int64)
        for index in range(count):
            place[((slots[index] >> shift) & ((1 << RADIX_BITS) - 1)) + 1] += 1
        for digit in range(1 << RADIX_BITS):
            place[digit + 1] += place[digit]
        for index in range(count):
            source = order[index]
            digit = (slots[source] >> shift) & ((1 << RADIX_BITS) - 1)
            spare[place[digit]] = source
            place[digit] += 1
        order, spare = spare, order
        shift += RADIX_BITS
    return order


@njit(cache=True, nogil=True)
def _runs(slots: I32, order: I64) -> tuple[I32, I32]:
    """Each slot that occurs, ascending, and how often."""
    touched, counts = np.empty(order.shape[0], np.int32), np.empty(order.shape[0], np.int32)
    runs = 0
    for index in range(order.shape[0]):
        slot = slots[order[index]]
        if runs == 0 or touched[runs - 1] != slot:
            touched[runs], counts[runs] = slot, 0
            runs += 1
        counts[runs - 1] += 1
    return touched[:runs].copy(), counts[:runs].copy()


def warm_decode() -> None:
    """Compile every kernel between fetched bytes and grouped slots, or load it from the cache."""
    spec = RecordSpec(values=("v",), key="k", time="t")
    value = b'{"k":"a","t":"2026-11-24T13:43:26Z","v":1.5}'
    one = np.zeros(1, np.int32), np.zeros(1, np.int64), np.full(1, -1, np.int64)
    records = decode(Fetched(*one, values=[value], keys=[]), spec)
    assert len(records) == 1, records.rejects
    iso_ms_of("2026-11-24T13:43:26Z")
    table = KeyTable(1)
    group(table.intern(records))
    _place(np.full((2, 2), -1, np.int64), np.full((4, 2), -1, np.int64))


def group(slots: I32) -> tuple[I64, I32, I32]:
    """Records of a batch by slot: order (N,), touched (K,) slots ascending, counts (K,).

    values[order] has all records of the first slot, oldest first, then of the second, and so on.
    A slot of -1 must have been left out.
    """
    assert slots.min(initial=0) >= 0, "records without a slot cannot be grouped"
    slots = _fixed(slots)
    order = _sorted(slots)
    return (order, *_runs(slots, order))
