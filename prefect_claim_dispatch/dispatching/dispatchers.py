"""How work, or a batch of it, is handed to Prefect: as a task run or as a subflow run.

A new mode is one more class here that passes the contract test.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Protocol, Self

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.logging.loggers import patch_print
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from prefect_claim_dispatch.dispatching.artifacts import Artifacts
from prefect_claim_dispatch.dispatching.batches import Workload
from prefect_claim_dispatch.dispatching.runners import Pool, RunnerDispatcher
from prefect_claim_dispatch.dispatching.runs import Desk
from prefect_claim_dispatch.dispatching.shield import shielded
from prefect_claim_dispatch.dispatching.work import ActionReference
from prefect_claim_dispatch.outcomes import redacted
from prefect_claim_dispatch.registrations import Processor

logger = logging.getLogger(__name__)

MESSAGE_LENGTH: Final = 200
"""Characters of what is told of a run whose processor was not called."""

OnDone = Callable[[Workload, str], None]


class Dispatcher(Protocol):
    """Starts work and tells when its run is over.

    `submit` does not wait; `on_done` is called once for each, from any thread.
    """

    def submit(self, work: Workload, on_done: OnDone) -> None:
        """Start a run for *work*; *on_done* gets it back with the name of the run's final state."""
        ...


class TaskDispatcher:
    """Each action, or batch of them, is a task run of the claim flow."""

    def __init__(self, desk: Desk, runner: TaskRunner[Any]) -> None:
        self._desk = desk
        self._runner = runner

    def submit(self, work: Workload, on_done: OnDone) -> None:
        """Submit the processor's task to the task runner."""
        task = self._desk.task_for(work.processor)
        future: PrefectFuture[Any] = self._runner.submit(task, {"action": self._desk.take(work)})
        future.add_done_callback(once(work, on_done, _ended))


class FlowDispatcher:
    """Each action is a subflow run of the claim flow, in a thread of its own. Costs the server ten times a task run."""

    def __init__(self, desk: Desk, executor: ThreadPoolExecutor) -> None:
        self._desk = desk
        self._executor = executor

    def submit(self, work: Workload, on_done: OnDone) -> None:
        """Run the processor's flow as a child of the current flow run."""
        flow = self._desk.flow_for(work.processor)
        context = contextvars.copy_context()
        future: Future[State[Any]] = self._executor.submit(context.run, _run_flow, flow, self._desk.take(work))
        future.add_done_callback(once(work, on_done, _flow_ended))


class RoutingDispatcher:
    """Chooses the mode by the processor, and owns what the modes run on.

    *handed_over*: where task and batch runs go instead of threads of this process; see `runners`.
    """

    def __init__(self, concurrency: int, handed_over: tuple[RunnerDispatcher, Pool] | None = None) -> None:
        # Our own runner: tasks that submit tasks to the runner that they themselves occupy would wait for ever.
        self._runner = ThreadPoolTaskRunner[Any](max_workers=concurrency)
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="claim-dispatch-subflow")
        self._artifacts = Artifacts() if handed_over is None else handed_over[0].artifacts
        desk = Desk(self._artifacts)
        self._is_abandoned = False
        self._tasks = TaskDispatcher(desk, self._runner)
        self._flows = FlowDispatcher(desk, self._executor)
        self._handed_over, self._pool = handed_over or (None, None)
        self._prints = ExitStack()

    def __enter__(self) -> Self:
        # Each run with `log_prints` replaces `print` and puts back what it found. The first of several to end would put
        # back the one that logs nothing, under the others: so what they find is one that logs, for those who want it.
        self._prints.enter_context(patch_print())
        self._runner.__enter__()
        if self._pool is not None:
            self._pool.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._prints.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if not self._is_abandoned:
            if self._pool is not None:
                self._pool.close(kind, error, trace)
            self._runner.__exit__(kind, error, trace)
            self._artifacts.close()

    def abandon(self) -> None:
        """Don't wait at the end for work that outlasted its grace period: it is left to its leases."""
        self._is_abandoned = True

    def submit(self, work: Workload, on_done: OnDone) -> None:
        """Start *work* in its processor's mode."""
        self._mode(work.processor).submit(work, on_done)

    def _mode(self, processor: Processor) -> Dispatcher:
        if processor.is_flow:
            return self._flows
        if self._handed_over is not None and processor.is_handed_over:
            return self._handed_over
        return self._tasks


def once(work: Workload, on_done: OnDone, ended: Callable[[Any, Workload], str]) -> Callable[[Any], None]:
    """What a future calls when it is done, and forgets *work* then.

    A future of Prefect's holds what holds itself: it and all the rows of a batch would wait for a garbage collection.
    """
    held = [work]

    def done(future: Any) -> None:
        run = held.pop()
        try:
            how = ended(future, run)
        except BaseException as error:  # a future swallows what its callbacks raise, and the slot would be lost
            logger.exception("how the run of %s ended can't be told", run.reference.name)
            how = type(error).__name__
        on_done(run, how)

    return done


def _run_flow(flow: Flow[..., Any], reference: ActionReference) -> State[Any]:
    with shielded():  # a request to suspend this subflow is not one to suspend its siblings
        state = flow(action=reference, return_state=True)
        return asyncio.run(state) if asyncio.iscoroutine(state) else state  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _flow_ended(future: Future[State[Any]], run: Workload) -> str:
    error = future.exception()
    return _told(future.result() if error is None else error, run)


def _ended(future: PrefectFuture[Any], run: Workload) -> str:
    try:
        # The run is over, so this takes the state that is at hand; `state` of a running future would be an API call.
        future.wait()
    except BaseException as error:  # noqa: BLE001 - a base exception in a child must not end the thread that settles it
        return _told(error, run)
    return _told(future.state, run)


def _told(end: State[Any] | BaseException, run: Workload) -> str:
    """How a run ended; and why, where its processor was not called and can't have told."""
    if isinstance(end, BaseException):
        name, why = type(end).__name__, str(end)
    else:
        name, why = end.name or "without a name", end.message
    return name if run.has_begun or not why else f"{name} ({redacted(why, MESSAGE_LENGTH)})"
