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
            task = self._tasks[processor] = _task(processor, self.find, self._artifacts)
        return task

    def flow_for(self, processor: Processor) -> Flow[..., Any]:
        """The flow that runs actions of *processor*."""
        flow = self._flows.get(processor)
        if flow is None:
            flow = self._flows[processor] = _flow(processor, self.find)
        return flow


Find = Callable[[ActionReference], Workload]


def _task(processor: Processor, find: Find, artifacts: Artifacts) -> Task[..., Any]:
    body = _task_body(processor, find, artifacts)
    task: Task[..., Any]
    if isinstance(processor.source, Task):
        task = copy.copy(cast("Task[..., Any]", processor.source))  # pyright: ignore[reportUnknownMemberType]
        task.fn = body
        task.task_run_name = RUN_NAME
    else:
        task = Task(
            fn=body,
            name=processor.pattern,
            description=inspect.getdoc(processor.function),
            task_run_name=RUN_NAME,
            retries=processor.options.retries,
            retry_delay_seconds=processor.options.retry_delay_seconds,
        )
    # Isolated, the child is killed at the limit; Prefect's own would leave it running. In a batch the limit is of each
    # call: one that hangs would else take the time of all, and Prefect's may strike anywhere between the calls.
    is_ours = processor.isolation is not None or processor.rows_per_run is not None
    limit = None if is_ours else processor.time_limit
    task.timeout_seconds = None if limit is None else limit.total_seconds()
    # With result persistence on, Prefect's default policy would run one of several equal actions and skip the others.
    task.cache_policy = NO_CACHE
    task.cache_key_fn = None
    task.result_storage_key = None
    return task


def _flow(processor: Processor, find: Find) -> Flow[..., Any]:
    flow = copy.copy(cast("Flow[..., Any]", processor.source))
    flow.fn = _flow_body(processor, find)
    flow.flow_run_name = RUN_NAME
    # Flow parameters are stored and shown, and their values go into the error log when they don't fit: the reference
    # is the only one.
    flow.should_validate_parameters = False
    flow.parameters = parameter_schema(flow.fn)
    if processor.options.timeout is not None:
        flow.timeout_seconds = processor.options.timeout.total_seconds()
    return flow


def _task_body(processor: Processor, find: Find, artifacts: Artifacts) -> Callable[..., Any]:
    if processor.is_async:

        async def run_async(action: ActionReference) -> Any:
            match find(action):
                case Batch() as batch:
                    with _telling_end(batch, artifacts):
                        return await batch.run_async(_task_run_id(), is_last_try=_is_last_try())
                case work:
                    return await work.run_async(_task_run_id())

        return _named(run_async, processor)

    def run(action: ActionReference) -> Any:
        match find(action):
            case Batch() as batch:
                with _telling_end(batch, artifacts):
                    return batch.run(_task_run_id(), is_last_try=_is_last_try())
            case work:
                return work.run(_task_run_id())

    return _named(run, processor)


@contextmanager
def _telling_end(batch: Batch, artifacts: Artifacts) -> Generator[None]:
    try:
        yield
    finally:
        logger = get_run_logger()
        (logger.warning if batch.failed else logger.info)("%s", batch.summary)
        if len(batch.works) > 1 and (_is_last_try() or not batch.failed):
            artifacts.tell(batch, task_run_id=_task_run_id())


def _is_last_try() -> bool:
    """Whether Prefect has no retries left, so that what is returned now is how the run ends."""
    context = TaskRunContext.get()
    return context is None or context.task_run.run_count > context.task.retries


def _flow_body(processor: Processor, find: Find) -> Callable[..., Any]:
    if processor.is_async:

        async def run_async(action: ActionReference) -> Any:
            return await find(action).run_async(_flow_run_id())

        return _named(run_async, processor)

    def run(action: ActionReference) -> Any:
        return find(action).run(_flow_run_id())

    return _named(run, processor)


def _named(body: Callable[..., Any], processor: Processor) -> Callable[..., Any]:
    # Not functools.wraps: its __wrapped__ would show Prefect the author's signature.
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(body, attribute, getattr(processor.function, attribute, None) or getattr(body, attribute))
    return body


def _task_run_id() -> str:
    context = TaskRunContext.get()
    return str(context.task_run.id) if context is not None else ""


def _flow_run_id() -> str:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context is not None and context.flow_run is not None else ""
