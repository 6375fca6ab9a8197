"""Reads a topic of ours from a place on, as nobody in particular: no group, no commit.

Partitions are read side by side, so records of different partitions come in no order. Without
`follow` it ends where the topic ended when it began, and a limit ends it earlier.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from raywatch.actors.ports import Bounds, Fetched, Log, Partition, Source
from raywatch.cluster.connect import partitions_of
from raywatch.models.errors import Refused, Unreachable

FETCH_RECORDS = 1_000
FETCH_WAIT_S = 0.5
SILENT_S = 30.0  # without following: longest wait for records that are known to be there

From = Literal["earliest", "latest"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One record as it lies in the log."""

    partition: Partition
    offset: int
    time_ms: int  # -1 where the log has none
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]


def tail(
    log: Log, topic: str, *, begin: From, follow: bool, limit: int | None = None
) -> Iterator[Entry]:
    """Entries of a topic. Raises Refused where it does not exist, Unreachable."""
    partitions = partitions_of(log, [topic])
    if not partitions:
        raise Refused(f"there is no topic `{topic}` yet", hint="it is made when the service starts")
    bounds = log.bounds(partitions)
    unknown = [str(each) for each in partitions if each not in bounds]
    if unknown:
        raise Unreachable(f"cannot read the ends of {', '.join(unknown[:5])}")
    source = log.source("", partitions, keys=True)
    try:
        source.assign(
            {each: it.low if begin == "earliest" else it.end for each, it in bounds.items()}
        )
        yield from _read(source, partitions, None if follow else bounds, limit)
    finally:
        source.close()


def _read(
    source: Source,
    partitions: list[Partition],
    until: dict[Partition, Bounds] | None,
    limit: int | None,
) -> Iterator[Entry]:
    given = 0
    heard = time.monotonic()
    while limit is None or given < limit:
        if until is not None and _there(source, until):
            return
        fetched = source.fetch(FETCH_RECORDS, FETCH_WAIT_S)
        now = time.monotonic()
        if len(fetched):
            heard = now
        elif until is not None and now - heard > SILENT_S:
            raise Unreachable(f"records are there, but none came in {SILENT_S:.0f} s")
        for entry in _entries(fetched, partitions):
            # What was written after the reading began is for those who follow.
            if until is not None and entry.offset >= until[entry.partition].end:
                continue
            yield entry
            given += 1
            if limit is not None and given >= limit:
                return


def _there(source: Source, until: Mapping[Partition, Bounds]) -> bool:
    position = source.position()
    return all(
        position.get(each, it.low) >= it.end for each, it in until.items() if it.end > it.low
    )


def _entries(fetched: Fetched, partitions: list[Partition]) -> Iterator[Entry]:
    for at, value in enumerate(fetched.values):
        yield Entry(
            partition=partitions[int(fetched.partition[at])],
            offset=int(fetched.offset[at]),
            time_ms=int(fetched.time_ms[at]),
            key=fetched.keys[at] if fetched.keys else None,
            value=value,
            headers=dict(fetched.headers[at]) if fetched.headers else {},
        )
