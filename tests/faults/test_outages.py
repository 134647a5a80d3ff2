"""Outages: a database or a Prefect API that goes away before, during or after; full, slow, locked, read-only.

What holds: work in flight is settled when the database is back, or given up loudly when its lease is over; nothing
spins; the log has a line for each change and not for each try; the same run goes on; no attempt is burnt.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.engine import URL

from prefect_claim_dispatch import deadlines, engines, operations, publish
from prefect_claim_dispatch.dispatching import reaching
from prefect_claim_dispatch.errors import DatabaseContendedError, DatabaseUnavailableError
from tests.conftest import MIGRATE
from tests.kit import keeping, postgres
from tests.kit.looping import Scene
from tests.kit.prefect_server import PrefectServer
from tests.kit.processes import Processes, free_port
from tests.kit.proxy import Proxy
from tests.kit.tables import by_status, change, row, statements_of
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("outages")]

CLAIMS, WRITES = "nothing can be claimed", "the action table can't be written"


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    """A PostgreSQL with few connections, that these tests may stop."""
    folder = keeping.run_folder() / f"outages-{os.getpid()}"
    yield postgres.start(next(iter(postgres.available())), folder, durable=True, max_connections=20)
    postgres.discard(folder)


@pytest.fixture
def url(server: postgres.Server) -> Iterator[str]:
    """A migrated database there, past every proxy."""
    with postgres.fresh_database(server, prepare=MIGRATE) as fresh:
        yield fresh


@pytest.fixture
def proxy(server: postgres.Server) -> Iterator[Proxy]:
    """The way to it that the loop goes."""
    with Proxy.before(server) as proxy:
        yield proxy


@pytest.fixture
def scene(url: str, tmp_path: Path) -> Iterator[Scene]:
    """Rows, their work, and an engine that no outage touches."""
    engine = engines.create(url)
    yield Scene(engine, tmp_path)
    engine.dispose()


@pytest.fixture
def through(url: str, proxy: Proxy) -> Iterator[Engine]:
    """The loop's engine, through the proxy."""
    engine = engines.create(proxy.url(url))
    yield engine
    engine.dispose()


def told(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    """The lines of the log about *what*."""
    return [record.getMessage() for record in list(caplog.records) if record.getMessage().startswith(what)]


def expect_one_outage_told(caplog: pytest.LogCaptureFixture, what: str) -> None:
    """One line when it began, one when it was over; and the tries in between became ever more seldom."""
    began, ended = told(caplog, what)
    seconds, tries = re.search(r"over after ([\d.]+) s and (\d+) tries", ended).groups()  # type: ignore[union-attr]
    assert "trying again" in began
    assert int(tries) <= 4 + float(seconds), "pauses of 0.2, 0.4, 0.8 seconds and more leave room for so many"


# The database


def test_database_away_from_the_start_fails_the_run_at_once(scene: Scene, through: Engine, proxy: Proxy) -> None:
    """The next tick finds out whether it is back; this run must not stand in its way."""
    scene.publish(2)
    proxy.cut()

    with scene.loop(through) as running, pytest.raises(DatabaseUnavailableError, match="can't be reached"):
        running.ends(15)

    assert by_status(scene.engine) == {"pending": 2}


def test_database_away_in_the_middle_costs_nothing(
    scene: Scene, through: Engine, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Work that ends meanwhile is settled when it is back, and the same run claims what is left. No attempt is lost."""
    ids = scene.publish(20)
    with caplog.at_level(logging.WARNING), scene.loop(through) as running:
        scene.wait_until_begun(4)

        proxy.cut()
        scene.let_work.set()
        wait_until(lambda: told(caplog, CLAIMS), description="the loop noticed", timeout=10)
        wait_until(lambda: told(caplog, WRITES), description="the keeper noticed", timeout=10)
        proxy.heal()
        tally = running.ends()

    assert (tally.report().processed, tally.report().lost_leases) == (20, 0)
    assert {(row(scene.engine, id_).claim_count, row(scene.engine, id_).fail_count) for id_ in ids} == {(1, 0)}
    scene.expect_all_processed(20)
    expect_one_outage_told(caplog, CLAIMS)
    expect_one_outage_told(caplog, WRITES)


def test_half_open_connection_is_given_up_well_inside_the_lease(
    scene: Scene, through: Engine, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """What takes all that is sent and never answers, like a pooler without its server, must not hold a keeper for ever.

    The kernel in between acknowledges, so no keepalive notices.
    """
    scene.publish(6)
    with caplog.at_level(logging.WARNING), scene.loop(through, lease=12) as running:
        scene.wait_until_begun(4)
        began_at = time.monotonic()
        proxy.blackhole()
        scene.let_work.set()
        wait_until(lambda: told(caplog, WRITES), description="the keeper gave it up", timeout=12)
        wait_until(lambda: told(caplog, CLAIMS), description="the loop gave it up", timeout=12)
        given_up = time.monotonic() - began_at
        proxy.heal()
        tally = running.ends()

    assert given_up < 12 * 2 / 3
    assert (tally.report().processed, tally.report().lost_leases) == (6, 0)
    scene.expect_all_processed(6)


def test_statement_that_waits_for_a_lock_is_cancelled_on_the_server(scene: Scene, url: str) -> None:
    """Only cut, it would go on waiting there, with a connection each time the loop asks again."""
    scene.publish(1)
    engine = engines.create(url)
    with psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string()) as locking:
        locking.execute("LOCK TABLE action_logs")
        began_at = time.monotonic()
        with deadlines.answered_in_time(timedelta(seconds=1)), pytest.raises(DatabaseContendedError, match="canceling"):
            operations.counts(engine)
        waited = time.monotonic() - began_at
        locking.rollback()

    assert deadlines.LEAST_SECONDS <= waited < 10
    assert operations.counts(engine).statuses["pending"] == 1
    engine.dispose()


def test_database_away_at_the_end_is_waited_for(scene: Scene, through: Engine, proxy: Proxy) -> None:
    """The last verdicts of a run are its work: it does not end without them while they can still be written."""
    scene.publish(3)
    with scene.loop(through) as running:
        scene.wait_until_begun(3)

        proxy.cut()
        scene.let_work.set()
        wait_until(lambda: len(scene.ledger.read().entries) == 6, description="all work has ended", timeout=10)
        assert by_status(scene.engine) == {"claimed": 3}
        proxy.heal()
        running.ends()

    scene.expect_all_processed(3)


def test_verdict_is_given_up_loudly_when_its_lease_is_over(
    scene: Scene, through: Engine, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the row is somebody else's: the log names it, and the repeat is explained by a crash on record."""
    (id_,) = scene.publish()
    with caplog.at_level(logging.ERROR), scene.loop(through, lease=2) as running:
        scene.wait_until_begun(1)
        proxy.cut()
        scene.let_work.set()
        lost = f"a #{id_} (attempt 1): lost the lease of claim 1"
        wait_until(lambda: told(caplog, lost), description="the row is named in an error", timeout=15)
        proxy.heal()
        assert running.thread is not None
        running.thread.join(20)
    change(scene.engine, id_, end_at=row(scene.engine, id_).created_at)
    with scene.loop() as second:
        wait_until(lambda: by_status(scene.engine) == {"processed": 1}, description="it is done again", timeout=15)
        second.ends()

    found = row(scene.engine, id_)
    assert running.tally.report().lost_leases == 1
    assert [error["kind"] for error in found.errors] == ["crashed"]
    scene.expect_all_processed(1)


def test_restarts_and_broken_connections_lose_nothing(
    scene: Scene, server: postgres.Server, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A crash of the server, a restart, and an administrator who ends all connections, each in the middle of work."""
    scene.publish(40)
    with caplog.at_level(logging.WARNING), scene.loop(lease=30) as running:
        scene.wait_until_begun(4)
        server.restart("immediate")
        scene.let_work.set()
        server.terminate_backends(make_url(url).database or "")
        server.restart("fast")
        running.ends()
    scene.engine.dispose()  # not all connections of its pool have met the restarts yet

    assert by_status(scene.engine) == {"processed": 40} or set(by_status(scene.engine)) <= {"processed", "claimed"}
    assert running.tally.report().lost_leases == 0
    assert len(told(caplog, CLAIMS)) <= 6
    assert len(told(caplog, WRITES)) <= 6


def test_verdicts_wait_until_a_connection_is_free(scene: Scene, url: str, server: postgres.Server) -> None:
    """max_connections used up by others, and ours broken on top: settled as soon as there is room again."""
    scene.publish(2)
    with ExitStack() as hogs, scene.loop() as running:
        scene.wait_until_begun(2)
        server.terminate_backends(make_url(url).database or "")
        with pytest.raises(psycopg.OperationalError):
            while True:
                hogs.enter_context(server.connect())
        scene.let_work.set()
        wait_until(lambda: len(scene.ledger.read().entries) == 4, description="all work has ended", timeout=10)
        hogs.close()
        running.ends()

    assert running.tally.report().lost_leases == 0
    scene.expect_all_processed(2)


@pytest.mark.parametrize("limit", ["lock_timeout", "statement_timeout"])
def test_locked_table_is_waited_for_without_haste(
    scene: Scene, url: str, server: postgres.Server, limit: str, caplog: pytest.LogCaptureFixture
) -> None:
    """LOCK TABLE by a careless migration, and a server that ends whatever waits for 200 ms."""
    scene.publish(8)
    impatient = engines.create(f"{url}&options=-c%20{limit}%3D200")
    with caplog.at_level(logging.WARNING), scene.loop(impatient) as running, server.connect(_name(url)) as other:
        scene.wait_until_begun(4)
        with other.transaction(), statements_of(impatient) as sent:
            other.execute("LOCK TABLE action_logs IN ACCESS EXCLUSIVE MODE")
            scene.let_work.set()
            wait_until(lambda: told(caplog, CLAIMS), description="the loop noticed", timeout=10)
            wait_until(lambda: told(caplog, WRITES), description="the keeper noticed", timeout=10)
            tries = len(sent)
        running.ends()
    impatient.dispose()

    assert tries <= 20
    scene.expect_all_processed(8)


def _name(url: str) -> str:
    return make_url(url).database or ""


def test_no_transaction_is_open_while_work_runs(scene: Scene, url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A server that ends idle transactions after a second never finds one of ours."""
    scene.publish(4)
    strict = engines.create(f"{url}&options=-c%20idle_in_transaction_session_timeout%3D1000")
    with caplog.at_level(logging.WARNING), scene.loop(strict) as running:
        scene.wait_until_begun(4)
        with scene.engine.connect() as connection:
            connection.exec_driver_sql("SELECT pg_sleep(1.5)")
            found = connection.exec_driver_sql("SELECT state FROM pg_stat_activity WHERE datname = current_database()")
            assert not [state for (state,) in found if state.startswith("idle in transaction")]
        scene.let_work.set()
        running.ends()
    strict.dispose()

    assert not told(caplog, CLAIMS) + told(caplog, WRITES)
    scene.expect_all_processed(4)


def test_full_disk_refuses_clearly_and_loses_nothing(
    scene: Scene, url: str, server: postgres.Server, tmp_path: Path
) -> None:
    """The table on a small disk that somebody fills: what was acknowledged is there, and work resumes by itself."""
    disk = keeping.run_folder() / f"disk-{os.urandom(2).hex()}"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this user may not mount a disk: {mounted.stderr.decode().strip()}")
    owner = Path(server.data).stat()
    os.chown(disk, owner.st_uid, owner.st_gid)
    space = f"small_{os.urandom(2).hex()}"
    try:
        with server.connect(_name(url)) as other:
            other.execute(f"CREATE TABLESPACE {space} LOCATION '{disk}'")
            other.execute(f"ALTER TABLE action_logs SET TABLESPACE {space}")
            scene.publish(10)
            other.execute(f"CREATE TABLE filler (t text) TABLESPACE {space}")
            with pytest.raises(psycopg.errors.DiskFull):
                while True:
                    other.execute("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 8)")
            with pytest.raises(DatabaseUnavailableError, match="run out of disk"):
                for _ in range(50):
                    scene.publish(payload={"text": os.urandom(3_000).hex()})
            acknowledged = sum(by_status(scene.engine).values())
            scene.let_work.set()
            with scene.loop(stay=0) as running:
                wait_until(lambda: scene.begun or running.error, description="the loop went on, or said no", timeout=10)
                other.execute("DROP TABLE filler")
                running.thread.join(30)  # type: ignore[union-attr]
            with scene.loop() as running:
                running.ends()
        scene.engine.dispose()
        assert by_status(scene.engine) == {"processed": acknowledged}
        with server.connect(_name(url)) as other:
            other.execute("ALTER TABLE action_logs SET TABLESPACE pg_default")
            other.execute(f"DROP TABLESPACE {space}")
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_read_only_database_is_waited_for_while_work_is_in_flight(
    scene: Scene, url: str, server: postgres.Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A failover that has left us with the standby for a moment."""
    ids = scene.publish(8)
    with caplog.at_level(logging.WARNING), scene.loop() as running, server.connect() as admin:
        scene.wait_until_begun(4)
        admin.execute(f"ALTER DATABASE {_name(url)} SET default_transaction_read_only = on")
        server.terminate_backends(_name(url))
        scene.let_work.set()
        wait_until(lambda: "read-only" in str(told(caplog, WRITES)), description="the keeper noticed", timeout=10)
        admin.execute(f"ALTER DATABASE {_name(url)} RESET default_transaction_read_only")
        server.terminate_backends(_name(url))
        running.thread.join(40)  # type: ignore[union-attr]
        # Where nothing was in flight any more, it has said so and ended.
        assert running.error is None or "connect where the table may be written" in str(running.error)
    with scene.loop() as running:
        running.ends()

    assert {row(scene.engine, id_).fail_count for id_ in ids} == {0}
    scene.expect_all_processed(8)


def test_locked_sqlite_file_is_waited_for(sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another process holds the file for longer than we wait for a lock."""
    engine = engines.create(sqlite_url)
    event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA busy_timeout = 20"))
    scene = Scene(engine, tmp_path)
    scene.publish(6)
    other = create_engine(URL.create("sqlite", database=make_url(sqlite_url).database))
    with caplog.at_level(logging.WARNING), scene.loop() as running:
        scene.wait_until_begun(4)
        with other.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            scene.let_work.set()
            wait_until(lambda: told(caplog, WRITES), description="the keeper noticed", timeout=10)
            wait_until(lambda: told(caplog, CLAIMS), description="the loop noticed", timeout=10)
            connection.rollback()
        running.ends()
    other.dispose()

    scene.expect_all_processed(6)
    expect_one_outage_told(caplog, WRITES)
    engine.dispose()


# The Prefect API


@pytest.fixture
def api(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A way to the shared Prefect server that can be cut, and an API that is asked before every claim."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    port = make_url(prefect_server.api_url).port or 0
    monkeypatch.setattr(reaching, "EVERY", 0.0)
    with (
        Proxy(("127.0.0.1", port)) as proxy,
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{proxy.port}/api"}),
    ):
        yield proxy


def test_api_is_the_flows_whichever_thread_asks() -> None:
    """A thread that tells of a run's end has none of the flow's settings: it would start a server, and ask that."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        watch = reaching.ApiWatch()

    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(watch.is_away) for _ in range(2)]

    assert [answer.result() for answer in answers] == [True, True]


@pytest.mark.parametrize("how", ["cut", "blackhole"])
def test_nothing_is_claimed_while_the_api_is_away(
    scene: Scene, api: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Work that runs is settled; what is due stays pending, unclaimed, until the API answers again."""
    monkeypatch.setattr(reaching, "ANSWERS_WITHIN", 1.0)
    ids = scene.publish(4)
    with caplog.at_level(logging.WARNING), scene.loop(api=reaching.ApiWatch()) as running:
        scene.wait_until_begun(4)
        late = scene.publish(3)
        getattr(api, how)()
        scene.let_work.set()
        wait_until(lambda: told(caplog, CLAIMS), description="the loop noticed", timeout=20)
        wait_until(lambda: by_status(scene.engine) == {"processed": 4, "pending": 3}, description="the work is settled")
        assert {row(scene.engine, id_).claim_count for id_ in late} == {0}
        api.heal()
        running.ends()

    assert {row(scene.engine, id_).claim_count for id_ in [*ids, *late]} == {1}
    scene.expect_all_processed(7)
    expect_one_outage_told(caplog, CLAIMS)


def test_api_and_database_away_together(
    scene: Scene, through: Engine, proxy: Proxy, api: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever comes back first, nothing is lost and nothing claimed before both are there."""
    scene.publish(4)
    with caplog.at_level(logging.WARNING), scene.loop(through, api=reaching.ApiWatch()) as running:
        scene.wait_until_begun(4)
        late = scene.publish(3)
        api.cut()
        proxy.cut()
        scene.let_work.set()
        # Whichever thread needs the table first: the loop waits for the verdicts of the last work before it claims.
        noticed = "the outage was noticed"
        wait_until(lambda: told(caplog, CLAIMS) or told(caplog, WRITES), description=noticed, timeout=20)
        proxy.heal()
        wait_until(lambda: by_status(scene.engine) == {"processed": 4, "pending": 3}, description="settled", timeout=15)
        assert {row(scene.engine, id_).claim_count for id_ in late} == {0}
        api.heal()
        running.ends()

    scene.expect_all_processed(7)


def test_slow_api_and_slow_database_only_take_longer(scene: Scene, through: Engine, proxy: Proxy, api: Proxy) -> None:
    """Every answer late: no lease is lost, nothing is done twice."""
    scene.publish(8)
    api.delay(0.3)
    proxy.delay(0.1)
    scene.let_work.set()

    with scene.loop(through, lease=15, api=reaching.ApiWatch()) as running:
        running.ends()

    assert running.tally.report().lost_leases == 0
    scene.expect_all_processed(8)


def test_run_without_the_api_claims_nothing_and_says_so(scene: Scene, url: str, children: Processes) -> None:
    """The API is away before a tick: one line, and the rows are as they were."""
    scene.publish(2)

    run = children.python(
        *("-m", "prefect_claim_dispatch.cli", "run", "--processors", "tests.acceptance.processors"),
        env={"PREFECT_API_URL": "http://127.0.0.1:1/api", "CLAIM_DISPATCH_DATABASE_URL": url},
    )

    assert run.wait(60) == 1
    assert "the Prefect API can't be reached" in run.errors
    assert "nothing was claimed" in run.errors
    assert by_status(scene.engine) == {"pending": 2}


def test_flow_lives_through_an_outage_of_the_api(
    url: str, prefect_server: PrefectServer, children: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole claim flow with real task runs: they end and are settled without the API, and the flow goes on after."""
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger"))
    engine = engines.create(url)
    publish(engine, "t.slow")
    with Proxy(("127.0.0.1", make_url(prefect_server.api_url).port or 0)) as api:
        flow = children.python(
            *("-m", "prefect_claim_dispatch.cli", "run", "--json", "--processors", "tests.acceptance.processors"),
            *("--stay", "25s"),
            env={
                **prefect_server.env,
                "PREFECT_API_URL": f"http://127.0.0.1:{api.port}/api",
                "CLAIM_DISPATCH_DATABASE_URL": url,
                "LEDGER": str(tmp_path / "ledger"),
                "SLOW_SECONDS": "0.5",
            },
        )
        wait_until(lambda: operations.counts(engine).statuses["claimed"], description="work runs", timeout=60)
        api.cut()

        def is_noticed() -> bool:
            assert flow.is_running, flow.errors
            if not operations.counts(engine).statuses["pending"]:
                publish(engine, "t.slow")
            return CLAIMS in flow.errors

        wait_until(is_noticed, description="the flow claims no more", timeout=30)
        pending = operations.find(engine, status="pending")
        assert pending
        assert {found.fail_count for found in pending} == {0}, [found.errors for found in pending]
        api.heal()
        flow.expect_success(45)

    rows = operations.find(engine, limit=None)
    assert {(str(found.status), found.fail_count) for found in rows} == {("processed", 0)}
    assert flow.errors.count(f"{CLAIMS}, trying again") == 1
    engine.dispose()
