"""Snapshots are stored beside the lanes' threads, one at a time: a slow store delays no record.

One at a time bounds the memory: the copy of one lane's state, and its blob, whatever the number of
lanes. What comes meanwhile is told to come again.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait

from raywatch.actors.ports import Clock, Partition
from raywatch.models.errors import Unreachable

AGAIN_S = 5.0  # Between two attempts to store a state after one that failed.


class Saver:
    """Runs the saving of one owner's lanes. Any thread may ask."""

    def __init__(self, *, beside: bool) -> None:
        """`beside`: in a thread of its own; else `begin` returns when it is over."""
        self._beside = beside
        self._turn = threading.Semaphore()

    def begin(self, save: Callable[[], str], wait_s: float) -> Future[str]:
        """Start `save` once the one before is over. Raises Unreachable when that takes longer."""
        if not self._turn.acquire(timeout=wait_s):
            raise Unreachable(
                f"the store has been busy with another snapshot for over `{wait_s:g}` s",
                hint="look at the store: its disk or network is slower than the state grows",
            )
        future: Future[str] = Future()
        if self._beside:
            # A daemon: a store that never answers must not keep the process from ending.
            threading.Thread(
                target=self._run, args=(save, future), name="snapshot", daemon=True
            ).start()
        else:
            self._run(save, future)
        return future

    def free(self) -> bool:
        """Whether `begin` would start at once (another lane may be quicker)."""
        if not self._turn.acquire(blocking=False):
            return False
        self._turn.release()
        return True

    def _run(self, save: Callable[[], str], future: Future[str]) -> None:
        try:
            name = save()
        except BaseException as error:
            self._turn.release()
            future.set_exception(error)
        else:
            self._turn.release()
            future.set_result(name)


class Saving:
    """What is stored of a lane since it was opened, and what is on its way. One thread uses it."""

    def __init__(
        self, saver: Saver, clock: Clock, every_s: float, saved: Mapping[Partition, int], due: float
    ) -> None:
        """`saved`: where the newest snapshot stands; `due`: monotonic time of the next one."""
        self.saver, self.clock, self.every_s = saver, clock, every_s
        self.saved, self.due = dict(saved), due
        self.name, self.error = "", ""  # of the last one
        self._under_way: tuple[Future[str], dict[Partition, int]] | None = None
        self._not_before = 0.0

    def far(self, position: Mapping[Partition, int]) -> int:
        """Records of the partition that moved farthest since the last snapshot."""
        return max(position[p] - o for p, o in self.saved.items())

    def blocked(self) -> bool:
        """Whether an attempt failed a moment ago."""
        return self.clock.monotonic() < self._not_before

    def wanted(self, position: Mapping[Partition, int], far_max: int) -> bool:
        """Whether a snapshot is due and could start now."""
        far = self.far(position)
        late = far >= far_max or (far > 0 and self.clock.monotonic() >= self.due)
        return late and self._under_way is None and self.saver.free()

    def save(self, save: Callable[[], str], offsets: dict[Partition, int], wait_s: float) -> bool:
        """Store a state that stands at `offsets`. Returns whether it is stored within `wait_s`."""
        self.settle(wait_s)
        try:
            self._under_way = self.saver.begin(save, wait_s), offsets
        except Unreachable as error:
            return self._failed(error)
        return bool(self.settle(wait_s))

    def settle(self, wait_s: float) -> bool | None:
        """Whether the saving that ended was good; None where none ended within `wait_s`.

        Raises what is a bug.
        """
        if self._under_way is None:
            return None
        future, offsets = self._under_way
        if wait_s > 0.0:
            wait([future], wait_s)
        if not future.done():
            return None
        self._under_way = None
        try:
            self.name, self.error = future.result(), ""
        except Unreachable as error:
            return self._failed(error)
        self.saved, self.due = offsets, self.clock.monotonic() + self.every_s
        return True

    def _failed(self, error: Unreachable) -> bool:
        self.error = f"no snapshot: {error.message}"
        self._not_before = self.clock.monotonic() + AGAIN_S
        return False
