"""Begin: write onto claimed rows which Prefect run works on them."""

from __future__ import annotations

from functools import cache

from sqlalchemy import Table, Text, UpdateBase, update

from prefect_claim_dispatch.dialects import now, parameter_rows
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.rows import FENCE_TYPES, fence


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
