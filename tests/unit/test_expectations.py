"""Why an action is not the one that a test expects; and that the errors of testing survive a process boundary."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, event, select

from prefect_claim_dispatch import clocks
from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import now
from prefect_claim_dispatch.errors import (
    ClaimDispatchError,
    ConfigurationError,
    EndlessDrainError,
    UnexpectedActionsError,
)
from prefect_claim_dispatch.expectations import Expectation, PublishedAction, explanation

LATER = datetime(2040, 6, 1, tzinfo=UTC)
scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2)
documents = st.dictionaries(
    st.text("abc", min_size=1, max_size=2),
    st.recursive(
        scalars,
        lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=1), part),
        max_leaves=8,
    ),
    max_size=3,
)


def action(**values: Any) -> PublishedAction:
    """An action of which only *values* matter."""
    rest: dict[str, Any] = {
        "id": 1,
        "type": "a",
        "payload": {},
        "meta": {},
        "rules": None,
        "end_at": LATER,
        "priority": 0,
        "idempotency_key": None,
        "ordering_key": None,
        "status": ActionStatus.PENDING,
        "fail_count": 0,
        "errors": (),
    }
    return PublishedAction(**(rest | values))


@given(document=documents)
def test_every_payload_is_and_contains_itself(document: dict[str, Any]) -> None:
    """Otherwise no failure message could be believed."""
    assert Expectation({"payload": document, "payload__contains": document}).differences(action(payload=document)) == ()


@given(document=documents, more=documents)
def test_contained_is_what_is_left_when_members_are_added(document: dict[str, Any], more: dict[str, Any]) -> None:
    """Filters must not care about what is added to a payload next year; exact ones must."""
    larger = more | document

    differences = Expectation({"payload": document, "payload__contains": document}).differences(action(payload=larger))

    assert differences == (() if larger == document else ("payload",))


def test_row_without_a_readable_instant_fits_no_bound() -> None:
    """PostgreSQL stores 'infinity', which Python can't hold: it must not break the comparison, nor the message."""
    endless = action(end_at=None)
    wanted = Expectation({"end_at": LATER, "end_at__from": LATER, "end_at__until": LATER})

    assert wanted.differences(endless) == ("end_at", "end_at__from", "end_at__until")
    assert "end_at=? " in explanation(wanted, None, [endless])


def test_expectation_of_anything_says_so() -> None:
    """An empty first line would look like a fault of the message."""
    assert explanation(Expectation({}), 1, []).startswith("expected exactly 1 action, found 0: any\n")


@pytest.mark.parametrize("number", [0, 1, 12, 13, 500])
@pytest.mark.parametrize("count", [None, 0, 1_000])
def test_explanation_has_at_most_twenty_lines(number: int, count: int | None) -> None:
    """A failure that fills the screen hides itself."""
    actions = [action(id=id_, type=f"t{id_ % 30}", payload={"text": "x\n" * 999}) for id_ in range(number)]

    lines = explanation(Expectation({"type": "t1"}), count, actions).split("\n")

    assert len(lines) <= 20
    assert max(map(len, lines)) <= 200


@pytest.mark.parametrize(
    "error", [UnexpectedActionsError("expected, found"), EndlessDrainError(1_000, "poll", 999), ConfigurationError("m")]
)
def test_errors_pickle(error: ClaimDispatchError) -> None:
    """Parallel test runners ship them between processes."""
    copy = pickle.loads(pickle.dumps(error))

    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


class TestStopped:
    """The clock itself."""

    @pytest.mark.parametrize(("microseconds", "rounded"), [(0, 0), (1, 1_000), (1_000, 1_000), (1_001, 2_000)])
    def test_is_rounded_up_to_a_millisecond(self, microseconds: int, rounded: int) -> None:
        """Rounded down, what is due at an instant would not be due in its own `at`."""
        with clocks.stopped(LATER + timedelta(microseconds=microseconds)) as instant:
            assert instant == clocks.wall_clock() == LATER + timedelta(microseconds=rounded)

    def test_listens_only_while_it_is_used(self) -> None:
        """An application pays nothing for what only its tests use."""
        engine = create_engine("sqlite://")

        def listens() -> bool:
            return event.contains(type(engine), "before_cursor_execute", clocks._with_instant)

        with clocks.stopped(LATER):
            with clocks.stopped(LATER):
                assert listens()
            assert listens()
            with engine.connect() as connection:
                assert connection.exec_driver_sql("SELECT 'now'").scalar_one() == "now"
                assert connection.execute(select(now())).scalar_one() < LATER
        assert not listens()
        assert abs(clocks.wall_clock() - datetime.now(UTC)) < timedelta(minutes=1)
