"""Goal: a config, a model or a data file that is torn, foreign or missing, and a place that cannot
be written, end with exit code 2 and the name of what has to change.

Method: each damage done to a real file, then the command in this process.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import Said, called, written
from packing import ENDINGS, compressed


@pytest.fixture
def raywatch(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    return partial(called, capsys)


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
        ("empty.jsonl", b"", "`{path}` is empty"),
        ("empty.csv", b"", "empty.csv"),
        ("empty.parquet", b"", "empty.parquet"),
        ("wide.csv", "host,ts,value\nh,1,2\n".encode("utf-16"), "`{path}` is UTF-16"),
        ("wide.jsonl", GOOD.encode("utf-16"), "`{path}` is UTF-16"),
        ("torn.parquet", b"PAR1\x00\x01\x02", "torn.parquet"),
        ("foreign.parquet", b"\x7fELF" + bytes(100), "foreign.parquet"),
        ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(64), "picture.png"),
        ("other.csv", b"a,b\n1,2\n", "`{path}`: no column `host`"),
        ("nowhere.jsonl.gz", None, "`{path}`: [Errno 2] No such file"),
        ("empty.jsonl.gz", b"", "`{path}` is empty"),
        ("empty.csv.zst", b"", "`{path}`: Empty"),
        ("nothing.jsonl.gz", compressed(b"", ".gz"), "`{path}` is empty"),
        *((f"plain.jsonl{ending}", GOOD.encode(), "cannot read `{path}`") for ending in ENDINGS),
        *((f"plain.csv{ending}", b"a,b\n1,2\n", "cannot read `{path}`") for ending in ENDINGS),
        ("foreign.jsonl.zst", compressed(GOOD.encode(), ".gz"), "cannot read `{path}`"),
        ("torn.jsonl.gz", compressed(GOOD.encode(), ".gz")[:-1], "`{path}`: Truncated"),
        ("torn.csv.gz", compressed(b"host,ts,value\n1,2,3\n", ".gz")[:-1], "`{path}`: Truncated"),
        ("flipped.jsonl.gz", compressed(GOOD.encode(), ".gz")[:-1] + b"?", "cannot read `{path}`"),
        ("foreign.jsonl.xz", b"\xfd7zXZ\0", "`{path}` has to be unpacked first"),
        ("folder.zip", b"PK", "`{path}` has to be unpacked first"),
        ("logs.tar.gz", b"\x1f\x8b", "`{path}` has to be unpacked first"),
        ("twice.jsonl.gz.gz", b"\x1f\x8b", "`{path}` has to be unpacked first"),
        ("x.parquet.gz", b"\x1f\x8b", "`{path}` has to be unpacked first"),
        ("picture.png.gz", compressed(b"\x89PNG", ".gz"), "`{path}` is no file this can read"),
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
    assert "hint: " in found.err
    assert list(tmp_path.glob("out.parquet*")) == []


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.csv"])
def test_a_byte_order_mark_costs_no_record(
    tmp_path: Path, raywatch: Callable[..., Said], name: str
) -> None:
    text = "host,ts,value\nh,1,2\nh,2,3\n" if name == "in.csv" else GOOD
    blob = text.encode("utf-8-sig")
    (tmp_path / name).write_bytes(compressed(blob, ".gz") if name.endswith(".gz") else blob)
    words = ("backtest", written(tmp_path), tmp_path / name, "--output", tmp_path / "o.parquet")
    found = raywatch(*words, "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["rejects"] == 0


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


@pytest.mark.parametrize("text", ["x", '[{"host": "a"}]', '{\n  "host": "a"\n}'])
def test_a_file_without_an_object_a_line_is_told_what_is_wanted(
    tmp_path: Path, raywatch: Callable[..., Said], text: str
) -> None:
    (tmp_path / "in.jsonl").write_text(text)
    words = ("backtest", written(tmp_path), tmp_path / "in.jsonl", "--output", tmp_path / "o.pq")
    said = raywatch(*words)
    assert said.code == 2
    assert "in.jsonl` has no column `host`, nor any other" in said.err
    assert "hint: in JSON lines every line is an object of its own" in said.err


def test_backtest_says_of_each_reason_where_it_rejected_first(
    tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    rows = [{"host": "a", "ts": 1_700_000_000_000 + n, "value": n} for n in range(4)]
    rows += [{**rows[0], "value": "4\x1b[31m"}, {**rows[0], "value": "5"}, {**rows[0], "ts": -1}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("backtest", written(tmp_path), tmp_path / "in.jsonl", "--output", tmp_path / "o.pq")
    said = raywatch(*words)
    assert said.code == 0, said.err
    assert "3 rejects: 2 wrong type, 1 bad time" in said.out
    assert "\n  wrong type: first in row 5, `value`: " in said.out
    assert "\n  bad time: first in row 7, `ts`: " in said.out
    assert "\x1b" not in said.out
    assert json.loads(raywatch(*words, "--json").out)["examples"]["wrong type"][0] == 5


@pytest.mark.parametrize("kind", ["s", "ms"])
def test_backtest_says_when_records_were_and_that_seconds_are_none(
    tmp_path: Path, raywatch: Callable[..., Said], kind: str
) -> None:
    one = 1_700_000_000 if kind == "s" else 1_700_000_000_000
    rows = [{"host": "a", "ts": one + n, "value": n} for n in range(10)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = raywatch(
        "backtest", written(tmp_path), tmp_path / "in.jsonl", "--output", tmp_path / "o.pq"
    )
    assert said.code == 0, said.err
    day = "1970-01-20 16:13:20" if kind == "s" else "2023-11-14 22:13:20"
    assert f"times: {day} UTC to {day} UTC" in said.out
    assert ("`record.time` is ms or ISO 8601" in said.err) == (kind == "s")


def test_backtest_names_what_no_record_has(tmp_path: Path, raywatch: Callable[..., Said]) -> None:
    rows = [{"host": "a", "ts": n, "value": n, "late": n if n == 9 else None} for n in range(10)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    record = {"key": "host", "time": "ts", "values": ["value", "late", "vlaue"]}
    path, out = written(tmp_path, record=record), tmp_path / "o.pq"
    said = raywatch("backtest", path, tmp_path / "in.jsonl", "--output", out, "--json")
    assert (said.code, json.loads(said.out)["absent"]) == (0, ["vlaue"])
    assert "! no record has `vlaue`: are they spelt as in the file?" in said.err


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
