"""Goal: classes that lanes score themselves lose and repeat nothing on the real thing either.

Method: records of each class in real Kafka, read by the whole service on real Ray while owners and
a scorer are killed with -9; then the same records as a file through `backtest`. Alerts are read
read_committed and compared by everything they say.
"""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from service import Service, config, ray_local
from test_logs import lines
from test_network import connections
from test_payments import rows as payments
from test_same_alerts import assert_same, placeless, said
from test_traces import calls

from raywatch.actors.backtest import backtest
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.ports import Out
from raywatch.models.registry import build, shipped

PARTITIONS = 2


class Class(NamedTuple):
    """A signal class, and a stream of it."""

    preset: str
    record: dict[str, Any]
    rows: Callable[[], list[dict[str, Any]]]
    alert: dict[str, Any]


NETWORK = Class(
    "network",
    {"key": "src", "time": "ts", "values": ["sent", "received"],
     "words": ["service", "flag", "port"]},
    lambda: connections(count=12_000),
    {"probability": 1e-2},
)  # fmt: skip
PAYMENTS = Class(
    "payments",
    {"key": "terminal", "time": "ts", "values": "amount", "words": "customer", "id": "payment",
     "label": "fraud", "label_days": 1.0},
    lambda: payments(count=12_000),
    {"probability": 5e-2, "quiet": 5},
)  # fmt: skip

LOGS = Class(
    "logs",
    {"key": "service", "time": "ts", "message": "msg", "session": "request"},
    lines,
    {"probability": 1e-3},
)
TRACES = Class(
    "traces",
    {"key": "service", "time": "ts", "values": "ms", "words": ["caller", "operation"],
     "error": "status"},
    calls,
    {"probability": 1e-2, "quiet": 5},
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for this file."""
    with ray_local():
        yield


@pytest.mark.kafka
@pytest.mark.ray
@pytest.mark.parametrize("each", [NETWORK, PAYMENTS, LOGS, TRACES], ids=lambda each: each.preset)
def test_kills_change_no_alert(
    each: Class, kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name, events = topic(each.preset).lower(), topic("events")
    rows = each.rows()
    keys = [row[each.record["key"]].encode() for row in rows]
    texts = [json.dumps(row).encode() for row in rows]
    log = KafkaLog(kafka.bootstrap)
    log.create(events, PARTITIONS)
    service = Service(
        config(
            kafka.bootstrap,
            events,
            tmp_path,
            name=name,
            model=f"preset:{each.preset}",
            record=each.record,
            alert=each.alert,
            lanes=2,
            snapshot_s=1,
            batch_records=500,
        )
    )
    outs = [Out(events, key, text) for key, text in zip(keys, texts, strict=True)]
    victims = ["owner", "scorer", "owner"]
    step = len(outs) // (len(victims) + 1) + 1
    try:
        service.start()
        for at in range(0, len(outs), step):
            log.write(outs[at : at + step])
            time.sleep(0.3)
            if victims:
                pids = service.pids(victims.pop())
                service.signal(pids[min(pids)], signal.SIGKILL)
        service.drained()
        got = said(log, service.spec.alerts)
    finally:
        service.stop()
        log.close()
    path, out = tmp_path / "records.jsonl", tmp_path / "alerts.jsonl"
    path.write_bytes(b"\n".join(texts) + b"\n")
    scorer = build(shipped(each.preset))
    backtest(service.spec, scorer, path, tmp_path / "o.parquet", alerts=out, partitions=PARTITIONS)
    filed = placeless(Counter(line.decode() for line in out.read_bytes().splitlines()))
    assert sum(filed.values()) > 10
    assert_same(placeless(got), filed)
