"""Goal: what components and channels say together is what the formula says, and one level of it
means one thing for keys of all ages.

Method: made-up scores with one record that is strange in a known way, decided beside the same
scores with one thing changed.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from test_decide import ONE, QUICK, calm, quiet_stream, stream, whole

from raywatch.models import judging
from raywatch.models.decide import Decider
from raywatch.models.scorer import Component


def test_what_is_said_pays_for_the_number_of_components_and_the_trust_in_them() -> None:
    part = calm(400)
    part[300] = 6.0
    twice = replace(quiet_stream(part), parts={n: part.astype(np.float32)[None] for n in "ab"})

    def said(*components: Component) -> float:
        return float(whole(Decider(QUICK, components, 1), {0: twice})[0].event[0][300])

    one = said(Component("a"))
    assert one > 3.0
    assert said(Component("a"), Component("b")) == pytest.approx(one - math.log10(2.0), abs=1e-5)
    half = said(Component("a"), Component("b", trust=0.5))  # the other one is as rare
    assert half == pytest.approx(one - math.log10(1.5), abs=1e-5)
    assert said(Component("a", trust=0.25)) == pytest.approx(one, abs=1e-5)  # alone it is all


def test_channels_that_move_together_are_rarer_than_one_alone() -> None:
    s = stream(12, 600, 4, ONE)
    part = np.random.default_rng(12).standard_exponential((4, 600)).astype(np.float32)

    def said(*channels: int) -> float:
        strange = part.copy()
        strange[list(channels), 500] = 9.0
        keys = {0: replace(s, parts={"a": strange})}
        return float(whole(Decider(QUICK, ONE, 4), keys)[0].event[0][500])

    assert said(0) < said(0, 2) < said(0, 2, 3)


def test_the_older_a_key_the_rarer_a_record_has_to_be() -> None:
    def said(at: int) -> float:
        part = calm(2_000)
        part[1_000] = 6.0
        decider = Decider(replace(QUICK, half_life=100), ONE, 1)
        told = whole(decider, {0: quiet_stream(part[1_000 - at : 1_001])})[0]
        return float(told.event[0][at])

    assert judging.due(0) == 0.0
    assert judging.due(19_800) == pytest.approx(1.0)
    assert said(1_000) < said(400)


def test_one_strange_channel_of_many_is_no_less_strange_for_the_others() -> None:
    s = stream(13, 600, 6, ONE)
    part = np.random.default_rng(13).uniform(0.5, 1.0, (6, 600)).astype(np.float32)
    part[2, 500] = 20.0
    told = whole(Decider(QUICK, ONE, 6), {0: replace(s, parts={"a": part})})[0]
    (episode, *_) = [each for each in told.episodes if each.index == 500]
    assert np.argmax(episode.channel_share) == 2
    assert np.argmax(told.event[0][60:]) == 500 - 60
