"""Goal: log lines and sessions are judged by their key's past alone, the same however they travel.

Method: a synthetic service whose requests have a fixed course, with a new line, a rush, a pause, a
number and broken requests planted in it. The state is cut, interleaved, displaced and saved; then
whole lanes on the embedded log, killed in mid-stream, and files through `backtest`; bits are
compared. Damage must be refused. Templates: test_templates.py; memory: test_log_bounds.py.
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
from raywatch.actors.logs import LogsFlow, _lines
from raywatch.actors.ports import Fetched, Out, Partition
from raywatch.actors.records import RecordSpec
from raywatch.actors.scorer import ScorerHost
from raywatch.actors.stages import flow_of
from raywatch.models import log_judging, log_lines, log_sessions, log_template, logs
from raywatch.models.artifact import pack
from raywatch.models.errors import ArtifactError, ConfigError
from raywatch.models.logs import Logs
from raywatch.models.registry import Registry, build, shipped
from raywatch.models.scorer import describe
from raywatch.models.settings import DecideSettings, MissingSettings

RECORD = RecordSpec(values=(), key="service", time="ts", message="msg", session="request")
MODEL = describe(build(shipped("logs")))
STEPS = (
    "accepted request %d", "query took %d ms", "rendered page in %d ms", "reply of %d bytes",
    "checked token %d", "opened session file %d", "wrote %d rows", "left with code %d",
)  # fmt: skip
REQUESTS = 1_800  # each by one of two services
BROKEN = 1_400  # the first request of `web` that asks again and again, and never replies;
BROKEN_LENGTH = 3  # and how many in a row do
NEW, NUMBER, RUSH = 7_800, 9_000, 10_500  # rows of what is planted
RUSH_LENGTH = 150


def lines(seed: int = 3) -> list[dict[str, Any]]:
    """Requests to two services that overlap in time, and what is planted, all of it at `web`."""
    rng = np.random.default_rng(seed)
    found: list[tuple[float, dict[str, Any]]] = []
    for request in range(REQUESTS):
        at = 1_700_000_000_000 + 1_000.0 * request
        broken = BROKEN <= request < BROKEN + 2 * BROKEN_LENGTH and request % 2 == 0
        course = [0, 4, 5, *[1] * min(int(rng.geometric(0.6)), 5), *[2] * int(rng.integers(1, 3))]
        course += [6, 3, 7]
        for step in [0, *[1] * 20] if broken else course:
            at += 200.0 * float(np.exp(rng.normal(0.0, 0.4)))
            size = int(np.exp(rng.normal(3.0 + step, 0.3)))
            row = {"service": ("web", "api")[request % 2], "ts": int(at), "msg": STEPS[step] % size}
            found.append((at, row | {"request": f"r-{request}"}))
    found.sort(key=lambda each: each[0])
    rows = [row for _, row in found]
    for row, text, count in (
        (NEW, 'disk "sda" failed: 7 sectors lost', 1),
        (NUMBER, STEPS[1] % 9_000_000, 1),
        (RUSH, STEPS[1] % 20, RUSH_LENGTH),
    ):
        rows[row:row] = [{"service": "web", "ts": rows[row]["ts"], "msg": text}] * count
    for n in range(400):  # all sessions end, and the table is swept
        rows.append({"service": "web", "ts": rows[-1]["ts"] + 400 + n % 7, "msg": STEPS[0] % n})
    return rows


ROWS = lines()
RECORDS = len(ROWS)
LINES = [json.dumps(row).encode() for row in ROWS]


LANES = Lanes("logs", {
    "record": RECORD, "missing": MissingSettings(enabled=False),
    "decide": DecideSettings(probability=1e-4, warmup=300),
})  # fmt: skip
detector, said_by = LANES.detector, LANES.said_by


def batch_of(values: list[bytes], slots: Any, record: RecordSpec = RECORD) -> logs.Batch:
    count = len(values)
    place = np.zeros(count, np.int32), np.arange(count), np.full(count, -1)
    records = decode(Fetched(*place, values=list(values), keys=[]), record)
    assert not records.rejects
    return _lines(records, slots)


SLOTS = np.array([row["service"] == "api" for row in ROWS], np.int32)
BATCH = batch_of(LINES, SLOTS)
NOBODY = np.zeros(0, np.int64), np.zeros(0, np.int64)


def part_of(batch: logs.Batch, part: Any) -> logs.Batch:
    rest = batch._replace(text=batch.slots)
    return logs.Batch(*(each[part] for each in rest))._replace(text=batch.text)


def fresh(slots: int = 2) -> Logs:
    made = Logs(DecideSettings(warmup=300), sessions=True)
    made.ensure(slots)
    return made


def told(seen: logs.Seen, begin: int = 0) -> list[Any]:
    """All that is said, as arrays of records and of sessions that ended."""
    out = seen.said
    prior = np.where((np.maximum(out.score, out.rare) >= 2.5)[:, None], out.prior, 0)
    row = seen.ends.row.copy()
    row[:, log_sessions.NOTICED] += begin
    end = np.zeros(len(out.ended), np.int64)  # the session that each record speaks of
    end[out.ended >= 0] = row[out.ended[out.ended >= 0], log_sessions.ID]
    records = [seen.before, seen.code, seen.why, seen.early, out.score, out.rare, out.fired, end]
    ended = [row, seen.ends.session_id, seen.ends.head, seen.ends.score, out.end_rare]
    return [*records, out.said, prior, *ended]


def cut_into(size: int) -> list[Any]:
    """What is said batch after batch of `size`, as whole arrays."""
    state = fresh()
    pieces = [
        told(state.observe(part_of(BATCH, slice(at, at + size)), NOBODY), at)
        for at in range(0, RECORDS, size)
    ]
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


WHOLE = cut_into(RECORDS)
OF_RECORDS = 10  # arrays of WHOLE; the rest is of sessions


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.tobytes() == other.tobytes(), index


@pytest.mark.parametrize("size", [1, 7, 64, 1_000])
def test_where_batches_are_cut_changes_no_bit(size: int) -> None:
    assert len(WHOLE[OF_RECORDS]) > 1_000  # sessions ended
    assert_same(cut_into(size), WHOLE)


@pytest.mark.parametrize("size", [10, 1_000, 5_000])
def test_what_is_said_of_a_beginning_is_the_beginning_of_what_is_said(size: int) -> None:
    found = told(fresh().observe(part_of(BATCH, slice(size)), NOBODY))
    ended = int((WHOLE[OF_RECORDS][:, log_sessions.NOTICED] < size).sum())
    cut = [each[: size if at < OF_RECORDS else ended] for at, each in enumerate(WHOLE)]
    assert_same(found, cut)


@pytest.mark.parametrize("slot", [0, 1])
def test_keys_do_not_see_each_other(slot: int) -> None:
    mine = np.flatnonzero(slot == SLOTS)
    found = told(fresh().observe(part_of(BATCH, mine), NOBODY))
    ended = WHOLE[OF_RECORDS]
    those = np.isin(ended[:, log_sessions.NOTICED], mine)
    assert_same(found[:OF_RECORDS], [each[mine] for each in WHOLE[:OF_RECORDS]])
    assert_same(found[OF_RECORDS + 1 :], [each[those] for each in WHOLE[OF_RECORDS + 1 :]])
    assert (mine[found[OF_RECORDS][:, 0]] == ended[those, 0]).all()


@pytest.mark.parametrize("at", [0, 1, 3_000, RUSH + 20])
def test_a_state_goes_on_from_what_was_saved(at: int) -> None:
    first, second = fresh(), fresh()
    first.observe(part_of(BATCH, slice(at)), NOBODY)
    second.load(first.state())
    found = told(second.observe(part_of(BATCH, slice(at, None)), NOBODY), at)
    before = int((WHOLE[OF_RECORDS][:, log_sessions.NOTICED] < at).sum())
    cut = [each[at if n < OF_RECORDS else before :] for n, each in enumerate(WHOLE)]
    assert_same(found, cut)


def test_a_key_that_was_displaced_is_as_new_and_its_room_is_used_again() -> None:
    state = fresh(4)
    slots = np.array([0] * 500 + [1] * 500 + [2] * 500, np.int32)
    web, api = ([line for line in LINES if name in line][:500] for name in (b'"web"', b'"api"'))
    values = [*web, *api, *web]
    batch = batch_of(values, slots)
    gone = np.array([500, 1_000]), np.array([0, 1])
    one = told(state.observe(batch, gone))
    assert state.rows == 1  # three keys, never two at a time
    part = [each[1_000:] for each in one[:OF_RECORDS]]
    assert_same(part, [each[:500] for each in one[:OF_RECORDS]])
    assert state.state()["row"].tolist() == [0, 0, 1, 0]
    cut = fresh(4)
    pieces = [told(cut.observe(part_of(batch, slice(at, at + 250)), _gone(gone, at)), at)
              for at in range(0, 1_500, 250)]  # fmt: skip
    assert_same([np.concatenate(parts) for parts in zip(*pieces, strict=True)], one)


def _gone(gone: tuple[Any, Any], at: int) -> tuple[Any, Any]:
    here = (gone[0] >= at) & (gone[0] < at + 250)
    return gone[0][here] - at, gone[1][here]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("templates.stat", -1.0), ("lines.pace", np.nan), ("lines.news", 1 << 40), ("row", -1),
        ("templates.stamp", -5), ("judged.calibration", np.inf), ("kinds.past", -1.0), ("row", 7),
        ("templates.numbers", np.inf),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused(name: str, value: float) -> None:
    state = fresh()
    state.observe(part_of(BATCH, slice(100)), NOBODY)
    saved = state.state()
    saved[name].flat[1] = value
    with pytest.raises(ArtifactError):
        fresh().load(saved)
    with pytest.raises(ArtifactError):
        Logs(DecideSettings()).load(state.state())


# ---- files -----------------------------------------------------------------------------------


def backtested(
    tmp_path: Path, values: list[bytes] = LINES, **changes: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """What backtest says of lines: the table, and alerts."""
    return LANES.filed(tmp_path, values, **changes)[:2]


def opened_at(alerts: list[dict[str, Any]], begin_ms: int, end_ms: int) -> list[dict[str, Any]]:
    return [a for a in alerts if a["state"] != "resolved" and begin_ms <= a["at_ms"] <= end_ms]


def test_what_is_planted_is_found_and_named(tmp_path: Path) -> None:
    table, alerts = backtested(tmp_path)
    opened = [alert for alert in alerts if alert["state"] == "open"]
    assert len(opened) <= 8  # what is planted, what comes of it, and the end, of 17,007 lines
    (new,) = opened_at(alerts, ROWS[NEW]["ts"], ROWS[NEW]["ts"])
    assert (new["key"], new["component"]) == ("web", "rare")
    assert new["line"]["text"] == 'disk "sda" failed: 7 sectors lost'
    assert new["line"]["template"] == 'disk " sda " failed : <*> sectors lost'
    assert new["line"]["session"] == ""
    assert new["line"]["expected"][0]["component"] == "rare"
    assert "never seen here before" in new["words"]
    assert new["reasons"][0]["component"] == "rare"
    assert [each["name"] for each in new["channels"]] == ["msg", "request"]

    rush = opened_at(alerts, ROWS[RUSH]["ts"], ROWS[RUSH]["ts"])
    assert "rush" in {alert["component"] for alert in rush}
    assert "such lines within 10 s, usually" in json.dumps(rush)

    number = opened_at(alerts, ROWS[NUMBER]["ts"], ROWS[NUMBER]["ts"])
    assert [alert["component"] for alert in number] == ["number"]
    assert "value 1 is 9,000,000, usually" in number[0]["words"]
    assert table.num_rows == RECORDS


def test_a_broken_session_is_named_at_its_end_and_its_score_is_in_the_output(
    tmp_path: Path,
) -> None:
    table, alerts = backtested(tmp_path)
    broken = {f"r-{BROKEN + 2 * each}" for each in range(BROKEN_LENGTH)}
    named = [a for a in alerts if a["component"] == "session" and a["state"] != "resolved"]
    assert {alert["line"]["session"] for alert in named} & broken
    first = next(alert for alert in named if alert["line"]["session"] in broken)
    assert first["line"]["template"] == "checked token <*>"
    assert "of 21 lines 0 like `checked token <*>`, usually 1;" in first["words"]
    assert first["channels"][1]["word"] == first["line"]["session"]

    rows = [each for row in table["ended"].to_pylist() for each in row]
    score = {each["session"]: each["score"] for each in rows}
    assert len(rows) == len(score) > 1_500
    usual = [s for name, s in score.items() if name not in broken]
    assert min(score[name] for name in broken) > np.quantile(usual, 0.99)
    assert all(0.0 < each["p_value"] <= 1.0 for each in rows)
    assert min(each["records"] for each in rows) == 8


@pytest.mark.parametrize("good", [0, 3])
def test_a_row_that_is_rejected_has_no_sessions(tmp_path: Path, good: int) -> None:
    bad = json.dumps({**ROWS[0], "msg": 7}).encode()
    table, alerts = backtested(tmp_path, [bad, *LINES[:good], bad])
    assert table["ended"].to_pylist() == [None, *[[]] * good, None]
    assert table["key"].to_pylist() == [None, *(row["service"] for row in ROWS[:good]), None]
    assert alerts == []


def test_a_new_key_that_finds_no_room_may_be_rejected(tmp_path: Path) -> None:
    table, _ = backtested(tmp_path, keys_max=1, keys_full="reject")
    first = ROWS[0]["service"]
    mine = [row["service"] == first for row in ROWS]
    assert [key is not None for key in table["key"].to_pylist()] == mine


def test_sessions_are_not_needed(tmp_path: Path) -> None:
    table, alerts = backtested(tmp_path, record=replace(RECORD, session=None), evidence=True)
    assert "ended" not in table.column_names
    evidence = np.array(table["evidence"].to_pylist())
    assert evidence.shape == (RECORDS, 1)
    assert evidence[NEW, 0] > np.quantile(evidence, 0.98)  # the rush has 1 % of all lines
    assert "rare" in {alert["component"] for alert in alerts}
    assert all(alert["line"]["session"] == "" for alert in alerts if alert["state"] == "open")


@pytest.mark.parametrize("size", [1_000, 77])
def test_batches_of_a_file_change_no_bit(tmp_path: Path, size: int) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    one, said = backtested(tmp_path / "a")
    other, again = backtested(tmp_path / "b", batch_records=size)
    assert one.equals(other)
    assert said == again


def test_what_is_disguised_is_in_no_alert_and_in_no_state(tmp_path: Path) -> None:
    hidden = replace(RECORD, pseudonymise=("msg", "request"))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    open_, alerts = backtested(tmp_path / "a")
    closed, disguised = backtested(tmp_path / "b", record=hidden)
    assert closed["score"].equals(open_["score"])
    assert [a["id"] for a in alerts] == [a["id"] for a in disguised]
    text = (tmp_path / "b" / "alerts.jsonl").read_text()
    for secret in ("disk", "sectors", "token", "query", "r-1404", "9,000,000", "9000000"):
        assert secret not in text, secret
        assert secret in (tmp_path / "a" / "alerts.jsonl").read_text()
    assert '"word":"(withheld)"' in text
    assert {each["session"] for row in closed["ended"].to_pylist() for each in row} == {None}
    flow = flow_of(detector(record=hidden), [Partition("in", 0)], MODEL)
    count = 2_000
    fetched = Fetched(SLOTS[:count] * 0, np.arange(count), np.full(count, -1), LINES[:count], [])
    flow.finish(flow.prepare(fetched, MODEL, begin={}, end={}), None)
    kept = b"".join(each.tobytes() for each in flow._arrays().values())
    assert b"query" not in kept
    assert b"r-1" not in kept


# ---- lanes -----------------------------------------------------------------------------------

OUTS = [Out("in", str(row["service"]).encode(), v) for row, v in zip(ROWS, LINES, strict=True)]
HALF = RECORDS // 2


def test_a_lane_says_what_backtest_says(tmp_path: Path) -> None:
    _, alerts = backtested(tmp_path)
    assert without_lineage(said_by(OUTS)) == without_lineage(alerts)


def test_a_lane_that_was_handed_over_says_the_same() -> None:
    said = said_by(OUTS)
    assert said == said_by(OUTS[:HALF], OUTS[HALF:], snapshot_s=0.05)
    assert said == said_by(OUTS[: RUSH + 30], OUTS[RUSH + 30 :], batch_records=50)
    assert len(said) >= 4


@pytest.mark.parametrize("dies_at", [12, 30, 55])
def test_a_lane_that_is_killed_loses_and_repeats_nothing(dies_at: int) -> None:
    assert LANES.survived(OUTS, dies_at) == said_by(OUTS)


def test_partitions_in_one_lane_are_those_of_a_file(tmp_path: Path) -> None:
    _, alerts = backtested(tmp_path, partitions=3)
    assert without_lineage(said_by(OUTS, partitions=3)) == without_lineage(alerts)


def flood() -> list[bytes]:
    """Lines of `web`, and among them those of services that come twice each."""
    rows = [row for row in ROWS if row["service"] == "web"][:2_000]
    some: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
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
    web = table.filter(np.array([key == "web" for key in table["key"].to_pylist()]))
    assert web["score"].equals(alone["score"])

    flow = flow_of(detector(keys_max=8), [Partition("in", 0)], MODEL)
    assert isinstance(flow, LogsFlow)
    values = flood()
    count = len(values)
    fetched = Fetched(np.zeros(count, np.int32), np.arange(count), np.full(count, -1), values, [])
    flow.finish(flow.prepare(fetched, MODEL, begin={}, end={}), None)
    assert flow.keys.high > 100  # slots of one batch come back behind it,
    assert flow.logs.rows <= 8  # room for lines within it
    saved = flow.logs.state()
    assert saved["lines.ordinal"].shape[0] == len(flow.keys) <= 8
    held = {name: saved[f"{name}.depth"].shape[0] for name in flow.logs.pages}
    assert held == flow.logs.pages  # pages of keys that are gone are nobody's


def test_a_snapshot_of_fewer_partitions_is_taken_over() -> None:
    few = flow_of(detector(), [Partition("in", 1)], MODEL)
    more = flow_of(detector(), [Partition("in", 0), Partition("in", 1)], MODEL)
    assert isinstance(few, LogsFlow)
    fetched = Fetched(SLOTS[:3_000] * 0, np.arange(3_000), np.full(3_000, -1), LINES[:3_000], [])
    few.finish(few.prepare(fetched, MODEL, begin={}, end={}), None)
    assert more.fits(few.snapshot({Partition("in", 1): 3_000}))
    assert more._arrays()["logs.lines.ordinal"].sum() == 3_000
    layouts = {
        flow_of(detector(record=record), [], MODEL).layout()
        for record in (RECORD, replace(RECORD, session=None), replace(RECORD, session_idle_ms=9))
    }
    assert len(layouts) == 3


def test_a_key_that_is_forgotten_ends_its_incident() -> None:
    rows = [json.loads(value) for value in flood()]
    for index in range(2_400, 2_460):  # a rush of lines that `web` never had; then it is gone
        rows[index] |= {"service": "web", "msg": "kernel panic"}
    gone = [{**row, "service": f"t-{n}"} for n, row in enumerate(rows[:400])]
    outs = [Out("in", b"k", json.dumps(row).encode()) for row in [*rows, *gone]]
    decide = DecideSettings(probability=1e-3, warmup=300, quiet=100_000)
    said = said_by(outs, keys_max=8, decide=decide)
    reasons = Counter(json.loads(each).get("reason", "") for each in said)
    assert reasons["key forgotten"] > 0


def test_no_batch_waits_for_a_compiler() -> None:
    some = (log_template.read, log_lines.look, log_sessions.follow, log_judging.judge)
    for size in (0, 1, 2, 500):
        fresh().observe(part_of(BATCH, slice(size)), NOBODY)
        alone = Logs(DecideSettings())
        alone.ensure(2)
        alone.observe(part_of(BATCH, slice(size)), NOBODY)
    frozen = BATCH._replace(time_ms=BATCH.time_ms.copy(), text=BATCH.text.copy())
    frozen.time_ms.flags.writeable = False
    fresh().observe(frozen, NOBODY)
    for kernel in some:
        assert len(kernel.signatures) == 1, kernel


# ---- around it -------------------------------------------------------------------------------


def test_a_signal_class_is_not_another_model(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert registry.resolve("preset:logs").version == MODEL.version
    with pytest.raises(ArtifactError):
        registry.resolve("logs")
    with pytest.raises(ConfigError, match="cannot score `d`"):
        flow_of(detector(), [], describe(build(shipped("network"))))
    with pytest.raises(ConfigError, match="cannot score `d`"):
        flow_of(detector(model="preset:network"), [], MODEL)


def test_a_pool_holds_the_version_and_is_asked_nothing() -> None:
    host = ScorerHost("one", pack(shipped("logs")))
    assert host.model == MODEL
    fetched = Fetched(SLOTS[:100] * 0, np.arange(100), np.full(100, -1), LINES[:100], [])
    batch = flow_of(detector(), [Partition("in", 0)], MODEL).prepare(
        fetched, MODEL, begin={}, end={}
    )
    assert batch.segments is None
    assert len(batch.records) == 100
