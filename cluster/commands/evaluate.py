"""raywatch evaluate: how good the scores of a labelled file are, by the measures of the field."""

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raywatch.cluster.output import ConfigPath, DetectorName, JsonFlag, progress, result, table
from raywatch.models.errors import ConfigError

if TYPE_CHECKING:
    from raywatch.actors.evaluate import Quality

WORST = 10  # keys that are shown to people

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def evaluate(
    config: ConfigPath,
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="Parquet; CSV or JSON lines, also compressed; with labels."
        ),
    ],
    label: Annotated[
        str, typer.Option(metavar="COLUMN", help="Where labels are; whole numbers, or none.")
    ] = "label",
    normal: Annotated[
        int, typer.Option(metavar="LABEL", help="What it says where nothing is wrong.")
    ] = 0,
    scores: Annotated[
        str, typer.Option(metavar="OUT.parquet", help="What backtest wrote, instead of scoring.")
    ] = "",
    buffer: Annotated[
        int, typer.Option(min=0, max=10_000, help="Of VUS-PR: records around an anomaly.")
    ] = 100,
    threshold: Annotated[
        float | None,
        typer.Option(help="Of NAB, on event_score. Without it: the best one for these labels."),
    ] = None,
    causes: Annotated[
        str, typer.Option(metavar="COLUMN", help="Which channels caused a window: `cpu,mem`.")
    ] = "",
    detector: DetectorName = "",
    json: JsonFlag = False,
) -> None:
    """Score a labelled file as the service would, and say how good it was. Needs no broker.

    NAB of event_score, VUS-PR of score, event recall of both, false alarms of p_value against what
    they promise, and what the alerts of the config found, and when. Every run of one label that is
    not --normal is a window, within a key. Records without a label are scored and not judged. With
    --causes also the hit rate of explanations; --scores must be of `backtest --evidence` then.
    """
    from raywatch.actors import backtest, evaluate
    from raywatch.cluster.config import load
    from raywatch.cluster.connect import open_registry
    from raywatch.models.registry import build

    settings = load(config)
    spec = settings.disguised(settings.spec(detector, unsettled=True))
    if spec.record.format == "text" and not scores:
        raise ConfigError(
            f"`{source}`: lines without fields have no labels",
            hint="`raywatch backtest` the lines; `--scores` takes what it wrote, and INPUT is a "
            "file with a label for each line",
        )
    with tempfile.TemporaryDirectory(prefix="raywatch-") as folder:
        output = Path(scores) if scores else Path(folder) / "scores.parquet"
        if not scores:
            scorer = build(open_registry(settings).resolve(spec.model), settings.pool.device)
            with progress("scoring") as count:
                backtest.backtest(
                    spec, scorer, Path(source), output, evidence=bool(causes), progress=count
                )
        with progress("measuring") as count:
            found = evaluate.evaluate(
                output, Path(source), label,
                normal=normal, buffer=buffer, threshold=threshold, causes=causes, progress=count,
            )  # fmt: skip
    result(_fields(found), json, _lines)


def _fields(found: "Quality") -> dict[str, Any]:
    """JSON has no NaN: null."""
    nab = {
        name: {"score": _known(each.score), "threshold": _known(each.threshold)}
        for name, each in found.nab.items()
    }
    keys = [{**dataclasses.asdict(each), "vus_pr": _known(each.vus_pr)} for each in found.keys]
    return {
        "records": found.records,
        "windows": found.windows,
        "nab": nab,
        "vus_pr": _known(found.vus_pr),
        "event_recall": {f"{rate:g}": _known(v) for rate, v in found.event_recall.items()},
        "event_score_recall": {
            f"{rate:g}": _known(v) for rate, v in found.event_score_recall.items()
        },
        "false_alarms": {
            f"{nominal:g}": {"measured": _known(v), "ratio": _known(v / nominal)}
            for nominal, v in found.false_alarms.items()
        },
        "alerts": {
            "found": found.found,
            "false": found.false,
            "delay_records": _known(found.delay),
            "first_quarter": _known(found.first_quarter),
        },
        "hit_rate": {f"{100 * share:g}": _known(v) for share, v in found.hit_rate.items()},
        "keys": keys,
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lines(found: Any) -> list[str]:
    alerts, nab = found["alerts"], found["nab"]
    lines = [f"{found['records']:,} records, {len(found['keys']):,} keys, "
             f"{found['windows']:,} windows"]  # fmt: skip
    measures: list[tuple[str, object]] = [
        *((f"NAB {name}", each["score"]) for name, each in nab.items()),
        ("NAB threshold (standard)", nab["standard"]["threshold"]),
        ("VUS-PR", found["vus_pr"]),
        *(
            (f"event recall of {name} at {rate} false alarms", v)
            for name, of in (("score", "event_recall"), ("event_score", "event_score_recall"))
            for rate, v in found[of].items()
        ),
        *(
            (f"false alarms at {nominal}, measured over nominal", each["ratio"])
            for nominal, each in found["false_alarms"].items()
        ),
        ("windows alerted", alerts["found"]),
        ("false alerts", alerts["false"]),
        ("median delay of those found, records", alerts["delay_records"]),
        ("of those found, in their first quarter", alerts["first_quarter"]),
        *((f"hit rate at {share} % of the causes", v) for share, v in found["hit_rate"].items()),
    ]
    lines += ["", *table(("measure", "value"), measures)]
    worst = sorted(
        (each for each in found["keys"] if each["windows"]), key=lambda each: each["vus_pr"]
    )[:WORST]
    if worst:
        head = ("key", "records", "windows", "found", "false", "vus_pr")
        lines += [
            "",
            "worst keys:",
            *table(head, [[each[name] for name in head] for each in worst]),
        ]
    return lines
