"""The state machine as a table: what each outcome makes of an action, with attempts left and with none."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.outcomes import (
    LEAST_SNOOZE,
    MAX_ERROR_LENGTH,
    MAX_NAME_LENGTH,
    Cancel,
    Crashed,
    Failed,
    Outcome,
    Processed,
    Released,
    Snooze,
    Unprocessable,
)
from prefect_claim_dispatch.policies import (
    KEPT_ERRORS,
    RetryPolicy,
    Settlement,
    rested,
    settlement_at_all,
    settlement_for,
)
from prefect_claim_dispatch.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claimed action, as far as a verdict looks at it."""

    id: int = 42
    claim_count: int = 7
    fail_count: int = 0
    errors: tuple[dict[str, Any], ...] = field(default=())


POLICY = RetryPolicy(max_attempts=3, backoff=timedelta(seconds=10), backoff_max=timedelta(hours=1))
PATIENT = replace(POLICY, max_attempts=100)
FRESH, LAST = Claim(fail_count=0), Claim(fail_count=2)
FAILED = Failed(error_type="ValueError", message="no such user")
UNPROCESSABLE = Unprocessable(error_type="ValidationError", message="email: field required")
SNOOZE = Snooze(timedelta(minutes=5))

OUTCOMES: list[Outcome] = [
    Processed(),
    FAILED,
    Crashed(claimed_by="run"),
    UNPROCESSABLE,
    SNOOZE,
    Cancel("not wanted"),
    Released(),
    Snooze(timedelta(minutes=5), "the shop is closed"),
    Released("no slot"),
]
outcomes = st.sampled_from(OUTCOMES)
claims = st.builds(
    Claim,
    id=st.integers(1, 2**63 - 1),
    claim_count=st.integers(1, 2**40),
    fail_count=st.integers(0, 2**31 - 2),
    errors=st.lists(st.fixed_dictionaries({"message": st.text(max_size=20)}), max_size=9).map(tuple),
)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 100),
    backoff=st.timedeltas(timedelta(0), timedelta(days=1)),
    backoff_max=st.timedeltas(timedelta(0), timedelta(days=30)),
)


@pytest.mark.parametrize(
    ("outcome", "claim", "status", "fail_count", "kind"),
    [
        (Processed(), FRESH, "processed", 0, None),
        (Processed(), LAST, "processed", 2, None),
        (FAILED, FRESH, "pending", 1, "failed"),
        (FAILED, LAST, "dead", 3, "failed"),
        (Crashed(claimed_by="run"), FRESH, "pending", 1, "crashed"),
        (Crashed(claimed_by="run"), LAST, "dead", 3, "crashed"),
        (UNPROCESSABLE, FRESH, "dead", 0, "unprocessable"),
        (UNPROCESSABLE, LAST, "dead", 2, "unprocessable"),
        (SNOOZE, FRESH, "pending", 0, None),
        (SNOOZE, LAST, "pending", 2, None),
        (Cancel("not wanted"), FRESH, "cancelled", 0, "cancelled"),
        (Cancel("not wanted"), LAST, "cancelled", 2, "cancelled"),
        (Released(), FRESH, "pending", 0, None),
        (Released(), LAST, "pending", 2, None),
        (Snooze(timedelta(minutes=5), "the shop is closed"), LAST, "pending", 2, "snoozed"),
        (Released("no slot"), LAST, "pending", 2, "released"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Outcome) else None,
)
def test_each_outcome_has_its_verdict(
    outcome: Outcome, claim: Claim, status: str, fail_count: int, kind: str | None
) -> None:
    """The whole state machine, attempts left and used up.

    An entry in `errors` exactly where there is something to explain.
    """
    settlement = settlement_for(outcome, claim, POLICY)

    assert settlement.status == status
    assert settlement.fail_count == fail_count
    assert (settlement.errors[-1]["kind"] if settlement.errors else None) == kind
    assert settlement.outcome is outcome


def test_crash_that_prefect_tells_of_is_told_in_its_words() -> None:
    """Of a deployment's run more is known than that a lease is over."""
    told = settlement_for(Crashed(claimed_by="run", reason="the pod was evicted"), FRESH, POLICY)
    unexplained = settlement_for(Crashed(claimed_by="run"), LAST, POLICY)

    assert (told.status, told.fail_count) == ("pending", 1)
    assert [told.errors[-1][key] for key in ("kind", "type", "message")] == [
        "crashed",
        "RunCrashed",
        "the pod was evicted",
    ]
    assert unexplained.errors[-1]["type"] == "LeaseExpired"


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
def test_only_what_waits_gets_a_delay(outcome: Outcome) -> None:
    """A terminal row keeps its `end_at`, and a released one is due as before.

    A deploy must not push work into the future.
    """
    settlement = settlement_for(outcome, FRESH, POLICY)

    waits = isinstance(outcome, Failed | Crashed | Snooze) or outcome == Released("no slot")
    assert (settlement.delay is not None) == waits


def test_snooze_waits_exactly_as_long_as_asked() -> None:
    """Jitter is for collisions after failures; a processor that says five minutes means five minutes."""
    settlement = settlement_for(SNOOZE, FRESH, POLICY)

    assert settlement.delay == timedelta(minutes=5)


def kinds(settlement: Settlement) -> list[Any]:
    return [error["kind"] for error in settlement.errors or ()]


def test_reason_to_wait_is_one_entry_however_often_it_is_given() -> None:
    """The person on call reads why the row waits, and since how many times; failures are not pushed out by it."""
    claim = FRESH
    for attempt in range(KEPT_ERRORS):
        claim = replace(claim, fail_count=attempt, errors=settlement_for(FAILED, claim, PATIENT).errors)
    for _ in range(3):
        claim = replace(claim, errors=settlement_for(Snooze(timedelta(0), "shop closed"), claim, PATIENT).errors)

    assert [error["kind"] for error in claim.errors] == ["failed"] * KEPT_ERRORS + ["snoozed"]
    assert (claim.errors[-1]["message"], claim.errors[-1]["times"]) == ("shop closed", 3)
    assert kinds(settlement_for(FAILED, claim, PATIENT)) == ["failed"] * KEPT_ERRORS, "and a failure takes its place"
    assert kinds(settlement_for(Released("no slot"), claim, PATIENT))[-2:] == ["failed", "released"]


def test_reason_is_redacted_and_cut() -> None:
    """It is somebody's text, as an error's is."""
    settlement = settlement_for(Snooze(timedelta(0), "password=hunter2 " + "x" * 5_000), FRESH, POLICY)

    assert settlement.errors is not None
    assert "hunter2" not in settlement.errors[0]["message"]
    assert len(settlement.errors[0]["message"]) == MAX_ERROR_LENGTH


def test_what_can_not_be_begun_waits_longer_each_time_and_for_minutes_at_most() -> None:
    """A limit of 0 may stand for a day: a thousand rows that wait for it must be no load, and begin soon after it."""
    claim, delays = FRESH, list[float]()
    for _ in range(9):
        settlement = settlement_for(Released("the run ended so"), claim, POLICY)
        assert settlement.delay is not None
        delays.append(settlement.delay.total_seconds())
        claim = replace(claim, errors=settlement.errors)

    assert 9 <= delays[0] <= 11
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(delays[:5]))
    assert max(delays) <= 330


@pytest.mark.parametrize("times", ["7", None, -3, 10**400, True])
def test_note_that_was_written_behind_our_back_is_counted_anew(times: Any) -> None:
    """`errors` is a column that anybody may write."""
    claim = replace(FRESH, errors=({"kind": "released", "times": times},))

    assert settlement_for(Released("no slot"), claim, POLICY).status == "pending"


def test_snooze_for_no_time_rests_from_the_second_time_on() -> None:
    """Once, "again at once" is a fair answer; given each time, it would be claimed and called thousands of times."""
    at_once, first, second = Snooze(timedelta(0), "soon"), Claim(claim_count=1), Claim(claim_count=2)
    after_failure = Claim(claim_count=3, fail_count=2)

    assert [rested(at_once, claim) for claim in (first, after_failure)] == [at_once, at_once]
    assert rested(at_once, second) == Snooze(LEAST_SNOOZE, "soon")
    assert settlement_at_all(at_once, second, POLICY).delay == LEAST_SNOOZE
    assert settlement_at_all(at_once, second, POLICY, least_snooze=timedelta(0)).delay == timedelta(0)
    assert rested(SNOOZE, second) is SNOOZE


class LaxSnooze(Snooze):
    """Leaves out the checks."""

    def __post_init__(self) -> None:
        pass


class LaxCancel(Cancel):
    """The same."""

    def __post_init__(self) -> None:
        pass


@pytest.mark.parametrize(
    "outcome",
    [
        LaxSnooze("soon"),  # type: ignore[arg-type]
        LaxSnooze(timedelta(days=-1)),
        LaxSnooze(timedelta(days=10**6)),
        LaxCancel(404),  # type: ignore[arg-type]
        LaxCancel(None),  # type: ignore[arg-type]
        LaxCancel(ValueError("gone")),  # type: ignore[arg-type]
        "no outcome at all",
    ],
    ids=repr,
)
def test_outcome_that_has_no_verdict_is_a_failure_of_its_action(outcome: Any) -> None:
    """Without one the row would stay claimed, its lease renewed, until it died of a crash that there never was."""
    settlement = settlement_at_all(outcome, FRESH, POLICY)

    assert (settlement.status, settlement.fail_count) == (ActionStatus.PENDING, 1)
    assert isinstance(settlement.outcome, Failed)
    assert settlement_at_all(outcome, LAST, POLICY).status == ActionStatus.DEAD


def test_name_of_an_error_is_kept_clean_and_short() -> None:
    """It may be anything: a class made by a program, with a NUL that PostgreSQL refuses, and all other verdicts too."""
    hostile = type("Hostile", (Exception,), {})
    hostile.__qualname__ = "A\x00B\ud800" + "c" * 1_000

    for outcome in (Failed.from_exception(hostile("x")), Failed(error_type="A\x00" + "b" * 1_000, message="m")):
        errors = settlement_for(outcome, FRESH, POLICY).errors
        assert errors is not None
        name = errors[-1]["type"]
        assert len(name) == MAX_NAME_LENGTH
        assert "\x00" not in name
        name.encode()


def test_single_attempt_dies_of_its_first_failure() -> None:
    """`max_attempts=1` is how a processor says "never twice"."""
    settlement = settlement_for(FAILED, FRESH, replace(POLICY, max_attempts=1))

    assert (settlement.status, settlement.fail_count) == ("dead", 1)


def test_error_says_which_attempt_and_what() -> None:
    """What the person on call reads first, without the logs."""
    settlement = settlement_for(FAILED, LAST, POLICY)

    assert settlement.errors is not None
    assert settlement.errors[-1] == {
        "attempt": 3,
        "claim_count": 7,
        "kind": "failed",
        "type": "ValueError",
        "message": "no such user",
    }


@pytest.mark.parametrize("claimed_by", ["flow-run-1", None])
def test_crash_names_the_holder(claimed_by: str | None) -> None:
    """The run that died is where its logs are."""
    settlement = settlement_for(Crashed(claimed_by=claimed_by), FRESH, POLICY)

    assert settlement.errors is not None
    assert (claimed_by or "holder unknown") in settlement.errors[-1]["message"]


def test_only_the_last_errors_are_kept() -> None:
    """A row that fails for ever must not grow for ever."""
    old = tuple({"message": str(number)} for number in range(KEPT_ERRORS))

    settlement = settlement_for(FAILED, Claim(errors=old), POLICY)

    assert settlement.errors is not None
    assert [error["message"] for error in settlement.errors] == ["1", "2", "3", "4", "no such user"]


def test_huge_message_is_cut() -> None:
    """An exception that prints a megabyte must not be written a thousand times in one statement."""
    settlement = settlement_for(Failed(error_type="E", message="x" * 1_000_000), FRESH, POLICY)

    assert settlement.errors is not None
    assert len(settlement.errors[-1]["message"]) == MAX_ERROR_LENGTH


def test_cancel_reason_is_redacted() -> None:
    """A reason is often an exception's text, with the URL in it."""
    settlement = settlement_for(Cancel("postgresql://me:hunter2@db/x is gone"), FRESH, POLICY)

    assert "hunter2" not in json.dumps(settlement.errors)


@given(outcome=outcomes, claim=claims, policy=policies)
def test_verdict_is_pure_and_keeps_the_fence(outcome: Outcome, claim: Claim, policy: RetryPolicy) -> None:
    """The same question has the same answer, and the answer is about the claim that was asked about."""
    settlement = settlement_for(outcome, claim, policy)

    assert settlement == settlement_for(outcome, claim, policy)
    assert (settlement.id, settlement.claim_count) == (claim.id, claim.claim_count)


@given(outcome=outcomes, claim=claims, policy=policies)
def test_verdict_is_bounded(outcome: Outcome, claim: Claim, policy: RetryPolicy) -> None:
    """S5, and nothing that the columns could not hold: `fail_count` rises by one at most, errors stay few and short."""
    settlement = settlement_for(outcome, claim, policy)

    assert 0 <= settlement.fail_count - claim.fail_count <= 1
    assert settlement.status is not ActionStatus.CLAIMED
    if settlement.fail_count > claim.fail_count and settlement.status is ActionStatus.PENDING:
        assert settlement.fail_count < policy.max_attempts
    if settlement.errors is not None:
        assert len(settlement.errors) <= KEPT_ERRORS + isinstance(outcome, Snooze | Released)
    if settlement.delay is not None and not isinstance(outcome, Snooze | Released):
        assert timedelta(0) <= settlement.delay <= policy.backoff_max * 1.1 + timedelta(microseconds=1)


@given(policy=policies, failures=st.integers(-5, 2**31), seed=st.text())
def test_backoff_never_exceeds_its_cap(policy: RetryPolicy, failures: int, seed: str) -> None:
    """`2 ** fail_count` of a hostile row would be a memory bomb or an overflow; a row of raw SQL may say any number."""
    delay = policy.delay_after(failures, seed)

    assert timedelta(0) <= delay <= policy.backoff_max * 1.1 + timedelta(microseconds=1)


def test_backoff_doubles_up_to_the_cap() -> None:
    """Within the tenth that jitter moves it either way."""
    policy = RetryPolicy(backoff=timedelta(seconds=10), backoff_max=timedelta(seconds=60))

    waits = [policy.delay_after(failures, "1:1").total_seconds() for failures in (1, 2, 3, 4, 40)]

    for wait, middle in zip(waits, (10, 20, 40, 60, 60), strict=True):
        assert middle * 0.9 <= wait <= middle * 1.1


def test_jitter_is_deterministic_and_spreads() -> None:
    """A thousand rows that failed together must not come back together.

    And a replayed failure must have the same verdict.
    """
    policy = RetryPolicy(backoff=timedelta(seconds=100))

    waits = [policy.delay_after(1, f"{id_}:1") for id_ in range(1_000)]

    assert waits == [policy.delay_after(1, f"{id_}:1") for id_ in range(1_000)]
    assert len(set(waits)) > 300
    assert max(waits) - min(waits) > timedelta(seconds=15)


def test_jitter_tells_actions_apart_and_claims_too() -> None:
    """Rows that failed together, and the attempts of one row that another row keeps meeting, go different ways."""

    def waits(claims: list[Claim]) -> set[timedelta | None]:
        return {settlement_for(FAILED, claim, POLICY).delay for claim in claims}

    assert len(waits([Claim(id=id_) for id_ in range(50)])) > 40
    assert len(waits([Claim(claim_count=count) for count in range(50)])) > 40


def test_jitter_is_the_same_in_every_release() -> None:
    """A verdict whose answer was lost may be written again by another version: it must be the same verdict."""
    assert RetryPolicy().delay_after(1, "42:7") == timedelta(seconds=9.404)


def test_no_failure_waits_as_long_as_the_first() -> None:
    """A row of raw SQL may say that it failed never, or less often than that."""
    assert RetryPolicy().delay_after(0, "1:1") == RetryPolicy().delay_after(1, "1:1")
    assert RetryPolicy().delay_after(-3, "1:1") == RetryPolicy().delay_after(1, "1:1")


def test_policy_is_by_default_what_the_settings_are_by_default() -> None:
    """Two places say 5 attempts, 10 seconds and an hour; the documentation says it once."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}

    assert RetryPolicy() == RetryPolicy(
        max_attempts=defaults["max_attempts"],
        backoff=timedelta(seconds=defaults["backoff_seconds"]),
        backoff_max=timedelta(seconds=defaults["backoff_max_seconds"]),
    )


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [(FAILED, "ValueError"), (Crashed(), "LeaseExpired"), (UNPROCESSABLE, "ValidationError"), (Cancel("x"), "Cancel")],
    ids=str,
)
def test_entry_names_its_type(outcome: Outcome, expected: str) -> None:
    """What dashboards group by, also where no exception was raised."""
    errors = settlement_for(outcome, FRESH, POLICY).errors

    assert errors
    assert errors[-1]["type"] == expected


@pytest.mark.parametrize(
    "wrong", [{"backoff": 30}, {"backoff_max": "1h"}, {"max_attempts": 2.5}, {"max_attempts": True}]
)
def test_policy_of_a_wrong_kind_can_not_be_made(wrong: dict[str, Any]) -> None:
    """By the first failure it would be too late: the row would stay claimed, and stop whoever rescues it."""
    with pytest.raises(TypeError, match="a whole number of attempts and two timedeltas"):
        RetryPolicy(**wrong)
