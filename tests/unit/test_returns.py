"""What a processor returns is taken to its end before it counts, whatever it is and whoever calls it."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect import State
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Cancelled, Completed, Failed
from pydantic import BaseModel, ConfigDict

from prefect_claim_dispatch import Cancel, Snooze
from prefect_claim_dispatch.dispatching.calling import called, called_async
from prefect_claim_dispatch.dispatching.returns import Returned, RunFailedError, UnfinishedError, awaited
from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.processors import Registry, processor

LATER = Snooze(timedelta(minutes=1))
SHORT = timedelta(seconds=0.2)


class Account:
    """Where the work of a test notes that it was done."""

    def __init__(self) -> None:
        self.done = 0

    async def work(self) -> Snooze:
        """Takes a turn of the loop, and asks for something."""
        await asyncio.sleep(0)
        self.done += 1
        return LATER

    async def __call__(self) -> Snooze:
        """The same, as an object that can be called."""
        return await self.work()

    def work_later(self) -> Snooze:
        """As an executor runs it."""
        self.done += 1
        return LATER


@dataclass
class Held:
    """Something with work in it."""

    work: Any


class Modelled(BaseModel):
    """The same, as a model."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    work: Any


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """What an author may have submitted to."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def loop_elsewhere() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that knows nothing of async."""

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return wrapper


def prefect_future(state: State[Any] | BaseException | None) -> PrefectConcurrentFuture[Any]:
    """A future of a thread pool of Prefect's whose run ended in *state*; None: it never ends."""
    wrapped: Future[Any] = Future()
    future = PrefectConcurrentFuture[Any](uuid4(), wrapped)
    match state:
        case None:
            pass
        case BaseException():
            wrapped.set_exception(state)
        case _:
            wrapped.set_result(state)
    return future


def every_call(function: Callable[..., Any], **options: Any) -> list[Any]:
    """What comes of *function* in a thread, in an event loop, and in a thread whose event loop runs."""

    async def as_async() -> Any:
        return function()

    async def beside_a_loop() -> Any:
        return called(function, {}, **options)

    return [
        called(function, {}, **options),
        asyncio.run(called_async(as_async, {}, **options)),
        asyncio.run(beside_a_loop()),
    ]


@pytest.mark.parametrize(
    "source",
    [
        lambda account: account.work,
        lambda account: lambda _ignored=None: account.work(),
        lambda account: traced(account.work),
        lambda account: functools.partial(account.work),
        lambda account: functools.partial(lambda function: function(), account.work),
        lambda account: account,
    ],
    ids=["function", "lambda", "decorated", "partial", "partial of a function that returns it", "object"],
)
def test_callable_that_returns_a_coroutine_is_awaited(source: Callable[[Account], Callable[[], Any]]) -> None:
    """Nothing of a coroutine runs until it is awaited: taken for a result, the action would be processed unexecuted."""
    account = Account()

    came = every_call(source(account))

    assert account.done == 3
    assert [one.verdict() for one in came] == [LATER] * 3


@pytest.mark.parametrize(
    "wrap",
    [
        lambda work: [work(), work()],
        lambda work: (work(), 7, "text"),
        lambda work: {"first": work(), "others": [{"second": work()}]},
        lambda work: Held(work()),
        lambda work: Modelled(work=work()),
    ],
    ids=["list", "tuple", "dict", "dataclass", "model"],
)
def test_coroutines_in_what_is_returned_are_awaited(wrap: Callable[..., Any]) -> None:
    """`[send(to) for to in addresses]` is how a missing `gather` looks."""
    account = Account()
    number = len(asyncio.run(_count(wrap)))

    came = every_call(lambda: wrap(account.work))

    assert account.done == 3 * number
    assert [one.verdict() for one in came] == [None] * 3


async def _count(wrap: Callable[..., Any]) -> list[None]:
    made: list[None] = []
    wrap(lambda: made.append(None))
    return made


def test_futures_are_waited_for_whoever_made_them(
    executor: ThreadPoolExecutor, loop_elsewhere: asyncio.AbstractEventLoop
) -> None:
    """An executor's, an event loop's that runs elsewhere, one that nobody runs, and one that leads to another."""
    account = Account()
    own = asyncio.new_event_loop()
    sources: list[Callable[[], Any]] = [
        lambda: executor.submit(account.work_later),
        lambda: asyncio.run_coroutine_threadsafe(account.work(), loop_elsewhere),
        lambda: own.create_task(account.work()),
        lambda: executor.submit(account.work),
        lambda: [executor.submit(account.work_later)],
    ]

    came = [[one.verdict() for one in every_call(source)] for source in sources]

    own.close()
    assert account.done == 15
    assert came == [[LATER] * 3] * 4 + [[None] * 3]


def test_task_of_the_same_loop_is_awaited_in_it() -> None:
    """An async processor that starts a task and returns it has not finished."""
    account = Account()

    async def start() -> Any:
        return asyncio.create_task(account.work())

    assert asyncio.run(called_async(start, {})).verdict() == LATER
    assert account.done == 1


def test_future_that_nobody_can_end_fails_the_attempt() -> None:
    """Its loop is closed, or is the one that waits for the processor: to wait would be for ever."""
    loop = asyncio.new_event_loop()
    orphan = loop.create_future()
    loop.close()

    async def of_this_loop() -> Any:
        return called(asyncio.get_running_loop().create_future, {})

    for call in (lambda: called(lambda: orphan, {}), lambda: asyncio.run(of_this_loop())):
        with pytest.raises(UnfinishedError, match="event loop that is closed, or waits"):
            call()


def numbers() -> Generator[int]:
    """Nothing of it runs before it is iterated."""
    yield 1


async def numbers_async() -> Any:
    """The same, async."""
    yield 1


@pytest.mark.parametrize(
    "make",
    [
        numbers,
        numbers_async,
        lambda: (number for number in (1, 2)),
        lambda: map(print, [1]),
        lambda: filter(print, [1]),
        lambda: [numbers()],
        lambda: {"rows": numbers_async()},
        functools.partial(traced(numbers)),
    ],
)
def test_generator_fails_the_attempt(make: Callable[[], Any]) -> None:
    """Nobody consumes it: its body would not run, and the action be processed."""
    with pytest.raises(UnfinishedError, match="which nobody consumes, so that its work is not done; consume it"):
        called(make, {})


def test_what_runs_is_waited_for_though_another_failed(executor: ThreadPoolExecutor) -> None:
    """Its effects are the attempt's: they must not come when the action is tried again. What has not begun does not."""
    account, let_go = Account(), threading.Event()

    def slowly() -> None:
        assert let_go.wait(30)
        account.done += 1

    def start() -> list[Any]:
        failing: Future[None] = Future()
        failing.set_exception(ValueError("first"))
        threading.Timer(0.05, let_go.set).start()
        return [failing, executor.submit(slowly), account.work()]

    with pytest.raises(ValueError, match="first"):
        called(start, {})

    assert account.done == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: asyncio.sleep(3_600),
        Future,
        lambda: prefect_future(None),
        lambda: [prefect_future(None), asyncio.sleep(3_600)],
    ],
    ids=["coroutine", "future", "Prefect's future", "list"],
)
def test_waiting_counts_for_the_time_limit(make: Callable[[], Any]) -> None:
    """A thread that waits takes no step in which Prefect could end it: its lease would be renewed for ever.

    In an event loop Prefect can, and *limit* is left to it.
    """

    async def make_async() -> Any:
        return make()

    for call in (
        lambda: called(make, {}, limit=SHORT),
        lambda: called(make, {}, SHORT),
        lambda: asyncio.run(called_async(make_async, {}, SHORT)),
    ):
        with pytest.raises(TimeoutError, match="over its time limit"):
            call()


def test_own_timeout_is_told_from_the_limit(executor: ThreadPoolExecutor) -> None:
    """A processor's TimeoutError says what took too long, which is not the processor."""

    def refuse() -> None:
        raise TimeoutError("the gateway does not answer")

    async def refuse_async() -> None:
        refuse()

    for make in (refuse_async, lambda: executor.submit(refuse)):
        with pytest.raises(TimeoutError, match="the gateway does not answer"):
            called(make, {}, limit=timedelta(seconds=60))


BOOM = Failed(message="boom")


@pytest.mark.parametrize(
    ("make", "failure"),
    [
        (lambda: BOOM, "boom"),
        (Failed, "the processor returned the state Failed"),
        (lambda: Cancelled(message="no"), "no"),
        (lambda: prefect_future(BOOM), "boom"),
        (lambda: [Completed(), BOOM, Failed()], "2 of 3 states did not complete; the first: boom"),
        (lambda: [prefect_future(Completed()), prefect_future(BOOM)], "1 of 2 states did not complete; the first"),
        (lambda: {"a": prefect_future(Completed()), "b": [prefect_future(BOOM), 7]}, "1 of 2 states"),
        (lambda: asyncio.sleep(0, BOOM), "boom"),
        (lambda: [asyncio.sleep(0, prefect_future(BOOM))], "boom"),
    ],
)
def test_run_that_did_not_end_well_fails_the_attempt(make: Callable[[], Any], failure: str) -> None:
    """Wherever it is in what was returned: a step that failed is work that was not done."""
    for one in every_call(make):
        with pytest.raises(RunFailedError, match=failure):
            one.verdict()


def test_runs_that_ended_well_are_processed() -> None:
    """And what a single one returned counts as if the processor had: it may be a Snooze."""
    for make, verdict in [
        (Completed, None),
        (lambda: prefect_future(Completed(data=7)), None),
        (lambda: [prefect_future(Completed()), Completed()], None),
        (lambda: {"a": prefect_future(Completed())}, None),
        (lambda: prefect_future(Completed(data=LATER)), LATER),
        (lambda: Completed(data=Cancel("no")), Cancel("no")),
    ]:
        assert [one.verdict() for one in every_call(make)] == [verdict] * 3


def test_base_exception_of_a_step_is_raised_to_the_caller() -> None:
    """A `sys.exit` in a step comes out where it is waited for; it is the attempt's failure, see `Work`."""
    with pytest.raises(SystemExit):
        called(lambda: [prefect_future(SystemExit(3))], {})


def test_prefect_is_given_the_states_that_it_judges_by_and_no_results() -> None:
    """A single state, or a list of nothing else, as its engine has it; what is in them stays here."""
    kept = Completed(name="Skipped", data="secret")

    shown = [called(lambda value=value: value, {}).for_prefect for value in (kept, [kept, prefect_future(BOOM)])]
    unseen = [called(lambda value=value: value, {}).for_prefect for value in ([kept, 7], {"a": kept}, "text", None)]

    assert (shown[0].name, shown[0].data) == ("Skipped", None)
    assert [(state.name, state.data) for state in shown[1]] == [("Skipped", None), ("Failed", None)]
    assert unseen == [None] * 4


def test_answers_for_each_row_are_ended_one_by_one() -> None:
    """What one of them raises is that one's own; the call that answers may be async itself."""
    account = Account()

    async def fail() -> None:
        raise ValueError("mine")

    async def answer() -> list[Any]:
        return [None, account.work(), fail(), numbers(), prefect_future(BOOM), LATER]

    for came in (called(answer, {}, each=True), asyncio.run(called_async(answer, {}, each=True))):
        assert [type(one) for one in came] == [Returned, Returned, ValueError, UnfinishedError, Returned, Returned]
        assert [came[0].verdict(), came[1].verdict(), came[5].verdict()] == [None, LATER, LATER]
        assert [one.was_open for one in came if isinstance(one, Returned)] == [False, True, True, False]
    assert account.done == 2


def test_plain_values_are_let_be() -> None:
    """Whatever its size and shape, data is data: nothing is copied, called or awaited."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    cyclic: dict[str, Any] = {}
    cyclic["self"] = cyclic

    for value in (7, "text", {"rows": list(range(1_000))}, deep, cyclic, Held, object(), open):
        assert called(lambda value=value: value, {}).value is value
    assert called(lambda: None, {}).verdict() is None


def test_facts_and_parameters_may_be_async_without_saying_so() -> None:
    """They are the author's callables as well."""
    assert awaited(asyncio.sleep(0, {"paid": True})) == {"paid": True}
    assert awaited({"paid": False}) == {"paid": False}


class Order(BaseModel):
    """A payload that must fit."""

    number: int


class Sender:
    """An object that can be called."""

    async def __call__(self, payload: Order) -> None:
        """Takes nothing but orders."""


def send_by(client: str, payload: Order) -> None:
    """What a partial comes down to."""


def test_partials_and_objects_are_registered_as_what_they_come_to() -> None:
    """Their annotations, and the place in messages, are those of the function that was written."""
    mine = Registry()
    sources = {"a": functools.partial(send_by, "client"), "b": Sender(), "c": functools.partial(Sender())}
    for type_, source in sources.items():
        processor(type_, registry=mine)(source)
    mine.check()

    known = {type_: mine.match(type_) for type_ in sources}

    assert {type_: one.code.__qualname__ for type_, one in known.items() if one} == {
        "a": "send_by",
        "b": "Sender.__call__",
        "c": "Sender.__call__",
    }
    assert all(one is not None and "test_returns.py" in one.place for one in known.values())
    with pytest.raises(RegistrationError, match="can't be imported by its name"):
        processor("d", registry=mine, isolate=True)(functools.partial(send_by, "client"))
