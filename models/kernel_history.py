"""How does a record enter the history of its key, and what of it does a scorer get to see?

One pass over the grouped batch, key after key: values are anchored, statistics brought forward,
aligned block means completed, segments written, rings advanced. Everything is sequential in the
key's own records and nothing is summed across a batch, so a batch cut in two gives the same bits.

Cost: O(T) arithmetic and O(H) copying a key, channel and batch.
"""

import numpy as np
from numba import njit

from raywatch.models.kernel import NAN
from raywatch.models.scorer import C4, C8, F32, F64, FINE, I32, I64

# Columns of the statistics of one key and channel. All values but the anchor are anchored.
ANCHOR, LAST, SUM4, SUM8, COUNT, MEAN, M2, LOW, HIGH = range(9)
COLUMNS = 9

KEPT = (FINE.history, C4.history, C8.history)
BLOCK = (FINE.block, C4.block, C8.block)
RING4 = FINE.history  # where the ring of 4-means begins in the row of a key and channel
RING8 = FINE.history + C4.history
RING = FINE.history + C4.history + C8.history

UNIT_RECORDS = 500  # values of a channel whose range is its unit
UNIT_FLOOR = 0.03  # of the unit: the least deviation a weight believes in
FAR = 1e18  # Anchored values end here: the square of a difference must stay finite in float32.
WEIGHT_MAX = 1e18  # A weight must stay finite in float32, and so must its product with a score.


@njit(cache=True, nogil=True)
def count_fresh(index: I64, touched: I32, counts: I32, blocks: I64, fresh: I32) -> None:
    """fresh[l, k]: values that key k gains on a level of `blocks[l]` records a value."""
    for k in range(touched.shape[0]):
        n = index[touched[k]]
        for level in range(blocks.shape[0]):
            fresh[level, k] = (n + counts[k]) // blocks[level] - n // blocks[level]


@njit(cache=True, nogil=True)
def observe(stat: F64, x: float) -> float:
    """Bring the statistics of one channel forward by one value; returns it anchored.

    A missing value (not finite) repeats the last one and leaves count, mean, M2 and range alone;
    NaN while there was none.
    """
    if not np.isfinite(x):
        return stat[LAST] if stat[COUNT] > 0.0 else np.nan
    if stat[COUNT] == 0.0:
        stat[ANCHOR] = x
    z = min(max(x - stat[ANCHOR], -FAR), FAR)
    stat[LAST] = z
    stat[COUNT] += 1.0
    d = z - stat[MEAN]
    stat[MEAN] += d / stat[COUNT]
    stat[M2] += d * (z - stat[MEAN])
    if stat[COUNT] <= UNIT_RECORDS:
        stat[LOW] = min(stat[LOW], z)
        stat[HIGH] = max(stat[HIGH], z)
    return z


@njit(cache=True, nogil=True)
def usual_unit(stats: F64, units: F64) -> float:
    """Median of the units of those channels that have one, 0 where none has."""
    known = 0
    for c in range(stats.shape[0]):
        unit = stats[c, HIGH] - stats[c, LOW]
        if unit > 0.0:
            at = known
            while at > 0 and units[at - 1] > unit:
                units[at] = units[at - 1]
                at -= 1
            units[at] = unit
            known += 1
    if known == 0:
        return 0.0
    return 0.5 * (units[(known - 1) // 2] + units[known // 2])


@njit(cache=True, nogil=True)
def weigh(stat: F64, usual: float) -> float:
    """1 / sqrt(u sqrt(var + (.03 u)^2)); 0 where nothing is known of the channel's size."""
    if stat[COUNT] == 0.0:
        return 0.0
    unit = stat[HIGH] - stat[LOW]
    if unit <= 0.0:
        unit = usual
    floor = UNIT_FLOOR * unit
    size = unit * np.sqrt(stat[M2] / stat[COUNT] + floor * floor)
    return min(1.0 / np.sqrt(size), WEIGHT_MAX) if size > 0.0 else 0.0


@njit(cache=True, nogil=True)
def absorb(
    stats: F64, n: int, values: F64, fine: F32, means4: F32, means8: F32, weight: F32, units: F64
) -> None:
    """Take in T records of one key.

    Args:
        stats: (C, COLUMNS), brought forward.
        n: records of the key before these.
        values: (T, C), NaN where missing.
        fine: out, (C, >= T) anchored values.
        means4: out, (C, >= T // 4 + 1) means of blocks of 4 that these records complete.
        means8: out, the same for 8.
        weight: out, (C * T,) channel after channel, or of length 0.
        units: scratch, (C,).
    """
    size, channels = values.shape
    usual = 0.0
    for t in range(size):
        end = n + t + 1
        ranged = t == 0
        for c in range(channels):
            stat = stats[c]
            low, high = stat[LOW], stat[HIGH]
            z = observe(stat, values[t, c])
            ranged = ranged or stat[LOW] < low or stat[HIGH] > high
            # + 0 turns -0 into 0: scorers may sort, and -0 has no place in an order.
            fine[c, t] = np.float32(z) + np.float32(0.0)
            stat[SUM4] += z
            stat[SUM8] += z
            if end % 4 == 0:
                means4[c, end // 4 - n // 4 - 1] = np.float32(stat[SUM4] / 4.0) + np.float32(0.0)
                stat[SUM4] = 0.0
            if end % 8 == 0:
                means8[c, end // 8 - n // 8 - 1] = np.float32(stat[SUM8] / 8.0) + np.float32(0.0)
                stat[SUM8] = 0.0
        if weight.shape[0] > 0:
            if ranged:
                usual = usual_unit(stats, units)
            for c in range(channels):
                weight[c * size + t] = np.float32(weigh(stats[c], usual))


@njit(cache=True, nogil=True)
def write_row(ring: F32, held: int, new: F32, size: int, row: F32) -> None:
    """One row of a segment: NaN, then what the ring holds, then `size` new values.

    The ring has taken in `held` values since the key began; value i lies at i modulo its length.
    """
    length = ring.shape[0]
    history = row.shape[0] - size
    known = min(held, history)
    row[: history - known] = NAN
    first = (held - known) % length
    early = min(known, length - first)
    row[history - known : history - known + early] = ring[first : first + early]
    row[history - known + early : history] = ring[: known - early]
    row[history:] = new[:size]


@njit(cache=True, nogil=True)
def advance(ring: F32, held: int, new: F32, size: int) -> None:
    """Write the last of `size` new values over the oldest of the ring."""
    length = ring.shape[0]
    begin = max(0, size - length)
    to = (held + begin) % length
    early = min(size - begin, length - to)
    ring[to : to + early] = new[begin : begin + early]
    ring[: size - begin - early] = new[begin + early : size]


@njit(cache=True, nogil=True)
def append_records(
    index: I64,
    stats: F64,
    rings: F32,
    touched: I32,
    counts: I32,
    values: F64,
    kinds: I64,
    asked: I64,
    begin: I64,
    out: F32,
    anchor: F64,
    weight: F32,
) -> None:
    """Append a grouped batch of K keys and write its segments.

    Args:
        index: (S,) records of each slot so far, brought forward.
        stats: (S, C, COLUMNS), brought forward.
        rings: (S, C, RING), brought forward.
        touched: (K,) slots, each once.
        counts: (K,) records of each.
        values: (N, C), key after key.
        kinds: (L,) which of LEVELS each level of the segments is.
        asked: (L,) history of each, at most what is kept.
        begin: (L,) where each level begins in `out`; used up.
        out: segments.
        anchor: out, (K * C,).
        weight: out, (N * C,) or of length 0.
    """
    channels = values.shape[1]
    longest = 0
    for k in range(counts.shape[0]):
        longest = max(longest, counts[k])
    scratch = np.empty((3, channels, longest + 1), np.float32)
    units = np.empty(channels, np.float64)
    at = 0
    for k in range(touched.shape[0]):
        slot, size = touched[k], int(np.int64(counts[k]))
        n = int(index[slot])
        held = (n, n // 4, n // 8)
        new = (size, (n + size) // 4 - n // 4, (n + size) // 8 - n // 8)
        absorb(
            stats[slot],
            n,
            values[at : at + size],
            scratch[0],
            scratch[1],
            scratch[2],
            weight[at * channels : (at + size) * channels],
            units,
        )
        for level in range(kinds.shape[0]):
            kind, history = kinds[level], asked[level]
            if new[kind] == 0:
                continue
            for c in range(channels):
                row = out[begin[level] : begin[level] + history + new[kind]]
                ring = level_ring(rings[slot, c], kind)
                write_row(ring, held[kind], scratch[kind, c], new[kind], row)
                begin[level] += history + new[kind]
        for kind in range(3):
            for c in range(channels):
                ring = level_ring(rings[slot, c], kind)
                advance(ring, held[kind], scratch[kind, c], new[kind])
        for c in range(channels):
            known = stats[slot, c, COUNT] > 0.0
            anchor[k * channels + c] = stats[slot, c, ANCHOR] if known else np.nan
        index[slot] = n + size
        at += size


@njit(cache=True, nogil=True)
def level_ring(rings: F32, kind: int) -> F32:
    """The ring of one of LEVELS in the row of a key and channel."""
    if kind == 0:
        return rings[:RING4]
    return rings[RING4:RING8] if kind == 1 else rings[RING8:]


@njit(cache=True, nogil=True)
def move_rings(index: I64, rings: F32, packed: F32, pack: bool) -> None:
    """What each slot's rings hold, slot after slot, into `packed`, or from there back.

    A ring of which `n` values were ever written holds them in its first n places.
    """
    at = 0
    for slot in range(index.shape[0]):
        n = index[slot]
        for c in range(rings.shape[1]):
            for kind in range(3):
                ring = level_ring(rings[slot, c], kind)
                held = min(n // BLOCK[kind], ring.shape[0])
                if pack:
                    packed[at : at + held] = ring[:held]
                else:
                    ring[:held] = packed[at : at + held]
                at += held
