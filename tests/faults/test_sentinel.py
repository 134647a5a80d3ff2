"""The sentinel: a flow whose interpreter is stuck is ended before its lease is over.

One that was merely stopped is not.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.rescuing import rescue
from tests.kit.lives import said
from tests.kit.processes import MARK, Child, Processes, marked
from tests.kit.tables import TABLE, add, claim_due, make_due, row
from tests.kit.waiting import wait_until


def keeping(children: Processes, url: str, lease: float, work: str, end: Path) -> Child:
    """A process that holds one claim under a keeper."""
    child = children.python("-m", "tests.kit.lives", "keep", url, str(lease), work, str(end))
    wait_until(
        lambda: said(child.output).get("claimed") or not child.is_running, description="the row is claimed", timeout=30
    )
    return child


def test_stuck_interpreter_is_ended_before_its_lease(
    engine: Engine, database_url: str, children: Processes, tmp_path: Path
) -> None:
    """C code that never gives up the interpreter lock.

    No thread can renew, so the process must be gone before another has its row.
    """
    id_ = add(engine)

    child = keeping(children, database_url, 4, "stuck", tmp_path / "end")
    code = child.wait(timeout=30)

    found = row(engine, id_)
    assert code == -signal.SIGKILL
    assert found.now < found.lease_expires_at, "it lived on beyond its lease"
    assert (found.status, found.fail_count) == ("claimed", 0)
    assert f"the interpreter of process {child.pid} has been stuck for 2.0 s" in child.errors
    wait_until(lambda: not marked(MARK, children.mark), description="the sentinel has ended too", timeout=5)


def test_stopped_process_is_not_ended(engine: Engine, database_url: str, children: Processes, tmp_path: Path) -> None:
    """A debugger, a suspended laptop, a frozen container.

    It may come back, and then its fence tells it what it has lost (S2).
    """
    id_, end = add(engine), tmp_path / "end"
    child = keeping(children, database_url, 4, "idle", end)

    child.pause()
    wait_until(
        lambda: rescue(engine, TABLE, lambda _: None, limit=10), description="the lease is over and rescued", timeout=30
    )
    make_due(engine, id_)
    (raw,) = claim_due(engine, claimed_by="another-run")
    assert child.is_running
    child.resume()
    end.touch()
    child.expect_success()

    report = said(child.output)["report"]
    assert (report["processed"], report["lost_leases"]) == (0, 1)
    assert (row(engine, id_).claimed_by, raw.claim_count) == ("another-run", 2)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_sentinel_ends_when_its_process_dies(
    sqlite_url: str, children: Processes, tmp_path: Path, signum: signal.Signals
) -> None:
    """However it dies: a sentinel that stays could one day kill whoever has that pid then."""
    engine = engines.create(sqlite_url)
    add(engine)
    child = keeping(children, sqlite_url, 300, "idle", tmp_path / "end")
    assert len(marked(MARK, children.mark)) == 2, "the process and its sentinel"

    child.send(signum)
    child.wait()

    wait_until(lambda: not marked(MARK, children.mark), description="the sentinel has ended too", timeout=5)
    engine.dispose()
