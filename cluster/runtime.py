"""The only importer of ray in the cluster room: joins clusters, creates, asks and ends actors.

Everything here answers within a time-out or says that it did not. What to start, ask and stop is
decided elsewhere (`supervisor.py` and the pure functions that it calls).
"""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray._private.state as ray_state
import ray._private.worker as ray_worker
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raywatch.actors import runtime as actors
from raywatch.actors.owner import OwnerReport, Roster
from raywatch.actors.ports import Clock, Partition
from raywatch.actors.scorer import ScorerReport
from raywatch.actors.spec import DetectorSpec
from raywatch.models.errors import ConfigError, RaywatchError, Unreachable

CONNECT_S = 30.0
KNOCK_S = 5.0
CALL_S = 20.0
LOOK_S = 5.0  # Between two looks at what machines have left.
PAUSE_S = 0.05  # Shortest time between two rounds: whoever dies again and again must not fill it.
CLUSTERED: bool = ray_constants.ENABLE_RAY_CLUSTER  # whether Ray has clusters on this platform


def start_local(cpus: int) -> None:
    """A Ray of our own on this machine and for it alone, for `run`, `demo` and tests.

    It listens on loopback, and asks for the token in ~/.ray/auth_token, which Ray makes.
    """
    _quiet()
    _on_loopback(alone=True)
    # Ray's 15 would let whatever else runs here go first: an alert is not batch work.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  this is its name
    ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, namespace=actors.NAMESPACE,
    )  # fmt: skip
    _keep_token()


def _keep_token() -> None:
    """Ray makes its token readable by everybody (2.60)."""
    with suppress(OSError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


def connect(address: str) -> None:
    """Join a running cluster, with the token of this machine if it has one. Raises Unreachable."""
    _quiet()
    try:
        _on_loopback(alone=_is_alone(address))
        _knock(address)
        ray.init(
            address=address, log_to_driver=False, logging_level=logging.ERROR,
            namespace=actors.NAMESPACE,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError, RayError) as error:
        why = " ".join(str(error).split())
        raise Unreachable(
            f"no Ray cluster answered at `{address}`: {why[:300]}",
            hint="start one with `ray up configs/ray-local.yaml`, or `ray start --head`; with "
            "token authentication the token must be on this machine too",
        ) from error


def _knock(address: str) -> None:
    """Ask the head before Ray does, which would try for 20 s, or end this process (2.60)."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    _refuse_guess(address)
    head = services.canonicalize_bootstrap_address_or_die(address)
    host, _, port = head.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    nodes = GcsClient(address=head).get_all_node_info(timeout=CONNECT_S).values()
    if not any(Path(node.raylet_socket_name).exists() for node in nodes):
        raise ConnectionError("this machine is not one of its machines; `ray exec` runs there")


def _refuse_guess(address: str) -> None:
    """`auto` is what `ray start` noted, or the only Ray here: of several, Ray would take any."""
    found = sorted(services.find_gcs_addresses())
    if address == "auto" and len(found) > 1 and not services.find_bootstrap_address(None):
        raise ConfigError(
            f"several Ray clusters run on this machine: {', '.join(found[:10])}",
            hint="say which with `--address`; `raywatch run` said its own when it started",
        )


def address() -> str:
    """Where others find the cluster that this process is in, host:port."""
    return str(ray.get_runtime_context().gcs_address)


def joined() -> bool:
    """Whether this process is in a cluster."""
    return ray.is_initialized()


def leave() -> None:
    """Leave the cluster; a local one ends."""
    ray.shutdown()
    _on_loopback(alone=False)


def _on_loopback(*, alone: bool) -> None:
    """Whether Ray is for this machine alone: it then listens on 127.0.0.1, and nowhere else.

    Elsewhere it takes 127.0.0.1 for the machine's address among others. Ray has this for Windows
    and macOS, as a constant here (2.60) and as a variable for the processes that it starts.
    """
    ray_constants.ENABLE_RAY_CLUSTER = CLUSTERED and not alone
    if alone:
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    elif CLUSTERED:
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "1"


def _is_alone(address: str) -> bool:
    """Whether the cluster there listens on loopback only, as `start_local` makes it."""
    finder: Any = services.find_gcs_addresses  # it remembers what it found
    finder.cache_clear()
    found: str | None = address
    if address == "auto":
        found = services.get_ray_address_from_environment(address, None)
    host, _, port = (found or "").rpartition(":")
    return host in ("127.0.0.1", "localhost") and f"127.0.0.1:{port}" in finder()


def _quiet() -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    # Ray prints the death of every worker to our stdout, whatever `log_to_driver` says: stdout is
    # data here, and the journal says it in one sentence.
    silent: dict[str, Any] = ray_worker.__dict__
    silent["print_to_stdstream"] = lambda *_, **__: None


@dataclass(slots=True)
class Post:
    """An actor and what is known of it."""

    name: str
    handle: Any
    started: float  # monotonic seconds
    report: Any = None
    heard: float | None = None  # when the last report came
    gone: str = ""  # why it is no more
    asked: float | None = None  # when the report that is under way was asked for
    ref: Any = None  # the future of that report
    vigil: Any = None  # the future of a call that ends when its process does

    @property
    def unreachable(self) -> bool:
        """Whether it was heard of and cannot be asked any more; Ray does not know yet why."""
        return self.heard is not None and self.report is None and not self.gone

    def silent_s(self, now: float) -> float:
        """How long a report has been owed."""
        return 0.0 if self.asked is None else now - self.asked


class Crew:
    """The owners and scorers of a deployment, by name."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.posts: dict[str, Post] = {}
        self._free: dict[str, dict[str, float]] = {}  # machine -> what it has left
        self._looked = float("-inf")
        self._stirred = threading.Event()  # somebody died: a reason to ask before it is time

    def adopt(self, prefix: str) -> list[str]:
        """Take over the actors that an earlier supervisor left."""
        for name in list_named_actors():
            if name.startswith(prefix) and name not in self.posts:
                try:
                    self._add(name, actors.find(name))
                except Unreachable:
                    continue  # it died between the two calls
        return sorted(name for name in self.posts if name.startswith(prefix))

    def start_owner(
        self,
        name: str,
        *,
        spec: DetectorSpec,
        lanes: Mapping[int, tuple[Partition, ...]],
        log: actors.LogSpec,
        store: str,
        cpus: float,
        parked: bool,
        avoid: str,
    ) -> None:
        """Create an owner; its first report says when it is up."""
        handle = actors.start_owner(
            name, spec=spec, lanes=lanes, log=log, store=store, cpus=cpus, parked=parked,
            avoid=avoid,
        )  # fmt: skip
        self._add(name, handle)

    def start_scorer(self, name: str, *, blob: bytes, device: str, cpus: float, avoid: str) -> None:
        """Create a scorer; its first report says that it is warm."""
        handle = actors.start_scorer(
            name, blob=blob, device=device, cpus=cpus, gpus=_gpus(device), avoid=avoid
        )
        self._add(name, handle)

    def room(self, cpus: float, device: str = "cpu") -> frozenset[str]:
        """Machines that have room for an actor, as of LOOK_S ago at most."""
        wanted, now = {"CPU": cpus, "GPU": _gpus(device)}, self._clock.monotonic()
        if now - self._looked > LOOK_S:
            self._free, self._looked = ray_state.available_resources_per_node(), now
        return frozenset(
            node
            for node, has in self._free.items()
            if all(has.get(what, 0.0) >= amount for what, amount in wanted.items())
        )

    def _add(self, name: str, handle: Any) -> None:
        self.posts[name] = Post(name, handle, self._clock.monotonic())

    def ask(self, wait_s: float) -> None:
        """Collect reports; an actor owes at most one. Waits at most `wait_s`."""
        self._stirred.clear()
        now = self._clock.monotonic()
        for post in self.posts.values():
            if post.ref is None and not post.gone:
                try:
                    self._keep_vigil(post)
                    post.ref = post.handle.report.remote().future()
                    post.asked = now if post.asked is None else post.asked
                except RayError as error:
                    post.gone = type(error).__name__
        owed = {post.ref: post for post in self.posts.values() if post.ref is not None}
        if not owed:
            return
        ready, _ = futures.wait(owed, wait_s)
        for ref in ready:
            post = owed[ref]
            post.ref = None
            try:
                post.report, post.asked = ref.result(), None
                post.heard = self._clock.monotonic()
            except RayTaskError as error:
                post.gone = f"its constructor failed: {error.cause}"
            except ActorUnavailableError:
                post.report = None  # and it still owes one
            except RayActorError as error:
                post.gone = _cause(error)
            except RayError as error:
                post.gone = type(error).__name__

    def rest(self, wait_s: float) -> None:
        """Wait for the next round, no longer than until somebody dies."""
        time.sleep(PAUSE_S)
        self._stirred.wait(max(0.0, wait_s - PAUSE_S))

    def _keep_vigil(self, post: Post) -> None:
        if post.vigil is None or post.vigil.done():
            post.vigil = post.handle.vigil.remote().future()
            post.vigil.add_done_callback(lambda _: self._stirred.set())

    def owners(self) -> dict[str, OwnerReport]:
        """Last report of each owner that lives."""
        found = {n: p.report for n, p in self.posts.items() if not p.gone}
        return {n: r for n, r in found.items() if isinstance(r, OwnerReport)}

    def scorers(self) -> dict[str, ScorerReport]:
        """Last report of each scorer that lives."""
        found = {n: p.report for n, p in self.posts.items() if not p.gone}
        return {n: r for n, r in found.items() if isinstance(r, ScorerReport)}

    def enlist(self, owner: str, roster: Roster, scorers: Mapping[str, str]) -> None:
        """Tell an owner of its pool; does not wait."""
        members = self.pool(roster, scorers)
        self.posts[owner].handle.enlist.remote(members)

    def begin(self, owner: str, roster: Roster, scorers: Mapping[str, str]) -> None:
        """Let an owner that stands by take its lanes; does not wait."""
        self.posts[owner].handle.begin.remote(self.pool(roster, scorers))

    def pool(self, roster: Roster, scorers: Mapping[str, str]) -> actors.Pool:
        """A roster with the handles of its scorers (name -> version)."""
        named = [(n, v, self.posts[n].handle) for n, v in sorted(scorers.items())]
        return actors.Pool(roster, tuple(named))

    def end(self, name: str) -> None:
        """End an actor at once and forget it; Ray does not restart it."""
        post = self.posts.pop(name, None)
        if post is not None and not post.gone:
            ray.kill(post.handle, no_restart=True)

    def stop_owners(self, wait_s: float) -> list[str]:
        """Let all owners finish, commit and end. Returns those that did not in time."""
        owners = [p for n, p in self.posts.items() if ".owner-" in n and not p.gone]
        stops = {p.handle.stop.remote(wait_s).future(): p.name for p in owners}
        ended, late = futures.wait(stops, wait_s + 2.0)
        bad = [stops[stop] for stop in late]
        bad += [stops[stop] for stop in ended if stop.exception() or not stop.result()]
        return sorted(bad)


def _gpus(device: str) -> float:
    return 1.0 if device == "cuda" else 0.0


def _cause(error: RayActorError) -> str:
    """One line of what Ray says in many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "creation task" in lines[0]:
        # The last line of a traceback, without the module of our own errors.
        return re.sub(r"^raywatch\.models\.errors\.", "", lines[-1])[:300]
    for line in lines:
        if "exit" in line.lower() or "kill" in line.lower():
            return line[:200]
    return (lines[0] if lines else type(error).__name__)[:200]


# ---- the supervisor's actor ----------------------------------------------------------------


def supervisor() -> Any:
    """The handle of the running supervisor. Raises Unreachable."""
    return actors.find(actors.SUPERVISOR)


def deployed() -> Any:
    """The handle of the running supervisor, or None."""
    try:
        return supervisor()
    except Unreachable:  # no look at what names there are before: it may end in between
        return None


@dataclass(frozen=True, slots=True)
class Site:
    """The cluster we joined."""

    head: str  # address; the supervisor and the page are there
    cpus: float  # of all machines that are up


def site() -> Site:
    """Where we are."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    heads = [n["NodeManagerAddress"] for n in nodes if actors.HEAD.keys() & n["Resources"].keys()]
    return Site(heads[0] if heads else "", sum(n["Resources"].get("CPU", 0.0) for n in nodes))


def call(handle: Any, method: str, *arguments: Any, timeout_s: float = CALL_S) -> Any:
    """Call an actor and wait. Raises what it raised, or Unreachable."""
    try:
        return actors.answer(getattr(handle, method).remote(*arguments), timeout_s)
    except RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, RaywatchError) else error) from error
    except (RayError, TimeoutError) as error:
        raise Unreachable(
            f"the supervisor did not answer `{method}` within {timeout_s:.0f} s",
            hint="`ray status` says whether the cluster is up",
        ) from error


def end(handle: Any) -> None:
    """End an actor for good."""
    ray.kill(handle, no_restart=True)


# ---- drills ----------------------------------------------------------------------------------


class _Hand:
    """Sends signals on one machine, to processes of ours and to no others."""

    def send(self, pid: int, title: str, number: int) -> bool:
        """Whether the process was there; `title` is what Ray calls its actor."""
        try:
            named = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::" + title.encode())
            if named:
                os.kill(pid, number)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return named


class Grip:
    """An actor's process, held so that a drill can hurt it at once."""

    def __init__(self, name: str) -> None:
        """Find the process and put a hand beside it. Raises Unreachable."""
        handle = actors.find(name)
        found: dict[str, Any] = ray_state.actors(actor_id=handle._actor_id.hex())
        self.name, self.pid = name, int(found.get("Pid") or 0)
        self._title = str(found.get("ActorClassName", "")).rpartition(".")[2]
        if not self.pid or found.get("State") != "ALIVE":
            raise Unreachable(f"`{name}` does not run", hint="`raywatch status` says what does")
        node = str(found["Address"]["NodeID"])
        decorate: Any = ray.remote(num_cpus=0, max_restarts=0)
        self._hand = (
            decorate(_Hand)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
            .remote()
        )
        self.send(0)  # it is there, and so is the process

    def send(self, number: int) -> None:
        """Send a signal; 0 only asks whether the process is there. Raises Unreachable."""
        if not call(self._hand, "send", self.pid, self._title, number):
            raise Unreachable(f"the process `{self.pid}` of `{self.name}` is no more")

    def let_go(self) -> None:
        """End the hand."""
        end(self._hand)
