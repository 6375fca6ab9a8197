"""Goal: `ray up` and `raywatch deploy`, the whole way: what runs on three machines says what a
backtest says, also when one of them is lost; it never runs on the head, and ends when it is told.

Method: three hosts in namespaces with one real Kafka (machines.py), commands as an operator types
them on the head, their exit codes, and Kafka's own tools. One `ray up` serves all tests of this
file, in any order; after them `ray down` has to leave nothing. Everything ends with the lab. Needs
root: without, it says so.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import Lab
from machines import UP_S, Broker, Machines, until

from raywatch.models.synthetic import Stream, generate, to_json

DEATH_S = 60.0  # until a machine without a network is given up: about 10 s, 64 without tuning
BACK_S = 150.0  # until its lanes are read to the end elsewhere: about 40 s
GROUP, TOPIC, PARTITIONS = "raywatch.hosts", "telemetry", 12
STREAM = Stream(keys=60, seed=5, injections=("spike", "level", "variance"), quiet=300)
ROWS = 1_000

pytestmark = [
    pytest.mark.netns,
    pytest.mark.kafka,
    pytest.mark.ray,
    pytest.mark.timeout(900),  # alone about 3 minutes, of which `ray up` is one
    pytest.mark.skipif(
        os.geteuid() != 0, reason=f"network namespaces need root, this is uid {os.geteuid()}"
    ),
]

SPREAD = """
import ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
class Where:
    def ip(self):
        return ray.util.get_node_ip_address()
actors = [Where.remote() for _ in range(4)]
print("on", *sorted(set(ray.get([a.ip.remote() for a in actors], timeout=90))))
"""

# Makes the topic where there is none, and writes lines [begin, end) of a file to it.
FEED = """
import json, sys
from pathlib import Path
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.ports import Out
bootstrap, topic, partitions, file, begin, end = sys.argv[1:]
log = KafkaLog(bootstrap)
if topic not in log.topics():
    log.create(topic, int(partitions))
lines = Path(file).read_bytes().splitlines()[int(begin) : int(end)]
log.write([Out(topic, json.loads(line)["host"].encode(), line) for line in lines])
log.close()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with Lab(3) as lab:
        cluster = Machines(lab)
        cluster.up()
        yield cluster
        cluster.down()
        for left in cluster.on_every("ps axo comm"):
            assert not {"raylet", "gcs_server"} & set(left.split()), left


@pytest.fixture
def machines(cluster: Machines) -> Machines:
    """All three: what a test before cut off has come back by itself."""
    until(cluster.alive, lambda seen: seen == cluster.every, UP_S)
    return cluster


class Telemetry:
    """A topic of synthetic telemetry with anomalies in it, and the same records as a file."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.lab = broker.lab
        self.file = self.lab.folder / "records.jsonl"
        table = generate(STREAM, ROWS, injections_per_kind=6)
        self.records = to_json(table)
        self.file.write_bytes(b"\n".join(self.records) + b"\n")
        self._script = self.lab.folder / "feed.py"
        self._script.write_text(FEED)
        self.feed(0, 0)

    def feed(self, begin: int, end: int) -> None:
        """Write records [begin, end)."""
        arguments = [self.broker.bootstrap, TOPIC, PARTITIONS, self.file, begin, end]
        command = ["python", str(self._script), *map(str, arguments)]
        self.lab.run(command, timeout_s=120)

    def lags(self) -> list[int]:
        """LAG of each partition that Kafka's tool has an offset for."""
        shown = self.broker.tool("groups", "--describe", "--group", GROUP)
        return [int(n) for n in re.findall(rf"{TOPIC}\s+\d+\s+\d+\s+\d+\s+(\d+)", shown)]

    def config(self, **changes: Any) -> Path:
        """A config file in the manner of production.yaml; the store is a folder all hosts see."""
        detector = {
            "name": "hosts",
            "topics": [TOPIC],
            "record": {"key": "host", "time": "ts", "values": ["value"]},
            "model": "robustz",
            "lanes": 4,
            "start": "earliest",
            "alert": {"warmup": 200, "probability": 1e-4},
            "missing": {"enabled": False},
            "snapshot_s": 2,
        }
        settings = {
            "kafka": {"bootstrap": self.broker.bootstrap},
            "detectors": [{**detector, **changes}],
            "owners": {"count": 2, "cpus": 0.25},
            "pool": {"min": 2, "max": 3, "cpus": 0.25},
            "store": str(self.lab.folder / "state"),
            "models": str(self.lab.folder / "models"),
        }
        path = self.lab.home / f"{'-'.join(['production', *changes])}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path


@pytest.fixture(scope="module")
def telemetry(cluster: Machines) -> Telemetry:
    broker = Broker(cluster.lab)
    broker.start()
    return Telemetry(broker)


def test_work_goes_to_the_workers_and_strangers_stay_out(machines: Machines) -> None:
    # Nodes are alive a while before the autoscaler counts them.
    until(lambda: machines.on_head("ray status"), lambda said: "3 local.cluster.node" in said, UP_S)
    script = machines.lab.home / "spread.py"
    script.write_text(SPREAD)
    said = machines.on_head(f"python {script}")
    assert f"on {machines.every[1]} {machines.every[2]}" in said  # both workers, never the head
    stranger = f"HOME=/tmp RAY_AUTH_MODE=disabled ray status --address={machines.every[0]}:6379"
    assert machines.lab.on(2, stranger, timeout_s=120, check=False).returncode != 0  # no token


def test_what_cannot_be_deployed_says_why_and_leaves_nothing(
    machines: Machines, telemetry: Telemetry
) -> None:
    config, typo = telemetry.config(), telemetry.config(topics=["telemetri"])
    before = telemetry.broker.topics(), sorted(telemetry.lab.folder.iterdir())
    said = machines.raywatch(f"deploy {typo} --yes", code=2)
    assert "topic `telemetri` of detector `hosts` does not exist" in said
    assert f"`{TOPIC}`" in said  # what was meant

    alone = ["unshare", "--pid", "--fork", "--mount-proc"]  # a machine on which no Ray runs
    for place, why in ((alone, "no Ray cluster answered"), ([], "not one of its machines")):
        command = [*place, "raywatch", "deploy", str(config), "--yes"]
        done = machines.lab.run(command, timeout_s=120, check=False)
        assert (done.returncode, why in done.stdout) == (3, True), done.stdout
        assert "hint: start one with `ray up" in done.stdout
    stranger = f"HOME=/tmp raywatch status --address {machines.every[0]}:6379"
    done = machines.lab.on(2, stranger, timeout_s=120, check=False)
    assert (done.returncode, "token is missing" in done.stdout) == (3, True), done.stdout

    assert "nothing is deployed there" in machines.raywatch(f"deploy {config} --stop --yes")
    assert (telemetry.broker.topics(), sorted(telemetry.lab.folder.iterdir())) == before
    assert machines.actors() == {1: [], 2: [], 3: []}


def test_a_deployment_survives_a_machine_and_says_what_a_backtest_says(
    machines: Machines, telemetry: Telemetry
) -> None:
    lab, config = machines.lab, telemetry.config()
    third = len(telemetry.records) // 3
    telemetry.feed(0, third)

    plan = machines.raywatch(f"deploy {config}")
    assert "hosts: 12 partitions in 4 lanes on 2 owners, 2 to 3 scorers with robustz@" in plan
    assert "they ask for 1 to 1.25 CPUs; the cluster has 4 now" in plan
    assert "nothing was started; say --yes" in plan
    assert telemetry.broker.topics() == [TOPIC]

    said = machines.raywatch(f"deploy {config} --yes --address auto", timeout_s=330)
    assert "every lane works" in said
    assert f"the page: http://127.0.0.1:8787/ on {machines.every[0]}" in said
    # The driver has left, and all goes on: shared among the workers, the supervisor on the head.
    part = ["Owner", "Scorer"]
    assert machines.actors() == {1: ["Supervisor"], 2: part, 3: part}
    until(telemetry.lags, lambda lags: lags == [0] * PARTITIONS, BACK_S)
    assert machines.raywatch(f"status {config}").startswith("healthy")
    assert machines.raywatch("status --address auto", host=2).startswith("healthy")
    exec_ = ["ray", "exec", str(machines.file), f"raywatch status {config}"]
    assert "healthy" in lab.run(exec_, timeout_s=120).stdout
    processes = "ps axo pid,args | grep ' ray::[OS]' || true"
    before = machines.on_every(processes)
    assert "it ran already, nothing was changed" in machines.raywatch(f"deploy {config} --yes")
    assert machines.on_every(processes) == before
    assert "lane 3: robustz@" in machines.raywatch(f"rollout status {config}")
    other = telemetry.config(lanes=3)
    assert "another config runs" in machines.raywatch(f"deploy {other} --yes", code=1)

    lab.cut(3)
    try:
        telemetry.feed(third, 2 * third)
        until(machines.alive, lambda seen: seen == machines.every[:2], DEATH_S)
        until(telemetry.lags, lambda lags: lags == [0] * PARTITIONS, BACK_S)
        until(lambda: verdict(machines, config), lambda state: state == "healthy", BACK_S)
        # Ray starts the lost owner again, too, and is told to end it when its successor works.
        until(lambda: machines.actors_on(2), lambda found: found.count("Owner") == 2, BACK_S)
        assert machines.actors_on(2).count("Scorer") >= 2
    finally:
        lab.cut(3, whole=True)  # what still ran there finds itself fenced
    telemetry.feed(2 * third, len(telemetry.records))
    until(telemetry.lags, lambda lags: lags == [0] * PARTITIONS, BACK_S)

    assert "would let owners finish" in machines.raywatch(f"deploy {config} --stop")
    assert "owners finished and committed" in machines.raywatch(f"deploy {config} --stop --yes")
    until(machines.actors, lambda seen: seen == {1: [], 2: [], 3: []}, 60.0)
    assert "does not answer" in machines.raywatch(f"status {config}", code=3)

    tail = machines.raywatch(f"alerts tail {config} --json")
    filed = lab.folder / "alerts.jsonl"
    scores = lab.folder / "scores.parquet"
    machines.raywatch(
        f"backtest {config} {telemetry.file} --output {scores} --alerts {filed} "
        f"--partitions {PARTITIONS}"
    )
    assert same(tail) == same(filed.read_text())
    assert len(same(tail)) >= 20


def verdict(machines: Machines, config: Path) -> str:
    """What `status` says first, whatever its exit code."""
    said = machines.lab.on(1, f"raywatch status {config} --json", timeout_s=60, check=False).stdout
    try:
        return str(json.loads(said)["verdict"]["state"])
    except (ValueError, KeyError):
        return said


def same(lines: str) -> list[tuple[Any, ...]]:
    """Alerts without where they lie: what the service and a file must agree on."""
    skip = ("lineage", "run_kind", "log")
    found = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    assert found, lines
    return sorted(tuple((k, repr(v)) for k, v in sorted(a.items()) if k not in skip) for a in found)
