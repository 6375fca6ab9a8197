"""What does scoring cost, without Kafka, Ray and JSON? On one core, of keys with one channel.

    python bench/scoring.py [--keys 1000] [--rounds 200] [--json]

Batches have 16 records of each key, then one; values are noise. Each round takes a batch through
what a lane and a scorer do with it: `History.append`, `LagBank.score` of all three levels,
`Decider.decide`. Printed is the best of rounds, records/s: other work on the machine only adds.
"""

import argparse
import json
import time
from typing import Any

import numpy as np

from raywatch.models.decide import Decider
from raywatch.models.history import History
from raywatch.models.lagbank import LagBank
from raywatch.models.settings import DecideSettings

PER_KEY = (16, 1)  # records of a key in a batch
SEED = 7
FULL = 720  # records of each key before anything is measured: histories are full on the fine level
STEP_MS = 60_000  # between two records of a key


def measured(keys: int, per_key: int, rounds: int) -> dict[str, float]:
    """Best records/s of each stage, and of all three in one round."""
    random, bank = np.random.default_rng(SEED), LagBank("bench")
    history, decider = History(1), Decider(DecideSettings(), bank.components, 1, views=bank.views)
    history.ensure(keys)
    decider.ensure(keys)
    touched, seen = np.arange(keys, dtype=np.int32), 0
    best: dict[str, float] = {}
    while seen < FULL + rounds * per_key:
        count = per_key if seen >= FULL else 16
        counts, size = np.full(keys, count, np.int32), keys * count
        values = random.standard_normal((size, 1))
        time_ms = np.tile(np.arange(seen, seen + count) * STEP_MS, keys)
        begin = time.perf_counter()
        appended = history.append(touched, counts, values, bank.levels)
        at_scorer = time.perf_counter()
        scores = bank.score(appended.segments)
        back = time.perf_counter()
        decider.decide(touched, counts, time_ms, values, appended, scores)
        end = time.perf_counter()
        took = {"append": at_scorer - begin, "score": back - at_scorer, "decide": end - back}
        took |= {"append and score": back - begin, "all": end - begin}
        if seen >= FULL:
            for stage, took_s in took.items():
                best[stage] = max(best.get(stage, 0.0), size / took_s)
        seen += count
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=1_000, help="1,000 if it is not given")
    parser.add_argument("--rounds", type=int, default=200, help="batches of each kind")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    given: Any = parser.parse_args()
    found = {f"{count} a key": measured(given.keys, count, given.rounds) for count in PER_KEY}
    if given.json:
        print(json.dumps(found))
        return
    for name, rates in found.items():
        print(f"{name}: " + ", ".join(f"{stage} {rate:,.0f}/s" for stage, rate in rates.items()))


if __name__ == "__main__":
    main()
