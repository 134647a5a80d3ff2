"""A claim flow that stays is woken: what is published is done though the next look would be a minute away."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from prefect_claim_dispatch import Action, engines, listening, migrations, operations, processor, publish
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.statements import NAME
from tests.kit.looping import staying
from tests.kit.tables import TABLE, by_status, row
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

THREAD = "claim-dispatch-listener"
NOT_POOLED = pytest.mark.not_through_pgbouncer(reason="nobody can listen there")
LISTENERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"


@pytest.fixture
def woken(engine: Engine) -> Engine:
    """A database on which publishing wakes."""
    if engine.dialect.name == "postgresql":
        migrations.install_wake_up(url_of(engine))
    return engine


class Work:
    """Processors: ``a`` is done at once, ``slow`` when the test lets it; *done* has the ids."""

    def __init__(self) -> None:
        self.registry, self.done, self.begun, self.let_go = (
            Registry(),
            list[int](),
            threading.Event(),
            threading.Event(),
        )

        @processor("a", registry=self.registry)
        def at_once(action: Action) -> None:
            self.done.append(action.id)

        @processor("slow", registry=self.registry)
        def slow() -> None:
            self.begun.set()
            assert self.let_go.wait(60)

    def expect(self, id_: int | None) -> None:
        """Wait until *id_* is done."""
        wait_until(lambda: id_ in self.done, description=f"action {id_} is done", timeout=20)


@pytest.fixture
def work() -> Iterator[Work]:
    """Processors that never keep a test from ending."""
    made = Work()
    yield made
    made.let_go.set()


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def looks(engine: Engine) -> list[str]:
    """The surveys from now on; SQLAlchemy forgets them with the engine."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, _sql: str, _parameters: Any, context: Any, _many: bool) -> None:
        if context.execution_options.get(NAME) == "survey":
            seen.append("survey")

    event.listen(engine, "after_cursor_execute", note)
    return seen


def listeners(engine: Engine) -> list[int]:
    """The server processes that somebody listens by."""
    with engine.connect() as connection:
        return list(connection.execute(text(LISTENERS)).scalars())


def backend_of(engine: Engine) -> int:
    """The server process behind the connection that the pool gives."""
    with engine.connect() as connection:
        return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()


def has_ear() -> bool:
    return any(thread.name == THREAD for thread in threading.enumerate())


def wait_until_asleep(engine: Engine, seen: list[str]) -> None:
    """Until the loop has looked in vain, and its listener is at work."""
    if engine.dialect.name == "postgresql":
        wait_until(lambda: listeners(engine), description="somebody listens", timeout=20)
    wait_until(lambda: seen and has_ear(), description="it has looked", timeout=20)


@NOT_POOLED
@pytest.mark.usefixtures("seldom")
def test_what_is_published_is_done_at_once(woken: Engine, work: Work) -> None:
    """By the library, and by plain SQL, one after another."""
    seen = looks(woken)
    with staying(woken, work.registry):
        wait_until_asleep(woken, seen)
        for _ in range(3):
            work.expect(publish(woken, "a").id)
        with woken.begin() as connection:
            connection.execute(text("INSERT INTO action_logs (type) VALUES ('a')"))
        wait_until(lambda: len(work.done) == 4, description="the row of plain SQL is done", timeout=20)


@NOT_POOLED
@pytest.mark.usefixtures("seldom")
def test_it_wakes_also_while_runs_are_outstanding(woken: Engine, work: Work) -> None:
    """One slow action must not make the next wait, with slots free."""
    with staying(woken, work.registry):
        publish(woken, "slow")
        assert work.begun.wait(20)
        for _ in range(3):
            work.expect(publish(woken, "a").id)
        work.let_go.set()


@NOT_POOLED
@pytest.mark.usefixtures("seldom")
def test_what_operators_make_due_is_done_at_once(woken: Engine, work: Work) -> None:
    """A person who presses retry looks at the row afterwards."""
    id_ = publish(woken, "a", delay=timedelta(hours=1)).id
    assert id_ is not None
    seen = looks(woken)
    with staying(woken, work.registry):
        wait_until_asleep(woken, seen)
        operations.reschedule(woken, [id_], delay=timedelta(0))
        work.expect(id_)


@NOT_POOLED
@pytest.mark.usefixtures("seldom")
@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "with a run outstanding"])
def test_what_becomes_due_while_it_sleeps_is_done_at_its_time(woken: Engine, work: Work, is_busy: bool) -> None:
    """A reminder in half a second, published when the loop has just gone to sleep for longer."""
    seen = looks(woken)
    with staying(woken, work.registry):
        wait_until_asleep(woken, seen)
        if is_busy:
            publish(woken, "slow")
            assert work.begun.wait(20)
        id_ = publish(woken, "a", delay=timedelta(seconds=0.5)).id
        work.expect(id_)
        work.let_go.set()

    assert id_ is not None
    found = row(woken, id_)
    assert found.claimed_at is None or found.claimed_at >= found.end_at


@NOT_POOLED
@pytest.mark.usefixtures("seldom")
def test_own_commits_end_in_sleep(woken: Engine, work: Work) -> None:
    """On SQLite a flow sees its own commits too; a loop that wakes itself would burn a core for a whole stay."""
    seen = looks(woken)
    with staying(woken, work.registry):
        wait_until_asleep(woken, seen)
        work.expect(publish(woken, "a").id)
        wait_until(lambda: by_status(woken) == {"processed": 1}, description="it is settled")

        stood: list[int] = []
        # Ten looks of the test at the same number, 20 ms apart: so often a loop that wakes itself has looked again.
        wait_until(
            lambda: stood.append(len(seen)) or (len(stood) > 10 and len(set(stood[-10:])) == 1),
            description="it has stopped looking",
        )
        assert len(seen) <= 15


@NOT_POOLED
def test_flood_of_commits_is_no_flood_of_wake_ups(woken: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bulk load of another team's rows must cost a claim flow a few looks a second."""
    monkeypatch.setattr(listening, "SPACING", 0.5)
    wakes: list[float] = []
    with listening.listening(woken, TABLE, lambda: wakes.append(listening.elapsed_clock())):
        wait_until(lambda: wakes, description="it is at work")
        for _ in range(60):
            publish(woken, "nobody.registered")
        before = len(wakes)
        publish(woken, "nobody.registered")
        wait_until(lambda: len(wakes) > before, description="the last one is not forgotten")

    pauses = [later - sooner for sooner, later in itertools.pairwise(wakes[1:])]
    assert all(pause >= 0.45 for pause in pauses), pauses


@NOT_POOLED
def test_its_connection_and_thread_are_gone_when_the_loop_is(woken: Engine, work: Work) -> None:
    """A run a minute that left one behind would use up the server's connections in an hour and a half."""
    seen = looks(woken)
    with staying(woken, work.registry):
        wait_until_asleep(woken, seen)
        assert has_ear()

    assert not has_ear()
    if woken.dialect.name == "postgresql":
        wait_until(lambda: not listeners(woken), description="the server has noticed")


def test_flow_that_does_not_stay_listens_to_nobody(engine: Engine, work: Work) -> None:
    """It would be a connection and two statements for nothing."""
    ears: list[bool] = []

    @processor("look", registry=work.registry)
    def look() -> None:
        ears.append(has_ear())

    publish(engine, "look")
    with staying(engine, work.registry, stay=timedelta(0)) as running:
        running.ends()

    assert ears == [False]


@NOT_POOLED
def test_without_trigger_it_looks_as_ever_and_notices_one(
    postgres_url: str, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked of an administrator; and when he installs it, nobody has to restart anything."""
    monkeypatch.setattr(listening, "LOOK_AGAIN", 0.2)
    engine = engines.create(postgres_url)
    with staying(engine, work.registry):
        work.expect(publish(engine, "a").id)
        assert not listeners(engine)

        migrations.install_wake_up(postgres_url)
        wait_until(lambda: listeners(engine), description="it listens")
        work.expect(publish(engine, "a").id)
    engine.dispose()


@NOT_POOLED
@pytest.mark.parametrize("has_trigger", [True, False], ids=["trigger", "no trigger"])
def test_connection_to_settle_by_is_left_in_the_pool(
    postgres_url: str, caplog: pytest.LogCaptureFixture, has_trigger: bool
) -> None:
    """Where connections are scarce no other may be had: listening takes one of its own, or goes without."""
    if has_trigger:
        migrations.install_wake_up(postgres_url)
    engine, woken = engines.create(postgres_url), threading.Event()
    before = backend_of(engine)

    with caplog.at_level(logging.DEBUG), listening.listening(engine, TABLE, woken.set):
        wait_until(lambda: woken.is_set() or "has no wake-up" in caplog.text, description="it has asked", timeout=20)
        meanwhile = backend_of(engine)

    assert woken.is_set() == has_trigger
    assert {before} == {meanwhile} == {backend_of(engine)}
    engine.dispose()


@NOT_POOLED
@pytest.mark.usefixtures("seldom")
def test_living_connection_is_kept_and_looked_after(
    postgres_url: str, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every now and then it is made sure that notifications still come; a notification meanwhile is not lost."""
    migrations.install_wake_up(postgres_url)
    monkeypatch.setattr(listening, "LOOK_AGAIN", 0.05)
    engine = engines.create(postgres_url)
    proofs: list[str] = []
    prove = listening.prove
    monkeypatch.setattr(listening, "prove", lambda *of: (proofs.append(of[1]), prove(*of)))
    with staying(engine, work.registry):
        wait_until(lambda: len(proofs) >= 3, description="it was looked after", timeout=20)
        (pid,) = listeners(engine)
        for _ in range(3):
            work.expect(publish(engine, "a").id)
        assert listeners(engine) == [pid]
    engine.dispose()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the listener has warned of."""
    caplog.set_level(logging.INFO, "prefect_claim_dispatch")
    return lambda: [record.message for record in caplog.records if "publishing does not wake" in record.message]


def test_pooler_is_told_once_and_looks_go_on(pgbouncer_url: str, work: Work, told: Callable[[], list[str]]) -> None:
    """In transaction mode what was listened to belongs to the next client. It says what to set, and works."""
    migrations.install_wake_up(pgbouncer_url)
    engine = engines.create(pgbouncer_url)
    with staying(engine, work.registry):
        wait_until(told, description="it is told")
        work.expect(publish(engine, "a").id)
        work.expect(publish(engine, "a").id)

    assert len(told()) == 1
    assert "CLAIM_DISPATCH_LISTEN_URL" in told()[0]
    engine.dispose()


@pytest.mark.usefixtures("seldom")
def test_listening_goes_around_a_pooler(
    pgbouncer_url: str, postgres_server: Any, work: Work, told: Callable[[], list[str]]
) -> None:
    """All work goes through the pooler but for one connection, which waits most of the time."""
    migrations.install_wake_up(pgbouncer_url)
    engine = engines.create(pgbouncer_url)
    direct = postgres_server.url(engine.url.database)
    seen = looks(engine)
    with staying(engine, work.registry, listen_url=direct):
        wait_until_asleep(engine, seen)
        work.expect(publish(engine, "a").id)

    assert told() == []
    engine.dispose()


def test_pooler_that_can_not_be_seen_is_found_out(
    pgbouncer_url: str, work: Work, told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the URL to listen by it is taken at its word, until nothing comes of a notification to oneself."""
    monkeypatch.setattr(listening, "PROBE_SECONDS", 0.5)
    migrations.install_wake_up(pgbouncer_url)
    engine = engines.create(pgbouncer_url)
    with staying(engine, work.registry, listen_url=pgbouncer_url):
        wait_until(told, description="it is told", timeout=20)

    assert "do not arrive" in told()[0]
    engine.dispose()


@NOT_POOLED
def test_another_database_to_listen_to_is_found_out(
    postgres_url: str,
    empty_postgres_url: str,
    work: Work,
    told: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong URL would else be silence for ever."""
    monkeypatch.setattr(listening, "PROBE_SECONDS", 0.5)
    migrations.upgrade(empty_postgres_url)
    for url in (postgres_url, empty_postgres_url):
        migrations.install_wake_up(url)
    engine = engines.create(postgres_url)
    with staying(engine, work.registry, listen_url=empty_postgres_url):
        wait_until(told, description="it is told")

    assert "another database" in told()[0]
    engine.dispose()


@NOT_POOLED
def test_listening_can_be_turned_off(woken: Engine, work: Work) -> None:
    """Where connections are scarce, a second is soon enough."""
    with staying(woken, work.registry, listen_url="none"):
        work.expect(publish(woken, "a").id)
        assert not has_ear()


def test_driver_that_can_not_listen_looks_every_second(
    postgres_url: str, work: Work, told: Callable[[], list[str]]
) -> None:
    """psycopg2 gets everything but this."""
    migrations.install_wake_up(postgres_url)
    engine = engines.create(postgres_url.replace("+psycopg", "+psycopg2"))
    with staying(engine, work.registry):
        work.expect(publish(engine, "a").id)
        assert not has_ear()

    assert len(told()) == 1
    engine.dispose()


def test_database_in_memory_has_no_file_to_watch(work: Work) -> None:
    """Another connection would watch another database."""
    engine = engines.create("sqlite://")
    TABLE.metadata.create_all(engine)
    with listening.listening(engine, TABLE, lambda: None):
        assert not has_ear()
    engine.dispose()
