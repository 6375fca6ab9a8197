"""Goal: nobody writes for a partition but the lane that holds it, also after `lanes` was changed.

Method: lanes of one number of lanes work and leave a zombie; lanes of another number follow.
"""

import pytest
from lanes import RECORDS, live, spec, undisturbed, world

from raywatch.actors import checkpoint, fencing
from raywatch.actors.ports import Committed, Out, Partition
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
    assert fencing.former(two, 1, there.commits(two)) == [one.lane_id(0), two.lane_id(0)]


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
        assert fencing.former(detector, 0, {partition: Committed(3, note)}) == [], name
    for note in ("", "[]", '{"lane": 7}', "not JSON"):
        assert fencing.former(detector, 0, {partition: Committed(3, note)}) == [], note
    note = checkpoint.note("m@1", 0, "raywatch.d.7-of-9")
    assert fencing.former(detector, 0, {partition: Committed(3, note)}) == ["raywatch.d.7-of-9"]
