"""Processors of the acceptance tests. Each execution leaves a line in the ledger, independently of the table."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from prefect import flow, task
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from pydantic import BaseModel

from prefect_claim_dispatch import Action, Cancel, Snooze, processor

AT_ONCE = timedelta(0)


def note(action: Action, word: str = "done") -> None:
    """Append to the ledger, in one write, so that lines of several processes don't mix."""
    line = f"{action.id} {action.claim_count} {word} {os.getpid()}\n"
    descriptor = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def ledger() -> list[list[str]]:
    """The lines of the ledger, split into words."""
    file = Path(os.environ["LEDGER"])
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


class Order(BaseModel):
    """A payload that must fit."""

    number: int


@processor("t.note", retries=2, retry_delay_seconds=0)
def note_it(action: Action) -> str:
    """Do it and say so in the run's log."""
    note(action)
    get_run_logger().info("noted %s", action.reference)
    return "a result that stays here"


@processor("t.async")
async def note_it_asynchronously(action: Action) -> None:
    """An async processor."""
    note(action)


@processor("t.order")
def take_order(payload: Order, action: Action) -> None:
    """Takes nothing but orders."""
    note(action, f"order-{payload.number}")


@processor("t.flaky", retries=2, retry_delay_seconds=0)
def fail_first_try(action: Action) -> None:
    """Fails its first try only: Prefect's retries, inside one attempt."""
    note(action, f"try-{task_run.run_count}")
    if task_run.run_count == 1:
        msg = "the first try fails"
        raise ConnectionError(msg)


@processor("t.fail", max_attempts=3, backoff=AT_ONCE)
def fail(action: Action) -> None:
    """Fails every attempt."""
    note(action)
    msg = "every attempt fails"
    raise RuntimeError(msg)


@processor("t.exit", max_attempts=1)
def exit_process(action: Action) -> None:
    """Raises what would end a process."""
    note(action)
    raise SystemExit(3)


@processor("t.interrupt", max_attempts=1)
def interrupt(action: Action) -> None:
    """As Ctrl-C would."""
    note(action)
    raise KeyboardInterrupt


@processor("t.snooze")
def snooze(action: Action) -> Snooze | None:
    """Later, once."""
    note(action)
    return Snooze(AT_ONCE) if action.claim_count == 1 else None


@processor("t.cancel")
def cancel(action: Action) -> Cancel:
    """Not wanted any more."""
    note(action)
    return Cancel("not wanted any more")


@processor("t.task")
@task(persist_result=True, name="an author's own task")
def note_persistently(action: Action) -> int:
    """A task of the author's, whose results are kept."""
    note(action)
    return action.id


@processor("t.flow.*", max_attempts=1)
@flow(name="an-authors-own-flow")
def run_flow(payload: dict[str, object], action: Action) -> None:
    """A flow of the author's."""
    note(action)
    if payload.get("fails"):
        msg = "the flow fails"
        raise RuntimeError(msg)


@processor("t.slow")
def work_slowly(action: Action) -> None:
    """Takes a while, and says when it begins."""
    note(action, "begun")
    time.sleep(float(os.environ.get("SLOW_SECONDS", "0.3")))
    note(action)


@processor("t.spin", timeout=timedelta(seconds=1), max_attempts=1)
def spin(action: Action) -> None:
    """Never comes back by itself."""
    note(action)
    while True:
        pass


@processor("t.batch", rows_per_run=50, retries=1, retry_delay_seconds=0, max_attempts=2, backoff=AT_ONCE)
def note_in_batches(payload: Order, action: Action) -> None:
    """Row by row; odd numbers above 100 fail every try."""
    note(action, f"try-{task_run.run_count}")
    if payload.number > 100 and payload.number % 2:
        msg = "odd"
        raise ValueError(msg)


@processor("t.batch.async", rows_per_run=50)
async def note_in_batches_asynchronously(action: Action) -> None:
    """Row by row, in the run's own event loop."""
    note(action)


@processor("t.load", rows_per_run=50)
@task(name="an author's own bulk load", persist_result=True)
def load(payloads: list[Order], actions: Sequence[Action]) -> list[Snooze | None]:
    """Together; the first claim of number 1 is snoozed."""
    for action in actions:
        note(action, f"of-{len(payloads)}")
    return [
        Snooze(AT_ONCE) if payload.number == 1 and action.claim_count == 1 else None
        for payload, action in zip(payloads, actions, strict=True)
    ]


@processor("t.auto", rows_per_run="auto")
def note_automatically(action: Action) -> None:
    """As many to a run as the server can bear."""
    note(action)
