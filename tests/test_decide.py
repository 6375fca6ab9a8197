"""Goal: alerts as promised (rate, one an incident, none in warm-up), and the same bits for any cut.

Method: a stream of made-up component scores, cut into the batches that history.py and a scorer
would make of it; whole, cut anywhere, keys alone, and through state() and load(), compared bitwise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raywatch.models import calibrate
from raywatch.models.decide import Decided, Decider, Episode, warm_decide
from raywatch.models.errors import ArtifactError
from raywatch.models.history import Appended
from raywatch.models.scorer import F32, F64, I32, I64, LEVELS, Component, Scores, Segments
from raywatch.models.settings import DecideSettings

BLOCKS = {level.name: level.block for level in LEVELS}
ONE = (Component("a", sustained=True),)
MIXED = (
    Component("a", sustained=True),
    Component("b", level="c4", sustained=True, event=False),
    Component("c", level="c8", sustained=True),
    Component("d", weighted=False),
)
OFTEN = DecideSettings(probability=0.1, warmup=50, quiet=8, half_life=200)
QUICK = DecideSettings(probability=1e-4, warmup=50, quiet=8, half_life=200)


@dataclass(frozen=True)
class Stream:
    """One key: T records, and the score of every component for every value of its level."""

    time_ms: I64  # (T,)
    values: F64  # (T, C)
    weight: F32  # (C, T)
    expected: F32  # (C, T)
    lag: I32  # (C, T)
    anchor: F64  # (C,)
    parts: Mapping[str, F32]  # name -> (C, T // block)


def stream(seed: int, records: int, channels: int, components: Sequence[Component]) -> Stream:
    draw = np.random.default_rng(seed)
    shape = (channels, records)
    parts: dict[str, F32] = {}
    for component in components:
        size = (channels, records // BLOCKS[component.level])
        part = draw.standard_exponential(size).astype(np.float32)
        part[draw.random(size) < 0.03] = np.nan
        part[draw.random(size) < 0.01] *= 40.0
        parts[component.name] = part
    values = 100.0 + draw.standard_normal((records, channels))
    values[draw.random((records, channels)) < 0.02] = np.nan
    return Stream(
        time_ms=np.cumsum(draw.integers(0, 2_000_000, records)) + 1_700_000_000_000,
        values=values,
        weight=draw.uniform(0.5, 2.0, shape).astype(np.float32),
        expected=draw.standard_normal(shape).astype(np.float32),
        lag=draw.integers(0, 500, shape).astype(np.int32),
        anchor=draw.standard_normal(channels),
        parts=parts,
    )


def quiet_stream(part: F64, *, step_ms: int = 1_000, observed: F64 | None = None) -> Stream:
    """One key, one channel, one component `a` with these scores."""
    records = part.shape[0]
    shape = (1, records)
    return Stream(
        time_ms=np.arange(records, dtype=np.int64) * step_ms,
        values=part[:, None].copy() if observed is None else observed[:, None],
        weight=np.ones(shape, np.float32),
        expected=np.full(shape, 1.5, np.float32),
        lag=np.full(shape, 7, np.int32),
        anchor=np.array([10.0]),
        parts={"a": part.astype(np.float32)[None]},
    )


def batch(
    decider: Decider,
    keys: Mapping[int, Stream],
    begin: Mapping[int, int],
    end: Mapping[int, int],
) -> Decided:
    """Records begin..end of each key, as one batch."""
    slots = sorted(slot for slot in keys if end[slot] > begin[slot])
    cut = [(keys[slot], begin[slot], end[slot]) for slot in slots]
    channels = decider.channels

    def rows(arrays: list[F32]) -> F32:
        return np.concatenate([a.ravel() for a in arrays]) if arrays else np.zeros(0, np.float32)

    parts: dict[str, F32] = {}
    for component in decider.components:
        block = BLOCKS[component.level]
        parts[component.name] = rows(
            [s.parts[component.name][:, b // block : e // block] for s, b, e in cut]
        )
    weight = (
        rows([s.weight[:, b:e] for s, b, e in cut]) if channels > 1 else np.zeros(0, np.float32)
    )
    segments = Segments(channels, (), np.zeros((0, len(cut)), np.int32), np.zeros(0, np.float32))
    anchor = np.concatenate([s.anchor for s, _, _ in cut]) if cut else np.zeros(0)
    lag = (
        np.concatenate([s.lag[:, b:e].ravel() for s, b, e in cut]) if cut else np.zeros(0, np.int32)
    )
    scores = Scores(parts, rows([s.expected[:, b:e] for s, b, e in cut]), lag, "made-up@0")
    decider.ensure(max(keys) + 1)
    return decider.decide(
        np.array(slots, np.int32),
        np.array([e - b for _, b, e in cut], np.int32),
        np.concatenate([s.time_ms[b:e] for s, b, e in cut]) if cut else np.zeros(0, np.int64),
        np.concatenate([s.values[b:e] for s, b, e in cut]) if cut else np.zeros((0, channels)),
        Appended(segments, anchor, weight),
        scores,
    )


@dataclass
class Told:
    """What became of one key: arrays and episodes, the index counted from its first record."""

    score: list[F32]
    p: list[F64]
    event: list[F32]
    episodes: list[Episode]

    def bits(self) -> tuple[bytes, bytes, bytes, str]:
        return (
            np.concatenate(self.score).tobytes(),
            np.concatenate(self.p).tobytes(),
            np.concatenate(self.event).tobytes(),
            repr(self.episodes),  # repr, as NaN is not equal to itself
        )


def run(
    decider: Decider,
    keys: Mapping[int, Stream],
    cuts: Sequence[Mapping[int, int]],
    reopened: Callable[[Decider], Decider] = lambda decider: decider,
) -> dict[int, Told]:
    """Feed the keys batch by batch; `cuts` says where each key stands after each batch."""
    told = {slot: Told([], [], [], []) for slot in keys}
    at = dict.fromkeys(keys, 0)
    for cut in cuts:
        decider = reopened(decider)
        decided = batch(decider, keys, at, cut)
        base = 0
        for slot in sorted(keys):
            size = cut[slot] - at[slot]
            told[slot].score.append(decided.score[base : base + size])
            told[slot].p.append(decided.p[base : base + size])
            told[slot].event.append(decided.event[base : base + size])
            for episode in decided.episodes:
                if base <= episode.index < base + size:
                    assert episode.slot == slot
                    moved = replace(episode, index=episode.index - base + at[slot], slot=0)
                    told[slot].episodes.append(moved)
            base += size
        at = dict(cut)
    return told


def whole(decider: Decider, keys: Mapping[int, Stream]) -> dict[int, Told]:
    return run(decider, keys, [{slot: s.time_ms.shape[0] for slot, s in keys.items()}])


def alone(part: F64, promise: DecideSettings = QUICK, *, step_ms: int = 1_000) -> Told:
    return whole(Decider(promise, ONE, 1), {0: quiet_stream(part, step_ms=step_ms)})[0]


def calm(records: int, seed: int = 3) -> F64:
    """Scores that are never rare by QUICK: even, with a bounded tail."""
    return np.random.default_rng(seed).uniform(1.0, 2.0, records)


# ---- same bits -----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.sampled_from([1, 3]),
    views=st.booleans(),
    moved=st.booleans(),
)
def test_cuts_company_and_a_reload_change_no_bit(
    seed: int, channels: int, views: bool, moved: bool
) -> None:
    draw = np.random.default_rng(seed)
    sizes = {0: 400, 3: 251, 4: 133}
    keys = {slot: stream(seed + slot, size, channels, MIXED) for slot, size in sizes.items()}

    def new() -> Decider:
        return Decider(OFTEN, MIXED, channels, views=views)

    expected = {slot: whole(new(), {slot: s})[slot].bits() for slot, s in keys.items()}
    assert {slot: told.bits() for slot, told in whole(new(), keys).items()} == expected

    count = int(draw.integers(2, 40))
    steps = {s: [*np.sort(draw.integers(0, n + 1, count)).tolist(), n] for s, n in sizes.items()}
    cuts = [{slot: steps[slot][i] for slot in keys} for i in range(count + 1)]

    def reopened(decider: Decider) -> Decider:
        other = new()
        other.load(decider.state())
        return other

    told = run(new(), keys, cuts, reopened) if moved else run(new(), keys, cuts)
    assert {slot: each.bits() for slot, each in told.items()} == expected
    assert all(float(np.concatenate(each.p).min()) < 1.0 for each in told.values())


@pytest.mark.parametrize("channels", [1, 3])
def test_such_streams_have_incidents(channels: int) -> None:
    counts = [
        len(
            whole(Decider(OFTEN, MIXED, channels), {0: stream(seed, 400, channels, MIXED)})[
                0
            ].episodes
        )
        for seed in range(20)
    ]
    assert sum(count > 0 for count in counts) >= 15, counts


def test_the_state_of_a_key_is_the_same_however_its_batches_were_cut() -> None:
    keys = {0: stream(1, 300, 2, MIXED)}
    one, many = (Decider(QUICK, MIXED, 2, views=True) for _ in range(2))
    whole(one, keys)
    run(many, keys, [{0: n} for n in range(1, 301)])
    a, b = one.state(), many.state()
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.shape[0] == 1, name
        assert array.tobytes() == b[name].tobytes(), name


def test_state_is_a_copy() -> None:
    keys = {0: stream(2, 100, 1, ONE)}
    decider = Decider(QUICK, ONE, 1)
    run(decider, keys, [{0: 50}])
    kept = decider.state()
    bits = {name: array.tobytes() for name, array in kept.items()}
    batch(decider, keys, {0: 50}, {0: 100})
    assert {name: array.tobytes() for name, array in kept.items()} == bits


def test_read_only_scores_are_taken_as_they_come() -> None:
    part = quiet_stream(calm(30))
    for array in (part.parts["a"], part.expected, part.lag, part.values, part.time_ms):
        array.flags.writeable = False
    assert np.isfinite(whole(Decider(QUICK, ONE, 1), {0: part})[0].p[0]).all()


def test_an_empty_batch_is_an_empty_answer() -> None:
    decided = batch(Decider(QUICK, MIXED, 2), {0: stream(1, 10, 2, MIXED)}, {0: 0}, {0: 0})
    assert decided.score.shape == decided.p.shape == decided.event.shape == (0,)
    assert decided.episodes == []


# ---- scores ----------------------------------------------------------------------------------


def test_the_sustained_score_is_the_largest_weighted_sum_with_coarse_scores_held() -> None:
    keys = {0: stream(11, 100, 3, MIXED)}
    s = keys[0]
    told = whole(Decider(QUICK, MIXED, 3), keys)[0]
    expected = np.zeros(100)
    for t in range(100):
        sums = np.zeros(3)
        for name, block in (("a", 1), ("b", 4), ("c", 8)):
            done = (t + 1) // block
            if done > 0:
                sums += np.nan_to_num(s.parts[name][:, done - 1].astype(float))
        expected[t] = (sums * s.weight[:, t]).max()
    np.testing.assert_array_equal(told.score[0], expected.astype(np.float32))


def test_a_component_without_an_answer_has_no_part_in_alerts() -> None:
    part = calm(400)
    part[300] = 6.0
    nothing = np.full((1, 400), np.nan, np.float32)
    pair = replace(quiet_stream(part), parts={"a": part.astype(np.float32)[None], "b": nothing})
    decider = Decider(QUICK, (Component("a"), Component("b")), 1)
    told = whole(decider, {0: pair})[0]
    assert np.array_equal(told.p[0], alone(part).p[0])
    assert not decider.state()["calibration.b"][..., calibrate.HEARD].any()


def test_an_infinite_score_is_an_alert_and_blinds_nobody() -> None:
    part = calm(600)
    part[300] = math.inf
    part[500] = 90.0
    told = alone(part, replace(QUICK, probability=1e-5))
    opened = [e.index for e in told.episodes if e.kind == "open"]
    assert opened == [300, 500]
    assert np.isfinite(told.p[0]).all()
    assert np.isfinite(told.event[0]).all()


# ---- promises --------------------------------------------------------------------------------


def test_false_alarms_on_plain_noise_keep_the_promise() -> None:
    promise = DecideSettings(probability=1e-3, warmup=500)
    parts = np.abs(np.random.default_rng(20).standard_normal((40, 5_000)))
    keys = {slot: quiet_stream(parts[slot]) for slot in range(40)}
    told = whole(Decider(promise, ONE, 1), keys)
    rare = sum(int((each.p[0] <= 1e-3).sum()) for each in told.values())
    share = rare / (40 * 4_500)
    assert 0.5e-3 < share < 2e-3, share
    opened = sum(e.kind == "open" for each in told.values() for e in each.episodes)
    assert 0 < opened <= rare  # gate and incidents only ever take away


def test_before_the_warm_up_is_over_records_are_ranked_and_nobody_is_woken() -> None:
    part = calm(200)
    part[[20, 49]] = 1e3
    told = alone(part)
    assert told.episodes == []
    assert (told.p[0][:50] == 1.0).all()
    assert (told.event[0][:10] == 0.0).all()
    assert np.argmax(told.event[0]) == 20


def test_the_first_record_after_the_warm_up_may_alert() -> None:
    part = calm(60)
    part[50] = 1e3
    assert [(e.index, e.kind) for e in alone(part).episodes[:1]] == [(50, "open")]


def test_a_component_that_begins_late_warms_up_on_its_own() -> None:
    part = np.full(300, np.nan)
    part[100:] = calm(200)
    part[[120, 149]] = 50.0  # 20 and 49 scores after it began: too early
    part[200] = 5_000.0
    assert [e.index for e in alone(part).episodes if e.kind == "open"] == [200]


def test_a_level_shift_is_one_alert() -> None:
    part = calm(1_000)
    part[600:] += 8.0
    told = alone(part, replace(QUICK, half_life=2_000))
    kinds = [e.kind for e in told.episodes]
    assert kinds.count("open") == 1, told.episodes
    assert told.episodes[0].index == 600
    assert set(kinds[1:]) <= {"update", "resolved"}


def test_an_incident_opens_grows_and_is_resolved() -> None:
    part = calm(400)
    part[300:304] = 4.0, 4.0, 400.0, 4.0
    told = alone(part)
    assert [(e.kind, e.index) for e in told.episodes] == [
        ("open", 300),
        ("update", 302),
        ("resolved", 310),  # after the 400, a 4 is ordinary, and so are the next 7
    ]
    assert {e.since_ms for e in told.episodes} == {300_000}
    assert told.episodes[1].p * 1e3 <= told.episodes[0].p
    assert told.episodes[2].p > QUICK.probability


def test_strange_records_closer_than_quiet_are_one_incident() -> None:
    part = calm(400)
    part[300:340:8] = np.geomspace(8.0, 8e4, 5)  # 7 ordinary ones between two
    part[370] = 9e6  # 37 after the last
    kinds = [(e.kind, e.index) for e in alone(part).episodes if e.kind != "update"]
    assert kinds == [("open", 300), ("resolved", 340), ("open", 370), ("resolved", 378)]


def test_incidents_that_begin_at_the_same_time_differ_in_their_ordinal() -> None:
    part = calm(900)
    part[[300, 500, 700]] = 20.0, 2e3, 2e6
    told = alone(part, step_ms=0)
    opened = [(e.since_ms, e.ordinal) for e in told.episodes if e.kind == "open"]
    assert opened == [(0, 0), (0, 1), (0, 2)]
    resolved = [(e.since_ms, e.ordinal) for e in told.episodes if e.kind == "resolved"]
    assert resolved == opened


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_two_incidents_of_a_key_share_a_name_however_its_time_jumps(seed: int) -> None:
    draw = np.random.default_rng(seed)
    part = calm(2_000, seed)
    part[60::40] = np.exp(np.linspace(1.5, 85.0, part[60::40].shape[0]))
    jumping = replace(quiet_stream(part), time_ms=draw.integers(0, 5, 2_000))
    told = whole(Decider(QUICK, ONE, 1), {0: jumping})[0]
    names = [(e.since_ms, e.ordinal) for e in told.episodes if e.kind == "open"]
    assert len(names) > 10
    assert len(set(names)) == len(names)


# ---- explanation -----------------------------------------------------------------------------


def test_an_episode_says_what_fired_and_what_was_expected() -> None:
    part = calm(400)
    part[300] = 30.0
    observed = np.linspace(0.0, 1.0, 400)
    (episode, *_) = whole(Decider(QUICK, ONE, 1), {0: quiet_stream(part, observed=observed)})[
        0
    ].episodes
    assert episode.component == "a"
    assert episode.observed == (float(observed[300]),)
    assert episode.expected == (11.5,)  # 1.5 above the anchor, 10
    assert episode.channel_share == (1.0,)
    assert episode.lag == 7
    assert episode.p <= QUICK.probability
    assert episode.event > 4.0


def test_shares_are_squared_evidence_and_sum_to_one() -> None:
    s = stream(31, 400, 3, ONE)
    part = np.random.default_rng(31).uniform(0.5, 1.0, (3, 400)).astype(np.float32)
    part[:, 300] = 2.0, 3.0, np.nan
    s = replace(s, parts={"a": part})
    told = batch(Decider(QUICK, ONE, 3, evidence=True), {0: s}, {0: 0}, {0: 400})
    (episode, *_) = [e for e in told.episodes if e.index == 300]
    assert told.evidence is not None
    seen = told.evidence[300]
    assert (seen[0] > 2.0, seen[2]) == (True, 0.0)
    np.testing.assert_allclose(episode.channel_share, seen**2 / (seen**2).sum(), rtol=1e-12)
    assert sum(episode.channel_share) == pytest.approx(1.0)
    worst = int(np.argmax(seen))
    assert worst == 1
    assert episode.lag == s.lag[worst, 300]
    np.testing.assert_array_equal(episode.expected, s.anchor + s.expected[:, 300].astype(float))


def test_the_hour_of_the_day_fires_and_names_what_that_hour_expects() -> None:
    records = 24 * 60
    hours = np.arange(records) % 24
    # Days differ, not hours: a mean over hours is as noisy as a value, and an eighth as strange.
    days = np.repeat(np.random.default_rng(4).standard_normal(records // 24), 24)
    observed = np.where(hours < 12, 10.0, 90.0) + days
    observed[50 * 24 + 3] = 90.0  # a usual value, at the wrong hour
    even = quiet_stream(calm(records), step_ms=3_600_000, observed=observed)
    promise = DecideSettings(probability=1e-6, warmup=500)
    decider = Decider(promise, ONE, 1, views=True)
    (episode, *_) = whole(decider, {0: even})[0].episodes
    assert episode.index == 50 * 24 + 3
    assert episode.component == "hour"
    assert episode.observed == (90.0,)
    assert episode.expected[0] == pytest.approx(10.0, abs=1.5)
    assert episode.lag == 0


# ---- state -----------------------------------------------------------------------------------


def test_another_model_takes_over_in_mid_incident_and_warms_up_anew() -> None:
    part = calm(700)
    part[300] = 50.0
    part[350] = 500.0  # of a component that is 46 records old: too early
    part[600] = 1e7
    keys = {0: quiet_stream(part)}
    old = Decider(QUICK, ONE, 1)
    batch(old, keys, {0: 0}, {0: 304})
    new = Decider(QUICK, (Component("z"), Component("c", level="c8")), 1)
    new.load(old.state())
    coarse = np.full((1, 700 // 8), 1.0, np.float32)
    keys = {0: replace(keys[0], parts={"z": keys[0].parts["a"], "c": coarse})}
    decided = batch(new, keys, {0: 304}, {0: 700})
    told = [(e.kind, e.index + 304, e.since_ms) for e in decided.episodes if e.kind != "update"]
    assert told[0] == ("resolved", 308, 300_000)  # opened by the old model, never opened twice
    assert told[1] == ("open", 600, 600_000)


def test_a_state_that_does_not_fit_is_refused() -> None:
    decider = Decider(QUICK, ONE, 1)
    decider.ensure(3)
    saved = decider.state()
    with pytest.raises(ArtifactError, match="lacks `incident`"):
        Decider(QUICK, ONE, 1).load({n: a for n, a in saved.items() if n != "incident"})
    with pytest.raises(ArtifactError, match="calibration"):
        Decider(QUICK, ONE, 1).load(saved | {"calibration.a": np.zeros((3, 1, 5))})


def test_warming_compiles_everything_a_batch_needs() -> None:
    from raywatch.models import decide_kernel

    warm_decide()
    compiled = len(decide_kernel.decide_batch.signatures)
    for channels, views in ((1, False), (1, True), (3, False), (3, True)):
        s = stream(1, 40, channels, MIXED)
        whole(Decider(QUICK, MIXED, channels, views=views), {0: s})
    assert len(decide_kernel.decide_batch.signatures) == compiled == 1
