"""raywatch deploy: watch the topics of a config on a Ray cluster."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from raywatch.cluster.output import JsonFlag, result, say

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

    Says what it would start; with `--yes` starts it, waits until every lane works, and leaves it
    running. Deploying what runs already changes nothing. `--stop --yes` lets owners finish and
    commit, then ends everything.
    """
    from raywatch.actors.runtime import open_log
    from raywatch.cluster import launch, runtime
    from raywatch.cluster.config import load
    from raywatch.cluster.deployment import log_spec, prepare

    settings = load(config)
    if stop:
        runtime.connect(address)
        found = {"stopped": False, "late": []}
        if yes:
            handle = runtime.supervisor()
            found = {"stopped": True, "late": launch.stop(handle)}
            runtime.end(handle)
        words = "stopped" if yes else "would let owners finish and end everything; say --yes"
        result(found, json, lambda _: [words])
        return
    spec = log_spec(settings)
    log = open_log(spec)
    deployment = prepare(settings, log, spec)
    log.close()
    plan = [
        {
            "detector": d.spec.name,
            "topics": list(d.spec.topics),
            "partitions": sum(len(p) for p in d.lanes.values()),
            "lanes": len(d.lanes),
            "owners": min(deployment.owners, len(d.lanes)),
            "scorers": [deployment.pool.min, deployment.pool.max],
            "model": d.version,
            "exactly_once": deployment.log.exactly_once,
        }
        for d in deployment.detections
    ]
    if not yes:
        result(
            {"plan": plan, "started": False},
            json,
            lambda _: [*(_sentence(each) for each in plan), "nothing was started; say --yes"],
        )
        return
    runtime.connect(address)
    handle = launch.start(deployment, wait_s=wait_s, progress=say)
    url = runtime.call(handle, "url")
    result(
        {"plan": plan, "started": True, "page": url},
        json,
        lambda _: [*(_sentence(each) for each in plan), f"it works; the page is at {url}"],
    )


def _sentence(plan: Mapping[str, Any]) -> str:
    low, high = plan["scorers"]
    return (
        f"{plan['detector']}: {plan['partitions']} partitions in {plan['lanes']} lanes on "
        f"{plan['owners']} owners, {low} to {high} scorers with {plan['model']}"
    )
