"""Goal: the score of a record is a function of its key's records up to it, and of nothing else.

Method: streams of several keys and channels with missing values are sent through History and each
scorer in many ways; every part, expected value, lag, anchor and weight must be the same bits.
"""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from raywatch.models.history import History
from raywatch.models.kernel import bank
from raywatch.models.kernel_history import append_records, count_fresh
from raywatch.models.kernel_window import level_shift, robust_z, roughness
from raywatch.models.lagbank import LagBank
from raywatch.models.robustz import RobustZ
from raywatch.models.scorer import F64, Scorer
from raywatch.models.warm import warm

SCORERS: dict[str, Callable[[], Scorer]] = {
    "lagbank": lambda: LagBank("lagbank@test"),
    "lagbank-cheap": lambda: LagBank("cheap@test", fine_lags=128, c4_lags=64, c8_lags=64),
    "robustz": lambda: RobustZ("robustz@test"),
}
CUTS = (2, 3, 5, 7, 16, 33, 64, 1_000)
RECORDS = 1_100  # long enough for every component to speak on every level

Bits = dict[str, NDArray[np.int32]]


def streams(channels: int, seed: int = 0) -> dict[int, F64]:
    """Three keys by slot: a wave with gaps, a walk of steps with ties, and one that is flat."""
    rng = np.random.default_rng(seed)
    shape = (RECORDS, channels)
    wave = 1e5 + np.sin(np.arange(RECORDS) / 11)[:, None] * 4 + rng.standard_normal(shape)
    steps = np.cumsum(rng.integers(-1, 2, shape), 0).astype(np.float64)
    flat = np.where(np.arange(RECORDS)[:, None] < 700, rng.standard_normal(shape), 0.25)
    result = {0: wave, 2: steps, 5: flat}
    for series in result.values():
        if channels > 1:
            series[rng.random(shape) < 0.1] = np.nan
            series[:40, 1] = np.nan
    return result


class Way:
    """A way through the stream; gathers the bits of every answer by key and channel."""

    def __init__(self, scorer: Scorer, channels: int) -> None:
        self.scorer = scorer
        self.history = History(channels)
        self.channels = channels
        self.bits: dict[tuple[int, int], dict[str, list[NDArray[np.int32]]]] = {}

    def send(self, batch: dict[int, F64]) -> None:
        """One batch; keys without records are left out."""
        slots = sorted(slot for slot, values in batch.items() if values.shape[0])
        if not slots:
            return
        self.history.ensure(max(slots) + 1)
        counts = np.array([batch[slot].shape[0] for slot in slots], np.int32)
        values = np.concatenate([batch[slot] for slot in slots])
        appended = self.history.append(
            np.array(slots, np.int32), counts, values, self.scorer.levels
        )
        scores = self.scorer.score(appended.segments)

        size = {level.name: i for i, level in enumerate(self.scorer.levels)}
        columns = {
            each.name: (scores.parts[each.name], each.level) for each in self.scorer.components
        }
        columns |= {"expected": (scores.expected, "fine"), "lag": (scores.lag, "fine")}
        if self.channels > 1:
            columns["weight"] = (appended.weight, "fine")
        for name, (column, level) in columns.items():
            fresh = appended.segments.fresh[size[level]]
            ends = np.cumsum(np.repeat(fresh, self.channels))
            assert column.shape[0] == ends[-1]
            for row, part in enumerate(np.split(column.view(np.int32), ends[:-1])):
                key = (slots[row // self.channels], row % self.channels)
                self.bits.setdefault(key, {}).setdefault(name, []).append(part)

    def answer(self) -> dict[tuple[int, int], Bits]:
        return {
            key: {name: np.concatenate(parts) for name, parts in columns.items()}
            for key, columns in self.bits.items()
        }


def through(
    scorer: Scorer, series: dict[int, F64], cuts: Callable[[int], int], channels: int
) -> dict[tuple[int, int], Bits]:
    """Send all of the stream; `cuts(slot)` says how many records of a key come next."""
    way = Way(scorer, channels)
    at = dict.fromkeys(series, 0)
    while any(at[slot] < series[slot].shape[0] for slot in series):
        batch: dict[int, F64] = {}
        for slot, values in series.items():
            size = cuts(slot)
            batch[slot] = values[at[slot] : at[slot] + size]
            at[slot] += size
        way.send(batch)
    return way.answer()


def assert_same(a: dict[tuple[int, int], Bits], b: dict[tuple[int, int], Bits]) -> None:
    assert a.keys() == b.keys()
    for key, columns in a.items():
        for name, column in columns.items():
            assert np.array_equal(column, b[key][name]), (key, name)


def spoken(bits: Bits) -> set[str]:
    """Columns with at least one answer that is a number."""
    return {name for name, column in bits.items() if not np.isnan(column.view(np.float32)).all()}


@pytest.fixture(params=[(name, channels) for name in SCORERS for channels in (1, 3)], ids=str)
def setting(request: pytest.FixtureRequest) -> tuple[Scorer, int]:
    name, channels = request.param
    return SCORERS[name](), channels


def test_batches_may_be_cut_anywhere(setting: tuple[Scorer, int]) -> None:
    scorer, channels = setting
    series = streams(channels)
    one_by_one = through(scorer, series, lambda _: 1, channels)
    names = {each.name for each in scorer.components}
    assert names <= spoken(one_by_one[0, 0])  # nothing is equal only because it never spoke
    for cut in CUTS:
        assert_same(through(scorer, series, lambda _, size=cut: size, channels), one_by_one)


@pytest.mark.parametrize("seed", range(4))
def test_batches_may_be_cut_at_random_and_keys_may_be_absent(
    setting: tuple[Scorer, int], seed: int
) -> None:
    scorer, channels = setting
    series = streams(channels, seed)
    rng = np.random.default_rng(seed)
    most = (4, 20, 90, 400)[seed]
    random = through(scorer, series, lambda _: int(rng.integers(0, most)), channels)
    assert_same(random, through(scorer, series, lambda _: RECORDS, channels))


def test_a_key_alone_scores_as_among_others(setting: tuple[Scorer, int]) -> None:
    scorer, channels = setting
    series = streams(channels)
    together = through(scorer, series, lambda _: 16, channels)
    for slot, values in series.items():
        alone = through(scorer, {0: values}, lambda _: 50, channels)
        for (_, channel), bits in alone.items():
            assert_same({(slot, channel): bits}, {(slot, channel): together[slot, channel]})


def test_what_comes_later_changes_nothing(setting: tuple[Scorer, int]) -> None:
    scorer, channels = setting
    series = streams(channels)
    whole = through(scorer, series, lambda _: 64, channels)
    prefix = {slot: values[:777] for slot, values in series.items()}
    for key, columns in through(scorer, prefix, lambda _: 64, channels).items():
        for name, column in columns.items():
            assert np.array_equal(column, whole[key][name][: column.shape[0]]), (key, name)


@pytest.mark.parametrize("where", [1, 13, 500, 803])
def test_a_history_goes_on_from_a_snapshot(setting: tuple[Scorer, int], where: int) -> None:
    scorer, channels = setting
    series = streams(channels)
    way = Way(scorer, channels)
    way.send({slot: values[:where] for slot, values in series.items()})
    state = way.history.state()
    for array in state.values():
        array.flags.writeable = False  # as it comes out of a file
    way.history = History(channels)
    way.history.load(state)
    for begin in range(where, RECORDS, 31):
        way.send({slot: values[begin : begin + 31] for slot, values in series.items()})
    assert_same(way.answer(), through(scorer, series, lambda _: RECORDS, channels))


def test_a_scorer_answers_the_same_again_and_leaves_its_input_alone(
    setting: tuple[Scorer, int],
) -> None:
    scorer, channels = setting
    history = History(channels)
    history.ensure(1)
    counts = np.array([RECORDS], np.int32)
    batch = streams(channels)[0]
    segments = history.append(np.zeros(1, np.int32), counts, batch, scorer.levels).segments
    before = segments.values.copy()
    segments.values.flags.writeable = False  # as it comes out of Ray's object store
    first, second = scorer.score(segments), scorer.score(segments)
    assert np.array_equal(segments.values.view(np.int32), before.view(np.int32))
    for name, part in first.parts.items():
        assert np.array_equal(part.view(np.int32), second.parts[name].view(np.int32))


def test_a_stream_compiles_nothing_that_warming_up_did_not(setting: tuple[Scorer, int]) -> None:
    warm()
    scorer, channels = setting
    through(scorer, {0: streams(channels)[0]}, lambda _: 300, channels)
    for kernel in (append_records, count_fresh, bank, level_shift, roughness, robust_z):
        # One signature: whatever a stream brings has the types that warm() brought.
        assert len(kernel.signatures) == 1, kernel
