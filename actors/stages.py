"""Which lanes score their records themselves, and how?

Most models are scored by a pool, from windows of a key's history (flow.py). Signal classes that
look at words, lines or labels are scored by the lane (alone.py), in the stage that a model names.
"""

from collections.abc import Sequence

from raywatch.actors.flow import Flow
from raywatch.actors.logs import LogsFlow
from raywatch.actors.network import NetworkFlow
from raywatch.actors.payments import PaymentsFlow
from raywatch.actors.ports import Partition
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.traces import TracesFlow
from raywatch.models.errors import ConfigError
from raywatch.models.scorer import ModelSpec

STAGES: dict[str, type[Flow]] = {
    "logs": LogsFlow, "network": NetworkFlow, "payments": PaymentsFlow,
    "traces": TracesFlow,
}  # fmt: skip


def flow_of(
    spec: DetectorSpec,
    partitions: Sequence[Partition],
    model: ModelSpec,
    *,
    evidence: bool = False,
) -> Flow:
    """The flow of a lane, by who scores. Raises ConfigError for a model of another class."""
    if model.stage != spec.stage:
        raise ConfigError(
            f"`{model.version}` cannot score `{spec.name}`, whose `model` is `{spec.model}`",
            hint="signal classes are not rolled out: change `model` and start the service anew",
        )
    return STAGES.get(spec.stage, Flow)(spec, partitions, model, evidence=evidence)
