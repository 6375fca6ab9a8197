"""Goal: a state with numbers that no lane ever had is refused, or does no harm.

Method: the arrays of a lane's snapshot, some numbers changed to anything, or an array cut, grown,
of another type or left out. Whatever loads takes a batch, with evictions, and is saved again.
"""

from typing import Any

import numpy as np
import pytest
from fuzz.budget import COUNT, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from test_eviction import MODEL, PARTITIONS, SCORER, SPEC, Lane, columns

from raywatch.actors.checkpoint import Snapshot
from raywatch.actors.flow import Flow
from raywatch.models.errors import ArtifactError

VARIANTS = 25
INTEGERS = (-(2**63), 2**63 - 1, -1, 0, 1, 2, 3, 7, 20, 2**31, 2**32, -(2**31), 1_700_000_000_000)
FLOATS = (np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 1e308, -1e308, 1e-320, 1.0)


@pytest.fixture(scope="module")
def good() -> Snapshot:
    lane = Lane([0, 1], 0)
    rng = np.random.default_rng(5)
    for _ in range(3):
        lane.send({0: 900, 1: 700}, rng)
    offsets = {PARTITIONS[n]: lane.at[n] for n in (0, 1)}
    return lane.flow.snapshot(offsets)


def changed(good: Snapshot, rng: np.random.Generator) -> Snapshot:
    arrays: dict[str, Any] = dict(good.arrays)
    for _ in range(int(rng.choice([1, 1, 2, 5]))):
        name = str(rng.choice(sorted(arrays)))
        array = arrays[name].copy()
        match int(rng.integers(12)):
            case 0:
                array = array[: int(rng.integers(array.shape[0] + 1))]
            case 1:
                array = np.concatenate((array, array))
            case 2:
                array = array.astype(rng.choice(np.array(["<f4", "<i8", "|u1"])))
            case 3:
                array = array.reshape(-1)
            case 4 if len(arrays) > 1:
                del arrays[name]
                continue
            case _ if array.size:
                flat = array.reshape(-1)
                pool = FLOATS if array.dtype.kind == "f" else INTEGERS
                at = int(rng.integers(array.size))
                if array.dtype.kind != "f" and rng.random() < 0.4:  # a link to somewhere else
                    flat[at] = flat[int(rng.integers(array.size))]
                else:
                    with np.errstate(over="ignore", invalid="ignore"):
                        flat[at] = np.array(pool[int(rng.integers(len(pool)))]).astype(flat.dtype)
        arrays[name] = array
    return Snapshot(good.offsets, good.model, good.layout, arrays)


def through(snapshot: Snapshot) -> bool:
    """Load it and work with it; whether it was taken."""
    flow = Flow(SPEC, PARTITIONS[:2], MODEL)
    try:
        flow.load(snapshot)
    except ArtifactError:
        return False
    for turn in range(2):
        time_ms = 1_700_000_100_000 + turn * 60_000
        keys = [
            *(b"steady-%d" % n for n in range(9)),
            *(b"new-%d-%d" % (turn, n) for n in range(20)),
        ]
        part = columns([(key, time_ms + n, float(n)) for n, key in enumerate(keys)], turn, 10_000)
        batch = flow.prepare(part, MODEL, begin={}, end={})
        assert batch.segments is not None
        for alert in flow.finish(batch, SCORER.score(batch.segments)).alerts:
            alert.to_json()
    flow.snapshot(snapshot.offsets)
    return True


@fuzzed("state", VARIANTS)
@given(st.integers(0, 2**32))
def test_a_state_that_no_lane_had_is_refused_or_does_no_harm(good: Snapshot, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(VARIANTS):
        through(changed(good, rng))
    COUNT["state"] += VARIANTS


def test_a_state_that_is_whole_is_taken(good: Snapshot) -> None:
    assert through(good)
