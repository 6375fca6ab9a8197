"""raywatch rollout: replace a model while it runs."""

import getpass
from pathlib import Path
from typing import Annotated, Any

import typer

from raywatch.cluster.output import JsonFlag, result
from raywatch.models.errors import EXIT_OK

app = typer.Typer(
    rich_markup_mode=None, add_completion=False, no_args_is_help=True,
    help="Replace a model while it runs: one scorer more at a time, each warmed before it serves.",
)  # fmt: skip

ConfigArgument = Annotated[Path, typer.Argument(help="The config file of the running service.")]
Detector = Annotated[str, typer.Option("--detector", help="Which one, where there are several.")]
Address = Annotated[
    str,
    typer.Option(help="Its Ray: `auto` where only one runs here, or host:port as `run` said."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without, only the plan is said.")]


@app.command()
def start(
    config: ConfigArgument,
    model: Annotated[str, typer.Argument(help="The model: name, or name@hash.")],
    detector: Detector = "",
    address: Address = "auto",
    yes: Yes = False,
    json: JsonFlag = False,
) -> None:
    """Begin to serve another model version.

    No batch is dropped and each has one version; the first offset of the new version in each
    partition is written to the audit topic. Exit 1 where a rollout is under way already.
    """
    from raywatch.actors.store import open_store
    from raywatch.cluster.config import load
    from raywatch.cluster.connect import open_registry
    from raywatch.cluster.deployment import artifact_name, store_url
    from raywatch.models.artifact import pack
    from raywatch.models.errors import ConfigError
    from raywatch.models.registry import PRESET, PRESETS

    settings = load(config)
    artifact = open_registry(settings).resolve(model)
    name = settings.detector(detector).name
    if artifact.kind in PRESETS or settings.detector(detector).model.startswith(PRESET):
        raise ConfigError(
            f"`{name}` cannot change from `{settings.detector(detector).model}` to `{model}`",
            hint="signal classes are not rolled out: change `model` and start the service anew",
        )
    if not yes:
        words = f"would replace the model of `{name}` by `{artifact.version}`; say --yes"
        result({"started": False, "version": artifact.version}, json, lambda _: [words])
        return
    open_store(store_url(settings.store)).put(artifact_name(artifact.version), pack(artifact))
    words = _ask(address, "rollout_start", name, artifact.version, getpass.getuser())
    result({"started": True, "version": artifact.version, "words": words}, json, lambda _: [words])


@app.command()
def status(
    config: ConfigArgument,
    detector: Detector = "",
    address: Address = "auto",
    json: JsonFlag = False,
) -> None:
    """Say where a rollout is, and which version each lane uses."""
    from raywatch.cluster.config import load

    name = load(config).detector(detector).name
    found = _ask(address, "rollout_status", name)
    result(found, json, lambda _: _lines(found))


@app.command()
def abort(
    config: ConfigArgument,
    detector: Detector = "",
    address: Address = "auto",
    yes: Yes = False,
    json: JsonFlag = False,
) -> None:
    """Go back to the version before, the same careful way. Exit 1 where none is under way."""
    from raywatch.cluster.config import load

    name = load(config).detector(detector).name
    if not yes:
        found = _ask(address, "rollout_status", name)
        words = "would go back; say --yes" if found["under_way"] else "no rollout is under way"
        result({"aborted": False, **found}, json, lambda _: [words])
        raise typer.Exit(EXIT_OK if found["under_way"] else 1)
    words = _ask(address, "rollout_abort", name, getpass.getuser())
    result({"aborted": True, "words": words}, json, lambda _: [words])


def _ask(address: str, method: str, *arguments: str) -> Any:
    from raywatch.cluster import runtime

    runtime.connect(address)
    try:
        return runtime.call(runtime.supervisor(), method, *arguments)
    finally:
        runtime.leave()


def _lines(found: dict[str, Any]) -> list[str]:
    under_way = found["rollout"]
    lines = [f"{found['detector']} serves {found['serves']}"]
    if under_way:
        lines.append(
            f"rollout to {under_way['after']}: {under_way['phase']} {under_way['why']}".rstrip()
        )
    lines += [f"lane {lane}: {version}" for lane, version in found["lanes"].items()]
    lines += [f"{s['name']}: {s['version']} {s['state']}" for s in found["scorers"]]
    return lines
