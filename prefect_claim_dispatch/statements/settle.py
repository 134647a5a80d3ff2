"""Settle: write the verdicts of many attempts, each only where its fence holds."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Table,
    Text,
    UpdateBase,
    case,
    cast,
    func,
    null,
    update,
)

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import SQLITE, Instant, json_type, now, now_plus, parameter_rows
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.rows import fence

SETTLED_TYPES = {
    "id": BigInteger(),
    "claim_count": BigInteger(),
    "status": Text(),
    "fail_count": Integer(),
    "delay_seconds": Float(),
    "errors": Text(),
    "run_id": Text(),
}


@cache
def settle(table: Table, dialect: str) -> UpdateBase:
    """Write a verdict onto every row whose fence holds; returns their ids. By the primary key.

    One statement for all kinds of verdict: NULL for `delay_seconds`, `errors` or `run_id` leaves what is there. With an
    ordering key, `held_until` keeps the `end_at` that the verdict has come to: whoever moves the action later does not
    write it, and by that it is known (see `claim.holds`).
    """
    rows = parameter_rows(dialect, "settled", **SETTLED_TYPES)
    c, new = table.c, rows.c
    is_pending = new.status == ActionStatus.PENDING.value
    never = cast(null(), Instant())
    end_at = case((new.delay_seconds.is_(None), c.end_at), else_=now_plus(new.delay_seconds))
    return (
        update(table)
        .where(fence(table, rows))
        .values(
            status=new.status,
            fail_count=new.fail_count,
            end_at=end_at,
            held_until=case((c.ordering_key.is_(None), c.held_until), else_=end_at),
            errors=func.coalesce(_json(new.errors, dialect), c.errors),
            run_id=func.coalesce(new.run_id, c.run_id),
            claimed_at=case((is_pending, never), else_=c.claimed_at),
            claimed_by=case((is_pending, cast(null(), Text)), else_=c.claimed_by),
            lease_expires_at=never,
            processed_at=case((new.status == ActionStatus.PROCESSED.value, now()), else_=never),
            settled_at=case((is_pending, never), else_=now()),
            updated_at=now(),
        )
        .returning(c.id)
        .execution_options(**{NAME: "settle"})
    )


def _json(column: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    return column if dialect == SQLITE else cast(column, json_type())
