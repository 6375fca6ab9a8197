"""A lane with the embedded log and a pool in process: what tests of lanes share."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raywatch.actors.clock import SystemClock
from raywatch.actors.lane import Lane
from raywatch.actors.pool import LocalPool
from raywatch.actors.ports import Log, Out, Partition, Store
from raywatch.actors.records import RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.store import MemoryStore
from raywatch.models.registry import build, shipped
from raywatch.models.scorer import describe
from raywatch.models.settings import DecideSettings

RECORD = RecordSpec(values=("value",), key="host", time="ts")


def spec(name: str, topic: str, **changes: Any) -> DetectorSpec:
    """A detector that starts at the beginning and commits often."""
    settings: dict[str, Any] = {
        "name": name, "topics": (topic,), "record": RECORD, "model": "robustz", "start": "earliest",
        "lanes": 1, "checkpoint_s": 0.05, "batch_wait_s": 0.01,
        "decide": DecideSettings(probability=1e-4, warmup=100),
    }  # fmt: skip
    return DetectorSpec(**{**settings, **changes})


def make(
    detector: DetectorSpec,
    log: Log,
    partitions: Sequence[Partition],
    *,
    number: int = 0,
    store: Store | None = None,
    model: str = "robustz",
    epoch: str = "e1",
) -> Lane:
    """A lane that is not running."""
    scorer = build(shipped(model))
    known = describe(scorer)
    return Lane(
        detector, number, tuple(partitions), log=log, pool=lambda: LocalPool({known.version: scorer}),
        store=store or MemoryStore(), clock=SystemClock(), model=lambda lane, name: known, epoch=epoch,
    )  # fmt: skip


@contextmanager
def running(*lanes: Lane) -> Iterator[None]:
    """Lanes in threads; stopped at the end. An exception in one fails the test."""
    errors: list[BaseException] = []

    def live(lane: Lane) -> None:
        try:
            lane.run()
        except BaseException as error:  # noqa: BLE001  reported below
            errors.append(error)

    threads = [threading.Thread(target=live, args=(lane,)) for lane in lanes]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for lane in lanes:
            lane.stop()
        for thread in threads:
            thread.join(20.0)
    assert not errors, errors
    assert not any(thread.is_alive() for thread in threads)


def until(true: Callable[[], bool], wait_s: float = 30.0) -> None:
    """Wait for a condition; fails in words after `wait_s`."""
    end = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < end, f"not within {wait_s} s"
        time.sleep(0.02)


def read_all(log: Log, topic: str) -> list[Out]:
    """Every committed record of a topic."""
    partitions = [Partition(topic, n) for n in range(log.topics()[topic])]
    bounds = log.bounds(partitions)
    source = log.source("", partitions, keys=True)
    found: list[Out] = []
    try:
        source.assign({p: b.low for p, b in bounds.items()})
        end = time.monotonic() + 20.0
        while any(source.position().get(p, b.low) < b.end for p, b in bounds.items()):
            assert time.monotonic() < end, f"{topic} could not be read to its end"
            fetched = source.fetch(10_000, 0.1)
            keys = fetched.keys or [None] * len(fetched)
            found += [
                Out(topic, k or b"", v or b"") for k, v in zip(keys, fetched.values, strict=True)
            ]
    finally:
        source.close()
    return found


def alerts(log: Log, topic: str) -> list[dict[str, Any]]:
    """Every committed alert."""
    return [json.loads(out.value) for out in read_all(log, topic)]


def lag(log: Log, detector: DetectorSpec, partitions: Sequence[Partition]) -> int:
    """Records between what is committed and the end."""
    committed = log.committed(detector.group, partitions)
    bounds = log.bounds(partitions)
    return sum(
        b.end - (committed[p].offset if p in committed else b.low) for p, b in bounds.items()
    )
