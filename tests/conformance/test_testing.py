"""What an application's tests get: published actions as values, what is due run here and now, and time that moves."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect import flow, task
from prefect.logging import get_run_logger
from pydantic import BaseModel
from sqlalchemy import Connection, Engine, create_engine, literal, select, text, update
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from prefect_claim_dispatch import (
    Action,
    Cancel,
    Snooze,
    claiming,
    deployment_processor,
    operations,
    processor,
    publish,
    testing,
)
from prefect_claim_dispatch.dialects import now
from prefect_claim_dispatch.dispatching.draining import MAX_CLAIMS
from prefect_claim_dispatch.errors import (
    ConfigurationError,
    EndlessDrainError,
    InvalidInstantError,
    RegistrationError,
    SchemaMissingError,
    UnexpectedActionsError,
)
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.reports import DispatchReport
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.schema import actions_table
from prefect_claim_dispatch.settling import settle_action
from tests.kit.logged import functions_in
from tests.kit.tables import TABLE, add, change, claim_due, expire_leases, row, seconds_from_now

AT_ONCE = timedelta(0)
MINUTE = timedelta(minutes=1)
LATER = datetime(2040, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """A connection as an application has it, not of our making; what it did is rolled back at the end."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        yield connection
        connection.rollback()
    engine.dispose()


def registry_with(**functions: Any) -> Registry:
    """A registry of the test's own, with a processor for each type; ``_`` stands for a dot."""
    registry = Registry()
    for type_, function in functions.items():
        processor(type_.replace("_", "."), registry=registry)(function)
    return registry


def do_nothing() -> None:
    """Do as little as a processor can."""


class Order(BaseModel):
    """A payload that must fit."""

    number: int
    lines: list[str] = []


# What was published


class TestPublished:
    """Looking."""

    def test_open_transaction_shows_what_it_published(self, connection: Connection) -> None:
        """The usual test rolls everything back: what it published is in no other transaction, ever."""
        receipt = publish(connection, "email.welcome", {"to": "a"}, meta={"from": "web"}, rules={"==": [1, 1]})

        (action,) = testing.published(connection)

        assert action.id == receipt.id
        assert (action.type, action.status, action.priority) == ("email.welcome", "pending", 0)
        assert (action.payload, action.meta, action.rules) == ({"to": "a"}, {"from": "web"}, {"==": [1, 1]})
        assert action.end_at is not None
        assert action.end_at.tzinfo is UTC

    def test_session_is_joined_and_left_as_it_was(self, database_url: str) -> None:
        """A look that committed would leave the test's rows to the next test."""
        engine = create_engine(database_url)
        sessions = scoped_session(sessionmaker(engine))
        publish(sessions, "a")

        seen = [testing.published(bind) for bind in (sessions, sessions())]
        sessions.rollback()

        assert [[action.type for action in actions] for actions in seen] == [["a"], ["a"]]
        assert testing.published(engine) == []
        sessions.remove()
        engine.dispose()

    def test_engine_and_url_show_what_was_committed(self, connection: Connection, database_url: str) -> None:
        """Somebody else's open transaction is not there for them."""
        publish(connection, "a")
        connection.commit()
        publish(connection, "b")

        seen = testing.published(connection.engine)

        assert [action.type for action in seen] == ["a"]
        connection.rollback()
        assert testing.published(database_url) == seen

    def test_no_bind_means_the_settings(self, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """As for publish, so that a test looks where the application writes."""
        monkeypatch.setenv("CLAIM_DISPATCH_DATABASE_URL", database_url)
        publish(None, "a")

        assert [action.type for action in testing.published()] == ["a"]

    def test_oldest_comes_first_and_every_status_is_there(self, engine: Engine) -> None:
        """In the order in which the test published them, so that it can unpack them."""
        ids = [add(engine, "b"), add(engine, "a"), add(engine, "b")]
        operations.cancel(engine, ids[0])

        actions = testing.published(engine)

        assert [action.id for action in actions] == ids
        assert [action.status for action in actions] == ["cancelled", "pending", "pending"]
        assert actions[0].errors[0]["kind"] == "cancelled"

    @pytest.mark.parametrize(
        ("wanted", "fits"),
        [
            ({}, True),
            ({"type": "order.ship"}, True),
            ({"type": "order"}, False),
            ({"status": "pending"}, True),
            ({"status": ["dead", "pending"]}, True),
            ({"status": "dead"}, False),
            ({"payload": {"number": 1, "lines": ["x", "y"], "gift": True}}, True),
            ({"payload": {"number": 1, "lines": ["y", "x"], "gift": True}}, False),
            ({"payload": {"number": 1, "lines": ["x"], "gift": True}}, False),
            ({"payload": {"number": 1, "lines": "x", "gift": True}}, False),
            ({"payload": {"number": 1}}, False),
            ({"payload__contains": {}}, True),
            ({"payload__contains": {"number": 1.0}}, True),
            ({"payload__contains": {"number": True}}, False),
            ({"payload__contains": {"gift": 1}}, False),
            ({"payload__contains": {"lines": ["y"]}}, True),
            ({"payload__contains": {"lines": ["z"]}}, False),
            ({"payload__contains": {"lines": []}}, True),
            ({"payload__contains": {"number": [1]}}, False),
            ({"payload__contains": {"number": {}}}, False),
            ({"payload__contains": {"none": None}}, False),
            ({"payload__contains": Order(number=1, lines=["x"])}, True),
            ({"payload__contains": Order(number=2)}, False),
            ({"meta": {"by": {"name": "me", "role": "admin"}}}, True),
            ({"meta": {"by": {"name": "me"}}}, False),
            ({"meta__contains": {"by": {"name": "me"}}}, True),
            ({"meta__contains": {"by": {"name": "you"}}}, False),
            ({"rules": {"==": [1, 1]}}, True),
            ({"rules": {"==": [1, 2]}}, False),
            ({"rules": None}, False),
            ({"end_at": LATER}, True),
            ({"end_at": LATER + MINUTE}, False),
            ({"end_at__from": LATER, "end_at__until": LATER}, True),
            ({"end_at__from": LATER + MINUTE}, False),
            ({"end_at__until": LATER - MINUTE}, False),
            ({"priority": 3}, True),
            ({"priority": 0}, False),
            ({"idempotency_key": "ship:1"}, True),
            ({"idempotency_key": None}, False),
            ({"ordering_key": None}, True),
            ({"ordering_key": "1"}, False),
            ({"type": "order.ship", "priority": 0}, False),
        ],
    )
    def test_filters_mean_the_same_on_both_databases(
        self, connection: Connection, wanted: dict[str, Any], fits: bool
    ) -> None:
        """`1` and `true` are told apart, as in JSON; contained means what PostgreSQL's ``@>`` means by it."""
        publish(
            connection,
            "order.ship",
            {"number": 1, "lines": ["x", "y"], "gift": True},
            end_at=LATER,
            priority=3,
            idempotency_key="ship:1",
            rules={"==": [1, 1]},
            meta={"by": {"name": "me", "role": "admin"}},
        )

        assert len(testing.published(connection, **wanted)) == fits

    def test_action_without_keys_and_rules_fits_none(self, connection: Connection) -> None:
        """None is a value to look for: this one was published without."""
        publish(connection, "a", ordering_key="k")

        assert testing.published(connection, rules=None, idempotency_key=None)
        assert not testing.published(connection, ordering_key=None)

    def test_foreign_payload_is_shown_as_it_is(self, engine: Engine) -> None:
        """A row of another program must not make every look fail."""
        add(engine, payload=[1, 2])

        (action,) = testing.published(engine)

        assert (action.payload, action.meta, action.rules) == ([1, 2], {}, None)
        assert testing.published(engine, payload__contains={"a": 1}) == []

    def test_table_of_another_name(self, connection: Connection) -> None:
        """As publish has it; and one that is not there is said to be missing, by the engine's own transaction."""
        actions_table("other_logs").metadata.create_all(connection)
        publish(connection, "a", table="other_logs")

        assert len(testing.published(connection, table="other_logs")) == 1
        assert testing.published(connection) == []
        connection.rollback()
        with pytest.raises(SchemaMissingError, match="db upgrade"):
            testing.published(connection.engine.url.render_as_string(hide_password=False), table="nowhere")


# What should have been


class TestAssertPublished:
    """Expecting."""

    def test_answers_with_what_fits(self, connection: Connection) -> None:
        """So that a test can look closer without looking again."""
        publish(connection, "a", {"n": 1})
        publish(connection, "a", {"n": 2})
        publish(connection, "b", {"n": 1})

        assert [action.payload["n"] for action in testing.assert_published(connection, "a")] == [1, 2]
        assert len(testing.assert_published(connection, "a", count=2)) == 2
        assert len(testing.assert_published(connection, "a", count=1, payload__contains={"n": 2})) == 1
        assert testing.assert_published(connection, "c", count=0) == []

    def test_failure_shows_what_is_there_and_where_it_differs(self, connection: Connection) -> None:
        """Whoever reads it must not have to run the test again with a print."""
        publish(connection, "email.goodbye", {"to": "a"})
        wrong = publish(connection, "email.welcome", {"to": "b"}, end_at=LATER, meta={"m": 1}, ordering_key="o")

        with pytest.raises(UnexpectedActionsError) as failure:
            testing.assert_published(connection, "email.welcome", payload={"to": "a"}, status="pending")

        first, second, third, advice = str(failure.value).split("\n")
        assert first == (
            'expected at least 1 action, found 0: type="email.welcome", payload={"to": "a"}, status=pending'
        )
        assert second == (
            f"  #{wrong.id} email.welcome pending, differs in payload: end_at=2040-06-01T12:00:00+00:00 priority=0 "
            'ordering_key="o" meta={"m": 1} payload={"to": "b"}'
        )
        assert "email.goodbye pending, differs in type: " in third
        assert advice.startswith("Publish what is missing")
        assert isinstance(failure.value, AssertionError)

    def test_failure_on_an_empty_table_says_who_could_not_be_seen(self, connection: Connection) -> None:
        """The usual reason: the application published in a transaction of its own that has not committed."""
        with pytest.raises(
            UnexpectedActionsError, match=r"exactly 2 actions, found 0(.|\n)*empty(.|\n)*after its commit"
        ):
            testing.assert_published(connection, "a", count=2)

    def test_too_many_are_named(self, connection: Connection) -> None:
        """Publishing twice is the commonest fault there is."""
        for _ in range(2):
            publish(connection, "a", rules={"==": [1, 1]})

        with pytest.raises(UnexpectedActionsError) as failure:
            testing.assert_published(connection, "a", count=1)

        lines = str(failure.value).split("\n")
        assert lines[0] == 'expected exactly 1 action, found 2: type="a"'
        assert sum("a pending, fits: " in line for line in lines) == 2
        assert 'rules={"==": [1, 1]}' in lines[1]
        assert "narrow the filters" in lines[-1]

    def test_failure_is_short_however_much_there_is(self, connection: Connection) -> None:
        """The nearest misses are shown, the rest is counted: nobody reads ten thousand lines."""
        for number in range(60):
            publish(connection, f"type.{number % 20}", {"text": "long\n" * 500})

        with pytest.raises(UnexpectedActionsError) as failure:
            testing.assert_published(connection, "type.7", payload={"text": "short"}, end_at=LATER)

        lines = str(failure.value).split("\n")
        assert len(lines) == 15
        assert max(map(len, lines)) == 200
        assert all(" type.7 " in line for line in lines[1:4])
        assert "... and 48 more; in all: type." in lines[-2]
        assert "12 more types" in lines[-2]

    @pytest.mark.parametrize("count", [-1, True, 1.0, "1"])
    def test_count_must_be_a_number_of_actions(self, connection: Connection, count: Any) -> None:
        """True would mean 1 without a word."""
        with pytest.raises(ConfigurationError, match="count must be an integer from 0"):
            testing.assert_published(connection, "a", count=count)


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ({"kind": "a", "what": 1}, ConfigurationError, "no filter is called 'kind', 'what'; there are type, status"),
        ({"type": None}, ConfigurationError, "'type' must be text, got NoneType"),
        ({"type": "a\n"}, ConfigurationError, "type has characters"),
        ({"status": "done"}, ConfigurationError, "status must be one of pending"),
        ({"status": 1}, ConfigurationError, "'status' must be a status or several, got int"),
        ({"status": []}, ConfigurationError, "'status' names no status"),
        ({"payload": "text"}, ConfigurationError, "'payload' can't be what was published: payload must be a JSON obj"),
        ({"payload__contains": {"a": {1}}}, ConfigurationError, "'payload__contains' can't be"),
        ({"meta": {"__rules": {}}}, ConfigurationError, "reserved key"),
        ({"rules": []}, ConfigurationError, "'rules' can't be"),
        ({"end_at": "2040-06-01"}, ConfigurationError, "'end_at' must be an aware datetime, got str"),
        ({"end_at__from": datetime(2040, 6, 1)}, InvalidInstantError, "is naive"),  # noqa: DTZ001 - refused
        ({"priority": True}, ConfigurationError, "'priority' must be an integer, got bool"),
        ({"priority": "1"}, ConfigurationError, "'priority' must be an integer, got str"),
        ({"idempotency_key": 7}, ConfigurationError, "'idempotency_key' must be text, got int"),
    ],
)
def test_filter_that_makes_no_sense_is_refused(
    connection: Connection, wanted: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A misspelt filter that is ignored would let the test pass for ever."""
    with pytest.raises(error, match=message.replace("(", r"\(")):
        testing.published(connection, **wanted)


@pytest.mark.parametrize("bind", [object(), 7])
def test_bind_that_is_none_is_refused(bind: Any) -> None:
    """By name of its kind, in the words of publish."""
    for use in (testing.published, testing.drain, lambda bind: testing.assert_published(bind, "a")):
        with pytest.raises(ConfigurationError, match="bind must be an Engine, Connection, Session, URL or None"):
            use(bind)


# What is due


class TestDrain:
    """Running."""

    @pytest.mark.parametrize("joined", [True, False])
    def test_every_outcome_is_settled_as_in_the_claim_flow(
        self, engine: Engine, connection: Connection, joined: bool
    ) -> None:
        """The same guard, policy and statements; see tests/acceptance/test_drain.py for the two side by side."""
        registry = Registry()

        @processor("ship", registry=registry)
        def ship(payload: Order) -> str:
            return f"shipped {payload.number}"

        @processor("later", registry=registry)
        def later() -> Snooze:
            return Snooze(MINUTE)

        @processor("never", registry=registry)
        async def never(action: Action) -> Cancel:
            return Cancel(f"not {action.key}")

        @processor("fail", registry=registry, backoff=MINUTE)
        def fail() -> None:
            raise ValueError("no luck")

        @processor("fail.last", registry=registry, max_attempts=1)
        async def fail_last() -> None:
            raise ValueError("no luck either")

        bind = connection if joined else engine
        for type_, payload in [
            ("ship", {"number": 1}),
            ("ship", {"number": "x"}),
            *((t, {}) for t in ("later", "never")),
        ]:
            publish(bind, type_, payload)
        publish(bind, "fail")
        publish(bind, "fail.last")
        publish(bind, "ship", {"number": 2}, rules={"==": [{"var": "payload.number"}, 3]})
        publish(bind, "nobody's")
        publish(bind, "ship", {"number": 3}, delay=MINUTE)

        report = testing.drain(bind, registry)

        assert report == DispatchReport(
            claimed=7,
            dispatched=5,
            processed=1,
            retrying=1,
            dead=2,
            snoozed=1,
            cancelled=2,
            unroutable=1,
            by_type={
                "ship": {"processed": 1, "dead": 1, "cancelled": 1},
                "later": {"snoozed": 1},
                "never": {"cancelled": 1},
                "fail": {"retrying": 1},
                "fail.last": {"dead": 1},
            },
        )
        statuses = [action.status for action in testing.published(bind)]
        assert statuses == [
            "processed", "dead", "pending", "cancelled", "pending", "dead", "cancelled", "pending", "pending",
        ]  # fmt: skip
        (failed,) = testing.published(bind, type="fail")
        assert (failed.fail_count, failed.errors[0]["message"]) == (1, "no luck")
        assert testing.drain(bind, registry) == DispatchReport(unroutable=1)

    def test_connection_is_joined_and_can_be_rolled_back(self, connection: Connection, engine: Engine) -> None:
        """A test that leaves nothing behind is the reason to have it."""
        publish(connection, "a")

        assert testing.drain(connection, registry_with(a=do_nothing)).processed == 1
        connection.rollback()

        assert testing.published(engine) == []

    def test_session_is_shared_with_the_processors(self, database_url: str) -> None:
        """Even when one of them commits or rolls it back, which ends the transaction under the drain."""
        engine = create_engine(database_url)
        with Session(engine) as session:

            def commit() -> None:
                session.commit()

            def roll_back() -> None:
                session.rollback()
                raise ValueError("undone")

            publish(session, "a")
            assert testing.drain(session, registry_with(a=commit)).processed == 1
            publish(session, "b")
            session.commit()

            report = testing.drain(session, registry_with(b=roll_back), limit=1)

            # What was rolled back under it, is gone: claim and all. It is counted as what it is.
            assert (report.claimed, report.lost_leases, report.retrying) == (1, 1, 0)
            assert [action.status for action in testing.published(session)] == ["processed", "pending"]
        engine.dispose()

    def test_engine_has_no_transaction_open_while_a_processor_runs(self, engine: Engine, database_url: str) -> None:
        """As in the flow: the claim is committed, so that the processor may use the database for itself."""
        id_ = add(engine, "a")
        seen: list[str] = []

        def look() -> None:
            seen.append(row(engine, id_).status)
            with engine.begin() as other:
                other.execute(update(TABLE).where(TABLE.c.id == id_).values(run_id="of its own"))

        report = testing.drain(database_url, registry_with(a=look))

        assert (report.processed, seen) == (1, ["claimed"])
        assert row(engine, id_).claimed_by == "drain"

    def test_tasks_and_flows_are_called_as_functions(self, engine: Engine) -> None:
        """Without a run, and so without a server; a run's logger says nothing instead of raising."""
        called: list[str] = []

        @task(retries=3)
        def a_task(payload: dict[str, Any]) -> None:
            get_run_logger().info("here")
            called.append(payload["name"])

        @flow
        async def a_flow(payload: dict[str, Any]) -> None:
            called.append(payload["name"])

        publish(engine, "t", {"name": "task"})
        publish(engine, "f", {"name": "flow"})

        assert testing.drain(engine, registry_with(t=a_task, f=a_flow)).processed == 2
        assert called == ["task", "flow"]
        with pytest.raises(Exception, match="no active flow or task run"):
            get_run_logger()

    def test_one_after_another_in_the_order_of_the_claim(self, engine: Engine) -> None:
        """Highest priority first; an action that is published meanwhile takes its place in the line."""
        done: list[int] = []

        def note(payload: dict[str, Any]) -> None:
            done.append(payload["n"])
            if payload["n"] == 3:
                publish(engine, "a", {"n": 4}, priority=9)

        for n, priority in [(1, 0), (2, 0), (3, 5)]:
            publish(engine, "a", {"n": n}, priority=priority, end_at=datetime(2020, 1, n, tzinfo=UTC))

        assert testing.drain(engine, registry_with(a=note)).claimed == 4
        assert done == [3, 4, 1, 2]

    def test_action_behind_one_of_its_ordering_key_waits(self, engine: Engine) -> None:
        """Due is not yet claimable: the drain ends, and does not wait for time that won't pass."""
        publish(engine, "fails", ordering_key="k")
        publish(engine, "follows", ordering_key="k")

        def fail() -> None:
            raise ValueError

        report = testing.drain(engine, registry_with(fails=fail, follows=do_nothing))

        assert (report.claimed, report.retrying) == (1, 1)

    def test_limit_is_the_most_claims(self, engine: Engine) -> None:
        """One step at a time, for a test that looks in between."""
        for _ in range(3):
            publish(engine, "a")
        registry = registry_with(a=do_nothing)

        assert [testing.drain(engine, registry, limit=2).processed for _ in range(3)] == [2, 1, 0]

    def test_action_that_never_ends_is_an_error_and_no_hang(self, connection: Connection) -> None:
        """It snoozes for no time: the flow would go on with it for ever, and a test must not."""
        publish(connection, "once")
        publish(connection, "poll")

        with pytest.raises(EndlessDrainError, match=r"after 1,000 claims, 999 of them of 'poll'; .* higher limit") as e:
            testing.drain(connection, registry_with(poll=lambda: Snooze(AT_ONCE), once=do_nothing))

        assert (e.value.claims, e.value.type, e.value.of_type) == (MAX_CLAIMS, "poll", MAX_CLAIMS - 1)
        assert testing.drain(connection, registry_with(poll=lambda: Snooze(AT_ONCE)), limit=1).snoozed == 1

    def test_reraise_settles_and_then_raises(self, engine: Engine) -> None:
        """The traceback of the processor is what a failing test should show."""
        publish(engine, "a")
        publish(engine, "a")

        def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            testing.drain(engine, registry_with(a=fail), reraise=True)

        assert [action.fail_count for action in testing.published(engine)] == [1, 0]

    def test_failure_is_logged_with_its_traceback(self, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
        """The log is shown with a failed test."""
        id_ = publish(engine, "a").id

        def fail() -> None:
            raise ZeroDivisionError

        with caplog.at_level(logging.WARNING):
            testing.drain(engine, registry_with(a=fail))

        (record,) = [record for record in caplog.records if record.message == f"a #{id_} (attempt 1) failed"]
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError
        assert functions_in(record.exc_text or "") == ["fail"]

    @pytest.mark.parametrize("is_async", [True, False])
    def test_rows_of_a_batch_that_failed_are_logged_with_their_tracebacks(
        self, engine: Engine, caplog: pytest.LogCaptureFixture, is_async: bool
    ) -> None:
        """Each by itself, whether or not others did; only the author's frames, and all are in `errors`."""
        ids = [publish(engine, "a").id or 0 for _ in range(3)]

        def refuse(id_: int) -> Exception:
            try:
                raise ZeroDivisionError(id_)
            except ZeroDivisionError as error:
                return error

        def load(actions: list[Action]) -> list[Exception | None]:
            return [refuse(action.id) if action.id != ids[0] else None for action in actions]

        async def load_async(actions: list[Action]) -> list[Exception | None]:
            return load(actions)

        registry = Registry()
        processor("a", rows_per_run=10, registry=registry)(load_async if is_async else load)
        with caplog.at_level(logging.WARNING):
            report = testing.drain(engine, registry)

        told = [record.getMessage() for record in caplog.records]
        assert (report.processed, report.retrying) == (1, 2)
        assert [text.partition("\n")[0] for text in told] == [
            f"a #{id_} (attempt 1) failed: ZeroDivisionError: {id_}" for id_ in ids[1:]
        ]
        assert [functions_in(text) for text in told] == [["refuse"]] * 2
        assert [action.fail_count for action in testing.published(engine)] == [0, 1, 1]

    @pytest.mark.parametrize("is_async", [True, False])
    def test_interrupt_ends_the_drain(self, engine: Engine, is_async: bool) -> None:
        """Ctrl-C is meant for the test; to the claim flow it would be one failed action, and the test would go on."""

        def interrupt() -> None:
            raise KeyboardInterrupt

        async def interrupt_async() -> None:
            raise KeyboardInterrupt

        publish(engine, "a")
        publish(engine, "a")

        with pytest.raises(KeyboardInterrupt):
            testing.drain(engine, registry_with(a=interrupt_async if is_async else interrupt))

        assert [action.fail_count for action in testing.published(engine)] == [1, 0]

    def test_exit_of_a_processor_is_a_failure(self, engine: Engine) -> None:
        """As in the flow, where it must not end the others."""
        publish(engine, "a")
        publish(engine, "b")

        report = testing.drain(engine, registry_with(a=lambda: sys.exit(3), b=do_nothing))

        assert (report.retrying, report.processed) == (1, 1)

    def test_action_of_a_deployment_waits(self, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
        """Its work is a run that Prefect would start elsewhere; the others are done."""
        registry = registry_with(a=do_nothing)
        deployment_processor("video.encode", deployment="encode/prod", registry=registry)
        publish(engine, "a")
        publish(engine, "video.encode")

        report = testing.drain(engine, registry)

        assert (report.processed, report.unroutable, report.claimed) == (1, 1, 1)
        assert [str(action.status) for action in testing.published(engine, type="video.encode")] == ["pending"]
        assert "left pending: video.encode" in caplog.text

    def test_expired_lease_is_rescued(self, engine: Engine) -> None:
        """A crash, as a test stages it: claim, and let the lease pass."""
        registry = Registry()
        processor("a", registry=registry, backoff=AT_ONCE)(do_nothing)
        add(engine, "a")
        add(engine, "nobody's")
        claim_due(engine, lease=MINUTE)

        assert testing.drain(engine, registry).is_empty
        with testing.at(datetime.now(UTC) + 2 * MINUTE):
            report = testing.drain(engine, registry)

        assert (report.rescued, report.claimed, report.processed, report.unroutable) == (2, 1, 1, 0)
        assert [action.fail_count for action in testing.published(engine)] == [1, 1]

    def test_lost_lease_overwrites_nothing(self, engine: Engine) -> None:
        """The fence holds here too, and the report says that it was met."""
        id_ = add(engine, "a")

        def lose() -> None:
            change(engine, id_, claim_count=7)

        report = testing.drain(engine, registry_with(a=lose))

        assert (report.lost_leases, report.processed, report.by_type) == (1, 0, {})
        assert row(engine, id_).status == "claimed"

    def test_processor_that_settles_for_itself_is_counted(self, engine: Engine) -> None:
        """What it wrote in its own transaction stands, and is no lost lease."""
        publish(engine, "a")

        def settle(action: Action) -> None:
            with engine.begin() as own:
                settle_action(own, action)

        report = testing.drain(engine, registry_with(a=settle))

        assert (report.processed, report.lost_leases) == (1, 0)

    def test_processor_that_settles_for_itself_is_counted_as_the_table_has_it(self, engine: Engine) -> None:
        """Whatever it returned; and what was rolled back, with its error swallowed, is no settlement."""
        publish(engine, "a")
        publish(engine, "b")

        def snooze(action: Action) -> None:
            with engine.begin() as own:
                settle_action(own, action, Snooze(timedelta(hours=1)))

        def give_up(action: Action) -> None:
            with engine.connect() as own:
                settle_action(own, action)
                own.rollback()
            expire_leases(engine, action.id)
            rescue(engine, TABLE, lambda _: None, limit=1)

        report = testing.drain(engine, registry_with(a=snooze, b=give_up))

        assert (report.snoozed, report.processed, report.lost_leases) == (1, 0, 1)

    def test_claim_that_ended_before_it_began_is_given_back(self, engine: Engine) -> None:
        """Work does not begin on a lease that may be over: not even in a test."""
        registry = Registry()

        def wait_too_long(action: Action) -> dict[str, Any]:
            assert action.lease is not None
            action.lease.expires = 0.0
            return {}

        processor("a", registry=registry, facts=wait_too_long)(do_nothing)
        publish(engine, "a", rules={"==": [1, 1]})

        report = testing.drain(engine, registry, limit=1)

        assert (report.claimed, report.released, report.processed) == (1, 1, 0)

    def test_processors_are_modules_as_for_the_flow(
        self, engine: Engine, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By name, one or several, or from the settings; they register for the whole process, as imports do."""
        name = f"drained_{time.monotonic_ns()}"
        (tmp_path / f"{name}.py").write_text(
            f"from prefect_claim_dispatch import processor\n@processor({name!r})\ndef do(): pass\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("CLAIM_DISPATCH_PROCESSORS", name)

        for modules in (name, [name], None):
            publish(engine, name)
            assert testing.drain(engine, modules).by_type == {name: {"processed": 1}}

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"limit": 0}, ConfigurationError, "limit must be 1 or more"),
            ({"limit": True}, ConfigurationError, "limit must be 1 or more"),
            ({"limit": "5"}, ConfigurationError, "limit must be 1 or more"),
            ({"processors": do_nothing}, ConfigurationError, "names of modules, a Registry or None, got function"),
            ({"processors": [do_nothing]}, ConfigurationError, r"@processor\('email.welcome', registry=mine\)"),
            ({"processors": "no.such.module"}, RegistrationError, "can't be imported"),
            ({"table": ""}, ConfigurationError, "table name must be"),
        ],
    )
    def test_arguments_that_make_no_sense_are_refused(
        self, connection: Connection, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        """Before anything is claimed."""
        with pytest.raises(error, match=message):
            testing.drain(connection, **arguments)

    def test_processor_that_cannot_be_called_is_found_before_a_claim(self, engine: Engine) -> None:
        """Found per row, it would send the actions to dead one by one."""

        def do(payload: "NoSuchName") -> None:  # noqa: F821, UP037
            pass

        publish(engine, "a")

        with pytest.raises(RegistrationError, match="can't be validated"):
            testing.drain(engine, registry_with(a=do))
        assert testing.published(engine)[0].status == "pending"

    def test_async_processor_in_a_running_event_loop_is_refused(self, engine: Engine) -> None:
        """It could only be awaited by a thread of its own; a sync one is called, as anywhere."""

        async def do() -> None:
            pass

        registry = registry_with(later=do, now=do_nothing)
        publish(engine, "now", priority=1)
        publish(engine, "later")

        async def test() -> DispatchReport:
            with pytest.raises(ConfigurationError, match=r"'later' is async.*asyncio\.to_thread"):
                testing.drain(engine, registry)
            assert [action.status for action in testing.published(engine)] == ["pending", "pending"]
            assert testing.drain(engine, registry_with(now=do_nothing)).processed == 1
            return await asyncio.to_thread(testing.drain, engine, registry)

        assert asyncio.run(test()).processed == 1

    def test_no_server_no_thread_no_network(self, sqlite_url: str) -> None:
        """A test suite must not start a server behind its author's back."""
        code = f"""
import json, sys, threading
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event in EVENTS else None)
EVENTS = {{"socket.connect", "socket.bind", "socket.getaddrinfo", "_thread.start_new_thread", "subprocess.Popen"}}
from prefect import flow
from prefect_claim_dispatch import processor, publish, testing
@processor("a", retries=3)
def do(): pass
@processor("b")
@flow
async def do_it(): pass
publish({sqlite_url!r}, "a"); publish({sqlite_url!r}, "b")
report = testing.drain({sqlite_url!r})
print(json.dumps([report.processed, seen, threading.active_count(), [m for m in sys.modules if "prefect.server" in m]]))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert json.loads(done.stdout) == [2, [], 1, []]


# What time it is


class TestAt:
    """Moving time."""

    @pytest.mark.parametrize("joined", [True, False])
    def test_action_is_due_at_its_instant_and_not_before(
        self, engine: Engine, connection: Connection, joined: bool
    ) -> None:
        """To the microsecond at which it was published, although SQLite's clock shows milliseconds."""
        bind = connection if joined else engine
        end_at = LATER + timedelta(microseconds=1_001)
        publish(bind, "a", end_at=end_at)
        registry = registry_with(a=do_nothing)

        with testing.at(end_at - timedelta(milliseconds=2)):
            assert testing.drain(bind, registry).is_empty
        with testing.at(end_at):
            assert testing.drain(bind, registry).processed == 1
        assert testing.published(bind)[0].end_at == end_at

    def test_everything_that_is_written_happens_then(self, engine: Engine) -> None:
        """One statement that asked the real clock would make a row that contradicts itself."""
        id_ = publish(engine, "a", end_at=LATER).id
        assert id_ is not None

        with testing.at(LATER):
            (raw,) = claim_due(engine, lease=MINUTE)
            claimed = row(engine, id_)
            claiming.renew(engine, TABLE, [(id_, raw.claim_count)], lease=2 * MINUTE)
            renewed = row(engine, id_)
        with testing.at(LATER + 3 * MINUTE):
            testing.drain(engine, registry_with(a=do_nothing))
            rescued = row(engine, id_)
        with testing.at(LATER + 10 * MINUTE):
            testing.drain(engine, registry_with(a=do_nothing))
            settled = row(engine, id_)

        assert (claimed.claimed_at, claimed.lease_expires_at, claimed.updated_at) == (LATER, LATER + MINUTE, LATER)
        assert renewed.lease_expires_at == LATER + 2 * MINUTE
        assert LATER + 3 * MINUTE < rescued.end_at < LATER + 4 * MINUTE
        assert {settled.claimed_at, settled.processed_at, settled.settled_at} == {LATER + 10 * MINUTE}

    def test_delays_snoozes_and_back_offs_are_counted_from_it(self, connection: Connection) -> None:
        """A week of waiting, in no time."""
        registry = Registry()

        @processor("a", registry=registry)
        def snooze(action: Action) -> Snooze | None:
            return Snooze(timedelta(days=7)) if action.end_at < LATER + timedelta(days=2) else None

        with testing.at(LATER):
            publish(connection, "a", delay=timedelta(days=1))
            assert testing.drain(connection, registry).is_empty
        with testing.at(LATER + timedelta(days=1)):
            assert testing.drain(connection, registry).snoozed == 1
        with testing.at(LATER + timedelta(days=8)):
            assert testing.drain(connection, registry).processed == 1

    def test_rules_are_told_the_same_time(self, connection: Connection) -> None:
        """A rule that looks at now must not see another one than the claim that was made by it."""
        rule = {"==": [{"var": "now"}, LATER.isoformat()]}
        registry = registry_with(a=do_nothing)
        publish(connection, "a", rules=rule)
        publish(connection, "a", rules=rule)

        with testing.at(LATER):
            assert testing.drain(connection, registry, limit=1).processed == 1
        assert testing.drain(connection, registry).cancelled == 1

    def test_operations_follow(self, engine: Engine) -> None:
        """Retention can be tested without waiting for it."""
        publish(engine, "a")
        testing.drain(engine, registry_with(a=do_nothing))

        with testing.at(datetime.now(UTC) + timedelta(days=29)):
            assert operations.prune(engine, timedelta(days=30)) == []
        with testing.at(datetime.now(UTC) + timedelta(days=31)):
            assert len(operations.prune(engine, timedelta(days=30))) == 1

    def test_nested_and_over(self, connection: Connection) -> None:
        """The innermost counts; afterwards time is what it was, also after an exception."""

        def database_now() -> datetime:
            return claiming.survey(connection, TABLE).now

        with testing.at(LATER) as outer:
            with testing.at(LATER + MINUTE + timedelta(microseconds=1)) as inner:
                seen = [database_now()]
            seen.append(database_now())
            with pytest.raises(ZeroDivisionError), testing.at(LATER - MINUTE):
                raise ZeroDivisionError
            seen.append(database_now())

        assert seen == [inner, outer, outer]
        assert (outer, inner) == (LATER, LATER + MINUTE + timedelta(milliseconds=1))
        assert abs(database_now() - datetime.now(UTC)) < MINUTE

    def test_other_threads_and_connections_follow(self, engine: Engine) -> None:
        """A claim flow in this process works in threads; half of it in another time would be no claim flow."""
        seen: list[datetime] = []

        with testing.at(LATER):
            thread = threading.Thread(target=lambda: seen.append(claiming.survey(engine, TABLE).now))
            thread.start()
            thread.join()

        assert seen == [LATER]

    def test_nothing_else_is_touched(self, connection: Connection) -> None:
        """Statements of the application have the real time, and texts that look like the clock stay what they are."""
        hostile = {"text": "now() 'now'"}

        with testing.at(LATER):
            publish(connection, "now()", hostile)
            own = connection.execute(select(now(), literal("now() 'now'"))).one()
            plain = connection.execute(text("SELECT 'now()'")).scalar_one()
            (action,) = testing.published(connection, type="now()")

        assert abs(own[0] - datetime.now(UTC)) < MINUTE
        assert (own[1], plain) == ("now() 'now'", "now()")
        assert (action.payload, action.end_at) == (hostile, LATER)
        created_at = connection.execute(select(TABLE.c.created_at)).scalar_one()
        assert abs(created_at - datetime.now(UTC)) < MINUTE

    def test_due_by_the_real_clock_in_an_open_transaction(self, connection: Connection) -> None:
        """PostgreSQL's clock stands still in a transaction: what is published in it for now is due only by at()."""
        connection.execute(select(now()))
        publish(connection, "a", end_at=datetime.now(UTC))
        registry = registry_with(a=do_nothing)

        with testing.at(datetime.now(UTC)):
            assert testing.drain(connection, registry).processed == 1

    @pytest.mark.parametrize(
        ("instant", "message"),
        [
            (datetime(2040, 6, 1), "is naive"),  # noqa: DTZ001 - refused
            (MINUTE, r"aware datetime, got timedelta; write at\(datetime.now\(UTC\) \+"),
            ("2040-06-01T00:00:00Z", "aware datetime, got str"),
            (datetime(1, 1, 1, tzinfo=UTC), "out of range"),
        ],
    )
    def test_instant_that_is_none_is_refused(self, instant: Any, message: str) -> None:
        """Before time moves."""
        with pytest.raises(InvalidInstantError, match=message):
            testing.at(instant)

    def test_first_and_last_instant_can_be_stood_at(self, connection: Connection) -> None:
        """What may be published must be reachable."""
        publish(connection, "a", end_at=datetime(9999, 12, 30, tzinfo=UTC))
        publish(connection, "a", end_at=datetime(1, 1, 2, tzinfo=UTC))
        registry = registry_with(a=do_nothing)

        with testing.at(datetime(1, 1, 2, tzinfo=UTC)):
            assert testing.drain(connection, registry).processed == 1
        with testing.at(datetime(9999, 12, 30, tzinfo=UTC)):
            assert testing.drain(connection, registry).processed == 1


def test_seconds_from_now_is_the_databases_clock(engine: Engine) -> None:
    """What the kit inserts as due is due for a drain too, whatever the clock of this process says."""
    add(engine, "a", end_at=seconds_from_now(-1))

    assert testing.drain(engine, registry_with(a=do_nothing)).processed == 1
