"""Starts a deployment on a Ray that is there, waits until it works, and ends it again.

`run`, `demo`, `deploy`, tests and the benchmark all go this way.
"""

import time
from collections.abc import Callable
from typing import Any

from raywatch.actors import runtime as actors
from raywatch.cluster import runtime
from raywatch.cluster.deployment import Deployment
from raywatch.cluster.supervisor import Supervisor
from raywatch.models.errors import ArtifactError, ConfigError, Refused, Unreachable

START_S = 120.0  # Loading models takes seconds; a node that has to be started takes minutes.
STOP_S = 30.0


def start(
    deployment: Deployment,
    *,
    wait_s: float = START_S,
    progress: Callable[[str], None] = lambda words: None,
) -> Any:
    """The supervisor's handle, once every lane works. Idempotent.

    Raises Unreachable, ConfigError, and Refused where a deployment of another config runs.
    """
    handle = actors.start_supervisor(Supervisor, (deployment,))
    if runtime.call(handle, "digest", timeout_s=wait_s) != deployment.digest:
        raise Refused(
            "a deployment of another config runs on this Ray cluster",
            hint="`raywatch deploy CONFIG --stop --yes` ends it; nothing is lost",
        )
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
            return handle
        if words != said:
            progress(words)
            said = words
        if left <= 0:
            raise Unreachable(
                f"not every lane worked within {wait_s:.0f} s: {words}",
                hint="`raywatch status` and the journal say more; the service goes on starting",
            )
        time.sleep(0.1)


def stop(handle: Any, *, wait_s: float = STOP_S) -> list[str]:
    """End a deployment. Returns the owners that did not finish in time (they lose nothing)."""
    return runtime.call(handle, "stop", wait_s, timeout_s=wait_s + 15.0)
