"""Work: one claimed action on its way through a Prefect run. Whatever a processor does becomes an outcome here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from functools import cached_property
from typing import Any

from prefect.states import Completed

from prefect_claim_dispatch.actions import Action, elapsed_clock
from prefect_claim_dispatch.dispatching.calling import called, called_async
from prefect_claim_dispatch.dispatching.isolation import call
from prefect_claim_dispatch.dispatching.returns import NOTHING, Returned, RunFailedError, is_stopped
from prefect_claim_dispatch.fences import Key
from prefect_claim_dispatch.outcomes import Cancel, Failed, Outcome, Processed, Released, Snooze
from prefect_claim_dispatch.registrations import Processor


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionReference:
    """All of an action that Prefect gets to see: it names the run and finds the work, and there is no payload in it."""

    name: str
    id: int
    claim_count: int

    @property
    def key(self) -> Key:
        """The fence of the claim."""
        return self.id, self.claim_count


class ProcessorExitedError(Exception):
    """A processor raised what would end a whole process (`SystemExit`, `KeyboardInterrupt`, ...), told as an error."""


class Phase(Enum):
    """How far a piece of work has come."""

    WAITING = "waiting"
    RUNNING = "running"
    WITHDRAWN = "withdrawn"


class Work:
    """One claimed action with its processor and arguments, and what came of it."""

    def __init__(
        self,
        action: Action,
        processor: Processor,
        arguments: dict[str, Any],
        *,
        on_begin: Callable[[Work, str], None],
        on_outcome: Callable[[Work, Outcome], None],
    ) -> None:
        self.action = action
        self.processor = processor
        self.arguments = arguments
        self._on_begin = on_begin
        self._on_outcome = on_outcome
        self._lock = threading.Lock()
        self._phase = Phase.WAITING
        self._take_back: Callable[[Key], bool] | None = None
        self.error: BaseException | None = None
        self.outcome: Outcome | None = None
        self.begun_at: float | None = None
        """When the processor was called, last; None before."""

    @cached_property
    def reference(self) -> ActionReference:
        """What Prefect gets to see."""
        return ActionReference(name=self.action.reference, id=self.action.id, claim_count=self.action.claim_count)

    @property
    def works(self) -> tuple[Work, ...]:
        """The actions of this run: itself. A `Batch` has several."""
        return (self,)

    @property
    def has_begun(self) -> bool:
        """Whether the processor was called."""
        return self._phase is Phase.RUNNING

    @property
    def is_waiting(self) -> bool:
        """Whether the processor was not called, and may still be."""
        return self._phase is Phase.WAITING

    @property
    def is_wanted(self) -> bool:
        """Whether it is still to be done here: not given back, and its lease holds."""
        return self._phase is not Phase.WITHDRAWN and self.action.lease_holds

    @property
    def _within(self) -> timedelta | None:
        # Of the call alone, where Prefect's limit on the run would count what the run waits for its slot.
        return self.processor.call_limit if self.processor.concurrency_limits else None

    def withdraw(self) -> bool:
        """Keep it from starting; False when it has started already."""
        with self._lock:
            if self._phase is Phase.RUNNING and not self._is_taken_back():
                return False
            self._phase = Phase.WITHDRAWN
            return True

    def hand_over(self, take_back: Callable[[Key], bool]) -> bool:
        """Let another process do it: from now on it may have begun at any time. False when it must not begin at all.

        *take_back* asks the table that nobody begins it any more; it says whether nobody had.
        """
        with self._lock:
            if self._phase is Phase.WAITING and self.action.lease_holds:
                self._phase, self._take_back = Phase.RUNNING, take_back
                self.begun_at = elapsed_clock()
            else:
                self._phase = Phase.WITHDRAWN
            return self._phase is Phase.RUNNING

    def come_back(self, run_id: str, outcome: Outcome) -> None:
        """Take the outcome that the process came to, which it was handed over to; the first one counts."""
        if self._phase is Phase.RUNNING and self.outcome is None:
            self._on_begin(self, run_id)
            self._decide(outcome)

    def put_off(self, released: Released) -> None:
        """Have it done later, after it was withdrawn; without effect if it has an outcome."""
        if self.outcome is None:
            self._decide(released)

    def _is_taken_back(self) -> bool:
        return self._take_back is not None and self.outcome is None and self._take_back(self.reference.key)

    def run(self, run_id: str, *, is_last_try: bool = True) -> Any:
        """Call a sync processor. Returns what Prefect takes for the run's result or final state."""
        return self._judged(self.attempt(run_id, self._within), is_last_try=is_last_try)

    async def run_async(self, run_id: str, *, is_last_try: bool = True) -> Any:
        """As `run`, for an async processor."""
        return self._judged(await self.attempt_async(run_id, self._within), is_last_try=is_last_try)

    def _judged(self, returned: Returned | None, *, is_last_try: bool) -> Any:
        """What the run ends as. A flow that returned states is judged by Prefect by them, as it is elsewhere."""
        if returned is None:
            return self.shown()
        try:
            self.finish(returned)
        except RunFailedError:
            states = returned.for_prefect
            # A flow run that returns a failed state may be left waiting for its retry: raised, it is retried.
            if not self.processor.is_flow or (states is not None and not is_last_try):
                raise
            return states
        return self.shown(returned)

    def postponed(self, snooze: Snooze) -> Any:
        """Have it done later, as it may not be called now; returns what Prefect takes for the run's final state.

        Raises:
            Exception: it failed in an earlier try of this run: that is what it came to, and it costs the attempt.
        """
        if self.error is not None:
            raise as_exception(self.error)
        self.postpone(snooze)
        return self.shown()

    def postpone(self, snooze: Snooze) -> None:
        """Have it done later, unless it was called already, or is given back."""
        with self._lock:
            if self._phase is not Phase.WAITING:
                return
            self._phase = Phase.WITHDRAWN
        self._decide(snooze)

    def attempt(self, run_id: str, within: timedelta | None = None) -> Returned | None:
        """Call a sync processor; what it returned, for `finish` to take. None: it must not begin, and was not called.

        *within* is the time limit of this call, None where Prefect has one on the whole run.
        """
        if not self.begin(run_id):
            return None
        try:
            processor, isolation = self.processor, self.processor.isolation
            if isolation is not None:
                return Returned(call(processor, isolation, self.arguments))
            return called(processor.function, self.arguments, within, limit=processor.time_limit)
        except BaseException as error:  # SystemExit in one action would end the flow and all the others
            visible = self.fail(error)
            if visible is error:
                raise
            raise visible from None

    async def attempt_async(self, run_id: str, within: timedelta | None = None) -> Returned | None:
        """As `attempt`, for an async processor."""
        if not self.begin(run_id):
            return None
        try:
            processor = self.processor
            return await called_async(processor.function, self.arguments, within, limit=processor.time_limit)
        except BaseException as error:  # SystemExit in one action would end the flow and all the others
            visible = self.fail(error)
            if visible is error:
                raise
            raise visible from None

    def shown(self, returned: Returned = NOTHING) -> Any:
        """What Prefect takes for the result or final state of the run that ended so."""
        match self.outcome:
            case None:
                return Completed(name="NotStarted", message="the claim was given back or is not held any more")
            case Snooze(delay=delay):
                return Completed(name="Snoozed", message=f"again in {delay}")
            case Cancel():
                return Completed(name="Cancelled", message="cancelled by its processor")
            case _:
                # What a processor returns stays with it, unless its author asked Prefect to keep results.
                is_kept = getattr(self.processor.source, "persist_result", None)
                return returned.value if is_kept else returned.for_prefect

    def conclude(self, ended: str) -> None:
        """Settle the outcome when the Prefect run is over: without one, the attempt failed, if it was one.

        *ended* says how the run ended. What was never called is withdrawn, and costs no attempt.
        """
        if self.outcome is not None or self.withdraw():
            return
        if self.error is not None:
            self._decide(Failed.from_exception(self.error))
        else:
            self._decide(
                Failed(error_type="RunEnded", message=f"the run ended {ended} and the processor did not finish")
            )

    def begin(self, run_id: str) -> bool:
        """Note that the processor is called now; False when it must not be: given back, or its lease is over."""
        with self._lock:
            if self._phase is Phase.WITHDRAWN:
                return False
            if not self.action.lease_holds:
                self._phase = Phase.WITHDRAWN if self._phase is Phase.WAITING else self._phase
                return False
            self._phase = Phase.RUNNING
            self.begun_at = elapsed_clock()
            self.error = None
        self._on_begin(self, run_id)
        return True

    def fail(self, error: BaseException) -> BaseException:
        """Note what the call raised; returns what may be raised of it: an exception, or what ends the run from outside.

        No outcome yet: Prefect may retry.
        """
        was_stopped = is_stopped(error)
        self.error = TimeoutError("over its time limit, or cancelled") if was_stopped else error
        return error if was_stopped else as_exception(error)

    def finish(self, returned: Returned) -> None:
        """Take what the processor returned for the outcome.

        Raises:
            RunFailedError: a run of its own, which it returned, did not end well.
        """
        try:
            verdict = returned.verdict()
        except RunFailedError as error:
            self.error = error
            raise
        self._decide(_PROCESSED if verdict is None else verdict)

    def _decide(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._on_outcome(self, outcome)


def as_exception(error: BaseException) -> Exception:
    """*error*, or what is told of it where it would end more than this run."""
    if isinstance(error, Exception):
        return error
    msg = f"the processor raised {type(error).__qualname__}: {Failed.from_exception(error).message}"
    return ProcessorExitedError(msg).with_traceback(error.__traceback__)


_PROCESSED = Processed()
