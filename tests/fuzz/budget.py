"""How many inputs does each part of the fuzzing get, and how many has it had?

`make test` gives a part some hundred examples, always the same ones. `make fuzz N=1000000 SEED=7`
spreads N inputs over the parts, by the shares below. An example of hypothesis is a well-formed
thing and a seed; the inputs are the thing and its mutants (mutate.py).
"""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, seed, settings

INPUTS = int(os.environ.get("FUZZ_N", "0"))  # 0: the short version
SEED = int(os.environ.get("FUZZ_SEED", "0"))  # 0: the examples that every machine draws
SHARES = {
    "decode": 0.60, "journal": 0.07, "tail": 0.05, "snapshot": 0.10, "state": 0.02,
    "manifest": 0.10, "config": 0.005,
}  # fmt: skip
SHORT = {
    "decode": 100, "journal": 60, "tail": 60, "snapshot": 60, "state": 15, "manifest": 60,
    "config": 60,
}  # fmt: skip
COUNT: Counter[str] = Counter()  # inputs so far, by part

Test = Callable[..., Any]


def fuzzed(part: str, inputs: int) -> Callable[[Test], Test]:
    """Settings of a part whose examples are about so many inputs each."""
    examples = max(1, round(INPUTS * SHARES[part] / inputs)) if INPUTS else SHORT[part]
    fixed = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=SEED == 0,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    return (lambda test: seed(SEED)(fixed(test))) if SEED else fixed
