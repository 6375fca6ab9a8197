"""What does a flood do to the memory of owners, and to the keys that are watched?

    python bench/flood.py [--rate 500] [--times 100] [--seconds 60] [--keys 1000000]
                          [--keys-max 20000] [--model lagbank] [--json OUT.json]

Real Kafka, 12 partitions, 4 lanes, 2 owners, 2 scorers, exactly once. 200 hosts are watched at
`rate` events/s until they are past their warm-up. Then `times` as many events come for a while: the
hosts' own, with spikes, and between them those of `keys` keys that nobody ever saw. Stated before
it begins: the bound of cluster/memory.py for these settings. Measured: the resident size of each
owner, four times a second; whether everything is scored in the end; and whether what is said of the
hosts is what would be said of them without a flood, alert by alert (scored here, in process).
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # bench/ is no package, on purpose
from bench import DRAIN_S, PARTITIONS, START_MS, Run, broker, config, producer, rss, send
from raywatch.actors import runtime as actors
from raywatch.actors.alerts import ANOMALY
from raywatch.actors.flow import Flow
from raywatch.actors.ports import Fetched, Partition
from raywatch.cluster import runtime
from raywatch.cluster.config import Config
from raywatch.cluster.deployment import log_spec
from raywatch.cluster.memory import memory_bound
from raywatch.models.errors import RaywatchError
from raywatch.models.registry import build, shipped
from raywatch.models.scorer import describe

HOSTS = 200
WARM = 240  # events of each host before the flood
SAMPLE_S = 0.25
EVENT_KEY = "host-%04d"


def watched(bootstrap: str, topic: str, model: str, folder: Path, **bounds: Any) -> Config:
    """The benchmark's configuration with these bounds."""
    alert = {"warmup": 100, "probability": 1e-3}
    record = {"key": "key", "time": "ts", "values": ["value"], "key_bytes_max": 64}
    return config(bootstrap, topic, topic, model, folder, alert=alert, record=record, **bounds)


class Gauge:
    """Resident sizes of owners, and what is left to do, while something goes on."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.most: dict[str, int] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Gauge":
        self._pids = {n: p for n, p in self.run.pids().items() if "owner" in n}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(10.0)
        now = {n: p for n, p in self.run.pids().items() if "owner" in n}
        assert now == self._pids, f"an owner was replaced: {self._pids}, {now}"

    def _watch(self) -> None:
        while not self._closing.wait(SAMPLE_S):
            for name, pid in self._pids.items():
                self.most[name] = max(self.most.get(name, 0), rss(pid))


class Feed:
    """Writes what hosts and strangers send; remembers the spikes."""

    def __init__(self, bootstrap: str, topic: str, seed: int = 3) -> None:
        self.writer, self.topic = producer(bootstrap), topic
        self.rng = np.random.default_rng(seed)
        self.row = [0] * HOSTS
        self.sent = 0

    def host(self, host: int, spike_share: float) -> None:
        """One event of a host."""
        row, self.row[host] = self.row[host], self.row[host] + 1
        value, ts = float(self.rng.standard_normal()), START_MS + row * 1_000
        if self.rng.random() < spike_share:
            value += 60.0
        self.put(EVENT_KEY % host, host, ts, value)

    def stranger(self, number: int) -> None:
        """One event of a key that was not watched before."""
        ts = START_MS + max(self.row) * 1_000
        self.put(f"stranger-{number:07d}", HOSTS + number, ts, 1.0)

    def put(self, name: str, key: int, ts: int, value: float) -> None:
        """Queue an event of about 111 bytes."""
        body = f'{{"key":"{name}","seq":0,"ts":{ts},"value":{value:.6f},"pad":"{"x" * 32}"}}'
        send(self.writer, self.topic, key, body.encode())
        self.sent += 1

    def calm(self, rounds: int, spike_share: float = 0.0) -> None:
        """Only hosts, as fast as it goes."""
        for index in range(rounds * HOSTS):
            self.host(index % HOSTS, spike_share)
        self.writer.flush(60)

    def flood(self, rate: float, times: int, seconds: float, keys: int) -> float:
        """`rate` events of hosts a second, and `times` as many in all. Returns seconds taken."""
        began, events = time.monotonic(), int(rate * times * seconds)
        strangers = 0
        for index in range(events):
            if index % times == 0:
                self.host(index // times % HOSTS, 0.01)
            else:
                self.stranger(strangers % keys)
                strangers += 1
            if index % 2_000 == 0:
                late = began + index / (rate * times) - time.monotonic()
                if late > 0.0:
                    time.sleep(late)
        self.writer.flush(120)
        return time.monotonic() - began


Said = set[tuple[str, str, int, str]]


def values(run: Run, topic: str) -> Iterator[bytes]:
    """All records of a topic, in the order of each partition."""
    partitions = [Partition(topic, n) for n in range(run.log.topics()[topic])]
    bounds = run.log.bounds(partitions)
    source = run.log.source("", partitions)
    try:
        source.assign({p: b.low for p, b in bounds.items()})
        end = time.monotonic() + DRAIN_S
        while any(source.position().get(p, b.low) < b.end for p, b in bounds.items()):
            if time.monotonic() > end:
                raise TimeoutError(f"{topic} could not be read")
            yield from filter(None, source.fetch(10_000, 0.1).values)
    finally:
        source.close()


def said(run: Run) -> Said:
    """Id, state, time and key of each alert about an unusual value of a host."""
    alerts = (json.loads(value) for value in values(run, run.detection.spec.alerts))
    return {
        (a["id"], a["state"], a["at_ms"], a["key"])
        for a in alerts
        if a["rule"] == ANOMALY and a["key"].startswith("host-")
    }


def calmly(run: Run, of_hosts: list[bytes]) -> Said:
    """What would be said of these events if nobody else sent any."""
    scorer = build(shipped(run.detection.spec.model))
    flow = Flow(run.detection.spec, (Partition("calm", 0),), describe(scorer))
    found: Said = set()
    for begin in range(0, len(of_hosts), 10_000):
        part = of_hosts[begin : begin + 10_000]
        count = len(part)
        stamps = np.full(count, -1)
        fetched = Fetched(
            np.zeros(count, np.int32), np.arange(begin, begin + count), stamps, list(part), []
        )
        batch = flow.prepare(fetched, flow.model, begin={}, end={})
        assert batch.segments is not None
        alerts = flow.finish(batch, scorer.score(batch.segments)).alerts
        found |= {(a.id, a.state, a.at_ms, a.key.decode()) for a in alerts if a.rule == ANOMALY}
    return found


def drained(run: Run, until: float) -> bool:
    """Wait until everything is committed."""
    while run.lag():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def measure(
    bootstrap: str, folder: Path, *, rate: float, times: int, seconds: float, keys: int,
    model: str, drain_s: float = DRAIN_S, **bounds: Any,
) -> dict[str, Any]:  # fmt: skip
    """One flood. Ray is up, and the broker."""
    topic = f"flood-{time.time_ns()}"
    settings = watched(bootstrap, topic, model, folder, **bounds)
    with suppress(RaywatchError):
        actors.open_log(log_spec(settings)).create(topic, PARTITIONS)
    feed = Feed(bootstrap, topic)
    feed.calm(WARM)
    run = Run(settings)
    run.start()
    try:
        run.ready()
        assert drained(run, time.monotonic() + drain_s), "the warm-up is not scored"
        stated = memory_bound(run.detection.spec, partitions=PARTITIONS, owners=2)
        empty = {n: rss(p) for n, p in run.pids().items() if "owner" in n}
        feed.calm(10, 0.02)
        with Gauge(run) as gauge:
            began = time.monotonic()
            fed_s = feed.flood(rate, times, seconds, keys)
            whole = drained(run, time.monotonic() + drain_s)
            took_s = time.monotonic() - began
            feed.calm(10, 0.02)
            assert drained(run, time.monotonic() + drain_s), "what came after is not scored"
        lanes = [lane for owner in run.owners().values() for lane in owner.lanes]
        # As they lie in the log: a writer under load may send a batch again behind a later one.
        events = [v for v in values(run, topic) if v.startswith(b'{"key":"host-')]
        assert len(events) == sum(feed.row), (len(events), sum(feed.row))
        of_hosts, calm = said(run), calmly(run, events)
        return {
            "settings": {"rate": rate, "times": times, "seconds": seconds, "keys": keys, **bounds},
            "events": feed.sent,
            "fed_per_s": rate * times * seconds / fed_s,
            "scored": sum(lane.records for lane in lanes),
            "everything_scored": whole,
            "seconds": took_s,
            "bound_mb": stated.total / 1e6,
            "most_mb": {name: size / 1e6 for name, size in gauge.most.items()},
            "before_mb": {name: size / 1e6 for name, size in empty.items()},
            "keys": sum(lane.keys for lane in lanes),
            "evicted": sum(lane.evicted for lane in lanes),
            "opened": [lane.opened for lane in lanes],
            "alerts_of_hosts": len(of_hosts),
            "of_them_lost": len(calm - of_hosts),
            "of_them_wrong": len(of_hosts - calm),
            "for_example": sorted(calm - of_hosts)[:3] + sorted(of_hosts - calm)[:3],
        }
    finally:
        run.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--keys-max", type=int, default=20_000)
    parser.add_argument("--model", default="lagbank")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with broker() as kafka, tempfile.TemporaryDirectory() as folder:
        runtime.start_local(64)
        try:
            found = measure(
                kafka.bootstrap, Path(folder), rate=arguments.rate, times=arguments.times,
                seconds=arguments.seconds, keys=arguments.keys, model=arguments.model,
                drain_s=1_200.0, keys_max=arguments.keys_max,
            )  # fmt: skip
        finally:
            runtime.leave()
    found |= {"cores": os.cpu_count(), "load": os.getloadavg()}
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
