"""Returns: what a call has returned, taken to its end before it counts.

What is awaitable is awaited, what runs elsewhere (a future of Prefect's, of an executor's, of an event loop's) is
waited for, and a generator is refused, since nobody would consume it. Every lane calls its processors by way of here,
see `calling`; the isolated one does so in its child.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, fields, is_dataclass
from itertools import starmap
from typing import Any, TypeGuard, cast

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from pydantic import BaseModel

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.outcomes import Cancel, Snooze

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
"""Classes of most of what is returned, in which nothing can be left open."""

_LAZY = (Generator, AsyncGenerator, map, filter, starmap)


class RunFailedError(Exception):
    """A processor returned a Prefect state other than Completed: as Prefect has it, its run failed."""


class UnfinishedError(Exception):
    """A processor returned work that nobody would ever do, such as a generator."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What a call returned, and the states of the runs that it had started and returned, all of them over.

    *was_open*: it is not *value* itself that was returned, but what led to it.
    """

    value: Any = None
    states: tuple[State[Any], ...] = ()
    is_group: bool = False
    was_open: bool = False

    def verdict(self) -> Snooze | Cancel | None:
        """What the processor asks for; None: it is done.

        Raises:
            RunFailedError: a run of its own did not end well.
        """
        if self.value is None:  # nearly always
            return None
        failed = [state for state in self.states if not state.is_completed()]
        if failed:
            first = failed[0].message or f"the processor returned the state {failed[0].name}"
            number = f"{len(failed)} of {len(self.states)} states did not complete; the first: "
            raise RunFailedError(first if len(self.states) == 1 else number + first)
        value = self.result
        return value if isinstance(value, Snooze | Cancel) else None

    @property
    def result(self) -> Any:
        """The value; of a run that ended well, what that returned, as far as it is at hand."""
        return _result_in(self.value)

    @property
    def for_prefect(self) -> Any:
        """That by which Prefect judges a run, without the results in it; None where it finds no state."""
        states = [state.model_copy(update={"data": None}) for state in self.states]
        if isinstance(self.value, State):
            return states[0]
        return states if self.is_group else None


NOTHING = Returned()

Course = Generator[Any, Any, Any]
"""Yields what is to be waited for, is sent what that came to, or has it thrown in."""


def ended(returned: Any, ends_at: float | None = None, *, each: bool = False) -> Any:
    """What *returned* came to, a `Returned`, until the instant *ends_at* of the elapsed clock at the latest.

    With *each*, where it is a list, a list of what each of its elements came to: a `Returned`, or what it raised.

    Raises:
        UnfinishedError: it is work that nobody would ever do. Anything else: what it raised when it was waited for.
    """
    if returned is None:
        return NOTHING
    course = _course(returned, each=each)
    try:
        thing = next(course)
        while True:
            try:
                result = _waited_for(thing, ends_at)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is thrown in
                thing = course.throw(error)
            else:
                thing = course.send(result)
    except StopIteration as end:
        return end.value


async def ended_async(returned: Any, ends_at: float | None = None, *, each: bool = False) -> Any:
    """As `ended`, in an event loop."""
    if returned is None:
        return NOTHING
    course = _course(returned, each=each)
    try:
        thing = next(course)
        while True:
            try:
                if _is_of_this_loop(thing):
                    result = await thing
                else:
                    result = await _beside(lambda waits_for=thing: _waited_for(waits_for, ends_at))
            except BaseException as error:  # noqa: BLE001 - as above
                thing = course.throw(error)
            else:
                thing = course.send(result)
    except StopIteration as end:
        return end.value


def awaited(value: Any) -> Any:
    """*value*, or what it came to if it is awaitable: for what else of an author's may be async without saying so."""
    return ended(value).value if inspect.isawaitable(value) else value


def is_stopped(error: BaseException) -> bool:
    """Whether *error* is what ends a call from outside, at a time limit or a cancellation, and not its own doing."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    if type(error).__module__.startswith("prefect."):
        return True  # thrown into a thread
    task = _current_task()
    return task is not None and task.cancelling() > 0


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop in this thread
        return None


def _course(returned: Any, *, each: bool = False) -> Course:
    value = returned
    while type(value) not in _PLAIN and _is_open(value):
        value = yield value
    was_open = value is not returned
    if each:
        answers = _result_in(value)
        if isinstance(answers, Sequence) and not isinstance(answers, str | bytes):
            return (yield from _course_of_each(cast("Sequence[Any]", answers)))
    if isinstance(value, State):
        return Returned(value, (cast("State[Any]", value),), was_open=was_open)
    if type(value) in _PLAIN or isinstance(value, Snooze | Cancel):
        return Returned(value, was_open=was_open)
    _refuse_lazy(value)
    leaves = _leaves(value)
    states = (yield from _course_of_all(leaves)) if leaves else ()
    return Returned(value, states, len(states) == len(leaves) > 0 and _is_group(value), was_open)


def _course_of_all(leaves: list[Any]) -> Course:
    """The states that *leaves* came to. What already runs is waited for, also when another has failed meanwhile."""
    states, errors = list[State[Any]](), list[Exception]()
    try:
        for leaf in leaves:
            if errors and inspect.iscoroutine(leaf):
                continue
            try:
                came = yield from _course(leaf)
            except Exception as error:  # noqa: BLE001 - the first is raised when all have ended
                errors.append(error)
            else:
                states += came.states
    finally:
        _close(leaves)
    if errors:
        raise errors[0]
    return tuple(states)


def _course_of_each(elements: Sequence[Any]) -> Course:
    came: list[Returned | BaseException] = []
    try:
        for element in elements:
            try:
                came.append((yield from _course(element)))
            except BaseException as error:
                if is_stopped(error):
                    raise
                came.append(error)
    finally:
        _close(elements)
    return came


def _result_in(value: Any) -> Any:
    if not isinstance(value, State) or not cast("State[Any]", value).is_completed():
        return cast("Any", value)
    data: Any = cast("State[Any]", value).data
    return getattr(data, "result", data)


def _close(leaves: Iterable[Any]) -> None:
    """Say that nobody will await what was not begun; without effect on what has ended."""
    for leaf in leaves:
        if inspect.iscoroutine(leaf) and inspect.getcoroutinestate(leaf) == inspect.CORO_CREATED:
            leaf.close()


def _is_group(value: Any) -> bool:
    """Whether Prefect looks into it for states, when it judges a flow by what it returned."""
    return isinstance(value, list | tuple | set) and all(map(_is_leaf, cast("Collection[Any]", value)))


def _refuse_lazy(value: Any) -> None:
    if isinstance(value, _LAZY):
        kind: Any = cast("type[Any]", type(cast("Any", value)))
        msg = (
            f"the processor returned a {kind.__name__}, which nobody consumes, so that its work is not done; "
            "consume it in the processor (for ... in, list(...)), or write a function that returns"
        )
        raise UnfinishedError(msg)


def _is_open(value: Any) -> bool:
    """Whether *value* has still to come to something."""
    return inspect.isawaitable(value) or isinstance(value, PrefectFuture) or _is_future(value)


def _is_future(value: Any) -> bool:
    """Whether it is a future, whoever's executor made it: Dask's can be awaited, too, but only in Dask's own loop."""
    # Asked of the class: a mock has every attribute.
    kind: Any = cast("type[Any]", type(value))
    return callable(getattr(kind, "result", None)) and callable(getattr(kind, "done", None))


def _is_leaf(value: Any) -> bool:
    return isinstance(value, State) or _is_open(value) or isinstance(value, _LAZY)


def _leaves(value: Any) -> list[Any]:
    """All that is open, lazy or a state, in *value* and in what that holds; in order."""
    found, seen, left = list[Any](), set[int](), [value]
    while left:
        one = left.pop()
        if type(one) in _PLAIN or id(one) in seen:
            continue
        seen.add(id(one))
        if _is_leaf(one):
            found.append(one)
        else:
            left.extend(reversed(_held_by(one)))
    return found


def _held_by(value: Any) -> list[Any]:
    match value:
        case list() | tuple() | set() | frozenset():
            return list(cast("Collection[Any]", value))
        case dict():
            return list(cast("Mapping[Any, Any]", value).values())
        case BaseModel():
            return [each for _, each in value]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return [getattr(value, each.name, None) for each in fields(value)]
        case _:
            return []


def _waited_for(thing: Any, ends_at: float | None) -> Any:
    """What *thing* comes to, until *ends_at* at the latest; in a thread that has nothing else to do."""
    left = None if ends_at is None else max(0.0, ends_at - elapsed_clock())
    if isinstance(thing, PrefectFuture):
        thing.wait(timeout=left)
        if ends_at is not None and elapsed_clock() >= ends_at:
            raise _over_time()  # its state is not asked: of a run that has not ended, that is a question to the API
        return thing.state
    if asyncio.isfuture(thing):
        return _of_its_loop(thing, left)
    if not _is_future(thing):
        return _apart(lambda: asyncio.run(_within(thing, left)))
    try:
        return thing.result() if left is None else thing.result(timeout=left)
    except TimeoutError:
        if thing.done():
            raise
        raise _over_time() from None


def _of_its_loop(future: asyncio.Future[Any], left: float | None) -> Any:
    """What a future of an event loop comes to, which that loop alone can say."""
    loop = future.get_loop()
    if future.done():
        return future.result()
    if loop is _running_loop() or loop.is_closed():
        msg = (
            f"the processor returned a {type(future).__name__} of an event loop that is closed, or waits for the "
            "processor itself; await it in an async processor"
        )
        raise UnfinishedError(msg)
    if loop.is_running():
        return asyncio.run_coroutine_threadsafe(_within(future, left), loop).result()
    return _apart(lambda: loop.run_until_complete(_within(future, left)))


async def _beside(run: Callable[[], Any]) -> Any:
    """What *run* returns, in a thread that nobody joins: a loop that closes would wait for those of its own pool."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            came, error = run(), None
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it is raised where it is awaited
            came, error = None, raised
        with suppress(InvalidStateError):  # cancelled meanwhile
            future.set_result(came) if error is None else future.set_exception(error)

    threading.Thread(target=copy_context().run, args=(work,), daemon=True).start()
    return await asyncio.wrap_future(future)


def _apart(run: Callable[[], Any]) -> Any:
    """What *run* returns, in a thread of its own if an event loop runs in this one."""
    if _running_loop() is None:
        return run()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, run).result()


async def _within(thing: Awaitable[Any], seconds: float | None) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await thing
    except TimeoutError:
        if not limit.expired():
            raise
        raise _over_time() from None


def _over_time() -> TimeoutError:
    return TimeoutError("over its time limit")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _is_of_this_loop(thing: Any) -> TypeGuard[Awaitable[Any]]:
    if asyncio.isfuture(thing):
        return thing.get_loop() is _running_loop()
    return inspect.isawaitable(thing) and not _is_future(thing)
