"""Settings from the environment, prefix ``CLAIM_DISPATCH_``.

An argument beats the environment, which beats the default.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from prefect_claim_dispatch.errors import ConfigurationError
from prefect_claim_dispatch.policies import RetryPolicy

PREFIX = "CLAIM_DISPATCH_"
EMBEDDED_FILE = "claim-dispatch.db"
_READ_AT_PUBLISH = (f"{PREFIX}DATABASE_URL", f"{PREFIX}TABLE", f"{PREFIX}SCHEMA")
_MAX_PAYLOAD_BYTES = f"{PREFIX}MAX_PAYLOAD_BYTES"


class Settings(BaseSettings):
    """What can be set; see `load` for reading it with errors of ours.

    `database_url` is kept secret in every `repr`. Times are in seconds because Prefect's own settings are.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    database_url: SecretStr | None = None
    listen_url: SecretStr | None = None
    table: str = Field("action_logs", min_length=1)
    schema_name: str | None = Field(None, alias=f"{PREFIX}SCHEMA")
    processors: Annotated[tuple[str, ...], NoDecode] = ()
    catalogue: Annotated[tuple[str, ...], NoDecode] = ()
    limit: int = Field(1000, ge=1, le=100_000)
    lease_seconds: float = Field(300, ge=1, le=7 * 86_400)
    max_attempts: int = Field(5, ge=1, le=1_000)
    backoff_seconds: float = Field(10, ge=0, le=30 * 86_400)
    backoff_max_seconds: float = Field(3600, ge=0, le=365 * 86_400)
    max_payload_bytes: int = Field(1024 * 1024, ge=2, le=256 * 1024 * 1024)
    max_concurrency: int = Field(16, ge=1, le=1_000)
    runs_per_second: float = Field(30, gt=0, le=100_000)

    @field_validator("processors", "catalogue", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @cached_property
    def retry_policy(self) -> RetryPolicy:
        """The policy of a processor that says nothing of its own."""
        return RetryPolicy(
            max_attempts=self.max_attempts,
            backoff=timedelta(seconds=self.backoff_seconds),
            backoff_max=timedelta(seconds=self.backoff_max_seconds),
        )

    @property
    def url(self) -> str:
        """The database's URL, password included; the embedded SQLite file when none is set."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{embedded_file()}"

    @property
    def is_embedded(self) -> bool:
        """True when no database is set, so that ours may be created on first use."""
        return self.database_url is None


def embedded_file() -> Path:
    """The SQLite file that serves when nothing is set.

    In ``PREFECT_HOME``, or where Prefect keeps its own by default.
    """
    home = os.environ.get("PREFECT_HOME")
    return (Path(home) if home else Path.home() / ".prefect").expanduser() / EMBEDDED_FILE


def load() -> Settings:
    """The settings as the environment has them now.

    Raises:
        ConfigurationError: a variable makes no sense; all of them are named, none of their values shown.
    """
    try:
        return Settings()  # pyright: ignore[reportCallIssue] - filled from the environment
    except ValidationError as error:
        problems = "; ".join(
            f"{_variable(problem['loc'])}: {problem['msg']}" for problem in error.errors(include_input=False)
        )
        msg = f"settings make no sense: {problems}"
        raise ConfigurationError(msg) from None


def current() -> Settings:
    """As `load`, but read again only when database, table or schema are set otherwise; look at nothing else of it.

    For publishing: to read all settings takes longer than an insert.
    """
    return _current(tuple(os.environ.get(name) for name in _READ_AT_PUBLISH))


def max_payload_bytes() -> int:
    """The setting that every payload asks for; as `current`, read again only when it is set otherwise."""
    return _max_payload_bytes(os.environ.get(_MAX_PAYLOAD_BYTES))


@lru_cache(maxsize=16)
def _current(_environment: tuple[str | None, ...]) -> Settings:
    return load()


@lru_cache(maxsize=16)
def _max_payload_bytes(_environment: str | None) -> int:
    return load().max_payload_bytes


def _variable(location: tuple[int | str, ...]) -> str:
    name = ".".join(str(part) for part in location).upper()
    return name if name.startswith(PREFIX) else PREFIX + name
