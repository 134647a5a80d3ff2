"""The loop of a claim flow: survey, rescue, claim, guard, dispatch, and again until nothing is due."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import timedelta

from sqlalchemy import Engine, Table

from prefect_claim_dispatch import claiming, rescuing
from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.claiming import Lane, RawAction, Survey
from prefect_claim_dispatch.deadlines import answered_in_time
from prefect_claim_dispatch.dispatching.batches import Batch, Workload
from prefect_claim_dispatch.dispatching.dispatchers import Dispatcher
from prefect_claim_dispatch.dispatching.elsewhere import Elsewhere
from prefect_claim_dispatch.dispatching.grouping import Grouping
from prefect_claim_dispatch.dispatching.guard import guarded
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.reaching import ApiWatch
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.dispatching.slots import POLL, Slots
from prefect_claim_dispatch.dispatching.strays import report_strays
from prefect_claim_dispatch.dispatching.suspects import Suspicion, portion_of
from prefect_claim_dispatch.dispatching.turns import Turns
from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.errors import DatabaseError, DatabaseUnavailableError, PrefectUnavailableError
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.outages import Outage
from prefect_claim_dispatch.outcomes import Outcome, Released
from prefect_claim_dispatch.policies import settlement_for
from prefect_claim_dispatch.registrations import Processor
from prefect_claim_dispatch.reports import Tally

CONTENDED_PAUSE = 0.05
CONTENDED_ROUNDS = 20


class ClaimLoop:
    """Runs in the flow's main thread; work runs in the dispatcher's threads, the table is written by the keeper's."""

    def __init__(  # noqa: PLR0917 - its parts, each of another type
        self,
        engine: Engine,
        table: Table,
        routing: Routing,
        dispatcher: Dispatcher,
        keeper: Keeper,
        tally: Tally,
        *,
        options: LoopOptions,
        before_first_claim: Callable[[], None] | None = None,
        api: ApiWatch | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._engine = engine
        self._table = table
        self._routing = routing
        self._dispatcher = dispatcher
        self._keeper = keeper
        self._tally = tally
        self._options = options
        self._before_first_claim = before_first_claim
        self._api = api
        self._elsewhere = elsewhere
        self._survey: Survey | None = None
        self._stranded: tuple[Lane, ...] = ()
        self._contended = 0
        self._gave_back = False
        self._is_one_by_one = False
        self._grouping = Grouping(routing, options)
        self._suspicion = Suspicion(options.patience, routing.is_isolated)
        self._turns = Turns()
        self._outage = Outage("nothing can be claimed")
        self._slots = Slots(options.concurrency)
        self._waiting: dict[RawAction, None] = {}  # in order

    def run(self) -> None:
        """Work until nothing is due (or, without `drain`, for one claim), then wait for what was started.

        A database or a Prefect API that goes away meanwhile is borne with, and nothing is claimed until it is back.

        Raises:
            DatabaseError: the database was away from the start; or for longer than a lease and the stay, and nothing
                that was begun is left.
            PrefectUnavailableError: so was the API.
        """
        stay_until = elapsed_clock() + self._options.stay.total_seconds()
        with answered_in_time(self._options.lease):
            while self._goes_on(stay_until):
                pass
            self._finish()
            report_strays(self._engine, self._table, self._tally, self._strays())

    def _goes_on(self, stay_until: float) -> bool:
        """One round; whether there is to be another."""
        try:
            goes_on = self._round(stay_until)
        except (DatabaseError, PrefectUnavailableError) as error:
            if not self._bears_with(error, stay_until):
                raise
            self._slots.rest(self._outage.failed(error))
            return True
        self._outage.ended()
        return goes_on

    def _bears_with(self, error: Exception, stay_until: float) -> bool:
        if self._survey is None:
            return False  # away before anything was begun: the next tick finds out, and this run is not in its way
        if len(self._slots):
            return True  # to stop now would take the leases from work that may yet be settled
        is_new = self._outage.seconds < self._options.lease.total_seconds()
        passes = isinstance(error, DatabaseUnavailableError | PrefectUnavailableError)
        return passes and (is_new or elapsed_clock() < stay_until)

    def _round(self, stay_until: float) -> bool:
        """Survey, rescue, claim, and wait as long as there is nothing else to do; whether there is more to do."""
        outstanding = len(self._slots)
        if not outstanding:
            # What failed may be due again at once; look only when the verdicts are in the table.
            self._keeper.flush(timeout=self._options.lease.total_seconds())
        self._survey = survey = claiming.survey(self._engine, self._table)
        here, there = self._lanes(survey)
        lanes = here + there
        if lanes or survey.has_expired_leases:
            self._check_once()
        if survey.has_expired_leases and self._rescue():
            return True
        if self._elsewhere is not None and self._elsewhere.reconcile(survey) and self._options.drain:
            return True
        claimed = self._claim(here) + self._claim_elsewhere(there)
        if not self._options.drain:
            return self._gave_back  # the rest of this claim is claimed again
        self._contended = 0 if claimed else self._contended + 1
        if claimed:
            return True
        if lanes and self._contended <= CONTENDED_ROUNDS:
            # Due, but held by other claimers at this moment, or behind an action of the same ordering key.
            self._slots.pause(CONTENDED_PAUSE)
        elif outstanding:  # as it was before the survey, which has not seen the verdict of what has ended since
            self._slots.wait_for_fewer(outstanding)
        else:
            return self._wait_for_more(survey, stay_until)
        return True

    def _lanes(self, survey: Survey) -> tuple[tuple[Lane, ...], tuple[Lane, ...]]:
        """What is due for processors of this process, and for deployments that exist."""
        due = survey.due(self._options.until)
        elsewhere = self._routing.elsewhere(due)
        there = () if self._elsewhere is None else self._elsewhere.available(elsewhere)
        self._stranded = tuple(lane for lane in elsewhere if lane not in there)
        return self._routing.here(due), there

    def _claim_elsewhere(self, lanes: tuple[Lane, ...]) -> int:
        if self._elsewhere is None or not lanes:
            return 0
        if self._api is not None:
            self._api.require()
        return self._elsewhere.claim(lanes)

    def stop(self) -> bool:
        """Give back at once what has not begun, wait for the rest for the grace period; returns whether all ended.

        For a flow that was told to end: nothing that has not begun may cost an attempt, or wait for its lease to run
        out.
        """
        for raw in self._waiting:
            self._settle_raw(raw, Released())
        self._waiting.clear()
        for work in self._slots.works:
            if work.withdraw():
                self._settle(work, Released())
        self._keeper.flush(timeout=5.0)
        is_done = self._slots.wait_for_none_begun(self._options.grace.total_seconds())
        return is_done and self._keeper.flush(timeout=5.0)

    def _claim(self, lanes: tuple[Lane, ...]) -> int:
        """Claim from *lanes* what can start soon, and dispatch it, a suspect alone at first; returns how many."""
        if lanes and self._api is not None:
            self._api.require()
        number = self._claim_parts(self._turns.given(lanes))
        claimed = list(self._waiting)
        portion = portion_of(claimed, self._suspicion.among(claimed), is_busy=bool(len(self._slots)))
        self._gave_back = bool(portion.given_back)
        # One of nothing but suspects: whatever is claimed beside the next would only be given back again.
        is_one_of_many = portion.has_suspects and bool(portion.kept) and all(raw.is_suspect for raw in claimed)
        self._is_one_by_one = self._options.drain and is_one_of_many
        if portion.has_suspects:
            self._give_back(portion.given_back)
        for group in self._grouping.groups(list(self._waiting)):
            self._slots.wait_for_one()
            self._dispatch(group)
        if portion.has_suspects:
            self._finish(within=self._options.alone_within)
        return number

    def _claim_parts(self, lanes: tuple[Lane, ...]) -> int:
        """Claim from *lanes* until no more can start soon; returns how many."""
        limit = 1 if self._is_one_by_one else self._options.limit
        taken, claimed = len(self._slots) + len(self._waiting), 0
        for part in self._grouping.parts(lanes):
            room = min(limit - claimed, self._options.room(taken, part.rows_per_run))
            number = self._claim_part(part.lanes, room)
            claimed += number
            if number == room:
                break
            taken += math.ceil(number / part.rows_per_run)
        return claimed

    def _claim_part(self, lanes: tuple[Lane, ...], room: int) -> int:
        claimed = claiming.claim(
            self._engine,
            self._table,
            lanes,
            limit=room,
            lease=self._options.lease,
            claimed_by=self._options.claimed_by,
            until=self._options.until,
        )
        self._turns.serve(claimed)
        self._waiting.update(dict.fromkeys(claimed))
        self._keeper.hold(claimed)
        self._tally.add("claimed", len(claimed))
        return len(claimed)

    def _give_back(self, claimed: list[RawAction]) -> None:
        """Release *claimed*, and have that and all verdicts so far written.

        What the table does not know when a suspect begins, it takes with it.
        """
        for raw in claimed:
            self._settle_raw(raw, Released())
            del self._waiting[raw]
        self._keeper.flush(timeout=self._options.lease.total_seconds())

    def _dispatch(self, group: Sequence[RawAction]) -> None:
        """Hand over what shares a run; each leaves the line only when somebody else answers for it."""
        processor = self._routing.match(group[0].type)
        works = [work for raw in group if (work := self._admitted(raw, processor)) is not None]
        if not works:
            return
        run = works[0] if processor is None or processor.rows_per_run is None else Batch(works)
        self._slots.take(run)
        for raw in group:
            self._waiting.pop(raw, None)
        self._dispatcher.submit(run, self._done)
        self._grouping.started()
        self._tally.add("runs")
        self._tally.add("dispatched", len(works))

    def _admitted(self, raw: RawAction, processor: Processor | None) -> Work | None:
        """The work of *raw*; None if it ended here, settled."""
        if processor is None:
            # Undeployed since the survey: not ours to judge.
            self._drop(raw, Released())
            return None
        verdict = guarded(raw, processor, self._routing.policy(processor))
        if not isinstance(verdict, tuple):
            self._drop(raw, verdict)
            return None
        action, arguments = verdict
        return Work(action, processor, arguments, on_begin=self._begun, on_outcome=self._settle)

    def _drop(self, raw: RawAction, outcome: Outcome) -> None:
        self._settle_raw(raw, outcome)
        del self._waiting[raw]

    def _begun(self, work: Work, run_id: str) -> None:
        self._keeper.begin((work.action.id, work.action.claim_count), run_id)

    def _settle(self, work: Work, outcome: Outcome) -> None:
        self._keeper.settle(settlement_for(outcome, work.action, self._routing.policy(work.processor)))

    def _settle_raw(self, raw: RawAction, outcome: Outcome) -> None:
        policy = self._routing.policy(self._routing.match(raw.type))
        self._keeper.settle(settlement_for(outcome, raw, policy))

    def _done(self, run: Workload, ended: str) -> None:
        if not run.has_begun and self._api is not None and self._api.is_away():
            # Prefect asks its API before it calls a task in a new thread: that is no failure of these actions'.
            for work in run.works:
                work.withdraw()
        run.conclude(ended)
        for work in run.works:
            if not work.has_begun:
                # It never began, since its lease could not be relied on any more, or the run ended before its turn:
                # give it back, if it is still ours to give.
                self._settle(work, Released())
        self._slots.free(run)

    def _check_once(self) -> None:
        # Not at the start: an idle tick is one statement.
        if self._before_first_claim is not None:
            self._before_first_claim()
            self._before_first_claim = None

    def _rescue(self) -> int:
        rescued = rescuing.rescue(self._engine, self._table, self._routing.policy_of, limit=self._options.limit)
        self._tally.add("rescued", len(rescued))
        return len(rescued)

    def _strays(self) -> tuple[Lane, ...]:
        strays = self._routing.strays(self._survey.due(self._options.until)) if self._survey else ()
        return strays + self._stranded

    def _wait_for_more(self, survey: Survey, stay_until: float) -> bool:
        """Sleep until the next action is due or the stay is over; False when it is over."""
        remaining = stay_until - elapsed_clock()
        if remaining <= 0:
            return False
        eligible = [lane.end_at for lane in self._routing.routable(survey.lanes) if lane.end_at > survey.now]
        next_due = min(((at - survey.now).total_seconds() for at in eligible), default=POLL)
        self._slots.pause(max(CONTENDED_PAUSE, min(next_due, POLL, remaining)))
        return True

    def _finish(self, within: timedelta | None = None) -> None:
        self._slots.wait_for_none(None if within is None else within.total_seconds())
        self._keeper.flush(timeout=self._options.lease.total_seconds())
