"""The Prefect tasks and flows that work runs in: one for each processor, made once, called with a reference.

A copy of the author's `Task` or `Flow` keeps all that its decorator says (retries, hooks, log settings); its function
is replaced by one that takes the reference, finds the work by it and calls the author's function with the payload, in
this process.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakValueDictionary

from prefect import Flow, Task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from prefect.utilities.callables import parameter_schema

from prefect_claim_dispatch.dispatching.artifacts import Artifacts
from prefect_claim_dispatch.dispatching.batches import Batch, Workload
from prefect_claim_dispatch.dispatching.failures import tell_failures
from prefect_claim_dispatch.dispatching.occupying import limited, limited_async
from prefect_claim_dispatch.dispatching.tracebacks import shorten
from prefect_claim_dispatch.dispatching.work import ActionReference
from prefect_claim_dispatch.registrations import Processor

RUN_NAME = "{action.name}"


class Desk:
    """Where a run finds its work by reference, and each processor's task or flow."""

    def __init__(self, artifacts: Artifacts | None = None) -> None:
        self._artifacts = artifacts or Artifacts()
        self._works: WeakValueDictionary[ActionReference, Workload] = WeakValueDictionary()
        self._tasks: dict[Processor, Task[..., Any]] = {}
        self._flows: dict[Processor, Flow[..., Any]] = {}
        shorten()

    def take(self, work: Workload) -> ActionReference:
        """Keep *work* to be found; the caller keeps it alive."""
        self._works[work.reference] = work
        return work.reference

    def find(self, reference: ActionReference) -> Workload:
        """The work that *reference* stands for."""
        return self._works[reference]

    def task_for(self, processor: Processor) -> Task[..., Any]:
        """The task that runs actions of *processor*; never `with_options` per row, which costs as much as the run."""
        task = self._tasks.get(processor)
        if task is None:
            task = self._tasks[processor] = task_of(processor, _body(processor, self.find, self._artifacts))
        return task

    def flow_for(self, processor: Processor) -> Flow[..., Any]:
        """The flow that runs actions of *processor*."""
        flow = self._flows.get(processor)
        if flow is None:
            flow = self._flows[processor] = _flow(processor, self.find)
        return flow


Find = Callable[[ActionReference], Workload]


def task_of(processor: Processor, body: Callable[..., Any]) -> Task[..., Any]:
    """The task of *processor*, configured as its author says, that calls *body*."""
    task: Task[..., Any]
    if isinstance(processor.source, Task):
        task = copy.copy(cast("Task[..., Any]", processor.source))  # pyright: ignore[reportUnknownMemberType]
        task.fn = task.__wrapped__ = body  # pyright: ignore[reportAttributeAccessIssue] - as Task itself sets it
        task.task_run_name = RUN_NAME
    else:
        task = Task(
            fn=body,
            name=processor.pattern,
            description=inspect.getdoc(processor.code),
            task_run_name=RUN_NAME,
            retries=processor.options.retries,
            retry_delay_seconds=processor.options.retry_delay_seconds,
            log_prints=processor.options.log_prints,
        )
    # Isolated, the child is killed at the limit; Prefect's own would leave it running. In a batch the limit is of each
    # call: one that hangs would else take the time of all, and Prefect's may strike anywhere between the calls.
    is_ours = processor.isolation is not None or processor.rows_per_run is not None
    task.timeout_seconds = None if is_ours else _run_limit(processor)
    # With result persistence on, Prefect's default policy would run one of several equal actions and skip the others.
    task.cache_policy = NO_CACHE
    task.cache_key_fn = None
    task.result_storage_key = None
    return task


def _flow(processor: Processor, find: Find) -> Flow[..., Any]:
    flow = copy.copy(cast("Flow[..., Any]", processor.source))
    flow.fn = _body(processor, find, None)
    flow.flow_run_name = RUN_NAME
    # Flow parameters are stored and shown, and their values go into the error log when they don't fit: the reference
    # is the only one.
    flow.should_validate_parameters = False
    flow.parameters = parameter_schema(flow.fn)
    flow.timeout_seconds = _run_limit(processor)
    return flow


def _run_limit(processor: Processor) -> float | None:
    """Seconds that Prefect gives the run; none where it may wait for a slot first, which is no time of its author's."""
    limit = None if processor.concurrency_limits else processor.time_limit
    return None if limit is None else limit.total_seconds()


def _body(processor: Processor, find: Find, artifacts: Artifacts | None) -> Callable[..., Any]:
    if processor.is_async:

        async def run_async(action: ActionReference) -> Any:
            return await _called_async(find(action), artifacts)

        return named(run_async, processor)

    def run(action: ActionReference) -> Any:
        return _called(find(action), artifacts)

    return named(run, processor)


def _called(work: Workload, artifacts: Artifacts | None) -> Any:
    """Call a sync processor in the current run, in its slots; what Prefect takes for the result or final state."""
    return limited(
        work.processor.concurrency_limits,
        lambda: call(work, artifacts),
        refused=work.postponed,
        is_wanted=lambda: work.is_wanted,
    )


async def _called_async(work: Workload, artifacts: Artifacts | None) -> Any:
    """As `_called`, for an async processor."""
    return await limited_async(
        work.processor.concurrency_limits,
        lambda: call_async(work, artifacts),
        refused=work.postponed,
        is_wanted=lambda: work.is_wanted,
    )


def call(work: Workload, artifacts: Artifacts | None = None) -> Any:
    """Call a sync processor in the current run; what Prefect takes for the result or final state.

    *artifacts*: what tells of a batch on its run's page; None where somebody else does.
    """
    if not isinstance(work, Batch):
        return work.run(run_id(), is_last_try=_is_last_try())
    with _telling_end(work, artifacts):
        return work.run(run_id(), is_last_try=_is_last_try())


async def call_async(work: Workload, artifacts: Artifacts | None = None) -> Any:
    """As `call`, for an async processor."""
    if not isinstance(work, Batch):
        return await work.run_async(run_id(), is_last_try=_is_last_try())
    with _telling_end(work, artifacts):
        return await work.run_async(run_id(), is_last_try=_is_last_try())


@contextmanager
def _telling_end(batch: Batch, artifacts: Artifacts | None) -> Generator[None]:
    try:
        yield
    finally:
        logger = get_run_logger()
        tell_failures(batch, logger.error if _is_last_try() else logger.warning)
        (logger.warning if batch.failed else logger.info)("%s", batch.summary)
        if artifacts is not None and (_is_last_try() or not batch.failed):
            artifacts.tell(batch, task_run_id=run_id())


def _is_last_try() -> bool:
    """Whether Prefect has no retries left, so that what is returned now is how the run ends."""
    task, flow = TaskRunContext.get(), FlowRunContext.get()
    if task is not None:
        return task.task_run.run_count > task.task.retries
    if flow is None or flow.flow is None or flow.flow_run is None:
        return True
    return flow.flow_run.run_count > (flow.flow.retries or 0)


def named(body: Callable[..., Any], processor: Processor) -> Callable[..., Any]:
    """*body* under the name of the author's function."""
    # Not functools.wraps: its __wrapped__ would show Prefect the author's signature.
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(body, attribute, getattr(processor.code, attribute, None) or getattr(body, attribute))
    return body


def run_id() -> str:
    """The id of the current task run, or flow run; empty outside of both."""
    task, flow = TaskRunContext.get(), FlowRunContext.get()
    if task is not None:
        return str(task.task_run.id)
    return str(flow.flow_run.id) if flow is not None and flow.flow_run is not None else ""
