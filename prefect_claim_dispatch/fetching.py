"""Fetching: claimed rows by their references, in another process than the one that claimed them.

Each call is one short transaction, committed before it returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, Table

from prefect_claim_dispatch import claiming, databases
from prefect_claim_dispatch.actions import Lease, elapsed_clock
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dialects import bind_rows
from prefect_claim_dispatch.errors import DatabaseError
from prefect_claim_dispatch.fences import Key
from prefect_claim_dispatch.statements.begin import begin_once as begin_once_statement


@dataclass(slots=True, kw_only=True, eq=False)
class FollowedLease(Lease):
    """A lease that another process renews: the table is asked when it would be over by what is known here."""

    engine: Engine
    table: Table
    key: Key
    length: timedelta

    @property
    def holds(self) -> bool:
        """True while no other claimant can have taken the action; False, too, when the table can't be asked."""
        if self.lost or elapsed_clock() < self.expires:
            return not self.lost
        asked_at = elapsed_clock()
        try:
            self.lost = not claiming.renew(self.engine, self.table, [self.key], lease=self.length)
        except DatabaseError:
            return False
        self.expires = asked_at + self.length.total_seconds()
        return not self.lost


def begin_once(engine: Engine, table: Table, keys: Sequence[Key], run_id: str, *, lease: timedelta) -> list[RawAction]:
    """The rows of those of *keys* that the run *run_id* may begin now, in the order of *keys*; no other run may after.

    Missing are those whose claim is over, those that another has begun under the same claim, and those whose leave to
    begin was taken back.
    """
    expires = elapsed_clock() + lease.total_seconds()
    rows = {row[0]: row for row in _entered(engine, table, keys, run_id, lease)}
    facts: dict[str, Any] = {"engine": engine, "table": table, "length": lease}
    return [
        RawAction(rows[key[0]], FollowedLease(expires=expires, key=key, **facts), table)
        for key in keys
        if key[0] in rows
    ]


def take_back(engine: Engine, table: Table, keys: Sequence[Key], *, lease: timedelta) -> set[Key]:
    """Those of *keys* that nobody has begun, and that nobody may begin from now on; their claims still hold."""
    begun = {row[0] for row in _entered(engine, table, keys, None, lease)}
    return {key for key in keys if key[0] in begun}


def _entered(engine: Engine, table: Table, keys: Sequence[Key], run_id: str | None, lease: timedelta) -> Sequence[Any]:
    if not keys:
        return []
    dialect = engine.dialect.name
    ids, counts = (list(column) for column in zip(*sorted(keys), strict=True))
    columns = {"id": ids, "claim_count": counts, "run_id": [run_id] * len(ids)}
    parameters = bind_rows(dialect, "entered", columns) | {"lease_seconds": lease.total_seconds()}
    statement = begin_once_statement(table, dialect)
    return databases.repeated(engine, lambda connection: connection.execute(statement, parameters).all())
