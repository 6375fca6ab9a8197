"""Goal: every lane has an owner that brokers let write, whatever took the last one's right away.

Method: the whole service on real Ray and the embedded log; a lane is taken by a stranger as brokers
take it from a machine that was suspended, and an owner's process is killed. Alerts as in a file.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from lanes import alerts
from service import Service, config, ray_local, until

from raywatch.actors import runtime as actors
from raywatch.actors.backtest import backtest
from raywatch.actors.ports import Out
from raywatch.actors.runtime import LogSpec
from raywatch.cluster import runtime
from raywatch.models.registry import build, shipped
from raywatch.models.synthetic import Stream, generate, to_json


@pytest.mark.ray
def test_an_owner_that_brokers_fenced_is_replaced_and_a_dead_one_is_spoken_of(
    topic: Callable[[str], str], tmp_path: Path
) -> None:
    table = generate(Stream(keys=40, seed=4, quiet=300, injections=("spike", "level")), 1_200)
    values = to_json(table)
    events, name, at = topic("events"), topic("keeper"), topic("broker")
    out = [Out(events, table.names[k].encode(), v) for k, v in zip(table.key, values, strict=True)]
    third = len(out) // 3
    with ray_local():
        broker = actors.start_broker(at)
        log = actors.open_log(LogSpec(embedded=at))
        log.create(events, 8)
        service = Service(config("embedded", events, tmp_path, name=name), LogSpec(embedded=at))
        try:
            service.start()
            log.write(out[:third])
            service.drained()

            stranger = log.sink(service.spec.lane_id(0), service.spec.group)
            stranger.open()  # and then it leaves: nobody holds the lane
            log.write(out[third : 2 * third])
            until(lambda: f"{name}.owner-0.g2" in service.pids("owner"), 60.0)
            service.drained()
            fenced = service.journal()

            other = service.pids("owner")[f"{name}.owner-1.g1"]
            service.signal(other)
            log.write(out[2 * third :])
            service.drained()
            died = f"owner {name}.owner-1.g1 died and was started again"
            until(lambda: died in service.journal())
            until(lambda: len(service.pids("owner")) == 2)
            holders = service.pids("owner")
            said = alerts(log, service.spec.alerts)
        finally:
            service.stop()
            log.close()
            runtime.end(broker)
    words = f"owner {name}.owner-0.g1 is gone (brokers no longer let it write for lanes 0)"
    assert any(sentence.startswith(words) for sentence in fenced), fenced
    # The one that was fenced is ended, the one that died has its old name.
    assert set(holders) == {f"{name}.owner-0.g2", f"{name}.owner-1.g1"}
    assert holders[f"{name}.owner-1.g1"] != other

    filed = _filed(service, values, tmp_path)
    assert filed.total() > 5
    assert Counter(map(_same, said)) == filed


@pytest.mark.ray
def test_who_stands_by_takes_the_lanes_of_an_owner_that_died_and_of_no_other(
    topic: Callable[[str], str], tmp_path: Path
) -> None:
    table = generate(Stream(keys=40, seed=4, quiet=300, injections=("spike", "level")), 1_200)
    values = to_json(table)
    events, name, at = topic("events"), topic("standby"), topic("broker")
    out = [Out(events, table.names[k].encode(), v) for k, v in zip(table.key, values, strict=True)]
    third = len(out) // 3
    with ray_local():
        broker = actors.start_broker(at)
        log = actors.open_log(LogSpec(embedded=at))
        log.create(events, 8)
        settings = config(
            "embedded", events, tmp_path, name=name, owners={"count": 2, "standby": True}
        )
        service = Service(settings, LogSpec(embedded=at))
        try:
            service.start()
            log.write(out[:third])
            service.drained()
            until(lambda: len(_parked(service)) == 2, 60.0)
            opened = service.opened()

            # A supervisor that comes again knows who holds lanes and who stands by.
            service.signal(service.call("pid"))
            until(lambda: len(service.posts()) >= 6 and len(_parked(service)) == 2, 60.0)
            log.write(out[third : 2 * third])
            service.drained()
            assert service.opened() == opened

            service.signal(service.pids("owner")[f"{name}.owner-0.g1"])
            log.write(out[2 * third :])
            service.drained()
            until(lambda: len(_parked(service)) == 2, 60.0)  # and the next one stands by
            holders = {r.name for r in service.reports("owner") if not r.parked}
            said = alerts(log, service.spec.alerts)
            journal = service.journal()
        finally:
            service.stop()
            log.close()
            runtime.end(broker)
    assert holders == {f"{name}.owner-0.g2", f"{name}.owner-1.g1"}
    words = f"its lanes go to {name}.owner-0.g2, which stood by"
    assert any(sentence.endswith(words) for sentence in journal), journal
    filed = _filed(service, values, tmp_path)
    assert filed.total() > 5
    assert Counter(map(_same, said)) == filed


def _parked(service: Service) -> list[str]:
    return [r.name for r in service.reports("owner") if r is not None and r.parked]


def _filed(service: Service, values: list[bytes], tmp_path: Path) -> Counter[str]:
    """What `backtest` says of the same records."""
    path, file = tmp_path / "records.jsonl", tmp_path / "alerts.jsonl"
    path.write_bytes(b"\n".join(values) + b"\n")
    scorer = build(shipped("robustz"))
    backtest(service.spec, scorer, path, tmp_path / "o.parquet", alerts=file, partitions=8)
    return Counter(_same(json.loads(line)) for line in file.read_bytes().splitlines())


def _same(alert: dict[str, object]) -> str:
    kept = {k: v for k, v in alert.items() if k not in ("lineage", "run_kind")}
    return json.dumps(kept, sort_keys=True)
