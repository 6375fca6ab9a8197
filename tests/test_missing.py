"""Goal: a key that falls silent is said once, when the others go on, and never because of a clock.

Method: partitions of ticking keys with hand-made silences; random streams cut and interleaved
anyhow, compared with the whole; and a plain second implementation of the clock.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raywatch.models.errors import ArtifactError
from raywatch.models.missing import Missing, Silence, warm_missing
from raywatch.models.settings import MissingSettings

RULE = MissingSettings(intervals=20.0, floor_ms=60_000, records_min=10)
Record = tuple[int, int, int]  # partition, slot, time in ms


def observe(missing: Missing, records: Sequence[Record]) -> list[Silence]:
    missing.ensure(max((slot for _, slot, _ in records), default=0) + 1)
    columns = np.array(records, np.int64).reshape(-1, 3)
    return missing.observe(
        columns[:, 0].astype(np.int32), columns[:, 1].astype(np.int32), columns[:, 2]
    )


def hear(records: Sequence[Record], rule: MissingSettings = RULE) -> list[Silence]:
    return observe(Missing(rule, 1 + max(p for p, _, _ in records)), records)


def ticking(seconds: int, keys: int = 4, *, silent: dict[int, tuple[int, int]]) -> list[Record]:
    """One record a second of each key of partition 0, except where it is silent [from, to)."""
    records: list[Record] = []
    for t in range(seconds):
        for key in range(keys):
            begin, end = silent.get(key, (seconds, seconds))
            if not begin <= t < end:
                records.append((0, key, t * 1_000))
    return records


def test_a_silent_key_is_said_once_and_again_when_it_is_back() -> None:
    records = ticking(600, silent={2: (200, 500)})
    opened, resolved = hear(records)
    # Last record at 199 s; 60 s later is 259 s, the next line of the 10 s grid is 260 s.
    assert (opened.kind, opened.slot, opened.since_ms, opened.at_ms) == (
        "open",
        2,
        199_000,
        260_000,
    )
    assert records[opened.index] == (0, 1, 260_000)  # the second key that reaches 260 s
    back = ("resolved", 2, 199_000, 500_000)
    assert (resolved.kind, resolved.slot, resolved.since_ms, resolved.at_ms) == back
    assert records[resolved.index] == (0, 2, 500_000)


def test_a_slow_key_may_be_silent_for_its_own_intervals() -> None:
    records = [
        r for r in ticking(3_000, silent={2: (1_500, 3_000)}) if r[1] != 2 or r[2] % 30_000 == 0
    ]
    (opened,) = hear(records)
    # Every 30 s, last at 1,470 s: silent after 20 intervals, 600 s.
    assert (opened.slot, opened.since_ms, opened.at_ms) == (2, 1_470_000, 2_080_000)


def test_one_odd_gap_hardly_changes_what_is_usual() -> None:
    # A first silence of 300 s is itself an alert; the second is noticed as fast as the first.
    records = ticking(900, silent={2: (200, 500)})
    records = [r for r in records if r[1] != 2 or r[2] < 700_000]
    told = [(s.kind, s.since_ms, s.at_ms) for s in hear(records)]
    assert told == [
        ("open", 199_000, 260_000),
        ("resolved", 199_000, 500_000),
        ("open", 699_000, 760_000),
    ]


def test_a_mad_timestamp_makes_nobody_else_silent() -> None:
    day = 86_400_000
    records = ticking(600, silent={})
    for at in (800, 1_200, 1_600):
        records.insert(at, (0, 1, day))
    assert hear(records) == []


def test_a_key_that_was_mad_once_can_still_fall_silent() -> None:
    records = ticking(600, silent={1: (300, 600)})
    records.insert(800, (0, 1, 86_400_000))
    (opened,) = hear(records)
    assert (opened.slot, opened.since_ms, opened.at_ms) == (1, 299_000, 360_000)


def test_a_key_whose_last_record_was_mad_is_silent_from_where_the_others_stood() -> None:
    records = ticking(600, silent={1: (300, 600)})
    at = records.index((0, 2, 299_000))
    records.insert(at, (0, 1, 86_400_000))
    (opened,) = hear(records)
    assert opened.slot == 1
    assert 298_000 <= opened.since_ms <= 299_000


@pytest.mark.parametrize("off_s", [-3_600, 3_600])
def test_a_key_whose_clock_is_off_is_judged_by_when_it_speaks(off_s: int) -> None:
    records = [
        (p, key, t + 1_000 * off_s if key == 3 else t)
        for p, key, t in ticking(900, silent={3: (600, 900)})
    ]
    records = [(p, key, t + 10_000_000) for p, key, t in records]
    told = hear(records)
    assert [(s.kind, s.slot) for s in told] == [("open", 3)]
    assert 10_660_000 <= told[0].at_ms <= 10_680_000


def test_a_partition_that_falls_silent_says_nothing_even_when_it_goes_on() -> None:
    records = ticking(300, keys=20, silent={})
    records += [(0, key, t + 3_600_000) for _, key, t in ticking(300, keys=20, silent={})]
    assert hear(records) == []


def test_a_key_that_does_not_come_back_with_its_partition_is_silent() -> None:
    records = ticking(300, silent={})
    records += [(0, k, t + 3_600_000) for _, k, t in ticking(300, silent={1: (0, 300)})]
    (opened,) = hear(records)
    # The partition went on at 3,600 s; key 1 has 60 s from there.
    assert (opened.slot, opened.since_ms) == (1, 299_000)
    assert opened.at_ms == 3_670_000


def test_a_single_key_that_goes_on_makes_nobody_silent() -> None:
    records = ticking(600, silent={1: (300, 600), 2: (300, 600), 3: (300, 600)})
    assert hear(records) == []


def test_a_young_key_is_not_missed() -> None:
    assert hear(ticking(600, silent={2: (9, 600)})) == []
    assert len(hear(ticking(600, silent={2: (10, 600)}))) == 1


def test_a_straggler_does_not_end_a_silence() -> None:
    records = ticking(400, silent={2: (200, 400)})
    records.insert(len(records) - 10, (0, 2, 150_000))
    assert [s.kind for s in hear(records)] == ["open"]


def test_silences_of_a_key_never_share_their_beginning() -> None:
    # Its clock goes back by five minutes between two silences, to where the first one began.
    records = ticking(900, silent={2: (200, 300)})
    records = [(p, k, t) for p, k, t in records if k != 2 or t < 500_000]
    moved = [(p, k, t - 310_000 if k == 2 and t >= 400_000 else t) for p, k, t in records]
    moved = [(p, k, min(t, 199_000) if k == 2 and t < 200_000 else t) for p, k, t in moved]
    began = [s.since_ms for s in hear(moved) if s.kind == "open"]
    assert len(began) == 2
    assert began[1] > began[0]


def test_records_without_a_slot_and_empty_batches_are_passed_over() -> None:
    missing = Missing(RULE, 1)
    records = ticking(600, silent={2: (200, 600)})
    assert observe(missing, []) == []
    padded = [r for record in records for r in (record, (0, -1, 10**12))]
    assert [(s.kind, s.slot, s.at_ms) for s in observe(missing, padded)] == [("open", 2, 260_000)]


def test_a_disabled_rule_is_silent() -> None:
    assert hear(ticking(600, silent={2: (200, 600)}), replace(RULE, enabled=False)) == []


# ---- same answer -----------------------------------------------------------------------------


def random_partition(draw: np.random.Generator, partition: int, slots: list[int]) -> list[Record]:
    """Keys at their own pace, with silences, stragglers, equal times and mad timestamps."""
    records: list[Record] = []
    pace = draw.integers(1, 40, len(slots))
    until = np.where(draw.random(len(slots)) < 0.3, draw.integers(100, 900, len(slots)), 10**9)
    for t in range(1_000):
        for slot, every, end in zip(slots, pace.tolist(), until.tolist(), strict=True):
            if t % every == 0 and not end <= t < end + 300:
                jitter = int(draw.integers(-3_000, 3_000))
                mad = int(draw.integers(-(10**8), 10**8)) if draw.random() < 0.001 else 0
                records.append((partition, slot, max(0, t * 1_000 + jitter + mad)))
    return records


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_cuts_interleaving_slots_and_a_reload_change_nothing(seed: int) -> None:
    draw = np.random.default_rng(seed)
    parts = [random_partition(draw, p, list(range(p * 7, p * 7 + 7))) for p in range(3)]
    rule = replace(RULE, floor_ms=30_000)

    def story(
        said: list[Silence], heard: list[Record]
    ) -> list[list[tuple[int, str, int, int, int]]]:
        """What was said of each partition, the index counted within the partition."""
        place, seen = [], [0, 0, 0]
        for partition, _, _ in heard:
            place.append(seen[partition])
            seen[partition] += 1
        told: list[list[tuple[int, str, int, int, int]]] = [[], [], []]
        for s in said:
            p = heard[s.index][0]
            told[p].append((place[s.index], s.kind, s.slot - 7 * p, s.since_ms, s.at_ms))
        return told

    expected = [
        story(hear([(0, slot - 7 * p, t) for _, slot, t in part], rule), [(0, 0, 0)] * len(part))[0]
        for p, part in enumerate(parts)
    ]
    order = draw.permutation(np.repeat([0, 1, 2], [len(part) for part in parts])).tolist()
    feeds = [iter(part) for part in parts]
    mixed = [next(feeds[p]) for p in order]
    missing, said, begin = Missing(rule, 3), [], 0
    while begin < len(mixed):
        end = begin + int(draw.integers(1, 400))
        other = Missing(rule, 3)
        other.load(missing.state())
        missing = other
        said += [replace(s, index=s.index + begin) for s in observe(missing, mixed[begin:end])]
        begin = end
    assert story(said, mixed) == expected


def test_the_random_streams_have_something_to_say() -> None:
    draw = np.random.default_rng(1)
    said = hear(random_partition(draw, 0, list(range(7))), replace(RULE, floor_ms=30_000))
    assert {s.kind for s in said} == {"open", "resolved"}


@settings(max_examples=30, deadline=None)
@given(
    records=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50_000)), min_size=1, max_size=60)
)
def test_the_clock_is_the_second_largest_latest_time(records: list[tuple[int, int]]) -> None:
    # Less than floor_ms apart nothing counts as mad, so the plain definition holds.
    missing = Missing(RULE, 1)
    latest: dict[int, int] = {}
    for slot, time_ms in records:
        observe(missing, [(0, slot, time_ms)])
        latest[slot] = max(latest.get(slot, 0), time_ms)
        if len(latest) > 1:
            assert missing.state()["partition"][0, 0] == sorted(latest.values())[-2]


def test_a_state_that_does_not_fit_is_refused() -> None:
    saved = Missing(RULE, 2).state()
    with pytest.raises(ArtifactError, match="lacks `pace`"):
        Missing(RULE, 2).load({n: a for n, a in saved.items() if n != "pace"})
    with pytest.raises(ArtifactError, match="partition"):
        Missing(RULE, 3).load(saved)


def test_warming_compiles_what_a_batch_needs() -> None:
    from raywatch.models import missing as module

    warm_missing()
    hear(ticking(20, silent={}))
    assert len(module._observe.signatures) == 1  # pyright: ignore[reportPrivateUsage]
