"""Goal: a (partition, key) has one slot, for ever, in order of first appearance.

Method: the table against a dictionary, with hashes cut so short that keys collide, through growth,
a full table and a state that is saved and loaded; `group` against numpy's stable sort.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raywatch.actors import grammar, keys, scan
from raywatch.actors.decode import decode, join
from raywatch.actors.keys import AHEAD, HASH_ALL, KeyTable, group, warm_decode
from raywatch.actors.ports import Fetched
from raywatch.actors.records import Records, RecordSpec
from raywatch.models.errors import ArtifactError


def records_of(named: Sequence[bytes], partitions: Sequence[int] | None = None) -> Records:
    """Records with these keys, in partition 0 unless said otherwise."""
    text, begin, size = join(named, 1 << 20)
    count = len(named)
    return Records(
        partition=np.array(partitions if partitions is not None else [0] * count, np.int32),
        offset=np.arange(count),
        time_ms=np.zeros(count, np.int64),
        values=np.zeros((count, 1)),
        text=text,
        key_begin=begin,
        key_size=size.astype(np.int32),
        words=np.zeros((count, 0), np.int64),
        word_begin=np.zeros((count, 0), np.int64),
        word_size=np.zeros((count, 0), np.int32),
    )


def intern(table: KeyTable, *named: bytes) -> list[int]:
    return table.intern(records_of(named)).tolist()


def test_slots_are_handed_out_in_order_of_first_appearance() -> None:
    table = KeyTable(10)
    assert intern(table, b"b", b"a", b"b", b"ab", b"") == [0, 1, 0, 2, 3]
    assert intern(table, b"c", b"a") == [4, 1]
    assert [table.key(slot) for slot in range(len(table))] == [b"b", b"a", b"ab", b"", b"c"]


def test_one_key_in_two_partitions_has_two_slots() -> None:
    table = KeyTable(10)
    slots = table.intern(records_of([b"a", b"a", b"a"], [0, 7, 0]))
    assert slots.tolist() == [0, 1, 0]
    assert slots.dtype == np.int32
    assert [table.partition(slot) for slot in range(2)] == [0, 7]


def test_a_full_table_knows_its_keys_and_takes_no_other() -> None:
    table = KeyTable(2)
    assert intern(table, b"a", b"b", b"c", b"a", b"d", b"b") == [0, 1, -1, 0, -1, 1]
    assert len(table) == 2


@pytest.mark.parametrize("hash_mask", [HASH_ALL, 0xF, 0])
def test_colliding_keys_are_told_apart_through_growth(hash_mask: int) -> None:
    count = 40_000 if hash_mask == HASH_ALL else 1_500
    named = [b"key-%d" % n + b"x" * (n % 40) for n in range(count)]
    table = KeyTable(count, hash_mask=hash_mask)
    once = intern(table, *named)
    assert once == list(range(count))
    assert intern(table, *reversed(named)) == once[::-1]
    assert [table.key(slot) for slot in (0, count // 2, count - 1)] == [
        named[0],
        named[count // 2],
        named[-1],
    ]


def test_a_key_larger_than_the_arena_fits() -> None:
    table = KeyTable(5)
    large = b"z" * 100_000
    assert intern(table, b"a", large, large + b"!", large) == [0, 1, 2, 1]
    assert table.key(2) == large + b"!"


KEYS = st.lists(
    st.tuples(st.sampled_from([0, 1, 7]), st.binary(max_size=3) | st.binary(max_size=20)),
    max_size=3 * AHEAD,
)


@settings(max_examples=100, deadline=None)
@given(KEYS, st.integers(1, 200), st.sampled_from([HASH_ALL, 0x7, 0]), st.integers(1, 100))
def test_the_table_does_what_a_dictionary_does_however_batches_are_cut(
    pairs: list[tuple[int, bytes]], keys_max: int, hash_mask: int, cut: int
) -> None:
    table = KeyTable(keys_max, hash_mask=hash_mask)
    known: dict[tuple[int, bytes], int] = {}
    expected: list[int] = []
    for key in pairs:
        if key not in known and sum(p == key[0] for p, _ in known) < keys_max:
            known[key] = len(known)
        expected.append(known.get(key, -1))
    found: list[int] = []
    for begin in range(0, len(pairs), cut):
        piece = pairs[begin : begin + cut]
        batch = records_of([key for _, key in piece], [partition for partition, _ in piece])
        found += table.intern(batch).tolist()
    assert found == expected
    assert len(table) == len(known)
    assert [(table.partition(s), table.key(s)) for s in range(len(table))] == list(known)
    copy = KeyTable(keys_max, hash_mask=hash_mask)
    copy.load(table.state())
    if pairs:
        whole = records_of([key for _, key in pairs], [partition for partition, _ in pairs])
        assert copy.intern(whole).tolist() == expected


def test_a_loaded_table_goes_on_where_the_saved_one_stood() -> None:
    table = KeyTable(3_000)
    intern(table, *(b"key-%d" % n for n in range(2_000)))
    state = table.state()
    intern(table, b"later")  # a state is a copy
    copy = KeyTable(3_000)
    intern(copy, b"forgotten")
    copy.load(state)
    assert len(copy) == 2_000
    assert intern(copy, b"key-1999", b"new", b"forgotten") == [1_999, 2_000, 2_001]
    assert {name: array.dtype for name, array in state.items()} == {
        "partition": np.int32,
        "size": np.int32,
        "seen": np.int64,
        "records": np.int64,
        "text": np.uint8,
        "partitions": np.int64,
    }


def test_an_empty_state_loads() -> None:
    table = KeyTable(1)
    intern(table, b"a")
    table.load(KeyTable(1).state())
    assert len(table) == 0
    assert intern(table, b"b", b"c") == [0, -1]


def test_a_state_larger_than_keys_max_is_kept_and_the_table_full() -> None:
    table = KeyTable(5)
    intern(table, b"a", b"b", b"c")
    small = KeyTable(2)
    small.load(table.state())
    assert intern(small, b"c", b"d", b"a") == [2, -1, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"size": np.array([1], np.int32)},
        {"size": np.array([1, 2], np.int32)},
        {"size": np.array([-1, 3], np.int32)},
        {"text": np.array([97], np.uint8)},
        {"text": np.array([97, 97], np.uint8)},  # one key twice
        {"partition": np.array([0], np.int32)},
        {"partition": None},
    ],
)
def test_a_torn_state_is_refused_and_changes_nothing(change: dict[str, Any]) -> None:
    table = KeyTable(5)
    intern(table, b"a", b"b")
    state = {name: array for name, array in (table.state() | change).items() if array is not None}
    with pytest.raises(ArtifactError):
        table.load(state)
    assert intern(table, b"b", b"c") == [1, 2]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 5), max_size=60)
    | st.lists(st.integers(0, 2**31 - 1), max_size=60)
    | st.lists(st.sampled_from([0, 2_047, 2_048, 2**22 - 1, 2**22, 2**31 - 1]), max_size=60)
)
def test_groups_are_stable_and_ascending(listed: list[int]) -> None:
    slots = np.array(listed, np.int32)
    order, touched, counts = group(slots)
    assert np.array_equal(order, np.argsort(slots, kind="stable"))
    expected = np.unique(slots, return_counts=True)
    assert np.array_equal(touched, expected[0])
    assert np.array_equal(counts, expected[1])
    assert (order.dtype, touched.dtype, counts.dtype) == (np.int64, np.int32, np.int32)


def test_a_large_batch_is_grouped_like_a_small_one() -> None:
    slots = np.random.default_rng(3).integers(0, 900_000, 20_000).astype(np.int32)
    assert np.array_equal(group(slots)[0], np.argsort(slots, kind="stable"))


def test_a_record_without_a_slot_cannot_be_grouped() -> None:
    with pytest.raises(AssertionError):
        group(np.array([0, -1], np.int32))


def compiled() -> int:
    """Versions of kernels that were compiled or loaded so far."""
    found = [f for module in (grammar, scan, keys) for f in vars(module).values()]
    return sum(len(kernel.signatures) for kernel in found if hasattr(kernel, "signatures"))


def test_nothing_is_compiled_after_warming_up() -> None:
    """Plain and escaped keys, of arrays that may be written to or not: one kind of kernel."""
    warm_decode()
    before = compiled()
    assert before >= 6  # the scanner, times, and four of the table
    table = KeyTable(10_000)
    for value in (b'{"k":"a","v":1}', b'{"k":"\\u0061","t":"1970-01-01","v":1}', b"{"):
        count = 3
        fetched = Fetched(
            partition=np.zeros(2 * count, np.int32)[::2],
            offset=np.arange(count),
            time_ms=np.zeros(count, np.int64),
            values=[value] * count,
            keys=[],
        )
        for time in ("t", None):
            slots = table.intern(decode(fetched, RecordSpec(values=("v",), key="k", time=time)))
            group(slots[slots >= 0])
    intern(table, *(b"%d" % n for n in range(5_000)))
    assert compiled() == before
