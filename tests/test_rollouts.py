"""Goal: a model is replaced while records flow, and nobody loses a record or an alert by it.

Method: real Kafka under load, three rollouts in a row with a scorer killed in the middle of each.
The versions score alike and differ in their hash only, so what the service says can be compared
with a file that was never rolled anything; then versions that score differently, compared with a
lane of our own that changes exactly where the audit topic says. And the commands, as a user.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lanes
import numpy as np
import pytest
import yaml
from lanes import alerts, read_all
from service import Feed, Service, config, identity, ray_local, until

from raywatch.actors import runtime as actors
from raywatch.actors.backtest import backtest
from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.flow import Flow
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.ports import Fetched, Log, Out, Partition
from raywatch.actors.records import RecordSpec
from raywatch.actors.runtime import LogSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.store import MemoryStore, open_store
from raywatch.cluster.config import Config
from raywatch.cluster.deployment import artifact_name
from raywatch.models.artifact import Artifact, pack
from raywatch.models.registry import Registry, build, shipped
from raywatch.models.scorer import Scorer, describe
from raywatch.models.synthetic import Stream, generate, to_json
from raywatch.models.train import train

STREAM = Stream(keys=400, seed=21, quiet=300, injections=("spike", "level", "variance"))
RATE = 10_000.0  # records a second
RECORDS_MAX = 900_000


def sibling(number: int) -> Artifact:
    """A version that scores like the shipped robustz and is another one all the same."""
    series = generate(replace(STREAM, keys=5, seed=100 + number), 64).series()
    return train("robustz", "robustz", series, seed=number)


def put(service: Service, artifact: Artifact) -> None:
    """As `raywatch rollout start` does: into the store, before the supervisor is asked."""
    open_store(service.deployment.store).put(artifact_name(artifact.version), pack(artifact))


def roll(service: Service, artifact: Artifact, *, kill: bool) -> float:
    """One rollout from start to done, with a scorer killed in the middle. Seconds it took."""
    name = service.spec.name
    put(service, artifact)
    began = time.monotonic()
    service.call("rollout_start", name, artifact.version, "a test")
    if kill:
        until(lambda: len(_lanes_on(service, artifact.version)) >= 1, 90.0)
        found = service.call("rollout_status", name)
        assert found["under_way"], found
        ready = [s["name"] for s in found["scorers"] if s["state"] == "ready"]
        pids = service.pids("scorer")
        victim = next(n for n in ready if n in pids)
        service.signal(pids[victim])
    until(lambda: not service.call("rollout_status", name)["under_way"], 120.0)
    found = service.call("rollout_status", name)
    assert found["rollout"]["phase"] == "done", found
    assert found["serves"] == artifact.version
    return time.monotonic() - began


def _lanes_on(service: Service, version: str) -> list[str]:
    found = service.call("rollout_status", service.spec.name)
    return [lane for lane, each in found["lanes"].items() if each == version]


def versions(log: Log, audit: str) -> dict[Partition, list[tuple[int, str]]]:
    """Partition -> (first offset, version) in the order of the audit topic."""
    found: dict[Partition, list[tuple[int, str]]] = {}
    for out in read_all(log, audit):
        entry = json.loads(out.value)
        if entry.get("what") in ("started", "version"):
            partition = Partition(entry["topic"], entry["partition"])
            found.setdefault(partition, []).append((entry["offset"], entry["model"]))
    return found


def version_at(history: list[tuple[int, str]], offset: int) -> str:
    return [version for begin, version in history if begin <= offset][-1]


def same(alert: Mapping[str, Any], *but: str) -> tuple[Any, ...]:
    """Everything but where it lay, whether it was live, and what is named."""
    return identity({k: v for k, v in alert.items() if k not in ("run_kind", *but)})


@pytest.mark.kafka
@pytest.mark.ray
def test_three_rollouts_under_load_with_a_scorer_killed_in_each_lose_and_repeat_nothing(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name, events = topic("hosts").lower(), topic("events")
    table = generate(STREAM, RECORDS_MAX // STREAM.keys, injections_per_kind=20)
    values, keys = to_json(table), [table.names[k].encode() for k in table.key]
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 12)
    new = [sibling(n) for n in (1, 2, 3)]
    with ray_local():
        service = Service(config(kafka.bootstrap, events, tmp_path, name=name))
        try:
            service.start()
            opened = service.opened()
            with Feed(log, events, keys, values, RATE) as feed:
                time.sleep(2.0)
                began, sent = time.monotonic(), feed.sent
                took = [roll(service, artifact, kill=True) for artifact in new]
                rate = (feed.sent - sent) / (time.monotonic() - began)
            service.drained()
            assert service.opened() == opened, "a lane was opened again"
            said = alerts(log, service.spec.alerts)
            history = versions(log, service.config.audit)
            deaths = [w for w in service.journal() if "is gone" in w]
        finally:
            service.stop()
            log.close()
    print(f"{took=} {rate=:.0f} {feed.sent=} alerts={len(said)}")
    assert feed.sent < len(values), "the feed ran dry"
    assert len(deaths) == 3, deaths

    # Each partition had each version once, in order, from an audited offset on.
    expected = [shipped("robustz").version, *(artifact.version for artifact in new)]
    assert len(history) == 12
    for partition, changes in history.items():
        assert [version for _, version in changes] == expected, partition
        assert changes[0][0] == 0
        assert [offset for offset, _ in changes] == sorted(offset for offset, _ in changes)

    # Every alert names the version that scored the record it is about.
    for alert in said:
        where = alert["lineage"]
        partition = Partition(where["topic"], where["partition"])
        assert alert["model"] == version_at(history[partition], where["offset"]), alert
    assert {alert["model"] for alert in said} >= set(expected[1:])

    # Nothing lost, nothing twice: the same as a file that was scored by one version.
    path, out = tmp_path / "records.jsonl", tmp_path / "alerts.jsonl"
    path.write_bytes(b"\n".join(values[: feed.sent]) + b"\n")
    scorer = build(shipped("robustz"))
    backtest(service.spec, scorer, path, tmp_path / "o.parquet", alerts=out, partitions=12)
    filed = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert len(filed) >= 30, len(filed)
    assert sorted(same(a, "model") for a in filed) == sorted(same(a, "model") for a in said)


# --- versions that do not score alike


def spoken(log: Log, partition: Partition) -> Fetched:
    """All records of a partition as a lane would fetch them."""
    bounds = log.bounds([partition])[partition]
    source = log.source("", [partition])
    parts: list[Fetched] = []
    try:
        source.assign({partition: bounds.low})
        end = time.monotonic() + 30.0
        while source.position().get(partition, bounds.low) < bounds.end:
            assert time.monotonic() < end, partition
            parts.append(source.fetch(20_000, 0.1))
    finally:
        source.close()
    return Fetched(
        np.concatenate([p.partition for p in parts]),
        np.concatenate([p.offset for p in parts]),
        np.concatenate([p.time_ms for p in parts]),
        [value for p in parts for value in p.values],
        [],
    )


def replayed(
    spec: DetectorSpec,
    partition: Partition,
    fetched: Fetched,
    history: list[tuple[int, str]],
    scorers: Mapping[str, Scorer],
) -> list[dict[str, Any]]:
    """What one partition says if each version begins exactly where the audit topic has it."""
    flow = Flow(spec, [partition], describe(scorers[history[0][1]]))
    begins = [int(np.searchsorted(fetched.offset, offset)) for offset, _ in history]
    said: list[dict[str, Any]] = []
    for (_, version), first, last in zip(history, begins, [*begins[1:], len(fetched)], strict=True):
        if last <= first:
            continue
        piece = Fetched(
            fetched.partition[first:last],
            fetched.offset[first:last],
            fetched.time_ms[first:last],
            fetched.values[first:last],
            [],
        )
        scorer = scorers[version]
        batch = flow.prepare(piece, describe(scorer), begin={}, end={})
        assert batch.segments is not None
        found = flow.finish(batch, scorer.score(batch.segments))
        said += [json.loads(alert.to_json()) for alert in found.alerts]
    return said


@pytest.mark.ray
def test_every_alert_is_what_the_audited_version_says_there_and_back_again(
    topic: Callable[[str], str], tmp_path: Path
) -> None:
    name, events = topic("hosts").lower(), topic("events")
    stream = replace(STREAM, keys=80, injections=("spike",))
    table = generate(stream, 1_500, injections_per_kind=240)
    values, keys = to_json(table), [table.names[k].encode() for k in table.key]
    with ray_local():
        broker = topic("broker")
        actors.start_broker(broker)
        spec = LogSpec(embedded=broker)
        log = actors.open_log(spec)
        log.create(events, 8)
        # A component may alert once it was heard so often: each version for some seconds.
        quick = {"warmup": 60, "probability": 1e-3}
        service = Service(config("embedded", events, tmp_path, name=name, alert=quick), spec)
        try:
            service.start()
            with Feed(log, events, keys, values, 2_000.0):
                time.sleep(5.0)  # warmed up: from here on a score can be an alert
                roll(service, shipped("lagbank"), kill=False)
                put(service, sibling(1))
                service.call("rollout_start", name, sibling(1).version, "a test")
                until(lambda: len(_lanes_on(service, sibling(1).version)) >= 2, 60.0)
                service.call("rollout_abort", name, "a test")
                until(lambda: not service.call("rollout_status", name)["under_way"], 90.0)
                found = service.call("rollout_status", name)
            log.write([Out(events, k, v) for k, v in zip(keys, values, strict=True)][-4_000:])
            service.drained()
            said = alerts(log, service.spec.alerts)
            history = versions(log, service.config.audit)
            records = {p: spoken(log, p) for p in service.partitions}
        finally:
            service.stop()

    assert (found["rollout"]["phase"], found["rollout"]["why"]) == ("aborted", "asked by a test")
    assert found["serves"] == shipped("lagbank").version
    scorers = {a.version: build(a) for a in (shipped("robustz"), shipped("lagbank"), sibling(1))}
    changes = [[version.partition("@")[0] for _, version in each] for each in history.values()]
    assert ["robustz", "lagbank"] in changes  # a lane that had not moved yet
    assert ["robustz", "lagbank", "robustz", "lagbank"] in changes  # there and back again
    expected = [
        alert
        for partition in service.partitions
        for alert in replayed(
            service.spec, partition, records[partition], history[partition], scorers
        )
    ]
    assert {alert["model"].partition("@")[0] for alert in said} == {"robustz", "lagbank"}
    assert sorted(map(repr, expected)) == sorted(map(repr, said))


def test_scores_of_another_version_than_the_batch_was_made_for_are_never_used() -> None:
    partition = Partition("events", 0)
    spec = DetectorSpec("d", ("events",), RecordSpec(("value",), "host", "ts"), "robustz")
    one, other = build(shipped("robustz")), build(sibling(1))
    flow = Flow(spec, [partition], describe(one))
    fetched = Fetched(
        np.zeros(1, np.int32), np.zeros(1, np.int64), np.full(1, -1),
        [b'{"host":"a","ts":1767225600000,"value":1.0}'], [],
    )  # fmt: skip
    batch = flow.prepare(fetched, describe(one), begin={}, end={})
    assert batch.segments is not None
    with pytest.raises(AssertionError, match="robustz@"):
        flow.finish(batch, other.score(batch.segments))


def test_a_version_that_was_replaced_while_nobody_held_the_lane_is_audited_once(
    topic: Callable[[str], str],
) -> None:
    events = topic("events")
    log, store = EmbeddedLog(EmbeddedBroker()), MemoryStore()
    detector = lanes.spec("d", events)
    partitions = [Partition(events, 0), Partition(events, 1)]
    for name, count in ((events, 2), (detector.audit, 1), (detector.alerts, 1)):
        log.create(name, count)
    table = generate(Stream(keys=10, seed=2), 60)
    values, keys = to_json(table), [table.names[k].encode() for k in table.key]
    out = [Out(events, key, value) for key, value in zip(keys, values, strict=True)]

    def live(model: str, records: list[Out]) -> dict[Partition, int]:
        """A lane with a model until all is committed; where it began."""
        begun = {p: c.offset for p, c in log.committed(detector.group, partitions).items()}
        log.write(records)
        lane = lanes.make(detector, log, partitions, store=store, model=model)
        with lanes.running(lane):
            lanes.until(lambda: lanes.lag(log, detector, partitions) == 0)
        return begun

    live("robustz", out[:300])
    begun = live("lagbank", out[300:])
    live("lagbank", [])  # the new note was committed: nothing more to say
    assert min(begun.values()) > 0
    robustz, lagbank = shipped("robustz").version, shipped("lagbank").version
    assert versions(log, detector.audit) == {
        p: [(0, robustz), (begun[p], lagbank)] for p in partitions
    }


# --- the commands


class Shell:
    """`raywatch` as a user calls it."""

    def __init__(self, folder: Path) -> None:
        here = str(Path(__file__).resolve().parent)
        self._folder, self._env = folder, {**os.environ, "PYTHONPATH": here}
        self._env.pop("RAY_ADDRESS", None)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "raywatch.cluster.cli", *words]
        return subprocess.Popen(
            command, cwd=self._folder, env=self._env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *words: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, the JSON on stdout, and stderr."""
        process = self.start(*words, "--json")
        out, err = process.communicate(timeout=90.0)
        return process.returncode, json.loads(out) if out else {}, err


def written(settings: Config, folder: Path) -> Path:
    """The config as a file, secrets aside."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(settings.model_dump_json(exclude_defaults=True))))
    return path


@pytest.mark.kafka
@pytest.mark.ray
def test_a_user_trains_a_model_rolls_it_out_and_goes_back_from_another(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name, events = topic("hosts").lower(), topic("events")
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 4)
    settings = config(kafka.bootstrap, events, tmp_path, name=name, pool={"min": 1, "max": 2})
    path, shell = str(written(settings, tmp_path)), Shell(tmp_path)
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"\n".join(to_json(generate(replace(STREAM, keys=4), 64))) + b"\n")
    late = Artifact("late", "python", {"class": "sleepy:Late", "load_s": 20.0})
    service = shell.start("run", path, "--json")
    try:
        assert service.stdout is not None
        running = json.loads(service.stdout.readline())
        at = ("--address", running["ray"])

        new = forth(shell, path, data, at)
        Registry(tmp_path / "models").add(late)
        back(shell, path, new, at)
        code, said, _ = shell("rollout", "start", path, "nobody", "--yes", *at)
        assert (code, "no model `nobody`" in said["error"]) == (2, True)
        code, said, _ = shell("rollout", "status", path, "--address", "127.0.0.1:1")
        assert (code, "no Ray cluster answered" in said["error"]) == (3, True)
        # `auto` finds the Ray of `run`, and does not guess where others run here, too.
        code, said, _ = shell("rollout", "status", path)
        if code == 0:
            assert said["serves"] == new
        else:
            assert (code, "several Ray clusters" in said["error"]) == (2, True)
            assert running["ray"] in said["error"]
    finally:
        service.send_signal(signal.SIGINT)
        _, err = service.communicate(timeout=90.0)
        log.close()
    assert service.returncode == 0, err


def ended(shell: Shell, path: str, at: tuple[str, str]) -> dict[str, Any]:
    """What `rollout status` says once nothing is under way."""
    end = time.monotonic() + 90.0
    while True:
        code, found, err = shell("rollout", "status", path, *at)
        assert code == 0, err
        if not found["under_way"]:
            return found
        assert time.monotonic() < end, found


def forth(shell: Shell, path: str, data: Path, at: tuple[str, str]) -> str:
    """Train a version and replace the one in service by it."""
    code, trained, _ = shell("models", "train", path, str(data), "--kind", "robustz")
    assert code == 0
    new = trained["version"]
    code, plan, _ = shell("rollout", "start", path, "robustz")
    assert (code, plan) == (0, {"started": False, "version": new})  # the newest, and only said
    code, said, _ = shell("rollout", "start", path, "robustz", "--yes", *at)
    assert (code, said["started"], said["version"]) == (0, True, new)
    found = ended(shell, path, at)
    assert (found["serves"], found["rollout"]["phase"]) == (new, "done")
    assert set(found["lanes"].values()) == {new}
    return new


def back(shell: Shell, path: str, new: str, at: tuple[str, str]) -> None:
    """A rollout to `late` is under way, another is refused, and it is aborted."""
    code, _, _ = shell("rollout", "start", path, "late", "--yes", *at)
    assert code == 0
    code, said, _ = shell("rollout", "start", path, shipped("robustz").version, "--yes", *at)
    assert (code, "to `late@" in said["error"]) == (1, True)
    code, said, _ = shell("rollout", "abort", path, *at)
    assert (code, said["aborted"], said["under_way"]) == (0, False, True)
    code, said, _ = shell("rollout", "abort", path, "--yes", *at)
    assert (code, said["aborted"]) == (0, True)
    found = ended(shell, path, at)
    assert (found["serves"], found["rollout"]["phase"]) == (new, "aborted")
    code, said, _ = shell("rollout", "abort", path, "--yes", *at)
    assert (code, "no rollout" in said["error"]) == (1, True)
