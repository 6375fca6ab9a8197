"""Counters with the rhythm of a day: how rare are they called when they stop, halve or leap?

A counter has Poisson counts a minute, 1.6 times as many at noon as on the average, .4 at midnight.
In its fourth or fifth day it is at 0 for an hour, at half for three, or at three times for ten
minutes. Found at p: a record in there, or of the two behind it, has a p as small as that. The same
counters without it say how often ordinary minutes have such a p.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from quality_page import Section, false_alarms, found_at
from quality_sets import Labelled

MINUTES, BEGIN = 8_000, (4_500, 7_500)  # of a counter; where something begins
FAULTS = {"stops": (60, 0.0), "halves": (180, 0.5), "leaps": (10, 3.0)}  # minutes, times the rate
RATES = (1.0, 10.0, 100.0)  # counts a minute
COUNTERS = 30  # of each rate, for each fault and for none
LEVELS = (1e-3, 1e-4, 1e-5)
SETTLED = 2_000  # minutes behind which false alarms are counted
LATE = 2
MINUTE_MS, DAY = 60_000, 1_440
SEED = 11


def counters(bench: Any) -> Section:
    """What is found at each p, and how often nothing has such a p. `bench`: of quality.py."""
    random = np.random.default_rng(SEED)
    day = 1.0 + 0.6 * np.sin(2.0 * np.pi * np.arange(MINUTES) / DAY)
    names: list[str] = []
    values: list[NDArray[Any]] = []
    spans: list[slice] = []
    for what, (length, factor) in {"": (0, 1.0), **FAULTS}.items():
        for rate in RATES:
            for number in range(COUNTERS):
                begin = int(random.integers(*BEGIN))
                usual = rate * day
                usual[begin : begin + length] *= factor
                names.append(f"{what}|{rate:g}|{number}")
                values.append(random.poisson(usual))
                spans.append(slice(begin, begin + length + LATE))
    path = bench.room / "counters.parquet"
    table = {
        "key": np.repeat(names, MINUTES), "ts": np.tile(np.arange(MINUTES), len(names)) * MINUTE_MS,
        "x0": np.concatenate(values).astype(np.float64),
    }  # fmt: skip
    pq.write_table(pa.table(table), path)
    told = pq.read_table(bench.scored(Labelled(path, ("x0",))), columns=["p_value"])
    p = told["p_value"].to_numpy().reshape(len(names), MINUTES)
    found: dict[str, list[float]] = {}
    for name, span, each in zip(names, spans, p, strict=True):
        what, rate, _ = name.split("|")
        if what:
            found.setdefault(f"{what}, {rate} a minute", []).append(float(each[span].min()))
    plain = p[: len(RATES) * COUNTERS, SETTLED:]
    rows = [*false_alarms(plain, LEVELS), *found_at(found, LEVELS)]
    words = (
        f"{COUNTERS} made-up counters of each kind, {MINUTES:,} minutes each: in their fourth or "
        "fifth day they stop for an hour, halve for three, or leap to three times for ten minutes. "
        "1e-05 is what `alert.probability` is where nothing is set."
    )
    return Section("Telemetry: counters", words, rows)
