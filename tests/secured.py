"""A Kafka that asks who is there, for tests: clients, tokens, and rights given and taken away."""

import base64
import json
import threading
import urllib.parse
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from raywatch.actors.kafka import KafkaLog
from raywatch.actors.kafka_security import Right

if TYPE_CHECKING:
    from tools.kafka import KafkaCluster

PASSWORDS = {  # canaries: none of them may ever be seen
    "admin": "canary-of-the-admin",
    "raywatch": "canary-of-raywatch",
    "poor": "canary-of-the-poor",
}
WAIT_S = 15.0
RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}


class Secured:
    """A secured cluster, and how to reach it."""

    def __init__(self, cluster: "KafkaCluster", security: Any) -> None:
        self.cluster, self.security = cluster, security
        self.folder = cluster.folder / "security"
        self.ca = str(self.folder / "ca.pem")
        self.bootstrap = cluster.bootstrap
        self._admin = AdminClient(
            {"bootstrap.servers": self.bootstrap, "log_level": 0, **self.scram("admin")}
        )

    def at(self, listener: str, host: str = "127.0.0.1") -> str:
        """The address of a listener: SASL_SSL, MTLS, SASL_PLAINTEXT."""
        return f"{host}:{self.cluster.port + self.security.OFFSETS[listener]}"

    def scram(self, user: str, password: str = "", mechanism: str = "SCRAM-SHA-512") -> Any:
        """Settings of a client with a password."""
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": mechanism,
            "sasl.username": user,
            "sasl.password": password or PASSWORDS.get(user, "canary-of-nobody"),
            "ssl.ca.location": self.ca,
        }

    def oauth(self, url: str, user: str, secret: str) -> Any:
        """Settings of a client that fetches tokens."""
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.token.endpoint.url": url,
            "sasl.oauthbearer.client.id": user,
            "sasl.oauthbearer.client.secret": secret,
            "ssl.ca.location": self.ca,
        }

    def certificate(self, stem: str, subject: str, password: str = "") -> Any:
        """Settings of a client with a certificate of the cluster's authority."""
        if not (self.folder / f"{stem}.pem").exists():
            self.security.issue(self.folder, stem, subject, password=password)
        sealed = {"ssl.key.password": password} if password else {}
        return {
            "security.protocol": "SSL",
            "ssl.ca.location": self.ca,
            "ssl.certificate.location": str(self.folder / f"{stem}.pem"),
            "ssl.key.location": str(self.folder / f"{stem}.key"),
            **sealed,
        }

    def admin(self) -> KafkaLog:
        """The log of the super user."""
        return KafkaLog(self.bootstrap, self.scram("admin"))

    # ---- rights ----------------------------------------------------------------------------

    def give(self, principal: str, rights: Iterable[Right]) -> None:
        """Give rights, as ACLs."""
        bindings = [self._binding(principal, each) for each in rights]
        for future in self._admin.create_acls(bindings, request_timeout=WAIT_S).values():
            future.result(WAIT_S)

    def take(self, principal: str, rights: Iterable[Right] | None = None) -> None:
        """Take rights away; None: all."""
        every = AclBindingFilter(
            ResourceType.ANY, None, ResourcePatternType.ANY, principal, None, AclOperation.ANY,
            AclPermissionType.ANY,
        )  # fmt: skip
        filters = [every] if rights is None else [self._filter(principal, r) for r in rights]
        for future in self._admin.delete_acls(filters, request_timeout=WAIT_S).values():
            found = future.result(WAIT_S)
            assert found or rights is None, "this right was never given"

    @staticmethod
    def _parts(principal: str, right: Right) -> tuple[Any, ...]:
        pattern = ResourcePatternType.PREFIXED if right.prefixed else ResourcePatternType.LITERAL
        operation = AclOperation[right.operation.upper()]
        where = RESOURCES[right.resource], right.name, pattern
        return (*where, principal, "*", operation, AclPermissionType.ALLOW)

    def _binding(self, principal: str, right: Right) -> AclBinding:
        return AclBinding(*self._parts(principal, right))

    def _filter(self, principal: str, right: Right) -> AclBindingFilter:
        return AclBindingFilter(*self._parts(principal, right))


class Provider:
    """A token endpoint on loopback: the OpenID client credentials flow, and what it was asked."""

    def __init__(self, secured: Secured, clients: Mapping[str, str]) -> None:
        self.lifetime_s, self.audience, self.status = 300.0, "kafka", 200
        self.asked: list[dict[str, str]] = []
        outer = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length", "0"))
                form = dict(urllib.parse.parse_qsl(self.rfile.read(size).decode()))
                scheme, _, said = self.headers.get("Authorization", "").partition(" ")
                assert scheme == "Basic", scheme
                user, _, secret = base64.b64decode(said).decode().partition(":")
                outer.asked.append({**form, "user": user})
                if clients.get(user) != secret or outer.status != 200:
                    self._say(outer.status if outer.status != 200 else 401, {"error": "no"})
                    return
                token = secured.security.token(
                    secured.folder, user, lifetime_s=outer.lifetime_s, audience=outer.audience
                )
                self._say(200, {"access_token": token, "token_type": "Bearer", "expires_in": 300})

            def _say(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_S)


@contextmanager
def provider(secured: Secured, **clients: str) -> Generator[Provider]:
    """A token endpoint that knows these clients and their secrets."""
    there = Provider(secured, clients)
    try:
        yield there
    finally:
        there.close()
