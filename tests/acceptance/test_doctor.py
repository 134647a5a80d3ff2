"""What ``doctor`` says of Prefect, asked of a real server: whether anything will run the claim flow, and when."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_claim_dispatch.diagnosing.findings import Finding, Level
from prefect_claim_dispatch.diagnosing.prefects import FLOW, examine_prefect
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


def troubles(*deployments: str) -> list[tuple[Level, str]]:
    """What there is to do about these."""
    return [(finding.level, finding.what) for finding in examine_prefect(deployments) if finding.remedy]


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


def test_deployment_that_is_not_there_is_an_error(prefect_api: PrefectServer) -> None:
    """A typing error must not read as health."""
    assert troubles("claim-dispatch/nowhere") == [(Level.ERROR, "no deployment is called claim-dispatch/nowhere")]


def test_api_that_is_away_is_an_error() -> None:
    """On a port where nothing listens."""
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        ((level, what),) = troubles()

    assert level == Level.ERROR
    assert "can't be reached" in what
