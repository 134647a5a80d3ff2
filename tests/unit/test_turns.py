"""Turns: who comes first in the next claim."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from prefect_claim_dispatch.claiming import Lane, RawAction
from prefect_claim_dispatch.dispatching.turns import Turns

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def lane(type_: str, priority: int = 0, *, seconds: int = 0) -> Lane:
    """One with something due."""
    return Lane(type=type_, priority=priority, end_at=NOW + timedelta(seconds=seconds))


def claimed(*lanes: Lane) -> list[RawAction]:
    """Rows of those lanes, as far as turns look at them."""
    return [cast("RawAction", SimpleNamespace(type=one.type, priority=one.priority)) for one in lanes]


def order(turns: Turns, *lanes: Lane) -> list[tuple[str, int]]:
    """The lanes as the next claim takes them."""
    return [(one.type, one.turn) for one in turns.given(lanes)]


def test_nothing_is_changed_before_anybody_was_passed_over() -> None:
    """Without a flood the longest due comes first."""
    assert order(Turns(), lane("a"), lane("b", seconds=1)) == [("a", 0), ("b", 0)]


def test_who_was_passed_over_comes_first() -> None:
    """A claim that a flood has filled leaves the others the next."""
    turns = Turns()
    turns.serve(claimed(lane("flood")))

    assert order(turns, lane("flood"), lane("b", seconds=1)) == [("b", 0), ("flood", 1)]


def test_a_round_ends_when_all_have_been_served() -> None:
    """Or the first to be served would be the last for ever."""
    turns = Turns()
    turns.serve(claimed(lane("a")))
    turns.serve(claimed(lane("b")))

    assert order(turns, lane("a"), lane("b", seconds=1)) == [("a", 0), ("b", 0)]


def test_higher_priority_comes_before_any_turn() -> None:
    """Turns are of one priority; who publishes with a higher one means it."""
    turns = Turns()
    turns.serve(claimed(lane("a", 5)))

    assert order(turns, lane("b"), lane("a", 5)) == [("a", 0), ("b", 0)]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True), st.data())
def test_every_lane_is_served_within_as_many_claims_as_there_are_lanes(types: list[str], data: Any) -> None:
    """Whichever of the first turn fills a claim, nobody waits for longer than two rounds."""
    turns, waited = Turns(), dict.fromkeys(types, 0)
    lanes = [lane(type_, seconds=place) for place, type_ in enumerate(types)]
    for _ in range(4 * len(types)):
        first = [one for one in turns.given(lanes) if one.turn == turns.given(lanes)[0].turn]
        served = data.draw(st.sampled_from(first))
        turns.serve(claimed(served))
        waited = {type_: 0 if type_ == served.type else count + 1 for type_, count in waited.items()}
        assert max(waited.values()) < 2 * len(types)
