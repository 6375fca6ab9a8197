"""Goal: the alerts of a stream are the same, once each, whatever dies or freezes on the way.

Method: 500,000 records in real Kafka, read by the whole service on real Ray while random owners and
scorers are killed with -9; then the same records by a service that nobody hurts, and as a file
through `backtest`. Alerts are read read_committed and compared by everything they say. Processes
are frozen (SIGSTOP) on smaller streams, and asked for their own words once they are thawed.
"""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lanes import alerts
from service import Service, config, ray_local, until

from raywatch.actors import runtime as actors
from raywatch.actors.backtest import backtest
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.owner import OwnerReport, Roster
from raywatch.actors.ports import Log, Out
from raywatch.actors.store import open_store
from raywatch.cluster import runtime
from raywatch.cluster.deployment import artifact_name
from raywatch.models.registry import build, shipped
from raywatch.models.synthetic import Stream, generate, to_json

PARTITIONS = 12


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for this file: each service brings its own actors and takes them with it."""
    with ray_local():
        yield


class Telemetry:
    """Labelled records in a topic of their own."""

    def __init__(self, log: Log, topic: str, *, keys: int, rows: int, seed: int) -> None:
        source = Stream(keys=keys, seed=seed, quiet=400, injections=("spike", "level", "variance"))
        table = generate(source, rows, injections_per_kind=max(4, keys // 10))
        names = [name.encode() for name in table.names]
        self.topic, self._log = topic, log
        self.values = to_json(table)
        self._out = [Out(topic, names[k], v) for k, v in zip(table.key, self.values, strict=True)]
        log.create(topic, PARTITIONS)

    def __len__(self) -> int:
        return len(self._out)

    def write(self, begin: float, end: float) -> None:
        """Write a share of the stream, from `begin` to `end` (0..1)."""
        size = len(self._out)
        self._log.write(self._out[round(begin * size) : round(end * size)])


def said(log: Log, topic: str) -> Counter[str]:
    """Every alert with all it says, and how often."""
    return Counter(json.dumps(a, sort_keys=True) for a in alerts(log, topic))


def placeless(found: Counter[str]) -> Counter[str]:
    """The same without what a file cannot know: offsets, and that it was live."""
    total: Counter[str] = Counter()
    for text, times in found.items():
        alert = json.loads(text)
        total[json.dumps({k: alert[k] for k in alert.keys() - {"lineage", "run_kind"}},
                         sort_keys=True)] += times  # fmt: skip
    return total


def filed(service: Service, telemetry: Telemetry, model: str, folder: Path) -> Counter[str]:
    """What `backtest` says of the same records."""
    path, out = folder / "records.jsonl", folder / "alerts.jsonl"
    path.write_bytes(b"\n".join(telemetry.values) + b"\n")
    scorer = build(shipped(model))
    backtest(service.spec, scorer, path, folder / "o.parquet", alerts=out, partitions=PARTITIONS)
    return placeless(Counter(line.decode() for line in out.read_bytes().splitlines()))


def assert_same(one: Counter[str], other: Counter[str]) -> None:
    """Equal as sets with counts; says where not."""
    missing, more = list((other - one).items()), list((one - other).items())
    assert not missing, f"{len(missing)} of {sum(other.values())} are missing: {missing[:2]}"
    assert not more, f"{len(more)} too many: {more[:2]}"
    assert max(one.values()) == 1, "an alert was said twice, by both"


def living(service: Service) -> list[tuple[str, int]]:
    """Owners and scorers that reported and whose processes are there."""
    posts = service.posts()
    return sorted((n, p["pid"]) for n, p in posts.items() if Path(f"/proc/{p['pid']}").is_dir())


def kill_one(service: Service, chance: random.Random, killed: set[int]) -> str:
    """Kill one process that was not killed before, as soon as there is one."""
    end = time.monotonic() + 60.0
    while True:
        there = [(name, pid) for name, pid in living(service) if pid not in killed]
        if there:
            name, pid = chance.choice(there)
            service.signal(pid, signal.SIGKILL)
            killed.add(pid)
            return name
        assert time.monotonic() < end, "nobody is left to kill, and nobody comes"
        time.sleep(0.05)


@pytest.mark.kafka
@pytest.mark.ray
@pytest.mark.timeout(540)
def test_twenty_kills_of_owners_and_scorers_change_no_alert(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name = topic("kills").lower()
    log = KafkaLog(kafka.bootstrap)
    telemetry = Telemetry(log, topic("events"), keys=250, rows=2_000, seed=5)
    assert len(telemetry) == 500_000
    settings = config(
        kafka.bootstrap, telemetry.topic, tmp_path, name=name, model="lagbank",
        snapshot_s=2, batch_records=3_000,
    )  # fmt: skip
    chance, killed, victims, waiting = random.Random(17), set[int](), list[str](), list[int]()
    service = Service(settings)
    try:
        service.start()
        began = time.monotonic()
        for step in range(20):
            telemetry.write(step / 20, (step + 1) / 20)
            time.sleep(chance.uniform(0.0, 1.5))
            waiting.append(service.lag())
            victims.append(kill_one(service, chance, killed))
        service.drained(240.0)
        took_s = time.monotonic() - began
        hurt = said(log, service.spec.alerts)
        audited = [a for a in alerts(log, service.spec.audit) if a.get("what") == "started"]
        snapshots = len(open_store(service.deployment.store).names("snapshots/"))
    finally:
        service.stop()
    kinds = Counter(victim.partition(".")[2].partition("-")[0] for victim in victims)
    print(f"{len(telemetry)} records, {kinds} killed, {sum(w > 0 for w in waiting)} of them with "
          f"records waiting, drained after {took_s:.0f} s, {sum(hurt.values())} alerts, "
          f"{snapshots} snapshots")  # fmt: skip
    assert kinds.total() == 20
    assert min(kinds["owner"], kinds["scorer"]) >= 5
    # Each partition was begun once: whoever came later found what was committed.
    assert sorted(a["partition"] for a in audited) == list(range(PARTITIONS))
    assert sum(hurt.values()) > 100

    calm = Service(_elsewhere(settings, name, tmp_path))
    try:
        calm.start()
        calm.drained(240.0)
        undisturbed = said(log, calm.spec.alerts)
    finally:
        calm.stop()
        log.close()
    assert_same(hurt, undisturbed)
    assert_same(placeless(hurt), filed(service, telemetry, "lagbank", tmp_path))


def _elsewhere(settings: Any, name: str, folder: Path) -> Any:
    """The same detector with a group, topics and a store of its own."""
    detector = settings.detectors[0].model_copy(
        update={"group": f"{name}.calm", "alerts": f"{name}.calm.alerts",
                "rejects": f"{name}.calm.rejects"}
    )  # fmt: skip
    return settings.model_copy(
        update={"detectors": (detector,), "audit": f"{name}.calm.audit",
                "store": str(folder / "calm")}
    )  # fmt: skip


@pytest.mark.kafka
@pytest.mark.ray
def test_an_owner_and_a_scorer_that_freeze_are_replaced_and_nothing_is_repeated(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    log = KafkaLog(kafka.bootstrap)
    telemetry = Telemetry(log, topic("events"), keys=80, rows=1_200, seed=7)
    name = topic("frozen").lower()
    service = Service(config(kafka.bootstrap, telemetry.topic, tmp_path, name=name, snapshot_s=2))
    frozen: list[int] = []
    try:
        service.start()
        telemetry.write(0.0, 0.3)
        owner, pid = sorted(service.pids("owner").items())[0]
        scorer, other = sorted(service.pids("scorer").items())[0]
        for each in (pid, other):
            service.signal(each, signal.SIGSTOP)
            frozen.append(each)
        telemetry.write(0.3, 0.6)
        successor = f"{owner.rpartition('.g')[0]}.g2"
        until(lambda: successor in service.pids("owner"), 60.0)
        until(lambda: scorer not in service.pids("scorer"), 60.0)
        service.drained()  # the successor committed what the frozen one held
        # Ended once others do their work: a frozen process would not hear a word, and not wake.
        until(lambda: not any(Path(f"/proc/{each}").exists() for each in frozen), 60.0)
        journal = service.journal()
        telemetry.write(0.6, 1.0)
        service.drained()
        got = said(log, service.spec.alerts)
    finally:
        for each in frozen:
            if Path(f"/proc/{each}").exists():
                service.signal(each, signal.SIGKILL)
        service.stop()
        log.close()
    assert any(f"owner {owner} is gone (it did not answer" in words for words in journal), journal
    assert any(f"scorer {scorer} is gone (it did not answer" in words for words in journal), journal
    assert_same(placeless(got), filed(service, telemetry, "robustz", tmp_path))


@pytest.mark.kafka
@pytest.mark.ray
def test_a_thawed_owner_says_itself_that_it_was_fenced(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    """Two owners of the same lanes and nobody who ends either of them: brokers decide alone."""
    log = KafkaLog(kafka.bootstrap)
    telemetry = Telemetry(log, topic("events"), keys=80, rows=1_200, seed=8)
    name = topic("thawed").lower()
    service = Service(config(kafka.bootstrap, telemetry.topic, tmp_path, name=name, snapshot_s=2))
    pair = Pair(service)
    try:
        first = pair.owner("first")
        telemetry.write(0.0, 0.3)
        until(lambda: service.lag() < 0.2 * len(telemetry), 60.0)
        telemetry.write(0.3, 0.4)
        service.signal(first.pid, signal.SIGSTOP)
        second = pair.owner("second")
        telemetry.write(0.4, 0.7)
        service.drained()
        service.signal(first.pid, signal.SIGCONT)
        telemetry.write(0.7, 1.0)
        until(lambda: {lane.state for lane in pair.ask("first").lanes} == {"fenced"}, 60.0)
        service.drained()
        old, new = pair.ask("first"), pair.ask("second")
        got = said(log, service.spec.alerts)
    finally:
        pair.end()
        service.stop()
        log.close()
    assert (old.pid, new.pid) == (first.pid, second.pid)
    assert old.epoch != new.epoch
    assert all("has another holder" in lane.words for lane in old.lanes), old.lanes
    assert {lane.state for lane in new.lanes} == {"running"}
    assert all(lane.opened == 1 for lane in new.lanes), "the old one took a lane back"
    assert sum(lane.alerts for lane in new.lanes) < sum(got.values()), "both said something"
    assert_same(placeless(got), filed(service, telemetry, "robustz", tmp_path))


class Pair:
    """Owners of all lanes of a deployment that nobody supervises, and a scorer for them."""

    def __init__(self, service: Service) -> None:
        self._deployment, self._spec = service.deployment, service.spec
        self._lanes = service.deployment.detections[0].lanes
        version = service.deployment.detections[0].version
        blob = open_store(self._deployment.store).get(artifact_name(version))
        assert blob is not None
        name = f"{self._spec.name}.scorer-1"
        scorer = actors.start_scorer(name, blob=blob, device="cpu", cpus=1.0)
        self._handles: dict[str, Any] = {name: scorer}
        model = runtime.call(scorer, "report", timeout_s=90.0).model
        roster = Roster(1, {version: model}, dict.fromkeys(self._lanes, version))
        self._pool = actors.Pool(roster, ((name, version, scorer),))

    def owner(self, name: str) -> OwnerReport:
        """Start an owner of all lanes."""
        self._handles[name] = actors.start_owner(
            f"{self._spec.name}.{name}", spec=self._spec, lanes=self._lanes,
            log=self._deployment.log, store=self._deployment.store, cpus=0.5,
        )  # fmt: skip
        runtime.call(self._handles[name], "enlist", self._pool, timeout_s=90.0)
        return self.ask(name)

    def ask(self, name: str) -> OwnerReport:
        return runtime.call(self._handles[name], "report", timeout_s=30.0)

    def end(self) -> None:
        for handle in self._handles.values():
            runtime.end(handle)


@pytest.mark.kafka
@pytest.mark.ray
def test_without_any_scorer_lanes_wait_and_then_go_on(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    log = KafkaLog(kafka.bootstrap)
    telemetry = Telemetry(log, topic("events"), keys=60, rows=1_200, seed=9)
    name = topic("alone").lower()
    service = Service(config(kafka.bootstrap, telemetry.topic, tmp_path, name=name))
    try:
        service.start()
        telemetry.write(0.0, 0.3)
        service.drained()
        before = service.pids("scorer")
        assert len(before) == 2
        for pid in before.values():
            service.signal(pid)
        telemetry.write(0.3, 1.0)
        held = service.lag()
        service.drained()
        got = said(log, service.spec.alerts)
        after = service.pids("scorer")
    finally:
        service.stop()
        log.close()
    assert held > 0
    assert not set(before) & set(after)
    assert_same(placeless(got), filed(service, telemetry, "robustz", tmp_path))
