"""The public NAB series through the whole service, on real Kafka and real Ray.

    python bench/nab.py FOLDER [--model lagbank] [--warmup 500] [--probability 1e-5] [--json OUT]

FOLDER holds `nab.parquet` (series, ts, value, window: -1 or the number of the labelled window).
The series are written to a topic of 12 partitions, the n-th record of each in turn, and watched by
4 lanes on 2 owners with 2 scorers. Said: the lag that Kafka's own `kafka-consumer-groups` sees,
whether the alerts are those of `raywatch backtest` on the same records, and which windows were
paged. A window counts as found when an incident of its key opened inside it; an incident outside
every window is false; the first 15 % of a series do not count (NAB's probation).
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from confluent_kafka import Consumer, TopicPartition

from bench import DRAIN_S, PARTITIONS, Run, broker, config, producer
from raywatch.actors import runtime as actors
from raywatch.actors.backtest import backtest
from raywatch.actors.spec import DetectorSpec
from raywatch.cluster import runtime
from raywatch.cluster.config import Config
from raywatch.models.measures import PROBATION, PROBATION_MAX
from raywatch.models.registry import build, shipped

TOPIC = "nab"


class Series:
    """One labelled series: `ts` (n,) ms, `value` (n,), `window` (n,) -1 or the window's number."""

    def __init__(self, name: str, ts: Any, value: Any, window: Any) -> None:
        self.name, self.ts, self.value, self.window = name, ts, value, window

    def counted_from(self) -> int:
        """Time of the first record behind the probation, ms."""
        return int(self.ts[min(int(PROBATION * len(self.ts)), PROBATION_MAX)])

    def spans(self) -> list[tuple[int, int]]:
        """First and last time of each labelled window, ms."""
        numbers = [n for n in np.unique(self.window).tolist() if n >= 0]
        return [
            (int(self.ts[self.window == n].min()), int(self.ts[self.window == n].max()))
            for n in numbers
        ]


def load(folder: Path) -> list[Series]:
    """The labelled series of the folder, by name."""
    path = folder / "nab.parquet"
    if not path.is_file():
        sys.exit(f"error: no `{path}`\nhint: name the folder that holds nab.parquet")
    table = pq.read_table(path)
    names = np.array(table["series"].to_pylist())
    ts, value = table["ts"].to_numpy(), table["value"].to_numpy()
    window = table["window"].to_numpy()
    return [
        Series(name, ts[names == name], value[names == name], window[names == name])
        for name in sorted(set(names.tolist()))
    ]


def records(series: list[Series]) -> list[tuple[str, bytes]]:
    """Key and JSON of each record, the n-th of every series in turn."""
    found: list[tuple[int, str, bytes]] = []
    for each in series:
        columns = zip(each.ts.tolist(), each.value.tolist(), strict=True)
        for row, (ts, value) in enumerate(columns):
            body = json.dumps({"key": each.name, "ts": ts, "value": value}).encode()
            found.append((row, each.name, body))
    return [(name, body) for _, name, body in sorted(found)]


def settings(bootstrap: str, folder: Path, arguments: argparse.Namespace) -> Config:
    """The benchmark's configuration with this alert policy.

    The series are of different years, so the silence of one says nothing: `missing` is off.
    """
    alert = {"warmup": arguments.warmup, "probability": arguments.probability}
    silence = {"enabled": False}
    return config(bootstrap, TOPIC, TOPIC, arguments.model, folder, alert=alert, missing=silence)


def verdict(series: list[Series], alerts: list[dict[str, Any]]) -> dict[str, Any]:
    """Windows found, missed, and incidents outside every window."""
    opened: dict[str, list[int]] = {}
    for alert in alerts:
        if alert["state"] == "open":
            opened.setdefault(alert["key"], []).append(alert["at_ms"])
    found = windows = false = 0
    delays: list[float] = []
    for each in series:
        begin = each.counted_from()
        times = [t for t in opened.get(each.name, []) if t >= begin]
        spans = each.spans()
        hits = [[t for t in times if first <= t <= last] for first, last in spans]
        windows += len(spans)
        found += sum(bool(inside) for inside in hits)
        false += len(times) - sum(map(len, hits))
        delays += [(min(h) - a) / max(1, b - a) for h, (a, b) in zip(hits, spans, strict=True) if h]
    middle = float(np.median(delays)) if delays else None
    return {"windows": windows, "found": found, "false": false, "delay_share_p50": middle}


def heard(bootstrap: str, topic: str) -> list[dict[str, Any]]:
    """Everything in the alerts topic, read_committed."""
    reader = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "nab-ear", "isolation.level": "read_committed"}
    )
    try:
        numbers = reader.list_topics(topic, timeout=10).topics[topic].partitions
        reader.assign([TopicPartition(topic, number, 0) for number in numbers])
        said: list[dict[str, Any]] = []
        quiet_from = time.monotonic()
        while time.monotonic() - quiet_from < 3.0:
            for message in reader.consume(500, 0.5):
                if message.error() is None:
                    said.append(json.loads(message.value()))
                    quiet_from = time.monotonic()
        return said
    finally:
        reader.close()


def filed(spec: DetectorSpec, model: str, rows: list[tuple[str, bytes]], folder: Path) -> list[Any]:
    """What `backtest` says about the same records."""
    path, out = folder / "records.jsonl", folder / "alerts.jsonl"
    path.write_bytes(b"\n".join(body for _, body in rows) + b"\n")
    scorer = build(shipped(model))
    backtest(spec, scorer, path, folder / "o.parquet", alerts=out, partitions=PARTITIONS)
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def same(alert: dict[str, Any]) -> tuple[Any, ...]:
    """All that two runs must agree on: everything but where the record lay."""
    skip = ("lineage", "run_kind")
    return tuple((k, repr(v)) for k, v in sorted(alert.items()) if k not in skip)


def measure(kafka: Any, series: list[Series], folder: Path, arguments: argparse.Namespace) -> Any:
    """Produce, watch until lag 0, and compare."""
    run = Run(settings(kafka.bootstrap, folder, arguments))
    rows = records(series)
    run.start()
    try:
        run.ready()
        began = time.monotonic()
        writer = producer(kafka.bootstrap)
        for name, body in rows:
            while True:
                try:
                    writer.produce(TOPIC, value=body, key=name)
                    break
                except BufferError:
                    writer.poll(0.1)
        left = writer.flush(60)
        if left:
            sys.exit(f"error: {left} records were not taken by the broker within 60 s")
        while run.lag() and time.monotonic() - began < DRAIN_S:
            time.sleep(0.1)
        seconds = time.monotonic() - began
        shown = kafka.tool("groups", "--describe", "--group", run.detection.spec.group)
    finally:
        run.stop()
    lags = [int(n) for n in re.findall(rf"{TOPIC}\s+\d+\s+\d+\s+\d+\s+(\d+)", shown)]
    said = heard(kafka.bootstrap, run.detection.spec.alerts)
    expected = filed(run.detection.spec, arguments.model, rows, folder)
    return {
        "series": len(series),
        "records": len(rows),
        "seconds": round(seconds, 1),
        "lag_by_kafka": lags,
        "alerts": len(said),
        "equal_to_backtest": sorted(map(same, said)) == sorted(map(same, expected)),
        **verdict(series, said),
    }


def main() -> None:
    """Measure and print; exit code 1 where lag is left or the alerts differ from backtest's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with nab.parquet")
    parser.add_argument("--model", default="lagbank")
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--probability", type=float, default=1e-5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    series = load(arguments.folder)
    with broker() as kafka, tempfile.TemporaryDirectory() as folder:
        log = actors.open_log(actors.LogSpec(bootstrap=kafka.bootstrap))
        log.create(TOPIC, PARTITIONS)
        log.close()
        runtime.start_local(64)
        try:
            found = measure(kafka, series, Path(folder), arguments)
        finally:
            runtime.leave()
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    if not found["equal_to_backtest"] or found["lag_by_kafka"] != [0] * PARTITIONS:
        sys.exit(1)


if __name__ == "__main__":
    main()
