"""The real loop of a claim flow, in a thread, without Prefect: what its tests take away is the database.

Work runs in plain threads. Ledger and publish log are kept, so that the auditor can say at the end what was broken.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Table, event

from prefect_claim_dispatch import Action, processor, publish
from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.dispatching import loop as loop_module
from prefect_claim_dispatch.dispatching.batches import Workload
from prefect_claim_dispatch.dispatching.dispatchers import OnDone
from prefect_claim_dispatch.dispatching.loop import ClaimLoop
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.reaching import ApiWatch
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.reports import Tally
from tests.kit.auditor import audit, report
from tests.kit.ledger import Ledger, PublishLog
from tests.kit.tables import TABLE, by_status
from tests.kit.waiting import wait_until

WORK_SECONDS = 60


class ThreadDispatcher:
    """A mode of dispatch that needs no Prefect server: each piece of work in a thread of a pool."""

    def __init__(self, concurrency: int) -> None:
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="loop-under-test")
        self.ended = 0

    def submit(self, work: Workload, on_done: OnDone) -> None:
        """Run it, and say how it ended."""
        self._executor.submit(self._run, work, on_done)

    def close(self) -> None:
        """Wait for what runs."""
        self._executor.shutdown()

    def _run(self, work: Workload, on_done: OnDone) -> None:
        try:
            work.run(f"run-{work.reference.id}")
        except Exception as error:
            on_done(work, type(error).__name__)
        else:
            on_done(work, "Completed")
        finally:
            self.ended += 1


def run_loop(
    engine: Engine,
    registry: Registry,
    dispatcher: ThreadDispatcher,
    *,
    tally: Tally | None = None,
    api: ApiWatch | None = None,
    table: Table = TABLE,
    **changes: Any,
) -> Tally:
    """The loop of a claim flow with four slots and the processors of *registry*, in this thread; its counts.

    *changes* are to its options. The dispatcher is left open.
    """
    given: dict[str, Any] = {"limit": 100, "lease": timedelta(seconds=60), "concurrency": 4, "claimed_by": "loop"}
    options, tally = LoopOptions(**(given | changes)), tally or Tally()
    routing = Routing(registry, RetryPolicy(backoff=timedelta(0)))
    with Keeper(engine, table, lease=options.lease, tally=tally) as keeper:
        ClaimLoop(engine, table, routing, dispatcher, keeper, tally, options=options, api=api).run()
    return tally


@contextmanager
def staying_loop(engine: Engine, registry: Registry) -> Generator[None]:
    """The loop of a claim flow, in a thread, that stays until the block is left."""
    is_over, dispatcher = threading.Event(), ThreadDispatcher(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "elapsed_clock", lambda: elapsed_clock() + (7_200 if is_over.is_set() else 0))
        options = {"stay": timedelta(hours=1)}
        thread = threading.Thread(target=run_loop, args=(engine, registry, dispatcher), kwargs=options, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join(40)
            dispatcher.close()


@dataclass
class Running:
    """A loop that runs in a thread; *error* is what ended it."""

    tally: Tally = field(default_factory=Tally)
    error: BaseException | None = None
    thread: threading.Thread | None = None

    def ends(self, timeout: float = 40) -> Tally:
        """Wait until it has ended well; its counts."""
        assert self.thread is not None
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "the loop has not ended"
        if self.error is not None:
            raise self.error
        return self.tally


class _OverError(Exception):
    """The test is over, and so is the loop's stay."""


@contextmanager
def staying(engine: Engine, registry: Registry, *, table: Table = TABLE, **changes: Any) -> Generator[Running]:
    """The loop of a claim flow that stays until the block ends, in a thread.

    *changes* are to its options. At the end a row of a type that nobody registered is published, to wake it.
    """
    running, dispatcher, is_over = Running(), ThreadDispatcher(4), threading.Event()

    def end_it(*_: Any) -> None:
        if is_over.is_set() and threading.current_thread() is running.thread:
            raise _OverError

    def run() -> None:
        try:
            run_loop(engine, registry, dispatcher, tally=running.tally, table=table, **changes)
        except _OverError:
            pass
        except Exception as error:
            running.error = error

    event.listen(engine, "before_cursor_execute", end_it)
    changes = {"stay": timedelta(seconds=60)} | changes
    running.thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    running.thread.start()
    try:
        yield running
    finally:
        is_over.set()
        publish(engine, "nobody.registered", table=table.fullname)
        running.thread.join(40)
        dispatcher.close()
        event.remove(engine, "before_cursor_execute", end_it)
        assert not running.thread.is_alive(), "the loop has not ended"


class Scene:
    """A database, rows of type ``a`` whose work waits until `let_work` is set, and all that is known of them."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.ledger, self.log = Ledger(folder / "ledger"), PublishLog(folder / "published")
        self.let_work = threading.Event()
        self.begun = 0
        self._registry = Registry()

        @processor("a", registry=self._registry, backoff=timedelta(0))
        def work(action: Action) -> None:
            with self.ledger.attempt(action):
                self.begun += 1
                assert self.let_work.wait(WORK_SECONDS), "the test forgot the work"

    def publish(self, number: int = 1, bind: Engine | None = None, payload: dict[str, Any] | None = None) -> list[int]:
        """Publish, and keep what was asked and answered."""
        ids: list[int] = []
        for _ in range(number):
            token = self.log.asked("a")
            receipt = publish(bind or self.engine, "a", payload or {})
            self.log.published(token, receipt, "a")
            ids.append(receipt.id or 0)
        return ids

    @contextmanager
    def loop(
        self,
        engine: Engine | None = None,
        *,
        lease: float = 60,
        stay: float = 0,
        api: ApiWatch | None = None,
    ) -> Generator[Running]:
        """The loop of a claim flow on *engine*, in a thread that has ended when the block has."""
        running, used = Running(), engine or self.engine
        changes = {"lease": timedelta(seconds=lease), "stay": timedelta(seconds=stay)}
        dispatcher = ThreadDispatcher(4)

        def run() -> None:
            try:
                run_loop(used, self._registry, dispatcher, tally=running.tally, api=api, **changes)
            except Exception as error:
                running.error = error

        running.thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
        running.thread.start()
        try:
            yield running
        finally:
            self.let_work.set()
            running.thread.join(40)
            dispatcher.close()

    def wait_until_begun(self, number: int) -> None:
        """Until so many executions have begun."""
        wait_until(lambda: self.begun >= number, description=f"{number} executions have begun", timeout=20)

    def expect_all_processed(self, number: int, engine: Engine | None = None) -> None:
        """Every row is processed, and the auditor finds no broken promise."""
        looked = engine or self.engine
        assert by_status(looked) == {"processed": number}
        broken = audit(looked, self.ledger, self.log)
        assert not broken, report(broken)
