"""Goal: what an operator gets wrong, or what is not there, ends with a sentence, a hint and the
exit code of its kind, soon, and leaves nothing running.

Method: the `raywatch` script as a subprocess where processes, signals or brokers count, its `main`
in this process elsewhere; dead brokers are a port nobody listens on and one where nobody answers;
real Kafka for topics, groups and retention.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lanes import alerts, lag, make, read_all, running, spec, until

from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.ports import Committed, Out, Partition
from raywatch.cluster import cli

SCRIPT = Path(sys.executable).parent / "raywatch"
BODY = b'{"host": "h1", "ts": 1700000000000, "value": 1.5}'
DEAD_S = 45.0  # A dead broker is reported after about 10 s; the rest is for busy machines.


def written(folder: Path, **detector: Any) -> Path:
    """A config file; `bootstrap` may be among the settings."""
    bootstrap = detector.pop("bootstrap", "127.0.0.1:1")
    entry = {
        "name": "d",
        "topics": ["events"],
        "record": {"key": "host", "time": "ts", "values": ["value"]},
        "model": "robustz",
        **detector,
    }
    path = folder / "it.yaml"
    path.write_text(
        json.dumps(  # JSON is YAML
            {
                "kafka": {"bootstrap": bootstrap},
                "detectors": [entry],
                "store": str(folder / "state"),
                "models": str(folder / "models"),
                "page": {"port": 0},
                "pool": {"min": 1, "max": 1},
            }
        )
    )
    return path


class Said:
    """What a command in this process said, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def raywatch(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def call(*words: str | Path) -> Said:
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err, said.err
        return Said(code, said.out, said.err)

    return call


def started(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SCRIPT, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# ---- brokers --------------------------------------------------------------------------------


def test_a_dead_broker_ends_every_command_with_3_and_its_address(tmp_path: Path) -> None:
    with socket.socket() as deaf:  # accepts, and never answers
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        nobody, silent = tmp_path / "nobody", tmp_path / "silent"
        for folder in (nobody, silent):
            folder.mkdir()
        closed = written(nobody)
        open_ = written(silent, bootstrap=f"127.0.0.1:{deaf.getsockname()[1]}")
        begin = time.monotonic()
        commands = {
            name: started(*words)
            for name, words in {
                "check": ("check", closed),
                "check, no answer": ("check", open_),
                "run": ("run", closed),
                "lag": ("lag", closed),
                "alerts": ("alerts", "tail", closed),
                "rejects": ("rejects", "tail", open_),
            }.items()
        }
        for name, command in commands.items():
            out, err = command.communicate(timeout=DEAD_S * 2)
            assert command.returncode == 3, (name, out, err)
            assert "no Kafka broker answered at `127.0.0.1:" in out + err, (name, out, err)
            assert "Traceback" not in err, (name, err)
        assert time.monotonic() - begin < DEAD_S


@pytest.mark.kafka
def test_a_topic_that_is_not_there_is_said_with_names_that_were_meant(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    from raywatch.actors.kafka import KafkaLog

    events = topic("clicks")
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 1)
    log.close()
    name = topic("d")
    path = written(tmp_path, bootstrap=kafka.bootstrap, topics=[events[:-1] + "x"], name=name)
    for words in (("check", path), ("run", path), ("lag", path)):
        said = raywatch(*words)
        assert said.code == 2, said.err
        assert f"topic `{events[:-1]}x` of detector `{name}` does not exist" in said.out + said.err
        assert f"hint: did you mean `{events}`" in said.out + said.err
    assert not (tmp_path / "state").exists()  # what is refused leaves nothing behind

    said = raywatch("alerts", "tail", path)
    assert (said.code, said.err.split(":")[0]) == (1, "error")
    assert "it is made when the service starts" in said.err


@pytest.mark.kafka
def test_a_group_with_live_members_is_refused_with_1(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    import confluent_kafka as ck

    from raywatch.actors.kafka import KafkaLog

    events, group = topic("events"), topic("group")
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 1)
    member = ck.Consumer(
        {"bootstrap.servers": kafka.bootstrap, "group.id": group, "client.id": "someone-else"}
    )
    path = written(tmp_path, bootstrap=kafka.bootstrap, topics=[events], group=group)
    try:
        member.subscribe([events])

        def joined() -> bool:
            member.poll(0.1)
            return bool(member.assignment())

        until(joined)
        for command in ("check", "run"):
            said = raywatch(command, path)
            assert said.code == 1, said.err
            assert "live members" in said.out + said.err
            assert "someone-else" in said.out + said.err
            assert "hint: " in said.out + said.err
    finally:
        member.close()
        log.close()


@pytest.mark.kafka
def test_a_committed_offset_that_is_no_longer_retained_is_found_by_check(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    import confluent_kafka as ck
    from confluent_kafka.admin import AdminClient

    from raywatch.actors.kafka import KafkaLog

    events, group = topic("events"), topic("group")
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 1)
    log.write([Out(events, b"h1", BODY)] * 20)
    consumer = ck.Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group})
    consumer.commit(offsets=[ck.TopicPartition(events, 0, 5)], asynchronous=False)
    consumer.close()
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in admin.delete_records([ck.TopicPartition(events, 0, 9)]).values():
        future.result(10.0)
    log.close()
    there = {"bootstrap": kafka.bootstrap, "topics": [events], "group": group}
    said = raywatch("check", written(tmp_path, **there))
    assert said.code == 1, said.out
    assert f"{events}/0 lost records that were not scored to retention" in said.out
    assert "hint: `lost: continue`" in said.out
    said = raywatch("check", written(tmp_path, **there, lost="continue"))
    assert said.code == 0, said.out
    assert "! d: " in said.out


def test_a_lane_whose_offset_is_not_retained_stands_with_the_hint_or_goes_on_and_audits() -> None:
    for committed, side in ((5, "older"), (99, "newer")):
        broker = EmbeddedBroker()
        log = EmbeddedLog(broker)
        log.create("in", 2)
        for name in ("d.alerts", "d.rejects", "raywatch.audit"):
            log.create(name, 1)
        partitions = [Partition("in", 0), Partition("in", 1)]
        log.write([Out("in", b"h1", BODY)] * 20)
        (mine,) = [p for p, b in log.bounds(partitions).items() if b.end == 20]
        detector = spec("d", "in")
        sink, source = log.sink("other", detector.group), log.source(detector.group, partitions)
        sink.open()
        sink.transact(
            [], dict.fromkeys(partitions, Committed(0)) | {mine: Committed(committed)}, source
        )
        broker.delete_records(mine, 9)

        lane = make(detector, log, partitions)
        with running(lane):
            until(lambda lane=lane: lane.stats.state == "blocked")
            assert f"`{committed}` of `{mine}` is {side} than what the topic" in lane.stats.words
            assert "set `lost: continue`" in lane.stats.words
        assert log.committed(detector.group, [mine])[mine].offset == committed
        assert read_all(log, "raywatch.audit") == []

        detector = spec("d", "in", lost="continue")
        with running(make(detector, log, partitions)):
            until(lambda log=log, mine=mine: log.committed("raywatch.d", [mine])[mine].offset == 20)
        said = [json.loads(out.value or b"") for out in read_all(log, "raywatch.audit")]
        (lost,) = [entry for entry in said if entry["what"] == "lost"]
        assert (lost["committed"], lost["first_retained"]) == (committed, 9)
        assert (lost["topic"], lost["partition"]) == (mine.topic, mine.number)
        assert lag(log, detector, partitions) == 0
        assert alerts(log, "d.alerts") == []


# ---- files ----------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path, raywatch: Callable[..., Said]) -> tuple[Path, str]:
    """A config that names a model trained for it, and the folder of its version."""
    lines = [
        json.dumps({"host": f"h{n % 2}", "ts": 1_000 * n, "value": n % 7 + n % 11})
        for n in range(3_000)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    path = written(tmp_path)
    told = raywatch("models", "train", path, tmp_path / "in.jsonl", "--json")
    assert told.code == 0, told.err
    version = json.loads(told.out)["version"]
    return written(tmp_path, model=version), version


def torn(file: Path) -> None:
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    file.chmod(0o644)
    blob = bytearray(file.read_bytes())
    blob[len(blob) // 2] ^= 1
    file.write_bytes(blob)


@pytest.mark.parametrize("damage", [torn, flipped, Path.unlink], ids=["torn", "flipped", "gone"])
def test_a_damaged_model_ends_with_2_and_the_name_of_its_file(
    tmp_path: Path,
    trained: tuple[Path, str],
    raywatch: Callable[..., Said],
    damage: Callable[[Path], None],
) -> None:
    path, version = trained
    name, _, hash_ = version.partition("@")
    files = [f for f in (tmp_path / "models").rglob("*") if f.is_file() and hash_[:8] in str(f)]
    assert files, list((tmp_path / "models").rglob("*"))
    for file in files:
        shutil.copytree(tmp_path / "models", tmp_path / "kept")
        file.parent.chmod(0o755)
        damage(file)
        source, output = tmp_path / "in.jsonl", tmp_path / "out.parquet"
        for words in (
            ("check", path, "--offline"),
            ("backtest", path, source, "--output", output),
        ):
            said = raywatch(*words)
            assert said.code == 2, (file.name, words[0], said.out, said.err)
            assert name in said.out + said.err
            assert "hint: " in said.out + said.err
        assert not output.exists()
        shutil.rmtree(tmp_path / "models")
        (tmp_path / "kept").rename(tmp_path / "models")
    assert raywatch("check", path, "--offline").code == 0


@pytest.mark.kafka
def test_run_refuses_a_damaged_model_before_it_starts_anything(
    kafka: Any,
    topic: Callable[[str], str],
    tmp_path: Path,
    trained: tuple[Path, str],
    raywatch: Callable[..., Said],
) -> None:
    from raywatch.actors.kafka import KafkaLog

    events, name = topic("events"), topic("d")
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 1)
    _, version = trained
    weights = max(
        (f for f in (tmp_path / "models").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )
    torn(weights)
    there = {"bootstrap": kafka.bootstrap, "topics": [events], "name": name, "model": version}
    said = raywatch("run", written(tmp_path, **there))
    assert said.code == 2, said.err
    assert version.partition("@")[0] in said.err
    assert f"{name}.alerts" not in log.topics()
    log.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modle": "robustz"}, "modle"),
        ({"topics": []}, "topics"),
        ({"topics": "events"}, "topics"),
        ({"lanes": 0}, "lanes"),
        ({"start": "middle"}, "start"),
        ({"record": {"key": "host"}}, "values"),
        ({"alert": {"probability": 2.0}}, "probability"),
        ({"model": "nobody"}, "nobody"),
        ({"name": "no spaces"}, "name"),
        ({"lost": "maybe"}, "lost"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistake_in_a_config_ends_with_2_and_its_place(
    tmp_path: Path, raywatch: Callable[..., Said], change: dict[str, Any], said: str
) -> None:
    found = raywatch("check", written(tmp_path, **change), "--offline")
    assert found.code == 2
    assert said in found.out + found.err
    assert "hint: " in found.out + found.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("kafka: {bootstrap: [", "it.yaml"),
        ("- a\n- b\n", "it.yaml"),
        ("\x00\x01", "it.yaml"),
        ("a: &a [*a]\n", "it.yaml"),
    ],
    ids=["empty", "torn", "a list", "binary", "refers to itself"],
)
def test_a_file_that_is_no_config_ends_with_2_and_its_name(
    tmp_path: Path, raywatch: Callable[..., Said], text: str, said: str
) -> None:
    path = tmp_path / "it.yaml"
    path.write_text(text)
    for command in ("check", "run", "lag"):
        found = raywatch(command, path)
        assert found.code == 2, found.err
        assert said in found.err, found.err
    assert raywatch("check", tmp_path).code == 2  # a folder


GOOD = "\n".join(f'{{"host": "h{n % 3}", "ts": {n * 1_000}, "value": {n % 5}}}' for n in range(30))


@pytest.mark.parametrize(
    ("name", "blob", "said"),
    [
        ("nowhere.jsonl", None, "nowhere.jsonl"),
        ("empty.jsonl", b"", "`{path}`: no column `host`"),
        ("empty.csv", b"", "empty.csv"),
        ("empty.parquet", b"", "empty.parquet"),
        ("torn.parquet", b"PAR1\x00\x01\x02", "torn.parquet"),
        ("foreign.parquet", b"\x7fELF" + bytes(100), "foreign.parquet"),
        ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(64), "picture.png"),
        ("other.csv", b"a,b\n1,2\n", "`{path}`: no column `host`"),
    ],
)
def test_backtest_of_a_file_that_cannot_be_read_ends_with_2_and_its_name(
    tmp_path: Path, raywatch: Callable[..., Said], name: str, blob: bytes | None, said: str
) -> None:
    source, output = tmp_path / name, tmp_path / "out.parquet"
    if blob is not None:
        source.write_bytes(blob)
    found = raywatch("backtest", written(tmp_path), source, "--output", output)
    assert found.code == 2, (found.out, found.err)
    assert said.format(path=source) in found.err
    assert list(tmp_path.glob("out.parquet*")) == []


def test_backtest_of_a_torn_line_rejects_it_and_scores_the_rest(
    tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    (tmp_path / "in.jsonl").write_text(GOOD + '\n{"host": "h1", "ts": 1')
    found = raywatch(
        "backtest", written(tmp_path), tmp_path / "in.jsonl", "--output",
        tmp_path / "out.parquet", "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    told = json.loads(found.out)
    assert (told["records"], told["reasons"]) == (31, {"not JSON": 1})


@pytest.mark.parametrize("option", ["--output", "--alerts"])
@pytest.mark.parametrize("where", ["file/below.x", "/proc/nowhere/out.x", "."])
def test_backtest_that_cannot_write_ends_with_2_and_the_place(
    tmp_path: Path, raywatch: Callable[..., Said], option: str, where: str
) -> None:
    (tmp_path / "in.jsonl").write_text(GOOD)
    (tmp_path / "file").write_text("not a folder")
    target = tmp_path / where
    places = {"--output": tmp_path / "o.parquet", "--alerts": tmp_path / "a.jsonl", option: target}
    words = [word for pair in places.items() for word in pair]
    found = raywatch("backtest", written(tmp_path), tmp_path / "in.jsonl", *words)
    assert found.code == 2, (found.out, found.err)
    assert f"`{target}" in found.err
    assert "hint: " in found.err


def test_a_full_disk_is_said_and_no_bug(tmp_path: Path, raywatch: Callable[..., Said]) -> None:
    rows = [
        f'{{"host": "h", "ts": {n * 1_000}, "value": {n % 5 + n // 900 * 99}}}'
        for n in range(1_000)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    found = raywatch(
        "backtest", written(tmp_path), tmp_path / "in.jsonl", "--output", tmp_path / "o.parquet",
        "--alerts", "/dev/full",
    )  # fmt: skip
    assert found.code == 2, (found.out, found.err)
    assert "/dev/full" in found.err


# ---- what lies in our own topics --------------------------------------------------------------


def test_what_others_wrote_into_our_topics_is_shown_or_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    from raywatch.cluster import connect

    log = EmbeddedLog(EmbeddedBroker())
    for name in ("d.alerts", "d.rejects"):
        log.create(name, 1)
    deep, huge = b"[" * 100_000, b'{"id": "a", "since_ms": 1, "at_ms": 1' + b"0" * 400 + b"}"
    odd = [b"text", b"[]", b"\xff", None, deep, huge, b'{"id": "b", "key": "\\ud800"}']
    log.write([Out("d.alerts", b"k", value) for value in odd])
    headers = (("reason", b"\xff"), ("offset", b"9" * 5_000), ("partition", b"x"))
    log.write([Out("d.rejects", b"k", value, headers) for value in odd])
    monkeypatch.setattr(connect, "open_log", lambda config: log)
    path = written(tmp_path)
    for command in ("alerts", "rejects"):
        for json_flag in ((), ("--json",)):
            found = raywatch(command, "tail", path, *json_flag)
            assert found.code == 0, found.err
            assert len(found.out.splitlines()) == len(odd)


# ---- run ------------------------------------------------------------------------------------


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, NotADirectoryError):
            continue
        if entry.name.isdecimal() and fields[0] != "Z":
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = {pid}, [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


def living(pids: set[int]) -> dict[int, str]:
    """Those that still run, and what they are."""
    found: dict[int, str] = {}
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:80]
        except OSError:
            continue
    return found


@pytest.mark.kafka
@pytest.mark.ray
@pytest.mark.parametrize("how", ["ctrl-c", "sigterm while it starts"])
def test_an_interrupted_run_commits_and_leaves_no_process(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path, how: str
) -> None:
    from raywatch.actors.kafka import KafkaLog

    events, name = topic("events"), topic("d")
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 2)
    log.write([Out(events, b"h1", BODY)] * 50)
    path = written(
        tmp_path, bootstrap=kafka.bootstrap, topics=[events], name=name, start="earliest"
    )
    ran = started("run", path, "--json", start_new_session=True)
    mine: set[int] = set()
    try:
        assert ran.stdout is not None
        if how == "ctrl-c":
            assert json.loads(ran.stdout.readline())["state"] == "running"
            mine = family(ran.pid)
            assert len(mine) > 5
            os.killpg(ran.pid, signal.SIGINT)  # what a terminal does: everybody in the group
        else:
            begun = "raylet/raylet"  # Ray is up, raywatch is not
            until(lambda: begun in " ".join(living(family(ran.pid)).values()), 60.0)
            mine = family(ran.pid)
            ran.send_signal(signal.SIGTERM)
        _, err = ran.communicate(timeout=60)
        assert ran.returncode in (0, 130), err
        assert "Traceback" not in err
        until(lambda: not living(mine), 15.0)
    finally:
        mine |= family(ran.pid) if ran.poll() is None else set()
        for pid in living(mine):
            os.kill(pid, signal.SIGKILL)
    if how == "ctrl-c":
        partitions = [Partition(events, 0), Partition(events, 1)]
        assert lag(log, spec(name, events), partitions) == 0
    log.close()
