"""The five ports: Source, Sink, Pool, Store, Clock.

Each has two real implementations: Apache Kafka (`kafka.py`) and the embedded log (`embedded.py`)
for Source and Sink, Ray scorers (`runtime.py`) and scoring in process (`pool.py`) for Pool, a
folder or bucket and memory for Store, the machine's and a virtual one for Clock. Fakes exist only
here, in `testing.py`. `Log` is where Sources and Sinks come from.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from raywatch.models.scorer import I32, I64, Scores, Segments


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.number}"


class Committed(NamedTuple):
    """A committed offset (next to read) and the note that was committed with it."""

    offset: int
    note: str = ""


class Bounds(NamedTuple):
    """First offset that is retained and the end: next offset to be written and stable."""

    low: int
    end: int


Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """Records as they came, one entry a record in each column; N may be 0.

    Within a partition, records are in offset order; offsets may have holes.
    """

    partition: I32  # (N,) index into the lane's tuple of partitions
    offset: I64  # (N,)
    time_ms: I64  # (N,) the log's own timestamp, -1 where it has none
    values: list[bytes | None]  # (N,) None is a tombstone
    keys: list[bytes | None]  # (N,), or empty where the source was opened without keys
    headers: list[Headers] = field(default_factory=list[Headers])  # (N,), or empty, like keys
    nbytes: int = 0  # of all values and keys

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Out:
    """A record to be written."""

    topic: str
    key: bytes
    value: bytes | None  # None is a tombstone
    headers: Headers = ()


class Source(Protocol):
    """Reads the partitions of one lane. One thread uses it. Never joins a group."""

    def committed(self) -> dict[Partition, Committed]:
        """What the group has committed; partitions without a commit are left out.

        Waits for open transactions on the group's offsets to end. Raises Unreachable.
        """
        ...

    def bounds(self) -> dict[Partition, Bounds]:
        """Retained range of each partition (end: last stable offset). Raises Unreachable."""
        ...

    def assign(self, begin: Mapping[Partition, int]) -> None:
        """Start reading each partition at its offset. Raises LaneLost where it is not retained."""
        ...

    def fetch(self, limit: int, wait_s: float) -> Fetched:
        """Up to `limit` records; returns early with what is there once `wait_s` is over.

        A fetch is bounded in bytes, too (see fetching.py). Raises LaneLost when an offset is no
        longer retained.
        """
        ...

    def position(self) -> dict[Partition, int]:
        """Next offset of each partition that was read, markers and holes behind it included."""
        ...

    def close(self) -> None:
        """Let go; idempotent."""
        ...


class Reader(Source, Protocol):
    """A Source that is a client of the log itself."""

    def hold(self, partitions: Collection[Partition]) -> None:
        """Read no more of these, and of all others, from here on; none are held at first.

        A fetch may still have some that came before. Each `assign` begins anew.
        """
        ...


class Sink(Protocol):
    """Writes records and commits offsets of one lane. One thread uses it."""

    @property
    def exactly_once(self) -> bool:
        """Whether records and offsets are one transaction, or only ordered (at least once)."""
        ...

    def open(self) -> None:
        """Fence every earlier holder of this lane. Raises Unreachable, ConfigError (rights)."""
        ...

    def transact(
        self, out: Sequence[Out], offsets: Mapping[Partition, Committed], source: Source
    ) -> None:
        """Write `out` and commit `offsets` in one transaction; returns when both are durable.

        Raises Fenced (another holder), LaneLost (undone, or nobody knows: open the lane anew with
        a new Sink), ConfigError (a right or topic is missing).
        """
        ...

    def calling_since(self) -> float | None:
        """`time.monotonic()` at the start of the client call in progress; any thread may ask.

        Client libraries have calls that outlive their own time-outs: a watchdog looks here.
        """
        ...

    def close(self) -> None:
        """Let go; idempotent. An open transaction is left to be aborted."""
        ...


class Log(Protocol):
    """Kafka or the embedded log. Safe to use from several threads."""

    def source(self, group: str, partitions: Sequence[Partition], *, keys: bool = False) -> Reader:
        """A reader of these partitions (read_committed). `group` is whose commits it asks for.

        `keys` asks for keys and headers; an empty `group` is one that only looks.
        """
        ...

    def sink(self, lane: str, group: str) -> Sink:
        """A writer; `lane` is its transactional id, `group` the group whose offsets it commits."""
        ...

    def topics(self) -> dict[str, int]:
        """Topics and their numbers of partitions. Raises Unreachable."""
        ...

    def create(
        self, topic: str, partitions: int, settings: Mapping[str, str] | None = None
    ) -> None:
        """Create a topic if it is not there. Raises Unreachable, ConfigError."""
        ...

    def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, Bounds]:
        """Retained ranges; a partition that could not be asked is left out (unknown is not 0)."""
        ...

    def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        """Committed offsets of any group, not waiting for open transactions."""
        ...

    def members(self, group: str) -> list[str]:
        """Live members of a group that subscribed; raywatch itself never is one."""
        ...

    def write(self, out: Sequence[Out]) -> None:
        """Write records outside any lane, durably (journal, demo feed). Raises Unreachable."""
        ...

    def close(self) -> None:
        """Let go; idempotent."""
        ...


class Ticket(NamedTuple):
    """A batch that was handed to a pool."""

    number: int
    version: str


class Pool(Protocol):
    """Scores batches somewhere. Each lane has its own; one thread uses it."""

    def submit(self, segments: Segments, version: str) -> Ticket:
        """Hand in a batch for one model version; does not wait."""
        ...

    def result(self, ticket: Ticket, wait_s: float) -> Scores | None:
        """Its scores, or None if they are not there within `wait_s`.

        A scorer that died or hangs is not an error: the batch goes to another one. With no scorer
        left the answer stays None: a lane waits, it never skips.
        """
        ...

    def forget(self) -> None:
        """Drop every batch in flight (the lane starts anew)."""
        ...


class Store(Protocol):
    """Named blobs: snapshots and artifacts. Names are paths with `/`."""

    def put(self, name: str, blob: bytes) -> None:
        """Write atomically: a reader sees the old blob, the new one or none. Raises Unreachable."""
        ...

    def get(self, name: str) -> bytes | None:
        """The blob, or None."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Names that start with `prefix`, sorted."""
        ...

    def delete(self, name: str) -> None:
        """Delete if it is there."""
        ...


class Clock(Protocol):
    """Time for decisions about machines. Records have a time of their own."""

    def now_ms(self) -> int:
        """Unix milliseconds."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...
