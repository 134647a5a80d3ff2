# pyright: strict
"""What a type checker says of publishing. ``# error: RULE`` marks a line that must be refused; all others must pass."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Literal, TypedDict, assert_type
from uuid import UUID

import psycopg
from pydantic import BaseModel
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, scoped_session

from prefect_claim_dispatch import (
    Draft,
    Publisher,
    Receipt,
    apublish,
    apublish_many,
    publish,
    publish_many,
    publish_sql,
)


class Model(BaseModel):
    user_id: int


@dataclass
class Data:
    user_id: int


class Typed(TypedDict):
    user_id: int


class Colour(Enum):
    RED = "red"


draft = Draft()
publisher = Publisher()

# Each setter, as it is meant; and that it is a draft again.
assert_type(draft.type("email.welcome"), Draft)
assert_type(draft.payload({"user_id": 7, "at": datetime.now(UTC), "id": UUID(int=7), "colour": Colour.RED}), Draft)
assert_type(draft.payload(Model(user_id=7)), Draft)
assert_type(draft.payload(Data(user_id=7)), Draft)
assert_type(draft.payload(Typed(user_id=7)), Draft)
assert_type(draft.eligible_at(datetime.now(UTC)), Draft)
assert_type(draft.eligible_at(timedelta(minutes=5)), Draft)
assert_type(draft.eligible_at("2026-01-31T12:00:00+00:00"), Draft)
assert_type(draft.eligible_at(lambda: datetime.now(UTC)), Draft)
assert_type(draft.eligible_at(lambda: None), Draft)
assert_type(draft.after(minutes=5, seconds=0.5), Draft)
assert_type(draft.after(timedelta(minutes=5)), Draft)
assert_type(draft.idempotency("welcome:7"), Draft)
assert_type(draft.on_conflict("replace"), Draft)
assert_type(draft.rules({"var": "payload.user_id"}), Draft)
assert_type(draft.meta(source="signup"), Draft)
assert_type(draft.meta({"source": "signup"}, campaign=7), Draft)
assert_type(draft.when(lambda payload: payload["user_id"] == 7), Draft)
assert_type(draft.skip_if(lambda payload: "user_id" not in payload), Draft)
assert_type(draft.priority(5), Draft)
assert_type(draft.ordering_key("user:7"), Draft)
assert_type(draft.table("other"), Draft)

# Each setter, as it is not meant.
draft.type(7)  # error: reportArgumentType
draft.type(None)  # error: reportArgumentType
draft.payload([1, 2])  # error: reportArgumentType
draft.payload("{}")  # error: reportArgumentType
draft.payload({1: 2})  # error: reportArgumentType
draft.eligible_at(7)  # error: reportArgumentType
draft.eligible_at(None)  # error: reportArgumentType
draft.eligible_at(lambda when: when)  # error: reportArgumentType, reportUnknownLambdaType
draft.after(5)  # error: reportArgumentType
draft.after(minutes="5")  # error: reportArgumentType
draft.after(years=1)  # error: reportCallIssue
draft.idempotency(42)  # error: reportArgumentType
draft.on_conflict("ignore")  # error: reportArgumentType
draft.rules("true")  # error: reportArgumentType
draft.rules([])  # error: reportArgumentType
draft.meta("signup")  # error: reportArgumentType
draft.when(True)  # error: reportArgumentType
draft.when(lambda: True)  # error: reportArgumentType
draft.skip_if("user_id")  # error: reportArgumentType
draft.priority("high")  # error: reportArgumentType
draft.priority(1.5)  # error: reportArgumentType
draft.ordering_key(b"user:7")  # error: reportArgumentType
draft.table(7)  # error: reportArgumentType
draft.eligable_at(timedelta(minutes=5))  # error: reportAttributeAccessIssue, reportUnknownMemberType
draft.intent = draft.intent  # error: reportAttributeAccessIssue

# What comes of it.
receipt = draft.commit()
assert_type(receipt, Receipt)
assert_type(receipt.id, int | None)
assert_type(receipt.outcome, Literal["created", "kept", "replaced", "skipped"])
receipt.id.bit_length()  # error: reportOptionalMemberAccess
is_new = receipt.outcome == "creatd"  # error: reportUnnecessaryComparison

assert_type(publisher.draft("email.welcome").after(minutes=1).commit(), Receipt)
assert_type(publisher.publish(lambda draft: draft.type("a").payload({"n": 1})), Receipt)
assert_type(publisher.quick("a", datetime.now(UTC), {"n": 1}, idempotency="k", when=lambda payload: True), Receipt)
publisher.publish(lambda draft: draft.type("a").commit())  # error: reportArgumentType
publisher.publish(draft)  # error: reportArgumentType
publisher.quick("a", 7)  # error: reportArgumentType
publisher.quick("a", None, {}, idempotency_key="k")  # error: reportCallIssue


def anywhere(
    engine: Engine,
    connection: Connection,
    session: Session,
    registry: scoped_session[Session],
    async_engine: AsyncEngine,
) -> None:
    """Every bind there is; and an async one is none of `publish`."""
    for bind in (engine, connection, session, registry, "sqlite:///a.db", None):
        assert_type(publish(bind, "a", {"n": 1}, delay=timedelta(minutes=1)), Receipt)
    assert_type(publish_many(engine, [draft]), list[Receipt])
    publish(async_engine, "a")  # error: reportArgumentType
    publish(engine)  # error: reportCallIssue
    publish(engine, "a", payload={})  # error: reportCallIssue
    publish(engine, "a", {}, delay=60)  # error: reportArgumentType
    publish(engine, "a", {}, end_at=0)  # error: reportArgumentType
    publish(engine, "a", {}, priority="1")  # error: reportArgumentType
    publish(engine, "a", {}, on_conflict="ignore")  # error: reportArgumentType
    publish(engine, "a", {}, idempotency="k")  # error: reportCallIssue
    publish_many(engine, draft)  # error: reportArgumentType
    publish_many(engine, [{"type": "a"}])  # error: reportArgumentType


async def awaited(engine: AsyncEngine, connection: AsyncConnection, session: AsyncSession, sync: Engine) -> None:
    """`apublish` keeps the whole signature of `publish`; so does SQLAlchemy's own `run_sync`."""
    assert_type(await session.run_sync(publish, "a", {"n": 1}, priority=1), Receipt)
    assert_type(await connection.run_sync(publish_many, [draft]), list[Receipt])
    for bind in (engine, connection, session):
        assert_type(await apublish(bind, "a", {"n": 1}, delay=timedelta(minutes=1)), Receipt)
    assert_type(await apublish_many(engine, [draft]), list[Receipt])
    await session.run_sync(publish, "a", {}, priority="1")  # error: reportArgumentType
    await apublish(sync, "a")  # error: reportArgumentType
    await apublish(engine, "a", {}, priority="1")  # error: reportArgumentType
    await apublish(engine, "a", {}, idempotency="k")  # error: reportCallIssue


def cursors(connection: psycopg.Connection, file: sqlite3.Connection) -> Any:
    """What is rendered goes into the drivers' own typed `execute`."""
    connection.execute(*publish_sql(draft, "postgresql"))
    file.execute(*publish_sql(draft, "sqlite", "named"))
    publish_sql("a", "sqlite")  # error: reportArgumentType
    publish_sql(draft, "mysql")  # error: reportArgumentType
    publish_sql(draft, "sqlite", "$1")  # error: reportArgumentType
    publish_sql(draft)  # error: reportCallIssue
