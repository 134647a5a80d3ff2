"""A process that claims and works until it is told to end: ``python -m tests.soak.claimants loop|flow``.

``loop`` is the package's claim loop and keeper with threads instead of Prefect's runs, of which a server bears about
40 a second: with a server in the way, there would be too few rows to break. ``flow`` is the real claim flow.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NoReturn

from sqlalchemy import Engine

from prefect_claim_dispatch import databases
from prefect_claim_dispatch.dispatching.dispatchers import OnDone
from prefect_claim_dispatch.dispatching.loop import ClaimLoop
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.errors import ClaimDispatchError
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.processors import load_modules, registry
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.settings import load
from tests.kit.ledger import Ledger
from tests.soak.notes import Notes
from tests.soak.scenario import STACKS, Part
from tests.soak.witness import watch

PROCESSORS = "tests.soak.processors"
PAUSE_SECONDS = 0.2
logger = logging.getLogger(__name__)


class ToldToEndError(BaseException):
    """SIGTERM, as Prefect tells a flow: raised in the main thread, wherever that is."""


class ThreadDispatcher:
    """Each action is a call in a thread."""

    def __init__(self, concurrency: int) -> None:
        self._executor = ThreadPoolExecutor(concurrency)

    def submit(self, work: Work, on_done: OnDone) -> None:
        """Start *work*."""
        future = self._executor.submit(work.run, f"process-{os.getpid()}")
        future.add_done_callback(lambda done: on_done(work, _ended(done)))


def _ended(future: Future[Any]) -> str:
    error = future.exception()
    return "Completed" if error is None else type(error).__name__


def claim_by_loop(part: Part) -> None:
    """Claim until SIGTERM; begin anew when the database was away, as the next scheduled flow would."""
    load_modules([PROCESSORS])
    engine, dispatcher = databases.engine_for(None), ThreadDispatcher(part.concurrency)
    signal.signal(signal.SIGTERM, _end)
    try:
        while True:
            try:
                _serve(engine, dispatcher, part)
            except ClaimDispatchError as error:
                logger.warning("beginning anew: %s", error)
                threading.Event().wait(PAUSE_SECONDS)
    except ToldToEndError:
        logger.warning("told to end")


def _end(_signum: int, _frame: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise ToldToEndError


def _serve(engine: Engine, dispatcher: ThreadDispatcher, part: Part) -> None:
    settings, table, tally = load(), databases.table_named(), Tally()
    options = LoopOptions(
        limit=settings.limit,
        lease=timedelta(seconds=settings.lease_seconds),
        concurrency=part.concurrency,
        claimed_by=f"process-{os.getpid()}",
        stay=timedelta(days=1),
        grace=timedelta(seconds=5),
    )
    with Keeper(engine, table, lease=options.lease, tally=tally) as keeper:
        loop = ClaimLoop(
            engine, table, Routing(registry, settings.retry_policy), dispatcher, keeper, tally, options=options
        )
        try:
            loop.run()
        except BaseException:
            loop.stop()
            raise


def claim_by_flow(part: Part) -> None:
    """Run one claim flow after another under Prefect; SIGTERM ends the process as it does a deployed flow's."""
    from prefect_claim_dispatch.flow import run_claim_flow

    lease = timedelta(seconds=load().lease_seconds)
    while True:
        try:
            run_claim_flow(processors=(PROCESSORS,), lease=lease, stay=timedelta(seconds=60))
        except ClaimDispatchError as error:
            logger.warning("beginning anew: %s", error)
            threading.Event().wait(PAUSE_SECONDS)


if __name__ == "__main__":
    faulthandler.register(STACKS, all_threads=True)  # one that is told to end and goes on is asked why
    told = Part.of_environment()
    watch(Ledger(told.ledger), Notes(told.notes))
    {"loop": claim_by_loop, "flow": claim_by_flow}[sys.argv[1]](told)
