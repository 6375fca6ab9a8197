"""How much may be under way in a lane?

A batch is bounded three times: in records, in bytes as they came, and in bytes as they go to the
scorers. There each key of the batch takes its whole history along, so a flood of keys that come
once is what fills memory: 6,004 bytes a record and channel for a model that looks at all levels.
"""

from collections.abc import Iterable

from raywatch.actors.spec import DetectorSpec
from raywatch.models.scorer import Level, ModelSpec, Segments


def sent_bytes(channels: int, levels: tuple[Level, ...]) -> int:
    """Bytes of one record of a key of its own on its way to the scorers, at most."""
    return max(1, 4 * channels * sum(level.history + 1 for level in levels))


def batch_records(spec: DetectorSpec, model: ModelSpec) -> int:
    """Most records of a batch: fewer than the setting says where records are wide."""
    fit = spec.in_flight_bytes // sent_bytes(len(spec.record.values), model.levels)
    return max(1, min(spec.batch_records, fit))


def room(spec: DetectorSpec, under_way: Iterable[Segments | None]) -> bool:
    """Whether another batch may be sent. It may then be twice `in_flight_bytes`, and never more."""
    batches, size = 0, 0
    for segments in under_way:
        batches += 1
        size += 0 if segments is None else segments.nbytes
    return batches < spec.in_flight and size < spec.in_flight_bytes
