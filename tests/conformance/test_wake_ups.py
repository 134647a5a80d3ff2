"""The wake-up: a trigger that tells who listens, on request only, for one table, by whatever name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Engine, Table, text
from sqlalchemy.schema import CreateSchema

from prefect_claim_dispatch import Draft, engines, migrations, operations, publish, publish_many
from prefect_claim_dispatch.errors import ConfigurationError, DatabaseError, SchemaMissingError
from prefect_claim_dispatch.schema import actions_table
from prefect_claim_dispatch.statements.wake import wake_up
from tests.kit.tables import TABLE

pytestmark = pytest.mark.not_through_pgbouncer(reason="nobody can listen there")

ODD_TABLE, ODD_SCHEMA = 'odd "logs" 1', 'odd. "schema"'
HOUR = timedelta(hours=1)
BY_PLAIN_SQL = "INSERT INTO action_logs (type, payload, end_at) VALUES ('a', '{}', now())"


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """An engine to a database whose action table wakes."""
    migrations.install_wake_up(postgres_url)
    engine = engines.create(postgres_url)
    yield engine
    engine.dispose()


def channel(engine: Engine, table: Table = TABLE) -> str:
    with engine.connect() as connection:
        return connection.execute(wake_up(table)).one().channel


def is_there(engine: Engine, table: Table = TABLE) -> bool:
    with engine.connect() as connection:
        return connection.execute(wake_up(table)).one().is_there


@contextmanager
def heard(engine: Engine, *tables: Table) -> Iterator[Callable[[], list[str]]]:
    """What is sent to the channels of *tables*, in order, up to the moment of the call; payloads must be empty."""
    url = engine.url.render_as_string(hide_password=False).replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as ear:
        for table in tables or (TABLE,):
            ear.execute(f'LISTEN "{channel(engine, table)}"')

        def so_far() -> list[str]:
            # To oneself, so that nothing has to be waited for: notifications come in the order of the commits.
            ear.execute("LISTEN done")
            ear.execute("NOTIFY done")
            told: list[str] = []
            for notification in ear.notifies(timeout=10):
                if notification.channel == "done":
                    return told
                assert not notification.payload
                told.append(notification.channel)
            raise AssertionError

        yield so_far


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


@pytest.mark.parametrize(
    "act",
    [
        lambda engine: publish(engine, "a"),
        lambda engine: publish_many(engine, [Draft().type("a"), Draft().type("b").after(hours=1)]),
        lambda engine: execute(engine, BY_PLAIN_SQL),
        lambda engine: execute(engine, BY_PLAIN_SQL, BY_PLAIN_SQL),
        lambda engine: publish(engine, "a", delay=timedelta(seconds=2)),
    ],
    ids=["one", "many", "plain SQL", "two statements", "due in a moment"],
)
def test_publishing_sends_one_notification_for_each_transaction(engine: Engine, act: Callable[[Engine], None]) -> None:
    """However it is done and however many there are: who is woken looks for all of them."""
    with heard(engine) as so_far:
        act(engine)

        assert len(so_far()) == 1


def test_what_is_due_later_wakes_nobody(engine: Engine) -> None:
    """A million reminders for tomorrow must not keep claim flows awake; a look a second sees them in time."""
    with heard(engine) as so_far:
        publish(engine, "a", delay=HOUR)
        publish_many(engine, [Draft().type("a").after(hours=1), Draft().type("b").after(hours=2)])
        execute(engine, "INSERT INTO action_logs (type, status, settled_at) VALUES ('a', 'dead', now())")

        assert so_far() == []


def test_what_operators_make_due_wakes(engine: Engine) -> None:
    """They look at the row afterwards, and wonder why nothing happens."""
    with heard(engine) as so_far:
        id_ = publish(engine, "a", delay=HOUR).id
        assert id_ is not None
        operations.reschedule(engine, [id_], delay=timedelta(0))
        operations.cancel(engine, [id_])
        operations.retry(engine, [id_])
        operations.retry(engine, [id_])  # pending already: nothing changes

        assert len(so_far()) == 2


def test_operators_send_nothing_where_it_is_not_installed(engine: Engine) -> None:
    """Whoever did not ask for notifications must not find them in the server's queue."""
    with heard(engine) as so_far:
        migrations.remove_wake_up(engine.url.render_as_string(hide_password=False))
        id_ = publish(engine, "a", delay=HOUR).id
        assert id_ is not None
        operations.reschedule(engine, [id_], delay=timedelta(0))

        assert so_far() == []


def test_rolled_back_publish_wakes_nobody(engine: Engine) -> None:
    """As the row, so the notification: it is part of the transaction."""
    with heard(engine) as so_far:
        with engine.connect() as connection:
            publish(connection, "a")
            connection.rollback()

        assert so_far() == []


def test_two_tables_in_one_database_do_not_wake_each_other(engine: Engine, postgres_url: str) -> None:
    """Teams share a database; each has its own table, and its own flows."""
    other = actions_table("other_logs")
    migrations.upgrade(postgres_url, table=other.name)
    migrations.install_wake_up(postgres_url, table=other.name)

    with heard(engine, TABLE, other) as so_far:
        publish(engine, "a", table=other.name)

        assert so_far() == [channel(engine, other)]


def test_any_name_has_a_channel_and_keeps_it_when_renamed(engine: Engine, postgres_url: str) -> None:
    """Quotes, dots and spaces; and the trigger goes by the name of the moment, as who listens does."""
    odd, renamed = actions_table(ODD_TABLE, ODD_SCHEMA), actions_table(ODD_TABLE, "plain")
    with engine.begin() as connection:
        connection.execute(CreateSchema(ODD_SCHEMA))
    migrations.upgrade(postgres_url, table=ODD_TABLE, schema=ODD_SCHEMA)
    migrations.install_wake_up(postgres_url, table=ODD_TABLE, schema=ODD_SCHEMA)

    insert = f"INSERT INTO {engine.dialect.identifier_preparer.format_table(odd)} (type) VALUES ('a')"
    with heard(engine, odd) as so_far:
        execute(engine, insert)
        assert len(so_far()) == 1
    execute(engine, 'ALTER SCHEMA "odd. ""schema""" RENAME TO plain')
    with heard(engine, renamed) as so_far:
        execute(engine, f"INSERT INTO {engine.dialect.identifier_preparer.format_table(renamed)} (type) VALUES ('a')")
        assert len(so_far()) == 1

    assert len(channel(engine, renamed).encode()) <= 63


def test_partitioned_table_wakes_when_rows_come_by_its_name(engine: Engine) -> None:
    """Who has partitioned it publishes by the parent, whose trigger fires once for all partitions."""
    parted = actions_table("parted")
    execute(
        engine,
        "CREATE TABLE parted (LIKE action_logs INCLUDING DEFAULTS INCLUDING IDENTITY) PARTITION BY LIST (type)",
        "CREATE TABLE parted_a PARTITION OF parted FOR VALUES IN ('a')",
        "CREATE TABLE parted_b PARTITION OF parted FOR VALUES IN ('b')",
    )
    with engine.begin() as connection:
        assert migrations.install_wake_up(connection, table="parted")

    with heard(engine, parted) as so_far:
        execute(engine, "INSERT INTO parted (type) VALUES ('a'), ('b')")

        assert len(so_far()) == 1


def test_upgrade_does_not_install_it(postgres_url: str) -> None:
    """It costs publishers something: who wants it says so."""
    engine = engines.create(postgres_url)

    assert not is_there(engine)

    engine.dispose()


def test_installing_and_removing_may_be_repeated(postgres_url: str) -> None:
    """Both belong into scripts that run at every deploy; the answer says whether something changed."""
    engine = engines.create(postgres_url)

    installed = [migrations.install_wake_up(postgres_url), migrations.install_wake_up(postgres_url), is_there(engine)]
    removed = [migrations.remove_wake_up(postgres_url), migrations.remove_wake_up(postgres_url), is_there(engine)]

    assert (installed, removed) == ([True, False, True], [True, False, False])
    engine.dispose()


def test_application_installs_it_in_its_own_migration(postgres_url: str) -> None:
    """Its connection is joined: nothing is there until it commits."""
    engine, watcher = engines.create(postgres_url), engines.create(postgres_url)

    with engine.connect() as connection:
        assert migrations.install_wake_up(connection)
        assert not is_there(watcher)
        connection.commit()

    assert is_there(watcher)
    engine.dispose()
    watcher.dispose()


def test_sql_is_a_script_that_an_administrator_can_run(postgres_url: str) -> None:
    """Byte for byte what is printed."""
    engine = engines.create(postgres_url)
    url = postgres_url.replace("+psycopg", "")

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(migrations.wake_up_sql().encode())
        assert is_there(engine)
        connection.execute(migrations.wake_up_sql(remove=True).encode())

    assert not is_there(engine)
    engine.dispose()


def test_disabled_trigger_counts_as_none(engine: Engine) -> None:
    """An administrator who disables it for a bulk load must not be told that all is well."""
    execute(engine, "ALTER TABLE action_logs DISABLE TRIGGER claim_dispatch_wake_up")

    assert not is_there(engine)


def test_table_that_is_not_there_is_refused(empty_postgres_url: str) -> None:
    """In our words, with what to do."""
    with pytest.raises(SchemaMissingError, match="run: claim-dispatch db upgrade"):
        migrations.install_wake_up(empty_postgres_url)


def test_sqlite_needs_none_and_says_so(sqlite_url: str) -> None:
    """Somebody who follows the guide on a laptop must not believe that something is broken."""
    with pytest.raises(ConfigurationError, match="SQLite needs no wake-up"):
        migrations.install_wake_up(sqlite_url)


def test_role_without_the_right_gets_advice(engine: Engine, postgres_url: str) -> None:
    """Many teams let only an administrator change the schema."""
    role = f"guest_{uuid4().hex}"  # roles belong to the whole server, which other tests share
    execute(engine, f"CREATE ROLE {role} LOGIN", f"GRANT ALL ON SCHEMA public TO {role}")
    execute(engine, f"GRANT SELECT, INSERT, UPDATE ON action_logs TO {role}")
    guest = engines.parsed_url(postgres_url).set(username=role)

    with pytest.raises(DatabaseError, match="claim-dispatch db wake-up --sql"):
        migrations.install_wake_up(guest.render_as_string(hide_password=False), table="action_logs")

    execute(engine, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_publisher_with_few_rights_wakes_too(engine: Engine, postgres_url: str) -> None:
    """The trigger runs as whoever inserts, and asks for no right that deployments/grants.sql does not give."""
    role = f"publisher_{uuid4().hex}"
    execute(engine, f"CREATE ROLE {role} LOGIN", f"GRANT USAGE ON SCHEMA public TO {role}")
    execute(engine, f"GRANT INSERT (type, payload, end_at) ON action_logs TO {role}")
    publisher = engines.create(engines.parsed_url(postgres_url).set(username=role).render_as_string())

    with heard(engine) as so_far:
        execute(publisher, BY_PLAIN_SQL)

        assert len(so_far()) == 1
    publisher.dispose()
    execute(engine, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_installers_at_once_do_not_meet(postgres_url: str) -> None:
    """Every replica of an application may run it when it starts."""
    changed: list[bool] = []
    threads = [
        threading.Thread(target=lambda: changed.append(migrations.install_wake_up(postgres_url))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(changed) == [False, False, False, True]
