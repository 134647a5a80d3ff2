"""The claim flow in detail, on SQLite: its runs in the API, its limits, what its options mean, what it refuses."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect import State, flow, task
from prefect.logging import get_run_logger
from prefect.runtime import flow_run, task_run
from prefect.settings import PREFECT_RESULTS_PERSIST_BY_DEFAULT, temporary_settings
from sqlalchemy import Engine, text

from prefect_claim_dispatch import Action, Snooze, databases, migrations, operations, processor, publish
from prefect_claim_dispatch.errors import ConfigurationError, DatabaseError, RegistrationError, SchemaMissingError
from prefect_claim_dispatch.processors import Registry
from tests.acceptance.conftest import Dispatch
from tests.acceptance.processors import ledger, note
from tests.kit.prefect_server import PrefectServer
from tests.kit.tables import make_due, statements_of
from tests.kit.waiting import wait_until

PROCESSORS = ["tests.acceptance.processors", __name__]
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Slots:
    """How many processors run at this moment, and how many ever did together."""

    def __init__(self) -> None:
        self.most = 0
        self._now = 0
        self._changed = threading.Condition()

    def take(self) -> None:
        """Stay until a second has come, and then half a second more: time enough for a third to come, if it may."""
        with self._changed:
            self._now += 1
            self.most = max(self.most, self._now)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most > 1, 10)
            self._changed.wait_for(lambda: self._now > 2, 0.5)
            self._now -= 1


slots = Slots()
gate = threading.Event()
present = {"paid": False}


@processor("cf.slot.task")
def take_slot(action: Action) -> None:
    """Counts who runs beside it."""
    slots.take()


@processor("cf.slot.flow")
@flow(name="cf-slot")
def take_slot_as_flow(action: Action) -> None:
    """The same, as a subflow."""
    slots.take()


@processor("cf.gate")
def wait_at_gate(action: Action) -> None:
    """Runs until the test opens the gate."""
    note(action, task_run.id or "")
    assert gate.wait(30)


@processor("cf.always", retries=1, retry_delay_seconds=0, max_attempts=2, backoff=timedelta(0))
def always_fail(action: Action) -> None:
    """Fails every try of every attempt."""
    note(action, f"{action.attempt}.{task_run.run_count}")
    msg = "the receiver hung up"
    raise ConnectionError(msg)


@task
def child(number: int) -> int:
    """A step of a processor's own."""
    get_run_logger().info("step %d", number)
    return number


@processor("cf.parent")
def submit_children(action: Action) -> None:
    """A task that submits tasks and waits for them."""
    futures = [child.submit(number) for number in range(3)]
    note(action, str(sum(future.result() for future in futures)))


@processor("cf.equal.async")
async def equal_async(action: Action) -> None:
    """Equal rows, async."""
    note(action)


@processor("cf.equal.cached")
@task(cache_key_fn=lambda *_: "always the same", persist_result=True)
def equal_cached(action: Action) -> str:
    """A task whose author caches it for other callers."""
    note(action)
    return "cached"


@processor("cf.equal.flow")
@flow(name="cf-equal", persist_result=True)
def equal_flow(action: Action) -> str:
    """A flow whose results are kept."""
    note(action, flow_run.id or "")
    return "kept"


def ask(action: Action) -> Mapping[str, Any]:
    """The present state, or no answer."""
    if "no_answer" in action.payload:
        msg = "the shop is closed"
        raise ConnectionError(msg)
    return present


@processor("cf.facts", facts=ask, on_rules_false=Snooze(timedelta(hours=1)), max_attempts=1)
def with_facts(action: Action) -> None:
    """Guarded by facts; its false rules are asked again later."""
    note(action)


@pytest.fixture
def engine(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """SQLite only: `test_main_job` goes through all databases."""
    monkeypatch.setenv("CLAIM_DISPATCH_DATABASE_URL", sqlite_url)
    return databases.engine_for(sqlite_url)


@pytest.fixture
def run(dispatch: Dispatch) -> Dispatch:
    """Run a claim flow that knows this module's processors too."""
    return lambda **options: dispatch(**{"processors": PROCESSORS, **options})


@pytest.fixture
def run_state(run: Dispatch) -> Any:
    """Run a claim flow and return the state that its run ended in, whatever it is."""
    return lambda **options: run(**options, return_state=True)


def published(engine: Engine, type_: str, payload: dict[str, object] | None = None, **options: Any) -> int:
    """Publish one action; returns its id."""
    receipt = publish(engine, type_, payload or {}, **options)
    assert receipt.id is not None
    return receipt.id


def final_task_runs(server: PrefectServer, flow_run_id: str, number: int) -> list[dict[str, Any]]:
    """The flow run's own *number* task runs in the API, once all are final, in order of creation."""
    wanted = {"task_runs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "EXPECTED_START_TIME_ASC"}

    def found() -> list[dict[str, Any]]:
        runs = [task_run for task_run in server.post("task_runs/filter", wanted) if task_run["state_type"] in FINAL]
        return runs if len(runs) == number else []

    return wait_until(found, description=f"{number} final task runs of {flow_run_id} in the API", timeout=90)


def executed() -> Counter[int]:
    """How often each action was executed."""
    return Counter(int(line[0]) for line in ledger())


def test_row_links_to_its_run_while_it_runs(engine: Engine, run: Dispatch) -> None:
    """Whoever looks at a row that is being worked on must find the run, and not only when it is over."""
    gate.clear()
    id_ = published(engine, "cf.gate")
    with contextlib.ExitStack() as stack:
        # Prefect's settings are in the context, and a thread has one of its own.
        flow_thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
        flow_thread.start()
        stack.callback(flow_thread.join)
        stack.callback(gate.set)

        wait_until(ledger, description="the processor to run", timeout=20)
        row = wait_until(
            lambda: (found := operations.get(engine, id_)).run_id != found.claimed_by and found,
            description="the run's id to be on the row",
            timeout=1,
        )

    assert row
    assert (row.status, row.run_id) == ("claimed", ledger()[0][2])
    assert operations.get(engine, id_).run_id == row.run_id


def test_verdict_does_not_wait_for_those_that_still_run(engine: Engine, run: Dispatch) -> None:
    """What has finished waits a fraction of a second for company, not for the batch; a crash would repeat it all."""
    gate.clear()
    long, short = published(engine, "cf.gate", priority=1), published(engine, "t.note")
    with contextlib.ExitStack() as stack:
        flow_thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
        flow_thread.start()
        stack.callback(flow_thread.join)
        stack.callback(gate.set)

        wait_until(lambda: executed()[short], description="the short action to be executed", timeout=20)
        wait_until(lambda: operations.get(engine, short).status == "processed", description="its verdict", timeout=0.7)
        assert operations.get(engine, long).status == "claimed"

    assert operations.get(engine, long).status == "processed"


def test_both_layers_of_retries_multiply_and_are_told_apart(
    engine: Engine, run_state: Any, prefect_api: PrefectServer
) -> None:
    """Two attempts of two tries: each attempt is a run of its own, and the flow that dispatched them has not failed."""
    id_ = published(engine, "cf.always")

    state: State[Any] = run_state()

    row = operations.get(engine, id_)
    runs = final_task_runs(prefect_api, str(row.claimed_by), 2)
    assert [line[2] for line in ledger()] == ["1.1", "1.2", "2.1", "2.2"]
    assert (row.status, row.fail_count, row.claim_count) == ("dead", 2, 2)
    assert [(error["attempt"], error["kind"], error["message"]) for error in row.errors] == [
        (1, "failed", "the receiver hung up"),
        (2, "failed", "the receiver hung up"),
    ]
    assert [found["name"] for found in runs] == [f"cf.always #{id_} (attempt 1)", f"cf.always #{id_} (attempt 2)"]
    assert {(found["state_type"], found["run_count"]) for found in runs} == {("FAILED", 2)}
    assert row.run_id == runs[1]["id"]
    assert state.is_completed()
    report = state.result()  # type: ignore[attr-defined]
    assert (report.retrying, report.dead, report.failed) == (1, 1, 2)
    assert prefect_api.get(f"flow_runs/{row.claimed_by}")["state_type"] == "COMPLETED"


def test_empty_tick_leaves_no_run_and_no_artifact(engine: Engine, run_state: Any, prefect_api: PrefectServer) -> None:
    """A tick a minute for ever: what each leaves behind, the server keeps."""
    published(engine, "t.note", delay=timedelta(hours=1))

    with statements_of(engine) as statements:
        state: State[Any] = run_state()

    flow_run_id = str(state.state_details.flow_run_id)
    of_this_run = {"flow_run_id": {"any_": [flow_run_id]}}
    assert statements == ["survey"]
    assert state.is_completed()
    assert prefect_api.post("task_runs/filter", {"task_runs": of_this_run}) == []
    assert prefect_api.post("artifacts/filter", {"artifacts": of_this_run}) == []


def test_equal_rows_all_run_though_results_are_persisted(engine: Engine, run: Dispatch) -> None:
    """Prefect's cache by inputs would run one and mark the others as done; with the setting on, that is its default."""
    types = ("t.note", "t.task", "cf.equal.async", "cf.equal.cached", "cf.equal.flow")
    ids = [published(engine, type_, {"equal": True}) for type_ in types for _ in range(3)]

    with temporary_settings({PREFECT_RESULTS_PERSIST_BY_DEFAULT: True}):
        report = run()

    assert report.processed == len(ids)
    assert executed() == dict.fromkeys(ids, 1)


def test_subflow_parameters_are_the_reference_only(engine: Engine, run: Dispatch, prefect_api: PrefectServer) -> None:
    """Flow parameters are stored and shown: the name of the run, and the fence of the claim."""
    id_ = published(engine, "cf.equal.flow", {"card": "4111"}, meta={"card": "4111"})

    run()

    found = prefect_api.get(f"flow_runs/{operations.get(engine, id_).run_id}")
    reference = {"name": f"cf.equal.flow #{id_} (attempt 1)", "id": id_, "claim_count": 1}
    assert found["parameters"] == {"action": reference}
    assert ledger()[0][2] == found["id"]


@pytest.mark.parametrize("types", [["cf.slot.task"], ["cf.slot.flow"], ["cf.slot.task", "cf.slot.flow"]])
def test_no_more_run_together_than_allowed(engine: Engine, run: Dispatch, types: list[str]) -> None:
    """The limit protects what the processors talk to; tasks and subflows count together."""
    slots.most = 0
    for number in range(6):
        published(engine, types[number % len(types)])

    report = run(max_concurrency=2)

    assert report.processed == 6
    assert 1 <= slots.most <= 2


def test_processor_may_submit_tasks_with_one_slot(engine: Engine, run: Dispatch) -> None:
    """Tasks that wait for tasks in the runner that they themselves fill would wait for ever."""
    ids = [published(engine, "cf.parent") for _ in range(2)]

    report = run(max_concurrency=1)

    assert report.processed == 2
    assert [(int(line[0]), line[2]) for line in ledger()] == [(id_, "3") for id_ in ids]


def test_one_ordering_key_runs_one_at_a_time_in_order(engine: Engine, run: Dispatch) -> None:
    """What belongs together keeps its order, while others pass by; the flow goes on until all of it is done."""
    ordered = [published(engine, "t.slow", ordering_key="user:42") for _ in range(3)]
    free = [published(engine, "t.slow") for _ in range(3)]

    report = run()

    lines = [(int(line[0]), line[2]) for line in ledger() if int(line[0]) in ordered]
    assert report.processed == len(ordered) + len(free)
    assert lines == [(id_, word) for id_ in ordered for word in ("begun", "done")]


def test_facts_are_asked_just_before_dispatch(engine: Engine, run: Dispatch) -> None:
    """The rules look at the world as it is now; false ones may mean *not yet*, and no answer costs an attempt."""
    rules = {"==": [{"var": "facts.paid"}, True]}
    id_ = published(engine, "cf.facts", rules=rules)
    unanswered = published(engine, "cf.facts", {"no_answer": True}, rules=rules)
    present["paid"] = False

    first = run()
    waiting = operations.get(engine, id_)
    present["paid"] = True
    make_due(engine, id_)
    second = run()

    assert (first.snoozed, first.dead, first.dispatched) == (1, 1, 0)
    assert (waiting.status, waiting.fail_count) == ("pending", 0)
    assert (second.processed, executed()) == (1, {id_: 1})
    assert operations.get(engine, unanswered).errors[-1]["message"] == "the shop is closed"


def test_url_without_a_password_may_be_a_parameter(
    engine: Engine, run: Dispatch, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peer authentication, a service file, SQLite: nothing that the UI must not show. It beats the setting."""
    monkeypatch.setenv("CLAIM_DISPATCH_DATABASE_URL", "sqlite:////nowhere/at/all.db")
    id_ = published(engine, "t.note")

    run(database=sqlite_url)

    assert operations.get(engine, id_).status == "processed"


def test_table_of_another_name_is_worked_on(engine: Engine, run: Dispatch, sqlite_url: str) -> None:
    """Two applications may share a database, each with a table of its own."""
    migrations.upgrade(sqlite_url, table="orders_outbox")
    mine = published(engine, "t.note", table="orders_outbox")
    others = published(engine, "t.note")

    report = run(table="orders_outbox")

    assert report.processed == 1
    assert operations.get(engine, mine, table="orders_outbox").status == "processed"
    assert operations.get(engine, others).claim_count == 0


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"database": "no-such-block"}, ConfigurationError, "no Prefect Secret block is called 'no-such-block'"),
        ({"database": "mysql://db/app"}, ConfigurationError, "'mysql' is not supported"),
        ({"database": "postgresql://app@127.0.0.1:1/app"}, DatabaseError, "can't be reached"),
        ({"table": "no_such_table"}, SchemaMissingError, "claim-dispatch db upgrade"),
        ({"until": datetime(2030, 1, 1)}, ConfigurationError, "until must have a time zone"),  # noqa: DTZ001
        ({"grace": timedelta(seconds=-1)}, ConfigurationError, "grace must not be negative"),
    ],
    ids=["block", "backend", "unreachable", "table", "until", "grace"],
)
def test_trouble_is_one_clear_line_and_nothing_is_claimed(  # noqa: PLR0917 - fixtures and a table of cases
    engine: Engine,
    run_state: Any,
    prefect_api: PrefectServer,
    options: dict[str, Any],
    error: type[Exception],
    told: str,
) -> None:
    """The run has failed, its log says what to do, and the backlog is as it was."""
    id_ = published(engine, "t.note")

    state: State[Any] = run_state(**options)

    logs = {"logs": {"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}, "level": {"ge_": 40}}}
    assert state.is_failed()
    with pytest.raises(error, match=told):
        state.result()  # type: ignore[attr-defined]
    wait_until(
        lambda: [log for log in prefect_api.post("logs/filter", logs) if told in log["message"].splitlines()[0]],
        description="the clear line in the run's log",
        timeout=90,
    )
    assert operations.get(engine, id_).claim_count == 0


def test_processor_whose_payload_can_not_be_validated_claims_nothing(
    engine: Engine, run: Dispatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An annotation that pydantic can't work with is the deployment's fault: no row must go dead by it."""
    id_ = published(engine, "cf.misfit")
    registry = Registry()

    @processor("cf.misfit", registry=registry)
    def misfit(payload: Engine) -> None: ...

    monkeypatch.setattr("prefect_claim_dispatch.processors.registry", registry)

    with pytest.raises(RegistrationError, match=r"cf\.misfit"):
        run()

    assert operations.get(engine, id_).claim_count == 0


def test_due_rows_are_done_though_a_stray_type_is_far_ahead(engine: Engine, run: Dispatch) -> None:
    """Rows that nobody takes, of higher priority and older, must not stand in the way of the others."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "WITH RECURSIVE series (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM series WHERE i < 100) "
                "INSERT INTO action_logs (type, priority, end_at) "
                "SELECT 'stray.' || i, 9, datetime('now', '-1 day') FROM series"
            )
        )
    ids = [published(engine, "t.note") for _ in range(3)]

    report = run(limit=2, until=datetime.now(UTC))

    assert executed() == dict.fromkeys(ids, 1)
    assert (report.processed, report.unroutable) == (3, 100)
