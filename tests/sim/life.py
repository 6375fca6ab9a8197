"""One life: what a seed makes of it, from the first record until everything is drained.

A life is small: a few partitions, lanes and owners, some hundred records that hold anomalies,
silences and rejects, ten seconds in which faults strike, and then quiet. Records go on coming
after the last fault, so a lane that only looks alive is found out.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from raywatch.actors import checkpoint, fencing
from raywatch.actors.ports import Committed, Partition
from raywatch.actors.records import RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.cluster import assign
from raywatch.cluster.deployment import Detection
from raywatch.models.settings import DecideSettings, MissingSettings
from sim.broker import Entry, Txn
from sim.faults import LIES, WORLD, Chance, Fault, Key, Plan
from sim.hub import START_MS
from sim.network import AWAY_S, LONG_S, away
from sim.scorers import HANG_S, VERSIONS
from sim.world import Actor, Control, Parts, World, put_in_place

LIMIT_S = 400.0  # Virtual seconds after which a life that has not drained is a violation.
LOOK_S = 0.25  # Between two looks whether everything is drained.
AFTER_S = 1.5  # A life goes on for so long after the last frozen process thawed.
HOUR_MS = 3_600_000
STEPS_MAX = 400_000  # A life that goes round in circles without time passing ends here.


@dataclass(frozen=True, slots=True)
class Setup:
    """What a life is made of."""

    seed: int
    partitions: int
    lanes: int
    owners: int
    scorers: int
    rounds: int
    keys: int  # of each partition
    quiet_s: float  # when faults stop
    fed_s: float  # when the last record comes
    intensity: float
    exactly_once: bool
    rollouts: tuple[tuple[float, str], ...]  # when, and to which version or back
    relaned: tuple[float, int] | None  # when it is deployed anew, and with how many lanes
    # Where versions change or retention takes records, what a store confirmed must be there.
    honest_store: bool
    standby: bool  # whether a warm successor stands by for each owner
    spec: DetectorSpec


def setup(seed: int) -> Setup:
    """What a seed makes."""
    chance = Chance(seed, "setup")
    partitions = 2 + chance.below(3)
    lanes = 1 + chance.below(min(3, partitions))
    quiet_s = 4.0 + 5.0 * chance.share()
    rollouts: list[tuple[float, str]] = []
    # Without transactions nobody is fenced: a holder that lives on may speak for either version.
    exactly_once = chance.below(7) > 0
    if exactly_once and chance.below(2) == 0:
        rollouts.append((1.0 + 3.0 * chance.share(), VERSIONS[1]))
        if chance.below(3) == 0:
            rollouts.append((rollouts[0][0] + 3.0 * chance.share(), "back"))
        if chance.below(3) == 0:
            rollouts.append((rollouts[0][0] + 5.0 + 2.0 * chance.share(), VERSIONS[0]))
    relaned: tuple[float, int] | None = None
    if exactly_once and not rollouts and chance.below(2) == 0:
        other = (lanes + chance.below(partitions - 1)) % partitions + 1
        relaned = 1.0 + (quiet_s - 1.0) * chance.share(), other
    spec = DetectorSpec(
        name="d",
        topics=("in",),
        record=RecordSpec(values=("v",), key="k", time="t"),
        model="robustz",
        decide=DecideSettings(
            probability=1e-3, warmup=20, quiet=5, half_life=100, update_factor=3.0
        ),
        missing=MissingSettings(intervals=4.0, floor_ms=6_000, records_min=10),
        audit="audit",
        lanes=lanes,
        start="earliest",
        lost="continue",
        batch_records=8 + chance.below(56),
        batch_wait_s=0.05 + 0.2 * chance.share(),
        in_flight=1 + chance.below(4),
        checkpoint_s=0.05 + 0.4 * chance.share(),
        snapshot_s=(0.3, 1.0, 3.0, 1e6)[chance.below(4)],
    )
    return Setup(
        seed, partitions, lanes, 1 + chance.below(lanes), 1 + chance.below(2),
        45 + chance.below(25), 2 + chance.below(2), quiet_s, quiet_s + 1.0,
        (0.5, 1.0, 2.0, 3.0)[chance.below(4)], exactly_once, tuple(rollouts),
        relaned, bool(rollouts or relaned) or chance.below(2) == 0,
        Chance(seed, "standby").below(4) == 0, spec,
    )  # fmt: skip


@dataclass
class History:
    """What happened, for a checker that knows nothing else."""

    setup: Setup
    lanes: dict[int, tuple[Partition, ...]]
    events: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])
    struck: list[Fault] = field(default_factory=list[Fault])
    inputs: dict[Partition, list[Entry]] = field(default_factory=dict[Partition, list[Entry]])
    ends: dict[Partition, int] = field(default_factory=dict[Partition, int])
    committed: dict[Partition, Committed] = field(default_factory=dict[Partition, Committed])
    said: dict[str, list[Entry]] = field(default_factory=dict[str, list[Entry]])  # topic -> stable
    drained: bool = False
    seconds: float = 0.0
    steps: int = 0


# ---- records ---------------------------------------------------------------------------------


def records(made: Setup) -> list[tuple[float, Partition, bytes, bytes]]:
    """(when, where, key, value) of every record, in the order in which they are written."""
    rng = np.random.default_rng([made.seed & 0x7FFFFFFF, made.seed >> 31, 1])
    chance = Chance(made.seed, "records")
    count = made.partitions * made.keys
    noise = rng.standard_normal((made.rounds, count))
    for _ in range(2 + count // 2):  # anomalies, late enough to be judged
        key, at = chance.below(count), 26 + chance.below(made.rounds - 28)
        worse = 10.0 ** np.arange(1 + chance.below(3))  # each record stranger: some are updates
        noise[at : at + len(worse), key] += (25.0 + 30.0 * chance.share()) * worse
    silent = {
        chance.below(count): (15 + chance.below(8), 30 + chance.below(made.rounds - 30))
        for _ in range(1 + chance.below(2))
    }
    out: list[tuple[float, Partition, bytes, bytes]] = []
    step_s = (made.fed_s - 0.2) / made.rounds
    for at, row in enumerate(noise.tolist()):
        for key, value in enumerate(row):
            begin, end = silent.get(key, (0, 0))
            if begin <= at < end:
                continue
            where = Partition("in", key % made.partitions)
            text = b'{"k":"k%d","t":%d,"v":%.4f}' % (key, START_MS + at * 1_000 + key, value)
            if chance.below(70) == 0:
                text = (text[:-4], b"", b"[1]", text.replace(b'"v"', b'"w"'))[chance.below(4)]
            out.append((0.2 + at * step_s, where, b"k%d" % key, text))
    return out


class Feeder:
    """Writes the records: plainly or in transactions, some of which are undone."""

    def __init__(self, world: World, made: Setup) -> None:
        self._world = world
        self._chance = Chance(made.seed, "feeder")
        self._open: dict[Partition, Txn] = {}
        self._numbers = 0
        left = records(made)
        size = 1 + self._chance.below(3) * made.partitions * made.keys
        for begin in range(0, len(left), size):
            some = left[begin : begin + size]
            world.hub.at(some[-1][0], lambda some=some: self._write(some))
        world.hub.at(left[-1][0] + 0.3, self._close)

    def _write(self, some: list[tuple[float, Partition, bytes, bytes]]) -> None:
        topics, now = self._world.broker.topics, self._world.broker.now_ms()
        for _, where, key, value in some:
            part = topics[where.topic][where.number]
            dice = self._chance.below(60)
            if dice == 0 and where not in self._open:
                self._numbers += 1
                self._open[where] = Txn(-self._numbers, "feeder", 0, 0)
            elif dice == 1:
                part.end += 1 + self._chance.below(3)  # what compaction took before anybody read it
            elif dice == 2 and where not in self._open:  # a producer that changed its mind
                self._numbers += 1
                undone = Txn(-self._numbers, "feeder", 0, 0)
                part.append(now, key, b"undone", (), undone)
                part.mark(undone, commit=False)
            part.append(now, key, value, (), self._open.get(where))
            if where in self._open and self._chance.below(12) == 0:
                part.mark(self._open.pop(where), commit=True)

    def _close(self) -> None:
        for where, txn in self._open.items():
            self._world.broker.topics[where.topic][where.number].mark(txn, commit=True)
        self._open = {}


# ---- what happens by itself --------------------------------------------------------------------


class Weather:
    """Faults that no call brings about."""

    def __init__(self, life: "Life") -> None:
        self._life = life
        made = life.setup
        chance = Chance(made.seed, "weather")
        kinds = [kind for kind in WORLD if chance.below(10) < 7]
        if not made.honest_store or made.relaned is not None:  # lanes may have to replay all
            kinds = [kind for kind in kinds if kind != "retention"]
        count = chance.below(2 + round(6 * made.intensity)) if kinds else 0
        for number in range(count):
            when = 0.5 + (made.quiet_s - 0.5) * chance.share()
            key = Key("world", number)
            fault = Fault(key, kinds[chance.below(len(kinds))], chance.share(), when)
            which = chance.bits()
            self._plan(fault, which)
        if made.relaned is not None and chance.below(2) == 0:  # an owner that outlives its lanes
            when = max(0.5, made.relaned[0] - 2.0 * chance.share())
            kind = ("owner frozen", "owner unheard", "owner late", "owner late")[chance.below(4)]
            self._plan(Fault(Key("world", count), kind, 0.3 + 0.7 * chance.share(), when), which=0)
        clock = Chance(made.seed, "clock")
        for number in range((0, 0, 1, 2)[clock.below(4)]):
            when = made.quiet_s * clock.share()
            self._plan(Fault(Key("clock", number), "clock set", clock.share(), when), which=0)

    def _plan(self, fault: Fault, which: int) -> None:
        only = self._life.plan.only
        if only is None or fault.key in only:
            self._life.world.hub.at(fault.at_s, lambda: self._strike(fault, which))

    def _strike(self, fault: Fault, which: int) -> None:
        self._life.plan.struck.append(fault)
        world, control, kind = self._life.world, self._life.control, fault.kind
        if kind == "supervisor killed":
            if control.process is not None:
                world.hub.kill(control.process)
        elif kind == "clock set":
            world.hub.wall_ms = START_MS + round((2.0 * fault.size - 1.0) * HOUR_MS)
        elif kind.endswith("moves"):
            self._move(kind, AWAY_S * fault.size)
        elif kind == "retention":
            self._life.retain()
        elif kind == "all scorers killed":
            for actor in self._actors(".scorer-"):
                if actor.process is not None:
                    world.hub.kill(actor.process)
        else:
            found = self._actors(".scorer-" if "scorer" in kind else ".owner-")
            if found:
                self._one(kind, fault.size, found[which % len(found)])

    def _move(self, kind: str, away_s: float) -> None:
        broker, hub = self._life.world.broker, self._life.world.hub
        if kind == "leader moves":
            away(broker, away_s)
            for part in broker.topics["in"]:
                part.away_until = hub.now_ns + round(1e9 * away_s)
        else:
            for lane in sorted(broker.holders):
                away(broker, away_s, lane=lane)

    def _actors(self, part: str) -> list[Actor]:
        actors = self._life.world.actors
        return [a for n, a in sorted(actors.items()) if part in n and a.process is not None]

    def _one(self, kind: str, size: float, actor: Actor) -> None:
        hub = self._life.world.hub
        process = actor.process
        assert process is not None
        if kind.endswith("killed"):
            hub.kill(process)
        elif kind.endswith("frozen"):
            hub.freeze(process, (HANG_S if actor.scorer else LONG_S) * size)
        elif kind == "owner lost":
            actor.gone = "its machine is lost"
            hub.kill(process)
        elif kind == "owner cut off":
            process.cut_until = hub.now_ns + round(1e9 * LONG_S * size)
        elif kind == "owner late":  # the next one reaches the brokers after the others
            self._life.world.late = (1.0 + 3.0 * size, LONG_S)
            for each in (actor, *self._actors(".scorer-")):  # their machine is cut off from Ray
                each.unheard_until = hub.seconds() + LONG_S
            hub.kill(process)
        elif kind == "owner unheard":
            actor.unheard_until = hub.seconds() + LONG_S * size


# ---- the life ----------------------------------------------------------------------------------


class Life:
    """Runs once."""

    def __init__(
        self, seed: int, *, only: Collection[Key] | None = None, parts: Parts | None = None,
        changed: Callable[[Setup], Setup] | None = None,
    ) -> None:  # fmt: skip
        made = setup(seed)
        self.setup = made = changed(made) if changed is not None else made
        without = LIES if made.honest_store else frozenset[tuple[str, str]]()
        self.plan = Plan(seed, made.intensity, without, only)
        self.events: list[tuple[Any, ...]] = []
        self.world = World(
            self.plan, lambda *what: self.events.append(what),
            exactly_once=made.exactly_once, parts=parts or Parts(),
        )  # fmt: skip
        for topic, count in (("in", made.partitions), ("d.alerts", 1), ("d.rejects", 1)):
            self.world.broker.create(topic, count)
        self.world.broker.create("audit", 1)
        self.places = [Partition("in", n) for n in range(made.partitions)]
        self.lanes = assign.lanes(self.places, made.lanes)
        self.inputs: dict[Partition, list[Entry]] = {p: [] for p in self.places}

    def run(self) -> History:
        """From the first record until everything is drained, or time is over."""
        world, made = self.world, self.setup
        take_away = put_in_place(world)
        newest = checkpoint.newest
        try:
            checkpoint.newest = self._watched(newest)
            self._deploy(made.lanes)
            Feeder(world, made)
            Weather(self)
            for when, to in made.rollouts:
                roll = self.control.back if to == "back" else lambda to=to: self.control.roll(to)
                world.hub.at(when, roll)
            if made.relaned is not None:
                world.hub.at(made.relaned[0], self._deploy_anew)
            world.hub.at(made.quiet_s, self._calm)
            world.hub.at(made.fed_s, self._look)
            self._over = False
            drained = world.hub.run(self._is_over, LIMIT_S) and world.hub.steps < STEPS_MAX
            for process in self._processes():
                process.alive = False
            return self._history(drained)
        finally:
            self._bury()
            checkpoint.newest = newest
            take_away()

    def _deploy(self, lanes: int) -> None:
        """What `prepare` and `launch` do."""
        made = self.setup
        self.lanes = assign.lanes(self.places, lanes)
        spec = replace(made.spec, lanes=len(self.lanes))
        fencing.declare(self.world.store.blobs, spec)
        self.control = Control(
            self.world, Detection(spec, self.lanes, VERSIONS[0]), owners=made.owners,
            scorers=made.scorers, versions=VERSIONS, standby=made.standby,
        )  # fmt: skip

    def _deploy_anew(self) -> None:
        """Let owners finish, or not; end everything, as far as that goes; start another number."""
        assert self.setup.relaned is not None
        lanes = self.setup.relaned[1]
        self.world.told("deployed anew", lanes)
        self.control.over()
        patient = self.setup.seed % 2 == 0
        for actor in list(self.world.actors.values()):
            if patient and actor.owner is not None and actor.process is not None:
                self.world.hub.spawn(actor.process, actor.owner.stop, 2.0)

        def start() -> None:
            for name in list(self.world.actors):
                self.world.end(name)
            self.world.deployments += 1
            self._deploy(lanes)

        self.world.hub.at(2.5 if patient else 0.0, start)

    def _is_over(self) -> bool:
        return self._over or self.world.hub.steps >= STEPS_MAX

    def _calm(self) -> None:
        self.plan.quiet = True

    def _look(self) -> None:
        """Whether all is committed, rollouts are over, and nobody is frozen any more."""
        hub, broker = self.world.hub, self.world.broker
        kept = broker.groups.get(self.setup.spec.group, {})
        parts = {p: broker.topics["in"][p.number] for p in self.places}
        stands = {p: c.offset for p, c in kept.items()}
        if not self.setup.exactly_once:  # who is not fenced may take it back: see check.forward
            stands = self._highest()
        at_end = all(
            stands.get(p) == part.end and part.stable == part.end for p, part in parts.items()
        )
        rolling = self.control.rollout is not None and not self.control.rollout.over
        pending = any(holder.txn is not None for holder in broker.holders.values())
        frozen = max((p.frozen_until for p in self._processes()), default=0)
        late = hub.now_ns < frozen + AFTER_S * 1e9
        self._over = at_end and not rolling and not pending and not late
        hub.at(LOOK_S, self._look)

    def _highest(self) -> dict[Partition, int]:
        """The highest offset that was ever committed of each partition."""
        found: dict[Partition, int] = {}
        for _, kind, *what in self.events:
            if kind == "committed":
                for place, committed in what[2].items():
                    found[place] = max(found.get(place, 0), committed.offset)
        return found

    def _processes(self) -> list[Any]:
        return [network.process for network in self.world.networks.values()]

    def _watched(self, newest: Callable[..., Any]) -> Callable[..., Any]:
        """Notes which snapshot a lane takes, and what was committed then."""

        def look(store: Any, detector: str, lane: int, *rest: Any, **named: Any) -> Any:
            found = newest(store, detector, lane, *rest, **named)
            group = self.world.broker.groups.get(self.setup.spec.group, {})
            if found is not None:
                stands = {p: group[p].offset if p in group else 0 for p in found.offsets}
                self.world.told("loaded", lane, dict(found.offsets), stands)
            return found

        return look

    def retain(self) -> None:
        """Retention takes what no snapshot and no lane needs any more."""
        group = self.world.broker.groups.get(self.setup.spec.group, {})
        lows = {p: self.world.broker.topics["in"][p.number].low for p in self.places}
        for number, places in self.lanes.items():
            stored = self._stored(number)
            for place in places:
                if stored is None or place not in group:
                    continue
                part = self.world.broker.topics["in"][place.number]
                before = min(stored.get(place, 0), group[place].offset)
                if before > lows[place]:
                    self.inputs[place] += [e for e in part.entries if e.offset < before]
                    part.trim(before)
                    self.world.told("retention", place, before)

    def _stored(self, lane: int) -> dict[Partition, int] | None:
        """Offsets of the oldest snapshot that is kept of a lane."""
        blobs = self.world.store.blobs
        for name in blobs.names(f"snapshots/d/{lane:04d}/"):
            found = checkpoint.decode(blobs.get(name) or b"")
            return None if found is None else found.offsets
        return None

    def _history(self, drained: bool) -> History:
        broker = self.world.broker
        parts = {p: broker.topics["in"][p.number] for p in self.places}
        said = {
            topic: [e for e in broker.topics[topic][0].entries if e.offset < part.stable]
            for topic in ("d.alerts", "d.rejects", "audit")
            for part in broker.topics[topic]
        }
        return History(
            self.setup, self.lanes, self.events, list(self.plan.struck),
            {p: self.inputs[p] + part.entries for p, part in parts.items()},
            {p: part.end for p, part in parts.items()},
            dict(broker.groups.get(self.setup.spec.group, {})),
            said, drained, self.world.hub.seconds(), self.world.hub.steps,
        )  # fmt: skip

    def _bury(self) -> None:
        """End every task that is left: a greenlet that is collected later would run on."""
        hub = self.world.hub
        tasks = [what for _, _, what, _ in hub._heap if hasattr(what, "let")]
        processes = {id(t.process): t.process for t in tasks}
        for actor in self.world.actors.values():
            if actor.process is not None:
                processes[id(actor.process)] = actor.process
        for process in processes.values():
            process.alive = False
            process.mourners = []
            hub._bury(process)


def text_of(entries: list[Entry]) -> list[dict[str, Any]]:
    """Values as JSON objects."""
    return [json.loads(e.value or b"{}") for e in entries]
