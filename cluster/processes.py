"""Which processes are below this one, and are they gone?

Read from /proc, so Linux only. A process is known by its number and the moment it began: numbers
come again.
"""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

ENDED_S = 15.0  # A process that was told to end is killed after this.


def family(root: int) -> dict[int, int]:
    """Processes below one, and when each began (in ticks since the machine did)."""
    parents: dict[int, tuple[int, int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (stat := _stat(int(entry))):
            parents[int(entry)] = stat
    found: dict[int, int] = {}
    fresh = {root}
    while fresh:
        fresh = {pid for pid, (parent, _) in parents.items() if parent in fresh} - found.keys()
        found |= {pid: parents[pid][1] for pid in fresh}
    return found


def alive(known: Mapping[int, int]) -> list[int]:
    """Which of these processes still run; zombies do not."""
    return sorted(pid for pid, began in known.items() if (s := _stat(pid)) and s[1] == began)


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent and beginning of a process; None where it is no more."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in ("Z", "X") else (int(fields[1]), int(fields[19]))


def age_s() -> float:
    """Seconds since this process began."""
    stat = _stat(os.getpid())
    assert stat is not None
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return up_s - stat[1] / os.sysconf("SC_CLK_TCK")


def ended(known: Mapping[int, int]) -> list[int]:
    """Wait until these processes are gone; kill those that stay, and say which."""
    until = time.monotonic() + ENDED_S
    while (rest := alive(known)) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in rest:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return rest
