"""Goal: the baseline is the robust z-score of its formula, finite and quiet where nothing moves.

Method: numpy's median over the 64 values before each value, and hand-made windows.
"""

import numpy as np
import pytest

from raywatch.models.history import History
from raywatch.models.robustz import RobustZ
from raywatch.models.scorer import F64, Scores

MODEL = RobustZ("robustz@test")


def score(series: F64) -> Scores:
    history = History(1)
    history.ensure(1)
    counts = np.array([series.shape[0]], np.int32)
    appended = history.append(np.zeros(1, np.int32), counts, series[:, None], MODEL.levels)
    return MODEL.score(appended.segments)


@pytest.mark.parametrize("digits", [0, 1, 7])
def test_the_score_is_the_distance_from_the_median_in_robust_deviations(digits: int) -> None:
    x = np.random.default_rng(1).standard_normal(600).round(digits)  # few digits: many ties
    found = score(x)
    anchored = (x - x[0]).astype(np.float32).astype(np.float64)
    for t in range(16, 600):
        window = anchored[max(0, t - 64) : t]
        median = np.median(window)
        scale = 1.4826 * np.median(np.abs(window - median))
        scale = max(scale, 0.01 * np.ptp(window), 1e-6 * np.abs(window).max())
        assert found.expected[t] == pytest.approx(median, rel=1e-6, abs=1e-9)
        assert found.parts["z"][t] == pytest.approx(abs(anchored[t] - median) / scale, rel=1e-5)


def test_there_is_no_say_until_sixteen_values_are_there() -> None:
    found = score(np.random.default_rng(2).standard_normal(40))
    assert np.isnan(found.parts["z"][:16]).all()
    assert np.isnan(found.expected[:16]).all()
    assert not np.isnan(found.parts["z"][16:]).any()


@pytest.mark.parametrize("value", [0.0, 5.0, -1e9])
def test_a_constant_window_expects_itself_and_is_loud_but_finite_about_anything_else(
    value: float,
) -> None:
    x = np.full(200, value)
    x[150] += 1.0
    found = score(x)
    assert found.parts["z"][150] == 1e4
    rest = np.delete(found.parts["z"], 150)[16:]
    assert (rest == 0.0).all()


def test_rounding_noise_on_a_large_distance_from_the_anchor_is_not_a_surprise() -> None:
    x = np.full(200, 1e6)
    x[0] = 0.0
    x[150] += 0.06  # half a step of float32 at 1e6
    assert score(x).parts["z"][150] < 1.0


def test_an_outlier_hardly_moves_what_is_expected() -> None:
    x = np.random.default_rng(3).standard_normal(200)
    calm = score(x)
    x[150] += 1e6
    found = score(x)
    assert found.parts["z"][150] > 1e3
    assert abs(found.expected[151] - calm.expected[151]) < 0.2


def test_a_moved_level_becomes_ordinary_once_it_is_half_of_the_window() -> None:
    x = np.tile([0.0, 1.0], 200)
    x[300:] += 50.0
    found = score(x).parts["z"]
    assert found[331] > 10.0
    assert found[365] < 2.0


def test_lags_are_none_and_the_version_is_told() -> None:
    found = score(np.arange(30.0))
    assert found.lag.tolist() == [0] * 30
    assert found.version == "robustz@test"
