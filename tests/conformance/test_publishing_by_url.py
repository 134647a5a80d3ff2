"""Publishing by URL, which on PostgreSQL goes past SQLAlchemy for the one statement: what that must not change."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event, make_url

from prefect_claim_dispatch import databases, publish
from prefect_claim_dispatch.dialects import POSTGRESQL
from prefect_claim_dispatch.errors import DatabaseError, DatabaseUnavailableError, InvalidActionError
from tests.kit import postgres
from tests.kit.proxy import Proxy
from tests.kit.tables import by_status
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    """A database whose shared engine is put away at the end."""
    yield database_url
    databases.engine_for(database_url).dispose()


def test_listeners_of_all_engines_see_the_statement(url: str) -> None:
    """Tracers listen to the class `Engine`: a publish that they miss would be missing in somebody's trace."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    publish(url, "a")
    event.listen(Engine, "before_cursor_execute", note)
    publish(url, "a")
    event.remove(Engine, "before_cursor_execute", note)
    publish(url, "a")

    assert [statement for statement in seen if statement.startswith("INSERT INTO action_logs")] != []
    assert len([statement for statement in seen if statement.startswith("INSERT")]) == 1


def test_log_of_sqlalchemy_has_the_statement(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever turns the log on wants to see what is sent."""
    databases.engine_for(url).dispose()  # SQLAlchemy asks a new engine's connections whether the log is on
    with caplog.at_level("INFO", logger="sqlalchemy.engine"):
        publish(url, "a")

    assert any("INSERT INTO action_logs" in record.getMessage() for record in caplog.records)


def test_what_the_database_refuses_is_ours_to_tell(url: str) -> None:
    """A CHECK of the table's owner, for example; and the connection is as good as before."""
    engine = databases.engine_for(url)
    if engine.dialect.name != POSTGRESQL:
        pytest.skip("SQLite adds no constraint to a table that exists")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE action_logs ADD CONSTRAINT only_a CHECK (type = 'a')")

    with pytest.raises(DatabaseError, match="only_a") as refused:
        publish(url, "secret")

    assert not isinstance(refused.value, DatabaseUnavailableError | InvalidActionError)
    assert publish(url, "a").outcome == "created"
    assert by_status(engine) == {"pending": 1}


def wait_until_blocked(watcher: psycopg.Connection, number: int) -> None:
    """Until so many publishes wait for a lock; *watcher* is in no transaction, within which the view stands still."""
    waiting = """
        SELECT count(*) FROM pg_stat_activity
        WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT%' AND datname = current_database()
    """
    wait_until(lambda: watcher.execute(waiting).fetchone() == (number,), description="publishes wait for the lock")


@pytest.mark.not_through_pgbouncer(reason="it ends server connections, of which pgbouncer's clients do not hear")
def test_restarted_server_costs_one_publish_its_answer(postgres_url: str, postgres_server: postgres.Server) -> None:
    """All connections of the pool died with it: the first who finds out is told, the rest get new ones."""
    database = make_url(postgres_url).database or ""
    with (
        ThreadPoolExecutor(3) as pool,
        postgres_server.connect(database) as other,
        postgres_server.connect(database) as watcher,
    ):
        with other.transaction():
            other.execute("LOCK TABLE action_logs IN ACCESS EXCLUSIVE MODE")
            publishing = [pool.submit(publish, postgres_url, "a") for _ in range(3)]
            wait_until_blocked(watcher, 3)
        assert {done.result().outcome for done in publishing} == {"created"}
    assert postgres_server.terminate_backends(database) >= 3

    with pytest.raises(DatabaseUnavailableError, match="can't be reached"):
        publish(postgres_url, "a")

    for _ in range(4):
        publish(postgres_url, "a")
    engine = databases.engine_for(postgres_url)
    assert by_status(engine) == {"pending": 7}
    engine.dispose()


def test_unheard_publish_is_there_once_and_the_next_is_heard(
    postgres_url: str, postgres_server: postgres.Server
) -> None:
    """The answer to the INSERT is lost on its way: it can't be known whether it is there, and it is."""
    engine = databases.engine_for(postgres_url)
    with Proxy.before(postgres_server) as proxy:
        far = proxy.url(postgres_url)
        publish(far, "a")
        proxy.cut_after(b"INSERT INTO")
        with pytest.raises(DatabaseUnavailableError):
            publish(far, "a")
        assert by_status(engine) == {"pending": 2}

        publish(far, "a")
        assert by_status(engine) == {"pending": 3}
        databases.engine_for(far).dispose()
    engine.dispose()


def test_publish_that_is_cut_off_before_it_is_sent_is_not_there(
    postgres_url: str, postgres_server: postgres.Server
) -> None:
    """Nor is it sent again by itself: whether it arrived is not for us to guess."""
    engine = databases.engine_for(postgres_url)
    with Proxy.before(postgres_server) as proxy:
        far = proxy.url(postgres_url)
        publish(far, "a")
        proxy.cut()
        with pytest.raises(DatabaseUnavailableError):
            publish(far, "a")
        proxy.heal()
        assert by_status(engine) == {"pending": 1}

        publish(far, "a")
        assert by_status(engine) == {"pending": 2}
        databases.engine_for(far).dispose()
    engine.dispose()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process that hears Ctrl-C, which workers of a parallel test run don't."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(watcher: psycopg.Connection) -> None:
    """Ctrl-C, as soon as the main thread waits."""
    wait_until_blocked(watcher, 1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_publish_leaves_no_half_used_connection(
    postgres_url: str, postgres_server: postgres.Server
) -> None:
    """Ctrl-C while it waits for a lock: nothing is published, and the next publish is not answered for this one."""
    engine = databases.engine_for(postgres_url)
    publish(postgres_url, "a")

    database = make_url(postgres_url).database or ""
    with (
        postgres_server.connect(database) as watcher,
        postgres_server.connect(database) as other,
        other.transaction(),
    ):
        other.execute("LOCK TABLE action_logs IN ACCESS EXCLUSIVE MODE")
        interrupter = threading.Thread(target=interrupt, args=(watcher,))
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            publish(postgres_url, "interrupted")
        interrupter.join()

    ids = [publish(postgres_url, "a").id for _ in range(3)]
    assert len(set(ids)) == 3
    assert by_status(engine) == {"pending": 4}
    engine.dispose()
