"""A process that does what a person on call does, until SIGTERM: ``python -m tests.soak.operating``.

It cancels, retries, reschedules and prunes. What it is about to change is written down before the commit: a commit
whose answer is lost may have done it.
"""

from __future__ import annotations

import random
import signal
import threading
from datetime import timedelta

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from prefect_claim_dispatch import databases, operations
from prefect_claim_dispatch.errors import ClaimDispatchError
from tests.soak.notes import Notes
from tests.soak.scenario import Part

PAUSE_SECONDS = 0.7
PRUNED_AFTER = timedelta(seconds=15)
AT_ONCE = 3


class Operating:
    """One operator's doings, drawn from *dice*."""

    def __init__(self, engine: Engine, notes: Notes, dice: random.Random) -> None:
        self._engine = engine
        self._notes = notes
        self._dice = dice

    def turn(self) -> None:
        """One intervention."""
        try:
            self._dice.choice([self._cancel, self._retry, self._reschedule, self._prune])()
        except (ClaimDispatchError, SQLAlchemyError) as error:
            self._notes.write("gave up", error=type(error).__name__)

    def _cancel(self) -> None:
        cancelled = operations.cancel(self._engine, self._some("pending"), reason="not needed")
        self._notes.write("cancelled", ids=cancelled)

    def _reschedule(self) -> None:
        moved = operations.reschedule(self._engine, self._some("pending"), delay=timedelta(seconds=1.5))
        self._notes.write("rescheduled", ids=moved)

    def _retry(self) -> None:
        ids = self._some(self._dice.choice(["dead", "cancelled"]))
        self._notes.write("retrying", ids=ids)
        self._notes.write("retried", ids=operations.retry(self._engine, ids))

    def _prune(self) -> None:
        with self._engine.begin() as connection:
            ids = operations.prune(connection, PRUNED_AFTER, limit=AT_ONCE)
            self._notes.write("pruning", ids=ids)
        self._notes.write("pruned", ids=ids)

    def _some(self, status: str) -> list[int]:
        found = [row.id for row in operations.find(self._engine, status=status, limit=20)]
        return sorted(self._dice.sample(found, min(AT_ONCE, len(found))))


def main() -> None:
    """Intervene until SIGTERM."""
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    part = Part.of_environment()
    operating = Operating(databases.engine_for(None), Notes(part.notes), random.Random(part.seed))
    while not end.wait(PAUSE_SECONDS):
        operating.turn()


if __name__ == "__main__":
    main()
