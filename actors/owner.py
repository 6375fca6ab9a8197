"""An owner: some lanes of one detector in one process, a thread each.

Which scorers there are and which version each lane uses comes as a *roster* from the supervisor;
without one the lanes wait. An owner is crash-only: what no lane foresaw, and a client call that
outlives its deadline, ends the process. Whoever starts it again loses nothing, since lanes are
fenced and stand on committed offsets.
"""

import json
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raywatch.actors.lane import Lane
from raywatch.actors.pool import Member, Members, RemotePool
from raywatch.actors.ports import Clock, Log, Partition, Store
from raywatch.actors.saving import Saver
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.stats import Tally
from raywatch.models.scorer import ModelSpec

CALL_MAX_S = 30.0  # A client call older than this hangs: every call has a shorter deadline.
WATCH_S = 1.0


@dataclass(frozen=True, slots=True)
class Roster:
    """The pool as the supervisor knows it."""

    number: int  # grows with every change
    models: Mapping[str, ModelSpec]  # by version
    lanes: Mapping[int, str]  # version that each lane is to use
    known: frozenset[str] = frozenset()  # versions that get a scorer when a lane asks for one
    author: str = ""  # which supervisor's: two may have given the same number


@dataclass(frozen=True, slots=True)
class LaneReport:
    """One lane, as its owner sees it."""

    lane: int
    state: str
    words: str
    partitions: tuple[Partition, ...]
    version: str
    opened: int
    records: int
    alerts: int
    rejects: int
    commits: int
    keys: int
    evicted: int
    labels: dict[str, int]
    in_flight: int
    committed: dict[str, int]
    position: dict[str, int]
    version_since: dict[str, int]
    delay_ms: tuple[float, float]  # p50 and p99 from the log's timestamp to the commit
    snapshot: str
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True)
class OwnerReport:
    """What an owner says of itself."""

    name: str
    pid: int
    epoch: str
    roster: int
    roster_by: str  # its author
    lanes: tuple[LaneReport, ...]
    failures: dict[str, str]  # scorers that failed on it, and how
    loads: dict[str, int]  # batches in flight at each scorer; read after `roster`
    sent_again: int
    cpu_s: float
    rss_bytes: int
    age_s: float
    exactly_once: bool | None = None
    node: str = ""  # address of its machine
    node_id: str = ""  # and Ray's name of it
    parked: bool = False  # it stands by: its lanes have not been started
    extra: dict[str, str] = field(default_factory=lambda: {})


def _die(error: BaseException) -> None:
    """End the process at once: an exception in a thread is invisible to whoever restarts it."""
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


class Owner:
    """Runs lanes until it is stopped."""

    def __init__(
        self,
        name: str,
        spec: DetectorSpec,
        lanes: Mapping[int, tuple[Partition, ...]],
        *,
        log: Log,
        store: Store,
        clock: Clock,
        members: Members,
        epoch: str,
        score_timeout_s: float = 5.0,
        die: Callable[[BaseException], None] = _die,
        parked: bool = False,
    ) -> None:
        """Start the lanes at once, unless `parked`; they wait for a roster."""
        self.name, self.spec, self.epoch = name, spec, epoch
        self._clock, self._members, self._die = clock, members, die
        self._began = clock.monotonic()
        self._roster = Roster(-1, {}, {})
        self._pools: list[RemotePool] = []
        self._again = 0
        self._told: dict[int, str] = {}  # lane -> state that was last written to the log
        self._timeout_s = score_timeout_s
        saver = Saver(beside=True)
        self.lanes = {
            number: Lane(
                spec,
                number,
                partitions,
                log=log,
                pool=self._pool,
                store=store,
                clock=clock,
                model=self._model,
                epoch=epoch,
                saver=saver,
            )
            for number, partitions in lanes.items()
        }
        self._threads = [
            threading.Thread(target=self._live, args=(lane,), name=f"lane-{number}", daemon=True)
            for number, lane in self.lanes.items()
        ]
        self._watch = threading.Thread(target=self._watchdog, name="watchdog", daemon=True)
        self._parked = True
        if not parked:
            self.begin()

    # ---- control ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the lanes, if they have not been started."""
        if self._parked:
            self._parked = False
            for thread in (*self._threads, self._watch):
                thread.start()

    def enlist(self, roster: Roster, members: Mapping[str, Member]) -> None:
        """Use this pool from now on. Older rosters than the one in use are ignored."""
        if roster.number < self._roster.number:
            return
        self._members.replace(members)
        self._roster = roster

    def stop(self, wait_s: float) -> bool:
        """Finish and commit what was pulled; whether all lanes ended within `wait_s`."""
        for lane in self.lanes.values():
            lane.stop()
        if self._parked:
            return True
        until = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def report(self) -> OwnerReport:
        """Counters as of now. Never waits for a lane."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        sinks = [lane.sink for lane in self.lanes.values()]
        modes = {sink.exactly_once for sink in sinks if sink is not None}
        return OwnerReport(
            name=self.name,
            pid=os.getpid(),
            epoch=self.epoch,
            roster=self._roster.number,
            roster_by=self._roster.author,
            lanes=tuple(_lane_report(lane) for lane in self.lanes.values()),
            failures=self._members.failures(),
            loads=self._members.loads(),
            sent_again=sum(pool.sent_again for pool in self._pools),
            cpu_s=usage.ru_utime + usage.ru_stime,
            rss_bytes=_rss_bytes(),
            age_s=self._clock.monotonic() - self._began,
            exactly_once=min(modes) if modes else None,
            parked=self._parked,
        )

    # ---- lanes -----------------------------------------------------------------------------

    def _pool(self) -> RemotePool:
        pool = RemotePool(self._members, self._clock, timeout_s=self._timeout_s)
        self._pools = [*self._pools[-64:], pool]
        return pool

    def _model(self, lane: int, committed: str) -> ModelSpec | None:
        """The version for a lane: what its commits name while it can be had, else the target."""
        roster = self._roster
        # Not only while a scorer of it serves: the last one may have died, and comes again.
        if committed in roster.models or committed in roster.known:
            return roster.models.get(committed)
        return roster.models.get(roster.lanes.get(lane, ""))

    def _live(self, lane: Lane) -> None:
        try:
            lane.run()
            self._tell(lane)
        except BaseException as error:
            self._die(error)

    def _tell(self, lane: Lane) -> None:
        """A line in the log of this process whenever a lane enters another state.

        Who is cut off from the supervisor can tell nobody else that brokers fenced it.
        """
        state, words = lane.stats.state, lane.stats.words
        if self._told.get(lane.number) != state:
            self._told[lane.number] = state
            entry = {
                "at_ms": self._clock.now_ms(), "owner": self.name, "epoch": self.epoch,
                "lane": lane.number, "state": state, "words": words,
            }  # fmt: skip
            print(json.dumps(entry), flush=True)

    def _watchdog(self) -> None:
        """A client call that never returns cannot be cancelled: the process has to go."""
        while any(thread.is_alive() for thread in self._threads):
            for lane in self.lanes.values():
                self._tell(lane)
                sink = lane.sink
                since = sink.calling_since() if sink is not None else None
                if since is not None and time.monotonic() - since > CALL_MAX_S:
                    age = time.monotonic() - since
                    self._die(
                        TimeoutError(f"lane {lane.number}: a client call hangs for {age:.0f} s")
                    )
            time.sleep(WATCH_S)


def _lane_report(lane: Lane) -> LaneReport:
    stats = lane.stats
    delays = sorted(stats.delay_ms.copy())
    size = len(delays)
    return LaneReport(
        lane=lane.number,
        state=stats.state,
        words=stats.words,
        partitions=lane.partitions,
        version=stats.version,
        opened=stats.opened,
        records=stats.records,
        alerts=stats.alerts,
        rejects=stats.rejects,
        commits=stats.commits,
        keys=stats.keys,
        evicted=stats.evicted,
        labels={**stats.labels, "late": stats.late} if stats.late else dict(stats.labels),
        in_flight=stats.in_flight,
        committed=dict(stats.committed),
        position=dict(stats.position),
        version_since=dict(stats.version_since),
        delay_ms=(delays[size // 2], delays[size * 99 // 100]) if size else (0.0, 0.0),
        snapshot=stats.snapshot,
        tally=stats.tally,
    )


def _rss_bytes() -> int:
    """Resident memory of this process now."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
