"""The log class on lines of made-up services: what is planted is found, and what is not?

A service has 30 kinds of line, each with a number, in a chain of likely successors; gaps and
numbers are log-normal. Behind the first third something is planted every 3,000 lines: a kind never
seen, a kind behind one that it never followed, a gap 200 times as long, 30 lines of a kind at 50
times the pace, a number 20 times its size. It is found if `backtest` gives one of its lines (for a
gap, of the ten lines behind it) p <= LEVEL; the same services without it say how often ordinary
lines have such a p. What is planted is not rare, and the class learns that it is not: once in
100,000 lines it is found more surely.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from quality_page import GOALS, Row, Section
from quality_presets import told

from raywatch.actors.records import RecordSpec

KINDS = ("new", "step", "pause", "rush", "number")
SERVICES, LINES, EVERY = 30, 20_000, 3_000
TEMPLATES, FOLLOWERS = 30, 4
LEVEL = 1e-3
SETTLED = 2_000  # lines behind which false alarms are counted
LATE = 10


class Service(NamedTuple):
    """The lines of one service."""

    time_ms: NDArray[np.int64]
    message: list[str]
    kind: NDArray[np.int64]  # what is planted there, -1: nothing
    group: NDArray[np.int64]  # which one it is


class _Lines:
    """Writes the lines of a service, one after the other."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        rng, shape = self.rng, (TEMPLATES, FOLLOWERS)
        picks = [rng.choice(TEMPLATES, FOLLOWERS, replace=False) for _ in range(TEMPLATES)]
        self.follow = np.array(picks).reshape(shape)
        self.size, self.spread = rng.uniform(2, 8, TEMPLATES), rng.uniform(0.1, 0.6, TEMPLATES)
        self.now_ms, self.rows = 1e12, list[tuple[int, str, int, int]]()

    def number(self, state: int) -> float:
        return float(np.exp(self.rng.normal(self.size[state], self.spread[state])))

    def write(self, name: str, number: float, step: float, kind: int, group: int) -> None:
        self.now_ms += step
        self.rows.append((int(self.now_ms), f"{name} took {number:.3f} ms", kind, group))


def service(seed: int, *, planted: bool) -> Service:
    """One service."""
    lines, state, due, group = _Lines(seed), 0, LINES // 3, 0
    rng = lines.rng
    while len(lines.rows) < LINES:
        state = int(lines.follow[state, min(rng.geometric(0.5) - 1, FOLLOWERS - 1)])
        step, kind, name = float(rng.lognormal(5.5, 0.7)), -1, _name(state)
        if planted and len(lines.rows) >= due:
            due, group, kind = due + EVERY, group + 1, int(rng.integers(len(KINDS)))
        match KINDS[kind] if kind >= 0 else "":
            case "rush":
                for _ in range(30):
                    lines.write(name, lines.number(state), step / 50, kind, group)
                continue
            case "new":
                name = _name(TEMPLATES + group)
            case "step":
                state = int(rng.choice(np.setdiff1d(np.arange(TEMPLATES), lines.follow[state])))
                name = _name(state)
            case "pause":
                step *= 200
            case _:
                pass
        number = lines.number(state) * (20.0 if kind == KINDS.index("number") else 1.0)
        lines.write(name, number, step, kind, group)
    time_ms, message, kinds, groups = zip(*lines.rows, strict=True)
    return Service(np.array(time_ms), list(message), np.array(kinds), np.array(groups))


def _name(state: int) -> str:
    """Two words that no other kind has: no family of templates opens."""
    letters = "".join(chr(ord("a") + int(digit)) for digit in str(state))
    return f"Task{letters} of{letters}"


def lines(room: Path) -> Section:
    """What is found of each kind, and what is not planted."""
    found: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    below = ordinary = 0
    for planted in (False, True):
        services = [service(seed, planted=planted) for seed in range(SERVICES)]
        for each, p in zip(services, _probabilities(services, room), strict=True):
            if not planted:
                below += int((p[SETTLED:] <= LEVEL).sum())
                ordinary += len(p) - SETTLED
            for group in np.unique(each.group[each.kind >= 0]).tolist():
                here = np.flatnonzero((each.group == group) & (each.kind >= 0))
                kind = KINDS[int(each.kind[here[0]])]
                end = int(here[-1]) + 1 + (LATE if kind == "pause" else 0)
                found[kind].append(bool((p[here[0] : end] <= LEVEL).any()))
    rows = [Row("false alarms at 0.001, over nominal", below / ordinary / LEVEL, GOALS["0.001"])]
    rows += [Row(f"{kind} ({len(hits)})", float(np.mean(hits))) for kind, hits in found.items()]
    words = (
        f"{SERVICES} made-up services of {LINES:,} lines, found at p <= {LEVEL:g}; model "
        "`preset:logs`, nothing set."
    )
    return Section("Logs: planted lines", words, rows)


def _probabilities(services: list[Service], room: Path) -> list[NDArray[Any]]:
    """What `backtest` says of each line of each service."""
    table = pa.table(
        {
            "service": [f"s{n}" for n, each in enumerate(services) for _ in each.message],
            "ts": np.concatenate([each.time_ms for each in services]),
            "message": [line for each in services for line in each.message],
        }
    )
    record = RecordSpec((), "service", "ts", message="message")
    p = told(table, "logs", record, room, "p_value")["p_value"].to_numpy()
    return np.split(p, np.cumsum([len(each.message) for each in services])[:-1])
