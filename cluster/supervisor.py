"""Watches over a deployment: observes, decides by pure functions, carries out, writes it down.

Level-triggered, about once a second. What must outlive the supervisor is in the audit topic: which
version each detector is to serve, and the rollout under way. What runs is found by name. So a
restart needs no special path, and takes nothing from owners or scorers, which go on meanwhile.
"""

import json
import os
import threading
import time
import traceback
from typing import Any

from raywatch.actors.clock import SystemClock
from raywatch.actors.ports import Log, Out, Partition
from raywatch.actors.runtime import Pool, open_log
from raywatch.actors.store import open_store
from raywatch.cluster import journal, rollout, scale
from raywatch.cluster.deployment import Deployment, Detection, artifact_name
from raywatch.cluster.keeper import Keeper
from raywatch.cluster.lag import LagWindow, is_known, lag_now, rates
from raywatch.cluster.metrics import Metrics
from raywatch.cluster.page import Page
from raywatch.cluster.reader import Reader
from raywatch.cluster.runtime import Crew
from raywatch.cluster.view import View
from raywatch.models.errors import ConfigError, Refused, Unreachable

TICK_S = 0.5
ASK_S = 0.3  # Longest wait for reports in a tick: the slow ones come with a later one.
AUDIT_MAX = 200_000  # Audit records read at a start, newest first to be kept.


class Watch:
    """One detector: its keeper, its scale memory, its rollout."""

    def __init__(self, detection: Detection, keeper: Keeper, settings: scale.ScaleSettings) -> None:
        self.detection, self.spec, self.keeper = detection, detection.spec, keeper
        self.settings = settings
        self.memory = scale.Memory()
        self.decision = scale.Decision(settings.scorers_min, "hold: starting")
        self.rollout: rollout.Rollout | None = None
        self.busy: dict[str, float] = {}  # scorer -> share of its time, over about the last second
        self._looked: dict[str, tuple[float, float]] = {}  # scorer -> busy_s, age_s then

    @property
    def rolling(self) -> bool:
        """Whether a rollout is under way."""
        return self.rollout is not None and not self.rollout.over

    def observe(self, now: float, reader: Reader) -> scale.Observation:
        """The pool and its work as of now."""
        windows = list(reader.windows[self.spec.group].values())
        reports = self.keeper.scorer_reports()
        speed: list[float] = []
        for name, report in reports.items():
            before_busy, before_age = self._looked.get(name, (0.0, report.warm_s))
            if report.age_s - before_age >= 1.0:
                share = (report.busy_s - before_busy) / (report.age_s - before_age)
                self.busy[name] = min(1.0, max(0.0, share))
                self._looked[name] = (report.busy_s, report.age_s)
            if report.busy_s > 0.05 and report.records:
                speed.append(report.records / report.busy_s)
        self._looked = {n: v for n, v in self._looked.items() if n in reports}
        self.busy = {n: v for n, v in self.busy.items() if n in reports}
        serving, _, _ = self.keeper.counted()
        pending = [
            now - s.started
            for s in self.keeper.scorers.values()
            if s.ready is None and s.draining is None
        ]
        return scale.Observation(
            t=now,
            read_t=reader.read_t,
            backlog=[_backlog(w, now) for w in windows],
            rate=[rates(w).arrivals_per_s for w in windows],
            ready=serving,
            pending_age_s=pending,
            busy=list(self.busy.values()),
            records_per_busy_s=speed,
            starts_s=self.keeper.starts_s,
            rollout=self.rolling,
        )


def _backlog(window: LagWindow, now: float) -> float | None:
    return float(lag_now(window)) if is_known(window, now) else None


class Supervisor:
    """The actor that watches over a deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.clock = SystemClock()
        self.began = self.clock.monotonic()
        self.log: Log = open_log(deployment.log)
        self.store = open_store(deployment.store)
        self.journal = journal.Journal()
        self.crew = Crew(self.clock)
        specs = [d.spec for d in deployment.detections]
        self.reader = Reader(
            self.log,
            self.clock,
            {d.spec.group: d.partitions for d in deployment.detections},
            {spec.alerts: spec.name for spec in specs},
        )
        self.audit = specs[0].audit
        self.watches: dict[str, Watch] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        told = self._read_audit()
        for detection in deployment.detections:
            self.watches[detection.spec.name] = self._watch(detection, told)
        self._latest: dict[str, Any] = {}
        self.view = View(self)
        self.metrics = Metrics()
        self.page = Page(
            self.snapshot, self.metrics.render, deployment.page_host, deployment.page_port,
            deployment.page_token,
        )  # fmt: skip
        self._url = self.page.start()
        for note in deployment.notes:
            self.say("info", note)
        self.say("start", f"watches {', '.join(s.name for s in specs)}")
        self.reader.start()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    # ---- starting --------------------------------------------------------------------------

    def _watch(self, detection: Detection, told: dict[str, dict[str, Any]]) -> Watch:
        def say(kind: journal.Kind, words: str) -> None:
            self.say(kind, words, detector=detection.spec.name)

        pool = self.deployment.pool
        settings = scale.ScaleSettings(
            scorers_min=pool.min,
            scorers_max=pool.max,
            promise_s=pool.promise_s,
            busy_target=pool.busy_target,
            busy_max=max(pool.busy_target, scale.ScaleSettings().busy_max),
            hold_min_s=pool.hold_s,
            hold_max_s=max(pool.hold_s, scale.ScaleSettings().hold_max_s),
            cold_s=scale.ScaleSettings().warm_s,
            tick_s=pool.tick_s,
        )
        keeper = Keeper(self.deployment, detection, self.crew, self.clock, say)
        watch = Watch(detection, keeper, settings)
        last = told.get(detection.spec.name, {})
        if last.get("configured") == detection.version and last.get("target"):
            keeper.target = str(last["target"])
            keeper.lanes = dict.fromkeys(detection.lanes, keeper.target)
            under_way = last.get("rollout")
            if isinstance(under_way, dict):
                found = rollout.of_fields(under_way, self.clock.monotonic())
                if found is not None and not found.over:
                    watch.rollout = found
                    keeper.lanes = self._lanes_of(last, detection, found)
        for version in {keeper.target, *keeper.lanes.values()} | self._versions(watch):
            keeper.blobs[version] = self._blob(version)
        return watch

    @staticmethod
    def _versions(watch: Watch) -> set[str]:
        return {watch.rollout.before, watch.rollout.after} if watch.rollout else set()

    @staticmethod
    def _lanes_of(
        told: dict[str, Any], detection: Detection, under_way: rollout.Rollout
    ) -> dict[int, str]:
        noted = told.get("lanes")
        lanes = noted if isinstance(noted, dict) else {}
        return {n: str(lanes.get(str(n), under_way.before)) for n in detection.lanes}

    def _blob(self, version: str) -> bytes:
        blob = self.store.get(artifact_name(version))
        if blob is None:
            raise ConfigError(
                f"the store has no artifact of `{version}`",
                hint=f"`{self.deployment.store}` must be the store that the rollout used",
            )
        return blob

    def _read_audit(self) -> dict[str, dict[str, Any]]:
        """The newest `serve` record of each detector: which version it is to serve."""
        told: dict[str, dict[str, Any]] = {}
        partitions = [Partition(self.audit, n) for n in range(self.log.topics().get(self.audit, 0))]
        bounds = self.log.bounds(partitions)
        source = self.log.source("", partitions)
        try:
            source.assign({p: max(b.low, b.end - AUDIT_MAX) for p, b in bounds.items()})
            until = self.clock.monotonic() + 30.0
            while any(source.position().get(p, b.low) < b.end for p, b in bounds.items()):
                if self.clock.monotonic() > until:
                    raise Unreachable(f"topic `{self.audit}` could not be read within 30 s")
                for value in source.fetch(5_000, 0.1).values:
                    entry = _object(value)
                    if entry.get("what") == "serve":
                        told[str(entry.get("detector"))] = entry
                    sentence = journal.of_json(value)
                    if sentence is not None:
                        self.journal.take(sentence)
        finally:
            source.close()
        return told

    # ---- the loop --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                began = time.monotonic()
                with self._lock:
                    self.tick()
                self._closing.wait(max(0.05, TICK_S - (time.monotonic() - began)))
        except BaseException as error:
            traceback.print_exception(error)
            os._exit(1)

    def tick(self) -> None:
        """Observe, decide, carry out."""
        self.crew.ask(ASK_S)
        now = self.clock.monotonic()
        for watch in self.watches.values():
            if watch.rolling:
                watch.keeper.tick(None)
                self._roll(watch, now)
            else:
                watch.keeper.tick(watch.decision.scorers)
            self._scale(watch, now)
        self._latest = self.view.snapshot(self.clock.now_ms(), now)
        self.metrics.update(self._latest)

    def _scale(self, watch: Watch, now: float) -> None:
        seen = watch.observe(now, self.reader)
        if not seen.ready and not watch.memory.target:
            return  # nothing has served yet: the pool starts at its minimum
        decision, watch.memory = scale.decide(seen, watch.memory, watch.settings)
        if decision.kind != "hold":
            self.say(decision.kind, decision.reason, detector=watch.spec.name, n=decision.scorers)
        watch.decision = decision

    def _roll(self, watch: Watch, now: float) -> None:
        assert watch.rollout is not None
        keeper = watch.keeper
        seen = rollout.RolloutSeen(
            t=now, size=max(1, watch.decision.scorers), scorers=keeper.seen(), lanes=keeper.lanes
        )
        before = watch.rollout
        watch.rollout, steps = rollout.step(before, seen)
        changed = watch.rollout.phase is not before.phase
        for step in steps:
            match step:
                case rollout.StartScorer(version):
                    keeper.start(version)
                case rollout.SwitchLane(lane, version):
                    keeper.lanes[lane] = version
                    changed = True
                case rollout.DrainScorer(name):
                    keeper.drain(name)
                case rollout.Say(words):
                    self.say("rollout", words, detector=watch.spec.name)
        if watch.rollout.over:
            keeper.target = watch.rollout.toward
        if changed:
            self._note(watch)

    def _note(self, watch: Watch) -> None:
        """Write down what another supervisor would have to know."""
        keeper = watch.keeper
        entry = {
            "schema": "raywatch.audit/1",
            "what": "serve",
            "detector": watch.spec.name,
            "at_ms": self.clock.now_ms(),
            "configured": watch.detection.version,
            "target": keeper.target,
            "lanes": {str(lane): version for lane, version in keeper.lanes.items()},
            "rollout": rollout.to_fields(watch.rollout) if watch.rollout else None,
        }
        self.reader.write(Out(self.audit, watch.spec.name.encode(), json.dumps(entry).encode()))

    def say(self, kind: journal.Kind, words: str, **fields: journal.Value) -> None:
        """A sentence for the journal, the audit topic and the log."""
        entry = self.journal.add(self.clock.now_ms(), kind, words, **fields)
        self.reader.write(Out(self.audit, b"journal", journal.to_json(entry)))
        print(json.dumps({"kind": kind, "words": words, **fields}), flush=True)

    # ---- what others ask -------------------------------------------------------------------

    def pool(self, detector: str) -> Pool | None:
        """The pool of a detector, for an owner that was just started."""
        with self._lock:
            watch = self.watches.get(detector)
            return watch.keeper.pool() if watch is not None else None

    def starting(self) -> str:
        """What is still missing before every lane works; empty when nothing is."""
        with self._lock:
            for watch in self.watches.values():
                serving, starting, _ = watch.keeper.counted()
                if not serving:
                    return f"{watch.spec.name}: {starting} scorers load their model"
                reports = watch.keeper.reports()
                for seat, name in sorted(watch.keeper.seats.items()):
                    if name not in reports:
                        return f"{watch.spec.name}: owner {seat} starts"
                for report in reports.values():
                    for lane in report.lanes:
                        if lane.state != "running":
                            words = f" ({lane.words})" if lane.words else ""
                            return f"{watch.spec.name}: lane {lane.lane} is {lane.state}{words}"
        return ""

    def snapshot(self) -> dict[str, Any]:
        """What the page shows, as of the last tick. Any thread may ask; never waits."""
        return self._latest or {"schema": "raywatch.snapshot/1", "state": "starting"}

    def url(self) -> str:
        """Where the page is."""
        return self._url

    def posts(self) -> dict[str, dict[str, Any]]:
        """Processes of this deployment: pid, node and what they are."""
        with self._lock:
            found: dict[str, dict[str, Any]] = {}
            for name, report in {**self.crew.owners(), **self.crew.scorers()}.items():
                found[name] = {"pid": report.pid, "report": report}
            return found

    def pid(self) -> int:
        """Its process."""
        return os.getpid()

    def rollout_start(self, detector: str, version: str, who: str) -> str:
        """Begin a rollout to a version whose artifact is in the store. Returns what happens."""
        with self._lock:
            watch = self._one(detector)
            if watch.rolling:
                assert watch.rollout is not None
                raise Refused(
                    f"a rollout to `{watch.rollout.after}` is under way",
                    hint="wait for it, or `raywatch rollout abort`",
                )
            if version == watch.keeper.target:
                raise Refused(f"`{version}` is what `{watch.spec.name}` serves already")
            watch.keeper.blobs[version] = self._blob(version)
            now = self.clock.monotonic()
            watch.rollout, steps = rollout.begin(watch.keeper.target, version, now)
            words = " ".join(s.words for s in steps if isinstance(s, rollout.Say))
            self.say("rollout", f"{words} (asked by {who})", detector=watch.spec.name)
            self._note(watch)
            return words

    def rollout_abort(self, detector: str, who: str) -> str:
        """Turn a rollout round."""
        with self._lock:
            watch = self._one(detector)
            if not watch.rolling:
                raise Refused(f"no rollout of `{watch.spec.name}` is under way")
            assert watch.rollout is not None
            now = self.clock.monotonic()
            watch.rollout, steps = rollout.back(watch.rollout, now, f"asked by {who}", person=True)
            words = " ".join(s.words for s in steps if isinstance(s, rollout.Say))
            if words:
                self.say("rollout", words, detector=watch.spec.name)
                self._note(watch)
            return words or "it goes back already"

    def rollout_status(self, detector: str) -> dict[str, Any]:
        """Where a rollout is."""
        with self._lock:
            watch = self._one(detector)
            keeper = watch.keeper
            return {
                "detector": watch.spec.name,
                "serves": keeper.target,
                "under_way": watch.rolling,
                "rollout": rollout.to_fields(watch.rollout) if watch.rollout else None,
                "lanes": {str(lane): version for lane, version in keeper.lanes.items()},
                "scorers": [
                    {"name": s.name, "version": s.version, "state": s.state} for s in keeper.seen()
                ],
            }

    def _one(self, detector: str) -> Watch:
        if not detector and len(self.watches) == 1:
            return next(iter(self.watches.values()))
        if detector not in self.watches:
            known = ", ".join(f"`{name}`" for name in self.watches)
            raise ConfigError(f"no detector `{detector}` runs here", hint=f"there are {known}")
        return self.watches[detector]

    def stop(self, wait_s: float) -> list[str]:
        """End everything: owners finish and commit first. Returns what did not end in time."""
        self._closing.set()
        self._thread.join(5.0)
        self.say("info", "stops: owners finish and commit")
        late = self.crew.stop_owners(wait_s)
        for name in list(self.crew.posts):
            self.crew.end(name)
        self.reader.close()
        self.page.close()
        return late


def _object(value: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(value or b"null")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
