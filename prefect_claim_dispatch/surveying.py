"""Surveys: what there is to do, by the database's clock, and which types are paused.

A `Connection` in place of the engine is joined and not committed, which nobody but :mod:`.testing` should want.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Row, Table
from sqlalchemy.exc import DBAPIError

from prefect_claim_dispatch import databases
from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.dialects import POSTGRESQL
from prefect_claim_dispatch.engines import is_missing_table
from prefect_claim_dispatch.errors import SchemaMissingError
from prefect_claim_dispatch.patterns import matching
from prefect_claim_dispatch.statements.survey import count_due as count_due_statement
from prefect_claim_dispatch.statements.survey import survey as survey_statement

ASK_AGAIN_SECONDS: Final = 60.0
"""After which a table of pauses is looked for again, where there was none: the server logs each time as an error."""

_looked_in_vain: WeakKeyDictionary[Engine, dict[Table, float]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """The pending actions of one type and priority, of which the earliest is eligible at `end_at`.

    A claim takes what is due in lanes of a lower *turn* first, within one priority. *is_ordered*: whether any live
    action of the table has an ordering key, or nobody has looked.
    """

    type: str
    priority: int
    end_at: datetime
    turn: int = 0
    is_ordered: bool = field(default=True, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What there is to do at `now`, by the database's clock; and which types and patterns are `paused`."""

    now: datetime
    lanes: tuple[Lane, ...]
    oldest_lease_at: datetime | None
    paused: tuple[str, ...] = ()

    @property
    def has_expired_leases(self) -> bool:
        """Whether rescue would find something."""
        return self.oldest_lease_at is not None and self.oldest_lease_at < self.now

    def due(self, until: datetime | None = None) -> tuple[Lane, ...]:
        """The lanes with actions to claim: highest priority first, then the one that has waited longest."""
        lanes = [lane for lane in self._ripe(until) if not matching(self.paused, lane.type)]
        return tuple(sorted(lanes, key=lambda lane: (-lane.priority, lane.end_at)))

    def held_back(self, until: datetime | None = None) -> tuple[Lane, ...]:
        """The lanes whose actions would be due, if their types were not paused."""
        return tuple(lane for lane in self._ripe(until) if matching(self.paused, lane.type))

    def _ripe(self, until: datetime | None) -> list[Lane]:
        horizon = self.now if until is None else min(self.now, until)
        return [lane for lane in self.lanes if lane.end_at <= horizon]


def survey(engine: Engine | Connection, table: Table) -> Survey:
    """What there is to do, in one statement whose cost is the number of distinct (type, priority), not of rows."""
    rows = _surveyed(engine, table)
    oldest = next(row for row in rows if row.type is None)
    is_ordered = bool(oldest.priority)
    lanes = [
        Lane(type=row.type, priority=row.priority, end_at=row.end_at, is_ordered=is_ordered)
        for row in rows
        if row.type is not None and row.priority is not None
    ]
    paused = [row.type for row in rows if row.type is not None and row.priority is None]
    return Survey(now=oldest.now, lanes=tuple(lanes), oldest_lease_at=oldest.end_at, paused=tuple(paused))


def count_due(engine: Engine | Connection, table: Table, lanes: Iterable[Lane], *, at_most: int | None = None) -> int:
    """How many actions of *lanes* are due now; a count of the index, so ask it seldom, or of *at_most* so many."""
    statement, number = count_due_statement(table, bounded=at_most is not None), 0
    with databases.transaction(engine) as connection:
        for lane in lanes:
            parameters: dict[str, Any] = {"type": lane.type, "priority": lane.priority}
            if at_most is not None:
                if number >= at_most:
                    break
                parameters["limit"] = at_most - number
            number += connection.execute(statement, parameters).scalar_one()
    return number


def _surveyed(engine: Engine | Connection, table: Table) -> Sequence[Row[Any]]:
    """The rows of the survey; without pauses where there is no table of them, as one whose application made it has."""
    looked_at = _looked_in_vain.setdefault(engine.engine, {})
    if looked_at.get(table, float("-inf")) + ASK_AGAIN_SECONDS < elapsed_clock():
        try:
            return _asked(engine, table, has_pauses=True)
        except (SchemaMissingError, DBAPIError) as error:
            cause = error.__cause__ if isinstance(error, SchemaMissingError) else error
            if not (isinstance(cause, DBAPIError) and is_missing_table(cause)):
                raise
        rows = _asked(engine, table, has_pauses=False)
        looked_at[table] = elapsed_clock()
        return rows
    return _asked(engine, table, has_pauses=False)


def _asked(engine: Engine | Connection, table: Table, *, has_pauses: bool) -> Sequence[Row[Any]]:
    statement = survey_statement(table, engine.dialect.name, has_pauses=has_pauses)
    with databases.transaction(engine) as connection:
        if not has_pauses or isinstance(engine, Engine) or engine.dialect.name != POSTGRESQL:
            return connection.execute(statement).all()
        with connection.begin_nested():  # what fails would spoil the caller's transaction
            return connection.execute(statement).all()
