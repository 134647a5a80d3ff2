"""Judging the deployments of the claim flow, pool and workers included: will anything claim, and soon?"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from prefect_claim_dispatch.diagnosing.facts import DeploymentFacts, HoldingFacts
from prefect_claim_dispatch.diagnosing.findings import Finding, failure, fine, warning
from prefect_claim_dispatch.diagnosing.judging import PATIENCE, rough
from prefect_claim_dispatch.diagnosing.runs import judge_runs


def judge_deployments(
    found: Sequence[DeploymentFacts], held: HoldingFacts | None = None, patience: timedelta = PATIENCE
) -> list[Finding]:
    """What keeps the deployments of the claim flow from running it; *held* and *patience* are for `judge_runs`."""
    if not found:
        what = "no deployment of the claim flow is there; actions are claimed only when somebody runs it"
        remedy = "prefect deploy (prefect.yaml has an example), or name the one you mean: --deployment FLOW/NAME"
        return [warning("schedule", what, remedy)]
    return [finding for deployment in found for finding in _judge(deployment, held, patience)]


def _judge(facts: DeploymentFacts, held: HoldingFacts | None, patience: timedelta) -> list[Finding]:
    troubles = [
        *_schedule(facts),
        *_pool(facts),
        *_overlap(facts),
        *_unset(facts),
        *_late(facts),
        *judge_runs(facts, held, patience),
    ]
    return troubles or [fine("schedule", f"deployment {facts.name}: scheduled, {_readiness(facts)}")]


def _readiness(facts: DeploymentFacts) -> str:
    if facts.pool is None:
        return "served by its own process"
    return f"pool {facts.pool} {'needs no worker' if facts.workers is None else f'has workers online: {facts.workers}'}"


def _schedule(facts: DeploymentFacts) -> list[Finding]:
    if facts.is_paused:
        what = f"deployment {facts.name} is paused"
        return [warning("schedule", what, f"prefect deployment schedule resume {facts.name} ID, or in the UI")]
    if not facts.active_schedules:
        what = f"deployment {facts.name} has no active schedule; it runs only when it is triggered"
        return [warning("schedule", what, f"prefect deployment schedule create {facts.name} --interval 60")]
    return []


def _pool(facts: DeploymentFacts) -> list[Finding]:
    pool, name = facts.pool, facts.name
    if pool is None:
        remedy = "start the process that serves it, or deploy it to a work pool"
        return [] if facts.is_ready else [failure("pool", f"nobody serves deployment {name}", remedy)]
    if not facts.is_pool_there:
        what = f"work pool {pool} of deployment {name} is not there"
        return [failure("pool", what, f"prefect work-pool create {pool}, and start a worker")]
    if facts.is_pool_paused:
        return [warning("pool", f"work pool {pool} is paused", f"prefect work-pool resume {pool}")]
    if facts.workers == 0:
        what = f"no worker of pool {pool} is online, so deployment {name} does not run"
        return [failure("pool", what, f"prefect worker start --pool {pool}")]
    return []


def _overlap(facts: DeploymentFacts) -> list[Finding]:
    """Whether the next run may start before the one at work has ended; otherwise nobody is there in between."""
    wanted, pool, limit = facts.overlapping, facts.pool, facts.limit
    why = f"runs of deployment {facts.name} that overlap, since each stays {rough(facts.stay)}: {wanted}"
    found: list[Finding] = []
    if facts.pool_slots is not None and facts.pool_slots < wanted:
        what = f"work pool {pool}, or the queue in it, runs {facts.pool_slots} at a time; {why}"
        remedy = f"prefect work-pool set-concurrency-limit {pool} {wanted + 1}, or more; or a stay below the interval"
        found.append(warning("pool", what, remedy))
    if limit is not None and limit.slots < wanted:
        what = f"the concurrency limit of deployment {facts.name} is {limit.slots}; {why}"
        found.append(warning("schedule", what, "deploy it without a limit, as prefect.yaml does, or with a higher one"))
    return found


def _unset(facts: DeploymentFacts) -> list[Finding]:
    if not facts.unset:
        return []
    names = ", ".join(facts.unset)
    what = f"deployment {facts.name} was deployed without {names}, so its runs want it in the worker's environment"
    return [warning("schedule", what, f"set {names}, and deploy it again: prefect --no-prompt deploy --all")]


def _late(facts: DeploymentFacts) -> list[Finding]:
    if not facts.late_runs:
        return []
    what = f"deployment {facts.name} has late runs: {facts.late_runs:,}"
    return [
        warning("schedule", what, "look at its pool: workers, concurrency limits; more workers, or a longer interval")
    ]
