"""Survey: what is there to do. The one statement of an idle tick."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sqlalchemy import (
    FromClause,
    Integer,
    Select,
    Table,
    bindparam,
    func,
    literal_column,
    null,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.sql.selectable import CompoundSelect

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import now
from prefect_claim_dispatch.schema import pauses_table, status_is
from prefect_claim_dispatch.statements import NAME

# Written out, not bound: with an unknown LIMIT a generic plan may sort the backlog to find its first row.
ONE: Final = literal_column("1", Integer)


@cache
def survey(table: Table, *, has_pauses: bool = True) -> CompoundSelect[Any]:
    """One row for each (type, priority) that has pending actions, with its earliest `end_at`.

    One more for the oldest lease, and one for each pattern that is paused, if there is a table of pauses.

    Columns ``type, priority, end_at, now``; ``type`` is NULL on the row of the lease, and only ``priority`` on that of
    a pattern. A loose index scan: it jumps from one (type, priority) to the next in ``ix_*_due``, so its cost is the
    number of these pairs and not of the rows. Leases by ``ix_*_leases``; the table of pauses is read, being small.
    """
    lane = _lanes(table)
    head = table.alias("head")
    lanes = select(head.c.type, head.c.priority, head.c.end_at, now().label("now")).join_from(
        lane, head, head.c.id == lane.c.id
    )
    lease = (
        select(table.c.lease_expires_at)
        .where(status_is(table.c.status, ActionStatus.CLAIMED))
        .order_by(table.c.lease_expires_at, table.c.id)
        .limit(ONE)
        .scalar_subquery()
    )
    oldest = select(null().label("type"), null().label("priority"), lease.label("end_at"), now().label("now"))
    parts = [lanes, oldest, _paused(table)] if has_pauses else [lanes, oldest]
    return union_all(*parts).execution_options(**{NAME: "survey"})


def _paused(table: Table) -> Select[Any]:
    pauses = pauses_table(table.name, table.schema)
    return select(pauses.c.type, null().label("priority"), null().label("end_at"), now().label("now"))


def _lanes(table: Table) -> Any:
    """The id of the first pending action of every (type, priority), found by skipping through the index."""
    first = table.alias("first")
    lane = select(_head(first).scalar_subquery().label("id")).cte("lane", recursive=True)
    here, following = table.alias("here"), table.alias("following")
    beyond = tuple_(following.c.type, following.c.priority) > tuple_(here.c.type, here.c.priority)
    step = select(_head(following).where(beyond).correlate(here).scalar_subquery()).select_from(
        lane.join(here, here.c.id == lane.c.id)
    )
    return lane.union_all(step)


def _head(table: FromClause) -> Select[Any]:
    c = table.c
    return (
        select(c.id)
        .where(status_is(c.status, ActionStatus.PENDING))
        .order_by(c.type, c.priority, c.end_at, c.id)
        .limit(ONE)
    )


@cache
def count_due(table: Table, *, bounded: bool = False) -> Select[Any]:
    """How many actions of one (type, priority) are due by now; binds ``type``, ``priority``. By ``ix_*_due``.

    If *bounded*, no more than ``limit`` are looked at.
    """
    counted = select(func.count() if not bounded else table.c.id).select_from(table)
    due = counted.where(
        status_is(table.c.status, ActionStatus.PENDING),
        table.c.type == bindparam("type"),
        table.c.priority == bindparam("priority"),
        table.c.end_at <= now(),
    )
    if bounded:  # in the index's order, or a planner that believes in many might read the table for them
        first = due.order_by(table.c.end_at, table.c.id).limit(bindparam("limit", type_=Integer))
        due = select(func.count()).select_from(first.subquery("due"))
    return due.execution_options(**{NAME: "count_due"})
