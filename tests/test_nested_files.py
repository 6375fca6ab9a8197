"""Goal: a file whose fields lie inside of objects says what the same file says flattened.

Method: the same rows, good ones and bad ones, nested and flat, as JSON lines, Parquet and CSV, with
the same names in the spec; then whole backtests by the command, whose scores and alerts are
compared bit for bit. Structs that are null, doubled, or no structs.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from classes import written as rows_as
from command import Said, called, written
from test_files import seen

from raywatch.actors.files import columns_of, read_file, resolve
from raywatch.actors.names import Names
from raywatch.actors.records import RecordSpec
from raywatch.models.errors import ConfigError

SPEC = RecordSpec(
    values=("system.cpu.pct", "system.load"), words=("event.kind",), key="host.name", time="@t",
    key_bytes_max=16,
)  # fmt: skip
Row = dict[str, Any]


@pytest.fixture
def raywatch(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    return partial(called, capsys)


def nested(row: Row) -> Row:
    """A flat row with its dotted names as objects."""
    found: Row = {}
    for name, value in row.items():
        *steps, last = name.split(".")
        inner = found
        for step in steps:
            inner = inner.setdefault(step, {})
        inner[last] = value
    return found


def flat(count: int) -> list[Row]:
    """Rows of every sort, bad ones among them; None is null."""
    rows: list[Row] = []
    for n in range(count):
        row: Row = {
            "@t": 1_700_000_000_000 + n, "agent.tags": "x", "host.name": f"hé-{n % 5}",
            "system.cpu.pct": n / 7, "system.cpu.user": n, "system.load": n * 1e15,
            "event.kind": ("tcp", "", "80", None)[n % 4],
        }  # fmt: skip
        row |= {3: {"system.load": None}, 8: {"host.name": None}}.get(n % 11, {})
        if n % 17 == 5:
            row |= {"system.cpu.pct": None, "system.load": None, "event.kind": None}
        row |= {4: {"@t": None}, 6: {"@t": -5}, 9: {"host.name": "a" * 17}}.get(n % 13, {})
        rows.append(row)
    return rows


@pytest.mark.parametrize("batch", [1, 9, 1_000])
def test_nested_and_flat_files_of_every_kind_give_the_same_records(
    tmp_path: Path, batch: int
) -> None:
    rows = flat(120)
    found: list[list[tuple[Any, ...]]] = []
    for kind, made in (
        ("jsonl", rows), ("parquet", rows), ("csv", rows), ("jsonl", list(map(nested, rows))),
        ("parquet", list(map(nested, rows))),
    ):  # fmt: skip
        pieces = list(read_file(rows_as(made, tmp_path, kind), SPEC, batch))
        words = {int(row): word for p in pieces for row, word in zip(
            p.row.tolist(), p.records.words[:, 0].tolist(), strict=True
        )}  # fmt: skip
        found.append([(*entry, words.get(entry[0])) for entry in seen(pieces)])
    assert len(found[0]) == 120
    assert {entry[1] for entry in found[0] if len(entry) == 3} == {
        "missing field", "bad time", "bad key",
    }  # fmt: skip
    assert all(each == found[0] for each in found[1:])


def test_a_struct_that_is_null_has_no_fields(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"host": {"name": "a"}, "o": {"p": {"x": 1.0}}}, {"host": {"name": "b"}, "o": {"p": None}},
        {"host": None, "o": {"p": {"x": 3.0}}}, {"host": {"name": "c"}, "o": None},
        {"host": {"name": "d"}, "o": {"p": {"x": None}}},
        {"host": {"name": "e"}, "o": {"p": {"x": 6}}},
    ]  # fmt: skip
    # Below a null there may be anything: here a number, and a name.
    inner = pa.StructArray.from_arrays(
        [pa.array([1.0, 2.0, 3.0, 4.0, None, 6.0])], ["x"],
        mask=pa.array([False, True, False, False, False, False]),
    )  # fmt: skip
    outer = pa.StructArray.from_arrays([inner], ["p"], mask=pa.array([n == 3 for n in range(6)]))
    host = pa.StructArray.from_arrays(
        [pa.array(list("abxcde"))], ["name"], mask=pa.array([n == 2 for n in range(6)])
    )
    (tmp_path / "by_hand").mkdir()
    by_hand = tmp_path / "by_hand" / "rows.parquet"
    pq.write_table(pa.table({"host": host, "o": outer}), by_hand)
    spec = RecordSpec(values=("o.p.x",), key="host.name")
    for path in (rows_as(rows, tmp_path, "jsonl"), rows_as(rows, tmp_path, "parquet"), by_hand):
        for batch in (2, 6):
            assert seen(list(read_file(path, spec, batch))) == [
                (0, b"a", 0, ("1.0",)), (1, "missing field"), (2, "missing field"),
                (3, "missing field"), (4, "missing field"), (5, b"e", 5, ("6.0",)),
            ]  # fmt: skip


def test_a_column_of_the_whole_name_goes_before_a_struct_at_every_level(tmp_path: Path) -> None:
    record = {"a": {"b": {"c": 1.0}, "b.c": 2.0, "b.d": 4.0}, "a.b.c": 3.0, "a.b": {"e": 5.0}}
    names = ("a.b.c", "a.b.d", "a")
    for kind in ("parquet", "jsonl"):
        path = rows_as([record, record], tmp_path, kind)
        (piece,) = read_file(path, RecordSpec(values=("a.b.c", "a.b.d")))
        assert piece.records.values.tolist() == [[3.0, 4.0]] * 2
        less = rows_as([{"a": record["a"]}], tmp_path, kind)
        (piece,) = read_file(less, RecordSpec(values=("a.b.c",)))
        assert piece.records.values.tolist() == [[2.0]]
        with pytest.raises(ConfigError, match=r"no column `a\.b\.e`"):
            resolve(path, RecordSpec(values=("a.b.e",)))
        assert columns_of(less) == Names(("a",), ("a.b.c", "a.b.d"))
        assert resolve(less, RecordSpec(values=("a.b.*",))).values == names[:2]


def test_a_csv_column_has_its_name_and_nothing_inside(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('host.name,system.cpu,host\na,1.5,"{""name"": ""b""}"\n')
    (piece,) = read_file(path, RecordSpec(values=("system.cpu",), key="host.name"))
    assert (piece.records.key(0), piece.records.values.tolist()) == (b"a", [[1.5]])
    with pytest.raises(ConfigError, match=r"no column `host\.id`"):
        resolve(path, RecordSpec(values=("system.cpu",), key="host.id"))


def test_lists_and_maps_are_not_entered(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    maps = pa.array([[("k", 1.0)]], pa.map_(pa.string(), pa.float64()))
    pq.write_table(pa.table({"l": [[{"b": 1.0}]], "m": maps, "x": [1.0]}), path)
    for name in ("l.b", "l.list.element.b", "m.k", "m.key_value.value", "x.y"):
        with pytest.raises(ConfigError, match="no column") as caught:
            resolve(path, RecordSpec(values=(name,)))
        assert "columns are `l`, `m`, `x`" in caught.value.hint


def test_a_struct_with_two_fields_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    twice = pa.StructArray.from_arrays([pa.array([1.0]), pa.array([2.0])], ["x", "x"])
    pq.write_table(pa.table({"o": twice}), path)
    with pytest.raises(ConfigError, match=r"column `o\.x` is there twice"):
        list(read_file(path, RecordSpec(values=("o.x",))))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_who_names_a_part_is_told_the_whole_name(tmp_path: Path, kind: str) -> None:
    path = rows_as([nested(row) for row in flat(3)], tmp_path, kind)
    for key in ("name", "hostname"):
        with pytest.raises(ConfigError, match=f"no column `{key}`") as caught:
            resolve(path, RecordSpec(values=("system.load",), key=key))
        assert "did you mean `host.name`? columns are `@t`, " in caught.value.hint


def test_a_field_may_come_after_the_first_lines(tmp_path: Path) -> None:
    rows = [{"k": "a", "o": {"x": 1}}] * 1_500 + [{"k": "a", "o": {"z": 2}}]
    pieces = list(read_file(rows_as(rows, tmp_path, "jsonl"), RecordSpec(("o.x", "o.z"), "k")))
    assert pieces[0].records.values[-1, 1] == 2.0


# ---- whole backtests


def scored(
    folder: Path, raywatch: Callable[..., Said], source: Path, *more: str | Path, **detector: Any
) -> tuple[dict[str, Any], pa.Table, list[dict[str, Any]]]:
    """What the command says of a file: its summary, the table, the alerts."""
    out, alerts = folder / "out.parquet", folder / "alerts.jsonl"
    told = raywatch(
        "backtest", written(folder, **detector), source, "--output", out, "--alerts", alerts,
        "--json", *more,
    )  # fmt: skip
    assert told.code == 0, told.err
    names = ("records", "keys", "alerts", "rejects", "reasons", "labels")
    summary = {name: json.loads(told.out).get(name) for name in names}
    said = [json.loads(line) for line in alerts.read_text().splitlines()]
    return summary, pq.read_table(out), [{**each, "lineage": None} for each in said]


def metrics() -> list[Row]:
    rng = np.random.default_rng(5)
    noise = (rng.standard_normal((3_000, 2)) + 20.0 * (rng.random((3_000, 1)) < 2e-3)).tolist()
    return [
        {"@timestamp": 1_700_000_000_000 + 1_000 * n, "agent.id": n % 3, "host.name": f"h{n % 4}",
         "system.cpu.pct": x, "system.load": y, "system.n": "text"}
        for n, (x, y) in enumerate(noise)
    ]  # fmt: skip


def lines() -> list[Row]:
    return [
        {"@timestamp": 1_700_000_000_000 + 1_000 * n, "service.name": f"s{n % 3}", "log.level": "i",
         "event.message": "out of disk" if n > 3_000 and n % 97 == 0 else "query took 31 ms",
         "http.request.id": f"r-{n // 9}"}
        for n in range(4_000)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "detector"),
    [
        (metrics, {
            "record": {"key": "host.name", "time": "@timestamp",
                       "values": ["system.load", "system.cpu.*"]},
            "model": "lagbank", "alert": {"warmup": 50, "probability": 1e-3}}),
        (lines, {
            "record": {"key": "service.name", "time": "@timestamp", "message": "event.message",
                       "session": "http.request.id"},
            "model": "preset:logs", "alert": {"warmup": 50, "probability": 1e-3}}),
        (metrics, {
            "record": {"key": "host.name", "time": "@timestamp", "values": "system.load",
                       "words": ["agent.id"]},
            "model": "preset:network", "alert": {"warmup": 50, "probability": 1e-3}}),
    ],
    ids=["lagbank", "logs", "network"],
)  # fmt: skip
def test_a_backtest_of_nested_records_says_what_one_of_flat_records_says(
    tmp_path: Path, raywatch: Callable[..., Said], rows: Callable[[], Sequence[Row]],
    detector: dict[str, Any],
) -> None:  # fmt: skip
    made = rows()
    found = [
        scored(tmp_path, raywatch, rows_as(each, tmp_path, kind), **detector)
        for each in (made, [nested(row) for row in made])
        for kind in ("jsonl", "parquet")
    ]
    assert found[0][0]["alerts"] > 0
    assert found[0][0]["rejects"] == 0
    for summary, table, alerts in found[1:]:
        assert summary == found[0][0]
        assert table.equals(found[0][1])
        assert table["score"].to_numpy().tobytes() == found[0][1]["score"].to_numpy().tobytes()
        assert alerts == found[0][2]


def test_labels_of_a_file_of_their_own_may_be_nested(
    tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    rng = np.random.default_rng(8)
    paid: list[Row] = [
        {"at.ms": 1_700_000_000_000 + 60_000 * n, "pay.terminal": f"T{n % 5}", "pay.id": f"p{n}",
         "card.owner": f"c{n % 40}", "pay.amount": float(rng.lognormal(3))}
        for n in range(400)
    ]  # fmt: skip
    told: list[Row] = [
        {"at.ms": row["at.ms"] + 3_600_000, "pay.terminal": row["pay.terminal"],
         "pay.id": row["pay.id"], "verdict.fraud": n % 7 == 0}
        for n, row in enumerate(paid[::2])
    ]  # fmt: skip
    record = {
        "key": "pay.terminal", "time": "at.ms", "values": "pay.amount", "words": "card.owner",
        "id": "pay.id", "label": "verdict.fraud",
    }  # fmt: skip
    found: list[Any] = []
    for n, made in enumerate((lambda row: row, nested)):
        folder = tmp_path / str(n)
        (folder / "told").mkdir(parents=True)
        labels = rows_as([made(row) for row in told], folder / "told", "jsonl")
        source = rows_as([made({**row, "verdict.fraud": None}) for row in paid], folder, "jsonl")
        found.append(
            scored(
                folder, raywatch, source, "--labels", labels, record=record,
                model="preset:payments",
            )
        )  # fmt: skip
    assert found[0][0] == found[1][0]
    assert found[0][1].equals(found[1][1])
    assert found[0][0]["records"] == 400
