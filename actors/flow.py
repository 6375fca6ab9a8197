"""A record's way, stage by stage, for one lane.

    ingest → decode → featurise → score → decide → emit → checkpoint

`Flow` holds the state of a lane (keys, histories, calibration, silences) and does the stages that
are arithmetic; `lane.py` does ingest, score and checkpoint, which wait for others. A file goes the
same way (`backtest.py`). Nothing here reads a clock or knows where records come from.

What is said about a record is a function of its partition's records up to it. Records below
`speak` were spoken for by an earlier owner: they pass through every stage and say nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from raywatch.actors.alerts import (
    Alert,
    Shown,
    from_episode,
    from_forgotten,
    from_silence,
)
from raywatch.actors.checkpoint import Arrays, Snapshot
from raywatch.actors.decode import decode
from raywatch.actors.keys import Gone, KeyTable, group
from raywatch.actors.ports import Fetched, Out, Partition
from raywatch.actors.pseudonyms import Pseudonyms
from raywatch.actors.records import Records, Reject
from raywatch.actors.rejecting import Rejecting
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.stats import Tally, tally
from raywatch.actors.windows import Windows
from raywatch.models.budget import Account, Budget
from raywatch.models.decide import Decided, Decider, Episode, Forgotten
from raywatch.models.errors import ArtifactError
from raywatch.models.history import Appended, History
from raywatch.models.missing import Missing, Silence
from raywatch.models.scorer import F64, I32, I64, ModelSpec, Scores, Segments

REJECT_BYTES_MAX = 524_288  # A rejected value is kept up to here; brokers refuse 1 MiB by default.
_HINT = "delete this snapshot: an older one, or none, gives the same state after a replay"
LAYOUT = 5  # Meaning of the arrays in a snapshot; raise it when one changes.


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch between featurise and decide."""

    model: ModelSpec
    records: Records  # rejects included; `slots` and below cover the rest
    slots: I32  # (N,)
    order: I64  # (N,) grouped order -> batch order
    touched: I32  # (K,) slots with records, ascending
    counts: I32  # (K,)
    appended: Appended | None  # None: no record was left
    silences: list[Silence]
    usual_ms: F64  # (N,) time between two records of the key, as of each record; 0: not known
    born: I64  # new keys, see keys.Taken
    gone: Gone  # keys that are forgotten once this batch is decided
    begin: dict[Partition, int]
    end: dict[Partition, int]

    @property
    def segments(self) -> Segments | None:
        """What goes to a scorer, or None where there is nothing to score."""
        return None if self.appended is None else self.appended.segments


@dataclass(frozen=True, slots=True)
class Said:
    """What a batch had to say; `decided` is in grouped order (see Batch.order)."""

    alerts: list[Alert]  # in the order of the records that caused them
    causes: list[int]  # which record of the batch caused each
    rejects: list[Reject]  # those that are written,
    rejected: int  # and how many records were rejected
    decided: Decided | None
    tally: Tally


class Part(Protocol):
    """A part of the state; see docs/architecture.md."""

    def state(self) -> Arrays:
        """As arrays."""
        ...

    def load(self, saved: Arrays, /) -> None:
        """Become what gave them. Raises ArtifactError."""
        ...


class Flow:
    """State and arithmetic of one lane. `evidence`: tell it of every record, not of alerts only."""

    by_partition = (
        "keys.partitions", "missing.partition", "missing.pace", "budget.debt", "budget.clock",
    )  # fmt: skip
    by_place = ("rejecting.windows",)  # of every partition that is read, whatever it is a part of

    def __init__(
        self,
        spec: DetectorSpec,
        partitions: Sequence[Partition],
        model: ModelSpec,
        *,
        evidence: bool = False,
    ) -> None:
        self.spec = spec
        self.partitions = tuple(partitions)
        # State is of a partition; of one with labels it is that of the payments that they are of.
        of = [
            p._replace(topic=spec.topics[0]) if spec.labels == p.topic != "" else p
            for p in partitions
        ]
        self.homes = tuple(dict.fromkeys(of))
        self._home_of: I32 = np.array([self.homes.index(p) for p in of], np.int32)
        assert spec.record.pseudonymous == (spec.pseudonym is not None), "keys would be clear"
        self.pseudonyms = None if spec.pseudonym is None else Pseudonyms(spec.pseudonym)
        self.keys = KeyTable(
            spec.keys_max, max(1, len(self.homes)), evict=spec.keys_full == "evict"
        )
        self.rejecting = Rejecting(spec.rejects_max, max(1, len(self.partitions)))
        self.missing = Missing(spec.missing, max(1, len(self.homes)))
        self.budget = Budget(spec.decide.per_day, spec.partitions, max(1, len(self.homes)))
        self.model = model
        self._evidence = evidence
        self._scored_by(model)
        self.speak = dict.fromkeys(self.partitions, 0)

    def _scored_by(self, model: ModelSpec) -> None:
        """The state that scoring needs. This, and what is marked so, a stage has its own way of."""
        self.history = History(len(self.spec.record.values))
        self.decider = self._decider(model)

    # ---- decode and featurise --------------------------------------------------------------

    def prepare(
        self,
        fetched: Fetched | Records,
        model: ModelSpec,
        *,
        begin: Mapping[Partition, int],
        end: Mapping[Partition, int],
    ) -> Batch:
        """Decode a batch and take it into the histories. Order of calls is order of records."""
        records = fetched if isinstance(fetched, Records) else self._decoded(fetched)
        if self.pseudonyms is not None:
            records = self.pseudonyms.replaced(records)
        taken = self.keys.take(replace(records, partition=self._home(records.partition)))
        slots, gone = taken.slots, taken.gone
        if slots.shape[0] and int(slots.min()) < 0:
            values = values_of(fetched, records) if isinstance(fetched, Fetched) else []
            records, slots = self._without_new_keys(records, slots, values)
        silences: list[Silence] = []
        appended: Appended | None = None
        order, touched, counts = group(slots)
        usual_ms = np.zeros(slots.shape[0])
        if slots.shape[0]:
            self.missing.ensure(self.keys.high)
            appended = self._featurised(records, order, touched, counts, gone, model)
            silences = self.missing.observe(
                self._home(records.partition),
                slots,
                records.time_ms,
                usual_ms,
                (gone.index, gone.slot),
            )
        return Batch(
            model, records, slots, order, touched, counts, appended, silences, usual_ms,
            taken.born, gone, dict(begin), dict(end),
        )  # fmt: skip

    def _decoded(self, fetched: Fetched) -> Records:
        """What was fetched as records and rejects (a stage may have more to reject)."""
        return decode(fetched, self.spec.record)

    def _featurised(
        self, records: Records, order: I64, touched: I32, counts: I32, gone: Gone, model: ModelSpec
    ) -> Appended | None:
        """What goes to scorers (a stage's own)."""
        self.history.ensure(self.keys.high)
        appended = self.history.append(touched, counts, records.values[order], model.levels)
        self.history.forget(gone.slot)
        return appended

    def _without_new_keys(
        self, records: Records, slots: I32, values: Sequence[bytes | None]
    ) -> tuple[Records, I32]:
        """Reject the records of keys for which their partition has no room.

        `values`: (N,) what each record was decoded from; empty for records of a file.
        """
        rejects, withheld = list(records.rejects), bool(self.spec.record.pseudonymise)
        for index in np.flatnonzero(slots < 0).tolist():
            key, value = records.key(index), values[index] if values else None
            rejects.append(
                Reject(
                    int(records.partition[index]),
                    int(records.offset[index]),
                    "too many keys",
                    f"the partition holds `{self.spec.keys_max}` keys; new key `{key[:200]!r}`",
                    None if withheld else value,
                    len(value or b"") if withheld else -1,
                )
            )
        keep = np.flatnonzero(slots >= 0)
        return records.kept(keep, rejects), slots[keep]

    # ---- decide ----------------------------------------------------------------------------

    def finish(self, batch: Batch, scores: Scores | None) -> Said:
        """Decide on a scored batch. Batches must come in the order they were prepared in."""
        if batch.model.version != self.model.version:
            self._adopt(batch.model)
        records = batch.records
        alerts: list[tuple[int, Alert]] = []
        decided = self._decided(batch, scores) if len(records) else None
        for episode in decided.episodes if decided is not None else ():
            at = int(batch.order[episode.index])
            if self._speaks(records.partition[at], records.offset[at]):
                where = self._lineage(records, at)
                time_ms = int(records.time_ms[at])
                key, seen = self.keys.key(episode.slot), self._shown(batch, at, episode)
                alert = from_episode(
                    self.spec, key, time_ms, where, episode, batch.model.version, **seen
                )
                alerts.append((at, alert))
        for silence in batch.silences:
            at = silence.index
            if self._speaks(records.partition[at], records.offset[at]):
                key = self.keys.key(silence.slot)
                where = self._lineage(records, at)
                alert = from_silence(self.spec, key, where, silence, batch.model.version)
                alerts.append((at, alert))
        alerts += self._forget(batch)
        alerts.sort(key=lambda pair: pair[0])
        rejected = sum(self._speaks(r.partition, r.offset) for r in records.rejects)
        rejects = self._sifted(records)
        rejects = [r for r in rejects if self._speaks(r.partition, r.offset)]
        causes = [at for at, _ in alerts]
        counted = self._tally(batch, decided)
        return Said([alert for _, alert in alerts], causes, rejects, rejected, decided, counted)

    def _tally(self, batch: Batch, decided: Decided | None) -> Tally:
        """How rare the records were said to be for which nobody spoke before."""
        if decided is None:
            return Tally()
        begin = np.array([self.speak[each] for each in self.partitions], np.int64)
        spoken = batch.records.offset >= begin[batch.records.partition]
        return tally(decided, self.spec.decide.probability, spoken[batch.order])

    def _account(self, batch: Batch) -> Account:
        return self.budget.account(self._home(batch.records.partition), batch.order)

    def _home(self, partition: I32) -> I32:
        """(N,) index into `homes` of each index into `partitions`."""
        return partition if self.homes == self.partitions else self._home_of[partition]

    def _decided(self, batch: Batch, scores: Scores | None) -> Decided:
        """What becomes of the records of a batch that has some (a stage's own)."""
        assert batch.appended is not None
        assert scores is not None, "a batch with records needs scores"
        assert scores.version == batch.model.version, (scores.version, batch.model.version)
        self.decider.ensure(self.keys.high)
        self.decider.begin(batch.born)
        return self.decider.decide(
            batch.touched,
            batch.counts,
            batch.records.time_ms[batch.order],
            batch.records.values[batch.order],
            batch.appended,
            scores,
            self._account(batch),
        )

    def _shown(self, batch: Batch, at: int, episode: Episode) -> Shown:
        """What an alert shows beside its numbers (a stage's own)."""
        assert batch.appended is not None
        windows = Windows(self.spec.record.values, batch, batch.appended)
        return {"window": windows.of(episode)}

    def _forgotten(self, gone: Gone) -> list[Forgotten]:
        """Forget keys; which incidents end by it (a stage's own)."""
        return self.decider.forget(gone.index, gone.slot)

    def _forget(self, batch: Batch) -> list[tuple[int, Alert]]:
        """Let go of the keys that this batch displaced; ends their incidents."""
        said: list[tuple[int, Alert]] = []
        records, gone = batch.records, batch.gone
        for ended in self._forgotten(gone):
            at = ended.index
            if self._speaks(records.partition[at], records.offset[at]):
                key, where = self.keys.key(ended.slot), self._lineage(records, at)
                time_ms = int(records.time_ms[at])
                said.append(
                    (at, from_forgotten(self.spec, key, time_ms, where, ended, self.model.version))
                )
        self.keys.release(gone.slot)
        return said

    def _sifted(self, records: Records) -> list[Reject]:
        """The rejects to write; of a file, all of them."""
        live = any(partition.topic for partition in self.partitions)
        return self.rejecting.sift(records) if live else records.rejects

    def _speaks(self, partition: int | np.int32, offset: int | np.int64) -> bool:
        return int(offset) >= self.speak[self.partitions[int(partition)]]

    def _lineage(self, records: Records, at: int) -> tuple[Partition, int] | None:
        partition = self.partitions[int(records.partition[at])]
        return (partition, int(records.offset[at])) if partition.topic else None

    def _decider(self, model: ModelSpec) -> Decider:
        return Decider(
            self.spec.decide,
            model.components,
            len(self.spec.record.values),
            views=model.views,
            evidence=self._evidence,
        )

    def _adopt(self, model: ModelSpec) -> None:
        """Another version from here on. Calibration carries over where it means the same."""
        if (model.components, model.views) != (self.model.components, self.model.views):
            before = self.decider.state()
            self.decider = self._decider(model)
            self.decider.load(before)
        self.model = model

    def labels(self) -> dict[str, int]:
        """How many labels did what, by what; empty where there are none (a stage's own)."""
        return {}

    # ---- emit ------------------------------------------------------------------------------

    def emit(self, said: Said) -> list[Out]:
        """The records that say it."""
        out = [Out(self.spec.alerts, a.key, a.to_json()) for a in said.alerts]
        out += [self._reject(reject) for reject in said.rejects]
        return out

    def _reject(self, reject: Reject) -> Out:
        partition = self.partitions[reject.partition]
        value = reject.value or b""
        withheld = reject.withheld >= 0
        headers = (
            ("reason", reject.reason.encode()),
            ("detail", reject.detail.encode()),
            ("topic", partition.topic.encode()),
            ("partition", str(partition.number).encode()),
            ("offset", str(reject.offset).encode()),
            ("size", str(reject.withheld if withheld else len(value)).encode()),
        )
        if reject.count > 1:
            headers += (("count", str(reject.count).encode()),)
        if withheld:
            headers += (("withheld", b"record.pseudonymise"),)
        return Out(self.spec.rejects, str(partition).encode(), value[:REJECT_BYTES_MAX], headers)

    # ---- checkpoint ------------------------------------------------------------------------

    def layout(self) -> str:
        """Names what a snapshot's arrays mean: another layout cannot be loaded.

        The model is not part of it: calibration is kept by the names of components, and another
        model takes over what it knows, here as in `_adopt`.
        """
        channels, key = len(self.spec.record.values), self.spec.pseudonym
        # Another HMAC key makes other keys of the same records: their state is read anew.
        return f"{LAYOUT}:{channels}" + ("" if key is None else f":{key.prefix.decode()}")

    def snapshot(self, offsets: Mapping[Partition, int]) -> Snapshot:
        """The whole state, which stands at `offsets`. Only between batches."""
        return Snapshot(dict(offsets), self.model.version, self.layout(), self._arrays())

    def _arrays(self) -> Arrays:
        arrays: Arrays = {}
        for prefix, part in self._state().items():
            for name, array in part.state().items():
                arrays[f"{prefix}.{name}"] = array
        return arrays

    def fits(self, snapshot: Snapshot) -> bool:
        """Take over a state, where it fits; else be as if nothing was read. Before any batch."""
        try:
            self.load(snapshot)
        except ArtifactError:
            self.__init__(self.spec, self.partitions, self.model, evidence=self._evidence)
            return False
        return True

    def load(self, snapshot: Snapshot) -> None:
        """Take over a state. Only before the first batch.

        It may lack partitions: theirs is then the state of having read nothing. Raises
        ArtifactError where it does not fit; this flow is then not to be used.
        """
        for name, array in self._arrays().items():
            found = snapshot.arrays.get(name)
            like = found is not None and (found.dtype, found.ndim) == (array.dtype, array.ndim)
            if not like and not name.startswith("decider."):  # another model has other components
                raise ArtifactError(f"a snapshot without `{name}` as it should be", hint=_HINT)
        if tuple(snapshot.offsets) != self.partitions:
            snapshot = self._widened(snapshot)
        for prefix, part in self._state().items():
            dot = len(prefix) + 1
            part.load(
                {n[dot:]: a for n, a in snapshot.arrays.items() if n.startswith(f"{prefix}.")}
            )
        # Each part is sound by itself; they must be about the same keys.
        arrays = snapshot.arrays
        size = arrays["keys.size"].shape[0]
        aligned = self._aligned(arrays, size) and arrays["missing.key"].shape[0] == size
        chain, where = self.missing.chain(), arrays["keys.partition"]
        if not aligned or not ((chain == -1) | (chain == where)).all():
            raise ArtifactError("the parts of a snapshot are about different keys", hint=_HINT)

    def _aligned(self, arrays: Arrays, slots: int) -> bool:
        """Whether the parts are about so many keys, and of each as many records."""
        index = arrays["history.index"]
        return index.shape[0] == slots and np.array_equal(index, arrays["decider.total"])

    def _widened(self, snapshot: Snapshot) -> Snapshot:
        """The same state with its partitions counted as this lane counts them."""
        fresh = self._arrays()
        place, index = self._places(snapshot)
        arrays = dict(snapshot.arrays)
        # The last one is for slots without a key, whose partition is -1.
        arrays["keys.partition"] = np.array([*index, -1], np.int32)[arrays["keys.partition"]]
        for names, where in ((self.by_place, place), (self.by_partition, index)):
            for name in names:
                fresh[name][where] = arrays[name]
                arrays[name] = fresh[name]
        return replace(snapshot, arrays=arrays)

    def _places(self, snapshot: Snapshot) -> tuple[list[int], list[int]]:
        """Where the partitions of a snapshot, and those that have state, stand in this lane."""
        place = [self.partitions.index(partition) for partition in snapshot.offsets]
        return place, list(dict.fromkeys(self._home_of[place].tolist()))

    def _state(self) -> "dict[str, Part]":
        """Everything remembered, by the prefix of its names (a stage's own)."""
        return {
            "keys": self.keys,
            "history": self.history,
            "missing": self.missing,
            "decider": self.decider,
            "budget": self.budget,
            "rejecting": self.rejecting,
        }


def values_of(fetched: Fetched, records: Records) -> list[bytes | None]:
    """(N,) what each decoded record was decoded from."""
    if not records.rejects:
        return fetched.values
    bad = {(reject.partition, reject.offset) for reject in records.rejects}
    places = zip(fetched.partition.tolist(), fetched.offset.tolist(), strict=True)
    return [v for v, place in zip(fetched.values, places, strict=True) if place not in bad]
