"""Distributed traces: how does a lane score calls itself?

A record is a call (a span) of the service that is its key. It is judged by the past of its edge and
of its key (models/traces.py), incidents are those of following.py: by key, named by their edge.
"""

import math
import zlib

import numpy as np

from raywatch.actors import trace_words as words_of
from raywatch.actors.alerts import Edge, Shown
from raywatch.actors.alone import AloneFlow, grouped
from raywatch.actors.failures import failed
from raywatch.actors.flow import Batch, Part
from raywatch.actors.log_words import text_of
from raywatch.actors.pseudonyms import WITHHELD
from raywatch.models import incident
from raywatch.models.following import FIRED, INDEX, KIND, ORDINAL, SINCE, Following
from raywatch.models.incident import KEEP, Decided, Episode
from raywatch.models.scorer import F64, ModelSpec, Scores
from raywatch.models.trace_edges import EDGE, ERRORS, SLOW, SLOWER
from raywatch.models.traces import COMPONENTS, Traces
from raywatch.models.traces_kernel import Calls, Out

NAMES = tuple(each.name for each in COMPONENTS)


class TracesFlow(AloneFlow):
    """Calls: edges and incidents by key."""

    by_slot = ("traces.row",)

    def _scored_by(self, model: ModelSpec) -> None:
        record, decide = self.spec.record, self.spec.decide
        assert len(record.values) == 1, record.values
        assert record.words, "names are needed that make an edge"
        self.traces = Traces(decide)
        self.following = Following(decide, NAMES)
        # An incident stays open at such a -log10 p, and none is opened by it.
        self._keeps = max(1e-9 - math.log10(KEEP * decide.probability), 0.0)
        self._told: Out | None = None  # of the batch at hand

    def _decided(self, batch: Batch, scores: Scores | None) -> Decided:
        records, order = batch.records, batch.order
        for each in (self.traces, self.following):
            each.ensure(self.keys.high)
        said = self.traces.observe(self._calls(batch), (batch.gone.index, batch.gone.slot))
        self._told = said
        self.following.begin(batch.born)
        rare = said.rare
        kept = np.where(said.off == 1, np.maximum(rare, self._keeps), rare)
        event, held, steps = self.following.follow(
            batch.slots, records.time_ms, kept, said.fired, self._account(batch)
        )
        event[rare < kept] = 0.0  # calls of other edges, which say nothing themselves
        place = grouped(batch)
        evidence = self._evidence_of(said)
        episodes = [
            self._episode(step, batch, int(place[step[INDEX]]), said, evidence[step[INDEX]])
            for step in steps.tolist()
        ]
        episodes.sort(key=lambda each: each.index)
        warm = said.before >= self.spec.decide.warmup
        return Decided(
            said.score.astype(np.float32)[order],
            (10.0**-rare)[order],
            event[order],
            episodes,
            (warm + held).astype(np.uint8)[order],
            evidence[order] if self._evidence else None,
        )

    def _calls(self, batch: Batch) -> Calls:
        records, record = batch.records, self.spec.record
        named = len(record.words)
        ended = records.words[:, named] if record.error is not None else np.zeros(len(records), int)
        return Calls(
            rows=batch.slots,
            time_ms=records.time_ms,
            words=records.words[:, :named],
            duration=records.values[:, 0],
            failed=failed(ended, record.error or ""),
        )

    def _evidence_of(self, said: Out) -> F64:
        """(N, columns) what components say beyond what any call says, by what they look at."""
        beyond, names = (
            np.maximum(said.said - words_of.NOTEWORTHY, 0.0),
            len(self.spec.record.words),
        )
        found = np.zeros((beyond.shape[0], len(self.spec.columns)))
        for column, which in (
            (words_of.CALL, SLOW), (words_of.RECENT, SLOWER), (words_of.FAILED, ERRORS),
        ):  # fmt: skip
            found[:, column] = beyond[:, which]
        first = words_of.FAILED + 1
        found[:, first : first + names] = beyond[:, EDGE, None] / names
        return found

    def _episode(
        self, step: list[int], batch: Batch, index: int, said: Out, evidence: F64
    ) -> Episode:
        at, columns = step[INDEX], evidence.shape[0]
        total = float(evidence.sum())
        share = evidence / total if total > 0.0 else np.full(columns, 1.0 / columns)
        duration = float(batch.records.values[at, 0])
        observed, expected, spread = words_of.numbers(said.why[at], duration)
        texts = [math.nan] * (columns - len(observed))
        return Episode(
            index=index,
            kind=incident.KINDS[step[KIND]],
            slot=int(batch.slots[at]),
            since_ms=step[SINCE],
            ordinal=step[ORDINAL],
            p=float(10.0 ** -said.rare[at]),
            score=float(np.float32(said.score[at])),
            event=float(said.rare[at]),
            component=NAMES[step[FIRED]],
            channel_share=tuple(share.tolist()),
            observed=(*observed, *texts),
            expected=(*expected, *texts),
            spread=(*spread, *texts),
            lag=0,
            similar_ms=None,
            reasons=words_of.reasons(said.said[at]),
        )

    def _shown(self, batch: Batch, at: int, episode: Episode) -> Shown:
        assert self._told is not None
        records, record = batch.records, self.spec.record
        texts = [
            text_of(records.word(at, word).encode(), words_of.TEXT_MAX)
            or (WITHHELD if there else "")
            for word, there in enumerate(records.words[at].tolist())
        ]
        told = tuple((text, math.nan) for text in texts)
        if episode.kind == "resolved":  # whichever edge the call is of that showed it
            return {"words": told, "edge": Edge("", ())}
        names = list(zip(record.words, texts, strict=False))
        duration, fired = float(records.values[at, 0]), episode.component
        edge = words_of.edge_of(self._told.why[at], self._told.said[at], duration, names, fired)
        return {"words": told, "edge": edge}

    def _own(self) -> dict[str, Part]:
        return {"traces": self.traces}

    def layout(self) -> str:
        """An edge is of the names by their fields: with other ones it means nothing."""
        record = self.spec.record
        what = repr((record.values, record.words, record.error)).encode()
        return f"{super().layout()}:traces:{zlib.crc32(what):08x}:{self.model.version}"
