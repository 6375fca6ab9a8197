"""Bugs in what only some lives have: labels of a topic of their own, and a budget of incidents.

As those of `bugs.py`, which names them.
"""

from typing import Any

import numpy as np

from raywatch.actors import joining
from raywatch.actors.joining import Asking, Joined
from raywatch.actors.kafka import KafkaSource
from raywatch.actors.lane import Shift
from raywatch.actors.stats import LaneStats
from raywatch.models.budget import NEVER, Budget
from raywatch.models.scorer import I64

Any3 = tuple[Any, str, Any]  # where, name, what to put there


# ---- labels ------------------------------------------------------------------------------------


def hands_on_a_label_too_early_after_a_restart() -> list[Any3]:
    assign, hand_on, merged = Joined.assign, Joined._hand_on, joining.merged
    due: list[bool] = [False]

    def begin(self: Any, begin: Any) -> None:
        assign(self, begin)
        self.early = dict.fromkeys(range(len(self._pairs)), any(begin.values()))

    def hand(self: Any, pair: int, limit: int, gathered: Any) -> None:
        due[0] = self.early[pair]
        hand_on(self, pair, limit, gathered)
        self.early[pair] = due[0]

    def early(*given: Any) -> I64:
        of = merged(*given)
        at = np.flatnonzero(np.diff(of) == 1)[:1]  # a payment, then a label
        if due[0] and at.size:
            of[at], of[at + 1], due[0] = 1, 0, False
        return of

    return [(Joined, "assign", begin), (Joined, "_hand_on", hand), (joining, "merged", early)]


def commits_what_waits() -> list[Any3]:
    return [(Joined, "position", lambda self: self._source.position())]


def goes_on_with_labels_where_the_commit_is() -> list[Any3]:
    load = Shift._load

    def headless(self: Any, start: Any) -> Any:
        read = load(self, start)
        return read | {p: start.speak[p] for p in read if p.topic == self.spec.labels}

    return [(Shift, "_load", headless)]


def looks_at_the_clock_after_it_was_answered() -> list[Any3]:
    run = Asking._run

    def late(self: Any, future: Any) -> None:
        run(self, future)
        self._asked_ms = self._clock.now_ms()

    return [(Asking, "_run", late)]


def takes_all_clocks_for_one() -> list[Any3]:
    learn = Joined._learn

    def sure(self: Any) -> None:
        kept, self._delay_ms = self._delay_ms, 0
        learn(self)
        self._delay_ms = kept

    return [(Joined, "_learn", sure)]


def takes_an_end_for_read() -> list[Any3]:
    learn = Joined._learn

    def hasty(self: Any) -> None:
        kept, self._begin = self._begin, {}
        position = self._source.position
        self._source.position = lambda: dict.fromkeys(self._partitions, 2**62)
        learn(self)
        self._source.position, self._begin = position, kept

    return [(Joined, "_learn", hasty)]


def holds_a_partition_for_good() -> list[Any3]:
    hold = KafkaSource.hold

    def keep(self: Any, partitions: Any) -> None:
        hold(self, self._held | set(partitions))

    return [(KafkaSource, "hold", keep)]


# ---- budgets -----------------------------------------------------------------------------------


def forgets_the_debt_of_a_budget() -> list[Any3]:
    state = Budget.state

    def poor(self: Any) -> Any:
        found = state(self)
        return found | {"debt": np.zeros_like(found["debt"])}

    return [(Budget, "state", poor)]


def forgets_the_clock_of_a_budget() -> list[Any3]:
    state = Budget.state

    def timeless(self: Any) -> Any:
        found = state(self)
        return found | {"clock": np.full_like(found["clock"], NEVER)}

    return [(Budget, "state", timeless)]


def counts_what_it_decides() -> list[Any3]:
    done = Shift._done

    def soon(self: Any, flight: Any, said: Any) -> None:
        done(self, flight, said)
        self.stats.tally = self.stats.tally.plus(said.tally)

    return [(Shift, "_done", soon), (LaneStats, "settle", lambda self, committed: None)]
