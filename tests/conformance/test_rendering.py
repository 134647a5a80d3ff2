"""A publish as SQL and parameters: the same statement and the same row as `publish`, through every driver's cursor."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, Engine, event, make_url, select

from prefect_claim_dispatch import Draft, Publisher, Receipt, publish, publish_many, publish_sql
from prefect_claim_dispatch.errors import ConfigurationError, InvalidActionError, InvalidKeyError, InvalidTypeError
from prefect_claim_dispatch.schema import actions_table

TABLE = actions_table()
WELCOME = Draft().type("email.welcome").payload({"user_id": 7})
STYLES = {"postgresql": ("pyformat", "format"), "sqlite": ("qmark", "named", "format")}


@pytest.fixture
def url(database_url: str) -> URL:
    return make_url(database_url)


@contextmanager
def cursor_of(url: URL) -> Iterator[Any]:
    """A bare driver's cursor, rolled back unless the test commits."""
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(url.database or "")) as connection:
            yield connection.cursor()
        return
    host, port = address_of(url)
    with closing(psycopg.connect(host=host, port=port, user=url.username, dbname=url.database)) as connection:
        yield connection.cursor()


def address_of(url: URL) -> tuple[str, int | None]:
    """Host and port: of the socket's folder, or of the pgbouncer that the run goes through."""
    return url.host or str(url.query["host"]), url.port


def execute(cursor: Any, draft: Draft, dialect: Any, style: Any) -> Any:
    sql, parameters = publish_sql(draft, dialect, style)
    if (dialect, style) == ("sqlite", "format"):
        # As Django does it, since sqlite3 has no such style.
        sql %= ("?",) * len(parameters)
    return cursor.execute(sql, parameters).fetchone()


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(TABLE).order_by(TABLE.c.id)))


@pytest.mark.parametrize("delayed", [True, False])
def test_row_is_the_one_that_publish_makes(engine: Engine, url: URL, delayed: bool) -> None:
    """Whoever reads the table must not be able to tell which way an action came."""
    dialect: Any = url.get_backend_name()
    when: Any = timedelta(days=400, seconds=0.25) if delayed else datetime(2030, 1, 1, 12, 0, 0, 5, tzinfo=UTC)
    draft = WELCOME.eligible_at(when).priority(-3).ordering_key("user:%s:?:$1").meta(source="50%").idempotency("k%(a)s")
    ours = Publisher(engine).publish(lambda _: draft).id

    with cursor_of(url) as cursor:
        ids = [execute(cursor, draft.idempotency(style), dialect, style)[0] for style in STYLES[dialect]]
        cursor.connection.commit()

    first, *others = rows(engine)
    assert (first.id, [row.id for row in others]) == (ours, ids)
    for row, style in zip(others, STYLES[dialect], strict=True):
        assert row.idempotency_key == style
        assert (row.type, row.payload, row.priority, row.ordering_key, row.status) == (
            (first.type, first.payload, first.priority, first.ordering_key, first.status)
        )
        assert row.end_at - row.created_at == when if delayed else row.end_at == when


def test_statement_is_the_one_that_publish_sends(engine: Engine) -> None:
    """A second way to insert would be a second set of errors."""
    sent: list[tuple[str, Any]] = []
    event.listen(engine, "before_cursor_execute", lambda *call: sent.append((call[2], call[3])))
    end_at = datetime(2030, 1, 1, tzinfo=UTC)

    publish(engine, "email.welcome", {"user_id": 7}, end_at=end_at, idempotency_key="k", rules={"var": "payload.a"})

    draft = WELCOME.eligible_at(end_at).idempotency("k").rules({"var": "payload.a"})
    dialect: Any = engine.dialect.name
    assert [said for said in sent if said[0].startswith("INSERT")] == [publish_sql(draft, dialect)]


def test_no_row_comes_back_when_the_key_is_held(engine: Engine, url: URL) -> None:
    """`keep` in one statement: nothing is inserted, nothing fails, and the transaction is still usable."""
    dialect: Any = url.get_backend_name()
    first = publish(engine, "email.welcome", {"n": 1}, idempotency_key="k")

    with cursor_of(url) as cursor:
        assert execute(cursor, WELCOME.idempotency("k"), dialect, None) is None
        assert execute(cursor, WELCOME.idempotency("other"), dialect, None) is not None
        cursor.connection.commit()

    assert [(row.idempotency_key, row.payload) for row in rows(engine)] == [("k", {"n": 1}), ("other", {"user_id": 7})]
    assert rows(engine)[0].id == first.id


def test_it_comes_and_goes_with_the_drivers_transaction(engine: Engine, url: URL) -> None:
    """The action is part of the caller's data."""
    dialect: Any = url.get_backend_name()

    with cursor_of(url) as cursor:
        execute(cursor, WELCOME, dialect, None)
        cursor.connection.rollback()
        assert rows(engine) == []
        execute(cursor, WELCOME.payload({"n": 2}), dialect, None)
        cursor.connection.commit()

    assert [row.payload for row in rows(engine)] == [{"n": 2}]


def test_other_table_is_named_as_it_is(engine: Engine, url: URL) -> None:
    """Quotes in a name are part of the name, also where the SQL is text."""
    dialect: Any = url.get_backend_name()
    other = actions_table('other "actions"; --')
    other.create(engine)

    with cursor_of(url) as cursor:
        id_ = execute(cursor, WELCOME.table(other.name), dialect, None)[0]
        cursor.connection.commit()

    with engine.connect() as connection:
        assert connection.execute(select(other.c.id)).scalars().all() == [id_]
    assert rows(engine) == []


def test_asyncpg_takes_it_too(postgres_url: str) -> None:
    """A driver whose parameters are numbered, and which insists on their types."""
    asyncpg = pytest.importorskip("asyncpg")
    url = make_url(postgres_url)
    draft = WELCOME.idempotency("k").priority(2)

    async def publish_twice() -> list[Any]:
        host, port = address_of(url)
        # Nothing kept prepared, and one transaction: a pooler may stand between, which has no session to prepare in.
        connection = await asyncpg.connect(
            host=host, port=port, user=url.username, database=url.database, statement_cache_size=0
        )
        sql, parameters = publish_sql(draft.eligible_at("2030-01-01T00:00:00+01:00"), "postgresql", "numeric_dollar")
        later, delayed = publish_sql(draft.after(minutes=5), "postgresql", "numeric_dollar")
        assert sql == later
        async with connection.transaction():
            ids = [await connection.fetchval(sql, *parameters), await connection.fetchval(later, *delayed)]
        await connection.close()
        return ids

    first, second = asyncio.run(publish_twice())

    assert first is not None
    assert second is None
    assert publish_many(postgres_url, [draft]) == [Receipt(id=first, outcome="kept")]


@pytest.mark.parametrize(
    ("draft", "error", "told"),
    [
        (Draft(), InvalidTypeError, "no type"),
        (WELCOME.when(lambda _: True), InvalidActionError, "can't skip a draft"),
        (WELCOME.skip_if(lambda _: False), InvalidActionError, "can't skip a draft"),
        (WELCOME.idempotency("k").on_conflict("replace"), InvalidActionError, "more than one statement"),
        (WELCOME.idempotency("k").on_conflict("raise"), InvalidActionError, "more than one statement"),
        (WELCOME.eligible_at(lambda: "tomorrow"), InvalidActionError, "no ISO 8601 instant"),
        ({"type": "a"}, InvalidActionError, "expected a Draft, got dict"),
    ],
)
def test_what_one_statement_cannot_do_is_refused(draft: Any, error: type[Exception], told: str) -> None:
    """Half of a promise would be worse than none: the caller learns at once."""
    with pytest.raises(error, match=told):
        publish_sql(draft, "sqlite")


def test_setters_refuse_as_ever() -> None:
    """The draft is checked while it is made, whoever sends it."""
    with pytest.raises(InvalidKeyError):
        publish_sql(WELCOME.idempotency(""), "sqlite")


@pytest.mark.parametrize(
    ("dialect", "style"), [("mysql", None), ("sqlite", "pyformat"), ("postgresql", "qmark"), ("postgresql", "numeric")]
)
def test_unknown_dialect_or_style_names_those_there_are(dialect: Any, style: Any) -> None:
    """A wrong guess must not end as a syntax error far away."""
    with pytest.raises(
        ConfigurationError, match="there are postgresql: pyformat, format, numeric_dollar; sqlite: qmark"
    ):
        publish_sql(WELCOME, dialect, style)
