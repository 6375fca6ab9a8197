"""Goal: a level that is unusual for its hour of the week is called rare, once a key is weeks old.

Method: the formulas written down once more, plainly, on seven weeks of records; hand-made corners;
made-up keys of weeks, through the decide stage in batches cut anywhere, and through `backtest`.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lanes import spec
from test_decide import ONE, QUICK, batch, calm, quiet_stream, run, whole

from raywatch.actors.backtest import backtest
from raywatch.models import calibrate, week
from raywatch.models.decide import Decider
from raywatch.models.errors import ArtifactError
from raywatch.models.registry import build as built
from raywatch.models.registry import shipped
from raywatch.models.scorer import F64, I64
from raywatch.models.settings import DecideSettings

HOUR_MS = 3_600_000
HALF_MS = HOUR_MS // 2
DAY = 48  # records of half an hour


def rhythm(weeks: int, seed: int) -> F64:
    """A value every half hour, from a Monday on: days, weekends at .4, days that differ by 5 %."""
    draw = np.random.default_rng(seed)
    at = np.arange(weeks * 7 * DAY)
    day = 100.0 * (1.0 + 0.6 * np.sin(2.0 * math.pi * at / DAY))
    factor = draw.normal(1.0, 0.05, weeks * 7)[at // DAY]
    return np.where(at // DAY % 7 >= 5, 0.4, 1.0) * day * factor + draw.standard_normal(len(at))


def monday(records: int) -> I64:
    return np.arange(records, dtype=np.int64) * HALF_MS + 4 * 24 * HOUR_MS


def plain(time_ms: I64, x: F64) -> list[float]:
    """The view, written plainly, for records in order and no value missing."""
    mean, var, weeks = [0.0] * 168, [0.0] * 168, [0] * 168
    pool, days, every, seen = [0.0] * 24, [0] * 24, 0.0, 0
    smooth, last, found, hours = 0.0, 0, [], [int(t) // HOUR_MS for t in time_ms]
    begin = 0
    for i, (t, value) in enumerate(zip(time_ms.tolist(), x.tolist(), strict=True)):
        if i and hours[i] != hours[i - 1]:
            h, level, begin = hours[i - 1] % 168, sum(x[begin:i].tolist()) / (i - begin), i
            weeks[h] += 1
            gap, gain = level - mean[h], max(1 - 0.5**0.25, 1 / weeks[h])
            mean[h] += gain * gap
            if weeks[h] > 1:
                var[h] = (1 - gain) * (var[h] + gain * gap * gap)
                square = gap * gap * (weeks[h] - 1) / weeks[h]
                days[h % 24] += 1
                pool[h % 24] += max(1 - 0.5 ** (1 / 40), 1 / days[h % 24]) * (square - pool[h % 24])
                seen += 1
                every += max(1e-3, 1 / seen) * (square - every)
        since, last, h = t - last, t, hours[i] % 168
        if weeks[h] < 3:
            found.append(math.nan)
            continue
        off = t % HOUR_MS / HOUR_MS - 0.5
        beside = (h + (1 if off > 0 else -1)) % 168
        usual = mean[h] + (abs(off) * (mean[beside] - mean[h]) if weeks[beside] >= 3 else 0.0)
        spread = (weeks[h] * var[h] + 4 * pool[h % 24]) / (weeks[h] + 4) + 0.01 * every
        far = min(max((value - usual) / math.sqrt(spread), -15.0), 15.0)
        smooth += since / (since + HALF_MS) * (far - smooth)
        found.append(abs(smooth))
    return found


def looked(time_ms: I64, x: F64) -> tuple[list[float], F64]:
    state = np.zeros((1, week.COLUMNS))
    told = [week.look(state[0], t, v)[0] for t, v in zip(time_ms.tolist(), x.tolist(), strict=True)]
    return told, state


def test_a_value_is_judged_as_the_formula_says() -> None:
    x = rhythm(7, 1)
    x[6 * 7 * DAY + 2 * DAY :][:DAY] *= 0.4  # the seventh Wednesday, like a Sunday
    told, _ = looked(monday(len(x)), x)
    np.testing.assert_allclose(told, plain(monday(len(x)), x), rtol=1e-9)
    assert np.isnan(told[: 3 * 7 * DAY]).all()
    assert not np.isnan(told[3 * 7 * DAY + 2 :]).any()
    usual, fault = told[4 * 7 * DAY : 6 * 7 * DAY], told[6 * 7 * DAY + 2 * DAY :][:DAY]
    assert max(usual) < 7.0 < max(fault) <= 15.0


def test_what_is_missing_or_late_teaches_no_hour() -> None:
    time_ms, x = monday(5 * 7 * DAY), rhythm(5, 2)
    _, state = looked(time_ms, x)
    now = int(time_ms[-1])
    for value in (math.nan, math.inf, 1e200):
        before = state.copy()
        strange, usual, spread, begun = week.look(state[0], now + HOUR_MS, value)
        assert math.isnan(strange)
        assert (math.isnan(usual), math.isnan(spread), begun) == (False, False, False)
        assert np.array_equal(state, before)
    before = state.copy()
    strange, *_, begun = week.look(state[0], now - 5 * HOUR_MS, 1e6)
    assert (strange > 0.0, begun) == (True, False)
    changed = np.flatnonzero(state[0] != before[0]).tolist()
    assert changed == [week.SMOOTH, week.LAST]
    week.look(state[0], now - 90 * HOUR_MS, 1.0)  # a clock that was set: it goes on from there
    assert state[0, week.HOUR] == (now - 90 * HOUR_MS) // HOUR_MS


def test_a_calibrator_begins_with_what_is_known_and_a_strange_day_teaches_little() -> None:
    state = np.zeros((1, 1, calibrate.COLUMNS))
    assert week.teaches(state, 0, 0, math.nan, True) == -1.0
    assert not state.any()
    assert week.teaches(state, 0, 0, 1.0, False) == -1.0  # within an hour
    assert week.teaches(state, 0, 0, 1.0, True) == 4.0 * 2.4
    assert calibrate.promised(state, 0, 0, 2.4) == pytest.approx(calibrate.BODY)
    # 1.52 + 20 log10(1 + 9.6 / (20 * .65)): a Pareto tail of shape 1 / 20 beyond the line
    assert calibrate.promised(state, 0, 0, 12.0) == pytest.approx(6.3, abs=0.1)


# ---- in the decide stage -----------------------------------------------------------------------


def test_cuts_and_a_reload_in_the_fifth_week_change_no_bit() -> None:
    x = rhythm(6, 3)
    x[5 * 7 * DAY + 2 * DAY :][:DAY] *= 0.4
    draw = np.random.default_rng(5)
    s = replace(quiet_stream(calm(len(x)), observed=x), time_ms=monday(len(x)))
    often = replace(QUICK, probability=0.01)

    def new() -> Decider:
        return Decider(often, ONE, 1, views=True)

    def reopened(decider: Decider) -> Decider:
        other = new()
        other.load(decider.state())
        return other

    expected = whole(new(), {0: s})[0]
    assert "week" in {episode.component for episode in expected.episodes}
    cuts = [{0: n} for n in [*np.sort(draw.integers(0, len(x), 60)).tolist(), len(x)]]
    assert run(new(), {0: s}, cuts, reopened)[0].bits() == expected.bits()


def test_nothing_is_said_of_weeks_by_a_younger_key_nor_ever_in_event_scores() -> None:
    x = rhythm(6, 4)
    s = replace(quiet_stream(calm(len(x)), observed=x), time_ms=monday(len(x)))
    # The same hours of a day, 48 days apart: no hour of the week comes three times.
    scattered = replace(s, time_ms=s.time_ms + (np.arange(len(x)) // DAY * 25 * 24 * HOUR_MS))
    old, strange = (whole(Decider(QUICK, ONE, 1, views=True), {0: k})[0] for k in (s, scattered))
    young = 3 * 7 * DAY
    p, other = np.concatenate(old.p), np.concatenate(strange.p)
    assert np.array_equal(p[:young], other[:young])
    assert not np.array_equal(p, other)
    assert np.array_equal(np.concatenate(old.event), np.concatenate(strange.event))


def test_a_state_of_before_begins_its_weeks_anew_and_a_broken_one_is_refused() -> None:
    x = rhythm(5, 6)
    s = replace(quiet_stream(calm(len(x)), observed=x), time_ms=monday(len(x)))
    decider = Decider(QUICK, ONE, 1, views=True)
    batch(decider, {0: s}, {0: 0}, {0: len(x)})
    saved = decider.state()
    other = Decider(QUICK, ONE, 1, views=True)
    other.load({n: a for n, a in saved.items() if n not in ("week", "calibration.week")})
    assert not other.state()["week"].any()
    assert not other.state()["calibration.week"].any()
    for column, value in ((week.VARIANCE, -1.0), (week.COUNT, -1.0), (week.MEAN, math.nan)):
        broken = saved["week"].copy()
        broken[0, 0, column] = value
        with pytest.raises(ArtifactError, match="cannot be"):
            other.load(saved | {"week": broken})


def test_days_that_are_usual_on_another_day_are_rare_and_usual_saturdays_are_not(
    tmp_path: Path,
) -> None:
    keys, weeks = 12, 8
    values = np.stack([rhythm(weeks, 20 + n) for n in range(keys)], axis=1)
    last = 7 * 7 * DAY
    for key in range(8):
        day = last + (key % 4) * DAY
        values[day : day + DAY, key] *= 0.4  # Monday to Thursday, like a weekend
    records = len(values)
    columns = {
        "host": np.tile([f"k{n}" for n in range(keys)], records),
        "ts": np.repeat(monday(records), keys),
        "value": values.ravel(),
    }
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table(columns), source)
    decide = DecideSettings(probability=1e-5, warmup=500)
    backtest(spec("d", "in", decide=decide), built(shipped("lagbank")), source, out)
    p = pq.read_table(out, columns=["p_value"])["p_value"].to_numpy().reshape(records, keys)
    least = [p[last + (k % 4) * DAY :][:DAY, k].min() for k in range(8)]
    assert sum(each <= 1e-3 for each in least) >= 7, least
    calm_keys = p[5 * 7 * DAY :, 8:]
    assert float((calm_keys <= 1e-3).mean()) < 3e-3  # 4 of 4,032 are to be expected
    saturdays = calm_keys.reshape(3, 7, DAY, 4)[:, 5]
    assert (saturdays > 1e-5).all()
