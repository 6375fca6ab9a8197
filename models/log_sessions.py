"""Is this session (a request, a block, a login) like the sessions its service had before?

A session is too young to know itself: the population of its key does. The key is the service, the
session a field of the record. When a session ends, each kind of line (template) it had c times, 0
counts, is judged by how few of the past sessions had so few, or so many:

    o_t = -log10 min(share of sessions with <= c, share with >= c)     counts in 12 steps
    score = max o_t + 0.1 * sum o_t

A session ends when it was silent for `idle_ms` of its key's clock (largest time seen), when it is
full of records, or when its set of eight places is full and it is the longest silent. Of SESSIONS
places two are swept with each record, so an end is said at most SESSIONS / 2 records of the key
after it is due. Sessions lie in pages of rows, as many as are needed (pages.py); their places,
which are part of what is said, are as if all had room from the first record on.

Memory guard, once the population counts YOUNG sessions. One whose sum is far from the sums learned
so far teaches nothing. One that is strange by a single kind teaches while such are few; when more
than CROWD of the late ones are strange it is an incident, and they teach nothing until it is over.
Else what happens again and again becomes usual before anyone has looked; and without the exception
a rare but healthy kind that comes first after YOUNG would be strange for ever.

Everything is a function of the key's records in order. Records of one service must come through one
partition for one population; a service spread over partitions by session has one in each.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.models.log_shelf import WAYS
from raywatch.models.pages import Shelf, find, fresh, leave, room
from raywatch.models.scorer import F64, I32, I64, U8

U16 = NDArray[np.uint16]
U64 = NDArray[np.uint64]

KINDS = 64  # kinds of line a service is counted by; the last one is all that came later
SESSIONS = 1024  # sessions open at a time
RECORDS_MAX = 10_000  # A longer session ends: nothing waits for ever.
SWEEP = 2  # places looked at with each record
ENDS_MAX = SWEEP + 1  # sessions that may end at one record
YOUNG = 200.0  # sessions that teach whatever they are
STRANGE = 2.5  # -log10: about one session in 300
FAR = 1.75  # times the 0.99 quantile of the sums
CROWD = 0.08  # share of strange sessions among the last RECENT or so
RECENT = 30.0
SHARE = 0.1  # of the sum in the score
ID_BYTES = 40  # of a session's id that are kept to name it: a UUID has 36
HEAD_BYTES = 120  # of the first line of a kind, likewise

STEPS = (1, 2, 3, 4, 5, 7, 9, 13, 17, 33, 65)  # counts of one step are alike: 5 is as 6, 17 as 32
BINS = len(STEPS) + 1
ALONE = (KINDS // WAYS).bit_length() - 1  # depth of a page of kinds
_BIN = np.searchsorted(np.array(STEPS), np.arange(256), side="right").astype(np.int64)

TOTAL, LINE, ODD = range(3)
NOTICED, ID, KIND, COUNT, RECORDS, LOW, HIGH, APART = range(8)  # columns of an end
END = 8


class Sessions(NamedTuple):
    """Everything that is remembered of the sessions of S services."""

    session: Shelf  # hash of the id; this and the next six in rows
    stamp: I64  # (R,) the key's count of records at its last one
    place: U16  # (R,) of the SESSIONS, each at most once
    last_ms: I64  # (R,)
    records: U16  # (R,)
    counts: U8  # (R, KINDS) 255: that or more
    session_id: U8  # (R, ID_BYTES) beginning of the id, zeros behind it
    kind: Shelf  # template of each kind, in order of first sight; this and the next two in rows
    head: U8  # (R, HEAD_BYTES) beginning of its first line, zeros behind it
    past: F64  # (R, BINS) sessions that had so many lines of a kind
    sums: F64  # (S, 3) sessions learned, 0.99 quantile of their sums, late share of strange ones
    clock_ms: I64  # (S,)
    ordinal: I64  # (S,)


# What a key has in pages: how many at most, and what is in a row, in the order of Sessions.
PAGES: dict[str, tuple[int, dict[str, tuple[tuple[int, ...], Any]]]] = {
    "sessions": (
        SESSIONS // WAYS,
        {
            "stamp": ((), np.int64),
            "place": ((), np.uint16),
            "last_ms": ((), np.int64),
            "records": ((), np.uint16),
            "counts": ((KINDS,), np.uint8),
            "id": ((ID_BYTES,), np.uint8),
        },
    ),
    "kinds": (
        KINDS // WAYS,
        {"head": ((HEAD_BYTES,), np.uint8), "past": ((BINS,), np.float64)},
    ),
}
LAYOUT: dict[str, tuple[tuple[int, ...], Any]] = {
    "sums": ((3,), np.float64),
    "clock_ms": ((), np.int64),
    "ordinal": ((), np.int64),
}


class Texts(NamedTuple):
    """Where the lines and the ids of N records lie, and how much of a line may be kept."""

    text: U8
    line_begin: I64  # (N,)
    line_size: I32  # (N,)
    id_begin: I64  # (N,)
    id_size: I32  # (N,)
    keep: int  # bytes of a line: HEAD_BYTES, or 0 where lines are withheld


class Ends(NamedTuple):
    """The sessions that ended, in the order of the records that noticed it."""

    # (M, END) NOTICED, ID, KIND (the strangest), COUNT of it, RECORDS, LOW, HIGH, APART (1: strange
    # to the memory guard, whatever strange ones came before it)
    row: I64
    session_id: U8  # (M, ID_BYTES)
    head: U8  # (M, HEAD_BYTES) of the strangest kind
    score: F64  # (M,)


@njit(cache=True, nogil=True)
def _rarity(past: F64, total: float, step: int) -> float:
    """o_t of one kind; 0 where the population is empty."""
    low = high = 0.0
    for i in range(BINS):
        if i <= step:
            low += past[i]
        if i >= step:
            high += past[i]
    return max(-math.log10((min(low, high) + 0.5) / (total + 1.0)), 0.0)


@njit(cache=True, nogil=True)
def _close(state: Sessions, slot: int, counts: U8, usual: I64) -> tuple[float, int, bool]:
    """Judge a session by the population, then let it teach: (score, strangest kind, APART).

    `usual`: out (2,), see `_usual`, of that kind.
    """
    page, past, sums = state.kind.page[slot], state.past, state.sums[slot]
    worst, which, total = 0.0, 0, 0.0
    # Of a kind without a page all sessions had 0. None is stranger than the first of all, which has
    # one; the sum is made kind after kind, so that its bits do not depend on pages.
    never = max(-math.log10((sums[TOTAL] + 0.5) / (sums[TOTAL] + 1.0)), 0.0)
    for t in range(KINDS):
        first, rarity = (page[t // WAYS] - 1) * WAYS, never
        if first >= 0:
            rarity = _rarity(past[first + t % WAYS], sums[TOTAL], int(_BIN[counts[t]]))
        total += rarity
        if rarity > worst:
            worst, which = rarity, t
    _usual(past[_row_of(page, which)], sums[TOTAL], usual)
    far = total > FAR * sums[LINE]
    strange = far or worst > STRANGE
    young = sums[TOTAL] < YOUNG
    if not young:
        sums[ODD] += ((1.0 if strange else 0.0) - sums[ODD]) / RECENT
        if far or (strange and sums[ODD] > CROWD):
            return worst + SHARE * total, which, True
    for t in range(KINDS):
        if page[t // WAYS] > 0:
            past[_row_of(page, t), _BIN[counts[t]]] += 1.0
    sums[TOTAL] += 1.0
    if young or not strange:
        gain = 3.0 * max(0.005, 1.0 / (sums[TOTAL] + 1.0)) * max(sums[LINE], 1.0)
        sums[LINE] = max(sums[LINE] + gain * ((1.0 if total > sums[LINE] else 0.0) - 0.01), 0.0)
    return worst + SHARE * total, which, strange and not young


@njit(cache=True, nogil=True)
def _usual(past: F64, total: float, usual: I64) -> None:
    """Steps between which the counts of a kind are in 19 of 20 past sessions."""
    below = 0.0
    usual[0] = usual[1] = -1
    for i in range(BINS):
        below += past[i]
        if usual[0] < 0 and below > 0.025 * total:
            usual[0] = i
        if usual[1] < 0 and below >= 0.975 * total:
            usual[1] = i


@njit(cache=True, nogil=True)
def _row_of(page: I32, t: int) -> int:
    """Where a kind lies that has a page."""
    return (page[t // WAYS] - 1) * WAYS + t % WAYS


@njit(cache=True, nogil=True)
def _kind_of(page: I32, codes: U64, slot: int, code: np.uint64) -> tuple[int, int]:
    """The kind of a template and its row; -1: it is to have one."""
    first = -1
    for at in range(KINDS // WAYS):
        first = (page[slot, at] - 1) * WAYS
        if first < 0:
            return KINDS - 1, -1
        for row in range(first, first + WAYS):
            if codes[row] == code:
                return at * WAYS + row - first, row
    rest = first + WAYS - 1
    return KINDS - 1, rest if codes[rest - 1] != 0 else -1


@njit(cache=True, nogil=True)
def _new_kind(state: Sessions, slot: int, code: np.uint64) -> tuple[int, int]:
    """The kind that a template is from now on, and its row."""
    page, codes = state.kind.page, state.kind.code
    t = -1
    while True:
        t += 1
        if page[slot, t // WAYS] == 0:
            # Of one entry each, so never split: kinds lie in their order.
            new = fresh(state.kind, (state.head, state.past), ALONE)
            page[slot, t // WAYS] = new + 1
            # All past sessions had 0 of it.
            state.past[new * WAYS : (new + 1) * WAYS, 0] = state.sums[slot, TOTAL]
        row = _row_of(page[slot], t)
        if codes[row] == 0:
            codes[row] = code
            return t, row


@njit(cache=True, nogil=True)
def _often(past: F64, total: float, step: int) -> float:
    """-log10 share of past sessions that had a kind so often or more often."""
    high = 0.0
    for i in range(step, BINS):
        high += past[i]
    return max(-math.log10((high + 0.5) / (total + 1.0)), 0.0)


@njit(cache=True, nogil=True)
def _copy(text: U8, begin: int, size: int, to: U8) -> None:
    """The beginning of a text, zeros behind it."""
    for at in range(to.shape[0]):
        to[at] = text[begin + at] if at < size else 0


@njit(cache=True, nogil=True)
def _end(state: Sessions, slot: int, row: int, n: int, done: int, ends: Ends) -> None:
    """Judge the session of a row, write its end down as number `done`, free the row."""
    counts, out = state.counts[row], ends.row[done]
    ends.score[done], which, apart = _close(state, slot, counts, out[LOW : HIGH + 1])
    out[APART] = 1 if apart else 0
    out[NOTICED], out[ID] = n, np.int64(state.session.code[row])
    out[KIND], out[COUNT], out[RECORDS] = which, counts[which], state.records[row]
    ends.session_id[done] = state.session_id[row]
    ends.head[done] = state.head[_row_of(state.kind.page[slot], which)]
    state.session.code[row] = 0


@njit(cache=True, nogil=True)
def _sweep(state: Sessions, slot: int, idle_ms: int, n: int, done: int, ends: Ends) -> int:
    """End what was silent for too long in the next places; returns how many ended by now."""
    place = (state.ordinal[slot] * SWEEP) % SESSIONS
    entry = place // WAYS
    first = (state.session.page[slot, entry] - 1) * WAYS
    if first < 0:
        return done
    due, before = state.clock_ms[slot] - idle_ms, done
    codes, places, last_ms = state.session.code, state.place, state.last_ms
    for each in range(place, place + SWEEP):
        for row in range(first, first + WAYS):
            if places[row] == each and codes[row] != 0 and last_ms[row] < due:
                _end(state, slot, row, n, done, ends)
                done += 1
    if done > before:
        leave(state.session, slot, entry)
    return done


@njit(cache=True, nogil=True)
def _free_place(state: Sessions, row: int, session: np.uint64) -> int:
    """The first place of its set that a new session may have, which is to lie in a free row."""
    entry = session & np.uint64(SESSIONS // WAYS - 1)
    first, taken = row // WAYS * WAYS, 0
    for each in range(first, first + WAYS):
        code = state.session.code[each]
        if code != 0 and code & np.uint64(SESSIONS // WAYS - 1) == entry:
            taken |= 1 << (int(state.place[each]) % WAYS)
    way = 0
    while (taken >> way) & 1:
        way += 1
    return int(entry) * WAYS + way


@njit(cache=True, nogil=True)
def _begin(
    state: Sessions, slot: int, time_ms: int, session: np.uint64, row: int, n: int, done: int,
    ends: Ends,
) -> tuple[int, int]:  # fmt: skip
    """Begin a session, which ends who has its place: its row, how many ended by now."""
    if row < 0:
        row = room(state.session, state.stamp, state[1:7], slot, session)
    if state.session.code[row] != 0:
        _end(state, slot, row, n, done, ends)
        done += 1
    else:
        state.place[row] = _free_place(state, row, session)
    state.session.code[row], state.last_ms[row] = session, time_ms
    state.records[row] = 0
    state.counts[row] = 0
    return row, done


@njit(cache=True, nogil=True)
def follow(
    slots: I32,
    time_ms: I64,
    ids: I64,
    codes: U64,
    texts: Texts,
    idle_ms: int,
    state: Sessions,
    early: F64,
    ends: Ends,
) -> int:
    """Take N records in their order.

    Args:
        slots: (N,) key (service) of each record.
        time_ms: (N,) its time.
        ids: (N,) hash of its session, 0: it has none.
        codes: (N,) its template.
        texts: of the records.
        idle_ms: silence that ends a session.
        state: of all services.
        early: out, element n: how few past sessions had this kind so often, said while the session
            runs; NaN for a record without a session, and while the population is young.
        ends: out, M >= ENDS_MAX * N is enough.

    Returns:
        The number of sessions that ended.
    """
    done = 0
    # Taking an array out of a tuple counts a reference: not once a record.
    page, depth, _, code = state.session
    _, stamp, _, last_ms, records, counts, _ = state[:7]
    kind, _, past, sums, clock_ms, ordinal = state[7:]
    kind_page, kind_code = kind.page, kind.code
    for n in range(slots.shape[0]):
        slot = slots[n]
        ordinal[slot] += 1
        clock_ms[slot] = max(clock_ms[slot], time_ms[n])
        done = _sweep(state, slot, idle_ms, n, done, ends)
        early[n] = np.nan
        if ids[n] == 0:
            continue
        # After the sweep, which may have ended this very session.
        row, known = find(page, depth, code, stamp, slot, np.uint64(ids[n]))
        late = known and last_ms[row] < clock_ms[slot] - idle_ms
        if not known or late or records[row] >= RECORDS_MAX:
            row, done = _begin(state, slot, time_ms[n], np.uint64(ids[n]), row, n, done, ends)
            _copy(texts.text, texts.id_begin[n], texts.id_size[n], state.session_id[row])
        t, own = _kind_of(kind_page, kind_code, slot, codes[n])
        if own < 0:
            t, own = _new_kind(state, slot, codes[n])
            size = min(texts.line_size[n], texts.keep)
            _copy(texts.text, texts.line_begin[n], size, state.head[own])
        count = min(int(counts[row, t]) + 1, 255)
        counts[row, t] = count
        records[row] += 1
        stamp[row] = ordinal[slot]
        last_ms[row] = max(last_ms[row], time_ms[n])
        if sums[slot, TOTAL] >= YOUNG:
            early[n] = _often(past[own], sums[slot, TOTAL], int(_BIN[count]))
    return done
