"""The loop of a claim flow: when it looks again, and when it may stop."""

from __future__ import annotations

import itertools
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event

from prefect_claim_dispatch import Action, Draft, engines, operations, processor, publish_many
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.statements import NAME
from tests.kit.looping import ThreadDispatcher, run_loop
from tests.kit.tables import TABLE, add, by_status, row, statements_of
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


def run_with_batches(engine: Engine, number: int, on_call: Any, rows_per_run: int = 200) -> list[str]:
    """Run *number* rows of type ``a`` in batches; *on_call* gets how many were taken before. The loop's statements."""
    registry, dispatcher = Registry(), ThreadDispatcher(2)
    taken = list[int]()

    @processor("a", registry=registry, rows_per_run=rows_per_run)
    def take(payloads: list[dict[str, Any]]) -> None:
        on_call(len(taken))
        taken.extend([0] * len(payloads))

    publish_many(engine, itertools.repeat(Draft().type("a").eligible_at(LONG_AGO), number))
    with statements_of(engine) as statements:
        run_loop(engine, registry, dispatcher, limit=rows_per_run, concurrency=2)
    dispatcher.close()
    return statements


def test_flood_is_not_surveyed_before_each_claim(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A survey walks over all that was settled since the last vacuum. At the end there is one more, to be sure."""
    monkeypatch.setattr("prefect_claim_dispatch.dispatching.flooding.LOOK_EVERY", 60)

    statements = run_with_batches(engine, 2_000, lambda _taken: None)

    assert by_status(engine) == {"processed": 2_000}
    assert statements.count("claim") >= 10
    assert statements.count("survey") <= 4


def test_small_claims_are_surveyed_each(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost as much as their survey, and what was published since may be more urgent."""
    monkeypatch.setattr("prefect_claim_dispatch.dispatching.flooding.LOOK_EVERY", 60)

    statements = run_with_batches(engine, 100, lambda _taken: None, rows_per_run=10)

    assert by_status(engine) == {"processed": 100}
    assert statements.count("survey") >= statements.count("claim")


def test_pause_is_seen_in_a_flood(engine: Engine) -> None:
    """Within a quarter of a second, and not when all is done."""

    def pause_then_dawdle(taken: int) -> None:
        if taken >= 1_000:
            operations.pause(engine, "a")
        threading.Event().wait(0.1)

    run_with_batches(engine, 6_000, pause_then_dawdle)

    assert by_status(engine)["pending"] >= 2_000
