"""Fixtures of all tests: databases, child processes, a Prefect server; and isolation from the machine.

``database_url`` and ``empty_database_url`` run a test once per database: SQLite, the wheel's PostgreSQL, and the
system's where installed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from sqlalchemy import Engine

from tests.kit import keeping, leaks, pgbouncer, postgres, processes
from tests.kit.prefect_server import PrefectServer
from tests.kit.processes import Processes

if TYPE_CHECKING:
    from tests.kit.looping import ThreadDispatcher

MIGRATE = "prefect_claim_dispatch.migrations:upgrade"  # by name: the kit works, and is tested, without the package
DATABASES = ["sqlite", *postgres.available()]
EXHAUSTIVE = "exhaustive"
ABOUT_MORE = (
    *("acceptance", "faults", "recipes"),
    *(f"conformance/test_{what}.py" for what in ("cli", "keeping", "loop", "suspects", "testing")),
)
"""Tests of what runs around the SQL: Prefect, processes, threads, time. They take long, and one PostgreSQL will do."""
MORE = [keeping.ROOT / "tests" / name for name in ABOUT_MORE]
FOREIGN = ("CLAIM_DISPATCH_", "PREFECT_")  # a developer's own settings must not decide what is tested
OURS = (pgbouncer.VARIABLE, postgres.VERSIONS, "CLAIM_DISPATCH_TEST_ROWS")  # these ask for more to be tested

# A busy machine is no failure of the code under test.
settings.register_profile("unhurried", deadline=None)
# For `pytest --hypothesis-profile nightly`.
settings.register_profile("nightly", deadline=None, max_examples=10_000)
settings.load_profile("unhurried")

end_run = pytest.StashKey[Callable[[], None]]()
through_pgbouncer = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--only``: one of the two parts of the suite. ``--everywhere``: each test on every PostgreSQL there is."""
    parser.addoption("--only", choices=("quick", "rest"), help="what `make test` runs, or what it leaves out")
    parser.addoption("--everywhere", action="store_true", help="run also what is around the SQL on every PostgreSQL")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the part of the suite that was asked for; leave older versions of PostgreSQL to the tests of the SQL."""
    part, everywhere = config.getoption("--only"), config.getoption("--everywhere")
    left_out = [item for item in items if not _is_wanted(item, part, everywhere=everywhere)]
    items[:] = [item for item in items if item not in set(left_out)]
    config.hook.pytest_deselected(items=left_out)


def _is_wanted(item: pytest.Item, part: str | None, *, everywhere: bool) -> bool:
    is_exhaustive = item.get_closest_marker(EXHAUSTIVE) is not None
    is_older = any(name in item.name for name in DATABASES[2:])
    if is_older and not everywhere and (is_exhaustive or any(map(item.path.is_relative_to, MORE))):
        return False
    return part is None or (part == "rest") == (is_exhaustive or is_older)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how to run each failed test alone, as it was run."""
    failed = dict.fromkeys(
        report.nodeid for what in ("failed", "error") for report in terminalreporter.stats.get(what, ())
    )
    seed = terminalreporter.config.getoption("randomly_seed", None)
    for nodeid in failed:
        again = f"--randomly-seed={seed} " if isinstance(seed, int) else ""
        terminalreporter.write_line(f"alone: .venv/bin/pytest {again}{shlex.quote(nodeid)}")


def pytest_configure(config: pytest.Config) -> None:
    """Forget the machine's settings before anything is imported; start the run's keeper in the controlling process."""
    config.stash[through_pgbouncer] = os.environ.get(pgbouncer.VARIABLE, "") not in ("", "0")
    if config.stash[through_pgbouncer] and pgbouncer.program() is None:
        pytest.exit(f"{pgbouncer.VARIABLE} is set, and pgbouncer is not installed (Debian: apt install pgbouncer)", 0)
    for name in [name for name in os.environ if name.startswith(FOREIGN) and name not in OURS]:
        del os.environ[name]
    if not hasattr(config, "workerinput"):
        config.stash[end_run] = keeping.begin_run()
    os.environ["PREFECT_HOME"] = str(keeping.run_folder() / "prefect-home")  # for an import of prefect outside any test
    os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run's servers."""
    if end_run in config.stash:
        config.stash[end_run]()


@pytest.fixture(autouse=True)
def isolated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Give the test a Prefect home of its own and none of our settings; blame it for what it leaves behind."""
    for name in [name for name in os.environ if name.startswith("CLAIM_DISPATCH_")]:
        monkeypatch.delenv(name)  # the variable that asks for pgbouncer, too: children would take it for a setting
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    before = leaks.Held.now(threads_alone=_shares(request))
    yield
    if databases := sys.modules.get("prefect_claim_dispatch.databases"):  # the kit is tested without the package
        databases.close_all()
    leaks.check(before)


@pytest.fixture
def empty_catalogue() -> Iterator[None]:
    """Nothing in the process's catalogue of action types; as it was, after the test."""
    from prefect_claim_dispatch.catalogue import catalogue  # late: the kit works, and is tested, without the package

    known = dict(catalogue._entries)
    catalogue._entries.clear()
    yield
    catalogue._entries.clear()
    catalogue._entries.update(known)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Callable[[], Path]) -> Iterator[str]:
    """The URL of a freshly migrated database, dropped after the test; once per database."""
    with _database(request.param, tmp_path, sqlite_template) as url:
        yield _way(request, url, request.param)


@pytest.fixture(params=DATABASES)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with nothing in it, dropped after the test; once per database."""
    with _database(request.param, tmp_path, None) as url:
        yield _way(request, url, request.param)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine as the loop has it, on a database with an empty action table; once per database."""
    from prefect_claim_dispatch import engines  # late: the kit works, and is tested, without the package

    engine = engines.create(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Callable[[], Path]) -> Iterator[str]:
    """The URL of a freshly migrated SQLite database."""
    with _database("sqlite", tmp_path, sqlite_template) as url:
        yield url


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, postgres_server: postgres.Server) -> Iterator[str]:
    """The URL of a freshly migrated database on the first PostgreSQL there is, the wheel's."""
    with postgres.fresh_database(postgres_server, prepare=MIGRATE) as url:
        yield _way(request, url, postgres_server.name)


@pytest.fixture
def empty_postgres_url(request: pytest.FixtureRequest, postgres_server: postgres.Server) -> Iterator[str]:
    """The URL of an empty database on the first PostgreSQL there is."""
    with postgres.fresh_database(postgres_server) as url:
        yield _way(request, url, postgres_server.name)


@pytest.fixture
def pgbouncer_url(postgres_server: postgres.Server) -> Iterator[str]:
    """The URL of a freshly migrated database, through a pgbouncer in transaction mode; skipped without one."""
    if pgbouncer.program() is None:
        pytest.skip("pgbouncer is not installed (Debian: apt install pgbouncer)")
    with postgres.fresh_database(postgres_server, prepare=MIGRATE) as url:
        yield _through_pgbouncer(url, postgres_server.name)


@pytest.fixture(scope="session")
def postgres_server() -> postgres.Server:
    """The first PostgreSQL there is, shared by the whole run: never stop it. See `private_postgres`."""
    return shared_postgres(next(iter(postgres.available())))


@pytest.fixture
def private_postgres() -> Iterator[Callable[..., postgres.Server]]:
    """Start a PostgreSQL that the test may stop, crash or fill.

    ``private_postgres(name=None, durable=True, max_connections=200)``.
    """
    folders: list[Path] = []

    def start(name: str | None = None, *, durable: bool = True, max_connections: int = 200) -> postgres.Server:
        # In the run's folder: the keeper finds it even when this process is killed, and a socket's path must be short.
        folder = keeping.run_folder() / f"p{os.getpid()}-{len(folders)}-{os.urandom(2).hex()}"
        folders.append(folder)
        make = name or next(iter(postgres.available()))
        return postgres.start(make, folder, durable=durable, max_connections=max_connections)

    yield start
    for folder in folders:
        postgres.discard(folder)


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Processes]:
    """Child processes: ``children.python("-m", ...)``; whatever still runs is killed after the test."""
    with processes.children(tmp_path / "processes") as started:
        yield started


@pytest.fixture
def dispatcher() -> Iterator[ThreadDispatcher]:
    """A mode of dispatch that needs no Prefect server, with four threads."""
    from tests.kit.looping import ThreadDispatcher  # late: it imports the package

    made = ThreadDispatcher(4)
    yield made
    made.close()


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look a minute instead of one a second: what a claim loop sees sooner was told to it."""
    for module in ("line", "loop", "slots"):
        monkeypatch.setattr(f"prefect_claim_dispatch.dispatching.{module}.POLL", 60.0)


@pytest.fixture(scope="session")
def prefect_server() -> PrefectServer:
    """A Prefect server, shared by the whole run: never stop it, and use names of pools and flows that only you use."""
    return PrefectServer(**keeping.request("prefect"))


@pytest.fixture
def prefect_api(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[PrefectServer]:
    """The shared Prefect server, set for flows that run in the test's own process and for the children it starts."""
    for name, value in prefect_server.env.items():
        monkeypatch.setenv(name, value)
    # Importing Prefect takes a second and more, so only where it is wanted.
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_HOME, temporary_settings

    changes = {
        PREFECT_API_URL: prefect_server.api_url,
        PREFECT_HOME: tmp_path / "prefect-home",
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # its thread is waited for, up to a second at the end of each flow run
    }
    with temporary_settings(changes):
        yield prefect_server


@pytest.fixture(scope="session")
def sqlite_template() -> Callable[[], Path]:
    """Make a migrated SQLite file on first call, for copying; one for the whole run."""
    file = keeping.run_folder() / "migrated.db"

    def template() -> Path:
        if not file.exists():
            unfinished = file.with_name(f"unfinished-{os.getpid()}.db")
            postgres.named(MIGRATE)(f"sqlite:///{unfinished}")
            unfinished.rename(file)
        return file

    return template


def shared_postgres(name: str) -> postgres.Server:
    """The run's server of that make, for a test that is parametrized over `postgres.available` itself."""
    return postgres.Server(**keeping.request(name))


def _shares(request: pytest.FixtureRequest) -> bool:
    """Whether the test's module has fixtures that outlive the test: they may connect, or start a child, in it."""
    known = request.node._fixtureinfo.name2fixturedefs.values()
    return any(found[-1].scope != "function" and found[-1].baseid.endswith(".py") for found in known)


def _way(request: pytest.FixtureRequest, url: str, server: str) -> str:
    """*url*, or the way to it through pgbouncer where the run asks for that and the test can stand it."""
    if server == "sqlite" or not request.config.stash[through_pgbouncer]:
        return url
    if refused := request.node.get_closest_marker("not_through_pgbouncer"):
        pytest.skip(f"not through pgbouncer: {refused.kwargs['reason']}")
    return _through_pgbouncer(url, server)


def _through_pgbouncer(url: str, server: str) -> str:
    return pgbouncer.url_through(keeping.request(pgbouncer.PREFIX + server)["port"], url)


@contextmanager
def _sqlite(folder: Path, template: Callable[[], Path] | None) -> Generator[str]:
    file = folder / f"{os.urandom(4).hex()}.db"
    if template:
        shutil.copy(template(), file)
    yield f"sqlite:///{file}"


def _database(name: str, folder: Path, template: Callable[[], Path] | None) -> AbstractContextManager[str]:
    if name == "sqlite":
        return _sqlite(folder, template)
    return postgres.fresh_database(shared_postgres(name), prepare=MIGRATE if template else None)
