"""The life of a lane: open it, pull, hand to scorers, decide in order, commit; again when lost.

One thread, one consumer, one producer. The order on opening is the whole safety of a hand-over:

1. `sink.open()` fences every earlier owner of the lane;
2. then the committed offsets are read: nobody but this lane can move them now (`fencing.py`);
3. the newest snapshot at or below them is loaded;
4. reading starts at the snapshot, and nothing is said below the committed offsets.

Whatever makes a write uncertain ends in (1) again with new clients. What nobody foresaw ends the
process: a restarted owner is back in a second and stands on what was committed.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raywatch.actors import bounds, checkpoint, fencing
from raywatch.actors.fetching import joined
from raywatch.actors.flow import Batch, Said
from raywatch.actors.joining import Joined
from raywatch.actors.ledger import Ledger
from raywatch.actors.ports import (
    Clock,
    Committed,
    Fetched,
    Log,
    Out,
    Partition,
    Pool,
    Reader,
    Sink,
    Source,
    Store,
    Ticket,
)  # fmt: skip
from raywatch.actors.saving import Saver, Saving
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.stages import flow_of
from raywatch.actors.stats import LaneStats, State, Tally
from raywatch.models.errors import ConfigError, Fenced, LaneLost, Unreachable
from raywatch.models.scorer import ModelSpec

FLUSH_S = 0.005  # Alerts wait at most about this long for company before they are committed.
SLICE_S = 0.005  # Longest wait for records while scores or a commit are waited for.
BACKOFF_MIN_S = 0.05  # Between two attempts to open a lane, doubled while nothing is committed,
BACKOFF_MAX_S = 5.0  # up to this.
BLOCKED_S = 5.0  # Between two attempts while something must be changed by a person.
OUT_MAX = 5_000  # Records written by one transaction before it is committed early.
RENEW_S = 21_600.0  # All offsets are committed anew this often: brokers forget them after days.
WORDS_S = 2.0  # Scores that are missing for longer are spoken of.
SAVE_S = 10.0  # Longest wait for a snapshot that has to be there before a lane goes on or ends.
GAP_BATCHES = 5  # A lane that had to replay more than this stores its state once it has.


class Lane:
    """One lane of a detector."""

    def __init__(
        self,
        spec: DetectorSpec,
        number: int,
        partitions: tuple[Partition, ...],
        *,
        log: Log,
        pool: Callable[[], Pool],
        store: Store,
        clock: Clock,
        model: Callable[[int, str], ModelSpec | None],
        epoch: str,
        saver: Saver | None = None,
    ) -> None:
        """`model(lane, committed_version)` says which version to use now (None: not known yet).

        Without a `saver` the lane's own thread waits for the store.
        """
        self.spec, self.number, self.partitions = spec, number, partitions
        self.stats = LaneStats()
        self.sink: Sink | None = None
        self.log, self.make_pool, self.store, self.clock = log, pool, store, clock
        self.model, self.epoch = model, epoch
        self.saver = saver or Saver(beside=False)
        self.stopping = threading.Event()

    def stop(self) -> None:
        """Finish what is in flight, commit, and end. Does not wait."""
        self.stopping.set()

    def run(self) -> None:
        """Until stopped or fenced. Raises only what is a bug."""
        backoff = BACKOFF_MIN_S
        while not self.stopping.is_set():
            commits = self.stats.commits
            try:
                Shift(self).run()
                break
            except Fenced as error:
                self._say("fenced", error.message)
                return
            except (LaneLost, Unreachable) as error:
                self._say("waiting", error.message)
                if self.stats.commits > commits:
                    backoff = BACKOFF_MIN_S
                self.stopping.wait(backoff)
                backoff = min(BACKOFF_MAX_S, 2 * backoff)
            except ConfigError as error:
                words = f"{error.message}; {error.hint}" if error.hint else error.message
                self._say("blocked", words)
                self.stopping.wait(BLOCKED_S)
        self._say("stopped", "")

    def _say(self, state: State, words: str) -> None:
        self.stats.state, self.stats.words = state, words


@dataclass(slots=True)
class _Flight:
    """A batch at the scorers."""

    batch: Batch
    ticket: Ticket | None  # None: nothing to score
    stamp_ms: int  # the log's timestamp of its oldest record, 0 where there is none
    sent: float  # monotonic seconds
    since: dict[Partition, int] | None  # first offsets of a new version, if this batch begins one


class Shift:
    """One opening of a lane, from fencing its predecessors to its own loss or end."""

    def __init__(self, lane: Lane) -> None:
        self.lane, self.spec, self.stats = lane, lane.spec, lane.stats
        self.log, self.clock, self.store = lane.log, lane.clock, lane.store
        self.pool = lane.make_pool()
        self.reader: Reader | None = None  # the client; `source` may be one over it
        self.source: Source | None = None
        self.sink: Sink | None = None
        self.in_flight: deque[_Flight] = deque()
        self.gathered: list[Fetched] = []
        self.gathered_since = 0.0
        self.out: list[Out] = []
        self.out_since = 0.0
        self.stamps: list[int] = []
        self.tally = Tally()  # of what is decided and not committed
        self.switched = False  # the next batch is the first one of another version
        self.renote = False  # the next commit has to note the version for every partition
        self.words = ""  # what this shift put into the stats

    # ---- opening ---------------------------------------------------------------------------

    def run(self) -> None:
        """Open and work until stopped; closes its clients however it ends."""
        try:
            self.open()
            while not self.lane.stopping.is_set():
                self.step()
            self.finish()
        finally:
            self.pool.forget()
            for client in (self.source, self.sink):
                if client is not None:
                    client.close()
            self.lane.sink = None

    def open(self) -> None:
        """Fence, read what is committed, load the state, start reading."""
        spec, lane, partitions = self.spec, self.lane.number, self.lane.partitions
        self.stats.state = "opening"
        self.stats.opened += 1
        self.sink = self.lane.sink = self.log.sink(spec.lane_id(lane), spec.group)
        self.sink.open()
        keys = spec.record.key is None
        self.reader = self.source = self.log.source(spec.group, partitions, keys=keys)
        if spec.labels:
            self.source = Joined(
                self.reader, spec, partitions, log=self.log, clock=self.clock, stats=self.stats
            )
        committed, others = fencing.committed(
            self.log, self.store, spec, lane, partitions, self.source
        )
        start = checkpoint.start(
            partitions=partitions,
            committed=committed,
            bounds=self.source.bounds(),
            fresh=spec.start,
            lost=spec.lost,
            added=spec.added,
        )
        self.model = self._wait_for_model(committed)
        read = self._load(start)
        self.flow.speak = dict(start.speak)
        self.position = dict(read)
        self.noted = self.model.version
        self.ledger = {p: Ledger(start.speak[p]) for p in partitions}
        kept = {p: c for p, c in committed.items() if p not in start.lost}
        self.committed = {p: c.offset for p, c in kept.items()}
        self.stats.settle(self.committed)
        self.since = self._versions(kept, start.speak)
        self.committed_at = self.clock.monotonic()
        self.renew_at = self.committed_at + RENEW_S
        self._begin(start, kept, others)
        self.source.assign(read)
        self.stats.version = self.model.version
        self.stats.state = "catching up"

    def _load(self, start: checkpoint.Start) -> dict[Partition, int]:
        """Take over the newest snapshot that may be used. Returns where to begin reading."""
        spec, lane, now = self.spec, self.lane.number, self.clock.monotonic()
        checkpoint.discard_beyond(self.store, spec.name, lane, start.speak)
        self.flow = flow_of(spec, self.lane.partitions, self.model)
        layout = self.flow.layout()
        snapshot = checkpoint.newest(
            self.store, spec.name, lane, layout, start.speak, self.flow.fits
        )
        read = {p: max(low, start.speak[p] - spec.replay_max) for p, low in start.read.items()}
        if snapshot is not None:
            # Where retention took what lies between, a history with a hole is still worth more
            # than none: a key without history says nothing for as long as its warm-up takes.
            read = {p: max(low, snapshot.offsets.get(p, read[p])) for p, low in start.read.items()}
        gap = sum(start.speak[p] - o for p, o in read.items())
        known = snapshot is not None and gap <= GAP_BATCHES * spec.batch_records
        # Without a snapshot nobody else could tell where this state began.
        due = now + spec.snapshot_s if known else now
        self.saving = Saving(self.lane.saver, self.clock, spec.snapshot_s, read, due)
        return read

    def _wait_for_model(self, committed: dict[Partition, Committed]) -> ModelSpec:
        """The model that the commits name, else the one in service; a lane waits for it."""
        noted = {checkpoint.noted(c.note)[0] for c in committed.values()} - {""}
        name = min(noted) if len(noted) == 1 else ""
        self.stats.version = name  # whoever reads it starts a scorer of it, where there is none
        while not self.lane.stopping.is_set():
            model = self.lane.model(self.lane.number, name)
            if model is not None:
                return model
            self.stats.words = "no scorer has said yet what model it holds"
            self.clock.sleep(0.02)
        raise LaneLost("stopped while waiting for a model")

    def _versions(
        self, committed: dict[Partition, Committed], speak: dict[Partition, int]
    ) -> dict[Partition, int]:
        """Since which offset each partition is scored by the model at hand."""
        since = dict(speak)
        for partition, entry in committed.items():
            model, first = checkpoint.noted(entry.note)
            if model == self.model.version:
                since[partition] = entry.offset if first is None else first
        return since

    def _begin(
        self, start: checkpoint.Start, kept: Mapping[Partition, Committed], others: bool
    ) -> None:
        """Make a first start, and that `others` lost it, durable; audit what was lost or begun."""
        for partition, (offset, low) in start.lost.items():
            self._audit("lost", partition, {"committed": offset, "first_retained": low})
        for partition in self.lane.partitions:
            here = {"offset": start.speak[partition], "model": self.noted}
            before = checkpoint.noted(kept[partition].note)[0] if partition in kept else ""
            if partition not in kept and partition not in start.lost:
                self._audit("started", partition, here)
            elif before not in ("", self.noted):  # replaced while nobody held the lane
                self._audit("version", partition, {**here, "before": before})
        self.renote = others or bool(self.out)
        self._commit()

    # ---- working ---------------------------------------------------------------------------

    def step(self) -> None:
        """Pull a little, finish what is scored, commit what is due."""
        spec = self.spec
        pause = self._pause_due()
        if pause and self.gathered:
            self._send()
        if not pause and bounds.room(spec, (f.batch.segments for f in self.in_flight)):
            self._pull(SLICE_S if self.in_flight or self.out else spec.batch_wait_s)
        room = bounds.room(spec, (f.batch.segments for f in self.in_flight))
        self._collect(0.0 if room and not pause else 0.05)
        now = self.clock.monotonic()
        if now >= self.renew_at:  # also of partitions to which nobody writes
            self.renew_at, self.renote = now + RENEW_S, True
        urgent = self.out and (now - self.out_since >= FLUSH_S or len(self.out) >= OUT_MAX)
        if urgent or now - self.committed_at >= spec.checkpoint_s:
            self._commit()
        if pause and not self.in_flight:
            self._pause()
        if (stored := self.saving.settle(0.0)) is not None:
            self._note_saving(stored)

    def _pause_due(self) -> bool:
        """Whether nothing more is to be pulled until all is scored: see `_pause`."""
        if not self._caught_up() or self.saving.blocked():
            return False
        enough = max(self.spec.replay_max // 2, GAP_BATCHES * self.spec.batch_records)
        return self._other() is not None or self.saving.wanted(self.position, enough)

    def _pause(self) -> None:
        """Nothing is in flight: snapshot, then take another version if the owner was told to.

        The snapshot comes first, so that a replay never crosses from one version to another:
        calibration would see scores that no owner saw before. So without one nothing changes.
        """
        other = self._other()
        if self._snapshot(0.0 if other is None else SAVE_S) and other is not None:
            self.model, self.switched = other, True
            self.stats.version = other.version  # the one before is needed no more

    def _other(self) -> ModelSpec | None:
        """The model to change to, None to go on."""
        model = self.lane.model(self.lane.number, "")
        return None if model is None or model.version == self.model.version else model

    def finish(self) -> None:
        """Score and commit what was pulled already, then snapshot. Bounded by 10 s."""
        until = self.clock.monotonic() + 10.0
        if self.gathered:
            self._send()
        while self.in_flight and self.clock.monotonic() < until:
            self._collect(0.05)
            self._commit()
        self._commit(force=bool(self.out))
        if not self.in_flight and self._caught_up() and self.saving.far(self.position) > 0:
            self._snapshot(SAVE_S)

    def _pull(self, wait_s: float) -> None:
        """Gather records until the batch is full or its time is over, then send it off."""
        assert self.source is not None
        most = bounds.batch_records(self.spec, self.model)
        have, size = sum(map(len, self.gathered)), sum(f.nbytes for f in self.gathered)
        began = self.clock.monotonic()
        fetched = self.source.fetch(most - have, wait_s)
        now = self.clock.monotonic()
        if len(fetched):
            if not self.gathered:
                self.gathered_since = began  # the oldest may have come right then
            self.gathered.append(fetched)
            have, size = have + len(fetched), size + fetched.nbytes
        full = have >= most or size >= self.spec.batch_bytes
        if full or (self.gathered and now - self.gathered_since >= self.spec.batch_wait_s):
            self._send()
        elif not self.gathered:
            self._moved()

    def _moved(self) -> None:
        """Nothing came, but the reader may have passed markers and holes."""
        assert self.source is not None
        for partition, position in self.source.position().items():
            if position > self.position[partition]:
                self.position[partition] = position
                self.ledger[partition].skip(position)
        if self.stats.state == "catching up" and self._caught_up():
            self.stats.state = "running"
            self.stats.words = ""

    def _caught_up(self) -> bool:
        return all(self.position[p] >= o for p, o in self.flow.speak.items())

    def _send(self) -> None:
        """Decode and featurise what was gathered and hand it to the pool."""
        assert self.source is not None
        fetched = joined(self.gathered)
        self.gathered = []
        begin = dict(self.position)
        for partition, position in self.source.position().items():
            self.position[partition] = max(self.position[partition], position)
        since = {p: ledger.position for p, ledger in self.ledger.items()}
        batch = self.flow.prepare(fetched, self.model, begin=begin, end=self.position)
        for partition, ledger in self.ledger.items():
            low = max(begin[partition], ledger.position)
            if self.position[partition] > low:
                ledger.begin(low, self.position[partition])
                batch.begin[partition] = low
            else:
                del batch.begin[partition]
        ticket = None
        if batch.segments is not None:
            ticket = self.pool.submit(batch.segments, self.model.version)
        oldest = int(fetched.time_ms.min()) if len(fetched) else 0
        now = self.clock.monotonic()
        first = since if self.switched else None
        self.in_flight.append(_Flight(batch, ticket, max(0, oldest), now, first))
        self.switched = False
        self.stats.in_flight = len(self.in_flight)
        if self.stats.state == "catching up" and self._caught_up():
            self.stats.state, self.stats.words = "running", ""

    def _collect(self, wait_s: float) -> None:
        """Finish batches in order, as far as their scores are there."""
        while self.in_flight and len(self.out) < OUT_MAX:
            flight, scores = self.in_flight[0], None
            if flight.ticket is not None:
                scores = self.pool.result(flight.ticket, wait_s)
                if scores is None:
                    self._speak_of(flight)
                    return
            self.in_flight.popleft()
            self._done(flight, self.flow.finish(flight.batch, scores))
            wait_s = 0.0

    def _speak_of(self, flight: _Flight) -> None:
        """Say what a lane waits for that has waited for long."""
        age = self.clock.monotonic() - flight.sent
        if age > WORDS_S:
            version = flight.batch.model.version
            self.words = self.stats.words = f"no scores of `{version}` for {age:.0f} s"

    def _done(self, flight: _Flight, said: Said) -> None:
        for partition, begin in flight.batch.begin.items():
            self.ledger[partition].done(begin)
        if self.words and self.words == self.stats.words:
            self.words = self.stats.words = ""
        if flight.since is not None and flight.batch.model.version != self.noted:
            self._changed(flight.batch.model.version, flight.since)
        out = self.flow.emit(said)
        if out and not self.out:
            self.out_since = self.clock.monotonic()
        self.out += out
        self.stamps.append(flight.stamp_ms)
        self.stats.records += len(flight.batch.records)
        self.stats.alerts += len(said.alerts)
        self.stats.rejects += said.rejected
        self.tally = self.tally.plus(said.tally)
        self.stats.keys, self.stats.evicted = len(self.flow.keys), self.flow.keys.evicted
        self.stats.labels = self.flow.labels()
        self.stats.in_flight = len(self.in_flight)

    def _changed(self, version: str, since: dict[Partition, int]) -> None:
        """The first batch of another version is done: say so in the transaction that holds it."""
        for partition, offset in since.items():
            words = {"offset": offset, "model": version, "before": self.noted}
            self._audit("version", partition, words)
        self.noted, self.since, self.renote = version, since, True

    # ---- committing ------------------------------------------------------------------------

    def _commit(self, *, force: bool = False) -> None:
        """Alerts, rejects, audit and offsets in one transaction, if there is anything."""
        assert self.sink is not None
        assert self.reader is not None
        self.committed_at = self.clock.monotonic()
        mine = self.spec.lane_id(self.lane.number)
        offsets = {
            p: Committed(ledger.committable, checkpoint.note(self.noted, self.since[p], mine))
            for p, ledger in self.ledger.items()
            if self.renote or ledger.committable > self.committed.get(p, -1)
        }
        # What was decided may only be said together with the offsets that it was decided on.
        if not offsets and not (force and self.out):
            return
        self.stats.tried = {p: c.offset for p, c in offsets.items()}, self.tally
        self.sink.transact(self.out, offsets, self.reader)
        self.out, self.renote = [], False
        self.tally = Tally() if offsets else self.tally
        self.committed |= {p: c.offset for p, c in offsets.items()}
        self.stats.settle(self.committed)
        self.stats.commits += 1
        self.stats.committed = {str(p): o for p, o in self.committed.items()}
        self.stats.position = {str(p): o for p, o in self.position.items()}
        self.stats.version_since = {str(p): o for p, o in self.since.items()}
        now = float(self.clock.now_ms())
        self.stats.delay_ms.extend(max(0.0, now - stamp) for stamp in self.stamps if stamp > 0)
        self.stamps = []

    def _audit(self, what: str, partition: Partition, words: Mapping[str, object]) -> None:
        entry = {
            "schema": "raywatch.audit/1", "what": what, "at_ms": self.clock.now_ms(),
            "detector": self.spec.name, "lane": self.lane.number,
            "topic": partition.topic, "partition": partition.number, **words,
        }  # fmt: skip
        key = f"{self.spec.name}/{partition}".encode()
        self.out.append(Out(self.spec.audit, key, json.dumps(entry).encode()))

    def _snapshot(self, wait_s: float) -> bool:
        """Commit and copy the state: caught up, nothing in flight, nothing gathered.

        It is stored beside the lane's work. Returns whether it was stored within `wait_s`.
        """
        self._commit(force=bool(self.out))
        offsets = {p: ledger.committable for p, ledger in self.ledger.items()}
        assert offsets == self.position, (offsets, self.position)
        name, lane, epoch = self.spec.name, self.lane.number, self.lane.epoch
        snapshot = self.flow.snapshot(offsets)

        def save() -> str:
            return checkpoint.save(self.store, name, lane, snapshot, epoch)

        stored = self.saving.save(save, offsets, wait_s)
        self._note_saving(stored)
        return stored

    def _note_saving(self, stored: bool) -> None:
        if stored:
            self.stats.snapshot = self.saving.name
        elif self.saving.error:
            self.stats.words = self.saving.error
