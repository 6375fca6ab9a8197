"""What does raywatch cost, beside the same work by hand, on real Kafka in one run?

    python bench/bench.py [--records 3000000] [--only score,delay,memory] [--json OUT.json]

`score`: a topic of JSON events (about 111 bytes, 1,000 keys, 12 partitions, lz4) is drained by a
bare consume loop, by a hand-written loop (bench/floors.py), and by raywatch with `robustz` and with
`lagbank` (4 lanes, 2 owners, 2 scorers, exactly once). CPU is user + system of owners, scorers and
supervisor between the first record and the last commit; Ray's own processes are given apart.
`delay`: 2,000 events/s for 30 s with 0.5 % spikes, from the event's produce call to the alert in
the hands of a read_committed consumer. `memory`: resident size of the owners with 100,000 keys.

Machines are shared: trust CPU and ratios within one run before events/s.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from raywatch.actors import runtime as actors
from raywatch.cluster import launch, runtime
from raywatch.cluster.config import Config
from raywatch.cluster.deployment import log_spec, prepare
from raywatch.models.errors import RaywatchError

ROOT = Path(__file__).resolve().parent.parent
PARTITIONS, KEYS = 12, 1_000
TICK = 1.0 / os.sysconf("SC_CLK_TCK")
DRAIN_S = 300.0
COLD_S = 5  # Not counted: a broker that was just started takes over a core to compile itself.
START_MS = 1_700_000_000_000


# ---- kafka ---------------------------------------------------------------------------------


@contextmanager
def broker() -> Iterator[Any]:
    """One real broker on loopback, gone afterwards."""
    spec = importlib.util.spec_from_file_location("kafka_tool", ROOT / "tools" / "kafka.py")
    assert spec
    assert spec.loader
    tool = importlib.util.module_from_spec(spec)
    sys.modules["kafka_tool"] = tool
    spec.loader.exec_module(tool)
    with tempfile.TemporaryDirectory(prefix="raywatch-bench-") as folder:
        cluster = tool.KafkaCluster(Path(folder), port=tool.free_port(21_000), brokers=1, tied=True)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()


def event(key: int, seq: int, ts: int, value: float) -> bytes:
    """One record of about 111 bytes."""
    return (
        f'{{"key":"host-{key:04d}","seq":{seq},"ts":{ts},"value":{value:.6f},'
        f'"pad":"{"x" * 32}"}}'.encode()
    )


def fill(bootstrap: str, topic: str, records: int, keys: int = KEYS, seed: int = 1) -> float:
    """Write noise with a spike in a thousandth of the records. Returns bytes a record."""
    writer = producer(bootstrap)
    rng = np.random.default_rng(seed)
    size = 0
    for begin in range(0, records, 100_000):
        count = min(100_000, records - begin)
        values = rng.standard_normal(count) + 20.0 * (rng.random(count) < 1e-3)
        for index, value in enumerate(values.tolist()):
            seq = begin + index
            key = seq % keys
            body = event(key, seq, START_MS + seq // keys * 1_000, value)
            size += len(body)
            send(writer, topic, key, body)
    writer.flush(60)
    return size / records


def producer(bootstrap: str, *, linger_ms: int = 20) -> Producer:
    """A quick writer that partitions as Java does."""
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": linger_ms,
            "compression.type": "lz4",
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 1_000_000,
            "partitioner": "murmur2_random",
        }
    )


def send(writer: Producer, topic: str, key: int, body: bytes) -> None:
    """Queue a record, waiting while the queue is full."""
    while True:
        try:
            writer.produce(topic, value=body, key=f"host-{key:04d}")
            return
        except BufferError:
            writer.poll(0.1)


# ---- raywatch ------------------------------------------------------------------------------


def config(
    bootstrap: str, topic: str, name: str, model: str, folder: Path, **detector: Any
) -> Config:
    """The configuration that is measured: defaults, but for the sizes below and for `detector`."""
    return Config.model_validate(
        {
            "kafka": {"bootstrap": bootstrap},
            "detectors": [
                {
                    "name": name,
                    "topics": [topic],
                    "record": {"key": "key", "time": "ts", "values": ["value"]},
                    "model": model,
                    "start": "earliest",
                    "lanes": 4,
                    "alert": {"warmup": 100},
                    **detector,
                }
            ],
            "owners": {"count": 2},
            "pool": {"min": 2, "max": 2},
            "store": str(folder / "state"),
            "models": str(folder / "models"),
            "page": {"port": 0},
            "audit": f"{name}.audit",
        }
    )


class Run:
    """A deployment under measurement."""

    def __init__(self, settings: Config) -> None:
        spec = log_spec(settings)
        self.log = actors.open_log(spec)
        self.deployment = prepare(settings, self.log, spec)
        self.detection = self.deployment.detections[0]
        self.handle: Any = None

    def start(self) -> None:
        """Start without waiting: the owners' first record must not be missed."""
        self.handle = actors.start_supervisor(launch.Supervisor, (self.deployment,))

    def ready(self) -> None:
        """Wait until every lane works."""
        launch.start(self.deployment)

    def owners(self) -> dict[str, Any]:
        """Fresh reports of the owners that answer."""
        found: dict[str, Any] = {}
        for seat in range(2):
            with suppress(RaywatchError):
                name = f"{self.detection.spec.name}.owner-{seat}.g1"
                found[name] = runtime.call(actors.find(name), "report", timeout_s=5.0)
        return found

    def pids(self) -> dict[str, int]:
        """Processes that count."""
        posts = runtime.call(self.handle, "posts")
        found = {name: post["pid"] for name, post in posts.items()}
        return {**found, "supervisor": runtime.call(self.handle, "pid")}

    def lag(self) -> int:
        """Records that are not committed."""
        partitions = self.detection.partitions
        committed = self.log.committed(self.detection.spec.group, partitions)
        bounds = self.log.bounds(partitions)
        return sum(
            b.end - (committed[p].offset if p in committed else b.low) for p, b in bounds.items()
        )

    def stop(self) -> None:
        """End it."""
        launch.stop(self.handle)
        runtime.end(self.handle)
        self.log.close()


def drain(bootstrap: str, topic: str, model: str, records: int, folder: Path) -> dict[str, Any]:
    """raywatch on a topic that is full already."""
    run = Run(config(bootstrap, topic, f"bench-{model}", model, folder))
    run.start()
    try:
        base: dict[str, float] = {}
        began = time.monotonic()
        until = began + DRAIN_S
        while time.monotonic() < until:
            owners = run.owners()
            if sum(lane.records for o in owners.values() for lane in o.lanes):
                break
            if len(owners) == 2:
                base = {name: cpu(pid) for name, pid in run.pids().items()}
                began = time.monotonic()
        while run.lag() and time.monotonic() < until:
            time.sleep(0.1)
        seconds = time.monotonic() - began
        pids = run.pids()
        spent = {name: cpu(pid) - base.get(name, 0.0) for name, pid in pids.items()}
        owners = run.owners()
        done = sum(lane.records for o in owners.values() for lane in o.lanes)
        kinds = {
            kind: sum(s for n, s in spent.items() if kind in n)
            for kind in ("owner", "scorer", "supervisor")
        }
        return {
            "records": done,
            "seconds": seconds,
            "cpu_s": sum(spent.values()),
            "cpu_by": kinds,
            "rss_mb": {n: rss(pid) / 1e6 for n, pid in pids.items()},
            "alerts": sum(lane.alerts for o in owners.values() for lane in o.lanes),
            "commits": sum(lane.commits for o in owners.values() for lane in o.lanes),
            "lag": run.lag(),
            "expected": records,
        }
    finally:
        run.stop()


def delay(bootstrap: str, model: str, folder: Path) -> dict[str, Any]:
    """From the produce call to the alert, at 2,000 events/s."""
    topic, rate, seconds = f"delay-{model}", 2_000, COLD_S + 30
    # A key of 200 records cannot claim one in 100,000: what is measured is the way, not the model.
    alert = {"warmup": 100, "probability": 1e-3}
    run_config = config(bootstrap, topic, topic, model, folder, alert=alert)
    with suppress(RaywatchError):
        actors.open_log(log_spec(run_config)).create(topic, PARTITIONS)
    fill_quietly(bootstrap, topic, 200)
    run = Run(run_config)
    run.start()
    try:
        run.ready()
        end = time.monotonic() + DRAIN_S
        while run.lag() and time.monotonic() < end:
            time.sleep(0.1)
        heard: dict[tuple[str, int], float] = {}
        stop = threading.Event()
        ear = threading.Thread(
            target=listen, args=(bootstrap, run.detection.spec.alerts, heard, stop), daemon=True
        )
        ear.start()
        before = {name: cpu(pid) for name, pid in run.pids().items()}
        sent = feed(bootstrap, topic, rate, seconds, first=200)
        time.sleep(2.0)
        spent = sum(cpu(pid) - before.get(n, 0.0) for n, pid in run.pids().items())
        stop.set()
        ear.join(5.0)
        begin = min(sent.values())
        counted = {k: t for k, t in sent.items() if t - begin >= COLD_S}
        took = sorted(1e3 * (heard[k] - t) for k, t in counted.items() if k in heard)
        return {
            "spikes": len(counted),
            "alerts": len(took),
            "p50_ms": took[len(took) // 2] if took else None,
            "p99_ms": took[len(took) * 99 // 100] if took else None,
            "max_ms": took[-1] if took else None,
            "worst_at_s": worst(sent, heard),
            "cpu_cores": spent / (seconds + 2.0),
        }
    finally:
        run.stop()


def worst(sent: dict[Any, float], heard: dict[Any, float]) -> list[tuple[float, float]]:
    """The longest five, cold or not: seconds since the first spike, and ms until its alert."""
    first = min(sent.values())
    took = [(1e3 * (heard[k] - t), t - first) for k, t in sent.items() if k in heard]
    return [(round(at, 2), round(ms)) for ms, at in sorted(took, reverse=True)[:5]]


def fill_quietly(bootstrap: str, topic: str, rows: int) -> None:
    """Ordinary records of every key, to be past its warm-up."""
    writer, rng = producer(bootstrap), np.random.default_rng(5)
    for row in range(rows):
        for key, value in enumerate(rng.standard_normal(KEYS).tolist()):
            send(writer, topic, key, event(key, row, START_MS + row * 1_000, value))
    writer.flush(60)


def feed(
    bootstrap: str, topic: str, rate: int, seconds: int, *, first: int
) -> dict[tuple[str, int], float]:
    """Paced events; returns when each spike was produced."""
    rng = np.random.default_rng(6)
    writer = producer(bootstrap, linger_ms=5)  # 1 ms would be a request for every second record
    sent: dict[tuple[str, int], float] = {}
    began = time.monotonic()
    for index in range(rate * seconds):
        late = began + index / rate - time.monotonic()
        if late > 0.0:
            time.sleep(late)
        key, row = index % KEYS, first + index // KEYS
        spike = rng.random() < 0.005
        ts = START_MS + row * 1_000
        value = float(rng.standard_normal()) + (60.0 if spike else 0.0)
        if spike:
            sent[f"host-{key:04d}", ts] = time.time()
        writer.produce(topic, value=event(key, row, ts, value), key=f"host-{key:04d}")
        writer.poll(0)
    writer.flush(10)
    return sent


def listen(
    bootstrap: str, topic: str, heard: dict[tuple[str, int], float], stop: threading.Event
) -> None:
    """Note when each alert arrives."""
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"ear-{time.time_ns()}",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 100,  # the broker answers at once when an alert comes
        }
    )
    low, high = reader.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
    reader.assign([TopicPartition(topic, 0, max(low, high))])
    while not stop.is_set():
        for message in reader.consume(100, 0.01):
            if message.error() is None:
                alert = json.loads(message.value())
                heard.setdefault((alert["key"], alert["at_ms"]), time.time())
    reader.close()


def memory(bootstrap: str, model: str, folder: Path, keys: int = 100_000) -> dict[str, Any]:
    """Resident size of the owners before and after they know `keys` keys."""
    topic = f"memory-{model}"
    settings = config(bootstrap, topic, topic, model, folder)
    actors.open_log(log_spec(settings)).create(topic, PARTITIONS)
    run = Run(settings)
    run.start()
    try:
        run.ready()
        empty = sum(rss(pid) for n, pid in run.pids().items() if "owner" in n)
        writer = producer(bootstrap)
        for row in range(3):
            for key in range(keys):
                body = event(key, row, START_MS + row * 1_000, float(key % 7))
                send(writer, topic, key, body)
        writer.flush(60)
        end = time.monotonic() + DRAIN_S
        while run.lag() and time.monotonic() < end:
            time.sleep(0.2)
        full = sum(rss(pid) for n, pid in run.pids().items() if "owner" in n)
        known = sum(lane.keys for o in run.owners().values() for lane in o.lanes)
        return {
            "keys": known,
            "owners_empty_mb": empty / 1e6,
            "owners_full_mb": full / 1e6,
            "kb_a_key": (full - empty) / 1e3 / max(1, known),
        }
    finally:
        run.stop()


# ---- processes -----------------------------------------------------------------------------


def cpu(pid: int) -> float:
    """User and system seconds of a process so far."""
    with suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK
    return 0.0


def rss(pid: int) -> int:
    """Resident bytes of a process."""
    with suppress(OSError), open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def floor(what: str, bootstrap: str, topic: str, records: int) -> dict[str, Any]:
    """One of bench/floors.py, in a process of its own."""
    command = [sys.executable, str(ROOT / "bench" / "floors.py"), what, bootstrap, topic]
    done = subprocess.run(
        [*command, str(records)], check=True, capture_output=True, text=True, timeout=DRAIN_S
    )
    return json.loads(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=3_000_000)
    parser.add_argument("--only", default="score,delay,memory")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    found: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()}
    with broker() as kafka, tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        runtime.start_local(64)
        try:
            if "score" in parts:
                found["score"] = score(kafka.bootstrap, arguments.records, home)
            for model in ("robustz", "lagbank"):
                if "delay" in parts:
                    found[f"delay-{model}"] = delay(kafka.bootstrap, model, home)
                    print(f"delay {model}: {found[f'delay-{model}']}", file=sys.stderr, flush=True)
            if "memory" in parts:
                found["memory"] = memory(kafka.bootstrap, "lagbank", home)
                print(f"memory: {found['memory']}", file=sys.stderr, flush=True)
        finally:
            runtime.leave()
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def score(bootstrap: str, records: int, folder: Path) -> dict[str, Any]:
    """Floors and raywatch on the same topic, the floors before and after."""
    topic = "events"
    log = actors.open_log(actors.LogSpec(bootstrap=bootstrap))
    log.create(topic, PARTITIONS)
    log.create("floor.alerts", 1)
    log.close()
    size = fill(bootstrap, topic, records)
    rows: list[tuple[str, dict[str, Any]]] = []
    for what in ("consume", "loop", "robustz", "lagbank", "loop", "consume"):
        if what in ("consume", "loop"):
            row = floor(what, bootstrap, topic, records)
        else:
            row = drain(bootstrap, topic, what, records, folder)
        row["events_per_s"] = row["records"] / row["seconds"]
        row["cpu_s_per_million"] = 1e6 * row["cpu_s"] / row["records"]
        rows.append((what, row))
        words = f"{row['events_per_s']:,.0f} events/s, {row['cpu_s_per_million']:.2f} CPU-s/M"
        print(f"{what:8} {words} {row.get('cpu_by', '')}", file=sys.stderr, flush=True)
    by_hand = min(r["cpu_s_per_million"] for w, r in rows if w == "loop")
    return {
        "bytes_a_record": size,
        "rows": [{"what": w, **r, "ratio": r["cpu_s_per_million"] / by_hand} for w, r in rows],
    }


if __name__ == "__main__":
    main()
