"""Is this value usual for this hour of the day?

z = |x - mean_b| / sqrt(var_b + 0.01 * var): mean and variance of the key's channel in hour b (UTC),
exponentially weighted with a half-life of 20 visits, `var` that of all hours (floor of the hour's
own). One view or three: the value itself, and the means of the last 8 and of the last 64 values,
which see small shifts that last. It knows no weekdays (167 bins learn too slowly: measured) and no
time zones.

State of a channel is `profile[slot, channel, view, 0..24, (mean, variance, count)]`, row 24 for all
hours together, and `recent[slot, channel, 0..63]`, the ring of the last values, where there are
three views. Zeros are new.
"""

import math

from numba import njit

from raywatch.models.scorer import F64

HOURS = 24
ALL = 24  # the row of all hours
LONG = "hour_long"
VIEWS = ("hour", "hour_mean", LONG)  # names of the components
MEANS = (1, 8, 64)  # values that each looks at
RECENT = MEANS[-1]
VISITS_MIN = 3  # Values of an hour before it judges.
# Values of an hour before all that it says is believed; of means 2.5 times what they are made of,
# for means that share values say the same.
KNOWN = (20.0, 2.5 * MEANS[1], 2.5 * MEANS[2])
RATE = 1.0 - 0.5 ** (1.0 / 20.0)
RATE_ALL = 1e-3
FLOOR = 0.01
VALUE_MAX = 1e30  # Squares beyond this would reach infinity and never come back: no say.
HOUR_MS = 3_600_000

AVERAGE, VARIANCE, VISITS = range(3)


@njit(cache=True, nogil=True)
def hour_of(time_ms: int) -> int:
    """Hour of the day, UTC."""
    return (time_ms // HOUR_MS) % HOURS


@njit(cache=True, nogil=True)
def _follow(profile: F64, at: tuple[int, int, int, int], value: float, slowest: float) -> None:
    """Exponentially weighted mean and variance, plain ones while there are few values."""
    slot, channel, view, row = at
    visits = profile[slot, channel, view, row, VISITS] + 1.0
    profile[slot, channel, view, row, VISITS] = visits
    gain = max(slowest, 1.0 / visits)
    gap = value - profile[slot, channel, view, row, AVERAGE]
    if visits == 1.0:
        gap = 0.0
        profile[slot, channel, view, row, AVERAGE] = value
    profile[slot, channel, view, row, AVERAGE] += gain * gap
    variance = profile[slot, channel, view, row, VARIANCE]
    profile[slot, channel, view, row, VARIANCE] = (1.0 - gain) * (variance + gain * gap * gap)


@njit(cache=True, nogil=True)
def visit(profile: F64, slot: int, channel: int, view: int, hour: int, value: float) -> float:
    """Judge a finite value by its hour, then learn it. NaN: the hour is new."""
    _follow(profile, (slot, channel, view, ALL), value, RATE_ALL)
    strange = math.nan
    if profile[slot, channel, view, hour, VISITS] >= VISITS_MIN:
        gap = abs(value - profile[slot, channel, view, hour, AVERAGE])
        variance = profile[slot, channel, view, hour, VARIANCE]
        variance += FLOOR * profile[slot, channel, view, ALL, VARIANCE]
        strange = gap / (math.sqrt(variance) + 1e-12)
    _follow(profile, (slot, channel, view, hour), value, RATE)
    return strange


@njit(cache=True, nogil=True)
def believed(visits: float, known: float) -> float:
    """How far what an hour of so many values says is believed, 0 .. 1, where all of `known` is.

    A deviation of few values is now and then far too small, and what is measured by it huge. Ranks
    bear that, for it passes; a promise does not.
    """
    return min(visits / known, 1.0) if visits >= VISITS_MIN else 0.0


@njit(cache=True, nogil=True)
def look(
    profile: F64,
    recent: F64,
    slot: int,
    hour: int,
    values: F64,
    row: int,
    strange: F64,
    usual: F64,
    spread: F64,
    belief: F64,
) -> None:
    """One record: all V views of every channel.

    Fills strange (V, C), NaN where there is nothing to say, usual (V, C), the mean before, spread
    (V, C), twice the deviation before, and belief (V, C), see `believed`.
    """
    views = profile.shape[2]
    for channel in range(values.shape[1]):
        value = values[row, channel]
        for view in range(views):
            visits = profile[slot, channel, view, hour, VISITS]
            belief[view, channel] = believed(visits, KNOWN[view])
            seen = visits > 0.0
            mean = profile[slot, channel, view, hour, AVERAGE]
            usual[view, channel] = mean if seen else math.nan
            variance = profile[slot, channel, view, hour, VARIANCE]
            spread[view, channel] = 2.0 * math.sqrt(variance) if seen else math.nan
            strange[view, channel] = math.nan
        if not abs(value) <= VALUE_MAX:  # NaN, too: a missing value leaves no trace here
            continue
        strange[0, channel] = visit(profile, slot, channel, 0, hour, value)
        if views == 1:
            continue
        count = int(profile[slot, channel, 0, ALL, VISITS])
        recent[slot, channel, (count - 1) % RECENT] = value
        # Summed anew each time: a running sum would keep the rounding of every value it ever saw.
        total, held = 0.0, 0
        for view in range(1, views):
            wanted = min(MEANS[view], count)
            while held < wanted:
                held += 1
                total += recent[slot, channel, (count - held) % RECENT]
            strange[view, channel] = visit(profile, slot, channel, view, hour, total / held)
