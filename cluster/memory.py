"""How much memory can an owner take at most, whatever is sent to it?

    bound = process + lanes * (state + batches + alerts + queues) + snapshot

Each part is a sum of settings times sizes: nothing here is measured, and tests hold the sizes to
the arrays they stand for and the bound to what owners take in a flood (bench/flood.py). It is
reached when everything happens at once: partitions full of keys, each key as long as it may be,
batches of nothing but new keys, scorers that do not answer, a store that is slow, and every key
silent in the same second. Not in it: records that compress better than QUEUE_FACTOR.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from raywatch.actors.bounds import batch_records
from raywatch.actors.fetching import FETCH_BYTES
from raywatch.actors.joining import BYTES_MAX, RECORDS_MAX
from raywatch.actors.kafka_rules import READER, WRITER
from raywatch.actors.spec import DetectorSpec
from raywatch.models import following, logs, network, payments, traces
from raywatch.models.payment_names import FEATURES
from raywatch.models.scorer import LEVELS, ModelSpec

MIB = 1 << 20
PROCESS_BYTES = 400 * MIB  # an owner without lanes: Python, Ray, numba and their libraries
KEY_BYTES = 8 + 56 + 40 + 96  # count, silence, slot, and cells of the table while it is doubled
ARENA_FACTOR = 4  # bytes of an arena for each byte of a key, while it is copied
CHANNEL_BYTES = 6_064  # rings and statistics (models/history.py)
DECIDE_BYTES = 1_120  # incident, gates, promise, novelty, times, count (models/decide.py);
COMPONENT_BYTES = 56  # of a channel, for each component,
HELD_BYTES = 8  # for each component on a coarse level,
HOUR_BYTES = 600  # for each view of the time of day,
MISS_RANGE_BYTES = 24  # and for the mean miss and the range
COUNTED_BYTES = 608  # and for what it counts
# Keys of one channel have more views: means by the hour, of values that are kept, novelty and the
# hours of the week.
MORE_VIEWS, MORE_HOURS, RECENT_BYTES, WEEK_BYTES = 4, 2, 512, 4_280
COMPONENTS, COARSE = 14, 3  # at most, of shipped models; views of the decide stage included
RECORD_BYTES = 300  # of a record in a batch: Python's part of it, and columns
VALUE_BYTES = 24 + 4 * (COMPONENTS + 3)  # of a value: as read, grouped, decided; its scores
WORD_BYTES = 64  # of a text: hash and place, twice; what explains it
# Of a terminal; and a customer for each terminal, whose key is a hash of eight bytes.
ENTITY_BYTES = payments.TERMINAL_BYTES + payments.CUSTOMER_BYTES + KEY_BYTES + ARENA_FACTOR * 8
FOUND_BYTES = 12 * FEATURES + 128  # of a payment while its batch is decided: features, shares
ROW_BYTES = 4  # where the state of a key of log lines, or of calls, lies
LINE_ALERT_BYTES = 24_576  # more of one about a line: text three times, 20 sessions, escaped
EDGE_ALERT_BYTES = 4_096  # more of one about a call: its names twice, escaped; sentences
ALERT_BYTES = 8_192  # with its window, as an object and as JSON
SILENCE_BYTES = 2_048
OUT_MAX = 5_000  # see actors/lane.py
QUEUE_FACTOR = 2  # librdkafka counts its queue compressed
PSEUDONYMS_BYTES = (1 << 20) * 200  # a table of them; and its keys, see below

MODEL = ModelSpec("", LEVELS, (), views=True)  # the most that a model may ask for


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that the owner with most lanes takes at most, by what for."""

    lanes: int  # of that owner
    keys: int  # that it may hold
    process: int
    state: int
    batches: int
    alerts: int
    queues: int
    snapshot: int  # a copy of one lane's state, and its blob

    @property
    def total(self) -> int:
        """All of it."""
        parts = (self.process, self.state, self.batches, self.alerts, self.queues, self.snapshot)
        return sum(parts)

    @property
    def words(self) -> str:
        """One sentence."""
        return (
            f"an owner takes at most {gib(self.total)}: state of {self.keys:,} keys "
            f"{gib(self.state)}, batches {gib(self.batches)}, alerts {gib(self.alerts)}, queues "
            f"{gib(self.queues)}, a snapshot {gib(self.snapshot)}"
        )


def gib(size: int) -> str:
    """Bytes as people say them."""
    return f"{size / (1 << 30):.1f} GiB"


def key_bytes(spec: DetectorSpec) -> int:
    """State of one key: what a slot takes."""
    if spec.stage:
        key = KEY_BYTES + ARENA_FACTOR * spec.record.key_bytes_max + following.KEY_BYTES
        return key + {"payments": ENTITY_BYTES, "logs": ROW_BYTES, "traces": ROW_BYTES}.get(
            spec.stage, 0
        )
    channel = CHANNEL_BYTES + COARSE * HELD_BYTES + HOUR_BYTES + MISS_RANGE_BYTES + COUNTED_BYTES
    channel += (COMPONENTS - MORE_VIEWS) * COMPONENT_BYTES
    more = MORE_HOURS * HOUR_BYTES + RECENT_BYTES + WEEK_BYTES
    more += MORE_VIEWS * COMPONENT_BYTES
    channels = len(spec.record.values)
    text = ARENA_FACTOR * spec.record.key_bytes_max
    return KEY_BYTES + text + DECIDE_BYTES + channels * channel + (more if channels == 1 else 0)


def memory_bound(
    spec: DetectorSpec,
    *,
    partitions: int,
    owners: int,
    kafka: Mapping[str, object] | None = None,
) -> Memory:
    """The bound for one detector.

    Args:
        spec: its settings; channels are `record.values`.
        partitions: of its topics together.
        owners: that share its lanes.
        kafka: what the config tells librdkafka.
    """
    assert partitions >= 1, partitions
    assert owners >= 1, owners
    lanes = ceil(min(spec.lanes, partitions) / owners)
    channels, words = len(spec.record.values), len(spec.record.texts)
    flights = spec.in_flight + 1
    records = batch_records(spec, ModelSpec("", (), ()) if spec.stage else MODEL)
    # Slots of keys that were forgotten come back when their batch is decided.
    keys = ceil(partitions / spec.lanes) * spec.keys_max + flights * records
    sketches = _sketches(spec, ceil(partitions / spec.lanes))
    state = keys * key_bytes(spec) + sketches
    came = spec.batch_bytes + FETCH_BYTES + spec.record.bytes_max
    batches = (
        flights * 2 * came  # as they came, and what of it is rejected
        + 2 * 2 * spec.in_flight_bytes  # one over the bound; and their copies for the scorers
        + flights * records * (RECORD_BYTES + channels * VALUE_BYTES + words * WORD_BYTES)
        + (records * logs.RECORD_BYTES if spec.stage == "logs" else 0)
    )
    batches += records * FOUND_BYTES if spec.stage == "payments" else 0
    if spec.labels:  # what waits for its place (actors/joining.py), and a fetch above it
        batches += BYTES_MAX + FETCH_BYTES + (RECORDS_MAX + records) * RECORD_BYTES
    batches += records * traces.RECORD_BYTES if spec.stage == "traces" else 0
    alert = ALERT_BYTES + {"logs": LINE_ALERT_BYTES, "traces": EDGE_ALERT_BYTES}.get(spec.stage, 0)
    alerts = (OUT_MAX + records) * (alert + 200 * len(spec.columns))
    alerts += keys * SILENCE_BYTES if spec.missing.enabled else 0
    if spec.pseudonym is not None or spec.record.pseudonymise:
        state += PSEUDONYMS_BYTES + (1 << 20) * ARENA_FACTOR * spec.record.key_bytes_max
    queues = _queues(kafka or {})
    return Memory(
        lanes=lanes,
        keys=lanes * keys,
        process=PROCESS_BYTES,
        state=lanes * state,
        batches=lanes * batches,
        alerts=lanes * alerts,
        queues=lanes * queues,
        snapshot=2 * (keys * _stored_bytes(spec) + sketches),
    )


def fitting(spec: DetectorSpec, memory: int, **place: Any) -> int:
    """The largest `keys_max` with which the bound is at most `memory`; 0: none is small enough.

    `place` is what `memory_bound` must know beside it.
    """
    low, high = 0, spec.keys_max
    while low < high:
        middle = (low + high + 1) // 2
        bound = memory_bound(replace(spec, keys_max=middle), **place)
        low, high = (middle, high) if bound.total <= memory else (low, middle - 1)
    return low


def _sketches(spec: DetectorSpec, partitions: int) -> int:
    """State that a lane's partitions have by themselves, or that takes no more than their keys."""
    record = spec.record
    if spec.stage == "network":
        return partitions * network.partition_bytes(len(record.values), len(record.words))
    if spec.stage == "payments":
        return partitions * payments.partition_bytes(labelled=record.label is not None)
    if spec.stage == "logs":
        return partitions * spec.keys_max * logs.key_bytes(record.session is not None)
    if spec.stage == "traces":
        return partitions * spec.keys_max * traces.KEY_BYTES
    return 0


def _stored_bytes(spec: DetectorSpec) -> int:
    """Bytes of one key in a snapshot."""
    return key_bytes(spec) - (ARENA_FACTOR - 1) * spec.record.key_bytes_max


def _queues(kafka: Mapping[str, object]) -> int:
    """Bytes that a lane's two clients hold at most."""

    def told(name: str, default: Mapping[str, object]) -> int:
        value = kafka.get(name, default[name])
        return int(str(value))

    read = QUEUE_FACTOR * 1_024 * told("queued.max.messages.kbytes", READER)
    fetch = QUEUE_FACTOR * told("fetch.max.bytes", READER)
    return read + fetch + 1_024 * told("queue.buffering.max.kbytes", WRITER)
