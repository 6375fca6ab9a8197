"""How does a Kafka of one's own ask who is there? Certificates, users and tokens of its own.

    plan(folder, host)     what `KafkaCluster(..., secured=)` adds to its nodes: plain values
    issue(folder, ...)     a certificate of the cluster's own authority, for a client
    token(folder, ...)     a token (JWT) that the brokers believe

Listeners, at the port of the node plus OFFSETS: SASL_SSL (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512,
OAUTHBEARER), MTLS (a client certificate is asked for), SASL_PLAINTEXT. Who has no rights may do
nothing; `admin` may do everything, and so may whoever reaches the controller's port on `host`.
Needs `openssl`. For development and tests: keys and passwords lie in the folder, readable by its
owner alone.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raywatch.models.errors import ConfigError

OFFSETS = {"SASL_SSL": 0, "MTLS": 2, "SASL_PLAINTEXT": 3}
PROTOCOLS = {"SASL_SSL": "SASL_SSL", "MTLS": "SSL", "SASL_PLAINTEXT": "SASL_PLAINTEXT"}
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
ADMIN = "admin"
AUDIENCE = "kafka"
DAYS = "3650"
OPENSSL_S = 30.0
CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
LOGIN = "org.apache.kafka.common.security"
VALIDATOR = f"{LOGIN}.oauthbearer.OAuthBearerValidatorCallbackHandler"


def openssl(folder: Path, *words: str, stdin: bytes = b"") -> bytes:
    """Run openssl in a folder; what it writes to stdout. Raises ConfigError."""
    program = shutil.which("openssl")
    if program is None:
        raise ConfigError("`openssl` is not on the path", hint="apt install openssl")
    done = subprocess.run(
        [program, *words],
        cwd=folder,
        input=stdin,
        capture_output=True,
        timeout=OPENSSL_S,
        check=False,
    )
    if done.returncode != 0:
        raise ConfigError(f"`openssl {words[0]}` failed: {done.stderr.decode().strip()[-500:]}")
    return done.stdout


def authority(folder: Path, name: str = "raywatch test authority") -> Path:
    """An authority: `ca.pem` and its key. Returns the certificate."""
    words = ["req", "-x509", *CURVE, "-nodes", "-days", DAYS, "-subj", f"/CN={name}"]
    openssl(folder, *words, "-keyout", "ca.key", "-out", "ca.pem")
    return folder / "ca.pem"


def issue(folder: Path, stem: str, subject: str, *, names: str = "", password: str = "") -> Path:
    """A certificate `STEM.pem` with its key `STEM.key`, by the authority of the folder.

    Args:
        folder: of the authority.
        stem: of the two files.
        subject: as openssl writes it: `/O=acme/CN=raywatch`.
        names: subject alternative names: `IP:127.0.0.1,DNS:kafka`.
        password: of the key, none if empty.
    """
    key, request, certificate = f"{stem}.key", f"{stem}.csr", f"{stem}.pem"
    openssl(
        folder, "req", *CURVE, "-nodes", "-subj", subject, "-keyout", key, "-out", request,
    )  # fmt: skip
    (folder / f"{stem}.ext").write_text(f"subjectAltName={names}\n" if names else "")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", DAYS]
    extended = ["-extfile", f"{stem}.ext"]
    openssl(folder, "x509", "-req", "-in", request, *signing, *extended, "-out", certificate)
    if password:
        sealing = ["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", key, "-passout", "stdin"]
        sealed = openssl(folder, *sealing, stdin=f"{password}\n".encode())
        (folder / key).write_bytes(sealed)
    return folder / certificate


def token(
    folder: Path, subject: str, *, lifetime_s: float = 300.0, audience: str = AUDIENCE
) -> str:
    """A signed token for a subject; a negative lifetime is one that is over."""
    now = time.time()
    claims = {"sub": subject, "aud": audience, "iat": int(now), "exp": int(now + lifetime_s)}
    head = {"alg": "RS256", "typ": "JWT", "kid": "raywatch"}
    text = ".".join(_encoded(json.dumps(part).encode()) for part in (head, claims))
    signature = openssl(folder, "dgst", "-sha256", "-sign", "token.key", stdin=text.encode())
    return f"{text}.{_encoded(signature)}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _token_keys(folder: Path) -> Path:
    """The key that tokens are signed with, and the document by which brokers check them."""
    openssl(folder, "genrsa", "-out", "token.key", "2048")
    said = openssl(folder, "rsa", "-in", "token.key", "-noout", "-modulus").decode()
    modulus = _encoded(bytes.fromhex(said.strip().partition("=")[2]))
    key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "raywatch", "n": modulus, "e": "AQAB"}
    path = folder / "jwks.json"
    path.write_text(json.dumps({"keys": [key]}))
    return path


def plan(folder: Path, host: str, users: Mapping[str, str]) -> dict[str, Any]:
    """Make the authority, the certificates and the keys below a folder, once.

    Args:
        folder: of the cluster; everything goes into `security/` below it.
        host: IPv4 address that brokers are found at; the only name in their certificate.
        users: name -> password, for PLAIN and SCRAM; `ADMIN` must be among them.
    """
    here = folder / "security"
    if not (here / "plan.json").exists():
        here.mkdir(parents=True, exist_ok=True, mode=0o700)
        authority(here)
        issue(here, "broker", "/CN=broker", names=f"IP:{host}")
        chain = (here / "broker.key").read_text() + (here / "broker.pem").read_text()
        (here / "broker.store.pem").write_text(chain)
        url = _token_keys(here).as_uri()
        (here / "admin.properties").write_text(_client(here, users))
        for name, password in users.items():
            (here / f"{name}.password").write_text(password)
        made = {
            "listeners": OFFSETS,
            "settings": _server(here, users, url),
            "format": _users(users),
            "jvm": [f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={url}"],
            "client": str(here / "admin.properties"),
        }
        # Last, and whole or not at all: a folder with it is complete.
        (here / "plan.new").write_text(json.dumps(made))
        os.replace(here / "plan.new", here / "plan.json")
    return json.loads((here / "plan.json").read_text())


def _users(users: Mapping[str, str]) -> list[str]:
    """Words for `format`: SCRAM users of the first hour."""
    words: list[str] = []
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
        for name, password in users.items():
            words += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
    return words


def _login(module: str, options: Mapping[str, str]) -> str:
    said = " ".join(f'{name}="{value}"' for name, value in options.items())
    return f"{LOGIN}.{module} required {said};"


def _client(here: Path, users: Mapping[str, str]) -> str:
    """How Kafka's own tools connect: as the super user."""
    login = _login("scram.ScramLoginModule", {"username": ADMIN, "password": users[ADMIN]})
    lines = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.jaas.config": login,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": here / "ca.pem",
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def _server(here: Path, users: Mapping[str, str], jwks: str) -> dict[str, str]:
    """Lines of server.properties."""
    protocols = {**PROTOCOLS, "CONTROLLER": "PLAINTEXT"}
    own = {"username": ADMIN, "password": users[ADMIN]}
    known = {f"user_{name}": password for name, password in users.items()}
    logins = {
        "plain": _login("plain.PlainLoginModule", {**own, **known}),
        "scram-sha-256": _login("scram.ScramLoginModule", own),
        "scram-sha-512": _login("scram.ScramLoginModule", own),
        "oauthbearer": _login("oauthbearer.OAuthBearerLoginModule", {}),
    }
    lines = {
        "listener.security.protocol.map": ",".join(f"{n}:{p}" for n, p in protocols.items()),
        "inter.broker.listener.name": "SASL_SSL",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(here / "broker.store.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(here / "ca.pem"),
        "listener.name.mtls.ssl.client.auth": "required",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # ANONYMOUS is whoever reaches the controller's listener: the nodes themselves.
        "super.users": f"User:{ADMIN};User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "false",
        # Refused clients wait 100 ms before they hear of it: tests have many of them.
        "connection.failed.authentication.delay.ms": "20",
    }
    for listener in ("sasl_ssl", "sasl_plaintext"):
        before = f"listener.name.{listener}"
        lines[f"{before}.sasl.enabled.mechanisms"] = ",".join(MECHANISMS)
        lines |= {f"{before}.{each}.sasl.jaas.config": said for each, said in logins.items()}
        oauth = f"{before}.oauthbearer.sasl"
        lines[f"{oauth}.server.callback.handler.class"] = VALIDATOR
        lines[f"{oauth}.oauthbearer.jwks.endpoint.url"] = jwks
        lines[f"{oauth}.oauthbearer.expected.audience"] = AUDIENCE
    return lines


def said(plan: Mapping[str, Any]) -> str:
    """How to reach the cluster, for a person: settings of a raywatch config, and the password."""
    here = Path(plan["client"]).parent
    return (
        f"kafka.security: {{protocol: SASL_SSL, mechanism: SCRAM-SHA-512, username: raywatch,\n"
        f"  password: {{file: {here / 'raywatch.password'}}}, ca: {here / 'ca.pem'}}}\n"
        "`raywatch` has no rights yet: `raywatch check CONFIG --acl` says which it needs, and\n"
        f"`--command-config {plan['client']}` makes Kafka's own tools the super user"
    )
