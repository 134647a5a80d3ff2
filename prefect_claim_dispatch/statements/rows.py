"""What every statement of the loop shares: the columns that make an action, and the fence."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, FromClause, Table, and_

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import raw_instant, raw_json, unindexed
from prefect_claim_dispatch.schema import status_is


def action_columns(table: Table, dialect: str) -> list[ColumnElement[Any]]:
    """What an `Action` is made of; JSON and instants undecoded, so that each row is decoded on its own."""
    c = table.c
    return [
        c.id,
        c.type,
        raw_json(c.payload, dialect).label("payload"),
        raw_instant(c.end_at, dialect),
        raw_instant(c.created_at, dialect),
        c.claim_count,
        c.fail_count,
        c.priority,
        c.idempotency_key,
        c.ordering_key,
        raw_json(c.errors, dialect).label("errors"),
        c.claimed_by,
    ]


FENCE_TYPES = {"id": BigInteger(), "claim_count": BigInteger()}


def fence(table: Table, rows: FromClause) -> ColumnElement[bool]:
    """True only for rows whose claim is still the one that *rows* speaks of.

    The comparison with `claim_count` is what makes a zombie harmless: every later claim has a higher one. The status
    is hidden from the
    index of leases: where claims are believed to be few, the planner would walk through all of them for each row.
    """
    return and_(
        table.c.id == rows.c.id,
        table.c.claim_count == rows.c.claim_count,
        status_is(unindexed(table.c.status), ActionStatus.CLAIMED),
    )
