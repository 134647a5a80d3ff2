"""Which due lanes wait for company, and for how long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from prefect_claim_dispatch.claiming import Lane
from prefect_claim_dispatch.dispatching.ripening import MOST_LANES, Ripening
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.processors import Registry, processor

NOW = datetime(2026, 7, 1, tzinfo=UTC)
LINGER = timedelta(seconds=5)


class Counted:
    """As many due actions as each type is said to have; keeps what it was asked."""

    def __init__(self, due: dict[str, int]) -> None:
        self.due = due
        self.asked: list[tuple[list[str], int]] = []

    def __call__(self, lanes: Sequence[Lane], at_most: int) -> int:
        self.asked.append(([lane.type for lane in lanes], at_most))
        return min(at_most, sum(self.due.get(lane.type, 1) for lane in lanes))


def ripening(counted: Counted, *, slots: int = 4) -> Ripening:
    """Ten to a run: ``m`` and the pattern ``many.*`` linger for five seconds, ``soon`` for one, ``at-once`` not."""
    registry = Registry()
    for type_, linger in {"m": LINGER, "many.*": LINGER, "soon": LINGER / 5, "at-once": None}.items():
        processor(type_, rows_per_run=10, linger=linger, registry=registry)(lambda: None)
    return Ripening(Routing(registry, RetryPolicy()), counted, slots=slots)


def lane(type_: str, age: float = 0.0, priority: int = 0) -> Lane:
    """A lane whose earliest action has been due for *age* seconds."""
    return Lane(type=type_, priority=priority, end_at=NOW - timedelta(seconds=age))


def ripe(waiting: Ripening, *lanes: Lane) -> list[str]:
    """The types that go."""
    return [one.type for one in waiting.ripe(lanes, NOW)]


@pytest.mark.parametrize(("age", "goes", "left"), [(0.0, False, 5.0), (4.9, False, 0.1), (5.0, True, math.inf)])
def test_few_wait_until_the_oldest_is_old_enough(age: float, goes: bool, left: float) -> None:
    """Nine of ten; when they go, all go."""
    waiting = ripening(Counted({"m": 9}))

    assert ripe(waiting, lane("m", age), lane("at-once")) == (["m", "at-once"] if goes else ["at-once"])
    assert waiting.seconds_left == pytest.approx(left)
    assert waiting.at_most("m") is None


@pytest.mark.parametrize(("due", "at_most"), [(10, 10), (19, 10), (20, 20), (39, 30), (4_000, 40)])
def test_full_runs_go_at_once_and_the_rest_waits(due: int, at_most: int) -> None:
    """No more is counted than the slots could start."""
    counted = Counted({"m": due})
    waiting = ripening(counted)

    assert ripe(waiting, lane("m")) == ["m"]
    assert waiting.at_most("m") == at_most
    assert waiting.seconds_left == pytest.approx(5.0)
    assert counted.asked == [(["m"], 40)]


def test_what_is_old_enough_takes_all_along_uncounted() -> None:
    """Of whatever type and priority: the run is one, and what is left would wait for the next."""
    counted = Counted({})
    waiting = ripening(counted)

    assert ripe(waiting, lane("many.a", 0.0, 5), lane("m"), lane("many.b", 6.0)) == ["many.a", "many.b"]
    assert waiting.at_most("many.a") is None
    assert counted.asked == [(["m"], 40)]


def test_types_of_a_pattern_are_counted_together() -> None:
    """They share runs; of very many lanes, each is known to have one action."""
    few = ripening(Counted({"many.a": 4, "many.b": 6}))
    assert ripe(few, lane("many.a"), lane("many.b")) == ["many.a", "many.b"]

    counted = Counted({})
    many = ripening(counted)
    lanes = [lane(f"many.{number}") for number in range(MOST_LANES + 9)]
    assert len(ripe(many, *lanes)) == len(lanes)
    assert many.at_most("many.0") == 20
    assert [len(types) for types, _ in counted.asked] == [MOST_LANES]


def test_the_first_to_be_ripe_says_when_to_look_again() -> None:
    """And what waited before is forgotten."""
    waiting = ripening(Counted({}))

    assert ripe(waiting, lane("m"), lane("soon", 0.25)) == []
    assert waiting.seconds_left == pytest.approx(0.75)
    assert ripe(waiting, lane("at-once"), lane("nobody's")) == ["at-once", "nobody's"]
    assert waiting.seconds_left == math.inf
