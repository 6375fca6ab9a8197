"""Goal: the lag bank answers its formulas, says nothing where it cannot, and sees what it is for.

Method: the sums of the header restated in float64 without folds, small hand-made streams, and the
torch form against the kernels.
"""

import math

import numpy as np
import pytest

from raywatch.models.errors import ConfigError
from raywatch.models.history import History
from raywatch.models.kernel import bank, readonly
from raywatch.models.lagbank import LagBank
from raywatch.models.lagbank_torch import LagBankTorch
from raywatch.models.scorer import C4, C8, F32, F64, FINE, Component, Level, Scores, Segments

MODEL = LagBank("lagbank@test")


def segments(*batches: F64, levels: tuple[Level, ...] = MODEL.levels) -> Segments:
    """Of the last batch of a stream of one key."""
    history = History(batches[0].shape[1])
    history.ensure(1)
    last: Segments | None = None
    for batch in batches:
        counts = np.array([batch.shape[0]], np.int32)
        last = history.append(np.zeros(1, np.int32), counts, batch, levels).segments
    assert last is not None
    return last


def score(series: F64) -> Scores:
    return MODEL.score(segments(series[:, None]))


def waves(size: int, seed: int = 0) -> F64:
    noise = np.random.default_rng(seed).standard_normal(size)
    return 40 + 5 * np.sin(np.arange(size) / 9) + 0.3 * noise


def distances(x: F64, t: int, window: int, rho: float, lags: range) -> F64:
    """sqrt(S / sum of rho^i) of each lag, inf where the past window is not all there."""
    fade = rho ** np.arange(window)
    here = x[t - np.arange(window)]
    found = np.full(len(lags), np.inf)
    for at, lag in enumerate(lags):
        if t - window + 1 - lag >= 0:
            past = x[t - lag - np.arange(window)]
            found[at] = np.sqrt((fade * (here - past) ** 2).sum() / fade.sum())
    return found


def test_fine_distances_are_the_formula_and_the_lag_is_its_best() -> None:
    x = waves(1_500)
    found = score(x)
    for t in (100, 131, 400, 700, 1_499):
        short = distances(x, t, 16, 3 / 4, range(16, 528)).min()
        long = distances(x, t, 64, 15 / 16, range(32, 528))
        assert found.parts["s"][t] == pytest.approx(short, rel=1e-5)
        assert found.parts["l"][t] == pytest.approx(long.min(), rel=1e-5)
        assert found.lag[t] == 32 + long.argmin()
        assert found.expected[t] == np.float32(x[t - found.lag[t]] - x[0])


def test_coarse_distances_are_the_formula_on_block_means() -> None:
    x = waves(6_000, seed=1)
    found = score(x)
    for name, block, lags in (("c4", 4, range(8, 520)), ("c8", 8, range(8, 264))):
        y = x.reshape(-1, block).mean(1)
        assert found.parts[name].shape == y.shape
        for t in (80, 300, y.shape[0] - 1):
            want = distances(y, t, 64, 15 / 16, lags).min()
            assert found.parts[name][t] == pytest.approx(want, rel=1e-5)


def test_there_is_no_say_before_the_first_full_pair_of_windows() -> None:
    parts = score(waves(1_200)).parts
    first = {name: int(np.flatnonzero(~np.isnan(part))[0]) for name, part in parts.items()}
    assert first == {
        "s": 16 - 1 + 16,  # W - 1 + shortest lag
        "l": 64 - 1 + 32,
        "c4": 64 - 1 + 8,
        "c8": 64 - 1 + 8,
        "ls": 12 + 32 - 1,
        "lowr": 64 + 128,  # steps; the first value has none
        "vs": 64 + 128 - 1,
        "diff": 1,
    }
    for name, part in parts.items():
        assert not np.isnan(part[first[name] :]).any()


def test_expected_and_lag_are_unknown_together() -> None:
    found = score(waves(200))
    assert np.array_equal(np.isnan(found.expected), found.lag == 0)
    assert found.lag[95] >= 32
    assert found.lag[94] == 0


def test_of_two_equal_pasts_the_nearer_one_is_named() -> None:
    x = np.tile(np.arange(40.0), 20)  # every multiple of 40 explains it completely
    found = score(x)
    assert found.parts["l"][-1] == 0.0
    assert found.lag[-1] == 40


def test_a_spike_is_far_from_every_past() -> None:
    x = waves(1_500)
    x[1_400] += 8.0
    parts = score(x).parts
    for name in ("s", "l", "diff"):
        assert parts[name][1_400] > 3 * np.nanmax(parts[name][600:1_400])


def test_a_level_shift_is_its_size_over_the_deviation_before() -> None:
    x = np.where(np.arange(2_000) % 16 < 8, 1.0, 3.0)  # blocks of 8 alternate between 1 and 3
    x[1_600:] += 10.0
    shift = score(x).parts["ls"]
    # 12 blocks after the shift: means 2 and 12, deviation 1, range 2
    assert shift[200 + 11] == pytest.approx(10 / 1.02, rel=1e-5)
    assert shift[199] == pytest.approx(0.0, abs=1e-6)


def test_a_constant_level_shifts_by_a_fixed_amount_or_not_at_all() -> None:
    x = np.full(1_000, 7.0)
    x[960:] = 7.5
    shift = score(x).parts["ls"]
    assert shift[119] == 0.0
    assert shift[120] == 50.0


def test_a_flat_line_is_quiet() -> None:
    x = waves(1_500)
    x[1_300:] = x[1_299]
    parts = score(x).parts
    steps = np.abs(np.diff(x))
    # Half of the last 64 steps are flat at 1,331: index i of steps is the step to value i + 1.
    now, past = steps[1_331 - 64 : 1_331].mean(), steps[1_331 - 576 : 1_331 - 64].mean()
    assert parts["lowr"][1_331] == pytest.approx(math.log(past / now), rel=1e-4)
    assert parts["lowr"][1_400] == pytest.approx(math.log(1_000), rel=1e-6)  # the bound
    assert np.nanmax(parts["lowr"][:1_300]) < 0.5


def test_a_signal_that_grows_restless_shows_in_its_variance() -> None:
    draw = np.random.default_rng(8)
    x = 1e3 + draw.standard_normal(1_500)
    x[1_300:] = 1e3 + 3.0 * draw.standard_normal(200)
    parts = score(x).parts
    past = np.mean([x[1_300 - 64 * back : 1_364 - 64 * back].var() for back in range(1, 9)])
    now = x[1_300:1_364].var()
    assert parts["vs"][1_363] == pytest.approx(math.log(now / past), rel=1e-4)
    assert parts["vs"][1_363] == pytest.approx(math.log(9.0), abs=0.7)
    assert np.nanmax(parts["vs"][:1_300]) < 1.0
    falling = score(x[::-1].copy()).parts["vs"]
    assert falling[400] == 0.0  # to have calmed down is lowr's business
    steady = np.full(600, 5.0)
    steady[500] = 6.0  # of a constant signal others see that it is none any more
    assert np.nanmax(score(steady).parts["vs"]) == 0.0


def test_a_constant_stream_is_no_surprise_to_any_component() -> None:
    parts = score(np.full(3_000, 3.3)).parts
    for part in parts.values():
        assert np.nanmax(part) == 0.0


def test_a_monstrous_value_is_scored_and_not_silenced() -> None:
    x = waves(1_000)
    x[900] = 1e300
    parts = score(x).parts
    assert np.isfinite(parts["l"][900:]).all()
    assert parts["s"][900] > 1e17


def test_scores_come_key_after_key_and_channel_after_channel() -> None:
    x = np.stack([waves(700, seed=5), waves(700, seed=6)], 1)
    both = MODEL.score(segments(x[:600], x[600:]))
    for c in (0, 1):
        alone = MODEL.score(segments(x[:600, c : c + 1], x[600:, c : c + 1]))
        for name, part in both.parts.items():
            assert np.array_equal(part.reshape(2, -1)[c], alone.parts[name], equal_nan=True)


def test_the_default_asks_for_all_that_is_kept() -> None:
    assert MODEL.levels == (FINE, C4, C8)
    sustained = [each.name for each in MODEL.components if each.sustained]
    event = [each.name for each in MODEL.components if each.event]
    assert sustained == ["l", "c4", "c8"]
    assert event == ["s", "l", "c8", "ls", "lowr", "vs", "diff"]


def test_a_cheaper_bank_agrees_where_its_lags_reach() -> None:
    cheap = LagBank("cheap", fine_lags=256, c4_lags=0, c8_lags=64)
    assert [(each.name, each.history) for each in cheap.levels] == [("fine", 576), ("c8", 139)]
    assert Component("c4", "c4", sustained=True, event=False) not in cheap.components
    x = waves(280)[:, None]  # lag 272 of the short window needs 288 values
    found = cheap.score(segments(x, levels=cheap.levels))
    full = MODEL.score(segments(x))
    for name in ("s", "l", "ls", "lowr", "vs", "diff"):
        assert np.array_equal(found.parts[name], full.parts[name], equal_nan=True)


@pytest.mark.parametrize("settings", [{"fine_lags": 100}, {"c8_lags": 320}, {"c8_lags": 0}])
def test_lags_that_are_not_kept_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(settings.values())))):
        LagBank("no", **settings)


def test_rows_may_differ_in_length_and_lie_anywhere() -> None:
    history = 16 + 64 - 1 + 63
    rng = np.random.default_rng(4)
    sizes = np.array([1, 130, 5, 64, 65, 63], np.int32)
    room = rng.standard_normal(5_000).astype(np.float32)
    begin = np.array([4_000, 17, 900, 2_000, 3_000, 1_500], np.int64)

    def run(begin: np.ndarray, sizes: np.ndarray) -> tuple[F32, F32, np.ndarray]:
        total = int(sizes.sum())
        short, long = np.empty(total, np.float32), np.empty(total, np.float32)
        lag = np.empty(total, np.int32)
        rows = readonly(room), readonly(begin), readonly(sizes)
        bank(*rows, history, 16, 64, 32, short, long, lag)
        return short, long, lag

    together = run(begin, sizes)
    at = 0
    for row, size in enumerate(sizes):
        for t in range(size):
            one = run(begin[row : row + 1] + t, np.ones(1, np.int32))
            for a, b in zip(together, one, strict=True):
                assert a[at] == b[0]
            at += 1


@pytest.mark.parametrize("rows", [4, 16])
def test_torch_agrees_with_the_kernels(rows: int) -> None:
    rng = np.random.default_rng(8)
    other = LagBankTorch("torch", rows=rows)
    assert other.levels == MODEL.levels
    assert other.components == MODEL.components
    history = History(2)
    history.ensure(6)
    touched = np.arange(6, dtype=np.int32)
    for most in (40, 700, 900, 5, 80):
        counts = rng.integers(1, most, 6).astype(np.int32)
        values = rng.standard_normal((int(counts.sum()), 2)).cumsum(0)
        values[counts[0] // 2 : counts[0]] = 1.5
        batch = history.append(touched, counts, values, MODEL.levels).segments
        ours, theirs = MODEL.score(batch), other.score(batch)
        for name, part in ours.parts.items():
            assert theirs.parts[name].dtype == np.float32
            np.testing.assert_allclose(theirs.parts[name], part, rtol=1e-5, atol=1e-6)
        assert np.mean(ours.lag == theirs.lag) > 0.99
        agree = ours.lag == theirs.lag
        assert np.array_equal(ours.expected[agree], theirs.expected[agree], equal_nan=True)


def test_torch_answers_the_same_bits_for_any_tile() -> None:
    batch = segments(waves(900)[:, None], waves(200, seed=2)[:, None])
    one, many = LagBankTorch("a", rows=1).score(batch), LagBankTorch("b", rows=16).score(batch)
    for name, part in one.parts.items():
        assert np.array_equal(part.view(np.int32), many.parts[name].view(np.int32))


def test_an_empty_batch_is_an_empty_answer() -> None:
    nothing = np.zeros(0, np.int32)
    empty = History(2).append(nothing, nothing, np.zeros((0, 2)), MODEL.levels).segments
    for model in (MODEL, LagBankTorch("torch")):
        found = model.score(empty)
        assert all(part.shape == (0,) for part in found.parts.values())
        assert found.lag.shape == found.expected.shape == (0,)
