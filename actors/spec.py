"""What a lane must know of its detector. Plain values: they travel to owners as they are."""

import re
from dataclasses import dataclass, field
from typing import Literal

from raywatch.actors.ports import Partition
from raywatch.actors.pseudonyms import HmacKey
from raywatch.actors.records import RecordSpec
from raywatch.models.payment_names import CHANCE, NAMES
from raywatch.models.registry import PRESET
from raywatch.models.settings import DecideSettings, MissingSettings
from raywatch.models.trace_names import RECENT


@dataclass(frozen=True, slots=True)
class DetectorSpec:
    """One detector: topics, fields, policy, names of its topics, bounds."""

    name: str
    topics: tuple[str, ...]
    record: RecordSpec
    model: str  # name, name@hash or preset:name
    decide: DecideSettings = field(default_factory=DecideSettings)
    missing: MissingSettings = field(default_factory=MissingSettings)
    group: str = ""
    alerts: str = ""
    rejects: str = ""
    audit: str = "raywatch.audit"
    labels: str = ""  # topic with labels of the payments; "": they are in the payments' own
    labels_delay_s: float = 60.0  # a label counts for payments that the log took so much later
    lanes: int = 4
    partitions: int = 1  # of all its `topics` together, which share `decide.per_day`
    start: Literal["earliest", "latest"] = "latest"  # where a group begins that never committed
    added: tuple[Partition, ...] = ()  # came when the group had begun: read from their beginning
    lost: Literal["continue", "stop"] = "stop"  # when committed offsets are no longer retained
    replay_max: int = 1_000_000  # records of a partition read silently where no snapshot helps
    keys_max: int = 100_000  # keys a partition may hold
    keys_full: Literal["evict", "reject"] = "evict"  # what becomes of a new key beyond that
    rejects_max: int = 100  # rejects of 1,000 offsets that are written whole; others are counted
    batch_records: int = 20_000  # most records in a batch
    batch_wait_s: float = 0.05  # longest a record waits for its batch to fill
    batch_bytes: int = 16_777_216  # and bytes of them as they came
    in_flight: int = 4  # batches of a lane at the scorers
    in_flight_bytes: int = 134_217_728  # and bytes of them: beyond it no other batch is sent
    checkpoint_s: float = 0.2  # longest time between two commits while records flow
    snapshot_s: float = 60.0  # time between two snapshots of a lane's state

    pseudonym: HmacKey | None = None  # of the keys; never None where `record.pseudonymous`

    def __post_init__(self) -> None:
        for attribute, default in (
            ("group", f"raywatch.{self.name}"),
            ("alerts", f"{self.name}.alerts"),
            ("rejects", f"{self.name}.rejects"),
        ):
            if not getattr(self, attribute):
                object.__setattr__(self, attribute, default)

    @property
    def stage(self) -> str:
        """The stage of the lane that scores itself (stages.py); "": scorers of the pool do."""
        return self.model.removeprefix(PRESET) if self.model.startswith(PRESET) else ""

    @property
    def columns(self) -> tuple[str, ...]:
        """What an alert can be about: channels, or what is looked at in their place; then texts."""
        values, texts = self.record.values, self.record.texts
        if self.stage == "payments":
            values = (*values, *NAMES[1:], CHANCE)
            texts = tuple(name for name in texts if name != self.record.label)
        if self.stage == "traces":
            values = (*values, *RECENT)
        return (*values, *texts)

    @property
    def inputs(self) -> tuple[str, ...]:
        """All topics that its lanes read."""
        return (*self.topics, self.labels) if self.labels else self.topics

    def rest_s(self, partition: Partition) -> float:
        """How long a record of a partition may wait without anything being wrong, in s.

        Labels rest until it is certain before which payment they come (joining.py), at most half of
        their delay longer than that; a little more is for the commit.
        """
        return 1.5 * self.labels_delay_s + 5.0 if partition.topic == self.labels else 0.0

    @property
    def lane_prefix(self) -> str:
        """How the transactional ids of this detector's lanes begin."""
        return f"raywatch.{self.name}."

    def lane_id(self, lane: int) -> str:
        """The transactional id of a lane: what the broker fences by.

        With another number of lanes the same partitions are in other lanes, hence of other ids.
        """
        return self.lane_id_of(lane, self.lanes)

    def lane_id_of(self, lane: int, lanes: int) -> str:
        """The same, where there are so many lanes."""
        return f"{self.lane_prefix}{lane}-of-{lanes}"

    def is_lane_id(self, text: str) -> bool:
        """Whether this is the id of a lane of this detector, whatever the number of lanes."""
        return bool(re.fullmatch(re.escape(self.lane_prefix) + r"\d{1,4}-of-\d{1,4}", text))
