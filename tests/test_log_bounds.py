"""Goal: what log lines take of memory is what the sum of `raywatch check` says, or less.

Method: each size in the sum against the arrays, and the alert, that it stands for.
"""

import json
import sys
from dataclasses import replace

import numpy as np
from test_logs import (
    BATCH,
    MODEL,
    NOBODY,
    RECORD,
    SLOTS,
    detector,
    fresh,
    part_of,
)

from raywatch.actors.alerts import from_episode
from raywatch.actors.log_words import Words
from raywatch.actors.logs import NAMES, LogsFlow
from raywatch.actors.ports import Fetched, Partition
from raywatch.actors.stages import flow_of
from raywatch.cluster import memory
from raywatch.cluster.memory import _sketches, key_bytes, memory_bound
from raywatch.models import log_lines, log_sessions, logs
from raywatch.models.following import KEY_BYTES
from raywatch.models.incident import Episode
from raywatch.models.log_shelf import mix
from raywatch.models.log_template import FAMILIES, VALUES
from raywatch.models.logs import Logs
from raywatch.models.scorer import I64
from raywatch.models.settings import DecideSettings
from raywatch.models.strange_sessions import NAMED, Strange, Told


def wild(count: int, *, sessions: int, gap_ms: int = 1) -> logs.Batch:
    """Lines of one key in thousands of kinds, each in one of so many sessions; 0: in none."""
    rng = np.random.default_rng(5)
    words = ["".join(word) for word in rng.choice(list("abcdefgh"), (4_000, 6))]
    raw = [
        " ".join(words[int(at)] for at in row).encode()
        for row in rng.integers(4_000, size=(count, 4))
    ]
    size = np.array([len(each) for each in raw], np.int32)
    begin, none = np.cumsum(size, dtype=np.int64) - size, np.zeros(count, np.int64)
    session = mixed(1 + rng.integers(0, sessions, count)) if sessions else none
    return logs.Batch(
        none.astype(np.int32), 2 * 10**12 + gap_ms * np.arange(count),
        np.frombuffer(b"".join(raw), np.uint8), begin, size, session, begin, np.minimum(size, 9),
    )  # fmt: skip


def mixed(numbers: I64) -> I64:
    """Hashes of sessions."""
    return np.array([mix(np.uint64(each), np.uint64(1)) for each in numbers], np.uint64).view(
        np.int64
    )


def test_memory_of_a_key_grows_with_use_up_to_what_its_arrays_may_take() -> None:
    """In a snapshot; in memory a page has a number on the stock beside it."""
    for sessions in (False, True):
        state = Logs(DecideSettings(), sessions=sessions)
        state.ensure(1)
        state.observe(part_of(BATCH, slice(1)), NOBODY)
        young = _bytes(state)
        assert young < 3_000 + 4_000 * sessions  # a page of each kind, and the entries
        state.observe(wild(5_000, sessions=5_000), NOBODY)
        full = logs.key_bytes(sessions)
        stock = 4 * sum(state.pages.values())
        assert 0.9 * full < _bytes(state) + stock <= full


def _bytes(state: Logs) -> int:
    saved = state.state()
    del saved["row"]
    return sum(each.nbytes for each in saved.values())


def test_two_thousand_services_with_few_open_sessions_take_forty_megabytes_at_most() -> None:
    state = Logs(DecideSettings(), sessions=True, idle_ms=1_000)
    state.ensure(2_000)
    batch = part_of(BATCH, slice(3_000))
    for slot in range(0, 2_000, 2):
        state.observe(batch._replace(slots=batch.slots + np.int32(slot)), NOBODY)
    assert np.count_nonzero(state.state()["lines.ordinal"] > 1_000) == 2_000
    assert _bytes(state) < 40e6


def test_a_session_that_ended_takes_no_memory() -> None:
    state = Logs(DecideSettings(), sessions=True, idle_ms=1_000)
    state.ensure(1)
    state.observe(wild(20_000, sessions=5_000, gap_ms=0), NOBODY)
    assert state.pages["sessions"] == log_sessions.SESSIONS // 8
    quiet = wild(2 * log_sessions.SESSIONS, sessions=0)
    state.observe(quiet._replace(time_ms=quiet.time_ms + 10**9), NOBODY)
    assert state.pages["sessions"] == 0


def test_memory_is_a_sum_of_what_there_is() -> None:
    flow = flow_of(detector(keys_max=5), [Partition("in", n) for n in range(3)], MODEL)
    assert isinstance(flow, LogsFlow)
    for record in (RECORD, replace(RECORD, session=None)):
        few = detector(keys_max=5, record=record)
        assert _sketches(few, 3) == 3 * 5 * logs.key_bytes(record.session is not None)
    flow.following.ensure(10)
    flow.logs.ensure(10)
    by_slot = [*flow.following.state().values(), flow.logs.state()["row"]]
    assert sum(each.nbytes for each in by_slot) == 10 * (KEY_BYTES + 4)
    one, ten = (memory_bound(detector(keys_max=50), partitions=n, owners=1) for n in (1, 10))
    assert ten.state - one.state >= 9 * 50 * logs.key_bytes(sessions=True)
    assert ten.snapshot - one.snapshot >= 9 * 2 * 50 * logs.key_bytes(sessions=True)
    assert key_bytes(detector()) < key_bytes(replace(detector(), model="lagbank"))


def test_an_alert_is_no_larger_than_the_sum_says() -> None:
    """Of a state where every text is as long, and as wide in JSON, as it may be."""
    flow = flow_of(detector(), [Partition("in", 0)], MODEL)
    row = {"service": "web", "ts": 1, "msg": "\x01 \x02" * 9_000, "request": "\x03" * 9_000}
    fetched = Fetched(SLOTS[:1], np.arange(1), np.full(1, -1), [json.dumps(row).encode()], [])
    batch = flow.prepare(fetched, MODEL, begin={}, end={})
    flow.finish(batch, None)
    assert isinstance(flow, LogsFlow)
    words = flow._words
    assert words is not None
    loud = words._seen.said._replace(said=np.full((1, 7), 9.0), ended=np.zeros(1, np.int64))
    loud.prior[:] = np.resize(np.frombuffer(b"\x01 \x02", np.uint8), loud.prior.shape)
    heads = np.resize(loud.prior, (1, log_sessions.HEAD_BYTES))
    ends = logs._room(1)._replace(head=heads, session_id=heads[:, : log_sessions.ID_BYTES])
    ends.row[:] = 1 << 40
    ends.row[:, [log_sessions.LOW, log_sessions.HIGH]] = 5, 9
    words._seen = words._seen._replace(said=loud, ends=ends)
    name = heads[0, : log_sessions.ID_BYTES].tobytes()
    flow._told[0] = Told((Strange(name, 10_000, 1.23456789e-300),) * NAMED, 1 << 40, 1 << 40)
    for component in ("step", "session"):
        episode = Episode(
            0, "open", 0, 10**13, 9, 1e-300, 1e9, 1e9, component, (1.0, 0.0), (np.nan,) * 2,
            (np.nan,) * 2, 0, (np.nan,) * 2, None, words.reasons(0),
        )  # fmt: skip
        alert = from_episode(
            flow.spec, b"k" * 64, 10**13, (Partition("in", 0), 2**53), episode, MODEL.version,
            **flow._shown(batch, 0, episode),
        )  # fmt: skip
        said = alert.to_json()
        assert len(said) + sys.getsizeof(said) > 8_000
        assert len(said) + sys.getsizeof(said) < memory.ALERT_BYTES + memory.LINE_ALERT_BYTES


def test_a_record_on_its_way_takes_no_more_than_the_sum_says() -> None:
    count = 1_000
    seen = fresh().observe(part_of(BATCH, slice(count)), NOBODY)
    of_records = [seen.before, seen.code, seen.why, seen.early, *seen.said[:-1]]
    of_ends = [*seen.ends, seen.said.end_rare]
    ends = sum(each.itemsize * int(np.prod(each.shape[1:], dtype=int)) for each in of_ends)
    read = (FAMILIES + VALUES) * 8  # what a line is read into
    # A session that ends began with a record of its own.
    assert sum(each.nbytes for each in of_records) / count + read + ends < logs.RECORD_BYTES


def test_lines_of_any_kind_and_any_time_do_no_harm() -> None:
    """More templates, pairs, kinds, sessions, records and digits than there is room for."""
    rng, count = np.random.default_rng(7), 30_000
    kinds = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(3_000)]
    lines = [
        f"{kinds[int(kind)]} {'9' * int(digits)} {kinds[int(kind) // 2]} -{digits}.{kind}e5"
        for kind, digits in zip(
            rng.integers(3_000, size=count), rng.integers(400, size=count), strict=True
        )
    ]
    raw = [rng.bytes(int(size)) if size < 40 else line.encode()
           for size, line in zip(rng.integers(400, size=count), lines, strict=True)]  # fmt: skip
    size = np.array([len(each) for each in raw], np.int32)
    begin = np.cumsum(size, dtype=np.int64) - size
    session = np.where(rng.random(count) < 0.5, 7, rng.integers(0, 5_000, count))
    time_ms = np.where(rng.random(count) < 0.1, rng.integers(0, 7_258_118_400_000, count), 10**12)
    text = np.frombuffer(b"".join(raw), np.uint8)
    none = np.zeros(count, np.int64)
    batch = logs.Batch(
        none.astype(np.int32), time_ms, text, begin, size, session, begin, np.minimum(size, 90)
    )
    state = fresh(1)
    seen = state.observe(batch, NOBODY)
    assert np.isfinite(seen.why).all()
    out = seen.said
    for each in (out.score, out.rare, out.said, out.end_rare, seen.ends.score):
        assert np.isfinite(each).all()
        assert (each >= 0.0).all()
    assert len(seen.ends.row) > 4_000
    assert seen.ends.row[:, log_sessions.RECORDS].max() <= log_sessions.RECORDS_MAX
    for end in range(0, len(seen.ends.row), 100):
        at = int(seen.ends.row[end, log_sessions.NOTICED])
        words = Words(seen, NAMES, withheld=False)
        assert words.line(at, raw[at], "", fired="session").expected
    saved = state.state()
    again = fresh(1)
    again.load(saved)  # it is as sound as it looks
    assert all(np.array_equal(saved[n], each) for n, each in again.state().items())


def test_a_late_line_waits_for_nothing_and_moves_no_clock() -> None:
    at = np.r_[np.arange(20) * 1_000, 18_500, 20_000]
    none = np.zeros(22, np.int64)
    text, size = np.frombuffer(b"up", np.uint8), np.full(22, 2, np.int32)
    state = Logs(DecideSettings())
    state.ensure(1)
    batch = logs.Batch(none.astype(np.int32), at, text, none, size, none, none, none.astype("i4"))
    wait = state.observe(batch, NOBODY).why[:, log_lines.WAIT]
    assert wait.tolist() == [0.0, *[1_000.0] * 19, 0.0, 1_000.0]
