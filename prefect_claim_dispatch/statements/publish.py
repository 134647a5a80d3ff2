"""Publish: insert actions, and find or rewrite those that hold their idempotency keys already.

The text of each statement is constant: the number of rows does not change it, nor what is set in them, so it is
compiled and planned once. The exception is a single action without a key: what is not set in it is not sent, which
makes few texts and saves an eighth of the time.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Delete,
    Dialect,
    Float,
    FromClause,
    Insert,
    Integer,
    ScalarSelect,
    Select,
    SmallInteger,
    String,
    Table,
    Text,
    UpdateBase,
    bindparam,
    cast,
    delete,
    false,
    func,
    insert,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.types import TypeEngine

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import (
    POSTGRESQL,
    Instant,
    is_one_of,
    json_type,
    now,
    now_plus,
    parameter_rows,
    unindexed,
)
from prefect_claim_dispatch.schema import status_is
from prefect_claim_dispatch.statements import NAME

KEY_TYPES: Final[dict[str, TypeEngine[Any]]] = {"type": String(), "idempotency_key": String()}
ROW_TYPES: Final[dict[str, TypeEngine[Any]]] = {
    "position": Integer(),
    "type": String(),
    "payload": Text(),
    "end_at": Instant(),
    "delay_seconds": Float(),
    "priority": SmallInteger(),
    "idempotency_key": String(),
    "ordering_key": String(),
}
# SQLAlchemy has a construct for it, but can't cache a statement with that: it compiles for as long as the insert takes.
UNLESS_KEY_EXISTS: Final = "ON CONFLICT (type, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"
NONE: Final = literal_column("0", Integer)
COLUMNS: Final = ("type", "payload", "end_at", "priority", "idempotency_key", "ordering_key")


@cache
def insert_one(table: Table, dialect: str) -> UpdateBase:
    """Insert one action and return its id; nothing, and no error, when its key exists. By ``uq_*_key``.

    Binds the names of `ROW_TYPES` but ``position``. Without `end_at` it is due ``delay_seconds`` from now.
    """
    bound: dict[str, Any] = {name: bindparam(name, type_=type_) for name, type_ in ROW_TYPES.items()}
    statement = _insert(table, _source(_values(bound, dialect)), UNLESS_KEY_EXISTS)
    return statement.returning(table.c.id).execution_options(**{NAME: "publish"})


@cache
def insert_keyless(table: Table, dialect: str, given: tuple[str, ...]) -> UpdateBase:
    """Insert one action without a key and return its id.

    Binds the names *given*, which are of `ROW_TYPES`, ``type`` and ``payload`` among them; all else is at its default.
    """
    bound: dict[str, Any] = {name: bindparam(name, type_=ROW_TYPES[name]) for name in given}
    statement = insert(table).values(_values(bound, dialect))
    return statement.returning(table.c.id).execution_options(**{NAME: "publish"})


@lru_cache(maxsize=256)
def keyless_text(table: Table, dialect: Dialect, given: tuple[str, ...]) -> str:
    """`insert_keyless` as text, for a driver that takes its parameters by name: psycopg.

    SQLAlchemy looks for a statement in its cache by all of its parts, which takes a sixth of what an insert does.
    """
    return str(insert_keyless(table, dialect.name, given).compile(dialect=dialect))


@cache
def insert_many(table: Table, dialect: str) -> UpdateBase:
    """Insert the actions of ``draft_*`` in the order of their positions; returns id, type and key of each new one.

    Ids rise with the positions. Those whose keys exist are passed over. By ``uq_*_key``.
    """
    rows = parameter_rows(dialect, "draft", **ROW_TYPES)
    source = _source(_values(dict(rows.c), dialect)).order_by(rows.c.position)
    c = table.c
    statement = _insert(table, source, UNLESS_KEY_EXISTS)
    return statement.returning(c.id, c.type, c.idempotency_key).execution_options(**{NAME: "publish"})


@cache
def insert_many_keyless(table: Table, dialect: str) -> UpdateBase:
    """Insert the actions of ``draft_*``, none of which has a key, in the order of their positions; returns their ids.

    Ids rise with the positions.
    """
    rows = parameter_rows(dialect, "draft", **ROW_TYPES)
    source = _source(_values(dict(rows.c), dialect)).order_by(rows.c.position)
    return _insert(table, source).returning(table.c.id).execution_options(**{NAME: "publish"})


@cache
def existing(table: Table, dialect: str) -> Select[Any]:
    """Type and key of each of ``key_*``, and the id of the action that holds it, or NULL. By ``uq_*_key``."""
    keys = parameter_rows(dialect, "key", **KEY_TYPES)
    query = select(_holder(table, keys).label("id"), keys.c.type, keys.c.idempotency_key)
    return query.execution_options(**{NAME: "publish_existing"})


@cache
def replace_pending(table: Table, dialect: str) -> UpdateBase:
    """Rewrite the still pending actions that hold the keys of ``draft_*``; returns id, type and key.

    By ``uq_*_key`` and then the primary key. What is written is a new intent, so its attempts are counted from the
    start; `claim_count` never falls.
    """
    rows = parameter_rows(dialect, "draft", **ROW_TYPES)
    # The OFFSET keeps the lookup apart from the join, which would else ask it for every pair of rows.
    found = select(_holder(table, rows).label("id"), *rows.c).offset(NONE).subquery("found")
    values = _values(dict(found.c), dialect)
    c = table.c
    return (
        update(table)
        # Seen by the partial index of due actions, the planner would read all that is pending to replace one.
        .where(c.id == found.c.id, status_is(unindexed(c.status), ActionStatus.PENDING))
        .values(
            payload=values["payload"],
            end_at=values["end_at"],
            priority=values["priority"],
            ordering_key=values["ordering_key"],
            fail_count=0,
            updated_at=now(),
        )
        .returning(c.id, c.type, c.idempotency_key)
        .execution_options(**{NAME: "publish_replace"})
    )


@cache
def lock_holders(table: Table, dialect: str) -> Select[Any]:
    """Lock the actions that hold the keys of ``key_*``, in order of id and whatever their status; returns their ids.

    One that is not pending yet may be when they are rewritten. By ``uq_*_key`` and then the primary key.
    """
    keys = parameter_rows(dialect, "key", **KEY_TYPES)
    holders = select(_holder(table, keys)).select_from(keys)
    return (
        select(table.c.id)
        .where(is_one_of(table.c.id, holders, dialect))
        .order_by(table.c.id)
        .with_for_update()
        .execution_options(**{NAME: "publish_lock"})
    )


@cache
def nothing(table: Table) -> Delete:
    """Change nothing, but have the driver begin its transaction.

    sqlite3 begins late: the release of a savepoint that came first would commit.
    """
    return delete(table).where(false()).execution_options(**{NAME: "publish_begin"})


def _insert(table: Table, source: Select[Any], *suffixes: str) -> Insert:
    columns = source.selected_columns.keys()
    return insert(table).from_select(list(columns), source.suffix_with(*suffixes), include_defaults=False)


def _source(values: dict[str, ColumnElement[Any]]) -> Select[Any]:
    # SQLite needs a WHERE here, to tell ON CONFLICT from a join's ON.
    return select(*(value.label(name) for name, value in values.items())).where(true())


def _values(given: dict[str, Any], dialect: str) -> dict[str, ColumnElement[Any]]:
    """What is written to each column of which something is *given*, and to ``end_at``."""
    values = {name: given[name] for name in COLUMNS if name in given}
    values["payload"] = cast(given["payload"], json_type()) if dialect == POSTGRESQL else given["payload"]
    later = now_plus(given["delay_seconds"]) if "delay_seconds" in given else now()
    values["end_at"] = func.coalesce(given["end_at"], later) if "end_at" in given else later
    return values


def _holder(table: Table, keys: FromClause) -> ScalarSelect[int]:
    """The id of the action that holds a key of *keys*: a lookup for each.

    As a join, the planner of a table that was never analyzed compares every key with every row: measured 1,200 keys/s.
    """
    holder = table.alias("holder")
    return (
        select(holder.c.id)
        .where(
            holder.c.type == keys.c.type,
            holder.c.idempotency_key == keys.c.idempotency_key,
            holder.c.idempotency_key.is_not(None),
        )
        .correlate(keys)
        .scalar_subquery()
    )
