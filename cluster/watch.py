"""One detector as the supervisor sees it: its keeper, its scale memory, its rollout.

Turns what the keeper and the reader know into the observations that `scale.decide` and
`rollout.step` judge. Measures; decides nothing.
"""

from collections import Counter
from collections.abc import Mapping

from raywatch.cluster import rollout, scale
from raywatch.cluster.config import Pool
from raywatch.cluster.deployment import Detection
from raywatch.cluster.keeper import Keeper
from raywatch.cluster.lag import LagWindow, is_known, lag_at_least_s, lag_now, rates
from raywatch.cluster.reader import Reader

LATE_S = 5.0  # Records wait longer than promised for this long before a rollout stands still.
ASTRAY_MIN = 100  # labels that find no payment before that is worth a word
BROKEN_STARTS = 3  # After so many starts in a row that failed, a version is taken for broken.


def astray(name: str, labels: Mapping[str, int]) -> str:
    """See Watch. `labels`: what became of labels (actors/payments.py)."""
    unknown, found, late = (labels.get(what, 0) for what in ("unknown", "labels", "late"))
    if late:
        return (
            f"{name}: {late:,} records came too late for their place between payments and labels; "
            "set `message.timestamp.type: LogAppendTime` on both topics, or a longer "
            "`labels.delay_s`"
        )
    if unknown < ASTRAY_MIN or unknown < found:
        return ""
    return (
        f"{name}: most labels find no payment that waits; are they written with the key of their "
        "payment, and do they come within `record.label_days`?"
    )


class Watch:
    """The keeper of a detector and what is remembered from tick to tick."""

    def __init__(self, detection: Detection, keeper: Keeper, pool: Pool) -> None:
        self.detection, self.spec, self.keeper = detection, detection.spec, keeper
        usual = scale.ScaleSettings()
        self.settings = scale.ScaleSettings(
            scorers_min=pool.min,
            scorers_max=pool.max,
            promise_s=pool.promise_s,
            busy_target=pool.busy_target,
            busy_max=max(pool.busy_target, usual.busy_max),
            hold_min_s=pool.hold_s,
            hold_max_s=max(pool.hold_s, usual.hold_max_s),
            tick_s=pool.tick_s,
        )
        self.memory = scale.Memory()
        self.decision = scale.Decision(self.settings.scorers_min, "hold: starting")
        self.rollout: rollout.Rollout | None = None
        self.busy: dict[str, float] = {}  # scorer -> share of its time, over about the last second
        self._looked: dict[str, tuple[float, float]] = {}  # scorer -> busy_s, age_s then
        self._late_since: float | None = None
        self._shrinking: set[str] = set()  # scorers that were draining when the rollout began

    @property
    def rolling(self) -> bool:
        """Whether a rollout is under way."""
        return self.rollout is not None and not self.rollout.over

    def remember(self, size: int, now: float) -> None:
        """Take over the size that an earlier supervisor had decided on.

        Counting what runs would not do: in a rollout there is one scorer more, and those that were
        being let go look like any other.
        """
        size = min(max(size, self.settings.scorers_min), self.settings.scorers_max)
        self.memory = scale.Memory(t=now, target=size, wanted=size, reason="hold: taken over")
        self.decision = scale.Decision(size, self.memory.reason, "hold", size)

    def blocked(self) -> list[str]:
        """Lanes that wait for a person (or lost their hold), and what for."""
        return [
            f"{self.spec.name}: lane {lane.lane} is {lane.state}: {lane.words}"
            for report in self.keeper.reports().values()
            for lane in report.lanes
            if lane.state in ("blocked", "fenced")
        ]

    def crowded(self) -> str:
        """What to say of keys that are forgotten; empty where none was."""
        lanes = (each for report in self.keeper.reports().values() for each in report.lanes)
        if not any(lane.evicted for lane in lanes):
            return ""
        return (
            f"{self.spec.name} forgets keys: a partition holds at most `keys_max: "
            f"{self.spec.keys_max}`; raise it, or look who sends so many (`raywatch check` says "
            "what memory it takes)"
        )

    def astray(self) -> str:
        """What to say of labels that find no payment; empty where most do."""
        return astray(self.spec.name, self.labels())

    def labels(self) -> dict[str, int]:
        """What became of labels in all lanes (actors/payments.py), as far back as they remember."""
        found: Counter[str] = Counter()
        for report in self.keeper.reports().values():
            for lane in report.lanes:
                found.update(lane.labels)
        return dict(found)

    # ---- scale -----------------------------------------------------------------------------

    def windows(self, reader: Reader) -> list[LagWindow]:
        """Of the partitions whose lag counts: labels rest for a while, and cost next to nothing."""
        found = reader.windows[self.spec.group]
        return [each for p, each in found.items() if p.topic != self.spec.labels]

    def observe(self, now: float, reader: Reader) -> scale.Observation:
        """The pool and its work as of now."""
        windows = self.windows(reader)
        reports = self.keeper.scorer_reports()
        speed: list[float] = []
        for name, report in reports.items():
            before_busy, before_age = self._looked.get(name, (0.0, report.warm_s))
            if report.age_s - before_age >= 1.0:
                share = (report.busy_s - before_busy) / (report.age_s - before_age)
                self.busy[name] = min(1.0, max(0.0, share))
                self._looked[name] = (report.busy_s, report.age_s)
            if report.busy_s > 0.05 and report.records:
                speed.append(report.records / report.busy_s)
        self._looked = {n: v for n, v in self._looked.items() if n in reports}
        self.busy = {n: v for n, v in self.busy.items() if n in reports}
        serving, _, _ = self.keeper.counted()
        pending = [
            now - s.started
            for s in self.keeper.scorers.values()
            if s.ready is None and s.draining is None
        ]
        return scale.Observation(
            t=now,
            read_t=reader.read_t,
            backlog=[_backlog(w, now) for w in windows],
            rate=[rates(w).arrivals_per_s for w in windows],
            ready=serving,
            pending_age_s=pending,
            busy=list(self.busy.values()),
            records_per_busy_s=speed,
            starts_s=self.keeper.starts_s,
            rollout=self.rolling,
        )

    def decide(self, now: float, reader: Reader) -> tuple[scale.Decision, int]:
        """The size of the pool from now on, and what it was before."""
        seen = self.observe(now, reader)
        before = self.memory.target or self.decision.scorers
        if seen.ready or self.memory.target:  # until then the pool starts at its minimum
            self.decision, self.memory = scale.decide(seen, self.memory, self.settings)
        return self.decision, before

    # ---- rollout ---------------------------------------------------------------------------

    def begin(self, found: rollout.Rollout) -> None:
        """A rollout starts, or is remembered."""
        self.rollout = found
        self._late_since = None
        scorers = self.keeper.scorers.values()
        self._shrinking = {s.name for s in scorers if s.draining is not None}

    def recall(self) -> None:
        """Trust owners more than the note of a supervisor that died before it wrote the last one.

        A lane that scores with the new version already must not be sent back and forth.
        """
        if self.rollout is None or self.rollout.over:
            return
        for report in self.keeper.reports().values():
            for lane in report.lanes:
                if lane.version == self.rollout.toward:
                    self.keeper.lanes[lane.lane] = lane.version

    def rollout_seen(self, now: float, reader: Reader) -> rollout.RolloutSeen:
        """What a rollout has to know. Offsets that nobody knows hold it like a backlog."""
        late = any(
            not is_known(w, now) or lag_at_least_s(w, now) > self.settings.promise_s
            for w in self.windows(reader)
        )
        if not late:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now
        self._shrinking &= set(self.keeper.scorers)
        return rollout.RolloutSeen(
            t=now,
            size=max(1, self.decision.scorers),
            scorers=self.keeper.seen(),
            lanes=self.keeper.lanes,
            backlog=self._late_since is not None and now - self._late_since >= LATE_S,
            scaling=bool(self._shrinking or self.keeper.leaving),
        )

    def broken(self) -> str:
        """Why the version of the rollout is taken for broken, or nothing."""
        assert self.rollout is not None
        if self.rollout.toward != self.rollout.after:
            return ""
        count, why = self.keeper.failed.get(self.rollout.after, (0, ""))
        return f"{count} scorers of it did not start ({why})" if count >= BROKEN_STARTS else ""


def _backlog(window: LagWindow, now: float) -> float | None:
    return float(lag_now(window)) if is_known(window, now) else None
