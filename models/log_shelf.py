"""Where does a key keep what it knows of a code? A small cache of fixed size with a stated rule.

A shelf of R rows is R / WAYS sets of WAYS rows. A code lives in the set its low bits name. If the
set is full, the code in it that was looked for longest ago is forgotten, and a later return of that
code is as good as new. Stamps are the key's own count of records, so what is forgotten is a
function of the key's records alone. Codes are hashes, never 0; two equal hashes are one code (2^-64
a pair).
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.models.scorer import I64

U64 = NDArray[np.uint64]

WAYS = 8
LAST = 3  # new ones that are remembered: one after long quiet is strange, the fourth is not
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, nogil=True)
def mix(a: np.uint64, b: np.uint64) -> np.uint64:
    """One code from two, order counts; never 0."""
    x = (a ^ ((b << np.uint64(31)) | (b >> np.uint64(33)))) * GOLDEN
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(32)
    return x if x != 0 else np.uint64(1)


@njit(cache=True, nogil=True)
def find(codes: U64, stamps: I64, slot: int, code: np.uint64) -> tuple[int, bool]:
    """The row of a code, and whether it was there; if not, the row it has to take. Changes nothing.

    `codes`: (S, R), 0 where free; R / WAYS is a power of two. `stamps`: (S, R), when each code was
    last looked for.
    """
    sets = codes.shape[1] // WAYS
    first = int(code & np.uint64(sets - 1)) * WAYS
    spare = first
    for row in range(first, first + WAYS):
        if codes[slot, row] == code:
            return row, True
        # A free row counts as the oldest of all; of equal ones the first.
        age = stamps[slot, row] if codes[slot, row] != 0 else -1
        if age < (stamps[slot, spare] if codes[slot, spare] != 0 else -1):
            spare = row
    return spare, False


@njit(cache=True, nogil=True)
def rarity(count: float, total: float) -> float:
    """-log10 of a share, half a count taken off so that 1 of 1 is no certainty."""
    return -math.log10((count + 0.5) / (total + 1.0)) if count + 0.5 < total + 1.0 else 0.0


@njit(cache=True, nogil=True)
def new_rarity(news: I64, now: int) -> float:
    """-log10 of the chance of a new code, by the span of the last ones; notes this one.

    `news`: (LAST,) the key's count of records at its last new codes.
    """
    chance = (LAST + 0.5) / (now - news[LAST - 1] + 1.0)
    for i in range(LAST - 1, 0, -1):
        news[i] = news[i - 1]
    news[0] = now
    return max(-math.log10(chance), 0.0)
