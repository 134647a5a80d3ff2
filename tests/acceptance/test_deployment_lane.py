"""The deployment lane for real: claim flows, a process pool, a worker, and deployed flows in processes of their own."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.utilities.callables import parameter_schema

from prefect_claim_dispatch import (
    DispatchReport,
    claim_dispatch,
    databases,
    deployment_processor,
    engines,
    operations,
)
from prefect_claim_dispatch.processors import Registry
from tests.acceptance import deployed_processors
from tests.acceptance.deployed_flows import encode
from tests.kit.deploying import Deployed, look
from tests.kit.prefect_server import PrefectServer, start_worker
from tests.kit.processes import Processes
from tests.kit.tables import add, statements_of
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(280)

# How the flow goes; what its row is at the end, with how many failures, and its run's state.
ENDS = {
    "works": ("processed", 0, "COMPLETED"),
    "fails": ("pending", 1, "FAILED"),
    "hangs, and is killed": ("pending", 1, "CRASHED"),
    "hangs, and is cancelled": ("cancelled", 0, "CANCELLED"),
}


def registry_of(deployed: Deployed) -> Registry:
    registry = Registry()
    deployment_processor(
        "encode",
        deployment=deployed.name,
        parameters=lambda action: {"how": action.payload["how"]},
        registry=registry,
        backoff=timedelta(hours=1),
    )
    return registry


def test_claim_flow_hands_over_looks_after_and_settles(
    prefect_api: PrefectServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three claim flows, one after another: rows outlive each, and an idle tick costs one statement more, or none."""
    monkeypatch.setenv("CLAIM_DISPATCH_DATABASE_URL", postgres_url)
    engine, deployed = databases.engine_for(postgres_url), Deployed(prefect_api, flow=deployed_processors.FLOW)
    elsewhere, _, misspelt = (add(engine, f"lane.{name}") for name in ("deployed", "local", "misspelt"))

    def dispatch() -> DispatchReport:
        return claim_dispatch(processors=[deployed_processors.__name__])

    first = dispatch()

    assert (first.claimed, first.dispatched, first.processed, first.unroutable) == (2, 2, 1, 1)
    row, (run,) = operations.get(engine, elsewhere), deployed.runs()
    assert (row.status, row.run_id, operations.get(engine, misspelt).claim_count) == ("claimed", run["id"], 0)
    operations.cancel(engine, misspelt)
    with statements_of(engine) as sent:
        assert dispatch().is_empty
    assert sent == ["survey", "outstanding"]
    deployed.set_state(row.run_id, "COMPLETED")
    assert dispatch().processed == 1
    with statements_of(engine) as sent:
        assert dispatch().is_empty
    assert sent == ["survey"]
    assert (operations.get(engine, elsewhere).claim_count, len(deployed.runs())) == (1, 1)
    engine.dispose()


def test_deployed_runs_settle_their_rows_however_they_end(
    prefect_api: PrefectServer, children: Processes, tmp_path: Path, sqlite_url: str
) -> None:
    """Each row has one run, in a process that a worker started; one is killed, one is cancelled as in the UI."""
    engine, ledger = engines.create(sqlite_url), tmp_path / "deployed-ledger"
    schema = parameter_schema(encode.fn).model_dump(mode="json")
    deployed = Deployed(prefect_api, entrypoint="tests.acceptance.deployed_flows:encode", schema=schema)
    registry = registry_of(deployed)
    ids = {
        end: add(engine, "encode", payload={"how": end.partition(",")[0], "secret": "s3cr3t"}) for end in reversed(ENDS)
    }
    environment = {"CLAIM_DISPATCH_DATABASE_URL": sqlite_url, "DEPLOYED_LEDGER": str(ledger)}
    worker = start_worker(children, prefect_api, deployed.pool, interrupt="default", env=environment)
    assert look(engine, registry).dispatched == len(ids)
    rows = {end: operations.get(engine, id_) for end, id_ in ids.items()}

    def begun(end: str) -> int:
        """The process that works on that row; 0 before it begins."""
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        return next((int(line.split()[-1]) for line in lines if line.startswith(f"begun #{ids[end]}.1 ")), 0)

    def settled() -> bool:
        look(engine, registry)
        return not operations.find_ids(engine, status="claimed")

    for end in ("hangs, and is killed", "hangs, and is cancelled"):
        wait_until(lambda end=end: begun(end), description=f"the flow {end}", timeout=120, explain=lambda: worker.told)
    os.kill(begun("hangs, and is killed"), signal.SIGKILL)
    deployed.set_state(rows["hangs, and is cancelled"].run_id, "CANCELLING")
    wait_until(settled, description="every row is settled", timeout=120, explain=lambda: worker.told)

    runs, rows = {run["id"]: run for run in deployed.runs()}, {end: operations.get(engine, ids[end]) for end in ENDS}
    assert len(runs) == len(ENDS)
    assert {
        end: (str(row.status), row.fail_count, runs[str(row.run_id)]["state_type"]) for end, row in rows.items()
    } == ENDS
    assert rows["fails"].errors[0]["message"] == "the codec is missing"
    assert rows["hangs, and is killed"].errors[0]["kind"] == "crashed"
    assert "s3cr3t" not in repr(runs)
    assert [line.split()[1] for line in ledger.read_text().splitlines() if line.startswith("done")] == [
        f"#{ids['works']}.1"
    ]
    engine.dispose()
