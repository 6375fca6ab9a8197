"""Streams that look like telemetry, with anomalies whose places are known.

Keys are hosts, services and queues; key i behaves like `kinds[i % len(kinds)]`:

    cpu      a day's course with a half-day harmonic, Gaussian noise
    latency  lognormal, 25 % spread round the key's median
    counts   Poisson, the rate follows the day
    walk     a random walk that is drawn back to its level
    bursty   quiet noise with bursts far above it, which are ordinary here

and anomalies are injected, each `strength` times the ordinary spread of its key:

    spike    one value                      variance  the noise grows, the level stays
    level    60 values shifted              missing   no records for `missing_ms`
    drift    120 values, ever farther       pattern   60 values swing like a saw

Time passes in steps; in each step every key has one record. The stream is endless and every
block of 512 steps can be computed by itself: block i is a function of the settings and i alone.
What is not here: trends over weeks, keys that come and go, correlated keys.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from raywatch.models.errors import ConfigError
from raywatch.models.scorer import F64, I32, I64

SIGNALS = ("cpu", "latency", "counts", "walk", "bursty")
INJECTIONS = ("spike", "level", "drift", "variance", "missing", "pattern")
BLOCK = 512  # steps computed at once
LENGTHS = {"spike": 1, "level": 60, "drift": 120, "variance": 60, "pattern": 60}  # records
APART = 200  # records of a key between two of its anomalies: time to call the first one over
DECIMALS = 4  # of a value: what JSON carries is exactly what the table holds
BURST_EVERY, BURST_FADE, BURST_TAIL = 150, 6.0, 40  # records between bursts, of fading, to the end
KEYS_MAX = 100_000
# First word of every seed: streams of random numbers that never meet.
OF_KEYS, OF_NOISE, OF_ENDS, OF_PLACES, OF_INJECTION = range(5)


@dataclass(frozen=True, slots=True)
class Injection:
    """An anomaly of one key: its records with begin_ms <= time < end_ms, or their absence."""

    kind: str
    key: str
    begin_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Table:
    """Records in stream order: step after step, within a step key after key."""

    names: tuple[str, ...]  # of keys
    key: I32  # (N,) index into names
    time_ms: I64  # (N,) never goes back
    value: F64  # (N,) rounded to 4 decimals
    injected: tuple[Injection, ...]  # by begin

    def __len__(self) -> int:
        return int(self.key.shape[0])

    def series(self) -> list[tuple[str, F64]]:
        """(key, (n, 1) values, oldest first) of every key that has records: what `train` takes."""
        order = np.argsort(self.key, kind="stable")
        ends = np.cumsum(np.bincount(self.key, minlength=len(self.names)))
        parts = np.split(self.value[order][:, None], ends[:-1])
        return [
            (name, part) for name, part in zip(self.names, parts, strict=True) if part.shape[0] > 0
        ]


@dataclass(frozen=True, slots=True)
class Place:
    """An anomaly before it has a time: steps [begin, end) of a key."""

    kind: str
    key: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Stream:
    """An endless stream. Raises ConfigError for settings that cannot be.

    From step `quiet` on, every round (see `round_steps`) has `per_round` anomalies of each kind,
    each on a key of its own; with too few keys, other kinds are left out in every round.
    """

    keys: int = 200  # 1..100,000
    seed: int = 0
    step_ms: int = 1_000  # time between two records of a key
    start_ms: int = 1_767_225_600_000  # 2026-01-01 UTC
    day_ms: int = 86_400_000  # period of cpu and counts; shorten it to see days in a short run
    kinds: tuple[str, ...] = SIGNALS
    injections: tuple[str, ...] = INJECTIONS
    per_round: int = 1
    quiet: int = 1_024  # steps without anomalies at the beginning: what detectors learn from
    strength: float = 10.0  # size of an anomaly in ordinary spreads of its key
    missing_ms: int = 120_000

    def __post_init__(self) -> None:
        _in_range("keys", self.keys, 1, KEYS_MAX)
        _in_range("step_ms", self.step_ms, 1, 86_400_000)
        _in_range("start_ms", self.start_ms, 0, 7_000_000_000_000)
        _in_range("day_ms", self.day_ms, 1, 1_000_000_000_000)
        _in_range("per_round", self.per_round, 0, KEYS_MAX)
        _in_range("quiet", self.quiet, 0, 1_000_000_000)
        _in_range("strength", self.strength, 0.0, 1e6)
        _in_range("missing_ms", self.missing_ms, self.step_ms, 1_000_000 * self.step_ms)
        _known("kinds", self.kinds, SIGNALS)
        _known("injections", self.injections, INJECTIONS)
        if not self.kinds:
            raise ConfigError("`kinds` must name one signal", hint=", ".join(SIGNALS))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the keys: the signal's kind and a number."""
        kinds = self.kinds
        return tuple(f"{kinds[i % len(kinds)]}-{i:04d}" for i in range(self.keys))

    @property
    def round_steps(self) -> int:
        """Steps of a round: whole blocks, four times the longest anomaly at least."""
        longest = max((length(self, kind) for kind in self.injections), default=1)
        return BLOCK * math.ceil((4 * longest + 2 * APART) / BLOCK)

    def chunk(self, number: int) -> Table:
        """Block `number` of the stream, 0..: 512 records of each key.

        `injected` holds the anomalies that begin in it.
        """
        assert number >= 0, number
        begin = number * BLOCK
        places = self.places(number * BLOCK // self.round_steps)
        mine = [each for each in places if each.begin < begin + BLOCK and each.end > begin]
        return _table(self, begin, begin + BLOCK, mine)

    def places(self, number: int) -> list[Place]:
        """The anomalies of one round; they begin and end within it."""
        begin = number * self.round_steps
        if begin < self.quiet or self.per_round == 0:
            return []
        random = np.random.default_rng([self.seed, OF_PLACES, number])
        every = [each for each in self.injections for _ in range(self.per_round)]
        keys = random.permutation(self.keys)[: len(every)]
        kinds = [every[each] for each in random.permutation(len(every))[: len(keys)]]
        found: list[Place] = []
        for kind, key in zip(kinds, keys, strict=True):
            size = length(self, kind)
            # Half the gap at both ends keeps anomalies of neighbouring rounds apart.
            first = int(random.integers(APART // 2, self.round_steps - size - APART // 2))
            found.append(Place(kind, int(key), begin + first, begin + first + size))
        return sorted(found, key=lambda each: (each.begin, each.key))


def generate(
    stream: Stream, records_per_key: int, *, injections_per_kind: int | None = None
) -> Table:
    """The first records of a stream as one table.

    With `injections_per_kind` None the anomalies are those of the endless stream; with a number,
    so many of each kind are spread over the steps from `quiet` on. Raises ConfigError where they
    do not fit.
    """
    _in_range("records_per_key", records_per_key, 0, 1_000_000_000)
    if injections_per_kind is not None:
        places = _spread(stream, records_per_key, injections_per_kind)
    else:
        rounds = range(math.ceil(records_per_key / stream.round_steps))
        places = [each for number in rounds for each in stream.places(number)]
        places = [each for each in places if each.end <= records_per_key]
    return _table(stream, 0, records_per_key, places)


def to_json(table: Table, begin: int = 0, end: int | None = None) -> list[bytes]:
    """Records [begin, end) as JSON objects: {"host": name, "ts": milliseconds, "value": number}."""
    heads = [f'{{"host":"{name}","ts":'.encode() for name in table.names]
    rows = zip(
        table.key[begin:end].tolist(),
        table.time_ms[begin:end].tolist(),
        table.value[begin:end].tolist(),
        strict=True,
    )
    return [b'%b%d,"value":%a}' % (heads[key], time_ms, value) for key, time_ms, value in rows]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the injected anomalies, and how many alerts nobody asked for."""

    found: int
    missed: int
    false: int  # incidents that were opened where nothing was injected
    by_kind: dict[str, tuple[int, int]]  # found and injected of each kind
    unfound: tuple[Injection, ...]


def judge(
    injected: Iterable[Injection], alerts: Iterable[tuple[str, int, int, str]], *, slack_ms: int
) -> Verdict:
    """Match alerts (key, since_ms, at_ms, state) with what was injected.

    An anomaly is found by an alert of its key, `open` or `update`, whose time from `since_ms` to
    `at_ms` touches the anomaly or the `slack_ms` after it (the way back is a change too). An
    `open` alert that touches none is false; `resolved` says nothing either way. An alert within
    the slack of two anomalies counts for both.
    """
    places: dict[str, list[Injection]] = {}
    for each in injected:
        places.setdefault(each.key, []).append(each)
    found: set[Injection] = set()
    false = 0
    for key, since_ms, at_ms, state in alerts:
        if state not in ("open", "update"):
            continue
        touched = [
            each
            for each in places.get(key, [])
            if at_ms >= each.begin_ms and since_ms < each.end_ms + slack_ms
        ]
        found.update(touched)
        false += state == "open" and not touched
    every = [each for each_key in places.values() for each in each_key]
    by_kind = {
        kind: (
            sum(each.kind == kind for each in found),
            sum(each.kind == kind for each in every),
        )
        for kind in sorted({each.kind for each in every})
    }
    unfound = tuple(sorted(set(every) - found, key=lambda each: (each.begin_ms, each.key)))
    return Verdict(len(found), len(unfound), false, by_kind, unfound)


def length(stream: Stream, kind: str) -> int:
    """Steps that an anomaly takes."""
    if kind == "missing":
        return math.ceil(stream.missing_ms / stream.step_ms)
    return LENGTHS[kind]


def _table(stream: Stream, begin: int, end: int, places: list[Place]) -> Table:
    keys, steps = stream.keys, end - begin
    values = np.empty((steps, keys))
    spread, _ = _character(stream)
    for number in range(begin // BLOCK, -(-end // BLOCK)):
        low, high = max(begin, number * BLOCK), min(end, (number + 1) * BLOCK)
        block = _block(stream, number)
        values[low - begin : high - begin] = block[low - number * BLOCK : high - number * BLOCK]
    present = np.ones((steps, keys), np.bool_)
    for place in places:
        _inject(stream, values, present, place, begin, float(spread[place.key]))
    # Nothing measured here can be negative, and a load ends at 100 %.
    kinds = np.arange(keys) % len(stream.kinds)
    for index, kind in enumerate(stream.kinds):
        if kind != "walk":
            columns = values[:, kinds == index]
            columns = columns.clip(0.0, 100.0 if kind == "cpu" else None)
            values[:, kinds == index] = columns.round() if kind == "counts" else columns
    values = values.round(DECIMALS) + 0.0  # no -0.0
    # Keys report one after the other within a step.
    phase = np.arange(keys, dtype=np.int64) * stream.step_ms // keys
    at = stream.start_ms + np.arange(begin, end, dtype=np.int64) * stream.step_ms
    time_ms = at[:, None] + phase
    names = stream.names
    injected = tuple(
        Injection(
            place.kind,
            names[place.key],
            stream.start_ms + place.begin * stream.step_ms + int(phase[place.key]),
            stream.start_ms + place.end * stream.step_ms + int(phase[place.key]),
        )
        for place in sorted(places, key=lambda each: (each.begin, each.key))
        if begin <= place.begin < end
    )
    key = np.broadcast_to(np.arange(keys, dtype=np.int32), (steps, keys))
    return Table(names, key[present], time_ms[present], values[present], injected)


def _inject(
    stream: Stream,
    values: F64,
    present: np.ndarray,
    place: Place,
    begin: int,
    spread: float,
) -> None:
    """Change the part of one anomaly that lies in these steps, in place."""
    size = place.end - place.begin
    random = np.random.default_rng([stream.seed, OF_INJECTION, place.key, place.begin])
    noise = random.standard_normal(size)
    # Loads have little room above, walks go both ways, all others only ever grow.
    kind = stream.kinds[place.key % len(stream.kinds)]
    sign = -1.0 if kind == "walk" and random.random() < 0.5 else 1.0
    unit = stream.strength * spread
    at = np.arange(size)
    shapes = {
        "spike": np.full(size, sign),
        "level": np.full(size, 0.6 * sign),
        "drift": sign * np.linspace(0.0, 1.0, size),
        "variance": 0.5 * noise,
        "pattern": 0.5 * (at % 12) / 11.0 * sign,
        "missing": np.zeros(size),
    }
    low, high = max(place.begin, begin), min(place.end, begin + values.shape[0])
    rows = slice(low - begin, high - begin)
    part = slice(low - place.begin, high - place.begin)
    values[rows, place.key] += unit * shapes[place.kind][part]
    if place.kind == "missing":
        present[rows, place.key] = False


def _character(stream: Stream) -> tuple[F64, F64]:
    """(K,) ordinary spread and (K,) level of each key."""
    random = np.random.default_rng([stream.seed, OF_KEYS])
    u = random.random(stream.keys)
    kinds = np.arange(stream.keys) % len(stream.kinds)
    spread, level = np.empty(stream.keys), np.empty(stream.keys)
    for index, kind in enumerate(stream.kinds):
        mine = kinds == index
        v = u[mine]
        if kind == "cpu":
            level[mine], spread[mine] = 25.0 + 15.0 * v, 1.5
        elif kind == "latency":
            level[mine], spread[mine] = 20.0 * 10.0**v, 5.0 * 10.0**v
        elif kind == "counts":
            level[mine], spread[mine] = 50.0 * 10.0**v, np.sqrt(50.0 * 10.0**v)
        elif kind == "walk":
            level[mine], spread[mine] = -50.0 + 100.0 * v, 3.0 * (0.5 + v)
        else:  # bursty: its spread is that of the bursts, not of the noise between them
            level[mine], spread[mine] = 10.0 + 10.0 * v, 3.0 * (1.0 + v)
    return spread, level


def _block(stream: Stream, number: int) -> F64:
    """(512, K) values of one block, without anomalies."""
    spread, level = _character(stream)
    values = np.empty((BLOCK, stream.keys))
    angle = _angle(stream, number)
    for index, kind in enumerate(stream.kinds):
        mine = np.arange(index, stream.keys, len(stream.kinds))
        random = np.random.default_rng([stream.seed, OF_NOISE, number, index])
        shape = (BLOCK, mine.shape[0])
        center, unit = level[mine], spread[mine]
        if kind == "cpu":
            day = 0.5 * center * (np.sin(angle[:, mine]) + 0.4 * np.sin(2.0 * angle[:, mine]))
            values[:, mine] = center + day + unit * random.standard_normal(shape)
        elif kind == "latency":
            values[:, mine] = center * np.exp(0.25 * random.standard_normal(shape))
        elif kind == "counts":
            rate = center * (1.0 + 0.4 * np.sin(angle[:, mine]))
            values[:, mine] = random.poisson(rate, shape)
        elif kind == "walk":
            values[:, mine] = center + _walk(stream, number, index, shape, random) * unit / 3.0
        else:
            values[:, mine] = center + 0.1 * unit * random.standard_normal(shape)
            values[:, mine] += 3.0 * unit * _bursts(shape, random)
    return values


def _angle(stream: Stream, number: int) -> F64:
    """(512, K) time of day as an angle; each key has its own phase."""
    phase = np.random.default_rng([stream.seed, OF_KEYS, 1]).random(stream.keys)
    # The time within the day in integers first: floats would lose the step after some years.
    step = number * BLOCK + np.arange(BLOCK, dtype=np.int64)
    turn = (step * stream.step_ms % stream.day_ms) / stream.day_ms
    return 2.0 * np.pi * (turn[:, None] + phase)


def _walk(
    stream: Stream, number: int, index: int, shape: tuple[int, int], random: np.random.Generator
) -> F64:
    """Unit steps between two ends that are drawn for themselves: a Brownian bridge.

    So a walk can be entered at any block, and stays near its level for ever.
    """
    ends = [
        np.random.default_rng([stream.seed, OF_ENDS, each, index]).standard_normal(shape[1])
        for each in (number, number + 1)
    ]
    first, last = (6.0 * each for each in ends)
    free = np.cumsum(random.standard_normal(shape), axis=0)
    share = np.arange(1, shape[0] + 1)[:, None] / shape[0]
    return first + free + share * (last - first - free[-1])


def _bursts(shape: tuple[int, int], random: np.random.Generator) -> F64:
    """Bursts of height 0.7..1.3 that fade; the last ones end before the block does."""
    starts = random.random(shape) < 1.0 / BURST_EVERY
    starts[-BURST_TAIL:] = False
    height = starts * (0.7 + 0.6 * random.random(shape))
    fade = np.exp(-np.arange(BURST_TAIL) / BURST_FADE)
    out = np.zeros(shape)
    for lag in range(BURST_TAIL):
        np.maximum(out[lag:], height[: shape[0] - lag] * fade[lag], out=out[lag:])
    return out


def _spread(stream: Stream, steps: int, wanted: int) -> list[Place]:
    """So many places of each kind over steps `quiet`.., apart from each other on each key."""
    _in_range("injections_per_kind", wanted, 0, 1_000_000)
    random = np.random.default_rng([stream.seed, OF_PLACES])
    kinds = [kind for _ in range(wanted) for kind in stream.injections]
    used: dict[int, list[Place]] = {}
    found: list[Place] = []
    # Keys in rounds: a key gets its second anomaly when every key has its first.
    rounds = -(-len(kinds) // stream.keys)
    keys = np.concatenate([random.permutation(stream.keys) for _ in range(rounds)] or [[]])
    for kind, key in zip(kinds, keys.tolist(), strict=False):
        size = length(stream, kind)
        place = _free(random, used.get(int(key), []), stream.quiet, steps - size - APART, size)
        if place is None:
            raise ConfigError(
                f"{len(kinds)} anomalies do not fit {stream.keys} keys of {steps} records",
                hint=f"a `{kind}` takes {size} records, {APART} between two, from {stream.quiet}",
            )
        chosen = Place(kind, int(key), place, place + size)
        used.setdefault(int(key), []).append(chosen)
        found.append(chosen)
    return found


def _free(
    random: np.random.Generator, taken: list[Place], low: int, high: int, size: int
) -> int | None:
    """A beginning in [low, high) at least APART from all others, or None after 64 tries."""
    if high <= low:
        return None
    for begin in random.integers(low, high, 64).tolist():
        if all(begin >= each.end + APART or begin + size + APART <= each.begin for each in taken):
            return int(begin)
    return None


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"`{name}` must be {low:g}..{high:g}, got {value}")


def _known(name: str, chosen: tuple[str, ...], known: tuple[str, ...]) -> None:
    for each in chosen:
        if each not in known:
            raise ConfigError(f"`{name}` has no `{each[:100]}`", hint=f"known: {', '.join(known)}")
