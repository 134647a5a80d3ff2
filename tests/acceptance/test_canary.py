"""Payloads do not leave the database.

Not into Prefect's database, API, logs or artifacts, unless the processor puts them there.
"""

from __future__ import annotations

import os

import pytest
from sqlalchemy import Engine, text

from prefect_claim_dispatch import operations, publish
from tests.acceptance.conftest import Dispatch
from tests.kit.prefect_server import PrefectServer
from tests.kit.waiting import wait_until


def test_no_payload_text_reaches_prefect(
    engine: Engine, dispatch: Dispatch, prefect_api: PrefectServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Through success, failure, dead rows, rules and subflows: the canary is nowhere but in the table."""
    canary = f"canary{os.urandom(8).hex()}"
    payload = {"number": canary, "list": [canary], "fails": True}
    for type_ in (
        "t.note",
        "t.async",
        "t.fail",
        "t.exit",
        "t.cancel",
        "t.flow.bad",
        "t.task",
        "t.order",
        "t.spin",
        "t.batch",
        "t.load",
    ):
        publish(engine, type_, payload, meta={"origin": canary}, idempotency_key=canary)
    publish(engine, "t.note", payload, rules={"==": [{"var": "payload.number"}, f"not {canary}"]})
    with engine.begin() as connection:
        broken = f'["{canary}"]'
        cast = "CAST(:broken AS jsonb)" if engine.dialect.name == "postgresql" else ":broken"
        connection.execute(
            text(f"INSERT INTO action_logs (type, payload) VALUES ('t.note', {cast})"), {"broken": broken}
        )

    report = dispatch()

    row = operations.find(engine, type="t.exit")[0]
    logged = {"logs": {"task_run_id": {"any_": [row.run_id]}}}
    wait_until(lambda: prefect_api.post("logs/filter", logged), description="the run's logs in the API", timeout=90)
    wait_until(
        lambda: str(row.run_id).encode() in prefect_api.stored, description="the runs in the database", timeout=90
    )
    assert report.claimed >= 11
    assert canary.encode() not in prefect_api.stored
    assert canary not in str(prefect_api.post("logs/filter", {"limit": 200, "sort": "TIMESTAMP_DESC"}))
    assert canary not in str(prefect_api.post("artifacts/filter", {}))
    assert canary not in caplog.text
    assert canary in str(operations.find(engine, status="processed"))


def test_the_scan_would_find_what_a_processor_puts_there(
    engine: Engine, dispatch: Dispatch, prefect_api: PrefectServer
) -> None:
    """The check above can fail: a text that does reach the server is found by it."""
    publish(engine, "t.note")
    dispatch()

    wait_until(lambda: b"noted t.note" in prefect_api.stored, description="the log line in the database", timeout=90)

    assert all(table in prefect_api.stored for table in (b"flow_run", b"task_run", b"log", b"events"))
