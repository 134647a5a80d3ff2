"""Tracebacks: the author's frames, not the machinery's; of a batch, those of each row that failed."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from prefect_claim_dispatch import Action
from prefect_claim_dispatch.dispatching import tracebacks
from prefect_claim_dispatch.dispatching.batches import Batch, BatchFailedError
from prefect_claim_dispatch.dispatching.calling import called, called_async
from prefect_claim_dispatch.dispatching.failures import MOST_TOLD, tell_failures
from prefect_claim_dispatch.dispatching.tracebacks import MAX_TRACEBACK_LENGTH, AuthorsFrames, authors, told
from tests.kit.logged import functions_in
from tests.unit.test_batches import failing, staged


class Order(BaseModel):
    """A payload."""

    number: int


def raise_deep_inside() -> None:
    """What a processor calls."""
    raise LookupError("deep inside")


def process() -> None:
    """A processor."""
    raise_deep_inside()


async def process_asynchronously() -> None:
    """An async one."""
    await asyncio.sleep(0)
    raise_deep_inside()


def raised_by(call: Callable[[], Any]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("call", "first"),
    [
        (lambda: called(process, {}, None), "process"),
        (lambda: called(process, {}, timedelta(seconds=60)), "process"),
        (
            lambda: asyncio.run(called_async(process_asynchronously, {}, timedelta(seconds=60))),
            "process_asynchronously",
        ),
        (lambda: staged(lambda: process(), number=1).batch.run(""), "<lambda>"),  # noqa: PLW0108 - a frame of its own
    ],
)
def test_traceback_begins_with_the_authors_first_frame(call: Callable[[], Any], first: str) -> None:
    """Sync or not, with a time limit or without, however many frames of ours and of Prefect's come before."""
    error = raised_by(call)

    text = told(error)

    names = functions_in(text)
    assert (names[0], names[-1]) == (first, "raise_deep_inside")
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("\nLookupError: deep inside")
    assert len(names) < len(traceback.extract_tb(error.__traceback__))


def test_error_that_was_never_in_our_hands_is_left_as_it_is() -> None:
    """A task that a processor calls in turn fails in Prefect's hands alone, and may be anybody's."""
    error = raised_by(process)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), (type(error), error, error.__traceback__))

    assert AuthorsFrames().filter(record)

    assert authors(error.__traceback__) is error.__traceback__
    assert record.exc_text is None


def test_what_led_to_an_error_is_told_with_frames_of_its_own() -> None:
    """In Python's order and words: of each link the author's frames, those of a group too."""

    def fail() -> None:
        try:
            process()
        except LookupError as cause:
            raise ExceptionGroup("both", [raised_by(process), ValueError("second")]) from cause  # type: ignore[list-item]

    text = told(raised_by(lambda: called(fail, {}, None)))

    assert text.count("LookupError: deep inside") == 2
    assert "direct cause of the following exception" in text
    assert "ExceptionGroup: both (2 sub-exceptions)" in text
    assert "  | ValueError: second" in text
    assert "in called" not in text


def test_traceback_does_not_quote_what_was_validated() -> None:
    """Its text quotes the input, and that may be a payload: it must not come into a log by us."""
    payload, secret = {"number": "s3cret".upper()}, "hunter2".upper()
    error = raised_by(lambda: TypeAdapter(Order).validate_python(payload))
    error.__cause__ = RuntimeError(f"password={secret}")

    text = told(error)

    assert payload["number"] in str(error)
    assert payload["number"] not in text
    assert secret not in text
    assert "number: " in text.splitlines()[-1]


def test_enormous_error_is_told_in_bounds() -> None:
    """Its end says what it was."""

    def endlessly(depth: int) -> None:
        endlessly(depth + 1) if depth % 2 else other(depth + 1)

    def other(depth: int) -> None:
        endlessly(depth + 1)

    unprintable = type("Unprintable", (Exception,), {"__str__": lambda _: 1 / 0})

    text = told(raised_by(lambda: called(endlessly, {"depth": 0}, None)))

    assert len(text) < MAX_TRACEBACK_LENGTH + 100
    assert "characters are left out" in text
    assert text.splitlines()[-1].startswith("RecursionError: ")
    assert len(told(ValueError("x" * 10_000_000))) < 1_100
    assert "while printing the error" in told(unprintable())


def test_time_limit_shows_where_the_processor_was() -> None:
    """Not only that it was over."""

    def spin() -> None:
        while True:
            pass

    async def wait() -> None:
        await asyncio.Event().wait()

    spun = told(raised_by(lambda: called(spin, {}, timedelta(seconds=0.05))))
    waited = told(raised_by(lambda: asyncio.run(called_async(wait, {}, timedelta(seconds=0.05)))))

    assert functions_in(spun)[0] == "spin"
    assert functions_in(waited)[0] == "wait"
    assert spun.splitlines()[-1] == waited.splitlines()[-1] == "TimeoutError: over its time limit of 0:00:00.050000"


def test_processor_that_exits_shows_where() -> None:
    """It is told as another error, with the frames of its own."""
    error = raised_by(lambda: staged(failing(1, error=SystemExit(3)), number=1).batch.run(""))

    text = told(error)

    assert functions_in(text) == ["work"]
    assert text.endswith("ProcessorExitedError: the processor raised SystemExit: 3")


def lines_of(batch: Batch) -> list[str]:
    """What is said of the rows of *batch* that failed."""
    said = list[str]()
    tell_failures(batch, lambda form, *given: said.append(form % given))
    return said


@pytest.mark.parametrize("is_async", [False, True])
def test_each_failing_row_of_a_batch_is_told_with_its_error_and_traceback(is_async: bool) -> None:
    """Row by row: of hundreds, one that failed would else be a number in a line."""
    work = failing(2, 5)

    async def work_async(action: Action) -> None:
        work(action)

    stage = staged(work_async if is_async else work, number=9)
    if is_async:
        asyncio.run(stage.batch.run_async("run"))
    else:
        stage.batch.run("run")

    second, fifth = lines_of(stage.batch)

    assert second.startswith("metric.a #2 (attempt 1) failed: ValueError: no 2\nTraceback (most recent call last):\n")
    assert functions_in(second) == (["work_async", "work"] if is_async else ["work"])
    assert fifth.startswith("metric.a #5 (attempt 1) failed: ValueError: no 5\nTraceback")


def test_rows_that_failed_by_one_call_are_told_together_and_answers_by_themselves() -> None:
    """Together: twenty times the same traceback says no more than once; an answered error was raised nowhere."""

    def raises(actions: list[Action]) -> None:
        raise ConnectionError(f"all {len(actions)}")

    def answers(actions: list[Action]) -> list[Exception | None]:
        return [None, *(ValueError(f"no {action.id}") for action in actions[1:])]

    all_failed, some_failed = staged(raises), staged(answers)
    with pytest.raises(BatchFailedError) as raised:
        all_failed.batch.run("run")
    some_failed.batch.run("run")

    (line,) = lines_of(all_failed.batch)

    assert "metric.a #1 (attempt 1), metric.a #2 (attempt 1), metric.a #3 (attempt 1) failed: ConnectionError" in line
    assert functions_in(line) == ["raises"]
    assert told(raised.value) == "BatchFailedError: failed 3 (#1, #2, #3)"
    assert lines_of(some_failed.batch) == [
        "metric.a #2 (attempt 1) failed: ValueError: no 2",
        "metric.a #3 (attempt 1) failed: ValueError: no 3",
    ]


def test_only_so_many_rows_are_told_in_a_log_and_all_in_their_errors() -> None:
    """Ten thousand rows may have failed."""
    stage = staged(failing(*range(1, 501)), number=500)
    with pytest.raises(BatchFailedError):
        stage.batch.run("run")

    lines = lines_of(stage.batch)
    stage.batch.conclude("Failed")

    assert len(lines) == MOST_TOLD + 1
    assert lines[-1] == "480 more failed; the error of each is in its row's errors"
    assert {getattr(outcome, "message", "") for _, outcome in stage.settled} == {f"no {id_}" for id_ in range(1, 501)}


def test_batch_of_one_is_left_to_prefect_which_logs_it() -> None:
    """It would be told twice."""
    stage = staged(failing(1), number=1)
    with pytest.raises(ValueError, match="no 1"):
        stage.batch.run("run")

    assert lines_of(stage.batch) == []


def test_prefects_loggers_are_told_once_however_often_it_is_asked() -> None:
    """A process has many claim flows in its life."""
    for _ in range(3):
        tracebacks.shorten()

    for name in ("prefect.task_runs", "prefect.flow_runs"):
        assert [type(one) for one in logging.getLogger(name).filters].count(AuthorsFrames) == 1
