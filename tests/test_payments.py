"""Goal: a payment is judged by what its partition knew then, the same however records travel.

Method: a synthetic stream of payments, a terminal that is taken over in it, and labels that come
half a day later as records of the same partition. The flow is cut, saved and loaded; labels are
left out, repeated, late, and about nothing; then whole lanes on the embedded log, killed in
mid-stream, and files through `backtest`; bits are compared. Damage must be refused.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classes import Lanes, without_lineage

from raywatch.actors.payments import PaymentsFlow
from raywatch.actors.ports import Fetched, Out, Partition
from raywatch.actors.pseudonyms import HmacKey
from raywatch.actors.records import RecordSpec
from raywatch.actors.stages import flow_of
from raywatch.cluster.config import load
from raywatch.cluster.memory import ENTITY_BYTES, KEY_BYTES, _sketches, key_bytes, memory_bound
from raywatch.cluster.output import of_labels
from raywatch.cluster.watch import astray
from raywatch.models.errors import ArtifactError
from raywatch.models.payment_names import FRAUD, HONEST, NAMES, PAYMENT
from raywatch.models.payments import Payments, partition_bytes
from raywatch.models.payments_kernel import HEAD, TAIL, Batch
from raywatch.models.registry import build, shipped
from raywatch.models.scorer import describe
from raywatch.models.settings import DecideSettings, MissingSettings

CONFIG = Path(__file__).parent.parent / "configs" / "payments.yaml"
RECORD = RecordSpec(
    values=("amount",), words=("customer",), key="terminal", time="ts", id="payment",
    label="fraud", label_days=1.0,
)  # fmt: skip
MODEL = describe(build(shipped("payments")))
PAYMENTS, TAKEN = 8_000, 3_000  # from TAKEN on, payments at one terminal are frauds
STEP_MS, LATE_MS = 60_000, 43_200_000  # a payment a minute; a label comes half a day later
BEGIN_MS = 1_700_000_000_000


def rows(seed: int = 5, count: int = PAYMENTS, step_ms: int = STEP_MS) -> list[dict[str, Any]]:
    """Payments and labels, in order of time; amounts of frauds are like any other."""
    rng = np.random.default_rng(seed)
    usual = rng.normal(3.5, 0.6, 60)
    found: list[tuple[int, int, dict[str, Any]]] = []
    for index in range(count):
        customer, terminal = int(rng.integers(60)), int(rng.integers(40))
        where = "mallory" if rng.random() < 0.02 else f"shop-{terminal}"
        at = BEGIN_MS + step_ms * index
        amount = round(float(np.exp(rng.normal(usual[customer], 0.3))), 2)
        payment = {"terminal": where, "ts": at, "payment": index}
        found.append((at, 1, payment | {"customer": f"c{customer}", "amount": amount}))
        if where == "mallory" and index >= TAKEN:
            found.append((at + LATE_MS, 0, payment | {"ts": at + LATE_MS, "fraud": True}))
    return [row for _, _, row in sorted(found, key=lambda each: each[:2])]


def lines_of(some: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(row).encode() for row in some]


ROWS = [row for row in rows() if row["ts"] < BEGIN_MS + STEP_MS * PAYMENTS]
LINES = lines_of(ROWS)
FIRST = next(at for at, row in enumerate(ROWS) if "fraud" in row)  # the first label


LANES = Lanes("payments", {
    "record": RECORD,
    "missing": MissingSettings(enabled=False),
    "decide": DecideSettings(probability=1e-2, quiet=5),
})  # fmt: skip
detector, said_by = LANES.detector, LANES.said_by


def made(**changes: Any) -> PaymentsFlow:
    flow = flow_of(detector(**changes), [Partition("", 0)], MODEL, evidence=True)
    assert isinstance(flow, PaymentsFlow)
    return flow


def heard(
    flow: PaymentsFlow, lines: list[bytes], size: int = 1_000, begin: int = 0
) -> tuple[list[Any], list[bytes]]:
    """What a flow says of each line (score, p, event, evidence), and its alerts."""
    pieces: list[list[Any]] = []
    alerts: list[bytes] = []
    for at in range(0, len(lines), size):
        part = lines[at : at + size]
        place = np.zeros(len(part), np.int32), begin + at + np.arange(len(part))
        fetched = Fetched(*place, np.full(len(part), -1), part, [])
        batch = flow.prepare(fetched, MODEL, begin={}, end={})
        assert not batch.records.rejects
        said = flow.finish(batch, None)
        assert said.decided is not None
        assert said.decided.evidence is not None
        back = np.argsort(batch.order)
        decided = said.decided
        parts = (decided.score, decided.p, decided.event, decided.evidence)
        pieces.append([part[back] for part in parts])
        alerts += [alert.to_json() for alert in said.alerts]
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)], alerts


WHOLE, ALERTS = heard(made(), LINES)


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()


# ---- the rule --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 777, 20_000])
def test_where_batches_are_cut_changes_no_bit(size: int) -> None:
    lines = LINES if size > 1 else LINES[:4_500]
    found, alerts = heard(made(), lines, size)
    assert_same(found, [part[: len(lines)] for part in WHOLE])
    assert alerts == ALERTS[: len(alerts)]
    assert len(alerts) == len(ALERTS) or size == 1


@pytest.mark.parametrize("size", [100, 2_048, FIRST, 6_000])
def test_what_is_said_of_a_beginning_is_the_beginning_of_what_is_said(size: int) -> None:
    found, _ = heard(made(), LINES[:size])
    assert_same(found, [part[:size] for part in WHOLE])


@pytest.mark.parametrize("at", [1, 2_500, FIRST + 1, 6_000])
def test_a_flow_goes_on_from_a_snapshot(at: int) -> None:
    first, second = made(), made()
    heard(first, LINES[:at])
    assert second.fits(first.snapshot({Partition("", 0): at}))
    found, _ = heard(second, LINES[at:], begin=at)
    assert_same(found, [part[at:] for part in WHOLE])
    assert first.labels() != second.labels() or at == 1


def test_customers_and_terminals_that_are_forgotten_make_no_difference_where_batches_end() -> None:
    one, other = (heard(made(keys_max=16), LINES[:5_000], size) for size in (5_000, 111))
    assert_same(one[0], other[0])
    assert one[1] == other[1]
    flow = made(keys_max=16)
    heard(flow, LINES[:5_000])
    assert flow.keys.evicted > 1_000
    assert flow.customers.evicted > 1_000
    assert len(flow.customers) <= 16


def test_a_terminal_that_is_forgotten_ends_its_incident() -> None:
    forever = DecideSettings(probability=1e-2, quiet=100_000)
    _, alerts = heard(made(keys_max=24, decide=forever), LINES)
    reasons = Counter(json.loads(alert).get("reason", "") for alert in alerts)
    assert reasons["key forgotten"] > 0


# ---- labels ----------------------------------------------------------------------------------


def without(lines: list[bytes]) -> list[bytes]:
    return [line for line, row in zip(lines, ROWS, strict=True) if "fraud" not in row]


def test_labels_change_nothing_before_they_come_and_much_after() -> None:
    alone, alerts = heard(made(), without(LINES))
    payments = np.array(["fraud" not in row for row in ROWS])
    assert_same([part[:FIRST] for part in alone], [part[:FIRST] for part in WHOLE])
    assert not np.array_equal(alone[0][FIRST:], WHOLE[0][payments][FIRST:])
    assert {json.loads(alert)["component"] for alert in alerts} <= {"customer_amount"}


def test_a_terminal_that_was_taken_over_is_found_once_labels_say_so() -> None:
    strict = DecideSettings(probability=2e-3)
    alone = {json.loads(a)["key"] for a in heard(made(decide=strict), without(LINES))[1]}
    assert "mallory" not in alone
    _, alerts = heard(made(decide=strict), LINES)
    opened = [each for each in map(json.loads, alerts) if each["state"] == "open"]
    of = [alert for alert in opened if alert["key"] == "mallory"]
    assert of
    assert of[0]["at_ms"] > ROWS[FIRST]["ts"]
    assert {alert["component"] for alert in of} == {"fraud"}
    late = [alert for alert in opened if alert["at_ms"] >= of[0]["at_ms"]]
    assert sum(alert["key"] != "mallory" for alert in late) <= 3  # of some 2,500 other payments
    # Amounts are like any other: what is told is the terminal's.
    shown = {channel["name"]: channel for channel in of[0]["channels"]}
    assert list(shown) == ["amount", *NAMES[1:], "chance of fraud", "customer", "payment"]
    first = max(shown.values(), key=lambda channel: channel["share"])
    assert "here" in first["name"]
    assert shown["frauds here in 28 d"]["observed"] > 5.0
    assert shown["share of frauds here in 28 d over the usual one"]["expected"] == 1.0
    assert shown["chance of fraud"]["observed"] > 0.2
    assert sum(channel["share"] for channel in shown.values()) == pytest.approx(1.0)
    assert shown["customer"]["word"].startswith("c")
    assert shown["payment"]["word"].isdigit()
    assert "like those that were labelled as fraud" in of[0]["words"]
    assert f"{first['name']} is" in of[0]["words"]
    assert "expected about 1" in of[0]["words"]


def test_without_labels_an_amount_is_held_against_its_customer() -> None:
    some = [row for row in ROWS[:4_000] if "fraud" not in row]
    some[3_500] = some[3_500] | {"amount": 9_000.0}
    for record in (RECORD, replace(RECORD, label=None)):
        _, alerts = heard(made(record=record), lines_of(some))
        odd = next(a for a in map(json.loads, alerts) if a["at_ms"] == some[3_500]["ts"])
        assert odd["state"] == "open"
        amount = odd["channels"][0]
        assert (amount["name"], amount["observed"], amount["share"]) == ("amount", 9_000.0, 1.0)
        assert 5.0 < amount["expected"] < 300.0
        assert "an unusual amount for this customer: amount is 9000, expected about" in odd["words"]


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({"payment": 999_999, "fraud": False}, "unknown"),
        ({"payment": 999_999, "fraud": 1}, "unknown"),
        ({"payment": ROWS[FIRST]["payment"], "fraud": True}, "repeated"),
        ({"payment": ROWS[FIRST]["payment"], "fraud": 0, "amount": 5.0}, "repeated"),
    ],
)
def test_a_label_of_nothing_and_one_that_comes_twice_are_counted(
    more: dict[str, Any], count: str
) -> None:
    row = {"terminal": "shop-1", "ts": ROWS[FIRST + 5]["ts"]} | more
    flow, usual = made(), made()
    heard(usual, LINES)
    found, _ = heard(flow, [*LINES[: FIRST + 5], *lines_of([row]), *LINES[FIRST + 5 :]])
    assert flow.labels()[count] == usual.labels()[count] + 1
    assert flow.labels()["labels"] == usual.labels()["labels"] > 50
    taught = more["fraud"] == 1 and count == "unknown"  # its terminal has had a fraud all the same
    assert (np.delete(found[0], FIRST + 5) == WHOLE[0]).all() != taught
    assert (found[0][FIRST + 5], found[1][FIRST + 5], found[2][FIRST + 5]) == (0.0, 1.0, 0.0)


def test_a_label_that_comes_too_late_is_no_label_of_a_payment() -> None:
    late = replace(RECORD, label_days=LATE_MS / 86_400_000.0 - 0.01)
    flow = made(record=late)
    heard(flow, LINES)
    assert flow.labels()["labels"] == 0
    assert flow.labels()["unknown"] == sum("fraud" in row for row in ROWS)


def test_one_wrong_time_does_not_end_all_waiting() -> None:
    some = list(ROWS)
    some[1_000] = some[1_000] | {"ts": BEGIN_MS + 10_000 * 86_400_000}
    flow = made(record=replace(RECORD, label_days=2.0))
    found, _ = heard(flow, lines_of(some))
    assert flow.labels()["labels"] == sum("fraud" in row for row in ROWS)
    assert np.isfinite(found[0]).all()


# ---- what is kept ----------------------------------------------------------------------------


def given(ids: list[int], kinds: list[int], times: list[float], amount: float = 10.0) -> Batch:
    count = len(ids)
    one = np.zeros(count, np.int32)
    hashed = np.array(ids, np.int64) * 0x9E3779B97F4A7C1  # ids are hashes of texts
    kind = np.array(kinds, np.uint8)
    return Batch(one, kind, np.array(times), hashed, one, one, hashed, np.full(count, amount))


def small(wait: int = 64, late_s: float = 1e6) -> Payments:
    payments = Payments(late_s=late_s, wait=wait)
    payments.ensure(customers=1, terminals=1)
    return payments


def test_only_so_many_payments_wait_and_what_cannot_is_counted() -> None:
    payments = small()
    ids = list(range(1, 2_001))
    payments.observe(given(ids, [PAYMENT] * 2_000, [float(n) for n in ids]))
    total = payments.state()["total"][0]
    waiting = int(total[HEAD] - total[TAIL])
    assert 16 <= waiting <= 64
    assert payments.count() == {
        "labels": 0, "repeated": 0, "unknown": 0, "lost": 2_000 - waiting
    }  # fmt: skip
    payments.observe(given(ids, [HONEST] * 2_000, [2_001.0] * 2_000))
    count = payments.count()
    assert (count["labels"], count["unknown"]) == (waiting, 2_000 - waiting)
    # Each that was left taught for those that were not: the share of frauds stays what it was.
    assert payments.state()["base"][0, 3] == pytest.approx(2_000, rel=0.5)


def test_what_nobody_complains_about_was_honest_and_makes_room() -> None:
    payments = small(late_s=50.0)
    ids = list(range(1, 501))
    payments.observe(given(ids, [PAYMENT] * 500, [float(n) for n in ids]))
    assert payments.count()["lost"] == 0
    total, base = payments.state()["total"][0], payments.state()["base"][0]
    assert total[HEAD] - total[TAIL] == 50
    assert base[3:].tolist() == [450.0, 0.0]  # labels, frauds


def test_an_id_that_comes_twice_is_the_later_payment() -> None:
    payments = small(late_s=50.0)
    payments.observe(given([1, 2, 1], [PAYMENT] * 3, [1.0, 2.0, 3.0]))
    payments.load(payments.state())
    payments.observe(given([1, 1], [FRAUD, FRAUD], [4.0, 5.0]))
    assert payments.count() == {"labels": 1, "repeated": 1, "unknown": 0, "lost": 0}
    payments.observe(given([3], [PAYMENT], [200.0]))
    assert payments.state()["base"][0, 3:].tolist() == [3.0, 1.0]


def test_amounts_of_any_size_do_no_harm() -> None:
    payments = small()
    for at, amount in enumerate((0.0, -1e308, 1.7e308, 5e-324, 1e9)):
        ids, times = [10 * at + n for n in range(1, 6)], [float(at)] * 5
        found = payments.observe(given(ids, [PAYMENT] * 5, times, amount))
        assert np.isfinite(found.rare).all()
        assert np.isfinite(found.x).all()
    payments.load(payments.state())


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("total", (0, HEAD), 1e9), ("total", (0, TAIL), 9.0), ("total", (0, 3), 40.0),
        ("base", (0, 1), np.nan), ("who", (0, 0, 0), 5), ("who", (0, 0, 1), -2),
        ("who", (0, 0, 2), 3), ("who", (0, 0, 3), 99), ("weight", (0, 7, 1), 0.0),
        ("customer", (0, 0), np.inf), ("calibration", (0, 0, 1), -1.0),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused(name: str, at: tuple[int, ...], value: float) -> None:
    payments = small()
    payments.observe(given([1, 2], [PAYMENT] * 2, [1.0, 2.0]))
    payments.load(payments.state())
    saved = payments.state()
    saved[name][at] = value
    with pytest.raises(ArtifactError):
        payments.load(saved)
    with pytest.raises(ArtifactError):
        small(32).load(payments.state())


# ---- around it -------------------------------------------------------------------------------


def test_a_customer_that_must_not_be_shown_is_in_no_alert() -> None:
    hidden = replace(RECORD, pseudonymise=("customer", "payment", "terminal"))
    key = HmacKey(b"k" * 32)
    found, alerts = heard(made(record=hidden, pseudonym=key), LINES)
    assert found[0].tobytes() != b""
    words = [[c.get("word") for c in json.loads(alert)["channels"][-2:]] for alert in alerts]
    assert words
    assert all(each == ["(withheld)", "(withheld)"] for each in words)
    assert not any(b"mallory" in alert for alert in alerts)


def test_the_example_is_whole() -> None:
    known = load(CONFIG).spec("")
    assert known.stage == "payments"
    assert known.record.texts == ("customer", "payment", "fraud")
    assert not known.missing.enabled
    assert known.record.label_days == 8.0


# ---- lanes -----------------------------------------------------------------------------------

OUTS = [Out("in", row["terminal"].encode(), line) for row, line in zip(ROWS, LINES, strict=True)]
HALF = len(ROWS) // 2


def backtested(tmp_path: Path, **changes: Any) -> tuple[Any, list[dict[str, Any]], Any]:
    """What backtest says of the stream: the table, alerts and the summary."""
    return LANES.filed(tmp_path, LINES, evidence=True, **changes)


def test_a_file_has_a_row_for_each_record_and_counts_what_became_of_labels(tmp_path: Path) -> None:
    table, alerts, summary = backtested(tmp_path)
    assert table["score"].to_numpy().tobytes() == WHOLE[0].tobytes()
    assert len(alerts) == len(ALERTS)
    assert summary.rejects == 0
    flow = made()
    heard(flow, LINES)
    assert summary.labels == flow.labels()
    evidence = np.array(table["evidence"].to_pylist())
    assert evidence.shape == (len(ROWS), len(NAMES) + 3)
    told = evidence.sum(axis=1)
    assert np.allclose(told[told > 0.0], WHOLE[0][told > 0.0], rtol=1e-5)


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_lane_says_what_backtest_says(tmp_path: Path, partitions: int) -> None:
    _, alerts, _ = backtested(tmp_path, partitions=partitions)
    assert without_lineage(said_by(OUTS, partitions=partitions)) == without_lineage(alerts)


def test_a_lane_that_was_handed_over_says_the_same() -> None:
    said = said_by(OUTS)
    assert said == said_by(OUTS[:HALF], OUTS[HALF:], snapshot_s=0.05)
    assert said == said_by(OUTS[: FIRST + 1], OUTS[FIRST + 1 :], batch_records=300)
    assert len(said) >= 10


@pytest.mark.parametrize("dies_at", [12, 30, 55])
def test_a_lane_that_is_killed_loses_and_repeats_nothing(dies_at: int) -> None:
    assert LANES.survived(OUTS, dies_at) == said_by(OUTS)


def test_a_snapshot_of_fewer_partitions_is_taken_over() -> None:
    few = flow_of(detector(), [Partition("in", 1)], MODEL)
    more = flow_of(detector(), [Partition("in", 0), Partition("in", 1)], MODEL)
    assert isinstance(few, PaymentsFlow)
    zeros = np.zeros(HALF, np.int32)
    fetched = Fetched(zeros, np.arange(HALF), np.full(HALF, -1), LINES[:HALF], [])
    few.finish(few.prepare(fetched, MODEL, begin={}, end={}), None)
    assert more.fits(few.snapshot({Partition("in", 1): HALF}))
    rest = Fetched(zeros + 1, HALF + np.arange(HALF), np.full(HALF, -1), LINES[HALF : 2 * HALF], [])
    decided = more.finish(batch := more.prepare(rest, MODEL, begin={}, end={}), None).decided
    assert decided is not None
    back = np.argsort(batch.order)
    assert decided.score[back].tobytes() == WHOLE[0][HALF : 2 * HALF].tobytes()
    other = replace(RECORD, label_days=2.0)
    assert flow_of(detector(record=other), [], MODEL).layout() != few.layout()


def test_memory_is_a_sum_of_what_there_is() -> None:
    flow = flow_of(detector(), [Partition("in", n) for n in range(3)], MODEL)
    assert isinstance(flow, PaymentsFlow)
    found = sum(a.nbytes for a in flow.payments.state().values())
    found += flow.payments._state.where.nbytes  # made from the ids, not saved
    assert found == _sketches(detector(), 3) == 3 * partition_bytes(labelled=True)
    alone = Payments(late_s=1.0, labelled=False)
    found = sum(a.nbytes for a in alone.state().values()) + alone._state.where.nbytes
    assert found == partition_bytes(labelled=False) < partition_bytes(labelled=True) / 10
    flow.payments.ensure(customers=10, terminals=10)
    rows = sum(flow.payments.state()[name].nbytes for name in ("customer", "terminal"))
    assert rows + 10 * (KEY_BYTES + 32) == 10 * ENTITY_BYTES
    one = memory_bound(detector(), partitions=1, owners=1)
    ten = memory_bound(detector(), partitions=10, owners=1)
    assert ten.state - one.state >= 9 * partition_bytes(labelled=True)
    assert ten.snapshot - one.snapshot >= 9 * 2 * partition_bytes(labelled=True)
    silent = detector(record=replace(RECORD, label=None))
    assert memory_bound(silent, partitions=1, owners=1).state < one.state
    assert key_bytes(detector()) < key_bytes(replace(detector(), model="lagbank"))


def test_labels_that_find_nothing_are_said() -> None:
    told = {"labels": 80, "repeated": 9, "unknown": 60, "lost": 0}
    assert astray("d", {}) == astray("d", told) == ""  # 60 of 140
    words = astray("d", {**told, "unknown": 120})  # of 200
    assert words.startswith("d: most labels find no payment that waits")
    assert of_labels(told) == [
        "labels: 80 joined to their payment, 9 repeated, 60 of payments that are unknown or too "
        "old; 0 payments had no room to wait for theirs"
    ]
    assert of_labels({**told, "late": 3})[0].endswith("; 3 records came too late for their place")
    assert of_labels({}) == []
