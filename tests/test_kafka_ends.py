"""Goal: the ends of partitions are offsets, or unknown; never a number that is taken for a loss.

Method: answers as the client gives them in the middle of an election, made by hand: an offset, an
error that passes, one that does not, and -1001 without any error, which is how a broker that just
took over says that it does not know yet (seen when leaders were killed: lanes found "lost" what
was all there, and said alerts again).
"""

from types import SimpleNamespace
from typing import Any

import pytest

from raywatch.actors import checkpoint
from raywatch.actors.kafka_reading import ends
from raywatch.actors.ports import Bounds, Committed, Partition

P = [Partition("t", n) for n in range(5)]


class Failure(Exception):
    pass


class Fault:
    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name

    def str(self) -> str:
        return self._name

    def retriable(self) -> bool:
        return False


def answer(future: Any) -> Any:
    """What a call was answered: an offset, or a name to be raised."""
    if isinstance(future, str):
        raise Failure(Fault(future))
    return SimpleNamespace(offset=future)


def asked(*futures: Any) -> dict[Any, Any]:
    places = [SimpleNamespace(topic=p.topic, partition=p.number) for p in P]
    return {Key(place): future for place, future in zip(places, futures, strict=False)}


class Key:
    """Stands for the client's TopicPartition, which can be a key."""

    def __init__(self, place: Any) -> None:
        self.topic, self.partition = place.topic, place.partition


def test_who_does_not_know_yet_is_asked_again_and_who_will_never_is_left_out() -> None:
    low = asked(0, -1001, 7, "_TIMED_OUT", "UNKNOWN_TOPIC_OR_PART")
    end = asked(9, -1001, -1001, 12, "UNKNOWN_TOPIC_OR_PART")
    known, again = ends(P, [low, end], answer, Failure)
    assert known == {P[0]: Bounds(0, 9)}
    assert again == [P[1], P[2], P[3]]


def test_a_lane_does_not_open_on_a_guess() -> None:
    with pytest.raises(AssertionError, match="-1001"):
        checkpoint.start(
            partitions=P[:1], committed={P[0]: Committed(58_271)},
            bounds={P[0]: Bounds(-1001, -1001)}, fresh="earliest", lost="continue",
        )  # fmt: skip
