"""On which machines do actors stand that stand in for each other?

A machine that dies takes all that it runs with it. So who stands by for an owner belongs on another
machine, and the pool on more than one. Ray spreads actors when they start, and moves none: after a
machine was lost everything is on the others, and stays there when it comes back. What is decided
here says whom to move then; `keeper.py` does it, one at a time and only where there is room.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Placed(NamedTuple):
    """A scorer, as far as this matters."""

    name: str
    node: str  # id of its machine; empty: not known yet
    ready: bool
    started: float  # monotonic seconds


def crowded(nodes: Iterable[str]) -> str:
    """The machine that is named most often; empty if none is known."""
    counts = Counter(node for node in nodes if node)
    return min(counts, key=lambda node: (-counts[node], node), default="")


def huddled(scorers: Iterable[Placed], room: Iterable[str]) -> bool:
    """Whether several scorers, and all there are, share a machine, and another one has room."""
    nodes = [scorer.node for scorer in scorers]
    return len(nodes) > 1 and "" not in nodes and len({*nodes}) == 1 and bool({*room} - {nodes[0]})


def surplus(scorers: Iterable[Placed], count: int) -> list[str]:
    """Which have to go so that `count` stay, in order.

    Those that are still starting go first, then, one after the other, the youngest on the machine
    that has most of those that stay.
    """
    left, gone = list(scorers), list[str]()
    while len(left) > count:
        full = crowded(scorer.node for scorer in left)
        out = min(left, key=lambda s: (s.ready, s.node != full, -s.started))
        left.remove(out)
        gone.append(out.name)
    return gone
