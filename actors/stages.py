"""Which lanes score their records themselves, and how?

Most models are scored by a pool, from windows of a key's history (flow.py). A signal class whose
state is shared by the keys of a partition cannot be: that state is the lane's, stands in its
snapshots, and is a function of each partition's records in their order and of nothing else.

Such a lane sends nothing to the pool; the pool's scorer only says which version is in service.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np

from raywatch.actors.alerts import Shown
from raywatch.actors.checkpoint import Arrays
from raywatch.actors.flow import Batch, Flow, Part
from raywatch.actors.keys import Gone
from raywatch.actors.log_stage import LogsFlow
from raywatch.actors.payments import PaymentsFlow
from raywatch.actors.ports import Partition
from raywatch.actors.pseudonyms import WITHHELD
from raywatch.actors.records import Records
from raywatch.actors.spec import DetectorSpec
from raywatch.models import incident
from raywatch.models.errors import ConfigError
from raywatch.models.following import FIRED, INDEX, KIND, ORDINAL, SINCE, Following
from raywatch.models.history import Appended
from raywatch.models.incident import Decided, Episode, Forgotten
from raywatch.models.network import BUDGET, COMPONENTS, WARM, Network
from raywatch.models.scorer import F32, F64, I32, I64, ModelSpec, Scores


def flow_of(
    spec: DetectorSpec,
    partitions: Sequence[Partition],
    model: ModelSpec,
    *,
    evidence: bool = False,
) -> Flow:
    """The flow of a lane, by who scores. Raises ConfigError for a model of another class."""
    if model.stage != spec.stage:
        raise ConfigError(
            f"`{model.version}` cannot score `{spec.name}`, whose `model` is `{spec.model}`",
            hint="signal classes are not rolled out: change `model` and start the service anew",
        )
    return MADE.get(spec.stage, Flow)(spec, partitions, model, evidence=evidence)


class NetworkFlow(Flow):
    """Network and security records: sketches by partition, incidents by key."""

    by_partition = (*Flow.by_partition, *(f"network.{name}" for name in (
        "total", "first", "words", "scale", "usual", "cells", "calibration",
    )))  # fmt: skip

    def _scored_by(self, model: ModelSpec) -> None:
        record, partitions = self.spec.record, max(1, len(self.partitions))
        explain = 0.0 if self._evidence else -math.log10(self.spec.decide.probability)
        self.network = Network(len(record.values), len(record.words), partitions, explain=explain)
        self.following = Following(self.spec.decide, tuple(each.name for each in COMPONENTS))
        self._why: dict[int, F32] = {}  # of the batch at hand: how often words were learnt before

    def _adopt(self, model: ModelSpec) -> None:
        self.model = model

    def _featurised(
        self, records: Records, order: I64, touched: I32, counts: I32, gone: Gone, model: ModelSpec
    ) -> Appended | None:
        return None

    def _decided(self, batch: Batch, scores: Scores | None) -> Decided:
        records = batch.records
        before, rare, parts, why = self.network.observe(
            records.partition, records.values, records.words
        )
        warm = before >= max(WARM, self.spec.decide.warmup)
        kept = np.where(warm, rare, 0.0)  # p is 1 until the partition is warm
        fired = np.argmax(parts - BUDGET, axis=1)
        self.following.ensure(self.keys.high)
        self.following.begin(batch.born)
        event, held, steps = self.following.follow(
            batch.slots, records.time_ms, kept, fired, self._account(batch)
        )
        grouped = np.empty_like(batch.order)
        grouped[batch.order] = np.arange(batch.order.shape[0])
        p = 10.0**-kept
        self._why = {}
        episodes: list[Episode] = []
        for step in steps.tolist():
            at = step[INDEX]
            shares, seen = why[at] if step[KIND] != incident.RESOLVED else np.zeros_like(why[at])
            self._why[at] = seen[records.values.shape[1] :]
            names = zip(self.following.names, parts[at].tolist(), strict=True)
            reasons = tuple(sorted(((n, r) for n, r in names if r >= 1.0), key=lambda e: -e[1]))
            missing = np.full(records.words.shape[1], np.nan)
            observed = (*records.values[at].tolist(), *missing.tolist())
            episodes.append(
                Episode(
                    index=int(grouped[at]),
                    kind=incident.KINDS[step[KIND]],
                    slot=int(batch.slots[at]),
                    since_ms=step[SINCE],
                    ordinal=step[ORDINAL],
                    p=float(p[at]),
                    score=float(np.float32(rare[at])),
                    event=float(event[at]),
                    component=COMPONENTS[step[FIRED]].name,
                    channel_share=tuple(shares.tolist()),
                    observed=observed,
                    expected=(math.nan,) * len(observed),
                    spread=(math.nan,) * len(observed),
                    lag=0,
                    similar_ms=None,
                    reasons=reasons,
                )
            )
        order = batch.order
        evidence: F64 | None = None
        if self._evidence:
            why[rare <= 0.0] = 0.0  # nothing was told apart there
            evidence = (rare[:, None] * why[:, 0])[order]
        score = rare.astype(np.float32)[order]
        episodes.sort(key=lambda each: each.index)
        judged = (warm + held).astype(np.uint8)[order]
        return Decided(score, p[order], event[order], episodes, judged, evidence)

    def _shown(self, batch: Batch, at: int, episode: Episode) -> Shown:
        records, words = batch.records, range(len(self.spec.record.words))
        texts = [records.word(at, word) for word in words]
        there = records.words[at] != 0
        texts = [text or (WITHHELD if there[word] else "") for word, text in enumerate(texts)]
        seen = [float(count) if count >= 0.0 else math.nan for count in self._why[at].tolist()]
        if episode.kind == "resolved":
            seen = [math.nan] * len(texts)
        return {"words": tuple(zip(texts, seen, strict=True))}

    def _forgotten(self, gone: Gone) -> list[Forgotten]:
        return self.following.forget(gone.index, gone.slot)

    def _aligned(self, arrays: Arrays, slots: int) -> bool:
        return arrays["following.chance"].shape[0] == slots

    def _state(self) -> dict[str, Part]:
        return {
            "keys": self.keys,
            "network": self.network,
            "following": self.following,
            "missing": self.missing,
            "budget": self.budget,
            "rejecting": self.rejecting,
        }

    def layout(self) -> str:
        """A sketch is of the columns by name: with another one it means nothing."""
        columns = repr((self.spec.record.values, self.spec.record.words)).encode()
        return f"{super().layout()}:network:{zlib.crc32(columns):08x}:{self.model.version}"


MADE: dict[str, type[Flow]] = {
    "logs": LogsFlow, "network": NetworkFlow, "payments": PaymentsFlow,
}  # fmt: skip
