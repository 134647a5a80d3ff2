"""The deployment lane under test: deployments made by the API, their runs looked at and changed there."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from sqlalchemy import Engine

from prefect_claim_dispatch import claiming, rescuing
from prefect_claim_dispatch.dispatching.elsewhere import Elsewhere
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.reports import DispatchReport, Tally
from tests.kit.prefect_server import PrefectServer
from tests.kit.tables import TABLE
from tests.kit.waiting import wait_until

AT_ONCE = RetryPolicy(backoff=timedelta(0), max_attempts=2)


def schema_of(**types: str) -> dict[str, Any]:
    """A flow's parameters, all required, as Prefect describes them."""
    properties = {name: {"title": name, "type": type_, "position": n} for n, (name, type_) in enumerate(types.items())}
    return {"type": "object", "properties": properties, "required": list(types)}


class Deployed:
    """A deployment on a pool of its own. Without a worker, its runs wait until the test sets their states."""

    def __init__(
        self,
        server: PrefectServer,
        *,
        flow: str = "",
        entrypoint: str = "nowhere:flow",
        schema: Any = None,
        **more: Any,
    ) -> None:
        self.server = server
        self.name = f"{flow or f'lane-{os.urandom(4).hex()}'}/prod"
        self.pool = f"pool-of-{self.name.partition('/')[0]}"
        server.post("work_pools/", {"name": self.pool, "type": "process"})
        flow_id = server.post("flows/", {"name": self.name.partition("/")[0]})["id"]
        body: dict[str, Any] = {
            "name": "prod",
            "flow_id": flow_id,
            "work_pool_name": self.pool,
            "entrypoint": entrypoint,
            "pull_steps": [],
            "enforce_parameter_schema": True,
            "parameter_openapi_schema": schema_of(action="object") if schema is None else schema,
            **more,
        }
        self.id = server.post("deployments/", body)["id"]

    def runs(self) -> list[dict[str, Any]]:
        """All its runs, the oldest at the head."""
        found: list[dict[str, Any]] = []
        while True:
            body = {"deployments": {"id": {"any_": [self.id]}}, "limit": 200, "offset": len(found)}
            page = self.server.post("flow_runs/filter", body)
            found += page
            if len(page) < 200:
                return sorted(found, key=lambda run: run["created"])

    def set_state(self, run_id: str | None, type_: str, name: str | None = None, message: str = "") -> None:
        """Set a run's state as the UI, a worker or an automation would."""
        state = {"type": type_, "name": name, "message": message}
        self.server.post(f"flow_runs/{run_id}/set_state", {"state": state, "force": True})

    def propose(self, run_id: str | None, type_: str) -> str:
        """Propose a state as a worker does, whom Prefect may refuse; what the run's state is called then."""
        self.server.post(f"flow_runs/{run_id}/set_state", {"state": {"type": type_}})
        return str(self.server.get(f"flow_runs/{run_id}")["state_name"])

    def execute(self, flow: Flow[..., Any], run_id: str | None) -> None:
        """What a worker's process does: let *flow* be the run, here, with the parameters that it was given.

        What the flow raises is in the run's state.
        """
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(str(run_id)))
        run_flow(flow, flow_run=run, parameters=run.parameters, return_type="state")


def look(engine: Engine, registry: Registry, *, rescuer: Callable[..., Any] = rescuing.rescue) -> DispatchReport:
    """What a claim flow that has just started does for this lane in one round: rescue, reconcile, claim, create."""
    tally, routing = Tally(), Routing(registry, AT_ONCE)
    lane = lane_of(engine, registry, tally)
    rescuer(engine, TABLE, routing.policy_of, limit=100)
    lane.reconcile(claiming.survey(engine, TABLE))
    due = claiming.survey(engine, TABLE).due()
    lane.claim(lane.available(routing.elsewhere(due)))
    wait_until(lambda: is_created(lane), description="the guard of what was claimed is done")
    return tally.report()


def lane_of(engine: Engine, registry: Registry, tally: Tally | None = None) -> Elsewhere:
    """The deployment lane of a claim flow."""
    options = LoopOptions(limit=1_000, lease=timedelta(minutes=1), concurrency=1, claimed_by="flow")
    return Elsewhere(engine, TABLE, Routing(registry, AT_ONCE), tally or Tally(), options=options)


def is_created(lane: Elsewhere) -> bool:
    """Whether all runs are created; the machine may be busy, so that the guard took its time."""
    lane.go_on()
    return not lane.is_asking
