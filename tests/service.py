"""The whole service on real Ray, for tests: started, watched, hurt and ended.

`Service` goes the way of `raywatch run`: `prepare`, the supervisor's actor, owners and scorers in
processes of their own. Its log is real Kafka or the embedded log behind an actor.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raywatch.actors import runtime as actors
from raywatch.actors.ports import Log, Out, Partition
from raywatch.actors.runtime import LogSpec
from raywatch.cluster import launch, runtime
from raywatch.cluster.config import Config
from raywatch.cluster.deployment import Deployment, log_spec, prepare
from raywatch.models.errors import ConfigError, RaywatchError, Unreachable


def config(
    bootstrap: str, topic: str, folder: Path, *, name: str = "hosts", **detector: Any
) -> Config:
    """A config for one detector; `pool`, `owners` and `missing` may be among the changes."""
    parts = {key: detector.pop(key) for key in ("owners", "pool") if key in detector}
    return Config.model_validate(
        {
            "kafka": {"bootstrap": bootstrap},
            "detectors": [
                {
                    "name": name,
                    "topics": [topic],
                    "record": {"key": "host", "time": "ts", "values": ["value"]},
                    "model": "robustz",
                    "start": "earliest",
                    "lanes": 4,
                    "alert": {"warmup": 200, "probability": 1e-4},
                    "missing": {"enabled": False},
                    **detector,
                }
            ],
            "owners": {"count": 2},
            "pool": {"min": 2, "max": 4},
            "store": str(folder / "state"),
            "models": str(folder / "models"),
            "page": {"port": 0},
            "audit": f"{name}.audit",
            **parts,
        }
    )


class Service:
    """A running deployment."""

    def __init__(self, settings: Config, spec: LogSpec | None = None) -> None:
        """Prepare; nothing runs before `start`. Ray must have been started (`ray_local`)."""
        self.config = settings
        self.log_spec = spec or log_spec(settings)
        self.log: Log = actors.open_log(self.log_spec)
        self.deployment: Deployment = _prepared(settings, self.log, self.log_spec)
        self.spec = self.deployment.detections[0].spec
        self.partitions: list[Partition] = self.deployment.detections[0].partitions
        self.handle: Any = None

    def start(self, wait_s: float = 90.0) -> None:
        """Start, and wait until every lane works."""
        self.handle = launch.start(self.deployment, wait_s=wait_s)

    def call(self, method: str, *arguments: Any) -> Any:
        """Ask the supervisor."""
        return runtime.call(self.handle, method, *arguments, timeout_s=30.0)

    def posts(self) -> dict[str, Any]:
        """name -> {pid, report} of the owners and scorers that reported."""
        return self.call("posts")

    def pids(self, kind: str) -> dict[str, int]:
        """Processes of the owners or scorers (`kind`: owner, scorer)."""
        return {n: p["pid"] for n, p in self.posts().items() if f".{kind}-" in n}

    def reports(self, kind: str) -> list[Any]:
        """Newest reports of the owners or scorers."""
        return [p["report"] for n, p in self.posts().items() if f".{kind}-" in n]

    def standing_by(self) -> list[str]:
        """Owners that hold no lanes and are warm."""
        return [r.name for r in self.reports("owner") if r is not None and r.parked]

    def signal(self, pid: int, what: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one of our processes."""
        os.kill(pid, what)

    def lag(self) -> int:
        """Records between what is committed and the end."""
        committed = self.log.committed(self.spec.group, self.partitions)
        bounds = self.log.bounds(self.partitions)
        return sum(
            b.end - (committed[p].offset if p in committed else b.low) for p, b in bounds.items()
        )

    def drained(self, wait_s: float = 120.0) -> None:
        """Wait until everything that was written is committed; fails with what lanes say."""
        try:
            until(lambda: self.lag() == 0, wait_s)
        except AssertionError as error:
            lanes = [(r.name, r.roster, r.failures, r.lanes) for r in self.reports("owner")]
            raise AssertionError(f"{self.lag()} left {error}: {lanes} {self.journal()}") from error

    def journal(self) -> list[str]:
        """Sentences of the journal, newest first."""
        return [entry["words"] for entry in self.call("snapshot").get("journal", [])]

    def opened(self) -> dict[int, tuple[str, int]]:
        """lane -> (epoch of its owner's process, times it was opened in it)."""
        return {
            lane.lane: (report.epoch, lane.opened)
            for report in self.reports("owner")
            if not report.parked
            for lane in report.lanes
        }

    def stop(self) -> list[str]:
        """End it. Returns owners that did not finish in time."""
        late: list[str] = []
        if self.handle is not None:
            late = launch.stop(self.handle)
            runtime.end(self.handle)
            self.handle = None
        self.log.close()
        return late


def _prepared(settings: Config, log: Log, spec: LogSpec) -> Deployment:
    """`prepare`, with patience: on a busy machine a broker's first coordinator takes its time, and
    so does the news of a topic that was just made on its way to the other brokers.
    """
    end = time.monotonic() + 60.0
    while True:
        try:
            return prepare(settings, log, spec)
        except (ConfigError, Unreachable) as error:
            passing = isinstance(error, Unreachable) or "does not exist" in error.message
            if time.monotonic() > end or not passing:
                raise
            time.sleep(0.1)


class Feed:
    """Writes records of one topic at a rate that may be changed, from a thread of its own."""

    def __init__(
        self, log: Log, topic: str, keys: Sequence[bytes], values: Sequence[bytes], rate: float
    ) -> None:
        """`rate`: records a second."""
        self.rate, self.sent = rate, 0
        self._out = [Out(topic, key, value) for key, value in zip(keys, values, strict=True)]
        self._log = log
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(60.0)
        assert self._error is None, self._error
        assert not self._thread.is_alive()

    def _run(self) -> None:
        due, before = 0.0, time.monotonic()
        try:
            while not self._closed.wait(0.02):
                now = time.monotonic()
                due = min(due + self.rate * (now - before), 2.0 * self.rate)
                before = now
                chunk = self._out[self.sent : self.sent + int(due)]
                self._log.write(chunk)
                self.sent += len(chunk)
                due -= len(chunk)
        except BaseException as error:
            self._error = error


def until(true: Callable[[], bool], wait_s: float = 30.0) -> None:
    """Wait for a condition; fails in words after `wait_s`."""
    end = time.monotonic() + wait_s
    while True:
        try:
            if true():
                return
        except RaywatchError:
            pass  # asked in the middle of a fault: ask again
        assert time.monotonic() < end, f"not within {wait_s} s"
        time.sleep(0.1)


@contextmanager
def ray_local(cpus: int = 64) -> Iterator[None]:
    """A Ray of our own, whose actors can import what lies in this folder."""
    before = os.environ.get("PYTHONPATH")
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = f"{here}:{before}" if before else here
    try:
        runtime.start_local(cpus)
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    try:
        yield
    finally:
        runtime.leave()


def identity(alert: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two alerts the same: everything but where the record lay in the log."""
    return tuple(
        (name, repr(value)) for name, value in sorted(alert.items()) if name not in ("lineage",)
    )
