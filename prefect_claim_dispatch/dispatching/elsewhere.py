"""The deployment lane of a claim flow: what it claims for runs of other deployments, and what became of those runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from sqlalchemy import Engine, Table

from prefect_claim_dispatch import claiming
from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.claiming import Lane, Survey
from prefect_claim_dispatch.dispatching.creating import Creator
from prefect_claim_dispatch.dispatching.flow_runs import CREATED_AT_ONCE, FlowRuns
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.reconciling import Reconciler
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.errors import DeploymentNotFoundError
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.schema import ELSEWHERE, SERVER_MARK

logger = logging.getLogger(__name__)

LOOK_EVERY: Final = timedelta(seconds=5)
"""Between looks at the states of runs, while a claim flow stays."""


class Elsewhere:
    """Its rows hold no slot of the claim flow while their runs live: the work is not here."""

    def __init__(self, engine: Engine, table: Table, routing: Routing, tally: Tally, *, options: LoopOptions) -> None:
        self._engine = engine
        self._table = table
        self._routing = routing
        self._tally = tally
        self._options = options
        self._runs = FlowRuns()
        self._creator = Creator(engine, table, routing, self._runs, tally)
        self._reconciler = Reconciler(engine, table, routing, self._runs, self._creator, tally)
        self._look_at = float("-inf")
        self._told: set[str] = set()

    def reconcile(self, survey: Survey) -> int:
        """Settle what ended elsewhere, every few seconds; returns how many.

        Asks nothing while nothing is claimed, or where no processor is a deployment: then only for leases that are
        over and that rescue has left alone, whose processor is registered no more.

        Raises:
            PrefectUnavailableError: the states can't be read.
        """
        is_wanted = self._routing.has_elsewhere or survey.has_expired_leases
        if survey.oldest_lease_at is None or not is_wanted or elapsed_clock() < self._look_at:
            return 0
        settled = self._reconciler.reconcile()
        self._look_at = elapsed_clock() + LOOK_EVERY.total_seconds()
        return settled

    def available(self, lanes: Sequence[Lane]) -> tuple[Lane, ...]:
        """Those of *lanes* whose deployment exists. The others wait, as if nobody had registered them.

        Raises:
            PrefectUnavailableError: the API can't be asked.
        """
        return tuple(lane for lane in lanes if self._exists(lane.type))

    @property
    def is_asking(self) -> bool:
        """Whether runs are still to be created: the author's code says of what."""
        return bool(self._creator.asking)

    def go_on(self) -> None:
        """Create what has been asked about by now.

        Raises:
            PrefectUnavailableError: as `claim`.
        """
        self._creator.go_on()

    def claim(self, lanes: Sequence[Lane]) -> int:
        """Claim from *lanes* as many as one call creates, and create a run for each; returns how many were claimed.

        Raises:
            PrefectUnavailableError: runs could not be created. Their claims stay, and are adopted.
        """
        claimed, asking = 0, self._creator.asking
        lanes = [lane for lane in lanes if self._routing.match(lane.type) not in asking]
        for (lease, max_running, _), part in self._parts(lanes).items():
            raws = claiming.claim(
                self._engine,
                self._table,
                part,
                limit=min(self._options.limit, CREATED_AT_ONCE),
                lease=lease,
                may_begin=False,
                claimed_by=self._holder(),
                until=self._options.until,
                max_running=max_running,
            )
            self._tally.add("claimed", len(raws))
            self._creator.create(raws)
            claimed += len(raws)
        return claimed

    def _holder(self) -> str:
        """Who claims, and on which Prefect server the runs are made: on another, nobody knows what became of them."""
        server = self._runs.server()
        return f"{ELSEWHERE}{self._options.claimed_by}" + ("" if server is None else f"{SERVER_MARK}{server}")

    def _parts(self, lanes: Sequence[Lane]) -> dict[tuple[timedelta, int | None, str], list[Lane]]:
        """What is claimed together: with one lease, and a type with a `max_running` by itself."""
        parts: dict[tuple[timedelta, int | None, str], list[Lane]] = {}
        for lane in lanes:
            limit = self._routing.max_running(lane.type)
            key = self._routing.lease_elsewhere(lane.type), limit, "" if limit is None else lane.type
            parts.setdefault(key, []).append(lane)
        return parts

    def _exists(self, type_: str) -> bool:
        deployment = self._routing.deployment(type_)
        if deployment is None:
            return False
        if self._runs.deployment(deployment.name) is not None:
            return True
        if deployment.name not in self._told:
            self._told.add(deployment.name)
            logger.error("%s", DeploymentNotFoundError(deployment.name))
        return False
