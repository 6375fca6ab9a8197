"""Goal: one machine that dies takes neither an owner and who stands by for it, nor the whole pool.

Method: the pure choice with hand-made and random placements. Then the service on two raylets: it
starts on one machine, moves what it can when a second one joins, and loses the first.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from lanes import alerts
from ray.cluster_utils import Cluster
from service import Service, config, ray_local, until

from raywatch.actors import runtime as actors
from raywatch.actors.ports import Out
from raywatch.actors.runtime import LogSpec
from raywatch.cluster import runtime
from raywatch.cluster.spread import Placed, crowded, huddled, surplus
from raywatch.models.synthetic import Stream, generate, to_json

STREAM = Stream(keys=20, seed=6, quiet=300, injections=("spike", "level"))
SCORERS = st.lists(
    st.builds(Placed, st.uuids().map(str), st.sampled_from("abc"), st.booleans(), st.floats(0, 9)),
    max_size=9,
)


def placed(text: str) -> list[Placed]:
    """Scorers by their machines, oldest first; in capitals those that are still starting."""
    return [
        Placed(f"{each}{at}", each.lower(), each.islower(), float(at))
        for at, each in enumerate(text)
    ]


def test_what_is_crowded_and_who_has_to_go() -> None:
    assert crowded([]) == crowded(["", ""]) == ""
    assert crowded(["b", "a", "b", ""]) == "b"
    assert crowded(["b", "a"]) == "a"  # one of them, always the same
    assert huddled(placed("aa"), {"a", "b"})
    assert not huddled(placed("aa"), {"a"})  # nowhere to go
    assert not huddled(placed("ab"), {"a", "b"})
    assert not huddled(placed("a"), {"b"})  # one is always alone
    assert not huddled([*placed("a"), Placed("x", "", False, 0.0)], {"b"})  # who knows where
    assert surplus(placed("aab"), 2) == ["a1"]
    assert surplus(placed("aaB"), 2) == ["B2"]  # it does no work yet
    assert surplus(placed("aaaabb"), 2) == ["a3", "a2", "a1", "b5"]
    assert surplus(placed("ab"), 3) == []


@given(SCORERS, st.integers(0, 9))
def test_what_stays_is_as_many_as_wanted_and_spread_as_far_as_may_be(
    scorers: list[Placed], count: int
) -> None:
    gone = surplus(scorers, count)
    stay = [s for s in scorers if s.name not in gone]
    assert len(stay) == min(count, len(scorers))
    assert len(set(gone)) == len(gone)
    if any(s.name in gone for s in scorers if s.ready):
        assert all(s.ready for s in stay)
        before, after = (Counter(s.node for s in each if s.ready) for each in (scorers, stay))
        # Nobody left a machine while another one had more to give.
        most = max(after.values(), default=0)
        assert all(after[n] >= most - 1 for n in before if after[n] < before[n])


@pytest.mark.ray
def test_what_stands_in_for_the_other_moves_to_a_machine_that_joins_and_survives(
    topic: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # as in the shipped configs
    table = generate(STREAM, 1_000)
    values, keys = to_json(table), [table.names[k].encode() for k in table.key]
    out = [(k, v) for k, v in zip(keys, values, strict=True)]
    half, events, name = len(out) // 2, topic("events"), topic("hosts")
    # The embedded log and the supervisor are on the head, which has room for nobody else.
    with ray_local():
        pass  # from here on this process, and every Ray that it starts, goes by the token
    here: dict[str, Any] = {"node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **here})
    first = cluster.add_node(num_cpus=4, **here)
    runtime.connect(str(cluster.address))
    service = None
    try:
        at = topic("broker")
        broker = actors.start_broker(at)
        log = actors.open_log(LogSpec(embedded=at))
        log.create(events, 8)
        owners = {"count": 1, "cpus": 1, "standby": True}
        sizes = {"owners": owners, "pool": {"min": 2, "max": 2, "cpus": 1}}
        often = {"warmup": 200, "probability": 1e-3}
        there = config("embedded", events, tmp_path, name=name, alert=often, **sizes)
        service = Service(there, LogSpec(embedded=at))
        service.start()
        log.write([Out(events, k, v) for k, v in out[:half]])
        service.drained()
        until(lambda: _nodes(service, "owner") == [first.node_id] * 2, 60.0)
        assert _nodes(service, "scorer") == [first.node_id] * 2

        second = cluster.add_node(num_cpus=4, **here)
        both = sorted((first.node_id, second.node_id))
        until(lambda: _nodes(service, "owner") == _nodes(service, "scorer") == both, 120.0)
        held = [r.node_id for r in service.reports("owner") if not r.parked]
        assert held == [first.node_id]  # who works stays where it is

        cluster.remove_node(first, allow_graceful=False)
        log.write([Out(events, k, v) for k, v in out[half:]])
        until(lambda: f"{name}.owner-0.g1" not in service.pids("owner"), 60.0)
        service.drained()
        journal, said = service.journal(), alerts(log, service.spec.alerts)
        runtime.end(broker)
    finally:
        if service is not None:
            service.stop()
        runtime.leave()
        cluster.shutdown()
    assert any(words.endswith("which stood by") for words in journal), journal
    assert len({(a["id"], a["state"], a["at_ms"]) for a in said}) == len(said) > 5


def _nodes(service: Service, kind: str) -> list[str]:
    """Machines of owners or scorers, sorted."""
    return sorted(r.node_id for r in service.reports(kind) if r is not None)
