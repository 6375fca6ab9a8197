"""What must be true of a history, whatever happened in it. Pure: from a History to violations.

The reference is the same Flow that a backtest uses, over the records as they lie in the log, with
each record scored by the version that the audit topic names for its offset; over payments and
labels in the order that `labelled.py` says. See `RULES`.
"""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raywatch.actors.flow import Batch, Flow, Said
from raywatch.actors.ports import Fetched, Out, Partition
from raywatch.actors.stages import flow_of
from sim.broker import Entry
from sim.labelled import Place, between, numbered, order, small
from sim.life import History, Judged, decided_bits
from sim.scorers import MODELS, SPECS


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


@dataclass
class Expected:
    """What a run that nothing disturbed says."""

    alerts: Counter[bytes] = field(default_factory=Counter[bytes])  # by their bytes
    rejects: Counter[Any] = field(default_factory=Counter[Any])  # by all they say
    bits: dict[Place, bytes] = field(default_factory=dict[Place, bytes])  # see Judged.bits
    held: int = 0  # incidents that `per_day` held back


def expected(history: History) -> Expected:
    """The same Flow over the logs as they lie there, each record with the version audited."""
    if history not in _KEPT:
        _KEPT.clear()
        with small(history.setup):
            _KEPT[history] = _undisturbed(history)
    return _KEPT[history]


_KEPT: dict[History, Expected] = {}  # of the history that is judged: several rules look at it


def _undisturbed(history: History) -> Expected:
    found, spec = Expected(), history.setup.spec
    for places in history.lanes.values():
        flow = flow_of(spec, places, SPECS[history.setup.versions[0]])
        for version, fetched in (_joined if spec.labels else _by_version)(history, places):
            if not len(fetched):
                continue
            batch = flow.prepare(fetched, SPECS[version], begin={}, end={})
            segments = batch.segments
            scores = None if segments is None else MODELS[version].score(segments)
            _note(found, flow, batch, flow.finish(batch, scores))
    return found


def _by_version(history: History, places: tuple[Partition, ...]) -> Iterator[tuple[str, Fetched]]:
    audited, versions = schedule(history), history.setup.versions
    cuts = [audited.get(p, [(0, versions[0])]) for p in places]
    for number in range(max(map(len, cuts))):
        for version in versions:
            both = zip(places, cuts, strict=True)
            yield version, _fetched([_piece(history, p, c, number, version) for p, c in both])


def _note(found: Expected, flow: Flow, batch: Batch, said: Said) -> None:
    for out in flow.emit(said):
        if out.topic == flow.spec.alerts:
            found.alerts[out.value or b""] += 1
        else:
            found.rejects[_reject(out)] += 1
    found.held += said.tally.held
    if said.decided is not None:
        where = zip(batch.records.partition.tolist(), batch.records.offset.tolist(), strict=True)
        for (index, offset), bits in zip(where, decided_bits(batch, said.decided), strict=True):
            found.bits[flow.partitions[index], offset] = bits.tobytes()


def _piece(
    history: History, place: Partition, cuts: list[tuple[int, str]], number: int, version: str
) -> list[Entry]:
    """Records from a partition's nth change on to the next, if that was to `version`."""
    if number >= len(cuts) or cuts[number][1] != version:
        return []
    begin = cuts[number][0]
    end = cuts[number + 1][0] if number + 1 < len(cuts) else history.ends[place]
    return [e for e in history.inputs[place] if begin <= e.offset < end]


def _joined(history: History, places: tuple[Partition, ...]) -> Iterator[tuple[str, Fetched]]:
    """Payments and labels of a lane in their order, number by number."""
    logs = {p: {e.offset: e for e in entries} for p, entries in history.inputs.items()}
    due = order(history.setup, history.inputs)
    numbers = sorted({p.number for p in places})
    flat = [(places.index(p), logs[p][o]) for n in numbers for p, o in due[n]]
    fetched = _columns([index for index, _ in flat], [e for _, e in flat])
    yield history.setup.versions[0], fetched


def _fetched(pieces: list[list[Entry]]) -> Fetched:
    flat = [e for piece in pieces for e in piece]
    return _columns([at for at, piece in enumerate(pieces) for _ in piece], flat)


def _columns(partition: list[int], entries: list[Entry]) -> Fetched:
    return Fetched(
        np.array(partition, np.int32),
        np.array([e.offset for e in entries], np.int64),
        np.array([e.time_ms for e in entries], np.int64),
        [e.value for e in entries],
        [],
    )


def _reject(out: Out) -> tuple[Any, ...]:
    return out.key, out.value, tuple(out.headers)


def said(history: History) -> Iterator[str]:
    """Alerts under read_committed are those of an undisturbed run: by id, content and count."""
    alerts, rejects = expected(history).alerts, expected(history).rejects
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


def judged(history: History) -> Iterator[str]:
    """Whoever decides on a record, and however often, does so with the same bits.

    Not where versions change: a holder that lives on may be of the one before.
    """
    if history.setup.rollouts:
        return
    wanted = expected(history).bits
    for batch in history.judged:
        for place, bits in zip(_read(batch), batch.bits, strict=True):
            if wanted.get(place) != bits.tobytes():
                want = np.frombuffer(wanted.get(place, b""))
                yield f"{batch.process}: {place}: {bits} where {want} is due"


def counted(history: History) -> Iterator[str]:
    """What `per_day` held back is counted once, and all of it where nobody died over it."""
    if not history.setup.exactly_once or history.setup.rollouts:
        return
    ended = [what[0] for _, kind, *what in history.events if kind in ("dead", "lives on")]
    unheard = any(".owner-" in name for name in ended)  # what their last commit held is not known
    total, want = sum(tally.held for _, _, tally, _ in history.counted), expected(history).held
    if total > want or (total < want and not unheard):
        yield f"counted as held back: {total}, wanted {want}"


def _read(batch: Judged) -> list[Place]:
    """Which records a batch had, but those that were rejected, in its order."""
    where = zip(batch.partition.tolist(), batch.offset.tolist(), strict=True)
    return [(batch.places[index], offset) for index, offset in where]


def decided_first(history: History) -> Iterator[str]:
    """No offset is committed above a record that nobody has decided on."""
    offsets = {p: [e.offset for e in entries] for p, entries in history.inputs.items()}
    done = dict.fromkeys(history.inputs, -1)  # the highest one; each opening reads in order
    for at, kind, *what in history.events:
        if kind == "judged":
            batch = history.judged[what[0]]
            for place, offset in (*_read(batch), *batch.rejected):
                done[place] = max(done[place], offset)
        elif kind == "committed":
            for place, committed in what[2].items():
                log = offsets[place]
                first = bisect_right(log, done[place])
                if first < len(log) and log[first] < committed.offset:
                    yield f"{at:.3f} s: {place} at {committed.offset}, decided up to {done[place]}"


def in_order(history: History) -> Iterator[str]:
    """Each opening of a lane reads payments and labels in their order, without a gap."""
    if not history.setup.spec.labels:
        return
    good = expected(history).bits
    due = {
        number: [place for place in places if place in good]
        for number, places in order(history.setup, history.inputs).items()
    }
    read: dict[tuple[int, int], list[Place]] = {}
    for batch in history.judged:
        for place in _read(batch):
            read.setdefault((batch.flow, place[0].number), []).append(place)
    for (flow, number), places in read.items():
        begin = due[number].index(places[0]) if places[0] in due[number] else 0
        want = due[number][begin : begin + len(places)]
        if places != want:
            both = enumerate(zip(places, [*want, None], strict=False))
            at, (here, wanted) = next(each for each in both if each[1][0] != each[1][1])
            yield f"opening {flow} read {here} where {wanted} is due, after {places[:at][-1:]}"
    for process, partitions, _, late in history.counted:
        if late:
            yield f"{process}: {late} records of {partitions} came too late for their place"


def at_a_place(history: History) -> Iterator[str]:
    """What is committed of payments and of labels, and every snapshot, is a place of their order.

    Without transactions two holders may each commit of one of the two.
    """
    if not history.setup.spec.labels or not history.setup.exactly_once:
        return
    due = order(history.setup, history.inputs)
    stands: dict[Partition, int] = {}
    for at, kind, *what in history.events:
        if kind == "committed":
            stands |= {place: committed.offset for place, committed in what[2].items()}
        elif kind != "loaded":
            continue
        offsets = stands if kind == "committed" else what[1]
        changed = what[2] if kind == "committed" else what[1]
        for number in sorted({place.number for place in changed}):
            if not between(due[number], numbered(offsets, number)):
                yield f"{at:.3f} s: {kind}: {numbered(offsets, number)} is no place of the order"


RULES = {
    "nobody dies unkilled": unkilled,
    "offsets go forward": forward,
    "offsets are part of transactions": in_transactions,
    "no snapshot above the commit": snapshots,
    "versions change where the audit says": audited,
    "alerts and rejects are those of an undisturbed run": said,
    "records are decided on before they are committed": decided_first,
    "whoever decides on a record says the same": judged,
    "what is held back is counted once": counted,
    "payments and labels have one order": in_order,
    "commits and snapshots are places of that order": at_a_place,
    "everything is drained": drained,
}
