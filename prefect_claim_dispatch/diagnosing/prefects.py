"""Asking Prefect's API for the deployments that run the claim flow. Here alone of `diagnosing`, Prefect is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from prefect_claim_dispatch.diagnosing.facts import DeploymentFacts
from prefect_claim_dispatch.diagnosing.findings import Finding, failure, fine, warning
from prefect_claim_dispatch.diagnosing.schedules import judge_deployments
from prefect_claim_dispatch.dispatching.reaching import impatient_client
from prefect_claim_dispatch.outcomes import redacted

FLOW: Final = "claim-dispatch"
MOST_LATE_RUNS: Final = 100
NONE_IS_SET: Final = (
    "no PREFECT_API_URL is set: a claim flow would start a server of its own, where no deployment is and nobody looks"
)


def examine_prefect(deployments: Sequence[str] = ()) -> list[Finding]:
    """Whether the API answers, and whether the claim flow will be run.

    *deployments*: names, ``flow/name``, of those that are meant; all of the flow ``claim-dispatch`` unless given.
    """
    if not PREFECT_API_URL.value():
        return [warning("prefect", NONE_IS_SET, "set PREFECT_API_URL, here and where the claim flow runs")]
    try:
        with impatient_client() as client:
            reached = fine("prefect", f"the API answers, version {client.api_version()}")
            named, missing = _named(client, deployments)
            judged = [] if deployments and not named else judge_deployments([_facts(client, one) for one in named])
            return [reached, *missing, *judged]
    except (httpx.HTTPError, RuntimeError) as error:
        reason = redacted(str(error).strip().split("\n")[0] or type(error).__name__, 200)
        what = f"the API can't be reached ({reason}); without it nothing is claimed"
        return [failure("prefect", what, "start the server, and check PREFECT_API_URL and PREFECT_API_AUTH_STRING")]


def examine_limits(names: Sequence[str]) -> list[Finding]:
    """Whether the global concurrency limits *names*, which processors ask for, exist; nothing where there are none."""
    if not names or not PREFECT_API_URL.value():
        return []
    try:
        with impatient_client() as client:
            findings = [finding for name in names for finding in _examine_limit(client, name)]
    except (httpx.HTTPError, RuntimeError):
        return []  # told by `examine_prefect`
    return findings or [fine("limits", f"all {len(names)} global concurrency limits exist")]


def _examine_limit(client: SyncPrefectClient, name: str) -> list[Finding]:
    try:
        limit = client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        what = f"no global concurrency limit is called {name!r}: actions of its processors wait, a minute at a time"
        return [failure("limits", what, f"create it: prefect global-concurrency-limit create {name} --limit N")]
    if limit.active:
        return []
    what = f"the global concurrency limit {name!r} is not active, and limits nothing"
    return [warning("limits", what, f"prefect global-concurrency-limit enable {name}")]


def _named(client: SyncPrefectClient, names: Sequence[str]) -> tuple[list[DeploymentResponse], list[Finding]]:
    if not names:
        return client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW]))), []
    found: list[DeploymentResponse] = []
    missing: list[Finding] = []
    for name in names:
        try:
            found.append(client.read_deployment_by_name(name))
        except ObjectNotFound:
            missing.append(failure("schedule", f"no deployment is called {name}", "see: prefect deployment ls"))
    return found, missing


def _facts(client: SyncPrefectClient, deployment: DeploymentResponse) -> DeploymentFacts:
    late = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"])))
    here = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
    runs = client.read_flow_runs(deployment_filter=here, flow_run_filter=late, limit=MOST_LATE_RUNS)
    facts = DeploymentFacts(
        name=f"{client.read_flow(deployment.flow_id).name}/{deployment.name}",
        is_paused=deployment.paused,
        active_schedules=sum(schedule.active for schedule in deployment.schedules),
        pool=deployment.work_pool_name,
        is_ready=deployment.status == "READY",
        late_runs=len(runs),
    )
    return facts if facts.pool is None else _with_pool(client, facts, facts.pool)


def _with_pool(client: SyncPrefectClient, facts: DeploymentFacts, name: str) -> DeploymentFacts:
    try:
        pool = client.read_work_pool(name)
        workers = client.read_workers_for_work_pool(name)
    except ObjectNotFound:
        return replace(facts, is_pool_there=False)
    online = sum(worker.status == "ONLINE" for worker in workers)
    needs_none = pool.is_push_pool or pool.is_managed_pool
    return replace(facts, is_pool_paused=pool.is_paused, workers=None if needs_none else online)
