"""Goal: detectors show how often what they call rare came, and say nothing where nobody can tell.

Method: reports of owners as a supervisor gets them, over a restart; then the snapshot of what was
counted, its metrics, and the lines of `status`. And what is shown is what was promised: young keys
of noise, through `backtest`; and counters of five days, of which what is wrong for hours is rare.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lanes import spec
from test_snapshot import AXIS, CALM, NOW, lines

from raywatch.actors.backtest import backtest
from raywatch.actors.owner import LaneReport, OwnerReport
from raywatch.actors.stats import Tally
from raywatch.cluster import view
from raywatch.cluster.commands import status
from raywatch.cluster.metrics import Metrics
from raywatch.cluster.snapshot import build
from raywatch.cluster.views import DetectorView, Observed
from raywatch.models.registry import build as built
from raywatch.models.registry import shipped
from raywatch.models.scorer import F64
from raywatch.models.settings import DecideSettings

TALLY = Tally(judged=120_000, first=126, second=13, alerting=0, held=12)


def seen(tally: Tally | None, **changes: Any) -> Observed:
    detector = DetectorView("hosts", "lagbank@1", tally=tally, **changes)
    return replace(CALM, detectors=(detector,))


def report(epoch: str, *tallies: Tally) -> OwnerReport:
    lanes = tuple(
        LaneReport(
            lane=number, state="running", words="", partitions=(), version="m@1", opened=1,
            records=0, alerts=0, rejects=0, commits=0, keys=0, evicted=0, labels={}, in_flight=0,
            committed={}, position={}, version_since={}, delay_ms=(0.0, 0.0), snapshot="",
            tally=tally,
        )
        for number, tally in enumerate(tallies)
    )  # fmt: skip
    return OwnerReport("o", 1, epoch, 1, "a", lanes, {}, {}, 0, 0.0, 0, 0.0)


def test_counts_of_all_lanes_go_on_when_an_owner_begins_anew() -> None:
    reports: dict[str, OwnerReport] = {}
    watch = SimpleNamespace(
        spec=SimpleNamespace(name="hosts"), keeper=SimpleNamespace(reports=lambda: reports)
    )
    reader = SimpleNamespace(since=lambda n: [])  # no alerts
    supervised = SimpleNamespace(watches={"hosts": watch}, reader=reader)
    made = view.View(cast("view.Supervised", supervised))
    for epoch, tallies in (
        ("e1", (Tally(100, 2, 1, 0, 0), Tally(50, 1, 0, 0, 0))),
        ("e1", (Tally(300, 3, 1, 1, 4), Tally(60, 1, 0, 0, 1))),
        ("e2", (Tally(10, 1, 0, 0, 0), Tally())),  # another process counts from 0
        ("e2", (Tally(20, 1, 0, 0, 2), Tally(7, 0, 0, 0, 0))),
    ):
        reports["o"] = report(epoch, *tallies)
        made._count(NOW)
    assert made._tally["hosts"] == Tally(300 + 60 + 20 + 7, 3 + 1 + 1, 1, 1, 4 + 1 + 2)


def test_a_ratio_is_what_came_over_what_was_promised() -> None:
    (found,) = build(seen(TALLY), NOW, AXIS)["detectors"]
    assert found["judged_records"] == 120_000
    assert found["nominal"] == [
        {"p": 1e-3, "records": 126, "ratio": 1.05},  # 120 were to be expected
        {"p": 1e-4, "records": 13, "ratio": 1.083},  # 12
        {"p": 1e-5, "records": 0, "ratio": None},  # 1.2: chance alone
    ]
    assert found["per_day"] is None
    assert found["held"] is None  # nothing is held back where there is no budget
    (own,) = build(seen(TALLY, probability=1e-3, per_day=20.0), NOW, AXIS)["detectors"]
    assert [each["p"] for each in own["nominal"]] == [1e-3, 1e-4]  # its own is one of them
    assert (own["per_day"], own["held"]) == (20.0, 12)


def test_metrics_have_the_counts_and_the_ratio_where_it_means_something() -> None:
    metrics = Metrics()
    for tally in (TALLY, TALLY.plus(TALLY)):
        metrics.update(build(seen(tally, per_day=20.0), NOW, AXIS))
    found = lines(metrics)
    name = 'detector="hosts"'
    assert found[f"raywatch_detector_judged_records_total{{{name}}}"] == "240000.0"
    rare = "raywatch_detector_rare_records_total"
    assert found[f'{rare}{{{name},probability="0.001"}}'] == "252.0"
    assert found[f'{rare}{{{name},probability="1e-05"}}'] == "0.0"
    assert found[f"raywatch_detector_held_incidents_total{{{name}}}"] == "24.0"
    ratio = "raywatch_detector_nominal_ratio"
    assert found[f'{ratio}{{{name},probability="0.001"}}'] == "1.05"
    assert f'{ratio}{{{name},probability="1e-05"}}' not in found
    assert not any(each.startswith("raywatch_detector_labels") for each in found)
    metrics.update(build(seen(None), NOW, AXIS))
    assert not any(each.startswith(ratio) for each in lines(metrics))


def test_status_says_it_in_a_line() -> None:
    said = status.lines(build(seen(TALLY, per_day=20.0), NOW, AXIS))
    assert (
        "  hosts: p <= 0.001: 1.05, p <= 0.0001: 1.08, p <= 1e-05: - of nominal, 120,000 records; "
        "held back by per_day: 12"
    ) in said
    assert "  hosts: p <= 0.001: -, p <= 0.0001: -, p <= 1e-05: - of nominal, 0 records" in (
        status.lines(build(seen(Tally()), NOW, AXIS))
    )
    unknown = build(seen(None), NOW, AXIS)
    assert unknown["detectors"][0]["judged_records"] is None
    assert not any("nominal" in line for line in status.lines(unknown))


def test_what_became_of_labels_is_in_status_json_and_metrics() -> None:
    snapshot = build(seen(None, labels={"labels": 80, "unknown": 2, "late": 1}), NOW, AXIS)
    (found,) = snapshot["detectors"]
    assert found["labels"] == {"labels": 80, "unknown": 2, "late": 1}
    words = next(line for line in status.lines(snapshot) if "labels:" in line)
    assert words.startswith(
        "  hosts: labels: 80 joined to their payment, 0 repeated, 2 of payments"
    )
    metrics = Metrics()
    metrics.update(snapshot)
    name = 'raywatch_detector_labels{detector="hosts",what="late"}'
    assert lines(metrics)[name] == "1.0"
    metrics.update(build(seen(TALLY), NOW, AXIS))
    assert name not in lines(metrics)


def told(values: F64, room: Path) -> F64:
    """(N, keys) p of one record a minute of each key, by the shipped model."""
    records, keys = values.shape
    source, out = room / "in.parquet", room / "out.parquet"
    columns = {
        "host": np.tile([f"k{n}" for n in range(keys)], records),
        "ts": np.repeat(1_700_000_000_000 + 60_000 * np.arange(records), keys),
        "value": values.ravel(),
    }
    pq.write_table(pa.table(columns), source)
    decide = DecideSettings(probability=1e-5, warmup=500)
    backtest(spec("d", "in", decide=decide), built(shipped("lagbank")), source, out)
    return pq.read_table(out, columns=["p_value"])["p_value"].to_numpy().reshape(records, keys)


def test_young_keys_are_called_rare_as_often_as_promised(tmp_path: Path) -> None:
    """A record a minute: all but the first hours of their day are known from few values."""
    p = told(np.random.default_rng(3).standard_normal((2_000, 150)), tmp_path)
    assert (p[:500] == 1.0).all()
    for ages in (slice(500, 1_000), slice(1_000, 2_000)):
        for nominal, most in ((1e-3, 1.3), (1e-4, 2.0)):  # at least 75 and 7.5 are to be expected
            ratio = float((p[ages] <= nominal).mean()) / nominal
            assert 0.2 < ratio < most, (ages, nominal, ratio)


def test_a_counter_that_halves_for_hours_is_rare_though_none_of_its_minutes_is(
    tmp_path: Path,
) -> None:
    random, minutes, keys = np.random.default_rng(4), np.arange(7_000), 12
    day = 10.0 * (1.0 + 0.6 * np.sin(2.0 * np.pi * minutes / 1_440))
    rates = np.repeat(day[:, None], keys, axis=1)
    begins = random.integers(5_000, 6_500, keys)
    for key, begin in enumerate(begins):
        rates[begin : begin + 180, key] *= 0.5
    p = told(random.poisson(rates).astype(np.float64), tmp_path)
    least = [p[begin : begin + 180, key].min() for key, begin in enumerate(begins)]
    assert sum(each <= 1e-4 for each in least) >= 8, least
    calm = np.concatenate([p[1_000:begin, key] for key, begin in enumerate(begins)])
    assert float((calm <= 1e-3).mean()) < 1.5e-3  # 56 are to be expected
