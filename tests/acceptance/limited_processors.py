"""Processors with global concurrency limits; each says in the ledger when it begins and when it ends."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta

from prefect_claim_dispatch import Action, processor
from tests.acceptance.processors import note

LIMIT = os.environ.get("LIMIT_NAME") or f"limit-{os.getpid()}"  # the server is shared by all test processes
OTHER = f"{LIMIT}-other"
MISSING = f"{LIMIT}-missing"


@processor("l.sync", concurrency_limit=LIMIT, max_attempts=1, timeout=timedelta(seconds=20))
def work(action: Action) -> None:
    """Takes a moment."""
    note(action, "begun")
    time.sleep(0.1)
    note(action, "ended")


@processor("l.async", concurrency_limit=[LIMIT, OTHER])
async def work_asynchronously(action: Action) -> None:
    """Takes a moment, and two limits."""
    note(action, "begun")
    await asyncio.sleep(0.1)
    note(action, "ended")


@processor("l.batch", concurrency_limit=LIMIT, rows_per_run=10)
def work_in_batches(action: Action) -> None:
    """Many rows in one slot."""
    note(action, "begun")
    note(action, "ended")


@processor("l.fail", concurrency_limit=LIMIT, max_attempts=2, backoff=timedelta(0), retries=1, retry_delay_seconds=0)
def fail(action: Action) -> None:
    """Gives its slot back all the same."""
    note(action, "begun")
    note(action, "ended")
    msg = "every try fails"
    raise RuntimeError(msg)


@processor("l.missing", concurrency_limit=[LIMIT, MISSING], max_attempts=1)
def never(action: Action) -> None:
    """Of a limit that does not exist."""
    note(action, "begun")
