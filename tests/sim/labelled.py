"""What lives with payments and labels have of their own: small tables, and the order of both logs.

The order is written down here a second time, over the logs as they lie in the end. Nothing of it
comes from `actors/merging.py`.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from raywatch.actors import joining
from raywatch.actors import payments as stage
from raywatch.actors.ports import Partition
from raywatch.models import payments
from sim.broker import Entry
from sim.setup import Setup

WARM = 40  # payments of a partition before any may alert
SMALL = 512  # payments that wait for their label, and cells of visits; powers of two

Place = tuple[Partition, int]


@contextmanager
def small(made: Setup) -> Generator[None]:
    """Bounds for a life of some hundred payments: the usual state has 9 MB a partition."""
    there = [
        (joining, "RECORDS_MAX", made.waiting_max),
        (stage, "WARM", WARM),
        (stage, "Payments", partial(payments.Payments, wait=SMALL)),
        (payments, "VISITS", SMALL),
    ]  # fmt: skip
    kept = [(module, name, getattr(module, name)) for module, name, _ in there]
    try:
        for module, name, value in there if made.spec.labels else []:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def order(made: Setup, logs: Mapping[Partition, list[Entry]]) -> dict[int, list[Place]]:
    """By number of a partition: payments and labels of that number in their one order."""
    found: dict[int, list[Place]] = {}
    delay_ms = round(1_000 * made.spec.labels_delay_s)
    for number in range(made.partitions):
        paid = [(Partition("in", number), e) for e in logs[Partition("in", number)]]
        told = Partition(made.spec.labels, number)
        left = [(told, e) for e in reversed(logs[told])]
        out: list[tuple[Partition, Entry]] = []
        for each in paid:
            while left and left[-1][1].time_ms + delay_ms <= each[1].time_ms:
                out.append(left.pop())
            out.append(each)
        found[number] = [(place, e.offset) for place, e in (*out, *reversed(left))]
    return found


def between(due: list[Place], offsets: Mapping[Partition, int]) -> bool:
    """Whether offsets are a place of the order: all below comes before all that does not."""
    below = [offset < offsets.get(place, 0) for place, offset in due]
    return below == sorted(below, reverse=True)


def numbered(places: Mapping[Partition, Any], number: int) -> dict[Partition, Any]:
    """What is said of partitions of a number."""
    return {place: each for place, each in places.items() if place.number == number}
