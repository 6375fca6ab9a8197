"""What `backtest` wrote, measured against labels in the file that it scored.

Both files hold a row for each record, in the same order. A label is a number: one of them says that
nothing is wrong, each run of another one within a key is a window. Rows without a label are not
judged (a part that a model was to learn from, for one), nor are records that were rejected.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raywatch.actors.files import SERIES_MAX, read_file
from raywatch.actors.records import RecordSpec
from raywatch.models import measures
from raywatch.models.errors import ConfigError
from raywatch.models.scorer import F64, I64

RATES = (0.01, 0.001)  # of normal records above the level at which windows are looked for
NOMINAL = (1e-3, 1e-4)  # tail probabilities whose promise is checked
COLUMNS = ("key", "score", "p_value", "event_score", "alert")


@dataclass(frozen=True, slots=True)
class KeyQuality:
    """One key: its windows, what alerts found of them, and how well scores rank its records."""

    key: str
    records: int
    windows: int
    found: int
    false: int
    vus_pr: float  # NaN: it has no window


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the scores of a file are; NaN where labels allow no answer."""

    records: int  # that were judged
    windows: int
    nab: dict[str, measures.Nab]  # of `event_score`, by NAB's profiles
    vus_pr: float  # of `score`, mean over keys that have a window
    event_recall: dict[float, float]  # of `score`, by rate of false alarms; mean over those keys
    false_alarms: dict[float, float]  # nominal probability -> share of normal records below it
    found: int  # windows with an alert in them
    false: int  # alerts outside every window
    delay: float  # median over windows found, records from begin to alert
    first_quarter: float  # share of windows found that were found in their first quarter
    keys: list[KeyQuality]  # in order of appearance


def evaluate(
    scores: Path,
    labelled: Path,
    label: str,
    *,
    normal: int = 0,
    buffer: int = 100,
    threshold: float | None = None,
    progress: Callable[[int], None] = lambda records: None,
) -> Quality:
    """Measure the output of `backtest` against column `label` of its input. Raises ConfigError.

    Args:
        scores: what `backtest` wrote for `labelled`.
        labelled: Parquet, CSV or JSON lines.
        label: the column; whole numbers.
        normal: the label of records with which nothing is wrong.
        buffer: of VUS-PR, in records.
        threshold: of NAB on `event_score`; without it the best one is chosen by the labels.
        progress: told how many records are measured.
    """
    labels, table = _labels(labelled, label), _scores(scores)
    if len(labels) != table.num_rows:
        raise ConfigError(
            f"`{scores}` has {table.num_rows} rows, `{labelled}` has {len(labels)}",
            hint="scores are those of another file: run `raywatch backtest` again",
        )
    keys, names = _keys(table)
    numbers = {name: table[name].to_numpy() for name in COLUMNS[1:]}
    judged = (keys >= 0) & ~np.isnan(labels)
    if not judged.any():
        raise ConfigError(f"no record of `{labelled}` has a label in column `{label}`")
    found = _Found(normal, buffer)
    done = 0
    order = np.flatnonzero(judged)[np.argsort(keys[judged], kind="stable")]
    for rows in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
        part = {name: column[rows] for name, column in numbers.items()}
        found.add(names[keys[rows[0]]], labels[rows].astype(np.int64), part)
        done += len(rows)
        progress(done)
    return found.quality(threshold)


class _Found:
    """What was measured, key by key."""

    def __init__(self, normal: int, buffer: int) -> None:
        self._normal, self._buffer = normal, buffer
        self._series: list[tuple[F64, I64]] = []
        self._recall: dict[float, list[float]] = {rate: [] for rate in RATES}
        self._below = dict.fromkeys(NOMINAL, 0)
        self._normals = 0
        self._alarms: list[measures.Alarms] = []
        self._keys: list[KeyQuality] = []

    def add(self, key: str, label: I64, numbers: dict[str, Any]) -> None:
        """One key's records, in order."""
        window = measures.numbered(label, self._normal)
        score, p_value = numbers["score"].astype(np.float64), numbers["p_value"]
        self._series.append((numbers["event_score"].astype(np.float64), window))
        for rate, values in self._recall.items():
            values.append(measures.event_recall(score, window, rate))
        self._normals += int((window < 0).sum())
        for nominal in NOMINAL:
            self._below[nominal] += int((p_value[window < 0] <= nominal).sum())
        alarms = measures.alarms(numbers["alert"].astype(np.bool_), window)
        self._alarms.append(alarms)
        found = len(alarms.delays)
        vus = measures.vus_pr(score, window >= 0, self._buffer)
        self._keys.append(
            KeyQuality(key, len(window), found + alarms.missed, found, alarms.false, vus)
        )

    def quality(self, threshold: float | None) -> Quality:
        """Of all keys."""
        shares = np.array([share for each in self._alarms for share in each.shares])
        delays = [delay for each in self._alarms for delay in each.delays]
        return Quality(
            records=sum(each.records for each in self._keys),
            windows=sum(each.windows for each in self._keys),
            nab=measures.nab(self._series, threshold),
            vus_pr=_mean([each.vus_pr for each in self._keys]),
            event_recall={rate: _mean(values) for rate, values in self._recall.items()},
            false_alarms={
                nominal: below / self._normals if self._normals else math.nan
                for nominal, below in self._below.items()
            },
            found=len(delays),
            false=sum(each.false for each in self._alarms),
            delay=float(np.median(delays)) if delays else math.nan,
            first_quarter=float((shares < 0.25).mean()) if len(shares) else math.nan,
            keys=self._keys,
        )


def _mean(values: list[float]) -> float:
    """Of those that are numbers; NaN without one."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _labels(path: Path, name: str) -> F64:
    """(rows,) label of each row, NaN where it has none. A label is read as any channel is."""
    parts: list[F64] = []
    for piece in read_file(path, RecordSpec(values=(name,))):
        part = np.full(piece.rows, np.nan)
        part[piece.row - piece.first] = piece.records.values[:, 0]
        wrong = next((r for r in piece.records.rejects if r.reason != "missing field"), None)
        if wrong is not None:
            raise ConfigError(
                f"`{path}`, row {wrong.offset}: {wrong.reason}: {wrong.detail}",
                hint="a label is a number, or absent",
            )
        parts.append(part)
        if sum(map(len, parts)) > SERIES_MAX:
            raise ConfigError(f"`{path}` has more than `{SERIES_MAX}` rows", hint="take a part")
    labels = np.concatenate(parts) if parts else np.zeros(0)
    whole = np.isnan(labels) | (np.abs(labels) < 2**31) & (labels == np.floor(labels))
    if not whole.all():
        row = int(np.argmin(whole))
        raise ConfigError(
            f"`{path}`, row {row}: label `{labels[row]:g}`", hint="labels are whole numbers"
        )
    return labels


def _scores(path: Path) -> Any:
    try:
        return pq.read_table(path, columns=list(COLUMNS))
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"cannot read scores from `{path}`: {reason[:200]}",
            hint="it has to be what `raywatch backtest --output` wrote",
        ) from error


def _keys(table: Any) -> tuple[I64, list[str]]:
    """(rows,) number of each row's key, -1 for a reject; the keys."""
    column = table["key"].fill_null("").combine_chunks().dictionary_encode()
    names: list[str] = column.dictionary.to_pylist()
    numbers = column.indices.to_numpy().astype(np.int64)
    return np.where(numbers == (names.index("") if "" in names else -1), -1, numbers), names
