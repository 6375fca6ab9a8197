"""What happened from a fault to the recovery, and was it as promised?

A story is what was seen from outside: when the fault was done and undone, when each lane that was
hurt first said something about records that were written after it, what the journal said and what
`status` answered meanwhile. The rules:

    back      every lane that was hurt speaks again within `back_s` of its kind, counted from the
              fault, or from its undoing where lanes can only wait for that
    told      the journal holds a sentence of the kind that belongs to the fault; unless the
              supervisor, which was to say it, was killed before it saw the fault or before brokers
              took the sentence
    honest    while lanes were silent for longer than LATE_S, `status` never said `healthy`

Seconds are of one clock that never goes back. Pure: no clock, no log, no Ray.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raywatch.cluster.drills.faults import Fault

# A partition is `slow`, and a reading `unknown`, after 10 s; brokers that do not answer make a
# reading take up to 10 s itself, and it may have begun just before.
LATE_S = 15.0
SEE_S = 3.0  # A death is seen, and a supervisor that was killed is back, so soon.
TELL_S = 15.0  # A sentence may come so long after the lanes are back: brokers have to take it.


@dataclass(frozen=True, slots=True)
class Heard:
    """A sentence of the journal, and when it was heard."""

    at_s: float
    words: str


@dataclass(frozen=True, slots=True)
class Look:
    """One answer of `status`: its state, or `unreachable`."""

    at_s: float
    state: str
    words: str = ""


@dataclass(frozen=True, slots=True)
class Story:
    """One fault and what followed."""

    fault: Fault
    target: str
    at_s: float  # when it was done
    undone_s: float  # when it was undone, or `at_s` where nobody but raywatch has to
    hurt: tuple[str, ...]  # lanes that could fall silent by it
    spoke: Mapping[str, float]  # lane -> when it said something about records written after `at_s`
    waits: bool = False  # lanes cannot speak before it is undone

    @property
    def first_s(self) -> float | None:
        """From the fault to the first alert of a lane that was hurt."""
        times = [self.spoke[lane] for lane in self.hurt if lane in self.spoke]
        return min(times) - self.at_s if times else None

    @property
    def back_s(self) -> float | None:
        """From the fault until every lane that was hurt has said something; None: not yet."""
        if any(lane not in self.spoke for lane in self.hurt):
            return None
        return max((self.spoke[lane] for lane in self.hurt), default=self.at_s) - self.at_s


def breaches(
    story: Story, heard: Iterable[Heard], looks: Iterable[Look], others: Sequence[Story] = ()
) -> list[str]:
    """What was not as promised, in sentences; empty: all was.

    `others`: what else was done in the same run. While another fault lasts, lanes may be silent for
    its sake: that time is not counted against this one.
    """
    return [*late(story, others), *untold(story, heard, others), *dishonest(story, looks)]


def late(story: Story, others: Sequence[Story] = ()) -> list[str]:
    """Lanes that were silent for too long."""
    limit_s = story.fault.kind.back_s + (story.undone_s - story.at_s if story.waits else 0.0)
    limit_s += _overlap_s(story, others)
    silent = [lane for lane in story.hurt if lane not in story.spoke]
    if silent:
        return [f"{_name(story)}: {', '.join(silent)} never spoke again"]
    assert story.back_s is not None
    if story.back_s > limit_s:
        return [f"{_name(story)}: lanes were back after {story.back_s:.1f} s, not {limit_s:.1f}"]
    return []


def untold(story: Story, heard: Iterable[Heard], others: Sequence[Story] = ()) -> list[str]:
    """The sentence that nobody said."""
    pattern = story.fault.kind.says
    if not pattern or _silenced(story, others):
        return []
    until_s = _end_s(story) + TELL_S
    if any(story.at_s <= h.at_s <= until_s and re.search(pattern, h.words) for h in heard):
        return []
    return [f"{_name(story)}: the journal never said `{pattern}`"]


def _silenced(story: Story, others: Sequence[Story]) -> bool:
    """Whether the supervisor died before it saw this, or before brokers took what it had to say."""
    deaths = [s.at_s for s in others if s.fault.name == "supervisor-kill" and s is not story]
    away = [s for s in others if s.fault.name.startswith("broker")]
    end_s = _end_s(story) + TELL_S
    return any(
        death_s - story.at_s <= SEE_S
        or any(each.at_s <= death_s and _end_s(each) >= story.at_s for each in away)
        for death_s in deaths
        if story.at_s <= death_s <= end_s
    )


def dishonest(story: Story, looks: Iterable[Look]) -> list[str]:
    """Answers of `status` that all is well while lanes were silent for long."""
    if story.back_s is None or story.back_s <= LATE_S:
        return []
    begin_s, end_s = story.at_s + LATE_S, story.at_s + story.back_s
    wrong = [x for x in looks if begin_s <= x.at_s < end_s and x.state == "healthy"]
    if not wrong:
        return []
    after_s = wrong[0].at_s - story.at_s
    return [f"{_name(story)}: {after_s:.1f} s after it `status` said healthy: {wrong[0].words}"]


def _overlap_s(story: Story, others: Sequence[Story]) -> float:
    """Seconds of this story's silence in which others were silent too, each second once."""
    end_s = story.at_s + (story.back_s or 0.0)
    spans = sorted(
        (max(each.at_s, story.at_s), min(_end_s(each), end_s))
        for each in others
        if each is not story and each.at_s < end_s and _end_s(each) > story.at_s
    )
    total, done = 0.0, story.at_s
    for begin, end in spans:
        total += max(0.0, end - max(begin, done))
        done = max(done, end)
    return total


def _end_s(story: Story) -> float:
    return max(story.undone_s, story.at_s + (story.back_s or 0.0))


def meanwhile(story: Story, heard: Sequence[Heard], looks: Sequence[Look]) -> dict[str, list[str]]:
    """What was said from the fault until the lanes were back, for people: each thing once."""
    until_s = _end_s(story) + TELL_S
    said = [h.words for h in heard if story.at_s <= h.at_s <= until_s]
    end_s = story.at_s + max(story.back_s or 0.0, 1.0)
    states = [f"{x.state}: {x.words}" for x in looks if story.at_s <= x.at_s <= end_s]
    return {"journal": list(dict.fromkeys(said)), "status": list(dict.fromkeys(states))}


def _name(story: Story) -> str:
    return f"{story.fault.name} {story.target}".strip()
