"""Processors of the tests of suspects: one kills its process, its siblings mean no harm."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta

from prefect_claim_dispatch import Action, processor
from tests.kit.ledger import Ledger

MAX_ATTEMPTS = 3
LEDGER = Ledger.of_environment()


@processor("k.killer", max_attempts=MAX_ATTEMPTS, backoff=timedelta(0))
def kill(action: Action) -> None:
    """As a segmentation fault or the kernel's memory killer would."""
    LEDGER.begin(action)
    os.kill(os.getpid(), signal.SIGKILL)


@processor("k.sibling", max_attempts=MAX_ATTEMPTS, backoff=timedelta(0))
def work(action: Action) -> None:
    """Long enough to be in the middle of it when another kills the process."""
    with LEDGER.attempt(action):
        time.sleep(0.05)


@processor("k.batch.*", rows_per_run=40, max_attempts=MAX_ATTEMPTS, backoff=timedelta(0))
def work_in_batches(action: Action) -> None:
    """Killer and siblings in the same runs."""
    (kill if action.type.endswith(".killer") else work)(action)


@processor("k.long", max_attempts=MAX_ATTEMPTS, backoff=timedelta(0))
def work_long(action: Action) -> None:
    """Until it is killed."""
    with LEDGER.attempt(action):
        time.sleep(120)


@processor("k.long.batch", rows_per_run=2, max_attempts=MAX_ATTEMPTS, backoff=timedelta(0))
def work_long_in_batches(action: Action) -> None:
    """As `work_long`."""
    work_long(action)
