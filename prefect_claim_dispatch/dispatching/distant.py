"""A run in another process, which a task runner of the author's has started: by reference, as all our runs.

The row is fetched there, which is the moment when it begins: only one run may, however often a runner starts it again.
What came of it goes back to the claim flow as plain data, and is settled there.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed, Crashed
from sqlalchemy import Engine, Table

from prefect_claim_dispatch import databases, fetching, outstanding
from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.deadlines import answered_in_time
from prefect_claim_dispatch.dispatching.batches import Batch, Workload
from prefect_claim_dispatch.dispatching.guard import arguments_for, decoded
from prefect_claim_dispatch.dispatching.locating import database_url
from prefect_claim_dispatch.dispatching.occupying import limited, limited_async
from prefect_claim_dispatch.dispatching.runs import call, call_async, named, run_id
from prefect_claim_dispatch.dispatching.shield import shielded
from prefect_claim_dispatch.dispatching.telling import AttemptFailedError, Told, told, told_of
from prefect_claim_dispatch.dispatching.tracebacks import shorten
from prefect_claim_dispatch.dispatching.tracebacks import told as told_error
from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.errors import ClaimDispatchError, ConfigurationError, DatabaseError, RegistrationError
from prefect_claim_dispatch.fences import Key
from prefect_claim_dispatch.outcomes import Failed, Outcome, Snooze, Unprocessable
from prefect_claim_dispatch.processors import load_modules, registry
from prefect_claim_dispatch.registrations import Processor
from prefect_claim_dispatch.schema import actions_table

AWAY_FOR = timedelta(seconds=10)
"""Until a row is tried again of which a worker process could not ask the database; that is no failure of the row's."""

_tries = threading.local()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReference:
    """All of a run that Prefect gets to see: its name, and the fences of its rows."""

    name: str
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where another process finds the rows and the processors. No URL with a password: that is in its settings.

    *database* is the flow's parameter, and *identity* what tells the claim flow's table from every other.
    """

    database: str | None
    table: str
    schema: str | None
    identity: str
    lease: timedelta
    modules: tuple[str, ...]
    catalogue: tuple[str, ...]


class RunNotStartedError(Exception):
    """Prefect ended a run before it called its task; the run's log says why."""


def started(call: Callable[[], Any]) -> Any:
    """What *call* returns, which runs a task in a process of a pool.

    Prefect leaves a run that fails to start by `SystemExit`. Its pool can't take that: the thread that hands results on
    would end with it, and no run of the pool would ever be over again.

    Raises:
        RunNotStartedError: instead of that.
    """
    try:
        return call()
    except SystemExit as error:
        msg = f"Prefect ended the run before it began (exit status {error.code}); its log says why"
        raise RunNotStartedError(msg) from None


def stand_in() -> None:
    """What the claim flow does, as far as its runs in other processes need to know."""


def body_of(processor: Processor, place: Place) -> Callable[..., Any]:
    """The function of the task that runs actions of *processor* in another process."""
    # By name: neither the processor nor anything of its module goes there.
    pattern, module = processor.pattern, processor.code.__module__
    if processor.is_async:

        async def run_async(action: RunReference) -> Any:
            return await visit_async(pattern, module, place, action)

        return named(run_async, processor)

    def run(action: RunReference) -> Any:
        return visit(pattern, module, place, action)

    return named(run, processor)


def visit(pattern: str, module: str, place: Place, reference: RunReference) -> Any:
    """Fetch the rows of *reference*, call their processor, and tell what became of them.

    Raises:
        AttemptFailedError: the processor did, or the run may not be taken for done; Prefect may try again.
    """
    shorten()
    try:
        processor = _processor(pattern, module, place)
        engine, table = _table(place)
        return limited(
            processor.concurrency_limits,
            lambda: _Visit(processor, engine, table, place, reference).pay(),
            refused=functools.partial(_refused, reference),
            is_wanted=lambda: True,
        )
    except ClaimDispatchError as error:
        return _turned_away(reference, error)


async def visit_async(pattern: str, module: str, place: Place, reference: RunReference) -> Any:
    """As `visit`, for an async processor."""
    shorten()
    try:
        processor = _processor(pattern, module, place)
        engine, table = _table(place)
        return await limited_async(
            processor.concurrency_limits,
            lambda: _Visit(processor, engine, table, place, reference).pay_async(),
            refused=functools.partial(_refused, reference),
            is_wanted=lambda: True,
        )
    except ClaimDispatchError as error:
        return _turned_away(reference, error)


class _Visit:
    """One try of one run. What the first try has fetched, the next of Prefect's finds in the same thread."""

    def __init__(
        self, processor: Processor, engine: Engine, table: Table, place: Place, reference: RunReference
    ) -> None:
        self._processor = processor
        self._others: dict[Key, Outcome] = {}
        if _is_first_try():
            _tries.run_id, _tries.fetched = run_id(), self._fetched(engine, table, place, reference)
        self._work = _fetched_before()

    def pay(self) -> Any:
        """Call a sync processor."""
        if self._work is None:
            return self._nothing()
        try:
            with shielded():
                return self._told(call(self._work))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            failure = self._failure(error)
        # Neither from the error nor beside it: those who pickle exceptions may take along what these came from.
        raise failure

    async def pay_async(self) -> Any:
        """Call an async processor."""
        if self._work is None:
            return self._nothing()
        try:
            with shielded():
                return self._told(await call_async(self._work))
        except Exception as error:  # noqa: BLE001 - as above
            failure = self._failure(error)
        raise failure

    def _fetched(self, engine: Engine, table: Table, place: Place, reference: RunReference) -> Workload | None:
        with answered_in_time(place.lease):
            raws = fetching.begin_once(engine, table, reference.keys, run_id(), lease=place.lease)
        works = [work for raw in raws if (work := self._admitted(raw)) is not None]
        if not works:
            return None
        return works[0] if self._processor.rows_per_run is None else Batch(works)

    def _admitted(self, raw: RawAction) -> Work | None:
        action = decoded(raw)
        if isinstance(action, Action):
            arguments = arguments_for(action, self._processor)
            if not isinstance(arguments, Unprocessable):
                return Work(action, self._processor, arguments, on_begin=_ignore, on_outcome=_ignore)
            action = arguments
        self._others[raw.id, raw.claim_count] = action
        return None

    def _nothing(self) -> Any:
        message = "its claim is not held any more, or another run has begun it"
        return Completed(name="NotStarted", message=message, data=told(self._others))

    def _told(self, shown: Any) -> Any:
        answer = self._answer()
        if isinstance(shown, State):
            shown.data = answer
            return cast("State[Any]", shown)
        return answer  # what the processor returned stays here

    def _failure(self, error: Exception) -> AttemptFailedError:
        failed = Failed.from_exception(error)
        return AttemptFailedError(f"{failed.error_type}: {failed.message}", self._answer(), told_error(error))

    def _answer(self) -> Told:
        return told_of([] if self._work is None else self._work.works, self._others)


def _ignore(_work: Work, _told: Any) -> None:
    """Told at the end, with what became of the others."""


def _refused(reference: RunReference, snooze: Snooze) -> Any:
    if not _is_first_try() and (work := _fetched_before()) is not None:
        answer = told_of(work.works, {})  # what failed in an earlier try: that is what it came to
        raise AttemptFailedError(snooze.reason, answer)
    return Completed(
        name="Snoozed", message=f"again in {snooze.delay}", data=told(dict.fromkeys(reference.keys, snooze))
    )


def _fetched_before() -> Workload | None:
    return _tries.fetched if getattr(_tries, "run_id", None) == run_id() else None


def _turned_away(reference: RunReference, error: ClaimDispatchError) -> Any:
    """What went wrong before anything could begin. Not raised: the same again, in this process, would be in vain."""
    away = Snooze(AWAY_FOR, str(error)) if isinstance(error, DatabaseError) else Failed.from_exception(error)
    state = Crashed(message=str(error))
    state.data = told(dict.fromkeys(reference.keys, away))
    return state


def _is_first_try() -> bool:
    context = TaskRunContext.get()
    return context is None or context.task_run.run_count <= 1


def _processor(pattern: str, module: str, place: Place) -> Processor:
    _load(place.modules, place.catalogue)
    processor = registry.get(pattern)
    if processor is None:
        _load((module,), place.catalogue)
        processor = registry.get(pattern)
    if processor is None:
        msg = (
            f"no processor {pattern!r} is registered in this worker process, though its modules "
            f"({', '.join((*place.modules, module))}) were imported; deploy the same code there"
        )
        raise RegistrationError(msg)
    return processor


@functools.cache
def _load(modules: tuple[str, ...], catalogue: tuple[str, ...]) -> None:
    load_modules(modules, catalogue=catalogue)


@functools.cache
def _table(place: Place) -> tuple[Engine, Table]:
    engine, table = databases.engine_for(database_url(place.database)), actions_table(place.table, place.schema)
    if outstanding.identity(engine, table) != place.identity:
        msg = (
            "this worker process has another action table than the claim flow; "
            "set CLAIM_DISPATCH_DATABASE_URL in its environment, too"
        )
        raise ConfigurationError(msg)
    return engine, table
