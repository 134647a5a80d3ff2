"""Asking Prefect's API for the facts of a deployment of the claim flow: its schedule, pool, slots and runs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from pydantic import TypeAdapter, ValidationError

from prefect_claim_dispatch.diagnosing.facts import DeploymentFacts, LimitFacts, RunFacts
from prefect_claim_dispatch.dispatching.labelling import TABLE_LABEL
from prefect_claim_dispatch.dispatching.run_states import REFUSED

MOST_LATE_RUNS: Final = 100
MOST_LIVING: Final = 200
LATEST: Final = 10
ENDED: Final = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]
LIVING: Final = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]

_TEMPLATE: Final = re.compile(r"\{\{\s*\$(?P<name>\w+)\s*\}\}")
_DURATION: Final = TypeAdapter(timedelta)


def deployment_facts(client: SyncPrefectClient, deployment: DeploymentResponse) -> DeploymentFacts:
    """What the API tells of *deployment*.

    Raises:
        httpx.HTTPError: it can't be asked.
    """
    stay = _stay(deployment.parameters)
    late = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"])))
    ended = _runs(client, deployment, ENDED, sort=FlowRunSort.END_TIME_DESC, limit=LATEST)
    living = _runs(client, deployment, LIVING, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=MOST_LIVING)
    facts = DeploymentFacts(
        name=f"{client.read_flow(deployment.flow_id).name}/{deployment.name}",
        is_paused=deployment.paused,
        active_schedules=sum(schedule.active for schedule in deployment.schedules),
        interval=_interval(client, deployment),
        stay=stay,
        pool=deployment.work_pool_name,
        is_ready=deployment.status == "READY",
        late_runs=len(
            client.read_flow_runs(deployment_filter=_of(deployment), flow_run_filter=late, limit=MOST_LATE_RUNS)
        ),
        # Asked for again: of a run that ended in between, the slot was taken still.
        limit=_limit(deployment, client.read_deployment(deployment.id)),
        ended=tuple(_run(run, stay) for run in ended),
        living=tuple(_run(run, stay) for run in living),
        unset=tuple(sorted(set(_TEMPLATE.findall(json.dumps(deployment.pull_steps or [], default=str))))),
    )
    return facts if facts.pool is None else _with_pool(client, facts, facts.pool, deployment.work_queue_name)


def _of(deployment: DeploymentResponse) -> DeploymentFilter:
    return DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))


def _runs(
    client: SyncPrefectClient, deployment: DeploymentResponse, types: list[StateType], *, sort: FlowRunSort, limit: int
) -> Sequence[FlowRun]:
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))
    return client.read_flow_runs(deployment_filter=_of(deployment), flow_run_filter=wanted, sort=sort, limit=limit)


def _run(run: FlowRun, stay: timedelta) -> RunFacts:
    state = run.state
    message = "" if state is None else state.message or ""
    table = run.labels.get(TABLE_LABEL)
    return RunFacts(
        id=str(run.id),
        name=run.name,
        type=run.state_type.value if run.state_type else "",
        state=run.state_name or "",
        message=message,
        age=timedelta(0) if state is None else datetime.now(UTC) - state.timestamp,
        stay=_stay(run.parameters) if "stay" in run.parameters else stay,
        table=None if table is None else str(table),
        is_refused=run.state_type == StateType.CANCELLED and not run.run_count and message.startswith(REFUSED),
    )


def _stay(parameters: dict[str, Any] | None) -> timedelta:
    try:
        return _DURATION.validate_python((parameters or {}).get("stay", 0))
    except ValidationError:
        return timedelta(0)


def _interval(client: SyncPrefectClient, deployment: DeploymentResponse) -> timedelta | None:
    """How far apart its runs are: as they are scheduled, or else as its schedules say."""
    runs = _runs(client, deployment, [StateType.SCHEDULED], sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=LATEST)
    starts = [run.expected_start_time for run in runs if run.auto_scheduled and run.expected_start_time]
    apart = [later - earlier for earlier, later in pairwise(starts) if later > earlier]
    active = [schedule.schedule for schedule in deployment.schedules if schedule.active]
    return min(apart or [one.interval for one in active if isinstance(one, IntervalSchedule)], default=None)


def _limit(before: DeploymentResponse, after: DeploymentResponse) -> LimitFacts | None:
    first, then = before.global_concurrency_limit, after.global_concurrency_limit
    if first is None or then is None or not then.active:
        return None
    return LimitFacts(name=then.name, slots=then.limit, taken=min(first.active_slots, then.active_slots))


def _with_pool(client: SyncPrefectClient, facts: DeploymentFacts, name: str, queue_name: str | None) -> DeploymentFacts:
    try:
        pool = client.read_work_pool(name)
        workers = client.read_workers_for_work_pool(name)
        queue = None if queue_name is None else client.read_work_queue_by_name(queue_name, name)
    except ObjectNotFound:
        return replace(facts, is_pool_there=False)
    online = sum(worker.status == "ONLINE" for worker in workers)
    needs_none = pool.is_push_pool or pool.is_managed_pool
    slots = [limit for one in (pool, queue) if one is not None and (limit := one.concurrency_limit) is not None]
    return replace(
        facts,
        is_pool_paused=pool.is_paused,
        pool_slots=min(slots, default=None),
        workers=None if needs_none else online,
    )
