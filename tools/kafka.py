"""How do you get a real Apache Kafka on this machine, without Docker?

    python tools/kafka.py start  DIR [--port 9092] [--brokers 1|3] [--set k=v ...] [--node N]
                                 [--host 127.0.0.1] [--security]
    python tools/kafka.py stop   DIR [--node N]
    python tools/kafka.py status DIR
    python tools/kafka.py tool   DIR groups --describe --group raywatch.hosts

The jars come from Maven once (tools/kafka/pom.xml, into .kafka/lib). DIR holds a folder for each
node: its properties, log, data and process id. Node n listens on `--host` only, the broker on
port + 10 (n - 1), its controller on the port after that. For development and tests: no replication
with one node, and no security (so: loopback, or a network of your own) but with `--security`: TLS,
SASL and rights, see kafka_security.py. The test fixtures use the class below.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raywatch.models.errors import ConfigError, RaywatchError, Refused, Unreachable

ROOT = Path(__file__).resolve().parent.parent
POM = Path(__file__).resolve().parent / "kafka" / "pom.xml"
LIB = ROOT / ".kafka" / "lib"

FETCH_S = 600.0
STOP_S = 10.0  # a clean stop takes about 2 s; after this the node is killed
READY_S = {1: 30.0, 3: 60.0}
TOOL_S = 60.0
LOOPBACK = "127.0.0.1"
CLUSTER_ID = "4L6g3nShT-eMCtK--X86sw"  # any 16 bytes in base64: clusters here never meet

# Serial GC and C1 only: a broker of a test lives for seconds and shares two cores.
JVM = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")

TOOLS = {
    "acls": "org.apache.kafka.tools.AclCommand",
    "configs": "kafka.admin.ConfigCommand",
    "delete-records": "org.apache.kafka.tools.DeleteRecordsCommand",
    "groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "topics": "org.apache.kafka.tools.TopicCommand",
    "transactions": "org.apache.kafka.tools.TransactionsCommand",
}

LOG4J = """\
rootLogger.level=info
rootLogger.appenderRefs=f
rootLogger.appenderRef.f.ref=f
appender.f.type=Console
appender.f.name=f
appender.f.layout.type=PatternLayout
appender.f.layout.pattern=[%d] %p %m (%c)%n
"""

# A killed broker may only come back once the session of its old self is over: 9 s by default.
SETTINGS = {
    "group.initial.rebalance.delay.ms": "0",
    "auto.create.topics.enable": "false",
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "300",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
}


def _program(name: str, install: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ConfigError(f"`{name}` is not on the path", hint=f"install {install}")
    return found


def fetch(lib: Path = LIB) -> Path:
    """Fetch the jars unless they are there; returns their folder. Safe to run twice at once."""
    version = re.search(r"<kafka\.version>(.+?)</kafka\.version>", POM.read_text())
    assert version, POM
    proof = lib / f"kafka_2.13-{version[1]}.jar"
    if proof.exists():
        return lib
    maven = _program("mvn", "Maven, for example: apt install maven")
    lib.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="lib-", dir=lib.parent))
    command = [maven, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={fresh}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=False)
        if done.returncode != 0:
            raise Unreachable(
                f"Maven could not fetch Kafka {version[1]}: {_tail(done.stdout + done.stderr)}",
                hint="check the network and Maven's settings.xml (mirror, proxy)",
            )
        if not proof.exists():  # or somebody else was quicker
            shutil.rmtree(lib, ignore_errors=True)
            os.replace(fresh, lib)
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"Maven fetched nothing in {FETCH_S:.0f} s") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return lib


def free_port(start: int) -> int:
    """First base port from `start` on at which the six ports of three nodes are free."""
    for base in range(start, 32_000, 32):  # below the range the kernel hands out itself
        if all(_is_free(base + offset) for offset in (0, 1, 10, 11, 20, 21)):
            return base
    raise Unreachable(f"no free ports between {start} and 32000")


def _is_free(port: int, host: str = LOOPBACK) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _answers(port: int, host: str) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


class KafkaCluster:
    """One or three combined broker and controller nodes below one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        host: str = LOOPBACK,
        port: int = 9092,
        brokers: int = 1,
        settings: Mapping[str, str] | None = None,
        tied: bool = False,
        secured: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe a cluster; nothing is started.

        Args:
            folder: where everything lies.
            host: IPv4 address of this machine to listen at and to be found at.
            port: of the first broker.
            brokers: 1 or 3.
            settings: further lines of server.properties.
            tied: nodes end when the process that started them ends (Linux only).
            secured: the plan of kafka_security.py; None: whoever comes may do everything.
        """
        if brokers not in READY_S:
            raise ConfigError(f"`--brokers` must be 1 or 3, got {brokers}")
        self.folder = folder.resolve()
        self.host = host
        self.port = port
        self.brokers = brokers
        self._settings = dict(settings or {})
        self._tied = tied
        self._secured = dict(secured or {})
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    @classmethod
    def load(cls, folder: Path) -> "KafkaCluster":
        """The cluster that was started in a folder before."""
        try:
            kept = json.loads((folder / "cluster.json").read_text())
            if kept.pop("secured"):
                kept["secured"] = json.loads((folder / "security" / "plan.json").read_text())
        except FileNotFoundError as error:
            raise ConfigError(f"no cluster was started in `{folder}`") from error
        return cls(folder, **kept)

    @property
    def nodes(self) -> range:
        """Node numbers, from 1."""
        return range(1, self.brokers + 1)

    @property
    def bootstrap(self) -> str:
        """Addresses of all brokers."""
        return ",".join(f"{self.host}:{self._port(node)}" for node in self.nodes)

    def pid(self, node: int) -> int | None:
        """Process id of a running node."""
        child = self._children.get(node)
        if child is not None and child.poll() is not None:
            del self._children[node]
        try:
            pid = int((self._home(node) / "pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        # The number may belong to somebody else by now: ask for the command line.
        asked = ["ps", "-ww", "-o", "args=", "-p", str(pid)]
        line = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False).stdout
        return pid if str(self._home(node) / "server.properties") in line else None

    def start(self, node: int | None = None) -> None:
        """Start all nodes that do not run, or one; returns when they answer.

        Raises ConfigError (Java or Maven missing, port taken), Unreachable (not ready in time).
        """
        java, lib = (
            _program("java", "a JDK, 17 or newer: apt install default-jre-headless"),
            fetch(),
        )
        wanted = [n for n in self.nodes if node in (None, n) and self.pid(n) is None]
        for n in wanted:
            for port in (self._port(n) + offset for offset in (1, *self._listeners.values())):
                if not _is_free(port, self.host):
                    raise ConfigError(
                        f"port {port} is taken, or `{self.host}` is no address of this machine",
                        hint="choose another `--port` or `--host`",
                    )
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._secured:
            self.folder.chmod(0o700)  # server.properties holds passwords
        kept = {
            "host": self.host,
            "port": self.port,
            "brokers": self.brokers,
            "settings": self._settings,
            "secured": bool(self._secured),
        }
        (self.folder / "cluster.json").write_text(json.dumps(kept))
        for n in wanted:
            self._launch(n, java, lib)
        deadline = time.monotonic() + READY_S[self.brokers]
        try:
            for n in wanted:
                self._wait(n, deadline)
        except RaywatchError:
            for n in wanted:
                self.kill(n)
            raise

    def stop(self, node: int | None = None) -> None:
        """Stop all nodes or one, by process id: cleanly, or by force after 10 s."""
        pids = {n: pid for n in self.nodes if node in (None, n) and (pid := self.pid(n))}
        for pid in pids.values():
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        # Controllers that lost their majority do not stop cleanly: the last ones are killed.
        while time.monotonic() < deadline and any(self.pid(n) for n in pids):
            time.sleep(0.05)
        for n in pids:
            self.kill(n)

    def kill(self, node: int) -> None:
        """SIGKILL, as a failing machine would; `start(node)` brings it back."""
        if pid := self.pid(node):
            os.kill(pid, signal.SIGKILL)
        if child := self._children.pop(node, None):
            child.wait(STOP_S)
        (self._home(node) / "pid").unlink(missing_ok=True)

    def tool(self, name: str, *arguments: str, timeout_s: float = TOOL_S) -> str:
        """Run one of Kafka's own command line classes against the cluster; returns its output."""
        if name not in TOOLS:
            raise ConfigError(f"no tool `{name}`", hint=f"one of {', '.join(TOOLS)}")
        java = _program("java", "a JDK, 17 or newer")
        command = [java, "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        command += ["-Dlog4j2.level=ERROR", "-cp", f"{fetch()}/*", TOOLS[name]]
        command += ["--bootstrap-server", self.bootstrap]
        command += ["--command-config", self._secured["client"]] if self._secured else []
        command += arguments
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Unreachable(f"`{name}` did not end within {timeout_s:.0f} s") from error
        if done.returncode != 0:
            raise Refused(f"`{name}` failed: {_tail(done.stdout + done.stderr)}")
        return done.stdout

    def _home(self, node: int) -> Path:
        return self.folder / str(node)

    def _port(self, node: int) -> int:
        return self.port + 10 * (node - 1)

    @property
    def _listeners(self) -> dict[str, int]:
        """Names of what clients may connect to, and how far from the node's port each lies."""
        return self._secured.get("listeners", {"PLAINTEXT": 0})

    def _properties(self, node: int) -> str:
        voters = ",".join(f"{n}@{self.host}:{self._port(n) + 1}" for n in self.nodes)
        broker = ",".join(
            f"{name}://{self.host}:{self._port(node) + offset}"
            for name, offset in self._listeners.items()
        )
        copies, least = ("3", "2") if self.brokers == 3 else ("1", "1")
        lines = {
            "process.roles": "broker,controller",
            "node.id": str(node),
            "controller.quorum.voters": voters,
            "listeners": f"{broker},CONTROLLER://{self.host}:{self._port(node) + 1}",
            "advertised.listeners": broker,
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self._home(node) / "data"),
            "default.replication.factor": copies,
            "min.insync.replicas": least,
            # Left at 3, one broker never creates its internal topics and transactions hang.
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": least,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": least,
            **SETTINGS,
            **self._secured.get("settings", {}),
            **self._settings,
        }
        return "".join(f"{key}={value}\n" for key, value in lines.items())

    def _launch(self, node: int, java: str, lib: Path) -> None:
        home = self._home(node)
        home.mkdir(exist_ok=True)
        properties, log = home / "server.properties", home / "server.log"
        properties.write_text(self._properties(node))
        (home / "log4j2.properties").write_text(LOG4J)
        logging = f"-Dlog4j2.configurationFile={home / 'log4j2.properties'}"
        base = [java, *JVM, *self._secured.get("jvm", ()), logging, "-cp", f"{lib}/*"]
        if not (home / "data" / "meta.properties").exists():
            formatting = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID]
            formatting += self._secured.get("format", ())
            done = subprocess.run(
                [*base, *formatting, "-c", str(properties)],
                capture_output=True,
                text=True,
                timeout=TOOL_S,
                check=False,
            )
            if done.returncode != 0:
                raise ConfigError(f"format failed: {_tail(done.stdout + done.stderr)}")
        if log.exists():
            os.replace(log, home / "server.log.before")
        tie = [setpriv, "--pdeathsig", "KILL"] if (setpriv := self._setpriv()) else []
        with log.open("wb") as stream:
            child = subprocess.Popen(
                [*tie, *base, "kafka.Kafka", str(properties)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[node] = child
        (home / "pid").write_text(str(child.pid))

    def _setpriv(self) -> str | None:
        return shutil.which("setpriv") if self._tied else None

    def _wait(self, node: int, deadline: float) -> None:
        log = self._home(node) / "server.log"
        while time.monotonic() < deadline:
            text = log.read_text(errors="replace")
            if "Kafka Server started" in text and _answers(self._port(node), self.host):
                return
            if self._children[node].poll() is not None:
                raise ConfigError(f"node {node} ended while starting:\n{_tail(text)}")
            time.sleep(0.05)
        took = f"node {node} was not ready within {READY_S[self.brokers]:.0f} s"
        raise Unreachable(f"{took}:\n{_tail(log.read_text(errors='replace'))}")


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"`--set` takes key=value, got `{pair}`")
        found[key] = value
    return found


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kafka.py", description="Apache Kafka on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "stop", "status", "tool"):
        command = commands.add_parser(name)
        command.add_argument("dir", type=Path)
        if name in ("start", "stop"):
            command.add_argument("--node", type=int, choices=(1, 2, 3))
        if name == "start":
            command.add_argument("--host", default=LOOPBACK)
            command.add_argument("--port", type=int, default=9092)
            command.add_argument("--brokers", type=int, choices=(1, 3), default=1)
            command.add_argument("--set", action="append", default=[], metavar="k=v")
            command.add_argument("--security", action="store_true", help="TLS, SASL, rights")
        if name == "tool":
            command.add_argument("name", choices=sorted(TOOLS))
            command.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser.parse_args(argv)


def _plan(folder: Path, host: str) -> dict[str, Any]:
    import kafka_security  # beside this file; the tests' fixtures load it by path

    users = {name: secrets.token_urlsafe(16) for name in (kafka_security.ADMIN, "raywatch")}
    made = kafka_security.plan(folder.resolve(), host, users)
    print(kafka_security.said(made), file=sys.stderr)
    return made


def _run(arguments: argparse.Namespace) -> int:
    """Carry out one command; returns 0, or 1 where `status` finds a node that does not run."""
    folder: Path = arguments.dir
    if arguments.command == "start" and arguments.node is None:
        cluster = KafkaCluster(
            folder,
            host=arguments.host,
            port=arguments.port,
            brokers=arguments.brokers,
            settings=_settings(arguments.set),
            secured=_plan(folder, arguments.host) if arguments.security else None,
        )
    else:
        cluster = KafkaCluster.load(folder)
    if arguments.command == "start":
        cluster.start(arguments.node)
        print(cluster.bootstrap)
    elif arguments.command == "stop":
        cluster.stop(arguments.node)
    elif arguments.command == "tool":
        print(cluster.tool(arguments.name, *arguments.arguments), end="")
    else:
        pids = {node: cluster.pid(node) for node in cluster.nodes}
        for node, pid in pids.items():
            print(f"node {node}: {f'pid {pid}' if pid else 'not running'}")
        return 0 if all(pids.values()) else 1
    return 0


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        return _run(_arguments(argv))
    except RaywatchError as error:
        print(f"kafka.py: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
