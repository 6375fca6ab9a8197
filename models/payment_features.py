"""What was usual for this customer and at this terminal, before this payment?

Rows of the two entities hold fading counts and means; a payment's features are read first, then
the payment is added. Sums fade in payment time, by half-lives of an hour, a day, a week; label
sums by 1, 7, 28 days (terminal) and 14 days (customer), as of `now - late`: what is not known yet
must not look like innocence.

    risk = log((frauds + k u) / (labels + k) / u)     u: the partition's own share of frauds
    z    = (log amount - mean) / sqrt(variance + .05)  mean, variance: shrunk to the partition's

So a share of frauds counts in its ratio to the usual one, an amount in deviations, and fixed bins
need no unit and no fitting. It knows nothing of where labels come from. Times are seconds.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.models.payment_names import FEATURES
from raywatch.models.scorer import F64, U8

DAY = 86_400.0
# Of each feature: offset, 1 / step, bins, and whether log(1 + x) is binned (1) or x (0).
BINS = np.array(
    [
        (0, 5, 40, 1), (-4, 2.5, 32, 0), (-2, 5, 32, 0), (0, 4, 8, 1), (0, 4, 16, 1),
        (0, 4, 20, 1), (4, 1, 12, 0), (0, 2, 6, 1), (-1, 2, 16, 0), (0, 4, 12, 1), (0, 4, 12, 1),
        (0, 4, 12, 1), (0, 4, 16, 1), (-4, 2, 24, 0), (-1, 2, 16, 0), (-1, 2, 16, 0),
        (-1, 2, 16, 0), (0, 4, 16, 1), (0, 4, 24, 0), (0, 1, 2, 0), (0, 2, 10, 1), (-2, 5, 28, 0),
        (0, 4, 20, 1), (0, 4, 24, 0), (0, 1 / 3, 8, 0),
    ]
)  # fmt: skip
AMOUNT, AMOUNT_Z, AMOUNT_RATIO, GAP, BEGAN = 0, 1, 2, 6, 22
AMOUNTS = (0, 1, 2, 13, 21)  # features that are about the amount,
TERMINAL = (14, 15, 16, 17, 18, 19, 20, 22)  # the terminal's labels,
CUSTOMER = (5, 7, 8, 9, 10, 23)  # the customer
RATIOS = (2, 8, 14, 15, 16, 21)  # features that are logarithms of a ratio,
SINCE = (18, 23)  # and of 1 + days
DEVIATIONS = (1, 13)  # features that are about 0 where nothing is strange
NEVER, NEVER_DAYS, NEVER_SEEN = 6.0, 99.0, 20.0  # of SINCE, of `days since frauds began`, of a gap

# A row begins with count, mean and variance of the log amount, time of the last, fading counts.
COUNT, MEAN, VARIANCE, LAST, SUM = 0, 1, 2, 3, 4
# Of a customer: fading log amounts and large amounts, then labels, frauds, times.
LOGS, LARGE, LABELS, FRAUDS, LABELLED, FRAUD_AT = 7, 8, 9, 10, 11, 12
CUSTOMER_COLUMNS = 13
# Of a terminal: labels by three half-lives, frauds likewise, times, latest label, frauds in a row.
T_LABELS, T_FRAUDS, T_LABELLED, T_FRAUD_AT, T_LAST, T_STREAK, T_FIRST = 7, 10, 13, 14, 15, 16, 17
TERMINAL_COLUMNS = 18
B_COUNT, B_MEAN, B_VARIANCE, B_LABELS, B_FRAUDS = range(5)  # of a partition
BASE_COLUMNS = 5

HALF_LIVES = np.array([3_600.0, DAY, 7 * DAY])
LABEL_LIVES = np.array([DAY, 7 * DAY, 28 * DAY])
CUSTOMER_LIFE = 14 * DAY
RUN_GAP = 10 * DAY  # frauds further apart are not one run
PRIOR = 3.0  # payments that the partition's mean counts as
CUSTOMER_PRIOR, TERMINAL_PRIOR = 5.0, 1.0  # labels that the partition's share of frauds counts as
BASE_FRAUDS, BASE_LABELS = 1.0, 100.0  # that share, before a label came
SPREAD_MIN = 0.05  # of a log amount, squared: who always pays the same is not infinitely sharp
CUSTOMER_MEMORY, TERMINAL_MEMORY, BASE_MEMORY = 60.0, 200.0, 1e5  # payments that a mean remembers
CLIP = 1.2  # log ratio by which an amount moves its customer's mean at most: fraud is large
LARGE_FROM = 1.1  # log ratio: three times the usual amount


@njit(cache=True, nogil=True)
def _left(age_s: float, half_life_s: float) -> float:
    return 2.0 ** (-max(age_s, 0.0) / half_life_s)


@njit(cache=True, nogil=True)
def _since(at: float, then: float) -> float:
    """Log of 1 + days since; NEVER where it never was."""
    return math.log1p(max(then - at, 0.0) / DAY) if at > 0.0 else NEVER


@njit(cache=True, nogil=True)
def usual_share(base: F64) -> float:
    """Share of frauds among the partition's labels."""
    return (base[B_FRAUDS] + BASE_FRAUDS) / (base[B_LABELS] + BASE_LABELS)


@njit(cache=True, nogil=True)
def _deviations(row: F64, base: F64, log: float) -> tuple[float, float]:
    """How far a log amount lies from an entity's mean: in deviations, and as it is."""
    mean = (row[COUNT] * row[MEAN] + PRIOR * base[B_MEAN]) / (row[COUNT] + PRIOR)
    spread = (row[COUNT] * row[VARIANCE] + PRIOR * base[B_VARIANCE]) / (row[COUNT] + PRIOR)
    return (log - mean) / math.sqrt(spread + SPREAD_MIN), log - mean


@njit(cache=True, nogil=True)
def read(
    c: F64, t: F64, base: F64, visits: int, now: float, late_s: float, amount: float, x: F64
) -> None:
    """Features of a payment.

    Args:
        c: (CUSTOMER_COLUMNS,) row of its customer.
        t: (TERMINAL_COLUMNS,) row of its terminal.
        base: (BASE_COLUMNS,) row of its partition.
        visits: payments of this customer here before.
        now: time of the payment, in s.
        late_s: how much later a label comes.
        amount: finite; what is below 0 counts as 0.
        x: out, (FEATURES,).
    """
    log, then, usual = math.log1p(max(amount, 0.0)), now - late_s, usual_share(base)
    x[0] = amount
    x[1], x[2] = _deviations(c, base, log)
    for j in range(3):
        x[3 + j] = c[SUM + j] * _left(now - c[LAST], HALF_LIVES[j])
    x[6] = math.log1p(max(now - c[LAST], 0.0)) if c[COUNT] > 0.0 else NEVER_SEEN
    x[7] = visits
    left = _left(then - c[LABELLED], CUSTOMER_LIFE)
    share = (c[FRAUDS] * left + CUSTOMER_PRIOR * usual) / (c[LABELS] * left + CUSTOMER_PRIOR)
    x[8] = math.log(share / usual)
    x[9] = c[FRAUDS] * left
    week = _left(now - c[LAST], HALF_LIVES[2])
    x[10] = c[LARGE] * week
    x[11] = t[SUM + 1] * _left(now - t[LAST], HALF_LIVES[1])
    x[12] = t[SUM + 2] * _left(now - t[LAST], HALF_LIVES[2])
    x[13], _ = _deviations(t, base, log)
    for j in range(3):
        left = _left(then - t[T_LABELLED], LABEL_LIVES[j])
        frauds = t[T_FRAUDS + j] * left + TERMINAL_PRIOR * usual
        x[14 + j] = math.log(frauds / (t[T_LABELS + j] * left + TERMINAL_PRIOR) / usual)
    x[17] = t[T_FRAUDS + 2] * left
    x[18] = _since(t[T_FRAUD_AT], then)
    x[19], x[20] = t[T_LAST], t[T_STREAK]
    x[21] = log - (c[LOGS] * week + log - x[2]) / (c[SUM + 2] * week + 1.0)
    x[22] = max(now - t[T_FIRST], 0.0) / DAY if t[T_FIRST] > 0.0 else NEVER_DAYS
    x[23] = _since(c[FRAUD_AT], then)
    x[24] = (now % DAY) / 3_600.0


@njit(cache=True, nogil=True)
def encode(x: F64, codes: U8) -> None:
    """Bins of the features. `codes`: out, (FEATURES,)."""
    for f in range(FEATURES):
        value = math.log1p(max(x[f], 0.0)) if BINS[f, 3] == 1.0 else x[f]
        at = math.floor((value - BINS[f, 0]) * BINS[f, 1])
        codes[f] = np.uint8(min(max(at, 0.0), BINS[f, 2] - 1.0))


@njit(cache=True, nogil=True)
def _follow(row: F64, log: float, memory: float, clip: float) -> None:
    row[COUNT] += 1.0
    gain, delta = 1.0 / min(row[COUNT], memory), min(log - row[MEAN], clip)
    row[MEAN] += gain * delta
    row[VARIANCE] += gain * (delta * delta - row[VARIANCE])


@njit(cache=True, nogil=True)
def add(c: F64, t: F64, base: F64, now: float, amount: float, ratio: float) -> None:
    """Take a payment into account; `ratio`: its AMOUNT_RATIO as it was read."""
    log = math.log1p(max(amount, 0.0))
    for row in (c, t):
        for j in range(3):
            row[SUM + j] = row[SUM + j] * _left(now - row[LAST], HALF_LIVES[j]) + 1.0
    week = _left(now - c[LAST], HALF_LIVES[2])
    c[LOGS] = c[LOGS] * week + log
    c[LARGE] = c[LARGE] * week + (1.0 if ratio > LARGE_FROM else 0.0)
    if c[COUNT] == 0.0:
        c[MEAN], c[VARIANCE], c[COUNT] = log, base[B_VARIANCE], 1.0
    else:
        _follow(c, log, CUSTOMER_MEMORY, CLIP)
    _follow(t, log, TERMINAL_MEMORY, np.inf)
    c[LAST], t[LAST] = max(c[LAST], now), max(t[LAST], now)
    base[B_COUNT] += 1.0
    gain, delta = 1.0 / min(base[B_COUNT], BASE_MEMORY), log - base[B_MEAN]
    base[B_MEAN] += gain * delta
    base[B_VARIANCE] += gain * (delta * delta - base[B_VARIANCE])


@njit(cache=True, nogil=True)
def _sums(
    row: F64, labels: int, frauds: int, age_s: float, half_life_s: float, fraud: bool, weight: float
) -> None:
    """Add a label; one that is older than the latest counts for less."""
    if age_s >= 0.0:
        left = _left(age_s, half_life_s)
        row[labels] *= left
        row[frauds] *= left
    else:
        weight *= _left(-age_s, half_life_s)
    row[labels] += weight
    row[frauds] += weight if fraud else 0.0


@njit(cache=True, nogil=True)
def label_customer(c: F64, paid: float, fraud: bool, weight: float) -> None:
    """Take the label of a payment of time `paid` into account; it stands for `weight` of them."""
    _sums(c, LABELS, FRAUDS, paid - c[LABELLED], CUSTOMER_LIFE, fraud, weight)
    c[LABELLED] = max(c[LABELLED], paid)
    if fraud:
        c[FRAUD_AT] = max(c[FRAUD_AT], paid)


@njit(cache=True, nogil=True)
def label_terminal(t: F64, paid: float, fraud: bool, weight: float) -> None:
    """Likewise; and the run of frauds that the terminal is in, if any."""
    for j in range(3):
        age_s = paid - t[T_LABELLED]
        _sums(t, T_LABELS + j, T_FRAUDS + j, age_s, LABEL_LIVES[j], fraud, weight)
    t[T_LABELLED] = max(t[T_LABELLED], paid)
    t[T_LAST] = 1.0 if fraud else 0.0
    t[T_STREAK] = t[T_STREAK] + 1.0 if fraud else 0.0
    if fraud:
        if t[T_FRAUD_AT] == 0.0 or paid - t[T_FRAUD_AT] > RUN_GAP:
            t[T_FIRST] = paid
        t[T_FRAUD_AT] = max(t[T_FRAUD_AT], paid)


def usual(x: F64) -> F64:
    """(FEATURES,) what was to be expected instead, as people read it; NaN where nothing was."""
    out = np.full(FEATURES, np.nan)
    log = math.log1p(max(x[AMOUNT], 0.0)) - x[AMOUNT_RATIO]
    out[AMOUNT], out[list(RATIOS)], out[list(DEVIATIONS)] = math.expm1(log), 1.0, 0.0
    return out


def readable(x: F64) -> F64:
    """(FEATURES,) as people read them: ratios, hours and days; NaN for what never was."""
    out: NDArray[np.float64] = x.copy()
    ratios, since = list(RATIOS), list(SINCE)
    out[ratios] = np.exp(x[ratios])
    out[since] = np.where(x[since] >= NEVER, np.nan, np.expm1(x[since]))
    out[GAP] = np.nan if x[GAP] >= NEVER_SEEN else np.expm1(x[GAP]) / 3_600.0
    out[BEGAN] = np.nan if x[BEGAN] == NEVER_DAYS else x[BEGAN]
    return out
