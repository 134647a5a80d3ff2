"""The kit that the other tests stand on: real servers, isolated databases, and nothing left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, inspect, make_url, text

from tests.kit import keeping, postgres
from tests.kit.prefect_server import PrefectServer, create_process_pool, start_worker
from tests.kit.processes import Child, Interrupt, Processes, exists, free_port
from tests.kit.sinks import HttpReply, HttpSink
from tests.kit.waiting import wait_until

PREPARE = "tests.unit.test_kit:make_table"

# A run of its own: each test leaves its servers' pids behind as files, and the last may wait to be disturbed.
INNER = """
import os, pathlib, pytest
from tests.kit import keeping, postgres
from tests.kit.processes import Processes
from tests.kit.waiting import wait_until

FOLDER = pathlib.Path(os.environ["INNER_FOLDER"])

@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("name", list(postgres.available())[:2])
def test_uses_a_server(name, number):
    server = postgres.Server(**keeping.request(name))
    with postgres.fresh_database(server):
        (FOLDER / f"{server.pid}.pid").touch()

def test_waits(private_postgres):
    (FOLDER / "run").write_text(str(keeping.run_folder()))
    (FOLDER / f"{private_postgres().pid}.pid").touch()
    orphan = Processes(FOLDER / "output").python("-c", "import time; time.sleep(600)")
    (FOLDER / f"{orphan.pid}.pid").touch()
    (FOLDER / f"{os.getpid()}.pid").touch()
    (FOLDER / "waits").touch()
    wait_until(lambda: "WAIT" not in os.environ, description="never", timeout=300)
    orphan.kill()
"""


@pytest.fixture
def inner_run(children: Processes, tmp_path: Path) -> Callable[..., Child]:
    """Start pytest on the inner tests."""
    (tmp_path / "test_inner.py").write_text(INNER)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")

    def start(*options: str, **env: str) -> Child:
        outside = {name: None for name in os.environ if name.startswith(("PYTEST_", "COV_", "TEST_KIT_"))}
        versions = "all" if len(postgres.available()) > 1 else ""
        return children.python(
            *("-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", str(tmp_path / "pytest.ini")),
            *("--rootdir", str(tmp_path), "--basetemp", str(tmp_path / "inner"), *options, str(tmp_path)),
            env={**outside, "INNER_FOLDER": str(tmp_path), postgres.VERSIONS: versions, **env},
        )

    return start


def pids(folder: Path) -> list[int]:
    """What the inner run has noted."""
    return [int(file.stem) for file in folder.glob("*.pid")]


def assert_nothing_is_left(folder: Path) -> None:
    """No process of the inner run, and not its folder."""
    noted = pids(folder)
    assert noted
    run = Path((folder / "run").read_text())
    wait_until(lambda: not [pid for pid in noted if exists(pid)], description="all processes are gone", timeout=30)
    wait_until(lambda: not run.exists(), description="the run's folder is gone", timeout=30)


@pytest.mark.parametrize("workers", [pytest.param("-n0", marks=pytest.mark.exhaustive), "-n2"])
def test_run_ends_its_servers(inner_run: Callable[..., Child], tmp_path: Path, workers: str) -> None:
    """One server of each make that is asked for, for all workers; one private one; none of them after the run."""
    outcome = inner_run(workers)

    outcome.expect_success(120)
    worker, orphan, private = 1, 1, 1
    assert len(pids(tmp_path)) == min(len(postgres.available()), 2) + private + orphan + worker
    assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("workers", "signum"),
    [
        pytest.param("-n0", signal.SIGINT, id="ctrl-c-n0", marks=pytest.mark.exhaustive),
        pytest.param("-n0", signal.SIGKILL, id="kill-n0", marks=pytest.mark.exhaustive),
        pytest.param("-n2", signal.SIGINT, id="ctrl-c-n2"),
        pytest.param("-n2", signal.SIGKILL, id="kill-n2"),
    ],
)
def test_disturbed_run_ends_its_servers(
    inner_run: Callable[..., Child], tmp_path: Path, workers: str, signum: signal.Signals
) -> None:
    """Nor after a Ctrl-C, nor when pytest itself is killed."""
    run = inner_run(workers, "-k", "waits", WAIT="1")
    wait_until((tmp_path / "waits").exists, description="the last inner test waits", timeout=120)

    run.send(signum)
    run.wait(60)

    assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize("name", postgres.available())
def test_databases_are_isolated(name: str) -> None:
    """What one test writes, no other sees; the template is prepared once."""
    server = postgres.Server(**keeping.request(name))

    with (
        postgres.fresh_database(server, prepare=PREPARE) as one,
        postgres.fresh_database(server, prepare=PREPARE) as two,
    ):
        for url in (one, two):
            engine = create_engine(url)
            with engine.begin() as database:
                database.execute(text("INSERT INTO prepared VALUES (1)"))
                assert database.execute(text("SELECT count(*) FROM prepared")).scalar() == 1
            engine.dispose()
    with server.connect() as connection:
        names = [make_url(url).database for url in (one, two)]
        left = connection.execute("SELECT datname FROM pg_database WHERE datname = ANY(%s)", (names,))
        assert left.fetchall() == []


def make_table(url: str) -> None:
    """Prepare a database; leaves its connection open, as a careless migration would."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE prepared (n integer)"))
        connection.execute(text("CREATE TABLE numbered (id bigint GENERATED ALWAYS AS IDENTITY, n integer)"))
        connection.execute(text("CREATE TABLE version AS SELECT 1 AS n"))
    left_open.append(engine)


left_open: list[Engine] = []


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while left_open:
        left_open.pop().dispose()


def identity(server: postgres.Server, url: str) -> int:
    """What a database keeps when it gets another name."""
    with server.connect(make_url(url).database or "") as connection:
        return connection.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone()[0]  # type: ignore[index]


def changed(server: postgres.Server, statement: str) -> tuple[int, int]:
    """Do *statement* in a fresh database; its identity, and that of the next."""
    with postgres.fresh_database(server, prepare=PREPARE) as url:
        before = identity(server, url)
        with server.connect(make_url(url).database or "") as connection:
            connection.execute("INSERT INTO prepared SELECT generate_series(1, 100)")
            connection.execute(statement.format(database=make_url(url).database))  # type: ignore[arg-type]
    with postgres.fresh_database(server, prepare=PREPARE) as url:
        return before, identity(server, url)


@pytest.mark.parametrize("name", postgres.available())
def test_database_in_which_only_rows_were_changed_is_as_new(name: str) -> None:
    """The next test has it under another name: empty, its ids from one, and nobody left in it."""
    server = postgres.Server(**keeping.request(name))
    with postgres.fresh_database(server, prepare=PREPARE) as url:
        before, left_behind = identity(server, url), server.connect(make_url(url).database or "")
        left_behind.execute("INSERT INTO numbered (n) VALUES (1), (2)")

    with pytest.raises(psycopg.OperationalError):
        left_behind.execute("SELECT 1")
    left_behind.close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        server.connect(make_url(url).database or "")
    with postgres.fresh_database(server, prepare=PREPARE) as url, server.connect(make_url(url).database or "") as now:
        assert identity(server, url) == before
        assert now.execute("SELECT count(*) FROM numbered").fetchall() == [(0,)]
        assert now.execute("INSERT INTO numbered (n) VALUES (3) RETURNING id").fetchall() == [(1,)]
        assert now.execute("SELECT n FROM version").fetchall() == [(1,)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (n integer)",
        "DROP TABLE numbered",
        "ALTER TABLE prepared ADD m integer",
        "ALTER TABLE prepared SET (fillfactor = 50)",
        "ALTER TABLE prepared ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE numbered ALTER n SET DEFAULT 7",
        "ALTER SEQUENCE numbered_id_seq INCREMENT 5",
        "CREATE INDEX ON prepared (n)",
        "CREATE SCHEMA another",
        "CREATE FUNCTION two() RETURNS integer LANGUAGE sql RETURN 2",
        "CREATE RULE nothing AS ON DELETE TO prepared DO INSTEAD NOTHING",
        "CREATE STATISTICS ON id, n FROM numbered",
        "COMMENT ON TABLE prepared IS 'seen'",
        "GRANT SELECT ON prepared TO PUBLIC",
        "REVOKE CONNECT ON DATABASE {database} FROM PUBLIC",
        "ALTER DATABASE {database} SET work_mem = '1MB'",
        "ANALYZE prepared",
        "UPDATE version SET n = 2",
        "DELETE FROM version",
    ],
)
def test_database_in_which_more_was_changed_is_dropped(postgres_server: postgres.Server, statement: str) -> None:
    """Whatever it was: the next test has another."""
    before, after = changed(postgres_server, statement)

    assert before != after


def test_database_that_its_test_dropped_is_not_missed(postgres_server: postgres.Server) -> None:
    """There is nothing to make as new, and nothing to complain of."""
    with postgres.fresh_database(postgres_server, prepare=PREPARE) as url, postgres_server.connect() as connection:
        connection.execute(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")  # type: ignore[arg-type]

    with postgres.fresh_database(postgres_server, prepare=PREPARE) as url:
        assert identity(postgres_server, url)


def test_nothing_else_makes_a_database_another(postgres_server: postgres.Server) -> None:
    """The test before would pass if none were ever used again."""
    before, after = changed(postgres_server, "DELETE FROM prepared WHERE n = 7")

    assert before == after


def test_database_is_dropped_under_its_users(postgres_server: postgres.Server) -> None:
    """A test that forgets a connection harms nobody."""
    with postgres.fresh_database(postgres_server) as url:
        connection = postgres_server.connect(make_url(url).database or "")

    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    connection.close()


def test_empty_database_holds_no_table(empty_database_url: str) -> None:
    """The migrations' own tests start from nothing."""
    engine = create_engine(empty_database_url)

    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_database_is_migrated(database_url: str) -> None:
    """Every other test starts from the newest schema, without rows."""
    engine = create_engine(database_url)

    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM action_logs")).scalar() == 0
    engine.dispose()


@pytest.mark.parametrize("name", postgres.available())
def test_private_server_survives_a_crash(private_postgres: Callable[..., postgres.Server], name: str) -> None:
    """Fault tests stop and crash their own server; what was committed is there again."""
    server = private_postgres(name)
    with server.connect() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
    before = server.pid

    server.restart("immediate")

    assert server.pid not in (None, before)
    with server.connect() as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (1,)


def test_terminating_backends_breaks_the_connections_of_one_database(
    private_postgres: Callable[..., postgres.Server],
) -> None:
    """As an administrator does; whoever is connected elsewhere stays, also in a server with few connections."""
    server = private_postgres(durable=False, max_connections=10)
    with server.connect() as elsewhere, postgres.fresh_database(server) as url:
        database = make_url(url).database or ""
        connections = [server.connect(database) for _ in range(2)]

        assert server.terminate_backends(database) == 2

        for connection in connections:
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
            connection.close()
        assert elsewhere.execute("SHOW max_connections").fetchone() == ("10",)


@pytest.mark.parametrize(("interrupt", "expected"), [("default", "default_int_handler"), ("ignored", "SIG_IGN")])
def test_child_has_the_chosen_interrupt(children: Processes, interrupt: Interrupt, expected: str) -> None:
    """A Prefect worker behaves differently under the two, so tests must not inherit one by chance."""
    child = children.python("-c", "import signal; print(repr(signal.getsignal(signal.SIGINT)))", interrupt=interrupt)

    assert expected in child.expect_success()


def test_paused_child_does_not_run(children: Processes) -> None:
    """SIGSTOP is how a zombie is made."""
    child = children.python("-c", "import itertools\nfor n in itertools.count(): print(n, flush=True)")
    wait_until(lambda: child.output, description="the child counts")

    child.pause()
    size = child.stdout.stat().st_size
    time.sleep(0.1)
    assert child.stdout.stat().st_size == size

    child.resume()
    wait_until(lambda: child.stdout.stat().st_size > size, description="the child counts on")
    assert child.kill() == -signal.SIGKILL


def test_grandchildren_are_ended_too(children: Processes) -> None:
    """A worker's flow runs live in sessions of their own and would outlive it."""
    code = (
        "import subprocess, sys; "
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True).pid)"
    )
    grandchild = int(children.python("-c", code).expect_success())
    assert exists(grandchild)

    children.end_all()

    assert not exists(grandchild)


def test_settings_of_the_machine_are_gone(tmp_path: Path) -> None:
    """A developer's own Prefect profile or database must not decide what is tested."""
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "prefect-home")
    assert not [name for name in os.environ if name.startswith("CLAIM_DISPATCH_")]


def test_waiting_in_vain_says_for_what() -> None:
    """A test that times out must be readable without a debugger."""
    with pytest.raises(AssertionError, match="until pigs fly; last answer: 0"):
        wait_until(lambda: 0, description="pigs fly", timeout=0.05)
    with pytest.raises(AssertionError, match=r"last answer: 0\nno wings$"):
        wait_until(lambda: 0, description="pigs fly", timeout=0.05, explain=lambda: "no wings")


def test_server_that_says_503_is_asked_again() -> None:
    """A Prefect server whose SQLite file is locked has done nothing; what else it refuses must be seen at once."""
    with HttpSink() as sink:
        server = PrefectServer(api_url=sink.url("/api"), home="")
        sink.fail("/api/flows", times=2)
        sink.reply("/api/nothing", HttpReply(status=404))

        server.post("flows")
        with pytest.raises(HTTPError, match="404"):
            server.post("nothing")

        assert [request.path for request in sink.requests] == ["/api/flows"] * 3 + ["/api/nothing"]


def test_free_port_can_be_listened_on() -> None:
    """Ports are random, so that runs beside each other don't meet."""
    assert 1024 < free_port() < 65536


def test_flow_in_the_test_reaches_the_shared_server(prefect_api: PrefectServer) -> None:
    """In-process flows are visible on the server that other processes see."""
    from prefect import flow

    @flow(name="kit-in-process")
    def in_process() -> int:
        return 7

    assert in_process() == 7
    runs = prefect_api.post("flow_runs/filter", {"flows": {"name": {"any_": ["kit-in-process"]}}})
    assert [run["state_type"] for run in runs] == ["COMPLETED"]


@pytest.mark.parametrize("interrupt", ["default", "ignored"])
def test_worker_ends_as_its_interrupt_says(
    children: Processes, prefect_server: PrefectServer, interrupt: Interrupt
) -> None:
    """SIGTERM is turned into SIGINT by the worker: it ends, or takes no notice until the second, which is a SIGKILL."""
    pool = f"kit-{interrupt}"
    create_process_pool(children, prefect_server, pool)
    worker = start_worker(children, prefect_server, pool, interrupt=interrupt)

    worker.terminate()
    if interrupt == "ignored":

        def heard() -> bool:
            assert worker.is_running, worker.told
            return "Received SIGTERM" in worker.output + worker.errors

        wait_until(heard, description="the worker heard SIGTERM", timeout=60, explain=lambda: worker.told)
        assert worker.is_running, worker.told
        worker.terminate()
        assert worker.wait(60) == -signal.SIGKILL
    else:
        assert worker.wait(60) >= 0, worker.told
