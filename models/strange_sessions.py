"""Which sessions were strange while an incident was open? Alerts are few, sessions may be many.

From the record that opens an incident to the one that ends it, each session of the key is noted
that ended and is as rare as keeps an incident open (incident.py), or apart from the population
(log_sessions.py). The latter, because of sessions alike the first is rare and the second a little:
tails learn from each. Each alert of the incident names those since the last one, the first NAMED of
them, and says how many more there were, and how many in all. Memory is that of open incidents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raywatch.models import incident
from raywatch.models.errors import ArtifactError
from raywatch.models.following import INDEX, KIND
from raywatch.models.log_sessions import ID_BYTES
from raywatch.models.scorer import F64, I32, I64, U8

NAMED = 20  # Bounds an alert, and what is kept of an incident, to so many names.


class Strange(NamedTuple):
    """A session that ended."""

    session: bytes  # beginning of its id; nothing where it is withheld
    records: int  # that it had
    p: float  # tail probability among the sessions of the key that ended before


class Told(NamedTuple):
    """What an alert says of sessions."""

    named: tuple[Strange, ...]  # since the last alert of the incident, the first NAMED
    more: int  # of them that are not named
    total: int  # since the incident began


class Ends(NamedTuple):
    """M sessions that ended, in the order of the records that noticed it."""

    noticed: I64  # (M,) by which record, in batch order
    slot: I32  # (M,) of its key
    session: U8  # (M, ID_BYTES)
    records: I64  # (M,)
    p: F64  # (M,)
    apart: NDArray[np.bool_]  # (M,)


@dataclass(slots=True)
class _Open:
    """Of an incident that is open."""

    named: list[Strange] = field(default_factory=list[Strange])
    more: int = 0
    total: int = 0


class StrangeSessions:
    """Of the incidents of one lane. One thread uses it."""

    def __init__(self, probability: float) -> None:
        """`probability`: at which an incident opens."""
        self._probability = probability
        self._open: dict[int, _Open] = {}  # by slot

    def follow(self, ends: Ends, slots: I32, steps: I64) -> list[Told]:
        """What each step of a batch says of sessions.

        Args:
            ends: of the batch.
            slots: (N,) of the records.
            steps: (E, 5) see Following.follow, in the order of records.
        """
        rare = ends.p <= self._probability * incident.KEEP
        strange = np.flatnonzero(rare | ends.apart).tolist()
        said: list[Told] = []
        for index, kind in steps[:, [INDEX, KIND]].tolist():
            slot = int(slots[index])
            strange = self._note(ends, strange, index)
            if kind == incident.OPENED:
                self._open[slot] = _Open()
            strange = self._note(ends, strange, index + 1)
            found = self._open.setdefault(slot, _Open())
            said.append(Told(tuple(found.named), found.more, found.total))
            found.named, found.more = [], 0
            if kind == incident.RESOLVED:
                del self._open[slot]
        self._note(ends, strange, slots.shape[0])
        return said

    def _note(self, ends: Ends, strange: list[int], before: int) -> list[int]:
        """Note those whose record comes `before`; returns the others."""
        for done, at in enumerate(strange):
            if ends.noticed[at] >= before:
                return strange[done:]
            found = self._open.get(int(ends.slot[at]))
            if found is None:
                continue
            found.total += 1
            if len(found.named) < NAMED:
                name = ends.session[at].tobytes().rstrip(b"\0")
                found.named.append(Strange(name, int(ends.records[at]), float(ends.p[at])))
            else:
                found.more += 1
        return []

    def forget(self, slots: I64) -> None:
        """Forget keys."""
        for slot in slots.tolist():
            self._open.pop(slot, None)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything remembered: incidents in order of slots, and their names one after another."""
        slots = sorted(self._open)
        told = [self._open[slot] for slot in slots]
        named = [each for found in told for each in found.named]
        names = b"".join(each.session.ljust(ID_BYTES, b"\0") for each in named)
        return {
            "slot": np.array(slots, np.int64),
            "count": np.array(
                [(len(each.named), each.more, each.total) for each in told], np.int64
            ).reshape(-1, 3),
            "session": np.frombuffer(names, np.uint8).reshape(-1, ID_BYTES).copy(),
            "records": np.array([each.records for each in named], np.int64),
            "p": np.array([each.p for each in named], np.float64),
        }

    def load(self, saved: Mapping[str, NDArray[Any]], /) -> None:
        """Replace everything by what `state` gave. Raises ArtifactError."""
        slots, count = saved["slot"], saved["count"]
        if not _sound(saved):
            raise ArtifactError(
                "strange sessions of a snapshot have numbers that cannot be",
                hint="delete the snapshot: the lane then rebuilds its state from the log",
            )
        named = [
            Strange(session.tobytes().rstrip(b"\0"), int(records), float(p))
            for session, records, p in zip(
                saved["session"], saved["records"], saved["p"], strict=True
            )
        ]
        self._open, begin = {}, 0
        for slot, (size, more, total) in zip(slots.tolist(), count.tolist(), strict=True):
            self._open[slot] = _Open(named[begin : begin + size], more, total)
            begin += size


def _sound(saved: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the parts fit each other, and their numbers can be."""
    slots, count, p = saved["slot"], saved["count"], saved["p"]
    if slots.ndim != 1 or count.shape != (slots.shape[0], 3):
        return False
    size = int(count[:, 0].clip(0, NAMED).sum())
    shapes: Sequence[tuple[str, tuple[int, ...]]] = (
        ("session", (size, ID_BYTES)), ("records", (size,)), ("p", (size,)),
    )  # fmt: skip
    return (
        all(saved[name].shape == shape for name, shape in shapes)
        and bool((np.diff(slots) > 0).all() and (slots >= 0).all())
        and bool((count >= 0).all() and (count[:, 0] <= NAMED).all())
        and bool((count[:, 2] >= count[:, 0] + count[:, 1]).all())
        and bool((saved["records"] >= 0).all() and ((p > 0.0) & (p <= 1.0)).all())
    )
