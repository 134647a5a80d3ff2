"""Rescue: take back the claims of the dead."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Connection, Engine, Table

from prefect_claim_dispatch import databases
from prefect_claim_dispatch.actions import Lease
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.outcomes import Crashed, Outcome, Released
from prefect_claim_dispatch.policies import RetryPolicy, Settlement, settlement_for
from prefect_claim_dispatch.settling import write_settlements
from prefect_claim_dispatch.statements.rescue import expired

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

    def take_back(connection: Connection) -> list[Settlement]:
        rows = connection.execute(expired(table, engine.dialect.name), {"limit": limit}).all()
        settlements: list[Settlement] = []
        for row in rows:
            raw = RawAction(row, Lease(expires=0.0), table)
            policy = policy_of(raw.type) or replace(RetryPolicy(), max_attempts=UNLIMITED_ATTEMPTS)
            outcome: Outcome = Released() if row.run_id is None else Crashed(claimed_by=raw.claimed_by)
            settlements.append(settlement_for(outcome, raw, policy))
        write_settlements(connection, table, settlements)
        return settlements

    settlements = databases.repeated(engine, take_back)
    for settlement in settlements:
        logger.warning(
            "rescued action #%s: lease of claim %s expired%s, now %s",
            settlement.id,
            settlement.claim_count,
            " before its work began" if isinstance(settlement.outcome, Released) else "",
            settlement.status,
        )
    return settlements
