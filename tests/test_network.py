"""Goal: network records are judged by their partition's past alone, the same however they travel.

Method: a synthetic stream of connections with a scan and a strange connection planted in it. The
sketch is cut, interleaved, saved and loaded; then whole lanes on the embedded log, killed in
mid-stream, and files through `backtest`; bits are compared. Damage must be refused.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classes import Lanes, without_lineage

from raywatch.actors.decode import decode
from raywatch.actors.network import NetworkFlow
from raywatch.actors.ports import Fetched, Out, Partition
from raywatch.actors.records import RecordSpec
from raywatch.actors.scorer import ScorerHost
from raywatch.actors.stages import flow_of
from raywatch.cluster.memory import _sketches, key_bytes, memory_bound
from raywatch.models.artifact import pack
from raywatch.models.errors import ArtifactError, ConfigError
from raywatch.models.following import KEY_BYTES
from raywatch.models.network import Network, partition_bytes
from raywatch.models.registry import Registry, build, shipped
from raywatch.models.scorer import describe
from raywatch.models.settings import DecideSettings, MissingSettings

RECORD = RecordSpec(
    values=("sent", "received"), words=("service", "flag", "port"), key="src", time="ts"
)
MODEL = describe(build(shipped("network")))
RECORDS, SCAN, ODD = 6_000, 4_500, 3_500  # where a scan begins, and where one record is odd
SCAN_LENGTH = 120


def connections(seed: int = 5, count: int = RECORDS) -> list[dict[str, Any]]:
    """Connections of some hosts to four services, a port scan by one of them, an odd record."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    services = ("http", "dns", "smtp", "ssh")
    ports = (80, 53, 25, 22)
    for index in range(count):
        kind = int(rng.choice(4, p=[0.5, 0.3, 0.15, 0.05]))
        rows.append(
            {
                "src": f"host-{rng.integers(50)}", "ts": 1_700_000_000_000 + 100 * index,
                "sent": float(np.round(np.exp(rng.normal(5 + kind, 0.6)))),
                "received": float(np.round(np.exp(rng.normal(7 - kind, 0.6)))),
                "service": services[kind], "flag": "SF" if rng.random() < 0.97 else "REJ",
                "port": ports[kind],
            }
        )  # fmt: skip
        if SCAN <= index < SCAN + SCAN_LENGTH:
            rows[-1] |= {"src": "mallory", "sent": 0.0, "received": 0.0, "flag": "S0",
                         "service": "other", "port": 1_000 + index}  # fmt: skip
        if index == ODD:
            rows[-1] |= {"src": "eve", "sent": 9e9, "flag": "OTH", "service": "telnet", "port": 23}
    return rows


ROWS = connections()
LINES = [json.dumps(row).encode() for row in ROWS]


LANES = Lanes("network", {
    "record": RECORD,
    "missing": MissingSettings(enabled=False), "decide": DecideSettings(probability=1e-3),
})  # fmt: skip
detector, said_by = LANES.detector, LANES.said_by


def columns(lines: list[bytes] = LINES) -> tuple[Any, Any]:
    count = len(lines)
    place = np.zeros(count, np.int32), np.arange(count), np.full(count, -1)
    records = decode(Fetched(*place, values=list(lines), keys=[]), RECORD)
    assert not records.rejects
    return records.values, records.words


VALUES, WORDS = columns()
HERE = np.zeros(RECORDS, np.int32)


def cut_into(size: int, sketch: Network | None = None) -> list[Any]:
    """What a sketch says, batch after batch of `size`, as whole arrays."""
    sketch = sketch or Network(2, 3)
    pieces = [
        sketch.observe(HERE[at : at + size], VALUES[at : at + size], WORDS[at : at + size])
        for at in range(0, RECORDS, size)
    ]
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


WHOLE = cut_into(RECORDS)
TOLD = WHOLE[2].max(axis=1) >= 2.5  # records whose columns are told apart


def assert_same(found: list[Any], expected: list[Any], told: Any) -> None:
    for index in range(3):
        assert found[index].tobytes() == expected[index].tobytes()
    assert found[3][told].tobytes() == expected[3][told].tobytes()


@pytest.mark.parametrize("size", [1, 7, 511, 1_000])
def test_where_batches_are_cut_changes_no_bit(size: int) -> None:
    assert TOLD.sum() > 10
    assert_same(cut_into(size), WHOLE, TOLD)


@pytest.mark.parametrize("size", [100, 512, 1_500, 5_000])
def test_the_scores_of_a_beginning_are_the_beginning_of_the_scores(size: int) -> None:
    found = Network(2, 3).observe(HERE[:size], VALUES[:size], WORDS[:size])
    assert_same(list(found), [part[:size] for part in WHOLE], TOLD[:size])


def test_partitions_do_not_see_each_other() -> None:
    rng = np.random.default_rng(1)
    both = rng.permutation(np.repeat(np.array([0, 1], np.int32), RECORDS))
    at = np.empty(2 * RECORDS, np.int64)
    for partition in (0, 1):
        at[both == partition] = np.arange(RECORDS)
    found = Network(2, 3, 2).observe(both, VALUES[at], WORDS[at])
    for partition in (0, 1):
        part = [each[both == partition] for each in found]
        assert_same(part, WHOLE, TOLD)


@pytest.mark.parametrize("at", [0, 300, 512, 3_000, SCAN + 50])
def test_a_sketch_goes_on_from_what_was_saved(at: int) -> None:
    first, second = Network(2, 3), Network(2, 3)
    first.observe(HERE[:at], VALUES[:at], WORDS[:at])
    second.load(first.state())
    found = second.observe(HERE[at:], VALUES[at:], WORDS[at:])
    assert_same(list(found), [part[at:] for part in WHOLE], TOLD[at:])
    assert sum(each.nbytes for each in second.state().values()) == partition_bytes(2, 3)


def test_numbers_of_any_size_and_columns_that_are_missing_do_no_harm() -> None:
    values, words = VALUES.copy(), WORDS.copy()
    values[::3, 0], values[::5, 1], words[::7, 1] = np.nan, 1.7e308, 0
    values[1::5, 1], values[:, 0][3_000:] = -1.7e308, np.nan
    found = Network(2, 3).observe(HERE, values, words)
    assert np.isfinite(found[1]).all()
    for numbers, kinds in ((0, 3), (2, 0), (40, 60)):
        wide = np.ones((2_000, numbers)), np.ones((2_000, kinds), np.int64)
        assert np.isfinite(Network(numbers, kinds).observe(HERE[:2_000], *wide)[1]).all()


@pytest.mark.parametrize(
    ("name", "value"), [("total", -1.0), ("total", 1e30), ("scale", np.nan), ("usual", np.inf)]
)
def test_a_sketch_that_cannot_be_is_refused(name: str, value: float) -> None:
    saved = Network(2, 3).state()
    saved[name].flat[1] = value
    with pytest.raises(ArtifactError):
        Network(2, 3).load(saved)
    with pytest.raises(ArtifactError):
        Network(3, 3).load(Network(2, 3).state())


# ---- files -----------------------------------------------------------------------------------


def backtested(
    tmp_path: Path, lines: list[bytes], **changes: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """What backtest says of lines: the table, and alerts."""
    return LANES.filed(tmp_path, lines, **changes)[:2]


def test_a_planted_scan_and_an_odd_record_are_found_and_explained(tmp_path: Path) -> None:
    table, alerts = backtested(tmp_path, LINES)
    opened = [alert for alert in alerts if alert["state"] == "open"]
    found = {alert["key"]: alert for alert in opened}
    assert {"mallory", "eve"} <= set(found)
    assert len(opened) <= 4  # of 5,879 ordinary records
    scan, odd = found["mallory"], found["eve"]
    assert scan["at_ms"] - ROWS[SCAN]["ts"] <= 100 * 20  # within 20 records of the scan
    assert odd["at_ms"] == ROWS[ODD]["ts"]
    shown = {channel["name"]: channel for channel in odd["channels"]}
    assert list(shown) == ["sent", "received", "service", "flag", "port"]
    assert shown["service"]["word"] == "telnet"
    assert shown["port"]["word"] == "23"
    assert shown["sent"]["observed"] == 9e9
    assert "word" not in shown["sent"]
    assert sum(channel["share"] for channel in odd["channels"]) == pytest.approx(1.0)
    top = sorted(shown, key=lambda name: -shown[name]["share"])[:4]
    assert "received" not in top  # the one column that is as usual
    assert "never seen here" in odd["words"]
    assert "of this partition look like this" in odd["words"]
    score = table["score"].to_numpy()
    assert (table["p_value"].to_numpy()[:2_048] == 1.0).all()
    usual = np.delete(score[2_048:], np.r_[SCAN - 2_048 : SCAN - 2_048 + SCAN_LENGTH])
    assert np.median(score[SCAN : SCAN + SCAN_LENGTH]) > np.quantile(usual, 0.995)


def test_evidence_says_how_much_of_a_score_each_column_has(tmp_path: Path) -> None:
    table, _ = backtested(tmp_path, LINES, evidence=True)
    evidence = np.array(table["evidence"].to_pylist())
    assert evidence.shape == (RECORDS, 5)
    score = table["score"].to_numpy()
    whole = evidence.sum(axis=1)
    told = whole > 0.0  # a record that is as usual in every column has no share to tell
    assert np.allclose(whole[told], score[told], rtol=1e-3)
    assert told[[ODD, SCAN]].all()
    assert evidence[ODD].argmin() == 1  # what it received was as usual


@pytest.mark.parametrize("size", [1_000, 77])
def test_batches_of_a_file_change_no_bit(tmp_path: Path, size: int) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    one, said = backtested(tmp_path / "a", LINES)
    other, told = backtested(tmp_path / "b", LINES, batch_records=size)
    assert one.equals(other)
    assert said == told


def test_a_disguised_word_is_in_no_alert(tmp_path: Path) -> None:
    hidden = replace(RECORD, pseudonymise=("service", "port"))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    open_, alerts = backtested(tmp_path / "a", LINES)
    closed, disguised = backtested(tmp_path / "b", LINES, record=hidden)
    assert closed["score"].equals(open_["score"])
    assert len(alerts) == len(disguised)
    text = (tmp_path / "b" / "alerts.jsonl").read_text()
    assert "telnet" not in text
    assert '"word":"(withheld)"' in text
    assert '"word":"OTH"' in text


# ---- lanes -----------------------------------------------------------------------------------

OUTS = [Out("in", str(row["src"]).encode(), line) for row, line in zip(ROWS, LINES, strict=True)]
HALF = RECORDS // 2


def test_a_lane_says_what_backtest_says(tmp_path: Path) -> None:
    _, alerts = backtested(tmp_path, LINES)
    assert without_lineage(said_by(OUTS)) == without_lineage(alerts)


def test_a_lane_that_was_handed_over_says_the_same() -> None:
    said = said_by(OUTS)
    assert said == said_by(OUTS[:HALF], OUTS[HALF:], snapshot_s=0.05)
    assert said == said_by(OUTS[: SCAN + 60], OUTS[SCAN + 60 :], batch_records=50)
    assert len(said) >= 4


@pytest.mark.parametrize("dies_at", [12, 30, 55])
def test_a_lane_that_is_killed_loses_and_repeats_nothing(dies_at: int) -> None:
    assert LANES.survived(OUTS, dies_at) == said_by(OUTS)


def test_partitions_in_one_lane_are_those_of_a_file(tmp_path: Path) -> None:
    _, alerts = backtested(tmp_path, LINES, partitions=3)
    assert without_lineage(said_by(OUTS, partitions=3)) == without_lineage(alerts)


def test_a_snapshot_of_fewer_partitions_is_taken_over() -> None:
    few = flow_of(detector(), [Partition("in", 1)], MODEL)
    more = flow_of(detector(), [Partition("in", 0), Partition("in", 1)], MODEL)
    assert isinstance(few, NetworkFlow)
    fetched = Fetched(HERE[:3_000], np.arange(3_000), np.full(3_000, -1), LINES[:3_000], [])
    few.finish(few.prepare(fetched, MODEL, begin={}, end={}), None)
    assert more.fits(few.snapshot({Partition("in", 1): 3_000}))
    state = more._arrays()
    assert state["network.total"][:, 0].tolist() == [0.0, 3_000.0]
    other = replace(RECORD, words=("service", "flag", "proto"))
    assert flow_of(detector(record=other), [], MODEL).layout() != few.layout()


def test_a_key_that_is_forgotten_ends_its_incident() -> None:
    said = said_by(OUTS, keys_max=32, decide=DecideSettings(probability=1e-3, quiet=100_000))
    reasons = Counter(json.loads(each).get("reason", "") for each in said)
    assert reasons["key forgotten"] > 0


# ---- around it -------------------------------------------------------------------------------


def test_a_signal_class_is_not_another_model(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert registry.resolve("preset:network").version == MODEL.version
    with pytest.raises(ArtifactError):
        registry.resolve("network")
    assert "network" not in {entry.name for entry in registry.list()}
    with pytest.raises(ConfigError, match="cannot score `d`"):
        flow_of(detector(), [], describe(build(shipped("robustz"))))
    with pytest.raises(ConfigError, match="cannot score `d`"):
        flow_of(detector(model="robustz"), [], MODEL)


def test_memory_is_a_sum_of_what_there_is() -> None:
    flow = flow_of(detector(), [Partition("in", n) for n in range(3)], MODEL)
    assert isinstance(flow, NetworkFlow)
    assert sum(a.nbytes for a in flow.network.state().values()) == _sketches(detector(), 3)
    flow.following.ensure(10)
    assert sum(a.nbytes for a in flow.following.state().values()) == 10 * KEY_BYTES
    one = memory_bound(detector(), partitions=1, owners=1)
    ten = memory_bound(detector(), partitions=10, owners=1)
    assert ten.state - one.state >= 9 * partition_bytes(2, 3)
    assert ten.snapshot - one.snapshot >= 9 * 2 * partition_bytes(2, 3)
    assert key_bytes(detector()) < key_bytes(replace(detector(), model="lagbank"))


def test_a_pool_holds_the_version_and_is_asked_nothing() -> None:
    host = ScorerHost("one", pack(shipped("network")))
    assert host.model == MODEL
    fetched = Fetched(HERE[:100], np.arange(100), np.full(100, -1), LINES[:100], [])
    batch = flow_of(detector(), [Partition("in", 0)], MODEL).prepare(
        fetched, MODEL, begin={}, end={}
    )
    assert batch.segments is None
    assert len(batch.records) == 100
