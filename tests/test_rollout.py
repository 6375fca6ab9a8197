"""Goal: a rollout ends, whatever dies, and never costs a ready scorer or strands a lane.

Method: a small pure pool of scorers (start times, drains, seeded kills) that carries out the
steps; the invariants are checked after every step. Then the cases one would ask about by name.
"""

import random
from dataclasses import dataclass, field, replace

import pytest

from raywatch.cluster.rollout import (
    ALLOWED,
    DrainScorer,
    Phase,
    Rollout,
    RolloutSeen,
    RolloutSettings,
    Say,
    ScorerSeen,
    StartScorer,
    Step,
    SwitchLane,
    back,
    begin,
    of_fields,
    step,
    to_fields,
)

OLD, NEW = "bank@1", "bank@2"


@dataclass
class Pool:
    """Scorers that start in `start` ticks and drain in two."""

    size: int
    lanes: dict[int, str]
    start: int = 3
    broken: str = ""  # a version whose scorers die while starting
    t: float = 0.0
    count: int = 0
    scorers: dict[str, ScorerSeen] = field(default_factory=lambda: {})
    due: dict[str, float] = field(default_factory=lambda: {})
    switches: list[int] = field(default_factory=lambda: [])
    said: list[str] = field(default_factory=lambda: [])
    killed: int = 0

    def add(self, version: str, *, ready: bool = False) -> None:
        self.count += 1
        name = f"scorer-{self.count:03}"
        self.scorers[name] = ScorerSeen(name, version, "ready" if ready else "starting")
        self.due[name] = self.t + self.start

    def tick(self) -> None:
        self.t += 1.0
        for name, each in list(self.scorers.items()):
            if each.state == "dead" or (each.state == "draining" and self.t >= self.due[name]):
                del self.scorers[name]
            elif each.state == "starting" and self.t >= self.due[name]:
                state = "dead" if each.version == self.broken else "ready"
                self.scorers[name] = replace(each, state=state)

    def kill(self, name: str) -> None:
        self.scorers[name] = replace(self.scorers[name], state="dead")
        self.killed += 1

    def ready(self, version: str = "") -> int:
        return sum(
            each.state == "ready" and version in ("", each.version)
            for each in self.scorers.values()
        )

    def live(self) -> int:
        return sum(each.state != "dead" for each in self.scorers.values())

    def seen(self, **changes: bool) -> RolloutSeen:
        return RolloutSeen(
            self.t, self.size, tuple(self.scorers.values()), dict(self.lanes), **changes
        )

    def carry_out(self, steps: list[Step]) -> None:
        for each in steps:
            match each:
                case StartScorer(version):
                    self.add(version)
                case SwitchLane(lane, version):
                    assert self.ready(version), (lane, version)
                    self.lanes[lane] = version
                    self.switches.append(lane)
                case DrainScorer(name):
                    if self.scorers[name].state == "ready":
                        assert self.ready() > self.size, name
                    self.scorers[name] = replace(self.scorers[name], state="draining")
                    self.due[name] = self.t + 2.0
                case Say(words):
                    self.said.append(words)


def pool(size: int, lanes: int, **more: int | str) -> Pool:
    made = Pool(size, dict.fromkeys(range(lanes), OLD), **more)  # pyright: ignore
    for _ in range(size):
        made.add(OLD, ready=True)
    return made


def drive(
    made: Pool,
    rng: random.Random | None = None,
    *,
    abort_at: float | None = None,
    kills: int = 0,
    settings: RolloutSettings | None = None,
) -> Rollout:
    """Run to the end; every transition is one of the table, every tick keeps the invariants."""
    rollout, steps = begin(OLD, NEW, made.t)
    made.carry_out(steps)
    for _ in range(3_000):
        made.tick()
        if rng is not None and made.killed < kills and rng.random() < 0.2 and made.scorers:
            made.kill(rng.choice(sorted(made.scorers)))
        if abort_at is not None and made.t >= abort_at:
            rollout, steps = back(rollout, made.t, "a person stopped it", person=True)
            made.carry_out(steps)
        before, ready = rollout.phase, made.ready()
        rollout, steps = step(rollout, made.seen(), settings)
        assert rollout.phase is before or rollout.phase in ALLOWED[before]
        made.carry_out(steps)
        assert made.live() <= made.size + 1, steps
        assert made.ready() >= min(ready, made.size), steps  # no step costs a scorer that is needed
        if not kills and made.broken == "":
            assert made.ready() >= made.size
            for version in set(made.lanes.values()):
                assert made.ready(version) >= 1
        if rollout.over:
            return rollout
    raise AssertionError((rollout, made))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("lanes", [1, 4, 7])
def test_ends_with_every_lane_and_scorer_on_the_new_version(size: int, lanes: int) -> None:
    made = pool(size, lanes)
    rollout = drive(made)
    assert rollout.phase is Phase.DONE
    assert set(made.lanes.values()) == {NEW}
    assert (made.ready(NEW), made.ready(OLD)) == (size, 0)
    assert sorted(made.switches) == list(range(lanes))  # each exactly once
    assert made.said[-1] == f"rollout bank@2: done, all {lanes} lanes and {size} scorers"


def test_a_pool_without_lanes_is_replaced_all_the_same() -> None:
    made = pool(2, 0)
    assert drive(made).phase is Phase.DONE
    assert made.ready(NEW) == 2


def test_lanes_move_in_proportion_to_the_scorers_that_are_ready() -> None:
    made = pool(2, 4, start=5)
    rollout, _ = begin(OLD, NEW, 0.0)
    shares: set[tuple[int, int]] = set()
    while not rollout.over:
        made.tick()
        rollout, steps = step(rollout, made.seen())
        made.carry_out(steps)
        assert sum(isinstance(each, SwitchLane) for each in steps) <= 1
        shares.add((made.ready(NEW), list(made.lanes.values()).count(NEW)))
    assert max(lanes for ready, lanes in shares if ready == 1) == 2
    assert max(lanes for ready, lanes in shares if ready == 2) == 4


def test_no_lane_moves_to_a_scorer_that_is_still_warming() -> None:
    made = pool(1, 3, start=50)
    rollout, _ = begin(OLD, NEW, 0.0)
    for _ in range(40):
        made.tick()
        rollout, steps = step(rollout, made.seen())
        made.carry_out(steps)
    assert made.switches == []
    assert made.live() == 2  # one more, and no second one for impatience


@pytest.mark.parametrize("seed", range(40))
def test_ends_and_keeps_its_rules_whatever_is_killed(seed: int) -> None:
    rng = random.Random(seed)
    size, lanes = rng.randrange(1, 6), rng.randrange(1, 9)
    made = pool(size, lanes, start=rng.randrange(1, 8))
    rollout = drive(made, rng, kills=12)
    assert rollout.phase is Phase.DONE
    assert set(made.lanes.values()) == {NEW}
    assert made.ready(NEW) >= size
    assert sorted(made.switches) == list(range(lanes))


@pytest.mark.parametrize("seed", range(40))
def test_an_abort_at_any_moment_goes_all_the_way_back(seed: int) -> None:
    rng = random.Random(seed)
    size, lanes = rng.randrange(1, 6), rng.randrange(1, 9)
    made = pool(size, lanes, start=rng.randrange(1, 8))
    rollout = drive(made, rng, kills=rng.choice([0, 8]), abort_at=rng.uniform(1.0, 25.0))
    if rollout.phase is Phase.DONE:
        return  # it was quicker
    assert rollout.phase is Phase.ABORTED
    assert set(made.lanes.values()) == {OLD}
    assert (made.ready(OLD) >= size, made.ready(NEW)) == (True, 0)
    assert all(made.switches.count(lane) <= 2 for lane in made.lanes)


def test_a_version_that_never_gets_ready_is_rolled_back() -> None:
    made = pool(3, 6, broken=NEW)
    rollout = drive(made, settings=RolloutSettings(progress_s=60.0))
    assert rollout.phase is Phase.ROLLED_BACK
    assert made.switches == []
    assert (made.ready(OLD), made.ready(NEW)) == (3, 0)
    assert "it came no further for 60 s" in made.said[-1]


def test_an_abort_does_not_wait_for_a_scorer_that_hangs_in_its_start() -> None:
    made = pool(2, 4, start=3)
    rollout, _ = begin(OLD, NEW, 0.0)
    while made.ready(NEW) == 0:
        made.tick()
        rollout, steps = step(rollout, made.seen())
        made.carry_out(steps)
    made.add(NEW)
    made.due["scorer-004"] = 1e9
    rollout, _ = back(rollout, made.t, "a person stopped it", person=True)
    for _ in range(60):
        made.tick()
        rollout, steps = step(rollout, made.seen())
        made.carry_out(steps)
    assert rollout.phase is Phase.ABORTED


def test_a_backlog_holds_lanes_and_drains_but_not_starts() -> None:
    made = pool(2, 4)
    made.add(NEW, ready=True)
    rollout, _ = begin(OLD, NEW, 0.0)
    rollout, steps = step(rollout, made.seen(backlog=True))
    assert [type(each) for each in steps] == [Say]
    _, steps = step(rollout, made.seen())
    assert SwitchLane(0, NEW) in steps
    made.kill("scorer-001")
    _, steps = step(rollout, made.seen(backlog=True))
    assert StartScorer(OLD) in steps


def test_held_for_too_long_it_goes_back() -> None:
    made = pool(1, 1)
    rollout, _ = begin(OLD, NEW, 0.0)
    for t in range(0, 1_000, 10):
        made.t = float(t)
        rollout, _ = step(rollout, made.seen(scaling=True))
        if rollout.phase is Phase.ROLLING_BACK:
            break
    assert rollout.since == 900.0
    assert rollout.why == "scaling held it up for 900 s"


def test_an_old_scorer_that_dies_is_replaced_by_an_old_one_until_its_lanes_have_moved() -> None:
    made = pool(3, 6)
    made.kill("scorer-002")
    rollout, _ = begin(OLD, NEW, 0.0)
    _, steps = step(rollout, made.seen())
    assert [each for each in steps if isinstance(each, StartScorer)] == [
        StartScorer(OLD),
        StartScorer(NEW),
    ]


def test_on_the_way_back_lanes_leave_a_version_without_scorers_at_once() -> None:
    made = pool(4, 8)
    made.lanes = dict.fromkeys(range(8), NEW)
    for name in ("scorer-001", "scorer-002", "scorer-003"):
        made.kill(name)
    rollout, _ = back(Rollout(OLD, NEW), 0.0, "it was killed", person=False)
    rollout, steps = step(rollout, made.seen())
    assert SwitchLane(0, OLD) in steps
    assert StartScorer(NEW) not in steps


def test_a_supervisor_that_restarts_goes_on_from_what_was_written_down() -> None:
    going_back, _ = back(Rollout(OLD, NEW), 5.0, "twice the alerts", person=False)
    again = of_fields(to_fields(going_back), 100.0)
    assert again is not None
    assert replace(again, since=5.0, moved=5.0) == going_back
    assert of_fields({"before": OLD}, 1.0) is None
    assert of_fields({**to_fields(going_back), "phase": "dancing"}, 1.0) is None


def test_what_is_over_stays_over() -> None:
    for phase in (Phase.DONE, Phase.ROLLED_BACK, Phase.ABORTED):
        over = Rollout(OLD, NEW, phase)
        assert step(over, pool(1, 1).seen()) == (over, [])
        assert back(over, 1.0, "too late", person=True) == (over, [])
