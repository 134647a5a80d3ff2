"""The migrations make the very table that `schema` describes, once, and touch nothing else."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from alembic import command
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.schema import CreateSchema

from prefect_claim_dispatch import engines, migrations, settling, surveying
from prefect_claim_dispatch.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseUnavailableError,
    SchemaMissingError,
    SchemaVersionError,
)
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.schema import UNANALYZED, actions_table, pauses_table
from tests.kit.tables import claim_due, verdicts

ODD_TABLE, ODD_SCHEMA = 'odd "logs" 1', 'odd "schema"'

UPGRADE = "import sys; from prefect_claim_dispatch import migrations; print(migrations.upgrade(sys.argv[1]), end='')"

# What a PostgreSQL table consists of, in PostgreSQL's own words; :relation is its name, quoted and qualified.
CATALOG = {
    "columns": """
        SELECT a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
               a.attstattarget, pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum)
        FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = CAST(:relation AS regclass) AND a.attnum > 0 ORDER BY a.attnum""",
    "constraints": """
        SELECT conname, contype, convalidated, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE conrelid = CAST(:relation AS regclass) ORDER BY conname""",
    "indexes": """
        SELECT pg_get_indexdef(indexrelid), indisunique, indisvalid
        FROM pg_index WHERE indrelid = CAST(:relation AS regclass) ORDER BY 1""",
    "table": """
        SELECT reloptions, relpersistence, obj_description(oid, 'pg_class')
        FROM pg_class WHERE oid = CAST(:relation AS regclass)""",
}


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    """An engine on an empty database."""
    engine = engines.create(empty_database_url)
    yield engine
    engine.dispose()


def described(connection: Connection, table: str, schema: str | None) -> dict[str, Any]:
    """Everything the database knows about the table's make."""
    if connection.dialect.name == "sqlite":
        rows = connection.execute(
            text("SELECT type, name, sql FROM sqlite_master WHERE tbl_name = :name ORDER BY type, name"),
            {"name": table},
        )
        return {f"{row.type} {row.name}": " ".join((row.sql or "").split()) for row in rows}
    quote = connection.dialect.identifier_preparer.quote
    relation = f"{quote(schema)}.{quote(table)}" if schema else quote(table)
    return {
        part: [tuple(row) for row in connection.execute(text(query), {"relation": relation})]
        for part, query in CATALOG.items()
    }


@pytest.mark.parametrize("is_odd", [False, True], ids=["default names", "names with quotes"])
def test_migrated_table_equals_the_metadata(empty_database_url: str, engine: Engine, is_odd: bool) -> None:
    """Checks, predicates, defaults, comments and storage included: an application may use either."""
    on_postgresql = engine.dialect.name == "postgresql"
    name = ODD_TABLE if is_odd else "action_logs"
    schema = ODD_SCHEMA if is_odd and on_postgresql else None
    table = actions_table(name, schema)
    with engine.begin() as connection:
        if schema:
            connection.execute(CreateSchema(schema))

    pauses = pauses_table(name, schema)

    migrations.upgrade(empty_database_url, table=name, schema=schema)
    with engine.begin() as connection:
        migrated = described(connection, name, schema)
        migrated_pauses = described(connection, pauses.name, schema)
        table.metadata.drop_all(connection)
        table.metadata.create_all(connection)
        created = described(connection, name, schema)
        created_pauses = described(connection, pauses.name, schema)

    assert migrated == created
    assert migrated_pauses == created_pauses
    assert len(migrated) >= 4
    if on_postgresql:
        without_statistics = {row[1] for row in migrated["columns"] if row[5] == 0}
        assert without_statistics == set(UNANALYZED)
        assert migrated["table"][0][0] is not None


def test_second_upgrade_finds_nothing_to_do(empty_database_url: str) -> None:
    """`db upgrade` belongs into every deployment, so running it again must be harmless."""
    assert migrations.current(empty_database_url) is None

    first = migrations.upgrade(empty_database_url)
    second = migrations.upgrade(empty_database_url)

    assert (first, second) == (migrations.newest_revision(), None)
    assert migrations.current(empty_database_url) == migrations.newest_revision()


def test_upgraders_at_once_migrate_once(empty_database_url: str) -> None:
    """Every replica of an application may run the upgrade when it starts."""
    upgraders = [
        subprocess.Popen([sys.executable, "-c", UPGRADE, empty_database_url], stdout=subprocess.PIPE) for _ in range(4)
    ]

    answers = [upgrader.communicate(timeout=60)[0].decode() for upgrader in upgraders]

    assert sorted(answers) == [migrations.newest_revision(), "None", "None", "None"]
    assert [upgrader.returncode for upgrader in upgraders] == [0, 0, 0, 0]


def test_threads_may_upgrade_different_tables_at_once(empty_database_url: str) -> None:
    """Alembic keeps its state in globals; two threads must not migrate each other's tables."""
    names = [f"logs_{number}" for number in range(4)]

    def upgrade(name: str) -> str | None:
        return migrations.upgrade(empty_database_url, table=name)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(upgrade, names))

    assert answers == [migrations.newest_revision()] * 4
    assert all(migrations.current(empty_database_url, table=name) for name in names)


def test_sql_is_a_script_that_an_administrator_can_run(empty_database_url: str, engine: Engine) -> None:
    """It makes the same table and leaves it at the newest revision, so that later upgrades go on from there."""
    script = migrations.sql(engine.dialect.name)

    run_script(empty_database_url, engine, script)

    assert migrations.current(empty_database_url) == migrations.newest_revision()
    assert migrations.upgrade(empty_database_url) is None
    with engine.begin() as connection:
        scripted = described(connection, "action_logs", None)
        actions_table().drop(connection)
        actions_table().create(connection)
        assert scripted == described(connection, "action_logs", None)


def run_script(url: str, engine: Engine, script: str) -> None:
    """Run *script* as the database's own shell would: many statements at a time."""
    if engine.dialect.name == "sqlite":
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.executescript(script)
    else:
        connection = engine.raw_connection()
        assert connection.driver_connection is not None
        connection.driver_connection.autocommit = True
        with closing(connection.cursor()) as cursor:
            cursor.execute(script)
        connection.invalidate()


def test_newer_table_is_refused(empty_database_url: str, engine: Engine) -> None:
    """An old package must not work on a table whose rules it does not know."""
    migrations.upgrade(empty_database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE action_logs_version SET version_num = '9999'"))

    with engine.begin() as connection, pytest.raises(SchemaVersionError) as refused:
        migrations.check_version(connection, actions_table())
    with pytest.raises(SchemaVersionError):
        migrations.upgrade(empty_database_url)

    assert str(refused.value) == (
        f"table action_logs is at revision 9999, newer than this package knows ({migrations.newest_revision()}): "
        "upgrade prefect-claim-dispatch"
    )


@pytest.mark.parametrize(("told", "is_accepted"), [("9999:0002", True), ("9999:9998", False), ("0002:0001", False)])
def test_newer_table_is_accepted_if_it_says_that_it_is_additive(
    empty_database_url: str, engine: Engine, told: str, is_accepted: bool
) -> None:
    """In a rolling deploy claim flows of the old release still begin, and need not be refused.

    A revision that says nothing of itself is not taken for additive because the one before it was.
    """
    migrations.upgrade(empty_database_url)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE action_logs_version SET version_num = '9999', works_since = :told"), {"told": told}
        )

    with engine.begin() as connection:
        if is_accepted:
            migrations.check_version(connection, actions_table())
        else:
            with pytest.raises(SchemaVersionError):
                migrations.check_version(connection, actions_table())


@pytest.mark.not_through_pgbouncer(reason="every client of it is the same role to the server")
def test_whoever_may_read_the_actions_may_read_what_is_paused(empty_postgres_url: str) -> None:
    """A claim flow reads both with every survey: else the migration would stop all flows until somebody grants it."""
    role, owner = f"reader_{uuid4().hex}", engines.create(empty_postgres_url)
    upgrade_to("0001", owner)
    with owner.begin() as connection:
        connection.execute(text(f'CREATE ROLE "{role}" LOGIN'))
        connection.execute(text(f'GRANT SELECT ON action_logs TO "{role}"'))
    reader = engines.create(engines.parsed_url(empty_postgres_url).set(username=role).render_as_string(False))

    migrations.upgrade(empty_postgres_url)

    assert surveying.survey(reader, actions_table()).paused == ()
    reader.dispose()
    with owner.begin() as connection:
        connection.execute(text(f'DROP OWNED BY "{role}"'))
        connection.execute(text(f'DROP ROLE "{role}"'))
    owner.dispose()


@pytest.mark.not_through_pgbouncer(reason="every client of it is the same role to the server")
def test_whoever_may_settle_by_rights_on_columns_may_settle_after_an_upgrade(empty_postgres_url: str) -> None:
    """As deployments/grants.sql gave them; else every verdict would be refused until somebody runs it again."""
    role, owner = f"worker_{uuid4().hex}", engines.create(empty_postgres_url)
    upgrade_to("0002", owner)
    with owner.begin() as connection:
        connection.execute(text(f'CREATE ROLE "{role}" LOGIN'))
        connection.execute(text("INSERT INTO action_logs (type, ordering_key) VALUES ('a', 'k')"))
        connection.execute(text(f'GRANT SELECT ON action_logs, action_logs_paused TO "{role}"'))
        columns = "end_at, status, claimed_at, claimed_by, claim_count, lease_expires_at, run_id, fail_count, errors"
        granted = f"UPDATE ({columns}, processed_at, settled_at, updated_at)"
        connection.execute(text(f'GRANT {granted} ON action_logs TO "{role}"'))
    worker = engines.create(engines.parsed_url(empty_postgres_url).set(username=role).render_as_string(False))

    migrations.upgrade(empty_postgres_url)

    claimed = claim_due(worker)
    settled = settling.settle(worker, actions_table(), verdicts(Processed(), claimed))
    assert (len(claimed), settled) == (1, {1})
    worker.dispose()
    with owner.begin() as connection:
        connection.execute(text(f'DROP OWNED BY "{role}"'))
        connection.execute(text(f'DROP ROLE "{role}"'))
    owner.dispose()


def upgrade_to(revision: str, engine: Engine) -> None:
    """As `migrations.upgrade`, no further than *revision*: what an older package has left behind."""
    config = migrations._config(actions_table())
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_older_table_is_refused_and_its_idle_tick_is_not(empty_database_url: str, engine: Engine) -> None:
    """New code on the old table: a survey finds nothing paused, and before the first claim it says what to run."""
    upgrade_to("0001", engine)

    with engine.begin() as connection, pytest.raises(SchemaMissingError, match="claim-dispatch db upgrade"):
        migrations.check_version(connection, actions_table())
    surveys = [surveying.survey(engine, actions_table()) for _ in range(2)]

    assert [(survey.lanes, survey.paused) for survey in surveys] == [((), ())] * 2
    migrations.upgrade(empty_database_url)


def test_check_version_accepts_what_this_package_made(empty_database_url: str, engine: Engine) -> None:
    """By migration, or from the metadata by an application that owns its migrations."""
    actions_table("from_metadata").metadata.create_all(engine)
    migrations.upgrade(empty_database_url)

    with engine.begin() as connection:
        migrations.check_version(connection, actions_table())
        migrations.check_version(connection, actions_table("from_metadata"))


def test_check_version_misses_the_table(engine: Engine) -> None:
    """The message says what to run."""
    with engine.begin() as connection, pytest.raises(SchemaMissingError, match="claim-dispatch db upgrade"):
        migrations.check_version(connection, actions_table())


def test_table_of_the_metadata_is_not_migrated(empty_database_url: str, engine: Engine) -> None:
    """The application owns it; creating it again would fail with a riddle."""
    actions_table().metadata.create_all(engine)

    with pytest.raises(DatabaseError, match="made from the metadata"):
        migrations.upgrade(empty_database_url)


def test_alembic_of_the_application_is_left_alone(empty_database_url: str, engine: Engine) -> None:
    """Its version table keeps its revision, and ours has another name."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('cafe')"))

    migrations.upgrade(empty_database_url)

    with engine.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["cafe"]
    assert set(inspect(engine).get_table_names()) == {
        "alembic_version",
        "action_logs",
        "action_logs_paused",
        "action_logs_version",
    }


def test_logging_of_the_application_is_left_alone(empty_database_url: str) -> None:
    """Alembic's usual env.py would reconfigure the root logger and silence every other one."""
    root, other = logging.getLogger(), logging.getLogger("application.of.ours")
    before = (list(root.handlers), root.level, other.disabled)

    migrations.upgrade(empty_database_url)

    assert (list(root.handlers), root.level, other.disabled) == before


def test_missing_schema_is_not_created(empty_database_url: str, engine: Engine) -> None:
    """A PostgreSQL schema is somebody's decision; SQLite has none."""
    expected = SchemaMissingError if engine.dialect.name == "postgresql" else ConfigurationError

    with pytest.raises(expected, match="nowhere"):
        migrations.upgrade(empty_database_url, schema="nowhere")

    assert "nowhere" not in inspect(engine).get_schema_names()


def test_unreachable_database_is_one_line_without_password() -> None:
    """Deployments log this."""
    with pytest.raises(DatabaseUnavailableError) as failed:
        migrations.upgrade("postgresql://someone:hunter2@127.0.0.1:1/nothing")

    assert "hunter2" not in str(failed.value)
    assert "\n" not in str(failed.value)


@pytest.mark.not_through_pgbouncer(reason="every client of it is the same role to the server")
def test_role_that_may_not_create_gets_advice(postgres_url: str) -> None:
    """Many teams let only an administrator change the schema."""
    role = f"guest_{uuid4().hex}"  # roles belong to the whole server, which other tests share
    owner = engines.create(postgres_url)
    with owner.begin() as connection:
        connection.execute(text("CREATE SCHEMA locked"))
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA locked TO {role}"))
    guest = engines.parsed_url(postgres_url).set(username=role)

    with pytest.raises(DatabaseError, match="db sql"):
        migrations.upgrade(guest.render_as_string(hide_password=False), schema="locked")

    with owner.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))
    owner.dispose()


def test_sql_of_an_unknown_dialect_is_refused() -> None:
    """Rather than DDL of a database that nobody has tried."""
    with pytest.raises(ConfigurationError, match="mysql"):
        migrations.sql("mysql")
