"""Which kind of line is this? The template of a log line is a pure function of its bytes.

Words that carry a value become `<*>`, what is left is the template and its 64-bit hash the id:

    Failed password for root from 5.36.59.76 port 42393 ssh2
    Failed password for <*> from <*> port <*>
    rts: bad header: type=3 (softheader=0b 1f)
    rts : bad header : type = <*> ( softheader = <*> )

A word between blanks is a value if it holds a digit (and no `=`); it keeps the punctuation round
it. Other words are cut at brackets, quotes, `=`, `;`, `|`, a final `,` or `:`, and runs such as
`....`. A piece is a value if it holds a digit, follows `=`, is a path, has two inner dots (hosts,
classes), is one letter, or names a month or weekday. Last, English grammar: a word is a value when
it follows `user for from by at on host` and is followed by `from by at on in to via port`, a value,
punctuation or the end. Neighbouring values are one (lists of any length are one kind). Empty
brackets hold a value, an empty `key=` does not: that a field is missing makes another kind of line.

Nothing is learned: no key, no batch, no order of lines, no full table has a say, and all machines
agree on ids. The price: a bare word that varies in no such place makes templates of its own
(`removing chargen`; log_families.py gathers them for a key); kinds that differ in a masked word are
one. A `-` alone is a value, an empty one. Knows English and ASCII; bytes above 127 are letters. A
line counts up to TOKENS pieces, then it is cut.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raywatch.models.scorer import F64, I32, I64, U8

U64 = NDArray[np.uint64]

TOKENS = 256  # Bounds the work and the scratch for one line.
FAMILIES = 8  # Words of a line that may turn out to be values: see log_families.py.
VALUES = 8  # Values of a line that are read as numbers; later ones are not looked at.
WORD_BYTES = 8  # Longest word of the lists below: it fits one integer.

VALUE, MARK, WORD = range(3)  # kinds of piece

_SPACE, _DIGIT, _ALPHA, _MARK, _RUN, _LEFT_TRIM, _RIGHT_TRIM, _CLOSE = (1 << i for i in range(8))


def _classes() -> U8:
    table = np.zeros(256, np.uint8)
    for chars, bit in (
        (b" \t\r\n\v\f", _SPACE),
        (b"0123456789", _DIGIT),
        (bytes(range(65, 91)) + bytes(range(97, 123)) + bytes(range(128, 256)), _ALPHA),
        (b"()[]{}<>\"'=;|", _MARK),
        (b".*-#_", _RUN),
        (b"([{<\"'=;|,:.!?*#", _LEFT_TRIM),
        (b")]}>\"'=;|,:.!?*#", _RIGHT_TRIM),
        (b")]}>\"'", _CLOSE),
    ):
        for char in chars:
            table[char] |= bit
    return table


def _pack(words: str) -> U64:
    """Words as integers: their bytes, first one highest."""
    return np.array([int.from_bytes(word.encode(), "big") for word in words.split()], np.uint64)


CLASSES = _classes()
BEFORE = _pack("user host for from by at on")  # a value may follow
AFTER = _pack("from by at on in to via port")  # a value may stand before
NOUNS = _pack("user host port")
FUNCTION = _pack("for from by at on in to via")  # never a value
DATES = _pack("Mon Tue Wed Thu Fri Sat Sun Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec")

_OPEN_CLOSE = ((40, 41), (91, 93), (34, 34), (39, 39), (60, 62))
FNV, PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a, bytes of a piece
GOLDEN, PRIME_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)  # splitmix64
A_VALUE = np.uint64(1)  # in place of the hash of a piece


@njit(cache=True, nogil=True, inline="always")
def _is(line: U8, at: int, bit: int) -> bool:
    return (CLASSES[line[at]] & bit) != 0


@njit(cache=True, nogil=True)
def _packed(line: U8, begin: int, end: int, lower: bool) -> np.uint64:
    """A word as `_pack` has it; 0 if it is too long to be in a list."""
    if end - begin > WORD_BYTES:
        return np.uint64(0)
    packed = np.uint64(0)
    for at in range(begin, end):
        char = line[at]
        if lower and 65 <= char <= 90:
            char |= 32
        packed = (packed << np.uint64(8)) | np.uint64(char)
    return packed


@njit(cache=True, nogil=True)
def _among(word: np.uint64, words: U64) -> bool:
    if word != 0:
        for each in words:
            if word == each:
                return True
    return False


@njit(cache=True, nogil=True)
def _run_at(line: U8, at: int, end: int) -> bool:
    """Whether a run of two or more equal marks such as `....` begins here."""
    return at + 1 < end and line[at] == line[at + 1] and _is(line, at, _RUN)


@njit(cache=True, nogil=True)
def _cut_at(line: U8, at: int, end: int) -> bool:
    """Whether the byte is a mark of its own: brackets and such, `,` and `:` only before one."""
    if _is(line, at, _MARK):
        return True
    final = line[at] == 44 or line[at] == 58
    return final and (at + 1 == end or _is(line, at + 1, _MARK))


@njit(cache=True, nogil=True)
def _core(line: U8, begin: int, end: int) -> tuple[int, int]:
    """A word without the punctuation round it; `LOCAL(0),` keeps the bracket that it opened."""
    while begin < end and _is(line, begin, _LEFT_TRIM):
        begin += 1
    while end > begin and _is(line, end - 1, _RIGHT_TRIM):
        last = line[end - 1]
        opening = 40 if last == 41 else 91 if last == 93 else 0
        opened = False
        if opening:
            for at in range(begin, end):
                opened |= line[at] == opening
        if opened:
            break
        end -= 1
    return begin, end


@njit(cache=True, nogil=True)
def _whole_value(line: U8, begin: int, end: int) -> bool:
    """Whether a word (its core) is a value as a whole: a digit, no `=`, no run of marks."""
    digit = False
    for at in range(begin, end):
        if line[at] == 61 or _run_at(line, at, end):
            return False
        digit |= _is(line, at, _DIGIT)
    return digit


@njit(cache=True, nogil=True)
def _piece_value(line: U8, begin: int, end: int) -> bool:
    """Whether a piece of a word is a value by its own looks."""
    first = line[begin]
    size = end - begin
    if size == 1:  # `a` and `I` are words, `-` is how many logs write "nothing"
        letter = _is(line, begin, _ALPHA) and first not in (65, 73, 97)
        return letter or _is(line, begin, _DIGIT) or first == 45
    if first == 47 or (first == 46 and line[begin + 1] == 47):
        return True
    dots = slashes = 0
    for at in range(begin, end):
        char = line[at]
        if _is(line, at, _DIGIT):
            return True
        slashes += char == 47
        if char == 46 and begin < at < end - 1:
            before = _is(line, at - 1, _ALPHA) or line[at - 1] == 95 or line[at - 1] == 45
            dots += before and _is(line, at + 1, _ALPHA)
    if dots > 1 or slashes > 1:
        return True
    return size == 3 and _among(_packed(line, begin, end, False), DATES)


@njit(cache=True, nogil=True)
def _piece_end(line: U8, begin: int, end: int) -> int:
    at = begin
    if line[begin] == 47:
        last = end - 1 if _cut_at(line, end - 1, end) else end
        while at < last and not _is(line, at, _CLOSE):
            at += 1
        return at
    while at < end and not _cut_at(line, at, end) and not _run_at(line, at, end):
        at += 1
    return at


@njit(cache=True, nogil=True)
def _empty(opened: np.uint8, closed: np.uint8) -> bool:
    # No generator: numba does not know any().
    found = False
    for pair in _OPEN_CLOSE:
        found |= opened == pair[0] and closed == pair[1]
    return found


@njit(cache=True, nogil=True)
def _pieces_of(line: U8, begin: int, end: int, pieces: I32, count: int) -> int:
    """Cut one word; appends (begin, end, kind) to `pieces` and gives their number."""
    low, high = _core(line, begin, end)
    whole = _whole_value(line, low, high)
    at = begin
    last = np.uint8(0)
    while at < end and count + 2 < TOKENS:
        if whole and at == low:
            stop, kind = high, VALUE
        elif whole and not _cut_at(line, at, end) and line[at] != 44 and line[at] != 58:
            at += 1  # other punctuation round a value is no part of the template
            continue
        elif whole or _cut_at(line, at, end):
            if _empty(last, line[at]):
                pieces[count, 0], pieces[count, 1], pieces[count, 2] = at, at, VALUE
                count += 1
            stop, kind = at + 1, MARK
        elif _run_at(line, at, end):
            stop, kind = at + 1, MARK
            while stop < end and line[stop] == line[at]:
                stop += 1
        else:
            stop = _piece_end(line, at, end)
            kind = VALUE if last == 61 or _piece_value(line, at, stop) else WORD
        pieces[count, 0], pieces[count, 1], pieces[count, 2] = at, stop, kind
        count += 1
        last = line[at] if kind == MARK else np.uint8(0)
        at = stop
    return count


@njit(cache=True, nogil=True)
def _grammar(line: U8, pieces: I32, count: int) -> None:
    """Words in the place of a value become values. Looks at words as they were, left to right."""
    before = np.uint64(0)
    for i in range(count):
        begin, end, kind = pieces[i]
        word = _packed(line, begin, end, True) if kind == WORD else np.uint64(0)
        if kind == WORD and _among(before, BEFORE) and _is(line, begin, _ALPHA):
            noun = _among(word, NOUNS)
            if not _among(word, FUNCTION) and (not noun or _among(before, NOUNS)):
                boundary = True
                if i + 1 < count and pieces[i + 1, 2] == WORD:
                    b, e = pieces[i + 1, 0], pieces[i + 1, 1]
                    boundary = not _is(line, b, _ALPHA) or _among(_packed(line, b, e, True), AFTER)
                if boundary:
                    pieces[i, 2] = VALUE
                    word = np.uint64(0)
        before = word


@njit(cache=True, nogil=True)
def cut(line: U8, begin: int, end: int, pieces: I32) -> int:
    """The pieces of line[begin:end] as (begin, end, kind); neighbouring values are one piece.

    Returns their number; `pieces` is (TOKENS, 3). Of neighbouring values the first one counts.
    """
    count = 0
    at = begin
    while at < end and count + 2 < TOKENS:
        while at < end and _is(line, at, _SPACE):
            at += 1
        stop = at
        while stop < end and not _is(line, stop, _SPACE):
            stop += 1
        if stop > at:
            count = _pieces_of(line, at, stop, pieces, count)
        at = stop
    _grammar(line, pieces, count)
    kept = 0
    for i in range(count):
        if pieces[i, 2] == VALUE and kept > 0 and pieces[kept - 1, 2] == VALUE:
            continue
        pieces[kept] = pieces[i]
        kept += 1
    return kept


@njit(cache=True, nogil=True)
def _term(piece: np.uint64, place: int) -> np.uint64:
    """What a piece in its place adds to the id of a template."""
    x = (piece + np.uint64(place)) * GOLDEN
    x ^= x >> np.uint64(29)
    x *= PRIME_2
    return x ^ (x >> np.uint64(32))


@njit(cache=True, nogil=True)
def _hash(line: U8, pieces: I32, count: int, family: U64) -> np.uint64:
    """Id of a template, never 0: a sum of terms, so that one word can be taken out of it.

    Fills `family` with the ids it would have with each of its words but the first a value.
    """
    code = np.uint64(0)
    found = -1
    for i in range(count):
        kind = pieces[i, 2]
        piece = A_VALUE
        if kind != VALUE:
            piece = FNV
            # A run of marks counts as one of them: `....` grows and shrinks with its neighbour.
            stop = pieces[i, 0] + 1 if kind == MARK else pieces[i, 1]
            for at in range(pieces[i, 0], stop):
                piece = (piece ^ np.uint64(line[at])) * PRIME
        term = _term(piece, i)
        code += term
        if kind == WORD and _is(line, pieces[i, 0], _ALPHA):
            if 0 <= found < FAMILIES:
                family[found] = _term(A_VALUE, i) - term
            found += 1
    for i in range(FAMILIES):
        family[i] = family[i] + code if i < found else np.uint64(0)
    return code if code != 0 else np.uint64(1)


@njit(cache=True, nogil=True)
def number(line: U8, begin: int, end: int) -> float:
    """A decimal number with up to three letters of unit behind it; NaN if it is none."""
    at = begin
    sign = 1.0
    if at < end and (line[at] == 45 or line[at] == 43):
        sign = -1.0 if line[at] == 45 else 1.0
        at += 1
    value, digits, scale = 0.0, 0, 0.0
    while at < end and (_is(line, at, _DIGIT) or (line[at] == 46 and scale == 0.0)):
        if line[at] == 46:
            scale = 1.0
        else:
            value = value * 10.0 + (line[at] - 48)
            scale *= 10.0
            digits += 1
        at += 1
    if digits == 0 or end - at > 3:
        return np.nan
    while at < end:
        if not _is(line, at, _ALPHA):
            return np.nan
        at += 1
    return sign * (value / scale if scale > 0.0 else value)


@njit(cache=True, nogil=True)
def read(text: U8, begin: I64, size: I32, code: U64, family: U64, values: F64) -> None:
    """Templates and numbers of N lines.

    Args:
        text: what the lines lie in.
        begin: (N,) where each line begins.
        size: (N,) its bytes.
        code: out (N,), id of the template, never 0.
        family: out (N, FAMILIES), the ids it would have with one more word a value; 0: no more.
        values: out (N, VALUES), the first values of each line as numbers, NaN where there is none.
    """
    pieces = np.empty((TOKENS, 3), np.int32)
    for n in range(begin.shape[0]):
        line = text[begin[n] : begin[n] + size[n]]
        count = cut(line, 0, line.shape[0], pieces)
        code[n] = _hash(line, pieces, count, family[n])
        place = 0
        for i in range(count):
            if pieces[i, 2] == VALUE and place < VALUES:
                values[n, place] = number(line, pieces[i, 0], pieces[i, 1])
                place += 1
        values[n, place:] = np.nan


def read_lines(text: U8, begin: I64, size: I32) -> tuple[U64, U64, F64]:
    """`read` into arrays of its own: code, family, values."""
    count = begin.shape[0]
    code, family = np.empty(count, np.uint64), np.empty((count, FAMILIES), np.uint64)
    values = np.empty((count, VALUES))
    view = text.view()
    view.flags.writeable = False  # kernels are compiled for that kind alone
    read(view, begin, size, code, family, values)
    return code, family, values


def template_of(line: bytes) -> str:
    """The template of one line in words. For explanations; slow."""
    array = np.frombuffer(line, np.uint8)
    pieces = np.empty((TOKENS, 3), np.int32)
    count = cut(array, 0, array.shape[0], pieces)
    words = [
        "<*>" if kind == VALUE else line[begin:end].decode("utf-8", "replace")
        for begin, end, kind in pieces[:count].tolist()
    ]
    return " ".join(words)


def ids_of(lines: Sequence[bytes]) -> U64:
    """(N,) ids of the templates of lines by themselves."""
    size = np.array([len(line) for line in lines], np.int32)
    begin = np.cumsum(size, dtype=np.int64) - size
    return read_lines(np.frombuffer(b"".join(lines), np.uint8), begin, size)[0]
