"""What lives went through: a checker that checks nothing would be as green as this one."""

import json
from collections import Counter
from itertools import pairwise

from sim.life import History

# At least so many of each in 1,000 lives from seed 0 on. Far below what was seen, and far above 0.
LEAST = {
    "lives": 1_000,
    "alerts": 3_000,
    "anomaly open": 1_500,
    "anomaly update": 50,
    "anomaly resolved": 1_000,
    "missing open": 300,
    "missing resolved": 300,
    "rejects": 3_000,
    "lives of several lanes": 400,
    "lives of several owners": 200,
    "lives at least once": 50,
    "lives with a rollout": 250,
    "lives with another number of lanes": 100,
    "versions changed": 250,
    "owners died": 1_000,
    "owners replaced": 200,
    "standbys that took lanes": 30,
    "standbys that moved": 30,
    "scorers that moved": 30,
    "zombies": 60,
    "refused requests": 50,
    "fenced by the next holder": 80,
    "fenced by a time-out": 10,
    "transactions aborted": 100,
    "hung calls": 10,
    "snapshots loaded": 400,
    "snapshots behind the commit": 250,
    "retention": 80,
    "lives with labels": 100,
    "labels": 20_000,
    "times of a log that went back": 500,
    "snapshots loaded with labels": 50,
    "lives with a budget": 250,
    "held back": 300,
}


def covered(history: History) -> Counter[str]:
    """Counts of one life."""
    made = history.setup
    count: Counter[str] = Counter(lives=1, rejects=len(history.said[made.spec.rejects]))
    for entry in history.said[made.spec.alerts]:
        alert = json.loads(entry.value or b"{}")
        count["alerts"] += 1
        count[f"{alert['rule']} {alert['state']}"] += 1
    count["lives of several lanes"] += len(history.lanes) > 1
    count["lives of several owners"] += made.owners > 1
    count["lives at least once"] += not made.exactly_once
    count["lives with a rollout"] += bool(made.rollouts)
    relaned = made.relaned is not None and made.relaned[1] != made.lanes
    count["lives with another number of lanes"] += relaned
    count["versions changed"] += sum(
        b'"version"' in (e.value or b"") for e in history.said["audit"]
    )
    count += _labels_and_budget(history)
    for _, kind, *what in history.events:
        if kind == "dead":
            count["owners died"] += ".owner-" in what[0]
        elif kind == "journal":
            count["standbys that moved"] += what[1].startswith("who stands by for")
            count["scorers that moved"] += "are on one machine" in what[1]
            count["owners replaced"] += "its lanes get another owner" in what[1]
            count["standbys that took lanes"] += "which stood by" in what[1]
        elif kind == "lives on":
            count["zombies"] += 1
        elif kind == "refused":
            count["refused requests"] += 1
        elif kind == "fenced":
            count["fenced by a time-out" if "long" in what[2] else "fenced by the next holder"] += 1
        elif kind == "decided":
            count["transactions aborted"] += not what[3]
        elif kind == "died":
            count["hung calls"] += what[1].startswith("TimeoutError")
        elif kind == "loaded":
            count["snapshots loaded"] += 1
            count["snapshots behind the commit"] += what[1] != what[2]
        elif kind == "retention":
            count["retention"] += 1
    for fault in history.struck:
        count[f"fault: {fault.kind}"] += 1
    return count


def _labels_and_budget(history: History) -> Counter[str]:
    labels, per_day = history.setup.spec.labels, history.setup.spec.decide.per_day
    count: Counter[str] = Counter()
    count["lives with labels"] += bool(labels)
    count["lives with a budget"] += per_day > 0.0
    count["held back"] += sum(tally.held for _, _, tally, _ in history.counted)
    for place, entries in history.inputs.items():
        times = [entry.time_ms for entry in entries]
        count["labels"] += len(times) if place.topic == labels else 0
        back = sum(after < before for before, after in pairwise(times))
        count["times of a log that went back"] += back
    loaded = sum(kind == "loaded" for _, kind, *_ in history.events)
    count["snapshots loaded with labels"] += loaded if labels else 0
    return count


def missing(count: Counter[str]) -> list[str]:
    """What 1,000 lives should have met and did not, in words; scaled to the lives there were."""
    share = count["lives"] / LEAST["lives"]
    return [
        f"{name}: {count[name]}, at least {least * share:.0f} wanted"
        for name, least in LEAST.items()
        if count[name] < round(least * share)
    ]
