"""Goal: an owner runs its lanes by the newest roster, and ends its process rather than go on wrong.

Method: owners in this process on the embedded log; scorers answer in place; `die` is noted instead
of carried out. Ports are wrapped where a client call has to hang or break.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from lanes import RECORDS, World, lag, spec, undisturbed, until, world

from raywatch.actors.clock import SystemClock
from raywatch.actors.owner import CALL_MAX_S, Owner, Roster
from raywatch.actors.pool import Members
from raywatch.actors.spec import DetectorSpec
from raywatch.models.registry import build, shipped
from raywatch.models.scorer import ModelSpec, Scores, Segments, describe


class Here:
    """A member of the pool that scores where it is called."""

    def __init__(self, name: str, model: str) -> None:
        self.name, self._scorer = name, build(shipped(model))
        self.version = self._scorer.version
        self.model: ModelSpec = describe(self._scorer)

    def score(self, payload: Segments) -> "Future[Scores]":
        answer: Future[Scores] = Future()
        answer.set_result(self._scorer.score(payload))
        return answer


ROBUST, LAGBANK = Here("s-1", "robustz"), Here("s-2", "lagbank")
MODELS = {ROBUST.version: ROBUST.model, LAGBANK.version: LAGBANK.model}
BOTH = {"s-1": ROBUST, "s-2": LAGBANK}


@contextmanager
def owner(
    there: World,
    detector: DetectorSpec,
    *,
    log: Any = None,
    deaths: list[BaseException] | None = None,
) -> Iterator[Owner]:
    """An owner of two lanes; stopped at the end. Nobody may have died that was not to."""
    died = [] if deaths is None else deaths
    made = Owner(
        "d.owner-0.g1",
        detector,
        {n: tuple(there.partitions[n::2]) for n in (0, 1)},
        log=log or there.log,
        store=there.store,
        clock=SystemClock(),
        members=Members(SystemClock()),
        epoch="e1",
        die=died.append,
    )
    try:
        yield made
    finally:
        stopped = made.stop(20.0)
    assert stopped
    assert deaths is not None or not died, died


def roster(number: int, version: str, lanes: int = 2) -> Roster:
    return Roster(number, MODELS, dict.fromkeys(range(lanes), version))


def test_lanes_wait_for_a_roster_and_then_work() -> None:
    there, detector = world(), spec("d", "in")
    there.log.write(RECORDS)
    with owner(there, detector) as made:
        until(lambda: all("no scorer has said" in each.words for each in made.report().lanes))
        assert {each.state for each in made.report().lanes} == {"opening"}
        made.enlist(roster(1, ROBUST.version), BOTH)
        until(lambda: lag(there.log, detector, there.partitions) == 0)
        until(lambda: {each.state for each in made.report().lanes} == {"running"})
        report = made.report()
    assert sum(each.records for each in report.lanes) == len(RECORDS)
    assert report.exactly_once
    assert report.roster == 1
    assert report.rss_bytes > 1 << 20
    assert there.said() == undisturbed(RECORDS)


def test_an_owner_logs_each_state_of_its_lanes_once_and_also_that_it_was_fenced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    there, detector = world(), spec("d", "in")
    there.log.write(RECORDS[:4_000])
    with owner(there, detector) as made:
        made.enlist(roster(1, ROBUST.version), BOTH)
        until(lambda: lag(there.log, detector, there.partitions) == 0)
        until(lambda: capsys.readouterr().out.count('"running"') >= len(made.lanes), 10.0)
        for lane in made.lanes:  # another takes its lanes
            sink = there.log.sink(detector.lane_id(lane), detector.group)
            sink.open()
            sink.close()
        there.log.write(RECORDS[4_000:8_000])
        until(lambda: {each.state for each in made.report().lanes} == {"fenced"})
        until(lambda: not any(thread.is_alive() for thread in made._threads))
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    fenced = [line for line in lines if line["state"] == "fenced"]
    assert sorted(line["lane"] for line in fenced) == sorted(made.lanes)
    assert all("has another holder" in line["words"] for line in fenced), fenced
    assert {(line["owner"], line["epoch"]) for line in lines} == {(made.name, "e1")}


def test_an_older_roster_than_the_one_in_use_is_ignored() -> None:
    there, detector = world(), spec("d", "in")
    with owner(there, detector) as made:
        made.enlist(roster(5, ROBUST.version), {"s-1": ROBUST})
        made.enlist(roster(4, LAGBANK.version), {"s-2": LAGBANK})
        there.log.write(RECORDS[:4_000])
        until(lambda: lag(there.log, detector, there.partitions) == 0)
        assert {each.version for each in made.report().lanes} == {ROBUST.version}


def test_a_new_owner_goes_on_with_the_version_that_was_committed_while_it_is_served() -> None:
    there, detector = world(), spec("d", "in")
    there.log.write(RECORDS[:4_000])
    with owner(there, detector) as made:
        made.enlist(roster(1, ROBUST.version), BOTH)
        until(lambda: lag(there.log, detector, there.partitions) == 0)
    there.log.write(RECORDS[4_000:8_000])
    with owner(there, detector) as made:
        made.enlist(roster(2, LAGBANK.version), BOTH)
        until(lambda: {each.version for each in made.report().lanes} == {LAGBANK.version})
        until(lambda: lag(there.log, detector, there.partitions) == 0)
    audited = [(a["before"], a["model"]) for a in there.audited("version")]
    assert Counter(audited) == {(ROBUST.version, LAGBANK.version): len(there.partitions)}


def test_what_no_lane_foresaw_ends_the_process() -> None:
    class Broken:
        def __init__(self, log: Any) -> None:
            self._log = log

        def __getattr__(self, name: str) -> Any:
            return getattr(self._log, name)

        def source(self, *_: Any, **__: Any) -> Any:
            raise ZeroDivisionError("a bug")

    there, deaths = world(), list[BaseException]()
    with owner(there, spec("d", "in"), log=Broken(there.log), deaths=deaths):
        until(lambda: len(deaths) == 2)  # one for each lane
    assert {type(each) for each in deaths} == {ZeroDivisionError}


@pytest.mark.parametrize(("age_s", "ends"), [(CALL_MAX_S + 1.0, True), (CALL_MAX_S - 10.0, False)])
def test_a_client_call_that_outlives_its_deadline_ends_the_process(
    age_s: float, ends: bool
) -> None:
    class Hanging:
        """A log whose sinks say that a call began a while ago."""

        def __init__(self, log: Any) -> None:
            self._log = log
            self._since = time.monotonic() - age_s

        def __getattr__(self, name: str) -> Any:
            return getattr(self._log, name)

        def sink(self, lane: str, group: str) -> Any:
            sink = self._log.sink(lane, group)
            sink.calling_since = lambda: self._since
            return sink

    there, deaths = world(), list[BaseException]()
    with owner(there, spec("d", "in"), log=Hanging(there.log), deaths=deaths) as made:
        made.enlist(roster(1, ROBUST.version), BOTH)
        until(lambda: {each.state for each in made.report().lanes} == {"running"})
        if ends:
            until(lambda: bool(deaths))
        else:
            time.sleep(2.5)  # the watchdog looks once a second
    assert bool(deaths) == ends
    assert all("a client call hangs for 3" in str(each) for each in deaths)


def test_a_stopped_owner_has_committed_what_it_pulled_and_says_so() -> None:
    there, detector = world(), spec("d", "in", batch_records=200)
    there.log.write(RECORDS)
    with owner(there, detector) as made:
        made.enlist(roster(1, ROBUST.version), BOTH)
        until(lambda: sum(each.records for each in made.report().lanes) > 2_000)
        assert made.stop(20.0)
        report = made.report()
    assert {each.state for each in report.lanes} == {"stopped"}
    done = sum(c.offset for c in there.commits(detector).values())
    assert done == sum(each.records for each in report.lanes)
    assert json.loads(json.dumps(report.lanes[0].committed)) == report.lanes[0].position
