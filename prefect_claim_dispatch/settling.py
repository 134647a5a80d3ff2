"""Settlement: write verdicts, each only while its claim holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Table

from prefect_claim_dispatch import databases, refusals
from prefect_claim_dispatch.actions import MAX_FAIL_COUNT, Action, ActionStatus
from prefect_claim_dispatch.dialects import bind_rows
from prefect_claim_dispatch.errors import DatabaseError, LostLeaseError
from prefect_claim_dispatch.outcomes import MAX_DELAY, Failed, Outcome, Processed, Snooze
from prefect_claim_dispatch.policies import RetryPolicy, Settlement, rested, settlement_for
from prefect_claim_dispatch.schema import actions_table
from prefect_claim_dispatch.statements.recognise import recognise as recognise_statement
from prefect_claim_dispatch.statements.settle import settle as settle_statement


class Ended(NamedTuple):
    """What became of a claimed row that its holder settled."""

    status: ActionStatus
    fail_count: int

    def instead_of(self, settlement: Settlement) -> Settlement:
        """*settlement* as it would have to be, to make of the row what it became; for those who count."""
        if self.status not in (ActionStatus.PENDING, ActionStatus.CLAIMED):
            return settlement._replace(status=self.status)
        has_failed = self.fail_count > settlement.fail_count
        outcome = Failed(error_type="", message="") if has_failed else Snooze(timedelta(0))
        return settlement._replace(status=ActionStatus.PENDING, outcome=outcome)


def settle(
    engine: Engine | Connection,
    table: Table,
    settlements: Sequence[Settlement],
    run_ids: Mapping[int, str] | None = None,
    buried: dict[int, Settlement] | None = None,
) -> set[int]:
    """Write *settlements* in one transaction, in order of id; returns the ids that were settled.

    Ids that are missing in the answer have lost their lease: somebody else settled or holds them, and nothing was
    overwritten. Where the database refuses a value in one of them, each is written by itself, and of a row of which
    that is refused, that it is dead, and why. *buried*, if given, then gets what was written instead, by id.
    """
    if not settlements:
        return set()
    try:
        return databases.repeated(engine, lambda connection: write_settlements(connection, table, settlements, run_ids))
    except (DatabaseError, *refusals.UNSENDABLE) as error:
        if not isinstance(engine, Engine) or not refusals.is_of_a_row(error):
            raise
    return _settle_each(engine, table, settlements, run_ids, {} if buried is None else buried)


def _settle_each(
    engine: Engine,
    table: Table,
    settlements: Sequence[Settlement],
    run_ids: Mapping[int, str] | None,
    buried: dict[int, Settlement],
) -> set[int]:
    ordered = sorted(settlements, key=attrgetter("id"))
    answers, refused = refusals.each(engine, ordered, lambda c, one: write_settlements(c, table, [one], run_ids))
    settled = {id_ for answer in answers for id_ in answer}
    for settlement, error in refused:
        entry = {
            "attempt": min(settlement.fail_count + 1, MAX_FAIL_COUNT),
            "claim_count": settlement.claim_count,
            "kind": "unprocessable",
            "type": refusals.REFUSED,
            "message": f"its verdict ({settlement.status}) can't be written: {refusals.reason(error)}",
        }
        dead = settlement._replace(status=ActionStatus.DEAD, errors=(entry,), delay=None)
        if refusals.bury(engine, table, dead.id, dead.claim_count, [entry]):
            buried[dead.id] = dead
            settled.add(dead.id)
    return settled


def write_settlements(
    connection: Connection,
    table: Table,
    settlements: Sequence[Settlement],
    run_ids: Mapping[int, str] | None = None,
) -> set[int]:
    """As `settle`, in a transaction of the caller's."""
    if not settlements:
        return set()
    # Always in order of id: two transactions that lock rows in different orders can wait for each other for ever.
    ordered = sorted(settlements, key=lambda settlement: settlement.id)
    runs = run_ids or {}
    dialect = connection.dialect.name
    parameters = bind_rows(
        dialect,
        "settled",
        {
            "id": [settlement.id for settlement in ordered],
            "claim_count": [settlement.claim_count for settlement in ordered],
            "status": [settlement.status.value for settlement in ordered],
            "fail_count": [settlement.fail_count for settlement in ordered],
            "delay_seconds": [
                None if settlement.delay is None else _seconds(settlement.delay) for settlement in ordered
            ],
            "errors": [None if settlement.errors is None else json.dumps(settlement.errors) for settlement in ordered],
            "run_id": [runs.get(settlement.id) for settlement in ordered],
        },
    )
    return set(connection.execute(settle_statement(table, dialect), parameters).scalars().all())


def _seconds(delay: timedelta) -> float:
    """No later than `MAX_DELAY`: what leaves the calendar would be refused, and all that is settled with it."""
    return min(delay, MAX_DELAY).total_seconds()


def recognise(engine: Engine | Connection, table: Table, claims: Sequence[tuple[int, int]]) -> set[int]:
    """The ids of those *claims* (id, claim_count) that were settled by their holder, whether it heard of it or not."""
    return set(ended(engine, table, claims))


def ended(engine: Engine | Connection, table: Table, claims: Sequence[tuple[int, int]]) -> dict[int, Ended]:
    """What the table has of those *claims* (id, claim_count) that their holder settled, by id.

    A claim ends in two ways: by its own settlement, or by rescue, which is on record in `errors`.
    So a row that left its claim with no such record was settled by whoever held it.
    """
    if not claims:
        return {}
    ids, counts = (list(column) for column in zip(*sorted(claims), strict=True))
    dialect = engine.dialect.name
    parameters = bind_rows(dialect, "sent", {"id": ids, "claim_count": counts})
    with databases.transaction(engine) as connection:
        rows = connection.execute(recognise_statement(table, dialect), parameters).all()
    return {
        row.id: Ended(ActionStatus(row.status), row.fail_count)
        for row in rows
        if not _was_rescued(row.errors, row.claim_count)
    }


def _was_rescued(errors: str, claim_count: int) -> bool:
    """Whether the claim's end is on record as a crash; True, too, when the record can't be read."""
    try:
        entries: Any = json.loads(errors)
        return any(entry["kind"] == "crashed" and entry["claim_count"] == claim_count for entry in entries)
    except (ValueError, TypeError, KeyError, RecursionError):
        return True


def settle_action(connection: Connection, action: Action, outcome: Outcome | None = None) -> None:
    """Settle *action* in the caller's own transaction, together with what the processor writes there.

    That is how an effect happens exactly once. The claim flow finds the action settled and leaves it. If the
    transaction is rolled back, the settlement goes with it, so raise afterwards, or return what should happen instead.
    *outcome* is `Processed` unless given.

    Raises:
        LostLeaseError: the claim is not held any more; roll the transaction back.
        TypeError: *outcome* is none.
    """
    if not isinstance(outcome, Outcome | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"settle_action takes an outcome, such as Snooze(...) or Cancel(...), got {type(outcome).__name__}"
        raise TypeError(msg)
    settlement = settlement_for(rested(outcome or Processed(), action), action, RetryPolicy())
    table = actions_table(action.table, action.schema)
    if action.id not in write_settlements(connection, table, [settlement]):
        raise LostLeaseError(action.id, action.claim_count)
    if action.lease is not None:
        action.lease.settled = True
