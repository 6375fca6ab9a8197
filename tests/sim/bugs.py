"""Bugs that somebody might make, to be put into production code while a life runs.

Each is a small change of one class or function, and each breaks a promise only when something
goes wrong at the right moment. `found_within` is in how many lives the checker has to find it;
`tests/test_sim.py` holds it to that. The reference of the checker is never changed.
"""

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from raywatch.actors import alerts, checkpoint, fencing, lane
from raywatch.actors.flow import Flow
from raywatch.actors.kafka import KafkaLog, KafkaSink, KafkaSource
from raywatch.actors.lane import Shift
from raywatch.actors.ledger import Ledger
from raywatch.actors.owner import Owner
from raywatch.actors.pool import Members, RemotePool
from raywatch.cluster.keeper import Keeper
from raywatch.models.errors import LaneLost, Unreachable
from sim import class_bugs

Any3 = tuple[Any, str, Any]  # where, name, what to put there


@dataclass(frozen=True, slots=True)
class Bug:
    """One mistake."""

    name: str
    changes: Callable[[], list[Any3]]
    found_within: int  # lives
    first: int = 0  # seed of the first of them: a rare one is not searched for from 0 each time


@contextmanager
def planted(bug: Bug) -> Generator[None]:
    """Production code with this bug."""
    kept: list[Any3] = []
    try:
        for where, name, what in bug.changes():
            kept.append((where, name, where.__dict__[name]))
            setattr(where, name, what)
        yield
    finally:
        for where, name, what in reversed(kept):
            setattr(where, name, what)


# ---- committing --------------------------------------------------------------------------------


class _Eager(Ledger):
    """What was read counts as done."""

    def begin(self, begin: int, end: int) -> None:
        super().begin(begin, end)
        self.committable = end

    def done(self, begin: int) -> int:
        stands = self.committable
        super().done(begin)
        self.committable = max(stands, self.committable)
        return self.committable


def commits_what_was_read() -> list[Any3]:
    return [(lane, "Ledger", _Eager)]


def reads_the_commit_before_it_fences() -> list[Any3]:
    transact = KafkaSink.transact

    def late(self: Any, out: Any, offsets: Any, source: Any) -> None:
        if not hasattr(self, "taken"):
            self.taken = True
            error = self.attempt()
            if error is not None:
                raise LaneLost(error.str())
        transact(self, out, offsets, source)

    return [(KafkaSink, "open", lambda self: None), (KafkaSink, "transact", late)]


def uses_a_producer_again_whose_commit_nobody_answered() -> list[Any3]:
    commit = Shift._commit

    def again(self: Any, *, force: bool = False) -> None:
        writer = self.sink._writer
        try:
            commit(self, force=force)
        except LaneLost:
            self.sink._writer = writer

    return [(Shift, "_commit", again)]


def takes_an_unknown_outcome_for_a_failure() -> list[Any3]:
    transact = KafkaSink.transact

    def twice(self: Any, out: Any, offsets: Any, source: Any) -> None:
        try:
            transact(self, out, offsets, source)
        except LaneLost:
            if self.attempt() is not None:
                raise
            transact(self, out, offsets, source)

    return [(KafkaSink, "transact", twice)]


def commits_offsets_outside_the_transaction() -> list[Any3]:
    def apart(self: Any, writer: Any, offsets: Any, source: Any) -> None:
        self._repeat(writer.client.commit_transaction)
        source.commit(offsets, self._deadline)

    return [(KafkaSink, "_commit", apart)]


def commits_before_it_has_written() -> list[Any3]:
    def first(self: Any, writer: Any, offsets: Any, source: Any) -> None:
        source.commit(offsets, self._deadline)
        writer.client.flush(5.0)

    return [(KafkaSink, "_flush", first)]


def fences_nobody() -> list[Any3]:
    sink, count = KafkaLog.sink, iter(range(10**9))

    def own(self: Any, lane: str, group: str) -> Any:
        return sink(self, f"{lane}.{next(count)}", group)

    return [(KafkaLog, "sink", own)]


def takes_silence_for_no_commit() -> list[Any3]:
    committed = KafkaSource.committed

    def nothing(self: Any, deadline: float | None = None) -> Any:
        try:
            return committed(self, deadline)
        except Unreachable:
            return {}

    return [(KafkaSource, "committed", nothing)]


def commits_the_last_record_plus_one() -> list[Any3]:
    fetch = KafkaSource.fetch

    def kept(self: Any, limit: int, wait_s: float) -> Any:
        fetched = fetch(self, limit, wait_s)
        last: dict[Any, int] = self.__dict__.setdefault("last", {})
        for index, offset in zip(fetched.partition.tolist(), fetched.offset.tolist(), strict=True):
            last[self._partitions[index]] = offset + 1
        return fetched

    return [
        (KafkaSource, "fetch", kept),
        (KafkaSource, "position", lambda self: dict(getattr(self, "last", {}))),
    ]


# ---- state -------------------------------------------------------------------------------------


def loads_a_snapshot_newer_than_the_commit() -> list[Any3]:
    newest, snapshot = checkpoint.newest, Shift._snapshot

    def unbounded(
        store: Any, detector: str, number: int, layout: str, ceiling: Mapping[Any, int], *rest: Any
    ) -> Any:
        return newest(store, detector, number, layout, dict.fromkeys(ceiling, 2**62), *rest)

    def early(self: Any, wait_s: float) -> bool:
        self._commit = lambda **_: None
        try:
            return snapshot(self, wait_s)
        finally:
            del self._commit

    return [
        (checkpoint, "newest", unbounded),
        (checkpoint, "discard_beyond", lambda *_: []),
        (Shift, "_snapshot", early),
    ]


def fences_only_whom_a_commit_notes() -> list[Any3]:
    former = fencing.former

    def noted(spec: Any, number: int, partitions: Any, committed: Any, _: Any) -> list[str]:
        return former(spec, number, partitions, committed, [])

    return [(fencing, "former", noted)]


def opens_lanes_of_an_earlier_deployment() -> list[Any3]:
    declared = fencing.declared

    def blind(store: Any, spec: Any) -> list[int]:
        """What was declared when this deployment began."""
        found = declared(store, spec)
        return found[: found.index(spec.lanes) + 1] if spec.lanes in found else found

    def declare(store: Any, spec: Any) -> None:
        kept = [n for n in declared(store, spec) if n != spec.lanes]
        store.put(f"lanes/{spec.name}", json.dumps({"lanes": [*kept, spec.lanes]}).encode())

    return [(fencing, "declared", blind), (fencing, "declare", declare)]


def fences_nobody_of_another_number_of_lanes() -> list[Any3]:
    return [(fencing, "former", lambda *_: [])]


def skips_the_gap() -> list[Any3]:
    load = Shift._load

    def skip(self: Any, start: Any) -> Any:
        load(self, start)
        return dict(start.speak)

    return [(Shift, "_load", skip)]


def speaks_below_the_commit() -> list[Any3]:
    return [(Flow, "_speaks", lambda self, partition, offset: True)]


def forgets_the_rejects_of_a_batch_without_records() -> list[Any3]:
    finish = Flow.finish

    def only(self: Any, batch: Any, scores: Any) -> Any:
        said = finish(self, batch, scores)
        return said if batch.appended is not None else replace(said, rejects=[])

    return [(Flow, "finish", only)]


def names_alerts_by_their_offset() -> list[Any3]:
    def named(self: Any) -> str:
        rule = f"{self.rule}/{self.origin}"
        return alerts.alert_id(self.detector, self.key, self.since_ms, rule, self.ordinal)

    return [(alerts.Alert, "id", property(named))]


# ---- scorers and versions ------------------------------------------------------------------------


def sends_again_to_any_version() -> list[Any3]:
    take, send = Members.take, RemotePool._send

    def again(self: Any, job: Any) -> None:
        self._members.any = job.tries > 0
        send(self, job)

    def anybody(self: Any, version: str) -> Any:
        found = sorted(m.version for m in self._members.values()) if self.any else []
        return take(self, found[-1] if found else version)

    result = RemotePool.result

    def stamped(self: Any, ticket: Any, wait_s: float) -> Any:
        scores = result(self, ticket, wait_s)
        return None if scores is None else replace(scores, version=ticket.version)

    return [
        (RemotePool, "_send", again),
        (Members, "take", anybody),
        (RemotePool, "result", stamped),
    ]


def drops_batches_when_a_scorer_dies() -> list[Any3]:
    collect = Shift._collect

    def drop(self: Any, wait_s: float) -> None:
        before = self.pool.sent_again
        collect(self, wait_s)
        if self.pool.sent_again > before:
            for flight in self.in_flight:
                for partition, begin in flight.batch.begin.items():
                    self.ledger[partition].done(begin)
            self.in_flight.clear()
            self.pool.forget()

    return [(Shift, "_collect", drop)]


def changes_the_version_without_a_snapshot() -> list[Any3]:
    pause = Shift._pause

    def hasty(self: Any) -> None:
        other = self._other()
        if other is None:
            pause(self)
        else:
            self.model, self.switched = other, True
            self.stats.version = other.version

    return [(Shift, "_pause", hasty)]


def does_not_audit_a_version() -> list[Any3]:
    audit = Shift._audit

    def silent(self: Any, what: str, partition: Any, words: Any) -> None:
        if what != "version":
            audit(self, what, partition, words)

    return [(Shift, "_audit", silent)]


def ends_a_version_that_lanes_need() -> list[Any3]:
    return [
        (Keeper, "using", lambda self, version: version in self.lanes.values()),
        (Keeper, "_stranded", lambda self: []),
    ]


def takes_another_version_than_commits_note() -> list[Any3]:
    def hasty(self: Any, number: int, committed: str) -> Any:
        models, lanes = self._roster.models, self._roster.lanes
        return models.get(committed) or models.get(lanes.get(number, ""))

    return [(Owner, "_model", hasty)]


def numbers_rosters_by_the_time_of_day() -> list[Any3]:
    return [(Keeper, "_highest", lambda self: self._clock.now_ms() - 1)]


def knows_rosters_by_their_number_only() -> list[Any3]:
    def highest(self: Any) -> int:  # an equal one is taken for its own
        return max((r.roster - 1 for r in self.reports().values()), default=-1)

    return [
        (Keeper, "_highest", highest),
        (Keeper, "_has_roster", lambda self, report: report.roster >= self._roster.number),
    ]


BUGS = (
    Bug("commits what was read, not what is done", commits_what_was_read, 50),
    Bug("reads the commit before it fences", reads_the_commit_before_it_fences, 400, 230),
    Bug(
        "uses a producer again whose commit nobody answered",
        uses_a_producer_again_whose_commit_nobody_answered,
        300,
        150,
    ),
    Bug(
        "takes an unknown outcome for a failure, and writes again",
        takes_an_unknown_outcome_for_a_failure,
        300,
        190,
    ),
    Bug("commits offsets outside the transaction", commits_offsets_outside_the_transaction, 10),
    Bug("at least once: commits before it has written", commits_before_it_has_written, 300, 220),
    Bug("fences nobody", fences_nobody, 100),
    Bug(
        "fences nobody of another number of lanes",
        fences_nobody_of_another_number_of_lanes,
        1_000,
        190,
    ),
    Bug("fences only whom a commit notes", fences_only_whom_a_commit_notes, 1_000, 220),
    Bug(
        "opens lanes of an earlier deployment", opens_lanes_of_an_earlier_deployment, 1_000, 11_680
    ),
    Bug("takes silence for no commit", takes_silence_for_no_commit, 600, 150),
    Bug("commits the last record plus one, not the position", commits_the_last_record_plus_one, 30),
    Bug("loads a snapshot newer than the commit", loads_a_snapshot_newer_than_the_commit, 50),
    Bug("skips the gap between snapshot and commit", skips_the_gap, 50),
    Bug("speaks below the commit", speaks_below_the_commit, 50),
    Bug(
        "forgets the rejects of a batch without records",
        forgets_the_rejects_of_a_batch_without_records,
        300,
    ),
    Bug("names alerts by their offset", names_alerts_by_their_offset, 5),
    Bug("sends a batch again to any version", sends_again_to_any_version, 400),
    Bug("drops batches in flight when a scorer dies", drops_batches_when_a_scorer_dies, 30),
    Bug("changes the version without a snapshot", changes_the_version_without_a_snapshot, 800, 50),
    Bug("does not audit a version", does_not_audit_a_version, 50),
    Bug(
        "takes another version than its commits note",
        takes_another_version_than_commits_note,
        3_000,
        3_330,
    ),
    Bug("ends a version that lanes still need", ends_a_version_that_lanes_need, 100),
    Bug("numbers rosters by the time of day", numbers_rosters_by_the_time_of_day, 1_000, 50),
    Bug("knows rosters by their number only", knows_rosters_by_their_number_only, 1_000, 530),
    Bug(
        "labels: hands one on too early after a restart",
        class_bugs.hands_on_a_label_too_early_after_a_restart,
        50,
    ),
    Bug("labels: commits what waits for its place", class_bugs.commits_what_waits, 50),
    Bug(
        "labels: goes on where the commit is, not the snapshot",
        class_bugs.goes_on_with_labels_where_the_commit_is,
        100,
        40,
    ),
    Bug(
        "labels: looks at the clock after it was answered",
        class_bugs.looks_at_the_clock_after_it_was_answered,
        1_000,
        480,
    ),
    Bug("labels: takes all clocks for one", class_bugs.takes_all_clocks_for_one, 100, 40),
    Bug("labels: takes an end for read", class_bugs.takes_an_end_for_read, 50),
    Bug("labels: holds a partition for good", class_bugs.holds_a_partition_for_good, 50),
    Bug("budget: no debt in snapshots", class_bugs.forgets_the_debt_of_a_budget, 200, 50),
    Bug("budget: no clock in snapshots", class_bugs.forgets_the_clock_of_a_budget, 1_000, 620),
    Bug("budget: counts what it decides", class_bugs.counts_what_it_decides, 300, 230),
)
