"""Goal: a file gives the records its rows are, however it is written, and says what is wrong.

Method: the same rows as Parquet, CSV and JSON lines, compressed or not; then rows, columns and
files that are wrong; hashes of keys against vectors that Java's Utils.murmur2 gives.
"""

import decimal
import json
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import ENDINGS, compressed, packed

from raywatch.actors.files import BATCH_BYTES, FileBatch, read_file, read_series, resolve
from raywatch.actors.names import Names, expand
from raywatch.actors.partitioner import murmur2, partitions_of
from raywatch.actors.records import LINE, RecordSpec
from raywatch.models.errors import ConfigError

KINDS = ("parquet", "csv", "jsonl")
SPEC = RecordSpec(values=("x", "y"), key="k", time="t", key_bytes_max=16)
Row = dict[str, Any]


def write(folder: Path, kind: str, rows: Sequence[Row], stem: str = "data") -> Path:
    """Rows as a file; None is a null, an empty cell, an absent field."""
    path = folder / f"{stem}.{kind}"
    if kind == "jsonl":
        lines = [{name: v for name, v in row.items() if v is not None} for row in rows]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return path
    table = pa.Table.from_pylist(list(rows))
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=7)
    else:
        pcsv.write_csv(table, path)
    return path


def seen(pieces: Sequence[FileBatch]) -> list[tuple[Any, ...]]:
    """Records and rejects of all batches: row, key, time, channels; row, reason."""
    found: list[tuple[Any, ...]] = []
    for piece in pieces:
        records = piece.records
        for i in range(len(records)):
            row = int(piece.row[i])
            assert piece.first <= row < piece.first + piece.rows
            values = tuple(map(str, records.values[i].tolist()))  # NaN equals NaN as text
            found.append((row, records.key(i), int(records.time_ms[i]), values))
        found += [(reject.offset, reject.reason) for reject in records.rejects]
    return sorted(found, key=lambda entry: entry[0])


def mixed(count: int) -> list[Row]:
    """Rows of every sort, bad ones among them."""
    rows: list[Row] = []
    for n in range(count):
        row: Row = {"k": f"hé-{n % 5}", "t": 1_700_000_000_000 + n, "x": n / 7, "y": n * 1e15}
        row |= {3: {"x": None}, 5: {"x": None, "y": None}, 8: {"k": None}}.get(n % 11, {})
        row |= {4: {"t": None}, 6: {"t": -5}, 9: {"k": "a" * 17}}.get(n % 13, {})
        rows.append({"other": n} | row)
    return rows


def test_the_three_kinds_of_file_give_the_same_records(tmp_path: Path) -> None:
    rows = mixed(100)
    one, two, three = (seen(list(read_file(write(tmp_path, k, rows), SPEC, 9))) for k in KINDS)
    assert one == two
    assert one == three
    assert len(one) == 100
    reasons = {entry[1] for entry in one if len(entry) == 2}
    assert reasons == {"missing field", "bad time", "bad key"}


@pytest.mark.parametrize("ending", [*ENDINGS, ".GZ"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_compressed_file_gives_the_same_records(tmp_path: Path, kind: str, ending: str) -> None:
    plain = write(tmp_path, kind, mixed(100))
    assert seen(list(read_file(packed(plain, ending), SPEC, 9))) == seen(
        list(read_file(plain, SPEC, 9))
    )


@pytest.mark.parametrize("ending", [".gz", ".zst", ".lz4"])
def test_a_file_of_many_compressed_parts_is_read_to_its_end(tmp_path: Path, ending: str) -> None:
    lines = [f'{{"k": "a", "t": {n}, "x": {n}, "y": 0}}\n' for n in range(3_000)]
    path = tmp_path / f"x.jsonl{ending}"
    parts = [*map(str.encode, lines), b"", b""]
    path.write_bytes(b"".join(compressed(part, ending) for part in parts))
    assert [entry[2] for entry in seen(list(read_file(path, SPEC)))] == list(range(3_000))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_cover_every_row_once_and_in_order(tmp_path: Path, kind: str) -> None:
    pieces = list(read_file(write(tmp_path, kind, mixed(50)), SPEC, batch=8))
    assert max(piece.rows for piece in pieces) <= 8
    ends = np.cumsum([piece.rows for piece in pieces]).tolist()
    assert [piece.first for piece in pieces] == [0, *ends[:-1]]
    assert ends[-1] == 50


@pytest.mark.parametrize("kind", KINDS)
def test_the_stem_is_the_key_and_the_row_the_time_of_a_file_without_them(
    tmp_path: Path, kind: str
) -> None:
    path = write(tmp_path, kind, [{"x": n + 0.5} for n in range(6)], stem="host-1")
    for each in (path, *(packed(path, ending) for ending in ENDINGS if kind != "parquet")):
        found = seen(list(read_file(each, RecordSpec(values=("x",)), 4)))
        assert found == [(n, b"host-1", n, (str(n + 0.5),)) for n in range(6)]


@pytest.mark.parametrize("kind", KINDS)
def test_iso_times_and_numeric_keys_are_read(tmp_path: Path, kind: str) -> None:
    rows: list[Row] = [
        {"k": 7, "t": "2026-11-24T13:43:26.123Z", "x": 1.0},
        {"k": -8, "t": "2026-11-24 14:43:26+01:00", "x": 2.0},
        {"k": 9, "t": "yesterday", "x": 3.0},
    ]
    found = seen(list(read_file(write(tmp_path, kind, rows), RecordSpec(("x",), "k", "t"))))
    assert found == [
        (0, b"7", 1_795_527_806_123, ("1.0",)),
        (1, b"-8", 1_795_527_806_000, ("2.0",)),
        (2, "bad time"),
    ]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([1_000, 2_500, None], pa.int32()),
        pa.array([1_000, 2_500, None], pa.uint64()),
        pa.array([1_000.9, 2_500.0, float("nan")], pa.float64()),
        pa.array([1_000_900, 2_500_000, None], pa.timestamp("us")),
        pa.array([1_000_900_000, 2_500_000_000, None], pa.timestamp("ns", "Europe/Paris")),
        pa.array(["1970-01-01T00:00:01", "2500", None]),
        pa.array(["1970-01-01T00:00:01", "2500.7", None], pa.large_string()).dictionary_encode(),
    ],
)
def test_a_time_column_may_be_of_any_type_that_is_a_time(tmp_path: Path, times: pa.Array) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"t": times, "x": [1.0, 2.0, 3.0]}), path)
    found = seen(list(read_file(path, RecordSpec(("x",), None, "t"))))
    assert found == [(0, b"t", 1000, ("1.0",)), (1, b"t", 2500, ("2.0",)), (2, "missing field")]


def test_a_date_is_its_midnight(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"t": [date(2026, 11, 24)], "x": [1.0]}), path)
    (piece,) = read_file(path, RecordSpec(("x",), None, "t"))
    midnight = datetime(2026, 11, 24, tzinfo=UTC).timestamp() * 1_000
    assert piece.records.time_ms.tolist() == [midnight]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (pa.array(["a", "é"]).dictionary_encode(), ["a", "é"]),
        (pa.array([b"a", b"b"]), ["a", "b"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([10**12, -1]), ["1000000000000", "-1"]),
        (pa.array(["no", "a", "b"])[1:], ["a", "b"]),
    ],
)
def test_a_key_column_of_any_type_is_its_text(
    tmp_path: Path, keys: pa.Array, expected: list[str]
) -> None:
    path = tmp_path / "k.parquet"
    pq.write_table(pa.table({"k": keys, "x": [1.0, 2.0]}), path)
    found = seen(list(read_file(path, RecordSpec(("x",), "k"))))
    assert [entry[1] for entry in found] == [key.encode() for key in expected]


def test_channels_of_every_numeric_type_are_float64(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table(
        {
            "i": pa.array([2**53 + 1, None], pa.int64()),
            "h": pa.array(np.array([0.5, np.nan], np.float16)),
            "d": pa.array([decimal.Decimal("1.25"), None]),
            "n": pa.nulls(2),
            "x": [1.0, 2.0],
        }
    )
    pq.write_table(table, path)
    (piece,) = read_file(path, RecordSpec(("i", "h", "d", "n", "x")))
    nan = float("nan")
    expected = [[2.0**53, 0.5, 1.25, nan, 1.0], [nan, nan, nan, nan, 2.0]]
    assert np.array_equal(piece.records.values, expected, equal_nan=True)


def test_a_bad_cell_of_a_csv_costs_its_row_and_no_other(tmp_path: Path) -> None:
    cells = [
        "1.5",
        "abc",
        "NaN",
        "",
        "inf",
        " 2 ",
        "+3",
        "1e999",
        "N/A",
        "-4e-1",
        "0x1",
        "1_0",
        "5",
    ]
    path = tmp_path / "c.csv"
    path.write_text("k,x,note\n" + "".join(f'a,{cell},"two\nlines"\n' for cell in cells))
    (piece,) = read_file(path, RecordSpec(("x",), "k"))
    assert piece.rows == len(cells)
    assert piece.records.values[:, 0].tolist() == [1.5, 2.0, 3.0, -0.4, 5.0]
    assert piece.row.tolist() == [0, 5, 6, 9, 12]
    reasons: dict[str, list[int]] = {}
    for reject in piece.records.rejects:
        reasons.setdefault(reject.reason, []).append(reject.offset)
    assert reasons == {"wrong type": [1, 10, 11], "missing field": [2, 3, 8], "not finite": [4, 7]}
    assert piece.records.rejects[0].detail == "`x`: `abc`"


def test_a_key_named_na_or_null_is_a_key(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("k,x\nNA,1\nnull,2\nnan,3\n,4\n007,5\n")
    found = seen(list(read_file(path, RecordSpec(("x",), "k"))))
    assert [entry[1] for entry in found] == [b"NA", b"null", b"nan", "missing field", b"007"]


def test_lines_that_are_no_records_are_rejects_with_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "l.ndjson"
    long = b'{"k":"a","x":1,"p":"' + b"z" * 3_000 + b'"}'
    path.write_bytes(b'{"k":"a","x":1}\r\n\n' + long + b'\n{"k":"b","x":2}\n{"k":"c","x":')
    spec = RecordSpec(("x",), "k", bytes_max=1_000)
    (piece,) = read_file(path, spec)
    assert seen([piece]) == [
        (0, b"a", 0, ("1.0",)),
        (1, "too large"),
        (2, b"b", 2, ("2.0",)),
        (3, "not JSON"),
    ]
    assert piece.records.rejects[1].value == b'{"k":"c","x":'
    assert len(piece.records.rejects[0].value or b"") <= 1_002


def test_patterns_are_columns_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{"x_10": 1.0, "key": 1, "x_9": 2.0, "xa": 3.0, "y": 4.0}]
    for kind in KINDS:
        path = write(tmp_path, kind, rows)
        assert resolve(path, RecordSpec(("y", "x_*"), "key")).values == ("y", "x_10", "x_9")
        assert resolve(path, RecordSpec(("*",), "key", "y")).values == ("x_10", "x_9", "xa")
    assert expand(["x?", "xa", "[ab]"], Names(("b", "xb", "xa", "[ab]"))) == ("xb", "xa", "[ab]")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "spec",
    [
        RecordSpec(("nope*",), "k"), RecordSpec(("nope",), "k"), RecordSpec(("x",), "nope"),
        RecordSpec(("x",), "k", "nope"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, kind: str, spec: RecordSpec
) -> None:
    path = write(tmp_path, kind, [{"k": "a", "t": 1, "x": 1.0}])
    with pytest.raises(ConfigError, match="no column `nope") as caught:
        list(read_file(path, spec))
    assert "`k`, `t`, `x`" in caught.value.hint


def test_a_channel_may_be_absent_from_the_first_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"k": "a", "x": 1}] * 1_500 + [{"k": "a", "z": 2}])
    pieces = list(read_file(path, RecordSpec(("x", "z"), "k")))
    assert pieces[0].records.values[-1, 1] == 2.0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x\n1\n", "is no file this can read"),
        ("gone.parquet", None, "cannot read"),
        ("gone.csv", None, "cannot read"),
        ("gone.jsonl", None, "cannot read"),
        ("empty.csv", b"", "cannot read"),
        ("empty.jsonl", b"", "is empty"),
        ("blank.jsonl", b"\n \n", "no column `x`"),
        ("torn.parquet", b"PAR1garbage", "cannot read"),
        ("ragged.csv", b"x,y\n1,2\n3\n", "cannot read"),
        ("twice.csv", b"x,x\n1,2\n", "two columns `x`"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_config_error(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        list(read_file(tmp_path / name, RecordSpec(("x",))))
    assert caught.value.hint


@pytest.mark.parametrize("ending", ENDINGS)
def test_batches_before_the_place_where_a_compressed_file_is_torn_are_read(
    tmp_path: Path, ending: str
) -> None:
    rng = np.random.default_rng(1)
    rows: list[Row] = [{"k": "a", "x": float(x)} for x in rng.random(60_000)]
    path = packed(write(tmp_path, "jsonl", rows), ending)
    blob = path.read_bytes()
    path.write_bytes(blob[: len(blob) * 9 // 10])
    read: list[FileBatch] = []
    with pytest.raises(ConfigError, match=f"cannot read `{path}`: Truncated") as caught:
        read.extend(read_file(path, RecordSpec(("x",), "k")))
    assert "-dc` saves what is whole" in caught.value.hint
    found = np.concatenate([piece.records.values[:, 0] for piece in read])
    assert found.shape[0] in (20_000, 40_000)
    assert found.tolist() == [row["x"] for row in rows[: found.shape[0]]]


LINES = RecordSpec((), message=LINE, format="text")


@pytest.mark.parametrize(
    ("part", "count", "rejects"),
    [(bytes(1_000_000), 1_000, 1), (b"x" * 999_999 + b"\n", 1_000, 0)],
    ids=["one line", "long lines"],
)
def test_memory_does_not_follow_what_a_file_unpacks_to(
    tmp_path: Path, part: bytes, count: int, rejects: int
) -> None:
    path = tmp_path / "bomb.log.zst"
    path.write_bytes(compressed(part, ".zst") * count)
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        rows = found = 0
        for piece in read_file(path, LINES):
            rows, found = rows + piece.rows, found + len(piece.records.rejects)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (rows, found) == (1 if rejects else count, rejects)
    assert peak < 8 * BATCH_BYTES, peak  # 268 MB, of 1 GB


def test_a_row_that_unpacks_to_more_than_a_block_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(compressed(b"x\n1\n" + bytes(50_000_000), ".gz"))
    with pytest.raises(ConfigError, match="cannot read"):
        list(read_file(path, RecordSpec(("x",))))


def test_a_parquet_file_torn_in_the_middle_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": np.random.default_rng(1).random(5_000)}), path)
    content = bytearray(path.read_bytes())
    content[4:4_000] = bytes(3_996)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot read"):
        list(read_file(path, RecordSpec(("x",))))


@pytest.mark.parametrize(
    ("column", "spec"),
    [
        (pa.array([True]), RecordSpec(("c",))),
        (pa.array([[1.0]]), RecordSpec(("c",))),
        (pa.array([[1.0]]), RecordSpec(("x",), "c")),
        (pa.array([True]), RecordSpec(("x",), None, "c")),
    ],
)
def test_a_column_of_a_type_that_cannot_be_meant_is_a_config_error(
    tmp_path: Path, column: pa.Array, spec: RecordSpec
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"c": column, "x": [1.0]}), path)
    with pytest.raises(ConfigError, match="column `c` is"):
        list(read_file(path, spec))


def test_a_file_without_rows_has_no_batches(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([], pa.float64())}), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("x\n")
    for kind in ("parquet", "csv"):
        assert list(read_file(tmp_path / f"x.{kind}", RecordSpec(("x",)))) == []
        assert read_series(tmp_path / f"x.{kind}", RecordSpec(("x",))) == []


def test_column_names_with_dots_are_names(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"cpu.user": [1.0], "cpu": [{"user": 9.0}]}), path)
    (piece,) = read_file(path, RecordSpec(("cpu.user",)))
    assert piece.records.values.tolist() == [[1.0]]


def test_series_are_the_values_of_each_key_oldest_first(tmp_path: Path) -> None:
    rows = [{"k": f"k{n % 3}", "x": float(n)} for n in range(50_000)] + [{"k": "k9", "x": None}]
    counted: list[int] = []
    path = write(tmp_path, "csv", rows)
    series = read_series(path, RecordSpec(("x",), "k"), progress=counted.append)
    assert [key for key, _ in series] == ["k0", "k1", "k2"]
    for index, (_, values) in enumerate(series):
        assert np.array_equal(values[:, 0], np.arange(index, 50_000, 3))
    assert counted[-1] == 50_000


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_keys_hash_as_in_java(key: str, hashed: int) -> None:
    text = np.frombuffer(b"??" + key.encode() + b"?", np.uint8)
    assert murmur2(text, 2, len(key)) == hashed
    found = partitions_of(text, np.array([2]), np.array([len(key)], np.int32), 12)
    assert found.tolist() == [(hashed & 0x7FFFFFFF) % 12]


def java_murmur2(data: bytes) -> int:
    """Utils.murmur2 of Apache Kafka, line by line."""
    low, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    for i in range(len(data) // 4):
        k = int.from_bytes(data[4 * i : 4 * i + 4], "little") * m & low
        k = (k ^ k >> 24) * m & low
        h = h * m & low ^ k
    tail = data[len(data) & ~3 :]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & low
    h = (h ^ h >> 13) * m & low
    h ^= h >> 15
    return h - (1 << 32) if h >> 31 else h


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=20))
def test_any_bytes_hash_as_in_java(key: bytes) -> None:
    assert murmur2(np.frombuffer(key, np.uint8), 0, len(key)) == java_murmur2(key)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_spread_as_kafka_spreads_them(tmp_path: Path, kind: str) -> None:
    rows: list[Row] = [{"k": f"host-{n}", "x": 1.0} for n in range(40)]
    path = write(tmp_path, kind, rows)
    pieces = list(read_file(path, RecordSpec(("x",), "k"), 16, partitions=6))
    found = np.concatenate([piece.records.partition for piece in pieces]).tolist()
    assert found == [(java_murmur2(row["k"].encode()) & 0x7FFFFFFF) % 6 for row in rows]
