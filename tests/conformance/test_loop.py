"""The loop of a claim flow: when it looks again, and when it may stop."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event

from prefect_claim_dispatch import Action, processor
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.statements import NAME
from tests.kit.looping import ThreadDispatcher, run_loop
from tests.kit.tables import add, row
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(60)


def test_what_ends_during_a_survey_is_looked_for_once_more(engine: Engine) -> None:
    """The survey still saw it claimed, and a moment later nothing ran: its next attempt, due at once, is this run's."""
    registry, dispatcher = Registry(), ThreadDispatcher(4)
    begun, may_fail = threading.Event(), threading.Event()

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
    run_loop(engine, registry, dispatcher)
    dispatcher.close()

    assert (row(engine, id_).status, row(engine, id_).claim_count) == ("processed", 2)
