"""One detector's owners and scorers: keeps as many alive as are wanted, and tells owners of them.

Level-triggered: `tick` looks at what is, compares it with what should be, and takes the steps
between. A supervisor that was restarted adopts what runs and goes on; nothing else is remembered.

Names say what an actor is: `hosts.owner-1.g3` is the third holder of owner seat 1, and
`hosts.scorer-17` the 17th scorer. Scorers are never reused. A scorer serves once it has reported,
which it does when its model is loaded and warm; one that is to go leaves the roster first and is
ended when every owner has the new roster and it has nothing left to answer.
"""

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from raywatch.actors.owner import OwnerReport, Roster
from raywatch.actors.ports import Clock
from raywatch.actors.runtime import Pool
from raywatch.actors.scorer import ScorerReport
from raywatch.cluster import assign, spread
from raywatch.cluster.deployment import Deployment, Detection
from raywatch.cluster.journal import Kind
from raywatch.cluster.rollout import ScorerSeen, ScorerState
from raywatch.cluster.runtime import Crew, Post
from raywatch.models.scorer import ModelSpec

HUNG_S = 6.0  # An actor that owes its report for this long is replaced.
# Brokers fence who stands still (a machine that was suspended), and nobody else takes the lane
# then: a holder that stays fenced for this long is replaced. Bounds a quarrel of two deployments.
FENCED_S = 5.0
ROOM_S = 20.0  # After this a new owner that has not started is taken to have found no room.
START_MAX_S = 300.0  # An actor that never reported is given up after this.
DRAIN_MAX_S = 30.0  # A draining scorer is ended after this, whatever it still holds.
ADOPT_S = 10.0  # Longest wait for actors that an earlier supervisor left to say what they are.
BACKOFF_MAX_S = 30.0  # Longest pause between two starts of a version that does not start.
STANDBY_S = 10.0  # Between two attempts to start who stands by for an owner.
SPREAD_S = 20.0  # Between two attempts to get the pool off a single machine.
STARTS_KEPT = 20
FAILED_MAX = 3  # A version that failed to start so often is waited for by no lane.

Say = Callable[[Kind, str, str], None]  # kind, sentence, label of the mark on the page


@dataclass(slots=True)
class Scorer:
    """A scorer as the keeper sees it."""

    name: str
    version: str
    started: float
    ready: float | None = None
    draining: float | None = None


class Keeper:
    """The actors of one detector."""

    def __init__(
        self, deployment: Deployment, detection: Detection, crew: Crew, clock: Clock, say: Say
    ) -> None:
        self.detection, self.spec = detection, detection.spec
        self._deployment, self._crew, self._clock, self._say = deployment, crew, clock, say
        self.scorers: dict[str, Scorer] = {}
        self.seats: dict[int, str] = {}  # owner seat -> name of its holder
        self.leaving: dict[str, float] = {}  # former holders, and since when
        self.standbys: dict[int, str] = {}  # owner seat -> who stands by for its holder
        self._stood_by: dict[int, float] = {}  # seat -> when a standby was last started
        self._generations: dict[int, int] = {}  # seat -> highest one used
        self._fenced: dict[str, float] = {}  # holders that lost a lane, and since when
        self.target = detection.version
        self.lanes: dict[int, str] = dict.fromkeys(detection.lanes, detection.version)
        self.models: dict[str, ModelSpec] = {}
        self.starts_s: list[float] = []
        self.blobs: dict[str, bytes] = {}
        self.deaths = 0
        self.failed: dict[str, tuple[int, str]] = {}  # version -> starts that failed, why the last
        self._failed_at: dict[str, float] = {}
        self._awaited: set[str] = set()  # adopted, not heard of yet
        self._guest = ""  # one scorer more than wanted, for a while, so that another may go
        self._guested = float("-inf")  # when it was started
        self._began = clock.monotonic()
        self._roster = Roster(0, {}, {}, author=uuid.uuid4().hex[:8])
        self._rostered: dict[str, str] = {}
        self._numbers = 0
        count = min(deployment.owners, len(detection.lanes))
        self.placement = assign.owners(detection.lanes, count)
        self._adopt()

    # ---- start and restart -----------------------------------------------------------------

    def _adopt(self) -> None:
        """Take over what an earlier supervisor left running."""
        now = self._clock.monotonic()
        for name in self._crew.adopt(f"{self.spec.name}."):
            seat = re.search(r"\.owner-(\d+)\.g(\d+)$", name)
            number = re.search(r"\.scorer-(\d+)$", name)
            if seat:
                index = int(seat.group(1))
                used = self._generations.get(index, 0)
                self._generations[index] = max(used, int(seat.group(2)))
                if self._generation(self.seats.get(index, "")) < int(seat.group(2)):
                    if index in self.seats:
                        self.leaving[self.seats[index]] = now
                    self.seats[index] = name
                else:
                    self.leaving[name] = now
            elif number:
                self._numbers = max(self._numbers, int(number.group(1)))
                self.scorers[name] = Scorer(name, "", now)
        self._awaited = {*self.scorers, *self.seats.values()}

    @property
    def adopting(self) -> bool:
        """Whether what an earlier supervisor left has yet to say what it is.

        Until then nothing is started, drained or published: a scorer that has not spoken yet is
        not a scorer that is missing. Bounded by ADOPT_S.
        """
        return bool(self._awaited)

    def _hear(self, now: float) -> None:
        """Strike off who spoke or died."""
        reports = {**self.reports(), **self.scorer_reports()}
        present = {*self.scorers, *self.seats.values()}
        adopted = self.adopting
        self._awaited = {n for n in self._awaited if n in present and n not in reports}
        if now - self._began > ADOPT_S:
            self._awaited = set()
        if adopted and not self.adopting:
            self._know_standbys()

    def _know_standbys(self) -> None:
        """The youngest of a seat may be who stands by: then the one before it is the holder."""
        for seat, name in self.seats.items():
            holders = [n for n in self.leaving if self._seat(n) == seat]
            if _parked(self._crew.posts, name) and holders:
                self.standbys[seat] = name
                self.seats[seat] = max(holders, key=self._generation)
                del self.leaving[self.seats[seat]]

    @staticmethod
    def _generation(name: str) -> int:
        found = re.search(r"\.g(\d+)$", name)
        return int(found.group(1)) if found else 0

    # ---- what is -----------------------------------------------------------------------------

    def reports(self) -> dict[str, OwnerReport]:
        """The newest report of each seat's holder."""
        owners = self._crew.owners()
        return {n: owners[n] for n in self.seats.values() if n in owners}

    def scorer_reports(self) -> dict[str, ScorerReport]:
        """The newest report of each scorer of this detector."""
        return {n: r for n, r in self._crew.scorers().items() if n in self.scorers}

    def counted(self, version: str | None = None) -> tuple[int, int, int]:
        """Scorers (of a version) that serve, start and drain."""
        mine = [s for s in self.scorers.values() if version is None or s.version == version]
        draining = sum(s.draining is not None for s in mine)
        serving = sum(s.ready is not None and s.draining is None for s in mine)
        return serving, len(mine) - draining - serving, draining

    def using(self, version: str) -> bool:
        """Whether a lane may still need this version; a lane nobody has heard of may need any.

        A lane that changes needs its old version until all that it pulled before is scored, and
        its next owner would need it for the gap up to there.
        """
        told = [lane for report in self.reports().values() for lane in report.lanes]
        said = {lane.version for lane in told if lane.state not in ("stopped", "blocked")}
        unheard = len(self.reports()) < len(self.seats)
        return version in self.lanes.values() or unheard or not said.isdisjoint({"", version})

    def _stranded(self) -> list[str]:
        """Versions that lanes wait for and nobody serves: the last scorer died, or was ended."""
        told = [lane for report in self.reports().values() for lane in report.lanes]
        needed = {lane.version for lane in told if lane.state not in ("stopped", "blocked")}
        held = {s.version for s in self.scorers.values() if s.draining is None}
        return sorted((needed & self.blobs.keys()) - held)

    # ---- what should be ----------------------------------------------------------------------

    def tick(self, wanted: int | None) -> None:
        """One round; `wanted` scorers of the version in service, None while a rollout decides."""
        self._observe_scorers()
        self._observe_owners()
        self._hear(self._clock.monotonic())
        if self.adopting:
            return
        self._stand_by()
        if wanted is not None:
            self._size(self.target, wanted)
        for version in self._stranded():
            self.start(version)
        self._end_drained()
        self._publish()

    def seen(self) -> list[ScorerSeen]:
        """Scorers as a rollout sees them."""
        return [
            ScorerSeen(s.name, s.version, _state(s)) for s in self.scorers.values() if s.version
        ]

    def start(self, version: str) -> str:
        """Start one scorer of a version. No name: the last one failed, it is too soon."""
        count, _ = self.failed.get(version, (0, ""))
        pause_s = min(BACKOFF_MAX_S, 0.5 * 2.0**count)
        if count and self._clock.monotonic() - self._failed_at[version] < pause_s:
            return ""
        self._numbers += 1
        name = f"{self.spec.name}.scorer-{self._numbers}"
        pool = self._deployment.pool
        full = spread.crowded(each.node for each in self._placed(version))
        self._crew.start_scorer(
            name, blob=self.blobs[version], device=pool.device, cpus=pool.cpus, avoid=full
        )
        self.scorers[name] = Scorer(name, version, self._clock.monotonic())
        return name

    def drain(self, name: str) -> None:
        """Give a scorer no new batch and end it when it has none left.

        The last one of a version stays while lanes use it: whoever asked has to ask again.
        """
        scorer = self.scorers.get(name)
        if scorer is None or scorer.draining is not None:
            return
        mine = (s for s in self.scorers.values() if s.version == scorer.version)
        others = sum(s.ready is not None and s.draining is None for s in mine if s is not scorer)
        if others or not self.using(scorer.version):
            scorer.draining = self._clock.monotonic()

    def _observe_scorers(self) -> None:
        now = self._clock.monotonic()
        for name, scorer in list(self.scorers.items()):
            post = self._crew.posts[name]
            report = post.report
            if isinstance(report, ScorerReport) and scorer.ready is None:
                # Of an adopted one only its own part of the start is known.
                took_s = now - scorer.started if scorer.version else report.warm_s
                scorer.ready, scorer.version = now, report.model.version
                self.models[scorer.version] = report.model
                self.starts_s = [*self.starts_s, took_s][-STARTS_KEPT:]
                self.failed.pop(scorer.version, None)
            why = post.gone
            if not why and scorer.ready is not None and post.silent_s(now) > HUNG_S:
                why = f"it did not answer for {post.silent_s(now):.0f} s"
            if not why and scorer.ready is None and now - scorer.started > START_MAX_S:
                why = f"it was not warm after {START_MAX_S:.0f} s"
            if why:
                self._crew.end(name)
                del self.scorers[name]
                if scorer.ready is None:
                    count, _ = self.failed.get(scorer.version, (0, ""))
                    self.failed[scorer.version] = (count + 1, why)
                    self._failed_at[scorer.version] = now
                if scorer.draining is None:
                    self.deaths += 1
                    words = f"scorer {name} is gone ({why}); another takes its place"
                    self._say("fault", words, "scorer lost")

    def _observe_owners(self) -> None:
        now = self._clock.monotonic()
        for seat in sorted(set(self.placement.values())):
            name = self.seats.get(seat)
            if name is None:
                self._start_owner(seat)
                continue
            post = self._crew.posts[name]
            heir = self.standbys.get(seat, "")
            why = post.gone or self._trouble(post, now)
            if post.unreachable and _parked(self._crew.posts, heir):
                why = why or "it cannot be reached"
            if why:
                self._replace(seat, why, now)
            holder = self.seats[seat]
            if _parked(self._crew.posts, holder) and not self.adopting:
                self._crew.begin(holder, self._roster, self._rostered)
        for name in list(self.leaving):
            if self._keeps_seat(name, now):
                continue
            heir = self.reports().get(self._successor(name))
            if name not in self._crew.posts or (heir is not None and not heir.parked):
                self._crew.end(name)
                del self.leaving[name]
                self._fenced.pop(name, None)

    def _replace(self, seat: int, why: str, now: float) -> None:
        """Give the lanes of a seat to who stands by, warm or not yet, or to a new owner."""
        name, heir = self.seats[seat], self.standbys.pop(seat, "")
        to = f"go to {heir}, which stood by" if heir else "get another owner"
        self._say("fault", f"owner {name} is gone ({why}); its lanes {to}", "owner lost")
        self.deaths += 1
        if self._crew.posts[name].gone:
            self._crew.end(name)
        else:
            # The old process may live on, and go on should it only have been slow: it is ended
            # when the new one is up, which fences its lanes. Later, it might take them back.
            self.leaving[name] = now
        if heir:
            self.seats[seat] = heir
        else:
            self._start_owner(seat)

    def _keeps_seat(self, name: str, now: float) -> bool:
        """Whether an owner that works again stays, as its successor has not started.

        On a full cluster it may have the only place there is, for which the other waits.
        """
        posts, since, heir = self._crew.posts, self.leaving[name], self._successor(name)
        if name not in posts or heir not in posts or posts[heir].heard is not None:
            return False
        post = posts[name]
        fresh = not post.gone and post.heard is not None and post.heard > since
        if now - since < ROOM_S or not fresh or not _works(post.report):
            return False
        self._say("info", f"owner {name} works again: {heir} found no room", "owner back")
        self._crew.end(heir)
        self.seats[next(seat for seat, each in self.seats.items() if each == heir)] = name
        del self.leaving[name]
        return True

    def _trouble(self, post: Post, now: float) -> str:
        """Why the holder of a seat has to be replaced; empty if it need not."""
        if post.heard is None:
            late = now - post.started > START_MAX_S
            return f"it did not start within {START_MAX_S:.0f} s" if late else ""
        if post.silent_s(now) > HUNG_S:
            return f"it did not answer for {post.silent_s(now):.0f} s"
        report = post.report
        lanes = report.lanes if isinstance(report, OwnerReport) else ()
        lost = [str(lane.lane) for lane in lanes if lane.state == "fenced"]
        if not lost:
            self._fenced.pop(post.name, None)
            return ""
        if now - self._fenced.setdefault(post.name, now) < FENCED_S:
            return ""
        return f"brokers no longer let it write for lanes {', '.join(lost)}"

    def _successor(self, name: str) -> str:
        return self.seats.get(self._seat(name), "")

    @staticmethod
    def _seat(name: str) -> int:
        found = re.search(r"\.owner-(\d+)\.", name)
        assert found is not None, name
        return int(found.group(1))

    def _stand_by(self) -> None:
        """Keep one warm successor beside each owner that works, if that is wanted."""
        if not self._deployment.standby:
            return
        now, posts = self._clock.monotonic(), self._crew.posts
        for seat, holder in self.seats.items():
            name = self.standbys.get(seat, "")
            at, late = self._node(holder), now - self._stood_by.get(seat, -STANDBY_S) >= STANDBY_S
            works = _works(self.reports().get(holder))
            near = late and works and at and at == self._node(name)
            moves = near and self._crew.room(self._deployment.owner_cpus) - {at}
            if name and (moves or posts[name].gone or self._trouble(posts[name], now)):
                self._crew.end(name)
                del self.standbys[seat]
                if moves:
                    words = f"who stands by for {holder} moves to another machine"
                    self._say("info", words, "standby moves")
            if seat not in self.standbys and late and works:
                self._stood_by[seat] = now
                self.standbys[seat] = self._start_owner(seat, parked=True, avoid=at)

    def _node(self, name: str) -> str:
        """The machine of an owner or a scorer; empty if it has not said."""
        post = self._crew.posts.get(name)
        report = None if post is None or post.gone else post.report
        return report.node_id if isinstance(report, OwnerReport | ScorerReport) else ""

    def _start_owner(self, seat: int, *, parked: bool = False, avoid: str = "") -> str:
        generation = self._generations[seat] = self._generations.get(seat, 0) + 1
        name = f"{self.spec.name}.owner-{seat}.g{generation}"
        mine = {n: p for n, p in self.detection.lanes.items() if self.placement[n] == seat}
        self._crew.start_owner(
            name, spec=self.spec, lanes=mine, log=self._deployment.log,
            store=self._deployment.store, cpus=self._deployment.owner_cpus, parked=parked,
            avoid=avoid,
        )  # fmt: skip
        if not parked:
            self.seats[seat] = name
        return name

    def _size(self, version: str, count: int) -> None:
        serving, starting, _ = self.counted(version)
        unnamed = sum(not s.version for s in self.scorers.values())  # adopted, not heard of yet
        for _ in range(count - serving - starting - unnamed):
            self.start(version)
        for name in spread.surplus(self._placed(version), count + self._guests(version, count)):
            self.drain(name)
        for scorer in self.scorers.values():
            if scorer.version not in ("", version) and not self.using(scorer.version):
                self.drain(scorer.name)

    def _placed(self, version: str) -> list[spread.Placed]:
        """Scorers of a version that are to stay, and where they are."""
        return [
            spread.Placed(s.name, self._node(s.name), s.ready is not None, s.started)
            for s in self.scorers.values()
            if s.version == version and s.draining is None
        ]

    def _guests(self, version: str, count: int) -> int:
        """How many more scorers than wanted there may be: one, while it starts elsewhere."""
        now, placed = self._clock.monotonic(), self._placed(version)
        late, settled = now - self._guested >= SPREAD_S, all(s.ready for s in placed)
        if late and settled and len(placed) == count:
            pool = self._deployment.pool
            if spread.huddled(placed, self._crew.room(pool.cpus, pool.device)):
                self._guested, self._guest = now, self.start(version)
                if self._guest:
                    words = f"all {count} scorers are on one machine: one moves to another"
                    self._say("info", words, "scorer moves")
        guest = self.scorers.get(self._guest)
        return int(guest is not None and guest.ready is None and now - guest.started < ROOM_S)

    def _end_drained(self) -> None:
        """End scorers that no owner can send to any more and that have nothing left to answer."""
        now = self._clock.monotonic()
        reports = self.reports()
        told = all(self._has_roster(report) for report in reports.values())
        told = told and 0 < len(reports) == len(self.seats)
        for name, scorer in list(self.scorers.items()):
            if scorer.draining is None or name in self._rostered:
                continue
            # An owner that has the roster sends it nothing more: what it says is in flight is all.
            idle = told and not any(r.loads.get(name) for r in reports.values())
            if idle or scorer.ready is None or now - scorer.draining > DRAIN_MAX_S:
                self._crew.end(name)
                del self.scorers[name]

    def _publish(self) -> None:
        """Tell owners of their pool, whenever it changed or they missed it."""
        serving = {
            s.name: s.version
            for s in self.scorers.values()
            if s.ready is not None and s.draining is None
        }
        kept = {v for v in self.blobs if self.using(v)} | set(serving.values())
        models = {v: m for v, m in self.models.items() if v in kept}
        known = frozenset(v for v in self.blobs if self.failed.get(v, (0, ""))[0] < FAILED_MAX)
        roster = replace(self._roster, models=models, lanes=dict(self.lanes), known=known)
        told = (self._rostered, self._roster.lanes, self._roster.known)
        highest = self._highest()
        if (serving, roster.lanes, known) != told or highest >= self._roster.number:
            number = max(self._roster.number, highest) + 1
            self._roster, self._rostered = replace(roster, number=number), serving
        for name, report in self.reports().items():
            if not self._has_roster(report):
                self._crew.enlist(name, self._roster, self._rostered)

    def _highest(self) -> int:
        """The newest roster that an owner has from a supervisor before this one; -1: none.

        Not a time: the wall clock may be set back, and owners ignore what looks older.
        """
        others = (r for r in self.reports().values() if r.roster_by != self._roster.author)
        return max((report.roster for report in others), default=-1)

    def _has_roster(self, report: OwnerReport) -> bool:
        mine = self._roster
        return (report.roster, report.roster_by) == (mine.number, mine.author)

    def pool(self) -> Pool | None:
        """The pool as a restarted owner asks for it; None while it is not known yet."""
        return None if self.adopting else self._crew.pool(self._roster, self._rostered)


def _works(report: object) -> bool:
    """Whether an owner reports lanes that all work."""
    lanes = report.lanes if isinstance(report, OwnerReport) else None
    return lanes is not None and all(x.state in ("running", "catching up") for x in lanes)


def _parked(posts: Mapping[str, Post], name: str) -> bool:
    """Whether this owner stands by, warm."""
    post = posts.get(name)
    report = None if post is None or post.gone else post.report
    return isinstance(report, OwnerReport) and report.parked


def _state(scorer: Scorer) -> ScorerState:
    if scorer.draining is not None:
        return "draining"
    return "starting" if scorer.ready is None else "ready"
