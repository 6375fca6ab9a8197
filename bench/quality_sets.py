"""Public sets as the labelled files that `raywatch evaluate` takes, and what was published of them.

    nab.parquet             series, ts, value, window: -1 or the number of the labelled window
    tsbad_u.parquet         series, t, x0, label
    tsbad_m/*.parquet       t, x0 .. xN, label: one file a series
    tsbad_meta.csv          series, vus_window: the buffer of VUS-PR
    nab_published_scores.parquet       a column of scores for each published detector
    tsbad_[um]_published_vus_pr.csv     file, and the VUS-PR of each published method
    smd.npz, asd.npz        NAME|tr, NAME|te (records, channels), NAME|y labels of the test part
    interpretation_label/NAME.txt       begin-end:1,2,5 in the test part, channels from 1

Train parts go in front of test parts, without labels. It does not know how anything is measured.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raywatch.models.errors import ConfigError

NEEDS = {  # what each part of the report reads
    "nab": ("nab.parquet", "nab_published_scores.parquet"),
    "tsbad_u": ("tsbad_u.parquet", "tsbad_meta.csv", "tsbad_u_published_vus_pr.csv"),
    "tsbad_m": ("tsbad_m", "tsbad_meta.csv", "tsbad_m_published_vus_pr.csv"),
    "smd": ("smd.npz", "interpretation_label"),
    "asd": ("asd.npz", "interpretation_label"),
    "injections": ("smd.npz", "asd.npz"),
    "alarms": ("smd.npz", "asd.npz"),
    "loghub": ("loghub_2k",),
    "counters": (),
    "weeks": (),
    "channels": (),
    "log_lines": (),
    "hdfs": ("hdfs/normal_sessions.txt", "hdfs/abnormal_sessions.txt"),
    "nsl_kdd": ("nsl_kdd.parquet",),
    "smtp": ("smtp.npz",),
    "payments": ("fraud_sim.parquet",),
    "traces": (),
}
STEP_MS = {"smd": 60_000, "asd": 300_000}  # between two records, as the papers say


class Labelled(NamedTuple):
    """A file for `evaluate`. Its columns are key, ts, the channels, and those named here."""

    path: Path
    channels: tuple[str, ...]
    label: str = "label"
    normal: int = 0
    causes: str = ""


def check(folder: Path, parts: list[str]) -> None:
    """Raises ConfigError where something is not there."""
    if not folder.is_dir():
        raise ConfigError(f"`{folder}` is no folder", hint="name the one that holds nab.parquet")
    wanted = dict.fromkeys(name for part in parts for name in NEEDS[part])
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        raise ConfigError(
            f"`{folder}` lacks {', '.join(f'`{name}`' for name in missing)}",
            hint="--only measures a part: " + ", ".join(NEEDS),
        )


def nab(folder: Path, out: Path) -> Labelled:
    """The NAB series, whose windows are numbered."""
    table = pq.read_table(folder / "nab.parquet", columns=["series", "ts", "value", "window"])
    table = table.rename_columns(["key", "ts", "value", "window"])
    return Labelled(_written(table, out / "nab.parquet"), ("value",), "window", -1)


def tsbad_u(folder: Path, out: Path) -> Labelled:
    """The univariate series of TSB-AD."""
    table = pq.read_table(folder / "tsbad_u.parquet", columns=["series", "t", "x0", "label"])
    table = table.rename_columns(["key", "ts", "x0", "label"])
    return Labelled(_written(table, out / "tsbad_u.parquet"), ("x0",))


def tsbad_m(folder: Path, out: Path) -> Iterator[tuple[str, Labelled]]:
    """The multivariate ones, each with channels of its own."""
    for path in sorted((folder / "tsbad_m").glob("*.parquet")):
        table = pq.read_table(path)
        channels = tuple(name for name in table.column_names if name[0] == "x")
        name = f"{path.stem}.csv"
        columns = {"key": pa.array([name] * len(table)), "ts": table["t"]}
        columns |= {each: table[each] for each in (*channels, "label")}
        yield name, Labelled(_written(pa.table(columns), out / path.name), channels)


def machines(folder: Path, name: str, out: Path) -> Labelled:
    """SMD or ASD: all machines, with labels and causes in the test parts."""
    tables: list[pa.Table] = []
    for machine, part in parts(folder, name):
        train, test, label = part["tr"], part["te"], part["y"].astype(np.int64)
        values = np.concatenate([train, test])
        columns = columns_of(machine, values, STEP_MS[name])
        before = [None] * len(train)
        columns["label"] = pa.array([*before, *label.tolist()], pa.int64())
        text = _causes(folder / "interpretation_label" / f"{machine}.txt", label)
        columns["cause"] = pa.array([*before, *text], pa.string())
        tables.append(pa.table(columns))
    table = pa.concat_tables(tables)
    channels = tuple(name for name in table.column_names if name[0] == "x")
    return Labelled(_written(table, out / f"{name}.parquet"), channels, causes="cause")


def parts(folder: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Machines and their parts: tr, te, y."""
    with np.load(folder / f"{name}.npz") as arrays:
        for machine in sorted({each.split("|")[0] for each in arrays.files}):
            yield machine, {part: arrays[f"{machine}|{part}"] for part in ("tr", "te", "y")}


def columns_of(key: str, values: Any, step_ms: int) -> dict[str, pa.Array]:
    """Key, time and channels x0 .. of (records, channels) values."""
    size, channels = values.shape
    columns = {"key": pa.array([key] * size), "ts": pa.array(np.arange(size) * step_ms)}
    columns |= {f"x{n}": pa.array(values[:, n].astype(np.float64)) for n in range(channels)}
    return columns


def _causes(path: Path, label: Any) -> list[str | None]:
    """Text of each test record; in SMD the last record of a stretch is no longer labelled."""
    if not path.is_file():
        raise ConfigError(f"no `{path}`", hint="it says which channels caused the windows")
    text: list[str | None] = [None] * len(label)
    for line in path.read_text().split():
        where, _, channels = line.partition(":")
        begin, end = map(int, where.split("-"))
        names = ",".join(f"x{int(each) - 1}" for each in channels.split(","))
        for at in range(begin, min(end + 1, len(label))):
            if label[at]:
                text[at] = names
    return text


def _written(table: pa.Table, path: Path) -> Path:
    pq.write_table(table, path)
    return path


def buffers(folder: Path) -> dict[str, int]:
    """Buffer of VUS-PR of each TSB-AD series."""
    with (folder / "tsbad_meta.csv").open(newline="") as file:
        return {row["series"]: int(row["vus_window"]) for row in csv.DictReader(file)}


def nab_published(folder: Path) -> dict[str, Any]:
    """Scores of published detectors on the NAB records, (N,) of each, by detector."""
    table = pq.read_table(folder / "nab_published_scores.parquet")
    return {name: np.nan_to_num(table[name].to_numpy()) for name in table.column_names}


def published(folder: Path, kind: str) -> dict[str, dict[str, float]]:
    """VUS-PR by method and series."""
    with (folder / f"tsbad_{kind}_published_vus_pr.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    methods = [name for name in rows[0] if name != "file"] if rows else []
    return {name: {row["file"]: float(row[name]) for row in rows} for name in methods}
