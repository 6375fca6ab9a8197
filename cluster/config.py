"""The config file: every setting, its default, its unit, its bound, and why one would change it.

    config = load("local.yaml")        # or ConfigError: file, line, path, value, what is allowed
    spec = config.spec("hosts")        # what a lane must know: plain values

Secrets are references, `{env: NAME}` or `{file: PATH}` (secret.py): no repr, log or status of a
config can show one. docs/configuration.md is generated from here (cluster/reference.py).
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raywatch.actors.names import Names
from raywatch.actors.pseudonyms import SECRET_BYTES_MIN, HmacKey
from raywatch.actors.spec import DetectorSpec
from raywatch.cluster.page_spec import PageSpec, is_loopback
from raywatch.cluster.schema import Detector, Settings, Topic
from raywatch.cluster.secret import SECRET, Secret, holds_credentials
from raywatch.models.errors import ConfigError

DETECTORS_MAX = 256  # each is a consumer group, lanes and topics of its own
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EMBEDDED = "embedded"

# Settings of librdkafka that carry a promise: changing one would lose or repeat records.
OWNED = (
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
    "isolation.level",
    "transactional.id",
)


class Security(Settings):
    """How to reach brokers that ask who is there. Secrets are references, never values."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="How the connection is protected; `SASL_SSL` is usual."
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        default="SCRAM-SHA-512",
        description="How the client proves who it is, with a SASL protocol.",
    )
    username: str = Field(
        default="", description="User for PLAIN and SCRAM, client id for OAUTHBEARER."
    )
    password: Secret | None = Field(
        default=None, description="Password for PLAIN and SCRAM, client secret for OAUTHBEARER."
    )
    token_url: str = Field(
        default="", description="Token endpoint of the OpenID provider (OAUTHBEARER)."
    )
    scope: str = Field(
        default="", description="Scope to ask the OpenID provider for (OAUTHBEARER)."
    )
    ca: str = Field(
        default="", description="PEM file of the authority; empty: those of the machine."
    )
    certificate: str = Field(
        default="", description="PEM file of the client's certificate (mutual TLS)."
    )
    key: str = Field(default="", description="PEM file of the client's private key (mutual TLS).")
    key_password: Secret | None = Field(default=None, description="Password of that key.")

    @field_validator("token_url")
    @classmethod
    def _no_credentials(cls, url: str) -> str:
        if holds_credentials(url):
            raise ValueError("it holds credentials: `username` and `password` are for them")
        return url

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.protocol.startswith("SASL") and (not self.username or self.password is None):
            raise ValueError(f"{self.protocol} needs `username` and `password`")
        if self.mechanism == "OAUTHBEARER" and not self.token_url:
            raise ValueError("OAUTHBEARER needs `token_url`")
        if bool(self.certificate) != bool(self.key):
            raise ValueError("`certificate` and `key` belong together")
        return self

    def librdkafka(self) -> dict[str, str]:
        """The settings of the client library, secrets revealed. Raises ConfigError."""
        found = {"security.protocol": self.protocol}
        password = self.password.reveal() if self.password is not None else ""
        if self.protocol.startswith("SASL"):
            found["sasl.mechanism"] = self.mechanism
            if self.mechanism == "OAUTHBEARER":
                found["sasl.oauthbearer.method"] = "oidc"
                found["sasl.oauthbearer.token.endpoint.url"] = self.token_url
                found["sasl.oauthbearer.client.id"] = self.username
                found["sasl.oauthbearer.client.secret"] = password
                found["sasl.oauthbearer.scope"] = self.scope
            else:
                found["sasl.username"] = self.username
                found["sasl.password"] = password
        found["ssl.ca.location"] = self.ca
        found["ssl.certificate.location"] = self.certificate
        found["ssl.key.location"] = self.key
        if self.key_password is not None:
            found["ssl.key.password"] = self.key_password.reveal()
        return {name: value for name, value in found.items() if value}


class Kafka(Settings):
    """The brokers."""

    bootstrap: str = Field(
        min_length=1,
        max_length=4_096,
        description="Brokers as `host:port`, comma between them; or `embedded`: a log in memory "
        "for demos and tests, gone with the process. `kafka: embedded` is short for it.",
    )
    security: Security = Field(
        default_factory=Security,
        description="How to reach brokers that ask who is there.",
    )
    settings: dict[str, str | int | float | bool] = Field(
        default_factory=dict[str, str | int | float | bool],
        max_length=200,
        description="Passed to librdkafka as they are, e.g. `{client.rack: a}`. Not those that "
        "carry a promise (`group.id`, `isolation.level`, ...), and no secrets.",
    )

    @field_validator("settings")
    @classmethod
    def _harmless(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for name in settings:
            if name in OWNED:
                raise ValueError(f"`{name}` is set by raywatch: it carries a promise")
            if re.search(SECRET, name):
                shown = name.partition("=")[0]
                raise ValueError(f"`{shown}` is a secret: put a reference under `security`")
        return settings

    @field_validator("bootstrap")
    @classmethod
    def _no_credentials(cls, bootstrap: str) -> str:
        if any(holds_credentials(each) for each in bootstrap.split(",")):
            raise ValueError("`bootstrap` holds credentials: put a reference under `security`")
        return bootstrap

    @property
    def embedded(self) -> bool:
        """Whether the log lives in memory."""
        return self.bootstrap == EMBEDDED

    def librdkafka(self) -> dict[str, str]:
        """Settings for every client, secrets revealed: not for logs. Raises ConfigError."""
        found = self.security.librdkafka()
        for name, value in self.settings.items():
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)
        return found


class Owners(Settings):
    """The actors that hold lanes."""

    count: int = Field(default=2, ge=1, le=1_000, description="Owners; lanes are dealt to them.")
    cpus: float = Field(
        default=0.5,
        gt=0.0,
        le=64.0,
        description="CPUs that Ray reserves for each; never 0: such actors pin nodes.",
    )
    standby: bool = Field(
        default=False,
        description="Keep a warm process for each owner, on another machine where one has room, "
        "that takes its lanes at once when it dies; it reserves the same CPUs again, and the "
        "memory of an owner without keys.",
    )


class Pool(Settings):
    """The scorers, shared by all owners; they follow the work."""

    min: int = Field(default=1, ge=1, le=1_000, description="Fewest scorers.")
    max: int = Field(default=4, ge=1, le=1_000, description="Most scorers.")
    busy_target: float = Field(
        default=0.75,
        ge=0.1,
        le=0.95,
        description="Share of their time that scorers should be busy.",
    )
    promise_s: float = Field(
        default=10.0,
        ge=0.5,
        le=3_600.0,
        description="Longest a record should wait for a scorer, in s; the pool grows to keep it.",
    )
    hold_s: float = Field(
        default=300.0,
        ge=1.0,
        le=3_600.0,
        description="A scorer that was wanted once is kept for at least this long, in s.",
    )
    tick_s: float = Field(
        default=2.0, ge=0.5, le=60.0, description="Time between two decisions on the pool, in s."
    )
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Where scorers run.")
    cpus: float = Field(
        default=1.0, gt=0.0, le=64.0, description="CPUs that Ray reserves for each; never 0."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"`min` must be <= `max`, got {self.min} and {self.max}")
        return self


class Page(Settings):
    """The live page, its snapshot, and the metrics."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen at.")
    port: int = Field(
        default=8787, ge=0, le=65_535, description="Port to listen at; 0: any free one."
    )
    token: Secret | None = Field(
        default=None,
        description="Token that requests must carry or a browser logs in with, 16 characters or "
        "more; needed off the loopback address.",
    )
    certificate: str = Field(
        default="",
        description="PEM file of the certificate and its chain: with it the page speaks TLS. It "
        "is read again when it changes.",
    )
    key: str = Field(default="", description="PEM file of the certificate's key, no password.")
    names: tuple[str, ...] = Field(
        default=(),
        max_length=64,
        description="Names that the page answers to beside those of its address, e.g. that of a "
        "proxy in front of it; off loopback none means any.",
    )

    def spec(self) -> PageSpec:
        """As plain values, the token revealed. Raises ConfigError."""
        token = self.token.reveal() if self.token is not None else None
        return PageSpec(self.host, self.port, token, self.certificate, self.key, self.names)

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if not is_loopback(self.host) and self.token is None:
            raise ValueError(f"`host: {self.host}` can be reached from elsewhere: set `token`")
        if bool(self.certificate) != bool(self.key):
            raise ValueError("`certificate` and `key` of the page belong together")
        return self


class Config(Settings):
    """Everything raywatch can be told."""

    kafka: Kafka = Field(description="The brokers, or `embedded`.")
    detectors: tuple[Detector, ...] = Field(
        min_length=1, max_length=DETECTORS_MAX, description="What to watch, and how."
    )
    owners: Owners = Field(default_factory=Owners, description="The actors that hold lanes.")
    pool: Pool = Field(default_factory=Pool, description="The scorers.")
    store: str = Field(
        default="./raywatch-state",
        min_length=1,
        description="Folder or URL for snapshots of state; every node must reach it.",
    )
    models: str = Field(
        default="./raywatch-models",
        min_length=1,
        description="Folder of trained models; shipped ones are always there.",
    )
    page: Page = Field(default_factory=Page, description="The live page.")
    audit: Topic = Field(
        default="raywatch.audit", description="Topic for decisions: who did what, and why."
    )
    drills: Literal["allow", "forbid"] = Field(
        default="forbid",
        description="Whether `raywatch drill` may kill and freeze parts of the running service to "
        "show that it recovers.",
    )

    @field_validator("store", "models")
    @classmethod
    def _no_credentials(cls, place: str) -> str:
        if "://" in place and holds_credentials(place):
            raise ValueError("it holds credentials: they come from a role, variables or a profile")
        return place

    @field_validator("kafka", mode="before")
    @classmethod
    def _brokers_alone(cls, kafka: object) -> object:
        return {"bootstrap": kafka} if isinstance(kafka, str) else kafka

    @model_validator(mode="after")
    def _apart(self) -> Self:
        groups: dict[str, str] = {}
        names: set[str] = set()
        for each in self.detectors:
            if each.name in names:
                raise ValueError(f"two detectors are named `{each.name}`")
            names.add(each.name)
            group = each.group or f"raywatch.{each.name}"
            if group in groups:
                raise ValueError(f"`{groups[group]}` and `{each.name}` share the group `{group}`")
            groups[group] = each.name
            written = {
                each.alerts or f"{each.name}.alerts",
                each.rejects or f"{each.name}.rejects",
                self.audit,
            }
            for topic in (*each.topics, *([each.labels.topic] if each.labels else [])):
                if topic in written:
                    raise ValueError(f"`{each.name}` would read what it writes: `{topic}`")
        return self

    def detector(self, name: str = "") -> Detector:
        """One detector; without a name the only one. Raises ConfigError."""
        known = ", ".join(f"`{each.name}`" for each in self.detectors)
        if not name and len(self.detectors) > 1:
            raise ConfigError("which detector?", hint=f"--detector, one of {known}")
        for each in self.detectors:
            if name in ("", each.name):
                return each
        raise ConfigError(f"no detector is named `{name}`", hint=f"there are {known}")

    def spec(
        self, detector: str = "", fields: Names | None = None, *, unsettled: bool = False
    ) -> DetectorSpec:
        """What a lane must know of a detector. Raises ConfigError.

        `fields` of its records settle patterns; `unsettled` leaves them in: a file settles its own.
        """
        return self.detector(detector).to_spec(self.audit, fields, unsettled=unsettled)

    def disguised(self, spec: DetectorSpec) -> DetectorSpec:
        """The spec with the HMAC key of its pseudonyms revealed. Raises ConfigError."""
        secret = self.detector(spec.name).record.pseudonym_key
        if secret is None:
            return spec
        revealed = secret.reveal().encode()
        if len(revealed) < SECRET_BYTES_MIN:
            raise ConfigError(
                f"`record.pseudonym_key` of `{spec.name}` has {len(revealed)} bytes, "
                f"at least {SECRET_BYTES_MIN} are needed",
                hint="`openssl rand -hex 32` makes a good one",
            )
        return replace(spec, pseudonym=HmacKey(revealed))

    def specs(self) -> Iterator[DetectorSpec]:
        """All of them; none may have patterns. Raises ConfigError."""
        for each in self.detectors:
            yield each.to_spec(self.audit)


def load(path: str | Path) -> Config:
    """Read and check a config file. Raises ConfigError, and nothing else, for what is in it."""
    from raywatch.cluster.parse import read

    return read(Path(path), Config)
