"""What `backtest` wrote, measured against labels in the file that it scored.

Both files hold a row for each record, in the same order. A label is a number: one of them says that
nothing is wrong, each run of another one within a key is a window. Rows without a label are not
judged (a part that a model was to learn from, for one), nor are records that were rejected.

A further column may say which channels caused a window, as `cpu,mem` at its records. Each run of
one text is then a window of the hit rate.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raywatch.actors.backtest import CHANNELS, EVIDENCE
from raywatch.actors.files import SERIES_MAX, FileBatch, read_file
from raywatch.actors.records import RecordSpec
from raywatch.models import measures
from raywatch.models.errors import ConfigError
from raywatch.models.measures import Bools
from raywatch.models.scorer import F64, I64

RATES = (0.01, 0.001)  # of normal records above the level at which windows are looked for
NOMINAL = (1e-3, 1e-4)  # tail probabilities whose promise is checked
HIT_SHARES = (1.0, 1.5)  # HitRate@100% and @150%
COLUMNS = ("key", "score", "p_value", "event_score", "alert")
CAUSES_BYTES_MAX = 1_048_576  # of the causes of a record


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
    event_score_recall: dict[float, float]  # the same of `event_score`
    false_alarms: dict[float, float]  # nominal probability -> share of normal records below it
    found: int  # windows with an alert in them
    false: int  # alerts outside every window
    delay: float  # median over windows found, records from begin to alert
    first_quarter: float  # share of windows found that were found in their first quarter
    hit_rate: dict[float, float]  # mean over windows with causes; empty: causes were not asked for
    keys: list[KeyQuality]  # in order of appearance


def evaluate(
    scores: Path,
    labelled: Path,
    label: str,
    *,
    normal: int = 0,
    buffer: int | Mapping[str, int] = 100,
    threshold: float | None = None,
    causes: str = "",
    progress: Callable[[int], None] = lambda records: None,
) -> Quality:
    """Measure the output of `backtest` against column `label` of its input. Raises ConfigError.

    Args:
        scores: what `backtest` wrote for `labelled`.
        labelled: Parquet, CSV or JSON lines.
        label: the column; whole numbers.
        normal: the label of records with which nothing is wrong.
        buffer: of VUS-PR, in records; for all keys, or for each.
        threshold: of NAB on `event_score`; without it the best one is chosen by the labels.
        causes: the column that names channels; `scores` must hold evidence then.
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
    blame = None
    if causes:
        blame = _blame(scores, labelled, label, causes, judged, labels != normal)
    found = _Found(normal, buffer, blame)
    done = 0
    order = np.flatnonzero(judged)[np.argsort(keys[judged], kind="stable")]
    for rows in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
        part = {name: column[rows] for name, column in numbers.items()}
        found.add(names[keys[rows[0]]], labels[rows].astype(np.int64), part, rows)
        done += len(rows)
        progress(done)
    return found.quality(threshold)


@dataclass(frozen=True, slots=True)
class _Blame:
    """What is to blame for which rows, and what was blamed."""

    cause: I64  # (rows,) which of `guilty`, -1: nobody said
    guilty: list[list[int]]  # channels
    place: I64  # (rows,) row of `evidence`, of rows with a cause
    evidence: F64  # (rows with a cause, C)

    def rates(self, rows: I64, window: I64) -> Iterator[list[float]]:
        """Hit rates of one key's windows, for each of HIT_SHARES."""
        cause = self.cause[rows]
        runs = np.where(cause >= 0, (window << 32) + cause, -1)
        number = measures.numbered(runs, -1)
        for each in range(int(number.max(initial=-1)) + 1):
            inside = rows[number == each]
            seen = self.evidence[self.place[inside]]
            guilty = self.guilty[int(self.cause[inside[0]])]
            yield [measures.hit_rate(seen, guilty, share) for share in HIT_SHARES]


class _Found:
    """What was measured, key by key."""

    def __init__(self, normal: int, buffer: int | Mapping[str, int], blame: _Blame | None) -> None:
        self._normal, self._buffer, self._blame = normal, buffer, blame
        self._hits: list[list[float]] = []
        self._series: list[tuple[F64, I64]] = []
        self._recall: dict[float, list[float]] = {rate: [] for rate in RATES}
        self._event_recall: dict[float, list[float]] = {rate: [] for rate in RATES}
        self._below = dict.fromkeys(NOMINAL, 0)
        self._normals = 0
        self._alarms: list[measures.Alarms] = []
        self._keys: list[KeyQuality] = []

    def add(self, key: str, label: I64, numbers: dict[str, Any], rows: I64) -> None:
        """One key's records, in order; `rows` of the file."""
        window = measures.numbered(label, self._normal)
        score, p_value = numbers["score"].astype(np.float64), numbers["p_value"]
        event = numbers["event_score"].astype(np.float64)
        self._series.append((event, window))
        for rate in RATES:
            self._recall[rate].append(measures.event_recall(score, window, rate))
            self._event_recall[rate].append(measures.event_recall(event, window, rate))
        self._normals += int((window < 0).sum())
        for nominal in NOMINAL:
            self._below[nominal] += int((p_value[window < 0] <= nominal).sum())
        alarms = measures.alarms(numbers["alert"].astype(np.bool_), window)
        self._alarms.append(alarms)
        found = len(alarms.delays)
        buffer = self._buffer if isinstance(self._buffer, int) else self._buffer[key]
        vus = measures.vus_pr(score, window >= 0, buffer)
        if self._blame is not None:
            self._hits.extend(self._blame.rates(rows, window))
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
            event_score_recall={rate: _mean(values) for rate, values in self._event_recall.items()},
            false_alarms={
                nominal: below / self._normals if self._normals else math.nan
                for nominal, below in self._below.items()
            },
            found=len(delays),
            false=sum(each.false for each in self._alarms),
            delay=float(np.median(delays)) if delays else math.nan,
            first_quarter=float((shares < 0.25).mean()) if len(shares) else math.nan,
            hit_rate={
                share: _mean([each[at] for each in self._hits])
                for at, share in enumerate(HIT_SHARES if self._blame is not None else ())
            },
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
        _refuse(path, piece, ("missing field",), "a label is a number, or absent")
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


def _refuse(path: Path, piece: FileBatch, usual: tuple[str, ...], hint: str) -> None:
    wrong = next((each for each in piece.records.rejects if each.reason not in usual), None)
    if wrong is not None:
        raise ConfigError(
            f"`{path}`, row {wrong.offset}: {wrong.reason}: {wrong.detail}", hint=hint
        )


def _blame(
    scores: Path, path: Path, label: str, name: str, judged: Bools, strange: Bools
) -> _Blame:
    """Causes of the rows that are judged, and the evidence for them."""
    evidence, channels = _evidence(scores)
    cause, texts = _causes(path, label, name)
    cause[~judged] = -1
    usual = (cause >= 0) & ~strange
    if usual.any():
        raise ConfigError(
            f"`{path}`, row {int(np.argmax(usual))}: a cause where `{label}` says nothing is wrong",
            hint=f"`{name}` is empty outside of windows",
        )
    rows = np.flatnonzero(cause >= 0)
    if not len(rows):
        raise ConfigError(f"no window of `{path}` has a cause in column `{name}`")
    guilty = [[channels.get(each.strip(), -1) for each in text.split(",")] for text in texts]
    for at in np.unique(cause[rows]).tolist():
        if -1 in guilty[at]:
            row, known = int(np.argmax(cause == at)), ", ".join(channels)
            raise ConfigError(
                f"`{path}`, row {row}: `{texts[at][:200]}` names no channels that were scored",
                hint=f"channels, separated by commas; they are: {known[:500]}",
            )
    place = np.full(len(cause), -1, np.int64)
    place[rows] = np.arange(len(rows))
    part = evidence.take(pa.array(rows)).combine_chunks()
    flat = part.flatten().to_numpy().astype(np.float64)
    return _Blame(cause, guilty, place, flat.reshape(len(rows), len(channels)))


def _causes(path: Path, label: str, name: str) -> tuple[I64, list[str]]:
    """(rows,) which text each row has, -1 for none; the texts. They are read as any key is."""
    spec = RecordSpec(values=(label,), key=name, key_bytes_max=CAUSES_BYTES_MAX)
    number: dict[bytes, int] = {}
    parts: list[I64] = []
    for piece in read_file(path, spec):
        part = np.full(piece.rows, -1, np.int64)
        for at, row in enumerate((piece.row - piece.first).tolist()):
            part[row] = number.setdefault(piece.records.key(at), len(number))
        # An empty text is a bad key.
        _refuse(path, piece, ("missing field", "bad key"), "causes are a text, or absent")
        parts.append(part)
    cause = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return cause, [text.decode("utf-8", "replace") for text in number]


def _scores(path: Path) -> Any:
    try:
        return pq.read_table(path, columns=list(COLUMNS))
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"cannot read scores from `{path}`: {reason[:200]}",
            hint="it has to be what `raywatch backtest --output` wrote",
        ) from error


def _evidence(path: Path) -> tuple[Any, dict[str, int]]:
    """The column, and the place of each channel in its lists."""
    schema = pq.read_schema(path)
    names = (schema.metadata or {}).get(CHANNELS)
    if EVIDENCE not in schema.names or names is None:
        raise ConfigError(
            f"`{path}` has no column `{EVIDENCE}`",
            hint="causes need it: `raywatch backtest --evidence` writes it",
        )
    channels: list[str] = json.loads(names)
    column = pq.read_table(path, columns=[EVIDENCE])[EVIDENCE]
    return column, {channel: at for at, channel in enumerate(channels)}


def _keys(table: Any) -> tuple[I64, list[str]]:
    """(rows,) number of each row's key, -1 for a reject; the keys."""
    column = table["key"].fill_null("").combine_chunks().dictionary_encode()
    names: list[str] = column.dictionary.to_pylist()
    numbers = column.indices.to_numpy().astype(np.int64)
    return np.where(numbers == (names.index("") if "" in names else -1), -1, numbers), names
