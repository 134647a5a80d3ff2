"""Creating: a run of its deployment for each claimed action, under a key of the claim, so that none has two."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Final, NamedTuple

from sqlalchemy import Engine, Table

from prefect_claim_dispatch import outstanding, settling
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dialects import as_instant
from prefect_claim_dispatch.dispatching.flow_runs import CREATED_AT_ONCE, DeploymentSeen, FlowRuns, Order
from prefect_claim_dispatch.dispatching.guard import guarded
from prefect_claim_dispatch.dispatching.guard_runs import GuardRun
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

ASKED_AT_ONCE: Final = timedelta(milliseconds=250)
"""How long the loop waits for the guard of what it has claimed: nearly always it is done in a fraction of that."""

ASKED_WITHIN: Final = timedelta(seconds=10)
"""How long a guard goes on asking about one row after another. What is left then goes back, and is claimed again."""

GIVEN_UP_AFTER: Final = timedelta(minutes=1)
"""How long one call of the author's may take; to the row it costs an attempt."""


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
        self._guards: dict[GuardRun[Ordered], tuple[Processor, DeploymentSeen]] = {}

    @property
    def asking(self) -> frozenset[Processor]:
        """The processors whose guard is at work, in a thread of its own; no more of theirs should be claimed now."""
        return frozenset(processor for processor, _ in self._guards.values())

    def create(self, raws: Sequence[RawAction]) -> None:
        """A run for each of *raws*; what can't have one is settled: released without a deployment, failed or dead.

        Where the author's code (`facts`, `parameters`) takes long, `go_on` creates them when it is done.

        Raises:
            PrefectUnavailableError: not all have one, as far as is known. Their claims stay: `adopt` finds out.
        """
        grouped: dict[Processor | None, list[RawAction]] = {}
        for raw in raws:
            grouped.setdefault(self._routing.match(raw.type), []).append(raw)
        for processor, group in grouped.items():
            for start in range(0, len(group), CREATED_AT_ONCE):
                self._create_for(processor, group[start : start + CREATED_AT_ONCE])

    def go_on(self) -> None:
        """Create the runs whose guard is done, and give up what will not answer.

        Raises:
            PrefectUnavailableError: as `create`.
        """
        for guard, (processor, seen) in list(self._guards.items()):
            refusals: Refusals = []
            if not guard.is_over:
                if not guard.is_late(GIVEN_UP_AFTER):
                    continue
                guard.give_up()
                silent = guard.left[0]
                logger.error(
                    "%s: facts or parameters of %s did not answer; given up", silent.reference, processor.place
                )
                refusals.append((silent, Failed(error_type="TimeoutError", message=_NO_ANSWER)))
            del self._guards[guard]
            self._create_guarded(seen, guard, refusals)

    def adopt(self, raws: Sequence[RawAction], *, is_over: frozenset[int]) -> None:
        """Find the runs of *raws*, which nobody has written down, or create them: whoever claimed them has died.

        What has none and can have none is released once its lease *is_over*.
        """
        asked = {(raw.id, raw.claim_count) for guard in self._guards for raw in guard.group}
        keys = {self.key_of(raw): raw for raw in raws if (raw.id, raw.claim_count) not in asked}
        if not keys:
            return
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
        keys = {raw: self.key_of(raw) for raw in raws}
        guard = GuardRun[Ordered](raws, lambda raw: self._ordered(processor, seen, raw, keys[raw]), within=ASKED_WITHIN)
        guard.start()
        if guard.wait(ASKED_AT_ONCE):
            self._create_guarded(seen, guard, [])
        else:
            self._guards[guard] = processor, seen

    def _create_guarded(self, seen: DeploymentSeen, guard: GuardRun[Ordered], refusals: Refusals) -> None:
        answers = list(guard.answers)
        ordered = [answer for _, answer in answers if isinstance(answer, Ordered)]
        refusals += [(raw, answer) for raw, answer in answers if not isinstance(answer, Ordered)]
        known = {raw.id for raw, _ in (*answers, *refusals)}
        self.settle([*refusals, *((raw, Released()) for raw in guard.group if raw.id not in known)])
        self._create_ordered(seen, ordered)

    def _create_ordered(self, seen: DeploymentSeen, ordered: Sequence[Ordered]) -> None:
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

    def _ordered(self, processor: Processor, seen: DeploymentSeen, raw: RawAction, key: str) -> Ordered | Outcome:
        """What is to be created for *raw*, or what becomes of it instead; calls the author's code."""
        deployment, policy = processor.deployment, self._routing.policy(processor)
        assert deployment is not None  # noqa: S101 - asked by the caller
        verdict = guarded(raw, processor, policy)
        if not isinstance(verdict, tuple):
            return verdict
        action, _ = verdict
        parameters = parameters_of(action, deployment, policy, seen.asked_for)
        if isinstance(parameters, Failed):
            return parameters
        return Ordered(raw, Order(key=key, name=action.reference, parameters=parameters))

    def _follow(self, created: Sequence[tuple[RawAction, str]]) -> None:
        """Write the runs onto their rows. The lease is counted from now: creating a hundred takes seconds."""
        followed = [
            Followed(raw.id, raw.claim_count, run_id, self._routing.lease_elsewhere(raw.type))
            for raw, run_id in created
        ]
        outstanding.follow(self._engine, self._table, followed)
        self._tally.add("dispatched", len(followed))


_NO_ANSWER: Final = f"facts or parameters did not answer within {GIVEN_UP_AFTER.total_seconds():.0f} s"
