"""Inserting: rows that were checked, as few statements; and what becomes of those whose idempotency keys are taken.

The unique index decides. An insert that it refuses inserts nothing and breaks no transaction; then the action that
holds the key is looked up, or rewritten. Between the two it may be pruned: so the insert is tried again, a bounded
number of times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, Table

from prefect_claim_dispatch.checks import OnConflict
from prefect_claim_dispatch.dialects import POSTGRESQL, SUPPORTED, Instant, bind_rows
from prefect_claim_dispatch.drafts import Receipt
from prefect_claim_dispatch.engines import value_by_driver
from prefect_claim_dispatch.errors import ConfigurationError, DatabaseError, DuplicateActionError
from prefect_claim_dispatch.statements import publish as statements

# More often than this, an action that vanishes between "it exists" and "where is it" is no race.
ROUNDS: Final = 10

Key = tuple[str, str]
Receipts = dict[int, Receipt]


class Row(NamedTuple):
    """One action as the statements bind it, where it goes, and what to do when its key is taken."""

    table: Table
    on_conflict: OnConflict
    type: str
    payload: str
    end_at: datetime | None
    delay_seconds: float
    priority: int
    idempotency_key: str | None
    ordering_key: str | None

    @property
    def key(self) -> Key | None:
        """What is unique about it, or None."""
        return None if self.idempotency_key is None else (self.type, self.idempotency_key)

    def bound(self) -> dict[str, Any]:
        """All that can be bound."""
        return dict(zip(_BOUND, self[_FIRST_BOUND:], strict=True))

    def given(self) -> dict[str, Any]:
        """Of `bound`, what is not at its default: no default is true, and all else is."""
        return {name: value for name, value in zip(_BOUND, self[_FIRST_BOUND:], strict=True) if value}


_FIRST_BOUND: Final = 2
_BOUND: Final = Row._fields[_FIRST_BOUND:]


def insert(connection: Connection, rows: Sequence[Row]) -> list[Receipt]:
    """Insert *rows*, all of one table, and say what became of each, in their order. Does not commit.

    A key that comes twice is inserted once; what follows is a conflict with it.

    Raises:
        DuplicateActionError: a key is taken, and its row says ``raise``.
        ConfigurationError: the connection is to a database that is not supported.
    """
    dialect = connection.dialect.name
    if dialect not in SUPPORTED:
        msg = f"database {dialect!r} is not supported; use PostgreSQL or SQLite"
        raise ConfigurationError(msg)
    if all(row.idempotency_key is None for row in rows):
        return _insert_keyless(connection, rows)
    receipts: Receipts = {}
    open_rows = dict(enumerate(rows))
    for _ in range(ROUNDS):
        for attempt in (_insert_new, _resolve_conflicts):
            receipts |= attempt(connection, open_rows)
            open_rows = {position: row for position, row in open_rows.items() if position not in receipts}
            if not open_rows:
                return [receipts[position] for position in range(len(rows))]
    msg = f"{len(open_rows)} keys were taken and free again {ROUNDS} times over; publish again"
    raise DatabaseError(msg)


def insert_by_driver(engine: Engine, row: Row) -> Receipt:
    """Insert a *row* without a key, past SQLAlchemy's execution; *engine* is as `value_by_driver` wants it.

    Raises:
        DBAPIError: as `value_by_driver`.
    """
    given = row.given()
    sql = statements.keyless_text(row.table, engine.dialect, tuple(given))
    return Receipt(id=value_by_driver(engine, sql, given), outcome="created")


def _insert_keyless(connection: Connection, rows: Sequence[Row]) -> list[Receipt]:
    """Receipts for rows that nothing can refuse, as ids rise in the order of insertion."""
    table, dialect = rows[0].table, connection.dialect.name
    if len(rows) == 1:
        given = rows[0].given()
        statement = statements.insert_keyless(table, dialect, tuple(given))
        return [Receipt(id=connection.execute(statement, given).scalar_one(), outcome="created")]
    bound = _draft_rows(connection, rows)
    ids = connection.execute(statements.insert_many_keyless(table, dialect), bound).scalars().all()
    return [Receipt(id=id_, outcome="created") for id_ in sorted(ids)]


def _insert_new(connection: Connection, rows: dict[int, Row]) -> Receipts:
    """Receipts for those whose keys were free."""
    table = next(iter(rows.values())).table
    dialect = connection.dialect.name
    if len(rows) == 1:
        [(position, row)] = rows.items()
        created = connection.execute(statements.insert_one(table, dialect), row.bound()).scalar_one_or_none()
        return {} if created is None else {position: Receipt(id=created, outcome="created")}
    firsts: dict[Any, int] = {}
    for position, row in rows.items():
        firsts.setdefault(position if row.key is None else row.key, position)
    order = sorted(firsts.values(), key=lambda position: _turn(position, rows[position]))
    statement = statements.insert_many(table, dialect)
    new = connection.execute(statement, _draft_rows(connection, [rows[position] for position in order])).all()
    # Rows without a key are never refused, and ids rise in the order of insertion: so sorted ids are theirs, in order.
    unkeyed = [position for position in order if rows[position].key is None]
    ids = sorted(row.id for row in new if row.idempotency_key is None)
    created = dict(zip(unkeyed, ids, strict=True))
    created |= {firsts[row.type, row.idempotency_key]: row.id for row in new if row.idempotency_key is not None}
    return {position: Receipt(id=id_, outcome="created") for position, id_ in created.items()}


def _turn(position: int, row: Row) -> tuple[int, str, str, int]:
    """Where *row* stands among those inserted together: rows with keys in one order that all publishers share.

    Two batches that hold the same keys in opposite orders would each wait for the other. Rows that share an ordering
    key run in the order of their ids, and keep it.
    """
    if row.ordering_key is not None:
        return 0, row.ordering_key, "", position
    return (2, "", "", position) if row.key is None else (1, *row.key, position)


def _resolve_conflicts(connection: Connection, rows: dict[int, Row]) -> Receipts:
    """Receipts for those whose keys are taken, still or by a row before them."""
    table = next(iter(rows.values())).table
    replaced = _replace(connection, table, [row for row in rows.values() if row.on_conflict == "replace"])
    receipts: Receipts = {
        position: Receipt(id=replaced[row.key], outcome="replaced")
        for position, row in rows.items()
        if row.on_conflict == "replace" and row.key in replaced
    }
    rest = {position: row for position, row in rows.items() if position not in receipts}
    held = _existing(connection, table, {row.key for row in rest.values() if row.key is not None})
    for position, row in rest.items():
        if row.key is None or row.key not in held:
            continue
        if row.on_conflict == "raise":
            raise DuplicateActionError(*row.key, held[row.key])
        receipts[position] = Receipt(id=held[row.key], outcome="kept")
    return receipts


def _replace(connection: Connection, table: Table, rows: Sequence[Row]) -> dict[Key | None, int]:
    """The ids of the actions that were rewritten, by key; of several rows with one key the last is written."""
    if not rows:
        return {}
    last = {row.key: row for row in rows if row.key is not None}
    dialect = connection.dialect.name
    if dialect == POSTGRESQL and len(last) > 1:
        # In order of id, as operators lock: one who changes the same rows would else wait for us while we wait for him.
        connection.execute(statements.lock_holders(table, dialect), _key_rows(dialect, last))
    statement = statements.replace_pending(table, dialect)
    in_order = [last[key] for key in sorted(last)]
    return _by_key(connection.execute(statement, _draft_rows(connection, in_order)))


def _existing(connection: Connection, table: Table, keys: set[Key]) -> dict[Key | None, int]:
    if not keys:
        return {}
    dialect = connection.dialect.name
    return _by_key(connection.execute(statements.existing(table, dialect), _key_rows(dialect, keys)))


def _key_rows(dialect: str, keys: Iterable[Key]) -> dict[str, Any]:
    types, idempotency_keys = (list(column) for column in zip(*keys, strict=True))
    return bind_rows(dialect, "key", {"type": types, "idempotency_key": idempotency_keys})


def _by_key(found: Iterable[Any]) -> dict[Key | None, int]:
    return {(row.type, row.idempotency_key): row.id for row in found if row.id is not None}


def _draft_rows(connection: Connection, rows: Sequence[Row]) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {"position": list(range(len(rows)))}
    bound = list(zip(*rows, strict=True))[_FIRST_BOUND:]
    columns |= {name: list(values) for name, values in zip(_BOUND, bound, strict=True)}
    instant = Instant()
    columns["end_at"] = [instant.process_bind_param(end_at, connection.dialect) for end_at in columns["end_at"]]
    return bind_rows(connection.dialect.name, "draft", columns)
