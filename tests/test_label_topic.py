"""Goal: labels of a topic of their own teach what they would teach in the payments' partition.

Method: the stream of test_payments.py, written to two topics of the embedded log at the times of
its records; what lanes say of it, handed over, killed and cut differently, is compared with one
file in which each label stands where the rule puts it. Then `backtest --labels`. What a config may
say, and what operators see: test_label_config.py.
"""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from classes import without_lineage, written
from command import called
from command import written as written_config
from lanes import Killed, Mortal, World, live, make, read_all, running, until
from packing import packed
from test_joining import Away
from test_payments import (
    BEGIN_MS,
    FIRST,
    MODEL,
    RECORD,
    ROWS,
    detector,
    lines_of,
)
from test_payments import LANES as ALONE

from raywatch.actors import joining
from raywatch.actors.backtest import backtest
from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.ports import Fetched, Out, Partition
from raywatch.actors.stages import flow_of
from raywatch.models.errors import ConfigError, Unreachable
from raywatch.models.settings import DecideSettings

DELAY_S = 600.0  # of ten payments
MANY = DecideSettings(probability=5e-2, quiet=3)  # alerts, so that each place of a label shows
JOINED = {"labels": "labels", "labels_delay_s": DELAY_S, "decide": MANY}
PAID = [row for row in ROWS if "fraud" not in row]
TOLD = [row for row in ROWS if "fraud" in row]


class Stamp:
    """The clock of the log: the time of the record that is written."""

    ms = BEGIN_MS

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1_000

    def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


def merged(paid: list[dict[str, Any]], told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rule, by the times of records."""
    found, left = list[dict[str, Any]](), list(told)
    for row in paid:
        while left and left[0]["ts"] + 1_000 * DELAY_S <= row["ts"]:
            found.append(left.pop(0))
        found.append(row)
    return found + left


MERGED = merged(PAID, TOLD)


def world(partitions: int = 1) -> World:
    """Both topics, empty."""
    broker = EmbeddedBroker(clock=Stamp())
    log = EmbeddedLog(broker)
    for topic in ("in", "labels"):
        log.create(topic, partitions)
    for topic in ("d.alerts", "d.rejects", "raywatch.audit"):
        log.create(topic, 1)
    places = [Partition(topic, n) for topic in ("in", "labels") for n in range(partitions)]
    return World(broker, log, sorted(places))


def write(there: World, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        there.broker._clock.ms = row["ts"]
        topic = "labels" if "fraud" in row else "in"
        there.log.write([Out(topic, row["terminal"].encode(), json.dumps(row).encode())])


def said_by(*parts: list[dict[str, Any]], partitions: int = 1, **changes: Any) -> Counter[str]:
    """Alerts of a lane on two topics that is handed over after each part."""
    there = world(partitions)
    for part in parts:
        write(there, part)
        live(there, detector(**JOINED, **changes), model="payments")
    assert not read_all(there.log, "d.rejects")
    return there.said()


def filed(
    folder: Path, partitions: int = 1, rows: list[dict[str, Any]] = MERGED
) -> list[dict[str, Any]]:
    """Alerts of one file with labels where they belong."""
    return ALONE.filed(folder, lines_of(rows), partitions=partitions, decide=MANY)[1]


def log_of(**sizes: int) -> EmbeddedLog:
    log = EmbeddedLog(EmbeddedBroker())
    for topic, size in sizes.items():
        log.create(topic, size)
    return log


# ---- lanes -----------------------------------------------------------------------------------


def test_labels_stand_elsewhere_than_in_the_stream() -> None:
    assert ROWS != MERGED  # else nothing below would show an order
    assert sorted(map(str, ROWS)) == sorted(map(str, MERGED))


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_lane_says_what_one_partition_with_labels_in_their_places_says(
    tmp_path: Path, partitions: int
) -> None:
    expected = filed(tmp_path, partitions)
    said = said_by(ROWS, partitions=partitions)
    assert without_lineage(said) == without_lineage(expected)
    # In the stream's own order, ten payments from it, other things are said.
    other = filed(tmp_path, partitions, ROWS)
    assert without_lineage(other) != without_lineage(expected)


def test_where_batches_are_cut_and_lanes_change_hands_makes_no_difference(tmp_path: Path) -> None:
    expected = without_lineage(filed(tmp_path))
    cut = FIRST + 500
    assert without_lineage(said_by(ROWS, batch_records=97)) == expected
    assert without_lineage(said_by(ROWS[:cut], ROWS[cut:], snapshot_s=0.05)) == expected


@pytest.mark.parametrize("dies_at", [9, 30, 55])
def test_a_lane_that_is_killed_loses_and_repeats_nothing(tmp_path: Path, dies_at: int) -> None:
    there = world()
    write(there, ROWS)
    lane = detector(**JOINED, batch_records=200, snapshot_s=0.05)
    with pytest.raises(Killed):
        live(there, lane, log=Mortal(there.log, dies_at, done=True), model="payments")
    live(there, lane, model="payments", epoch="e2")
    assert without_lineage(there.said()) == without_lineage(filed(tmp_path))


def test_a_group_that_begins_at_the_latest_record_has_learnt_labels_of_before(
    tmp_path: Path,
) -> None:
    there, cut, latest = world(), FIRST + 1_500, detector(**JOINED, start="latest")
    write(there, ROWS[:cut])
    live(there, latest, model="payments")
    assert not there.said()
    write(there, ROWS[cut:])
    live(there, latest, model="payments")
    expected = [alert for alert in filed(tmp_path) if alert["at_ms"] >= ROWS[cut]["ts"]]
    assert without_lineage(there.said()) == without_lineage(expected)
    assert expected


def test_both_logs_are_committed_and_their_offsets_stand_in_the_snapshot() -> None:
    there = world()
    write(there, ROWS)
    lane = live(there, detector(**JOINED), model="payments")
    committed = {str(p): c.offset for p, c in there.commits(detector()).items()}
    assert committed == {"in/0": len(PAID), "labels/0": len(TOLD)}
    assert lane.stats.position == committed
    assert lane.stats.labels["labels"] + lane.stats.labels["repeated"] == len(TOLD)
    assert lane.stats.labels["unknown"] == lane.stats.late == 0


def test_a_lane_that_is_not_told_where_labels_end_waits_and_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joining, "WORDS_S", 0.3)
    log: Any = Away(log_of(**{"in": 1, "labels": 1, "d.alerts": 1, "raywatch.audit": 1}))
    places = [Partition("in", 0), Partition("labels", 0)]
    lane = make(detector(**{**JOINED, "labels_delay_s": 2.0}), log, places, model="payments")
    outs = [Out("in", b"k", line) for line in lines_of(PAID[:20])]

    def committed() -> int:
        return lane.stats.committed.get("in/0", 0)

    with running(lane):
        log.write(outs[:10])
        until(lambda: committed() == 10)
        log.error = Unreachable("broker 2 is away")
        time.sleep(1.2)  # what is known is good for a second, half the delay
        log.write(outs[10:])
        until(lambda: "`labels/0`: broker 2 is away" in lane.stats.words, 10.0)
        assert (committed(), lane.stats.state) == (10, "running")
        log.error = None
        until(lambda: committed() == 20)
        until(lambda: lane.stats.words == "")
    assert (lane.stats.opened, lane.stats.late) == (1, 0)


def test_labels_among_the_payments_go_on_working(tmp_path: Path) -> None:
    """Every second label comes with the payments."""
    there = world()
    apart, among = TOLD[::2], TOLD[1::2]
    for row in sorted([*PAID, *TOLD], key=lambda row: row["ts"]):
        there.broker._clock.ms = row["ts"]
        topic = "labels" if row in apart else "in"
        there.log.write([Out(topic, row["terminal"].encode(), json.dumps(row).encode())])
    live(there, detector(**JOINED), model="payments")
    rows = merged(sorted([*PAID, *among], key=lambda row: row["ts"]), apart)
    expected = ALONE.filed(tmp_path, lines_of(rows), decide=MANY)[1]
    assert without_lineage(there.said()) == without_lineage(expected)


def test_what_is_no_label_is_rejected_where_only_labels_are() -> None:
    flow = flow_of(detector(**JOINED), [Partition("in", 0), Partition("labels", 0)], MODEL)
    rows = [PAID[0], PAID[1], TOLD[0], {**TOLD[1], "fraud": "maybe"}]
    of = np.array([0, 1, 1, 1], np.int32)
    fetched = Fetched(of, np.arange(4), np.full(4, -1), lines_of(rows), [])
    said = flow.finish(batch := flow.prepare(fetched, MODEL, begin={}, end={}), None)
    assert batch.records.offset.tolist() == [0, 2]
    why = sorted((each.partition, each.offset, each.reason, each.detail) for each in said.rejects)
    assert why == [(1, 1, "missing field", "`fraud`"), (1, 3, "wrong type", "`fraud`: `maybe`")]
    assert {each.value for each in said.rejects} == {fetched.values[1], fetched.values[3]}
    hidden = replace(RECORD, pseudonymise=("customer",))
    flow = flow_of(detector(**JOINED, record=hidden), flow.partitions, MODEL)
    stray, _ = flow.prepare(fetched, MODEL, begin={}, end={}).records.rejects[::-1]
    assert (stray.value, stray.withheld) == (None, len(fetched.values[1] or b""))


def test_a_snapshot_of_fewer_partitions_is_taken_over() -> None:
    """Partitions that are added stand between the others: labels/1 comes before payments."""
    few, more = (
        sorted(Partition(topic, n) for topic in ("in", "labels") for n in numbers)
        for numbers in ((1, 2), (0, 1, 2))
    )
    one, two = (flow_of(detector(**JOINED), places, MODEL) for places in (few, more))
    half, end = len(MERGED) // 2, len(MERGED)

    def heard(flow: Any, places: list[Partition], rows: list[dict[str, Any]]) -> bytes:
        topics = ["labels" if "fraud" in row else "in" for row in rows]
        numbers = [1 + (len(row["terminal"]) == 6) for row in rows]  # `shop-1` to `shop-9`
        wheres = map(Partition, topics, numbers)
        of = np.array([places.index(where) for where in wheres], np.int32)
        fetched = Fetched(of, np.arange(len(rows)), np.full(len(rows), -1), lines_of(rows), [])
        decided = flow.finish(batch := flow.prepare(fetched, MODEL, begin={}, end={}), None).decided
        assert not batch.records.rejects
        return decided.score[np.argsort(batch.order)].tobytes()

    heard(one, few, MERGED[:half])
    assert two.fits(one.snapshot(dict.fromkeys(few, half)))
    assert heard(two, more, MERGED[half:]) == heard(one, few, MERGED[half:])
    assert end - half > 3_000
    layouts = {
        flow_of(detector(**changes), few, MODEL).layout()
        for changes in (JOINED, {**JOINED, "labels_delay_s": 5.0}, {**JOINED, "labels": "in2"})
    }
    assert len(layouts) == 3  # read in another order, another past
    assert flow_of(detector(), few, MODEL).layout() not in layouts


# ---- files -----------------------------------------------------------------------------------

NAMES = ("score", "p_value", "event_score", "alert", "key", "ts")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "jsonl.gz", "csv.zst"])
def test_backtest_reads_labels_of_a_file_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    for folder in ("paid", "told", "one"):
        (tmp_path / folder).mkdir()
    kind, dot, ending = kind.partition(".")
    paid, told = (
        written(rows, tmp_path / at, kind) for rows, at in ((PAID, "paid"), (TOLD, "told"))
    )
    config = written_config(
        tmp_path, topics=["in"], model="preset:payments",
        labels={"topic": "labels", "delay_s": DELAY_S},
        record={"key": "terminal", "time": "ts", "values": "amount", "words": "customer",
                "id": "payment", "label": "fraud", "label_days": 1.0},
        alert={"probability": 5e-2, "quiet": 3}, batch_records=1_000,
    )  # fmt: skip
    if ending:
        paid, told = (packed(each, dot + ending) for each in (paid, told))
    out, alerts = tmp_path / "out.parquet", tmp_path / "alerts.jsonl"
    words = ("--labels", told, "--output", out, "--alerts", alerts, "--evidence", "--json")
    said = called(capsys, "backtest", config, paid, *words)
    assert said.code == 0, said.err
    found = json.loads(said.out)
    table, expected, summary = ALONE.filed(
        tmp_path / "one", lines_of(MERGED), evidence=True, decide=MANY
    )
    rows = np.array(["fraud" not in row for row in MERGED])
    got = pq.read_table(out)
    assert got.num_rows == len(PAID) == found["records"]
    for name in NAMES:
        assert got[name].to_pylist() == table[name].filter(rows).to_pylist(), name
    assert got["evidence"].to_pylist() == table["evidence"].filter(rows).to_pylist()
    lines = [json.loads(line) for line in alerts.read_text().splitlines()]
    assert without_lineage(lines) == without_lineage(expected)
    assert (found["labels"], found["rejects"]) == (summary.labels, 0)
    alone = called(capsys, "backtest", config, paid, "--output", out, "--json")
    assert alone.code == 0, alone.err  # payments may be looked at before there are labels
    assert json.loads(alone.out)["labels"]["labels"] == 0


def test_rejects_of_both_files_are_counted_and_keep_their_rows(tmp_path: Path) -> None:
    (tmp_path / "told").mkdir()
    paid, told = lines_of(PAID[:300]), lines_of([{**TOLD[0], "ts": PAID[100]["ts"]}] * 5)
    for row in (0, 150, 299):
        paid[row] = b"no payment"
    told[0], told[4] = b"no label", lines_of([PAID[0]])[0]
    source = tmp_path / "told" / "labels.jsonl"
    source.write_bytes(b"\n".join(told) + b"\n")
    path, out = tmp_path / "paid.jsonl", tmp_path / "out.parquet"
    path.write_bytes(b"\n".join(paid) + b"\n")
    for size in (1, 64, 20_000):
        spec = detector(**JOINED, batch_records=size)
        summary = backtest(spec, ALONE.scorer, path, out, labels=source)
        keys = pq.read_table(out)["key"].to_pylist()
        assert [at for at, key in enumerate(keys) if key is None] == [0, 150, 299]
        assert keys[1:150] == [row["terminal"] for row in PAID[1:150]]
        assert (summary.records, summary.rejects) == (300, 5)
        assert summary.reasons == {"not JSON": 4, "missing field": 1}
        assert summary.labels["unknown"] == 3


@pytest.mark.parametrize("lacks", ["label", "key", "time"])
def test_labels_in_a_file_need_what_they_are_placed_by(tmp_path: Path, lacks: str) -> None:
    path = written(PAID[:10], tmp_path, "jsonl")
    spec = detector(record=replace(RECORD, **{lacks: None}))
    with pytest.raises(ConfigError, match=f"need `record.{lacks}`"):
        backtest(spec, ALONE.scorer, path, tmp_path / "o.parquet", labels=path)
