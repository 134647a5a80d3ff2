"""What a run in another process tells: plain data that comes through whatever carries it."""

from __future__ import annotations

import json
import pickle
from datetime import timedelta

import pytest
from prefect.states import Completed, Crashed
from prefect.states import Failed as FailedState

from prefect_claim_dispatch.dispatching.telling import (
    AttemptFailedError,
    heard,
    is_settled_in,
    outcome_in,
    told,
)
from prefect_claim_dispatch.outcomes import Cancel, Failed, Outcome, Processed, Released, Snooze, Unprocessable

KEY = (7, 3)
OUTCOMES: list[Outcome] = [
    Processed(),
    Snooze(timedelta(seconds=90), "not yet"),
    Cancel("not wanted"),
    Failed(error_type="ValueError", message="no such user"),
    Unprocessable(error_type="InvalidPayload", message="wants a number"),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
def test_outcomes_come_through_as_they_were(outcome: Outcome) -> None:
    """As JSON, which is the least that any carrier takes."""
    carried = json.loads(json.dumps(told({KEY: outcome}, settled=[KEY])))

    assert outcome_in(carried, KEY) == outcome
    assert is_settled_in(carried, KEY)


def test_other_claim_of_the_action_is_not_told_of() -> None:
    """The fence goes along, so that a late answer is never taken for a later claim's."""
    answer = told({KEY: Processed()})

    assert outcome_in(answer, (7, 4)) is None
    assert not is_settled_in(answer, KEY)


@pytest.mark.parametrize("plain", [["perhaps"], ["snoozed", "soon", ""], [], ["failed", 3, 4]], ids=str)
def test_what_another_version_tells_is_a_failure_that_says_so(plain: list[object]) -> None:
    """A worker that was deployed at another time must not stop the claim flow."""
    answer = dict(told({KEY: Processed()}))
    answer["claim-dispatch told"] = {"7:3": plain}

    outcome = outcome_in(answer, KEY)

    assert isinstance(outcome, Failed)
    assert outcome.error_type == "StrangeAnswer"


def test_outcome_that_no_processor_has_is_a_failure() -> None:
    """It can't be told, and must not be lost."""
    assert isinstance(outcome_in(told({KEY: Released()}), KEY), Failed)


def test_outcome_that_can_not_be_told_or_heard_is_that_rows_failure() -> None:
    """The rows beside it have come to something, and are not executed again."""
    lax = Cancel("")
    object.__setattr__(lax, "reason", 404)

    answer = dict(told({KEY: lax, (8, 1): Processed()}))
    heard_of = {"claim-dispatch told": {"7:3": ["snoozed", float("inf"), ""]}}

    assert isinstance(outcome_in(answer, KEY), Failed)
    assert outcome_in(answer, (8, 1)) == Processed()
    assert isinstance(outcome_in(heard_of, KEY), Failed)


def test_failure_pickles_with_what_it_tells() -> None:
    """It comes in place of exceptions that don't."""
    error = pickle.loads(pickle.dumps(AttemptFailedError("ValueError: no", told({KEY: Processed()}))))

    assert (str(error), repr(error)) == ("ValueError: no", "AttemptFailedError(ValueError: no)")
    assert outcome_in(error.told, KEY) == Processed()


def test_states_are_heard() -> None:
    """A run tells by its result or by its exception; of others nothing is heard."""
    answer = told({KEY: Processed()})

    assert heard(Completed(data=answer)) == answer
    assert heard(Crashed(data=answer)) == answer
    assert heard(FailedState(data=AttemptFailedError("no", answer))) == answer
    assert heard(FailedState(data=ValueError("no"))) is None
    assert heard(Completed(data={"some": "result"})) is None
    assert heard(Completed()) is None
