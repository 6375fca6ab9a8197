"""Goal: the demo shows what it says, accounts for itself truthfully, and leaves nothing behind.

Method: the command is run as a user runs it, in a process of its own, small; its JSON lines are
added up again here. What it started is found by a mark in the environment that processes inherit.
The account itself is tried on hand-made alerts that were lost, repeated, invented and changed.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raywatch.cluster.demo import (
    LIVE_MAX,
    STEP_MS,
    Death,
    World,
    alert_line,
    closing,
    compare,
    plan,
    summary,
)
from raywatch.models.errors import ConfigError
from raywatch.models.synthetic import Injection, judge

MARK = "RAYWATCH_TEST_MARK"
FIRST_ALERT_S = 20.0  # on a machine that has nothing else to do
SMALL = ("--seconds", "12", "--rate", "3000", "--seed", "3")


@dataclass
class Run:
    """A demo that has ended."""

    code: int
    events: list[dict[str, Any]]
    talk: str
    others: float  # processes per core that wanted to run when it began: not ours
    left: list[str]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]

    @property
    def summary(self) -> dict[str, Any]:
        (found,) = self.of("summary")
        return found


def marked(mark: str) -> list[str]:
    """Command lines of the processes that carry the mark."""
    found: list[str] = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it ended meanwhile
    return found


def gone(mark: str, wait_s: float = 20.0) -> list[str]:
    """What is still there after a while."""
    end = time.monotonic() + wait_s
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def started(mark: str, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "raywatch.cluster.cli", "demo", "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: mark},
        start_new_session=True,  # a group of its own: Ctrl-C reaches it alone
    )


def run(*words: str) -> Run:
    mark, others = uuid.uuid4().hex, os.getloadavg()[0] / (os.cpu_count() or 1)
    with started(mark, *words) as process:
        try:
            out, talk = process.communicate(timeout=280)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    events = [json.loads(line) for line in out.splitlines()]
    return Run(process.returncode, events, talk, others, gone(mark))


@pytest.fixture(scope="module")
def small() -> Run:
    """One small run, looked at from many sides."""
    return run(*SMALL)


def assert_truthful(ran: Run) -> None:
    """The summary says what the lines before it said."""
    assert ran.code == 0, (ran.events[-1:], ran.talk[-3_000:])
    found, said = ran.summary, [each["alert"] for each in ran.of("alert")]
    assert found["ok"]
    assert found["problems"] == []
    assert (found["lost"], found["repeated"], found["foreign"], found["different"]) == (0, 0, 0, 0)
    assert found["alerts"] == found["scored_again"] == found["same"] == len(said)
    states = Counter(each["state"] for each in said)
    assert (states["open"], states["update"], states["resolved"]) == (
        found["opened"],
        found["updated"],
        found["resolved"],
    )
    assert found["written"] == found["read"] == found["committed"] == found["records"]
    # What was found is judged again, from the places and the alerts alone.
    places = [
        Injection(each["kind"], each["key"], each["begin_ms"], each["end_ms"])
        for each in found["anomalies"]
    ]
    again = judge(
        places,
        [(each["key"], each["since_ms"], each["at_ms"], each["state"]) for each in said],
        slack_ms=60 * STEP_MS,
    )
    assert (again.found, again.missed, again.false) == (
        found["found"],
        found["missed"],
        found["false"],
    )
    assert found["found"] >= 1
    assert found["found"] + found["missed"] == found["injected"] == len(places)
    assert sum(each["found"] for each in found["anomalies"]) == found["found"]
    for kind, each in found["by_kind"].items():
        assert each["found"] + each["missed"] == each["injected"]
        assert each["injected"] == sum(place.kind == kind for place in places)
    assert len(found["by_kind"]) == 6


@pytest.mark.ray
def test_the_summary_is_what_the_lines_before_it_add_up_to(small: Run) -> None:
    assert_truthful(small)


@pytest.mark.ray
def test_a_scorer_and_an_owner_die_and_their_work_goes_on(small: Run) -> None:
    killed, back = small.of("killed"), small.of("back")
    assert [each["kind"] for each in killed] == ["scorer", "owner"]
    assert [each["name"] for each in back] == [each["name"] for each in killed]
    assert [each["pid"] for each in small.summary["deaths"]] == [each["pid"] for each in killed]
    assert all(each["back_s"] > 0 for each in small.summary["deaths"])


@pytest.mark.ray
def test_nothing_of_it_is_left(small: Run) -> None:
    assert small.left == []
    assert small.summary["left"] == []


@pytest.mark.ray
def test_the_first_alert_comes_soon_after_the_start(small: Run) -> None:
    # Its share of the machine is what others leave: with n processes on a core it takes n times
    # as long.
    allowed = FIRST_ALERT_S * max(1.0, 1.0 + small.others)
    assert small.summary["first_alert_s"] < allowed, (small.summary["first_alert_s"], small.others)


@pytest.mark.ray
def test_the_page_is_on_loopback(small: Run) -> None:
    (page,) = small.of("page")
    assert page["url"].startswith("http://127.0.0.1:")
    assert page["url"] == small.summary["page"]


@pytest.mark.ray
def test_for_people_the_end_says_the_same_numbers(small: Run) -> None:
    found = small.summary
    text = "\n".join(closing(found))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["all"] == [str(found[n]) for n in ("injected", "found", "missed")]
    assert f"{found['same']} are the same byte for byte; 0 lost, 0 repeated" in text
    assert text.endswith("nothing was lost, nothing was repeated")
    for each in small.of("alert"):
        line = alert_line(each["alert"])
        assert each["alert"]["key"] in line
        assert "\n" not in line


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_interrupts_it_gets_130_and_an_empty_machine(number: int) -> None:
    mark = uuid.uuid4().hex
    with started(mark, *SMALL) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "live":
                break
        os.killpg(process.pid, number) if number == signal.SIGINT else process.terminate()
        out, talk = process.communicate(timeout=120)
    assert process.returncode == 130, talk[-3_000:]
    assert talk.rstrip().endswith("interrupted")
    assert all(json.loads(line)["event"] != "summary" for line in out.splitlines())
    assert gone(mark) == []


@pytest.mark.ray
@pytest.mark.kafka
def test_the_same_on_real_kafka(kafka: Any) -> None:
    ran = run(*SMALL, "--broker", "kafka", "--bootstrap", kafka.bootstrap)
    assert_truthful(ran)
    assert len(ran.of("killed")) == 2
    assert ran.left == []
    assert ran.summary["prefix"] in kafka.tool("topics", "--list")


# ---- the account -----------------------------------------------------------------------------


def alert(number: int, state: str = "open", score: float = 1.0) -> bytes:
    return json.dumps(
        {
            "id": f"a{number}",
            "state": state,
            "at_ms": 1_000 * number,
            "since_ms": 1_000 * number,
            "key": f"cpu-{number}",
            "score": score,
        }
    ).encode()


THREE = [alert(1), alert(2), alert(2, "resolved")]


def test_equal_alerts_are_equal_in_any_order() -> None:
    found = compare(THREE[::-1], THREE)
    assert found.equal
    assert found.same == 3


def test_each_way_to_be_wrong_has_its_name() -> None:
    assert compare(THREE[:2], THREE).lost == 1
    assert compare([*THREE, THREE[0]], THREE).repeated == 1
    assert compare([*THREE, alert(9)], THREE).foreign == 1
    assert compare([alert(1, score=2.0), *THREE[1:]], THREE).different == 1
    for said in (THREE[:2], [*THREE, THREE[0]], [*THREE, alert(9)], [alert(1, score=2.0)]):
        assert not compare(said, THREE).equal


def account(**changes: Any) -> dict[str, Any]:
    """A summary in which all is well but what was changed."""
    places = (Injection("spike", "cpu-1", 1_000, 2_000), Injection("level", "cpu-7", 0, 9))
    given: dict[str, Any] = {
        "said": THREE,
        "right": THREE,
        "deaths": [Death("scorer", "demo.scorer-1", 7, 4.0, 1.5)],
        "written": 2,
        "read": 2,
        "committed": 2,
        "left": [],
        **changes,
    }
    made = World([None, None], 1, 1, places)  # type: ignore[list-item]
    said, right, deaths = (given.pop(name) for name in ("said", "right", "deaths"))
    return summary(plan(40, 5_000, 0), made, said, right, deaths, measured=given)


def test_an_account_in_which_all_is_well() -> None:
    found = account()
    assert found["ok"]
    assert (found["found"], found["missed"], found["false"]) == (1, 1, 1)  # cpu-2 was not injected
    assert found["by_kind"]["level"] == {"injected": 1, "found": 0, "missed": 1}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"said": THREE[:2]}, "alerts differ"),
        ({"said": [*THREE, THREE[0]]}, "alerts differ"),
        ({"said": [], "right": []}, "no injected anomaly was found"),
        ({"deaths": []}, "nothing was killed"),
        ({"deaths": [Death("owner", "demo.owner-0.g1", 7, 4.0, None)]}, "did not come back"),
        ({"committed": 1}, "not all of 2 records"),
        ({"left": [4_711]}, "did not end by themselves: [4711]"),
    ],
)
def test_what_went_wrong_is_a_problem_and_never_a_success(
    changes: dict[str, Any], problem: str
) -> None:
    found = account(**changes)
    assert not found["ok"]
    assert any(problem in each for each in found["problems"]), found["problems"]


def test_a_demo_has_room_for_every_kind_of_anomaly() -> None:
    for seconds, rate in ((12, 3_000), (40, 5_000), (3_600, 250)):
        chosen = plan(seconds, rate, 0)
        assert chosen.steps >= 400
        assert chosen.per_kind >= 2
        assert chosen.keys * chosen.steps <= seconds * rate
    assert plan(40, 5_000, 0).keys >= 300


@pytest.mark.parametrize(("seconds", "rate"), [(5, 100), (3_600, 100_000)])
def test_lengths_that_cannot_be_are_refused_in_words(seconds: float, rate: float) -> None:
    with pytest.raises(ConfigError, match=f"`--seconds {seconds}`") as caught:
        plan(seconds, rate, 0)
    assert "at least 16,000" in caught.value.hint or f"at most {LIVE_MAX:,}" in caught.value.hint
