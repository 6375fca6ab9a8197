"""The decide stage as one pass over a batch: scores in, tail probabilities and episodes out.

Records come in grouped order. Everything a record's decision needs beside the batch lies in State,
indexed by slot, so no decision depends on where batches were cut or on which keys came along.
Components are rows: those of the scorer first, then the two time-of-day views (profile.py), if any.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from raywatch.models import calibrate, incident, profile
from raywatch.models.scorer import F32, F64, I32, I64

BLOCK, HELD, EVENT, SUSTAINED, WEIGHTED = range(5)  # columns of the component table
FIELDS = 5

LARGEST = float(np.finfo(np.float32).max)  # An infinite score is judged as this, and not learned.

SLOT, INDEX, KIND, SINCE, ORDINAL, FIRED, LAG = range(7)  # columns of an episode


Origin = tuple[int, int, int, int]  # key of the batch, its records, which of them, records before


class Rule(NamedTuple):
    """What does not change from record to record."""

    probability: float
    update_factor: float
    warmup: int
    quiet: int
    rate: float
    excess_rate: float
    engine: int  # components of the scorer; further rows are the time-of-day views


class State(NamedTuple):
    """Everything that is remembered of S keys."""

    total: I64  # (S,) records so far
    held: F64  # (S, coarse components, C) score of the last block, NaN before the first
    calibration: F64  # (S, rows, 6)
    profile: F64  # (S, C, 2, 25, 3), or S = 0 where there is none
    recent: F64  # (S, C, 8), likewise
    chance: F64  # (S, 2)
    incident: I64  # (S, 7)


class Batch(NamedTuple):
    """What came in."""

    touched: I32  # (K,)
    counts: I32  # (K,)
    time_ms: I64  # (N,)
    values: F64  # (N, C)
    flat: F32  # parts of all components, one after the other
    weight: F32  # (N * C,) in row order, or empty
    expected: F32  # (N * C,) in row order
    lag: I32  # (N * C,) in row order
    anchor: F64  # (K * C,)


class Scratch(NamedTuple):
    """Working memory of one record."""

    now: F64  # (rows, C) weighted scores
    usual: F64  # (2, C) means of the time-of-day views
    fresh: I64  # (components,) new values of this key
    cursor: I64  # (components,) where this key begins in `flat`
    logs: F64  # (rows + 1,) log10 of 0, 1, 2, ...; entry 0 is not used


class Out(NamedTuple):
    """What goes out; the episodes are the first `found` rows."""

    score: F32  # (N,)
    p: F64  # (N,)
    event: F32  # (N,)
    episode: I64  # (N, 7)
    share: F64  # (N, C)
    expected: F64  # (N, C)
    evidence: F64  # (N, C), or (0, C) where nobody asks


@njit(cache=True, nogil=True)
def _begin_key(table: I64, fresh: I64, before: int, records: int) -> None:
    for row in range(fresh.shape[0]):
        block = table[row, BLOCK]
        fresh[row] = (before + records) // block - before // block


@njit(cache=True, nogil=True)
def _gather(
    table: I64,
    flat: F32,
    weight: F32,
    held: F64,
    now: F64,
    fresh: I64,
    cursor: I64,
    slot: int,
    before: int,
    records: int,
    t: int,
    row_base: int,
) -> None:
    """Weighted scores of one record, the t-th of its key in the batch, into `now`."""
    channels = now.shape[1]
    for row in range(fresh.shape[0]):
        block = table[row, BLOCK]
        if block == 1:
            for channel in range(channels):
                now[row, channel] = flat[cursor[row] + channel * records + t]
        else:
            keep = table[row, HELD]
            ended = before + t + 1
            if ended % block == 0:  # this record completes a block: its score is valid from now on
                begin = cursor[row] + ended // block - 1 - before // block
                for channel in range(channels):
                    held[slot, keep, channel] = flat[begin + channel * fresh[row]]
            for channel in range(channels):
                now[row, channel] = held[slot, keep, channel]
        if channels > 1 and table[row, WEIGHTED] == 1:
            for channel in range(channels):
                now[row, channel] *= weight[row_base + channel * records + t]


@njit(cache=True, nogil=True)
def _sustained(now: F64, table: I64, engine: int) -> float:
    """Sum of the sustained components, of the channel where it is largest."""
    largest = 0.0
    for channel in range(now.shape[1]):
        total = 0.0
        for row in range(engine):
            if table[row, SUSTAINED] == 1 and not math.isnan(now[row, channel]):
                total += now[row, channel]
        largest = max(largest, total)
    return largest


@njit(cache=True, nogil=True)
def _strangest(
    now: F64, table: I64, calibration: F64, slot: int, warmup: int, rate: float, excess_rate: float
) -> tuple[float, int, int]:
    """Judge and learn every component: (largest -log10 p, its row, how many had a say).

    A component has a say once it was learned `warmup` times: coarse ones begin late, and one that a
    new model brought along begins in the middle of a key's life.
    """
    rarest, fired, say = -1.0, -1, 0
    for row in range(now.shape[0]):
        if table[row, EVENT] == 0:
            continue
        peak = -math.inf
        for channel in range(now.shape[1]):
            score = now[row, channel]
            if not math.isnan(score) and score > peak:
                peak = score
        if peak == -math.inf:
            continue
        score = max(min(peak, LARGEST), 0.0)
        if calibration[slot, row, calibrate.COUNT] >= warmup:
            say += 1
            rare = calibrate.judge(calibration, slot, row, score)
            if rare > rarest:
                rarest, fired = rare, row
        if peak <= LARGEST:
            calibrate.learn(calibration, slot, row, score, rate, excess_rate)
    return rarest, fired, say


@njit(cache=True, nogil=True)
def _evidence(
    now: F64, table: I64, calibration: F64, slot: int, warmup: int, evidence: F64, to: int
) -> None:
    """What each channel would be by itself: the sum of its -log10 p over the components.

    The component that fired is not enough: what it saw first, others see better (docs/quality.md).
    """
    channels = now.shape[1]
    for channel in range(channels):
        evidence[to, channel] = 0.0
    for row in range(now.shape[0]):
        if table[row, EVENT] == 0 or calibration[slot, row, calibrate.COUNT] < warmup:
            continue
        for channel in range(channels):
            score = now[row, channel]
            if not math.isnan(score):
                score = max(min(score, LARGEST), 0.0)
                evidence[to, channel] += calibrate.judge(calibration, slot, row, score)


@njit(cache=True, nogil=True)
def _shares(share: F64, to: int) -> int:
    """Evidence to shares of its squares, in place; returns the largest channel.

    Squares, for every usual channel has some evidence: of 38 channels that would be most of it.
    """
    channels = share.shape[1]
    largest, total = 0, 0.0
    for channel in range(channels):
        if share[to, channel] > share[to, largest]:
            largest = channel
        total += share[to, channel] ** 2
    for channel in range(channels):
        share[to, channel] = share[to, channel] ** 2 / total if total > 0.0 else 1.0 / channels
    return largest


@njit(cache=True, nogil=True)
def _record(out: Out, found: int, at: int, kind: int, slot: int, incidents: I64) -> None:
    """Write down an episode."""
    out.episode[found, SLOT] = slot
    out.episode[found, INDEX] = at
    out.episode[found, KIND] = kind
    out.episode[found, SINCE] = incidents[slot, incident.SINCE]
    out.episode[found, ORDINAL] = incidents[slot, incident.ORDINAL]
    out.episode[found, FIRED] = incidents[slot, incident.FIRED]


@njit(cache=True, nogil=True)
def _explain(
    table: I64,
    rule: Rule,
    state: State,
    batch: Batch,
    scratch: Scratch,
    out: Out,
    found: int,
    origin: Origin,
) -> None:
    """Shares, expected values and lag of an episode. `origin`: (key, records, t, base)."""
    channels, engine = scratch.now.shape[1], rule.engine
    key, records, t, base = origin
    slot, fired = out.episode[found, SLOT], out.episode[found, FIRED]
    _evidence(scratch.now, table, state.calibration, slot, rule.warmup, out.share, found)
    worst = _shares(out.share, found)
    for channel in range(channels):
        if fired >= engine:
            out.expected[found, channel] = scratch.usual[fired - engine, channel]
        else:
            at = base * channels + channel * records + t
            anchor = batch.anchor[key * channels + channel]
            out.expected[found, channel] = batch.expected[at] + anchor
    lag = 0
    if fired < engine:
        lag = batch.lag[base * channels + worst * records + t]
    out.episode[found, LAG] = lag


@njit(cache=True, nogil=True)
def decide_batch(
    table: I64, rule: Rule, state: State, batch: Batch, scratch: Scratch, out: Out
) -> int:
    """Decide every record of a batch; returns the number of episodes.

    Scratch.cursor holds where each component begins in Batch.flat, and is used up.
    """
    # Taking an array out of a tuple counts a reference: not once a record.
    counts, time_ms, flat, weight = batch.counts, batch.time_ms, batch.flat, batch.weight
    count, held = state.total, state.held
    calibration, incidents = state.calibration, state.incident
    now, fresh, cursor, logs = scratch.now, scratch.fresh, scratch.cursor, scratch.logs
    engine, channels = rule.engine, now.shape[1]
    evidence, asked = out.evidence, out.evidence.shape[0] > 0
    strange = now[engine:]
    views = strange.shape[0] > 0
    found, base = 0, 0
    for key in range(batch.touched.shape[0]):
        slot, records = int(batch.touched[key]), int(counts[key])
        before, row_base = count[slot], base * channels
        _begin_key(table, fresh, before, records)
        for t in range(records):
            at = base + t
            _gather(
                table, flat, weight, held, now, fresh, cursor, slot, before, records, t, row_base
            )
            if views:
                hour = profile.hour_of(time_ms[at])
                profile.look(
                    state.profile,
                    state.recent,
                    slot,
                    hour,
                    batch.values,
                    at,
                    strange,
                    scratch.usual,
                )
            out.score[at] = _sustained(now, table, engine)
            rarest, fired, say = _strangest(
                now, table, calibration, slot, rule.warmup, rule.rate, rule.excess_rate
            )
            event, p = 0.0, 1.0
            if say > 0:
                event = max(rarest - logs[say], 0.0)  # Bonferroni: p * say
                if event > 0.0:
                    p = math.exp(-event * calibrate.LN10)
            passed = incident.gate(state.chance, slot, event)
            out.p[at] = p
            out.event[at] = event if passed else 0.0
            kind = incident.follow(
                incidents,
                state.chance,
                slot,
                time_ms[at],
                p,
                passed and before + t >= rule.warmup,
                fired,
                rule.probability,
                rule.update_factor,
                rule.quiet,
            )
            if asked:
                _evidence(now, table, calibration, slot, rule.warmup, evidence, at)
            if kind != incident.NOTHING:
                _record(out, found, at, kind, slot, incidents)
                _explain(table, rule, state, batch, scratch, out, found, (key, records, t, base))
                found += 1
        for row in range(engine):
            cursor[row] += channels * fresh[row]
        count[slot] = before + records
        base += records
    return found
