"""How good are scores, measured against labels?

Each measure takes arrays and knows neither files nor models. NAB: Lavin and Ahmad 2015
(arXiv 1510.03336), as NAB v1.1 computes it. VUS-PR: Paparrizos et al., VLDB 2022, as TSB-AD
computes it, with 250 thresholds. Hit rate: Su et al., KDD 2019 (OmniAnomaly). Point-adjusted F1 is
left out on purpose: it praises chance.

A *window* is a stretch of one key that somebody labelled. Windows come as one integer for each
record: -1 outside, the same number within.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raywatch.models.scorer import F64, I64

Bools = NDArray[np.bool_]

PROBATION, PROBATION_MAX = 0.15, 750  # NAB: share of a series, and records, that do not count
THRESHOLDS = 250  # of VUS-PR


class Profile(NamedTuple):
    """What NAB gives for a window found, and takes for one missed and for a false detection."""

    hit: float
    miss: float
    false: float


PROFILES = {
    "standard": Profile(1.0, 1.0, 0.11),
    "low_fp": Profile(1.0, 1.0, 0.22),
    "low_fn": Profile(1.0, 2.0, 0.11),
}


class Nab(NamedTuple):
    """Score of a profile (0: detects nothing, 100: perfect) and the threshold that gives it."""

    score: float
    threshold: float


def stretches(inside: Bools) -> list[tuple[int, int]]:
    """First and last index of each run of true."""
    edge = np.diff(np.concatenate(([0], inside.astype(np.int8), [0])))
    begin, end = np.flatnonzero(edge == 1), np.flatnonzero(edge == -1) - 1
    return list(zip(begin.tolist(), end.tolist(), strict=True))


def numbered(label: I64, normal: int) -> I64:
    """Windows of a label column: each run of one value that is not `normal` is a window."""
    begins = np.concatenate(([True], label[1:] != label[:-1])) & (label != normal)
    return np.where(label != normal, np.cumsum(begins) - 1, -1)


# ---- NAB ---------------------------------------------------------------------------------------


def nab(series: Sequence[tuple[F64, I64]], threshold: float | None = None) -> dict[str, Nab]:
    """NAB's score for each profile, over all series with one threshold.

    Args:
        series: (score (n,), window (n,)) of each key; larger scores are stranger, NaN is none.
        threshold: a detection is a score of at least so much; without it the best one is taken,
            as NAB does, which looks at the labels.
    """
    counted = [_counted(score, window, at) for at, (score, window) in enumerate(series)]
    windows = sum(len(np.unique(window[window >= 0])) for _, window in series)
    if not windows:
        return dict.fromkeys(PROFILES, Nab(math.nan, math.nan))
    score, window, reward = (np.concatenate(each) for each in zip(*counted, strict=True))
    order = np.argsort(-score, kind="stable")
    score, window, reward = score[order], window[order], reward[order]
    return {
        name: _nab(profile, score, window, reward, windows, threshold)
        for name, profile in PROFILES.items()
    }


def _counted(score: F64, window: I64, at: int) -> tuple[F64, I64, F64]:
    """Of the records of a key that count: score, window by a number of its own, reward."""
    begin = min(math.floor(PROBATION * len(score)), PROBATION_MAX)
    number = np.where(window >= 0, window + (at << 32), -1)
    found = np.nan_to_num(score.astype(np.float64), nan=-np.inf)
    return found[begin:], number[begin:], _rewards(window)[begin:]


def _rewards(window: I64) -> F64:
    """What a detection at each record is worth: 1 at the begin of a window, -1 far from any."""
    at, reward = np.arange(len(window), dtype=np.float64), np.full(len(window), -1.0)
    runs = _windows(window)
    for index, (begin, end) in enumerate(runs):
        width = float(end - begin + 1)
        inside = at[begin : end + 1]
        reward[begin : end + 1] = _sigmoid(-(end - inside + 1.0) / width) / _sigmoid(np.float64(-1))
        until = runs[index + 1][0] if index + 1 < len(runs) else len(window)
        if width > 1.0:  # of a window of one record NAB's formula divides by nothing
            reward[end + 1 : until] = _sigmoid((at[end + 1 : until] - end) / (width - 1.0))
    return reward


def _sigmoid(position: F64 | np.float64) -> F64:
    """NAB's: 1 far before the end of a window, 0 at it, -1 far behind."""
    inside = 2.0 / (1.0 + np.exp(5.0 * np.clip(position, -60.0, 60.0))) - 1.0
    return np.where(position > 3.0, -1.0, inside)


def _nab(
    profile: Profile, score: F64, window: I64, reward: F64, windows: int, threshold: float | None
) -> Nab:
    """`score` falls; of each window the best detection counts, of false ones each."""
    gain = np.where(window < 0, reward * profile.false, 0.0)
    best = dict.fromkeys(np.unique(window[window >= 0]).tolist(), -profile.miss)
    for at in np.flatnonzero(window >= 0).tolist():
        number, worth = int(window[at]), float(reward[at]) * profile.hit
        if worth > best[number]:
            gain[at] = worth - best[number]
            best[number] = worth
    nothing = -profile.miss * len(best)
    last = np.concatenate((score[1:] != score[:-1], [True]))
    thresholds = np.concatenate(([np.inf], score[last]))
    totals = np.concatenate(([nothing], (nothing + np.cumsum(gain))[last]))
    at = int(np.argmax(totals))
    if threshold is not None:
        at = int(np.flatnonzero(thresholds >= threshold)[-1])
    null = -profile.miss * windows
    share = (totals[at] - null) / (windows * profile.hit - null)
    return Nab(100.0 * float(share), float(thresholds[at]))


# ---- VUS-PR ------------------------------------------------------------------------------------


def vus_pr(score: F64, inside: Bools, buffer: int) -> float:
    """Volume under the precision-recall surface, over buffers of 0 to `buffer` records.

    Args:
        score: (n,) larger is stranger, NaN counts as 0.
        inside: (n,) whether a record is anomalous; NaN is returned where none is.
        buffer: widest zone around an anomaly within which a detection still counts in part; the
            length of a typical pattern.
    """
    n, positives, parts = len(inside), int(inside.sum()), stretches(inside)
    if not positives:
        return math.nan
    score = np.nan_to_num(score.astype(np.float64), nan=0.0)
    cuts = -np.sort(-score)[np.linspace(0, n - 1, THRESHOLDS).astype(int)]
    rank = np.searchsorted(-cuts, -score, side="left")
    predicted = _summed(rank)
    hits = _summed(rank[inside])
    area = 0.0
    for width in range(buffer + 1):
        soft = _softened(inside, parts, width)
        edge = (soft > 0.0) & ~inside
        soft_hits = _summed(rank[edge], soft[edge])
        ranges = _merged(parts, width, n)
        first = np.array([rank[begin : end + 1].min() for begin, end in ranges])
        existence = _summed(first) / len(ranges)
        true = hits + soft_hits
        recall = np.minimum(true / ((positives + positives + soft_hits) / 2.0), 1.0)
        steps = np.diff(np.concatenate(([0.0], recall * existence)))
        area += float(np.dot(steps, true / predicted))
    return area / (buffer + 1)


def _summed(rank: I64, weight: F64 | None = None) -> F64:
    """For each threshold: how many are at least that strange."""
    counts = np.bincount(rank, weights=weight, minlength=THRESHOLDS)[:THRESHOLDS]
    return np.cumsum(counts).astype(np.float64)


def _softened(inside: Bools, parts: Iterable[tuple[int, int]], width: int) -> F64:
    """Labels with slopes of half the width on both sides."""
    soft, half, n = inside.astype(np.float64), width // 2, len(inside)
    for begin, end in parts if width else ():
        after = np.arange(end + 1, min(end + half + 1, n))
        soft[after] += np.sqrt(1.0 - (after - end) / width)
        before = np.arange(max(begin - half, 0), begin)
        soft[before] += np.sqrt(1.0 - (begin - before) / width)
    return np.minimum(soft, 1.0)


def _merged(parts: Sequence[tuple[int, int]], width: int, n: int) -> list[tuple[int, int]]:
    """Anomalies with half the width on both sides; those that meet are one."""
    half = width // 2
    begin, found = max(parts[0][0] - half, 0), list[tuple[int, int]]()
    for (_, end), (start, _) in pairwise(parts):
        if end + half < start - half:
            found.append((begin, end + half))
            begin = start - half
    return [*found, (begin, min(parts[-1][1] + half, n - 1))]


# ---- at a rate of false alarms, and as it alerts -----------------------------------------------


def event_recall(score: F64, window: I64, rate: float) -> float:
    """Share of windows that rise above what this share of normal records exceeds; NaN: none."""
    score = np.nan_to_num(score.astype(np.float64), nan=-np.inf)
    normal, parts = np.sort(score[window < 0])[::-1], _windows(window)
    if not parts or not len(normal):
        return math.nan
    level = normal[int(rate * len(normal))]
    return float(np.mean([score[begin : end + 1].max() > level for begin, end in parts]))


class Alarms(NamedTuple):
    """What was alerted, of the windows of one key."""

    delays: list[int]  # records from the begin of each window that was found to its first alert
    shares: list[float]  # the same, in lengths of the window
    missed: int
    false: int  # alerts outside every window


def alarms(alert: Bools, window: I64) -> Alarms:
    """Windows found by alerts."""
    delays, shares, parts = list[int](), list[float](), _windows(window)
    for begin, end in parts:
        hits = np.flatnonzero(alert[begin : end + 1])
        if len(hits):
            delays.append(int(hits[0]))
            shares.append(float(hits[0] / (end - begin + 1)))
    return Alarms(delays, shares, len(parts) - len(delays), int((alert & (window < 0)).sum()))


def hit_rate(evidence: F64, causes: Sequence[int], share: float) -> float:
    """HitRate@P% of one window, P% = `share`: whether what is blamed is to blame.

        |G and the first floor(P% * |G|) channels by evidence| / |G|      G: causes

    A channel's evidence over a window is the largest that it had at any of its records; means and
    sums over the window, and the record where the key as a whole was strangest, rank worse
    (docs/quality.md). Of channels with equal evidence those that are no cause come first: silence
    is worth nothing.

    Args:
        evidence: (n, C) of each record of the window; NaN is none.
        causes: channels that somebody found to be the cause; at least one.
        share: 1.0 and 1.5 are usual.
    """
    guilty = np.zeros(evidence.shape[1], np.bool_)
    guilty[list(causes)] = True
    count = int(guilty.sum())
    assert count > 0, causes
    largest = np.nan_to_num(evidence, nan=-np.inf).max(axis=0)
    blamed = np.lexsort((guilty, -largest))[: math.floor(share * count)]
    return float(guilty[blamed].sum() / count)


def _windows(window: I64) -> list[tuple[int, int]]:
    """First and last index of each window."""
    edges = (np.flatnonzero(window[1:] != window[:-1]) + 1).tolist()
    runs = pairwise([0, *edges, len(window)])
    return [(begin, end - 1) for begin, end in runs if window[begin] >= 0]
