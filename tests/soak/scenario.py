"""What a soak is asked for, and what of it the child processes read from their environment."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MOST_ROWS = 60_000
STACKS = signal.SIGUSR1
"""Has a claimant write what each of its threads does to its standard error."""
Database = Literal["sqlite", "postgresql"]
PER_SECOND: dict[Database, float] = {"postgresql": 32.0, "sqlite": 10.0}
CLAIMANTS: dict[Database, int] = {"postgresql": 4, "sqlite": 3}
PAUSE_SECONDS: dict[Database, float] = {"postgresql": 1.1, "sqlite": 1.6}
LEASE_SECONDS: dict[Database, float] = {"postgresql": 3.0, "sqlite": 4.0}
INTERVAL_SECONDS = 1.0
"""How often an idle claim loop looks; a dead one's rows are found that much after their leases at the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One soak: *claimants* run the package's loop without Prefect, *flows* are claim flows under a Prefect server."""

    database: Database
    seconds: float
    seed: int
    claimants: int
    flows: int = 1
    publishers: int = 2
    concurrency: int = 12
    lease: float | None = None
    pause: float | None = None
    rate: float | None = None

    @property
    def per_second(self) -> float:
        """Rows published a second; less in a long soak, so that what is audited in the end fits into memory."""
        return self.rate or min(PER_SECOND[self.database], MOST_ROWS / self.seconds)

    @property
    def lease_seconds(self) -> float:
        """Short, so that leases end often, unless asked for otherwise."""
        return self.lease or LEASE_SECONDS[self.database]

    @property
    def pause_seconds(self) -> float:
        """The mean time from one fault to the next."""
        return self.pause or PAUSE_SECONDS[self.database]

    @property
    def bound_seconds(self) -> float:
        """By when a killed process's row should have begun again: one and a half leases, and one interval."""
        return 1.5 * self.lease_seconds + INTERVAL_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one child process is told: *folder* for all that is written, its *seed*, and its share of the rows."""

    folder: Path
    seed: str
    per_second: float = 1.0
    concurrency: int = 4
    lease_seconds: float = 1.0

    @property
    def environment(self) -> dict[str, str]:
        """The part, for a child's environment."""
        names = {
            "SOAK_FOLDER": self.folder,
            "SOAK_SEED": self.seed,
            "SOAK_PER_SECOND": self.per_second,
            "SOAK_CONCURRENCY": self.concurrency,
            "SOAK_LEASE_SECONDS": self.lease_seconds,
        }
        return {name: str(value) for name, value in names.items()}

    @classmethod
    def of_environment(cls) -> Part:
        """The part that the parent process has given."""
        return cls(
            folder=Path(os.environ["SOAK_FOLDER"]),
            seed=os.environ["SOAK_SEED"],
            per_second=float(os.environ["SOAK_PER_SECOND"]),
            concurrency=int(os.environ["SOAK_CONCURRENCY"]),
            lease_seconds=float(os.environ["SOAK_LEASE_SECONDS"]),
        )

    @property
    def ledger(self) -> Path:
        """Where executions are written down."""
        return self.folder / "ledger"

    @property
    def published(self) -> Path:
        """Where publishers write down what they asked for and were told."""
        return self.folder / "published"

    @property
    def notes(self) -> Path:
        """Where everybody writes the rest."""
        return self.folder / "notes"
