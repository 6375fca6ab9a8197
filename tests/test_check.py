"""Goal: `check`, `lag` and the tails say what the log says, and what it does not say is unknown.

Method: a small log that keeps its records in lists and answers what the test wants (the Log port
has an embedded and a Kafka implementation with tests of their own: here it only has to answer).
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raywatch.actors.names import Names
from raywatch.actors.ports import Bounds, Committed, Fetched, Out, Partition
from raywatch.cluster.commands import alerts, rejects
from raywatch.cluster.commands.check import examine, exit_code
from raywatch.cluster.commands.lag import measure
from raywatch.cluster.config import Config, load
from raywatch.cluster.connect import open_log, sample_fields
from raywatch.cluster.tail import tail
from raywatch.models.errors import ConfigError, Refused, Unreachable

LOCAL = Path(__file__).parent.parent / "configs" / "local.yaml"
ROOT = LOCAL.parent.parent
SCRIPT = Path(sys.executable).parent / "raywatch"


def raywatch(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *words], capture_output=True, text=True, timeout=60, check=False)


@dataclass
class ListLog:
    """A Log whose answers are set by the test: the port's shape, kept in lists."""

    sizes: dict[str, int] = field(default_factory=lambda: {"events": 2})
    ranges: dict[Partition, Bounds] = field(default_factory=dict)
    offsets: dict[Partition, Committed] = field(default_factory=dict)
    living: list[str] = field(default_factory=list)
    records: dict[Partition, list[Out]] = field(default_factory=dict)
    why_not: str | None = None
    silent: bool = False
    closed: int = 0

    def topics(self) -> dict[str, int]:
        if self.silent:
            raise Unreachable("no answer in 10 s", hint="is it up?")
        return self.sizes

    def probe(self) -> str | None:
        return self.why_not

    def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, Bounds]:
        known = {each: Bounds(0, len(self.records.get(each, []))) for each in partitions}
        return {each: self.ranges.get(each, known[each]) for each in partitions}

    def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        return {each: it for each, it in self.offsets.items() if each in partitions}

    def members(self, group: str) -> list[str]:
        return self.living

    def source(
        self, group: str, partitions: Sequence[Partition], *, keys: bool = False
    ) -> "ListSource":
        assert group == ""
        return ListSource(self, list(partitions))

    def sink(self, lane: str, group: str) -> Any:
        raise AssertionError((lane, group))

    def create(self, topic: str, partitions: int, settings: Any = None) -> None:
        raise AssertionError("only looking")

    def write(self, out: Sequence[Out]) -> None:
        raise AssertionError("only looking")

    def close(self) -> None:
        self.closed += 1


@dataclass
class ListSource:
    log: ListLog
    partitions: list[Partition]
    at: dict[Partition, int] = field(default_factory=dict)

    def assign(self, begin: Mapping[Partition, int]) -> None:
        self.at = dict(begin)

    def fetch(self, limit: int, wait_s: float) -> Fetched:
        rows = [
            (self.partitions.index(each), offset, self.log.records[each][offset])
            for each, begin in self.at.items()
            for offset in range(begin, len(self.log.records.get(each, [])))
        ][:limit]
        for index, offset, _ in rows:
            self.at[self.partitions[index]] = offset + 1
        return Fetched(
            np.array([row[0] for row in rows], np.int32),
            np.array([row[1] for row in rows], np.int64),
            np.full(len(rows), 5, np.int64),
            [row[2].value for row in rows],
            [row[2].key for row in rows],
            [row[2].headers for row in rows],
        )

    def position(self) -> dict[Partition, int]:
        return dict(self.at)

    def committed(self) -> dict[Partition, Committed]:
        raise AssertionError("only looking")

    def bounds(self) -> dict[Partition, Bounds]:
        return self.log.bounds(self.partitions)

    def close(self) -> None:
        self.log.closed += 1


E0, E1 = Partition("events", 0), Partition("events", 1)


@pytest.fixture
def config() -> Config:
    return load(LOCAL)


def said_by(config: Config, log: ListLog) -> tuple[int, str]:
    findings = list(examine(config, log))
    return exit_code(findings), "\n".join(f"{it.state} {it.words}" for it in findings)


def test_check_says_what_will_happen_when_all_is_well(config: Config) -> None:
    code, said = said_by(config, ListLog(sizes={"events": 4, "hosts.alerts": 1}))
    assert code == 0
    assert "fail" not in said
    assert "ok hosts: 4 partitions in 4 lanes" in said
    assert "ok hosts: group `raywatch.hosts` begins at the latest record" in said
    assert "ok hosts: hosts.alerts is there" in said
    assert "ok hosts: hosts.rejects, raywatch.audit will be created" in said


@pytest.mark.parametrize(
    ("log", "code", "said"),
    [
        (ListLog(silent=True), 3, "fail no answer in 10 s"),
        (ListLog(sizes={}), 2, "fail topic `events` of detector `hosts` does not exist"),
        (ListLog(living=["them-1"]), 1, "fail hosts: group `raywatch.hosts` has 1 live members"),
        (ListLog(), 0, "warn hosts: 4 lanes for 2 partitions: 2 stay empty"),
        (
            ListLog(why_not="version 0.10"),
            0,
            "warn no transactions, so alerts",
        ),
        (
            ListLog(ranges={E0: Bounds(9, 20)}, offsets={E0: Committed(8)}),
            1,
            "fail hosts: events/0 lost records that were not scored",  # 8 < 9
        ),
        (
            ListLog(ranges={E0: Bounds(9, 20)}, offsets={E0: Committed(9)}),
            0,
            "ok hosts: what `raywatch.hosts` committed is retained",  # 9 is the oldest there is
        ),
        (
            ListLog(ranges={E1: Bounds(0, 20)}, offsets={E1: Committed(21)}),
            1,
            "fail hosts: `raywatch.hosts` committed beyond the end of events/1",
        ),
    ],
)
def test_check_names_what_is_in_the_way(config: Config, log: ListLog, code: int, said: str) -> None:
    found = said_by(config, log)
    assert said in found[1]
    assert found[0] == code


def test_a_broker_that_is_silent_outweighs_what_else_is_wrong(config: Config) -> None:
    class Half(ListLog):
        def members(self, group: str) -> list[str]:
            raise Unreachable("no coordinator")

    code, said = said_by(config, Half(sizes={}))
    assert "topic `events` of detector `hosts` does not exist" in said
    assert code == 3


def test_lag_reads_several_times_and_tells_stalled_from_never_committed(config: Config) -> None:
    log = ListLog(ranges={E0: Bounds(0, 100), E1: Bounds(0, 100)}, offsets={E0: Committed(40)})
    rows = measure(log, config.spec(), 0.2, time.sleep)
    first, second = rows
    assert (first["committed"], first["end"], first["lag_records"]) == (40, 100, 60)
    assert first["state"] == "stalled"
    assert (second["lag_records"], second["state"]) == (None, "unknown")  # unknown is not 0


def test_lag_of_a_group_that_is_done_is_ok(config: Config) -> None:
    done = {E0: Committed(100), E1: Committed(100)}
    log = ListLog(ranges={E0: Bounds(0, 100), E1: Bounds(0, 100)}, offsets=done)
    assert {row["state"] for row in measure(log, config.spec(), 0.1, time.sleep)} == {"ok"}


def a_reject(offset: int) -> Out:
    headers = (
        ("reason", b"not JSON"),
        ("detail", b"at byte 3"),
        ("topic", b"events"),
        ("partition", b"1"),
        ("offset", str(offset).encode()),
        ("size", b"4"),
    )
    return Out("hosts.rejects", b"events/1", b"\xff\n{x", headers)


def test_tail_ends_where_the_topic_ended_or_at_its_limit() -> None:
    log = ListLog(sizes={"t": 2}, records={Partition("t", 1): [a_reject(n) for n in range(5)]})
    assert [it.offset for it in tail(log, "t", begin="earliest", follow=False)] == [0, 1, 2, 3, 4]
    assert len(list(tail(log, "t", begin="earliest", follow=False, limit=3))) == 3
    assert list(tail(log, "t", begin="latest", follow=False)) == []
    assert log.closed == 3  # a source each


def test_tail_follows_until_its_limit() -> None:
    log = ListLog(sizes={"t": 1}, records={Partition("t", 0): [a_reject(0)]})
    entries = tail(log, "t", begin="earliest", follow=True, limit=2)
    assert next(entries).offset == 0
    log.records[Partition("t", 0)].append(a_reject(1))
    assert next(entries).offset == 1
    assert next(entries, None) is None


def test_tail_of_a_topic_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="there is no topic `t` yet"):
        list(tail(ListLog(), "t", begin="earliest", follow=False))


def test_a_reject_says_reason_place_and_first_bytes() -> None:
    log = ListLog(sizes={"t": 1}, records={Partition("t", 0): [a_reject(17)]})
    (entry,) = tail(log, "t", begin="earliest", follow=False)
    found = rejects.described(entry)
    assert rejects.sentence(found) == "not JSON  events/1@17  at byte 3  \\xff\\n{x"
    assert (found["partition"], found["offset"], found["size"]) == (1, 17, 4)


def test_an_alert_that_is_no_json_is_shown_and_not_dropped() -> None:
    assert alerts.sentence(alerts.parsed(b"oh no")) == "oh no"
    found = {"id": "a1", "state": "open", "detector": "d", "key": "k", "words": "high", "at_ms": 0}
    line = "1970-01-01 00:00:00Z  open  d  k  high  a1"
    assert alerts.sentence(alerts.parsed(json.dumps(found).encode())) == line
    assert alerts.sentence({**found, "run_kind": "drill"}) == f"{line}  (drill)"
    assert alerts.moment(0) == "1970-01-01 00:00:00Z"
    assert alerts.moment(10**18) == f"{10**18} ms"


def test_fields_are_learned_from_the_newest_records(config: Config) -> None:
    values = [b'{"host": "a", "cpu": 1, "up": true}', b'{"mem": 2.5}', b"[", b"3"]
    log = ListLog(records={E1: [Out("events", b"", value) for value in values]})
    assert sample_fields(log, config.detectors[0]) == Names(("cpu", "mem"))
    assert sample_fields(ListLog(), config.detectors[0]) == Names(())


def test_fields_inside_of_objects_are_learned_for_patterns_with_a_dot(tmp_path: Path) -> None:
    values = [
        b'{"host": {"name": "a", "n": 1}, "cpu": {"user": {"pct": 1}, "idle": {"pct": 2.5}}}',
        b'{"host": {"name": "b"}, "cpu": {"idle": {"pct": 3, "up": true}, "all": [1]}, "load": 1}',
    ]
    log = ListLog(records={E1: [Out("events", b"", value) for value in values]})
    for pattern, found in (
        ("cpu.*", ("cpu.idle.pct", "cpu.user.pct")), ("*", ("load",)), ("load", ("load",)),
        ("*.n", ("host.n",)),
    ):  # fmt: skip
        text = LOCAL.read_text().replace("key: host", "key: host.name").replace("[cpu, mem]", "X")
        (tmp_path / "it.yaml").write_text(text.replace("X", f"['{pattern}']"))
        config = load(tmp_path / "it.yaml")
        names = sample_fields(log, config.detectors[0])
        assert names == Names(("load",), ("cpu.idle.pct", "cpu.user.pct", "host.n"))
        assert config.spec("hosts", names).record.values == found
    (tmp_path / "it.yaml").write_text(text.replace("X", "['pc*']"))
    with pytest.raises(ConfigError, match=r"no column `pc\*`") as caught:
        load(tmp_path / "it.yaml").spec("hosts", names)
    assert "`cpu.idle.pct`" in caught.value.hint


def test_an_embedded_log_cannot_be_reached_from_outside() -> None:
    with pytest.raises(ConfigError, match="nobody else can reach it"):
        open_log(load(ROOT / "configs" / "demo.yaml"))


# ---- against real brokers -------------------------------------------------------------------


@pytest.mark.kafka
def test_check_lag_and_tails_work_against_real_brokers(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    from raywatch.actors.kafka import KafkaLog

    events, path = topic("events"), tmp_path / "it.yaml"
    name = topic("hosts")
    path.write_text(
        LOCAL.read_text()
        .replace("127.0.0.1:9092", kafka.bootstrap)
        .replace("[events]", f"[{events}]")
        .replace("name: hosts", f"name: {name}\n    lanes: 2")
    )
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 2)
    log.create(f"{name}.rejects", 1)
    log.create(f"{name}.alerts", 1)
    log.write([Out(events, b"a", b'{"host": "a", "cpu": 1.5, "mem": 2}')])
    headers = (("reason", b"not JSON"), ("topic", events.encode()), ("offset", b"7"))
    log.write([Out(f"{name}.rejects", b"k", b"{x", headers)])
    log.write([Out(f"{name}.alerts", b"a", b'{"id": "a1", "key": "a", "at_ms": 0}')])
    try:
        assert sample_fields(log, load(path).detectors[0]) == Names(("cpu", "mem"))
    finally:
        log.close()

    ran = raywatch("check", str(path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "✓ transactions work: exactly once" in ran.stdout
    assert f"✓ {name}: 2 partitions in 2 lanes" in ran.stdout

    ran = raywatch("lag", str(path), "--over", "0.5", "--json")
    rows = json.loads(ran.stdout)["partitions"]
    assert [row["state"] for row in rows] == ["unknown", "unknown"]  # nobody ever committed

    ran = raywatch("alerts", "tail", str(path), "--json")
    found = json.loads(ran.stdout)
    assert (found["id"], found["log"]) == ("a1", {"partition": f"{name}.alerts/0", "offset": 0})

    ran = raywatch("rejects", "tail", str(path), "--json")
    found = json.loads(ran.stdout)
    assert (found["reason"], found["offset"], found["preview"]) == ("not JSON", 7, "{x")
