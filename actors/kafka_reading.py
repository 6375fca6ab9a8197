"""What a reader of Kafka is told, and what its answers mean. Imports no client: `kafka.py` does.

Errors are known by the names the client gives them (`kafka_rules.py`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from raywatch.actors.kafka_rules import AGAIN, passing
from raywatch.actors.kafka_security import Rights, candidates
from raywatch.actors.ports import Bounds, Partition
from raywatch.models.errors import LaneLost, Unreachable
from raywatch.models.scorer import I32

Ends = tuple[dict[Partition, Bounds], list[Partition]]  # and of whom nobody knows for now


def table(partitions: Sequence[Partition]) -> I32 | None:
    """Index by partition number, -1 elsewhere; None for partitions of several topics."""
    if len({p.topic for p in partitions}) != 1:
        return None
    indices = np.full(max(p.number for p in partitions) + 1, -1, np.int32)
    indices[[p.number for p in partitions]] = np.arange(len(partitions))
    return indices


def indices(
    table: I32 | None,
    index: Mapping[tuple[str, int], int],
    topics: Iterable[str],
    numbers: Iterable[int],
    count: int,
) -> I32:
    """(N,) index of the partition of each of `count` messages; by `table` where there is one."""
    if table is not None:
        return table[np.fromiter(numbers, np.int32, count)]
    where = zip(topics, numbers, strict=True)
    return np.fromiter(map(index.__getitem__, where), np.int32, count)


def sifted(messages: Iterable[Any], rights: Rights, group: str) -> list[Any]:
    """Messages that are records; raises for those that a reader cannot live with."""
    kept: list[Any] = []
    for message in messages:
        error = message.error()
        if error is None:
            kept.append(message)
            continue
        name, partition = error.name(), Partition(message.topic() or "?", message.partition() or 0)
        if error.retriable() or name in AGAIN:
            # An error that has an offset moves the reader's position past a record that was not
            # read (measured): what is committed must never come from there.
            if (message.offset() is None) or message.offset() < 0:
                continue
            raise LaneLost(f"reading `{partition}` was interrupted: {error.str()}")
        if name == "_AUTO_OFFSET_RESET":
            raise gone(partition, message.offset(), error.str())
        if name == "GROUP_AUTHORIZATION_FAILED" and not group:
            continue  # who looks needs no group, the client only thinks so
        rights.check(error, *candidates(name, group, [partition.topic]))
        raise LaneLost(f"reading `{partition}` ended: {error.str()}")
    return kept


def ends(
    partitions: Sequence[Partition],
    asked: Iterable[Mapping[Any, Any]],
    answer: Callable[[Any], Any],
    failure: type[Exception],
) -> Ends:
    """Bounds out of two answers, the beginnings and the ends, and who said nothing for now.

    A broker that just took over a partition answers without an error that its offset is -1001: it
    does not know yet. Taken for an offset it would say that all that was committed is lost.
    """
    told: list[dict[Partition, int]] = []
    silent: set[Partition] = set()
    for futures in asked:
        told.append({})
        for each, future in futures.items():
            partition = Partition(each.topic, each.partition)
            try:
                offset = answer(future).offset
            except failure as raised:
                if passing(raised.args[0]):
                    silent.add(partition)
                continue
            if offset >= 0:
                told[-1][partition] = offset
            else:
                silent.add(partition)
    low, end = told
    known = {p: Bounds(low[p], end[p]) for p in partitions if p in low and p in end}
    return known, [p for p in partitions if p in silent]


def gone(partition: Partition, offset: int | None, why: str) -> LaneLost:
    """An offset cannot be read."""
    return LaneLost(
        f"offset {offset} of `{partition}` is not retained: {why}",
        hint="retention was shorter than the lag, or the topic was created anew",
    )


def check_retained(begin: Mapping[Partition, int], bounds: Mapping[Partition, Bounds]) -> None:
    """Raises LaneLost unless every partition can be read from its offset on."""
    for partition, offset in begin.items():
        low, end = bounds[partition]
        if not low <= offset <= end:
            raise gone(partition, offset, f"the log holds {low} to {end}")


def unanswered(partition: Partition) -> Unreachable:
    """A partition of which nobody knows the bounds."""
    return Unreachable(
        f"nobody answers for partition `{partition}`",
        hint="the topic is not there, may not be read, or has no leader right now",
    )
