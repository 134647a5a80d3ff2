"""The deployment lane, as authors register it: an action becomes a flow run of another deployment."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Final

from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.outcomes import Snooze
from prefect_claim_dispatch.processors import check_attempts, check_max_running, check_pattern, place_of
from prefect_claim_dispatch.registrations import Deployment, Facts, Parameters, Processor
from prefect_claim_dispatch.registry import Registry, registry

LEASE: Final = timedelta(minutes=15)
QUEUED_AT_MOST: Final = timedelta(hours=1)
SHORTEST_LEASE: Final = timedelta(seconds=1)


def deployment_processor(
    type_: str,
    /,
    *,
    deployment: str,
    parameters: Parameters | None = None,
    lease: timedelta = LEASE,
    queued_at_most: timedelta = QUEUED_AT_MOST,
    max_attempts: int | None = None,
    backoff: timedelta | None = None,
    backoff_max: timedelta | None = None,
    facts: Facts | None = None,
    on_rules_false: Snooze | None = None,
    max_running: int | None = None,
    registry: Registry = registry,
) -> None:
    """Register *deployment* as what does actions of *type_*: each becomes one flow run of it for each claim.

    Nothing of an action goes to Prefect but what *parameters* returns, and a reference (table, id, claim) as the
    parameter ``action``, if the flow has one: hand it to `claimed_action` there.

    Args:
        type_: the action type, or a pattern with ``*``.
        deployment: its name, ``flow/deployment``.
        parameters: what the run is given, of the action: a mapping of names to JSON. None: the reference alone.
        lease: how long the claim lasts without a look at its run; claim flows renew it while the run lives.
        queued_at_most: how long a run may wait for its worker, counted from the claim; then it is cancelled, and the
            action is released at no attempt.
        max_attempts: as for `processor`, and so are the others.
        backoff: wait after the first failed attempt; doubles each time.
        backoff_max: the longest wait.
        facts: the present state that the action's rules look at.
        on_rules_false: look again later instead of cancelling when the rules are false.
        max_running: at most so many actions of one exact type are claimed at a time, in all claim flows together: their
            runs wait or work. As for `processor`.
        registry: where to register; the default is what the claim flow uses.

    Raises:
        RegistrationError: the type is taken or malformed, or an argument makes no sense.
        ConfigurationError: a *max_running* by which nothing would ever run.
    """
    check_pattern(type_)
    check_attempts(type_, max_attempts)
    check_max_running(type_, max_running)
    described = Deployment(name=deployment, parameters=parameters, lease=lease, queued_at_most=queued_at_most)
    _check(type_, described)
    registry.add(
        Processor(
            pattern=type_,
            source=_elsewhere,
            place=f"deployment {deployment}" + ("" if parameters is None else f", {place_of(parameters)}"),
            max_attempts=max_attempts,
            backoff=backoff,
            backoff_max=backoff_max,
            facts=facts,
            on_rules_false=on_rules_false,
            max_running=max_running,
            deployment=described,
        )
    )


def _check(type_: str, deployment: Deployment) -> None:
    flow, slash, name = deployment.name.partition("/")
    parameters = deployment.parameters
    problems = {
        f"deployment must be written flow/deployment, got {deployment.name!r}": not (flow and slash and name),
        f"lease must be {SHORTEST_LEASE} or more, got {deployment.lease}": deployment.lease < SHORTEST_LEASE,
        f"queued_at_most must be more than zero, got {deployment.queued_at_most}": deployment.queued_at_most
        <= timedelta(0),
        "parameters must be a function of the action, which is not async": parameters is not None
        and (not callable(parameters) or inspect.iscoroutinefunction(parameters)),
    }
    wrong = [problem for problem, is_wrong in problems.items() if is_wrong]
    if wrong:
        msg = f"processor {type_!r}: {'; '.join(wrong)}"
        raise RegistrationError(msg)


def _elsewhere() -> None:
    """The function of a processor whose work another process does: it takes nothing, and whoever calls it is wrong."""
    msg = "a deployment's work is done by its own runs, and is never called here"
    raise AssertionError(msg)
