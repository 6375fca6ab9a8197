"""The lag bank in torch: for CUDA devices, and to hold the kernels against.

The same components as `lagbank.py`, the same folds in the same order. Multiply and add are rounded
apart here, so answers agree to about 1e-6 and not bit for bit: replay an alert on the device class
that raised it. All sums are elementwise folds, never a reduction of torch's own, whose order may
depend on the shape of the tile.

Rows are worked on a few at a time: one lag row a key for many keys at once is tens of MiB that no
cache holds (measured on CPU: 10 times slower).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from raywatch.models.kernel import LONG, LONG_SUM, SHORT, SHORT_SUM
from raywatch.models.kernel_window import (
    ROUGH_FLOOR,
    ROUGH_NOW,
    ROUGH_PAST,
    ROUGH_PAST_MIN,
    SHIFT_CONSTANT,
    SHIFT_NOW,
    SHIFT_PAST,
    SHIFT_PAST_MIN,
    VARY,
    VARY_FLOOR,
    VARY_PAST,
    VARY_PAST_MIN,
)
from raywatch.models.lagbank import COARSE_LAG0, FINE_LAG0, LONG_FROM, Lags
from raywatch.models.scorer import F32, I32, I64, Scores, Segments

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 64  # most new values of a row in one operation
ROWS_CPU = 8  # rows in one operation: 2 MiB of distances
ROWS_CUDA = 512  # the same on a GPU: 130 MiB


class LagBankTorch:
    """The lag bank on any device torch knows."""

    def __init__(
        self,
        version: str,
        *,
        device: str = "cpu",
        rows: int = 0,
        fine_lags: int = 512,
        c4_lags: int = 512,
        c8_lags: int = 256,
    ) -> None:
        """`rows`: rows in one operation, 0 chooses. Raises ConfigError on lags not kept."""
        self.version = version
        self._lags = Lags(fine_lags, c4_lags, c8_lags)
        self._device = device
        self._rows = rows or (ROWS_CPU if device == "cpu" else ROWS_CUDA)
        self.levels = self._lags.levels
        self.components = self._lags.components

    def score(self, segments: Segments) -> Scores:
        """Score one batch."""
        assert segments.levels == self.levels, (segments.levels, self.levels)
        found: dict[str, list[Tensor]] = {
            name: [] for name in (*(each.name for each in self.components), "expected", "lag")
        }
        for x, new, mask in self._pieces(segments, 0):
            short, long, lag = bank(x, new, FINE_LAG0, self._lags.fine, LONG_FROM)
            step, quiet = roughness(x, new)
            parts = {"s": short, "l": long, "lag": lag, "diff": step, "lowr": quiet}
            parts["vs"] = variance_shift(x, new)
            parts["expected"] = expectation(x, new, lag)
            for name, part in parts.items():
                found[name].append(part[mask])
        for level, kept in enumerate(self.levels[1:], 1):
            lags = self._lags.c4 if kept.name == "c4" else self._lags.c8
            for x, new, mask in self._pieces(segments, level):
                found[kept.name].append(bank(x, new, COARSE_LAG0, lags, COARSE_LAG0)[1][mask])
                if kept.name == "c8":
                    found["ls"].append(level_shift(x, new)[mask])
        answer = {name: _joined(parts) for name, parts in found.items()}
        expected, lag_found = answer.pop("expected"), answer.pop("lag").astype(np.int32)
        return Scores(answer, expected, lag_found, self.version)

    def _pieces(self, segments: Segments, level: int) -> Iterator[tuple["Tensor", int, "Tensor"]]:
        """(x (P, H + T), T, mask (P, T)): rows ending together, NaN before where one is shorter.

        Masked answers follow one another in row order, oldest first.
        """
        import torch

        values, begin, fresh = segments.rows(level)
        history = segments.levels[level].history
        flat = torch.tensor(values, device=self._device)
        first, size = cut(begin, fresh)
        for at in range(0, first.shape[0], self._rows):
            some = torch.tensor(size[at : at + self._rows], device=self._device)
            start = torch.tensor(first[at : at + self._rows], device=self._device)
            new = int(size[at : at + self._rows].max())
            span = torch.arange(history + new, device=self._device) - (history + new)
            index = (start + history + some)[:, None] + span
            inside = index >= start[:, None]
            x = torch.where(inside, flat[index.clamp(min=0)], torch.nan)
            mask = torch.arange(new, device=self._device) >= new - some[:, None]
            yield x, new, mask


def cut(begin: I64, fresh: I32) -> tuple[I64, I64]:
    """Rows cut into pieces of at most PIECE new values: (where each begins, its new values)."""
    parts = (fresh.astype(np.int64) + PIECE - 1) // PIECE
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    size = np.minimum(np.repeat(fresh, parts) - number * PIECE, PIECE)
    return np.repeat(begin, parts) + number * PIECE, size


def bank(
    x: "Tensor", new: int, lag0: int, lags: int, long_from: int
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Short and long distances (P, T), NaN where there is none, and the lag of the long one."""
    import torch

    size = x.shape[1]
    wide = new + LONG - 1
    past = x.unfold(1, wide, 1)[:, size - wide - lag0 - lags + 1 : size - wide - lag0 + 1].flip(1)
    squares = (x[:, None, size - wide :] - past).square()
    short = fold(squares[..., wide - new - SHORT + 1 :], SHORT // 2, 0.75).amin(1)
    long, where = fold(squares[:, long_from - lag0 :], LONG // 2, 15 / 16).min(1)
    there = torch.isfinite(long)
    lag = torch.where(there, where + long_from, 0)
    return _distance(short, float(SHORT_SUM)), _distance(long, float(LONG_SUM)), lag


def fold(a: "Tensor", stride: int, fade: float) -> "Tensor":
    """Fading sums of 2 * stride values along the last axis; inf where one is not there."""
    import torch

    while stride > 0:
        a = a[..., stride:] + float(np.float32(fade**stride)) * a[..., :-stride]
        stride //= 2
    return torch.where(torch.isnan(a), torch.inf, a)


def expectation(x: "Tensor", new: int, lag: "Tensor") -> "Tensor":
    """The value `lag` before each new one, NaN where there is no lag."""
    import torch

    at = torch.arange(x.shape[1] - new, x.shape[1], device=x.device) - lag
    return torch.where(lag > 0, x.gather(1, at), torch.nan)


def roughness(x: "Tensor", new: int) -> tuple["Tensor", "Tensor"]:
    """The last step and ln(past / now), each (P, T); see kernel_window."""
    import torch

    steps = x.diff(dim=1).abs()
    known = torch.isnan(x).sum(1, keepdim=True)
    filled = torch.nan_to_num(steps, nan=0.0)
    now = fold(filled, ROUGH_NOW // 2, 1.0)[:, -new:].double() / ROUGH_NOW
    past = fold(filled[:, :-ROUGH_NOW], ROUGH_PAST // 2, 1.0)[:, -new:].double()
    last = torch.arange(x.shape[1] - new, x.shape[1], device=x.device)
    count = (last - ROUGH_NOW - known).clamp(max=ROUGH_PAST)
    before = past / count
    quiet = (before / torch.maximum(now, ROUGH_FLOOR * before)).log().clamp(min=0.0)
    quiet = torch.where(before > 0.0, quiet, 0.0)
    quiet = torch.where(count >= ROUGH_PAST_MIN, quiet, torch.nan)
    return steps[:, -new:], quiet.float()


def variance_shift(x: "Tensor", new: int) -> "Tensor":
    """ln(now / past) of variances, (P, T); see kernel_window."""
    import torch

    known = torch.isnan(x).sum(1, keepdim=True)
    values = x.nan_to_num(nan=0.0).double()
    mean, square = (fold(each, VARY // 2, 1.0) / VARY for each in (values, values.square()))
    variance = (square - mean.square()).clamp(min=0.0)
    # Windows end with each new value, and 64, 128, ... values before it.
    back = torch.arange(VARY_PAST + 1, device=x.device) * VARY
    last = torch.arange(variance.shape[1] - new, variance.shape[1], device=x.device)
    window = (last[:, None] - back).clamp(min=0)
    there = ((last[:, None] - back) >= 0) & (window >= known[..., None])
    past = torch.where(there, variance[:, window], 0.0)[..., 1:].sum(-1)
    largest = torch.where(there, square[:, window], 0.0).amax(-1)
    count = there[..., 1:].sum(-1)
    now = variance[:, -new:]
    shift = (now * count / past).log()
    quiet = (past <= VARY_FLOOR * largest * count) | (now * count <= past)
    shift = torch.where(quiet, 0.0, shift)
    return torch.where(count >= VARY_PAST_MIN, shift, torch.nan).float()


def level_shift(x: "Tensor", new: int) -> "Tensor":
    """The level shift (P, T) of block means; see kernel_window."""
    import torch

    x = x.double()
    now = x.unfold(1, SHIFT_NOW, 1)[:, -new:]
    now = (total(now[..., :8]) + total(now[..., 8:])) / SHIFT_NOW
    past = x[:, :-SHIFT_NOW].unfold(1, SHIFT_PAST, 1)[:, -new:]
    missing = torch.isnan(past)
    count = (~missing).sum(-1)
    mean = total(past.nan_to_num(nan=0.0)) / count
    away = (past - mean[..., None]).square().nan_to_num(nan=0.0)
    deviation = (total(away) / count).sqrt()
    high = torch.where(missing, -torch.inf, past).amax(-1)
    low = torch.where(missing, torch.inf, past).amin(-1)
    moved = (now - mean).abs()
    shift = moved / (deviation + 0.01 * (high - low))
    constant = torch.where(moved > 0.0, float(SHIFT_CONSTANT), 0.0)
    shift = torch.where(high > low, shift, constant)
    return torch.where(count >= SHIFT_PAST_MIN, shift, torch.nan).float()


def total(a: "Tensor") -> "Tensor":
    """Sum over the last axis, whose length is a power of 2."""
    while a.shape[-1] > 1:
        half = a.shape[-1] // 2
        a = a[..., :half] + a[..., half:]
    return a[..., 0]


def _distance(least: "Tensor", total: float) -> "Tensor":
    import torch

    return torch.where(torch.isfinite(least), (least / total).sqrt(), torch.nan)


def _joined(parts: list["Tensor"]) -> F32:
    import torch

    if not parts:
        return np.zeros(0, np.float32)
    return torch.cat(parts).cpu().numpy()
