"""How is this call beside the past calls of its edge? Four numbers.

An edge is what a key (the service that is called) and one or two names (who calls, and what) make.

    slow    z / 2 up to z = 2, z the deviations of log duration above the edge's mean; beyond that
            1 + (z - 2) / h, h what z - 2 is on average where it is above 0: Hill's estimate of
            how heavy the tail is (1975, Annals of Statistics 3:1163), for each edge by itself
    slower  t^1.5, t the mean deviation of the last calls over its own deviation, in which how well
            the edge's mean is known has its part; of t itself the tail is lighter than any that
            calibrate.py fits, of t^2 heavy as soon as a change is in it
    errors  sqrt(2 L), L = s log(s / e) + (n - s) log((n - s) / (n - e)) where s > e: the binomial
            log-likelihood ratio of s failures among the last n calls, of which e were to be
            expected by the edge's usual share
    edge    -log10 share of the edge among the key's calls; of a new one, by how far back the last
            three new ones were

"The last calls" fade with a half-life of 32 calls of the edge. No binomial tail is fatter than
exp(-L) (Chernoff; the bound of Bahadur & Rao 1960, Annals of Mathematical Statistics 31:1015, is
smaller by the root of 2 pi s): this is how rare `errors` may be called, whatever the past says, so
that one failure after thousands of good calls wakes nobody. Nor is an edge ever called rarer than
REACH decades beyond `edge`.

Durations have heavy tails. A deviation teaches at most CLIP (Huber's location), and one far below
the mean counts as an eighth of it: zeros of a clock that is too coarse say nothing more. The usual
share of failures is drawn towards that of the key, by PRIOR calls, and has half a failure more than
came: none in a thousand calls is no promise that none comes.

A call is judged by the calls before it only. State of a key is a fixed set of rows (log_shelf.py
says which edge is forgotten). It knows nothing of what is strange; traces_kernel.py says what is
learnt.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.models import calibrate, promise
from raywatch.models.log_shelf import LAST, find, mix, new_rarity, rarity
from raywatch.models.scorer import F32, F64, I64

U64 = NDArray[np.uint64]

CHANNELS = ("slow", "slower", "errors", "edge")
SLOW, SLOWER, ERRORS, EDGE = range(4)

EDGES = 128  # rows of a key: all of some forty edges have room, of more nearly all
CALLS_MIN = 20  # durations of an edge before one is judged
RATE = 1.0 / 500.0  # slowest gain of mean and variance, in calls of the edge
FADE = 0.5 ** (1.0 / 10_000.0)  # of the edge's share, by a call of the key
FADE_USUAL = 0.5 ** (1.0 / 5_000.0)  # of failures and calls that were learnt, by a call of the edge
FADE_KEY = 0.5 ** (1.0 / 20_000.0)  # and of those of the key
FADE_LATE = 0.5 ** (1.0 / 32.0)  # of the last calls, by a call of the edge
WINDOW = 1.0 / (1.0 - FADE_LATE)  # no fading count of late calls is above it
PRIOR = 20.0  # calls
FLOOR = 0.05  # Least deviation on a log scale, 5 %: a constant is not infinitely sharp.
CLIP = 3.0  # deviations
DEEP = math.log(8.0)  # below the mean: nothing counts as shorter
LINE = 2.0  # deviations: the tail of durations begins there
TAIL, TAIL_PRIOR = 0.4, 10.0  # mean of what is beyond it: Gaussian .37; worth so many durations
TAIL_MIN = 0.05  # Least of it, in deviations: no tail is infinitely thin.
TAIL_RATE = 1.0 / 100.0  # slowest gain of it, in durations beyond the line
TAIL_CLIP = 10.0  # of it: the most that one of them teaches
SHARP = 1.5  # power of `slower`; see above
REACH = 2.0  # edges are few and known soon: a new one is rarer than counting new ones says
SPARE, SPARE_DEVIATIONS = 2.0, 3.0  # failures beyond what is usual that are learnt at once
SEEN_MAX = 1e6  # float32 counts so far

COUNT, SEEN, MEAN, VARIANCE, LATE_SUM, LATE_SEEN = range(6)  # columns of `stat`
CALLS, FAILED, LATE_CALLS, LATE_FAILED, HELD = range(6, 11)
BEYOND, BEYOND_MEAN = 11, 12  # durations beyond the line, and by how much on average, less TAIL
STAT = 13
OFF_ROW, OFF_UNTIL = range(2)  # columns of `off`

# What explains a call: columns of `why`.
KNOWN = 0  # durations that the edge was judged by; 0: none is usual yet
USUAL, DEVIATION = 1, 2  # of the log duration
RECENT = 3  # mean log duration of the last calls, this one among them
FAILURES, OF_CALLS = 4, 5  # among the last calls, fading
RATE_USUAL = 6  # share of failures
SHARE = 7  # of the edge among the key's calls before it; 0: new
SPAN = 8  # calls since the last three new edges began to come; where it is new
WHY = 9


class Edges(NamedTuple):
    """Everything that is remembered of S keys."""

    code: U64  # (S, EDGES) the edge, 0: free
    stamp: I64  # (S, EDGES) the key's count of calls when it was last seen
    since_ms: I64  # (S, EDGES) where its strange stretch began
    stat: F32  # (S, EDGES, STAT)
    ordinal: I64  # (S,) calls of the key
    total: F64  # (S,) faded count of them
    news: I64  # (S, LAST) the key's count of calls at its last new edges
    failed: F64  # (S, 2) faded counts of failures and calls that were learnt
    off: I64  # (S, 2) row + 1 of an edge that is strange, 0: none; call until which that counts
    calibration: F64  # (S, 4, 7)
    promise: F64  # (S, 3)


LAYOUT: dict[str, tuple[tuple[int, ...], Any]] = {
    "code": ((EDGES,), np.uint64),
    "stamp": ((EDGES,), np.int64),
    "since_ms": ((EDGES,), np.int64),
    "stat": ((EDGES, STAT), np.float32),
    "ordinal": ((), np.int64),
    "total": ((), np.float64),
    "news": ((LAST,), np.int64),
    "failed": ((2,), np.float64),
    "off": ((2,), np.int64),
    "calibration": ((len(CHANNELS), calibrate.COLUMNS), np.float64),
    "promise": ((promise.COLUMNS,), np.float64),
}


@njit(cache=True, nogil=True)
def code_of(words: I64, n: int) -> np.uint64:
    """One code of a call's names, order counts; never 0."""
    code = np.uint64(1)
    for word in range(words.shape[1]):
        code = mix(code, np.uint64(words[n, word]))
    return code


@njit(cache=True, nogil=True)
def place(
    code: U64, stamp: I64, since_ms: I64, stat: F32, news: I64, slot: int, this: np.uint64,
    now: int, total: float, why: F64,
) -> tuple[int, float]:  # fmt: skip
    """The row of a call's edge, which is made where it is new, and how rare that is; counts it."""
    row, known = find(code, stamp, slot, this)
    cell = stat[slot, row]
    count, rare = 0.0, 0.0
    if known:
        count = cell[COUNT] * FADE ** (now - stamp[slot, row])
        rare = rarity(count, total)
        why[SHARE] = count / total
    else:
        code[slot, row] = this
        cell[:] = 0.0
        since_ms[slot, row] = 0
        why[SPAN] = now - news[slot, LAST - 1]
        rare = new_rarity(news[slot], now)
    cell[COUNT] = count + 1.0
    stamp[slot, row] = now
    return row, rare


@njit(cache=True, nogil=True)
def look_at_duration(cell: F32, duration: float, why: F64) -> tuple[float, float, float]:
    """Slow, slower, and the deviation, NaN: none; it is one of the last calls then."""
    seen, mean = cell[SEEN], cell[MEAN]
    deviation = math.sqrt(cell[VARIANCE] + FLOOR * FLOOR)
    why[KNOWN], why[USUAL], why[DEVIATION], why[RECENT] = 0.0, mean, deviation, mean
    if math.isnan(duration) or (seen == 0.0 and duration <= 0.0):
        return 0.0, 0.0, math.nan
    if seen == 0.0:  # its first one is its mean
        return 0.0, 0.0, 0.0
    deep = mean - DEEP
    strange = ((max(math.log(duration), deep) if duration > 0.0 else deep) - mean) / deviation
    if seen < CALLS_MIN:
        return 0.0, 0.0, strange
    cell[LATE_SUM] = cell[LATE_SUM] * FADE_LATE + min(max(strange, -CLIP), CLIP)
    cell[LATE_SEEN] = cell[LATE_SEEN] * FADE_LATE + 1.0
    left = 1.0 - cell[LATE_SEEN] * (1.0 - FADE_LATE)  # FADE_LATE to the power of their number
    late = cell[LATE_SUM] / cell[LATE_SEEN]
    spread = (1.0 - left * left) / (1.0 - FADE_LATE * FADE_LATE) / cell[LATE_SEEN] ** 2
    spread += 1.0 / min(float(seen), 2.0 / RATE)  # the edge's mean is not known better than that
    why[KNOWN], why[RECENT] = seen, mean + deviation * late
    slow = max(strange, 0.0) / LINE
    if strange > LINE:
        slow = 1.0 + (strange - LINE) / max(TAIL + cell[BEYOND_MEAN], TAIL_MIN)
    return slow, max(late / math.sqrt(spread), 0.0) ** SHARP, strange


@njit(cache=True, nogil=True)
def look_at_failure(cell: F32, of_key: F64, failed: bool, why: F64) -> tuple[float, bool]:
    """Errors, and whether there are many failures; it is one of the last calls then."""
    common = (of_key[0] + 0.5) / (of_key[1] + 50.0)
    usual = (cell[FAILED] + 0.5 + PRIOR * common) / (cell[CALLS] + 1.0 + PRIOR)
    cell[LATE_CALLS] = cell[LATE_CALLS] * FADE_LATE + 1.0
    cell[LATE_FAILED] = cell[LATE_FAILED] * FADE_LATE + (1.0 if failed else 0.0)
    calls, failures = float(cell[LATE_CALLS]), float(cell[LATE_FAILED])
    why[FAILURES], why[OF_CALLS], why[RATE_USUAL] = failures, calls, usual
    expected = calls * usual
    if failures <= expected:
        return 0.0, False
    ratio = failures * math.log(failures / expected)
    good = calls - failures
    if good > 0.0:
        ratio += good * math.log(good / (calls - expected))
    many = failures > expected + SPARE + SPARE_DEVIATIONS * math.sqrt(expected)
    return math.sqrt(2.0 * max(ratio, 0.0)), many


@njit(cache=True, nogil=True)
def teach_duration(cell: F32, duration: float, strange: float) -> None:
    """Learn a deviation, which is a number."""
    seen = cell[SEEN]
    if seen == 0.0:
        cell[MEAN], cell[VARIANCE], cell[SEEN] = math.log(duration), 0.0, 1.0
        return
    if strange > LINE and seen >= CALLS_MIN:
        tail, beyond = max(TAIL + cell[BEYOND_MEAN], TAIL_MIN), cell[BEYOND] + 1.0
        more = min(strange - LINE, TAIL_CLIP * tail)
        cell[BEYOND] = min(beyond, SEEN_MAX)
        cell[BEYOND_MEAN] += max(TAIL_RATE, 1.0 / (beyond + TAIL_PRIOR)) * (more - tail)
    gap = min(max(strange, -CLIP), CLIP) * math.sqrt(cell[VARIANCE] + FLOOR * FLOOR)
    gain = max(RATE, 1.0 / (seen + 1.0))
    cell[MEAN] += gain * gap
    cell[VARIANCE] = (1.0 - gain) * (cell[VARIANCE] + gain * gap * gap)
    cell[SEEN] = min(seen + 1.0, SEEN_MAX)


@njit(cache=True, nogil=True)
def teach_failure(cell: F32, of_key: F64, failed: bool) -> None:
    """Learn whether a call failed."""
    more = 1.0 if failed else 0.0
    cell[CALLS] = cell[CALLS] * FADE_USUAL + 1.0
    cell[FAILED] = cell[FAILED] * FADE_USUAL + more
    of_key[0] = of_key[0] * FADE_KEY + more
    of_key[1] = of_key[1] * FADE_KEY + 1.0


@njit(cache=True, nogil=True)
def begin_anew(cell: F32) -> None:
    """What the edge does now is usual: durations are learnt as those of a new one."""
    cell[BEYOND], cell[BEYOND_MEAN] = 0.0, 0.0
    cell[SEEN], cell[LATE_SUM], cell[LATE_SEEN], cell[HELD] = 0.0, 0.0, 0.0, 0.0
    cell[CALLS], cell[FAILED] = cell[LATE_CALLS], cell[LATE_FAILED]
