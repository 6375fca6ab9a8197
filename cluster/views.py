"""What the supervisor saw, as plain values: the input of a snapshot and of its verdict.

Series hold one value a step of the page's axis, oldest first, None for unknown. Every number that
was not measured is None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raywatch.actors.stats import Tally
from raywatch.cluster.journal import Entry
from raywatch.cluster.lag import State

Line = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Which service this is."""

    name: str
    version: str
    config: str  # short hash
    up_s: float
    config_path: str = "CONFIG"  # what an operator types to name the config
    exactly_once: bool | None = None  # False: alerts may repeat, with the same ids


@dataclass(frozen=True, slots=True)
class OwnerView:
    """One owner that is wanted, up or not."""

    name: str
    up: bool


@dataclass(frozen=True, slots=True)
class ScorerView:
    """One scorer."""

    name: str
    model: str
    state: Literal["serving", "starting", "draining"]
    busy: float | None = None  # 0..1
    p99_ms: float | None = None
    queue_records: int | None = None


@dataclass(frozen=True, slots=True)
class PartitionView:
    """One partition of one detector."""

    name: str
    state: State
    lag_s: float | None = None
    lag_records: int | None = None
    owner: int | str | None = None
    words: str = ""  # of its verdict
    back_s: float | None = None  # until the lag is gone at the present rates
    spark: Line = ()  # lag_s


@dataclass(frozen=True, slots=True)
class DetectorView:
    """One detector."""

    name: str
    model: str
    lag_s: float | None = None
    delay_ms_p50: float | None = None
    delay_ms_p99: float | None = None
    budget_used: int | None = None  # alerts of the last hour
    budget_limit: int | None = None
    in_per_s: Line = ()
    out_per_s: Line = ()
    lag_series_s: Line = ()
    tally: Tally | None = None  # of all its lanes
    probability: float = 1e-5  # at which it alerts
    per_day: float = 0.0  # incidents that it may open, 0: any number
    labels: Mapping[str, int] | None = None  # what became of them; None where it has none


@dataclass(frozen=True, slots=True)
class PoolView:
    """The scorers together."""

    scorers_min: int
    scorers_max: int
    busy_target: float
    say: str = ""  # the reason of the last decision
    serving: Line = ()
    starting: Line = ()
    draining: Line = ()
    wanted: Line = ()
    busy: Line = ()
    queue_records: Line = ()


@dataclass(frozen=True, slots=True)
class ChannelView:
    """One channel's part in an alert."""

    name: str
    share: float | None
    observed: float | None
    expected: float | None


@dataclass(frozen=True, slots=True)
class Window:
    """The records around an incident. Columns have one value a record, or none at all."""

    time_ms: Sequence[int]
    observed: Line
    expected: Line = ()
    low: Line = ()
    high: Line = ()


@dataclass(frozen=True, slots=True)
class AlertView:
    """An open incident."""

    id: str
    detector: str
    key: str
    what: str
    since_ms: int
    tail_probability: float | None
    model: str
    lineage: str = ""
    unit: str = ""
    explain_url: str = ""
    replay: str = ""
    channels: tuple[ChannelView, ...] = ()
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class CountsView:
    """Counts since midnight, and of the last minute."""

    today: int | None = None
    last_minute: int | None = None
    unacknowledged: int | None = None
    rejects_today: int | None = None
    scored_today: int | None = None
    resolved_today: int | None = None
    last_resolved: str = ""


@dataclass(frozen=True, slots=True)
class RolloutView:
    """A rollout under way."""

    before: str
    after: str
    phase: str
    words: str = ""  # the last sentence of it


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage of the topology."""

    name: str
    per_s: float | None = None
    per_min: float | None = None
    words: str = ""
    held: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that was observed in one tick."""

    cluster: ClusterView
    pool: PoolView
    owners: Sequence[OwnerView] = ()
    scorers: Sequence[ScorerView] = ()
    partitions: Sequence[PartitionView] = ()
    detectors: Sequence[DetectorView] = ()
    alerts: Sequence[AlertView] = ()
    counts: CountsView = field(default_factory=CountsView)
    rollouts: Sequence[RolloutView] = ()
    journal: Sequence[Entry] = ()  # newest first
    flow: Sequence[StageView] = ()
    ok_p50_s: Line = ()  # of the partitions that are ok
    ok_max_s: Line = ()
    trouble: str = ""  # why the log could not be read; empty when it could
    blocked: Sequence[str] = ()  # lanes that wait for a person, and what for
    unread: str = ""  # which partitions nobody reads; empty when there are none
