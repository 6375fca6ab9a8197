"""How each fault of `cluster/drills/faults.py` is done to a rig, undone, and what came of it.

Whatever is done here is done the way it happens: signals to processes, a disk without a block, a
file system that is frozen, a clock that jumps. A fault is over when every lane that was hurt has
said something about records that were written after it, when the journal has said its sentence,
and when the rig is whole again.
"""

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress

from chaos.rig import PARTITIONS, REPLICAS, Rig, running, until
from confluent_kafka.admin import NewPartitions
from service import Service

from raywatch.cluster import runtime
from raywatch.cluster.drills.faults import Fault
from raywatch.cluster.drills.story import TELL_S, Story

GIVE_UP_S = 75.0  # lanes that did not speak for so long are taken to be lost
ADDED = 2  # partitions at a time
HOUR_S = 3_600.0


def java_hash(text: str) -> int:
    """Java's String.hashCode, as a signed 32-bit number."""
    code = 0
    for each in text:
        code = (31 * code + ord(each)) & 0xFFFFFFFF
    return code - (1 << 32) if code >= 1 << 31 else code


def coordinator_partition(transactional_id: str, partitions: int) -> int:
    """The partition of `__transaction_state` whose leader coordinates it (Kafka's Utils.abs)."""
    return (java_hash(transactional_id) & 0x7FFFFFFF) % partitions


class Gate:
    """Faults of processes go through together; what ends them all goes through alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside, self._wanted = 0, False

    @contextmanager
    def together(self) -> Generator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._wanted)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Generator[None]:
        with self._changed:
            self._wanted = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._wanted = False
                self._changed.notify_all()


class Doer:
    """Does faults to a rig, several at a time where they do not exclude each other."""

    def __init__(self, rig: Rig, *, calm: bool) -> None:
        self.rig, self._gate, self._calm = rig, Gate(), calm
        self.undisturbed: list[tuple[float, float]] = []  # seconds to the first, and every lane

    def do(self, fault: Fault) -> Story:
        """One fault, from the pause before it to the recovery."""
        time.sleep(fault.after_s)
        if self._calm:
            until(self.rig.at_rest, 120.0, "everything at rest before the next fault")
            self.undisturbed.append(self._nothing())
        doing = getattr(self, fault.name.replace("-", "_"))
        if fault.name.startswith(("partitions", "offsets", "cluster")):
            with self._gate.alone():
                return doing(fault)
        if fault.name.startswith(("owner", "scorer", "supervisor")):
            with self._gate.together():
                return doing(fault)
        return doing(fault)

    # ---- what all have in common -------------------------------------------------------------

    def _follow(
        self,
        fault: Fault,
        target: str,
        hurt: Sequence[str],
        act: Callable[[], Callable[[], None] | None],
        *,
        waits: bool = False,
    ) -> Story:
        """Do it, undo it after its time, and wait until the lanes that were hurt speak again.

        `act` does it and returns what undoes it, None where nobody has to.
        """
        rig = self.rig
        sent = rig.feed.say("mark")
        at_s = time.monotonic()
        undo = act()
        undone_s = at_s
        if undo is not None:
            time.sleep(max(0.0, at_s + fault.seconds - time.monotonic()))
            undo()
            undone_s = time.monotonic()
        return self._recovered(fault, target, hurt, sent, (at_s, undone_s), waits=waits)

    def _recovered(
        self,
        fault: Fault,
        target: str,
        hurt: Sequence[str],
        sent: Sequence[int],
        times: tuple[float, float],
        *,
        waits: bool,
    ) -> Story:
        rig, (at_s, undone_s) = self.rig, times
        spoke = self._spoke(hurt, sent, at_s)
        end = time.monotonic() + TELL_S
        pattern = fault.kind.says
        while pattern and time.monotonic() < end:
            heard = [h for h in rig.watcher.heard()[-200:] if h.at_s >= at_s]
            if any(re.search(pattern, h.words) for h in heard):
                break
            time.sleep(0.1)
        return Story(fault, target, at_s, undone_s, tuple(hurt), spoke, waits)

    def _spoke(self, hurt: Sequence[str], sent: Sequence[int], at_s: float) -> dict[str, float]:
        """When lanes first said something about records that were written after `sent`."""
        rig = self.rig
        sent = [*sent, *[0] * (rig.partitions - len(sent))]
        lanes, spoke = rig.lanes(), dict[str, float]()
        end = time.monotonic() + GIVE_UP_S
        while len(spoke) < len(hurt) and time.monotonic() < end:
            for lane in hurt:
                if lane not in spoke:
                    came = rig.watcher.first(lanes[lane], at_s, sent)
                    if came is not None:
                        spoke[lane] = came
            time.sleep(0.05)
        return spoke

    def _nothing(self) -> tuple[float, float]:
        """What a recovery of no time would show: alerts come when there is something to say."""
        sent, at_s = self.rig.feed.say("mark"), time.monotonic()
        times = self._spoke(self._every(), sent, at_s).values()
        return min(times) - at_s, max(times) - at_s

    def _every(self) -> list[str]:
        return list(self.rig.lanes())

    # ---- processes ---------------------------------------------------------------------------

    def owner_kill(self, fault: Fault) -> Story:
        name, pid, lanes = fault.chosen(self.rig.alive("owner"))
        return self._follow(fault, name, lanes, lambda: os.kill(pid, signal.SIGKILL))

    def scorer_kill(self, fault: Fault) -> Story:
        name, pid, _ = fault.chosen(self.rig.alive("scorer"))
        return self._follow(fault, name, self._every(), lambda: os.kill(pid, signal.SIGKILL))

    def scorers_kill(self, fault: Fault) -> Story:
        there = self.rig.alive("scorer")

        def act() -> None:
            for _, pid, _ in there:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        return self._follow(fault, f"{len(there)} of them", self._every(), act)

    def supervisor_kill(self, fault: Fault) -> Story:
        pid = 0

        def ask() -> bool:
            nonlocal pid
            pid = runtime.call(runtime.supervisor(), "pid", timeout_s=5.0)
            return running(pid)

        until(ask, 60.0, "a supervisor that lives")
        return self._follow(fault, "", self._every(), lambda: os.kill(pid, signal.SIGKILL))

    def owner_freeze(self, fault: Fault) -> Story:
        name, pid, lanes = fault.chosen(self.rig.alive("owner"))
        return self._follow(fault, name, lanes, lambda: _frozen(pid))

    owner_pause = owner_freeze

    def scorer_freeze(self, fault: Fault) -> Story:
        name, pid, _ = fault.chosen(self.rig.alive("scorer"))
        return self._follow(fault, name, self._every(), lambda: _frozen(pid))

    # ---- brokers -----------------------------------------------------------------------------

    def broker_leader(self, fault: Fault) -> Story:
        able = sorted(set(self._asked(lambda: self.rig.leaders("events")).values()))
        return self._broker(fault, fault.chosen(able))

    def broker_coordinator(self, fault: Fault) -> Story:
        leaders = self._asked(lambda: self.rig.leaders("__transaction_state"))
        spec = self.rig.service.spec
        lane = fault.chosen(range(spec.lanes))
        node = leaders[coordinator_partition(spec.lane_id(lane), len(leaders))]
        return self._broker(fault, node)

    def _broker(self, fault: Fault, node: int) -> Story:
        def act() -> Callable[[], None]:
            self.rig.brokers.kill(node)
            return lambda: self.rig.brokers.start(node)

        story = self._follow(fault, f"broker {node}", self._every(), act)
        self._whole()
        return story

    def brokers_rolling(self, fault: Fault) -> Story:
        def act() -> Callable[[], None]:
            for node in self.rig.brokers.nodes:
                self.rig.brokers.kill(node)
                time.sleep(1.0)
                self.rig.brokers.start(node)
                self._whole()
            return lambda: None

        return self._follow(fault, "1, 2, 3", self._every(), act, waits=True)

    def brokers_all(self, fault: Fault) -> Story:
        def act() -> Callable[[], None]:
            for node in self.rig.brokers.nodes:
                self.rig.brokers.kill(node)
            return self.rig.brokers.start

        story = self._follow(fault, f"all {REPLICAS}", self._every(), act, waits=True)
        self._whole()
        return story

    def _whole(self) -> None:
        """Nothing is killed again before every replica is back: two of three may never be away."""
        until(self.rig.whole, 90.0, "all replicas in sync")

    @staticmethod
    def _asked(ask: Callable[[], dict[int, int]]) -> dict[int, int]:
        found: dict[int, int] = {}

        def look() -> bool:
            found.update(ask())
            return bool(found) and min(found.values()) > 0

        until(look, 60.0, "leaders of all partitions")
        return found

    # ---- store, clock, retention -------------------------------------------------------------

    def store_full(self, fault: Fault) -> Story:
        def act() -> Callable[[], None]:
            self.rig.disk.fill()
            return self.rig.disk.empty

        return self._follow(fault, "", self._every(), act)

    def store_slow(self, fault: Fault) -> Story:
        def act() -> Callable[[], None]:
            self.rig.disk.freeze()
            return self.rig.disk.thaw

        return self._follow(fault, "", self._every(), act, waits=True)

    def clock_jump(self, fault: Fault) -> Story:
        ahead = dict(fault.parameters)["ahead"]

        def act() -> Callable[[], None]:
            self.rig.clock.jump(ahead * HOUR_S)
            return lambda: self.rig.clock.jump(0.0)

        return self._follow(fault, f"{ahead:+.0f} h", self._every(), act)

    def retention(self, fault: Fault) -> Story:
        below = self.rig.snapshots()
        return self._follow(
            fault, f"{sum(below.values())} records", self._every(), lambda: self.rig.delete(below)
        )

    # ---- what ends the deployment ------------------------------------------------------------

    def partitions_added(self, fault: Fault) -> Story:
        rig = self.rig
        sent = rig.feed.say("mark")
        at_s = time.monotonic()
        rig.partitions += ADDED
        asked = [NewPartitions(rig.topic, rig.partitions)]

        def created() -> bool:
            if len(rig.leaders(rig.topic)) < rig.partitions:
                for future in rig.admin().create_partitions(asked, request_timeout=10.0).values():
                    future.result(15.0)
            return len(rig.leaders(rig.topic)) == rig.partitions

        until(created, 60.0, "partitions added")
        rig.feed.say(f"more {ADDED}")
        pattern = fault.kind.says

        def told() -> bool:
            return any(h.at_s >= at_s and re.search(pattern, h.words) for h in rig.watcher.heard())

        until(told, 60.0, "the journal speaks of partitions that nobody reads")
        self._again(stop=False)
        times = at_s, time.monotonic()
        return self._recovered(fault, f"+{ADDED}", self._every(), sent, times, waits=True)

    def offsets_expired(self, fault: Fault) -> Story:
        """Everything ends, and while it is down retention takes what nobody has read."""
        rig, chance = self.rig, random.Random(fault.seed)
        # A lane that is stopped while it opens leaves no snapshot of where it stands: what the next
        # one had to read back would be gone too, and its history would have a hole.
        until(rig.at_rest, 90.0, "every lane at work before all is stopped")
        at_s = time.monotonic()
        late = rig.service.stop()
        assert not late, f"owners that did not finish: {late}"
        time.sleep(1.5)  # so much comes meanwhile
        sent = rig.feed.say("pause")
        committed = rig.committed()
        assert len(committed) == rig.partitions, committed
        victims = chance.sample(range(PARTITIONS), 3)
        below = {
            p: committed[p] + chance.randint(1, max(1, sent[p] - committed[p])) for p in victims
        }
        rig.delete(below)
        for partition, offset in below.items():
            rig.deleted.setdefault(partition, []).append((committed[partition], offset))
        rig.feed.say("go")
        self._again(stop=True)
        times = at_s, time.monotonic()
        gone = sum(offset - committed[p] for p, offset in below.items())
        return self._recovered(fault, f"{gone} records", self._every(), sent, times, waits=True)

    def cluster_kill(self, fault: Fault) -> Story:
        """Everything but Kafka is gone, and is started again from nothing."""
        rig, sent = self.rig, self.rig.feed.say("mark")
        with rig.asker.ray:
            at_s = time.monotonic()
            rig.kill_ray()
            rig.lose_store()
            rig.start_ray()
            self._again(stop=False)
        times = at_s, time.monotonic()
        return self._recovered(fault, "", self._every(), sent, times, waits=False)

    def _again(self, *, stop: bool) -> None:
        """Deploy the same config: what runs is ended by `start`, where it was not before."""
        rig, before = self.rig, self.rig.service
        rig.service = Service(rig.settings)
        rig.service.start()
        if not stop:
            before.log.close()


def _frozen(pid: int) -> Callable[[], None]:
    os.kill(pid, signal.SIGSTOP)

    def thaw() -> None:
        with suppress(ProcessLookupError):  # the supervisor ended it
            os.kill(pid, signal.SIGCONT)

    return thaw
