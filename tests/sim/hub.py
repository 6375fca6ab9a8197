"""Who runs when, in a world with one thread and a clock of its own?

Everything that waits (a lane's thread, a watchdog, a scorer, a request on its way) is a task on
one heap, ordered by virtual time and then by order of arrival. A task is a greenlet, so production
code that sleeps, joins and waits runs as it is written: where it would block, the hub goes on with
whoever is next. Nothing takes virtual time but waiting. The same calls give the same life.

A `Process` dies (its tasks end where they stand, what they would still do has no effect) or
freezes (as under SIGSTOP: its tasks and what is sent to it wait until it thaws).
"""

import heapq
import itertools
from collections.abc import Callable
from typing import Any

import greenlet

START_MS = 1_790_000_000_000  # The world begins in September 2026.
NEVER_NS = 10**18


class Process:
    """Something that is killed or frozen as a whole."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen_until = 0
        self.cut_until = 0  # nothing it sends arrives until then
        self.tasks: dict[int, Task] = {}
        self.waiting: list[tuple[Task, int]] = []  # due while it was frozen
        self.mourners: list[Callable[[], None]] = []  # called once it is dead


class Task:
    """One thread of a process."""

    __slots__ = ("done", "let", "number", "process", "turn")

    def __init__(
        self, number: int, process: Process, run: Callable[[], None], parent: greenlet.greenlet
    ) -> None:
        self.number, self.process = number, process
        self.turn = 0  # counts waits: a timer of an earlier one is stale
        self.done = False
        self.let = greenlet.greenlet(run, parent)


class Hub:
    """The loop."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.wall_ms = START_MS  # the time of day when the world began, by a clock that is set
        self.steps = 0
        self.current: Task | None = None
        self._heap: list[tuple[int, int, Any, int]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        self.failed: BaseException | None = None
        self._let = greenlet.getcurrent()

    # ---- time ------------------------------------------------------------------------------

    def seconds(self) -> float:
        """Since the world began."""
        return self.now_ns / 1e9

    def at(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call something later, whoever is alive then; it must not wait."""
        when = self.now_ns + max(0, round(delay_s * 1e9))
        heapq.heappush(self._heap, (when, next(self._order), call, 0))

    def sleep(self, seconds: float) -> None:
        """Let others run for so long. A dead process does not wait: it is being unwound."""
        task = self.current
        assert task is not None, "only tasks wait"
        if not task.process.alive:
            return
        task.turn += 1
        # At least a microsecond: where none passes, a loop until a deadline would not end.
        when = self.now_ns + max(1_000, round(seconds * 1e9))
        heapq.heappush(self._heap, (when, next(self._order), task, task.turn))
        self._leave()

    def wake(self, task: Task) -> None:
        """End the wait of a task early."""
        if not task.done:
            heapq.heappush(self._heap, (self.now_ns, next(self._order), task, task.turn))

    def _leave(self) -> None:
        task = self.current
        self._let.switch()
        self.current = task

    # ---- tasks -----------------------------------------------------------------------------

    def spawn(self, process: Process, call: Callable[..., Any], *arguments: Any) -> Task:
        """A new task of a process, to begin now."""

        def run() -> None:
            try:
                call(*arguments)
            except greenlet.GreenletExit:
                pass
            except BaseException as error:
                self.failed = self.failed or error
            finally:
                task.done = True
                process.tasks.pop(task.number, None)

        task = Task(next(self._numbers), process, run, self._let)
        if process.alive:
            process.tasks[task.number] = task
            heapq.heappush(self._heap, (self.now_ns, next(self._order), task, 0))
        else:
            task.done = True
        return task

    def run(self, over: Callable[[], bool], limit_s: float) -> bool:
        """Until `over` is true, which is asked after each step; False: it was not in time."""
        limit = round(limit_s * 1e9)
        heap = self._heap
        while heap:
            when, _, what, turn = heapq.heappop(heap)
            if when > limit:
                heapq.heappush(heap, (when, next(self._order), what, turn))
                return False
            self.now_ns = max(self.now_ns, when)
            self.steps += 1
            if isinstance(what, Task):
                self._resume(what, turn)
            else:
                self.current = None
                what()
            if self.failed is not None:
                raise self.failed
            if over():
                return True
        return False

    def _resume(self, task: Task, turn: int) -> None:
        process = task.process
        if task.done or turn != task.turn or not process.alive:
            return
        if process.frozen_until > self.now_ns:
            process.waiting.append((task, turn))
            return
        self.current = task
        task.let.switch()
        self.current = None

    # ---- death and frost -------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        """End a process where it stands. Returns only to others: its own task ends here."""
        if process.alive:
            process.alive = False
            self.at(0.0, lambda: self._bury(process))
        if self.current is not None and self.current.process is process:
            raise greenlet.GreenletExit

    def _bury(self, process: Process) -> None:
        for task in list(process.tasks.values()):
            if task.let:
                self.current = task
                task.let.throw(greenlet.GreenletExit)
                self.current = None
            task.done = True
        process.tasks.clear()
        for call in process.mourners:
            call()

    def freeze(self, process: Process, seconds: float) -> None:
        """Stop a process for a while; a task of its own stops at its next wait."""
        until = self.now_ns + round(seconds * 1e9)
        process.frozen_until = max(process.frozen_until, until)
        self.at(seconds, lambda: self._thaw(process))

    def _thaw(self, process: Process) -> None:
        if process.frozen_until > self.now_ns:
            return
        waiting, process.waiting = process.waiting, []
        for task, turn in waiting:
            heapq.heappush(self._heap, (self.now_ns, next(self._order), task, turn))


# ---- what production code takes for the machine's -------------------------------------------


class SimClock:
    """The port, and what stands in for the module `time`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self._hub.wall_ms + self._hub.now_ns // 1_000_000

    def monotonic(self) -> float:
        """Seconds."""
        return self._hub.now_ns / 1e9

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self._hub.sleep(seconds)


class SimThreads:
    """What stands in for the module `threading`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def Event(self) -> "SimEvent":  # noqa: N802
        """A flag to wait for."""
        return SimEvent(self._hub)

    def Lock(self) -> "SimLock":  # noqa: N802
        """A lock that lets others run while it is waited for."""
        return SimLock(self._hub)

    def Semaphore(self) -> "SimSemaphore":  # noqa: N802
        """A turn that one takes at a time."""
        return SimSemaphore(self._hub)

    def Thread(  # noqa: N802
        self, target: Callable[..., Any], args: tuple[Any, ...] = (), **_: Any
    ) -> "SimThread":
        """A task of the process that makes it."""
        return SimThread(self._hub, target, args)


class SimThread:
    """A thread."""

    def __init__(self, hub: Hub, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._hub, self._target, self._args = hub, target, args
        self._task: Task | None = None

    def start(self) -> None:
        """Begin."""
        maker = self._hub.current
        assert maker is not None
        self._task = self._hub.spawn(maker.process, self._target, *self._args)

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._task is not None and not self._task.done

    def join(self, timeout: float) -> None:
        """Wait for its end."""
        until = self._hub.seconds() + timeout
        while self.is_alive() and self._hub.seconds() < until:
            self._hub.sleep(0.05)


class SimEvent:
    """A flag."""

    def __init__(self, hub: Hub) -> None:
        self._hub, self._set = hub, False

    def set(self) -> None:
        """Raise it."""
        self._set = True

    def is_set(self) -> bool:
        """Whether it is raised."""
        return self._set

    def wait(self, timeout: float) -> bool:
        """Wait for it; looks often enough for a lane that is told to stop."""
        until = self._hub.seconds() + timeout
        while not self._set and (left := until - self._hub.seconds()) > 0.0:
            self._hub.sleep(min(left, 0.25))
        return self._set


class SimLock:
    """A lock."""

    def __init__(self, hub: Hub) -> None:
        self._hub, self._held = hub, False

    def __enter__(self) -> None:
        while self._held:
            self._hub.sleep(0.001)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


class SimSemaphore:
    """One turn."""

    def __init__(self, hub: Hub) -> None:
        self._hub, self._taken = hub, False

    def acquire(self, *, blocking: bool = True, timeout: float = 1e9) -> bool:
        """Take it. Whether that was possible in time."""
        until = self._hub.seconds() + timeout
        while self._taken and blocking and self._hub.seconds() < until:
            self._hub.sleep(0.01)
        if self._taken:
            return False
        self._taken = True
        return True

    def release(self) -> None:
        """Give it back."""
        self._taken = False


def waiting(hub: Hub) -> Callable[..., None]:
    """What stands in for `concurrent.futures.wait` of one future."""

    def wait(futures: list[Any], seconds: float) -> None:
        until = hub.seconds() + seconds
        while not futures[0].done() and hub.seconds() < until:
            hub.sleep(0.005)

    return wait
