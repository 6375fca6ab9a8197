"""Compiles every kernel once, so that the first batch of a stream does not wait for it.

Numba keeps what it compiled on disk: installation calls `warm()`, processes find it there. Each
entry of KERNELS is a function that calls the kernels of its room with tiny inputs of exactly the
types that a stream brings; whoever adds a kernel adds it there.
"""

from collections.abc import Callable

import numpy as np

from raywatch.models.decide import warm_decide
from raywatch.models.history import History
from raywatch.models.lagbank import LagBank
from raywatch.models.robustz import RobustZ
from raywatch.models.scorer import LEVELS, Level, Segments


def warm() -> None:
    """Call every kernel once. Seconds to a minute the first time, milliseconds after."""
    for call in KERNELS:
        call()


def _segments(levels: tuple[Level, ...]) -> Segments:
    """Segments of one key with two channels: 16 new values behind 64 older ones."""
    keys = History(2)
    keys.ensure(1)
    values = np.arange(160.0).reshape(80, 2) % 7.0
    touched = np.zeros(1, np.int32)
    keys.append(touched, np.array([64], np.int32), values[:64], levels)
    return keys.append(touched, np.array([16], np.int32), values[64:], levels).segments


def _history() -> None:
    _segments(LEVELS)


def _lagbank() -> None:
    model = LagBank("warm")
    model.score(_segments(model.levels))


def _robustz() -> None:
    model = RobustZ("warm")
    model.score(_segments(model.levels))


KERNELS: tuple[Callable[[], None], ...] = (_history, _lagbank, _robustz, warm_decide)
