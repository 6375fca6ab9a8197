"""Watches over a deployment: observes, decides by pure functions, carries out, writes it down.

Level-triggered, about once a second. What must outlive the supervisor is in the audit topic: which
version each detector is to serve, and the rollout under way. What runs is found by name. So a
restart needs no special path, and takes nothing from owners or scorers, which go on meanwhile. It
begins when the audit topic was read: without brokers it waits for them, and says so.
"""

import json
import os
import threading
import time
import traceback
from typing import Any

from raywatch.actors import fencing
from raywatch.actors.clock import SystemClock
from raywatch.actors.ports import Log, Out, Partition
from raywatch.actors.runtime import Pool, open_log
from raywatch.actors.store import open_store
from raywatch.cluster import journal, rollout
from raywatch.cluster.deployment import Deployment, Detection, artifact_name
from raywatch.cluster.keeper import Keeper
from raywatch.cluster.metrics import Metrics
from raywatch.cluster.page import Page
from raywatch.cluster.reader import Reader
from raywatch.cluster.recall import recall
from raywatch.cluster.runtime import Crew
from raywatch.cluster.view import View
from raywatch.cluster.watch import Watch
from raywatch.cluster.watchdog import Watchdog
from raywatch.models.artifact import proven
from raywatch.models.errors import (
    ArtifactError,
    ConfigError,
    RaywatchError,
    Refused,
    Unreachable,
)  # fmt: skip

TICK_S = 0.5
ASK_S = 0.3  # Longest wait for reports in a tick: the slow ones come with a later one.
AGAIN_S = 3_600.0  # What must be remembered is written again this often: it stays among those.
BLOCKED_S = 60.0  # A lane that was not blocked for so long is spoken of anew if it is.
PAGE_AGAIN_S = 10.0  # Between two attempts to have the page's port.
BEGIN_S = 2.0  # Between two attempts to begin.
HANG_S = 180.0  # A round waits for brokers for a minute at most; one that takes longer hangs.


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
        self._stuck: RaywatchError = Unreachable(f"topic `{self.audit}` is being read")
        self._noted = self._tried = self._drilled = self.began
        self._blocked: dict[tuple[str, ...], float] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._latest: dict[str, Any] = {}
        self.view = View(self)
        self.metrics = Metrics()
        self.page = Page(self.snapshot, self.metrics.render, deployment.page)
        self._url = ""
        self._watchdog = Watchdog(HANG_S, "the supervisor")
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()
        self._watchdog.start()

    # ---- starting --------------------------------------------------------------------------

    def _begin(self) -> bool:
        """Learn what was decided before, take over what runs. Whether that was possible."""
        try:
            told, sentences = recall(self.log, self.audit, self.clock)
            watches = {d.spec.name: self._watch(d, told) for d in self.deployment.detections}
        except RaywatchError as error:
            self._stuck = error
            return False
        adopted = sum(len(w.keeper.scorers) + len(w.keeper.seats) for w in watches.values())
        trouble = self._open_page()
        if trouble is not None and not adopted:
            self._stuck = trouble
            return False
        for sentence in sentences:
            self._remember(sentence)
        with self._lock:
            self.watches = watches
        for note in self.deployment.notes:
            self.say("info", note)
        found = f"; {adopted} actors run already" if adopted else ""
        label = "supervisor" if adopted else "start"
        self.say("start", f"watches {', '.join(watches)}{found}", label=label)
        if trouble is not None:
            self.say("fault", f"no page until that has changed: {trouble.message}")
        for name in sorted(watches.keys() & told.keys()):
            self._note(watches[name])
        self.reader.start()
        return True

    def _open_page(self) -> ConfigError | None:
        """Serve the page; what runs is watched over without one, too."""
        try:
            self._url = self.page.start()
        except ConfigError as error:
            return error
        return None

    def _watch(self, detection: Detection, told: dict[str, dict[str, Any]]) -> Watch:
        def say(kind: journal.Kind, words: str, label: str) -> None:
            self.say(kind, words, detector=detection.spec.name, label=label)

        fencing.declare(self.store, detection.spec)
        last = told.get(detection.spec.name, {})
        keeper = Keeper(self.deployment, detection, self.crew, self.clock, say)
        watch = Watch(detection, keeper, self.deployment.pool)
        if keeper.scorers and isinstance(last.get("scorers"), int):
            watch.remember(last["scorers"], self.clock.monotonic())
        if last.get("configured") == detection.version and last.get("target"):
            keeper.target = str(last["target"])
            keeper.lanes = dict.fromkeys(detection.lanes, keeper.target)
            under_way = last.get("rollout")
            if isinstance(under_way, dict):
                found = rollout.of_fields(under_way, self.clock.monotonic())
                if found is not None and not found.over:
                    watch.begin(found)
                    keeper.lanes = self._lanes_of(last, detection, found)
        rolling = {watch.rollout.before, watch.rollout.after} if watch.rollout else set[str]()
        for version in {keeper.target, *keeper.lanes.values()} | rolling:
            keeper.blobs[version] = self._blob(version)
        return watch

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
        return proven(blob, version)

    # ---- the loop --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing.is_set() and not self._begin():
                self._watchdog.feed()
                self._closing.wait(BEGIN_S)
            while not self._closing.is_set():
                self._watchdog.feed()
                began = time.monotonic()
                with self._lock:
                    self.tick()
                self.crew.rest(TICK_S - (time.monotonic() - began))
        except BaseException as error:
            traceback.print_exception(error)
            os._exit(1)

    def tick(self) -> None:
        """Observe, decide, carry out."""
        self.crew.ask(ASK_S)
        now = self.clock.monotonic()
        for watch in self.watches.values():
            adopting = watch.keeper.adopting
            watch.keeper.tick(None if watch.rolling else watch.decision.scorers)
            if watch.keeper.adopting:
                continue
            if adopting:
                watch.recall()
            if watch.rolling:
                self._roll(watch, now)
            self._scale(watch, now)
        if not self._url and now - self._tried > PAGE_AGAIN_S:
            self._tried = now
            self._open_page()
        if now - self._noted > AGAIN_S:
            self._noted = now
            for watch in self.watches.values():
                self._note(watch)
        known = {entry.words for entry in self.journal}
        for words in sorted({each.words for each in self.reader.growth} - known):
            self.say("fault", words, label="partitions added")
        for words in sorted({w.crowded() for w in self.watches.values()} - known - {""}):
            self.say("fault", words, label="keys full")
        for words in sorted({w.astray() for w in self.watches.values()} - known - {""}):
            self.say("fault", words, label="labels astray")
        self._say_blocked(now)
        self._latest = self.view.snapshot(self.clock.now_ms(), now)
        self.metrics.update(self._latest)

    def _say_blocked(self, now: float) -> None:
        """Each reason once while it lasts; how brokers put it may differ from try to try."""
        said = [words for watch in self.watches.values() for words in watch.blocked()]
        there = {tuple(w.split(": ", 3)[:3]): w for w in said if " is blocked: " in w}
        for what, words in there.items():
            if what not in self._blocked:
                self.say("fault", words, label="blocked")
        kept = {what: at for what, at in self._blocked.items() if now - at < BLOCKED_S}
        self._blocked = kept | dict.fromkeys(there, now)

    def _scale(self, watch: Watch, now: float) -> None:
        decision, before = watch.decide(now, self.reader)
        if decision.kind != "hold":
            n, why = decision.scorers, decision.reason.partition(": ")[2]
            words = f"{decision.kind}: {before} to {n} scorers; {why}"
            label = f"{n - before:+d} scorer{'s' if abs(n - before) != 1 else ''}"
            self.say(decision.kind, words, detector=watch.spec.name, n=n, label=label)
            self._note(watch)

    def _roll(self, watch: Watch, now: float) -> None:
        assert watch.rollout is not None
        keeper = watch.keeper
        seen = watch.rollout_seen(now, self.reader)
        broken = watch.broken()
        if broken:
            watch.rollout, steps = rollout.back(watch.rollout, now, broken, person=False)
            self._say_steps(watch, steps)
            self._note(watch)
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
                    over = {"closes": watch.rollout.after} if watch.rollout.over else {}
                    self.say("rollout", words, detector=watch.spec.name, **over)
        if watch.rollout.over:
            keeper.target = watch.rollout.toward
        if changed:
            self._note(watch)

    def _say_steps(self, watch: Watch, steps: list[rollout.Step]) -> str:
        words = " ".join(s.words for s in steps if isinstance(s, rollout.Say))
        if words:
            self.say("rollout", words, detector=watch.spec.name)
        return words

    def _note(self, watch: Watch, *, now: bool = False) -> None:
        """Write down what another supervisor would have to know.

        `now`: durable on return, raises Unreachable; else when the log takes it.
        """
        keeper = watch.keeper
        entry = {
            "schema": "raywatch.audit/1",
            "what": "serve",
            "detector": watch.spec.name,
            "at_ms": self.clock.now_ms(),
            "configured": watch.detection.version,
            "target": keeper.target,
            "scorers": watch.decision.scorers,
            "lanes": {str(lane): version for lane, version in keeper.lanes.items()},
            "rollout": rollout.to_fields(watch.rollout) if watch.rollout else None,
        }
        out = Out(self.audit, watch.spec.name.encode(), json.dumps(entry).encode())
        (self.reader.write_now if now else self.reader.write)(out)

    def say(self, kind: journal.Kind, words: str, **fields: journal.Value) -> None:
        """A sentence for the journal, the audit topic and the log."""
        entry = journal.Entry(self.clock.now_ms(), kind, words[: journal.WORDS_MAX], fields)
        self._remember(entry)
        self.reader.write(Out(self.audit, b"journal", journal.to_json(entry)))
        print(json.dumps({"kind": kind, "words": words, **fields}), flush=True)

    def _remember(self, entry: journal.Entry) -> None:
        """Into the journal; a sentence that ends something ends its mark on the page."""
        self.journal.take(entry)
        closes = entry.fields.get("closes")
        if isinstance(closes, str):
            self.journal.close(entry.kind, closes, entry.at_ms)

    # ---- what others ask -------------------------------------------------------------------

    def pool(self, detector: str) -> Pool | None:
        """The pool of a detector, for an owner that was just started."""
        with self._lock:
            watch = self.watches.get(detector)
            return watch.keeper.pool() if watch is not None else None

    def starting(self) -> str:
        """What is still missing before every lane works or waits for a person; empty: nothing.

        Raises ConfigError or ArtifactError where it cannot begin before that was changed.
        """
        with self._lock:
            if not self.watches:
                if isinstance(self._stuck, ConfigError | ArtifactError):
                    raise self._stuck
                return self._stuck.message
            for watch in self.watches.values():
                if watch.keeper.adopting:
                    return f"{watch.spec.name}: what runs already says what it is"
                serving, starting, _ = watch.keeper.counted()
                if not serving:
                    return f"{watch.spec.name}: {starting} scorers load their model"
                reports = watch.keeper.reports()
                for seat, name in sorted(watch.keeper.seats.items()):
                    if name not in reports:
                        return f"{watch.spec.name}: owner {seat} starts"
                for report in reports.values():
                    for lane in report.lanes:
                        if lane.state not in ("running", "blocked"):
                            words = f" ({lane.words})" if lane.words else ""
                            return f"{watch.spec.name}: lane {lane.lane} is {lane.state}{words}"
        return ""

    def blocked(self) -> list[str]:
        """Lanes that wait for a person, and what for."""
        with self._lock:
            return [words for watch in self.watches.values() for words in watch.blocked()]

    def snapshot(self) -> dict[str, Any]:
        """What the page shows, as of the last tick. Any thread may ask; never waits."""
        words = f"the supervisor has not begun: {self._stuck.message}"
        verdict = {"state": "unknown", "words": words}
        return self._latest or {"schema": "raywatch.snapshot/1", "verdict": verdict}

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

    def digest(self) -> str:
        """Of the config that it was made of."""
        return self.deployment.digest

    def partitions(self) -> dict[str, list[Partition]]:
        """What each detector watches."""
        return {d.spec.name: d.partitions for d in self.deployment.detections}

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
            watch.keeper.failed.pop(version, None)
            before = watch.rollout
            now = self.clock.monotonic()
            found, steps = rollout.begin(watch.keeper.target, version, now)
            watch.begin(found)
            try:
                self._note(watch, now=True)
            except Unreachable:
                watch.rollout = before
                self._note(watch)  # if the first one was written after all, this one counts
                raise
            words = " ".join(s.words for s in steps if isinstance(s, rollout.Say))
            asked = f"{words} (asked by {who})"
            self.say("rollout", asked, detector=watch.spec.name, label=version)
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
            words = self._say_steps(watch, steps)
            if words:
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

    def drill(self, note: dict[str, str | float | None]) -> None:
        """Write down that a drill begins (`lasts_s`) or ends; it is in the log on return.

        Raises ConfigError where none may be held, Refused where one is, Unreachable.
        """
        now, lasts_s = self.clock.monotonic(), note.get("lasts_s")
        if not self.deployment.drills:
            raise ConfigError(
                "this deployment does not allow drills",
                hint="set `drills: allow` in its config, and deploy it again",
            )
        if lasts_s is not None and now < self._drilled:
            raise Refused("another drill is being held", hint="wait until it ends")
        at = {"schema": "raywatch.audit/1", "what": "drill", "at_ms": self.clock.now_ms()}
        self.reader.write_now(Out(self.audit, b"drill", json.dumps({**at, **note}).encode()))
        self._drilled = now + float(lasts_s or 0.0)
        self.say("drill", str(note["words"]), label="drill")

    def _one(self, detector: str) -> Watch:
        if not self.watches:
            raise Unreachable(self._stuck.message, hint="the supervisor has not begun yet")
        if not detector and len(self.watches) == 1:
            return next(iter(self.watches.values()))
        if detector not in self.watches:
            known = ", ".join(f"`{name}`" for name in self.watches)
            raise ConfigError(f"no detector `{detector}` runs here", hint=f"there are {known}")
        return self.watches[detector]

    def stop(self, wait_s: float) -> list[str]:
        """End everything: owners finish and commit first. Returns what did not end in time."""
        self._closing.set()
        self._watchdog.close()
        self._thread.join(5.0)
        if self.watches:
            self.say("info", "stops: owners finish and commit")
        late = self.crew.stop_owners(wait_s)
        for name in list(self.crew.posts):
            self.crew.end(name)
        if self.watches:
            self.reader.close()
        self.page.close()
        return late
