"""How far behind is a partition, and is that a reason to wake somebody?

Judged from a window of positions, never from one number (after Burrow, `evaluator/caching.go`):

    unknown   no complete reading in the last `unknown_s`: never the same as zero
    rewound   the committed offset went back and has not come up again, or lies beyond the end
    stopped   records wait and nothing was committed for `stopped_s`, or nobody owns the partition
    stalled   records wait and nothing was committed for `stalled_s`
    slow      it moves, but the oldest record waits longer than `slow_s`
    ok        everything else

Lag in seconds is how long ago the committed offset was the end of the log, interpolated between
end offsets that were read. Of what arrived before the first reading only "at least" is known.
A lag of one record of which nothing moves counts as none: transaction markers look like that, and
so a single stuck record at the very end is not seen here.
"""

from array import array
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

State = Literal["ok", "slow", "stalled", "stopped", "rewound", "unknown"]
STATES: tuple[State, ...] = (
    "stalled",
    "stopped",
    "rewound",
    "slow",
    "unknown",
    "ok",
)  # worst first

RATE_S = 15.0  # rates are taken over this long
READINGS_MAX = 64  # bounds a window that is read more often than once a second
ENDS_MAX = 256  # points of (time, end offset): about 4 KiB a partition; older ones are thinned
MARKER_RECORDS = 1  # a lag of this many records that does not move is a transaction marker
REWOUND_S = 300.0  # after this long, a position that went back is the new normal


@dataclass(frozen=True, slots=True)
class LagSettings:
    """When a partition is in trouble. Seconds."""

    slow_s: float = 10.0  # the oldest record may wait this long
    stalled_s: float = 20.0  # longest time without a commit while records wait
    stopped_s: float = 60.0  # the same, after which nobody hopes any more
    unknown_s: float = 10.0  # age at which a reading stops saying anything


def resting(rest_s: float, settings: LagSettings | None = None) -> LagSettings:
    """The limits of a partition whose records may wait for `rest_s` without anything being wrong.

    Labels of payments do (`DetectorSpec.rest_s`).
    """
    settings = settings or LagSettings()
    return replace(
        settings,
        slow_s=settings.slow_s + rest_s,
        stalled_s=settings.stalled_s + rest_s,
        stopped_s=settings.stopped_s + rest_s,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """One word and one sentence about a partition."""

    state: State
    words: str


class Rates(NamedTuple):
    """Records a second over `RATE_S`; None is unknown."""

    arrivals_per_s: float | None
    commits_per_s: float | None


class LagWindow:
    """What was read of one partition lately. Bounded; one is kept for each partition of a group."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=READINGS_MAX)
        self._end_t = array("d")
        self._end = array("q")
        self.t: float | None = None  # of the newest complete reading
        self.committed = 0
        self.end = 0
        self.low = 0
        self.moved_t = 0.0  # when the committed offset last grew
        self.end_t = 0.0  # when the end last grew
        self.waiting_t: float | None = None  # since when records wait
        self.calm_t: float | None = None  # when none waited last
        self.rewound_from: int | None = None
        self.rewound_t = 0.0

    def add(self, t: float, committed: int | None, end: int | None, low: int | None) -> None:
        """Take in one reading, once a tick.

        Args:
            t: monotonic seconds, never before the last one.
            committed: next offset to read; None where it could not be asked or was never committed.
            end: the last stable offset; None where it could not be asked.
            low: first retained offset; None is taken for the one last known.
        """
        assert self.t is None or t >= self.t, (t, self.t)
        if end is not None:
            self._add_end(t, end)
        if committed is None or end is None:
            return
        if self.t is None:
            self.moved_t = self.end_t = t
        else:
            self._compare(t, committed, end)
        self.t, self.committed, self.end = t, committed, end
        self.low = self.low if low is None else low
        if lag_now(self) <= MARKER_RECORDS:
            self.waiting_t, self.calm_t = None, t
        elif self.waiting_t is None:
            self.waiting_t = t
        self._recent.append((t, committed, end))
        while len(self._recent) > 2 and self._recent[1][0] <= t - RATE_S:
            self._recent.popleft()

    def _compare(self, t: float, committed: int, end: int) -> None:
        if committed > self.committed:
            self.moved_t = t
        if end > self.end:
            self.end_t = t
        if end < self.end:  # the topic was made anew, or a leader lost what it had promised
            self._end_t, self._end = array("d", [t]), array("q", [end])
            self._recent.clear()
        if committed < self.committed:
            went = max(self.committed, self.rewound_from or 0)
            self.rewound_from, self.rewound_t = went, t
            self.moved_t = t
            self._recent.clear()
        if self.rewound_from is not None and (
            committed >= self.rewound_from or t - self.rewound_t > REWOUND_S
        ):
            self.rewound_from = None

    def _add_end(self, t: float, end: int) -> None:
        if self._end and end < self._end[-1]:
            return  # `_compare` decides about an end that went back; alone it proves nothing
        if len(self._end) > 1 and self._end[-1] == end == self._end[-2]:
            self._end_t[-1] = t  # of a plateau its two corners are enough
            return
        self._end_t.append(t)
        self._end.append(end)
        if len(self._end) > ENDS_MAX:
            half = ENDS_MAX // 2
            self._end_t = self._end_t[:half:2] + self._end_t[half:]
            self._end = self._end[:half:2] + self._end[half:]

    def end_was(self, offset: int) -> tuple[float | None, float | None]:
        """When was `offset` the end of the log?

        Returns:
            (time, None); or (None, time before which it was) where it is older than the window;
            or (None, None) where nothing is known.
        """
        index = bisect_right(self._end, offset)  # the first point beyond `offset`
        if not self._end:
            return None, None
        if index == 0:
            return None, self._end_t[0]
        if index == len(self._end):
            return self._end_t[-1], None
        t0, t1 = self._end_t[index - 1], self._end_t[index]
        end0, end1 = self._end[index - 1], self._end[index]
        return t0 + (t1 - t0) * (offset - end0) / (end1 - end0), None

    def recent(self) -> tuple[tuple[float, int, int], ...]:
        """Complete readings (time, committed, end) of about the last `RATE_S`, oldest first."""
        return tuple(self._recent)


def lag_now(window: LagWindow) -> int:
    """Records between the committed offset and the end at the newest complete reading.

    Records that retention removed are not waiting any more, and a commit read a moment after the
    end may lie ahead of it: neither makes a lag negative.
    """
    return max(0, window.end - max(window.committed, window.low))


def is_known(window: LagWindow, now: float, settings: LagSettings | None = None) -> bool:
    """Whether the newest complete reading is young enough to speak of."""
    settings = settings or LagSettings()
    return window.t is not None and now - window.t <= settings.unknown_s


def lag_records(window: LagWindow, now: float, settings: LagSettings | None = None) -> int | None:
    """Records that wait, or None where nobody knows."""
    return lag_now(window) if is_known(window, now, settings) else None


def lag_s(window: LagWindow, now: float, settings: LagSettings | None = None) -> float | None:
    """Seconds that the oldest record waits, or None where that is unknown."""
    settings = settings or LagSettings()
    if not is_known(window, now, settings):
        return None
    lag = lag_now(window)
    if lag == 0 or (lag <= MARKER_RECORDS and _still_s(window, now) >= settings.stalled_s):
        return 0.0
    was, _ = window.end_was(max(window.committed, window.low))
    if window.calm_t is not None and lag > MARKER_RECORDS:
        # Nothing but a marker waited then, however long ago the committed offset was the end.
        was = window.calm_t if was is None else max(was, window.calm_t)
    return None if was is None else max(0.0, now - was)


def lag_at_least_s(window: LagWindow, now: float, settings: LagSettings | None = None) -> float:
    """Seconds that the oldest record has waited at the very least; 0 where nothing is known."""
    exact = lag_s(window, now, settings)
    if exact is not None:
        return exact
    if not is_known(window, now, settings):
        return 0.0
    _, before = window.end_was(max(window.committed, window.low))
    return 0.0 if before is None else max(0.0, now - before)


def rates(window: LagWindow) -> Rates:
    """Arrivals and commits a second; None until two complete readings lie a second apart."""
    recent = window.recent()
    if len(recent) < 2:
        return Rates(None, None)
    (t0, committed0, end0), (t1, committed1, end1) = recent[0], recent[-1]
    if t1 - t0 < 1.0:
        return Rates(None, None)
    span = t1 - t0
    return Rates(max(0, end1 - end0) / span, max(0, committed1 - committed0) / span)


def back_s(window: LagWindow, now: float) -> float | None:
    """Seconds until the lag is gone at the present rates; None where it is unknown or grows."""
    lag = lag_records(window, now)
    arrivals, commits = rates(window)
    if lag is None or arrivals is None or commits is None:
        return None
    if lag <= MARKER_RECORDS:
        return 0.0
    return lag / (commits - arrivals) if commits > arrivals else None


def verdict(
    window: LagWindow,
    now: float,
    settings: LagSettings | None = None,
    *,
    owned: bool | None = None,
) -> Verdict:
    """One word about a partition. Pure; called for every partition every tick.

    Args:
        window: what was read of it.
        now: monotonic seconds, of the same clock as the readings.
        settings: the limits.
        owned: whether an owner that is up holds it; None where that is unknown.
    """
    settings = settings or LagSettings()
    if not is_known(window, now, settings):
        return _unread(window, now)
    went_back = _went_back(window, now, settings)
    if went_back is not None:
        return went_back
    still = None if window.waiting_t is None else _still(window, now, settings, owned)
    if still is not None:
        return still
    lag, exact = lag_now(window), lag_s(window, now, settings)
    about = "" if exact is not None else "about "
    seconds = _about_s(window, now, settings) if exact is None else exact
    if seconds is None:
        return Verdict("unknown", f"{lag:,} records wait, and nobody knows yet for how long")
    if seconds > settings.slow_s:
        return Verdict("slow", f"{about}{say_s(seconds)} behind, {lag:,} records wait")
    return Verdict("ok", f"ok, {lag:,} records on their way" if lag > MARKER_RECORDS else "ok")


def _about_s(window: LagWindow, now: float, settings: LagSettings) -> float | None:
    """Seconds that records wait which came before the first reading; None before there is a rate.

    Whoever has watched for a second must not say that all is well because he saw nobody wait.
    """
    if lag_now(window) <= MARKER_RECORDS:
        return 0.0
    arrivals = rates(window).arrivals_per_s
    if arrivals is None:
        return None
    least = lag_at_least_s(window, now, settings)
    return max(least, lag_now(window) / arrivals) if arrivals > 0.0 else least


def _unread(window: LagWindow, now: float) -> Verdict:
    if window.t is None:
        return Verdict("unknown", "no committed offset and end were read yet")
    return Verdict("unknown", f"its offsets could not be read for {say_s(now - window.t)}")


def _went_back(window: LagWindow, now: float, settings: LagSettings) -> Verdict | None:
    if window.rewound_from is not None:
        back = f"{window.rewound_from:,} to {window.committed:,}"
        return Verdict("rewound", f"its position went back from {back}")
    if window.committed > window.end and _still_s(window, now) >= settings.stalled_s:
        beyond = f"`{window.committed}` lies beyond the end {window.end:,}"
        return Verdict("rewound", f"its committed offset {beyond}: was the topic made anew?")
    return None


def _still(
    window: LagWindow, now: float, settings: LagSettings, owned: bool | None
) -> Verdict | None:
    """What to say of a partition where records wait and nothing is committed."""
    assert window.waiting_t is not None
    still_s = now - max(window.moved_t, window.waiting_t)
    at = f"at offset {window.committed:,} for {say_s(still_s)}, {lag_now(window):,} records wait"
    if owned is False and still_s >= settings.unknown_s:
        return Verdict("stopped", f"stopped {at} and no owner holds it")
    if still_s >= settings.stopped_s:
        return Verdict("stopped", f"stopped {at}")
    return Verdict("stalled", f"stalled {at}") if still_s >= settings.stalled_s else None


def _still_s(window: LagWindow, now: float) -> float:
    """Seconds since anything of the partition moved."""
    return now - max(window.moved_t, window.end_t)


def say_s(seconds: float) -> str:
    """A duration in the words of the page: `0.8 s`, `40 s`, `3 min`, `2 h 5 min`, `3 d`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        hours, rest = divmod(int(seconds), 3600)
        return f"{hours} h {rest // 60} min"
    return f"{seconds / 86_400:.0f} d"
