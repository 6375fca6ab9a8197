"""Goal: every choice that lets strangers in is said by `raywatch check`, and by nothing else.

Method: each rule on a config or a machine that has exactly its fault, and on its cure; then the
command on real files with bad rights, and a real Ray of `raywatch run` whose sockets are looked at.
"""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import called

from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.runtime import LogSpec
from raywatch.cluster.config import Config, load
from raywatch.cluster.deployment import prepare
from raywatch.cluster.insecure import Machine, Risk, of_config, of_machine
from raywatch.models.errors import EXIT_CHANGE, EXIT_OK

ROOT = Path(__file__).resolve().parent.parent
FAR = "kafka-1.example:9093"
PLAIN = {"username": "u", "password": {"env": "X"}}


def config(bootstrap: str = "127.0.0.1:9092", **parts: Any) -> Config:
    """A config; `security` and `settings` are Kafka's."""
    kafka: dict[str, Any] = {"bootstrap": bootstrap}
    kafka |= {name: parts.pop(name) for name in ("security", "settings") if name in parts}
    detector = {"name": "d", "topics": ["t"], "record": {"values": ["x"]}, "model": "robustz"}
    return Config.model_validate({"kafka": kafka, "detectors": [detector], **parts})


def words(risks: "list[Risk] | Any") -> str:
    found = list(risks)
    assert all(each.hint for each in found), found
    return " | ".join(each.words for each in found)


FAULTS: dict[str, tuple[Config, Config, str]] = {
    "plaintext": (config(FAR), config(FAR, security={"protocol": "SSL"}), "(PLAINTEXT)"),
    "plaintext is at home on loopback": (
        config(f"127.0.0.1:1,{FAR}"),
        config("localhost:1,[::1]:2,127.9.9.9:3"),
        "kafka-1.example",
    ),
    "SASL in the clear": (
        config(FAR, security={"protocol": "SASL_PLAINTEXT", **PLAIN}),
        config(FAR, security={"protocol": "SASL_SSL", **PLAIN}),
        "can be guessed from can be read",
    ),
    "PLAIN in the clear": (
        config(FAR, security={"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", **PLAIN}),
        config(FAR, security={"protocol": "SASL_SSL", "mechanism": "PLAIN", **PLAIN}),
        "the password travels in clear text",
    ),
    "a token in the clear": (
        config(
            FAR,
            security={
                "protocol": "SASL_PLAINTEXT",
                "mechanism": "OAUTHBEARER",
                "token_url": "https://id.example/t",
                **PLAIN,
            },
        ),
        config("127.0.0.1:1", security={"protocol": "SASL_PLAINTEXT", **PLAIN}),
        "the token travels in clear text",
    ),
    "a provider in the clear": (
        config(
            FAR,
            security={
                "protocol": "SASL_SSL",
                "mechanism": "OAUTHBEARER",
                "token_url": "http://id.example/t",
                **PLAIN,
            },
        ),
        config(
            FAR,
            security={
                "protocol": "SASL_SSL",
                "mechanism": "OAUTHBEARER",
                "token_url": "http://127.0.0.1/t",
                **PLAIN,
            },
        ),
        "client secret travels in clear text",
    ),
    "no check of the broker's certificate": (
        config(settings={"enable.ssl.certificate.verification": False}),
        config(settings={"enable.ssl.certificate.verification": True}),
        "whoever answers is believed",
    ),
    "no check of the broker's name": (
        config(settings={"ssl.endpoint.identification.algorithm": "none"}),
        config(settings={"ssl.endpoint.identification.algorithm": "https"}),
        "whoever answers is believed",
    ),
    "the page in the clear": (
        config(page={"host": "0.0.0.0", "token": {"env": "T"}}),
        config(
            page={"host": "0.0.0.0", "token": {"env": "T"}, "certificate": "c", "key": "k"},
        ),
        "its token travels in clear text",
    ),
    "a store in the clear": (
        config(store="s3://b/p?endpoint_override=store.example:9000&scheme=http"),
        config(store="s3://b/p?endpoint_override=127.0.0.1:9000&scheme=http"),
        "`store` is spoken to in clear text",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_choice_is_said_and_its_cure_is_not(name: str) -> None:
    bad, good, said = FAULTS[name]
    (risk,) = of_config(bad)
    assert said in risk.words
    assert list(of_config(good)) == []


def mode(text: str) -> int:
    return stat.S_IFREG | int(text, 8)


@pytest.mark.parametrize(
    ("bad", "good", "said"),
    [
        (
            Machine(secrets={"/s": mode("0604")}),
            Machine(secrets={"/s": mode("0640")}),
            "the secret in `/s` can be read by everybody on this machine (mode 0604)",
        ),
        (
            Machine(secrets={"/s": mode("0646")}),
            Machine(secrets={"/s": mode("0600")}),
            "can be read and written by everybody",
        ),
        (
            Machine(folders={"/state": mode("0777")}),
            Machine(folders={"/state": mode("0775")}),
            "`/state` can be written by everybody on this machine (mode 0777)",
        ),
        (
            Machine(folders={"/state": mode("1777")}),  # others cannot delete, but may add
            Machine(folders={"/state": mode("0755")}),
            "(mode 1777)",
        ),
        (Machine(ray_mode="disabled"), Machine(ray_mode="token"), "RAY_AUTH_MODE=disabled"),
        (
            Machine(rays={"10.0.0.1:6379": False}),
            Machine(rays={"10.0.0.1:6379": True}),
            "the Ray cluster at 10.0.0.1:6379 asks nobody for a token",
        ),
    ],
)
def test_what_files_and_processes_allow_is_said_and_its_cure_is_not(
    bad: Machine, good: Machine, said: str
) -> None:
    assert said in words(of_machine(bad))
    assert words(of_machine(good)) == ""


def test_what_is_not_known_is_said_neither_way() -> None:
    assert words(of_machine(Machine())) == ""


@pytest.mark.parametrize("name", ["demo", "local", "production"])
def test_shipped_configs_have_no_risk(name: str) -> None:
    assert words(of_config(load(ROOT / "configs" / f"{name}.yaml"))) == ""


def test_check_says_each_risk_of_the_files_around_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    token, state, models = tmp_path / "token", tmp_path / "state", tmp_path / "models"
    token.write_text("a-token-of-some-length\n")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    for each in (state, models, models / "m"):
        each.mkdir()
    path = tmp_path / "it.yaml"
    path.write_text(
        json.dumps(
            {
                "kafka": "embedded",
                "detectors": [
                    {"name": "d", "topics": ["t"], "record": {"values": ["x"]}, "model": "robustz"}
                ],
                "store": str(state),
                "models": str(models),
                "page": {"token": {"file": str(token)}},
            }
        )
    )
    open_to_all = (token, tmp_path / ".ray" / "auth_token", state, models, models / "m", path)
    for each in open_to_all:
        each.chmod(0o700 if each.is_dir() else 0o600)
    calm = called(capsys, "check", path, "--json")
    assert calm.code == EXIT_OK
    assert [each for each in json.loads(calm.out)["findings"] if each["state"] == "warn"] == []
    for each in open_to_all:
        each.chmod(0o777 if each.is_dir() else 0o666)
    said = called(capsys, "check", path, "--json")
    assert said.code == EXIT_OK  # a warning is no failure
    warned = [f["words"] for f in json.loads(said.out)["findings"] if f["state"] == "warn"]
    assert len(warned) == len(open_to_all), warned
    for each in open_to_all:
        assert [w for w in warned if f"`{each}`" in w], each
    for each in open_to_all:
        each.chmod(0o700 if each.is_dir() else 0o600)


def test_check_refuses_secrets_that_are_there_and_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHORT", "canary-short")
    record = {
        "key": "k",
        "values": ["x"],
        "pseudonymise": ["k"],
        "pseudonym_key": {"env": "SHORT"},
    }
    detector = {"name": "d", "topics": ["t"], "record": record, "model": "robustz"}
    base: dict[str, Any] = {"kafka": "embedded", "detectors": [detector]}
    other = {**detector, "record": {"values": ["x"]}}
    files = {"certificate": str(tmp_path / "none.pem"), "key": str(tmp_path / "none.key")}
    for change, said in (
        ({}, "`record.pseudonym_key` of `d` has 12 bytes"),
        (
            {"detectors": [other], "page": {"token": {"env": "SHORT"}}},
            "the token of the page has 12 characters",
        ),
        ({"detectors": [other], "page": files}, "are no certificate and its key"),
    ):
        path = tmp_path / "it.yaml"
        path.write_text(json.dumps({**base, **change}))
        found = called(capsys, "check", path)
        assert found.code == EXIT_CHANGE, found.out
        assert said in found.out
        assert "canary" not in found.out + found.err


def test_a_ray_of_ones_own_is_for_this_machine_and_asks_for_its_token() -> None:
    """In a process of its own, whose environment says nothing of Ray."""
    code = """
import json, sys, stat
from pathlib import Path
import ray, psutil
from raywatch.cluster import insecure, runtime
runtime.start_local(2)
here = [psutil.Process(), *psutil.Process().children(recursive=True)]
open_ = [c.laddr.ip for p in here for c in p.net_connections("inet") if c.status == "LISTEN"]
token = Path.home() / ".ray" / "auth_token"
found = insecure.look(insecure.Config.model_validate(json.loads(sys.argv[1])))
print(json.dumps({
    "processes": len(here), "open": sorted(set(open_)), "sockets": len(open_),
    "token": stat.S_IMODE(token.stat().st_mode), "rays": found.rays,
    "address": runtime.address(),
}))
runtime.leave()
"""
    given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code, config().model_dump_json()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=given,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    found = json.loads(done.stdout)
    assert found["processes"] > 3
    assert found["sockets"] > 3
    assert set(found["open"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert found["address"].startswith("127.0.0.1:")
    assert found["token"] == 0o600
    assert found["rays"]["127.0.0.1"] is True


def test_the_journal_begins_with_the_risks_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T", "a-token-of-some-length")
    log = EmbeddedLog(EmbeddedBroker())
    log.create("t", 1)
    places = {"store": str(tmp_path / "state"), "models": str(tmp_path / "models")}
    page = {"host": "0.0.0.0", "port": 0, "token": {"env": "T"}}
    risky = prepare(config(page=page, **places), log, LogSpec(embedded="x"))
    said = [each for each in risky.notes if each.startswith("insecure: ")]
    assert len(said) == 1
    assert "without TLS" in said[0]
    calm = prepare(config(**places), log, LogSpec(embedded="x"))
    assert not [each for each in calm.notes if each.startswith("insecure: ")]
