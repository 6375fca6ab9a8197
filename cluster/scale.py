"""How many scorers does the work need?

Everything is counted in scorers and scorer-seconds:

    c       = seconds per record = 1 / median over scorers of (records per busy second), median of
              the last 5 ticks
    r       = sum over partitions of min(K, rate * c): scorers that the arrivals keep busy
    w       = sum over partitions of min(backlog * c, 60 K): work that waits
    h       = seconds until a scorer ordered now could serve: a warm slot's time where free slots
              suffice, else the p80 of the last 20 cold starts (or the oldest pending start + 5 s)
    r_h     = r + growth * h, at most 1.5 r; growth is the smaller of the last two over thirds of a
              window of 60 to 300 s: a step is not a trend
    E       = w + max(0, (r + r_h)/2 * h - free * promise * r_h)
                - what ready and pending scorers do until then
    T_clear = max(5, sqrt(E / r_h * (h + T_hold) / price)): clear fast where starts are cheap
    want    = ceil(max(r_h / U, r_h + E / T_clear)); no move while r_h <= U_max * (ready + pending)
              and nothing is too much
    up      at once, without a step cap, to want
    down    to the highest want of the last T_hold = clip(3 * start, 300, 900): never on unknown or
            stale readings, while a backlog waits, or in a rollout
    blind   offsets unknown for 10 s, scorers over 95 % busy for 3 ticks, none pending: up by half

Simulated against published rules on 500 simulated scenarios: far cheaper, not earlier in a typical
one; worst on trains of pulses farther apart than T_hold. Where it differs from what was simulated:
the allowance (`free`) never exceeds the arrivals it is taken from, so that want is monotone in the
rate even where starts take less than 4 s. Does not know whether more scorers can help at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

TICK_SLACK_S = 0.05  # a tick that comes this much early is still a tick
COST_TICKS = 5  # ticks over which the cost of a record is smoothed
BUSY_TICKS = 3
STARTS_MAX = 20  # cold starts that are remembered
TREND_S = 300.0  # history of rates
BACKLOG_CAP_S = 60.0  # one partition asks for no more than this many seconds of all it can use
CLEAR_MIN_S = 5.0
RATE_FLOOR = 0.05  # scorers; keeps the quotients finite while nothing arrives
GAP_TICKS = 6.0  # after this many ticks without a want, T_hold is watched from the start again
BLIND_S = 10.0
BLIND_BUSY = 0.95
BLIND_GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class ScaleSettings:
    """What the operator promises, and what it may cost."""

    scorers_min: int = 1  # 0 is not offered: the first record after a pause would wait for a start
    scorers_max: int = 16
    promise_s: float = 10.0  # a record is scored within this, if the work allows it; 1..3600
    busy_target: float = 0.75  # U: share of time a scorer should work; 0.3..0.95
    busy_max: float = 0.88  # U_max: up to this share no scorer is added; busy_target..1
    price: float = 30.0  # a second of late work is worth this many scorer-seconds; 1..1000
    free: float = 0.3  # share of the promise that may be waiting without counting as too much
    lane_max: float = 8.0  # K: scorers that one partition can keep busy at once
    grow_max: float = 1.5  # a forecast may exceed the present rate by this factor
    warm_s: float = 5.0  # start in a warm slot
    cold_s: float = 30.0  # start elsewhere, until starts were measured
    hold_min_s: float = 300.0
    hold_max_s: float = 900.0
    hold_starts: float = 3.0  # T_hold in starts
    tick_s: float = 5.0  # time between two decisions
    dry_run: bool = False  # decide and say, but keep the pool as it is


@dataclass(frozen=True, slots=True)
class Observation:
    """What was measured at one moment. Partition i has backlog[i] and rate[i]; None is unknown."""

    t: float  # monotonic seconds, now
    read_t: float  # when the offsets were read; not after the last one: stale
    backlog: Sequence[float | None]  # records
    rate: Sequence[float | None]  # arrivals a second, over about 15 s
    ready: int  # scorers that serve
    pending_age_s: Sequence[float] = ()  # of each scorer that is starting
    busy: Sequence[float] = ()  # share of time, of each ready scorer that said so
    records_per_busy_s: Sequence[float] = ()  # of each ready scorer that said so
    starts_s: Sequence[float] = ()  # cold starts so far, newest last
    warm_free: int = 0  # scorers that could start in a warm slot
    rollout: bool = False  # one is under way


@dataclass(frozen=True, slots=True)
class Memory:
    """What the rule remembers from tick to tick. Bounded by T_hold and TREND_S over tick_s."""

    t: float = -math.inf  # of the last decision; -inf before the first
    target: int = 0  # scorers last decided
    read_t: float = -math.inf  # of the newest reading that was used
    reason: str = ""
    wanted: int = 0
    costs: tuple[float, ...] = ()
    busy: tuple[float, ...] = ()
    rates: tuple[tuple[float, float], ...] = ()  # (read_t, r)
    full_rate: tuple[float, ...] = ()  # records/s of each partition when all were known last
    wants: tuple[tuple[float, int], ...] = ()  # (until, want), until and want falling and rising
    since: float = math.inf  # since when wants were recorded without a gap
    watched_t: float = -math.inf  # when the last was recorded


@dataclass(frozen=True, slots=True)
class Decision:
    """How many scorers the pool should have, and why. `scorers` holds until the next decision."""

    scorers: int
    reason: str  # `grow: ...`, `shrink: ...` or `hold: ...`
    kind: Literal["grow", "shrink", "hold"] = "hold"
    wanted: int = 0  # what the work asks for before hold times, for the page


@dataclass(frozen=True, slots=True)
class Load:
    """The work, in scorers and scorer-seconds."""

    rate: float  # r
    ahead: float  # r_h
    work_s: float  # w
    ready: int
    pending_age_s: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Want:
    """What the work asks for."""

    scorers: int
    words: str


def decide(seen: Observation, memory: Memory, settings: ScaleSettings) -> tuple[Decision, Memory]:
    """Choose the pool size. Call it every second or so; it thinks anew every `tick_s`.

    Raises nothing. `Decision.scorers` is what the pool is to have, so a scorer that died is
    replaced by whoever carries the decision out, without a decision.
    """
    assert len(seen.backlog) == len(seen.rate), (len(seen.backlog), len(seen.rate))
    if math.isinf(memory.t):
        active = seen.ready + len(seen.pending_age_s)
        memory = replace(memory, target=_clip(active, settings), wanted=active)
    elif seen.t - memory.t < settings.tick_s - TICK_SLACK_S:
        return Decision(memory.target, memory.reason, "hold", memory.wanted), memory
    memory = _learn(seen, memory)
    fresh = seen.read_t > memory.read_t and any(_known(seen))
    if not fresh:
        return _blind(seen, memory, settings)
    memory = replace(memory, read_t=seen.read_t)
    if not memory.costs or seen.ready == 0:
        what = "no scorer is ready" if seen.ready == 0 else "no scorer has reported a rate yet"
        return _settle(seen, memory, settings, memory.target, f"hold: {what}")
    return _by_load(seen, memory, settings)


def start_s(seen: Observation, settings: ScaleSettings) -> float:
    """Seconds that a cold start takes. A start that still runs is evidence, too."""
    starts = sorted(seen.starts_s[-STARTS_MAX:])
    usual = starts[min(len(starts) - 1, int(0.8 * len(starts)))] if starts else settings.cold_s
    return max(usual, max(seen.pending_age_s) + 5.0) if seen.pending_age_s else usual


def hold_s(start: float, settings: ScaleSettings) -> float:
    """T_hold: how long a pool keeps what was wanted once."""
    return min(settings.hold_max_s, max(settings.hold_min_s, settings.hold_starts * start))


def want(load: Load, *, horizon_s: float, start: float, settings: ScaleSettings) -> Want:
    """Scorers for one load, before bounds and hold times. Monotone in work, rate and forecast.

    Args:
        load: the work.
        horizon_s: h, seconds until a scorer ordered now could serve.
        start: seconds a cold start takes.
        settings: the promises.
    """
    rest = [max(5.0, start - age) for age in load.pending_age_s]
    coming = load.ready + len(rest)
    supply = load.ready * horizon_s + sum(max(0.0, horizon_s - each) for each in rest)
    arrivals = 0.5 * (load.rate + load.ahead) * horizon_s
    allowance = settings.free * settings.promise_s * load.ahead
    excess = max(0.0, load.work_s + max(0.0, arrivals - allowance) - supply)
    base = load.ahead / settings.busy_target
    if excess <= 0.0:
        if load.ahead <= settings.busy_max * coming:
            base = min(base, max(coming, 1))  # busier than the target, but no reason to move
        words = f"{load.ahead:.1f} scorers of work in {horizon_s:.0f} s"
        return Want(_ceil(base), f"{words} at {100 * settings.busy_target:.0f} % busy")
    hold = hold_s(start, settings)
    late = excess / max(load.ahead, RATE_FLOOR)
    clear_s = max(CLEAR_MIN_S, math.sqrt(late * (horizon_s + hold) / settings.price))
    scorers = _ceil(max(base, load.ahead + excess / clear_s))
    much = f"{excess:,.0f} scorer-seconds too much in {horizon_s:.0f} s"
    return Want(scorers, f"{much}; {scorers} clear it in {clear_s:.0f} s")


def forecast(rates: Sequence[tuple[float, float]], horizon_s: float, grow_max: float) -> float:
    """r_h: the last rate, plus the smaller of its last two growths over thirds of a window."""
    t, rate = rates[-1]
    span = min(TREND_S, max(60.0, horizon_s))
    if t - rates[0][0] < span - 10.0:
        return rate
    third = span / 3.0
    parts: tuple[list[float], list[float], list[float]] = ([], [], [])
    for at, each in rates:
        index = int((t - at) // third)
        if index <= 2:
            parts[2 - index].append(each)
    if min(map(len, parts)) < 2:
        return rate
    first, second, last = (sum(part) / len(part) for part in parts)
    growth = min(second - first, last - second)
    return min(grow_max * rate, rate + growth / third * horizon_s) if growth > 0.0 else rate


def _by_load(seen: Observation, memory: Memory, settings: ScaleSettings) -> tuple[Decision, Memory]:
    """The rule proper: readings are fresh, the cost of a record is known."""
    cost, known = median(memory.costs), _known(seen)
    rate = _rate(seen, memory, cost, settings.lane_max)
    if all(known):
        memory = replace(memory, full_rate=tuple(each or 0.0 for each in seen.rate))
    rates = (*(each for each in memory.rates if each[0] > seen.read_t - TREND_S),)
    memory = replace(memory, rates=(*rates, (seen.read_t, rate)))
    cap_s = BACKLOG_CAP_S * settings.lane_max
    work_s = sum(min(each * cost, cap_s) for each in seen.backlog if each is not None)

    start = start_s(seen, settings)
    active = seen.ready + len(seen.pending_age_s)
    load = Load(rate, rate, work_s, seen.ready, seen.pending_age_s)
    wanted = want(load, horizon_s=settings.warm_s, start=start, settings=settings)
    if wanted.scorers > active + seen.warm_free:
        if start > 2.0 * settings.warm_s:  # nearer than that, there is nothing to foresee
            load = replace(load, ahead=forecast(memory.rates, start, settings.grow_max))
        cold = want(load, horizon_s=start, start=start, settings=settings)
        wanted = replace(cold, scorers=max(cold.scorers, active + seen.warm_free))

    n = _clip(wanted.scorers, settings)
    memory = _record(seen.t, memory, n, wanted.scorers, hold_s(start, settings), settings)
    if n > memory.target:
        limit = f"; at most {n} are allowed" if wanted.scorers > n else ""
        return _settle(seen, memory, settings, n, f"grow: {wanted.words}{limit}")
    late_s = work_s / max(rate, RATE_FLOOR)
    return _down(seen, memory, settings, late_s)


def _down(
    seen: Observation, memory: Memory, settings: ScaleSettings, late_s: float
) -> tuple[Decision, Memory]:
    """Shrink to the highest want of T_hold, if nothing speaks against it."""
    hold = hold_s(start_s(seen, settings), settings)
    highest = max(each for _, each in memory.wants)
    unknown = _known(seen).count(False)
    why = f"hold: {memory.target} fit"
    if highest < memory.target:
        fewer = f"hold: {highest} would do, but"
        if unknown:
            why = f"{fewer} offsets of {unknown} of {len(seen.rate)} partitions are unknown"
        elif seen.rollout:
            why = f"{fewer} a rollout is under way"
        elif late_s >= 0.5 * settings.promise_s:
            why = f"{fewer} {late_s:.0f} s of work wait"
        elif seen.t - memory.since < hold - settings.tick_s - 1.0:
            why = f"{fewer} {seen.t - memory.since:.0f} of {hold:.0f} s are watched"
        else:
            words = f"shrink: no more than {highest} were wanted in the last {hold:.0f} s"
            return _settle(seen, memory, settings, highest, words)
    return _settle(seen, memory, settings, memory.target, why)


def _blind(seen: Observation, memory: Memory, settings: ScaleSettings) -> tuple[Decision, Memory]:
    """Offsets are unknown or stale: never down; up by half where the scorers are saturated."""
    for_s = seen.t - memory.read_t
    since = f"for {for_s:.0f} s" if math.isfinite(for_s) else "so far"
    saturated = len(memory.busy) == BUSY_TICKS and min(memory.busy) > BLIND_BUSY
    if for_s > BLIND_S and saturated and not seen.pending_age_s:
        wanted = max(memory.target + 1, math.ceil(BLIND_GROWTH * seen.ready))
        n = _clip(wanted, settings)
        hold = hold_s(start_s(seen, settings), settings)
        busy = 100 * min(memory.busy)
        memory = _record(seen.t, memory, n, wanted, hold, settings)
        if n > memory.target:
            memory = replace(memory, busy=())  # the larger pool has to show its own saturation
            words = f"grow: offsets unknown {since} and scorers {busy:.0f} % busy"
            return _settle(seen, memory, settings, n, words)
    return _settle(seen, memory, settings, memory.target, f"hold: offsets unknown {since}")


def _settle(
    seen: Observation, memory: Memory, settings: ScaleSettings, n: int, reason: str
) -> tuple[Decision, Memory]:
    """Make a decision of a number and a sentence; a dry run keeps the number it has."""
    n = _clip(n, settings)
    kind: Literal["grow", "shrink", "hold"] = "hold"
    if n != memory.target:
        kind = "grow" if n > memory.target else "shrink"
        if settings.dry_run:
            would = f"dry run: would {kind} from {memory.target} to {n}"
            if memory.reason.startswith(would):
                kind = "hold"  # said already
            n, reason = memory.target, f"{would}; {reason.partition(': ')[2]}"
    memory = replace(memory, target=n, t=seen.t, reason=reason)
    return Decision(n, reason, kind, memory.wanted), memory


def _record(
    t: float, memory: Memory, n: int, wanted: int, hold: float, settings: ScaleSettings
) -> Memory:
    """Remember a want for T_hold. Wants that a later and larger one outlives are dropped."""
    gap = t - memory.watched_t > GAP_TICKS * settings.tick_s
    kept = [
        (until, each)
        for until, each in memory.wants
        if until > t and (each > n or until > t + hold)
    ]
    wants = tuple(sorted([*kept, (t + hold, n)]))
    since = t if gap else memory.since
    return replace(memory, wants=wants, wanted=wanted, since=since, watched_t=t)


def _learn(seen: Observation, memory: Memory) -> Memory:
    """Smooth what the scorers say of themselves."""
    costs, busy = memory.costs, memory.busy
    speeds = [each for each in seen.records_per_busy_s if each > 0.0 and math.isfinite(each)]
    if speeds:
        costs = (*costs, 1.0 / median(speeds))[-COST_TICKS:]
    if seen.busy:
        busy = (*busy, sum(seen.busy) / len(seen.busy))[-BUSY_TICKS:]
    return replace(memory, costs=costs, busy=busy)


def _rate(seen: Observation, memory: Memory, cost: float, lane_max: float) -> float:
    """Scorers that the arrivals keep busy.

    Partitions that were not read are assumed to have changed like those that were.
    """
    known = _known(seen)
    rate = sum(
        min(lane_max, (each or 0.0) * cost) for each, ok in zip(seen.rate, known, strict=True) if ok
    )
    if all(known) or len(memory.full_rate) != len(known):
        return rate
    read = sum(each for each, ok in zip(memory.full_rate, known, strict=True) if ok)
    return rate * sum(memory.full_rate) / read if read > 0.0 else rate


def _known(seen: Observation) -> list[bool]:
    pairs = zip(seen.backlog, seen.rate, strict=True)
    return [backlog is not None and rate is not None for backlog, rate in pairs]


def _clip(n: int, settings: ScaleSettings) -> int:
    return max(settings.scorers_min, min(settings.scorers_max, n))


def _ceil(n: float) -> int:
    return math.ceil(n - 1e-9)
