"""Goal: a score becomes the tail probability that the published formulas give it, by its past only.

Method: the formulas written down once more, plainly, as the reference; iid draws for the rates;
hand-made series for the corners.
"""

import math

import numpy as np
import pytest

from raywatch.models import calibrate, profile
from raywatch.models.scorer import F64


def reference(scores: F64, half_life: float) -> list[float]:
    """Peaks over threshold with forgetting, one series, as in the study that chose it."""
    q, rare = 0.97, []
    line = mean = excess = square = count = above = 0.0
    for e in scores.tolist():
        p = 0.0
        if count >= 10:
            p = -math.log10(1 - q) * (e / line if line > 0 else 0.0)
            if e > line:
                over, scale, log_p = e - line, max(excess, 0.01 * mean), 0.0
                if square > excess**2 and excess > 0:
                    shape = min(max(0.5 * (1 - excess**2 / (square - excess**2)), 0.0), 0.5)
                    b = scale * (1 - shape)
                    log_p = (
                        -(1 / shape) * math.log(1 + shape * over / b) if shape > 1e-3 else -over / b
                    )
                elif scale > 0:
                    log_p = -over / scale
                p = -(math.log10(1 - q) + log_p / math.log(10))
        rare.append(p)
        count += 1
        if count == 1:
            mean = line = e
        mean += max(1 - 0.5 ** (1 / half_life), 1 / count) * (e - mean)
        step = max(1 - 0.5 ** (1 / half_life), 1 / (count * 0.2 + 1)) * (mean + excess) * 3
        line = max(line + (step * q if e > line else -step * (1 - q)), 0.0)
        if e > line:
            above += 1
            over = (
                min(e - line, 20 * (excess + mean) + 1e-12)
                if count > 30 and above > 1
                else e - line
            )
            gain = max(1 - 0.5 ** (1 / (half_life * (1 - q))), 1 / above)
            excess += gain * (over - excess)
            square += gain * (over * over - square)
    return rare


@pytest.mark.parametrize("shape", ["normal", "exponential", "cauchy"])
def test_a_score_is_judged_as_the_formula_says(shape: str) -> None:
    draw = np.random.default_rng(5)
    scores = np.abs({"normal": draw.standard_normal, "exponential": draw.standard_exponential}.get(
        shape, draw.standard_cauchy
    )(6_000))  # fmt: skip
    expected = np.minimum(reference(scores, 500.0), calibrate.STRANGEST)
    np.testing.assert_allclose(calibrate.calibrate(scores, 500.0), expected, rtol=1e-9, atol=1e-12)


def test_one_in_a_thousand_is_said_about_once_in_a_thousand() -> None:
    scores = np.random.default_rng(6).standard_exponential(60_000)
    rare = calibrate.calibrate(scores, 2_000.0)[1_000:]
    share = float((rare >= 3.0).mean())
    assert 0.5e-3 < share < 2e-3, share


def test_a_stranger_score_is_never_judged_more_usual() -> None:
    past = np.random.default_rng(7).standard_exponential(3_000)
    state = np.zeros((1, 1, calibrate.COLUMNS))
    for score in past.tolist():
        calibrate.learn(state, 0, 0, score, *calibrate.rates(2_000))
    rare = [calibrate.judge(state, 0, 0, score) for score in np.linspace(0, 50, 500).tolist()]
    assert rare == sorted(rare)
    assert rare[0] == 0.0
    assert rare[-1] > 6.0


def test_judging_reads_the_past_only() -> None:
    scores = np.random.default_rng(8).standard_exponential(2_000)
    other = scores.copy()
    other[1_000:] *= 7.0
    same = calibrate.calibrate(scores, 300.0)[:1_001]
    # Up to and with record 999 nothing differs; record 1000 itself is judged by an equal past.
    assert np.array_equal(same[:1_000], calibrate.calibrate(other, 300.0)[:1_000])


def test_a_constant_score_is_usual_and_a_tenfold_one_is_not() -> None:
    scores = np.full(2_000, 3.0)
    scores[1_500] = 30.0
    rare = calibrate.calibrate(scores, 2_000.0)
    assert rare[:1_500].max() < 3.0
    assert rare[1_500] > 6.0


def test_a_key_that_only_scored_zero_says_nothing_of_its_first_other_score() -> None:
    scores = np.zeros(1_000)
    scores[900] = 1.0
    assert calibrate.calibrate(scores, 2_000.0)[900] == pytest.approx(calibrate.BODY)


def test_rarity_is_bounded_so_that_a_probability_stays_positive() -> None:
    state = np.zeros((1, 1, calibrate.COLUMNS))
    state[0, 0, [calibrate.COUNT, calibrate.MEAN, calibrate.LINE]] = 1_000.0, 1.0, 1.0
    rare = calibrate.judge(state, 0, 0, 3e38)  # an exponential tail of scale 0.01: 1e40 by itself
    assert rare == calibrate.STRANGEST
    assert 10.0**-rare > 0.0


def test_a_promise_knows_from_how_many_excesses_its_tail_is_known() -> None:
    def taught(excesses: float) -> F64:
        """Excesses of mean 2, exponential as far as moments say."""
        state = np.zeros((1, 1, calibrate.COLUMNS))
        for column, value in (
            (calibrate.COUNT, 1_000.0), (calibrate.MEAN, 1.0), (calibrate.LINE, 5.0),
            (calibrate.EXCESS, 2.0), (calibrate.SQUARE, 8.0), (calibrate.ABOVE, excesses),
        ):  # fmt: skip
            state[0, 0, column] = value
        return state

    for excesses, over in ((1, 3.0), (5, 3.0), (5, 80.0), (30, 40.0)):
        expected = calibrate.BODY + excesses * math.log10(1.0 + over / (excesses * 2.0))
        said = calibrate.promised(taught(excesses), 0, 0, 5.0 + over)
        assert said == pytest.approx(expected), (excesses, over)
        assert said < calibrate.judge(taught(excesses), 0, 0, 5.0 + over)
    # Of many it is the tail itself, and below the line nothing is different.
    many = taught(1e9)
    assert calibrate.promised(many, 0, 0, 9.0) == calibrate.judge(many, 0, 0, 9.0)
    assert calibrate.promised(taught(1), 0, 0, 4.0) == calibrate.judge(taught(1), 0, 0, 4.0)


def test_promises_hold_from_the_first_excesses_on() -> None:
    """Calibrators that begin, each with a tail of ten excesses or so: where `judge` is too sure."""
    rates, draw = calibrate.rates(2_000.0), np.random.default_rng(9)
    sure, kept, judged = 0, 0, 0
    for _ in range(400):
        state = np.zeros((1, 1, calibrate.COLUMNS))
        for index, score in enumerate(draw.standard_exponential(500).tolist()):
            if index >= 250:
                judged += 1
                sure += calibrate.judge(state, 0, 0, score) >= 5.0
                kept += calibrate.promised(state, 0, 0, score) >= 5.0
            calibrate.learn(state, 0, 0, score, *rates)
    assert sure / judged > 2e-4
    assert kept / judged < 1e-4


def seasonal(x: F64, hours: list[int]) -> list[float]:
    """The profile, written plainly."""
    mean, var, count = [0.0] * 24, [0.0] * 24, [0] * 24
    all_mean, all_var, strange = x[0], 0.0, []
    for index, (value, hour) in enumerate(zip(x.tolist(), hours, strict=True)):
        gain = max(1e-3, 1 / (index + 1))
        gap = value - all_mean
        all_mean += gain * gap
        all_var = (1 - gain) * (all_var + gain * gap * gap)
        z = math.nan
        if count[hour] >= profile.VISITS_MIN:
            z = abs(value - mean[hour]) / (math.sqrt(var[hour] + 0.01 * all_var) + 1e-12)
        strange.append(z)
        count[hour] += 1
        gain = max(1 - 0.5 ** (1 / 20), 1 / count[hour])
        gap = value - mean[hour]
        mean[hour] += gain * gap
        var[hour] = (1 - gain) * (var[hour] + gain * gap * gap)
    return strange


def test_the_profile_judges_value_and_mean_of_eight_as_the_formula_says() -> None:
    draw = np.random.default_rng(10)
    time_ms = np.arange(2_000, dtype=np.int64) * 600_000 + 1_700_000_000_000
    hours = [int(t) // 3_600_000 % 24 for t in time_ms]
    x = 50.0 + 10.0 * np.sin(np.array(hours) / 24 * 2 * math.pi) + draw.standard_normal(2_000)
    means = np.array([x[max(0, i - 7) : i + 1].mean() for i in range(2_000)])

    state = np.zeros((1, 1, 2, profile.HOURS + 1, 3))
    recent = np.zeros((1, 1, profile.RECENT))
    strange, usual, spread, belief = np.zeros((4, 2, 1))
    seen: list[list[float]] = []
    trusted: list[float] = []
    for row in range(2_000):
        hour = profile.hour_of(int(time_ms[row]))
        assert hour == hours[row]
        profile.look(state, recent, 0, hour, x[:, None], row, strange, usual, spread, belief)
        seen.append(strange[:, 0].tolist())
        if hour == hours[0]:
            trusted.append(belief[0, 0])
    np.testing.assert_allclose([s[0] for s in seen], seasonal(x, hours), rtol=1e-7)
    np.testing.assert_allclose([s[1] for s in seen], seasonal(means, hours), rtol=1e-6)
    assert spread[0, 0] == pytest.approx(2.0, rel=0.4)  # two deviations of what is drawn
    assert trusted[:5] == [0.0, 0.0, 0.0, 0.15, 0.2]  # by values that the hour had before
    assert trusted[19:22] == [0.95, 1.0, 1.0]


def test_missing_and_boundless_values_leave_no_trace_in_the_profile() -> None:
    state = np.zeros((1, 1, 2, profile.HOURS + 1, 3))
    recent = np.zeros((1, 1, profile.RECENT))
    strange, usual, spread, belief = np.zeros((4, 2, 1))
    for value in (1.0, 2.0, 3.0, 4.0):
        profile.look(state, recent, 0, 5, np.array([[value]]), 0, strange, usual, spread, belief)
    before = state.copy(), recent.copy()
    for value in (math.nan, 1e200, -1e200):
        profile.look(state, recent, 0, 5, np.array([[value]]), 0, strange, usual, spread, belief)
        assert np.isnan(strange).all()
        assert not np.isnan(usual).any()
    assert np.array_equal(state, before[0])
    assert np.array_equal(recent, before[1])
