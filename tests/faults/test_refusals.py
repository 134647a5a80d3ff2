"""A Prefect server that answers, and refuses: a wrong key, or too much to do for a moment."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema
from sqlalchemy import Engine

from prefect_claim_dispatch import claim_dispatch, databases, operations, publish
from prefect_claim_dispatch.dispatching import reaching
from prefect_claim_dispatch.errors import ConfigurationError, PrefectUnavailableError
from prefect_claim_dispatch.flow import run_claim_flow
from tests.kit import gateway
from tests.kit.deploying import Deployed
from tests.kit.gateway import Gateway
from tests.kit.prefect_server import PrefectServer

CREATION = "POST /flow_runs/"
PROCESSORS = ("tests.acceptance.deployed_processors",)


@pytest.fixture
def api(prefect_api: PrefectServer) -> Iterator[Gateway]:
    """The way to the shared server, by which this process goes."""
    with gateway.before(prefect_api) as before, temporary_settings({PREFECT_API_URL: before.api_url}):
        yield before


@pytest.fixture
def engine(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """What Prefect refuses is the same on every database."""
    monkeypatch.setenv("CLAIM_DISPATCH_DATABASE_URL", sqlite_url)
    return databases.engine_for(sqlite_url)


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once: how long is waited in between shows nothing."""
    monkeypatch.setattr(reaching, "BUSY_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(reaching, "FIRST_PAUSE", 0.0)


@pytest.mark.parametrize("status", [401, 403])
def test_api_that_refuses_us_is_not_there_though_its_health_is_open(engine: Engine, api: Gateway, status: int) -> None:
    """The key was changed: nothing may be claimed for which no run can be made; one line says which settings."""
    id_ = publish(engine, "lane.local").id or 0
    watch = reaching.ApiWatch()
    api.refusal = lambda asked: None if asked == "GET /health" else status

    with pytest.raises(PrefectUnavailableError, match=rf"refuses us \({status}\): set PREFECT_API_AUTH_STRING") as told:
        run_claim_flow(processors=PROCESSORS)
    assert watch.is_away()

    assert "\n" not in str(told.value)
    assert operations.get(engine, id_).claim_count == 0


@pytest.mark.parametrize("status", [502, 500])
def test_api_that_is_broken_behind_its_gateway_is_not_there(engine: Engine, api: Gateway, status: int) -> None:
    """What a gateway says while the server behind it is away."""
    api.refusal = lambda _: status

    with pytest.raises(PrefectUnavailableError, match=f"answers {status}"):
        run_claim_flow(processors=PROCESSORS)


def test_flow_run_is_created_though_the_server_is_busy(
    engine: Engine, api: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite under load says 503 for a moment, to the question and to the creation; one run comes of it."""
    quick(monkeypatch)
    id_ = publish(engine, "lane.local").id or 0
    question, left = "GET /block_types/slug/secret", {"GET /block_types/slug/secret": 2, CREATION: 3}

    def busy(asked: str) -> int | None:
        left[asked] = left.get(asked, 0) - 1
        return 503 if left[asked] >= 0 else None

    api.refusal = busy
    with caplog.at_level(logging.WARNING):
        report = run_claim_flow(processors=PROCESSORS)

    assert (report.processed, operations.get(engine, id_).status) == (1, "processed")
    assert api.requests.count(question) >= 3
    assert api.requests.count(CREATION) == 4
    assert caplog.text.count("could not create the flow run (503), trying again") == 3


def test_server_that_stays_busy_is_given_up(engine: Engine, api: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its time: cron starts the next one, and whoever looks on is told."""
    quick(monkeypatch)
    monkeypatch.setattr(reaching, "CREATED_WITHIN", 0.0)
    api.refusal = lambda asked: 503 if asked == CREATION else None

    with pytest.raises(PrefectUnavailableError, match="answers 503"):
        run_claim_flow(processors=PROCESSORS)


@pytest.mark.parametrize(
    "options",
    [{"limit": 0}, {"lease": timedelta(0)}, {"lease": timedelta(days=8)}, {"stay": timedelta(seconds=-1)}],
    ids=str,
)
def test_options_that_make_no_sense_are_refused_before_prefect_is_asked(
    engine: Engine, api: Gateway, options: dict[str, Any]
) -> None:
    """No flow run that is Failed, no traceback: it is a typing error."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        run_claim_flow(processors=PROCESSORS, **options)

    assert api.requests == []


def test_parameters_that_make_no_sense_are_refused_by_the_api(prefect_api: PrefectServer) -> None:
    """From the form of the UI as well: the deployment's schema says what is wanted, so no run is made that fails."""
    deployed = Deployed(prefect_api, schema=parameter_schema(claim_dispatch).model_dump(mode="json"))
    nonsense = [
        *({"limit": 0}, {"max_concurrency": -1}, {"lease": "PT0S"}, {"lease": "-PT5M"}),
        *({"stay": "-PT1S"}, {"grace": "-PT1S"}),
    ]
    sense = {"limit": 1, "lease": "PT1S", "stay": "PT75S", "grace": "PT0S", "max_concurrency": None}

    with get_client(sync_client=True) as client:
        for parameters in nonsense:
            with pytest.raises(PrefectHTTPStatusError, match="409 Conflict"):
                client.create_flow_run_from_deployment(deployed.id, parameters=parameters)
        made = client.create_flow_run_from_deployment(deployed.id, parameters=sense)

    assert [run["id"] for run in deployed.runs()] == [str(made.id)]
    assert claim_dispatch.validate_parameters(sense)["stay"] == timedelta(seconds=75)
