"""Goal: what only the real Kafka can show: dead brokers, fail-over, other clients, other modes.

Method: the session's broker for most, a port where nobody listens, and three brokers of which one
is killed in the middle of transactions. Witnesses are Kafka's own tools and a plain client.
"""

import logging
import pickle
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import AdminClient

from raywatch.actors.kafka import KafkaLog
from raywatch.actors.partitioner import partition_of
from raywatch.actors.ports import Bounds, Committed, Out, Partition
from raywatch.models.errors import ConfigError, Fenced, LaneLost, RaywatchError, Unreachable

if TYPE_CHECKING:
    from tools.kafka import KafkaCluster

Name = Callable[[str], str]
pytestmark = pytest.mark.kafka
WAIT_S = 30.0


def nobody() -> str:
    """An address that refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def topic_of(log: KafkaLog, name: str, partitions: int = 1) -> list[Partition]:
    log.create(name, partitions)
    return [Partition(name, number) for number in range(partitions)]


def plain_reader(bootstrap: str, partitions: list[Partition], isolation: str) -> list[Any]:
    """Every message up to the end, by a client that is not ours."""
    settings = {"bootstrap.servers": bootstrap, "group.id": "witness", "isolation.level": isolation}
    consumer = ck.Consumer({**settings, "enable.partition.eof": True, "log_level": 2})
    consumer.assign([ck.TopicPartition(p.topic, p.number, 0) for p in partitions])
    ended, found, deadline = set[int](), list[Any](), time.monotonic() + WAIT_S
    while len(ended) < len(partitions):
        assert time.monotonic() < deadline
        for message in consumer.consume(500, 0.5):
            if message.error() is None:
                found.append(message)
            elif message.error().code() == ck.KafkaError._PARTITION_EOF:
                ended.add(message.partition())
    consumer.close()
    return found


def test_a_dead_broker_is_unreachable_within_ten_seconds() -> None:
    # All at once: each takes its full 10 s.
    log, where = KafkaLog(nobody()), [Partition("t", 0)]
    calls: dict[str, Callable[[], object]] = {
        "topics": log.topics,
        "create": lambda: log.create("t", 1),
        "bounds": lambda: log.bounds(where),
        "committed": lambda: log.committed("g", where),
        "members": lambda: log.members("g"),
        "source bounds": log.source("g", where).bounds,
    }
    raised: dict[str, tuple[RaywatchError, float]] = {}

    def call(name: str) -> None:
        began = time.monotonic()
        try:
            calls[name]()
        except RaywatchError as error:
            raised[name] = (error, time.monotonic() - began)

    threads = [threading.Thread(target=call, args=(name,)) for name in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40.0)
    assert raised.keys() == calls.keys()
    for name, (error, took_s) in raised.items():
        assert isinstance(error, Unreachable), (name, error)
        assert error.message == f"no Kafka broker answered at `{log.bootstrap}` within 10 s"
        assert took_s < 13.0, name
    log.close()


def test_a_lane_at_a_dead_broker_does_not_open() -> None:
    log = KafkaLog(nobody(), exactly_once=True)
    sink, began = log.sink("lane", "g"), time.monotonic()
    with pytest.raises(Unreachable, match="lane"):
        sink.open()
    assert time.monotonic() - began < 25.0


def test_a_log_pickles_as_its_arguments_and_hides_its_settings(kafka: "KafkaCluster") -> None:
    log = KafkaLog(kafka.bootstrap, {"client.id": "secret"})
    log.topics()
    assert log.sink("raywatch.pickled", "g").exactly_once
    again: KafkaLog = pickle.loads(pickle.dumps(log))
    assert again.topics() == log.topics()
    assert again.bootstrap == log.bootstrap
    assert "secret" not in repr(again)
    assert again.settings({}, {})["client.id"] == "secret"
    log.close()
    again.close()


def test_promises_cannot_be_configured_away(kafka: "KafkaCluster") -> None:
    wish = {"isolation.level": "read_uncommitted", "bootstrap.servers": nobody()}
    log = KafkaLog(kafka.bootstrap, wish)
    settings = log.settings({"linger.ms": 5}, {"isolation.level": "read_committed"})
    assert settings["isolation.level"] == "read_committed"
    assert settings["bootstrap.servers"] == kafka.bootstrap
    assert log.topics() is not None
    log.close()


def test_transactions_work_here_and_the_probe_says_so(kafka: "KafkaCluster") -> None:
    log = KafkaLog(kafka.bootstrap)
    assert log.probe() is None
    log.close()


def test_keys_go_where_javas_partitioner_puts_them(kafka: "KafkaCluster", topic: Name) -> None:
    log = KafkaLog(kafka.bootstrap)
    partitions = topic_of(log, topic("murmur"), 7)
    keys = [b"", b"a", b"ab", b"abc", b"abcd", b"host-17", "ü".encode(), bytes(range(256))]
    log.write([Out(partitions[0].topic, key, b"v", (("h", key),)) for key in keys])
    found = plain_reader(kafka.bootstrap, partitions, "read_committed")
    assert len(found) == len(keys)
    for message in found:
        key = message.key() or b""
        assert message.partition() == partition_of(key, 7), key
        assert message.headers() == [("h", key)]
    log.close()


def test_lag_is_what_kafkas_own_tool_says(kafka: "KafkaCluster", topic: Name) -> None:
    log = KafkaLog(kafka.bootstrap)
    (partition,) = topic_of(log, topic("lag"))
    log.write([Out(partition.topic, b"k", b"v") for _ in range(10)])
    group = topic("lag-group")
    source, sink = log.source(group, [partition]), log.sink(topic("lane"), group)
    sink.open()
    sink.transact([], {partition: Committed(7)}, source)
    assert source.committed() == {partition: Committed(7)}
    said = kafka.tool("groups", "--describe", "--group", group)
    line = next(line.split() for line in said.splitlines() if line.startswith(group))
    # GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG
    assert line[1:6] == [partition.topic, "0", "7", "10", "3"]
    source.close()
    sink.close()
    log.close()


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_live_member_is_reported(kafka: "KafkaCluster", topic: Name, protocol: str) -> None:
    log = KafkaLog(kafka.bootstrap)
    (partition,) = topic_of(log, topic("live"))
    group = topic("live-group")
    settings = {"bootstrap.servers": kafka.bootstrap, "group.id": group, "client.id": "stranger"}
    member = ck.Consumer({**settings, "group.protocol": protocol, "log_level": 2})
    member.subscribe([partition.topic])
    deadline = time.monotonic() + WAIT_S
    while not member.assignment():
        assert time.monotonic() < deadline
        member.poll(0.1)
    said = log.members(group)
    assert len(said) == 1
    assert protocol == "consumer" or said[0].startswith("stranger@")
    member.close()
    log.close()


def test_without_transactions_offsets_follow_records_and_only_forward(
    kafka: "KafkaCluster", topic: Name
) -> None:
    log = KafkaLog(kafka.bootstrap, exactly_once=False)
    (came,), (went,) = topic_of(log, topic("in")), topic_of(log, topic("out"))
    log.write([Out(came.topic, b"k", b"v") for _ in range(10)])
    group = topic("g")
    source, sink = log.source(group, [came]), log.sink(topic("lane"), group)
    assert not sink.exactly_once
    sink.open()
    sink.transact([Out(went.topic, b"k", b"a")], {came: Committed(5, "note")}, source)
    assert source.committed() == {came: Committed(5, "note")}
    assert log.bounds([went]) == {went: Bounds(0, 1)}
    # Somebody else went further: his offset stays, and this lane learns of him.
    other = log.sink(topic("lane"), group)
    other.open()
    other.transact([], {came: Committed(8)}, source)
    with pytest.raises(Fenced, match="committed further"):
        sink.transact([Out(went.topic, b"k", b"b")], {came: Committed(6)}, source)
    assert source.committed() == {came: Committed(8)}
    for client in (source, sink, other):
        client.close()
    log.close()


def test_without_transactions_an_unknown_topic_commits_nothing(
    kafka: "KafkaCluster", topic: Name
) -> None:
    settings = {"topic.metadata.propagation.max.ms": "1000"}
    log = KafkaLog(kafka.bootstrap, settings, exactly_once=False)
    (came,) = topic_of(log, topic("in"))
    group, missing = topic("g"), topic("missing")
    source, sink = log.source(group, [came]), log.sink(topic("lane"), group)
    sink.open()
    with pytest.raises(ConfigError, match=missing):
        sink.transact([Out(missing, b"k", b"v")], {came: Committed(0)}, source)
    assert source.committed() == {}
    source.close()
    log.close()


def test_a_record_above_the_topics_limit_is_a_matter_of_configuration(
    kafka: "KafkaCluster", topic: Name
) -> None:
    log = KafkaLog(kafka.bootstrap)
    name = topic("small")
    log.create(name, 1, {"max.message.bytes": "1000"})
    group, here = topic("g"), Partition(name, 0)
    source, sink = log.source(group, [here]), log.sink(topic("lane"), group)
    sink.open()
    incompressible = random.Random(7).randbytes(10_000)
    with pytest.raises(ConfigError, match=name):
        sink.transact([Out(name, b"k", incompressible)], {here: Committed(0)}, source)
    assert source.committed() == {}
    source.close()
    log.close()


def test_a_setting_that_kafka_refuses_is_a_matter_of_configuration(
    kafka: "KafkaCluster", topic: Name
) -> None:
    log, name = KafkaLog(kafka.bootstrap), topic("refused")
    with pytest.raises(ConfigError, match=name):
        log.create(name, 1, {"retention.ms": "soon"})
    log.close()


def test_records_deleted_under_a_reader_lose_the_lane(kafka: "KafkaCluster", topic: Name) -> None:
    small = {"fetch.message.max.bytes": "2000", "queued.max.messages.kbytes": "1"}
    log = KafkaLog(kafka.bootstrap, {**small, "queued.min.messages": "1", "batch.size": "2000"})
    (partition,) = topic_of(log, topic("overtaken"))
    log.write([Out(partition.topic, b"k", b"%04d" % i + bytes(996)) for i in range(1_000)])
    source = log.source(topic("g"), [partition])
    source.assign({partition: 0})
    assert len(source.fetch(1, WAIT_S)) == 1
    client = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 2})
    where = ck.TopicPartition(partition.topic, 0, 999)
    next(iter(client.delete_records([where]).values())).result(WAIT_S)

    def read_on() -> None:
        for _ in range(1_000):  # what is queued already still comes
            source.fetch(1, 0.05)

    with pytest.raises(LaneLost, match=partition.topic):
        read_on()
    source.close()
    log.close()


def test_failover_repeats_and_loses_nothing(kafka3: "KafkaCluster", topic: Name) -> None:
    """One lane copies numbers in transactions while the broker it depends on most is killed."""
    log = KafkaLog(kafka3.bootstrap)
    came, went = topic_of(log, topic("in"), 3), topic_of(log, topic("out"), 3)
    total, group, lane = 3_000, topic("g"), topic("lane")
    log.write([Out(came[0].topic, b"%d" % i, b"%d" % i) for i in range(total)])
    opened, done, deadline = 0, 0, time.monotonic() + 120.0
    while done < total:
        assert time.monotonic() < deadline, (opened, done)
        sink, source = log.sink(lane, group), log.source(group, came)
        try:
            sink.open()
            opened += 1
            begin = {p: source.committed().get(p, Committed(0)).offset for p in came}
            done = sum(begin.values())
            source.assign(begin)
            while done < total:
                assert time.monotonic() < deadline, (opened, done)
                batch = source.fetch(100, 0.05)
                if not len(batch):
                    continue
                records = [Out(went[0].topic, v, v) for v in batch.values if v is not None]
                offsets = {p: Committed(o) for p, o in source.position().items()}
                if kafka3.pid(1) and done >= total // 3:
                    kafka3.kill(1)  # with a transaction about to begin
                sink.transact(records, offsets, source)
                done += len(batch)
        except (LaneLost, Unreachable) as error:
            logging.getLogger("test").info("the lane was lost: %s", error)
        finally:
            source.close()
            sink.close()
    kafka3.start(1)
    wrote = Counter(m.value() for m in plain_reader(kafka3.bootstrap, went, "read_committed"))
    assert wrote == Counter(b"%d" % i for i in range(total))
    log.close()


def test_credentials_that_are_turned_away_are_a_matter_of_configuration(
    kafka: "KafkaCluster",
) -> None:
    # The broker speaks no SASL at all: to the client that is a failed authentication.
    user = {"sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "hidden"}
    settings = {"security.protocol": "sasl_plaintext", **user}
    log = KafkaLog(kafka.bootstrap, settings, exactly_once=True)
    source = log.source("g", [Partition("t", 0)])
    for ask in (log.topics, lambda: source.committed(time.monotonic() + 3.0)):
        with pytest.raises(ConfigError, match="turned this client away") as raised:
            ask()
        assert "hidden" not in str(raised.value)
    source.close()
    log.close()
