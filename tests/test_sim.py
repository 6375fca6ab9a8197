"""Goal: nothing lost, nothing repeated, whatever the world does; and a simulator that would notice.

Method: 1,000 simulated lives of the production code (`tests/sim`), some with labels of a topic of
their own, some with a budget of incidents, judged by a pure checker. Then the simulator itself:
lives must have met what they are for, the same seed must give the same life in another process,
every planted bug must be found within its number of lives, and a life that goes wrong must shrink
and say how to see it again.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sim.bugs import BUGS, Bug, planted
from sim.check import check
from sim.coverage import covered, missing
from sim.life import Life
from sim.shrink import shrunk, story

ROOT = Path(__file__).resolve().parent.parent
LIVES = 1_000


@pytest.mark.timeout(600)
def test_a_thousand_lives_keep_every_promise() -> None:
    count: Counter[str] = Counter()
    for seed in range(LIVES):
        history = Life(seed).run()
        count += covered(history)
        assert check(history) == [], f"see it: make sim SEED={seed} LIVES=1"
    assert missing(count) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_a_planted_bug_is_found(bug: Bug) -> None:
    assert _found(bug) is not None, f"not in {bug.found_within} lives from seed {bug.first} on"


def _found(bug: Bug) -> int | None:
    """The seed of the first life that shows it."""
    for seed in range(bug.first, bug.first + bug.found_within):
        with planted(bug):
            history = Life(seed).run()
        if check(history):
            return seed
    return None


def test_a_seed_is_a_life_whatever_order_sets_have() -> None:
    digests = {_digest(hashing) for hashing in ("0", "1", "2")}
    assert len(digests) == 1


def _digest(hashing: str) -> str:
    """Everything that happens in some lives, in a process of its own."""
    text = (
        "from hashlib import sha256; from sim.life import Life\n"
        "lives = [Life(seed).run() for seed in (*range(20, 31), 43)]\n"
        "told = [(h.struck, [e[:4] for e in h.events], h.said, h.steps) for h in lives]\n"
        "print(sha256(repr(told).encode()).hexdigest())\n"
    )
    path = os.pathsep.join((str(ROOT / "tests"), str(ROOT)))
    environment = {**os.environ, "PYTHONHASHSEED": hashing, "PYTHONPATH": path}
    words = [sys.executable, "-c", text]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def test_a_life_that_goes_wrong_shrinks_and_is_told() -> None:
    bug = next(bug for bug in BUGS if bug.name == "fences nobody")
    seed = _found(bug)
    assert seed is not None

    def again(keys: object) -> object:
        with planted(bug):
            return Life(seed, only=frozenset(keys)).run()  # pyright: ignore[reportArgumentType]

    with planted(bug):
        history = Life(seed).run()
    rule = check(history)[0].rule
    few = shrunk(seed, history, rule, again)  # pyright: ignore[reportArgumentType]
    assert len(few.struck) < len(history.struck)
    assert len(few.struck) <= 4
    told = story(few, check(few))
    assert sum(line.startswith("BROKEN") for line in told) >= 1
    assert any("FAULT" in line for line in told)
    assert rule in told[-1] or any(rule in line for line in told)
