"""Goal: the pool grows for what is measured, and never shrinks on what is not.

Method: one golden case for each line of the rule, with the arithmetic beside it; then seeded
random histories against the promises that hold whatever comes.
"""

import dataclasses
import random

import pytest

from raywatch.cluster.scale import (
    Decision,
    Load,
    Memory,
    Observation,
    ScaleSettings,
    Want,
    decide,
    forecast,
    hold_s,
    start_s,
    want,
)

SETTINGS = ScaleSettings(scorers_max=48)
# 1000 records per busy second; 4 partitions of 500 records/s: 2 scorers of work, 3 are ready.
CALM = Observation(
    t=1_000.0,
    read_t=1_000.0,
    backlog=(100.0,) * 4,
    rate=(500.0,) * 4,
    ready=3,
    busy=(0.67,) * 3,
    records_per_busy_s=(900.0, 1_000.0, 1_100.0),
    starts_s=(30.0,),
    warm_free=0,
)


def wanted(load: Load) -> Want:
    return want(load, horizon_s=30.0, start=30.0, settings=SETTINGS)


def later(seen: Observation, seconds: float, **changes: object) -> Observation:
    t = seen.t + seconds
    return dataclasses.replace(seen, **{"t": t, "read_t": t, **changes})  # pyright: ignore


def run(
    seen: Observation, seconds: float, memory: Memory, settings: ScaleSettings = SETTINGS
) -> tuple[list[Decision], Memory]:
    """Decide every 5 s for a while on the same numbers."""
    made: list[Decision] = []
    for step in range(int(seconds / 5.0) + 1):
        decision, memory = decide(later(seen, 5.0 * step), memory, settings)
        made.append(decision)
    return made, memory


def test_holds_where_the_pool_fits() -> None:
    decision, _ = decide(CALM, Memory(), SETTINGS)
    assert decision == Decision(3, "hold: 3 fit", "hold", 3)  # 2 / 0.75 = 2.67


def test_takes_over_the_pool_it_finds_within_the_bounds() -> None:
    found = dataclasses.replace(CALM, ready=60, records_per_busy_s=())
    decision, _ = decide(found, Memory(), SETTINGS)
    assert decision == Decision(48, "hold: no scorer has reported a rate yet", "hold", 60)


def test_between_two_ticks_it_repeats_what_it_decided() -> None:
    first, memory = decide(CALM, Memory(), SETTINGS)
    second, same = decide(later(CALM, 1.0, backlog=(1e6,) * 4), memory, SETTINGS)
    assert (second.scorers, second.kind) == (first.scorers, "hold")
    assert same == memory


def test_a_scorer_that_died_stays_wanted() -> None:
    _, memory = decide(CALM, Memory(), SETTINGS)
    decision, _ = decide(later(CALM, 5.0, ready=2), memory, SETTINGS)
    assert decision.scorers == 3
    decision, _ = decide(later(CALM, 5.0, ready=0, records_per_busy_s=()), memory, SETTINGS)
    assert decision == Decision(3, "hold: no scorer is ready", "hold", 3)


def test_the_cost_of_a_record_is_a_median_of_scorers_and_of_ticks() -> None:
    memory = Memory()
    for tick, speeds in enumerate([(1_000.0, 1_000.0, 9.0), (1_000.0,), (50.0,), (1_000.0,)]):
        seen = later(CALM, 5.0 * tick, records_per_busy_s=speeds)
        decision, memory = decide(seen, memory, SETTINGS)
        assert decision.scorers == 3  # one strange scorer and one strange tick change nothing


def test_the_arrivals_alone_are_served_at_the_target_share() -> None:
    load = Load(rate=6.0, ahead=6.0, work_s=0.0, ready=6)
    assert wanted(load).scorers == 8  # 6 / 0.75; 6 > 0.88 * 6
    assert wanted(load).words == "6.0 scorers of work in 30 s at 75 % busy"


def test_no_move_up_to_the_highest_share() -> None:
    assert wanted(Load(rate=7.0, ahead=7.0, work_s=0.0, ready=8)).scorers == 8  # 0.875


def test_a_backlog_is_cleared_in_the_time_that_a_start_is_worth() -> None:
    load = Load(rate=4.0, ahead=4.0, work_s=500.0, ready=4)
    asked = wanted(load)
    # E = 500 + 4*30 - 0.3*10*4 - 4*30 = 488; T = sqrt(488/4 * (30 + 300) / 30) = 36.6 s
    assert asked.scorers == 18  # 4 + 488 / 36.6 = 17.3
    assert asked.words == "488 scorer-seconds too much in 30 s; 18 clear it in 37 s"


def test_scorers_that_are_starting_count_for_what_they_will_do() -> None:
    without = Load(rate=4.0, ahead=4.0, work_s=500.0, ready=4)
    pending = dataclasses.replace(without, pending_age_s=(20.0,) * 10)  # 10 s to go, 20 s of work
    # E = 488 - 10 * 20 = 288; T = sqrt(288/4 * 330/30) = 28.1 s; 4 + 288/28.1 = 14.2
    assert wanted(pending).scorers == 15


def test_the_promise_allows_some_work_to_wait() -> None:
    load = Load(rate=4.0, ahead=4.0, work_s=11.0, ready=5)
    assert wanted(load).scorers == 5  # 0.3 * 10 s * 4 = 12 scorer-seconds are free


def test_a_warm_slot_is_near_and_a_cold_start_is_far() -> None:
    full = dataclasses.replace(CALM, backlog=(10_000.0,) * 4)
    near, _ = decide(dataclasses.replace(full, warm_free=20), Memory(), SETTINGS)
    far, _ = decide(full, Memory(), SETTINGS)
    # warm: E = 40 + 2*5 - 6 - 15 = 29, T = sqrt(14.5 * 305/30) = 12.1: 2 + 2.4
    assert near.reason == "grow: 29 scorer-seconds too much in 5 s; 5 clear it in 12 s"
    # cold: in 30 s the three do what waits: E = 40 + 60 - 6 - 90 = 4; T = 5: 2 + 0.8
    assert far == Decision(3, "hold: 3 fit", "hold", 3)


def test_a_step_in_the_rate_is_no_trend() -> None:
    step = [(5.0 * i, 2.0 if i < 9 else 6.0) for i in range(13)]
    assert forecast(step, 30.0, 1.5) == 6.0


def test_a_ramp_is_followed_to_the_horizon_and_no_further_than_half_as_much_again() -> None:
    ramp = [(5.0 * i, 10.0 + 0.5 * i) for i in range(13)]  # 0.1 a second, 16.0 now
    assert forecast(ramp, 30.0, 1.5) == pytest.approx(19.0, abs=0.3)
    assert forecast(ramp, 300.0, 1.5) == 16.0  # 60 s of history say nothing about 300 s
    assert forecast([(5.0 * i, 1.0 + i) for i in range(13)], 60.0, 1.5) == 1.5 * 13.0
    assert forecast(ramp[:3], 30.0, 1.5) == 11.0


def test_the_start_time_is_learned_from_starts_that_still_run() -> None:
    assert start_s(dataclasses.replace(CALM, starts_s=()), SETTINGS) == 30.0
    assert start_s(dataclasses.replace(CALM, starts_s=tuple(range(10, 20))), SETTINGS) == 18.0
    assert start_s(dataclasses.replace(CALM, pending_age_s=(200.0, 3.0)), SETTINGS) == 205.0


def test_hold_time_is_three_starts_within_bounds() -> None:
    assert [hold_s(each, SETTINGS) for each in (10.0, 150.0, 900.0)] == [300.0, 450.0, 900.0]


def test_grows_at_once_and_without_a_step_cap() -> None:
    flood = dataclasses.replace(CALM, rate=(5_000.0,) * 4)
    decision, _ = decide(flood, Memory(), SETTINGS)
    assert decision.scorers > 10 * CALM.ready
    assert decision.kind == "grow"


def test_says_when_more_is_wanted_than_allowed() -> None:
    flood = dataclasses.replace(CALM, rate=(5_000.0,) * 4)
    decision, _ = decide(flood, Memory(), ScaleSettings(scorers_max=6))
    assert decision.scorers == 6
    assert decision.wanted > 30
    assert decision.reason.endswith("; at most 6 are allowed")


def test_shrinks_to_the_highest_want_after_the_hold_time_and_no_sooner() -> None:
    idle = dataclasses.replace(CALM, rate=(125.0,) * 4, backlog=(10.0,) * 4)
    made, _ = run(idle, 300.0, Memory())
    assert [each.scorers for each in made[:-2]] == [3] * (len(made) - 2)
    assert made[10].reason == "hold: 1 would do, but 50 of 300 s are watched"
    assert made[-1].scorers == 1
    assert "no more than 1 were wanted in the last 300 s" in made[-2].reason


def test_a_pulse_in_the_hold_time_keeps_the_pool() -> None:
    idle = dataclasses.replace(CALM, rate=(125.0,) * 4, backlog=(10.0,) * 4)
    _, memory = run(idle, 200.0, Memory())
    _, memory = decide(later(CALM, 205.0), memory, SETTINGS)  # wants 3 for one tick
    made, _ = run(later(idle, 210.0), 280.0, memory)
    assert {each.scorers for each in made} == {3}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backlog": (10.0, None, 10.0, 10.0)}, "offsets of 1 of 4 partitions are unknown"),
        ({"rollout": True}, "a rollout is under way"),
        ({"backlog": (5_000.0,) * 4, "rate": (100.0,) * 4}, "50 s of work wait"),
    ],
)
def test_what_keeps_a_pool_from_shrinking(changes: dict[str, object], words: str) -> None:
    idle = dataclasses.replace(CALM, rate=(125.0,) * 4, backlog=(10.0,) * 4)
    _, memory = run(idle, 280.0, Memory())
    seen = later(idle, 320.0, **changes)
    decision, _ = decide(seen, memory, SETTINGS)
    assert decision.reason == f"hold: 1 would do, but {words}"
    assert decision.scorers == 3


def test_the_hold_time_starts_anew_after_a_gap() -> None:
    idle = dataclasses.replace(CALM, rate=(125.0,) * 4, backlog=(10.0,) * 4)
    _, memory = run(idle, 200.0, Memory())
    decision, _ = decide(later(idle, 400.0), memory, SETTINGS)
    assert decision.reason == "hold: 1 would do, but 0 of 300 s are watched"


def test_partitions_that_were_not_read_are_assumed_to_be_like_the_others() -> None:
    _, memory = decide(CALM, Memory(), SETTINGS)
    half = later(CALM, 5.0, rate=(5_000.0, 5_000.0, None, None))
    decision, _ = decide(half, memory, SETTINGS)
    assert decision.scorers >= 27  # 20 scorers of work, not 10


def test_grows_blindly_where_offsets_are_unknown_and_the_scorers_saturated() -> None:
    _, memory = decide(CALM, Memory(), SETTINGS)
    dark = {"backlog": (None,) * 4, "rate": (None,) * 4, "busy": (0.99,) * 3}
    made: list[Decision] = []
    for step in range(1, 5):
        decision, memory = decide(later(CALM, 5.0 * step, **dark), memory, SETTINGS)
        made.append(decision)
    assert [each.scorers for each in made] == [3, 3, 5, 5]  # 1.5 * 3, once until it shows again
    assert made[2].reason == "grow: offsets unknown for 15 s and scorers 99 % busy"
    assert made[0].reason == "hold: offsets unknown for 5 s"


def test_does_not_grow_blindly_while_scorers_are_starting() -> None:
    _, memory = decide(CALM, Memory(), SETTINGS)
    dark = {"backlog": (None,) * 4, "rate": (None,) * 4, "busy": (0.99,), "pending_age_s": (1.0,)}
    for step in range(1, 9):
        decision, memory = decide(later(CALM, 5.0 * step, **dark), memory, SETTINGS)
        assert decision.scorers == 3


def test_a_stale_reading_counts_as_unknown() -> None:
    _, memory = decide(CALM, Memory(), SETTINGS)
    stale = later(CALM, 5.0, read_t=CALM.read_t, backlog=(1e6,) * 4)
    decision, _ = decide(stale, memory, SETTINGS)
    assert decision == Decision(3, "hold: offsets unknown for 5 s", "hold", 3)


def test_a_dry_run_says_once_what_it_would_do_and_keeps_the_pool() -> None:
    dry = dataclasses.replace(SETTINGS, dry_run=True)
    flood = dataclasses.replace(CALM, rate=(5_000.0,) * 4)
    first, memory = decide(flood, Memory(), dry)
    assert (first.scorers, first.kind) == (3, "grow")
    assert first.reason.startswith("dry run: would grow from 3 to 48; ")
    second, _ = decide(later(flood, 5.0), memory, dry)
    assert (second.scorers, second.kind) == (3, "hold")


def test_want_is_monotone_in_work_and_rate() -> None:
    rng = random.Random(11)
    for _ in range(3_000):
        settings = ScaleSettings(promise_s=rng.choice([1.0, 10.0, 60.0, 600.0]))
        rate, work_s = rng.expovariate(0.1), rng.choice([0.0, rng.expovariate(0.01)])
        ready = rng.randrange(1, 40)
        pending = tuple(rng.uniform(0, 40) for _ in range(rng.randrange(0, 4)))
        start = rng.choice([1.0, 5.0, 30.0, 240.0])
        grow = rng.choice([1.0, 1.2, 1.5])

        def wants(rate: float, work_s: float) -> int:
            load = Load(rate, grow * rate, work_s, ready, pending)  # noqa: B023
            return want(load, horizon_s=start, start=start, settings=settings).scorers  # noqa: B023

        more = rng.uniform(1.0, 2.0)
        assert wants(rate * more, work_s) >= wants(rate, work_s)
        assert wants(rate, work_s * more) >= wants(rate, work_s)


def test_whatever_happens_the_promises_of_the_rule_hold() -> None:
    """Within bounds; never down on unknown or stale; no down below an up within T_hold."""
    for seed in range(12):
        rng = random.Random(seed)
        settings = ScaleSettings(scorers_min=rng.choice([1, 3]), scorers_max=24)
        memory, before = Memory(), None
        seen = dataclasses.replace(CALM, ready=4)
        ups: list[tuple[float, int]] = []
        rate = 500.0
        for tick in range(600):
            t = 1_000.0 + 5.0 * tick
            rate = min(4_000.0, max(1.0, rate * rng.choice([0.2, 0.9, 1.0, 1.1, 3.0])))
            known = rng.random() < 0.8
            backlog = tuple(rate * rng.random() if known else None for _ in range(4))
            read_t = t if rng.random() < 0.9 else seen.read_t
            stale = read_t <= seen.read_t
            seen = dataclasses.replace(
                seen, t=t, read_t=read_t, backlog=backlog, rate=(rate,) * 4, starts_s=(10.0,)
            )
            decision, memory = decide(seen, memory, settings)
            assert settings.scorers_min <= decision.scorers <= settings.scorers_max
            assert decision.reason.partition(":")[0] == decision.kind
            if before is not None and decision.scorers < before:
                assert known, seed
                assert not stale, seed
                for at, n in ups:  # T_hold is 300 s: three starts of 10 s are less
                    assert decision.scorers >= n or t - at >= 295.0, (seed, tick)
            if before is not None and decision.scorers > before:
                ups.append((t, decision.scorers))
            before = decision.scorers
            seen = dataclasses.replace(seen, ready=max(1, decision.scorers))
        assert ups, seed
        assert len(memory.wants) <= 61
        assert len(memory.rates) <= 61
