"""What the action table must hold, as plain Python: no SQL, no clock, and none of the package's decisions.

Each method does to the model what one call of the package does to the table, and answers what that call must answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

KEPT_ERRORS = 5
MAX_ATTEMPTS = 3
TERMINAL = ("processed", "dead", "cancelled")
Key = tuple[int, int]


@dataclass(slots=True, kw_only=True)
class Modelled:
    """One row, by the names of its columns; `errors` by their kinds."""

    id: int
    type: str
    payload: Any
    end_at: datetime
    priority: int = 0
    idempotency_key: str | None = None
    ordering_key: str | None = None
    status: str = "pending"
    claimed_at: datetime | None = None
    claimed_by: str | None = None
    claim_count: int = 0
    lease_expires_at: datetime | None = None
    run_id: str | None = None
    fail_count: int = 0
    errors: list[str] = field(default_factory=list[str])
    processed_at: datetime | None = None
    settled_at: datetime | None = None

    def leave(self, status: str, now: datetime, error: str | None = None) -> None:
        """Take a verdict: the lease ends, and whatever belongs to the new status is there."""
        self.status, self.lease_expires_at = status, None
        self.processed_at = now if status == "processed" else None
        self.settled_at = now if status in TERMINAL else None
        self.errors = [*self.errors, *([error] if error else [])][-KEPT_ERRORS:]
        if status == "pending":
            self.claimed_at = self.claimed_by = None


class Model:
    """The rows by id, and the instant at which the clock stands; *backoff* says how long a failed attempt waits."""

    def __init__(self, now: datetime, backoff: Callable[[int, str], timedelta]) -> None:
        self.now = now
        self.rows: dict[int, Modelled] = {}
        self.backoff = backoff
        self.paused: set[str] = set()

    def holder(self, type_: str, key: str | None) -> Modelled | None:
        """The row that has the idempotency key."""
        same = [row for row in self.rows.values() if (row.type, row.idempotency_key) == (type_, key)]
        return same[0] if key is not None and same else None

    def publish(self, new: Modelled, on_conflict: str) -> str:
        """The outcome of a publish. Where the key is taken, *on_conflict* decides; only pending rows are rewritten."""
        old = self.holder(new.type, new.idempotency_key)
        if old is None:
            self.rows[new.id] = new
            return "created"
        if on_conflict == "replace" and old.status == "pending":
            for name in ("payload", "end_at", "priority", "ordering_key"):
                setattr(old, name, getattr(new, name))
            old.fail_count = 0
            return "replaced"
        return "refused" if on_conflict == "raise" else "kept"

    def is_claimable(self, row: Modelled, until: datetime) -> bool:
        """Pending, due and not paused; and nobody of its ordering key runs, or is before it: due, or tried already."""
        if row.status != "pending" or row.end_at > min(self.now, until) or self.is_paused(row.type):
            return False
        others = [
            other
            for other in self.rows.values()
            if other is not row and row.ordering_key and other.ordering_key == row.ordering_key
        ]
        return not any(
            other.status == "claimed"
            or (other.id < row.id and other.status == "pending" and (other.end_at <= self.now or other.claim_count > 0))
            for other in others
        )

    def is_paused(self, type_: str) -> bool:
        """Whether an operator has paused it, by its name or all types together."""
        return not self.paused.isdisjoint({type_, "*"})

    def running(self, type_: str) -> int:
        """How many of that type are claimed, leases that are over included."""
        return sum(row.status == "claimed" and row.type == type_ for row in self.rows.values())

    def claim(  # noqa: PLR0917 - as drawn
        self, types: Iterable[str], limit: int, lease: timedelta, by: str, until: datetime, may_begin: bool = True
    ) -> list[Modelled]:
        """The first *limit* claimable rows, claimed."""
        wanted = [row for row in self.rows.values() if row.type in types and self.is_claimable(row, until)]
        chosen = sorted(wanted, key=lambda row: (-row.priority, row.end_at, row.id))[:limit]
        for row in chosen:
            row.status, row.claimed_at, row.claimed_by, row.run_id = "claimed", self.now, by, by if may_begin else None
            row.claim_count += 1
            row.lease_expires_at = self.now + lease
        return chosen

    def held(self, claims: Iterable[Key]) -> list[Modelled]:
        """The rows of which these claims are the present ones: the fence."""
        keys = set(claims)
        return [row for row in self.rows.values() if row.status == "claimed" and (row.id, row.claim_count) in keys]

    def renew(self, claims: Iterable[Key], lease: timedelta) -> set[int]:
        """The ids whose lease is longer now; what is over stays over."""
        renewed = [row for row in self.held(claims) if row.lease_expires_at and row.lease_expires_at > self.now]
        for row in renewed:
            row.lease_expires_at = self.now + lease
        return {row.id for row in renewed}

    def settle(self, row: Modelled, outcome: str, delay: timedelta | None = None) -> None:
        """The verdict of *outcome*, a held row's."""
        match outcome:
            case "processed":
                row.leave("processed", self.now)
            case "failed" | "crashed":
                self.fail(row, outcome, MAX_ATTEMPTS)
            case "unprocessable":
                row.leave("dead", self.now, "unprocessable")
            case "cancelled":
                row.leave("cancelled", self.now, "cancelled")
            case "released":
                row.leave("pending", self.now)
            case _:
                row.leave("pending", self.now)
                row.end_at = self.now + (delay or timedelta(0))

    def fail(self, row: Modelled, kind: str, max_attempts: float) -> None:
        """An attempt is used up; the row waits for its next, or is dead."""
        row.fail_count += 1
        if row.fail_count >= max_attempts:
            row.leave("dead", self.now, kind)
            return
        row.leave("pending", self.now, kind)
        row.end_at = self.now + self.backoff(row.fail_count, f"{row.id}:{row.claim_count}")

    def rescue(self, limit: int, registered: Iterable[str]) -> list[int]:
        """The ids of the claims that were over, longest over first; unregistered types never die of it."""
        over = [row for row in self.rows.values() if row.lease_expires_at and row.lease_expires_at < self.now]
        chosen = sorted(over, key=lambda row: (row.lease_expires_at, row.id))[:limit]
        for row in chosen:
            if row.run_id is None:  # nobody may have begun it
                row.leave("pending", self.now)
                continue
            self.fail(row, "crashed", MAX_ATTEMPTS if row.type in registered else float("inf"))
        return [row.id for row in chosen]

    def select(self, statuses: Iterable[str], where: dict[str, Any]) -> list[Modelled]:
        """The rows of these statuses that an operator's filter speaks of."""
        ids, status = where.get("ids"), where.get("status")
        return [
            row
            for row in self.rows.values()
            if row.status in statuses
            and (ids is None or row.id in ids)
            and (status is None or row.status == status)
            and all(getattr(row, name) == where[name] for name in ("type", "idempotency_key") if name in where)
        ]

    def retry(self, where: dict[str, Any]) -> list[int]:
        """Dead and cancelled rows are pending and due, with all attempts before them."""
        rows = self.select(("dead", "cancelled"), where)
        for row in rows:
            row.leave("pending", self.now)
            row.end_at, row.fail_count = self.now, 0
        return [row.id for row in rows]

    def prune(self, older_than: timedelta, statuses: Iterable[str], limit: int) -> list[int]:
        """The ids of the terminal rows that are gone, oldest first."""
        old = [
            row
            for row in self.rows.values()
            if row.status in statuses and row.settled_at and row.settled_at < self.now - older_than
        ]
        ids = [row.id for row in sorted(old, key=lambda row: (row.settled_at, row.id))[:limit]]
        for id_ in ids:
            del self.rows[id_]
        return ids
