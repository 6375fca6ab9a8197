"""What do all components and channels of a record say together, as -log10 of a tail probability?

Every component of every channel is calibrated by its own past (calibrate.py): a channel is as rare
as the rarest of its components, r. A key of one channel pays for their number (Bonferroni, weighted
by the trust in each: Genovese, Roeder & Wasserman 2006, Biometrika 93:509);

    rare = max over components of (r + log10 trust) - log10 (sum of trust)

of several channels the three rarest count together, whatever they say beyond what any record says,
and the sum is calibrated once more: real incidents move several channels at once, noise does not.

    rare = calibrated(sum over the 3 rarest channels of max(r - 1, 0))

Once for ranks, and once for p, of what may be promised (below): what ranks says too much of young
keys, and with it the tail grows so heavy that nothing is rare for weeks. What sees that something
lasts in one channel, an hour that is too quiet, has no part in the sum, which would be high for as
long. It speaks alone, as the rarest of all such components and channels, and the two ways pay for
each other as above, this one as ALONE, the other as 1.

A component that says nothing yet (too little history, a missing value) counts as 0 and learns it:
so it is slow to call anything rare once it begins, as it has to be. To rank records a component
needs ten scores; to have a part in p, and in alerts, it must have been heard `warmup` times.

Ranks are made of what is likeliest, p of what is known: there a tail is no sharper than what taught
it allows (`calibrate.promised`), and an hour of few values is believed in part (profile.py). Some
components have a part in p alone: what sees a thing late would rank it late, too. One comes with a
tail of its own (poisson.py, peaks.py).
"""

import math

import numpy as np
from numba import njit

from raywatch.models import calibrate
from raywatch.models.scorer import F64

USUAL = 1.0  # -log10 of 0.1: something says as much of any record.

LARGEST = float(np.finfo(np.float32).max)  # An infinite score is judged as this, and not learned.

AGE = 200.0  # records; see `due`
ALONE = 0.5

RANKING, PROMISE = range(2)  # calibrators of channels together
JOINTS = 2

Top = tuple[float, float, float]
NONE: Top = (0.0, 0.0, 0.0)


@njit(cache=True, nogil=True)
def judge(
    now: F64,
    trust: F64,
    ranks: F64,
    tails: F64,
    worth: F64,
    reach: F64,
    belief: F64,
    teaches: F64,
    calibration: F64,
    joint: F64,
    evidence: F64,
    said: F64,
    slot: int,
    warmup: int,
    rate: float,
    excess_rate: float,
) -> tuple[float, float, int, int]:
    """Judge a record and learn it.

    Args:
        now: (rows, C) scores of this record, NaN is none.
        trust: (rows,) in each component, 0 where it is not asked.
        ranks: (rows,) 1 where a component has a part in ranks, 0 where in p alone.
        tails: (rows,) 1 where scores are -log10 p as they come.
        worth: (rows,) log10 of trust.
        reach: (rows,) how far it may say more than log10 of the scores that it was taught.
        belief: (rows, C) share of what it says that is believed where p is concerned.
        teaches: (rows, C) the most that a score teaches; below 0 this one teaches nothing.
        calibration: (S, rows * C, 7) of each component and channel; brought forward.
        joint: (S, 2, 7) of the channels together, brought forward; not used where C is 1.
        evidence: out, (C,) sum of what components say of each channel beyond USUAL, by trust.
        said: out, (rows, C) -log10 p of each component; 0 where it has no say yet.
        slot: of the key.
        warmup: scores of which a component must have been heard to have a part in alerts.
        rate: of `calibrate.learn`.
        excess_rate: likewise.

    Returns:
        What all say, what those say that have a part in alerts, which of these says most, -1 where
        none has a part yet, and of which channel it speaks, -1 where channels count together.
    """
    rows, channels = now.shape
    all_trust, heard_trust, tests = 0.0, 0.0, 0.0
    rarest, fired = -math.inf, -1
    alone, by, whose = -math.inf, -1, -1
    top_all, top_sharp, top_heard = NONE, NONE, NONE
    for channel in range(channels):
        most, most_sharp, most_heard, total = -math.inf, -math.inf, -math.inf, 0.0
        for row in range(rows):
            if trust[row] == 0.0:
                continue
            which, score = row * channels + channel, now[row, channel]
            said[row, channel] = 0.0
            known = 0.0 if math.isnan(score) else max(min(score, LARGEST), 0.0)
            if calibration[slot, which, calibrate.COUNT] >= calibrate.COUNT_MIN:
                form = (reach[row], tails[row])
                rare, promised = _say(calibration, slot, which, known, form)
                said[row, channel] = rare
                sharp = belief[row, channel] * promised + worth[row]
                heard = calibration[slot, which, calibrate.HEARD] >= warmup
                if channels > 1 and ranks[row] == 0.0:
                    tests += heard
                    if heard and sharp > alone:
                        alone, by, whose = sharp, row, channel
                else:
                    all_trust += trust[row] * ranks[row]
                    total += trust[row] * max(rare - USUAL, 0.0)
                    most = max(most, ranks[row] * (rare + worth[row]))  # 0 is nothing rare
                    most_sharp = max(most_sharp, sharp)
                    heard_trust += trust[row] * heard
                    most_heard = max(most_heard, sharp if heard else -math.inf)
                    if heard and sharp > rarest:
                        rarest, fired = sharp, row
            if not math.isnan(score):
                calibration[slot, which, calibrate.HEARD] += 1.0
            if teaches[row, channel] >= 0.0 and not score > LARGEST:
                known = min(known, teaches[row, channel])
                calibrate.learn(calibration, slot, which, known, rate, excess_rate)
        evidence[channel] = total
        if channels == 1:
            every = most - math.log10(all_trust) if all_trust > 0.0 else 0.0
            return every, rarest - math.log10(heard_trust) if fired >= 0 else 0.0, fired, 0
        top_all = _topped(top_all, most - USUAL)
        top_sharp = _topped(top_sharp, most_sharp - USUAL)
        top_heard = _topped(top_heard, most_heard - USUAL)
    every, together = _joined(joint, slot, (top_all, top_sharp, top_heard), rate, excess_rate)
    alone -= math.log10(max(tests, 1.0) * (1.0 + ALONE) / ALONE)
    together -= math.log10(1.0 + ALONE) * (by >= 0)
    if by >= 0 and (alone > together or fired < 0):
        return every, alone, by, whose
    return every, together, fired, -1


@njit(cache=True, nogil=True)
def _joined(
    joint: F64, slot: int, tops: tuple[Top, Top, Top], rate: float, excess_rate: float
) -> tuple[float, float]:
    """What the rarest channels say together, as it ranks and as p is made of it; learns both.

    `tops`: of what ranks, of what may be promised, and of that what has a part in alerts.
    """
    ranking, sharp, heard = _total(tops[0]), _total(tops[1]), _total(tops[2])
    every = calibrate.judge(joint, slot, RANKING, ranking)
    together = calibrate.promised(joint, slot, PROMISE, heard)
    calibrate.learn(joint, slot, RANKING, ranking, rate, excess_rate)
    calibrate.learn(joint, slot, PROMISE, sharp, rate, excess_rate)
    return every, together


@njit(cache=True, nogil=True)
def _say(
    calibration: F64,
    slot: int,
    which: int,
    score: float,
    form: tuple[float, float],
) -> tuple[float, float]:
    """-log10 p of a score as it ranks, and as p is made of it.

    `form`: its reach, and 1 for a tail.
    """
    reach, tail = form
    if tail == 1.0:
        return score, score
    rare = calibrate.judge(calibration, slot, which, score)
    promised = rare
    if rare > calibrate.BODY:  # below the line both are the same
        promised = calibrate.promised(calibration, slot, which, score)
    if rare <= reach:
        return rare, promised
    most = math.log10(calibration[slot, which, calibrate.COUNT]) + reach
    return min(rare, most), min(promised, most)


@njit(cache=True, nogil=True)
def _topped(top: Top, more: float) -> Top:
    """The largest three, falling, of three and one more."""
    if more > top[0]:
        return more, top[0], top[1]
    if more > top[1]:
        return top[0], more, top[1]
    return (top[0], top[1], more) if more > top[2] else top


@njit(cache=True, nogil=True)
def _total(top: Top) -> float:
    return top[0] + top[1] + top[2]


@njit(cache=True, nogil=True)
def due(records: int) -> float:
    """What is due to a key that has had so many records, to be taken off of what is said.

    The longer a key is watched the rarer its rarest record, without anything being wrong: across
    keys of all ages one level of the event score means one thing. 0.5 log10(1 + records / 200).
    """
    return 0.5 * math.log10(1.0 + records / AGE)
