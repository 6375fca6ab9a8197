"""How a command speaks: results to stdout, everything else to stderr, and never a traceback.

    say("read 3 records")        stderr, a sentence for people
    result({...}, json, human)   stdout: one JSON document, or the lines that `human` makes of it
    table(("a", "b"), rows)      columns as text; numbers to the right

Understandable without colour; colour appears on a terminal only. Knows no command.
"""

import json as json_module
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer

from raywatch.models.errors import EXIT_BUG, EXIT_OK, RaywatchError

ROWS_MAX = 10_000  # bounds a table: beyond it, `--json` is the way

# What commands share, so that one thing has one name and one help text everywhere.
ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="The config file (YAML).")]
JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
DetectorName = Annotated[
    str, typer.Option("--detector", metavar="NAME", help="Which one; not needed if there is one.")
]

MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
COLOURS = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[31m"}


def say(words: str) -> None:
    """A sentence for people."""
    print(words, file=sys.stderr, flush=True)


def put(words: str) -> None:
    """A line of the answer, at once. Ends the command where nobody reads any more (`| head`)."""
    try:
        print(words, flush=True)
    except BrokenPipeError:
        # Python would complain when it flushes stdout at exit: it gets one that takes everything.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_OK) from None


def printable(text: str) -> str:
    """The text on one line, what could steer a terminal escaped: it came from others."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def of_labels(found: Mapping[str, int]) -> list[str]:
    """What became of labels of payments; nothing where there are none to come."""
    if "labels" not in found:
        return []
    count = {name: f"{found.get(name, 0):,}" for name in ("labels", "repeated", "unknown", "lost")}
    words = (
        f"labels: {count['labels']} joined to their payment, {count['repeated']} repeated, "
        f"{count['unknown']} of payments that are unknown or too old; {count['lost']} payments had "
        "no room to wait for theirs"
    )
    late = found.get("late", 0)
    return [f"{words}; {late:,} records came too late for their place" if late else words]


def result(
    found: Mapping[str, Any], json: bool, human: Callable[[Mapping[str, Any]], Iterable[str]]
) -> None:
    """The answer of a command."""
    if json:
        line(found)
    else:
        put("\n".join(human(found)))


def line(found: Mapping[str, Any]) -> None:
    """One JSON document, or one of a stream of them."""
    put(json_module.dumps(found, default=str))


def mark(state: str, words: str, stream: TextIO | None = None) -> str:
    """A line that begins with ✓, ! or ✗."""
    sign = MARKS[state]
    if (stream or sys.stdout).isatty():
        sign = f"{COLOURS[state]}{sign}\x1b[0m"
    return f"{sign} {words}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Rows under a head, columns aligned by two spaces, numbers to the right."""
    cells = [[_cell(each) for each in row] for _, row in zip(range(ROWS_MAX), rows, strict=False)]
    assert all(len(row) == len(head) for row in cells), head
    width = [max(len(row[at]) for row in [list(head), *cells]) for at in range(len(head))]
    right = [bool(cells) and all(_is_number(row[at]) for row in cells) for at in range(len(head))]
    lines: list[str] = []
    for row in [list(head), *cells]:
        parts = [
            text.rjust(size) if to_right else text.ljust(size)
            for text, size, to_right in zip(row, width, right, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return lines


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(",", "").replace(".", "").lstrip("-").isdecimal()


def error(caught: RaywatchError, json: bool) -> int:
    """Say what happened and what to do; the exit code."""
    say(f"error: {caught.message or type(caught).__name__}")
    if caught.hint:
        say(f"hint: {caught.hint}")
    if json:
        line({"error": caught.message, "hint": caught.hint, "exit_code": caught.exit_code})
    return caught.exit_code


def bug(caught: BaseException) -> int:
    """A traceback and where to send it; the exit code."""
    import platform
    import traceback
    from importlib.metadata import version

    traceback.print_exception(caught, file=sys.stderr)
    say(f"error: this is a bug in raywatch: {type(caught).__name__}")
    say(
        "hint: report it with the lines above, the command, the config without secrets, and: "
        f"raywatch {version('raywatch')}, Python {platform.python_version()}, {platform.platform()}"
    )
    return EXIT_BUG


@contextmanager
def progress(what: str) -> Generator[Callable[[int], None]]:
    """Count records on a terminal's stderr; silent elsewhere, so that logs stay readable."""
    if not sys.stderr.isatty():
        yield lambda records: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda records: bar.update(task, description=f"{what}: {records:,} records")
