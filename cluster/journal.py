"""What was decided, seen and done, in sentences; the newest first.

The journal in memory is what the page shows; the audit topic is what stays. Each entry is one
JSON record there: schema, time, kind, a sentence and the numbers behind it. Other records may lie
in the same topic: `of_json` passes over whatever is no entry.
"""

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

SCHEMA = "raywatch.journal/1"

Kind = Literal["grow", "shrink", "rollout", "fault", "drill", "start", "info"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WORDS_MAX = 500  # bounds a sentence; longer ones are cut, numbers belong into the fields
FIELDS_MAX = 32  # bounds the fields of an entry,
TEXT_MAX = 500  # the characters of a field's name and of its text,
INTEGER_MAX = 2**53  # and its integers, and times: beyond it no page reads them right

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One sentence.

    Fields the page knows: `label` (a few characters: makes a mark on the time axis) and
    `until_ms` (the end of what began at `at_ms`).
    """

    at_ms: int
    kind: Kind
    words: str
    fields: Mapping[str, Value] = field(default_factory=lambda: {})


class Journal:
    """The newest entries, at most `bound`."""

    def __init__(self, bound: int = 500) -> None:
        assert bound >= 1, bound
        self._entries: deque[Entry] = deque(maxlen=bound)

    def add(self, at_ms: int, kind: Kind, words: str, **fields: Value) -> Entry:
        """Append a sentence and return it, to be written to the audit topic by the caller."""
        assert kind in KINDS, kind
        assert len(fields) <= FIELDS_MAX, sorted(fields)
        entry = Entry(at_ms, kind, words[:WORDS_MAX], _bounded(fields))
        self._entries.appendleft(entry)
        return entry

    def take(self, entry: Entry) -> None:
        """Append an entry that was read back after a restart; oldest first."""
        self._entries.appendleft(entry)

    def close(self, kind: Kind, label: str, until_ms: int) -> Entry | None:
        """Say when the newest open entry of this kind and label ended; None if there is none."""
        for index, entry in enumerate(self._entries):
            same = entry.kind == kind and entry.fields.get("label") == label
            if same and "until_ms" not in entry.fields:
                closed = replace(entry, fields={**entry.fields, "until_ms": until_ms})
                self._entries[index] = closed
                return closed
        return None

    def __iter__(self) -> Iterator[Entry]:
        """Newest first."""
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)


def to_json(entry: Entry) -> bytes:
    """One record of the audit topic. The same entry gives the same bytes."""
    body = {
        "schema": SCHEMA,
        "at_ms": entry.at_ms,
        "kind": entry.kind,
        "words": entry.words,
        "fields": {name: _plain(value) for name, value in entry.fields.items()},
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def of_json(value: bytes | None) -> Entry | None:
    """The entry that a record of the audit topic holds, or None where it is something else."""
    try:
        parsed: Any = json.loads(value or b"null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    body = cast("dict[str, Any]", parsed)
    at_ms, kind, words, fields = (body.get(n) for n in ("at_ms", "kind", "words", "fields"))
    timed = type(at_ms) is int and 0 <= at_ms <= INTEGER_MAX
    typed = timed and isinstance(words, str) and isinstance(fields, dict)
    if body.get("schema") != SCHEMA or kind not in KINDS or not typed:
        return None
    plain = _bounded(cast("dict[str, Any]", fields))
    return Entry(cast(int, at_ms), kind, _whole(cast(str, words)[:WORDS_MAX]), plain)


def _bounded(fields: Mapping[str, Any]) -> dict[str, Value]:
    """The first fields that are plain values, texts cut off: an entry has a size that is known."""
    found: dict[str, Value] = {}
    for name, each in ((_whole(n), v) for n, v in list(fields.items())[:FIELDS_MAX]):
        if isinstance(each, str):
            found[name[:TEXT_MAX]] = _whole(each[:TEXT_MAX])
        elif isinstance(each, float):
            found[name[:TEXT_MAX]] = _plain(each)
        elif each is None or (isinstance(each, int) and abs(each) <= INTEGER_MAX):
            found[name[:TEXT_MAX]] = each
    return found


def _whole(text: str) -> str:
    """Without halves of surrogate pairs, which JSON lets in and no terminal and no page takes."""
    return text.encode("utf-8", "replace").decode()


def _plain(value: Value) -> Value:
    """JSON knows no NaN: what is not a number is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
