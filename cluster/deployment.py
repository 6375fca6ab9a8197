"""From a config to a running deployment: what must be true first, and what is handed over.

`prepare` asks the log and the registry everything that would otherwise fail later, in one place,
and creates the topics that raywatch writes to. Its result is plain values: the supervisor's actor
is made of them, and Ray restarts it with the same ones.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from raywatch.actors.ports import Log, Partition
from raywatch.actors.runtime import LogSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.store import open_store
from raywatch.cluster import assign
from raywatch.cluster.config import Config, Pool
from raywatch.cluster.connect import must_see, no_topic, sample_fields
from raywatch.cluster.growth import added
from raywatch.cluster.insecure import of_config
from raywatch.cluster.label_topic import must_match
from raywatch.cluster.page_spec import PageSpec
from raywatch.models.artifact import Artifact, pack
from raywatch.models.errors import Refused
from raywatch.models.registry import Registry

ALERT_TOPIC = {"cleanup.policy": "delete", "retention.ms": str(30 * 86_400_000)}
AUDIT_TOPIC = {"cleanup.policy": "delete", "retention.ms": "-1"}


@dataclass(frozen=True, slots=True)
class Detection:
    """One detector of a deployment."""

    spec: DetectorSpec
    lanes: dict[int, tuple[Partition, ...]]
    version: str  # model version to serve unless the audit topic says another

    @property
    def partitions(self) -> list[Partition]:
        """All partitions, lane by lane."""
        return [partition for lane in self.lanes.values() for partition in lane]


@dataclass(frozen=True, slots=True)
class Deployment:
    """Everything the supervisor's actor is made of."""

    name: str
    log: LogSpec
    detections: tuple[Detection, ...]
    store: str
    owners: int
    owner_cpus: float
    pool: Pool
    page: PageSpec
    digest: str = ""  # of the config
    config_path: str = "CONFIG"
    notes: tuple[str, ...] = ()  # what was found out on the way, for the journal
    drills: bool = False  # whether parts of it may be hurt on purpose
    standby: bool = False  # whether each owner has a warm successor

    def __repr__(self) -> str:
        names = ", ".join(d.spec.name for d in self.detections)
        return f"Deployment({self.name!r}, detectors: {names})"


def log_spec(config: Config) -> LogSpec:
    """How actors get their Log. Secrets are revealed here: it has a masked repr."""
    settings = tuple(sorted(config.kafka.librdkafka().items()))
    return LogSpec(bootstrap=config.kafka.bootstrap, settings=settings)


def store_url(store: str) -> str:
    """The store as actors in other folders reach it."""
    return store if "://" in store else str(Path(store).resolve())


def artifact_name(version: str) -> str:
    """Where the artifact of a version lies in the store."""
    return f"artifacts/{version.replace('@', '/')}"


def prepare(
    config: Config,
    log: Log,
    spec: LogSpec,
    *,
    name: str = "raywatch",
    path: str = "CONFIG",
    provide: bool = True,
) -> Deployment:
    """Check and, to `provide`, create topics and put the models into the store.

    Raises ConfigError (something must change), Refused (a live group), Unreachable.
    """
    notes: list[str] = []
    topics = log.topics()
    registry = Registry(Path(config.models))
    detections: list[Detection] = []
    artifacts: dict[str, Artifact] = {}
    for detector in config.detectors:
        fields = sample_fields(log, detector) if detector.record.patterns else None
        lane_spec = config.disguised(config.spec(detector.name, fields))
        partitions = _partitions(lane_spec, topics, log)
        _refuse_members(log, lane_spec)
        new = added(partitions, log.committed(lane_spec.group, partitions))
        if new:
            notes.append(
                f"{lane_spec.name}: {len(new)} partitions were added, and are read from "
                "their beginning"
            )
            lane_spec = replace(lane_spec, added=tuple(new))
        artifact = registry.resolve(lane_spec.model)
        artifacts[artifact.version] = artifact
        lanes = assign.lanes(partitions, lane_spec.lanes)
        if len(lanes) < lane_spec.lanes:
            notes.append(f"{lane_spec.name}: {len(lanes)} lanes, there are no more partitions")
            lane_spec = replace(lane_spec, lanes=len(lanes))
        count = sum(partition.topic in lane_spec.topics for partition in partitions)
        lane_spec = replace(lane_spec, partitions=count)
        detections.append(Detection(lane_spec, lanes, artifact.version))
    if provide:  # after every check: what is refused leaves nothing behind
        store = open_store(store_url(config.store))
        for version, artifact in artifacts.items():
            store.put(artifact_name(version), pack(artifact))
        for each in detections:
            for topic in (each.spec.alerts, each.spec.rejects):
                _create(log, topic, topics, ALERT_TOPIC)
        _create(log, config.audit, topics, AUDIT_TOPIC)
    notes += [f"insecure: {risk.words}" for risk in of_config(config)]
    mode = "it was asked to do without" if spec.exactly_once is False else _mode(log)
    if mode:
        notes.append(f"no transactions here ({mode}): at least once, with deterministic alert ids")
    return Deployment(
        name=name,
        log=replace(spec, exactly_once=not mode),
        detections=tuple(detections),
        store=store_url(config.store),
        owners=config.owners.count,
        owner_cpus=config.owners.cpus,
        pool=config.pool,
        page=config.page.spec(),
        digest=hashlib.blake2b(config.model_dump_json().encode(), digest_size=4).hexdigest(),
        config_path=path,
        notes=tuple(notes),
        drills=config.drills == "allow",
        standby=config.owners.standby,
    )


def _partitions(spec: DetectorSpec, topics: dict[str, int], log: Log) -> list[Partition]:
    found: list[Partition] = []
    for topic in spec.inputs:
        if topic not in topics:
            must_see(log, topic)
            raise no_topic(topic, spec.name, topics)
        found += [Partition(topic, number) for number in range(topics[topic])]
    must_match(spec, topics)
    return found


def _refuse_members(log: Log, spec: DetectorSpec) -> None:
    members = log.members(spec.group)
    if members:
        raise Refused(
            f"consumer group `{spec.group}` has live members: {', '.join(members[:3])}",
            hint="they would overwrite each other's offsets: end them, or set another `group`",
        )


def _create(log: Log, topic: str, topics: dict[str, int], settings: dict[str, str]) -> None:
    if topic not in topics:
        log.create(topic, 1, settings)


def _mode(log: Log) -> str:
    probe = getattr(log, "probe", None)
    return (probe() or "") if probe is not None else ""
