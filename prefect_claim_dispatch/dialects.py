"""The differences between PostgreSQL and SQLite, all of them: clock, interval, JSON, sets of parameters, row locks.

To add a database, give every construct here an entry for its dialect name and pass the conformance suite.

On SQLite an instant is UTC text, ``2026-01-31 12:00:00`` with an optional fraction. Such text sorts as the instants
do, also against rows written with ``datetime('now')``; anything else is refused by a CHECK (see
:mod:`~prefect_claim_dispatch.schema`).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import NoneType
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Dialect,
    FromClause,
    Integer,
    Select,
    Text,
    any_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

POSTGRESQL: Final = "postgresql"
SQLITE: Final = "sqlite"
SUPPORTED: Final = (POSTGRESQL, SQLITE)

FIRST_INSTANT: Final = "0001-01-03 00:00:00+00"
LAST_INSTANT: Final = "9999-12-30 00:00:00+00"

SQLITE_INSTANT_FORMAT: Final = "%Y-%m-%d %H:%M:%f"

# How every statement asks for the time, and nothing else is written so: `with_clock_at` finds it by that.
_CLOCK: Final = {SQLITE: "'now'", POSTGRESQL: "now()"}
_SQLITE_NOW: Final = f"strftime('{SQLITE_INSTANT_FORMAT}', {_CLOCK[SQLITE]})"


class Instant(TypeDecorator[datetime]):
    """An aware datetime: ``timestamptz`` on PostgreSQL, UTC text that sorts right on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Text on SQLite, whose own DATETIME would drop the offset without a word."""
        if dialect.name == SQLITE:
            return dialect.type_descriptor(Text())
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """In UTC, with microseconds, as text on SQLite."""
        if value is None or dialect.name != SQLITE:
            return value
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Aware and in UTC, whatever the session's time zone is."""
        return None if value is None else as_instant(value)


def as_instant(value: datetime | str) -> datetime:
    """What a driver returned for an `Instant`, aware and in UTC."""
    return datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value.astimezone(UTC)


def json_type() -> TypeEngine[Any]:
    """``jsonb`` on PostgreSQL, JSON text on SQLite."""
    # It brings all of SQLAlchemy's dialects of PostgreSQL along: 24 of the 146 ms that importing this package took
    # beside SQLAlchemy and pydantic. Where PostgreSQL is used, the application's engine has imported it already.
    from sqlalchemy.dialects.postgresql import JSONB  # noqa: PLC0415

    return JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), POSTGRESQL)


def identity_type() -> TypeEngine[int]:
    """``bigint`` on PostgreSQL; SQLite auto-increments nothing but INTEGER."""
    return BigInteger().with_variant(Integer(), SQLITE)


class now(FunctionElement[datetime]):  # noqa: N801 - written like a SQL function
    """The database's clock, constant within a statement; on PostgreSQL within the transaction."""

    type = Instant()
    inherit_cache = True


class now_plus(FunctionElement[datetime]):  # noqa: N801
    """The database's clock plus a number of seconds, which may be fractional."""

    type = Instant()
    inherit_cache = True


@compiles(now, SQLITE)
def _now_sqlite(_element: now, compiler: SQLCompiler, **_: Any) -> str:
    return _literal(compiler, _SQLITE_NOW)


@compiles(now)
def _now(_element: now, _compiler: SQLCompiler, **_: Any) -> str:
    return _CLOCK[POSTGRESQL]


@compiles(now_plus, SQLITE)
def _now_plus_sqlite(element: now_plus, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    text = f"strftime('{SQLITE_INSTANT_FORMAT}', {_CLOCK[SQLITE]}, printf('%+.3f seconds', "
    return _literal(compiler, text) + f"{seconds}))"


def _literal(compiler: Any, text: str) -> str:
    # Where parameters are written %s, a percent sign of ours must be written twice.
    return compiler.escape_literal_column(text)


@compiles(now_plus)
def _now_plus(element: now_plus, compiler: SQLCompiler, **options: Any) -> str:
    return f"({_CLOCK[POSTGRESQL]} + make_interval(secs => {compiler.process(element.clauses, **options)}))"


def with_clock_at(instant: datetime, statement: str, dialect: str) -> str:
    """The text of one of our statements with *instant* in place of the database's clock."""
    text = instant.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")
    if dialect == SQLITE:
        # Not through strftime where nothing is added: its milliseconds would sort before the same instant, published
        # with microseconds.
        return statement.replace(_SQLITE_NOW, f"'{text}'").replace(_CLOCK[SQLITE], f"'{text}'")
    return statement.replace(_CLOCK[POSTGRESQL], f"timestamptz '{text}+00'")


def raw_json(column: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """The JSON of *column* as text, undecoded.

    The driver must not decode it: one row that cannot be decoded would take the whole claim with it.
    """
    return cast(column, Text) if dialect == POSTGRESQL else func.coalesce(cast(column, Text), "").label(column.key)


def unseen(parameter: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """*parameter* as the planner must not see it, in custom plans as in generic ones.

    Then one plan serves whatever is bound.

    Seeing a thousand ids it would read the whole table to join them; for the ten rows that it guesses it looks each
    up by the primary key. Seeing a limit above the number of rows that its statistics believe in, it would sort them
    all; for the tenth that it guesses it takes them from the index, in order, until there are enough.
    """
    return select(parameter).scalar_subquery() if dialect == POSTGRESQL else parameter


def raw_instant(column: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """*column* as the driver returns it, for `as_instant`.

    A claim returns thousands of them, and not all are looked at.
    """
    cast_to: Any = Text() if dialect == SQLITE else DateTime(timezone=True)
    return type_coerce(column, cast_to).label(column.key)


def parameter_rows(dialect: str, name: str, **columns: TypeEngine[Any]) -> FromClause:
    """A FROM clause of as many rows as were bound: `bind_rows` makes the parameters.

    PostgreSQL gets one array a column (`unnest`), written as text; SQLite one JSON document (`json_each`). The
    statement's text does not depend on the number of rows, so it is compiled and planned once. Joined by the primary
    key, rows are met in the order in which they were bound.
    """
    if dialect == POSTGRESQL:
        arrays = [
            unseen(cast(bindparam(f"{name}_{key}", type_=Text), ARRAY(type_)), dialect)
            for key, type_ in columns.items()
        ]
        return func.unnest(*arrays).table_valued(*_columns(columns), name=name).render_derived(name=name)
    document = func.json_each(bindparam(f"{name}_rows", type_=Text())).table_valued("value")
    extracted = [
        cast(func.json_extract(document.c.value, f"$[{position}]"), type_).label(key)
        for position, (key, type_) in enumerate(columns.items())
    ]
    # An OFFSET keeps SQLite from flattening the subquery and extracting from the JSON again for every use of a column.
    return select(*extracted).limit(-1).offset(0).subquery(name)


def _columns(columns: dict[str, TypeEngine[Any]]) -> list[Column[Any]]:
    return [Column(key, type_) for key, type_ in columns.items()]


def clamped(instant: ColumnElement[Any]) -> ColumnElement[datetime]:
    """*instant*, or the nearest that Python can hold in every time zone; NULL stays NULL.

    PostgreSQL stores 'infinity' and years B.C. No driver can read them, and one such row would make a query fail for
    all others.
    """
    first, last = (literal_column(f"'{at}'", Instant()) for at in (FIRST_INSTANT, LAST_INSTANT))
    return type_coerce(case((instant < first, first), (instant > last, last), else_=instant), Instant())


def skip_locked(query: Select[Any], dialect: str) -> Select[Any]:
    """*query* locking its rows and passing over those that somebody else has locked.

    SQLite has one writer at a time, which `BEGIN IMMEDIATE` makes sure of; there is nothing to lock.
    """
    return query.with_for_update(skip_locked=True) if dialect == POSTGRESQL else query


def is_one_of(column: ColumnElement[Any], query: Select[Any], dialect: str) -> ColumnElement[bool]:
    """Whether *column* is in the result of *query*, computed once.

    On PostgreSQL through an array: as a plain ``IN`` the planner may run the subquery again for each row, and then
    lock, and change, more rows than its LIMIT.
    """
    subquery = query.scalar_subquery()
    return column == any_(func.array(subquery)) if dialect == POSTGRESQL else column.in_(subquery)


def unindexed(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """The text *column*, hidden from partial indexes: for a test of rows that are found by something better."""
    return column.concat(literal_column("''", Text))


def is_autocommit(connection: Connection) -> bool:
    """Whether the driver commits every statement by itself, so that there is no transaction to join."""
    pooled = connection.connection
    driver: Any = pooled.driver_connection
    # asyncpg's own connection does not say so, SQLAlchemy's around it does.
    if any(getattr(one, "autocommit", False) is True for one in (driver, pooled.dbapi_connection)):
        return True
    return connection.dialect.name == SQLITE and driver.isolation_level is None and not driver.in_transaction


def _array(values: list[Any]) -> str:
    """*values* as PostgreSQL writes an array. Given a list, psycopg asks each element how to write it: much slower."""
    kinds = set(map(type, values))
    if kinds <= {int, float, NoneType}:
        return "{" + str(values)[1:-1].replace("None", "NULL") + "}"
    if kinds == {str} and (quoted := _quoted_at_once(values)) is not None:
        return "{" + quoted + "}"
    texts = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    return "{" + ",".join([_array_element(text) for text in texts]) + "}"


def _quoted_at_once(texts: list[str]) -> str | None:
    """The elements, quoted by three passes over all of them; None when one holds the NUL that keeps them apart."""
    joined = "\x00".join(texts)
    if joined.count("\x00") != len(texts) - 1:
        return None
    return '"' + joined.replace("\\", "\\\\").replace('"', '\\"').replace("\x00", '","') + '"'


def _array_element(text: str | None) -> str:
    # Quoted, nothing in it is taken for a delimiter or for NULL.
    return "NULL" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def bind_rows(dialect: str, name: str, columns: dict[str, list[Any]]) -> dict[str, Any]:
    """The parameters for `parameter_rows`: *columns* are lists of equal length, one value a row."""
    if dialect == POSTGRESQL:
        return {f"{name}_{key}": _array(values) for key, values in columns.items()}
    return {f"{name}_rows": json.dumps(list(zip(*columns.values(), strict=True)))}
