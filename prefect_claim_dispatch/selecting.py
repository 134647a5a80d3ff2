"""Which actions are meant: the arguments of the operations, checked before any SQL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, TypedDict

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.errors import ConfigurationError, InvalidInstantError
from prefect_claim_dispatch.moments import Moment, moment
from prefect_claim_dispatch.statements.operate import TERMINAL, Filters

MAX_ID: Final = 2**63 - 1
MAX_AGE: Final = timedelta(days=36_500)

Ids = int | Iterable[int]
Statuses = str | Iterable[str]


class Where(TypedDict, total=False):
    """Which actions are meant; what is left out does not matter. Ages are of `created_at`, by the database's clock."""

    type: str | None
    status: Statuses | None
    older_than: timedelta | None
    idempotency_key: str | None


def filters_of(ids: Ids | None, where: Where) -> Filters:
    """The filters that *ids* and *where* stand for.

    Raises:
        ConfigurationError: a status that does not exist, a negative age, text that no action can have.
    """
    age = where.get("older_than")
    return Filters(
        type=_checked_text("type", where.get("type")),
        statuses=statuses_of(where.get("status") or ()),
        older_than=None if age is None else checked_age(age),
        ids=None if ids is None else storable([ids] if isinstance(ids, int) else ids),
        idempotency_key=_checked_text("idempotency_key", where.get("idempotency_key")),
    )


def bounded_filters(ids: Ids | None, where: Where, allowed: tuple[ActionStatus, ...]) -> Filters:
    """The filters of a change. One that names nothing is refused, because it would change everything."""
    filters = filters_of(ids, where)
    if filters == Filters():
        msg = "give ids, or at least one of type, status, older_than, idempotency_key"
        raise ConfigurationError(msg)
    if not set(filters.statuses) <= set(allowed):
        msg = f"only {' or '.join(allowed)} actions can be changed so, got {', '.join(filters.statuses)}"
        raise ConfigurationError(msg)
    return replace(filters, statuses=filters.statuses or allowed)


def statuses_of(statuses: Statuses) -> tuple[ActionStatus, ...]:
    """One or many names as statuses; `ConfigurationError` for one that does not exist."""
    names = [statuses] if isinstance(statuses, str) else list(statuses)
    try:
        return tuple(ActionStatus(name) for name in names)
    except ValueError:
        msg = f"status must be one of {', '.join(ActionStatus)}, got {', '.join(map(repr, names))}"
        raise ConfigurationError(msg) from None


def storable(ids: Iterable[int]) -> tuple[int, ...]:
    """The ids that a row can have: asking for others must find nothing, not fail in the driver."""
    return tuple(sorted({id_ for id_ in ids if 0 < id_ <= MAX_ID}))


def _checked_text(name: str, value: str | None) -> str | None:
    if value is not None and not value.isprintable():
        msg = f"{name} has characters that no action's {name} can have: {value!r}"
        raise ConfigurationError(msg)
    return value


def checked_age(age: timedelta) -> timedelta:
    """*age*, if a database can subtract it from now; else `ConfigurationError`."""
    if not timedelta(0) <= age <= MAX_AGE:
        msg = f"older_than must be from zero to {MAX_AGE.days} days, got {age}"
        raise ConfigurationError(msg)
    return age


def terminal_statuses(statuses: Statuses) -> tuple[ActionStatus, ...]:
    """What may be pruned of *statuses*; all terminal ones for none. `ConfigurationError` for one that is live."""
    chosen = statuses_of(statuses) or TERMINAL
    if not all(status.is_terminal for status in chosen):
        msg = f"only {', '.join(TERMINAL)} actions can be pruned, got {', '.join(chosen)}"
        raise ConfigurationError(msg)
    return chosen


def checked_moment(end_at: datetime | None, delay: timedelta | None) -> Moment:
    """The one of both that was given; `InvalidInstantError` for both, neither, naive or out of range."""
    if (end_at is None) == (delay is None):
        msg = "give either end_at or delay"
        raise InvalidInstantError(msg)
    return moment(delay if end_at is None else end_at)
