"""When does an alert begin, grow and end? One alert an incident.

    calm --(p <= probability, gate open, warm)--> open           `open`
    open --(p <= last reported p / update_factor)--> open        `update`
    open --(`quiet` records in a row with p > 10 * probability)--> calm   `resolved`

Where a budget asks for more than `probability` (budget.py) and p does not reach it, a calm key is
hushed instead, which says nothing; it opens once p does, and is calm again when it was quiet.

A gate lets through what is at least as rare as everything lately: M <- max(M * d, rare), half-life
20 records. Alerts have one, of -log10 p, and event scores another, of what ranks them: what has a
part in p alone is not to wait for the other. State is float64 and int64 rows by slot; zeros, and
LATEST at the smallest int64, are a new key.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from raywatch.models.scorer import F32, F64, I64, U8

GATE_DECAY = 0.5 ** (1.0 / 20.0)
KEEP = 10.0  # An incident whose p wavers around the line is one incident, not many.
NEVER = int(np.iinfo(np.int64).min)

GATE, REPORTED, GATE_P = range(3)  # columns of the float64 row: M; p at the last open or update
CHANCES = 3
OPEN, SINCE, QUIET, FIRED, ORDINAL, LATEST, REPEATS = range(7)  # columns of the int64 row

CALM, LIVE, HUSHED = range(3)  # in column OPEN

NOTHING, OPENED, UPDATED, RESOLVED, HELD = range(5)
KINDS = ("", "open", "update", "resolved")


@dataclass(frozen=True, slots=True)
class Episode:
    """A step in the life of an incident, with the reason. Channels in the order of the record."""

    index: int  # of the record, in grouped order
    kind: str  # open, update or resolved
    slot: int
    since_ms: int  # time of the record that opened it
    ordinal: int  # 0, or 1, 2, ... where since_ms alone would not name the incident
    p: float  # tail probability of this record
    score: float  # sustained score of this record
    event: float  # event score of this record
    component: str  # what fired; at `resolved`, what had fired last
    channel_share: tuple[float, ...]  # of the squared evidence at this record; sums to 1
    observed: tuple[float, ...]  # as recorded, NaN where missing
    expected: tuple[float, ...]  # in the unit of the record, NaN where unknown
    lag: int  # how many records ago it looked most alike; 0: none
    spread: tuple[float, ...]  # how far from `expected` values usually are, NaN where unknown
    similar_ms: int | None  # about when it looked most alike
    # components that called the channel of the largest share rare, rarest first, and -log10 p
    reasons: tuple[tuple[str, float], ...]
    sums: tuple[float, float] | None = None  # what came and what was due; None: not about counts


@dataclass(frozen=True, slots=True)
class Forgotten:
    """An incident that ends because its key is forgotten."""

    index: int  # of the record that needed the room, in batch order
    slot: int
    since_ms: int
    ordinal: int
    component: str  # what had fired last


@dataclass(frozen=True, slots=True)
class Ended:
    """M sessions that ended."""

    index: I64  # (M,) of the record that noticed it, in grouped order
    session: U8  # (M, bytes) beginning of its id, zeros behind it; nothing where it is withheld
    records: I64  # (M,) that it had
    score: F32  # (M,) >= 0, larger is stranger
    p: F64  # (M,) tail probability among the sessions of the key that ended before


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of N records, in grouped order."""

    score: F32  # (N,) sustained score, >= 0
    p: F64  # (N,) tail probability, in (0, 1]; 1 where nothing had a say
    event: F32  # (N,) how rare for a key of its age, in -log10, where it passed the gate, else 0
    episodes: list[Episode]  # by index
    judged: U8  # (N,) 1 where it might have alerted; 2 where a budget hushed its key
    # (N, C) sum of what components say of each channel (judging.py); None: was not asked for
    evidence: F64 | None = None
    ended: Ended | None = None  # None: records have no sessions


@njit(cache=True, nogil=True)
def gate(chance: F64, slot: int, which: int, rare: float) -> bool:
    """Whether it is at least as rare as everything lately; remembers it. `which`: the column."""
    level = chance[slot, which]
    chance[slot, which] = max(level * GATE_DECAY, rare)
    return rare >= level


@njit(cache=True, nogil=True)
def _begin(incident: I64, slot: int, time_ms: int) -> None:
    """Name a new incident.

    (since, ordinal) never comes twice: either `since` is later than any before and the ordinal is
    0, or the ordinal is one that was never used. Timestamps may repeat and may go back.
    """
    incident[slot, OPEN] = LIVE
    incident[slot, SINCE] = time_ms
    incident[slot, ORDINAL] = 0
    if time_ms > incident[slot, LATEST]:
        incident[slot, LATEST] = time_ms
    else:
        incident[slot, REPEATS] += 1
        incident[slot, ORDINAL] = incident[slot, REPEATS]


@njit(cache=True, nogil=True)
def follow(
    incident: I64,
    chance: F64,
    slot: int,
    time_ms: int,
    p: float,
    may_open: bool,
    fired: int,
    probability: float,
    update_factor: float,
    quiet: int,
    factor: float,
) -> int:
    """One record of a key; returns NOTHING, OPENED, UPDATED, RESOLVED or, when hushed, HELD.

    An incident opens at p <= probability * factor: 1 where no budget asks for more.
    """
    before = incident[slot, OPEN]
    if before != LIVE and p <= probability and may_open:
        incident[slot, QUIET] = 0
        if p > probability * factor:
            incident[slot, OPEN] = HUSHED
            return HELD if before == CALM else NOTHING
        _begin(incident, slot, time_ms)
        incident[slot, FIRED] = fired
        chance[slot, REPORTED] = p
        return OPENED
    if before == CALM:
        return NOTHING
    if p > probability * KEEP:
        incident[slot, QUIET] += 1
        if incident[slot, QUIET] < quiet:
            return NOTHING
        incident[slot, OPEN] = CALM
        return RESOLVED if before == LIVE else NOTHING
    incident[slot, QUIET] = 0
    if before == HUSHED or p * update_factor > chance[slot, REPORTED]:
        return NOTHING
    incident[slot, FIRED] = fired
    chance[slot, REPORTED] = p
    return UPDATED


def ended(rows: I64, index: I64, slots: I64, names: Sequence[str]) -> list[Forgotten]:
    """Which incidents end because their keys are forgotten.

    Args:
        rows: (G, 7) of these keys.
        index: (G,) which record needed the room of each.
        slots: (G,)
        names: of what may have fired.
    """
    return [
        Forgotten(
            index=int(index[at]),
            slot=int(slots[at]),
            since_ms=int(rows[at, SINCE]),
            ordinal=int(rows[at, ORDINAL]),
            component=names[int(rows[at, FIRED])],
        )
        for at in np.flatnonzero(rows[:, OPEN] == LIVE).tolist()
    ]
