"""What one detector can be told, and how it becomes a DetectorSpec; fields.py has its records.

Every setting has a default (of `actors/spec.py` and `models/settings.py`, so that there is one
truth), a unit at the end of its name, a bound and a description. Knows no brokers and no secrets.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raywatch.actors.names import Names
from raywatch.actors.records import RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.cluster.fields import Record
from raywatch.cluster.secret import Settings
from raywatch.models.errors import ConfigError
from raywatch.models.registry import PRESET
from raywatch.models.settings import DecideSettings, MissingSettings

# Keys a partition may hold where a class whose keys are large is told nothing.
KEYS_MAX = {f"{PRESET}logs": 2_000, f"{PRESET}traces": 10_000}
OF_WORDS = tuple(f"{PRESET}{each}" for each in ("network", "payments", "traces"))
_NAMES = ", ".join(f"`{each}`" for each in OF_WORDS)

_DECIDE = DecideSettings()
_MISSING = MissingSettings()
_SPEC = DetectorSpec(name="x", topics=("x",), record=RecordSpec(values=("x",)), model="x")

Topic = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")]
OwnTopic = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{0,249}$")]  # empty: named after it


class Alert(Settings):
    """When a score becomes an alert."""

    probability: float = Field(
        default=_DECIDE.probability,
        ge=1e-12,
        le=0.1,
        description="Alert where a value this strange is this rare, for each record of a key: "
        "1e-5 is one in 100,000 records.",
    )
    warmup: int = Field(
        default=_DECIDE.warmup,
        ge=0,
        le=1_000_000,
        description="Records of a key before it may alert.",
    )
    quiet: int = Field(
        default=_DECIDE.quiet,
        ge=1,
        le=100_000,
        description="Ordinary records of the key after which its incident is resolved.",
    )
    half_life: int = Field(
        default=_DECIDE.half_life,
        ge=100,
        le=1_000_000,
        description="Records over which the calibration forgets half of what it saw.",
    )
    per_day: float = Field(
        default=_DECIDE.per_day,
        ge=0.0,
        le=1_000_000.0,
        description="About how many incidents a day the detector may open, by the time of its "
        "records: its rarest. Shared out evenly to its partitions; only makes `probability` "
        "stricter. 0: as many as there are.",
    )
    update_factor: float = Field(
        default=_DECIDE.update_factor,
        ge=1.0,
        le=1e12,
        description="An open incident is updated when it became this many times less likely.",
    )


class Missing(Settings):
    """When a key counts as silent; judged in record time by the other keys of its partition."""

    enabled: bool = Field(default=_MISSING.enabled, description="Whether silence is an incident.")
    intervals: float = Field(
        default=_MISSING.intervals,
        ge=2.0,
        le=10_000.0,
        description="A key is silent after this many of its usual intervals,",
    )
    floor_ms: int = Field(
        default=_MISSING.floor_ms,
        ge=1,
        le=2_592_000_000,
        description="and after at least this many ms.",
    )
    records_min: int = Field(
        default=_MISSING.records_min,
        ge=2,
        le=1_000_000,
        description="Records of a key before its silence means anything.",
    )


class Labels(Settings):
    """Labels of payments that come in a topic of their own."""

    topic: Topic = Field(
        description="Topic with labels, `record.id` and `record.label` in each, by the same keys "
        "and in as many partitions as the payments."
    )
    delay_s: float = Field(
        default=_SPEC.labels_delay_s,
        ge=5.0,
        le=86_400.0,
        description="A label counts for the payments that the brokers took at least this much "
        "later, in s. Half of it is for clocks that differ and labels that are seen late.",
    )


class Detector(Settings):
    """Topics, fields, a model and a policy, with a consumer group of their own."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
        description="Name, in lower case; group and topics are named after it.",
    )
    topics: tuple[Topic, ...] = Field(
        min_length=1, max_length=64, description="Topics to watch; names, no patterns."
    )
    record: Record = Field(description="Which fields of a record are what.")
    labels: Labels | None = Field(
        default=None,
        description="Where labels of payments come from, for `model: preset:payments`; without it "
        "they are among the payments.",
    )
    model: str = Field(
        pattern=r"^(preset:(logs|network|payments|traces)|[a-z0-9][a-z0-9_.-]{0,62}(@[0-9a-f]{6,64})?)$",
        description="Model to score with: `name`, or `name@hash` to pin a version, or a signal "
        "class: `preset:network` for network and security records, `preset:payments` for payments "
        "and labels of them, `preset:logs` for log lines, `preset:traces` for calls between "
        "services (docs/signal-classes.md).",
    )
    alert: Alert = Field(default_factory=Alert, description="When a score becomes an alert.")
    missing: Missing = Field(
        default_factory=Missing,
        description="When silence becomes an alert; with a preset only where it is given.",
    )
    group: str = Field(
        default="",
        max_length=249,
        description="Consumer group; empty: `raywatch.<name>`. Nobody else may use it.",
    )
    alerts: OwnTopic = Field(default="", description="Topic; empty: `<name>.alerts`.")
    rejects: OwnTopic = Field(default="", description="Topic; empty: `<name>.rejects`.")
    lanes: int = Field(
        default=_SPEC.lanes,
        ge=1,
        le=4_096,
        description="Lanes the partitions are dealt to: the most owners that can share the work. "
        "Changing it moves state, so choose once.",
    )
    start: Literal["earliest", "latest"] = Field(
        default=_SPEC.start, description="Where a group begins that never committed."
    )
    lost: Literal["continue", "stop"] = Field(
        default=_SPEC.lost,
        description="When committed offsets are no longer retained: stop and say so, or go on "
        "at the oldest record and journal the gap.",
    )
    replay_max: int = Field(
        default=_SPEC.replay_max,
        ge=0,
        le=1_000_000_000,
        description="Most records a partition is read back to build its state where no snapshot "
        "is left; models look back a bounded number of values.",
    )
    keys_max: int = Field(
        default=_SPEC.keys_max,
        ge=1,
        le=50_000_000,
        description="Keys a partition may hold, about 8 KiB each and channel, 14 of one channel; "
        "`raywatch check` says what an owner needs. With `preset:logs`, whose keys have 194 KiB at "
        "most, 2,000 where it is not given; with `preset:traces`, 10 KiB, 10,000.",
    )
    keys_full: Literal["evict", "reject"] = Field(
        default=_SPEC.keys_full,
        description="What a new key of a full partition does: `evict` the sixteenth of its keys "
        "that is worth least (few records, long unseen), or have its records "
        "rejected. A key that returns is new, with a warm-up.",
    )
    rejects_max: int = Field(
        default=_SPEC.rejects_max,
        ge=0,
        le=1_000,
        description="Of each 1,000 offsets of a partition, most rejects that are written whole; "
        "one more record says how many others there were, and why.",
    )
    batch_records: int = Field(
        default=_SPEC.batch_records, ge=1, le=200_000, description="Most records in a batch."
    )
    batch_bytes: int = Field(
        default=_SPEC.batch_bytes,
        ge=1_024,
        le=1_073_741_824,
        description="Bytes of keys and values at which a batch is full; a last fetch of up to "
        "16 MiB, and one record, may lie above it.",
    )
    batch_wait_ms: int = Field(
        default=int(_SPEC.batch_wait_s * 1_000),
        ge=1,
        le=10_000,
        description="Longest a record waits for its batch to fill, in ms.",
    )
    in_flight: int = Field(
        default=_SPEC.in_flight,
        ge=1,
        le=64,
        description="Batches of a lane that may be at the scorers.",
    )
    in_flight_bytes: int = Field(
        default=_SPEC.in_flight_bytes,
        ge=1_048_576,
        le=17_179_869_184,
        description="Bytes of a lane's batches at the scorers beyond which no other one is sent; "
        "a batch by itself is never larger. Each key of a batch takes its history along, 6 KB "
        "a channel.",
    )
    checkpoint_ms: int = Field(
        default=int(_SPEC.checkpoint_s * 1_000),
        ge=10,
        le=60_000,
        description="Longest time between two commits while records flow, in ms: alerts are "
        "visible after it, and at most this much is scored again after a crash.",
    )
    snapshot_s: float = Field(
        default=_SPEC.snapshot_s,
        ge=1.0,
        le=86_400.0,
        description="Time between two snapshots of a lane's state, in s: a new owner replays at "
        "most this much.",
    )

    @model_validator(mode="after")
    def _of_one_class(self) -> Self:
        record, model = self.record, self.model
        network, payments, lines, calls = (
            model == f"{PRESET}{each}" for each in ("network", "payments", "logs", "traces")
        )
        if record.format == "text" and not lines:
            raise ValueError(f"`record.format: text` is for `{PRESET}logs`; `model` is `{model}`")
        if record.words and model not in OF_WORDS:
            raise ValueError(f"`record.words` is for {_NAMES}; `model` is `{model}`")
        if record.error and not calls:
            raise ValueError(f"`record.error` is for `{PRESET}traces`; `model` is `{model}`")
        if calls and not record.of_calls:
            raise ValueError(
                f"`{PRESET}traces` needs one name in `record.values` (the duration), and one or "
                "two in `record.words` (the caller, the operation)"
            )
        if record.message is not None and not lines:
            raise ValueError(f"`record.message` is for `{PRESET}logs`; `model` is `{model}`")
        if lines and record.line is None:
            raise ValueError(
                "`record.message` is missing: name the field with the log line, or say `format: "
                "text` where a record is the line"
            )
        if not record.values and not (network or payments or lines):
            raise ValueError("`record.values` is missing: name the fields with numbers")
        if not payments and (record.id or record.label):
            raise ValueError(
                f"`record.id` and `record.label` are for `{PRESET}payments`; `model` is `{model}`"
            )
        if payments and not record.of_payments:
            raise ValueError(
                f"`{PRESET}payments` needs one name in `record.values` (the amount), one in "
                "`record.words` (the customer), and `record.id`"
            )
        return self

    @model_validator(mode="after")
    def _labelled(self) -> Self:
        if self.labels is None:
            return self
        if self.model != f"{PRESET}payments":
            raise ValueError(f"`labels` is for `{PRESET}payments`; `model` is `{self.model}`")
        if self.record.label is None:
            raise ValueError("`labels` needs `record.label`: the field that says what they say")
        if self.labels.topic in self.topics:
            raise ValueError(
                f"`labels.topic` is among `topics`: leave `labels` out where `{self.labels.topic}` "
                "has payments as well"
            )
        if len(self.topics) > 1:
            raise ValueError(f"`labels` are of one topic of payments, got {len(self.topics)}")
        return self

    @property
    def _keys_max(self) -> int:
        """Keys of log lines have 50 to 200 KB each, services 10 KB, and are few."""
        given = "keys_max" in self.model_fields_set
        return self.keys_max if given else KEYS_MAX.get(self.model, self.keys_max)

    @property
    def _missing(self) -> MissingSettings:
        """Entities of security records come and go: their silence counts where it is asked for."""
        given = dict(self.missing)
        if self.model.startswith(PRESET) and "missing" not in self.model_fields_set:
            given["enabled"] = False
        return MissingSettings(**given)

    def to_spec(
        self, audit: str, fields: Names | None = None, *, unsettled: bool = False
    ) -> DetectorSpec:
        """As plain values. `fields` settles patterns. Raises ConfigError without them."""
        record = self.record
        if record.patterns and fields is None and not unsettled:
            raise ConfigError(
                f"`{self.name}` has patterns in `record.values`, and no record was seen yet",
                hint="write a record first, or name the fields",
            )
        settled = fields is not None or not record.patterns
        channels = record.channels(fields or Names(())) if settled else record.values
        named: dict[str, Any] = {**dict(record), "values": channels, "message": record.line}
        del named["pseudonym_key"]  # revealed only for who decodes: Config.disguised
        return DetectorSpec(
            name=self.name,
            topics=self.topics,
            labels="" if self.labels is None else self.labels.topic,
            labels_delay_s=(_SPEC.labels_delay_s if self.labels is None else self.labels.delay_s),
            record=RecordSpec(**named),
            model=self.model,
            decide=DecideSettings(**dict(self.alert)),
            missing=self._missing,
            group=self.group,
            alerts=self.alerts,
            rejects=self.rejects,
            audit=audit,
            lanes=self.lanes,
            start=self.start,
            lost=self.lost,
            replay_max=self.replay_max,
            keys_max=self._keys_max,
            keys_full=self.keys_full,
            rejects_max=self.rejects_max,
            batch_records=self.batch_records,
            batch_wait_s=self.batch_wait_ms / 1_000,
            batch_bytes=self.batch_bytes,
            in_flight=self.in_flight,
            in_flight_bytes=self.in_flight_bytes,
            checkpoint_s=self.checkpoint_ms / 1_000,
            snapshot_s=self.snapshot_s,
        )
