"""What a lane says of itself while it works."""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

State = Literal["opening", "catching up", "running", "waiting", "blocked", "fenced", "stopped"]


@dataclass(slots=True)
class LaneStats:
    """Counters of one lane since it was first opened; read by other threads."""

    state: State = "opening"
    words: str = ""
    opened: int = 0
    records: int = 0
    rejects: int = 0
    alerts: int = 0
    commits: int = 0
    in_flight: int = 0
    keys: int = 0
    labels: dict[str, int] = field(default_factory=lambda: {})  # what became of them
    evicted: int = 0  # keys that were forgotten since the lane was last opened
    version: str = ""
    version_since: dict[str, int] = field(default_factory=lambda: {})  # partition -> first offset
    committed: dict[str, int] = field(default_factory=lambda: {})
    position: dict[str, int] = field(default_factory=lambda: {})
    delay_ms: deque[float] = field(default_factory=lambda: deque(maxlen=512))
    snapshot: str = ""
