"""The claim flow's own run, as Prefect has it: once it is suspended, cancelled or deleted, nothing more may begin."""

from __future__ import annotations

import contextvars
import logging
import threading
from typing import Any, Final, cast

import httpx
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, ObjectNotFound, Pause
from prefect.states import Cancelled

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.dispatching.reaching import impatient_client

logger = logging.getLogger(__name__)

LOOK_EVERY: Final = 5.0
"""Seconds between looks; a flow that ends sooner asks nothing."""

AWAY_FOR: Final = 30.0
"""Seconds until the API is asked again that did not answer: who asks waits for it, and claims ask by themselves."""


class OwnRun:
    """What became of the run that claims: `is_over` once somebody has stopped it in Prefect, and then for good.

    To be made in the flow's own context. Outside a flow run it never is.
    """

    def __init__(self) -> None:
        context = FlowRunContext.get()
        self._run = None if context is None else context.flow_run
        # What Prefect itself found out: it refuses to begin any task from then on, whatever the API says later.
        self._request: Any = getattr(context, "flow_run_suspension_request", None)
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._look_at = elapsed_clock() + LOOK_EVERY
        self._end: State[Any] | None = None
        self._is_deleted = False

    @property
    def is_over(self) -> bool:
        """Whether nothing may begin any more. The API is asked every few seconds; one that is away says nothing."""
        if not self._is_known and elapsed_clock() >= self._look_at:
            self.look()
        return self._is_known

    def look(self) -> bool:
        """As `is_over`, asked now, from any thread."""
        if self._is_known or self._run is None:
            return self._is_known
        with self._lock:
            self._look_at = elapsed_clock() + LOOK_EVERY
            try:
                self._heed(self._context.copy().run(_read, self._run))
            except (httpx.HTTPError, RuntimeError) as error:
                self._look_at = elapsed_clock() + AWAY_FOR
                logger.debug("can't ask Prefect what became of this flow run (%s)", type(error).__name__)
        return self._is_known

    def is_alone(self) -> bool:
        """Whether this process is the only one that Prefect has started for the run; False, too, if it can't be asked.

        One that was resumed, or retried after a crash that was none, has another beside it under the same id.
        """
        if self._run is None:
            return True
        try:
            now = self._context.copy().run(_read, self._run)
        except (httpx.HTTPError, RuntimeError):
            return False
        return now is not None and now.run_count == self._run.run_count

    def concluded(self, result: Any) -> Any:
        """*result*, or what Prefect takes for the end of a run that was stopped.

        Raises:
            Pause: it was suspended: Prefect leaves it so, and starts it again when it is resumed.
            Abort: somebody has ended or deleted it: its state stays what they made it.
        """
        if not self._is_known:
            return result
        state = self._state
        if state is None or state.is_final():
            what = "deleted" if state is None else f"set to {state.name}"
            message = f"this flow run was {what} in Prefect; what had begun is done, and the rest was given back"
            raise Abort(message)
        if state.is_cancelling():
            return Cancelled(message="cancelled; what had begun is done, and the rest was given back")
        if state.state_details.pause_reschedule:
            raise Pause(state=state)
        return result  # paused, it would wait here for ever; the next run goes on where this one ends

    @property
    def _is_known(self) -> bool:
        return self._is_deleted or self._state is not None

    @property
    def _state(self) -> State[Any] | None:
        if self._end is not None or self._request is None:
            return self._end
        return cast("State[Any] | None", self._request.get_state())

    def _heed(self, now: FlowRun | None) -> None:
        if now is None:
            self._is_deleted = True
            logger.warning("this flow run was deleted in Prefect: nothing more begins")
            return
        state = now.state
        if state is not None and (state.is_paused() or state.is_cancelling() or state.is_final()):
            self._end = state
            logger.warning("this flow run is %s in Prefect: nothing more begins", state.name)


def _read(run: FlowRun) -> FlowRun | None:
    """The run as the API has it; None where it has none."""
    with impatient_client() as client:
        try:
            return client.read_flow_run(run.id)
        except ObjectNotFound:
            return None
