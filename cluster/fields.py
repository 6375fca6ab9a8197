"""Which fields of a record are what: the part of a detector that is about its records.

As in schema.py, every setting has a default, a unit, a bound and a description.
"""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from raywatch.actors.names import Names, expand, is_pattern
from raywatch.actors.records import LINE, RecordSpec
from raywatch.cluster.secret import Secret, Settings
from raywatch.models.errors import ConfigError

WORDS_MAX = 256  # words of one record
CHANNELS_MAX = 512  # values of one record; the history of a key grows with it

_RECORD = RecordSpec(values=("x",))
_FIELDS = ("values", "words", "message", "session", "key", "time", "id", "label", "error")
# What settings are about that say nothing of a line without fields.
_ABOUT = {
    "ahead_max_ms": "`time`, which is Kafka's own there",
    "session_idle_ms": "sessions",
    "label_days": "labels of payments",
}


class Record(Settings):
    """Which fields of a record are what; what a name means: actors/names.py."""

    format: Literal["json", "text"] = Field(
        default="json",
        description="What a record is: a JSON object with the fields below, or, for `model: "
        "preset:logs`, `text`: the log line itself. It has no fields: its key and time are Kafka's "
        "(docs/signal-classes.md).",
    )
    values: tuple[str, ...] = Field(
        default=(),
        max_length=CHANNELS_MAX,
        description="Fields with numbers, one or a list; each is a channel. `x*` stands for all "
        "fields that match, in natural order (`x2` before `x10`), settled once at start; fields of "
        "objects, where the pattern has a dot. Needed, unless there are `words`.",
    )
    words: tuple[str, ...] = Field(
        default=(),
        max_length=WORDS_MAX,
        description="Fields with categories (strings, integers, booleans), one or a list, for "
        "`model: preset:network` (docs/signal-classes.md). No patterns. `preset:payments`: the "
        "customer; `preset:traces`: one or two that with the key make an edge (caller, operation).",
    )
    error: str | None = Field(
        default=None,
        min_length=1,
        description="Field that says that a call failed, for `model: preset:traces`: a boolean, a "
        "status (`ERROR`, or its number), a code of HTTP, or what went wrong. Null, absent, false, "
        "0, `OK`, `UNSET` and 100 to 499 are no failure; 1 is none in a field named for a status.",
    )
    id: str | None = Field(
        default=None,
        min_length=1,
        description="Field with the id of a payment, for `model: preset:payments`; needed there. "
        "Its labels have the same.",
    )
    label: str | None = Field(
        default=None,
        min_length=1,
        description="Field that makes a record a label of the payment with its `id`, for `model: "
        "preset:payments`: true or 1 is fraud, false or 0 is honest, null or absent is no label.",
    )
    label_days: float = Field(
        default=_RECORD.label_days,
        ge=0.01,
        le=365.0,
        description="Days after which a payment without a label was honest. Longer than most "
        "labels take: what is labelled later teaches less.",
    )
    message: str | None = Field(
        default=None,
        min_length=1,
        description="Field with the log line, a text, for `model: preset:logs` "
        "(docs/signal-classes.md).",
    )
    session: str | None = Field(
        default=None,
        min_length=1,
        description="Field with the id of what lines belong to together (a request, a block, a "
        "login); text or integer. With it sessions are judged, too.",
    )
    session_idle_ms: int = Field(
        default=_RECORD.session_idle_ms,
        ge=1,
        le=604_800_000,
        description="Silence after which a session has ended, in ms of the records' time.",
    )
    key: str | None = Field(
        default=None,
        min_length=1,
        description="Field with the key; without it the Kafka key counts.",
    )
    time: str | None = Field(
        default=None,
        min_length=1,
        description="Field with the time, epoch milliseconds or ISO 8601; without it Kafka's "
        "timestamp counts (in a file: the number of the row; where it is lines of text, the time "
        "that they begin with).",
    )
    ahead_max_ms: int = Field(
        default=_RECORD.ahead_max_ms,
        ge=0,
        le=315_360_000_000,
        description="Furthest a record's time may lie ahead of Kafka's timestamp, in ms; "
        "a record beyond it is rejected.",
    )
    bytes_max: int = Field(
        default=_RECORD.bytes_max,
        ge=16,
        le=67_108_864,
        description="Largest record in bytes; a larger one is rejected unread.",
    )
    key_bytes_max: int = Field(
        default=_RECORD.key_bytes_max, ge=1, le=65_536, description="Longest key in bytes."
    )
    pseudonymise: tuple[str, ...] = Field(
        default=(),
        max_length=64,
        description="Fields that must not leave in the clear: a key among them (Kafka's key: "
        "`key`) is replaced by a pseudonym before anything else sees it, and with any field here "
        "rejects say why and where, but carry no bytes (docs/security.md).",
    )
    pseudonym_key: Secret | None = Field(
        default=None,
        description="Key of the pseudonyms (HMAC-SHA-256), 32 bytes or more; needed with the key "
        "in `pseudonymise`. Another one makes other pseudonyms of the same keys.",
    )

    @field_validator("values", "words", mode="before")
    @classmethod
    def _one_is_a_list(cls, values: object) -> object:
        if isinstance(values, str):
            return (values,)
        return tuple(values) if isinstance(values, list) else values

    @field_validator("values", "words")
    @classmethod
    def _distinct(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not value or values.count(value) > 1:
                raise ValueError(f"`{value}` must not be empty and must stand there once")
        return values

    @model_validator(mode="after")
    def _of_text(self) -> Self:
        if self.format != "text":
            return self
        for name in _FIELDS:
            if getattr(self, name):
                raise ValueError(f"`{name}` names a field; a record of `format: text` has none")
        for name, what in _ABOUT.items():
            if name in self.model_fields_set:
                raise ValueError(f"`{name}` is about {what}: leave it out with `format: text`")
        for name in self.pseudonymise:
            if name not in ("key", LINE):
                raise ValueError(f"`format: text` has `key` and `{LINE}` to disguise, no `{name}`")
        return self

    @model_validator(mode="after")
    def _disguised(self) -> Self:
        self._hidden_whole()
        if self.session is not None and self.message is None:
            raise ValueError("`session` needs `message`: a session is judged by its lines")
        if self.message is not None and (self.values or self.words):
            raise ValueError("`message` stands alone: leave out `values` and `words`")
        once = (self.id, self.label, self.key, self.time, *self.values, *self.words)
        for name in (self.id, self.label):
            if name is not None and once.count(name) > 1:
                raise ValueError(f"`{name}` cannot be `id` or `label` and something else, too")
        if self.error is not None and self.error in once:
            raise ValueError(f"`{self.error}` cannot be `error` and something else, too")
        if not self.values and not self.words and self.line is None:
            raise ValueError("`values` is missing: name the fields with numbers")
        among = (self.key or "key") in self.pseudonymise
        if among != (self.pseudonym_key is not None):
            raise ValueError("`pseudonym_key` and the key in `pseudonymise` belong together")
        return self

    def _hidden_whole(self) -> None:
        """Raises ValueError for a name that does not hide what it says."""
        plain = [each for each in (self.time, *self.values) if each is not None]
        texts = (self.key, self.message, self.session, self.id, self.label, self.error, *self.words)
        read = (*plain, *(each for each in texts if each is not None))
        for name in self.pseudonymise:
            inside = [] if name in read else [each for each in read if each.startswith(f"{name}.")]
            for each in (name, *inside):
                if each in plain:
                    raise ValueError(f"`{each}` is scored as it is: no pseudonym can stand for it")
                if each not in self.pseudonymise:
                    raise ValueError(
                        f"`{each}` lies inside of `{name}`: name it in `pseudonymise` as well"
                    )

    @property
    def line(self) -> str | None:
        """What the log line goes by, None where records have none."""
        return LINE if self.format == "text" else self.message

    @property
    def patterns(self) -> bool:
        """Whether `values` names patterns, so that the fields of a record must be known."""
        return any(is_pattern(value) for value in self.values)

    @property
    def of_payments(self) -> bool:
        """Whether it names what a payment has."""
        whole = len(self.values) == len(self.words) == 1 and self.id is not None
        return whole and not self.patterns

    @property
    def of_calls(self) -> bool:
        """Whether it names what a call has."""
        return len(self.values) == 1 and 1 <= len(self.words) <= 2 and not self.patterns

    def channels(self, fields: Names) -> tuple[str, ...]:
        """Names of the channels where records have these fields. Raises ConfigError."""
        if not self.patterns:
            return self.values
        fixed = [each for each in (self.key, self.time) if each is not None]
        plain = [each for each in self.values if not is_pattern(each)]  # may be missing for now
        top = sorted({*fields.top, *plain}, key=_natural)
        known = Names(tuple(top), tuple(sorted(fields.inner, key=_natural)))
        found = expand(self.values, known, aside=[*fixed, *self.pseudonymise])
        if len(found) > CHANNELS_MAX:
            raise ConfigError(f"{len(found)} channels match, at most {CHANNELS_MAX} are allowed")
        return found


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts `x2` before `x10`."""
    pieces = re.split(r"(\d+)", name)
    return tuple((0, int(each)) if each.isdecimal() else (1, each) for each in pieces if each)
