"""Goal: a lane says the same, once, whatever happens to it, and commits what it said.

Method: real lanes in threads on the embedded log (its contract tests hold it to what Kafka does),
scorers in process; lanes are abandoned, fenced, restarted, fed markers and bad records.
"""

import json
import time

import numpy as np

from lanes import alerts, lag, make, read_all, running, spec, until
from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.ports import Out, Partition
from raywatch.actors.store import MemoryStore


def world(name: str, partitions: int = 4) -> tuple[EmbeddedLog, list[Partition]]:
    log = EmbeddedLog(EmbeddedBroker())
    log.create("in", partitions)
    for topic in (f"{name}.alerts", f"{name}.rejects", "raywatch.audit"):
        log.create(topic, 1)
    return log, [Partition("in", n) for n in range(partitions)]


def events(keys: int, rows: int, seed: int = 1) -> list[Out]:
    """A level shift in every fifth key, at row 400 of it."""
    rng = np.random.default_rng(seed)
    found: list[Out] = []
    for row in range(rows):
        for key in range(keys):
            value = rng.normal() + (30.0 if key % 5 == 0 and row >= 400 else 0.0)
            body = {"host": f"h{key}", "ts": 1_700_000_000_000 + row * 1_000, "value": value}
            found.append(Out("in", f"h{key}".encode(), json.dumps(body).encode()))
    return found


def test_a_lane_alerts_once_for_each_incident_and_commits_to_the_end() -> None:
    log, partitions = world("d")
    log.write(events(20, 600))
    detector = spec("d", "in")
    lane = make(detector, log, partitions)

    with running(lane):
        until(lambda: lag(log, detector, partitions) == 0)

    opened = [a for a in alerts(log, "d.alerts") if a["state"] == "open"]
    assert {a["key"] for a in opened} >= {"h0", "h5", "h10", "h15"}
    assert len({a["id"] for a in opened}) == len(opened)
    assert all(a["since_ms"] >= 1_700_000_000_000 for a in opened)
