"""A file as a stream of records: what a backtest and a training read.

Parquet and CSV by columns, JSON lines by `decode` itself; where records are lines without fields,
any other file, a line a record. CSV and lines may be compressed (packed.py). The same data give
the same records whichever way they are written; a row is rejected for the reasons a record would
be. In memory is one batch at a time (Parquet: and what one row group needs).

What a file does not say, it is given: without a key field the file's stem is the key of all rows,
without a time field a row's number is its time (for lines without fields: line_times.py). In text
columns (CSV), a number may stand for a time, and the words of columns.NULLS for nothing. A blank
line of a file is no row, as for whoever else reads such files.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raywatch.actors.bare_lines import decode_lines
from raywatch.actors.columns import (
    column_of,
    is_line,
    is_word,
    names_of,
    no_use,
    nulls,
    numbers,
    text_of,
    times,
)
from raywatch.actors.decode import cut, decode, join
from raywatch.actors.grammar import TIME_MAX_MS
from raywatch.actors.keys import KeyTable, group
from raywatch.actors.labels import kinds
from raywatch.actors.line_times import Held, LineClock
from raywatch.actors.names import Names, expand, is_pattern, names_in, parsed
from raywatch.actors.packed import (
    REFUSED,
    hint_of,
    must_be_readable,
    opened,
    packed,
    stream_of,
    unpacked,
)
from raywatch.actors.partitioner import partitions_of
from raywatch.actors.ports import Fetched
from raywatch.actors.records import LINE_BYTES_MAX, Records, RecordSpec, Reject
from raywatch.actors.scan import hash_column
from raywatch.models.errors import ConfigError
from raywatch.models.payment_names import PAYMENT, UNCLEAR
from raywatch.models.scorer import F64, I32, I64, U8

MASK = NDArray[np.bool_]
pc: Any = pyarrow.compute  # its functions are made when it is imported: unknown to checkers
KINDS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".jsonl": "lines", ".ndjson": "lines",
}  # fmt: skip
SAMPLE = 1_000  # lines of a file by which its columns are known, or how it writes times
BLOCK_BYTES = 8_388_608  # of a CSV file; a row must fit
BATCH_BYTES = 33_554_432  # of lines; where they are long, a batch has fewer
SERIES_MAX = 50_000_000  # values that `read_series` holds: 400 MB


@dataclass(frozen=True, slots=True)
class FileBatch:
    """Some rows of a file. A record's `offset` is its row."""

    records: Records
    first: int  # row the batch begins with
    rows: int  # rows it covers: records and rejects
    times: Held | None = None  # of lines without fields: what the first ones say of time

    @property
    def row(self) -> I64:
        """(N,) row of each record."""
        return self.records.offset


def read_file(
    path: Path, spec: RecordSpec, batch: int = 20_000, *, partitions: int = 1
) -> Iterator[FileBatch]:
    """Read a file in batches of at most `batch` rows, in order.

    With more than one partition, a key goes to the one where Kafka's default partitioner puts it.
    Raises ConfigError for a file that cannot be read and for columns it does not have.
    """
    assert batch > 0, batch
    assert partitions > 0, partitions
    spec = resolve(path, spec)
    by_line = spec.format == "text" or _kind(path) == "lines"
    pieces = (_lines if by_line else _columns)(path, spec, batch)
    with _reading(path):
        for piece in pieces:
            records = piece.records
            if partitions > 1 and len(records) > 0:
                part = partitions_of(records.text, records.key_begin, records.key_size, partitions)
                piece = replace(piece, records=replace(records, partition=part))  # noqa: PLW2901
            yield piece


def read_series(
    path: Path, spec: RecordSpec, *, progress: Callable[[int], None] = lambda records: None
) -> list[tuple[str, F64]]:
    """All of a file by key: (key, (n, C) values, oldest first), in order of first appearance.

    Rejected rows are left out. Raises ConfigError, also for more than SERIES_MAX values.
    """
    keys = KeyTable(2**31 - 1)
    slots: list[I32] = []
    values: list[F64] = []
    records = count = 0
    for piece in read_file(path, spec):
        slots.append(keys.intern(piece.records))
        values.append(piece.records.values)
        count += piece.records.values.size
        if count > SERIES_MAX:
            raise ConfigError(
                f"`{path}` has more than `{SERIES_MAX}` values", hint="train on a part of it"
            )
        records += len(piece.records)
        progress(records)
    if not len(keys):
        return []
    order, touched, counts = group(np.concatenate(slots))
    parts = np.split(np.concatenate(values)[order], np.cumsum(counts)[:-1])
    names = [keys.key(slot).decode("utf-8", "replace") for slot in touched.tolist()]
    return list(zip(names, parts, strict=True))


def resolve(path: Path, spec: RecordSpec) -> RecordSpec:
    """The spec with patterns in `values` replaced by columns of the file. Raises ConfigError."""
    if spec.format == "text":
        _must_be_lines(path)
        return spec
    names = columns_of(path)
    fixed = [name for name in (spec.key, spec.time) if name is not None]
    for name in fixed:
        if name not in names:
            raise names.none(name, path)
    fixed += [name for name in spec.pseudonymise if name not in fixed]
    lost = [text for text in spec.texts if text not in names]
    found = any(name in names for name in (*spec.texts, *spec.values))
    if lost and not (found and _kind(path) == "lines"):
        raise names.none(lost[0], path)
    known = names
    if _kind(path) == "lines" and any(value in names for value in spec.values):
        later = [each for each in spec.values if each not in names and not is_pattern(each)]
        known = replace(names, top=(*names.top, *later))
    values = expand(spec.values, known, aside=fixed, path=path)
    for name in (*fixed, *values, *spec.texts):
        if names.top.count(name) > 1:
            raise ConfigError(f"`{path}` has two columns `{name}`", hint="rename one of them")
    return replace(spec, values=values)


def _must_be_lines(path: Path) -> None:
    """Raise ConfigError for a file that holds something else."""
    must_be_readable(path)
    if unpacked(path).suffix.lower() in KINDS:
        raise ConfigError(
            f"`{path}` holds records with fields, and `record.format` is `text`",
            hint=f"a file of plain lines has any ending but {', '.join((*KINDS, *REFUSED))}",
        )


def _kind(path: Path) -> str:
    must_be_readable(path)
    kind = KINDS.get(unpacked(path).suffix.lower())
    if kind is None:
        raise ConfigError(
            f"`{path}` is no file this can read",
            hint=f"endings are {', '.join(KINDS)}; of log lines without fields any other, "
            "where `record.format` is `text`",
        )
    if kind == "parquet" and packed(path):
        raise ConfigError(
            f"`{path}` has to be unpacked first",
            hint="Parquet is read from any place in the file, and is compressed within",
        )
    return kind


@contextmanager
def _reading(path: Path) -> Generator[None]:
    """Turn what readers raise into ConfigError."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"cannot read `{path}`: {cut(reason)}", hint=hint_of(path)) from error


def columns_of(path: Path) -> Names:
    """Columns of a file, in its order, and what is in them. Raises ConfigError."""
    with _reading(path):
        match _kind(path):
            case "parquet":
                with pq.ParquetFile(path) as file:
                    return names_of(file.schema_arrow)
            case "csv":
                with _csv(path, None) as reader:
                    return Names(tuple(reader.schema.names))
            case _:
                return _line_names(path)


def _line_names(path: Path) -> Names:
    """Names in the first lines that are objects."""
    limit = RecordSpec(values=()).bytes_max
    with opened(path) as file:
        lines = iter(lambda: file.readline(limit), b"")
        first = next(lines, None)
        if first is None:
            raise _empty(path)
        return names_in(parsed(islice(chain([first], lines), SAMPLE)))


# ---- lines: JSON, and such without fields


def _lines(path: Path, spec: RecordSpec, batch: int) -> Iterator[FileBatch]:
    key, first = unpacked(path).stem.encode("utf-8", "surrogateescape"), 0
    clock = None
    with opened(path) as file:
        lines = _not_blank(file, spec.bytes_max)
        if spec.format == "text":
            clock, lines = _clock(path, lines, spec)
        while values := _some(lines, batch):
            count = len(values)
            rows = np.arange(first, first + count)
            fetched = Fetched(
                partition=np.zeros(count, np.int32),
                offset=rows,
                time_ms=rows if spec.time is None else np.full(count, -1),
                values=[*values],
                keys=[key] * count if spec.key is None else [],
            )
            read = decode_lines(fetched, spec, [key], clock) if clock else decode(fetched, spec)
            yield FileBatch(read, first, count, clock.held if clock else None)
            first += count


def _clock(
    path: Path, lines: Iterator[bytes], spec: RecordSpec
) -> tuple[LineClock, Iterator[bytes]]:
    """What reads the times of a file's lines, by the first of them, and all the lines.

    Raises ConfigError where there are none.
    """
    head = _some(lines, SAMPLE)
    if not head:
        raise _empty(path)
    return LineClock(*join(head, spec.bytes_max)), chain(head, lines)


def _empty(path: Path) -> ConfigError:
    return ConfigError(f"`{path}` is empty", hint="a line a record is wanted, blank ones are none")


def _not_blank(file: IO[bytes], bytes_max: int) -> Iterator[bytes]:
    """The lines that are not blank, without their ends.

    Of one that is too large only as much is kept as shows it.
    """
    enough = bytes_max + 2  # for the longest line and its end
    while line := file.readline(enough):
        if len(line) < enough or line.endswith(b"\n"):
            if not line.isspace():
                yield line.rstrip(b"\r\n")
            continue
        rest, blank = line, line.isspace()
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(BLOCK_BYTES)
            blank &= not rest or rest.isspace()
        if not blank:
            yield line


def _some(lines: Iterator[bytes], count: int) -> list[bytes]:
    """Up to `count` of the next lines, fewer where they have BATCH_BYTES."""
    some: list[bytes] = []
    size = 0
    for line in islice(lines, count):
        some.append(line)
        size += len(line)
        if size >= BATCH_BYTES:
            break
    return some


# ---- Parquet and CSV


def _csv(path: Path, columns: Sequence[str] | None) -> pcsv.CSVStreamingReader:
    """Columns as text: a type guessed from the first rows would fail at a later one."""
    return pcsv.open_csv(
        stream_of(path),
        read_options=pcsv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=pcsv.ParseOptions(newlines_in_values=True),
        convert_options=pcsv.ConvertOptions(
            column_types=dict.fromkeys(columns or (), pa.string()),
            include_columns=list(columns or ()),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _batches(path: Path, columns: Sequence[str], batch: int) -> Iterator[pa.RecordBatch]:
    """The columns of a file, at most `batch` rows at a time."""
    if _kind(path) == "csv":
        with _csv(path, columns) as reader:
            for block in reader:
                for begin in range(0, block.num_rows, batch):
                    yield block.slice(begin, batch)
        return
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=batch, columns=list(columns))


def _columns(path: Path, spec: RecordSpec, batch: int) -> Iterator[FileBatch]:
    wanted = (spec.key, spec.time, *spec.values, *spec.texts)
    fields = [name for name in wanted if name is not None]
    first = 0
    for block in _batches(path, list(dict.fromkeys(fields)), batch):
        if block.num_rows > 0:
            yield _Rows(block, spec, first, unpacked(path).stem).decoded()
        first += block.num_rows


class _Rows:
    """Rows on their way to records: columns, and for each row why it is none."""

    def __init__(self, block: pa.RecordBatch, spec: RecordSpec, first: int, stem: str) -> None:
        self.block = block
        self.spec = spec
        self.first = first
        self.stem = stem
        self.good: MASK = np.ones(block.num_rows, np.bool_)
        self.rejects: list[Reject] = []

    def decoded(self) -> FileBatch:
        """Rows in order; rejects in order."""
        count = self.block.num_rows
        rows = np.arange(self.first, self.first + count)
        text, begin, size = self._key()
        time_ms = rows if self.spec.time is None else self._time(self.spec.time)
        text, words, word_begin, word_size = self._texts(text)
        values = self._values((words != 0).any(axis=1))
        self._finish(values, words)
        word_size[:, self.spec.hidden] = 0
        records = Records(
            partition=np.zeros(count, np.int32),
            offset=rows,
            time_ms=time_ms,
            values=values,
            text=text,
            key_begin=begin,
            key_size=size,
            words=words,
            word_begin=word_begin,
            word_size=word_size,
        )
        rejects = sorted(self.rejects, key=lambda reject: reject.offset)
        kept = slice(None) if self.good.all() else self.good
        return FileBatch(records.kept(kept, rejects), self.first, count)

    def _finish(self, values: F64, words: I64) -> None:
        """Reject what is no whole payment and no label (labels.py)."""
        spec = self.spec
        if spec.id is None:
            return
        kind, named = kinds(spec, words), len(spec.words)
        payments = kind == PAYMENT
        self._reject(kind == UNCLEAR, "wrong type", spec.label or "")
        self._reject(words[:, named] == 0, "missing field", spec.id)
        for value, name in enumerate(spec.values):
            self._reject(payments & np.isnan(values[:, value]), "missing field", name)
        for word, name in enumerate(spec.words):
            self._reject(payments & (words[:, word] == 0), "missing field", name)

    def _reject(self, bad: MASK, reason: str, *names: str) -> None:
        """Reject rows that nothing was wrong with so far; shows the first field of `names`."""
        for row in np.flatnonzero(bad & self.good).tolist():
            shows = len(names) == 1 and not self.spec.pseudonymise
            shown = cut(str(self._column(names[0])[row].as_py())) if shows else ""
            detail = f"`{cut(', '.join(names))}`" + (f": `{shown}`" if shown else "")
            self.rejects.append(Reject(0, self.first + row, reason, detail, None))
        self.good &= ~bad

    def _column(self, name: str) -> pa.Array:
        column: Any = column_of(self.block, name)
        return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column

    def _key(self) -> tuple[U8, I64, I32]:
        """Key of each row: text, begin, size."""
        count = self.block.num_rows
        if self.spec.key is None:
            stem = np.frombuffer(self.stem.encode("utf-8", "surrogateescape"), np.uint8)
            return stem, np.zeros(count, np.int64), np.full(count, stem.shape[0], np.int32)
        column = self._column(self.spec.key)
        text, begin, size = text_of(column, self.spec.key)
        self._reject(nulls(column), "missing field", self.spec.key)
        self._reject((size < 1) | (size > self.spec.key_bytes_max), "bad key", self.spec.key)
        return text, begin, size.astype(np.int32)

    def _time(self, name: str) -> I64:
        """Time of each row in ms."""
        column = self._column(name)
        exact, missing = times(column, name)
        self._reject(missing, "missing field", name)
        # NaN (no time at all) is not between the two either.
        self._reject(np.logical_not((exact >= 0.0) & (exact <= TIME_MAX_MS)), "bad time", name)
        return np.floor(np.where(self.good, exact, 0.0)).astype(np.int64)

    def _texts(self, text: U8) -> tuple[U8, I64, I64, I32]:
        """Texts of each row: what the key lies in with theirs behind it, hashes, begin, size."""
        shape = (self.block.num_rows, len(self.spec.texts))
        words, begin = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        size, parts, end = np.zeros(shape, np.int32), [text], text.shape[0]
        line = len(self.spec.words) if self.spec.message is not None else -1
        for word, name in enumerate(self.spec.texts):
            column = self._column(name)
            if not (is_line if word == line else is_word)(column):
                raise no_use(name, column, "a line" if word == line else "a word")
            part, at, long = text_of(column, name)
            hashed = np.empty(shape[0], np.int64)
            hash_column(part.ctypes.data, at, long, hashed)
            first, last = int(at[0]), int((at + long).max())
            words[:, word], begin[:, word], size[:, word] = hashed, at + (end - first), long
            parts.append(part[first:last])
            end += last - first
            if word == line:
                self._reject(long == 0, "missing field", name)
                np.minimum(long, LINE_BYTES_MAX, out=size[:, word], casting="same_kind")
        return (np.concatenate(parts) if shape[1] else text), words, begin, size

    def _values(self, worded: MASK) -> F64:
        """(N, C) channels of each row; `worded`: rows that have a word."""
        values = np.full((self.block.num_rows, len(self.spec.values)), np.nan)
        for channel, name in enumerate(self.spec.values):
            values[:, channel], wrong = numbers(self._column(name), name)
            self._reject(wrong, "wrong type", name)
            self._reject(np.isinf(values[:, channel]), "not finite", name)
        nothing = np.all(np.isnan(values), axis=1) & ~worded
        self._reject(nothing, "missing field", *self.spec.values, *self.spec.texts)
        return values
