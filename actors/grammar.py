"""The tokens of JSON, and ISO 8601 times, read at an address: what scan.py is made of.

Every function takes the address of a byte and answers with the address behind what it read, or -1
where it read nothing valid or is not certain ("ask the full parser"). An address, and not an array
and an index: passing arrays between compiled functions counts references, which made the scanner
five times slower.

Bounds: text ends with a zero byte and ZEROS - 1 more bytes that may be read. No token of JSON
contains a zero byte, so every loop ends at the end of its record without looking for it. Times
have an end of their own.

Numbers: up to 18 digits; exact products and quotients where both operands are exact (Clinger 1990),
else the algorithm of Eisel and Lemire (Lemire 2021, "Number parsing at a gigabyte per second"),
for powers of ten within +-POWER_MAX.

Compiled callers are cached by the date of their own file, so a change here must show in scan.py:
GRAMMAR there names this file's hash, and a test holds it to that.
"""
# ruff: noqa: PLR0912 - grammars are ifs, and each ends in its own answer.

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

TIME_MAX_MS = 7_258_118_400_000  # 2200-01-01; what lies behind it is no time
DAY_MS = 86_400_000
NO_DATE = -(1 << 60)  # ms: far outside of all that is a date
DEPTH_MAX = 60  # levels of nesting that are followed: their kinds are bits of one integer
POWER_MAX = 64  # powers of ten that are tabulated to 128 bits
ZEROS = 8  # zero bytes behind a text: strings are read eight bytes at a time

QUOTE, BACKSLASH, COMMA, COLON = 34, 92, 44, 58
OPEN, CLOSE, OPEN_LIST, CLOSE_LIST = 123, 125, 91, 93
MINUS, PLUS, DOT, ZERO = 45, 43, 46, 48


def _powers() -> NDArray[np.uint64]:
    """(2 * POWER_MAX + 1, 2) leading 128 bits of each power of ten, rounded down: high, low."""
    rows: list[tuple[int, int]] = []
    for exponent in range(-POWER_MAX, POWER_MAX + 1):
        if exponent >= 0:
            power = 10**exponent
            shift = power.bit_length() - 128
            bits = power >> shift if shift > 0 else power << -shift
        else:
            divisor = 10**-exponent
            bits = (1 << (divisor.bit_length() + 127)) // divisor
        assert bits.bit_length() == 128, exponent
        rows.append((bits >> 64, bits & (2**64 - 1)))
    return np.array(rows, np.uint64)


_POWERS = _powers()
_TENS = np.array([float(10**n) for n in range(23)])  # exact: 5^22 < 2^53


def _load(bits: int) -> object:
    """A function for kernels that loads `bits` bits at an address, as an integer."""

    def load(typing: object, address: object) -> object:
        def build(context: object, builder: Any, signature: object, arguments: Any) -> object:
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            loaded = builder.load(pointer, align=1)
            return builder.zext(loaded, ir.IntType(64)) if bits < 64 else loaded

        return (types.int64 if bits < 64 else types.uint64)(types.int64), build

    return intrinsic(load)


byte_at = cast("Callable[[int], int]", _load(8))
word_at = cast("Callable[[int], np.uint64]", _load(64))


@njit(cache=True, nogil=True)
def _plain(word: np.uint64) -> bool:
    """Whether eight bytes may stand in a string as they are and are ASCII.

    A byte below n leaves its top bit set in byte - n (Mycroft 1987); so does one of 128 and more.
    """
    quote = (word ^ np.uint64(0x2222222222222222)) - np.uint64(0x0101010101010101)
    backslash = (word ^ np.uint64(0x5C5C5C5C5C5C5C5C)) - np.uint64(0x0101010101010101)
    control = word - np.uint64(0x2020202020202020)
    tops = (quote | backslash | control | word) & np.uint64(0x8080808080808080)
    return tops == np.uint64(0)


@njit(cache=True, nogil=True)
def space(p: int) -> int:
    """Position of the first byte that is not white space."""
    while byte_at(p) <= 32 and (
        byte_at(p) == 32 or byte_at(p) == 10 or byte_at(p) == 13 or byte_at(p) == 9
    ):
        p += 1
    return p


@njit(cache=True, nogil=True)
def _follows(byte: int) -> bool:
    """Whether a byte may follow the first one of a UTF-8 sequence."""
    return 0x80 <= byte <= 0xBF


@njit(cache=True, nogil=True)
def _utf8(p: int) -> int:
    """Position behind one sequence of two to four bytes (Unicode 15, table 3-7), or -1."""
    first, second = byte_at(p), byte_at(p + 1)
    if not _follows(second):
        return -1
    if 0xC2 <= first <= 0xDF:
        return p + 2
    if not _follows(byte_at(p + 2)):
        return -1
    if 0xE0 <= first <= 0xEF:
        overlong = first == 0xE0 and second < 0xA0
        surrogate = first == 0xED and second > 0x9F
        return -1 if overlong or surrogate else p + 3
    if not _follows(byte_at(p + 3)) or first < 0xF0 or first > 0xF4:
        return -1
    if (first == 0xF0 and second < 0x90) or (first == 0xF4 and second > 0x8F):
        return -1
    return p + 4


@njit(cache=True, nogil=True)
def _escape(p: int) -> int:
    """Position behind the escape at p, or -1; surrogates are left to the full parser."""
    kind = byte_at(p + 1)
    if kind in (34, 92, 47, 98, 102, 110, 114, 116):
        return p + 2
    if kind != 117:
        return -1
    code = 0
    for index in range(p + 2, p + 6):
        byte = byte_at(index)
        if 48 <= byte <= 57:
            code = code * 16 + byte - 48
        elif 97 <= (byte | 32) <= 102:
            code = code * 16 + (byte | 32) - 87
        else:
            return -1
    return -1 if 0xD800 <= code <= 0xDFFF else p + 6


@njit(cache=True, nogil=True)
def string(p: int) -> tuple[int, bool]:
    """Position of the quote that ends the string whose text begins at p, and "has escapes"."""
    escaped = False
    while True:
        while _plain(word_at(p)):
            p += 8
        while (
            byte_at(p) >= 32
            and byte_at(p) < 128
            and byte_at(p) != QUOTE
            and byte_at(p) != BACKSLASH
        ):
            p += 1
        byte = byte_at(p)
        if byte == QUOTE:
            return p, escaped
        if byte == BACKSLASH:
            p = _escape(p)
            escaped = True
        elif byte >= 0x80:
            p = _utf8(p)
        else:
            p = -1
        if p < 0:
            return -1, escaped


@njit(cache=True, nogil=True)
def _product(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """The 128 bits of a * b: high, low."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a1, a0, b1, b0 = a >> half, a & low, b >> half, b & low
    middle = a1 * b0 + ((a0 * b0) >> half)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> half) + (other >> half), a * b


@njit(cache=True, nogil=True)
def _rounded(mantissa: int, exponent: int) -> float:
    """The number mantissa * 10^exponent, correctly rounded, or -1 where 128 bits do not decide it.

    0 < mantissa < 2^63 and |exponent| <= POWER_MAX, so the result is a normal number.
    """
    one, nine, mask = np.uint64(1), np.uint64(9), np.uint64(0x1FF)
    man, zeros = np.uint64(mantissa), 0
    while man >> np.uint64(63) == np.uint64(0):
        man <<= one
        zeros += 1
    high, low = _product(man, _POWERS[exponent + POWER_MAX, 0])
    if high & mask == mask and low + man < man:
        more, least = _product(man, _POWERS[exponent + POWER_MAX, 1])
        merged = low + more
        if merged < low:
            high += one
        if high & mask == mask and merged + one == np.uint64(0) and least + man < man:
            return -1.0
        low = merged
    top = high >> np.uint64(63)
    bits = high >> (top + nine)
    if low == np.uint64(0) and high & mask == np.uint64(0) and bits & np.uint64(3) == one:
        return -1.0
    bits = (bits + (bits & one)) >> one  # at most 2^53: exact as a float, whatever carried
    # 217706 / 2^16 is log2(10); bits stands for a number in [2^52, 2^53].
    power = ((217706 * exponent) >> 16) + 64 - zeros - (1 - int(top)) - 52
    return math.ldexp(float(bits), int(power))


@njit(cache=True, nogil=True)
def _value(mantissa: int, exponent: int) -> float:
    """The number mantissa * 10^exponent, correctly rounded, or -1 where this file cannot say."""
    if mantissa <= 9007199254740992 and -22 <= exponent <= 22:
        if exponent < 0:
            return mantissa / _TENS[-exponent]
        return mantissa * _TENS[exponent]
    if mantissa == 0:
        return 0.0
    while exponent < 0 and mantissa % 10 == 0:  # 1234567890123456.0 is exact without its .0
        mantissa //= 10
        exponent += 1
    if mantissa <= 9007199254740992 and -22 <= exponent <= 0:
        return mantissa / _TENS[-exponent]
    if -POWER_MAX <= exponent <= POWER_MAX:
        return _rounded(mantissa, exponent)
    return -1.0


@njit(cache=True, nogil=True)
def number(p: int) -> tuple[int, float, bool]:
    """The number at p: position behind it (-1: none), value, whether the value is certain."""
    negative = byte_at(p) == MINUS
    if negative:
        p += 1
    mantissa, exponent, begin = 0, 0, p
    digit = byte_at(p) - ZERO
    while 0 <= digit <= 9:
        mantissa = mantissa * 10 + digit
        p += 1
        digit = byte_at(p) - ZERO
    digits = p - begin
    if digits == 0 or (digits > 1 and byte_at(begin) == ZERO):
        return -1, 0.0, False
    whole = True
    if byte_at(p) == DOT:
        whole = False
        p += 1
        point = p
        if byte_at(begin) == ZERO:  # zeros in front are not digits of the mantissa
            digits = 0
            while byte_at(p) == ZERO:
                p += 1
        zeros = p - point if byte_at(begin) == ZERO else 0
        digit = byte_at(p) - ZERO
        while 0 <= digit <= 9:
            mantissa = mantissa * 10 + digit
            p += 1
            digit = byte_at(p) - ZERO
        if p == point:
            return -1, 0.0, False
        exponent = point - p
        digits += p - point - zeros
    if byte_at(p) | 32 == 101:
        whole = False
        p, power = _exponent(p + 1)
        if p < 0:
            return -1, 0.0, False
        exponent += power
    if digits > 18:
        return p, 0.0, False
    value = _value(mantissa, exponent)
    if value < 0.0:
        return p, 0.0, False
    if negative and not (whole and mantissa == 0):  # -0 is the integer 0, -0.0 is not
        value = -value
    return p, value, True


@njit(cache=True, nogil=True)
def _exponent(p: int) -> tuple[int, int]:
    """The exponent whose sign or first digit is at p: position behind it (-1: none), and it."""
    negative = byte_at(p) == MINUS
    if negative or byte_at(p) == PLUS:
        p += 1
    begin, power = p, 0
    digit = byte_at(p) - ZERO
    while 0 <= digit <= 9:
        power = min(power * 10 + digit, 1_000_000)
        p += 1
        digit = byte_at(p) - ZERO
    return (-1 if p == begin else p), (-power if negative else power)


@njit(cache=True, nogil=True)
def null(p: int) -> bool:
    """Whether the literal `null` is at p."""
    return (
        byte_at(p) == 110
        and byte_at(p + 1) == 117
        and byte_at(p + 2) == 108
        and byte_at(p + 3) == 108
    )


@njit(cache=True, nogil=True)
def scalar(p: int) -> int:
    """Position behind the string, number or literal at p, or -1."""
    byte = byte_at(p)
    if byte == QUOTE:
        end, _ = string(p + 1)
        return -1 if end < 0 else end + 1
    if byte == 110:
        return p + 4 if null(p) else -1
    if byte == 116:
        true = byte_at(p + 1) == 114 and byte_at(p + 2) == 117 and byte_at(p + 3) == 101
        return p + 4 if true else -1
    if byte == 102:
        false = byte_at(p + 1) == 97 and byte_at(p + 2) == 108 and byte_at(p + 3) == 115
        return p + 5 if false and byte_at(p + 4) == 101 else -1
    end, _, _ = number(p)
    return end


@njit(cache=True, nogil=True)
def _member(p: int) -> int:
    """Position of the value that the name at p belongs to, or -1."""
    if byte_at(p) != QUOTE:
        return -1
    end, _ = string(p + 1)
    if end < 0:
        return -1
    p = space(end + 1)
    return space(p + 1) if byte_at(p) == COLON else -1


@njit(cache=True, nogil=True)
def nested(p: int) -> int:
    """Position behind the object or list at p, or -1 (also where it is deeper than DEPTH_MAX)."""
    kinds, depth = 0, 0  # the lowest bit of `kinds` is 1 inside an object
    while True:
        byte = byte_at(p)
        if byte in (OPEN, OPEN_LIST):
            if depth == DEPTH_MAX:
                return -1
            kinds = kinds * 2 + (1 if byte == OPEN else 0)
            depth += 1
            p = space(p + 1)
            if byte_at(p) != (CLOSE if byte == OPEN else CLOSE_LIST):
                if byte == OPEN:
                    p = _member(p)
                    if p < 0:
                        return -1
                continue
        else:
            p = scalar(p)
            if p < 0:
                return -1
            p = space(p)
        while byte_at(p) == (CLOSE if kinds & 1 else CLOSE_LIST):
            kinds >>= 1
            depth -= 1
            if depth == 0:
                return p + 1
            p = space(p + 1)
        if byte_at(p) != COMMA:
            return -1
        p = space(p + 1)
        if kinds & 1:
            p = _member(p)
            if p < 0:
                return -1


@njit(cache=True, nogil=True)
def decimal(p: int, end: int, count: int) -> int:
    """The number that `count` digits at p make, or -1."""
    if p + count > end:
        return -1
    number = 0
    for index in range(p, p + count):
        digit = byte_at(index) - ZERO
        if digit < 0 or digit > 9:
            return -1
        number = number * 10 + digit
    return number


@njit(cache=True, nogil=True)
def _zone(p: int, end: int) -> int:
    """Minutes that the zone at p (`Z`, `+hh`, `+hh:mm`, `+hhmm`, none: UTC) is ahead, or 9999."""
    if p == end or (p + 1 == end and byte_at(p) | 32 == 122):
        return 0
    if byte_at(p) not in (PLUS, MINUS):
        return 9999
    sign = 1 if byte_at(p) == PLUS else -1
    hours, minutes = decimal(p + 1, end, 2), 0
    p += 3
    if p < end:
        p += 1 if byte_at(p) == COLON else 0
        minutes = decimal(p, end, 2)
        p += 2
    valid = p == end and 0 <= hours <= 23 and 0 <= minutes <= 59
    return sign * (hours * 60 + minutes) if valid else 9999


@njit(cache=True, nogil=True)
def clock_ms(p: int, end: int) -> tuple[int, int]:
    """The time of day `hh:mm[:ss[.fff]]` at p: position behind it, milliseconds (-1: none).

    Second 60, a leap second, is the first of the next minute, as in POSIX.
    """
    hour, minute = decimal(p, end, 2), decimal(p + 3, end, 2)
    if not (0 <= hour <= 23 and 0 <= minute <= 59) or byte_at(p + 2) != COLON:
        return p, -1
    p += 5
    time_ms = (hour * 60 + minute) * 60_000
    if p == end or byte_at(p) != COLON:
        return p, time_ms
    second = decimal(p + 1, end, 2)
    if not 0 <= second <= 60:
        return p, -1
    p += 3
    time_ms += second * 1_000
    if p < end and byte_at(p) in (DOT, COMMA):
        begin, unit = p + 1, 100
        p += 1
        while p < end and 48 <= byte_at(p) <= 57:
            time_ms += (byte_at(p) - ZERO) * unit
            unit //= 10
            p += 1
        if p == begin:
            return p, -1
    return p, time_ms


@njit(cache=True, nogil=True)
def date_ms(year: int, month: int, day: int) -> int:
    """Unix milliseconds of the midnight that begins a civil date, or NO_DATE where there is none.

    Days from the date: Hinnant, "chrono-compatible low-level date algorithms".
    """
    if year < 0 or not 1 <= month <= 12 or day < 1:
        return NO_DATE
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    short = month in (4, 6, 9, 11)
    if day > (28 + (1 if leap else 0) if month == 2 else (30 if short else 31)):
        return NO_DATE
    shifted = year - (1 if month <= 2 else 0)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    era = shifted // 400
    of_era = (shifted - era * 400) * 365 + (shifted % 400) // 4 - (shifted % 400) // 100 + of_year
    return (era * 146_097 + of_era - 719_468) * DAY_MS


@njit(cache=True, nogil=True)
def iso_ms(begin: int, end: int) -> int:
    """Unix milliseconds of the ISO 8601 text in [begin, end), or -1 (not 1970..2200).

    A date, then `T` or a space and a time of day, then a zone; without a zone it is UTC. Digits
    beyond milliseconds are cut off.
    """
    if end - begin < 10 or byte_at(begin + 4) != MINUS or byte_at(begin + 7) != MINUS:
        return -1
    year, month = decimal(begin, end, 4), decimal(begin + 5, end, 2)
    time_ms = date_ms(year, month, decimal(begin + 8, end, 2))
    if time_ms == NO_DATE:
        return -1
    p = begin + 10
    if p < end:
        if byte_at(p) != 32 and byte_at(p) | 32 != 116:
            return -1
        p, of_day = clock_ms(p + 1, end)
        ahead = _zone(p, end)
        if of_day < 0 or ahead == 9999:
            return -1
        time_ms += of_day - ahead * 60_000
    return time_ms if 0 <= time_ms <= TIME_MAX_MS else -1


def iso_ms_of(text: str) -> int:
    """`iso_ms` of a string; for the few that do not come as bytes of a batch."""
    if not text.isascii():
        return -1
    raw = np.frombuffer(text.encode() + bytes(ZEROS), np.uint8)
    return int(iso_ms(raw.ctypes.data, raw.ctypes.data + len(text)))
