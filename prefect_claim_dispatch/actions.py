"""Actions as values: what a claim hands to the code that works on it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

MAX_TYPE_LENGTH = 120
MAX_KEY_LENGTH = 255
MAX_CLAIM_COUNT = 2**63 - 1
MAX_FAIL_COUNT = 2**31 - 1
RESERVED_RULES = "__rules"
RESERVED_META = "__meta"
_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class ActionStatus(StrEnum):
    """Where an action stands; the last three are terminal and only an operator's retry leaves them."""

    PENDING = "pending"
    CLAIMED = "claimed"
    PROCESSED = "processed"
    DEAD = "dead"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """True when nothing but an operator changes the action any more."""
        return self not in (ActionStatus.PENDING, ActionStatus.CLAIMED)


def elapsed_clock() -> float:
    """Seconds on a clock that no one can set and that runs on while the machine sleeps, where it has one.

    Leases are judged locally by this clock: a suspended laptop must not believe that its lease still holds.
    """
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


@dataclass(slots=True, kw_only=True, eq=False)
class Lease:
    """The local view of one claim: when it ends on our clock, and whether the table has said that it is lost.

    It errs on the short side: `expires` is counted from *before* the statement that set the lease was sent.
    `may_begin`: whether the table knows that the work may have begun, without which nobody may begin it.
    """

    expires: float
    may_begin: bool = True
    lost: bool = False
    settled: bool = False

    @property
    def holds(self) -> bool:
        """True while no other claimant can have taken the action, by the local clock."""
        return not self.lost and elapsed_clock() < self.expires

    def remaining(self) -> timedelta:
        """Time left on the local clock; negative when over."""
        return timedelta(seconds=self.expires - elapsed_clock())


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One claimed action. Instants are aware and in UTC; `attempt` starts at 1.

    `payload` is without the reserved keys; they are in `rules` and `meta`. `key` is the same in every attempt: write
    it beside an effect (an idempotency header, a unique column), and a repeat after a crash can be recognised.
    """

    id: int
    type: str
    payload: Mapping[str, Any]
    end_at: datetime
    created_at: datetime
    claim_count: int
    fail_count: int = 0
    priority: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rules: Any = None
    idempotency_key: str | None = None
    ordering_key: str | None = None
    errors: tuple[Mapping[str, Any], ...] = ()
    table: str = "action_logs"
    schema: str | None = None
    lease: Lease | None = field(default=None, compare=False, repr=False)

    @property
    def attempt(self) -> int:
        """1 for the first execution; snoozes and releases do not count."""
        return self.fail_count + 1

    @property
    def key(self) -> str:
        """A name for the intent, stable across attempts and claims: ``action_logs:42``."""
        return f"{self.table}:{self.id}"

    @property
    def reference(self) -> str:
        """How runs and log lines name this attempt: ``email.welcome #42 (attempt 1)``; no payload in it."""
        return f"{self.type} #{self.id} (attempt {self.attempt})"

    @property
    def lease_holds(self) -> bool:
        """Whether this claim is still ours, by a local clock: ask before an effect that must not happen twice."""
        return self.lease is not None and self.lease.holds


# An `Action` in the making: the same slots, to be filled one by one, then made an `Action` by its ``__class__``. The
# constructor of a frozen dataclass takes three times as long, and claims may bring tens of thousands a second.
ThawedAction: Any = type("ThawedAction", (), {"__slots__": tuple(field.name for field in fields(Action))})
