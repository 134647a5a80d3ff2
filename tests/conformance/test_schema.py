"""What the table itself refuses, whoever writes to it: states that can't be, and instants that can't be compared."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DatabaseError, DBAPIError

from prefect_claim_dispatch import engines, schema
from prefect_claim_dispatch.errors import ConfigurationError


@contextmanager
def begun(url: str) -> Generator[Connection]:
    """A connection in a transaction, on an engine that is closed afterwards."""
    engine = engines.create(url)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


@pytest.mark.parametrize(
    "instant",
    [
        "2026-01-31T12:00:00",
        "2026-01-31 12:00:00+02:00",
        "2026-01-31 12:00:00Z",
        "2026-01-31 12:00:00.",
        "2026-01-31 12:00:00.1 2",
        "2026-01-31 12:00:00.1-05",
        "2026-01-31 12:00:00.5..",
        "2026-01-31 12:00:00.1234567",
        "2026-02-31 12:00:00",
        "2026-01-31 24:00:00",
        "2026-01-31 12:00",
        "0000-01-01 00:00:00",
        "now",
        "1769860800",
        "",
    ],
)
def test_sqlite_refuses_text_that_does_not_sort_as_an_instant(sqlite_url: str, instant: str) -> None:
    """One such row would be read as another instant than it sorts by, or would make every survey fail."""
    with begun(sqlite_url) as connection, pytest.raises(DatabaseError, match="CHECK"):
        connection.execute(text("INSERT INTO action_logs (type, end_at) VALUES ('a', :at)"), {"at": instant})


@pytest.mark.parametrize("instant", ["2026-01-31 12:00:00", "2026-01-31 12:00:00.5", "2026-01-31 12:00:00.123456"])
def test_sqlite_takes_utc_text(sqlite_url: str, instant: str) -> None:
    """The forms that datetime('now'), strftime('%f') and this package write."""
    with begun(sqlite_url) as connection:
        connection.execute(text("INSERT INTO action_logs (type, end_at) VALUES ('a', :at)"), {"at": instant})


@pytest.mark.parametrize("instant", ["infinity", "-infinity", "0001-01-01 00:00:00+00 BC", "20000-01-01 00:00:00+00"])
def test_postgresql_refuses_instants_that_python_cannot_hold(postgres_url: str, instant: str) -> None:
    """The driver could not read such a row, and every claim that meets it would fail."""
    with begun(postgres_url) as connection, pytest.raises(DBAPIError, match="instants"):
        connection.execute(
            text("INSERT INTO action_logs (type, end_at) VALUES ('a', CAST(:at AS timestamptz))"), {"at": instant}
        )


@pytest.mark.parametrize(
    "assignment",
    [
        "status = 'claimed'",
        "status = 'processed'",
        "status = 'dead'",
        "status = 'nonsense'",
        "claimed_at = CURRENT_TIMESTAMP",
        "processed_at = CURRENT_TIMESTAMP",
        "settled_at = CURRENT_TIMESTAMP",
        "fail_count = -1",
        "type = ''",
    ],
)
def test_states_that_cannot_be_are_refused_by_the_database(database_url: str, assignment: str) -> None:
    """No bug and no hand-written UPDATE may make a claimed row without a lease, or a processed one without a time."""
    with begun(database_url) as connection:
        connection.execute(text("INSERT INTO action_logs (type) VALUES ('a')"))
        with pytest.raises(DBAPIError):
            connection.execute(text(f"UPDATE action_logs SET {assignment}"))
        connection.rollback()


@pytest.mark.parametrize("name", ["", "a" * 41, "new\nline", "per%cent"])
def test_table_names_that_cannot_be_written_are_refused(name: str) -> None:
    """Before any SQL, with the rule in the message."""
    with pytest.raises(ConfigurationError, match="table name must be"):
        schema.actions_table(name)
