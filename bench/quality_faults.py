"""Faults that are planted on purpose: seven kinds in one channel, and a lasting shift of many.

    spike      one value off by k deviations
    level      150 values off by 0.6 k
    drift      200 values that move away by k
    variance   60 values with noise of 0.5 k
    frequency  96 values 2.5 times as fast
    swap       96 values replaced by 96 earlier ones, backwards
    flat       80 values as the first of them

A deviation is that of the 1,000 values before plus 2 % of the channel's range; k is uniform in 3 to
5, its sign is drawn. Everything is drawn from a seed: the same channels get the same faults.
"""

from typing import Any, NamedTuple

import numpy as np

KINDS = {
    "spike": 1,
    "level": 150,
    "drift": 200,
    "variance": 60,
    "frequency": 96,
    "swap": 96,
    "flat": 80,
}
PAST = 1_000  # values that the deviation is taken from
EARLIEST = 3_500  # no fault begins before: a detector has to have learned something
ROOM = 400  # values left behind the latest fault
LIVE_DEVIATION, LIVE_VALUES = 0.01, 50  # of a channel that is worth a fault
SHIFT = (2.0, 4.0)  # deviations of a lasting shift


class Fault(NamedTuple):
    """A channel with a fault in `begin` .. `end` (half-open)."""

    values: Any
    begin: int
    end: int


def live(values: Any) -> bool:
    """Whether a channel moves enough, and not only between a few values."""
    return float(values.std()) > LIVE_DEVIATION and len(np.unique(values)) > LIVE_VALUES


def planted(values: Any, kind: str, random: np.random.Generator) -> Fault:
    """A copy of (n,) values with one fault; n > EARLIEST + ROOM."""
    length, n = KINDS[kind], len(values)
    assert n > EARLIEST + ROOM, n
    begin = int(random.integers(EARLIEST, n - ROOM))
    end, bad = begin + length, values.astype(np.float64).copy()
    deviation = bad[begin - PAST : begin].std() + 0.02 * np.ptp(bad)
    size = random.choice([-1.0, 1.0]) * random.uniform(3.0, 5.0) * deviation
    if kind == "spike":
        bad[begin] += size
    elif kind == "level":
        bad[begin:end] += 0.6 * size
    elif kind == "drift":
        bad[begin:end] += size * np.linspace(0.0, 1.0, length)
    elif kind == "variance":
        bad[begin:end] += random.standard_normal(length) * 0.5 * size
    elif kind == "frequency":
        # From 0.75 lengths before to 1.75 behind the begin, so that its middle is where it was.
        at = begin + np.arange(length) * 2.5 - 0.75 * length
        bad[begin:end] = np.interp(at, np.arange(n), values)
    elif kind == "swap":
        source = int(random.integers(500, begin - 1_500))
        bad[begin:end] = values[source : source + length][::-1]
    else:
        bad[begin:end] = bad[begin]
    return Fault(bad, begin, end)


def shifted(values: Any, random: np.random.Generator) -> Fault:
    """A copy of (n, C) values; from the middle on half of the channels that move are elsewhere."""
    bad, n = values.astype(np.float64).copy(), len(values)
    begin = n // 2
    moving = np.flatnonzero(bad[:begin].std(axis=0) > 0.0)
    chosen = random.permutation(moving)[: max(1, len(moving) // 2)]
    size = random.uniform(*SHIFT, len(chosen)) * random.choice([-1.0, 1.0], len(chosen))
    bad[begin:, chosen] += size * bad[:begin, chosen].std(axis=0)
    return Fault(bad, begin, n)
