"""Where a statement goes: the engine that the settings name, the table, and the transaction that is joined or begun."""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from sqlalchemy import Connection, Engine, Table, event, inspect
from sqlalchemy.exc import DBAPIError

from prefect_claim_dispatch import settings as settings_module
from prefect_claim_dispatch.dialects import POSTGRESQL
from prefect_claim_dispatch.engines import create, sqlstate, translated
from prefect_claim_dispatch.errors import ConfigurationError, DatabaseContendedError
from prefect_claim_dispatch.schema import actions_table

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

logger = logging.getLogger(__name__)

Bind: TypeAlias = "Engine | Connection | Session | scoped_session[Any] | str | None"
T = TypeVar("T")

CONTENDED_TRIES: Final = 3
# A lock timeout is not among them: who waited in vain once would only wait again.
SERIALIZATION_FAILURE, DEADLOCK = "40001", "40P01"

_shared: Final[dict[str, Engine]] = {}
_autocommitting: Final[dict[Engine, Engine]] = {}
_inherited: Final[list[Any]] = []


def engine_for(url: str | None = None) -> Engine:
    """One engine per URL and process.

    None means the settings', whose embedded SQLite file is made with its table on first use. A process made by a fork
    (a web server's or task queue's that loads the application first) gets connections of its own.

    Raises:
        ConfigurationError: the URL or the settings make no sense.
        DatabaseError: the embedded default could not be made.
    """
    if url is not None:
        return _shared_engine(url)
    configured = settings_module.current()
    if configured.is_embedded:
        _create_embedded(configured)
    return _shared_engine(configured.url)


def _shared_engine(url: str) -> Engine:
    return _shared.get(url) or _shared.setdefault(url, create(url))


def close_all() -> None:
    """Close the idle connections of the engines of `engine_for`, and forget these engines; for tests of many databases.

    An engine that somebody holds keeps working.
    """
    for engines in (_autocommitting, _shared):
        while engines:
            engines.popitem()[1].dispose()


def _leave_to_the_parent() -> None:
    """In a fork: have no connection that the parent has, as both would speak on it, and close none, which speaks, too.

    After https://docs.sqlalchemy.org/en/20/core/pooling.html#using-connection-pools-with-multiprocessing-or-os-fork.
    The old pools are kept, so that no connection is closed by being collected: SQLite's would drop the parent's locks.
    """
    for engine in (*_autocommitting.values(), *_shared.values()):
        _inherited.append(engine.pool)
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)


def _create_embedded(configured: settings_module.Settings) -> None:
    from prefect_claim_dispatch import migrations  # noqa: PLC0415 - Alembic is wanted on first use only

    file = Path(configured.url.removeprefix("sqlite:///"))
    file.parent.mkdir(parents=True, exist_ok=True)
    table = table_named(None, configured)
    with translated():
        with _shared_engine(configured.url).connect() as connection:
            if inspect(connection).has_table(table.name):
                return
        migrations.upgrade(configured.url, table=table.name)


def table_named(name: str | None = None, configured: settings_module.Settings | None = None) -> Table:
    """The action table called *name*, ``schema.table`` included; None means the settings'.

    The embedded default and SQLite have no schemas: there `CLAIM_DISPATCH_SCHEMA` must not be set.
    """
    configured = configured or settings_module.load()
    if name is None:
        return actions_table(configured.table, configured.schema_name)
    schema, dot, table = name.rpartition(".")
    return actions_table(table, schema) if dot else actions_table(name, configured.schema_name)


@contextmanager
def transaction(bind: Bind) -> Generator[Connection]:
    """A connection in a transaction.

    Joined where the caller has one, begun and committed here where it hands an engine or a URL.

    A `Connection` or `Session` is joined and never committed, rolled back or closed. What the database raises inside
    somebody else's transaction passes unchanged, so that the caller's own retry logic sees it.

    Raises:
        ConfigurationError: *bind* is something else.
        DatabaseError: our own transaction failed.
    """
    match executor(bind):
        case Connection() as connection:
            yield connection
        case Engine() as engine:
            with translated(), engine.begin() as connection:
                yield connection


def repeated(bind: Bind, work: Callable[[Connection], T]) -> T:
    """What *work* returns in a `transaction`; done again when a deadlock or a serialization failure ended it.

    A few times. Statements that change many rows lock them in order of id, but the planner may join a small table in
    another. In the caller's transaction nothing is done again: more than *work* was lost with it.

    Raises:
        ConfigurationError: as `transaction`.
        DatabaseError: as `transaction`; `DatabaseContendedError` when it was in vain.
    """
    for _ in range(CONTENDED_TRIES - 1):
        try:
            with transaction(bind) as connection:
                return work(connection)
        except DatabaseContendedError as error:
            cause = error.__cause__
            if not isinstance(cause, DBAPIError) or sqlstate(cause) not in (SERIALIZATION_FAILURE, DEADLOCK):
                raise
            # At once, we would take again what the winner is about to be woken for.
            time.sleep(random.uniform(0.02, 0.1))  # noqa: S311 - jitter
            logger.debug("met another transaction, trying again: %s", error)
    with transaction(bind) as connection:
        return work(connection)


def executor(bind: Bind) -> Engine | Connection:
    """What runs statements for *bind*: the caller's connection, or an engine that is to begin transactions of its own.

    Raises:
        ConfigurationError: *bind* is something else.
        DatabaseError: the embedded default could not be made.
    """
    match bind:
        case Engine() | Connection():
            return bind
        case _ if isinstance(bind, _sessions()):
            return cast("Session", bind).connection()
        case str() | None:
            return engine_for(bind)
        case _:
            kind = type(bind).__name__
            advice = "; use `await async_session.run_sync(publish, ...)`" if "Async" in kind else ""
            msg = f"bind must be an Engine, Connection, Session, URL or None, got {kind}{advice}"
            raise ConfigurationError(msg)


def _sessions() -> tuple[type, ...]:
    """The kinds of session; none before somebody has imported the ORM, which would be a fifth of our import's time."""
    orm = sys.modules.get("sqlalchemy.orm")
    return () if orm is None else (orm.Session, orm.scoped_session)


def autocommitting_engine(bind: Bind) -> Engine | None:
    """An engine of which each statement commits as it is sent: a round trip, where BEGIN and COMMIT make it three.

    None where a transaction is to be joined or begun: SQLite's, and an application's, whose engine may do more when it
    begins (`SET LOCAL` a tenant).

    Raises:
        ConfigurationError: as `executor`.
        DatabaseError: as `executor`.
    """
    if not (bind is None or isinstance(bind, str)):
        return None
    engine = engine_for(bind)
    if engine.dialect.name != POSTGRESQL:
        return None
    return _autocommitting.get(engine) or _autocommitting.setdefault(engine, _create_autocommitting(engine))


def _create_autocommitting(engine: Engine) -> Engine:
    """An engine with connections of its own, to where *engine* goes; disposed of with it.

    With those of *engine*, switched to and fro for every publish, it would take as long as a transaction.
    """
    autocommitting = create(engine.url.render_as_string(hide_password=False), isolation_level="AUTOCOMMIT")
    # A connection that commits by itself has nothing to roll back; SQLAlchemy asks from 2.0.43 on, else it does so.
    autocommitting.dialect.skip_autocommit_rollback = True

    @event.listens_for(engine, "engine_disposed")
    def dispose(_engine: Engine) -> None:  # pyright: ignore[reportUnusedFunction]
        autocommitting.dispose()

    return autocommitting
