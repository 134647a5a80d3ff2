"""Rows as a person looks at them: every column, whatever was written there behind our back."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn, cast

from sqlalchemy import Row

from prefect_claim_dispatch.actions import RESERVED_META, RESERVED_RULES, Action, ActionStatus
from prefect_claim_dispatch.patterns import matches
from prefect_claim_dispatch.schema import INSTANTS

TEXTS: Final = ("type", "idempotency_key", "ordering_key", "claimed_by", "run_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRow:
    """One row of the action table. Instants are aware and in UTC; None also where what stands there is no instant.

    `payload` is as stored, reserved keys included; where it is no JSON, the raw text. `errors` leaves out what is no
    object.
    """

    id: int
    type: str
    payload: Any
    end_at: datetime | None
    priority: int
    idempotency_key: str | None
    ordering_key: str | None
    status: ActionStatus
    claimed_at: datetime | None
    claimed_by: str | None
    claim_count: int
    lease_expires_at: datetime | None
    run_id: str | None
    fail_count: int
    errors: tuple[Mapping[str, Any], ...]
    processed_at: datetime | None
    settled_at: datetime | None
    created_at: datetime | None
    updated_at: datetime | None
    held_until: datetime | None = None

    @property
    def last_error(self) -> str:
        """What the newest entry of `errors` says; empty when there is none."""
        return str(self.errors[-1].get("message", "")) if self.errors else ""

    def action(self, table: str, schema: str | None) -> Action | None:
        """The row as its next attempt would see it, without a lease; None where it can't be decoded."""
        stored: object = self.payload
        if not isinstance(stored, dict) or self.end_at is None or self.created_at is None:
            return None
        payload = dict(cast("dict[str, Any]", stored))
        rules, meta = payload.pop(RESERVED_RULES, None), payload.pop(RESERVED_META, None)
        if meta is not None and not isinstance(meta, dict):
            return None
        return Action(
            id=self.id,
            type=self.type,
            payload=payload,
            meta=cast("dict[str, Any]", meta or {}),
            rules=rules,
            end_at=self.end_at,
            created_at=self.created_at,
            claim_count=self.claim_count,
            fail_count=self.fail_count,
            priority=self.priority,
            idempotency_key=self.idempotency_key,
            ordering_key=self.ordering_key,
            errors=self.errors,
            table=table,
            schema=schema,
        )

    def as_dict(self) -> dict[str, Any]:
        """The columns, ready for JSON: instants in ISO 8601."""
        values = {column.name: getattr(self, column.name) for column in fields(self)}
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeCounts:
    """How many actions of one type there are in each status, and how many are due now, by the database's clock."""

    type: str
    statuses: Mapping[str, int] = field(default_factory=dict[str, int])
    due: int = 0
    oldest_due_age: timedelta | None = None
    expired_leases: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The counts, ready for JSON: every status named, the age in seconds."""
        return {
            "type": self.type,
            **{status.value: self.statuses.get(status.value, 0) for status in ActionStatus},
            **_backlog(self.due, self.oldest_due_age, self.expired_leases),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The whole table in numbers, types in alphabetical order."""

    types: tuple[TypeCounts, ...] = ()

    @property
    def statuses(self) -> Mapping[str, int]:
        """Actions of all types by status; every status is there."""
        total = Counter({status.value: 0 for status in ActionStatus})
        for counts in self.types:
            total.update(counts.statuses)
        return dict(total)

    @property
    def due(self) -> int:
        """Pending actions that may be claimed now."""
        return sum(counts.due for counts in self.types)

    @property
    def oldest_due_age(self) -> timedelta | None:
        """How long the action that is due longest has been due; None when nothing is."""
        return max((counts.oldest_due_age for counts in self.types if counts.oldest_due_age), default=None)

    @property
    def expired_leases(self) -> int:
        """Claims that wait for a rescue."""
        return sum(counts.expired_leases for counts in self.types)

    def as_dict(self) -> dict[str, Any]:
        """The counts, ready for JSON; ages in seconds."""
        return {
            **self.statuses,
            **_backlog(self.due, self.oldest_due_age, self.expired_leases),
            "types": [counts.as_dict() for counts in self.types],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A type, or a pattern of types, that no claim flow claims; *paused_at* is None where what stands there is none."""

    type: str
    reason: str | None = None
    paused_at: datetime | None = None

    def waiting(self, counts: Counts) -> int:
        """How many due actions of *counts* wait for it to be resumed."""
        return sum(kind.due for kind in counts.types if matches(self.type, kind.type))

    def as_dict(self) -> dict[str, Any]:
        """The pause, ready for JSON."""
        at = None if self.paused_at is None else self.paused_at.isoformat()
        return {"type": self.type, "reason": self.reason, "paused_at": at}


def _backlog(due: int, age: timedelta | None, expired_leases: int) -> dict[str, Any]:
    seconds = None if age is None else round(age.total_seconds(), 3)
    return {"due": due, "oldest_due_age_seconds": seconds, "expired_leases": expired_leases}


def action_row(row: Row[Any]) -> ActionRow:
    """The row of a `find` statement, decoded."""
    values = {column.name: getattr(row, column.name) for column in fields(ActionRow)}
    values |= {name: lenient_instant(values[name]) for name in INSTANTS}
    values |= {name: lenient_text(values[name]) for name in TEXTS}
    values["status"] = ActionStatus(values["status"])
    values["payload"] = lenient_json(values["payload"])
    values["errors"] = lenient_errors(values["errors"])
    return ActionRow(**values)


def pause_of(row: Row[Any]) -> Pause:
    """The row of a `paused` statement, decoded."""
    return Pause(
        type=lenient_text(row.type) or "", reason=lenient_text(row.reason), paused_at=lenient_instant(row.paused_at)
    )


def type_counts(type_: str, rows: Sequence[Row[Any]]) -> TypeCounts:
    """The rows of a `count` statement that have this type, together."""
    ages = [row.now - since for row in rows if (since := lenient_instant(row.oldest_due_at)) is not None]
    return TypeCounts(
        type=type_,
        statuses={row.status: row.number for row in rows},
        due=sum(row.due for row in rows),
        oldest_due_age=max(ages, default=None),
        expired_leases=sum(row.expired for row in rows),
    )


def lenient_json(raw: Any) -> Any:
    """The value of the JSON text *raw*; *raw* itself, as text, where it is none that could be written again."""
    document = lenient_text(raw) or ""
    try:
        return json.loads(document, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return document


def lenient_errors(raw: Any) -> tuple[Mapping[str, Any], ...]:
    """The entries of an `errors` column; what is no object is left out."""
    errors = lenient_json(raw)
    entries = cast("list[Any]", errors) if isinstance(errors, list) else []
    return tuple(cast("Mapping[str, Any]", error) for error in entries if isinstance(error, dict))


def lenient_instant(raw: Any) -> datetime | None:
    """*raw* as an aware instant in UTC; None where it is none."""
    try:
        instant = raw if isinstance(raw, datetime) else datetime.fromisoformat(raw)
        return instant.replace(tzinfo=instant.tzinfo or UTC).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def lenient_text(raw: Any) -> str | None:
    """*raw* as text: SQLite keeps bytes in a text column if it is given bytes."""
    if raw is None:
        return None
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)


def _refuse(constant: str) -> NoReturn:
    msg = f"{constant} is not JSON"
    raise ValueError(msg)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        msg = f"{digits} is out of range"
        raise ValueError(msg)
    return number
