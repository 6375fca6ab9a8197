"""A store that fails: it refuses, is slow, keeps half a blob, forgets one, lists what was.

`put` and `names` may lie only where the life says so (`faults.LIES`): nothing can be promised of a
version change whose snapshot a store confirmed and lost.
"""

from collections.abc import Callable

from raywatch.actors.store import MemoryStore
from raywatch.models.errors import Unreachable
from sim.faults import Fault, Plan
from sim.hub import Hub, Process
from sim.network import LONG_S


class SimStore:
    """One store for all processes; each has its own view of it (`of`)."""

    def __init__(self, hub: Hub, plan: Plan, told: Callable[..., None]) -> None:
        self.hub, self.plan, self.told = hub, plan, told
        self.blobs = MemoryStore()
        self.listed: list[str] = []  # what a stale list shows

    def of(self, process: Process) -> "StoreClient":
        """As a process reaches it."""
        return StoreClient(self, process)


class StoreClient:
    """The port."""

    def __init__(self, store: SimStore, process: Process) -> None:
        self._store, self._process = store, process

    def _call(self, operation: str) -> Fault | None:
        """Time that a call takes; what befalls it. Raises Unreachable."""
        hub, process = self._store.hub, self._process
        fault = self._store.plan.draw(f"{process.name}/store/{operation}", operation)
        kind, size = (fault.kind, fault.size) if fault is not None else ("", 0.0)
        if kind == "killed before":
            hub.kill(process)
        if kind == "frozen before":
            hub.freeze(process, LONG_S * size)
        hub.sleep(0.001 + (2.0 * size if kind == "slow" else 0.0))
        if kind == "fails":
            raise Unreachable("store: simulated failure")
        return fault

    def _after(self, fault: Fault | None) -> None:
        hub = self._store.hub
        if fault is None or not self._process.alive:
            return
        if fault.kind == "killed after":
            hub.kill(self._process)
        elif fault.kind == "frozen after":
            hub.freeze(self._process, LONG_S * fault.size)
            hub.sleep(0.0)
        elif fault.kind == "fails late":
            raise Unreachable("store: simulated silence after the write")

    def put(self, name: str, blob: bytes) -> None:
        """See `Store`."""
        fault = self._call("put")
        if not self._process.alive:
            return
        store, kind = self._store, fault.kind if fault is not None else ""
        store.listed = store.blobs.names("")
        if kind == "torn":
            store.blobs.put(name, blob[: round(len(blob) * fault.size)] if fault else b"")
        elif kind != "lost":
            store.blobs.put(name, blob)
        store.told("put", self._process.name, name, kind)
        self._after(fault)

    def get(self, name: str) -> bytes | None:
        """See `Store`."""
        fault = self._call("get")
        found = self._store.blobs.get(name)
        self._after(fault)
        return None if fault is not None and fault.kind == "nothing" else found

    def names(self, prefix: str) -> list[str]:
        """See `Store`."""
        fault = self._call("names")
        stale = fault is not None and fault.kind == "stale"
        listed = self._store.listed if stale else self._store.blobs.names(prefix)
        self._after(fault)
        return [name for name in listed if name.startswith(prefix)]

    def delete(self, name: str) -> None:
        """See `Store`."""
        fault = self._call("delete")
        if self._process.alive and not (fault is not None and fault.kind == "lost"):
            self._store.blobs.delete(name)
        self._after(fault)
