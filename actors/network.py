"""Network and security records: judged by what their partition learnt, incidents by key."""

import math
import zlib

import numpy as np

from raywatch.actors.alerts import Shown
from raywatch.actors.alone import AloneFlow, grouped
from raywatch.actors.flow import Batch, Part
from raywatch.actors.pseudonyms import WITHHELD
from raywatch.models import incident
from raywatch.models.following import FIRED, INDEX, KIND, ORDINAL, SINCE, Following
from raywatch.models.incident import Decided, Episode
from raywatch.models.network import BUDGET, COMPONENTS, WARM, Network
from raywatch.models.scorer import F32, F64, ModelSpec, Scores


class NetworkFlow(AloneFlow):
    """Network and security records: sketches by partition, incidents by key."""

    by_partition = (*AloneFlow.by_partition, *(f"network.{name}" for name in (
        "total", "first", "words", "scale", "usual", "cells", "calibration",
    )))  # fmt: skip

    def _scored_by(self, model: ModelSpec) -> None:
        record, partitions = self.spec.record, max(1, len(self.partitions))
        explain = 0.0 if self._evidence else -math.log10(self.spec.decide.probability)
        self.network = Network(len(record.values), len(record.words), partitions, explain=explain)
        self.following = Following(self.spec.decide, tuple(each.name for each in COMPONENTS))
        self._why: dict[int, F32] = {}  # of the batch at hand: how often words were learnt before

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
        place = grouped(batch)
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
                    index=int(place[at]),
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

    def _own(self) -> dict[str, Part]:
        return {"network": self.network}

    def layout(self) -> str:
        """A sketch is of the columns by name: with another one it means nothing."""
        columns = repr((self.spec.record.values, self.spec.record.words)).encode()
        return f"{super().layout()}:network:{zlib.crc32(columns):08x}:{self.model.version}"
