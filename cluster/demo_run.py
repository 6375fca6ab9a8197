"""Runs the demo: a world, a service, two murders, and an account of them.

One Ray of its own, the whole service as `raywatch run` starts it, on the embedded log or on real
Kafka. Three threads: the feeder writes records at their pace, the killer ends a scorer and an owner
with SIGKILL and waits for their work to go on, and the caller's own follows the alerts and speaks.
Only processes below this one are killed. Whatever ends the demo, they all end with it.
"""

import importlib.util
import json
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from raywatch.actors import runtime as actors
from raywatch.actors.ports import Fetched, Log, Partition
from raywatch.actors.runtime import LogSpec
from raywatch.cluster import demo, launch, runtime
from raywatch.cluster.config import Config, load
from raywatch.cluster.demo import Death, Plan, World
from raywatch.cluster.deployment import Deployment, log_spec, prepare
from raywatch.cluster.processes import age_s, ended, family
from raywatch.models.errors import ConfigError, Unreachable
from raywatch.models.registry import Registry, build

LOGICAL_CPUS = 64  # Ray's CPUs are tickets here, as in `raywatch run`
WORLD_S = 120.0  # until the records are made
ASK_S = 30.0  # a broker that does not answer is asked again for so long
START_S = 120.0  # until every lane works
PAST_S = 180.0  # until the keys' past is scored
AFTER_S = 120.0  # until everything is committed, beyond twice the live seconds
BACK_S = 60.0  # until others do the work of what was killed
READ_S = 120.0  # to read everything back
STOP_S = 10.0
BROKER = "broker"  # the actor that holds the embedded log; not named as a detector's are
SIGNALS = (signal.SIGINT, signal.SIGTERM)
KILLS = ((0.35, "scorer"), (0.65, "owner"))  # share of the live seconds, and what dies then
PAST_CHUNK, LIVE_CHUNK, READ_CHUNK = 10_000, 2_000, 20_000  # records at once

Answer = TypeVar("Answer")
Emit = Callable[[str, Mapping[str, Any]], None]  # what happened, and its fields


# ---- the threads -----------------------------------------------------------------------------


class Feeder(threading.Thread):
    """Writes the past at once and, when it is told to go, the rest at its pace."""

    def __init__(self, log: Log, made: World, rate: float) -> None:
        super().__init__(name="feeder", daemon=True)
        self._log, self._made, self._rate = log, made, rate
        self.past = made.history
        self.go, self.stopping = threading.Event(), threading.Event()
        self.written, self.live_s = 0, 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        """Until everything is written, or stopped."""
        try:
            self._write(self.past, PAST_CHUNK)
            while not self.go.wait(0.1):
                if self.stopping.is_set():
                    return
            began = time.monotonic()
            while self.written < len(self._made.records) and not self.stopping.is_set():
                due = self.past + int(self._rate * (time.monotonic() - began))
                self._write(min(due, len(self._made.records)), LIVE_CHUNK)
                self.live_s = time.monotonic() - began
                self.stopping.wait(0.05)
        except BaseException as error:
            self.error = error

    def _write(self, until: int, chunk: int) -> None:
        while self.written < until and not self.stopping.is_set():
            end = min(until, self.written + chunk)
            self._log.write(self._made.records[self.written : end])
            self.written = end


class Killer(threading.Thread):
    """Kills at stated moments and measures how long until others do the work."""

    def __init__(self, handle: Any, seconds: float) -> None:
        super().__init__(name="killer", daemon=True)
        self._handle, self._seconds = handle, seconds
        self.stopping = threading.Event()
        self.events: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self.deaths: list[Death] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """One death after the other."""
        began = time.monotonic()
        try:
            for share, kind in KILLS:
                if self.stopping.wait(max(0.0, began + share * self._seconds - time.monotonic())):
                    return
                self._kill(kind, began)
        except BaseException as error:
            self.error = error

    def _kill(self, kind: str, began: float) -> None:
        before = self._posts(kind)
        if not before:
            raise Unreachable(f"no {kind} has reported: there is nothing to kill")
        name = min(before)
        pid = int(before[name]["pid"])
        assert pid in family(os.getpid()), f"{name} (pid {pid}) is not ours"
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        self.events.put(("killed", {"kind": kind, "name": name, "pid": pid}))
        back_s = None
        while back_s is None and time.monotonic() - killed < BACK_S:
            if self.stopping.wait(0.1):
                break
            if _so(lambda: self._recovered(kind, pid, len(before))):
                back_s = time.monotonic() - killed
                self.events.put(("back", {"kind": kind, "name": name, "after_s": back_s}))
        self.deaths.append(Death(kind, name, pid, killed - began, back_s))

    def _recovered(self, kind: str, pid: int, want: int) -> bool:
        """Whether as many as before are there, all at work and none of them the dead one."""
        posts = self._posts(kind).values()
        if len(posts) < want or any(post["pid"] == pid for post in posts):
            return False
        return kind == "scorer" or all(
            lane.state == "running" for post in posts for lane in post["report"].lanes
        )

    def _posts(self, kind: str) -> dict[str, Any]:
        posts: dict[str, Any] = runtime.call(self._handle, "posts")
        return {name: post for name, post in posts.items() if f".{kind}-" in name}


class Follower:
    """The alerts topic, as far as it was read."""

    def __init__(self, log: Log, topic: str) -> None:
        self._partitions = partitions_of(log, (topic,))
        self._log = log
        self._source = log.source("", self._partitions)
        self._source.assign({p: b.low for p, b in log.bounds(self._partitions).items()})

    def new(self, wait_s: float) -> list[bytes]:
        """What came since the last call."""
        return [value for value in self._source.fetch(1_000, wait_s).values if value is not None]

    def at_end(self) -> bool:
        """Whether all there is has been read."""
        position = self._source.position()
        bounds = self._log.bounds(self._partitions)
        return len(bounds) == len(self._partitions) and all(
            position.get(p, b.low) >= b.end for p, b in bounds.items()
        )

    def close(self) -> None:
        """Let go."""
        self._source.close()


def partitions_of(log: Log, topics: Sequence[str]) -> list[Partition]:
    """All partitions of these topics."""
    known = log.topics()
    return [Partition(topic, n) for topic in topics for n in range(known.get(topic, 0))]


# ---- the world around ------------------------------------------------------------------------


def place(folder: Path, bootstrap: str, now_ms: int) -> tuple[Config, str]:
    """The demo's config for this run, and what its topics begin with.

    State lies in `folder`; on a broker every name is one of this run's own.
    """
    with resources.as_file(resources.files("raywatch.configs") / "demo.yaml") as path:
        fields = load(path).model_dump()
    detector = {**fields["detectors"][0]}
    prefix = ""
    if bootstrap:
        fields["kafka"] = {"bootstrap": bootstrap}
        detector["name"] = f"{detector['name']}-{now_ms:x}"
        prefix = f"{detector['name']}."
        detector["topics"] = [f"{prefix}{topic}" for topic in detector["topics"]]
        fields["audit"] = f"{prefix}audit"
    fields |= {
        "detectors": [detector],
        "store": str(folder / "state"),
        "models": str(folder / "models"),
    }
    return Config.model_validate(fields), prefix


@contextmanager
def kafka(folder: Path, say: Callable[[str], None]) -> Generator[str]:
    """A Kafka of our own on loopback; its address. Raises ConfigError, Unreachable."""
    path = Path(__file__).resolve().parent.parent / "tools" / "kafka.py"
    if not path.is_file():
        raise ConfigError(
            "this installation brings no Kafka: it is no checkout of the repository",
            hint="`--bootstrap HOST:PORT` names one that runs",
        )
    spec = importlib.util.spec_from_file_location("raywatch_tools_kafka", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool
    spec.loader.exec_module(tool)
    say("starts Apache Kafka (the first time, Maven fetches it)")
    port = tool.free_port(20_000 + os.getpid() % 300 * 32)
    cluster = tool.KafkaCluster(folder, port=port, tied=True)
    try:
        cluster.start()
        yield cluster.bootstrap
    finally:
        cluster.stop()


# ---- the demo --------------------------------------------------------------------------------


class Show:
    """A service in its world, from the first record to the last alert."""

    def __init__(
        self, log: Log, deployment: Deployment, chosen: Plan, feeder: Feeder, emit: Emit
    ) -> None:
        self._log, self._deployment, self._plan = log, deployment, chosen
        self._feeder, self._emit = feeder, emit
        self._spec = deployment.detections[0].spec
        self.partitions = deployment.detections[0].partitions
        self.said: list[bytes] = []
        self.arrived: list[float] = []  # seconds after the start of the process, of each alert
        self._follower = Follower(log, self._spec.alerts)

    def past(self) -> None:
        """Wait until the keys' past is scored."""
        self._wait(PAST_S, "the past of the keys is scored", self._caught_up)

    def live(self, handle: Any) -> list[Death]:
        """Let records flow, hurt the service, and wait until all is committed."""
        killer = Killer(handle, self._plan.seconds)
        self._feeder.go.set()
        killer.start()

        def done() -> bool:
            self._tell(killer)
            for thread in (self._feeder, killer):
                if thread.error is not None:
                    raise thread.error
            over = not self._feeder.is_alive() and not killer.is_alive()
            return over and self._caught_up() and self._follower.at_end()

        try:
            self._wait(2 * self._plan.seconds + AFTER_S, "everything is committed", done)
        finally:
            killer.stopping.set()
            killer.join(5.0)
        self._tell(killer)
        return killer.deaths

    def rest(self) -> None:
        """The alerts that came with the end of the service."""
        self._wait(READ_S, "the alerts are read", self._follower.at_end)
        self._follower.close()

    def committed(self) -> int:
        """Records that the lanes have committed."""
        offsets = self._log.committed(self._spec.group, self.partitions)
        bounds = self._log.bounds(self.partitions)
        return sum(offsets[p].offset - b.low for p, b in bounds.items() if p in offsets)

    def read_back(self) -> Iterator[Fetched]:
        """Every record of the streams, as the log has it."""
        bounds = self._log.bounds(self.partitions)
        source = self._log.source("", self.partitions, keys=self._spec.record.key is None)
        source.assign({p: b.low for p, b in bounds.items()})
        until = time.monotonic() + READ_S
        try:
            while any(source.position().get(p, b.low) < b.end for p, b in bounds.items()):
                if time.monotonic() > until:
                    raise Unreachable(f"the streams could not be read within {READ_S:.0f} s")
                fetched = source.fetch(READ_CHUNK, 0.1)
                if len(fetched):
                    yield fetched
        finally:
            source.close()

    def _tell(self, killer: Killer) -> None:
        while not killer.events.empty():
            self._emit(*killer.events.get())

    def _caught_up(self) -> bool:
        """Whether the past, and all that was written since, is committed."""
        written = self._feeder.written
        return written >= self._feeder.past and self.committed() >= written

    def _wait(self, wait_s: float, what: str, done: Callable[[], bool]) -> None:
        """Follow the alerts until something is so. Raises Unreachable."""
        until = time.monotonic() + wait_s
        looked = 0.0
        while True:
            for value in self._follower.new(0.1):
                self.said.append(value)
                self.arrived.append(age_s())
                self._emit("alert", {"alert": json.loads(value)})
            if self._feeder.error is not None:
                raise self._feeder.error
            now = time.monotonic()
            if now - looked >= 0.25:
                looked = now
                if _so(done):
                    return
            if now > until:
                raise Unreachable(
                    f"it did not come so far within {wait_s:.0f} s that {what}",
                    hint="a slower machine wants a smaller `--rate`",
                )


def _so(done: Callable[[], bool]) -> bool:
    """Ask; a log that does not answer in the middle of a fault is asked again."""
    try:
        return done()
    except Unreachable:
        return False


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to account for once everything has ended."""

    said: list[bytes]
    arrived: list[float]
    deaths: list[Death]
    records: list[Fetched]
    partitions: list[Partition]
    measured: dict[str, Any]


def run(
    chosen: Plan, *, broker: str, bootstrap: str, say: Callable[[str], None], emit: Emit
) -> dict[str, Any]:
    """The whole demo; its summary. Raises RaywatchError, KeyboardInterrupt."""
    interruptible()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raywatch-demo-")))
        if broker == "kafka" and not bootstrap:
            bootstrap = stack.enter_context(kafka(folder / "kafka", say))
        now_ms = time.time_ns() // 1_000_000
        config, prefix = place(folder, bootstrap, now_ms)
        spec = config.spec()
        topics = {each: f"{prefix}{each}" for each in demo.STREAMS.values()}
        stream = chosen.stream(now_ms, spec.missing.floor_ms)
        making = stack.enter_context(ThreadPoolExecutor(1)).submit(
            demo.world, chosen, stream, topics
        )
        with own_ray() as left:  # which takes seconds of other processes, as the world does of ours
            made = making.result(WORLD_S)
            say(
                f"{made.keys} keys on {len(topics)} streams, {len(made.injected)} anomalies among "
                f"{len(made.records):,} records, seed {chosen.seed}"
            )
            seen = _serve(chosen, made, config, topics, bootstrap, say, emit)
        count = sum(len(fetched) for fetched in seen.records)
        say(f"everything has ended; scores the same {count:,} records again, undisturbed")
        scorer = build(Registry(Path(config.models)).resolve(spec.model))
        right = demo.score_again(spec, seen.partitions, seen.records, scorer)
    first = (
        at
        for at, value in zip(seen.arrived, seen.said, strict=True)
        if demo.belongs(json.loads(value), made.injected)
    )
    measured = {
        **seen.measured,
        "read": count,
        "left": left,
        "prefix": prefix,
        "first_alert_s": seen.arrived[0] if seen.arrived else None,
        "first_found_s": next(first, None),
        "took_s": age_s(),
    }
    return demo.summary(chosen, made, seen.said, right, seen.deaths, measured=measured)


def _serve(
    chosen: Plan,
    made: World,
    config: Config,
    topics: Mapping[str, str],
    bootstrap: str,
    say: Callable[[str], None],
    emit: Emit,
) -> Seen:
    """Start the service, feed and hurt it, end it, and read everything back."""
    if not bootstrap:
        actors.start_broker(BROKER)
    where = log_spec(config) if bootstrap else LogSpec(embedded=BROKER)
    log = actors.open_log(where)
    for topic in topics.values():
        _patiently(lambda name=topic: log.create(name, demo.PARTITIONS))
    feeder = Feeder(log, made, chosen.rate)
    feeder.start()
    try:
        deployment = _patiently(lambda: prepare(config, log, where, name="demo"))
        handle = launch.start(deployment, wait_s=START_S, progress=say)
        page: str = runtime.call(handle, "url")
        emit("page", {"url": page})
        show = Show(log, deployment, chosen, feeder, emit)
        show.past()
        emit("live", {"history": made.history, "rate": chosen.rate})
        deaths = show.live(handle)
        late = launch.stop(handle, wait_s=STOP_S)
        if late:
            say(f"did not finish in time: {', '.join(late)}")
        show.rest()
        measured = {
            "page": page,
            "written": feeder.written,
            "committed": show.committed(),
            "per_s": (feeder.written - made.history) / max(feeder.live_s, 1e-9),
        }
        records = list(show.read_back())
    finally:
        feeder.stopping.set()
        feeder.join(5.0)
        log.close()
    return Seen(show.said, show.arrived, deaths, records, show.partitions, measured)


def _patiently(ask: Callable[[], Answer]) -> Answer:
    """Ask a broker that may still be busy with its own start. Raises Unreachable after ASK_S."""
    until = time.monotonic() + ASK_S
    while True:
        try:
            return ask()
        except Unreachable:
            if time.monotonic() > until:
                raise


@contextmanager
def own_ray() -> Generator[list[int]]:
    """A Ray of our own for the block; the list then holds what did not end by itself."""
    others, left = family(os.getpid()), list[int]()
    try:
        runtime.start_local(LOGICAL_CPUS)
        interruptible()  # Ray took the signal for itself
        yield left
    finally:
        kept = [signal.signal(each, signal.SIG_IGN) for each in SIGNALS]
        try:
            known = {p: t for p, t in family(os.getpid()).items() if p not in others}
            runtime.leave()
            left += ended(known)
        finally:
            for each, handler in zip(SIGNALS, kept, strict=True):
                signal.signal(each, handler)


def interruptible() -> None:
    """SIGTERM ends the demo as Ctrl-C does: nothing stays behind."""

    def interrupt(number: int, frame: object) -> None:
        del number, frame
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
