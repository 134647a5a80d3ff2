"""Examining Prefect: its API, the deployments that run the claim flow, and those that processors name.

Here and in `deployed` alone of `diagnosing`, Prefect is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from prefect_claim_dispatch.diagnosing.deployed import deployment_facts
from prefect_claim_dispatch.diagnosing.facts import HoldingFacts
from prefect_claim_dispatch.diagnosing.findings import Finding, failure, fine, warning
from prefect_claim_dispatch.diagnosing.judging import PATIENCE
from prefect_claim_dispatch.diagnosing.schedules import judge_deployments
from prefect_claim_dispatch.dispatching.checking import cancelling_deployments, check_deployments
from prefect_claim_dispatch.dispatching.flow_runs import FlowRuns
from prefect_claim_dispatch.dispatching.reaching import impatient_client
from prefect_claim_dispatch.errors import PrefectUnavailableError
from prefect_claim_dispatch.outcomes import redacted
from prefect_claim_dispatch.registry import Registry

FLOW: Final = "claim-dispatch"
DEPLOY: Final = "deploy it, or correct the processor; until then its actions wait or fail"
LET_WAIT: Final = "deploy it with collision_strategy ENQUEUE, or limit the actions instead: max_running="
NONE_IS_SET: Final = (
    "no PREFECT_API_URL is set: a claim flow would start a server of its own, where no deployment is and nobody looks"
)


def examine_prefect(
    deployments: Sequence[str] = (), held: HoldingFacts | None = None, patience: timedelta = PATIENCE
) -> list[Finding]:
    """Whether the API answers, whether the claim flow will be run, and how its runs have fared.

    *deployments*: names, ``flow/name``, of those that are meant; all of the flow ``claim-dispatch`` unless given.
    *held*: what the table says of its claims, by which a dead run is told from one that works.
    """
    if not PREFECT_API_URL.value():
        return [warning("prefect", NONE_IS_SET, "set PREFECT_API_URL, here and where the claim flow runs")]
    try:
        with impatient_client() as client:
            reached = fine("prefect", f"the API answers, version {client.api_version()}")
            named, missing = _named(client, deployments)
            facts = [deployment_facts(client, one) for one in named]
            judged = [] if deployments and not named else judge_deployments(facts, held, patience)
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


def examine_deployments(processors: Registry) -> list[Finding]:
    """Whether the deployments that *processors* name are there, and fit; nothing where they name none."""
    if not processors.deployed or not PREFECT_API_URL.value():
        return []
    runs = FlowRuns()
    try:
        wrong = [failure("deployments", problem, DEPLOY) for problem in check_deployments(processors, runs)]
        full = [warning("deployments", problem, LET_WAIT) for problem in cancelling_deployments(processors, runs)]
    except PrefectUnavailableError:
        return []  # told by `examine_prefect`
    number = len(processors.deployed)
    return [*wrong, *full] or [fine("deployments", f"of all {number} deployment processors, the deployment is there")]


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
