"""From a config to a Log, a registry and the fields of a topic's records.

Clients are imported when they are needed: a command that only reads the config stays instant.
"""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raywatch.actors.kafka_security import Right, Rights
from raywatch.actors.names import Names, names_in, parsed
from raywatch.actors.ports import Fetched, Log, Partition
from raywatch.cluster.config import Config, Detector
from raywatch.models.errors import ConfigError

if TYPE_CHECKING:
    from raywatch.models.registry import Registry

SAMPLE_RECORDS = 200  # newest records that are looked at to learn what a topic has
SAMPLE_WAIT_S = 5.0
LOOKS = 25  # within it: who has read to the end waits no longer
NEAR_MAX = 5  # names that a hint shows


def open_log(config: Config) -> Log:
    """The log that a config names. Raises ConfigError for one that lives in another process."""
    if config.kafka.embedded:
        raise ConfigError(
            "`kafka: embedded` is a log in the memory of the demo: nobody else can reach it",
            hint="`raywatch demo` runs it; for this command name brokers in `kafka.bootstrap`",
        )
    from raywatch.actors.kafka import KafkaLog

    return KafkaLog(config.kafka.bootstrap, config.kafka.librdkafka())


def open_registry(config: Config) -> "Registry":
    """The models that a config can name."""
    from raywatch.models.registry import Registry

    return Registry(Path(config.models))


def partitions_of(log: Log, topics: "tuple[str, ...] | list[str]") -> list[Partition]:
    """All partitions of topics that exist, in order. Raises Unreachable."""
    known = log.topics()
    return [Partition(each, number) for each in topics for number in range(known.get(each, 0))]


def no_topic(topic: str, detector: str, known: Iterable[str]) -> ConfigError:
    """The error for a topic to be read that is not there, with what may have been meant."""
    names = sorted(known)
    near = difflib.get_close_matches(topic, names, n=NEAR_MAX, cutoff=0.6)
    shown = ", ".join(f"`{each}`" for each in near or names[:NEAR_MAX])
    if near:
        hint = f"did you mean {shown}?"
    elif names:
        hint = f"create it, or correct `topics`; there are {len(names)}, among them {shown}"
    else:
        hint = "create it: these brokers hold no topic at all"
    return ConfigError(f"topic `{topic}` of detector `{detector}` does not exist", hint=hint)


def must_see(log: Log, topic: str) -> None:
    """Raises ConfigError if brokers do not list a topic because raywatch may not read it."""
    rights: Rights | None = getattr(log, "rights", None)  # Kafka's alone
    if rights is not None:
        rights.ask(Right("topic", topic, "Read"), "it is not there, or not to be seen")


def sample_fields(log: Log, detector: Detector) -> Names:
    """Names of the fields with numbers in the newest records of a detector's topics.

    Patterns in `record.values` are settled with it, once, when the service starts. Empty when no
    record could be read within SAMPLE_WAIT_S. Raises Unreachable.
    """
    fetched = newest(log, partitions_of(log, detector.topics))
    found = names_in(parsed([] if fetched is None else fetched.values), only=_number)
    return Names(tuple(sorted(found.top)), tuple(sorted(found.inner)))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def newest(log: Log, partitions: Sequence[Partition], *, keys: bool = False) -> Fetched | None:
    """The newest records, SAMPLE_RECORDS in all; None where there are none.

    Fewer where not all could be read within SAMPLE_WAIT_S. Raises Unreachable, LaneLost.
    """
    from raywatch.actors.fetching import joined

    bounds = log.bounds(partitions)
    share = max(1, SAMPLE_RECORDS // max(1, len(bounds)))
    begin = {each: max(it.low, it.end - share) for each, it in bounds.items() if it.end > it.low}
    if not begin:
        return None
    source, parts = log.source("", sorted(begin), keys=keys), list[Fetched]()
    try:
        source.assign(begin)
        for _ in range(LOOKS):
            parts.append(source.fetch(SAMPLE_RECORDS, SAMPLE_WAIT_S / LOOKS))
            read = {**begin, **source.position()}
            if all(read[each] >= bounds[each].end for each in begin):
                break
    finally:
        source.close()
    return joined(parts)
