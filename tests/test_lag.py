"""Goal: a partition gets the word an operator would give it, and unknown is never taken for zero.

Method: hand-written histories of positions, one reading a second; seeded random ones for bounds.
"""

import random
from collections.abc import Callable

import pytest

from raywatch.cluster.lag import (
    ENDS_MAX,
    LagSettings,
    LagWindow,
    back_s,
    lag_at_least_s,
    lag_records,
    lag_s,
    rates,
    say_s,
    verdict,
)

Position = Callable[[int], int | None]


def window(seconds: int, committed: Position, end: Position, low: int = 0) -> LagWindow:
    made = LagWindow()
    for t in range(seconds + 1):
        made.add(float(t), committed(t), end(t), low)
    return made


def test_unknown_before_the_first_reading() -> None:
    empty = LagWindow()
    assert verdict(empty, 0.0).state == "unknown"
    assert lag_records(empty, 0.0) is None
    assert lag_s(empty, 0.0) is None
    assert rates(empty) == (None, None)


def test_a_partition_that_never_committed_is_unknown_and_not_zero() -> None:
    seen = window(30, lambda _: None, lambda t: 100 * t)
    assert verdict(seen, 30.0).state == "unknown"
    assert lag_records(seen, 30.0) is None


def test_a_missed_reading_is_forgiven_and_ten_seconds_are_not() -> None:
    seen = window(10, lambda t: 10 * t, lambda t: 10 * t)
    for t in range(11, 26):
        seen.add(float(t), None, None, None)
    assert verdict(seen, 12.0).state == "ok"
    assert verdict(seen, 20.5).state == "unknown"
    assert "10 s" in verdict(seen, 20.5).words
    assert lag_records(seen, 20.5) is None
    assert lag_s(seen, 20.5) is None


def test_lag_in_seconds_is_when_the_committed_offset_was_the_end() -> None:
    seen = window(60, lambda t: max(0, 100 * (t - 7) + 50), lambda t: 100 * t)
    assert lag_records(seen, 60.0) == 650
    assert lag_s(seen, 60.0) == pytest.approx(6.5)  # 100 records/s arrive, 650 wait


def test_lag_in_seconds_grows_while_nothing_arrives() -> None:
    seen = window(50, lambda t: min(1_000, 100 * t), lambda t: min(2_000, 100 * t))
    assert lag_s(seen, 50.0) == pytest.approx(40.0)  # offset 1000 arrived after second 10


def test_lag_from_before_the_first_reading_is_bounded_below_and_judged_by_the_rate() -> None:
    seen = window(30, lambda t: 10 * t, lambda t: 5_000 + 10 * t)
    assert lag_s(seen, 30.0) is None
    assert lag_at_least_s(seen, 30.0) == pytest.approx(30.0)
    assert verdict(seen, 30.0).state == "slow"
    assert "about 8 min behind" in verdict(seen, 30.0).words  # 5,000 records at 10 a second
    nothing_comes = window(30, lambda t: 10 * t, lambda _: 5_000)
    assert "about 30 s behind" in verdict(nothing_comes, 30.0).words
    # A supervisor that has just begun says neither that all is well nor that it is not.
    at_once = window(0, lambda _: 0, lambda _: 5_000)
    assert verdict(at_once, 0.0).state == "unknown"
    after_2s = window(2, lambda t: 10 * t, lambda t: 5_000 + 700 * t)
    assert verdict(after_2s, 2.0).state == "ok", "at that rate they came within 10 s"
    after_2s = window(2, lambda t: 10 * t, lambda t: 5_000 + 400 * t)
    assert verdict(after_2s, 2.0).state == "slow"
    a_marker = window(2, lambda _: 10, lambda _: 11)
    assert verdict(a_marker, 2.0).state == "ok"


def test_a_commit_ahead_of_the_end_that_was_read_before_it_is_no_negative_lag() -> None:
    seen = window(20, lambda t: 10 * t + 3, lambda t: 10 * t)
    assert lag_records(seen, 20.0) == 0
    assert lag_s(seen, 20.0) == 0.0
    assert verdict(seen, 20.0).state == "ok"


def test_a_committed_offset_beyond_a_dead_end_is_no_zero_lag() -> None:
    seen = window(90, lambda _: 500, lambda t: 500 if t < 10 else 4)
    assert verdict(seen, 90.0).state == "rewound"
    assert "made anew" in verdict(seen, 90.0).words


def test_records_that_retention_removed_do_not_wait() -> None:
    seen = window(5, lambda _: 100, lambda _: 1_000, low=900)
    assert lag_records(seen, 5.0) == 100


def test_a_transaction_marker_at_the_end_is_ok_for_ever() -> None:
    seen = window(200, lambda _: 99, lambda _: 100)
    assert verdict(seen, 200.0).state == "ok"
    assert lag_s(seen, 200.0) == 0.0
    assert lag_records(seen, 200.0) == 1


def test_a_quiet_partition_is_not_stalled_by_the_first_record_after_an_hour() -> None:
    seen = window(3_600, lambda _: 99, lambda t: 100 if t < 3_599 else 150)
    assert verdict(seen, 3_600.0).state == "ok"


def test_stalled_then_stopped_while_records_wait_and_nothing_is_committed() -> None:
    seen = window(30, lambda t: 100 * min(t, 5), lambda t: 100 * t)
    assert verdict(seen, 24.0).state == "slow"
    assert verdict(seen, 30.0).state == "stalled"
    assert verdict(seen, 30.0).words == "stalled at offset 500 for 24 s, 2,500 records wait"
    long = window(90, lambda t: 100 * min(t, 5), lambda t: 100 * t)
    assert verdict(long, 90.0).state == "stopped"


def test_stopped_at_once_where_no_owner_holds_it() -> None:
    seen = window(20, lambda t: 100 * min(t, 5), lambda t: 100 * t)
    assert verdict(seen, 20.0, owned=True).state == "slow"
    assert verdict(seen, 20.0, owned=None).state == "slow"
    assert verdict(seen, 20.0, owned=False).state == "stopped"


def test_slow_while_it_moves_but_the_oldest_record_waits_too_long() -> None:
    seen = window(60, lambda t: max(0, 100 * (t - 15)), lambda t: 100 * t)
    assert verdict(seen, 60.0).state == "slow"
    assert verdict(seen, 60.0, LagSettings(slow_s=16.0)).state == "ok"


def test_rewound_until_the_position_has_come_up_again() -> None:
    def committed(t: int) -> int:
        return 100 * t if t < 20 else 100 * (t - 10)

    assert verdict(window(25, committed, lambda t: 100 * t), 25.0).state == "rewound"
    assert verdict(window(29, committed, lambda t: 100 * t), 29.0).state == "ok"  # 1900 again


def test_a_deliberate_rewind_is_normal_after_five_minutes() -> None:
    seen = window(400, lambda t: 10_000 if t < 20 else t, lambda t: 10_000 + t)
    assert verdict(seen, 400.0).state == "slow"


def test_rates_are_taken_over_fifteen_seconds() -> None:
    seen = window(60, lambda t: 50 * t, lambda t: 10 * t if t < 40 else 400 + 200 * (t - 40))
    assert rates(seen) == (200.0, 50.0)


def test_time_until_back_follows_from_both_rates() -> None:
    seen = window(60, lambda t: 150 * t, lambda t: 10_000 + 50 * t)
    assert back_s(seen, 60.0) == pytest.approx(40.0)  # 4000 wait, 100 fewer each second
    growing = window(60, lambda t: 50 * t, lambda t: 10_000 + 150 * t)
    assert back_s(growing, 60.0) is None


def test_a_long_history_stays_bounded_and_right() -> None:
    rng = random.Random(3)
    end, ends = 0, [0]
    seen = LagWindow()
    seen.add(0.0, 0, 0, 0)
    for t in range(1, 20_000):
        end += rng.randrange(0, 200)
        ends.append(end)
        seen.add(float(t), 0, end, 0)
    assert len(seen._end) <= ENDS_MAX  # pyright: ignore[reportPrivateUsage]
    assert len(seen.recent()) <= 17
    now = 19_999.0
    for age in (5, 60, 1_000, 15_000):
        seen.committed = ends[-1 - age]
        exact = lag_s(seen, now)
        assert exact is not None
        assert exact == pytest.approx(age, rel=0.05, abs=2.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.84, "0.8 s"), (40, "40 s"), (200, "3 min"), (7_500, "2 h 5 min"), (260_000, "3 d")],
)
def test_durations_are_said_like_on_the_page(seconds: float, words: str) -> None:
    assert say_s(seconds) == words
