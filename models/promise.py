"""Does one record in a thousand fall below p = 0.001?

Calibration of components (calibrate.py) is a fit: several of them look at the same record, fits of
light tails are timid, and a level shift leaves them timid for thousands of records. So what they
say together is held against what was promised, by the key's own past: a line follows the size that
one record in 1,000 exceeds, a second one, `gap` above it, that of one in 10,000;

    -log10 p = 3 r / line                  r: -log10 of what is said, up to the line
             = 3 + (r - line) / gap        up to the second line
             = 4 + (r - line - gap)        beyond it

    line += 1.5 * ((r > line) - 0.001)                          after each record
    gap  += 0.4 * ((r > line + gap) - 0.1)                      after each that exceeds the line

Adaptive conformal inference (Gibbs & Candes 2021, NeurIPS): whatever the distribution, the share
beyond the line tends to what it should be. The line never rises more than 1.25 above its own mean
of the last 2,000 records, and the gap stays within 0.7 and 2: no incident may buy silence. Below
1e-4 nothing is promised: there the fits' own tail ranks. Lines that few records have moved may lie
low by chance: where they make a record rarer than r, or 4, says, a key of t records is believed
t / (t + 1,000) of the difference.

State is `promise[slot, (line, gap, mean of line)]`, as differences from where they begin. Zeros are
new.
"""

from numba import njit

from raywatch.models.scorer import F64

LINE, GAP, USUAL = range(3)
COLUMNS = 3

BEGIN = 200  # records of a key before the lines move
KNOWN = 1_000.0  # records after which half of what the lines add beyond 1e-4 is believed
LINE_START, LINE_MIN, LINE_STEP = 2.6, 1.0, 1.5
ROOM = 1.25  # of the line above its mean
USUAL_RATE = 1.0 / 2_000.0
GAP_START, GAP_MIN, GAP_MAX, GAP_STEP = 0.85, 0.7, 2.0, 0.4
RATE, RATE_BEYOND = 1e-3, 0.1
FARTHEST = 400.0  # No line is so far from where it began: nothing so rare is said.


@njit(cache=True, nogil=True)
def kept(state: F64, slot: int, rare: float, age: int) -> float:
    """-log10 p >= 0 of what is said to be `rare` (-log10, any number). Changes nothing.

    `age`: records of the key before this one.
    """
    line, gap = LINE_START + state[slot, LINE], GAP_START + state[slot, GAP]
    if rare <= line:
        return max(3.0 * rare / line, 0.0)
    if rare <= line + gap:
        return 3.0 + (rare - line) / gap
    said, least = 4.0 + (rare - line - gap), max(rare, 4.0)
    return min(said, least + (said - least) * age / (age + KNOWN))


@njit(cache=True, nogil=True)
def follow(state: F64, slot: int, rare: float) -> None:
    """Move the lines by what was said."""
    line, gap = LINE_START + state[slot, LINE], GAP_START + state[slot, GAP]
    above = 1.0 if rare > line else 0.0
    if above:
        beyond = 1.0 if rare > line + gap else 0.0
        gap = min(max(gap + GAP_STEP * (beyond - RATE_BEYOND), GAP_MIN), GAP_MAX)
        state[slot, GAP] = gap - GAP_START
    usual = LINE_START + state[slot, USUAL]
    line = min(max(line + LINE_STEP * (above - RATE), LINE_MIN), usual + ROOM)
    state[slot, LINE] = line - LINE_START
    state[slot, USUAL] += USUAL_RATE * (line - usual)
