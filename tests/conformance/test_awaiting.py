"""Publishing from async code: through SQLAlchemy's own `run_sync`, or `apublish`, which is nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from prefect_claim_dispatch import Draft, Receipt, apublish, apublish_many, publish, publish_many
from prefect_claim_dispatch.engines import parsed_url
from prefect_claim_dispatch.errors import ConfigurationError, DuplicateActionError, SchemaMissingError
from prefect_claim_dispatch.schema import actions_table

TABLE = actions_table()
DRAFT = Draft().type("many")


def run(database_url: str, work: Callable[[AsyncEngine], Awaitable[Any]]) -> Any:
    """Do *work* with an async engine as an application makes it: psycopg's or aiosqlite."""
    url = parsed_url(database_url)
    if url.get_backend_name() == "sqlite":
        url = url.set(drivername="sqlite+aiosqlite")

    async def main() -> Any:
        engine = create_async_engine(url)
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    return asyncio.run(main())


def types(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.execute(select(TABLE.c.type).order_by(TABLE.c.id)).scalars())


async def through_run_sync(bind: Any, name: str) -> list[Receipt]:
    return [await bind.run_sync(publish, name), *await bind.run_sync(publish_many, [DRAFT])]


async def through_apublish(bind: Any, name: str) -> list[Receipt]:
    return [await apublish(bind, name), *await apublish_many(bind, [DRAFT])]


@pytest.mark.parametrize("publishing", [through_run_sync, through_apublish])
def test_session_and_connection_are_joined_and_never_committed(
    database_url: str, engine: Engine, publishing: Callable[[Any, str], Awaitable[list[Receipt]]]
) -> None:
    """The promise does not depend on who waits."""

    async def work(async_engine: AsyncEngine) -> None:
        async with AsyncSession(async_engine) as session:
            await publishing(session, "rolled back")
            await session.rollback()
            await publishing(session, "session")
            await session.commit()
        async with async_engine.connect() as connection:
            await publishing(connection, "rolled back")
            await connection.rollback()
            receipts = await publishing(connection, "connection")
            assert [receipt.outcome for receipt in receipts] == ["created", "created"]
            await connection.commit()

    run(database_url, work)

    assert types(engine) == ["session", "many", "connection", "many"]


def test_engine_gets_a_transaction_of_its_own(database_url: str, engine: Engine) -> None:
    """As with `publish`: committed when it returns, and nothing when it raises."""

    async def work(async_engine: AsyncEngine) -> Receipt:
        receipt = await apublish(async_engine, "a", {"n": 1}, idempotency_key="k")
        assert await apublish(async_engine, "a", idempotency_key="k") == Receipt(id=receipt.id, outcome="kept")
        with pytest.raises(DuplicateActionError):
            await apublish_many(async_engine, [DRAFT, DRAFT.type("a").idempotency("k").on_conflict("raise")])
        return receipt

    receipt = run(database_url, work)

    assert receipt.outcome == "created"
    assert types(engine) == ["a"]


def test_errors_of_its_own_transaction_are_ours(empty_database_url: str) -> None:
    """A missing table says what to run, in async code too."""
    with pytest.raises(SchemaMissingError, match="claim-dispatch db upgrade"):
        run(empty_database_url, lambda async_engine: apublish(async_engine, "a"))


@pytest.mark.parametrize(("function", "name"), [(apublish, "publish"), (apublish_many, "publish_many")])
def test_bind_that_is_not_async_is_refused(engine: Engine, function: Any, name: str) -> None:
    """The likeliest mistake is the other kind of engine."""
    with pytest.raises(ConfigurationError, match=f"got Engine; or call {name}$"):
        asyncio.run(function(engine, "a"))
