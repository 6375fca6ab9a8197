"""Goal: a lane's state is that of its log, whatever became of snapshots, versions and scorers.

Method: as in test_lane.py. Snapshots are torn, outrun and left behind; the model is changed in the
middle; scorers come late or hang.
"""

import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import Future
from typing import Any

import pytest
from lanes import (
    NEVER_S,
    RECORDS,
    Killed,
    Mortal,
    World,
    lag,
    live,
    make,
    running,
    spec,
    undisturbed,
    until,
    world,
)  # fmt: skip

from raywatch.actors import checkpoint
from raywatch.actors.clock import SystemClock
from raywatch.actors.lane import Lane
from raywatch.actors.pool import LocalPool, Members, RemotePool
from raywatch.actors.ports import Log
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.store import MemoryStore
from raywatch.models.errors import Unreachable
from raywatch.models.registry import build, shipped
from raywatch.models.scorer import ModelSpec, Scores, Segments, describe

# ---- snapshots ------------------------------------------------------------------------------


def test_a_lane_that_has_nothing_new_stores_nothing() -> None:
    there = world()
    there.log.write(RECORDS[:5_000])
    detector = spec("d", "in", snapshot_s=0.01)
    lane = make(detector, there.log, there.partitions, store=there.store)
    with running(lane):
        until(lambda: lag(there.log, detector, there.partitions) == 0)
        until(lambda: lane.stats.state == "running")
        time.sleep(0.1)
        before = there.snapshots()
        time.sleep(0.2)
        assert there.snapshots() == before
    assert len(before) <= checkpoint.KEEP


def test_the_first_snapshot_says_where_a_state_began() -> None:
    """What retention takes before the first interval is over must not change what is said."""
    there = world()
    there.log.write(RECORDS[:20_000])
    detector = spec("d", "in", snapshot_s=NEVER_S, batch_records=1_000)
    chance = random.Random(5)
    with pytest.raises(Killed):
        live(there, detector, log=Mortal(there.log, chance.randrange(30, 40), done=True))
    assert there.snapshots()
    stands = there.commits(detector)
    stored = checkpoint.newest(there.store, "d", 0, "5:1", {p: c.offset for p, c in stands.items()})
    assert stored is not None
    for partition, offset in stored.offsets.items():
        there.broker.delete_records(partition, offset)
    there.log.write(RECORDS[20_000:])
    live(there, detector)
    assert there.said() == undisturbed(RECORDS)


def test_a_replay_is_bounded_in_records_where_time_is_long() -> None:
    """A snapshot a minute is a million records where a lane catches up."""
    there = world(partitions=1)
    there.log.write(RECORDS)
    changes: dict[str, Any] = {"batch_records": 200, "replay_max": 4_000, "checkpoint_s": 0.0}
    detector = spec("d", "in", snapshot_s=NEVER_S, **changes)
    for life in (80, 90, 70):
        with pytest.raises(Killed):
            live(there, detector, log=Mortal(there.log, life, done=True))
        stands = {p: c.offset for p, c in there.commits(detector).items()}
        stored = checkpoint.newest(there.store, "d", 0, "5:1", stands)
        assert stored is not None
        # Half of `replay_max`, and what was in flight or gathered when it was reached.
        assert sum(stands.values()) - sum(stored.offsets.values()) <= 2_000 + 6 * 200
    live(there, detector)

    calm = world(partitions=1)
    calm.log.write(RECORDS)
    live(calm, spec("d", "in"))
    assert there.said() == calm.said()


def test_a_torn_snapshot_is_passed_over() -> None:
    there = world()
    there.log.write(RECORDS[:30_000])
    detector = spec("d", "in", snapshot_s=0.02, batch_records=1_000)
    live(there, detector)
    names = there.snapshots()
    assert len(names) == checkpoint.KEEP
    for name, cut in zip(names[1:], (0, 100), strict=True):
        blob = there.store.get(name)
        assert blob is not None
        there.store.put(name, blob[:cut] + blob[cut + 1 :])
    there.log.write(RECORDS[30_000:])
    live(there, detector)
    assert there.said() == undisturbed(RECORDS)


def test_snapshots_above_the_commit_are_of_another_past() -> None:
    """An operator put the group back: what was stored since does not count, and does not stay."""
    there = world()
    detector = spec("d", "in", snapshot_s=0.02, batch_records=1_000)
    there.log.write(RECORDS[:20_000])
    live(there, detector)
    back = there.commits(detector)
    once = there.said()
    there.log.write(RECORDS[20_000:])
    live(there, detector)
    late = there.said() - once
    assert late
    stood = sum(committed.offset for committed in back.values())
    assert any(_stands(name) > stood for name in there.snapshots())

    epoch = there.broker.take("operator")
    there.broker.transact("operator", epoch, [], detector.group, back)
    with pytest.raises(Killed):
        live(there, detector, log=Mortal(there.log, 3, done=True))
    assert all(_stands(name) <= stood for name in there.snapshots())
    live(there, detector)
    assert there.said() == once + late + late  # what was asked for again is said again, the same


def _stands(name: str) -> int:
    return int(name.rpartition("/")[2].partition("-")[0])


def test_partitions_in_another_order_find_their_state() -> None:
    there = world()
    detector = spec("d", "in")
    there.log.write(RECORDS[:20_000])
    live(there, detector)
    there.log.write(RECORDS[20_000:])
    there.partitions.reverse()
    for partition, bound in there.log.bounds(there.partitions).items():
        there.broker.delete_records(
            partition, min(bound.end, there.commits(detector)[partition][0])
        )
    live(there, detector)
    assert there.said() == undisturbed(RECORDS)


def test_a_store_that_is_away_stops_nothing() -> None:
    class Away(MemoryStore):
        def put(self, name: str, blob: bytes) -> None:
            raise Unreachable("the bucket is away")

    there = world()
    there.store = Away()
    there.log.write(RECORDS)
    lane = live(there, spec("d", "in", snapshot_s=0.02))
    assert there.said() == undisturbed(RECORDS)
    assert lane.stats.snapshot == ""


# ---- versions -------------------------------------------------------------------------------


def test_commits_note_the_version_and_all_of_them_when_it_changes() -> None:
    there = world()
    there.log.write(RECORDS[:20_000])
    detector = spec("d", "in", batch_records=2_000)
    models = Models("robustz")
    with running(models.lane(there, detector)):
        until(lambda: lag(there.log, detector, there.partitions) == 0)
        stands = there.commits(detector)
        notes = {checkpoint.noted(c.note) for c in stands.values()}
        assert notes == {(models.version("robustz"), 0)}

        models.served, asked = "lagbank", models.asked
        until(lambda: models.asked > asked + 2)  # from now on, whatever it reads is for lagbank
        only = [r for r in RECORDS[20_000:] if r.key == RECORDS[0].key]  # of one partition
        there.log.write(only)
        until(lambda: lag(there.log, detector, there.partitions) == 0)
    notes = {p: checkpoint.noted(c.note) for p, c in there.commits(detector).items()}
    # The three partitions without a new record, too: who comes next must not have to guess.
    assert notes == {p: (models.version("lagbank"), c.offset) for p, c in stands.items()}
    audited = {a["partition"]: (a["offset"], a["model"]) for a in there.audited("version")}
    assert audited == {p.number: (o, v) for p, (v, o) in notes.items()}


@pytest.mark.parametrize("snapshot_s", [0.05, NEVER_S])
def test_lanes_that_die_around_a_change_of_version_say_what_one_says(snapshot_s: float) -> None:
    changes: dict[str, Any] = {"batch_records": 900, "checkpoint_s": 0.0}
    detector = spec("d", "in", snapshot_s=snapshot_s, **changes)
    calm = _changed(world(), spec("d", "in", **changes), [])
    assert {json.loads(a)["model"].partition("@")[0] for a in calm} == {"robustz", "lagbank"}
    chance = random.Random(9)
    for _ in range(3):
        deaths = [(chance.randrange(1, 20), chance.random() < 0.5) for _ in range(10)]
        assert _changed(world(), detector, deaths) == calm, deaths


def _changed(there: World, detector: DetectorSpec, deaths: list[tuple[int, bool]]) -> Counter[str]:
    """Half a stream by one model, half by another; lanes die in the second half."""
    models = Models("robustz")
    there.log.write(RECORDS[:26_000])
    with running(models.lane(there, detector)):
        until(lambda: lag(there.log, detector, there.partitions) == 0)
    there.log.write(RECORDS[26_000:])
    models.served = "lagbank"
    for dies_at, done in deaths:
        with pytest.raises(Killed):
            models.lane(there, detector, log=Mortal(there.log, dies_at, done=done)).run()
    with running(models.lane(there, detector)):
        until(lambda: lag(there.log, detector, there.partitions) == 0)
    return there.said()


class Models:
    """Both shipped models, and which one the owner was told to use."""

    def __init__(self, served: str) -> None:
        self.served, self.asked = served, 0
        self.scorers = {name: build(shipped(name)) for name in ("robustz", "lagbank")}

    def version(self, name: str) -> str:
        return self.scorers[name].version

    def lane(self, there: World, detector: DetectorSpec, log: Log | None = None) -> Lane:
        known = {s.version: describe(s) for s in self.scorers.values()}
        pool = LocalPool({s.version: s for s in self.scorers.values()})

        def model(lane: int, noted: str) -> ModelSpec:
            self.asked += 1
            return known[noted or self.version(self.served)]

        return Lane(
            detector, 0, tuple(there.partitions), log=log or there.log, pool=lambda: pool,
            store=there.store, clock=SystemClock(), epoch="e", model=model,
        )  # fmt: skip


# ---- scorers --------------------------------------------------------------------------------


class Slow:
    """A scorer elsewhere: answers in a thread, or not at all while it is frozen."""

    def __init__(self, name: str) -> None:
        self.name, self._scorer = name, build(shipped("robustz"))
        self.version = self._scorer.version
        self.awake = threading.Event()
        self.asked = 0

    def score(self, payload: Segments) -> "Future[Scores]":
        self.asked += 1
        answer: Future[Scores] = Future()

        def work() -> None:
            if self.awake.wait(20.0):
                answer.set_result(self._scorer.score(payload))

        threading.Thread(target=work, daemon=True).start()
        return answer


def test_a_lane_without_scorers_waits_says_so_and_goes_on() -> None:
    there = world()
    there.log.write(RECORDS)
    detector = spec("d", "in", batch_records=500)
    members = Members(SystemClock())
    lane = _with(there, detector, members, timeout_s=5.0)
    with running(lane):
        until(lambda: "no scores of `robustz@" in lane.stats.words)
        assert lane.stats.in_flight == 1  # the first snapshot is due and waits for it
        assert lane.stats.records == 0
        assert sum(c.offset for c in there.commits(detector).values()) == 0
        scorer = Slow("late")
        scorer.awake.set()
        members.replace({"late": scorer})
        until(lambda: lag(there.log, detector, there.partitions) == 0)
        assert lane.stats.words == ""
    assert there.said() == undisturbed(RECORDS)


def test_what_a_frozen_scorer_holds_is_scored_by_another() -> None:
    there = world()
    there.log.write(RECORDS)
    detector = spec("d", "in", batch_records=2_000)
    frozen, other = Slow("a-frozen"), Slow("b-other")
    other.awake.set()
    members = Members(SystemClock())
    members.replace({"a-frozen": frozen, "b-other": other})
    lane = _with(there, detector, members, timeout_s=0.3)
    with running(lane):
        until(lambda: lag(there.log, detector, there.partitions) == 0)
        assert frozen.asked > 0
        assert "no answer in" in members.failures()["a-frozen"]
        frozen.awake.set()  # its answers come late, and count for nothing
        time.sleep(0.1)
    assert there.said() == undisturbed(RECORDS)


def _with(there: World, detector: DetectorSpec, members: Members, *, timeout_s: float) -> Lane:
    clock, known = SystemClock(), describe(build(shipped("robustz")))
    return Lane(
        detector, 0, tuple(there.partitions), log=there.log, store=there.store, clock=clock,
        pool=lambda: RemotePool(members, clock, timeout_s=timeout_s),
        model=lambda lane, noted: known, epoch="e",
    )  # fmt: skip
