"""A lane with the embedded log and a pool in process: what tests of lanes share."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from raywatch.actors.clock import SystemClock
from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.lane import Lane
from raywatch.actors.pool import LocalPool
from raywatch.actors.ports import Committed, Log, Out, Partition, Store, Ticket
from raywatch.actors.records import RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.store import MemoryStore
from raywatch.models.registry import build, shipped
from raywatch.models.scorer import Scorer, Scores, describe
from raywatch.models.settings import DecideSettings
from raywatch.models.synthetic import Stream, generate, to_json

NEVER_S = 1e6
RECORD = RecordSpec(values=("value",), key="host", time="ts")


def spec(name: str, topic: str, **changes: Any) -> DetectorSpec:
    """A detector that starts at the beginning and commits often."""
    settings: dict[str, Any] = {
        "name": name, "topics": (topic,), "record": RECORD, "model": "robustz", "start": "earliest",
        "lanes": 1, "checkpoint_s": 0.05, "batch_wait_s": 0.01,
        "decide": DecideSettings(probability=1e-4, warmup=100),
    }  # fmt: skip
    return DetectorSpec(**{**settings, **changes})


class LatePool(LocalPool):
    """Scores that let wait for themselves: batches are in flight while a lane commits."""

    def __init__(self, scorers: Mapping[str, Scorer], late: int) -> None:
        super().__init__(scorers)
        self._late = late
        self._asked: Counter[int] = Counter()

    def result(self, ticket: Ticket, wait_s: float) -> Scores | None:
        self._asked[ticket.number] += 1
        return super().result(ticket, wait_s) if self._asked[ticket.number] > self._late else None


def make(
    detector: DetectorSpec,
    log: Log,
    partitions: Sequence[Partition],
    *,
    number: int = 0,
    store: Store | None = None,
    model: str = "robustz",
    epoch: str = "e1",
    late: int = 0,
) -> Lane:
    """A lane that is not running; scores are there when they were asked for `late` times."""
    scorer = build(shipped(model))
    known = describe(scorer)
    return Lane(
        detector,
        number,
        tuple(partitions),
        log=log,
        pool=lambda: LatePool({known.version: scorer}, late),
        store=store or MemoryStore(),
        clock=SystemClock(),
        model=lambda lane, name: known,
        epoch=epoch,
    )


@contextmanager
def running(*lanes: Lane) -> Iterator[None]:
    """Lanes in threads; stopped at the end. An exception in one fails the test."""
    errors: list[BaseException] = []

    def live(lane: Lane) -> None:
        try:
            lane.run()
        except BaseException as error:
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


class Killed(BaseException):
    """What kill -9 is to a lane in a test's thread: it ends where it stands, and says nothing."""


class Mortal:
    """A Log under which a lane dies at its nth call to the brokers, done or not done.

    Calls are those of its clients that can hang or fail: open, committed, fetch, transact.
    """

    def __init__(self, log: Log, dies_at: int, *, done: bool) -> None:
        self._log, self._left, self._done = log, dies_at, done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def sink(self, lane: str, group: str) -> Any:
        return _Client(self, self._log.sink(lane, group), ("open", "transact"))

    def source(self, group: str, partitions: Sequence[Partition], *, keys: bool = False) -> Any:
        source = self._log.source(group, partitions, keys=keys)
        return _Client(self, source, ("committed", "fetch"))

    def called(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """One call more."""
        self._left -= 1
        if self._left > 0:
            return call(*arguments)
        if self._done:
            call(*arguments)
        raise Killed


class _Client:
    """A client of a mortal log; its counted calls go through `Mortal.called`."""

    def __init__(self, log: Mortal, client: Any, counted: tuple[str, ...]) -> None:
        self._log, self._client, self._counted = log, client, counted

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if name not in self._counted:
            return found

        def call(*arguments: Any) -> Any:
            theirs = [getattr(a, "_client", a) for a in arguments]
            return self._log.called(found, *theirs)

        return call


@dataclass
class World:
    """An embedded log with a topic, and what a detector needs beside it."""

    broker: EmbeddedBroker
    log: EmbeddedLog
    partitions: list[Partition]
    store: MemoryStore = field(default_factory=MemoryStore)

    def said(self) -> Counter[str]:
        """Every alert with all it says, and how often."""
        return Counter(json.dumps(a, sort_keys=True) for a in alerts(self.log, "d.alerts"))

    def audited(self, what: str) -> list[dict[str, Any]]:
        return [a for a in alerts(self.log, "raywatch.audit") if a["what"] == what]

    def snapshots(self) -> list[str]:
        return self.store.names("snapshots/")

    def commits(self, detector: DetectorSpec) -> dict[Partition, Committed]:
        return self.log.committed(detector.group, self.partitions)


def world(partitions: int = 4) -> World:
    broker = EmbeddedBroker()
    log = EmbeddedLog(broker)
    log.create("in", partitions)
    for topic in ("d.alerts", "d.rejects", "raywatch.audit"):
        log.create(topic, 1)
    return World(broker, log, [Partition("in", n) for n in range(partitions)])


def stream(keys: int = 40, rows: int = 1_300, seed: int = 3) -> list[Out]:
    """Telemetry with anomalies, in stream order."""
    source = Stream(keys=keys, seed=seed, quiet=200, injections=("spike", "level", "variance"))
    table = generate(source, rows, injections_per_kind=keys // 5)
    names = [name.encode() for name in table.names]
    return [Out("in", names[k], v) for k, v in zip(table.key, to_json(table), strict=True)]


RECORDS = stream()


def live(
    there: World, detector: DetectorSpec, *, log: Log | None = None, model: str = "robustz",
    epoch: str = "e", late: int = 0, number: int = 0,
) -> Lane:  # fmt: skip
    """A lane until nothing is left to do; dies of its log where that is mortal."""
    lane = make(
        detector,
        log or there.log,
        there.partitions,
        number=number,
        store=there.store,
        model=model,
        epoch=epoch,
        late=late,
    )
    if log is not None:
        lane.run()
        raise AssertionError("it was to die")
    with running(lane):
        until(lambda: lag(there.log, detector, there.partitions) == 0)
    return lane


def undisturbed(records: list[Out], **changes: Any) -> Counter[str]:
    there = world()
    there.log.write(records)
    live(there, spec("d", "in", **changes), model=changes.get("model", "robustz"))
    return there.said()
