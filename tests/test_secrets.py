"""Goal: a secret that raywatch is told is in nothing that it says.

Method: canaries in every place a secret can be: references as they are meant, and values where only
a reference may stand. They are looked for in every form of every settings class, in what commands
print, and, after a real run on Kafka and Ray in which actors are killed and one crashes, in stdout
and stderr, the page's bodies, every topic, the store, and all that Ray wrote about its session. The
search is first shown to find what is there.
"""

import http.client
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import called

from raywatch.actors.kafka import KafkaLog
from raywatch.actors.ports import Out, Partition
from raywatch.cluster.config import load
from raywatch.cluster.deployment import Deployment, log_spec
from raywatch.cluster.secret import holds_credentials
from raywatch.models.errors import EXIT_CHANGE, ConfigError
from raywatch.models.synthetic import Stream, generate, to_json

MARK = "cAnArY"
PASSWORD, KEY_PASSWORD = f"{MARK}-kafka-password", f"{MARK}-key-password"
TOKEN, HMAC_KEY = f"{MARK}-page-token-of-some-length", f"{MARK}-hmac-key-of-thirty-two-bytes-"
ENVIRONMENT = {
    "KAFKA_PASSWORD": PASSWORD,
    "KEY_PASSWORD": KEY_PASSWORD,
    "PAGE_TOKEN": TOKEN,
    "PSEUDONYM_KEY": HMAC_KEY,
}
KEYS = [f"{MARK}-user-{number}" for number in range(8)]


def settings(folder: Path, bootstrap: str = "127.0.0.1:1", **parts: Any) -> dict[str, Any]:
    """A config with a reference wherever one may be."""
    tree: dict[str, Any] = {
        "kafka": {
            "bootstrap": bootstrap,
            "security": {
                "username": "raywatch",
                "password": {"env": "KAFKA_PASSWORD"},
                "key_password": {"env": "KEY_PASSWORD"},
            },
        },
        "detectors": [
            {
                "name": "d",
                "topics": ["events"],
                "record": {
                    "key": "host",
                    "time": "ts",
                    "values": ["value"],
                    "pseudonymise": ["host"],
                    "pseudonym_key": {"env": "PSEUDONYM_KEY"},
                },
                "model": "robustz",
                "start": "earliest",
                "lanes": 2,
                "snapshot_s": 1,
                "alert": {"warmup": 100, "probability": 1e-3},
            }
        ],
        "owners": {"count": 1},
        "pool": {"min": 1, "max": 1},
        "store": str(folder / "state"),
        "models": str(folder / "models"),
        "page": {"port": 0, "token": {"env": "PAGE_TOKEN"}},
    }
    return {**tree, **parts}


def placed(folder: Path, tree: Any) -> Path:
    path = folder / "it.yaml"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return path


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canaries are in the environment."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


# ---- what settings say of themselves --------------------------------------------------------


def forms(value: Any) -> str:
    """All ways in which a value becomes text by itself."""
    said = [repr(value), str(value), f"{value}", f"{value!r:>9}", f"{[value]} { ({'a': value}) }"]
    try:
        raise ValueError("it failed", value)
    except ValueError as error:
        said += traceback.format_exception(error)
    logger = logging.getLogger("raywatch.test")
    said.append(logger.makeRecord("x", 10, "f", 1, "%s %r", (value, value), None).getMessage())
    return "\n".join(said)


def test_no_settings_class_shows_what_it_was_told(tmp_path: Path, told: None) -> None:
    config = load(placed(tmp_path, settings(tmp_path)))
    spec = config.disguised(config.spec())
    page = config.page.spec()
    log = log_spec(config)
    deployment = Deployment(
        "raywatch", log, (), "s", 1, 0.5, config.pool, page, notes=("n",), digest="d"
    )
    revealed = (spec, spec.pseudonym, page, log, deployment)
    for each in (config, *config.detectors, config.kafka, config.page, *revealed):
        assert MARK not in forms(each), type(each)
        assert MARK not in forms(pickle.loads(pickle.dumps(each))), type(each)
    assert MARK not in config.model_dump_json()
    assert MARK not in json.dumps(config.model_dump(), default=str)
    # They do hold it, or this has shown nothing: it travels to who needs it.
    held = b"".join(pickle.dumps(each) for each in revealed)
    for secret in (KEY_PASSWORD, TOKEN, HMAC_KEY):
        assert secret.encode() in held


def test_a_client_and_its_log_show_no_password(tmp_path: Path, told: None) -> None:
    tree = settings(tmp_path)
    tree["kafka"]["security"]["protocol"] = "SASL_PLAINTEXT"
    config = load(placed(tmp_path, tree))
    given = config.kafka.librdkafka()
    assert given["sasl.password"] == PASSWORD
    log = KafkaLog("127.0.0.1:1", given)
    try:
        assert MARK not in forms(log)
    finally:
        log.close()


# ---- values where only a reference may stand ------------------------------------------------

SECRET = f"{MARK}-hunter2"


def changed(path: str, value: Any) -> Callable[[Path], Any]:
    """A config with one setting replaced; `path` in dots."""

    def make(folder: Path) -> Any:
        tree: Any = settings(folder)
        *parents, last = path.split("/")
        at = tree
        for each in parents:
            at = at[int(each)] if each.isdigit() else at.setdefault(each, {})
        at[last] = value
        return tree

    return make


INLINE: dict[str, Callable[[Path], Any]] = {
    "a password": changed("kafka/security/password", SECRET),
    "a password as a number's list": changed("kafka/security/password", [SECRET]),
    "a password as a name": changed("kafka/security/password", {SECRET: None}),
    "a password as another name": changed("kafka/security/password", {"value": SECRET}),
    "a password as a variable's name": changed("kafka/security/password", {"env": f"{SECRET}!"}),
    "two places": changed("kafka/security/password", {"env": "A", "file": SECRET}),
    "a key's password": changed("kafka/security/key_password", SECRET),
    "a client's password": changed("kafka/settings", {"sasl.password": SECRET}),
    "a client's password in its name": changed("kafka/settings", {f"sasl.password={SECRET}": 1}),
    "a client's key": changed("kafka/settings", {"ssl.key.pem": SECRET}),
    "a client's key's password": changed("kafka/settings", {"ssl.key.password": [SECRET]}),
    "a client's passphrase": changed(
        "kafka/settings", {"sasl.oauthbearer.assertion.private.key.passphrase": SECRET}
    ),
    "a client's login": changed("kafka/settings", {"sasl.jaas.config": SECRET}),
    "brokers with a user": changed("kafka/bootstrap", f"u:{SECRET}@kafka:9092"),
    "brokers as a URL": changed("kafka/bootstrap", f"a:1,kafka://u:{SECRET}@kafka:9092"),
    "brokers alone": changed("kafka", f"u:{SECRET}@kafka:9092"),
    "a provider with a user": changed("kafka/security/token_url", f"https://u:{SECRET}@id/t"),
    "a provider with a secret": changed(
        "kafka/security/token_url", f"https://id/t?client_secret={SECRET}"
    ),
    "a store with a user": changed("store", f"s3://u:{SECRET}@bucket/p"),
    "a store with a key": changed("store", f"s3://bucket/p?secret_key={SECRET}"),
    "models with a user": changed("models", f"s3://u:{SECRET}@bucket/p"),
    "a page's token": changed("page/token", SECRET),
    "a page's token as a number": changed("page/token", {"file": SECRET, "env": SECRET}),
    "an HMAC key": changed("detectors/0/record/pseudonym_key", SECRET),
    "an HMAC key as a name": changed("detectors/0/record/pseudonym_key", {SECRET: SECRET}),
    "a setting nobody knows": changed("kafka/password", SECRET),
    "the file of a secret": lambda _: f"{SECRET}\n",
    "the file of a secret as a list": lambda _: f"- {SECRET}\n",
    "a secret that YAML takes for an alias": lambda _: f"page: {{token: *{SECRET}}}\n",
    "a secret that YAML takes for a tag": lambda _: f"page: {{token: !{SECRET} x}}\n",
    "a secret with a sign of YAML": lambda _: f"page:\n  token: @{SECRET}: 'x\n",
    "a secret with a tab": lambda _: f"page:\n\ttoken: {SECRET}\n",
}


@pytest.mark.parametrize("name", INLINE)
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(
    name: str, tmp_path: Path, told: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = placed(tmp_path, INLINE[name](tmp_path))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert MARK not in "".join(traceback.format_exception(caught.value)), name
    for words in (("check", path), ("check", path, "--json"), ("run", path, "--json")):
        said = called(capsys, *words)
        assert said.code == EXIT_CHANGE, said.err
        assert len(said.err) > 20
        assert MARK not in said.out + said.err, name


@pytest.mark.parametrize(
    ("url", "holds"),
    [
        ("s3://u:p@bucket/p", True),
        ("s3://u@bucket/p", True),
        ("s3://bucket/p@home?region=eu", False),
        ("https://id/t?x=1&access_token=2", True),
        ("s3://bucket?X-Amz-Signature=1", True),
        ("kafka-1:9092", False),
        ("u:p@kafka-1:9092", True),
        ("s3://bucket/p?endpoint_override=h:1&scheme=https", False),
    ],
)
def test_what_counts_as_credentials_in_a_url(url: str, holds: bool) -> None:
    assert holds_credentials(url) == holds


@pytest.mark.parametrize("url", [f"http://u:{SECRET}@h:1/", f"{SECRET}", f"ftp://{SECRET}"])
def test_an_address_that_holds_a_secret_is_refused_and_not_repeated(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = called(capsys, "status", "--url", url, "--json")
    assert said.code == EXIT_CHANGE
    assert MARK not in said.out + said.err


def test_commands_that_find_nobody_say_so_without_the_secrets(
    tmp_path: Path, told: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = settings(tmp_path)
    tree["kafka"]["security"]["protocol"] = "SASL_PLAINTEXT"
    tree["page"]["port"] = 1
    path = placed(tmp_path, tree)
    for words in (
        ("check", path),
        ("check", path, "--json"),
        ("check", path, "--offline"),
        ("status", path, "--json"),
        ("models", "list", path),
        ("--version",),
    ):
        said = called(capsys, *words)
        assert MARK not in said.out + said.err, words


# ---- a real run -----------------------------------------------------------------------------


def found_in(folder: Path, wanted: bytes) -> list[str]:
    """Files below a folder that hold some bytes, also in their names."""
    found: list[str] = []
    for each in folder.rglob("*"):
        if wanted.decode() in each.name:
            found.append(str(each))
        if each.is_file() and not each.is_symlink():
            try:
                blob = each.read_bytes()
            except OSError:
                continue  # gone meanwhile
            if wanted in blob:
                where = blob.index(wanted)
                found.append(f"{each}: {blob[max(0, where - 80) : where + 40]!r}")
    return found


def page_of(url: str, path: str, **headers: str) -> bytes:
    host = url.split("/")[2]
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        head = repr(answer.getheaders()).encode()
        return head + answer.read()
    finally:
        connection.close()


def topic_of(log: KafkaLog, topic: str) -> bytes:
    """All that is in a topic, keys and headers included."""
    partitions = [Partition(topic, number) for number in range(log.topics()[topic])]
    bounds = log.bounds(partitions)
    source = log.source("", partitions, keys=True)
    found: list[bytes] = []
    try:
        source.assign({each: it.low for each, it in bounds.items()})
        until = time.monotonic() + 20
        while time.monotonic() < until:
            fetched = source.fetch(1_000, 0.5)
            found += [value or b"" for value in (*fetched.values, *fetched.keys)]
            found += [repr(each).encode() for each in fetched.headers]
            position = source.position()
            if all(position.get(each, it.low) >= it.end for each, it in bounds.items()):
                break
    finally:
        source.close()
    return b"\n".join(found)


def records() -> Iterator[Out]:
    table = generate(Stream(keys=len(KEYS), seed=3, quiet=150, injections=("spike",)), 500)
    for key, value in zip(table.key, to_json(table), strict=True):
        fields = json.loads(value)
        name = KEYS[int(key)]
        yield Out("", name.encode(), json.dumps({**fields, "host": name}).encode())
    for bad in (f'{{"host": "{KEYS[0]}"', f'{{"host": ["{KEYS[0]}"], "ts": 1, "value": 2}}'):
        yield Out("", KEYS[0].encode(), bad.encode())


def children(pid: int) -> dict[int, str]:
    """Processes below one, and what they call themselves."""
    listed = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid=,args="],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    rows = [each.split(None, 2) for each in listed.stdout.splitlines()]
    below, names = {pid}, {}
    for _ in range(5):
        for row in rows:
            if int(row[1]) in below:
                below.add(int(row[0]))
                names[int(row[0])] = row[2] if len(row) > 2 else ""
    return names


def until(true: Callable[[], Any], wait_s: float, why: str) -> Any:
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.3)
    raise AssertionError(why)


class Running:
    """`raywatch run` with the canaries, its Ray's sessions in a folder of their own."""

    def __init__(self, folder: Path, path: Path, rays: Path) -> None:
        self.path, self.folder = path, folder
        self.env = {**os.environ, **ENVIRONMENT, "RAY_TMPDIR": str(rays)}
        self.env.pop("RAY_ADDRESS", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raywatch.cluster.cli", "run", str(path), "--json"],
            cwd=folder, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline()
        self.at = json.loads(self.first)
        self.bearer = {"Authorization": f"Bearer {TOKEN}"}

    def command(self, *words: str) -> bytes:
        """What another command says meanwhile."""
        done = subprocess.run(
            [sys.executable, "-m", "raywatch.cluster.cli", *words],
            cwd=self.folder, env=self.env, capture_output=True, timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode in (0, 1), done.stderr
        return done.stdout + done.stderr

    def lag(self) -> Any:
        """What the page says is left."""
        body = page_of(self.at["page"], "/snapshot.json", **self.bearer).partition(b"]")[2]
        return json.loads(body)["owners"]["lag_records"]

    def owners(self) -> list[int]:
        """Their processes."""
        return [p for p, words in children(self.process.pid).items() if "OwnerActor" in words]

    def hurt(self) -> None:
        """Deaths that Ray and the supervisor speak of, one of which dumps its stacks."""
        owners, below = self.owners(), children(self.process.pid)
        os.kill(owners[0], signal.SIGABRT)
        os.kill(next(p for p, words in below.items() if "ScorerActor" in words), signal.SIGKILL)
        until(lambda: set(self.owners()) - set(owners), 60, "no owner came back")

    def pages(self) -> list[bytes]:
        """All that the page says, with and without its token."""
        where = ("/", "/snapshot.json", "/metrics", "/healthz", "/login", "/none")
        url = self.at["page"]
        return [page_of(url, w, **h) for w in where for h in ({}, self.bearer)]

    def end(self) -> list[bytes]:
        """Interrupt it; what it said."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=90)
        return [self.first.encode(), out.encode(), err.encode()]


@pytest.mark.kafka
@pytest.mark.ray
def test_nothing_that_a_real_run_with_deaths_leaves_behind_holds_a_secret_or_a_clear_key(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    events, name = topic("events"), topic("d").lower()
    log = KafkaLog(kafka.bootstrap)
    log.create(events, 2)
    log.write([Out(events, each.key, each.value) for each in records()])
    tree = settings(tmp_path, kafka.bootstrap)
    tree["detectors"][0] |= {"name": name, "topics": [events]}
    tree["audit"] = f"{name}.audit"
    rays = Path(f"/tmp/rs{os.getpid()}")  # paths of sockets must be short
    rays.mkdir()
    try:
        said = ran(tmp_path, placed(tmp_path, tree), rays, log, name, events)
        said += [topic_of(log, f"{name}.{each}") for each in ("alerts", "rejects", "audit")]
        # It would be found, and there was something to find it in.
        assert MARK.encode() in topic_of(log, events)
        assert len(found_in(rays, b"OwnerActor")) > 3
        assert b"h1_" in b"".join(said)
        assert re.search(rb"died|gone|restart", b"".join(said)), "nobody spoke of the deaths"
        assert [each[:400] for each in said if MARK.encode() in each] == []
        for folder in (tmp_path / "state", tmp_path / "models", rays):
            assert found_in(folder, MARK.encode()) == []
    finally:
        log.close()
        shutil.rmtree(rays, ignore_errors=True)


def ran(folder: Path, path: Path, rays: Path, log: KafkaLog, name: str, events: str) -> list[bytes]:
    """A run, its deaths, and everything that was said meanwhile."""
    running = Running(folder, path, rays)
    try:
        until(lambda: f"{name}.alerts" in log.topics(), 30, "no alerts topic")
        until(lambda: b"h1_" in topic_of(log, f"{name}.alerts"), 60, "no alert")
        until(lambda: list((folder / "state").rglob("snapshots/**/*-*")), 30, "no snapshot")
        running.hurt()
        log.write([Out(events, each.key, each.value) for each in records()])
        until(lambda: running.lag() == 0, 60, "it did not go on")
        said = running.pages()
        assert b"h1_" in said[3]  # the alerts are there, under pseudonyms
        said += [
            running.command("status", "--address", running.at["ray"], "--json"),
            running.command("check", str(path), "--json"),
            running.command("lag", str(path), "--json"),
            running.command("alerts", "tail", str(path), "--json"),
            running.command("rejects", "tail", str(path), "--json"),
        ]
        return said + running.end()
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate(timeout=30)
