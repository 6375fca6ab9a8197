"""How does it do, and what should somebody do about it?

One state, one sentence, one reason, one command. The worst thing wins:

    starting  it came up a moment ago and something is not there yet
    degraded  records wait and nothing works on them, or nobody can see whether they do
    slow      everything works, some records wait longer than promised
    healthy   everything else, open incidents included: they are about the streams, not about us
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from raywatch.cluster.lag import STATES, say_s
from raywatch.cluster.views import AlertView, Observed, PartitionView

STARTING_S = 120.0  # for so long after its start a service may lack parts without being degraded


def verdict(seen: Observed) -> dict[str, Any]:
    """The verdict of a snapshot: `state`, `words`, `why`, `next` (`say`, `command`). Pure."""
    return _starting(seen) or _degraded(seen) or _slow(seen) or _healthy(seen)


def ranked(alerts: Iterable[AlertView]) -> list[AlertView]:
    """The least likely first; alerts without a probability (silence) behind them, oldest first."""
    return sorted(
        alerts,
        key=lambda each: (
            math.inf if each.tail_probability is None else each.tail_probability,
            each.since_ms,
            each.id,
        ),
    )


def odds(p: float) -> str:
    """A probability one can argue with: `1 in 3 billion`."""
    if p < 1e-15:
        return "less than 1 in 1,000 trillion"
    one_in = 1.0 / p
    for size, name in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if one_in >= 0.9995 * size:
            return f"1 in {one_in / size:.3g}{name}"
    return f"1 in {one_in:,.0f}"


def _verdict(state: str, words: str, why: str, say: str, command: str = "") -> dict[str, Any]:
    return {
        "state": state,
        "words": words,
        "why": why,
        "next": {"say": say, "command": command},
    }


def _starting(seen: Observed) -> dict[str, Any] | None:
    if seen.cluster.up_s >= STARTING_S or seen.trouble:
        return None
    up, want, serving = _up(seen), len(seen.owners), _serving(seen)
    unread = [each for each in seen.partitions if each.state == "unknown"]
    blind = len(unread) == len(seen.partitions)
    if up == want and serving and not blind:
        return None
    missing: list[str] = []
    if blind:
        missing.append("no data yet")
    if up < want:
        missing.append(f"{up} of {want} owners are up")
    if not serving:
        missing.append("no scorer serves yet")
    why = f"Up for {say_s(seen.cluster.up_s)}. Lag and rates come with the first readings."
    command = f"raywatch status {seen.cluster.config_path}"
    return _verdict("starting", ", ".join(missing), why, "Ask again in a moment:", command)


def _degraded(seen: Observed) -> dict[str, Any] | None:
    config = seen.cluster.config_path
    check = f"raywatch check {config}"
    up, want, serving = _up(seen), len(seen.owners), _serving(seen)
    if seen.trouble:
        words = "the log cannot be read"
        why = f"{_sentence(seen.trouble)} Owners go on by themselves as long as they reach it."
        return _verdict("degraded", words, why, "Is the broker there:", check)
    if not serving:
        started = sum(each.state == "starting" for each in seen.scorers)
        words = f"scorers down, 0 of {max(len(seen.scorers), seen.pool.scorers_min)} serve"
        why = f"Lanes wait, nothing is skipped{_late(seen)}. {started} are starting."
        return _verdict("degraded", words, why, "What does the cluster lack:", "ray status")
    if up < want:
        down = ", ".join(sorted(each.name for each in seen.owners if not each.up)[:3])
        more = f" and {want - up - 3} more" if want - up > 3 else ""
        why = f"{down}{more} is being replaced; its lanes wait."
        words = f"{up} of {want} owners are up"
        return _verdict("degraded", words, why, "What does the cluster lack:", "ray status")
    if seen.blocked:
        count = len(seen.blocked)
        words = f"{count} lanes are blocked" if count > 1 else "1 lane is blocked"
        why = f"{_sentence(seen.blocked[0])} The other lanes go on."
        return _verdict("degraded", words, why, "See what has to change:", check)
    if not seen.partitions:
        why = "No topic of any detector has a partition."
        return _verdict("degraded", "there is nothing to watch", why, "Do the topics exist:", check)
    return _in_trouble(seen) or _unread(seen)


def _unread(seen: Observed) -> dict[str, Any] | None:
    """Partitions that came since and are in no lane."""
    if not seen.unread:
        return None
    why = _sentence(seen.unread[:1].upper() + seen.unread[1:])
    command = f"raywatch deploy {seen.cluster.config_path} --yes"
    words = "partitions were added that nobody reads"
    return _verdict("degraded", words, why, "Take them in:", command)


def _in_trouble(seen: Observed) -> dict[str, Any] | None:
    """Partitions that stand still or cannot be read."""
    lag = f"raywatch lag {seen.cluster.config_path}"
    total = len(seen.partitions)
    count = Counter(each.state for each in seen.partitions)
    still = _worst(seen.partitions, "stalled", "stopped")
    if still:
        rest = count["ok"]
        why = f"{_sentence(f'{still[0].name} {still[0].words}')}{_others(rest, total)}"
        words = f"{still[0].name} {still[0].state}"
        if len(still) > 1:
            parts = [(count[each], each) for each in ("stalled", "stopped") if count[each]]
            words = ", ".join(
                f"{n} of {total:,} partitions {each}" if index == 0 else f"{n} {each}"
                for index, (n, each) in enumerate(parts)
            )
        return _verdict("degraded", words, why, "See where each partition stands:", lag)
    unread = _worst(seen.partitions, "unknown")
    if unread:
        first = unread[0]
        words = f"{len(unread)} of {total:,} partitions cannot be read"
        why = _sentence(f"{first.name}: {first.words or 'its offsets are unknown'}")
        return _verdict("degraded", words, why, "Ask the broker itself:", lag)
    return None


def _slow(seen: Observed) -> dict[str, Any] | None:
    total = len(seen.partitions)
    behind = _worst(seen.partitions, "rewound", "slow")
    if not behind:
        return None
    times = [each.back_s for each in behind]
    known = [each for each in times if each is not None]
    back = f", back in ~{say_s(max(known))}" if known and len(known) == len(times) else ""
    words = f"{len(behind)} of {total:,} partitions behind{back}"
    if all(each.state == "rewound" for each in behind):
        words = f"{len(behind)} of {total:,} partitions read again what was read before"
    pool = f" Scorers: {seen.pool.say}." if seen.pool.say else ""
    why = f"{_sentence(f'{behind[0].name}: {behind[0].words}')}{pool}"
    say = "Nothing to do as long as it falls:" if back else "See whether it falls:"
    return _verdict("slow", words, why, say, f"raywatch lag {seen.cluster.config_path}")


def _healthy(seen: Observed) -> dict[str, Any]:
    config, total = seen.cluster.config_path, len(seen.partitions)
    lags = [each.lag_s for each in seen.partitions if each.lag_s is not None]
    oldest = f", the oldest record waits {say_s(max(lags))}" if lags else ""
    fine = f"All {total:,} partitions are ok{oldest}."
    if seen.rollouts:
        first = seen.rollouts[0]
        words = f"rollout {first.before} to {first.after}, {first.phase}"
        why = f"{_sentence(first.words)} {fine}" if first.words else fine
        command = f"raywatch rollout abort {config}"
        return _verdict("healthy", words, why, "To stop it now:", command)
    if not seen.alerts:
        return _verdict("healthy", "nothing is open", fine, "Nothing to do.")
    strongest = ranked(seen.alerts)[0]
    chance = strongest.tail_probability
    said = f" ({odds(chance)})" if chance is not None and 0.0 < chance < 1.0 else ""
    why = f"{fine} The strongest incident is {strongest.key}{said}."
    count = len(seen.alerts)
    words = f"{count:,} incidents are open" if count > 1 else "1 incident is open"
    command = f"raywatch alerts tail {config}"
    return _verdict("healthy", words, why, "Read the alerts:", command)


def _up(seen: Observed) -> int:
    return sum(each.up for each in seen.owners)


def _serving(seen: Observed) -> int:
    return sum(each.state == "serving" for each in seen.scorers)


def _late(seen: Observed) -> str:
    lags = [each.lag_s for each in seen.partitions if each.lag_s is not None]
    return f": alerts are late by {say_s(max(lags))}" if lags and max(lags) > 1.0 else ""


def _worst(partitions: Sequence[PartitionView], *states: str) -> list[PartitionView]:
    """Partitions in one of these states: the worst state first, then the longest lag."""
    found = [each for each in partitions if each.state in states]
    return sorted(found, key=lambda p: (STATES.index(p.state), -(p.lag_s or 0.0), p.name))


def _others(rest: int, total: int) -> str:
    return f" {rest:,} of {total:,} partitions are ok." if rest else ""


def _sentence(words: str) -> str:
    """One sentence that ends as one."""
    text = words.strip()
    return text if text.endswith((".", "?", "!")) else f"{text}."
