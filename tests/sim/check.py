"""What must be true of a history, whatever happened in it. Pure: from a History to violations.

The reference is the same Flow that a backtest uses, over the records as they lie in the log, with
each record scored by the version that the audit topic names for its offset. See `RULES`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from raywatch.actors.flow import Flow
from raywatch.actors.ports import Fetched, Out, Partition
from sim.broker import Entry
from sim.life import History
from sim.scorers import MODELS, SPECS, VERSIONS


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken."""

    rule: str
    words: str


def check(history: History) -> list[Violation]:
    """All violations, the plainest first."""
    found = [
        Violation(rule, words) for rule, look in RULES.items() for words in list(look(history))[:5]
    ]
    return found


def drained(history: History) -> Iterator[str]:
    """Once faults stop, everything is committed within the bound."""
    if not history.drained:
        left = {
            str(p): (history.committed[p].offset if p in history.committed else None, end)
            for p, end in history.ends.items()
        }
        yield f"not after {history.seconds:.0f} s, {history.steps} steps: (committed, end) {left}"


def forward(history: History) -> Iterator[str]:
    """Committed offsets never go back.

    Without transactions they may, once: by a holder that stood still between its look at what is
    committed and its own commit. Nobody can fence it.
    """
    if not history.setup.exactly_once:
        return
    stands: dict[Partition, int] = {}
    for at, kind, *what in history.events:
        if kind == "committed":
            who, _, offsets = what
            for partition, committed in offsets.items():
                before = stands.get(partition, 0)
                if committed.offset < before:
                    yield f"{at:.3f} s: {who} took {partition} back: {before} to {committed.offset}"
                stands[partition] = committed.offset


def in_transactions(history: History) -> Iterator[str]:
    """Where brokers have transactions, offsets are committed in them, and by lanes only."""
    if not history.setup.exactly_once:
        return
    for at, kind, *what in history.events:
        if kind == "committed" and not str(what[0]).startswith("raywatch."):
            yield f"{at:.3f} s: {what[0]} committed outside any transaction"


def snapshots(history: History) -> Iterator[str]:
    """No snapshot is used that lies above what is committed.

    Without transactions a request that comes late may take offsets back between a lane's look at
    them and at its snapshots: there, whatever was committed once counts.
    """
    highest: dict[Partition, int] = {}
    for at, kind, *what in history.events:
        if kind == "committed" and not history.setup.exactly_once:
            for partition, committed in what[2].items():
                highest[partition] = max(highest.get(partition, 0), committed.offset)
        if kind == "loaded":
            lane, offsets, stands = what
            for partition, offset in offsets.items():
                if offset > max(stands[partition], highest.get(partition, 0)):
                    yield (
                        f"{at:.3f} s: lane {lane} took a snapshot of {partition} at {offset}, "
                        f"committed was {stands[partition]}"
                    )


def unkilled(history: History) -> Iterator[str]:
    """Nobody dies whom nobody killed, but of a foreign answer and of a call that hangs."""
    excused = {what[1] for _, kind, *what in history.events if kind == "foreign answer"}
    for at, kind, *what in history.events:
        if kind == "died":
            name, words, _ = what
            hung = words.startswith("TimeoutError")
            foreign = name in excused and words.startswith("AssertionError") and "robustz" in words
            if not hung and not foreign:
                yield f"{at:.3f} s: {name}: {words}"


def schedule(history: History) -> dict[Partition, list[tuple[int, str]]]:
    """Since which offset each version scored, as audited."""
    found: dict[Partition, list[tuple[int, str]]] = {}
    for entry in history.said["audit"]:
        told = json.loads(entry.value or b"{}")
        if told["what"] in ("started", "version"):
            partition = Partition(told["topic"], told["partition"])
            found.setdefault(partition, []).append((told["offset"], told["model"]))
    return found


def audited(history: History) -> Iterator[str]:
    """Each partition starts once; versions follow each other at growing offsets, and as noted."""
    told = [json.loads(entry.value or b"{}") for entry in history.said["audit"]]
    starts = Counter((t["topic"], t["partition"]) for t in told if t["what"] == "started")
    for partition in history.ends:
        if starts[partition] != 1 and history.setup.exactly_once:
            yield f"{partition} started {starts[partition]} times"
    stands: dict[tuple[str, int], tuple[int, str]] = {}
    for t in told:
        where = (t["topic"], t["partition"])
        if t["what"] == "lost":
            yield f"{where}: offsets were lost: {t}"
        elif t["what"] == "started":
            stands[where] = t["offset"], t["model"]
        elif t["what"] == "version":
            assert history.setup.exactly_once, t
            offset, model = stands.get(where, (0, ""))
            if t["before"] != model or t["offset"] < offset or t["model"] == model:
                yield f"{where} was on {model} since {offset}, and then: {t}"
            stands[where] = t["offset"], t["model"]
    for partition, committed in history.committed.items():
        note = json.loads(committed.note or "{}")
        if note.get("model") != stands.get(partition, (0, ""))[1]:
            yield f"{partition}: the commit notes {note}, the audit {stands.get(partition)}"


def expected(history: History) -> tuple[Counter[bytes], Counter[Any]]:
    """Alerts by their bytes, and rejects by all they say, of a run that nothing disturbed."""
    alerts: Counter[bytes] = Counter()
    rejects: Counter[Any] = Counter()
    versions = schedule(history)
    for places in history.lanes.values():
        flow = Flow(history.setup.spec, places, SPECS[VERSIONS[0]])
        cuts = [versions.get(p, [(0, VERSIONS[0])]) for p in places]
        for number in range(max(map(len, cuts))):
            for version in VERSIONS:
                pieces = [
                    _piece(history, p, c, number, version)
                    for p, c in zip(places, cuts, strict=True)
                ]
                fetched = _fetched(pieces)
                if not len(fetched):
                    continue
                batch = flow.prepare(fetched, SPECS[version], begin={}, end={})
                segments = batch.segments
                scores = None if segments is None else MODELS[version].score(segments)
                for out in flow.emit(flow.finish(batch, scores)):
                    if out.topic == history.setup.spec.alerts:
                        alerts[out.value or b""] += 1
                    else:
                        rejects[_reject(out)] += 1
    return alerts, rejects


def _piece(
    history: History, place: Partition, cuts: list[tuple[int, str]], number: int, version: str
) -> list[Entry]:
    """Records from a partition's nth change on to the next, if that was to `version`."""
    if number >= len(cuts) or cuts[number][1] != version:
        return []
    begin = cuts[number][0]
    end = cuts[number + 1][0] if number + 1 < len(cuts) else history.ends[place]
    return [e for e in history.inputs[place] if begin <= e.offset < end]


def _fetched(pieces: list[list[Entry]]) -> Fetched:
    flat = [e for piece in pieces for e in piece]
    return Fetched(
        np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces]).astype(np.int32),
        np.array([e.offset for e in flat], np.int64),
        np.array([e.time_ms for e in flat], np.int64),
        [e.value for e in flat],
        [],
    )


def _reject(out: Out) -> tuple[Any, ...]:
    return out.key, out.value, tuple(out.headers)


def said(history: History) -> Iterator[str]:
    """Alerts under read_committed are those of an undisturbed run: by id, content and count."""
    alerts, rejects = expected(history)
    spec = history.setup.spec
    mine = Counter(e.value or b"" for e in history.said[spec.alerts])
    theirs = Counter((e.key, e.value, tuple(e.headers)) for e in history.said[spec.rejects])
    if not history.setup.exactly_once:  # at least once: the same ones, some of them again
        mine = Counter({k: min(n, alerts[k]) if alerts[k] else n for k, n in mine.items()})
        theirs = Counter({k: min(n, rejects[k]) if rejects[k] else n for k, n in theirs.items()})
    for name, want, got in (("alert", alerts, mine), ("reject", rejects, theirs)):
        for each in sorted(want.keys() | got.keys(), key=repr):
            if want[each] != got[each]:
                what = "lost" if got[each] < want[each] else "repeated" if want[each] else "foreign"
                yield f"{name} {what}: {want[each]} wanted, {got[each]} there: {each!r:.300}"


RULES = {
    "nobody dies unkilled": unkilled,
    "offsets go forward": forward,
    "offsets are part of transactions": in_transactions,
    "no snapshot above the commit": snapshots,
    "versions change where the audit says": audited,
    "alerts and rejects are those of an undisturbed run": said,
    "everything is drained": drained,
}
