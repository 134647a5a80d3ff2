"""Time that stands still: what a test moves instead of waiting.

The database's clock decides what is due, and no test can set that. But all statements of this package name it in one
way, so the instant can be written in its place as they are sent: in this process, on every engine, in transactions
that are open already too. Nothing is installed, and nothing costs anything, until `stopped` is used.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Engine, event

from prefect_claim_dispatch.dialects import SUPPORTED, with_clock_at
from prefect_claim_dispatch.statements import NAME

MILLISECOND: Final = timedelta(milliseconds=1)

_stands_at: list[datetime] = []


def wall_clock() -> datetime:
    """The time of this process, in UTC: what rules are told. Never what decides whether an action is due."""
    return _stands_at[-1] if _stands_at else datetime.now(UTC)


@contextmanager
def stopped(instant: datetime) -> Generator[datetime]:
    """Let the clock stand at *instant* for all statements of this package and for `wall_clock`; yields that instant.

    Rounded up to a millisecond, so that a delay counted from it ends when it should: SQLite counts no finer. May be
    nested.
    For the whole process and all of its threads: a claim whose parts believe in different times is none.
    """
    rounded = instant + -timedelta(microseconds=instant.microsecond) % MILLISECOND
    if not _stands_at:
        event.listen(Engine, "before_cursor_execute", _with_instant, retval=True)
    _stands_at.append(rounded)
    try:
        yield rounded
    finally:
        if len(_stands_at) == 1:
            event.remove(Engine, "before_cursor_execute", _with_instant)
        _stands_at.pop()


def _with_instant(
    connection: Any, _cursor: Any, statement: str, parameters: Any, context: Any, _executemany: Any
) -> tuple[str, Any]:
    dialect = connection.dialect.name
    if context is None or NAME not in context.execution_options or dialect not in SUPPORTED:
        return statement, parameters
    return with_clock_at(_stands_at[-1], statement, dialect), parameters
