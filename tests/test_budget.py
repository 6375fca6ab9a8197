"""Goal: `alert.per_day` is kept in the long run and in a flood, and what it holds back is counted.

Method: p drawn evenly, at rates of 1e3 to 1e7 records a day; floods of a thousand keys; clocks that
jump. Then telemetry and network records through `backtest` and through lanes, cut, saved and killed
in all ways; bits are compared, with each other and with what is said without a budget.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from lanes import RECORDS, Killed, Mortal, lag, live, make, running, spec, until, world

from raywatch.actors.backtest import Summary, backtest
from raywatch.actors.ports import Committed, Log, Out, Partition
from raywatch.actors.records import RecordSpec
from raywatch.actors.runtime import LogSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.stages import flow_of
from raywatch.actors.stats import Tally
from raywatch.cluster.config import Config
from raywatch.cluster.deployment import prepare
from raywatch.models import incident
from raywatch.models.budget import DAY_MS, ROOM_MAX, Budget
from raywatch.models.errors import ArtifactError, LaneLost
from raywatch.models.following import KIND, Following
from raywatch.models.registry import build, shipped
from raywatch.models.scorer import F64, I32, I64, U8, describe
from raywatch.models.settings import DecideSettings, MissingSettings

BEGIN_MS = 1_700_000_000_000
DAY = int(DAY_MS)


class Keys:
    """Keys of some partitions and their budget; `p` of a record is given."""

    def __init__(self, per_day: float, probability: float, partitions: int = 1) -> None:
        self.following = Following(DecideSettings(probability=probability, quiet=1), ("a",))
        self.budget = Budget(per_day, partitions, partitions)

    def see(self, time_ms: I64, p: F64, slots: I32, part: I32 | None = None) -> tuple[U8, I64]:
        """Which records were held back, and the kind of every step."""
        self.following.ensure(int(slots.max()) + 1)
        here = np.zeros(slots.shape[0], np.int32) if part is None else part
        account = self.budget.account(here, np.arange(slots.shape[0]))
        fired = np.zeros(slots.shape[0], np.int64)
        _, held, steps = self.following.follow(slots, time_ms, -np.log10(p), fired, account)
        return held, steps[:, KIND]

    def opened(self, time_ms: I64, p: F64, slots: I32) -> int:
        return int((self.see(time_ms, p, slots)[1] == incident.OPENED).sum())


def even(per_day: float, days: float, seed: int) -> tuple[I64, F64, I32]:
    """So many records a day whose p is drawn evenly, of a thousand keys in turn."""
    rng = np.random.default_rng(seed)
    count = int(per_day * days)
    time_ms = BEGIN_MS + np.sort(rng.integers(0, int(days * DAY), count))
    return time_ms, 1.0 - rng.random(count), (np.arange(count) % 1_000).astype(np.int32)


# ---- the rate --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "probability", "per_day", "days"),
    [
        (1e3, 0.05, 10, 100),  # 50 a day would open
        (1e4, 1e-2, 10, 50),  # 100
        (1e5, 1e-3, 20, 20),  # 100
        (1e6, 1e-3, 100, 5),  # 1,000
        (1e7, 1e-4, 200, 2),  # 1,000
    ],
)
def test_what_opens_in_the_long_run_is_the_budget(
    rate: float, probability: float, per_day: float, days: float
) -> None:
    records = even(rate, days, seed=1)
    free = Keys(0, probability).opened(*records)
    # So many would open; the gate takes some of what is not very rare.
    assert 0.75 * rate * probability * days <= free <= 1.1 * rate * probability * days
    kept = Keys(per_day, probability).opened(*records)
    # What chance leaves at the floor is lost; what is owed at the end was opened in advance.
    assert 0.8 * per_day * days <= kept <= per_day * days + ROOM_MAX + 1


def test_a_budget_that_is_not_reached_changes_nothing() -> None:
    records = even(1e5, 10, seed=2)  # 10 a day would open
    free, kept = Keys(0, 1e-4).opened(*records), Keys(1_000, 1e-4).opened(*records)
    assert free == kept > 60


def test_what_opens_is_what_is_rare() -> None:
    time_ms, p, slots = even(1e6, 10, seed=3)
    keys = Keys(20, 1e-3)
    keys.following.ensure(1_000)
    account = keys.budget.account(np.zeros(p.shape[0], np.int32), np.arange(p.shape[0]))
    fired = np.zeros(p.shape[0], np.int64)
    _, _, steps = keys.following.follow(slots, time_ms, -np.log10(p), fired, account)
    chosen = p[steps[steps[:, KIND] == incident.OPENED, 0]]
    ideal = np.sort(p)[chosen.shape[0]]  # the best that one could do who knew the future
    assert np.mean(chosen <= 10.0**0.5 * ideal) >= 0.8
    assert np.median(p[p <= 1e-3]) > 20 * np.median(chosen)


# ---- floods ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per_day", "p", "burst"),
    [
        (10, 0.9e-5, 1),  # 304^(1/13) = 1.55: 0.55 decades below 1e-5 is the second to be
        (10, 1e-10, 5),  # 1.55^4 - 1 = 4.8 < 5
        (10, 1e-30, 8),  # 1.55^7 - 1 = 20.7 < 25
        (10, 1e-300, 13),  # three and a day's share; nothing is rarer
        (0.5, 1e-10, 2),  # 304^(1/3.5) = 5.12: 4.1 decades for the second, 25.2 for the third
        (0.5, 1e-300, 4),
        (1e5, 1e-300, 14),
    ],
)
def test_a_flood_opens_a_few_incidents(per_day: float, p: float, burst: int) -> None:
    keys = Keys(per_day, 1e-5)
    slots = np.arange(1_000, dtype=np.int32)
    time_ms = BEGIN_MS + np.arange(1_000)
    held, kinds = keys.see(time_ms // 1_000, np.full(1_000, p), slots)  # at the same time
    assert kinds.tolist() == [incident.OPENED] * burst
    assert held.sum() == 1_000 - burst
    assert keys.budget.state()["debt"][0] == pytest.approx(burst)


def test_a_flood_without_end_opens_what_is_due_and_no_more() -> None:
    keys, days = Keys(10, 1e-5), 20
    time_ms = BEGIN_MS + np.arange(days * 1_000) * (DAY // 1_000)
    slots = np.arange(time_ms.shape[0], dtype=np.int32)  # one new key after the other
    opened = keys.opened(time_ms, np.full(time_ms.shape[0], 1e-300), slots)
    assert 10 * days + 12 <= opened <= 10 * days + 14


def test_after_the_worst_flood_the_rarest_opens_once_one_is_due() -> None:
    keys, slots = Keys(10, 1e-5), np.arange(1_000, dtype=np.int32)
    keys.see(np.full(1_000, BEGIN_MS), np.full(1_000, 1e-300), slots)
    hours = BEGIN_MS + np.arange(49) * 3_600_000  # 2.4 hours: one is due
    rare, usual = np.array([1e-280]), np.full(49, 2_001, np.int32)
    assert keys.opened(hours[:1], rare, np.array([2_000], np.int32)) == 0
    assert keys.opened(hours[:3], np.ones(3), usual[:3]) == 0
    assert keys.opened(hours[3:4], rare, np.array([2_000], np.int32)) == 1
    assert keys.opened(hours[4:], np.ones(45), usual[4:]) == 0
    assert keys.budget.state()["debt"][0] == 0.0  # two days: 20 were due
    assert keys.opened(hours[-1:], np.array([0.9e-5]), np.array([2_002], np.int32)) == 1


def test_partitions_have_a_share_each_and_do_not_see_each_other() -> None:
    keys = Keys(20, 1e-5, partitions=2)
    slots = np.arange(1_000, dtype=np.int32)
    part = (slots % 2).astype(np.int32)
    _, kinds = keys.see(np.full(1_000, BEGIN_MS), np.full(1_000, 1e-10), slots, part)
    assert kinds.shape[0] == 2 * 5  # as with 10 a day and one partition
    assert Budget(20, 2, 1).account(part, np.arange(1_000)).share == pytest.approx(10 / DAY_MS)


# ---- time ------------------------------------------------------------------------------------


def indebted(per_day: float = 10) -> Keys:
    """Five incidents opened at once."""
    keys = Keys(per_day, 1e-5)
    keys.see(np.full(10, BEGIN_MS), np.full(10, 1e-10), np.arange(10, dtype=np.int32))
    assert keys.budget.state()["debt"][0] == 5.0
    return keys


@pytest.mark.parametrize("per_day", [10.0, 1_000.0, 1e6])
def test_a_record_from_the_future_buys_one_incident_at_most(per_day: float) -> None:
    keys = indebted(per_day)
    one = np.ones(1), np.zeros(1, np.int32)
    keys.see(np.array([BEGIN_MS + 1_000 * DAY]), *one)
    bought = 5.0 - keys.budget.state()["debt"][0]
    assert 0.0 < bought <= min(1.0, per_day / 24) + 1e-9  # or an hour's worth, where that is less


def test_records_from_the_past_buy_nothing() -> None:
    keys = indebted()
    many = np.ones(10_000), np.zeros(10_000, np.int32)
    keys.see(BEGIN_MS - np.arange(10_000) * DAY, *many)
    assert keys.budget.state()["debt"][0] == 5.0
    assert keys.budget.state()["clock"][0] == BEGIN_MS


def test_a_clock_that_jumps_to_and_fro_buys_its_jump_once() -> None:
    keys, days = indebted(), 30
    time_ms, p, slots = even(1e4, days, seed=4)
    time_ms = time_ms + DAY * (np.arange(time_ms.shape[0]) % 2)  # every second one: a day ahead
    opened = keys.opened(time_ms, p * 1e-3, slots)
    assert 0.8 * 10 * days <= opened <= 10 * (days + 1) + ROOM_MAX


def test_a_pause_counts_as_time() -> None:
    keys = indebted()
    later = BEGIN_MS + 2 * DAY + np.arange(60)  # 48 hours, an hour a record
    keys.see(later, np.ones(60), np.zeros(60, np.int32))
    assert keys.budget.state()["debt"][0] == 0.0


# ---- an incident -----------------------------------------------------------------------------


def test_open_incidents_grow_and_end_as_ever() -> None:
    keys = indebted()
    key = np.zeros(3, np.int32)
    _, kinds = keys.see(np.full(3, BEGIN_MS), np.array([1e-14, 1e-14, 1.0]), key)
    assert kinds.tolist() == [incident.UPDATED, incident.RESOLVED]
    assert keys.budget.state()["debt"][0] == 5.0


def test_a_hushed_key_is_counted_once_and_opens_when_it_is_rare_enough() -> None:
    keys = indebted()  # 1.55^5 - 1: eight decades below 1e-5
    keys.following._settings = replace(keys.following._settings, quiet=3)
    key = np.full(9, 100, np.int32)
    p = np.array([1e-8, 1e-9, 1.0, 1.0, 1e-9, 1e-14, 1.0, 1.0, 1.0])
    held, kinds = keys.see(np.full(9, BEGIN_MS), p, key)
    assert held.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert kinds.tolist() == [incident.OPENED, incident.RESOLVED]  # no end of what never began
    keys.see(np.full(40, BEGIN_MS), np.ones(40), np.full(40, 100, np.int32))  # the gate forgets
    held, kinds = keys.see(np.full(9, BEGIN_MS), np.r_[1e-8, np.ones(7), 1e-8], key)
    assert held.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 1]  # calm in between
    assert not kinds.shape[0]
    assert keys.following.forget(np.zeros(1, np.int64), np.array([100])) == []


@pytest.mark.parametrize("debt", [-1.0, ROOM_MAX + 1.1, np.nan])
def test_a_debt_that_cannot_be_is_refused(debt: float) -> None:
    saved = indebted().budget.state()
    with pytest.raises(ArtifactError):
        Budget(10, 1, 1).load({**saved, "debt": np.array([debt])})
    with pytest.raises(ArtifactError):
        Budget(10, 2, 2).load(saved)
    less = Budget(0.5, 1, 1)
    less.load({**saved, "debt": np.array([13.0])})
    assert less.state()["debt"][0] == 4.5  # three, a day's share, and one


# ---- files and lanes -------------------------------------------------------------------------

HOSTS = DecideSettings(probability=1e-3, warmup=100, quiet=16)
ROBUSTZ = build(shipped("robustz"))


def told(
    tmp_path: Path, lines: list[bytes], detector: DetectorSpec, partitions: int = 1
) -> tuple[Any, list[dict[str, Any]], Summary]:
    """What backtest says of lines: the table, alerts, and its summary."""
    source, out, said = (tmp_path / name for name in ("in.jsonl", "out.parquet", "alerts.jsonl"))
    source.write_bytes(b"\n".join(lines) + b"\n")
    scorer = build(shipped("network")) if detector.stage else ROBUSTZ
    summary = backtest(detector, scorer, source, out, alerts=said, partitions=partitions)
    return pq.read_table(out), [json.loads(e) for e in said.read_text().splitlines()], summary


LINES = [record.value for record in RECORDS]
PER_DAY = 2_000.0  # the stream lasts some 20 minutes


def hosts(per_day: float = PER_DAY, **changes: Any) -> DetectorSpec:
    decide = replace(HOSTS, per_day=per_day)
    return spec("d", "in", decide=decide, partitions=4, **changes)


def test_a_budget_only_takes_away(tmp_path: Path) -> None:
    free, every, nothing = told(tmp_path, LINES, hosts(0.0), 4)
    kept, fewer, summary = told(tmp_path, LINES, hosts(), 4)
    for name in ("score", "p_value", "event_score"):
        assert free[name].equals(kept[name])
    assert nothing.held == 0
    assert 4 <= summary.alerts < nothing.alerts
    assert summary.held > 10
    opened = {alert["at_ms"] for alert in every if alert["state"] == "open"}
    assert Counter(a["state"] for a in fewer)["open"] == summary.alerts
    assert len(opened) == pytest.approx(summary.alerts + summary.held, rel=0.3)


def test_a_budget_that_nobody_reaches_changes_no_bit(tmp_path: Path) -> None:
    free, every, _ = told(tmp_path, LINES, hosts(0.0), 4)
    kept, same, summary = told(tmp_path, LINES, hosts(1e12), 4)
    assert summary.held == 0
    assert free.equals(kept)
    assert every == same


@pytest.mark.parametrize("size", [7, 77, 5_000])
def test_where_batches_are_cut_changes_no_bit(tmp_path: Path, size: int) -> None:
    lines = LINES[:16_000] if size == 7 else LINES
    whole = told(tmp_path, lines, hosts(), 4)
    cut = told(tmp_path, lines, hosts(batch_records=size), 4)
    assert whole[0].equals(cut[0])
    assert whole[1:] == cut[1:]
    assert whole[2].held > 0


def without_lineage(alerts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cut = [{**alert, "lineage": None, "run_kind": ""} for alert in alerts]
    return sorted(cut, key=lambda alert: (alert["at_ms"], alert["id"], alert["state"]))


def said_by(*parts: list[Out], detector: DetectorSpec) -> Counter[str]:
    there = world()
    for part in parts:
        there.log.write(part)
        live(there, detector)
    return there.said()


def test_a_lane_says_what_backtest_says_however_often_it_is_handed_over(tmp_path: Path) -> None:
    _, alerts, _ = told(tmp_path, LINES, hosts(), 4)
    said = said_by(RECORDS, detector=hosts())
    assert without_lineage([json.loads(e) for e in said.elements()]) == without_lineage(alerts)
    half = len(RECORDS) // 2
    assert said == said_by(RECORDS[:half], RECORDS[half:], detector=hosts(snapshot_s=0.05))
    assert said == said_by(RECORDS[:half], RECORDS[half:], detector=hosts(batch_records=300))


@pytest.mark.parametrize("dies_at", [12, 40])
def test_a_lane_that_is_killed_keeps_to_its_budget(dies_at: int) -> None:
    there, detector = world(), hosts(snapshot_s=0.05, batch_records=1_000)
    there.log.write(RECORDS)
    with pytest.raises(Killed):
        live(there, detector, log=Mortal(there.log, dies_at, done=True))
    live(there, detector, epoch="e2")
    assert there.said() == said_by(RECORDS, detector=hosts())


def test_which_lane_a_partition_is_in_changes_nothing() -> None:
    there, detector = world(), hosts(lanes=2)
    there.log.write(RECORDS)
    pairs = there.partitions[::2], there.partitions[1::2]
    lanes = [
        make(detector, there.log, pair, number=number, store=there.store)
        for number, pair in enumerate(pairs)
    ]
    with running(*lanes):
        until(lambda: sum(lane.stats.records for lane in lanes) == len(RECORDS))
    assert there.said() == said_by(RECORDS, detector=hosts())
    one = Tally().plus(lanes[0].stats.tally).plus(lanes[1].stats.tally)
    whole = world()
    whole.log.write(RECORDS)
    assert one == live(whole, hosts()).stats.tally


def test_a_flood_of_network_records_stays_within_the_budget(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    kinds = rng.integers(4, size=5_000)
    rows = [
        {
            "src": f"h{n % 40}", "ts": BEGIN_MS + 1_000 * n, "service": ("a", "b", "c", "d")[kind],
            "sent": float(np.exp(rng.normal(5 + kind, 0.5))),
        }
        for n, kind in enumerate(kinds.tolist())
    ]  # fmt: skip
    for n in range(4_000, 5_000):  # a thousand entities, each with a record like none before
        rows[n] |= {"src": f"new{n}", "sent": 1e12 * rng.random(), "service": f"s{n}"}
    lines = [json.dumps(row).encode() for row in rows]
    record = RecordSpec(values=("sent",), words=("service",), key="src", time="ts")
    free = spec(
        "d", "in", record=record, model="preset:network", missing=MissingSettings(enabled=False),
        decide=DecideSettings(probability=1e-3),
    )  # fmt: skip
    _, every, _ = told(tmp_path, lines, free)
    kept = replace(free, decide=replace(free.decide, per_day=24))  # an hour and 23 minutes: 1.4
    _, fewer, summary = told(tmp_path, lines, kept)
    assert sum(alert["state"] == "open" for alert in every) > 50
    assert 1 <= summary.alerts <= ROOM_MAX + 2
    assert summary.held > 50
    cut = told(tmp_path, lines, replace(kept, batch_records=77))
    assert cut[1:] == (fewer, summary)


# ---- what is counted -------------------------------------------------------------------------


def test_a_lane_counts_how_rare_its_records_were_and_no_record_twice(tmp_path: Path) -> None:
    table, _, summary = told(tmp_path, LINES, hosts(), 4)
    p = table["p_value"].to_numpy()
    age = np.zeros(p.shape[0], np.int64)
    seen: Counter[str] = Counter()
    for n, key in enumerate(table["key"].to_pylist()):
        age[n] = seen[key]
        seen[key] += 1
    warm = age >= HOSTS.warmup
    there = world()
    there.log.write(RECORDS)
    found = live(there, hosts()).stats.tally
    below = [int((p[warm] <= each).sum()) for each in (1e-3, 1e-4, HOSTS.probability)]
    # A component has its say `warmup` records after it was first heard: a few records later.
    assert 0.9 * warm.sum() <= found.judged <= warm.sum()
    assert [found.first, found.second, found.alerting] == below
    assert below[0] > below[1] > 10
    assert found.held == summary.held > 0
    there.store = type(there.store)()  # no snapshot: everything is read again, in silence
    there.log.write(RECORDS[-1:])
    again = live(there, hosts(), epoch="e2").stats
    assert again.records > 10_000
    assert again.tally.judged <= 1


class Failing:
    """A Log whose first commit beyond the middle is not answered, done or not done."""

    def __init__(self, log: Log, *, done: bool) -> None:
        self._log, self._done, self.failed = log, done, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def sink(self, lane: str, group: str) -> Any:
        sink = self._log.sink(lane, group)
        transact = sink.transact

        def some(out: Any, offsets: Mapping[Partition, Committed], source: Any) -> None:
            fails = not self.failed and sum(c.offset for c in offsets.values()) > len(RECORDS) // 2
            if self._done or not fails:
                transact(out, offsets, source)
            if fails:
                self.failed = True
                raise LaneLost("nobody answers")

        sink.transact = some
        return sink


@pytest.mark.parametrize("done", [True, False])
def test_what_a_commit_without_an_answer_held_is_counted_once(done: bool) -> None:
    there, detector = world(), hosts(batch_records=1_000)
    there.log.write(RECORDS)
    lane = make(detector, Failing(there.log, done=done), there.partitions, store=there.store)
    with running(lane):
        until(lambda: lag(there.log, detector, there.partitions) == 0)
    assert lane.stats.opened == 2
    whole = world()
    whole.log.write(RECORDS)
    assert lane.stats.tally == live(whole, hosts()).stats.tally


def test_a_deployment_tells_lanes_how_many_partitions_there_are(tmp_path: Path) -> None:
    there = world(6)
    there.log.create("more", 3)
    config = Config.model_validate(
        {
            "kafka": "embedded", "store": str(tmp_path / "state"),
            "detectors": [
                {
                    "name": "d", "topics": ["in", "more"], "model": "robustz", "lanes": 2,
                    "record": {"values": "value", "key": "host"}, "alert": {"per_day": 12},
                }
            ],
        }
    )  # fmt: skip
    made = prepare(config, there.log, LogSpec("embedded", ()))
    spec = made.detections[0].spec
    assert (spec.partitions, spec.decide.per_day) == (9, 12)
    flow = flow_of(spec, made.detections[0].lanes[1], describe(ROBUSTZ))
    shared = flow.budget.account(np.zeros(1, np.int32), np.zeros(1, np.int64)).share
    assert shared == pytest.approx(12 / 9 / DAY_MS)  # of all partitions, not of those of a lane
