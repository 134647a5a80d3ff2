"""What the state of a deployment's run means for its row: one pure function."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Final

from prefect_claim_dispatch.outcomes import Cancel, Crashed, Failed, Outcome, Processed, Released, Snooze, redacted
from prefect_claim_dispatch.outstanding import Outstanding

WITHDRAWN: Final = "Withdrawn"
"""Name of the state that a run gets which waited for too long, of type CANCELLED: tells our cancel from a person's."""

REFUSED: Final = "Deployment concurrency "
"""What Prefect's message begins with when it cancels a run itself, as the strategy CANCEL_NEW of the deployment's
concurrency limit has it. Nothing else of such a state tells it from a person's cancel."""

SOONEST: Final = timedelta(seconds=15)
LATEST: Final = timedelta(minutes=10)
"""Until a run is created anew for an action whose run was refused; doubles with each claim that began nothing."""

MESSAGE_LENGTH: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeen:
    """A flow run as the API tells of it; *type* is the state's, in capitals."""

    type: str
    name: str
    message: str = ""
    has_begun: bool = False


class Step(Enum):
    """What is to be done before there is an outcome."""

    LEAVE = "leave it to its run, which renews its own lease"
    STRANGE = "leave it: its run is on another Prefect server, and nothing is known of it here"
    RENEW = "renew its lease: the run lives"
    WITHDRAW = "cancel the run, which nobody began, and release the action"
    BURY = "call the run crashed: it says Running, and its lease is over"


def verdict_on(  # noqa: PLR0911 - one for each end of a run
    run: RunSeen | None, row: Outstanding, *, queued_at_most: timedelta, server: str | None = None
) -> Outcome | Step:
    """What becomes of *row*, whose run looks like that; None: *server*, which was asked, knows no such run. Pure.

    ===========================  ==================================================================
    run                          row
    ===========================  ==================================================================
    Completed                    processed
    Failed                       failed: retried, or dead by its policy
    Crashed, deleted             the same, told as a crash
    unknown to another server    left as it is
    Cancelled                    cancelled
    Cancelled by its deployment  put off at no attempt; of a run that had begun, told as a crash
    Withdrawn, never begun       released, at no attempt
    waiting for too long         the run is withdrawn first
    alive                        its lease is renewed, by the run itself or by us
    Running, its own lease over  the run is called crashed first
    ===========================  ==================================================================
    """
    if run is None and row.server not in (None, server):
        return Step.STRANGE
    if run is None:
        # Its process may well be alive, as long as it renews its lease.
        is_alive = row.is_held_by_its_run and not row.is_over
        return Step.LEAVE if is_alive else Crashed(reason=f"its run {row.run_id} was deleted in Prefect")
    match run.type:
        case "COMPLETED":
            return Processed()
        case "FAILED":
            return Failed(error_type=f"Run{run.name}", message=_told(f"its run {row.run_id} ended {run.name}", run))
        case "CRASHED":
            return Crashed(reason=_told(f"its run {row.run_id} crashed", run))
        case "CANCELLED" if run.message.startswith(REFUSED):
            return _of_the_refused(run, row)
        case "CANCELLED" if run.name != WITHDRAWN:
            return Cancel(_told(f"its run {row.run_id} was cancelled in Prefect", run))
        case "CANCELLED" if not run.has_begun:
            return Released()
        case "SCHEDULED" | "PENDING" if not run.has_begun and row.waited > queued_at_most:
            return Step.WITHDRAW
        case _:
            return _of_the_living(run, row)


def _of_the_refused(run: RunSeen, row: Outstanding) -> Outcome:
    """Its deployment is full: no person did that, so it is no verdict on the action."""
    if run.has_begun:
        return Crashed(reason=_told(f"its run {row.run_id} got no slot for its next try", run))
    in_vain = max(0, row.claim_count - row.fail_count - 1)
    return Snooze(min(SOONEST * 2 ** min(in_vain, 10), LATEST), _told(f"its run {row.run_id} was refused", run))


def _of_the_living(run: RunSeen, row: Outstanding) -> Outcome | Step:
    if not row.is_held_by_its_run:
        return Step.RENEW
    if not row.is_over:
        return Step.LEAVE
    match run.type:
        case "RUNNING":
            return Step.BURY
        case "CANCELLING":
            return Cancel(_told(f"its run {row.run_id} was being cancelled in Prefect, and its lease is over", run))
        case "CANCELLED":
            return Crashed(reason=f"its run {row.run_id} began while it was withdrawn, and its lease is over")
        case _:  # waiting for a retry of Prefect's, or paused
            return Step.RENEW


def _told(what: str, run: RunSeen) -> str:
    return f"{what}: {redacted(run.message, MESSAGE_LENGTH)}" if run.message else what
