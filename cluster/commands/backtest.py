"""raywatch backtest: a file through the very stages of the service, and what it would have said."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from raywatch.cluster.output import (
    ConfigPath,
    DetectorName,
    JsonFlag,
    mark,
    of_labels,
    printable,
    progress,
    result,
    say,
)

SECONDS = 631_152_000, 4_102_444_800  # 1990 and 2100 in s since 1970

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def backtest(
    config: ConfigPath,
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="Parquet; CSV, JSON lines or log lines, also compressed."
        ),
    ],
    output: Annotated[str, typer.Option(metavar="OUT.parquet", help="One row for each record.")],
    alerts: Annotated[str, typer.Option(metavar="OUT.jsonl", help="Every alert, as JSON.")] = "",
    labels: Annotated[
        str,
        typer.Option(
            metavar="LABELS", help="File with labels of payments, if they are not in INPUT."
        ),
    ] = "",
    detector: DetectorName = "",
    partitions: Annotated[
        int, typer.Option(min=1, max=10_000, help="Partitions that the keys are spread over.")
    ] = 1,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Also say of each record what its channels show.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Score a file as the service would, and list the alerts. Needs no broker."""
    from raywatch.actors.backtest import backtest as run
    from raywatch.actors.line_times import LINE_MS
    from raywatch.cluster.config import load
    from raywatch.cluster.connect import open_registry
    from raywatch.models.registry import build

    settings = load(config)
    spec = settings.disguised(settings.spec(detector, unsettled=True))
    scorer = build(open_registry(settings).resolve(spec.model), settings.pool.device)
    begin = time.perf_counter()
    with progress("scoring") as count:
        summary = run(
            spec,
            scorer,
            Path(source),
            Path(output),
            alerts=Path(alerts) if alerts else None,
            labels=Path(labels) if labels else None,
            partitions=partitions,
            evidence=evidence,
            progress=count,
        )
    seconds = time.perf_counter() - begin
    found: dict[str, Any] = {
        **dataclasses.asdict(summary),
        "reasons": dict(summary.reasons),  # `asdict` counts the pairs of a Counter
        "output": output,
        "alerts_output": alerts or None,
        "line_ms": LINE_MS if summary.times and not summary.times.form else None,
        "seconds": round(seconds, 3),
        "records_per_s": round(summary.records / max(seconds, 1e-9)),
    }
    if found["line_ms"]:
        say(mark("warn", _uncertain(found["times"]), sys.stderr))
    if _seconds(summary.first_ms, summary.last_ms):
        words = "all times lie in January or February 1970, as seconds do that are read as ms"
        say(mark("warn", f"{words}: `record.time` is ms or ISO 8601", sys.stderr))
    if summary.absent:
        names = ", ".join(f"`{name}`" for name in summary.absent)
        say(mark("warn", f"no record has {names}: are they spelt as in the file?", sys.stderr))
    result(found, json, _lines)


def _lines(found: Any) -> list[str]:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in found["reasons"].items())
    written = found["alerts_output"]
    return [
        f"{found['records']:,} records of {found['keys']:,} keys, scored by {found['model']}",
        f"{found['alerts']:,} alerts"
        + (f", with their updates and ends in {written}" if written else "")
        + (f"; held back by per_day: {found['held']:,}" if found["held"] else ""),
        f"{found['rejects']:,} rejects" + (f": {reasons}" if reasons else ""),
        *(
            f"  {reason}: first in row {row:,}" + (f", {printable(detail)}" if detail else "")
            for reason, (row, detail) in found["examples"].items()
        ),
        *of_labels(found["labels"]),
        *_times(found["times"]),
        *_span(found["first_ms"], found["last_ms"]),
        f"scores are in {found['output']}",
    ]


def _uncertain(held: Any) -> str:
    return (
        f"a line counts as a second, so rates and pauses are of lines: {held['share']:.0%} of the "
        f"first {held['lines']:,} lines begin with a time that is known, and nine in ten should"
    )


def _times(held: Any) -> list[str]:
    if held is None:
        return []
    if not held["form"]:
        return ["times: a line a second"]
    share = f"in {held['share']:.1%} of the first {held['lines']:,}"
    return [f"times: those that lines begin with ({held['form']}), {share}"]


def _seconds(first_ms: int | None, last_ms: int | None) -> bool:
    """Whether times are seconds, by the look of them."""
    if first_ms is None or last_ms is None:
        return False
    return SECONDS[0] <= first_ms and last_ms < SECONDS[1]


def _span(first_ms: int | None, last_ms: int | None) -> list[str]:
    from raywatch.actors.phrases import when

    if first_ms is None or last_ms is None:
        return []
    return [f"times: {when(first_ms)} to {when(last_ms)}"]
