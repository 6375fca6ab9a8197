"""Reads wanted fields out of JSON objects: one compiled pass over the bytes of a whole batch.

The scanner takes a record only if it is certain to give what a full parser would: a whole, valid
object (RFC 8259), wanted names at most once, names written without escapes, numbers that round
provably right, keys that are strings without escapes or integers, words that are strings, integers,
`true` or `false`, times as in `iso_ms`. Whatever else it meets, it says ASK, and the full parser
(decode.py) has the last word. So it may be ignorant, but never wrong. Fields nobody wants are
validated like the others, nested ones up to DEPTH_MAX levels.

Objects that wanted names reach into (names.py) are read like the record itself: each has names of
its own to look for. A field that is there in both ways, and such an object that comes twice, is one
to ASK about.

Records of a stream mostly name the same fields in the same order: the names of the record before
are compared first, those in entered objects included.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from raywatch.actors.grammar import (
    BACKSLASH,
    CLOSE,
    COLON,
    COMMA,
    DOT,
    MINUS,
    OPEN,
    OPEN_LIST,
    QUOTE,
    TIME_MAX_MS,
    ZERO,
    ZEROS,
    byte_at,
    iso_ms,
    nested,
    null,
    number,
    scalar,
    space,
    string,
    word_at,
)
from raywatch.actors.names import steps
from raywatch.models.scorer import F64, I32, I64, U8

GRAMMAR = "a7e098db0fab"  # SHA-256 of grammar.py, its beginning: new code there, a new cache here
OK, ASK = 0, 1  # status of a record
KEY, TIME, UNWANTED, ASK_NAME = (
    -1,
    -2,
    -3,
    -4,
)  # roles of a field; then channels, then words
WORD_MAX = 20  # bytes of an integer that is a word: none has more
LAYOUT_MAX = 1_024  # fields a record may have; their names are remembered


class Wanted(NamedTuple):
    """The fields to be read, as arrays a kernel can look at; see `wanted`.

    Object 0 is the record, others are those that names reach into.
    """

    text: U8  # all names of all objects, back to back, in UTF-8
    # (E, 3) begin and size of each name, and its goal: the number of a wanted field, or F and that
    # of the object it leads into.
    names: I64
    first: I64  # (O + 1,) object o has the names in [first[o], first[o + 1])
    outer: I64  # (O,) the object around it
    role: I64  # (F,) KEY, TIME, or the number of the channel; words count on behind channels


class Scanned(NamedTuple):
    """What the scanner found; a row means something only where its status is OK."""

    status: U8  # (N,)
    time_ms: I64  # (N,) unset where no time field is wanted
    values: F64  # (N, C) NaN: null or absent
    key_begin: I64  # (N,) unset where no key field is wanted
    key_size: I32  # (N,)
    word_begin: I64  # (N, W)
    word_size: I32  # (N, W) 0: null, absent or empty
    words: I64  # (N, W) hashes of words, see `hash_at`
    more: U8  # words that had escapes, without them: they begin behind the text that was scanned


def wanted(
    key: str | None, time: str | None, values: tuple[str, ...], words: tuple[str, ...] = ()
) -> Wanted | None:
    """Prepare the fields of a record for `scan`; None where one name is to be two things."""
    roles = [(key, KEY)] if key is not None else []
    roles += [(time, TIME)] if time is not None else []
    roles += [(name, channel) for channel, name in enumerate((*values, *words))]
    if len({name for name, _ in roles}) != len(roles):
        return None
    inside: list[dict[str, int]] = [{}]  # of each object: name, and its goal
    ways, outer = dict[tuple[int, str], int](), [0]
    for field, (name, _) in enumerate(roles):
        at = 0
        for part, rest in steps(name):
            inside[at][rest] = field
            if rest == part:
                break
            if (at, part) not in ways:
                ways[at, part] = len(inside)
                inside.append({})
                outer.append(at)
            at = ways[at, part]
    for (at, part), inner in ways.items():
        inside[at].setdefault(part, len(roles) + inner)  # a field that is wanted itself is no way
    texts = [name.encode("utf-8", "surrogatepass") for each in inside for name in each]
    size = np.array([len(text) for text in texts], np.int64)
    goals = np.array([goal for each in inside for goal in each.values()], np.int64)
    return Wanted(
        text=np.frombuffer(b"".join(texts) + bytes(ZEROS), np.uint8),
        names=np.stack((np.cumsum(size) - size, size, goals), axis=1),
        first=np.cumsum([0, *map(len, inside)]),
        outer=np.array(outer, np.int64),
        role=np.array([role for _, role in roles], np.int64),
    )


@njit(cache=True, nogil=True)
def _same(p: int, q: int, size: int) -> bool:
    """Whether `size` bytes at p and q, at least one, are equal; those at q hold no zero byte.

    Behind the first zero byte at p, and behind what is at q, seven more may be read.
    """
    while size > 8:
        if word_at(p) != word_at(q):
            return False
        p, q, size = p + 8, q + 8, size - 8
    return (word_at(p) ^ word_at(q)) << np.uint64(64 - 8 * size) == np.uint64(0)


@njit(cache=True, nogil=True)
def _name(
    p: int, place: int, inside: int, first: int, end: int, text: int, names: I64, layout: I64
) -> int:
    """Read the name at p, the record's number `place`, in object `inside`, into the layout.

    That object has `names[first:end]` (see Wanted). Returns a goal, UNWANTED, or ASK_NAME.
    """
    if byte_at(p) != QUOTE:
        return ASK_NAME
    quote, escaped = string(p + 1)
    if quote < 0 or escaped:
        return ASK_NAME
    behind = space(quote + 1)
    if byte_at(behind) != COLON:
        return ASK_NAME
    layout[place, 0], layout[place, 1], layout[place, 2] = p, behind + 1 - p, UNWANTED
    layout[place, 3] = inside
    for entry in range(first, end):
        size = names[entry, 1]
        if size == quote - p - 1 and (size == 0 or _same(p + 1, text + names[entry, 0], size)):
            layout[place, 2] = names[entry, 2]
            break
    return layout[place, 2]


@njit(cache=True, nogil=True)
def hash_at(p: int, size: int) -> int:
    """64 bits that stand for the text at p: 0 for no text, and for no other."""
    if size == 0:
        return 0
    h, end = np.uint64(size) * np.uint64(0x9E3779B97F4A7C15), p + size
    while p + 8 <= end:
        h = _mixed(h ^ word_at(p))
        p += 8
    rest, shift = np.uint64(0), np.uint64(0)
    while p < end:  # byte by byte: nothing behind the text is read
        rest |= np.uint64(byte_at(p)) << shift
        shift += np.uint64(8)
        p += 1
    found = int(np.int64(_mixed(_mixed(h ^ rest))))
    return found if found != 0 else 1


@njit(cache=True, nogil=True)
def _mixed(h: np.uint64) -> np.uint64:
    """Spreads each bit over all of them and loses none (Stafford 2011, "Mix13")."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@njit(cache=True, nogil=True)
def _key(p: int, bytes_max: int) -> tuple[int, int, int]:
    """The key at p: position behind the value (-1: ask), begin and size of the key's text."""
    if byte_at(p) == QUOTE:
        end, escaped = string(p + 1)
        size = end - p - 1
        if end < 0 or escaped or size < 1 or size > bytes_max:
            return -1, 0, 0
        return end + 1, p + 1, size
    return _integer(p, bytes_max)


@njit(cache=True, nogil=True)
def _integer(p: int, bytes_max: int) -> tuple[int, int, int]:
    """The integer at p: position behind it (-1: ask), begin and size of its decimal text."""
    begin = p + 1 if byte_at(p) == MINUS else p
    q = begin
    while 48 <= byte_at(q) <= 57:
        q += 1
    digits = q - begin
    if digits == 0 or digits > 18 or (byte_at(begin) == ZERO and (digits > 1 or begin > p)):
        return -1, 0, 0
    if byte_at(q) == DOT or byte_at(q) | 32 == 101 or q - p > bytes_max:
        return -1, 0, 0
    return q, p, q - p


@njit(cache=True, nogil=True)
def _time(p: int) -> tuple[int, int]:
    """The time at p: position behind the value (-1: ask) and milliseconds."""
    if byte_at(p) == QUOTE:
        end, escaped = string(p + 1)
        if end < 0 or escaped:
            return -1, 0
        time_ms = iso_ms(p + 1, end)
        return (-1 if time_ms < 0 else end + 1), time_ms
    end, value, certain = number(p)
    if end < 0 or not certain or value < 0.0 or value > TIME_MAX_MS:
        return -1, 0
    return end, math.floor(value)


@njit(cache=True, nogil=True)
def _channel(p: int) -> tuple[int, float, int]:
    """The channel at p: position behind it (-1: ask), value, 1 where it is present."""
    if byte_at(p) == 110:
        return (p + 4 if null(p) else -1), np.nan, 0
    end, value, certain = number(p)
    return (end if certain else -1), value, 1


@njit(cache=True, nogil=True)
def _word(p: int) -> tuple[int, int, int]:
    """The word at p: position behind it (-1: ask), begin and size of its text.

    Size 0: it is missing; below 0: it has escapes, and so many bytes with them.
    """
    byte = byte_at(p)
    if byte == QUOTE:
        end, escaped = string(p + 1)
        size = max(end - p - 1, 0)
        return (-1 if end < 0 else end + 1), p + 1, (-size if escaped else size)
    if byte == 110:
        return (p + 4 if null(p) else -1), p, 0
    if byte in (116, 102):
        end = scalar(p)
        return end, p, max(end - p, 0)
    return _integer(p, WORD_MAX)


@njit(cache=True, nogil=True)
def _skip(p: int, before: int, size: int) -> int:
    """Position behind the value at p, or -1; a list or an object may be the same as one before."""
    if byte_at(p) != OPEN and byte_at(p) != OPEN_LIST:
        return scalar(p)
    return p + size if size > 0 and _same(p, before, size) else nested(p)


@njit(cache=True, nogil=True)
def _scan(  # noqa: PLR0912, PLR0915 - one loop, its state in locals: see grammar.py
    base: int, begin: I64, size: I64, fields: Wanted, key_bytes_max: int, out: Scanned
) -> None:
    text, names, first, outer, role = fields
    status, time_ms, values, key_begin, key_size, word_begin, word_size, _, _ = out
    # The record before: address and size of each name (quotes and colon included), its goal, its
    # object, address and size of a value that nobody wanted.
    layout = np.full((LAYOUT_MAX, 6), -1, np.int64)
    seen = np.full(role.shape[0] + outer.shape[0], -1, np.int64)  # the last record with the goal
    singles_all = (role < 0).sum()
    for index in range(begin.shape[0]):
        status[index] = ASK
        place, singles, channels, inside = 0, 0, 0, 0
        p = space(base + begin[index])
        if byte_at(p) != OPEN:
            continue
        while True:
            p = space(p + 1)
            if place == LAYOUT_MAX:
                break
            if layout[place, 3] == inside and _same(p, layout[place, 0], layout[place, 1]):
                field = layout[place, 2]
            else:
                begins, ends = first[inside], first[inside + 1]
                field = _name(p, place, inside, begins, ends, text.ctypes.data, names, layout)
                if field == ASK_NAME:
                    break
            p = space(p + layout[place, 1])
            place += 1
            if field == UNWANTED:
                at, p = p, _skip(p, layout[place - 1, 4], layout[place - 1, 5])
                layout[place - 1, 4], layout[place - 1, 5] = at, p - at
            elif seen[field] == index:
                break
            else:
                seen[field] = index
                if field >= role.shape[0]:
                    if byte_at(p) == OPEN and byte_at(space(p + 1)) != CLOSE:
                        inside = field - role.shape[0]
                        continue
                    p = _skip(p, p, 0)
                elif role[field] >= values.shape[1]:
                    word = role[field] - values.shape[1]
                    p, at, length = _word(p)
                    word_begin[index, word], word_size[index, word] = at - base, length
                    channels += abs(length)
                elif role[field] >= 0:
                    p, values[index, role[field]], present = _channel(p)
                    channels += present
                elif role[field] == KEY:
                    singles += 1
                    p, at, key_size[index] = _key(p, key_bytes_max)
                    key_begin[index] = at - base
                else:
                    singles += 1
                    p, time_ms[index] = _time(p)
            if p < 0:
                break
            p = space(p)
            while inside and byte_at(p) == CLOSE:
                inside, p = outer[inside], space(p + 1)
            if byte_at(p) != COMMA:
                whole = byte_at(p) == CLOSE and space(p + 1) == base + begin[index] + size[index]
                if whole and channels > 0 and singles == singles_all:
                    status[index] = OK
                break


def scan(
    buf: U8,
    begin: I64,
    size: I64,
    fields: Wanted,
    *,
    channels: int,
    key_bytes_max: int,
    words: int = 0,
) -> Scanned:
    """Read N records; record i is buf[begin[i] : begin[i] + size[i]], with a zero byte behind it.

    Behind the last one there are ZEROS zero bytes. A record without any channel or word, or
    without a wanted key or time, is one to ASK about.
    """
    count = begin.shape[0]
    assert not buf[-ZEROS:].any(), "the zero bytes are missing"
    out = Scanned(
        status=np.empty(count, np.uint8),
        time_ms=np.empty(count, np.int64),
        values=np.full((count, channels), np.nan),
        key_begin=np.empty(count, np.int64),
        key_size=np.empty(count, np.int32),
        word_begin=np.zeros((count, words), np.int64),
        word_size=np.zeros((count, words), np.int32),
        words=np.empty((count, words), np.int64),
        more=np.zeros(0, np.uint8),
    )
    base = buf.ctypes.data
    _scan(base, begin, size, fields, key_bytes_max, out)
    if not words:
        return out
    flat = out.word_begin.reshape(-1), out.word_size.reshape(-1), out.words.reshape(-1)
    hash_column(base, *flat)
    escaped = flat[1][flat[1] < 0]
    if not escaped.shape[0]:
        return out
    more = np.empty(escaped.shape[0] - int(escaped.sum(dtype=np.int64)), np.uint8)
    end = _without_escapes(base, *flat, more, more.ctypes.data, buf.shape[0])
    return out._replace(more=more[:end])


@njit(cache=True, nogil=True)
def _hex(p: int) -> int:
    """The number that four hexadecimal digits at p make."""
    code = 0
    for index in range(p, p + 4):
        byte = byte_at(index)
        code = code * 16 + (byte - 48 if byte <= 57 else (byte | 32) - 87)
    return code


@njit(cache=True, nogil=True)
def _plain(p: int, end: int, to: U8, at: int) -> int:
    """Copy the text in [p, end), a valid one, to `to[at:]` without escapes; returns its end there.

    Escapes are those of RFC 8259 without surrogates, which the scanner does not take.
    """
    while p < end:
        byte = byte_at(p)
        p += 1
        if byte != BACKSLASH:
            to[at] = byte
            at += 1
            continue
        kind = byte_at(p)
        p += 1
        if kind == 117:
            code = _hex(p)
            p += 4
            if code < 0x80:
                to[at] = code
            elif code < 0x800:
                to[at], to[at + 1] = 0xC0 | code >> 6, 0x80 | code & 63
                at += 1
            else:
                to[at], to[at + 1] = 0xE0 | code >> 12, 0x80 | code >> 6 & 63
                to[at + 2] = 0x80 | code & 63
                at += 2
        elif kind in (98, 102, 110, 114, 116):  # b f n r t
            to[at] = (
                8
                if kind == 98
                else 12
                if kind == 102
                else 10
                if kind == 110
                else (13 if kind == 114 else 9)
            )
        else:
            to[at] = kind
        at += 1
    return at


@njit(cache=True, nogil=True)
def _without_escapes(
    base: int, begin: I64, size: I32, words: I64, to: U8, to_base: int, offset: int
) -> int:
    """Move texts whose size is below 0 to `to`, behind a quote each, and hash them.

    Returns the end; `offset` is where `to` will lie behind the text at `base`.
    """
    at = 0
    for index in range(begin.shape[0]):
        if size[index] < 0:
            to[at] = QUOTE
            first = at + 1
            p = base + begin[index]
            at = _plain(p, p - size[index], to, first)
            begin[index], size[index] = offset + first, at - first
            words[index] = hash_at(to_base + first, at - first)
    return at


@njit(cache=True, nogil=True)
def iso_column(base: int, begin: I64, size: I64, out: I64) -> None:
    """`iso_ms` of N texts; text i has size[i] bytes at address base + begin[i]."""
    for index in range(begin.shape[0]):
        at = base + begin[index]
        out[index] = iso_ms(at, at + size[index])


@njit(cache=True, nogil=True)
def hash_column(base: int, begin: I64, size: I64 | I32, out: I64) -> None:
    """`hash_at` of N texts; text i has size[i] bytes at address base + begin[i]."""
    for index in range(begin.shape[0]):
        out[index] = hash_at(base + begin[index], size[index])


def hash_of(text: bytes) -> int:
    """`hash_at` of one text; for the few that do not come as bytes of a batch."""
    raw = np.frombuffer(text + b"\0", np.uint8)
    return int(hash_at(raw.ctypes.data, len(text)))
