"""The decide stage as one pass over a batch: scores in, tail probabilities and episodes out.

Records come in grouped order. Everything a record's decision needs beside the batch lies in State,
indexed by slot, so no decision depends on where batches were cut or on which keys came along.
Components are rows: those of the scorer first, then this stage's own views of the values, if any:
hour (profile.py) and count (poisson.py); for keys of one channel hour, hour_mean, hour_long, novel
(novelty.py), count and week (week.py).
"""

import math
from typing import NamedTuple

from numba import njit

from raywatch.models import (
    budget,
    calibrate,
    incident,
    judging,
    novelty,
    peaks,
    poisson,
    profile,
    promise,
    week,
)
from raywatch.models.budget import Account
from raywatch.models.scorer import F32, F64, I32, I64, U8

BLOCK, HELD, SUSTAINED, WEIGHTED = range(4)  # columns of the component table
FIELDS = 4

SLOT, INDEX, KIND, SINCE, ORDINAL, FIRED, LAG, SIMILAR = range(8)  # columns of an episode

EVERY = 8  # records between two whose time is kept
TIMES = 76  # enough for the farthest lag, 590 records
MISS_RATE = 0.005
NEAR = 0.05  # of the farthest channel: the others count as this far, or one could hide behind it
BAND = 3.0  # mean distances: 95 % of Laplacian ones (e^-3)

Origin = tuple[int, int, int, int]  # key of the batch, its records, which of them, records before


class Rule(NamedTuple):
    """What does not change from record to record."""

    probability: float
    update_factor: float
    warmup: int
    quiet: int
    rate: float
    excess_rate: float
    engine: int  # components of the scorer; further rows are views


class State(NamedTuple):
    """Everything that is remembered of S keys."""

    total: I64  # (S,) records so far
    held: F64  # (S, coarse components, C) score of the last block, NaN before the first
    calibration: F64  # (S, rows * C, 7)
    joint: F64  # (S, 2, 7) of all channels together, see judging.py
    promise: F64  # (S, 3)
    profile: F64  # (S, C, views, 25, 3), or S = 0 where there is none
    recent: F64  # (S, C, 64), likewise
    range: F64  # (S, C, 2) smallest and largest value, NaN before the first; S = 0 where C is 1
    span: F64  # (S, 4) of values known, or S = 0 where there is none
    marks: U8  # (S, 256), likewise
    poisson: F64  # (S, C, 68), likewise
    peaks: F64  # (S, C, 8), likewise
    week: F64  # (S, 1, 535), likewise
    miss: F64  # (S, C) mean distance between what models expect and what comes
    times: I64  # (S, 76) time of every 8th record
    chance: F64  # (S, 3)
    incident: I64  # (S, 7)


class Batch(NamedTuple):
    """What came in."""

    touched: I32  # (K,)
    counts: I32  # (K,)
    base: I64  # (K,) where the records of each begin
    key: I32  # (N,) whose record it is, 0..K-1
    fresh: I64  # (K, components) new values
    cursor: I64  # (K, components) where they begin in `flat`
    time_ms: I64  # (N,)
    values: F64  # (N, C)
    flat: F32  # parts of all components, one after the other
    weight: F32  # (N * C,) in row order, or empty
    expected: F32  # (N * C,) in row order
    lag: I32  # (N * C,) in row order
    anchor: F64  # (K * C,)


class Scratch(NamedTuple):
    """Working memory of one record."""

    now: F64  # (rows, C) scores
    said: F64  # (rows, C) -log10 p of each component
    usual: F64  # (views, C) what each view expects
    spread: F64  # (views, C) and how far from it values usually are
    evidence: F64  # (C,) what components say of each channel
    far: F64  # (C,) how far each channel is from its past
    trust: F64  # (rows,) in each component, 0 where it is not asked; see judging.py
    ranks: F64  # (rows,) likewise
    tails: F64  # (rows,) likewise
    worth: F64  # (rows,) log10 of trust
    reach: F64  # (rows,) see judging.py
    belief: F64  # (rows, C) likewise
    teaches: F64  # (rows, C) likewise
    sums: F64  # (C, 2) what came and what was due, see poisson.py


class Out(NamedTuple):
    """What goes out; the episodes are the first `found` rows."""

    score: F32  # (N,)
    p: F64  # (N,)
    event: F32  # (N,)
    judged: U8  # (N,) of incident.Decided
    episode: I64  # (N, 8)
    share: F64  # (N, C)
    expected: F64  # (N, C)
    spread: F64  # (N, C) band around it, to one side
    said: F64  # (N, rows) of the channel that weighs most
    sums: F64  # (N, 2) of the channel that weighs most, as of Scratch
    evidence: F64  # (N, C), or (0, C) where nobody asks


@njit(cache=True, nogil=True)
def _gather(
    table: I64,
    flat: F32,
    held: F64,
    now: F64,
    fresh: I64,
    cursor: I64,
    key: int,
    slot: int,
    before: int,
    records: int,
    t: int,
) -> None:
    """Scores of one record, the t-th of its key in the batch, into `now`."""
    channels = now.shape[1]
    for row in range(fresh.shape[1]):
        block = table[row, BLOCK]
        if block == 1:
            for channel in range(channels):
                now[row, channel] = flat[cursor[key, row] + channel * records + t]
        else:
            keep = table[row, HELD]
            ended = before + t + 1
            if ended % block == 0:  # this record completes a block: its score is valid from now on
                begin = cursor[key, row] + ended // block - 1 - before // block
                for channel in range(channels):
                    held[slot, keep, channel] = flat[begin + channel * fresh[key, row]]
            for channel in range(channels):
                now[row, channel] = held[slot, keep, channel]


@njit(cache=True, nogil=True)
def _sustained(now: F64, table: I64, engine: int, weight: F32, at: int, stride: int) -> float:
    """Sum of the sustained components, of the channel where it is largest.

    `weight[at + channel * stride]` is the channel's: empty where there is one channel.
    """
    largest = 0.0
    for channel in range(now.shape[1]):
        weighted, plain = 0.0, 0.0
        for row in range(engine):
            if table[row, SUSTAINED] == 1 and not math.isnan(now[row, channel]):
                if table[row, WEIGHTED] == 1:
                    weighted += now[row, channel]
                else:
                    plain += now[row, channel]
        if weight.shape[0] > 0:
            weighted *= weight[at + channel * stride]
        largest = max(largest, weighted + plain)
    return largest


@njit(cache=True, nogil=True)
def _widen(ranges: F64, slot: int, values: F64, at: int) -> None:
    """The range of every channel, with the values of this record in it."""
    for channel in range(values.shape[1]):
        value = values[at, channel]
        if not abs(value) <= profile.VALUE_MAX:  # NaN, too
            continue
        if not ranges[slot, channel, 0] <= value:
            ranges[slot, channel, 0] = value
        if not ranges[slot, channel, 1] >= value:
            ranges[slot, channel, 1] = value


@njit(cache=True, nogil=True)
def _blame(
    evidence: F64, now: F64, table: I64, engine: int, ranges: F64, slot: int, far: F64, sole: int
) -> None:
    """Weigh what is said of each channel by its distance from its past, in parts of its range.

    A tail says how rare that is for this channel, not how far: one that hardly ever moves and then
    does a little is as rare as one that goes through the roof. Nothing where nothing is a distance.
    `sole`: the channel that was judged alone weighs most, -1 where there is none.
    """
    farthest = 0.0
    for channel in range(now.shape[1]):
        distance = 0.0
        for row in range(engine):
            if table[row, WEIGHTED] == 1 and not math.isnan(now[row, channel]):
                distance += now[row, channel]
        width = ranges[slot, channel, 1] - ranges[slot, channel, 0]
        far[channel] = distance / width if width > 0.0 else 0.0
        farthest = max(farthest, far[channel])
    if 0.0 < farthest < math.inf:
        for channel in range(now.shape[1]):
            evidence[channel] *= max(far[channel], NEAR * farthest)
    if sole >= 0:
        evidence[sole] += max(evidence.max(), judging.USUAL)


@njit(cache=True, nogil=True)
def _shares(evidence: F64, share: F64, to: int) -> int:
    """Shares of squared evidence; returns the largest channel.

    Squares, for every usual channel has some evidence: of 38 channels that would be most of it.
    """
    channels = evidence.shape[0]
    largest, total = 0, 0.0
    for channel in range(channels):
        if evidence[channel] > evidence[largest]:
            largest = channel
        total += evidence[channel] ** 2
    for channel in range(channels):
        share[to, channel] = evidence[channel] ** 2 / total if total > 0.0 else 1.0 / channels
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
    state: State, batch: Batch, scratch: Scratch, out: Out, engine: int, found: int, origin: Origin
) -> None:
    """Why an episode is one, by what was known before it. `origin`: (key, records, t, base)."""
    channels = scratch.now.shape[1]
    key, records, t, base = origin
    slot, fired = out.episode[found, SLOT], out.episode[found, FIRED]
    worst = _shares(scratch.evidence, out.share, found)
    out.said[found] = scratch.said[:, worst]
    out.sums[found] = scratch.sums[worst]
    for channel in range(channels):
        view = fired - engine
        if view >= 0 and not math.isnan(scratch.usual[view, channel]):
            out.expected[found, channel] = scratch.usual[view, channel]
            out.spread[found, channel] = scratch.spread[view, channel]
        else:
            at = base * channels + channel * records + t
            anchor = batch.anchor[key * channels + channel]
            out.expected[found, channel] = batch.expected[at] + anchor
            out.spread[found, channel] = BAND * state.miss[slot, channel]
    lag = 0
    if fired < engine:
        lag = int(batch.lag[base * channels + worst * records + t])
    out.episode[found, LAG] = lag
    now = int(state.total[slot]) + t
    similar = now - lag
    out.episode[found, SIMILAR] = incident.NEVER
    if 0 < lag <= now and lag < EVERY * (TIMES - 1):
        out.episode[found, SIMILAR] = _time_of(
            state.times, slot, similar, now, batch.time_ms[base + t]
        )


@njit(cache=True, nogil=True)
def _time_of(times: I64, slot: int, record: int, now: int, now_ms: int) -> int:
    """Time of an earlier record of a key, to within those of every 8th one."""
    block = record // EVERY
    begin, end = block * EVERY, min((block + 1) * EVERY, now)
    begin_ms = times[slot, block % TIMES]
    end_ms = times[slot, (block + 1) % TIMES] if end < now else now_ms
    return begin_ms + (end_ms - begin_ms) * (record - begin) // max(end - begin, 1)


@njit(cache=True, nogil=True)
def _remember(state: State, slot: int, age: int, batch: Batch, origin: Origin) -> None:
    """Keep what explanations need: times, and how well values are expected."""
    key, records, t, base = origin
    channels = batch.values.shape[1]
    if age % EVERY == 0:
        state.times[slot, (age // EVERY) % TIMES] = batch.time_ms[base + t]
    for channel in range(channels):
        expected = batch.expected[base * channels + channel * records + t]
        gap = abs(
            batch.values[base + t, channel] - expected - batch.anchor[key * channels + channel]
        )
        if gap <= profile.VALUE_MAX:  # NaN: nothing was expected, or nothing came
            miss = state.miss[slot, channel]
            state.miss[slot, channel] = gap if miss == 0.0 else miss + MISS_RATE * (gap - miss)


@njit(cache=True, nogil=True)
def _view(
    state: State,
    slot: int,
    time_ms: int,
    values: F64,
    at: int,
    engine: int,
    now: F64,
    belief: F64,
    scratch: Scratch,
    rate: float,
) -> None:
    """What this stage itself sees in the values of a record, and what it expected."""
    hour, usual, strange = profile.hour_of(time_ms), scratch.usual, now[engine:]
    profile.look(
        state.profile, state.recent, slot, hour, values, at, strange, usual, scratch.spread,
        belief[engine:],
    )  # fmt: skip
    novel = len(profile.VIEWS)
    single, count = values.shape[1] == 1, 1
    if single:
        count = novel + 1
        strange[novel, 0], usual[novel, 0] = novelty.look(
            state.span, state.marks, slot, values[at, 0]
        )
    for channel in range(values.shape[1]):
        nats, usual[count, channel], scratch.spread[count, channel] = poisson.look(
            state.poisson[slot, channel], time_ms, values[at, channel], scratch.sums[channel]
        )
        strange[count, channel] = math.nan
        if not math.isnan(nats):
            tail = state.peaks[slot, channel]
            strange[count, channel] = peaks.judge(tail, nats)
            peaks.learn(tail, nats, rate)
    if single:
        level, last = count + 1, engine + count + 1
        belief[last, 0] = week.believed(state.week[slot, 0], time_ms)
        strange[level, 0], usual[level, 0], scratch.spread[level, 0], begun = week.look(
            state.week[slot, 0], time_ms, values[at, 0]
        )
        scratch.teaches[last, 0] = week.teaches(
            state.calibration, slot, last, strange[level, 0], begun
        )


@njit(cache=True, nogil=True)
def decide_batch(
    table: I64,
    rule: Rule,
    state: State,
    batch: Batch,
    scratch: Scratch,
    out: Out,
    account: Account,
) -> int:
    """Decide every record of a batch; returns the number of episodes.

    Key after key; where keys share a budget, as they came. A key's records are in order in both.
    """
    # Taking an array out of a tuple counts a reference: not once a record.
    counts, time_ms, flat, weight = batch.counts, batch.time_ms, batch.flat, batch.weight
    fresh, cursor, touched, starts = batch.fresh, batch.cursor, batch.touched, batch.base
    count, held, incidents, key_of = state.total, state.held, state.incident, batch.key
    calibration, joint, lines = state.calibration, state.joint, state.promise
    now, evidence, values = scratch.now, scratch.evidence, batch.values
    trust, ranks, worth, reach = scratch.trust, scratch.ranks, scratch.worth, scratch.reach
    tails, belief, teaches, ranges = scratch.tails, scratch.belief, scratch.teaches, state.range
    debt, clock, part, sequence = account.debt, account.clock, account.partition, account.sequence
    engine, channels, limited = rule.engine, now.shape[1], account.share > 0.0
    views, asked = now.shape[0] > engine, out.evidence.shape[0] > 0
    found, factor = 0, 1.0
    for step in range(time_ms.shape[0]):
        at = int(sequence[step]) if limited else step
        key = int(key_of[at])
        slot, records, base = int(touched[key]), int(counts[key]), int(starts[key])
        before, t = count[slot], at - base
        age = before + t
        _gather(table, flat, held, now, fresh, cursor, key, slot, before, records, t)
        if views:
            _view(state, slot, time_ms[at], values, at, engine, now, belief, scratch, rule.rate)
        out.score[at] = _sustained(now, table, engine, weight, base * channels + t, records)
        every, rare, fired, sole = judging.judge(
            now, trust, ranks, tails, worth, reach, belief, teaches, calibration, joint, evidence,
            scratch.said, slot, rule.warmup, rule.rate, rule.excess_rate,
        )  # fmt: skip
        event, p, warm = max(every - judging.due(age), 0.0), 1.0, age >= rule.warmup
        if fired >= 0:
            p = math.exp(-promise.kept(lines, slot, rare, age) * calibrate.LN10)
            if age >= promise.BEGIN:
                promise.follow(lines, slot, rare)
        passed = incident.gate(state.chance, slot, incident.GATE, event)
        out.p[at] = p
        out.event[at] = event if passed else 0.0
        if limited:
            factor = budget.allowed(
                debt, clock, part[step], time_ms[at], account.share, account.step_ms, account.growth
            )
        may_open = incident.gate(state.chance, slot, incident.GATE_P, -math.log10(p)) and warm
        kind = incident.follow(
            incidents, state.chance, slot, time_ms[at], p, may_open, fired,
            rule.probability, rule.update_factor, rule.quiet, factor,
        )  # fmt: skip
        out.judged[at] = 2 if kind == incident.HELD else warm and fired >= 0
        told = kind not in (incident.NOTHING, incident.HELD)
        if channels > 1:
            _widen(ranges, slot, values, at)
            if told or asked:
                _blame(evidence, now, table, engine, ranges, slot, scratch.far, sole)
        if asked:
            out.evidence[at] = evidence
        if told:
            _record(out, found, at, kind, slot, incidents)
            _explain(state, batch, scratch, out, engine, found, (key, records, t, base))
            found += 1
        if limited and kind == incident.OPENED:
            budget.spend(debt, part[step])
        _remember(state, slot, age, batch, (key, records, t, base))
    for key in range(touched.shape[0]):
        count[touched[key]] += counts[key]
    return found
