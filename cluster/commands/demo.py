"""raywatch demo: a small world, a service that watches it, and two murders on the way."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from raywatch.cluster.output import line, put, say
from raywatch.models.errors import EXIT_NO, EXIT_OK, ConfigError

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def demo(
    seconds: Annotated[
        float, typer.Option(min=5.0, max=3_600.0, help="How long records come live.")
    ] = 40.0,
    rate: Annotated[
        float, typer.Option(min=100.0, max=100_000.0, help="Live records per second.")
    ] = 5_000.0,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Another seed is another world.")] = 0,
    broker: Annotated[
        Literal["embedded", "kafka"],
        typer.Option(help="The log: in memory, or real Apache Kafka."),
    ] = "embedded",
    bootstrap: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", help="Kafka that runs; without it the demo starts one (Java)."
        ),
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="One JSON document a line.")] = False,
) -> None:
    """Watch a small world with floods and faults, and account for every alert.

    Hundreds of keys on four streams, anomalies at known places, alerts as they come, a live page.
    A scorer and an owner are killed on the way. At the end: what was injected, found, missed and
    false, and whether the alerts are those that the same records give undisturbed. Exit code 0 if
    nothing was lost or repeated and something was found, else 1.
    """
    if bootstrap and broker != "kafka":
        raise ConfigError("`--bootstrap` names a Kafka", hint="add `--broker kafka`")
    from raywatch.cluster.demo import closing, plan
    from raywatch.cluster.demo_run import run

    chosen = plan(seconds, rate, seed)
    found = run(
        chosen, broker=broker, bootstrap=bootstrap, say=_talk, emit=_document if json else _words
    )
    if json:
        line({"event": "summary", **found})
    else:
        put("\n".join(closing(found)))
    if bootstrap:
        _talk(f"topics that begin with `{found['prefix']}` are left on the brokers")
    raise typer.Exit(EXIT_OK if found["ok"] else EXIT_NO)


def _talk(words: str) -> None:
    """A sentence, and how long after the start it was said."""
    from raywatch.cluster.processes import age_s

    say(f"{age_s():5.1f} s  {words}")


def _document(event: str, fields: Mapping[str, Any]) -> None:
    line({"event": event, **fields})


def _words(event: str, fields: Mapping[str, Any]) -> None:
    """What happened, for people: alerts are the answer, the rest is talk."""
    from raywatch.cluster.demo import alert_line

    match event:
        case "alert":
            put(alert_line(fields["alert"]))
        case "page":
            _talk(f"all lanes work; the live page is at {fields['url']}")
        case "live":
            _talk(
                f"the past of the keys is known ({fields['history']:,} records); now they go on "
                f"with {fields['rate']:,.0f} records a second"
            )
        case "killed":
            _talk(f"killed {fields['kind']} {fields['name']}, pid {fields['pid']}, with SIGKILL")
        case "back":
            _talk(
                f"the work of {fields['kind']} {fields['name']} goes on, {fields['after_s']:.1f} s"
            )
        case _:
            raise AssertionError(event)
