"""Goal: novelty is the distance to the nearest value that the key has had, to the width of a bin,
whatever values come; old ones are forgotten, and memory is what it was.

Method: streams of values judged beside a search through all values that are remembered.
"""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raywatch.models import novelty
from raywatch.models.scorer import F64, U8


def fresh() -> tuple[F64, U8]:
    return np.zeros((1, novelty.COLUMNS)), np.zeros((1, novelty.BINS), np.uint8)


def looked(values: F64) -> tuple[F64, F64, F64]:
    """Distance, nearest value and width of a bin, at each value."""
    span, marks = fresh()
    out = np.empty((len(values), 3))
    for at, value in enumerate(values.tolist()):
        out[at, :2] = novelty.look(span, marks, 0, value)
        out[at, 2] = span[0, novelty.WIDTH]
    return out[:, 0], out[:, 1], out[:, 2]


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_distance_to_the_nearest_value_that_was(seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = draw.standard_normal(3_000) * 10.0 ** draw.integers(-3, 4) + draw.normal(0.0, 1e4)
    values[draw.random(3_000) < 0.01] *= 1.5
    distance, _, width = looked(values)
    for at in range(1, len(values)):
        exact = np.abs(values[:at] - values[at]).min()
        assert abs(distance[at] - exact) <= width[at] * (1.0 + 1e-6), at


def test_a_value_nobody_had_is_novel_once_and_its_neighbour_is_named() -> None:
    values = np.concatenate((np.tile([10.0, 90.0], 500), [50.0, 50.0]))
    distance, nearest, width = looked(values)
    assert distance[2:1_000].max() == 0.0
    assert distance[1_000] == pytest.approx(40.0, abs=2.0 * width[-1])
    assert min(abs(nearest[1_000] - 10.0), abs(nearest[1_000] - 90.0)) <= width[-1]
    assert distance[1_001] == 0.0


def test_what_was_long_ago_is_novel_again() -> None:
    often = np.tile([0.0, 1.0], 2 * novelty.KEEP)
    values = np.concatenate(([0.0, 5.0], often[: novelty.KEEP - 10], [5.0]))
    assert looked(values)[0][-1] == 0.0
    values = np.concatenate(([0.0, 5.0], often[: 2 * novelty.KEEP], [5.0]))
    assert looked(values)[0][-1] == pytest.approx(4.0, abs=0.2)


def test_a_missing_value_leaves_no_trace() -> None:
    values = np.random.default_rng(1).standard_normal(50)
    holes = np.insert(values, [0, 10, 40], [np.nan, np.inf, -1e31])
    with_holes = looked(holes)[0]
    assert np.isnan(with_holes[[0, 11, 42]]).all()
    np.testing.assert_array_equal(with_holes[~np.isnan(with_holes)], looked(values)[0])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=60))
@example([0.0, 5e-324, -1e30, 1e30])
@example([1e30, -1e30, 0.0, 5e-324])
@example([1e16, 1e16 + 2.0, 1.0])
def test_any_values_give_distances(values: list[float]) -> None:
    span, marks = fresh()
    for value in values:
        distance, nearest = novelty.look(span, marks, 0, value)
        if abs(value) <= novelty.VALUE_MAX:
            assert distance >= 0.0
            assert math.isfinite(distance)
        else:
            assert math.isnan(distance)
            assert math.isnan(nearest)
    assert np.isfinite(span).all()
