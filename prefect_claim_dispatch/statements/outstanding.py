"""Outstanding: claims whose work a deployment's run does. Their verdicts are written by the settle statement."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Float,
    Integer,
    Select,
    Table,
    Text,
    UpdateBase,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import (
    SQLITE,
    clamped,
    now,
    now_plus,
    parameter_rows,
    raw_instant,
    raw_json,
    unseen,
)
from prefect_claim_dispatch.schema import ELSEWHERE, SERVER_LENGTH, SERVER_MARK, is_elsewhere, status_is
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.rows import FENCE_TYPES, action_columns, fence


@cache
def outstanding(table: Table, dialect: str, *, further: bool) -> Select[Any]:
    """At most `limit` claims of the deployment lane, the lease that ends first at the head; no payload.

    *further*: behind the lease and the id that are bound as ``after_at`` and ``after_id``. By ``ix_*_leases``; claims
    of other lanes are stepped over.
    """
    c = table.c
    query = (
        select(
            c.id,
            c.type,
            c.claim_count,
            c.fail_count,
            raw_json(c.errors, dialect).label("errors"),
            c.claimed_by,
            c.run_id,
            clamped(c.claimed_at).label("claimed_at"),
            clamped(c.lease_expires_at).label("lease_expires_at"),
            # As it stands there: another form of the same instant would sort before it.
            raw_instant(_readable(c.lease_expires_at, dialect), dialect).label("after_at"),
            now().label("now"),
        )
        .where(status_is(c.status, ActionStatus.CLAIMED), is_elsewhere(c.claimed_by))
        .order_by(c.lease_expires_at, c.id)
        .limit(unseen(bindparam("limit", type_=Integer), dialect))
        .execution_options(**{NAME: "outstanding"})
    )
    if not further:
        return query
    instant: Any = Text() if dialect == SQLITE else DateTime(timezone=True)
    behind = tuple_(bindparam("after_at", type_=instant), bindparam("after_id", type_=BigInteger))
    return query.where(tuple_(c.lease_expires_at, c.id) > behind)


def _readable(instant: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    return instant if dialect == SQLITE else clamped(instant)


@cache
def held(table: Table, dialect: str) -> Select[Any]:
    """The rows of the bound claims whose fence holds, as a claim returns them. By the primary key."""
    rows = parameter_rows(dialect, "wanted", **FENCE_TYPES)
    return select(*action_columns(table, dialect)).where(fence(table, rows)).execution_options(**{NAME: "held"})


@cache
def follow(table: Table, dialect: str) -> UpdateBase:
    """Set run and lease of the rows whose fence holds; returns their ids. By the primary key.

    Also of a lease that is over: no other claim was made of it, as rescue leaves these rows alone. NULL for `run_id`
    leaves what is there.
    """
    rows = parameter_rows(dialect, "followed", **FENCE_TYPES, run_id=Text(), lease_seconds=Float())
    c = table.c
    return (
        update(table)
        .where(fence(table, rows))
        .values(
            run_id=func.coalesce(rows.c.run_id, c.run_id),
            lease_expires_at=now_plus(rows.c.lease_seconds),
            updated_at=now(),
        )
        .returning(c.id)
        .execution_options(**{NAME: "follow"})
    )


@cache
def take(table: Table, dialect: str, *, again: bool = False) -> UpdateBase:
    """Make the bound run the holder of the bound claim, and return its row; none where it is not that run's any more.

    By the primary key. A copy of the run, started by hand with the same reference, is another run. Unless *again*, none
    either where the run holds it already and its lease lives: another process of the same run may be at work. Which
    Prefect server has it stays with the row.
    """
    rows = parameter_rows(dialect, "taken", **FENCE_TYPES, run_id=Text(), lease_seconds=Float())
    c, mine = table.c, rows.c.run_id
    holder = literal_column(f"'{ELSEWHERE}'", Text).concat(mine).concat(_server(c.claimed_by))
    statement = (
        update(table)
        .where(fence(table, rows), or_(c.run_id.is_(None), mine.is_(None), c.run_id == mine))
        .values(
            run_id=func.coalesce(mine, c.run_id),
            claimed_by=case((mine.is_(None), c.claimed_by), else_=holder),
            lease_expires_at=now_plus(rows.c.lease_seconds),
            updated_at=now(),
        )
        .returning(*action_columns(table, dialect))
        .execution_options(**{NAME: "take"})
    )
    if again:
        return statement
    is_held = func.substr(c.claimed_by, 1, func.length(holder)) == holder
    return statement.where(or_(mine.is_(None), ~is_held, c.lease_expires_at < now()))


def _server(claimed_by: ColumnElement[Any]) -> ColumnElement[Any]:
    """What `claimed_by` ends with where it names a server, its mark included; nothing where it names none."""
    first = func.length(claimed_by) - literal_column(str(SERVER_LENGTH))
    is_named = func.substr(claimed_by, first, literal_column("1")) == literal_column(f"'{SERVER_MARK}'", Text)
    return case((is_named, func.substr(claimed_by, first)), else_=literal_column("''", Text))


@cache
def identify() -> Select[Any]:
    """What tells this PostgreSQL's database from every other: number of the cluster, name, schema that is looked in."""
    cluster = func.pg_control_system().table_valued("system_identifier", name="cluster")
    columns = (cluster.c.system_identifier, func.current_database(), func.current_schema())
    return select(*columns).execution_options(**{NAME: "identify"})
