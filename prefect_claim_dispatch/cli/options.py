"""What all commands share: the options for the database, and how times and durations are written."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter, Token
from sqlalchemy import Engine

from prefect_claim_dispatch import databases, engines, settings
from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.selecting import Where

UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


class UsageError(Exception):
    """The command line makes no sense; nothing was done. Exit code 2."""


def duration(_type: Any, tokens: Sequence[Token]) -> timedelta:
    """The duration that a token writes: ``30s``, ``5m``, ``1h30m``, ``7d``."""
    written = tokens[0].value
    parts = _DURATION.findall(written)
    if not parts or "".join(number + unit for number, unit in parts) != written:
        msg = f"{written!r} is no duration; write 30s, 5m, 2h, 1h30m or 1d"
        raise ValueError(msg)
    try:
        return timedelta(seconds=sum(float(number) * UNITS[unit] for number, unit in parts))
    except OverflowError:
        msg = f"{written!r} is too long"
        raise ValueError(msg) from None


def instant(_type: Any, tokens: Sequence[Token]) -> datetime:
    """The instant that a token writes, ISO 8601 with a time zone: ``2026-01-31T12:00:00Z``."""
    written = tokens[0].value
    try:
        at = datetime.fromisoformat(written)
    except ValueError:
        msg = f"{written!r} is no instant; write 2026-01-31T12:00:00Z"
        raise ValueError(msg) from None
    if at.tzinfo is None:
        msg = f"{written!r} has no time zone; write {written}Z for UTC"
        raise ValueError(msg)
    return at


Duration = Annotated[timedelta, Parameter(converter=duration, n_tokens=1, accepts_keys=False)]
Instant = Annotated[datetime, Parameter(converter=instant, n_tokens=1, accepts_keys=False)]
Flag = Annotated[bool, Parameter(negative="")]


def parsed_json(name: str, written: str | bytes) -> Any:
    """The JSON value of an argument or of standard input.

    Raises:
        UsageError: it is no JSON.
    """
    try:
        return json.loads(written)
    except (ValueError, RecursionError) as error:
        msg = f"{name} is no JSON ({error})"
        raise UsageError(msg) from None


def find_modules_here() -> None:
    """Let modules be imported from where the user stands: `python -m` looks there, a console script does not."""
    sys.path.insert(0, str(Path.cwd()))


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """Options that stand on every command."""

    database_url: str | None = None
    "The database; better set CLAIM_DISPATCH_DATABASE_URL, which no process list shows."

    table: str | None = None
    "The action table, also as schema.table."

    json: Flag = False
    "One JSON document on standard output."

    debug: Flag = False
    "Show the traceback of an error."

    @property
    def url(self) -> str:
        """The database's URL, the embedded file's directory made if that is it."""
        if self.database_url is not None:
            return self.database_url
        configured = settings.load()
        if configured.is_embedded:
            Path(configured.url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return configured.url

    def checked_engine(self) -> Engine:
        """The engine, once it is sure that the table is there and no newer than this package.

        Raises:
            DatabaseError: it is not, or the database can't be reached.
        """
        from prefect_claim_dispatch import migrations  # noqa: PLC0415 - Alembic, which --help does without

        engine = databases.engine_for(self.database_url)
        with engines.translated(), engine.connect() as connection:
            migrations.check_version(connection, databases.table_named(self.table))
        return engine


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Options that say which actions are meant; they narrow each other."""

    type: str | None = None
    "Actions of this type."

    status: tuple[ActionStatus, ...] = ()
    "Actions in this status; may be given more than once."

    older_than: Duration | None = None
    "Actions published longer ago than this: 30s, 5m, 2h, 1d."

    idempotency_key: str | None = None
    "The action with this idempotency key."

    @property
    def is_empty(self) -> bool:
        """True when nothing was asked for."""
        return self == Selection()

    def where(self) -> Where:
        """The keyword arguments for `operations`."""
        return {
            "type": self.type,
            "status": self.status or None,
            "older_than": self.older_than,
            "idempotency_key": self.idempotency_key,
        }
