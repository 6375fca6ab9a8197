"""The trace class on calls of made-up services: what is planted is found, and what is not?

A service is called on 12 edges (four callers, three operations), of which the busiest has some 30 %
of its calls and the least 2 %. Durations are log-normal, of their own median and spread on each
edge; one in a hundred is a pause, 5 to 50 times as long (Pareto); on half of the edges up to 3 % of
the calls fail. Behind the first third something is planted every 8,000 calls: a call that takes a
minute; 100 calls of an edge that take half as long again, or twice as long; 100 of which 10 or 30 %
more fail, or all; an edge never seen. It is found if `backtest` gives one of its calls a p that is
small enough (by chance one of 100 calls has p <= 0.001 in one of ten stretches); the same services
without it say how often ordinary calls have such a p. The class was chosen on other services.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from quality_page import GOALS, Row, Section
from quality_presets import told

from raywatch.actors.records import RecordSpec

KINDS = ("slow", "slower x1.5", "slower x2", "errors +10 %", "errors +30 %", "all fail", "edge")
SLOWER, ERRORS = {1: 1.5, 2: 2.0}, {3: 0.1, 4: 0.3, 5: 1.0}  # by index of the kind
SERVICES, CALLS, EVERY, LASTS = 30, 48_000, 8_000, 100
MINUTE_MS = 60_000.0
CALLERS, OPERATIONS = 4, 3
EDGES = CALLERS * OPERATIONS
LEVELS = 1e-3, 1e-5  # the second one is what alerts where nothing is set
NOMINAL = 1e-3, 1e-4
FIRST = 1_000  # seed
SETTLED = 2_000  # calls behind which false alarms are counted


class Service(NamedTuple):
    """The calls of one service."""

    time_ms: NDArray[np.int64]
    caller: NDArray[np.int64]
    operation: NDArray[np.int64]
    duration: NDArray[np.float64]
    failed: NDArray[np.bool_]
    kind: NDArray[np.int64]  # what is planted there, -1: nothing
    group: NDArray[np.int64]  # which one it is


def service(seed: int, *, planted: bool) -> Service:
    """One service. What is not planted is the same in both."""
    rng = np.random.default_rng(seed)
    share = rng.permutation(1.0 / np.arange(1, EDGES + 1))
    edge = rng.choice(EDGES, CALLS, p=share / share.sum())
    median, spread = rng.uniform(1, 6, EDGES), rng.uniform(0.2, 0.8, EDGES)
    log_ms = rng.normal(median[edge], spread[edge])
    pause = rng.random(CALLS) < 0.01
    log_ms += np.where(pause, np.log(5.0 * np.minimum(1.0 + rng.pareto(1.0, CALLS), 10.0)), 0.0)
    often = np.where(rng.random(EDGES) < 0.5, rng.uniform(0.0, 0.03, EDGES), 0.0005)
    failed = rng.random(CALLS) < often[edge]
    time_ms = 10**12 + np.cumsum(rng.exponential(50.0, CALLS)).astype(np.int64)
    kind, group = np.full(CALLS, -1), np.zeros(CALLS, np.int64)
    caller = edge // OPERATIONS
    for at in range(CALLS // 3, CALLS, EVERY) if planted else ():
        what = int(rng.integers(len(KINDS)))
        on = int(np.flatnonzero(share >= np.sort(share)[-6])[rng.integers(6)])  # one of the busy
        here = at + np.flatnonzero(edge[at:] == on)
        here = here[: LASTS if what in SLOWER or what in ERRORS else 1]
        kind[here], group[here] = what, at
        log_ms[here] += np.log(SLOWER.get(what, 1.0))
        failed[here] |= rng.random(here.shape[0]) < ERRORS.get(what, 0.0)
        if KINDS[what] == "slow":
            log_ms[here] = np.log(MINUTE_MS)
        elif KINDS[what] == "edge":
            caller[here] = CALLERS + at
    return Service(time_ms, caller, edge % OPERATIONS, np.exp(log_ms), failed, kind, group)


def calls(room: Path) -> Section:
    """What is found of each kind, and what is not planted."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    below, ordinary = dict.fromkeys(NOMINAL, 0), 0
    for planted in (False, True):
        services = [service(FIRST + n, planted=planted) for n in range(SERVICES)]
        for each, p in zip(services, _probabilities(services, room), strict=True):
            if not planted:
                below = {each: n + int((p[SETTLED:] <= each).sum()) for each, n in below.items()}
                ordinary += len(p) - SETTLED
            for group in np.unique(each.group[each.kind >= 0]).tolist():
                here = (each.group == group) & (each.kind >= 0)
                kind = KINDS[int(each.kind[here][0])]
                found[kind].append(float(p[here].min()))
    rows = [
        Row(f"false alarms at {each:g}, over nominal", n / ordinary / each, GOALS[f"{each:g}"])
        for each, n in below.items()
    ]
    rows += [
        Row(f"{kind} ({len(least)}), at {level:g}", float(np.mean(np.array(least) <= level)))
        for level in LEVELS
        for kind, least in found.items()
    ]
    words = (
        f"{SERVICES} made-up services of {CALLS:,} calls on {EDGES} edges; found: p of one call is "
        "as small as that; model `preset:traces`, nothing set."
    )
    return Section("Traces: planted calls", words, rows)


def _probabilities(services: list[Service], room: Path) -> list[NDArray[Any]]:
    """What `backtest` says of each call of each service."""
    columns = {
        name: np.concatenate([getattr(each, name) for each in services])
        for name in ("time_ms", "caller", "operation", "duration", "failed")
    }
    names = [f"s{n}" for n, each in enumerate(services) for _ in each.time_ms]
    table = pa.table({"service": names, **columns})
    record = RecordSpec(
        ("duration",), "service", "time_ms", words=("caller", "operation"), error="failed"
    )
    p = told(table, "traces", record, room, "p_value")["p_value"].to_numpy()
    return np.split(p, np.cumsum([len(each.time_ms) for each in services])[:-1])
