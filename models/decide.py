"""From scores to alerts: which records of a key are too rare to be chance?

For each record of a key, in order: coarse scores are held until the next block ends; the sustained
components are summed, the largest channel counts. Every event component of every channel, and where
`views` is on what this stage sees in the values themselves (views.py), is calibrated by the key's
own past; together they say how rare the record is (judging.py), r = -log10 of a tail probability;

    event score = r - what is due to a key of this age         ranks records of all keys
    p = 10^-r as it was kept so far                            promise.py; 1 until the key is warm

Then gate and incident policy (incident.py). Nothing here reads a clock: the same records give the
same bits, however batches were cut and whichever keys travelled together.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raywatch.models import (
    calibrate,
    incident,
    judging,
    novelty,
    peaks,
    poisson,
    profile,
    promise,
    week,
)
from raywatch.models.budget import Account, no_budget
from raywatch.models.decide_kernel import (
    BLOCK,
    FIELDS,
    FIRED,
    HELD,
    INDEX,
    KIND,
    LAG,
    ORDINAL,
    SIMILAR,
    SINCE,
    SLOT,
    SUSTAINED,
    TIMES,
    WEIGHTED,
    Batch,
    Out,
    Rule,
    Scratch,
    State,
    decide_batch,
)
from raywatch.models.errors import ArtifactError
from raywatch.models.history import Appended
from raywatch.models.incident import Decided, Episode, Forgotten
from raywatch.models.missing import warm_missing
from raywatch.models.rows import Rows
from raywatch.models.scorer import (
    C8,
    F32,
    F64,
    FINE,
    I32,
    I64,
    LEVELS,
    Component,
    Scores,
    Segments,
)
from raywatch.models.settings import DecideSettings
from raywatch.models.views import PROMISED, unused, views_of

__all__ = ["Decided", "Decider", "Episode", "Forgotten", "warm_decide"]

Array = NDArray[Any]

COUNT_MAX = 1 << 53  # No key has so many records.
INCIDENT_COLUMNS = 7  # see incident.py
REASONS = 5  # components that an alert names at most
SPLIT = ("calibration", "held")  # saved by the names of components


class Decider:
    """Decisions for the keys of one lane. One thread uses it.

    `views` adds views of the values themselves: for models that ask for them. `evidence` tells that
    of every record, not of episodes only.
    """

    def __init__(
        self,
        settings: DecideSettings,
        components: tuple[Component, ...],
        channels: int,
        *,
        views: bool = False,
        evidence: bool = False,
    ) -> None:
        assert channels >= 1, channels
        names = [component.name for component in components]
        seen = views_of(channels) if views else ()
        assert len(set(names)) == len(names), names
        assert not set(names) & set(seen), names
        self._settings = settings
        self.components = components
        self.channels = channels
        self.views = views
        self._evidence = evidence
        self.names = (*names, *seen)
        self._table = _table(components, len(seen))
        trust = [each.trust if each.event else 0.0 for each in components]
        self._trust = np.array([*trust, *[1.0] * len(seen)])
        self._ranks = np.array([float(name not in PROMISED) for name in self.names])
        self._tails = np.array([float(name == poisson.NAME) for name in self.names])
        self._worth = np.log10(np.where(self._trust > 0.0, self._trust, 1.0))
        self._reach = np.array([novelty.REACH if n == novelty.NAME else np.inf for n in self.names])
        rate, excess_rate = calibrate.rates(settings.half_life)
        self._rule = Rule(
            float(settings.probability),
            float(settings.update_factor),
            int(settings.warmup),
            int(settings.quiet),
            rate,
            excess_rate,
            len(components),
        )
        self._slots = 0
        hours = sum(name in profile.VIEWS for name in seen)
        coarse = int((self._table[:, HELD] >= 0).sum())
        self._rows = {
            "total": Rows((), np.int64),
            "held": Rows((coarse, channels), np.float64),
            "calibration": Rows((len(self.names) * channels, calibrate.COLUMNS), np.float64),
            "joint": Rows((judging.JOINTS, calibrate.COLUMNS), np.float64),
            "promise": Rows((promise.COLUMNS,), np.float64),
            "profile": Rows((channels, hours, profile.HOURS + 1, 3), np.float64),
            "recent": Rows((channels, profile.RECENT), np.float64),
            "range": Rows((channels, 2), np.float64),
            "span": Rows((novelty.COLUMNS,), np.float64),
            "marks": Rows((novelty.BINS,), np.uint8),
            "peaks": Rows((channels, peaks.COLUMNS), np.float64),
            "poisson": Rows((channels, poisson.COLUMNS), np.float64),
            "week": Rows((channels, week.COLUMNS), np.float64),
            "miss": Rows((channels,), np.float64),
            "times": Rows((TIMES,), np.int64),
            "chance": Rows((incident.CHANCES,), np.float64),
            "incident": Rows((INCIDENT_COLUMNS,), np.int64),
        }
        without = unused(seen, channels)
        self._used = tuple(name for name in self._rows if name not in without)
        for name in self._used:
            self._rows[name].reserve(1)

    @property
    def _state(self) -> State:
        return State(**{name: each.array for name, each in self._rows.items()})

    @property
    def key_bytes(self) -> int:
        """Memory of one key."""
        return sum(self._rows[name].row_bytes for name in self._used)

    def ensure(self, slots: int) -> None:
        """Have room for slots 0 .. slots-1."""
        if slots <= self._slots:
            return
        for name in self._used:
            self._rows[name].reserve(slots)
        begin, self._slots = self._slots, slots
        self._blank(slice(begin, slots))

    def _blank(self, slots: "slice | I64") -> None:
        """Make these slots those of keys that were never seen."""
        for name in self._used:
            self._rows[name].array[slots] = 0
        state = self._state
        state.held[slots] = np.nan
        if self.channels > 1:
            state.range[slots] = np.nan
        state.incident[slots, incident.LATEST] = incident.NEVER

    def begin(self, born: I64) -> None:
        """Hear of new keys before their first batch is decided.

        Args:
            born: (B, 3) slot, and what incidents of keys that were forgotten may be called: their
                `since` lies at or before the second, their ordinal below the third. So an incident
                of a key that returns is never taken for one that it had before.
        """
        rows = self._state.incident
        rows[born[:, 0], incident.LATEST] = born[:, 1]
        rows[born[:, 0], incident.REPEATS] = born[:, 2]

    def forget(self, index: I64, slots: I64) -> list[Forgotten]:
        """Forget keys, and say which incidents end by it. `index`: (G,), what needed the room."""
        ended = incident.ended(self._state.incident[slots], index, slots, self.names)
        self._blank(slots)
        return ended

    def decide(
        self,
        touched: I32,
        counts: I32,
        time_ms: I64,
        values: F64,
        appended: Appended,
        scores: Scores,
        account: Account | None = None,
    ) -> Decided:
        """Decide N records of K keys, in grouped order.

        Args:
            touched: (K,) slots, ascending.
            counts: (K,) records of each, sum N.
            time_ms: (N,) time of each record.
            values: (N, C) as recorded, NaN where missing.
            appended: what history.py answered for this batch.
            scores: what the scorer answered for `appended.segments`.
            account: of `alert.per_day`, for this batch.
        """
        records, channels = int(time_ms.shape[0]), self.channels
        assert values.shape == (records, channels), (values.shape, records, channels)
        assert int(counts.sum()) == records, (counts.sum(), records)
        assert records == 0 or int(touched.max()) < self._slots, (touched.max(), self._slots)
        assert channels == 1 or appended.weight.shape == (records * channels,), (
            appended.weight.shape
        )
        assert appended.anchor.shape == (touched.shape[0] * channels,), appended.anchor.shape
        assert scores.expected.shape == (records * channels,), (scores.expected.shape, records)
        assert scores.lag.shape == (records * channels,), (scores.lag.shape, records)

        flat, fresh, cursor = self._parts(counts, self._state.total[touched], scores)
        rows = len(self.names)
        out = Out(
            score=np.empty(records, np.float32),
            p=np.empty(records, np.float64),
            event=np.empty(records, np.float32),
            judged=np.empty(records, np.uint8),
            # Room for an episode at every record; pages that are not written take no memory.
            episode=np.empty((records, 8), np.int64),
            share=np.empty((records, channels)),
            expected=np.empty((records, channels)),
            spread=np.empty((records, channels)),
            said=np.empty((records, rows)),
            sums=np.empty((records, 2)),
            evidence=np.empty((records if self._evidence else 0, channels)),
        )
        batch = Batch(
            touched=_own(touched, np.int32),
            counts=_own(counts, np.int32),
            base=np.cumsum(counts, dtype=np.int64) - counts,
            key=np.repeat(np.arange(counts.shape[0], dtype=np.int32), counts),
            fresh=fresh,
            cursor=cursor,
            time_ms=_own(time_ms, np.int64),
            values=_own(values, np.float64),
            flat=flat,
            weight=_own(appended.weight, np.float32),
            expected=_own(scores.expected, np.float32),
            lag=_own(scores.lag, np.int32),
            anchor=_own(appended.anchor, np.float64),
        )
        scratch = self._scratch()
        found = decide_batch(
            self._table, self._rule, self._state, batch, scratch, out, account or no_budget()
        )
        episodes = [self._episode(out, row, values) for row in range(found)]
        episodes.sort(key=lambda each: each.index)  # with a budget they are in batch order
        evidence = out.evidence if self._evidence else None
        return Decided(out.score, out.p, out.event, episodes, out.judged, evidence)

    def _scratch(self) -> Scratch:
        """Room for one record."""
        rows, channels = len(self.names), self.channels
        views = max(rows - len(self.components), 1)
        return Scratch(
            now=np.full((rows, channels), np.nan),
            said=np.zeros((rows, channels)),
            usual=np.full((views, channels), np.nan),
            spread=np.full((views, channels), np.nan),
            evidence=np.zeros(channels),
            far=np.zeros(channels),
            trust=self._trust,
            ranks=self._ranks,
            tails=self._tails,
            worth=self._worth,
            reach=self._reach,
            belief=np.ones((rows, channels)),
            sums=np.full((channels, 2), np.nan),
            teaches=np.full((rows, channels), np.inf),
        )

    def _parts(self, counts: I32, before: I64, scores: Scores) -> tuple[F32, I64, I64]:
        """Parts of all components in one array; how long each key's are, and where: (K, rows)."""
        parts: list[F32] = []
        values = np.zeros((counts.shape[0], len(self.components)), np.int64)
        cursor, begin = np.zeros_like(values), 0
        for row, component in enumerate(self.components):
            part = scores.parts[component.name]
            block = int(self._table[row, BLOCK])
            fresh = (before + counts) // block - before // block
            size = int(fresh.sum()) * self.channels
            assert part.shape == (size,), (component.name, part.shape, size)
            parts.append(part)
            values[:, row] = fresh
            cursor[:, row] = begin + self.channels * (np.cumsum(fresh) - fresh)
            begin += size
        flat = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return _own(flat, np.float32), values, cursor

    def _episode(self, out: Out, row: int, values: F64) -> Episode:
        """One row of the kernel's answer as a value."""
        what = out.episode[row]
        index = int(what[INDEX])
        return Episode(
            index=index,
            kind=incident.KINDS[int(what[KIND])],
            slot=int(what[SLOT]),
            since_ms=int(what[SINCE]),
            ordinal=int(what[ORDINAL]),
            p=float(out.p[index]),
            score=float(out.score[index]),
            event=float(out.event[index]),
            component=self.names[int(what[FIRED])],
            channel_share=tuple(out.share[row].tolist()),
            observed=tuple(values[index].tolist()),
            expected=tuple(out.expected[row].tolist()),
            spread=tuple(out.spread[row].tolist()),
            lag=int(what[LAG]),
            similar_ms=None if what[SIMILAR] == incident.NEVER else int(what[SIMILAR]),
            reasons=self._reasons(out.said[row]),
            sums=self._sums(out, row),
        )

    def _sums(self, out: Out, row: int) -> tuple[float, float] | None:
        """What came and what was due, of an episode that is about counts."""
        if self.names[int(out.episode[row, FIRED])] != poisson.NAME:
            return None
        came, due = out.sums[row].tolist()
        return None if np.isnan(due) else (came, due)

    def _reasons(self, said: F64) -> tuple[tuple[str, float], ...]:
        """Components that called a channel rare, the rarest first, and their -log10 p."""
        order = np.argsort(-said, kind="stable")[:REASONS]
        return tuple(
            (self.names[row], float(said[row])) for row in order if said[row] > judging.USUAL
        )

    def state(self) -> dict[str, Array]:
        """Everything remembered, by slot: copies, so that deciding may go on meanwhile.

        What belongs to a component carries its name: a later model takes over what it knows.
        """
        size = self._slots
        saved = {name: place[:size].copy() for name, place in self._places().items()}
        labels = np.array([_label(name) for name in self.names] or [0], np.int64)
        saved["incident"][:, incident.FIRED] = labels[saved["incident"][:, incident.FIRED]]
        return saved

    def _places(self) -> dict[str, Array]:
        """Where each part of a state lies."""
        state, held, channels = self._state, self._table[:, HELD], self.channels
        places = {name: self._rows[name].array for name in self._used if name not in SPLIT}
        for row, name in enumerate(self.names):
            begin = row * channels
            places[f"calibration.{name}"] = state.calibration[:, begin : begin + channels]
            if held[row] >= 0:
                places[f"held.{name}"] = state.held[:, held[row]]
        return places

    def load(self, saved: Mapping[str, Array]) -> None:
        """Replace everything by what `state` gave, of this or of another model's Decider.

        Components that are not in it begin anew: they have no say before their own warm-up.
        Raises ArtifactError where it is not such a state or has other channels.
        """
        for name in ("total", "chance", "incident"):
            if name not in saved:
                raise ArtifactError(f"state of the decide stage lacks `{name}`", hint=_HINT)
        size = int(saved["total"].shape[0])
        fresh = Decider(self._settings, self.components, self.channels, views=self.views)
        fresh.ensure(size)
        state, places = fresh._state, fresh._places()
        for name, place in places.items():
            if name not in saved:
                continue
            shape = (size, *place.shape[1:])
            if saved[name].shape != shape:
                message = f"state `{name}` has shape `{saved[name].shape}`, needs `{shape}`"
                raise ArtifactError(message, hint=_HINT)
            place[:size] = saved[name]
        if not _sound(state, size):
            raise ArtifactError("state of the decide stage has numbers that cannot be", hint=_HINT)
        fired = state.incident[:size, incident.FIRED]
        rows = np.zeros(size, np.int64)  # a component that is gone: the first one explains the end
        for row, name in enumerate(self.names):
            rows[fired == _label(name)] = row
        state.incident[:size, incident.FIRED] = rows
        self._rows, self._slots = fresh._rows, size


_HINT = "delete the snapshot: the lane then rebuilds its state from the log"


def _sound(state: State, size: int) -> bool:
    """Whether counts count and sizes are sizes: kernels divide by the one, take roots of others."""
    parts = (
        state.calibration,
        state.joint,
        state.miss,
        state.chance,
        state.span[..., [novelty.WIDTH]],
        state.poisson,
        state.peaks,
        state.week[..., week.VARIANCE : week.HOUR],  # variances, weeks, `pool`, `all`, hours seen
        state.week[..., [week.COUNT]],
    )
    sizes = state.profile[:size, ..., [profile.VISITS, profile.VARIANCE]]
    counts = state.span[:size, novelty.COUNT]
    total, opened = state.total[:size], state.incident[:size, incident.OPEN]
    return (
        all(bool((np.isfinite(p) & (p >= 0.0)).all()) for p in (*(p[:size] for p in parts), sizes))
        and all(bool(np.isfinite(p[:size]).all()) for p in (state.profile, state.span, state.week))
        and bool((np.abs(state.promise[:size]) < promise.FARTHEST).all())
        and all(bool(((each >= 0) & (each < COUNT_MAX)).all()) for each in (sizes, counts, total))
        and bool(((opened >= incident.CALM) & (opened <= incident.HUSHED)).all())
    )


def _label(name: str) -> int:
    """A component as a number that another model understands."""
    return zlib.crc32(name.encode())


def _own(array: Array, kind: type[np.generic]) -> Array:
    """The array as the kernels were compiled for: scores from shared memory are read-only."""
    return np.require(array, kind, ["C", "W", "A"])


def _table(components: tuple[Component, ...], views: int) -> I64:
    """What the kernel must know of each component: (rows, FIELDS)."""
    blocks = {level.name: level.block for level in LEVELS}
    table = np.zeros((len(components) + views, FIELDS), np.int64)
    table[:, HELD] = -1
    coarse = 0
    for row, component in enumerate(components):
        table[row, BLOCK] = blocks[component.level]
        table[row, SUSTAINED] = component.sustained
        table[row, WEIGHTED] = component.weighted
        if component.level != FINE.name:
            table[row, HELD] = coarse
            coarse += 1
    table[len(components) :, BLOCK] = 1
    return table


def warm_decide() -> None:
    """Compile every kernel of decide and missing, so that the first batch does not wait."""
    warm_missing()
    components = (Component("a", sustained=True), Component("b", level=C8.name))
    decider = Decider(DecideSettings(), components, 2, views=True)
    decider.ensure(1)
    records, channels = 8, 2
    cells = records * channels
    segments = Segments(channels, (), np.zeros((0, 1), np.int32), np.zeros(0, np.float32))
    tiny = Appended(segments, np.zeros(channels), np.ones(cells, np.float32))
    parts = {"a": np.zeros(cells, np.float32), "b": np.zeros(channels, np.float32)}
    scores = Scores(parts, np.zeros(cells, np.float32), np.zeros(cells, np.int32), "")
    decider.decide(
        np.zeros(1, np.int32),
        np.full(1, records, np.int32),
        np.zeros(records, np.int64),
        np.zeros((records, channels)),
        tiny,
        scores,
    )
