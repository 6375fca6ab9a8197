"""Who may still write for these partitions under another name?

Brokers fence by transactional id, and a lane's id holds its number and the number of lanes. After
a change of `lanes` the partitions belong to lanes of other ids, and nobody would ever fence an
owner of the old ones that froze, or was cut off, before the new deployment began. So

1. a deployment declares its number of lanes in the store before any of its lanes opens;
2. a lane that has taken its own id looks there. If another number is declared by now, it belongs
   to an earlier deployment, and stops;
3. unless every commit of its partitions notes this lane, it takes the ids of all lanes that held
   them under a former number, and of those that commits note. Only then it reads what is committed.

Whoever took an id before (3) is fenced by it, whoever takes one later finds the new number by (2).
"""

import json
from collections.abc import Mapping, Sequence

from raywatch.actors import checkpoint
from raywatch.actors.ports import Committed, Log, Partition, Source, Store
from raywatch.actors.spec import DetectorSpec
from raywatch.models.errors import Fenced

FORMER_MAX = 256  # Ids taken at a start: each takes up to half a second.
LAYOUTS_MAX = 8  # Numbers of lanes that are remembered, the newest ones.
LANES_MAX = 9_999  # As many digits as the id of a lane may have.


def declare(store: Store, spec: DetectorSpec) -> None:
    """Make the number of lanes of a deployment known; durable on return. Raises Unreachable."""
    found = declared(store, spec)
    if found[-1:] != [spec.lanes]:
        kept = [n for n in found if n != spec.lanes][1 - LAYOUTS_MAX :]
        store.put(_name(spec), json.dumps({"lanes": [*kept, spec.lanes]}).encode())


def declared(store: Store, spec: DetectorSpec) -> list[int]:
    """Numbers of lanes that were declared, the current one last; empty: none ever was."""
    try:
        told = json.loads(store.get(_name(spec)) or b"{}")
    except (ValueError, RecursionError):
        return []
    noted = told.get("lanes") if isinstance(told, dict) else None
    found = noted if isinstance(noted, list) else []
    return [n for n in found if type(n) is int and 1 <= n <= LANES_MAX][-LAYOUTS_MAX:]


def _name(spec: DetectorSpec) -> str:
    return f"lanes/{spec.name}"


def former(
    spec: DetectorSpec,
    lane: int,
    partitions: Sequence[Partition],
    committed: Mapping[Partition, Committed],
    numbers: Sequence[int],
) -> list[str]:
    """Ids of other lanes of this detector that may still write for these partitions, sorted.

    None once each partition has a commit of this lane: it was made when all others were fenced.
    `numbers`: what was declared.
    """
    mine = spec.lane_id(lane)
    noted = {checkpoint.holder(committed[p].note) if p in committed else "" for p in partitions}
    if noted == {mine}:
        return []
    held = {spec.lane_id_of(p.number % n, n) for n in numbers for p in partitions}
    # The note is data that came back from the broker: it may fence lanes of ours only.
    return sorted(n for n in (noted | held) - {mine} if spec.is_lane_id(n))[:FORMER_MAX]


def committed(
    log: Log,
    store: Store,
    spec: DetectorSpec,
    lane: int,
    partitions: Sequence[Partition],
    source: Source,
) -> tuple[dict[Partition, Committed], bool]:
    """What is committed, once nobody else can move it, and whether others had to be fenced.

    To be called when the lane's own sink is open. Raises Fenced where the lane is of an earlier
    deployment.
    """
    numbers = declared(store, spec)
    if numbers and numbers[-1] != spec.lanes:
        raise Fenced(
            f"lane `{spec.lane_id(lane)}` is of an earlier deployment: "
            f"there are `{numbers[-1]}` lanes now"
        )
    found = source.committed()
    others = former(spec, lane, partitions, found, numbers)
    for name in others:
        sink = log.sink(name, spec.group)
        try:
            sink.open()
        finally:
            sink.close()
    return (source.committed(), True) if others else (found, False)
