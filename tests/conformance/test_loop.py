"""The loop of a claim flow: when it looks again, and when it may stop."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event

from prefect_claim_dispatch import Action, processor
from prefect_claim_dispatch.dispatching.loop import ClaimLoop
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.statements import NAME
from tests.kit.looping import ThreadDispatcher
from tests.kit.tables import TABLE, add, row
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(60)


def test_what_ends_during_a_survey_is_looked_for_once_more(engine: Engine) -> None:
    """The survey still saw it claimed, and a moment later nothing ran: its next attempt, due at once, is this run's."""
    registry, tally, lease = Registry(), Tally(), timedelta(seconds=60)
    dispatcher, begun, may_fail = ThreadDispatcher(4), threading.Event(), threading.Event()

    @processor("a", registry=registry, backoff=timedelta(0))
    def fail_once(action: Action) -> None:
        begun.set()
        assert may_fail.wait(30)
        if action.attempt == 1:
            msg = "not yet"
            raise ConnectionError(msg)

    def end_the_work(_connection: Any, _cursor: Any, _sql: str, _parameters: Any, context: Any, _many: bool) -> None:
        if context.execution_options.get(NAME) == "survey" and begun.is_set() and not may_fail.is_set():
            may_fail.set()
            wait_until(lambda: dispatcher.ended, description="the work has ended")

    id_ = add(engine)
    event.listen(engine, "after_cursor_execute", end_the_work)
    options = LoopOptions(limit=100, lease=lease, concurrency=4, claimed_by="loop")
    with Keeper(engine, TABLE, lease=lease, tally=tally) as keeper:
        routing = Routing(registry, RetryPolicy())
        ClaimLoop(engine, TABLE, routing, dispatcher, keeper, tally, options=options).run()
    dispatcher.close()

    assert (row(engine, id_).status, row(engine, id_).claim_count) == ("processed", 2)
