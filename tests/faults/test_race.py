"""Processes race for one backlog, claiming and settling as fast as they can: each action is executed once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from prefect_claim_dispatch import engines
from tests.kit.lives import said
from tests.kit.processes import Processes
from tests.kit.tables import TABLE
from tests.kit.waiting import wait_until

BACKLOGS = {
    "postgresql": """
        INSERT INTO action_logs (type, priority, end_at, ordering_key)
        SELECT 'type.' || mod(i, 5), mod(i, 3), now() - interval '1 hour' + i * interval '1 ms',
               CASE WHEN mod(i, 100) = 0 THEN 'key ' || mod(i, 7) END
        FROM generate_series(1, {number}) i""",
    "sqlite": """
        WITH RECURSIVE series (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM series WHERE i < {number})
        INSERT INTO action_logs (type, priority, end_at, ordering_key)
        SELECT 'type.' || i % 5, i % 3, datetime('now', '-1 hour'), CASE WHEN i % 100 = 0 THEN 'key ' || i % 7 END
        FROM series""",
}


def fill(engine: Engine, number: int) -> None:
    """A backlog of several types and priorities, a few of them with ordering keys."""
    with engine.begin() as connection:
        connection.exec_driver_sql(BACKLOGS[engine.dialect.name].format(number=number))


def executions(ledgers: list[Path]) -> Counter[str]:
    """How often each (id, claim_count) was executed, by the processes' own account."""
    return Counter(line for ledger in ledgers for line in ledger.read_text().splitlines())


def assert_each_once(url: str, children: Processes, folder: Path, *, processes: int, number: int, limit: int) -> None:
    engine = engines.create(url)
    fill(engine, number)
    start, ledgers = folder / "start", [folder / f"ledger-{name}" for name in range(processes)]
    started = [
        children.python("-m", "tests.kit.lives", "race", url, str(start), str(ledger), str(limit), str(processes))
        for ledger in ledgers
    ]
    for child in started:
        wait_until(
            lambda child=child: said(child.output).get("ready") or not child.is_running,
            description="a racer is ready",
            timeout=60,
        )

    start.touch()
    for child in started:
        child.expect_success(timeout=120)

    executed = executions(ledgers)
    with engine.connect() as connection:
        state = TABLE.c.status, TABLE.c.claim_count
        rows = connection.execute(select(*state, func.count()).group_by(*state)).all()
    assert [tuple(found) for found in rows] == [("processed", 1, number)]
    assert executed == Counter(f"{id_} 1" for id_ in range(1, number + 1))
    assert all(ledger.stat().st_size for ledger in ledgers), "somebody did not race"
    engine.dispose()


@pytest.mark.timeout(240)
def test_eight_processes_execute_each_row_once_on_postgresql(
    postgres_url: str, children: Processes, tmp_path: Path
) -> None:
    """S1, S7: 20,000 rows, ordering keys among them; no row twice, none left, and no claim in vain."""
    assert_each_once(postgres_url, children, tmp_path, processes=8, number=20_000, limit=200)


def test_four_processes_execute_each_row_once_on_sqlite(sqlite_url: str, children: Processes, tmp_path: Path) -> None:
    """The same where only one can write at a time; "database is locked" reaches nobody."""
    assert_each_once(sqlite_url, children, tmp_path, processes=4, number=2_000, limit=50)
