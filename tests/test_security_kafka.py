"""Goal: Kafka that asks who is there is read and written over TLS with every mechanism; who is
turned away hears why, once, within seconds, with the exit code of its kind and never a secret.

Method: one real broker with TLS, SASL and rights; transactions through KafkaLog with each mechanism
and with mutual TLS; then everything that an operator gets wrong, one thing at a time. Passwords are
canaries that no message may hold. Tokens come from an OpenID provider on loopback. The command
line is asked as a process, where stderr must hold one error and no line of a client library.
"""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import confluent_kafka as ck
import pytest
from secured import PASSWORDS, provider

from raywatch.actors.kafka import KafkaLog
from raywatch.actors.kafka_rules import GUESS_S, Ear
from raywatch.actors.kafka_security import Right
from raywatch.actors.ports import Committed, Out, Partition
from raywatch.models.errors import ConfigError, RaywatchError, Unreachable

if TYPE_CHECKING:
    from secured import Secured

Name = Callable[[str], str]
pytestmark = pytest.mark.kafka
SCRIPT = Path(sys.executable).parent / "raywatch"
SOON_S = 8.0  # A client that is turned away says so after 1 to 3 s; the rest is for busy machines.
SUBJECT, PRINCIPAL = (
    "/C=DE/O=Acme, Inc./OU=ops/CN=raywatch",
    "CN=raywatch,OU=ops,O=Acme\\, Inc.,C=DE",
)


def rights(topic: str, group: str, lane: str) -> list[Right]:
    """What one lane needs that reads and writes a topic."""
    return [
        Right("topic", topic, "Read"),
        Right("topic", topic, "Write"),
        Right("group", group, "Read"),
        Right("transactional-id", lane, "Write"),
    ]


def works(log: KafkaLog, topic: str, group: str, lane: str) -> None:
    """Read, write and commit in one transaction; the log is closed."""
    here = Partition(topic, 0)
    source, sink = log.source(group, [here]), log.sink(lane, group)
    try:
        sink.open()
        begin = source.committed().get(here, Committed(0)).offset
        end = source.bounds()[here].end
        source.assign({here: begin})
        sink.transact([Out(topic, b"k", b"v")], {here: Committed(end, "note")}, source)
        assert source.committed() == {here: Committed(end, "note")}
        assert log.bounds([here])[here].end > end
        assert len(source.fetch(1, 10.0)) == 1
    finally:
        source.close()
        sink.close()
        log.close()


def turned_away(log: KafkaLog, ask: Callable[[], object]) -> RaywatchError:
    """The error of a question, which comes soon and holds no secret."""
    began = time.monotonic()
    with pytest.raises(RaywatchError) as raised:
        ask()
    assert time.monotonic() - began < SOON_S
    log.close()
    error = raised.value
    assert error.hint, error
    said = f"{error.message} {error.hint} {raised.value!r} {pickle.dumps(error)!r} {log!r}"
    assert "canary" not in said, said
    return error


def each_way(make: Callable[[], KafkaLog]) -> list[RaywatchError]:
    """What a command, a lane that opens and a reader are told."""
    asks: list[Callable[[KafkaLog], object]] = [
        lambda log: log.topics(),
        lambda log: log.sink("raywatch.x.0-of-1", "raywatch.x").open(),
        lambda log: log.source("raywatch.x", [Partition("t", 0)]).committed(),
    ]
    return [turned_away(log, partial(ask, log)) for ask in asks for log in [make()]]


@pytest.fixture(scope="module")
def place(secured: "Secured") -> str:
    """A topic."""
    log = secured.admin()
    log.create("mechanisms", 1)
    log.close()
    return "mechanisms"


# ---- who is let in --------------------------------------------------------------------------


@pytest.mark.parametrize("listener", ["SASL_SSL", "SASL_PLAINTEXT"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password_is_enough(
    secured: "Secured", place: str, topic: Name, mechanism: str, listener: str
) -> None:
    group, lane = topic("g"), topic("lane")
    secured.give("User:raywatch", rights(place, group, lane))
    settings = {**secured.scram("raywatch", mechanism=mechanism), "security.protocol": listener}
    works(KafkaLog(secured.at(listener), settings, exactly_once=True), place, group, lane)


def test_a_token_is_enough_and_is_fetched_with_the_clients_secret(
    secured: "Secured", place: str, topic: Name
) -> None:
    group, lane = topic("g"), topic("lane")
    secured.give("User:robot", rights(place, group, lane))
    with provider(secured, robot="canary-of-robot") as there:
        settings = secured.oauth(there.url, "robot", "canary-of-robot")
        settings["sasl.oauthbearer.scope"] = "kafka.read"
        works(KafkaLog(secured.bootstrap, settings, exactly_once=True), place, group, lane)
        assert {(a["user"], a["grant_type"], a["scope"]) for a in there.asked} == {
            ("robot", "client_credentials", "kafka.read")
        }


def test_a_token_is_renewed_before_it_ends(secured: "Secured", place: str, topic: Name) -> None:
    group, lane = topic("g"), topic("lane")
    secured.give("User:robot", rights(place, group, lane))
    with provider(secured, robot="canary-of-robot") as there:
        there.lifetime_s = 4.0
        settings = secured.oauth(there.url, "robot", "canary-of-robot")
        log = KafkaLog(secured.bootstrap, settings, exactly_once=True)
        source, sink = log.source(group, [Partition(place, 0)]), log.sink(lane, group)
        sink.open()
        for _ in range(8):  # two lifetimes
            sink.transact([Out(place, b"k", b"v")], {Partition(place, 0): Committed(0)}, source)
            time.sleep(1.0)
        source.close()
        sink.close()
        log.close()
        assert len(there.asked) >= 4  # two clients, each again before its first token ended


def test_who_is_a_moment_late_with_the_next_token_is_not_turned_away() -> None:
    said = "SASL OAUTHBEARER mechanism handshake failed: Broker: Request not valid in current SASL"
    late = ck.KafkaError(ck.KafkaError._AUTHENTICATION, f"{said} state: broker's supported ...")
    wrong = ck.KafkaError(ck.KafkaError._AUTHENTICATION, "SASL authentication error: failed")
    once, again = Ear("b:9092", {}), Ear("b:9092", {})
    once(late)
    once.check()
    once(wrong)
    with pytest.raises(ConfigError, match="turned this client away"):
        once.check()
    again(late)  # as a listener without SASL says it, every time; to others than tokens at once
    time.sleep(GUESS_S + 0.1)
    again(late)
    with pytest.raises(ConfigError, match="turned this client away"):
        again.check()
    other = late.str().replace("OAUTHBEARER", "PLAIN")
    plain = Ear("b:9092", {})
    plain(ck.KafkaError(ck.KafkaError._AUTHENTICATION, other))
    with pytest.raises(ConfigError, match="turned this client away"):
        plain.check()


@pytest.mark.parametrize("password", ["", "canary-of-the-key"])
def test_a_certificate_is_enough(
    secured: "Secured", place: str, topic: Name, password: str
) -> None:
    group, lane = topic("g"), topic("lane")
    secured.give(f"User:{PRINCIPAL}", rights(place, group, lane))
    settings = secured.certificate("sealed" if password else "open", SUBJECT, password)
    log = KafkaLog(secured.at("MTLS"), settings, exactly_once=True)
    assert log.rights.principal == f"User:{PRINCIPAL}"  # as brokers write it: rights name it so
    works(log, place, group, lane)


# ---- who is not -----------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password_is_said_at_once(secured: "Secured", mechanism: str) -> None:
    settings = secured.scram("raywatch", "canary-that-is-wrong", mechanism)
    for error in each_way(lambda: KafkaLog(secured.bootstrap, settings, exactly_once=True)):
        assert isinstance(error, ConfigError), error
        assert "turned this client away" in error.message
        assert "uthentication failed" in error.message, error.message
        assert "`username`, `password`" in error.hint


def test_a_mechanism_that_brokers_do_not_have_is_said(secured: "Secured") -> None:
    settings = secured.scram("raywatch") | {"sasl.mechanism": "SCRAM-SHA-512"}
    log = KafkaLog(secured.at("MTLS"), settings, exactly_once=True)
    error = turned_away(log, log.topics)
    assert isinstance(error, ConfigError)


def test_a_broker_of_another_authority_is_not_believed(secured: "Secured", tmp_path: Path) -> None:
    ca = str(secured.security.authority(tmp_path, "somebody else"))
    settings = {**secured.scram("raywatch"), "ssl.ca.location": ca}
    for error in each_way(lambda: KafkaLog(secured.bootstrap, settings, exactly_once=True)):
        assert isinstance(error, ConfigError), error
        assert f"`{secured.bootstrap}` is not believed: unable to get" in error.message
        assert "`kafka.security.ca`" in error.hint


def test_a_broker_with_another_name_in_its_certificate_is_not_believed(secured: "Secured") -> None:
    def named() -> KafkaLog:
        there = secured.at("SASL_SSL", "localhost")
        return KafkaLog(there, secured.scram("raywatch"), exactly_once=True)

    for error in each_way(named):
        assert isinstance(error, ConfigError), error
        assert "not valid for 'localhost'" in error.message
        assert "`kafka.bootstrap` a name in their certificates" in error.hint


PROTOCOLS = [  # the client's protocol, the listener, what the hint is about
    ("PLAINTEXT", "SASL_SSL", "do these brokers want TLS or SASL?"),
    ("PLAINTEXT", "SASL_PLAINTEXT", "do these brokers want TLS or SASL?"),
    ("SSL", "SASL_SSL", "do these brokers want TLS or SASL?"),
    ("SASL_SSL", "SASL_PLAINTEXT", "these brokers speak clear text"),
    ("SASL_PLAINTEXT", "SASL_SSL", "do these brokers want TLS or SASL?"),
    ("SSL", "MTLS", "want another `kafka.security.certificate`, or one at all"),
]


@pytest.mark.parametrize(("protocol", "listener", "hint"), PROTOCOLS)
def test_a_protocol_that_is_not_the_listeners_is_said(
    secured: "Secured", protocol: str, listener: str, hint: str
) -> None:
    settings = {**secured.scram("raywatch"), "security.protocol": protocol}
    if not protocol.startswith("SASL"):
        settings = {k: v for k, v in settings.items() if not k.startswith("sasl")}
    log = KafkaLog(secured.at(listener), settings, exactly_once=True)
    error = turned_away(log, log.topics)
    assert isinstance(error, ConfigError), error
    assert hint in error.hint, (error.message, error.hint)


def test_a_certificate_of_another_authority_is_turned_away(
    secured: "Secured", tmp_path: Path
) -> None:
    secured.security.authority(tmp_path, "somebody else")
    secured.security.issue(tmp_path, "client", SUBJECT)
    settings = {
        "security.protocol": "SSL",
        "ssl.ca.location": secured.ca,
        "ssl.certificate.location": str(tmp_path / "client.pem"),
        "ssl.key.location": str(tmp_path / "client.key"),
    }
    for error in each_way(lambda: KafkaLog(secured.at("MTLS"), settings, exactly_once=True)):
        assert isinstance(error, ConfigError), error
        assert "another `kafka.security.certificate`" in error.hint


def test_tokens_that_do_not_come_or_are_not_believed_are_told_apart(secured: "Secured") -> None:
    with provider(secured, robot="canary-of-robot") as there:

        def told(secret: str = "canary-of-robot") -> RaywatchError:
            settings = secured.oauth(there.url, "robot", secret)
            log = KafkaLog(secured.bootstrap, settings, exactly_once=True)
            return turned_away(log, log.topics)

        wrong = told("canary-that-is-wrong")
        assert isinstance(wrong, ConfigError)
        assert "`token_url`, `username`, `password`" in wrong.hint
        there.lifetime_s = -60.0
        over = told()
        assert isinstance(over, ConfigError)
        assert "unexpired token" in over.message
        there.lifetime_s, there.audience = 300.0, "another service"
        foreign = told()
        assert isinstance(foreign, ConfigError)
        assert "audience" in foreign.hint
        url = there.url
    gone = told()  # nobody listens there any more
    assert isinstance(gone, Unreachable)
    assert url in gone.hint


def test_a_provider_that_is_broken_is_unreachable_and_named(secured: "Secured") -> None:
    with provider(secured, robot="canary-of-robot") as there:
        there.status = 503
        settings = secured.oauth(there.url, "robot", "canary-of-robot")
        log = KafkaLog(secured.bootstrap, settings, exactly_once=True)
        began = time.monotonic()
        with pytest.raises(Unreachable) as raised:
            log.topics()
        assert time.monotonic() - began < 10.0 + SOON_S  # the client asks it again by itself
        assert there.url in raised.value.hint
        assert "canary" not in f"{raised.value.message} {raised.value.hint}"
        log.close()


# ---- files ----------------------------------------------------------------------------------


def test_files_that_are_not_there_or_not_what_they_should_be_are_named(
    secured: "Secured", tmp_path: Path
) -> None:
    good = secured.certificate("sealed", SUBJECT, "canary-of-the-key")
    other = secured.certificate("other", "/CN=other")
    (tmp_path / "no.pem").write_text("this is no certificate")
    cases: list[tuple[dict[str, str], str, str]] = [
        ({"ssl.ca.location": "/gone/ca.pem"}, "`kafka.security.ca`: `/gone/ca.pem`: no such", ""),
        ({"ssl.ca.location": str(tmp_path / "no.pem")}, "no.pem` is not usable", "PEM"),
        ({"ssl.key.location": "/gone/key"}, "`kafka.security.key`: `/gone/key`: no such", ""),
        ({"ssl.certificate.location": "/gone"}, "`kafka.security.certificate`: `/gone`", ""),
        ({"ssl.key.password": "canary-that-is-wrong"}, "sealed.key` is not usable", "key_password"),
        ({"ssl.key.password": ""}, "sealed.key` is not usable", "`key_password`"),
        ({"ssl.key.location": other["ssl.key.location"]}, "other.key` is not usable", "the key of"),
    ]
    for change, said, hint in cases:
        settings = {name: value for name, value in {**good, **change}.items() if value}
        for error in each_way(lambda s=settings: KafkaLog("127.0.0.1:1", s, exactly_once=True)):
            assert isinstance(error, ConfigError)
            assert said in error.message, (error.message, error.hint)
            assert hint in error.hint


# ---- the command line -----------------------------------------------------------------------


def config(secured: "Secured", folder: Path, security: dict[str, Any], bootstrap: str = "") -> Path:
    path = folder / "it.yaml"
    settings = {
        "kafka": {"bootstrap": bootstrap or secured.bootstrap, "security": security},
        "detectors": [
            {
                "name": "hosts",
                "topics": ["mechanisms"],
                "record": {"key": "host", "values": ["value"]},
                "model": "robustz",
            }
        ],
        "store": str(folder / "state"),
        "models": str(folder / "models"),
    }
    path.write_text(json.dumps(settings))  # YAML, too
    return path


@pytest.mark.parametrize("command", ["check", "run", "lag", "alerts tail"])
def test_a_command_with_a_wrong_password_says_one_error_with_2(
    secured: "Secured", place: str, tmp_path: Path, command: str
) -> None:
    assert place == "mechanisms"
    (tmp_path / "password").write_text("canary-that-is-wrong")
    security = {
        "protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-256", "username": "raywatch",
        "password": {"file": str(tmp_path / "password")}, "ca": secured.ca,
    }  # fmt: skip
    path = config(secured, tmp_path, security)
    words = [str(SCRIPT), *command.split(), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, (done.stdout, done.stderr)
    both = done.stdout + done.stderr
    assert both.count("turned this client away") == 1, both
    assert "canary" not in both
    assert not [line for line in both.splitlines() if line.startswith("%")], "librdkafka's own log"
    assert "Traceback" not in both
    assert "`username`, `password`" in both


def test_no_canary_is_among_the_names_of_users() -> None:
    """The checks above search for it: each secret must hold it."""
    assert all("canary" in password for password in PASSWORDS.values())
