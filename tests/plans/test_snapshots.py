"""The SQL that this package sends, for database administrators to read: ``snapshots/<statement>.<database>.sql``.

After a wanted change: ``UPDATE_SQL_SNAPSHOTS=1 pytest tests/plans/test_snapshots.py``, and read the difference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import Dialect, Executable
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from prefect_claim_dispatch.statements import (
    begin,
    bury,
    claim,
    diagnose,
    limit,
    ordering,
    outstanding,
    pause,
    publish,
    recognise,
    renew,
    rescue,
    settle,
    survey,
    wake,
)
from tests.kit.tables import TABLE

# Another version writes the same with other names and spaces.
pytestmark = pytest.mark.skipif(
    not sqlalchemy.__version__.startswith("2.0."), reason="written down with SQLAlchemy 2.0"
)

FOLDER = Path(__file__).parent / "snapshots"
UPDATE = "UPDATE_SQL_SNAPSHOTS"
CLAUSE = re.compile(r" +(RETURNING|ORDER BY|UNION ALL|JOIN LATERAL|FOR UPDATE|FROM|WHERE|SET|AND|THEN|ELSE) ")
# With names instead of question marks, which is what one wants to read.
DIALECTS: dict[str, Dialect] = {
    "postgresql": PGDialect_psycopg(paramstyle="named"),
    "sqlite": SQLiteDialect_pysqlite(paramstyle="named"),
}
STATEMENTS: dict[str, Callable[[str], Executable]] = {
    "publish_one": lambda dialect: publish.insert_one(TABLE, dialect),
    "publish_keyless": lambda dialect: publish.insert_keyless(TABLE, dialect, ("type", "payload")),
    "publish_many_keyless": lambda dialect: publish.insert_many_keyless(TABLE, dialect),
    "publish_many": lambda dialect: publish.insert_many(TABLE, dialect),
    "publish_existing": lambda dialect: publish.existing(TABLE, dialect),
    "publish_replace": lambda dialect: publish.replace_pending(TABLE, dialect),
    "publish_lock": lambda dialect: publish.lock_holders(TABLE, dialect),
    "survey": lambda dialect: survey.survey(TABLE, dialect),
    "survey_without_pauses": lambda dialect: survey.survey(TABLE, dialect, has_pauses=False),
    "running": lambda _: limit.running(TABLE),
    "pause": lambda _: pause.pause(TABLE),
    "explain_pause": lambda _: pause.explain_pause(TABLE),
    "resume": lambda _: pause.resume(TABLE),
    "paused": lambda dialect: pause.paused(TABLE, dialect),
    "count_due": lambda _: survey.count_due(TABLE),
    "count_due_bounded": lambda _: survey.count_due(TABLE, bounded=True),
    "rescue": lambda dialect: rescue.expired(TABLE, dialect),
    "rescue_endless": lambda dialect: rescue.endless(TABLE, dialect),
    "unheard": lambda dialect: rescue.unheard(TABLE, dialect),
    "claim_one_lane": lambda dialect: claim.claim(TABLE, dialect, (1,)),
    "claim_one_lane_without_keys": lambda dialect: claim.claim(TABLE, dialect, (1,), windowed=False),
    "claim_behind": lambda dialect: claim.claim_behind(TABLE, dialect, (1,)),
    "candidates": lambda dialect: claim.candidates(TABLE, dialect, (1,)),
    "claim_one": lambda dialect: claim.claim_one(TABLE, dialect),
    "depth": lambda dialect: ordering.depth(TABLE, dialect, 1),
    "heads": lambda dialect: ordering.heads(TABLE, dialect, further=False),
    "heads_further": lambda dialect: ordering.heads(TABLE, dialect, further=True),
    "bury": lambda dialect: bury.bury(TABLE, dialect),
    "claim_two_types_two_priorities_until": lambda dialect: claim.claim(TABLE, dialect, (2, 1), bounded=True),
    "begin": lambda dialect: begin.begin(TABLE, dialect),
    "begin_once": lambda dialect: begin.begin_once(TABLE, dialect),
    "renew": lambda dialect: renew.renew(TABLE, dialect),
    "settle": lambda dialect: settle.settle(TABLE, dialect),
    "outstanding": lambda dialect: outstanding.outstanding(TABLE, dialect, further=False),
    "outstanding_further": lambda dialect: outstanding.outstanding(TABLE, dialect, further=True),
    "held": lambda dialect: outstanding.held(TABLE, dialect),
    "follow": lambda dialect: outstanding.follow(TABLE, dialect),
    "take": lambda dialect: outstanding.take(TABLE, dialect),
    "take_again": lambda dialect: outstanding.take(TABLE, dialect, again=True),
    "identify": lambda _: outstanding.identify(),
    "recognise": lambda dialect: recognise.recognise(TABLE, dialect),
    "doctor_server": diagnose.server,
    "doctor_indexes": lambda dialect: diagnose.indexes_of(TABLE, dialect),
    "doctor_claims": lambda _: diagnose.claims_held(TABLE),
    "doctor_blocking": lambda dialect: diagnose.blocking(TABLE, dialect),
}
ON_POSTGRESQL: dict[str, Executable] = {
    "lock_type": limit.lock_type(TABLE),
    "doctor_rights": diagnose.columns_and_rights(TABLE),
    "doctor_tuples": diagnose.tuples_of(TABLE),
    "doctor_pins": diagnose.pins(),
    "wake_up": wake.wake_up(TABLE),
    "wake": wake.wake(TABLE),
    "probe": wake.probe(),
}
SNAPSHOTS = {f"{name}.{dialect}.sql" for name in STATEMENTS for dialect in DIALECTS}
SNAPSHOTS |= {f"{name}.postgresql.sql" for name in ON_POSTGRESQL}


def sql_of(statement: Executable, dialect: str) -> str:
    """The statement as text, a clause a line, and how it is parameterised."""
    compiled = statement.compile(dialect=DIALECTS[dialect])  # pyright: ignore[reportAttributeAccessIssue] - a ClauseElement
    lines = CLAUSE.sub(r"\n\1 ", str(compiled)).splitlines()
    fixed = {name: value for name, value in sorted(compiled.params.items()) if value is not None}
    heading = [f"-- {name} = {value!r}" for name, value in fixed.items()]
    return "\n".join([*heading, *filter(None, map(str.strip, lines))]) + ";\n"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_is_as_written_down(name: str, dialect: str) -> None:
    """A change of the SQL is seen in review, and by whoever must grant, index or explain it."""
    assert_as_written_down(name, STATEMENTS[name](dialect), dialect)


@pytest.mark.parametrize("name", ON_POSTGRESQL)
def test_statement_of_one_database_is_as_written_down(name: str) -> None:
    """The same, for what asks PostgreSQL's catalog, which SQLite has not got."""
    assert_as_written_down(name, ON_POSTGRESQL[name], "postgresql")


def assert_as_written_down(name: str, statement: Executable, dialect: str) -> None:
    file = FOLDER / f"{name}.{dialect}.sql"
    sql = sql_of(statement, dialect)
    if os.environ.get(UPDATE):
        FOLDER.mkdir(exist_ok=True)
        file.write_text(sql)

    assert file.exists(), f"run again with {UPDATE}=1"
    assert file.read_text() == sql, f"if that is what you want, run again with {UPDATE}=1"


def test_no_snapshot_is_left_over() -> None:
    """A statement that is gone must not be read by anybody."""
    left_over = [file for file in FOLDER.glob("*") if file.name not in SNAPSHOTS]
    if os.environ.get(UPDATE):
        for file in left_over:
            file.unlink()
        return

    assert left_over == []
