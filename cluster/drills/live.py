"""Hurts a part of a deployment that runs, and tells whether it recovered as promised.

Nobody knows which alerts a live stream will bring, so nothing can be compared: what was said, what
was committed and what was audited are judged by the laws of `alerts.py`, and what `status` and the
journal said by the rules of `story.py`. A lane is back when a record is committed that was written
after the fault; one to which nobody writes, when its owner says that it runs. Alerts of the stream
go on being raised, and are as true as ever.

Signals are sent by a hand beside the process, so nothing but the rights of the deployment is used.
A frozen process is woken in any case; were this process to die before, the supervisor replaces what
does not answer, as it would without a drill.
"""

import json
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from raywatch.actors.ports import Clock, Log, Partition, Source
from raywatch.actors.spec import DetectorSpec
from raywatch.cluster.drills import alerts as law
from raywatch.cluster.drills.faults import KINDS, Fault, Kind
from raywatch.cluster.drills.story import (
    TELL_S,
    Heard,
    Look,
    Story,
    dishonest,
    late,
    meanwhile,
    untold,
)
from raywatch.models.errors import ConfigError, RaywatchError, Refused, Unreachable

LOOK_S = 0.3  # between two looks
TAIL = 2_000  # alerts before the drill that are read: incidents that are open should be known
SETTLE_S = 5.0  # from the recovery to the verdict: sentences are written, old processes end
ASK_S = 5.0
WORKS = ("running", "catching up")


class Grip(Protocol):
    """A process that can be sent a signal."""

    pid: int

    def send(self, number: int) -> None:
        """Send it. Raises Unreachable."""
        ...

    def let_go(self) -> None:
        """No signal will be sent any more."""
        ...


@dataclass(frozen=True, slots=True)
class Scene:
    """What a drill needs of a deployment."""

    ask: Callable[..., Any]  # the supervisor: method, arguments
    grip: Callable[[str], Grip]
    log: Log
    spec: DetectorSpec
    clock: Clock
    supervisor: str  # name of its actor


@dataclass(slots=True)
class Notes:
    """Everything that was seen, oldest first."""

    looks: list[Look] = field(default_factory=list[Look])
    heard: list[Heard] = field(default_factory=list[Heard])
    audited: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    alerts: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    stamps: list[tuple[float, str, int]] = field(default_factory=list[tuple[float, str, int]])
    holders: list[list[law.Holder]] = field(default_factory=list[list[law.Holder]])
    committed: list[dict[str, int]] = field(default_factory=list[dict[str, int]])


def possible() -> list[Kind]:
    """Faults that a deployment may do to itself."""
    return [kind for kind in KINDS if kind.where == "live"]


def targets(kind: Kind, posts: Mapping[str, Any], detector: str, supervisor: str) -> list[str]:
    """Names of the actors that this fault could hurt, sorted."""
    what = kind.name.partition("-")[0].rstrip("s")
    if what == "supervisor":
        return [supervisor]
    mine = {n: p for n, p in posts.items() if n.startswith(f"{detector}.{what}-") and p["report"]}
    return sorted(n for n, post in mine.items() if what != "owner" or _holds(post))


def victims(fault: Fault, able: Sequence[str], wanted: str) -> list[str]:
    """Who is hurt. Raises ConfigError for one that cannot be, Refused where nobody is there."""
    if not able:
        raise Refused(f"nobody is there for `{fault.name}`", hint="`raywatch status` says more")
    if wanted and wanted not in able:
        raise ConfigError(f"`{wanted}` cannot be hurt by `{fault.name}`",
                          hint=f"there are {', '.join(able[:10])}")  # fmt: skip
    if fault.name == "scorers-kill":
        return list(able)
    return [wanted or fault.chosen(able)]


def hurt_lanes(posts: Mapping[str, Any], hurt: Sequence[str]) -> dict[str, list[str]]:
    """Lanes that could fall silent: those of the owners among the hurt, or all; partitions each."""
    owners = {n: p["report"] for n, p in posts.items() if ".owner-" in n and _holds(p)}
    among = {n: r for n, r in owners.items() if n in hurt} or owners
    return {
        f"lane {lane.lane}": [str(p) for p in lane.partitions]
        for report in among.values()
        for lane in report.lanes
    }


class Drill:
    """One drill on one deployment."""

    def __init__(self, scene: Scene, fault: Fault, hurt: Sequence[str]) -> None:
        self.scene, self.fault, self.hurt = scene, fault, list(hurt)
        self.notes = Notes()
        self.lanes = hurt_lanes(self._posts() or {}, self.hurt)
        self._tails: dict[str, Source] = {}

    def run(self, wait_s: float, progress: Callable[[str], None]) -> dict[str, Any]:
        """Do it, and tell what came of it. Raises Unreachable where it could not be begun."""
        clock = self.scene.clock
        with self._held() as grips, self._reading():
            self._look()
            before = {str(p): b.end for p, b in self._bounds().items()}
            at_s = clock.monotonic()
            for grip in grips:
                grip.send(signal.SIGSTOP if self.fault.seconds else signal.SIGKILL)
            # Again: what was written and committed between the look and the signal is no recovery.
            before |= {str(p): b.end for p, b in self._bounds().items()}
            progress(f"{self.fault.name}: {', '.join(self.hurt)}")
            undone_s, spoke = self._watched(at_s, before, grips, wait_s, progress)
            target = ", ".join(self.hurt)
            story = Story(self.fault, target, at_s, undone_s, tuple(self.lanes), spoke)
            self._settle(story)
        return self._told(story, before)

    def _settle(self, story: Story) -> None:
        """Look on until what the journal owes could have been said."""
        clock, since_s = self.scene.clock, self.scene.clock.monotonic()
        while (waited_s := clock.monotonic() - since_s) < TELL_S:
            if waited_s >= SETTLE_S and not untold(story, self.notes.heard):
                return
            self._look()

    # ---- doing -------------------------------------------------------------------------------

    @contextmanager
    def _held(self) -> Generator[list[Grip]]:
        grips: list[Grip] = []
        try:
            for name in self.hurt:
                grips.append(self.scene.grip(name))
            yield grips
        finally:
            for grip in grips:
                with suppress(RaywatchError):  # it was killed, or ended meanwhile
                    grip.send(signal.SIGCONT)
                with suppress(RaywatchError):
                    grip.let_go()

    def _watched(
        self,
        at_s: float,
        before: Mapping[str, int],
        grips: Sequence[Grip],
        wait_s: float,
        progress: Callable[[str], None],
    ) -> tuple[float, dict[str, float]]:
        """Look until every lane is back; when it was undone, and when each lane was back."""
        clock, spoke, frozen = self.scene.clock, dict[str, float](), bool(self.fault.seconds)
        undone_s, pids = at_s, {grip.pid for grip in grips}
        while clock.monotonic() - at_s < wait_s and (frozen or len(spoke) < len(self.lanes)):
            self._look()
            if frozen and clock.monotonic() - at_s >= self.fault.seconds:
                frozen, undone_s = False, clock.monotonic()
                for grip in grips:
                    with suppress(Unreachable):  # the supervisor ended it, as it should
                        grip.send(signal.SIGCONT)
            for lane in self._back(before, set() if undone_s > at_s else pids):
                if lane not in spoke:
                    spoke[lane] = clock.monotonic()
                    progress(f"{lane} is back after {spoke[lane] - at_s:.1f} s")
        return undone_s, spoke

    def _back(self, before: Mapping[str, int], hurt: set[int]) -> list[str]:
        """Lanes that work on what came after the fault, or that work and have nothing to do."""
        committed = self.notes.committed[-1] if self.notes.committed else {}
        ends = {str(p): b.end for p, b in self._bounds().items()}
        posts = self._posts() or {}
        running = {
            f"lane {lane.lane}"
            for name, post in posts.items()
            if ".owner-" in name and post["pid"] not in hurt and _holds(post)
            for lane in post["report"].lanes
            if lane.state in WORKS
        }
        found: list[str] = []
        for lane, partitions in self.lanes.items():
            grown = [p for p in partitions if ends.get(p, 0) > before.get(p, 0)]
            quiet = bool(ends) and not grown and lane in running
            if quiet or any(committed.get(p, 0) > before.get(p, 0) for p in grown):
                found.append(lane)
        return found

    # ---- looking -----------------------------------------------------------------------------

    def _look(self) -> None:
        """One look at everything; what does not answer is noted as that."""
        now, notes = self.scene.clock.monotonic(), self.notes
        try:
            verdict = self.scene.ask("snapshot")["verdict"]
            notes.looks.append(Look(now, str(verdict["state"]), str(verdict["words"])))
        except RaywatchError as error:
            notes.looks.append(Look(now, "unreachable", error.message))
        if (posts := self._posts()) is not None:
            notes.holders.append(holders(posts))
        with suppress(RaywatchError):
            found = self.scene.log.committed(self.scene.spec.group, self._partitions())
            notes.committed.append({str(p): c.offset for p, c in found.items()})
        self._read()
        self.scene.clock.sleep(LOOK_S)

    def _posts(self) -> dict[str, Any] | None:
        try:
            return self.scene.ask("posts")
        except RaywatchError:
            return None

    def _partitions(self) -> list[Partition]:
        known = self.scene.log.topics()
        return [Partition(t, n) for t in self.scene.spec.inputs for n in range(known.get(t, 0))]

    def _bounds(self) -> dict[Partition, Any]:
        # Labels rest for a while: that they wait says nothing of whether a lane is back.
        labels = self.scene.spec.labels
        try:
            return self.scene.log.bounds([p for p in self._partitions() if p.topic != labels])
        except RaywatchError:
            return {}

    @contextmanager
    def _reading(self) -> Generator[None]:
        """Tails of the alerts and of the audit topic."""
        spec, log = self.scene.spec, self.scene.log
        try:
            for topic, back in ((spec.alerts, TAIL), (spec.audit, 0)):
                partitions = [Partition(topic, n) for n in range(log.topics().get(topic, 0))]
                self._tails[topic] = tail = log.source("", partitions)
                bounds = log.bounds(partitions)
                tail.assign({p: max(b.low, b.end - back) for p, b in bounds.items()})
            yield
        finally:
            for tail in self._tails.values():
                tail.close()

    def _read(self) -> None:
        now, notes = self.scene.clock.monotonic(), self.notes
        for topic, tail in self._tails.items():
            with suppress(RaywatchError):
                for value in tail.fetch(5_000, 0.01).values:
                    body: dict[str, Any] = json.loads(value or b"{}")
                    if topic == self.scene.spec.alerts:
                        notes.alerts.append(body)
                        place: Mapping[str, Any] = body.get("lineage") or {}
                        where = f"{place.get('topic')}/{place.get('partition')}"
                        notes.stamps.append((now, where, int(place.get("offset", -1))))
                    elif body.get("schema") == "raywatch.journal/1":
                        notes.heard.append(Heard(now, str(body.get("words"))))
                    else:
                        notes.audited.append(body)

    # ---- telling -----------------------------------------------------------------------------

    def _told(self, story: Story, before: Mapping[str, int]) -> dict[str, Any]:
        notes = self.notes
        mine = {p for partitions in self.lanes.values() for p in partitions}
        fresh = [at for at, p, offset in notes.stamps if p in mine and offset >= before.get(p, 0)]
        committed = notes.committed[-1] if notes.committed else {}
        ends = {(t, int(n)): o for p, o in committed.items() for t, _, n in (p.rpartition("/"),)}
        broken = [
            *law.unlawful(notes.alerts), *law.beyond(notes.alerts, ends),
            *law.backward(notes.committed), *law.shared(notes.holders),
            *law.restarted(notes.audited), *untold(story, notes.heard),
            *dishonest(story, notes.looks),
        ]  # fmt: skip
        slow = late(story)
        state = "broken" if broken else "late" if slow else "held"
        return {
            "drill": self.fault.name, "target": story.target, "verdict": state,
            "lanes": {lane: round(t - story.at_s, 2) for lane, t in story.spoke.items()},
            "back_s": story.back_s,
            "first_alert_s": round(min(fresh) - story.at_s, 2) if fresh else None,
            "alerts": sum(at >= story.at_s for at, _, _ in notes.stamps),
            "broken": broken, "late": slow,
            "meanwhile": meanwhile(story, notes.heard, notes.looks),
        }  # fmt: skip


def _holds(post: Mapping[str, Any]) -> bool:
    """Whether an owner holds lanes, and does not only stand by."""
    return post["report"] is not None and not post["report"].parked


def holders(posts: Mapping[str, Any]) -> list[law.Holder]:
    """Who says that he holds which lane."""
    return [
        law.Holder(lane.lane, f"{name}/{post['report'].epoch}", lane.state,
                   sum(lane.committed.values()))
        for name, post in sorted(posts.items())
        if ".owner-" in name and _holds(post)
        for lane in post["report"].lanes
    ]  # fmt: skip
