"""Where the live page listens and who may ask it: plain values, handed over with a deployment."""

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass, field

from raywatch.models.errors import ConfigError

TOKEN_CHARS_MIN = 16  # shorter tokens can be guessed


@dataclass(frozen=True, slots=True)
class PageSpec:
    """What the page is made of. Raises ConfigError for an address that would be open to all."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    token: str | None = field(default=None, repr=False)
    certificate: str = ""  # PEM file, the chain behind it; empty: no TLS
    key: str = ""  # PEM file
    names: tuple[str, ...] = ()  # of the machine or a proxy; empty: loopback's own, elsewhere any

    def __post_init__(self) -> None:
        if not self.local and self.token is None:
            raise ConfigError(
                f"the page would listen on `{self.host}` without a token",
                hint="set a token for the page, or bind it to 127.0.0.1 and use an ssh tunnel",
            )
        if self.token is not None and (
            len(self.token) < TOKEN_CHARS_MIN or not self.token.isascii()
        ):
            raise ConfigError(
                f"the token of the page has {len(self.token)} characters, "
                f"at least {TOKEN_CHARS_MIN} (ASCII) are needed",
                hint="`openssl rand -hex 24` makes a good one",
            )

    @property
    def local(self) -> bool:
        """Whether nobody outside this machine can reach it."""
        return is_loopback(self.host)

    @property
    def secure(self) -> bool:
        """Whether it speaks TLS itself."""
        return bool(self.certificate)

    def answers_to(self, header: str) -> bool:
        """Whether a Host header names this page.

        A page of another site can point its own name at 127.0.0.1; that name is what it sends.
        Elsewhere any name will do unless `names` says which: there the token is asked for.
        """
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d{1,5})?", header)
        if match is None:
            return False
        name = (match.group(1) or match.group(2)).rstrip(".").lower()
        if is_loopback(name) or name in (self.host, *(each.lower() for each in self.names)):
            return True
        return not self.local and not self.names


def is_loopback(host: str) -> bool:
    """`localhost`, 127.x.x.x or ::1."""
    if host.rstrip(".").lower() == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
