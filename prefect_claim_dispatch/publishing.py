"""Publishing: actions into the table, in the caller's transaction or in one of its own.

An action is in the table exactly when the transaction around it commits. What can be refused is refused before any
SQL. That a key is held already is decided by the unique index alone, so twenty publishers of one key make one action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final, cast

from sqlalchemy import Connection, Engine, Table

from prefect_claim_dispatch import databases, settings
from prefect_claim_dispatch.catalogue import catalogue
from prefect_claim_dispatch.checks import OnConflict
from prefect_claim_dispatch.databases import Bind
from prefect_claim_dispatch.dialects import SQLITE, is_autocommit
from prefect_claim_dispatch.drafts import Draft, Gate, Intent, Receipt, intent_of
from prefect_claim_dispatch.engines import takes_text, translated
from prefect_claim_dispatch.errors import ConfigurationError, InvalidActionError, InvalidKeyError, InvalidTypeError
from prefect_claim_dispatch.inserting import Row, insert, insert_by_driver
from prefect_claim_dispatch.moments import Eligible
from prefect_claim_dispatch.payloads import Payload
from prefect_claim_dispatch.settings import Settings
from prefect_claim_dispatch.statements import publish as statements

CHUNK_ROWS: Final = 1_000
CHUNK_CHARACTERS: Final = 8 * 1024 * 1024
EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})

_SKIPPED: Final = Receipt(id=None, outcome="skipped")


def publish(
    bind: Bind,
    type: str,  # noqa: A002 - the column's name
    payload: Payload = EMPTY,
    /,
    *,
    end_at: Eligible | None = None,
    delay: timedelta | None = None,
    priority: int = 0,
    idempotency_key: str | None = None,
    on_conflict: OnConflict = "keep",
    ordering_key: str | None = None,
    rules: Mapping[str, Any] | None = None,
    meta: Payload | None = None,
    table: str | None = None,
) -> Receipt:
    """Insert one pending action; due at *end_at*, or *delay* from now on the database's clock, or at once.

    A `Connection` or `Session` is joined and never committed; an engine, a URL or None (settings) gets a transaction
    of its own. `await async_session.run_sync(publish, "email.welcome", {...})` works as it is. On PostgreSQL the
    database's now is the instant at which the transaction began.

    Raises:
        InvalidActionError: something may not reach the table; nothing was sent to the database.
        DuplicateActionError: *on_conflict* is ``raise`` and the key exists; the caller's transaction is still usable.
        DatabaseError: the transaction of our own failed. In the caller's, the driver's error passes unchanged.
    """
    return _publish(
        bind,
        intent_of(
            type,
            payload,
            end_at=end_at,
            delay=delay,
            priority=priority,
            idempotency_key=idempotency_key,
            on_conflict=on_conflict,
            ordering_key=ordering_key,
            rules=rules,
            meta=meta,
            table=table,
        ),
    )


def publish_many(bind: Bind, drafts: Iterable[Draft], /) -> list[Receipt]:
    """Insert the actions of *drafts* in one transaction, or none of them; receipts in the order given.

    *drafts* is consumed lazily, about a thousand at a time. A draft whose key comes twice is inserted once, and then
    treated as its `on_conflict` says. Drafts with keys are inserted in the order of their keys, not of the list, unless
    they share an ordering key: so batches of a thousand that hold the same keys wait for each other and never deadlock,
    unless their actions are settled or pruned at that moment (a `DatabaseContendedError`: publish again); sort larger
    ones by key. In a transaction of the caller's, all is done under a savepoint: when it raises, nothing of it stays,
    and the transaction is still usable.

    Raises:
        InvalidActionError: a draft may not reach the table.
        ConfigurationError: the bind is in AUTOCOMMIT, where a part of the batch could stay.
        DuplicateActionError: as `publish`.
        DatabaseError: as `publish`.
    """
    receipts: list[Receipt] = []
    configured = settings.current()
    with ExitStack() as stack:
        connection: Connection | None = None
        for chunk in _chunks(row_or_none(draft_intent(draft), configured) for draft in _iterated(drafts)):
            table = next((row.table for row in chunk if row is not None), None)
            if connection is None and table is not None:
                connection = _joined_atomically(stack, bind, table)
            receipts += [_SKIPPED] * len(chunk) if connection is None else _insert_chunk(connection, chunk)
    return receipts


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes to one place: *bind* as for `publish`, and a *table* of one's own, None for the settings'."""

    bind: Bind = None
    table: str | None = None

    def draft(self, type: str | None = None, /) -> Draft:  # noqa: A002 - the column's name
        """A draft that `commit` publishes here."""
        draft = Draft(committer=self._commit)
        draft = draft if self.table is None else draft.table(self.table)
        return draft if type is None else draft.type(type)

    def publish(self, build: Callable[[Draft], Draft], /) -> Receipt:
        """Publish what *build* makes of an empty draft: ``lambda draft: draft.type(...).payload(...)``."""
        if not callable(build):
            kind = build.__class__.__name__
            msg = f"publish takes a callable of a draft, got {kind}; write publish(lambda draft: ...)"
            raise InvalidActionError(msg)
        return self._commit(draft_intent(build(self.draft())))

    def quick(
        self,
        type: str,  # noqa: A002 - the column's name
        end_at: Eligible | None = None,
        payload: Payload = EMPTY,
        *,
        idempotency: str | None = None,
        rules: Mapping[str, Any] | None = None,
        meta: Payload | None = None,
        when: Gate | None = None,
        skip_if: Gate | None = None,
        table: str | None = None,
    ) -> Receipt:
        """Publish in one call; as `publish`, with gates."""
        intent = intent_of(
            type,
            payload,
            end_at=end_at,
            delay=None,
            priority=0,
            idempotency_key=idempotency,
            on_conflict="keep",
            ordering_key=None,
            rules=rules,
            meta=meta,
            table=self.table if table is None else table,
        )
        draft = Draft(intent=intent, committer=self._commit)
        draft = draft if when is None else draft.when(when)
        return (draft if skip_if is None else draft.skip_if(skip_if)).commit()

    def _commit(self, intent: Intent) -> Receipt:
        return _publish(self.bind, intent)


def _publish(bind: Bind, intent: Intent) -> Receipt:
    row = row_or_none(intent, settings.current())
    if row is None:
        return _SKIPPED
    engine = databases.autocommitting_engine(bind)
    if engine is None:
        with databases.transaction(bind) as connection:
            return insert(connection, [row])[0]
    with translated():
        if row.key is None and takes_text(engine):
            return insert_by_driver(engine, row)
        with engine.connect() as connection:
            return insert(connection, [row])[0]


def _iterated(drafts: Any) -> Iterator[Any]:
    if not isinstance(drafts, Iterable):
        msg = f"drafts must be an iterable of drafts, got {type(drafts).__name__}; pass a list"
        raise InvalidActionError(msg)
    return iter(cast("Iterable[Any]", drafts))


def draft_intent(draft: Any) -> Intent:
    """What *draft* says.

    Raises:
        InvalidActionError: it is no draft.
    """
    if not isinstance(draft, Draft):
        msg = f"expected a Draft, got {draft.__class__.__name__}; return the draft itself, without commit()"
        raise InvalidActionError(msg)
    return draft.intent


def row_or_none(intent: Intent, configured: Settings) -> Row | None:
    """The row that *intent* makes; None when a gate says no.

    Raises:
        InvalidActionError: it has no type, a conflict policy and no key, or a payload that its type does not take.
        RegistrationError: the type's class in the catalogue can't validate anything.
    """
    if intent.type is None:
        msg = "the draft has no type; call .type('email.welcome')"
        raise InvalidTypeError(msg)
    if intent.on_conflict != "keep" and intent.idempotency_key is None:
        msg = f"on_conflict={intent.on_conflict!r} needs an idempotency key to conflict with; set one"
        raise InvalidKeyError(msg)
    if not intent.is_wanted():
        return None
    if (entry := catalogue.entry(intent.type)) is not None:
        entry.check(intent.payload)
    moment = intent.resolved_moment()
    return Row(
        databases.table_named(intent.table, configured),
        intent.on_conflict,
        intent.type,
        intent.document(),
        moment.end_at,
        moment.delay_seconds,
        intent.priority,
        intent.idempotency_key,
        intent.ordering_key,
    )


def _chunks(rows: Iterator[Row | None]) -> Iterator[list[Row | None]]:
    """*rows* in lists that are bounded by number and by size: both databases limit what one statement may carry."""
    chunk: list[Row | None] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += len(row.payload) if row is not None else 0
        if len(chunk) >= CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _joined_atomically(stack: ExitStack, bind: Bind, table: Table) -> Connection:
    connection = stack.enter_context(databases.transaction(bind))
    if is_autocommit(connection):
        msg = "publish_many is all or nothing, and the bind is in AUTOCOMMIT; pass one with another isolation level"
        raise ConfigurationError(msg)
    if not (bind is None or isinstance(bind, Engine | str)):
        if connection.dialect.name == SQLITE:
            # Python's sqlite3 begins no transaction for a SAVEPOINT, and releasing an outermost one commits.
            connection.execute(statements.nothing(table))
        stack.enter_context(connection.begin_nested())
    return connection


def _insert_chunk(connection: Connection, chunk: Sequence[Row | None]) -> list[Receipt]:
    receipts = [_SKIPPED] * len(chunk)
    for table in dict.fromkeys(row.table for row in chunk if row is not None):
        positions = [position for position, row in enumerate(chunk) if row is not None and row.table is table]
        rows = [row for row in chunk if row is not None and row.table is table]
        for position, receipt in zip(positions, insert(connection, rows), strict=True):
            receipts[position] = receipt
    return receipts
