"""Goal: the memory of an owner has a bound that is stated before it starts, and stays true.

Method: each size in the sum against the arrays it stands for, on shipped models; the sum against
hand-made settings; what `check` says of it. Owners in a flood are measured in test_flood.py.
"""

import sys
from dataclasses import replace

import numpy as np
import pytest
from test_check import LOCAL, ListLog
from test_eviction import PARTITIONS, SPEC, Lane, columns

from raywatch.actors import lane as lanes
from raywatch.actors import pseudonyms
from raywatch.actors.alerts import Alert, Window
from raywatch.actors.bounds import batch_records, room, sent_bytes
from raywatch.actors.fetching import FETCH_BYTES, Gathered
from raywatch.actors.records import RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.cluster import memory
from raywatch.cluster.commands.check import examine, machine_bytes
from raywatch.cluster.config import load
from raywatch.cluster.memory import fitting, memory_bound
from raywatch.models.decide import Decider
from raywatch.models.history import KEY_BYTES, History
from raywatch.models.missing import KEY_BYTES as SILENCE_STATE
from raywatch.models.registry import SHIPPED, build, shipped
from raywatch.models.scorer import LEVELS, Segments, describe
from raywatch.models.settings import DecideSettings

HERE = DetectorSpec("d", ("t",), RecordSpec(values=("x",), key_bytes_max=64), "lagbank")
GIB = 1 << 30


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", SHIPPED)
def test_a_key_takes_no_more_than_the_sum_says(model: str, channels: int) -> None:
    known = describe(build(shipped(model)))
    decider = Decider(DecideSettings(), known.components, channels, views=known.views)
    record = replace(HERE.record, values=tuple("abc"[:channels]))
    stated = memory.key_bytes(replace(HERE, record=record)) - memory.ARENA_FACTOR * 64
    cells = 96  # 16 bytes a cell, at most a quarter full, and half as many while it is doubled
    assert KEY_BYTES == memory.CHANNEL_BYTES
    held = 8 + channels * KEY_BYTES + decider.key_bytes + SILENCE_STATE + 5 * 8 + cells
    views = 0 if known.views else 7_700 if channels == 1 else 1_400 * channels  # asked for or not
    assert held <= stated <= 1.1 * held + 500 + views


def test_constants_that_are_repeated_are_those_that_count() -> None:
    assert memory.OUT_MAX == lanes.OUT_MAX
    assert memory.PSEUDONYMS_BYTES >= pseudonyms.CACHE_MAX * (34 + 5 * 8 + 96)
    history = History(2)
    history.ensure(10)
    assert history._stats.row_bytes + history._rings.row_bytes == 2 * KEY_BYTES


def test_an_alert_is_no_larger_than_the_sum_says() -> None:
    lane = Lane([0], 0)
    alert = _widest()
    said = alert.to_json()
    assert len(said) + sys.getsizeof(said) + 64 * 8 * 2 < memory.ALERT_BYTES
    assert lane.flow.keys.high == 0


def _widest() -> Alert:
    values = np.full(64, -1.23456789e-300)
    return Alert(
        "d" * 63, b"k" * 64, "anomaly", "update", 10**13, 10**13, 2**53, 1e-300, -1.23456789e-300,
        -1.23456789e-300, "hour_mean", (), 590, "m" * 63 + "@" + "0" * 12, (PARTITIONS[0], 2**53),
        "live", Window("x" * 60, values, values, 86_400_000),
    )  # fmt: skip


def test_the_bound_grows_with_every_setting_that_names_it() -> None:
    base = memory_bound(HERE, partitions=12, owners=2).total
    record = HERE.record
    for more in (
        replace(HERE, keys_max=HERE.keys_max + 1),
        replace(HERE, batch_bytes=2 * HERE.batch_bytes),
        replace(HERE, batch_records=HERE.batch_records + 1_000),
        replace(HERE, in_flight=HERE.in_flight + 1),
        replace(HERE, in_flight_bytes=2 * HERE.in_flight_bytes),
        replace(HERE, record=replace(record, key_bytes_max=65)),
        replace(HERE, record=replace(record, bytes_max=2 * record.bytes_max)),
        # Not two: keys of one have more views, and batches of two are smaller.
        replace(HERE, record=replace(record, values=("x", "y", "z"))),
        replace(HERE, record=replace(record, pseudonymise=("key",))),
    ):
        assert memory_bound(more, partitions=12, owners=2).total > base, more
    silent = replace(HERE, missing=replace(HERE.missing, enabled=False))
    assert memory_bound(silent, partitions=12, owners=2).total < base
    kafka = {"queued.max.messages.kbytes": 65_536, "queue.buffering.max.kbytes": "262144"}
    assert memory_bound(HERE, partitions=12, owners=2, kafka=kafka).total > base


def test_lanes_are_shared_among_owners_and_partitions_among_lanes() -> None:
    def bound(partitions: int, owners: int) -> tuple[int, int]:
        found = memory_bound(replace(HERE, keys_max=10), partitions=partitions, owners=owners)
        return found.lanes, found.keys // found.lanes - 5 * HERE.batch_records

    assert bound(12, 2) == (2, 30)  # 4 lanes of 3 partitions
    assert bound(12, 3) == (2, 30)  # one owner has two
    assert bound(2, 1) == (2, 10)  # two lanes stay empty
    assert bound(13, 4) == (1, 40)


def test_a_bound_is_made_to_fit_by_fewer_keys() -> None:
    place = {"partitions": 12, "owners": 2}
    fit = fitting(HERE, 10 * GIB, **place)
    assert 0 < fit < HERE.keys_max
    assert memory_bound(replace(HERE, keys_max=fit), **place).total <= 10 * GIB
    assert memory_bound(replace(HERE, keys_max=fit + 1), **place).total > 10 * GIB
    assert fitting(HERE, 1 << 20, **place) == 0
    assert fitting(HERE, 1 << 50, **place) == HERE.keys_max


# ---- what is under way ----------------------------------------------------------------------


def test_a_batch_of_wide_records_has_fewer_of_them() -> None:
    known = describe(build(shipped("lagbank")))
    assert sent_bytes(1, LEVELS) == 4 * (591 + 583 + 327)
    assert batch_records(HERE, known) == HERE.batch_records
    wide = replace(HERE, record=replace(HERE.record, values=tuple(f"x{n}" for n in range(50))))
    few = batch_records(wide, known)
    assert few == HERE.in_flight_bytes // (50 * 6_004)
    assert batch_records(replace(wide, in_flight_bytes=1), known) == 1


def test_what_is_sent_is_never_more_than_was_counted() -> None:
    """Keys that are all new, and one record each; then 8: every level has something to send."""
    lane = Lane([0], 0, keys_max=10_000)
    for turn in range(8):
        part = columns([(b"k%d" % n, 1_000 * turn, 1.0) for n in range(300)], 0, 300 * turn)
        batch = lane.flow.prepare(part, lane.flow.model, begin={}, end={})
        assert batch.segments is not None
        assert batch.segments.values.nbytes <= 300 * sent_bytes(1, lane.flow.model.levels)


def test_no_batch_is_sent_beyond_batches_and_bytes() -> None:
    small = replace(SPEC, in_flight=3, in_flight_bytes=1_000)
    of = [Segments(1, (), np.zeros((0, 0), np.int32), np.zeros(n, np.float32)) for n in (100, 200)]
    assert room(small, [])
    assert room(small, [of[0], None])  # 400 bytes
    assert not room(small, [None, None, None])
    assert not room(small, [of[0], of[1]])  # 1,200 bytes


def test_a_fetch_ends_at_its_bytes_and_asks_for_less_when_records_are_large() -> None:
    gathered = Gathered()
    assert gathered.want(20_000, 500) == 500
    one = np.zeros(1, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int64)
    gathered.add(*one, [bytes(1 << 20)], [b"key"])
    assert gathered.want(20_000, 500) == 3  # of 4 MiB
    while gathered.want(20_000, 500):
        gathered.add(*one, [bytes(1 << 20)], [])
    assert len(gathered) == 16
    assert gathered.fetched().nbytes == gathered.nbytes == FETCH_BYTES + 3
    assert Gathered().want(7, 500) == 7


# ---- what `check` says ----------------------------------------------------------------------


def test_check_states_the_bound_and_warns_where_the_machine_is_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load(LOCAL)
    name = config.detectors[0].topics[0]
    log = ListLog(sizes={name: 6})
    (said,) = (f for f in examine(config, log) if "an owner takes at most" in f.words)
    there = machine_bytes()
    assert there is not None
    assert said.state == ("ok" if said.numbers["total"] <= there else "warn")
    parts = ("process", "state", "batches", "alerts", "queues", "snapshot")
    assert sum(said.numbers[part] for part in parts) == said.numbers["total"]
    small = "raywatch.cluster.commands.check.machine_bytes"
    monkeypatch.setattr(small, lambda: 12 * GIB)
    (said,) = (f for f in examine(config, log) if "an owner takes at most" in f.words)
    assert (said.state, said.numbers["machine"]) == ("warn", 12 * GIB)
    assert "this machine has 12.0 GiB" in said.words
    assert "`keys_max: " in said.hint
