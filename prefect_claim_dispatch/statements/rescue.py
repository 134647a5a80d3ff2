"""Rescue: find the claims whose lease expired. Their verdicts are written by the settle statement."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Integer, Select, Table, Text, bindparam, literal_column, or_, select

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import LAST_INSTANT, Instant, now, skip_locked, unseen
from prefect_claim_dispatch.schema import is_elsewhere, status_is
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.rows import action_columns


@cache
def expired(table: Table, dialect: str) -> Select[Any]:
    """At most `limit` claims whose lease is over by the database's clock, locked, longest over first.

    By ``ix_*_leases``. Not those whose work a deployment's run does: it may be alive for hours after its lease, and is
    asked for its state instead.
    """
    return _claims(table, dialect, table.c.lease_expires_at < now()).execution_options(**{NAME: "rescue"})


@cache
def endless(table: Table, dialect: str) -> Select[Any]:
    """As `expired`, of leases that no claim flow has written and that would never be over: 'infinity'."""
    return _claims(table, dialect, is_endless(table)).execution_options(**{NAME: "rescue_endless"})


def is_endless(table: FromClause) -> ColumnElement[bool]:
    """Whether the lease ends after the last day that there is. By ``ix_*_leases``."""
    return table.c.lease_expires_at > literal_column(f"'{LAST_INSTANT}'", Instant())


def _claims(table: Table, dialect: str, is_over: ColumnElement[bool]) -> Select[Any]:
    query = (
        select(*action_columns(table, dialect), table.c.run_id)
        .where(status_is(table.c.status, ActionStatus.CLAIMED), is_over)
        .where(~is_elsewhere(table.c.claimed_by))
        .order_by(table.c.lease_expires_at, table.c.id)
        .limit(unseen(bindparam("limit", type_=Integer), dialect))
    )
    return skip_locked(query, dialect)


@cache
def unheard(table: Table, dialect: str) -> Select[Any]:
    """The claims of the bound holder, from the bound instant on, whose work no run is known to do; locked.

    By ``ix_*_leases``, through all that is claimed now. `run_id` is the holder until the run that does the work has
    written itself down.
    """
    c = table.c
    query = (
        select(*action_columns(table, dialect))
        .where(
            status_is(c.status, ActionStatus.CLAIMED),
            c.claimed_by == bindparam("claimed_by", type_=Text),
            c.claimed_at >= bindparam("since", type_=Instant()),
            or_(c.run_id.is_(None), c.run_id == c.claimed_by),
        )
        .order_by(c.lease_expires_at, c.id)
    )
    return skip_locked(query, dialect).execution_options(**{NAME: "unheard"})
