"""Engines as the loop needs them, and the driver's errors in our words."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from prefect_claim_dispatch import deadlines
from prefect_claim_dispatch.dialects import POSTGRESQL, SQLITE, SUPPORTED
from prefect_claim_dispatch.errors import (
    ConfigurationError,
    DatabaseContendedError,
    DatabaseError,
    DatabaseUnavailableError,
    MissingExtraError,
    SchemaMissingError,
)
from prefect_claim_dispatch.outcomes import redacted

_statement_log = logging.getLogger("sqlalchemy.engine.Engine")

SQLITE_BUSY_SECONDS = 30
# A half-open socket must be given up well inside the shortest sensible lease.
POSTGRESQL_CONNECT_ARGS: dict[str, Any] = {
    "connect_timeout": 10,
    "application_name": "prefect-claim-dispatch",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

# Serialization failure, deadlock, lock timeout, statement timeout.
CONTENDED = ("40001", "40P01", "55P03", "57014")
OUT_OF_RESOURCES = "53"
READ_ONLY = "25006"
SQLITE_READONLY = 8
SQLITE_FULL = 13

PREPARE_THRESHOLD = "prepare_threshold"
NEVER = ("none", "never", "off", "0")


def parsed_url(url: str) -> URL:
    """*url* as SQLAlchemy's, ``postgresql://`` meaning psycopg 3.

    Raises:
        ConfigurationError: not a URL, or a database that is not supported; the message never shows the password.
        MissingExtraError: psycopg is not installed.
    """
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        _refuse_nul(url)
    except (ArgumentError, ValueError) as error:
        msg = "the database URL can't be read; write postgresql://user:password@host/database or sqlite:///file.db"
        raise ConfigurationError(msg) from error
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
        backend = POSTGRESQL
    if backend not in SUPPORTED:
        msg = f"database {backend!r} is not supported; use PostgreSQL or SQLite"
        raise ConfigurationError(msg)
    if parsed.drivername == "postgresql+psycopg" and importlib.util.find_spec("psycopg") is None:
        what = "PostgreSQL"
        raise MissingExtraError(what, "postgres")
    return parsed


def _refuse_nul(url: str) -> None:
    if "\x00" in url:
        msg = "NUL in URL"
        raise ValueError(msg)


def create(url: str, **options: Any) -> Engine:
    """An engine as the loop needs it: short transactions, time limits, and on SQLite one writer at a time.

    SQLite: WAL, a busy timeout of 30 s, and ``BEGIN IMMEDIATE``, so that a claim never has to upgrade a read lock.
    PostgreSQL: READ COMMITTED, a dead network noticed within 30 s, and the deadlines of claim flows kept
    (:mod:`.deadlines`). With psycopg, nothing is prepared on the server
    where a pooler stands between (see `_without_preparing`); ``?prepare_threshold=`` in the URL, a number or ``none``,
    decides it instead.

    Raises:
        ConfigurationError: as `parsed_url`; or the driver is not there, or for asyncio, or refuses an option.
    """
    parsed = parsed_url(url)
    with _driver_errors(parsed.drivername):
        if parsed.get_dialect().is_async:
            msg = f"driver {parsed.drivername!r} is for asyncio; use `await async_session.run_sync(publish, ...)`"
            raise ConfigurationError(msg)
        engine = (
            _create_sqlite(parsed, options)
            if parsed.get_backend_name() == SQLITE
            else _create_postgresql(parsed, options)
        )
        engine.dialect.create_connect_args(parsed)
    return engine


@contextmanager
def _driver_errors(name: str) -> Generator[None]:
    try:
        yield
    except (NoSuchModuleError, ImportError) as error:
        msg = f"driver {name!r} is not installed; write postgresql+psycopg://... or sqlite:///..."
        raise ConfigurationError(msg) from error
    except ConfigurationError:
        raise
    except ValueError as error:
        msg = f"an option of the database URL has a wrong value: {error}; correct what stands after the question mark"
        raise ConfigurationError(msg) from error


def _create_postgresql(parsed: URL, options: dict[str, Any]) -> Engine:
    arguments = {key: value for key, value in POSTGRESQL_CONNECT_ARGS.items() if key not in parsed.query}
    options.setdefault("isolation_level", "READ COMMITTED")
    if "poolclass" not in options:
        options.setdefault("pool_size", 4)
    is_psycopg = parsed.get_driver_name() == "psycopg"
    asked = parsed.query.get(PREPARE_THRESHOLD) if is_psycopg else None
    if asked is not None:
        parsed = parsed.difference_update_query([PREPARE_THRESHOLD])
        arguments[PREPARE_THRESHOLD] = _threshold(str(asked))
    engine = create_engine(parsed, connect_args=arguments, hide_parameters=True, **options)
    deadlines.watched(engine)
    if is_psycopg and asked is None:
        event.listen(engine, "connect", _without_preparing)
    return engine


def _threshold(asked: str) -> int | None:
    if asked.lower() in NEVER:
        return None
    if asked.isascii() and asked.isdigit():
        return int(asked)
    msg = f"prepare_threshold must be a number or none, got {asked!r}"
    raise ValueError(msg)


def _without_preparing(connection: Any, _record: Any) -> None:
    """Prepare no statements where a pooler stands between.

    In transaction mode, what one client has prepared under a name is met by the next under the same name: it fails,
    or worse, runs the other's statement. A pooler tells its client a process id of its own making, so it is known by
    a server that has another.
    """
    is_autocommitting = connection.autocommit
    try:
        connection.autocommit = True  # one round trip, and no transaction is left open
        (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone()
        connection.autocommit = is_autocommitting
    except BaseException:
        connection.close()  # the pool has not got it yet, and nobody else would
        raise
    if pid != connection.info.backend_pid:
        connection.prepare_threshold = None


def _create_sqlite(url: URL, options: dict[str, Any]) -> Engine:
    engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_SECONDS}, hide_parameters=True, **options)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None  # SQLAlchemy's BEGIN, below, not sqlite3's own
        connection.text_factory = _lenient_text
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _lenient_text(raw: bytes) -> str:
    # Rows written behind our back may hold bytes that are no UTF-8; they must harm only themselves.
    return raw.decode("utf-8", "replace")


def takes_text(engine: Engine) -> bool:
    """Whether `value_by_driver` serves here: parameters go by name, and nobody wants to see what *engine* executes.

    Who would are listeners, such as a tracer's, and SQLAlchemy's log.
    """
    wanted = engine.dispatch
    return not (
        engine.dialect.positional
        or wanted.before_cursor_execute
        or wanted.after_cursor_execute
        or wanted.before_execute
        or wanted.after_execute
        or engine.dialect.dispatch.handle_error
        or _statement_log.isEnabledFor(logging.INFO)
    )


def value_by_driver(engine: Engine, sql: str, parameters: Mapping[str, Any]) -> Any:
    """The one value that *sql* returns, asked of the driver; only where each statement commits as it is sent.

    SQLAlchemy's own work around one statement (connection, context, events, result) takes longer than the driver's.

    Raises:
        DBAPIError: as from `Connection.exec_driver_sql`, pool included: when the server is gone, no connection that
            was made before is used again.
    """
    error_kind = engine.dialect.loaded_dbapi.Error
    try:
        pooled = engine.raw_connection()
    except error_kind as error:
        raise DBAPIError.instance(sql, None, error, error_kind, hide_parameters=True, dialect=engine.dialect) from error
    cursor: Any = None
    try:
        cursor = pooled.cursor()
        cursor.execute(sql, parameters)
        (value,) = cursor.fetchone() or (None,)
        cursor.close()
    except error_kind as error:
        is_gone = engine.dialect.is_disconnect(error, pooled.driver_connection, cursor)
        if is_gone:
            with suppress(DBAPIError), Connection(engine, pooled) as connection:
                connection.exec_driver_sql("SELECT 1")  # so the pool finds out
        raise DBAPIError.instance(
            sql, None, error, error_kind, hide_parameters=True, connection_invalidated=is_gone, dialect=engine.dialect
        ) from error
    except BaseException:
        pooled.invalidate()  # interrupted: what comes next on it is anybody's guess
        raise
    finally:
        pooled.close()
    return value


@contextmanager
def translated() -> Generator[None]:
    """Turn the driver's errors into `DatabaseError`s that say what to do, and show neither password nor parameters."""
    try:
        yield
    except DBAPIError as error:
        raise _translate(error) from error
    except PoolTimeoutError as error:
        msg = "no connection of the pool came free in time; end transactions sooner, or make the pool larger"
        raise DatabaseUnavailableError(msg) from error


def sqlstate(error: DBAPIError) -> str | None:
    """PostgreSQL's code for what went wrong, whatever the driver calls it; None on SQLite."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)  # psycopg2 has the latter


def is_missing_table(error: DBAPIError) -> bool:
    """Whether a table, or its schema, is not there."""
    return sqlstate(error) in ("42P01", "3F000") or "no such table" in str(error.orig)


def _translate(error: DBAPIError) -> DatabaseError:
    reason = redacted(str(error.orig).strip().split("\n")[0], 300)
    state = sqlstate(error)
    if is_missing_table(error):
        return SchemaMissingError(f"the action table is not there ({reason}); run: claim-dispatch db upgrade")
    if state == "42703" or "no such column" in reason:
        return SchemaMissingError(
            f"the action table is older than this package ({reason}); run: claim-dispatch db upgrade"
        )
    is_read_only = state == READ_ONLY or getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == SQLITE_READONLY
    if state == "42501" or is_read_only:
        grant = "grant SELECT, INSERT and UPDATE on the action table"
        remedy = "connect where the table may be written" if is_read_only else grant
        return DatabaseError(f"the database refuses: {reason}; {remedy}")
    if state in CONTENDED or "database is locked" in reason:
        return DatabaseContendedError(f"other transactions were in the way ({reason}), nothing was written; try again")
    if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
        return DatabaseUnavailableError(_why_unavailable(error, reason))
    return DatabaseError(f"the database refuses: {reason}")


def _why_unavailable(error: DBAPIError, reason: str) -> str:
    is_out = (sqlstate(error) or "").startswith(OUT_OF_RESOURCES)
    if is_out or getattr(error.orig, "sqlite_errorcode", 0) == SQLITE_FULL:
        return f"the database has run out of disk, memory or connections: {reason}; free some, nothing was written"
    return f"the database can't be reached: {reason}; check CLAIM_DISPATCH_DATABASE_URL"
