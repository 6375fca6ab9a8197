"""How far is a window of values from the most similar window of the key's own past?

For each new value x[t] and a window of W values that fades by rho a step:

    S[t, lag] = sum over i < W of rho^i (x[t-i] - x[t-i-lag])^2
    m[t] = min over lag of S[t, lag]

    short window: W 16, rho 3/4        long window: W 64, rho 15/16

The sum is folded from the widest stride down: F[p] <- F[p] + rho^32 F[p+32], then 16, 8, 4, 2, 1
(p counts backwards in time). T new values need T+31, T+15, ... T+0 sums: nothing is computed twice
and nothing that is not needed, for T = 1 as for T = 64. There is no running sum: each S is a fixed
expression of its own 64 + 64 values, so its bits depend neither on T nor on what else is in the
batch. Multiply-add is written out (`fma`), so they do not depend on the compiler's taste either.

NaN means "not there": it makes every sum it touches NaN, and NaN loses every `<`. One thread, no
lock: lanes and scorers are the parallelism.
"""

from typing import Any, TypeVar

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from raywatch.models.scorer import F32, I32, I64

Kind = TypeVar("Kind", bound=np.generic)

SHORT = 16  # W of the short window
LONG = 64  # W of the long window
LANES = 64  # lags that are worked on together; the number of lags is a multiple of it
TILE = 64  # most new values of a row that are worked on together: bounds the scratch to 200 KiB
FEW = 16  # up to so many new values squares are worked out again instead of stored

INFINITY = np.float32(np.inf)
NAN = np.float32(np.nan)
L32, L16, L8, L4, L2, L1 = (np.float32((15 / 16) ** stride) for stride in (32, 16, 8, 4, 2, 1))
S8, S4, S2, S1 = (np.float32(0.75**stride) for stride in (8, 4, 2, 1))
LONG_SUM = np.float32(sum((15 / 16) ** i for i in range(LONG)))
SHORT_SUM = np.float32(sum(0.75**i for i in range(SHORT)))


def readonly(array: NDArray[Kind]) -> NDArray[Kind]:
    """The array as kernels take it: contiguous, aligned, read-only.

    Arrays that travelled are read-only and may be unaligned, local ones are neither; numba would
    compile every kernel once for each kind, in the middle of the stream.
    """
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = np.require(array, requirements=("C", "A"))
    array = array.view()
    array.flags.writeable = False
    return array


def _fma(_typing: Any, a: Any, b: Any, c: Any) -> Any:
    """The code of `fma`."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


fma: Any = intrinsic(_fma)  # fma(a, b, c): a * b + c in float32, rounded once


@njit(cache=True, nogil=True)
def fold(a: F32, rows: int, stride: int, fade: np.float32) -> None:
    """F[p] <- F[p] + fade F[p + stride] for p < rows, in place; a row is LANES values."""
    ahead = stride * LANES
    for i in range(rows * LANES):
        a[i] = fma(fade, a[i + ahead], a[i])


@njit(cache=True, nogil=True)
def squares(x: F32, lag: int, rows: int, a: F32) -> None:
    """a[p, j] = (x[p] - x[p + lag + j])^2; x is in reversed time."""
    for p in range(rows):
        here = x[p]
        past = x[p + lag : p + lag + LANES]
        row = a[p * LANES : (p + 1) * LANES]
        for j in range(LANES):
            d = here - past[j]
            row[j] = d * d


@njit(cache=True, nogil=True)
def few_squares(x: F32, lag: int, new: int, a: F32, b: F32) -> None:
    """Squares with the widest folds in one go: `a` down to stride 16, `b` down to stride 8.

    The same expressions as `squares` and folds, hence the same bits. A square is worked out
    again for each fold that wants it instead of stored, which is cheaper for few new values.
    """
    for p in range(new + 15):
        x0, x1, x2, x3 = x[p], x[p + 16], x[p + 32], x[p + 48]
        past = x[p + lag : p + lag + 48 + LANES]
        row = a[p * LANES : (p + 1) * LANES]
        for j in range(LANES):
            d0, d1, d2, d3 = x0 - past[j], x1 - past[j + 16], x2 - past[j + 32], x3 - past[j + 48]
            row[j] = fma(L16, fma(L32, d3 * d3, d1 * d1), fma(L32, d2 * d2, d0 * d0))
    if b.shape[0] == 0:
        return
    for p in range(new + 7):
        x0, x1 = x[p], x[p + 8]
        past = x[p + lag : p + lag + 8 + LANES]
        row = b[p * LANES : (p + 1) * LANES]
        for j in range(LANES):
            d0, d1 = x0 - past[j], x1 - past[j + 8]
            row[j] = fma(S8, d1 * d1, d0 * d0)


@njit(cache=True, nogil=True)
def many_squares(x: F32, lag: int, new: int, a: F32, b: F32) -> None:
    """What `few_squares` does, each square worked out once."""
    squares(x, lag, new + LONG - 1, a)
    if b.shape[0] > 0:
        for i in range((new + 7) * LANES):
            b[i] = fma(S8, a[i + 8 * LANES], a[i])
    fold(a, new + 31, 32, L32)
    fold(a, new + 15, 16, L16)


@njit(cache=True, nogil=True)
def short_minimum(b: F32, new: int, best: F32) -> None:
    """The last folds of the short window and the minimum so far of each lane."""
    fold(b, new + 3, 4, S4)
    fold(b, new + 1, 2, S2)
    for i in range(new * LANES):
        z = fma(S1, b[i + LANES], b[i])
        best[i] = z if z < best[i] else best[i]


@njit(cache=True, nogil=True)
def long_minimum(a: F32, new: int, skip: int, block: int, best: F32, where: I32) -> None:
    """The last folds of the long window, the minimum of each lane and the block it was in."""
    fold(a, new + 7, 8, L8)
    fold(a, new + 3, 4, L4)
    fold(a, new + 1, 2, L2)
    number = np.int32(block)
    if skip == 0:
        for i in range(new * LANES):
            z = fma(L1, a[i + LANES], a[i])
            less = z < best[i]
            best[i] = z if less else best[i]
            where[i] = number if less else where[i]
        return
    for p in range(new):
        for i in range(p * LANES + skip, (p + 1) * LANES):
            z = fma(L1, a[i + LANES], a[i])
            if z < best[i]:
                best[i] = z
                where[i] = number


@njit(cache=True, nogil=True)
def least_lane(best: F32) -> np.float32:
    """The smallest of one row of lanes, which is used up."""
    for half in (LANES // 2, LANES // 4, LANES // 8):
        for j in range(half):
            best[j] = best[j + half] if best[j + half] < best[j] else best[j]
    least = best[0]
    for j in range(1, LANES // 8):
        least = best[j] if best[j] < least else least
    return least


@njit(cache=True, nogil=True)
def nearest(best: F32, where: I32, lag0: int) -> tuple[np.float32, int]:
    """The smallest of one row of lanes and its lag, (inf, 0) where none; the row is used up.

    Of two equal ones the shorter lag counts: lanes hold lag - lag0 here, blocks before.
    """
    for j in range(LANES):
        where[j] = where[j] * np.int32(LANES) + np.int32(j)
    for half in (LANES // 2, LANES // 4, LANES // 8):
        for j in range(half):
            a, b = best[j], best[j + half]
            other = (b < a) | ((b == a) & (where[j + half] < where[j]))
            best[j] = b if other else a
            where[j] = where[j + half] if other else where[j]
    least, lag = best[0], where[0]
    for j in range(1, LANES // 8):
        if best[j] < least or (best[j] == least and where[j] < lag):
            least, lag = best[j], where[j]
    return least, (lag + lag0 if least < INFINITY else 0)


@njit(cache=True, nogil=True)
def bank(
    values: F32,
    begin: I64,
    fresh: I32,
    history: int,
    lag0: int,
    lags: int,
    long_from: int,
    short: F32,
    long: F32,
    lag: I32,
) -> None:
    """Score all new values of all rows of one level.

    Args:
        values: rows, back to back or not.
        begin: (R,) where each row begins.
        fresh: (R,) new values of each row, behind `history` older ones.
        history: at least lag0 + lags - 1 + 63.
        lag0: shortest lag of the short window.
        lags: their number, a multiple of LANES.
        long_from: shortest lag of the long window, lag0 <= long_from < lag0 + LANES.
        short: out, sqrt(m / sum of rho^i) of each new value; of length 0: not wanted.
        long: out, the same for the long window; NaN where no full pair of windows is there.
        lag: out, best lag of the long window, 0 where none.
    """
    reach = lag0 + lags - 1 + LONG - 1
    a = np.empty((LONG - 1 + TILE) * LANES, np.float32)
    b = np.empty((SHORT // 2 - 1 + TILE) * LANES if short.shape[0] > 0 else 0, np.float32)
    best_short = np.empty(TILE * LANES, np.float32)
    best_long = np.empty(TILE * LANES, np.float32)
    where = np.zeros(TILE * LANES, np.int32)
    x = np.empty(TILE + reach, np.float32)
    at = 0
    for r in range(begin.shape[0]):
        for done in range(0, fresh[r], TILE):
            new = min(TILE, fresh[r] - done)
            last = begin[r] + history + done + new - 1
            for q in range(new + reach):
                x[q] = values[last - q]
            best_short[: new * LANES] = INFINITY
            best_long[: new * LANES] = INFINITY
            where[: new * LANES] = 0
            for block in range(lags // LANES):
                first = lag0 + block * LANES
                if new <= FEW:
                    few_squares(x, first, new, a, b)
                else:
                    many_squares(x, first, new, a, b)
                if short.shape[0] > 0:
                    short_minimum(b, new, best_short)
                long_minimum(a, new, max(0, long_from - first), block, best_long, where)
            for p in range(new):
                to = at + new - 1 - p
                row = slice(p * LANES, (p + 1) * LANES)
                least, found = nearest(best_long[row], where[row], lag0)
                long[to] = np.sqrt(least / LONG_SUM) if least < INFINITY else NAN
                lag[to] = found
                if short.shape[0] > 0:
                    least = least_lane(best_short[row])
                    short[to] = np.sqrt(least / SHORT_SUM) if least < INFINITY else NAN
            at += new
