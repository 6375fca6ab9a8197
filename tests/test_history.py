"""Goal: what a scorer sees of a key is exactly what the key's records say, however they came.

Method: small streams against a plain restatement in numpy that holds all of a key's values.
"""

import numpy as np
import pytest

from raywatch.models.errors import ArtifactError
from raywatch.models.history import Appended, History
from raywatch.models.scorer import C4, C8, F32, F64, FINE, LEVELS, Level

SHORTER = (Level("fine", 1, 20), Level("c8", 8, 5))


def append(
    history: History, series: dict[int, F64], levels: tuple[Level, ...] = LEVELS
) -> Appended:
    slots = sorted(series)
    history.ensure(max(slots) + 1)
    counts = np.array([series[slot].shape[0] for slot in slots], np.int32)
    values = np.concatenate([series[slot] for slot in slots])
    return history.append(np.array(slots, np.int32), counts, values, levels)


def walk(seed: int, size: int, channels: int) -> F64:
    steps = np.random.default_rng(seed).standard_normal((size, channels))
    return 1e6 + np.cumsum(steps, 0)


def level_values(series: F64, block: int) -> F32:
    """All values of one channel on a level, anchored, with missing ones repeated."""
    known = np.flatnonzero(np.isfinite(series))
    anchored = series - series[known[0]] if known.size else series.copy()
    for i in range(1, anchored.shape[0]):
        if not np.isfinite(anchored[i]):
            anchored[i] = anchored[i - 1]
    whole = anchored[: anchored.shape[0] // block * block].reshape(-1, block)
    total = np.zeros(whole.shape[0])
    for column in range(block):
        total += whole[:, column]
    return (total / block).astype(np.float32)


def expected_row(series: F64, before: int, level: Level) -> F32:
    """The row of a key that had `before` records and has all of `series` now."""
    values = level_values(series, level.block)
    padded = np.concatenate([np.full(level.history, np.nan, np.float32), values])
    return padded[before // level.block :]


def same(a: F32, b: F32) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=True))


def rows(appended: Appended, level: int) -> list[F32]:
    values, begin, fresh = appended.segments.rows(level)
    history = appended.segments.levels[level].history
    return [
        values[start : start + history + size] for start, size in zip(begin, fresh, strict=True)
    ]


@pytest.mark.parametrize("size", [1, 7, 64, 700, 6000])
def test_a_segment_is_the_past_of_the_key_and_then_its_new_values(size: int) -> None:
    series = walk(1, 3000 + size, 2)
    history = History(2)
    append(history, {3: series[:1000]})
    append(history, {3: series[1000:3000], 5: walk(2, 3, 2)})
    appended = append(history, {3: series[3000:]})
    for index, level in enumerate(LEVELS):
        want = [expected_row(series[:, c], 3000, level) for c in (0, 1)]
        if (3000 + size) // level.block == 3000 // level.block:
            want = []
        found = rows(appended, index)
        assert len(found) == len(want)
        assert all(same(a, b) for a, b in zip(found, want, strict=True))


def test_a_model_may_ask_for_less() -> None:
    series = walk(3, 100, 1)
    history = History(1)
    append(history, {0: series[:90]}, SHORTER)
    appended = append(history, {0: series[90:]}, SHORTER)
    assert same(rows(appended, 0)[0], expected_row(series[:, 0], 90, SHORTER[0]))
    assert same(rows(appended, 1)[0], expected_row(series[:, 0], 90, SHORTER[1]))
    assert appended.segments.values.shape == (20 + 10 + 5 + 1,)  # 90 // 8 = 11, 100 // 8 = 12


def test_all_levels_are_kept_whatever_was_asked_before() -> None:
    series = walk(4, 900, 1)
    history = History(1)
    append(history, {0: series[:800]}, SHORTER)
    appended = append(history, {0: series[800:]}, LEVELS)
    for index, level in enumerate(LEVELS):
        assert same(rows(appended, index)[0], expected_row(series[:, 0], 800, level))


def test_a_key_without_a_new_block_takes_no_room_on_that_level() -> None:
    history = History(1)
    appended = append(history, {0: walk(5, 3, 1), 1: walk(6, 4, 1), 2: walk(7, 9, 1)})
    assert appended.segments.fresh.tolist() == [[3, 4, 9], [0, 1, 2], [0, 0, 1]]
    room = (3 * FINE.history + 16) + (2 * C4.history + 3) + (C8.history + 1)
    assert appended.segments.values.shape == (room,)


def test_a_missing_value_repeats_the_last_one_of_its_channel() -> None:
    series = walk(8, 40, 2)
    series[:5, 1] = np.nan
    series[11:14, 0] = np.nan
    history = History(2)
    appended = append(history, {0: series})
    for index, level in enumerate(LEVELS):
        for c in (0, 1):
            assert same(rows(appended, index)[c], expected_row(series[:, c], 0, level))
    assert rows(appended, 0)[0][FINE.history + 13] == np.float32(series[10, 0] - series[0, 0])
    assert np.isnan(rows(appended, 0)[1][FINE.history : FINE.history + 5]).all()
    assert appended.anchor.tolist() == [series[0, 0], series[5, 1]]


def test_a_missing_value_is_remembered_across_batches() -> None:
    history = History(1)
    append(history, {0: np.array([[5.0], [7.0]])})
    appended = append(history, {0: np.array([[np.nan]])})
    assert rows(appended, 0)[0][-2:].tolist() == [2.0, 2.0]


def test_the_anchor_of_a_channel_never_changes_and_is_unknown_before_a_value() -> None:
    history = History(2)
    first = append(history, {0: np.array([[4.0, np.nan]])})
    second = append(history, {0: np.array([[9.0, 6.0]])})
    third = append(history, {0: np.array([[1.0, 1.0]])})
    assert first.anchor[0] == 4.0
    assert np.isnan(first.anchor[1])
    assert second.anchor.tolist() == third.anchor.tolist() == [4.0, 6.0]


def test_a_weight_is_the_size_of_the_channel_up_to_and_with_its_record() -> None:
    series = walk(9, 700, 3)
    series[20:30, 1] = np.nan
    weight = append(History(3), {0: series}).weight.reshape(3, 700)
    for c in range(3):
        for t in (1, 10, 25, 499, 600, 699):
            past = series[: t + 1, c]
            past = past[np.isfinite(past)]
            unit = np.ptp(past[:500])
            want = 1 / np.sqrt(unit * np.sqrt(past.var() + (0.03 * unit) ** 2))
            assert weight[c, t] == pytest.approx(want, rel=1e-5)


def test_a_constant_channel_takes_the_median_unit_of_the_channels_that_have_one() -> None:
    series = np.array([[0.0, 0.0, 5.0, 7.0], [2.0, 4.0, 5.0, 7.0]])
    weight = append(History(4), {0: series}).weight.reshape(4, 2)
    assert weight[:, 0].tolist() == [0.0] * 4  # one record has no range in any channel
    want = 1 / np.sqrt(3.0 * 0.03 * 3.0)  # median of units 2 and 4 is 3; the variance is 0
    assert weight[2:, 1] == pytest.approx(np.array([want, want]), rel=1e-6)


def test_one_channel_has_no_weights() -> None:
    assert append(History(1), {0: walk(10, 5, 1)}).weight.shape == (0,)


def test_values_too_far_to_square_stay_finite() -> None:
    appended = append(History(2), {0: np.array([[-1e308, 0.0], [1e308, 1e30], [np.inf, 0.0]])})
    assert rows(appended, 0)[0][-3:].tolist() == [0.0, np.float32(1e18), np.float32(1e18)]
    assert np.isfinite(appended.weight).all()


def test_there_is_no_negative_zero() -> None:
    tiny = np.array([[0.0], [-1e-60], [-1e-60], [-1e-60]])
    appended = append(History(1), {0: tiny})
    assert not np.signbit(rows(appended, 0)[0][-4:]).any()
    assert not np.signbit(rows(appended, 1)[0][-1])


def test_growing_keeps_every_key() -> None:
    series = {slot: walk(slot, 100, 1) for slot in range(70)}
    history = History(1)
    for slot in range(70):  # 64 slots are there at first
        append(history, {slot: series[slot][:50]})
    appended = append(history, {slot: series[slot][50:] for slot in series})
    for slot, row in enumerate(rows(appended, 0)):
        assert same(row, expected_row(series[slot][:, 0], 50, FINE))


def test_a_snapshot_is_untouched_by_what_comes_later() -> None:
    history = History(1)
    append(history, {1: walk(11, 50, 1)})
    state = history.state()
    kept = {name: array.copy() for name, array in state.items()}
    append(history, {1: walk(12, 50, 1)})
    assert all(np.array_equal(state[name], kept[name]) for name in kept)
    assert [state[name].shape[0] for name in ("index", "stats")] == [2, 2]
    assert state["rings"].shape == (50 + 50 // 4 + 50 // 8,)  # what slot 1 has, and no more


def test_a_snapshot_of_another_number_of_channels_is_refused() -> None:
    history = History(2)
    append(history, {0: walk(13, 5, 2)})
    with pytest.raises(ArtifactError, match="shape"):
        History(3).load(history.state())
    with pytest.raises(ArtifactError, match="index"):
        History(3).load({})


def test_an_empty_batch_is_an_empty_answer() -> None:
    nothing = np.zeros(0, np.int32)
    appended = History(2).append(nothing, nothing, np.zeros((0, 2)), LEVELS)
    assert appended.segments.values.shape == (0,)
    assert appended.segments.fresh.shape == (3, 0)


def test_a_key_and_channel_costs_six_kilobytes() -> None:
    history = History(3)
    append(history, {0: walk(14, 5, 3)})
    size = sum(array.nbytes for array in history.state().values())
    assert size / 3 < 6_100
