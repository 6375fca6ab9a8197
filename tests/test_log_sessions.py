"""Goal: a session ends when it should, and is judged by those that ended before it, as stated.

Method: streams whose ends are known by construction; scores against a slow reckoning with the
formula at the head of log_sessions.py.
"""

import math
from typing import Any

import numpy as np
import pytest

from raywatch.models import log_sessions as kernel
from raywatch.models.logs import _room
from raywatch.models.pages import Pages

IDLE_MS = 1_000
NOTHING = np.frombuffer(b"\0", np.uint8)


def followed(
    at: Any, ids: Any, kinds: Any, state: kernel.Sessions | None = None
) -> tuple[kernel.Ends, Any, kernel.Sessions]:
    """Take records of one service: sessions that ended, `early`, the state behind them."""
    if state is None:
        pages = [Pages(entries, rows) for entries, rows in kernel.PAGES.values()]
        for each in pages:
            each.reserve(1)
        own: Any = (np.zeros((1, *tail), kind) for tail, kind in kernel.LAYOUT.values())
        state = kernel.Sessions(*(a for each in pages for a in each.tables()), *own)
    count = len(at)
    early, ends = np.empty(count), _room(kernel.ENDS_MAX * count)
    none, size = np.zeros(count, np.int64), np.zeros(count, np.int32)
    done = kernel.follow(
        size, np.asarray(at, np.int64), np.asarray(ids, np.int64), np.asarray(kinds, np.uint64),
        kernel.Texts(NOTHING, none, size, none, size, 0), IDLE_MS, state, early, ends,
    )  # fmt: skip
    return kernel.Ends(*(each[:done] for each in ends)), early, state


def test_a_session_ends_by_its_silence() -> None:
    at = np.r_[0, 10, 20, np.arange(2_000, 2_000 + kernel.SESSIONS)]
    ids = np.r_[5, 5, 5, np.full(kernel.SESSIONS, 6)]
    ends, _, _ = followed(at, ids, np.full(len(at), 9))
    assert ends.row[:, kernel.ID].tolist() == [5]
    assert ends.row[:, kernel.RECORDS].tolist() == [3]
    assert ends.row[0, kernel.NOTICED] <= 3 + kernel.SESSIONS // kernel.SWEEP


def test_a_session_that_returns_after_its_silence_is_another_one() -> None:
    ends, _, _ = followed([0, 900, 1_901], [5, 5, 5], [9, 9, 9])
    assert ends.row[:, [kernel.NOTICED, kernel.RECORDS]].tolist() == [[2, 2]]
    ends, _, _ = followed([0, 900, 1_900], [5, 5, 5], [9, 9, 9])
    assert len(ends.row) == 0  # silent for as long as is allowed


def test_a_session_without_end_is_ended() -> None:
    count = kernel.RECORDS_MAX + 1
    ends, _, _ = followed(np.zeros(count), np.full(count, 5), np.full(count, 9))
    assert ends.row[:, [kernel.NOTICED, kernel.RECORDS]].tolist() == [[count - 1, count - 1]]
    assert ends.row[0, kernel.COUNT] == 255  # that, or more


def test_of_too_many_the_longest_silent_ends() -> None:
    ways = 8
    sets = kernel.SESSIONS // ways
    ids = 1 + sets * np.arange(ways + 1)  # all of one set
    ends, _, _ = followed(np.zeros(ways + 1), ids, np.full(ways + 1, 9))
    assert ends.row[:, kernel.ID].tolist() == [1]
    assert ends.row[:, kernel.NOTICED].tolist() == [ways]


def test_a_record_without_a_session_ends_others_and_begins_none() -> None:
    _, early, state = followed([0, 1, 2], [0, 0, 0], [9, 9, 9])
    assert np.isnan(early).all()
    assert not state.session.code.any()
    assert not state.session.page.any()
    many = np.arange(kernel.SESSIONS) + 5_000
    ends, _, _ = followed(np.r_[0, many], np.r_[5, np.zeros(len(many))], np.full(len(many) + 1, 9))
    assert ends.row[:, kernel.ID].tolist() == [5]


def step_of(count: int) -> int:
    return sum(count >= each for each in kernel.STEPS)


def slow(sessions: list[dict[int, int]], kinds: list[int]) -> list[float]:
    """The score of each session by those before it, all of which teach."""
    scores: list[float] = []
    for number, counts in enumerate(sessions):
        rare: list[float] = []
        for kind in kinds:
            mine = step_of(counts.get(kind, 0))
            past = [step_of(each.get(kind, 0)) for each in sessions[:number]]
            fewer, more = sum(p <= mine for p in past), sum(p >= mine for p in past)
            rare.append(max(-math.log10((min(fewer, more) + 0.5) / (number + 1.0)), 0.0))
        # 64 kinds are counted: those that nobody had yet are as usual as can be.
        idle = max(-math.log10((number + 0.5) / (number + 1.0)), 0.0)
        scores.append(max(rare) + 0.1 * (sum(rare) + idle * (kernel.KINDS - len(kinds))))
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_the_score_is_what_it_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = list(range(11, 17))
    sessions: list[dict[int, int]] = []
    rows: list[tuple[int, int, int]] = []
    for number in range(int(kernel.YOUNG) - 20):
        counts = {
            kind: int(rng.geometric(0.2)) for kind in kinds if rng.random() < 0.7 or kind == 11
        }
        sessions.append(counts)
        at = 3_000 * number
        rows += [(at, number + 1, kind) for kind, count in counts.items() for _ in range(count)]
    at, ids, codes = zip(*rows, strict=True)
    tail = np.arange(kernel.SESSIONS) + at[-1] + 5_000
    ends, early, _ = followed(
        np.r_[at, tail], np.r_[ids, np.full(len(tail), 10**6)], np.r_[codes, np.full(len(tail), 11)]
    )
    by = np.argsort(ends.row[:, kernel.ID])
    assert ends.row[by, kernel.ID].tolist() == list(range(1, len(sessions) + 1))
    assert (np.diff(ends.row[:, kernel.ID]) > 0).all()  # in their order: the reckoning needs it
    np.testing.assert_allclose(ends.score, slow(sessions, kinds), rtol=1e-12)
    assert np.isnan(early).all()  # the population is young


def test_what_is_far_from_all_others_teaches_nothing() -> None:
    """And what is a little strange teaches while it is rare."""
    rng = np.random.default_rng(0)
    rows: list[tuple[int, int, int]] = []
    number = 0

    def add(counts: dict[int, int]) -> None:
        nonlocal number
        number += 1
        rows.extend((3_000 * number, number, k) for k, c in counts.items() for _ in range(c))

    for _ in range(400):
        add({11: 1, 12: int(rng.integers(1, 3)), 13: 1})
    for _ in range(40):
        add({20: 200, 21: 200, 22: 200})  # an incident
    at, ids, codes = zip(*rows, strict=True)
    ends, early, state = followed(at, ids, codes)
    scores = ends.score[ends.row[:, kernel.ID] > 401]
    assert len(scores) >= 35
    assert scores.min() == scores.max() > 4.0  # the fortieth is as strange as the first
    apart = ends.row[:, kernel.APART] == 1
    assert apart[ends.row[:, kernel.ID] > 401].all()
    assert not apart[ends.row[:, kernel.ID] <= kernel.YOUNG].any()
    assert state.sums[0, kernel.TOTAL] == pytest.approx(400.0, abs=2)
    assert np.nanmax(early[-200:]) > 2.5  # said while it runs
