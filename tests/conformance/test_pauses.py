"""Pauses: an operator has a type not claimed for a while, and everything else goes on."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from prefect_claim_dispatch import claiming, engines, operations, processor, publish, surveying, testing
from prefect_claim_dispatch.cli import run as command
from prefect_claim_dispatch.diagnosing.examining import Patient, examine
from prefect_claim_dispatch.diagnosing.findings import Finding, Level
from prefect_claim_dispatch.errors import DatabaseError, InvalidTypeError, SchemaMissingError
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.schema import actions_table, pauses_table
from prefect_claim_dispatch.settling import settle
from tests.kit.looping import ThreadDispatcher, run_loop, staying_loop
from tests.kit.tables import (
    POLICY,
    TABLE,
    add,
    add_many,
    by_status,
    claim_due,
    expire_leases,
    row,
    statements_of,
    verdicts,
)
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def without_pauses(engine: Engine) -> Engine:
    """An application's own table, made before there were pauses."""
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE action_logs_paused"))
    return engine


def due_types(engine: Engine) -> list[str]:
    return sorted({lane.type for lane in claiming.survey(engine, TABLE).due()})


def do_nothing() -> None: ...


def test_paused_type_is_not_claimed_until_it_is_resumed(engine: Engine) -> None:
    """By its name or by a pattern; what only begins alike is another type."""
    add_many(engine, [{"type": type_} for type_ in ("email", "email.welcome", "email.bill", "order.expire")])

    operations.pause(engine, "email.*")
    operations.pause(engine, "order.expire")

    assert due_types(engine) == ["email"]
    assert [raw.type for raw in claim_due(engine)] == ["email"]
    operations.resume(engine, "email.*")
    assert due_types(engine) == ["email.bill", "email.welcome"]
    operations.pause(engine, "*")
    assert due_types(engine) == []


def test_pausing_twice_is_pausing_once(engine: Engine) -> None:
    """Who comes second may say why; since when it is paused stays true."""
    assert operations.pause(engine, "a") is True
    (before,) = operations.paused(engine)
    assert operations.pause(engine, "a", reason="the provider is down") is False
    assert operations.pause(engine, "a") is False

    (pause,) = operations.paused(engine)
    assert (pause.type, pause.reason, pause.paused_at) == ("a", "the provider is down", before.paused_at)
    assert pause.paused_at is not None
    assert operations.resume(engine, "a") is True
    assert operations.resume(engine, "a") is False
    assert operations.paused(engine) == []


@pytest.mark.parametrize("wrong", ["", "a?", "[ab]", "line\nbreak", " a", "x" * 121, None, 7])
@pytest.mark.parametrize("operation", [operations.pause, operations.resume])
def test_what_is_no_pattern_is_refused_before_any_sql(operation: Any, wrong: Any) -> None:
    """A pause that means nothing would be taken for one that works."""
    with pytest.raises(InvalidTypeError):
        operation("postgresql://nobody@127.0.0.1:1/nothing", wrong)


def test_pause_joins_the_callers_transaction(engine: Engine) -> None:
    """As publishing does: what is rolled back was never paused."""
    with engine.connect() as connection:
        operations.pause(connection, "a")
        connection.rollback()

    assert operations.paused(engine) == []


def test_any_language_may_pause(engine: Engine) -> None:
    """A row with the type is enough."""
    add(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO action_logs_paused (type) VALUES ('a')"))

    assert due_types(engine) == []
    assert [pause.reason for pause in operations.paused(engine)] == [None]


def test_everything_but_claiming_goes_on(engine: Engine) -> None:
    """What is claimed may end, and may be taken back; operators and publishers are not in the way of each other."""
    first, second, third = add_many(engine, [{}, {}, {}])
    claimed = claim_due(engine, limit=2)
    operations.pause(engine, "a")

    settle(engine, TABLE, verdicts(Processed(), claimed[:1]))
    expire_leases(engine, second)
    rescued = rescue(engine, TABLE, lambda _: POLICY, limit=10)
    published = publish(engine, "a", {}).id
    cancelled = operations.cancel(engine, [third])
    retried = operations.retry(engine, [third])
    moved = operations.reschedule(engine, [third], delay=timedelta(0))

    assert row(engine, first).status == "processed"
    assert [settlement.id for settlement in rescued] == [second]
    assert published is not None
    assert cancelled == retried == moved == [third]
    assert by_status(engine) == {"processed": 1, "pending": 3}


def test_loop_leaves_paused_types_alone_and_says_how_many_wait(engine: Engine, dispatcher: ThreadDispatcher) -> None:
    """They are not unroutable: there is a processor. And an idle tick is still one question about them all."""
    registry = Registry()
    processor("a", registry=registry)(do_nothing)
    add_many(engine, [{}, {}, {"type": "stray"}])
    operations.pause(engine, "a")

    with statements_of(engine) as statements:
        report = run_loop(engine, registry, dispatcher).report()

    assert (report.claimed, report.held_back, report.unroutable) == (0, 2, 1)
    assert statements == ["survey", "count_due", "count_due"]


def test_loop_that_stays_goes_on_when_a_type_is_resumed(engine: Engine) -> None:
    """From the next survey on; no flow has to be started anew."""
    registry = Registry()
    processor("a", registry=registry)(do_nothing)
    add(engine)
    operations.pause(engine, "*")

    with statements_of(engine) as statements, staying_loop(engine, registry):
        wait_until(lambda: "survey" in statements, description="it has looked")
        before = by_status(engine)
        operations.resume(engine, "*")
        wait_until(lambda: by_status(engine) == {"processed": 1}, description="it went on", timeout=30)

    assert before == {"pending": 1}


def test_table_without_pauses_works_as_before(without_pauses: Engine, dispatcher: ThreadDispatcher) -> None:
    """Applications that own their migrations get the second table when they add it, and are not broken until then."""
    registry = Registry()
    processor("a", registry=registry)(do_nothing)
    add_many(without_pauses, [{}, {}])

    report = run_loop(without_pauses, registry, dispatcher).report()

    assert report.processed == 2
    with pytest.raises(SchemaMissingError, match="action_logs_paused"):
        operations.pause(without_pauses, "a")


def test_table_without_pauses_is_asked_for_them_seldom_and_notices_them(
    without_pauses: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time in vain is an error in the server's log; and what is made meanwhile holds from then on."""
    add(without_pauses)
    with statements_of(without_pauses) as sent:
        for _ in range(3):
            assert due_types(without_pauses) == ["a"]
    assert sent == ["survey"] * (1 + 3)  # the first was in vain

    pauses_table(TABLE.name).create(without_pauses)
    operations.pause(without_pauses, "a")
    assert due_types(without_pauses) == ["a"]
    monkeypatch.setattr(surveying, "ASK_AGAIN_SECONDS", 0.0)
    assert due_types(without_pauses) == []


def test_pauses_that_can_not_be_read_are_not_taken_for_none(without_pauses: Engine) -> None:
    """A table of another shape, or one that may not be read: what an operator has stopped must not go on for it."""
    with without_pauses.begin() as connection:
        connection.execute(text("CREATE TABLE action_logs_paused (kind text)"))
    add(without_pauses)

    with pytest.raises(DatabaseError):
        claiming.survey(without_pauses, TABLE)
    with pytest.raises((DatabaseError, DBAPIError)), without_pauses.begin() as connection:
        claiming.survey(connection, TABLE)


def test_table_without_pauses_does_not_spoil_a_transaction(without_pauses: Engine) -> None:
    """A drain in the test's own transaction surveys in it, and what failed there must not end it."""
    registry = Registry()
    processor("a", registry=registry)(do_nothing)

    with without_pauses.begin() as connection:
        publish(connection, "a", {})
        report = testing.drain(connection, registry)

    assert report.processed == 1


def test_metadata_has_both_tables(empty_database_url: str) -> None:
    """Applications hand both to their own migrations."""
    actions, pauses = actions_table("logs"), pauses_table("logs")
    engine = engines.create(empty_database_url)

    actions.metadata.create_all(engine)

    assert pauses.metadata is actions.metadata
    assert operations.pause(engine, "a", table="logs") is True
    assert claiming.survey(engine, actions).paused == ("a",)
    engine.dispose()


def test_commands_pause_and_resume(
    engine: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is on call sees what is paused, why, and how many wait for it."""
    monkeypatch.setenv("CLAIM_DISPATCH_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    add_many(engine, [{"type": "email.a"}, {"type": "email.b"}, {"type": "b"}])

    codes = [command(["pause", "email.*", "--reason", "provider down"]), command(["pause", "email.*"])]
    codes += [command(["resume", "email.a"]), command(["status"])]
    shown = capsys.readouterr()
    codes += [command(["resume", "email.*"]), command(["pause", "a?"])]

    assert codes == [0, 0, 1, 0, 0, 1]
    for line in ("email.* is paused", "email.* was paused already", "email.a was not paused", "provider down"):
        assert line in shown.out
    assert "email.* is paused, and means email.a too" in shown.err
    assert "only wildcard is *" in capsys.readouterr().err


def test_status_in_json_has_the_pauses(
    engine: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For whoever watches by program."""
    monkeypatch.setenv("CLAIM_DISPATCH_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    add_many(engine, [{}, {}])
    operations.pause(engine, "a", reason="why")

    assert command(["status", "--json"]) == 0

    shown = capsys.readouterr().out
    assert '"paused": [' in shown
    assert '"reason": "why"' in shown
    assert '"due": 2' in shown


def test_doctor_warns_of_what_waits_for_a_paused_type(engine: Engine) -> None:
    """And calls it neither unroutable nor stuck, whose remedies would be wrong."""
    add_many(engine, [{"due_in": -7200}, {"due_in": -7200}])
    operations.pause(engine, "a", reason="provider down")

    (finding,) = found(engine, "rows")

    assert (finding.level, finding.what) == (
        Level.WARNING,
        "due, and paused by an operator: a (2: provider down)",
    )
    assert "claim-dispatch resume" in finding.remedy


def test_doctor_says_where_nothing_can_be_paused(without_pauses: Engine) -> None:
    """It works, but whoever is on call should know before they need it."""
    (finding,) = found(without_pauses, "pauses")

    assert finding.level is Level.WARNING


def found(engine: Engine, check: str) -> list[Finding]:
    url = engine.url.render_as_string(hide_password=False)
    return [finding for finding in examine(Patient(url=url, processors=())) if finding.check == check]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Rescues and strays are logged."""
    caplog.set_level(logging.CRITICAL, logger="prefect_claim_dispatch")
