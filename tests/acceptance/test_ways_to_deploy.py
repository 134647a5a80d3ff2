"""The ways in which Prefect's users run a flow: served from a script, from source, and as an installed module."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from prefect import Flow
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner

from prefect_claim_dispatch import claim_dispatch, databases, operations, outstanding, publish
from prefect_claim_dispatch.dispatching.labelling import TABLE_LABEL
from prefect_claim_dispatch.processors import Registry, processor, registry
from tests.kit.prefect_server import PrefectServer
from tests.kit.tables import TABLE

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).parents[2]
PROCESSORS = "tests.acceptance.deployed_processors"


def served(name: str) -> RunnerDeployment:
    """`claim_dispatch.serve(name=...)`: the flow itself is pickled into the process that runs it."""
    return claim_dispatch.to_deployment(name)  # type: ignore[call-overload, no-any-return]


def from_source(name: str) -> RunnerDeployment:
    """`flow.from_source(...).deploy(name)`: its file is loaded where it runs."""
    flow: Any = Flow.from_source(source=str(ROOT), entrypoint="flows/claim.py:claim")  # pyright: ignore[reportUnknownMemberType]
    return flow.to_deployment(name)  # type: ignore[no-any-return]


def module(name: str) -> RunnerDeployment:
    """A deployment whose entry point is a module, as in deployments/from-package.yaml."""
    return RunnerDeployment.from_entrypoint("prefect_claim_dispatch.flow:claim_dispatch", name)


@pytest.mark.parametrize(
    "ways", [(served,), pytest.param((from_source, module), marks=pytest.mark.exhaustive)], ids=["served", "loaded"]
)
def test_claim_flow_runs_in_every_way_that_prefect_has(
    sqlite_url: str,
    prefect_api: PrefectServer,
    monkeypatch: pytest.MonkeyPatch,
    ways: tuple[Callable[[str], RunnerDeployment], ...],
) -> None:
    """Each in a process of its own, started by Prefect's runner, and each loaded by other means."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CLAIM_DISPATCH_DATABASE_URL", sqlite_url)
    deployments = {way.__name__: way(f"{way.__name__}-{os.urandom(4).hex()}") for way in ways}
    run_ids: dict[str, str] = {}

    async def serve() -> None:
        runner = Runner(pause_on_shutdown=False)
        for way, deployment in deployments.items():
            deployed = await runner.add_deployment(deployment)
            body = {"parameters": {"processors": [PROCESSORS]}, "state": {"type": "SCHEDULED"}}
            run_ids[way] = prefect_api.post(f"deployments/{deployed}/create_flow_run", body)["id"]
        await runner.start(run_once=True)

    id_ = publish(sqlite_url, "lane.local").id

    asyncio.run(serve())

    ends = {way: prefect_api.get(f"flow_runs/{run_id}")["state"] for way, run_id in run_ids.items()}
    assert {way: state["name"] for way, state in ends.items()} == dict.fromkeys(run_ids, "Completed"), ends
    table = outstanding.identity(databases.engine_for(sqlite_url), TABLE)
    labels = [prefect_api.get(f"flow_runs/{run_id}")["labels"].get(TABLE_LABEL) for run_id in run_ids.values()]
    assert set(labels) == {table}, "doctor knows by it whether they claim from the table that it looks at"
    row = operations.get(sqlite_url, id_ or 0)
    assert (row.status, row.claimed_by in run_ids.values()) == ("processed", True)


def test_default_registry_arrives_as_the_one_that_is_there() -> None:
    """A copy would miss what the modules of processors register; another registry takes its processors along."""
    own = Registry()
    processor("way.own", registry=own)(len_of)

    default, other = pickle.loads(cloudpickle.dumps((registry, own)))

    assert default is registry
    assert other.types == ("way.own",)
    assert pickle.loads(cloudpickle.dumps(claim_dispatch)).fn.__globals__["registry"] is registry
    processor("way.more", registry=other)(len_of)
    assert own.types == ("way.own",)


def len_of(payload: dict[str, Any]) -> None:
    """Of a module that can be imported."""
