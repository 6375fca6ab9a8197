"""Goal: an outage does not become usual by going on, a lasting change does; what failed is seen.

Method: calls of one edge, a second apart, with an outage, failures, clocks and durations of all
kinds in them; statuses of all exporters through the decoder.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classes import written
from test_traces import NOBODY, RECORD, ROWS, SLOTS, fresh, given, part_of

from raywatch.actors.decode import decode
from raywatch.actors.failures import failed
from raywatch.actors.files import read_file
from raywatch.actors.ports import Fetched
from raywatch.actors.scan import hash_of
from raywatch.actors.trace_words import edge_of, numbers
from raywatch.models import trace_edges as edges
from raywatch.models.traces_kernel import HOLD_CALLS, HOLD_MS, Calls


def one_edge(count: int, seed: int = 1) -> Calls:
    """Calls of one edge, a second apart, of which one in a hundred fails."""
    rng = np.random.default_rng(seed)
    duration, fails = np.exp(rng.normal(3.0, 0.4, count)), rng.random(count) < 0.01
    words = np.ones((count, 1), np.int64)
    rows, time_ms = np.zeros(count, np.int32), 10**12 + 1_000 * np.arange(count)
    return Calls(rows, time_ms, words, duration, fails.astype(np.uint8))


OUTAGE = 4_000
HOURS = HOLD_MS // 1_000  # calls a second apart


def test_an_outage_does_not_become_usual_before_its_time() -> None:
    some = one_edge(OUTAGE + HOURS + 3_000)
    here = slice(OUTAGE, None)
    some.duration[here] *= 5.0
    some.failed[here] = 1
    why = (out := fresh().observe(some, NOBODY)).why
    assert np.exp(why[OUTAGE, edges.USUAL]) == pytest.approx(np.exp(3.0), rel=0.1)
    held = slice(OUTAGE + 50, OUTAGE + HOURS - 50)
    assert HOURS > HOLD_CALLS
    assert np.ptp(why[held, edges.USUAL]) == 0.0  # nothing was learnt,
    assert why[held, edges.RATE_USUAL].max() < 0.02
    assert (out.rare[held] >= 2.5).all()  # and it went on being strange
    assert (out.off[held] == 1).all()
    later = slice(OUTAGE + HOURS + 1_000, None)  # then it is what the edge is like
    assert np.exp(why[-1, edges.USUAL]) == pytest.approx(5.0 * np.exp(3.0), rel=0.1)
    assert why[-1, edges.RATE_USUAL] > 0.9
    assert (out.rare[later] < 3.0).mean() > 0.99


def test_a_hold_needs_calls_and_time() -> None:
    some = one_edge(OUTAGE + 3 * HOLD_CALLS)
    some.duration[OUTAGE:] *= 5.0
    quick = fresh().observe(some, NOBODY)  # 3,000 calls in 50 minutes
    assert np.exp(quick.why[-1, edges.USUAL]) == pytest.approx(np.exp(3.0), rel=0.1)
    some.time_ms[OUTAGE + 100 :] += 2 * HOLD_MS  # a clock that jumps
    jumped = fresh().observe(some, NOBODY).why[:, edges.USUAL]
    usual = jumped[OUTAGE + HOLD_CALLS - 50]
    assert np.exp(usual) == pytest.approx(np.exp(3.0), rel=0.1)
    assert np.exp(jumped[-1]) == pytest.approx(5.0 * np.exp(3.0), rel=0.1)


def test_a_load_that_comes_and_goes_with_the_day_is_no_outage() -> None:
    rng = np.random.default_rng(1)
    count, days = 500_000, 10
    at_s = np.sort(rng.uniform(0.0, 86_400.0 * days, count))
    edge = rng.choice(5, count, p=[0.4, 0.3, 0.2, 0.06, 0.04])
    load = 0.3 * np.sin(2.0 * np.pi * at_s / 86_400.0)
    some = Calls(
        np.zeros(count, np.int32), (1_000.0 * at_s).astype(np.int64), edge[:, None] + 1,
        np.exp(edge + load + rng.normal(0.0, 0.1 + 0.1 * edge)),
        (rng.random(count) < 0.005 * np.exp(load)).astype(np.uint8),
    )  # fmt: skip
    out = fresh(warmup=500).observe(some, NOBODY)
    later = slice(count // 2, None)
    assert (out.rare[later] >= 3.0).mean() < 1.3e-3
    assert out.off[later].mean() < 0.1  # one call in 1,000, and eight gaps of its edge


def test_rare_failures_are_learnt() -> None:
    some = one_edge(20_000)
    why = fresh().observe(some, NOBODY).why
    assert why[-1, edges.RATE_USUAL] == pytest.approx(some.failed[8_000:].mean(), rel=0.25)


def test_one_failure_after_thousands_of_good_calls_wakes_nobody() -> None:
    some = one_edge(6_000)
    some.failed[:] = 0
    some.failed[5_000] = 1
    out = fresh().observe(some, NOBODY)
    assert out.said[5_000, edges.ERRORS] < 3.0
    some.failed[5_000:5_006] = 1
    assert fresh().observe(some, NOBODY).rare[5_000:5_010].max() > 4.0


def test_durations_of_any_size_and_none_do_no_harm() -> None:
    rng = np.random.default_rng(2)
    count = 30_000
    odd = np.array([0.0, -1.0, np.nan, 5e-324, 1.7e308, 1.0, 1e9])
    words = rng.integers(0, 400, (count, 2))  # many more edges than there is room for
    some = Calls(
        rng.integers(0, 2, count).astype(np.int32), rng.integers(0, 7_258_118_400_000, count),
        words, rng.choice(odd, count), rng.integers(0, 2, count).astype(np.uint8),
    )  # fmt: skip
    for each in (some, some._replace(words=words % 3)):
        state = fresh()
        out = state.observe(each, NOBODY)
        for name in ("score", "rare", "said", "why"):
            assert np.isfinite(getattr(out, name)).all(), name
        assert (out.said >= 0.0).all()
        again = fresh()
        again.load(state.state())  # it is as sound as it looks
        for at in range(0, count, 500):
            shown = edge_of(out.why[at], np.full(4, 9.0), some.duration[at], [("a", "b")], "slow")
            assert len(shown.expected) == 4
            assert len(numbers(out.why[at], some.duration[at])) == 3
    nothing = fresh().observe(part_of(some, slice(0))._replace(), NOBODY)
    assert len(nothing.score) == 0


@pytest.mark.parametrize("least", [0.0, 1e-12])
def test_a_clock_that_is_too_coarse_hides_no_slow_call(least: float) -> None:
    some = one_edge(5_000)
    some.duration[:] = np.floor(some.duration / 20.0)  # half of them are 0
    assert 0.3 < (some.duration == 0.0).mean() < 0.7
    some.duration[some.duration == 0.0] = least
    some.duration[4_000] = 500.0
    out = fresh().observe(some, NOBODY)
    assert out.why[4_000, edges.DEVIATION] < 2.1  # log 8, at most; from 1e-12 to 1 it is 28
    assert out.fired[4_000] == edges.SLOW
    assert out.rare[4_000] >= 3.0


def test_an_edge_that_takes_the_room_of_another_is_new() -> None:
    count = 60
    some = one_edge(400 * count)
    words = np.repeat(np.arange(400), count)[:, None]
    why = fresh().observe(some._replace(words=words), NOBODY).why
    first = why[::count]
    assert (first[:, [edges.KNOWN, edges.USUAL, edges.SHARE]] == 0.0).all()
    assert (why[count - 1 :: count, edges.KNOWN] > 0.0).all()


# ---- what failed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "fails"),
    [
        (None, 0), ("", 0), (False, 0), (0, 0), ("OK", 0), ("Ok", 0), ("UNSET", 0), ("Unset", 0),
        ("STATUS_CODE_OK", 0), ("STATUS_CODE_UNSET", 0), (200, 0), ("302", 0), (404, 0), (499, 0),
        (True, 1), ("ERROR", 1), ("Error", 1), ("STATUS_CODE_ERROR", 1), ("timeout", 1),
        ("0", 0), (1, 0), ("1", 0), (2, 1), ("2", 1),  # OpenTelemetry's numbers
        (100, 0), (399, 0), (400, 0), (500, 1), ("503", 1), (599, 1),  # HTTP
        (3, 1), (4, 1), (13, 1), (16, 1),  # gRPC: of these 1, CANCELLED, alone is lost
        (-1, 1), (99, 1), (1000, 1), ("01", 1), ("1.0", 1),
    ],
)  # fmt: skip
def test_what_exporters_call_a_failure_is_one(status: Any, fails: int) -> None:
    row = {**ROWS[0], "status": status}
    assert given([row, row], SLOTS[:2]).failed.tolist() == [fails, fails]
    del row["status"]
    assert given([row], SLOTS[:1]).failed.tolist() == [0]
    assert failed(np.array([hash_of(b"OK"), 0, -1]), "status").tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("field", "fails"),
    [("status", 0), ("status.code", 0), ("StatusCode", 0), ("http.code", 0), ("error", 1),
     ("is_error", 1), ("failed", 1)],
)  # fmt: skip
def test_one_is_ok_in_a_status_and_a_failure_in_a_flag(field: str, fails: int) -> None:
    assert failed(np.array([hash_of(b"1")]), field).tolist() == [fails]
    assert failed(np.array([hash_of(each) for each in (b"0", b"2")]), field).tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("statuses", "fails"),
    [
        ([0, 1, 2, 1, 0], [0, 0, 1, 0, 0]),
        ([200, 404, 500, 101, 503], [0, 0, 1, 0, 1]),
        ([True, False, False, True, False], [1, 0, 0, 1, 0]),
        (["OK", "ERROR", "UNSET", "Error", "Ok"], [0, 1, 0, 1, 0]),
    ],
)
def test_numbers_and_booleans_of_a_column_are_read_as_those_of_a_record(
    tmp_path: Path, kind: str, statuses: list[Any], fails: list[int]
) -> None:
    rows = [{**row, "status": each} for row, each in zip(ROWS, statuses, strict=False)]
    (piece,) = read_file(written(rows, tmp_path, kind), RECORD)
    assert not piece.records.rejects
    assert failed(piece.records.words[:, -1], "status").tolist() == fails


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"ms": "12"}, "wrong type", "`ms`: `'12'`"),
        ({"status": 2.5}, "wrong type", "`status`: `2.5`"),
        ({"status": {"code": 2}}, "wrong type", "`status`: `{'code': 2}`"),
        ({"caller": [1]}, "wrong type", "`caller`: `[1]`"),
        ({"service": None}, "missing field", "`service`"),
        (
            dict.fromkeys(("ms", "caller", "operation", "status")),
            "missing field",
            "none of `ms, caller, operation, status`",
        ),
    ],
)
def test_what_is_no_call_is_rejected(change: dict[str, Any], reason: str, detail: str) -> None:
    values = [json.dumps(ROWS[0] | each).encode() for each in ({}, change, {})]
    place = np.zeros(3, np.int32), np.arange(3), np.full(3, -1)
    records = decode(Fetched(*place, values=values, keys=[]), RECORD)
    assert records.offset.tolist() == [0, 2]
    assert [(each.reason, each.detail) for each in records.rejects] == [(reason, detail)]
