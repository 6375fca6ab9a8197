"""From what the supervisor holds to what the page and `status` show.

Keeps the series that only time can fill, and turns reports, windows and decisions into the views of
`views.py`. Counts say what this supervisor saw since midnight or since it started, whichever came
later; nothing is carried over a restart that was not measured.
"""

from collections import deque
from importlib.metadata import version
from typing import Any, Protocol

from raywatch.actors.owner import LaneReport
from raywatch.actors.stats import Tally
from raywatch.cluster.deployment import Deployment
from raywatch.cluster.journal import Journal
from raywatch.cluster.lag import back_s, lag_records, lag_s, rates, resting, verdict
from raywatch.cluster.reader import Reader
from raywatch.cluster.runtime import Crew
from raywatch.cluster.series import Axis, Chart
from raywatch.cluster.snapshot import build, ok_lags, open_alerts
from raywatch.cluster.views import (
    ClusterView,
    CountsView,
    DetectorView,
    Observed,
    OwnerView,
    PartitionView,
    PoolView,
    RolloutView,
    ScorerView,
    StageView,
)  # fmt: skip
from raywatch.cluster.watch import Watch

AXIS = Axis(n=180, step_s=5.0)
DAY_MS = 86_400_000


class Supervised(Protocol):
    """What the supervisor holds."""

    deployment: Deployment
    watches: dict[str, Watch]
    crew: Crew
    reader: Reader
    journal: Journal
    began: float


class View:
    """The page's memory."""

    def __init__(self, supervisor: Supervised) -> None:
        self._s = supervisor
        self._chart = Chart(AXIS)
        self._seen = 0  # alerts counted so far
        self._opened: deque[int] = deque(maxlen=100_000)  # when alerts were first seen
        self._resolved: deque[int] = deque(maxlen=100_000)
        self._last_resolved = ""
        # lane -> records, rejects, tally at the last look
        self._base: dict[str, tuple[int, int, Tally]] = {}
        self._tally: dict[str, Tally] = {}  # by detector, since it was first seen
        self._scored = self._rejected = 0
        self._day = 0

    def snapshot(self, now_ms: int, now: float) -> dict[str, Any]:
        """Everything as of now. Called once a tick, by the supervisor's thread."""
        self._count(now_ms)
        partitions = [p for w in self._s.watches.values() for p in self._partitions(w, now)]
        ok_p50, ok_max = ok_lags(partitions)
        self._put("ok_p50", now_ms, ok_p50)
        self._put("ok_max", now_ms, ok_max)
        for view in partitions:
            self._put(f"lag:{view.name}", now_ms, view.lag_s)
        detectors = [self._detector(w, now_ms, now) for w in self._s.watches.values()]
        scorers = [each for w in self._s.watches.values() for each in self._scorers(w)]
        seen = Observed(
            cluster=ClusterView(
                name=self._s.deployment.name,
                version=version("raywatch"),
                config=self._s.deployment.digest,
                up_s=now - self._s.began,
                config_path=self._s.deployment.config_path,
                exactly_once=self._exactly_once(),
            ),
            pool=self._pool(scorers, now_ms),
            owners=[each for w in self._s.watches.values() for each in self._owners(w, now)],
            scorers=scorers,
            partitions=[self._with_spark(view, now_ms) for view in partitions],
            detectors=detectors,
            alerts=open_alerts(self._s.reader.recent()),
            counts=self._counts(now_ms),
            rollouts=[
                RolloutView(w.rollout.before, w.rollout.after, w.rollout.phase.value, w.rollout.why)
                for w in self._s.watches.values()
                if w.rollout is not None and w.rolling
            ],
            journal=list(self._s.journal),
            flow=self._flow(partitions, scorers, now_ms),
            ok_p50_s=self._line("ok_p50", now_ms),
            ok_max_s=self._line("ok_max", now_ms),
            trouble=self._s.reader.trouble,
            blocked=[words for w in self._s.watches.values() for words in w.blocked()],
            unread="; ".join(each.words for each in self._s.reader.growth),
        )
        return build(seen, now_ms, AXIS)

    def _exactly_once(self) -> bool | None:
        """The weakest mode of all owners; None where none said."""
        reports = [r for w in self._s.watches.values() for r in w.keeper.reports().values()]
        return min((r.exactly_once for r in reports if r.exactly_once is not None), default=None)

    # ---- parts -----------------------------------------------------------------------------

    def _partitions(self, watch: Watch, now: float) -> list[PartitionView]:
        owner_of: dict[Any, tuple[str, LaneReport]] = {}
        for name, report in watch.keeper.reports().items():
            for lane in report.lanes:
                for partition in lane.partitions:
                    owner_of[partition] = (name, lane)
        found: list[PartitionView] = []
        many = len(self._s.watches) > 1
        for partition, window in self._s.reader.windows[watch.spec.group].items():
            held = owner_of.get(partition)
            rest_s = watch.spec.rest_s(partition)
            judged = verdict(window, now, resting(rest_s), owned=held is not None)
            behind_s = lag_s(window, now)
            words = judged.words
            if held is not None and held[1].words:
                words = f"{words}; {held[1].words}"
            found.append(
                PartitionView(
                    name=f"{watch.spec.name}:{partition}" if many else str(partition),
                    state=judged.state,
                    # Of labels, how much longer they wait than they are to.
                    lag_s=None if behind_s is None else max(0.0, behind_s - rest_s),
                    lag_records=lag_records(window, now),
                    owner=_seat(held[0]) if held is not None else None,
                    words=words,
                    back_s=back_s(window, now),
                )
            )
        return found

    def _with_spark(self, view: PartitionView, now_ms: int) -> PartitionView:
        return PartitionView(
            view.name, view.state, view.lag_s, view.lag_records, view.owner, view.words,
            view.back_s, self._line(f"lag:{view.name}", now_ms),
        )  # fmt: skip

    def _detector(self, watch: Watch, now_ms: int, now: float) -> DetectorView:
        windows = list(self._s.reader.windows[watch.spec.group].values())
        flows = [rates(w) for w in windows]
        arrive = _sum([f.arrivals_per_s for f in flows])
        done = _sum([f.commits_per_s for f in flows])
        lags = [lag_s(w, now) for w in watch.windows(self._s.reader)]
        lag = None if not lags or None in lags else max(x for x in lags if x is not None)
        name = watch.spec.name
        self._put(f"in:{name}", now_ms, arrive)
        self._put(f"out:{name}", now_ms, done)
        self._put(f"dlag:{name}", now_ms, lag)
        delays = [
            lane.delay_ms
            for report in watch.keeper.reports().values()
            for lane in report.lanes
            if lane.delay_ms != (0.0, 0.0)
        ]
        return DetectorView(
            name=name,
            model=watch.keeper.target,
            lag_s=lag,
            delay_ms_p50=sorted(d[0] for d in delays)[len(delays) // 2] if delays else None,
            delay_ms_p99=max(d[1] for d in delays) if delays else None,
            in_per_s=self._line(f"in:{name}", now_ms),
            out_per_s=self._line(f"out:{name}", now_ms),
            lag_series_s=self._line(f"dlag:{name}", now_ms),
            tally=self._tally.get(name),
            probability=watch.spec.decide.probability,
            per_day=watch.spec.decide.per_day,
            labels=watch.labels() or None,
        )

    def _owners(self, watch: Watch, now: float) -> list[OwnerView]:
        found: list[OwnerView] = []
        reports = watch.keeper.reports()
        for name in watch.keeper.seats.values():
            post = self._s.crew.posts.get(name)
            up = name in reports and post is not None and post.silent_s(now) < 3.0
            found.append(OwnerView(name, up))
        return found

    def _scorers(self, watch: Watch) -> list[ScorerView]:
        found: list[ScorerView] = []
        reports = watch.keeper.scorer_reports()
        for scorer in watch.keeper.scorers.values():
            report = reports.get(scorer.name)
            state = "starting" if scorer.ready is None else "serving"
            found.append(
                ScorerView(
                    name=scorer.name,
                    model=scorer.version,
                    state="draining" if scorer.draining is not None else state,
                    busy=watch.busy.get(scorer.name),
                    p99_ms=report.latency_ms[1] if report is not None and report.batches else None,
                )
            )
        return found

    def _pool(self, scorers: list[ScorerView], now_ms: int) -> PoolView:
        settings = self._s.deployment.pool
        for state in ("serving", "starting", "draining"):
            self._put(state, now_ms, float(sum(s.state == state for s in scorers)))
        busy = [s.busy for s in scorers if s.busy is not None]
        self._put("busy", now_ms, sum(busy) / len(busy) if busy else None)
        wanted = sum(w.decision.scorers for w in self._s.watches.values())
        self._put("wanted", now_ms, float(wanted))
        say = "; ".join(w.decision.reason for w in self._s.watches.values())
        return PoolView(
            scorers_min=settings.min, scorers_max=settings.max, busy_target=settings.busy_target,
            say=say,
            serving=self._line("serving", now_ms), starting=self._line("starting", now_ms),
            draining=self._line("draining", now_ms), wanted=self._line("wanted", now_ms),
            busy=self._line("busy", now_ms),
        )  # fmt: skip

    def _flow(
        self, partitions: list[PartitionView], scorers: list[ScorerView], now_ms: int
    ) -> list[StageView]:
        held = sum(p.state not in ("ok", "unknown") for p in partitions)
        into = _last(self._line(f"in:{name}", now_ms) for name in self._s.watches)
        out = _last(self._line(f"out:{name}", now_ms) for name in self._s.watches)
        serving = sum(s.state == "serving" for s in scorers)
        owners = sum(len(w.keeper.seats) for w in self._s.watches.values())
        lanes = sum(len(w.detection.lanes) for w in self._s.watches.values())
        minute = sum(t > now_ms - 60_000 for t in self._opened)
        topics = ", ".join(t for w in self._s.watches.values() for t in w.spec.inputs)
        behind = f"{held} partitions behind" if held else f"{len(partitions)} partitions, {topics}"
        return [
            StageView("topics", per_s=into, words=behind, held=held > 0),
            StageView("owners", per_s=out, words=f"{owners} owners, {lanes} lanes"),
            StageView("scorers", words=f"{serving} serving", held=serving == 0),
            StageView("alerts", per_min=float(minute), words=f"{len(self._opened)} today"),
        ]

    # ---- counting --------------------------------------------------------------------------

    def _count(self, now_ms: int) -> None:
        if now_ms // DAY_MS != self._day:
            self._day = now_ms // DAY_MS
            self._opened.clear()
            self._resolved.clear()
            self._scored = self._rejected = 0
        for alert in self._s.reader.since(self._seen):
            self._seen += 1
            if alert.get("state") == "open":
                self._opened.append(now_ms)
            elif alert.get("state") == "resolved":
                self._resolved.append(now_ms)
                self._last_resolved = f"{alert.get('key')}"
        for watch in self._s.watches.values():
            for name, report in watch.keeper.reports().items():
                for lane in report.lanes:
                    key = f"{name}/{report.epoch}/{lane.lane}"
                    before = self._base.get(key, (0, 0, Tally()))
                    self._scored += lane.records - before[0]
                    self._rejected += lane.rejects - before[1]
                    new = lane.tally.less(before[2])
                    known = self._tally.get(watch.spec.name, Tally())
                    self._tally[watch.spec.name] = known.plus(new)
                    self._base[key] = (lane.records, lane.rejects, lane.tally)
        if len(self._base) > 100_000:
            self._base.clear()

    def _counts(self, now_ms: int) -> CountsView:
        return CountsView(
            today=len(self._opened),
            last_minute=sum(t > now_ms - 60_000 for t in self._opened),
            rejects_today=self._rejected,
            scored_today=self._scored,
            resolved_today=len(self._resolved),
            last_resolved=self._last_resolved,
        )

    def _put(self, name: str, now_ms: int, value: float | None) -> None:
        self._chart.put(name, now_ms, value, "mean")

    def _line(self, name: str, now_ms: int) -> list[float | None]:
        return self._chart.values(name, now_ms)


def _seat(owner: str) -> int | str:
    """`hosts.owner-3.g2` -> 3."""
    middle = owner.rpartition(".owner-")[2].partition(".")[0]
    return int(middle) if middle.isdecimal() else owner


def _sum(values: list[float | None]) -> float | None:
    """A sum, unknown where a part is."""
    known = [v for v in values if v is not None]
    return sum(known) if known and len(known) == len(values) else None


def _last(lines: Any) -> float | None:
    """Sum of the newest values of several series."""
    return _sum([next((v for v in reversed(line) if v is not None), None) for line in lines])
