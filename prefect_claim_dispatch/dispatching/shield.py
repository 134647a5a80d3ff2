"""What of the claim flow's run its processors can't reach, and what of its fate does not reach them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

from prefect.context import FlowRunContext

_PAUSES: Final = "observed_flow_pauses"
_REQUEST: Final = "flow_run_suspension_request"


class PauseRefusedError(RuntimeError):
    """A processor asked Prefect to pause the flow run that it is in: the claim flow's, with everybody's actions."""


class _NoPauses(dict[str, int]):
    """What Prefect counts the pauses of a run in, before it asks the API for one."""

    def __contains__(self, key: object) -> NoReturn:
        msg = (
            "a processor can't pause or suspend the claim flow's run, in which other actions run, too; "
            "return Snooze(delay, reason) to wait, or register a @flow, whose own run may be paused"
        )
        raise PauseRefusedError(msg)


@contextmanager
def shielded() -> Generator[None]:
    """The current flow run, for processors: they can't pause it, and what suspends it ends nothing that has begun.

    Prefect would raise `Pause` in each task that begins in a suspended run, also in the steps of an action that is
    half done. Nothing where there is no flow run.
    """
    context = FlowRunContext.get()
    if context is None:
        yield
        return
    changes: dict[str, Any] = {_PAUSES: _NoPauses()}
    request = FlowRunContext.model_fields.get(_REQUEST)
    if request is not None:
        changes[_REQUEST] = request.get_default(call_default_factory=True)
    with context.model_copy(update=changes):
        yield
