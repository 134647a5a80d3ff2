"""The batch lane under Prefect: what its runs are called, what they say, and how they end."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import operations, publish_many
from prefect_claim_dispatch.dispatching.artifacts import ranges
from prefect_claim_dispatch.publishing import Publisher
from tests.acceptance.conftest import Dispatch
from tests.acceptance.processors import ledger
from tests.kit.prefect_server import PrefectServer
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("database_url", ["postgresql-18"], indirect=True)]


def publish_numbers(engine: Engine, type_: str, numbers: range) -> list[int]:
    """One action for each of *numbers*; their ids."""
    publisher = Publisher(engine)
    drafts = [publisher.draft(type_).payload({"number": number}) for number in numbers]
    return [receipt.id or 0 for receipt in publish_many(engine, drafts)]


def runs_in(server: PrefectServer, run_ids: set[str | None]) -> dict[str, dict[str, Any]]:
    """The task runs as the API has them, once all of them have ended."""
    wanted = {"task_runs": {"id": {"any_": sorted(filter(None, run_ids))}}}

    def found() -> list[dict[str, Any]] | None:
        runs: list[dict[str, Any]] = list(server.post("task_runs/filter", wanted))
        are_final = all(run["state_type"] in ("COMPLETED", "FAILED") for run in runs)
        return runs if len(runs) == len(run_ids) and are_final else None

    runs = wait_until(found, description="the runs are in the API", timeout=90)
    assert runs is not None
    return {run["id"]: run for run in runs}


def test_batch_is_one_run_that_tells_how_its_rows_ended(
    engine: Engine, dispatch: Dispatch, prefect_api: PrefectServer
) -> None:
    """Prefect's retries call those that failed only; in the next attempt each of these runs alone."""
    ids = publish_numbers(engine, "t.batch", range(91, 111))
    odd = ids[10::2]  # of 101, 103, ...

    report = dispatch()

    rows = {row.id: row for row in operations.find(engine, type="t.batch")}
    shared = {rows[id_].run_id for id_ in ids if id_ not in odd}
    (run,) = runs_in(prefect_api, shared).values()
    tries = Counter((int(line[0]), int(line[1])) for line in ledger())
    assert (report.dispatched, report.runs, report.processed, report.dead) == (25, 6, 15, 5)
    assert run["name"] == f"t.batch × 20 (#{ids[0]} to #{ids[-1]})"  # noqa: RUF001
    assert run["state_name"] == "CompletedWithFailures"
    assert {tries[id_, 1] for id_ in ids if id_ not in odd} == {1}
    assert {tries[id_, claim] for id_ in odd for claim in (1, 2)} == {2}
    assert {run["state_name"] for run in runs_in(prefect_api, {rows[id_].run_id for id_ in odd}).values()} == {"Failed"}
    logged = {"logs": {"task_run_id": {"any_": [run["id"]]}}}
    line = f"failed 5, processed 15 ({', '.join(f'#{id_}' for id_ in odd)})"
    wait_until(
        lambda: line in [log["message"] for log in prefect_api.post("logs/filter", logged)],
        description="how the rows ended is in the run's log",
        timeout=90,
    )
    (artifact,) = prefect_api.post("artifacts/filter", {"artifacts": {"task_run_id": {"any_": [run["id"]]}}})
    done = [id_ for id_ in ids if id_ not in odd]
    assert artifact["description"] == line
    assert f"| `t.batch` | failed | 5 | {ranges(odd)} |" in artifact["data"]
    assert f"| `t.batch` | processed | 15 | {ranges(done)} |" in artifact["data"]


def test_rows_are_loaded_together_by_an_authors_own_task(
    engine: Engine, dispatch: Dispatch, prefect_api: PrefectServer
) -> None:
    """One call for all; a row may ask to be called later, and one that does not fit goes dead without the others."""
    ids = publish_numbers(engine, "t.load", range(8))
    (unfit,) = (receipt.id for receipt in publish_many(engine, [Publisher(engine).draft("t.load")]))

    report = dispatch()

    rows = {row.id: row for row in operations.find(engine, type="t.load")}
    first = [line[2] for line in ledger() if line[1] == "1"]
    runs = runs_in(prefect_api, {rows[id_].run_id for id_ in ids})
    assert first == ["of-8"] * 8
    assert (report.processed, report.snoozed, report.dead, report.runs) == (8, 1, 1, 2)
    assert rows[unfit or 0].status == "dead"
    assert {run["state_name"] for run in runs.values()} == {"Completed"}


def test_async_and_automatic_rows_share_runs(engine: Engine, dispatch: Dispatch) -> None:
    """Row by row inside the run's event loop; and, of those that group themselves, many in few runs."""
    publish_numbers(engine, "t.batch.async", range(60))
    publish_numbers(engine, "t.auto", range(400))

    report = dispatch()

    assert report.processed == 460
    assert report.runs <= 60
    assert len(ledger()) == 460
