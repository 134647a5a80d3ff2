"""What a claim flow was asked for, as its loop reads it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from prefect_claim_dispatch.errors import ConfigurationError

MIN_LEASE: Final = timedelta(seconds=1)
MAX_LEASE: Final = timedelta(days=7)

TRIAL_SHARE, TRIALS_SHARE = 6, 4
"""Of a lease, how long a suspect is on trial at most, and how long all of them together that wait at a time."""

SHORTEST_TRIAL = timedelta(seconds=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopOptions:
    """What a claim flow was asked for.

    *trial*: how long a suspect is on trial at most, see `trial_of`. *runs_per_second*: see `rows_per_run_for`.
    *listen_url*: see `listening`.
    """

    limit: int
    lease: timedelta
    concurrency: int
    claimed_by: str
    until: datetime | None = None
    drain: bool = True
    stay: timedelta = timedelta(0)
    grace: timedelta = timedelta(seconds=20)
    trial: timedelta = timedelta(seconds=10)
    runs_per_second: float = 30
    listen_url: str | None = None

    def check(self) -> None:
        """Refuse what makes no sense, all of it in one line.

        Raises:
            ConfigurationError: something does not.
        """
        none = timedelta(0)
        problems = {
            f"limit must be 1 or more, got {self.limit}": self.limit < 1,
            f"max_concurrency must be 1 or more, got {self.concurrency}": self.concurrency < 1,
            f"lease must be from {MIN_LEASE} to {MAX_LEASE}, got {self.lease}": not MIN_LEASE
            <= self.lease
            <= MAX_LEASE,
            f"stay must not be negative, got {self.stay}": self.stay < none,
            f"grace must not be negative, got {self.grace}": self.grace < none,
            "until must have a time zone": self.until is not None and self.until.tzinfo is None,
        }
        wrong = [problem for problem, is_wrong in problems.items() if is_wrong]
        if wrong:
            raise ConfigurationError("; ".join(wrong))

    def trial_of(self, suspects: int) -> float:
        """Seconds that each of *suspects* is on trial: `trial`, or less where leases are short, or many wait.

        A short lease says that work is short; and the last of them should begin within a quarter of a lease.
        """
        wanted = min(self.trial, self.lease / TRIAL_SHARE, self.lease / TRIALS_SHARE / max(1, suspects))
        return max(wanted, min(self.trial, SHORTEST_TRIAL)).total_seconds()

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
