"""What ``doctor`` says of Prefect, asked of a real server: whether anything will run the claim flow, and when."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_claim_dispatch import deployment_processor
from prefect_claim_dispatch.diagnosing.facts import HoldingFacts
from prefect_claim_dispatch.diagnosing.findings import Finding, Level
from prefect_claim_dispatch.diagnosing.prefects import FLOW, examine_deployments, examine_prefect
from prefect_claim_dispatch.dispatching.labelling import TABLE_LABEL
from prefect_claim_dispatch.processors import Registry
from tests.kit.prefect_server import PrefectServer
from tests.kit.processes import free_port

DAILY = [{"schedule": {"interval": 86_400}, "active": True}]
Deploy = Callable[..., str]


@pytest.fixture
def api(prefect_api: PrefectServer) -> Iterator[httpx.Client]:
    """The API itself, by which deployments and pools are made as Prefect's own commands make them."""
    with httpx.Client(base_url=prefect_api.api_url, timeout=30) as client:
        yield client


@pytest.fixture
def deploy(api: httpx.Client) -> Iterator[Deploy]:
    """Make a deployment with a pool of its own, scheduled and with a worker online unless said otherwise; its name.

    Nothing ever runs it: the worker is a heartbeat and no more.
    """
    made: list[str] = []

    def make(*, flow: str = "doctored", pool_type: str = "process", is_worked: bool = True, **facts: Any) -> str:
        name = f"doctor-{os.urandom(4).hex()}"
        flow_id = api.post("/flows/", json={"name": flow}).json()["id"]
        api.post("/work_pools/", json={"name": name, "type": pool_type}).raise_for_status()
        if is_worked:
            api.post(f"/work_pools/{name}/workers/heartbeat", json={"name": "one"}).raise_for_status()
        body = {"name": name, "flow_id": flow_id, "work_pool_name": name, "schedules": DAILY, **facts}
        made.append(api.post("/deployments/", json=body).raise_for_status().json()["id"])
        return f"{flow}/{name}"

    yield make
    for id_ in made:
        api.delete(f"/deployments/{id_}")


def findings(*deployments: str, held: HoldingFacts | None = None) -> list[Finding]:
    """What there is to do about these; no run is given any time beyond its stay."""
    return [found for found in examine_prefect(deployments, held, timedelta(0)) if found.remedy]


def troubles(*deployments: str, held: HoldingFacts | None = None) -> list[tuple[Level, str]]:
    """How bad it is, and what."""
    return [(found.level, found.what) for found in findings(*deployments, held=held)]


class Runs:
    """The runs of a deployment, made and changed by the API as its worker, Prefect itself, or a person would."""

    def __init__(self, api: httpx.Client, name: str) -> None:
        self.api = api
        self.deployment: str = api.get(f"/deployments/name/{name}").json()["id"]

    def make(self, *states: str, message: str = "", **more: Any) -> str:
        """A run that went through *states*, unless Prefect refused one; its id."""
        url, body = f"/deployments/{self.deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}, **more}
        id_ = str(self.api.post(url, json=body).raise_for_status().json()["id"])
        for type_ in states:
            state = {"type": type_, "message": message}
            self.api.post(f"/flow_runs/{id_}/set_state", json={"state": state}).raise_for_status()
        return id_

    def name(self, id_: str) -> str:
        return str(self.api.get(f"/flow_runs/{id_}").json()["name"])

    def label(self, id_: str, table: str) -> None:
        self.api.patch(f"/flow_runs/{id_}/labels", json={TABLE_LABEL: table}).raise_for_status()


def by_level(found: list[Finding], level: Level) -> list[str]:
    return [finding.what for finding in found if finding.level == level]


def test_scheduled_deployment_with_a_worker_is_healthy(deploy: Deploy) -> None:
    """And the version of the server is told."""
    name = deploy()

    found = examine_prefect([name])

    api_answers, scheduled = by_level(found, Level.OK)
    assert len(found) == 2
    assert "the API answers, version 3." in api_answers
    assert scheduled.startswith(f"deployment {name}: scheduled, pool")


def test_deployments_of_the_claim_flow_are_found_by_its_name(deploy: Deploy) -> None:
    """Nobody has to say which; there may be more than one."""
    name = deploy(flow=FLOW)

    assert any(name in finding.what for finding in examine_prefect())


def test_paused_deployment_is_named(deploy: Deploy) -> None:
    """Somebody meant it, and has perhaps forgotten it."""
    name = deploy(paused=True)

    assert troubles(name) == [(Level.WARNING, f"deployment {name} is paused")]


def test_deployment_without_an_active_schedule_is_named(deploy: Deploy) -> None:
    """It may be triggered by something else, so it is no error."""
    name = deploy(schedules=[{**DAILY[0], "active": False}])

    assert troubles(name) == [
        (Level.WARNING, f"deployment {name} has no active schedule; it runs only when it is triggered")
    ]


def test_pool_without_a_worker_is_an_error(deploy: Deploy) -> None:
    """Runs are scheduled, become late, and nobody starts them."""
    name = deploy(is_worked=False)

    assert troubles(name) == [
        (Level.ERROR, f"no worker of pool {name.partition('/')[2]} is online, so deployment {name} does not run")
    ]


def test_paused_pool_is_named(deploy: Deploy, api: httpx.Client) -> None:
    """The deployment looks well."""
    name = deploy()
    pool = name.partition("/")[2]
    api.patch(f"/work_pools/{pool}", json={"is_paused": True}).raise_for_status()

    assert troubles(name) == [(Level.WARNING, f"work pool {pool} is paused")]


def test_late_runs_are_counted(deploy: Deploy, api: httpx.Client) -> None:
    """More than its workers or its limits let through."""
    name = deploy()
    deployment = api.get(f"/deployments/name/{name}").json()["id"]
    at = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    state = {"type": "SCHEDULED", "name": "Late", "state_details": {"scheduled_time": at}}
    api.post(f"/deployments/{deployment}/create_flow_run", json={"state": state}).raise_for_status()

    assert troubles(name) == [(Level.WARNING, f"deployment {name} has late runs: 1")]


def test_deployment_that_nobody_serves_is_an_error(deploy: Deploy) -> None:
    """`flow.serve()` has no pool; whether its process polls is what the server knows of it."""
    name = deploy(work_pool_name=None)

    assert troubles(name) == [(Level.ERROR, f"nobody serves deployment {name}")]


@pytest.mark.parametrize("end", ["FAILED", "CRASHED", "CANCELLED"])
def test_runs_that_all_end_badly_are_an_error(deploy: Deploy, api: httpx.Client, end: str) -> None:
    """Scheduled and worked, and nothing is ever claimed: why is in the message of the last."""
    name = deploy()
    runs = Runs(api, name)
    for number in range(3):
        assert [level for level, _ in troubles(name)] == [Level.WARNING] * (number > 0)
        last = runs.make("PENDING", "RUNNING", end, message=f"of postgresql://me:hunter2@host/db, {number}\nand more")

    (found,) = findings(name)
    assert (found.level, found.remedy) == (Level.ERROR, f"see: prefect flow-run logs {last}")
    states = f"{end.capitalize()}; the last: of postgresql://***@host/db, 2"
    assert found.what == f"deployment {name}: its latest runs, 3, ended {states}"
    runs.make("PENDING", "RUNNING", "COMPLETED")
    assert troubles(name) == []


FULL = {"concurrency_limit": 2, "concurrency_options": {"collision_strategy": "CANCEL_NEW"}}


def test_dead_runs_that_hold_all_slots_are_an_error_and_named(deploy: Deploy, api: httpx.Client) -> None:
    """The host went down, its runs say Running for ever, and Prefect cancels each new one; what works is told apart."""
    name = deploy(**FULL)
    runs = Runs(api, name)
    dead, working = (runs.make("PENDING", "RUNNING") for _ in range(2))
    refused = [runs.make("PENDING") for _ in range(3)]
    assert {api.get(f"/flow_runs/{id_}").json()["state_name"] for id_ in refused} == {"Cancelled"}

    (found,) = findings(name, held=HoldingFacts(identity="t", holders=frozenset({working})))
    assert found.level == Level.ERROR
    assert f"runs that nobody works on any more: {runs.name(dead)} (Running for" in found.what
    assert "; they hold slots that new runs wait for" in found.what
    assert f"prefect flow-run delete {dead};" in found.remedy
    assert working not in found.remedy
    assert troubles(name, held=HoldingFacts(identity="t", holders=frozenset({dead, working}))) == []
    assert troubles(name, held=None) == []  # who holds what is not known
    api.delete(f"/flow_runs/{dead}").raise_for_status()
    assert troubles(name, held=HoldingFacts(identity="t", holders=frozenset({working}))) == []
    assert api.get(f"/flow_runs/{runs.make('PENDING')}").json()["state_name"] == "Pending"


def test_slots_that_no_run_holds_are_an_error(deploy: Deploy, api: httpx.Client) -> None:
    """A restart of the server loses their leases, so that nobody gives them back."""
    name = deploy(**FULL)
    limit = f"deployment:{Runs(api, name).deployment}"
    api.patch(f"/v2/concurrency_limits/{limit}", json={"active_slots": 1}).raise_for_status()
    assert [found.level for found in findings(name)] == [Level.WARNING]
    api.patch(f"/v2/concurrency_limits/{limit}", json={"active_slots": 2}).raise_for_status()

    (found,) = findings(name)
    assert (found.level, found.what) == (
        Level.ERROR,
        f"deployment {name}: 2 of its 2 slots are taken, and 0 of its runs live",
    )
    assert f"prefect global-concurrency-limit update {limit} --active-slots 0" in found.remedy


def test_dead_run_that_holds_no_slot_is_a_warning(deploy: Deploy, api: httpx.Client) -> None:
    """Without a limit it is in nobody's way; and one that stays, by its own parameters, is not dead yet."""
    name = deploy(parameters={"stay": "PT1H"}, enforce_parameter_schema=False)
    dead = Runs(api, name).make("PENDING", "RUNNING", parameters={"stay": 0})
    Runs(api, name).make("PENDING", "RUNNING")

    ((level, what),) = troubles(name, held=HoldingFacts(identity="t", holders=frozenset()))

    assert level == Level.WARNING
    assert f"nobody works on any more: {Runs(api, name).name(dead)} (Running for" in what
    assert "," not in what


def test_deployment_that_claims_from_another_table_is_an_error(deploy: Deploy, api: httpx.Client) -> None:
    """Its worker has another database in its environment: runs are Completed, and here everything waits."""
    name, here = deploy(), HoldingFacts(identity="here", holders=frozenset())
    runs = Runs(api, name)
    for table in ("there", "here", "there"):
        runs.label(last := runs.make("PENDING", "RUNNING", "COMPLETED"), table)

    assert troubles(name, held=here) == [
        (Level.ERROR, f"deployment {name} claims from another table than this one: run {runs.name(last)} did")
    ]
    runs.label(runs.make("PENDING", "RUNNING", "COMPLETED"), "here")
    assert troubles(name, held=here) == []


def test_template_that_was_left_in_a_deployment_is_named(deploy: Deploy) -> None:
    """Deployed without the variable, `prefect deploy` says nothing, and each run fails where the worker has none."""
    step = {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $CLAIM_DISPATCH_HOME }}"}}
    name = deploy(pull_steps=[step])

    ((level, what),) = troubles(name)

    assert (level, "was deployed without CLAIM_DISPATCH_HOME" in what) == (Level.WARNING, True)


MINUTELY = [{"schedule": {"interval": 60}, "active": True}]


def test_pool_too_small_for_runs_that_overlap_is_named(deploy: Deploy, api: httpx.Client) -> None:
    """The next run waits until the one at work has ended: a gap, in which nobody is there to be woken."""
    stays = {"parameters": {"stay": "PT75S"}, "enforce_parameter_schema": False, "schedules": MINUTELY}
    limited, pooled = deploy(**stays, concurrency_limit=1), deploy(**stays)
    pool = pooled.partition("/")[2]
    api.patch(f"/work_pools/{pool}", json={"concurrency_limit": 1}).raise_for_status()

    assert troubles(limited) == [
        (Level.WARNING, f"the concurrency limit of deployment {limited} is 1; {overlapping(limited)}")
    ]
    assert troubles(pooled) == [
        (Level.WARNING, f"work pool {pool}, or the queue in it, runs 1 at a time; {overlapping(pooled)}")
    ]
    api.patch(f"/work_pools/{pool}", json={"concurrency_limit": 2}).raise_for_status()
    assert troubles(pooled) == []


def overlapping(name: str) -> str:
    return f"runs of deployment {name} that overlap, since each stays 75 s: 2"


def test_deployments_that_processors_name_are_examined(deploy: Deploy) -> None:
    """A typing error in one is seen before its actions have waited for a day."""
    there, full, registry = deploy(), deploy(**FULL), Registry()
    for type_, name in {"a": there, "b": "no/such", "c": full}.items():
        deployment_processor(type_, deployment=name, parameters=lambda _: {}, registry=registry)
    assert examine_deployments(Registry()) == []

    found = examine_deployments(registry)

    assert [(one.level, one.what.partition(":")[0]) for one in found] == [
        (Level.ERROR, "processor 'b'"),
        (Level.WARNING, "processor 'c'"),
    ]
    assert "no deployment is called 'no/such'" in found[0].what
    assert "CANCEL_NEW" in found[1].what


def test_deployment_that_is_not_there_is_an_error(prefect_api: PrefectServer) -> None:
    """A typing error must not read as health."""
    assert troubles("claim-dispatch/nowhere") == [(Level.ERROR, "no deployment is called claim-dispatch/nowhere")]


def test_api_that_is_away_is_an_error() -> None:
    """On a port where nothing listens."""
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        ((level, what),) = troubles()

    assert level == Level.ERROR
    assert "can't be reached" in what
