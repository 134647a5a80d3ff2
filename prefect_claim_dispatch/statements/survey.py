"""Survey: what is there to do. The one statement of an idle tick."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Table,
    bindparam,
    case,
    func,
    literal_column,
    null,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.sql.selectable import CompoundSelect

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import FIRST_INSTANT, POSTGRESQL, SQLITE, Instant, clamped, now
from prefect_claim_dispatch.schema import LIVE, is_elsewhere, pauses_table, status_is
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.rescue import is_endless

# Written out, not bound: with an unknown LIMIT a generic plan may sort the backlog to find its first row.
ONE: Final = literal_column("1", Integer)
NONE: Final = literal_column("0", Integer)


@cache
def survey(table: Table, dialect: str = POSTGRESQL, *, has_pauses: bool = True) -> CompoundSelect[Any]:
    """One row for each (type, priority) that has pending actions, with its earliest `end_at`.

    One more for the oldest lease, and one for each pattern that is paused, if there is a table of pauses.

    Columns ``type, priority, end_at, now``; ``type`` is NULL on the row of the lease, where ``priority`` is 1 if any
    live action has an ordering key, else 0; ``priority`` alone is NULL on that of a pattern. A loose index scan: it
    jumps from one (type, priority) to the next in ``ix_*_due``, so its cost is the number of these pairs and not of the
    rows. Leases by ``ix_*_leases``, keys by ``ix_*_ordering``; the table of pauses is read, being small.
    """
    lane = _lanes(table, dialect)
    head = table.alias("head")
    lanes = select(head.c.type, head.c.priority, head.c.end_at, now().label("now")).join_from(
        lane, head, head.c.id == lane.c.id
    )
    lease = (
        select(clamped(table.c.lease_expires_at))
        .where(status_is(table.c.status, ActionStatus.CLAIMED))
        .order_by(table.c.lease_expires_at, table.c.id)
        .limit(ONE)
        .scalar_subquery()
    )
    # Rescue is called for a lease that is over; one that never would be is, too.
    lease = case((_endless(table), literal_column(f"'{FIRST_INSTANT}'", Instant())), else_=lease)
    is_ordered = case((_has_keys(table), ONE), else_=NONE).label("priority")
    oldest = select(null().label("type"), is_ordered, lease.label("end_at"), now().label("now"))
    parts = [lanes, oldest, _paused(table)] if has_pauses else [lanes, oldest]
    return union_all(*parts).execution_options(**{NAME: "survey"})


def _has_keys(table: Table) -> ColumnElement[bool]:
    # Ordered, as all that looks for the first here: an EXISTS alone may read the whole table for what is not there.
    keyed = table.alias("keyed")
    first = (
        select(keyed.c.id)
        .where(keyed.c.ordering_key.is_not(None), status_is(keyed.c.status, *LIVE))
        .order_by(keyed.c.ordering_key, keyed.c.id)
        .limit(ONE)
    )
    return first.scalar_subquery().is_not(None)


def _endless(table: Table) -> ColumnElement[bool]:
    claim = table.alias("endless")
    last = (
        select(claim.c.id)
        .where(status_is(claim.c.status, ActionStatus.CLAIMED), is_endless(claim), ~is_elsewhere(claim.c.claimed_by))
        .order_by(claim.c.lease_expires_at.desc(), claim.c.id.desc())
        .limit(ONE)
    )
    return last.scalar_subquery().is_not(None)


def _paused(table: Table) -> Select[Any]:
    pauses = pauses_table(table.name, table.schema)
    return select(pauses.c.type, null().label("priority"), null().label("end_at"), now().label("now"))


def _lanes(table: Table, dialect: str) -> Any:
    """The id of the first pending action of every (type, priority), found by skipping through the index."""
    first = table.alias("first")
    lane = select(_head(first).scalar_subquery().label("id")).cte("lane", recursive=True)
    here = table.alias("here")
    following = func.coalesce(*_next_heads(table, here)) if dialect == SQLITE else _next_head(table, here)
    return lane.union_all(select(following).select_from(lane.join(here, here.c.id == lane.c.id)))


def _next_head(table: Table, here: FromClause) -> Any:
    following = table.alias("following")
    beyond = tuple_(following.c.type, following.c.priority) > tuple_(here.c.type, here.c.priority)
    return _head(following).where(beyond).correlate(here).scalar_subquery()


def _next_heads(table: Table, here: FromClause) -> list[Any]:
    """The same in two questions: asked for both columns at once, SQLite steps over all actions of the type."""
    same, other = table.alias("same_type"), table.alias("following")
    next_priority = _head(same).where(same.c.type == here.c.type, same.c.priority > here.c.priority)
    next_type = _head(other).where(other.c.type > here.c.type)
    return [query.correlate(here).scalar_subquery() for query in (next_priority, next_type)]


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
