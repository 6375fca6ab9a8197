"""Which offset may be committed?

Batches of a lane are at the scorers at the same time. Kafka's committed offset is one number for
each partition: everything below it is done. The ledger turns completions, in whatever order they
come, into that number. It does no I/O; the lane commits what `committable` says.

    begin(0, 10)  begin(10, 20)  done(10)  -> committable 0    (0..9 are still in flight)
                                 done(0)   -> committable 20   (the gap closed)

Offsets are half-open and may have holes: compaction and transaction markers take offsets that no
record has.
"""

from collections import deque

IN_FLIGHT_MAX = 1_024  # Bounds memory; a lane's own limit on batches in flight is far below.


class Ledger:
    """The in-flight ranges of one partition."""

    def __init__(self, start: int) -> None:
        self.position = start  # end of the newest range
        self.committable = start  # everything below is done
        self._open: deque[list[int]] = deque()  # [begin, end, done] in offset order

    def begin(self, begin: int, end: int) -> None:
        """Offsets [begin, end) left for scoring; `begin` may skip ahead, never back."""
        assert begin >= self.position, f"went back: {begin} < {self.position}"
        assert begin < end, (begin, end)
        assert len(self._open) < IN_FLIGHT_MAX, len(self._open)
        self._open.append([begin, end, 0])
        self.position = end

    def done(self, begin: int) -> int:
        """The range that began at `begin` is finished. Returns what may be committed."""
        for entry in self._open:
            if entry[0] == begin:
                assert not entry[2], f"done twice: {begin}"
                entry[2] = 1
                break
        else:
            raise AssertionError(f"was never begun: {begin}")
        while self._open and self._open[0][2]:
            self.committable = self._open.popleft()[1]
        return self.committable

    def skip(self, position: int) -> int:
        """The reader moved over offsets without records. Returns what may be committed."""
        if position > self.position:
            if self._open:
                self._open.append([self.position, position, 1])
            else:
                self.committable = position
            self.position = position
        return self.committable

    @property
    def in_flight(self) -> int:
        """Ranges that are not finished."""
        return sum(1 for entry in self._open if not entry[2])
