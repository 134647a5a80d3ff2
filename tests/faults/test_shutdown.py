"""Told to stop: Ctrl-C once and twice, SIGTERM, a cancel in the UI, a worker that is shut down.

Whoever hears of it gives back at once what has not begun, and lets finish what has, for the grace period. Whoever is
killed without a word leaves it to the lease.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import engines, operations, publish
from tests.acceptance.processors import ledger
from tests.kit.prefect_server import PrefectServer, create_process_pool, start_worker
from tests.kit.processes import ROOT, Child, Interrupt, Processes, exists
from tests.kit.tables import by_status, expire_leases
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.timeout(200), pytest.mark.xdist_group("shutdown")]

PROCESSORS = "tests.acceptance.processors"


@pytest.fixture
def environment(
    postgres_url: str, prefect_server: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """What a claim flow of these tests has in its environment: four rows at a time, of a second and a half."""
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger"))
    return {
        **prefect_server.env,
        "CLAIM_DISPATCH_DATABASE_URL": postgres_url,
        "CLAIM_DISPATCH_PROCESSORS": PROCESSORS,
        "CLAIM_DISPATCH_MAX_CONCURRENCY": "4",
        "CLAIM_DISPATCH_BACKOFF_SECONDS": "0",
        "CLAIM_DISPATCH_HOME": str(ROOT),
        "LEDGER": str(tmp_path / "ledger"),
        "SLOW_SECONDS": "1.5",
    }


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """The database, with twelve slow rows that are due."""
    engine = engines.create(postgres_url)
    for number in range(12):
        publish(engine, "t.slow", {"n": number})
    yield engine
    engine.dispose()


def executions(word: str) -> int:
    """How many executions wrote *word* into the ledger."""
    return sum(line[2] == word for line in ledger())


def wait_until_four_work(by: Child) -> None:
    """Until all slots are taken."""

    def is_busy() -> bool:
        assert by.is_running, by.told
        return executions("begun") >= 4

    wait_until(is_busy, description="four rows are worked on", timeout=90, explain=lambda: by.told)


def started(children: Processes, environment: dict[str, str], **more: str) -> Child:
    """A claim flow by the command line, whose four slots are taken."""
    flow = children.python("-m", "prefect_claim_dispatch.cli", "run", "--json", env={**environment, **more})
    wait_until_four_work(flow)
    return flow


def expect_unstarted_given_back(engine: Engine, told_at: float) -> None:
    """No claim is left but of what runs, within a second; the second more is the machine's."""
    wait_until(
        lambda: operations.counts(engine).statuses["claimed"] <= executions("begun") - executions("done"),
        description="what has not begun is pending again",
        timeout=5,
    )
    assert time.monotonic() - told_at < 2


@pytest.mark.parametrize(
    ("signum", "codes"), [(signal.SIGINT, {130}), (signal.SIGTERM, {143, -signal.SIGTERM})], ids=["ctrl-c", "sigterm"]
)
def test_flow_that_is_told_to_stop_finishes_what_it_has_begun(
    engine: Engine, children: Processes, environment: dict[str, str], signum: signal.Signals, codes: set[int]
) -> None:
    """The rest is pending again within a second, no attempt is burnt, and the exit code is what a shell expects."""
    flow = started(children, environment)

    told_at = time.monotonic()
    flow.send(signum)
    expect_unstarted_given_back(engine, told_at)
    code = flow.wait(40)

    rows = operations.find(engine, limit=None)
    assert code in codes, flow.errors
    assert sum(row.status == "processed" for row in rows) == executions("begun") == executions("done")
    assert {str(row.status) for row in rows} == {"pending", "processed"}
    assert {row.fail_count for row in rows} == {0}


def test_second_ctrl_c_does_not_wait_for_what_runs(
    engine: Engine, children: Processes, environment: dict[str, str]
) -> None:
    """Whoever presses twice means it. What ran is left to its lease, and its repeat is on record."""
    flow = started(children, environment, SLOW_SECONDS="120")

    told_at = time.monotonic()
    flow.interrupt()
    expect_unstarted_given_back(engine, told_at)
    flow.interrupt()

    assert flow.wait(15) == 130, flow.errors
    assert by_status(engine) == {"pending": 8, "claimed": 4}
    expire_leases(engine, *operations.find_ids(engine, status="claimed"))
    again = children.python(
        *("-m", "prefect_claim_dispatch.cli", "run", "--json", "--stay", "3s"), env={**environment, "SLOW_SECONDS": "0"}
    )
    again.expect_success(90)
    rows = operations.find(engine, limit=None)
    assert {str(row.status) for row in rows} == {"processed"}
    assert sorted(row.fail_count for row in rows) == [0] * 8 + [1] * 4
    assert {error["kind"] for row in rows for error in row.errors} == {"crashed"}


def test_flow_that_is_told_as_its_claim_commits_gives_it_back(
    engine: Engine, children: Processes, environment: dict[str, str]
) -> None:
    """What it has claimed is not forgotten because of the moment: no attempt is burnt, no lease waited for."""
    command = ("-c", "import tests.faults.failpoints, prefect_claim_dispatch.cli as cli; cli.main()", "run", "--json")
    flow = children.python(*command, env={**environment, "CLAIM_DISPATCH_FAILPOINT": "claim:after-commit:tell"})

    code = flow.wait(90)

    rows = operations.find(engine, limit=None)
    assert code in {143, -signal.SIGTERM}, flow.told
    assert {row.claim_count for row in rows} == {0, 1}, "the failpoint was not reached"
    assert {str(row.status) for row in rows} <= {"pending", "processed"}
    assert {row.fail_count for row in rows} == {0}


def deploy(server: PrefectServer, name: str) -> str:
    """The id of a deployment of the repository's flow, in the pool of that name.

    By the API: Prefect's command would lay the repository's own deployment under it, its processors and its schedule.
    """
    flow = server.post("flows/", {"name": "claim-dispatch"})
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
    made = server.post(
        "deployments/",
        {
            "name": name,
            "flow_id": flow["id"],
            "work_pool_name": name,
            "pull_steps": [step],
            "entrypoint": "flows/claim.py:claim",
            "enforce_parameter_schema": False,
        },
    )
    return str(made["id"])


@pytest.fixture
def deployed(
    children: Processes, prefect_server: PrefectServer, environment: dict[str, str], tmp_path: Path
) -> Callable[..., tuple[Child, str]]:
    """Start a worker and, by it, a claim flow from the repository; returns it and the run's id when four rows run."""

    def start(name: str, interrupt: Interrupt) -> tuple[Child, str]:
        create_process_pool(children, prefect_server, name)
        deployment = deploy(prefect_server, name)
        worker = start_worker(children, prefect_server, name, interrupt=interrupt, env=environment)
        run = prefect_server.post(f"deployments/{deployment}/create_flow_run", {"parameters": {"lease": "PT60S"}})
        wait_until_four_work(worker)
        return worker, run["id"]

    return start


def flow_pid() -> int:
    """The process that the rows run in."""
    return int(next(line[3] for line in ledger()))


def test_cancel_in_the_ui_gives_back_and_lets_finish(
    engine: Engine, deployed: Callable[..., tuple[Child, str]], prefect_server: PrefectServer
) -> None:
    """Prefect tells the flow's process some seconds later; no row is stuck, and no attempt is burnt."""
    _, run = deployed("shutdown-cancel", "default")

    prefect_server.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    wait_until(lambda: not exists(flow_pid()), description="the flow's process has ended", timeout=60)

    rows = operations.find(engine, limit=None)
    assert {str(row.status) for row in rows} <= {"pending", "processed"}
    assert {row.fail_count for row in rows} == {0}
    assert sum(row.status == "processed" for row in rows) == executions("done") == executions("begun")


def test_worker_that_kills_its_flow_leaves_the_rows_to_their_lease(
    engine: Engine, deployed: Callable[..., tuple[Child, str]], children: Processes, environment: dict[str, str]
) -> None:
    """A container that is stopped: not a word to the flow. The next one rescues when the leases are over."""
    worker, _ = deployed("shutdown-default", "default")

    worker.terminate()
    worker.wait(60)
    wait_until(lambda: not exists(flow_pid()), description="the flow's process was killed", timeout=30)
    assert by_status(engine).get("claimed", 0) >= 1, "it was told after all"
    expire_leases(engine, *operations.find_ids(engine, status="claimed"))
    again = children.python(
        *("-m", "prefect_claim_dispatch.cli", "run", "--json", "--stay", "3s"), env={**environment, "SLOW_SECONDS": "0"}
    )
    again.expect_success(90)

    rows = operations.find(engine, limit=None)
    assert {str(row.status) for row in rows} == {"processed"}
    assert {error["kind"] for row in rows for error in row.errors} == {"crashed"}


def test_worker_that_waits_for_its_flow_lets_it_finish_all(
    engine: Engine, deployed: Callable[..., tuple[Child, str]]
) -> None:
    """SIGINT ignored, as after `worker &` in a script: the flow hears nothing and drains what is due."""
    worker, _ = deployed("shutdown-ignored", "ignored")

    worker.terminate()
    wait_until(lambda: by_status(engine) == {"processed": 12}, description="all rows are processed", timeout=60)

    assert {row.claim_count for row in operations.find(engine, limit=None)} == {1}
