"""A record that is a log line and nothing else: the value is the line, Kafka has its key and time.

What `decode` gives for `{"message": line}`, this gives for the line itself, bit for bit. Bytes are
taken as they are: what is no UTF-8 is judged by its bytes, and an alert shows U+FFFD in its place.
Line ends behind the last line are no part of it; those within it (a stack trace) count as blanks,
as they do in JSON.

A line without a key goes by the name of its partition, `topic/0`: that is whose past it is judged
by, and incidents of two partitions never have one id. Headers are no business of this file: in
log_template.py times and numbers are values wherever they stand, and line_times.py reads those of
files, which have no other time.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.actors.decode import cut, join
from raywatch.actors.grammar import TIME_MAX_MS
from raywatch.actors.line_times import LineClock
from raywatch.actors.ports import Fetched
from raywatch.actors.records import LINE_BYTES_MAX, Records, RecordSpec, Reject, empty_records
from raywatch.actors.scan import hash_column
from raywatch.models.scorer import I64, U8

MASK = NDArray[np.bool_]


def decode_lines(
    fetched: Fetched, spec: RecordSpec, names: Sequence[bytes], clock: LineClock | None = None
) -> Records:
    """Decode a batch of lines; their order is kept, what is none is left out.

    Args:
        fetched: with keys.
        spec: `format` is `text`.
        names: of the lane's partitions; what lines without a key go by.
        clock: says when lines of a file were written; None: when the log took them.
    """
    count = len(fetched)
    assert spec.format == "text", spec
    assert len(fetched.keys) == count, "the source has no keys"
    if count == 0:
        return empty_records(0, 1)
    lines, begin, size = join(fetched.values, spec.bytes_max)
    without_ends(lines, begin, size)
    if clock is not None:
        fetched = replace(fetched, time_ms=clock.times(lines, begin, size))
    text, key_begin, key_size = _with_keys(lines, fetched, spec, names)
    bad = (size == 0) | (key_size == 0)
    bad |= (fetched.time_ms < 0) | (fetched.time_ms > TIME_MAX_MS)
    hashed = np.empty(count, np.int64)
    hash_column(text.ctypes.data, begin, size, hashed)
    records = Records(
        partition=fetched.partition,
        offset=fetched.offset,
        time_ms=fetched.time_ms,
        values=np.zeros((count, 0)),
        text=text,
        key_begin=key_begin,
        key_size=key_size.astype(np.int32),
        words=hashed[:, None],
        word_begin=begin[:, None],
        word_size=np.minimum(size, LINE_BYTES_MAX).astype(np.int32)[:, None],
    )
    if not bad.any():
        return records
    rejects = [_reject(fetched, index, spec) for index in np.flatnonzero(bad).tolist()]
    return records.kept(~bad, rejects)


@njit(cache=True, nogil=True)
def without_ends(text: U8, begin: I64, size: I64) -> None:
    """Take line ends from the end of N texts; of what is blank nothing is left.

    `text`: read-only. `begin`, `size`: (N,); sizes are changed in place.
    """
    for n in range(begin.shape[0]):
        end = begin[n] + size[n]
        while end > begin[n] and (text[end - 1] == 10 or text[end - 1] == 13):
            end -= 1
        size[n] = end - begin[n]
        at = begin[n]
        while at < end and (text[at] == 32 or 9 <= text[at] <= 13):
            at += 1
        if at == end:
            size[n] = 0


def _with_keys(
    lines: U8, fetched: Fetched, spec: RecordSpec, names: Sequence[bytes]
) -> tuple[U8, I64, I64]:
    """Lines, keys and names in one text; begin and size (N,) of each key, 0: it is too long."""
    keys, key_begin, key_size = join(fetched.keys, spec.key_bytes_max)
    named, name_begin, name_size = join(list(names), spec.key_bytes_max)
    there = np.fromiter(map(bool, fetched.keys), np.bool_, len(fetched))
    place = fetched.partition
    return (
        np.concatenate((lines, keys, named)),
        lines.shape[0] + np.where(there, key_begin, keys.shape[0] + name_begin[place]),
        np.where(there, key_size, name_size[place]),
    )


def _reject(fetched: Fetched, index: int, spec: RecordSpec) -> Reject:
    """Why a record is no line; where something is disguised, without anything that stood in it."""
    value = fetched.values[index]
    reason, detail = _trouble(value, fetched.keys[index], int(fetched.time_ms[index]), spec)
    where = int(fetched.partition[index]), int(fetched.offset[index])
    if spec.pseudonymise:
        return Reject(*where, reason, detail, None, len(value or b""))
    return Reject(*where, reason, detail, value)


def _trouble(
    value: bytes | None, key: bytes | None, time_ms: int, spec: RecordSpec
) -> tuple[str, str]:
    """Reason and detail, as decode.py says them. Shows nothing that is to be disguised."""
    if not value:
        return "empty value", "a tombstone" if value is None else "no bytes"
    if len(value) > spec.bytes_max:
        return "too large", f"`{len(value)}` bytes, at most `{spec.bytes_max}`"
    if not value.strip():
        return "empty value", "a blank line"
    if len(key or b"") > spec.key_bytes_max:
        shown = "" if spec.pseudonymise else f"`{cut((key or b'').decode('utf-8', 'replace'))}` "
        words = f"{shown}has {len(key or b'')} bytes, not 1 to {spec.key_bytes_max}"
        return "bad key", words
    if not 0 <= time_ms <= TIME_MAX_MS:
        return "bad time", f"`{time_ms}` ms is not between 1970 and 2200"
    return "bad key", f"the partition's name is longer than `{spec.key_bytes_max}` bytes"
