"""Payments: judged by their terminal, their customer, and the labels that have come so far.

Terminals are the keys of the lane, and incidents are theirs. Customers are a table of their own, by
partition and by the hash of their word, with the same bound and the same rule for who is forgotten.
A label is a record of the same partition, or of the partition of that number in a topic of labels
(joining.py says before which payment it comes): it is learnt, and nothing is said of it.
"""

import math
import zlib
from dataclasses import replace

import numpy as np

from raywatch.actors.alerts import Shown
from raywatch.actors.alone import AloneFlow, grouped
from raywatch.actors.checkpoint import Arrays, Snapshot
from raywatch.actors.flow import Batch, Part, values_of
from raywatch.actors.keys import Gone, KeyTable, Taken
from raywatch.actors.labels import kinds
from raywatch.actors.ports import Fetched
from raywatch.actors.pseudonyms import WITHHELD
from raywatch.actors.records import Records, Reject
from raywatch.actors.scan import hash_column
from raywatch.models import incident
from raywatch.models import payment_features as features
from raywatch.models.following import FIRED, INDEX, KIND, ORDINAL, SINCE, Following
from raywatch.models.incident import Decided, Episode, Forgotten
from raywatch.models.payment_names import FEATURES, PAYMENT
from raywatch.models.payments import COMPONENTS, WARM, Payments
from raywatch.models.payments_kernel import CHANCES, Found
from raywatch.models.payments_kernel import Batch as Given
from raywatch.models.scorer import F64, I64, ModelSpec, Scores

NONE = np.zeros(0, np.int64)
BESIDE = 3  # columns behind the features: chance of fraud, customer, id


class PaymentsFlow(AloneFlow):
    """Payments and labels: what is learnt by partition, incidents by terminal."""

    by_partition = (*AloneFlow.by_partition, "customers.partitions", *(f"payments.{n}" for n in (
        "base", "total", "calibration", "usual", "visits", "id", "paid", "who", "codes", "weight",
        "bias",
    )))  # fmt: skip

    by_slot = ("payments.terminal",)

    def _scored_by(self, model: ModelSpec) -> None:
        record, partitions = self.spec.record, max(1, len(self.homes))
        self.customers = KeyTable(self.spec.keys_max, partitions, evict=True)
        self.payments = Payments(
            partitions, late_s=86_400.0 * record.label_days, labelled=record.label is not None
        )
        self.following = Following(self.spec.decide, tuple(each.name for each in COMPONENTS))

    def _decoded(self, fetched: Fetched) -> Records:
        """In a topic of labels there is nothing else: what has no label is rejected."""
        records = super()._decoded(fetched)
        if self.homes == self.partitions:
            return records
        among = np.array([partition not in self.homes for partition in self.partitions])
        stray = among[records.partition] & (kinds(self.spec.record, records.words) == PAYMENT)
        if not stray.any():
            return records
        values, rejects = values_of(fetched, records), list(records.rejects)
        withheld = bool(self.spec.record.pseudonymise)
        for index in np.flatnonzero(stray).tolist():
            where = int(records.partition[index]), int(records.offset[index])
            value, what = values[index], ("missing field", f"`{self.spec.record.label}`")
            hidden = len(value or b"") if withheld else -1
            rejects.append(Reject(*where, *what, None if withheld else value, hidden))
        return records.kept(~stray, rejects)

    def _decided(self, batch: Batch, scores: Scores | None) -> Decided:
        records, order = batch.records, batch.order
        kind = kinds(self.spec.record, records.words)
        found = self._observed(batch, kind)
        rare = found.rare.max(axis=1)
        warm = found.before >= max(WARM, self.spec.decide.warmup)
        kept = np.where(warm, rare, 0.0)  # p is 1 until the partition is warm
        fired = np.argmax(found.rare, axis=1)
        self.following.ensure(self.keys.high)
        self.following.begin(batch.born)
        paid = np.flatnonzero(kind == PAYMENT)  # nothing is said of labels
        home = self._home(records.partition)
        event = np.zeros(len(records), np.float32)
        event[paid], hushed, steps = self.following.follow(
            batch.slots[paid], records.time_ms[paid], kept[paid], fired[paid],
            self.budget.account(home[paid], np.arange(paid.shape[0])),
        )  # fmt: skip
        judged = np.where(kind == PAYMENT, warm, False).astype(np.uint8)
        judged[paid] += hushed
        steps[:, INDEX] = paid[steps[:, INDEX]]
        place = grouped(batch)
        episodes = [
            self._episode(batch, found, step, kept, event, int(place[step[INDEX]]))
            for step in steps.tolist()
        ]
        episodes.sort(key=lambda each: each.index)
        evidence = _evidence(found, rare, fired)[order] if self._evidence else None
        score = rare.astype(np.float32)[order]
        p = 10.0 ** -kept[order]
        return Decided(score, p, event[order], episodes, judged[order], evidence)

    def _observed(self, batch: Batch, kind: np.ndarray) -> Found:
        """What is said of a batch, which is then learnt; customers that it displaced are gone."""
        records = replace(batch.records, partition=self._home(batch.records.partition))
        named = np.flatnonzero(records.words[:, 0] != 0)
        taken = self._customers(records, named)
        customer = np.full(len(records), -1, np.int32)
        customer[named] = taken.slots
        terminals = np.empty(len(records), np.int64)
        hash_column(records.text.ctypes.data, records.key_begin, records.key_size, terminals)
        self.payments.ensure(customers=self.customers.high, terminals=self.keys.high)
        found = self.payments.observe(
            Given(
                partition=records.partition,
                kind=kind,
                time_s=records.time_ms / 1_000.0,
                id=records.words[:, 1],
                customer=customer,
                terminal=batch.slots,
                pair=records.words[:, 0] * np.int64(31) ^ terminals,
                amount=records.values[:, 0],
            )
        )
        self.payments.forget(customers=taken.gone.slot, terminals=NONE)
        self.customers.release(taken.gone.slot)
        return found

    def _customers(self, records: Records, named: I64) -> Taken:
        """Slots of the customers of records that name one, by the hash of their word."""
        hashed = np.ascontiguousarray(records.words[named, 0])
        count = named.shape[0]
        text = hashed.view(np.uint8) if count else np.zeros(1, np.uint8)
        size = np.full(count, 8, np.int32)
        some = records.kept(named, [])
        some = replace(some, text=text, key_begin=8 * np.arange(count), key_size=size)
        return self.customers.take(some)

    def _episode(
        self, batch: Batch, found: Found, step: list[int], kept: F64, event: np.ndarray, index: int
    ) -> Episode:
        at, resolved = step[INDEX], step[KIND] == incident.RESOLVED
        x, beside = found.x[at], (math.nan,) * (BESIDE - 1)
        share = np.zeros(FEATURES) if resolved else _shares(found, at, int(found.rare[at].argmax()))
        names = zip(self.following.names, found.rare[at].tolist(), strict=True)
        return Episode(
            index=index,
            kind=incident.KINDS[step[KIND]],
            slot=int(batch.slots[at]),
            since_ms=step[SINCE],
            ordinal=step[ORDINAL],
            p=float(10.0 ** -kept[at]),
            score=float(np.float32(found.rare[at].max())),
            event=float(event[at]),
            component=COMPONENTS[step[FIRED]].name,
            channel_share=(*share.tolist(), *(0.0,) * BESIDE),
            observed=(*features.readable(x).tolist(), float(found.chance[at]), *beside),
            expected=(*features.usual(x).tolist(), math.nan, *beside),
            spread=(math.nan,) * (FEATURES + BESIDE),
            lag=0,
            similar_ms=None,
            reasons=tuple((name, each) for name, each in names if each >= 1.0),
        )

    def _shown(self, batch: Batch, at: int, episode: Episode) -> Shown:
        """Customer and id."""
        texts = [batch.records.word(at, word) or WITHHELD for word in (0, 1)]
        return {"words": tuple((text, math.nan) for text in texts)}

    def _forgotten(self, gone: Gone) -> list[Forgotten]:
        self.payments.forget(customers=NONE, terminals=gone.slot)
        return super()._forgotten(gone)

    def labels(self) -> dict[str, int]:
        """Since the beginning of the log, or as far back as it was read."""
        return self.payments.count() if self.spec.record.label is not None else {}

    def _aligned(self, arrays: Arrays, slots: int) -> bool:
        customers = arrays["customers.size"].shape[0]
        same = arrays["payments.customer"].shape[0] == customers
        return same and super()._aligned(arrays, slots)

    def _widened(self, snapshot: Snapshot) -> Snapshot:
        _, index = self._places(snapshot)
        arrays = dict(snapshot.arrays)
        of = arrays["customers.partition"]
        arrays["customers.partition"] = np.array([*index, -1], np.int32)[of]
        return super()._widened(replace(snapshot, arrays=arrays))

    def _own(self) -> dict[str, Part]:
        return {"customers": self.customers, "payments": self.payments}

    def layout(self) -> str:
        """What was learnt is of the fields by name, and of how late labels may be."""
        record = self.spec.record
        what = repr((record.values, record.texts, record.label_days)).encode()
        if self.spec.labels:  # read together, in an order that is one of these two settings
            what += repr((self.spec.labels, self.spec.labels_delay_s)).encode()
        return f"{super().layout()}:payments:{zlib.crc32(what):08x}:{self.model.version}"


def _shares(found: Found, at: int, fired: int) -> F64:
    """(FEATURES,) which part each feature has in what was said of a record; sums to 1, or is 0."""
    if fired != CHANCES:
        return np.eye(FEATURES)[features.AMOUNT]
    share = np.maximum(found.share[at].astype(np.float64), 0.0)
    return share / max(float(share.sum()), 1e-12)


def _evidence(found: Found, rare: F64, fired: I64) -> F64:
    """(N, columns) each record's -log10 p, split by its shares."""
    shares = np.zeros((rare.shape[0], FEATURES + BESIDE))
    for at in np.flatnonzero(rare > 0.0).tolist():
        shares[at, :FEATURES] = _shares(found, at, int(fired[at]))
    return rare[:, None] * shares
