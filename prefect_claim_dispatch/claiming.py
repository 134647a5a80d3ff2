"""Claims: claim, begin, renew, and what :mod:`.surveying` has.

Each is one short transaction, committed before it returns.

A `Connection` in place of the engine is joined and not committed, which nobody but :mod:`.testing` should want.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Engine, Row, Table, UpdateBase

from prefect_claim_dispatch import databases, hot_keys, limiting, refusals
from prefect_claim_dispatch.actions import (
    MAX_CLAIM_COUNT,
    RESERVED_META,
    RESERVED_RULES,
    Action,
    Lease,
    ThawedAction,
    elapsed_clock,
)
from prefect_claim_dispatch.dialects import as_instant, bind_rows
from prefect_claim_dispatch.encoding import MAX_DEPTH
from prefect_claim_dispatch.errors import DatabaseContendedError, DatabaseError
from prefect_claim_dispatch.outcomes import Unprocessable
from prefect_claim_dispatch.policies import RetryPolicy, is_note, settlement_for
from prefect_claim_dispatch.statements.begin import begin as begin_statement
from prefect_claim_dispatch.statements.claim import candidates as candidates_statement
from prefect_claim_dispatch.statements.claim import claim as claim_statement
from prefect_claim_dispatch.statements.claim import claim_one as claim_one_statement
from prefect_claim_dispatch.statements.renew import renew as renew_statement
from prefect_claim_dispatch.surveying import Lane, Survey, count_due, survey

__all__ = ["Lane", "RawAction", "Survey", "begin", "claim", "count_due", "renew", "survey"]

logger = logging.getLogger(__name__)

MAX_LANES = 64
CONTENDED_TRIES = 3
# By position, as in `action_columns`: a row looks names up at ten times the cost.
EARLIEST = itemgetter(3, 0)
PRIORITY = itemgetter(7)
CLAIM_COUNT = itemgetter(5)

_decoder = json.JSONDecoder()


class RawAction:
    """A claimed row before anything of it was decoded; `action` decodes it, and may raise for this row alone.

    A plain class with few slots, because thousands of them are made a second; what is seldom asked for is read from
    the row then.
    """

    __slots__ = ("claim_count", "fail_count", "id", "lease", "row", "table", "type")

    def __init__(self, row: Row[Any], lease: Lease, table: Table) -> None:
        self.row = row
        self.lease = lease
        self.table = table
        # By position, and not by name: the order is that of `action_columns`.
        self.id: int = row[0]
        self.type: str = row[1]
        self.claim_count: int = row[5]
        self.fail_count: int = row[6]

    @property
    def priority(self) -> int:
        """Higher first among due rows."""
        return PRIORITY(self.row)

    @property
    def claimed_by(self) -> str | None:
        """The flow run that holds, or held, the claim."""
        return self.row.claimed_by

    @property
    def errors(self) -> tuple[Mapping[str, Any], ...]:
        """The errors of earlier attempts; empty when what is there can't be read."""
        return _errors(self.row.errors)

    @property
    def was_tried(self) -> bool:
        """Whether anything is on record of earlier attempts, also from before an operator's retry."""
        return self.fail_count > 0 or (self.row[10] != "[]" and self._has_failures)

    @property
    def crashes(self) -> int:
        """How many attempts on record crashed, one after another, up to the last: none if that came to an end."""
        raw = self.row[10]
        if raw == "[]":
            return 0
        kinds = [error.get("kind") for error in reversed(_errors(raw)) if not is_note(error)]
        return len(list(itertools.takewhile(lambda kind: kind == "crashed", kinds)))

    @property
    def _has_failures(self) -> bool:
        errors = _errors(self.row[10])
        return not errors or not all(map(is_note, errors))  # also what can't be read

    def action(self) -> Action:
        """The row as an `Action`, its reserved keys taken out of the payload.

        Raises:
            ValueError: the payload is not JSON, or nested deeper than publishing allows.
            TypeError: it is no object.
        """
        _, _, text, end_at, created_at, _, _, priority, idempotency_key, ordering_key, errors, _ = self.row
        payload = _decoded(text)
        if _is_too_deep(text, payload):
            msg = f"the payload is nested deeper than {MAX_DEPTH} levels"
            raise ValueError(msg)
        if not isinstance(payload, dict):
            msg = f"the payload must be a JSON object, got {type(payload).__name__}"
            raise TypeError(msg)
        document = cast("dict[str, Any]", payload)
        rules = document.pop(RESERVED_RULES, None)
        meta: Any = document.pop(RESERVED_META, None)
        if meta is not None and not isinstance(meta, dict):
            msg = f"{RESERVED_META} must be a JSON object, got {type(meta).__name__}"
            raise TypeError(msg)
        action = ThawedAction()
        action.id = self.id
        action.type = self.type
        action.payload = document
        action.meta = meta or {}
        action.rules = rules
        action.end_at = as_instant(end_at)
        action.created_at = as_instant(created_at)
        action.claim_count = self.claim_count
        action.fail_count = self.fail_count
        action.priority = priority
        action.idempotency_key = idempotency_key
        action.ordering_key = ordering_key
        action.errors = _errors(errors)
        action.table = self.table.name
        action.schema = self.table.schema
        action.lease = self.lease
        action.__class__ = Action
        return action

    @property
    def reference(self) -> str:
        """As `Action.reference`, for a row that can't be decoded."""
        return f"{self.type} #{self.id} (attempt {self.fail_count + 1})"


def claim(
    engine: Engine | Connection,
    table: Table,
    lanes: Sequence[Lane],
    *,
    limit: int,
    lease: timedelta,
    claimed_by: str,
    until: datetime | None = None,
    may_begin: bool = True,
    kept_waiting: Callable[[list[RawAction]], Collection[RawAction]] | None = None,
    max_running: int | None = None,
) -> list[RawAction]:
    """Claim up to *limit* due actions of *lanes*: of the highest priority first, then by turn, `end_at` and `id`.

    They come by priority, `end_at` and `id`. Committed when this returns. Fewer than *limit* may come although more is
    due, when other claimers hold some of them at this moment: only an empty survey says that nothing is due. The
    leases are counted from before the statement was sent.

    *may_begin*: whether the work may begin at once. If its holder dies, an action that may have begun loses an attempt;
    others lose none, and nobody may begin them before `begin` has written it down. The mark is `run_id`, which says
    *claimed_by* until the run that does the work is known. *kept_waiting*: which of the claimed may not, all the same.
    Their marks are taken back in the claim's own transaction, so that at no moment they are at stake.

    *max_running*: at most so many actions of the *lanes*, all of one type, may then be claimed, by whomever; see
    `limiting.room`. None come while somebody else counts them.
    """
    claimed: list[RawAction] = []
    wanted = _Wanted(lease, claimed_by, until, may_begin, kept_waiting, max_running)
    for start in range(0, len(lanes), MAX_LANES):
        if len(claimed) >= limit:
            break
        some = sorted(lanes[start : start + MAX_LANES], key=_in_turn)
        brought = _claim_from(engine, table, some, limit - len(claimed), wanted)
        if start == 0 and len(brought) >= min(limit, len(some)):
            return brought
        # Some of them brought nothing: what waits for a key must not hide the others.
        claimed += brought
        if len(brought) >= len(some):
            break
    # Each time in order already; together they are not.
    return sorted(sorted(claimed, key=lambda raw: EARLIEST(raw.row)), key=lambda raw: raw.priority, reverse=True)


class _Wanted(NamedTuple):
    """How to claim, see `claim`."""

    lease: timedelta
    claimed_by: str
    until: datetime | None
    may_begin: bool
    kept_waiting: Callable[[list[RawAction]], Collection[RawAction]] | None
    max_running: int | None

    def parameters(self, lanes: Sequence[Lane], limit: int) -> dict[str, Any]:
        """What the statement binds."""
        parameters: dict[str, Any] = {
            "limit": limit,
            "lease_seconds": self.lease.total_seconds(),
            "claimed_by": self.claimed_by,
            "run_id": self.claimed_by if self.may_begin else None,
        }
        for position, lane in enumerate(lanes):
            parameters |= {f"type_{position}": lane.type, f"priority_{position}": lane.priority}
        return parameters if self.until is None else parameters | {"until": self.until}


def _claim_from(
    engine: Engine | Connection, table: Table, lanes: Sequence[Lane], limit: int, wanted: _Wanted
) -> list[RawAction]:
    """As `claim`, of lanes that one statement names, in their order."""
    shape = tuple(len(list(group)) for _, group in itertools.groupby(lanes, key=_in_turn))
    parameters, bounded = wanted.parameters(lanes, limit), wanted.until is not None
    is_ordered = any(lane.is_ordered for lane in lanes)
    statement = claim_statement(table, engine.dialect.name, shape, bounded=bounded, windowed=is_ordered)

    def claim_them(connection: Connection) -> Sequence[Row[Any]]:
        if is_ordered:
            return hot_keys.claimed_rows(connection, table, lanes, shape, statement, parameters)
        return connection.execute(statement, parameters).all()

    for _ in range(CONTENDED_TRIES):
        try:
            return _claimed(engine, table, lanes[0].type, parameters, claim_them, wanted)
        except (DatabaseError, *refusals.UNSENDABLE) as error:
            if isinstance(engine, Engine) and refusals.is_of_a_row(error):
                return _claim_each(engine, table, lanes, shape, parameters, wanted)
            if not isinstance(error, DatabaseContendedError) and not refusals.is_taken(error.__cause__):
                raise
            # Another claimer, looking a moment earlier or later, took an action of the same ordering key; or each of
            # two took one that the other wanted. Nothing of ours was written.
            logger.debug("claim met another claim of the same ordering key (%s); trying again", type(error).__name__)
    return []


def _claimed(  # noqa: PLR0917 - each of another type
    engine: Engine | Connection,
    table: Table,
    type_: str,
    parameters: dict[str, Any],
    claim_them: Callable[[Connection], Sequence[Row[Any]]],
    wanted: _Wanted,
) -> list[RawAction]:
    """What *claim_them* brings in one transaction, committed when this returns."""
    expires = elapsed_clock() + wanted.lease.total_seconds()
    with databases.transaction(engine) as connection:
        if wanted.max_running is not None:
            left = limiting.room(connection, table, type_, wanted.max_running, is_joined=connection is engine)
            if left < 1:
                return []
            parameters["limit"] = min(parameters["limit"], left)
        rows = _without_spent(connection, table, claim_them(connection))
        in_order = sorted(sorted(rows, key=EARLIEST), key=PRIORITY, reverse=True)
        claimed = [RawAction(row, Lease(expires=expires, may_begin=wanted.may_begin), table) for row in in_order]
        if wanted.kept_waiting is not None:
            _keep_waiting(connection, table, wanted.kept_waiting(claimed))
    return claimed


def _claim_each(  # noqa: PLR0917 - each of another type
    engine: Engine, table: Table, lanes: Sequence[Lane], shape: tuple[int, ...], parameters: Any, wanted: _Wanted
) -> list[RawAction]:
    """As `_claim_from`, each action by itself: the one that the database refuses goes dead, and the others come."""
    dialect, bounded = engine.dialect.name, wanted.until is not None
    query = candidates_statement(table, dialect, shape, bounded=bounded)
    with databases.transaction(engine) as connection:
        rows = connection.execute(query, parameters).all()
    one = claim_one_statement(table, dialect, bounded=bounded)
    claimed: list[RawAction] = []
    for row in rows:
        values = parameters | {"wanted_id": row.id}
        try:
            claimed += _claimed(engine, table, row.type, values, lambda c, v=values: c.execute(one, v).all(), wanted)
        except (DatabaseError, *refusals.UNSENDABLE) as error:
            if refusals.is_of_a_row(error):
                raw = RawAction(row, Lease(expires=0.0), table)
                _bury(engine, table, raw, refusals.REFUSED, f"it can't be claimed: {refusals.reason(error)}")
            elif not isinstance(error, DatabaseContendedError) and not refusals.is_taken(error.__cause__):
                raise
    return claimed


def _without_spent(connection: Connection, table: Table, rows: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
    """*rows* but for those whose claims can't be counted any further, so that no fence would hold: these go dead."""
    if max(map(CLAIM_COUNT, rows), default=0) < MAX_CLAIM_COUNT:
        return rows
    for row in rows:
        if row.claim_count == MAX_CLAIM_COUNT:
            raw = RawAction(row, Lease(expires=0.0), table)
            message = f"claim_count is {MAX_CLAIM_COUNT}, the most that the column holds; set it lower, then retry"
            _bury(connection, table, raw, "ClaimsUsedUp", message)
    return [row for row in rows if row.claim_count < MAX_CLAIM_COUNT]


def _bury(bind: Engine | Connection, table: Table, raw: RawAction, error_type: str, message: str) -> None:
    outcome = Unprocessable(error_type=error_type, message=message)
    errors = settlement_for(outcome, raw, RetryPolicy()).errors or ()
    refusals.bury(bind, table, raw.id, raw.claim_count, errors)


def _keep_waiting(connection: Connection, table: Table, claimed: Collection[RawAction]) -> None:
    begin(connection, table, [(raw.id, raw.claim_count, None) for raw in claimed])
    for raw in claimed:
        raw.lease.may_begin = False


def _in_turn(lane: Lane) -> tuple[int, int]:
    return -lane.priority, lane.turn


def begin(engine: Engine | Connection, table: Table, runs: Sequence[tuple[int, int, str | None]]) -> set[int]:
    """Write the run of each (id, claim_count, run_id) onto its row; returns the ids whose claim still holds.

    From then on its work may begin, or if it is None, may not.
    """
    if not runs:
        return set()
    ids, counts, run_ids = (list(column) for column in zip(*sorted(runs), strict=True))
    columns = {"id": ids, "claim_count": counts, "run_id": run_ids}
    return _ids_of(engine, begin_statement(table, engine.dialect.name), "begun", columns, {})


def renew(engine: Engine, table: Table, claims: Sequence[tuple[int, int]], *, lease: timedelta) -> set[int]:
    """Prolong the lease of each (id, claim_count) to the database's now plus *lease*.

    Returns the ids that still hold.
    """
    if not claims:
        return set()
    ids, counts = (list(column) for column in zip(*sorted(claims), strict=True))
    columns, more = {"id": ids, "claim_count": counts}, {"lease_seconds": lease.total_seconds()}
    return _ids_of(engine, renew_statement(table, engine.dialect.name), "held", columns, more)


def _ids_of(
    engine: Engine | Connection,
    statement: UpdateBase,
    prefix: str,
    columns: Mapping[str, list[Any]],
    more: Mapping[str, Any],
) -> set[int]:
    """The ids that *statement* returns for the rows of *columns*; row by row where it is refused as a whole."""
    dialect = engine.dialect.name

    def write(connection: Connection, rows: Mapping[str, list[Any]]) -> set[int]:
        parameters = bind_rows(dialect, prefix, dict(rows)) | dict(more)
        return set(connection.execute(statement, parameters).scalars().all())

    try:
        return databases.repeated(engine, lambda connection: write(connection, columns))
    except (DatabaseError, *refusals.UNSENDABLE) as error:
        if not isinstance(engine, Engine) or not refusals.is_of_a_row(error):
            raise
    singles = [
        dict(zip(columns, [[value] for value in values], strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    answers, refused = refusals.each(engine, singles, write)
    for row, error in refused:
        logger.error("action #%s: the database refused to change its claim: %s", row["id"][0], refusals.reason(error))
    return {id_ for answer in answers for id_ in answer}


def _decoded(text: str) -> Any:
    """As `json.loads`, at half its cost where there is one document with nothing around it."""
    try:
        document, end = _decoder.raw_decode(text)
    except ValueError:
        return json.loads(text)
    return document if end == len(text) else json.loads(text)


def _is_too_deep(text: str, document: Any) -> bool:
    """Whether *document* has more levels than publishing allows.

    Not left to the decoder: how deep it goes differs from one Python to the next, and so would the verdict.
    """
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return False
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(value) if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _children(value: Any) -> Iterable[Any]:
    return cast("dict[str, Any]", value).values() if isinstance(value, dict) else value


def _errors(raw: str) -> tuple[Mapping[str, Any], ...]:
    if raw == "[]":
        return ()
    try:
        errors: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return ()
    return tuple(error for error in errors if isinstance(error, dict)) if isinstance(errors, list) else ()  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
