"""Rescue: take back the claims of the dead."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, Table

from prefect_claim_dispatch import databases, refusals
from prefect_claim_dispatch.actions import Lease
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.errors import DatabaseError
from prefect_claim_dispatch.fences import Key
from prefect_claim_dispatch.outcomes import Crashed, Outcome, Released
from prefect_claim_dispatch.policies import RetryPolicy, Settlement, settlement_for
from prefect_claim_dispatch.settling import settle, write_settlements
from prefect_claim_dispatch.statements.rescue import endless, expired, unheard

logger = logging.getLogger(__name__)

UNLIMITED_ATTEMPTS = 2**31


def rescue(
    engine: Engine | Connection,
    table: Table,
    policy_of: Callable[[str], RetryPolicy | None],
    *,
    limit: int,
) -> list[Settlement]:
    """Take back up to *limit* claims whose lease expired: pending after back-off, or dead when attempts are used up.

    The attempt is counted here and not when it would have been settled: one that was killed must count, or it would
    kill for ever. Without a `run_id` no work can have begun (see `claim`): the row is pending and due as before.
    *policy_of* answers None for a type that nobody here has registered; such a row goes back to pending, and never
    dead by a policy that is not its own.
    """

    def expired_rows(connection: Connection) -> list[Settlement]:
        dialect = engine.dialect.name
        rows = connection.execute(expired(table, dialect), {"limit": limit}).all()
        rows = rows or connection.execute(endless(table, dialect), {"limit": limit}).all()
        return [_verdict(RawAction(row, Lease(expires=0.0), table), row.run_id, policy_of) for row in rows]

    def take_back(connection: Connection) -> list[Settlement]:
        settlements = expired_rows(connection)
        write_settlements(connection, table, settlements)
        return settlements

    try:
        settlements = databases.repeated(engine, take_back)
    except (DatabaseError, *refusals.UNSENDABLE) as error:
        if not isinstance(engine, Engine) or not refusals.is_of_a_row(error):
            raise
        buried: dict[int, Settlement] = {}
        found = databases.repeated(engine, expired_rows)
        taken = settle(engine, table, found, buried=buried)
        settlements = [buried.get(settlement.id, settlement) for settlement in found if settlement.id in taken]
    for settlement in settlements:
        logger.warning(
            "rescued action #%s: lease of claim %s expired%s, now %s",
            settlement.id,
            settlement.claim_count,
            " before its work began" if isinstance(settlement.outcome, Released) else "",
            settlement.status,
        )
    return settlements


def _verdict(raw: RawAction, run_id: str | None, policy_of: Callable[[str], RetryPolicy | None]) -> Settlement:
    outcome: Outcome = Released() if run_id is None else Crashed(claimed_by=raw.claimed_by)
    try:
        return settlement_for(outcome, raw, _policy(policy_of, raw.type))
    except Exception:
        # A policy that can't judge is its type's trouble: nobody else's crash may wait for it.
        logger.exception("the policy of %s can't judge action #%s; it is tried again by the default", raw.type, raw.id)
        return settlement_for(outcome, raw, _policy(lambda _: None, raw.type))


def _policy(policy_of: Callable[[str], RetryPolicy | None], type_: str) -> RetryPolicy:
    policy = None
    try:
        policy = policy_of(type_)
    except Exception:
        # Else nothing of any type would be rescued, nor claimed, while one row of this type has lost its lease.
        logger.exception("the retry policy of %r can't be told: what crashed of it is tried again", type_)
    return policy or replace(RetryPolicy(), max_attempts=UNLIMITED_ATTEMPTS)


def release_unheard(
    engine: Engine, table: Table, *, claimed_by: str, since: datetime, is_held: Callable[[Key], bool]
) -> list[Settlement]:
    """Release what *claimed_by* has claimed since then and does not hold: the answer to its COMMIT was lost.

    Nothing of it has begun, so it costs no attempt. *is_held* knows what the claimant holds; it must be the only
    process that claims under this name. *since*, by the database's clock, is from before the claim was sent.
    """

    def release(connection: Connection) -> list[Settlement]:
        # SQLite compares text, and writes fewer digits than it is given: of the same instant, the shorter sorts first.
        parameters = {"claimed_by": claimed_by, "since": since - timedelta(milliseconds=1)}
        query = unheard(table, engine.dialect.name)
        raws = [RawAction(row, Lease(expires=0.0), table) for row in connection.execute(query, parameters)]
        lost = [raw for raw in raws if not is_held((raw.id, raw.claim_count))]
        settlements = [settlement_for(Released(), raw, RetryPolicy()) for raw in lost]
        write_settlements(connection, table, settlements)
        return settlements

    settlements = databases.repeated(engine, release)
    if settlements:
        logger.warning("released %d claims that were made, and not heard of: the answer was lost", len(settlements))
    return settlements
