"""What a deployment's run is given: what its author takes of the action, and the reference."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Final, cast

from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.dispatching.returns import awaited
from prefect_claim_dispatch.dispatching.signals import own
from prefect_claim_dispatch.encoding import MAX_DEPTH, Limits, encode
from prefect_claim_dispatch.errors import InvalidPayloadError
from prefect_claim_dispatch.outcomes import Failed
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.registrations import Deployment

REFERENCE: Final = "action"
"""The parameter that a flow has which wants the reference."""

LIMITS: Final = Limits(what="what parameters returns", max_bytes=512 * 1024, max_depth=MAX_DEPTH)
"""As many bytes as Prefect's API takes for one run."""


def reference_to(action: Action, policy: RetryPolicy) -> dict[str, Any]:
    """What finds the action again: table, id, claim; and by which policy a failure is to be judged there."""
    return {
        "table": action.table if action.schema is None else f"{action.schema}.{action.table}",
        "id": action.id,
        "claim_count": action.claim_count,
        "max_attempts": policy.max_attempts,
        "backoff_seconds": policy.backoff.total_seconds(),
        "backoff_max_seconds": policy.backoff_max.total_seconds(),
    }


def parameters_of(
    action: Action, deployment: Deployment, policy: RetryPolicy, asked_for: Collection[str]
) -> dict[str, Any] | Failed:
    """The run's parameters, of which the flow has those called *asked_for*; or why there can be none.

    Its author's mistake fails the attempt, and not the action for good: the next deploy may mend it.
    """
    try:
        chosen: Any = {} if deployment.parameters is None else awaited(deployment.parameters(action))
        if not isinstance(chosen, Mapping):
            kind = type(chosen).__name__
            return _refused(f"parameters must return a mapping of names to JSON, got {kind}")
        given: dict[str, Any] = json.loads(encode(cast("Mapping[Any, Any]", chosen), LIMITS))
    except InvalidPayloadError as error:
        return _refused(str(error))
    except BaseException as error:  # noqa: BLE001 - the author's code may raise anything, and harms its row alone
        return Failed.from_exception(own(error))
    if REFERENCE in asked_for:
        given.setdefault(REFERENCE, reference_to(action, policy))
    return given


def _refused(message: str) -> Failed:
    return Failed(error_type="InvalidParameters", message=message)
