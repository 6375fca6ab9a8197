"""Is this level usual for this hour of the week?

For keys that are weeks old: a Wednesday that looks like a Sunday is usual by its hour of the day,
and by its values. The mean of an hour of records is one observation of the week, however many they
are, so the spread s is one between weeks:

    s^2 = (n own + 4 pool) / (n + 4) + 0.01 all      n: weeks of this hour of the week (168, UTC)
    e  += g (clip((x - usual) / s, 15) - e)          g = t / (t + 30 min), t since the record before
    z   = |e|                                        usual: between the middles of two hours

`own` is the variance of the hour's means, half-life 4 weeks, `pool` of all days at this hour of the
day, `all` of all hours: three weeks are too few for a variance of their own. What one value may do
to e is bounded: single ones are for others to judge. No say before an hour had three weeks.

z has no unit, so its calibrator (calibrate.py) begins as if it had been taught what is measured of
made-up keys, and goes on from there. It is taught once an hour, as records of one hour say the
same, and no score teaches more than four times the line: a strange day must not grow usual by noon.

State of a channel is `row[0..534]`: mean, variance and weeks of 168 hours, `pool` of 24, then what
the names below say. Zeros are new. It knows no time zones and no holidays.
"""

import math

from numba import njit

from raywatch.models import calibrate
from raywatch.models.profile import HOUR_MS, VALUE_MAX
from raywatch.models.scorer import F64

NAME = "week"  # of the component
HOURS, DAY = 168, 24
WEEKS_MIN = 3.0  # of an hour before it judges
RATE = 1.0 - 0.5 ** (1.0 / 4.0)  # of a mean and its variance, by week
RATE_POOL = 1.0 - 0.5 ** (1.0 / 40.0)  # by day; there are seven in a week
RATE_ALL = 1e-3  # by hour
SHRINK = 4.0  # weeks that the pool counts for
FLOOR = 0.01
SMOOTH_MS = 1_800_000.0
GAIN_MIN = 1.0 / 64.0  # of records that come together
FARTHEST = 15.0  # deviations that one value counts for at most
LATE_HOURS = 24  # A record that is late by no more is judged, and teaches no hour.

# Of z, a record every 1 to 30 minutes, 10 weeks: 0.97 quantile 2.2 to 2.8, mean beyond it .6 to .7.
Z_MEAN, Z_LINE, Z_EXCESS = 0.8, 2.4, 0.65
Z_ABOVE = 20.0  # excesses that this counts for
TEACHES = 4.0  # lines
KNOWN = 5.0  # weeks of an hour before all that it says is believed

MEAN, VARIANCE, WEEKS = 0, HOURS, 2 * HOURS
POOL = 3 * HOURS
ALL, SEEN, HOUR, SUM, COUNT, SMOOTH, LAST = range(POOL + DAY, POOL + DAY + 7)
COLUMNS = POOL + DAY + 7


@njit(cache=True, nogil=True)
def _variance(row: F64, hour: int) -> float:
    """Of the means of this hour of the week, between weeks."""
    weeks = row[WEEKS + hour]
    own = weeks * row[VARIANCE + hour] + SHRINK * row[POOL + hour % DAY]
    return own / (weeks + SHRINK) + FLOOR * row[ALL]


@njit(cache=True, nogil=True)
def _close(row: F64) -> None:
    """Learn the mean of the hour that ended."""
    hour = int(row[HOUR]) % HOURS
    level = row[SUM] / row[COUNT]
    weeks = row[WEEKS + hour] + 1.0
    row[WEEKS + hour] = weeks
    if weeks == 1.0:
        row[MEAN + hour] = level
        return
    gap, gain = level - row[MEAN + hour], max(RATE, 1.0 / weeks)
    row[MEAN + hour] += gain * gap
    row[VARIANCE + hour] = (1.0 - gain) * (row[VARIANCE + hour] + gain * gap * gap)
    square = gap * gap * (weeks - 1.0) / weeks  # the mean of few weeks is itself off
    days = 0.0
    for day in range(HOURS // DAY):
        days += max(row[WEEKS + day * DAY + hour % DAY] - 1.0, 0.0)
    row[POOL + hour % DAY] += max(RATE_POOL, 1.0 / days) * (square - row[POOL + hour % DAY])
    row[SEEN] += 1.0
    row[ALL] += max(RATE_ALL, 1.0 / row[SEEN]) * (square - row[ALL])


@njit(cache=True, nogil=True)
def _usual(row: F64, time_ms: int) -> float:
    """What is expected at this time, NaN where its hour is not known."""
    hour = (time_ms // HOUR_MS) % HOURS
    if row[WEEKS + hour] < WEEKS_MIN:
        return math.nan
    usual = row[MEAN + hour]
    off = (time_ms % HOUR_MS) / HOUR_MS - 0.5
    beside = (hour + (1 if off > 0.0 else -1)) % HOURS
    if row[WEEKS + beside] >= WEEKS_MIN:
        usual += abs(off) * (row[MEAN + beside] - usual)
    return usual


@njit(cache=True, nogil=True)
def look(row: F64, time_ms: int, value: float) -> tuple[float, float, float, bool]:
    """Judge a value by its hour of the week, then learn it.

    Returns:
        z, what was expected, twice the deviation from that, all NaN where the hour is not known, z
        where the value is missing, too; and whether this is the first record of an hour.
    """
    hour, begun, late = time_ms // HOUR_MS, False, False
    known = abs(value) <= VALUE_MAX
    if known and row[COUNT] > 0.0:
        late = -LATE_HOURS <= hour - row[HOUR] < 0.0
        begun = hour != row[HOUR] and not late
        if begun:
            _close(row)
            row[COUNT] = 0.0
    usual = _usual(row, time_ms)
    spread = math.nan if math.isnan(usual) else math.sqrt(_variance(row, hour % HOURS))
    if not known:  # a missing value leaves no trace here
        return math.nan, usual, 2.0 * spread, False
    if not late:
        if row[COUNT] == 0.0:
            row[HOUR], row[SUM] = hour, 0.0
        row[SUM] += value
        row[COUNT] += 1.0
    since = max(time_ms - row[LAST], 0.0)
    row[LAST] = time_ms
    if math.isnan(usual):
        return math.nan, usual, spread, begun
    far = min(max((value - usual) / (spread + 1e-12), -FARTHEST), FARTHEST)
    row[SMOOTH] += max(since / (since + SMOOTH_MS), GAIN_MIN) * (far - row[SMOOTH])
    return abs(row[SMOOTH]), usual, 2.0 * spread, begun


@njit(cache=True, nogil=True)
def believed(row: F64, time_ms: int) -> float:
    """How far what this hour says is believed, 0 .. 1: of few weeks, deviations are too small."""
    return min(row[WEEKS + (time_ms // HOUR_MS) % HOURS] / KNOWN, 1.0)


@njit(cache=True, nogil=True)
def teaches(calibration: F64, slot: int, which: int, strange: float, begun: bool) -> float:
    """The most that this z teaches its calibrator, -1 for nothing; begins a new calibrator."""
    if math.isnan(strange):
        return -1.0
    if calibration[slot, which, calibrate.COUNT] == 0.0:
        calibration[slot, which, calibrate.COUNT] = Z_ABOVE / (1.0 - calibrate.QUANTILE)
        calibration[slot, which, calibrate.MEAN] = Z_MEAN
        calibration[slot, which, calibrate.LINE] = Z_LINE
        calibration[slot, which, calibrate.EXCESS] = Z_EXCESS
        calibration[slot, which, calibrate.SQUARE] = 2.0 * Z_EXCESS * Z_EXCESS  # exponential
        calibration[slot, which, calibrate.ABOVE] = Z_ABOVE
    return TEACHES * calibration[slot, which, calibrate.LINE] if begun else -1.0
