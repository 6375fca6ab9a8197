"""Starts a deployment on a Ray that is there, waits until it works, and ends it again.

`run`, `demo`, `deploy`, tests and the benchmark all go this way.
"""

import time
from collections.abc import Callable
from typing import Any

from raywatch.actors import runtime as actors
from raywatch.actors.ports import Partition
from raywatch.cluster import runtime
from raywatch.cluster.deployment import Deployment
from raywatch.cluster.supervisor import Supervisor
from raywatch.models.errors import ArtifactError, ConfigError, Refused, Unreachable

START_S = 120.0  # Loading models takes seconds; a node that has to be started takes minutes.
STOP_S = 30.0
GONE_S = 10.0  # Until the name of an actor that was ended is free again.


def start(
    deployment: Deployment,
    *,
    wait_s: float = START_S,
    progress: Callable[[str], None] = lambda words: None,
) -> Any:
    """The supervisor's handle, once every lane works or waits for a person. Idempotent.

    Where partitions were added to a topic since, what runs is ended first: lanes keep the ones they
    have, and no two owners may differ about who has which.

    Raises Unreachable, ConfigError, and Refused where a deployment of another config runs.
    """
    handle = actors.start_supervisor(Supervisor, (deployment,))
    _refuse_another(handle, deployment, wait_s)
    if new := added(handle, deployment):
        progress(f"{len(new)} partitions were added: it stops, and starts again with them")
        handle = _anew(handle, deployment)
    until = time.monotonic() + wait_s
    said = ""
    while True:
        left = until - time.monotonic()
        try:
            words = runtime.call(handle, "starting", timeout_s=max(1.0, left))
        except (ConfigError, ArtifactError):
            runtime.end(handle)  # it has begun nothing, and the next one must not find it
            raise
        if not words:
            for each in runtime.call(handle, "blocked"):
                progress(each)
            return handle
        if words != said:
            progress(words)
            said = words
        if left <= 0:
            raise Unreachable(
                f"not every lane worked within {wait_s:.0f} s: {words}",
                hint="it goes on starting; `raywatch status` says more, and `ray status` what "
                "no machine has room for",
            )
        time.sleep(0.1)


def runs(deployment: Deployment) -> bool:
    """Whether it runs there already. Raises Refused where one of another config does."""
    handle = runtime.deployed()
    if handle is None:
        return False
    _refuse_another(handle, deployment, STOP_S)
    return True


def added(handle: Any, deployment: Deployment) -> list[Partition]:
    """Partitions of a deployment that the one that runs does not watch."""
    watched = runtime.call(handle, "partitions")
    return [p for d in deployment.detections for p in d.partitions if p not in watched[d.spec.name]]


def lacks(deployment: Deployment) -> list[Partition]:
    """The same for whatever runs on this Ray cluster; empty where nothing does."""
    handle = runtime.deployed()
    return [] if handle is None else added(handle, deployment)


def _anew(handle: Any, deployment: Deployment) -> Any:
    """End what runs and start a deployment in its place."""
    stop(handle)
    runtime.end(handle)
    until = time.monotonic() + GONE_S
    while runtime.deployed() is not None and time.monotonic() < until:
        time.sleep(0.05)
    return actors.start_supervisor(Supervisor, (deployment,))


def _refuse_another(handle: Any, deployment: Deployment, wait_s: float) -> None:
    if runtime.call(handle, "digest", timeout_s=wait_s) != deployment.digest:
        raise Refused(
            "a deployment of another config runs on this Ray cluster",
            hint="`raywatch deploy CONFIG --stop --yes` ends it; nothing is lost",
        )


def stop(handle: Any, *, wait_s: float = STOP_S) -> list[str]:
    """End a deployment. Returns the owners that did not finish in time (they lose nothing)."""
    return runtime.call(handle, "stop", wait_s, timeout_s=wait_s + 15.0)
