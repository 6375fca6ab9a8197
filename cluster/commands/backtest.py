"""raywatch backtest: a file through the very stages of the service, and what it would have said."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from raywatch.cluster.output import ConfigPath, DetectorName, JsonFlag, of_labels, progress, result

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def backtest(
    config: ConfigPath,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="Parquet, CSV, JSON lines, or log lines.")
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
    from raywatch.actors.files import LINE_MS
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
        "line_ms": LINE_MS if spec.record.format == "text" else None,  # what no file of lines says
        "seconds": round(seconds, 3),
        "records_per_s": round(summary.records / max(seconds, 1e-9)),
    }
    result(found, json, _lines)


def _lines(found: Any) -> list[str]:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in found["reasons"].items())
    return [
        f"{found['records']:,} records of {found['keys']:,} keys, scored by {found['model']}",
        f"{found['alerts']:,} alerts"
        + (f", written to {found['alerts_output']}" if found["alerts_output"] else "")
        + (f"; held back by per_day: {found['held']:,}" if found["held"] else ""),
        f"{found['rejects']:,} rejects" + (f": {reasons}" if reasons else ""),
        *of_labels(found["labels"]),
        *(["times: a line a second, since no time is read from lines"] if found["line_ms"] else []),
        f"scores are in {found['output']}",
    ]
