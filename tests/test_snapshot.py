"""Goal: the page and `status` show what was measured, say the worst thing first, invent nothing.

Method: one healthy observation, changed in one point for each case; the shape of the schema; the
series and the metrics that go with it.
"""

import json
from dataclasses import replace
from typing import Any

import pytest

from raywatch.cluster.journal import Entry
from raywatch.cluster.metrics import Metrics
from raywatch.cluster.series import Axis, Chart, Series
from raywatch.cluster.snapshot import (
    SPARKS_MAX,
    build,
    marks,
    ok_lags,
    open_alerts,
)
from raywatch.cluster.views import (
    AlertView,
    ChannelView,
    ClusterView,
    CountsView,
    DetectorView,
    Observed,
    OwnerView,
    PartitionView,
    PoolView,
    RolloutView,
    ScorerView,
    Window,
)
from raywatch.cluster.words import odds, verdict

AXIS = Axis(n=6, step_s=10.0)
NOW = 1_700_000_000_000
SPIKE = AlertView(
    id="a1",
    detector="hosts",
    key="edge-1",
    what="edge-1 shows a sudden step",
    since_ms=NOW - 20_000,
    tail_probability=4e-10,
    model="lagbank@1",
    channels=(ChannelView("mem", 0.2, 3.0, 2.0), ChannelView("cpu", 0.8, 9.12345, None)),
)


def parts(count: int, **first: Any) -> tuple[PartitionView, ...]:
    made = [
        PartitionView(f"events/{n}", "ok", 0.1 * n, 10 * n, n % 2, spark=(0.1, 0.2))
        for n in range(count)
    ]
    return (replace(made[0], **first), *made[1:])


CALM = Observed(
    cluster=ClusterView("demo", "0.1.0", "5f2c1a", 500.0, "demo.yaml"),
    pool=PoolView(1, 4, 0.75, "2 fit", serving=(2.0,) * 9, wanted=(2.0,) * 6),
    owners=(OwnerView("hosts.owner-0", True), OwnerView("hosts.owner-1", True)),
    scorers=(
        ScorerView("s-1", "lagbank@1", "serving", 0.5, 12.0, 100),
        ScorerView("s-2", "lagbank@1", "serving", 0.7, 18.0, None),
    ),
    partitions=parts(4),
    detectors=(DetectorView("hosts", "lagbank@1", 0.3, in_per_s=(1.0, 2.0), out_per_s=(1.0, 3.0)),),
    counts=CountsView(today=5, last_minute=1, scored_today=1_000),
)


def said(seen: Observed) -> tuple[str, str]:
    found = verdict(seen)
    return found["state"], found["words"]


def test_every_field_of_the_schema_is_there_and_every_series_fits_the_axis() -> None:
    made = build(replace(CALM, alerts=(SPIKE,)), NOW, AXIS)
    assert set(made) >= {
        *("schema", "at_ms", "axis", "cluster", "verdict", "owners", "scorers", "alerts"),
        *("resolved_today", "last_resolved", "incidents", "detectors", "partitions", "pool"),
        *("marks", "journal", "flow"),
    }
    assert made["schema"] == "raywatch.snapshot/1"
    assert made["axis"] == {"end_ms": NOW, "step_s": 10.0, "n": 6}
    series = [
        *made["pool"]["series"].values(),
        *made["detectors"][0]["series"].values(),
        *made["partitions"]["spark"].values(),
        *made["incidents"][0]["series"].values(),
        made["partitions"]["ok_p50"],
        made["partitions"]["ok_max"],
    ]
    assert {len(each) for each in series} == {6}
    assert made["detectors"][0]["series"]["in_per_s"] == [None, None, None, None, 1.0, 2.0]
    json.dumps(made, allow_nan=False)


def test_what_was_not_measured_is_null_and_never_zero() -> None:
    bare = Observed(cluster=CALM.cluster, pool=PoolView(1, 4, 0.75))
    made = build(bare, NOW, AXIS)
    assert made["owners"] == {"up": 0, "want": 0, "lag_records": None, "lag_oldest_s": None}
    assert made["scorers"]["busy"] is None
    assert made["scorers"]["p99_ms"] is None
    assert made["alerts"]["unacknowledged"] is None
    assert made["pool"]["series"]["serving"] == [None] * 6
    assert made["incidents"] == made["detectors"] == made["marks"] == []


def test_a_total_with_an_unknown_part_is_unknown() -> None:
    assert build(CALM, NOW, AXIS)["owners"]["lag_records"] == 60  # 0 + 10 + 20 + 30
    unread = replace(CALM, partitions=parts(4, state="unknown", lag_records=None, lag_s=None))
    assert build(unread, NOW, AXIS)["owners"]["lag_records"] is None
    assert build(unread, NOW, AXIS)["owners"]["lag_oldest_s"] is None


def test_scorers_are_summed_up_with_the_slowest_p99() -> None:
    found = build(CALM, NOW, AXIS)["scorers"]
    assert found["busy"] == 0.6
    assert found["p99_ms"] == 18.0
    assert found["queue_records"] == 100
    assert found["model"] == "lagbank@1"


def test_the_same_observation_gives_the_same_snapshot() -> None:
    assert build(CALM, NOW, AXIS) == build(CALM, NOW, AXIS)


def test_many_partitions_have_lines_only_where_there_is_trouble() -> None:
    made = build(replace(CALM, partitions=parts(40, state="stalled")), NOW, AXIS)
    assert list(made["partitions"]["spark"]) == ["events/0"]
    flood = tuple(replace(each, state="slow") for each in parts(2_000))
    made = build(replace(CALM, partitions=flood), NOW, AXIS)
    assert len(made["partitions"]["spark"]) == SPARKS_MAX
    assert "events/1999" in made["partitions"]["spark"]  # the longest lag
    assert len(json.dumps(made)) < 200_000


def test_an_incident_shows_its_channels_by_share() -> None:
    found = build(replace(CALM, alerts=(SPIKE,)), NOW, AXIS)["incidents"][0]
    assert [each["name"] for each in found["channels"]] == ["cpu", "mem"]
    assert found["channels"][0] == {
        "name": "cpu",
        "share": 0.8,
        "observed": 9.123,
        "expected": None,
    }
    assert found["tail_probability"] == 4e-10
    assert found["similar"] is None


def test_the_window_of_an_alert_is_laid_on_the_time_axis() -> None:
    window = Window(
        time_ms=(NOW - 25_000, NOW - 21_000, NOW - 5_000, NOW - 999_000),
        observed=(1.0, 3.0, 7.0, 9.0),
        expected=(1.0, None, 2.0, 1.0),
    )
    found = build(replace(CALM, alerts=(replace(SPIKE, window=window),)), NOW, AXIS)
    series = found["incidents"][0]["series"]
    # steps end 50, 40, 30, 20, 10 and 0 s ago; the last record lies before the axis
    assert series["observed"] == [None, None, None, 3.0, None, 7.0]  # the last of each step
    assert series["expected"] == [None, None, None, 1.0, None, 2.0]
    assert series["low"] == [None] * 6


def test_incidents_come_with_the_least_likely_first_and_silence_last() -> None:
    silent = replace(SPIKE, id="a2", tail_probability=None)
    rare = replace(SPIKE, id="a3", tail_probability=0.0)
    made = build(replace(CALM, alerts=(silent, SPIKE, rare)), NOW, AXIS)
    assert [each["id"] for each in made["incidents"]] == ["a3", "a1", "a2"]


def test_open_incidents_are_those_whose_last_live_record_is_not_resolved() -> None:
    record = {
        "id": "x",
        "detector": "hosts",
        "key": "edge-1",
        "state": "open",
        "since_ms": 5,
        "run_kind": "live",
        "words": "edge-1 shows a sudden step",
        "tail_probability": 1e-9,
        "model": "lagbank@1",
        "lineage": {"topic": "events", "partition": 3, "offset": 12},
        "channels": [{"name": "cpu", "share": 1.0, "observed": 9.0, "expected": None}],
    }
    ended = {**record, "id": "y", "state": "resolved"}
    drill = {**record, "id": "z", "run_kind": "drill"}
    broken = {"id": "w", "run_kind": "live"}
    found = open_alerts([{**ended, "state": "open"}, drill, broken, record, ended])
    assert [each.id for each in found] == ["x"]
    assert found[0].lineage == "events/3, offset 12"
    assert found[0].channels == (ChannelView("cpu", 1.0, 9.0, None),)


def test_the_window_of_an_alert_ends_with_its_record_and_is_spaced_as_its_key_is() -> None:
    record = {"id": "x", "state": "open", "since_ms": 5, "at_ms": 9_000, "run_kind": "live"}
    window = {"channel": "cpu", "step_ms": 2_000, "observed": [None, 4, 5.5], "expected": None}
    found = open_alerts([{**record, "window": window}])
    assert found[0].window == Window([5_000, 7_000, 9_000], [None, 4.0, 5.5], [], [], [])
    known = {**window, "expected": [1.0, None, "2"]}
    (shown,) = open_alerts([{**record, "window": known}])
    assert shown.window is not None
    assert shown.window.expected == [1.0, None, None]
    assert shown.window.low == []
    for band, low, high in (
        ([0.0, 3.0], [-0.5, None, None], [2.5, None, None]),
        ([3.0, 0.0], [], []),
        ([None, 1.0], [], []),
        (7, [], []),
    ):
        channels = [7, {"name": "mem", "band": [0, 9]}, {"name": "cpu", "band": band}]
        (shown,) = open_alerts([{**record, "window": known, "channels": channels}])
        assert shown.window is not None
        assert (shown.window.low, shown.window.high) == (low, high)
    for broken in ("no window", {**window, "step_ms": 0}, {**window, "observed": 7}):
        assert open_alerts([{**record, "window": broken}])[0].window is None


def test_marks_are_journal_entries_with_a_label_on_the_axis() -> None:
    journal = (
        Entry(NOW - 5_000, "grow", "grow: 3 wanted", {"label": "2 → 3"}),
        Entry(NOW - 9_000, "info", "nothing to draw", {"label": "x"}),
        Entry(NOW - 30_000, "start", "supervisor starts", {"label": "start"}),
        Entry(NOW - 400_000, "fault", "flood", {"label": "flood", "until_ms": NOW - 20_000}),
        Entry(NOW - 500_000, "fault", "long ago", {"label": "old"}),
    )
    found = marks(journal, NOW, AXIS)
    assert [each["label"] for each in found] == ["flood", "start", "2 → 3"]
    assert [each["kind"] for each in found] == ["fault", "rollout", "grow"]
    assert found[0]["until_ms"] == NOW - 20_000


def test_the_median_and_the_highest_lag_leave_trouble_out() -> None:
    assert ok_lags(parts(3, state="stalled", lag_s=99.0)) == (0.2, 0.2)
    assert ok_lags(()) == (None, None)


def test_healthy_and_nothing_open() -> None:
    assert said(CALM) == ("healthy", "nothing is open")
    assert verdict(CALM)["why"] == "All 4 partitions are ok, the oldest record waits 0.3 s."
    assert verdict(CALM)["next"] == {"say": "Nothing to do.", "command": ""}


def test_healthy_with_the_strongest_incident_named() -> None:
    seen = replace(CALM, alerts=(SPIKE, replace(SPIKE, id="b", key="edge-2", tail_probability=0.1)))
    assert said(seen) == ("healthy", "2 incidents are open")
    assert verdict(seen)["why"].endswith("The strongest incident is edge-1 (1 in 2.5 billion).")


def test_healthy_in_a_rollout_with_the_way_back() -> None:
    rollout = RolloutView("lagbank@1", "lagbank@2", "switching")
    seen = replace(CALM, rollouts=(rollout,))
    assert said(seen) == ("healthy", "rollout lagbank@1 to lagbank@2, switching")
    assert verdict(seen)["next"]["command"] == "raywatch rollout abort demo.yaml"


def test_starting_until_everything_is_there_and_degraded_when_it_takes_too_long() -> None:
    young = replace(CALM.cluster, up_s=34.0)
    waits = replace(CALM, cluster=young, scorers=(), owners=(OwnerView("o", False),))
    assert said(waits) == ("starting", "0 of 1 owners are up, no scorer serves yet")
    assert said(replace(waits, cluster=CALM.cluster))[0] == "degraded"
    unread = tuple(replace(each, state="unknown") for each in parts(2))
    assert said(replace(CALM, cluster=young, partitions=unread))[0] == "starting"
    assert said(replace(CALM, cluster=young))[0] == "healthy"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trouble": "no broker answers"}, "the log cannot be read"),
        ({"scorers": (ScorerView("s", "m", "starting"),)}, "scorers down, 0 of 1 serve"),
        ({"owners": (OwnerView("a", True), OwnerView("b", False))}, "1 of 2 owners are up"),
        ({"partitions": ()}, "there is nothing to watch"),
        ({"partitions": parts(4, state="stalled")}, "events/0 stalled"),
        ({"partitions": parts(4, state="unknown")}, "1 of 4 partitions cannot be read"),
        (
            {"partitions": (*parts(3, state="stalled"), *parts(2, state="stopped"))},
            "1 of 5 partitions stalled, 1 stopped",
        ),
    ],
)
def test_degraded_says_the_worst_thing(changes: dict[str, Any], words: str) -> None:
    seen = replace(CALM, alerts=(SPIKE,), **changes)
    assert said(seen) == ("degraded", words)
    assert verdict(seen)["next"]["command"]


def test_slow_says_when_it_is_over_only_where_that_is_known() -> None:
    slow = parts(4, state="slow", words="31 s behind, 4,000 records wait", back_s=40.0)
    assert said(replace(CALM, partitions=slow)) == (
        "slow",
        "1 of 4 partitions behind, back in ~40 s",
    )
    grows = (*slow, replace(slow[0], name="events/9", back_s=None))
    assert said(replace(CALM, partitions=grows)) == ("slow", "2 of 5 partitions behind")
    assert verdict(replace(CALM, partitions=slow))["why"] == (
        "events/0: 31 s behind, 4,000 records wait. Scorers: 2 fit."
    )


def test_stalled_wins_over_slow() -> None:
    both = (*parts(2, state="slow"), *parts(1, state="stalled"))
    assert said(replace(CALM, partitions=both))[0] == "degraded"


def test_probabilities_are_said_as_odds() -> None:
    assert odds(4e-14) == "1 in 25 trillion"
    assert odds(1e-9) == "1 in 1 billion"
    assert odds(1e-3) == "1 in 1,000"
    assert odds(0.0) == "less than 1 in 1,000 trillion"


def test_a_series_leaves_gaps_where_nothing_was_measured() -> None:
    series = Series(AXIS)
    for at_s, value in ((0, 1.0), (12, 2.0), (14, 3.0), (40, 5.0)):
        series.put(at_s * 1_000, value)
    assert series.values(45_000) == [None, 1.0, 3.0, None, None, 5.0]
    assert series.values(55_000) == [None, 1.0, 3.0, None, None, 5.0]  # the step has only begun
    assert series.values(65_000) == [3.0, None, None, 5.0, None, None]
    assert series.values(900_000) == [None] * 6


def test_a_series_folds_the_values_of_a_step() -> None:
    mean, most = Series(AXIS, "mean"), Series(AXIS, "max")
    for value in (4.0, 8.0, 3.0):
        mean.put(1_000, value)
        most.put(1_000, value)
    mean.put(1_000, None)
    most.put(1_000, float("nan"))
    assert mean.values(0)[-1] == 5.0
    assert most.values(0)[-1] == 8.0


def test_a_ring_never_shows_what_was_a_round_ago() -> None:
    series = Series(AXIS)
    for step in range(100):
        if step % 7 in (0, 3):
            series.put(step * 10_000, float(step))
    shown = series.values(990_000)
    assert shown == [None, 94.0, None, None, None, 98.0]  # steps 93 to 98: 99 has only begun


def test_a_chart_forgets_series_that_are_gone() -> None:
    chart = Chart(AXIS)
    chart.put("a", 0, 1.0)
    chart.put("b", 0, 2.0)
    chart.keep(["b"])
    assert chart.values("a", 0) == [None] * 6
    assert chart.values("b", 0)[-1] == 2.0


def lines(metrics: Metrics) -> dict[str, str]:
    text = metrics.render().decode().splitlines()
    return dict(each.rsplit(" ", 1) for each in text if not each.startswith("#"))


def test_metrics_follow_the_snapshot_and_unknown_is_absent() -> None:
    metrics = Metrics()
    metrics.update(build(replace(CALM, partitions=parts(3, lag_s=None)), NOW, AXIS))
    found = lines(metrics)
    assert found['raywatch_scorers_count{state="serving"}'] == "2.0"
    assert found['raywatch_verdict_state{state="healthy"}'] == "1.0"
    assert found["raywatch_lag_seconds"] == "NaN"
    assert 'raywatch_partition_lag_seconds{partition="events/0"}' not in found
    assert found['raywatch_partition_lag_records{partition="events/2"}'] == "20.0"
    assert found['raywatch_detector_out_records_per_second{detector="hosts"}'] == "3.0"
    assert all(name.startswith("raywatch_") for name in found)


def test_counters_go_on_at_midnight() -> None:
    metrics = Metrics()
    for today in (5, 9, 2, 2):
        counts = replace(CALM.counts, today=today)
        metrics.update(build(replace(CALM, counts=counts), NOW, AXIS))
    assert lines(metrics)["raywatch_alerts_total"] == "11.0"  # 5 + 4, then 2 of the new day


def test_metrics_forget_partitions_that_are_gone() -> None:
    metrics = Metrics()
    metrics.update(build(CALM, NOW, AXIS))
    metrics.update(build(replace(CALM, partitions=parts(1)), NOW, AXIS))
    assert 'raywatch_partition_lag_records{partition="events/3"}' not in lines(metrics)
