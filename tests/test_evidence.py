"""Goal: what each channel shows by itself is the sum of what the components say of it, by its
distance from its past, for every record that is asked about, and the same however batches were cut.

Method: made-up scores of three components, judged again by hand with the calibration's own
functions; the same records whole and in batches; a fault that one component alone can see.
"""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from test_decide import MIXED, QUICK, batch, stream

from raywatch.models import calibrate, judging
from raywatch.models.decide import Decider
from raywatch.models.scorer import F64, Component

FINE = tuple(Component(name, event=name != "n", weighted=False) for name in ("a", "b", "n"))
RECORDS = 300


def test_where_nothing_is_a_distance_it_is_the_sum_over_the_components_that_may_alert() -> None:
    made = stream(11, RECORDS, 3, FINE)
    told = batch(Decider(QUICK, FINE, 3, evidence=True), {0: made}, {0: 0}, {0: RECORDS})
    wanted, rates = np.zeros((RECORDS, 3)), calibrate.rates(QUICK.half_life)
    for name in ("a", "b"):  # not `n`, which takes no part in alerts
        state = np.zeros((1, 3, calibrate.COLUMNS))
        for at, scores in enumerate(np.nan_to_num(made.parts[name].T.astype(np.float64))):
            for channel, score in enumerate(scores.tolist()):
                rare = calibrate.judge(state, 0, channel, score)
                wanted[at, channel] += max(rare - judging.USUAL, 0.0)
                calibrate.learn(state, 0, channel, score, *rates)
    assert told.evidence is not None
    assert (told.evidence[-50:] > 0.0).any()
    np.testing.assert_array_equal(told.evidence, wanted)


def test_it_is_the_same_in_batches_and_across_snapshots_and_not_told_unasked() -> None:
    keys = {slot: stream(20 + slot, 400, 2, MIXED) for slot in range(3)}
    ends = [dict.fromkeys(keys, end) for end in (0, 1, 2, 9, 130, 131, 400)]

    def run(cuts: list[dict[int, int]]) -> dict[int, F64]:
        decider = Decider(QUICK, MIXED, 2, views=True, evidence=True)
        parts: dict[int, list[F64]] = {slot: [] for slot in keys}
        for begin, end in pairwise(cuts):
            decider.load(decider.state())
            told = batch(decider, keys, begin, end).evidence
            assert told is not None
            for slot, rows in zip(keys, np.split(told, len(keys)), strict=True):
                parts[slot].append(rows)
        return {slot: np.concatenate(rows) for slot, rows in parts.items()}

    whole, cut = run([ends[0], ends[-1]]), run(ends)
    for slot in keys:
        np.testing.assert_array_equal(whole[slot], cut[slot])
    assert batch(Decider(QUICK, MIXED, 2), keys, ends[0], ends[-1]).evidence is None


def test_a_channel_that_one_component_sees_is_blamed_beside_one_that_all_see() -> None:
    made = stream(31, 400, 4, FINE)
    calm = np.random.default_rng(31).uniform(0.5, 1.0, (3, 4, 400)).astype(np.float32)
    calm[0, 1, 300] = 40.0  # a and b see channel 1
    calm[1, 1, 300] = 40.0
    calm[1, 2, 300] = 39.0  # b alone sees channel 2, and less of it
    parts = dict(zip(("a", "b", "n"), calm, strict=True))
    made = replace(made, parts=parts)
    told = batch(Decider(QUICK, FINE, 4, evidence=True), {0: made}, {0: 0}, {0: 400})
    (episode, *_) = [each for each in told.episodes if each.index == 300]
    assert np.argsort(episode.channel_share)[::-1][:2].tolist() == [1, 2]
    assert math.fsum(episode.channel_share) == pytest.approx(1.0)
    assert episode.channel_share[2] > 3.0 * max(episode.channel_share[0], episode.channel_share[3])


def test_of_channels_that_are_as_rare_the_one_that_goes_farther_is_to_blame() -> None:
    components = (Component("a", weighted=False), Component("far"))
    made = stream(41, 400, 3, components)
    calm = np.random.default_rng(41).uniform(0.5, 1.0, (2, 3, 400)).astype(np.float32)
    calm[0, :2, 300] = 40.0  # a finds channels 0 and 1 as rare as each other
    calm[1] = 0.01
    values = np.random.default_rng(42).uniform(0.0, 1.0, (400, 3))
    values[:, 1] *= 100.0  # the same distance is far for channel 0, and near for channel 1
    parts = dict(zip(("a", "far"), calm, strict=True))
    told = batch(
        Decider(QUICK, components, 3, evidence=True),
        {0: replace(made, parts=parts, values=values)}, {0: 0}, {0: 400},
    )  # fmt: skip
    assert told.evidence is not None
    near, far = told.evidence[300, 1], told.evidence[300, 0]
    assert far > 10.0 * near > 0.0  # 100 times, but no channel counts as less than a twentieth
    (episode, *_) = [each for each in told.episodes if each.index == 300]
    assert episode.channel_share[0] > 0.99
