"""Every lane through the faults of the kit, one after another on one table; and nothing is lost or done unexplained."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import Draft, operations, publish_many
from tests.faults.failpoints import VARIABLE as FAILPOINT
from tests.kit.auditor import audit, report
from tests.kit.ledger import VARIABLE as LEDGER
from tests.kit.ledger import Ledger, PublishLog
from tests.kit.prefect_server import PrefectServer
from tests.kit.processes import Child, Processes
from tests.kit.tables import by_status, expire_leases
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

ROWS = 14
LANES = ("task", "async", "isolated", "batch", "together", "auto", "subflow")
SQLITE, POSTGRESQL = "sqlite", "postgresql-18"
CASES = [(POSTGRESQL if n % 2 else SQLITE, lane, "threads") for n, lane in enumerate(LANES)]
CASES += [(POSTGRESQL, lane, "processes") for lane in ("task", "batch")]
QUICK = [(SQLITE, "task", "threads"), (POSTGRESQL, "batch", "threads")]
PARAMETERS = [pytest.param(*case, marks=() if case in QUICK else pytest.mark.exhaustive) for case in CASES]
STRUCK = (
    "settle:before:kill",
    "settle:after-commit:kill",
)  # where nothing has begun yet, or in between, lanes are alike

IN_TRANSACTION = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND state LIKE 'idle in transaction%%'"
)

StartFlow = Callable[..., Child]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """What was executed, whatever the table says."""
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def start_flow(
    children: Processes, prefect_server: PrefectServer, ledger: Ledger, engine: Engine, runner: str
) -> StartFlow:
    """Start one claim flow with *runner*."""

    def start(*, seconds: float = 0.0, failpoint: str = "") -> Child:
        return children.python(
            "-m", "tests.faults.laning_flow", runner,
            env={
                **prefect_server.env,
                "CLAIM_DISPATCH_DATABASE_URL": engine.url.render_as_string(hide_password=False),
                "LANING_SECONDS": str(seconds),
                LEDGER: str(ledger.folder),
                **({FAILPOINT: failpoint} if failpoint else {}),
            },
        )  # fmt: skip

    return start


def publish_all(engine: Engine, published: PublishLog, type_: str) -> None:
    """`ROWS` actions, each on record before and after."""
    tokens = [published.asked(type_) for _ in range(ROWS)]
    for token, receipt in zip(tokens, publish_many(engine, [Draft().type(type_)] * ROWS), strict=True):
        published.published(token, receipt, type_)


def stop(flow: Child, engine: Engine) -> None:
    """SIGSTOP, at a moment at which it holds no lock of the database's: those whom it locks out could do nothing."""
    flow.pause()
    while is_locked(engine):
        flow.resume()
        time.sleep(0.02)
        flow.pause()


def is_locked(engine: Engine) -> bool:
    """Whether somebody is in the middle of a transaction."""
    if engine.dialect.name != "sqlite":
        with engine.connect() as connection:
            return bool(connection.exec_driver_sql(IN_TRANSACTION).scalar_one())
    with closing(sqlite3.connect(str(engine.url.database), timeout=0)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.rollback()
        return False


@pytest.mark.parametrize(("database_url", "lane", "runner"), PARAMETERS, indirect=["database_url"])
def test_lane_survives_every_fault(
    engine: Engine, start_flow: StartFlow, ledger: Ledger, tmp_path: Path, lane: str
) -> None:
    """Killed at the statements around the work and in its middle, told to end, stopped until others did its work."""
    published = PublishLog(tmp_path / "published")
    publish_all(engine, published, f"l.{lane}")

    def begun() -> int:
        return sum(entry.what == "begin" for entry in ledger.read().entries)

    def struck_in_the_middle() -> Child:
        before, flow = begun(), start_flow(seconds=0.4)
        wait_until(lambda: begun() > before, description="work has begun", timeout=60, explain=lambda: flow.told)
        return flow

    def bury() -> None:
        expire_leases(engine, *operations.find_ids(engine, status="claimed"))

    for failpoint in STRUCK:
        flow = start_flow(failpoint=failpoint)
        assert flow.wait(60) == -signal.SIGKILL, flow.told
        bury()
    flow = struck_in_the_middle()
    flow.kill()
    bury()
    flow = struck_in_the_middle()
    flow.terminate()
    assert flow.wait(60) != 0
    bury()
    zombie = struck_in_the_middle()
    stop(zombie, engine)
    bury()
    start_flow().expect_success(timeout=100)
    zombie.resume()
    zombie.expect_success(timeout=60)

    assert by_status(engine) == {"processed": ROWS}
    broken = audit(engine, ledger, published)
    assert not broken, report(broken)
