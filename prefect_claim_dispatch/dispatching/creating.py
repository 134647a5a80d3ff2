"""Creating: a run of its deployment for each claimed action, under a key of the claim, so that none has two."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Engine, Table

from prefect_claim_dispatch import outstanding, settling
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dialects import as_instant
from prefect_claim_dispatch.dispatching.flow_runs import CREATED_AT_ONCE, DeploymentSeen, FlowRuns, Order
from prefect_claim_dispatch.dispatching.guard import guarded
from prefect_claim_dispatch.dispatching.parameters import parameters_of
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.errors import DeploymentNotFoundError
from prefect_claim_dispatch.outcomes import Failed, Outcome, Released
from prefect_claim_dispatch.outstanding import Followed
from prefect_claim_dispatch.policies import settlement_at_all
from prefect_claim_dispatch.registrations import Processor
from prefect_claim_dispatch.reports import Tally

logger = logging.getLogger(__name__)

Refusals = list[tuple[RawAction, Outcome]]


class Ordered(NamedTuple):
    """A claimed action, and the run that it is to have."""

    raw: RawAction
    order: Order


class Creator:
    """Creates the runs of claimed actions, and writes them onto their rows."""

    def __init__(self, engine: Engine, table: Table, routing: Routing, runs: FlowRuns, tally: Tally) -> None:
        self._engine = engine
        self._table = table
        self._routing = routing
        self._runs = runs
        self._tally = tally
        self._identity: str | None = None

    def create(self, raws: Sequence[RawAction]) -> None:
        """A run for each of *raws*; what can't have one is settled: released without a deployment, failed or dead.

        Raises:
            PrefectUnavailableError: not all have one, as far as is known. Their claims stay: `adopt` finds out.
        """
        grouped: dict[Processor | None, list[RawAction]] = {}
        for raw in raws:
            grouped.setdefault(self._routing.match(raw.type), []).append(raw)
        for processor, group in grouped.items():
            for start in range(0, len(group), CREATED_AT_ONCE):
                self._create_for(processor, group[start : start + CREATED_AT_ONCE])

    def adopt(self, raws: Sequence[RawAction], *, is_over: frozenset[int]) -> None:
        """Find the runs of *raws*, which nobody has written down, or create them: whoever claimed them has died.

        What has none and can have none is released once its lease *is_over*.
        """
        keys = {self.key_of(raw): raw for raw in raws}
        found = self._runs.created(list(keys))
        self._follow([(keys[key], run_id) for key, run_id in found.items()])
        lost = [raw for key, raw in keys.items() if key not in found]
        here = [raw for raw in lost if self._deployment(self._routing.match(raw.type)) is not None]
        self.create(here)
        self.settle([(raw, Released()) for raw in lost if raw not in here and raw.id in is_over])

    def settle(self, verdicts: Refusals) -> int:
        """Write what the actions came to; returns how many the table took."""
        settlements = {
            raw.id: (raw.type, settlement_at_all(outcome, raw, self._routing.policy(self._routing.match(raw.type))))
            for raw, outcome in verdicts
        }
        taken = settling.settle(self._engine, self._table, [settlement for _, settlement in settlements.values()])
        self._tally.settled([settlements[id_] for id_ in taken])
        return len(taken)

    def key_of(self, raw: RawAction) -> str:
        """The idempotency key of the claim's run: this table's, of this row, of this claim.

        The row's `created_at` is in it: a table that was dropped and made anew counts its ids from 1 again, and must
        not be given the runs of the old.
        """
        if self._identity is None:
            self._identity = outstanding.identity(self._engine, self._table)
        created = as_instant(raw.row.created_at).strftime("%Y%m%dT%H%M%S.%f")
        return f"{self._table.name}:{self._identity}:{raw.id}:{created}:{raw.claim_count}"

    def _deployment(self, processor: Processor | None) -> DeploymentSeen | None:
        if processor is None or processor.deployment is None:
            return None
        return self._runs.deployment(processor.deployment.name)

    def _create_for(self, processor: Processor | None, raws: Sequence[RawAction]) -> None:
        seen = self._deployment(processor)
        if processor is None or seen is None:  # undeployed since it was claimed
            self.settle([(raw, Released()) for raw in raws])
            return
        ordered, refusals = self._ordered(processor, seen, raws)
        self.settle(refusals)
        creation = self._runs.create(seen, [one.order for one in ordered])
        run_ids, refused = creation.run_ids, creation.refused
        self._follow([(one.raw, run_ids[one.order.key]) for one in ordered if one.order.key in run_ids])
        self.settle(
            [
                (one.raw, Failed(error_type="RunRefused", message=refused[one.order.key]))
                for one in ordered
                if one.order.key in refused
            ]
        )
        if isinstance(creation.error, DeploymentNotFoundError):
            logger.error("%s", creation.error)
            self.settle([(one.raw, Released()) for one in ordered if one.order.key not in {*run_ids, *refused}])
        elif creation.error is not None:
            raise creation.error

    def _ordered(
        self, processor: Processor, seen: DeploymentSeen, raws: Sequence[RawAction]
    ) -> tuple[list[Ordered], Refusals]:
        deployment, policy = processor.deployment, self._routing.policy(processor)
        assert deployment is not None  # noqa: S101 - asked by the caller
        ordered: list[Ordered] = []
        refusals: Refusals = []
        for raw in raws:
            verdict = guarded(raw, processor, policy)
            if not isinstance(verdict, tuple):
                refusals.append((raw, verdict))
                continue
            action, _ = verdict
            parameters = parameters_of(action, deployment, policy, seen.asked_for)
            if isinstance(parameters, Failed):
                refusals.append((raw, parameters))
            else:
                ordered.append(Ordered(raw, Order(key=self.key_of(raw), name=action.reference, parameters=parameters)))
        return ordered, refusals

    def _follow(self, created: Sequence[tuple[RawAction, str]]) -> None:
        """Write the runs onto their rows. The lease is counted from now: creating a hundred takes seconds."""
        followed = [
            Followed(raw.id, raw.claim_count, run_id, self._routing.lease_elsewhere(raw.type))
            for raw, run_id in created
        ]
        outstanding.follow(self._engine, self._table, followed)
        self._tally.add("dispatched", len(followed))
