"""Goal: a cluster without a free CPU heals all the same: nobody waits for a place that is taken.

Method: real Ray with room for one owner and one scorer and nothing more. The owner is frozen until
its seat is given to another one, which finds no room; then it is thawed.
"""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from lanes import alerts
from service import Service, config, ray_local, until

from raywatch.actors import runtime as actors
from raywatch.actors.ports import Out
from raywatch.actors.runtime import LogSpec
from raywatch.models.synthetic import Stream, generate, to_json

STREAM = Stream(keys=20, seed=5, quiet=300, injections=("spike", "level"))


@pytest.mark.ray
def test_an_owner_whose_successor_finds_no_room_keeps_its_seat_and_hears_of_new_scorers(
    topic: Callable[[str], str], tmp_path: Path
) -> None:
    table = generate(STREAM, 1_000)
    values, keys = to_json(table), [table.names[k].encode() for k in table.key]
    half = len(values) // 2
    events, name = topic("events"), topic("hosts").lower()
    with ray_local(cpus=3):
        broker = topic("broker")
        actors.start_broker(broker)  # takes 0.1 CPU, the others 2.9
        spec = LogSpec(embedded=broker)
        log = actors.open_log(spec)
        log.create(events, 8)
        tight = {"owners": {"count": 1, "cpus": 1.45}, "pool": {"min": 1, "max": 1, "cpus": 1.45}}
        service = Service(config("embedded", events, tmp_path, name=name, **tight), spec)
        try:
            service.start()
            log.write([Out(events, k, v) for k, v in zip(keys[:half], values[:half], strict=True)])
            service.drained()
            (owner,) = service.pids("owner").items()

            service.signal(owner[1], signal.SIGSTOP)
            until(lambda: any("get another owner" in words for words in service.journal()), 60.0)
            service.signal(owner[1], signal.SIGCONT)
            until(lambda: any("found no room" in words for words in service.journal()), 90.0)

            # It is told of the scorer that takes the place of a dead one.
            (scorer,) = service.pids("scorer").values()
            service.signal(scorer)
            until(lambda: scorer not in service.pids("scorer").values(), 60.0)
            log.write([Out(events, k, v) for k, v in zip(keys[half:], values[half:], strict=True)])
            service.drained()
            assert service.pids("owner") == dict([owner])  # the same process all the time
            said = alerts(log, service.spec.alerts)
            assert len({(a["id"], a["state"], a["at_ms"]) for a in said}) == len(said) > 0
        finally:
            service.stop()
            log.close()
