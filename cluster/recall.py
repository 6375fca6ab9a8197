"""What an earlier supervisor decided and said, from the audit topic."""

import json
from collections import deque
from typing import Any

from raywatch.actors.ports import Clock, Log, Partition
from raywatch.cluster import journal
from raywatch.cluster.connect import must_see
from raywatch.models.errors import Unreachable

AUDIT_MAX = 200_000  # Newest audit records that are read.
READ_S = 30.0
SENTENCES_MAX = 500


def recall(
    log: Log, audit: str, clock: Clock
) -> tuple[dict[str, dict[str, Any]], list[journal.Entry]]:
    """The newest `serve` record of each detector, and the newest sentences, oldest first.

    Raises Unreachable where the topic cannot be read to its end in time, and whatever brokers say
    where it cannot be seen: what was decided before must not look like nothing.
    """
    told: dict[str, dict[str, Any]] = {}
    sentences: deque[journal.Entry] = deque(maxlen=SENTENCES_MAX)
    count = log.topics().get(audit, 0)
    if not count:
        must_see(log, audit)
    partitions = [Partition(audit, number) for number in range(count)]
    bounds = log.bounds(partitions)
    source = log.source("", partitions)
    try:
        source.assign({p: max(b.low, b.end - AUDIT_MAX) for p, b in bounds.items()})
        until = clock.monotonic() + READ_S
        while any(source.position().get(p, b.low) < b.end for p, b in bounds.items()):
            if clock.monotonic() > until:
                raise Unreachable(f"topic `{audit}` could not be read within {READ_S:.0f} s")
            for value in source.fetch(5_000, 0.1).values:
                entry = _object(value)
                if entry.get("what") == "serve":
                    told[str(entry.get("detector"))] = entry
                sentence = journal.of_json(value)
                if sentence is not None:
                    sentences.append(sentence)
    finally:
        source.close()
    return told, list(sentences)


def _object(value: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(value or b"null")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
