"""A failpoint strikes where it says and leaves the database as a crash at that place would."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import OperationalError

from tests.faults.failpoints import MEMORY, VARIABLE, Failpoint, FailpointError, arm, disarm
from tests.kit.processes import Child, Processes

# Each statement named in the arguments adds a row in a transaction. SQLite begins explicitly, as the package's engines
# do.
TOY = """
import sys
import tests.faults.failpoints
from sqlalchemy import create_engine, event, text

engine = create_engine(sys.argv[1])
if engine.dialect.name == "sqlite":
    @event.listens_for(engine, "connect")
    def configure(connection, record):
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")

with engine.connect() as connection:
    for name in sys.argv[2:]:
        insert = text("INSERT INTO toy VALUES (:name)").execution_options(claim_dispatch_statement=name)
        connection.execute(insert, {"name": name})
        print(name, "executed", flush=True)
        connection.execute(text("SELECT 1"))
        connection.commit()
        print(name, "committed", flush=True)
engine.dispose()
"""


@pytest.fixture
def toy(empty_database_url: str) -> Iterator[Engine]:
    """An engine on a database with the toy table."""
    engine = create_engine(empty_database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE toy (name varchar(20))"))
    yield engine
    engine.dispose()


def run(children: Processes, toy: Engine, failpoint: str | None, *statements: str) -> Child:
    """Start the toy on the statements."""
    url = toy.url.render_as_string(hide_password=False)
    return children.python("-W", "error", "-c", TOY, url, *statements, env={VARIABLE: failpoint})


def rows(toy: Engine) -> list[str]:
    """What is committed."""
    with toy.connect() as connection:
        return list(connection.execute(text("SELECT name FROM toy ORDER BY name")).scalars())


@pytest.mark.parametrize(
    ("failpoint", "printed", "committed"),
    [
        ("settle:before:kill", ["claim executed", "claim committed"], ["claim"]),
        ("settle:after:kill", ["claim executed", "claim committed"], ["claim"]),
        ("claim:after-commit:kill", ["claim executed"], ["claim"]),
        ("settle:after-commit:kill", ["claim executed", "claim committed", "settle executed"], ["claim", "settle"]),
    ],
)
def test_kill_strikes_at_its_moment(
    children: Processes, toy: Engine, failpoint: str, printed: list[str], committed: list[str]
) -> None:
    """Before and after lose the open transaction; after-commit has it on disk, though the caller never learned it."""
    child = run(children, toy, failpoint, "claim", "settle")

    assert child.wait() == -signal.SIGKILL, child.errors
    assert child.output.splitlines() == printed
    assert rows(toy) == committed


@pytest.mark.parametrize("moment", ["before", "after", "after-commit"])
def test_nth_hit_alone_strikes(children: Processes, toy: Engine, moment: str) -> None:
    """The crash in the middle of a long run is the one that is hard to reach."""
    child = run(children, toy, f"claim:{moment}:kill:3", "claim", "settle", "claim", "claim", "claim")

    assert child.wait() == -signal.SIGKILL, child.errors
    assert child.output.count("committed") == 3
    assert rows(toy) == ["claim"] * (3 if moment == "after-commit" else 2) + ["settle"]


@pytest.mark.parametrize("moment", ["before", "after", "after-commit"])
def test_stop_freezes_until_continued(children: Processes, toy: Engine, moment: str) -> None:
    """A zombie: it wakes up later and goes on as if nothing had been."""
    child = run(children, toy, f"settle:{moment}:stop", "claim", "settle")

    child.wait_until_paused()
    assert rows(toy) == (["claim", "settle"] if moment == "after-commit" else ["claim"])

    child.resume()
    child.expect_success()
    assert rows(toy) == ["claim", "settle"]


@pytest.mark.parametrize("moment", ["before", "after", "after-commit"])
def test_raise_reaches_the_caller(children: Processes, toy: Engine, moment: str) -> None:
    """An error of no database's making, which the package must not take for one."""
    child = run(children, toy, f"settle:{moment}:raise", "claim", "settle")

    assert child.wait() == 1
    assert f"FailpointError: failpoint settle:{moment}" in child.errors
    assert rows(toy) == (["claim", "settle"] if moment == "after-commit" else ["claim"])


def test_unarmed_module_changes_nothing(children: Processes, toy: Engine) -> None:
    """Fault tests import it in every child, also in those that shall live."""
    child = run(children, toy, None, "claim", "settle")

    assert child.expect_success().count("committed") == 2


def test_rolled_back_statement_is_not_committed(toy: Engine) -> None:
    """A transaction that failed must not count for the next one on the same connection."""
    try:
        arm("claim:after-commit:raise")
        insert = text("INSERT INTO toy VALUES ('x')").execution_options(claim_dispatch_statement="claim")
        with toy.connect() as connection:
            connection.execute(insert)
            connection.rollback()
            connection.execute(text("SELECT 1"))
            connection.commit()

            connection.execute(insert)
            with pytest.raises(FailpointError):
                connection.commit()
    finally:
        disarm()

    assert rows(toy) == ["x"]


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "claim",
        "claim:before",
        "claim:during:kill",
        "claim:before:kil",
        "claim:before:kill:0",
        ":before:kill",
        "a:before:kill:1:2",
    ],
)
def test_misspelt_failpoint_is_refused(wrong: str) -> None:
    """A failpoint that never strikes would let a fault test pass that proves nothing."""
    with pytest.raises(ValueError, match="failpoint must be"):
        Failpoint.parse(wrong)


def test_disarming_leaves_nothing_behind(sqlite_url: str) -> None:
    """Else the tests that the same worker runs later would depend on their order."""
    commit = DefaultDialect.do_commit
    arm("toy:before:raise")
    try:
        assert DefaultDialect.do_commit is not commit
    finally:
        disarm()

    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(text("SELECT 1").execution_options(claim_dispatch_statement="toy"))
        assert MEMORY not in connection.info
    engine.dispose()
    assert DefaultDialect.do_commit is commit


def test_armed_process_rolls_back_when_its_connection_broke(postgres_url: str) -> None:
    """What a failpoint remembers of a connection is gone with it, and must not stand in the way."""
    engine = create_engine(postgres_url)
    arm("toy:before:raise")
    try:
        with pytest.raises(OperationalError), engine.begin() as connection:
            connection.execute(text("SELECT 1").execution_options(claim_dispatch_statement="other"))
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    finally:
        disarm()

    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()
