"""Goal: every lane has an owner that brokers let write, whatever took the last one's right away.

Method: the whole service on real Ray and the embedded log; a lane is taken by a stranger as brokers
take it from a machine that was suspended, and an owner's process is killed. Alerts as in a file.
"""

import json
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lanes import alerts
from service import Service, config, ray_local, until

from raywatch.actors import runtime as actors
from raywatch.actors.backtest import backtest
from raywatch.actors.ports import Log, Out
from raywatch.actors.runtime import LogSpec
from raywatch.cluster import runtime
from raywatch.models.registry import build, shipped
from raywatch.models.synthetic import Stream, generate, to_json

STREAM = Stream(keys=40, seed=4, quiet=300, injections=("spike", "level"))


@dataclass(frozen=True)
class World:
    """A service on the embedded log, and the records it is to see, in three parts."""

    service: Service
    log: Log
    parts: tuple[list[Out], list[Out], list[Out]]
    values: list[bytes]

    def said(self) -> Counter[str]:
        """What the service says, once it has read everything."""
        self.service.drained()
        return Counter(map(_same, alerts(self.log, self.service.spec.alerts)))

    def filed(self, folder: Path) -> Counter[str]:
        """What `backtest` says of the same records."""
        path, file = folder / "records.jsonl", folder / "alerts.jsonl"
        path.write_bytes(b"\n".join(self.values) + b"\n")
        spec, scorer = self.service.spec, build(shipped("robustz"))
        backtest(spec, scorer, path, folder / "o.parquet", alerts=file, partitions=8)
        found = Counter(_same(json.loads(line)) for line in file.read_bytes().splitlines())
        assert found.total() > 5
        return found


@contextmanager
def world(
    topic: Callable[[str], str], folder: Path, name: str, **settings: Any
) -> Generator[World]:
    """A running one; `name` is its detector's."""
    table = generate(STREAM, 1_200)
    values = to_json(table)
    events, at = topic("events"), topic("broker")
    out = [Out(events, table.names[k].encode(), v) for k, v in zip(table.key, values, strict=True)]
    third = len(out) // 3
    with ray_local():
        broker = actors.start_broker(at)
        log = actors.open_log(LogSpec(embedded=at))
        log.create(events, 8)
        there = config("embedded", events, folder, name=name, **settings)
        service = Service(there, LogSpec(embedded=at))
        try:
            service.start()
            parts = out[:third], out[third : 2 * third], out[2 * third :]
            yield World(service, log, parts, values)
        finally:
            service.stop()
            log.close()
            runtime.end(broker)


@pytest.mark.ray
def test_an_owner_that_brokers_fenced_is_replaced_and_a_dead_one_is_spoken_of(
    topic: Callable[[str], str], tmp_path: Path
) -> None:
    name = topic("keeper")
    with world(topic, tmp_path, name) as there:
        service, log = there.service, there.log
        log.write(there.parts[0])
        service.drained()

        stranger = log.sink(service.spec.lane_id(0), service.spec.group)
        stranger.open()  # and then it leaves: nobody holds the lane
        log.write(there.parts[1])
        until(lambda: f"{name}.owner-0.g2" in service.pids("owner"), 60.0)
        service.drained()
        fenced = service.journal()

        other = service.pids("owner")[f"{name}.owner-1.g1"]
        service.signal(other)
        log.write(there.parts[2])
        service.drained()
        died = f"owner {name}.owner-1.g1 is gone"
        until(lambda: any(words.startswith(died) for words in service.journal()))
        until(lambda: len(service.pids("owner")) == 2)
        holders = service.pids("owner")
        said = there.said()
    words = f"owner {name}.owner-0.g1 is gone (brokers no longer let it write for lanes 0)"
    assert any(sentence.startswith(words) for sentence in fenced), fenced
    # The one that was fenced is ended, too.
    assert set(holders) == {f"{name}.owner-0.g2", f"{name}.owner-1.g2"}
    assert said == there.filed(tmp_path)


@pytest.mark.ray
def test_who_stands_by_takes_the_lanes_of_an_owner_that_died_and_of_no_other(
    topic: Callable[[str], str], tmp_path: Path
) -> None:
    name = topic("standby")
    with world(topic, tmp_path, name, owners={"count": 2, "standby": True}) as there:
        service, log = there.service, there.log
        log.write(there.parts[0])
        service.drained()
        until(lambda: len(service.standing_by()) == 2, 60.0)
        opened = service.opened()

        # A supervisor that comes again knows who holds lanes and who stands by.
        service.signal(service.call("pid"))
        until(lambda: len(service.posts()) >= 6 and len(service.standing_by()) == 2, 60.0)
        log.write(there.parts[1])
        service.drained()
        assert service.opened() == opened

        service.signal(service.pids("owner")[f"{name}.owner-0.g1"])
        log.write(there.parts[2])
        service.drained()
        # Reports are older than what was drained; and the next one stands by.
        holders = {f"{name}.owner-0.g2", f"{name}.owner-1.g1"}
        until(lambda: _holders(service) == holders and len(service.standing_by()) == 2, 60.0)
        journal, said = service.journal(), there.said()
    words = f"its lanes go to {name}.owner-0.g2, which stood by"
    assert any(sentence.endswith(words) for sentence in journal), journal
    assert said == there.filed(tmp_path)


def _holders(service: Service) -> set[str]:
    return {r.name for r in service.reports("owner") if r is not None and not r.parked}


def _same(alert: dict[str, object]) -> str:
    kept = {k: v for k, v in alert.items() if k not in ("lineage", "run_kind")}
    return json.dumps(kept, sort_keys=True)
