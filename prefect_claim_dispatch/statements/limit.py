"""Limit: how many actions of a type are claimed, counted by one claimer of that type at a time."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sqlalchemy import Integer, Select, Table, bindparam, cast, func, select, true
from sqlalchemy import Text as TextType

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.schema import status_is
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.catalogs import relation

LONGEST_IDLE: Final = "5s"
"""How long a claimer that was stopped in the middle keeps others from claiming that type: then the server ends it."""


@cache
def lock_type(table: Table) -> Select[Any]:
    """PostgreSQL: whether ``type`` of *table* is ours to count and claim until this transaction ends: ``is_ours``.

    An advisory lock, whose key is the table's oid and the type's hash. A statement of its own, before the count: what
    another claimer has committed is seen only by a statement that begins after its lock was given up.
    """
    key = cast(relation(table), Integer), func.hashtext(bindparam("type", type_=TextType))
    return select(
        func.pg_try_advisory_xact_lock(*key).label("is_ours"),
        # For this transaction: a process that is stopped now must not hold the lock for as long as it is.
        func.set_config("idle_in_transaction_session_timeout", LONGEST_IDLE, true()).label("at_most"),
    ).execution_options(**{NAME: "lock_type"})


@cache
def running(table: Table) -> Select[Any]:
    """One row for each type that has claimed actions: ``type, number``.

    Reads the claimed rows alone, by ``ix_*_leases``.
    """
    c = table.c
    return (
        select(c.type, func.count().label("number"))
        .where(status_is(c.status, ActionStatus.CLAIMED))
        .group_by(c.type)
        .execution_options(**{NAME: "running"})
    )
