"""Kills a machine of three again and again, and says how long its lanes were silent.

    python tests/chaos/nodes.py --times 20 [--cut] [--standby]      as root

All of Ray and all that it runs on a worker is killed at once; or, with `--cut`, its network is cut
off from Ray's. Between two times it joins again. In the end the alerts are those of a backtest of
the same records. Ends with 0, or 1: something was lost, repeated, or never came.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # beside the tests' own modules

from fleet import WORKS_S, Fleet, Taken
from hosts import Lab
from machines import until


def once(fleet: Fleet, *, cut: bool) -> list[float]:
    """Seconds until each lane of the machine alerted again, shortest first."""
    fleet.whole()
    host = fleet.busy()
    taken = Taken(fleet, host)
    if cut:
        fleet.lab.cut(host)
    else:
        fleet.die(host)
    after = until(taken.alerts, lambda found: set(found) == taken.lanes, WORKS_S)
    if cut:
        fleet.lab.cut(host, whole=True)
        fleet.on(host, "ray stop --force", check=False)
    fleet.ray([host])
    return sorted(after.values())


def main() -> int:
    """Kill, print, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--cut", action="store_true", help="cut it off from Ray instead")
    parser.add_argument("--standby", action="store_true", help="with owners that stand by")
    asked = parser.parse_args()
    first, every = list[float](), list[float]()
    with Lab(3) as lab:
        fleet = Fleet(lab, standby=asked.standby)
        fleet.start()
        for number in range(asked.times):
            after = once(fleet, cut=asked.cut)
            first.append(after[0])
            every.append(after[-1])
            print(f"{time.strftime('%H:%M:%S')} {number + 1}: {after}", file=sys.stderr, flush=True)
        fleet.word("pause")
        wrong = fleet.compared()
    for name, found in (("first lane", first), ("every lane", every)):
        print(f"{name}: p50 {statistics.median(found):.2f} s, max {max(found):.2f} s")
    print("\n".join(wrong) or "nothing lost, nothing repeated")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
