"""Goal: what is a payment, what a label, and what neither, is the same wherever it is read.

Method: good and bad records as JSON, one by one with the reason of each reject; then all of them as
JSON lines, CSV and Parquet.
"""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raywatch.actors.decode import decode
from raywatch.actors.files import read_file
from raywatch.actors.labels import kinds
from raywatch.actors.ports import Fetched
from raywatch.actors.records import RecordSpec
from raywatch.models.payment_names import FRAUD, HONEST, PAYMENT

RECORD = RecordSpec(
    values=("amount",), words=("customer",), key="terminal", time="ts", id="payment", label="fraud"
)  # fmt: skip
BASE = {"terminal": "t", "ts": 1, "payment": 7, "customer": "c", "amount": 2.5, "fraud": None}
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"fraud": "maybe"}, "wrong type", "`fraud`: `maybe`"),
    ({"fraud": 2}, "wrong type", "`fraud`: `2`"),
    ({"payment": None}, "missing field", "`payment`"),
    ({"payment": None, "fraud": True}, "missing field", "`payment`"),
    ({"amount": None}, "missing field", "`amount`"),
    ({"customer": None}, "missing field", "`customer`"),
    ({"customer": ""}, "missing field", "`customer`"),
    ({"amount": None, "customer": None}, "missing field", "`amount`"),
]
GOOD: list[dict[str, Any]] = [
    {}, {"fraud": True}, {"fraud": 1, "amount": None}, {"fraud": False, "customer": None},
    {"fraud": "0", "customer": None, "amount": None}, {"fraud": "", "payment": "x-9"},
]  # fmt: skip


def _lines(some: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(row).encode() for row in some]


def decoded(some: list[dict[str, Any]], spec: RecordSpec = RECORD) -> Any:
    place = np.zeros(len(some), np.int32), np.arange(len(some)), np.full(len(some), -1)
    return decode(Fetched(*place, _lines(some), []), spec)


@pytest.mark.parametrize(("change", "reason", "detail"), BAD)
def test_what_is_no_payment_and_no_label_is_rejected(
    change: dict[str, Any], reason: str, detail: str
) -> None:
    records = decoded([BASE, BASE | change, BASE])
    assert records.offset.tolist() == [0, 2]
    (reject,) = records.rejects
    assert (reject.reason, reject.detail) == (reason, detail)
    hidden = replace(RECORD, pseudonymise=("customer",))
    (reject,) = decoded([BASE | change], hidden).rejects
    assert (reject.reason, reject.value, "maybe" in reject.detail) == (reason, None, False)


def test_payments_and_labels_are_read_alike_from_everything(tmp_path: Path) -> None:
    some = [BASE | change for change in GOOD + [each for each, _, _ in BAD]]
    records = decoded(some)
    assert len(records) == len(GOOD)
    texts = [{n: "" if v is None else str(v) for n, v in row.items()} for row in some]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(BASE))
        writer.writeheader()
        writer.writerows(texts)
    names = ("terminal", "payment", "customer", "fraud")
    columns: dict[str, Any] = {name: [row[name] or None for row in texts] for name in names}
    columns |= {name: [row[name] for row in some] for name in ("ts", "amount")}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(_lines(some)))
    for name in ("a.csv", "a.parquet", "a.jsonl"):
        (piece,) = read_file(tmp_path / name, RECORD)
        assert piece.records.offset.tolist() == records.offset.tolist(), name
        assert np.array_equal(piece.records.words[:, :2], records.words[:, :2]), name
        assert [r.reason for r in piece.records.rejects] == [r.reason for r in records.rejects]


def test_a_label_is_true_or_false_and_a_record_without_one_is_a_payment() -> None:
    expected = [PAYMENT, FRAUD, FRAUD, HONEST, HONEST, PAYMENT]
    assert kinds(RECORD, decoded([BASE | change for change in GOOD]).words).tolist() == expected
    nothing = replace(RECORD, label=None)
    assert kinds(nothing, decoded([BASE | {"fraud": True}], nothing).words).tolist() == [PAYMENT]
