"""The main job: a row is published, a claim flow claims it, a Prefect run does it, the row says so."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_RESULTS_PERSIST_BY_DEFAULT, temporary_settings
from sqlalchemy import Engine, text

from prefect_claim_dispatch import DispatchReport, operations, publish
from prefect_claim_dispatch.errors import ConfigurationError, RegistrationError
from prefect_claim_dispatch.flow import claim_dispatch, run_claim_flow
from tests.acceptance.conftest import Dispatch
from tests.acceptance.processors import ledger
from tests.kit.prefect_server import PrefectServer
from tests.kit.tables import statements_of
from tests.kit.waiting import wait_until


def published(engine: Engine, type_: str, payload: dict[str, object] | None = None, **options: object) -> int:
    """Publish one action; returns its id."""
    receipt = publish(engine, type_, payload or {}, **options)  # type: ignore[arg-type]
    assert receipt.id is not None
    return receipt.id


def task_run_of(server: PrefectServer, engine: Engine, id_: int) -> dict[str, object]:
    """The API's task run that the row names; the server writes them a moment later, from events."""
    run_id = operations.get(engine, id_).run_id

    def found() -> list[dict[str, object]]:
        runs = server.post("task_runs/filter", {"task_runs": {"id": {"any_": [run_id]}}})
        return [run for run in runs if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]

    return wait_until(found, description=f"task run {run_id} to be final in the API", timeout=90)[0]


def test_published_action_becomes_a_task_run_and_is_processed(
    engine: Engine, dispatch: Dispatch, prefect_api: PrefectServer
) -> None:
    """The whole promise in one test: the row, the run it links to, its name, its logs."""
    id_ = published(engine, "t.note", {"any": "payload"})

    report = dispatch()

    row = operations.get(engine, id_)
    run = task_run_of(prefect_api, engine, id_)
    assert (report.claimed, report.dispatched, report.processed, report.failed) == (1, 1, 1, 0)
    assert (row.status, row.claim_count, row.fail_count) == ("processed", 1, 0)
    assert row.processed_at is not None
    assert ledger() == [[str(id_), "1", "done", ledger()[0][3]]]
    assert run["name"] == f"t.note #{id_} (attempt 1)"
    assert run["state_type"] == "COMPLETED"
    assert run["flow_run_id"] == row.claimed_by
    logs = {"logs": {"task_run_id": {"any_": [row.run_id]}}}
    wait_until(
        lambda: any("noted t.note" in log["message"] for log in prefect_api.post("logs/filter", logs)),
        description="the processor's log line to reach the API",
        timeout=90,
    )


def test_every_way_an_attempt_can_end_harms_only_its_own_row(engine: Engine, dispatch: Dispatch) -> None:
    """One batch with everything in it: no exception, and no base exception, may reach the flow or a sibling."""
    ends = {
        "t.note": "processed",
        "t.async": "processed",
        "t.flaky": "processed",
        "t.snooze": "processed",
        "t.task": "processed",
        "t.flow.good": "processed",
        "t.cancel": "cancelled",
        "t.fail": "dead",
        "t.exit": "dead",
        "t.interrupt": "dead",
        "t.spin": "dead",
    }
    ids = {type_: published(engine, type_) for type_ in ends}
    ids["t.flow.bad"] = published(engine, "t.flow.bad", {"fails": True})

    report = dispatch()

    found = {type_: str(operations.get(engine, id_).status) for type_, id_ in ids.items()}
    assert found == {**ends, "t.flow.bad": "dead"}
    assert report.by_type["t.fail"] == {"retrying": 2, "dead": 1}
    assert (report.snoozed, report.cancelled, report.lost_leases) == (1, 1, 0)
    assert operations.get(engine, ids["t.fail"]).fail_count == 3
    assert operations.get(engine, ids["t.exit"]).errors[-1]["type"] == "SystemExit"
    assert "time limit" in operations.get(engine, ids["t.spin"]).errors[-1]["message"]
    tries = [line[2] for line in ledger() if line[0] == str(ids["t.flaky"])]
    assert tries == ["try-1", "try-2"]
    assert operations.get(engine, ids["t.flaky"]).fail_count == 0


def test_rows_that_can_never_be_processed_go_dead_alone(engine: Engine, dispatch: Dispatch) -> None:
    """Rows written behind the library's back.

    Each goes dead with a readable error, without a run, and its sibling is processed.
    """
    good = published(engine, "t.order", {"number": 7})
    with engine.begin() as connection:
        for payload in ('{"number": "seven"}', "[1, 2]", '"text"', '{"__meta": 5}', '{"__rules": {"no such": 1}}'):
            connection.execute(
                text("INSERT INTO action_logs (type, payload) VALUES ('t.order', CAST(:payload AS json))")
                if engine.dialect.name == "postgresql"
                else text("INSERT INTO action_logs (type, payload) VALUES ('t.order', :payload)"),
                {"payload": payload},
            )

    report = dispatch()

    assert operations.get(engine, good).status == "processed"
    assert (report.claimed, report.dispatched, report.dead) == (6, 1, 5)
    dead = operations.find(engine, status="dead")
    assert all(row.run_id == row.claimed_by and row.errors[-1]["kind"] == "unprocessable" for row in dead)
    assert any("number: Input should be a valid integer" in row.errors[-1]["message"] for row in dead)


def test_rules_are_asked_again_at_dispatch(engine: Engine, dispatch: Dispatch) -> None:
    """The second guard: what was wanted at publish may not be any more."""
    wanted = published(engine, "t.note", {"paid": False}, rules={"==": [{"var": "payload.paid"}, False]})
    unwanted = published(engine, "t.note", {"paid": True}, rules={"==": [{"var": "payload.paid"}, False]})

    report = dispatch()

    assert operations.get(engine, wanted).status == "processed"
    assert operations.get(engine, unwanted).status == "cancelled"
    assert "rules" in operations.get(engine, unwanted).errors[-1]["message"]
    assert (report.dispatched, report.cancelled) == (1, 1)


def test_types_that_nobody_registered_wait_and_are_reported(engine: Engine, dispatch: Dispatch) -> None:
    """A processor removed in a deploy: never lost, never marked processed, no hot loop."""
    ids = [published(engine, "nobody.listens") for _ in range(3)]
    later = published(engine, "nobody.listens", delay=timedelta(hours=1))

    report = dispatch()

    assert (report.claimed, report.unroutable) == (0, 3)
    assert all(operations.get(engine, id_).claim_count == 0 for id_ in [*ids, later])


@pytest.mark.parametrize("type_", ["t.note", "t.task"])
def test_equal_payloads_are_both_executed(engine: Engine, dispatch: Dispatch, type_: str) -> None:
    """With result persistence on, Prefect's default cache policy would run one of them and skip the others."""
    ids = [published(engine, type_, {"equal": True}) for _ in range(3)]

    # Not by environment: the fixture's settings are made already, and would not see it.
    with temporary_settings({PREFECT_RESULTS_PERSIST_BY_DEFAULT: True}):
        dispatch()

    assert sorted(int(line[0]) for line in ledger()) == ids


def test_subflow_run_is_linked_and_shows_no_payload(
    engine: Engine, dispatch: Dispatch, prefect_api: PrefectServer
) -> None:
    """Flow parameters are stored and shown, so the reference is the only one."""
    id_ = published(engine, "t.flow.x", {"secret": "canary-in-parameters"})

    dispatch()

    row = operations.get(engine, id_)
    run = prefect_api.get(f"flow_runs/{row.run_id}")
    assert row.status == "processed"
    assert run["name"] == f"t.flow.x #{id_} (attempt 1)"
    assert run["state_type"] == "COMPLETED"
    assert run["parent_task_run_id"] is not None
    assert "canary" not in str(run)


def test_empty_tick_is_one_statement(engine: Engine, dispatch: Dispatch) -> None:
    """A tick a minute for ever must cost nothing; that it leaves no run and no artifact is in test_claim_flow."""
    published(engine, "t.note", delay=timedelta(hours=1))
    dispatch()

    with statements_of(engine) as statements:
        report = dispatch()

    assert report == DispatchReport()
    assert report.summary() == "nothing was due"
    assert statements == ["survey"]


def test_report_is_an_artifact_of_the_flow_run(engine: Engine, dispatch: Dispatch, prefect_api: PrefectServer) -> None:
    """Whoever is on call looks at the run, and finds what it did in a table."""
    id_ = published(engine, "t.note")

    dispatch()

    flow_run = operations.get(engine, id_).claimed_by
    artifacts = prefect_api.post("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run]}}})
    assert len(artifacts) == 1
    assert "| t.note | 1 | 0 |" in artifacts[0]["data"]


def test_without_drain_one_claim_is_made(engine: Engine, dispatch: Dispatch) -> None:
    """For those who want to see each batch as a run of its own."""
    for _ in range(5):
        published(engine, "t.note")

    report = dispatch(limit=2, drain=False)

    assert (report.claimed, report.processed) == (2, 2)


def test_until_bounds_what_is_claimed(engine: Engine, dispatch: Dispatch) -> None:
    """A replay up to an instant must not take what came due after it."""
    old = published(engine, "t.note", end_at=datetime.now(UTC) - timedelta(hours=2))
    recent = published(engine, "t.note")

    report = dispatch(until=datetime.now(UTC) - timedelta(hours=1))

    assert report.processed == 1
    assert operations.get(engine, old).status == "processed"
    assert operations.get(engine, recent).status == "pending"


def test_stay_waits_for_what_becomes_due(engine: Engine, dispatch: Dispatch) -> None:
    """An action that becomes due while the run stays is not left to the next minute."""
    id_ = published(engine, "t.note", delay=timedelta(seconds=1.5))

    report = dispatch(stay=timedelta(seconds=4))

    assert report.processed == 1
    assert operations.get(engine, id_).status == "processed"


def test_url_with_a_password_is_refused_as_a_parameter(dispatch: Dispatch) -> None:
    """Flow parameters are shown in the UI; the message must not repeat the password either."""
    with pytest.raises(ConfigurationError, match="Secret block") as caught:
        dispatch(database="postgresql://app:hunter2@db/app")

    assert "hunter2" not in str(caught.value)


def test_secret_block_names_the_database(
    database_url: str, engine: Engine, dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way to give a deployment its database without showing it."""
    Secret(value=database_url).save("claim-dispatch-test", overwrite=True, _sync=True)  # type: ignore[call-arg]
    monkeypatch.delenv("CLAIM_DISPATCH_DATABASE_URL")
    id_ = published(engine, "t.note")

    dispatch(database="claim-dispatch-test")

    assert operations.get(engine, id_).status == "processed"


@pytest.mark.parametrize("run", [claim_dispatch, run_claim_flow])
def test_catalogue_that_does_not_import_claims_nothing(
    engine: Engine, prefect_api: PrefectServer, monkeypatch: pytest.MonkeyPatch, run: Callable[..., DispatchReport]
) -> None:
    """Without its classes, processors would get dicts where they expect models."""
    monkeypatch.setenv("CLAIM_DISPATCH_CATALOGUE", "no.such.catalogue")
    id_ = published(engine, "t.note")

    with pytest.raises(RegistrationError, match=r"catalogue module 'no\.such\.catalogue'"):
        run()

    assert operations.get(engine, id_).claim_count == 0


def test_module_that_does_not_import_claims_nothing(engine: Engine, dispatch: Dispatch) -> None:
    """A typo in a deployment must not turn a backlog into failed attempts."""
    id_ = published(engine, "t.note")

    with pytest.raises(RegistrationError, match=r"no\.such\.module"):
        dispatch(processors=["no.such.module"])

    assert operations.get(engine, id_).claim_count == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit"),
        ({"lease": timedelta(0)}, "lease"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"stay": timedelta(seconds=-1)}, "stay"),
    ],
)
def test_options_that_make_no_sense_are_refused(dispatch: Dispatch, options: dict[str, object], message: str) -> None:
    """One clear line before anything is claimed."""
    with pytest.raises(ConfigurationError, match=message):
        dispatch(**options)
