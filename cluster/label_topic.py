"""Labels in a topic of their own: does it fit to the payments, and what is in it?

Partition p of the labels belongs to partition p of the payments. So both topics need the same
number of partitions, and a label the key of its payment.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raywatch.actors.decode import decode
from raywatch.actors.labels import kinds
from raywatch.actors.ports import Log, Partition
from raywatch.actors.spec import DetectorSpec
from raywatch.cluster.connect import newest
from raywatch.models.errors import ConfigError
from raywatch.models.payment_names import PAYMENT


def must_match(spec: DetectorSpec, topics: Mapping[str, int]) -> None:
    """Raises ConfigError where both topics are there, with another number of partitions each."""
    if not spec.labels:
        return
    (payments,) = spec.topics
    here, there = topics.get(payments, 0), topics.get(spec.labels, 0)
    if here and there and here != there:
        raise ConfigError(
            f"topic `{payments}` of detector `{spec.name}` has {here} partitions, its labels in "
            f"`{spec.labels}` have {there}",
            hint="a label must lie in the partition that its payment has the number of: give both "
            "as many, and the same keys",
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """What the newest records of a topic of labels are."""

    records: int
    labels: int
    rejects: Counter[str]  # by reason

    @property
    def words(self) -> str:
        """What else there is than labels, "" for nothing."""
        payments = self.records - self.labels - self.rejects.total()
        parts = [f"{count} {reason}" for reason, count in sorted(self.rejects.items())]
        return ", ".join([*parts, *([f"{payments} without a label"] if payments else [])])


def sample(log: Log, spec: DetectorSpec, partitions: int) -> Sample:
    """Read the newest records of the labels. Raises Unreachable, LaneLost."""
    places = [Partition(spec.labels, number) for number in range(partitions)]
    fetched = newest(log, places, keys=spec.record.key is None)
    if fetched is None:
        return Sample(0, 0, Counter())
    records = decode(fetched, spec.record)
    labels = int(np.count_nonzero(kinds(spec.record, records.words) != PAYMENT))
    return Sample(len(fetched), labels, Counter(each.reason for each in records.rejects))
