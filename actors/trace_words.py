"""What an alert says about a call: its edge by name, and what was usual there instead."""

import math
from collections.abc import Sequence

from raywatch.actors.alerts import Edge
from raywatch.actors.phrases import odds, printable, short
from raywatch.models import trace_edges as edges
from raywatch.models.scorer import F64

TEXT_MAX = 120  # bytes of a name in an alert
BAND = 2.0  # deviations of the log duration: 19 of 20 are within, were they Gaussian
NOTEWORTHY = 1.0  # -log10 p from which a component is spoken of
CALL, RECENT, FAILED = range(3)  # columns of an alert, before the names


def reasons(said: F64) -> tuple[tuple[str, float], ...]:
    """Components that call a record rare, rarest first, and -log10 p. `said`: (4,)."""
    loud = [(n, r) for n, r in zip(edges.CHANNELS, said.tolist(), strict=True) if r >= NOTEWORTHY]
    return tuple(sorted(loud, key=lambda pair: -pair[1]))


def numbers(why: F64, duration: float) -> tuple[list[float], list[float], list[float]]:
    """Observed, expected and spread of CALL, RECENT and FAILED; NaN where unknown.

    Durations are multiplied by chance, not added to: what is expected of them is the middle of
    their band, so that expected - spread is where it begins and expected + spread where it ends.
    """
    low, high = band(why)
    middle, reach = (low + high) / 2.0, (high - low) / 2.0
    known = why[edges.KNOWN] > 0.0
    recent = _exp(why[edges.RECENT]) if known else math.nan
    share = float(why[edges.FAILURES] / max(why[edges.OF_CALLS], 1.0))
    usual = float(why[edges.RATE_USUAL])
    return [duration, recent, share], [middle, middle, usual], [reach, reach, math.nan]


def band(why: F64) -> tuple[float, float]:
    """Where the durations of the edge usually lie; NaN where that is not known."""
    if not why[edges.KNOWN] > 0.0:
        return math.nan, math.nan
    mean, reach = float(why[edges.USUAL]), BAND * float(why[edges.DEVIATION])
    return _exp(mean - reach), _exp(mean + reach)


def _exp(value: float) -> float:
    """The number of a logarithm."""
    return math.exp(min(float(value), 700.0))


def edge_of(
    why: F64, said: F64, duration: float, names: Sequence[tuple[str, str]], fired: str
) -> Edge:
    """What is shown of a call.

    Args:
        why: (WHY,) see trace_edges.py.
        said: (4,) -log10 p of each component.
        duration: of the call.
        names: fields that make the edge, and what they were.
        fired: component that says most.
    """
    name = ", ".join(f"{field} {printable(text.encode()) or '(none)'}" for field, text in names)
    told = [fired, *(n for n, _ in reasons(said) if n != fired)]
    return Edge(name, tuple((each, _expected(each, why, duration)) for each in told))


def _expected(component: str, why: F64, duration: float) -> str:
    low, high = (short(each) for each in band(why))
    match component:
        case "slow":
            return f"this call took {short(duration)}, usually {low} to {high}"
        case "slower":
            recent, usual = (_exp(why[each]) for each in (edges.RECENT, edges.USUAL))
            # Each call counts at most so much: what they took together is more, if anything.
            return f"the last calls took about {short(recent)} or more, usually {short(usual)}"
        case "errors":
            failures, calls = round(why[edges.FAILURES]), round(why[edges.OF_CALLS])
            return f"{failures} of the last {calls} calls failed, {_of(why[edges.RATE_USUAL])}"
        case _:
            if why[edges.SHARE] > 0.0:
                return f"{odds(float(why[edges.SHARE]))} calls before it were such"
            span = int(why[edges.SPAN])
            return f"never seen here before; three new edges came in the last {span:,} calls"


def _of(share: float) -> str:
    """A usual share of failures."""
    return f"usually {odds(share).removeprefix('about ')}"
