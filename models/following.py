"""Incidents of keys whose records were judged by something that all keys share.

Each record comes with r = -log10 of a tail probability; gate and policy are those of incident.py,
by key. A key needs no history of its own: the first record it ever has may open an incident.
Memory of a key is 72 bytes. Knows nothing of what made r.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.models import budget, incident
from raywatch.models.budget import Account, no_budget
from raywatch.models.errors import ArtifactError
from raywatch.models.incident import Forgotten
from raywatch.models.rows import Rows
from raywatch.models.scorer import F32, F64, I32, I64, U8
from raywatch.models.settings import DecideSettings

KEY_BYTES = 72  # of one key: nine numbers of eight bytes
INDEX, KIND, SINCE, ORDINAL, FIRED = range(5)  # columns of a step


@njit(cache=True, nogil=True)
def _follow(
    slots: I32,
    time_ms: I64,
    rare: F64,
    fired: I64,
    incidents: I64,
    chance: F64,
    probability: float,
    update_factor: float,
    quiet: int,
    account: Account,
    event: F32,
    held: U8,
    step: I64,
) -> int:
    found, factor = 0, 1.0
    debt, clock, part, share = account.debt, account.clock, account.partition, account.share
    for index in range(slots.shape[0]):
        slot, r = slots[index], rare[index]
        passes = incident.gate(chance, slot, incident.GATE, r)
        event[index] = r if passes else 0.0
        if share > 0.0:
            factor = budget.allowed(
                debt, clock, part[index], time_ms[index], share, account.step_ms, account.growth
            )
        kind = incident.follow(
            incidents, chance, slot, time_ms[index], 10.0**-r, passes, fired[index],
            probability, update_factor, quiet, factor,
        )  # fmt: skip
        held[index] = kind == incident.HELD
        if kind == incident.OPENED and share > 0.0:
            budget.spend(debt, part[index])
        if kind not in (incident.NOTHING, incident.HELD):
            step[found, INDEX], step[found, KIND] = index, kind
            step[found, SINCE] = incidents[slot, incident.SINCE]
            step[found, ORDINAL] = incidents[slot, incident.ORDINAL]
            step[found, FIRED] = incidents[slot, incident.FIRED]
            found += 1
    return found


class Following:
    """Incidents of the keys of one lane. One thread uses it."""

    def __init__(self, settings: DecideSettings, names: tuple[str, ...]) -> None:
        """`names`: of what may fire."""
        self._settings, self.names = settings, names
        self._slots = 0
        self._chance, self._incident = Rows((2,), np.float64), Rows((7,), np.int64)

    def ensure(self, slots: int) -> None:
        """Have room for slots 0 .. slots-1."""
        if slots > self._slots:
            self._chance.reserve(slots)
            self._incident.reserve(slots)
            begin, self._slots = self._slots, slots
            self._blank(slice(begin, slots))

    def _blank(self, slots: "slice | I64") -> None:
        self._chance.array[slots] = 0.0
        self._incident.array[slots] = 0
        self._incident.array[slots, incident.LATEST] = incident.NEVER

    def begin(self, born: I64) -> None:
        """Hear of new keys before their first batch is followed; see Decider.begin."""
        self._incident.array[born[:, 0], incident.LATEST] = born[:, 1]
        self._incident.array[born[:, 0], incident.REPEATS] = born[:, 2]

    def follow(
        self, slots: I32, time_ms: I64, rare: F64, fired: I64, account: Account | None = None
    ) -> tuple[F32, U8, I64]:
        """Follow N records in batch order.

        Args:
            slots: (N,) of their keys.
            time_ms: (N,).
            rare: (N,) -log10 p, >= 0.
            fired: (N,) what made it so, index into `names`.
            account: of `alert.per_day`, with the partition of each record.

        Returns:
            (N,) r where it passed the gate of its key, else 0; (N,) 1 where the budget hushed a
            key; (E, 5) steps of incidents: INDEX of the record, KIND (incident.KINDS), SINCE in
            ms, ORDINAL, FIRED.
        """
        assert slots.max(initial=-1) < self._slots, (slots.max(initial=-1), self._slots)
        event = np.empty(slots.shape[0], np.float32)
        held = np.empty(slots.shape[0], np.uint8)
        step = np.empty((slots.shape[0], 5), np.int64)
        settings = self._settings
        found = _follow(
            np.require(slots, np.int32, ["C", "W"]), np.require(time_ms, np.int64, ["C", "W"]),
            rare, fired, self._incident.array, self._chance.array, settings.probability,
            settings.update_factor, settings.quiet, account or no_budget(), event, held, step,
        )  # fmt: skip
        return event, held, step[:found]

    def forget(self, index: I64, slots: I64) -> list[Forgotten]:
        """Forget keys, and say which incidents end by it. `index`: (G,), what needed the room."""
        ended = incident.ended(self._incident.array[slots], index, slots, self.names)
        self._blank(slots)
        return ended

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything remembered, by slot: copies."""
        return {
            "chance": self._chance.array[: self._slots].copy(),
            "incident": self._incident.array[: self._slots].copy(),
        }

    def load(self, saved: Mapping[str, NDArray[Any]], /) -> None:
        """Replace everything by what `state` gave. Raises ArtifactError."""
        chance, incidents = saved["chance"], saved["incident"]
        size = chance.shape[0]
        sound = chance.shape == (size, 2) and incidents.shape == (size, 7)
        sound = sound and bool((np.isfinite(chance) & (chance >= 0.0)).all())
        if sound:
            opened, fired = incidents[:, incident.OPEN], incidents[:, incident.FIRED]
            sound = bool(((opened >= incident.CALM) & (opened <= incident.HUSHED)).all())
            sound = sound and bool(((fired >= 0) & (fired < len(self.names))).all())
        if not sound:
            raise ArtifactError(
                "incidents of a snapshot have numbers that cannot be",
                hint="delete the snapshot: the lane then rebuilds its state from the log",
            )
        fresh = Following(self._settings, self.names)
        fresh.ensure(size)
        fresh._chance.array[:size], fresh._incident.array[:size] = chance, incidents
        self._chance, self._incident, self._slots = fresh._chance, fresh._incident, size


def warm_following() -> None:
    """Compile the kernel of this file."""
    following = Following(DecideSettings(), ("a",))
    following.ensure(1)
    one = np.zeros(1, np.int64)
    following.follow(np.zeros(1, np.int32), one, np.zeros(1), one)
