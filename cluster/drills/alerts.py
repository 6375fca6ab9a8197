"""Was an alert lost, or said twice?

Two ways to know. `differences` compares with what was to be expected: the alerts of a run that
nobody disturbed, by everything they say. On a live stream nobody knows what was to be expected:
`unlawful`, `backward`, `shared` and `restarted` ask whether what was said, committed and audited
can be true of a life without loss and repetition:

    an incident is one `open`, any `update`s, at most one `resolved`, in this order, and a key has
    one at a time; an alert names a record, and no record is named twice by one incident
    committed offsets never go back, and nobody else speaks of a lane once a newer owner does
    the audit topic tells of no gap, and no partition is begun a second time

What it cannot see: an incident that was lost whole, from its `open` to its `resolved`. That an
alert is said in one transaction with the offsets is what rules it out, and `differences` in
tests/chaos is what shows it. Pure: no clock, no log, no Ray.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

SHOWN = 3  # breaches of one sort that are spelt out

Fields = Mapping[str, Any]


def differences(said: Mapping[str, int], expected: Mapping[str, int]) -> list[str]:
    """Alerts that are missing, too many, or said more than once; each mapping counts them."""
    found: list[str] = []
    missing = sorted(text for text, times in expected.items() if said.get(text, 0) < times)
    more = sorted(text for text, times in said.items() if times > expected.get(text, 0))
    if missing:
        found.append(f"{len(missing)} of {sum(expected.values())} are missing: {missing[:SHOWN]}")
    if more:
        found.append(f"{len(more)} are too many: {more[:SHOWN]}")
    return found


class Incident(NamedTuple):
    """An incident that was followed so far."""

    id: str
    state: str
    records: frozenset[tuple[str, int, int]]  # topic, partition, offset


def unlawful(alerts: Iterable[Fields], *, whole: bool = False) -> list[str]:
    """Breaches of the life of incidents, of alerts in the order of their topic.

    `whole`: the topic was read from its beginning, so that an `update` or `resolved` without an
    `open` is one that was lost; else such an incident is taken to have begun before.
    """
    found: list[str] = []
    open_now: dict[tuple[str, str, str], Incident] = {}
    over: set[str] = set()
    for alert in alerts:
        key = (str(alert.get("detector")), str(alert.get("key")), str(alert.get("rule")))
        name, state, place = str(alert.get("id")), str(alert.get("state")), _place(alert)
        known = open_now.get(key)
        where = f"`{key[1]}` at {place}"
        if known is not None and known.id == name and place in known.records:
            found.append(f"{where}: {state} was said twice")
        elif name in over:
            found.append(f"{where}: {state} after its end")
        elif state == "open":
            if known is not None:
                again = "opened twice" if known.id == name else "opened, the one before never ended"
                found.append(f"{where}: {again}")
            open_now[key] = Incident(name, state, frozenset((place,)))
        elif known is None or known.id != name:
            if whole or known is not None:
                found.append(f"{where}: {state} of an incident that never opened")
            open_now[key] = Incident(name, state, frozenset((place,)))
        else:
            open_now[key] = known._replace(state=state, records=known.records | {place})
        if state == "resolved":
            open_now.pop(key, None)
            over.add(name)
    return found


def _place(alert: Fields) -> tuple[str, int, int]:
    lineage = alert.get("lineage") or {}
    return (
        str(lineage.get("topic", "")),
        int(lineage.get("partition", -1)),
        int(lineage.get("offset", -1)),
    )


def beyond(alerts: Iterable[Fields], committed: Mapping[tuple[str, int], int]) -> list[str]:
    """Alerts of records that nobody committed: they were not said in one transaction."""
    found: list[str] = []
    for alert in alerts:
        topic, partition, offset = _place(alert)
        if offset >= committed.get((topic, partition), offset + 1):
            found.append(f"{topic}/{partition}: an alert of {offset}, which is not committed")
    return found


def backward(readings: Sequence[Mapping[str, int]]) -> list[str]:
    """Partitions whose committed offset went back between two readings, oldest first."""
    found: list[str] = []
    highest: dict[str, int] = {}
    for reading in readings:
        for partition, offset in reading.items():
            if offset < highest.get(partition, offset):
                found.append(f"{partition}: committed {highest[partition]}, later {offset}")
            highest[partition] = max(offset, highest.get(partition, offset))
    return found


class Holder(NamedTuple):
    """Who says that a lane is his, and how far he committed."""

    lane: int
    epoch: str
    state: str
    committed: int  # sum over its partitions


WORKING = ("running", "catching up")


def shared(readings: Sequence[Sequence[Holder]]) -> list[str]:
    """Lanes that an earlier holder took further than where a later one had begun, oldest first.

    Two who both think that they hold a lane are no breach, for brokers fence one of them; nor is
    what the first one is late to tell of. That both move its offsets is: who comes later begins at
    the last commit that the one before it will ever make.
    """
    found: dict[tuple[int, str, str], str] = {}  # each pair once
    begun: dict[int, dict[str, int]] = {}  # lane -> epoch -> where it was first seen at work
    for holder in (each for reading in readings for each in reading if each.state in WORKING):
        order = begun.setdefault(holder.lane, {})
        order.setdefault(holder.epoch, holder.committed)
        epochs = list(order)
        for later in epochs[epochs.index(holder.epoch) + 1 :]:
            if holder.committed > order[later]:
                words = f"lane {holder.lane}: {holder.epoch} went on after {later} had taken it"
                found[holder.lane, holder.epoch, later] = words
    return list(found.values())


def restarted(audited: Iterable[Fields]) -> list[str]:
    """Gaps and second beginnings that the audit topic tells of."""
    found: list[str] = []
    begun: set[tuple[str, str, int]] = set()
    for entry in audited:
        what = entry.get("what")
        place = (
            str(entry.get("detector")), str(entry.get("topic")), int(entry.get("partition", -1)),
        )  # fmt: skip
        if what == "lost":
            gap = f"{entry.get('committed')} to {entry.get('first_retained')}"
            found.append(f"{place[1]}/{place[2]}: records were lost, {gap}")
        elif what == "started":
            if place in begun:
                found.append(f"{place[1]}/{place[2]}: begun a second time")
            begun.add(place)
    return found
