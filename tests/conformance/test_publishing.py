"""Publishing on every database: atomic with the caller's data, once per key, and the same refusals before any SQL."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from threading import Barrier
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, event, func, insert, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from prefect_claim_dispatch import Draft, Publisher, Receipt, databases, publish, publish_many
from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.engines import create, parsed_url
from prefect_claim_dispatch.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DuplicateActionError,
    InvalidActionError,
    InvalidInstantError,
    InvalidKeyError,
    InvalidPayloadError,
    InvalidRulesError,
    InvalidTypeError,
    SchemaMissingError,
)
from prefect_claim_dispatch.schema import actions_table
from tests.kit import postgres

TABLE = actions_table()
POSTGRESQL = list(postgres.available())[:1]
WELCOME = Draft().type("email.welcome").payload({"user_id": 7})


@pytest.fixture
def plain_engine(database_url: str) -> Iterator[Engine]:
    """An engine as an application makes it, knowing nothing of ours."""
    engine = create_engine(parsed_url(database_url))
    yield engine
    engine.dispose()


def rows(bind: Engine) -> list[Any]:
    with bind.connect() as connection:
        return list(connection.execute(select(TABLE).order_by(TABLE.c.id)))


def only_row(bind: Engine) -> Any:
    [row] = rows(bind)
    return row


def count(bind: Engine) -> int:
    with bind.connect() as connection:
        return connection.execute(select(func.count()).select_from(TABLE)).scalar_one()


@contextmanager
def statements_of(engine: Engine) -> Iterator[list[str]]:
    """What is sent to the database meanwhile, transaction control left out."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


def test_published_action_is_pending_and_due_at_once(engine: Engine) -> None:
    """The least that can be said about an action must be enough."""
    receipt = publish(engine, "email.welcome")

    row = only_row(engine)
    assert receipt == Receipt(id=row.id, outcome="created")
    assert (row.type, row.payload, row.status, row.priority) == ("email.welcome", {}, ActionStatus.PENDING, 0)
    assert row.end_at == row.created_at
    assert row.idempotency_key is row.ordering_key is None


def test_everything_that_is_said_is_stored(engine: Engine) -> None:
    """Each argument has its column, and rules and metadata their reserved keys."""
    publish(
        engine,
        "email.welcome",
        {"user_id": 7, "name": "Zoë \U0001f600"},
        end_at=datetime(2030, 1, 1, 12, tzinfo=UTC),
        priority=-3,
        idempotency_key="welcome:7",
        ordering_key="user:7",
        rules={"==": [{"var": "payload.user_id"}, 7]},
        meta={"source": "signup"},
    )

    row = only_row(engine)
    assert row.payload == {
        "user_id": 7,
        "name": "Zoë \U0001f600",
        "__rules": {"==": [{"var": "payload.user_id"}, 7]},
        "__meta": {"source": "signup"},
    }
    assert row.end_at == datetime(2030, 1, 1, 12, tzinfo=UTC)
    assert (row.priority, row.idempotency_key, row.ordering_key) == (-3, "welcome:7", "user:7")


def test_fluent_and_quick_publishers_say_the_same(engine: Engine) -> None:
    """Three ways to write it, one action."""
    publisher = Publisher(engine)
    when = datetime(2030, 1, 1, tzinfo=UTC)
    rules = {"!!": [{"var": "payload.a"}]}

    publisher.publish(lambda draft: draft.type("a").eligible_at(when).payload({"a": 1}).rules(rules).meta(b=2))
    publisher.draft("a").payload({"a": 1}).eligible_at(lambda: when).rules(rules).meta({"b": 2}).commit()
    publisher.quick(
        "a", when, {"a": 1}, rules=rules, meta={"b": 2}, when=lambda p: p["a"] == 1, skip_if=lambda _: False
    )
    skipped = publisher.quick("a", when, {"a": 1}, when=lambda p: p["a"] == 2)

    said = [(row.type, row.payload, row.end_at) for row in rows(engine)]
    assert said == [("a", {"a": 1, "__rules": rules, "__meta": {"b": 2}}, when)] * 3
    assert skipped == Receipt(id=None, outcome="skipped")


def test_delay_is_counted_on_the_databases_clock(engine: Engine) -> None:
    """Both instants come from one statement, so the difference is the delay and no network lies between."""
    publish(engine, "a", {}, delay=timedelta(days=400, seconds=0.25))
    Publisher(engine).draft("b").after(minutes=5).commit()

    first, second = rows(engine)
    assert first.end_at - first.created_at == timedelta(days=400, seconds=0.25)
    assert second.end_at - second.created_at == timedelta(minutes=5)


@pytest.mark.parametrize(
    "end_at", [datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC)]
)
def test_first_and_last_instant_read_back(engine: Engine, end_at: datetime) -> None:
    """What publish allows, the table's checks and every claim must hold too."""
    publish(engine, "a", {}, end_at=end_at)

    assert only_row(engine).end_at == end_at


def test_longest_type_and_keys_fit_the_indexes(engine: Engine) -> None:
    """Index entries are limited in bytes: four of them a character must still fit."""
    type_, key = "\U00020000" * 120, "\U0001f600" * 255

    publish(engine, type_, {}, idempotency_key=key, ordering_key=key)

    row = only_row(engine)
    assert (row.type, row.idempotency_key, row.ordering_key) == (type_, key, key)
    assert publish(engine, type_, {}, idempotency_key=key) == Receipt(id=row.id, outcome="kept")


def test_url_and_settings_get_transactions_of_their_own(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script has no connection to join."""
    first = publish(database_url, "a")
    monkeypatch.setenv("CLAIM_DISPATCH_DATABASE_URL", database_url)
    second = Publisher().draft("a").commit()

    shared = databases.engine_for(database_url)
    assert [first.id, second.id] == [row.id for row in rows(shared)]
    shared.dispose()


def test_action_can_go_to_another_table(engine: Engine) -> None:
    """One database may hold several tables; quotes in a name are part of the name."""
    other = actions_table('other "actions"; --')
    other.create(engine)

    publish(engine, "a", {}, table=other.name)
    Publisher(engine, table=other.name).draft("b").commit()
    receipts = publish_many(engine, [WELCOME, WELCOME.table(other.name), WELCOME])

    with engine.connect() as connection:
        there = connection.execute(select(other.c.type, other.c.id).order_by(other.c.id)).all()
    assert [type_ for type_, _ in there] == ["a", "b", "email.welcome"]
    assert [receipt.id for receipt in receipts] == [rows(engine)[0].id, there[-1].id, rows(engine)[1].id]


def publish_one(bind: Any) -> None:
    publish(bind, "a", {}, idempotency_key="k")


def publish_several(bind: Any) -> None:
    publish_many(bind, [WELCOME, WELCOME.idempotency("k"), WELCOME.idempotency("k").on_conflict("replace")])


@pytest.mark.parametrize("publishing", [publish_one, publish_several])
def test_connection_is_joined_and_never_committed(plain_engine: Engine, publishing: Callable[[Any], None]) -> None:
    """The action is part of the caller's data: it comes and goes with it, whenever the driver begins."""
    with plain_engine.connect() as connection:
        publishing(connection)
        connection.rollback()
    assert count(plain_engine) == 0

    with plain_engine.connect() as connection:
        publishing(connection)
        assert connection.in_transaction()
        connection.commit()
    assert count(plain_engine) >= 1


@pytest.mark.parametrize("publishing", [publish_one, publish_several])
def test_session_is_joined_and_never_committed(plain_engine: Engine, publishing: Callable[[Any], None]) -> None:
    """The same through the ORM, and through the registry that web frameworks use."""
    with Session(plain_engine) as session:
        publishing(session)
        session.rollback()
    registry = scoped_session(sessionmaker(plain_engine))
    publishing(registry)
    registry.remove()
    assert count(plain_engine) == 0

    with Session(plain_engine) as session, session.begin():
        publishing(session)
    assert count(plain_engine) >= 1


@pytest.mark.parametrize("publishing", [publish_one, publish_several])
def test_rolled_back_savepoint_takes_its_actions_along(engine: Engine, publishing: Callable[[Any], None]) -> None:
    """A part of a request may fail and be given up, its mails with it."""
    with engine.begin() as connection:
        publish(connection, "kept")
        savepoint = connection.begin_nested()
        publishing(connection)
        savepoint.rollback()

    with Session(engine) as session, session.begin():
        savepoint = session.begin_nested()
        publishing(session)
        savepoint.rollback()

    assert only_row(engine).type == "kept"


def test_commit_that_fails_leaves_nothing(engine: Engine) -> None:
    """Whoever got an error must not find the action done later."""

    def fail_at_commit() -> None:
        with engine.begin() as connection:
            publish(connection, "a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_commit()

    assert count(engine) == 0


def test_async_sessions_publish_through_run_sync(database_url: str, engine: Engine) -> None:
    """One function serves both worlds; a twin written by hand would drift."""
    url = parsed_url(database_url)
    if url.get_backend_name() == "sqlite":
        pytest.importorskip("aiosqlite")
        url = url.set(drivername="sqlite+aiosqlite")

    async def publish_both() -> None:
        async_engine = create_async_engine(url)
        async with AsyncSession(async_engine) as session:
            await session.run_sync(publish, "rolled back")
            await session.run_sync(publish_many, [WELCOME])
            await session.rollback()
            await session.run_sync(publish, "session", {"a": 1}, delay=timedelta(minutes=1))
            await session.run_sync(publish_many, [WELCOME])
            await session.commit()
        async with async_engine.begin() as connection:
            await connection.run_sync(publish, "connection")
        await async_engine.dispose()

    asyncio.run(publish_both())

    assert [row.type for row in rows(engine)] == ["session", "email.welcome", "connection"]


@pytest.mark.parametrize("bind", [7, object(), create_async_engine("postgresql+psycopg://"), Session])
def test_bind_that_is_none_is_refused(bind: Any) -> None:
    """The advice for the likeliest mistake, an async session, is in the message."""
    with pytest.raises(ConfigurationError, match="bind must be an Engine, Connection, Session, URL or None"):
        publish(bind, "a")


def test_existing_key_is_kept(engine: Engine) -> None:
    """A request that is sent twice makes one action, and both get its id."""
    first = publish(engine, "a", {"n": 1}, idempotency_key="k")
    again = publish(engine, "a", {"n": 2}, idempotency_key="k", delay=timedelta(days=1))

    assert again == Receipt(id=first.id, outcome="kept")
    assert only_row(engine).payload == {"n": 1}


def test_key_belongs_to_its_type(engine: Engine) -> None:
    """`user:7` is welcomed and reminded."""
    assert publish(engine, "a", {}, idempotency_key="k").outcome == "created"
    assert publish(engine, "b", {}, idempotency_key="k").outcome == "created"
    assert publish(engine, "a", {}).outcome == "created"
    assert publish(engine, "a", {}).outcome == "created"


def test_pending_action_is_replaced(engine: Engine) -> None:
    """Debouncing: the last word counts, and what is replaced starts with all its attempts."""
    first = publish(engine, "a", {"n": 1}, idempotency_key="k", priority=1, delay=timedelta(days=1), ordering_key="o")
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(fail_count=3, claim_count=3))

    again = publish(
        engine,
        "a",
        {"n": 2},
        idempotency_key="k",
        on_conflict="replace",
        priority=2,
        end_at=datetime(2030, 1, 1, tzinfo=UTC),
        meta={"m": 1},
    )

    row = only_row(engine)
    assert again == Receipt(id=first.id, outcome="replaced")
    assert row.payload == {"n": 2, "__meta": {"m": 1}}
    assert (row.end_at, row.priority, row.ordering_key) == (datetime(2030, 1, 1, tzinfo=UTC), 2, None)
    assert (row.fail_count, row.claim_count) == (0, 3)


@pytest.mark.parametrize(
    "status", [ActionStatus.CLAIMED, ActionStatus.PROCESSED, ActionStatus.DEAD, ActionStatus.CANCELLED]
)
def test_action_that_left_pending_is_not_replaced(engine: Engine, status: ActionStatus) -> None:
    """Work that has begun must not change under the hands of whoever does it, and history is not rewritten."""
    first = publish(engine, "a", {"n": 1}, idempotency_key="k")
    then = {"claimed_at": TABLE.c.created_at}
    if status is ActionStatus.CLAIMED:
        then["lease_expires_at"] = TABLE.c.created_at
    if status is ActionStatus.PROCESSED:
        then["processed_at"] = TABLE.c.created_at
    if status.is_terminal:
        then["settled_at"] = TABLE.c.created_at
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(status=status.value, **then))

    again = publish(engine, "a", {"n": 2}, idempotency_key="k", on_conflict="replace")

    assert again == Receipt(id=first.id, outcome="kept")
    assert only_row(engine).payload == {"n": 1}


def test_raise_leaves_the_callers_transaction_usable(plain_engine: Engine) -> None:
    """On PostgreSQL a unique violation would have broken it, and the caller's own data with it."""
    with plain_engine.begin() as connection:
        first = publish(connection, "a", {}, idempotency_key="k")
        with pytest.raises(DuplicateActionError, match="exists already") as raised:
            publish(connection, "a", {}, idempotency_key="k", on_conflict="raise")
        publish(connection, "b")

    assert (raised.value.type, raised.value.idempotency_key, raised.value.existing_id) == ("a", "k", first.id)
    assert [row.type for row in rows(plain_engine)] == ["a", "b"]


@pytest.mark.parametrize("policy", ["keep", "replace"])
def test_twenty_publishers_of_one_key_make_one_action(engine: Engine, policy: Any) -> None:
    """The unique index decides, not a look before the leap."""
    together = Barrier(20)

    def publish_together(number: int) -> Receipt:
        together.wait()
        return publish(engine, "a", {"n": number}, idempotency_key="k", on_conflict=policy)

    with ThreadPoolExecutor(20) as pool:
        receipts = list(pool.map(publish_together, range(20)))

    outcomes = sorted(receipt.outcome for receipt in receipts)
    assert {receipt.id for receipt in receipts} == {only_row(engine).id}
    assert outcomes == ["created"] + (["kept"] if policy == "keep" else ["replaced"]) * 19


@pytest.mark.parametrize("database_url", POSTGRESQL, indirect=True)
def test_publisher_waits_for_a_key_that_is_not_committed_yet(engine: Engine) -> None:
    """If the first rolls back, the second must have inserted; reading around the index would have lost the action."""
    with ThreadPoolExecutor(1) as pool, engine.connect() as connection:
        publish(connection, "a", {"n": 1}, idempotency_key="k")
        second = pool.submit(publish, engine, "a", {"n": 2}, idempotency_key="k")
        connection.rollback()

        assert second.result(timeout=30).outcome == "created"
    assert only_row(engine).payload == {"n": 2}


@pytest.mark.parametrize("database_url", POSTGRESQL, indirect=True)
def test_serialization_failure_is_the_callers(engine: Engine) -> None:
    """A snapshot that can't see the key's holder has no right answer but to retry, which is for the caller to do."""
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        connection.execute(select(func.count()).select_from(TABLE))
        first = publish(engine, "a", {}, idempotency_key="k")

        with pytest.raises(OperationalError) as raised:
            publish(connection, "a", {}, idempotency_key="k")
        assert raised.value.orig.sqlstate == "40001"  # type: ignore[union-attr]

        connection.rollback()
        assert publish(connection, "a", {}, idempotency_key="k") == Receipt(id=first.id, outcome="kept")


@pytest.mark.parametrize("size", [1, 2, 999, 1000, 1001, 2500])
def test_receipts_come_in_the_order_given(engine: Engine, size: int) -> None:
    """Whoever zips receipts with drafts must get pairs; and ids rise, since they decide among equal ordering keys."""
    receipts = publish_many(engine, (WELCOME.payload({"n": n}) for n in range(size)))

    assert [receipt.outcome for receipt in receipts] == ["created"] * size
    assert [(row.id, row.payload["n"]) for row in rows(engine)] == [(r.id, n) for n, r in enumerate(receipts)]


def test_many_with_every_policy_and_every_kind_of_duplicate(engine: Engine) -> None:
    """A batch is as if its drafts were published one after the other."""
    old = publish(engine, "email.welcome", {"n": 0}, idempotency_key="old").id
    late = publish(engine, "email.welcome", {"n": 0}, idempotency_key="late").id
    with engine.begin() as connection:
        settled = {"status": "cancelled", "settled_at": TABLE.c.created_at}
        connection.execute(update(TABLE).where(TABLE.c.id == late).values(settled))

    def draft(n: int, key: str | None = None, policy: Any = "keep") -> Draft:
        numbered = WELCOME.payload({"n": n})
        return numbered if key is None else numbered.idempotency(key).on_conflict(policy)

    receipts = publish_many(
        engine,
        [
            draft(1),
            draft(2, "new"),
            draft(3, "new"),
            draft(4, "new", "replace"),
            draft(5, "old"),
            draft(6, "old", "replace"),
            draft(7, "old", "replace"),
            draft(8, "late", "replace"),
            draft(9).when(lambda _: False),
            draft(10, "fresh", "raise"),
            draft(11).type("other"),
            draft(12, "new").type("other"),
        ],
    )

    assert [receipt.outcome for receipt in receipts] == [
        *("created", "created", "kept", "replaced", "kept", "replaced", "replaced", "kept"),
        *("skipped", "created", "created", "created"),
    ]
    stored = {row.id: row.payload["n"] for row in rows(engine)}
    ids = [receipt.id for receipt in receipts]
    assert ids[1] == ids[2] == ids[3]
    assert (ids[4], ids[5], ids[6], ids[7], ids[8]) == (old, old, old, late, None)
    assert {ids[0]: 1, ids[1]: 4, old: 7, late: 0, ids[9]: 10, ids[10]: 11, ids[11]: 12} == stored


@pytest.mark.parametrize("joined", [True, False])
def test_many_is_all_or_nothing(plain_engine: Engine, joined: bool) -> None:
    """A batch that fails in its second thousand leaves nothing of its first, and the caller's transaction as it was."""
    drafts = [WELCOME.idempotency(str(n)).on_conflict("raise") for n in (*range(1500), 1400)]

    with plain_engine.begin() as connection:
        publish(connection, "before")
        if joined:
            with pytest.raises(DuplicateActionError):
                publish_many(connection, drafts)
        publish(connection, "after")
    if not joined:
        with pytest.raises(DuplicateActionError):
            publish_many(plain_engine, drafts)

    assert [row.type for row in rows(plain_engine)] == ["before", "after"]


def test_many_is_consumed_lazily(engine: Engine) -> None:
    """Tens of thousands of drafts must not be in memory together: the first are inserted before the last are made."""
    sent_before: list[int] = []

    with statements_of(engine) as sent:

        def drafts() -> Iterator[Draft]:
            for n in range(3000):
                sent_before.append(len(sent))
                yield WELCOME.payload({"n": n})

        publish_many(engine, drafts())

    assert (sent_before[999], sent_before[1000], sent_before[2000]) == (0, 1, 2)
    assert len(sent) == 3


def test_large_payloads_are_sent_in_smaller_chunks(engine: Engine) -> None:
    """A thousand payloads of a megabyte are more than either database takes in one statement."""
    draft = WELCOME.payload({"text": "x" * 1_000_000})

    with statements_of(engine) as sent:
        receipts = publish_many(engine, [draft] * 20)

    assert [receipt.outcome for receipt in receipts] == ["created"] * 20
    assert len(sent) == 3


def test_nothing_to_publish_touches_no_database() -> None:
    """An empty batch is no reason to open a connection."""
    assert publish_many("sqlite:////nowhere/that/can/be/opened.db", []) == []


def test_one_publish_is_one_statement(engine: Engine) -> None:
    """It stands in somebody's request: a look before the insert, or a savepoint around it, is time that they wait."""
    with engine.begin() as connection, statements_of(engine) as sent:
        publish(connection, "a", {}, idempotency_key="k")
        publish(connection, "a")
        assert len(sent) == 2

        publish(connection, "a", {}, idempotency_key="k")
        assert len(sent) == 4


def test_errors_of_our_own_transaction_are_ours(empty_database_url: str) -> None:
    """A missing table, a dead database: one line that says what to do, in words that need no driver to catch."""
    with pytest.raises(SchemaMissingError, match="claim-dispatch db upgrade"):
        publish(empty_database_url, "a")
    databases.engine_for(empty_database_url).dispose()
    with pytest.raises(DatabaseUnavailableError):
        publish("sqlite:////nowhere/that/can/be/opened.db", "a")


def test_errors_in_the_callers_transaction_pass_unchanged(empty_database_url: str) -> None:
    """The caller has its own way with its driver's errors, and must not learn ours."""
    engine = create(empty_database_url)
    with pytest.raises(Exception, match=r"action_logs") as raised, engine.begin() as connection:
        publish(connection, "a")
    engine.dispose()

    assert type(raised.value).__module__ == "sqlalchemy.exc"


cyclic: dict[str, Any] = {}
cyclic["a"] = cyclic
deep: dict[str, Any] = {}
for _ in range(100):
    deep = {"a": deep}

PAYLOAD, INSTANT, KEY = InvalidPayloadError, InvalidInstantError, InvalidKeyError
TYPE, RULES, ANY = InvalidTypeError, InvalidRulesError, InvalidActionError
BAD: list[tuple[tuple[Any, ...], dict[str, Any], type[InvalidActionError], str]] = [
    (("",), {}, TYPE, "1 to 120 characters, got 0"),
    ((" ",), {}, TYPE, "spaces around it"),
    (("x" * 121,), {}, TYPE, "1 to 120 characters, got 121"),
    (("a\x00b",), {}, TYPE, "control characters"),
    (("a\nb",), {}, TYPE, "control characters"),
    (("a\x7fb",), {}, TYPE, "control characters"),
    (("a\u2029b",), {}, TYPE, "separators"),
    (("a\ud800",), {}, TYPE, "control characters"),
    ((None,), {}, TYPE, "must be text, got NoneType"),
    ((7,), {}, TYPE, "must be text, got int"),
    ((b"a",), {}, TYPE, "must be text, got bytes"),
    (("a", None), {}, PAYLOAD, "must be a JSON object, got NoneType"),
    (("a", []), {}, PAYLOAD, "must be a JSON object, got list"),
    (("a", "{}"), {}, PAYLOAD, "must be a JSON object, got str"),
    (("a", 1), {}, PAYLOAD, "must be a JSON object, got int"),
    (("a", {"__rules": {}}), {}, PAYLOAD, "reserved key '__rules'"),
    (("a", {"__meta": {}}), {}, PAYLOAD, "reserved key '__meta'"),
    (("a", {"x": math.nan}), {}, PAYLOAD, "at $.x is NaN or infinite"),
    (("a", {"x": [math.inf]}), {}, PAYLOAD, "at $.x[0] is NaN or infinite"),
    (("a", {"x": -math.inf}), {}, PAYLOAD, "at $.x is NaN or infinite"),
    (("a", {"x": Decimal("NaN")}), {}, PAYLOAD, "at $.x is NaN or infinite"),
    (("a", {"x": "\x00"}), {}, PAYLOAD, "at $.x holds a NUL"),
    (("a", {"\x00": 1}), {}, PAYLOAD, "a key with a NUL"),
    (("a", {"x": "\ud800"}), {}, PAYLOAD, "at $.x holds a lone surrogate"),
    (("a", {"x": "\udc00\ud800"}), {}, PAYLOAD, "at $.x holds a lone surrogate"),
    (("a", {"\udfff": 1}), {}, PAYLOAD, "a key with a lone surrogate"),
    (("a", {"x": 10**640}), {}, PAYLOAD, "at $.x is an integer of more than 640 digits"),
    (("a", {"x": -(10**10_000)}), {}, PAYLOAD, "at $.x is an integer of more than 640 digits"),
    (("a", {1: 1}), {}, PAYLOAD, "a key that is int"),
    (("a", {None: 1}), {}, PAYLOAD, "a key that is NoneType"),
    (("a", {"x": {True: 1}}), {}, PAYLOAD, "at $.x has a key that is bool"),
    (("a", {"x": b""}), {}, PAYLOAD, "at $.x is bytes"),
    (("a", {"x": {1}}), {}, PAYLOAD, "at $.x is a set"),
    (("a", {"x": object()}), {}, PAYLOAD, "at $.x is a object"),
    (("a", {"x": UUID}), {}, PAYLOAD, "at $.x is a class"),
    (("a", cyclic), {}, PAYLOAD, "contains itself"),
    (("a", deep), {}, PAYLOAD, "deeper than 100 levels"),
    (("a", {"x": "x" * 2**20}), {}, PAYLOAD, "larger than 1048576 bytes"),
    (("a", {"x": "\u20ac" * 350_000}), {}, PAYLOAD, "larger than 1048576 bytes"),
    (("a", {}), {"meta": [1]}, PAYLOAD, "meta must be a JSON object, got list"),
    (("a", {}), {"meta": {"x": math.nan}}, PAYLOAD, "meta at $.x is NaN"),
    (("a", {}), {"meta": {"__meta": 1}}, PAYLOAD, "meta has the reserved key"),
    (("a", {"x": "x" * 600_000}), {"meta": {"x": "x" * 600_000}}, PAYLOAD, "payload with rules and meta is larger"),
    (("a", {}), {"end_at": datetime(2026, 1, 1)}, INSTANT, "is naive"),  # noqa: DTZ001
    (("a", {}), {"end_at": "2026-01-01T00:00"}, INSTANT, "is naive"),
    (("a", {}), {"end_at": "infinity"}, INSTANT, "no ISO 8601 instant"),
    (("a", {}), {"end_at": "tomorrow"}, INSTANT, "no ISO 8601 instant"),
    (("a", {}), {"end_at": 0}, INSTANT, "must be an aware datetime"),
    (("a", {}), {"end_at": datetime(1, 1, 1, tzinfo=UTC)}, INSTANT, "out of range"),
    (("a", {}), {"end_at": datetime.max.replace(tzinfo=UTC)}, INSTANT, "out of range"),
    (("a", {}), {"end_at": timedelta(-1)}, INSTANT, "delay must be from zero"),
    (("a", {}), {"end_at": lambda: datetime(2026, 1, 1)}, INSTANT, "is naive"),  # noqa: DTZ001
    (("a", {}), {"delay": timedelta(microseconds=-1)}, INSTANT, "delay must be from zero"),
    (("a", {}), {"delay": timedelta.max}, INSTANT, "delay must be from zero"),
    (("a", {}), {"delay": 60}, INSTANT, "delay must be a timedelta, got int"),
    (("a", {}), {"delay": timedelta(1), "end_at": datetime(2026, 1, 1, tzinfo=UTC)}, INSTANT, "both end_at and delay"),
    (("a", {}), {"priority": True}, ANY, "priority must be an integer, got bool"),
    (("a", {}), {"priority": "1"}, ANY, "priority must be an integer, got str"),
    (("a", {}), {"priority": 1.5}, ANY, "priority must be an integer, got float"),
    (("a", {}), {"priority": None}, ANY, "priority must be an integer, got NoneType"),
    (("a", {}), {"priority": 2**15}, ANY, "from -32768 to 32767"),
    (("a", {}), {"priority": -(2**15) - 1}, ANY, "from -32768 to 32767"),
    (("a", {}), {"idempotency_key": ""}, KEY, "idempotency_key must have 1 to 255 characters, got 0"),
    (("a", {}), {"idempotency_key": "x" * 256}, KEY, "got 256"),
    (("a", {}), {"idempotency_key": "\U0001f600" * 256}, KEY, "got 256"),
    (("a", {}), {"idempotency_key": "a\x00"}, KEY, "a NUL or a lone surrogate"),
    (("a", {}), {"idempotency_key": "\ud83d"}, KEY, "a NUL or a lone surrogate"),
    (("a", {}), {"idempotency_key": 42}, KEY, "must be text, got int"),
    (("a", {}), {"ordering_key": ""}, KEY, "ordering_key must have 1 to 255 characters, got 0"),
    (("a", {}), {"ordering_key": "x" * 256}, KEY, "got 256"),
    (("a", {}), {"ordering_key": "a\x00"}, KEY, "a NUL or a lone surrogate"),
    (("a", {}), {"on_conflict": "ignore"}, ANY, "on_conflict must be 'keep', 'replace' or 'raise'"),
    (("a", {}), {"on_conflict": None}, ANY, "on_conflict must be"),
    (("a", {}), {"on_conflict": "replace"}, KEY, "needs an idempotency key"),
    (("a", {}), {"on_conflict": "raise"}, KEY, "needs an idempotency key"),
    (("a", {}), {"rules": {}}, RULES, "must be one JSONLogic operation"),
    (("a", {}), {"rules": "true"}, RULES, "must be one JSONLogic operation"),
    (("a", {}), {"rules": [{"var": "payload"}]}, RULES, "must be one JSONLogic operation"),
    (("a", {}), {"rules": {"bogus": 1}}, RULES, "unknown operator `bogus`"),
    (("a", {}), {"rules": {"==": [1]}}, RULES, "takes at least 2 arguments"),
    (("a", {}), {"rules": {"var": "order_id"}}, RULES, "write 'payload.order_id'"),
    (("a", {}), {"rules": {"in": ["x", "x" * 20_000]}}, RULES, "larger than 16384 bytes"),
    (("a", {}), {"rules": {"!": deep}}, RULES, "deeper than 64 levels"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "told"), BAD, ids=[told for *_, told in BAD])
def test_what_may_not_reach_the_table_is_refused_before_any_sql(
    engine: Engine, arguments: Any, options: Any, error: type[InvalidActionError], told: str
) -> None:
    """The same verdict on both databases, and the caller's transaction as it was."""
    with engine.connect() as connection, statements_of(engine) as sent:
        with pytest.raises(error) as refused:
            publish(connection, *arguments, **options)
        assert not connection.in_transaction()

    assert told in str(refused.value)
    assert sent == []


documents = st.dictionaries(
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8).filter(
        lambda key: key not in {"__rules", "__meta"}
    ),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        max_leaves=12,
    ),
    max_size=5,
)


def test_whatever_is_accepted_reads_back_equal(engine: Engine) -> None:
    """Numbers above all: `jsonb` keeps them as decimals, and must give back the float or integer that was given."""

    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
    @given(documents, st.integers(-(2**15), 2**15 - 1), st.datetimes(timezones=st.just(UTC)))
    def check(document: dict[str, Any], priority: int, end_at: datetime) -> None:
        with engine.connect() as connection:
            try:
                one = publish(connection, "a", document, priority=priority, end_at=end_at).id
                [many] = publish_many(
                    connection, [Draft().type("a").payload(document).priority(priority).eligible_at(end_at)]
                )
            except InvalidInstantError:
                assert end_at.year in {1, 9999}
                return
            stored = connection.execute(select(TABLE).where(TABLE.c.id.in_([one, many.id]))).all()
            connection.rollback()
        for row in stored:
            assert row.payload == document
            assert {key: repr(value) for key, value in _scalars(row.payload)} == {
                key: repr(value) for key, value in _scalars(document)
            }
            assert (row.priority, row.end_at) == (priority, end_at)

    check()


def _scalars(value: Any, path: str = "$") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _scalars(item, f"{path}.{json.dumps(key)}")
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _scalars(item, f"{path}[{position}]")
    else:
        # jsonb knows no negative zero; it is equal to zero.
        yield path, 0.0 if value == 0 and isinstance(value, float) else value


def test_callers_own_insert_and_ours_share_the_unique_index(engine: Engine) -> None:
    """The table is a public contract: a row inserted by plain SQL holds its key like any other."""
    with engine.begin() as connection:
        inserted = _insert_plainly(connection)

    assert publish(engine, "a", {}, idempotency_key="k") == Receipt(id=inserted, outcome="kept")


def _insert_plainly(connection: Connection) -> int:
    return connection.execute(insert(TABLE).values(type="a", idempotency_key="k").returning(TABLE.c.id)).scalar_one()
