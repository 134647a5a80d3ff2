"""The line: what was claimed and has not begun, and how it begins, ends and is settled."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dispatching.batches import Batch, Workload
from prefect_claim_dispatch.dispatching.dispatchers import Dispatcher
from prefect_claim_dispatch.dispatching.grouping import Grouping
from prefect_claim_dispatch.dispatching.guard import Verdict, admitted, may_take_long, opened
from prefect_claim_dispatch.dispatching.guard_runs import GuardRun
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.own_run import OwnRun
from prefect_claim_dispatch.dispatching.reaching import ApiWatch
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.dispatching.slots import POLL, Slots, Taker
from prefect_claim_dispatch.dispatching.suspects import Group, Trials
from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.outcomes import Failed, Outcome, Released, redacted
from prefect_claim_dispatch.policies import settlement_at_all
from prefect_claim_dispatch.registrations import Processor
from prefect_claim_dispatch.reports import Tally

logger = logging.getLogger(__name__)

GuardPass = tuple[Action, dict[str, Any]]
"""An action that may be dispatched, and its processor's arguments."""

MESSAGE_LENGTH: Final = 200
"""Characters of an error that kept a run from starting."""


class Line:
    """Claimed actions in groups that share a run, in the order in which they begin.

    Nothing begins, not even the guard, which calls code of the user's, before the table knows that it may have: see
    `Keeper.allow`. Where the guard may take long, it has a thread of its own, and the slot that its run will have: a
    type whose guard is slow takes slots from others, as one whose processor is slow does, and no time.
    """

    def __init__(  # noqa: PLR0917 - its parts, each of another type
        self,
        routing: Routing,
        grouping: Grouping,
        slots: Slots,
        dispatcher: Dispatcher,
        keeper: Keeper,
        tally: Tally,
        *,
        options: LoopOptions,
        api: ApiWatch | None,
        own_run: OwnRun | None = None,
    ) -> None:
        self._routing = routing
        self._grouping = grouping
        self._slots = slots
        self._dispatcher = dispatcher
        self._keeper = keeper
        self._tally = tally
        self._options = options
        self._api = api
        self._own_run = own_run
        self._trials = Trials(options.trial_of, routing.is_isolated)
        self._waiting: list[Group] = []
        self._guards: dict[GuardRun[GuardPass], Group] = {}

    def __len__(self) -> int:
        """How many actions wait, for a slot or for their guard."""
        return sum(len(group) for group in (*self._waiting, *self._guards.values()))

    @property
    def soon(self) -> int:
        """How many runs will take a slot as soon as there is one; suspects wait for other things."""
        over = sum(guard.is_over for guard in self._guards)
        return over + sum(not self._trials.is_suspect(group[0]) for group in self._waiting)

    @property
    def is_held(self) -> bool:
        """Whether nothing may begin now, though there are slots."""
        return self._trials.is_alone(self._running)

    @property
    def is_over(self) -> bool:
        """Whether nothing may begin any more: the claim flow's run was suspended, cancelled or deleted."""
        return self._own_run is not None and self._own_run.is_over

    @property
    def pause(self) -> float:
        """Seconds after which to look again, though no slot was freed."""
        return min(POLL, self._trials.seconds_left) if self._waiting else POLL

    def kept_waiting(self, claimed: Sequence[RawAction]) -> list[RawAction]:
        """What of *claimed*, claimed to begin at once, has to wait, for suspects among them."""
        return self._trials.kept_waiting(claimed)

    def add(self, claimed: Sequence[RawAction]) -> None:
        """Put *claimed* at its end."""
        self._keeper.hold(claimed)
        self._waiting += self._grouping.groups(claimed)

    def begin(self) -> None:
        """Start all that may begin, each as soon as there is a slot; suspects may have to stay in the line."""
        self.go_on()
        while not self.is_over and (
            chosen := self._trials.chosen(self._waiting, max(1, self._slots.left), self._running)
        ):
            if not self._slots.wait_for_one(POLL) or self.go_on():
                continue  # what the guard is done with has waited for longer, and may have taken the slot
            if not self._allow(chosen):
                return  # the database is away, or slow: the next round finds out
            for group in chosen:
                self._start(group)

    def go_on(self) -> int:
        """Start what the guard is done with, as far as there are slots; how many groups of it."""
        over = [guard for guard in self._guards if guard.is_over][: max(0, self._slots.left)]
        for guard in over:
            self._hand_over(self._guards[guard], guard.answers, guard)
        return len(over)

    def finish(self) -> None:
        """Start all there is, each when it may begin, and wait until all has ended. Once it may not, give it back."""
        while (self._waiting or self._guards) and not self.is_over:
            ended = self._slots.ended
            self.begin()
            if (self._waiting or self._guards) and not self.is_over:
                self._slots.wait_for_more_ended(ended, self.pause)
        is_released = False
        while not is_released:
            if self.is_over:
                self.release()
                is_released = True
            elif self._slots.wait_for_none(POLL):
                return
        self._slots.wait_for_none()

    def release(self) -> None:
        """Give back what has not begun."""
        for guard in self._guards:
            guard.give_up()
        for group in (*self._waiting, *self._guards.values()):
            for raw in group:
                self._settle_raw(raw, Released())
        self._waiting.clear()
        self._guards.clear()
        for work in self._slots.works:
            if work.withdraw():
                self._settle(work, Released())

    def _allow(self, groups: Iterable[Group]) -> bool:
        waits = [raw for group in groups for raw in group if not raw.lease.may_begin]
        return not waits or self._keeper.allow(waits, self._options.claimed_by, self._options.soon)

    @property
    def _running(self) -> list[Taker]:
        """What has a slot, and what is to have one again as soon as it is noticed that its guard is over."""
        return [*self._slots.runs, *(guard for guard in self._guards if guard.is_over)]

    def _start(self, group: Group) -> None:
        """Guard what shares a run, and hand it over; it leaves the line only when somebody else answers for it."""
        processor = self._routing.match(group[0].type)
        if processor is None:
            # Undeployed since the survey: not ours to judge.
            for raw in group:
                self._settle_raw(raw, Released())
            self._waiting.remove(group)
        else:
            policy = self._routing.policy(processor)
            actions = {raw: opened(raw, policy) for raw in group}
            found = [action for action in actions.values() if isinstance(action, Action)]
            if any(may_take_long(action, processor) for action in found):
                self._guard_aside(group, actions, processor)
            else:
                self._hand_over(group, [(raw, _passed(action, processor)) for raw, action in actions.items()])

    def _guard_aside(self, group: Group, actions: Mapping[RawAction, Action | Outcome], processor: Processor) -> None:
        guard = GuardRun[GuardPass](group, lambda raw: _passed(actions[raw], processor), self._slots.free)
        self._slots.take(guard)
        self._trials.begun(guard, group[0])
        self._guards[guard] = group
        self._waiting.remove(group)
        guard.start()

    def _hand_over(
        self, group: Group, verdicts: Iterable[tuple[RawAction, Verdict]], guard: GuardRun[GuardPass] | None = None
    ) -> None:
        works = [work for raw, verdict in verdicts if (work := self._admitted(raw, verdict)) is not None]
        if not works:
            self._leave(group, guard)
            return
        run = works[0] if works[0].processor.rows_per_run is None else Batch(works)
        self._slots.take(run)
        self._trials.begun(run, group[0])
        self._leave(group, guard)  # before it may begin: who stops now must not give back what does
        try:
            self._dispatcher.submit(run, self._done)
        except Exception as error:
            logger.exception("%s: its run could not be started", run.reference.name)
            self._done(run, f"{type(error).__name__} ({redacted(str(error), MESSAGE_LENGTH)})")
            return
        self._grouping.started()
        self._tally.add("runs")
        self._tally.add("dispatched", len(works))

    def _leave(self, group: Group, guard: GuardRun[GuardPass] | None) -> None:
        """Take *group* out of the line: somebody else answers for it."""
        if guard is None:
            self._waiting.remove(group)
        else:
            del self._guards[guard]

    def _admitted(self, raw: RawAction, verdict: Verdict) -> Work | None:
        """The work of *raw*; None if it ended here, settled."""
        if not isinstance(verdict, tuple):
            self._settle_raw(raw, verdict)
            return None
        action, arguments = verdict
        processor = self._routing.match(raw.type)
        assert processor is not None  # noqa: S101 - it was guarded
        return Work(action, processor, arguments, on_begin=self._begun, on_outcome=self._settle)

    def _begun(self, work: Work, run_id: str) -> None:
        self._keeper.begin((work.action.id, work.action.claim_count), run_id)

    def _settle(self, work: Work, outcome: Outcome) -> None:
        self._keeper.settle(settlement_at_all(outcome, work.action, self._routing.policy(work.processor)))

    def _settle_raw(self, raw: RawAction, outcome: Outcome) -> None:
        policy = self._routing.policy(self._routing.match(raw.type))
        self._keeper.settle(settlement_at_all(outcome, raw, policy))

    def _done(self, run: Workload, ended: str) -> None:
        try:
            self._conclude(run, ended)
        except BaseException as error:  # the future that calls this would swallow it, and the slot would be lost
            logger.exception("what became of %s can't be settled; what has no verdict yet failed", run.reference.name)
            for work in run.works:
                self._settle(work, Failed.from_exception(error))
        finally:
            self._slots.free(run)

    def _conclude(self, run: Workload, ended: str) -> None:
        reason = "" if run.has_begun else self._not_begun(run, ended)
        run.conclude(ended)
        for work in run.works:
            if not work.has_begun:
                # It never began, since its lease could not be relied on any more, or the run ended before its turn:
                # give it back, if it is still ours to give.
                self._settle(work, Released(reason))

    def _not_begun(self, run: Workload, ended: str) -> str:
        """Why nothing of *run* was begun, where the next run would end so, too; empty where it would not."""
        if not any(work.is_waiting for work in run.works):
            return ""
        # Prefect asks its API before it calls a task in a new thread. Nothing is claimed while it is away.
        if self._api is not None and self._api.is_away():
            return ""
        if self._own_run is not None and self._own_run.look():
            return ""
        logger.error("%s: its run ended %s before the processor was called; put off", run.reference.name, ended)
        return f"the run ended {ended} before the processor was called"


def _passed(action: Action | Outcome, processor: Processor) -> Verdict:
    return admitted(action, processor) if isinstance(action, Action) else action
