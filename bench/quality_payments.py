"""The payments class on the simulated card payments of the fraud-detection handbook.

    fraud_sim.parquet   TRANSACTION_ID, TX_DATETIME, CUSTOMER_ID, TERMINAL_ID, TX_AMOUNT,
                        TX_TIME_DAYS, TX_FRAUD (1 is fraud), TX_FRAUD_SCENARIO

(Le Borgne et al. 2022, "Reproducible machine learning for credit card fraud detection".) Only
frauds are labelled, LABEL_DAYS after they were paid, by a record in the same file; what nobody
labels was honest in the end. Measured is the average precision of `score` over the payments of the
last week, once through `backtest` with labels and once without any.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from quality_page import GOALS, Row, Section
from quality_presets import told

from raywatch.actors.records import RecordSpec

LABEL_DAYS = 7
DAY_MS = 86_400_000
JUDGED_DAYS = 7  # the last of the file
FALSE_SHARE = 0.001  # of honest payments that are shown, too
SCENARIOS = {1: "large amounts", 2: "terminals taken over", 3: "customers' cards stolen"}


def average_precision(fraud: NDArray[np.bool_], score: NDArray[Any]) -> float:
    """Mean over frauds of the precision among payments that score at least as much; NaN of none."""
    values, where = np.unique(-score, return_inverse=True)
    frauds, payments = (
        np.cumsum(np.bincount(where, weights=each, minlength=values.size))
        for each in (fraud, np.ones(fraud.size))
    )
    return float((frauds / payments)[where][fraud].mean()) if fraud.any() else float("nan")


def payments(folder: Path, room: Path) -> Section:
    """The last week, with labels and without."""
    table = pq.ParquetFile(folder / "fraud_sim.parquet").read()
    day, fraud, scenario = (
        table[name].to_numpy() for name in ("TX_TIME_DAYS", "TX_FRAUD", "TX_FRAUD_SCENARIO")
    )
    judged = day > day.max() - JUDGED_DAYS
    fraud, scenario = fraud[judged] == 1, scenario[judged]
    score = _scored(_stream(table, labelled=True), room)[judged]
    alone = _scored(_stream(table, labelled=False), room)[judged]
    line = np.quantile(score[~fraud], 1.0 - FALSE_SHARE)
    rows = [
        Row("average precision of `score`", average_precision(fraud, score), GOALS["payments"]),
        Row("the same where nothing is labelled", average_precision(fraud, alone)),
        Row(
            f"frauds found at {100.0 * FALSE_SHARE:g} % false positives",
            float((score[fraud] > line).mean()),
        ),
    ]
    for number, words in SCENARIOS.items():
        of = ~fraud | (scenario == number)
        count = int((scenario == number).sum())
        here = average_precision(fraud[of], score[of])
        rows.append(Row(f"average precision, only {words} ({count:,})", here))
    words = (
        f"{day.size:,} payments of {int(day.max()) + 1} days; judged are the {fraud.size:,} of "
        f"the last {JUDGED_DAYS}, {int(fraud.sum()):,} of them frauds. Frauds are labelled "
        f"{LABEL_DAYS} days later, by records of the same partition; model `preset:payments`, "
        "nothing set."
    )
    return Section("Payments: simulated card fraud", words, rows)


def _stream(table: pa.Table, *, labelled: bool) -> pa.Table:
    """Payments and labels in order of time; `row`: of the payment in the table, -1 of labels."""
    ms = table["TX_DATETIME"].cast(pa.timestamp("ms"), safe=False).cast(pa.int64()).to_numpy()
    known = np.flatnonzero(table["TX_FRAUD"].to_numpy() == 1) if labelled else np.zeros(0, int)
    known = known[ms[known] + LABEL_DAYS * DAY_MS <= ms.max()]
    row = np.concatenate((np.arange(ms.size), known))
    label = np.arange(row.size) >= ms.size
    time = ms[row] + np.where(label, LABEL_DAYS * DAY_MS, 0)
    order = np.lexsort((~label, time))
    row, label = row[order], label[order]
    taken = {
        name: table[column].to_numpy()[row]
        for name, column in (
            ("terminal", "TERMINAL_ID"), ("customer", "CUSTOMER_ID"),
            ("payment", "TRANSACTION_ID"), ("amount", "TX_AMOUNT"),
        )
    }  # fmt: skip
    columns = {name: pa.array(each, mask=label & (name in ("customer", "amount")))
               for name, each in taken.items()}  # fmt: skip
    columns["ts"] = pa.array(time[order])
    columns["fraud"] = pa.array(label, mask=~label)
    columns["row"] = pa.array(np.where(label, -1, row))
    return pa.table(columns)


def _scored(table: pa.Table, room: Path) -> NDArray[Any]:
    """What `backtest` says of each payment, in the order of the public file."""
    record = RecordSpec(
        values=("amount",), words=("customer",), key="terminal", time="ts", id="payment",
        label="fraud",
    )  # fmt: skip
    row = table["row"].to_numpy()
    score = told(table, "payments", record, room, "score")["score"].to_numpy()
    found = np.empty(int(row.max()) + 1, np.float32)
    found[row[row >= 0]] = score[row >= 0]
    return found
