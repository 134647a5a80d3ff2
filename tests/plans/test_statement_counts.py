"""How many statements a tick costs: one when there is nothing to do, the same number however many rows it takes."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import claiming, settling
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.policies import RetryPolicy, settlement_for
from tests.kit.tables import TABLE, add, add_many, by_status, statements_of


def tick(engine: Engine) -> int:
    """What a claim flow does in one round, without the work; returns how many rows it settled."""
    due = claiming.survey(engine, TABLE).due()
    if not due:
        return 0
    raws = claiming.claim(engine, TABLE, due, limit=10_000, lease=timedelta(minutes=1), claimed_by="run")
    claiming.begin(engine, TABLE, [(raw.id, raw.claim_count, "run") for raw in raws])
    return len(settling.settle(engine, TABLE, [settlement_for(Processed(), raw, RetryPolicy()) for raw in raws]))


def test_idle_tick_is_one_statement(engine: Engine) -> None:
    """A schedule that fires for ever asks one question; the future and the finished are in the table too."""
    add(engine, due_in=3600)
    add(engine)
    tick(engine)

    with statements_of(engine) as statements:
        assert tick(engine) == 0

    assert statements == ["survey"]


@pytest.mark.parametrize("number", [1, 10, 100, 1_000])
def test_full_tick_is_four_statements_however_many_rows_it_takes(engine: Engine, number: int) -> None:
    """A statement for each row is what makes a claim table slow; several types and priorities change nothing."""
    add_many(engine, [{"type": f"type.{n % 5}", "priority": n % 3} for n in range(number)])

    with statements_of(engine) as statements:
        assert tick(engine) == number

    assert statements == ["survey", "claim", "begin", "settle"]
    assert by_status(engine) == {"processed": number}
