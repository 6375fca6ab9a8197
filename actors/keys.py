"""Which slot does a record's key have, which keys are forgotten, and which records share a slot?

A slot belongs to one (partition, key). A partition holds at most `keys_max` keys. When another one
comes, its record is rejected, or (`evict`) the sixteenth of the partition's keys that is worth
least is forgotten at once. All in records of the partition,

    worth = when the key was last seen + min(its records, PROVEN) * keys_max / 4

So a flood of keys that come once or twice displaces itself and not the keys that are watched, and
a watched key that is gone for good makes room after 8 * keys_max records. A key that returns is
new.

That is a function of the partition's records and of nothing else: not of where batches are cut,
nor of which partitions share the table. Numbers of slots are not; nothing may depend on them.

The slot of a forgotten key is not given away before `release`: batches that are under way still
know it. The table is open addressing with linear probing on a 64-bit hash, at most half full; the
bytes of all keys lie in one arena. `group` sorts a batch by slot, stably, with a radix sort: its
cost depends on the batch alone, not on how many keys there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.actors.bare_lines import decode_lines
from raywatch.actors.decode import decode
from raywatch.actors.grammar import iso_ms_of
from raywatch.actors.keys_kernel import (
    AHEAD,
    BEGIN,
    BORN,
    COUNT,
    DONE,
    FLOOR,
    FLOOR_SEQ,
    FREE,
    FULL,
    HIGH,
    LATEST,
    LIVE,
    NEVER,
    PART_COLUMNS,
    PARTITION,
    RECORDS,
    SEEN,
    SEQ,
    SIZE,
    SLOT_COLUMNS,
    USED,
    compact,
    drop,
    fill_cells,
    intern_batch,
    place,
    worth,
)
from raywatch.actors.ports import Fetched
from raywatch.actors.records import LINE, Records, RecordSpec
from raywatch.models.errors import ArtifactError
from raywatch.models.rows import Rows
from raywatch.models.scorer import I32, I64, U8

__all__ = ["AHEAD", "Gone", "KeyTable", "Taken", "group", "warm_decode"]

CAPACITY_MIN = 1_024  # cells of an empty table
ARENA_MIN = 16_384  # bytes of an empty arena
HASH_ALL = 2**64 - 1
SHARE = 16  # one of so many keys is forgotten when there is no room for another
PROVEN = 32  # records of a key that make it worth more than a newcomer; at most 63
SEQ_MAX = 1 << 56  # No partition has so many records: worth is counted in 64 bits.
RADIX_BITS = 11  # a pass sorts by this many bits: 2,048 counters stay in the first-level cache

_HINT = "delete this snapshot: an older one, or none, gives the same state after a replay"


@dataclass(frozen=True, slots=True)
class Gone:
    """Keys that a batch displaced, in the order in which they went."""

    index: I64  # (G,) record of the batch that needed the room
    slot: I64  # (G,)


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch's keys."""

    slots: I32  # (N,) slot of each record; -1 for a new key when its partition is full
    born: I64  # (B, 3) of each new key: slot, FLOOR and FLOOR_SEQ of its partition
    gone: Gone


class KeyTable:
    """Slots of at most `keys_max` keys a partition.

    `hash_mask` is which bits of a hash count; tests leave few, so that different keys collide.
    """

    def __init__(
        self,
        keys_max: int,
        partitions: int = 1,
        *,
        evict: bool = False,
        hash_mask: int = HASH_ALL,
    ) -> None:
        assert 0 < keys_max < 2**31, keys_max
        self._keys_max, self._evict = keys_max, evict
        self._hash_mask = np.uint64(hash_mask)
        self.evicted = 0  # keys so far
        self._clear(partitions)

    def _clear(self, partitions: int) -> None:
        self._totals: I64 = np.zeros(5, np.int64)
        # What is looked at together lies together: with many keys, time is cache misses.
        self._cells: I64 = np.full((CAPACITY_MIN, 2), -1, np.int64)  # slot (-1: empty), hash
        self._slots = Rows((SLOT_COLUMNS,), np.int64)
        self._slots.reserve(1)
        self._arena: U8 = np.zeros(ARENA_MIN, np.uint8)
        self._waste = 0  # bytes of the arena that belonged to released slots
        self._parts = _fresh_parts(partitions)
        self._free: I32 = np.zeros(0, np.int32)

    def __len__(self) -> int:
        return int(self._totals[LIVE])

    @property
    def high(self) -> int:
        """Slots that were ever given away: arrays by slot need so many rows."""
        return int(self._totals[HIGH])

    def key(self, slot: int) -> bytes:
        """The key of a slot; of a forgotten one until its slot is released."""
        assert 0 <= slot < self.high, (slot, self.high)
        begin, size = self._slots.array[slot, : SIZE + 1].tolist()
        assert size >= 0, slot
        return self._arena[begin : begin + size].tobytes()

    def partition(self, slot: int) -> int:
        """The partition of a slot: an index into the lane's tuple; -1 of a forgotten key."""
        assert 0 <= slot < self.high, (slot, self.high)
        return int(self._slots.array[slot, PARTITION])

    def intern(self, records: Records) -> I32:
        """(N,) slot of each record; -1 for a new key when the table is full. Evicts nothing."""
        assert not self._evict, "use `take`: keys may go"
        return self.take(records).slots

    def take(self, records: Records) -> Taken:
        """Give each record its slot; see the head of this file for the rule."""
        return self._take(
            records.partition, records.text, records.key_begin, records.key_size, records.time_ms
        )

    def release(self, slots: I64) -> None:
        """Give slots of forgotten keys to whoever comes next: no batch that knows them is left."""
        count = slots.shape[0]
        if count == 0:
            return
        rows = self._slots.array
        assert (rows[slots, PARTITION] == -1).all(), "released, but not forgotten"
        assert (rows[slots, SIZE] >= 0).all(), "released twice"
        self._waste += int(rows[slots, SIZE].sum())
        rows[slots, SIZE] = -1
        free = int(self._totals[FREE])
        if free + count > self._free.shape[0]:
            self._free = np.resize(self._free, max(2 * self._free.shape[0], free + count))
        self._free[free : free + count] = slots
        self._totals[FREE] += count

    def state(self) -> dict[str, NDArray[Any]]:
        """The table as arrays, with all that was forgotten released.

        By slot: partition, size (-1: free), seen, records; text: keys back to back; partitions:
        see keys_kernel.py.
        """
        rows = self._slots.array[: self.high]
        size = rows[:, SIZE].astype(np.int32)
        assert ((rows[:, PARTITION] >= 0) == (size >= 0)).all(), "forgotten keys are not released"
        text = np.zeros(max(1, int(size[size > 0].sum(dtype=np.int64))), np.uint8)
        used = compact(rows.copy(), rows.shape[0], self._arena, text)
        return {
            "partition": rows[:, PARTITION].astype(np.int32),
            "size": size,
            "seen": rows[:, SEEN].copy(),
            "records": rows[:, RECORDS].copy(),
            "text": text[:used],
            "partitions": self._parts[:, SEQ:].copy(),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Become the table that gave `state`. Raises ArtifactError where it is torn.

        A state of more than `keys_max` keys is taken whole: the table is then full.
        """
        rows, text, parts = _checked(state)
        fresh = KeyTable(self._keys_max, evict=self._evict, hash_mask=int(self._hash_mask))
        high = rows.shape[0]
        fresh._slots.reserve(high)
        fresh._slots.array[:high] = rows
        fresh._arena = np.concatenate((text, np.zeros(max(ARENA_MIN, text.shape[0]), np.uint8)))
        fresh._parts = _fresh_parts(max(parts.shape[0], self._parts.shape[0]))
        fresh._parts[: parts.shape[0], SEQ:] = parts
        capacity = CAPACITY_MIN
        while capacity <= 2 * high:
            capacity *= 2
        fresh._cells = np.full((capacity, 2), -1, np.int64)
        twice = fill_cells(
            fresh._cells, fresh._slots.array, fresh._arena, high, fresh._parts, self._hash_mask
        )
        if twice >= 0:
            raise ArtifactError("a key stands in the key table twice", hint=_HINT)
        fresh._free = np.flatnonzero(rows[:, SIZE] < 0)[::-1].astype(np.int32)
        free = fresh._free.shape[0]
        fresh._totals[:] = high - free, text.shape[0], high, free, 0
        fresh.evicted = self.evicted
        self.__dict__.update(fresh.__dict__)

    def _take(self, partition: I32, text: U8, begin: I64, size: I32, time_ms: I64) -> Taken:
        count = begin.shape[0]
        slots, born = np.empty(count, np.int32), np.empty((count, 3), np.int64)
        partition, text, begin, size, time_ms = map(_fixed, (partition, text, begin, size, time_ms))
        most = int(partition.max(initial=0))
        if most >= self._parts.shape[0]:
            more = _fresh_parts(most + 1 - self._parts.shape[0])
            self._parts = np.concatenate((self._parts, more))
        self._totals[BORN] = done = 0
        index, gone = list[int](), list[I64]()
        while True:
            done, why, _ = intern_batch(
                partition, text, begin, size, time_ms, done, slots, self._cells, self._slots.array,
                self._arena, self._parts, self._free, born, self._totals, self._keys_max,
                self._evict, self._hash_mask,
            )  # fmt: skip
            if why == DONE:
                break
            if why == FULL:
                gone.append(self._forget(int(partition[done])))
                index.append(done)
            else:
                self._grow(int(size[done]))
        sizes = [each.shape[0] for each in gone]
        which = Gone(
            np.repeat(np.array(index, np.int64), sizes),
            np.concatenate(gone) if gone else np.zeros(0, np.int64),
        )
        return Taken(slots, born[: self._totals[BORN]].copy(), which)

    def _forget(self, part: int) -> I64:
        """Evict the keys of a partition that are worth least; their slots, the worst first."""
        row = self._parts[part]
        count = int(row[COUNT])
        wanted = count - self._keys_max + max(1, self._keys_max // SHARE)
        slots, value = worth(self._slots.array, self.high, part, self._keys_max, PROVEN, count)
        assert slots.shape[0] == count, (slots.shape, count)
        least = np.argpartition(value, wanted - 1)[:wanted]
        gone = slots[least[np.argsort(value[least])]]
        drop(
            gone, self._cells, self._slots.array, self._arena, self._parts, self._totals,
            self._hash_mask,
        )  # fmt: skip
        row[FLOOR], row[FLOOR_SEQ] = row[LATEST], row[SEQ]
        self.evicted += wanted
        return gone

    def _grow(self, size: int) -> None:
        """Make room for one more slot and `size` more bytes, by doubling."""
        totals = self._totals
        if totals[FREE] == 0 and totals[HIGH] == self._slots.array.shape[0]:
            self._slots.reserve(int(totals[HIGH]) + 1)
        if 2 * totals[LIVE] >= self._cells.shape[0]:
            cells = np.full((self._cells.shape[0] * 2, 2), -1, np.int64)
            place(self._cells, cells)
            self._cells = cells
        if totals[USED] + size > self._arena.shape[0]:
            room = self._arena.shape[0]
            while totals[USED] - self._waste + size > room // 2:
                room *= 2
            fresh = np.zeros(room, np.uint8)
            if self._waste:
                totals[USED] = compact(self._slots.array, self.high, self._arena, fresh)
                self._waste = 0
            else:
                fresh[: totals[USED]] = self._arena[: totals[USED]]
            self._arena = fresh


def _fresh_parts(count: int) -> I64:
    parts = np.zeros((count, PART_COLUMNS), np.int64)
    parts[:, [LATEST, FLOOR]] = NEVER
    return parts


def _checked(state: Mapping[str, NDArray[Any]]) -> tuple[I64, U8, I64]:
    """Rows of the slots, text and partitions of a state. Raises ArtifactError where it is torn."""
    names = ("partition", "size", "seen", "records", "text", "partitions")
    if missing := set(names) - set(state):
        raise ArtifactError(f"the key table lacks `{min(missing)}`", hint=_HINT)
    partition, size, seen, records, text, parts = (state[name] for name in names)
    flat = {each.shape for each in (partition, size, seen, records)}
    whole = len(flat) == 1 and size.ndim == text.ndim == 1 and parts.ndim == 2
    if not whole or parts.shape[1] != PART_COLUMNS - SEQ:
        raise ArtifactError(f"the key table of `{size.shape}` keys is torn", hint=_HINT)
    rows = np.zeros((size.shape[0], SLOT_COLUMNS), np.int64)
    rows[:, SIZE], rows[:, PARTITION] = size, partition
    rows[:, SEEN], rows[:, RECORDS] = seen, records
    filled = np.maximum(rows[:, SIZE], 0)
    rows[:, BEGIN] = np.cumsum(filled) - filled
    used = rows[:, SIZE] >= 0
    sound = (
        int(filled.sum()) == text.shape[0]
        and int(size.max(initial=0)) <= text.shape[0]
        and size.min(initial=0) >= -1
        and ((rows[:, PARTITION] >= 0) == used).all()
        and partition.min(initial=0) >= -1
        and partition.max(initial=-1) < parts.shape[0]
        and min(seen.min(initial=0), records.min(initial=0), parts[:, 0].min(initial=0)) >= 0
    )
    # A key was seen before the end of its partition, and not at the same place as another.
    sound = sound and int(parts[:, 0].max(initial=0)) < SEQ_MAX
    if not sound or (seen[used] >= parts[partition[used], 0]).any():
        raise ArtifactError(f"the key table of `{size.shape[0]}` keys is torn", hint=_HINT)
    return rows, text.astype(np.uint8), parts.astype(np.int64)


def _fixed(array: NDArray[Any]) -> NDArray[Any]:
    """The same array, read-only and contiguous: kernels are compiled for that kind alone.

    For another kind numba would compile anew, for seconds, in the middle of a lane's work.
    """
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


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
    table = KeyTable(1, evict=True)
    group(table.take(records).slots)
    other = decode(Fetched(*one, values=[value.replace(b'"a"', b'"bc"')], keys=[]), spec)
    table.release(table.take(other).gone.slot)
    bare = Fetched(*one[:2], one[1], values=[b"a"], keys=[b"b"])
    decode_lines(bare, RecordSpec(values=(), message=LINE, format="text"), [b"c"])
    table.load(table.state())
    place(np.full((2, 2), -1, np.int64), np.full((4, 2), -1, np.int64))


def group(slots: I32) -> tuple[I64, I32, I32]:
    """Records of a batch by slot: order (N,), touched (K,) slots ascending, counts (K,).

    values[order] has all records of the first slot, oldest first, then of the second, and so on.
    A slot of -1 must have been left out.
    """
    assert slots.min(initial=0) >= 0, "records without a slot cannot be grouped"
    slots = _fixed(slots)
    order = _sorted(slots)
    return (order, *_runs(slots, order))
