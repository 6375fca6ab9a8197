"""Compiles every kernel once, so that the first batch of a stream does not wait for it.

Numba keeps what it compiled on disk: installation calls `warm()`, processes find it there. Each
entry of KERNELS is a function that calls the kernels of its room with tiny inputs of exactly the
types that a stream brings; whoever adds a kernel adds it there.

Numba notices a change in a kernel's own file, not in a file that the kernel calls into: a stale
kernel would go on computing what the old one did. `forget_stale` removes all of a folder's
compiled kernels when any source in it changed; `make` calls it whenever sources are newer.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from raywatch.models.decide import warm_decide
from raywatch.models.following import warm_following
from raywatch.models.history import History
from raywatch.models.lagbank import LagBank
from raywatch.models.logs import warm_logs
from raywatch.models.network import warm_network
from raywatch.models.payments import warm_payments
from raywatch.models.robustz import RobustZ
from raywatch.models.scorer import LEVELS, Level, Segments
from raywatch.models.traces import warm_traces


def forget_stale(folder: Path) -> int:
    """Remove compiled kernels that older sources of `folder` left. Returns how many."""
    digest = hashlib.blake2b(digest_size=16)
    for source in sorted(folder.glob("*.py")):
        digest.update(source.read_bytes())
    cache = folder / "__pycache__"
    note = cache / "kernels.of"
    now = digest.hexdigest()
    if note.exists() and note.read_text(encoding="ascii") == now:
        return 0
    stale = [path for pattern in ("*.nbi", "*.nbc") for path in cache.glob(pattern)]
    for path in stale:
        path.unlink(missing_ok=True)
    cache.mkdir(exist_ok=True)
    note.write_text(now, encoding="ascii")
    return len(stale)


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
    keys.load(keys.state())
    return keys.append(touched, np.array([16], np.int32), values[64:], levels).segments


def _history() -> None:
    _segments(LEVELS)


def _lagbank() -> None:
    model = LagBank("warm")
    model.score(_segments(model.levels))


def _robustz() -> None:
    model = RobustZ("warm")
    model.score(_segments(model.levels))


KERNELS: tuple[Callable[[], None], ...] = (
    _history,
    _lagbank,
    _robustz,
    warm_decide,
    warm_logs,
    warm_network,
    warm_following,
    warm_payments,
    warm_traces,
)
