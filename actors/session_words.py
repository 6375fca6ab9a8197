"""Strange sessions of an incident, as its alerts name them."""

from raywatch.actors.phrases import printable
from raywatch.actors.pseudonyms import WITHHELD
from raywatch.models.strange_sessions import Strange, Told

SHOWN = 3  # Names in the sentence: the alert has more.


def name_of(each: Strange) -> str:
    """The name of a session in an alert."""
    return each.session.decode("utf-8", "replace") or WITHHELD


def sentence(told: Told | None, state: str) -> str:
    """What follows the sentence of an alert; nothing where that one names the only session."""
    if told is None or told.total == 0 or (state == "open" and told.total == 1):
        return ""
    names = [printable(each.session) for each in told.named[:SHOWN] if each.session]
    rest = len(told.named) + told.more - len(names)
    named = f"{', '.join(names)} and {rest:,} more" if names and rest else ", ".join(names)
    if state == "resolved":
        late = f", the last of them {named}" if named else ""
        return f" Strange sessions: {told.total:,}{late}."
    named = named or (f"{rest:,}" if rest else "")
    return f" Strange sessions: {named}." if named else ""
