"""Goal: what an operator gets wrong, or what is not there, ends with a sentence, a hint and the
exit code of its kind, soon, and leaves nothing running.

Method: the `raywatch` script as a subprocess where processes, signals or brokers count, its `main`
in this process elsewhere; dead brokers are a port nobody listens on and one where nobody answers;
real Kafka for topics, groups and retention.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import Said, called, started, written
from lanes import alerts, lag, make, read_all, running, spec, until

from raywatch.actors import checkpoint
from raywatch.actors import lane as lane_module
from raywatch.actors.clock import SystemClock
from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.ports import Committed, Out, Partition
from raywatch.cluster import journal
from raywatch.cluster.reader import Reader
from raywatch.cluster.series import Axis
from raywatch.cluster.snapshot import build, open_alerts
from raywatch.cluster.views import ClusterView, Observed, PoolView

BODY = b'{"host": "h1", "ts": 1700000000000, "value": 1.5}'
DEAD_S = 45.0  # A dead broker is reported after about 10 s; the rest is for busy machines.


@pytest.fixture
def raywatch(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    return partial(called, capsys)


# ---- brokers --------------------------------------------------------------------------------


def test_a_dead_broker_ends_every_command_with_3_and_its_address(tmp_path: Path) -> None:
    with socket.socket() as deaf:  # accepts, and never answers
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        nobody, silent = tmp_path / "nobody", tmp_path / "silent"
        for folder in (nobody, silent):
            folder.mkdir()
        closed = written(nobody)
        open_ = written(silent, bootstrap=f"127.0.0.1:{deaf.getsockname()[1]}")
        begin = time.monotonic()
        commands = {
            name: started(*words)
            for name, words in {
                "check": ("check", closed),
                "check, no answer": ("check", open_),
                "run": ("run", closed),
                "lag": ("lag", closed),
                "alerts": ("alerts", "tail", closed),
                "rejects": ("rejects", "tail", open_),
            }.items()
        }
        for name, command in commands.items():
            out, err = command.communicate(timeout=DEAD_S * 2)
            assert command.returncode == 3, (name, out, err)
            assert "no Kafka broker answered at `127.0.0.1:" in out + err, (name, out, err)
            assert "Traceback" not in err, (name, err)
        assert time.monotonic() - begin < DEAD_S


@pytest.mark.kafka
def test_the_first_questions_that_brokers_are_ever_asked_are_answered(
    kafka_new: Any, tmp_path: Path
) -> None:
    """Until somebody asks for a group, brokers have no coordinator to send its askers to."""
    from raywatch.actors.kafka import KafkaLog

    log = KafkaLog(kafka_new.bootstrap)
    log.create("events", 2)
    log.close()
    path = written(tmp_path, bootstrap=kafka_new.bootstrap)
    for words in (("lag", path, "--over", "0.2"), ("check", path)):
        ran = started(*words)  # in its own process: a client that crashes takes that with it
        out, err = ran.communicate(timeout=DEAD_S * 2)
        assert ran.returncode == 0, (ran.returncode, out, err)


@pytest.mark.kafka
def test_a_topic_that_is_not_there_is_said_with_names_that_were_meant(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    from raywatch.actors.kafka import KafkaLog

    events = topic("clicks")
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 1)
    log.close()
    name = topic("d")
    path = written(tmp_path, bootstrap=kafka.bootstrap, topics=[events[:-1] + "x"], name=name)
    for words in (("check", path), ("run", path), ("lag", path)):
        said = raywatch(*words)
        assert said.code == 2, said.err
        assert f"topic `{events[:-1]}x` of detector `{name}` does not exist" in said.out + said.err
        assert f"hint: did you mean `{events}`" in said.out + said.err
    assert not (tmp_path / "state").exists()  # what is refused leaves nothing behind

    said = raywatch("alerts", "tail", path)
    assert (said.code, said.err.split(":")[0]) == (1, "error")
    assert "it is made when the service starts" in said.err


@pytest.mark.kafka
def test_a_group_with_live_members_is_refused_with_1(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    import confluent_kafka as ck

    from raywatch.actors.kafka import KafkaLog

    events, group = topic("events"), topic("group")
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 1)
    member = ck.Consumer(
        {"bootstrap.servers": kafka.bootstrap, "group.id": group, "client.id": "someone-else"}
    )
    path = written(tmp_path, bootstrap=kafka.bootstrap, topics=[events], group=group)
    try:
        member.subscribe([events])

        def joined() -> bool:
            member.poll(0.1)
            return bool(member.assignment())

        until(joined)
        for command in ("check", "run"):
            said = raywatch(command, path)
            assert said.code == 1, said.err
            assert "live members" in said.out + said.err
            assert "someone-else" in said.out + said.err
            assert "hint: " in said.out + said.err
    finally:
        member.close()
        log.close()


@pytest.mark.kafka
def test_a_committed_offset_that_is_no_longer_retained_is_found_by_check(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    import confluent_kafka as ck
    from confluent_kafka.admin import AdminClient

    from raywatch.actors.kafka import KafkaLog

    events, group = topic("events"), topic("group")
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 1)
    log.write([Out(events, b"h1", BODY)] * 20)
    consumer = ck.Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group})
    consumer.commit(offsets=[ck.TopicPartition(events, 0, 5)], asynchronous=False)
    consumer.close()
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in admin.delete_records([ck.TopicPartition(events, 0, 9)]).values():
        future.result(10.0)
    log.close()
    there = {"bootstrap": kafka.bootstrap, "topics": [events], "group": group}
    said = raywatch("check", written(tmp_path, **there))
    assert said.code == 1, said.out
    assert f"{events}/0 lost records that were not scored to retention" in said.out
    assert "hint: `lost: continue`" in said.out
    said = raywatch("check", written(tmp_path, **there, lost="continue"))
    assert said.code == 0, said.out
    assert "! d: " in said.out


def test_a_lane_whose_offset_is_not_retained_stands_with_the_hint_or_goes_on_and_audits() -> None:
    for committed, side in ((5, "older"), (99, "newer")):
        broker = EmbeddedBroker()
        log = EmbeddedLog(broker)
        log.create("in", 2)
        for name in ("d.alerts", "d.rejects", "raywatch.audit"):
            log.create(name, 1)
        partitions = [Partition("in", 0), Partition("in", 1)]
        log.write([Out("in", b"h1", BODY)] * 20)
        (mine,) = [p for p, b in log.bounds(partitions).items() if b.end == 20]
        detector = spec("d", "in")
        sink, source = log.sink("other", detector.group), log.source(detector.group, partitions)
        sink.open()
        sink.transact(
            [], dict.fromkeys(partitions, Committed(0)) | {mine: Committed(committed)}, source
        )
        broker.delete_records(mine, 9)

        lane = make(detector, log, partitions)
        with running(lane):
            until(lambda lane=lane: lane.stats.state == "blocked")
            assert f"`{committed}` of `{mine}` is {side} than what the topic" in lane.stats.words
            assert "set `lost: continue`" in lane.stats.words
        assert log.committed(detector.group, [mine])[mine].offset == committed
        assert read_all(log, "raywatch.audit") == []

        detector = spec("d", "in", lost="continue")
        with running(make(detector, log, partitions)):
            until(lambda log=log, mine=mine: log.committed("raywatch.d", [mine])[mine].offset == 20)
        said = [json.loads(out.value or b"") for out in read_all(log, "raywatch.audit")]
        (lost,) = [entry for entry in said if entry["what"] == "lost"]
        assert (lost["committed"], lost["first_retained"]) == (committed, 9)
        assert (lost["topic"], lost["partition"]) == (mine.topic, mine.number)
        assert lag(log, detector, partitions) == 0
        assert alerts(log, "d.alerts") == []


def test_offsets_of_a_partition_to_which_nobody_writes_are_committed_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Brokers forget an offset after `offsets.retention.minutes`, 7 days, however the lane does."""
    monkeypatch.setattr(lane_module, "RENEW_S", 0.1)
    broker = EmbeddedBroker()
    log = EmbeddedLog(broker)
    for name, size in (("in", 2), ("d.alerts", 1), ("d.rejects", 1), ("raywatch.audit", 1)):
        log.create(name, size)
    partitions, detector = [Partition("in", 0), Partition("in", 1)], spec("d", "in")
    log.write([Out("in", b"h1", BODY)] * 20)
    with running(make(detector, log, partitions)):
        until(lambda: lag(log, detector, partitions) == 0)
        before = log.committed(detector.group, partitions)
        assert len(before) == 2
        broker._groups.clear()
        until(lambda: log.committed(detector.group, partitions) == before)
    started = [json.loads(o.value or b"")["what"] for o in read_all(log, "raywatch.audit")]
    assert started == ["started"] * 2  # nothing else is said


# ---- what lies in our own topics --------------------------------------------------------------


def test_what_others_wrote_into_our_topics_is_shown_or_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    from raywatch.cluster import connect

    log = EmbeddedLog(EmbeddedBroker())
    for name in ("d.alerts", "d.rejects"):
        log.create(name, 1)
    deep, huge = b"[" * 100_000, b'{"id": "a", "since_ms": 1, "at_ms": 1' + b"0" * 400 + b"}"
    odd = [b"text", b"[]", b"\xff", None, deep, huge, b'{"id": "b", "key": "\\ud800"}']
    log.write([Out("d.alerts", b"k", value) for value in odd])
    headers = (("reason", b"\xff"), ("offset", b"9" * 5_000), ("partition", b"x"))
    log.write([Out("d.rejects", b"k", value, headers) for value in odd])
    monkeypatch.setattr(connect, "open_log", lambda config: log)
    path = written(tmp_path)
    for command in ("alerts", "rejects"):
        for json_flag in ((), ("--json",)):
            found = raywatch(command, "tail", path, *json_flag)
            assert found.code == 0, found.err
            assert len(found.out.splitlines()) == len(odd)


def test_what_others_wrote_into_our_topics_stops_no_supervisor_and_no_lane() -> None:
    deep, digits = b"[" * 100_000, b"9" * 400
    odd = [
        deep,
        b'{"run_kind": "live", "id": "a", "since_ms": %s, "at_ms": 1}' % digits,
        b'{"run_kind": "live", "id": "b", "since_ms": 1, "tail_probability": %s}' % digits,
        b'{"run_kind": "live", "id": "c", "since_ms": 1, "at_ms": %s, "window": '
        b'{"step_ms": %s, "observed": [1, %s]}}' % (digits, digits, digits),
        b'{"run_kind": "live", "id": "d", "since_ms": 1, "channels": [1, {"share": "x"}]}',
        b'{"run_kind": "live", "id": ["e"], "state": {}}',
    ]
    log = EmbeddedLog(EmbeddedBroker())
    log.create("d.alerts", 1)
    log.write([Out("d.alerts", b"k", value) for value in odd])
    reader = Reader(log, SystemClock(), {}, {"d.alerts": "d"})
    reader.start()
    try:
        until(lambda: reader.alerts_total == len(odd) - 1)
        seen = Observed(
            ClusterView("c", "0", "d", 900.0),
            PoolView(1, 2, 0.7),
            alerts=open_alerts(reader.recent()),
        )
        made = build(seen, 1_700_000_000_000, Axis(n=6, step_s=5.0))
    finally:
        reader.close()
    assert reader.trouble == ""
    assert {incident["id"] for incident in made["incidents"]} == {"b", "c", "d"}
    json.dumps(made, allow_nan=False)
    assert journal.of_json(deep) is None
    assert checkpoint.noted(deep.decode()) == ("", None)
    assert checkpoint.noted('{"model": 7, "since": "x"}') == ("", None)


# ---- run ------------------------------------------------------------------------------------


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, NotADirectoryError):
            continue
        if entry.name.isdecimal() and fields[0] != "Z":
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = {pid}, [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


def living(pids: set[int]) -> dict[int, str]:
    """Those that still run, and what they are."""
    found: dict[int, str] = {}
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


@pytest.mark.kafka
@pytest.mark.ray
@pytest.mark.parametrize("how", ["ctrl-c", "sigterm while it starts"])
def test_an_interrupted_run_commits_and_leaves_no_process(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path, how: str
) -> None:
    from raywatch.actors.kafka import KafkaLog

    events, name = topic("events"), topic("d")
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 2)
    log.write([Out(events, b"h1", BODY)] * 50)
    path = written(
        tmp_path, bootstrap=kafka.bootstrap, topics=[events], name=name, start="earliest"
    )
    ran = started("run", path, "--json", start_new_session=True)
    mine: set[int] = set()
    try:
        assert ran.stdout is not None
        if how == "ctrl-c":
            assert json.loads(ran.stdout.readline())["state"] == "running"
            mine = family(ran.pid)
            assert len(mine) > 5
            os.killpg(ran.pid, signal.SIGINT)  # what a terminal does: everybody in the group
        else:
            begun = "raylet/raylet"  # Ray is up, raywatch is not
            until(lambda: begun in " ".join(living(family(ran.pid)).values()), 60.0)
            mine = family(ran.pid)
            ran.send_signal(signal.SIGTERM)
        _, err = ran.communicate(timeout=60)
        assert ran.returncode in (0, 130), err
        assert "Traceback" not in err
        until(lambda: not living(mine), 15.0)
    finally:
        mine |= family(ran.pid) if ran.poll() is None else set()
        for pid in living(mine):
            os.kill(pid, signal.SIGKILL)
    if how == "ctrl-c":
        partitions = [Partition(events, 0), Partition(events, 1)]
        assert lag(log, spec(name, events), partitions) == 0
    log.close()
