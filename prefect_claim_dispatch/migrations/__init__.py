"""Migrations of the action table: an Alembic environment inside the package, which needs no alembic.ini.

Each table has a version table of its own beside it, ``<table>_version``, so that the application's Alembic and ours
never meet. An application that owns its migrations uses the metadata of `schema.actions_table` instead.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, MetaData, String, Table, func, inspect, select
from sqlalchemy.exc import ProgrammingError

from prefect_claim_dispatch import engines, wake_ups
from prefect_claim_dispatch.dialects import POSTGRESQL, SQLITE, SUPPORTED
from prefect_claim_dispatch.errors import (
    ConfigurationError,
    DatabaseError,
    SchemaMissingError,
    SchemaVersionError,
)
from prefect_claim_dispatch.outcomes import redacted
from prefect_claim_dispatch.schema import DEFAULT_TABLE, actions_table
from prefect_claim_dispatch.statements.wake import wake_up

INSUFFICIENT_PRIVILEGE: Final = "42501"

# Alembic's `op` and `context` are globals of the process: two threads at once would migrate each other's tables.
_ALEMBIC: Final = threading.Lock()


def upgrade(url: str, *, table: str = DEFAULT_TABLE, schema: str | None = None) -> str | None:
    """Bring the table to the newest revision; returns that revision, or None when there was nothing to do.

    One transaction, all or nothing. Of two upgraders at once the second waits for the first and finds nothing to do.

    Raises:
        SchemaMissingError: the PostgreSQL schema does not exist; it is never created unasked.
        SchemaVersionError: the table is newer than this package.
        DatabaseError: the table is there but was not made by these migrations, or the role may not create it.
        ConfigurationError: a table or schema name that cannot be.
    """
    wanted = actions_table(table, schema)
    # The process's lock comes before the database's, in every thread, or the two could wait for each other.
    with _ALEMBIC, _connected(url, schema) as connection:
        _take_turn(connection, wanted)
        before = _revision(connection, wanted)
        _check_known(wanted, before)
        if before is None and inspect(connection).has_table(wanted.name, schema=schema):
            msg = (
                f"table {wanted.fullname} exists, but has no {version_table_name(table)}: it was made from the "
                "metadata, so the migrations of the application that made it must change it"
            )
            raise DatabaseError(msg)
        if before == newest_revision():
            return None
        config = _config(wanted)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return newest_revision()


def current(url: str, *, table: str = DEFAULT_TABLE, schema: str | None = None) -> str | None:
    """The revision that the table is at; None when these migrations have not made it.

    Raises:
        DatabaseError: the database can't be asked.
    """
    wanted = actions_table(table, schema)
    with _connected(url, schema) as connection:
        return _revision(connection, wanted)


def sql(dialect_name: str, *, table: str = DEFAULT_TABLE, schema: str | None = None) -> str:
    """The DDL of all revisions as text, one transaction, for an administrator to read and run; needs no database.

    Raises:
        ConfigurationError: a dialect that is not supported.
    """
    if dialect_name not in SUPPORTED:
        msg = f"dialect {dialect_name!r} is not supported; use postgresql or sqlite"
        raise ConfigurationError(msg)
    _refuse_schema_on_sqlite(dialect_name, schema)
    output = io.StringIO()
    config = _config(actions_table(table, schema), output)
    config.attributes["dialect_name"] = dialect_name
    with _ALEMBIC:
        command.upgrade(config, "head", sql=True)
    return output.getvalue()


def install_wake_up(bind: Connection | str, *, table: str = DEFAULT_TABLE, schema: str | None = None) -> bool:
    """Have every INSERT wake claim flows that stay; returns whether it did not before. Safe to repeat.

    PostgreSQL only: on SQLite they watch the file, and nothing is needed. *bind* is a URL, or the connection of the
    application's own migration (``op.get_bind()``), which is joined and not committed. The role owns the table or has
    TRIGGER on it, and may create a function in its schema. Waits for transactions that have written to the table, and
    writers wait behind it: see docs/migrations.md for a ``lock_timeout``.

    Raises:
        ConfigurationError: the database is SQLite.
        SchemaMissingError: the table, or its schema, is not there.
        DatabaseError: the role may not; `wake_up_sql` is what an administrator may run instead.
    """
    wanted = actions_table(table, schema)
    return _change_wake_up(bind, wanted, wake_ups.install_ddl(wanted)) is False


def remove_wake_up(bind: Connection | str, *, table: str = DEFAULT_TABLE, schema: str | None = None) -> bool:
    """Undo `install_wake_up`; returns whether there was something to remove. It raises the same."""
    wanted = actions_table(table, schema)
    return _change_wake_up(bind, wanted, wake_ups.remove_ddl(wanted))


def wake_up_sql(*, table: str = DEFAULT_TABLE, schema: str | None = None, remove: bool = False) -> str:
    """The DDL that installs the wake-up, or removes it, as text, one transaction; needs no database."""
    wanted = actions_table(table, schema)
    ddl = wake_ups.remove_ddl(wanted) if remove else wake_ups.install_ddl(wanted)
    return "".join(f"{statement};\n\n" for statement in ("BEGIN", *ddl, "COMMIT"))


def check_version(connection: Connection, table: Table) -> None:
    """Make sure that this package can work with *table*; joins the connection's transaction.

    A table without a version table was made from the metadata, and is taken at its word. So is a newer one whose
    migrations were additive: it says since which revision code can work with it.

    Raises:
        SchemaMissingError: the table is not there, or is at an older revision than this package needs.
        SchemaVersionError: the table is at a revision that this package does not know, and can't work with.
    """
    if not inspect(connection).has_table(table.name, schema=table.schema):
        msg = f"the action table {table.fullname} is not there; run: claim-dispatch db upgrade"
        raise SchemaMissingError(msg)
    revision = _revision(connection, table)
    if revision is not None and revision not in _revisions() and _is_additive(connection, table, revision):
        return
    _check_known(table, revision)
    if revision is not None and revision != newest_revision():
        msg = (
            f"table {table.fullname} is at revision {revision}, this package needs {newest_revision()}; "
            "run: claim-dispatch db upgrade"
        )
        raise SchemaMissingError(msg)


def version_table_name(table: str) -> str:
    """The name of the version table that belongs to *table*, in the same schema."""
    return f"{table}_version"


def newest_revision() -> str:
    """The revision that this package's migrations end in."""
    return _revisions()[0]


@cache
def _revisions() -> tuple[str, ...]:
    script = ScriptDirectory(str(Path(__file__).parent))
    return tuple(revision.revision for revision in script.walk_revisions())


def _check_known(table: Table, revision: str | None) -> None:
    if revision is not None and revision not in _revisions():
        msg = (
            f"table {table.fullname} is at revision {revision}, newer than this package knows ({newest_revision()}): "
            "upgrade prefect-claim-dispatch"
        )
        raise SchemaVersionError(msg)


def _revision(connection: Connection, table: Table) -> str | None:
    name = version_table_name(table.name)
    if not inspect(connection).has_table(name, schema=table.schema):
        return None
    try:
        return _version_column(connection, table, "version_num")
    except ProgrammingError as error:
        if _is_refused(error):
            return None  # a role that may only work on the actions: the statements themselves will tell
        raise


def _is_additive(connection: Connection, table: Table, revision: str) -> bool:
    """Whether the newer *revision* of *table* says of itself that code of a revision that we know works with it."""
    columns = inspect(connection).get_columns(version_table_name(table.name), schema=table.schema)
    if not any(column["name"] == "works_since" for column in columns):
        return False
    told, _, since = (_version_column(connection, table, "works_since") or "").partition(":")
    return told == revision and since in _revisions()


def _version_column(connection: Connection, table: Table, column: str) -> str | None:
    versions = Table(version_table_name(table.name), MetaData(schema=table.schema), Column(column, String))
    # A savepoint, because a refused SELECT would spoil the caller's transaction.
    with connection.begin_nested():
        return connection.execute(select(versions.c[column]).limit(1)).scalar()


def _config(table: Table, output: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output) if output is not None else Config()
    # Config interpolates percent signs, which a path may have.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes |= {
        "table": table.name,
        "schema": table.schema,
        "version_table": version_table_name(table.name),
    }
    return config


def _change_wake_up(bind: Connection | str, table: Table, ddl: Sequence[str]) -> bool:
    """Execute *ddl*; whether the wake-up was there before."""
    advice = "claim-dispatch db wake-up --sql"
    if isinstance(bind, Connection):
        with _refusals_explained(advice):
            return _wake_up_changed(bind, table, ddl)
    with _connected(bind, table.schema, advice) as connection:
        return _wake_up_changed(connection, table, ddl)


def _wake_up_changed(connection: Connection, table: Table, ddl: Sequence[str]) -> bool:
    if connection.dialect.name != POSTGRESQL:
        msg = "SQLite needs no wake-up: claim flows that stay watch the file; there is nothing to install or remove"
        raise ConfigurationError(msg)
    _take_turn(connection, table)
    found = connection.execute(wake_up(table)).one_or_none()
    if found is None:
        msg = f"the action table {table.fullname} is not there; run: claim-dispatch db upgrade"
        raise SchemaMissingError(msg)
    for statement in ddl:
        connection.exec_driver_sql(statement)
    return bool(found.is_there)


@contextmanager
def _connected(url: str, schema: str | None, advice: str = "claim-dispatch db sql") -> Generator[Connection]:
    engine = engines.create(url)
    try:
        _refuse_schema_on_sqlite(engine.dialect.name, schema)
        with engines.translated(), _refusals_explained(advice), engine.begin() as connection:
            if schema is not None and not inspect(connection).has_schema(schema):
                msg = f"schema {schema!r} does not exist in this database; create it first: it is never created unasked"
                raise SchemaMissingError(msg)
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _refusals_explained(advice: str) -> Generator[None]:
    try:
        yield
    except ProgrammingError as error:
        if not _is_refused(error):
            raise
        reason = redacted(str(error.orig).strip().split("\n")[0], 300)
        msg = (
            f"the database refuses to migrate: {reason}; use a role that owns the table or may create it, "
            f"or give an administrator the output of: {advice}"
        )
        raise DatabaseError(msg) from error


def _is_refused(error: ProgrammingError) -> bool:
    return engines.sqlstate(error) == INSUFFICIENT_PRIVILEGE


def _refuse_schema_on_sqlite(dialect_name: str, schema: str | None) -> None:
    if dialect_name == SQLITE and schema is not None:
        msg = f"SQLite has no schemas, got {schema!r}; leave CLAIM_DISPATCH_SCHEMA unset"
        raise ConfigurationError(msg)


def _take_turn(connection: Connection, table: Table) -> None:
    """Wait until no other upgrader is at work on *table*; SQLite's BEGIN IMMEDIATE has seen to that already."""
    if connection.dialect.name != POSTGRESQL:
        return
    schema = table.schema or connection.execute(select(func.current_schema())).scalar()
    digest = hashlib.sha256(f"prefect-claim-dispatch\0{schema}\0{table.name}".encode()).digest()
    key = int.from_bytes(digest[:8], "big", signed=True)
    connection.execute(select(func.pg_advisory_xact_lock(key)))
