"""Which rights does a config need, at least? Each was seen to be needed on Apache Kafka 4.3.

    topic read       READ       records, and the offsets that are committed for them
    topic alerts     WRITE      READ    of the page, of `raywatch alerts`
    topic rejects    WRITE              (`raywatch rejects` needs READ: for a person, not for lanes)
    topic audit      WRITE      READ    a supervisor that starts learns what was decided before
    the last three   CREATE             while they are not there: make them, or let raywatch
    group            READ       commits with the group's offsets
    transactional    WRITE      one for each lane, and one empty transaction that asks whether
    ids                         transactions work

WRITE and READ imply DESCRIBE. Not needed: anything on the cluster, ALTER, DELETE, and a group for
those who only look.
"""

from collections.abc import Collection, Iterator, Mapping

from raywatch.actors import kafka_security
from raywatch.actors.kafka_security import PROBE, Right
from raywatch.cluster.config import Config

IMPLIED = ("Create", "Describe")  # who may write may see; who made a topic may keep the right


def rights(config: Config, topics: Collection[str] = ()) -> dict[Right, str]:
    """The least rights of a config, and what each is for.

    Args:
        config: patterns may be unsettled.
        topics: that are there: raywatch need not create them.
    """
    needed: dict[Right, str] = {}
    for detector in config.detectors:
        spec = config.spec(detector.name, unsettled=True)
        for topic in spec.inputs:
            needed[Right("topic", topic, "Read")] = f"{spec.name}: records"
        needed[Right("group", spec.group, "Read")] = f"{spec.name}: committed offsets"
        for topic, what in ((spec.alerts, "alerts"), (spec.rejects, "rejects")):
            needed[Right("topic", topic, "Write")] = f"{spec.name}: {what}"
        needed[Right("topic", spec.alerts, "Read")] = f"{spec.name}: alerts on the page"
        lanes = Right("transactional-id", spec.lane_prefix, "Write", prefixed=True)
        needed[lanes] = f"{spec.name}: lanes, exactly once"
        for topic in (spec.alerts, spec.rejects, spec.audit):
            if topic not in topics:
                needed[Right("topic", topic, "Create")] = "raywatch makes it where it is not there"
    needed[Right("topic", config.audit, "Write")] = "decisions"
    needed[Right("topic", config.audit, "Read")] = "decisions, when a supervisor starts"
    needed[Right("transactional-id", PROBE, "Write")] = "whether transactions work"
    return needed


def principal(config: Config) -> str:
    """Whom brokers take raywatch for; no secret is read for it."""
    security = config.kafka.security
    return kafka_security.principal(
        {
            "security.protocol": security.protocol,
            "sasl.mechanism": security.mechanism,
            "sasl.username": security.username,
            "sasl.oauthbearer.client.id": security.username,
            "ssl.certificate.location": security.certificate,
        }
    )


def more(needed: Collection[Right], held: Mapping[Right, bool | None]) -> Iterator[str]:
    """What a principal may do beyond its needs, a sentence a resource."""
    extra: dict[str, list[str]] = {}
    for right, there in held.items():
        if there and right not in needed and right.operation not in IMPLIED:
            extra.setdefault(f"{right.resource} `{right.name}`", []).append(right.operation)
    for resource, operations in sorted(extra.items()):
        yield f"{', '.join(sorted(operations)).upper()} on {resource}: more than raywatch needs"
