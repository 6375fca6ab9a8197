"""Goal: a lane says the same, once, wherever it begins and dies, and commits what it said.

Method: real lanes on the embedded log (its contract tests hold it to what Kafka does), scorers in
process. Lanes die at their nth call to a broker, are fenced, stopped, fed markers, holes and bad
records; what they say is compared with a lane that nothing happened to.
"""

import dataclasses
import json
import random
import time
from collections import Counter
from typing import Any

import pytest
from lanes import (
    NEVER_S,
    RECORDS,
    Killed,
    Mortal,
    World,
    alerts,
    lag,
    live,
    make,
    read_all,
    running,
    spec,
    undisturbed,
    until,
    world,
)  # fmt: skip

from raywatch.actors.ports import Out
from raywatch.actors.spec import DetectorSpec

# ---- the ordinary ---------------------------------------------------------------------------


def test_a_lane_alerts_once_for_each_incident_and_commits_to_the_end() -> None:
    there = world()
    there.log.write(RECORDS)
    detector = spec("d", "in")
    live(there, detector)

    opened = [a for a in alerts(there.log, "d.alerts") if a["state"] == "open"]
    assert len(opened) >= 12  # 3 kinds, 8 of each: half of them at least
    assert len({a["id"] for a in opened}) == len(opened)
    ends = there.log.bounds(there.partitions)
    assert {p: c.offset for p, c in there.commits(detector).items()} == {
        p: b.end for p, b in ends.items()
    }


def test_two_lanes_say_what_one_says() -> None:
    there = world()
    there.log.write(RECORDS)
    detector = spec("d", "in", lanes=2)
    lanes = [
        make(detector, there.log, there.partitions[n::2], number=n, store=there.store)
        for n in (0, 1)
    ]
    with running(*lanes):
        until(lambda: lag(there.log, detector, there.partitions) == 0)
    assert there.said() == undisturbed(RECORDS)


def test_a_lane_that_is_stopped_has_committed_what_it_pulled() -> None:
    there = world()
    there.log.write(RECORDS)
    detector = spec("d", "in", batch_records=100, checkpoint_s=NEVER_S)
    lane = make(detector, there.log, there.partitions, store=there.store, late=10)
    with running(lane):
        until(lambda: lane.stats.records > 1_000 and lane.stats.in_flight > 1)
    assert lane.stats.state == "stopped"
    assert lane.stats.in_flight == 0
    assert sum(c.offset for c in there.commits(detector).values()) == lane.stats.records
    assert 1_000 < lane.stats.records < len(RECORDS)

    live(there, spec("d", "in"))
    assert there.said() == undisturbed(RECORDS)


def test_markers_behind_the_last_record_leave_no_lag() -> None:
    there = world()
    epoch = there.broker.take("producer")
    there.broker.transact("producer", epoch, RECORDS[:2_000], "", {})
    detector = spec("d", "in")
    lane = live(there, detector)  # waits for lag 0

    ends = {p: b.end for p, b in there.log.bounds(there.partitions).items()}
    assert sum(ends.values()) == 2_000 + len(there.partitions)  # one marker in each
    assert lane.stats.records == 2_000


def test_batches_without_a_record_to_score_are_committed_and_said() -> None:
    there = world()
    bad = [Out("in", b"k", b"{"), Out("in", b"k", b"[1]"), Out("in", b"k", b"")]
    there.log.write(bad * 50)
    detector = spec("d", "in", rejects_max=1_000)
    lane = live(there, detector)
    assert (lane.stats.records, lane.stats.rejects) == (0, 150)
    assert len(read_all(there.log, "d.rejects")) == 150

    there.log.write(RECORDS)
    live(there, detector)
    kept = [json.loads(text) for text in there.said()]
    for alert in kept:
        alert.pop("lineage")
    assert len(kept) == sum(undisturbed(RECORDS).values())


# ---- where a lane begins --------------------------------------------------------------------


def test_latest_says_nothing_of_what_was_there_and_all_of_what_comes() -> None:
    there = world()
    there.log.write(RECORDS[:30_000])
    detector = spec("d", "in", start="latest")
    live(there, detector)
    assert there.said() == Counter()
    starts = {a["partition"]: a["offset"] for a in there.audited("started")}
    assert starts == {p.number: b.end for p, b in there.log.bounds(there.partitions).items()}

    there.log.write(RECORDS[30_000:])
    live(there, detector)
    # What was there was read silently: incidents are told as by a lane that always ran.
    everything = undisturbed(RECORDS)
    late = Counter(t for t in everything.elements() if json.loads(t)["lineage"]["offset"] >= starts[
        json.loads(t)["lineage"]["partition"]
    ])  # fmt: skip
    assert late
    assert there.said() == late


def test_a_first_start_is_durable_before_anything_is_said() -> None:
    there = world()
    there.log.write(RECORDS[:10])
    detector = spec("d", "in", start="latest")
    live(there, detector)
    there.log.write(RECORDS[10:20])
    # Had it not committed, "latest" would now be behind these ten.
    lane = live(there, detector)
    assert lane.stats.records == 10
    assert len(there.audited("started")) == 4


def test_offsets_that_are_gone_block_a_lane_and_it_says_what_to_do() -> None:
    there, detector = _outrun(lost="stop")
    lane = make(detector, there.log, there.partitions, store=there.store)
    with running(lane):
        until(lambda: lane.stats.state == "blocked")
        assert "is older than what the topic holds" in lane.stats.words
        assert "`lost: continue`" in lane.stats.words
    assert lane.stats.commits == 0


def test_offsets_that_are_gone_are_audited_where_that_is_wanted_and_history_is_kept() -> None:
    there, detector = _outrun(lost="continue")
    before = there.commits(detector)
    lows = {p: b.low for p, b in there.log.bounds(there.partitions).items()}
    live(there, detector)

    lost = {a["partition"]: (a["committed"], a["first_retained"]) for a in there.audited("lost")}
    assert lost == {p.number: (before[p].offset, low) for p, low in lows.items()}
    # 40 keys have 300 records left of 1,300: without their history all would be in warm-up.
    assert detector.decide.warmup == 500
    assert any(a["state"] == "open" for a in alerts(there.log, "d.alerts")[1:])


def _outrun(lost: str) -> tuple[World, DetectorSpec]:
    """A lane that read 800 rows; of the 500 that came since, the first 200 are gone."""
    there = world()
    decide = dataclasses.replace(spec("d", "in").decide, warmup=500)
    detector = spec("d", "in", lost=lost, decide=decide)
    there.log.write(RECORDS[: 40 * 800])
    live(there, detector)
    low = there.log.bounds(there.partitions)
    there.log.write(RECORDS[40 * 800 : 40 * 1_000])
    gone = there.log.bounds(there.partitions)
    there.log.write(RECORDS[40 * 1_000 :])
    for partition in there.partitions:
        assert gone[partition].end > low[partition].end
        there.broker.delete_records(partition, gone[partition].end)
    return there, detector


def test_a_topic_that_was_created_anew_is_read_from_its_beginning() -> None:
    """Its offsets lie below what was committed: nothing may wait until they are passed again."""
    old = world()
    detector = spec("d", "in", lost="continue")
    old.log.write(RECORDS)
    live(old, detector)

    there = world()
    there.store = old.store
    epoch = there.broker.take("operator")
    there.broker.transact("operator", epoch, [], detector.group, old.commits(detector))
    there.log.write(RECORDS[: 40 * 700])
    with running(make(detector, there.log, there.partitions, store=there.store)):
        until(lambda: bool(there.commits(detector)) and _at_end(there, detector))
    assert there.said() == undisturbed(RECORDS[: 40 * 700])
    assert len(there.audited("lost")) == 4


def _at_end(there: World, detector: DetectorSpec) -> bool:
    ends = there.log.bounds(there.partitions)
    return all(c.offset == ends[p].end for p, c in there.commits(detector).items())


# ---- dying ----------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot_s", [0.05, NEVER_S])
@pytest.mark.parametrize("model", ["robustz", "lagbank"])
def test_lanes_that_die_anywhere_say_together_what_one_says(model: str, snapshot_s: float) -> None:
    changes: dict[str, Any] = {"model": model, "batch_records": 900, "checkpoint_s": 0.0}
    expected = undisturbed(RECORDS, **changes)
    assert sum(expected.values()) > 20
    detector = spec("d", "in", snapshot_s=snapshot_s, **changes)
    chance = random.Random(f"{model}{snapshot_s}")
    for run in range(3):
        there = world()
        there.log.write(RECORDS)
        deaths = 0
        while deaths < 12 and lag(there.log, detector, there.partitions) > 0:
            mortal = Mortal(there.log, chance.randrange(1, 15), done=chance.random() < 0.5)
            with pytest.raises(Killed):
                live(there, detector, log=mortal, model=model, epoch=f"{run}.{deaths}", late=3)
            deaths += 1
        assert deaths > 4, "all was done before anybody died: the test is too easy"
        live(there, detector, model=model)
        assert there.said() == expected, (run, deaths)


def test_an_abandoned_lane_is_fenced_and_says_nothing_more() -> None:
    there = world()
    there.log.write(RECORDS[:20_000])
    detector = spec("d", "in", batch_records=500)
    first = make(detector, there.log, there.partitions, store=there.store, epoch="first")
    second = make(detector, there.log, there.partitions, store=there.store, epoch="second")
    with running(first):
        until(lambda: first.stats.records > 5_000)
        with running(second):
            until(lambda: second.stats.records > 0)
            there.log.write(RECORDS[20_000:])
            until(lambda: lag(there.log, detector, there.partitions) == 0)
            until(lambda: first.stats.state == "fenced")
            assert "has another holder" in first.stats.words
            said = first.stats.commits
            time.sleep(0.2)
            assert first.stats.commits == said
            assert second.stats.state == "running"
    assert first.stats.state == "fenced"  # stopping does not make it open the lane again
    assert there.said() == undisturbed(RECORDS)
