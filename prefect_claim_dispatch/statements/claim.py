"""Claim: take due actions, highest priority first, then `end_at`, then `id`.

The statement names each lane, that is each (type, priority), which the survey found, as a branch of its own: there
the index gives due rows in the wanted order and nothing else. The branches of one priority are merged, and the
priorities come one after another, all of it lazily, so that about `limit` rows are read and locked, whatever else
waits in the table. Two things would spoil that, silently:

- Ordering by priority as well: the planner sees no such order in a branch, and reads `limit` rows of each to sort them.
- Locking in the branches: locked rows count as unordered, because a lock may wait for a change. So rows are locked
  above the merge, one
  by one as they come, those that somebody else has locked are passed over, and the limit counts what was locked.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    FromClause,
    Integer,
    Select,
    SmallInteger,
    String,
    Subquery,
    Table,
    Text,
    UpdateBase,
    and_,
    bindparam,
    cast,
    exists,
    null,
    or_,
    select,
    true,
    union_all,
    update,
)

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import SQLITE, Instant, is_one_of, now, now_plus, skip_locked, unindexed, unseen
from prefect_claim_dispatch.schema import LIVE, status_is
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.rows import action_columns

# A shape is how many lanes each priority has; few occur in one installation, but nothing bounds them.
REMEMBERED_SHAPES = 128


@lru_cache(maxsize=REMEMBERED_SHAPES)
def claim(table: Table, dialect: str, lanes: tuple[int, ...], *, bounded: bool = False) -> UpdateBase:
    """Claim at most `limit` due actions of the *lanes*; returns their rows in no particular order.

    *lanes* says how many lanes there are of each priority, highest first. Binds ``type_0, priority_0, ...`` in that
    order, ``limit``, ``lease_seconds``, ``claimed_by``, ``run_id``, and ``until`` if *bounded*. Fenced against plans
    that run the subquery again. By ``ix_*_due``; ordering keys by ``uq_*_running`` and ``ix_*_ordering``.
    """
    positions = iter(range(sum(lanes)))
    priorities = [
        _merged([_due(table, next(positions), bounded=bounded) for _ in range(number)], dialect) for number in lanes
    ]
    chosen = _locked(table, _in_turn(priorities), dialect, bounded=bounded).limit(_limit(dialect))
    return (
        update(table)
        .where(is_one_of(table.c.id, chosen, dialect))
        .values(
            status=ActionStatus.CLAIMED.value,
            claimed_at=now(),
            claimed_by=bindparam("claimed_by", type_=Text),
            claim_count=table.c.claim_count + 1,
            lease_expires_at=now_plus(bindparam("lease_seconds", type_=Float)),
            run_id=bindparam("run_id", type_=Text),
            updated_at=now(),
        )
        .returning(*action_columns(table, dialect))
        .execution_options(**{NAME: "claim"})
    )


def _locked(table: Table, due: Subquery, dialect: str, *, bounded: bool) -> Select[Any]:
    """The ids of *due*, in its order, each locked when it is asked for, and looked at again then.

    It may have been claimed a moment ago.
    """
    if dialect == SQLITE:
        return select(due.c.id)
    row = table.alias("row")
    is_pending = status_is(unindexed(row.c.status), ActionStatus.PENDING)
    query = select(row.c.id).where(row.c.id == due.c.id, is_pending, _is_due(row, bounded=bounded))
    locked = skip_locked(query, dialect).lateral("locked")
    return select(locked.c.id).select_from(due.join(locked, true()))


def _in_turn(priorities: list[Select[Any]]) -> Subquery:
    """The rows of the first priority, then those of the next; what is not asked for is not read."""
    if len(priorities) == 1:
        return priorities[0].subquery("due")
    return union_all(*(select(query.subquery(f"turn_{n}")) for n, query in enumerate(priorities))).subquery("due")


def _merged(lanes: list[Select[Any]], dialect: str) -> Select[Any]:
    """The rows of *lanes*, all of one priority, as one in order."""
    if dialect == SQLITE:  # which merges what is in order by itself, if it may order each part
        return _ordered(union_all(*lanes).subquery("merged"), _limit(dialect))
    if len(lanes) == 1:
        return _ordered(lanes[0].subquery("lane"), _endless())
    ordered = [_ordered(lane.subquery("lane"), _endless()).subquery(f"lane_{n}") for n, lane in enumerate(lanes)]
    return _ordered(union_all(*(select(lane) for lane in ordered)).subquery("merged"), _endless())


def _ordered(rows: Subquery, limit: ColumnElement[Any]) -> Select[Any]:
    return select(rows.c.id, rows.c.end_at).order_by(rows.c.end_at, rows.c.id).limit(limit)


def _due(table: Table, position: int, *, bounded: bool) -> Select[Any]:
    lane = table.alias("candidate")
    c = lane.c
    return select(c.id, c.end_at).where(
        status_is(c.status, ActionStatus.PENDING),
        c.type == bindparam(f"type_{position}", type_=String),
        c.priority == bindparam(f"priority_{position}", type_=SmallInteger),
        _is_due(lane, bounded=bounded),
        _may_run(table, lane),
    )


def _is_due(row: FromClause, *, bounded: bool) -> ColumnElement[bool]:
    is_due = row.c.end_at <= now()
    return and_(is_due, row.c.end_at <= bindparam("until", type_=Instant())) if bounded else is_due


def _may_run(table: Table, lane: FromClause) -> ColumnElement[bool]:
    """No other action of the same ordering key runs, or comes before: lower id, and due or tried already.

    Two questions, each of which its index answers with the first entry it meets; asked as one, all actions of the key
    would be looked at.
    """
    running, earlier = table.alias("running"), table.alias("earlier")
    is_running = exists().where(
        running.c.ordering_key == lane.c.ordering_key, status_is(running.c.status, ActionStatus.CLAIMED)
    )
    comes_before = exists().where(
        earlier.c.ordering_key == lane.c.ordering_key,
        earlier.c.id < lane.c.id,
        status_is(earlier.c.status, *LIVE),
        or_(earlier.c.end_at <= now(), earlier.c.claim_count > 0),
    )
    return or_(lane.c.ordering_key.is_(None), and_(~is_running, ~comes_before))


def _endless() -> ColumnElement[Any]:
    """No limit. As the planner can't know that, it takes what is in order already rather than sort all there is."""
    return select(cast(null(), Integer)).scalar_subquery()


def _limit(dialect: str) -> ColumnElement[int]:
    return unseen(bindparam("limit", type_=Integer), dialect)
