"""A lane that scores its records itself: what all signal classes of this kind share.

The state that scores is the lane's, stands in its snapshots, and is a function of each partition's
records in their order and of nothing else. Such a lane sends nothing to the pool, whose scorer only
says which version is in service. Incidents are by key (models/following.py).
"""

from abc import ABC, abstractmethod

import numpy as np

from raywatch.actors.checkpoint import Arrays
from raywatch.actors.flow import Batch, Flow, Part
from raywatch.actors.keys import Gone
from raywatch.actors.records import Records
from raywatch.models.following import Following
from raywatch.models.history import Appended
from raywatch.models.incident import Forgotten
from raywatch.models.scorer import I32, I64, ModelSpec


class AloneFlow(Flow, ABC):
    """In place of `History` and `Decider` it has `following`, and what its class adds to it."""

    following: Following
    by_slot: tuple[str, ...] = ()  # arrays of its own that have a row for each key

    @abstractmethod
    def _own(self) -> dict[str, Part]:
        """The part of the state that is this class's own."""

    def _adopt(self, model: ModelSpec) -> None:
        self.model = model

    def _featurised(
        self, records: Records, order: I64, touched: I32, counts: I32, gone: Gone, model: ModelSpec
    ) -> Appended | None:
        return None

    def _forgotten(self, gone: Gone) -> list[Forgotten]:
        return self.following.forget(gone.index, gone.slot)

    def _aligned(self, arrays: Arrays, slots: int) -> bool:
        names = ("following.chance", *self.by_slot)
        return all(arrays[name].shape[0] == slots for name in names)

    def _state(self) -> dict[str, Part]:
        return {
            "keys": self.keys,
            **self._own(),
            "following": self.following,
            "missing": self.missing,
            "budget": self.budget,
            "rejecting": self.rejecting,
        }


def grouped(batch: Batch) -> I64:
    """(N,) where each record of a batch stands in grouped order."""
    places = np.empty_like(batch.order)
    places[batch.order] = np.arange(batch.order.shape[0])
    return places
