"""Goal: nobody writes for a partition but the lane that holds it, also after `lanes` was changed.

Method: lanes of one number of lanes work and leave a zombie; lanes of another number follow.
"""

import dataclasses

import pytest
from lanes import RECORDS, live, make, spec, undisturbed, world

from raywatch.actors import checkpoint, fencing
from raywatch.actors.ports import Committed, Out, Partition
from raywatch.actors.store import MemoryStore
from raywatch.models.errors import Fenced


def test_a_zombie_of_another_number_of_lanes_is_fenced() -> None:
    there = world()
    one = spec("d", "in", lanes=1)
    every = list(there.partitions)
    there.log.write(RECORDS[:20_000])
    live(there, one)
    zombie = there.log.sink(one.lane_id(0), one.group)  # who froze after it had opened the lane
    zombie.open()
    source = there.log.source(one.group, every)

    two = spec("d", "in", lanes=2)
    there.log.write(RECORDS[20_000:])
    there.partitions = every[0::2]
    live(there, two)
    with pytest.raises(Fenced):
        zombie.transact([Out("d.alerts", b"k", b"{}")], {every[1]: Committed(1)}, source)
    there.partitions = every
    notes = {p.number: checkpoint.holder(c.note) for p, c in there.commits(two).items()}
    assert notes[0] == notes[2] == two.lane_id(0)  # from now on nobody else is fenced
    assert notes[1] == notes[3] == one.lane_id(0)
    commits = there.commits(two)
    assert fencing.former(two, 1, every, commits, []) == [one.lane_id(0), two.lane_id(0)]


def test_state_and_alerts_survive_another_number_of_lanes() -> None:
    there = world()
    every = list(there.partitions)
    there.log.write(RECORDS[:20_000])
    live(there, spec("d", "in", lanes=1))
    there.log.write(RECORDS[20_000:])
    for lane in range(2):
        there.partitions = every[lane::2]
        live(there, spec("d", "in", lanes=2), number=lane)
    there.partitions = every
    assert there.said() == undisturbed(RECORDS)


def test_a_note_fences_lanes_of_its_own_detector_only() -> None:
    detector = spec("d", "in", lanes=2)
    partition = Partition("in", 0)
    for name in ("raywatch.other.0-of-2", "payments", "raywatch.d.", "raywatch.d.0-of-2/../x", ""):
        note = checkpoint.note("m@1", 0, name)
        found = fencing.former(detector, 0, [partition], {partition: Committed(3, note)}, [])
        assert found == [], name
    for note in ("", "[]", '{"lane": 7}', "not JSON"):
        found = fencing.former(detector, 0, [partition], {partition: Committed(3, note)}, [])
        assert found == [], note
    note = checkpoint.note("m@1", 0, "raywatch.d.7-of-9")
    noted = {partition: Committed(3, note)}
    assert fencing.former(detector, 0, [partition], noted, []) == ["raywatch.d.7-of-9"]


def test_who_opened_under_another_number_of_lanes_and_never_committed_is_fenced() -> None:
    """Found by the simulator: no commit notes such a lane."""
    there = world()
    one, two = spec("d", "in", lanes=1), spec("d", "in", lanes=2)
    fencing.declare(there.store, one)
    zombie = there.log.sink(one.lane_id(0), one.group)
    zombie.open()
    source = there.log.source(one.group, there.partitions)
    there.log.write(RECORDS[:20_000])
    every = list(there.partitions)
    there.partitions = every[0::2]
    fencing.declare(there.store, two)
    live(there, two)
    with pytest.raises(Fenced):
        zombie.transact([Out("d.alerts", b"k", b"{}")], {every[0]: Committed(1)}, source)


def test_who_opens_a_lane_of_an_earlier_deployment_stops() -> None:
    """Found by the simulator: nobody may have committed since, so no note tells it."""
    there = world()
    one = spec("d", "in", lanes=1)
    fencing.declare(there.store, one)
    fencing.declare(there.store, spec("d", "in", lanes=2))
    lane = make(one, there.log, there.partitions, store=there.store)
    lane.run()
    assert lane.stats.state == "fenced"
    assert "there are `2` lanes now" in lane.stats.words
    assert there.commits(one) == {}


def test_a_lane_whose_commits_are_all_its_own_fences_nobody() -> None:
    detector = spec("d", "in", lanes=2)
    partitions = [Partition("in", 0), Partition("in", 2)]
    mine = Committed(3, checkpoint.note("m@1", 0, detector.lane_id(0)))
    every = dict.fromkeys(partitions, mine)
    assert fencing.former(detector, 0, partitions, every, [1, 3, 2]) == []
    names = ["raywatch.d.0-of-1", "raywatch.d.0-of-3", "raywatch.d.2-of-3"]
    assert fencing.former(detector, 0, partitions, {partitions[0]: mine}, [1, 3, 2]) == names


def test_numbers_of_lanes_are_remembered_in_order_and_what_is_stored_is_not_trusted() -> None:
    store, detector = MemoryStore(), spec("d", "in")
    for lanes in (3, 3, 5, 3, *range(20, 40)):
        fencing.declare(store, dataclasses.replace(detector, lanes=lanes))
    assert fencing.declared(store, detector) == list(range(32, 40))
    for blob in (b"", b"[]", b"{", b'{"lanes": 3}', b'{"lanes": ["3", true, 0, 10000, null]}'):
        store.put("lanes/d", blob)
        assert fencing.declared(store, detector) == [], blob
