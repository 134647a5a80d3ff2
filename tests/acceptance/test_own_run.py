"""What operators do to the claim flow's own run in Prefect, and what keeps a run from starting: nobody pays for it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, pause_flow_run, suspend_flow_run, task
from prefect.client.orchestration import get_client
from prefect.exceptions import Abort, Pause
from prefect.flow_engine import run_flow
from sqlalchemy import Engine

from prefect_claim_dispatch import Action, claim_dispatch, operations, processor, publish
from prefect_claim_dispatch.dispatching import own_run
from tests.acceptance.conftest import Dispatch
from tests.kit.deploying import Deployed
from tests.kit.prefect_server import PrefectServer
from tests.kit.waiting import wait_until

LANES = ("or.task", "or.async", "or.batch", "or.together", "or.flow", "or.isolated")
gate = threading.Event()
called: list[str] = []


@processor("or.hold")
def hold(action: Action) -> None:
    """Runs until the test opens the gate, and does a step of its own then, as a task."""
    called.append("begun")
    assert gate.wait(60)
    assert step.submit().result() == 1
    called.append("done")


@processor("or.hold.flow")
@flow(name="or-hold")
def hold_as_flow(action: Action) -> None:
    """The same, as a subflow."""
    called.append("begun")
    assert gate.wait(60)
    assert step() == 1
    called.append("done")


@task
def step() -> int:
    """A step of an action that is half done."""
    return 1


@processor("or.task")
def in_task(action: Action) -> None:
    """Of the task lane, as those below are of the others."""
    called.append(action.type)


@processor("or.async")
async def in_async(action: Action) -> None:
    """Async."""
    called.append(action.type)


@processor("or.batch", rows_per_run=10)
def in_batch(action: Action) -> None:
    """Row by row."""
    called.append(action.type)


@processor("or.together", rows_per_run=10)
def together(payloads: list[dict[str, Any]], actions: list[Action]) -> None:
    """All in one call."""
    called.append("or.together")


@processor("or.flow")
@flow(name="or-flow")
def in_flow(action: Action) -> None:
    """A subflow."""
    called.append(action.type)


@processor("or.isolated", isolate=True)
def in_child(action: Action) -> None:
    """In a process of its own, where nothing of this test is seen."""


@processor("or.tagged")
@task(tags=["or-none"])
def tagged(action: Action) -> None:
    """Its tag has a limit of 0."""
    called.append(action.type)


@processor("or.tagged.batch", rows_per_run=10)
@task(tags=["or-none"])
async def tagged_batch(action: Action) -> None:
    """The same, async, for several rows."""
    called.append(action.type)


@processor("or.stored")
@task(persist_result=True, result_storage="local-file-system/or-nobody-made-it")
def stored(action: Action) -> None:
    """Prefect finds no place for its result, and does not begin."""
    called.append(action.type)


@processor("or.stored.flow")
@flow(name="or-stored", persist_result=True, result_storage="local-file-system/or-nobody-made-it")
def stored_flow(action: Action) -> None:
    """The same, as a subflow."""
    called.append(action.type)


@processor("or.pauses")
def pauses(action: Action) -> None:
    """Would stop everybody's work."""
    pause_flow_run(timeout=60)


@processor("or.suspends")
async def suspends(action: Action) -> None:
    """The same, async, for good."""
    await suspend_flow_run()  # type: ignore[misc] - async here


@processor("or.suspends.flow")
@flow(name="or-suspends")
def suspends_subflow(action: Action) -> None:
    """Its own run; Prefect refuses it for a subflow."""
    suspend_flow_run()


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What the statements do on every database is tested beside them."""
    return sqlite_url


@pytest.fixture(autouse=True)
def _closed_gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gate.clear()
    called.clear()
    monkeypatch.setattr(own_run, "LOOK_EVERY", 0.2)
    yield
    gate.set()


class Live:
    """A claim flow that runs in a thread, as the run of a deployment."""

    def __init__(self, server: PrefectServer) -> None:
        self.deployed = Deployed(server, schema={})
        self._server = server
        self.id = server.post(f"deployments/{self.deployed.id}/create_flow_run", {})["id"]
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._run,), daemon=True)
        self._thread.start()

    @property
    def state(self) -> dict[str, Any]:
        """As the API has it."""
        return self._server.get(f"flow_runs/{self.id}")["state"]

    def set_state(self, **state: Any) -> None:
        """As a person does by a click; Prefect decides whether that may be."""
        answer = self._server.post(f"flow_runs/{self.id}/set_state", {"state": state})
        assert answer["status"] == "ACCEPT", answer

    def delete(self) -> None:
        self._server.delete(f"flow_runs/{self.id}")

    def end(self) -> BaseException | None:
        """Wait for its end; what it raised."""
        self._thread.join(60)
        assert not self._thread.is_alive(), "the claim flow has not ended"
        return self.error

    def _run(self) -> None:
        options = {"processors": [__name__], "max_concurrency": 2, "lease": timedelta(seconds=60)}
        try:
            with get_client(sync_client=True) as client:
                run = client.read_flow_run(UUID(self.id))
            run_flow(claim_dispatch, flow_run=run, parameters=options, return_type="state")
        except BaseException as error:
            self.error = error


SUSPENDED = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
PAUSED = {"type": "PAUSED", "name": "Paused", "state_details": {"pause_reschedule": False}}


@pytest.mark.parametrize(
    ("act", "raised", "state"),
    [
        pytest.param(lambda live: live.set_state(**SUSPENDED), Pause, "Suspended", id="suspend"),
        pytest.param(lambda live: live.set_state(**PAUSED), None, "Completed", id="pause"),
        pytest.param(lambda live: live.set_state(type="CANCELLING"), None, "Cancelled", id="cancel"),
        pytest.param(lambda live: live.set_state(type="CRASHED", message="so"), Abort, "Crashed", id="end"),
        pytest.param(Live.delete, Abort, None, id="delete"),
    ],
)
def test_claim_flow_that_is_stopped_in_prefect_gives_back_what_never_began_and_ends_what_did(
    engine: Engine,
    prefect_api: PrefectServer,
    act: Callable[[Live], None],
    raised: type[BaseException] | None,
    state: str | None,
) -> None:
    """What waits is free for others at once, at no attempt; what runs is done in peace, steps of its own included."""
    held = [publish(engine, type_, priority=1).id for type_ in ("or.hold", "or.hold.flow")]
    waiting = [publish(engine, type_).id for type_ in LANES]
    live = Live(prefect_api)
    wait_until(lambda: called == ["begun"] * 2, description="the slots are taken", timeout=60)
    wait_until(lambda: operations.counts(engine).statuses["claimed"] > 2, description="some wait for one", timeout=20)

    act(live)

    wait_until(lambda: operations.counts(engine).statuses["claimed"] == 2, description="they are released", timeout=20)
    gate.set()
    error = live.end()
    assert [operations.get(engine, id_).status for id_ in held] == ["processed"] * 2
    rows = [operations.get(engine, id_) for id_ in waiting]
    assert {(row.status, row.fail_count, row.errors) for row in rows} == {("pending", 0, ())}
    assert called.count("done") == 2
    assert called.count("begun") + called.count("done") == len(called)
    assert (type(error) if error else None) is raised, error
    assert state is None or live.state["name"] == state


def test_run_that_fails_to_start_costs_nothing_and_is_put_off_with_its_reason(
    engine: Engine, prefect_api: PrefectServer, dispatch: Dispatch
) -> None:
    """A limit of 0, a storage that is not there: no processor was called, and the next try must not come at once."""
    prefect_api.post("concurrency_limits/", {"tag": "or-none", "concurrency_limit": 0})
    types = ("or.tagged", "or.tagged.batch", "or.tagged.batch", "or.stored", "or.stored.flow")
    ids = [publish(engine, type_).id for type_ in types]
    healthy = publish(engine, "or.task").id

    report = dispatch(processors=[__name__])

    rows = [operations.get(engine, id_) for id_ in ids]
    assert [(row.status, row.fail_count, row.claim_count) for row in rows] == [("pending", 0, 1)] * len(rows)
    assert {(row.errors[-1]["kind"], row.errors[-1]["times"]) for row in rows} == {("released", 1)}
    assert "ConcurrencySlotAcquisitionError" in rows[0].last_error
    assert "or-nobody-made-it" in rows[3].last_error
    assert called == ["or.task"]
    assert operations.get(engine, healthy).status == "processed"
    assert (report.released, report.failed, report.processed) == (len(rows), 0, 1)


def test_processor_that_pauses_the_claim_flow_fails_alone(engine: Engine, dispatch: Dispatch) -> None:
    """A pause of that run would be one of everybody's work; a subflow's own run is the author's affair."""
    ids = [publish(engine, type_).id for type_ in ("or.pauses", "or.suspends", "or.suspends.flow")]
    healthy = publish(engine, "or.task", priority=-1).id

    report = dispatch(processors=[__name__])

    rows = [operations.get(engine, id_) for id_ in ids]
    assert [(row.status, row.fail_count) for row in rows] == [("pending", 1)] * 3
    assert rows[0].errors[-1]["type"] == "PauseRefusedError"
    assert "return Snooze" in rows[0].last_error
    assert [row.errors[-1]["type"] for row in rows[1:]] == ["RuntimeError"] * 2
    assert operations.get(engine, healthy).status == "processed"
    assert (report.retrying, report.processed) == (3, 1)
