"""Log lines: how does a lane score them itself?

Lines are judged by the past of their key, and sessions by those that the key had before; all of it
is state of the lane by slot (models/logs.py), incidents are those of following.py.
"""

import math

import numpy as np

from raywatch.actors.alerts import Shown
from raywatch.actors.alone import AloneFlow, grouped
from raywatch.actors.bare_lines import decode_lines
from raywatch.actors.flow import Batch, Part
from raywatch.actors.keys import Gone
from raywatch.actors.log_words import SESSION_MAX, Words, text_of
from raywatch.actors.ports import Fetched
from raywatch.actors.pseudonyms import WITHHELD
from raywatch.actors.records import Records
from raywatch.models import incident, log_sessions, logs
from raywatch.models.following import FIRED, INDEX, KIND, ORDINAL, SINCE, Following
from raywatch.models.incident import Decided, Ended, Episode, Forgotten
from raywatch.models.logs import COMPONENTS, OF_LINES, Logs, Seen
from raywatch.models.scorer import F64, I32, I64, ModelSpec, Scores
from raywatch.models.strange_sessions import Ends, StrangeSessions, Told

NAMES = tuple(each.name for each in COMPONENTS)


class LogsFlow(AloneFlow):
    """Log lines: templates, sessions and incidents by key."""

    by_slot = ("logs.row",)

    def _scored_by(self, model: ModelSpec) -> None:
        record, decide = self.spec.record, self.spec.decide
        assert record.message is not None, "a line is needed"
        assert not record.values, record.values
        assert not record.words, record.words
        self._withheld = record.message in record.pseudonymise
        self.logs = Logs(
            decide,
            sessions=record.session is not None,
            idle_ms=record.session_idle_ms,
            explain=-math.log10(decide.probability),
            keep=not self._withheld,
        )
        self.following = Following(decide, NAMES)
        self.strange = StrangeSessions(decide.probability)
        self._words: Words | None = None  # of the batch at hand
        self._told: dict[int, Told] = {}  # by record of it

    def _decoded(self, fetched: Fetched) -> Records:
        record = self.spec.record
        if record.format == "text":
            return decode_lines(fetched, record, [str(each).encode() for each in self.partitions])
        return super()._decoded(fetched)

    def _decided(self, batch: Batch, scores: Scores | None) -> Decided:
        records, slots, order = batch.records, batch.slots, batch.order
        for each in (self.logs, self.following):
            each.ensure(self.keys.high)
        seen = self.logs.observe(_lines(records, slots), (batch.gone.index, batch.gone.slot))
        self._words = Words(seen, NAMES, withheld=self._withheld)
        self.following.begin(batch.born)
        rare, fired = seen.said.rare, seen.said.fired
        event, held, steps = self.following.follow(
            slots, records.time_ms, rare, np.maximum(fired, 0), self._account(batch)
        )
        told = self.strange.follow(_ends(seen, slots), slots, steps)
        self._told = dict(zip(steps[:, INDEX].tolist(), told, strict=True))
        place = grouped(batch)
        p = 10.0**-rare
        evidence = _evidence(seen, records.words.shape[1])
        episodes = [
            self._episode(step, batch, int(place[step[INDEX]]), seen, evidence[step[INDEX]])
            for step in steps.tolist()
        ]
        episodes.sort(key=lambda each: each.index)
        return Decided(
            seen.said.score.astype(np.float32)[order],
            p[order],
            event[order],
            episodes,
            ((fired >= 0) + held).astype(np.uint8)[order],
            evidence[order] if self._evidence else None,
            _ended(seen, place) if self.spec.record.session is not None else None,
        )

    def _episode(
        self, step: list[int], batch: Batch, index: int, seen: Seen, evidence: F64
    ) -> Episode:
        assert self._words is not None
        at, columns = step[INDEX], evidence.shape[0]
        total = float(evidence.sum())
        share = evidence / total if total > 0.0 else np.full(columns, 1.0 / columns)
        return Episode(
            index=index,
            kind=incident.KINDS[step[KIND]],
            slot=int(batch.slots[at]),
            since_ms=step[SINCE],
            ordinal=step[ORDINAL],
            p=float(10.0 ** -seen.said.rare[at]),
            score=float(np.float32(seen.said.score[at])),
            event=float(seen.said.rare[at]),
            component=NAMES[step[FIRED]],
            channel_share=tuple(share.tolist()),
            observed=(math.nan,) * columns,
            expected=(math.nan,) * columns,
            spread=(math.nan,) * columns,
            lag=0,
            similar_ms=None,
            reasons=self._words.reasons(at),
        )

    def _shown(self, batch: Batch, at: int, episode: Episode) -> Shown:
        assert self._words is not None
        records = batch.records
        begin, size = int(records.word_begin[at, 0]), int(records.word_size[at, 0])
        raw = records.text[begin : begin + size].tobytes()
        fired = "" if episode.kind == "resolved" else episode.component
        texts = [WITHHELD if self._withheld else text_of(raw)]
        session = ""
        if self.spec.record.session is not None:
            own = text_of(records.word(at, 1).encode(), SESSION_MAX)
            own = own or (WITHHELD if records.words[at, 1] else "")
            session = (self._words.session(at) or WITHHELD) if fired == "session" else own
            texts.append(session)
        line = self._words.line(at, raw, session, fired=fired)
        if fired == "session" and line.text is not None:
            texts[0] = line.text
        told = self._told[at] if self.spec.record.session is not None else None
        return {
            "words": tuple((text, math.nan) for text in texts), "line": line, "sessions": told,
        }  # fmt: skip

    def _forgotten(self, gone: Gone) -> list[Forgotten]:
        self.strange.forget(gone.slot)
        return super()._forgotten(gone)

    def _own(self) -> dict[str, Part]:
        return {"logs": self.logs, "strange": self.strange}

    def layout(self) -> str:
        """With sessions a key has other arrays; another silence makes other sessions."""
        record = self.spec.record
        idle = 0 if record.session is None else record.session_idle_ms
        return f"{super().layout()}:logs:{idle}:{self.model.version}"


def _lines(records: Records, slots: I32) -> logs.Batch:
    """The line, and its session where records have one, of each record."""
    begin, size, ids = records.word_begin, records.word_size, records.words
    last = ids.shape[1] - 1
    session = ids[:, last] if last else np.zeros(len(records), np.int64)
    return logs.Batch(
        slots, records.time_ms, records.text, begin[:, 0], size[:, 0], session,
        begin[:, last], size[:, last],
    )  # fmt: skip


def _evidence(seen: Seen, columns: int) -> F64:
    """(N, columns) what components say beyond what any record says: of the line, of its session."""
    beyond = np.maximum(seen.said.said - 1.0, 0.0)
    found = np.zeros((beyond.shape[0], columns))
    found[:, 0] = beyond[:, : len(OF_LINES)].sum(axis=1)
    found[:, 1:] += beyond[:, len(OF_LINES) :].sum(axis=1)[:, None]
    return found


def _ends(seen: Seen, slots: I32) -> Ends:
    """The sessions that ended, as incidents are told of them."""
    ends = seen.ends
    noticed = ends.row[:, log_sessions.NOTICED]
    return Ends(
        noticed, slots[noticed], ends.session_id, ends.row[:, log_sessions.RECORDS],
        10.0**-seen.said.end_rare, ends.row[:, log_sessions.APART] == 1,
    )  # fmt: skip


def _ended(seen: Seen, place: I64) -> Ended:
    """The sessions that ended, in the order of the records that noticed it."""
    ends = seen.ends
    return Ended(
        place[ends.row[:, log_sessions.NOTICED]],
        ends.session_id,
        ends.row[:, log_sessions.RECORDS],
        ends.score.astype(np.float32),
        10.0**-seen.said.end_rare,
    )
