"""From fetched bytes to columns, and to rejects with a reason.

The compiled scanner (scan.py) reads what it is certain of; each record it asks about goes to the
full parser, alone, so one bad record costs no other. Both give the same columns for the same
bytes: which of them read a record cannot be seen from the result.

Which field a name means is said in names.py.

What counts: numbers are JSON numbers (true is none, "12" is none), rounded to float64; a key is a
string or an integer, which stands for its decimal text; a time is a number of epoch milliseconds,
cut to whole ones, or ISO 8601 text. A word is a string, an integer (its decimal text), or `true` or
`false` (that text); an empty one is missing. A line is a string that is not
empty. A name that occurs twice means its last value.
"""

import json
import math
from collections.abc import Sequence
from typing import cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from raywatch.actors.grammar import QUOTE, TIME_MAX_MS, ZEROS, iso_ms_of
from raywatch.actors.labels import LABELS, unfinished
from raywatch.actors.names import value_of
from raywatch.actors.ports import Fetched
from raywatch.actors.records import LINE_BYTES_MAX, Records, RecordSpec, Reject, empty_records
from raywatch.actors.scan import ASK, OK, Scanned, hash_of, scan, wanted
from raywatch.models.scorer import I64, U8

DETAIL_MAX = 200  # characters of an offending value that a reject shows
DIGITS_MAX = 400  # of an integer; what has more is past the largest float64 (309 digits)


class _Bad(Exception):
    """A record that cannot be decoded; never leaves this file."""

    def __init__(self, reason: str, detail: str, withheld: str = "") -> None:
        """`withheld` is the detail without anything that stood in the record."""
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.withheld = withheld


def decode(fetched: Fetched, spec: RecordSpec) -> Records:
    """Decode a batch; the order of its records is kept, those that cannot be decoded are left out.

    Where `spec.key` is None, the source must have been opened with keys.
    """
    count, channels = len(fetched), len(spec.values)
    assert spec.format == "json", "lines without fields are read by bare_lines.py"
    if count == 0:
        return empty_records(channels, len(spec.texts))
    assert spec.key is not None or len(fetched.keys) == count, "the source has no keys"
    text, begin, size = join(fetched.values, spec.bytes_max)
    found = _scanned(text, begin, size, spec)
    text = np.concatenate((text, found.more)) if found.more.shape[0] else text
    if spec.key is None:
        keys, key_begin, key_size = join(fetched.keys, spec.key_bytes_max)
        before = text.shape[0] if spec.texts else 0  # words are shown out of the same array
        text = np.concatenate((text, keys)) if before else keys
        found.key_begin[:], found.key_size[:] = key_begin + before, key_size
        found.status[key_size == 0] = ASK
    if spec.time is None:
        found.time_ms[:] = fetched.time_ms
    found.status[_impossible(found.time_ms, fetched.time_ms, spec.ahead_max_ms)] = ASK
    if spec.id is not None:
        found.status[unfinished(spec, found.values, found.words)] = ASK
    if spec.message is not None:
        found.status[_no_line(text, found, len(spec.words))] = ASK

    rejects: list[Reject] = []
    if found.status.any():
        text = _ask(fetched, spec, found, text, rejects)
    found.word_size[:, spec.hidden] = 0
    if spec.message is not None:
        line = found.word_size[:, len(spec.words)]
        np.minimum(line, LINE_BYTES_MAX, out=line)
    records = Records(
        partition=fetched.partition,
        offset=fetched.offset,
        time_ms=found.time_ms,
        values=found.values,
        text=text,
        key_begin=found.key_begin,
        key_size=found.key_size,
        words=found.words,
        word_begin=found.word_begin,
        word_size=found.word_size,
    )
    return records.kept(found.status == OK, rejects) if rejects else records


def join(parts: Sequence[bytes | None], bytes_max: int) -> tuple[U8, I64, I64]:
    """All parts in one array, a zero byte behind each and ZEROS at the end: text, begin, size.

    None, and what has more than `bytes_max` bytes, counts as empty and is not copied.
    """
    try:
        size = np.fromiter(map(len, cast("Sequence[bytes]", parts)), np.int64, len(parts))
    except TypeError:
        return join([part or b"" for part in parts], bytes_max)
    if size.max(initial=0) > bytes_max:
        return join([part if part and len(part) <= bytes_max else b"" for part in parts], bytes_max)
    joined = b"\0".join([*cast("Sequence[bytes]", parts), bytes(ZEROS)])
    return np.frombuffer(joined, np.uint8), np.cumsum(size + 1) - size - 1, size


def _scanned(text: U8, begin: I64, size: I64, spec: RecordSpec) -> Scanned:
    """What the scanner can say about each record."""
    fields = wanted(spec.key, spec.time, spec.values, spec.texts)
    channels, words, count = len(spec.values), len(spec.texts), begin.shape[0]
    if fields is not None:
        return scan(
            text, begin, size, fields,
            channels=channels, key_bytes_max=spec.key_bytes_max, words=words,
        )  # fmt: skip
    return Scanned(  # one field is to be two things: only the full parser can do that
        status=np.full(count, ASK, np.uint8),
        time_ms=np.zeros(count, np.int64),
        values=np.full((count, channels), np.nan),
        key_begin=np.zeros(count, np.int64),
        key_size=np.zeros(count, np.int32),
        words=np.zeros((count, words), np.int64),
        word_begin=np.zeros((count, words), np.int64),
        word_size=np.zeros((count, words), np.int32),
        more=np.zeros(0, np.uint8),
    )


def _impossible(time_ms: I64, log_ms: I64, ahead_max_ms: int) -> NDArray[np.bool_]:
    """(N,) whether a record's time cannot be; see records.py for the rule."""
    outside = (time_ms < 0) | (time_ms > TIME_MAX_MS)
    return outside | ((log_ms >= 0) & (time_ms - np.maximum(log_ms, 0) > ahead_max_ms))


def _no_line(text: U8, found: Scanned, at: int) -> NDArray[np.bool_]:
    """(N,) whether text `at` is none that can be a line: missing, or no string."""
    before = text[np.maximum(found.word_begin[:, at] - 1, 0)]
    return (found.word_size[:, at] == 0) | (before != QUOTE)


def _ask(fetched: Fetched, spec: RecordSpec, found: Scanned, text: U8, rejects: list[Reject]) -> U8:
    """Send what the scanner did not take to the full parser; the text with what it found behind it.

    Fills the rows of `found`; a row whose status is still ASK afterwards is in `rejects`.
    """
    more: list[bytes] = []
    end = text.shape[0]
    for index in np.flatnonzero(found.status).tolist():
        value = fetched.values[index]
        log_ms = int(fetched.time_ms[index])
        try:
            key, time_ms, values, words = _full(
                value, fetched.keys[index] if spec.key is None else None, log_ms, spec
            )
        except _Bad as bad:
            partition, offset = int(fetched.partition[index]), int(fetched.offset[index])
            rejects.append(_reject(partition, offset, bad, value, spec))
            continue
        found.status[index] = OK
        found.time_ms[index] = time_ms
        found.values[index] = values
        found.key_begin[index], found.key_size[index] = end, len(key)
        more.append(key)
        end += len(key)
        for place, word in enumerate(words):
            found.words[index, place] = hash_of(word)
            found.word_begin[index, place], found.word_size[index, place] = end, len(word)
            more.append(word)
            end += len(word)
    return np.concatenate((text, np.frombuffer(b"".join(more), np.uint8))) if more else text


def _reject(
    partition: int, offset: int, bad: _Bad, value: bytes | None, spec: RecordSpec
) -> Reject:
    """What is said of a bad record: all of it, or nothing that stood in it."""
    if spec.pseudonymise:
        return Reject(partition, offset, bad.reason, bad.withheld, None, len(value or b""))
    return Reject(partition, offset, bad.reason, bad.detail, value)


def _full(
    value: bytes | None, kafka_key: bytes | None, log_ms: int, spec: RecordSpec
) -> tuple[bytes, int, list[float], list[bytes]]:
    """One record by the full parser: key, time, channels, words. Raises _Bad."""
    fields = _object(value, spec.bytes_max)
    key = (kafka_key or b"") if spec.key is None else _key(spec.key, value_of(fields, spec.key))
    if not 1 <= len(key) <= spec.key_bytes_max:
        shown = cut(key.decode("utf-8", "replace"))
        words = f"has {len(key)} bytes, not 1 to {spec.key_bytes_max}"
        raise _Bad("bad key", f"`{shown}` {words}", words)
    time_ms = log_ms if spec.time is None else _time_ms(spec.time, value_of(fields, spec.time))
    if not 0 <= time_ms <= TIME_MAX_MS:
        words = "is not between 1970 and 2200"
        raise _Bad("bad time", f"`{time_ms}` ms {words}", words)
    if 0 <= log_ms < time_ms - spec.ahead_max_ms:
        words = f"is {time_ms - log_ms} ms ahead of the log's `{log_ms}`"
        raise _Bad("bad time", f"`{time_ms}` {words}", "is ahead of the log's")
    values = [  # a call less for each that is there
        _channel(name, fields[name] if name in fields else value_of(fields, name))
        for name in spec.values
    ]
    line = len(spec.words) if spec.message is not None else -1
    texts = [
        (_line if at == line else _word)(name, value_of(fields, name))
        for at, name in enumerate(spec.texts)
    ]
    if all(map(math.isnan, values)) and not any(texts):
        words = f"none of `{cut(', '.join((*spec.values, *spec.texts)))}`"
        raise _Bad("missing field", words, words)
    if spec.id is not None:
        _finished(spec, values, texts)
    return key, time_ms, values, texts


def _finished(spec: RecordSpec, values: list[float], texts: list[bytes]) -> None:
    """See labels.py, whose `unfinished` this is for one record. Raises _Bad."""
    assert spec.id is not None, spec
    there = dict(zip(spec.values, [not math.isnan(each) for each in values], strict=True))
    there |= dict(zip(spec.texts, map(bool, texts), strict=True))
    label = texts[-1] if spec.label is not None else b""
    if label and label not in LABELS:
        shown = cut(label.decode("utf-8", "replace"))
        raise _Bad("wrong type", f"`{spec.label}`: `{shown}`", f"`{spec.label}`")
    for name in (spec.id,) if label else (spec.id, *spec.values, *spec.words):
        if not there[name]:
            raise _Bad("missing field", f"`{name}`", f"`{name}`")


def _object(value: bytes | None, bytes_max: int) -> dict[str, object]:
    if not value:
        words = "a tombstone" if value is None else "no bytes"
        raise _Bad("empty value", words, words)
    if len(value) > bytes_max:
        words = f"`{len(value)}` bytes, at most `{bytes_max}`"
        raise _Bad("too large", words, words)
    try:
        try:
            decoded: object = msgspec.json.decode(value)
        except msgspec.ValidationError:  # valid so far, but a number is out of range
            decoded = _out_of_range(value)
    except RecursionError:
        raise _Bad("not JSON", f"nested too deep: `{_show(value)}`", "nested too deep") from None
    except ValueError as error:
        raise _Bad("not JSON", f"{error}: `{_show(value)}`") from None
    if not isinstance(decoded, dict):
        raise _Bad("not an object", f"`{_show(value)}`")
    return decoded  # pyright: ignore[reportUnknownVariableType]


def _out_of_range(value: bytes) -> object:
    """Parse JSON with numbers that float64 cannot hold: they become infinite.

    The number may be in a field nobody wants. Raises ValueError, RecursionError.
    """

    def constant(word: str) -> object:
        raise ValueError(f"`{word}` is no number")

    def integer(digits: str) -> int | float:
        return int(digits) if len(digits) <= DIGITS_MAX else float(digits)

    return json.loads(value.decode(), parse_constant=constant, parse_int=integer)


def _key(name: str, value: object) -> bytes:
    if value is None:
        raise _Bad("missing field", f"`{name}`", f"`{name}`")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Bad("wrong type", f"key `{name}`: `{cut(repr(value))}`", f"key `{name}`")
    try:
        return str(value).encode()
    except UnicodeEncodeError:
        words = f"`{name}`: `{cut(repr(value))}` has half a surrogate"
        raise _Bad("bad key", words, f"`{name}` has half a surrogate") from None


def _time_ms(name: str, value: object) -> int:
    if value is None:
        raise _Bad("missing field", f"`{name}`", f"`{name}`")
    time_ms = -1
    if isinstance(value, str):
        time_ms = iso_ms_of(value)
    elif isinstance(value, float):
        time_ms = math.floor(value) if math.isfinite(value) else -1
    elif isinstance(value, int) and not isinstance(value, bool):
        time_ms = value
    if not 0 <= time_ms <= TIME_MAX_MS:
        raise _Bad("bad time", f"`{name}`: `{cut(repr(value))}`", f"`{name}`")
    return time_ms


def _channel(name: str, value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Bad("wrong type", f"`{name}`: `{cut(repr(value))}`", f"`{name}`")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Bad("not finite", f"`{name}`: `{cut(repr(value))}`", f"`{name}`")
    return number


def _word(name: str, value: object) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if not isinstance(value, str | int):
        raise _Bad("wrong type", f"`{name}`: `{cut(repr(value))}`", f"`{name}`")
    try:
        return str(value).encode()
    except UnicodeEncodeError:
        words = f"`{name}`: `{cut(repr(value))}` has half a surrogate"
        raise _Bad("wrong type", words, f"`{name}` has half a surrogate") from None


def _line(name: str, value: object) -> bytes:
    if value is None or value == "":
        raise _Bad("missing field", f"`{name}`", f"`{name}`")
    if not isinstance(value, str):
        raise _Bad("wrong type", f"`{name}`: `{cut(repr(value))}`", f"`{name}`")
    return _word(name, value)


def _show(value: bytes) -> str:
    """The beginning of a value as text."""
    return cut(value[: DETAIL_MAX * 4].decode("utf-8", "replace"))


def cut(text: str) -> str:
    """At most DETAIL_MAX characters of a text."""
    return text if len(text) <= DETAIL_MAX else text[: DETAIL_MAX - 1] + "…"
