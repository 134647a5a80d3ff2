"""What can happen to the connection that listens: killed, restarted away, silent. The flow goes on, and hears again.

And the hand-over from one staying flow to the next.
"""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta

import pytest
from sqlalchemy import Engine, select

from prefect_claim_dispatch import Action, engines, listening, migrations, processor, publish
from prefect_claim_dispatch.processors import Registry
from tests.kit import postgres
from tests.kit.looping import ThreadDispatcher, run_loop, staying
from tests.kit.prefect_server import PrefectServer
from tests.kit.processes import Processes
from tests.kit.proxy import Proxy
from tests.kit.tables import TABLE, by_status
from tests.kit.waiting import wait_until

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.not_through_pgbouncer(reason="nobody can listen there"),
]

LISTENERS = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND query LIKE 'LISTEN%%'"


@pytest.fixture
def done() -> list[int]:
    """The ids of what the processor of type ``a`` was called for."""
    return []


@pytest.fixture
def registry(done: list[int]) -> Registry:
    """With a processor of type ``a``, which is done at once."""
    made = Registry()

    @processor("a", registry=made)
    def at_once(action: Action) -> None:
        done.append(action.id)

    return made


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """A PostgreSQL on which publishing wakes."""
    migrations.install_wake_up(postgres_url)
    engine = engines.create(postgres_url)
    yield engine
    engine.dispose()


def expect_woken(engine: Engine, done: list[int]) -> None:
    """What is published now is done."""
    id_ = publish(engine, "a").id
    wait_until(lambda: id_ in done, description=f"action {id_} is done", timeout=30)


def listeners(server: postgres.Server, engine: Engine) -> list[int]:
    """The server processes that somebody listens by."""
    with server.connect() as connection:
        return [pid for (pid,) in connection.execute(LISTENERS, (engine.url.database,))]


def heard_by(server: postgres.Server, engine: Engine, *not_by: int) -> list[int]:
    """Who listens, once it is nobody of *not_by*."""
    return wait_until(
        lambda: [pid for pid in listeners(server, engine) if pid not in not_by],
        description="somebody listens",
        timeout=30,
    )


@pytest.mark.usefixtures("seldom")
def test_killed_connection_is_made_again(
    engine: Engine, postgres_server: postgres.Server, registry: Registry, done: list[int]
) -> None:
    """As an administrator does, or a failover. What is published meanwhile is seen when it listens again."""
    with staying(engine, registry):
        (pid,) = heard_by(postgres_server, engine)
        with postgres_server.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        expect_woken(engine, done)

        heard_by(postgres_server, engine, pid)
        expect_woken(engine, done)


@pytest.mark.usefixtures("seldom")
def test_restarted_server_is_listened_to_again(
    private_postgres: Callable[..., postgres.Server], registry: Registry, done: list[int]
) -> None:
    """The flow sleeps through it, with nothing to look for; its listener is back before it has to look."""
    server = private_postgres()
    migrations.upgrade(server.url())
    migrations.install_wake_up(server.url())
    engine = engines.create(server.url())
    with staying(engine, registry):
        (pid,) = heard_by(server, engine)
        server.restart()
        heard_by(server, engine, pid)
        expect_woken(engine, done)
    engine.dispose()


@pytest.mark.usefixtures("seldom")
def test_silent_connection_is_found_out(
    engine: Engine,
    postgres_server: postgres.Server,
    registry: Registry,
    done: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A network that swallows everything without an error: only a notification to oneself tells."""
    monkeypatch.setattr(listening, "LOOK_AGAIN", 0.2)
    monkeypatch.setattr(listening, "PROBE_SECONDS", 1.0)
    url = engine.url.render_as_string(hide_password=False)
    with Proxy.before(postgres_server) as proxy, staying(engine, registry, listen_url=proxy.url(url)):
        heard_by(postgres_server, engine)
        proxy.blackhole()
        publish(engine, "a")
        proxy.heal()
        wait_until(lambda: done, description="it is done all the same", timeout=30)
        expect_woken(engine, done)


@pytest.mark.usefixtures("seldom")
def test_slow_answers_after_a_failover_lose_no_listener(
    engine: Engine,
    postgres_server: postgres.Server,
    registry: Registry,
    done: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A busy machine takes longer than a proof may: what was heard once is listened for until it is heard again."""
    monkeypatch.setattr(listening, "PROBE_SECONDS", 0.05)
    url = engine.url.render_as_string(hide_password=False)
    with Proxy.before(postgres_server) as proxy, staying(engine, registry, listen_url=proxy.url(url)):
        (pid,) = heard_by(postgres_server, engine)
        expect_woken(engine, done)
        proxy.delay(0.2)
        with postgres_server.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        (second,) = heard_by(postgres_server, engine, pid)
        heard_by(postgres_server, engine, pid, second)  # the second was given up, and a third is made
        proxy.heal()
        monkeypatch.setattr(listening, "PROBE_SECONDS", 5.0)
        expect_woken(engine, done)


def test_end_does_not_wait_for_a_silent_connection(
    engine: Engine, postgres_server: postgres.Server, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is over must not hang on a network; its thread is cut off, and keeps no process alive."""
    monkeypatch.setattr(listening, "END_SECONDS", 0.3)
    url = engine.url.render_as_string(hide_password=False)
    with Proxy.before(postgres_server) as proxy:
        with staying(engine, registry, listen_url=proxy.url(url)):
            heard_by(postgres_server, engine)
            proxy.blackhole()

        wait_until(
            lambda: not any(thread.name == "claim-dispatch-listener" for thread in threading.enumerate()),
            description="its thread is gone",
        )


def test_flow_that_fails_leaves_no_connection(
    engine: Engine, postgres_server: postgres.Server, registry: Registry
) -> None:
    """Whatever it is that ends it."""
    with staying(engine, registry, stay=timedelta(seconds=1), lease=timedelta(seconds=1)) as running:
        heard_by(postgres_server, engine)
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE action_logs RENAME TO elsewhere")
        assert running.thread is not None
        running.thread.join(30)
        assert not running.thread.is_alive()
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO action_logs")

    assert running.error is not None
    wait_until(lambda: not listeners(postgres_server, engine), description="the server has noticed")


@pytest.mark.xdist_group("shutdown")
def test_sigterm_ends_a_flow_that_sleeps(
    engine: Engine, postgres_server: postgres.Server, prefect_server: PrefectServer, children: Processes
) -> None:
    """A worker that is shut down kills what does not end by itself."""
    environment = prefect_server.env | {"CLAIM_DISPATCH_DATABASE_URL": engine.url.render_as_string(hide_password=False)}
    arguments = ("run", "--processors", "tests.acceptance.processors", "--stay", "90s")
    flow = children.python("-m", "prefect_claim_dispatch.cli", *arguments, env=environment)
    wait_until(
        lambda: listeners(postgres_server, engine), description="it listens", timeout=90, explain=lambda: flow.told
    )

    flow.send(signal.SIGTERM)

    assert flow.wait(30) in {143, -signal.SIGTERM}, flow.told
    wait_until(lambda: not listeners(postgres_server, engine), description="the server has noticed")


@pytest.mark.usefixtures("seldom")
def test_what_is_published_at_the_hand_over_waits_for_no_schedule(
    engine: Engine, registry: Registry, dispatcher: ThreadDispatcher
) -> None:
    """Two runs overlap for a moment; all the time somebody is there to be woken, and the schedule fires no third time.

    Published every few milliseconds from before the overlap until after it, so that some fall into each moment. Now
    and then nothing is due, or the first would work on, as it should, for as long as that takes.
    """
    given = {"stay": timedelta(seconds=2), "claimed_by": "run-0"}
    first = threading.Thread(target=run_loop, args=(engine, registry, dispatcher), kwargs=given, daemon=True)
    first.start()
    publish(engine, "a")
    wait_until(lambda: by_status(engine) == {"processed": 1}, description="the first run claims", timeout=30)
    published, overlap_at = 1, time.monotonic() + 1

    with ExitStack() as second:
        while first.is_alive():
            if time.monotonic() >= overlap_at:
                second.enter_context(staying(engine, registry, claimed_by="run-1"))
                overlap_at = math.inf
            publish(engine, "a")
            published += 1
            time.sleep(random.uniform(0, 0.05))
        for _ in range(20):
            publish(engine, "a")
            published += 1
        wait_until(lambda: by_status(engine) == {"processed": published}, description="all is done", timeout=30)

    with engine.connect() as connection:
        claimants = set(connection.execute(select(TABLE.c.claimed_by).distinct()).scalars())
    assert claimants >= {"run-0", "run-1"}
