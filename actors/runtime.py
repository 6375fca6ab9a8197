"""The only importer of ray among the actors: wraps plain classes, maps Ray's errors to ours.

Ray restarts neither owners nor scorers: so their death is heard of in milliseconds instead of a
second or two, and the supervisor puts others in their place (docs/decisions/0004). All actors live
in one namespace, are detached and found by name.
"""

import gc
import os
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from raywatch.actors.clock import SystemClock
from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.keys import warm_decode
from raywatch.actors.merging import warm_merging
from raywatch.actors.owner import Owner, OwnerReport, Roster
from raywatch.actors.pool import Member, Members, ScorerGone
from raywatch.actors.ports import Log, Partition
from raywatch.actors.scorer import ScorerHost, ScorerReport
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.store import open_store
from raywatch.models.errors import Unreachable
from raywatch.models.scorer import ModelSpec, Scores, Segments
from raywatch.models.warm import warm

NAMESPACE = "raywatch"
SUPERVISOR = "supervisor"
HEAD = {"node:__internal_head__": 0.001}  # Ray gives 1.0 of it to the head, and to no other.
APART = "SPREAD"  # A machine that is lost takes a part of the lanes and of the pool with it.
INLINE_BYTES_MAX = 100_000  # Larger arguments go to the object store once, and are shared from it.
BROKER_CALL_S = 30.0
VIGIL_S = 3_600.0


# ---- logs ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogSpec:
    """How an actor gets its Log: brokers, or the name of the embedded log's actor."""

    bootstrap: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    exactly_once: bool | None = None
    embedded: str = ""

    def __repr__(self) -> str:
        return f"LogSpec({self.bootstrap or self.embedded!r}, {len(self.settings)} settings)"


def open_log(spec: LogSpec) -> Log:
    """A Log in this process."""
    if spec.embedded:
        return EmbeddedLog(RemoteBroker(spec.embedded))
    from raywatch.actors.kafka import KafkaLog

    return KafkaLog(spec.bootstrap, dict(spec.settings), exactly_once=spec.exactly_once)


class BrokerActor:
    """The embedded log behind an actor."""

    def __init__(self) -> None:
        self._broker = EmbeddedBroker()

    def call(self, method: str, *args: Any, **keywords: Any) -> Any:
        """Forward one call."""
        return getattr(self._broker, method)(*args, **keywords)

    def pid(self) -> int:
        """Its process."""
        return os.getpid()


def answer(ref: Any, timeout_s: float) -> Any:
    """What a call returned. Raises TimeoutError, RayTaskError and other RayError.

    `ray.get` and `ray.wait` wait until a time of the wall clock (Ray 2.60): when that is set back
    by an hour they wait for an hour longer, with whatever locks their caller holds.
    """
    return ref.future().result(timeout_s)


class RemoteBroker:
    """What `EmbeddedLog` talks to when the log lives in an actor."""

    def __init__(self, name: str) -> None:
        self._handle = find(name)

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)

        def call(*args: Any, **keywords: Any) -> Any:
            try:
                return answer(self._handle.call.remote(method, *args, **keywords), BROKER_CALL_S)
            except RayTaskError as error:
                raise error.cause from error
            except TimeoutError as error:
                raise Unreachable(f"the embedded log did not answer `{method}` in time") from error
            except RayActorError as error:
                raise Unreachable("the embedded log is gone") from error

        return call


# ---- scorers -------------------------------------------------------------------------------


class Vigil:
    """What an actor has so that its death is heard of at once."""

    @ray.method(concurrency_group="vigil")
    def vigil(self) -> None:
        """Does nothing for an hour: a call that is under way fails when the process dies."""
        threading.Event().wait(VIGIL_S)


class ScorerActor(Vigil):
    """`ScorerHost` as an actor; its reports answer while a batch is scored."""

    def __init__(self, name: str, blob: bytes, device: str) -> None:
        self._host = ScorerHost(name, blob, device)

    def score(self, segments: Segments) -> Scores:
        """Score one batch."""
        return self._host.score(segments)

    @ray.method(concurrency_group="control")
    def report(self) -> ScorerReport:
        """Counters as of now."""
        return replace(self._host.report(os.getpid()), node_id=_node_id())


class RayMember:
    """A scorer actor as a member of the pool."""

    def __init__(self, name: str, version: str, handle: Any) -> None:
        self.name, self.version, self._handle = name, version, handle

    def score(self, payload: Any) -> "Future[Scores]":
        """Start scoring; a dead scorer is ScorerGone, whatever else the model raised is a bug."""
        answer: Future[Scores] = Future()

        def done(future: "Future[Scores]") -> None:
            error = future.exception()
            if error is None:
                answer.set_result(future.result())
            elif isinstance(error, RayError) and not isinstance(error, RayTaskError):
                answer.set_exception(ScorerGone(type(error).__name__))
            else:
                answer.set_exception(error)

        try:
            self._handle.score.remote(payload).future().add_done_callback(done)
        except RayError as error:
            raise ScorerGone(type(error).__name__) from error
        return answer


def wrap(segments: Segments) -> Any:
    """What is sent to scorers: small batches by value, larger ones by reference."""
    return segments if segments.nbytes <= INLINE_BYTES_MAX else ray.put(segments)


# ---- owners --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pool:
    """A roster with the actors it names: (scorer, version, handle)."""

    roster: Roster
    scorers: tuple[tuple[str, str, Any], ...]

    def members(self) -> dict[str, Member]:
        """As the owner wants them."""
        return {name: RayMember(name, version, handle) for name, version, handle in self.scorers}


class OwnerActor(Vigil):
    """`Owner` as an actor."""

    def __init__(
        self,
        name: str,
        spec: DetectorSpec,
        lanes: Mapping[int, tuple[Partition, ...]],
        log: LogSpec,
        store: str,
        score_timeout_s: float,
        parked: bool,
    ) -> None:
        warm()
        warm_decode()
        warm_merging()
        clock = SystemClock()
        self._owner = Owner(
            name,
            spec,
            lanes,
            log=open_log(log),
            store=open_store(store),
            clock=clock,
            members=Members(clock, wrap),
            epoch=uuid.uuid4().hex[:12],
            score_timeout_s=score_timeout_s,
            parked=parked,
        )
        if not parked:
            self._ask(spec.name)
        # Messages and columns are many, short-lived and without cycles: walking them costs more
        # than consuming them.
        gc.freeze()
        gc.set_threshold(200_000, 50, 100)

    def _ask(self, detector: str) -> None:
        """A new owner need not wait for the next tick of the supervisor."""
        try:
            pool: Pool | None = answer(find(SUPERVISOR).pool.remote(detector), 2.0)
        except (Unreachable, RayError, TimeoutError):
            return  # it will push the roster when it is back
        if pool is not None:
            self._owner.enlist(pool.roster, pool.members())

    @ray.method(concurrency_group="control")
    def enlist(self, pool: Pool) -> None:
        """Use these scorers."""
        self._owner.enlist(pool.roster, pool.members())

    @ray.method(concurrency_group="control")
    def begin(self, pool: Pool) -> None:
        """Take the lanes that it stood by for, with these scorers."""
        self._owner.enlist(pool.roster, pool.members())
        self._owner.begin()

    @ray.method(concurrency_group="control")
    def report(self) -> OwnerReport:
        """Counters as of now."""
        at = ray.util.get_node_ip_address()
        return replace(self._owner.report(), node=at, node_id=_node_id())

    @ray.method(concurrency_group="control")
    def stop(self, wait_s: float) -> bool:
        """Finish, commit and end the lanes."""
        return self._owner.stop(wait_s)


# ---- starting and finding ------------------------------------------------------------------


def find(name: str) -> Any:
    """The handle of a named actor. Raises Unreachable."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise Unreachable(
            f"no actor `{name}` runs on this Ray cluster",
            hint="is raywatch deployed there? `raywatch deploy` starts it",
        ) from error


def start_owner(
    name: str,
    *,
    spec: DetectorSpec,
    lanes: Mapping[int, tuple[Partition, ...]],
    log: LogSpec,
    store: str,
    cpus: float,
    parked: bool = False,
    avoid: str = "",
    score_timeout_s: float = 5.0,
) -> Any:
    """Create an owner, or find the one that has this name; `parked`, it waits for `begin`.

    `avoid` is a machine that it starts on only if no other has room.
    """
    actor = _remote(
        OwnerActor,
        max_restarts=0,
        max_task_retries=0,
        concurrency_groups={"control": 4, "vigil": 1},
        num_cpus=cpus,
        scheduling_strategy=APART,
    )
    return actor.options(**_named(name), **_off(avoid)).remote(
        name, spec, lanes, log, store, score_timeout_s, parked
    )


def start_scorer(
    name: str, *, blob: bytes, device: str, cpus: float, gpus: float = 0.0, avoid: str = ""
) -> Any:
    """Create a scorer. It is ready when its first report arrives. `avoid` as for an owner."""
    actor = _remote(
        ScorerActor,
        max_restarts=0,
        max_task_retries=0,
        concurrency_groups={"control": 2, "vigil": 1},
        num_cpus=cpus,
        num_gpus=gpus,
        scheduling_strategy=APART,
    )
    return actor.options(**_named(name), **_off(avoid)).remote(name, blob, device)


def start_broker(name: str) -> Any:
    """Create the embedded log, or find it."""
    actor = _remote(BrokerActor, max_restarts=0, max_concurrency=16, num_cpus=0.1)
    return actor.options(**_named(name)).remote()


def start_supervisor(cls: type, arguments: tuple[Any, ...]) -> Any:
    """Create the supervisor, or find the one that runs.

    It runs on the head, also where that has no CPUs: the page has one place, and no machine that
    scores takes it down. Without its head a Ray cluster is over in any case.
    """
    actor = _remote(
        cls, max_restarts=-1, max_task_retries=0, max_concurrency=8, num_cpus=0, resources=HEAD
    )
    return actor.options(**_named(SUPERVISOR)).remote(*arguments)


def _remote(cls: type, **options: Any) -> Any:
    """A class as an actor. Ray's types know only functions that are decorated."""
    decorate: Any = ray.remote(**options)
    return decorate(cls)


def _named(name: str) -> dict[str, Any]:
    """Found by name in one namespace, and outliving whoever created it."""
    return {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
    }


def _off(node_id: str) -> dict[str, Any]:
    """Not on this machine; on any where no other has room (a selector alone would wait for one)."""
    if not node_id:
        return {}
    return {
        "label_selector": {"ray.io/node-id": f"!{node_id}"},
        "fallback_strategy": [{"label_selector": {}}],
    }


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def models_of(reports: Mapping[str, ScorerReport]) -> dict[str, ModelSpec]:
    """Versions and what lanes must know of them, from what scorers said."""
    return {report.model.version: report.model for report in reports.values()}
