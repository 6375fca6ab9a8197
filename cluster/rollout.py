"""How does a pool change its model without ever having fewer scorers ready?

Surge by one. With n scorers wanted and L lanes, over and over until nothing is old:

    SURGING    start one scorer of the new version beside the n; wait until it is warm (ready)
    SWITCHING  move lanes to the new version, one a step, up to floor(L * ready new / n)
    DRAINING   let go of the old scorers that the remaining old lanes do not need

    SURGING -> SWITCHING -> DRAINING -> SURGING ... -> DONE
       any of them -> ROLLING_BACK -> ROLLED_BACK (a guard or a time limit) or ABORTED (a person)

The way back is the same way with the versions exchanged. Each step follows from what is observed
and from nothing remembered but the direction, so a scorer killed in the middle is started again,
and a supervisor that restarts goes on. Rules: a lane goes only to a version with a ready scorer;
an old scorer goes only while n are ready without it; the last one only when no lane is old.

Not here: shadow, canary and the guards on scores. They decide whether to call `back`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

ScorerState = Literal["starting", "ready", "draining", "dead"]
START_MAX = 8  # scorers started in one step: replacing a whole pool must not storm the cluster


class Phase(StrEnum):
    """Where a rollout is."""

    SURGING = "surging"
    SWITCHING = "switching"
    DRAINING = "draining"
    DONE = "done"
    ROLLING_BACK = "rolling back"
    ROLLED_BACK = "rolled back"
    ABORTED = "aborted"


_FORWARD = frozenset({Phase.SURGING, Phase.SWITCHING, Phase.DRAINING})
ALLOWED: dict[Phase, frozenset[Phase]] = {
    # A scorer that dies can throw any of the three back to another one.
    Phase.SURGING: _FORWARD | {Phase.DONE, Phase.ROLLING_BACK},
    Phase.SWITCHING: _FORWARD | {Phase.DONE, Phase.ROLLING_BACK},
    Phase.DRAINING: _FORWARD | {Phase.DONE, Phase.ROLLING_BACK},
    Phase.ROLLING_BACK: frozenset({Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.ABORTED}),
    Phase.DONE: frozenset(),
    Phase.ROLLED_BACK: frozenset(),
    Phase.ABORTED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """How long a rollout may stand still before it goes back. Seconds."""

    progress_s: float = 600.0  # without a lane switched or a scorer more ready
    held_s: float = 900.0  # held up by a backlog or by scaling


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout under way or over."""

    before: str  # version, `name@hash`
    after: str
    phase: Phase = Phase.SURGING
    since: float = 0.0  # monotonic seconds: start of the phase
    moved: float = 0.0  # when it last came further
    held: float | None = None  # since when a backlog or scaling holds it
    best: tuple[int, int] = (0, 0)  # most lanes and ready scorers of the version it goes to
    why: str = ""  # why it goes back
    person: bool = False  # a person said so

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return not ALLOWED[self.phase]

    @property
    def toward(self) -> str:
        """The version it goes to now."""
        return self.after if self.phase in _FORWARD or self.phase is Phase.DONE else self.before

    @property
    def away(self) -> str:
        """The version it leaves now."""
        return self.before if self.toward == self.after else self.after


@dataclass(frozen=True, slots=True)
class ScorerSeen:
    """A scorer of the pool."""

    name: str
    version: str
    state: ScorerState


@dataclass(frozen=True, slots=True)
class RolloutSeen:
    """What was observed at one moment."""

    t: float  # monotonic seconds
    size: int  # n: scorers that are wanted, at least 1
    scorers: Sequence[ScorerSeen]
    lanes: Mapping[Any, str]  # lane -> version its next batches are scored with
    backlog: bool = False  # records wait longer than promised
    scaling: bool = False  # the pool shrinks, or lanes are moving between owners


@dataclass(frozen=True, slots=True)
class StartScorer:
    """Start a scorer of this version; it counts when it is warm."""

    version: str


@dataclass(frozen=True, slots=True)
class SwitchLane:
    """Score the lane's next batches with this version. One batch has one version."""

    lane: Any
    version: str


@dataclass(frozen=True, slots=True)
class DrainScorer:
    """Give this scorer no new batch, and end it when it has none left."""

    name: str


@dataclass(frozen=True, slots=True)
class Say:
    """A sentence for the journal."""

    words: str


Step = StartScorer | SwitchLane | DrainScorer | Say


def begin(before: str, after: str, t: float) -> tuple[Rollout, list[Step]]:
    """Start a rollout from one version to another."""
    assert before != after, before
    rollout = Rollout(before, after, Phase.SURGING, t, t)
    return rollout, [Say(f"rollout {before} to {after}: one scorer at a time, each warmed first")]


def back(rollout: Rollout, t: float, why: str, *, person: bool) -> tuple[Rollout, list[Step]]:
    """Turn round. Once it goes back, or is over, this changes nothing."""
    if Phase.ROLLING_BACK not in ALLOWED[rollout.phase] or rollout.phase is Phase.ROLLING_BACK:
        return rollout, []
    turned = replace(
        _enter(rollout, Phase.ROLLING_BACK, t), moved=t, held=None, best=(0, 0), why=why
    )
    words = f"rollout {rollout.after}: back to {rollout.before}, {why}"
    return replace(turned, person=person), [Say(words)]


def to_fields(rollout: Rollout) -> dict[str, str | bool]:
    """What a journal entry has to hold so that another supervisor can go on."""
    return {
        "before": rollout.before,
        "after": rollout.after,
        "phase": rollout.phase.value,
        "why": rollout.why,
        "person": rollout.person,
    }


def of_fields(fields: Mapping[str, Any], t: float) -> Rollout | None:
    """The rollout that `to_fields` wrote down, its clocks set to now; None if it is no rollout."""
    try:
        return Rollout(
            before=str(fields["before"]),
            after=str(fields["after"]),
            phase=Phase(fields["phase"]),
            since=t,
            moved=t,
            why=str(fields["why"]),
            person=bool(fields["person"]),
        )
    except (KeyError, ValueError):
        return None


def step(
    rollout: Rollout, seen: RolloutSeen, settings: RolloutSettings | None = None
) -> tuple[Rollout, list[Step]]:
    """What to do now. Pure; call it every tick until `over`.

    Steps may be given again until what they asked for is observed, so the caller reports a scorer
    as `starting` and a lane under its new version as soon as it has acted.
    """
    assert seen.size >= 1, seen.size
    if rollout.over:
        return rollout, []
    settings = settings or RolloutSettings()
    pool = _Pool.of(rollout, seen)
    rollout = _progress(rollout, seen, pool)
    late = _too_late(rollout, seen, settings)
    if late:
        return back(rollout, seen.t, late, person=False)
    phase = _phase(rollout, pool)
    steps: list[Step] = []
    if phase is not rollout.phase:
        rollout = _enter(rollout, phase, seen.t)
        steps.append(Say(_words(rollout, pool)))
    if rollout.over:
        return rollout, steps
    steps.extend(StartScorer(version) for version in _starts(rollout, pool))
    if rollout.held is None:
        steps.extend(_switch(rollout, seen, pool) or _drain(rollout, pool))
    return rollout, steps


@dataclass(frozen=True, slots=True)
class _Pool:
    """The observation in numbers. Scorers of a third version count for nothing."""

    size: int
    lanes: int
    lanes_to: int  # lanes that are on the version it goes to
    ready_to: int
    starting_to: int
    ready_away: tuple[str, ...]  # names
    starting_away: tuple[str, ...]
    draining: int

    @classmethod
    def of(cls, rollout: Rollout, seen: RolloutSeen) -> "_Pool":
        def names(version: str, state: ScorerState) -> tuple[str, ...]:
            wanted = (version, state)
            return tuple(
                sorted(each.name for each in seen.scorers if (each.version, each.state) == wanted)
            )

        to, away = rollout.toward, rollout.away
        return cls(
            size=seen.size,
            lanes=len(seen.lanes),
            lanes_to=sum(version == to for version in seen.lanes.values()),
            ready_to=len(names(to, "ready")),
            starting_to=len(names(to, "starting")),
            ready_away=names(away, "ready"),
            starting_away=names(away, "starting"),
            draining=len(names(to, "draining")) + len(names(away, "draining")),
        )

    @property
    def lanes_away(self) -> int:
        return self.lanes - self.lanes_to

    @property
    def quota(self) -> int:
        """Lanes that the ready scorers of the version it goes to may carry."""
        return min(self.lanes, self.lanes * self.ready_to // self.size)

    @property
    def needed_away(self) -> int:
        """Scorers that the remaining lanes of the version it leaves need."""
        if not self.lanes_away:
            return 0
        moved = self.size * self.lanes_to // self.lanes  # scorers whose lanes have all moved
        # With fewer lanes than scorers a new scorer may bring no lane: it counts all the same.
        slack = (self.size * (self.lanes_to + 1) - 1) // self.lanes
        return max(1, self.size - max(moved, min(self.ready_to, slack)))

    @property
    def live(self) -> int:
        """Scorers that take room."""
        away = len(self.ready_away) + len(self.starting_away)
        return self.ready_to + self.starting_to + away + self.draining


def _phase(rollout: Rollout, pool: _Pool) -> Phase:
    """Where the pool is on its way. Follows from the observation alone, but for the direction."""
    nothing_old = not pool.lanes_away and not pool.ready_away and not pool.starting_away
    arrived = nothing_old and pool.ready_to >= pool.size
    if rollout.phase is Phase.ROLLING_BACK:
        end = Phase.ABORTED if rollout.person else Phase.ROLLED_BACK
        return end if arrived else Phase.ROLLING_BACK
    if arrived:
        return Phase.DONE
    if pool.lanes_to < pool.quota:
        return Phase.SWITCHING
    if _can_drain(pool):
        return Phase.DRAINING
    return Phase.SURGING


def _starts(rollout: Rollout, pool: _Pool) -> list[str]:
    """Versions to start a scorer of."""
    old = 0
    if rollout.phase is not Phase.ROLLING_BACK:
        # Until its lanes have moved, the old version keeps its capacity: replace what died.
        old = max(0, pool.needed_away - len(pool.ready_away) - len(pool.starting_away))
    missing = pool.size - pool.ready_to - pool.starting_to
    new = max(0, min(missing, pool.size + 1 - pool.live - old))
    return ([rollout.away] * old + [rollout.toward] * new)[:START_MAX]


def _switch(rollout: Rollout, seen: RolloutSeen, pool: _Pool) -> list[Step]:
    """One lane to the version it goes to, if that has room for it."""
    quota = pool.quota
    if rollout.phase is Phase.ROLLING_BACK and pool.ready_to and not pool.ready_away:
        quota = pool.lanes  # the version that is left serves nobody any more: all that is better
    if pool.lanes_to >= quota:
        return []
    left = sorted(lane for lane, version in seen.lanes.items() if version != rollout.toward)
    return [SwitchLane(left[0], rollout.toward)]


def _can_drain(pool: _Pool) -> bool:
    """Whether an old scorer is in surplus and n stay ready without it."""
    ready = pool.ready_to + len(pool.ready_away)
    return len(pool.ready_away) > pool.needed_away and ready > pool.size


def _drain(rollout: Rollout, pool: _Pool) -> list[Step]:
    """Scorers to let go of: those that only start first, they serve nobody yet."""
    surplus = len(pool.ready_away) + len(pool.starting_away) - pool.needed_away
    if rollout.phase is Phase.ROLLING_BACK:
        surplus = len(pool.starting_away)  # nobody waits for more of what is given up
    starting = pool.starting_away[: max(0, min(surplus, len(pool.starting_away)))]
    if starting:
        return [DrainScorer(name) for name in starting]
    return [DrainScorer(pool.ready_away[-1])] if _can_drain(pool) else []


def _progress(rollout: Rollout, seen: RolloutSeen, pool: _Pool) -> Rollout:
    """Remember when it last came further, and since when it is held."""
    best = (max(rollout.best[0], pool.lanes_to), max(rollout.best[1], pool.ready_to))
    if best != rollout.best:
        rollout = replace(rollout, best=best, moved=seen.t)
    # On the way back nothing holds it: the version that is left is the one in doubt.
    holds = (seen.backlog or seen.scaling) and rollout.phase is not Phase.ROLLING_BACK
    if not holds:
        return replace(rollout, held=None)
    return rollout if rollout.held is not None else replace(rollout, held=seen.t)


def _too_late(rollout: Rollout, seen: RolloutSeen, settings: RolloutSettings) -> str:
    """Why it has to turn round, or nothing."""
    if rollout.phase is Phase.ROLLING_BACK:
        return ""
    if rollout.held is not None and seen.t - rollout.held >= settings.held_s:
        what = "a backlog" if seen.backlog else "scaling"
        return f"{what} held it up for {settings.held_s:.0f} s"
    if seen.t - rollout.moved >= settings.progress_s and rollout.held is None:
        return f"it came no further for {settings.progress_s:.0f} s"
    return ""


def _enter(rollout: Rollout, phase: Phase, t: float) -> Rollout:
    assert phase in ALLOWED[rollout.phase], (rollout.phase, phase)
    return replace(rollout, phase=phase, since=t)


def _words(rollout: Rollout, pool: _Pool) -> str:
    name = f"rollout {rollout.after}"
    lanes = f"{pool.lanes_to} of {pool.lanes} lanes"
    match rollout.phase:
        case Phase.SURGING:
            return f"{name}: starts one more scorer, {lanes} are on it"
        case Phase.SWITCHING:
            return f"{name}: {pool.ready_to} ready, moves lanes up to {pool.quota} of {pool.lanes}"
        case Phase.DRAINING:
            surplus = len(pool.ready_away) - pool.needed_away
            return f"{name}: lets {surplus} of {rollout.away} go, {lanes} are on it"
        case Phase.DONE:
            return f"{name}: done, all {pool.lanes} lanes and {pool.ready_to} scorers"
        case Phase.ROLLING_BACK:
            return f"{name}: back to {rollout.before}, {rollout.why}"
        case Phase.ROLLED_BACK | Phase.ABORTED:
            return f"{name}: {rollout.phase}, all on {rollout.before} again; {rollout.why}"
