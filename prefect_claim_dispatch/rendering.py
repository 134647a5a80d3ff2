"""Rendering: a publish as SQL and parameters, for whoever has a cursor of a DB-API driver and no SQLAlchemy connection.

The statement is the very one that `publish` sends for a draft with a key, whatever is set in the draft: one text, which
a driver prepares once and takes with `executemany`. What can be refused is refused in the same way, so an action is the
same whichever way it came.
"""

from __future__ import annotations

from functools import cache
from types import MappingProxyType
from typing import Any, Final, Literal, LiteralString, cast

from sqlalchemy import Dialect, Table
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from prefect_claim_dispatch import settings
from prefect_claim_dispatch.dialects import POSTGRESQL, SQLITE, Instant
from prefect_claim_dispatch.drafts import Draft
from prefect_claim_dispatch.errors import ConfigurationError, InvalidActionError
from prefect_claim_dispatch.publishing import draft_intent, row_or_none
from prefect_claim_dispatch.statements import publish as statements

Paramstyle = Literal["pyformat", "format", "qmark", "named", "numeric_dollar"]
Parameters = tuple[Any, ...] | dict[str, Any]

# The first is that of the driver which most people have: psycopg, sqlite3.
PARAMSTYLES: Final = MappingProxyType(
    {POSTGRESQL: ("pyformat", "format", "numeric_dollar"), SQLITE: ("qmark", "named", "format")}
)


def publish_sql(
    draft: Draft, dialect: Literal["postgresql", "sqlite"], paramstyle: Paramstyle | None = None
) -> tuple[LiteralString, Parameters]:
    """The SQL and the parameters that publish *draft*: ``cursor.execute(*publish_sql(draft, "postgresql"))``.

    The cursor then has one row, the new action's id; or none, when an action of this type holds the idempotency key:
    that one is kept. Whether to commit is the caller's business, as with any statement.

    *paramstyle* is the driver's, None for psycopg's and sqlite3's own: on PostgreSQL ``pyformat`` (a dict), ``format``
    (a tuple; Django) or ``numeric_dollar`` (a tuple; asyncpg); on SQLite ``qmark`` (a tuple), ``named`` (a dict) or
    ``format`` (a tuple; Django).

    Raises:
        InvalidActionError: it may not reach the table; or it asks for what one statement can't do: gates, and conflict
            policies other than ``keep``.
        ConfigurationError: no such dialect, or it has no such parameters.
    """
    styles = PARAMSTYLES.get(dialect, ())
    style = paramstyle or next(iter(styles), None)
    if style is None or style not in styles:
        known = "; ".join(f"{name}: {', '.join(of_it)}" for name, of_it in PARAMSTYLES.items())
        msg = f"no SQL for dialect {dialect!r} with paramstyle {paramstyle!r}; there are {known}"
        raise ConfigurationError(msg)
    intent = draft_intent(draft)
    if intent.gates:
        msg = "publish_sql can't skip a draft; write the gate as an `if` around it, without when and skip_if"
        raise InvalidActionError(msg)
    if intent.on_conflict != "keep":
        msg = f"on_conflict={intent.on_conflict!r} takes more than one statement; use publish(), or 'keep'"
        raise InvalidActionError(msg)
    row = row_or_none(intent, settings.current())
    assert row is not None  # noqa: S101 - it has no gates
    sql, names = _compiled(row.table, dialect, style)
    end_at = Instant().process_bind_param(row.end_at, _dialect(dialect, style))
    values = {**row.bound(), "end_at": end_at}
    return sql, values if names is None else tuple(values[name] for name in names)


@cache
def _dialect(name: str, paramstyle: Paramstyle) -> Dialect:
    # psycopg's writes the types of parameters out, which every driver understands.
    return (PGDialect_psycopg if name == POSTGRESQL else SQLiteDialect_pysqlite)(paramstyle=paramstyle)


@cache
def _compiled(table: Table, dialect: str, paramstyle: Paramstyle) -> tuple[LiteralString, tuple[str, ...] | None]:
    """The statement, and its parameters' names in order; None where they have names in it."""
    compiled = statements.insert_one(table, dialect).compile(dialect=_dialect(dialect, paramstyle))
    names: Any = getattr(compiled, "positiontup", None)
    # Nothing in it but our own words and the table's quoted name; psycopg's types take no other text.
    return cast("LiteralString", str(compiled)), None if names is None else tuple(names)
