"""A batch: of many rows in one run, each has its own outcome, whatever the others come to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect.states import Failed as FailedState

from prefect_claim_dispatch import Action, Cancel, Snooze
from prefect_claim_dispatch.actions import Lease, elapsed_clock
from prefect_claim_dispatch.dispatching.batches import Batch, BatchFailedError
from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.outcomes import Failed, Outcome, Processed
from prefect_claim_dispatch.processors import Registry, processor

LATER, UNWANTED = Snooze(timedelta(minutes=1)), Cancel("no")
DONE = Processed()


@dataclass
class Stage:
    """A batch, and what was told of each row, in order."""

    batch: Batch
    begun: list[int] = field(default_factory=list[int])
    settled: list[tuple[int, Outcome]] = field(default_factory=list[tuple[int, Outcome]])

    @property
    def outcomes(self) -> list[Outcome | None]:
        return [work.outcome for work in self.batch.works]


def staged(function: Callable[..., Any], number: int = 3, **options: Any) -> Stage:
    """*number* rows of *function*, whose payloads are their ids."""
    registry, stage = Registry(), list[Stage]()
    processor("metric.*", registry=registry, **{"rows_per_run": 100} | options)(function)
    known = registry.match("metric.a")
    assert known is not None
    works = [
        Work(
            one,
            known,
            known.arguments(one),
            on_begin=lambda work, _run: stage[0].begun.append(work.action.id),
            on_outcome=lambda work, outcome: stage[0].settled.append((work.action.id, outcome)),
        )
        for one in (action(id_) for id_ in range(1, number + 1))
    ]
    stage.append(Stage(Batch(works)))
    return stage[0]


def action(id_: int) -> Action:
    now = datetime.now(UTC)
    lease = Lease(expires=elapsed_clock() + 600)
    return Action(id=id_, type="metric.a", payload={"n": id_}, end_at=now, created_at=now, claim_count=1, lease=lease)


def failing(*bad: int, error: BaseException | None = None, calls: list[int] | None = None) -> Callable[..., Any]:
    """A function that fails for the ids in *bad*, and counts its calls."""

    def work(action: Action) -> None:
        (calls if calls is not None else []).append(action.id)
        if action.id in bad:
            raise error or ValueError(f"no {action.id}")

    return work


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
@pytest.mark.parametrize("is_async", [False, True])
def test_failing_row_harms_only_itself(error: BaseException, is_async: bool) -> None:
    """Row by row, whatever one raises: the rows before and behind it are processed."""
    work = failing(2, error=error)

    async def work_async(action: Action) -> None:
        work(action)

    stage = staged(work_async if is_async else work)

    state = asyncio.run(stage.batch.run_async("r")) if is_async else stage.batch.run("r")
    stage.batch.conclude("Completed")

    assert (state.name, state.message) == ("CompletedWithFailures", "failed 1, processed 2 (#2)")
    assert stage.outcomes[::2] == [DONE, DONE]
    assert isinstance(stage.outcomes[1], Failed)
    assert stage.outcomes[1].error_type == type(error).__name__
    assert stage.begun == [1, 2, 3]


def test_rows_are_settled_one_by_one_as_they_finish() -> None:
    """What is done is in the table a moment later, however long the batch still takes."""
    seen: list[int] = []
    stages: list[Stage] = []

    def look(action: Action) -> None:
        seen.append(len(stages[0].settled))

    stages.append(staged(look))
    stages[0].batch.run("r")

    assert seen == [0, 1, 2]


def test_outcomes_are_each_rows_own() -> None:
    """Snoozed, cancelled, failed by a returned state: side by side."""
    answers = {1: LATER, 2: UNWANTED, 3: FailedState(message="no"), 4: "anything"}
    stage = staged(lambda action: answers[action.id], number=4)

    stage.batch.run("r")
    stage.batch.conclude("Completed")

    assert stage.outcomes == [LATER, UNWANTED, Failed(error_type="RunFailedError", message="no"), DONE]
    assert stage.batch.summary == "cancelled 1, failed 1, processed 1, snoozed 1"


def test_retry_calls_only_the_rows_that_failed() -> None:
    """Prefect's retries never repeat what is done, and a failure is settled when they are over only."""
    calls: list[int] = []
    stage = staged(failing(2, calls=calls))

    with pytest.raises(BatchFailedError, match=r"^failed 1, processed 2 \(#2\)$") as raised:
        stage.batch.run("r", is_last_try=False)
    settled_between = list(stage.settled)
    state = stage.batch.run("r", is_last_try=True)
    stage.batch.conclude("CompletedWithFailures")

    assert isinstance(raised.value.__cause__, ValueError)
    assert calls == [1, 2, 3, 2]
    assert settled_between == [(1, DONE), (3, DONE)]
    assert state.name == "CompletedWithFailures"
    assert [id_ for id_, _ in stage.settled] == [1, 3, 2]


def test_batch_that_failed_altogether_ends_failed() -> None:
    """In the UI it must not look like one with a few failures; and of a thousand failures a few are named."""
    stage = staged(failing(*range(1, 13)), number=12)

    with pytest.raises(BatchFailedError) as raised:
        stage.batch.run("r")

    assert str(raised.value) == "failed 12 (#1, #2, #3, #4, #5, #6, #7, #8, #9, #10 and 2 more)"


def test_call_over_its_time_limit_fails_alone() -> None:
    """The limit is of each call, as without a batch: one that hangs takes the time of nobody else."""

    def work(action: Action) -> None:
        end = elapsed_clock() + 60
        while action.id == 2 and elapsed_clock() < end:
            pass

    stage = staged(work, timeout=timedelta(seconds=0.2))

    stage.batch.run("r")
    stage.batch.conclude("Completed")

    assert stage.outcomes[::2] == [DONE, DONE]
    assert isinstance(stage.outcomes[1], Failed)
    assert (stage.outcomes[1].error_type, stage.outcomes[1].message) == (
        "TimeoutError",
        "over its time limit of 0:00:00.200000",
    )


def test_async_call_over_its_time_limit_fails_alone() -> None:
    """The same inside an event loop, and an author's own TimeoutError is not taken for it."""

    async def work(action: Action) -> None:
        if action.id == 1:
            raise TimeoutError("mine")
        await asyncio.sleep(60 if action.id == 2 else 0)

    stage = staged(work, timeout=timedelta(seconds=0.1))

    asyncio.run(stage.batch.run_async("r"))
    stage.batch.conclude("Completed")

    assert stage.outcomes == [
        Failed(error_type="TimeoutError", message="mine"),
        Failed(error_type="TimeoutError", message="over its time limit of 0:00:00.100000"),
        DONE,
    ]


def test_rows_not_begun_when_the_run_was_ended_are_not_failed() -> None:
    """Stopped from outside in the middle: the row that ran failed, those behind it can be given back."""

    async def work(action: Action) -> None:
        if action.id == 2:
            running.set()
            await asyncio.sleep(60)

    async def cancel_in_the_middle() -> None:
        running_task = asyncio.ensure_future(stage.batch.run_async("r"))
        await running.wait()
        running_task.cancel()
        await asyncio.wait([running_task])

    stage, running = staged(work, number=4), asyncio.Event()
    asyncio.run(cancel_in_the_middle())
    stage.batch.conclude("Cancelled")

    assert stage.outcomes[0] == DONE
    assert isinstance(stage.outcomes[1], Failed)
    assert stage.outcomes[2:] == [None, None]
    assert [work.has_begun for work in stage.batch.works] == [True, True, False, False]


def test_withdrawn_rows_are_not_called() -> None:
    """Told to stop: what has not begun goes back, and the rest of the batch ends as it would."""
    calls: list[int] = []
    stages: list[Stage] = []

    def work(action: Action) -> None:
        calls.append(action.id)
        stages[0].batch.works[2].withdraw()

    stages.append(staged(work))
    stages[0].batch.run("r")
    stages[0].batch.conclude("Completed")

    assert calls == [1, 2]
    assert stages[0].outcomes == [DONE, DONE, None]
    assert stages[0].batch.summary == "not started 1, processed 2"


def test_run_that_never_began_costs_none_of_them_an_attempt() -> None:
    """As without a batch: whatever kept Prefect from running it, no processor was called. They are to be given back."""
    stage = staged(failing())

    stage.batch.conclude("Crashed")

    assert {type(outcome) for outcome in stage.outcomes} == {type(None)}
    assert not stage.batch.is_wanted


def test_run_is_named_after_type_number_and_ids() -> None:
    """Whoever looks at the UI finds the rows; of one row it is named as without a batch. No payload in it."""
    several, one = staged(failing()), staged(failing(), number=1)

    assert several.batch.reference.name == "metric.a × 3 (#1 to #3)"  # noqa: RUF001
    assert one.batch.reference.name == "metric.a #1 (attempt 1)"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("answer", "outcomes"),
    [
        (None, [DONE, DONE, DONE]),
        ([None, LATER, UNWANTED], [DONE, LATER, UNWANTED]),
        ((None, ValueError("bad"), None), [DONE, Failed(error_type="ValueError", message="bad"), DONE]),
    ],
)
def test_rows_taken_together_are_answered_for_one_by_one(answer: Any, outcomes: list[Outcome], is_async: bool) -> None:
    """One call, one bulk write; None says that all is done."""
    seen: list[Any] = []

    def load(payloads: list[dict[str, int]], actions: Sequence[Action]) -> Any:
        seen.append((payloads, [one.id for one in actions]))
        return answer

    async def load_async(payloads: list[dict[str, int]], actions: Sequence[Action]) -> Any:
        return load(payloads, actions)

    stage = staged(load_async if is_async else load)

    _ = asyncio.run(stage.batch.run_async("r")) if is_async else stage.batch.run("r")
    stage.batch.conclude("Completed")

    assert seen == [([{"n": 1}, {"n": 2}, {"n": 3}], [1, 2, 3])]
    assert stage.outcomes == outcomes


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ([None], "answered 1 outcomes for 3 rows"),
        ([None] * 4, "answered 4 outcomes for 3 rows"),
        (7, "answered int"),
        ("abc", "answered str"),
        ({1: None}, "answered dict"),
        ((None for _ in range(3)), "generator"),
    ],
)
def test_answer_that_is_none_fails_them_all(answer: Any, problem: str) -> None:
    """Guessing which row is meant by which outcome would mark the wrong ones processed."""
    stage = staged(lambda payloads: answer)

    with pytest.raises(BatchFailedError):
        stage.batch.run("r")
    stage.batch.conclude("Failed")

    assert {type(outcome) for outcome in stage.outcomes} == {Failed}
    first = stage.outcomes[0]
    assert isinstance(first, Failed)
    if problem == "generator":
        assert (first.error_type, "nobody consumes" in first.message) == ("UnfinishedError", True)
        return
    assert (first.error_type, first.message) == (
        "BatchAnswerError",
        f"processor 'metric.*' {problem}; "
        "return None, or for each of the 3 rows None, a Snooze, a Cancel or an exception",
    )


async def later(came: Any = None) -> Any:
    """Comes to *came*; what is awaited may raise."""
    if isinstance(came, BaseException):
        raise came
    return came


@pytest.mark.parametrize(
    ("make", "error_type"),
    [
        (lambda: 7, "BatchAnswerError"),
        (lambda: [None], "BatchAnswerError"),
        (lambda: ValueError("x"), "ValueError"),
        (lambda: SystemExit(1), "SystemExit"),
        (asyncio.CancelledError, "CancelledError"),
        (lambda: later(ValueError("x")), "ValueError"),
        (lambda: later(SystemExit(1)), "SystemExit"),
        (lambda: (number for number in ()), "UnfinishedError"),
        (lambda: FailedState(message="no"), "RunFailedError"),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_answer_that_is_none_for_a_row_fails_that_row_alone(
    make: Callable[[], Any], error_type: str, is_async: bool
) -> None:
    """Its neighbours have their answers: to fail them would be to execute them again."""

    def load(payloads: list[Any]) -> list[Any]:
        return [None, make(), later(LATER)]

    async def load_async(payloads: list[Any]) -> list[Any]:
        return load(payloads)

    stage = staged(load_async if is_async else load)

    _ = asyncio.run(stage.batch.run_async("r")) if is_async else stage.batch.run("r")
    stage.batch.conclude("Completed")

    assert stage.outcomes[::2] == [DONE, LATER]
    assert isinstance(stage.outcomes[1], Failed)
    assert stage.outcomes[1].error_type == error_type


def test_what_is_awaited_row_by_row_is_that_rows() -> None:
    """A function that knows nothing of async returns a coroutine; a generator is that row's failure."""
    done: list[int] = []

    async def work(action: Action) -> None:
        done.append(action.id)

    def rows(action: Action) -> Any:
        return iter_of(action) if action.id == 2 else work(action)

    stage = staged(rows)
    stage.batch.run("r")
    stage.batch.conclude("Completed")

    assert done == [1, 3]
    assert stage.outcomes[::2] == [DONE, DONE]
    assert isinstance(stage.outcomes[1], Failed)
    assert stage.outcomes[1].error_type == "UnfinishedError"


def iter_of(action: Action) -> Any:
    """Nothing of it runs."""
    yield action.id


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3)])
def test_call_that_takes_rows_together_and_raises_fails_them_all_once(error: BaseException) -> None:
    """One call, one error, one attempt of each."""
    calls: list[int] = []

    def load(actions: Sequence[Action]) -> None:
        calls.append(len(actions))
        raise error

    stage = staged(load)

    with pytest.raises(BatchFailedError):
        stage.batch.run("r")
    stage.batch.conclude("Failed")

    assert calls == [3]
    assert [id_ for id_, _ in stage.settled] == [1, 2, 3]


def test_retry_takes_together_only_the_rows_that_failed() -> None:
    """The answer for the others stands, and is in the table already."""
    calls: list[list[int]] = []

    def load(actions: Sequence[Action]) -> list[Exception | None]:
        calls.append([one.id for one in actions])
        return [ValueError("bad") if one.id == 2 and len(calls) == 1 else None for one in actions]

    stage = staged(load)

    with pytest.raises(BatchFailedError):
        stage.batch.run("r", is_last_try=False)
    stage.batch.run("r")

    assert calls == [[1, 2, 3], [2]]
    assert stage.outcomes == [DONE, DONE, DONE]
