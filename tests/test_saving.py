"""Goal: a store that is slow or hangs delays no record, and costs bounded memory.

Method: a store whose `put` waits for a sign; a lane beside it must go on, and say the same.
"""

import threading
from concurrent.futures import Future

import pytest
from lanes import World, lag, live, make, running, spec, undisturbed, until, world
from test_lane_state import RECORDS

from raywatch.actors.clock import VirtualClock
from raywatch.actors.ports import Partition
from raywatch.actors.saving import AGAIN_S, Saver, Saving
from raywatch.actors.store import MemoryStore
from raywatch.models.errors import Unreachable

HERE = Partition("in", 0)


class Held(MemoryStore):
    """Writes only after a sign."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.sign = threading.Event(), threading.Event()

    def put(self, name: str, blob: bytes) -> None:
        self.asked.set()
        assert self.sign.wait(60.0)
        super().put(name, blob)


def _lag(there: World, detector: object) -> int:
    return lag(there.log, detector, there.partitions)


def test_records_go_on_while_the_store_does_not_answer() -> None:
    there = world()
    store = there.store = Held()
    detector = spec("d", "in", snapshot_s=0.02, batch_records=1_000)
    lane = make(detector, there.log, there.partitions, store=store)
    lane.saver = Saver(beside=True)
    there.log.write(RECORDS[:10_000])
    with running(lane):
        until(store.asked.is_set)
        there.log.write(RECORDS[10_000:])
        until(lambda: _lag(there, detector) == 0)
        assert lane.stats.snapshot == ""
        store.sign.set()
        until(lambda: lane.stats.snapshot != "")
    assert there.said() == undisturbed(RECORDS)


def test_what_was_stored_beside_is_what_the_next_owner_begins_with() -> None:
    there = world()
    detector = spec("d", "in", batch_records=1_000)
    there.log.write(RECORDS[:20_000])
    lane = make(detector, there.log, there.partitions, store=there.store)
    lane.saver = Saver(beside=True)
    with running(lane):
        until(lambda: _lag(there, detector) == 0)
    assert there.snapshots()  # also the last one, which the lane's end waited for
    there.log.write(RECORDS[20_000:])
    live(there, detector)
    assert there.said() == undisturbed(RECORDS)


def test_one_snapshot_at_a_time() -> None:
    saver, sign = Saver(beside=True), threading.Event()

    def slow() -> str:
        assert sign.wait(60.0)
        return "first"

    first = saver.begin(slow, 0.0)
    assert not saver.free()
    with pytest.raises(Unreachable, match="busy with another snapshot"):
        saver.begin(lambda: "second", 0.05)
    sign.set()
    assert first.result(10.0) == "first"
    second: Future[str] = saver.begin(lambda: "second", 10.0)
    assert second.result(10.0) == "second"


def test_what_could_not_be_stored_is_tried_again_after_seconds_not_at_every_step() -> None:
    def broken() -> str:
        raise Unreachable("the disk is full", hint="free some space")

    clock = VirtualClock()
    saving = Saving(Saver(beside=False), clock, 60.0, {HERE: 0}, 0.0)
    assert saving.wanted({HERE: 5}, 100)
    assert not saving.save(broken, {HERE: 5}, 1.0)
    assert "disk is full" in saving.error
    assert saving.far({HERE: 5}) == 5  # what is not stored does not count as stored
    assert saving.blocked()
    clock.sleep(AGAIN_S + 0.1)
    assert not saving.blocked()
    assert saving.wanted({HERE: 5}, 100)
    assert saving.save(lambda: "name", {HERE: 5}, 1.0)
    assert (saving.name, saving.error) == ("name", "")
    assert not saving.wanted({HERE: 6}, 100)  # not due for another minute,
    assert saving.wanted({HERE: 106}, 100)  # but a replay would be too long


def test_a_bug_while_storing_is_not_swallowed() -> None:
    saving = Saving(Saver(beside=False), VirtualClock(), 60.0, {HERE: 0}, 0.0)

    def bug() -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        saving.save(bug, {HERE: 1}, 1.0)
