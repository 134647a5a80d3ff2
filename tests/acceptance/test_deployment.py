"""Deployed for real: server, process work pool, worker, and the repository's own prefect.yaml.

The schedule does the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from prefect_claim_dispatch import operations
from prefect_claim_dispatch.demo.sinks import HttpSink
from tests.kit.prefect_server import PrefectServer, create_process_pool, start_worker
from tests.kit.processes import Processes
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(280)

ROOT = Path(__file__).parents[2]
POOL = "claims-of-test-deployment"
DEPLOYMENT = "claim-dispatch/every-minute"


def insert_by_plain_sql(url: str, payload: dict[str, Any]) -> int:
    """Publish as a service in another language would: one INSERT of three columns, nothing of this package."""
    parsed = make_url(url)
    with psycopg.connect(
        host=parsed.query.get("host") or parsed.host,  # type: ignore[arg-type]
        port=parsed.query.get("port") or parsed.port,  # type: ignore[arg-type]
        user=parsed.username,
        password=parsed.password,
        dbname=parsed.database,
    ) as connection:
        row = connection.execute(
            "INSERT INTO action_logs (type, payload, end_at) VALUES ('webhook.deliver', %s, now()) RETURNING id",
            [json.dumps(payload)],
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_schedule_executes_rows_of_plain_sql_and_the_api_shows_them(
    postgres_url: str, prefect_server: PrefectServer, children: Processes
) -> None:
    """The production shape in small. One row's first try fails, so that Prefect's retry shows too."""
    environment = {"CLAIM_DISPATCH_DATABASE_URL": postgres_url, "CLAIM_DISPATCH_HOME": str(ROOT)}
    create_process_pool(children, prefect_server, POOL)
    children.python(
        *("-m", "prefect", "--no-prompt", "deploy", "--name", "every-minute", "--pool", POOL, "--interval", "10"),
        env={**prefect_server.env, **environment},
        cwd=ROOT,
    ).expect_success(90)
    try:
        with HttpSink() as sink:
            sink.fail("/flaky", times=1)
            ids = [insert_by_plain_sql(postgres_url, {"url": sink.url(path)}) for path in ("/good", "/flaky")]
            start_worker(children, prefect_server, POOL, interrupt="default", env=environment)

            wait_until(
                lambda: all(operations.get(postgres_url, id_).status == "processed" for id_ in ids),
                description="the schedule to fire and both rows to be processed",
                timeout=150,
            )
            keys = sorted(request.idempotency_key or "" for request in sink.requests)
    finally:
        deployment = prefect_server.get(f"deployments/name/{DEPLOYMENT}")
        prefect_server.post(f"deployments/{deployment['id']}/pause_deployment")

    assert keys == [f"action_logs:{ids[0]}", *[f"action_logs:{ids[1]}"] * 2]
    for id_, tries in zip(ids, (1, 2), strict=True):
        row = operations.get(postgres_url, id_)
        assert (row.claim_count, row.fail_count) == (1, 0)
        flow_run = prefect_server.get(f"flow_runs/{row.claimed_by}")
        assert flow_run["deployment_id"] == deployment["id"]
        assert flow_run["auto_scheduled"]
        task_run = wait_until(
            lambda row=row: final_task_run(prefect_server, str(row.run_id)), description="the task run", timeout=90
        )
        assert task_run["name"] == f"webhook.deliver #{id_} (attempt 1)"
        assert (task_run["state_type"], task_run["run_count"]) == ("COMPLETED", tries)
        assert task_run["flow_run_id"] == row.claimed_by
        logs = {"logs": {"task_run_id": {"any_": [row.run_id]}}}
        wait_until(
            lambda logs=logs: any("answered 200" in log["message"] for log in prefect_server.post("logs/filter", logs)),
            description="the processor's log line",
            timeout=90,
        )


def final_task_run(server: PrefectServer, run_id: str) -> dict[str, Any] | None:
    """The API's task run once it is completed; None before."""
    runs = server.post("task_runs/filter", {"task_runs": {"id": {"any_": [run_id]}}})
    return next((run for run in runs if run["state_type"] == "COMPLETED"), None)
