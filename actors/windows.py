"""What a key looked like when it raised an alert: the last values of one channel."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from raywatch.actors.alerts import STEP_MS, WINDOW, Window
from raywatch.models.decide import Episode
from raywatch.models.history import Appended
from raywatch.models.scorer import F64, FINE, I32, I64


class Grouped(Protocol):
    """What is asked of a batch (flow.py)."""

    @property
    def order(self) -> I64:
        """(N,) grouped order -> batch order."""
        ...

    @property
    def touched(self) -> I32:
        """(K,) slots with records, ascending."""
        ...

    @property
    def counts(self) -> I32:
        """(K,) their records."""
        ...

    @property
    def usual_ms(self) -> F64:
        """(N,) time between two records of the key; 0: not known."""
        ...


class Windows:
    """Cuts the windows of alerts out of a batch's segments; nothing is computed before the first.

    A window looks back no farther than the history that the model asked for: what a batch holds
    beyond it depends on where the batch was cut, and an alert must not.
    """

    def __init__(self, names: Sequence[str], batch: Grouped, appended: Appended) -> None:
        self._names, self._batch, self._appended = names, batch, appended
        levels = appended.segments.levels
        self._history = levels[0].history if levels and levels[0].name == FINE.name else 0

    def of(self, episode: Episode) -> Window | None:
        """The window of an alert; None for an end, and where the model looks back less far."""
        if episode.kind == "resolved" or self._history < WINDOW - 1:
            return None
        batch, segments = self._batch, self._appended.segments
        channel = int(np.argmax(episode.channel_share))
        key = int(np.searchsorted(batch.touched, episode.slot))
        among = episode.index - int(batch.counts[:key].sum(dtype=np.int64))
        # Every key of a batch has new values on the fine level, so rows are keys times channels.
        row = key * segments.channels + channel
        values, begin, _ = segments.rows(0)
        end = int(begin[row]) + self._history + among + 1
        anchor = float(self._appended.anchor[row])
        expected: F64 | None = None
        if episode.lag > 0:
            held = min(WINDOW, max(0, self._history + 1 - episode.lag))
            past = values[end - episode.lag - held : end - episode.lag]
            expected = np.full(WINDOW, np.nan)
            expected[WINDOW - held :] = past.astype(np.float64) + anchor
        usual_ms = round(float(batch.usual_ms[batch.order[episode.index]]))
        return Window(
            channel=self._names[channel],
            observed=values[end - WINDOW : end].astype(np.float64) + anchor,
            expected=expected,
            step_ms=usual_ms if usual_ms > 0 else STEP_MS,
        )
