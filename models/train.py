"""How is a new model version made from recorded series?

`linear` learns one predictor from all series by ridge regression: every series is brought to its
own unit first and gives at most the same number of windows, so that no key outweighs the others.
`lagbank` and `robustz` learn nothing in advance: their artifacts hold checked settings, and what
they were meant for. The same series, seed and settings give the same artifact, to its hash.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raywatch.models.artifact import Artifact, tensors_to_bytes
from raywatch.models.errors import ArtifactError, ConfigError
from raywatch.models.linear import HISTORY, TAPS, normalised
from raywatch.models.scorer import F64, I64

KINDS = ("lagbank", "linear", "robustz")
LINEAR_SETTINGS = {"ridge": (1e-6, 1e6), "windows_per_series": (64, 1_000_000)}
RIDGE = 1e-2  # share of the mean diagonal of the Gram matrix added to it
WINDOWS = 4_096  # windows drawn from one channel of a series; bounds time, memory is constant
TARGET_MAX = 20.0  # spreads; windows whose target lies farther are outliers, not examples
DIGITS = 6  # weights are rounded: the last bits of a matrix product depend on the machine


@dataclass(slots=True)
class Seen:
    """What was trained on: enough to tell two trainings apart."""

    series: int = 0
    too_short: int = 0
    values: int = 0
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def add(self, key: str, values: F64, *, records_min: int) -> bool:
        """Count a series (n, C); whether it is long enough to be used."""
        self.digest.update(f"{key}\0{values.shape[0]}\0{values.shape[1]}\0".encode())
        self.digest.update(np.ascontiguousarray(values).tobytes())
        if values.shape[0] < records_min:
            self.too_short += 1
            return False
        self.series += 1
        self.values += int(values.size)
        return True


def train(
    kind: str,
    name: str,
    series: Iterable[tuple[str, F64]],
    *,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> Artifact:
    """Make an artifact of `kind` from series: (key, (n,) or (n, C) values, oldest first).

    Series are read once and not kept. Raises ConfigError where nothing can be learned from them,
    or for a setting that does not exist.
    """
    if kind not in KINDS:
        raise ConfigError(f"cannot train kind `{kind}`", hint=f"kinds are {', '.join(KINDS)}")
    chosen = dict(settings or {})
    if kind == "linear":
        return _linear(name, series, seed, chosen)
    seen = Seen()
    for key, values in series:
        seen.add(key, _columns(key, values), records_min=2)
    _enough(seen, records_min=2)
    artifact = Artifact(name, kind, chosen, None, _trained(seen, seed))
    from raywatch.models.registry import build

    try:
        build(artifact)
    except ArtifactError as error:
        raise ConfigError(error.message, hint=error.hint) from error
    return artifact


def _linear(
    name: str, series: Iterable[tuple[str, F64]], seed: int, settings: dict[str, Any]
) -> Artifact:
    ridge, windows = _linear_settings(settings)
    seen = Seen()
    gram = np.zeros((TAPS + 1, TAPS + 1))
    moment = np.zeros(TAPS + 1)
    pairs = 0
    for number, (key, given) in enumerate(series):
        values = _columns(key, given)
        if not seen.add(key, values, records_min=HISTORY + 1):
            continue
        for channel in range(values.shape[1]):
            random = np.random.default_rng([seed, number, channel])
            begin = _draw(values.shape[0] - TAPS, windows, random)
            inputs, target = normalised(values[:, channel], begin)
            near = np.abs(target) <= TARGET_MAX
            design = np.column_stack((inputs[near], np.ones(int(near.sum()))))
            gram += design.T @ design
            moment += design.T @ target[near]
            pairs += design.shape[0]
    _enough(seen, records_min=HISTORY + 1)
    if pairs <= TAPS:
        raise ConfigError(
            f"`{name}` has {pairs} usable windows of {TAPS + 1} values, {TAPS + 1} are needed",
            hint="series that never change, or miss a value in every window, teach nothing",
        )
    penalty = ridge * float(np.trace(gram)) / (TAPS + 1)
    solved = np.linalg.solve(gram + penalty * np.eye(TAPS + 1), moment).round(DIGITS)
    trained = _trained(seen, seed) | {"windows": pairs}
    chosen = {"ridge": ridge, "windows_per_series": windows}
    return Artifact(name, "linear", chosen, _weights(solved), trained)


def _weights(solved: NDArray[np.floating[Any]]) -> bytes:
    import torch

    fitted = torch.from_numpy(solved.astype(np.float32))
    return tensors_to_bytes({"weights": fitted[:TAPS].clone(), "bias": fitted[TAPS].clone()})


def _linear_settings(settings: dict[str, Any]) -> tuple[float, int]:
    unknown = sorted(set(settings) - set(LINEAR_SETTINGS))
    if unknown:
        raise ConfigError(
            f"kind `linear` has no setting `{unknown[0]}`",
            hint=f"settings are {', '.join(LINEAR_SETTINGS)}",
        )
    for name, (low, high) in LINEAR_SETTINGS.items():
        value: object = settings.get(name, low)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"`{name}` must be a number, got `{value!r}`")
        if not low <= value <= high:
            raise ConfigError(f"`{name}` must be {low:g}..{high:g}, got {value}")
    return float(settings.get("ridge", RIDGE)), int(settings.get("windows_per_series", WINDOWS))


def _draw(possible: int, wanted: int, random: np.random.Generator) -> I64:
    """First values of the windows to learn from: all of them, or a sorted sample."""
    if possible <= wanted:
        return np.arange(possible, dtype=np.int64)
    return np.sort(random.choice(possible, wanted, replace=False)).astype(np.int64)


def _columns(key: str, values: F64) -> F64:
    array = np.asarray(values, np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise ConfigError(f"series `{key}` has shape {array.shape}, expected (n, channels)")
    return array


def _enough(seen: Seen, *, records_min: int) -> None:
    if seen.series == 0:
        raise ConfigError(
            f"no series has {records_min} values ({seen.too_short} are shorter)",
            hint="train on more records of each key",
        )


def _trained(seen: Seen, seed: int) -> dict[str, Any]:
    return {
        "series": seen.series,
        "too_short": seen.too_short,
        "values": seen.values,
        "data": seen.digest.hexdigest(),
        "seed": seed,
    }
