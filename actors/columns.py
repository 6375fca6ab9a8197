"""Columns of a file, of whatever type, as texts, numbers and times.

In text columns a number may stand for a time, and the words of NULLS for nothing.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from raywatch.actors.names import PARTS_MAX, Names, names_in, steps
from raywatch.actors.scan import iso_column
from raywatch.models.errors import ConfigError
from raywatch.models.scorer import F64, I64, U8

MASK = NDArray[np.bool_]
pc: Any = pyarrow.compute  # its functions are made when it is imported: unknown to checkers
NULLS = ("", "-", "na", "n/a", "nan", "nil", "none", "null", "#n/a")  # in small letters
NUMBER = r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$|^-?(?i:inf(inity)?)$"


def names_of(schema: pa.Schema) -> Names:
    """Columns, and what can be reached in structs."""
    return replace(names_in([_tree(schema, PARTS_MAX)]), top=tuple(schema.names))


def _tree(fields: Iterable[pa.Field], levels: int) -> dict[str, object]:
    """A schema as a record would have it: structs are objects."""
    return {
        field.name: _tree(field.type, levels - 1)
        if levels and pa.types.is_struct(field.type)
        else None
        for field in fields
    }


def column_of(block: pa.RecordBatch, name: str) -> pa.Array:
    """The column that a name means (names.py); null where a struct on the way is.

    Raises ConfigError where a struct has two fields of one name.
    """
    if name in block.schema.names:
        return block.column(name)
    column: Any = block.to_struct_array()
    for part, rest in steps(name):
        names = [field.name for field in column.type]
        step = rest if rest in names else part
        if names.count(step) > 1:
            raise ConfigError(f"column `{name}` is there twice", hint="rename one of them")
        column = pc.struct_field(column, [names.index(step)])
        if step == rest:
            break
    return column


def nulls(column: pa.Array) -> MASK:
    """(N,) which rows have nothing."""
    return column.is_null().to_numpy(zero_copy_only=False)


def is_text(column: pa.Array) -> bool:
    """Whether rows are strings."""
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def is_word(column: pa.Array) -> bool:
    """Whether rows can be words: see decode.py."""
    kinds, types = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_null), column.type
    return is_text(column) or any(is_kind(types) for is_kind in kinds)


def is_line(column: pa.Array) -> bool:
    """Whether rows can be log lines."""
    return is_text(column) or pa.types.is_null(column.type)


def text_of(column: pa.Array, name: str) -> tuple[U8, I64, I64]:
    """A column as text: bytes, begin and size of each row (null: 0)."""
    raw = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
    try:
        texts: Any = column.cast(pa.large_binary() if raw else pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise no_use(name, column, "a key") from None
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    text = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
    return text, ends[:-1], np.where(nulls(texts), 0, np.diff(ends))


def no_use(name: str, column: pa.Array, use: str) -> ConfigError:
    """What to say of a column whose type is the wrong one."""
    return ConfigError(
        f"column `{name}` is `{column.type}` and cannot be {use}", hint="choose or cast a column"
    )


def numbers(column: pa.Array, name: str) -> tuple[F64, MASK]:
    """A column as float64 (NaN: missing), and which rows are no numbers."""
    kind: Any = column.type
    if is_text(column):
        return _text_numbers(column)
    if not (_is_number(kind) or pa.types.is_null(kind)):
        raise no_use(name, column, "a channel")
    values: Any = column.cast(pa.float64(), safe=False)
    return values.to_numpy(zero_copy_only=False), np.zeros(len(column), np.bool_)


def _is_number(kind: Any) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _text_numbers(column: Any) -> tuple[F64, MASK]:
    """A text column as float64 (NaN: missing), and which rows are no numbers."""
    try:
        numbers: Any = column.cast(pa.float64())
        return numbers.to_numpy(zero_copy_only=False), np.zeros(len(column), np.bool_)
    except pa.ArrowInvalid:  # some row is no number: look at each
        pass
    trimmed: Any = pc.replace_substring_regex(pc.utf8_trim_whitespace(column), r"^\+", "")
    null = pc.is_in(pc.utf8_lower(trimmed), pa.array(NULLS, trimmed.type))
    valid: Any = pc.fill_null(pc.match_substring_regex(trimmed, NUMBER), fill_value=False)
    wrong: Any = pc.invert(pc.or_(pc.or_(null, valid), trimmed.is_null()))
    texts = pc.if_else(valid, trimmed, None).to_pylist()
    values = np.array([np.nan if text is None else float(text) for text in texts], np.float64)
    return values, wrong.to_numpy(zero_copy_only=False)


def times(column: Any, name: str) -> tuple[F64, MASK]:
    """A column as epoch ms (NaN: no time) and which rows are missing.

    float64 is exact for every time there is: TIME_MAX_MS is below 2^53.
    """
    kind: Any = column.type
    missing = nulls(column)
    if is_text(column):
        text, begin, size = text_of(column, name)
        iso = np.empty(len(column), np.int64)
        iso_column(text.ctypes.data, begin, size, iso)
        time_ms = iso.astype(np.float64)
        if (iso < 0).any():
            numbers, _ = _text_numbers(column)
            time_ms = np.where(iso < 0, numbers, time_ms)
        return time_ms, missing
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        column = column.cast(pa.timestamp("ms", getattr(kind, "tz", None)), safe=False)
        column = column.cast(pa.int64())
    elif not (_is_number(kind) or pa.types.is_null(kind)):
        raise no_use(name, column, "a time")
    time_ms = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return time_ms, missing | np.isnan(time_ms)
