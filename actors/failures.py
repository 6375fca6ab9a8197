"""Which calls failed, by the field that `record.error` names?

Exporters do not agree: a boolean, a status (`OK`, `UNSET`, `ERROR`, or its number), a code of HTTP,
or what went wrong where something did; and 1 is `OK` in a status, and a failure in a flag: the name
of the field says which it is. So every text is a failure but those of trace_names.py, and
nothing is none: null, an absent field and an empty text.
"""

from functools import cache

import numpy as np

from raywatch.actors.scan import hash_of
from raywatch.models.scorer import I64, U8
from raywatch.models.trace_names import GOOD, GOOD_CODES, GOOD_STATUS, STATUS


@cache
def _good(status: bool) -> I64:
    """Hashes of what is no failure, ascending; nothing at all is 0."""
    words = [form for word in GOOD for form in (word, word.upper(), word.capitalize())]
    texts = {*words, *map(str, GOOD_CODES), *([GOOD_STATUS] if status else [])}
    return np.unique([0, *(hash_of(text.encode()) for text in texts)])


def failed(errors: I64, field: str) -> U8:
    """(N,) 1 where a call failed. `errors`: (N,) hashes of the field, 0 where there is nothing."""
    good = _good(any(word in field.lower() for word in STATUS))
    at = np.minimum(np.searchsorted(good, errors), good.shape[0] - 1)
    return (good[at] != errors).astype(np.uint8)
