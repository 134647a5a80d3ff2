"""Checking deployment processors against the deployments that there are, for whoever deploys."""

from __future__ import annotations

from prefect_claim_dispatch.dispatching.flow_runs import DeploymentSeen, FlowRuns
from prefect_claim_dispatch.dispatching.parameters import REFERENCE
from prefect_claim_dispatch.errors import DeploymentNotFoundError
from prefect_claim_dispatch.registrations import Deployment
from prefect_claim_dispatch.registry import Registry, registry


def check_deployments(processors: Registry = registry, runs: FlowRuns | None = None) -> list[str]:
    """What is wrong with the deployments of *processors*, a line each; empty when nothing is.

    Raises:
        PrefectUnavailableError: the API can't be asked.
    """
    runs = runs or FlowRuns()
    return [
        f"processor {processor.pattern!r}: {problem}"
        for processor in processors.deployed
        if processor.deployment is not None
        for problem in _problems(processor.deployment, runs.deployment(processor.deployment.name))
    ]


def cancelling_deployments(processors: Registry, runs: FlowRuns) -> list[str]:
    """A line for each deployment that cancels the runs of actions when it is full, instead of letting them wait.

    Raises:
        PrefectUnavailableError: the API can't be asked.
    """
    named = {one.deployment.name: one.pattern for one in processors.deployed if one.deployment is not None}
    return [
        f"processor {pattern!r}: {name!r} cancels new runs when it is full (CANCEL_NEW); "
        "its actions are tried again and again, ever more rarely"
        for name, pattern in sorted(named.items())
        if (seen := runs.deployment(name)) is not None and seen.cancels_new
    ]


def _problems(deployment: Deployment, seen: DeploymentSeen | None) -> list[str]:
    if seen is None:
        return [str(DeploymentNotFoundError(deployment.name))]
    if deployment.parameters is not None:
        return []  # what its author's function returns is known for an action only
    missing = sorted(seen.required - {REFERENCE})
    problems = [f"{deployment.name!r} wants the parameters {', '.join(missing)}; pass parameters="] if missing else []
    if REFERENCE not in seen.asked_for:
        problems.append(
            f"{deployment.name!r} has no parameter {REFERENCE!r}, and no parameters= are passed: its flow can't know "
            f"which action it is for; give it one, and hand it to claimed_action"
        )
    return problems
