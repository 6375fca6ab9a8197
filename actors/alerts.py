"""What an alert says, byte for byte the same whenever it is computed again.

An alert is known by detector, key, rule and the start of its incident: no model version and no
offset, so a rollout in mid-incident does not page twice and ids survive a move to another cluster.
Receivers that keep the last alert of an id have the state of the incident. The JSON has sorted
names and 9 significant digits; what is not a number is null. It carries no time of the machine, no
epoch and no run id: a retry writes the same bytes. Sent: `open`, then any `update`, one `resolved`.

`open` and `update` of an anomaly carry a `window`: the last values of the channel that weighs most,
up to the record's own, and what the stretch that looked most alike had in their place.
"""

import json
import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, TypedDict, cast

from raywatch.actors.noticed import NOTICED, SHARED
from raywatch.actors.phrases import key_text, odds, printable, short, span_of, when
from raywatch.actors.ports import Partition
from raywatch.actors.session_words import name_of, sentence
from raywatch.actors.spec import DetectorSpec
from raywatch.models.decide import Episode, Forgotten
from raywatch.models.missing import Silence
from raywatch.models.scorer import F64
from raywatch.models.strange_sessions import Told

SCHEMA = "raywatch.alert/1"
ANOMALY = "anomaly"
MISSING = "missing"
FORGOTTEN = "key forgotten"  # a reason

RunKind = Literal["live", "replay", "shadow", "drill"]
State = Literal["open", "update", "resolved"]
Origin = tuple[Partition, int]  # the partition and offset of the record that caused an alert

DIGITS = 9  # Enough for every float32; beyond that lies only the noise of the last bits.
WORDS_COLUMNS = 3  # Likewise, of records with many columns.
WORDS_CHANNELS = 2  # Channels named in the sentence: more are read from `channels`.
WINDOW = 64  # Values of a window.
STEP_MS = 1_000  # Time between two values of a window where the key's own pace is not known.


@dataclass(frozen=True, slots=True)
class Channel:
    """One value of the record and its part in the alert."""

    name: str
    observed: float  # NaN: missing
    expected: float  # NaN: unknown
    share: float  # 0..1
    spread: float = math.nan  # how far from `expected` values usually are; NaN: unknown
    word: str | None = None  # what it was, where it is no number; "": missing
    seen: float = math.nan  # records with this word that were learnt before; NaN: not counted

    @property
    def band(self) -> tuple[float, float] | None:
        """Where 19 of 20 values lie; None where that is not known, or where it is one value."""
        if not self.spread > 0.0 or math.isnan(self.expected):
            return None
        return self.expected - self.spread, self.expected + self.spread


@dataclass(frozen=True, slots=True)
class Line:
    """The log line that an alert is about. None: withheld."""

    text: str | None
    template: str | None  # the text with `<*>` for its values
    session: str | None  # "": it has none
    expected: tuple[tuple[str, str], ...]  # component and what is usual, in a sentence


@dataclass(frozen=True, slots=True)
class Edge:
    """The edge of the call that an alert is about."""

    name: str  # its fields and what they were, in one line; "": the incident ends
    expected: tuple[tuple[str, str], ...]  # component and what is usual, in a sentence


class Shown(TypedDict, total=False):
    """What an alert may show beside the numbers of its episode."""

    line: Line | None
    sessions: Told | None
    edge: Edge | None
    window: "Window | None"
    words: tuple[tuple[str, float], ...]  # of the words behind the channels: text, and `seen`


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The last values of one channel, oldest first; the last one is the alert's own record.

    Values are what models see: float32 beside the key's first value, a missing one repeats the
    last. NaN: the key is younger than that, or nothing is expected there.
    """

    channel: str
    observed: F64  # (WINDOW,)
    expected: F64 | None  # (WINDOW,); None: no stretch of the past looked alike
    step_ms: int  # usual time between two values


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert as it is written to the alerts topic."""

    detector: str
    key: bytes
    rule: str  # ANOMALY or MISSING
    state: State
    since_ms: int  # where the incident began
    at_ms: int  # record time of this alert
    ordinal: int
    tail_probability: float  # NaN where the rule has none
    score: float
    event_score: float
    component: str
    channels: tuple[Channel, ...]
    lag: int  # records ago that it looked most alike; 0: none
    model: str  # version
    origin: Origin | None  # None in a file
    run_kind: RunKind
    window: Window | None = None
    reason: str = ""  # why an incident ended, where it is not that things are as usual
    similar_ms: int | None = None  # about when it looked most alike
    # components that call the channel that weighs most rare, rarest first, and -log10 p
    reasons: tuple[tuple[str, float], ...] = ()
    sums: tuple[float, float] | None = None  # of counts: what came and what was due
    line: Line | None = None
    sessions: Told | None = None  # of a record that may have one
    edge: Edge | None = None

    @property
    def id(self) -> str:
        """What the incident is known by."""
        return alert_id(self.detector, self.key, self.since_ms, self.rule, self.ordinal)

    @property
    def words(self) -> str:
        """One sentence for whoever is woken by it."""
        return _missing_words(self) if self.rule == MISSING else _anomaly_words(self)

    def to_json(self) -> bytes:
        """The value of the record in the alerts topic."""
        text, encoding = key_text(self.key)
        fields: dict[str, object] = {
            "schema": SCHEMA,
            "id": self.id,
            "detector": self.detector,
            "key": text,
            "rule": self.rule,
            "state": self.state,
            "since_ms": self.since_ms,
            "at_ms": self.at_ms,
            "tail_probability": _number(self.tail_probability),
            "score": _number(self.score),
            "event_score": _number(self.event_score),
            "component": self.component or None,
            "channels": [_channel(channel) for channel in self.channels],
            "lag": self.lag,
            "similar_ms": self.similar_ms,
            "reasons": [
                {
                    "component": component,
                    "noticed": NOTICED.get(component, f"component {component}"),
                    "tail_probability": _number(10.0**-rare),
                }
                for component, rare in self.reasons
            ],
            "model": self.model,
            "lineage": _lineage(self.origin),
            "run_kind": self.run_kind,
            "window": _window(self.window),
            "words": self.words,
        }
        if encoding:
            fields["key_encoding"] = encoding
        if self.reason:
            fields["reason"] = self.reason
        if self.line is not None:
            fields["line"] = _line(self.line)
        if self.sums is not None:
            fields["counted"] = {"came": _number(self.sums[0]), "due": _number(self.sums[1])}
        if self.sessions is not None:
            fields["sessions"] = _sessions(self.sessions)
        if self.edge is not None:
            fields["edge"] = {"name": self.edge.name, "expected": _expected(self.edge.expected)}
        body = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return body.encode()


def alert_id(detector: str, key: bytes, since_ms: int, rule: str, ordinal: int = 0) -> str:
    """128 bits in hex. Each part carries its length: no two lists of parts read the same."""
    digest = blake2b(digest_size=16, person=b"raywatch.alert")
    for part in (detector.encode(), key, b"%d" % since_ms, rule.encode(), b"%d" % ordinal):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def from_episode(
    spec: DetectorSpec,
    key: bytes,
    time_ms: int,
    origin: Origin | None,
    episode: Episode,
    version: str,
    *,
    run_kind: RunKind | None = None,
    window: Window | None = None,
    words: tuple[tuple[str, float], ...] = (),
    line: Line | None = None,
    sessions: Told | None = None,
    edge: Edge | None = None,
) -> Alert:
    """An anomaly alert.

    Args:
        spec: the detector.
        key: of the record.
        time_ms: time of the record at `episode.index`.
        origin: where that record lies; None in a file.
        episode: what the decide stage said.
        version: of the model that scored it.
        run_kind: left out, `live`, and `replay` in a file: only `live` pages.
        window: the values that led up to it.
        words: see Shown.
        line: of a record that is one.
        sessions: that were strange since the last alert of the incident.
        edge: of a record that is a call.
    """
    names = spec.columns
    texts = [*[(None, math.nan)] * (len(names) - len(words)), *words]
    assert len(names) == len(episode.observed), (names, episode)
    return Alert(
        detector=spec.name,
        key=key,
        rule=ANOMALY,
        state=cast(State, episode.kind),
        since_ms=episode.since_ms,
        at_ms=time_ms,
        ordinal=episode.ordinal,
        tail_probability=episode.p,
        score=episode.score,
        event_score=episode.event,
        component=episode.component,
        channels=tuple(
            Channel(*parts, word=word, seen=seen)
            for parts, (word, seen) in zip(
                zip(
                    names,
                    episode.observed,
                    episode.expected,
                    episode.channel_share,
                    episode.spread,
                    strict=True,
                ),
                texts,
                strict=True,
            )
        ),
        lag=episode.lag,
        similar_ms=episode.similar_ms,
        reasons=episode.reasons,
        sums=episode.sums,
        model=version,
        origin=origin,
        run_kind=run_kind or _kind_of(origin),
        window=window,
        line=line,
        sessions=sessions,
        edge=edge,
    )


def from_silence(
    spec: DetectorSpec,
    key: bytes,
    origin: Origin | None,
    silence: Silence,
    version: str,
    *,
    run_kind: RunKind | None = None,
) -> Alert:
    """A missing-data alert; `origin` is the record that showed it, often of another key."""
    forgotten = silence.kind == "forgotten"
    return Alert(
        detector=spec.name,
        key=key,
        rule=MISSING,
        state="resolved" if forgotten else cast(State, silence.kind),
        reason=FORGOTTEN if forgotten else "",
        since_ms=silence.since_ms,
        at_ms=silence.at_ms,
        ordinal=0,
        tail_probability=math.nan,
        score=math.nan,
        event_score=math.nan,
        component="",
        channels=(),
        lag=0,
        model=version,
        origin=origin,
        run_kind=run_kind or _kind_of(origin),
    )


def from_forgotten(
    spec: DetectorSpec,
    key: bytes,
    time_ms: int,
    origin: Origin | None,
    ended: Forgotten,
    version: str,
    *,
    run_kind: RunKind | None = None,
) -> Alert:
    """The end of an incident whose key is forgotten; `origin` is the record that needed the room.

    `time_ms` is that record's time.
    """
    return Alert(
        detector=spec.name,
        key=key,
        rule=ANOMALY,
        state="resolved",
        since_ms=ended.since_ms,
        at_ms=time_ms,
        ordinal=ended.ordinal,
        tail_probability=math.nan,
        score=math.nan,
        event_score=math.nan,
        component=ended.component,
        channels=(),
        lag=0,
        model=version,
        origin=origin,
        run_kind=run_kind or _kind_of(origin),
        reason=FORGOTTEN,
    )


def _kind_of(origin: Origin | None) -> RunKind:
    return "live" if origin else "replay"


def _lineage(origin: Origin | None) -> dict[str, object] | None:
    if origin is None:
        return None
    partition, offset = origin
    return {"topic": partition.topic, "partition": partition.number, "offset": offset}


def _window(window: Window | None) -> dict[str, object] | None:
    if window is None:
        return None
    return {
        "channel": window.channel,
        "observed": _numbers(window.observed),
        "expected": None if window.expected is None else _numbers(window.expected),
        "step_ms": window.step_ms,
    }


def _line(line: Line) -> dict[str, Any]:
    return {
        "text": line.text,
        "template": line.template,
        "session": line.session,
        "expected": _expected(line.expected),
    }


def _sessions(told: Told) -> dict[str, Any]:
    strange = [
        {"session": name_of(each), "records": each.records, "tail_probability": _number(each.p)}
        for each in told.named
    ]
    return {"strange": strange, "more": told.more, "total": told.total}


def _expected(expected: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"component": name, "words": words} for name, words in expected]


def _channel(channel: Channel) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": channel.name,
        "observed": _number(channel.observed),
        "expected": _number(channel.expected),
        "band": None if channel.band is None else [_number(e) for e in channel.band],
        "share": _number(channel.share),
    }
    if channel.word is not None:
        found |= {"word": channel.word, "seen": _number(channel.seen)}
    return found


def _numbers(values: F64) -> list[float | None]:
    return [_number(each) for each in values.tolist()]


def _number(value: float) -> float | None:
    """A number as JSON has it: DIGITS significant digits, or nothing."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _anomaly_words(alert: Alert) -> str:
    ranked = sorted(alert.channels, key=lambda channel: -channel.share)[:WORDS_CHANNELS]
    shown = [ranked[0], *(c for c in ranked[1:] if c.share >= 0.25)] if ranked else []
    if alert.component in SHARED:  # many columns have a small share each
        ranked = sorted(alert.channels, key=lambda channel: -channel.share)
        shown = [channel for channel in ranked[:WORDS_COLUMNS] if channel.share > 0.0]
    over = alert.state == "resolved"
    if over and (len(alert.channels) > 1 or alert.line is not None):
        shown = []  # what weighs most of an ordinary record is not what was strange
    readings = " and ".join(_reading(channel, over) for channel in shown)
    if alert.line is not None and alert.line.expected:
        readings += f", {alert.line.expected[0][1]}"
    if alert.edge is not None:
        said = [words for _, words in alert.edge.expected[:1]]
        readings = ": ".join([alert.edge.name, *said])
    who = printable(alert.key)
    if alert.reason == FORGOTTEN:
        began = when(alert.since_ms)
        return f"{who}, strange since {began}, is forgotten: its partition holds too many keys."
    sessions = sentence(alert.sessions, alert.state)
    if over:  # it need not be as it was before: what lasts becomes usual
        end = f": {readings}." if readings else "."
        after = span_of(alert.at_ms - alert.since_ms)
        return f"{who} is no longer strange after {after}{end}{sessions}"
    noticed = NOTICED.get(alert.component, f"component {alert.component}")
    if alert.sums is not None:
        noticed = _counted(*alert.sums, shown[0].name if len(alert.channels) > 1 else "")
    chance = odds(alert.tail_probability)
    whose = "this partition" if alert.component in SHARED else "this key"
    alike = "" if alert.similar_ms is None else f", the nearest at {when(alert.similar_ms)}"
    again = f", worse {span_of(alert.at_ms - alert.since_ms)} on" if alert.state == "update" else ""
    return (
        f"{who} shows {noticed}{again}: {readings}; {chance} records of {whose} look like "
        f"this{alike}.{sessions}"
    )


def _counted(came: float, due: float, what: str) -> str:
    much = "fewer" if came < due else "more"
    of = f" of {what}" if what else ""
    return f"{much}{of} than usual for this hour, {short(came)} where {short(due)} were due"


def _missing_words(alert: Alert) -> str:
    who, since = printable(alert.key), when(alert.since_ms)
    span = span_of(alert.at_ms - alert.since_ms)
    if alert.reason == FORGOTTEN:
        return f"{who}, silent since {since}, is forgotten: its partition holds too many keys."
    if alert.state == "resolved":
        return f"{who} sends again after {span} without a record, silent since {since}."
    return f"{who} has sent nothing for {span}, since {since}, while other keys went on."


def _reading(channel: Channel, over: bool) -> str:
    """What a channel is, and what was expected. Where much is strange, one value need not be."""
    if channel.word:
        new = ", never seen here" if channel.seen < 1.0 else ""
        return f"{channel.name} is {printable(channel.word.encode())}{new}"
    if math.isnan(channel.observed):
        return f"{channel.name} is missing"
    said, band = f"{channel.name} is {short(channel.observed)}", channel.band
    if math.isnan(channel.expected):
        return said
    if band is None:
        return f"{said}, expected about {short(channel.expected)}"
    usual, within = f"{short(band[0])} to {short(band[1])}", band[0] <= channel.observed <= band[1]
    if over:
        return f"{said}, expected {usual}" if within else said
    return f"{said}, {'by itself within' if within else 'expected'} {usual}"
