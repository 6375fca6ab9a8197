"""Goal: ten times the rate adds scorers within seconds and costs nothing else.

Method: real Kafka and real Ray; scorers that take 1 ms a record (`sleepy.py`), so that capacity
does not depend on the machine: one serves the base rate with ease, and less than half of the burst.
"""

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lanes import alerts
from service import Feed, Service, config, identity, ray_local, until
from sleepy import Sleepy

from raywatch.actors.backtest import backtest
from raywatch.actors.clock import VirtualClock
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.pool import Members, RemotePool
from raywatch.models.artifact import Artifact
from raywatch.models.registry import Registry, build
from raywatch.models.scorer import FINE, Scores, Segments
from raywatch.models.synthetic import Stream, generate, to_json

BASE, BURST = 200.0, 2_000.0  # records a second
RECORD_S = 0.001  # one scorer: 1,000 records/s
KEYS, ROWS = 60, 900
POOL = {"min": 1, "max": 6, "hold_s": 5.0, "tick_s": 0.5, "promise_s": 5.0}


@dataclass
class Seen:
    """What a burst did, in seconds from its beginning."""

    more_s: float = 0.0  # a second scorer serves
    most: int = 1  # most scorers that served
    back_s: float = 0.0  # lag is what it was before
    gone_s: float = 0.0  # one scorer is left
    opened: bool = False  # whether a lane was opened again
    sent_again: int = 0  # batches
    alerts: list[dict[str, Any]] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)


def burst(service: Service, feed: Feed) -> Seen:
    """5 s of the base rate, 15 s of the burst, then the base rate until one scorer is left."""
    seen, opened = Seen(), service.opened()
    time.sleep(5.0)
    assert serving(service) == 1
    feed.rate, began = BURST, time.monotonic()
    while time.monotonic() - began < 15.0:
        seen.most = max(seen.most, serving(service))
        if seen.most > 1 and not seen.more_s:
            seen.more_s = time.monotonic() - began
        time.sleep(0.1)
    feed.rate = BASE
    # While records flow, those of about the last second are always on their way.
    until(lambda: lag(service) <= BASE, 60.0)
    seen.back_s = time.monotonic() - began
    until(lambda: serving(service) == 1, 90.0)
    seen.gone_s = time.monotonic() - began
    seen.opened = service.opened() != opened
    return seen


@pytest.mark.kafka
@pytest.mark.ray
def test_a_burst_of_ten_times_the_rate_is_met_by_more_scorers_and_by_nothing_else(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name, events = topic("hosts").lower(), topic("events")
    stream = Stream(keys=KEYS, seed=11, quiet=300, injections=("spike", "level", "variance"))
    table = generate(stream, ROWS, injections_per_kind=6)
    values, keys = to_json(table), [table.names[k].encode() for k in table.key]
    artifact = Artifact("sleepy", "python", {"class": "sleepy:Sleepy", "record_s": RECORD_S})
    Registry(tmp_path / "models").add(artifact)
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 8)
    settings = config(kafka.bootstrap, events, tmp_path, name=name, model="sleepy", pool=POOL)
    with ray_local():
        service = Service(settings)
        try:
            service.start()
            with Feed(log, events, keys, values, BASE) as feed:
                seen = burst(service, feed)
                feed.rate = 5_000.0
                until(lambda: feed.sent == len(values), 60.0)
            service.drained()
            seen.sent_again = sum(report.sent_again for report in service.reports("owner"))
            seen.alerts, seen.journal = alerts(log, service.spec.alerts), service.journal()
        finally:
            service.stop()
            log.close()

    said, seen.alerts = seen.alerts, []
    print(seen)
    assert not seen.opened
    # On busy cores a scorer may give no sign for longer than its time-out: a batch or two may be
    # sent again, a queue may not.
    assert seen.sent_again <= 8
    assert 0.0 < seen.more_s < 15.0
    assert seen.most >= 3  # 2,000 records/s are 2 scorers of work, and then there is a backlog
    assert seen.back_s < 45.0
    assert any(words.startswith("grow: 1 to ") for words in seen.journal), seen.journal
    assert any(re.match(r"shrink: \d to 1 scorers", w) for w in seen.journal), seen.journal

    # The records of the topic as a file say the same.
    path, out = tmp_path / "records.jsonl", tmp_path / "alerts.jsonl"
    path.write_bytes(b"\n".join(values) + b"\n")
    scorer = build(artifact)
    assert isinstance(scorer, Sleepy)
    scorer.record_s = 0.0  # the same scores, without the sleep
    backtest(service.spec, scorer, path, tmp_path / "o.parquet", alerts=out, partitions=8)
    filed = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert len(filed) >= 6, len(filed)
    assert sorted(map(same, filed)) == sorted(map(same, said))


def serving(service: Service) -> int:
    return service.call("snapshot")["scorers"]["serving"]


def lag(service: Service) -> float:
    records = service.call("snapshot")["owners"]["lag_records"]
    return float("inf") if records is None else records


def same(alert: dict[str, Any]) -> tuple[Any, ...]:
    """Everything but where it lay and whether it was live."""
    return identity({**alert, "run_kind": ""})


class Slow:
    """A scorer that answers when it is told to."""

    def __init__(self, name: str) -> None:
        self.name, self.version = name, "v"
        self.waiting: list[Future[Scores]] = []

    def score(self, payload: Any) -> "Future[Scores]":
        self.waiting.append(Future())
        return self.waiting[-1]

    def answer(self) -> None:
        none = np.zeros(0, np.float32)
        self.waiting.pop(0).set_result(Scores({}, none, np.zeros(0, np.int32), "v"))


def test_a_scorer_with_a_long_queue_is_not_taken_for_a_hung_one() -> None:
    batch = Segments(1, (FINE,), np.zeros((1, 0), np.int32), np.zeros(0, np.float32))
    clock, scorer = VirtualClock(), Slow("a")
    members = Members(clock)
    members.replace({"a": scorer})
    pool = RemotePool(members, clock, timeout_s=5.0)
    tickets = [pool.submit(batch, "v") for _ in range(4)]
    for ticket in tickets:  # each answer takes 4 s: the last batch is 16 s old when it comes
        clock.sleep(4.0)
        assert pool.result(tickets[-1], 0.0) is None
        scorer.answer()
        assert pool.result(ticket, 0.0) is not None
    assert pool.sent_again == 0

    # One that answers nobody for 5 s is hung, and its batch goes to another.
    last = pool.submit(batch, "v")
    other = Slow("b")
    members.replace({"a": scorer, "b": other})
    clock.sleep(5.5)
    assert pool.result(last, 0.0) is None
    assert pool.result(last, 0.0) is None  # sent now
    assert (len(other.waiting), pool.sent_again) == (1, 1)
