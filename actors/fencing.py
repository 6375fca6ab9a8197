"""Who may still write for these partitions under another name?

Brokers fence by transactional id, and a lane's id holds its number and the number of lanes. After
a change of `lanes` the partitions belong to lanes of other ids, and nobody would ever fence an
owner of the old ones that froze, or was cut off, before the new deployment began. So each commit
notes the lane that made it, and whoever finds the note of another lane fences that one too.
"""

from collections.abc import Mapping

from raywatch.actors import checkpoint
from raywatch.actors.ports import Committed, Log, Partition, Source
from raywatch.actors.spec import DetectorSpec

FORMER_MAX = 64  # More names than a lane's partitions could have had are not ours.


def former(spec: DetectorSpec, lane: int, committed: Mapping[Partition, Committed]) -> list[str]:
    """Ids of other lanes of this detector that made the last commits, sorted."""
    mine = spec.lane_id(lane)
    noted = {checkpoint.holder(entry.note) for entry in committed.values()} - {mine}
    # The note is data that came back from the broker: it may fence lanes of ours only.
    return sorted(name for name in noted if spec.is_lane_id(name))[:FORMER_MAX]


def committed(
    log: Log, spec: DetectorSpec, lane: int, source: Source
) -> tuple[dict[Partition, Committed], bool]:
    """What is committed, once nobody else can move it, and whether others had to be fenced."""
    found = source.committed()
    others = former(spec, lane, found)
    for name in others:
        sink = log.sink(name, spec.group)
        try:
            sink.open()
        finally:
            sink.close()
    return (source.committed(), True) if others else (found, False)
