"""raywatch run: watch the topics of a config on this machine."""

import signal
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from raywatch.cluster.output import JsonFlag, line, say
from raywatch.models.errors import EXIT_OK

app = typer.Typer(rich_markup_mode=None, add_completion=False)

LOGICAL_CPUS = 64  # Ray's CPUs are tickets here: the pool's bounds are the limit, not this machine


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The config file.")],
    seconds: Annotated[
        float, typer.Option(min=0.0, help="End after this long; 0: when interrupted.")
    ] = 0.0,
    json: JsonFlag = False,
) -> None:
    """Watch the topics of a config on this machine, until interrupted.

    Starts a Ray of its own, owners, scorers and the supervisor, and serves the live page. On
    Ctrl-C or SIGTERM owners finish what they pulled, commit, and everything ends; nothing is lost.
    """
    from raywatch.actors.runtime import open_log
    from raywatch.cluster import launch, runtime
    from raywatch.cluster.config import load
    from raywatch.cluster.deployment import log_spec, prepare

    settings = load(config)
    spec = log_spec(settings)
    log = open_log(spec)
    try:
        deployment = prepare(settings, log, spec, path=str(config))
    finally:
        log.close()
    try:
        runtime.start_local(LOGICAL_CPUS)
        signal.signal(signal.SIGTERM, _interrupt)  # Ray's own handler is that of a driver
        handle = launch.start(deployment, progress=say)
        url = runtime.call(handle, "url")
        if json:
            line({"page": url, "ray": runtime.address(), "state": "running"})
        else:
            say(f"watching; the page is at {url}, `raywatch status` asks the same")
            say(f"its Ray is at {runtime.address()}: `raywatch rollout --address` asks there")
        threading.Event().wait(seconds) if seconds else _forever()
    except (KeyboardInterrupt, SystemExit):  # the latter is how Ray's handler says SIGTERM
        say("interrupted: owners finish and commit")
    finally:
        _end()
    raise typer.Exit(EXIT_OK)


def _end() -> None:
    """End whatever was started, however far it came."""
    from raywatch.cluster import launch, runtime

    try:
        handle = runtime.deployed() if runtime.joined() else None
        late = launch.stop(handle) if handle is not None else []
        if late:
            say(f"did not finish in time, and will go on from their last commit: {late}")
    finally:
        runtime.leave()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _forever() -> None:
    while True:
        time.sleep(3_600.0)
