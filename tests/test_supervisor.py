"""Goal: the supervisor may die at any time: nothing stops and nothing is forgotten.

Method: the whole service on real Ray and the embedded log (an actor); the supervisor's process is
killed -9 while records flow, in quiet and in the middle of a rollout.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lanes import alerts, read_all
from service import Feed, Service, config, identity, ray_local, until

from raywatch.actors import runtime as actors
from raywatch.actors.backtest import backtest
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.ports import Log, Out, Partition
from raywatch.actors.runtime import LogSpec
from raywatch.cluster import launch, runtime
from raywatch.cluster.commands.status import fetch
from raywatch.cluster.deployment import Deployment, log_spec, prepare
from raywatch.models.artifact import Artifact, pack
from raywatch.models.errors import ConfigError, Refused, Unreachable
from raywatch.models.registry import Registry, build, shipped
from raywatch.models.synthetic import Stream, generate, to_json
from raywatch.models.train import train

pytestmark = pytest.mark.ray
STREAM = Stream(keys=40, seed=5, quiet=300, injections=("spike", "level"))
ROWS = 1_500


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with ray_local():
        yield


@pytest.fixture
def embedded(ray_here: None, topic: Callable[[str], str]) -> Iterator[tuple[LogSpec, str]]:
    """An embedded log with an empty topic of 8 partitions."""
    name, events = topic("broker"), topic("events")
    broker = actors.start_broker(name)
    spec = LogSpec(embedded=name)
    log = actors.open_log(spec)
    log.create(events, 8)
    log.close()
    yield spec, events
    runtime.end(broker)


def served(log: Log, service: Service) -> list[dict[str, Any]]:
    """`serve` records of the audit topic, oldest first."""
    entries = [json.loads(out.value) for out in read_all(log, service.config.audit)]
    return [e for e in entries if e.get("what") == "serve"]


def kill_supervisor(service: Service) -> float:
    """Seconds from kill -9 to its first answer; another process answers."""
    pid = service.call("pid")
    began = time.monotonic()
    service.signal(pid)
    until(lambda: service.call("pid") != pid, 60.0)
    until(lambda: service.call("starting") == "", 60.0)
    return time.monotonic() - began


def sibling(number: int) -> Artifact:
    """A version that scores like the shipped robustz and is another one all the same."""
    series = generate(replace(STREAM, seed=100 + number), 40).series()
    return train("robustz", "robustz", series, seed=number)


def test_a_killed_supervisor_comes_back_and_adopts_what_runs(
    embedded: tuple[LogSpec, str], topic: Callable[[str], str], tmp_path: Path
) -> None:
    spec, events = embedded
    name = topic("hosts").lower()
    table = generate(STREAM, ROWS, injections_per_kind=6)
    values, keys = to_json(table), [table.names[k].encode() for k in table.key]
    service = Service(config("embedded", events, tmp_path, name=name), spec)
    try:
        service.start()
        owners, scorers = service.pids("owner"), service.pids("scorer")
        opened, started = service.opened(), service.journal()[-1]
        page = service.call("url")
        with Feed(service.log, events, keys, values, 5_000.0) as feed:
            until(lambda: feed.sent > 15_000)
            took_s = kill_supervisor(service)
            assert took_s < 30.0, took_s
            until(lambda: feed.sent == len(values), 60.0)
        service.drained()

        # Who works was not touched: same processes, lanes never opened again.
        assert service.pids("owner") == owners
        assert service.pids("scorer") == scorers
        assert service.opened() == opened
        # The journal was remembered from the audit topic, and goes on.
        said = service.journal()
        assert started in said, said
        assert any("actors run already" in words for words in said), said

        until(lambda: service.call("snapshot")["owners"]["lag_records"] == 0)
        shown = service.call("snapshot")
        assert (shown["owners"]["up"], shown["owners"]["want"]) == (2, 2)
        assert (shown["scorers"]["serving"], shown["scorers"]["starting"]) == (2, 0)
        assert shown["partitions"]["total"] == 8
        assert {n for n in shown["partitions"]["state"]} == {"ok"}
        assert {mark["label"] for mark in shown["marks"]} >= {"start", "supervisor"}
        # The port was left open to chance (0), so the page is somewhere else and serves the same.
        url = service.call("url")
        assert fetch(url)["schema"] == "raywatch.snapshot/1", page
        said_alerts = alerts(service.log, service.spec.alerts)
    finally:
        service.stop()

    path, out = tmp_path / "records.jsonl", tmp_path / "alerts.jsonl"
    path.write_bytes(b"\n".join(values) + b"\n")
    scorer = build(shipped("robustz"))
    backtest(service.spec, scorer, path, tmp_path / "o.parquet", alerts=out, partitions=8)
    filed = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert len(filed) >= 6, len(filed)
    assert sorted(same(a) for a in filed) == sorted(same(a) for a in said_alerts)


def same(alert: dict[str, Any]) -> tuple[Any, ...]:
    """Everything but where it lay and whether it was live."""
    return identity({**alert, "run_kind": ""})


def test_a_rollout_goes_on_when_the_supervisor_is_killed_in_the_middle(
    embedded: tuple[LogSpec, str], topic: Callable[[str], str], tmp_path: Path
) -> None:
    spec, events = embedded
    name = topic("hosts").lower()
    table = generate(STREAM, ROWS)
    values, keys = to_json(table), [table.names[k].encode() for k in table.key]
    service = Service(config("embedded", events, tmp_path, name=name), spec)
    artifact = sibling(1)
    Registry(Path(service.config.models)).add(artifact)
    try:
        service.start()
        put(service, artifact)
        owners, opened = service.pids("owner"), service.opened()
        with Feed(service.log, events, keys, values, 1_000.0):
            service.call("rollout_start", name, artifact.version, "a test")

            def moved() -> int:
                lanes = service.call("rollout_status", name)["lanes"]
                return sum(version == artifact.version for version in lanes.values())

            until(lambda: moved() >= 1, 60.0)
            kill_supervisor(service)
            assert service.call("rollout_status", name)["rollout"] is not None
            until(lambda: not service.call("rollout_status", name)["under_way"], 90.0)
            found = service.call("rollout_status", name)
        service.drained()
        assert found["rollout"]["phase"] == "done"
        assert set(found["lanes"].values()) == {artifact.version}
        assert [s["version"] for s in found["scorers"] if s["state"] == "ready"] == [
            artifact.version
        ] * 2
        assert service.pids("owner") == owners
        assert service.opened() == opened
        # No partition was sent back and forth: one first offset of the new version in each.
        entries = [json.loads(o.value) for o in read_all(service.log, service.config.audit)]
        changes = [e for e in entries if e.get("what") == "version"]
        assert {e["model"] for e in changes} == {artifact.version}
        places = [(e["topic"], e["partition"]) for e in changes]
        assert sorted(places) == sorted((p.topic, p.number) for p in service.partitions)
        # What the next supervisor would read, and does: the rollout is over, its target serves.
        until(lambda: served(service.log, service)[-1]["target"] == artifact.version)
        kill_supervisor(service)
        again = service.call("rollout_status", name)
        assert (again["serves"], again["under_way"]) == (artifact.version, False)
        assert set(again["lanes"].values()) == {artifact.version}
        marks = [m for m in service.call("snapshot")["marks"] if m["kind"] == "rollout"]
        bands = [m for m in marks if m["label"] == artifact.version]
        assert [("until_ms" in m) for m in bands] == [True], marks
    finally:
        service.stop()


def put(service: Service, artifact: Artifact) -> None:
    """As `raywatch rollout start` does: into the store, before the supervisor is asked."""
    from raywatch.actors.store import open_store
    from raywatch.cluster.deployment import artifact_name

    open_store(service.deployment.store).put(artifact_name(artifact.version), pack(artifact))


def test_a_version_that_cannot_be_loaded_is_rolled_back_within_seconds(
    embedded: tuple[LogSpec, str], topic: Callable[[str], str], tmp_path: Path
) -> None:
    spec, events = embedded
    name = topic("hosts").lower()
    service = Service(config("embedded", events, tmp_path, name=name), spec)
    artifact = Artifact("broken", "python", {"class": "sleepy:Broken"})
    try:
        service.start()
        put(service, artifact)
        scorers = service.pids("scorer")
        service.call("rollout_start", name, artifact.version, "a test")
        with pytest.raises(Refused, match="is under way"):
            service.call("rollout_start", name, sibling(1).version, "a test")
        until(lambda: not service.call("rollout_status", name)["under_way"], 60.0)
        found = service.call("rollout_status", name)
        assert found["rollout"]["phase"] == "rolled back"
        assert "this version cannot be loaded" in found["rollout"]["why"]
        assert found["serves"] == shipped("robustz").version
        assert service.pids("scorer") == scorers
        with pytest.raises(Refused, match="no rollout"):
            service.call("rollout_abort", name, "a test")
        with pytest.raises(ConfigError, match="has no artifact"):
            service.call("rollout_start", name, "robustz@000000000000", "a test")
        with pytest.raises(Refused, match="serves already"):
            service.call("rollout_start", name, found["serves"], "a test")
    finally:
        service.stop()


def test_deploying_what_runs_changes_nothing_and_another_config_is_refused(
    embedded: tuple[LogSpec, str], topic: Callable[[str], str], tmp_path: Path
) -> None:
    spec, events = embedded
    name = topic("hosts").lower()
    settings = config("embedded", events, tmp_path, name=name)
    service = Service(settings, spec)
    try:
        service.start()
        posts = {n: p["pid"] for n, p in service.posts().items()}
        opened, supervisor = service.opened(), service.call("pid")
        again: Deployment = prepare(settings, service.log, spec)
        handle = launch.start(again, wait_s=60.0)
        assert runtime.call(handle, "pid") == supervisor
        assert {n: p["pid"] for n, p in service.posts().items()} == posts
        assert service.opened() == opened

        other = config("embedded", events, tmp_path, name=name, pool={"min": 1, "max": 9})
        with pytest.raises(Refused, match="another config"):
            launch.start(prepare(other, service.log, spec), wait_s=60.0)
    finally:
        service.stop()


def test_a_deployment_whose_page_cannot_listen_says_so_and_leaves_nothing(
    embedded: tuple[LogSpec, str], topic: Callable[[str], str], tmp_path: Path
) -> None:
    import socket

    spec, events = embedded
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = config("embedded", events, tmp_path, name=topic("hosts").lower())
        settings = settings.model_copy(
            update={"page": settings.page.model_copy(update={"port": port})}
        )
        service = Service(settings, spec)
        try:
            with pytest.raises(ConfigError, match=f"port {port}"):
                service.start()
        finally:
            service.stop()
    with pytest.raises(Exception, match="no actor"):
        runtime.supervisor()


def test_an_owner_whose_process_was_killed_is_replaced_and_nothing_is_lost(
    embedded: tuple[LogSpec, str], topic: Callable[[str], str], tmp_path: Path
) -> None:
    spec, events = embedded
    name = topic("hosts").lower()
    table = generate(STREAM, 1_000)
    values, keys = to_json(table), [table.names[k].encode() for k in table.key]
    service = Service(config("embedded", events, tmp_path, name=name), spec)
    try:
        service.start()
        before = service.pids("owner")
        victim = sorted(before)[0]
        heir = victim.replace(".g1", ".g2")
        with Feed(service.log, events, keys, values, 4_000.0) as feed:
            until(lambda: feed.sent > 10_000)
            service.signal(before[victim])
            until(lambda: heir in service.pids("owner"), 60.0)
            until(lambda: feed.sent == len(values), 60.0)
        service.drained()
        after = service.pids("owner")
        assert {n: p for n, p in after.items() if n != heir} == {
            n: p for n, p in before.items() if n != victim
        }
        said = alerts(service.log, service.spec.alerts)
        assert len({(a["id"], a["state"], a.get("at_ms")) for a in said}) == len(said)
    finally:
        service.stop()


@pytest.mark.kafka
def test_a_supervisor_that_comes_back_without_brokers_waits_for_them_and_says_so(
    ray_here: None, kafka3: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    events, name = topic("events"), topic("hosts").lower()
    log = KafkaLog(kafka3.bootstrap)
    log.create(events, 4)
    table = generate(STREAM, 200)
    out = [
        Out(events, table.names[k].encode(), value)
        for k, value in zip(table.key, to_json(table), strict=True)
    ]
    service = Service(config(kafka3.bootstrap, events, tmp_path, name=name))
    try:
        service.start()
        log.write(out[:4_000])
        service.drained()
        owners, pid = service.pids("owner"), service.call("pid")
        for node in kafka3.nodes:
            kafka3.kill(node)
        service.signal(pid)
        until(lambda: service.call("pid") != pid, 60.0)
        words = service.call("starting")
        assert words, "it cannot know what was decided before"
        assert "has not begun" in service.call("snapshot")["verdict"]["words"]
        with pytest.raises(Unreachable):
            service.call("rollout_status", name)
        kafka3.start()
        log.write(out[4_000:])
        until(lambda: service.call("starting") == "", 120.0)
        service.drained()
        assert service.pids("owner") == owners
    finally:
        service.stop()
        log.close()


def test_a_group_with_live_members_is_refused(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    import confluent_kafka

    events, name = topic("events"), topic("hosts").lower()
    settings = config(kafka.bootstrap, events, tmp_path, name=name)
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 2)
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": kafka.bootstrap, "group.id": f"raywatch.{name}"}
    )
    try:
        consumer.subscribe([events])
        until(lambda: consumer.poll(0.2) is None and len(consumer.assignment()) == 2, 60.0)
        with pytest.raises(Refused, match="live members"):
            prepare(settings, log, log_spec(settings))
    finally:
        consumer.close()
    made = prepare(settings, log, log_spec(settings))
    assert made.detections[0].partitions == [Partition(events, 0), Partition(events, 1)]
    log.close()
