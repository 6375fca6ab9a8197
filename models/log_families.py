"""Which bare words are values after all? Those that many templates of a key differ in.

    status installed adduser <*>, status installed apt <*>, ... -> status installed <*> <*>

Each template that is new to a key counts for its families: the ids it would have with one word more
a value (the first word is never one). A family that OPEN new templates counted for is open: from
then on new templates in it go by its id, and so do those of a family that is a template already.
Ids that were given stay: a template known before its family opened keeps its own until it is
forgotten.

Bounded: FAMILIES rows a key, the longest unused is forgotten (pages.py). Two bare words that
vary at once open no family.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.models.pages import Shelf, find, room
from raywatch.models.scorer import I32, I64

U64 = NDArray[np.uint64]

FAMILIES = 512
OPEN = 8  # Fewer merges kinds of a handful of states (started, paused, ...): measured from 4 down.


@njit(cache=True, nogil=True)
def resolve(
    code: np.uint64,
    families: U64,
    slot: int,
    now: int,
    known: Shelf,
    known_stamp: I64,
    family: Shelf,
    family_stamp: I64,
    met: I32,
) -> np.uint64:
    """The id a template that is new to its key goes by; counts it for its families.

    Args:
        code: its own id.
        families: (F,) those of its families, 0 behind the last one.
        slot: the key.
        now: the key's count of lines.
        known: ids of the key's templates.
        known_stamp: (R,), see pages.py.
        family: ids, this and what follows is the state.
        family_stamp: (R,), see pages.py.
        met: (R,) new templates that counted for each.
    """
    chosen, most = code, OPEN - 1
    page, depth, _, codes = family
    known_page, known_depth, _, known_code = known
    for each in families:
        if each == 0:
            break
        row, there = find(page, depth, codes, family_stamp, slot, each)
        if row < 0:
            row = room(family, family_stamp, (family_stamp, met), slot, each)
        if not there:
            codes[row] = each
            met[row] = 0
        met[row] += 1
        family_stamp[row] = now
        count = met[row]
        if count > most or (
            most < OPEN and find(known_page, known_depth, known_code, known_stamp, slot, each)[1]
        ):
            chosen, most = each, max(count, OPEN)
    return chosen
