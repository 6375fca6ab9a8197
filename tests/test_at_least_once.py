"""Goal: where brokers have no transactions, every alert is written at least once under the same id,
offsets are committed forward only, and everybody can see which mode it is.

Method: on real Kafka, a lane that does without transactions is killed between writing and
committing, time and again, and another goes on; what was said is compared with one quiet lane.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lanes import Killed, alerts, lag, make, read_all, running, spec, until
from service import config

from raywatch.actors.clock import SystemClock
from raywatch.actors.kafka import KafkaLog, KafkaSource
from raywatch.actors.owner import Owner
from raywatch.actors.pool import Members
from raywatch.actors.ports import Committed, Out, Partition
from raywatch.actors.runtime import LogSpec
from raywatch.actors.store import MemoryStore
from raywatch.cluster.commands import status
from raywatch.cluster.deployment import prepare
from raywatch.cluster.series import Axis
from raywatch.cluster.snapshot import build
from raywatch.cluster.views import ClusterView, Observed, PoolView
from raywatch.models.errors import Fenced

KEYS, ROWS = 10, 500


def stream(topic: str) -> list[Out]:
    """Every fifth key is off by 30 sigma in rows 200 .. 239 and by 3,000 from row 350 on."""
    drawn = np.random.default_rng(1).normal(size=(ROWS, KEYS))
    drawn[200:240, ::5] += 30.0
    drawn[350:, ::5] += 3_000.0
    return [
        Out(
            topic,
            f"h{key}".encode(),
            b'{"host": "h%d", "ts": %d, "value": %f}' % (key, 1_700_000_000_000 + row * 1_000, x),
        )
        for row, values in enumerate(drawn)
        for key, x in enumerate(values)
    ]


def world(log: KafkaLog, topic: Callable[[str], str]) -> tuple[str, list[Partition]]:
    """A detector's name, its topics made, and 5,000 records in 2 partitions."""
    events, name = topic("events"), topic("d")
    log.create(events, 2)
    for each in (f"{name}.alerts", f"{name}.rejects", "raywatch.audit"):
        log.create(each, 1)
    log.write(stream(events))
    return name, [Partition(events, 0), Partition(events, 1)]


@pytest.mark.kafka
def test_a_lane_killed_between_writing_and_committing_repeats_alerts_and_loses_none(
    kafka: Any, topic: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = KafkaLog(kafka.bootstrap, exactly_once=False)
    name, partitions = world(log, topic)
    events = partitions[0].topic
    # Small batches and commits after each: there is a lot between two of which to die.
    detector = spec(name, events, batch_records=400, batch_wait_s=0.005, checkpoint_s=0.0)

    commit, calls, committed = KafkaSource.commit, [0], [dict.fromkeys(partitions, -1)]

    def mortal(self: KafkaSource, offsets: Any, deadline: float) -> list[Partition]:
        calls[0] += 1
        if calls[0] % 4 == 0:
            raise Killed  # what was written is durable, and nobody knows how far it goes
        ahead = commit(self, offsets, deadline)
        there = log.committed(detector.group, partitions)
        committed.append({p: there[p].offset if p in there else -1 for p in partitions})
        if sum(committed[-1].values()) == KEYS * ROWS:
            raise Killed  # at the end there is nothing more to die of
        return ahead

    monkeypatch.setattr(KafkaSource, "commit", mortal)
    store, died = MemoryStore(), 0
    while lag(log, detector, partitions) > 0:
        lane = make(detector, log, partitions, store=store, epoch=f"e{died}")
        with pytest.raises(Killed):
            lane.run()
        died += 1
        assert died < 60, lag(log, detector, partitions)
    assert died > 3
    monkeypatch.setattr(KafkaSource, "commit", commit)
    for before, after in itertools.pairwise(committed):
        assert all(before[p] <= after[p] for p in partitions)  # forward only

    # One quiet lane on the same records, under another group: the same ids, each once.
    quiet = spec(name, events, group=topic("quiet"), alerts=topic("quiet.alerts"))
    log.create(quiet.alerts, 1)
    with running(make(quiet, log, partitions)):
        until(lambda: lag(log, quiet, partitions) == 0, 60.0)
    expected = Counter((a["id"], a["state"]) for a in alerts(log, quiet.alerts))
    assert set(expected.values()) == {1}
    assert sum(state == "open" for _, state in expected) >= 4
    said = Counter((a["id"], a["state"]) for a in alerts(log, detector.alerts))
    assert said.keys() == expected.keys()
    assert sum(said.values()) > len(said)  # the point of the mode: some were said again
    # What is said again is the same to the byte.
    bodies = {out.value for out in read_all(log, detector.alerts)}
    assert bodies == {out.value for out in read_all(log, quiet.alerts)}
    log.close()


@pytest.mark.kafka
def test_a_lane_that_was_left_behind_takes_no_offset_back(
    kafka: Any, topic: Callable[[str], str]
) -> None:
    log = KafkaLog(kafka.bootstrap, exactly_once=False)
    name, partitions = world(log, topic)
    detector = spec(name, partitions[0].topic)
    zombie = log.sink(detector.lane_id(0), detector.group)
    source = log.source(detector.group, partitions)
    zombie.open()
    with running(make(detector, log, partitions)):
        until(lambda: lag(log, detector, partitions) == 0, 60.0)
    there = log.committed(detector.group, partitions)
    with pytest.raises(Fenced, match="somebody committed further"):
        zombie.transact([], {partitions[0]: Committed(3)}, source)
    assert log.committed(detector.group, partitions) == there
    source.close()
    log.close()


@pytest.mark.kafka
def test_the_mode_is_in_the_journal_in_the_reports_and_in_status(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    log = KafkaLog(kafka.bootstrap, exactly_once=False)
    name, partitions = world(log, topic)
    events = partitions[0].topic
    settings = config(kafka.bootstrap, events, tmp_path, name=name)
    found = prepare(settings, log, LogSpec(bootstrap=kafka.bootstrap, exactly_once=False))
    assert found.log.exactly_once is False
    assert any("at least once, with deterministic alert ids" in note for note in found.notes)

    clock = SystemClock()
    owner = Owner(
        "o", spec(name, events), {0: tuple(partitions)}, log=log, store=MemoryStore(), clock=clock,
        members=Members(clock, lambda segments: segments), epoch="e",
    )  # fmt: skip
    try:
        until(lambda: owner.report().exactly_once is not None)
        assert owner.report().exactly_once is False
    finally:
        assert owner.stop(20.0)
        log.close()


@pytest.mark.parametrize(
    ("mode", "said"), [(True, "; exactly once"), (False, "; at least once"), (None, "; -")]
)
def test_status_says_how_often_an_alert_is_written(mode: bool | None, said: str) -> None:
    seen = Observed(ClusterView("c", "0", "d", 1.0, exactly_once=mode), PoolView(1, 2, 0.7))
    snapshot = build(seen, 0, Axis(n=3, step_s=5.0))
    assert snapshot["cluster"]["exactly_once"] is mode
    (line,) = [line for line in status.lines(snapshot) if line.startswith("alerts ")]
    assert said in line
