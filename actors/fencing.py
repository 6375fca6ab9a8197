"""Who may still write for these partitions under another name?

Brokers fence by transactional id, and a lane's id holds its number and the number of lanes. After
a change of `lanes` the partitions belong to lanes of other ids, and nobody would ever fence an
owner of the old ones that froze, or was cut off, before the new deployment began. So each commit
notes the lane that made it, and whoever finds the note of another lane, or none, fences that one
too, and every lane that held the partition under a former number of lanes: one that opened and
never committed has left no note. Which numbers there were is in the audit topic (`supervisor.py`),
written before the first lane of a number opens.
"""

from collections.abc import Mapping, Sequence

from raywatch.actors import checkpoint
from raywatch.actors.ports import Committed, Log, Partition, Source
from raywatch.actors.spec import DetectorSpec

FORMER_MAX = 256  # Bounds a start: each takes up to half a second.


def former(
    spec: DetectorSpec,
    lane: int,
    partitions: Sequence[Partition],
    committed: Mapping[Partition, Committed],
) -> list[str]:
    """Ids of other lanes of this detector that may still write for these partitions, sorted.

    None once each partition has a commit of this lane: it was made when all others were fenced.
    """
    mine = spec.lane_id(lane)
    noted = {checkpoint.holder(committed[p].note) if p in committed else "" for p in partitions}
    if noted == {mine}:
        return []
    held = {spec.lane_id_of(p.number % n, n) for n in spec.formerly for p in partitions}
    # The note is data that came back from the broker: it may fence lanes of ours only.
    return sorted(n for n in (noted | held) - {mine} if spec.is_lane_id(n))[:FORMER_MAX]


def committed(
    log: Log, spec: DetectorSpec, lane: int, partitions: Sequence[Partition], source: Source
) -> tuple[dict[Partition, Committed], bool]:
    """What is committed, once nobody else can move it, and whether others had to be fenced."""
    found = source.committed()
    others = former(spec, lane, partitions, found)
    for name in others:
        sink = log.sink(name, spec.group)
        try:
            sink.open()
        finally:
            sink.close()
    return (source.committed(), True) if others else (found, False)
