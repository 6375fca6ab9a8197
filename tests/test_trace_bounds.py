"""Goal: what calls take of memory is what the sum of `raywatch check` says, or less.

Method: each size in the sum against the arrays, and the alert, that it stands for.
"""

import json
import sys
from dataclasses import replace

import numpy as np
from test_traces import CALLS, MODEL, NOBODY, RECORD, SLOTS, detector, fresh, part_of

from raywatch.actors.alerts import from_episode
from raywatch.actors.ports import Fetched, Partition
from raywatch.actors.stages import flow_of
from raywatch.actors.trace_words import reasons
from raywatch.actors.traces import TracesFlow
from raywatch.cluster import memory
from raywatch.cluster.memory import _sketches, key_bytes, memory_bound
from raywatch.models import traces
from raywatch.models.following import KEY_BYTES
from raywatch.models.incident import Episode


def test_memory_of_a_key_is_what_its_arrays_take() -> None:
    state = fresh()
    state.observe(part_of(CALLS, slice(1)), NOBODY)
    saved = state.state()
    del saved["row"]
    assert sum(each.nbytes for each in saved.values()) == traces.KEY_BYTES


def test_memory_is_a_sum_of_what_there_is() -> None:
    flow = flow_of(detector(keys_max=5), [Partition("in", n) for n in range(3)], MODEL)
    assert isinstance(flow, TracesFlow)
    assert _sketches(detector(keys_max=5), 3) == 3 * 5 * traces.KEY_BYTES
    flow.following.ensure(10)
    flow.traces.ensure(10)
    by_slot = [*flow.following.state().values(), flow.traces.state()["row"]]
    assert sum(each.nbytes for each in by_slot) == 10 * (KEY_BYTES + memory.ROW_BYTES)
    one, ten = (memory_bound(detector(keys_max=50), partitions=n, owners=1) for n in (1, 10))
    assert ten.state - one.state >= 9 * 50 * traces.KEY_BYTES
    assert ten.snapshot - one.snapshot >= 9 * 2 * 50 * traces.KEY_BYTES
    assert key_bytes(detector()) < key_bytes(replace(detector(), model="lagbank"))


def test_a_record_on_its_way_takes_no_more_than_the_sum_says() -> None:
    count = 1_000
    some = part_of(CALLS, slice(count))
    said = fresh().observe(some, NOBODY)
    assert sum(each.nbytes for each in (*some, *said)) / count < traces.RECORD_BYTES


def test_an_alert_is_no_larger_than_the_sum_says() -> None:
    """Of a call where every text is as long, and as wide in JSON, as it may be."""
    long = "\x01 \x02" * 9_000
    texts = dict.fromkeys(("caller", "operation", "status"), long)
    row = {"service": "pay", "ts": 1, "ms": 1e300, **texts}
    flow = flow_of(detector(), [Partition("in", 0)], MODEL)
    fetched = Fetched(SLOTS[:1] * 0, np.arange(1), np.full(1, -1), [json.dumps(row).encode()], [])
    batch = flow.prepare(fetched, MODEL, begin={}, end={})
    flow.finish(batch, None)
    assert isinstance(flow, TracesFlow)
    assert flow._told is not None
    flow._told.said[:] = 9.0
    columns = len(detector(record=RECORD).columns)
    for component in ("slow", "slower", "errors", "edge"):
        episode = Episode(
            0, "open", 0, 10**13, 9, 1e-300, 1e9, 1e9, component, (1 / 3,) * columns,
            (1e300,) * columns, (1e300,) * columns, 0, (1e299,) * columns, None,
            reasons(flow._told.said[0]),
        )  # fmt: skip
        alert = from_episode(
            flow.spec, b"k" * 64, 10**13, (Partition("in", 0), 2**53), episode, MODEL.version,
            **flow._shown(batch, 0, episode),
        )  # fmt: skip
        said = alert.to_json()
        assert len(said) + sys.getsizeof(said) > 8_000
        assert len(said) + sys.getsizeof(said) < memory.ALERT_BYTES + memory.EDGE_ALERT_BYTES
