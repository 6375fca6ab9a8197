"""Which field of a record does a name of the config mean?

    `host.name`    the record's field of exactly that name, where it has one; else
                   the field `name` of the object in its field `host`

The rule holds again in each object, for the rest of the name: `a.b.c` is `a.b.c` of the record, or
`b.c` of its object `a`, or `c` of the object `b` in there; the first one that is there counts, null
or not. So flat names with dots mean what they say, as who writes Elastic's schema flat has them, or
OpenTelemetry's attributes in one object ({"attributes": {"http.route": "/"}}); and a dot is never
part of a step: {"a.b": {"c": 1}} has no `a.b.c`.

What is no object has no fields: where null, a number or a list stands on the way, the field is
missing. Lists are not entered. A name that occurs twice in one object means its last value, for
objects too: {"a": {"b": 1}, "a": {}} has no `a.b`. Names that begin or end with a dot, have two in
a row, or more than PARTS_MAX parts, are names of fields of the record and nothing else.

Every reader keeps this rule: scan.py for bytes, `value_of` for parsed records, columns.py for
structs of Parquet. Columns of CSV have their names, and nothing in them.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import cast

from raywatch.models.errors import ConfigError

PARTS_MAX = 32  # parts of a name, so levels of a record that are entered
NEAR_MAX = 5  # names that a hint proposes
HINT_MAX = 200  # characters of names that a hint lists


@lru_cache(maxsize=4_096)
def steps(name: str) -> tuple[tuple[str, str], ...]:
    """Each step of a name: the part that leads on, and the rest of the name from there."""
    parts = name.split(".")
    if len(parts) > PARTS_MAX or not all(parts):
        return ((name, name),)
    return tuple((part, ".".join(parts[at:])) for at, part in enumerate(parts))


def value_of(fields: Mapping[str, object], name: str) -> object:
    """What a name means in a parsed record; None where it means nothing."""
    if name in fields or "." not in name:
        return fields.get(name)
    found: object = fields
    for part, rest in steps(name):
        if not isinstance(found, dict):
            return None
        if rest in found:
            return found[rest]
        found = found.get(part)
    return None


def inner_names(fields: Mapping[str, object], before: str = "") -> Iterator[str]:
    """Names that reach into the objects of a record, in its order, to what is no object itself.

    One that the record has itself, or that can be reached in two ways, may come again.
    """
    for name, value in fields.items():
        whole = f"{before}{name}"
        if not isinstance(value, dict):
            if before and len(steps(whole)) > 1:
                yield whole
        elif name and "." not in name and whole.count(".") < PARTS_MAX:
            yield from inner_names(cast("dict[str, object]", value), f"{whole}.")


@dataclass(frozen=True, slots=True)
class Names:
    """Names that records have, in their order."""

    top: tuple[str, ...]  # their own fields; a file may have one twice
    inner: tuple[str, ...] = ()  # those that mean something inside of their objects

    def __contains__(self, name: object) -> bool:
        return name in self.top or name in self.inner

    def matching(self, pattern: str, aside: Sequence[str] = ()) -> list[str]:
        """Names that match, but for those in `aside`. Who has no dot in mind means no inner one."""
        top = [name for name in self.top if name not in aside]
        inner = [name for name in self.inner if not _within(name, aside)] if "." in pattern else []
        return [name for name in (*top, *inner) if fnmatchcase(name, pattern)]

    def none(self, name: str, path: Path | None = None) -> ConfigError:
        """What to say of a name, or a pattern, that none of them is."""
        every = (*self.top, *self.inner)
        if not every and path is not None:
            return ConfigError(
                f"`{path}` has no column `{name}`, nor any other",
                hint="in JSON lines every line is an object of its own; all files are UTF-8",
            )
        near = [each for each in self.inner if each.endswith(f".{name}")]
        near += difflib.get_close_matches(name, every, n=NEAR_MAX, cutoff=0.7)
        hint = "columns are " + (", ".join(f"`{each}`" for each in every) or "none")
        hint = hint if len(hint) <= HINT_MAX else hint[: HINT_MAX - 1] + "…"
        if near:
            shown = ", ".join(f"`{each}`" for each in list(dict.fromkeys(near))[:NEAR_MAX])
            hint = f"did you mean {shown}? {hint}"
        where = "" if path is None else f"`{path}`: "
        return ConfigError(f"{where}no column `{name}`", hint=hint)


def names_in(
    records: Iterable[Mapping[str, object]], *, only: Callable[[object], bool] | None = None
) -> Names:
    """Names of parsed records, in the order in which they come; `only`: of such values."""
    top, inner = dict[str, None](), dict[str, None]()
    for fields in records:
        top.update((name, None) for name, value in fields.items() if only is None or only(value))
        for name in inner_names(fields):
            value = value_of(fields, name)
            if not isinstance(value, dict) and (only is None or only(value)):
                inner[name] = None
    return Names(tuple(top), tuple(name for name in inner if name not in top))


def parsed(values: Iterable[bytes | None]) -> Iterator[dict[str, object]]:
    """Those of some values that are objects, for a look at their names: numbers may be inexact."""
    for value in values:
        with suppress(ValueError, RecursionError):
            found: object = json.loads(value or b"null", parse_int=float)
            if isinstance(found, dict):
                yield cast("dict[str, object]", found)


def _within(name: str, others: Sequence[str]) -> bool:
    """Whether a name is one of others, or lies inside of one."""
    return any(name == each or name.startswith(f"{each}.") for each in others)


def is_pattern(value: str) -> bool:
    """Whether a name of the config stands for all names that match it."""
    return any(sign in value for sign in "*?[")


def expand(
    values: Sequence[str], names: Names, *, aside: Sequence[str] = (), path: Path | None = None
) -> tuple[str, ...]:
    """Replace patterns (`x*`) by the names they match, in the order of `names`, each name once.

    A value that is itself a name means that name. No pattern means a name in `aside` (the key's,
    the time's), or one inside of it. Raises ConfigError where nothing matches, which names the file
    at `path`.
    """
    found: dict[str, None] = {}
    for value in values:
        matches = [value] if value in names else []
        if not matches and is_pattern(value):
            matches = names.matching(value, aside)
        if not matches:
            raise names.none(value, path)
        found.update(dict.fromkeys(matches))
    return tuple(found)
