"""Payments of customers at terminals, and labels of them that come days later.

The state of one lane: a customer and a terminal is a row by slot, the rest is kept by partition.
Where terminals are spread over partitions, each knows its own share of a customer only.
payments_kernel.py has the rule. It knows nothing of keys, and of records only their columns.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raywatch.models import calibrate, combiner
from raywatch.models import payment_features as features
from raywatch.models.errors import ArtifactError
from raywatch.models.payment_names import FEATURES, FRAUD, PAYMENT
from raywatch.models.payments_kernel import (
    DONE,
    HEAD,
    LEVEL,
    LEVEL_MAX,
    LOST,
    MATCHED,
    REPEATED,
    TAIL,
    TOTAL_COLUMNS,
    UNKNOWN,
    WHO_CUSTOMER,
    WHO_DONE,
    WHO_LEVEL,
    WHO_TERMINAL,
    Batch,
    Found,
    State,
    index,
    observe,
)
from raywatch.models.rows import Rows
from raywatch.models.scorer import I32, I64, Component
from raywatch.models.unasked import Unasked

WAIT = 1 << 17  # payments of a partition whose label is not known yet; a power of two
VISITS = 1 << 18  # cells that count visits of customers to terminals; a power of two
WARM = 2_048  # payments of a partition before any may alert: what calibrates is young till then
CUSTOMER_BYTES = 8 * features.CUSTOMER_COLUMNS
TERMINAL_BYTES = 8 * features.TERMINAL_COLUMNS
COMPONENTS = (Component("fraud"), Component("customer_amount"))

_BY_SLOT = ("customer", "terminal")
_HINT = "delete the snapshot: the lane then rebuilds its state from the log"


class PaymentsModel(Unasked):
    """The version that says which arithmetic lanes use."""

    components = COMPONENTS
    stage = "payments"


def _pairs() -> I32:
    """Amounts with everything, the terminal's labels with each other."""
    amounts, rest = features.AMOUNTS, features.AMOUNTS + features.TERMINAL + features.CUSTOMER
    found = {(max(f, g), min(f, g)) for f in amounts for g in rest if f != g}
    found |= {(f, g) for f in features.TERMINAL for g in features.TERMINAL if g < f}
    return np.array(sorted(found), np.int32)


def partition_bytes(*, labelled: bool) -> int:
    """Memory of one partition."""
    wait = WAIT if labelled else 1
    waiting = wait * (8 + 8 + 4 * 4 + FEATURES + 2 * 4)
    calibration = 2 * 8 * calibrate.COLUMNS
    rest = 8 * (features.BASE_COLUMNS + TOTAL_COLUMNS + FEATURES) + calibration + VISITS
    return waiting + rest + combiner.PARTITION_BYTES


class Payments:
    """Payments and labels of one lane. One thread uses it."""

    def __init__(
        self, partitions: int = 1, *, late_s: float, labelled: bool = True, wait: int = WAIT
    ) -> None:
        """`late_s`: a payment without a label after so long was honest."""
        assert partitions >= 1, partitions
        assert wait & (wait - 1) == 0, wait
        self._late_s, self._labelled, self._pairs = late_s, labelled, _pairs()
        self._rows = {
            "customer": Rows((features.CUSTOMER_COLUMNS,), np.float64),
            "terminal": Rows((features.TERMINAL_COLUMNS,), np.float64),
        }
        self._slots: dict[str, int] = dict.fromkeys(_BY_SLOT, 0)
        wait = wait if labelled else 1
        nobody = np.zeros((0, 0))
        self._state = State(
            customer=nobody,
            terminal=nobody,
            base=np.zeros((partitions, features.BASE_COLUMNS)),
            total=np.zeros((partitions, TOTAL_COLUMNS)),
            calibration=np.zeros((partitions, 2, calibrate.COLUMNS)),
            usual=np.zeros((partitions, FEATURES)),
            visits=np.zeros((partitions, VISITS), np.uint8),
            id=np.zeros((partitions, wait), np.int64),
            paid=np.zeros((partitions, wait)),
            who=np.zeros((partitions, wait, 4), np.int32),
            codes=np.zeros((partitions, wait, FEATURES), np.uint8),
            where=np.full((partitions, 2 * wait), -1, np.int32),
            model=combiner.fresh(partitions),
        )
        self._state.base[:, features.B_VARIANCE] = 1.0

    def ensure(self, *, customers: int, terminals: int) -> None:
        """Have room for so many slots."""
        for name, slots in (("customer", customers), ("terminal", terminals)):
            if slots > self._slots[name]:
                self._rows[name].reserve(slots)
                self._slots[name] = slots

    def observe(self, batch: Batch) -> Found:
        """Judge payments and learn labels, in batch order."""
        records = batch.kind.shape[0]
        for name, slot in (("customer", batch.customer), ("terminal", batch.terminal)):
            assert slot.max(initial=-1) < self._slots[name], (name, self._slots)
        payments = batch.kind == PAYMENT
        assert (batch.customer[payments] >= 0).all(), "a payment without a customer"
        assert (batch.terminal >= 0).all(), "a record without a terminal"
        found = Found(
            np.empty(records, np.int64),
            np.empty((records, 2)),
            np.empty(records),
            np.empty((records, FEATURES)),
            np.empty((records, FEATURES), np.float32),
        )
        # The rows are not kept in the state: a view of them would hold their memory down.
        rows = {name: each.array for name, each in self._rows.items()}
        state = self._state._replace(**rows)
        given = [np.require(each, requirements=["C", "W"]) for each in batch]
        observe(state, Batch._make(given), self._late_s, self._labelled, self._pairs, found)
        return found

    def forget(self, *, customers: I64, terminals: I64) -> None:
        """Forget entities: their slots go to others. Their payments still teach what is common."""
        gone_of = {WHO_CUSTOMER: ("customer", customers), WHO_TERMINAL: ("terminal", terminals)}
        for column, (name, gone) in gone_of.items():
            if gone.shape[0]:
                self._rows[name].array[gone] = 0.0
                who = self._state.who[:, :, column]
                who[np.isin(who, gone)] = -1

    def count(self) -> dict[str, int]:
        """What became of labels, and of payments that could not wait for theirs."""
        total = self._state.total.sum(axis=0)
        names = {"labels": MATCHED, "repeated": REPEATED, "unknown": UNKNOWN, "lost": LOST}
        return {name: int(total[column]) for name, column in names.items()}

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything remembered, as copies; by slot and by partition."""
        kept = self._state._asdict() | self._state.model._asdict()
        del kept["model"], kept["where"]  # found again from the ids
        kept |= {name: self._rows[name].array[: self._slots[name]] for name in _BY_SLOT}
        return {name: each.copy() for name, each in kept.items()}

    def load(self, saved: Mapping[str, NDArray[Any]], /) -> None:
        """Replace everything by what `state` gave. Raises ArtifactError."""
        model = combiner.Model(saved["weight"].copy(), saved["bias"].copy())
        names = [n for n in State._fields if n not in ("model", "where", *_BY_SLOT)]
        fresh = self._state._replace(model=model, **{name: saved[name].copy() for name in names})
        for name, like in (*self._state._asdict().items(), *self._state.model._asdict().items()):
            found = saved.get(name)
            if found is not None and name not in _BY_SLOT and found.shape != like.shape:
                raise ArtifactError(f"payments `{name}` have shape `{found.shape}`", hint=_HINT)
        self._check(saved, fresh)
        for p in range(fresh.total.shape[0]):
            tail, head = int(fresh.total[p, TAIL]), int(fresh.total[p, HEAD])
            index(fresh.where[p], fresh.id[p], tail, head)
        slots = {name: saved[name].shape[0] for name in _BY_SLOT}
        self.ensure(customers=slots["customer"], terminals=slots["terminal"])
        for name in _BY_SLOT:
            self._rows[name].array[:] = 0.0
            self._rows[name].array[: slots[name]] = saved[name]
        self._state, self._slots = fresh, slots

    def _check(self, saved: Mapping[str, NDArray[Any]], fresh: State) -> None:
        """Kernels check no bounds: what they follow must be there. Raises ArtifactError."""
        customer, terminal, total = saved["customer"], saved["terminal"], fresh.total
        sound = customer.shape[1:] == (features.CUSTOMER_COLUMNS,)
        sound = sound and terminal.shape[1:] == (features.TERMINAL_COLUMNS,)
        numbers = (customer, terminal, fresh.base, total, fresh.calibration, fresh.paid)
        numbers += (fresh.usual, fresh.model.weight, fresh.model.bias)
        sound = sound and all(bool(np.isfinite(each).all()) for each in numbers)
        waiting = total[:, HEAD] - total[:, TAIL]
        counts = (total, fresh.calibration, waiting, fresh.base[:, [0, 2, 3, 4]])
        counts += (fresh.model.weight[:, :, combiner.SQUARES] - 1.0, fresh.model.bias[:, 1] - 1.0)
        sound = sound and all(bool((each >= 0.0).all()) for each in counts)
        sound = sound and bool((waiting <= fresh.id.shape[1]).all())
        sound = sound and float(total.max(initial=0.0)) < 2.0**53
        for column, low, high in (
            (WHO_CUSTOMER, -1, customer.shape[0] - 1),
            (WHO_TERMINAL, -1, terminal.shape[0] - 1),
            (WHO_DONE, 0, DONE),
            (WHO_LEVEL, -1, LEVEL_MAX),
        ):
            each = fresh.who[:, :, column]
            empty = (each == 0) & (high < 0)  # a place that nothing was put into
            sound = sound and bool((((each >= low) & (each <= high)) | empty).all())
        if not sound or float(total[:, LEVEL].max(initial=0.0)) > LEVEL_MAX:
            raise ArtifactError("payments of a snapshot have numbers that cannot be", hint=_HINT)


def warm_payments() -> None:
    """Compile the kernels of this stage."""
    payments = Payments(late_s=1.0, wait=1)
    payments.ensure(customers=1, terminals=1)
    one = np.zeros(2, np.int32)
    kind, ids = np.array([PAYMENT, FRAUD], np.uint8), np.ones(2, np.int64)
    payments.observe(Batch(one, kind, np.ones(2), ids, one, one, ids, np.ones(2)))
    payments.load(payments.state())
