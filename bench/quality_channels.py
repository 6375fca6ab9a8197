"""Keys of several channels: how rare is a record in which one of them is wrong?

Services count requests, and a twentieth as many errors, with the rhythm of a day, and have a
latency; in their fourth or fifth day one of these is wrong for a while. Hosts have four gauges
whose noise remembers (autocorrelation .7, deviation 1; half of them with heavier tails) on a day of
their own; one is wrong, by so many deviations. Found at p: a record in there, or of the two behind
it, has a p as small as that. The same keys without it say how often ordinary records have such a p.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from quality_page import Row, Section, false_alarms, found_at
from quality_sets import Labelled

Array = NDArray[Any]
Fault = tuple[str, int, int, Callable[[Array, Any], Array]]  # name, channel, minutes, what becomes

MINUTES, BEGIN = 8_000, (4_500, 7_500)  # of a key; where something begins
KEYS = 20  # for each fault, and three times as many for none
LEVELS = (1e-3, 1e-4, 1e-5)
SETTLED = 2_000  # minutes behind which false alarms are counted
LATE = 2
MINUTE_MS, DAY = 60_000, 1_440
REQUESTS = 40.0  # a minute
SEED = 13

SERVICES: tuple[Fault, ...] = (
    ("requests stop for 30 min", 0, 30, lambda x, _: 0.0 * x),
    ("requests halve for 2 h", 0, 120, lambda x, draw: draw.binomial(x.astype(np.int64), 0.5)),
    ("errors times 5 for 20 min", 1, 20, lambda x, draw: x + draw.poisson(4.0 * x.mean(), x.shape)),
    ("latency times 3 for 15 min", 2, 15, lambda x, _: 3.0 * x),
)
HOSTS: tuple[Fault, ...] = (
    ("a spike of 12", 0, 1, lambda x, _: x + 12.0),
    ("a level 8 higher for 1 h", 0, 60, lambda x, _: x + 8.0),
    ("a level 4 higher for 1 h", 0, 60, lambda x, _: x + 4.0),
    ("a drift to 6 in 3 h", 0, 180, lambda x, _: x + np.linspace(0.0, 6.0, x.shape[0])),
    ("noise of 4 for 1 h", 0, 60, lambda x, draw: x + draw.normal(0.0, 4.0, x.shape)),
    ("flat for 1 h", 0, 60, lambda x, _: np.full_like(x, x[0])),
)


def _service(random: Any) -> Array:
    """(minutes, 3)"""
    day = 1.0 + 0.6 * np.sin(2.0 * np.pi * np.arange(MINUTES) / DAY)
    counts = [random.poisson(rate * day) for rate in (REQUESTS, REQUESTS / 20.0)]
    latency = 20.0 * (1.0 + 0.3 * day) * np.exp(random.normal(0.0, 0.3, MINUTES))
    return np.stack([*counts, latency], axis=1).astype(np.float64)


def _host(random: Any) -> Array:
    """(minutes, 4)"""
    noise = random.normal(size=(MINUTES, 4))
    for at in range(1, MINUTES):
        noise[at] = 0.7 * noise[at - 1] + np.sqrt(1.0 - 0.7**2) * noise[at]
    heavy = np.sign(noise) * np.abs(noise) ** 1.3
    noise = np.where(random.random(4) < 0.5, heavy, noise)
    place = np.arange(MINUTES)[:, None] / DAY + random.random(4)
    return 50.0 + noise + random.uniform(0.0, 3.0, 4) * np.sin(2.0 * np.pi * place)


def channels(bench: Any) -> Section:
    """What is found at each p, and how often nothing has such a p. `bench`: of quality.py."""
    random = np.random.default_rng(SEED)
    rows: list[Row] = []
    for kind, made, faults in (("services", _service, SERVICES), ("hosts", _host, HOSTS)):
        calm, found = _measured(bench, kind, made, faults, random)
        rows += false_alarms(calm, LEVELS, f"{kind}: ") + found_at(found, LEVELS, f"{kind}: ")
    words = (
        f"{KEYS} made-up keys for each fault, {MINUTES:,} minutes each: services with "
        f"{REQUESTS:.0f} requests and {REQUESTS / 20.0:.0f} errors a minute and a latency, hosts "
        "with four gauges. One channel is wrong, in the fourth or fifth day. 1e-05 is what "
        "`alert.probability` is where nothing is set."
    )
    return Section("Telemetry: several channels", words, rows)


def _measured(
    bench: Any, kind: str, made: Callable[[Any], Array], faults: tuple[Fault, ...], random: Any
) -> tuple[Array, dict[str, list[float]]]:
    """p of keys with nothing wrong, and the least p of each fault's keys."""
    keys, spans = [made(random) for _ in range(3 * KEYS)], []
    for _, channel, length, become in faults:
        for _ in range(KEYS):
            values, begin = made(random), int(random.integers(*BEGIN))
            span = slice(begin, begin + length)
            values[span, channel] = become(values[span, channel], random)
            keys.append(values)
            spans.append(slice(begin, begin + length + LATE))
    whole = np.concatenate(keys)
    names = tuple(f"x{channel}" for channel in range(whole.shape[1]))
    table = {
        "key": np.repeat([f"k{n}" for n in range(len(keys))], MINUTES),
        "ts": np.tile(np.arange(MINUTES), len(keys)) * MINUTE_MS,
        **{name: whole[:, at] for at, name in enumerate(names)},
    }
    path = bench.room / f"channels_{kind}.parquet"
    pq.write_table(pa.table(table), path)
    told = pq.read_table(bench.scored(Labelled(path, names)), columns=["p_value"])
    p = told["p_value"].to_numpy().reshape(len(keys), MINUTES)
    found: dict[str, list[float]] = {}
    for at, span in enumerate(spans):
        found.setdefault(faults[at // KEYS][0], []).append(float(p[3 * KEYS + at][span].min()))
    return p[: 3 * KEYS, SETTLED:], found
