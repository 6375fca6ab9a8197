"""Goal: a short chaos run holds what the long one (`make chaos`) holds, and would notice if not.

Method: `tests/chaos/run.py` as it is run by hand, with a handful of faults of all sorts on three
real brokers; its verdict, and what it wrote down. The parts on which its verdict stands are tried
by themselves: that the clock does jump and the disk is full, where Kafka puts a coordinator, and
that a feed's notes say at which offset each record lies. Needs root: without, it says so.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest
from chaos import feed
from chaos.doing import coordinator_partition, java_hash
from chaos.rig import Disk, FeedProcess, WallClock
from confluent_kafka.admin import AdminClient, NewTopic

RUN = Path(__file__).resolve().parent / "chaos" / "run.py"
SHORT = (
    "owner-kill", "scorer-kill", "broker-leader", "owner-freeze", "store-full",
    "supervisor-kill", "clock-jump", "offsets-expired",
)  # fmt: skip
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason=f"namespaces and mounts need root, this is uid {os.geteuid()}"
)


@as_root
@pytest.mark.kafka
@pytest.mark.ray
@pytest.mark.timeout(400)  # alone about 80 s
def test_eight_faults_change_no_alert(tmp_path: Path) -> None:
    out = tmp_path / "chaos.json"
    words = ["--faults", "8", "--minutes", "4", "--seed", "5", "--rate", "5000", "--json", out]
    done = subprocess.run(
        [sys.executable, RUN, *map(str, words), "--only", *SHORT],
        capture_output=True, text=True, timeout=390, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-8_000:]
    found = json.loads(out.read_text())
    assert Counter(s["fault"] for s in found["stories"]) == Counter(SHORT)
    assert found["wrong"] == []
    assert found["alerts"] > 300, found["alerts"]
    assert found["rate"] > 4_500, found["rate"]
    assert found["readings_of_offsets"] > 10
    assert all(s["back_s"] is not None for s in found["stories"])
    # The short way of saying it: what was hurt fell silent, and was told of.
    killed = next(s for s in found["stories"] if s["fault"] == "owner-kill")
    assert 0 < len(killed["hurt"]) < 4
    assert any("owner" in words for words in killed["meanwhile"]["journal"])


# ---- what the verdict stands on ----------------------------------------------------------------


def test_the_clock_of_a_process_jumps_and_no_other(tmp_path: Path) -> None:
    clock = WallClock(tmp_path)
    assert abs(clock.proof()) < 2.0
    clock.jump(-3_600.0)
    assert abs(clock.proof() + 3_600.0) < 5.0
    clock.jump(3_600.0)
    assert abs(clock.proof() - 3_600.0) < 5.0
    clock.jump(0.0)
    assert abs(clock.proof()) < 2.0


SLOW = """
import sys, threading, time
import ray
from chaos.rig import WallClock
from raywatch.actors import runtime as actors
from raywatch.cluster import runtime

class Slow:
    def wait(self):
        time.sleep(600.0)

def jump(ahead):
    with open(sys.argv[1], "r+b") as clock:
        clock.write(int(ahead * 1e9).to_bytes(8, sys.byteorder, signed=True))

runtime.start_local(4)
slow = ray.remote(Slow).remote()
jump(3600)
threading.Timer(0.5, jump, (0,)).start()
began = time.monotonic()
try:
    actors.answer(slow.wait.remote(), 2.0)
except TimeoutError:
    print(time.monotonic() - began)
runtime.leave()
"""


@pytest.mark.ray
@pytest.mark.timeout(90)
def test_a_call_is_given_up_in_time_while_the_clock_is_set_back(tmp_path: Path) -> None:
    WallClock(tmp_path)  # compiles it
    environment = {
        "LD_PRELOAD": str(tmp_path / "clock.so"),
        "RAYWATCH_CLOCK": str(tmp_path / "clock"),
        "PYTHONPATH": str(RUN.parent.parent),
    }
    said = subprocess.run(
        [sys.executable, "-c", SLOW, str(tmp_path / "clock")],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=80, check=True,
    ).stdout  # fmt: skip
    assert 1.9 < float(said.split()[-1]) < 20.0


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    try:
        yield disk
    finally:
        disk.close()


@as_root
def test_the_disk_is_full_and_has_room_again(mounted: Disk) -> None:
    mounted.fill()
    with pytest.raises(OSError, match="No space left"):
        (mounted.path / "a").write_bytes(bytes(4_096))
    mounted.empty()
    (mounted.path / "a").write_bytes(bytes(4_096))


@as_root
def test_a_write_hangs_for_as_long_as_the_disk_is_frozen(mounted: Disk) -> None:
    mounted.freeze()
    began = time.monotonic()
    writer = subprocess.Popen(["touch", str(mounted.path / "a")])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(1.0)
    finally:
        mounted.thaw()
    assert writer.wait(10.0) == 0
    assert time.monotonic() - began > 1.0


@pytest.mark.parametrize(
    ("text", "code"),
    [("", 0), ("a", 97), ("hello", 99_162_322), ("polygenelubricants", -(2**31))],
)
def test_strings_hash_as_in_java(text: str, code: int) -> None:
    assert java_hash(text) == code


@pytest.mark.kafka
def test_the_coordinator_of_a_lane_is_where_kafka_says(kafka: Any) -> None:
    for lane in ("raywatch.chaos.0", "raywatch.hosts.17", "polygenelubricants"):
        producer = ck.Producer(
            {"bootstrap.servers": kafka.bootstrap, "transactional.id": lane, "log_level": 0}
        )
        producer.init_transactions(60.0)
    said = kafka.tool("transactions", "list")
    count = len(
        AdminClient({"bootstrap.servers": kafka.bootstrap})
        .list_topics("__transaction_state", timeout=20)
        .topics["__transaction_state"]
        .partitions
    )
    assert count == 4
    home = Path(kafka.folder) / "1" / "server.log"
    text = home.read_text()
    for lane in ("raywatch.chaos.0", "raywatch.hosts.17", "polygenelubricants"):
        assert lane in said
        where = coordinator_partition(lane, count)
        assert f"Initialized transactionalId {lane} with" in text
        assert f"on partition __transaction_state-{where} " in next(
            line for line in text.splitlines() if f"transactionalId {lane} with" in line
        )


@pytest.mark.kafka
def test_a_feeds_notes_say_where_each_record_lies(kafka: Any, topic: Any, tmp_path: Path) -> None:
    name, file = topic("fed"), tmp_path / "records.jsonl"
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.create_topics([NewTopic(name, 12, 1)])[name].result(20.0)
    process = FeedProcess(kafka.bootstrap, name, file, 4_000.0, 1)
    try:
        time.sleep(1.0)
        paused = process.say("pause")
        assert process.say("mark") == paused
        process.say("go")
        time.sleep(0.5)
        sent = process.say("stop")
    finally:
        process.close()
    assert sum(sent) > sum(paused) > 1_000
    lines = file.read_bytes().splitlines()
    assert len(lines) == sum(sent)
    wanted: dict[int, list[bytes]] = {}
    for line in lines:
        wanted.setdefault(feed.place(json.loads(line)["host"], 12), []).append(line)
    consumer = ck.Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": name})
    consumer.assign([ck.TopicPartition(name, p, 0) for p in range(12)])
    found: dict[int, list[bytes]] = {}
    until = time.monotonic() + 30.0
    while sum(map(len, found.values())) < len(lines) and time.monotonic() < until:
        for message in consumer.consume(5_000, 0.5):
            assert message.offset() == len(found.setdefault(message.partition(), []))
            found[message.partition()].append(message.value())
    consumer.close()
    assert found == wanted
