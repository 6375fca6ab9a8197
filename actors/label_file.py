"""Labels in a file of their own, merged into a file of payments as the service merges two topics.

The rule is that of merging.py, by the times of records where the service has those of the log: each
file counts as one log. A label has a negative offset, -1 less its row, so that rows of the payments
stay what they are.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from raywatch.actors.files import FileBatch, columns_of, read_file, resolve
from raywatch.actors.labels import kinds
from raywatch.actors.merging import NO_FLOOR, merged, places
from raywatch.actors.records import Records, RecordSpec, Reject
from raywatch.models.errors import ConfigError
from raywatch.models.payment_names import PAYMENT
from raywatch.models.scorer import I64

NO_MORE = 1 << 60  # ms: the file has ended


def with_labels(
    path: Path, labels: Path, spec: RecordSpec, batch: int, *, partitions: int, delay_s: float
) -> Iterator[FileBatch]:
    """The payments of a file, in batches of at most `batch` records, and labels in between.

    `first` and `rows` of a batch are those of payments. Raises ConfigError.
    """
    if spec.label is None or spec.key is None or spec.time is None:
        lacks = next(name for name in ("label", "key", "time") if getattr(spec, name) is None)
        raise ConfigError(
            f"labels in a file of their own need `record.{lacks}`",
            hint="labels are for `model: preset:payments`: by it they find their payment, and "
            "their place between payments",
        )
    paid = _Stream(payments(path, spec, batch, partitions=partitions))
    told = _Stream(_labels(labels, spec, batch, partitions))
    delay_ms, row = round(1_000 * delay_s), 0
    while paid.more() | told.more():
        floors = [NO_FLOOR if each.rest is not None else NO_MORE for each in (paid, told)]
        of = merged(paid.time_ms, told.time_ms, delay_ms, floors[0], floors[1], batch)
        labelled = int(of.sum())
        one, two = paid.cut(of.shape[0] - labelled), told.cut(labelled)
        rows = (paid.row if paid.rest is not None else paid.end) - row
        yield FileBatch(_interleaved(one, two, of), row, rows)
        row += rows


class _Stream:
    """The batches of a file, to be taken in pieces of any size; rejects go before what follows."""

    def __init__(self, pieces: Iterator[FileBatch]) -> None:
        self._pieces = pieces
        self.rest: Records | None = None  # read and not taken; None: the file has ended
        self.end = 0  # rows that were read
        self._next()

    def _next(self) -> None:
        piece = next(self._pieces, None)
        self.rest = None if piece is None else piece.records
        self.end += 0 if piece is None else piece.rows

    def more(self) -> bool:
        """Whether there is anything left; reads on where all that was read was taken."""
        while self.rest is not None and not len(self.rest) and not self.rest.rejects:
            self._next()
        return self.rest is not None

    @property
    def time_ms(self) -> I64:
        """(N,) of the records at hand."""
        return np.zeros(0, np.int64) if self.rest is None else self.rest.time_ms

    @property
    def row(self) -> int:
        """The row of the next record at hand, or the end of what was read."""
        return int(self.rest.offset[0]) if self.rest is not None and len(self.rest) else self.end

    def cut(self, count: int) -> Records | None:
        """The next records; what was rejected between them and behind them comes along."""
        if self.rest is None:
            return None
        whole, behind = self.rest, self.rest.offset[count:]
        end = abs(int(behind[0])) if len(behind) else NO_MORE
        gone = [each for each in whole.rejects if abs(each.offset) < end]
        left = [each for each in whole.rejects if abs(each.offset) >= end]
        self.rest = whole.kept(slice(count, None), left)
        return whole.kept(slice(0, count), gone)


def payments(path: Path, spec: RecordSpec, batch: int, *, partitions: int) -> Iterator[FileBatch]:
    """A file of payments as records of the columns of `spec`, though it may have no labels."""
    narrow = _of_payments(path, spec)
    for piece in read_file(path, narrow, batch, partitions=partitions):
        yield replace(piece, records=_widened(piece.records, narrow, spec))


def settled(path: Path, spec: RecordSpec) -> RecordSpec:
    """As `resolve`, for payments whose labels come from elsewhere. Raises ConfigError."""
    return replace(spec, values=resolve(path, _of_payments(path, spec)).values)


def _of_payments(path: Path, spec: RecordSpec) -> RecordSpec:
    """The spec without a label, where the file's columns are known and that is none of them."""
    try:
        resolve(path, spec)
    except ConfigError:
        return replace(spec, label=None)
    return spec


def _widened(records: Records, narrow: RecordSpec, spec: RecordSpec) -> Records:
    """Records of some texts of `spec` as records of all of them: the others are missing."""
    place = [spec.texts.index(name) for name in narrow.texts]
    words = np.zeros((len(records), len(spec.texts)), np.int64)
    begin, size = np.zeros_like(words), np.zeros(words.shape, np.int32)
    words[:, place], begin[:, place] = records.words, records.word_begin
    size[:, place] = records.word_size
    return replace(records, words=words, word_begin=begin, word_size=size)


def _labels(path: Path, spec: RecordSpec, batch: int, partitions: int) -> Iterator[FileBatch]:
    """A file of labels as records of the same columns; what is none is rejected."""
    there = columns_of(path)
    words = tuple(name for name in spec.words if name in there)
    narrow = replace(spec, values=(), words=words)
    for piece in read_file(path, narrow, batch, partitions=partitions):
        records = _widened(piece.records, narrow, spec)
        stray = kinds(spec, records.words) == PAYMENT
        rejects = [replace(each, offset=-1 - each.offset) for each in records.rejects]
        for index in np.flatnonzero(stray).tolist():
            where = int(records.partition[index]), -1 - int(records.offset[index])
            rejects.append(Reject(*where, "missing field", f"`{spec.label}`", None))
        whole = replace(
            records,
            offset=-1 - records.offset,
            values=np.full((len(records), len(spec.values)), np.nan),
        )
        rejects.sort(key=lambda each: -each.offset)
        yield FileBatch(whole.kept(~stray, rejects), piece.first, piece.rows)


def _interleaved(one: Records | None, two: Records | None, of: I64) -> Records:
    """Records of both, in the order that `of` says: (N,) 0 of the first, 1 of the second."""
    if one is None or two is None:
        whole = one if two is None else two
        assert whole is not None, "nothing to merge"
        return whole
    at, shift = places(of, len(one)), one.text.shape[0]

    def both(name: str, more: int = 0) -> np.ndarray:
        return np.concatenate((getattr(one, name), getattr(two, name) + more))[at]

    return Records(
        partition=both("partition"),
        offset=both("offset"),
        time_ms=both("time_ms"),
        values=both("values"),
        text=np.concatenate((one.text, two.text)),
        key_begin=both("key_begin", shift),
        key_size=both("key_size"),
        words=both("words"),
        word_begin=both("word_begin", shift),
        word_size=both("word_size"),
        rejects=[*one.rejects, *two.rejects],
    )
