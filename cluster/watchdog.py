"""Ends a process whose work stands still, so that whoever watches it starts it again.

It counts its own looks, and asks no clock: neither a wall clock that is set nor a machine that
slept makes work look slow.
"""

import os
import sys
import threading
from collections.abc import Callable

LOOK_S = 1.0


def _die(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
    os._exit(1)


class Watchdog:
    """A thread that has to be fed."""

    def __init__(
        self,
        limit_s: float,
        whom: str,
        *,
        die: Callable[[str], None] = _die,
        look_s: float = LOOK_S,
    ) -> None:
        """`die` is called once `whom` has not fed it for `limit_s` seconds."""
        assert limit_s > look_s > 0.0, (limit_s, look_s)
        self._limit_s, self._whom, self._die, self._look_s = limit_s, whom, die, look_s
        self._looks = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def feed(self) -> None:
        """The work goes on."""
        self._looks = 0

    def close(self) -> None:
        """There is no more work."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self._look_s):
            self._looks += 1
            if self._looks * self._look_s > self._limit_s:
                self._die(f"{self._whom} did nothing for {self._limit_s:.0f} s: the process ends")
                return
