"""A batch of decoded records, column by column, and what could not be decoded.

Rule for time: records count in offset order, whatever their timestamps say; a late or duplicate
timestamp is scored like any other. A timestamp that cannot be (not a number, negative, past the
year 2200, or further ahead of the log's own timestamp than `ahead_max_ms`) rejects the record.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from raywatch.models.scorer import F64, I32, I64, U8

LINE_BYTES_MAX = 16_384  # of a line that are looked at: what lies behind them is not read
LINE = "line"  # what the line of a record goes by that has no fields


@dataclass(frozen=True, slots=True)
class RecordSpec:
    """Which fields of a record are what. Names of fields: see names.py."""

    values: tuple[str, ...]  # C channels, in this order
    key: str | None = None  # None: the Kafka key is the key
    time: str | None = None  # epoch milliseconds or ISO 8601; None: the log's timestamp
    ahead_max_ms: int = 86_400_000  # furthest a record's time may lie ahead of the log's timestamp
    bytes_max: int = 1_048_576  # a larger value is rejected unread
    key_bytes_max: int = 1_024
    # Fields that must not leave in the clear: the key becomes a pseudonym (pseudonyms.py), and
    # rejects show no value of any field, as what could not be read may stand anywhere.
    pseudonymise: tuple[str, ...] = ()
    words: tuple[str, ...] = ()  # categories: strings, integers or booleans; see decode.py
    message: str | None = None  # a log line: a string that is not empty
    session: str | None = None  # what lines belong to together: read as a word is
    session_idle_ms: int = 60_000  # silence that ends a session
    # Where there is an `id`, records are payments and labels of them (labels.py).
    id: str | None = None
    label: str | None = None
    label_days: float = 8.0  # a payment that has no label after so long was honest
    error: str | None = None  # whether a call failed (failures.py)
    format: str = "json"  # or `text`: the value is the line itself, `message` is LINE

    @property
    def texts(self) -> tuple[str, ...]:
        """W fields that are kept as text and hash: words, then what else there is.

        A line and its session, the id and the label of a payment, or how a call ended.
        """
        more = (self.message, self.session, self.id, self.label, self.error)
        return (*self.words, *(name for name in more if name is not None))

    @property
    def hidden(self) -> tuple[bool, ...]:
        """(W,) whether a text goes once it is hashed. Disguised lines stay: they are still read."""
        line = len(self.words) if self.message is not None else -1
        return tuple(n in self.pseudonymise and at != line for at, n in enumerate(self.texts))

    @property
    def pseudonymous(self) -> bool:
        """Whether the key is one of them; Kafka's key goes by the name `key`."""
        return (self.key or "key") in self.pseudonymise


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that could not be decoded: where it was, why, and its bytes."""

    partition: int  # index into the lane's tuple
    offset: int
    reason: str  # one of REASONS
    detail: str  # what exactly, with the offending value cut to 200 characters
    value: bytes | None
    withheld: int = -1  # size of a value that is not shown; -1: nothing is withheld
    count: int = 1  # records that it stands for (rejecting.py)


REASONS = (
    "empty value",  # a tombstone
    "too large",
    "not JSON",
    "not an object",
    "missing field",
    "wrong type",
    "not finite",  # NaN or an infinity
    "bad key",  # empty, or longer than key_bytes_max
    "bad time",
    "too many keys",  # its partition holds keys_max keys, this one is new: `keys_full: reject`
)


@dataclass(frozen=True, slots=True)
class Records:
    """Decoded records of one lane, in the order they were read.

    Record i has key `text[key_begin[i] : key_begin[i] + key_size[i]]`. A channel that is null or
    absent while another field of the record is present is NaN (missing), such a word is 0; a record
    without any channel or word, or without its line, is a reject. Text w of record i, where its
    size is not 0, was `text[word_begin[i, w] : word_begin[i, w] + word_size[i, w]]`; sizes of those
    that must not be shown are 0; of a line at most LINE_BYTES_MAX bytes count.
    """

    partition: I32  # (N,) index into the lane's tuple
    offset: I64  # (N,)
    time_ms: I64  # (N,)
    values: F64  # (N, C)
    text: U8  # the bytes that keys point into
    key_begin: I64  # (N,)
    key_size: I32  # (N,)
    words: I64  # (N, W) hashes
    word_begin: I64  # (N, W)
    word_size: I32  # (N, W)
    rejects: list[Reject] = field(default_factory=lambda: [])

    def __len__(self) -> int:
        return int(self.offset.shape[0])

    def key(self, index: int) -> bytes:
        """The key of one record (for alerts and tests, not for loops over a batch)."""
        begin = int(self.key_begin[index])
        return self.text[begin : begin + int(self.key_size[index])].tobytes()

    def word(self, index: int, word: int) -> str:
        """A word as text, "" where there is none to show (for alerts and tests, like `key`)."""
        begin = int(self.word_begin[index, word])
        text = self.text[begin : begin + int(self.word_size[index, word])]
        return text.tobytes().decode("utf-8", "replace")

    def kept(self, keep: NDArray[Any] | slice, rejects: Sequence[Reject]) -> Self:
        """Some of these records, in order, and these rejects."""
        return replace(
            self,
            partition=self.partition[keep],
            offset=self.offset[keep],
            time_ms=self.time_ms[keep],
            values=self.values[keep],
            key_begin=self.key_begin[keep],
            key_size=self.key_size[keep],
            words=self.words[keep],
            word_begin=self.word_begin[keep],
            word_size=self.word_size[keep],
            rejects=list(rejects),
        )


def empty_records(channels: int, words: int = 0) -> Records:
    """A batch of nothing."""
    i32, i64, wide = np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros((0, words), np.int64)
    text, narrow = np.zeros(0, np.uint8), np.zeros((0, words), np.int32)
    return Records(i32, i64, i64, np.zeros((0, channels)), text, i64, i32, wide, wide, narrow)
