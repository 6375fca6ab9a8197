"""Goal: what is rare in one of several channels makes the record rare, at the probability at which
alerts are raised where nothing is set, and an alert says which channel it was.

Method: made-up services and hosts with something wrong in one channel, through `backtest`; channels
that count beside channels that do not; and the same ones with nothing wrong.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raywatch.actors.backtest import backtest
from raywatch.actors.records import RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.models.registry import build as built
from raywatch.models.registry import shipped
from raywatch.models.scorer import F64
from raywatch.models.settings import DecideSettings

MINUTE_MS, DAY, SETTLED = 60_000, 1_440, 2_000
DEFAULT = DecideSettings().probability


def told(values: F64, folder: Path) -> tuple[F64, list[dict[str, Any]]]:
    """(keys, records) of p, and the alerts, of (keys, records, channels) values, one a minute."""
    keys, records, channels = values.shape
    columns: dict[str, Any] = {
        "host": np.repeat([f"k{key}" for key in range(keys)], records),
        "ts": np.tile(np.arange(records) * MINUTE_MS, keys),
    }
    names = [f"x{channel}" for channel in range(channels)]
    columns |= {name: values[:, :, at].ravel() for at, name in enumerate(names)}
    source, out, alerts = (folder / name for name in ("in.parquet", "out.parquet", "alerts.jsonl"))
    pq.write_table(pa.table(columns), source)
    record = RecordSpec(values=tuple(names), key="host", time="ts")
    whole = DetectorSpec(name="d", topics=("in",), record=record, model="lagbank")
    backtest(whole, built(shipped("lagbank")), source, out, alerts=alerts)
    p = pq.read_table(out, columns=["p_value"])["p_value"].to_numpy().reshape(keys, records)
    return p, [json.loads(line) for line in alerts.read_text().splitlines()]


def services(keys: int, records: int, seed: int) -> F64:
    """(keys, records, 3): requests and errors a minute with the rhythm of a day, and a latency."""
    random = np.random.default_rng(seed)
    day = 1.0 + 0.6 * np.sin(2.0 * np.pi * np.arange(records) / DAY)
    requests, errors = (random.poisson(rate * day, (keys, records)) for rate in (40.0, 2.0))
    latency = 20.0 * (1.0 + 0.3 * day) * np.exp(random.normal(0.0, 0.3, (keys, records)))
    return np.stack([requests, errors, latency], axis=2).astype(np.float64)


def hosts(keys: int, records: int, seed: int) -> F64:
    """(keys, records, 4): gauges whose noise remembers."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(keys, records, 4))
    for at in range(1, records):
        noise[:, at] = 0.7 * noise[:, at - 1] + 0.71 * noise[:, at]
    return 50.0 + noise


def test_a_counter_that_stops_among_other_channels_is_an_incident_of_that_channel(
    tmp_path: Path,
) -> None:
    values, begin, length = services(8, 6_000, 1), 4_800, 45
    values[:4, begin : begin + length, 0] = 0.0
    values[4:, begin : begin + length, 1] *= 10.0
    p, alerts = told(values, tmp_path)
    assert (p[:, begin : begin + length + 2].min(axis=1) <= DEFAULT).all()
    for key in range(8):
        during = [
            each for each in alerts
            if each["key"] == f"k{key}" and each["state"] == "open"
            and 0 <= each["at_ms"] // MINUTE_MS - begin <= length
        ]  # fmt: skip
        assert during, key
        channels = {each["name"]: each["share"] for each in during[0]["channels"]}
        wrong = "x0" if key < 4 else "x1"
        assert max(channels, key=lambda name: channels[name]) == wrong, channels
        if during[0]["component"] == "count":
            much = "fewer" if key < 4 else "more"
            assert f"{much} of {wrong} than usual for this hour" in during[0]["words"]
    assert "count" in {each["component"] for each in alerts}


def test_a_value_far_off_in_one_channel_of_four_is_an_incident(tmp_path: Path) -> None:
    values = hosts(8, 6_000, 2)
    for key in range(8):
        values[key, 5_000 + key, key % 4] += 14.0
    p, _ = told(values, tmp_path)
    assert sum(p[key, 5_000 + key] <= DEFAULT for key in range(8)) >= 7
    calm = np.concatenate([p[:, SETTLED:4_990].ravel(), p[:, 5_300:].ravel()])
    assert 0.5e-3 < (calm <= 1e-3).mean() < 1.6e-3
    assert (calm <= 1e-4).mean() < 4e-4


def test_services_with_nothing_wrong_are_as_rare_as_promised(tmp_path: Path) -> None:
    p = told(services(12, 6_000, 3), tmp_path)[0][:, SETTLED:]
    assert 0.5e-3 < (p <= 1e-3).mean() < 1.6e-3
    assert (p <= 1e-4).mean() < 4e-4


def test_an_incident_does_not_wait_because_another_record_ranked_first(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    keys, records, burst = 20, 7 * DAY, 15
    day = 3.0 * (1.0 + 0.8 * np.sin(2.0 * np.pi * (np.arange(records) - 480) / DAY))
    rates = np.tile(day, (keys, 1))
    begins = 5 * DAY + 840 + 20 * np.arange(keys)
    for key, begin in enumerate(begins):
        rates[key, begin : begin + burst] *= 3.0
    p, alerts = told(random.poisson(rates)[:, :, None].astype(np.float64), tmp_path)
    found = 0
    for key, begin in enumerate(begins):
        rare = np.flatnonzero(p[key, begin : begin + burst + 8] <= DEFAULT)
        if rare.size == 0:
            continue
        found += 1
        opened = [
            each["at_ms"] // MINUTE_MS - begin for each in alerts
            if each["key"] == f"k{key}" and each["state"] == "open"
        ]  # fmt: skip
        assert any(rare[0] - burst <= at <= rare[0] + 5 for at in opened), (key, rare, opened)
    assert found >= keys // 2
