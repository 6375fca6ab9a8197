"""Log lines: which line, or which session, is like none that its key had before?

A line's template is a function of its bytes (log_template.py). Per key, five numbers of a line
(log_lines.py) and, where records have a session, two of it (log_sessions.py) become one tail
probability by the key's own past (log_judging.py).

State of a key lies in a row (places.py) and, as it needs them, in pages (pages.py): at most 47 KB,
with sessions 198 KB.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raywatch.models import calibrate, log_judging, log_lines, log_sessions, log_template, promise
from raywatch.models.errors import ArtifactError
from raywatch.models.log_judging import Judged, Out, Rule
from raywatch.models.log_lines import Lines
from raywatch.models.log_sessions import ENDS_MAX, Ends, Sessions, Texts
from raywatch.models.log_shelf import WAYS
from raywatch.models.pages import Layout, Pages
from raywatch.models.places import Places, bytes_of
from raywatch.models.scorer import F64, I32, I64, U8, Component
from raywatch.models.settings import DecideSettings
from raywatch.models.unasked import Unasked

U64 = NDArray[np.uint64]

OF_LINES = tuple(Component(name) for name in log_lines.CHANNELS)
OF_SESSIONS = (Component("early"), Component("session"))
COMPONENTS = (*OF_LINES, *OF_SESSIONS)
EXPLAIN = 2.5  # -log10 p from which the line before is kept, unless alerts begin earlier
RECORD_BYTES = 1_024  # of a record on its way through: what it is read into, and what is said


def _judged(sessions: bool) -> Layout:
    rows = len(OF_LINES) + sessions
    return {
        "calibration": ((rows, calibrate.COLUMNS), np.float64),
        "session": ((1, calibrate.COLUMNS), np.float64),
        "rushing": ((), np.uint8),
        "promise": ((promise.COLUMNS,), np.float64),
        "head": ((log_sessions.HEAD_BYTES,), np.uint8),
    }


def layout(sessions: bool) -> Layout:
    """Shape and kind of each array that has a row for each key."""
    found = {f"lines.{name}": each for name, each in log_lines.LAYOUT.items()}
    found |= {f"judged.{name}": each for name, each in _judged(sessions).items()}
    if sessions:
        found |= {f"population.{name}": each for name, each in log_sessions.LAYOUT.items()}
    return found


def _pages(sessions: bool) -> dict[str, Pages]:
    kinds = {**log_lines.PAGES, **(log_sessions.PAGES if sessions else {})}
    return {name: Pages(entries, rows) for name, (entries, rows) in kinds.items()}


def key_bytes(sessions: bool) -> int:
    """State of one key that has all that a key may have."""
    pages = _pages(sessions).values()
    return bytes_of(layout(sessions)) + sum(each.key_bytes_max for each in pages)


class LogsModel(Unasked):
    """The version that says which arithmetic lanes use."""

    components = COMPONENTS
    stage = "logs"


class Batch(NamedTuple):
    """N records, in batch order."""

    slots: I32  # (N,) of their keys
    time_ms: I64  # (N,)
    text: U8  # what lines and ids lie in
    line_begin: I64  # (N,)
    line_size: I32  # (N,)
    session: I64  # (N,) hash of the session, 0: none
    id_begin: I64  # (N,)
    id_size: I32  # (N,) 0: none, or withheld


class Seen(NamedTuple):
    """What is said of N records."""

    before: I64  # (N,) lines of the key before it
    code: U64  # (N,) the template it goes by
    why: F64  # (N, log_lines.WHY)
    early: F64  # (N,) see log_sessions.follow; NaN without sessions
    said: Out
    ends: Ends  # the M sessions that ended; NOTICED is the record of the batch


class Logs:
    """Lines and sessions of the keys of one lane. One thread uses it."""

    def __init__(
        self,
        decide: DecideSettings,
        *,
        sessions: bool = False,
        idle_ms: int = 60_000,
        explain: float = EXPLAIN,
        keep: bool = True,
    ) -> None:
        """Nothing is known yet.

        Args:
            decide: warm-up and half-life count.
            sessions: whether records have them.
            idle_ms: silence that ends one.
            explain: -log10 p from which the line before is told.
            keep: whether the beginning of a line may be kept, to name it in an alert.
        """
        rates = calibrate.rates(decide.half_life)
        self._rule = Rule(decide.warmup, *rates, min(explain, EXPLAIN), sessions)
        self._idle_ms = idle_ms
        self._keep = log_sessions.HEAD_BYTES if keep else 0
        self._sessions = sessions
        self._pages = _pages(sessions)
        self._places = Places(layout(sessions), self._pages)

    @property
    def rows(self) -> int:
        """Rows that were ever given to a key: what memory is taken for."""
        return self._places.rows

    @property
    def pages(self) -> dict[str, int]:
        """Pages that keys have, by kind."""
        return {name: each.used for name, each in self._pages.items()}

    def ensure(self, slots: int) -> None:
        """Have room for slots 0 .. slots-1."""
        self._places.ensure(slots)

    def observe(self, batch: Batch, gone: tuple[I64, I64]) -> Seen:
        """Judge N records, each by the past of its key, then learn them.

        `gone`: (G,) records that displaced keys, ascending, and (G,) the slots of these.
        """
        batch, count = _fixed(batch), batch.slots.shape[0]
        code, family, values = log_template.read_lines(
            batch.text, batch.line_begin, batch.line_size
        )
        rows = len(OF_LINES) + self._sessions
        before, why = np.empty(count, np.int64), np.empty((count, log_lines.WHY))
        strange, early = np.empty((count, rows)), np.full(count, np.nan)
        ends, done = _room(ENDS_MAX * count if self._sessions else 0), 0
        said = _out(count, rows + self._sessions, ends.score.shape[0])
        for part in self._places.pieces(count, gone):
            texts = self._texts(batch, part)
            slots = self._places.placed(batch.slots[part])
            lines = self._places.of(Lines, "lines.", log_lines.PAGES)
            judged = self._places.of(Judged, "judged.")
            log_lines.look(
                slots, batch.time_ms[part], code[part], family[part], values[part], lines,
                before[part], strange[part], why[part],
            )  # fmt: skip
            new, rest = 0, _cut(ends, slice(done, None))
            if self._sessions:
                new = log_sessions.follow(
                    slots, batch.time_ms[part], batch.session[part], code[part], texts,
                    self._idle_ms,
                    self._places.of(Sessions, "population.", log_sessions.PAGES),
                    early[part], rest,
                )  # fmt: skip
                strange[part, -1] = early[part]
            log_judging.judge(
                slots, before[part], strange[part], rest, new, texts, judged, self._rule,
                _cut(said, part)._replace(end_rare=said.end_rare[done:]),
            )  # fmt: skip
            rest.row[:new, log_sessions.NOTICED] += part.start
            ended = said.ended[part]
            ended[ended >= 0] += done
            done += new
        said = said._replace(end_rare=said.end_rare[:done])
        return Seen(before, code, why, early, said, _cut(ends, slice(done)))

    def _texts(self, batch: Batch, part: slice) -> Texts:
        return Texts(
            batch.text, batch.line_begin[part], batch.line_size[part], batch.id_begin[part],
            batch.id_size[part], self._keep,
        )  # fmt: skip

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything remembered, as copies: `row` by slot, the rest by row, in order of slots."""
        return self._places.state()

    def load(self, saved: Mapping[str, NDArray[Any]], /) -> None:
        """Replace everything by what `state` gave. Raises ArtifactError."""
        if not self._places.fits(saved) or not _sound(saved, self._sessions):
            raise ArtifactError(
                "lines of a snapshot have numbers that cannot be",
                hint="delete the snapshot: the lane then rebuilds its state from the log",
            )
        self._places.load(saved)


def _cut(given: Any, part: slice) -> Any:
    """The same arrays, of some records."""
    return type(given)(*(each[part] for each in given))


def _fixed(batch: Batch) -> Batch:
    """The same, as kernels are compiled for it: the text read-only, the rest contiguous."""
    text = batch.text.view()
    text.flags.writeable = False
    rest: Any = batch._replace(text=np.zeros(0, np.uint8))
    return Batch(*(np.require(each, None, ["C", "W"]) for each in rest))._replace(text=text)


def _room(ends: int) -> Ends:
    """Pages that are not written take no memory."""
    return Ends(
        np.empty((ends, log_sessions.END), np.int64),
        np.empty((ends, log_sessions.ID_BYTES), np.uint8),
        np.empty((ends, log_sessions.HEAD_BYTES), np.uint8),
        np.empty(ends),
    )


def _out(count: int, components: int, ends: int) -> Out:
    return Out(
        score=np.empty(count),
        rare=np.empty(count),
        fired=np.empty(count, np.int64),
        said=np.empty((count, components)),
        ended=np.empty(count, np.int64),
        prior=np.empty((count, log_sessions.HEAD_BYTES), np.uint8),
        end_rare=np.empty(ends),
    )


def _sound(saved: Mapping[str, NDArray[Any]], sessions: bool) -> bool:
    """Whether all numbers can be, as far as kernels need it."""
    floats = [each for each in saved.values() if each.dtype.kind == "f"]
    sound = all(bool(np.isfinite(each).all()) for each in floats)
    counts = ["templates.stat", "families.met", "pairs.count", "lines.ordinal", "lines.total"]
    counts += ["judged.calibration", "judged.session"]
    counts += ["sessions.records", "kinds.past", "population.sums"] if sessions else []
    sound = sound and all(bool((saved[name] >= 0).all()) for name in counts)
    numbers, pace, news = saved["templates.numbers"], saved["lines.pace"], saved["lines.news"]
    sound = sound and bool((numbers[..., [log_lines.SEEN, log_lines.VARIANCE]] >= 0).all())
    sound = sound and bool((pace[:, 1:] >= 0).all())
    now = saved["lines.ordinal"]
    for name in log_lines.PAGES:
        # Who has a page: all its stamps are counts of that key's lines.
        page, stamp = saved[f"{name}.page"], saved[f"{name}.stamp"]
        owner = np.zeros(saved[f"{name}.depth"].shape[0] + 1, np.int64)
        owner[page] = np.arange(page.shape[0])[:, None]
        latest = np.repeat(now[owner[1:]], WAYS)
        sound = sound and bool(((stamp >= 0) & (stamp <= latest)).all())
    sound = sound and bool(((news >= 0) & (news <= now[:, None, None])).all())
    return sound and (not sessions or bool((saved["population.ordinal"] >= 0).all()))


def warm_logs() -> None:
    """Compile the kernels of this stage."""
    logs = Logs(DecideSettings(), sessions=True)
    logs.ensure(1)
    one = np.zeros(1, np.int64)
    small = np.ones(1, np.int32)
    text = np.frombuffer(b"a\0", np.uint8)
    nobody = np.zeros(0, np.int64)
    logs.observe(
        Batch(np.zeros(1, np.int32), one, text, one, small, one + 1, one, small), (nobody, nobody)
    )
    log_template.template_of(b"a")
