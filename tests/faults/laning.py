"""One processor for each lane; each execution is in the ledger, and takes a while, to be struck in the middle."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta

from prefect import flow

from prefect_claim_dispatch import Action, processor
from tests.kit.ledger import Ledger

SECONDS_VARIABLE = "LANING_SECONDS"
OPTIONS = {"max_attempts": 20, "backoff": timedelta(0)}
LEDGER = Ledger.of_environment()


@processor("l.task", **OPTIONS)
def work(action: Action) -> None:
    """A task run of its own."""
    with LEDGER.attempt(action):
        time.sleep(float(os.environ[SECONDS_VARIABLE]))


@processor("l.async", **OPTIONS)
async def work_asynchronously(action: Action) -> None:
    """The same, in an event loop."""
    work(action)


@processor("l.isolated", isolate=True, **OPTIONS)
def work_in_a_child(action: Action) -> None:
    """In a child process."""
    work(action)


@processor("l.batch", rows_per_run=3, **OPTIONS)
def work_row_by_row(action: Action) -> None:
    """A run for three."""
    work(action)


@processor("l.together", rows_per_run=3, **OPTIONS)
def work_together(actions: Sequence[Action]) -> None:
    """A call for three."""
    with ExitStack() as all_of_them:
        for action in actions:
            all_of_them.enter_context(LEDGER.attempt(action))
        time.sleep(float(os.environ[SECONDS_VARIABLE]))


@processor("l.auto", rows_per_run="auto", **OPTIONS)
def work_automatically(action: Action) -> None:
    """Alone or with others."""
    work(action)


@processor("l.subflow", **OPTIONS)
@flow
def work_in_a_subflow(action: Action) -> None:
    """A flow run under the claim flow's."""
    work(action)
