"""Goal: calls are judged by the past of their edge and key alone, the same however they travel.

Method: two made-up services with six edges each; on edges of one of them a slow stretch, failures,
a call of a minute and a new edge are planted. The state is cut, interleaved, displaced and saved;
then whole lanes on the embedded log, killed in mid-stream, and files through `backtest`; bits are
compared. Damage must be refused. What is learnt: test_trace_learning.py; memory:
test_trace_bounds.py.
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
from raywatch.actors.failures import failed
from raywatch.actors.ports import Fetched, Out, Partition
from raywatch.actors.records import RecordSpec
from raywatch.actors.scorer import ScorerHost
from raywatch.actors.stages import flow_of
from raywatch.actors.traces import TracesFlow
from raywatch.models import trace_edges as edges
from raywatch.models import traces, traces_kernel
from raywatch.models.artifact import pack
from raywatch.models.errors import ArtifactError, ConfigError
from raywatch.models.registry import Registry, build, shipped
from raywatch.models.scorer import describe
from raywatch.models.settings import DecideSettings, MissingSettings
from raywatch.models.trace_names import RECENT
from raywatch.models.traces import Traces
from raywatch.models.traces_kernel import Calls

RECORD = RecordSpec(
    values=("ms",), words=("caller", "operation"), key="service", time="ts", error="status"
)
MODEL = describe(build(shipped("traces")))
RECORDS, STEP_MS = 16_000, 100
CALLERS, OPERATIONS = ("web", "mobile", "batch"), ("/charge", "/refund")
LASTS = 150  # calls of an edge
NEW, MINUTE, SLOWER, ERRORS = 5_000, 6_500, 8_000, 12_500  # rows of what is planted, all at `pay`


def calls(seed: int = 4, count: int = RECORDS) -> list[dict[str, Any]]:
    """Calls of two services, and what is planted: `web` is slow, then calls of `mobile` fail."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    left = {"web": LASTS, "mobile": LASTS}
    for index in range(count):
        caller = int(rng.choice(3, p=[0.5, 0.3, 0.2]))
        operation = int(rng.random() < 0.3)
        size = float(np.exp(rng.normal(2.0 + caller + operation, 0.4)))
        size *= 8.0 if rng.random() < 0.01 else 1.0  # now and then one waits
        status = "ERROR" if rng.random() < 0.004 * caller else "UNSET"
        row = {
            "service": ("pay", "cart")[int(rng.random() < 0.4)], "ts": 10**12 + STEP_MS * index,
            "caller": CALLERS[caller], "operation": OPERATIONS[operation], "ms": round(size, 3),
            "status": status,
        }  # fmt: skip
        here = (row["service"], row["operation"]) == ("pay", "/charge")
        if here and row["caller"] == "web" and index >= SLOWER and left["web"]:
            left["web"] -= 1
            row["ms"] *= 2.5
        if here and row["caller"] == "mobile" and index >= ERRORS and left["mobile"]:
            left["mobile"] -= 1
            row["status"] = "ERROR" if rng.random() < 0.5 else row["status"]
        if index == MINUTE:
            row |= {"service": "pay", "caller": "batch", "operation": "/refund", "ms": 60_000.0}
        if index == NEW:
            row |= {"service": "pay", "caller": "cron"}
        rows.append(row)
    return rows


ROWS = calls()
LINES = [json.dumps(row).encode() for row in ROWS]


LANES = Lanes("traces", {
    "record": RECORD, "missing": MissingSettings(enabled=False),
    "decide": DecideSettings(probability=1e-4, warmup=300),
})  # fmt: skip
detector, said_by = LANES.detector, LANES.said_by


def given(rows: list[dict[str, Any]], slots: Any) -> Calls:
    """Calls as the kernel takes them."""
    values = [json.dumps(row).encode() for row in rows]
    count = len(values)
    place = np.zeros(count, np.int32), np.arange(count), np.full(count, -1)
    records = decode(Fetched(*place, values=values, keys=[]), RECORD)
    assert not records.rejects
    words = records.words
    return Calls(
        slots, records.time_ms, words[:, :2], records.values[:, 0], failed(words[:, 2], "status")
    )


SLOTS = np.array([row["service"] == "cart" for row in ROWS], np.int32)
CALLS = given(ROWS, SLOTS)
NOBODY = np.zeros(0, np.int64), np.zeros(0, np.int64)


def fresh(slots: int = 2, **decide: Any) -> Traces:
    made = Traces(DecideSettings(**{"warmup": 300, **decide}))
    made.ensure(slots)
    return made


def part_of(some: Calls, part: Any) -> Calls:
    return Calls(*(each[part] for each in some))


def assert_same(found: Any, expected: Any) -> None:
    for name, one, other in zip(traces_kernel.Out._fields, found, expected, strict=True):
        assert one.tobytes() == other.tobytes(), name


WHOLE = fresh().observe(CALLS, NOBODY)


@pytest.mark.parametrize("size", [1, 7, 511, 4_000])
def test_where_batches_are_cut_changes_no_bit(size: int) -> None:
    count = 3_000 if size == 1 else RECORDS
    state = fresh()
    pieces = [
        state.observe(part_of(CALLS, slice(at, min(at + size, count))), NOBODY)
        for at in range(0, count, size)
    ]
    found = [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
    assert_same(found, [each[:count] for each in WHOLE])


@pytest.mark.parametrize("size", [10, 1_000, SLOWER + 400])
def test_what_is_said_of_a_beginning_is_the_beginning_of_what_is_said(size: int) -> None:
    found = fresh().observe(part_of(CALLS, slice(size)), NOBODY)
    assert_same(found, [each[:size] for each in WHOLE])


@pytest.mark.parametrize("slot", [0, 1])
def test_keys_do_not_see_each_other(slot: int) -> None:
    mine = np.flatnonzero(slot == SLOTS)
    found = fresh().observe(part_of(CALLS, mine), NOBODY)
    assert_same(found, [each[mine] for each in WHOLE])


@pytest.mark.parametrize("at", [0, 1, 3_000, SLOWER + 300])
def test_a_state_goes_on_from_what_was_saved(at: int) -> None:
    first, second = fresh(), fresh()
    first.observe(part_of(CALLS, slice(at)), NOBODY)
    second.load(first.state())
    found = second.observe(part_of(CALLS, slice(at, None)), NOBODY)
    assert_same(found, [each[at:] for each in WHOLE])
    assert all(np.array_equal(each, WHOLE_STATE[n]) for n, each in second.state().items())


def _whole_state() -> Any:
    state = fresh()
    state.observe(CALLS, NOBODY)
    return state.state()


WHOLE_STATE = _whole_state()


def test_a_key_that_was_displaced_is_as_new_and_its_room_is_used_again() -> None:
    slots = np.repeat(np.array([0, 1, 2], np.int32), 2_000)
    mine = np.flatnonzero(SLOTS == 0)[:2_000]
    other = np.flatnonzero(SLOTS == 1)[:2_000]
    some = part_of(CALLS, np.r_[mine, other, mine])._replace(rows=slots)
    gone = np.array([2_000, 4_000]), np.array([0, 1])
    state = fresh(3)
    found = state.observe(some, gone)
    assert state.rows == 1  # three keys, never two at a time
    assert_same([each[4_000:] for each in found], [each[:2_000] for each in found])
    assert state.state()["row"].tolist() == [0, 0, 1]
    cut = fresh(3)
    pieces = []
    for at in range(0, 6_000, 500):
        here = (gone[0] >= at) & (gone[0] < at + 500)
        displaced = gone[0][here] - at, gone[1][here]
        pieces.append(cut.observe(part_of(some, slice(at, at + 500)), displaced))
    assert_same([np.concatenate(parts) for parts in zip(*pieces, strict=True)], found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stat", -1.0), ("stat", np.nan), ("calibration", np.inf), ("row", -1), ("row", 7),
        ("total", 0.0), ("stamp", 1 << 40), ("news", 1 << 40), ("off", 1 << 40), ("ordinal", -1),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused(name: str, value: float) -> None:
    state = fresh()
    state.observe(part_of(CALLS, slice(100)), NOBODY)
    saved = state.state()
    saved[name].flat[0] = value
    with pytest.raises(ArtifactError):
        fresh().load(saved)


# ---- files -----------------------------------------------------------------------------------


def backtested(
    tmp_path: Path, values: list[bytes] = LINES, **changes: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """What backtest says of calls: the table, and alerts."""
    return LANES.filed(tmp_path, values, **changes)[:2]


def opened_in(alerts: list[dict[str, Any]], begin: int, end: int) -> list[dict[str, Any]]:
    begin_ms, end_ms = (10**12 + STEP_MS * row for row in (begin, end))
    opened = [a for a in alerts if a["state"] == "open" and a["key"] == "pay"]
    return [a for a in opened if begin_ms <= a["at_ms"] < end_ms]


def test_what_is_planted_is_found_and_named(tmp_path: Path) -> None:
    table, alerts = backtested(tmp_path)
    assert (table["p_value"].to_numpy()[:300] == 1.0).all()
    opened = [alert for alert in alerts if alert["state"] == "open"]
    assert len(opened) <= 4 + 3  # what is planted, and of 16,000 calls 1.6 by chance

    (slower,) = opened_in(alerts, SLOWER, SLOWER + 300)
    assert slower["component"] == "slower"
    assert slower["edge"]["name"] == "caller web, operation /charge"
    shown = {channel["name"]: channel for channel in slower["channels"]}
    assert list(shown) == ["ms", *RECENT, "caller", "operation", "status"]
    assert [shown[name]["word"] for name in ("caller", "operation")] == ["web", "/charge"]
    recent, low, high = shown[RECENT[0]]["observed"], *shown[RECENT[0]]["band"]
    assert low == pytest.approx(np.exp(2.0 - 0.8), rel=0.25)  # two deviations of 0.4
    assert high == pytest.approx(np.exp(2.0 + 0.8), rel=0.25)
    assert 1.2 * np.exp(2.0) < recent < 2.5 * np.exp(2.0)
    assert slower["words"].startswith("pay shows calls that take longer than usual: caller web, ")
    assert "the last calls took about" in slower["words"]
    assert slower["reasons"][0]["component"] == "slower"

    (errors,) = opened_in(alerts, ERRORS, ERRORS + 400)
    assert errors["component"] == "errors"
    assert errors["edge"]["name"] == "caller mobile, operation /charge"
    shown = {channel["name"]: channel for channel in errors["channels"]}
    assert shown[RECENT[1]]["observed"] > 0.1
    assert shown[RECENT[1]]["expected"] < 0.02
    assert shown["status"]["word"] == "ERROR"
    assert "calls failed, usually 1 in " in errors["words"]

    (minute,) = opened_in(alerts, MINUTE, MINUTE + 1)
    assert minute["component"] == "slow"
    assert minute["edge"]["name"] == "caller batch, operation /refund"
    assert "this call took 60,000, usually " in minute["words"]

    (new,) = opened_in(alerts, NEW, NEW + 1)
    assert new["component"] == "edge"
    assert new["edge"]["name"].startswith("caller cron, operation /")
    assert "never seen here before; three new edges came in the last" in new["words"]
    assert "about 1 in" in new["words"]


def test_other_edges_of_the_key_stay_as_they_are() -> None:
    for begin, component, words in (
        (SLOWER, edges.SLOWER, "web"),
        (ERRORS, edges.ERRORS, "mobile"),
    ):
        here = np.array([
            begin <= n < begin + 900 and row["service"] == "pay" for n, row in enumerate(ROWS)
        ])  # fmt: skip
        mine = np.array([(row["caller"], row["operation"]) == (words, "/charge") for row in ROWS])
        loud = WHOLE.said[:, component] >= 3.0
        assert loud[here & mine].sum() > 50
        assert loud[here & ~mine].mean() < 0.01


def test_an_incident_lasts_while_its_edge_is_strange(tmp_path: Path) -> None:
    """The slow edge has one call in three of `pay`, and two ordinary calls would end it."""
    quiet = DecideSettings(probability=1e-4, warmup=300, quiet=2)
    table, alerts = backtested(tmp_path, decide=quiet)
    event, p = (table[name].to_numpy() for name in ("event_score", "p_value"))
    assert (event <= 1e-6 - np.log10(p)).all()  # calls of other edges are no event
    assert len(opened_in(alerts, SLOWER, SLOWER + 900)) == 1
    (resolved,) = [
        alert for alert in alerts
        if alert["state"] == "resolved" and alert["since_ms"] < 10**12 + STEP_MS * (SLOWER + 900)
        and alert["since_ms"] >= 10**12 + STEP_MS * SLOWER
    ]  # fmt: skip
    assert resolved["at_ms"] - resolved["since_ms"] > STEP_MS * 500
    assert resolved["edge"] == {"name": "", "expected": []}
    assert resolved["words"].startswith("pay is no longer strange after ")
    assert resolved["words"].endswith(" s.")


def test_evidence_says_what_of_a_call_is_strange(tmp_path: Path) -> None:
    table, _ = backtested(tmp_path, evidence=True)
    evidence = np.array(table["evidence"].to_pylist())
    assert evidence.shape == (RECORDS, 6)
    assert evidence[MINUTE].argmax() == 0
    assert evidence[NEW, 3] == evidence[NEW, 4] > evidence[NEW, :3].max()
    assert (evidence[:, 5] == 0.0).all()


def test_names_and_failures_may_be_few(tmp_path: Path) -> None:
    record = replace(RECORD, words=("caller",), error=None)
    table, alerts = backtested(tmp_path, record=record)
    assert table.num_rows == RECORDS
    assert {a["edge"]["name"] for a in opened_in(alerts, NEW, NEW + 1)} == {"caller cron"}
    assert "errors" not in {alert["component"] for alert in alerts}


@pytest.mark.parametrize("size", [1_000, 77])
def test_batches_of_a_file_change_no_bit(tmp_path: Path, size: int) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    one, said = backtested(tmp_path / "a")
    other, again = backtested(tmp_path / "b", batch_records=size)
    assert one.equals(other)
    assert said == again


def test_a_disguised_name_is_in_no_alert(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    open_, alerts = backtested(tmp_path / "a")
    closed, disguised = backtested(
        tmp_path / "b", record=replace(RECORD, pseudonymise=("caller", "status"))
    )
    assert closed["score"].equals(open_["score"])
    assert [a["id"] for a in alerts] == [a["id"] for a in disguised]
    text = (tmp_path / "b" / "alerts.jsonl").read_text()
    for secret in ("cron", "mobile", "ERROR"):
        assert secret not in text
        assert secret in (tmp_path / "a" / "alerts.jsonl").read_text()
    assert '"name":"caller (withheld), operation /charge"' in text


# ---- lanes -----------------------------------------------------------------------------------

OUTS = [Out("in", str(row["service"]).encode(), v) for row, v in zip(ROWS, LINES, strict=True)]
HALF = RECORDS // 2


def test_a_lane_says_what_backtest_says(tmp_path: Path) -> None:
    _, alerts = backtested(tmp_path)
    assert len(alerts) >= 8
    assert without_lineage(said_by(OUTS)) == without_lineage(alerts)


def test_a_lane_that_was_handed_over_says_the_same() -> None:
    said = said_by(OUTS)
    assert said == said_by(OUTS[:HALF], OUTS[HALF:], snapshot_s=0.05)
    assert said == said_by(OUTS[: SLOWER + 200], OUTS[SLOWER + 200 :], batch_records=50)


@pytest.mark.parametrize("dies_at", [12, 30, 55])
def test_a_lane_that_is_killed_loses_and_repeats_nothing(dies_at: int, tmp_path: Path) -> None:
    _, alerts = backtested(tmp_path)
    assert without_lineage(LANES.survived(OUTS, dies_at)) == without_lineage(alerts)


def test_partitions_in_one_lane_are_those_of_a_file(tmp_path: Path) -> None:
    _, alerts = backtested(tmp_path, partitions=3)
    assert without_lineage(said_by(OUTS, partitions=3)) == without_lineage(alerts)


def flood() -> list[bytes]:
    """Calls of `pay`, and among them those of services that come twice each."""
    some: list[dict[str, Any]] = []
    for index, row in enumerate([row for row in ROWS if row["service"] == "pay"][:2_000]):
        some += [row, {**row, "service": f"s-{index // 2}"}]
    return [json.dumps(row).encode() for row in some]


def test_keys_that_are_displaced_leave_no_trace_and_no_memory(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    table, alerts = backtested(tmp_path / "a", flood(), keys_max=8)
    other, again = backtested(tmp_path / "b", flood(), keys_max=8, batch_records=61)
    assert table.equals(other)
    assert alerts == again
    alone, _ = backtested(tmp_path / "c", flood()[::2], keys_max=8)
    pay = table.filter(np.array([key == "pay" for key in table["key"].to_pylist()]))
    assert pay["score"].equals(alone["score"])

    flow = flow_of(detector(keys_max=8), [Partition("in", 0)], MODEL)
    assert isinstance(flow, TracesFlow)
    values = flood()
    place = np.zeros(len(values), np.int32), np.arange(len(values)), np.full(len(values), -1)
    flow.finish(flow.prepare(Fetched(*place, values, []), MODEL, begin={}, end={}), None)
    assert flow.keys.high > 100  # slots of one batch come back behind it,
    assert flow.traces.rows <= 8  # room for edges within it


def test_a_key_that_is_forgotten_ends_its_incident() -> None:
    rows = [json.loads(value) for value in flood()]
    rows[3_000] |= {"service": "pay", "ms": 1e7}  # and then it is gone
    gone = [{**row, "service": f"t-{n}"} for n, row in enumerate(rows[:400])]
    outs = [Out("in", b"k", json.dumps(row).encode()) for row in [*rows[:3_001], *gone]]
    decide = DecideSettings(probability=1e-3, warmup=300, quiet=100_000)
    said = said_by(outs, keys_max=8, decide=decide)
    reasons = Counter(json.loads(each).get("reason", "") for each in said)
    assert reasons["key forgotten"] > 0


def test_a_snapshot_of_fewer_partitions_is_taken_over() -> None:
    few = flow_of(detector(), [Partition("in", 1)], MODEL)
    more = flow_of(detector(), [Partition("in", 0), Partition("in", 1)], MODEL)
    assert isinstance(few, TracesFlow)
    fetched = Fetched(SLOTS[:3_000] * 0, np.arange(3_000), np.full(3_000, -1), LINES[:3_000], [])
    few.finish(few.prepare(fetched, MODEL, begin={}, end={}), None)
    assert more.fits(few.snapshot({Partition("in", 1): 3_000}))
    assert more._arrays()["traces.ordinal"].sum() == 3_000
    layouts = {
        flow_of(detector(record=record), [], MODEL).layout()
        for record in (RECORD, replace(RECORD, error=None), replace(RECORD, words=("caller",)))
    }
    assert len(layouts) == 3


def test_no_batch_waits_for_a_compiler() -> None:
    for size in (0, 1, 2, 500):
        fresh().observe(part_of(CALLS, slice(size)), NOBODY)
    frozen = Calls(*(each.copy() for each in CALLS))
    for each in frozen:
        each.flags.writeable = False
    fresh().observe(frozen, NOBODY)
    narrow = CALLS._replace(words=CALLS.words[:, :1])
    fresh().observe(narrow, NOBODY)
    traces.warm_traces()
    assert len(traces_kernel.observe.signatures) == 1


# ---- around it -------------------------------------------------------------------------------


def test_a_signal_class_is_not_another_model(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert registry.resolve("preset:traces").version == MODEL.version
    with pytest.raises(ArtifactError):
        registry.resolve("traces")
    with pytest.raises(ConfigError, match="cannot score `d`"):
        flow_of(detector(), [], describe(build(shipped("network"))))
    with pytest.raises(ConfigError, match="cannot score `d`"):
        flow_of(detector(model="preset:network"), [], MODEL)


def test_a_pool_holds_the_version_and_is_asked_nothing() -> None:
    host = ScorerHost("one", pack(shipped("traces")))
    assert host.model == MODEL
    fetched = Fetched(SLOTS[:100] * 0, np.arange(100), np.full(100, -1), LINES[:100], [])
    batch = flow_of(detector(), [Partition("in", 0)], MODEL).prepare(
        fetched, MODEL, begin={}, end={}
    )
    assert batch.segments is None
    assert len(batch.records) == 100
