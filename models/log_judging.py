"""What do the five numbers of a line, and its session, say together?

Components of a line are judged as those of a telemetry key with one channel (judging.py): each by
its own past, the rarest counts, Bonferroni. A session is judged once, at its end, by a calibrator
that ended sessions alone have taught; its -log10 p stands beside the others at the record that
noticed the end. What they say together is held against what was promised (promise.py), by key.

    every = max(lines + log10 T, session) - log10(T + 1)         T: line components, trust 1 each

The lines of a rush are one event: only the first strange one of them teaches how large a rush may
be (runs declustering: Smith 1989, Statistical Science 4:367). Else a rush is usual by its tenth
line: of 150 lines in one instant, -log10 p is then 2.8 at most, and 4.8 so.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from raywatch.models import calibrate, judging, promise
from raywatch.models.log_lines import RUSH
from raywatch.models.log_sessions import HEAD_BYTES, NOTICED, Ends, Texts
from raywatch.models.scorer import F64, I32, I64, U8

LOUD = 2.0  # -log10 p from which a line belongs to a rush


class Judged(NamedTuple):
    """Everything that is remembered of what S keys were told."""

    calibration: F64  # (S, line components, 7)
    session: F64  # (S, 1, 7)
    rushing: U8  # (S,) whether the last line was a strange rush
    promise: F64  # (S, 3)
    head: U8  # (S, HEAD_BYTES) beginning of the last line, zeros behind it


class Rule(NamedTuple):
    """What does not change from record to record."""

    warmup: int
    rate: float
    excess_rate: float
    explain: float  # -log10 p from which the line before is told
    sessions: bool  # whether records have them


class Out(NamedTuple):
    """What goes out, of each record."""

    score: F64  # (N,) -log10 p of all that has a say, >= 0
    rare: F64  # (N,) -log10 p of what may raise an alert, as promised; 0 where nothing may
    fired: I64  # (N,) the component that says most of it, -1: none has a say
    said: F64  # (N, components) -log10 p of each; the session's is the last one
    ended: I64  # (N,) which end says most of it, -1: none
    prior: U8  # (N, HEAD_BYTES) the key's line before, from `explain` on; else anything
    end_rare: F64  # (M,) -log10 p of each session that ended


@njit(cache=True, nogil=True)
def _session(
    state: F64, slot: int, n: int, done: int, count: int, ends: Ends, rule: Rule, out: Out
) -> tuple[int, float]:
    """Judge and learn the sessions that record n ended: how many are done, -log10 p for alerts."""
    most = -math.inf
    last = out.said.shape[1] - 1
    while done < count and ends.row[done, NOTICED] == n:
        score = ends.score[done]
        rare = calibrate.judge(state, slot, 0, score)
        out.end_rare[done] = rare
        if out.ended[n] < 0 or rare > out.said[n, last]:
            out.said[n, last], out.ended[n] = rare, done
        if state[slot, 0, calibrate.HEARD] >= rule.warmup:
            most = max(most, rare)
        state[slot, 0, calibrate.HEARD] += 1.0
        calibrate.learn(state, slot, 0, score, rule.rate, rule.excess_rate)
        done += 1
    return done, most


@njit(cache=True, nogil=True)
def _rush(state: Judged, slot: int, rare: float, known: F64) -> None:
    """Unlearn what a rush taught behind its first strange line; `known`: before this line."""
    loud = rare >= LOUD
    if loud and state.rushing[slot] == 1:
        heard = state.calibration[slot, RUSH, calibrate.HEARD]
        state.calibration[slot, RUSH] = known
        state.calibration[slot, RUSH, calibrate.HEARD] = heard
    state.rushing[slot] = 1 if loud else 0


@njit(cache=True, nogil=True)
def judge(
    slots: I32,
    before: I64,
    strange: F64,
    ends: Ends,
    count: int,
    texts: Texts,
    state: Judged,
    rule: Rule,
    out: Out,
) -> None:
    """Judge N records in their order.

    Args:
        slots: (N,) key of each.
        before: (N,) lines of the key before it.
        strange: (N, line components) what they say, NaN: nothing.
        ends: sessions that ended, in the order of these records.
        count: how many.
        texts: of the records.
        state: of all keys.
        rule: see there.
        out: see there.
    """
    rows = strange.shape[1]
    trust, worth, reach = np.ones(rows), np.zeros(rows), np.full(rows, np.inf)
    ranks, tails = trust, worth  # all of them have a part in both, and none a tail of its own
    teaches = np.full((rows, 1), np.inf)  # and every score is learnt as it is
    said, evidence, known = np.zeros((rows, 1)), np.zeros(1), np.empty(calibrate.COLUMNS)
    belief = np.ones((rows, 1))
    done = 0
    own = math.log10(rows)
    whole = math.log10(rows + 1.0) if rule.sessions else own
    for n in range(slots.shape[0]):
        slot = slots[n]
        now = strange[n].reshape(rows, 1)
        known[:] = state.calibration[slot, RUSH]
        every, heard, fired, _ = judging.judge(
            now, trust, ranks, tails, worth, reach, belief, teaches, state.calibration,
            state.calibration, evidence, said, slot, rule.warmup, rule.rate, rule.excess_rate,
        )  # fmt: skip
        _rush(state, slot, said[RUSH, 0], known)
        out.said[n, :rows] = said[:, 0]
        out.said[n, rows:] = 0.0
        out.ended[n] = -1
        every += own
        heard += own
        if rule.sessions:
            done, most = _session(state.session, slot, n, done, count, ends, rule, out)
            every = max(every, out.said[n, rows])
            if fired >= 0 and most > heard:
                heard, fired = most, rows
        out.score[n] = max(every - whole, 0.0)
        out.rare[n], out.fired[n] = 0.0, fired
        if fired >= 0:
            out.rare[n] = promise.kept(state.promise, slot, heard - whole, before[n])
            if before[n] >= promise.BEGIN:
                promise.follow(state.promise, slot, heard - whole)
        if max(out.score[n], out.rare[n]) >= rule.explain:
            out.prior[n] = state.head[slot]
        size = min(texts.line_size[n], texts.keep)
        for at in range(HEAD_BYTES):
            state.head[slot, at] = texts.text[texts.line_begin[n] + at] if at < size else 0
