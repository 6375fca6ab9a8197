"""raywatch deploy: watch the topics of a config on a Ray cluster."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raywatch.cluster.output import JsonFlag, result, say

if TYPE_CHECKING:
    from raywatch.cluster.deployment import Deployment

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def deploy(
    config: Annotated[Path, typer.Argument(help="The config file.")],
    address: Annotated[
        str, typer.Option(help="The Ray cluster: `auto` on one of its machines, or host:port.")
    ] = "auto",
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; without, only the plan is said.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the deployment instead.")] = False,
    wait_s: Annotated[
        float, typer.Option(min=1.0, help="Longest wait until it works, in s.")
    ] = 300.0,
    json: JsonFlag = False,
) -> None:
    """Watch the topics of a config on a running Ray cluster (`ray up` starts one).

    Says what it would start and changes nothing; with `--yes` starts it, waits until every lane
    works, and leaves it running. Deploying what runs already changes nothing, unless partitions
    were added to a topic: then it stops, and starts again with them. `--stop --yes` lets owners
    finish and commit, then ends everything. Exit 1 where another config is deployed, 2 where a
    topic is missing, 3 where no cluster or broker answers.
    """
    from raywatch.cluster.config import load

    settings = load(config)
    if stop:
        _stop(address, yes, json)
        return
    from raywatch.actors.runtime import open_log
    from raywatch.cluster import launch, runtime
    from raywatch.cluster.deployment import log_spec, prepare

    spec = log_spec(settings)
    log = open_log(spec)
    try:
        planned = prepare(settings, log, spec, path=str(config), provide=False)
        runtime.connect(address)
        site = runtime.site()
        runs = launch.runs(planned)
        new = len(launch.lacks(planned)) if runs else 0
        found = {"plan": _plan(planned), "cpus": _cpus(planned, site.cpus), "started": False}
        if not yes:
            end = "it runs already: --yes would change nothing"
            end = end if runs else "nothing was started; say --yes"
            if new:
                end = f"it runs without {new} partitions that were added: --yes takes them in"
            result({**found, "running": runs}, json, lambda each: [*_lines(each), end])
            return
        deployment = prepare(settings, log, spec, path=str(config))
        handle = launch.start(deployment, wait_s=wait_s, progress=say)
        url = runtime.call(handle, "url")
        blocked = len(runtime.call(handle, "blocked"))
    finally:
        log.close()
        runtime.leave()
    runs = runs and not new
    end = "it ran already, nothing was changed" if runs else "every lane works"
    if blocked:
        end = f"{blocked} lanes are blocked, the others work"
    page = f"the page: {url} on {site.head}" if url else "there is no page: `raywatch status` why"
    result(
        {**found, "started": not runs, "running": True, "page": url, "head": site.head},
        json,
        lambda each: [*_lines(each), end, page],
    )


def _stop(address: str, yes: bool, json: bool) -> None:
    from raywatch.cluster import launch, runtime

    try:
        runtime.connect(address)
        handle = runtime.deployed()
        if handle is None:
            words, late = "nothing is deployed there", []
        elif yes:
            late = launch.stop(handle)
            runtime.end(handle)
            words = "stopped: owners finished and committed"
            if late:
                words = f"stopped; not in time, so to be read again from the commit: {late}"
        else:
            count = len(runtime.call(handle, "posts"))
            words = f"would let owners finish, and end {count} owners and scorers; say --yes"
            late = []
    finally:
        runtime.leave()
    found = {"stopped": yes and handle is not None, "deployed": handle is not None, "late": late}
    result(found, json, lambda _: [words])


def _plan(deployment: "Deployment") -> list[dict[str, Any]]:
    return [
        {
            "detector": d.spec.name,
            "topics": list(d.spec.inputs),
            "partitions": sum(len(p) for p in d.lanes.values()),
            "lanes": len(d.lanes),
            "owners": min(deployment.owners, len(d.lanes)),
            "scorers": [deployment.pool.min, deployment.pool.max],
            "model": d.version,
            "exactly_once": deployment.log.exactly_once,
        }
        for d in deployment.detections
    ]


def _cpus(deployment: "Deployment", there: float) -> dict[str, float]:
    """What Ray will be asked for, at the pool's least and most, and what it has now."""
    owners = sum(min(deployment.owners, len(d.lanes)) for d in deployment.detections)
    held = owners * deployment.owner_cpus * (2 if deployment.standby else 1)
    each = deployment.pool.cpus * len(deployment.detections)
    return {
        "least": held + deployment.pool.min * each,
        "most": held + deployment.pool.max * each,
        "there": there,
    }


def _lines(found: Mapping[str, Any]) -> list[str]:
    cpus = found["cpus"]
    said = [_sentence(each) for each in found["plan"]]
    said.append(
        f"they ask for {cpus['least']:g} to {cpus['most']:g} CPUs; the cluster has "
        f"{cpus['there']:g} now"
    )
    return said


def _sentence(plan: Mapping[str, Any]) -> str:
    low, high = plan["scorers"]
    once = "exactly once" if plan["exactly_once"] else "at least once"
    return (
        f"{plan['detector']}: {plan['partitions']} partitions in {plan['lanes']} lanes on "
        f"{plan['owners']} owners, {low} to {high} scorers with {plan['model']}, {once}"
    )
