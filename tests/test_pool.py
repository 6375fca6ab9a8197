"""Goal: a batch gets its scores from exactly the version it was made for, whoever dies or hangs.

Method: members written by hand, whose answers the test gives or withholds, and a clock that only
the test moves.
"""

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from raywatch.actors.clock import VirtualClock
from raywatch.actors.pool import (
    BUSY_FACTOR,
    SHUN_MAX_S,
    SHUN_S,
    LocalPool,
    Member,
    Members,
    RemotePool,
    ScorerGone,
)
from raywatch.models.registry import build, shipped
from raywatch.models.scorer import FINE, Level, Scores, Segments

TIMEOUT_S = 5.0
KEYS = 8


def batch(levels: tuple[Level, ...] = (FINE,)) -> Segments:
    """Two new values of each of eight keys, on every level."""
    fresh = np.full((len(levels), KEYS), 2, np.int32)
    size = sum(KEYS * (level.history + 2) for level in levels)
    values = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    return Segments(1, levels, fresh, values)


def scores(version: str = "m@1") -> Scores:
    none = np.zeros(0, np.float32)
    return Scores({}, none, np.zeros(0, np.int32), version)


class Hand:
    """A member whose answers the test gives."""

    def __init__(self, name: str, version: str = "m@1") -> None:
        self.name, self.version = name, version
        self.answers: list[Future[Scores]] = []
        self.payloads: list[Any] = []
        self.gone = False

    def score(self, payload: Any) -> "Future[Scores]":
        if self.gone:
            raise ScorerGone("ActorDiedError")
        self.payloads.append(payload)
        self.answers.append(Future())
        return self.answers[-1]


class Bench:
    """Members, one pool of one lane, and a clock."""

    def __init__(self, *hands: Hand) -> None:
        self.clock = VirtualClock()
        self.members = Members(self.clock)
        self.seat(*hands)
        self.pool = RemotePool(self.members, self.clock, timeout_s=TIMEOUT_S)

    def seat(self, *hands: Hand) -> None:
        members: dict[str, Member] = {hand.name: hand for hand in hands}
        self.members.replace(members)


def test_a_local_pool_scores_with_the_version_that_was_asked_for() -> None:
    scorers = {s.version: s for s in (build(shipped("robustz")), build(shipped("lagbank")))}
    pool = LocalPool(scorers)
    assert len(scorers) == 2
    tickets = {v: pool.submit(batch(scorer.levels), v) for v, scorer in scorers.items()}
    for version, ticket in tickets.items():
        found = pool.result(ticket, 0.0)
        assert found is not None
        assert found.version == ticket.version == version
    version, scorer = next(iter(scorers.items()))
    ticket = pool.submit(batch(scorer.levels), version)
    pool.forget()
    with pytest.raises(KeyError):
        pool.result(ticket, 0.0)


def test_the_least_loaded_member_is_asked() -> None:
    a, b = Hand("a"), Hand("b")
    bench = Bench(a, b)
    tickets = [bench.pool.submit(batch(), "m@1") for _ in range(4)]
    assert (len(a.answers), len(b.answers)) == (2, 2)
    b.answers[0].set_result(scores())
    assert bench.pool.result(tickets[1], 0.0) is not None
    bench.pool.submit(batch(), "m@1")
    assert (len(a.answers), len(b.answers)) == (2, 3)
    assert bench.members.loads() == {"a": 2, "b": 2}


def test_load_counts_over_all_lanes_of_an_owner() -> None:
    a, b = Hand("a"), Hand("b")
    bench = Bench(a, b)
    other = RemotePool(bench.members, bench.clock, timeout_s=TIMEOUT_S)
    bench.pool.submit(batch(), "m@1")
    other.submit(batch(), "m@1")
    assert (len(a.answers), len(b.answers)) == (1, 1)


def test_a_batch_of_a_dead_member_goes_to_another_with_the_same_bytes() -> None:
    a, b = Hand("a"), Hand("b")
    bench = Bench(a, b)
    segments = batch()
    ticket = bench.pool.submit(segments, "m@1")
    a.answers[0].set_exception(ScorerGone("ActorDiedError"))
    assert bench.pool.result(ticket, 0.0) is None  # noticed
    assert bench.pool.result(ticket, 0.0) is None  # sent again
    assert b.payloads == [segments]
    answer = scores()
    b.answers[0].set_result(answer)
    assert bench.pool.result(ticket, 0.0) is answer
    assert bench.pool.sent_again == 1
    assert bench.members.failures() == {"a": "ActorDiedError"}
    assert bench.members.loads() == {}


def test_a_member_that_is_dead_before_it_is_asked_costs_one_look() -> None:
    a, b = Hand("a"), Hand("b")
    a.gone = True
    bench = Bench(a, b)
    ticket = bench.pool.submit(batch(), "m@1")
    assert not b.answers
    assert bench.pool.result(ticket, 0.0) is None
    b.answers[0].set_result(scores())
    assert bench.pool.result(ticket, 0.0) is not None


def test_a_member_that_hangs_is_timed_out_and_its_late_answer_is_not_used() -> None:
    a, b = Hand("a"), Hand("b")
    bench = Bench(a, b)
    ticket = bench.pool.submit(batch(), "m@1")
    bench.clock.advance(TIMEOUT_S - 0.1)
    assert bench.pool.result(ticket, 0.0) is None
    assert not b.answers
    bench.clock.advance(0.2)
    assert bench.pool.result(ticket, 0.0) is None
    assert bench.pool.result(ticket, 0.0) is None
    late, timely = scores(), scores()
    a.answers[0].set_result(late)
    b.answers[0].set_result(timely)
    assert bench.pool.result(ticket, 0.0) is timely
    assert bench.members.failures() == {"a": "no answer in 5.1 s"}


def test_an_answer_counts_however_late_it_is_if_nobody_looked_before() -> None:
    """An owner that was frozen itself must not blame its scorers."""
    a = Hand("a")
    bench = Bench(a)
    ticket = bench.pool.submit(batch(), "m@1")
    a.answers[0].set_result(scores())
    bench.clock.advance(1_000.0)
    assert bench.pool.result(ticket, 0.0) is not None
    assert bench.pool.sent_again == 0


def test_a_member_that_answers_others_is_busy_and_not_hung() -> None:
    a, b = Hand("a"), Hand("b")
    bench = Bench(a)
    first, second = (bench.pool.submit(batch(), "m@1") for _ in range(2))
    bench.seat(a, b)
    bench.clock.advance(TIMEOUT_S - 1.0)
    a.answers[0].set_result(scores())
    assert bench.pool.result(first, 0.0) is not None
    bench.clock.advance(2.0)  # the second one waits for 6 s by now, the last answer is 2 s old
    assert bench.pool.result(second, 0.0) is None
    assert bench.pool.sent_again == 0
    bench.clock.advance(TIMEOUT_S)  # 7 s without an answer to anybody
    assert bench.pool.result(second, 0.0) is None
    assert bench.pool.sent_again == 1


def test_even_a_busy_member_may_keep_a_batch_only_so_long() -> None:
    a, b = Hand("a"), Hand("b")
    bench = Bench(a)
    held = bench.pool.submit(batch(), "m@1")
    bench.seat(a)
    for _ in range(int(BUSY_FACTOR) + 1):
        other = bench.pool.submit(batch(), "m@1")
        bench.clock.advance(TIMEOUT_S - 0.1)
        a.answers[-1].set_result(scores())
        assert bench.pool.result(other, 0.0) is not None
    bench.seat(a, b)
    assert bench.pool.result(held, 0.0) is None
    assert bench.pool.sent_again == 1


def test_who_failed_is_asked_again_only_after_a_while_that_doubles() -> None:
    a, b = Hand("a"), Hand("b")
    bench = Bench(a, b)

    def asked_next() -> str:
        member = bench.members.take("m@1")
        assert member is not None
        bench.members.give_back(member.name)
        return member.name

    assert asked_next() == "a"
    pause_s = SHUN_S
    for _ in range(8):
        bench.members.take("m@1")
        bench.members.give_back("a", failed="died")
        bench.clock.advance(pause_s - 0.01)
        assert asked_next() == "b"
        bench.clock.advance(0.02)
        pause_s = min(SHUN_MAX_S, 2 * pause_s)
        member = bench.members.take("m@1")
        assert member is not None
        assert member.name == "a"
        bench.members.give_back("a", failed="died")
        pause_s = min(SHUN_MAX_S, 2 * pause_s)
        bench.clock.advance(pause_s / 2 + 0.01)
        pause_s = min(SHUN_MAX_S, pause_s)
    assert pause_s == SHUN_MAX_S


def test_an_answer_ends_the_doubling() -> None:
    a, b = Hand("a"), Hand("b")
    bench = Bench(a, b)
    for _ in range(5):
        bench.members.give_back("a", failed="died")
    bench.members.give_back("a")
    bench.members.give_back("a", failed="died")
    bench.clock.advance(SHUN_S + 0.01)
    member = bench.members.take("m@1")
    assert member is not None
    assert member.name == "a"


def test_the_only_member_is_asked_again_at_once() -> None:
    a = Hand("a")
    bench = Bench(a)
    ticket = bench.pool.submit(batch(), "m@1")
    a.answers[0].set_exception(ScorerGone("ActorUnavailableError"))
    assert bench.pool.result(ticket, 0.0) is None
    assert bench.pool.result(ticket, 0.0) is None
    assert len(a.answers) == 2


def test_a_batch_is_never_scored_by_another_version() -> None:
    old, new = Hand("old", "m@1"), Hand("new", "m@2")
    bench = Bench(old, new)
    ticket = bench.pool.submit(batch(), "m@1")
    old.answers[0].set_exception(ScorerGone("died"))
    bench.seat(new)
    for _ in range(3):
        assert bench.pool.result(ticket, 0.01) is None
    assert not new.answers
    heir = Hand("heir", "m@1")
    bench.seat(new, heir)
    assert bench.pool.result(ticket, 0.0) is None
    heir.answers[0].set_result(scores())
    assert bench.pool.result(ticket, 0.0) is not None


def test_without_members_a_batch_waits_until_one_comes() -> None:
    bench = Bench()
    ticket = bench.pool.submit(batch(), "m@1")
    before = bench.clock.monotonic()
    assert bench.pool.result(ticket, 0.05) is None
    assert 0.0 < bench.clock.monotonic() - before <= 0.05
    a = Hand("a")
    bench.seat(a)
    assert bench.pool.result(ticket, 0.0) is None
    a.answers[0].set_result(scores())
    assert bench.pool.result(ticket, 0.0) is not None
    assert bench.pool.sent_again == 0  # nobody failed


def test_what_the_model_raised_is_a_bug_and_not_another_members_work() -> None:
    a, b = Hand("a"), Hand("b")
    bench = Bench(a, b)
    ticket = bench.pool.submit(batch(), "m@1")
    a.answers[0].set_exception(ValueError("shapes"))
    with pytest.raises(ValueError, match="shapes"):
        bench.pool.result(ticket, 0.0)
    assert not b.answers


def test_forgotten_batches_free_their_members() -> None:
    a, b = Hand("a"), Hand("b")
    bench = Bench(a, b)
    for _ in range(4):
        bench.pool.submit(batch(), "m@1")
    bench.pool.forget()
    assert bench.members.loads() == {}
    ticket = bench.pool.submit(batch(), "m@1")
    a.answers[-1].set_result(scores())
    assert bench.pool.result(ticket, 0.0) is not None


def test_members_that_left_are_remembered_only_while_they_hold_a_batch() -> None:
    a, b = Hand("a"), Hand("b")
    bench = Bench(a, b)
    ticket = bench.pool.submit(batch(), "m@1")
    bench.seat(b)
    assert bench.members.loads() == {"a": 1}
    a.answers[0].set_result(scores())  # what it was given before, it may still answer
    assert bench.pool.result(ticket, 0.0) is not None
    assert bench.members.loads() == {}
    bench.members.give_back("a", failed="died")
    assert bench.members.failures() == {}


def test_a_batch_is_wrapped_once_for_all_its_tries() -> None:
    wrapped: list[Segments] = []

    def wrap(segments: Segments) -> str:
        wrapped.append(segments)
        return f"ref-{len(wrapped)}"

    clock = VirtualClock()
    a, b = Hand("a"), Hand("b")
    members = Members(clock, wrap)
    members.replace({"a": a, "b": b})
    pool = RemotePool(members, clock, timeout_s=TIMEOUT_S)
    ticket = pool.submit(batch(), "m@1")
    a.answers[0].set_exception(ScorerGone("died"))
    pool.result(ticket, 0.0)
    pool.result(ticket, 0.0)
    assert a.payloads == b.payloads == ["ref-1"]
