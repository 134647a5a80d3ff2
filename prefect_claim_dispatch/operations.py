"""Operations: what a person on call does to the table: look, cancel, retry, reschedule, prune, pause, resume.

Connection first, like publishing: a `Connection` or `Session` is joined and never committed, an engine or URL gets a
transaction of its own, which is done again when a deadlock ended it. Each change names the status it starts from in its
WHERE, so that a claim that comes in between is never disturbed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Unpack

from sqlalchemy import Connection, Row, Table, UpdateBase

from prefect_claim_dispatch import databases
from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.databases import Bind
from prefect_claim_dispatch.dialects import POSTGRESQL, bind_rows
from prefect_claim_dispatch.errors import ActionNotFoundError, ConfigurationError
from prefect_claim_dispatch.outcomes import Cancel
from prefect_claim_dispatch.patterns import checked_pattern
from prefect_claim_dispatch.policies import RetryPolicy, settlement_for
from prefect_claim_dispatch.rows import ActionRow, Counts, Pause, action_row, lenient_errors, pause_of, type_counts
from prefect_claim_dispatch.selecting import (
    Ids,
    Statuses,
    Where,
    bounded_filters,
    checked_age,
    checked_moment,
    filters_of,
    storable,
    terminal_statuses,
)
from prefect_claim_dispatch.statements import operate
from prefect_claim_dispatch.statements import pause as pauses
from prefect_claim_dispatch.statements.operate import TERMINAL, Filters
from prefect_claim_dispatch.statements.wake import wake

RETRYABLE: Final = (ActionStatus.DEAD, ActionStatus.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cancellable:
    id: int
    claim_count: int
    fail_count: int
    errors: Sequence[Mapping[str, Any]]


def get(bind: Bind, id: int, *, table: str | None = None) -> ActionRow:  # noqa: A002 - the column's name
    """The action *id* with all its columns.

    Raises:
        ActionNotFoundError: no row has that id.
    """
    wanted = databases.table_named(table)
    filters = Filters(ids=storable([id]))
    with databases.transaction(bind) as connection:
        dialect = connection.dialect.name
        query = operate.find(wanted, dialect, filters, None)
        row = connection.execute(query, filters.parameters(dialect)).one_or_none()
    if row is None:
        raise ActionNotFoundError(id, wanted.fullname)
    return action_row(row)


def find(
    bind: Bind,
    *,
    ids: Ids | None = None,
    limit: int | None = 100,
    table: str | None = None,
    **where: Unpack[Where],
) -> list[ActionRow]:
    """Up to *limit* actions (None: all) that match everything asked for, newest first; of broken JSON, the text.

    Raises:
        ConfigurationError: a status that does not exist, a negative age, a limit below 1.
    """
    if limit is not None and limit < 1:
        msg = f"limit must be 1 or more, got {limit}"
        raise ConfigurationError(msg)
    filters, wanted = filters_of(ids, where), databases.table_named(table)
    with databases.transaction(bind) as connection:
        dialect = connection.dialect.name
        query = operate.find(wanted, dialect, filters, limit)
        return [action_row(row) for row in connection.execute(query, filters.parameters(dialect))]


def find_ids(bind: Bind, *, ids: Ids | None = None, table: str | None = None, **where: Unpack[Where]) -> list[int]:
    """The ids of all actions that match, in order: what a bulk change is about to touch."""
    filters, wanted = filters_of(ids, where), databases.table_named(table)
    with databases.transaction(bind) as connection:
        dialect = connection.dialect.name
        query = operate.find_ids(wanted, dialect, filters)
        return list(connection.execute(query, filters.parameters(dialect)).scalars())


def counts(bind: Bind, *, table: str | None = None) -> Counts:
    """How many actions there are by type and status, how many are due and since when, how many leases are over.

    Reads the whole table; ages by the database's clock.
    """
    wanted = databases.table_named(table)
    with databases.transaction(bind) as connection:
        rows = connection.execute(operate.count(wanted, connection.dialect.name)).all()
    by_type: dict[str, list[Row[Any]]] = {}
    for row in rows:
        by_type.setdefault(row.type, []).append(row)
    return Counts(types=tuple(type_counts(type_, by_type[type_]) for type_ in sorted(by_type)))


def cancel(
    bind: Bind,
    ids: Ids | None = None,
    *,
    reason: str = "cancelled by an operator",
    table: str | None = None,
    **where: Unpack[Where],
) -> list[int]:
    """Cancel pending actions by id or filter; returns the ids that are cancelled now.

    *reason* becomes an entry of `errors`. Claimed actions are being worked on and stay as they are; so do settled ones.

    Raises:
        ConfigurationError: neither ids nor a filter was given.
    """
    filters = bounded_filters(ids, where, (ActionStatus.PENDING,))
    wanted = databases.table_named(table)

    def cancel_them(connection: Connection) -> list[int]:
        dialect = connection.dialect.name
        query = operate.cancellable(wanted, dialect, filters)
        rows = connection.execute(query, filters.parameters(dialect)).all()
        if not rows:
            return []
        columns = {
            "id": [row.id for row in rows],
            "claim_count": [row.claim_count for row in rows],
            "errors": [_with_reason(row, reason) for row in rows],
        }
        parameters = bind_rows(dialect, "cancelled", columns)
        return sorted(connection.execute(operate.cancel(wanted, dialect), parameters).scalars())

    return databases.repeated(bind, cancel_them)


def retry(bind: Bind, ids: Ids | None = None, *, table: str | None = None, **where: Unpack[Where]) -> list[int]:
    """Make dead or cancelled actions pending again, due now, with all attempts before them; returns their ids.

    Wakes claim flows that stay, as publishing does.

    Raises:
        ConfigurationError: neither ids nor a filter was given, or a status that can't be retried.
    """
    filters, wanted = bounded_filters(ids, where, RETRYABLE), databases.table_named(table)
    return _changed(
        bind, filters, lambda dialect: operate.retry(wanted, dialect, filters, filters.statuses), wakes=wanted
    )


def reschedule(
    bind: Bind,
    ids: Ids | None = None,
    *,
    end_at: datetime | None = None,
    delay: timedelta | None = None,
    table: str | None = None,
    **where: Unpack[Where],
) -> list[int]:
    """Move pending actions to *end_at*, or to the database's now plus *delay*; returns their ids.

    Wakes claim flows that stay, as publishing does.

    Raises:
        InvalidInstantError: both or neither were given, a naive `end_at`, a negative `delay`.
        ConfigurationError: neither ids nor a filter was given.
    """
    moved = checked_moment(end_at, delay)
    filters, wanted = bounded_filters(ids, where, (ActionStatus.PENDING,)), databases.table_named(table)
    return _changed(bind, filters, lambda dialect: operate.reschedule(wanted, dialect, filters, moved), wakes=wanted)


def prune(
    bind: Bind,
    older_than: timedelta,
    *,
    statuses: Statuses = TERMINAL,
    limit: int = 1000,
    table: str | None = None,
) -> list[int]:
    """Delete up to *limit* actions that were settled longer ago than *older_than*, oldest first; returns their ids.

    Call it again until it returns none: each call is a short transaction. A pruned key may be published anew.

    Raises:
        ConfigurationError: a status that is not terminal, a negative age, a limit below 1.
    """
    chosen = terminal_statuses(statuses)
    if limit < 1:
        msg = f"limit must be 1 or more, got {limit}"
        raise ConfigurationError(msg)
    age, wanted = checked_age(older_than), databases.table_named(table)
    return _changed(bind, Filters(), lambda dialect: operate.prune(wanted, dialect, age, chosen, limit))


def count_prunable(
    bind: Bind, older_than: timedelta, *, statuses: Statuses = TERMINAL, table: str | None = None
) -> int:
    """How many actions `prune` would delete, if it were called until it returns none.

    Raises:
        ConfigurationError: a status that is not terminal, a negative age.
    """
    chosen, age = terminal_statuses(statuses), checked_age(older_than)
    wanted = databases.table_named(table)
    with databases.transaction(bind) as connection:
        return connection.execute(operate.count_prunable(wanted, age, chosen)).scalar_one()


def pause(bind: Bind, type_or_pattern: str, *, reason: str | None = None, table: str | None = None) -> bool:
    """Have no claim flow claim actions of a type, or of all that a pattern (``email.*``) means; False if that was so.

    It holds for every flow from its next survey on, until `resume`, also for types that nobody knows yet. What is
    claimed goes on, and expired leases are rescued; publishing and all other operations work as ever. Paused again it
    stays paused since when it was, with the new *reason* if there is one.

    Raises:
        InvalidTypeError: no type and no pattern; the only wildcard is ``*``.
        SchemaMissingError: there is no table of pauses; see docs/migrations.md.
    """
    pattern, wanted = checked_pattern(type_or_pattern), databases.table_named(table)

    def pause_it(connection: Connection) -> bool:
        values = {"pattern": pattern, "reason": reason}
        is_new = connection.execute(pauses.pause(wanted), values).scalar_one_or_none() is not None
        if not is_new and reason is not None:
            connection.execute(pauses.explain_pause(wanted), {"pattern": pattern, "new_reason": reason})
        return is_new

    return databases.repeated(bind, pause_it)


def resume(bind: Bind, type_or_pattern: str, *, table: str | None = None) -> bool:
    """End the pause of exactly that type or pattern; False if there was none. Another that means the type goes on.

    Raises:
        InvalidTypeError: as `pause`.
        SchemaMissingError: as `pause`.
    """
    pattern, wanted = checked_pattern(type_or_pattern), databases.table_named(table)
    with databases.transaction(bind) as connection:
        return connection.execute(pauses.resume(wanted), {"pattern": pattern}).scalar_one_or_none() is not None


def paused(bind: Bind, *, table: str | None = None) -> list[Pause]:
    """What is paused, in order of the patterns.

    Raises:
        SchemaMissingError: as `pause`.
    """
    wanted = databases.table_named(table)
    with databases.transaction(bind) as connection:
        return [pause_of(row) for row in connection.execute(pauses.paused(wanted, connection.dialect.name))]


def _changed(
    bind: Bind, filters: Filters, statement: Callable[[str], UpdateBase], wakes: Table | None = None
) -> list[int]:
    def change(connection: Connection) -> list[int]:
        dialect = connection.dialect.name
        ids = sorted(connection.execute(statement(dialect), filters.parameters(dialect)).scalars())
        if ids and wakes is not None and dialect == POSTGRESQL:
            connection.execute(wake(wakes))
        return ids

    return databases.repeated(bind, change)


def _with_reason(row: Row[Any], reason: str) -> str:
    action = _Cancellable(
        id=row.id,
        claim_count=row.claim_count,
        fail_count=row.fail_count,
        errors=lenient_errors(row.errors),
    )
    return json.dumps(settlement_for(Cancel(reason), action, RetryPolicy()).errors)
