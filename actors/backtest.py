"""A file through the very same stages, without Kafka and without Ray.

One row is written for each record of the input, in its order. What the service would say about
the same records is what is said here: the stages are the service's own, and a score depends on
nothing but the records before it.
"""

import errno
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raywatch.actors.files import FileBatch, read_file, resolve
from raywatch.actors.flow import Batch, Said
from raywatch.actors.label_file import payments, settled, with_labels
from raywatch.actors.line_times import Held
from raywatch.actors.ports import Partition
from raywatch.actors.records import Records, RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.stages import flow_of
from raywatch.models.errors import ConfigError
from raywatch.models.scorer import I64, Scorer, describe

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("ts", pa.int64()),
        ("score", pa.float32()),
        ("p_value", pa.float64()),
        ("event_score", pa.float32()),
        ("alert", pa.bool_()),
        ("alert_id", pa.string()),
    ]
)
SESSIONS = "ended"  # column with a list for each record of a log: the sessions whose end it noticed
SESSION = pa.struct(
    [
        ("session", pa.string()),
        ("records", pa.int64()),
        ("score", pa.float32()),
        ("p_value", pa.float64()),
    ]
)
EVIDENCE = "evidence"  # column with a list for each record; the schema names its channels
CHANNELS = b"channels"  # in the metadata of the schema


@dataclass(slots=True)
class Summary:
    """What a backtest did."""

    records: int = 0
    keys: int = 0
    alerts: int = 0  # incidents opened: what would have paged
    held: int = 0  # incidents that `alert.per_day` did not let open at once
    rejects: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])
    # By reason, the first reject: its row, from 1 on, and what was wrong with it.
    examples: dict[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    first_ms: int | None = None  # earliest and latest time of records; None: they name no field
    last_ms: int | None = None
    absent: list[str] = field(default_factory=list[str])  # values and words that no record has
    model: str = ""
    labels: dict[str, int] = field(default_factory=dict[str, int])  # what became of them, if any
    times: Held | None = None  # of lines without fields: whether they say when they were written


def backtest(
    spec: DetectorSpec,
    scorer: Scorer,
    path: Path,
    output: Path,
    *,
    alerts: Path | None = None,
    labels: Path | None = None,
    partitions: int = 1,
    evidence: bool = False,
    progress: Callable[[int], None] = lambda records: None,
) -> Summary:
    """Score a Parquet, CSV or JSON-lines file; write OUTPUT and, where asked, all alerts as JSON.

    `partitions` spreads keys as Kafka's default partitioner would: silence is judged among the
    keys of one partition, so give the topic's number to see the service's own missing-data alerts.
    `labels` of payments may be a file of their own, see label_file.py; they get no rows.
    Rejected records keep their row, with an empty key and no score. With `evidence` each record
    says what its channels would be by themselves: sums of -log10 p over the components, whose
    squares are what an alert's shares are shares of. Where records have a session, a column says
    which sessions ended and how strange each was. Raises ConfigError.
    """
    apart = labels is not None or spec.labels != ""
    record = (settled if apart else resolve)(path, spec.record)
    spec = replace(spec, record=record, partitions=partitions)
    model = describe(scorer)
    names = tuple(Partition("", number) for number in range(partitions))
    flow = flow_of(spec, names, model, evidence=evidence)
    flow.speak = dict.fromkeys(names, -sys.maxsize)  # also at labels, which lie below 0
    schema = SCHEMA
    if spec.record.session is not None:
        schema = schema.append(pa.field(SESSIONS, pa.list_(SESSION)))
    schema = _with_evidence(schema, spec.columns) if evidence else schema
    summary = Summary(model=model.version)
    pieces = _begun(_pieces(spec, path, labels, partitions))
    absent = set(spec.record.values) | set(spec.record.words)
    with ExitStack() as stack:
        writer = stack.enter_context(_table_file(output, schema))
        said_to = stack.enter_context(_alerts_file(alerts)) if alerts else None
        for piece in pieces:
            batch = flow.prepare(piece.records, model, begin={}, end={})
            scores = None if batch.segments is None else scorer.score(batch.segments)
            said = flow.finish(batch, scores)
            table = _table(piece, batch, said, schema)
            with _writing(output):
                writer.write_table(table)
            if alerts is not None and said_to is not None:
                with _writing(alerts):
                    said_to.writelines(alert.to_json() + b"\n" for alert in said.alerts)
                    said_to.flush()
            _count(summary, piece, said)
            if spec.record.time is not None:
                _span(summary, piece.records.time_ms)
            absent -= _there(spec.record, piece.records)
            progress(summary.records)
    if summary.records > summary.rejects:
        summary.absent = sorted(absent)
    summary.keys = len(flow.keys)
    summary.labels = flow.labels()
    return summary


def _pieces(
    spec: DetectorSpec, path: Path, labels: Path | None, partitions: int
) -> Iterator[FileBatch]:
    if labels is None:
        read = payments if spec.labels else read_file
        return read(path, spec.record, spec.batch_records, partitions=partitions)
    return with_labels(
        path, labels, spec.record, spec.batch_records,
        partitions=partitions, delay_s=spec.labels_delay_s,
    )  # fmt: skip


def _begun(pieces: Iterator[FileBatch]) -> Iterator[FileBatch]:
    """The same, the first one read already: no output is begun for what cannot be read."""
    return chain(list(islice(pieces, 1)), pieces)


@contextmanager
def _writing(path: Path) -> Generator[None]:
    """Turns what a disk answers into ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write `{path}`: {(error.strerror or str(error)).lower()}",
            hint="name a file in a folder that may be written and has room",
        ) from error


@contextmanager
def _table_file(path: Path, schema: pa.Schema) -> Generator[Any]:
    """A Parquet file that is there when it is whole, and not before."""
    part = path.with_name(f"{path.name}.part")
    with _writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = pq.ParquetWriter(part, schema, compression="zstd")
    try:
        yield writer
        with _writing(path):
            writer.close()
            part.replace(path)
    except BaseException:
        with suppress(OSError):
            writer.close()
        part.unlink(missing_ok=True)
        raise


@contextmanager
def _alerts_file(path: Path) -> Generator[IO[bytes]]:
    """A file that is flushed by whoever writes to it: closing it says nothing any more."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def _with_evidence(schema: pa.Schema, channels: tuple[str, ...]) -> pa.Schema:
    wide = schema.append(pa.field(EVIDENCE, pa.list_(pa.float32())))
    return wide.with_metadata({CHANNELS: json.dumps(channels).encode()})


def _table(piece: FileBatch, batch: Batch, said: Said, schema: pa.Schema) -> pa.Table:
    """The output rows of one batch, rejected records included."""
    size = piece.rows
    first = int(piece.first)
    keys = np.full(size, None, object)
    ts = np.zeros(size, np.int64)
    valid = np.zeros(size, bool)
    score = np.zeros(size, np.float32)
    p = np.ones(size)
    event = np.zeros(size, np.float32)
    alert = np.zeros(size, bool)
    ids = np.full(size, None, object)
    records = batch.records
    # `offset` of a record from a file is its row: it survives the loss of rejected neighbours.
    at = records.offset - first
    rows = records.offset >= 0  # labels of another file have none
    if said.decided is not None:
        mine = rows[batch.order]
        grouped = at[batch.order][mine]
        score[grouped] = said.decided.score[mine]
        p[grouped] = said.decided.p[mine]
        event[grouped] = said.decided.event[mine]
        # Of the records, not of the flow: it may have forgotten a key by now.
        firsts = batch.order[np.cumsum(batch.counts) - batch.counts].tolist()
        texts = [records.key(first).decode("utf-8", "replace") for first in firsts]
        keys[grouped] = np.repeat(np.array(texts, object), batch.counts)[mine]
        ts[at[rows]] = records.time_ms[rows]
        valid[at[rows]] = True
    for cause, entry in zip(said.causes, said.alerts, strict=True):
        if entry.state == "open" and entry.rule == "anomaly":
            alert[at[cause]] = True
            ids[at[cause]] = entry.id
    columns = [
        pa.array(keys, pa.string()),
        pa.array(ts, pa.int64(), mask=~valid),
        pa.array(score),
        pa.array(p),
        pa.array(event),
        pa.array(alert),
        pa.array(ids, pa.string()),
    ]
    if SESSIONS in schema.names:
        columns.append(_sessions(batch, said, valid))
    if EVIDENCE in schema.names:
        columns.append(_evidence(batch, said, valid))
    return pa.Table.from_arrays(columns, schema=schema)


def _sessions(batch: Batch, said: Said, valid: NDArray[np.bool_]) -> pa.Array:
    """A list of SESSION for each row, null for a reject."""
    found = None if said.decided is None else said.decided.ended
    count = np.zeros(batch.order.shape[0], np.int64)
    parts: list[Any] = [pa.array([], field.type) for field in SESSION]
    if found is not None:
        np.add.at(count, batch.order[found.index], 1)
        width = found.session.shape[1]
        names = found.session.reshape(-1).view(f"S{width}").tolist()
        texts = [name.decode("utf-8", "replace") or None for name in names]
        parts = [
            pa.array(texts, pa.string()),
            *map(pa.array, (found.records, found.score, found.p)),
        ]
    whole = np.zeros(valid.shape[0], np.int64)
    whole[valid] = count
    offsets = pa.array(np.concatenate(([0], np.cumsum(whole))).astype(np.int32))
    rows = pa.StructArray.from_arrays(parts, fields=list(SESSION))
    return pa.ListArray.from_arrays(offsets, rows, mask=pa.array(~valid))


def _evidence(batch: Batch, said: Said, valid: NDArray[np.bool_]) -> pa.Array:
    """A list for each row, null for a reject."""
    ends = np.concatenate(([0], np.cumsum(valid)))
    evidence = None if said.decided is None else said.decided.evidence
    assert said.decided is None or evidence is not None, "the flow was to tell it"
    flat = np.zeros((int(ends[-1]), 1 if evidence is None else evidence.shape[1]), np.float32)
    if evidence is not None:
        rows = batch.records.offset >= 0
        mine = rows[batch.order]
        flat[(np.cumsum(rows) - 1)[batch.order][mine]] = evidence[mine]
    offsets = pa.array((ends * flat.shape[1]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(flat.reshape(-1)), mask=pa.array(~valid))


def _count(summary: Summary, piece: FileBatch, said: Said) -> None:
    summary.times = piece.times
    summary.records += piece.rows
    summary.alerts += sum(alert.state == "open" for alert in said.alerts)
    summary.held += said.tally.held
    summary.rejects += len(said.rejects)
    summary.reasons.update(reject.reason for reject in said.rejects)
    for reject in said.rejects:
        # A label of another file lies below 0: its row counts from there.
        row = reject.offset + 1 if reject.offset >= 0 else -reject.offset
        summary.examples.setdefault(reject.reason, (row, reject.detail))


def _there(spec: RecordSpec, records: Records) -> set[str]:
    """Those of the values and words that one of these records has."""
    known = np.logical_not(np.isnan(records.values)).any(axis=0)
    shown = (records.words[:, : len(spec.words)] != 0).any(axis=0)
    found = np.flatnonzero(np.concatenate((known, shown)))
    return {(*spec.values, *spec.words)[at] for at in found.tolist()}


def _span(summary: Summary, time_ms: I64) -> None:
    if time_ms.shape[0] == 0:
        return
    first, last = int(time_ms.min()), int(time_ms.max())
    summary.first_ms = first if summary.first_ms is None else min(summary.first_ms, first)
    summary.last_ms = last if summary.last_ms is None else max(summary.last_ms, last)
