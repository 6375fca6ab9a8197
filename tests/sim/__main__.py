"""`make sim SEED=0 LIVES=1000`: lives from a seed on, and the story of the first that goes wrong.

    python -m sim --seed 0 --lives 1000 [--bug WORDS] [--every 1000] [--keep-going]

Exit 0: no violation. Exit 1: a life broke a promise; what is printed says how to see it again.
"""

import argparse
import sys
import time
from collections import Counter
from contextlib import nullcontext
from typing import Any

from sim.bugs import BUGS, Bug, planted
from sim.check import check
from sim.coverage import covered, missing
from sim.life import History, Life
from sim.shrink import shrunk, story


def lived(seed: int, bug: Bug | None, only: Any = None) -> History:
    """One life; the bug is there while it runs, and not while it is judged."""
    with planted(bug) if bug is not None else nullcontext():
        return Life(seed, only=only).run()


def told(seed: int, history: History, bug: Bug | None) -> None:
    """The shrunk story of a life that went wrong."""
    rule = check(history)[0].rule
    few = shrunk(seed, history, rule, lambda keys: lived(seed, bug, frozenset(keys)))
    print(f"\nseed {seed} breaks a promise; {len(history.struck)} faults shrank to these:\n")
    print("\n".join(story(few, check(few))))
    also = f' BUG="{bug.name}"' if bug is not None else ""
    print(f"\nsee it again: make sim SEED={seed} LIVES=1{also}")


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(prog="make sim", description="Simulated lives.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lives", type=int, default=1000)
    parser.add_argument("--bug", default="", help="plant the bug whose name holds these words")
    parser.add_argument("--every", type=int, default=500, help="lives between two lines")
    parser.add_argument("--keep-going", action="store_true")
    asked = parser.parse_args()
    bugs = [bug for bug in BUGS if asked.bug and asked.bug in bug.name]
    bug = bugs[0] if bugs else None
    count: Counter[str] = Counter()
    began, bad = time.monotonic(), list[int]()
    for seed in range(asked.seed, asked.seed + asked.lives):
        history = lived(seed, bug)
        count += covered(history)
        if check(history):
            bad.append(seed)
            told(seed, history, bug)
            if not asked.keep_going:
                return 1
        if (seed + 1 - asked.seed) % asked.every == 0:
            took = (time.monotonic() - began) / (seed + 1 - asked.seed)
            print(
                f"{seed + 1 - asked.seed} lives, {1e3 * took:.0f} ms each, bad: {bad}", flush=True
            )
    took = time.monotonic() - began
    print(f"{asked.lives} lives in {took:.0f} s from seed {asked.seed}: {len(bad)} broke a promise")
    for name, number in sorted(count.items()):
        print(f"  {number:8d}  {name}")
    lacking = missing(count) if asked.lives >= 200 and bug is None else []
    print("\n".join(f"not covered: {words}" for words in lacking))
    return 1 if bad or lacking else 0


if __name__ == "__main__":
    sys.exit(main())
