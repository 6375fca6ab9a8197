"""Where a secret is kept: in a variable or a file that the config names, never in the config.

A secret is read where it is needed and kept nowhere else. Only this file reads the environment.
"""

import os
import re
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raywatch.models.errors import ConfigError

SECRET_BYTES_MAX = 65_536
# Names whose values are secrets, of ours and of client libraries.
SECRET = r"(?i)password|passphrase|secret|token$|\.jaas\.|key\.pem|pseudonym_key"


class Settings(BaseModel):
    """A part of the config: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


def variable(name: str) -> str:
    """A variable that is no secret, "" where it is not set."""
    return os.environ.get(name, "")


def holds_credentials(url: str) -> bool:
    """Whether a URL, or one without a scheme, has a user or a secret in it."""
    place, _, query = url.partition("?")
    names = [each.partition("=")[0] for each in query.split("&")]
    host = place.partition("://")[2] or place
    return "@" in host.partition("/")[0] or any(
        re.search(f"{SECRET}|access_key|credential|sig", each) for each in names
    )


class Secret(Settings):
    """Where a secret is kept; never the secret."""

    env: str = Field(
        default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$", description="Variable with it."
    )
    file: str = Field(default="", description="File with it; one line break at its end is dropped.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if bool(self.env) == bool(self.file):
            raise ValueError("a secret is `{env: NAME}` or `{file: PATH}`, one of them")
        return self

    def reveal(self) -> str:
        """Read the secret. Raises ConfigError when it is not there or empty."""
        if self.env:
            value = os.environ.get(self.env, "")
            where = f"environment variable `{self.env}`"
        else:
            where = f"file `{self.file}`"
            try:
                with open(self.file, encoding="utf-8") as stream:
                    value = stream.read(SECRET_BYTES_MAX).removesuffix("\n").removesuffix("\r")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "is not text"
                raise ConfigError(f"cannot read the secret in {where}: {reason}") from error
        if not value:
            raise ConfigError(f"the secret in {where} is empty or not set", hint="set it and retry")
        return value
