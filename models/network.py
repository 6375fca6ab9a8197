"""Network and security records: which record is like none before, or too many like it?

A record has numbers and words (categories as 64-bit hashes; actors/decode.py). One sketch a
partition, none a key: what two entities do alike is learnt once, and memory does not grow with
their number. So p is a promise to the partition: of all its records, and not of those of one
entity, which may have three. network_kernel.py has the rule; following.py makes incidents of it.

    r = max(r_rarity - log10 4/3, r_burst - log10 4)      p = 10^-r

It knows nothing of keys and of time; a key counts where it is one of the words.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raywatch.models import calibrate
from raywatch.models.errors import ArtifactError
from raywatch.models.network_kernel import (
    FRONT,
    HALF_MID,
    HALF_SHORT,
    HALVE_AT,
    MID_MAX,
    SCALE_RECORDS,
    SHORT_MAX,
    Plan,
    State,
    observe,
)
from raywatch.models.scorer import F32, F64, I32, I64, Component
from raywatch.models.unasked import Unasked

COARSE, FINE = 64, 32  # subspaces
COLUMNS_MAX = 5  # columns of a coarse subspace
WIDTHS = (2.0, 1.0, 0.5, 0.25)  # standard deviations
FINE_WIDTH = 1.0 / 32.0
FINE_SHARE = 0.75  # of the columns: a repeated record may differ in a few
ALL_MAX = 8  # columns up to which a fine subspace looks at all of them, once
CELLS = 2_048  # a subspace; a power of two
# Of four false alarms, three may be for rarity, one for a burst: p = min(4/3 p_r, 4 p_b).
BUDGET = np.log10([4.0 / 3.0, 4.0])
WARM = FRONT  # records of a partition before any may alert: what calibrates is young till then
EXPLAIN = 2.5  # -log10 p from which shares of columns are worked out, unless alerts begin earlier
COMPONENTS = (Component("rarity"), Component("burst"))


class NetworkModel(Unasked):
    """The version that says which arithmetic lanes use."""

    components = COMPONENTS
    stage = "network"


def plan_of(numbers: int, words: int, seed: int = 0) -> Plan:
    """Subspaces for records of so many columns. The seed is part of the model version."""
    columns = numbers + words
    assert columns >= 1, columns
    rng = np.random.default_rng(seed)
    wide = max(1, round(columns * FINE_SHARE))
    widest = max(COLUMNS_MAX, columns if columns <= ALL_MAX else wide)
    table = np.full((COARSE + FINE, widest), -1)
    size = np.empty(COARSE + FINE, np.int32)
    for t in range(COARSE + FINE):
        coarse = 1 + t % min(COLUMNS_MAX, columns)  # in turn: less left to the seed
        size[t] = coarse if t < COARSE else wide
        if t == COARSE and columns <= ALL_MAX:
            size[t] = columns
        table[t, : size[t]] = rng.choice(columns, size[t], replace=False)
    width = np.where(
        np.arange(COARSE + FINE) < COARSE,
        rng.permutation(np.resize(WIDTHS, COARSE + FINE)),
        FINE_WIDTH,
    )
    return Plan(
        table.astype(np.int32),
        size,
        width,
        rng.random(table.shape),
        COARSE,
        (0.5 ** (np.arange(SHORT_MAX) / HALF_SHORT)).astype(np.float32),
        (0.5 ** (np.arange(MID_MAX) / HALF_MID)).astype(np.float32),
    )


def partition_bytes(numbers: int, words: int) -> int:
    """Memory of one partition."""
    cells = (COARSE + FINE) * CELLS * 16
    first = SCALE_RECORDS * 8 * (numbers + words)
    scale = 16 * max(numbers, 1)
    return cells + first + scale + 8 * (4 + COARSE + FINE + 2 * calibrate.COLUMNS)


class Network:
    """Sketches of the partitions of one lane. One thread uses it."""

    def __init__(
        self, numbers: int, words: int, partitions: int = 1, *, explain: float = EXPLAIN
    ) -> None:
        """`explain`: -log10 p from which columns are told apart."""
        assert partitions >= 1, partitions
        self.plan = plan_of(numbers, words)
        self._explain = min(explain, EXPLAIN)
        cells = np.zeros((partitions, COARSE + FINE, CELLS, 4), np.float32)
        self._state = State(
            total=np.zeros((partitions, 4)),
            first=np.zeros((partitions, SCALE_RECORDS, numbers)),
            words=np.zeros((partitions, SCALE_RECORDS, words), np.int64),
            scale=np.zeros((partitions, max(numbers, 1), 2)),
            usual=np.zeros((partitions, COARSE + FINE)),
            cells=cells,
            touched=cells.view(np.int32),
            calibration=np.zeros((partitions, 2, calibrate.COLUMNS)),
        )

    def observe(self, partition: I32, values: F64, words: I64) -> tuple[I64, F64, F64, F32]:
        """Score N records in batch order (offset order within each partition), then learn them.

        Args:
            partition: (N,) index into the lane's partitions.
            values: (N, D) numbers, NaN where missing.
            words: (N, W) hashes of categories; 0 where missing.

        Returns:
            (N,) records of the partition before it; (N,) -log10 p, 0 before the sketch knows 1,024
            records; (N, 2) the same of rarity and of burst alone; (N, 2, D + W) shares and counts
            of the columns (see `_explain`) of records that are as rare as `explain`, anything for
            others.
        """
        records = values.shape[0]
        before, rare = np.empty(records, np.int64), np.empty((records, 2))
        # Pages that are not written take no memory.
        why = np.empty((records, 2, values.shape[1] + words.shape[1]), np.float32)
        observe(
            self.plan,
            self._state,
            np.require(partition, np.int32, ["C", "W"]),
            np.require(values, np.float64, ["C", "W"]),
            np.require(words, np.int64, ["C", "W"]),
            self._explain,
            before,
            rare,
            why,
        )
        return before, np.maximum((rare - BUDGET).max(axis=1), 0.0), rare, why

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything remembered, as copies; by partition."""
        kept = self._state._asdict()
        del kept["touched"]
        kept["cells"] = kept["cells"].view(np.int32)  # all bits of it, whatever they mean
        return {name: each.copy() for name, each in kept.items()}

    def load(self, saved: Mapping[str, NDArray[Any]], /) -> None:
        """Replace everything by what `state` gave. Raises ArtifactError."""
        cells = saved["cells"].copy().view(np.float32)
        rest = {n: saved[n].copy() for n in State._fields if n not in ("cells", "touched")}
        fresh = State(cells=cells, touched=cells.view(np.int32), **rest)
        for name, each in fresh._asdict().items():
            if each.shape != getattr(self._state, name).shape:
                raise ArtifactError(f"sketch `{name}` has shape `{each.shape}`", hint=_HINT)
        finite = (fresh.total, fresh.scale, fresh.usual, fresh.calibration, cells[..., :3])
        counts = (fresh.total[:, :3], fresh.calibration, cells[..., :3], fresh.scale[..., 1])
        sound = all(bool(np.isfinite(each).all()) for each in finite)
        sound = sound and all(bool((each >= 0.0).all()) for each in counts)
        if not sound or float(fresh.total[:, 1].max()) > HALVE_AT:
            raise ArtifactError("a sketch has numbers that cannot be", hint=_HINT)
        self._state = fresh


_HINT = "delete the snapshot: the lane then rebuilds its state from the log"


def warm_network() -> None:
    """Compile the kernels of this stage."""
    sketch = Network(1, 1)
    records = SCALE_RECORDS + 2
    numbers, words = np.zeros((records, 1)), np.zeros((records, 1), np.int64)
    sketch.observe(np.zeros(records, np.int32), numbers, words)
