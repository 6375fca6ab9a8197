"""Goal: a snapshot is what was stored or nothing, and a lane never starts above what is committed.

Method: encoding by round trip and by damage at every kind of place; choosing and discarding on a
store in memory; starts by hand-written bounds.
"""

import numpy as np
import pytest

from raywatch.actors import checkpoint
from raywatch.actors.checkpoint import Snapshot, decode, discard_beyond, encode, newest, save, start
from raywatch.actors.ports import Bounds, Committed, Partition
from raywatch.actors.store import MemoryStore
from raywatch.models.errors import ConfigError, Unreachable

A, B = Partition("x", 0), Partition("x", 1)


def snapshot(a: int, b: int, *, layout: str = "1:1", mark: int = 0) -> Snapshot:
    arrays = {
        "keys.size": np.array([mark, 2, 3], np.int32),
        "history.rings": np.arange(12, dtype=np.float32).reshape(2, 2, 3),
        "missing.none": np.zeros((0, 6), np.int64),
    }
    return Snapshot({A: a, B: b}, "m@1", layout, arrays)


# ---- one blob -------------------------------------------------------------------------------


def test_a_snapshot_comes_back_as_it_was() -> None:
    before = snapshot(3, 4)
    after = decode(encode(before))
    assert after is not None
    assert (after.offsets, after.model, after.layout) == (before.offsets, "m@1", "1:1")
    assert list(after.arrays) == list(before.arrays)
    for name, array in before.arrays.items():
        assert after.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(after.arrays[name], array)
        assert not after.arrays[name].flags.writeable  # part of the blob: who loads it copies


def test_partitions_keep_the_order_in_which_arrays_count_them() -> None:
    turned = Snapshot({B: 4, A: 3}, "m@1", "1:1", {})
    after = decode(encode(turned))
    assert after is not None
    assert list(after.offsets) == [B, A]


def test_no_damage_passes_for_a_snapshot() -> None:
    blob = encode(snapshot(3, 4))
    assert decode(blob) is not None
    for at in range(len(blob)):
        broken = bytearray(blob)
        broken[at] ^= 1
        assert decode(bytes(broken)) is None, at
    for size in range(len(blob)):
        assert decode(blob[:size]) is None, size
    assert decode(blob + b"\0") is None


# ---- which one ------------------------------------------------------------------------------


def test_the_newest_snapshot_at_or_below_every_commit_is_taken() -> None:
    store = MemoryStore()
    for a, b in ((10, 10), (20, 10), (20, 30)):
        save(store, "d", 0, snapshot(a, b), "e1")

    def found(a: int, b: int) -> dict[Partition, int] | None:
        chosen = newest(store, "d", 0, "1:1", {A: a, B: b})
        return None if chosen is None else chosen.offsets

    assert found(20, 30) == {A: 20, B: 30}
    assert found(99, 29) == {A: 20, B: 10}  # one partition is enough to rule it out
    assert found(19, 99) == {A: 10, B: 10}
    assert found(9, 99) is None


def test_snapshots_of_other_lanes_layouts_and_detectors_are_not_taken() -> None:
    store = MemoryStore()
    save(store, "d", 1, snapshot(1, 1), "e1")
    save(store, "other", 0, snapshot(1, 1), "e1")
    save(store, "d", 0, snapshot(1, 1, layout="0:1"), "e1")
    assert newest(store, "d", 0, "1:1", {A: 9, B: 9}) is None


def test_only_the_newest_few_are_kept() -> None:
    store = MemoryStore()
    names = [save(store, "d", 0, snapshot(n, 900), f"e{n}") for n in range(95, 105)]
    assert store.names("snapshots/") == names[-checkpoint.KEEP :]
    assert names == sorted(names)


def test_a_state_larger_than_a_snapshot_may_be_is_not_stored() -> None:
    store = MemoryStore()
    large = snapshot(1, 1)
    size = sum(array.nbytes for array in large.arrays.values())
    with pytest.raises(Unreachable, match=f"the state has `{size}` bytes"):
        save(store, "d", 0, large, "e", bytes_max=size - 1)
    assert store.names("") == []
    assert save(store, "d", 0, large, "e", bytes_max=size)


def test_what_lies_above_all_commits_is_discarded_and_nothing_else() -> None:
    store = MemoryStore()
    names = [save(store, "d", 0, snapshot(n, 0), "e") for n in (10, 20, 30)]
    other = save(store, "d", 1, snapshot(99, 0), "e")
    assert discard_beyond(store, "d", 0, {A: 20, B: 0}) == names[2:]
    assert store.names("snapshots/") == [*names[:2], other]


# ---- where to begin -------------------------------------------------------------------------


def test_a_committed_offset_that_is_retained_is_where_it_goes_on() -> None:
    for offset in (5, 7, 9):  # both ends included: the end is the next record to come
        found = begun(offset, Bounds(5, 9))
        assert (found.read, found.speak, found.lost) == ({A: 5}, {A: offset}, {})


@pytest.mark.parametrize(("fresh", "speak"), [("earliest", 5), ("latest", 9)])
def test_who_never_committed_begins_where_the_config_says(fresh: str, speak: int) -> None:
    found = start(partitions=[A], committed={}, bounds={A: Bounds(5, 9)}, fresh=fresh, lost="stop")
    assert (found.read, found.speak) == ({A: 5}, {A: speak})


@pytest.mark.parametrize(("offset", "side"), [(4, "older than"), (10, "newer than")])
def test_a_committed_offset_that_is_gone_is_never_passed_over_in_silence(
    offset: int, side: str
) -> None:
    with pytest.raises(ConfigError, match=rf"`{offset}` of `x/0` is {side}") as stopped:
        begun(offset, Bounds(5, 9), lost="stop")
    assert "lost: continue" in stopped.value.hint
    found = begun(offset, Bounds(5, 9), lost="continue")
    assert (found.speak, found.lost) == ({A: 5}, {A: (offset, 5)})


def begun(offset: int, bounds: Bounds, lost: str = "stop") -> checkpoint.Start:
    return start(
        partitions=[A], committed={A: Committed(offset)}, bounds={A: bounds},
        fresh="latest", lost=lost,
    )  # fmt: skip


# ---- notes ----------------------------------------------------------------------------------


def test_a_note_comes_back_and_a_foreign_one_says_nothing() -> None:
    assert checkpoint.noted(checkpoint.note("m@1", 7, "raywatch.d.0-of-4")) == ("m@1", 7)
    for text in ("", "hello", "[1]", "3", "null", '{"model": 3, "since": "x"}', '{"model": []}'):
        assert checkpoint.noted(text) == ("", None), text
