"""Goal: who says that labels have a topic of their own is told early what does not fit.

Method: configs that cannot be, topics on the embedded log that do not match, and what `check`,
`lag`, the page and the journal say of labels that are as they should be, and of those that are not.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_label_topic import JOINED, PAID, TOLD, log_of
from test_payments import detector, lines_of

from raywatch.actors.embedded import EmbeddedLog
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.ports import Committed, Out, Partition
from raywatch.actors.runtime import LogSpec
from raywatch.cluster import assign
from raywatch.cluster.acl import rights
from raywatch.cluster.commands.check import examine
from raywatch.cluster.commands.lag import measure
from raywatch.cluster.config import Config
from raywatch.cluster.deployment import prepare
from raywatch.cluster.lag import LagWindow, resting, verdict
from raywatch.cluster.memory import memory_bound
from raywatch.cluster.watch import astray
from raywatch.models.errors import ConfigError

# ---- a config and its topics -----------------------------------------------------------------


def entry(**changes: Any) -> dict[str, Any]:
    """A detector with labels, changed."""
    record = {"key": "terminal", "time": "ts", "values": "amount", "words": "customer",
              "id": "payment", "label": "fraud", **changes.pop("record", {})}  # fmt: skip
    found = {
        "name": "d", "topics": ["in"], "model": "preset:payments", "record": record,
        "labels": {"topic": "labels"}, **changes,
    }  # fmt: skip
    return {"kafka": {"bootstrap": "127.0.0.1:1"}, "detectors": [found]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "lagbank", "record": {"words": (), "id": None, "label": None}},
         "`labels` is for `preset:payments`; `model` is `lagbank`"),
        ({"record": {"label": None}}, "`labels` needs `record.label`"),
        ({"topics": ["labels"]}, "`labels.topic` is among `topics`"),
        ({"topics": ["in", "out"]}, "`labels` are of one topic of payments, got 2"),
        ({"labels": {"topic": "labels", "delay_s": 1.0}}, "greater than or equal to 5"),
        ({"labels": {}}, "Field required"),
        ({"labels": {"topic": "d.alerts"}}, "`d` would read what it writes: `d.alerts`"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + words.replace(".", "[.]")):
        Config.model_validate(entry(**changes))


def test_a_config_becomes_a_spec() -> None:
    spec = Config.model_validate(entry(labels={"topic": "labels", "delay_s": 30})).spec()
    assert (spec.labels, spec.labels_delay_s, spec.inputs) == ("labels", 30.0, ("in", "labels"))
    assert spec.rest_s(Partition("labels", 0)) == 50.0  # 30 + 15, and 5 for the commit
    assert spec.rest_s(Partition("in", 0)) == 0.0
    alone = Config.model_validate(entry(labels=None)).spec()
    assert (alone.labels, alone.inputs) == ("", ("in",))
    reads = [
        right.name for right in rights(Config.model_validate(entry())) if right.operation == "Read"
    ]
    assert {"in", "labels"} <= set(reads)


def checked(log: EmbeddedLog, **changes: Any) -> list[tuple[str, str]]:
    return [(it.state, it.words) for it in examine(Config.model_validate(entry(**changes)), log)]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"in": 2}, "topic `labels` of detector `d` does not exist"),
        ({"in": 2, "labels": 3}, "topic `in` of detector `d` has 2 partitions, its labels in "
                                 "`labels` have 3"),
    ],
)  # fmt: skip
def test_topics_that_do_not_fit_are_found_by_check_and_refused(
    sizes: dict[str, int], words: str, tmp_path: Path
) -> None:
    log = log_of(**sizes)
    assert ("fail", words) in checked(log)
    settings = Config.model_validate({**entry(), "store": str(tmp_path)})
    with pytest.raises(ConfigError) as raised:
        prepare(settings, log, LogSpec(embedded="log"))
    assert raised.value.message == words


def test_check_looks_at_the_newest_labels() -> None:
    log = log_of(**{"in": 2, "labels": 2})
    assert ("ok", "d: `labels` has as many partitions, and no label yet") in checked(log)
    good = lines_of(TOLD[:3])
    log.write([Out("labels", b"k", line) for line in good])
    assert ("ok", "d: of the newest 3 records of `labels` all are labels") in checked(log)
    log.write([Out("labels", b"k", line) for line in (lines_of(PAID[:1])[0], b"{}", b"?")])
    words = "d: of the newest 6 records of `labels` 3 are labels: 1 missing field, 1 not JSON, "
    assert ("warn", f"{words}1 without a label") in checked(log)
    # Labels add no lanes.
    assert ("ok", "d: 4 partitions in 2 lanes") in checked(log, lanes=2)
    assert ("warn", "d: 4 lanes for 2 partitions: 2 stay empty") in checked(log, lanes=4)


@pytest.mark.kafka
def test_check_warns_of_times_that_producers_set(kafka: Any, topic: Callable[[str], str]) -> None:
    log, paid, told = KafkaLog(kafka.bootstrap), topic("paid"), topic("told")
    log.create(paid, 1, {"message.timestamp.type": "LogAppendTime"})
    log.create(told, 1)
    changes = entry(topics=[paid], labels={"topic": told})
    try:
        words = [it.words for it in examine(Config.model_validate(changes), log)]
        assert log.setting("none", "message.timestamp.type") is None
    finally:
        log.close()
    assert [each for each in words if "times of producers" in each] == [
        f"d: `{told}` keeps the times of producers, and by them it is settled before which payment "
        "a label comes"
    ]


def test_labels_are_in_the_lane_of_their_payments_and_share_no_budget(tmp_path: Path) -> None:
    log = log_of(**{"in": 5, "labels": 5})
    settings = Config.model_validate({**entry(lanes=2), "store": str(tmp_path)})
    (detection,) = prepare(settings, log, LogSpec(embedded="log")).detections
    for places in detection.lanes.values():
        numbers = {
            topic: [p.number for p in places if p.topic == topic] for topic in ("in", "labels")
        }
        assert numbers["in"] == numbers["labels"] != []
    assert detection.spec.partitions == 5
    assert detection.lanes == assign.lanes(detection.partitions, 2)


# ---- what operators see ----------------------------------------------------------------------


def test_labels_that_rest_are_in_no_trouble() -> None:
    spec = detector(labels="labels", labels_delay_s=60.0)
    window, rest_s = LagWindow(), spec.rest_s(Partition("labels", 0))
    window.add(0.0, 5, 5, 0)
    for t in range(1, 91):
        window.add(float(t), 5, 15, 0)
        assert verdict(window, float(t), resting(rest_s), owned=True).state == "ok", t
        assert t < 22 or verdict(window, float(t), owned=True).state != "ok"
    for t in range(91, 200):
        window.add(float(t), 5, 15, 0)
    assert verdict(window, 199.0, resting(rest_s), owned=True).state == "stopped"


def test_raywatch_lag_calls_labels_at_rest_ok() -> None:
    log = log_of(**{"in": 1, "labels": 1})
    log.write([Out("labels", b"k", line) for line in lines_of(TOLD[:3])])
    group = detector().group
    sink, source = log.sink("x", group), log.source(group, [Partition("labels", 0)])
    sink.open()
    zero = Committed(0)
    sink.transact([], {Partition("labels", 0): zero, Partition("in", 0): zero}, source)
    rows = measure(log, replace(detector(), labels="labels"), 1.5, time.sleep)
    assert [(row["partition"], row["lag_records"], row["state"]) for row in rows] == [
        ("in/0", 0, "ok"),
        ("labels/0", 3, "ok"),
    ]


def test_records_that_came_too_late_are_said() -> None:
    told = {"labels": 80, "repeated": 9, "unknown": 0, "lost": 0}
    assert astray("d", told) == ""
    words = astray("d", {**told, "late": 2})
    assert words.startswith(
        "d: 2 records came too late for their place between payments and labels"
    )


def test_what_waits_for_its_place_counts_as_memory() -> None:
    plain, joined = (memory_bound(detector(**c), partitions=4, owners=1) for c in ({}, JOINED))
    assert joined.batches - plain.batches >= joined.lanes * (64 << 20)
    assert joined.state == plain.state  # a partition of labels has none


def test_the_example_names_the_alternative() -> None:
    text = (Path(__file__).parent.parent / "configs" / "payments.yaml").read_text()
    assert "    # labels: {topic: chargebacks}" in text
    config = text.replace("    # labels: {topic", "    labels: {topic")
    assert Config.model_validate(yaml.safe_load(config)).spec().labels == "chargebacks"
