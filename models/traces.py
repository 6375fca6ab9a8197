"""Distributed traces: which call is slow, or fails, as its edge never did?

Each call belongs to an edge of its key (trace_edges.py); four numbers of it become one tail
probability by the key's own past, and a guard says what is learnt (traces_kernel.py). State of a
key is 11 KB, whatever it is called by: it lies in rows (places.py).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raywatch.models import calibrate
from raywatch.models import trace_edges as edges
from raywatch.models.errors import ArtifactError
from raywatch.models.places import Places, bytes_of
from raywatch.models.scorer import I64, Component
from raywatch.models.settings import DecideSettings
from raywatch.models.trace_edges import CHANNELS, EDGES, LAYOUT, WHY, Edges
from raywatch.models.traces_kernel import HELD_MAX, Calls, Out, Rule, observe
from raywatch.models.unasked import Unasked

COMPONENTS = tuple(Component(name) for name in CHANNELS)
KEY_BYTES = bytes_of(LAYOUT)  # state of one key
LATE = 16.0  # half-lives of `slower` and `errors`: what chance does there lasts some thirty calls
RECORD_BYTES = 256  # of a call on its way through: what is given and what is said


class TracesModel(Unasked):
    """The version that says which arithmetic lanes use."""

    components = COMPONENTS
    stage = "traces"


class Traces:
    """Edges of the keys of one lane. One thread uses it."""

    def __init__(self, decide: DecideSettings) -> None:
        """Nothing is known yet. Of `decide` warm-up and half-life count."""
        rates, late = (calibrate.rates(each * decide.half_life) for each in (1.0, LATE))
        self._rule = Rule(decide.warmup, *rates, *late)
        self._places = Places(LAYOUT)

    @property
    def rows(self) -> int:
        """Rows that were ever given to a key: what memory is taken for."""
        return self._places.rows

    def ensure(self, slots: int) -> None:
        """Have room for slots 0 .. slots-1."""
        self._places.ensure(slots)

    def observe(self, calls: Calls, gone: tuple[I64, I64]) -> Out:
        """Judge N calls, each by the past of its key, then learn them.

        Args:
            calls: `rows` are slots here.
            gone: (G,) records that displaced keys, ascending, and (G,) the slots of these.
        """
        count = calls.rows.shape[0]
        given: Any = calls
        calls, out = Calls(*(np.require(each, None, ["C", "W"]) for each in given)), _room(count)
        for part in self._places.pieces(count, gone):
            rows = self._places.placed(calls.rows[part])
            here = _cut(calls, part)._replace(rows=rows)
            observe(here, self._places.of(Edges), self._rule, _cut(out, part))
        return out

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything remembered, as copies: `row` by slot, the rest by row, in order of slots."""
        return self._places.state()

    def load(self, saved: Mapping[str, NDArray[Any]], /) -> None:
        """Replace everything by what `state` gave. Raises ArtifactError."""
        if not self._places.fits(saved) or not _sound(saved):
            raise ArtifactError(
                "edges of a snapshot have numbers that cannot be",
                hint="delete the snapshot: the lane then rebuilds its state from the log",
            )
        self._places.load(saved)


def _cut(given: Any, part: slice) -> Any:
    """The same arrays, of some calls."""
    return type(given)(*(each[part] for each in given))


def _room(count: int) -> Out:
    return Out(
        before=np.empty(count, np.int64),
        score=np.empty(count),
        rare=np.empty(count),
        fired=np.empty(count, np.int64),
        said=np.empty((count, len(CHANNELS))),
        off=np.empty(count, np.uint8),
        why=np.empty((count, WHY)),
    )


def _sound(saved: Mapping[str, NDArray[Any]]) -> bool:
    """Whether all numbers can be, as far as the kernel needs it."""
    floats = [each for each in saved.values() if each.dtype.kind == "f"]
    sound = all(bool(np.isfinite(each).all()) for each in floats)
    counts = ("ordinal", "total", "failed", "calibration", "off", "since_ms", "stamp", "news")
    sound = sound and all(bool((saved[name] >= 0).all()) for name in counts)
    signed = np.delete(saved["stat"], (edges.MEAN, edges.LATE_SUM, edges.BEYOND_MEAN), axis=2)
    sound = sound and bool((signed >= 0.0).all())
    sound = sound and bool((saved["stat"][..., edges.HELD] <= HELD_MAX).all())
    late = saved["stat"][..., [edges.LATE_SEEN, edges.LATE_CALLS, edges.LATE_FAILED]]
    sound = sound and bool((late <= edges.WINDOW + 1.0).all())
    sound = sound and bool((saved["total"] >= np.minimum(saved["ordinal"], 1)).all())
    sound = sound and bool((saved["off"][:, edges.OFF_ROW] <= EDGES).all())
    now = saved["ordinal"]
    sound = sound and bool((saved["stamp"] <= now[:, None]).all())
    return sound and bool((saved["news"] <= now[:, None]).all())


def warm_traces() -> None:
    """Compile the kernel of this stage."""
    traces = Traces(DecideSettings())
    traces.ensure(1)
    one, nobody = np.zeros(1, np.int64), np.zeros(0, np.int64)
    failed, words = np.ones(1, np.uint8), np.zeros((1, 1), np.int64)
    calls = Calls(np.zeros(1, np.int32), one, words, np.ones(1), failed)
    traces.observe(calls, (nobody, nobody))
