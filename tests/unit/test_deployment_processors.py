"""Registering a deployment as a processor, what its runs are given, and what is wrong with what was deployed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_claim_dispatch import Action, deployment_processor, processor
from prefect_claim_dispatch.dispatching.checking import check_deployments
from prefect_claim_dispatch.dispatching.parameters import parameters_of, reference_to
from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.registrations import Deployment
from tests.kit.deploying import Deployed, schema_of
from tests.kit.prefect_server import PrefectServer

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
ACTION = Action(id=7, type="video.encode", payload={"id": 3}, end_at=NOON, created_at=NOON, claim_count=2, table="t")
POLICY = RetryPolicy()


def deployment(parameters: Any = None) -> Deployment:
    hour = timedelta(hours=1)
    return Deployment(name="encode/prod", parameters=parameters, lease=hour, queued_at_most=hour)


def test_deployment_is_found_by_type_like_any_processor() -> None:
    """Patterns, retries and guards are the same; only the place of the work is another."""
    registry = Registry()
    deployment_processor("video.*", deployment="encode/prod", registry=registry, max_attempts=3)
    processor("video.thumbnail", registry=registry)(lambda: None)

    registry.check()

    found = registry.match("video.encode")
    assert found is not None
    assert found.deployment is not None
    assert (found.deployment.name, found.policy(POLICY).max_attempts) == ("encode/prod", 3)
    assert registry.deployed == (found,)


def test_type_is_taken_by_a_deployment_too() -> None:
    """Two processors for one type are a mistake, whichever lane they are of."""
    registry = Registry()
    processor("video.encode", registry=registry)(lambda: None)

    with pytest.raises(RegistrationError, match="already registered by"):
        deployment_processor("video.encode", deployment="encode/prod", registry=registry)


async def asynchronous(action: Action) -> dict[str, Any]:
    return dict(action.payload)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deployment": "encode"}, "flow/deployment, got 'encode'"),
        ({"deployment": "encode/"}, "flow/deployment"),
        ({"lease": timedelta(0)}, "lease must be"),
        ({"queued_at_most": timedelta(0)}, "queued_at_most must be .*, above zero .*, got 0:00:00"),
        ({"parameters": {"a": 1}}, "must be a function"),
        ({"parameters": asynchronous}, "not async"),
        ({"max_attempts": 0}, "max_attempts must be 1 or more"),
    ],
)
def test_registration_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    """At import, before anything is claimed."""
    given: dict[str, Any] = {"deployment": "encode/prod", **arguments}

    with pytest.raises(RegistrationError, match=message):
        deployment_processor("video.encode", registry=Registry(), **given)


def test_reference_goes_to_flows_that_ask_for_it_and_nothing_else_does() -> None:
    """No payload leaves the database unless the author's function takes it."""
    assert parameters_of(ACTION, deployment(), POLICY, {"action"}) == {"action": reference_to(ACTION, POLICY)}
    assert parameters_of(ACTION, deployment(), POLICY, {"video"}) == {}
    chosen = deployment(lambda action: {"video": action.payload["id"], "at": action.end_at})
    assert parameters_of(ACTION, chosen, POLICY, {"video"}) == {"video": 3, "at": "2026-01-31T12:00:00Z"}


def test_author_may_pass_the_parameter_called_action_himself() -> None:
    """Then it is his."""
    assert parameters_of(ACTION, deployment(lambda _: {"action": 1}), POLICY, {"action"}) == {"action": 1}


def test_reference_names_the_schema_where_there_is_one() -> None:
    """Two schemas may have a table of the same name."""
    action = Action(id=7, type="a", payload={}, end_at=NOON, created_at=NOON, claim_count=2, table="t", schema="s")

    assert reference_to(action, POLICY)["table"] == "s.t"


def test_what_is_wrong_with_a_deployment_is_told_before_it_is_needed(prefect_api: PrefectServer) -> None:
    """One line each; a deployment that takes the reference, or whose author passes parameters, is fine."""
    good, wants_more = Deployed(prefect_api), Deployed(prefect_api, schema=schema_of(action="object", video="integer"))
    takes_nothing = Deployed(prefect_api, schema=schema_of())
    registry = Registry()
    deployment_processor("a", deployment=good.name, registry=registry)
    deployment_processor("b", deployment=wants_more.name, registry=registry)
    deployment_processor("c", deployment=wants_more.name, registry=registry, parameters=lambda _: {"video": 1})
    deployment_processor("d", deployment=takes_nothing.name, registry=registry)
    deployment_processor("e", deployment="no/such", registry=registry)

    problems = check_deployments(registry)

    assert [problem.partition(":")[0] for problem in problems] == ["processor 'b'", "processor 'd'", "processor 'e'"]
    assert "wants the parameters video" in problems[0]
    assert "has no parameter 'action'" in problems[1]
    assert "no deployment is called 'no/such'" in problems[2]
