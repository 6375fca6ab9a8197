"""Goal: no offset is ever committable while an earlier one is in flight.

Method: hand-written histories, then every completion order of five batches.
"""

import itertools

import pytest

from raywatch.actors.ledger import Ledger


def test_committable_waits_for_the_oldest_batch() -> None:
    ledger = Ledger(0)
    ledger.begin(0, 10)
    ledger.begin(10, 20)

    assert ledger.done(10) == 0
    assert ledger.done(0) == 20
    assert ledger.in_flight == 0


def test_holes_between_batches_are_passed_over() -> None:
    ledger = Ledger(5)
    ledger.begin(7, 9)  # 5 and 6 are markers
    ledger.begin(12, 13)

    assert ledger.done(7) == 9
    assert ledger.done(12) == 13


def test_markers_behind_the_last_record_are_committable_at_once_when_nothing_is_in_flight() -> None:
    ledger = Ledger(3)

    assert ledger.skip(8) == 8
    assert ledger.skip(8) == 8


def test_markers_behind_a_batch_in_flight_wait_for_it() -> None:
    ledger = Ledger(0)
    ledger.begin(0, 4)

    assert ledger.skip(6) == 0
    assert ledger.done(0) == 6


def test_a_range_cannot_go_back() -> None:
    ledger = Ledger(10)

    with pytest.raises(AssertionError, match="went back: 9 < 10"):
        ledger.begin(9, 12)


def test_every_completion_order_of_five_batches_commits_the_longest_finished_prefix() -> None:
    for order in itertools.permutations(range(5)):
        ledger = Ledger(0)
        for index in range(5):
            ledger.begin(index * 10, index * 10 + 10)
        finished: set[int] = set()
        for index in order:
            finished.add(index)
            prefix = next(i for i in range(6) if i not in finished)
            assert ledger.done(index * 10) == prefix * 10
