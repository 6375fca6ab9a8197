"""Did as many come as should have by now, for this hour of the day?

For keys whose values are counts, whole numbers >= 0: requests, orders, errors, lines a minute. What
comes is Poisson; its mean follows the hour (UTC), on lines between the middles of hours, times the
level of the last 2,000 records. Where S came and m were due, both over the same records,

    nats = (S ln(S / m) - S + m) / spread        rate function of a Poisson law (Cramer, Chernoff)

is -ln of the chance of so many or so few, over the last value and over sums that forget with
half-lives of 4, 16 and 64 records; and what was due since anything but 0 came, of which e^-due is
the chance. The score is the largest of these. So a counter of one a minute that stops for half an
hour is seen, though none of its zeros is rare.

`spread` is how much more than Poisson's the variance is (quasi-likelihood: McCullagh & Nelder 1989,
9.2), learnt for each sum from its own deviances; at least 1 + m / 400, for no mean is known better
than to a twentieth: without, every day that has 15 % more than the last is an incident of a counter
of 300 a minute. What is strange for 256 records is the new level.

State is `row[...]`, see the columns. Zeros are new.
"""

import math

from numba import njit

from raywatch.models.profile import HOUR_MS, HOURS
from raywatch.models.scorer import F64

NAME = "count"  # of the component

LARGEST = 1e15  # A larger value is no count.
WHOLE_MIN = 200.0  # values that have to be counts, one after the other, before anything is said
VISITS_MIN = 20.0  # values of an hour before anything is due in it
RATE = 1.0 - 0.5 ** (1.0 / 240.0)  # of the mean of an hour, by its own values
LEVEL_KEEP = 0.5 ** (1.0 / 2_000.0)
KEEP = (0.0, 0.5 ** (1.0 / 4.0), 0.5 ** (1.0 / 16.0), 0.5 ** (1.0 / 64.0))
SUMS = len(KEEP)
UNSURE = 1.0 / 400.0  # (1 / 20)^2, squared relative deviation of what is due
SPREAD_RATE = 1.0 / 2_000.0
SPREAD_CLIP = 12.0  # times the spread: what one record may teach of it
STRANGE = 12.0  # nats
LASTS = 256.0  # records

CAME, SUM_DUE = range(2)
WHOLE, LEVEL, LEVEL_DUE, QUIET, QUIET_MEAN, QUIETS, JUDGED, LASTED = range(8)
SEEN = 8  # (SUMS,) what came
DUE = SEEN + SUMS  # (SUMS,) what was due
SPREAD = DUE + SUMS  # (SUMS,)
MEAN = SPREAD + SUMS  # (HOURS,) of the values of each hour
VISITS = MEAN + HOURS  # (HOURS,) how many there were
COLUMNS = VISITS + HOURS


@njit(cache=True, nogil=True)
def look(row: F64, time_ms: int, value: float, sums: F64) -> tuple[float, float, float]:
    """Judge a value, then learn it: (score, what was due, twice the deviation of that).

    The score is NaN where the values are no counts, or what is due is not known yet. `sums`: out,
    (2,) what came and what was due where they differ most, NaN where there is no score.
    """
    sums[CAME] = sums[SUM_DUE] = math.nan
    if math.isnan(value):
        return math.nan, math.nan, math.nan
    if not 0.0 <= value <= LARGEST or value != math.floor(value):
        row[WHOLE] = 0.0
        return math.nan, math.nan, math.nan
    row[WHOLE] += 1.0
    base = _base(row, time_ms)
    hour = (time_ms // HOUR_MS) % HOURS
    visits = row[VISITS + hour] + 1.0
    row[VISITS + hour] = visits
    row[MEAN + hour] += max(RATE, 1.0 / visits) * (value - row[MEAN + hour])
    if not base > 0.0:
        return math.nan, math.nan, math.nan
    due = base * _level(row)
    row[LEVEL] = LEVEL_KEEP * row[LEVEL] + value
    row[LEVEL_DUE] = LEVEL_KEEP * row[LEVEL_DUE] + base
    row[JUDGED] += 1.0
    score = _quiet(row, value, due)
    sums[CAME], sums[SUM_DUE] = 0.0, row[QUIET]
    for at in range(SUMS):
        said = _sum(row, at, value, due)
        if said > score or (at == 0 and value > 0.0):
            score = max(score, said)
            sums[CAME] = (1.0 + KEEP[at]) * row[SEEN + at]
            sums[SUM_DUE] = (1.0 + KEEP[at]) * row[DUE + at]
    row[LASTED] = row[LASTED] + 1.0 if score > STRANGE else 0.0
    if row[LASTED] >= LASTS:
        _resettle(row)
    width = 2.0 * math.sqrt(due * _spread(row, 0, due))
    return score if row[WHOLE] >= WHOLE_MIN else math.nan, due, width


@njit(cache=True, nogil=True)
def _base(row: F64, time_ms: int) -> float:
    """Mean at a time of the day, at level 1; NaN where its hour is not known yet."""
    place = (time_ms % (HOURS * HOUR_MS)) / HOUR_MS
    hour = int(place)
    if row[VISITS + hour] < VISITS_MIN:
        return math.nan
    mean, part = row[MEAN + hour], place - hour - 0.5
    other = (hour + (1 if part > 0.0 else HOURS - 1)) % HOURS
    if row[VISITS + other] < VISITS_MIN:
        return mean
    return mean + abs(part) * (row[MEAN + other] - mean)


@njit(cache=True, nogil=True)
def _level(row: F64) -> float:
    """What comes lately over what its hours have; one of each to begin with."""
    return (row[LEVEL] + 1.0) / (row[LEVEL_DUE] + 1.0)


@njit(cache=True, nogil=True)
def _sum(row: F64, at: int, value: float, due: float) -> float:
    """Add to a sum, judge it, and learn how it spreads."""
    keep = KEEP[at]
    seen = keep * row[SEEN + at] + value
    mean = keep * row[DUE + at] + due
    row[SEEN + at] = seen
    row[DUE + at] = mean
    # A sum whose weights fall varies by mean / (1 + keep): as the count of so many times more does.
    seen, mean = (1.0 + keep) * seen, (1.0 + keep) * mean
    nats = max(seen * math.log(seen / mean) - seen + mean, 0.0) if seen > 0.0 else mean
    spread = _spread(row, at, mean)
    gain = max(SPREAD_RATE, 1.0 / row[JUDGED])
    deviance = min(2.0 * nats, SPREAD_CLIP * spread)
    row[SPREAD + at] += gain * (deviance - row[SPREAD + at])
    return nats / spread


@njit(cache=True, nogil=True)
def _spread(row: F64, at: int, mean: float) -> float:
    """Variance over mean, of a sum."""
    return max(row[SPREAD + at], 1.0 + UNSURE * mean)


@njit(cache=True, nogil=True)
def _quiet(row: F64, value: float, due: float) -> float:
    """What was due since anything but 0 came, over what usually is by then, 1 at least."""
    quiet = row[QUIET] + due
    if value == 0.0:
        row[QUIET] = quiet
        return quiet / max(row[QUIET_MEAN], 1.0)
    quiets = min(row[QUIETS] + 1.0, 1.0 / SPREAD_RATE)
    row[QUIETS] = quiets
    row[QUIET_MEAN] += (quiet - row[QUIET_MEAN]) / quiets
    row[QUIET] = 0.0
    return 0.0


@njit(cache=True, nogil=True)
def _resettle(row: F64) -> None:
    """Take what came lately as the level."""
    level = _level(row)
    row[LEVEL] = row[SEEN + SUMS - 1]
    row[LEVEL_DUE] = row[DUE + SUMS - 1] / level
    for at in range(SUMS):
        row[SEEN + at] = 0.0
        row[DUE + at] = 0.0
    row[QUIET] = 0.0
    row[LASTED] = 0.0
