"""Limits: how many more actions of a type may be claimed, where its processor has a `max_running`.

What counts is `claimed` in the table, whoever claimed it, a lease that is over included until it is rescued: its work
may still go on. Counting and claiming are one transaction, of which each type has one at a time: on SQLite because
there is one writer, on PostgreSQL by an advisory lock. Without it two that look at the same moment would both count
what was there before either.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Engine, Table

from prefect_claim_dispatch import databases
from prefect_claim_dispatch.dialects import POSTGRESQL
from prefect_claim_dispatch.statements.limit import lock_type
from prefect_claim_dispatch.statements.limit import running as running_statement


def running(engine: Engine | Connection, table: Table) -> Mapping[str, int]:
    """How many actions of each type are claimed; types that have none are not named. Costs what is claimed."""
    with databases.transaction(engine) as connection:
        return _running(connection, table)


def room(connection: Connection, table: Table, type_: str, max_running: int, *, is_joined: bool) -> int:
    """How many actions of *type_* may be claimed in this transaction; 0 also while another counts them.

    Holds until the transaction ends, and on PostgreSQL for no longer than it is idle for `LONGEST_IDLE`: then the
    server ends it, with its connection. In a transaction that *is_joined*, which may last and claims for a test, no
    lock is taken.
    """
    if connection.dialect.name == POSTGRESQL and not is_joined:
        is_ours = connection.execute(lock_type(table), {"type": type_}).scalar()
        if not is_ours:
            return 0
    return max(0, max_running - _running(connection, table).get(type_, 0))


def _running(connection: Connection, table: Table) -> dict[str, int]:
    return {row.type: row.number for row in connection.execute(running_statement(table))}
