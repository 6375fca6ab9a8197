"""Goal: lanes never move by surprise, and owners carry equal numbers of them.

Method: small hand-written cases, then every number of lanes and owners up to a bound.
"""

import itertools

from raywatch.actors.ports import Partition
from raywatch.cluster.assign import Move, lanes, moves, owners


def partitions(topic: str, count: int) -> list[Partition]:
    return [Partition(topic, number) for number in range(count)]


def spread(placed: dict[int, int], n: int) -> int:
    counts = [list(placed.values()).count(owner) for owner in range(n)]
    return max(counts) - min(counts)


def test_a_partition_number_is_in_one_lane_whatever_the_topic() -> None:
    made = lanes(partitions("a", 6) + partitions("b", 4), 4)
    assert made[1] == (Partition("a", 1), Partition("a", 5), Partition("b", 1))
    assert sorted(made) == [0, 1, 2, 3]
    assert sum(len(each) for each in made.values()) == 10


def test_there_are_no_more_lanes_than_partitions() -> None:
    assert sorted(lanes(partitions("a", 3), 8)) == [0, 1, 2]
    assert lanes([], 8) == {}


def test_growing_topics_move_no_partition_to_another_lane() -> None:
    for n, small, more in itertools.product(range(1, 9), range(1, 12), range(1, 6)):
        before = lanes(partitions("a", small), n)
        after = lanes(partitions("a", small + more), n)
        for lane, held in before.items():
            assert set(held) <= set(after[lane]), (n, small, more)


def test_owners_carry_equal_numbers_of_lanes_and_every_lane_has_one() -> None:
    for count, n in itertools.product(range(0, 25), range(1, 10)):
        placed = owners(range(count), n)
        assert sorted(placed) == list(range(count))
        assert all(0 <= owner < n for owner in placed.values())
        assert spread(placed, n) <= 1, (count, n)


def test_the_placement_does_not_depend_on_the_order_of_lanes() -> None:
    assert owners([3, 1, 2, 0], 2) == owners([0, 1, 2, 3], 2)


def test_only_lanes_of_owners_that_joined_or_left_move() -> None:
    for count, before, after in itertools.product(range(1, 25), range(1, 8), range(1, 8)):
        low, high = sorted((before, after))
        moved = moves(owners(range(count), before), owners(range(count), after))
        joined_or_left = set(range(low, high))
        for move in moved:
            assert {move.before, move.after} & joined_or_left, (count, before, after)


def test_lanes_of_one_detector_are_spread_over_the_owners() -> None:
    placed = owners([(name, lane) for name in ("a", "b") for lane in range(4)], 2)
    assert [placed["a", lane] for lane in range(4)].count(0) == 2
    assert [placed["b", lane] for lane in range(4)].count(0) == 2


def test_a_new_lane_leaves_the_others_where_they_are() -> None:
    held = owners(range(8), 3)
    placed = owners(range(9), 3, held)
    assert moves(held, placed) == [Move(8, None, placed[8])]
    assert spread(placed, 3) <= 1


def test_lanes_of_a_lost_owner_go_to_the_others_and_nothing_else_moves() -> None:
    held = {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2}
    placed = owners(range(6), 2, held)
    assert [move.lane for move in moves(held, placed)] == [4, 5]
    assert spread(placed, 2) == 0
