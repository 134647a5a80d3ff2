"""Bury: make rows dead of which the database refuses whatever else is to be written."""

from __future__ import annotations

from functools import cache

from sqlalchemy import Table, Text, UpdateBase, cast, null, update

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import SQLITE, Instant, json_type, now, parameter_rows, unindexed
from prefect_claim_dispatch.schema import LIVE, status_is
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.rows import FENCE_TYPES


@cache
def bury(table: Table, dialect: str) -> UpdateBase:
    """Make live rows that stand at the bound ``claim_count`` dead, with the bound errors; returns their ids.

    Changes no more columns than it must. By the primary key.
    """
    rows = parameter_rows(dialect, "buried", **FENCE_TYPES, errors=Text())
    c = table.c
    return (
        update(table)
        .where(c.id == rows.c.id, c.claim_count == rows.c.claim_count, status_is(unindexed(c.status), *LIVE))
        .values(
            status=ActionStatus.DEAD.value,
            errors=rows.c.errors if dialect == SQLITE else cast(rows.c.errors, json_type()),
            lease_expires_at=cast(null(), Instant()),
            settled_at=now(),
            updated_at=now(),
        )
        .returning(c.id)
        .execution_options(**{NAME: "bury"})
    )
