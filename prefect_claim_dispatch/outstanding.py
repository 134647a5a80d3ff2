"""Outstanding claims: those whose work a run of another deployment does. Each call is one short transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, Table

from prefect_claim_dispatch import databases
from prefect_claim_dispatch.actions import Lease, elapsed_clock
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dialects import POSTGRESQL, bind_rows
from prefect_claim_dispatch.fences import Key
from prefect_claim_dispatch.rows import lenient_errors
from prefect_claim_dispatch.schema import ELSEWHERE, SERVER_LENGTH, SERVER_MARK
from prefect_claim_dispatch.statements import outstanding as statements

Cursor = tuple[Any, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outstanding:
    """One such claim as the table has it at `now`, by the database's clock; without its payload."""

    id: int
    type: str
    claim_count: int
    fail_count: int
    errors: tuple[Mapping[str, Any], ...]
    claimed_by: str
    run_id: str | None
    claimed_at: datetime
    lease_expires_at: datetime
    now: datetime

    @property
    def key(self) -> Key:
        """The fence."""
        return self.id, self.claim_count

    @property
    def waited(self) -> timedelta:
        """How long ago it was claimed."""
        return self.now - self.claimed_at

    @property
    def left(self) -> timedelta:
        """What is left of its lease; negative when that is over."""
        return self.lease_expires_at - self.now

    @property
    def is_over(self) -> bool:
        """Whether nobody has renewed it in time."""
        return self.left < timedelta(0)

    @property
    def is_held_by_its_run(self) -> bool:
        """Whether the run renews the lease itself, see `claimed_action`: then the lease tells of its life."""
        return self.run_id is not None and self._held_by[0] == self.run_id

    @property
    def server(self) -> str | None:
        """The Prefect server that has its run; None where an older version claimed it, or it could not be told."""
        return self._held_by[1]

    @property
    def _held_by(self) -> tuple[str, str | None]:
        holder = self.claimed_by.removeprefix(ELSEWHERE)
        rest, server = holder[: -SERVER_LENGTH - 1], holder[-SERVER_LENGTH - 1 :]
        return (rest, server[1:]) if server.startswith(SERVER_MARK) else (holder, None)


class Followed(NamedTuple):
    """A claim, its run (None: as it is), and how long its lease is to last from now."""

    id: int
    claim_count: int
    run_id: str | None
    lease: timedelta


def page(engine: Engine, table: Table, after: Cursor | None, *, limit: int) -> tuple[list[Outstanding], Cursor | None]:
    """Up to *limit* outstanding claims behind *after*, the lease that ends first at the head; and where to go on.

    None where there are no more.
    """
    query = statements.outstanding(table, engine.dialect.name, further=after is not None)
    parameters: dict[str, Any] = {"limit": limit}
    if after is not None:
        parameters |= {"after_at": after[0], "after_id": after[1]}
    with databases.transaction(engine) as connection:
        rows = connection.execute(query, parameters).all()
    found = [
        Outstanding(
            id=row.id,
            type=row.type,
            claim_count=row.claim_count,
            fail_count=row.fail_count,
            errors=lenient_errors(row.errors),
            claimed_by=row.claimed_by,
            run_id=row.run_id,
            claimed_at=row.claimed_at,
            lease_expires_at=row.lease_expires_at,
            now=row.now,
        )
        for row in rows
    ]
    return found, (rows[-1].after_at, rows[-1].id) if len(rows) == limit else None


def held(engine: Engine, table: Table, keys: Sequence[Key]) -> list[RawAction]:
    """The rows of those of *keys* whose claim still holds, in order of id, as a claim returns them."""
    if not keys:
        return []
    dialect = engine.dialect.name
    ids, counts = (list(column) for column in zip(*sorted(keys), strict=True))
    parameters = bind_rows(dialect, "wanted", {"id": ids, "claim_count": counts})
    with databases.transaction(engine) as connection:
        rows = connection.execute(statements.held(table, dialect), parameters).all()
    return [RawAction(row, Lease(expires=0.0), table) for row in sorted(rows, key=lambda row: row[0])]


def follow(engine: Engine, table: Table, followed: Sequence[Followed]) -> set[int]:
    """Write run and lease of each onto its row; returns the ids whose claim still holds."""
    if not followed:
        return set()
    dialect = engine.dialect.name
    ordered = sorted(followed)
    columns = {
        "id": [one.id for one in ordered],
        "claim_count": [one.claim_count for one in ordered],
        "run_id": [one.run_id for one in ordered],
        "lease_seconds": [one.lease.total_seconds() for one in ordered],
    }
    statement, parameters = statements.follow(table, dialect), bind_rows(dialect, "followed", columns)
    return databases.repeated(engine, lambda connection: set(connection.execute(statement, parameters).scalars()))


def take(
    engine: Engine, table: Table, key: Key, run_id: str | None, *, lease: timedelta, again: bool = False
) -> RawAction | None:
    """The row of the claim *key*, held by the run *run_id* from now; None where it is not that run's any more.

    None, too, where that run holds it already and its lease lives, unless *again*: it may be another process.
    """
    dialect = engine.dialect.name
    columns: dict[str, list[Any]] = {
        "id": [key[0]],
        "claim_count": [key[1]],
        "run_id": [run_id],
        "lease_seconds": [lease.total_seconds()],
    }
    statement, parameters = statements.take(table, dialect, again=again), bind_rows(dialect, "taken", columns)
    expires = elapsed_clock() + lease.total_seconds()
    row = databases.repeated(engine, lambda connection: connection.execute(statement, parameters).one_or_none())
    return None if row is None else RawAction(row, Lease(expires=expires), table)


def is_held_by(engine: Engine, table: Table, key: Key, run_id: str) -> bool:
    """Whether the run *run_id* has taken the claim *key*, and it still holds."""
    raws = held(engine, table, [key])
    return any((raw.claimed_by or "").startswith(f"{ELSEWHERE}{run_id}") for raw in raws)


def identity(engine: Engine, table: Table) -> str:
    """A short name for this table, the same for whoever asks, so that two databases may share one Prefect server.

    On PostgreSQL from the cluster's own number, database, schema and table, whatever way one connects; on SQLite from
    the path of the file.
    """
    if engine.dialect.name == POSTGRESQL:
        with databases.transaction(engine) as connection:
            cluster, database, schema = connection.execute(statements.identify()).one()
        parts = (str(cluster), database, table.schema or schema or "", table.name)
    else:
        file = engine.url.database or ""
        parts = (str(Path(file).resolve()), table.schema or "", table.name)
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:16]
