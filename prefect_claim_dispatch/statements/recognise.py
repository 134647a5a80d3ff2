"""Recognise: look at rows again whose settlement was sent and never answered."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Select, Table, select

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import parameter_rows, raw_json, unindexed
from prefect_claim_dispatch.statements import NAME


@cache
def recognise(table: Table, dialect: str) -> Select[Any]:
    """The bound ids whose rows are not under the bound claim any more, and what became of them. By the primary key."""
    rows = parameter_rows(dialect, "sent", id=BigInteger(), claim_count=BigInteger())
    c = table.c
    return (
        select(c.id, rows.c.claim_count, c.status, c.fail_count, raw_json(c.errors, dialect).label("errors"))
        .where(
            c.id == rows.c.id,
            (unindexed(c.status) != ActionStatus.CLAIMED.value) | (c.claim_count != rows.c.claim_count),
        )
        .execution_options(**{NAME: "recognise"})
    )
