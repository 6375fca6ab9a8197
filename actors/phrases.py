"""Numbers, times and names as a sentence has them."""

import base64
from datetime import UTC, datetime

from raywatch.actors.grammar import TIME_MAX_MS

ODDS_MAX = 1e12  # Rarer than this is said as "less than": nobody has seen so many records.
KEY_SHOWN = 80  # Characters of a key in the sentence.


def short(value: float) -> str:
    """Four digits are what a tired reader compares; of thousands and millions there are more."""
    if 9_999.5 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value + 0.0:.4g}"  # -0.0 is 0


def odds(p: float) -> str:
    """A probability as odds, e.g. "about 1 in 40 million"."""
    if not p > 1.0 / ODDS_MAX:
        return "fewer than 1 in a trillion"
    one_in = float(f"{1.0 / p:.2g}")
    for size, name in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if one_in >= size:
            return f"about 1 in {one_in / size:.3g}{name}"
    return f"about 1 in {one_in:,.0f}"


def span_of(ms: int) -> str:
    """A length of time in its two largest units."""
    seconds = abs(ms) // 1000
    if seconds < 60:
        return f"{abs(ms) / 1000:.3g} s"
    for size, name, part, part_name in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            rest = seconds % size // part
            return (
                f"{seconds // size} {name} {rest} {part_name}"
                if rest
                else (f"{seconds // size} {name}")
            )
    raise AssertionError(ms)


def when(ms: int) -> str:
    """A time in UTC."""
    if not 0 <= ms <= TIME_MAX_MS:  # no record has such a time; a damaged state might
        return f"{ms} ms"
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def printable(key: bytes) -> str:
    """A key in a sentence: nothing in it may pass for a line or a colour of a terminal."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in key_text(key)[0])
    return text if len(text) <= KEY_SHOWN else f"{text[: KEY_SHOWN - 1]}…"


def key_text(key: bytes) -> tuple[str, str]:
    """A key as text, and its encoding where that is not UTF-8."""
    try:
        return key.decode(), ""
    except UnicodeDecodeError:
        return base64.b64encode(key).decode(), "base64"
