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
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # bench/ is no package, on purpose
from bench import DRAIN_S, PARTITIONS, START_MS, Run, broker, producer, rss, send
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


def config(bootstrap: str, topic: str, model: str, folder: Path, **bounds: Any) -> Config:
    """Shipped defaults but for what is measured."""
    detector = {
        "name": topic,
        "topics": [topic],
        "record": {"key": "key", "time": "ts", "values": ["value"], "key_bytes_max": 64},
        "model": model,
        "start": "earliest",
        "lanes": 4,
        "alert": {"warmup": 100, "probability": 1e-3},
        **bounds,
    }
    return Config.model_validate(
        {
            "kafka": {"bootstrap": bootstrap},
            "detectors": [detector],
            "owners": {"count": 2},
            "pool": {"min": 2, "max": 2},
            "store": str(folder / "state"),
            "models": str(folder / "models"),
            "page": {"port": 0},
            "audit": f"{topic}.audit",
        }
    )


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
        self.events: list[tuple[str, int, float]] = []  # of hosts: key, time, value
        self.sent = 0

    def host(self, host: int, spike_share: float) -> None:
        """One event of a host."""
        row, self.row[host] = self.row[host], self.row[host] + 1
        value, ts = float(self.rng.standard_normal()), START_MS + row * 1_000
        if self.rng.random() < spike_share:
            value += 60.0
        self.events.append((EVENT_KEY % host, ts, float(f"{value:.6f}")))
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


def said(run: Run) -> Said:
    """Id, state, time and key of each alert about an unusual value."""
    partitions = [p for p in run.log.bounds(_of(run)).items()]
    source = run.log.source("", [p for p, _ in partitions], keys=True)
    found: Said = set()
    try:
        source.assign({p: b.low for p, b in partitions})
        end = time.monotonic() + 60.0
        while any(source.position().get(p, b.low) < b.end for p, b in partitions):
            if time.monotonic() > end:
                raise TimeoutError("alerts could not be read")
            for value in source.fetch(10_000, 0.1).values:
                alert = json.loads(value or b"{}")
                if alert["rule"] == ANOMALY:
                    found.add((alert["id"], alert["state"], alert["at_ms"], alert["key"]))
    finally:
        source.close()
    return found


def calmly(run: Run, events: list[tuple[str, int, float]]) -> Said:
    """What would be said of these events if nobody else sent any."""
    scorer = build(shipped(run.detection.spec.model))
    spec = replace(run.detection.spec, pseudonym=None)
    flow = Flow(spec, (Partition("calm", 0),), describe(scorer))
    found: Said = set()
    for begin in range(0, len(events), 10_000):
        part = events[begin : begin + 10_000]
        values: list[bytes | None] = [
            json.dumps({"key": key, "ts": ts, "value": value}).encode() for key, ts, value in part
        ]
        count = len(part)
        fetched = Fetched(
            np.zeros(count, np.int32), np.arange(begin, begin + count), np.full(count, -1), values,
            [],
        )  # fmt: skip
        batch = flow.prepare(fetched, flow.model, begin={}, end={})
        assert batch.segments is not None
        alerts = flow.finish(batch, scorer.score(batch.segments)).alerts
        found |= {(a.id, a.state, a.at_ms, a.key.decode()) for a in alerts if a.rule == ANOMALY}
    return found


def _of(run: Run) -> list[Any]:
    topic = run.detection.spec.alerts
    return [Partition(topic, n) for n in range(run.log.topics()[topic])]


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
    settings = config(bootstrap, topic, model, folder, **bounds)
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
        of_hosts = {each for each in said(run) if each[3].startswith("host-")}
        calm = calmly(run, feed.events)
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
