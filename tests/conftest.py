"""Fixtures that more than one room needs: a real Kafka, and names nobody else uses."""

import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from secured import Secured

    from tools.kafka import KafkaCluster

TOOLS = Path(__file__).resolve().parent.parent / "tools"


def _tool(stem: str) -> Any:
    name = f"raywatch_tools_{stem}"  # by path: the top level folder is no package on purpose
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{stem}.py")
        assert spec
        assert spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _started(folder: Path, brokers: int, secured: Any = None) -> "KafkaCluster":
    """A running cluster that ends with this process, whatever happens to it."""
    tool = _tool("kafka")
    # Runs at the same time start looking for ports in different places.
    port = tool.free_port(20_000 + os.getpid() % 300 * 32)
    cluster: KafkaCluster = tool.KafkaCluster(
        folder, port=port, brokers=brokers, tied=True, secured=secured
    )
    cluster.start()
    return cluster


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator["KafkaCluster"]:
    """One broker for the whole session: do not stop it, use names of your own (`topic`)."""
    cluster = _started(tmp_path_factory.mktemp("kafka"), 1)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Secured"]:
    """One broker that asks who is there and what he may do: use principals of your own."""
    from secured import PASSWORDS, Secured

    security, folder = _tool("kafka_security"), tmp_path_factory.mktemp("kafka-secured")
    cluster = _started(folder, 1, security.plan(folder, "127.0.0.1", PASSWORDS))
    yield Secured(cluster, security)
    cluster.stop()


@pytest.fixture
def kafka_new(tmp_path_factory: pytest.TempPathFactory) -> Iterator["KafkaCluster"]:
    """One broker that nobody ever asked anything."""
    cluster = _started(tmp_path_factory.mktemp("kafka-new"), 1)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def kafka3(tmp_path_factory: pytest.TempPathFactory) -> Iterator["KafkaCluster"]:
    """Three brokers for one module: its tests may kill them and start them again."""
    cluster = _started(tmp_path_factory.mktemp("kafka3"), 3)
    yield cluster
    cluster.stop()


_NUMBERS = itertools.count(1)


@pytest.fixture
def topic() -> Callable[[str], str]:
    """Makes names (of topics, groups, lanes) that no other test uses; creates nothing."""

    def name(stem: str = "t") -> str:
        return f"{stem}-{os.getpid()}-{next(_NUMBERS)}"

    return name
