"""Renew: prolong the leases of claims that are still held."""

from __future__ import annotations

from functools import cache

from sqlalchemy import Float, Table, UpdateBase, bindparam, update

from prefect_claim_dispatch.dialects import now, now_plus, parameter_rows
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.rows import FENCE_TYPES, fence


@cache
def renew(table: Table, dialect: str) -> UpdateBase:
    """Set the lease of the rows whose fence holds to now plus ``lease_seconds``; returns their ids. By the primary key.

    A lease that is over stays over: whoever rescues it must find it, and its holder must learn that it came too late.
    """
    rows = parameter_rows(dialect, "held", **FENCE_TYPES)
    return (
        update(table)
        .where(fence(table, rows), table.c.lease_expires_at > now())
        .values(lease_expires_at=now_plus(bindparam("lease_seconds", type_=Float)), updated_at=now())
        .returning(table.c.id)
        .execution_options(**{NAME: "renew"})
    )
