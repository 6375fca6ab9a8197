"""Goal: one command gives a real Kafka, says what is wrong when it cannot, and leaves nothing.

Method: the command line as a developer types it, with three nodes of which one is killed; errors
are provoked with an empty path and a taken port.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from raywatch.actors.kafka import KafkaLog
from raywatch.actors.ports import Bounds, Out, Partition

if TYPE_CHECKING:
    from tools.kafka import KafkaCluster

TOOL = Path(__file__).resolve().parent.parent / "tools" / "kafka.py"


def run(*arguments: str, path: str | None = None) -> "subprocess.CompletedProcess[str]":
    environment = dict(os.environ) if path is None else {"PATH": path}
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


def free_base() -> int:
    """A port that was free a moment ago, with free ones behind it."""
    for base in range(30_000 + os.getpid() % 60 * 16, 32_000, 16):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", base))
                second.bind(("127.0.0.1", base + 1))
            except OSError:
                continue
            return base
    raise AssertionError("no free port")


@pytest.mark.kafka
def test_start_status_stop_and_start_again(tmp_path: Path) -> None:
    folder, base = str(tmp_path / "cluster"), free_base()
    started = run("start", folder, "--port", str(base), "--set", "num.partitions=5")
    try:
        assert started.returncode == 0, started.stderr
        assert started.stdout.strip() == f"127.0.0.1:{base}"
        status = run("status", folder)
        assert status.returncode == 0
        pid = int((tmp_path / "cluster" / "1" / "pid").read_text())
        assert status.stdout.strip() == f"node 1: pid {pid}"
        log = KafkaLog(started.stdout.strip())
        log.create("t", 1)
        log.write([Out("t", b"k", b"kept")])
        log.close()
        assert "t" in run("tool", folder, "topics", "--list").stdout.split()

        os.kill(pid, signal.SIGKILL)
        again = run("start", folder, "--node", "1")
        assert again.returncode == 0, again.stderr
        log = KafkaLog(f"127.0.0.1:{base}")
        assert log.bounds([Partition("t", 0)]) == {Partition("t", 0): Bounds(0, 1)}
        log.close()
    finally:
        stopped = run("stop", folder)
    assert stopped.returncode == 0, stopped.stderr
    status = run("status", folder)
    assert status.returncode == 1
    assert status.stdout.strip() == "node 1: not running"


@pytest.mark.kafka
def test_one_of_three_nodes_dies_and_comes_back(kafka3: "KafkaCluster") -> None:
    log = KafkaLog(kafka3.bootstrap)
    log.create("survives", 3)
    kafka3.kill(2)
    assert [bool(kafka3.pid(n)) for n in kafka3.nodes] == [True, False, True]
    log.write([Out("survives", b"%d" % n, b"v") for n in range(30)])
    kafka3.start(2)
    assert all(kafka3.pid(n) for n in kafka3.nodes)
    partitions = [Partition("survives", n) for n in range(3)]
    assert sum(b.end for b in log.bounds(partitions).values()) == 30
    log.close()


def test_without_java_it_says_what_to_install(tmp_path: Path) -> None:
    done = run("start", str(tmp_path / "cluster"), path=str(tmp_path))
    assert done.returncode == 2
    assert "`java` is not on the path" in done.stderr
    assert "install a JDK" in done.stderr


@pytest.mark.kafka
def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("start", str(tmp_path / "cluster"), "--port", str(port))
    assert done.returncode == 2
    assert f"port {port} is taken" in done.stderr


def test_a_folder_without_a_cluster_is_named(tmp_path: Path) -> None:
    done = run("stop", str(tmp_path))
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr


def test_a_bad_setting_is_named(tmp_path: Path) -> None:
    done = run("start", str(tmp_path / "cluster"), "--set", "broken")
    assert done.returncode == 2
    assert "`broken`" in done.stderr


@pytest.mark.kafka
def test_a_broker_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    bad = "log.segment.bytes=tiny"
    done = run("start", str(tmp_path / "cluster"), "--port", str(free_base()), "--set", bad)
    assert done.returncode == 2
    assert "log.segment.bytes" in done.stderr
