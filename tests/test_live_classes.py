"""Goal: classes that lanes score themselves lose and repeat nothing on the real thing either.

Method: records of each class in real Kafka, read by the whole service on real Ray while owners and
a scorer are killed with -9; then the same records as a file through `backtest`. Alerts are read
read_committed and compared by everything they say. Labels of a topic of their own: both topics are
read back, and put into one file by the rule of actors/merging.py, written down here once more.
"""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from service import Service, config, ray_local, until
from test_logs import lines
from test_network import connections
from test_payments import rows as payments
from test_same_alerts import assert_same, placeless, said
from test_traces import calls

from raywatch.actors.backtest import backtest
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.ports import Out, Partition
from raywatch.actors.spec import DetectorSpec
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


def as_backtest_says(
    got: Counter[str], texts: list[bytes], spec: DetectorSpec, preset: str, folder: Path
) -> None:
    """Fails unless the alerts are those of a file of these records."""
    path, out = folder / "records.jsonl", folder / "alerts.jsonl"
    path.write_bytes(b"\n".join(texts) + b"\n")
    scorer = build(shipped(preset))
    backtest(spec, scorer, path, folder / "o.parquet", alerts=out, partitions=PARTITIONS)
    filed = placeless(Counter(line.decode() for line in out.read_bytes().splitlines()))
    assert sum(filed.values()) > 10
    assert_same(placeless(got), filed)


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
    as_backtest_says(got, texts, service.spec, each.preset, tmp_path)


DELAY_S = 5.0
APPENDED = {"message.timestamp.type": "LogAppendTime"}


def placed(log: KafkaLog, paid: str, told: str) -> tuple[list[bytes], int]:
    """Records of both topics, partition by partition, in their order; and how many are labels."""
    places = [Partition(topic, n) for topic in (paid, told) for n in range(PARTITIONS)]
    source = log.source("", places)
    source.assign(dict.fromkeys(places, 0))
    logs: dict[Partition, list[tuple[int, bytes]]] = {place: [] for place in places}
    ends = {p: b.end for p, b in log.bounds(places).items()}
    deadline = time.monotonic() + 30.0
    while sum(map(len, logs.values())) < sum(ends.values()):
        assert time.monotonic() < deadline, (source.position(), ends)
        found = source.fetch(5_000, 0.1)
        for index, ms, value in zip(found.partition, found.time_ms, found.values, strict=True):
            logs[places[index]].append((int(ms), value or b""))
    source.close()
    rows: list[bytes] = []
    for number in range(PARTITIONS):
        left = logs[Partition(told, number)]
        for ms, value in logs[Partition(paid, number)]:
            while left and left[0][0] + 1_000 * DELAY_S <= ms:
                rows.append(left.pop(0)[1])
            rows.append(value)
        rows += [value for _, value in left]
    return rows, sum(ends[p] for p in places if p.topic == told)


def _joined(service: Service) -> int:
    """Labels that found their payment, as status shows them."""
    (detector,) = service.call("snapshot")["detectors"]
    return detector["labels"]["labels"]


@pytest.mark.kafka
@pytest.mark.ray
def test_kills_change_no_alert_where_labels_have_a_topic_of_their_own(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name, paid, told = topic("chargebacks").lower(), topic("payments"), topic("labels")
    log = KafkaLog(kafka.bootstrap)
    for each in (paid, told):
        log.create(each, PARTITIONS, APPENDED)
    service = Service(
        config(
            kafka.bootstrap, paid, tmp_path, name=name, model="preset:payments",
            record=PAYMENTS.record, alert=PAYMENTS.alert, lanes=2, snapshot_s=1,
            batch_records=500, labels={"topic": told, "delay_s": DELAY_S},
        )
    )  # fmt: skip
    rows = PAYMENTS.rows()
    outs = [
        Out(told if "fraud" in row else paid, row["terminal"].encode(), json.dumps(row).encode())
        for row in rows
    ]
    step = len(outs) // 10 + 1
    try:
        service.start()
        for turn, at in enumerate(range(0, len(outs), step)):
            log.write(outs[at : at + step])
            time.sleep(0.8)
            if turn in (3, 6):
                pids = service.pids("owner")
                service.signal(pids[min(pids)], signal.SIGKILL)
        seen = service.call("snapshot")["partitions"]
        service.drained()
        until(lambda: _joined(service) > 0, 20.0)  # owners report each second
        got = said(log, service.spec.alerts)
        lanes = [lane for report in service.reports("owner") for lane in report.lanes]
        texts, labels = placed(log, paid, told)
    finally:
        service.stop()
        log.close()
    # Labels that rest wait, and are not late.
    rest = {n: (seen["lag_records"][at], seen["lag_s"][at]) for at, n in enumerate(seen["name"])}
    assert sum(rest[f"{told}/{number}"][0] for number in range(PARTITIONS)) > 0, seen
    assert [rest[f"{told}/{number}"][1] for number in range(PARTITIONS)] == [0.0, 0.0], seen
    assert len(texts) == len(outs)
    assert [out.value for out in outs] != texts  # labels lie elsewhere than they were written
    assert labels > 100
    assert not any("late" in lane.labels for lane in lanes), lanes
    as_backtest_says(got, texts, service.spec, PAYMENTS.preset, tmp_path)
