"""From a life that went wrong to its story: the fewest faults that still do it, in sentences.

Delta debugging (Zeller & Hildebrandt 2002, TSE 28:183) over the faults that struck. A fault's key
names its site and call, so that the ones that are left strike where they struck before. The rule
that is broken has to stay the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

from raywatch.actors.ports import Partition
from sim.check import Violation, check
from sim.faults import Key
from sim.life import History, Life

TRIES_MAX = 200  # Lives that shrinking may run: about ten seconds.

ORDINARY = frozenset({"decided", "committed", "put"})  # Told where something else happens,
NEAR_S = 0.15  # this near.

Run = Callable[[Sequence[Key]], History]


def shrunk(seed: int, history: History, rule: str, run: Run | None = None) -> History:
    """The history of a life with as few faults as still break `rule`."""
    again: Run = run or (lambda keys: Life(seed, only=frozenset(keys)).run())
    best, keys = history, [fault.key for fault in history.struck]
    tries, size = 0, max(1, len(history.struck) // 2)
    while keys and tries < TRIES_MAX:
        begin, before = 0, len(keys)
        while begin < len(keys) and tries < TRIES_MAX:
            fewer = keys[:begin] + keys[begin + size :]
            tries += 1
            found = again(fewer)
            if any(v.rule == rule for v in check(found)):
                best, keys = found, fewer
            else:
                begin += size
        if size == 1 and len(keys) == before:
            break
        size = max(1, size // 2)
    return best


def story(history: History, violations: Sequence[Violation]) -> list[str]:
    """What happened, line by line; then what it broke."""
    made = history.setup
    mode = "exactly once" if made.exactly_once else "at least once"
    of = f", labels {made.spec.labels_delay_s:.2f} s later" if made.spec.labels else ""
    shape = (
        f"{made.partitions} partitions{of} in {len(history.lanes)} lanes on {made.owners} owners, "
        f"{made.scorers} scorers, batches of {made.spec.batch_records}, {mode}; "
        f"faults stop after {made.quiet_s:.1f} s"
    )
    told = [(0.0, shape)]
    told += [(fault.at_s, f"FAULT   {fault.words}") for fault in history.struck]
    told += [
        (at, f"        {words}")
        for at, kind, *what in history.events
        if kind not in ORDINARY and (words := _sentence(kind, what))
    ]
    moments = [at for at, _ in told]
    ordinary = [(e[0], _sentence(e[1], list(e[2:]))) for e in history.events if e[1] in ORDINARY]
    near = [each for each in ordinary if any(abs(each[0] - at) <= NEAR_S for at in moments)]
    told += [(at, f"        {words}") for at, words in near]
    lines = [f"{at:9.3f} s  {words}" for at, words in sorted(told, key=lambda each: each[0])]
    lines.append(f"{'':11}  ({len(ordinary) - len(near)} ordinary transactions, commits and "
                 "snapshots are not shown)")  # fmt: skip
    return [*lines, *(f"BROKEN  {v.rule}: {v.words[:400]}" for v in violations)]


def _places(offsets: dict[Partition, Any]) -> str:
    shown = {p.number if p.topic == "in" else str(p): each for p, each in offsets.items()}
    return ", ".join(f"{name}: {getattr(each, 'offset', each)}" for name, each in shown.items())


SENTENCES: dict[str, Callable[..., str]] = {
    "opened": lambda lane, epoch: f"{lane} is taken with epoch {epoch}",
    "fenced": lambda lane, epoch, why: f"{lane}: epochs below {epoch} are fenced, {why}",
    "refused": lambda lane, epoch, newer: f"{lane}: epoch {epoch} is refused, it is {newer} now",
    "decided": lambda lane, epoch, number, commit, offsets, wrote: (
        f"{lane}, epoch {epoch}: transaction {number} with {len(wrote)} records and offsets "
        f"{_places(offsets)} will {'commit' if commit else 'abort'}"
    ),
    "committed": lambda who, _, offsets: f"{who} commits {_places(offsets)}",
    "loaded": lambda lane, offsets, stands: (
        f"lane {lane} loads a snapshot at {_places(offsets)}; committed is {_places(stands)}"
    ),
    "put": lambda who, name, how: f"{who} stores {name.rpartition('/')[2]} {how}",
    "retention": lambda place, before: f"records of {place} below {before} are gone",
    "rollout": lambda before, after: f"a rollout from {before} to {after} begins",
    "deployed anew": lambda lanes: f"the detector is deployed anew, with {lanes} lanes",
    "journal": lambda _, words: f"journal: {words}",
    "died": lambda name, words, _: f"{name} ends itself: {words}",
    "dead": lambda name: f"{name} is dead",
    "lives on": lambda name: f"{name} was to be ended, and lives on",
    "foreign answer": lambda scorer, owner: f"{scorer} answers {owner} with another version",
}


def _sentence(kind: str, what: list[Any]) -> str:
    """One event, or nothing where it says nothing new."""
    return SENTENCES[kind](*what) if kind in SENTENCES else ""
