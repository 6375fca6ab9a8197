"""Goal: pages know what a shelf of as many rows would know, grow with use, and come back.

Method: random codes of several keys against `log_shelf.find` over arrays of full size, which is
what pages stand for; the directory against its own rules; states that were broken.
"""

from typing import Any

import numpy as np
import pytest

from raywatch.models import log_shelf
from raywatch.models.log_shelf import WAYS
from raywatch.models.pages import FREE, USED, Pages, find, leave, room

ENTRIES, KEYS = 16, 3


class Both:
    """Pages, and a shelf of full size, that are told the same."""

    def __init__(self) -> None:
        self.pages = Pages(ENTRIES, {"stamp": ((), np.int64), "own": ((2,), np.float64)})
        self.pages.reserve(KEYS)
        self.code = np.zeros((KEYS, ENTRIES * WAYS), np.uint64)
        self.stamp = np.zeros((KEYS, ENTRIES * WAYS), np.int64)

    def take(self, slot: int, code: Any, now: int) -> tuple[bool, bool]:
        """Whether each knew the code; both do from now on."""
        shelf, stamp, own = self.pages.tables()
        row, known = find(shelf.page, shelf.depth, shelf.code, stamp, slot, code)
        if row < 0:
            row = room(shelf, stamp, (stamp, own), slot, code)
        shelf.code[row], stamp[row], own[row] = code, now, float(code >> np.uint64(40))
        at, there = log_shelf.find(self.code, self.stamp, slot, code)
        self.code[slot, at], self.stamp[slot, at] = code, now
        return known, there

    def rows(self, slot: int) -> list[Any]:
        """Of each entry its codes in their order, with their own."""
        shelf, stamp, own = self.pages.tables()
        found: list[Any] = []
        for entry in range(ENTRIES):
            first = (shelf.page[slot, entry] - 1) * WAYS
            mine = [
                (int(shelf.code[row]), int(stamp[row]))
                for row in range(first, first + WAYS)
                if shelf.page[slot, entry]
                and shelf.code[row] % ENTRIES == entry
                and shelf.code[row]
            ]
            assert all(
                (own[row] == float(shelf.code[row] >> np.uint64(40))).all()
                for row in range(first, first + WAYS)
                if shelf.page[slot, entry] and shelf.code[row]
            )
            found.append(mine)
        return found

    def whole(self, slot: int) -> list[Any]:
        """The same of the shelf."""
        pairs = zip(self.code[slot].tolist(), self.stamp[slot].tolist(), strict=True)
        rows = list(pairs)
        return [
            [row for row in rows[entry * WAYS : (entry + 1) * WAYS] if row[0]]
            for entry in range(ENTRIES)
        ]


def codes(seed: int, count: int, kinds: int) -> Any:
    rng = np.random.default_rng(seed)
    return rng.integers(1, 1 << 63, kinds).astype(np.uint64)[rng.integers(0, kinds, count)]


@pytest.mark.parametrize("kinds", [5, 60, 400])
def test_pages_know_what_a_shelf_knows(kinds: int) -> None:
    """Also among codes of one stamp, of which the first is forgotten."""
    both = Both()
    for n, code in enumerate(codes(1, 3_000, kinds)):
        known, there = both.take(n % KEYS, code, n // 40)
        assert known == there
    for slot in range(KEYS):
        assert both.rows(slot) == both.whole(slot)
    assert both.pages.used <= KEYS * ENTRIES
    if kinds == 5:
        assert both.pages.used == KEYS  # a page each


def test_codes_that_differ_in_their_last_bit_only_are_kept_apart() -> None:
    both = Both()
    for n in range(2 * WAYS):
        both.take(0, np.uint64((n // 2 + 1) * ENTRIES + n % 2 * 8 + 7), n)
    assert both.rows(0) == both.whole(0)
    assert [len(each) for each in both.rows(0)] == [0] * 7 + [WAYS] + [0] * 7 + [WAYS]


def test_an_empty_page_comes_back_and_what_stays_is_found() -> None:
    both = Both()
    some = np.unique(codes(2, 70, 70))
    for n, code in enumerate(some):
        both.take(1, code, n)
    assert both.pages.used >= 8
    shelf, stamp, _ = both.pages.tables()
    for number, code in enumerate(some):
        row, known = find(shelf.page, shelf.depth, shelf.code, stamp, 1, code)
        assert known
        shelf.code[row] = 0
        leave(shelf, 1, int(code % np.uint64(ENTRIES)))
        assert both.pages.used <= max(len(some) - number - 1, 0) + 4
        left = some[number + 1 :]
        assert all(find(shelf.page, shelf.depth, shelf.code, stamp, 1, each)[1] for each in left)
    assert both.pages.used == 0
    assert not shelf.page.any()


def test_pages_of_a_key_that_is_released_are_used_again_and_zeros() -> None:
    both = Both()
    for n, code in enumerate(codes(3, 300, 100)):
        both.take(0, code, n)
    before = both.pages.used
    both.pages.release([0])
    assert both.pages.used == 0
    shelf, stamp, own = both.pages.tables()
    room(shelf, stamp, (stamp, own), 1, np.uint64(9))
    page = int(shelf.page[1, 0]) - 1
    assert page < before == shelf.stock[USED]  # no new one
    assert shelf.stock[FREE] == before - 1
    rows = slice(page * WAYS, (page + 1) * WAYS)
    assert not shelf.code[rows].any()
    assert not own[rows].any()


def filled() -> Both:
    both = Both()
    for n, code in enumerate(codes(4, 600, 200)):
        both.take(n % 2 * 2, code, n)
    return both


def test_a_state_goes_on_from_what_was_saved() -> None:
    one, other = filled(), filled()
    saved = one.pages.state(np.array([2, 1, 0]))
    other.pages.load(saved, 3)
    assert other.rows(0) == one.rows(2)
    assert other.rows(1) == [[]] * ENTRIES
    again = other.pages.state(np.arange(3))
    assert all(np.array_equal(saved[name], each) for name, each in again.items())
    for n, code in enumerate(codes(5, 300, 300)):
        one.take(0, code, 1_000 + n)
        other.take(2, code, 1_000 + n)
    assert other.rows(2) == one.rows(0)


@pytest.mark.parametrize("what", ["beyond", "shared", "nobody", "deep", "shape"])
def test_a_directory_that_cannot_be_is_refused(what: str) -> None:
    pages = filled().pages
    saved = pages.state(np.arange(3))
    assert pages.fits(saved, 3)
    match what:
        case "beyond":
            saved["page"][0, 0] = saved["depth"].shape[0] + 1
        case "shared":
            saved["page"][1] = saved["page"][0]
        case "nobody":
            saved["page"][0] = 0
        case "deep":
            saved["depth"][0] = 60
        case _:
            saved["own"] = saved["own"][:-1]
    assert not pages.fits(saved, 3)
