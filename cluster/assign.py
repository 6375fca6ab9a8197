"""Which partitions make a lane, and which owner holds it?

A partition belongs to lane (its number mod n), in every topic of a detector alike, so that topics
with the same keys meet in one lane. n is capped at the partition count of the largest topic; when
topics grow, no partition changes its lane, so no state has to move with it.

Lanes are spread over owners evenly: counts differ by one at most. The placement follows from the
lanes and the number of owners alone; it is what results when owners join one after the other and
each takes its part from the fullest. So going from n owners to m moves only the lanes of owners
that joined or left, which is the fewest there can be. Lanes weigh the same: a hot one is not seen.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from raywatch.actors.ports import Partition


class _Ordered(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...
    def __hash__(self) -> int: ...


L = TypeVar("L", bound=_Ordered)  # a lane: a number, or (detector, number)


class Move(NamedTuple):
    """A lane that changes hands; `before` is None where nobody held it."""

    lane: Any
    before: int | None
    after: int


def lanes(partitions: Iterable[Partition], n: int) -> dict[int, tuple[Partition, ...]]:
    """Lanes of a detector: number of the lane -> its partitions in order of topic and number.

    Args:
        partitions: all partitions of the detector's topics; empty makes no lanes.
        n: lanes wanted, at least 1.
    """
    assert n >= 1, n
    ordered = sorted(set(partitions))
    if not ordered:
        return {}
    count = min(n, 1 + max(partition.number for partition in ordered))
    made: dict[int, list[Partition]] = {}
    for partition in ordered:
        made.setdefault(partition.number % count, []).append(partition)
    return {lane: tuple(made[lane]) for lane in sorted(made)}


def owners(lanes: Iterable[L], n: int, held: Mapping[L, int] | None = None) -> dict[L, int]:
    """Owner of each lane: lane -> index of the owner, 0..n-1.

    Args:
        lanes: every lane there is, of all detectors.
        n: owners, at least 1.
        held: who holds what now. Where it is given, as much of it stays as balance allows (lanes
            were added or removed); without it the answer follows from `lanes` and `n` alone.
    """
    assert n >= 1, n
    ordered = sorted(set(lanes))
    if held is not None:
        return _balanced(ordered, n, held)
    placed: dict[L, int] = dict.fromkeys(ordered, 0)
    for count in range(2, min(n, max(1, len(ordered))) + 1):
        placed = _balanced(ordered, count, placed)
    return placed


def moves(before: Mapping[L, int], after: Mapping[L, int]) -> list[Move]:
    """What has to change hands, in order of the lanes; carry out one at a time."""
    return [
        Move(lane, before.get(lane), after[lane])
        for lane in sorted(after)
        if before.get(lane) != after[lane]
    ]


def _balanced(ordered: list[L], n: int, held: Mapping[L, int]) -> dict[L, int]:
    """Keep what fits under the quota of each owner; the rest goes to the emptiest."""
    keep: list[list[L]] = [[] for _ in range(n)]
    loose: list[L] = []
    for lane in ordered:
        owner = held.get(lane, -1)
        (keep[owner] if 0 <= owner < n else loose).append(lane)
    floor, extra = divmod(len(ordered), n)
    # The owners that may hold one more are those that hold the most already.
    fullest = sorted(range(n), key=lambda owner: (-len(keep[owner]), owner))
    quota = [floor + (1 if rank < extra else 0) for rank in range(n)]
    room = {owner: quota[rank] for rank, owner in enumerate(fullest)}
    for owner in range(n):
        keep[owner], given = _spread(keep[owner], room[owner])
        loose.extend(given)
    loose.sort()
    placed = {lane: owner for owner in range(n) for lane in keep[owner]}
    for lane in loose:
        owner = min(range(n), key=lambda each: (len(keep[each]) - room[each], each))
        keep[owner].append(lane)
        placed[lane] = owner
    return {lane: placed[lane] for lane in ordered}


def _spread(held: list[L], size: int) -> tuple[list[L], list[L]]:
    """Split into `size` lanes to keep and the rest, both spread evenly over the order.

    Lanes of one detector stand side by side: taking a block would put a busy detector on one owner.
    """
    if len(held) <= size:
        return held, []
    chosen = {index * len(held) // size for index in range(size)} if size else set[int]()
    kept = [lane for index, lane in enumerate(held) if index in chosen]
    return kept, [lane for index, lane in enumerate(held) if index not in chosen]
