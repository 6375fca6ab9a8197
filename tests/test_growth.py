"""Goal: partitions that are added to a topic while it is watched are noticed, said, and taken in by
the next deployment, from their first record on and without a word about the old ones twice.

Method: the pure rules by hand; snapshots of fewer partitions through a lane on the embedded log;
the whole service on real Ray with the embedded log in an actor that is made to grow.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lanes import alerts, lag, make, running, spec, until
from service import Service, config, ray_local
from service import until as soon

from raywatch.actors import checkpoint
from raywatch.actors import runtime as actors
from raywatch.actors.checkpoint import Snapshot, newest, save
from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.partitioner import partition_of
from raywatch.actors.ports import Bounds, Committed, Out, Partition
from raywatch.actors.runtime import LogSpec
from raywatch.actors.store import MemoryStore
from raywatch.cluster import launch
from raywatch.cluster.commands.check import examine
from raywatch.cluster.deployment import prepare
from raywatch.cluster.growth import Growth, added, grown, unwatched
from raywatch.cluster.views import (
    ClusterView,
    Observed,
    OwnerView,
    PartitionView,
    PoolView,
    ScorerView,
)
from raywatch.cluster.words import verdict

BEGIN_MS = 1_700_000_000_000


def of(topic: str, *numbers: int) -> list[Partition]:
    return [Partition(topic, number) for number in numbers]


# ---- the rules ------------------------------------------------------------------------------


def test_growth_is_said_with_both_numbers_and_what_to_do() -> None:
    watched = [*of("x", *range(12)), *of("x", 0), *of("same", 0)]
    found = unwatched(watched, {"x": 16, "same": 1, "other": 9})
    assert found == [Growth("x", 16, 12)]
    assert found[0].words == (
        "topic `x` has 16 partitions, 12 are watched: records in the others are not read; "
        "deploy again to take them in"
    )
    assert unwatched(watched, {}) == []  # a topic that is gone did not grow


def test_added_partitions_are_those_behind_all_that_were_committed() -> None:
    partitions = [*of("x", 0, 1, 2, 3), *of("new", 0, 1)]
    assert added(partitions, of("x", 0, 1)) == of("x", 2, 3)
    assert grown(partitions, of("x", 0, 1)) == [Growth("x", 4, 2)]
    assert added(partitions, []) == []  # a group that never began
    assert added(partitions, of("x", 0, 2)) == []  # a first start that was cut short
    assert added(partitions, partitions) == []


def test_added_partitions_begin_at_their_beginning_whatever_start_says() -> None:
    found = checkpoint.start(
        partitions=of("x", 0, 1, 2),
        committed={Partition("x", 0): Committed(7)},
        bounds={p: Bounds(3, 90) for p in of("x", 0, 1, 2)},
        fresh="latest",
        lost="stop",
        added=of("x", 2),
    )
    assert [found.speak[p] for p in of("x", 0, 1, 2)] == [7, 90, 3]


def test_a_verdict_says_what_is_not_read_unless_something_is_worse() -> None:
    seen = Observed(
        cluster=ClusterView("c", "0", "d", up_s=900.0, config_path="it.yaml"),
        pool=PoolView(1, 2, 0.7),
        owners=[OwnerView("o", True)],
        scorers=[ScorerView("s", "m", "serving")],
        partitions=[PartitionView("x/0", "ok")],
        unread=Growth("x", 2, 1).words,
    )
    found = verdict(seen)
    assert found["state"] == "degraded"
    assert found["why"].startswith("Topic `x` has 2 partitions, 1 is watched: ")
    assert found["next"]["command"] == "raywatch deploy it.yaml --yes"
    worse = dataclasses.replace(seen, partitions=[PartitionView("x/0", "stalled")])
    assert verdict(worse)["words"] == "x/0 stalled"
    assert verdict(dataclasses.replace(seen, unread=""))["state"] == "healthy"


def test_check_warns_of_partitions_that_nobody_reads(tmp_path: Path) -> None:
    broker = EmbeddedBroker()
    log = EmbeddedLog(broker)
    log.create("in", 2)
    settings = config("127.0.0.1:1", "in", tmp_path, name="d")

    def warned() -> list[str]:
        return [each.words for each in examine(settings, log) if each.state == "warn"]

    assert not any("records in the others" in words for words in warned())  # it never ran
    sink, source = log.sink("d", "raywatch.d"), log.source("raywatch.d", of("in", 0, 1))
    sink.open()
    sink.transact([], dict.fromkeys(of("in", 0, 1), Committed(0)), source)
    assert not any("records in the others" in words for words in warned())
    broker.grow("in", 4)
    assert f"d: {Growth('in', 4, 2).words}" in warned()


# ---- state ----------------------------------------------------------------------------------


def snapshot(**offsets: int) -> Snapshot:
    where = {Partition("x", int(n[1:])): o for n, o in offsets.items()}
    return Snapshot(where, "m", "l", {"a": np.zeros(1)})


def test_a_snapshot_serves_more_partitions_than_it_has_and_never_fewer() -> None:
    def found(store: MemoryStore, *numbers: int) -> dict[Partition, int] | None:
        it = newest(store, "d", 0, "l", dict.fromkeys(of("x", *numbers), 50))
        return None if it is None else it.offsets

    store = MemoryStore()
    save(store, "d", 0, snapshot(p0=5, p2=6), "e1")
    assert found(store, 0, 2, 4) == {Partition("x", 0): 5, Partition("x", 2): 6}
    assert found(store, 0, 2) == {Partition("x", 0): 5, Partition("x", 2): 6}
    assert found(store, 0) is None  # it holds what another lane holds now
    assert found(store, 0, 4) is None
    assert found(store, 4, 2, 0) is not None  # it says in which order its arrays count them
    save(store, "d", 0, snapshot(p0=60, p2=6), "e1")  # beyond what is committed
    assert found(store, 0, 2, 4) == {Partition("x", 0): 5, Partition("x", 2): 6}


def stream(keys: range, rows: range) -> list[Out]:
    """Every fifth key is off by 30 sigma from row 300 on."""
    found: list[Out] = []
    for row in rows:
        noise = np.random.default_rng(row).normal(size=1_000)
        for key in keys:
            value = noise[key] + (30.0 if key % 5 == 0 and row >= 300 else 0.0)
            entry = {"host": f"h{key}", "ts": BEGIN_MS + row * 1_000, "value": value}
            found.append(Out("in", f"h{key}".encode(), json.dumps(entry).encode()))
    return found


def test_a_lane_goes_on_from_a_snapshot_of_fewer_partitions_as_if_it_had_read_them_all() -> None:
    """A lane of partition 1 becomes a lane of 0 .. 3: state moves with its partition's number."""

    def world() -> EmbeddedLog:
        log = EmbeddedLog(EmbeddedBroker())
        log.create("in", 4)
        for topic in ("d.alerts", "d.rejects", "raywatch.audit"):
            log.create(topic, 1)
        return log

    early, late = stream(range(40), range(320)), stream(range(40), range(320, 420))
    detector = spec("d", "in")
    mine = [o for o in early if partition_of(o.key, 4) == 1]
    others = [o for o in early if partition_of(o.key, 4) != 1]

    whole = world()
    whole.write([*mine, *others, *late])
    with running(make(detector, whole, of("in", 0, 1, 2, 3))):
        until(lambda: lag(whole, detector, of("in", 0, 1, 2, 3)) == 0)

    log = world()
    store = MemoryStore()
    log.write(mine)
    with running(make(detector, log, of("in", 1), store=store)):
        until(lambda: lag(log, detector, of("in", 1)) == 0)
    log.write([*others, *late])
    lane = make(detector, log, of("in", 0, 1, 2, 3), store=store, epoch="e2")
    with running(lane):
        until(lambda: lag(log, detector, of("in", 0, 1, 2, 3)) == 0)

    # Of partition 1 only what came later was read again: its state came from the snapshot.
    assert lane.stats.records == len(others) + len(late)
    keep = ("id", "key", "state", "at_ms", "score", "tail_probability")

    def plain(found: list[dict[str, Any]]) -> list[str]:
        return sorted(repr([a[name] for name in keep]) for a in found)

    assert plain(alerts(log, "d.alerts")) == plain(alerts(whole, "d.alerts"))
    assert {a["key"] for a in alerts(log, "d.alerts")} >= {"h0", "h5", "h10", "h15"}


# ---- the whole service ----------------------------------------------------------------------


@pytest.mark.ray
def test_a_service_says_that_a_topic_grew_and_the_next_deployment_takes_it_in(
    tmp_path: Path,
) -> None:
    with ray_local():
        actors.start_broker("log")
        where = LogSpec(embedded="log")
        log = actors.open_log(where)
        log.create("in", 2)
        settings = config(
            "127.0.0.1:1", "in", tmp_path, name="d", start="latest", lanes=4, pool={"min": 1}
        )
        service = Service(settings, where)
        try:
            service.start()
            log.write(stream(range(40), range(310)))
            service.drained()
            before = alerts(log, "d.alerts")
            actors.find("log").call.remote("grow", "in", 4)
            words = Growth("in", 4, 2).words
            soon(lambda: words in service.journal(), 30.0)
            seen = service.call("snapshot")
            assert seen["verdict"]["state"] == "degraded"
            assert seen["verdict"]["why"].lower().startswith(words)
            late = stream(range(40), range(310, 420))
            log.write(late)

            deployment = prepare(settings, log, where)
            assert deployment.detections[0].spec.added == tuple(of("in", 2, 3))
            told: list[str] = []
            service.handle = launch.start(deployment, progress=told.append)
            assert "2 partitions were added: it stops, and starts again with them" in told
            service.partitions = deployment.detections[0].partitions
            service.drained()
            assert service.journal().count(words) == 1
            soon(lambda: service.call("snapshot")["verdict"]["state"] == "healthy", 30.0)
            assert launch.added(service.handle, deployment) == []
            said = alerts(log, "d.alerts")
        finally:
            service.stop()
    assert before
    opened = [a["id"] for a in said if a["state"] == "open"]
    assert len(opened) == len(set(opened))
    # Keys moved when partitions came, so that those that moved begin anew, in a new partition.
    assert {a["key"] for a in said} <= {f"h{number}" for number in range(40)}
