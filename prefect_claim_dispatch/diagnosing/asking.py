"""Asking the database for the facts: each a short transaction of its own, so that one refusal spoils no other."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, Table

from prefect_claim_dispatch import operations, outstanding
from prefect_claim_dispatch.databases import transaction
from prefect_claim_dispatch.diagnosing.facts import (
    BlockingFacts,
    ClaimFacts,
    HoldingFacts,
    Pin,
    RightsFacts,
    ServerFacts,
    TupleFacts,
)
from prefect_claim_dispatch.dialects import POSTGRESQL, SQLITE
from prefect_claim_dispatch.errors import SchemaMissingError
from prefect_claim_dispatch.rows import Pause, lenient_text
from prefect_claim_dispatch.statements import diagnose
from prefect_claim_dispatch.statements.wake import wake_up

NO_TIME = timedelta(0)
KEYS = 10_000


def ask_server(engine: Engine) -> ServerFacts:
    """The database itself.

    Raises:
        DatabaseError: it can't be reached.
    """
    dialect = engine.dialect.name
    with transaction(engine) as connection:
        asked_at = datetime.now(UTC)
        row = connection.execute(diagnose.server(dialect)).one()
        answered_at = datetime.now(UTC)
        is_pooled = _is_pooled(connection, row)
    if dialect == SQLITE:
        return ServerFacts(
            dialect=dialect, version=row.version, journal_mode=row.journal_mode, **_file_facts(database_file(engine))
        )
    return ServerFacts(
        dialect=dialect,
        version=row.version,
        skew=row.now - (asked_at + (answered_at - asked_at) / 2),
        is_read_only=row.is_read_only,
        is_pooled=is_pooled,
    )


def ask_rights(engine: Engine, table: Table) -> RightsFacts | None:
    """What this role may do with each column; None on SQLite, which has no roles."""
    if engine.dialect.name != POSTGRESQL:
        return None
    with transaction(engine) as connection:
        rows = connection.execute(diagnose.columns_and_rights(table)).all()
    return RightsFacts(rights={row.name: frozenset(_held(row)) for row in rows})


def ask_indexes(engine: Engine, table: Table) -> dict[str, bool]:
    """Whether each index that is there is valid."""
    with transaction(engine) as connection:
        rows = connection.execute(diagnose.indexes_of(table, engine.dialect.name)).all()
    return {row.name: row.is_valid for row in rows}


def ask_wake_up(engine: Engine, table: Table) -> bool | None:
    """Whether publishing wakes claim flows that stay; None on SQLite, where it does without a trigger."""
    if engine.dialect.name != POSTGRESQL:
        return None
    with transaction(engine) as connection:
        row = connection.execute(wake_up(table)).one_or_none()
    return row is not None and row.is_there


def ask_tuples(engine: Engine, table: Table) -> TupleFacts | None:
    """How many row versions are dead; None on SQLite, which keeps none."""
    if engine.dialect.name != POSTGRESQL:
        return None
    with transaction(engine) as connection:
        row = connection.execute(diagnose.tuples_of(table)).one_or_none()
    return None if row is None else TupleFacts(live=row.live, dead=row.dead)


def ask_pins(engine: Engine) -> list[Pin]:
    """What keeps dead rows from being removed, the oldest first; nothing on SQLite."""
    if engine.dialect.name != POSTGRESQL:
        return []
    with transaction(engine) as connection:
        rows = connection.execute(diagnose.pins()).all()
    pins = [
        Pin(
            kind=row.kind,
            who=row.who,
            age=None if row.seconds is None else timedelta(seconds=row.seconds),
            transactions=row.transactions or 0,
        )
        for row in rows
    ]
    return sorted(pins, key=lambda pin: (pin.age or NO_TIME, pin.transactions), reverse=True)


def ask_claims(engine: Engine, table: Table) -> ClaimFacts:
    """How the claims of the moment stand."""
    with transaction(engine) as connection:
        row = connection.execute(diagnose.claims_held(table)).one()
    if row.oldest_claim_at is None:
        return ClaimFacts()
    overdue = max(row.now - row.oldest_lease_at, NO_TIME)
    return ClaimFacts(expired=row.expired, overdue=overdue, oldest=row.now - row.oldest_claim_at)


def ask_blocking(engine: Engine, table: Table) -> list[BlockingFacts]:
    """Which actions that nobody works on hold others of their ordering key back; of the first thousands of keys."""
    query = diagnose.blocking(table, engine.dialect.name)
    with transaction(engine) as connection:
        rows = connection.execute(query, {"limit": KEYS}).all()
    return [
        BlockingFacts(
            ordering_key=lenient_text(row.ordering_key) or "",
            id=row.id,
            type=row.type,
            until_due=row.end_at - row.now,
            waiting=row.waiting,
            waited=row.now - row.since,
        )
        for row in rows
    ]


def ask_holding(engine: Engine, table: Table) -> HoldingFacts:
    """Which table it is, and who holds claims on it."""
    with transaction(engine) as connection:
        holders = frozenset(connection.execute(diagnose.holders(table)).scalars())
    return HoldingFacts(identity=outstanding.identity(engine, table), holders=holders)


def ask_pauses(engine: Engine, table: str | None) -> list[Pause] | None:
    """What is paused; None where there is no table of pauses."""
    try:
        return operations.paused(engine, table=table)
    except SchemaMissingError:
        return None


def database_file(engine: Engine) -> Path | None:
    """The file of an SQLite database; None for one in memory, for SQLite's own URIs, and for other databases."""
    name = engine.url.database
    is_plain = engine.dialect.name == SQLITE and name and not name.startswith(("file:", ":memory:"))
    return Path(str(name)) if is_plain else None


def _file_facts(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    return {
        "file": file,
        "is_file_writable": os.access(file, os.W_OK),
        "is_folder_writable": os.access(file.resolve().parent, os.W_OK),
    }


def _held(row: Row[Any]) -> list[str]:
    return [right for right in ("select", "insert", "update") if getattr(row, right)]


def _is_pooled(connection: Connection, row: Row[Any]) -> bool:
    """Whether the process id that psycopg was told when it connected is not the server's; as in `engines`."""
    info = getattr(connection.connection.driver_connection, "info", None)
    told = getattr(info, "backend_pid", None)
    return told is not None and told != row.backend_pid
