"""raywatch models: which versions there are, what one is, and new ones: trained, or your own."""

import dataclasses
from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer

from raywatch.cluster.output import (
    ConfigPath,
    DetectorName,
    JsonFlag,
    progress,
    result,
    say,
    table,
)
from raywatch.models.errors import ConfigError

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="List, show, train and add models.",
)

Folder = Annotated[
    str, typer.Option("--folder", metavar="FOLDER", help="Where trained models are.")
]
DEFAULT_FOLDER = "./raywatch-models"


@app.command("list")
def list_(folder: Folder = DEFAULT_FOLDER, json: JsonFlag = False) -> None:
    """All versions: the shipped ones, then trained ones, newest first."""
    from raywatch.models.registry import Registry

    found = {"models": [dataclasses.asdict(each) for each in Registry(Path(folder)).list()]}
    head = ("version", "kind", "size", "note")
    result(found, json, lambda it: table(head, [[e[h] for h in head] for e in it["models"]]))


@app.command()
def show(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="`name` or `name@hash`.")],
    folder: Folder = DEFAULT_FOLDER,
    json: JsonFlag = False,
) -> None:
    """One version: settings, training, hash; its weights are read and checked."""
    from raywatch.models.registry import Registry

    artifact = Registry(Path(folder)).resolve(version)
    found: dict[str, Any] = {
        "version": artifact.version,
        "name": artifact.name,
        "kind": artifact.kind,
        "hash": artifact.hash,
        "settings": artifact.settings,
        "trained": artifact.trained,
        "weights_bytes": len(artifact.weights or b""),
    }
    result(found, json, lambda it: table(("part", "value"), list(it.items())))


@app.command()
def train(
    config: ConfigPath,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="Parquet; CSV or JSON lines, also compressed.")
    ],
    kind: Annotated[str, typer.Option(help="Kind of model, e.g. `linear`.")] = "linear",
    name: Annotated[str, typer.Option(help="Name of the model; empty: the kind.")] = "",
    detector: DetectorName = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed: the same one gives the same hash.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Train a model on the series of a file and add it to the folder of the config."""
    from raywatch.actors.files import read_series
    from raywatch.cluster.config import load
    from raywatch.cluster.connect import open_registry
    from raywatch.models.train import train as fit

    settings = load(config)
    spec = settings.spec(detector, unsettled=True)
    registry = open_registry(settings)
    with progress("reading") as count:
        series = read_series(Path(source), spec.record, progress=count)
    artifact = fit(kind, name or kind, series, seed=seed)
    path = registry.add(artifact)
    found = {"version": artifact.version, "path": str(path), "trained": artifact.trained}
    result(found, json, lambda it: [f"{it['version']} is in {it['path']}"])
    if not json:
        say(f"hint: `model: {artifact.version}` in the config uses it")


@app.command()
def add(
    config: ConfigPath,
    which: Annotated[str, typer.Argument(metavar="MODULE:CLASS", help="The scorer's class.")],
    name: Annotated[str, typer.Option(help="Name of the model.")],
    weights: Annotated[str, typer.Option(metavar="FILE", help="Bytes that the class gets.")] = "",
    setting: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="That the class gets; JSON.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Add a scorer of your own, once it has proved that it keeps the contract of scorers.

    It scores made-up series whole, key by key and in batches, and must say the same bits each time.
    """
    from raywatch.cluster.config import load
    from raywatch.cluster.connect import open_registry
    from raywatch.models.artifact import Artifact
    from raywatch.models.proving import prove
    from raywatch.models.registry import build

    settings = load(config)
    given = dict(_setting(each) for each in setting or [])
    artifact = Artifact(name, "python", {**given, "class": which}, _bytes_of(weights))
    with progress("proving"):
        prove(build(artifact, settings.pool.device))
    path = open_registry(settings).add(artifact)
    found = {"version": artifact.version, "path": str(path)}
    result(found, json, lambda it: [f"{it['version']} is in {it['path']}"])
    if not json:
        say(f"hint: `model: {artifact.version}` in the config uses it")


def _setting(text: str) -> tuple[str, Any]:
    """`name=value`; a value that is no JSON is text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or name == "class":
        raise ConfigError(f"`--setting {text}` is no NAME=VALUE", hint="e.g. --setting window=64")
    try:
        return name, loads(value)
    except ValueError:
        return name, value


def _bytes_of(path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read weights from `{path}`: {error.strerror}") from error
