"""`testing.drain` beside the claim flow: what a test sees must be what production does."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import operations, publish, testing
from tests.acceptance.conftest import PROCESSORS, Dispatch
from tests.acceptance.processors import ledger

pytestmark = pytest.mark.xdist_group("prefect")

LATER = datetime(2040, 6, 1, tzinfo=UTC)
ACTIONS: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = [
    ("t.note", {}, None),
    ("t.async", {}, {"==": [1, 1]}),
    ("t.note", {}, {"==": [1, 2]}),
    ("t.order", {"number": 1}, None),
    ("t.order", {"number": "one"}, None),
    ("t.fail", {}, None),
    ("t.exit", {}, None),
    ("t.snooze", {}, None),
    ("t.cancel", {}, None),
    ("t.task", {}, None),
    ("t.flow.a", {}, None),
    ("t.flow.a", {"fails": True}, None),
    ("t.nobody", {}, None),
]


def publish_all(engine: Engine) -> list[int]:
    """One of each, in order; their ids."""
    receipts = [publish(engine, type_, payload, rules=rules) for type_, payload, rules in ACTIONS]
    return [receipt.id for receipt in receipts if receipt.id is not None]


def came_to(engine: Engine, ids: list[int]) -> list[Any]:
    """What each action came to, without what names it."""
    rows = [operations.get(engine, id_) for id_ in ids]
    return [(row.type, row.status, row.claim_count, row.fail_count, row.errors) for row in rows]


def test_drain_and_claim_flow_come_to_the_same(engine: Engine, dispatch: Dispatch) -> None:
    """Report, rows and executions are equal, so a test that drains tests what will happen."""
    flowed_ids = publish_all(engine)
    by_flow = dispatch()
    flowed, executed = came_to(engine, flowed_ids), len(ledger())
    operations.cancel(engine, type="t.nobody")

    drained_ids = publish_all(engine)
    by_drain = testing.drain(engine, PROCESSORS)

    assert by_drain.runs == 0, "there are no runs without Prefect"
    assert replace(by_drain, runs=by_flow.runs) == by_flow
    assert came_to(engine, drained_ids) == flowed
    assert len(ledger()) == 2 * executed
    assert (by_drain.processed, by_drain.dead, by_drain.snoozed, by_drain.cancelled) == (6, 4, 1, 2)


def test_claim_flow_in_this_process_follows_the_moved_clock(engine: Engine, dispatch: Dispatch) -> None:
    """All of its threads: claimed at one time and settled at another, rows would contradict themselves."""
    id_ = publish(engine, "t.note", end_at=LATER).id
    assert id_ is not None
    assert dispatch().is_empty

    with testing.at(LATER):
        report = dispatch()

    done = operations.get(engine, id_)
    assert report.processed == 1
    assert done.claimed_at == done.processed_at == done.settled_at == LATER
