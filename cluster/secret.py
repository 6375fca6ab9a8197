"""Where a secret is kept: in a variable or a file that the config names, never in the config.

A secret is read where it is needed and kept nowhere else. Only this file reads the environment.
"""

import os
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raywatch.models.errors import ConfigError

SECRET_BYTES_MAX = 65_536


class Settings(BaseModel):
    """A part of the config: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


def variable(name: str) -> str:
    """A variable that is no secret, "" where it is not set."""
    return os.environ.get(name, "")


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
