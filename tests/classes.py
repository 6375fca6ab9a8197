"""What tests of signal classes share: lanes on the embedded log, and files through `backtest`."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lanes import Killed, Mortal, live, spec, world

from raywatch.actors.backtest import Summary, backtest
from raywatch.actors.ports import Out
from raywatch.actors.spec import DetectorSpec
from raywatch.models.registry import build, shipped


class Lanes:
    """Lanes of one class. `settings`: of its detector, where a test says nothing else."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.name, self._settings = name, settings
        self.scorer = build(shipped(name))

    def detector(self, **changes: Any) -> DetectorSpec:
        """Reads topic `in`."""
        settings = {"model": f"preset:{self.name}", **self._settings, **changes}
        return spec("d", "in", **settings)

    def said_by(self, *parts: list[Out], partitions: int = 1, **changes: Any) -> Counter[str]:
        """Alerts of a lane that is handed over after each part."""
        there = world(partitions)
        for part in parts:
            there.log.write(part)
            live(there, self.detector(**changes), model=self.name)
        return there.said()

    def survived(self, outs: list[Out], dies_at: int) -> Counter[str]:
        """Alerts of a lane that died at so many calls of its log, and of the one after it."""
        there = world(1)
        there.log.write(outs)
        detector = self.detector(batch_records=200, snapshot_s=0.05)
        with pytest.raises(Killed):
            live(there, detector, log=Mortal(there.log, dies_at, done=True), model=self.name)
        live(there, detector, model=self.name, epoch="e2")
        return there.said()

    def filed(
        self,
        folder: Path,
        lines: Sequence[bytes],
        *,
        partitions: int = 1,
        evidence: bool = False,
        **changes: Any,
    ) -> tuple[Any, list[dict[str, Any]], Summary]:
        """What backtest says of lines: the table, alerts and the summary."""
        source, out, said = (folder / name for name in ("in.jsonl", "out.parquet", "alerts.jsonl"))
        source.write_bytes(b"\n".join(lines) + b"\n")
        summary = backtest(
            self.detector(**changes), self.scorer, source, out, alerts=said, evidence=evidence,
            partitions=partitions,
        )  # fmt: skip
        alerts = [json.loads(line) for line in said.read_text().splitlines()]
        return pq.read_table(out), alerts, summary


def without_lineage(said: Counter[str] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Alerts without what a file cannot know, in one order."""
    alerts = [json.loads(each) for each in said.elements()] if isinstance(said, Counter) else said
    cut = [{**alert, "lineage": None, "run_kind": ""} for alert in alerts]
    return sorted(cut, key=lambda alert: (alert["at_ms"], alert["id"], alert["state"]))


def written(rows: Sequence[Mapping[str, Any]], folder: Path, kind: str) -> Path:
    """Rows as a file: jsonl, csv or parquet."""
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif kind == "csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
