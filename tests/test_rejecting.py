"""Goal: garbage is written down to a bound and counted beyond it; the same in any batches.

Method: a stream of good and bad records in batches of any cut, with holes in the offsets, against a
rule written down in a few lines; then a lane on the embedded log that is killed and taken up again.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import Killed, Mortal, live, read_all, spec, world
from test_eviction import columns

from raywatch.actors.ports import Out
from raywatch.actors.records import REASONS, Reject
from raywatch.actors.rejecting import MANY, WINDOW, Rejecting

MOST = 3
Event = tuple[int, int, bool]  # partition, offset, whether it is good


def stream(seed: int, count: int) -> list[Event]:
    rng = random.Random(seed)
    at = [rng.randrange(3_000) for _ in range(3)]
    found: list[Event] = []
    for _ in range(count):
        part = rng.randrange(3)
        at[part] += rng.choice((1, 1, 1, 2, 40, 700))
        found.append((part, at[part], rng.random() < 0.3))
    return found


def reason(offset: int) -> str:
    return REASONS[offset % len(REASONS)]


def expected(events: Sequence[Event], most: int) -> dict[int, list[tuple[int, str, int]]]:
    """Of each partition: offset, reason and count of what is written, in order."""
    found: dict[int, list[tuple[int, str, int]]] = {0: [], 1: [], 2: []}
    seen: dict[int, tuple[int, int, int]] = {}  # window, written, only counted
    for part, offset, good in events:
        window, written, counted = seen.get(part, (-1, 0, 0))
        if offset // WINDOW != window:
            if counted:
                found[part].append((offset, MANY, counted))
            window, written, counted = offset // WINDOW, 0, 0
        if not good:
            if written < most:
                found[part].append((offset, reason(offset), 1))
                written += 1
            else:
                counted += 1
        seen[part] = window, written, counted
    return found


def batch(events: Sequence[Event]) -> Any:
    parts = [columns([(b"k", 0, 1.0)] * 1, part, offset) for part, offset, good in events if good]
    empty = columns([], 0, 0)
    rejects = [Reject(p, o, reason(o), "", b"x") for p, o, good in events if not good]
    names = ("partition", "offset")
    joined = {n: np.concatenate([getattr(each, n) for each in (empty, *parts)]) for n in names}
    return replace(empty, rejects=rejects, **joined)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.lists(st.integers(1, 60), min_size=1), st.integers(0, 5),
    st.integers(0, 10),
)  # fmt: skip
def test_what_is_written_is_the_rule_in_any_batches_and_across_a_snapshot(
    seed: int, cuts: list[int], most: int, saved_at: int
) -> None:
    events = stream(seed, 400)
    rejecting = Rejecting(most, 3)
    found: dict[int, list[tuple[int, str, int]]] = {0: [], 1: [], 2: []}
    at = turn = 0
    while at < len(events):
        piece = events[at : at + cuts[turn % len(cuts)]]
        for each in rejecting.sift(batch(piece)):
            found[each.partition].append((each.offset, each.reason, each.count))
        at, turn = at + len(piece), turn + 1
        if turn == saved_at:
            state = rejecting.state()
            rejecting = Rejecting(most, 3)
            rejecting.load(state)
    assert found == expected(events, most)


def test_a_window_says_how_many_where_and_why() -> None:
    rejecting = Rejecting(2, 1)
    bad = [(0, offset, False) for offset in (10, 11, 12, 21, 500)]
    first, second = rejecting.sift(batch(bad))
    assert (first.offset, second.offset) == (10, 11)
    assert rejecting.sift(batch([(0, 999, True)])) == []
    (many,) = rejecting.sift(batch([(0, 1_000, True)]))
    assert (many.reason, many.offset, many.count, many.value) == (MANY, 1_000, 3, None)
    assert many.detail == "3 more from offset 12 to 500: 1 empty value, 1 too large, 1 not JSON"


# ---- lanes ----------------------------------------------------------------------------------


def garbage(count: int) -> list[Out]:
    """Mostly garbage, in one partition."""
    good = json.dumps({"host": "a", "ts": 1_700_000_000_000, "value": 1.5}).encode()
    return [Out("in", b"k", good if n % 50 == 0 else b"{%d" % n) for n in range(count)]


def written(there: Any) -> list[bytes]:
    return [out.value or b"" for out in read_all(there.log, "d.rejects")]


@pytest.mark.parametrize("seed", range(3))
def test_lanes_that_die_in_a_flood_of_garbage_write_what_one_writes(seed: int) -> None:
    changes: dict[str, Any] = {"batch_records": 300, "checkpoint_s": 0.0, "rejects_max": 7}
    detector = spec("d", "in", snapshot_s=0.01 if seed else 1e6, **changes)
    calm = world(partitions=1)
    calm.log.write(garbage(6_500))
    lane = live(calm, detector)
    there = world(partitions=1)
    there.log.write(garbage(6_500))
    chance = random.Random(seed)
    for _ in range(6):
        log = Mortal(there.log, chance.randrange(1, 12), done=chance.random() < 0.5)
        with pytest.raises(Killed):
            live(there, detector, log=log)
    live(there, detector)
    assert written(there) == written(calm)
    assert len(written(calm)) == 7 * 7 + 6  # the last of 7 windows is not over
    assert lane.stats.rejects == 6_500 - 130  # all of them are counted at once
