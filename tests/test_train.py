"""Goal: training is repeatable, refuses what teaches nothing, and its model keeps the contract.

Method: the linear model against a plain float64 computation, then bit for bit under every cut and
mix of batches, every number of threads, and on a GPU where there is one.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from raywatch.models.errors import ArtifactError, ConfigError
from raywatch.models.linear import CHUNK, HISTORY, TAPS, Linear, chunks
from raywatch.models.registry import build
from raywatch.models.scorer import F32, F64, Scores, Segments
from raywatch.models.synthetic import Stream, generate
from raywatch.models.train import train


@pytest.fixture(scope="module")
def series() -> list[tuple[str, F64]]:
    return generate(Stream(keys=10, seed=3, day_ms=400_000, per_round=0), 1_500).series()


@pytest.fixture(scope="module")
def linear(series: list[tuple[str, F64]]) -> Linear:
    return loaded(series)


def loaded(series: list[tuple[str, F64]], device: str = "cpu") -> Linear:
    artifact = train("linear", "mine", series, seed=1)
    return Linear(version=artifact.version, weights=artifact.weights, device=device)


def segments(rows: list[F32], begin: list[int], end: list[int]) -> Segments:
    """Values [begin, end) of each row as new ones, behind 128 older ones."""
    parts: list[F32] = []
    for row, low, high in zip(rows, begin, end, strict=True):
        if high > low:
            before = np.full(HISTORY, np.nan, np.float32)
            known = row[max(0, low - HISTORY) : low]
            before[HISTORY - known.shape[0] :] = known
            parts += [before, row[low:high]]
    fresh = np.array([[high - low for low, high in zip(begin, end, strict=True)]], np.int32)
    values = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return Segments(1, Linear.levels, fresh, values)


def anchored(series: list[tuple[str, F64]]) -> list[F32]:
    return [(x[:, 0] - x[0, 0]).astype(np.float32) for _, x in series]


def whole(scorer: Linear, rows: list[F32]) -> Scores:
    return scorer.score(segments(rows, [0] * len(rows), [row.shape[0] for row in rows]))


def cut(scorer: Linear, rows: list[F32], seed: int) -> tuple[F32, F32]:
    """Scores and predictions of all rows, in batches of random keys and lengths."""
    random = np.random.default_rng(seed)
    at = [0] * len(rows)
    kept: list[list[tuple[F32, F32]]] = [[] for _ in rows]
    while any(done < row.shape[0] for done, row in zip(at, rows, strict=True)):
        longest = int(random.choice([1, 2, 3, 17, 64, 65, 300]))
        steps = random.integers(0, longest + 1, len(rows))
        end = [
            min(done + int(step), row.shape[0])
            for done, step, row in zip(at, steps, rows, strict=True)
        ]
        scores = scorer.score(segments(rows, at, end))
        first = 0
        for index, (low, high) in enumerate(zip(at, end, strict=True)):
            part = slice(first, first + high - low)
            kept[index].append((scores.parts["residual"][part], scores.expected[part]))
            first += high - low
        at = end
    return (
        np.concatenate([each[0] for key in kept for each in key]),
        np.concatenate([each[1] for key in kept for each in key]),
    )


def same_bits(one: F32, other: F32) -> bool:
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


def plain(x: F32, taps: F64, bias: float) -> Iterator[tuple[float, float]]:
    """Residual and prediction of every value, by the formula of the header, in float64."""
    wide = x.astype(np.float64)
    expected = np.full(x.shape[0], np.nan)
    for t in range(TAPS, x.shape[0]):
        past = wide[t - TAPS : t]
        spread = np.abs(np.diff(past)).mean()
        expected[t] = past.mean() + taps @ (past[::-1] - past.mean()) + bias * spread
    error = np.abs(wide - expected)
    for t in range(x.shape[0]):
        window = error[max(0, t - TAPS) : t]
        window = np.sort(window[np.isfinite(window)])
        if window.shape[0] < 16 or np.isnan(error[t]):
            yield np.nan, expected[t]
            continue
        median = window[(window.shape[0] - 1) // 2]
        scale = max(1.4826 * median, 0.5 * window.mean(), abs(wide[t]) * 1e-6 + 1e-12)
        yield min(error[t] / scale, 1e6), expected[t]


def test_the_linear_model_is_its_formula(series: list[tuple[str, F64]], linear: Linear) -> None:
    rows = [row[:400] for row in anchored(series)]
    scores = whole(linear, rows)
    taps, bias = np.array(linear._taps), linear._bias  # pyright: ignore[reportPrivateUsage]
    expected = [pair for row in rows for pair in plain(row, taps, bias)]
    size = np.array([np.abs(row).max() for row in rows]).repeat(400)
    want = np.array(expected)
    assert np.isnan(scores.parts["residual"][:80]).all()  # 64 values and 16 residuals
    assert np.isfinite(scores.parts["residual"][80:400]).all()
    assert np.isfinite(scores.expected[64:400]).all()
    np.testing.assert_allclose(scores.parts["residual"], want[:, 0], rtol=2e-3, atol=2e-3)
    error = np.abs(scores.expected - want[:, 1]) / size
    assert np.nanmax(error) < 2e-6  # 64 additions of float32, 6e-8 each


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_scores_are_the_same_bits_however_batches_are_cut(
    series: list[tuple[str, F64]], linear: Linear, seed: int
) -> None:
    rows = [row[: 500 + 37 * index] for index, row in enumerate(anchored(series))]
    rows[2][200:203] = np.nan  # values that are missing silence the windows that hold them
    rows[3][100:300] = rows[3][100]  # a flat line has no spread
    rows[4][300] = 1e18
    scores = whole(linear, rows)
    residual, expected = cut(linear, rows, seed)
    assert same_bits(scores.parts["residual"], residual)
    assert same_bits(scores.expected, expected)
    assert not np.isinf(residual).any()
    assert scores.lag.shape == residual.shape


def test_scores_are_the_same_bits_for_any_number_of_threads(
    series: list[tuple[str, F64]], linear: Linear
) -> None:
    rows = anchored(series) * 8
    before = torch.get_num_threads()
    found: list[F32] = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(whole(linear, rows).parts["residual"])
    finally:
        torch.set_num_threads(before)
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_scores_are_the_same_bits_on_a_gpu(series: list[tuple[str, F64]], linear: Linear) -> None:
    rows = anchored(series)
    graphics = loaded(series, "cuda")
    on_cpu, on_gpu = whole(linear, rows), whole(graphics, rows)
    assert same_bits(on_cpu.parts["residual"], on_gpu.parts["residual"])
    assert same_bits(on_cpu.expected, on_gpu.expected)
    assert same_bits(on_gpu.parts["residual"], cut(graphics, rows, 5)[0])


def test_an_empty_batch_is_an_empty_answer(linear: Linear) -> None:
    scores = linear.score(segments([np.zeros(5, np.float32)], [3], [3]))
    assert scores.parts["residual"].shape == (0,)
    assert scores.expected.shape == (0,)


def test_rows_are_cut_so_that_padding_never_doubles_the_work_twice() -> None:
    fresh = np.random.default_rng(1).choice([1, 2, 3, 60, 64, 65, 5_000], 2_000).astype(np.int32)
    seen = [np.zeros(size, np.int32) for size in fresh]
    cells = 0
    for chunk in chunks(fresh, 1 << 15):
        cells += chunk.width * chunk.row.shape[0]
        assert chunk.width <= CHUNK
        assert (TAPS + chunk.width) * chunk.row.shape[0] <= 1 << 15
        for row, offset, size in zip(chunk.row, chunk.offset, chunk.size, strict=True):
            seen[row][offset : offset + size] += 1
    assert all((each == 1).all() for each in seen)
    assert cells < 2 * int(fresh.sum())


def test_the_model_predicts_better_than_the_last_value_and_sees_spikes() -> None:
    stream = Stream(keys=20, seed=8, day_ms=400_000, kinds=("cpu", "latency", "counts"))
    table = generate(stream, 3_000, injections_per_kind=0)
    scorer = loaded(table.series())
    rows = anchored(generate(stream, 3_000, injections_per_kind=0).series())
    scores = whole(scorer, rows)
    true = np.concatenate(rows)
    ours = np.nanmean(np.abs(scores.expected - true))
    assert ours < 0.85 * np.mean([np.abs(np.diff(row)).mean() for row in rows])
    spiked = [row.copy() for row in rows]
    for row in spiked:
        row[2_000] += 20.0 * np.std(np.diff(row[:2_000]))
    seen = whole(scorer, spiked).parts["residual"].reshape(len(rows), -1)
    assert (seen[:, 2_000] > np.nanmax(seen[:, 500:2_000], axis=1)).all()


def test_training_is_the_same_for_a_seed_and_another_for_another() -> None:
    data = generate(Stream(keys=5, seed=1), 1_000).series()
    settings = {"windows_per_series": 100}
    one = train("linear", "mine", iter(data), seed=4, settings=settings)
    assert one == train("linear", "mine", data, seed=4, settings=settings)
    assert one.weights != train("linear", "mine", data, seed=5, settings=settings).weights
    changed = [(key, x.copy()) for key, x in data]
    changed[0][1][0] += 1e-9
    assert one.hash != train("linear", "mine", changed, seed=4, settings=settings).hash
    assert one.trained["series"] == 5
    assert 490 < one.trained["windows"] <= 500  # 5 series, 100 windows; outliers teach nothing
    assert one.settings == {"ridge": 0.01, "windows_per_series": 100}


def test_the_unit_of_a_series_does_not_matter(linear: Linear) -> None:
    data = generate(Stream(keys=5, seed=1), 1_000).series()
    small = train("linear", "mine", data)
    large = train("linear", "mine", [(key, 1024.0 * x) for key, x in data])
    assert small.weights == large.weights


@pytest.mark.parametrize("kind", ["lagbank", "robustz"])
def test_models_without_weights_are_settings_and_what_they_were_meant_for(kind: str) -> None:
    data = [("a", np.arange(10.0)), ("b", np.ones((20, 2)))]
    settings = {"fine_lags": 256} if kind == "lagbank" else {}
    artifact = train(kind, "mine", data, settings=settings)
    assert artifact.weights is None
    assert artifact.settings == settings
    assert artifact.trained["series"] == 2
    assert artifact.trained["values"] == 50  # 10 + 20 * 2
    assert build(artifact).version == artifact.version


@pytest.mark.parametrize("kind", ["lagbank", "linear", "robustz"])
@pytest.mark.parametrize("data", [[], [("a", np.zeros(0))], [("a", np.zeros(1))]])
def test_nothing_to_learn_from_is_refused(kind: str, data: list[tuple[str, F64]]) -> None:
    with pytest.raises(ConfigError, match="no series has"):
        train(kind, "mine", data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([("a", np.arange(128.0)), ("b", np.arange(5.0))], r"129 values \(2 are shorter\)"),
        ([("a", np.full(1_000, 5.0))], "0 usable windows"),
        ([("a", np.full(1_000, np.nan))], "0 usable windows"),
        ([("a", np.zeros((5, 5, 5)))], "expected"),
        ([("a", np.zeros((5, 0)))], "expected"),
    ],
)
def test_series_that_teach_nothing_are_refused(data: list[tuple[str, F64]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        train("linear", "mine", data)


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("linear", {"epochs": 3}, "no setting `epochs`"),
        ("linear", {"ridge": -1}, "`ridge` must be"),
        ("linear", {"ridge": float("nan")}, "`ridge` must be"),
        ("linear", {"ridge": "much"}, "must be a number"),
        ("lagbank", {"fine_lags": 5}, "`fine_lags`"),
        ("robustz", {"window": 5}, "window"),
        ("python", {}, "cannot train kind `python`"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    kind: str, settings: dict[str, object], says: str
) -> None:
    data = [("a", np.random.default_rng(1).standard_normal(300))]
    with pytest.raises(ConfigError, match=says):
        train(kind, "mine", data, settings=settings)


def test_weights_of_another_model_are_refused() -> None:
    from raywatch.models.artifact import tensors_to_bytes

    for tensors in (
        {"weights": torch.zeros(3), "bias": torch.tensor(0.0)},
        {"other": torch.zeros(TAPS)},
        {"weights": torch.full((TAPS,), torch.nan), "bias": torch.tensor(0.0)},
    ):
        with pytest.raises(ArtifactError, match="mine@1"):
            Linear(version="mine@1", weights=tensors_to_bytes(tensors))
