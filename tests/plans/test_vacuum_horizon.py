"""A long transaction pins the vacuum horizon: what settled rows leave in the index stays, and claims step over it.

The slow-down is bounded: each claim looks once at the pages in which dead rows of its lanes and their entries lie.
`doctor` names the transaction (tests/conformance/test_doctor.py). When it has ended, VACUUM takes the entries away.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from prefect_claim_dispatch.statements.claim import claim
from tests.conftest import MIGRATE
from tests.kit import postgres
from tests.kit.tables import TABLE
from tests.plans.explained import Plan, explained

CHURN, LIMIT = 20_000, 100
DEAD_ROWS_PER_PAGE = 20  # at the least: fifty of them lie in a page of the table, and their entries in one of the index
DUE = """INSERT INTO action_logs (type, end_at)
    SELECT 'a', now() - interval '1 hour' + i * interval '1 ms' FROM generate_series(1, %s) i"""
CHURNED = (
    """UPDATE action_logs SET status = 'claimed', claimed_at = now(), lease_expires_at = now() + interval '1 hour',
           claim_count = claim_count + 1 WHERE status = 'pending'""",
    """UPDATE action_logs SET status = 'processed', processed_at = now(), settled_at = now(), lease_expires_at = NULL
       WHERE status = 'claimed'""",
)


@pytest.fixture
def connection(postgres_server: postgres.Server) -> Iterator[psycopg.Connection]:
    """A table on which nothing but the test vacuums."""
    with (
        postgres.fresh_database(postgres_server, prepare=MIGRATE) as url,
        psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection,
    ):
        connection.execute("ALTER TABLE action_logs SET (autovacuum_enabled = false)")
        yield connection


def claimed(connection: psycopg.Connection) -> Plan:
    """A claim of LIMIT of the rows that are due, rolled back."""
    parameters = {
        "limit": LIMIT,
        "lease_seconds": 60.0,
        "claimed_by": "run",
        "run_id": "run",
        "type_0": "a",
        "priority_0": 0,
    }
    connection.autocommit = False
    try:
        return explained(connection, claim(TABLE, "postgresql", (1,)), parameters, "force_generic_plan")
    finally:
        connection.autocommit = True


def test_held_snapshot_slows_a_claim_by_the_pages_of_dead_rows_alone(connection: psycopg.Connection) -> None:
    """No row is read in vain more than once, none is sorted, and it is over when the transaction is."""
    connection.execute(DUE, [LIMIT])
    fresh = claimed(connection)
    with psycopg.connect(connection.info.dsn) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM action_logs")
        connection.execute(DUE, [CHURN])
        for statement in CHURNED:
            connection.execute(statement)
        connection.execute("VACUUM action_logs")
        connection.execute(DUE, [LIMIT])

        pinned = claimed(connection)
        holder.rollback()
    connection.execute("VACUUM action_logs")
    after = claimed(connection)

    figures = f"buffers: fresh {fresh.buffers}, pinned {pinned.buffers}, after {after.buffers}"
    print(figures)
    assert {plan.rows_touched for plan in (fresh, pinned, after)} == {fresh.rows_touched}, figures
    assert after.buffers < pinned.buffers <= fresh.buffers + CHURN // DEAD_ROWS_PER_PAGE, figures
