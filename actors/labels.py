"""Which records are payments, and which are labels of them?

Where `record.id` is set, a record with a label is a label, whatever else it has (an updated copy of
the payment will do): it needs the id of the payment, and nothing else but what every record needs.
Every other record is a payment, and needs id, values and words. A label is true (fraud) or false
(honest), or 1 or 0; `True` and `False` are what CSV files of pandas have.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from raywatch.actors.records import RecordSpec
from raywatch.actors.scan import hash_of
from raywatch.models.payment_names import FRAUD, HONEST, PAYMENT, UNCLEAR
from raywatch.models.scorer import F64, I64, U8

LABELS = {
    b"true": FRAUD, b"1": FRAUD, b"True": FRAUD, b"false": HONEST, b"0": HONEST, b"False": HONEST,
}  # fmt: skip


@cache
def _hashes() -> tuple[tuple[int, int], ...]:
    return tuple((hash_of(text), kind) for text, kind in LABELS.items())


def kinds(spec: RecordSpec, words: I64) -> U8:
    """(N,) PAYMENT, FRAUD, HONEST, or UNCLEAR where the label is none. `words`: (N, W)."""
    if spec.label is None:
        return np.full(words.shape[0], PAYMENT, np.uint8)
    label = words[:, -1]
    found = np.where(label == 0, PAYMENT, UNCLEAR).astype(np.uint8)
    for hashed, kind in _hashes():
        found[label == hashed] = kind
    return found


def unfinished(spec: RecordSpec, values: F64, words: I64) -> NDArray[np.bool_]:
    """(N,) which records lack something, or have a label that is none.

    Args:
        spec: with an id.
        values: (N, C).
        words: (N, W) hashes, of `spec.texts`.
    """
    kind, named = kinds(spec, words), len(spec.words)
    lacks = np.isnan(values).any(axis=1) | (words[:, :named] == 0).any(axis=1)
    return (words[:, named] == 0) | (kind == UNCLEAR) | (lacks & (kind == PAYMENT))
