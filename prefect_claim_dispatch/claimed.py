"""What a deployed flow does with the reference that it was given: take the claim, keep it, settle it."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Final

import httpx
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from sqlalchemy import Connection, Engine, Table
from sqlalchemy.orm import Session

from prefect_claim_dispatch import databases, outstanding, settling
from prefect_claim_dispatch import settings as settings_module
from prefect_claim_dispatch.actions import Action, Lease
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.durations import checked_duration
from prefect_claim_dispatch.errors import ClaimLostError, ConfigurationError, LostLeaseError
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.outcomes import Cancel, Failed, Outcome, Processed, Snooze, Unprocessable
from prefect_claim_dispatch.policies import RetryPolicy, settlement_at_all
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.settings import Settings

SHORTEST_LEASE = timedelta(seconds=1)
logger = logging.getLogger(__name__)

LOOK_EVERY: Final = 1.0
"""Seconds between looks at a claim that another process of the same flow run holds."""

_kept: set[tuple[str, outstanding.Key, str | None]] = set()
"""Claims that a block of this process has left for the next try of its flow run."""


@dataclass(slots=True)
class _Answer:
    """What the block has said of its outcome so far."""

    outcome: Outcome = field(default_factory=Processed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClaimedAction(Action):
    """The `Action`, its payload read from the table; and what the flow may say of its end."""

    answered: _Answer = field(default_factory=_Answer, repr=False)

    def settle(self, bind: Connection | Session, outcome: Snooze | Cancel | None = None) -> None:
        """Settle in the caller's own transaction, together with what the flow writes there: processed unless given.

        Leaving the block writes nothing more then. If the transaction is rolled back, the settlement goes with it: so
        raise afterwards.

        Raises:
            LostLeaseError: the claim is not held any more; roll the transaction back.
        """
        connection = bind.connection() if isinstance(bind, Session) else bind
        settling.settle_action(connection, self, outcome)

    def answer(self, outcome: Snooze | Cancel) -> None:
        """Let the action be snoozed or cancelled when the block is left, instead of processed.

        Raises:
            TypeError: *outcome* is neither.
        """
        if not isinstance(outcome, Snooze | Cancel):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"answer takes a Snooze or a Cancel, got {type(outcome).__name__}"
            raise TypeError(msg)
        self.answered.outcome = outcome


@contextmanager
def claimed_action(
    reference: Mapping[str, Any], /, *, bind: Engine | str | None = None, lease: timedelta | float | None = None
) -> Generator[ClaimedAction]:
    """The action that *reference* stands for, held by this flow run while the block lasts; for sync and async flows.

    The claim is checked before anything happens, and then renewed in the background. Left normally, the block settles
    the action as processed, or as `ClaimedAction.answer` said; an exception settles it as failed and goes on, so that
    the run is Failed too. Not while Prefect will retry the flow by itself: the claim is kept for that. When the run is
    cancelled or killed, a claim flow settles from its state.

    One process at a time: where Prefect has started this run a second time while the first still works, the second
    waits here until that has settled the action, or its lease is over. A retry of Prefect's goes on at once.

    Args:
        reference: what the claim flow passed as the parameter ``action``.
        bind: the database of the action table, an engine or a URL. None: the settings'.
        lease: how long the claim lasts unless renewed, a timedelta or seconds. None: the settings'.

    Raises:
        ClaimLostError: this run may not begin: the claim was settled, released or given to another run.
        LostLeaseError: the verdict could not be written, since the claim was lost while the block lasted.
        ConfigurationError: *reference* is none, or *lease* is no duration.
        DatabaseError: the database can't be reached.
    """
    settings = settings_module.load()
    table, key, policy = _meaning(reference, settings)
    engine = bind if isinstance(bind, Engine) else databases.engine_for(bind)
    lasts = checked_duration(
        settings.lease_seconds if lease is None else lease,
        "claimed_action: lease",
        error=ConfigurationError,
        least=SHORTEST_LEASE,
    )
    raw = _taken(engine, table, key, lasts)
    with Keeper(engine, table, lease=lasts, tally=Tally()) as keeper:
        keeper.hold([raw])
        action = _decoded(raw, keeper, policy)
        try:
            yield action
        except Exception as error:
            # Also when it was settled in a transaction: it may be that very transaction which failed. If it did not,
            # the fence keeps what it wrote.
            if _is_retried():
                _kept.add((table.fullname, key, _run_id()))
            else:
                keeper.settle(settlement_at_all(Failed.from_exception(error), raw, policy))
            raise
        # Also where `settle` was called: if its transaction was not rolled back, the fence keeps what it wrote.
        keeper.settle(settlement_at_all(action.answered.outcome, raw, policy))
    _require(raw.lease, key)


def _taken(engine: Engine, table: Table, key: outstanding.Key, lease: timedelta) -> RawAction:
    """The row, held by this flow run from now on; waits as long as another process holds it for the same run.

    Raises:
        ClaimLostError: the claim is not this run's, or not any more.
    """
    run_id = _run_id()
    kept = table.fullname, key, run_id
    raw = outstanding.take(engine, table, key, run_id, lease=lease, again=kept in _kept)
    _kept.discard(kept)
    if raw is None and _is_held(engine, table, key, run_id) and _was_ended():
        raw = outstanding.take(engine, table, key, run_id, lease=lease, again=True)
    while raw is None:
        if not _is_held(engine, table, key, run_id):
            raise ClaimLostError(*key, table.fullname)
        logger.warning("another process of this flow run holds action #%s: waiting for its end, or its lease's", key[0])
        time.sleep(LOOK_EVERY)
        raw = outstanding.take(engine, table, key, run_id, lease=lease)
    return raw


def _is_held(engine: Engine, table: Table, key: outstanding.Key, run_id: str | None) -> bool:
    return run_id is not None and outstanding.is_held_by(engine, table, key, run_id)


def _was_ended() -> bool:
    """Whether Prefect had ended this run, or put it off, before it started it in this process.

    Then this is its next try. False where that can't be asked: the lease tells, a little later.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return False
    with get_client(sync_client=True) as client:
        try:
            states = client.read_flow_run_states(context.flow_run.id)
        except (httpx.HTTPError, RuntimeError):
            return False
    since = [state for state in sorted(states, key=lambda state: state.timestamp) if not state.is_pending()]
    return len(since) > 1 and not since[-2].is_running()


def _meaning(reference: Any, settings: Settings) -> tuple[Table, outstanding.Key, RetryPolicy]:
    default = settings.retry_policy
    try:
        key = int(reference["id"]), int(reference["claim_count"])
        policy = RetryPolicy(
            max_attempts=int(reference.get("max_attempts", default.max_attempts)),
            backoff=timedelta(seconds=reference.get("backoff_seconds", default.backoff.total_seconds())),
            backoff_max=timedelta(seconds=reference.get("backoff_max_seconds", default.backoff_max.total_seconds())),
        )
        return databases.table_named(reference.get("table"), settings), key, policy
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        msg = (
            "claimed_action takes what the flow was given as its parameter 'action': a mapping with id and claim_count"
        )
        raise ConfigurationError(msg) from error


def _decoded(raw: RawAction, keeper: Keeper, policy: RetryPolicy) -> ClaimedAction:
    try:
        action = raw.action()
    except (ValueError, TypeError, RecursionError) as error:
        outcome = Unprocessable(error_type="UndecodablePayload", message=f"{type(error).__name__}: {error}")
        keeper.settle(settlement_at_all(outcome, raw, policy))
        raise
    return ClaimedAction(**{each.name: getattr(action, each.name) for each in fields(Action)})


def _require(lease: Lease, key: outstanding.Key) -> None:
    """Refuse to end well where the verdict was not taken: the work may be done again, and this run must say so."""
    if lease.lost:
        raise LostLeaseError(*key)


def _run_id() -> str | None:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context is not None and context.flow_run is not None else None


def _is_retried() -> bool:
    """Whether Prefect will run the flow again after this exception, by its own retries."""
    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow_run is None:
        return False
    return context.flow_run.run_count <= (context.flow.retries or 0)
