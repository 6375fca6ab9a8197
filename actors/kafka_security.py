"""Who a client is to Kafka's brokers, which right it lacks, and the command that gives it.

A right is an operation on a resource, as ACLs have it. Brokers say that one is missing and not
always which, but they can be asked (`held`): so errors name operation, resource, principal and
command. WRITE and READ imply DESCRIBE.

The principal is the user (PLAIN, SCRAM), the client id (OAUTHBEARER: brokers take the `sub` of the
token, which many providers make the client id), the subject of the certificate (mutual TLS, unless
the brokers have mapping rules), or ANONYMOUS. Imports no client: `kafka.py` does.
"""

import base64
import binascii
import os
import re
import shlex
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol

from raywatch.models.errors import ConfigError, RaywatchError, Unreachable

Resource = Literal["group", "topic", "transactional-id"]

PROBE = "raywatch.probe"  # The lane that asks whether transactions work: brokers forget slowly.
TRIED = "check"  # No lane has this number: it stands for all of a detector when rights are asked.
DISTRUST_S = 3.0  # For one more connection to a broker whose certificate is not believed.
PEM_MAX = 1_048_576  # bytes of a certificate file that are looked at
NAMES = {  # attributes that RFC 2253 has a short name for, by the DER of their object identifier
    "550403": "CN", "550406": "C", "550407": "L", "550408": "ST", "550409": "STREET",
    "55040a": "O", "55040b": "OU", "0992268993f22c640101": "UID", "0992268993f22c640119": "DC",
}  # fmt: skip
STRINGS = (0x0C, 0x13, 0x14, 0x16)  # UTF8String, PrintableString, T61String, IA5String


class Fault(Protocol):
    """The part of the client's error that is judged here and in `kafka_rules.py`."""

    def name(self) -> str:
        """Such as `_TIMED_OUT`; a leading underscore: the client's own, not a broker's."""
        ...

    def str(self) -> str:
        """A sentence."""
        ...

    def retriable(self) -> bool:
        """Whether the client says that the same call may succeed later."""
        ...


@dataclass(frozen=True, slots=True)
class Right:
    """What a principal may do with what."""

    resource: Resource
    name: str
    operation: str  # as `kafka-acls.sh` has it: Read, Write, Create, ...
    prefixed: bool = False  # with everything whose name begins like this

    def __str__(self) -> str:
        kind = self.resource.replace("-", " ")
        what = f"every {kind} that begins with" if self.prefixed else kind
        return f"{self.operation.upper()} on {what} `{self.name}`"


def commands(rights: Iterable[Right], principal: str, bootstrap: str) -> Iterator[str]:
    """The commands that give rights, one a resource; for a shell."""
    there = f"--bootstrap-server {shlex.quote(bootstrap)} --command-config admin.properties"
    before = f"kafka-acls.sh {there} --add"
    ordered = sorted(rights, key=lambda right: (_resource(right), right.operation))
    for (resource, name, prefixed), group in groupby(ordered, _resource):
        said = " ".join(f"--operation {right.operation}" for right in group)
        like = " --resource-pattern-type prefixed" if prefixed else ""
        yield (
            f"{before} --allow-principal {shlex.quote(principal)} {said}"
            f" --{resource} {shlex.quote(name)}{like}"
        )


def _resource(right: Right) -> tuple[str, str, bool]:
    return right.resource, right.name, right.prefixed


def lane(transactional_id: str) -> Right:
    """The right to take a lane; of `raywatch.hosts.3-of-8` that of all lanes of `hosts`."""
    stem, dot, number = transactional_id.rpartition(".")
    if dot and number[:1].isdecimal():
        return Right("transactional-id", f"{stem}.", "Write", prefixed=True)
    return Right("transactional-id", transactional_id, "Write")


def candidates(
    code: str, group: str, read: Iterable[str], *, taken: str = "", written: Iterable[str] = ()
) -> list[Right]:
    """The rights of which one is missing when a lane's question or transaction is refused.

    Args:
        code: of the error; brokers name the kind of resource with it.
        group: whose offsets were committed or asked for.
        read: topics.
        taken: transactional id of the lane.
        written: topics; a producer gets no id (a cluster's right) if it may write to none.
    """
    if code == "TRANSACTIONAL_ID_AUTHORIZATION_FAILED":
        return [lane(taken)]
    if code == "GROUP_AUTHORIZATION_FAILED":
        return [Right("group", group, "Read")]
    writes = [Right("topic", topic, "Write") for topic in dict.fromkeys(written)]
    reads = [Right("topic", topic, "Read") for topic in dict.fromkeys(read)]
    return [*writes, *reads] or [lane(taken)]


def principal(settings: Mapping[str, str]) -> str:
    """Who brokers take a client for that has these settings of librdkafka."""
    protocol = settings.get("security.protocol", "PLAINTEXT")
    if protocol.startswith("SASL"):
        oauth = settings.get("sasl.mechanism") == "OAUTHBEARER"
        name = settings.get("sasl.oauthbearer.client.id" if oauth else "sasl.username", "")
        return f"User:{name}"
    path = settings.get("ssl.certificate.location", "")
    if protocol == "SSL" and path:
        try:
            with open(path, "rb") as stream:
                return f"User:{subject(stream.read(PEM_MAX))}"
        except (OSError, ValueError):
            return f"User:the subject of {path}"
    return "User:ANONYMOUS"


# ---- asking brokers ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Brokers:
    """Asks brokers what this client may do. Its parts are the client library's."""

    admin: Any
    answer: Callable[[Any], Any]  # of a future; raises `failure` with a Fault
    failure: type[Exception]
    topics: Callable[[list[str]], Any]  # names, as the library wants them
    wish: Callable[[str], Any]  # a topic that might be created
    take: Callable[[str], Fault | None]  # a lane, by its transactional id: fences who holds it
    wait_s: float

    def topics_allow(self, names: list[str]) -> dict[str, frozenset[str] | None]:
        """Operations on topics, as ACLs name them; None: there is no such topic."""
        asked = {"include_authorized_operations": True, "request_timeout": self.wait_s}
        futures = self.admin.describe_topics(self.topics(names), **asked)
        return {name: self._allowed(futures[name]) for name in names}

    def groups_allow(self, names: list[str]) -> dict[str, frozenset[str] | None]:
        """Operations on groups; one that never was has rights, too."""
        asked = {"include_authorized_operations": True, "request_timeout": self.wait_s}
        futures = self.admin.describe_consumer_groups(names, **asked)
        return {name: self._allowed(futures[name]) for name in names}

    def may_create(self, topic: str) -> bool:
        """Whether a topic may be created; creates nothing."""
        asked = {"validate_only": True, "request_timeout": self.wait_s}
        try:
            self.answer(self.admin.create_topics([self.wish(topic)], **asked)[topic])
        except self.failure as raised:
            if raised.args[0].name() != "TOPIC_ALREADY_EXISTS":
                return self._denied(raised)
        return True

    def may_take(self, transactional_id: str) -> bool:
        """Whether a lane may be taken; then it is."""
        fault = self.take(transactional_id)
        return fault is None or self._denied(self.failure(fault))

    def _allowed(self, future: Any) -> frozenset[str] | None:
        try:
            found = self.answer(future).authorized_operations or ()
        except self.failure as raised:
            if raised.args[0].name() in ("UNKNOWN_TOPIC_OR_PART", "GROUP_ID_NOT_FOUND"):
                return None
            self._denied(raised)
            return frozenset()
        return frozenset(each.name.title().replace("_", "") for each in found)

    @staticmethod
    def _denied(raised: Exception) -> Literal[False]:
        """False where the answer was no; raises what was no answer."""
        if not denied(raised.args[0]):
            raise raised
        return False


class Rights:
    """Which of a client's rights is missing when brokers say no."""

    def __init__(
        self, bootstrap: str, principal: str, held: Callable[[list[Right]], Mapping[Right, object]]
    ) -> None:
        """`held` asks brokers, like the function below; may raise RaywatchError."""
        self.principal = principal
        self._bootstrap, self._held = bootstrap, held

    def lacks(self, right: Right, why: str) -> ConfigError:
        """The error for a right that is missing; `why`: what the brokers said."""
        (line,) = commands([right], self.principal, self._bootstrap)
        return ConfigError(f"`{self.principal}` lacks {right}: {why}", hint=f"give it: {line}")

    def check(self, fault: Fault, *among: Right) -> None:
        """Raises ConfigError if `fault` is about a right: the first of `among` that is not held."""
        if not denied(fault):
            return
        found: Mapping[Right, object] = {}
        if len(among) > 1:
            with suppress(RaywatchError):
                found = self._held(list(among))
        right = next((each for each in among if found.get(each) is False), next(iter(among)))
        unsure = ", or it is there and WRITE is missing" if right.operation == "Create" else ""
        raise self.lacks(right, brief(fault.str()).rstrip(".") + unsure)

    def ask(self, right: Right, why: str) -> None:
        """Raises ConfigError if brokers say that a right is missing; else asking was in vain."""
        with suppress(Unreachable):
            if self._held([right]).get(right) is False:
                raise self.lacks(right, why)


def denied(fault: Fault) -> bool:
    """Whether a right is missing."""
    return fault.name().endswith("_AUTHORIZATION_FAILED")


def held(brokers: Brokers, wanted: Sequence[Right]) -> dict[Right, bool | None]:
    """Which rights there are, those that were not asked for on the same resources included.

    Args:
        brokers: who is asked.
        wanted: what to ask for; lanes are asked for by one that nobody has (`TRIED`).

    Returns:
        True: held; False: not; None: cannot be said while the topic is not there.
    """
    found: dict[Right, bool | None] = {}
    topics = sorted({right.name for right in wanted if right.resource == "topic"})
    groups = sorted({right.name for right in wanted if right.resource == "group"})
    there: dict[tuple[Resource, str], frozenset[str] | None] = {}
    there |= {
        ("topic", n): it for n, it in (brokers.topics_allow(topics) if topics else {}).items()
    }
    there |= {
        ("group", n): it for n, it in (brokers.groups_allow(groups) if groups else {}).items()
    }
    for (resource, name), operations in there.items():
        found |= {Right(resource, name, each): True for each in operations or ()}
    for right in wanted:
        if right.resource == "transactional-id":
            found[right] = brokers.may_take(right.name + TRIED * right.prefixed)
        elif right.operation == "Create" and right not in found:
            found[right] = brokers.may_create(right.name)
        elif right not in found:
            found[right] = None if there[right.resource, right.name] is None else False
    return found


# ---- what clients say when they are turned away ----------------------------------------------


def brief(said: str) -> str:
    """What a client said, without its own bookkeeping."""
    return re.sub(r" \((after|see) [^()]*(\(s\)[^()]*)?\)", "", said)


def distrust(said: str, ca: str) -> str:
    """Why the certificate of a broker is not believed: the client does not say, so ask again.

    Args:
        said: the client's report, `sasl_ssl://HOST:PORT/...: ...`.
        ca: PEM file or folder of the authority; empty: those of the machine.
    """
    found = re.match(r"\w+://\[?([^/]+?)\]?:(\d+)/", said)
    if found is None:
        return ""
    host, port = found[1], int(found[2])
    try:
        folder = os.path.isdir(ca)
        context = ssl.create_default_context(
            cafile=ca if ca and not folder else None, capath=ca if folder else None
        )
        with (
            socket.create_connection((host, port), timeout=DISTRUST_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return f"its certificate at `{host}:{port}` is not believed: {error.verify_message}"
    except (OSError, ValueError):
        return ""


# ---- clients that cannot be made --------------------------------------------------------

FILES = {
    "ssl.ca.location": "ca",
    "ssl.certificate.location": "certificate",
    "ssl.key.location": "key",
}


def unmade(fault: Fault, settings: Mapping[str, Any]) -> ConfigError:
    """A client could not be made: its settings contradict each other, or a file is not there."""
    words = fault.str().removeprefix("Failed to create ").partition(": ")
    said = words[2] or fault.str()
    for name, ours in FILES.items():
        if said.startswith(name):
            path = settings.get(name, "")
            try:
                with open(path, "rb") as stream:
                    stream.read(1)
            except OSError as error:
                why = (error.strerror or "it is not there").lower()
                return ConfigError(
                    f"cannot read `kafka.security.{ours}`: `{path}`: {why}",
                    hint="every node that runs raywatch needs the file, readable",
                )
            hint = "a PEM file"
            if ours == "key":
                hint += ", the key of `certificate`; is `key_password` right, if it has one?"
            return ConfigError(f"`kafka.security.{ours}`: `{path}` is not usable", hint=hint)
    return ConfigError(f"the Kafka client cannot be made: {said}", hint="check `kafka.settings`")


# ---- the subject of a certificate (RFC 5280), as Java writes it (RFC 2253) -------------------


def subject(pem: bytes) -> str:
    """The subject of the first certificate of a PEM file. Raises ValueError where it is strange."""
    found = re.search(b"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", pem, re.DOTALL)
    if found is None:
        raise ValueError("no certificate")
    try:
        der = base64.b64decode(found[1])
        certificate = _parts(der)[0]
        fields = [each for each in _parts(_parts(certificate[1])[0][1]) if each[0] != 0xA0]
        # serial, algorithm, issuer, validity, subject; the version (0xA0) may be left out
        rdns = _parts(fields[4][1])
        return ",".join("+".join(map(_attribute, _parts(rdn))) for _, rdn in reversed(rdns))
    except (IndexError, UnicodeDecodeError, binascii.Error) as error:
        raise ValueError("not a certificate") from error


def _attribute(part: tuple[int, bytes]) -> str:
    (_, oid), (tag, value) = _parts(part[1])
    if oid.hex() not in NAMES or tag not in STRINGS:
        raise ValueError(f"an attribute that has no short name: {oid.hex()}")
    text = re.sub(r'([,=+<>#;"\\])', r"\\\1", value.decode())
    text = re.sub(r"^ | $", r"\\ ", text)
    return f"{NAMES[oid.hex()]}={text}"


def _parts(data: bytes) -> list[tuple[int, bytes]]:
    """The DER values that lie in a row: (tag, content) each. Raises ValueError, IndexError."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            more = size & 0x7F
            size, at = int.from_bytes(data[at : at + more]), at + more
        if at + size > len(data):
            raise ValueError("a certificate that is cut short")
        found.append((tag, data[at : at + size]))
        at += size
    return found
