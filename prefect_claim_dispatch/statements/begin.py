"""Begin: write onto claimed rows which Prefect run works on them; where other processes do, only one of them may."""

from __future__ import annotations

from functools import cache

from sqlalchemy import Float, Table, Text, UpdateBase, bindparam, update

from prefect_claim_dispatch.dialects import now, now_plus, parameter_rows
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.rows import FENCE_TYPES, action_columns, fence


@cache
def begin(table: Table, dialect: str) -> UpdateBase:
    """Set `run_id` on the rows whose fence holds; returns their ids. By the primary key."""
    rows = parameter_rows(dialect, "begun", **FENCE_TYPES, run_id=Text())
    return (
        update(table)
        .where(fence(table, rows))
        .values(run_id=rows.c.run_id, updated_at=now())
        .returning(table.c.id)
        .execution_options(**{NAME: "begin"})
    )


@cache
def begin_once(table: Table, dialect: str) -> UpdateBase:
    """Set `run_id` on the rows whose fence holds and that may begin and have not; returns them, as a claim does.

    Their leases begin anew. A row may begin while `run_id` is `claimed_by`: of two that ask, one gets it, and NULL for
    `run_id` takes the leave back. By the primary key.
    """
    rows = parameter_rows(dialect, "entered", **FENCE_TYPES, run_id=Text())
    c = table.c
    return (
        update(table)
        .where(fence(table, rows), c.run_id == c.claimed_by)
        .values(
            run_id=rows.c.run_id,
            lease_expires_at=now_plus(bindparam("lease_seconds", type_=Float)),
            updated_at=now(),
        )
        .returning(*action_columns(table, dialect))
        .execution_options(**{NAME: "begin_once"})
    )
