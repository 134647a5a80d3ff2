"""Reconciling: read the states of the runs of the deployment lane, and settle their rows from them.

This closes the loop that begins where a claim flow creates a run and ends long before that run does. Any claim flow
does it for all; where several do, the fence lets the first settle. No row is given back by its lease alone: its run
is terminal, was withdrawn before it began, or never was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from sqlalchemy import Engine, Table

from prefect_claim_dispatch import outstanding, settling
from prefect_claim_dispatch.dispatching.creating import Creator
from prefect_claim_dispatch.dispatching.flow_runs import READ_AT_ONCE, FlowRuns
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.dispatching.run_states import RunSeen, Step, verdict_on
from prefect_claim_dispatch.outcomes import Crashed, Outcome, Released
from prefect_claim_dispatch.outstanding import Followed, Outstanding
from prefect_claim_dispatch.policies import RetryPolicy, settlement_at_all
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.rescuing import UNLIMITED_ATTEMPTS

logger = logging.getLogger(__name__)

PAGES: Final = 50
"""Most pages in one look, so that what is due here does not wait for it; renewed rows go to the end of the line."""

WITHDRAWALS: Final = 50
"""Most runs that one look cancels: three calls each."""

UNWRITTEN_FOR: Final = timedelta(seconds=30)
"""How long a claim may have no run before its claimant is taken for dead; creating a hundred takes some seconds."""


class Reconciler:
    """Looks at all outstanding claims once, when asked."""

    def __init__(  # noqa: PLR0917 - its parts, each of another type
        self, engine: Engine, table: Table, routing: Routing, runs: FlowRuns, creator: Creator, tally: Tally
    ) -> None:
        self._engine = engine
        self._table = table
        self._routing = routing
        self._runs = runs
        self._creator = creator
        self._tally = tally
        self._withdrawals = 0
        self._strange: set[str] = set()

    def reconcile(self) -> int:
        """Settle what ended, renew what lives, withdraw what waited for too long; returns how many were settled.

        Raises:
            PrefectUnavailableError: states can't be read. What was not settled stays claimed.
        """
        settled, after = 0, None
        self._withdrawals = WITHDRAWALS
        for _ in range(PAGES):
            rows, after = outstanding.page(self._engine, self._table, after, limit=READ_AT_ONCE)
            settled += self._reconcile(rows)
            if after is None:
                break
        return settled

    def _reconcile(self, rows: Sequence[Outstanding]) -> int:
        states = self._runs.states(row.run_id for row in rows if row.run_id is not None)
        outcomes: list[tuple[Outstanding, Outcome]] = []
        living: list[Outstanding] = []
        for row in rows:
            if row.run_id is None:
                continue
            verdict = self._verdict(states.get(row.run_id), row, row.run_id)
            if verdict is Step.RENEW:
                living.append(row)
            elif not isinstance(verdict, Step):
                outcomes.append((row, verdict))
        settled = self._settle(outcomes)
        self._renew(living)
        self._adopt([row for row in rows if row.run_id is None])
        return settled

    def _verdict(self, run: RunSeen | None, row: Outstanding, run_id: str) -> Outcome | Step:
        server = self._runs.server() if run is None else None
        verdict = verdict_on(run, row, queued_at_most=self._routing.queued_at_most(row.type), server=server)
        match verdict:
            case Step.STRANGE:
                self._tell_strange(row)
                return verdict
            case Step.WITHDRAW if self._withdrawals > 0:
                self._withdrawals -= 1
                # Cancelled before it is released: what a worker has not picked up by then, none does any more.
                return Released() if self._runs.withdraw(run_id) else Step.RENEW
            case Step.WITHDRAW:
                return Step.RENEW
            case Step.BURY:
                reason = f"its run {run_id} stopped renewing its lease"
                return Crashed(reason=reason) if self._runs.bury(run_id) else Step.LEAVE
            case _:
                return verdict

    def _settle(self, outcomes: Sequence[tuple[Outstanding, Outcome]]) -> int:
        settlements = {
            row.id: (row.type, settlement_at_all(outcome, row, self._policy(row.type))) for row, outcome in outcomes
        }
        taken = settling.settle(self._engine, self._table, [settlement for _, settlement in settlements.values()])
        self._tally.settled([settlements[id_] for id_ in taken])
        for row, outcome in outcomes:
            if row.id in taken:
                logger.info("%s #%s: run %s, now %s", row.type, row.id, row.run_id, type(outcome).__name__.lower())
        return len(taken)

    def _policy(self, type_: str) -> RetryPolicy:
        return self._routing.policy_of(type_) or replace(RetryPolicy(), max_attempts=UNLIMITED_ATTEMPTS)

    def _renew(self, living: Sequence[Outstanding]) -> None:
        """Renew leases of which a third is over, so that a look every few seconds does not write every few seconds."""
        leases = [(row, self._routing.lease_elsewhere(row.type)) for row in living]
        followed = [Followed(row.id, row.claim_count, None, lease) for row, lease in leases if row.left < lease * 2 / 3]
        outstanding.follow(self._engine, self._table, followed)

    def _adopt(self, rows: Sequence[Outstanding]) -> None:
        """See to claims without a run, whose claimant died before it created one, or before it wrote it down."""
        lost = [row for row in rows if row.is_over or row.waited > UNWRITTEN_FOR]
        lost = [row for row in lost if self._is_made_here(row)]
        raws = outstanding.held(self._engine, self._table, [row.key for row in lost])
        if raws:
            self._creator.adopt(raws, is_over=frozenset(row.id for row in lost if row.is_over))

    def _is_made_here(self, row: Outstanding) -> bool:
        """Whether the run of a claim that has none would be on this server. If not, it may well be there already."""
        if row.server in (None, self._runs.server()):
            return True
        self._tell_strange(row)
        return False

    def _tell_strange(self, row: Outstanding) -> None:
        """Say once of each server that its claims are left alone here."""
        if row.server is None or row.server in self._strange:
            return
        self._strange.add(row.server)
        logger.warning(
            "%s #%s and others were claimed through another Prefect server (%s), of whose runs this one (%s) knows "
            "nothing; they are left to it. Is PREFECT_API_URL the right one here? See docs/deployment-lane.md",
            row.type,
            row.id,
            row.server,
            self._runs.server(),
        )
