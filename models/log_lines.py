"""What is strange about this log line, seen by the past lines of its key? Five numbers.

    rare    -log10 share of its template; of a new one, by how far back the last three new ones were
    step    the same for the pair (template before, this one), given the one before
    pause   log gap to the last line of the template, and of the key: deviations above the mean
    rush    log of the template's rate (a count that fades in 10 s): deviations above its mean
    number  the number in it farthest from its mean, on a log scale: deviations, either side

All are >= 0, 0 where nothing can be said yet, and meant for a calibrator each: `rare` and `step`
are never all zero, so that their tails can be learned. Counts fade with one half-life, counted in
the key's lines; means with `RATE` once there are enough. A line is judged by the lines before it
only.

State of a key grows with use up to 256 templates, 512 pairs, 512 families (pages.py says which are
then forgotten). It knows nothing of words inside values and nothing of templates that fall
silent for ever.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.models.log_families import FAMILIES, resolve
from raywatch.models.log_shelf import LAST, WAYS, mix, new_rarity, rarity
from raywatch.models.pages import Shelf, find, room
from raywatch.models.scorer import F32, F64, I32, I64, U8

U64 = NDArray[np.uint64]

CHANNELS = ("rare", "step", "pause", "rush", "number")
RARE, STEP, PAUSE, RUSH, NUMBER = range(5)

TEMPLATES = 256  # rows of a key; the richest of eight systems had 174 templates in 2,000 lines
PAIRS = 512
NUMBERS = 4  # numbers of a template that are followed: bounds the state to 12 bytes each
LINES_MIN = 10  # lines of a template before its gaps, rate and numbers are judged
HALF_LIFE = 10_000.0  # of counts, in lines of the key
FADE = 0.5 ** (1.0 / HALF_LIFE)
RATE = 1.0 / 500.0  # slowest gain of means and variances, in lines of the template
WINDOW_MS = 10_000.0
FLOOR = 0.05  # Least deviation on a log scale, 5 %: a constant is not infinitely sharp.
CLIP = 6.0  # A value teaches at most so many deviations.

COUNT, GAP, GAP_VAR, LEVEL, LEVEL_MEAN, LEVEL_VAR = range(6)
SEEN, MEAN, VARIANCE = range(3)
NEW, NEW_PAIRS = range(2)

# What explains a line: columns of `why`.
SHARE = 0  # of its template among the key's lines before it; 0: new
SPAN = 1  # lines since the last three new templates began to come; where it is new
FOLLOWS, PRIOR = 2, 3  # how often this template followed the one before, and how often that came
WAIT, WAIT_USUAL = 4, 5  # ms
WAIT_OWN = 6  # 1: for a line of its template, 0: for any line of the key
LINES, LINES_USUAL = 7, 8  # of its template in WINDOW_MS, fading
VALUE, VALUE_MEAN, VALUE_DEVIATION = 9, 10, 11  # the number; signed log of what is usual
PLACE = 12  # which of the line's values that number is, -1: none
WHY = 13


class Lines(NamedTuple):
    """Everything that is remembered of the lines of S keys."""

    template: Shelf  # its codes are ids; this and the next four in rows
    stamp: I64  # (R,) the key's count of lines when it was last seen
    last_ms: I64  # (R,)
    stat: F32  # (R, 6)
    numbers: F32  # (R, NUMBERS, 3)
    family: Shelf  # see log_families.py
    family_stamp: I64  # (R,)
    met: I32  # (R,)
    pair: Shelf
    pair_stamp: I64  # (R,)
    pair_count: F32  # (R,)
    ordinal: I64  # (S,) lines of the key
    before: U64  # (S,) template of the last line
    news: I64  # (S, 2, LAST) the key's count of lines at its last new templates, new pairs
    pace: F64  # (S, 3) time of the last line, mean and variance of the log gap
    total: F64  # (S,) faded count of lines


# What a key has in pages: how many at most, and what is in a row, in the order of Lines.
PAGES: dict[str, tuple[int, dict[str, tuple[tuple[int, ...], Any]]]] = {
    "templates": (
        TEMPLATES // WAYS,
        {
            "stamp": ((), np.int64),
            "last_ms": ((), np.int64),
            "stat": ((6,), np.float32),
            "numbers": ((NUMBERS, 3), np.float32),
        },
    ),
    "families": (FAMILIES // WAYS, {"stamp": ((), np.int64), "met": ((), np.int32)}),
    "pairs": (PAIRS // WAYS, {"stamp": ((), np.int64), "count": ((), np.float32)}),
}
LAYOUT: dict[str, tuple[tuple[int, ...], Any]] = {
    "ordinal": ((), np.int64),
    "before": ((), np.uint64),
    "news": ((2, LAST), np.int64),
    "pace": ((3,), np.float64),
    "total": ((), np.float64),
}


@njit(cache=True, nogil=True)
def _visit(mean: float, variance: float, count: float, value: float) -> tuple[float, float, float]:
    """Deviation of a value from a running mean of `count` values; mean and variance with it."""
    if count == 0.0:
        return 0.0, value, 0.0
    deviation = math.sqrt(variance + FLOOR * FLOOR)
    strange = (value - mean) / deviation
    gap = min(max(strange, -CLIP), CLIP) * deviation
    gain = max(RATE, 1.0 / (count + 1.0))
    return strange, mean + gain * gap, (1.0 - gain) * (variance + gain * gap * gap)


@njit(cache=True, nogil=True)
def _quiet(pace: F64, time_ms: float, now: int, why: F64) -> float:
    """Deviation of the gap before the key's line number `now`, 0 while there are few; learns it."""
    if now == 1:
        pace[0] = time_ms
        return 0.0
    wait = max(time_ms - pace[0], 0.0)
    why[WAIT], why[WAIT_USUAL], why[WAIT_OWN] = wait, math.expm1(pace[1]), 0.0
    strange, pace[1], pace[2] = _visit(pace[1], pace[2], float(now - 2), math.log1p(wait))
    pace[0] = max(pace[0], time_ms)
    return strange if now > LINES_MIN else 0.0


@njit(cache=True, nogil=True)
def _log(value: float) -> float:
    """Signed log: numbers of any size on one scale."""
    return math.copysign(math.log1p(abs(value)), value)


@njit(cache=True, nogil=True)
def _numbers(numbers: F32, value: F64, judged: bool, why: F64) -> float:
    """The strangest number of a line; learns all of them."""
    worst = 0.0
    why[PLACE] = -1.0
    for i in range(NUMBERS):
        if not math.isfinite(value[i]):
            continue
        cell = numbers[i]
        seen, mean, variance = cell[SEEN], cell[MEAN], cell[VARIANCE]
        z, cell[MEAN], cell[VARIANCE] = _visit(mean, variance, seen, _log(value[i]))
        cell[SEEN] = min(seen + 1.0, 1e6)
        if judged and seen >= LINES_MIN and abs(z) > worst:
            worst = abs(z)
            why[PLACE], why[VALUE], why[VALUE_MEAN] = i, value[i], mean
            why[VALUE_DEVIATION] = math.sqrt(variance + FLOOR * FLOOR)
    return worst


@njit(cache=True, nogil=True)
def _order(
    page: I32, depth: U8, code: U64, stamp: I64, stat: F32, pair_page: I32, pair_depth: U8,
    pair_code: U64, pair_stamp: I64, pair_count: F32, pair: Shelf, news: I64, slot: int, now: int,
    before: np.uint64, this: np.uint64, known: bool, why: F64,
) -> float:  # fmt: skip
    """How strange it is that a template follows the one before it; learns the pair."""
    strange, often = 0.0, 0.0
    both = mix(before, this)
    at, met = find(pair_page, pair_depth, pair_code, pair_stamp, slot, both)
    if met:
        often = pair_count[at] * FADE ** (now - pair_stamp[at])
    elif at < 0:
        at = room(pair, pair_stamp, (pair_stamp, pair_count), slot, both)
    if known:
        prior, there = find(page, depth, code, stamp, slot, before)
        why[FOLLOWS], why[PRIOR] = often, stat[prior, COUNT] if there else 0.0
        if met and there:
            strange = rarity(often, stat[prior, COUNT])
        elif not met:
            strange = new_rarity(news, now)
    pair_code[at], pair_stamp[at], pair_count[at] = both, now, often + 1.0
    return strange


@njit(cache=True, nogil=True)
def _tempo(cell: F32, gap: float, count: float, known: bool, strange: F64, why: F64) -> None:
    """Pause and rush of a template; `strange[PAUSE]` is what the key says of its own pause."""
    level = cell[LEVEL] * math.exp(-gap / WINDOW_MS) + 1.0
    pause, judged = 0.0, count >= LINES_MIN
    usual = math.expm1(cell[GAP])
    if known:
        # Gaps are one fewer than lines.
        pause, cell[GAP], cell[GAP_VAR] = _visit(
            cell[GAP], cell[GAP_VAR], max(count - 1.0, 0.0), math.log1p(gap)
        )
    why[LINES], why[LINES_USUAL] = level, math.exp(cell[LEVEL_MEAN])
    rush, cell[LEVEL_MEAN], cell[LEVEL_VAR] = _visit(
        cell[LEVEL_MEAN], cell[LEVEL_VAR], count, math.log(level)
    )
    if judged and pause > strange[PAUSE]:
        strange[PAUSE] = pause
        why[WAIT], why[WAIT_USUAL], why[WAIT_OWN] = gap, usual, 1.0
    strange[RUSH] = max(rush, 0.0) if judged else 0.0
    cell[LEVEL] = level


@njit(cache=True, nogil=True)
def look(
    slots: I32,
    time_ms: I64,
    codes: U64,
    families: U64,
    values: F64,
    state: Lines,
    age: I64,
    strange: F64,
    why: F64,
) -> None:
    """Judge N lines in their order, each by the past of its key, then learn it.

    Args:
        slots: (N,) key of each line.
        time_ms: (N,) its time; a line older than the last one of its template has a gap of 0.
        codes: (N,) its template; out: the one it goes by with this key.
        families: (N, F), see log_template.read.
        values: (N, >= NUMBERS), NaN where there is no number.
        state: of all keys.
        age: out (N,), lines of its key before it.
        strange: out (N, >= len(CHANNELS)), finite and >= 0.
        why: out (N, WHY), what explains it.
    """
    # Taking an array out of a tuple counts a reference: not once a record.
    template, stamp, last_ms, stat, numbers, family, family_stamp, met = state[:8]
    pair, pair_stamp, pair_count, ordinal, before, news, pace, total = state[8:]
    page, depth, _, code = template
    pair_page, pair_depth, _, pair_code = pair
    for n in range(slots.shape[0]):
        slot, this, reason = slots[n], strange[n], why[n]
        now = int(ordinal[slot]) + 1
        ordinal[slot], age[n] = now, now - 1
        reason[:] = 0.0
        row, known = find(page, depth, code, stamp, slot, codes[n])
        if not known:
            codes[n] = resolve(
                codes[n], families[n], slot, now, template, stamp, family, family_stamp, met
            )
            row, known = find(page, depth, code, stamp, slot, codes[n])
        if row < 0:
            row = room(template, stamp, (stamp, last_ms, stat, numbers), slot, codes[n])
        cell, count, gap = stat[row], 0.0, 0.0
        if known:
            count = cell[COUNT] * FADE ** (now - stamp[row])
            gap = max(float(time_ms[n] - last_ms[row]), 0.0)
            this[RARE] = rarity(count, float(total[slot]))
            reason[SHARE] = count / total[slot]
        else:
            code[row] = codes[n]
            cell[:] = 0.0
            numbers[row] = 0.0
            last_ms[row] = time_ms[n]
            reason[SPAN] = now - news[slot, NEW, LAST - 1]
            this[RARE] = new_rarity(news[slot, NEW], now)
        this[STEP] = 0.0
        if before[slot] != 0:
            this[STEP] = _order(
                page, depth, code, stamp, stat, pair_page, pair_depth, pair_code, pair_stamp,
                pair_count, pair, news[slot, NEW_PAIRS], slot, now,
                np.uint64(before[slot]), codes[n], known, reason,
            )  # fmt: skip
        before[slot] = codes[n]
        this[PAUSE] = max(_quiet(pace[slot], float(time_ms[n]), now, reason), 0.0)
        _tempo(cell, gap, count, known, this, reason)
        this[NUMBER] = _numbers(numbers[row], values[n], count >= LINES_MIN, reason)
        cell[COUNT] = count + 1.0
        stamp[row] = now
        last_ms[row] = max(time_ms[n], last_ms[row])
        total[slot] = total[slot] * FADE + 1.0
