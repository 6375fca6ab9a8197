"""What a seed makes of a life: how large it is, what it watches, and how much goes wrong in it.

Lives are of three kinds. Most watch telemetry with scorers of the pool, whose versions may change.
One in four calls more of it anomalous, and has `alert.per_day`, which holds some of that back. One
in seven watches payments, whose labels come from a topic of their own; most of these have both.
"""

from dataclasses import dataclass

from raywatch.actors.records import RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.models.settings import DecideSettings, MissingSettings
from sim.faults import Chance
from sim.scorers import PAID, VERSIONS

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Setup:
    """What a life is made of."""

    seed: int
    partitions: int  # of each topic
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
    waiting_max: int = 0  # records of a lane that may wait for their place among the labels

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that scorers may be of; a life begins with the first."""
        return (PAID,) if self.spec.labels else VERSIONS

    @property
    def apart_s(self) -> float:
        """How far clocks differ, and for how long a record is unseen, where there are labels.

        An owner's clock may be so much ahead, a broker's so much behind, and a transaction so long:
        together less than half the delay.
        """
        return self.spec.labels_delay_s / 6.0 - 0.001


def setup(seed: int) -> Setup:
    """What a seed makes."""
    chance, kind = Chance(seed, "setup"), Chance(seed, "kind").below(20)
    paid, budget = kind < 3, 3 <= kind < 8
    partitions = 2 + chance.below(3)
    lanes = 1 + chance.below(min(3, partitions))
    quiet_s = 4.0 + 5.0 * chance.share()
    # Without transactions nobody is fenced: a holder that lives on may speak for either version.
    exactly_once = chance.below(7) > 0
    rollouts = _rollouts(chance) if exactly_once and chance.below(2) == 0 and not paid else ()
    relaned: tuple[float, int] | None = None
    if exactly_once and not rollouts and chance.below(2) == 0:
        other = (lanes + chance.below(partitions - 1)) % partitions + 1
        relaned = 1.0 + (quiet_s - 1.0) * chance.share(), other
    changes = {
        "lanes": lanes,
        "partitions": partitions,
        "batch_records": 8 + chance.below(56),
        "batch_wait_s": 0.05 + 0.2 * chance.share(),
        "in_flight": 1 + chance.below(4),
        "checkpoint_s": 0.05 + 0.4 * chance.share(),
        "snapshot_s": (0.3, 1.0, 3.0, 1e6)[chance.below(4)],
    }
    own = Chance(seed, "own")
    if paid:
        spec = _payments(own, partitions, changes)
    else:
        spec = _telemetry((2.0, 12.0, 2e4)[own.below(3)] if budget else 0.0, changes)
    return Setup(
        seed=seed,
        partitions=partitions,
        lanes=lanes,
        owners=1 + chance.below(lanes),
        scorers=1 + chance.below(2),
        rounds=45 + chance.below(25),
        keys=2 + chance.below(2) + 2 * paid,
        quiet_s=quiet_s,
        fed_s=quiet_s + 1.0,
        intensity=(0.5, 1.0, 2.0, 3.0)[chance.below(4)],
        exactly_once=exactly_once,
        rollouts=rollouts,
        relaned=relaned,
        honest_store=bool(rollouts or relaned) or chance.below(2) == 0,
        standby=Chance(seed, "standby").below(4) == 0,
        spec=spec,
        waiting_max=(100_000, 60, 12)[own.below(3)],
    )


def _rollouts(chance: Chance) -> tuple[tuple[float, str], ...]:
    first_s = 1.0 + 3.0 * chance.share()
    rollouts = [(first_s, VERSIONS[1])]
    if chance.below(3) == 0:
        rollouts.append((first_s + 3.0 * chance.share(), "back"))
    if chance.below(3) == 0:
        rollouts.append((first_s + 5.0 + 2.0 * chance.share(), VERSIONS[0]))
    return tuple(rollouts)


def _telemetry(per_day: float, changes: dict[str, float]) -> DetectorSpec:
    """Records a second apart."""
    return _spec(
        record=RecordSpec(values=("v",), key="k", time="t"),
        model="robustz",
        decide=DecideSettings(
            probability=5e-2 if per_day else 1e-3,
            warmup=20,
            quiet=2 if per_day else 5,
            half_life=100,
            update_factor=3.0,
            per_day=per_day,
        ),
        missing=MissingSettings(intervals=4.0, floor_ms=6_000, records_min=10),
        **changes,
    )


def _payments(chance: Chance, partitions: int, changes: dict[str, float]) -> DetectorSpec:
    """Records twenty minutes apart: without a label a payment is honest while the life goes on."""
    return _spec(
        record=RecordSpec(
            values=("a",), words=("c",), key="k", time="t", id="id", label="f", label_days=0.25
        ),
        model="preset:payments",
        labels="labels",
        labels_delay_s=0.9 + 2.4 * chance.share(),
        decide=DecideSettings(
            probability=5e-2, warmup=20, quiet=3, half_life=100, update_factor=3.0,
            per_day=(0.0, 3.0, 12.0)[chance.below(3)] * partitions,
        ),
        missing=MissingSettings(intervals=4.0, floor_ms=HOUR_MS, records_min=10),
        **changes,
    )  # fmt: skip


def _spec(**settings: object) -> DetectorSpec:
    return DetectorSpec(
        name="d", topics=("in",), audit="audit", start="earliest", lost="continue", **settings
    )  # pyright: ignore[reportArgumentType]
