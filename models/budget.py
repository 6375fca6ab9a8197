"""How many incidents a day may a partition open, and which?

`alert.per_day` is shared out evenly: of P partitions, each has share = per_day / P. What it opened
ahead of that is its debt, in incidents; the larger it is, the rarer the next one has to be:

    debt += 1                       an incident opened; at most DEBT_MAX
    debt -= share * time passed     at least 0
    opens where -log10 p >= -log10 probability + 1.5^debt - 1

A leaky bucket whose water is a threshold. What goes in must come out, so where twice as many
incidents would open as may, or more, .89 to 1.00 of the share does (simulated, p uniform, 1e3 to
1e7 records a day), of them 95 % within half a decade of the rarest. The steps grow from half a
decade to a hundred: a flood of p = 1e-10 opens 5, one of 1e-30 opens 9, and no flood more than 15.

Time is that of records, by partition: the clock goes on with the record that is latest, by an hour
at most and by no more than one incident is due in. So a record from the future buys little, one
from the past nothing, and a clock that is ahead by T buys what is due in T, once.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.models.errors import ArtifactError
from raywatch.models.scorer import F64, I32, I64

GROWTH = 1.5
# Here p would have to be 1e-308; none is below 1e-300 (calibrate.STRANGEST). So even a flood of
# those ends; and before a fifth of an incident is due, something so rare can open again.
DEBT_MAX = 14.1
DAY_MS = 86_400_000.0
STEP_MS = 3_600_000  # A partition with a record an hour keeps its clock right.
NEVER = int(np.iinfo(np.int64).min)


class Account(NamedTuple):
    """What the kernels need of a budget, for a batch of N records of P partitions."""

    debt: F64  # (P,) incidents opened ahead of the share
    clock: I64  # (P,) time in ms, NEVER before the first record
    share: float  # incidents a ms; 0: there is no budget, and the last two are empty
    step_ms: int  # most that one record moves the clock
    partition: I32  # (N,) in batch order
    sequence: I64  # (N,) where the records of the batch lie in grouped order


@njit(cache=True, nogil=True)
def allowed(debt: F64, clock: I64, part: int, time_ms: int, share: float, step_ms: int) -> float:
    """The factor by which p has to be below `alert.probability`, at a record of this time."""
    if clock[part] == NEVER:
        clock[part] = time_ms
    ahead = min(time_ms - clock[part], step_ms)
    if ahead > 0:
        clock[part] += ahead
        debt[part] = max(debt[part] - share * ahead, 0.0)
    return 1.0 if debt[part] == 0.0 else 10.0 ** (1.0 - GROWTH ** debt[part])


@njit(cache=True, nogil=True)
def spend(debt: F64, part: int) -> None:
    """An incident opened."""
    debt[part] = min(debt[part] + 1.0, DEBT_MAX)


class Budget:
    """The budget of a lane's partitions. One thread uses it."""

    def __init__(self, per_day: float, of: int, partitions: int) -> None:
        """`per_day` incidents, 0 for any number, of a detector `of` so many partitions.

        `partitions` of them are here.
        """
        assert per_day >= 0.0, per_day
        assert of >= 1, of
        self._share = per_day / of / DAY_MS
        due_ms = 1.0 / self._share if self._share else STEP_MS
        self._step_ms = int(max(1, min(STEP_MS, due_ms)))
        self._debt = np.zeros(partitions)
        self._clock = np.full(partitions, NEVER, np.int64)

    def account(self, partition: I32, order: I64) -> Account:
        """For a batch. `partition`: (N,) of its records, `order`: (N,) grouped to batch order."""
        if not self._share:
            partition, order = partition[:0], order[:0]
        sequence = np.empty(order.shape[0], np.int64)
        sequence[order] = np.arange(order.shape[0])
        part = np.require(partition, np.int32, ["C", "W", "A"])
        return Account(self._debt, self._clock, self._share, self._step_ms, part, sequence)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything remembered, by partition: copies."""
        return {"debt": self._debt.copy(), "clock": self._clock.copy()}

    def load(self, saved: Mapping[str, NDArray[Any]], /) -> None:
        """Replace everything by what `state` gave. Raises ArtifactError."""
        debt, clock = saved["debt"], saved["clock"]
        sound = debt.shape == self._debt.shape and clock.shape == self._clock.shape
        if not sound or not bool(((debt >= 0.0) & (debt <= DEBT_MAX)).all()):
            raise ArtifactError(
                "the budget of a snapshot has numbers that cannot be",
                hint="delete the snapshot: the lane then rebuilds its state from the log",
            )
        self._debt[:], self._clock[:] = debt, clock


def no_budget() -> Account:
    """That of who may open as many as there are."""
    return Budget(0.0, 1, 1).account(np.zeros(0, np.int32), np.zeros(0, np.int64))
