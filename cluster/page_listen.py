"""What the live page lets in before a request is read: sockets, TLS, and patience.

A connection that has not sent a whole request within two looks of HEAD_S is closed, and beyond
CONNECTIONS_MAX each further one: who asks for nothing must not cost the supervisor its files.
Certificates are read again when their files change.
"""

import asyncio
import logging
import os
import socket
import ssl
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from raywatch.cluster.page_spec import PageSpec
from raywatch.models.errors import ConfigError

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 256  # at once; streams and requests have bounds of their own below it
REQUEST_BYTES_MAX = 16_384  # of a request line and its headers
HEAD_S = 5.0  # between two looks at a connection
RENEW_S = 60.0  # between two looks at the files of the certificate


class Hurried(H11Protocol):
    """HTTP/1.1 for who asks, and asks soon."""

    _look: asyncio.TimerHandle | None = None
    _before: object = None  # what the connection did at the last look

    def connection_made(self, transport: Any) -> None:
        """Take it, or not."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
            return
        self._look = self.loop.call_later(HEAD_S, self._hurry)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _hurry(self) -> None:
        cycle: Any = self.cycle
        asking = cycle is None or cycle.response_complete or cycle.more_body
        now: object = cycle if cycle is not None else self
        if asking and now is self._before:
            self.transport.abort()
            return
        self._before = now if asking else None
        self._look = self.loop.call_later(HEAD_S, self._hurry)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises ConfigError naming the port."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family[0], socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            f"`{host}` is no address of this machine: {error.strerror or error}"
        ) from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(family[4])
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"port {port} of `{host}` cannot be had: {error.strerror or error}",
            hint="something else listens there, or the right is missing: choose another port",
        ) from error
    return listener


def tls(spec: PageSpec) -> ssl.SSLContext | None:
    """How it speaks TLS, None: not at all. Raises ConfigError for files that cannot be used."""
    if not spec.secure:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, spec)
    return context


def _load(context: ssl.SSLContext, spec: PageSpec) -> None:
    def ask() -> str:  # else OpenSSL asks at the terminal, and waits
        raise ValueError("the key has a password")

    try:
        context.load_cert_chain(spec.certificate, spec.key, password=ask)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"`{spec.certificate}` and `{spec.key}` are no certificate and its key: {reason}",
            hint="`page.certificate` and `page.key` are PEM files, the key without a password",
        ) from error


async def renew(context: ssl.SSLContext, spec: PageSpec, every_s: float = RENEW_S) -> None:
    """Take over a certificate that was renewed, until cancelled; new connections see it."""
    known = _stamp(spec)
    while True:
        await asyncio.sleep(every_s)
        stamp = _stamp(spec)
        if stamp == known:
            continue
        known = stamp
        try:
            tls(spec)  # a half-written pair must not touch the one in use
            _load(context, spec)
            log.info("page: took over the certificate in `%s`", spec.certificate)
        except ConfigError as error:
            log.warning("page: kept the old certificate: %s", error.message)


def _stamp(spec: PageSpec) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for path in (spec.certificate, spec.key):
        try:
            about = os.stat(path)
            found.append((about.st_mtime_ns, about.st_ino))
        except OSError:
            found.append((0, 0))
    return tuple(found)
