"""Breaks a running raywatch on three real brokers, again and again, and compares every alert.

    python tests/chaos/run.py --faults 200 --minutes 20 --seed 1 --rate 5000 [--only KIND ...]

Faults are drawn from the seed (`cluster/drills/faults.py`), and come in three rows at the same
time: owners and the supervisor; scorers; brokers, store, clock and deployment. In the end:
committed offsets are the ends of the partitions; the alerts under read_committed are those of
`backtest` of the same records, by everything they say, once each; each fault has a story that was
as promised (`story.py`). Prints a table, writes JSON, and ends with 0, 1 (something was not as
promised) or 2.

It runs in namespaces of its own, so that what it leaves ends with it: that needs root.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # beside the tests' own modules

import confluent_kafka as ck
from chaos.doing import Doer
from chaos.feed import KEYS, place
from chaos.rig import LANES, PARTITIONS, Rig, until

from raywatch.actors.backtest import backtest
from raywatch.cluster.drills import alerts as law
from raywatch.cluster.drills.faults import KINDS, Fault, make, plan
from raywatch.cluster.drills.story import Story, breaches, meanwhile
from raywatch.models.errors import RaywatchError
from raywatch.models.registry import build, shipped

ROWS = ("owners", "scorers", "machinery")  # owners: and the supervisor
WARM_S = 60.0  # longest wait for the first alert of every lane
DRAIN_S = 180.0
PAUSE_S = 0.5  # longest pause between two faults of a row


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What was asked."""
    parser = argparse.ArgumentParser(prog="run.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=20.0, help="longest time for the faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=5_000.0, help="records a second")
    parser.add_argument("--model", default="lagbank", choices=("lagbank", "robustz"))
    parser.add_argument("--only", nargs="*", default=[], choices=[k.name for k in KINDS])
    parser.add_argument("--calm", action="store_true", help="a fault only when all is well again")
    parser.add_argument("--standby", action="store_true", help="with owners that stand by")
    parser.add_argument("--json", type=Path, default=None, help="where to write all of it")
    parser.add_argument("--keep", action="store_true", help="leave the folder of the run")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


class Row(threading.Thread):
    """Faults one after the other."""

    def __init__(self, name: str, doer: Doer, faults: Sequence[Fault], end_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self.stories: list[Story] = []
        self.error = ""
        self._doer, self._faults, self._end_s = doer, faults, end_s

    def run(self) -> None:
        try:
            for fault in self._faults:
                if time.monotonic() > self._end_s:
                    return
                story = self._doer.do(fault)
                self.stories.append(story)
                _say(f"{self.name:9} {fault.name:19} {story.target:24.24} {_figures(story)}")
                if story.back_s is None:
                    self._doer.rig.tell()
        except BaseException:
            self.error = traceback.format_exc()


def _figures(story: Story) -> str:
    first, back = (f"{x:6.2f}" if x is not None else "     -" for x in
                   (story.first_s, story.back_s))  # fmt: skip
    return f"first {first} s, all {back} s"


def _say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def row_of(fault: Fault) -> str:
    """The row in which a fault waits for its turn."""
    if fault.name.startswith("scorer"):
        return "scorers"
    return "owners" if fault.name.startswith(("owner", "supervisor")) else "machinery"


def chosen(asked: argparse.Namespace) -> list[Fault]:
    """The faults of this run, from its seed."""
    if not asked.only:
        return plan(asked.faults, asked.seed, pause_s=PAUSE_S)
    names = [asked.only[n % len(asked.only)] for n in range(asked.faults)]
    return [make(n, asked.seed * 1_000 + i, pause_s=PAUSE_S) for i, n in enumerate(names)]


def read(bootstrap: str, topic: str) -> list[dict[str, Any]]:
    """Every record of a topic, in the order of offsets, as a reader of committed ones sees it."""
    consumer: Any = ck.Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "chaos.reader",
         "isolation.level": "read_committed", "auto.offset.reset": "earliest"}
    )  # fmt: skip
    found: list[dict[str, Any]] = []
    try:
        where = ck.TopicPartition(topic, 0, ck.OFFSET_BEGINNING)
        consumer.assign([where])
        _, end = consumer.get_watermark_offsets(where, 20.0)
        until_s = time.monotonic() + 120.0
        while max([0, *(t.offset for t in consumer.position([where]))]) < end:
            assert time.monotonic() < until_s, f"{topic} could not be read to its end"
            found += [json.loads(m.value()) for m in consumer.consume(5_000, 0.5) if not m.error()]
    finally:
        consumer.close()
    return found


def text(alert: dict[str, Any]) -> str:
    """All that an alert says, but where its record lay and that it was live."""
    return json.dumps({k: alert[k] for k in alert.keys() - {"lineage", "run_kind"}}, sort_keys=True)


def expected(rig: Rig) -> Counter[str]:
    """What `backtest` says of the records that were written and not deleted unread."""
    path, kept = rig.file, rig.folder / "kept.jsonl"
    if rig.deleted:
        ordinals: Counter[int] = Counter()
        with path.open("rb") as lines, kept.open("wb") as out:
            for line in lines:
                partition = place(json.loads(line)["host"], PARTITIONS)
                offset = ordinals[partition]
                ordinals[partition] += 1
                gone = rig.deleted.get(partition, [])
                if not any(low <= offset < high for low, high in gone):
                    out.write(line)
        path = kept
    out = rig.folder / "expected.jsonl"
    scorer = build(shipped(rig.model))
    backtest(rig.service.spec, scorer, path, rig.folder / "scores.parquet", alerts=out)
    return Counter(text(json.loads(line)) for line in out.read_bytes().splitlines())


def gaps(rig: Rig, audited: Sequence[dict[str, Any]]) -> list[str]:
    """Whether the audit topic tells of exactly the gaps that were made."""
    told = Counter(
        (int(a["partition"]), int(a["committed"]), int(a["first_retained"]))
        for a in audited
        if a.get("what") == "lost"
    )
    made = Counter((p, low, high) for p, spans in rig.deleted.items() for low, high in spans)
    return [] if told == made else [f"gaps made: {sorted(made)}, told: {sorted(told)}"]


def end(rig: Rig) -> dict[str, Any]:
    """Stop the feed, let everything be read, and compare."""
    sent = rig.feed.say("stop")
    total, began = sum(sent), time.monotonic()
    rig.service.drained(DRAIN_S)
    drained_s = time.monotonic() - began
    bounds = rig.service.log.bounds(rig.service.partitions)
    ends = {p.number: b.end for p, b in bounds.items()}
    wrong = [f"the ends are {ends}, written were {sent}"] if ends != dict(enumerate(sent)) else []
    committed = rig.committed()
    if committed != ends:
        wrong.append(f"committed is {committed}, the ends are {ends}")
    said = read(rig.brokers.bootstrap, rig.service.spec.alerts)
    audited = read(rig.brokers.bootstrap, rig.service.spec.audit)
    _say(f"{total} records written, drained after {drained_s:.1f} s, {len(said)} alerts; backtest")
    lines = (json.dumps(a) for a in said)
    (rig.folder / "said.jsonl").write_text("\n".join(lines))
    wrong += law.differences(Counter(text(a) for a in said), expected(rig))
    wrong += law.unlawful(said, whole=True)
    wrong += law.beyond(said, {(rig.topic, p): o for p, o in committed.items()})
    wrong += law.backward(rig.asker.committed)
    wrong += law.shared(rig.asker.holders)
    wrong += law.restarted(a for a in audited if a.get("what") != "lost")
    wrong += gaps(rig, audited)
    states = Counter(a["state"] for a in said)
    return {
        "records": total,
        "alerts": len(said),
        "by_state": dict(states),
        "drained_s": round(drained_s, 1),
        "readings_of_offsets": len(rig.asker.committed),
        "answers_of_status": dict(Counter(x.state for x in rig.asker.looks)),
        "wrong": wrong,
    }


def table(stories: Sequence[Story], undisturbed: Sequence[tuple[float, float]]) -> list[str]:
    """One line for each kind of fault: how often, and how long until alerts came again."""
    head = f"{'fault':20} {'count':>5}  {'first alert s':>15}  {'every lane s':>15}"
    lines = [head, f"{'':20} {'':>5}  {'p50':>7} {'max':>7}  {'p50':>7} {'max':>7}"]
    groups = {kind.name: [s for s in stories if s.fault.name == kind.name] for kind in KINDS}
    rows = {
        name: ([s.first_s for s in mine], [s.back_s for s in mine])
        for name, mine in groups.items()
        if mine
    }
    if undisturbed:
        rows["nothing"] = ([first for first, _ in undisturbed], [back for _, back in undisturbed])
    for name, (firsts, backs) in rows.items():
        first = [x for x in firsts if x is not None] or [float("nan")]
        back = [x for x in backs if x is not None] or [float("nan")]
        lines.append(
            f"{name:20} {len(firsts):5}  {statistics.median(first):7.2f} {max(first):7.2f}"
            f"  {statistics.median(back):7.2f} {max(back):7.2f}"
        )
    return [*lines, f"{'all':20} {len(stories):5}"]


def chaos(rig: Rig, asked: argparse.Namespace) -> dict[str, Any]:
    """The whole run; what came of it."""
    faults = chosen(asked)
    rig.start()
    sent = [0] * PARTITIONS
    until(
        lambda: all(rig.watcher.first(p, 0.0, sent) for p in rig.lanes().values()),
        WARM_S, "a first alert of every lane",
    )  # fmt: skip
    jump_s = rig.clock.proof()
    assert abs(jump_s) < 5.0, jump_s
    mark = rig.feed.say("mark")
    doer, began = Doer(rig, calm=asked.calm), time.monotonic()
    limit_s = began + 60.0 * asked.minutes
    _say(f"{len(faults)} faults, seed {asked.seed}, {asked.rate:.0f} records/s, {rig.model}")
    rows = [Row(name, doer, [f for f in faults if row_of(f) == name], limit_s) for name in ROWS]
    for row in rows:
        row.start()
    for row in rows:
        row.join(60.0 * asked.minutes + 200.0)
    took_s = time.monotonic() - began
    per_s = (sum(rig.feed.say("mark")) - sum(mark)) / took_s
    stories = sorted((s for row in rows for s in row.stories), key=lambda s: s.at_s)
    found = end(rig)
    heard, looks = rig.watcher.heard(), rig.asker.looks
    wrong = [row.error for row in rows if row.error] + list(found["wrong"])
    wrong += [w for s in stories for w in breaches(s, heard, looks, stories)]
    if len(stories) < asked.faults:
        wrong.append(f"{len(stories)} of {asked.faults} faults within {asked.minutes} minutes")
    if took_s > 60.0 * asked.minutes + 60.0:
        wrong.append(f"the faults took {took_s:.0f} s")
    return {
        "folder": str(rig.folder),
        "seed": asked.seed, "model": rig.model, "lanes": LANES, "keys": KEYS,
        "rate_asked": asked.rate, "faults": len(stories), "faults_took_s": round(took_s, 1),
        **found,
        "rate": round(per_s, 1),
        "wrong": wrong,
        "stories": [_fields(s, began, heard, looks) for s in stories],
        "table": table(stories, doer.undisturbed),
    }  # fmt: skip


def _fields(story: Story, began: float, heard: Any, looks: Any) -> dict[str, Any]:
    return {
        "fault": story.fault.name, "seed": story.fault.seed, "target": story.target,
        "at_s": round(story.at_s - began, 2), "lasted_s": round(story.undone_s - story.at_s, 2),
        "first_s": story.first_s, "back_s": story.back_s, "hurt": story.hurt,
        "meanwhile": meanwhile(story, heard, looks),
    }  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """0 as promised, 1 not, 2 it cannot run here."""
    asked = arguments(argv)
    if os.geteuid() != 0:
        print("error: namespaces and mounts need root", file=sys.stderr)
        return 2
    if not asked.inside:
        words = ["unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--mount"]
        os.execvp("unshare", [*words, sys.executable, __file__, *argv, "--inside"])
    folder = Path(tempfile.mkdtemp(prefix="rw-chaos-", dir="/var/tmp"))
    rig: Rig | None = None
    found: dict[str, Any] = {}
    try:
        rig = Rig(
            folder, rate=asked.rate, seed=asked.seed, model=asked.model, standby=asked.standby
        )
        found = chaos(rig, asked)
    except (RaywatchError, AssertionError):
        traceback.print_exc()
        return 1
    finally:
        if rig is not None:
            rig.close()
        if not (asked.keep or found.get("wrong")):
            shutil.rmtree(folder, ignore_errors=True)
    return told(found, asked)


def told(found: dict[str, Any], asked: argparse.Namespace) -> int:
    """Print the table and the verdict, write the JSON."""
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(found, indent=1))
    print("\n".join(found["table"]))
    print(f"{found['faults']} faults in {found['faults_took_s']:.0f} s, {found['records']} records "
          f"at {found['rate']:.0f}/s, {found['alerts']} alerts {found['by_state']}")  # fmt: skip
    for each in found["wrong"][:20]:
        print(f"wrong: {each[:2_000]}")
    if found["wrong"]:
        print(f"records and alerts are in {found['folder']}")
    print("broken" if found["wrong"] else "nothing lost, nothing repeated, every story as promised")
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
