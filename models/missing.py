"""Which keys fell silent, judged by what the other keys of their partition do?

Record time only, no clock of a machine. Per partition:

    clock    the second largest latest time among its keys: one mad timestamp moves nothing
    pace     the clock's usual advance;  usual(key)  the key's usual interval
    pause    the clock advanced by more than max(intervals * pace, floor_ms) at once: the partition
             itself was silent, and every key gets its time anew from where it went on
    seen     the clock when the key's last record came: a key whose own clock is off is judged by
             when it speaks, not by what it says

Whenever the clock crosses a line of a grid of floor_ms / 6, each key with records_min records that
is not silent already is asked: silent, if the line is more than max(intervals * usual, floor_ms)
after `seen`, after its latest time, and after the last pause. It is back with its next record that
is later than where its silence began. A clock that jumps over many lines asks once, at the last.

A partition whose keys all stop says nothing: that is for the supervisor, who has a clock. So does
one in which a single key goes on: it may as well be the mad one.

A key that is forgotten, because its partition holds too many, ends its silence at the record that
needed the room, and its silence is not asked about any more. When it returns it is a new key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.models.errors import ArtifactError
from raywatch.models.rows import Rows
from raywatch.models.scorer import F64, I32, I64
from raywatch.models.settings import MissingSettings

GRID_PER_FLOOR = 6  # Silence is noticed at most a sixth of floor_ms late.
RATE = 1.0 / 32.0  # An interval counts for about 32 of them.
NEVER = int(np.iinfo(np.int64).min)
COUNT_MAX = 1 << 60  # No key has so many records.
GONE = -1  # in the place of a count: the key is being forgotten
_NONE: tuple[I64, I64] = np.zeros(0, np.int64), np.zeros(0, np.int64)
KINDS = ("open", "resolved", "forgotten")

LATEST, SEEN, SINCE, COUNT, SILENT, NEXT = range(6)  # columns of a key
KEY_COLUMNS = 6
# Columns of a partition. FLOOR: latest beginning of a silence of a key that was forgotten.
CLOCK, LEAD, LEAD_MS, LINE, RESUMED, FIRST, LAST, FLOOR = range(8)
PARTITION_COLUMNS = 8
KEY_BYTES = 8 * (KEY_COLUMNS + 1)
INDEX, KIND, SLOT, FROM, AT = range(5)  # columns of the kernel's answer


@dataclass(frozen=True, slots=True)
class Silence:
    """A key fell silent or came back."""

    index: int  # of the record that showed it, in batch order
    kind: str  # open, resolved, or forgotten: the key is, and so ends its silence
    slot: int
    since_ms: int  # the key's latest time; with the slot it names the silence
    at_ms: int  # open: grid line that the clock crossed; else: time of the record


class _Rule(NamedTuple):
    intervals: float
    floor_ms: int
    step_ms: int
    records_min: int


class _State(NamedTuple):
    key: I64  # (S, 6)
    interval: F64  # (S,) usual interval in ms, 0: not known
    partition: I64  # (P, 7)
    pace: F64  # (P,) usual advance of the clock in ms, 0: not known


@njit(cache=True, nogil=True)
def _usual(usual: F64, at: int, gap: float) -> None:
    """Follow the size of the gaps; no gap counts as more than twice the usual one."""
    known = usual[at]
    usual[at] = gap if known == 0.0 else known + RATE * (min(gap, 2.0 * known) - known)


@njit(cache=True, nogil=True)
def _limit(usual: float, rule: _Rule) -> float:
    return max(rule.intervals * usual, float(rule.floor_ms))


@njit(cache=True, nogil=True)
def _clock(partition: I64, p: int, slot: int, time_ms: int, floor_ms: int) -> int:
    """The second largest latest time after this record, never going back; NEVER: one key only.

    Only the leading key and the clock are kept. A leader that goes back by more than floor_ms had
    been mad: it leads from where it is now, or nobody in particular leads at the clock.
    """
    clock, lead = partition[p, CLOCK], partition[p, LEAD_MS]
    if slot == partition[p, LEAD]:
        if time_ms < lead - floor_ms:
            lead = max(time_ms, clock)
            partition[p, LEAD] = slot if time_ms >= clock else -1
        partition[p, LEAD_MS] = max(lead, time_ms)
        return clock
    if time_ms > lead:
        partition[p, LEAD], partition[p, LEAD_MS] = slot, time_ms
        return max(clock, lead)
    return max(clock, time_ms)


@njit(cache=True, nogil=True)
def _ask(state: _State, p: int, index: int, rule: _Rule, found: int, out: I64) -> int:
    """Ask every key of a partition, in the order in which they first came, whether it is silent."""
    key = state.key
    line = state.partition[p, LINE] * rule.step_ms
    slot = state.partition[p, FIRST]
    while slot >= 0:
        if key[slot, SILENT] == 0 and key[slot, COUNT] >= rule.records_min:
            since = key[slot, LATEST]
            if since > line:  # its own clock is ahead
                since = key[slot, SEEN]
            last = max(since, key[slot, SEEN], state.partition[p, RESUMED])
            if line - last > _limit(float(state.interval[slot]), rule):
                # Never the same twice, even where a key's clock went back: alerts are named by it.
                since = max(since, key[slot, SINCE] + 1)
                key[slot, SILENT], key[slot, SINCE] = 1, since
                out[found, INDEX], out[found, KIND], out[found, SLOT] = index, 0, slot
                out[found, FROM], out[found, AT] = since, line
                found += 1
        slot = key[slot, NEXT]
    return found


@njit(cache=True, nogil=True)
def _meet(state: _State, p: int, slot: int, time_ms: int) -> None:
    """The first record of a key: add it to its partition."""
    last = state.partition[p, LAST]
    if last >= 0:
        state.key[last, NEXT] = slot
    else:
        state.partition[p, FIRST] = slot
    state.partition[p, LAST] = slot
    state.key[slot, LATEST] = time_ms
    state.key[slot, SINCE] = state.partition[p, FLOOR]  # a silence of before is not named again


@njit(cache=True, nogil=True)
def _hear(state: _State, slot: int, time_ms: int, floor_ms: int) -> bool:
    """One record of a known key; returns whether it ends a silence."""
    key = state.key
    back = key[slot, SILENT] == 1 and time_ms > key[slot, SINCE]
    latest = key[slot, LATEST]
    if time_ms > latest:
        if not back:  # the silence itself is no usual interval
            _usual(state.interval, slot, float(time_ms - latest))
        key[slot, LATEST] = time_ms
    elif time_ms < latest - floor_ms:  # far back: its latest time had been mad
        key[slot, LATEST] = time_ms
    if back:
        key[slot, SILENT] = 0
    return back


@njit(cache=True, nogil=True)
def _advance(state: _State, p: int, clock: int, rule: _Rule) -> bool:
    """Move the clock; returns whether it crossed a line of the grid."""
    partition = state.partition
    before = partition[p, CLOCK]
    partition[p, CLOCK] = clock
    line = clock // rule.step_ms
    if before == NEVER:
        partition[p, LINE] = line
        return False
    advance = float(clock - before)
    if advance > _limit(float(state.pace[p]), rule):
        partition[p, RESUMED] = clock
    _usual(state.pace, p, advance)
    if line == partition[p, LINE]:
        return False
    partition[p, LINE] = line
    return True


@njit(cache=True, nogil=True)
def _forget(state: _State, p: int, index: int, now: int, gone: I64, found: int, out: I64) -> int:
    """Take keys of a partition out of it; ends their silences."""
    key, partition = state.key, state.partition
    for at in range(gone.shape[0]):
        slot = gone[at]
        if key[slot, SILENT] == 1:
            out[found, INDEX], out[found, KIND], out[found, SLOT] = index, 2, slot
            out[found, FROM], out[found, AT] = key[slot, SINCE], now
            found += 1
        partition[p, FLOOR] = max(partition[p, FLOOR], key[slot, SINCE])
        if partition[p, LEAD] == slot:  # nobody in particular leads, at the clock
            partition[p, LEAD], partition[p, LEAD_MS] = -1, partition[p, CLOCK]
        key[slot, COUNT] = GONE
    last, slot = -1, partition[p, FIRST]
    while slot >= 0:
        following = key[slot, NEXT]
        if key[slot, COUNT] == GONE:
            if last >= 0:
                key[last, NEXT] = following
            else:
                partition[p, FIRST] = following
            key[slot, COUNT], key[slot, SILENT], key[slot, NEXT] = 0, 0, -1
            key[slot, LATEST], key[slot, SEEN], key[slot, SINCE] = NEVER, NEVER, NEVER
            state.interval[slot] = 0.0
        else:
            last = slot
        slot = following
    partition[p, LAST] = last
    return found


@njit(cache=True, nogil=True)
def _observe(
    partition: I32,
    slots: I32,
    time_ms: I64,
    gone_index: I64,
    gone: I64,
    rule: _Rule,
    state: _State,
    out: I64,
    usual_ms: F64,
) -> int:
    """A batch; returns the number of silences. `usual_ms` is (N,), or empty: not asked for."""
    found, went = 0, 0
    asked = usual_ms.shape[0] > 0
    key = state.key
    for index in range(slots.shape[0]):
        slot, p, now = int(slots[index]), int(partition[index]), int(time_ms[index])
        if slot < 0:
            continue
        first = went
        while went < gone.shape[0] and gone_index[went] == index:
            went += 1
        if went > first:
            found = _forget(state, p, index, now, gone[first:went], found, out)
        if key[slot, COUNT] == 0:
            _meet(state, p, slot, now)
        elif _hear(state, slot, now, rule.floor_ms):
            out[found, INDEX], out[found, KIND], out[found, SLOT] = index, 1, slot
            out[found, FROM], out[found, AT] = key[slot, SINCE], now
            found += 1
        key[slot, COUNT] += 1
        if asked:
            usual_ms[index] = state.interval[slot]
        clock = _clock(state.partition, p, slot, now, rule.floor_ms)
        crossed = False
        if clock > state.partition[p, CLOCK]:
            crossed = _advance(state, p, clock, rule)
        # Before the clock starts, the key's own time is all there is.
        key[slot, SEEN] = now if clock == NEVER else clock
        if crossed:
            found = _ask(state, p, index, rule, found, out)
    return found


@njit(cache=True, nogil=True)
def _sound(state: _State, chain: I32) -> bool:
    """Whether every key that was seen stands in one chain, once, and no chain leads elsewhere.

    Fills `chain` (S,): the partition of each key that was seen, else -1.
    """
    key, partition, size = state.key, state.partition, chain.shape[0]
    met, seen = 0, 0
    chain[:] = -1
    for slot in range(size):
        count = key[slot, COUNT]
        if not 0 <= count < COUNT_MAX or not 0 <= key[slot, SILENT] <= 1:
            return False
        if count == 0 and key[slot, NEXT] != -1:
            return False
        seen += 1 if count > 0 else 0
    for p in range(partition.shape[0]):
        last, slot = -1, partition[p, FIRST]
        while slot != -1:
            if not 0 <= slot < size or chain[slot] >= 0 or key[slot, COUNT] == 0:
                return False
            chain[slot] = p
            met += 1
            last, slot = slot, key[slot, NEXT]
        if partition[p, LAST] != last:
            return False
    return met == seen


class Missing:
    """Silence of the keys of one lane. One thread uses it."""

    def __init__(self, settings: MissingSettings, partitions: int) -> None:
        assert partitions >= 1, partitions
        assert settings.floor_ms >= 1, settings.floor_ms
        self._settings = settings
        self.enabled = settings.enabled
        self.partitions = partitions
        self._rule = _Rule(
            float(settings.intervals),
            int(settings.floor_ms),
            max(int(settings.floor_ms) // GRID_PER_FLOOR, 1),
            int(settings.records_min),
        )
        self._slots = 0
        self._key, self._interval = Rows((KEY_COLUMNS,), np.int64), Rows((), np.float64)
        self._partition = np.full((self.partitions, PARTITION_COLUMNS), -1, np.int64)
        self._partition[:, [CLOCK, LEAD_MS, RESUMED, FLOOR]] = NEVER
        self._pace = np.zeros(self.partitions)
        for rows in (self._key, self._interval):
            rows.reserve(1)

    @property
    def _state(self) -> _State:
        return _State(self._key.array, self._interval.array, self._partition, self._pace)

    def ensure(self, slots: int) -> None:
        """Have room for slots 0 .. slots-1."""
        if slots <= self._slots:
            return
        for rows in (self._key, self._interval):
            rows.reserve(slots)
        fresh = self._key.array[self._slots : slots]
        fresh[:, [LATEST, SEEN, SINCE]] = NEVER
        fresh[:, NEXT] = -1
        self._slots = slots

    def observe(
        self,
        partition: I32,
        slots: I32,
        time_ms: I64,
        usual_ms: F64 | None = None,
        gone: tuple[I64, I64] = _NONE,
    ) -> list[Silence]:
        """Hear N records in batch order (offset order within each partition).

        Args:
            partition: (N,) 0 .. partitions-1.
            slots: (N,) of the keys; -1 (the table is full) is passed over.
            time_ms: (N,) time of each record.
            usual_ms: out, (N,) the usual interval of each record's key as of that record; left
                as it is where none is known.
            gone: keys that are forgotten: (G,) index of the record that needed the room,
                ascending, and (G,) slots, all of that record's partition.

        Returns:
            Silences by index; those that one record showed, in the order in which their keys first
            came.
        """
        records = int(slots.shape[0])
        assert partition.shape == slots.shape == time_ms.shape, (partition.shape, time_ms.shape)
        if records == 0 or not self.enabled:
            return []
        assert int(slots.max()) < self._slots, (slots.max(), self._slots)
        assert 0 <= int(partition.min()) <= int(partition.max()) < self.partitions, self.partitions
        # A key can fall silent once before the batch's own records wake it: that bounds the answer.
        # Pages that are not written take no memory.
        out = np.empty((self._slots + 2 * records, 5), np.int64)
        found = _observe(
            np.require(partition, np.int32, ["C", "W", "A"]),
            np.require(slots, np.int32, ["C", "W", "A"]),
            np.require(time_ms, np.int64, ["C", "W", "A"]),
            np.require(gone[0], np.int64, ["C", "W", "A"]),
            np.require(gone[1], np.int64, ["C", "W", "A"]),
            self._rule,
            self._state,
            out,
            np.empty(0) if usual_ms is None else usual_ms,
        )
        return [
            Silence(index, KINDS[kind], slot, since, at)
            for index, kind, slot, since, at in out[:found].tolist()
        ]

    def chain(self) -> I32:
        """(S,) the partition that each slot's key was seen in, -1 where none was."""
        chain = np.empty(self._slots, np.int32)
        assert _sound(self._state, chain), "chains lead astray"
        return chain

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything remembered, as copies: keys by slot, partitions by their number."""
        return {
            "key": self._state.key[: self._slots].copy(),
            "interval": self._state.interval[: self._slots].copy(),
            "partition": self._state.partition.copy(),
            "pace": self._state.pace.copy(),
        }

    def load(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Replace everything by what `state` gave. Raises ArtifactError where it is none."""
        hint = "delete the snapshot: the lane then rebuilds its state from the log"
        for name in ("key", "interval", "partition", "pace"):
            if name not in saved:
                raise ArtifactError(f"state of the missing stage lacks `{name}`", hint=hint)
        size = int(saved["key"].shape[0])
        fresh = Missing(self._settings, self.partitions)
        fresh.ensure(size)
        state = fresh._state
        places = {"key": state.key[:size], "interval": state.interval[:size]}
        places |= {"partition": state.partition, "pace": state.pace}
        for name, place in places.items():
            if saved[name].shape != place.shape:
                message = f"state `{name}` has shape `{saved[name].shape}`, needs `{place.shape}`"
                raise ArtifactError(message, hint=hint)
            place[:] = saved[name]
        pace = np.concatenate((state.interval[:size], state.pace))
        chain = np.empty(size, np.int32)
        if not _sound(state, chain) or not (np.isfinite(pace) & (pace >= 0.0)).all():
            raise ArtifactError(
                "state of the missing stage has chains or intervals that cannot be", hint=hint
            )
        self.__dict__.update(fresh.__dict__)


def warm_missing() -> None:
    """Compile the kernels of this stage."""
    missing = Missing(MissingSettings(), 1)
    missing.ensure(1)
    one = np.zeros(1, np.int32)
    missing.observe(one, one, np.zeros(1, np.int64))
    missing.load(missing.state())
