"""The table of keys as compiled passes over a batch; `keys.py` holds the arrays and the policy.

cells (capacity, 2): slot (-1: empty) and hash; open addressing, linear probing.
slots (capacity, 5): BEGIN, SIZE in the arena (-1: free), PARTITION (-1: forgotten), SEEN, RECORDS.
parts (P, 5): COUNT of keys; SEQ, records so far; LATEST time of one; FLOOR and FLOOR_SEQ, LATEST
and SEQ when keys were forgotten last.
"""

import numpy as np
from numba import njit

from raywatch.models.scorer import I32, I64, U8

AHEAD = 64  # records whose keys are looked up together
BEGIN, SIZE, PARTITION, SEEN, RECORDS = range(5)  # columns of a slot
COUNT, SEQ, LATEST, FLOOR, FLOOR_SEQ = range(5)  # columns of a partition
SLOT_COLUMNS = PART_COLUMNS = 5
LIVE, USED, HIGH, FREE, BORN = range(5)  # columns of the totals
NEVER = int(np.iinfo(np.int64).min)
DONE, NO_ROOM, FULL = range(3)  # why a pass ended


@njit(cache=True, nogil=True)
def hashed_key(text: U8, begin: int, size: int, partition: int) -> np.uint64:
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
def place(old: I64, cells: I64) -> None:
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
        hashed = hashed_key(text, begin[index], size[index], partition[index]) & hash_mask
        hashes[index - first] = np.int64(hashed)
    for index in range(last - first):
        touched += cells[hashes[index] & mask, 0]
    for index in range(last - first):
        slot = cells[hashes[index] & mask, 0]
        touched += slots[max(slot, 0), BEGIN]
    for index in range(last - first):
        slot = cells[hashes[index] & mask, 0]
        touched += np.int64(arena[slots[max(slot, 0), BEGIN]])
    return int(touched)


@njit(cache=True, nogil=True)
def _find(
    cells: I64, slots: I64, arena: U8, hashed: int, text: U8, begin: int, size: int, part: int
) -> tuple[int, int]:
    """Slot of a key (-1: not there), and the cell with it or the empty one where it would be."""
    mask = cells.shape[0] - 1
    cell = hashed & mask
    while cells[cell, 0] >= 0:
        slot = cells[cell, 0]
        if (
            cells[cell, 1] == hashed
            and slots[slot, SIZE] == size
            and slots[slot, PARTITION] == part
            and _equal(arena, slots[slot, BEGIN], text, begin, size)
        ):
            return slot, cell
        cell = (cell + 1) & mask
    return -1, cell


@njit(cache=True, nogil=True)
def intern_batch(
    partition: I32,
    text: U8,
    begin: I64,
    size: I32,
    time_ms: I64,
    done: int,
    out: I32,
    cells: I64,
    slots: I64,
    arena: U8,
    parts: I64,
    free: I32,
    born: I64,
    totals: I64,
    keys_max: int,
    evict: bool,
    hash_mask: np.uint64,
) -> tuple[int, int, int]:
    """Fill out[done:] and bring the table forward.

    Stops before a new key that there is no room for (NO_ROOM: arrays must grow; FULL: its
    partition holds keys_max keys, and may evict). `born` gets slot, FLOOR and FLOOR_SEQ of each
    new key. Returns records done, why it ended, and what `_ahead` says.
    """
    hashes, touched = np.empty(AHEAD, np.int64), 0
    first = done
    for index in range(done, begin.shape[0]):
        if (index - first) % AHEAD == 0:
            touched += _ahead(
                partition, text, begin, size, index, cells, slots, arena, hash_mask, hashes
            )
        source, length, part = begin[index], size[index], partition[index]
        hashed = hashes[(index - first) % AHEAD]
        found, cell = _find(cells, slots, arena, hashed, text, source, length, part)
        if found < 0 and parts[part, COUNT] >= keys_max and evict:
            return index, FULL, touched
        if found < 0 and parts[part, COUNT] < keys_max:
            used, no_slot = totals[USED], totals[FREE] == 0 and totals[HIGH] == slots.shape[0]
            crowded = 2 * totals[LIVE] >= cells.shape[0]
            if no_slot or crowded or used + length > arena.shape[0]:
                return index, NO_ROOM, touched
            if totals[FREE] > 0:
                totals[FREE] -= 1
                found = np.int64(free[totals[FREE]])
            else:
                found = totals[HIGH]
                totals[HIGH] += 1
            cells[cell, 0], cells[cell, 1] = found, hashed
            slots[found, BEGIN], slots[found, SIZE] = used, length
            slots[found, PARTITION], slots[found, RECORDS] = part, 0
            arena[used : used + length] = text[source : source + length]
            at = totals[BORN]
            born[at, 0], born[at, 1] = found, parts[part, FLOOR]
            born[at, 2] = parts[part, FLOOR_SEQ]
            totals[BORN] += 1
            totals[USED] += length
            totals[LIVE] += 1
            parts[part, COUNT] += 1
        if found >= 0:
            slots[found, SEEN] = parts[part, SEQ]
            slots[found, RECORDS] += 1
        parts[part, SEQ] += 1
        parts[part, LATEST] = max(parts[part, LATEST], time_ms[index])
        out[index] = found
    return begin.shape[0], DONE, touched


@njit(cache=True, nogil=True)
def worth(
    slots: I64, high: int, part: int, keys_max: int, proven: int, count: int
) -> tuple[I64, I64]:
    """Slots of a partition (count,) and what each is worth, no two alike; see keys.py."""
    found, value = np.empty(count, np.int64), np.empty(count, np.int64)
    at = 0
    for slot in range(high):
        if slots[slot, PARTITION] == part and slots[slot, SIZE] >= 0 and at < count:
            found[at] = slot
            records = min(slots[slot, RECORDS], proven)
            # Of two that are worth the same, the one with more records: it was seen earlier.
            value[at] = (slots[slot, SEEN] + records * keys_max // 4) * 64 + records
            at += 1
    return found[:at], value[:at]


@njit(cache=True, nogil=True)
def drop(
    gone: I64, cells: I64, slots: I64, arena: U8, parts: I64, totals: I64, hash_mask: np.uint64
) -> None:
    """Take keys out of the cells; their slots and bytes stay until they are released.

    Cells behind an emptied one move up where their own place allows it (Knuth, TAOCP 3, 6.4 R).
    """
    mask = cells.shape[0] - 1
    for index in range(gone.shape[0]):
        slot = gone[index]
        begin, size, part = slots[slot, BEGIN], slots[slot, SIZE], slots[slot, PARTITION]
        hashed = np.int64(hashed_key(arena, begin, size, part) & hash_mask)
        hole = hashed & mask
        while cells[hole, 0] != slot:
            hole = (hole + 1) & mask
        cell = (hole + 1) & mask
        while cells[cell, 0] >= 0:
            home = cells[cell, 1] & mask
            # It may move to the hole unless its home lies cyclically in (hole, cell].
            if ((cell - home) & mask) >= ((cell - hole) & mask):
                cells[hole, 0], cells[hole, 1] = cells[cell, 0], cells[cell, 1]
                hole = cell
            cell = (cell + 1) & mask
        cells[hole, 0], cells[hole, 1] = -1, -1
        parts[part, COUNT] -= 1
        totals[LIVE] -= 1
        slots[slot, PARTITION] = -1  # evicted: no longer among the partition's keys


@njit(cache=True, nogil=True)
def compact(slots: I64, high: int, arena: U8, fresh: U8) -> int:
    """Copy the bytes of every slot that has some into `fresh`; returns how many."""
    used = 0
    for slot in range(high):
        size = slots[slot, SIZE]
        if size > 0:
            begin = slots[slot, BEGIN]
            fresh[used : used + size] = arena[begin : begin + size]
            slots[slot, BEGIN] = used
            used += size
    return used


@njit(cache=True, nogil=True)
def fill_cells(
    cells: I64, slots: I64, arena: U8, high: int, parts: I64, hash_mask: np.uint64
) -> int:
    """Put every slot with a key into empty cells and count it; the first that is there twice or -1.

    Only after a load: `cells` are empty and large enough.
    """
    for slot in range(high):
        size, part = slots[slot, SIZE], slots[slot, PARTITION]
        if size < 0:
            continue
        begin = slots[slot, BEGIN]
        hashed = np.int64(hashed_key(arena, begin, size, part) & hash_mask)
        found, cell = _find(cells, slots, arena, int(hashed), arena, begin, size, part)
        if found >= 0:
            return slot
        cells[cell, 0], cells[cell, 1] = slot, hashed
        parts[part, COUNT] += 1
    return -1
