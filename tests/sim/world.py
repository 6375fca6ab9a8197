"""Ray, the machines and the supervisor as the simulator has them; everything of ours is ours.

`Owner`, `Keeper` and `rollout.step` run as they are. What is simulated is what Ray does: an actor
that dies is gone, and is heard of; calls arrive late or not at all; `kill` may not
reach a process that stands still or is cut off, which then lives on beside its successor.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from raywatch.actors import joining, kafka, kafka_rules, lane, owner, saving
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.owner import Owner, OwnerReport, Roster
from raywatch.actors.pool import Members
from raywatch.actors.ports import Partition
from raywatch.actors.scorer import ScorerReport
from raywatch.actors.spec import DetectorSpec
from raywatch.cluster import rollout
from raywatch.cluster.deployment import Deployment, Detection
from raywatch.cluster.keeper import Keeper
from raywatch.cluster.runtime import Post
from sim.broker import Broker
from sim.client import AdminClient as SimAdmin
from sim.client import library
from sim.faults import Plan
from sim.hub import Hub, Process, SimClock, SimThreads, waiting
from sim.network import KafkaException, Network
from sim.scorers import SimMember, SimScorer
from sim.store import SimStore

TICK_S = 0.5  # Of the supervisor, as in production.
SCORE_TIMEOUT_S = 1.0
NOTHING = SimpleNamespace()


@dataclass
class Actor:
    """A named actor of Ray."""

    name: str
    start: Callable[["Actor"], None]  # makes a process
    process: Process | None = None
    owner: Owner | None = None
    scorer: SimScorer | None = None
    gone: str = ""
    unheard_until: float = 0.0  # calls to it do not arrive
    machine: str = ""


class World:
    """One life's world."""

    def __init__(
        self, plan: Plan, told: Callable[..., None], *, exactly_once: bool, parts: "Parts"
    ) -> None:
        self.hub = Hub()
        self.plan, self.parts = plan, parts
        plan.now_s = self.hub.seconds
        self.events: list[tuple[Any, ...]] = []
        self.told = lambda *what: told(self.hub.seconds(), *what)
        self.clock = SimClock(self.hub)
        self.broker = Broker(self.hub, plan.jitter, self.told)
        self.store = SimStore(self.hub, plan, self.told)
        self.exactly_once = exactly_once
        self.actors: dict[str, Actor] = {}
        self.networks: dict[int, Network] = {}
        self.deployments = 0  # before the one that runs
        self.late = (0.0, 0.0)  # seconds for which the next owner is cut off: brokers, Ray
        self._incarnations: Counter[str] = Counter()

    # ---- actors ----------------------------------------------------------------------------

    def network(self) -> Network:
        """That of whoever runs now."""
        assert self.hub.current is not None
        process = self.hub.current.process
        found = self.networks.get(id(process))
        if found is None:
            found = self.networks[id(process)] = Network(self.hub, self.plan, self.broker, process)
        return found

    def room(self) -> frozenset[str]:
        """Machines that have room now, of two."""
        free = int(4 * self.plan.jitter("room"))
        return frozenset(m for bit, m in enumerate(("m0", "m1")) if free & (1 << bit))

    def start(self, actor: Actor, delay_s: float, avoid: str) -> None:
        """A process for an actor, after a while, on another machine than that if one has room."""
        self.actors[actor.name] = actor
        actor.machine = min(self.room() - {avoid}, default=avoid or "m0")

        def begin() -> None:
            if actor.gone or self.actors.get(actor.name) is not actor:
                return
            self._incarnations[actor.name] += 1  # a name may come again
            again = f"{self.deployments}." if self.deployments else ""
            number = self._incarnations[actor.name]
            process = actor.process = Process(f"{actor.name}#{again}{number}")
            process.mourners.append(lambda: self._mourn(actor, process))
            if ".owner-" in actor.name:
                brokers_s, ray_s = self.late
                process.cut_until = self.hub.now_ns + round(1e9 * brokers_s)
                actor.unheard_until = self.hub.seconds() + ray_s
                self.late = (0.0, 0.0)
            actor.start(actor)

        self.hub.at(delay_s, begin)

    def _mourn(self, actor: Actor, process: Process) -> None:
        self.told("dead", process.name)
        self.networks.pop(id(process), None)
        if actor.process is not process or actor.gone:
            return
        actor.process = actor.owner = None
        actor.gone = "simulated death"

    def end(self, name: str) -> None:
        """`ray.kill`: the actor is no more; whether its process hears of it is another matter."""
        actor = self.actors.pop(name, None)
        if actor is None:
            return
        deaf = self.hub.seconds() < actor.unheard_until
        actor.gone = actor.gone or "ended"
        process = actor.process
        if process is None or not process.alive:
            return
        fault = self.plan.draw(f"{name}/end", "end")
        frozen = process.frozen_until > self.hub.now_ns
        if deaf or (fault is not None and frozen):
            self.told("lives on", process.name)
            return
        self.hub.kill(process)

    def owner(
        self, name: str, spec: DetectorSpec, lanes: Mapping[int, tuple[Any, ...]], *,
        parked: bool, avoid: str,
    ) -> None:  # fmt: skip
        """Start an owner's actor."""

        def begin(actor: Actor) -> None:
            process = actor.process
            assert process is not None
            self.hub.spawn(process, self._own, actor, process, spec, lanes, parked)

        self.start(Actor(name, begin), 0.4 + 1.2 * self.plan.jitter(f"{name}/start"), avoid)

    def _own(
        self, actor: Actor, process: Process, spec: DetectorSpec, lanes: Mapping[int, Any],
        parked: bool,
    ) -> None:  # fmt: skip
        """The constructor of `OwnerActor`."""

        def die(error: BaseException) -> None:
            if process.alive:
                self.told("died", process.name, f"{type(error).__name__}: {error}"[:200], error)
            self.hub.kill(process)

        actor.owner = self.parts.owner(
            actor.name, spec, lanes,
            log=self.parts.log("sim", exactly_once=self.exactly_once),
            store=self.store.of(process), clock=self.clock,
            members=self.parts.members(self.clock),
            epoch=process.name.replace("#", "-"), score_timeout_s=SCORE_TIMEOUT_S, die=die,
            parked=parked,
        )  # fmt: skip
        self.hub.sleep(0.05)
        pool = None if parked else self.pool()
        if pool is not None and actor.owner is not None:
            self._enlist(actor, process, *pool)

    def pool(self) -> tuple[Roster, Mapping[str, str]] | None:
        """As a new owner asks for it; `control.py` says."""
        return None

    def enlist(
        self, name: str, roster: Roster, scorers: Mapping[str, str], *, begin: bool = False
    ) -> None:
        """Tell an owner of its pool, and to take its lanes; it may hear late, or not."""
        actor = self.actors.get(name)
        fault = self.plan.draw(f"{name}/enlist", "enlist")
        if actor is None or actor.process is None or (fault and fault.kind == "request lost"):
            return
        process = actor.process
        delay = 2.0 * fault.size if fault is not None else 0.002
        if self.hub.seconds() < actor.unheard_until:
            return

        def hear() -> None:
            if actor.owner is not None and actor.process is process:
                self._enlist(actor, process, roster, scorers)
                if begin:
                    actor.owner.begin()

        self.hub.at(delay, lambda: self.hub.spawn(process, hear))

    def _enlist(
        self, actor: Actor, process: Process, roster: Roster, scorers: Mapping[str, str]
    ) -> None:
        found = {n: self.actors[n].scorer for n in scorers if n in self.actors}
        members = {n: SimMember(s, process) for n, s in found.items() if s is not None}
        assert actor.owner is not None
        actor.owner.enlist(roster, members)

    def scorer(self, name: str, version: str, *, avoid: str) -> None:
        """Start a scorer's actor."""

        def begin(actor: Actor) -> None:
            process = actor.process
            assert process is not None
            actor.scorer = SimScorer(
                self.hub, self.plan, name, version, process, self.told, self.hub.seconds()
            )
            actor.scorer.ready = True

        self.start(Actor(name, begin), 0.2 + 0.8 * self.plan.jitter(f"{name}/start"), avoid)


@dataclass(frozen=True, slots=True)
class Parts:
    """Production classes of a life; `bugs.py` puts others in their place."""

    owner: Any = Owner
    log: Any = KafkaLog
    members: Any = Members


class SimCrew:
    """The owners and scorers by name, as `Keeper` sees them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.posts: dict[str, Post] = {}

    def adopt(self, prefix: str) -> list[str]:
        """Take over what runs."""
        for name in sorted(self._world.actors):
            if name.startswith(prefix) and name not in self.posts:
                self._add(name)
        return sorted(name for name in self.posts if name.startswith(prefix))

    def start_owner(
        self, name: str, *, spec: DetectorSpec, lanes: Mapping[int, tuple[Partition, ...]],
        parked: bool, avoid: str, **_: Any,
    ) -> None:  # fmt: skip
        """Create an owner."""
        self._world.owner(name, spec, lanes, parked=parked, avoid=avoid)
        self._add(name)

    def start_scorer(self, name: str, *, blob: bytes, avoid: str, **_: Any) -> None:
        """Create a scorer."""
        self._world.scorer(name, blob.decode(), avoid=avoid)
        self._add(name)

    def room(self, *_: Any) -> frozenset[str]:
        """Machines that have room."""
        return self._world.room()

    def _add(self, name: str) -> None:
        self.posts[name] = Post(name, NOTHING, self._world.hub.seconds())

    def ask(self) -> None:
        """Send for reports; an actor owes at most one."""
        world = self._world
        for post in self.posts.values():
            actor = world.actors.get(post.name)
            if actor is None or actor.gone:
                post.gone = post.gone or (actor.gone if actor else "no such actor")
                continue
            process = actor.process
            if post.ref is not None and post.ref is not process:
                post.ref = post.asked = post.report = None  # it died meanwhile
            if process is None:
                post.report = None  # its process is being started
                continue
            if post.ref is not None or not (actor.owner or actor.scorer):
                continue
            post.ref, post.asked = process, world.hub.seconds()
            self._send(post, actor, process)

    def _send(self, post: Post, actor: Actor, process: Process) -> None:
        world = self._world
        fault = world.plan.draw(f"{post.name}/report", "report")
        delay = 0.002 if fault is None else 3.0 * fault.size

        def look() -> None:
            if world.hub.seconds() < actor.unheard_until:
                world.hub.sleep(actor.unheard_until - world.hub.seconds())
            who = actor.owner or actor.scorer
            if who is not None and actor.process is process:
                report = replace(who.report(), node_id=actor.machine)
                world.hub.at(0.002, lambda: self._heard(post, process, report))

        world.hub.at(delay, lambda: world.hub.spawn(process, look))

    def _heard(self, post: Post, process: Process, report: Any) -> None:
        if post.ref is process:
            post.ref = post.asked = None
            post.report, post.heard = report, self._world.hub.seconds()

    def owners(self) -> dict[str, OwnerReport]:
        """Last report of each owner that lives."""
        found = {n: p.report for n, p in self.posts.items() if not p.gone}
        return {n: r for n, r in found.items() if isinstance(r, OwnerReport)}

    def scorers(self) -> dict[str, ScorerReport]:
        """Last report of each scorer that lives."""
        found = {n: p.report for n, p in self.posts.items() if not p.gone}
        return {n: r for n, r in found.items() if isinstance(r, ScorerReport)}

    def enlist(self, name: str, roster: Roster, scorers: Mapping[str, str]) -> None:
        """Tell an owner of its pool."""
        self._world.enlist(name, roster, scorers)

    def begin(self, name: str, roster: Roster, scorers: Mapping[str, str]) -> None:
        """Let an owner that stands by take its lanes."""
        self._world.enlist(name, roster, scorers, begin=True)

    def pool(self, roster: Roster, scorers: Mapping[str, str]) -> Any:
        """What a new owner is told."""
        return roster, dict(scorers)

    def end(self, name: str) -> None:
        """End an actor and forget it."""
        self.posts.pop(name, None)
        self._world.end(name)


class Control:
    """What `Supervisor` does each tick, without its page: keeper, then the rollout's steps."""

    def __init__(
        self, world: World, detection: Detection, *, owners: int, scorers: int,
        versions: tuple[str, ...], standby: bool,
    ) -> None:  # fmt: skip
        self.world, self.detection, self.wanted, self.versions = world, detection, scorers, versions
        pool = SimpleNamespace(device="cpu", cpus=1.0)
        self.deployment = Deployment(
            "sim", NOTHING, (detection,), "", owners, 1.0, pool,  # pyright: ignore[reportArgumentType]
            NOTHING, standby=standby,
        )  # fmt: skip
        self.noted: dict[str, Any] = {}  # what the audit topic remembers of it
        self.keeper: Keeper | None = None
        self.crew: SimCrew | None = None
        self.rollout: rollout.Rollout | None = None
        self.process: Process | None = None
        self.ended = False
        world.pool = self._pool
        self.begin()

    def begin(self) -> None:
        """Start, or start again: adopts what runs, goes on with what was noted."""
        if self.ended:
            return
        process = self.process = Process("supervisor")
        again = self.begin
        process.mourners.append(lambda: self.world.hub.at(1.0, again))
        self.world.hub.spawn(process, self._live)

    def over(self) -> None:
        """End the supervisor for good."""
        self.ended = True
        if self.process is not None:
            self.process.mourners.clear()
            self.world.hub.kill(self.process)

    def _live(self) -> None:
        world = self.world

        def say(kind: str, words: str, label: str) -> None:
            world.told("journal", kind, words)

        self.crew = SimCrew(world)
        self.keeper = Keeper(self.deployment, self.detection, self.crew, world.clock, say)  # pyright: ignore[reportArgumentType]
        self.rollout = None
        if self.noted:
            self.keeper.target = self.noted["target"]
            self.keeper.lanes = dict(self.noted["lanes"])
            if self.noted["rollout"] is not None:
                found = rollout.of_fields(self.noted["rollout"], world.clock.monotonic())
                if found is not None and not found.over:
                    self.rollout = found
        self.keeper.blobs = {version: version.encode() for version in self.versions}
        while True:
            self.tick()
            world.hub.sleep(TICK_S)

    def tick(self) -> None:
        """One round."""
        assert self.keeper is not None
        assert self.crew is not None
        keeper, adopting = self.keeper, self.keeper.adopting
        self.crew.ask()
        self.world.hub.sleep(0.02)
        rolling = self.rollout is not None and not self.rollout.over
        keeper.tick(None if rolling else self.wanted)
        if keeper.adopting:
            return
        if adopting and rolling:
            self._recall()
        if rolling:
            self._roll()

    def roll(self, to: str) -> None:
        """An operator asks for another version."""
        keeper = self.keeper
        if keeper is None or (self.rollout is not None and not self.rollout.over):
            return
        if keeper.target != to:
            self.world.told("rollout", keeper.target, to)
            self.rollout, _ = rollout.begin(keeper.target, to, self.world.clock.monotonic())
            self._note()

    def back(self) -> None:
        """An operator wants the old version again."""
        if self.rollout is not None and not self.rollout.over:
            now = self.world.clock.monotonic()
            self.rollout, _ = rollout.back(self.rollout, now, "simulated doubt", person=True)
            self._note()

    def _recall(self) -> None:
        assert self.keeper is not None
        assert self.rollout is not None
        for report in self.keeper.reports().values():
            for each in report.lanes:
                if each.version == self.rollout.toward:
                    self.keeper.lanes[each.lane] = each.version

    def _roll(self) -> None:
        keeper = self.keeper
        assert keeper is not None
        assert self.rollout is not None
        seen = rollout.RolloutSeen(
            self.world.clock.monotonic(), self.wanted, keeper.seen(), keeper.lanes,
            scaling=bool(keeper.leaving),
        )  # fmt: skip
        self.rollout, steps = rollout.step(self.rollout, seen)
        for step in steps:
            match step:
                case rollout.StartScorer(version):
                    keeper.start(version)
                case rollout.SwitchLane(number, version):
                    keeper.lanes[number] = version
                case rollout.DrainScorer(name):
                    keeper.drain(name)
                case rollout.Say(words):
                    self.world.told("journal", "rollout", words)
        if self.rollout.over:
            keeper.target = self.rollout.toward
        self._note()

    def _note(self) -> None:
        assert self.keeper is not None
        self.noted = {
            "target": self.keeper.target,
            "lanes": dict(self.keeper.lanes),
            "rollout": rollout.to_fields(self.rollout) if self.rollout is not None else None,
        }

    def _pool(self) -> tuple[Roster, Mapping[str, str]] | None:
        alive = self.process is not None and self.process.alive
        found: Any = self.keeper.pool() if alive and self.keeper is not None else None
        return found


MACHINE = ("ck", "FAILURE", "AdminClient", "time", "threading", "wait", "_rss_bytes")


def put_in_place(world: World) -> Callable[[], None]:
    """Put the world behind production code; call what comes back to take it away again.

    Only the machine is replaced: clock, threads and the client library.
    """
    there: dict[str, Any] = {
        "ck": library(world.network),
        "FAILURE": KafkaException,
        "AdminClient": lambda settings, **_: SimAdmin(world.network(), settings),
        "time": world.clock,
        "threading": SimThreads(world.hub),
        "wait": waiting(world.hub),
        "_rss_bytes": lambda: 0,
    }
    modules = (joining, kafka, kafka_rules, lane, owner, saving)
    found = [(module, name) for module in modules for name in MACHINE if hasattr(module, name)]
    kept = [(module, name, getattr(module, name)) for module, name in found]
    for module, name, _ in kept:
        setattr(module, name, there[name])
    said: Any = owner  # what it writes to the log is not looked at here
    said.print = lambda *_, **__: None

    def take_away() -> None:
        for module, name, value in kept:
            setattr(module, name, value)
        del said.print

    return take_away
