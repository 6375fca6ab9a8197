"""What can be broken on purpose, and what is promised then?

A `Fault` is a value: a name, parameters and a seed, so that a run can be made again. A `Kind` says
in words what is hurt, what is promised and how it is undone, and in figures what a checker may
expect (`story.py`). How it is done is not here: `raywatch drill` does what a deployment may do to
itself, tests/chaos and tests/test_partition.py do the rest to clusters of their own.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

T = TypeVar("T")

Where = Literal["live", "cluster", "machines"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to break something."""

    name: str
    hurts: str  # what dies, as part of a sentence
    promise: str  # what happens then
    undone: str  # who brings it back, and how
    where: Where  # live: any deployment; cluster: our own brokers; machines: our own network, too
    says: str  # regular expression that a sentence of the journal matches; empty: need not be told
    back_s: float  # every lane that was hurt speaks again within so many seconds
    weight: int = 0  # how often it comes up in a random run; 0: never
    seconds: tuple[float, float] = (0.0, 0.0)  # how long it lasts, drawn between these
    why_not: str = ""  # why a live deployment is spared


_OWNER = r"owner \S+ is gone"
_SCORER = r"scorer \S+ is gone"
_NO_BROKERS = "software with the rights of a deployment cannot end brokers"
_NO_STORE = "it would need rights on the store's machine, and a real store is shared"
_NO_MACHINE = "it would need the rights of the machine's administrator"

KINDS: tuple[Kind, ...] = (
    Kind(
        "owner-kill", "an owner (kill -9)",
        "its lanes are opened anew from what was committed, and go on",
        "the supervisor starts another", "live", _OWNER, 20.0, weight=34,
    ),
    Kind(
        "owner-freeze", "an owner (SIGSTOP, later SIGCONT)",
        "another gets its lanes; what the frozen one still writes is refused by the brokers",
        "the supervisor replaces it and ends it; SIGCONT wakes whatever is left of it",
        "live", "", 25.0, weight=10, seconds=(7.5, 9.5),
    ),
    Kind(
        "owner-pause", "an owner (SIGSTOP for moments)", "it goes on where it was",
        "SIGCONT", "live", "", 15.0, weight=14, seconds=(0.5, 3.0),
    ),
    Kind(
        "scorer-kill", "a scorer (kill -9)", "its batches go to another at once",
        "the supervisor starts another", "live", _SCORER, 20.0, weight=49,
    ),
    Kind(
        "scorers-kill", "all scorers (kill -9)", "lanes wait and skip nothing",
        "the supervisor starts others", "live", _SCORER, 30.0, weight=11,
    ),
    Kind(
        "scorer-freeze", "a scorer (SIGSTOP, later SIGCONT)",
        "its batches are sent to another after the time-out",
        "the supervisor replaces it and ends it; SIGCONT wakes whatever is left of it",
        "live", "", 25.0, weight=12, seconds=(2.0, 9.0),
    ),
    Kind(
        "supervisor-kill", "the supervisor (kill -9)", "owners and scorers go on without it",
        "Ray starts it again, and it adopts what runs",
        "live", r"watches .+; \d+ actors run already", 20.0, weight=18,
    ),
    Kind(
        "broker-leader", "a broker that leads (kill -9)", "others lead; nothing is lost",
        "it is started again", "cluster", "", 30.0, weight=12, seconds=(1.0, 6.0),
        why_not=_NO_BROKERS,
    ),
    Kind(
        "broker-coordinator", "the broker that coordinates a lane's transactions (kill -9)",
        "another does; the open transaction is undone or finished, never half of it",
        "it is started again", "cluster", "", 30.0, weight=10, seconds=(1.0, 6.0),
        why_not=_NO_BROKERS,
    ),
    Kind(
        "brokers-rolling", "all brokers (kill -9), one after the other",
        "lanes wait for elections, and go on", "each is started again before the next one",
        "cluster", "", 60.0, weight=2, why_not=_NO_BROKERS,
    ),
    Kind(
        "brokers-all", "all brokers at once (kill -9)", "lanes wait and skip nothing",
        "they are started again", "cluster", "", 60.0, weight=3, seconds=(0.0, 5.0),
        why_not=_NO_BROKERS,
    ),
    Kind(
        "store-full", "the disk of the store (full)", "no snapshots, and everything else goes on",
        "room is made", "cluster", "", 20.0, weight=6, seconds=(3.0, 8.0), why_not=_NO_STORE,
    ),
    Kind(
        "store-slow", "the disk of the store (every write hangs)",
        "lanes wait as long as their snapshot does, and go on", "it answers again",
        "cluster", "", 25.0, weight=6, seconds=(2.0, 6.0), why_not=_NO_STORE,
    ),
    Kind(
        "clock-jump", "the clock of the machine (an hour forth or back)",
        "nothing: what decides does not ask what time it is", "it jumps back",
        "cluster", "", 20.0, weight=7, seconds=(2.0, 6.0), why_not=_NO_MACHINE,
    ),
    Kind(
        "retention", "records that were read (retention deletes them)",
        "snapshots stand for them", "not at all", "cluster", "", 20.0, weight=4,
        why_not="the records are not raywatch's",
    ),
    Kind(
        "partitions-added", "nothing: a topic gets more partitions",
        "it is said, and the next deployment reads them from their beginning", "not at all",
        "cluster", r"records in the others are not read", 60.0, weight=1,
        why_not="partitions cannot be taken away again",
    ),
    Kind(
        "offsets-expired", "all of it, and records beyond the committed offsets are deleted",
        "with `lost: continue` each gap is audited, and what is left is scored",
        "it is deployed again", "cluster", r"watches \S+", 60.0, weight=1,
        why_not="records would be lost",
    ),
    Kind(
        "cluster-kill", "Ray with all of it (kill -9), and everything in the store",
        "the next one goes on from Kafka alone: histories are read back in silence",
        "it is deployed again", "cluster", r"watches \S+", 60.0,
        why_not="it ends the cluster that would have to tell of it",
    ),
    Kind(
        "raylet-freeze", "Ray on an owner's machine (SIGSTOP)",
        "another owner gets its lanes; what the old one writes is refused",
        "SIGCONT", "machines", _OWNER, 15.0, why_not=_NO_MACHINE,
    ),
    Kind(
        "partition", "the network between Ray's machines, not the way to the brokers",
        "another owner gets its lanes; what the old one writes is refused",
        "the cable is plugged in again", "machines", _OWNER, 15.0, why_not=_NO_MACHINE,
    ),
    Kind(
        "head-kill", "the head of the Ray cluster (kill -9)",
        "the cluster is over; a new one goes on from Kafka and the store",
        "`ray up` and `raywatch deploy`", "machines", r"watches \S+", 120.0,
        why_not="it ends the cluster that would have to tell of it",
    ),
)  # fmt: skip

BY_NAME = {kind.name: kind for kind in KINDS}
assert len(BY_NAME) == len(KINDS)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a run."""

    name: str
    seed: int
    seconds: float = 0.0  # how long it lasts before it is undone
    pick: float = 0.0  # 0..1: which of those that could be hurt
    after_s: float = 0.0  # pause before it
    parameters: tuple[tuple[str, float], ...] = field(default=())

    @property
    def kind(self) -> Kind:
        """What it is."""
        return BY_NAME[self.name]

    def chosen(self, able: Sequence[T]) -> T:
        """Which of those that could be hurt. `able` must not be empty, and be sorted."""
        assert able, f"{self.name}: nobody is there to be hurt"
        return able[min(len(able) - 1, int(self.pick * len(able)))]


def make(name: str, seed: int, *, pause_s: float = 0.0) -> Fault:
    """A fault whose parameters are drawn from its seed."""
    kind, chance = BY_NAME[name], random.Random(f"{name}/{seed}")
    low, high = kind.seconds
    return Fault(
        name,
        seed,
        seconds=round(chance.uniform(low, high), 3),
        pick=chance.random(),
        after_s=round(chance.uniform(0.0, pause_s), 3),
        parameters=(("ahead", chance.choice((-1.0, 1.0))),) if name == "clock-jump" else (),
    )


def plan(count: int, seed: int, *, pause_s: float = 0.0) -> list[Fault]:
    """`count` faults in random order, each kind about as often as its weight says.

    Every kind with a weight comes up at least once where `count` allows it. Those that end the
    deployment (`offsets-expired`, `partitions-added`) are not made more frequent by rounding.
    """
    assert count >= 0, count
    kinds = [kind for kind in KINDS if kind.weight]
    total = sum(kind.weight for kind in kinds)
    chance = random.Random(f"plan/{seed}")
    names = [k.name for k in kinds for _ in range(max(1, count * k.weight // total))]
    often = sorted(kinds, key=lambda kind: -kind.weight)
    for number in range(max(0, count - len(names))):
        names.append(often[number % 4].name)
    if len(names) > count:  # a short run: the heaviest kinds first
        heavy = [kind.name for kind in often]
        names = sorted(set(names), key=heavy.index)[:count]
    chance.shuffle(names)
    return [make(name, seed * 1_000 + n, pause_s=pause_s) for n, name in enumerate(names)]
