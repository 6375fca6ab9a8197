"""What time is it, and who moves it?

Decisions about machines ask a Clock. `SystemClock` is the machine's; `VirtualClock` stands still
until somebody sleeps or advances it, so that an hour of operation is tested in a millisecond.
"""

import threading
import time


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait; nothing to wait for returns at once."""
        if seconds > 0.0:
            time.sleep(seconds)


class VirtualClock:
    """A clock that only `sleep` and `advance` move. Safe to use from several threads."""

    def __init__(self, start_ms: int = 0) -> None:
        self._start_ms = start_ms
        # Whole nanoseconds: a million sleeps of 0.1 s are exactly 100,000 s.
        self._elapsed_ns = 0
        self._lock = threading.Lock()

    def now_ms(self) -> int:
        """Unix milliseconds."""
        with self._lock:
            return self._start_ms + self._elapsed_ns // 1_000_000

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        with self._lock:
            return self._elapsed_ns / 1e9

    def sleep(self, seconds: float) -> None:
        """Advance without waiting."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move the clock forward; it never goes back, a negative time is no time."""
        with self._lock:
            self._elapsed_ns += max(0, round(seconds * 1e9))
