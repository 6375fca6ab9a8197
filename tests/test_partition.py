"""Goal: who is cut off from Ray and not from Kafka can do no harm, and is replaced within seconds.

Method: three hosts in namespaces with a network for Ray and one for the broker (fleet.py). The
cable of a worker's Ray is pulled, Ray on a worker is frozen, a worker dies, the head is killed.
Both owners tell of it in the logs of their own processes. In the end the alerts are those of a
backtest of the same records. Needs root: without, it says so.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fleet import WORKS_S, Fleet, Taken
from hosts import Lab
from machines import until

REPLACED_S = 30.0  # The figure is printed: 15 s is the promise of a machine that is not busy.

pytestmark = [
    pytest.mark.netns,
    pytest.mark.kafka,
    pytest.mark.ray,
    pytest.mark.timeout(600),  # alone about 2 minutes for the whole file
    pytest.mark.skipif(
        os.geteuid() != 0, reason=f"network namespaces need root, this is uid {os.geteuid()}"
    ),
]


@pytest.fixture(scope="module")
def made() -> Iterator[Fleet]:
    with Lab(3) as lab:
        fleet = Fleet(lab)
        fleet.start()
        yield fleet


@pytest.fixture
def fleet(made: Fleet) -> Iterator[Fleet]:
    """All of it at work; afterwards the alerts are those of a backtest, whatever was done."""
    made.whole()
    yield made
    made.word("pause")
    wrong = made.compared()
    made.word("go")
    assert wrong == []


def replaced(taken: Taken, limit_s: float) -> None:
    """Others speak for every lane that the owners of a host had."""
    after = until(taken.alerts, lambda found: set(found) == taken.lanes, limit_s)
    print(f"host {taken.host} was lost; others spoke after {after} s")


def refused(taken: Taken) -> bool:
    """Whether brokers refused what the old owner wrote for each lane, as it says itself."""
    said = taken.fenced()
    assert all("has another holder" in words for words in said.values()), said
    return set(said) == taken.lanes


def test_an_owner_that_is_cut_off_from_ray_is_refused_by_the_brokers_and_replaced(
    fleet: Fleet,
) -> None:
    host = fleet.busy()
    taken = Taken(fleet, host)
    fleet.lab.cut(host)
    try:
        replaced(taken, REPLACED_S)
        assert fleet.owners(host) == taken.pids, "who was cut off was to live on"
        until(lambda: refused(taken), bool, 30.0)
        print(f"it said {taken.fenced()}")
    finally:
        fleet.lab.cut(host, whole=True)
        fleet.on(host, "ray stop --force", check=False)
        fleet.ray([host])


def test_an_owner_whose_ray_is_frozen_is_replaced_and_refused_or_ended_when_it_thaws(
    fleet: Fleet,
) -> None:
    host = fleet.busy()
    taken = Taken(fleet, host)
    fleet.on(host, "pkill -STOP -x raylet")
    try:
        replaced(taken, WORKS_S)  # all may have been there: nobody was warm elsewhere
        # Without Ray's object store it may be unable to score, and then it has nothing to write.
        fleet.on(host, "pkill -CONT -x raylet")
        until(lambda: not set(fleet.owners(host)) & set(taken.pids) or refused(taken), bool, 30.0)
        print(f"it said {taken.fenced()}; of {taken.pids} there are {fleet.owners(host)}")
    finally:
        fleet.on(host, "pkill -CONT -x raylet; ray stop --force", check=False)
        fleet.ray([host])


def test_a_machine_that_dies_is_replaced(fleet: Fleet) -> None:
    host = fleet.busy()
    taken = Taken(fleet, host)
    fleet.die(host)
    replaced(taken, WORKS_S)
    fleet.ray([host])


def test_a_cluster_that_lost_its_head_goes_on_from_kafka_and_the_store(fleet: Fleet) -> None:
    began = time.monotonic()
    fleet.on(1, "pkill -KILL -x gcs_server; pkill -KILL -x raylet", check=False)
    assert fleet.verdict()["state"] != "healthy"
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda host: fleet.on(host, "ray stop --force", check=False), (1, 2, 3)))
    fleet.ray()
    said = fleet.deploy()
    print(f"deployed again {time.monotonic() - began:.1f} s after the head was killed")
    assert "every lane works" in said
    assert time.monotonic() - began < WORKS_S
