"""Operate: look at actions, and change those that an operator names. None of these runs in the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Select,
    Table,
    Text,
    Update,
    UpdateBase,
    and_,
    case,
    cast,
    delete,
    func,
    literal_column,
    null,
    select,
    type_coerce,
    update,
)

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import (
    SQLITE,
    Instant,
    bind_rows,
    is_one_of,
    json_type,
    now,
    now_plus,
    parameter_rows,
    raw_json,
    skip_locked,
)
from prefect_claim_dispatch.moments import Moment
from prefect_claim_dispatch.schema import status_is
from prefect_claim_dispatch.statements import NAME

TERMINAL: Final = tuple(status for status in ActionStatus if status.is_terminal)
CANCELLED_TYPES: Final = {"id": BigInteger(), "claim_count": BigInteger(), "errors": Text()}

# What Python can hold in every time zone. PostgreSQL stores 'infinity' and years B.C.; psycopg can't read them.
FIRST_INSTANT: Final = datetime(1, 1, 3, tzinfo=UTC)
LAST_INSTANT: Final = datetime(9999, 12, 30, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which actions are meant; None leaves it open. Ages are of `created_at`, by the database's clock."""

    type: str | None = None
    statuses: tuple[ActionStatus, ...] = ()
    older_than: timedelta | None = None
    ids: tuple[int, ...] | None = None
    idempotency_key: str | None = None

    def parameters(self, dialect: str) -> dict[str, Any]:
        """What to bind beside the statement."""
        return {} if self.ids is None else bind_rows(dialect, "wanted", {"id": list(self.ids)})


def matches(table: Table, dialect: str, filters: Filters) -> ColumnElement[bool]:
    """True for the rows that *filters* speak of.

    By the primary key, ``uq_*_key``, ``ix_*_due`` or ``ix_*_settled``, whatever fits.
    """
    c = table.c
    conditions: list[ColumnElement[bool]] = []
    if filters.ids is not None:
        wanted = parameter_rows(dialect, "wanted", id=BigInteger())
        conditions.append(c.id.in_(select(wanted.c.id)))
    if filters.type is not None:
        conditions.append(c.type == filters.type)
    if filters.idempotency_key is not None:
        conditions.append(c.idempotency_key == filters.idempotency_key)
    if filters.statuses:
        conditions.append(status_is(c.status, *filters.statuses))
        if set(filters.statuses) <= set(TERMINAL):
            conditions.append(c.settled_at.is_not(None))  # lets the planner see that ix_*_settled serves
    if filters.older_than is not None:
        conditions.append(c.created_at < now_plus(-filters.older_than.total_seconds()))
    return and_(*conditions) if conditions else literal_column("1") == literal_column("1")


def find(table: Table, dialect: str, filters: Filters, limit: int | None) -> Select[Any]:
    """Whole rows, newest first; JSON undecoded, and what no Python instant can hold as NULL."""
    return (
        select(*_all_columns(table, dialect))
        .where(matches(table, dialect, filters))
        .order_by(table.c.id.desc())
        .limit(limit)
        .execution_options(**{NAME: "find"})
    )


def find_ids(table: Table, dialect: str, filters: Filters) -> Select[Any]:
    """The ids alone, in order."""
    return (
        select(table.c.id)
        .where(matches(table, dialect, filters))
        .order_by(table.c.id)
        .execution_options(**{NAME: "find_ids"})
    )


def count(table: Table, dialect: str) -> Select[Any]:
    """One row for each (type, status): its number, how many are due, since when, how many leases are over.

    Reads the whole table.
    """
    c = table.c
    is_due = and_(status_is(c.status, ActionStatus.PENDING), c.end_at <= now())
    is_expired = and_(status_is(c.status, ActionStatus.CLAIMED), c.lease_expires_at < now())
    return (
        select(
            c.type,
            c.status,
            func.count().label("number"),
            func.count().filter(is_due).label("due"),
            readable(func.min(c.end_at).filter(is_due), dialect).label("oldest_due_at"),
            func.count().filter(is_expired).label("expired"),
            now().label("now"),
        )
        .group_by(c.type, c.status)
        .order_by(c.type, c.status)
        .execution_options(**{NAME: "count"})
    )


def cancellable(table: Table, dialect: str, filters: Filters) -> Select[Any]:
    """Pending rows to cancel, locked in order of their ids, with the errors that they have had."""
    c = table.c
    return (
        select(c.id, c.claim_count, c.fail_count, raw_json(c.errors, dialect).label("errors"))
        .where(status_is(c.status, ActionStatus.PENDING), matches(table, dialect, filters))
        .order_by(c.id)
        .with_for_update()
        .execution_options(**{NAME: "cancellable"})
    )


def cancel(table: Table, dialect: str) -> Update:
    """Make the bound rows cancelled that are still pending after as many claims; returns their ids. By the key."""
    rows = parameter_rows(dialect, "cancelled", **CANCELLED_TYPES)
    c = table.c
    errors = rows.c.errors if dialect == SQLITE else cast(rows.c.errors, json_type())
    return (
        update(table)
        .where(
            c.id == rows.c.id,
            c.claim_count == rows.c.claim_count,
            status_is(c.status, ActionStatus.PENDING),
        )
        .values(
            status=ActionStatus.CANCELLED.value,
            errors=errors,
            settled_at=now(),
            updated_at=now(),
        )
        .returning(c.id)
        .execution_options(**{NAME: "cancel"})
    )


def retry(table: Table, dialect: str, filters: Filters, statuses: Sequence[ActionStatus]) -> Update:
    """Make rows of *statuses* pending and due now, with all attempts before them; returns their ids.

    `claim_count` stays: a zombie of the claim before must not pass the fence of the next.
    """
    never = cast(null(), Instant())
    return _change(table, dialect, filters, statuses, "retry").values(
        status=ActionStatus.PENDING.value,
        end_at=now(),
        fail_count=0,
        claimed_at=never,
        claimed_by=None,
        lease_expires_at=never,
        processed_at=never,
        settled_at=never,
        updated_at=now(),
    )


def reschedule(table: Table, dialect: str, filters: Filters, moment: Moment) -> Update:
    """Move pending rows to an instant, or to the database's now plus a delay; returns their ids."""
    moved = now_plus(moment.delay_seconds) if moment.end_at is None else moment.end_at
    return _change(table, dialect, filters, [ActionStatus.PENDING], "reschedule").values(end_at=moved, updated_at=now())


def prune(
    table: Table, dialect: str, older_than: timedelta, statuses: Sequence[ActionStatus], limit: int
) -> UpdateBase:
    """Delete up to *limit* rows of *statuses*, settled longest ago first; returns their ids. By ``ix_*_settled``."""
    c = table.c
    is_old = _was_settled_before(table, older_than, statuses)
    old = select(c.id).where(is_old).order_by(c.settled_at, c.id).limit(limit)
    return (
        delete(table)
        .where(is_one_of(c.id, skip_locked(old, dialect), dialect), status_is(c.status, *statuses))
        .returning(c.id)
        .execution_options(**{NAME: "prune"})
    )


def count_prunable(table: Table, older_than: timedelta, statuses: Sequence[ActionStatus]) -> Select[Any]:
    """How many rows `prune` would delete without a limit. By ``ix_*_settled``."""
    return (
        select(func.count())
        .select_from(table)
        .where(_was_settled_before(table, older_than, statuses))
        .execution_options(**{NAME: "count_prunable"})
    )


def _was_settled_before(table: Table, older_than: timedelta, statuses: Sequence[ActionStatus]) -> ColumnElement[bool]:
    c = table.c
    return and_(
        status_is(c.status, *statuses),
        c.settled_at.is_not(None),
        c.settled_at < now_plus(-older_than.total_seconds()),
    )


def _change(table: Table, dialect: str, filters: Filters, statuses: Sequence[ActionStatus], name: str) -> Update:
    # Locked in order of the ids, or two operators could wait for each other.
    chosen = (
        select(table.c.id)
        .where(status_is(table.c.status, *statuses), matches(table, dialect, filters))
        .order_by(table.c.id)
        .with_for_update()
    )
    return (
        update(table)
        .where(is_one_of(table.c.id, chosen, dialect), status_is(table.c.status, *statuses))
        .returning(table.c.id)
        .execution_options(**{NAME: name})
    )


def _all_columns(table: Table, dialect: str) -> list[ColumnElement[Any]]:
    return [_column(column, dialect).label(column.key) for column in table.c]


def _column(column: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    if isinstance(column.type, Instant):
        return readable(column, dialect)
    return raw_json(column, dialect) if isinstance(column.type, JSON) else column


def readable(instant: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """*instant* as any driver can read it: text on SQLite, and NULL for what no Python instant can hold."""
    if dialect == SQLITE:
        return type_coerce(instant, Text())
    return case((instant.between(FIRST_INSTANT, LAST_INSTANT), instant))
