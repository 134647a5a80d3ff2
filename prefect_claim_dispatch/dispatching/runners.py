"""Task runners whose runs are in other processes: Dask's, Prefect's process pool, and whatever pickles what it submits.

Such a run fetches its rows itself (`distant`), and may be started again by the runner when its process has died. So
only the table knows whether it has begun, and where the claim flow must know, it asks by taking back the leave to.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from copy import copy
from datetime import timedelta
from typing import Any, Final, cast

import cloudpickle  # pyright: ignore[reportMissingTypeStubs] - has none
from prefect import Task
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import PrefectTaskRunner, TaskRunner, ThreadPoolTaskRunner
from sqlalchemy import Engine, Table

from prefect_claim_dispatch import fetching, outstanding
from prefect_claim_dispatch.deadlines import answered_in_time
from prefect_claim_dispatch.dispatching.artifacts import Artifacts
from prefect_claim_dispatch.dispatching.batches import Batch, Workload
from prefect_claim_dispatch.dispatching.distant import Place, RunReference, body_of, stand_in, started
from prefect_claim_dispatch.dispatching.runs import task_of
from prefect_claim_dispatch.dispatching.telling import Told, heard, is_settled_in, outcome_in
from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.errors import ConfigurationError, DatabaseError, RegistrationError
from prefect_claim_dispatch.fences import Key
from prefect_claim_dispatch.outcomes import Crashed, Failed, Outcome, Released, redacted
from prefect_claim_dispatch.registrations import Processor
from prefect_claim_dispatch.registry import Registry

logger = logging.getLogger(__name__)

TIMED_OUT: Final = "TimedOut"

OnDone = Callable[[Workload, str], None]


def handed_over(
    engine: Engine,
    table: Table,
    registry: Registry,
    *,
    database: str | None,
    modules: Sequence[str],
    catalogue: Sequence[str],
    lease: timedelta,
) -> tuple[RunnerDispatcher, Pool] | None:
    """What hands work to the task runner that the author gave the current flow; None for the usual one, threads here.

    Raises:
        ConfigurationError: the runner can't do our work.
        RegistrationError: nor can it do a processor's.
        DatabaseError: the table can't be asked what it is.
    """
    runner = _runner_of_flow()
    if runner is None:
        return None
    place = Place(
        database=database,
        table=table.name,
        schema=table.schema,
        identity=outstanding.identity(engine, table),
        lease=lease,
        modules=tuple(modules),
        catalogue=tuple(catalogue),
    )
    desk, pool = DistantDesk(place), Pool(runner)
    desk.check(registry.handed_over)
    return RunnerDispatcher(desk, pool, engine, table, lease), pool


def _runner_of_flow() -> TaskRunner[Any] | None:
    """A runner like the current flow's, not started: our own, so that nobody else's tasks wait in it for ours."""
    context = FlowRunContext.get()
    runner = None if context is None or context.flow is None else context.flow.task_runner
    if runner is None or isinstance(runner, ThreadPoolTaskRunner):
        return None
    if isinstance(runner, PrefectTaskRunner):
        msg = (
            "PrefectTaskRunner hands tasks to workers that know them by their source, and a claim flow's are made as "
            "it runs; use DaskTaskRunner or ProcessPoolTaskRunner, or a deployment_processor"
        )
        raise ConfigurationError(msg)
    return runner.duplicate()


class DistantDesk:
    """Each processor's task, as it goes to other processes."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._tasks: dict[Processor, Task[..., Any]] = {}

    def task_for(self, processor: Processor) -> Task[..., Any]:
        """The task that runs actions of *processor*."""
        task = self._tasks.get(processor)
        if task is None:
            task = self._tasks[processor] = task_of(processor, body_of(processor, self._place))
            # Else the outcome would be stored in its result's place.
            task.persist_result = False
        return task

    def check(self, processors: Collection[Processor]) -> None:
        """Find what can't be done in another process, before anything is claimed.

        Raises:
            RegistrationError: a function that can't be imported by its name there, or a task that can't be sent.
        """
        for processor in processors:
            function = processor.code
            if function.__module__ == "__main__" or "<locals>" in function.__qualname__:
                msg = (
                    f"processor {processor.pattern!r}: {processor.place} can't be imported by its name in a worker "
                    "process of the task runner; move it to a module of its own"
                )
                raise RegistrationError(msg)
            try:
                cloudpickle.dumps(self.task_for(processor))  # pyright: ignore[reportUnknownMemberType] - untyped
            except Exception as error:
                msg = (
                    f"processor {processor.pattern!r}: the task of {processor.place} can't be sent to a worker process "
                    f"({type(error).__name__}); give it hooks and options that can be pickled"
                )
                raise RegistrationError(msg) from error


class Pool:
    """The task runner, and another of its kind when it breaks: a process pool does as soon as one process has died."""

    def __init__(self, runner: TaskRunner[Any]) -> None:
        self._runner = runner
        self._started: list[TaskRunner[Any]] = []
        self._is_broken = False

    def start(self) -> None:
        """Start the runner; its processes may come with the first run."""
        self._runner.__enter__()
        self._started.append(self._runner)
        # Prefect's own, of which there is no other way to learn that a run failed to start.
        executor: Any = getattr(self._runner, "_executor", None)
        if isinstance(executor, ProcessPoolExecutor):
            executor.submit = functools.partial(executor.submit, started)

    def submit(self, task: Task[..., Any], parameters: dict[str, Any]) -> PrefectFuture[Any]:
        """Hand *task* to it."""
        if self._is_broken:
            logger.warning("a process of the task runner has died and taken its pool with it; a new pool is made")
            self._is_broken, self._runner = False, self._runner.duplicate()
            self.start()
        return self._runner.submit(task, parameters)

    def note(self, error: BaseException) -> None:
        """Look whether *error* says that it is broken."""
        self._is_broken = self._is_broken or isinstance(error, BrokenExecutor)

    def close(self, *reason: Any) -> None:
        """Wait for what runs, and end its processes."""
        while self._started:
            self._started.pop().__exit__(*(reason or (None, None, None)))


class RunnerDispatcher:
    """Each action, or batch of them, is a task run in a process of the task runner's."""

    def __init__(self, desk: DistantDesk, pool: Pool, engine: Engine, table: Table, lease: timedelta) -> None:
        self._desk = desk
        self._pool = pool
        self._engine = engine
        self._table = table
        self._lease = lease
        # A future that nobody holds is cancelled by Dask.
        self._futures: set[PrefectFuture[Any]] = set()
        self.artifacts = Artifacts()
        self._context: FlowRunContext | None = None

    def submit(self, work: Workload, on_done: OnDone) -> None:
        """Submit the processor's task to the task runner, with the references of *work*."""
        handed = Handed(work, self._engine, self._table, self._lease)
        reference = RunReference(name=work.reference.name, keys=handed.keys)
        try:
            with self._as_sent():
                future = self._pool.submit(self._desk.task_for(work.processor), {"action": reference})
        except Exception as error:
            self._pool.note(error)
            raise
        self._futures.add(future)
        context = contextvars.copy_context()
        future.add_done_callback(lambda done: context.run(self._over, done, handed, on_done))

    def _over(self, future: PrefectFuture[Any], handed: Handed, on_done: OnDone) -> None:
        ended = "lost"
        try:
            end = _end_of(future)
            if isinstance(end, BaseException):
                self._pool.note(end)
            ended = handed.come_back(end, str(future.task_run_id))
            if isinstance(handed.work, Batch) and handed.work.has_begun:
                self.artifacts.tell(handed.work, task_run_id=str(future.task_run_id))
        except Exception:
            logger.exception("what became of a run can't be told; its rows are left to their leases")
        finally:
            self._futures.discard(future)
            on_done(handed.work, ended)

    @contextmanager
    def _as_sent(self) -> Generator[None]:
        """The flow run's context as it goes along: with threads for the tasks that a processor submits in turn.

        On the runner that they themselves occupy, they would wait for ever.
        """
        with self._sent_context() or nullcontext():
            yield

    def _sent_context(self) -> FlowRunContext | None:
        context = FlowRunContext.get()
        if self._context is None and context is not None:
            flow = copy(context.flow)
            if flow is not None:
                # The function itself, pickled with what it refers to, would take the registry along.
                flow.fn = flow.__wrapped__ = stand_in  # pyright: ignore[reportAttributeAccessIssue] - as Flow sets it
                flow.task_runner = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner[Any]())
            self._context = context.model_copy(update={"flow": flow})
        return self._context


class Handed:
    """A run in another process: what of it has come back, and what may still begin."""

    def __init__(self, work: Workload, engine: Engine, table: Table, lease: timedelta) -> None:
        self.work = work
        self._engine = engine
        self._table = table
        self._lease = lease
        self._lock = threading.Lock()
        self._not_begun: set[Key] | None = None
        self.keys: tuple[Key, ...] = ()
        self.keys = tuple(one.reference.key for one in work.works if one.hand_over(self._take_back))

    def come_back(self, end: State[Any] | BaseException, run_id: str) -> str:
        """Give each action the outcome that the run came to; returns how the run ended."""
        told = heard(end) if isinstance(end, State) else None
        for one in self.work.works:
            outcome = None if told is None else outcome_in(told, one.reference.key)
            if told is not None and outcome is not None:
                self._give(one, told, outcome, run_id)
            elif not one.withdraw():
                one.come_back(run_id, _untold(end))
            elif told is None and not isinstance(end, BrokenExecutor) and one.reference.key in self.keys:
                self._put_off(one, end)
        return type(end).__name__ if isinstance(end, BaseException) else end.name or "without a name"

    def _give(self, one: Work, told: Told, outcome: Outcome, run_id: str) -> None:
        if is_settled_in(told, one.reference.key) and one.action.lease is not None:
            one.action.lease.settled = True
        one.come_back(run_id, outcome)

    def _put_off(self, one: Work, end: State[Any] | BaseException) -> None:
        # Not due at once: what the runner can't do now, it would be asked to do again at once, and again.
        reason = redacted(f"{type(end).__name__}: {end}", 300)
        logger.error("%s: the task runner could not begin it (%s); put off", one.reference.name, reason)
        one.put_off(Released(f"the task runner could not begin it ({reason})"))

    def _take_back(self, key: Key) -> bool:
        """Whether the row *key* has not begun, and can't any more; asked for all rows of the run at once."""
        with self._lock:
            if self._not_begun is None:
                self._not_begun = self._taken_back(self.keys)
            return key in self._not_begun

    def _taken_back(self, keys: Sequence[Key]) -> set[Key]:
        try:
            with answered_in_time(self._lease):
                return fetching.take_back(self._engine, self._table, keys, lease=self._lease)
        except DatabaseError as error:
            # What is not known to wait counts as begun: it costs an attempt, and is never done twice without a record.
            logger.warning("%s: can't ask whether it has begun (%s)", self.work.reference.name, error)
            return set()


def _end_of(future: PrefectFuture[Any]) -> State[Any] | BaseException:
    """The final state of a run that is over; or what came instead, because its process or the runner is gone."""
    try:
        # Asked before `state`, which would otherwise be asked of the API.
        future.result(raise_on_failure=False)
    except BaseException as error:  # noqa: BLE001 - a base exception in a run must not end the thread that settles it
        known: Any = getattr(future, "_final_state", None)
        return error if known is None else known
    state: Any = future.state
    return state


def _untold(end: State[Any] | BaseException) -> Outcome:
    """What a row came to that has begun in a run which has not told of it."""
    if isinstance(end, State) and end.name == TIMED_OUT:
        return Failed(error_type="TimeoutError", message="over its time limit, or cancelled")
    if isinstance(end, State) and end.is_failed():
        return Failed(error_type="RunEnded", message=f"the run ended {end.name} and the processor did not finish")
    how = f"ended {end.name}" if isinstance(end, State) else f"came back as {type(end).__name__}"
    return Crashed(reason=f"it had begun in a process that is gone, as far as the task runner knows: its run {how}")
