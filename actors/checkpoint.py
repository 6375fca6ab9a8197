"""A lane's state as one blob, and which blob to start from.

A snapshot is named by where it stands: the sum of its offsets (they only grow, so names sort by
age) and the epoch in which it was taken. It is complete, checked and never changed. A new owner
takes the newest one whose offsets all lie at or below the committed ones and still within
retention, reads on from there and keeps silent until it passes the committed offsets: scores are
pure, so that is the state its predecessor had.

    blob = magic, header size (8 bytes), header (JSON), arrays back to back, blake2b of all that
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from raywatch.actors.ports import Bounds, Committed, Partition, Store
from raywatch.actors.store import BLOB_BYTES_MAX
from raywatch.models.errors import ConfigError, Unreachable

MAGIC = b"RWSNAP01"
DIGEST = 32
HEADER_MAX = 16 << 20  # Bytes of a header: 4,096 partitions and some arrays are far less.
DTYPE = re.compile(r"[<|][iuf][1248]")  # Numbers only: anything else would not be ours.
KEEP = 3  # Snapshots kept of a lane: the newest may lie above the committed offset.

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A lane's state and where it stands."""

    offsets: dict[Partition, int]  # in the order in which arrays count partitions
    model: str  # version whose scores the calibration saw
    layout: str  # what the arrays mean; another layout is not ours to read
    arrays: Arrays


def encode(snapshot: Snapshot) -> bytes:
    """One blob. Beside it nothing is copied: a state may be large."""
    header = {
        "offsets": [[p.topic, p.number, o] for p, o in snapshot.offsets.items()],
        "model": snapshot.model,
        "layout": snapshot.layout,
        "arrays": [
            [name, array.dtype.str, list(array.shape)] for name, array in snapshot.arrays.items()
        ],
    }
    text = json.dumps(header).encode()
    parts: list[bytes | memoryview] = [MAGIC, len(text).to_bytes(8, "little"), text]
    for array in snapshot.arrays.values():
        parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    digest = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        digest.update(part)
    return b"".join([*parts, digest.digest()])


def decode(blob: bytes) -> Snapshot | None:
    """The snapshot, or None where the blob is torn or foreign.

    Its arrays are views of the blob: nothing is allocated for what a header only claims.
    """
    at = len(MAGIC) + 8
    if len(blob) < at + DIGEST or blob[: len(MAGIC)] != MAGIC:
        return None
    body = memoryview(blob)[:-DIGEST]
    if hashlib.blake2b(body, digest_size=DIGEST).digest() != blob[-DIGEST:]:
        return None
    size = int.from_bytes(body[len(MAGIC) : at], "little")
    if size > min(HEADER_MAX, len(body) - at):
        return None
    try:
        header = msgspec.json.decode(body[at : at + size], type=_Header)
    except (ValueError, RecursionError):  # of msgspec: UTF-8, JSON, types
        return None
    at += size
    arrays: Arrays = {}
    for name, dtype, shape in header.arrays:
        whole = math.prod(shape) * int(dtype[2:]) if DTYPE.fullmatch(dtype) else -1
        if min(shape, default=-1) < 0 or not 0 <= whole <= len(body) - at or name in arrays:
            return None
        count = math.prod(shape)
        arrays[name] = np.frombuffer(blob, np.dtype(dtype), count, at).reshape(shape)
        at += whole
    offsets = {Partition(topic, number): offset for topic, number, offset in header.offsets}
    sound = len(offsets) == len(header.offsets) and min(offsets.values(), default=0) >= 0
    if at != len(body) or not sound:
        return None
    return Snapshot(offsets, header.model, header.layout, arrays)


class _Header(msgspec.Struct):
    """What a header must look like before anything in it is believed."""

    offsets: list[tuple[str, int, int]]
    model: str
    layout: str
    arrays: list[tuple[str, str, list[int]]]


def name_of(detector: str, lane: int, offsets: Mapping[Partition, int], epoch: str) -> str:
    """Where a snapshot is stored."""
    return f"snapshots/{detector}/{lane:04d}/{sum(offsets.values()):020d}-{epoch}"


def _any(snapshot: Snapshot) -> bool:
    return True


def newest(
    store: Store,
    detector: str,
    lane: int,
    layout: str,
    ceiling: Mapping[Partition, int],
    fits: Callable[[Snapshot], bool] = _any,
) -> Snapshot | None:
    """The newest readable snapshot of these partitions, or of some of them, below `ceiling`.

    Each partition has a state of its own, so what a snapshot lacks (partitions that were added
    since) is read from the log, and what it has is good. One that holds others too is not used, nor
    is one that does not fit: `fits` is asked last.
    """
    for name in reversed(store.names(f"snapshots/{detector}/{lane:04d}/")):
        blob = store.get(name)
        snapshot = None if blob is None else decode(blob)
        if snapshot is None or snapshot.layout != layout:
            continue
        offsets = snapshot.offsets
        below = all(p in ceiling and o <= ceiling[p] for p, o in offsets.items())
        if offsets and below and fits(snapshot):
            return snapshot
    return None


def discard_beyond(
    store: Store, detector: str, lane: int, ceiling: Mapping[Partition, int]
) -> list[str]:
    """Delete snapshots that lie above `ceiling` altogether. Returns their names.

    Only who holds the lane may call it. Commits go back when an operator resets the group, when a
    topic is created anew, or when the lane has other partitions than before: what was stored then
    is of another past, and would outlive every newer snapshot since it sorts behind them.
    """
    limit = f"{sum(ceiling.values()):020d}"
    names = store.names(f"snapshots/{detector}/{lane:04d}/")
    beyond = [name for name in names if name.rpartition("/")[2][: len(limit)] > limit]
    for name in beyond:
        store.delete(name)
    return beyond


def save(
    store: Store,
    detector: str,
    lane: int,
    snapshot: Snapshot,
    epoch: str,
    bytes_max: int = BLOB_BYTES_MAX,
) -> str:
    """Store a snapshot and delete all but the newest few. Returns its name.

    Raises Unreachable, also for a state that is larger than any store takes: the lane says so, and
    its next owner reads back from the log.
    """
    size = sum(array.nbytes for array in snapshot.arrays.values())
    if size > bytes_max:
        raise Unreachable(
            f"the state has `{size}` bytes, a snapshot at most `{bytes_max}`",
            hint="lower `keys_max`, or deal the partitions to more lanes",
        )
    name = name_of(detector, lane, snapshot.offsets, epoch)
    store.put(name, encode(snapshot))
    for old in store.names(f"snapshots/{detector}/{lane:04d}/")[:-KEEP]:
        store.delete(old)
    return name


def note(model: str, since: int, lane: str) -> str:
    """What is committed beside an offset: who scored up to it, since which offset; and the lane."""
    return json.dumps({"model": model, "since": since, "lane": lane})


def holder(text: str) -> str:
    """The lane in such a note; a foreign one says nothing."""
    lane = _fields(text).get("lane")
    return lane if isinstance(lane, str) else ""


def noted(text: str) -> tuple[str, int | None]:
    """Model and offset out of such a note; a foreign one says nothing."""
    fields = _fields(text)
    model, since = fields.get("model"), fields.get("since")
    first = since if type(since) is int and since >= 0 else None
    return (model if isinstance(model, str) else "", first)


def _fields(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Start:
    """Where a lane begins: it reads from `read` and speaks from `speak` on."""

    read: dict[Partition, int]
    speak: dict[Partition, int]
    lost: dict[Partition, tuple[int, int]]  # committed offset, first retained offset


def start(
    *,
    partitions: Sequence[Partition],
    committed: Mapping[Partition, Committed],
    bounds: Mapping[Partition, Bounds],
    fresh: str,
    lost: str,
    added: Collection[Partition] = (),
) -> Start:
    """Decide where to start, before any snapshot is known: from what is retained.

    `fresh` (earliest or latest) decides for partitions that never committed, but those that were
    `added` to a topic begin at their beginning; `lost` (continue or stop) decides for committed
    offsets that the log no longer holds. Raises ConfigError for `stop`.
    """
    read: dict[Partition, int] = {}
    speak: dict[Partition, int] = {}
    gone: dict[Partition, tuple[int, int]] = {}
    for partition in partitions:
        low, end = bounds[partition]
        assert min(low, end) >= 0, (partition, low, end)  # a guess would be taken for a loss
        read[partition] = low
        if partition not in committed:
            speak[partition] = low if fresh == "earliest" or partition in added else end
            continue
        offset = committed[partition].offset
        if low <= offset <= end:
            speak[partition] = offset
            continue
        if lost == "stop":
            side = "older than" if offset < low else "newer than"
            raise ConfigError(
                f"the committed offset `{offset}` of `{partition}` is {side} what the topic "
                f"holds, `{low}` to `{end}`",
                hint="records between them are gone; set `lost: continue` on the detector to go "
                "on from what is retained (the gap is written to the audit topic), or move the "
                "group's offset with kafka-consumer-groups --reset-offsets",
            )
        gone[partition] = (offset, low)
        speak[partition] = low
    return Start(read, speak, gone)
