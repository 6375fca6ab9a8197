"""Goal: the main job, for real: Kafka in, alerts out, offsets where Kafka's own tools see them.

Method: labelled synthetic telemetry in real Kafka (12 partitions), the whole service on real Ray
(4 lanes, 2 owners, 2 scorers), alerts read back read_committed, and the same records as a file
through `backtest`.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lanes import alerts
from service import Service, config, ray_local

from raywatch.actors.backtest import backtest
from raywatch.actors.ports import Out
from raywatch.models.registry import build, shipped
from raywatch.models.synthetic import Stream, generate, judge, to_json

KEYS, ROWS = 120, 2_000


@pytest.mark.kafka
@pytest.mark.ray
def test_injected_anomalies_become_alerts_and_the_group_reaches_lag_zero(
    kafka: object, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name, events = topic("hosts").lower(), topic("events")
    stream = Stream(keys=KEYS, seed=3, injections=("spike", "level", "variance"))
    table = generate(stream, ROWS, injections_per_kind=8)
    values = to_json(table)
    keys = [n.encode() for n in table.names]
    with ray_local():
        settings = config(kafka.bootstrap, events, tmp_path, name=name, model="lagbank")
        from raywatch.actors.kafka import KafkaLog

        log = KafkaLog(kafka.bootstrap)
        log.create(events, 12)
        log.write([Out(events, keys[k], v) for k, v in zip(table.key, values, strict=True)])
        service = Service(settings)
        try:
            service.start()
            service.drained()
            said = alerts(log, service.spec.alerts)
            shown = kafka.tool("groups", "--describe", "--group", service.spec.group)
        finally:
            service.stop()
            log.close()

    # Kafka's own tool: 12 partitions, LAG column 0 in each.
    lags = [int(n) for n in re.findall(rf"{re.escape(events)}\s+\d+\s+\d+\s+\d+\s+(\d+)", shown)]
    assert lags == [0] * 12, shown

    opened = [(a["key"], a["since_ms"], a["at_ms"], a["state"]) for a in said]
    verdict = judge(table.injected, opened, slack_ms=60_000)
    assert verdict.found >= len(table.injected) * 2 // 3, verdict

    # The same records as a file say the same.
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\n".join(values) + b"\n")
    out = tmp_path / "alerts.jsonl"
    scorer = build(shipped("lagbank"))
    backtest(service.spec, scorer, path, tmp_path / "o.parquet", alerts=out, partitions=12)
    filed = [json.loads(line) for line in out.read_bytes().splitlines()]

    def same(alert: dict[str, object]) -> tuple[object, ...]:
        skip = ("lineage", "run_kind")
        return tuple((k, repr(v)) for k, v in sorted(alert.items()) if k not in skip)

    assert sorted(map(same, filed)) == sorted(map(same, said))
