"""The loop of a claim flow: when it looks again, and when it may stop."""

from __future__ import annotations

import itertools
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event

from prefect_claim_dispatch import Action, Draft, engines, processor, publish_many
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.statements import NAME
from tests.kit.looping import ThreadDispatcher, run_loop
from tests.kit.tables import TABLE, add, row
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(60)

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


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


def flooded(engine: Engine, number: int) -> list[str]:
    """The types that a loop executes, in order, when *number* rows of a type are due before one row of another.

    As soon as that one is done, the rest is deleted.
    """
    registry, dispatcher = Registry(), ThreadDispatcher(4)
    executed: list[str] = []

    @processor("flood", registry=registry)
    def count(action: Action) -> None:
        executed.append(action.type)

    @processor("other", registry=registry)
    def end_the_flood(action: Action) -> None:
        executed.append(action.type)
        with engine.begin() as connection:
            connection.execute(delete(TABLE).where(TABLE.c.status == "pending"))

    publish_many(engine, itertools.repeat(Draft().type("flood").eligible_at(LONG_AGO), number))
    add(engine, "other")
    run_loop(engine, registry, dispatcher)
    dispatcher.close()
    return executed


def test_one_type_that_floods_keeps_no_other_waiting(engine: Engine) -> None:
    """Without turns, the other would be done after the flood."""
    executed = flooded(engine, 1_000)

    assert executed.index("other") < 40, "some claims for four slots, and as many ahead"


def test_hundred_thousand_rows_of_one_type_keep_no_other_waiting(postgres_url: str) -> None:
    """How long one waits is a number of claims, whatever the size of the flood."""
    engine = engines.create(postgres_url)

    executed = flooded(engine, 100_000)

    assert executed.index("other") < 40
    engine.dispose()
