"""Raywatch on hosts in namespaces (hosts.py), with a way to the broker that is not Ray's.

Ray as the shipped `ray-local.yaml` starts it on three hosts, a broker of its own on a second
network, a feed, and a witness that notes when each alert came. Owners tell what happens to their
lanes in the logs of their own processes, which are read over the second network.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from hosts import Lab
from machines import shipped, until

from raywatch.cluster.drills import alerts as law

ROOT = Path(__file__).resolve().parent.parent
FEED = ROOT / "tests" / "chaos" / "feed.py"
KAFKA = "10.78.0"  # the network of the broker
BOOTSTRAP, TOPIC, PARTITIONS, RATE = f"{KAFKA}.254:9092", "telemetry", 12, 1_000
ALERTS, GROUP = "hosts.alerts", "raywatch.hosts"
LANES, WORKING = 4, ("running", "catching up")
WORKS_S = 120.0  # until something works again that has to be started anew

# A second network, apart from Ray's: eth1 of each host.
SECOND = """
ip link add br1 type bridge && ip addr add {net}.254/24 dev br1 && ip link set br1 up
for i in {hosts}; do
  ip link add w$i type veth peer name eth1 netns h$i
  ip link set w$i master br1 up
  ip netns exec h$i ip addr add {net}.$i/24 dev eth1
  ip netns exec h$i ip link set eth1 up
done
"""

# Notes when each alert came: seconds, partition and offset of its record, then the alert.
READ = """
import json, sys, time
import confluent_kafka as ck
consumer = ck.Consumer({"bootstrap.servers": sys.argv[1], "group.id": "witness",
    "isolation.level": "read_committed", "auto.offset.reset": "earliest", "fetch.wait.max.ms": 20})
consumer.assign([ck.TopicPartition(sys.argv[2], 0, ck.OFFSET_BEGINNING)])
while True:
    for message in consumer.consume(500, 0.05):
        if not message.error():
            alert = json.loads(message.value())
            place = alert["lineage"]
            print(time.time(), place["partition"], place["offset"], json.dumps(alert), flush=True)
"""

TOPICS = """
import sys
from raywatch.actors.kafka import KafkaLog
log = KafkaLog(sys.argv[1])
log.create(sys.argv[2], int(sys.argv[3]))
log.close()
"""


class Fleet:
    """Hosts, Ray as shipped, a broker of its own, a feed and a witness."""

    def __init__(self, lab: Lab, *, standby: bool = False) -> None:
        self.lab, self.standby = lab, standby
        self.shipped = shipped("ray-local")
        self.config = lab.home / "hosts.yaml"
        self.records, self.seen = lab.folder / "records.jsonl", lab.folder / "seen"

    # ---- starting ----------------------------------------------------------------------------

    def start(self) -> None:
        """Everything; nothing is deployed yet."""
        lab = self.lab
        hosts = " ".join(map(str, range(1, lab.hosts + 1)))
        lab.run(["bash", "-euc", SECOND.format(net=KAFKA, hosts=hosts)], timeout_s=30)
        with ThreadPoolExecutor(2) as pool:
            broker = pool.submit(self._broker)
            pool.submit(self.ray).result()
            broker.result()
        self.config.write_text(yaml.safe_dump(self._settings()))
        self._script("topics", TOPICS)
        lab.run(["python", str(lab.folder / "topics.py"), BOOTSTRAP, TOPIC, str(PARTITIONS)],
                timeout_s=60)  # fmt: skip
        self._script("read", READ)
        self.deploy()
        words = [BOOTSTRAP, TOPIC, str(self.records), str(PARTITIONS), str(RATE), "3"]
        lab.run(["mkfifo", str(lab.folder / "words")], timeout_s=10)
        self._behind(f"sleep 3600 > {lab.folder}/words")
        self._behind(f"python {FEED} {' '.join(words)} < {lab.folder}/words", to="fed")
        self._behind(f"python {lab.folder}/read.py {BOOTSTRAP} {ALERTS}", to="seen")

    def _broker(self) -> None:
        tool = ["python", str(ROOT / "tools" / "kafka.py"), "start", str(self.lab.folder / "kafka")]
        self.lab.run([*tool, "--host", f"{KAFKA}.254"], timeout_s=120)

    def _settings(self) -> dict[str, Any]:
        return {
            "kafka": {"bootstrap": BOOTSTRAP},
            "detectors": [
                {
                    "name": "hosts", "topics": [TOPIC], "model": "robustz", "lanes": LANES,
                    "record": {"key": "host", "time": "ts", "values": ["value"]},
                    "start": "earliest", "snapshot_s": 2, "missing": {"enabled": False},
                    "alert": {"warmup": 50, "probability": 1e-2, "quiet": 8},
                }
            ],
            "owners": {"count": 2, "cpus": 0.25, "standby": self.standby},
            "pool": {"min": 2, "max": 2, "cpus": 0.25},
            "store": str(self.lab.folder / "state"),
            "models": str(self.lab.folder / "models"),
        }  # fmt: skip

    def ray(self, hosts: Sequence[int] = (1, 2, 3)) -> None:
        """Ray on these hosts, by the shipped commands but for the autoscaler's part of them."""
        head = " ".join(self.shipped["head_start_ray_commands"][-1].split())
        head = head.replace("--autoscaling-config=~/ray_bootstrap_config.yaml", "")
        worker = self.shipped["worker_start_ray_commands"][-1]
        worker = f"export RAY_HEAD_IP={self.lab.address(1)}; {worker} --num-cpus=2"
        if 1 in hosts:
            self.lab.run(["ray", "get-auth-token", "--generate"], timeout_s=60)
            for host in range(1, self.lab.hosts + 1):
                home = self.lab.folder / f"h{host}" / ".ray"
                home.mkdir(exist_ok=True)
                token = (self.lab.home / ".ray" / "auth_token").read_text()
                (home / "auth_token").write_text(token)
            self.on(1, f"{head} --node-ip-address={self.lab.address(1)}", timeout_s=90)
        rest = [host for host in hosts if host != 1]
        with ThreadPoolExecutor(4) as pool:
            for done in [
                pool.submit(
                    self.on, host, f"{worker} --node-ip-address={self.lab.address(host)}",
                    timeout_s=90,
                )
                for host in rest
            ]:  # fmt: skip
                done.result()

    def deploy(self) -> str:
        """Deploy the config, on the head."""
        command = f"export RAY_AUTH_MODE=token; raywatch deploy {self.config} --yes"
        return self.on(1, command, timeout_s=200)

    def _script(self, name: str, text: str) -> None:
        (self.lab.folder / f"{name}.py").write_text(text)

    def _behind(self, command: str, *, to: str = "behind") -> None:
        """A process that goes on behind; it ends with the lab."""
        out = self.lab.folder / to
        line = f"PYTHONPATH={ROOT}/tests setsid {command} >> {out} 2>> {out}.err &"
        if "<" not in command and ">" in command:
            line = f"setsid bash -c '{command}' > /dev/null 2>&1 &"
        self.lab.run(["bash", "-c", line], timeout_s=20)

    # ---- asking ------------------------------------------------------------------------------

    def on(self, host: int, command: str, *, timeout_s: float = 60, check: bool = True) -> str:
        """A shell command on a host, over the network of the broker."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        flags = [part for option in options for part in ("-o", option)]
        quoted = "'" + command.replace("'", "'\\''") + "'"
        ssh = ["ssh", "-i", str(self.lab.key), "-o", "ConnectTimeout=5", *flags]
        return self.lab.run(
            [*ssh, f"root@{KAFKA}.{host}", f"bash --login -c {quoted}"],
            timeout_s=timeout_s, check=check,
        ).stdout  # fmt: skip

    def owners(self, host: int) -> list[int]:
        """Processes of owners on a host that run."""
        said = self.on(host, "ps axo pid,stat,args")
        found = re.findall(r"^\s*(\d+)\s+([A-Za-z]\S*)\s+ray::OwnerActor", said, re.M)
        return [int(pid) for pid, state in found if state[0] not in "ZX"]

    def die(self, host: int) -> None:
        """A machine without power: all of Ray and all that it runs is gone at once."""
        # The brackets keep it from finding the shell that it is called by.
        pattern = "^ray::|/[r]aylet |/ray/([d]ashboard|[_]private)/"
        self.on(host, f'pkill -KILL -f "{pattern}"', check=False)
        assert not self.owners(host), self.owners(host)

    def busy(self) -> int:
        """A worker with an owner on it that has lanes."""
        pids = self.owners(3)
        return 3 if any(x["pid"] in pids and x["state"] == "running" for x in self.log(3)) else 2

    def log(self, host: int) -> list[dict[str, Any]]:
        """What owners on a host wrote into the logs of their own processes, oldest first."""
        logs = "/tmp/ray/session_2*/logs/worker-*.out"
        said = self.on(host, f"grep -H '\"lane\"' {logs} 2> /dev/null || true")
        found: list[dict[str, Any]] = []
        for line in said.splitlines():
            file, _, entry = line.partition(".out:")
            if entry.startswith("{"):
                found.append({**json.loads(entry), "pid": int(file.rpartition("-")[2])})
        return sorted(found, key=lambda line: line["at_ms"])

    def came(self) -> list[tuple[float, int, int]]:
        """When each alert came so far, and about which record."""
        found: list[tuple[float, int, int]] = []
        for line in self.seen.read_text().splitlines():
            at, partition, offset, rest = line.split(" ", 3)
            if rest.endswith("}"):
                found.append((float(at), int(partition), int(offset)))
        return found

    def verdict(self) -> dict[str, Any]:
        """What `status` says, on the head."""
        said = self.on(1, f"raywatch status {self.config} --json", check=False)
        try:
            return json.loads(said)["verdict"]
        except (ValueError, KeyError):
            return {"state": "unreachable", "words": said}

    def whole(self) -> None:
        """Ray on all hosts, two owners somewhere, and all is well."""
        until(self.alive, lambda hosts: len(hosts) == self.lab.hosts, WORKS_S)
        wanted = 4 if self.standby else 2
        until(lambda: len(self.owners(2) + self.owners(3)), lambda n: n == wanted, WORKS_S)
        until(lambda: self.verdict()["state"], lambda state: state == "healthy", WORKS_S)

    def alive(self) -> list[str]:
        """Addresses of the hosts that Ray believes to be alive."""
        command = "export RAY_AUTH_MODE=token; ray list nodes --format json 2> /dev/null"
        said = self.on(1, f"{command} || echo '[]'")
        return sorted(n["node_ip"] for n in json.loads(said) if n["state"] == "ALIVE")

    # ---- the end -----------------------------------------------------------------------------

    def word(self, word: str) -> None:
        """Tell the feed, and wait for its answer."""
        fed = self.lab.folder / "fed"
        before = len(fed.read_text().splitlines())
        (self.lab.run(["bash", "-c", f"echo {word} > {self.lab.folder}/words"], timeout_s=10))
        until(lambda: len(fed.read_text().splitlines()), lambda n: n > before, 90.0)

    def compared(self) -> list[str]:
        """With the feed at rest: how the alerts differ from a backtest of the same records."""
        tool = ["python", str(ROOT / "tools" / "kafka.py"), "tool", str(self.lab.folder / "kafka")]
        describe = [*tool, "groups", "--describe", "--group", GROUP]

        def lags() -> list[str]:
            said = self.lab.run(describe, timeout_s=60).stdout
            return re.findall(rf"{TOPIC}\s+\d+\s+\d+\s+\d+\s+(\d+)", said)

        until(lags, lambda found: found == ["0"] * PARTITIONS, WORKS_S)
        time.sleep(1.0)  # the witness reads what was committed last
        said = [json.loads(line.split(" ", 3)[3]) for line in self.seen.read_text().splitlines()]
        out = self.lab.folder / "expected.jsonl"
        scores = self.lab.folder / "scores.parquet"
        self.on(2, f"raywatch backtest {self.config} {self.records} --output {scores} "
                   f"--alerts {out} --partitions {PARTITIONS}", timeout_s=120)  # fmt: skip
        expected = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(expected) > 50, len(expected)
        return [
            *law.differences(Counter(map(text, said)), Counter(map(text, expected))),
            *law.unlawful(said, whole=True),
        ]


def text(alert: dict[str, Any]) -> str:
    """All that an alert says, but where its record lay and that it was live."""
    return json.dumps({k: alert[k] for k in alert.keys() - {"lineage", "run_kind"}}, sort_keys=True)


class Taken:
    """How lanes went from owners on one host to others, from the logs of both."""

    def __init__(self, fleet: Fleet, host: int) -> None:
        self.host, self.other, self._fleet = host, 5 - host, fleet
        self.pids = fleet.owners(host)
        held = [x for x in fleet.log(host) if x["pid"] in self.pids and x["state"] == "running"]
        self.lanes = {line["lane"] for line in held}
        self.epochs = {line["epoch"] for line in held}
        assert self.lanes, fleet.log(host)
        self.at_s = time.time()

    def opened(self) -> dict[int, float]:
        """lane -> when another owner said that it works on it, in seconds."""
        found: dict[int, float] = {}
        for line in self._fleet.log(self.other):
            fresh = line["at_ms"] > 1_000 * self.at_s and line["state"] in WORKING
            if fresh and line["lane"] in self.lanes and line["epoch"] not in self.epochs:
                found.setdefault(line["lane"], line["at_ms"] / 1_000)
        return found

    def fenced(self) -> dict[int, str]:
        """lane -> what the old owner said when brokers refused what it wrote."""
        return {
            line["lane"]: line["words"]
            for line in self._fleet.log(self.host)
            if line["epoch"] in self.epochs and line["state"] == "fenced"
        }

    def alerts(self) -> dict[int, float]:
        """lane -> seconds from the cut to the first alert of the one who has it now."""
        opened, found = self.opened(), dict[int, float]()
        for at_s, partition, _ in self._fleet.came():
            lane = partition % LANES
            if lane in opened and at_s > opened[lane]:
                found.setdefault(lane, at_s - self.at_s)
        return found
