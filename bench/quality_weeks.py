"""Keys with a rhythm of the week: how rare is a day that is usual, and not on this day?

Counts by day and hour: 1.6 times as many at the height of a working day as on the average, .4 at
its lowest, on Saturdays and Sundays .4 of that and four hours later. Days differ by a factor of 5 %
standard deviation. In one of the weeks 6 to 10 a working day is like a Sunday, whole or for three
hours, a Sunday is like a working day, or a Saturday is at half for three hours. Found at p: a
record in there has a p as small as that. The same keys without it say how often usual records do.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from quality_page import Section, false_alarms, found_at
from quality_sets import Labelled

WEEKS, KNOWN = 10, 5  # of a key, and those in front of what is planted
KEYS = 12  # of each pace, for each fault; three times as many for none
COUNTS = {5: 100.0, 30: 600.0}  # minutes between records, and counts in them
FAULTS = ("", "a day as Sunday", "3 h as Sunday", "Sunday as a day", "Saturday half for 3 h")
LEVELS = (1e-3, 1e-4, 1e-5)
WEEKEND, BETWEEN_DAYS = 0.4, 0.05
HOUR_MS, DAY_H, WEEK_H = 3_600_000, 24, 168
MONDAY_MS = 4 * DAY_H * HOUR_MS  # the first one since 1970
SEED = 12


def _rate(hours: NDArray[Any], *, weekend: Any) -> NDArray[Any]:
    """Usual counts at these hours, on the average 1 on working days."""
    late = np.where(weekend, 4.0, 0.0)
    day = 1.0 + 0.6 * np.sin(2.0 * np.pi * (hours - late) / DAY_H)
    return np.where(weekend, WEEKEND, 1.0) * day


def _key(what: str, minutes: int, random: Any) -> tuple[NDArray[Any], slice]:
    """Counts of one key, and where it is wrong."""
    hours = np.arange(WEEKS * WEEK_H * 60 // minutes) * minutes / 60.0
    weekend = hours % WEEK_H >= 5 * DAY_H
    usual = _rate(hours, weekend=weekend)
    usual *= random.normal(1.0, BETWEEN_DAYS, WEEKS * 7)[(hours // DAY_H).astype(np.int64)]
    begin = WEEK_H * int(random.integers(KNOWN, WEEKS))
    within, length = int(random.integers(2, 19)), 3
    if what.startswith("Sunday"):
        begin, length = begin + 6 * DAY_H, DAY_H
    elif what.startswith("Saturday"):
        begin += 5 * DAY_H + within
    else:
        begin += DAY_H * int(random.integers(1, 5))
        begin, length = (begin, DAY_H) if "day as" in what else (begin + within, length)
    span = slice(begin * 60 // minutes, (begin + length) * 60 // minutes)
    if what.endswith("as Sunday"):
        usual[span] = _rate(hours[span], weekend=True)
    elif what.startswith("Sunday"):
        usual[span] = _rate(hours[span], weekend=False)
    elif what:
        usual[span] *= 0.5
    return random.poisson(COUNTS[minutes] * usual).astype(np.float64), span


def weeks(bench: Any) -> Section:
    """What is found at each p, and how often nothing has such a p. `bench`: of quality.py."""
    random = np.random.default_rng(SEED)
    found: dict[str, list[float]] = {}
    calm: list[NDArray[Any]] = []
    saturdays: list[float] = []
    for minutes in COUNTS:
        kinds = [what for what in FAULTS for _ in range(KEYS if what else 3 * KEYS)]
        keys = [_key(what, minutes, random) for what in kinds]
        size = len(keys[0][0])
        path = bench.room / f"weeks_{minutes}.parquet"
        times = MONDAY_MS + np.arange(size) * minutes * 60_000
        table = {
            "key": np.repeat([f"k{n}" for n in range(len(keys))], size),
            "ts": np.tile(times, len(keys)), "x0": np.concatenate([values for values, _ in keys]),
        }  # fmt: skip
        pq.write_table(pa.table(table), path)
        told = pq.read_table(bench.scored(Labelled(path, ("x0",))), columns=["p_value"])
        p = told["p_value"].to_numpy().reshape(len(keys), size)
        for what, (_, span), each in zip(kinds, keys, p, strict=True):
            if what:
                name = f"{what}, every {minutes} minutes"
                found.setdefault(name, []).append(float(each[span].min()))
        day = DAY_H * 60 // minutes
        plain = p[: 3 * KEYS, KNOWN * 7 * day :]
        calm.append(plain.ravel())
        saturdays += plain.reshape(3 * KEYS, -1, 7, day)[:, :, 5].min(axis=2).ravel().tolist()
    rows = [
        *false_alarms(np.concatenate(calm), LEVELS),
        *found_at({"usual Saturdays with a record": saturdays}, LEVELS[-1:]),
        *found_at(found, LEVELS),
    ]
    words = (
        f"Made-up keys of {WEEKS} weeks with working days and weekends, {KEYS} for each fault and "
        f"pace, which comes in one of the weeks {KNOWN + 1} to {WEEKS}. Days differ by 5 %. A day "
        "as Sunday: a working day that looks like one."
    )
    return Section("Telemetry: weeks", words, rows)
