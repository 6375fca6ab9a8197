"""When was a line of a file written? Read from the header that the line begins with.

A header is a form (FORMS) in one place: in the line's first word, or in a later one (`PLACES`),
where `<34>`, `ts=`, a quote and a bracket may stand before it. A file has one of both: the first
place that held a time in HELD_MIN of the file's first lines. Elsewhere nothing is looked for, so
that no number or date of a message is taken for the time of its line.

A line that holds none, the continuation of another, has the time of the line before. Where headers
do not say so much, a line counts as LINE_MS, from 1970 on.

Without a zone a time is UTC. Forms without a year begin in 1970. Where the month goes back by half
a year or more, another year has begun; December right behind January is a late line of the year
before. A year has 365 days, and one more from its 29th of February on, if a line has that date: so
gaps are right whichever years they were. All of it follows from the lines alone, and neither the
file's own date nor any clock is looked at.

Compiled of grammar.py, as scan.py is: GRAMMAR names that file's hash for the same reason.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from raywatch.actors.grammar import (
    COLON,
    COMMA,
    DAY_MS,
    DOT,
    MINUS,
    NO_DATE,
    OPEN_LIST,
    PLUS,
    QUOTE,
    TIME_MAX_MS,
    ZERO,
    byte_at,
    clock_ms,
    date_ms,
    decimal,
)
from raywatch.models.scorer import I64, U8

GRAMMAR = "a7e098db0fab"  # SHA-256 of grammar.py, its beginning

LINE_MS = 1_000  # from one line to the next where they do not say
HELD_MIN = 0.9  # share of the first lines that must hold a time, or none has one of its own
HEAD = 512  # bytes of a line in which an access log's time is looked for
EPOCH_MIN_S, EPOCH_MAX_S = 631_152_000, 4_102_444_800  # 1990, 2100: other numbers are no times

FORMS = (
    "ISO 8601",  # 2026-11-30T18:00:01.5Z, 2026/11/30 18:00:01,500 +0100
    "ctime",  # Mon Nov 30 18:00:01 2026
    "access log",  # [30/Nov/2026:18:00:01 +0000], the first such bracket
    "epoch",  # 1796061601, 1796061601.5, 1796061601500
    "yy/mm/dd",  # 26/11/30 18:00:01
    "yymmdd",  # 261130 180001
    "RFC 3164",  # Nov 30 18:00:01
    "klog",  # I1130 18:00:01.500000
    "since boot",  # [   12.345678]
)
ISO, CTIME, ACCESS, EPOCH, SHORT, DIGITS, BSD, KLOG, BOOT = range(len(FORMS))
# Words of a line in which each form may stand: the less it takes to look like one, the fewer.
PLACES = (4, 2, 1, 2, 2, 1, 2, 1, 1)

NONE = -1  # the line holds no time
LAST, YEAR, LEAP, MONTH, ROW = range(5)  # what is known of the lines before, see `_follow`
IN_YEAR = 64 * DAY_MS  # a time without a year: month * IN_YEAR + day * DAY_MS + time of day

_BLANK, _TAB, _SLASH, _LESS, _MORE, _EQUALS = 32, 9, 47, 60, 62, 61
_MONTHS = np.array(
    [
        int.from_bytes(name, "big")
        for name in b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
    ]
)
_DAYS = np.cumsum([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])  # before each month; 12: all


@njit(cache=True, nogil=True)
def _letter(byte: int) -> bool:
    return 97 <= (byte | 32) <= 122


@njit(cache=True, nogil=True)
def _over(p: int, end: int) -> bool:
    """Whether a time may end at p: no letter and no digit follows."""
    return p >= end or not (_letter(byte_at(p)) or 0 <= byte_at(p) - ZERO <= 9)


@njit(cache=True, nogil=True)
def _known(time_ms: int) -> int:
    return time_ms if 0 <= time_ms <= TIME_MAX_MS else NONE


@njit(cache=True, nogil=True)
def _month(p: int) -> int:
    """Month with the English name of three letters at p, 1 to 12, or 0."""
    name = (byte_at(p) << 16) | (byte_at(p + 1) << 8) | byte_at(p + 2)
    for month in range(12):
        if _MONTHS[month] == name:
            return month + 1
    return 0


@njit(cache=True, nogil=True)
def _clock(p: int, end: int) -> tuple[int, int]:
    """`clock_ms` with seconds; a `.` or `,` that no digit follows is not of the time."""
    if end - p < 8:
        return p, NONE
    fraction = end - p > 9 and 0 <= byte_at(p + 9) - ZERO <= 9
    at, time_ms = clock_ms(p, end if fraction else p + 8)
    return at, time_ms if at >= p + 8 else NONE


@njit(cache=True, nogil=True)
def _zone(p: int, end: int) -> tuple[int, int]:
    """Position behind the zone at p, and its minutes ahead of UTC; p and 0 where there is none.

    `Z`, `+hh`, `+hhmm` or `+hh:mm`; of these the last two behind a blank as well, where they are
    a zone that exists: quarters of an hour, at most 14 hours.
    """
    if p >= end:
        return p, 0
    if byte_at(p) | 32 == 122:
        return p + 1, 0
    apart = byte_at(p) == _BLANK
    at = p + 1 if apart else p
    if byte_at(at) not in (PLUS, MINUS):
        return p, 0
    sign = 1 if byte_at(at) == PLUS else -1
    hours = decimal(at + 1, end, 2)
    if not 0 <= hours <= (14 if apart else 23):
        return p, 0
    last = at + (4 if byte_at(at + 3) == COLON else 3)
    minutes = decimal(last, end, 2)
    if 0 <= minutes <= 59 and _over(last + 2, end) and (minutes % 15 == 0 or not apart):
        return last + 2, sign * (hours * 60 + minutes)
    return (p, 0) if apart else (at + 3, sign * hours * 60)


@njit(cache=True, nogil=True)
def _zoned(p: int, end: int, day_ms: int) -> int:
    """The time of day at p, and its zone, on a day that begins at `day_ms` if that is one."""
    at, time_ms = _clock(p, end)
    if day_ms == NO_DATE or time_ms < 0:
        return NONE
    at, ahead = _zone(at, end)
    return _known(day_ms + time_ms - ahead * 60_000) if _over(at, end) else NONE


@njit(cache=True, nogil=True)
def _dated(p: int, end: int, width: int, mark: int) -> tuple[int, int]:
    """The date `year mark month mark day` at p, its year of 4 or 2 digits: position, midnight."""
    if byte_at(p + width) != mark or byte_at(p + width + 3) != mark:
        return p, NO_DATE
    year = decimal(p, end, width)
    if width == 2 and year >= 0:
        year += 1900 if year >= 69 else 2000  # as in POSIX
    return p + width + 6, date_ms(
        year, decimal(p + width + 1, end, 2), decimal(p + width + 4, end, 2)
    )


@njit(cache=True, nogil=True)
def _iso(p: int, end: int) -> int:
    at, day_ms = _dated(p, end, 4, _SLASH if byte_at(p + 4) == _SLASH else MINUS)
    if day_ms == NO_DATE or (byte_at(at) != _BLANK and byte_at(at) | 32 != 116):
        return NONE
    return _zoned(at + 1, end, day_ms)


@njit(cache=True, nogil=True)
def _short(p: int, end: int) -> int:
    at, day_ms = _dated(p, end, 2, _SLASH)
    return _zoned(at + 1, end, day_ms) if byte_at(at) == _BLANK else NONE


@njit(cache=True, nogil=True)
def _day(p: int, end: int) -> tuple[int, int]:
    """`Nov 30` or `Nov  3` or `Nov 3` and a blank at p: position behind it, month * 64 + day."""
    month = _month(p)
    if month == 0 or byte_at(p + 3) != _BLANK:
        return p, NONE
    p += 5 if byte_at(p + 4) == _BLANK else 4
    width = 1 if byte_at(p + 1) == _BLANK else 2
    day = decimal(p, end, width)
    if byte_at(p + width) != _BLANK or date_ms(2000, month, day) == NO_DATE:
        return p, NONE
    return p + width + 1, month * 64 + day


@njit(cache=True, nogil=True)
def _bsd(p: int, end: int) -> int:
    p, day = _day(p, end)
    at, time_ms = _clock(p, end)
    return day * DAY_MS + time_ms if day >= 0 and time_ms >= 0 and _over(at, end) else NONE


@njit(cache=True, nogil=True)
def _ctime(p: int, end: int) -> int:
    if byte_at(p + 3) != _BLANK or not _letter(byte_at(p)):
        return NONE
    p, day = _day(p + 4, end)
    at, time_ms = _clock(p, end)
    if day < 0 or time_ms < 0 or byte_at(at) != _BLANK or not _over(at + 5, end):
        return NONE
    day_ms = date_ms(decimal(at + 1, end, 4), day // 64, day % 64)
    return NONE if day_ms == NO_DATE else _known(day_ms + time_ms)


@njit(cache=True, nogil=True)
def _access(p: int, end: int) -> int:
    stop = min(end, p + HEAD)
    while p < stop:
        if byte_at(p) == OPEN_LIST and byte_at(p + 3) == _SLASH and byte_at(p + 7) == _SLASH:
            day_ms = date_ms(decimal(p + 8, end, 4), _month(p + 4), decimal(p + 1, end, 2))
            if byte_at(p + 12) == COLON:
                return _zoned(p + 13, end, day_ms)
        p += 1
    return NONE


@njit(cache=True, nogil=True)
def _epoch(p: int, end: int) -> int:
    begin = p
    while p < end and p - begin < 14 and 0 <= byte_at(p) - ZERO <= 9:
        p += 1
    count = p - begin
    if count in (12, 13):
        time_ms = decimal(begin, end, count)
    elif count in (9, 10):
        time_ms, unit = decimal(begin, end, count) * 1_000, 100
        if byte_at(p) in (DOT, COMMA):
            p += 1
            while p < end and 0 <= byte_at(p) - ZERO <= 9:
                time_ms += (byte_at(p) - ZERO) * unit
                unit //= 10
                p += 1
    else:
        return NONE
    real = EPOCH_MIN_S * 1_000 <= time_ms < EPOCH_MAX_S * 1_000
    return time_ms if real and _over(p, end) else NONE


@njit(cache=True, nogil=True)
def _digits(p: int, end: int) -> int:
    date, clock = decimal(p, end, 6), decimal(p + 7, end, 6)
    if date < 0 or clock < 0 or byte_at(p + 6) != _BLANK or not _over(p + 13, end):
        return NONE
    year = date // 10_000 + (1900 if date >= 690_000 else 2000)
    day_ms = date_ms(year, date // 100 % 100, date % 100)
    hour, minute, second = clock // 10_000, clock // 100 % 100, clock % 100
    if day_ms == NO_DATE or hour > 23 or minute > 59 or second > 60:
        return NONE
    return _known(day_ms + (hour * 60 + minute) * 60_000 + second * 1_000)


@njit(cache=True, nogil=True)
def _klog(p: int, end: int) -> int:
    level = byte_at(p)
    if level not in (68, 69, 70, 73, 87) or byte_at(p + 5) != _BLANK:  # D, E, F, I, W
        return NONE
    month, day = decimal(p + 1, end, 2), decimal(p + 3, end, 2)
    at, time_ms = _clock(p + 6, end)
    if date_ms(2000, month, day) == NO_DATE or time_ms < 0 or not _over(at, end):
        return NONE
    return month * IN_YEAR + day * DAY_MS + time_ms


@njit(cache=True, nogil=True)
def _boot(p: int, end: int) -> int:
    if byte_at(p) != OPEN_LIST:
        return NONE
    p += 1
    while p < end and byte_at(p) == _BLANK:
        p += 1
    begin = p
    while p < end and p - begin < 9 and 0 <= byte_at(p) - ZERO <= 9:
        p += 1
    seconds, micros = decimal(begin, end, p - begin), decimal(p + 1, end, 6)
    whole = 0 < p - begin < 9 and byte_at(p) == DOT and micros >= 0
    return seconds * 1_000 + micros // 1_000 if whole and byte_at(p + 7) == 93 else NONE


@njit(cache=True, nogil=True)
def _word(p: int, end: int, place: int) -> int:
    """Position where a time stands in word number `place`, what may stand before it passed over."""
    for _ in range(place):
        while p < end and byte_at(p) != _BLANK:
            p += 1
        while p < end and byte_at(p) == _BLANK:
            p += 1
    at = p
    while at < end and _letter(byte_at(at)):
        at += 1
    if at > p and byte_at(at) == _EQUALS:
        p = at + 1
    return p + 1 if byte_at(p) in (OPEN_LIST, QUOTE) else p


@njit(cache=True, nogil=True)
def _time(form: int, p: int, end: int, place: int) -> int:
    """Time of the line [p, end), by one form in one place; see `read`."""
    if byte_at(p) == _LESS:  # a priority of syslog, `<34>`
        at = p + 1
        while at < end and at - p < 4 and 0 <= byte_at(at) - ZERO <= 9:
            at += 1
        p = at + 1 if byte_at(at) == _MORE else p
    if form == ACCESS:
        return _access(p, end)
    if form == BOOT:
        return _boot(p, end)
    p = _word(p, end, place)
    if form == ISO:
        return _iso(p, end)
    if form == CTIME:
        return _ctime(p, end)
    if form == EPOCH:
        return _epoch(p, end)
    if form == SHORT:
        return _short(p, end)
    if form == DIGITS:
        return _digits(p, end)
    return _bsd(p, end) if form == BSD else _klog(p, end)


@njit(cache=True, nogil=True)
def read(base: int, begin: I64, size: I64, form: int, place: int, out: I64) -> None:
    """What each of N lines holds; line i has size[i] bytes at address base + begin[i].

    A line that begins with a blank continues another and holds nothing.

    Args:
        base: of a text that ends as grammar.py wants it.
        begin: (N,)
        size: (N,)
        form: number of it in FORMS.
        place: number of the word it stands in.
        out: (N,) Unix ms; in BSD and KLOG month, day and ms (IN_YEAR); NONE where there is none.
    """
    for n in range(begin.shape[0]):
        p = base + begin[n]
        held = size[n] > 0 and byte_at(p) != _BLANK and byte_at(p) != _TAB
        out[n] = _time(form, p, p + size[n], place) if held else NONE


@njit(cache=True, nogil=True)
def follow(held: I64, yearless: bool, state: I64) -> None:
    """Make times of what N lines hold, in their order; what they do not say is taken from before.

    Args:
        held: (N,) see `read`; out: Unix ms, from 1970 on where there are no years.
        yearless: whether they are times without a year.
        state: LAST time, days before this YEAR, whether it has a LEAP day, and its latest MONTH.
    """
    for n in range(held.shape[0]):
        if held[n] == NONE:
            held[n] = state[LAST]
            continue
        if yearless:
            month, rest = held[n] // IN_YEAR, held[n] % IN_YEAR
            behind = state[MONTH] - month
            late = behind == -11 and state[MONTH] > 0 and state[YEAR] > 0
            if behind >= 6:
                state[YEAR] += 365 + state[LEAP]
                state[LEAP] = state[MONTH] = 0
            if late:
                days = state[YEAR] - 31
            else:
                state[MONTH] = max(state[MONTH], month)
                if month == 2 and rest >= 29 * DAY_MS:
                    state[LEAP] = 1
                days = state[YEAR] + _DAYS[month - 1] + (state[LEAP] if month > 2 else 0)
            held[n] = (days - 1) * DAY_MS + rest
        state[LAST] = held[n]


@dataclass(frozen=True, slots=True)
class Held:
    """What the first lines of a file say of time."""

    form: str  # of FORMS; "": too few hold a time, a line counts as LINE_MS
    share: float  # of those lines that hold a time, in the best form and place
    lines: int  # looked at, without those that continue others


class LineClock:
    """Reads the times of a file's lines, which come in their order, batch after batch."""

    def __init__(self, text: U8, begin: I64, size: I64) -> None:
        """By the first lines of the file; `text` ends as grammar.py wants it, others likewise."""
        self._state = np.zeros(ROW + 1, np.int64)
        first = text[begin]
        heads = (size > 0) & (first != _BLANK) & (first != _TAB)
        lines, best = int(heads.sum()), 0
        self._form = self._place = -1
        order = [(place, form) for form, many in enumerate(PLACES) for place in range(many)]
        for place, form in sorted(order):
            out = _held(text, begin, size, form, place)
            count = int((out != NONE).sum())
            best = max(best, count)
            if count > 0 and count >= HELD_MIN * lines:
                self._form, self._place = form, place
                # Lines before the first that holds a time have its time.
                first_held = out[out != NONE][:1]
                follow(first_held, self._yearless, self._state.copy())
                self._state[LAST] = first_held[0]
                break
        form = FORMS[self._form] if self._form >= 0 else ""
        self.held = Held(form, best / lines if lines else 0.0, lines)

    @property
    def _yearless(self) -> bool:
        return self._form in (BSD, KLOG)

    def times(self, text: U8, begin: I64, size: I64) -> I64:
        """(N,) Unix ms of the next N lines."""
        if self._form < 0:
            row = int(self._state[ROW])
            self._state[ROW] += begin.shape[0]
            return np.arange(row, row + begin.shape[0]) * LINE_MS
        out = _held(text, begin, size, self._form, self._place)
        follow(out, self._yearless, self._state)
        return out


def _held(text: U8, begin: I64, size: I64, form: int, place: int) -> I64:
    out = np.empty(begin.shape[0], np.int64)
    read(text.ctypes.data, begin, size, form, place, out)
    return out


def warm_line_times() -> None:
    """Compile this file's kernels."""
    text = np.frombuffer(b"Nov 30 18:00:01" + bytes(8), np.uint8)
    at, size = np.zeros(1, np.int64), np.array([15])
    LineClock(text, at, size).times(text, at, size)
