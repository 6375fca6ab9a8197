"""Which partitions came to a topic after the service began to watch it?

A deployment knows the partitions there were when it was made. Whoever adds some sends records
where nobody reads: keys move to them at once. That is said, and the next deployment takes them in,
from their first record on: the group had begun, so `start` is answered (Kafka's own consumers skip
such records with `auto.offset.reset=latest`, KAFKA-12478).
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from raywatch.actors.ports import Partition


class Growth(NamedTuple):
    """A topic with more partitions than are watched."""

    topic: str
    there: int
    watched: int

    @property
    def words(self) -> str:
        """A sentence for operators."""
        are = "is" if self.watched == 1 else "are"
        return (
            f"topic `{self.topic}` has {self.there} partitions, {self.watched} {are} watched: "
            "records in the others are not read; deploy again to take them in"
        )


def unwatched(watched: Sequence[Partition], topics: Mapping[str, int]) -> list[Growth]:
    """Topics that grew, by name; topics of which nothing is watched are left out.

    Args:
        watched: partitions that the service knows; the same one may come twice.
        topics: topic -> number of partitions there are.
    """
    known = Counter(partition.topic for partition in set(watched))
    return [
        Growth(topic, topics[topic], count)
        for topic, count in sorted(known.items())
        if topics.get(topic, 0) > count
    ]


def grown(partitions: Sequence[Partition], committed: Collection[Partition]) -> list[Growth]:
    """The same, said from the log alone: what the group never committed, nobody reads."""
    there = Counter(partition.topic for partition in partitions)
    new = Counter(partition.topic for partition in added(partitions, committed))
    return [Growth(topic, there[topic], there[topic] - new[topic]) for topic in sorted(new)]


def added(partitions: Sequence[Partition], committed: Collection[Partition]) -> list[Partition]:
    """Partitions that came after the group had begun: none committed, all behind those that did.

    Partitions are only ever added at the end. Where others have no commit (the first start was cut
    short, offsets expired), they count as fresh ones.
    """
    highest: dict[str, int] = {}
    for partition in committed:
        highest[partition.topic] = max(partition.number, highest.get(partition.topic, -1))
    without = [p for p in partitions if p not in committed]
    gaps = {p.topic for p in without if p.number < highest.get(p.topic, -1)}
    return sorted(p for p in without if p.topic in highest and p.topic not in gaps)
