"""Whole claim flows in processes of their own.

Several at once, told to stop, killed, and stopped like the dead that wake.
"""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import DispatchReport, databases, operations, processor, publish_many
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.publishing import Publisher
from tests.acceptance.processors import ledger
from tests.faults.failpoints import VARIABLE
from tests.kit.looping import ThreadDispatcher, run_loop
from tests.kit.prefect_server import PrefectServer
from tests.kit.processes import Child, Processes
from tests.kit.tables import expire_leases
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(240)

StartFlow = Callable[..., Child]


ONE_DATABASE = pytest.mark.parametrize(
    "database_url", [pytest.param("sqlite", marks=pytest.mark.exhaustive), "postgresql-18"], indirect=True
)
"""Their statements are struck on either, by the matrix."""


@pytest.fixture
def ledger_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that processors write each execution into."""
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger"))
    return tmp_path / "ledger"


@pytest.fixture
def start_flow(children: Processes, prefect_server: PrefectServer, ledger_file: Path) -> StartFlow:
    """Start one claim flow by the command line, as a worker or a person would."""

    def start(url: str, *options: str, **environment: str) -> Child:
        return children.python(
            "-m", "prefect_claim_dispatch.cli", "run", "--json", "--processors", "tests.acceptance.processors",
            *options,
            env={
                **prefect_server.env,
                "CLAIM_DISPATCH_DATABASE_URL": url,
                "CLAIM_DISPATCH_MAX_CONCURRENCY": "4",
                "CLAIM_DISPATCH_BACKOFF_SECONDS": "0",
                "LEDGER": str(ledger_file),
                **environment,
            },
        )  # fmt: skip

    return start


def publish_some(url: str, type_: str, number: int) -> Engine:
    """Publish *number* actions and return the engine to look at them with."""
    engine = databases.engine_for(url)
    publisher = Publisher(engine)
    publish_many(engine, (publisher.draft(type_).payload({"n": n}) for n in range(number)))
    return engine


def report_of(child: Child) -> dict[str, Any]:
    """The report that a claim flow printed at its end."""
    return json.loads(child.expect_success(timeout=200))


def assert_race_was_fair(engine: Engine, reports: list[dict[str, Any]], number: int) -> None:
    """Each row executed once, by whichever flow, and its first claim was its last."""
    rows = operations.find(engine, limit=None)
    executed = Counter(int(line[0]) for line in ledger())
    assert len(rows) == number
    assert executed == {row.id: 1 for row in rows}
    assert {(str(row.status), row.claim_count) for row in rows} == {("processed", 1)}
    assert sum(report["processed"] for report in reports) == number


def test_four_flows_share_600_rows_on_postgresql(postgres_url: str, start_flow: StartFlow) -> None:
    """Many claim flows may run at once: no row is dispatched twice, none is lost."""
    engine = publish_some(postgres_url, "t.note", 600)

    flows = [start_flow(postgres_url) for _ in range(4)]

    assert_race_was_fair(engine, [report_of(flow) for flow in flows], 600)


def test_two_flows_share_rows_on_sqlite(sqlite_url: str, start_flow: StartFlow) -> None:
    """The embedded default has one writer at a time; its flows wait in line instead of failing."""
    engine = publish_some(sqlite_url, "t.note", 150)

    flows = [start_flow(sqlite_url) for _ in range(2)]

    assert_race_was_fair(engine, [report_of(flow) for flow in flows], 150)


def begun(word: str = "begun") -> int:
    """How many executions wrote *word* into the ledger."""
    return sum(line[2] == word for line in ledger())


@ONE_DATABASE
def test_terminated_flow_gives_back_what_has_not_begun(database_url: str, start_flow: StartFlow) -> None:
    """A deploy in the middle of a batch: unstarted rows are due again at once and lost no attempt.

    Running ones finish.
    """
    engine = publish_some(database_url, "t.slow", 30)
    flow = start_flow(database_url, "--lease", "60s", SLOW_SECONDS="1.5")
    wait_until(lambda: begun() >= 4, description="four actions to have begun", timeout=90)

    flow.terminate()
    wait_until(
        lambda: operations.counts(engine).statuses["claimed"] <= begun() - begun("done"),
        description="unstarted claims to be given back, long before their leases end",
        timeout=10,
    )
    code = flow.wait(60)

    rows = operations.find(engine, limit=None)
    assert code != 0
    assert {str(row.status) for row in rows} == {"pending", "processed"}
    assert sum(row.status == "processed" for row in rows) == begun()
    assert all(row.fail_count == 0 for row in rows)


@ONE_DATABASE
def test_killed_flow_is_rescued_and_its_repeat_is_explained(database_url: str, start_flow: StartFlow) -> None:
    """SIGKILL in the middle of work: the lease ends, the attempt is counted, another flow does it again."""
    engine = publish_some(database_url, "t.slow", 6)
    victim = start_flow(database_url, "--lease", "3s", SLOW_SECONDS="60")
    wait_until(lambda: begun() >= 4, description="work to have begun", timeout=90)

    victim.kill()
    report = report_of(start_flow(database_url, "--lease", "30s", "--stay", "8s", SLOW_SECONDS="0"))

    rows = operations.find(engine, limit=None)
    assert {str(row.status) for row in rows} == {"processed"}
    assert sum(row.fail_count for row in rows) == 4  # what had a slot; two more may have waited for one
    assert 4 <= report["rescued"] <= 6
    executed = Counter(int(line[0]) for line in ledger() if line[2] == "begun")
    for row in rows:
        crashes = sum(error["kind"] == "crashed" for error in row.errors)
        assert executed[row.id] <= 1 + crashes
        assert 1 + crashes <= row.claim_count <= 2


@ONE_DATABASE
def test_flow_that_wakes_after_its_lease_changes_nothing(database_url: str, start_flow: StartFlow) -> None:
    """A zombie: stopped for longer than its lease while others did its work.

    Its verdicts find no row, and it says so.
    """
    engine = publish_some(database_url, "t.slow", 2)
    zombie = start_flow(database_url, "--lease", "3s", SLOW_SECONDS="2")
    wait_until(lambda: begun() >= 2, description="work to have begun", timeout=90)

    zombie.pause()
    report_of(start_flow(database_url, "--lease", "30s", "--stay", "8s", SLOW_SECONDS="0"))
    before = {row.id: row for row in operations.find(engine, limit=None)}
    zombie.resume()
    report = report_of(zombie)

    after = {row.id: row for row in operations.find(engine, limit=None)}
    assert {str(row.status) for row in before.values()} == {"processed"}
    assert after == before
    assert report["lost_leases"] == 2
    assert report["processed"] == 0
    assert len(re.findall("lost the lease of claim 1", zombie.errors)) >= 2


def tick_of_another(engine: Engine) -> DispatchReport:
    """One round of another claim flow with a processor for these rows; without Prefect, so that it is done at once."""
    registry, dispatcher = Registry(), ThreadDispatcher(4)

    @processor("t.slow", registry=registry)
    def work() -> None: ...

    report = run_loop(engine, registry, dispatcher, claimed_by="another").report()
    dispatcher.close()
    return report


def test_live_flow_that_is_marked_crashed_keeps_its_claims(
    postgres_url: str, start_flow: StartFlow, prefect_server: PrefectServer
) -> None:
    """S2: an automation takes a busy flow for dead. Nobody else gets its rows while it renews their leases."""
    engine = publish_some(postgres_url, "t.slow", 2)
    flow = start_flow(postgres_url, "--lease", "4s", SLOW_SECONDS="5")
    wait_until(lambda: begun() >= 2, description="work to have begun", timeout=90)
    (run_id,) = {str(row.claimed_by) for row in operations.find(engine)}

    crashed = {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True}
    prefect_server.post(f"flow_runs/{run_id}/set_state", crashed)
    first_lease = [row.lease_expires_at for row in operations.find(engine)]
    is_renewed = lambda: [row.lease_expires_at for row in operations.find(engine)] > first_lease  # noqa: E731
    wait_until(is_renewed, description="the crashed flow renews its leases", timeout=10)
    other = tick_of_another(engine)
    still = operations.counts(engine).statuses
    flow.wait(200)

    rows = operations.find(engine)
    assert (other.claimed, other.rescued, still["claimed"]) == (0, 0, 2)
    assert "this flow run was set to Crashed in Prefect" in flow.errors, (
        flow.told
    )  # it begins nothing more, and says why
    assert "lost the lease" not in flow.errors
    assert {(str(row.status), row.claim_count, row.fail_count) for row in rows} == {("processed", 1, 0)}
    assert Counter(int(line[0]) for line in ledger() if line[2] == "begun") == {row.id: 1 for row in rows}


@pytest.mark.parametrize(
    ("failpoint", "database"),
    [
        ("claim:after-commit", "postgres_url"),
        ("settle:after", "sqlite_url"),
    ],
)
def test_flow_killed_at_a_statement_loses_nothing(
    failpoint: str, database: str, start_flow: StartFlow, request: pytest.FixtureRequest
) -> None:
    """Cells of the failpoint matrix under Prefect in which lanes are alike; `test_lanes` has others, for each lane."""
    url = request.getfixturevalue(database)
    engine = publish_some(url, "t.note", 5)
    victim = start_flow(url, "--processors", "tests.faults.failpoints", **{VARIABLE: f"{failpoint}:kill"})
    assert victim.wait(120) == -signal.SIGKILL, victim.errors
    executed_before = Counter(int(line[0]) for line in ledger())

    expire_leases(engine, *operations.find_ids(engine, status="claimed"))
    report_of(start_flow(url, "--lease", "30s"))

    rows = operations.find(engine, limit=None)
    assert {str(row.status) for row in rows} == {"processed"}
    executed = Counter(int(line[0]) for line in ledger())
    for row in rows:
        crashes = [error["claim_count"] for error in row.errors if error["kind"] == "crashed"]
        assert row.claim_count >= 1 + len(crashes) == 1 + row.fail_count
        assert 1 <= executed[row.id] <= 1 + len(crashes)
        assert executed[row.id] == 1 or executed_before[row.id], "a repeat without a crash"
    assert ("claim" in failpoint) == (not executed_before), "the flow died somewhere else"
