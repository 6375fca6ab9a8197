"""How rare is a score of this size for this key? The answer is -log10 of a tail probability.

Streaming peaks over threshold (Siffer et al. 2017, KDD, "SPOT", made forgetful): a line `u` follows
the 0.97 quantile of the scores; mean and mean square of the excesses over it give a generalised
Pareto tail by the method of moments (Hosking & Wallis 1987), shape held within 0 and 0.5:

    p(e) = 0.03 * (1 + shape * (e - u) / scale) ^ (-1 / shape)     above the line
    -log10 p(e) = 1.52 * e / u                                     below it: monotone, no more

Everything forgets with one half-life, counted in scores. Only scores of the past judge a score.
State is seven float64 a calibrator, `state[slot, which, 0..6]`; zeros are a new one. HEARD is for
who uses it: how many of the scores were really there (judging.py). Scores are finite and >= 0. It
knows nothing of autocorrelation: what it says is held against what happens by promise.py.
A single score many orders of magnitude above the others raises the line, and with it what counts
as strange, until it is forgotten.
"""

import math

import numpy as np
from numba import njit

from raywatch.models.scorer import F64

QUANTILE = 0.97  # Sharp: .98 costs 5 points on NAB, .96 costs 1.
SHAPE_MAX = 0.5  # A heavier tail has no variance: the moments would mean nothing.
EXCESS_MIN = 0.01  # Smallest mean excess, in mean scores: a constant score is not infinitely sharp.
CLIP = 20.0  # An excess teaches at most this many times (mean excess + mean score).
COUNT_MIN = 10  # Scores before anything is said.
STRANGEST = 300.0  # Bounds -log10 p, so that p stays a positive float64.

COUNT, MEAN, LINE, EXCESS, SQUARE, ABOVE, HEARD = range(7)
COLUMNS = 7

LN10 = math.log(10.0)
BODY = -math.log10(1.0 - QUANTILE)


def rates(half_life: float) -> tuple[float, float]:
    """What one score, and one excess, weighs for a half-life counted in scores."""
    return 1.0 - 0.5 ** (1.0 / half_life), 1.0 - 0.5 ** (1.0 / (half_life * (1.0 - QUANTILE)))


@njit(cache=True, nogil=True)
def judge(state: F64, slot: int, which: int, score: float) -> float:
    """-log10 p of a score, 0 (usual, or too early to tell) to STRANGEST. Changes nothing."""
    return _judged(state, slot, which, score, 0.0)


@njit(cache=True, nogil=True)
def promised(state: F64, slot: int, which: int, score: float) -> float:
    """As `judge`, of a tail that is no sharper than the excesses that taught it allow.

    Of n exponential excesses of mean m, the next one exceeds e with probability
    (1 + e / (n m)) ^ -n (Gelman et al. 2013, Bayesian Data Analysis, 2.6, with the prior 1 / rate):
    a Pareto tail of shape 1 / n. Ranks are better without, promises are not.
    """
    return _judged(state, slot, which, score, 1.0 / max(state[slot, which, ABOVE], 1.0))


@njit(cache=True, nogil=True, inline="always")  # a quarter of the stage's time
def _judged(state: F64, slot: int, which: int, score: float, least: float) -> float:
    """-log10 p of a score by a tail of at least this shape."""
    if state[slot, which, COUNT] < COUNT_MIN:
        return 0.0
    line = state[slot, which, LINE]
    if score <= line:
        return BODY * (score / line) if line > 0.0 else 0.0
    mean = state[slot, which, EXCESS]
    scale = max(mean, EXCESS_MIN * state[slot, which, MEAN])
    if scale <= 0.0:
        return BODY
    over, shape = score - line, 0.0
    spread = state[slot, which, SQUARE] - mean * mean
    if spread > 0.0 and mean > 0.0:
        shape = min(max(0.5 * (1.0 - mean * mean / spread), 0.0), SHAPE_MAX)
        scale *= 1.0 - shape
    shape = max(shape, least)
    # Below 1e-3 the power is an exponential to all digits that matter.
    log_p = -math.log1p(shape * over / scale) / shape if shape > 1e-3 else -over / scale
    return min(BODY - log_p / LN10, STRANGEST)


@njit(cache=True, nogil=True)
def learn(state: F64, slot: int, which: int, score: float, rate: float, excess_rate: float) -> None:
    """Take one score into account."""
    count = state[slot, which, COUNT] + 1.0
    state[slot, which, COUNT] = count
    if count == 1.0:
        state[slot, which, MEAN] = score
        state[slot, which, LINE] = score
    mean = state[slot, which, MEAN]
    mean += max(rate, 1.0 / count) * (score - mean)
    state[slot, which, MEAN] = mean

    # The quantile moves by steps of the size of the scores: it needs no unit.
    line = state[slot, which, LINE]
    step = max(rate, 1.0 / (0.2 * count + 1.0)) * (mean + state[slot, which, EXCESS]) * 3.0
    line += step * QUANTILE if score > line else step * (QUANTILE - 1.0)
    line = max(line, 0.0)
    state[slot, which, LINE] = line
    if score <= line:
        return

    above = state[slot, which, ABOVE] + 1.0
    state[slot, which, ABOVE] = above
    over = score - line
    if count > 30.0 and above > 1.0:  # before that the scale itself is not known
        over = min(over, CLIP * (state[slot, which, EXCESS] + mean) + 1e-12)
    gain = max(excess_rate, 1.0 / above)
    state[slot, which, EXCESS] += gain * (over - state[slot, which, EXCESS])
    state[slot, which, SQUARE] += gain * (over * over - state[slot, which, SQUARE])


@njit(cache=True, nogil=True)
def _series(scores: F64, rate: float, excess_rate: float) -> F64:
    state = np.zeros((1, 1, COLUMNS))
    rare = np.empty(scores.shape[0])
    for index in range(scores.shape[0]):
        rare[index] = judge(state, 0, 0, scores[index])
        learn(state, 0, 0, scores[index], rate, excess_rate)
    return rare


def calibrate(scores: F64, half_life: float) -> F64:
    """Judge a whole series (N,) by its own past: (N,) of -log10 p. For benches and studies."""
    assert scores.ndim == 1, scores.shape
    return _series(np.ascontiguousarray(scores, np.float64), *rates(half_life))
