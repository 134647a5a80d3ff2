"""The dispatcher contract: what every mode of dispatch must hold. A new mode joins by one more entry of `MODES`.

All cases of a mode run together, under one flow run on a real Prefect server, so that each also shows that it harms
nobody but itself; every test then looks at one of them.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import Flow, State, flow, task
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from prefect.states import Failed as FailedState
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_claim_dispatch import Action, Cancel, Snooze
from prefect_claim_dispatch.actions import Lease, elapsed_clock
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dispatching.batches import Batch, Workload
from prefect_claim_dispatch.dispatching.dispatchers import Dispatcher, FlowDispatcher, OnDone, TaskDispatcher
from prefect_claim_dispatch.dispatching.runs import Desk
from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.outcomes import Failed, Outcome, Processed
from prefect_claim_dispatch.processors import Processor, Registry, processor
from tests.acceptance.contract_stages import Stage, stage_of
from tests.kit.prefect_server import PrefectServer
from tests.kit.tables import add, claim_due
from tests.kit.waiting import wait_until

SLOTS = 8
FINISH_SECONDS = 120
TIME_LIMIT = timedelta(seconds=1)
ENDLESS_SECONDS = 600
LATER = Snooze(timedelta(minutes=5), "not yet")
UNWANTED = Cancel("not wanted any more")

Decorate = Callable[..., Any]


class Catastrophe(BaseException):
    """What no ``except Exception`` catches."""


class HostileError(Exception):
    """Cannot be printed."""

    def __str__(self) -> str:
        raise Catastrophe


@dataclass(kw_only=True, eq=False)
class Story:
    """What one case came to."""

    work: Work
    case: Case
    run_ids: list[str] = field(default_factory=list[str])
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    ends: list[str] = field(default_factory=list[str])
    calls: int = 0

    @property
    def outcome(self) -> Outcome:
        """The only outcome."""
        (outcome,) = self.outcomes
        return outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A processor, given how often it was called before; and how its run is configured."""

    behave: Callable[[int], Any]
    retries: int = 0
    timeout: timedelta | None = None
    is_withdrawn: bool = False
    has_lease: bool = True


def raising(error: BaseException) -> Callable[[int], Any]:
    """A processor that raises *error* every time."""

    def behave(_calls: int) -> Any:
        raise error

    return behave


def fail_once(calls: int) -> str:
    """Fails the first time."""
    if calls == 1:
        msg = "the first try fails"
        raise ConnectionError(msg)
    return "done"


def spin(_calls: int) -> None:
    """A loop in Python that ends in ten minutes, so as not to outlive a broken test by much."""
    end = elapsed_clock() + ENDLESS_SECONDS
    while elapsed_clock() < end:
        pass


BASE_EXCEPTIONS: dict[str, BaseException] = {
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "CancelledError": asyncio.CancelledError(),
    "GeneratorExit": GeneratorExit(),
    "Catastrophe": Catastrophe("everything is lost"),
    "TerminationSignal": TerminationSignal(signal=15),
}

CASES: dict[str, Case] = {
    "success": Case(behave=lambda _calls: "a result"),
    "snooze": Case(behave=lambda _calls: LATER),
    "cancel": Case(behave=lambda _calls: UNWANTED),
    "exception": Case(behave=raising(ValueError("no such user"))),
    "hostile exception": Case(behave=raising(HostileError())),
    "failed state": Case(behave=lambda _calls: FailedState(message="the last step failed")),
    "failed state, then success": Case(
        behave=lambda calls: FailedState(message="the first try fails") if calls == 1 else "done", retries=1
    ),
    "retries, then success": Case(behave=fail_once, retries=2),
    "retries in vain": Case(behave=raising(ConnectionError("never")), retries=1),
    "base exception with retries": Case(behave=raising(SystemExit(3)), retries=1),
    "endless": Case(behave=spin, timeout=TIME_LIMIT),
    "withdrawn": Case(behave=lambda _calls: "a result", is_withdrawn=True),
    "no lease": Case(behave=lambda _calls: "a result", has_lease=False),
    **{name: Case(behave=raising(error)) for name, error in BASE_EXCEPTIONS.items()},
}


@contextmanager
def task_mode() -> Generator[Dispatcher]:
    """Each action as a task run."""
    with ThreadPoolTaskRunner(max_workers=SLOTS) as runner:
        yield TaskDispatcher(Desk(), runner)


@contextmanager
def flow_mode() -> Generator[Dispatcher]:
    """Each action as a subflow run."""
    with ThreadPoolExecutor(SLOTS) as executor:
        yield FlowDispatcher(Desk(), executor)


class BatchesOfOne:
    """Each action as a batch of its own, which must end as a run of one does."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def submit(self, work: Workload, on_done: OnDone) -> None:
        """Hand it on as a batch."""
        self._dispatcher.submit(Batch(work.works), on_done)


@contextmanager
def batch_mode() -> Generator[Dispatcher]:
    """Each action as the task run of a batch."""
    with task_mode() as dispatcher:
        yield BatchesOfOne(dispatcher)


MODES: dict[str, tuple[Callable[[], Any], Decorate]] = {
    "task": (task_mode, task),
    "batch": (batch_mode, task),
    "flow": (flow_mode, flow),
}
RUNNERS = ("process pool", "dask")
STYLES = ("sync", "async")


def sync_function(case: Case, told: list[Story]) -> Callable[..., Any]:
    """The case as an ordinary function."""

    def work(action: Action) -> Any:
        told[0].calls += 1
        return case.behave(told[0].calls)

    return work


def async_function(case: Case, told: list[Story]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """The case as a coroutine function; what never ends there waits instead of spinning."""

    async def work(action: Action) -> Any:
        told[0].calls += 1
        await asyncio.sleep(ENDLESS_SECONDS if case.behave is spin else 0)
        return case.behave(told[0].calls)

    return work


def told_by(name: str, number: int, style: str, mode: str) -> Story:
    """The story of a case, before it begins."""
    case, told = CASES[name], list[Story]()
    function = (async_function if style == "async" else sync_function)(case, told)
    registry = Registry()
    source = MODES[mode][1](retries=case.retries)(function)
    rows_per_run = 10 if mode == "batch" else None
    processor("contract", registry=registry, timeout=case.timeout, rows_per_run=rows_per_run)(source)
    found = registry.match("contract")
    assert isinstance(found, Processor)
    now = datetime.now(UTC)
    lease = Lease(expires=elapsed_clock() + (ENDLESS_SECONDS if case.has_lease else -1))
    action = Action(id=number, type=name, payload={}, end_at=now, created_at=now, claim_count=1, lease=lease)
    work = Work(
        action,
        found,
        {"action": action},
        on_begin=lambda _work, run_id: told[0].run_ids.append(run_id),
        on_outcome=lambda _work, outcome: told[0].outcomes.append(outcome),
    )
    told.append(Story(work=work, case=case))
    return told[0]


def dispatch_all(stories: list[Story], dispatcher: Dispatcher) -> None:
    """Submit everything, as the loop does, and wait for the ends."""
    lock = threading.Lock()

    def on_done(story: Story, run: Workload, ended: str) -> None:
        run.conclude(ended)
        with lock:
            story.ends.append(ended)

    for story in stories:
        if story.case.is_withdrawn:
            assert story.work.withdraw()
        dispatcher.submit(story.work, functools.partial(on_done, story))
    wait_until(lambda: all(story.ends for story in stories), description="every run has ended", timeout=FINISH_SECONDS)


def told_elsewhere(stage: Stage) -> dict[tuple[str, str], Story]:
    """The stories of all cases, of rows that a run in another process finds by their references."""
    from prefect_claim_dispatch.processors import registry
    from tests.acceptance import contract_processors

    types = {contract_processors.type_of(name, style): (name, style) for name in CASES for style in STYLES}
    for type_ in types:
        add(stage.engine, type_)
    return {types[raw.type]: _told_of(raw, CASES[types[raw.type][0]], registry) for raw in claim_due(stage.engine)}


def _told_of(raw: RawAction, case: Case, registry: Registry) -> Story:
    told: list[Story] = []
    if not case.has_lease:
        raw.lease.expires = -1.0
    found = registry.match(raw.type)
    assert found is not None
    work = Work(
        raw.action(),
        found,
        {},
        on_begin=lambda _work, run_id: told[0].run_ids.append(run_id),
        on_outcome=lambda _work, outcome: told[0].outcomes.append(outcome),
    )
    told.append(Story(work=work, case=case))
    return told[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """All cases of a mode, and the state of the flow run that they ran under."""

    mode: str
    stories: dict[tuple[str, str], Story]
    state: State[Any]
    server: PrefectServer


@pytest.fixture(scope="module", params=[*MODES, "process pool", pytest.param("dask", marks=pytest.mark.exhaustive)])
def performance(
    request: pytest.FixtureRequest,
    prefect_server: PrefectServer,
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Callable[[], Path],
) -> Performance:
    """One mode with all its cases, side by side."""
    if request.param in RUNNERS:
        folder = tmp_path_factory.mktemp("runner")
        performance = performed_elsewhere(request.param, prefect_server, folder, sqlite_template())
        gc.collect()  # semaphores of the pool's queues: after the last test nobody takes them back
        return performance
    open_mode, _ = MODES[request.param]
    stories = {
        (name, style): told_by(name, number, style, request.param)
        for number, (name, style) in enumerate(((name, style) for name in CASES for style in STYLES), start=1)
    }

    @flow(name=f"contract-{request.param}")
    def claim_flow() -> str:
        with open_mode() as dispatcher:
            dispatch_all(list(stories.values()), dispatcher)
        return "survived"

    with ExitStack() as stack:
        home = tmp_path_factory.mktemp("prefect-home")
        stack.enter_context(temporary_settings({PREFECT_API_URL: prefect_server.api_url, PREFECT_HOME: home}))
        assert isinstance(claim_flow, Flow)
        state = claim_flow(return_state=True)
    return Performance(mode=request.param, stories=stories, state=state, server=prefect_server)


def performed_elsewhere(mode: str, server: PrefectServer, folder: Path, template: Path) -> Performance:
    """The cases on a task runner whose runs are in other processes."""
    with ExitStack() as stack:
        stack.enter_context(temporary_settings({PREFECT_API_URL: server.api_url, PREFECT_HOME: folder}))
        stage = stack.enter_context(stage_of(mode, folder, template))
        stories = told_elsewhere(stage)

        @flow(name=f"contract-{mode.replace(' ', '-')}")
        def claim_flow() -> str:
            with stage.dispatcher() as dispatcher:
                dispatch_all(list(stories.values()), dispatcher)
            return "survived"

        assert isinstance(claim_flow, Flow)
        state = claim_flow(return_state=True)
        for story in stories.values():
            story.calls = stage.calls(story.work.action.id)
    return Performance(mode=mode, stories=stories, state=state, server=server)


@pytest.fixture(params=STYLES)
def tell(request: pytest.FixtureRequest, performance: Performance) -> Callable[[str], Story]:
    """The story of a case, sync or async."""
    return lambda name: performance.stories[name, request.param]


Tell = Callable[[str], Story]


def test_nothing_that_a_processor_does_harms_the_flow(performance: Performance) -> None:
    """Base exceptions, endless loops and all of them at once: the claim flow goes on."""
    assert performance.state.is_completed()
    assert performance.state.result() == "survived"  # type: ignore[attr-defined]


def test_every_submitted_work_is_done_once(performance: Performance) -> None:
    """A slot that is not given back is lost to the flow; one given back twice lets too many run."""
    assert {key: len(story.ends) for key, story in performance.stories.items()} == dict.fromkeys(performance.stories, 1)


def test_success_is_processed(tell: Tell) -> None:
    """The plain case: called once, begun once with its run's id, processed."""
    story = tell("success")

    assert story.outcome == Processed()
    assert (story.calls, story.ends) == (1, ["Completed"])
    assert len(story.run_ids) == 1
    assert UUID(story.run_ids[0])


def test_snooze_and_cancel_are_taken_as_said(tell: Tell) -> None:
    """Their runs are completed, under names that a person understands in the UI."""
    snoozed, cancelled = tell("snooze"), tell("cancel")

    assert (snoozed.outcome, snoozed.ends) == (LATER, ["Snoozed"])
    assert (cancelled.outcome, cancelled.ends) == (UNWANTED, ["Cancelled"])


def test_exception_fails_the_attempt(tell: Tell) -> None:
    """With its class and text, for whoever looks at the row."""
    story = tell("exception")

    assert story.outcome == Failed(error_type="ValueError", message="no such user")
    assert story.ends == ["Failed"]


def test_exception_that_can_not_be_printed_fails_the_attempt(tell: Tell) -> None:
    """A `__str__` that raises, a base exception at that."""
    story = tell("hostile exception")

    assert isinstance(story.outcome, Failed)
    assert story.outcome.error_type == "HostileError"


@pytest.mark.parametrize("name", BASE_EXCEPTIONS)
def test_base_exception_fails_its_own_attempt_only(tell: Tell, name: str) -> None:
    """In a bare Prefect task each of these ends the flow that waits for it, with everything in it."""
    story = tell(name)

    assert isinstance(story.outcome, Failed)
    assert story.outcome.error_type == name
    assert story.calls == 1
    assert story.ends == ["Failed"]


def test_returned_state_of_failure_fails_the_attempt(tell: Tell) -> None:
    """It is how Prefect's own runs say it; taken for a mere result, a failed action would be marked processed."""
    story = tell("failed state")

    assert story.outcome == Failed(error_type="RunFailedError", message="the last step failed")
    assert story.ends == ["Failed"]
    assert tell("failed state, then success").outcome == Processed()


def test_retries_of_prefect_are_within_one_attempt(tell: Tell) -> None:
    """The table hears of the end only: one outcome, however many tries."""
    story, in_vain = tell("retries, then success"), tell("retries in vain")

    assert (story.outcome, story.calls) == (Processed(), 2)
    assert (in_vain.outcome, in_vain.calls) == (Failed(error_type="ConnectionError", message="never"), 2)


def test_base_exception_is_retried_as_an_exception_is(tell: Tell) -> None:
    """A library that calls `sys.exit` on a refused connection deserves its retries too."""
    story = tell("base exception with retries")

    assert isinstance(story.outcome, Failed)
    assert (story.outcome.error_type, story.calls) == ("SystemExit", 2)


def test_endless_work_ends_at_its_time_limit(tell: Tell) -> None:
    """Work that hangs would hold its slot for ever, its lease renewed all along."""
    story = tell("endless")

    assert isinstance(story.outcome, Failed)
    assert story.outcome.error_type == "TimeoutError"
    assert "time limit" in story.outcome.message
    assert story.ends == ["TimedOut"]


@pytest.mark.parametrize("name", ["withdrawn", "no lease"])
def test_work_that_must_not_begin_is_not_called(tell: Tell, name: str) -> None:
    """Given back at shutdown, or its lease over: no call, no verdict on it, and its slot is free again."""
    story = tell(name)

    assert (story.calls, story.run_ids, story.outcomes) == (0, [], [])
    assert not story.work.has_begun
    assert [end.partition(" (")[0] for end in story.ends] == ["NotStarted"]


def test_run_is_named_after_the_action_and_shows_nothing_else_of_it(performance: Performance) -> None:
    """In the UI a run must be told from its siblings; its parameters are stored, so they hold no payload."""
    story = performance.stories["success", "sync"]
    (run_id,) = story.run_ids
    kind = "flow_runs" if performance.mode == "flow" else "task_runs"

    def found() -> list[dict[str, Any]]:
        return list(performance.server.post(f"{kind}/filter", {kind: {"id": {"any_": [run_id]}}}))

    (run,) = wait_until(found, description=f"run {run_id} is in the API", timeout=90)
    assert run["name"] == story.work.action.reference
    if performance.mode == "flow":
        assert run["parameters"] == {
            "action": {"name": story.work.action.reference, "id": story.work.action.id, "claim_count": 1}
        }


def test_async_processors_are_really_async(performance: Performance) -> None:
    """Guards the tests above: had the style been lost, half of them would say nothing."""
    functions = {style: performance.stories["success", style].work.processor.function for style in STYLES}

    assert {style: inspect.iscoroutinefunction(function) for style, function in functions.items()} == {
        "sync": False,
        "async": True,
    }
