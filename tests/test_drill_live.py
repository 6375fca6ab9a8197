"""Goal: `raywatch drill run` breaks a part of a service that runs, and tells truly what came of it.

Method: `raywatch run` on real Kafka in a process of its own, telemetry at a rate, and drills as an
operator types them; the audit topic is read back. A service that repeats an alert, loses an offset
or never comes back is played by hand on the embedded log: the drill has to say so.
"""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import called, started, written
from lanes import read_all, spec
from service import Feed

from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.ports import Committed, Log, Out, Partition
from raywatch.cluster.drills import live
from raywatch.cluster.drills.faults import make
from raywatch.models.errors import ConfigError, Unreachable
from raywatch.models.synthetic import Stream, generate, to_json

STREAM = Stream(keys=40, seed=11, injections=("spike", "level"), quiet=300)


@contextmanager
def service(config: Path) -> Iterator[str]:
    """`raywatch run`; yields the address of its Ray."""
    process = started("run", config, "--json")
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line, process.communicate(timeout=60)[1]
        yield json.loads(line)["ray"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=90)
    assert process.returncode == 0


def allowing(path: Path, to: Path, *, drills: str) -> Path:
    """The same config with a word on drills."""
    to.write_text(json.dumps({**json.loads(path.read_text()), "drills": drills}))
    return to


@pytest.mark.kafka
@pytest.mark.ray
def test_drills_on_a_running_service_hold_and_are_written_down(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, events = topic("drilled").lower(), topic("events")
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 4)
    table = generate(STREAM, 8_000, injections_per_kind=8)
    keys = [table.names[k].encode() for k in table.key]
    plain = written(
        tmp_path, bootstrap=kafka.bootstrap, name=name, topics=[events], start="earliest", lanes=2,
        alert={"warmup": 100, "probability": 2e-3, "quiet": 10}, missing={"enabled": False},
    )  # fmt: skip
    body = json.loads(plain.read_text())
    body |= {"owners": {"count": 2}, "pool": {"min": 2, "max": 2}, "audit": f"{name}.audit"}
    plain.write_text(json.dumps(body))
    config = allowing(plain, tmp_path / "drilled.yaml", drills="allow")

    def drill(fault: str, address: str, *words: str) -> tuple[int, dict[str, Any], str]:
        said = called(
            capsys, "drill", "run", config, fault, "--address", address, "--json", *words
        )  # fmt: skip
        return said.code, json.loads(said.out), said.err

    told: dict[str, dict[str, Any]] = {}
    with service(config) as address, Feed(log, events, keys, to_json(table), 2_500.0):
        code, plan, _ = drill("owner-kill", address)
        assert (code, plan["held"], plan["within_s"]) == (0, False, 20.0)
        wrong = called(
            capsys, "drill", "run", config, "owner-kill", "--address", address,
            "--target", f"{name}.owner-9.g1", "--yes",
        )  # fmt: skip
        assert (wrong.code, "cannot be hurt" in wrong.err) == (2, True), wrong.err
        for fault in ("owner-kill", "scorer-freeze", "supervisor-kill"):
            code, told[fault], err = drill(fault, address, "--yes")
            assert (code, told[fault]["verdict"]) == (0, "held"), "\n".join(
                told[fault]["broken"] + told[fault]["late"] + [err]
            )
            assert "is back after" in err
    audit = [json.loads(out.value or b"{}") for out in read_all(log, f"{name}.audit")]
    log.close()
    notes = [a for a in audit if a.get("what") == "drill"]
    assert [(n["drill"], n["state"]) for n in notes] == [
        (fault, state) for fault in told for state in ("begins", "ends")
    ]
    assert all(n["who"] and n["at_ms"] for n in notes)
    assert [n["verdict"] for n in notes if n["state"] == "ends"] == ["held"] * 3
    assert set(told["owner-kill"]["lanes"]) < {"lane 0", "lane 1"}  # of one owner of two
    assert told["supervisor-kill"]["alerts"] > 0  # alerts of the stream went on
    sentences = told["owner-kill"]["meanwhile"]["journal"]
    assert any("its lanes get another owner" in words for words in sentences), sentences


@pytest.mark.kafka
@pytest.mark.ray
def test_a_deployment_that_forbids_drills_says_no_whatever_the_file_at_hand_says(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, events = topic("spared").lower(), topic("events")
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 2)
    log.close()
    config = written(tmp_path, bootstrap=kafka.bootstrap, name=name, topics=[events], lanes=1)
    mine = allowing(config, tmp_path / "mine.yaml", drills="allow")
    with service(config) as address:
        said = called(capsys, "drill", "run", mine, "owner-kill", "--address", address, "--yes")
    assert said.code == 2
    assert "does not allow drills" in said.err
    assert "deploy it again" in said.err


# ---- what a drill has to notice ----------------------------------------------------------------


class Played:
    """A supervisor, a clock and a process, as a drill sees them; time passes when it sleeps."""

    pid = 4711

    def __init__(self, log: Log, detector: Any) -> None:
        self.log, self.spec, self.now = log, detector, 0.0
        self.partitions = (Partition(detector.topics[0], 0),)
        self.state = "running"
        self.after: Callable[[], None] = lambda: None  # what happens once time passes after it
        self.due: Callable[[], None] = lambda: None
        self.signals: list[int] = []

    def ask(self, method: str, *arguments: Any) -> Any:
        if method == "snapshot":
            return {"verdict": {"state": "healthy", "words": ""}}
        assert method == "posts", method
        lane = SimpleNamespace(
            lane=0, state=self.state, partitions=self.partitions, committed={"x": 0}
        )  # fmt: skip
        report = SimpleNamespace(lanes=(lane,), epoch="e1", parked=False)
        return {"d.owner-0.g1": {"pid": 1, "report": report}}

    def grip(self, name: str) -> "Played":
        return self

    def send(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGCONT:
            raise Unreachable("it was ended")
        self.due = self.after

    def let_go(self) -> None:
        self.signals.append(-1)

    def now_ms(self) -> int:
        return int(1_000 * self.now)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due, self.due = self.due, lambda: None
        due()


@pytest.fixture
def played() -> Played:
    log = EmbeddedLog(EmbeddedBroker())
    detector = spec("d", "events")
    for name in ("events", detector.alerts, detector.audit):
        log.create(name, 1)
    return Played(log, detector)


def held(played: Played, fault: str = "owner-pause") -> dict[str, Any]:
    """One drill on what is played."""
    scene = live.Scene(played.ask, played.grip, played.log, played.spec, played, "supervisor")
    drill = live.Drill(scene, make(fault, 1), ["d.owner-0.g1"])
    return drill.run(30.0, lambda words: None)


def raised(state: str, offset: int) -> dict[str, Any]:
    place = {"topic": "events", "partition": 0, "offset": offset}
    return {"id": "i", "detector": "d", "key": "k", "rule": "anomaly", "state": state,
            "lineage": place}  # fmt: skip


def commit(played: Played, records: int, *alerts: dict[str, Any]) -> None:
    """Records come, and the lane says alerts about them and commits."""
    log, partition = played.log, played.partitions[0]
    log.write([Out("events", b"k", b"{}")] * records)
    sink, source = log.sink("lane", played.spec.group), log.source(played.spec.group, [partition])
    sink.open()
    end = log.bounds([partition])[partition].end
    out = [Out(played.spec.alerts, b"k", json.dumps(a).encode()) for a in alerts]
    sink.transact(out, {partition: Committed(end)}, source)
    source.close()
    sink.close()


def test_a_pause_that_is_as_promised_holds_and_lets_go(played: Played) -> None:
    played.after = lambda: commit(played, 3, raised("open", 1))
    found = held(played)
    assert (found["verdict"], found["broken"], found["late"]) == ("held", [], []), found
    assert (found["first_alert_s"], found["alerts"]) == (live.LOOK_S, 1)  # seen at the second look
    assert played.signals[0] == signal.SIGSTOP
    assert played.signals[-2:] == [signal.SIGCONT, -1]  # woken and let go, however it ended


def test_an_alert_that_is_said_twice_breaks_the_promise(played: Played) -> None:
    played.after = lambda: commit(played, 3, raised("open", 1), raised("open", 1))
    found = held(played)
    assert found["verdict"] == "broken"
    assert "said twice" in found["broken"][0]


def test_an_alert_about_a_record_that_is_not_committed_breaks_the_promise(played: Played) -> None:
    played.after = lambda: commit(played, 3, raised("open", 7))
    assert "not committed" in held(played)["broken"][0]


def test_a_sentence_that_the_journal_owes_breaks_the_promise(played: Played) -> None:
    played.after = lambda: commit(played, 3)
    found = held(played, "owner-kill")
    assert found["verdict"] == "broken"
    assert "the journal never said" in found["broken"][0]


def test_lanes_that_do_not_come_back_are_late(played: Played) -> None:
    def dies() -> None:
        played.state = "opening"
        played.log.write([Out("events", b"k", b"{}")])

    played.after = dies
    found = held(played)
    assert (found["verdict"], found["back_s"]) == ("late", None), found
    assert "never spoke again" in found["late"][0]


def test_a_quiet_lane_is_back_when_its_owner_says_that_it_works(played: Played) -> None:
    found = held(played)
    assert (found["verdict"], found["alerts"], found["first_alert_s"]) == ("held", 0, None), found


def test_who_stands_by_for_an_owner_is_no_owner_yet() -> None:
    lane = SimpleNamespace(lane=0, state="running", partitions=("t/0",), committed={"t/0": 4})
    posts = {
        f"d.owner-0.g{n}": {"pid": n, "report": SimpleNamespace(
            lanes=(lane,), epoch=f"e{n}", parked=n == 2)}
        for n in (1, 2)
    }  # fmt: skip
    assert live.targets(make("owner-kill", 1).kind, posts, "d", "supervisor") == ["d.owner-0.g1"]
    assert [each.epoch for each in live.holders(posts)] == ["d.owner-0.g1/e1"]
    assert live.hurt_lanes(posts, ["d.owner-0.g1"]) == {"lane 0": ["t/0"]}


def test_nobody_is_hurt_who_is_not_there_or_not_meant() -> None:
    fault = make("scorer-kill", 1)
    assert live.victims(fault, ["a", "b"], "b") == ["b"]
    assert live.victims(make("scorers-kill", 1), ["a", "b"], "") == ["a", "b"]
    with pytest.raises(ConfigError, match="cannot be hurt"):
        live.victims(fault, ["a"], "c")
    with pytest.raises(live.Refused, match="nobody is there"):
        live.victims(fault, [], "")
