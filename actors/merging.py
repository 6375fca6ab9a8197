"""In which order do payments and labels of two partitions come?

Head against head: of the next payment, which its log took at T, and the next label, taken at t, the
label comes first where

    t + delay <= T

and the payment does otherwise. What comes next follows from the two records and nothing else, so
the order is a function of the two logs: it is the same however they were fetched, and from any
place that was reached on. Nothing has to be remembered for that, and times may go back in a log, as
they do when another broker takes over: no running maximum is kept, which would begin anew, and
lower, where reading begins again. Of times that do not go back the rule says that a label comes
behind all payments before t + delay, and before all others.

Where one log has been read to its end, its next record is not known, but a bound is: it was not
there when the end was looked for, so its time is no earlier than that (the *floor*).
"""

import numpy as np
from numba import njit

from raywatch.models.scorer import I64

NO_FLOOR = -(1 << 60)  # ms: nothing is known of a record that was not read


@njit(cache=True, nogil=True)
def merged(
    paid_ms: I64, label_ms: I64, delay_ms: int, paid_floor: int, label_floor: int, limit: int
) -> I64:
    """Which records come next, as far as it is certain: (n,) 1 for a label, n <= limit.

    Args:
        paid_ms: (P,) log's times of payments that were read, in their order; ms.
        label_ms: (L,) of labels.
        delay_ms: a label comes before payments that are this much later.
        paid_floor: no payment that was not read is earlier; NO_FLOOR: not known.
        label_floor: no such label is.
        limit: most records wanted.
    """
    payments, labels = paid_ms.shape[0], label_ms.shape[0]
    out = np.empty(max(0, min(limit, payments + labels)), np.int64)
    i = j = 0
    while i + j < out.shape[0]:
        if i < payments and j < labels:
            label = label_ms[j] + delay_ms <= paid_ms[i]
        elif i < payments:
            if paid_ms[i] >= label_floor + delay_ms:
                break  # a label that was not read may come first
            label = False
        else:
            if label_ms[j] + delay_ms > paid_floor:
                break
            label = True
        out[i + j] = label
        i, j = (i, j + 1) if label else (i + 1, j)
    return out[: i + j]


def places(of: I64, payments: int) -> I64:
    """(n,) where each record of such an order stands among `payments` payments, then labels."""
    labels = np.cumsum(of)
    return np.where(of == 1, payments + labels - 1, np.arange(of.shape[0]) - labels)


def warm_merging() -> None:
    """Compile this file's kernel."""
    one = np.zeros(1, np.int64)
    merged(one, one, 0, NO_FLOOR, NO_FLOOR, 1)
