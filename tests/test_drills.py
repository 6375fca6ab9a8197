"""Goal: the judges of a drill acquit what was as promised, and notice each breach of it.

Method: histories written by hand, a lawful one and one for each law that is broken; random lawful
incidents that are then damaged (an alert is dropped, doubled or moved), where every damage must be
noticed or be one of those that the file says it cannot see. The plan of faults is a function of its
seed. The command refuses what may not be.
"""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from command import called, written

from raywatch.cluster.drills import alerts as law
from raywatch.cluster.drills import live
from raywatch.cluster.drills.faults import BY_NAME, KINDS, make, plan
from raywatch.cluster.drills.story import (
    LATE_S,
    Heard,
    Look,
    Story,
    breaches,
    dishonest,
    late,
    meanwhile,
    untold,
)

DIED = "owner hosts.owner-0.g1 is gone (its process died); its lanes get another owner"


def alert(state: str, offset: int, *, name: str = "i1", key: str = "k", **more: Any) -> Any:
    place = {"topic": "t", "partition": 0, "offset": offset}
    return {"detector": "d", "rule": "anomaly", "id": name, "key": key, "state": state,
            "lineage": place, **more}  # fmt: skip


LAWFUL = [
    alert("open", 1),
    alert("open", 2, name="j1", key="other"),
    alert("update", 3),
    alert("resolved", 4),
    alert("open", 6, name="i2"),
]


# ---- alerts ----------------------------------------------------------------------------------


def test_lawful_incidents_are_acquitted() -> None:
    assert law.unlawful(LAWFUL, whole=True) == []


@pytest.mark.parametrize(
    ("history", "why"),
    [
        ([LAWFUL[0], LAWFUL[0]], "said twice"),
        ([alert("open", 1), alert("open", 2)], "opened twice"),
        ([alert("open", 1), alert("open", 2, name="i2")], "never ended"),
        ([*LAWFUL[:4], alert("resolved", 4)], "after its end"),
        ([*LAWFUL[:4], alert("update", 9)], "after its end"),
        ([alert("update", 3)], "never opened"),
        ([alert("open", 1), alert("resolved", 2, name="i2")], "never opened"),
        ([alert("open", 1), alert("update", 3), alert("update", 3)], "said twice"),
    ],
)
def test_an_unlawful_incident_is_noticed(history: list[Any], why: str) -> None:
    found = law.unlawful(history, whole=True)
    assert found, history
    assert why in found[0], found


def test_an_incident_that_began_before_the_reading_is_no_breach_unless_all_was_read() -> None:
    assert law.unlawful([alert("resolved", 4)]) == []
    assert law.unlawful([alert("resolved", 4)], whole=True) != []


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_topic_is_noticed(seed: int) -> None:
    chance = random.Random(seed)
    history: list[Any] = []
    for number in range(chance.randint(5, 30)):  # incidents of one key, each whole
        states = ["open", *["update"] * chance.randint(0, 3), "resolved"]
        history += [alert(s, 100 * number + n, name=f"i{number}") for n, s in enumerate(states)]
    assert law.unlawful(history, whole=True) == []
    at = chance.randrange(len(history))
    doubled = [*history[: at + 1], history[at], *history[at + 1 :]]
    assert law.unlawful(doubled, whole=True), history[at]
    later = [*history, history[at]]
    assert law.unlawful(later, whole=True), history[at]
    dropped = [*history[:at], *history[at + 1 :]]
    unseen = history[at]["state"] == "update" or at == len(history) - 1
    assert bool(law.unlawful(dropped, whole=True)) != unseen, history[at]


def test_differences_are_counted_on_both_sides() -> None:
    assert law.differences({"a": 1, "b": 1}, {"a": 1, "b": 1}) == []
    missing, more = law.differences({"a": 2}, {"a": 1, "b": 1})
    assert missing == "1 of 2 are missing: ['b']"
    assert more == "1 are too many: ['a']"


def test_an_alert_of_a_record_that_nobody_committed_is_noticed() -> None:
    assert law.beyond([alert("open", 4)], {("t", 0): 5}) == []
    assert law.beyond([alert("open", 5)], {("t", 0): 5}) != []
    assert law.beyond([alert("open", 5)], {}) == []  # nobody said how far that partition is


def test_an_offset_that_goes_back_is_noticed() -> None:
    assert law.backward([{"t/0": 1}, {"t/0": 1, "t/1": 4}, {"t/1": 5}]) == []
    assert law.backward([{"t/0": 5}, {}, {"t/0": 4}]) == ["t/0: committed 5, later 4"]


def holder(epoch: str, committed: int, state: str = "running") -> law.Holder:
    return law.Holder(0, epoch, state, committed)


def test_an_old_holder_may_stand_there_but_may_not_go_on() -> None:
    stands = [[holder("a", 5)], [holder("a", 5), holder("b", 5)], [holder("a", 5), holder("b", 9)]]
    assert law.shared(stands) == []
    goes_on = [*stands, [holder("a", 6), holder("b", 9)], [holder("a", 7), holder("b", 9)]]
    assert law.shared(goes_on) == ["lane 0: a went on after b had taken it"]
    assert law.shared([*stands, [holder("a", 6, "fenced")]]) == []  # it only counts what it had


def test_who_opens_has_taken_nothing_and_an_old_holder_may_tell_late_of_what_it_did() -> None:
    opens = [[holder("a", 5)], [holder("a", 5), holder("b", 0, "opening")], [holder("a", 9)]]
    assert law.shared(opens) == []
    late = [[holder("a", 5)], [holder("b", 8)], [holder("a", 8), holder("b", 10)]]
    assert law.shared(late) == []  # `a` was frozen, and 8 is what it had committed before
    assert law.shared([*late, [holder("a", 9)]]) == ["lane 0: a went on after b had taken it"]


def test_a_gap_and_a_second_beginning_are_noticed() -> None:
    begun = {"what": "started", "detector": "d", "topic": "t", "partition": 3}
    lost = {**begun, "what": "lost", "committed": 4, "first_retained": 9}
    assert law.restarted([begun, {**begun, "partition": 4}, {"what": "serve"}]) == []
    assert law.restarted([begun, begun]) == ["t/3: begun a second time"]
    assert law.restarted([lost]) == ["t/3: records were lost, 4 to 9"]


# ---- stories ---------------------------------------------------------------------------------


def story(name: str = "owner-kill", **changes: Any) -> Story:
    base = Story(make(name, 1), "x", 100.0, 100.0, ("lane 0", "lane 1"),
                 {"lane 0": 101.0, "lane 1": 102.5})  # fmt: skip
    return dataclasses.replace(base, **changes)


def test_a_story_as_promised_has_no_breach() -> None:
    heard, looks = [Heard(101.0, DIED)], [Look(100.5, "healthy"), Look(101.5, "degraded")]
    assert breaches(story(), heard, looks) == []
    assert (story().first_s, story().back_s) == (1.0, 2.5)


def test_a_lane_that_never_speaks_again_or_too_late_is_noticed() -> None:
    assert "lane 1 never spoke again" in late(story(spoke={"lane 0": 101.0}))[0]
    slow = story(spoke={"lane 0": 101.0, "lane 1": 121.0})  # 20 s are promised
    assert "after 21.0 s, not 20.0" in late(slow)[0]
    # What cannot come back before it is undone is counted from then: 20 s and 2 s.
    assert late(dataclasses.replace(slow, waits=True, undone_s=102.0)) == []


def test_the_time_of_another_fault_is_not_counted_twice() -> None:
    slow = story(spoke={"lane 0": 101.0, "lane 1": 125.0})  # 25 s; 20 are promised
    other = story("broker-leader", at_s=90.0, undone_s=104.0, spoke=dict.fromkeys(slow.hurt, 93.0))
    same = story("store-full", at_s=101.0, undone_s=103.0, spoke=dict.fromkeys(slow.hurt, 102.0))
    assert late(slow, [slow, other]) != []  # 4 s of it were another's
    longer = dataclasses.replace(other, undone_s=105.5)
    assert late(slow, [slow, longer, same]) == []  # 5.5 s, of which `same` adds nothing
    assert late(slow, [slow, same]) != []


def test_a_sentence_that_nobody_said_is_noticed() -> None:
    assert untold(story(), [Heard(101.0, DIED)]) == []
    for heard in ([], [Heard(99.0, DIED)], [Heard(140.0, DIED)], [Heard(101.0, "all is well")]):
        assert "the journal never said" in untold(story(), heard)[0], heard
    assert untold(story("clock-jump"), []) == []  # nothing has to be said of it


def test_a_sentence_may_be_lost_only_where_its_sayer_died_first() -> None:
    assert untold(story(), [], [story("supervisor-kill", at_s=102.0)]) == []  # before it saw it
    itself = story("supervisor-kill")
    assert untold(itself, [], [itself]) != []
    away = story("broker-leader", at_s=99.0, undone_s=101.0, spoke={})
    died = story("supervisor-kill", at_s=104.0, undone_s=104.0)
    assert untold(story(), [], [away, died]) == []
    unheard = [
        [away],  # it lived to say it
        [died],  # it saw it, and brokers took it at once
        [away, story("supervisor-kill", at_s=99.5)],  # the next one saw it
        [away, story("supervisor-kill", at_s=130.0)],  # there was time enough
        [story("broker-leader", at_s=110.0, undone_s=112.0), died],  # they went away later
        [story("broker-leader", at_s=90.0, undone_s=95.0, spoke={}), died],  # they were back
    ]
    for others in unheard:
        hurt_nobody = [dataclasses.replace(each, spoke={}) for each in others]
        assert untold(story(), [], hurt_nobody) != [], others


def test_status_may_not_say_healthy_while_lanes_are_silent() -> None:
    silent = story(spoke={"lane 0": 101.0, "lane 1": 118.0})
    fine = [Look(100.0 + LATE_S + 1.0, "degraded"), Look(118.5, "healthy")]
    assert dishonest(silent, fine) == []
    assert "`status` said healthy" in dishonest(silent, [Look(117.0, "healthy")])[0]
    assert dishonest(story(), [Look(101.0, "healthy")]) == []  # not silent for long


def test_what_was_said_meanwhile_is_told_once_each() -> None:
    looks = [Look(100.5, "degraded", "a"), Look(101.0, "degraded", "a"), Look(90.0, "healthy")]
    said = meanwhile(story(), [Heard(101.0, DIED), Heard(102.0, DIED), Heard(50.0, "old")], looks)
    assert said == {"journal": [DIED], "status": ["degraded: a"]}


# ---- faults ----------------------------------------------------------------------------------


def test_a_plan_is_made_again_from_its_seed() -> None:
    assert plan(200, 1) == plan(200, 1)
    assert plan(200, 1) != plan(200, 2)
    faults = plan(200, 1)
    assert len(faults) == 200
    assert {f.name for f in faults} == {kind.name for kind in KINDS if kind.weight}
    assert [len(plan(n, 3)) for n in (0, 1, 8, 17, 50)] == [0, 1, 8, 17, 50]


def test_a_fault_lasts_and_picks_what_its_seed_says() -> None:
    for name, kind in BY_NAME.items():
        fault = make(name, 7, pause_s=0.5)
        assert kind.seconds[0] <= fault.seconds <= kind.seconds[1]
        assert 0.0 <= fault.after_s <= 0.5
    fault = make("owner-kill", 7)
    assert dataclasses.replace(fault, pick=0.0).chosen(["a", "b", "c"]) == "a"
    assert dataclasses.replace(fault, pick=0.999).chosen(["a", "b", "c"]) == "c"
    with pytest.raises(AssertionError, match="nobody is there"):
        fault.chosen([])


def test_only_what_may_be_done_to_a_running_deployment_is_offered() -> None:
    offered = {kind.name for kind in live.possible()}
    assert {"owner-kill", "scorer-freeze", "supervisor-kill"} <= offered
    assert not any(name.startswith(("broker", "store", "head")) for name in offered)
    assert all(kind.why_not for kind in KINDS if kind.where != "live")


# ---- the command -----------------------------------------------------------------------------


def test_drills_are_forbidden_unless_the_config_allows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = called(capsys, "drill", "run", written(tmp_path), "owner-kill", "--yes")
    assert said.code == 2
    assert "`drills` is `forbid`" in said.err
    assert "hint: set `drills: allow`" in said.err


@pytest.mark.parametrize(
    ("name", "why"),
    [("owner-kil", "there is no drill `owner-kil`"), ("brokers-all", "cannot end brokers")],
)
def test_what_is_no_drill_is_refused_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, why: str
) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace("{", '{"drills": "allow",', 1))
    said = called(capsys, "drill", "run", path, name, "--yes")
    assert said.code == 2
    assert why in said.err
    assert "owner-kill" in said.err.partition("hint:")[2]


def test_the_list_says_what_is_promised_and_what_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = called(capsys, "drill", "list").out
    for kind in KINDS:
        assert kind.name in said
        assert (kind.promise if kind.where == "live" else kind.why_not) in said
