"""Work: one claimed action on its way through a Prefect run. Whatever a processor does becomes an outcome here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed

from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.dispatching.isolation import call
from prefect_claim_dispatch.outcomes import Cancel, Failed, Outcome, Processed, Snooze
from prefect_claim_dispatch.registrations import Processor

Key = tuple[int, int]


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


class RunFailedError(Exception):
    """A processor returned a Prefect state other than Completed: as Prefect has it, its run failed."""


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
        self.reference = ActionReference(name=action.reference, id=action.id, claim_count=action.claim_count)
        self._arguments = arguments
        self._on_begin = on_begin
        self._on_outcome = on_outcome
        self._lock = threading.Lock()
        self._phase = Phase.WAITING
        self._error: BaseException | None = None
        self.outcome: Outcome | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the processor was called."""
        return self._phase is Phase.RUNNING

    def withdraw(self) -> bool:
        """Keep it from starting; False when it has started already."""
        with self._lock:
            if self._phase is Phase.RUNNING:
                return False
            self._phase = Phase.WITHDRAWN
            return True

    def run(self, run_id: str) -> Any:
        """Call a sync processor. Returns what Prefect takes for the run's result or final state."""
        if not self._start(run_id):
            return _not_started()
        try:
            isolation = self.processor.isolation
            if isolation is None:
                result = self.processor.function(**self._arguments)
            else:
                result = call(self.processor, isolation, self._arguments)
        except BaseException as error:  # SystemExit in one action would end the flow and all the others
            self._error = TimeoutError("over its time limit") if _is_prefects_own(error) else error
            if isinstance(error, Exception) or _is_prefects_own(error):
                raise
            raise _as_exception(error) from None
        return self._finished(result)

    async def run_async(self, run_id: str) -> Any:
        """As `run`, for an async processor."""
        if not self._start(run_id):
            return _not_started()
        try:
            result = await self.processor.function(**self._arguments)
        except BaseException as error:
            task = asyncio.current_task()
            is_cancelled = isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
            self._error = TimeoutError("over its time limit, or cancelled") if is_cancelled else error
            if isinstance(error, Exception) or is_cancelled:
                raise
            raise _as_exception(error) from None
        return self._finished(result)

    def conclude(self, ended: str) -> None:
        """Settle the outcome when the Prefect run is over: without one, the attempt failed.

        *ended* says how the run ended.
        """
        if self.outcome is not None or self._phase is Phase.WITHDRAWN:
            return
        if self._error is not None:
            self._decide(Failed.from_exception(self._error))
        else:
            self._decide(
                Failed(error_type="RunEnded", message=f"the run ended {ended} and the processor did not finish")
            )

    def _start(self, run_id: str) -> bool:
        with self._lock:
            if self._phase is Phase.WITHDRAWN:
                return False
            if not self.action.lease_holds:
                self._phase = Phase.WITHDRAWN if self._phase is Phase.WAITING else self._phase
                return False
            self._phase = Phase.RUNNING
            self._error = None
        self._on_begin(self, run_id)
        return True

    def _finished(self, result: Any) -> Any:
        match result:
            case Snooze() as snooze:
                self._decide(snooze)
                return Completed(name="Snoozed", message=f"again in {snooze.delay}")
            case Cancel() as cancel:
                self._decide(cancel)
                return Completed(name="Cancelled", message="cancelled by its processor")
            case State() if not result.is_completed():
                # Raised, since a flow run that returns a failed state is left waiting for its retry.
                self._error = RunFailedError(result.message or f"the processor returned the state {result.name}")
                raise self._error
            case _:
                self._decide(Processed())
                # What a processor returns stays with it, unless its author asked Prefect to keep results.
                return result if getattr(self.processor.source, "persist_result", None) else None

    def _decide(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._on_outcome(self, outcome)


def _as_exception(error: BaseException) -> ProcessorExitedError:
    return ProcessorExitedError(
        f"the processor raised {type(error).__qualname__}: {Failed.from_exception(error).message}"
    )


def _is_prefects_own(error: BaseException) -> bool:
    """Whether *error* is what Prefect throws into a thread at a time limit, and not the processor's doing."""
    return isinstance(error, asyncio.CancelledError) and type(error).__module__.startswith("prefect.")


def _not_started() -> State[None]:
    return Completed(name="NotStarted", message="the claim was given back or is not held any more")
