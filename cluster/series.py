"""Numbers over time as the page draws them: n values, one every `step_s`, the last one now.

A value belongs to the step of the clock it was measured in. Steps in which nothing was measured
are None, never zero and never the value before: a gap is drawn as a gap.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Fold = Literal["last", "mean", "max"]

SERIES_MAX = 20_000  # bounds the series of one chart: 10,000 partitions and the rest


@dataclass(frozen=True, slots=True)
class Axis:
    """The time axis that all plots of the page share."""

    n: int = 120
    step_s: float = 15.0


class Series:
    """A ring of the last n steps. Several values in one step are folded into one."""

    __slots__ = ("_axis", "_count", "_fold", "_last", "_values")

    def __init__(self, axis: Axis, fold: Fold = "last") -> None:
        assert axis.n >= 1, axis
        assert axis.step_s > 0.0, axis
        self._axis, self._fold = axis, fold
        self._values: list[float | None] = [None] * axis.n
        self._last = -1  # step of the newest value
        self._count = 0  # values folded into it

    def put(self, at_ms: int, value: float | None) -> None:
        """Take in a value; None and what is not finite say nothing. Late values are dropped."""
        step = self._step(at_ms)
        if value is None or not math.isfinite(value) or step < self._last:
            return
        n = self._axis.n
        if step > self._last:
            for gone in range(max(self._last + 1, step - n + 1), step + 1):
                self._values[gone % n] = None
            self._last, self._count = step, 0
        before, self._count = self._values[step % n], self._count + 1
        if before is None or self._fold == "last":
            self._values[step % n] = value
        elif self._fold == "max":
            self._values[step % n] = max(before, value)
        else:
            self._values[step % n] = before + (value - before) / self._count

    def values(self, end_ms: int) -> list[float | None]:
        """N values, oldest first; the last is the step of `end_ms`, unknown if nothing came yet.

        While the present step is empty the one before stands in for it: a step that has only
        begun is not a gap.
        """
        end, n = self._step(end_ms), self._axis.n
        if end == self._last + 1:
            end = self._last
        return [
            self._values[step % n] if self._last - n < step <= self._last and step >= 0 else None
            for step in range(end - n + 1, end + 1)
        ]

    def _step(self, at_ms: int) -> int:
        return int(at_ms // (1000.0 * self._axis.step_s))


class Chart:
    """Named series on one axis."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis
        self._series: dict[str, Series] = {}

    def put(self, name: str, at_ms: int, value: float | None, fold: Fold = "last") -> None:
        """Take in a value of a series; `fold` counts when the name is new."""
        series = self._series.get(name)
        if series is None:
            if len(self._series) >= SERIES_MAX:
                return
            series = self._series[name] = Series(self.axis, fold)
        series.put(at_ms, value)

    def values(self, name: str, end_ms: int) -> list[float | None]:
        """The values of a series; all unknown where there is no such series."""
        series = self._series.get(name)
        return [None] * self.axis.n if series is None else series.values(end_ms)

    def keep(self, names: Sequence[str]) -> None:
        """Forget every other series: partitions and detectors that are gone."""
        wanted = set(names)
        self._series = {name: each for name, each in self._series.items() if name in wanted}
