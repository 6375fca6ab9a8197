"""How many incidents a day may a partition open, and which?

`alert.per_day` is shared out evenly: of P partitions, each has share = per_day / P. What it opened
ahead of that is its debt, in incidents; the larger it is, the rarer the next one has to be:

    debt += 1                       an incident opened
    debt -= share * time passed     at least 0
    opens where -log10 p >= -log10 probability + growth^debt - 1
    growth = 304^(1 / room)         room: 3 incidents and a day's share, 14 at most

A leaky bucket whose water is a threshold: what goes in must come out, so no T days of a partition
have more than share * T + room + 1 incidents. Simulated with p drawn evenly: of the share, .83 to
1.00 opens where three times as many would without a budget, .98 to 1.00 where ten times; half to
.95 of them are within half a decade of the rarest. Of a flood, whatever its p, `room` open, rounded
up. A line that only rises by a fixed step would open more in every flood, or be slow to come down:
models call a clear step of a thousand keys 1e-299 each (calibrate.STRANGEST is where they end).

There is no p that always opens: it would be that of such floods. But who was never so rare waits
for one incident to be due, at most, and an incident that goes on opens then.

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

ROOM_MIN, ROOM_MAX = 3.0, 14.0  # More would only make finer steps of the same rise.
TOP = 304.0  # decades that `room` incidents add, and one: more than any p has (promise.kept: 303)
DAY_MS = 86_400_000.0
STEP_MS = 3_600_000  # A partition with a record an hour keeps its clock right.
NEVER = int(np.iinfo(np.int64).min)


class Account(NamedTuple):
    """What the kernels need of a budget, for a batch of N records of P partitions."""

    debt: F64  # (P,) incidents opened ahead of the share
    clock: I64  # (P,) time in ms, NEVER before the first record
    share: float  # incidents a ms; 0: there is no budget, and the last two are empty
    step_ms: int  # most that one record moves the clock
    growth: float  # of the decades that p has to be rarer, by incident of debt
    partition: I32  # (N,) in batch order
    sequence: I64  # (N,) where the records of the batch lie in grouped order


@njit(cache=True, nogil=True)
def allowed(
    debt: F64, clock: I64, part: int, time_ms: int, share: float, step_ms: int, growth: float
) -> float:
    """The factor by which p has to be below `alert.probability`, at a record of this time."""
    if clock[part] == NEVER:
        clock[part] = time_ms
    ahead = min(time_ms - clock[part], step_ms)
    if ahead > 0:
        clock[part] += ahead
        debt[part] = max(debt[part] - share * ahead, 0.0)
    return 1.0 if debt[part] == 0.0 else 10.0 ** (1.0 - growth ** debt[part])


@njit(cache=True, nogil=True)
def spend(debt: F64, part: int) -> None:
    """An incident opened."""
    debt[part] = min(debt[part] + 1.0, ROOM_MAX + 1.0)


class Budget:
    """The budget of a lane's partitions. One thread uses it."""

    def __init__(self, per_day: float, of: int, partitions: int) -> None:
        """`per_day` incidents, 0 for any number, of a detector `of` so many partitions.

        `partitions` of them are here.
        """
        assert per_day >= 0.0, per_day
        assert of >= 1, of
        self._share = per_day / of / DAY_MS
        self._room = min(ROOM_MIN + per_day / of, ROOM_MAX)
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
        growth = TOP ** (1.0 / self._room)
        return Account(self._debt, self._clock, self._share, self._step_ms, growth, part, sequence)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything remembered, by partition: copies."""
        return {"debt": self._debt.copy(), "clock": self._clock.copy()}

    def load(self, saved: Mapping[str, NDArray[Any]], /) -> None:
        """Replace everything by what `state` gave. Raises ArtifactError."""
        debt, clock = saved["debt"], saved["clock"]
        sound = debt.shape == self._debt.shape and clock.shape == self._clock.shape
        if not sound or not bool(((debt >= 0.0) & (debt <= ROOM_MAX + 1.0)).all()):
            raise ArtifactError(
                "the budget of a snapshot has numbers that cannot be",
                hint="delete the snapshot: the lane then rebuilds its state from the log",
            )
        # Another `per_day` may have less room: nobody is to be silent for longer than it says.
        self._debt[:], self._clock[:] = np.minimum(debt, self._room + 1.0), clock


def no_budget() -> Account:
    """That of who may open as many as there are."""
    return Budget(0.0, 1, 1).account(np.zeros(0, np.int32), np.zeros(0, np.int64))
