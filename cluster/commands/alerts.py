"""raywatch alerts tail: the alerts that were raised, as they lie in their topic."""

import json as json_module
from datetime import UTC, datetime
from typing import Annotated, Any, cast

import typer

from raywatch.cluster.output import ConfigPath, DetectorName, JsonFlag, line, printable, put, say
from raywatch.models.errors import ConfigError

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Read the alerts that were raised.",
)

Begin = Annotated[
    str, typer.Option("--from", metavar="earliest|latest", help="Where to begin to read.")
]
Follow = Annotated[bool, typer.Option(help="Wait for more, or end where the topic ends now.")]
Limit = Annotated[int, typer.Option(min=0, help="End after so many; 0: no limit.")]


def begin_of(begin: str, follow: bool) -> Any:
    """Check `--from`. Raises ConfigError."""
    if begin not in ("earliest", "latest"):
        raise ConfigError(f"`--from` must be `earliest` or `latest`, got `{begin}`")
    if begin == "latest" and not follow:
        raise ConfigError(
            "`--from latest --no-follow` reads nothing", hint="use `--from earliest`, or follow"
        )
    return begin


@app.callback()
def _group() -> None:  # pyright: ignore[reportUnusedFunction]  # makes `tail` a sub-command
    pass


@app.command()
def tail(
    config: ConfigPath,
    detector: DetectorName = "",
    begin: Begin = "earliest",
    follow: Follow = False,
    limit: Limit = 0,
    json: JsonFlag = False,
) -> None:
    """Print alerts, one a line; with --json each as it is, plus where it lies."""
    from raywatch.cluster.config import load
    from raywatch.cluster.connect import open_log
    from raywatch.cluster.tail import tail as read

    place = begin_of(begin, follow)
    settings = load(config)
    topic = settings.spec(detector, unsettled=True).alerts
    log = open_log(settings)
    count = 0
    try:
        for entry in read(log, topic, begin=place, follow=follow, limit=limit or None):
            count += 1
            found = parsed(entry.value)
            at = {"partition": str(entry.partition), "offset": entry.offset}
            if json:
                line({**found, "log": at})
            else:
                put(sentence(found))
    finally:
        log.close()
    if not json:
        say(f"{count} alerts in `{topic}`")


def parsed(value: bytes | None) -> dict[str, Any]:
    """An alert as a dictionary; what is none is shown as text, never dropped."""
    try:
        found = json_module.loads(value or b"null")
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return cast("dict[str, Any]", found)
    return {"text": (value or b"").decode(errors="replace")}


def sentence(found: dict[str, Any]) -> str:
    """One line about an alert: when, state, whose, why in words, and its id."""
    if "text" in found and "id" not in found:
        return printable(str(found["text"]))
    when = found.get("at_ms")
    parts = [moment(when) if isinstance(when, int) else "-"]
    parts += [str(found.get(name) or "-") for name in ("state", "detector", "key", "words", "id")]
    kind = found.get("run_kind")
    said = "  ".join(parts) + (f"  ({kind})" if kind not in (None, "live") else "")
    return printable(said)


def moment(ms: int) -> str:
    """A record's time in UTC, to the second."""
    try:
        return datetime.fromtimestamp(ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"
