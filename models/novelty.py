"""How far is a value from every value that its key has had?

The last 4,096 to 8,191 values are remembered as 256 bins over the range that they needed; a value
outside doubles the bins until it fits. Novelty is the distance to the nearest bin that holds one,
counted in bins: exact to the width of one, which is all that a tail needs. It sees what neither
hours nor patterns do: a usual step to where nobody ever was.

State of a key, of one channel: `span[slot, (low, width, first, count)]` and `marks[slot, 0..255]`,
1 or 2 by the generation of 4,096 values that was last there. Zeros are new.
"""

import math

from numba import njit

from raywatch.models.scorer import F64, U8

BINS = 256
KEEP = 4_096  # values of a generation; two are remembered
NAME = "novel"  # of the component
# Most values are not novel at all, and few say how novel one may be: a tail fitted to them is too
# thin far out. It says at most 30 times as much as counting what was seen would.
REACH = 1.5
WIDTH_MIN = 1e-300  # The first two values may differ by the smallest number there is.
VALUE_MAX = 1e30  # as in profile.py

LOW, WIDTH, FIRST, COUNT = range(4)
COLUMNS = 4


@njit(cache=True, nogil=True)
def look(span: F64, marks: U8, slot: int, value: float) -> tuple[float, float]:
    """Judge a value, then remember it: (distance, nearest value known); NaN where it is missing."""
    if not abs(value) <= VALUE_MAX:
        return math.nan, math.nan
    count = int(span[slot, COUNT])
    now = 1 + (count // KEEP) % 2
    if count % KEEP == 0:
        for index in range(BINS):  # What carries this mark is two generations old.
            if marks[slot, index] == now:
                marks[slot, index] = 0
    span[slot, COUNT] = count + 1.0
    if span[slot, WIDTH] == 0.0:
        if count == 0:
            span[slot, FIRST] = value
        first = span[slot, FIRST]
        if value == first:
            return 0.0, value
        _begin(span, marks, slot, value, now)
    while value < span[slot, LOW] or value >= span[slot, LOW] + span[slot, WIDTH] * BINS:
        _double(span, marks, slot, now, value < span[slot, LOW])
    low, width = span[slot, LOW], span[slot, WIDTH]
    at = min(int((value - low) / width), BINS - 1)
    away, nearest = _nearest(marks, slot, at)
    marks[slot, at] = now
    if away == 0:
        return 0.0, value
    return away * width, low + (nearest + 0.5) * width if nearest >= 0 else math.nan


@njit(cache=True, nogil=True)
def _begin(span: F64, marks: U8, slot: int, value: float, now: int) -> None:
    """The first range: twice what two values need, around both."""
    first = span[slot, FIRST]
    width = max(2.0 * abs(value - first) / BINS, WIDTH_MIN)
    span[slot, WIDTH] = width
    span[slot, LOW] = min(value, first) - 0.25 * BINS * width
    marks[slot, min(int((first - span[slot, LOW]) / width), BINS - 1)] = now


@njit(cache=True, nogil=True)
def _double(span: F64, marks: U8, slot: int, now: int, down: bool) -> None:
    """Twice the range, two bins in one: downwards or upwards from where it is."""
    half = BINS // 2
    if down:
        span[slot, LOW] -= span[slot, WIDTH] * BINS
        for index in range(half - 1, -1, -1):
            newest = _newer(marks[slot, 2 * index], marks[slot, 2 * index + 1], now)
            marks[slot, 2 * index], marks[slot, 2 * index + 1] = 0, 0
            marks[slot, half + index] = newest
    else:
        for index in range(half):
            newest = _newer(marks[slot, 2 * index], marks[slot, 2 * index + 1], now)
            marks[slot, 2 * index], marks[slot, 2 * index + 1] = 0, 0
            marks[slot, index] = newest
    span[slot, WIDTH] *= 2.0


@njit(cache=True, nogil=True)
def _newer(one: int, other: int, now: int) -> int:
    return now if now in (one, other) else max(one, other)


@njit(cache=True, nogil=True)
def _nearest(marks: U8, slot: int, at: int) -> tuple[int, int]:
    """How many bins away the nearest one with a mark is, and which; (BINS, -1) where none is."""
    for away in range(BINS):
        if at - away >= 0 and marks[slot, at - away] != 0:
            return away, at - away
        if at + away < BINS and marks[slot, at + away] != 0:
            return away, at + away
    return BINS, -1
