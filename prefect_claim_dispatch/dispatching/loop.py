"""The loop of a claim flow: survey, rescue, claim, guard, dispatch, and again until nothing is due."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime

from sqlalchemy import Engine, Table

from prefect_claim_dispatch import claiming, limiting, rescuing
from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.claiming import Lane, Survey
from prefect_claim_dispatch.deadlines import answered_in_time
from prefect_claim_dispatch.dispatching.dispatchers import Dispatcher
from prefect_claim_dispatch.dispatching.elsewhere import Elsewhere
from prefect_claim_dispatch.dispatching.flooding import Flood
from prefect_claim_dispatch.dispatching.grouping import Grouping, Part
from prefect_claim_dispatch.dispatching.limits import Limits
from prefect_claim_dispatch.dispatching.line import Line
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.own_run import OwnRun
from prefect_claim_dispatch.dispatching.reaching import ApiWatch
from prefect_claim_dispatch.dispatching.ripening import Ripening
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.dispatching.signals import Signals
from prefect_claim_dispatch.dispatching.slots import POLL, Slots
from prefect_claim_dispatch.dispatching.strays import report_blocked, report_held_back, report_strays
from prefect_claim_dispatch.dispatching.turns import Turns
from prefect_claim_dispatch.errors import DatabaseError, DatabaseUnavailableError, PrefectUnavailableError
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.listening import listening
from prefect_claim_dispatch.outages import Outage
from prefect_claim_dispatch.reports import Tally

SHORTEST_PAUSE = 0.01
CONTENDED_PAUSE = 0.05
CONTENDED_ROUNDS = 20
UNSETTLED_PAUSE = 0.25


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
        own_run: OwnRun | None = None,
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
        self._own_run = own_run
        self._survey: Survey | None = None
        self._stranded: tuple[Lane, ...] = ()
        self._contended = 0
        self._unheard_since: datetime | None = None
        self._turns = Turns()
        self._flood = Flood()
        self._limits = Limits(routing, lambda: limiting.running(engine, table), self._settle_ended)
        self._outage = Outage("nothing can be claimed")
        self._signals = Signals()
        self._slots = Slots(options.concurrency, self._signals)
        keeper.tell = self._slots.fail
        self._ripening = Ripening(routing, self._count_due, slots=options.concurrency)
        self._grouping = Grouping(routing, options, self._ripening.at_most)
        parts = routing, self._grouping, self._slots, dispatcher, keeper, tally
        self._line = Line(*parts, options=options, api=api, own_run=own_run)

    def run(self) -> None:
        """Work until nothing is due (or, without `drain`, for one claim), then wait for what was started.

        Once the flow's own run is stopped in Prefect, nothing more is claimed, and what has not begun is given back.
        A database or a Prefect API that goes away meanwhile is borne with, and nothing is claimed until it is back.

        Raises:
            DatabaseError: the database was away from the start; or for longer than a lease and the stay, and nothing
                that was begun is left.
            PrefectUnavailableError: so was the API.
        """
        stay_until = elapsed_clock() + self._options.stay.total_seconds()
        with answered_in_time(self._options.lease), self._signals.held():
            with self._woken():
                while self._goes_on(stay_until):
                    self._signals.heed()
            self._finish()
            report_strays(self._engine, self._table, self._tally, self._strays())
            report_held_back(self._engine, self._table, self._tally, self._held_back())
            report_blocked(self._blocked())

    def _woken(self) -> AbstractContextManager[None]:
        if not self._options.stay:
            return nullcontext()  # it looks until nothing is due, and never waits to be told
        return listening(self._engine, self._table, self._slots.wake, url=self._options.listen_url)

    def _goes_on(self, stay_until: float) -> bool:
        """One round; whether there is to be another."""
        if self._line.is_over:
            return False
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
        self._slots.heed()
        self._keeper.check()
        self._release_unheard()
        self._line.go_on()
        outstanding, ended = len(self._slots) or len(self._line), self._slots.ended
        # What failed may be due again at once; there is no end before the verdicts are in the table.
        is_settled = not outstanding and self._settle_soon()
        survey, is_new = self._looked()
        here, there = self._lanes(survey)
        lanes = here + there
        if lanes or survey.has_expired_leases:
            self._check_once()
        if is_new and self._ended_elsewhere(survey):
            return True
        claimed_here, claimed_there = self._claim(here), self._claim_elsewhere(there)
        if not self._options.drain:
            return False
        if claimed_here or claimed_there:
            self._contended = 0
            return True
        if not is_new and claimed_here is not None:
            self._flood.ended()
            return True
        self._contended += claimed_here is not None
        if lanes and claimed_here is not None and self._contended <= CONTENDED_ROUNDS:
            # Due, but held by other claimers at this moment, or behind an action of the same ordering key.
            self._slots.pause(CONTENDED_PAUSE)
        elif outstanding or len(self._line):
            # As it was before the survey, which has not seen the verdict of what has ended since.
            within = min(self._line.pause, self._next_due(survey)) if self._slots.left else self._line.pause
            self._slots.wait_for_more_ended_or_wake(ended, within)
        elif not is_settled and not len(self._slots):
            self._slots.pause(UNSETTLED_PAUSE)
        elif claimed_here is not None:
            return self._wait_for_more(survey, stay_until)
        return True

    def _looked(self) -> tuple[Survey, bool]:
        """What there is to do, and whether that was found out just now."""
        known = self._flood.survey
        if known is not None:
            return known, False
        began = elapsed_clock()
        self._survey = survey = claiming.survey(self._engine, self._table)
        self._flood.looked(survey, elapsed_clock() - began)
        return survey, True

    def _ended_elsewhere(self, survey: Survey) -> bool:
        """Rescue what has lost its lease, and settle what ended in another run; whether to look anew."""
        if survey.has_expired_leases and self._rescue():
            return True
        return self._elsewhere is not None and bool(self._elsewhere.reconcile(survey)) and self._options.drain

    def _lanes(self, survey: Survey) -> tuple[tuple[Lane, ...], tuple[Lane, ...]]:
        """What is due for processors of this process, and for deployments that exist."""
        due = self._limits.with_room(survey.due(self._options.until))
        elsewhere = self._routing.elsewhere(due)
        there = () if self._elsewhere is None else self._elsewhere.available(elsewhere)
        self._stranded = tuple(lane for lane in elsewhere if lane not in there)
        return self._ripening.ripe(self._routing.here(due), survey.now), there

    def _count_due(self, lanes: Sequence[Lane], at_most: int) -> int:
        return claiming.count_due(self._engine, self._table, lanes, at_most=at_most)

    def _claim_elsewhere(self, lanes: tuple[Lane, ...]) -> int:
        if self._elsewhere is None:
            return 0
        self._elsewhere.go_on()
        if lanes and self._api is not None:
            self._api.require()
        return self._elsewhere.claim(lanes) if lanes else 0

    def stop(self) -> bool:
        """Give back at once what has not begun, wait for the rest for the grace period; returns whether all ended.

        For a flow that was told to end: nothing that has not begun may cost an attempt, or wait for its lease to run
        out.
        """
        self._line.release()
        with suppress(DatabaseError):
            self._release_unheard()
        self._keeper.flush(timeout=5.0)
        is_done = self._slots.wait_for_none_begun(self._options.grace.total_seconds())
        return is_done and self._keeper.flush(timeout=5.0)

    def _claim(self, lanes: tuple[Lane, ...]) -> int | None:
        """Claim from *lanes* what can start soon, and start what may; how many were claimed, None without room."""
        if lanes and self._api is not None:
            self._api.require()
        number = self._claim_parts(self._turns.given(lanes))
        self._line.begin()
        return number

    def _claim_parts(self, lanes: tuple[Lane, ...]) -> int | None:
        """Claim from *lanes* until no more can start soon; returns how many, None if there was room for none."""
        taken, claimed, has_room = len(self._slots) + self._line.soon, 0, False
        left, places = self._options.limit - len(self._line), 0 if self._line.is_held else self._options.concurrency
        for part in self._grouping.parts(lanes):
            size = part.size
            room = min(left - claimed, self._options.room(taken, size.rows_per_run))
            if room < 1:
                break
            at_once = max(0, places - taken) * size.rows_per_run
            if size.max_running is not None:
                room = min(room, at_once)  # what waits here would keep another flow from running it
                if room < 1:
                    continue
            has_room = True
            room = room if size.at_most is None else min(room, size.at_most)
            number = self._claim_part(part, min(room, at_once), may_begin=True)
            if number == at_once < room:
                number += self._claim_part(part, room - number, may_begin=False)
            claimed += number
            if number == room and size.at_most is None:
                break
            taken += math.ceil(number / size.rows_per_run)
        return claimed if has_room or not lanes else None

    def _claim_part(self, part: Part, room: int, *, may_begin: bool) -> int:
        try:
            claimed = claiming.claim(
                self._engine,
                self._table,
                part.lanes,
                limit=room,
                lease=self._options.lease,
                claimed_by=self._options.claimed_by,
                until=self._options.until,
                may_begin=may_begin,
                kept_waiting=self._line.kept_waiting if may_begin else None,
                max_running=part.size.max_running,
            )
        except DatabaseError:
            # Perhaps it was made, and the answer to its COMMIT was lost.
            self._unheard_since = self._unheard_since or (self._survey and self._survey.now)
            raise
        self._turns.serve(claimed)
        self._flood.claimed(len(claimed), of=room)
        self._tally.add("claimed", len(claimed))
        self._line.add(claimed)
        return len(claimed)

    def _release_unheard(self) -> None:
        """Give back what was claimed here without our hearing of it, as soon as the table can be asked."""
        if self._unheard_since is None:
            return
        # Of another process under the same name, it can't be told what it holds.
        if self._own_run is None or self._own_run.is_alone():
            released = rescuing.release_unheard(
                self._engine,
                self._table,
                claimed_by=self._options.claimed_by,
                since=self._unheard_since,
                is_held=self._keeper.holds,
            )
            self._tally.add("claimed", len(released))
            self._tally.add("released", len(released))
        self._unheard_since = None

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

    def _held_back(self) -> tuple[Lane, ...]:
        """What is due here, but paused, or full when it was last counted."""
        paused = self._survey.held_back(self._options.until) if self._survey else ()
        return self._routing.routable(paused) + self._limits.full

    def _blocked(self) -> tuple[Lane, ...]:
        """What is due here, and was asked for in vain again and again."""
        if self._survey is None or self._contended <= CONTENDED_ROUNDS:
            return ()
        due = self._routing.here(self._survey.due(self._options.until))
        return tuple(lane for lane in due if lane not in self._limits.full)

    def _settle_ended(self) -> bool:
        return self._keeper.has_verdicts and self._settle_soon()

    def _settle_soon(self) -> bool:
        """Have all verdicts written that there are; whether they were."""
        return self._keeper.flush(timeout=self._options.soon, patiently=False)

    def _wait_for_more(self, survey: Survey, stay_until: float) -> bool:
        """Sleep until the next action is due or the stay is over; False when it is over."""
        unripe = self._ripening.seconds_left
        is_asking = self._elsewhere is not None and self._elsewhere.is_asking
        remaining = max(stay_until - elapsed_clock(), 0.0 if unripe == math.inf else unripe, POLL if is_asking else 0.0)
        if remaining <= 0:
            return False
        self._slots.doze(min(self._next_due(survey), remaining))
        return True

    def _next_due(self, survey: Survey) -> float:
        """Seconds until an action that has a processor here is due, or ripe, or at most a poll."""
        eligible = [lane.end_at for lane in self._routing.routable(survey.lanes) if lane.end_at > survey.now]
        next_due = min(((at - survey.now).total_seconds() for at in eligible), default=POLL)
        return max(SHORTEST_PAUSE, min(next_due, self._ripening.seconds_left, POLL))

    def _finish(self) -> None:
        with suppress(DatabaseError):
            self._release_unheard()
        self._line.finish()
        while self._elsewhere is not None and self._elsewhere.is_asking:
            self._slots.rest(UNSETTLED_PAUSE)
            self._elsewhere.go_on()
        self._keeper.flush(timeout=self._options.lease.total_seconds())
        self._keeper.check()
