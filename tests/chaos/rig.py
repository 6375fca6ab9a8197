"""Everything a chaos run breaks: three brokers, a service, a feed, a store on a disk of its own, a
clock that can jump; and the witnesses that nobody breaks.

Witnesses are plain clients of their own: `Watcher` is a process that reads alerts and the audit
topic read_committed and notes when each came, `Asker` asks `status` twice a second, as an operator
would.
"""

import importlib.util
import json
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient
from service import Service, config

from raywatch.actors.checkpoint import decode
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.ports import Partition, Source
from raywatch.actors.store import open_store
from raywatch.cluster import runtime
from raywatch.cluster.drills.alerts import Holder
from raywatch.cluster.drills.story import Heard, Look
from raywatch.models.errors import RaywatchError

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
PARTITIONS, LANES, OWNERS, SCORERS = 12, 4, 2, 2
DISK_MB = 192
REPLICAS = 3


def tool(name: str) -> Any:
    """A module of tools/, by path: that folder is no package."""
    spec = importlib.util.spec_from_file_location(
        f"raywatch_tools_{name}", ROOT / f"tools/{name}.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def until(true: Callable[[], bool], wait_s: float, what: str) -> None:
    """Wait; fails in words."""
    end = time.monotonic() + wait_s
    while True:
        try:
            if true():
                return
        except (RaywatchError, ck.KafkaException):
            pass  # asked in the middle of a fault: ask again
        assert time.monotonic() < end, f"not within {wait_s:.0f} s: {what}"
        time.sleep(0.05)


class Disk:
    """A file system of its own, which can be full and can hang."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk"
        self.path.mkdir()
        image = folder / "disk.img"
        with image.open("wb") as stream:
            stream.truncate(DISK_MB << 20)
        _run("mkfs.ext4", "-q", "-m", "0", str(image))
        _run("mount", "-o", "loop,noatime", str(image), str(self.path))

    def fill(self) -> None:
        """Not one block is left."""
        with (self.path / "balloon").open("wb", buffering=0) as stream:
            block = bytes(1 << 20)
            while len(block) >= 512:
                try:
                    stream.write(block)
                    os.fsync(stream.fileno())
                except OSError:
                    block = block[: len(block) // 2]

    def empty(self) -> None:
        """Room again."""
        (self.path / "balloon").unlink(missing_ok=True)

    def freeze(self) -> None:
        """Whoever writes, hangs."""
        _run("fsfreeze", "--freeze", str(self.path))

    def thaw(self) -> None:
        """It answers again."""
        _run("fsfreeze", "--unfreeze", str(self.path))

    def close(self) -> None:
        """Take it away."""
        self.empty()
        _run("umount", "-l", str(self.path))


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"


class WallClock:
    """The wall clock of every process of a Ray that was started under `preloaded`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self._file.write_bytes(bytes(8))
        self._library = folder / "clock.so"
        _run(
            "gcc", "-O2", "-shared", "-fPIC", "-o", str(self._library), str(HERE / "clock.c"),
            "-ldl",
        )  # fmt: skip

    def preload(self) -> None:
        """Processes that are started from now on have this clock."""
        os.environ["RAYWATCH_CLOCK"] = str(self._file)
        os.environ["LD_PRELOAD"] = str(self._library)

    @staticmethod
    def unload() -> None:
        """Those that are started from now on have the machine's."""
        os.environ.pop("LD_PRELOAD", None)

    def jump(self, seconds: float) -> None:
        """This far from the machine's."""
        with self._file.open("r+b") as stream, mmap.mmap(stream.fileno(), 8) as memory:
            memory[:8] = struct.pack("=q", int(seconds * 1e9))

    def proof(self) -> float:
        """How far a new process sees the clock jump when it is told to; for who does not trust."""
        said = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time())"],
            env={**os.environ, "LD_PRELOAD": str(self._library),
                 "RAYWATCH_CLOCK": str(self._file)},
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
        return float(said) - time.time()


class Helper:
    """A script beside this file in a process of its own: words over its stdin, a line of JSON back.

    What is noted there is safe from whatever happens to the process that breaks things.
    """

    def __init__(self, script: str, *words: object) -> None:
        self._name = script
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), *map(str, words)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._lock = threading.Lock()

    def ask(self, words: str) -> dict[str, Any]:
        """Its answer."""
        with self._lock:
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(f"{words}\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline() or '{"error": "it ended"}')
        assert "error" not in answer, f"{self._name}: {answer['error']}"
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)


class Watcher(Helper):
    """watch.py: when each alert and each sentence of the journal came."""

    def __init__(self, bootstrap: str, alerts: str, audit: str) -> None:
        super().__init__("watch.py", bootstrap, alerts, audit)
        self._heard: list[Heard] = []
        self._hearing = threading.Lock()

    def first(self, partitions: Sequence[int], since_s: float, sent: Sequence[int]) -> float | None:
        """When the first alert came about a record of these that was written after `sent`."""
        question = {"partitions": list(partitions), "sent": list(sent), "since_s": since_s}
        return self.ask(f"first {json.dumps(question)}")["at_s"]

    def heard(self) -> list[Heard]:
        """All that the journal said so far."""
        with self._hearing:
            self._heard += [Heard(*each) for each in self.ask(f"heard {len(self._heard)}")["heard"]]
            return list(self._heard)


class Asker:
    """Asks `status`, who holds which lane and what is committed, as long as it runs."""

    def __init__(self, rig: "Rig") -> None:
        self._rig = rig
        self.looks: list[Look] = []
        self.holders: list[list[Holder]] = []
        self.committed: list[dict[str, int]] = []
        self.ray = threading.Lock()  # whoever takes Ray away must not be asked anything meanwhile
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(ask, pause_s), daemon=True)
            for ask, pause_s in ((self._look, 0.5), (self._read, 1.0))
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, ask: Callable[[], None], pause_s: float) -> None:
        while not self._closed.wait(pause_s):
            ask()

    def _look(self) -> None:
        with self.ray:
            self._ask()

    def _ask(self) -> None:
        now = time.monotonic()
        try:
            handle = runtime.supervisor()
            verdict = runtime.call(handle, "snapshot", timeout_s=5.0)["verdict"]
            posts = runtime.call(handle, "posts", timeout_s=5.0)
        except RaywatchError as error:
            self.looks.append(Look(now, "unreachable", error.message))
            return
        self.looks.append(Look(now, verdict["state"], verdict["words"]))
        self.holders.append(
            [
                Holder(lane.lane, f"{report.name}/{report.epoch}", lane.state,
                       sum(lane.committed.values()))
                for name, post in sorted(posts.items())
                if ".owner-" in name
                for report in (post["report"],)
                if not report.parked
                for lane in report.lanes
            ]
        )  # fmt: skip

    def _read(self) -> None:
        """What is committed, as a lane would be told: without what is not settled yet."""
        try:
            reading = self._rig.committed()
        except (RaywatchError, AssertionError):
            return  # brokers are away
        self.committed.append({f"{self._rig.topic}/{p}": o for p, o in reading.items()})

    def close(self) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(30.0)


class FeedProcess(Helper):
    """feed.py: it writes records and notes them."""

    def __init__(self, bootstrap: str, topic: str, file: Path, rate: float, seed: int) -> None:
        super().__init__("feed.py", bootstrap, topic, file, PARTITIONS, rate, seed)

    def say(self, words: str) -> list[int]:
        """Records of each partition that were written so far."""
        return self.ask(words)["sent"]


class Rig:
    """All of it."""

    def __init__(
        self, folder: Path, *, rate: float, seed: int, model: str, standby: bool = False
    ) -> None:
        self.folder, self.rate, self.seed, self.standby = folder, rate, seed, standby
        kafka = tool("kafka")
        settings = {"log.retention.check.interval.ms": "3600000"}
        self.brokers: Any = kafka.KafkaCluster(
            folder / "kafka", port=kafka.free_port(20_000 + os.getpid() % 300 * 32),
            brokers=REPLICAS, settings=settings,
        )  # fmt: skip
        self.disk, self.clock = Disk(folder), WallClock(folder)
        self.model = model
        self.topic, self.file = "events", folder / "records.jsonl"
        self.deleted: dict[int, list[tuple[int, int]]] = {}  # partition -> records never scored
        self.partitions = PARTITIONS
        self.feed: FeedProcess
        self.service: Service
        self.watcher: Watcher
        self.asker: Asker
        self._admin: Any = None
        self._log = KafkaLog(self.brokers.bootstrap)
        self._sources: list[Source] = []
        self._looking, self._looked = threading.Lock(), 0

    def start(self) -> None:
        """Everything, and the feed at its rate."""
        self.brokers.start()
        self.start_ray()
        self.settings = self._settings()
        self.service = self._with_topic()
        self.service.start()
        spec = self.service.spec
        self.watcher = Watcher(self.brokers.bootstrap, spec.alerts, spec.audit)
        self.asker = Asker(self)
        self.feed = FeedProcess(self.brokers.bootstrap, self.topic, self.file, self.rate, self.seed)

    def start_ray(self) -> None:
        """Ray on this machine, with a clock that can jump."""
        self.clock.preload()
        try:
            before = os.environ.get("PYTHONPATH", "")
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (before, str(HERE.parent))))
            runtime.start_local(64)
        finally:
            self.clock.unload()

    def kill_ray(self) -> None:
        """kill -9 of Ray and of all that it runs; we are alone in this process namespace."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode(errors="replace")
                if re.match(r"ray::|\S*/(raylet|gcs_server)\b", words):
                    os.kill(int(folder.name), signal.SIGKILL)
        runtime.leave()

    def lose_store(self) -> None:
        """Snapshots, artifacts and all else that was stored."""
        shutil.rmtree(self.disk.path / "state")

    def _settings(self) -> Any:
        return config(
            self.brokers.bootstrap, self.topic, self.disk.path, name="chaos", model=self.model,
            lanes=LANES, snapshot_s=2, lost="continue", batch_records=4_000,
            alert={"warmup": 150, "probability": 3e-3, "quiet": 12},
            pool={"min": SCORERS, "max": SCORERS, "cpus": 1.0},
            owners={"count": OWNERS, "standby": self.standby},
        )  # fmt: skip

    def _with_topic(self) -> Service:
        log = KafkaLog(self.brokers.bootstrap)
        try:
            until(lambda: log.create(self.topic, PARTITIONS) is None, 60.0, "a topic")
        finally:
            log.close()
        return Service(self.settings)

    # ---- who is there ------------------------------------------------------------------------

    def lanes(self) -> dict[str, list[int]]:
        """Partitions of each lane."""
        lanes = self.service.deployment.detections[0].lanes
        return {f"lane {n}": [p.number for p in partitions] for n, partitions in lanes.items()}

    def alive(self, kind: str) -> list[tuple[str, int, list[str]]]:
        """Scorers, or owners that hold lanes, whose process is there: name, pid, lanes."""
        found: list[tuple[str, int, list[str]]] = []

        def look() -> bool:
            posts = runtime.call(runtime.supervisor(), "posts", timeout_s=10.0)
            found.clear()
            for name, post in sorted(posts.items()):
                parked = getattr(post["report"], "parked", False)
                if f".{kind}-" in name and not parked and running(post["pid"]):
                    mine = getattr(post["report"], "lanes", ())
                    found.append((name, post["pid"], [f"lane {x.lane}" for x in mine]))
            return bool(found)

        until(look, 60.0, f"one {kind} that lives")
        return found

    def at_rest(self) -> bool:
        """Whether every lane works, and scorers and those who stand by are as many as wanted."""
        posts = runtime.call(runtime.supervisor(), "posts", timeout_s=10.0)
        reports = [post["report"] for post in posts.values() if post["report"] is not None]
        owners = [report for report in reports if hasattr(report, "lanes")]
        parked = sum(report.parked for report in owners)
        states = [lane.state for each in owners if not each.parked for lane in each.lanes]
        return (
            states == ["running"] * LANES
            and len(reports) - len(owners) == SCORERS
            and parked == (OWNERS if self.standby else 0)
        )

    def tell(self) -> None:
        """What everybody says, to stderr: for who has to find out why lanes stay silent."""
        for heard in self.watcher.heard()[-15:]:
            print(f"  journal {heard.at_s:.1f}: {heard.words}", file=sys.stderr)
        for look in self.asker.looks[-3:]:
            print(f"  status {look.at_s:.1f}: {look.state}: {look.words}", file=sys.stderr)
        try:
            posts = runtime.call(runtime.supervisor(), "posts", timeout_s=10.0)
        except RaywatchError as error:
            print(f"  {error.message}", file=sys.stderr)
            return
        for name, post in sorted(posts.items()):
            for lane in getattr(post["report"], "lanes", ()):
                said = f"{lane.state}: {lane.words}, {lane.records} records, {lane.commits} commits"
                print(f"  {name} lane {lane.lane} {said}", file=sys.stderr)

    def committed(self) -> dict[int, int]:
        """Committed offsets, as a lane is told them: durable, and not older than the newest.

        `Log.committed` answers at once; a coordinator that just took over, or came back after all
        were killed, shows offsets then that are seconds old.
        """
        with self._looking:  # one client for all: to make and end one each second is no load test
            if self._looked != self.partitions:
                self._looked = self.partitions
                places = [Partition(self.topic, n) for n in range(self.partitions)]
                self._sources.append(self._log.source("raywatch.chaos", places))
            return {p.number: c.offset for p, c in self._sources[-1].committed().items()}

    # ---- brokers -----------------------------------------------------------------------------

    def admin(self) -> Any:
        """An administrator's client."""
        if self._admin is None:
            self._admin = AdminClient(
                {"bootstrap.servers": self.brokers.bootstrap, "log_level": 0,
                 "reconnect.backoff.max.ms": 250}
            )  # fmt: skip
        return self._admin

    def leaders(self, topic: str) -> dict[int, int]:
        """partition -> broker that leads it."""
        found = self.admin().list_topics(topic, timeout=10.0).topics[topic].partitions
        return {number: each.leader for number, each in found.items()}

    def whole(self) -> bool:
        """Whether every replica of every partition is in sync."""
        found = self.admin().list_topics(timeout=5.0)
        return len(found.brokers) == REPLICAS and all(
            len(each.isrs) == len(each.replicas)
            for topic in found.topics.values()
            for each in topic.partitions.values()
        )

    def delete(self, below: Mapping[int, int]) -> None:
        """Delete the records of partitions below an offset."""
        asked = [ck.TopicPartition(self.topic, p, o) for p, o in below.items() if o > 0]

        def done() -> bool:
            answers = self.admin().delete_records(asked, request_timeout=10.0)
            return all(f.result(15.0).low_watermark >= 0 for f in answers.values())

        until(done, 60.0, "records deleted")

    def snapshots(self) -> dict[int, int]:
        """Where the newest snapshot of each partition stands."""
        store, found = open_store(str(self.disk.path / "state")), dict[int, int]()
        for lane in range(LANES):
            names = store.names(f"snapshots/chaos/{lane:04d}/")
            blob = store.get(names[-1]) if names else None
            snapshot = decode(blob) if blob else None
            if snapshot is not None:
                found |= {p.number: o for p, o in snapshot.offsets.items()}
        return found

    def close(self) -> None:
        """Take all of it away."""
        for part in ("feed", "asker", "watcher"):
            if hasattr(self, part):
                getattr(self, part).close()
        if hasattr(self, "service"):
            self.service.stop()
        runtime.leave()
        for node in self.brokers.nodes:
            self.brokers.kill(node)
        self.disk.close()


def running(pid: int) -> bool:
    """Whether a process is there, not a zombie and not stopped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X", "T", "t")
