"""Goal: an alert says which components called it rare, where values usually lie, and when it looked
like this before.

Method: streams whose expectations, misses and times are known. What a real lag bank says is held
against the records in test_alerts.py.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from test_decide import QUICK, calm, quiet_stream, whole

from raywatch.actors.alerts import from_episode
from raywatch.actors.records import RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.models.decide import Decider, Episode
from raywatch.models.decide_kernel import EVERY
from raywatch.models.scorer import F64, I64, Component

PAIR = (Component("a"), Component("b"))


def opened(observed: F64, at: int, *, time_ms: I64 | None = None, b: float = 1.0) -> Episode:
    """The episode of record `at`, where `a` is strange, and `b` as strange as said."""
    part = {"a": calm(len(observed)), "b": calm(len(observed), 5)}
    part["a"][at], part["b"][at] = 30.0, b
    made = quiet_stream(part["a"], observed=observed)
    made = replace(
        made,
        parts={name: each.astype(np.float32)[None] for name, each in part.items()},
        time_ms=made.time_ms if time_ms is None else time_ms,
    )
    told = whole(Decider(QUICK, PAIR, 1), {0: made})[0]
    (episode,) = [each for each in told.episodes if each.index == at]
    return episode


def test_the_components_that_called_it_rare_are_named_rarest_first() -> None:
    observed = np.full(400, 11.5)
    assert [name for name, _ in opened(observed, 300).reasons] == ["a"]
    both = opened(observed, 300, b=5.0).reasons
    assert [name for name, _ in both] == ["a", "b"]
    assert both[0][1] > both[1][1] > 1.0


def test_the_band_is_where_most_values_lie() -> None:
    draw = np.random.default_rng(3)
    observed = 11.5 + draw.laplace(0.0, 2.0, 3_000)  # 11.5 is what the stream expects
    episode = opened(observed, 2_900)
    assert episode.expected == (11.5,)
    inside = np.abs(observed - 11.5) <= episode.spread[0]
    assert 0.90 < inside.mean() < 0.98


@pytest.mark.parametrize("step_ms", [1_000, 60_000])
def test_it_says_when_it_looked_like_this(step_ms: int) -> None:
    even = np.arange(400, dtype=np.int64) * step_ms + 1_700_000_000_000
    episode = opened(np.full(400, 11.5), 300, time_ms=even)
    assert episode.lag == 7
    assert episode.similar_ms == even[300 - 7]
    uneven = even + np.random.default_rng(1).integers(0, step_ms, 400)
    similar_ms = opened(np.full(400, 11.5), 300, time_ms=uneven).similar_ms
    assert similar_ms is not None
    assert abs(similar_ms - uneven[300 - 7]) <= EVERY * step_ms


def test_a_key_without_expectations_says_so() -> None:
    episode = opened(np.full(400, np.nan), 300)
    assert math.isnan(episode.observed[0])
    assert episode.spread == (0.0,)
    spec = DetectorSpec("d", ("t",), RecordSpec(("x",)), "m")
    alert = from_episode(spec, b"k", 1, None, episode, "m@1")
    assert alert.channels[0].band is None
    assert "x is missing" in alert.words
