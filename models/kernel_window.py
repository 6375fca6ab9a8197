"""What does a value look like against the last few dozen values or blocks before it?

Small pure kernels: each answer is a fixed expression of a fixed window of the row, summed in a
fixed order, so its bits depend neither on T nor on the rest of the batch. NaN in a row is "not
there yet" and stands only before the first value of the key.
"""

import numpy as np
from numba import njit

from raywatch.models.kernel import NAN
from raywatch.models.scorer import F32, F64, I32, I64

SHIFT_NOW = 12  # blocks that may have moved
SHIFT_PAST = 128  # blocks before them
SHIFT_PAST_MIN = 32  # fewer say nothing
SHIFT_CONSTANT = np.float32(50.0)  # the shift of a channel that never moved before

ROUGH_NOW = 64  # steps that may have gone quiet
ROUGH_PAST = 512  # steps before them
ROUGH_PAST_MIN = 128  # fewer say nothing
ROUGH_FLOOR = 1e-3  # of the past's roughness: bounds the score to ln 1000

VARY = 64  # values of a window whose variance is asked for
VARY_PAST = 8  # windows before it
VARY_PAST_MIN = 2  # fewer say nothing
VARY_FLOOR = 1e-12  # of the mean square: what is smaller is rounding

WINDOW = 64  # values before t that the robust z-score looks at
WINDOW_MIN = 16  # fewer say nothing
MAD_TO_DEVIATION = 1.4826  # of Gaussian data (Rousseeuw & Croux 1993, JASA 88:1273)
SPREAD_FLOOR = 0.01  # of the window's range
SIZE_FLOOR = 1e-6  # of the window's largest value: float32 has no more digits than that
Z_MAX = 1e4  # what a constant window says of any other value


@njit(cache=True, nogil=True)
def first_known(row: F32) -> int:
    """Index of the first value that is there; the length of the row where none is."""
    i = 0
    while i < row.shape[0] and np.isnan(row[i]):
        i += 1
    return i


@njit(cache=True, nogil=True)
def level_shift(values: F32, begin: I64, fresh: I32, history: int, out: F32) -> None:
    """|mean of the last 12 - mean of the 128 before| / (their deviation + 1 % of their range).

    Args:
        values: rows of block means.
        begin: (R,) where each row begins.
        fresh: (R,) new blocks of each row.
        history: at least 139.
        out: one for each new block; NaN until 12 + 32 blocks are there.
    """
    at = 0
    for r in range(begin.shape[0]):
        row = values[begin[r] : begin[r] + history + fresh[r]]
        known = first_known(row)
        for t in range(history, row.shape[0]):
            split = t + 1 - SHIFT_NOW
            first = max(known, split - SHIFT_PAST)
            past = split - first
            out[at] = shift(row[first:split], row[split : t + 1]) if past >= SHIFT_PAST_MIN else NAN
            at += 1


@njit(cache=True, nogil=True)
def shift(past: F32, now: F32) -> np.float32:
    """The level shift between two windows."""
    total, low, high = 0.0, np.inf, -np.inf
    for y in past:
        total += y
        low = min(low, y)
        high = max(high, y)
    mean = total / past.shape[0]
    total = 0.0
    for y in now:
        total += y
    moved = abs(total / now.shape[0] - mean)
    if high <= low:
        return SHIFT_CONSTANT if moved > 0.0 else np.float32(0.0)
    total = 0.0
    for y in past:
        total += (y - mean) * (y - mean)
    return np.float32(moved / (np.sqrt(total / past.shape[0]) + 0.01 * (high - low)))


@njit(cache=True, nogil=True)
def roughness(values: F32, begin: I64, fresh: I32, history: int, step: F32, quiet: F32) -> None:
    """The last step |x_t - x_{t-1}|, and how much smaller steps have become: ln(past / now) >= 0.

    `now` is the mean of the last 64 steps, `past` that of the up to 512 before them. Min-distances
    do not see a flat line (any quiet stretch of the past explains it); this does. Sums are folded
    widest stride first, as in the lag bank: no running sum.

    Args:
        values: rows.
        begin: (R,) where each row begins.
        fresh: (R,) new values of each row.
        history: at least 576.
        step: out, NaN for the first value of a key.
        quiet: out, NaN until 64 + 128 steps are there.
    """
    longest = 0
    for r in range(begin.shape[0]):
        longest = max(longest, fresh[r])
    reach = ROUGH_PAST + ROUGH_NOW - 1
    now = np.empty(longest + reach, np.float32)
    past = np.empty(longest + reach, np.float32)
    at = 0
    for r in range(begin.shape[0]):
        new = fresh[r]
        row = values[begin[r] + history - reach - 1 : begin[r] + history + new]
        known = first_known(row)
        for i in range(new + reach):
            d = abs(row[i + 1] - row[i])
            # Before the first value a step is 0; the count below leaves it out of the mean.
            now[i] = np.float32(0.0) if np.isnan(d) else d
            past[i] = now[i]
        fold_sum(now[ROUGH_PAST:], new, ROUGH_NOW)
        fold_sum(past, new, ROUGH_PAST)
        for t in range(new):
            last = t + reach + 1
            step[at] = abs(row[last] - row[last - 1])
            count = min(ROUGH_PAST, last - ROUGH_NOW - known)
            if count < ROUGH_PAST_MIN:
                quiet[at] = NAN
            else:
                before = np.float64(past[t]) / count
                after = max(np.float64(now[ROUGH_PAST + t]) / ROUGH_NOW, ROUGH_FLOOR * before)
                quiet[at] = np.log(before / after) if before > after else 0.0
            at += 1


@njit(cache=True, nogil=True)
def variance_shift(values: F32, begin: I64, fresh: I32, history: int, out: F32) -> None:
    """How much larger the variance has become: ln(now / past) >= 0.

    `now` is the variance of the last 64 values, `past` the mean of those of the up to 8 windows of
    64 before them. 0 where the past is constant: other components see that it no longer is.

    Args:
        values: rows.
        begin: (R,) where each row begins.
        fresh: (R,) new values of each row.
        history: at least 575.
        out: one for each new value; NaN until 64 + 128 values are there.
    """
    longest = 0
    for r in range(begin.shape[0]):
        longest = max(longest, fresh[r])
    before = VARY * VARY_PAST
    reach = before + VARY - 1
    room = max(longest + reach, (VARY_PAST + 1) * 2 * VARY)
    total, square = np.empty(room), np.empty(room)
    at = 0
    for r in range(begin.shape[0]):
        new = fresh[r]
        row = values[begin[r] + history - reach : begin[r] + history + new]
        known = first_known(row)
        apart = new < VARY
        if apart:  # Most windows of the whole row are not asked for.
            width = new + VARY - 1
            for back in range(VARY_PAST + 1):
                first = before - VARY * back
                part = slice(back * width, (back + 1) * width)
                sum_windows(row[first : first + width], total[part], square[part], new)
        else:
            sum_windows(row, total, square, new + before)
        for t in range(new):
            now, largest = variance(total, square, t if apart else t + before)
            past, count = 0.0, 0
            for back in range(1, VARY_PAST + 1):
                window = t + before - VARY * back
                if window >= known:
                    place_of = t + back * (new + VARY - 1) if apart else window
                    one, mean_square = variance(total, square, place_of)
                    past += one
                    largest = max(largest, mean_square)
                    count += 1
            if count < VARY_PAST_MIN:
                out[at] = NAN
            elif past <= VARY_FLOOR * largest * count or now * count <= past:
                out[at] = 0.0
            else:
                out[at] = np.log(now * count / past)
            at += 1


@njit(cache=True, nogil=True)
def sum_windows(row: F32, total: F64, square: F64, windows: int) -> None:
    """Sums of values, and of squares, of the windows of 64 that begin at row[0], row[1], ..."""
    for i in range(windows + VARY - 1):
        x = 0.0 if np.isnan(row[i]) else np.float64(row[i])
        total[i], square[i] = x, x * x
    fold_sum(total, windows, VARY)
    fold_sum(square, windows, VARY)


@njit(cache=True, nogil=True)
def variance(total: F64, square: F64, window: int) -> tuple[float, float]:
    """Variance of a window of 64, and its mean square, from sums of values and of squares."""
    mean, mean_square = total[window] / VARY, square[window] / VARY
    return max(mean_square - mean * mean, 0.0), mean_square


@njit(cache=True, nogil=True)
def fold_sum(a: F32 | F64, new: int, window: int) -> None:
    """a[i] <- sum of a[i : i + window] for i < new; `window` is a power of 2. In place."""
    stride = window // 2
    while stride > 0:
        for i in range(new + stride - 1):
            a[i] = a[i] + a[i + stride]
        stride //= 2


@njit(cache=True, nogil=True)
def place(window: F32, size: int, x: np.float32) -> int:
    """How many of a sorted window's first `size` values are smaller than x."""
    smaller = 0
    for i in range(size):
        smaller += window[i] < x
    return smaller


@njit(cache=True, nogil=True)
def insert(window: F32, size: int, x: np.float32) -> None:
    """Put x into a sorted window of `size` values with room for one more."""
    i = size
    while i > 0 and window[i - 1] > x:
        window[i] = window[i - 1]
        i -= 1
    window[i] = x


@njit(cache=True, nogil=True)
def replace(window: F32, size: int, old: np.float32, x: np.float32) -> None:
    """Exchange one value of a sorted window for another."""
    i = place(window, size, old)
    while i + 1 < size and window[i + 1] < x:
        window[i] = window[i + 1]
        i += 1
    while i > 0 and window[i - 1] > x:
        window[i] = window[i - 1]
        i -= 1
    window[i] = x


@njit(cache=True, nogil=True)
def deviation(window: F32, size: int, median: float) -> float:
    """Median absolute deviation of a sorted window of `size` values.

    Distances grow to both sides of the median, so the two sides are merged up to the middle.
    """
    left = (size - 1) // 2
    right = left + 1
    before, here = 0.0, 0.0
    for _ in range(size // 2 + 1):
        before = here
        down = median - window[left] if left >= 0 else np.inf
        up = window[right] - median if right < size else np.inf
        if down <= up:
            here = down
            left -= 1
        else:
            here = up
            right += 1
    return here if size % 2 == 1 else 0.5 * (before + here)


@njit(cache=True, nogil=True)
def robust_z(values: F32, begin: I64, fresh: I32, history: int, score: F32, expected: F32) -> None:
    """|x - median| / max(1.4826 MAD, floors) over the 64 values before each new one.

    Args:
        values: rows.
        begin: (R,) where each row begins.
        fresh: (R,) new values of each row.
        history: at least 64.
        score: out, 0 .. 1e4, NaN until 16 values are there.
        expected: out, the median; NaN as the score.
    """
    window = np.empty(WINDOW + 1, np.float32)
    at = 0
    for r in range(begin.shape[0]):
        row = values[begin[r] + history - WINDOW : begin[r] + history + fresh[r]]
        size = 0
        for i in range(WINDOW):
            if not np.isnan(row[i]):
                insert(window, size, row[i] + np.float32(0.0))
                size += 1
        for t in range(WINDOW, row.shape[0]):
            x = row[t] + np.float32(0.0)
            score[at], expected[at] = NAN, NAN
            if size >= WINDOW_MIN and not np.isnan(x):
                middle = 0.5 * (np.float64(window[(size - 1) // 2]) + window[size // 2])
                spread = np.float64(window[size - 1]) - window[0]
                largest = max(abs(window[0]), abs(window[size - 1]))
                scale = MAD_TO_DEVIATION * deviation(window, size, middle)
                scale = max(scale, SPREAD_FLOOR * spread, SIZE_FLOOR * largest)
                away = abs(x - middle)
                score[at] = away / scale if away < Z_MAX * scale else (Z_MAX if away > 0.0 else 0.0)
                expected[at] = middle
            if not np.isnan(x):
                if size == WINDOW:
                    replace(window, size, row[t - WINDOW] + np.float32(0.0), x)
                else:
                    insert(window, size, x)
                    size += 1
            at += 1
