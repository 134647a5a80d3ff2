"""The action table as tests handle it: rows written and read directly, leases and instants moved by SQL, statements counted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Float, Row, bindparam, event, insert, literal, select, update

from prefect_claim_dispatch import claiming
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dialects import now, now_plus
from prefect_claim_dispatch.outcomes import Outcome
from prefect_claim_dispatch.policies import RetryPolicy, Settlement, settlement_for
from prefect_claim_dispatch.schema import actions_table
from prefect_claim_dispatch.statements import NAME

TABLE = actions_table()
LEASE = timedelta(minutes=5)
TERMINAL = ("processed", "dead", "cancelled")


def add(engine: Engine, type_: str = "a", *, due_in: float = -60.0, **values: Any) -> int:
    """Insert one pending action that is due *due_in* seconds from now (negative: ago), by the database's clock; returns its id."""
    (id_,) = add_many(engine, [{"type": type_, "due_in": due_in, **values}])
    return id_


def add_many(engine: Engine, rows: Sequence[dict[str, Any]]) -> list[int]:
    """Insert actions in one transaction; each row may have ``due_in`` beside its columns. Returns the ids."""
    with engine.begin() as connection:
        return [
            connection.execute(
                insert(TABLE)
                .values({**row, "end_at": seconds_from_now(row.get("due_in", -60.0))} if "end_at" not in row else row)
                .returning(TABLE.c.id)
            ).scalar_one()
            for row in [{"type": "a", **row} for row in rows]
            if [row.setdefault("due_in", -60.0)] and [due := row.pop("due_in")] and [row.setdefault("end_at", seconds_from_now(due))]
        ]


def seconds_from_now(seconds: float) -> Any:
    """An instant on the database's clock, as SQL."""
    return now_plus(literal(seconds, Float))


def row(engine: Engine, id_: int) -> Row[Any]:
    """All columns of one action, and the database's ``now``."""
    with engine.connect() as connection:
        return connection.execute(select(TABLE, now().label("now")).where(TABLE.c.id == id_)).one()
