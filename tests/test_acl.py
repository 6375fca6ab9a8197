"""Goal: raywatch names the least rights it needs, works with exactly these, and says which one is
missing, how to give it, and nothing is lost meanwhile.

Method: the rights of a config as values. Then a principal without rights on a real broker: the
commands that `check --acl` prints are run by Kafka's own tool, and with them a deployment is
prepared and a lane works exactly once. Each right is taken away while the lane works and given
back: its error must name operation, resource, principal and command, and in the end the alerts must
be those of an undisturbed lane. The whole service on Ray shows what `status` and the journal say.
"""

import json
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from command import Said, called
from lanes import RECORDS, alerts, lag, make, running, until
from secured import PASSWORDS
from service import Service, ray_local

from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.kafka_reading import sifted
from raywatch.actors.kafka_security import Right, Rights, commands, lane, subject
from raywatch.actors.ports import Log, Out, Partition
from raywatch.actors.spec import DetectorSpec
from raywatch.cluster import acl, journal
from raywatch.cluster.config import Config, load
from raywatch.cluster.deployment import log_spec, prepare
from raywatch.cluster.tail import tail
from raywatch.models.errors import ConfigError, LaneLost

if TYPE_CHECKING:
    from secured import Secured

ROOT = Path(__file__).resolve().parent.parent
PRINCIPAL = "User:poor"
BAD = b"this is no JSON"
GIVEN_S = 0.5  # A broker knows of an ACL within some ms of its having been made.


# ---- the rights of a config -----------------------------------------------------------------


def test_the_least_rights_of_a_config_are_these() -> None:
    config = load(ROOT / "configs" / "local.yaml")
    assert {str(right) for right in acl.rights(config)} == {
        "READ on topic `events`",
        "READ on group `raywatch.hosts`",
        "WRITE on topic `hosts.alerts`",
        "READ on topic `hosts.alerts`",
        "CREATE on topic `hosts.alerts`",
        "WRITE on topic `hosts.rejects`",
        "CREATE on topic `hosts.rejects`",
        "WRITE on topic `raywatch.audit`",
        "READ on topic `raywatch.audit`",
        "CREATE on topic `raywatch.audit`",
        "WRITE on every transactional id that begins with `raywatch.hosts.`",
        "WRITE on transactional id `raywatch.probe`",
    }
    there = acl.rights(config, ["hosts.alerts", "hosts.rejects", "raywatch.audit"])
    assert {right.operation for right in there} == {"Read", "Write"}  # nothing is to be made


def test_detectors_share_what_they_share_and_nothing_else() -> None:
    rights = acl.rights(load(ROOT / "configs" / "production.yaml"))
    groups = {right.name for right in rights if right.resource == "group"}
    assert groups == {"raywatch.hosts", "raywatch.payments"}
    ids = {right.name for right in rights if right.resource == "transactional-id"}
    assert ids == {"raywatch.hosts.", "raywatch.payments.", "raywatch.probe"}
    assert not [right for right in rights if right.prefixed and not right.name.endswith(".")]
    assert len([right for right in rights if right.name == "raywatch.audit"]) == 3


def test_a_prefix_of_lanes_takes_in_the_lanes_of_no_other_detector() -> None:
    spec = load(ROOT / "configs" / "local.yaml").spec()
    (prefix,) = {lane(spec.lane_id(number)).name for number in (0, 7, 4_095)}
    assert prefix == "raywatch.hosts."
    assert not "raywatch.hosts-2.0".startswith(prefix)  # names have no dots


def test_commands_are_one_a_resource_and_safe_for_a_shell() -> None:
    rights = [
        Right("topic", "t", "Write"),
        Right("transactional-id", "raywatch.x.", "Write", prefixed=True),
        Right("topic", "t", "Create"),
    ]
    first, second = commands(rights, "User:CN=a b,O=$c", "h:1,i:2")
    assert shlex.split(first) == [
        "kafka-acls.sh", "--bootstrap-server", "h:1,i:2", "--command-config", "admin.properties",
        "--add", "--allow-principal", "User:CN=a b,O=$c", "--operation", "Create", "--operation",
        "Write", "--topic", "t",
    ]  # fmt: skip
    assert second.endswith("--transactional-id raywatch.x. --resource-pattern-type prefixed")


def test_the_principal_is_who_the_config_says(tmp_path: Path) -> None:
    security: dict[str, Any] = {
        "protocol": "SASL_SSL", "username": "u", "password": {"env": "NOT_SET_ANYWHERE"},
    }  # fmt: skip
    assert acl.principal(_config(tmp_path, "x:1", security, "in")) == "User:u"
    token = {**security, "mechanism": "OAUTHBEARER", "token_url": "https://id.example/token"}
    assert acl.principal(_config(tmp_path, "x:1", token, "in")) == "User:u"
    assert acl.principal(_config(tmp_path, "x:1", {"protocol": "SSL"}, "in")) == "User:ANONYMOUS"


def test_what_is_no_certificate_has_no_subject() -> None:
    for junk in (
        b"",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----",
    ):
        with pytest.raises(ValueError, match="certificate"):
            subject(junk)


class Answer:
    """What a reader gets from the client library: a record, or an error in its place."""

    def __init__(self, name: str, offset: int | None) -> None:
        self._name, self._offset = name, offset

    def error(self) -> "Answer | None":
        return self if self._name else None

    def name(self) -> str:
        return self._name

    def retriable(self) -> bool:
        return False

    def topic(self) -> str:
        return "in"

    def partition(self) -> int:
        return 3

    def offset(self) -> int | None:
        return self._offset

    def str(self) -> str:  # last: it hides the class
        return "Broker: no"


def test_an_error_in_place_of_a_record_ends_the_reader_and_any_other_may_pass() -> None:
    """With an offset it moves the client's position by one, over a record that nobody saw."""
    rights = Rights("h:1", "User:u", lambda rights: {})
    record = Answer("", 7)
    for passes in (Answer("_TRANSPORT", None), Answer("_TRANSPORT", -1001)):
        assert sifted([record, passes, record], rights, "g") == [record, record]
    for offset in (0, 7):
        with pytest.raises(LaneLost, match="`in/3` was interrupted"):
            sifted([Answer("REQUEST_TIMED_OUT", offset)], rights, "g")
    looks = Answer("GROUP_AUTHORIZATION_FAILED", None)
    assert sifted([looks, record], rights, "") == [record]  # needs no group
    with pytest.raises(ConfigError, match="lacks READ on group `g`"):
        sifted([looks], rights, "g")


# ---- a lane with exactly these --------------------------------------------------------------


def _config(folder: Path, bootstrap: str, security: dict[str, Any], topic: str) -> Config:
    """A config that is written to `it.yaml`, too."""
    settings = {
        "kafka": {"bootstrap": bootstrap, "security": security},
        "detectors": [
            {
                "name": "acl-" + topic.lower().replace(".", "-"),
                "topics": [topic],
                "record": {"key": "host", "time": "ts", "values": ["value"]},
                "model": "robustz",
                "start": "earliest",
                "lanes": 1,
                "alert": {"warmup": 100, "probability": 1e-4},
                "checkpoint_ms": 50,
                "batch_wait_ms": 10,
            }
        ],
        "owners": {"count": 1},
        "pool": {"min": 1, "max": 1},
        "page": {"port": 0},
        "store": str(folder / "state"),
        "models": str(folder / "models"),
        "audit": f"{topic}.audit",
    }
    (folder / "it.yaml").write_text(json.dumps(settings))  # YAML, too
    return load(folder / "it.yaml")


class Tenant:
    """A principal with the rights that were given to it, a config and a stream."""

    def __init__(self, secured: "Secured", folder: Path, topic: str, password: Path) -> None:
        password.write_text(PASSWORDS["poor"])
        self.secured, self.topic, self.path = secured, topic, folder / "it.yaml"
        security = {
            "protocol": "SASL_SSL", "username": "poor", "password": {"file": str(password)},
            "ca": secured.ca,
        }  # fmt: skip
        self.config = _config(folder, secured.bootstrap, security, topic)
        self.admin = secured.admin()
        self.admin.create(topic, 2)
        self.partitions = [Partition(topic, number) for number in range(2)]

    @property
    def spec(self) -> DetectorSpec:
        return self.config.spec()

    def needs(self) -> dict[Right, str]:
        """The least rights once everything is there."""
        return acl.rights(self.config, self.admin.topics())

    def write(self, records: list[Out]) -> None:
        self.admin.write(records)

    def close(self) -> None:
        self.secured.take(PRINCIPAL)
        self.admin.close()


@pytest.fixture
def raywatch(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    return partial(called, capsys)


@pytest.fixture
def tenant(secured: "Secured", tmp_path: Path, topic: Callable[[str], str]) -> Iterator[Tenant]:
    secured.take(PRINCIPAL)
    there = Tenant(secured, tmp_path, topic("in"), tmp_path / "password")
    yield there
    there.close()


def undisturbed(spec: DetectorSpec, topic: str, records: list[Out]) -> Counter[str]:
    """The alerts of a lane that nobody hurts, on the embedded log: it deals keys as Kafka does."""
    log = EmbeddedLog(EmbeddedBroker())
    log.create(topic, 2)
    for name in (spec.alerts, spec.rejects, spec.audit):
        log.create(name, 1)
    partitions = [Partition(topic, number) for number in range(2)]
    log.write(records)
    with running(make(spec, log, partitions)):
        until(lambda: lag(log, spec, partitions) == 0)
    return said(log, spec.alerts)


def said(log: Log, topic: str) -> Counter[str]:
    """Every alert with all it says but where its records lay: markers take offsets in Kafka."""
    return Counter(
        json.dumps({k: v for k, v in alert.items() if k != "lineage"}, sort_keys=True)
        for alert in alerts(log, topic)
    )


def run_by_kafkas_tool(secured: "Secured", printed: str) -> int:
    """Run the printed commands as they stand, but for who runs them; returns how many."""
    lines = printed.strip().splitlines()
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "kafka-acls.sh"
        assert words[:4] == [
            "--bootstrap-server", secured.bootstrap, "--command-config", "admin.properties",
        ]  # fmt: skip
        secured.cluster.tool("acls", *words[4:])
    return len(lines)


@pytest.mark.kafka
def test_the_printed_commands_give_exactly_what_is_needed(
    tenant: Tenant, raywatch: Callable[..., Said]
) -> None:
    spec = tenant.spec
    first = raywatch("check", "--acl", tenant.path)
    assert first.code == 2, first.err
    needed = acl.rights(tenant.config)
    made = [right for right in needed if right.operation == "Create"]  # perhaps they are there
    assert first.err.count("is missing") == len(needed) - len(made)
    assert first.err.count("only where it is not there") == len(made)
    assert "canary" not in first.out + first.err
    assert run_by_kafkas_tool(tenant.secured, first.out) == 7  # resources
    time.sleep(GIVEN_S)

    second = raywatch("check", "--acl", "--json", tenant.path)
    assert second.code == 0, second.err
    held = {(r["operation"], r["name"]): r["held"] for r in json.loads(second.out)["rights"]}
    assert held["Create", spec.alerts] is True
    assert held["Write", spec.alerts] is None  # nobody can say: the topic is not there

    log = KafkaLog(tenant.secured.bootstrap, dict(log_spec(tenant.config).settings))
    try:
        deployment = prepare(tenant.config, log, log_spec(tenant.config))
        assert deployment.log.exactly_once is True
        assert not deployment.notes
    finally:
        log.close()
    third = raywatch("check", "--acl", tenant.path)
    assert third.code == 0, third.err
    assert "--operation Create" not in third.out
    assert third.err.count("✓") == len(tenant.needs())
    assert "✗" not in third.err
    assert "!" not in third.err  # nothing more than that, either
    ready = raywatch("check", tenant.path)
    assert ready.code == 0, ready.out
    assert "✓ transactions work: exactly once" in ready.out


@pytest.mark.kafka
def test_rights_beyond_the_least_are_named(tenant: Tenant, raywatch: Callable[..., Said]) -> None:
    spec = tenant.spec
    for name in (spec.alerts, spec.rejects, spec.audit):
        tenant.admin.create(name, 1)
    extra = [Right("topic", tenant.topic, "Write"), Right("group", spec.group, "Delete")]
    tenant.secured.give(PRINCIPAL, [*tenant.needs(), *extra])
    time.sleep(GIVEN_S)
    ran = raywatch("check", "--acl", tenant.path)
    assert ran.code == 0, ran.err
    assert f"! WRITE on topic `{tenant.topic}`: more than raywatch needs" in ran.err
    assert f"! DELETE on group `{spec.group}`: more than raywatch needs" in ran.err


def _missing_in_words(right: Right, words: str, bootstrap: str) -> None:
    """Operation, resource, principal and the command that gives it."""
    assert f"`{PRINCIPAL}` lacks {right}: " in words, (right, words)
    (line,) = commands([right], PRINCIPAL, bootstrap)
    assert line in words, (line, words)


@pytest.mark.kafka
@pytest.mark.timeout(280)
def test_each_right_that_is_taken_away_is_named_and_nothing_is_lost(
    tenant: Tenant, raywatch: Callable[..., Said]
) -> None:
    spec, secured = tenant.spec, tenant.secured
    for name in (spec.alerts, spec.rejects, spec.audit):
        tenant.admin.create(name, 1)
    needs = list(tenant.needs())
    of_lanes = [
        Right("topic", tenant.topic, "Read"),
        Right("group", spec.group, "Read"),
        Right("topic", spec.alerts, "Write"),
        Right("topic", spec.rejects, "Write"),
        Right("transactional-id", spec.lane_prefix, "Write", prefixed=True),
    ]
    assert set(of_lanes) <= set(needs)
    records = [Out(tenant.topic, each.key, each.value) for each in RECORDS]
    size = len(records) // (len(of_lanes) + 1)
    pieces = [records[at * size : (at + 1) * size] for at in range(len(of_lanes) + 1)]
    for piece in pieces:
        piece.append(Out(tenant.topic, b"bad", BAD))  # each has a reject to be written
    secured.give(PRINCIPAL, needs)
    time.sleep(GIVEN_S)
    log = KafkaLog(secured.bootstrap, secured.scram("poor"), exactly_once=True)
    worker = make(spec, log, tenant.partitions)
    blocked: list[str] = []
    with running(worker):
        tenant.write(pieces[0])
        until(lambda: lag(tenant.admin, spec, tenant.partitions) == 0, 60.0)
        for right, piece in zip(of_lanes, pieces[1:], strict=True):
            secured.take(PRINCIPAL, [right])
            time.sleep(GIVEN_S)
            tenant.write(piece)
            until(lambda: worker.stats.state == "blocked", 40.0)
            blocked.append(worker.stats.words)
            _missing_in_words(right, blocked[-1], secured.bootstrap)
            ran = raywatch("check", "--acl", tenant.path)
            assert ran.code == 2, ran.err
            assert ran.err.count("✗") == 1
            assert f"✗ {right} is missing" in ran.err
            assert lag(tenant.admin, spec, tenant.partitions) > 0
            secured.give(PRINCIPAL, [right])
            until(lambda: lag(tenant.admin, spec, tenant.partitions) == 0, 60.0)
    expected = undisturbed(spec, tenant.topic, [each for piece in pieces for each in piece])
    found = said(tenant.admin, spec.alerts)
    assert sum(expected.values()) >= len(pieces)
    assert found == expected
    assert len(records_of(tenant.admin, spec.rejects)) == len(pieces)
    assert worker.stats.opened >= 1 + len(of_lanes)
    log.close()


def records_of(log: Log, topic: str) -> list[bytes | None]:
    return [entry.value for entry in tail(log, topic, begin="earliest", follow=False)]


@pytest.mark.kafka
def test_rights_that_no_lane_needs_are_named_by_whoever_needs_them(
    tenant: Tenant, raywatch: Callable[..., Said]
) -> None:
    spec, secured = tenant.spec, tenant.secured
    for name in (spec.alerts, spec.rejects, spec.audit):
        tenant.admin.create(name, 1)
    tenant.write([Out(spec.alerts, b"k", b"{}"), Out(spec.rejects, b"k", b"{}")])
    secured.give(PRINCIPAL, tenant.needs())
    settings = dict(log_spec(tenant.config).settings)
    said = partial(_missing_in_words, bootstrap=secured.bootstrap)

    def error(right: Right, ask: Callable[[KafkaLog], object]) -> str:
        secured.take(PRINCIPAL, [right])
        time.sleep(GIVEN_S)
        log = KafkaLog(secured.bootstrap, settings)
        with pytest.raises(ConfigError) as raised:
            ask(log)
        log.close()
        secured.give(PRINCIPAL, [right])
        return f"{raised.value.message}; {raised.value.hint}"

    read = Right("topic", spec.alerts, "Read")
    said(
        read, error(read, lambda log: list(tail(log, spec.alerts, begin="earliest", follow=False)))
    )
    write = Right("topic", spec.audit, "Write")
    said(write, error(write, lambda log: log.write([Out(spec.audit, b"k", b"v")])))
    probe = Right("transactional-id", acl.PROBE, "Write")
    said(probe, error(probe, lambda log: log.probe()))  # never "no transactions here"
    seen = Right("topic", tenant.topic, "Read")
    said(seen, error(seen, lambda log: prepare(tenant.config, log, log_spec(tenant.config))))
    group = Right("group", spec.group, "Read")
    said(group, error(group, lambda log: log.committed(spec.group, tenant.partitions)))
    time.sleep(GIVEN_S)
    assert raywatch("check", "--acl", tenant.path).code == 0
    refused = raywatch("rejects", "tail", tenant.path)  # not of the service: a person's
    assert refused.code == 2
    said(Right("topic", spec.rejects, "Read"), refused.err.replace("\nhint: ", "; "))


# ---- the whole service ----------------------------------------------------------------------


@pytest.mark.kafka
@pytest.mark.ray
@pytest.mark.timeout(280)
def test_a_service_with_the_least_rights_says_in_status_and_journal_what_it_lost(
    tenant: Tenant,
) -> None:
    spec, secured = tenant.spec, tenant.secured
    secured.give(PRINCIPAL, acl.rights(tenant.config))
    time.sleep(GIVEN_S)
    bad = Out(tenant.topic, b"bad", BAD)
    with ray_local():
        service = Service(tenant.config)
        audit = Right("topic", spec.audit, "Read")
        tenant.write([Out(spec.audit, b"k", b"{}")])  # what an earlier supervisor decided
        secured.take(PRINCIPAL, [audit])
        time.sleep(GIVEN_S)
        try:
            with pytest.raises(ConfigError) as raised:
                service.start()
            words = f"{raised.value.message}; {raised.value.hint}"
            _missing_in_words(audit, words, secured.bootstrap)
            secured.give(PRINCIPAL, [audit])
            time.sleep(GIVEN_S)
            service.start()
            tenant.write([bad])
            service.drained(60.0)
            until(lambda: verdict(service)["state"] == "healthy", 60.0)
            lost = Right("topic", spec.rejects, "Write")
            secured.take(PRINCIPAL, [lost])
            time.sleep(GIVEN_S)
            tenant.write([bad] * 3)
            until(lambda: told(service, "1 lane is blocked", lost), 60.0)
            until(lambda: any(str(lost) in words for words in service.journal()), 20.0)
            time.sleep(12.0)  # two more tries
            assert sum(str(lost) in words for words in service.journal()) == 1
            owners = service.opened()
            secured.give(PRINCIPAL, [lost])
            service.drained(60.0)
            assert {lane: epoch for lane, (epoch, _) in service.opened().items()} == {
                lane: epoch for lane, (epoch, _) in owners.items()
            }, "an owner ended itself"
            unread = Right("topic", spec.alerts, "Read")
            secured.take(PRINCIPAL, [unread])
            until(lambda: told(service, "", unread), 60.0)
            time.sleep(5.0)
            until(lambda: told(service, "", unread), 5.0)  # and goes on saying so
            secured.give(PRINCIPAL, [unread])
            until(lambda: verdict(service)["state"] == "healthy", 60.0)
        finally:
            service.stop()
    kept = [journal.of_json(value) for value in records_of(tenant.admin, spec.audit)]
    assert any(entry and str(lost) in entry.words for entry in kept)  # and in the audit topic


def told(service: Service, words: str, right: Right) -> bool:
    """Whether the status says these words and names this right."""
    found = verdict(service)
    return words in found["words"] and str(right) in found["why"]


def verdict(service: Service) -> dict[str, Any]:
    return service.call("snapshot")["verdict"]
