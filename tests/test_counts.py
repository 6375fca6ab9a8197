"""Goal: what comes too seldom or too often for a Poisson law is rare, however counts spread, and an
incident does not teach that incidents are usual.
"""

import math

import numpy as np
import pytest

from raywatch.models import calibrate, peaks, poisson
from raywatch.models.profile import HOUR_MS
from raywatch.models.scorer import F64

MINUTE_MS, DAY = 60_000, 1_440
RATE = calibrate.rates(2_000)[0]


def _said(values: F64, step_ms: int = MINUTE_MS) -> F64:
    """(N, 4) of a series: nats, what was due, twice its deviation, and -log10 p."""
    state, tail = np.zeros((1, poisson.COLUMNS)), np.zeros((1, peaks.COLUMNS))
    out, sums = np.empty((values.shape[0], 4)), np.empty(2)
    for at, value in enumerate(values):
        nats, due, width = poisson.look(state[0], at * step_ms, value, sums)
        said = 0.0
        if not math.isnan(nats):
            said = peaks.judge(tail[0], nats)
            peaks.learn(tail[0], nats, RATE)
        out[at] = nats, due, width, said
    return out


def _tail(value: float, mean: float) -> float:
    """Chance of so few, or of so many, of a Poisson law."""
    terms = [
        math.exp(n * math.log(mean) - mean - math.lgamma(n + 1)) for n in range(int(value) + 1)
    ]
    return sum(terms) if value < mean else 1.0 - sum(terms[:-1])


def _day(rate: float, minutes: int) -> F64:
    return rate * (1.0 + 0.6 * np.sin(2.0 * np.pi * np.arange(minutes) / DAY))


@pytest.mark.parametrize("rate", [1.0, 10.0, 100.0])
def test_what_was_due_is_the_rate_of_the_hour(rate: float) -> None:
    due = _day(rate, 6 * DAY)
    counts = np.random.default_rng(1).poisson(due).astype(np.float64)
    said = _said(counts)[4 * DAY :, 1]
    assert np.abs(said - due[4 * DAY :]).mean() < 0.02 * rate + 0.1 * math.sqrt(rate)


@pytest.mark.parametrize("rate", [1.0, 10.0, 100.0])
def test_nats_are_the_logarithm_of_a_chance(rate: float) -> None:
    counts = np.random.default_rng(2).poisson(_day(rate, 12 * DAY)).astype(np.float64)
    nats = _said(counts)[2 * DAY :, 0]
    for level in (3.0, 5.0, 7.0):  # two sides and five sums, all of which overlap
        assert (nats > level).mean() < 3.0 * math.exp(-level)


def test_one_value_is_as_rare_as_a_poisson_law_says_but_for_the_bound() -> None:
    rate, counts = 9.0, np.full(3 * DAY, 9.0)
    for value in (0.0, 2.0, 20.0, 40.0):
        nats = _said(np.append(counts, value))[-1, 0]
        bound = -math.log(_tail(value, rate))
        # Chernoff's bound is not below the chance; what is due is not known for sure.
        assert 0.6 * bound < nats <= bound, value


def test_a_counter_that_stops_is_seen_long_before_its_values_are_strange() -> None:
    counts = np.random.default_rng(3).poisson(_day(1.0, 6 * DAY)).astype(np.float64)
    stop = 5 * DAY + 400
    counts[stop : stop + 30] = 0.0
    said = _said(counts)
    assert said[stop + 29, 3] > 4.0
    assert said[2 * DAY : stop, 3].max() < 5.0


def test_what_came_and_what_was_due_is_told() -> None:
    counts = np.random.default_rng(12).poisson(_day(2.0, 4 * DAY)).astype(np.float64)
    counts[-20:] = 0.0
    state, sums = np.zeros((1, poisson.COLUMNS)), np.empty(2)
    for at, value in enumerate(counts):
        poisson.look(state[0], at * MINUTE_MS, value, sums)
    assert sums[poisson.CAME] < 0.1 * sums[poisson.SUM_DUE]  # next to nothing,
    assert sums[poisson.SUM_DUE] > 10.0
    poisson.look(state[0], counts.shape[0] * MINUTE_MS, 60.0, sums)
    assert sums[poisson.CAME] > 2.0 * sums[poisson.SUM_DUE]  # and now far more than was due
    poisson.look(state[0], counts.shape[0] * MINUTE_MS, math.nan, sums)
    assert np.isnan(sums).all()


def test_an_incident_does_not_teach_that_it_is_usual() -> None:
    counts = np.random.default_rng(4).poisson(_day(10.0, 9 * DAY)).astype(np.float64)
    for day in (5, 6, 7, 8):
        begin = day * DAY + 300
        counts[begin : begin + 60] = 0.0
    said = _said(counts)
    for day in (5, 6, 7, 8):
        begin = day * DAY + 300
        assert said[begin : begin + 60, 3].max() > 5.0, day


def test_counts_that_spread_more_are_judged_by_how_much() -> None:
    random = np.random.default_rng(5)
    usual = _day(20.0, 8 * DAY)
    counts = random.poisson(usual * random.gamma(2.0, 0.5, usual.shape)).astype(np.float64)
    said = _said(counts)[3 * DAY :]
    pairs = zip(counts[3 * DAY :], usual[3 * DAY :], strict=True)
    tails = np.array([_tail(value, mean) for value, mean in pairs])
    assert (tails < 1e-5).mean() > 0.01  # by a Poisson law one in a hundred is one in 100,000
    assert (said[:, 3] > 5.0).mean() < 1e-3
    assert said[:, 3].max() < 7.0


def test_what_lasts_is_the_new_level() -> None:
    counts = np.random.default_rng(6).poisson(_day(50.0, 9 * DAY)).astype(np.float64)
    begin = 5 * DAY
    counts[begin:] = np.random.default_rng(7).poisson(_day(100.0, 4 * DAY))
    nats = _said(counts)[:, 0]
    assert nats[begin : begin + 10].max() > poisson.STRANGE
    settled = begin + int(poisson.LASTS) + 64
    assert (nats[settled:] > poisson.STRANGE).mean() < 0.02
    assert (nats[begin + 2 * DAY :] > 7.0).mean() < 1e-3


@pytest.mark.parametrize("value", [-1.0, 2.5, math.inf, -math.inf, 1e16])
def test_what_is_no_count_is_silence_until_they_are_counts_again(value: float) -> None:
    counts = np.random.default_rng(8).poisson(_day(5.0, 4 * DAY)).astype(np.float64)
    at = 3 * DAY
    counts[at] = value
    nats = _said(counts)[:, 0]
    again = at + int(poisson.WHOLE_MIN)
    assert np.isfinite(nats[at - 50 : at]).all()
    assert np.isnan(nats[at:again]).all()
    assert np.isfinite(nats[again + 1 :]).all()


def test_a_missing_value_leaves_no_trace() -> None:
    counts = np.random.default_rng(9).poisson(_day(5.0, 4 * DAY)).astype(np.float64)
    state, sums = [np.zeros((1, poisson.COLUMNS)) for _ in range(2)], np.empty(2)
    for at, value in enumerate(counts):
        for each in state:
            poisson.look(each[0], at * MINUTE_MS, value, sums)
        assert math.isnan(poisson.look(state[1][0], at * MINUTE_MS, math.nan, sums)[0])
    np.testing.assert_array_equal(state[0], state[1])


def test_nothing_but_zeros_and_an_hour_without_values_are_borne() -> None:
    assert np.isnan(_said(np.zeros(3 * DAY))[:, 0]).all()  # nothing is due
    said = _said(np.ones(500), step_ms=7 * HOUR_MS)  # few values of an hour: none is known
    assert np.isfinite(said[~np.isnan(said[:, 0]), 0]).all()
    huge = _said(np.full(3 * DAY, 1e15))
    assert np.isfinite(huge[2 * DAY :]).all()


def test_peaks_of_exponential_scores_keep_their_word() -> None:
    random = np.random.default_rng(10)
    shares = np.zeros(3)
    for _ in range(40):
        tail, said = np.zeros((1, peaks.COLUMNS)), np.empty(8_000)
        for at, score in enumerate(random.exponential(1.0, 8_000)):
            said[at] = peaks.judge(tail[0], score)
            peaks.learn(tail[0], score, RATE)
        shares += [(said[2_000:] > level).mean() * 10.0**level / 40.0 for level in (2, 3, 4)]
    assert shares == pytest.approx([1.0, 0.8, 0.6], abs=0.45)


def test_a_cluster_teaches_its_largest_excess_once() -> None:
    tail = np.zeros((1, peaks.COLUMNS))
    for score in np.random.default_rng(11).exponential(1.0, 3_000):
        peaks.learn(tail[0], score, RATE)
    before = tail.copy()
    for _ in range(50):
        peaks.learn(tail[0], 100.0, RATE)
    assert tail[0, peaks.PEAKS] - before[0, peaks.PEAKS] <= 1.0  # one that was open may have ended
    assert peaks.judge(tail[0], 100.0) > 6.0
    for _ in range(int(peaks.GAP)):
        peaks.learn(tail[0], 0.0, RATE)
    assert tail[0, peaks.PEAKS] >= before[0, peaks.PEAKS] + 1.0
    assert tail[0, peaks.TOP] == 0.0
