"""Processors for task runners in other processes; each execution leaves a line in the ledger, with its process's id."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from prefect import pause_flow_run, task
from prefect.logging import get_run_logger
from prefect.runtime import task_run

from prefect_claim_dispatch import Action, Cancel, Snooze, processor
from prefect_claim_dispatch.databases import engine_for
from prefect_claim_dispatch.settling import settle_action
from tests.acceptance.processors import Order, note

AT_ONCE = timedelta(0)
LOGGER = "tests.app.runner"
"""A logger of an application's, which worker processes are told of by ``PREFECT_LOGGING_EXTRA_LOGGERS``."""


class UnsendableError(Exception):
    """Can't be pickled."""

    def __init__(self) -> None:
        super().__init__("can't be sent")
        self.lock = threading.Lock()


@processor("r.note", retries=1, retry_delay_seconds=0)
def note_it(action: Action) -> object:
    """Fails its first try; what it returns can't be pickled either."""
    note(action, f"try-{task_run.run_count}")
    if task_run.run_count == 1:
        raise UnsendableError
    assert action.lease_holds
    return threading.Lock()


@processor("r.async")
async def note_it_asynchronously(payload: dict[str, Any], action: Action) -> None:
    """An async processor, with a payload that no other process was sent."""
    note(action, payload["secret"])


@processor("r.task")
@task(persist_result=True, name="a task of another process")
def note_in_a_task(action: Action) -> None:
    """A task of the author's."""
    note(action)


@processor("r.raise.*", max_attempts=1)
def raise_something(action: Action) -> None:
    """What is hard to bring home."""
    note(action)
    match action.type.rpartition(".")[2]:
        case "huge":
            raise RuntimeError("x" * 5_000_000)
        case "exit":
            raise SystemExit(3)
        case "pause":
            pause_flow_run(timeout=60)
        case _:
            raise UnsendableError


@processor("r.tagged")
@task(tags=["r-none"])
def tagged(action: Action) -> None:
    """Its tag has a limit of 0: Prefect does not begin it."""
    note(action)


@processor("r.snooze")
def snooze(action: Action) -> Snooze | None:
    """Later, once."""
    note(action)
    return Snooze(AT_ONCE, "not yet") if action.claim_count == 1 else None


@processor("r.cancel")
def cancel(action: Action) -> Cancel:
    """Not wanted."""
    note(action)
    return Cancel("not wanted")


@processor("r.spin", timeout=timedelta(seconds=1), max_attempts=1)
def spin(action: Action) -> None:
    """Never comes back by itself."""
    note(action)
    while True:
        pass


@processor("r.batch", rows_per_run=50, max_attempts=1)
def note_in_batches(payload: Order, action: Action) -> None:
    """Row by row; multiples of five fail."""
    note(action)
    if payload.number % 5 == 0:
        raise ValueError("five")


@processor("r.load", rows_per_run=50)
def load(payloads: list[Order], actions: Sequence[Action]) -> list[Snooze | None]:
    """Together; the first is snoozed once."""
    for action in actions:
        note(action, f"of-{len(payloads)}")
    return [Snooze(AT_ONCE) if action.claim_count == 1 and not n else None for n, action in enumerate(actions)]


@processor("r.settle")
def settle(action: Action) -> None:
    """In its own transaction."""
    with engine_for(None).begin() as connection:
        settle_action(connection, action)
    note(action)


@task
def one_more(number: int) -> int:
    """What a processor submits in turn."""
    return number + 1


@processor("r.nest")
def submit_more(action: Action) -> None:
    """Submits to the current task runner, and waits for it."""
    futures = [one_more.submit(number) for number in range(2)]
    note(action, str(sum(future.result() for future in futures)))


@processor("r.say", log_prints=True)
def say(action: Action) -> None:
    """Logs in the three ways there are."""
    note(action)
    get_run_logger().info("run logger %s", action.id)
    print(f"print {action.id}")
    logging.getLogger(LOGGER).warning("app %s", action.id)


@processor("r.kill", backoff=AT_ONCE)
def kill(action: Action) -> None:
    """Takes its process with it, once."""
    note(action)
    if action.claim_count == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@processor("r.beside", backoff=AT_ONCE)
def work_beside(action: Action) -> None:
    """Takes a moment."""
    note(action)
    time.sleep(0.2)
