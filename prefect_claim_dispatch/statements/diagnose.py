"""Diagnose: what the database tells of itself and of the action table. None of these runs in the loop.

All of it is in catalogs and views that every role may read. Of other roles' sessions PostgreSQL shows a plain role
no times, but their hold on the vacuum horizon, in transactions.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    Select,
    Table,
    Text,
    and_,
    cast,
    exists,
    func,
    literal,
    null,
    select,
    true,
    union_all,
)
from sqlalchemy.sql.selectable import CompoundSelect

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import SQLITE, clamped, now
from prefect_claim_dispatch.schema import status_is
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.catalogs import catalog, relation
from prefect_claim_dispatch.statements.ordering import heads


def server(dialect: str) -> Select[Any]:
    """One row: ``version, now``, and what only one of them has: ``journal_mode``; ``backend_pid, is_read_only``."""
    if dialect == SQLITE:
        journal = func.pragma_journal_mode().table_valued("journal_mode")
        query = select(func.sqlite_version().label("version"), now().label("now"), journal.c.journal_mode)
    else:
        query = select(
            func.current_setting("server_version").label("version"),
            func.clock_timestamp().label("now"),
            func.pg_backend_pid().label("backend_pid"),
            (func.current_setting("transaction_read_only") == "on").label("is_read_only"),
        )
    return query.execution_options(**{NAME: "server"})


def columns_and_rights(table: Table) -> Select[Any]:
    """PostgreSQL: one row for each column that is there: ``name``, and what this role may do with it."""
    there = catalog("pg_attribute", attrelid=BigInteger, attname=Text, attnum=Integer, attisdropped=Boolean)

    def may(right: str) -> ColumnElement[bool]:
        return func.has_column_privilege(there.c.attrelid, there.c.attnum, right, type_=Boolean).label(right.lower())

    return (
        select(there.c.attname.label("name"), may("SELECT"), may("INSERT"), may("UPDATE"))
        .where(there.c.attrelid == relation(table), there.c.attnum > 0, ~there.c.attisdropped)
        .order_by(there.c.attnum)
        .execution_options(**{NAME: "columns_and_rights"})
    )


def indexes_of(table: Table, dialect: str) -> Select[Any]:
    """One row for each index that is there: ``name, is_valid``."""
    query: Select[Any]
    if dialect == SQLITE:
        there = catalog("sqlite_master", type=Text, name=Text, tbl_name=Text)
        query = select(there.c.name, true().label("is_valid")).where(
            there.c.type == "index", there.c.tbl_name == table.name
        )
    else:
        index = catalog("pg_index", indexrelid=BigInteger, indrelid=BigInteger, indisvalid=Boolean)
        named = catalog("pg_class", oid=BigInteger, relname=Text)
        query = (
            select(named.c.relname.label("name"), index.c.indisvalid.label("is_valid"))
            .join_from(index, named, named.c.oid == index.c.indexrelid)
            .where(index.c.indrelid == relation(table))
        )
    return query.execution_options(**{NAME: "indexes_of"})


def tuples_of(table: Table) -> Select[Any]:
    """PostgreSQL: one row with the estimates ``live, dead`` of the table's row versions."""
    there = catalog("pg_stat_all_tables", relid=BigInteger, n_live_tup=BigInteger, n_dead_tup=BigInteger)
    return (
        select(there.c.n_live_tup.label("live"), there.c.n_dead_tup.label("dead"))
        .where(there.c.relid == relation(table))
        .execution_options(**{NAME: "tuples_of"})
    )


def pins() -> CompoundSelect[Any]:
    """PostgreSQL: what keeps VACUUM from removing dead rows in this database: ``kind, who, seconds, transactions``.

    Transactions that hold a snapshot or have written, prepared ones, and replication slots. ``seconds`` is NULL for
    slots, and for sessions of which this role sees no times.
    """
    return union_all(_sessions(), _prepared(), _slots()).execution_options(**{NAME: "pins"})


def claims_held(table: Table) -> Select[Any]:
    """One row: ``expired``, how many leases are over, the ``oldest_lease_at``, ``oldest_claim_at``, ``now``.

    Reads the claimed rows alone, by ``ix_*_leases``.
    """
    c = table.c
    return (
        select(
            func.count().filter(c.lease_expires_at < now()).label("expired"),
            clamped(func.min(c.lease_expires_at)).label("oldest_lease_at"),
            clamped(func.min(c.claimed_at)).label("oldest_claim_at"),
            now().label("now"),
        )
        .where(status_is(c.status, ActionStatus.CLAIMED))
        .execution_options(**{NAME: "claims_held"})
    )


def blocking(table: Table, dialect: str) -> Select[Any]:
    """The heads of at most ``limit`` ordering keys that are not claimed, and behind which something is due.

    ``ordering_key, id, type, end_at``; how many are due behind it, ``waiting``, ``since`` when; ``now``. By
    ``ix_*_ordering``: reads what waits for these keys.
    """
    found = heads(table, dialect, further=False).subquery("found")
    head, follower = table.alias("blocking"), table.alias("follower")
    is_waiting = and_(
        follower.c.ordering_key == found.c.ordering_key,
        follower.c.id > found.c.id,
        status_is(follower.c.status, ActionStatus.PENDING),
        follower.c.end_at <= now(),
    )
    return (
        select(
            found.c.ordering_key,
            head.c.id,
            head.c.type,
            head.c.end_at,
            select(func.count()).select_from(follower).where(is_waiting).scalar_subquery().label("waiting"),
            select(func.min(follower.c.end_at)).where(is_waiting).scalar_subquery().label("since"),
            now().label("now"),
        )
        .select_from(found.join(head, head.c.id == found.c.id))
        .where(head.c.status != ActionStatus.CLAIMED.value, exists().where(is_waiting))
        .order_by(head.c.id)
        .execution_options(**{NAME: "blocking"})
    )


def holders(table: Table) -> Select[Any]:
    """Who holds a claim whose lease lives: ``claimed_by``, each once. By ``ix_*_leases``."""
    c = table.c
    return (
        select(c.claimed_by)
        .distinct()
        .where(status_is(c.status, ActionStatus.CLAIMED), c.lease_expires_at > now(), c.claimed_by.is_not(None))
        .execution_options(**{NAME: "holders"})
    )


def _seconds_since(instant: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.extract("epoch", func.clock_timestamp() - instant)


def _row(kind: str, who: Any, seconds: Any, transactions: Any) -> Select[Any]:
    return select(
        literal(kind, Text).label("kind"),
        cast(who, Text).label("who"),
        cast(seconds, Integer).label("seconds"),
        cast(transactions, BigInteger).label("transactions"),
    )


def _sessions() -> Select[Any]:
    there = catalog(
        "pg_stat_activity",
        pid=Integer,
        datname=Text,
        usename=Text,
        xact_start=DateTime(timezone=True),
        backend_xmin=Text,
        backend_xid=Text,
    )
    c = there.c
    pinned = func.coalesce(func.age(c.backend_xmin), func.age(c.backend_xid))
    who = func.concat(c.pid, " of ", c.usename)
    return _row("session", who, _seconds_since(c.xact_start), pinned).where(
        c.datname == func.current_database(), c.pid != func.pg_backend_pid(), pinned.is_not(None)
    )


def _prepared() -> Select[Any]:
    there = catalog("pg_prepared_xacts", gid=Text, database=Text, prepared=DateTime(timezone=True), transaction=Text)
    c = there.c
    return _row("prepared transaction", c.gid, _seconds_since(c.prepared), func.age(c.transaction)).where(
        c.database == func.current_database()
    )


def _slots() -> Select[Any]:
    there = catalog("pg_replication_slots", slot_name=Text, xmin=Text)
    return _row("replication slot", there.c.slot_name, null(), func.age(there.c.xmin)).where(there.c.xmin.is_not(None))
