"""The deployment lane's closed loop against a real Prefect server: what becomes of row and run at each fault.

There is no worker here: the test sets the states that a worker, a person or an automation would set.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings
from sqlalchemy import Engine

from prefect_claim_dispatch import Action, claimed_action, claiming, deployment_processor, operations, outstanding
from prefect_claim_dispatch.dispatching import creating, reconciling
from prefect_claim_dispatch.errors import ClaimLostError, PrefectUnavailableError
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.schema import ELSEWHERE
from tests.kit.deploying import Deployed, is_created, lane_of, look, schema_of
from tests.kit.prefect_server import PrefectServer
from tests.kit.proxy import Proxy
from tests.kit.tables import (
    TABLE,
    add,
    add_many,
    by_status,
    change,
    expire_leases,
    seconds_from_now,
)
from tests.kit.waiting import wait_until

TYPE = "video.encode"


@pytest.fixture
def deployed(prefect_api: PrefectServer) -> Deployed:
    """A deployment whose flow takes the reference alone."""
    return Deployed(prefect_api)


@pytest.fixture
def registry(deployed: Deployed) -> Registry:
    """Actions of `TYPE` become runs of `deployed`."""
    registry = Registry()
    deployment_processor(TYPE, deployment=deployed.name, registry=registry, queued_at_most=timedelta(minutes=10))
    return registry


@pytest.fixture
def engine(sqlite_url: str) -> Any:
    """The lane's statements are tried on every database elsewhere; here it is Prefect that fails."""
    from prefect_claim_dispatch import engines

    engine = engines.create(sqlite_url)
    yield engine
    engine.dispose()


def dispatched(engine: Engine, registry: Registry) -> tuple[int, str]:
    """One row, and the run that was created for it."""
    id_ = add(engine, TYPE, payload={"secret": "of the payload"})
    assert look(engine, registry).dispatched == 1
    row = operations.get(engine, id_)
    assert row.run_id is not None
    return id_, row.run_id


def test_row_becomes_one_run_that_holds_its_claim(engine: Engine, registry: Registry, deployed: Deployed) -> None:
    """The claim flow that made it may end; nothing of the payload is with Prefect."""
    id_, run_id = dispatched(engine, registry)

    row, (run,) = operations.get(engine, id_), deployed.runs()
    assert (row.status, run["id"]) == ("claimed", run_id)
    assert re.fullmatch(f"{ELSEWHERE}flow@[0-9a-f]{{12}}", str(row.claimed_by))
    assert run["name"] == f"{TYPE} #{id_} (attempt 1)"
    assert run["parameters"]["action"] == {
        "table": "action_logs",
        "id": id_,
        "claim_count": 1,
        "max_attempts": 2,
        "backoff_seconds": 0.0,
        "backoff_max_seconds": 3600.0,
    }
    assert "secret" not in json.dumps(run)
    assert row.lease_expires_at is not None
    assert timedelta(minutes=14) < row.lease_expires_at - row.updated_at <= timedelta(minutes=15)


# How the run ends; the status, the failures and the kinds of error that its row has then.
ENDS: dict[str, tuple[str, int, list[str]]] = {
    "COMPLETED": ("processed", 0, []),
    "FAILED": ("claimed", 1, ["failed"]),  # retried at once, as its policy has no back-off
    "CRASHED": ("claimed", 1, ["crashed"]),
    "CANCELLED": ("cancelled", 0, ["cancelled"]),
}


def test_end_of_the_run_settles_its_row(engine: Engine, registry: Registry, deployed: Deployed) -> None:
    """By any claim flow, long after the one that created it."""
    ids = {state: add(engine, TYPE) for state in ENDS}
    look(engine, registry)
    for state, id_ in ids.items():
        deployed.set_state(operations.get(engine, id_).run_id, state, message="so it ended")

    report = look(engine, registry)

    assert (report.processed, report.retrying, report.cancelled, report.dispatched) == (1, 2, 1, 2)
    for state, (status, fail_count, kinds) in ENDS.items():
        row = operations.get(engine, ids[state])
        assert (row.status, row.fail_count, [error["kind"] for error in row.errors]) == (status, fail_count, kinds)
        assert all("so it ended" in error["message"] for error in row.errors)
    assert len(deployed.runs()) == 6


def test_row_is_settled_though_its_processor_is_gone(engine: Engine, registry: Registry, deployed: Deployed) -> None:
    """A flow without a deployment processor asks for nothing, until a lease is over that rescue has left alone."""
    id_, run_id = dispatched(engine, registry)
    deployed.set_state(run_id, "COMPLETED")
    assert look(engine, Registry()).processed == 0
    expire_leases(engine, id_)

    assert look(engine, Registry()).processed == 1


def test_failures_end_in_dead(engine: Engine, registry: Registry, deployed: Deployed) -> None:
    """`max_attempts` is the row's, over all its runs: two here."""
    id_, first = dispatched(engine, registry)
    deployed.set_state(first, "FAILED")
    look(engine, registry)
    second = operations.get(engine, id_).run_id
    deployed.set_state(second, "FAILED")
    look(engine, registry)

    row = operations.get(engine, id_)
    assert (row.status, row.fail_count, row.claim_count) == ("dead", 2, 2)
    assert [run["id"] for run in deployed.runs()] == [first, second]


def test_deleted_run_is_retried(engine: Engine, registry: Registry, deployed: Deployed) -> None:
    """Somebody tidied up in the UI; the row must not wait for that run for ever."""
    id_, run_id = dispatched(engine, registry)
    deployed.server.delete(f"flow_runs/{run_id}")

    look(engine, registry)

    row = operations.get(engine, id_)
    assert (row.status, row.claim_count, row.fail_count) == ("claimed", 2, 1)
    assert [error["type"] for error in row.errors] == ["RunCrashed"]
    assert [run["id"] for run in deployed.runs()] == [row.run_id]


def claimed_through_another_server(engine: Engine, id_: int) -> None:
    """As if the claim flow that claimed it had been on another Prefect server than the one which is asked here."""
    holder, _, _ = str(operations.get(engine, id_).claimed_by).rpartition("@")
    change(engine, id_, claimed_by=f"{holder}@{'0' * 12}")


@pytest.mark.parametrize("is_begun", [False, True], ids=["waiting", "begun, its lease over"])
@pytest.mark.parametrize("is_registered", [True, False], ids=["", "processor is gone"])
def test_run_of_another_prefect_server_is_not_taken_for_deleted(
    engine: Engine, registry: Registry, deployed: Deployed, caplog: Any, *, is_begun: bool, is_registered: bool
) -> None:
    """A claim flow on a laptop, with the staging server's address, must settle nothing of production's; it says so."""
    ids = add_many(engine, [{"type": TYPE}] * 2)
    look(engine, registry)
    for id_ in ids:
        run_id = operations.get(engine, id_).run_id
        if is_begun:
            outstanding.take(engine, TABLE, (id_, 1), run_id, lease=timedelta(minutes=1))
        claimed_through_another_server(engine, id_)
        deployed.server.delete(f"flow_runs/{run_id}")
    expire_leases(engine, *ids)
    before = [operations.get(engine, id_) for id_ in ids]

    assert look(engine, registry if is_registered else Registry()).is_empty

    assert [operations.get(engine, id_) for id_ in ids] == before
    assert caplog.text.count("claimed through another Prefect server (000000000000)") == 1


def test_claim_of_another_prefect_server_without_a_run_gets_none_here(
    engine: Engine, registry: Registry, deployed: Deployed, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Its claim flow died around the creation; the run may be there, and here it would be a second."""
    id_ = killed_at(engine, registry, monkeypatch, "before the creation")
    claimed_through_another_server(engine, id_)
    expire_leases(engine, id_)
    change(engine, id_, claimed_at=seconds_from_now(-3600))

    for known in (registry, Registry()):
        assert look(engine, known).is_empty

    assert (operations.get(engine, id_).status, deployed.runs()) == ("claimed", [])
    assert "claimed through another Prefect server" in caplog.text


def test_claim_that_names_no_server_is_judged_by_whoever_looks(
    engine: Engine, registry: Registry, deployed: Deployed
) -> None:
    """Claimed by an older version, just before the upgrade: it must not wait for ever."""
    id_, run_id = dispatched(engine, registry)
    change(engine, id_, claimed_by=f"{ELSEWHERE}flow")
    deployed.server.delete(f"flow_runs/{run_id}")

    assert look(engine, registry).retrying == 1


def full(prefect_api: PrefectServer, engine: Engine) -> tuple[Registry, Deployed, int, str]:
    """A deployment that cancels new runs and has its one slot taken; a row whose run is created now, and that run."""
    limit = {"concurrency_limit": 1, "concurrency_options": {"collision_strategy": "CANCEL_NEW"}}
    deployed, registry = Deployed(prefect_api, **limit), Registry()
    deployment_processor(TYPE, deployment=deployed.name, registry=registry)
    _, first = dispatched(engine, registry)
    assert deployed.propose(first, "PENDING") == "Pending"
    return registry, deployed, *dispatched(engine, registry)


def test_run_that_its_full_deployment_cancels_is_tried_again_later(prefect_api: PrefectServer, engine: Engine) -> None:
    """CANCEL_NEW is Prefect's own doing: it costs no attempt, ends no action, and is tried ever more rarely."""
    registry, deployed, id_, run_id = full(prefect_api, engine)
    assert deployed.propose(run_id, "PENDING") == "Cancelled"

    assert look(engine, registry).snoozed == 1

    row = operations.get(engine, id_)
    assert (row.status, row.fail_count) == ("pending", 0)
    assert [(note["kind"], note["times"]) for note in row.errors] == [("snoozed", 1)]  # why it waits
    assert timedelta(seconds=14) < row.end_at - row.updated_at < timedelta(seconds=16)
    change(engine, id_, end_at=seconds_from_now(-1))
    look(engine, registry)
    deployed.propose(operations.get(engine, id_).run_id, "PENDING")
    look(engine, registry)
    row = operations.get(engine, id_)
    assert (row.status, row.claim_count) == ("pending", 2)
    assert timedelta(seconds=29) < row.end_at - row.updated_at < timedelta(seconds=31)


def test_person_who_cancels_a_waiting_run_cancels_its_action(prefect_api: PrefectServer, engine: Engine) -> None:
    """Of the same deployment, never begun either: told apart by the words with which Prefect refuses."""
    registry, deployed, id_, run_id = full(prefect_api, engine)
    assert deployed.propose(run_id, "CANCELLING") == "Cancelled"

    assert look(engine, registry).cancelled == 1

    assert operations.get(engine, id_).status == "cancelled"


def test_run_that_begins_while_it_is_withdrawn_is_not_given_to_another(
    engine: Engine, registry: Registry, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the cancel: Withdrawn, and begun all the same; a second run would work beside it."""
    id_, run_id = dispatched(engine, registry)
    change(engine, id_, claimed_at=seconds_from_now(-601))
    cancel = SyncPrefectClient.set_flow_run_state

    def begin_first(client: SyncPrefectClient, *arguments: Any, **more: Any) -> Any:
        assert deployed.propose(run_id, "PENDING") == "Pending"
        assert deployed.propose(run_id, "RUNNING") == "Running"
        return cancel(client, *arguments, **more)

    monkeypatch.setattr(SyncPrefectClient, "set_flow_run_state", begin_first)

    assert look(engine, registry).released == 0

    row, (run,) = operations.get(engine, id_), deployed.runs()
    assert (run["state_name"], run["run_count"]) == ("Withdrawn", 1)
    assert (row.status, row.claim_count, row.run_id) == ("claimed", 1, run_id)


def test_running_run_keeps_its_row_and_lease(engine: Engine, registry: Registry, deployed: Deployed) -> None:
    """Hours, if need be: renewed at every look, also after an outage that was longer than the lease."""
    id_, run_id = dispatched(engine, registry)
    deployed.set_state(run_id, "RUNNING")
    change(engine, id_, claimed_at=seconds_from_now(-7200), lease_expires_at=seconds_from_now(-60))

    report = look(engine, registry)

    row = operations.get(engine, id_)
    assert (row.status, row.claim_count, row.run_id, report.rescued) == ("claimed", 1, run_id, 0)
    assert row.lease_expires_at is not None
    assert row.lease_expires_at - row.updated_at > timedelta(minutes=14)
    assert len(deployed.runs()) == 1


def test_without_prefect_nothing_is_settled_and_nothing_is_lost(
    engine: Engine, registry: Registry, deployed: Deployed
) -> None:
    """The lease runs out meanwhile; a second run of the action, by lease alone, could run beside the first."""
    id_, run_id = dispatched(engine, registry)
    expire_leases(engine, id_)

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(PrefectUnavailableError):
        look(engine, registry)

    assert operations.get(engine, id_).status == "claimed"
    deployed.set_state(run_id, "COMPLETED")
    assert look(engine, registry).processed == 1
    assert len(deployed.runs()) == 1


def test_lost_reply_to_a_creation_makes_exactly_one_run(
    engine: Engine, registry: Registry, deployed: Deployed, prefect_api: PrefectServer
) -> None:
    """The server made the runs and nobody heard of it. The key, of table, row and claim, finds them again."""
    ids = add_many(engine, [{"type": TYPE}] * 5)
    port = int(prefect_api.api_url.split(":")[2].partition("/")[0])
    with Proxy(("127.0.0.1", port)) as proxy:
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{proxy.port}/api"}):
            proxy.cut_after(b"create_flow_run/bulk")
            report = look(engine, registry)
        lost = proxy.lost_answers

    assert (lost, report.dispatched) == (1, 5)
    assert {operations.get(engine, id_).run_id for id_ in ids} == {run["id"] for run in deployed.runs()}
    assert len(deployed.runs()) == 5


def killed_at(engine: Engine, registry: Registry, monkeypatch: pytest.MonkeyPatch, moment: str) -> int:
    """A row whose claim flow died at that moment of its dispatch."""
    id_ = add(engine, TYPE)

    def die(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "before the creation":
            patch.setattr(creating.Creator, "create", die)
        else:
            patch.setattr(creating.Creator, "_follow", die)
        with pytest.raises(KeyboardInterrupt):
            look(engine, registry)
    row = operations.get(engine, id_)
    assert (row.status, row.run_id) == ("claimed", None)
    return id_


@pytest.mark.parametrize("moment", ["before the creation", "after the creation"])
def test_claim_whose_flow_died_around_the_creation_gets_its_one_run(
    engine: Engine, registry: Registry, deployed: Deployed, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Nobody knows whether the run exists: found or created by the same key, it is one, and of the same claim."""
    id_ = killed_at(engine, registry, monkeypatch, moment)
    assert look(engine, registry).dispatched == 0, "its flow may be at work on it this very moment"
    change(engine, id_, claimed_at=seconds_from_now(-60))

    assert look(engine, registry).dispatched == 1

    row, (run,) = operations.get(engine, id_), deployed.runs()
    assert (row.run_id, row.claim_count, row.fail_count) == (run["id"], 1, 0)


def test_claim_without_a_run_goes_back_where_its_processor_is_gone(
    engine: Engine, registry: Registry, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Undeployed in between: it never began, so it costs no attempt."""
    id_ = killed_at(engine, registry, monkeypatch, "before the creation")
    expire_leases(engine, id_)

    assert look(engine, Registry()).released == 1

    row = operations.get(engine, id_)
    assert (row.status, row.fail_count, deployed.runs()) == ("pending", 0, [])


def test_flow_that_died_between_reading_and_settling_changed_nothing(
    engine: Engine, registry: Registry, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next look reads the same state again."""
    id_, run_id = dispatched(engine, registry)
    deployed.set_state(run_id, "COMPLETED")

    def die(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reconciling.Reconciler, "_settle", die)
        with pytest.raises(KeyboardInterrupt):
            look(engine, registry)

    assert operations.get(engine, id_).status == "claimed"
    assert look(engine, registry).processed == 1


def test_two_flows_that_look_at_once_settle_a_row_once(
    engine: Engine, registry: Registry, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read Failed; the second's verdict meets a fence that does not hold, or it would count twice."""
    id_, run_id = dispatched(engine, registry)
    deployed.set_state(run_id, "FAILED")
    settle = reconciling.Reconciler._settle
    others: list[int] = []

    def look_in_between(reconciler: reconciling.Reconciler, outcomes: Any) -> int:
        monkeypatch.setattr(reconciling.Reconciler, "_settle", settle)
        others.append(look(engine, registry).retrying)
        return settle(reconciler, outcomes)

    monkeypatch.setattr(reconciling.Reconciler, "_settle", look_in_between)
    report = look(engine, registry)

    assert (others, report.retrying) == ([1], 0)
    row = operations.get(engine, id_)
    assert (row.fail_count, row.claim_count, len(deployed.runs())) == (1, 2, 2)


def begin_late(reference: dict[str, Any], engine: Engine) -> list[str]:
    """What the deployed flow does when a worker picks it up after all; the effects that it had."""
    with claimed_action(reference, bind=engine):
        return ["begun"]


def test_run_that_waited_past_its_lease_never_runs_beside_another(
    engine: Engine, registry: Registry, deployed: Deployed
) -> None:
    """No worker: the run waits with its row, lease or no lease; past its limit it is withdrawn first."""
    id_, first = dispatched(engine, registry)
    expire_leases(engine, id_)

    look(engine, registry)

    row = operations.get(engine, id_)
    assert (row.status, row.run_id, row.claim_count) == ("claimed", first, 1)  # within its limit it waits on
    change(engine, id_, claimed_at=seconds_from_now(-601))
    report = look(engine, registry)

    row = operations.get(engine, id_)
    old, new = deployed.runs()
    assert (report.released, row.fail_count, row.claim_count, row.run_id) == (1, 0, 2, new["id"])
    assert (old["id"], old["state_type"], old["state_name"]) == (first, "CANCELLED", "Withdrawn")
    with pytest.raises(ClaimLostError, match=f"claim 1 on action #{id_} .* nothing was begun"):
        begin_late(old["parameters"]["action"], engine)
    assert begin_late(new["parameters"]["action"], engine) == ["begun"]
    assert operations.get(engine, id_).status == "processed"


def test_late_start_of_a_run_fails_it_and_counts_for_nothing(
    engine: Engine, registry: Registry, deployed: Deployed
) -> None:
    """Prefect lets a withdrawn run begin that a worker had picked up: it is Failed, and says why."""
    id_, run_id = dispatched(engine, registry)
    change(engine, id_, claimed_at=seconds_from_now(-601))
    look(engine, registry)

    @flow(name="late")
    def late(action: dict[str, Any]) -> None:
        with claimed_action(action, bind=engine):
            pytest.fail("it began")

    deployed.execute(late, run_id)

    old, new = deployed.runs()
    assert (old["id"], old["state_type"], new["state_type"]) == (run_id, "FAILED", "SCHEDULED")
    assert "nothing was begun" in old["state"]["message"]
    look(engine, registry)
    assert (operations.get(engine, id_).fail_count, operations.get(engine, id_).run_id) == (0, new["id"])


def test_withdrawal_that_was_not_written_down_is_finished(
    engine: Engine, registry: Registry, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between cancel and release: the state's name tells our cancel from a person's, which would end the row."""
    id_, _ = dispatched(engine, registry)
    change(engine, id_, claimed_at=seconds_from_now(-601))

    def die(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reconciling.Reconciler, "_settle", die)
        with pytest.raises(KeyboardInterrupt):
            look(engine, registry)
    assert deployed.runs()[0]["state_name"] == "Withdrawn"

    assert look(engine, registry).released == 1

    assert operations.get(engine, id_).status == "claimed"  # by the next claim


def test_run_that_began_in_time_is_not_withdrawn(engine: Engine, registry: Registry, deployed: Deployed) -> None:
    """What has begun is alive, however long ago it was claimed."""
    id_, run_id = dispatched(engine, registry)
    deployed.set_state(run_id, "RUNNING")
    deployed.set_state(run_id, "PENDING")
    change(engine, id_, claimed_at=seconds_from_now(-601))

    look(engine, registry)

    assert (operations.get(engine, id_).run_id, deployed.runs()[0]["state_type"]) == (run_id, "PENDING")


def test_run_that_stopped_renewing_its_own_lease_is_called_crashed(
    engine: Engine, registry: Registry, deployed: Deployed
) -> None:
    """Killed with its worker, it stays Running in Prefect for ever; its lease knows better."""
    id_, run_id = dispatched(engine, registry)
    outstanding.take(engine, TABLE, (id_, 1), run_id, lease=timedelta(minutes=1))
    deployed.set_state(run_id, "RUNNING")
    look(engine, registry)
    assert operations.get(engine, id_).claim_count == 1
    expire_leases(engine, id_)

    look(engine, registry)

    row = operations.get(engine, id_)
    assert (row.claim_count, row.fail_count, row.errors[0]["kind"]) == (2, 1, "crashed")
    assert deployed.runs()[0]["state_type"] == "CRASHED"


def test_misspelt_deployment_burns_no_row(engine: Engine, prefect_api: PrefectServer, caplog: Any) -> None:
    """As if nobody had registered the type: never claimed, told once."""
    registry = Registry()
    deployment_processor(TYPE, deployment="encode/prd", registry=registry)
    id_ = add(engine, TYPE)

    report = look(engine, registry)

    row = operations.get(engine, id_)
    assert (row.status, row.claim_count, report.claimed) == ("pending", 0, 0)
    assert "no deployment is called 'encode/prd'" in caplog.text


def test_deployment_that_was_deleted_since_gives_its_rows_back(
    engine: Engine, registry: Registry, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the question and the creation: at no attempt."""
    ids = add_many(engine, [{"type": TYPE}] * 3)
    create = creating.Creator.create

    def delete_first(creator: creating.Creator, raws: Any) -> None:
        deployed.server.delete(f"deployments/{deployed.id}")
        create(creator, raws)

    monkeypatch.setattr(creating.Creator, "create", delete_first)
    report = look(engine, registry)

    assert (report.claimed, report.released, report.dispatched) == (3, 3, 0)
    assert {operations.get(engine, id_).fail_count for id_ in ids} == {0}
    assert by_status(engine) == {"pending": 3}


# How an author's function goes wrong; the error that the row gets, and what is in it.
PARAMETERS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "raises": (lambda action: action.payload["nothing"], "KeyError", "nothing"),
    "is no mapping": (lambda _: [1], "InvalidParameters", "got list"),
    "has no text for a key": (lambda _: {1: 2}, "InvalidParameters", "what parameters returns"),
    "is no JSON": (lambda _: {"video": object()}, "InvalidParameters", "what parameters returns"),
    "is refused by the schema": (lambda _: {"video": "x"}, "RunRefused", "is not of type 'integer'"),
    "is unknown to the flow": (lambda _: {"video": 1, "other": 1}, "RunRefused", "other"),
}


def test_parameters_that_no_run_can_have_fail_their_row_alone(engine: Engine, prefect_api: PrefectServer) -> None:
    """The good row of the same call gets its run."""
    schema = schema_of(video="integer", action="object") | {"additionalProperties": False}
    deployed, registry = Deployed(prefect_api, schema=schema), Registry()
    ids = {case: add(engine, TYPE, payload={"case": case}) for case in [*PARAMETERS, "good"]}

    def parameters(action: Action) -> Any:
        return PARAMETERS[case][0](action) if (case := action.payload["case"]) != "good" else {"video": 7}

    hour = timedelta(hours=1)
    deployment_processor(TYPE, deployment=deployed.name, parameters=parameters, registry=registry, backoff=hour)
    look(engine, registry)

    rows, (run,) = {case: operations.get(engine, id_) for case, id_ in ids.items()}, deployed.runs()
    assert (rows["good"].run_id, run["parameters"]["video"]) == (run["id"], 7)
    assert run["parameters"]["action"]["id"] == ids["good"]
    for case, (_, error_type, message) in PARAMETERS.items():
        assert (rows[case].status, rows[case].fail_count) == ("pending", 1), case
        assert rows[case].errors[0]["type"] == error_type, case
        assert message in rows[case].errors[0]["message"], case


@pytest.mark.exhaustive
def test_thousand_rows_become_a_thousand_runs_and_end(engine: Engine, registry: Registry, deployed: Deployed) -> None:
    """In bulk, 100 a call, and read back 200 a page; each run is of one row, and each row has the end of its run."""
    ids = add_many(engine, [{"type": TYPE}] * 1_000)

    reports = [look(engine, registry) for _ in range(10)]

    assert [report.dispatched for report in reports] == [100] * 10
    runs = {run["id"] for run in deployed.runs()}
    assert len(runs) == 1_000
    assert {row.run_id for row in operations.find(engine, limit=None)} == runs
    cancelled, *completed = (str(operations.get(engine, id_).run_id) for id_ in ids)
    deployed.set_state(cancelled, "CANCELLED")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda run_id: deployed.set_state(run_id, "COMPLETED"), completed))
    while look(engine, registry).processed:
        pass
    assert by_status(engine) == {"processed": 999, "cancelled": 1}
    assert operations.get(engine, ids[0]).status == "cancelled"
    assert len(deployed.runs()) == 1_000


def test_no_more_runs_than_the_limit_at_a_time(engine: Engine, deployed: Deployed) -> None:
    """Whichever flow looks: the next run is created when one has ended and its row is settled."""
    registry = Registry()
    deployment_processor(TYPE, deployment=deployed.name, registry=registry, max_running=2)
    add_many(engine, [{"type": TYPE}] * 5)

    created = [look(engine, registry).dispatched for _ in range(3)]
    assert created == [2, 0, 0]
    for number in range(5):
        assert by_status(engine)["claimed"] <= 2
        *_, oldest = operations.find(engine, status="claimed")
        deployed.set_state(oldest.run_id, "COMPLETED" if number else "FAILED")
        look(engine, registry)

    assert by_status(engine) == {"claimed": 1, "processed": 4}
    assert len(deployed.runs()) == 6


def test_server_without_bulk_creation_gets_them_one_by_one(
    engine: Engine, registry: Registry, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older server answers 404, as it does for a deployment that is gone."""
    from prefect_claim_dispatch.dispatching import flow_runs

    monkeypatch.setattr(flow_runs, "BULK", "/deployments/{id}/create_flow_run/in_no_version")
    add_many(engine, [{"type": TYPE}] * 2)

    assert look(engine, registry).dispatched == 2

    assert len(deployed.runs()) == 2


def test_table_made_anew_is_not_given_the_runs_of_the_old(
    engine: Engine, registry: Registry, deployed: Deployed
) -> None:
    """Its ids begin at 1 again, and its claims too; an old run, Completed, would pass for work that was never done."""
    id_, first = dispatched(engine, registry)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM action_logs")
        connection.exec_driver_sql("DELETE FROM sqlite_sequence")

    again, second = dispatched(engine, registry)

    assert (again, second != first) == (id_, True)


def test_ordering_key_waits_for_the_run(engine: Engine, registry: Registry, deployed: Deployed) -> None:
    """The claim lasts as long as the run, so the next of its key does not begin beside it."""
    first, second = add_many(engine, [{"type": TYPE, "ordering_key": "k"}] * 2)
    look(engine, registry)
    look(engine, registry)
    assert operations.get(engine, second).status == "pending"
    deployed.set_state(operations.get(engine, first).run_id, "COMPLETED")

    look(engine, registry)

    assert operations.get(engine, second).run_id is not None


def test_slow_parameters_of_one_type_hold_up_no_others_runs(
    engine: Engine, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do those that never answer: their row is charged, and what waits behind it goes back at no attempt."""
    monkeypatch.setattr(creating, "ASKED_AT_ONCE", timedelta(0))
    registry, answer = Registry(), threading.Event()

    def slowly(_action: Action) -> dict[str, Any]:
        assert answer.wait(60), "the test forgot to answer"
        return {}

    deployment_processor("slow", deployment=deployed.name, parameters=slowly, registry=registry)
    deployment_processor("other", deployment=deployed.name, registry=registry)
    slow = add_many(engine, [{"type": "slow"}, {"type": "slow"}])
    other = add(engine, "other")
    lane, lanes = lane_of(engine, registry), claiming.survey(engine, TABLE).due()

    claimed = lane.claim(lanes)
    wait_until(lambda: lane.go_on() or operations.get(engine, other).run_id, description="the other has its run")
    again = lane.claim(lanes)
    monkeypatch.setattr(creating, "GIVEN_UP_AFTER", timedelta(0))
    lane.go_on()

    assert (claimed, again, lane.is_asking) == (3, 0, False)
    rows = [operations.get(engine, id_) for id_ in slow]
    assert [(row.status, row.fail_count) for row in rows] == [("pending", 1), ("pending", 0)]
    assert rows[0].errors[-1]["type"] == "TimeoutError"

    monkeypatch.undo()
    answer.set()
    change(engine, *slow, end_at=seconds_from_now(-1))
    lane.claim(claiming.survey(engine, TABLE).due())
    wait_until(lambda: is_created(lane), description="the guard is done")
    assert all(operations.get(engine, id_).run_id for id_ in slow)
