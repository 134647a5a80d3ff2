"""The claim flow without Prefect's engine: the same claims, guard, work and verdicts, one action after another."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Final, cast

from prefect.logging import disable_run_logger
from sqlalchemy import Connection, Engine

from prefect_claim_dispatch import claiming, databases, limiting, rescuing, settling
from prefect_claim_dispatch import settings as settings_module
from prefect_claim_dispatch.catalogue import import_catalogue
from prefect_claim_dispatch.claiming import Lane, RawAction, Survey
from prefect_claim_dispatch.databases import Bind
from prefect_claim_dispatch.dispatching.batches import Batch, Workload
from prefect_claim_dispatch.dispatching.failures import tell_failures
from prefect_claim_dispatch.dispatching.grouping import MOST_AUTOMATICALLY
from prefect_claim_dispatch.dispatching.guard import guarded
from prefect_claim_dispatch.dispatching.limits import Limits
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.dispatching.tracebacks import AuthorsFrames
from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.errors import ConfigurationError, EndlessDrainError
from prefect_claim_dispatch.outcomes import Outcome, Released
from prefect_claim_dispatch.policies import RetryPolicy, Settlement, settlement_at_all
from prefect_claim_dispatch.processors import Registry, load_modules, registry
from prefect_claim_dispatch.registrations import Processor
from prefect_claim_dispatch.reports import DispatchReport, Tally

logger = logging.getLogger(__name__)
logger.addFilter(AuthorsFrames())

MAX_CLAIMS: Final = 1_000
RESCUED_AT_ONCE: Final = 1_000
CLAIMED_BY: Final = "drain"


def registry_of(processors: str | Iterable[str] | Registry | None) -> Registry:
    """The processors that a drain was told to use, every one of them found callable.

    Raises:
        RegistrationError: a module that can't be imported, or a processor that can't be called.
        ConfigurationError: *processors* is something else.
    """
    settings = settings_module.load()
    match processors:
        case Registry():
            import_catalogue(settings.catalogue)
            processors.check()
            return processors
        case None:
            names = settings.processors
        case str():
            names = (processors,)
        case _:
            names = _names(processors)
    load_modules(names, catalogue=settings.catalogue)
    return registry


def _names(processors: Any) -> tuple[str, ...]:
    names: list[Any] = list(processors) if isinstance(processors, Iterable) else [processors]  # pyright: ignore[reportUnknownArgumentType]
    strange = next((name for name in names if not isinstance(name, str)), None)
    if strange is not None:
        msg = (
            f"processors must be names of modules, a Registry or None, got {type(strange).__name__}; "
            "register functions in a Registry: @processor('email.welcome', registry=mine)"
        )
        raise ConfigurationError(msg)
    return tuple(cast("list[str]", names))


class Drain:
    """Does what is due of the actions that `bind` sees, in this thread."""

    def __init__(self, bind: Bind, table: str | None, registry: Registry, *, limit: int | None, reraise: bool) -> None:
        settings = settings_module.load()
        self._bind = bind
        self._table = databases.table_named(table, settings)
        self._routing = Routing(registry, settings.retry_policy)
        self._lease = timedelta(seconds=settings.lease_seconds)
        self._limit = limit
        self._reraise = reraise
        self._claims: Counter[str] = Counter()
        self._tally = Tally()
        self._limits = Limits(self._routing, lambda: limiting.running(self._executor(), self._table))

    def run(self) -> DispatchReport:
        """Claim and work until nothing is due or the limit is reached; what came of it."""
        with disable_run_logger():  # so that get_run_logger(), without a run, does not raise
            while True:
                survey = claiming.survey(self._executor(), self._table)
                if survey.has_expired_leases and self._rescue():
                    continue
                lanes = self._limits.with_room(self._routing.here(survey.due()))
                claimed = self._claim(lanes)
                if not claimed:
                    break
                for group in self._grouped(claimed[0], lanes):
                    self._attempt(group)
        self._count_unroutable(survey)
        self._count_held_back(survey)
        return self._tally.report()

    def _executor(self) -> Engine | Connection:
        # Anew each time: a processor may have committed or rolled back the session that the test and it share.
        return databases.executor(self._bind)

    def _rescue(self) -> int:
        rescued = rescuing.rescue(self._executor(), self._table, self._routing.policy_of, limit=RESCUED_AT_ONCE)
        self._tally.add("rescued", len(rescued))
        return len(rescued)

    def _claim(self, lanes: Sequence[Lane]) -> list[RawAction]:
        """The next action, alone, so that each finds what the one before it did; none at the limit."""
        claims = self._claims.total()
        if claims == self._limit:
            return []
        if lanes and self._limit is None and claims >= MAX_CLAIMS:
            raise EndlessDrainError(claims, *self._claims.most_common(1)[0])
        self._check_event_loop(lanes)
        return self._claim_up_to(1, lanes)

    def _grouped(self, first: RawAction, lanes: Sequence[Lane]) -> list[list[RawAction]]:
        """*first*, with what its processor takes together with it; what failed before is attempted by itself."""
        processor = self._routing.match(first.type)
        if processor is None or not processor.takes_rows_together or first.was_tried:
            return [[first]]
        most = MOST_AUTOMATICALLY if processor.rows_per_run == "auto" else processor.rows_per_run or 1
        room = min(most - 1, (self._limit or MAX_CLAIMS) - self._claims.total())
        alike = [lane for lane in lanes if self._routing.match(lane.type) is processor]
        if processor.max_running is not None:
            alike = [lane for lane in alike if lane.type == first.type]
        others = self._claim_up_to(room, alike, max_running=processor.max_running)
        return [[first, *(raw for raw in others if not raw.was_tried)], *([raw] for raw in others if raw.was_tried)]

    def _claim_up_to(self, number: int, lanes: Sequence[Lane], max_running: int | None = None) -> list[RawAction]:
        claimed = claiming.claim(
            self._executor(),
            self._table,
            lanes,
            limit=number,
            lease=self._lease,
            claimed_by=CLAIMED_BY,
            max_running=max_running,
        )
        self._claims.update(raw.type for raw in claimed)
        self._tally.add("claimed", len(claimed))
        return claimed

    def _attempt(self, group: Sequence[RawAction]) -> None:
        processor = self._routing.match(group[0].type)
        assert processor is not None  # noqa: S101 - only routable lanes are claimed
        works = self._all_admitted(group, processor)
        if not works:
            return
        self._tally.add("dispatched", len(works))
        run = Batch([work for _, work in works], has_limit=False) if processor.takes_rows_together else works[0][1]
        try:
            _call(run)
        except Exception as error:
            logger.warning("%s failed", run.reference.name, exc_info=error)
            if self._reraise:
                raise
        finally:
            if isinstance(run, Batch):
                tell_failures(run, logger.warning)
            run.conclude("Failed")
            for raw, work in works:
                self._settle(raw, work.outcome or Released(), self._routing.policy(processor))
            for _, work in works:
                # Ctrl-C comes in the middle of a processor, which is where time is spent: it is meant for the test.
                if isinstance(work.error, KeyboardInterrupt):
                    raise work.error from None

    def _all_admitted(self, group: Sequence[RawAction], processor: Processor) -> list[tuple[RawAction, Work]]:
        works: dict[RawAction, Work | None] = {}
        try:
            for raw in group:
                works[raw] = self._admitted(raw, processor)
        except BaseException:  # Ctrl-C, in facts or a validator: nothing has begun
            for raw in group:
                if works.get(raw, raw) is not None:
                    self._settle(raw, Released(), self._routing.policy(processor))
            raise
        return [(raw, work) for raw, work in works.items() if work is not None]

    def _admitted(self, raw: RawAction, processor: Processor) -> Work | None:
        policy = self._routing.policy(processor)
        verdict = guarded(raw, processor, policy)
        if not isinstance(verdict, tuple):
            self._settle(raw, verdict, policy)
            return None
        action, arguments = verdict
        return Work(action, processor, arguments, on_begin=_ignore, on_outcome=_ignore)

    def _settle(self, raw: RawAction, outcome: Outcome, policy: RetryPolicy) -> None:
        # A test should see what would never rest, as the error that it is, and not wait for it.
        settlement = settlement_at_all(outcome, raw, policy, least_snooze=timedelta(0))
        buried: dict[int, Settlement] = {}
        settled = settling.settle(self._executor(), self._table, [settlement], buried=buried)
        settlement = buried.get(raw.id, settlement)
        if raw.id not in settled and raw.lease.settled:
            ended = settling.ended(self._executor(), self._table, [(raw.id, raw.claim_count)])
            settled.update(ended)
            settlement = ended[raw.id].instead_of(settlement) if ended else settlement
        if raw.id in settled:
            self._tally.settled([(raw.type, settlement)])
        else:
            raw.lease.lost = True
            self._tally.add("lost_leases")
            logger.error("%s: lost the lease of claim %s; its verdict was not written", raw.reference, raw.claim_count)

    def _check_event_loop(self, lanes: Iterable[Lane]) -> None:
        """Refuse what can't be run here, before it is claimed."""
        processors = {lane.type: self._routing.match(lane.type) for lane in lanes}
        waiting = next((type_ for type_, found in processors.items() if found is not None and found.is_async), None)
        if waiting is not None and _has_event_loop():
            msg = (
                f"the processor of {waiting!r} is async, and an event loop runs in this thread already; "
                "use await asyncio.to_thread(testing.drain, engine), or a test function that is not async"
            )
            raise ConfigurationError(msg)

    def _count_unroutable(self, survey: Survey) -> None:
        elsewhere = self._routing.elsewhere(survey.due())
        if elsewhere:
            types = ", ".join(sorted({lane.type for lane in elsewhere}))
            logger.warning("left pending: %s; a deployment's run does them, and there is none without Prefect", types)
        strays = (*self._routing.strays(survey.due()), *elsewhere)
        if strays:
            self._tally.add("unroutable", claiming.count_due(self._executor(), self._table, strays))

    def _count_held_back(self, survey: Survey) -> None:
        held_back = self._routing.routable(survey.held_back()) + self._limits.full
        if held_back:
            self._tally.add("held_back", claiming.count_due(self._executor(), self._table, held_back))


def _has_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _call(run: Workload) -> None:
    if run.processor.is_async:
        asyncio.run(run.run_async(""))
    else:
        run.run("")


def _ignore(_work: Work, _told: Any) -> None:
    """Nobody waits for it: the verdict is written when the call is over."""
