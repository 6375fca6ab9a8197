"""How far is a value from what a linear recipe of the last 64 values predicts?

The shipped example of a learned model: one causal autoregressive predictor for all keys,

    mean = mean of x[t-64..t-1]          spread = mean |x[i] - x[i-1]| over the same values
    expected = mean + sum over k < 64 of weights[k] * (x[t-1-k] - mean) + bias * spread
    residual = |x[t] - expected| / max(1.4826 * median, mean / 2 of the last 64 |x - expected|)

so it does not care for the unit of a key. 1.4826 makes the median deviation of Gaussian residuals
their standard deviation (Rousseeuw & Croux 1993); the mean bounds it from below where most values
are equal. Both need 64 residuals before t, each of which needs 64 values: H = 128.

Bit for bit the same for every cut and mix of a batch, and on CPU and CUDA: a matrix product sums
in an order that depends on its shape, so the 64 products are summed in a loop, oldest first, by
elementwise operations that IEEE 754 rounds in one way only (no fused multiply-add, no reduction).
Knows nothing of seasons longer than 64 values.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raywatch.models.artifact import tensors_from_bytes
from raywatch.models.errors import ArtifactError
from raywatch.models.scorer import F32, I32, I64, Component, Level, Scores, Segments

if TYPE_CHECKING:
    import torch

TAPS = 64
HISTORY = 2 * TAPS
YOUNG = 16  # residuals of the window that must be known before a value is judged
GAUSS = 1.4826
SCORE_MAX = 1e6  # bounds the score where a key never moved before: float32 stays exact enough
CHUNK = 64  # new values of a row scored at once: bounds padding when rows differ in length
# Floats of one tensor. On a CPU a tensor stays in its cache, and below the size from which torch
# wakes other threads, which costs milliseconds where all cores are busy. On a GPU it bounds memory
# for any batch: the sorted windows are 64 times as large at most.
CELLS_MAX = {"cpu": 1 << 15, "cuda": 1 << 20}
LEVEL = Level("fine", 1, HISTORY)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one padded tensor: what `size` new values of a row need."""

    row: I64  # (R,) row of the segments
    offset: I64  # (R,) first new value of the row
    size: I32  # (R,) new values, 1..width
    width: int  # of the padded tensor


class Linear:
    """A fitted predictor. Raises ArtifactError for weights of another model."""

    levels = (LEVEL,)
    components = (Component("residual", sustained=True, weighted=False),)

    def __init__(self, *, version: str, weights: bytes | None, device: str = "cpu") -> None:
        import torch

        tensors = tensors_from_bytes(weights)
        shapes = {name: tuple(each.shape) for name, each in tensors.items()}
        if shapes != {"weights": (TAPS,), "bias": ()}:
            raise ArtifactError(
                f"`{version}` holds tensors {shapes}",
                hint=f"expected weights ({TAPS},) and bias ()",
            )
        taps, bias = tensors["weights"].double(), float(tensors["bias"])
        if not bool(torch.isfinite(taps).all()) or not np.isfinite(bias):
            raise ArtifactError(f"`{version}` holds weights that are not finite")
        self.version = version
        self._device = torch.device(device)
        # Scalars, not a tensor: each product is then one elementwise operation, the same anywhere.
        self._taps: tuple[float, ...] = tuple(float(each) for each in taps.tolist())
        self._bias = bias

    def score(self, segments: Segments) -> Scores:
        """Score one batch; NaN where a key is younger than 80 values or a value is missing."""
        assert segments.levels[0] == LEVEL, segments.levels
        values, begin, fresh = segments.rows(0)
        total = int(fresh.sum(dtype=np.int64))
        residual = np.full(total, np.nan, np.float32)
        expected = np.full(total, np.nan, np.float32)
        first = np.cumsum(fresh, dtype=np.int64) - fresh  # of each row in the answer
        for chunk in chunks(fresh, CELLS_MAX.get(self._device.type, CELLS_MAX["cpu"])):
            columns = np.arange(HISTORY + chunk.width)
            last = begin[chunk.row] + HISTORY + fresh[chunk.row] - 1
            source = (begin[chunk.row] + chunk.offset)[:, None] + columns
            padded = values[np.minimum(source, last[:, None])]
            scores, predicted = self._score(padded)
            real = np.arange(chunk.width) < chunk.size[:, None]
            target = ((first[chunk.row] + chunk.offset)[:, None] + np.arange(chunk.width))[real]
            residual[target] = _one_nan(scores[real])
            expected[target] = _one_nan(predicted[real])
        return Scores({"residual": residual}, expected, np.zeros(total, np.int32), self.version)

    def _score(self, padded: F32) -> tuple[F32, F32]:
        """(R, 128 + T) values to (R, T) residuals and predictions."""
        import torch

        with torch.inference_mode():
            x = torch.from_numpy(padded).to(self._device)
            predicted = self._predict(x)
            error = (x[:, TAPS:] - predicted).abs_()
            scale = _scale(error)
            # Below a millionth of the values' own size a difference is float32 rounding.
            floor = x[:, TAPS:].abs().mul_(1e-6).add_(1e-12)
            scale = torch.maximum(scale, floor[:, TAPS:])
            score = (error[:, TAPS:] / scale).clamp_(max=SCORE_MAX)
            return score.cpu().numpy(), predicted[:, TAPS:].contiguous().cpu().numpy()

    def _predict(self, x: "torch.Tensor") -> "torch.Tensor":
        """(R, N) values to (R, N - 64) predictions of x[:, 64:], oldest tap first."""
        import torch

        size = x.shape[1] - TAPS
        mean = torch.zeros_like(x[:, TAPS:])
        for tap in range(TAPS):
            mean.add_(x[:, tap : tap + size])
        mean.mul_(1.0 / TAPS)
        steps = (x[:, 1:] - x[:, :-1]).abs_()
        spread = torch.zeros_like(mean)
        for tap in range(TAPS - 1):
            spread.add_(steps[:, tap : tap + size])
        # Not divided: by a scalar, CUDA multiplies with the reciprocal and the CPU does not.
        spread.mul_(1.0 / (TAPS - 1))
        predicted = spread.mul_(self._bias)
        product = torch.empty_like(mean)
        for tap in range(TAPS):
            torch.sub(x[:, tap : tap + size], mean, out=product)
            product.mul_(self._taps[TAPS - 1 - tap])
            predicted.add_(product)
        return predicted.add_(mean)


def _one_nan(x: F32) -> F32:
    """Sign and payload of a NaN depend on which vector unit made it: there is one NaN here."""
    return np.where(np.isnan(x), np.float32(np.nan), x)


def _scale(error: "torch.Tensor") -> "torch.Tensor":
    """(R, 64 + T) absolute errors to (R, T) robust scales of the 64 before each; NaN if too few.

    Sorting moves values and computes none, so the median is exact anywhere; NaN sort last.
    """
    import torch

    size = error.shape[1] - TAPS
    known = ~error.isnan()
    clean = error.nan_to_num(nan=0.0)
    mean = torch.zeros_like(error[:, TAPS:])
    count = torch.zeros_like(mean)
    for tap in range(TAPS):
        mean.add_(clean[:, tap : tap + size])
        count.add_(known[:, tap : tap + size])
    mean.div_(count.clamp(min=1.0))
    windows = error[:, :-1].unfold(1, TAPS, 1)
    if windows.device.type == "cpu":
        ordered = torch.from_numpy(np.sort(windows.numpy(), axis=2))  # 5 to 10 times as fast
    else:
        ordered = windows.sort(dim=2).values
    middle = count.long().sub_(1).clamp_(min=0).div_(2, rounding_mode="floor")
    median = ordered.gather(2, middle[:, :, None])[:, :, 0]
    scale = torch.maximum(median.mul_(GAUSS), mean.mul_(0.5))
    return scale.masked_fill_(count < YOUNG, float("nan"))


def chunks(fresh: I32, cells: int) -> list[Chunk]:
    """Cut rows of `fresh` new values into pieces of one width: 1, 2, 4, .. or 64.

    A chunk of R pieces has R * (64 + width) <= cells predictions, one piece at least.

    Padding at most doubles the work, whatever the lengths of the rows are.
    """
    rows = np.arange(fresh.shape[0], dtype=np.int64)
    pieces = -(-fresh.astype(np.int64) // CHUNK)
    row = np.repeat(rows, pieces)
    number = np.arange(row.shape[0]) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    offset = number * CHUNK
    size = np.minimum(fresh[row] - offset, CHUNK).astype(np.int32)
    cut: list[Chunk] = []
    width = 1
    below = 0
    while width <= CHUNK:
        picked = np.flatnonzero((size > below) & (size <= width))
        limit = max(1, cells // (width + TAPS))
        for begin in range(0, picked.shape[0], limit):
            part = picked[begin : begin + limit]
            cut.append(Chunk(row[part], offset[part], size[part], width))
        below, width = width, width * 2
    return cut


def normalised(x: np.ndarray, begin: I64) -> tuple[np.ndarray, np.ndarray]:
    """Training pairs of the predictor, in float64: what `weights` and `bias` are fitted to.

    Args:
        x: (n,) one channel of a series.
        begin: (m,) first value of each window, begin + 64 < n.

    Returns:
        (m, 64) values before the target, newest first, minus their mean, over their spread; and
        (m,) targets in the same unit. Windows that never move or miss a value are left out.
    """
    windows = np.asarray(x, np.float64)[begin[:, None] + np.arange(TAPS + 1)]
    past = windows[:, :TAPS]
    mean = past.mean(axis=1)
    spread = np.abs(np.diff(past, axis=1)).mean(axis=1)
    usable = np.isfinite(windows).all(axis=1) & (spread > 1e-9 * np.abs(past).max(axis=1))
    scale = spread[usable, None]
    inputs = (past[usable, ::-1] - mean[usable, None]) / scale
    return inputs, (windows[usable, TAPS] - mean[usable]) / scale[:, 0]
