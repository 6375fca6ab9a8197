"""The command line: which command, and what its end means.

    raywatch COMMAND ...    0 done, 1 the answer is no, 2 a file, a flag or a right must change,
                            3 something did not answer in time, 70 a bug, 130 interrupted

A command is a file in `commands/` with a Typer `app`; it is imported when it is asked for, and
imports what is heavy (ray, torch, numba, pyarrow, confluent_kafka) when it runs. Add one: write the
file, add a line to COMMANDS. Commands raise RaywatchError for what an operator can act on, and
`typer.Exit(code)` where their answer has a code; everything else is a bug.
"""

import difflib
import io
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module, util
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from raywatch.cluster import output
from raywatch.models.errors import EXIT_CHANGE, EXIT_INTERRUPTED, EXIT_OK, RaywatchError

# In the order in which one meets them. The words are what `raywatch --help` says.
COMMANDS = {
    "demo": "Watch a small world with floods and faults, without a broker.",
    "check": "Say whether a config, its models and its brokers are ready.",
    "backtest": "Score a file as the service would, and list the alerts.",
    "evaluate": "Say how good the scores of a labelled file are.",
    "run": "Watch the topics of a config on this machine.",
    "deploy": "Watch them on a Ray cluster.",
    "status": "Say how the running service does.",
    "lag": "Say how far behind each partition is.",
    "alerts": "Read the alerts that were raised.",
    "rejects": "Read the records that could not be decoded.",
    "models": "List, show, train and add models.",
    "rollout": "Replace a model while it runs.",
    "drill": "Break a part of the running service, and see it recover.",
    "version": "Say which version this is.",
}

USAGE_ERROR = typer.BadParameter.__bases__[0]  # every mistake in a command line is one
assert USAGE_ERROR.__name__ == "UsageError", USAGE_ERROR


def _module(name: str) -> str:
    return f"raywatch.cluster.commands.{name}"


def available() -> list[str]:
    """Commands whose file is there, in the order of COMMANDS."""
    return [name for name in COMMANDS if util.find_spec(_module(name)) is not None]


class Commands(TyperGroup):
    """Finds commands by file name, and imports one when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, in the order of COMMANDS."""
        return available()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, or None."""
        if cmd_name not in available():
            return None
        found: Any = get_command(import_module(_module(cmd_name)).app)
        found.name = cmd_name
        return found

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in `--help`, from the table and not from the files: nothing is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in available()])


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"raywatch {version('raywatch')}")
        raise typer.Exit(EXIT_OK)


app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,  # plain text: readable without colour, and rich is slow to import
    pretty_exceptions_enable=False,
    help="Watches event streams: Kafka records in, explained alerts out, nothing lost or repeated.",
    epilog="Start with `raywatch check CONFIG`. Every setting: docs/configuration.md.",
)


@app.callback(invoke_without_command=True)
def _root(  # pyright: ignore[reportUnusedFunction]  # Typer calls it
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def pages() -> Iterator[tuple[str, str]]:
    """Every command with its help text, 100 columns wide (for docs/commands.md)."""

    def walk(command: Any, parent: Any, name: str) -> Iterator[tuple[str, str]]:
        context = command.context_class(
            command, info_name=name, parent=parent, terminal_width=100, max_content_width=100
        )
        yield context.command_path, command.get_help(context)
        if hasattr(command, "list_commands"):
            for each in command.list_commands(context):
                yield from walk(command.get_command(context, each), context, each)

    yield from walk(get_command(app), None, "raywatch")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. The entry point of the `raywatch` script."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # Records hold what cannot be printed everywhere, half a surrogate for one: it is escaped.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    json = "--json" in words
    try:
        code = get_command(app)(words, prog_name="raywatch", standalone_mode=False)
        if code == EXIT_INTERRUPTED:
            output.say("interrupted")
        return code if isinstance(code, int) else EXIT_OK
    except RaywatchError as caught:
        return output.error(caught, json)
    except (KeyboardInterrupt, typer.Abort):
        output.say("interrupted")
        return EXIT_INTERRUPTED
    except Exception as caught:
        if isinstance(caught, USAGE_ERROR):
            return _usage(caught, words)
        return output.bug(caught)


def _usage(caught: Any, words: Sequence[str]) -> int:
    """A mistake in the command line: what, and what was probably meant."""
    message = caught.format_message().rstrip(".")
    output.say(f"error: {message[:1].lower()}{message[1:]}")
    first = next((word for word in words if not word.startswith("-")), "")
    meant = difflib.get_close_matches(first, available(), n=1)
    if first and first not in available() and meant:
        output.say(f"hint: did you mean `raywatch {meant[0]}`?")
    else:
        path = caught.ctx.command_path if caught.ctx is not None else "raywatch"
        output.say(f"hint: {path} --help")
    return EXIT_CHANGE


if __name__ == "__main__":
    sys.exit(main())
