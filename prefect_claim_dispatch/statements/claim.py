"""Claim: take due actions, highest priority first, then `end_at`, then `id`.

The statement names each lane, that is each (type, priority), which the survey found, as a branch of its own: there
the index gives due rows in the wanted order and nothing else. The branches of one priority are merged, and the
priorities come one after another, all of it lazily, so that about `limit` rows are read and locked, whatever else
waits in the table. Two things would spoil that, silently:

- Ordering by priority as well: the planner sees no such order in a branch, and reads `limit` rows of each to sort them.
- Locking in the branches: locked rows count as unordered, because a lock may wait for a change. So rows are locked
  above the merge, one by one as they come, those that somebody else has locked are passed over, and the limit counts
  what was locked.

What waits for an ordering key is stepped over, at the price of two probes. So that a hundred thousand actions of one
key cost no more than a few hundred, a branch looks at its first rows only (`WINDOW`). `claim_behind` finds what is
beyond: actions without a key by the index, and of each key its head, which `ordering.heads` has found.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
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
    case,
    cast,
    exists,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.types import TypeEngine

from prefect_claim_dispatch.actions import MAX_CLAIM_COUNT, ActionStatus
from prefect_claim_dispatch.dialects import (
    SQLITE,
    Instant,
    is_one_of,
    now,
    now_plus,
    parameter_rows,
    skip_locked,
    unindexed,
    unseen,
)
from prefect_claim_dispatch.schema import LIVE, status_is
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.rows import action_columns

# A shape is how many lanes each priority has; few occur in one installation, but nothing bounds them.
REMEMBERED_SHAPES = 128
NONE: Final = literal_column("0", Integer)


WINDOW, FOR_EACH = 500, 2
"""How many due rows of a lane a claim looks at: so many, and twice what it may take."""

HEAD_TYPES: Final[dict[str, TypeEngine[Any]]] = {"id": BigInteger(), "turn": Integer()}


@lru_cache(maxsize=REMEMBERED_SHAPES)
def claim(
    table: Table, dialect: str, lanes: tuple[int, ...], *, bounded: bool = False, windowed: bool = True
) -> UpdateBase:
    """Claim at most `limit` due actions of the *lanes*; returns their rows in no particular order.

    *lanes* says how many lanes there are of each priority, highest first. Binds ``type_0, priority_0, ...`` in that
    order, ``limit``, ``lease_seconds``, ``claimed_by``, ``run_id``, and ``until`` if *bounded*. Fenced against plans
    that run the subquery again. By ``ix_*_due``; ordering keys by ``uq_*_running`` and ``ix_*_ordering``.

    *windowed*: of each lane no more than the first rows are looked at, see `depth`. Without, all of them are, which
    costs what waits for ordering keys.
    """
    positions = iter(range(sum(lanes)))
    lane = _windowed if windowed else _due
    priorities = [
        _merged([lane(table, next(positions), dialect, bounded=bounded) for _ in range(number)], dialect)
        for number in lanes
    ]
    return _claimed(table, dialect, priorities, bounded=bounded).execution_options(**{NAME: "claim"})


@lru_cache(maxsize=REMEMBERED_SHAPES)
def claim_behind(table: Table, dialect: str, lanes: tuple[int, ...], *, bounded: bool = False) -> UpdateBase:
    """As `claim`, however much waits for ordering keys: without a key from the *lanes*, with one from what was found.

    Binds ``head_*`` besides, ids of heads and which of the *lanes*' priorities each belongs to, 0 for the first; and
    for each lane ``from_at_0, from_id_0, ...``, before which there is nothing without a key. By ``ix_*_due`` and the
    primary key.
    """
    positions = iter(range(sum(lanes)))
    heads = parameter_rows(dialect, "head", **HEAD_TYPES)
    priorities = [
        _merged(
            [
                *(_keyless(table, next(positions), dialect, bounded=bounded) for _ in range(number)),
                _found(table, heads, turn, bounded=bounded),
            ],
            dialect,
        )
        for turn, number in enumerate(lanes)
    ]
    return _claimed(table, dialect, priorities, bounded=bounded).execution_options(**{NAME: "claim_behind"})


@lru_cache(maxsize=REMEMBERED_SHAPES)
def candidates(table: Table, dialect: str, lanes: tuple[int, ...], *, bounded: bool = False) -> Select[Any]:
    """The rows that `claim`, not windowed, would take, as they are; not locked. Binds the same."""
    positions = iter(range(sum(lanes)))
    priorities = [
        _merged([_due(table, next(positions), dialect, bounded=bounded) for _ in range(number)], dialect)
        for number in lanes
    ]
    chosen = select(_in_turn(priorities).c.id).limit(_limit(dialect))
    query = select(*action_columns(table, dialect)).where(is_one_of(table.c.id, chosen, dialect))
    return query.order_by(table.c.priority.desc(), table.c.end_at, table.c.id).execution_options(**{NAME: "candidates"})


@lru_cache(maxsize=2)
def claim_one(table: Table, dialect: str, *, bounded: bool = False) -> UpdateBase:
    """As `claim`, of the row ``wanted_id`` if it may still be claimed. By the primary key."""
    is_pending = status_is(unindexed(table.c.status), ActionStatus.PENDING)
    return (
        update(table)
        .where(table.c.id == bindparam("wanted_id", type_=BigInteger), is_pending, _is_due(table, bounded=bounded))
        .where(may_run(table, table))
        .values(_changes(table))
        .returning(*action_columns(table, dialect))
        .execution_options(**{NAME: "claim_one"})
    )


def _claimed(table: Table, dialect: str, priorities: list[Select[Any]], *, bounded: bool) -> UpdateBase:
    chosen = _locked(table, _in_turn(priorities), dialect, bounded=bounded).limit(_limit(dialect))
    return (
        update(table)
        .where(is_one_of(table.c.id, chosen, dialect))
        .values(_changes(table))
        .returning(*action_columns(table, dialect))
    )


def _changes(table: Table) -> dict[str, Any]:
    return {
        "status": ActionStatus.CLAIMED.value,
        "claimed_at": now(),
        "claimed_by": bindparam("claimed_by", type_=Text),
        "claim_count": _counted(table),
        "lease_expires_at": now_plus(bindparam("lease_seconds", type_=Float)),
        "run_id": bindparam("run_id", type_=Text),
        "updated_at": now(),
    }


def _counted(table: Table) -> ColumnElement[int]:
    """One more, up to what the column holds: past it, every claim that meets the row would be refused as a whole."""
    most = literal_column(str(MAX_CLAIM_COUNT), BigInteger)
    return case((table.c.claim_count < most, table.c.claim_count + 1), else_=most)


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


def _due(table: Table, position: int, _dialect: str, *, bounded: bool) -> Select[Any]:
    lane = table.alias("candidate")
    return _of_lane(lane, position, bounded=bounded).where(may_run(table, lane))


def _windowed(table: Table, position: int, dialect: str, *, bounded: bool) -> Select[Any]:
    """The same, of the lane's first rows."""
    lane = table.alias("candidate")
    first = (
        _of_lane(lane, position, bounded=bounded)
        .add_columns(lane.c.ordering_key)
        .order_by(lane.c.end_at, lane.c.id)
        .limit(window(dialect))
        .subquery("first")
    )
    return select(first.c.id, first.c.end_at).where(may_run(table, first))


def _keyless(table: Table, position: int, dialect: str, *, bounded: bool) -> Select[Any]:
    lane = table.alias("candidate")
    instant: Any = Text() if dialect == SQLITE else DateTime(timezone=True)  # as a row before has it, see `raw_instant`
    start = tuple_(bindparam(f"from_at_{position}", type_=instant), bindparam(f"from_id_{position}", type_=BigInteger))
    return _of_lane(lane, position, bounded=bounded).where(
        tuple_(lane.c.end_at, lane.c.id) >= start, lane.c.ordering_key.is_(None)
    )


def _found(table: Table, heads: FromClause, turn: int, *, bounded: bool) -> Select[Any]:
    """The heads that belong to this turn, each looked at again: it may have been claimed a moment ago."""
    row = table.alias("candidate")
    return select(row.c.id, row.c.end_at).where(
        row.c.id == heads.c.id,
        heads.c.turn == literal_column(str(turn), Integer),
        status_is(unindexed(row.c.status), ActionStatus.PENDING),
        _is_due(row, bounded=bounded),
        may_run(table, row),
    )


def _of_lane(lane: FromClause, position: int, *, bounded: bool) -> Select[Any]:
    c = lane.c
    return select(c.id, c.end_at).where(
        status_is(c.status, ActionStatus.PENDING),
        c.type == bindparam(f"type_{position}", type_=String),
        c.priority == bindparam(f"priority_{position}", type_=SmallInteger),
        _is_due(lane, bounded=bounded),
    )


def _is_due(row: FromClause, *, bounded: bool) -> ColumnElement[bool]:
    is_due = row.c.end_at <= now()
    return and_(is_due, row.c.end_at <= bindparam("until", type_=Instant())) if bounded else is_due


def may_run(table: Table, lane: FromClause) -> ColumnElement[bool]:
    """No other action of the same ordering key runs, or comes before: lower id, and due or waiting to be tried again.

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
        or_(earlier.c.end_at <= now(), holds(earlier)),
    )
    return or_(lane.c.ordering_key.is_(None), and_(~is_running, ~comes_before))


def holds(row: FromClause) -> ColumnElement[bool]:
    """It was tried, and waits for its next attempt: nobody has moved it since it was settled.

    Where `held_until` is not known, code of before that column has settled it; then what was tried holds.
    """
    c = row.c
    return and_(c.claim_count > NONE, or_(c.held_until.is_(None), c.held_until == c.end_at))


def window(dialect: str) -> ColumnElement[int]:
    """How many rows of a lane `claim` looks at."""
    return unseen(
        bindparam("limit", type_=Integer) * literal_column(str(FOR_EACH)) + literal_column(str(WINDOW)), dialect
    )


def _endless() -> ColumnElement[Any]:
    """No limit. As the planner can't know that, it takes what is in order already rather than sort all there is."""
    return select(cast(null(), Integer)).scalar_subquery()


def _limit(dialect: str) -> ColumnElement[int]:
    return unseen(bindparam("limit", type_=Integer), dialect)
