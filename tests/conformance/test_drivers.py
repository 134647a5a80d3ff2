"""Publishing through the drivers that applications have, beside psycopg 3: the same rows, errors and joins.

An application's engine has the application's driver. What binds a value, says why it failed, or knows a transaction is
the driver's, so each of them is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import URL, Connection, create_engine, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from prefect_claim_dispatch import Draft, Publisher, Receipt, apublish, engines, publish, publish_many
from prefect_claim_dispatch.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DuplicateActionError,
    SchemaMissingError,
)
from prefect_claim_dispatch.schema import actions_table

TABLE = actions_table()
ON = datetime(2030, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
AWKWARD = ["%s", "%(a)s", ":a", "$1", "'", '"', "\\", "{a,b}", "NULL", "", "ß\U0001f600", "a\nb", "?"]
SYNC, ASYNC = ["psycopg", "psycopg2"], ["psycopg", "asyncpg"]

Work = Callable[[Connection], Any]
Doing = Callable[[Work], Any]


@pytest.fixture
def url(postgres_url: str) -> URL:
    """A migrated database, on one PostgreSQL: what a driver sends does not depend on the server."""
    return make_url(postgres_url)


@pytest.fixture(params=[*SYNC, "asyncpg"])
def committing(request: pytest.FixtureRequest, url: URL) -> Doing:
    """Do work on a connection of an application's engine, in one transaction, and commit it."""
    return committing_with(request.param, url)


def committing_with(driver: str, url: URL, **options: Any) -> Doing:
    address = url.set(drivername=f"postgresql+{driver}")

    def synchronously(work: Work) -> Any:
        engine = create_engine(address, **options)
        try:
            with engine.begin() as connection:
                return work(connection)
        finally:
            engine.dispose()

    async def awaited(work: Work) -> Any:
        engine = create_async_engine(address, **options)
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(work)
        finally:
            await engine.dispose()

    return synchronously if driver in SYNC else lambda work: asyncio.run(awaited(work))


def rows(connection: Connection) -> list[Any]:
    return list(connection.execute(select(TABLE).order_by(TABLE.c.id)))


def full(key: str) -> Draft:
    draft = Draft().type("a.b").payload({"text": AWKWARD, "number": 1.5, "nothing": None}).meta(source=key).priority(-3)
    return draft.eligible_at(ON).idempotency(key).ordering_key(key).rules({"==": [{"var": "payload.number"}, 1.5]})


def test_one_action_arrives_as_it_was_published(committing: Doing) -> None:
    """A driver that mistakes a percent sign or an instant would do so in somebody's data."""
    key = "".join(AWKWARD)

    def work(connection: Connection) -> None:
        publish(connection, "bare")
        publish(connection, "delayed", {}, delay=timedelta(minutes=5, microseconds=1000))
        Publisher(connection).publish(lambda _: full(key))

    committing(work)

    bare, delayed, one = committing(rows)
    assert (bare.payload, bare.priority, bare.idempotency_key, bare.ordering_key) == ({}, 0, None, None)
    assert bare.end_at == bare.created_at
    assert delayed.end_at - delayed.created_at == timedelta(minutes=5, microseconds=1000)
    assert_is_full(one, key)


def assert_is_full(row: Any, key: str) -> None:
    assert (row.type, row.end_at, row.priority) == ("a.b", ON, -3)
    assert (row.idempotency_key, row.ordering_key) == (key, key)
    assert row.payload["text"] == AWKWARD
    assert (row.payload["number"], row.payload["nothing"]) == (1.5, None)
    assert row.payload["__meta"] == {"source": key}


def test_batch_arrives_as_it_was_published(committing: Doing) -> None:
    """A batch is bound as arrays written as text, each of which the driver must pass on untouched."""
    drafts = [Draft().type("bare"), *(full(key or "empty") for key in AWKWARD), Draft().type("late").after(minutes=5)]

    receipts = committing(lambda connection: publish_many(connection, drafts))

    found = {row.id: row for row in committing(rows)}
    assert [receipt.outcome for receipt in receipts] == ["created"] * len(drafts)
    assert len(found) == len(drafts)
    for receipt, key in zip(receipts[1:-1], AWKWARD, strict=True):
        assert_is_full(found[receipt.id], key or "empty")
    first, last = found[receipts[0].id], found[receipts[-1].id]
    assert (first.payload, first.idempotency_key, first.end_at) == ({}, None, first.created_at)
    assert last.end_at - last.created_at == timedelta(minutes=5)


def test_held_keys_are_told_and_break_nothing(committing: Doing) -> None:
    """Every conflict policy, one by one and in a batch, in a transaction that goes on."""

    def work(connection: Connection) -> list[Receipt]:
        first = publish(connection, "a", {"n": 1}, idempotency_key="k")
        with pytest.raises(DuplicateActionError) as refusal:
            publish(connection, "a", {"n": 2}, idempotency_key="k", on_conflict="raise")
        assert refusal.value.existing_id == first.id
        kept = publish(connection, "a", {"n": 3}, idempotency_key="k")
        replacing = Draft().type("a").payload({"n": 4}).idempotency("k").on_conflict("replace")
        return [first, kept, *publish_many(connection, [replacing, Draft().type("b").idempotency("k")])]

    first, kept, replaced, other = committing(work)

    assert (kept, replaced) == (Receipt(id=first.id, outcome="kept"), Receipt(id=first.id, outcome="replaced"))
    assert other.outcome == "created"
    assert [(row.type, row.payload) for row in committing(rows)] == [("a", {"n": 4}), ("b", {})]


def test_what_is_rolled_back_was_never_there(committing: Doing) -> None:
    """The transaction is the caller's, whoever drives it."""

    def work(connection: Connection) -> None:
        publish(connection, "a")
        publish_many(connection, [Draft().type("b")])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        committing(work)

    assert committing(rows) == []


def test_batch_that_fails_leaves_the_transaction_usable(committing: Doing) -> None:
    """The savepoint around a batch is the driver's too."""

    def work(connection: Connection) -> None:
        publish(connection, "before", {}, idempotency_key="k")
        raising = Draft().type("before").idempotency("k").on_conflict("raise")
        with pytest.raises(DuplicateActionError):
            publish_many(connection, [Draft().type("gone"), raising])
        publish(connection, "after")

    committing(work)

    assert [row.type for row in committing(rows)] == ["before", "after"]


@pytest.mark.parametrize("driver", [*SYNC, "asyncpg"])
def test_batch_in_autocommit_is_refused(driver: str, url: URL) -> None:
    """Part of it could stay; each driver says in a way of its own that it commits by itself."""
    doing = committing_with(driver, url, isolation_level="AUTOCOMMIT")

    with pytest.raises(ConfigurationError, match="the bind is in AUTOCOMMIT"):
        doing(lambda connection: publish_many(connection, [Draft().type("a")]))

    assert doing(lambda connection: publish(connection, "one")).outcome == "created"
    assert [row.type for row in doing(rows)] == ["one"]


@pytest.mark.parametrize("driver", SYNC)
def test_urls_and_sessions_take_any_driver(driver: str, url: URL) -> None:
    """A URL gets an engine of ours, whose options every driver of libpq knows."""
    address = url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)

    engine = engines.create(address)
    with Session(engine) as session, session.begin():
        publish(session, "session")
    by_engine = publish_many(engine, [Draft().type("engine")])

    with engine.connect() as connection:
        assert [row.type for row in rows(connection)] == ["session", "engine"]
    assert by_engine[0].outcome == "created"
    engine.dispose()


@pytest.mark.parametrize("driver", [*SYNC, "asyncpg"])
def test_missing_table_and_missing_server_are_told_apart(driver: str, url: URL) -> None:
    """The remedy depends on the error's code, and the drivers keep it in different places."""
    address = url.set(drivername=f"postgresql+{driver}")
    nowhere = address.update_query_dict({"host": "/nowhere"})

    async def awaited(to: URL, table: str | None) -> None:
        engine = create_async_engine(to)
        try:
            await apublish(engine, "a", table=table)
        finally:
            await engine.dispose()

    def publishing(to: URL, table: str | None = None) -> None:
        if driver not in SYNC:
            asyncio.run(awaited(to, table))
            return
        engine = create_engine(to)
        try:
            publish(engine, "a", table=table)
        finally:
            engine.dispose()

    with pytest.raises(SchemaMissingError, match="claim-dispatch db upgrade"):
        publishing(address, "elsewhere")
    with pytest.raises(DatabaseUnavailableError, match="can't be reached"):
        publishing(nowhere)


def test_error_in_a_transaction_of_the_callers_is_the_drivers(committing: Doing) -> None:
    """The caller's own retries look for what they know."""
    with pytest.raises(DBAPIError) as refusal:
        committing(lambda connection: publish(connection, "a", table="elsewhere"))

    assert "elsewhere" in str(refusal.value.orig)


def test_asyncpg_by_url_is_refused_with_the_way_to_use_it(url: URL) -> None:
    """Nobody awaits where a URL stands."""
    address = url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)

    with pytest.raises(ConfigurationError, match="is for asyncio; use `await async_session"):
        publish(address, "a")
