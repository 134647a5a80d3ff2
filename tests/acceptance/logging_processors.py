"""Processors that log in every way there is, in every lane; and what they log."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from prefect import flow, task
from prefect.logging import get_run_logger
from prefect.runtime import flow_run, task_run

from prefect_claim_dispatch import Action, processor

LOGGER = "tests.app.mail"
"""A logger of an application's; the tests set it up as ``PREFECT_LOGGING_EXTRA_LOGGERS`` does."""


class MailRefusedError(Exception):
    """An error of the author's."""


def say_all(word: Any) -> None:
    """Log *word* in the three ways there are."""
    get_run_logger().info("run logger %s", word)
    print(f"print {word}")
    logging.getLogger(LOGGER).warning("app %s", word, extra={"word": str(word)})


def refuse(word: Any) -> None:
    """Raise, at the end of two frames of an author's."""
    raise MailRefusedError(f"refused {word}")


@processor("log.plain", log_prints=True)
def plain(action: Action) -> None:
    """A plain function."""
    say_all(action.id)


@processor("log.silent")
def silent(action: Action) -> None:
    """Prints, and nobody has asked for it."""
    print(f"print {action.id}")


@processor("log.fail", max_attempts=1)
def fail(action: Action) -> None:
    """Raises."""
    refuse(action.id)


@processor("log.flow", max_attempts=1)
@flow(log_prints=True, name="l-flow")
def run_flow(action: Action) -> None:
    """A subflow."""
    say_all(action.id)
    refuse(action.id)


@processor("log.row", rows_per_run=50, log_prints=True, max_attempts=1)
def row(action: Action) -> None:
    """Row by row; even ones fail."""
    say_all(action.id)
    if action.id % 2 == 0:
        refuse(action.id)


@processor("log.load", rows_per_run=50, log_prints=True, max_attempts=1)
def load(actions: Sequence[Action]) -> list[Exception | None]:
    """Together; the first fails."""
    say_all(actions[0].id)
    return [ValueError(f"answered {actions[0].id}"), *(None for _ in actions[1:])]


@task
def called_in_turn(number: int) -> None:
    """A task that a processor calls."""
    get_run_logger().info("nested %s", number)


@processor("log.isolated", isolate=True, log_prints=True)
async def isolated(action: Action) -> None:
    """In a child, with a run's context of its own."""
    assert task_run.id
    say_all(f"{action.id} in {task_run.name} of {flow_run.name}")
    called_in_turn(action.id)
    called_in_turn.submit(action.id + 1000).result()


@processor("log.isolated.row", isolate=True, rows_per_run=50, log_prints=True, max_attempts=1)
def isolated_row(action: Action) -> None:
    """A child for each row of a run."""
    say_all(action.id)
    if action.id % 2 == 0:
        refuse(action.id)


@processor("log.isolated.fail", isolate=True, max_attempts=1)
@task(log_prints=True)
def isolated_fail(action: Action) -> None:
    """A task of an author's, whose child raises."""
    say_all(action.id)
    refuse(action.id)


@processor("log.end.*", isolate=True, log_prints=True, max_attempts=1, timeout=timedelta(seconds=6))
def end(action: Action) -> None:
    """Ends its process, or is ended, right after its last line."""
    say_all(action.id)
    match action.type.rpartition(".")[2]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "group":
            os.killpg(0, signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "fault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case _:
            while True:
                time.sleep(1)
