"""How strange is a record of many columns, beside all that its partition learnt?

Random subspaces, hashed (Sathe & Aggarwal 2016, ICDM, "RS-Hash"): each of T subspaces looks at one
to five columns; numbers fall on a grid of its own width and shift, words are hashed; the cell that
the record falls into has a count. The last FINE subspaces look at most columns on a fine grid.

    rarity = mean over the coarse subspaces of log((learnt + 1) / (n_cell + 1/2))
    burst  = mean over all of  s log(s / e) - s + e  where s > e  (Poisson log-likelihood ratio)

s is the cell's count over the last records (half-life 32), whether learnt or not, e what its share
of all that was learnt lets expect. Both become -log10 p by their own past (calibrate.py); the
larger one counts.

What is learnt is guarded thrice, for a sketch that learns an attack falls silent about it:
1. no record with p < 0.01 is learnt;
2. while more than 15 of the last 100 records are that strange, none is (`hold`), for at most
   HOLD_MAX records: after that the world has changed, and the sketch learns it;
3. a cell grows slowly: by (e + SLACK) / m of a record, m its count over the last 512 or so.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from raywatch.models import calibrate
from raywatch.models.scorer import F32, F64, I32, I64

SCALE_RECORDS = 512  # records that are kept to learn the columns' scale before anything is said
FRONT = 2_048  # records that are learnt whatever they are
CALIBRATE_FROM = 1_024  # a sketch that knows fewer records is surprised by all of them
HALF_SHORT, HALF_MID = 32.0, 512.0  # records
SHORT_MAX, MID_MAX = 1_024, 8_192  # a count that was not touched for so long is nothing
WINDOW_SHORT, WINDOW_MID = HALF_SHORT / math.log(2.0), HALF_MID / math.log(2.0)
SLACK = 8.0  # records in WINDOW_MID by which any cell may grow at once
FINE_WEIGHT = 4.0  # a repeated record shows in the fine subspaces only, which are few
STRANGE = 2.0  # -log10 p from which a record is not learnt
USUAL_EVERY, USUAL_RATE = 8, 1.0 / 64.0  # every so many records; of those
HOLD_SHARE, HOLD_RATE = 0.15, 0.01
HOLD_MAX = 50_000
FAR = 1e9  # standard deviations; cells are counted in 64-bit integers
HALVE_AT = 1 << 22  # learnt records after which all counts are halved: float32 stays exact enough

LONG, SHORT, MID, LAST = range(4)  # a cell: three float32 and one int32 in the same 16 bytes
SEEN, LEARNT, STRANGE_SHARE, HELD = range(4)  # columns of `total`
RARITY, BURST = range(2)

RATE, EXCESS_RATE = calibrate.rates(2_000.0)


class Plan(NamedTuple):
    """The subspaces: the same for every partition, drawn once from a fixed seed."""

    columns: I32  # (T, R) numbers first, then words; -1: no more
    size: I32  # (T,)
    width: F64  # (T,) in standard deviations of the column's signed logarithm
    shift: F64  # (T, R)
    coarse: int  # the first so many are coarse
    short: F32  # (SHORT_MAX,) what is left of a count after so many records
    mid: F32  # (MID_MAX,)


class State(NamedTuple):
    """Everything that is remembered of P partitions."""

    total: F64  # (P, 4)
    first: F64  # (P, SCALE_RECORDS, D) signed logarithms of the first records
    words: I64  # (P, SCALE_RECORDS, K) their words
    scale: F64  # (P, D, 2) mean and standard deviation of the first records
    usual: F64  # (P, T) surprise of a subspace by what is learnt, for explanations
    cells: F32  # (P, T, cells, 4)
    touched: I32  # the same memory: LAST is a number of records modulo 2^31
    calibration: F64  # (P, 2, 6)


@njit(cache=True, nogil=True)
def _mix(h: np.uint64, v: Any) -> np.uint64:
    h = (h ^ np.uint64(v)) * np.uint64(0x9E3779B97F4A7C15)
    h ^= h >> np.uint64(29)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    return h ^ (h >> np.uint64(32))


@njit(cache=True, nogil=True)
def signed_log(value: float) -> float:
    """Log(1 + |x|) with the sign of x: bytes and rates on one scale."""
    return math.copysign(math.log1p(abs(value)), value)


@njit(cache=True, nogil=True)
def _scaled(logarithm: float, scale: F64) -> float:
    """In standard deviations of the column; NaN stays NaN."""
    z = (logarithm - scale[0]) / scale[1]
    return math.copysign(FAR, z) if abs(z) > FAR else z


@njit(cache=True, nogil=True)
def _locate(plan: Plan, z: F64, words: I64, mask: int, fine: I64, cell: I32) -> None:
    """The cell of one record in each subspace. A missing number is a value of its own."""
    numbers = z.shape[0]
    grid = plan.width[plan.columns.shape[0] - 1]
    for column in range(fine.shape[0]):
        if column >= numbers:
            value = words[column - numbers]
        else:
            value = -(1 << 40) if math.isnan(z[column]) else math.floor(z[column] / grid)
        fine[column] = np.int64(_mix(np.uint64(column + 1), value))
    for t in range(cell.shape[0]):
        h = np.uint64(t + 1)
        if t >= plan.coarse:  # order does not count: a sum of hashes will do
            for r in range(plan.size[t]):
                h += np.uint64(fine[plan.columns[t, r]])
            h = _mix(h, t)
        else:
            for r in range(plan.size[t]):
                column = plan.columns[t, r]
                if column >= numbers:
                    value = words[column - numbers]
                elif math.isnan(z[column]):
                    value = -(1 << 40)
                else:
                    value = math.floor(z[column] / plan.width[t] + plan.shift[t, r])
                h = _mix(h, value + (column << 44))
        cell[t] = np.int32(h & np.uint64(mask))


@njit(cache=True, nogil=True)
def _weigh(
    plan: Plan, count: F32, touched: I32, now: int, learnt: float, cell: I32
) -> tuple[float, float]:
    """Rarity and burst of one record; then the record itself is in the recent counts."""
    rarity, burst, product = 0.0, 0.0, 1.0
    for t in range(cell.shape[0]):
        at = cell[t]
        share = (count[t, at, LONG] + 1.0) / (learnt + 1.0)
        if t < plan.coarse:
            product *= (learnt + 1.0) / (count[t, at, LONG] + 0.5)
            if t & 7 == 7:  # one logarithm for eight; the product stays below 1e60
                rarity += math.log(product)
                product = 1.0
        age = (now - touched[t, at, LAST]) & 0x7FFFFFFF
        recent = count[t, at, SHORT] * plan.short[age] if age < SHORT_MAX else 0.0
        middle = count[t, at, MID] * plan.mid[age] if age < MID_MAX else 0.0
        expected = WINDOW_SHORT * share
        if recent > expected:
            ratio = recent * math.log(recent / expected) - recent + expected
            burst += ratio if t < plan.coarse else FINE_WEIGHT * ratio
        count[t, at, SHORT] = recent + 1.0
        count[t, at, MID] = middle + 1.0
        touched[t, at, LAST] = now
    return (rarity + math.log(product)) / plan.coarse, burst / plan.coarse


@njit(cache=True, nogil=True)
def _learn(count: F32, usual: F64, learnt: float, cell: I32, slowly: bool) -> None:
    for t in range(cell.shape[0]):
        at = cell[t]
        weight = 1.0
        if slowly:
            expected = WINDOW_MID * (count[t, at, LONG] + 1.0) / (learnt + 1.0)
            weight = min(1.0, (expected + SLACK) / max(count[t, at, MID] - 1.0, 1e-9))
        if int(learnt) & (USUAL_EVERY - 1) == 0:
            surprise = math.log((learnt + 1.0) / (count[t, at, LONG] + 0.5))
            usual[t] += USUAL_RATE * (surprise - usual[t])
        count[t, at, LONG] += weight


@njit(cache=True, nogil=True)
def _fit(first: F64, scale: F64) -> None:
    """Scale of the columns; one that never moved takes the middle one of the others."""
    columns = first.shape[1]
    known = 0
    spread = np.empty(columns)
    for c in range(columns):
        n, mean, square = 0, 0.0, 0.0
        for row in range(first.shape[0]):
            if not math.isnan(first[row, c]):
                n += 1
                delta = first[row, c] - mean
                mean += delta / n
                square += delta * (first[row, c] - mean)
        scale[c, 0] = mean
        scale[c, 1] = math.sqrt(square / n) if n > 0 else 0.0
        if scale[c, 1] > 0.0:
            spread[known] = scale[c, 1]
            known += 1
    usual = np.median(spread[:known]) if known > 0 else 1.0
    for c in range(columns):
        if scale[c, 1] == 0.0:
            scale[c, 1] = usual


@njit(cache=True, nogil=True)
def _explain(plan: Plan, count: F32, usual: F64, learnt: float, cell: I32, why: F32) -> None:
    """Why is this record strange? Changes nothing.

    `why`: out, (2, D + K). First the share of each column: by how much a subspace is more surprised
    than usual, and how much more often its cell comes than usual, is split among its columns. Then
    the smallest count of a cell that looks at this column alone: -1 where none does.
    """
    why[0], why[1] = 0.0, -1.0
    for t in range(cell.shape[0]):
        known, recent = count[t, cell[t], LONG], count[t, cell[t], SHORT] - 1.0
        expected = WINDOW_SHORT * (known + 1.0) / (learnt + 1.0)
        each = 0.0
        if t < plan.coarse:
            each = max(math.log((learnt + 1.0) / (known + 0.5)) - usual[t], 0.0)
        if recent > expected:
            ratio = recent * math.log(recent / expected) - recent + expected
            each += ratio if t < plan.coarse else FINE_WEIGHT * ratio
        for r in range(plan.size[t]):
            why[0, plan.columns[t, r]] += each / plan.size[t]
        if t < plan.coarse and plan.size[t] == 1:
            only = plan.columns[t, 0]
            why[1, only] = known if why[1, only] < 0.0 else min(known, why[1, only])
    why[0] /= max(why[0].sum(), np.float32(1e-12))


@njit(cache=True, nogil=True)
def _hold(total: F64, strange: bool) -> bool:
    """Whether nothing is learnt now; follows the share of strange records."""
    total[STRANGE_SHARE] += HOLD_RATE * ((1.0 if strange else 0.0) - total[STRANGE_SHARE])
    if total[STRANGE_SHARE] <= HOLD_SHARE:
        total[HELD] = max(total[HELD], 0.0)
        return False
    total[HELD] += 1.0
    if total[HELD] > HOLD_MAX:  # as if this were the front again
        total[HELD], total[STRANGE_SHARE] = -float(FRONT), 0.0
    return True


@njit(cache=True, nogil=True)
def _one(
    plan: Plan,
    state: State,
    p: int,
    z: F64,
    words: I64,
    explain: float,
    fine: I64,
    cell: I32,
    rare: F64,
    why: F32,
) -> None:
    """Score one record and learn it. Out: `rare` (2,), and `why` (2, D + K) from `explain` on."""
    total, count, touched = state.total[p], state.cells[p], state.touched[p]
    seen, learnt = int(total[SEEN]), total[LEARNT]
    _locate(plan, z, words, count.shape[1] - 1, fine, cell)
    rarity, burst = _weigh(plan, count, touched, seen & 0x7FFFFFFF, learnt, cell)
    rare[:] = 0.0
    ready = seen >= CALIBRATE_FROM
    if ready:
        rare[RARITY] = calibrate.judge(state.calibration, p, RARITY, rarity)
        rare[BURST] = calibrate.judge(state.calibration, p, BURST, burst)
    front = seen < FRONT
    strange = max(rare[RARITY], rare[BURST]) >= STRANGE
    if total[HELD] < 0.0:
        total[HELD] += 1.0
        front, hold = True, False
    else:
        hold = not front and _hold(total, strange)
    if max(rare[RARITY], rare[BURST]) >= explain:  # before it is learnt
        _explain(plan, count, state.usual[p], learnt, cell, why)
    if front or not (hold or strange):
        _learn(count, state.usual[p], learnt, cell, not front)
        total[LEARNT] += 1.0
    if ready and not hold:  # strange ones too: else the tail would shrink and shrink
        calibrate.learn(state.calibration, p, RARITY, rarity, RATE, EXCESS_RATE)
        calibrate.learn(state.calibration, p, BURST, burst, RATE, EXCESS_RATE)
    total[SEEN] += 1.0
    if total[LEARNT] >= HALVE_AT:
        total[LEARNT] *= 0.5
        count[:, :, LONG] *= np.float32(0.5)


@njit(cache=True, nogil=True)
def observe(
    plan: Plan,
    state: State,
    partition: I32,
    values: F64,
    words: I64,
    explain: float,
    before: I64,
    rare: F64,
    why: F32,
) -> None:
    """Score N records in batch order.

    Out: `before` (N,) records of the partition before it; `rare` (N, 2) -log10 p; `why` (N, 2,
    D + K).
    """
    numbers = values.shape[1]
    z = np.empty(numbers)
    fine = np.empty(numbers + words.shape[1], np.int64)
    cell = np.empty(plan.columns.shape[0], np.int32)
    early = np.empty(2)
    for index in range(values.shape[0]):
        p = partition[index]
        seen = int(state.total[p, SEEN])
        before[index] = seen
        if seen < SCALE_RECORDS and state.scale[p, 0, 1] == 0.0:
            rare[index] = 0.0
            for c in range(numbers):
                state.first[p, seen, c] = signed_log(values[index, c])
            state.words[p, seen] = words[index]
            state.total[p, SEEN] += 1.0
            if seen + 1 == SCALE_RECORDS:
                scale = state.scale[p]
                _fit(state.first[p], scale)
                state.total[p, SEEN] = 0.0
                for row in range(SCALE_RECORDS):
                    for c in range(numbers):
                        z[c] = _scaled(state.first[p, row, c], state.scale[p, c])
                    kept = state.words[p, row]
                    _one(plan, state, p, z, kept, np.inf, fine, cell, early, why[index])
            continue
        for c in range(numbers):
            z[c] = _scaled(signed_log(values[index, c]), state.scale[p, c])
        _one(plan, state, p, z, words[index], explain, fine, cell, rare[index], why[index])
