"""Ordering: what waits for ordering keys, looked at key by key and not action by action."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    DateTime,
    FromClause,
    Integer,
    Select,
    SmallInteger,
    String,
    Table,
    Text,
    and_,
    bindparam,
    exists,
    false,
    func,
    literal_column,
    or_,
    select,
    type_coerce,
)

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import SQLITE, now, unseen
from prefect_claim_dispatch.schema import LIVE, status_is
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.claim import holds, may_run, window

REMEMBERED_SHAPES: Final = 64
SAMPLE: Final = 64
"""So many rows of a lane tell whether most of those at its front wait for others."""

ONE: Final = literal_column("1", Integer)


@lru_cache(maxsize=REMEMBERED_SHAPES)
def depth(table: Table, dialect: str, lanes: int) -> Select[Any]:
    """One row, with two columns for each of *lanes*: ``is_deep_0``, whether more is due there than a claim looks at.

    And ``free_0``: how many of its first `SAMPLE` rows wait for nobody; NULL where it is not deep. Binds ``type_0,
    priority_0, ...`` and ``limit``, as the claim. By ``ix_*_due``, and ordering keys as the claim.
    """
    columns: list[ColumnElement[Any]] = []
    for position in range(lanes):
        lane = table.alias("candidate")
        first = _of_lane(lane, position).order_by(lane.c.end_at, lane.c.id)
        is_deep = exists(first.limit(ONE).offset(window(dialect)))
        sample = first.limit(literal_column(str(SAMPLE), Integer)).subquery("sample")
        free = select(func.count()).select_from(sample).where(may_run(table, sample), is_deep).scalar_subquery()
        columns += [is_deep.label(f"is_deep_{position}"), free.label(f"free_{position}")]
    return select(*columns).execution_options(**{NAME: "depth"})


@cache
def heads(table: Table, dialect: str, *, further: bool) -> Select[Any]:
    """One row for each of at most ``limit`` ordering keys, in their order; if *further*, those behind ``after_key``.

    ``ordering_key``; ``id, type, priority, end_at`` of its head, the action that comes first: the lowest id of those
    that are due or wait for their next attempt; ``may_run``, whether that is pending and due, and no other of the key
    runs; and ``now``. A loose scan of ``ix_*_ordering``, whose cost is the number of keys and not of actions.
    """
    key = _keys(table, further=further).subquery("key")
    limited = select(key.c.ordering_key).where(key.c.ordering_key.is_not(None)).limit(_limit(dialect)).subquery("keys")
    first = table.alias("first")
    head_id = (
        select(first.c.id)
        .where(
            first.c.ordering_key == limited.c.ordering_key,
            status_is(first.c.status, *LIVE),
            or_(first.c.end_at <= now(), holds(first)),
        )
        .order_by(first.c.ordering_key, first.c.id)
        .limit(ONE)
        .correlate(limited)
        .scalar_subquery()
    )
    found = select(limited.c.ordering_key, head_id.label("id")).subquery("found")
    head, running = table.alias("head"), table.alias("running")
    is_running = exists().where(
        running.c.ordering_key == found.c.ordering_key, status_is(running.c.status, ActionStatus.CLAIMED)
    )
    instant: Any = Text() if dialect == SQLITE else DateTime(timezone=True)
    may = and_(status_is(head.c.status, ActionStatus.PENDING), head.c.end_at <= now(), ~is_running)
    return (
        select(
            found.c.ordering_key,
            head.c.id,
            head.c.type,
            head.c.priority,
            type_coerce(head.c.end_at, instant).label("end_at"),
            func.coalesce(may, false()).label("may_run"),
            type_coerce(now(), instant).label("now"),
        )
        .select_from(found.outerjoin(head, head.c.id == found.c.id))
        .execution_options(**{NAME: "heads"})
    )


def _keys(table: Table, *, further: bool) -> Select[Any]:
    """The ordering keys of live actions, found by skipping through the index; the last row is NULL."""
    first, following = table.alias("first_of_key"), table.alias("following")
    start = _next_key(first)
    if further:
        start = start.where(first.c.ordering_key > bindparam("after_key", type_=String))
    key = select(start.scalar_subquery().label("ordering_key")).cte("key", recursive=True)
    step = _next_key(following).where(following.c.ordering_key > key.c.ordering_key).correlate(key)
    keys = key.union_all(select(step.scalar_subquery()).where(key.c.ordering_key.is_not(None)))
    return select(keys.c.ordering_key)


def _next_key(rows: FromClause) -> Select[Any]:
    c = rows.c
    return (
        select(c.ordering_key)
        .where(c.ordering_key.is_not(None), status_is(c.status, *LIVE))
        .order_by(c.ordering_key, c.id)
        .limit(ONE)
    )


def _of_lane(lane: FromClause, position: int) -> Select[Any]:
    c = lane.c
    return select(c.id, c.ordering_key).where(
        status_is(c.status, ActionStatus.PENDING),
        c.type == bindparam(f"type_{position}", type_=String),
        c.priority == bindparam(f"priority_{position}", type_=SmallInteger),
        c.end_at <= now(),
    )


def _limit(dialect: str) -> ColumnElement[int]:
    return unseen(bindparam("limit", type_=Integer), dialect)
