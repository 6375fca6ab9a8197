"""What does the decide stage see in the values themselves, of keys of so many channels?

Most views are for keys of one channel. Among several, spikes that a channel has anyway are novel
too often, and some channel or other always drifts off its hours (event recall at 0.1 %: SMD .52
with hour_mean and .64 without, ASD .70 and .84) and off its weeks.
"""

from raywatch.models import novelty, poisson, profile, week

PROMISED = (profile.LONG, poisson.NAME, week.NAME)  # they have a part in p, none in event scores


def views_of(channels: int) -> tuple[str, ...]:
    """Their names, in the order of the kernel (decide_kernel.py)."""
    if channels > 1:
        return (profile.VIEWS[0], poisson.NAME)
    return (*profile.VIEWS, novelty.NAME, poisson.NAME, week.NAME)


def unused(views: tuple[str, ...], channels: int) -> set[str]:
    """Parts of a state (decide_kernel.State) that these views do not have."""
    parts: set[str] = set()
    if channels == 1:
        parts |= {"joint", "range"}
    if profile.VIEWS[0] not in views:
        parts |= {"profile"}
    if profile.LONG not in views:
        parts |= {"recent"}
    if poisson.NAME not in views:
        parts |= {"poisson", "peaks"}
    if novelty.NAME not in views:
        parts |= {"span", "marks"}
    if week.NAME not in views:
        parts |= {"week"}
    return parts
