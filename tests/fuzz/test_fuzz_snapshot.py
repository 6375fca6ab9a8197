"""Goal: what is no snapshot of ours is refused: never half of it used, nothing large allocated.

Method: snapshots and mutants of their bytes: as they are (the digest must tell), and with the
digest made right again, as a program with a bug or another version would write them (then the
header must tell). States that pass are loaded, and records sent through the lane that took them.
"""

import hashlib
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from fuzz.budget import COUNT, fuzzed
from fuzz.mutate import BINARY, JSON, mutants
from hypothesis import given
from hypothesis import strategies as st

from raywatch.actors import checkpoint
from raywatch.actors.checkpoint import DIGEST, MAGIC, Snapshot, decode, encode
from raywatch.actors.ports import Partition
from raywatch.actors.store import FolderStore

MUTANTS = 40
DTYPES = ("<i4", "<i8", "<f4", "<f8", "|u1")
TOKENS = (*JSON, *BINARY, b'"<f8"', b'"|O"', b'"<U9"', b"9223372036854775807", b"4294967296")


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    offsets = {
        Partition(draw(st.sampled_from(["a", "b"])), number): draw(st.integers(0, 2**63 - 1))
        for number in range(draw(st.integers(1, 3)))
    }
    arrays = {
        f"part.{index}": np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        for index, (shape, dtype) in enumerate(
            draw(
                st.lists(
                    st.tuples(
                        st.lists(st.integers(0, 4), min_size=1, max_size=3), st.sampled_from(DTYPES)
                    ),
                    max_size=4,
                )
            )
        )
    }
    return Snapshot(offsets, draw(st.sampled_from(["m@1", ""])), "1:1", arrays)


def signed(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=DIGEST).digest()


def assert_same(a: Snapshot, b: Snapshot) -> None:
    assert (a.offsets, a.model, a.layout) == (b.offsets, b.model, b.layout)
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        assert array.dtype == b.arrays[name].dtype
        assert array.shape == b.arrays[name].shape
        assert array.tobytes() == b.arrays[name].tobytes()


def assert_sound(found: Snapshot | None, blob: bytes) -> None:
    """What came out of a blob lay in it."""
    if found is None:
        return
    assert all(type(offset) is int and offset >= 0 for offset in found.offsets.values())
    assert all(type(p.topic) is str and type(p.number) is int for p in found.offsets)
    assert (type(found.model), type(found.layout)) == (str, str)
    assert sum(array.nbytes for array in found.arrays.values()) <= len(blob)
    assert all(array.dtype.kind in "iuf" for array in found.arrays.values())


@fuzzed("snapshot", 2 * MUTANTS + 1)
@given(snapshots(), st.integers(0, 2**32))
def test_a_blob_is_the_snapshot_that_was_stored_or_none(snapshot: Snapshot, seed: int) -> None:
    blob = encode(snapshot)
    back = decode(blob)
    assert back is not None
    assert_same(back, snapshot)
    for torn in mutants(blob, seed, MUTANTS, TOKENS):
        assert torn == blob or decode(torn) is None
    for body in mutants(blob[:-DIGEST], seed + 1, MUTANTS, TOKENS):
        assert_sound(decode(signed(body)), body)
    COUNT["snapshot"] += 2 * MUTANTS + 1


def with_header(header: Any, rest: bytes = b"") -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return signed(MAGIC + len(text).to_bytes(8, "little") + text + rest)


GOOD: dict[str, Any] = {
    "offsets": [["a", 0, 5]], "model": "m", "layout": "1:1", "arrays": [["x", "<f8", [2]]]
}  # fmt: skip


@pytest.mark.parametrize(
    "blob",
    [
        with_header({**GOOD, "arrays": [["x", "<f8", [2**62]]]}, bytes(16)),
        with_header({**GOOD, "arrays": [["x", "<f8", [2**32, 2**32]]]}, bytes(16)),
        with_header({**GOOD, "arrays": [["x", "<f8", [-2]]]}, bytes(16)),
        with_header({**GOOD, "arrays": [["x", "<f8", [1]]]}, bytes(16)),  # bytes are left over
        with_header({**GOOD, "arrays": [["x", "<f8", []]]}, bytes(8)),
        with_header({**GOOD, "arrays": [["x", "<f8", [True, 2]]]}, bytes(16)),
        with_header({**GOOD, "arrays": [["x", "<f8", [2, 0]]]}, bytes(16)),
        with_header({**GOOD, "arrays": [["x", "|O", [2]]]}, bytes(16)),
        with_header({**GOOD, "arrays": [["x", "<U4", [1]]]}, bytes(16)),
        with_header({**GOOD, "arrays": [["x", "<f8", [1]], ["x", "<f8", [1]]]}, bytes(16)),
        with_header({**GOOD, "arrays": {"x": 1}}, bytes(16)),
        with_header({**GOOD, "offsets": [["a", 0, -1]]}, bytes(16)),
        with_header({**GOOD, "offsets": [["a", 0]]}, bytes(16)),
        with_header({**GOOD, "offsets": [["a", 0, 1], ["a", 0, 2]]}, bytes(16)),
        with_header({**GOOD, "offsets": 3}, bytes(16)),
        with_header({**GOOD, "model": None}, bytes(16)),
        with_header({}, b""),
        with_header([], b""),
        with_header(b"[" * 100_000, b""),
        with_header(b"\xff", b""),
        signed(MAGIC + (2**64 - 1).to_bytes(8, "little") + b"{}"),
        signed(MAGIC),
        b"",
    ],
    ids=range(23),
)
def test_a_header_that_lies_is_refused_and_allocates_nothing(blob: bytes) -> None:
    tracemalloc.start()
    try:
        assert decode(blob) is None
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert decode(with_header(GOOD, bytes(16))) is not None


def test_a_blob_larger_than_any_of_ours_is_not_read(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path)
    name = checkpoint.save(store, "d", 0, Snapshot({Partition("a", 0): 3}, "m", "1:1", {}), "e")
    with (tmp_path / name).open("r+b") as stream:
        stream.truncate(1 << 40)  # a hole: it takes no room on the disk
    assert store.get(name) is None
    assert checkpoint.newest(store, "d", 0, "1:1", {Partition("a", 0): 9}) is None
