"""What do the four numbers of a call say together, and what is learnt of it?

Each becomes -log10 of a tail probability by the key's own past (calibrate.py), the rarest counts,
Bonferroni; what they say is held against what was promised (promise.py), by key.

    rare = max over the four - log10 4

A call is *strange* where `slower` or `errors` says p < 0.001. A fault that is learnt becomes usual
by going on, so of an edge that is known and whose calls are strange
1. durations are not learnt, nor failures beyond those that come by chance (trace_edges.py);
2. its stretch of strange calls is one event (runs declustering: Smith 1989, Statistical Science
   4:367): behind its first ones every 64th of them teaches what is rare, behind CHANCE_MAX none;
3. what has lasted for HOLD_CALLS calls of the edge, and HOLD_MS, is usual: it is learnt anew.

An edge may have one call in a hundred of its key. So that its incident does not end between two of
them, the key counts as off until a call of the edge is not strange, or for WAIT of its usual gaps.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from raywatch.models import calibrate, promise
from raywatch.models import trace_edges as edges
from raywatch.models.scorer import F64, I32, I64, U8
from raywatch.models.trace_edges import EDGE, ERRORS, HELD, SLOW, SLOWER, Edges

LOUD = 3.0  # -log10 p from which a call is strange
GUARD_FROM = 200.0  # calls of an edge; before, all teach: its mean may be off by chance
ORDINARY = 4  # strange calls in a row, for `slower`: chance alone brings as many,
TEACHES = 64  # behind these, of so many one teaches
CHANCE_MAX = 256  # and no chance so many: they neither teach nor count for the promise
HOLD_CALLS, HOLD_MS = 1_000, 6 * 3_600_000  # an outage is shorter, as a rule
HELD_MAX = 1 << 20  # float32 counts so far
WAIT, WAIT_MAX = 8.0, 2_000.0  # usual gaps of the edge, and calls of the key


class Calls(NamedTuple):
    """N calls, in batch order."""

    rows: I32  # (N,) of their keys
    time_ms: I64  # (N,)
    words: I64  # (N, W) hashes of the names that make the edge, 0: none
    duration: F64  # (N,) NaN: none
    failed: U8  # (N,) 1: it failed


class Rule(NamedTuple):
    """What does not change from call to call."""

    warmup: int
    rate: float  # of `calibrate.learn`
    excess_rate: float
    late_rate: float  # the same for `slower` and `errors`
    late_excess_rate: float


class Out(NamedTuple):
    """What is said of N calls."""

    before: I64  # (N,) calls of the key before it
    score: F64  # (N,) -log10 p of all that is said, >= 0
    rare: F64  # (N,) -log10 p of what may raise an alert, as promised; 0 before the warm-up
    fired: I64  # (N,) the component that says most of it
    said: F64  # (N, 4) -log10 p of each
    off: U8  # (N,) 1: an edge of the key is strange
    why: F64  # (N, WHY) what explains it


@njit(cache=True, nogil=True)
def _judge(calibration: F64, slot: int, strange: F64, failures: float, said: F64) -> None:
    """-log10 p of each component, no rarer than trace_edges.py allows."""
    for which in range(strange.shape[0]):
        said[which] = calibrate.judge(calibration, slot, which, strange[which])
    bound = 0.5 * (strange[ERRORS] - 1.0) ** 2
    if bound > 0.0:
        bound += 0.5 * math.log(2.0 * math.pi * max(failures, 1.0))
    said[ERRORS] = min(said[ERRORS], bound / calibrate.LN10)
    said[EDGE] = min(said[EDGE], strange[EDGE] + edges.REACH)


@njit(cache=True, nogil=True)
def _teach(calibration: F64, slot: int, strange: F64, said: F64, held: int, rule: Rule) -> None:
    """What was said of a call, the `held`th of a strange stretch, teaches what is rare."""
    late = held % TEACHES != 0 or held > CHANCE_MAX
    for which in range(strange.shape[0]):
        within = held > (ORDINARY if which == SLOWER else 1) and late
        if which == EDGE or not (within and said[which] >= LOUD):
            rate, excess_rate = rule.rate, rule.excess_rate
            if which in (SLOWER, ERRORS):
                rate, excess_rate = rule.late_rate, rule.late_excess_rate
            calibrate.learn(calibration, slot, which, strange[which], rate, excess_rate)


@njit(cache=True, nogil=True)
def _off(off: I64, row: int, now: int, strange: bool, gap: float) -> int:
    """Whether an edge of the key is strange, by this call of the one in `row`; see above."""
    if strange:
        off[edges.OFF_ROW] = row + 1
        off[edges.OFF_UNTIL] = now + int(min(WAIT * gap, WAIT_MAX))
    elif off[edges.OFF_ROW] == row + 1:
        off[edges.OFF_ROW] = 0
    return 1 if off[edges.OFF_ROW] > 0 and now <= off[edges.OFF_UNTIL] else 0


@njit(cache=True, nogil=True)
def observe(given: Calls, state: Edges, rule: Rule, out: Out) -> None:
    """Judge N calls in their order, each by the past of its key, then learn them."""
    # Taking an array out of a tuple counts a reference: not once a record.
    code, stamp, since_ms, stat, ordinal, total, news, failed, off, calibration, kept = state
    rows, time_ms, words, duration, failure = given
    strange, whole = np.empty(4), math.log10(4.0)
    for n in range(rows.shape[0]):
        slot, said, why = rows[n], out.said[n], out.why[n]
        before = int(ordinal[slot])
        ordinal[slot], out.before[n] = before + 1, before
        why[:] = 0.0
        row, strange[EDGE] = edges.place(
            code, stamp, since_ms, stat, news, slot, edges.code_of(words, n), before + 1,
            float(total[slot]), why,
        )  # fmt: skip
        total[slot] = total[slot] * edges.FADE + 1.0
        cell = stat[slot, row]
        strange[SLOW], strange[SLOWER], gap = edges.look_at_duration(cell, duration[n], why)
        failing, many = edges.look_at_failure(cell, failed[slot], failure[n] == 1, why)
        strange[ERRORS] = 1.0 + failing  # never all zero, so that a tail can be learned
        _judge(calibration, slot, strange, why[edges.FAILURES], said)
        loud = max(said[SLOWER], said[ERRORS]) >= LOUD
        if loud and cell[HELD] == 0.0:
            since_ms[slot, row] = time_ms[n]
        held = min(int(cell[HELD]) + 1, HELD_MAX) if loud else int(cell[HELD]) // 2
        cell[HELD] = held
        _teach(calibration, slot, strange, said, held if loud else 0, rule)
        guarded = loud and cell[edges.CALLS] >= GUARD_FROM
        if not guarded and not math.isnan(gap):
            edges.teach_duration(cell, duration[n], gap)
        if not (guarded and many):
            edges.teach_failure(cell, failed[slot], failure[n] == 1)
        if held >= HOLD_CALLS and time_ms[n] - since_ms[slot, row] >= HOLD_MS:
            edges.begin_anew(cell)
        out.off[n] = _off(off[slot], row, before, loud, total[slot] / cell[edges.COUNT])
        out.fired[n] = np.argmax(said)
        rare = said[out.fired[n]] - whole
        out.score[n], out.rare[n] = max(rare, 0.0), 0.0
        if before >= rule.warmup:
            out.rare[n] = promise.kept(kept, slot, rare, before)
            if before >= promise.BEGIN and held <= CHANCE_MAX:
                promise.follow(kept, slot, rare)
