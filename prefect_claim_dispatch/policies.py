"""The whole state machine of an action, as one pure function: outcome in, settlement out."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, NamedTuple, Protocol, assert_never

from prefect_claim_dispatch.actions import MAX_FAIL_COUNT, ActionStatus
from prefect_claim_dispatch.durations import MAX_DURATION, ZERO
from prefect_claim_dispatch.outcomes import (
    LEAST_SNOOZE,
    MAX_DELAY,
    MAX_NAME_LENGTH,
    NOTES,
    Cancel,
    Crashed,
    Failed,
    Outcome,
    Processed,
    Released,
    Snooze,
    Unprocessable,
    redacted,
)

KEPT_ERRORS = 5
MOST_TIMES = 1_000_000


class Claimed(Protocol):
    """What a verdict looks at: the fence and what earlier attempts came to."""

    @property
    def id(self) -> int:
        """The action."""
        ...

    @property
    def claim_count(self) -> int:
        """The fence."""
        ...

    @property
    def fail_count(self) -> int:
        """Attempts that failed or crashed before."""
        ...

    @property
    def errors(self) -> Sequence[Mapping[str, Any]]:
        """What they came to."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often an action is attempted and how long it waits in between; durable, in the table.

    The wait doubles from *backoff* up to *backoff_max*. A fifth of it is spread by a jitter that depends on the
    action and the attempt only, so that the same failure always has the same verdict.
    """

    max_attempts: int = 5
    backoff: timedelta = timedelta(seconds=10)
    backoff_max: timedelta = timedelta(hours=1)

    def __post_init__(self) -> None:
        # By the first failure, it would be too late: the row stays claimed, and whoever rescues it meets the same.
        waits: tuple[Any, Any] = self.backoff, self.backoff_max
        if type(self.max_attempts) is not int or not all(isinstance(wait, timedelta) for wait in waits):
            got = f"{self.max_attempts!r}, {self.backoff!r} and {self.backoff_max!r}"
            msg = f"a retry policy takes a whole number of attempts and two timedeltas, got {got}"
            raise TypeError(msg)

    def delay_after(self, failures: int, seed: str) -> timedelta:
        """The wait after the *failures*-th failed attempt (1 or more)."""
        # An exponent of 40 is beyond every cap; 2 ** fail_count of a hostile row would be a memory bomb.
        doubled = self.backoff.total_seconds() * 2.0 ** min(max(failures, 1) - 1, 40)
        capped = min(doubled, self.backoff_max.total_seconds(), MAX_DELAY.total_seconds())
        jitter = (zlib.crc32(seed.encode()) % 1_000) / 1_000
        return timedelta(seconds=capped * (0.9 + 0.2 * jitter))


NOT_BEGUN: Final = RetryPolicy(backoff=timedelta(seconds=10), backoff_max=timedelta(minutes=5))
"""How long a row waits whose run could not be begun: by it, no other is kept from running, and no server is flooded."""


class Settlement(NamedTuple):
    """The verdict to write on one row, valid only while the fence (`id`, `claim_count`, claimed) holds.

    `delay` moves `end_at` to the database's now plus that much; None leaves it. `errors` is the whole new list, None
    leaves it.
    """

    id: int
    claim_count: int
    status: ActionStatus
    fail_count: int
    outcome: Outcome
    delay: timedelta | None = None
    errors: tuple[Mapping[str, Any], ...] | None = None


def settlement_for(  # noqa: PLR0911 - one for each outcome
    outcome: Outcome, action: Claimed, policy: RetryPolicy
) -> Settlement:
    """The verdict of *outcome* on *action*. Pure: no clock, no dice, no database.

    ===============  =========================================  ===================
    outcome          row becomes                                costs an attempt
    ===============  =========================================  ===================
    Processed        processed                                  no
    Failed, Crashed  pending after back-off; dead when used up  yes
    Unprocessable    dead                                       no
    Snooze           pending after its delay                    no
    Cancel           cancelled, reason in errors                no
    Released         pending, due as before; put off if it      no
                     has a reason
    ===============  =========================================  ===================

    The reason of a `Snooze` or `Released` is kept in errors, too: one entry, which says how many *times* in a row.
    """
    match outcome:
        case Processed():
            return Settlement(action.id, action.claim_count, ActionStatus.PROCESSED, action.fail_count, outcome)
        case Failed():
            return _after_failure(
                outcome, action, policy, _error(action, "failed", outcome.error_type, outcome.message)
            )
        case Crashed(reason=reason) if reason:
            return _after_failure(outcome, action, policy, _error(action, "crashed", "RunCrashed", reason))
        case Crashed():
            holder = f"held by {outcome.claimed_by}" if outcome.claimed_by else "holder unknown"
            message = f"the lease expired before the attempt was settled ({holder})"
            return _after_failure(outcome, action, policy, _error(action, "crashed", "LeaseExpired", message))
        case Unprocessable():
            error = _error(action, "unprocessable", outcome.error_type, outcome.message)
            return _settlement(outcome, action, ActionStatus.DEAD, errors=_appended(action, error))
        case Snooze(delay=delay, reason=reason):
            errors = _noted(action, _error(action, "snoozed", "Snooze", reason)) if reason else None
            return _settlement(outcome, action, ActionStatus.PENDING, delay=delay, errors=errors)
        case Cancel(reason=reason):
            error = _error(action, "cancelled", "Cancel", reason)
            return _settlement(outcome, action, ActionStatus.CANCELLED, errors=_appended(action, error))
        case Released(reason=reason):
            return _put_off(outcome, action, reason) if reason else _settlement(outcome, action, ActionStatus.PENDING)
    assert_never(outcome)


def settlement_at_all(
    outcome: Outcome, action: Claimed, policy: RetryPolicy, *, least_snooze: timedelta = LEAST_SNOOZE
) -> Settlement:
    """`settlement_for` what is `rested`; where that raises, the settlement of a failure, of this action alone.

    An outcome that its author's code has made in spite of its checks would leave the action claimed for ever.
    """
    try:
        return settlement_for(rested(outcome, action, least_snooze), action, policy)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the attempt came to
        failed = Failed.from_exception(error)
    try:
        return settlement_for(failed, action, policy)
    except Exception:  # noqa: BLE001 - it was the policy, then
        return settlement_for(failed, action, RetryPolicy())


def rested(outcome: Outcome, action: Claimed, least_snooze: timedelta = LEAST_SNOOZE) -> Outcome:
    """*outcome*; of a Snooze that is not the first since a failure, with *least_snooze* at least.

    What always answers "again at once" would be claimed and called without a pause, for ever.
    """
    if not isinstance(outcome, Snooze):
        return outcome
    delay, reason = outcome.delay, outcome.reason
    Snooze(delay, reason)  # a subclass may have left out the checks
    is_first = action.claim_count - action.fail_count <= 1
    return outcome if is_first or delay >= least_snooze else Snooze(least_snooze, reason)


def _put_off(outcome: Outcome, action: Claimed, reason: str) -> Settlement:
    errors = _noted(action, _error(action, "released", "NotBegun", reason))
    delay = NOT_BEGUN.delay_after(errors[-1]["times"], seed=f"{action.id}:{action.claim_count}")
    return _settlement(outcome, action, ActionStatus.PENDING, delay=delay, errors=errors)


def _after_failure(outcome: Outcome, action: Claimed, policy: RetryPolicy, error: Mapping[str, Any]) -> Settlement:
    # One more would be refused, with all that is settled beside it.
    failures = min(action.fail_count + 1, MAX_FAIL_COUNT)
    errors = _appended(action, error)
    if failures >= policy.max_attempts:
        return _settlement(outcome, action, ActionStatus.DEAD, fail_count=failures, errors=errors)
    delay = _delay(policy, failures, seed=f"{action.id}:{action.claim_count}")
    return _settlement(outcome, action, ActionStatus.PENDING, fail_count=failures, delay=delay, errors=errors)


def _delay(policy: RetryPolicy, failures: int, seed: str) -> timedelta:
    """What *policy* says, within what a database can add to its now; as by default, where it can't say."""
    try:
        return min(max(policy.delay_after(failures, seed), ZERO), MAX_DURATION)
    except Exception:  # noqa: BLE001 - one type's policy must not keep the verdicts of the others from being written
        return RetryPolicy().delay_after(failures, seed)


def _settlement(
    outcome: Outcome,
    action: Claimed,
    status: ActionStatus,
    *,
    fail_count: int | None = None,
    delay: timedelta | None = None,
    errors: tuple[Mapping[str, Any], ...] | None = None,
) -> Settlement:
    return Settlement(
        id=action.id,
        claim_count=action.claim_count,
        status=status,
        fail_count=action.fail_count if fail_count is None else fail_count,
        delay=delay,
        errors=errors,
        outcome=outcome,
    )


def _error(action: Claimed, kind: str, error_type: str, message: str) -> Mapping[str, Any]:
    return {
        "attempt": action.fail_count + 1,
        "claim_count": action.claim_count,
        "kind": kind,
        "type": redacted(error_type, MAX_NAME_LENGTH),
        "message": redacted(message),
    }


def _appended(action: Claimed, error: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    return (*_without_notes(action), error)[-KEPT_ERRORS:]


def _noted(action: Claimed, note: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """What failed is all kept; of the notes only this one, with how many *times* in a row it was made."""
    last: Mapping[str, Any] = action.errors[-1] if action.errors else {}
    times: object = last.get("times") if last.get("kind") == note["kind"] else 0
    before = times if isinstance(times, int) and 0 < times < MOST_TIMES else 0
    return (*_without_notes(action)[-KEPT_ERRORS:], {**note, "times": before + 1})


def _without_notes(action: Claimed) -> list[Mapping[str, Any]]:
    return [error for error in action.errors if not is_note(error)]


def is_note(error: Mapping[str, Any]) -> bool:
    """Whether an entry of `errors` says only why the row waits."""
    kind = error.get("kind")
    return isinstance(kind, str) and kind in NOTES
