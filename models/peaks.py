"""How rare is a score of this size, where scores move slowly? An incident teaches once.

Scores of sums that overlap stay high for as long as the sums hold what made them so: by the time
that something is clear, a calibration that forgets (calibrate.py) has learnt that it is usual. Here
excesses over the line, the 0.97 quantile of the scores, are taken by clusters (runs declustering:
Coles 2001, An Introduction to Statistical Modeling of Extreme Values, 5.3.3): a cluster ends when
GAP scores lay below the line, and only its largest excess teaches. With P of them

    -log10 p(e) = 1.52 + log10(1 + shape * (e - line) / scale) / shape     above the line
                = 1.52 * e / line                                          below it

by the moments of a Pareto tail, shape at least 1 / P, see `calibrate.promised`. A cluster has
several scores above the line and fewer far above it, so p is rather too large than too small.

State is `row[0..7]`; zeros are new. Scores are finite and >= 0.
"""

import math

from numba import njit

from raywatch.models import calibrate
from raywatch.models.scorer import F64

GAP = (
    8.0  # scores below the line that end a cluster; 64: half as many clusters, 2 decades less sure
)
PEAKS_MIN = 3.0  # clusters before anything is said beyond the line
PEAKS_KEPT = 200.0  # clusters over which the tail forgets
CLIP = 20.0  # A peak teaches at most this many times (mean excess + mean score),
CLIP_FROM = 5.0  # once there were so many.
MILD = 3.0  # times the line: what one score teaches of the mean at most

COUNT, MEAN, LINE, EXCESS, SQUARE, PEAKS, TOP, BELOW = range(8)
COLUMNS = 8


@njit(cache=True, nogil=True)
def judge(row: F64, score: float) -> float:
    """-log10 p of a score, 0 to `calibrate.STRANGEST`. Changes nothing."""
    line, mean = row[LINE], row[EXCESS]
    if score <= line:
        return calibrate.BODY * (score / line) if line > 0.0 else 0.0
    known = row[PEAKS]
    if known < PEAKS_MIN:
        return calibrate.BODY
    scale = max(mean, calibrate.EXCESS_MIN * row[MEAN])
    if scale <= 0.0:
        return calibrate.BODY
    spread, shape = row[SQUARE] - mean * mean, 0.0
    if spread > 0.0:
        shape = min(max(0.5 * (1.0 - mean * mean / spread), 0.0), calibrate.SHAPE_MAX)
        scale *= 1.0 - shape
    shape = max(shape, 1.0 / known)
    beyond = math.log1p(shape * (score - line) / scale) / shape / calibrate.LN10
    return min(calibrate.BODY + beyond, calibrate.STRANGEST)


@njit(cache=True, nogil=True)
def learn(row: F64, score: float, rate: float) -> None:
    """Take one score into account. `rate`: of `calibrate.rates`."""
    count = row[COUNT] + 1.0
    row[COUNT] = count
    if count == 1.0:
        row[MEAN] = score
        row[LINE] = score
    mean, line = row[MEAN], row[LINE]
    mean += max(rate, 1.0 / count) * ((min(score, MILD * line) if line > 0.0 else score) - mean)
    row[MEAN] = mean
    step = max(rate, 1.0 / (0.2 * count + 1.0)) * (mean + row[EXCESS]) * 3.0
    line += step * (calibrate.QUANTILE if score > line else calibrate.QUANTILE - 1.0)
    line = max(line, 0.0)
    row[LINE] = line
    if score > line:
        row[TOP] = max(row[TOP], score - line)
        row[BELOW] = 0.0
        return
    row[BELOW] += 1.0
    if row[BELOW] < GAP or row[TOP] == 0.0:
        return
    known, over = row[PEAKS] + 1.0, row[TOP]
    row[PEAKS] = known
    row[TOP] = 0.0
    if known > CLIP_FROM:
        over = min(over, CLIP * (row[EXCESS] + mean))
    gain = max(1.0 / PEAKS_KEPT, 1.0 / known)
    row[EXCESS] += gain * (over - row[EXCESS])
    row[SQUARE] += gain * (over * over - row[SQUARE])
