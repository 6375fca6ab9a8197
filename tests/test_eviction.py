"""Goal: which keys a full partition forgets is a function of its records, and nobody dies of it.

Method: the table against a rule written down in six lines; then whole lanes without brokers: one
stream in batches of any cut, with partitions dealt to lanes in any way, stopped and taken up again
from a snapshot, says the same, byte for byte. Incidents of keys that are forgotten end in words.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_keys import records_of

from raywatch.actors.checkpoint import decode, encode
from raywatch.actors.flow import Flow
from raywatch.actors.keys import HASH_ALL, PROVEN, SHARE, KeyTable
from raywatch.actors.ports import Partition
from raywatch.actors.records import Records, RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.models.registry import build, shipped
from raywatch.models.scorer import describe
from raywatch.models.settings import DecideSettings, MissingSettings

# ---- the rule -------------------------------------------------------------------------------


class Plain:
    """The rule of keys.py, slowly: what one partition knows."""

    def __init__(self, keys_max: int) -> None:
        self.keys_max = keys_max
        self.seen: dict[bytes, int] = {}
        self.records: dict[bytes, int] = {}
        self.count = 0

    def worth(self, key: bytes) -> tuple[int, int]:
        records = min(self.records[key], PROVEN)
        return self.seen[key] + records * self.keys_max // 4, records

    def take(self, key: bytes) -> list[bytes]:
        """One record; returns who is forgotten for it."""
        gone: list[bytes] = []
        if key not in self.seen and len(self.seen) >= self.keys_max:
            gone = sorted(self.seen, key=self.worth)[: max(1, self.keys_max // SHARE)]
            for each in gone:
                del self.seen[each], self.records[each]
        self.seen[key], self.count = self.count, self.count + 1
        self.records[key] = self.records.get(key, 0) + 1
        return gone


def named(number: int) -> bytes:
    return b"k%d" % number + b"x" * (number % 5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60)), max_size=400),
    st.integers(1, 40),
    st.sampled_from([HASH_ALL, 0x7, 0]),
    st.lists(st.integers(1, 90), min_size=1),
    st.integers(0, 400),
)
def test_the_keys_that_go_are_those_of_the_rule_however_batches_are_cut(
    pairs: list[tuple[int, int]], keys_max: int, hash_mask: int, cuts: list[int], saved_at: int
) -> None:
    plain = [Plain(keys_max) for _ in range(3)]
    table = KeyTable(keys_max, 3, evict=True, hash_mask=hash_mask)
    at, cut = 0, 0
    while at < len(pairs):
        piece = pairs[at : at + cuts[cut % len(cuts)]]
        partitions = [p for p, _ in piece]
        taken = table.take(records_of([named(k) for _, k in piece], partitions))
        expected: list[tuple[int, bytes]] = []
        for index, (part, key) in enumerate(piece):
            expected += [(index, each) for each in plain[part].take(named(key))]
        went = zip(taken.gone.index.tolist(), taken.gone.slot.tolist(), strict=True)
        assert [(index, table.key(slot)) for index, slot in went] == expected
        assert [table.key(slot) for slot in taken.slots.tolist()] == [named(k) for _, k in piece]
        table.release(taken.gone.slot)
        assert len(table) == sum(len(each.seen) for each in plain)
        at, cut = at + len(piece), cut + 1
        if at <= saved_at < at + cuts[cut % len(cuts)]:
            state = table.state()
            table = KeyTable(keys_max, 3, evict=True, hash_mask=hash_mask)
            table.load(state)


def test_a_flood_of_new_keys_displaces_itself_and_not_the_keys_that_are_watched() -> None:
    table = KeyTable(1_000, evict=True)
    watched = [b"host-%d" % n for n in range(900)]
    for _ in range(PROVEN):
        table.take(records_of(watched))
    for begin in range(0, 50_000, 5_000):
        flood = [b"flood-%d" % n for n in range(begin, begin + 5_000)]
        taken = table.take(records_of(watched + flood))  # once for five strangers that come
        table.release(taken.gone.slot)
    known = {table.key(s) for s in range(table.high) if table.partition(s) >= 0}
    assert set(watched) <= known
    assert len(known) == len(table) <= 1_000
    assert table.evicted == 50_900 - len(table)
    assert table.high <= 1_000 + 5_900  # slots come back with the batch after


def test_a_watched_key_that_is_gone_for_good_makes_room_in_the_end() -> None:
    table = KeyTable(64, evict=True)
    for generation in range(40):  # pods that live for a while, one generation after the other
        alive = [b"pod-%d-%d" % (generation, n) for n in range(20)]
        for _ in range(PROVEN + 3):
            table.release(table.take(records_of(alive)).gone.slot)
    known = {table.key(s) for s in range(table.high) if table.partition(s) >= 0}
    assert set(alive) <= known


def test_the_bytes_of_forgotten_keys_are_used_again() -> None:
    table = KeyTable(100, evict=True)
    for begin in range(0, 200_000, 2_000):
        long = [b"%06d" % n * 10 for n in range(begin, begin + 2_000)]
        table.release(table.take(records_of(long)).gone.slot)
    assert table._arena.shape[0] <= 1 << 19  # 2,100 keys of 60 bytes, and as much to spare
    assert table._cells.shape[0] <= 1 << 11


# ---- whole lanes ----------------------------------------------------------------------------

SCORER = build(shipped("robustz"))
MODEL = describe(SCORER)
PARTITIONS = tuple(Partition("in", n) for n in range(3))
SPEC = DetectorSpec(
    name="d",
    topics=("in",),
    record=RecordSpec(values=("x",), key="k", time="t"),
    model="robustz",
    decide=DecideSettings(probability=1e-3, warmup=60, quiet=500, half_life=200),
    missing=MissingSettings(intervals=3.0, floor_ms=6_000, records_min=20),
    keys_max=12,
)


def stream(seed: int = 1, rows: int = 1_500) -> list[list[tuple[bytes, int, float]]]:
    """Of each partition (key, time, value): 9 steady keys, spikes, silences, and strangers.

    Every so often a crowd of new keys comes by, and every third key is replaced half-way.
    """
    rng = np.random.default_rng(seed)
    found: list[list[tuple[bytes, int, float]]] = []
    for part in range(len(PARTITIONS)):
        records: list[tuple[bytes, int, float]] = []
        for row in range(rows):
            time_ms = 1_700_000_000_000 + row * 1_000
            for key in range(9):
                silent = row % 400 > 300 and key == 2
                late = key % 3 == 0 and row >= rows // 2
                name = b"steady-%d%s" % (key, b"-new" if late else b"")
                spike = 40.0 if rng.random() < 0.004 else 0.0
                if not silent:
                    records.append((name, time_ms, float(rng.standard_normal()) + spike))
            if row % 90 > 85:
                crowd = [b"stranger-%d-%d-%d" % (part, row, n) for n in range(rng.integers(1, 9))]
                records += [(each, time_ms, 1.0) for each in crowd]
            if row % 110 == 100:  # a key that comes back now and then, and is new each time
                wild = [*rng.standard_normal(110).tolist(), 500.0]
                records += [(b"guest", time_ms - n % 3, x) for n, x in enumerate(wild)]
        found.append(records)
    return found


STREAM = stream()


def columns(part: Sequence[tuple[bytes, int, float]], number: int, first: int) -> Records:
    keys = [key for key, _, _ in part]
    made = records_of(keys, [number] * len(part))
    return replace(
        made,
        offset=np.arange(first, first + len(part)),
        time_ms=np.array([time_ms for _, time_ms, _ in part], np.int64),
        values=np.array([[value] for _, _, value in part]).reshape(len(part), 1),
    )


def mixed(pieces: list[Records], rng: np.random.Generator) -> Records:
    """Pieces of several partitions as one batch, interleaved at random."""
    order = rng.permutation(np.repeat(np.arange(len(pieces)), [len(p) for p in pieces]))
    rank = np.argsort(np.argsort(order, kind="stable"))
    text = np.concatenate([p.text for p in pieces])
    shift = np.cumsum([0] + [p.text.shape[0] for p in pieces[:-1]])
    begins = [p.key_begin + s for p, s in zip(pieces, shift, strict=True)]
    back = np.empty(len(order), np.int64)
    back[:] = rank
    return Records(
        *(
            np.concatenate([getattr(p, name) for p in pieces])[back]
            for name in ("partition", "offset", "time_ms", "values")
        ),
        text=text,
        key_begin=np.concatenate(begins)[back],
        key_size=np.concatenate([p.key_size for p in pieces])[back],
        words=np.zeros((len(order), 0), np.int64),
        word_begin=np.zeros((len(order), 0), np.int64),
        word_size=np.zeros((len(order), 0), np.int32),
    )


class Lane:
    """A flow over some partitions, with batches in flight."""

    def __init__(self, numbers: Sequence[int], in_flight: int, **changes: Any) -> None:
        self.numbers, self.in_flight = list(numbers), in_flight
        self.spec = replace(SPEC, **changes)
        self.flow = Flow(self.spec, [PARTITIONS[n] for n in numbers], MODEL)
        self.at = dict.fromkeys(numbers, 0)
        self.waiting: list[Any] = []
        self.said: dict[int, list[bytes]] = {n: [] for n in numbers}

    def send(self, sizes: dict[int, int], rng: np.random.Generator) -> None:
        pieces: list[Records] = []
        for index, number in enumerate(self.numbers):
            begin = self.at[number]
            part = STREAM[number][begin : begin + sizes[number]]
            self.at[number] += len(part)
            pieces.append(columns(part, index, begin))
        batch = self.flow.prepare(mixed(pieces, rng), MODEL, begin={}, end={})
        self.waiting.append(batch)
        if len(self.waiting) > self.in_flight:
            self.collect()

    def collect(self) -> None:
        batch = self.waiting.pop(0)
        scores = None if batch.segments is None else SCORER.score(batch.segments)
        for alert in self.flow.finish(batch, scores).alerts:
            assert alert.origin is not None
            self.said[alert.origin[0].number].append(alert.to_json())

    def again(self) -> None:
        """Another owner, from the snapshot."""
        while self.waiting:
            self.collect()
        blob = encode(self.flow.snapshot({PARTITIONS[n]: self.at[n] for n in self.numbers}))
        self.flow = Flow(self.spec, [PARTITIONS[n] for n in self.numbers], MODEL)
        snapshot = decode(blob)
        assert snapshot is not None
        self.flow.load(snapshot)

    @property
    def left(self) -> bool:
        return any(self.at[n] < len(STREAM[n]) for n in self.numbers)


def through(
    deal: Sequence[Sequence[int]],
    size: Callable[[np.random.Generator], int],
    *,
    in_flight: int = 0,
    again: float = 0.0,
    seed: int = 0,
    **changes: Any,
) -> dict[int, list[bytes]]:
    """Alerts of each partition, in order, of lanes that were dealt partitions like that."""
    rng = np.random.default_rng(seed)
    said: dict[int, list[bytes]] = {}
    for numbers in deal:
        lane = Lane(numbers, in_flight, **changes)
        while lane.left:
            lane.send({n: size(rng) for n in numbers}, rng)
            if rng.random() < again:
                lane.again()
        while lane.waiting:
            lane.collect()
        said |= lane.said
    return said


@pytest.fixture(scope="module")
def alone() -> dict[int, list[bytes]]:
    """What is said record by record, each partition by itself."""
    return through([[0], [1], [2]], lambda _: 700)


def reasons(said: dict[int, list[bytes]]) -> Iterator[dict[str, Any]]:
    return (json.loads(each) for part in said.values() for each in part)


def test_there_is_something_to_lose(alone: dict[int, list[bytes]]) -> None:
    """Otherwise the tests below would compare nothing."""
    alerts = list(reasons(alone))
    ended = [each for each in alerts if each.get("reason") == "key forgotten"]
    assert {each["rule"] for each in ended} == {"anomaly", "missing"}
    assert all(each["state"] == "resolved" for each in ended)
    assert sum(each["state"] == "open" for each in alerts) >= 90
    for part in alone.values():
        opened = [a["id"] for a in map(json.loads, part) if a["state"] == "open"]
        assert len(set(opened)) == len(opened)
        assert {a["id"] for a in map(json.loads, part) if a.get("reason")} <= set(opened)
    assert any(each["key"] == "guest" for each in alerts)


@pytest.mark.parametrize(
    ("deal", "in_flight", "again"),
    [
        ([[0, 1, 2]], 0, 0.0),
        ([[2, 0], [1]], 3, 0.0),
        ([[0, 1, 2]], 4, 0.15),
        ([[1], [0, 2]], 2, 0.3),
    ],
)
def test_any_batches_in_any_lanes_say_the_same(
    alone: dict[int, list[bytes]], deal: list[list[int]], in_flight: int, again: float
) -> None:
    for seed, most in enumerate((40, 300, 2_500)):
        said = through(
            deal, lambda rng, most=most: int(rng.integers(0, most)),
            in_flight=in_flight, again=again, seed=seed,
        )  # fmt: skip
        assert said == alone, (deal, most)


def test_batches_of_a_single_record_say_the_same(alone: dict[int, list[bytes]]) -> None:
    said = through([[1]], lambda _: 1, in_flight=1)
    assert said[1] == alone[1]


def test_an_incident_of_a_key_that_returns_has_another_id_even_at_the_same_time() -> None:
    """A record's clock that stands still: `since` alone would name two incidents alike."""
    flow = Flow(
        replace(SPEC, keys_max=1, decide=replace(SPEC.decide, warmup=60)), PARTITIONS[:1], MODEL
    )
    ids: list[str] = []
    offset = 0
    rng = np.random.default_rng(4)
    for _ in range(3):
        values = [*rng.standard_normal(100).tolist(), 500.0]
        for key, xs in ((b"a", values), (b"b", [0.0])):
            part = columns([(key, 1_700_000_000_000, x) for x in xs], 0, offset)
            offset += len(xs)
            batch = flow.prepare(part, MODEL, begin={}, end={})
            assert batch.segments is not None
            said = flow.finish(batch, SCORER.score(batch.segments))
            ids += [each.id for each in said.alerts if each.state == "open"]
    assert len(ids) == 3
    assert len(set(ids)) == 3


def test_a_forgotten_key_says_so_in_words(alone: dict[int, list[bytes]]) -> None:
    words = {each["rule"]: each["words"] for each in reasons(alone) if each.get("reason")}
    assert words["anomaly"].endswith("is forgotten: its partition holds too many keys.")
    assert " strange since 2023-11-1" in words["anomaly"]
    assert " silent since 2023-11-1" in words["missing"]


def test_without_eviction_new_keys_are_rejected_whatever_the_cuts() -> None:
    once = through([[0, 1, 2]], lambda _: 900, keys_full="reject")
    assert not any(each.get("reason") for each in reasons(once))
    assert not any("stranger" in each["key"] for each in reasons(once))
    cut = through(
        [[0], [1, 2]], lambda rng: int(rng.integers(0, 200)), again=0.1, keys_full="reject"
    )
    assert cut == once
