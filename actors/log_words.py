"""What an alert says about a log line: the line, its template, and what was usual instead.

The state of a key holds numbers and no texts, but for the beginnings of a few lines; so a kind of
line is named by a line that showed it. A line that is withheld is not named, nor is any number out
of it.
"""

import math

from raywatch.actors.alerts import Line
from raywatch.actors.phrases import odds, printable, short, span_of
from raywatch.models import log_lines, log_sessions
from raywatch.models.log_template import template_of
from raywatch.models.logs import Seen
from raywatch.models.scorer import F64, U8

TEXT_MAX = 400  # bytes of a line, and of a template, in an alert
SESSION_MAX = 120  # and of the id of a session
BAND = 3.0  # deviations
SECOND_MS = 1_000
NOTEWORTHY = 1.0  # -log10 p from which a component is spoken of


def text_of(raw: bytes, most: int = TEXT_MAX) -> str:
    """A text in an alert."""
    if len(raw) <= most:
        return raw.decode("utf-8", "replace")
    return raw[:most].decode("utf-8", "ignore") + "…"


def said(array: U8) -> bytes:
    """A text that is kept with zeros behind it; half a character at its end is left out."""
    return array.tobytes().rstrip(b"\0").decode("utf-8", "ignore").encode()


class Words:
    """Speaks of the records of one batch."""

    def __init__(self, seen: Seen, names: tuple[str, ...], *, withheld: bool) -> None:
        """`withheld`: lines are."""
        self._seen, self._names, self._withheld = seen, names, withheld

    def reasons(self, at: int) -> tuple[tuple[str, float], ...]:
        """Components that call a record rare, rarest first, and -log10 p."""
        pairs = zip(self._names, self._seen.said.said[at].tolist(), strict=False)
        loud = [(name, rare) for name, rare in pairs if rare >= NOTEWORTHY]
        return tuple(sorted(loud, key=lambda pair: -pair[1]))

    def line(self, at: int, raw: bytes, session: str, *, fired: str) -> Line:
        """What is shown of a record whose line and session these are.

        Where an ended session `fired`, it is that session and the kind of line that is strangest.
        Where nothing did (""), the incident ends, and nothing is told of what was usual.
        """
        names = [fired, *(name for name, _ in self.reasons(at) if name != fired)] if fired else []
        expected = tuple((name, self._expected(name, at)) for name in names)
        if fired == "session":
            end = int(self._seen.said.ended[at])
            raw = said(self._seen.ends.head[end])
        if self._withheld:
            return Line(None, None, session, expected)
        return Line(text_of(raw), text_of(template_of(raw).encode()), session, expected)

    def session(self, at: int) -> str:
        """The session whose end record `at` noticed and that is strangest; "": not to be shown."""
        end = int(self._seen.said.ended[at])
        return said(self._seen.ends.session_id[end]).decode("utf-8", "replace")

    def _expected(self, component: str, at: int) -> str:
        why = self._seen.why[at]
        match component:
            case "rare":
                return _rare(why)
            case "step":
                return self._step(why, at)
            case "pause":
                return _pause(why)
            case "rush":
                return _rush(why)
            case "number":
                return _number(why, withheld=self._withheld)
            case "early":
                share = 10.0 ** -float(self._seen.early[at])
                return f"{odds(share)} past sessions had so many lines of this kind"
            case _:
                return self._session(at)

    def _step(self, why: F64, at: int) -> str:
        prior = said(self._seen.said.prior[at])
        named = f" `{printable(template_of(prior).encode())}`" if prior else " the line before"
        often, of = why[log_lines.FOLLOWS], why[log_lines.PRIOR]
        if often < 0.5:
            return f"such a line never came behind{named}"
        return f"{short(round(often))} of {short(max(round(of), 1))} lines behind{named} were such"

    def _session(self, at: int) -> str:
        end = int(self._seen.said.ended[at])
        row = self._seen.ends.row[end].tolist()
        head = said(self._seen.ends.head[end])
        kind = (
            f"like `{printable(template_of(head).encode())}`" if head else "of its strangest kind"
        )
        low, high = (row[each] for each in (log_sessions.LOW, log_sessions.HIGH))
        usual = _counts(low, high) if low >= 0 else "unknown"
        return (
            f"of {row[log_sessions.RECORDS]} lines {row[log_sessions.COUNT]} {kind}, "
            f"usually {usual}"
        )


def _counts(low: int, high: int) -> str:
    """Counts from step `low` to step `high`; see log_sessions.STEPS."""
    steps = log_sessions.STEPS
    first = 0 if low == 0 else steps[low - 1]
    if high >= len(steps):
        return f"{first} or more"
    last = steps[high] - 1
    return f"{first}" if last == first else f"{first} to {last}"


def _rare(why: F64) -> str:
    if why[log_lines.SHARE] > 0.0:
        return f"{odds(float(why[log_lines.SHARE]))} lines before it were such"
    span = int(why[log_lines.SPAN])
    return f"never seen here before; three new kinds of line came in the last {span:,} lines"


def _pause(why: F64) -> str:
    what = "such a line" if why[log_lines.WAIT_OWN] else "any line"
    wait, mean = round(why[log_lines.WAIT]), round(why[log_lines.WAIT_USUAL])
    # Times in whole seconds put many waits at 0: of these no mean is true to the millisecond.
    usual = "less than a second" if mean < SECOND_MS else span_of(mean)
    return f"{span_of(wait)} without {what}, usually {usual}"


def _rush(why: F64) -> str:
    now, usual = short(round(why[log_lines.LINES])), short(round(why[log_lines.LINES_USUAL], 1))
    return f"{now} such lines within 10 s, usually {usual}"


def _number(why: F64, *, withheld: bool) -> str:
    place = int(why[log_lines.PLACE])
    if withheld or place < 0:
        return "one of its numbers is not as usual"
    mean, reach = why[log_lines.VALUE_MEAN], BAND * why[log_lines.VALUE_DEVIATION]
    low, high = (short(_unlog(each)) for each in (mean - reach, mean + reach))
    return f"value {place + 1} is {short(why[log_lines.VALUE])}, usually {low} to {high}"


def _unlog(value: float) -> float:
    """The number of a signed log."""
    return math.copysign(math.expm1(min(abs(value), 700.0)), value)
