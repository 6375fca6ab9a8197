"""Goal: streams are repeatable at any place, and what is called an anomaly is one.

Method: the same records by different ways; every injection against the same stream without it;
the judge on alerts made by hand.
"""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from raywatch.models.errors import ConfigError
from raywatch.models.synthetic import (
    BLOCK,
    INJECTIONS,
    SIGNALS,
    Injection,
    Stream,
    Table,
    generate,
    judge,
    to_json,
)

STREAM = Stream(keys=30, seed=5)


def same(one: Table, other: Table) -> bool:
    return (
        one.names == other.names
        and np.array_equal(one.key, other.key)
        and np.array_equal(one.time_ms, other.time_ms)
        and np.array_equal(one.value, other.value)
        and one.injected == other.injected
    )


def joined(tables: list[Table]) -> Table:
    return Table(
        tables[0].names,
        np.concatenate([each.key for each in tables]),
        np.concatenate([each.time_ms for each in tables]),
        np.concatenate([each.value for each in tables]),
        tuple(injection for each in tables for injection in each.injected),
    )


def test_a_seed_is_a_stream_and_another_seed_is_another() -> None:
    assert same(generate(STREAM, 700), generate(STREAM, 700))
    assert not np.array_equal(
        generate(STREAM, 700).value, generate(replace(STREAM, seed=6), 700).value
    )


def test_blocks_computed_one_by_one_in_any_order_are_the_stream() -> None:
    rounds = 3 * STREAM.round_steps // BLOCK
    order = np.random.default_rng(1).permutation(rounds).tolist()
    blocks = {number: STREAM.chunk(number) for number in order}
    table = joined([blocks[number] for number in range(rounds)])
    assert same(table, generate(STREAM, rounds * BLOCK))
    # The first round is quiet, the two others have one anomaly of each kind.
    assert len(table.injected) == 2 * len(INJECTIONS)


def test_a_block_far_away_costs_what_the_first_one_does() -> None:
    begin = time.perf_counter()
    far = STREAM.chunk(10**7)  # 162 years of seconds
    assert time.perf_counter() - begin < 1.0
    assert np.isfinite(far.value).all()
    assert far.time_ms[0] == STREAM.start_ms + 10**7 * BLOCK * STREAM.step_ms


def test_records_come_in_the_order_of_time_and_each_key_keeps_its_step() -> None:
    table = generate(replace(STREAM, per_round=0), 600)
    assert len(table) == 600 * 30
    assert (np.diff(table.time_ms) >= 0).all()
    assert table.key[:30].tolist() == list(range(30))
    mine = table.time_ms[table.key == 7]
    assert (np.diff(mine) == 1_000).all()
    assert mine[0] == STREAM.start_ms + 7 * 1_000 // 30


def test_ordinary_values_look_like_their_signal() -> None:
    stream = Stream(keys=50, seed=1, per_round=0, day_ms=600_000)
    series = dict(generate(stream, 1_200).series())
    by_kind = {kind: [x[:, 0] for name, x in series.items() if kind in name] for kind in SIGNALS}
    assert all(len(each) == 10 for each in by_kind.values())
    for x in by_kind["cpu"]:
        assert 0.0 <= x.min() < x.max() <= 100.0
        # Two days: half a day apart it is another value, a day apart the same one and noise.
        assert np.abs(x[:600] - x[600:]).mean() < 3.0 < np.abs(x[:300] - x[300:600]).mean()
    for x in by_kind["latency"]:
        assert abs(np.log(x).std() - 0.25) < 0.03
    for x in by_kind["counts"]:
        assert (x == np.round(x)).all()
    for x in by_kind["walk"]:
        assert x.std() > 3.0 * np.diff(x).std()  # neighbours are alike
    for x in by_kind["bursty"]:
        assert (x > np.median(x) + 5.0 * np.std(x[x < np.quantile(x, 0.8)])).mean() < 0.2
        assert x.max() > np.median(x) + 5.0


@pytest.mark.parametrize("kind", INJECTIONS)
def test_an_injection_changes_its_own_records_and_no_others(kind: str) -> None:
    stream = Stream(keys=25, seed=2, injections=(kind,), quiet=300)
    clean = generate(stream, 1_500, injections_per_kind=0)
    table = generate(stream, 1_500, injections_per_kind=20)
    assert len(table.injected) == 20
    assert clean.injected == ()
    inside = np.zeros(len(clean), np.bool_)
    for each in table.injected:
        assert each.kind == kind
        key = clean.names.index(each.key)
        mine = (clean.key == key) & (clean.time_ms >= each.begin_ms)
        mine &= clean.time_ms < each.end_ms
        assert mine.sum() == {"spike": 1, "drift": 120, "missing": 120}.get(kind, 60)
        assert each.begin_ms >= stream.start_ms + 300 * stream.step_ms
        inside |= mine
    if kind == "missing":
        assert np.array_equal(table.value, clean.value[~inside])
        return
    differs = table.value != clean.value
    assert not differs[~inside].any()
    assert differs[inside].mean() > 0.9
    moved = np.abs(table.value - clean.value)[inside].max()
    assert moved > 3.0 * np.abs(np.diff(clean.value[clean.key == 0])).mean()


def test_anomalies_of_a_key_keep_their_distance() -> None:
    stream = Stream(keys=6, seed=2, quiet=0)
    injected = generate(stream, 6_000, injections_per_kind=6).injected
    assert len(injected) == 36
    for key in stream.names:
        mine = sorted(each.begin_ms for each in injected if each.key == key)
        assert len(mine) == 6
        assert min(np.diff(mine)) >= 200_000  # 200 records of 1,000 ms


def test_json_is_what_the_table_holds() -> None:
    table = generate(STREAM, 100)
    lines = to_json(table, 40, 90)
    assert len(lines) == 50
    for index, line in enumerate(lines, 40):
        assert json.loads(line) == {
            "host": table.names[table.key[index]],
            "ts": table.time_ms[index],
            "value": table.value[index],
        }
    assert len(to_json(table)) == len(table)


def test_a_million_records_take_less_than_two_seconds_and_json_keeps_up() -> None:
    begin = time.process_time()
    table = generate(Stream(keys=500), 2_000)
    assert time.process_time() - begin < 2.0
    assert len(table) > 990_000
    begin = time.process_time()
    to_json(table, 0, 50_000)
    assert time.process_time() - begin < 0.5  # a second's records in half of one


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keys": 0}, "`keys` must be 1"),
        ({"step_ms": 0}, "`step_ms`"),
        ({"kinds": ("cpu", "gpu")}, "no `gpu`"),
        ({"kinds": ()}, "must name one signal"),
        ({"injections": ("flood",)}, "no `flood`"),
        ({"strength": float("nan")}, "`strength`"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(STREAM, **changes)  # type: ignore[arg-type]


def test_few_keys_have_few_anomalies_of_all_kinds_in_turn() -> None:
    stream = Stream(keys=2, seed=1)
    places = [each for number in range(1, 30) for each in stream.places(number)]
    assert len(places) == 58  # 29 rounds, 2 keys
    assert {each.kind for each in places} == set(INJECTIONS)


def test_more_anomalies_than_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not fit 30 keys of 1500 records"):
        generate(STREAM, 1_500, injections_per_kind=100)


TRUTH = (
    Injection("spike", "a", 1_000, 1_001),
    Injection("level", "a", 50_000, 60_000),
    Injection("missing", "b", 50_000, 60_000),
    Injection("spike", "c", 50_000, 50_001),
)


def test_the_judge_matches_alerts_by_key_and_time() -> None:
    alerts = [
        ("a", 1_000, 1_000, "open"),  # the spike
        ("a", 1_000, 3_000, "resolved"),
        ("a", 60_500, 60_500, "open"),  # the way back from the shift, within the slack
        ("b", 49_000, 55_000, "open"),  # silent since before, noticed within
        ("c", 49_000, 49_900, "open"),  # too early: false
        ("d", 50_000, 50_000, "open"),  # nothing there: false
        ("d", 50_000, 51_000, "update"),  # the same incident again
    ]
    verdict = judge(TRUTH, alerts, slack_ms=1_000)
    assert (verdict.found, verdict.missed, verdict.false) == (3, 1, 2)
    assert verdict.by_kind == {"level": (1, 1), "missing": (1, 1), "spike": (1, 2)}
    assert verdict.unfound == (TRUTH[3],)


def test_an_update_finds_what_came_into_an_open_incident_and_slack_has_an_end() -> None:
    early = [("c", 40_000, 40_000, "open"), ("c", 40_000, 50_000, "update")]
    verdict = judge(TRUTH, early, slack_ms=0)
    assert (verdict.found, verdict.false) == (1, 1)
    assert judge(TRUTH, [("a", 61_000, 61_000, "open")], slack_ms=1_000).found == 0
    assert judge(TRUTH, [("a", 60_999, 60_999, "open")], slack_ms=1_000).found == 1


def test_no_alert_and_no_truth_are_verdicts_too() -> None:
    assert judge(TRUTH, [], slack_ms=0).missed == 4
    nothing = judge((), [("a", 1, 1, "open")], slack_ms=0)
    assert (nothing.found, nothing.missed, nothing.false, nothing.by_kind) == (0, 0, 1, {})
