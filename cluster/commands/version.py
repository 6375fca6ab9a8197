"""raywatch version: which version this is, and of what it depends on."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from raywatch.cluster.output import JsonFlag, result, table

PARTS = ("ray", "confluent-kafka", "torch", "numba", "numpy", "pyarrow", "msgspec", "pydantic")

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def show(json: JsonFlag = False) -> None:
    """Say which version this is, with the versions of what it stands on."""
    found: dict[str, Any] = {"raywatch": version("raywatch"), "python": platform.python_version()}
    for part in PARTS:
        try:
            found[part] = version(part)
        except PackageNotFoundError:
            found[part] = None  # the table shows a dash: a broken installation is worth seeing
    result(found, json, lambda found: table(("part", "version"), list(found.items())))
