"""What the demo shows, and whether it may say that nothing was lost: all of it that is arithmetic.

A plan (how many keys, how many steps) becomes a world: the records of four streams, each key's
quiet past first, with anomalies whose places are known. What the service said is then held
against two things:

    what was injected            found, missed, false (models/synthetic.py, `judge`)
    the very same records,       lost, repeated, foreign, different: by id, state and time, and
    scored again undisturbed     then byte for byte

Where the second comparison finds a difference the demo fails, whatever else it showed. Running it,
and killing parts of it, is for demo_run.py.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from raywatch.actors.flow import Flow
from raywatch.actors.noticed import NOTICED
from raywatch.actors.phrases import odds
from raywatch.actors.ports import Fetched, Out, Partition
from raywatch.actors.spec import DetectorSpec
from raywatch.cluster.output import table
from raywatch.models.errors import ConfigError
from raywatch.models.scorer import Scorer, describe
from raywatch.models.synthetic import Injection, Stream, generate, judge, to_json

STREAMS = {"cpu": "hosts", "latency": "services", "counts": "queues", "walk": "rooms"}
PARTITIONS = 4  # of each stream
QUIET = 1_024  # steps before the first anomaly: what keys are known by
STEPS = 640  # live steps; the number of keys follows from it
STEPS_MIN = 400  # the longest anomaly and the way back from it must fit
KEYS_MIN, KEYS_MAX = 40, 1_000
LIVE_MAX = 1_000_000  # live records; the log and the second scoring hold all of them in memory
PER_KIND_MAX = 4
STEP_MS = 1_000  # of record time between two records of a key
DAY_MS = 240_000  # a short day, so that the past holds several
MISSING_MS = 60_000
STRENGTH = 16.0  # of anomalies, in ordinary spreads of their key
SLACK_STEPS = 60  # after an anomaly in which an alert still belongs to it

Identity = tuple[str, str, int]  # id, state and time of an alert


@dataclass(frozen=True, slots=True)
class Plan:
    """A demo before it has a time."""

    seconds: float  # of live records
    rate: float  # live records/s
    seed: int
    keys: int
    steps: int  # live ones
    per_kind: int

    def stream(self, now_ms: int, align_ms: int) -> Stream:
        """The stream whose last record is about `seconds` from now.

        Its beginning is a multiple of `align_ms`: silence is judged on a grid of record time, which
        then cuts every run with the same seed in the same places.
        """
        end_ms = now_ms + round(1_000 * self.seconds)
        begin_ms = end_ms - (QUIET + self.steps) * STEP_MS
        return Stream(
            keys=self.keys,
            seed=self.seed,
            step_ms=STEP_MS,
            start_ms=begin_ms // align_ms * align_ms,
            day_ms=DAY_MS,
            kinds=tuple(STREAMS),
            quiet=QUIET,
            strength=STRENGTH,
            missing_ms=MISSING_MS,
        )


@dataclass(frozen=True, slots=True)
class World:
    """The records of a demo, in the order in which they are written."""

    records: list[Out]
    history: int  # so many of them are the past, written at once
    keys: int
    injected: tuple[Injection, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of alerts, the second of which is right."""

    same: int  # byte for byte, and as often
    lost: int
    repeated: int
    foreign: int  # said, and not to be said at all
    different: int  # said as often as they should be, and with other content

    @property
    def equal(self) -> bool:
        """Whether there is nothing to explain."""
        return not (self.lost or self.repeated or self.foreign or self.different)


@dataclass(frozen=True, slots=True)
class Death:
    """A process that the demo killed, and what became of its work."""

    kind: str  # scorer or owner
    name: str
    pid: int
    at_s: float  # after the first live record
    back_s: float | None  # until others did its work; None: not while the demo looked


def plan(seconds: float, rate: float, seed: int) -> Plan:
    """Choose keys and steps for a length and a rate. Raises ConfigError where they do not fit."""
    live = int(seconds * rate)
    if live > LIVE_MAX:
        raise ConfigError(
            f"`--seconds {seconds:g}` at `--rate {rate:g}` are {live:,} records",
            hint=f"at most {LIVE_MAX:,}: the demo keeps all of them in memory",
        )
    keys = min(KEYS_MAX, max(KEYS_MIN, round(live / STEPS)))
    steps = live // keys
    if steps < STEPS_MIN:
        raise ConfigError(
            f"`--seconds {seconds:g}` at `--rate {rate:g}` are {live:,} records",
            hint=f"at least {KEYS_MIN * STEPS_MIN:,}, so that every kind of anomaly fits in",
        )
    return Plan(seconds, rate, seed, keys, steps, per_kind=min(PER_KIND_MAX, keys // 20))


def world(chosen: Plan, stream: Stream, topics: Mapping[str, str]) -> World:
    """All records; `topics` says which topic takes the keys of each of STREAMS."""
    made = generate(stream, QUIET + chosen.steps, injections_per_kind=chosen.per_kind)
    names = [name.encode() for name in made.names]
    places = [topics[STREAMS[name.partition("-")[0]]] for name in made.names]
    records = [
        Out(places[key], names[key], value)
        for key, value in zip(made.key.tolist(), to_json(made), strict=True)
    ]
    return World(records, QUIET * chosen.keys, chosen.keys, made.injected)


def score_again(
    spec: DetectorSpec, partitions: Sequence[Partition], records: Iterable[Fetched], scorer: Scorer
) -> list[bytes]:
    """Every alert of these records, as the service should have written it, by one pass alone."""
    flow = Flow(spec, partitions, describe(scorer))
    said: list[bytes] = []
    for fetched in records:
        batch = flow.prepare(fetched, flow.model, begin={}, end={})
        scores = None if batch.segments is None else scorer.score(batch.segments)
        said += [alert.to_json() for alert in flow.finish(batch, scores).alerts]
    return said


def compare(said: Sequence[bytes], right: Sequence[bytes]) -> Comparison:
    """Hold what was said against what is right, alert by alert."""
    ours, theirs = _by_identity(said), _by_identity(right)
    lost = repeated = foreign = different = 0
    for identity in ours.keys() | theirs.keys():
        a, b = ours.get(identity, Counter()), theirs.get(identity, Counter())
        have, want = a.total(), b.total()
        if not want:
            foreign += have
        elif have < want:
            lost += want - have
        elif have > want:
            repeated += have - want
        else:
            different += (a - b).total()
    same = (Counter(said) & Counter(right)).total()
    return Comparison(same, lost, repeated, foreign, different)


def _by_identity(alerts: Sequence[bytes]) -> dict[Identity, Counter[bytes]]:
    found: dict[Identity, Counter[bytes]] = defaultdict(Counter)
    for alert in alerts:
        fields = json.loads(alert)
        found[fields["id"], fields["state"], fields["at_ms"]][alert] += 1
    return found


def summary(
    chosen: Plan,
    made: World,
    said: Sequence[bytes],
    right: Sequence[bytes],
    deaths: Sequence[Death],
    *,
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the end of the demo says, as plain values; `problems` are why not `ok`.

    `measured` is what only whoever ran it knows: records written, read and committed, seconds,
    the page, processes that are left. It goes in as it is.
    """
    alerts = [json.loads(each) for each in said]
    verdict = judge(made.injected, map(_claim, alerts), slack_ms=SLACK_STEPS * STEP_MS)
    compared = compare(said, right)
    states = Counter(each["state"] for each in alerts)
    counted = {name: measured[name] for name in ("written", "read", "committed")}
    asked = {
        "alerts differ from those of the same records scored again": not compared.equal,
        f"not all of {len(made.records):,} records are there: {counted}": set(counted.values())
        != {len(made.records)},
        "no injected anomaly was found": not verdict.found,
        "nothing was killed": not deaths,
        "what was killed did not come back": any(death.back_s is None for death in deaths),
        f"processes did not end by themselves: {measured['left']}": bool(measured["left"]),
    }
    problems = [words for words, so in asked.items() if so]
    return {
        "ok": not problems,
        "problems": problems,
        "seed": chosen.seed,
        "keys": made.keys,
        "records": len(made.records),
        "history": made.history,
        "injected": len(made.injected),
        "found": verdict.found,
        "missed": verdict.missed,
        "false": verdict.false,
        "by_kind": {
            kind: {"injected": every, "found": found, "missed": every - found}
            for kind, (found, every) in verdict.by_kind.items()
        },
        "anomalies": [_anomaly(each, each not in verdict.unfound) for each in made.injected],
        "alerts": len(alerts),
        "opened": states["open"],
        "updated": states["update"],
        "resolved": states["resolved"],
        "scored_again": len(right),
        "same": compared.same,
        "lost": compared.lost,
        "repeated": compared.repeated,
        "foreign": compared.foreign,
        "different": compared.different,
        "deaths": [_fields(death) for death in deaths],
        **measured,
    }


def _anomaly(each: Injection, found: bool) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "key": each.key,
        "begin_ms": each.begin_ms,
        "end_ms": each.end_ms,
        "found": found,
    }


def _fields(death: Death) -> dict[str, Any]:
    return {
        "kind": death.kind,
        "name": death.name,
        "pid": death.pid,
        "at_s": round(death.at_s, 2),
        "back_s": None if death.back_s is None else round(death.back_s, 2),
    }


def _claim(alert: Mapping[str, Any]) -> tuple[str, int, int, str]:
    return alert["key"], alert["since_ms"], alert["at_ms"], alert["state"]


def belongs(alert: Mapping[str, Any], injected: Sequence[Injection]) -> bool:
    """Whether an alert is of something that was injected."""
    return judge(injected, [_claim(alert)], slack_ms=SLACK_STEPS * STEP_MS).found > 0


# ---- in words ------------------------------------------------------------------------------


def alert_line(alert: Mapping[str, Any]) -> str:
    """An alert in one line: time, state, key, what, observed, expected, odds."""
    head = f"{_clock(alert['at_ms'])}  {alert['state']:<8}  {alert['key']:<13}  "
    span = f"{(alert['at_ms'] - alert['since_ms']) / 1_000:.0f} s"
    channels = cast("list[dict[str, Any]]", alert["channels"])
    if alert["state"] == "resolved":
        return f"{head}over after {span}"
    if not channels:
        return f"{head}{'no records':<31}  for {span}"
    worst = max(channels, key=lambda channel: channel["share"] or 0.0)
    what = NOTICED.get(alert["component"], f"component {alert['component']}")
    p = alert["tail_probability"]
    chance = odds(p if p is not None else 0.0)
    return (
        f"{head}{what:<31}  observed {_short(worst['observed']):>7}  "
        f"expected {_short(worst['expected']):>7}  {chance}"
    )


def _clock(ms: int) -> str:
    """Record time of day, UTC."""
    return datetime.fromtimestamp(ms // 1_000, UTC).strftime("%H:%M:%S")


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def closing(found: Mapping[str, Any]) -> Iterator[str]:
    """The end of the demo for people."""
    kinds = cast("dict[str, dict[str, int]]", found["by_kind"])
    rows: list[Sequence[object]] = [
        (kind, each["injected"], each["found"], each["missed"]) for kind, each in kinds.items()
    ]
    rows.append(("all", found["injected"], found["found"], found["missed"]))
    yield ""
    yield from table(("anomaly", "injected", "found", "missed"), rows)
    for each in found["anomalies"]:
        if not each["found"]:
            yield f"  missed: {each['kind']} of {each['key']} at {_clock(each['begin_ms'])}"
    yield (
        f"{found['false']} of {found['opened']} incidents began where nothing was injected (false)"
    )
    yield ""
    yield (
        f"{found['written']:,} records written, {found['read']:,} read back, "
        f"{found['committed']:,} committed; {found['per_s']:,.0f} a second while they were live"
    )
    for death in found["deaths"]:
        back = death["back_s"]
        again = (
            "others did its work after" if death["kind"] == "scorer" else "its lanes went on after"
        )
        words = f"{again} {back:.1f} s" if back is not None else "and nobody took its place"
        yield f"killed {death['kind']} {death['name']} (pid {death['pid']}): {words}"
    yield (
        f"{found['alerts']} alerts ({found['opened']} open, {found['updated']} update, "
        f"{found['resolved']} resolved); scored again undisturbed, the same records give "
        f"{found['scored_again']}"
    )
    yield (
        f"  {found['same']} are the same byte for byte; {found['lost']} lost, "
        f"{found['repeated']} repeated, {found['foreign']} foreign, {found['different']} different"
    )
    yield (
        f"first alert {_seconds(found['first_alert_s'])} after the start, first of an injected "
        f"anomaly {_seconds(found['first_found_s'])}; {found['took_s']:.0f} s in all"
    )
    yield from (f"problem: {words}" for words in found["problems"])
    yield "nothing was lost, nothing was repeated" if found["ok"] else "this must not happen"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"
