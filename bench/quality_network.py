"""The network class on public security records: NSL-KDD and the smtp part of KDD 99.

    nsl_kdd.parquet   columns 0 .. 40 of a connection, 41: kind of attack or `normal`; what
                      follows is about the label and is not read
    smtp.npz          X (records, 3), y: 1 is an attack

The first 2,048 normal records come first and are learnt; the others follow in the order of the
file, without labels. Measured are the AUC of `score` over those others, through `backtest`, and how
many of the normal ones have p <= 0.001, over 0.001. Those of smtp come in runs: no correction by
what happened (models/promise.py) helped, it made both numbers worse.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from quality_page import GOALS, Row, Section
from quality_presets import told

from raywatch.actors.records import RecordSpec

FRONT = 2_048  # normal records that come first
NOMINAL = 1e-3
CATEGORIES = ("1", "2", "3")  # of NSL-KDD: protocol, service, flag
KIND = "41"
KIND_MIN = 100  # records of a kind of attack that is named


def auc(label: NDArray[np.bool_], score: NDArray[Any]) -> float:
    """Chance that an attack has a larger score than a normal record; ties count half."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    rank = ((ends - counts + 1 + ends) / 2.0)[inverse]
    ones = int(label.sum())
    return float((rank[label].sum() - ones * (ones + 1) / 2.0) / (ones * (label.size - ones)))


def nsl_kdd(folder: Path, room: Path) -> Section:
    """NSL-KDD, and how much of each kind of attack is found."""
    table = pq.ParquetFile(folder / "nsl_kdd.parquet").read()
    kind = np.array(table[KIND].to_pylist(), object)
    order = _order(kind == "normal")
    table, kind = table.take(pa.array(order)), kind[order]
    values = tuple(name for name in map(str, range(int(KIND))) if name not in CATEGORIES)
    score, p = _scored(table, RecordSpec(values=values, words=CATEGORIES), room)
    kind = kind[FRONT:]
    found = score > np.quantile(score[kind == "normal"], 0.99)
    rows = [
        Row("AUC of `score`", auc(kind != "normal", score), GOALS["nsl_kdd"]),
        Row("attacks found at 1 % false positives", float(found[kind != "normal"].mean())),
        Row("normal records at p = 0.001, over nominal", _over_nominal(p[kind == "normal"])),
    ]
    for name in sorted(set(kind.tolist()) - {"normal"}):
        here = kind == name
        if int(here.sum()) >= KIND_MIN:
            rows.append(Row(f"of `{name}` ({int(here.sum()):,})", float(found[here].mean())))
    return Section("Security: NSL-KDD", _words(kind != "normal"), rows)


def smtp(folder: Path, room: Path) -> Section:
    """The smtp records of KDD 99."""
    with np.load(folder / "smtp.npz") as arrays:
        numbers, attack = arrays["X"], arrays["y"].astype(bool)
    order = _order(~attack)
    names = tuple(f"x{n}" for n in range(numbers.shape[1]))
    table = pa.table({name: numbers[order, n] for n, name in enumerate(names)})
    score, p = _scored(table, RecordSpec(values=names), room)
    attack = attack[order][FRONT:]
    rows = [
        Row("AUC of `score`", auc(attack, score), GOALS["smtp"]),
        Row("normal records at p = 0.001, over nominal", _over_nominal(p[~attack])),
    ]
    return Section("Security: smtp", _words(attack), rows)


def _order(normal: NDArray[np.bool_]) -> NDArray[np.int64]:
    front = np.flatnonzero(normal)[:FRONT]
    return np.concatenate((front, np.setdiff1d(np.arange(normal.size), front)))


def _over_nominal(p: NDArray[Any]) -> float:
    return float((p <= NOMINAL).mean() / NOMINAL)


def _scored(table: pa.Table, record: RecordSpec, room: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Score and p that `backtest` gives each record behind the front."""
    said = told(table, "network", record, room, "score", "p_value")
    return said["score"].to_numpy()[FRONT:], said["p_value"].to_numpy()[FRONT:]


def _words(attack: NDArray[np.bool_]) -> str:
    return (
        f"{attack.size:,} records behind the first {FRONT:,} normal ones, {int(attack.sum()):,} of "
        "them attacks; model `preset:network`, nothing set."
    )
