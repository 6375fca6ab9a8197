"""raywatch lag: how far behind each partition is, asked of the broker and of nobody else."""

import time
from typing import Annotated, Any

import typer

from raywatch.actors.ports import Partition
from raywatch.cluster.output import ConfigPath, JsonFlag, result, say, table
from raywatch.models.errors import EXIT_NO

READINGS = 5  # a word needs a window: one number cannot tell slow from stalled
STATES_OF_TROUBLE = ("stopped", "stalled", "rewound")

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def lag(
    config: ConfigPath,
    over: Annotated[
        float, typer.Option("--over", min=0.1, max=60.0, help="Seconds to watch.")
    ] = 2.0,
    json: JsonFlag = False,
) -> None:
    """Say how far behind each partition is. Exit code 1 if one is in trouble."""
    from raywatch.cluster.config import load
    from raywatch.cluster.connect import open_log

    settings = load(config)
    log = open_log(settings)
    try:
        rows = [
            row
            for each in settings.detectors
            for row in measure(log, settings.spec(each.name, unsettled=True), over, time.sleep)
        ]
    finally:
        log.close()
    head = ("detector", "partition", "committed", "end", "lag_records", "lag_s", "state")
    found = {"partitions": rows, "lag_records": sum(row["lag_records"] or 0 for row in rows)}
    result(found, json, lambda it: table(head, [[r[h] for h in head] for r in it["partitions"]]))
    trouble = [row for row in rows if row["state"] in STATES_OF_TROUBLE]
    for row in [] if json else trouble[:10]:
        say(f"{row['partition']}: {row['words']}")
    if trouble:
        raise typer.Exit(EXIT_NO)


def measure(log: Any, spec: Any, over_s: float, sleep: Any) -> list[dict[str, Any]]:
    """One row for each partition of a detector, from READINGS readings.

    Raises Unreachable, ConfigError for a topic that is not there.
    """
    from raywatch.cluster.connect import no_topic
    from raywatch.cluster.lag import LagSettings, LagWindow, lag_records, lag_s, resting, verdict

    # A partition that commits nothing while records wait is stalled after `over_s` already: who
    # asks once has no more time. `slow_s` is about the age of records and stays as it is.
    limits = LagSettings(stalled_s=over_s * 0.7)
    topics = log.topics()
    for each in spec.inputs:
        if each not in topics:
            raise no_topic(each, spec.name, topics)
    partitions = [Partition(each, n) for each in spec.inputs for n in range(topics[each])]
    windows = {each: LagWindow() for each in partitions}
    now = 0.0
    for reading in range(READINGS):
        if reading:
            sleep(over_s / (READINGS - 1))
        committed = log.committed(spec.group, partitions)
        bounds = log.bounds(partitions)
        now = time.monotonic()
        for each, window in windows.items():
            mine, theirs = committed.get(each), bounds.get(each)
            window.add(
                now,
                None if mine is None else mine.offset,
                None if theirs is None else theirs.end,
                None if theirs is None else theirs.low,
            )
    rows: list[dict[str, Any]] = []
    for each, window in windows.items():
        said = verdict(window, now, resting(spec.rest_s(each), limits))
        known = window.t is not None
        rows.append(
            {
                "detector": spec.name,
                "partition": str(each),
                "committed": window.committed if known else None,
                "end": window.end if known else None,
                "lag_records": lag_records(window, now, limits),
                "lag_s": lag_s(window, now, limits),
                "state": said.state,
                "words": said.words,
            }
        )
    return rows
