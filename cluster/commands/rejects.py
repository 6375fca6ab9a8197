"""raywatch rejects tail: records that could not be decoded, and why."""

from typing import Any

import typer

from raywatch.cluster.commands.alerts import Begin, Follow, Limit, begin_of
from raywatch.cluster.output import ConfigPath, DetectorName, JsonFlag, line, printable, put, say
from raywatch.cluster.tail import Entry

PREVIEW_BYTES = 80  # of the original value, on one line

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Read the records that could not be decoded.",
)


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
    """Print rejects, one a line: reason, topic/partition@offset, first bytes."""
    from raywatch.cluster.config import load
    from raywatch.cluster.connect import open_log
    from raywatch.cluster.tail import tail as read

    place = begin_of(begin, follow)
    settings = load(config)
    topic = settings.spec(detector, unsettled=True).rejects
    log = open_log(settings)
    count = 0
    try:
        for entry in read(log, topic, begin=place, follow=follow, limit=limit or None):
            count += 1
            if json:
                line(described(entry))
            else:
                put(sentence(described(entry)))
    finally:
        log.close()
    if not json:
        say(f"{count} rejects in `{topic}`")


def described(entry: Entry) -> dict[str, Any]:
    """A reject as a dictionary. The headers say where the record was and what is wrong with it."""
    # Kafka allows a header without a value.
    text = {name: (value or b"").decode(errors="replace") for name, value in entry.headers.items()}
    value = entry.value or b""
    return {
        "reason": text.get("reason"),
        "detail": text.get("detail"),
        "topic": text.get("topic"),
        "partition": _number(text.get("partition")),
        "offset": _number(text.get("offset")),
        "size": _number(text.get("size")),
        "withheld": "withheld" in text,
        "preview": "(withheld: `record.pseudonymise`)" if "withheld" in text else preview(value),
        "log": {"partition": str(entry.partition), "offset": entry.offset},
    }


def preview(value: bytes) -> str:
    """First bytes on one line; what is not printable is escaped."""
    text = value[:PREVIEW_BYTES].decode("utf-8", "backslashreplace")
    return printable(text) + ("..." if len(value) > PREVIEW_BYTES else "")


def sentence(found: dict[str, Any]) -> str:
    """One line about a reject."""
    where = f"{found['topic']}/{found['partition']}@{found['offset']}"
    parts = (found["reason"], where, found["detail"], found["preview"])
    return printable("  ".join(str(each) for each in parts))


def _number(text: str | None) -> int | None:
    """An offset has 19 digits at most; `int` refuses 4,300."""
    return int(text) if text is not None and text.isdecimal() and len(text) < 20 else None
