"""``doctor``: each trouble is caused for real, and must be named; what is healthy must not be.

What it says of Prefect: tests/acceptance/test_doctor.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, NullPool, create_engine, make_url

from prefect_claim_dispatch import cli, databases
from prefect_claim_dispatch.diagnosing import asking
from prefect_claim_dispatch.diagnosing.examining import Patient, examine
from prefect_claim_dispatch.diagnosing.findings import Finding, Level
from tests.conftest import MIGRATE
from tests.kit import postgres
from tests.kit.commanding import Answer
from tests.kit.tables import TABLE, add, add_many, change, claim_due, seconds_from_now

PROCESSORS = ("tests.acceptance.processors",)
NOTHING_LISTENS = "postgresql://someone:hunter2@127.0.0.1:1/nothing"
MINUTE = timedelta(minutes=1)
GRANTS = Path(__file__).parents[2] / "deployments" / "grants.sql"


Doctor = Callable[..., Answer]


@pytest.fixture
def doctor(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """The command, in this process: Prefect takes seconds to import, and is imported here already."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str) -> Answer:
        code = cli.run(["doctor", *arguments])
        output, errors = capfd.readouterr()
        return Answer(code=code, output=output, errors=errors)

    return run


@pytest.fixture
def direct_url(postgres_server: postgres.Server) -> Iterator[str]:
    """A migrated database with no pooler before it, whatever the run asks for."""
    with postgres.fresh_database(postgres_server, prepare=MIGRATE) as url:
        yield url
        databases.engine_for(url).dispose()


@pytest.fixture
def admin(direct_url: str) -> Iterator[psycopg.Connection]:
    """A superuser's session in that database, autocommitting."""
    with psycopg.connect(direct_url.replace("+psycopg", ""), autocommit=True) as connection:
        yield connection


def findings(url: str | Engine, check: str, **more: Any) -> list[Finding]:
    """What the doctor finds in *check* and has something to do for."""
    url = url.url.render_as_string(hide_password=False) if isinstance(url, Engine) else url
    found = examine(Patient(url=url, **more))
    databases.engine_for(url).dispose()
    return [finding for finding in found if finding.check == check and finding.level != Level.OK]


def the_finding(url: str | Engine, check: str, **more: Any) -> tuple[Level, str]:
    """The only one of that check, which says what to do."""
    (finding,) = findings(url, check, **more)
    assert finding.remedy
    return finding.level, finding.what


def test_healthy_table_has_no_errors(database_url: str, doctor: Doctor) -> None:
    """Exit code 0, one document; the warnings are about what was not given: processors, and an API."""
    told = doctor("--database-url", database_url)
    answered = doctor("--database-url", database_url, "--json")

    document = answered.document
    assert (told.code, answered.code) == (0, 0)
    assert "errors: 0, warnings: 2" in told.output
    assert (document["table"], document["errors"], document["warnings"]) == ("action_logs", 0, 2)
    assert {finding["check"] for finding in document["findings"] if finding["level"] == "warning"} == {
        "processors",
        "prefect",
    }
    assert all(bool(finding["do"]) == (finding["level"] != "ok") for finding in document["findings"])


def test_unreachable_database_is_an_error_without_its_password(doctor: Doctor) -> None:
    """And what can be said of the rest is said all the same."""
    answer = doctor("--database-url", NOTHING_LISTENS, "--json")

    found = {finding["check"]: finding for finding in answer.document["findings"]}
    assert (answer.code, found["database"]["level"]) == (1, "error")
    assert "can't be reached" in found["database"]["what"]
    assert set(found) == {"database", "processors", "prefect"}
    assert "hunter2" not in answer.output + answer.errors


def test_doctor_makes_no_database_where_there_is_none(tmp_path: Path, doctor: Doctor) -> None:
    """To look must not change anything; SQLite makes a file whenever it is asked for one."""
    answer = doctor("--database-url", f"sqlite:///{tmp_path / 'none.db'}")

    assert answer.code == 1
    assert "there is no file" in answer.output
    assert not (tmp_path / "none.db").exists()


def test_missing_table_is_an_error(empty_database_url: str) -> None:
    """With the command that makes it."""
    create_engine(empty_database_url, poolclass=NullPool).connect().close()  # SQLite's file is there then, and empty
    level, what = the_finding(empty_database_url, "schema")

    assert level == Level.ERROR
    assert "run: claim-dispatch db upgrade" in what


def test_revision_of_another_version_is_an_error(engine: Engine) -> None:
    """An old package beside a new table."""
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE action_logs_version SET version_num = '9999'")

    assert the_finding(engine, "schema")[0] == Level.ERROR


def test_missing_column_is_an_error(direct_url: str, admin: psycopg.Connection) -> None:
    """A table of the application's own migrations, which have forgotten one: no revision tells it."""
    admin.execute("ALTER TABLE action_logs DROP COLUMN run_id")

    assert the_finding(direct_url, "schema") == (Level.ERROR, "the table has no column run_id")


@pytest.mark.parametrize(
    ("grants", "told"),
    [
        (["SELECT"], "UPDATE on the table"),
        (["SELECT", "UPDATE (status)"], "UPDATE on column end_at, claimed_at"),
        (["UPDATE"], "SELECT on the table"),
        (["SELECT", "UPDATE"], None),
        (["SELECT", "UPDATE", "INSERT"], None),
    ],
    ids=str,
)
def test_missing_grant_is_named(
    direct_url: str, admin: psycopg.Connection, grants: list[str], told: str | None
) -> None:
    """Asked as a role that has not got all that a claim flow needs."""
    role = f"doctor_{os.urandom(4).hex()}"
    admin.execute(f"CREATE ROLE {role} LOGIN")
    for grant in grants:
        admin.execute(f"GRANT {grant} ON action_logs TO {role}")
    try:
        url = make_url(direct_url).set(username=role).render_as_string(hide_password=False)
        found = findings(url, "grants")
    finally:
        admin.execute(f"DROP OWNED BY {role}")
        admin.execute(f"DROP ROLE {role}")

    assert [finding.level for finding in found] == ([Level.ERROR] if told else [])
    assert all(told in finding.what for finding in found if told)


def test_role_that_publishes_only_has_no_errors(direct_url: str, admin: psycopg.Connection, doctor: Doctor) -> None:
    """By the grants that we give: nothing is wrong with it, and what it may not see is said in one line."""
    role = f"publisher_{os.urandom(4).hex()}"
    admin.execute(GRANTS.read_text(encoding="utf-8"))  # pyright: ignore[reportArgumentType] - no part of it is a user's
    admin.execute(f"CREATE ROLE {role} LOGIN IN ROLE claim_dispatch_publisher")
    try:
        url = make_url(direct_url).set(username=role).render_as_string(hide_password=False)
        answer = doctor("--database-url", url, "--json")
    finally:
        databases.engine_for(url).dispose()
        admin.execute(f"DROP ROLE {role}")

    told = [(one["check"], one["what"]) for one in answer.document["findings"] if one["check"] in ("grants", "rows")]
    assert (answer.code, answer.document["errors"]) == (0, 0)
    assert told == [
        ("grants", "this role may publish"),
        ("rows", "this role may publish; how actions stand, it may not see"),
    ]


def test_missing_index_is_an_error(engine: Engine) -> None:
    """Claims would read the whole backlog, and nothing else would tell."""
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_action_logs_due")

    level, what = the_finding(engine, "indexes")
    assert level == Level.ERROR
    assert "missing: ix_action_logs_due" in what


def test_invalid_index_is_an_error(direct_url: str, admin: psycopg.Connection) -> None:
    """What CREATE INDEX CONCURRENTLY leaves behind when it fails."""
    admin.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_action_logs_leases'::regclass")

    level, what = the_finding(direct_url, "indexes")
    assert level == Level.ERROR
    assert "invalid, so never used: ix_action_logs_leases" in what


def test_long_transaction_is_named_by_doctor(direct_url: str, admin: psycopg.Connection) -> None:
    """Somebody's forgotten session makes every claim slower, and nothing in the table shows it."""
    with psycopg.connect(direct_url.replace("+psycopg", "")) as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT count(*) FROM action_logs")
        pid = other.info.backend_pid

        level, what = the_finding(direct_url, "vacuum", patience=timedelta(0))
        patient = findings(direct_url, "vacuum", patience=MINUTE)

    assert (level, patient) == (Level.WARNING, [])
    assert f"session {pid} of postgres" in what
    assert findings(direct_url, "vacuum", patience=timedelta(0)) == []


def test_prepared_transaction_is_named(private_postgres: Callable[..., postgres.Server]) -> None:
    """It survives its session, and a restart of the server."""
    server = private_postgres(durable=False)
    with server.connect() as connection:
        connection.execute("ALTER SYSTEM SET max_prepared_transactions = 2")
    server.restart("immediate")
    with postgres.fresh_database(server, prepare=MIGRATE) as url, server.connect(make_url(url).database) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO action_logs (type) VALUES ('a')")
        connection.execute("PREPARE TRANSACTION 'forgotten'")

        level, what = the_finding(url, "vacuum", patience=timedelta(0))
        connection.execute("ROLLBACK PREPARED 'forgotten'")

    assert level == Level.WARNING
    assert "prepared transaction forgotten" in what


def test_dead_row_versions_are_counted(direct_url: str, admin: psycopg.Connection) -> None:
    """What a pinned horizon, or an autovacuum that is off, leaves in the way of claims."""
    admin.execute("ALTER TABLE action_logs SET (autovacuum_enabled = false)")
    admin.execute("INSERT INTO action_logs (type) SELECT 'a' FROM generate_series(1, 60000)")
    admin.execute("UPDATE action_logs SET priority = 1")
    admin.execute("DELETE FROM action_logs")
    admin.execute("SELECT pg_stat_force_next_flush()")

    level, what = the_finding(direct_url, "vacuum")
    assert level == Level.WARNING
    assert "dead row versions" in what


def test_read_only_database_is_an_error(direct_url: str, admin: psycopg.Connection) -> None:
    """As after a failover that has left us with the standby."""
    admin.execute(f"ALTER DATABASE {make_url(direct_url).database} SET default_transaction_read_only = on")

    level, what = the_finding(direct_url, "database")
    assert level == Level.ERROR
    assert "read-only" in what


@pytest.mark.parametrize("hours", [-1, 1])
def test_clock_that_differs_is_named(direct_url: str, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """Only the database's clock decides; the warning is for whoever compares logs."""

    class Skewed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    monkeypatch.setattr(asking, "datetime", Skewed)

    level, what = the_finding(direct_url, "clock")
    assert level == Level.WARNING
    assert f"59 min {'behind' if hours > 0 else 'ahead of'}" in what or "60 min" in what


def test_pooler_is_noticed(pgbouncer_url: str) -> None:
    """So that whoever looks at prepared statements knows why there are none."""
    found = examine(Patient(url=pgbouncer_url))
    databases.engine_for(pgbouncer_url).dispose()

    assert [finding.level for finding in found if finding.check == "pooler"] == [Level.OK]


def test_rows_that_are_stuck_are_named(engine: Engine) -> None:
    """Due for long, of a type that nobody has, dead: each by its type, and with what to do."""
    add(engine, "t.note", due_in=-3600)
    add(engine, "t.note", due_in=-1)
    add(engine, "nobody.has.it", due_in=-600)
    add(engine, "t.fail", status="dead", settled_at=seconds_from_now(-1))

    found = {finding.what: finding.level for finding in findings(engine, "rows", processors=PROCESSORS)}

    assert found == {
        "due, and no processor here takes them: nobody.has.it (1, for 10 min)": Level.WARNING,
        "due for long: t.note (2, for 60 min)": Level.WARNING,
        "1 dead: t.fail (1)": Level.WARNING,
    }


def test_action_that_holds_others_of_its_key_back_is_named(engine: Engine) -> None:
    """Due for long, and no flow will claim them: what has to be done is to be done to the one before them."""
    waiting, gone, running = add_many(
        engine,
        [{"type": type_, "ordering_key": key} for type_, key in (("t.note", "k"), ("gone", "l"), ("t.note", "m"))],
    )
    add_many(engine, [{"type": "t.note", "ordering_key": key, "due_in": -1800} for key in "kklm"])
    change(engine, waiting, claim_count=1, end_at=seconds_from_now(3600 * 24 * 30))
    claim_due(engine, "t.note", limit=1)

    (told,) = [finding for finding in findings(engine, "rows", processors=PROCESSORS) if "ordering key" in finding.what]

    assert told.what == (
        "due actions wait for the one before them of their ordering key: "
        f"#{waiting} t.note, before 2 of 'k' for 30 min, waits 29 d for its next attempt; "
        f"#{gone} gone, before 1 of 'l' for 30 min, has no processor here"
    )
    assert told.level == Level.WARNING
    assert f"#{running} " not in told.what
    patient = findings(engine, "rows", processors=PROCESSORS, patience=timedelta(hours=1))
    assert not [finding for finding in patient if "ordering key" in finding.what]


def test_lease_that_nobody_takes_back_is_an_error(engine: Engine) -> None:
    """The surest sign that no claim flow runs."""
    id_ = add(engine)
    claim_due(engine)
    change(engine, id_, lease_expires_at=seconds_from_now(-30))

    level, what = the_finding(engine, "rows", patience=timedelta(seconds=20))

    assert findings(engine, "rows", patience=MINUTE) == []
    assert level == Level.ERROR
    assert "leases are over, and nobody takes them back: 1, the oldest for 3" in what


def test_action_that_is_claimed_for_hours_is_named(engine: Engine) -> None:
    """Somebody renews its lease and never comes to an end."""
    id_ = add(engine)
    claim_due(engine)
    change(engine, id_, claimed_at=seconds_from_now(-3 * 3600))

    assert the_finding(engine, "rows") == (
        Level.WARNING,
        "an action has been claimed for 3 h, and its lease is renewed",
    )


def test_modules_that_do_not_import_are_an_error(sqlite_url: str, doctor: Doctor) -> None:
    """The claim flow would fail at once, every time."""
    answer = doctor("--database-url", sqlite_url, "--processors", "no_such_module", "--json")

    (told,) = [finding for finding in answer.document["findings"] if finding["check"] == "processors"]
    assert (answer.code, told["level"]) == (1, "error")
    assert "no_such_module" in told["what"]


def test_without_prefect_the_database_is_examined_all_the_same(sqlite_url: str) -> None:
    """A web application has the command line too."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(['httpx', 'prefect'])\n"
        "from prefect_claim_dispatch import cli\n"
        f"sys.exit(cli.run(['doctor', '--database-url', {sqlite_url!r}, '--processors', 'json']))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "ok       schema" in done.stdout
    assert "Prefect is not installed here, so nothing is known" in done.stdout
    assert "pip install 'prefect-claim-dispatch[prefect]'" in done.stdout


def test_doctor_changes_nothing(engine: Engine) -> None:
    """It may be asked at any moment, beside running claim flows."""
    add(engine, due_in=-3600)
    with engine.connect() as connection:
        before = connection.execute(TABLE.select()).all()

    findings(engine, "rows")

    with engine.connect() as connection:
        assert connection.execute(TABLE.select()).all() == before
