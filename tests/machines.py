"""A Ray cluster on three hosts of a lab, started by `ray up` with the shipped file, and its Kafka.

Host 1 is the head, hosts 2 and 3 are workers; the broker listens where the operator sits. What is
run goes through SSH and a login shell, as an operator's commands would.
"""

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from hosts import Lab

ROOT = Path(__file__).resolve().parent.parent
UP_S = 180.0  # from `ray up` to three machines; 45 to 60 s where nothing else runs
BROKER = "10.77.0.254"  # the operator's address, which every host reaches


def shipped(name: str) -> dict[str, Any]:
    """A config of `ray up`, as it is in the repository."""
    return yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())


def until(look: Callable[[], Any], good: Callable[[Any], bool], limit_s: float) -> Any:
    """Look once a second until it is good; returns what was seen."""
    ends = time.monotonic() + limit_s
    while not good(seen := look()):
        assert time.monotonic() < ends, f"not within {limit_s:.0f} s, but: {seen}"
        time.sleep(1.0)
    return seen


class Machines:
    """The cluster."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.every = [lab.address(host) for host in range(1, lab.hosts + 1)]
        config = shipped("ray-local")
        config["provider"]["head_ip"] = self.every[0]
        config["provider"]["worker_ips"] = self.every[1:]
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(lab.key)}
        config["available_node_types"]["local.cluster.node"]["resources"] = {"CPU": 2}
        self.file = lab.home / "ray-local.yaml"
        self.file.write_text(yaml.safe_dump(config))

    def up(self) -> None:
        """`ray up`; returns when the head runs, the workers come later."""
        self.lab.run(["ray", "get-auth-token", "--generate"], timeout_s=60)
        self.lab.run(["ray", "up", "-y", "--no-config-cache", str(self.file)], timeout_s=UP_S)

    def on_head(self, command: str, *, timeout_s: float = 120.0) -> str:
        """Run a shell command on the head, as an operator there would; returns what it said."""
        said = self.lab.on(1, f"export RAY_AUTH_MODE=token; {command}", timeout_s=timeout_s)
        return said.stdout

    def raywatch(
        self, arguments: str, *, host: int = 1, code: int = 0, timeout_s: float = 180.0
    ) -> str:
        """Run raywatch on a host; returns what it said, with this exit code."""
        done = self.lab.on(host, f"raywatch {arguments}", timeout_s=timeout_s, check=False)
        assert done.returncode == code, f"raywatch {arguments}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def actors(self) -> dict[int, list[str]]:
        """host -> what runs there of ours, sorted: Owner, Scorer, Supervisor."""
        return {n: _ours(said) for n, said in enumerate(self.on_every("ps axo args"), start=1)}

    def actors_on(self, host: int) -> list[str]:
        """The same of one host, whatever the others do."""
        return _ours(self.lab.on(host, "ps axo args", timeout_s=90).stdout)

    def on_every(self, command: str, *, check: bool = True) -> list[str]:
        """Run a command on all hosts at once; returns what they said."""

        def one(host: int) -> str:
            return self.lab.on(host, command, timeout_s=90, check=check).stdout

        with ThreadPoolExecutor(self.lab.hosts) as pool:
            return list(pool.map(one, range(1, self.lab.hosts + 1)))

    def alive(self) -> list[str]:
        """Addresses of the machines that Ray believes to be alive."""
        said = self.on_head("ray list nodes --format json 2> /dev/null || echo '[]'")
        return sorted(n["node_ip"] for n in json.loads(said) if n["state"] == "ALIVE")

    def down(self) -> None:
        """`ray down`, and `ray stop` on each machine: the first one leaves workers running."""
        self.lab.run(["ray", "down", "-y", str(self.file)], timeout_s=120, check=False)
        self.on_every("ray stop --force", check=False)


def _ours(processes: str) -> list[str]:
    mine = {"OwnerActor": "Owner", "ScorerActor": "Scorer", "Supervisor": "Supervisor"}
    return sorted(mine[n] for n in re.findall(r"^ray::(\w+)", processes, re.M) if n in mine)


class Broker:
    """One real Kafka in the lab, and what Kafka's own tools say of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.folder / "kafka"
        self.bootstrap = f"{BROKER}:9092"

    def start(self) -> None:
        """Start it; it ends with the lab."""
        self._run("start", str(self.folder), "--host", BROKER)

    def tool(self, *arguments: str) -> str:
        """What one of Kafka's own tools says."""
        return self._run("tool", str(self.folder), *arguments)

    def topics(self) -> list[str]:
        """Topics, without Kafka's own."""
        names = self.tool("topics", "--list").split()
        return sorted(name for name in names if not name.startswith("__"))

    def _run(self, *arguments: str) -> str:
        tool = ["python", str(ROOT / "tools" / "kafka.py"), *arguments]
        return self.lab.run(tool, timeout_s=120).stdout
