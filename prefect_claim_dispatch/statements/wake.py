"""Wake: claim flows that stay are told that something is due. PostgreSQL only, and none of these runs in the loop.

On SQLite they watch the file's version instead; see :mod:`~prefect_claim_dispatch.listening`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ClauseElement,
    ColumnElement,
    Executable,
    Select,
    Table,
    Text,
    bindparam,
    func,
    literal_column,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.catalogs import catalog, relation
from prefect_claim_dispatch.wake_ups import TRIGGER, channel_of


@cache
def wake_up(table: Table) -> Select[Any]:
    """One row, none without the table: its ``channel``; ``is_there``, whether the trigger is; the ``backend_pid``."""
    query, channel = _located(table)
    trigger = _trigger()
    is_there = (
        select(trigger.c.tgrelid).where(_fires(trigger, relation(table))).exists().label("is_there")  # never NULL
    )
    return query.add_columns(
        channel.label("channel"), is_there, func.pg_backend_pid().label("backend_pid")
    ).execution_options(**{NAME: "wake_up"})


@cache
def wake(table: Table) -> Select[Any]:
    """Wake who stays, when this transaction is committed; does nothing where the trigger is not installed.

    For changes that are no INSERT and make actions due: an UPDATE has no trigger, since every claim is one.
    """
    query, channel = _located(table)
    trigger = _trigger()
    return (
        query.add_columns(func.pg_notify(channel, literal_column("''", Text)))
        .where(select(trigger.c.tgrelid).where(_fires(trigger, relation(table))).exists())
        .execution_options(**{NAME: "wake"})
    )


@cache
def probe() -> Select[Any]:
    """Send ``payload`` to ``channel`` when this transaction is committed."""
    return select(func.pg_notify(bindparam("channel", type_=Text), bindparam("payload", type_=Text))).execution_options(
        **{NAME: "probe"}
    )


class Listen(Executable, ClauseElement):
    """Have the notifications of a channel sent to this connection, from its commit on."""

    inherit_cache = False

    def __init__(self, channel: str) -> None:
        self.channel = channel


@compiles(Listen)
def _listen(element: Listen, compiler: SQLCompiler, **_: Any) -> str:
    return f"LISTEN {compiler.preparer.quote_identifier(element.channel)}"


def _located(table: Table) -> tuple[Select[Any], ColumnElement[str]]:
    """A query of the one row of the table in the catalogs, with no column yet, and its channel."""
    named = catalog("pg_class", oid=BigInteger, relname=Text, relnamespace=BigInteger)
    namespace = catalog("pg_namespace", oid=BigInteger, nspname=Text)
    query = select().join_from(named, namespace, namespace.c.oid == named.c.relnamespace)
    return query.where(named.c.oid == relation(table)), channel_of(namespace.c.nspname, named.c.relname)


def _trigger() -> Any:
    return catalog("pg_trigger", tgrelid=BigInteger, tgname=Text, tgenabled=Text, tgisinternal=Boolean)


def _fires(trigger: Any, of: ColumnElement[Any]) -> ColumnElement[bool]:
    """It is installed, and nobody has disabled it."""
    c = trigger.c
    is_ours = c.tgname == literal_column(f"'{TRIGGER}'", Text)
    return (c.tgrelid == of) & is_ours & (c.tgenabled != literal_column("'D'", Text))
