"""What a claim flow was asked for, as its loop reads it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

ALONE_SHARE = 6
"""Of a lease, how long a suspect is on trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopOptions:
    """What a claim flow was asked for.

    *alone*: how long a suspect is on trial at most, see `alone_within`. *runs_per_second*: see `rows_per_run_for`.
    """

    limit: int
    lease: timedelta
    concurrency: int
    claimed_by: str
    until: datetime | None = None
    drain: bool = True
    stay: timedelta = timedelta(0)
    grace: timedelta = timedelta(seconds=20)
    alone: timedelta = timedelta(seconds=10)
    runs_per_second: float = 30

    @property
    def alone_within(self) -> timedelta:
        """How long a suspect is on trial: `alone`, or less where leases are short, which says that work is short."""
        return min(self.alone, self.lease / ALONE_SHARE)

    @property
    def soon(self) -> float:
        """Seconds in which the table is written; what takes longer is looked at from the next round."""
        return self.lease.total_seconds() / 8

    @property
    def read_ahead(self) -> int:
        """Claims that wait for a slot, so that none stands empty while the next claim is made.

        A crash strands as many.
        """
        return max(4, self.concurrency // 2)

    def room(self, taken: int, rows_per_run: int) -> int:
        """How many rows can start soon, where *taken* runs have a slot, or wait for one, already.

        No batch is read ahead: it is many rows, and what is claimed to begin at once needs no other statement before.
        """
        if rows_per_run == 1:
            return self.concurrency + self.read_ahead - taken
        return max(0, self.concurrency - taken) * rows_per_run
