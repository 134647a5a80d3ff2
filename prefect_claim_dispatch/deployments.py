"""The deployment lane, as authors register it: an action becomes a flow run of another deployment."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from prefect_claim_dispatch import kinds
from prefect_claim_dispatch.durations import MOMENT, checked_duration
from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.outcomes import Snooze
from prefect_claim_dispatch.processors import place_of
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
    lease: timedelta | float = LEASE,
    queued_at_most: timedelta | float = QUEUED_AT_MOST,
    max_attempts: int | None = None,
    backoff: timedelta | float | None = None,
    backoff_max: timedelta | float | None = None,
    facts: Facts | None = None,
    on_rules_false: Snooze | None = None,
    max_running: int | None = None,
    registry: Registry = registry,
) -> None:
    """Register *deployment* as what does actions of *type_*: each becomes one flow run of it for each claim.

    Nothing of an action goes to Prefect but what *parameters* returns, and a reference (table, id, claim) as the
    parameter ``action``, if the flow has one: hand it to `claimed_action` there. A duration is a `timedelta`, or a
    number of seconds.

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
        RegistrationError: the type is taken or malformed, or an option is of a wrong kind or makes no sense.
        ConfigurationError: a *max_running* by which nothing would ever run.
    """
    type_ = kinds.checked_pattern(type_)
    described = _described(type_, deployment, parameters, lease, queued_at_most)
    kinds.checked_registry(type_, registry).add(
        Processor(
            pattern=type_,
            source=_elsewhere,
            place=f"deployment {deployment}" + ("" if parameters is None else f", {place_of(parameters)}"),
            max_attempts=kinds.checked_attempts(type_, max_attempts),
            backoff=kinds.checked_wait(type_, "backoff", backoff),
            backoff_max=kinds.checked_wait(type_, "backoff_max", backoff_max),
            facts=kinds.checked_facts(type_, facts),
            on_rules_false=kinds.checked_snooze(type_, on_rules_false),
            max_running=kinds.checked_max_running(type_, max_running),
            deployment=described,
        )
    )


def _described(type_: str, name: Any, parameters: Any, lease: Any, queued_at_most: Any) -> Deployment:
    flow, slash, rest = name.partition("/") if isinstance(name, str) else ("", "", "")
    if not (flow and slash and rest):
        msg = f"processor {type_!r}: deployment must be written flow/deployment, got {name!a}"
        raise RegistrationError(msg[:500])
    what, error = f"processor {type_!r}:", RegistrationError
    return Deployment(
        name=name,
        parameters=kinds.checked_parameters(type_, parameters),
        lease=checked_duration(lease, f"{what} lease", error=error, least=SHORTEST_LEASE),
        queued_at_most=checked_duration(queued_at_most, f"{what} queued_at_most", error=error, least=MOMENT),
    )


def _elsewhere() -> None:
    """The function of a processor whose work another process does: it takes nothing, and whoever calls it is wrong."""
    msg = "a deployment's work is done by its own runs, and is never called here"
    raise AssertionError(msg)
