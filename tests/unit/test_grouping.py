"""Which rows share a run, and how many may be claimed for that: pure, but for the clock of the budget."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from prefect_claim_dispatch.claiming import Lane, RawAction
from prefect_claim_dispatch.dispatching.grouping import Grouping, RunBudget, Size, parts_of, rows_per_run_for
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.processors import Registry, processor

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def lane(type_: str, priority: int = 0) -> Lane:
    return Lane(type=type_, priority=priority, end_at=NOW)


def size_of(type_: str) -> Size:
    """The number in its name."""
    return Size(int(type_.strip("abc")))


def raw(id_: int, type_: str, fail_count: int = 0) -> RawAction:
    """As much of a claimed row as grouping looks at."""
    return cast("RawAction", SimpleNamespace(id=id_, type=type_, was_tried=fail_count > 0))


def grouping(*, concurrency: int = 4, runs_per_second: float = 30) -> Grouping:
    """Of four types: single; three to a run; a pattern with three to a run; automatic."""
    registry = Registry()
    for type_, rows in {"single": None, "three": 3, "many.*": 3, "auto": "auto"}.items():
        processor(type_, rows_per_run=cast("Any", rows), registry=registry)(lambda: None)
    options = LoopOptions(
        limit=1000,
        lease=timedelta(minutes=5),
        concurrency=concurrency,
        claimed_by="me",
        runs_per_second=runs_per_second,
    )
    return Grouping(Routing(registry, RetryPolicy()), options)


def ids(groups: list[list[RawAction]]) -> list[list[int]]:
    return [[one.id for one in group] for group in groups]


@pytest.mark.parametrize(
    ("due", "budget", "rows"),
    [
        (0, 30, 1),
        (1, 30, 1),
        (30, 30, 1),
        (31, 30, 2),
        (60, 30, 2),
        (20_000, 30, 500),
        (900, 30, 30),
        (7, 0, 7),
        (7, -100, 7),
        (7, 0.5, 7),
        (7, 3.5, 2),
        (10**9, 1, 500),
    ],
)
def test_rows_share_runs_as_soon_as_there_are_more_of_them_than_runs_to_spend(
    due: int, budget: float, rows: int
) -> None:
    """A run for each while few are due; then as few runs as the budget has. No row waits for it."""
    assert rows_per_run_for(due, budget) == rows


def test_budget_is_never_saved_up_beyond_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an idle hour a flood of 100,000 visible runs would keep the server busy for another."""
    clock = [0.0]
    monkeypatch.setattr("prefect_claim_dispatch.dispatching.grouping.elapsed_clock", lambda: clock[0])
    budget = RunBudget(30)

    budget.spend(40)
    spent = budget.left
    clock[0] = 0.5
    recovered = budget.left
    clock[0] = 3_600.0

    assert (spent, recovered, budget.left) == (-10, 5, 30)


@pytest.mark.parametrize(
    ("lanes", "parts"),
    [
        ([], []),
        ([("a1", 0), ("b1", 0)], [(["a1", "b1"], 1)]),
        ([("a1", 5), ("b1", 0)], [(["a1", "b1"], 1)]),
        ([("a500", 0), ("b1", 0), ("c500", 0)], [(["a500", "c500"], 500), (["b1"], 1)]),
        # A lower priority never comes first, and what comes next goes on with the same claim where it can.
        ([("a500", 5), ("b1", 0), ("c500", 0)], [(["a500", "c500"], 500), (["b1"], 1)]),
        ([("a500", 5), ("b1", 3), ("c500", 0)], [(["a500"], 500), (["b1"], 1), (["c500"], 500)]),
    ],
)
def test_lanes_are_claimed_in_parts_of_one_size(lanes: list[tuple[str, int]], parts: list[tuple[Any, int]]) -> None:
    """Claimed together, either single rows would be stranded by hundreds, or batches stay nearly empty."""
    found = parts_of([lane(type_, priority) for type_, priority in lanes], size_of)

    assert [([one.type for one in part.lanes], part.size.rows_per_run) for part in found] == parts


def test_rows_of_one_processor_share_runs_in_order() -> None:
    """Up to three each; the types of a pattern together, other processors' rows never."""
    claimed = [raw(1, "three"), raw(2, "single"), raw(3, "many.a"), raw(4, "three"), raw(5, "many.b")]
    claimed += [raw(6, "three"), raw(7, "three"), raw(8, "single"), raw(9, "nobody's")]

    assert ids(grouping().groups(claimed)) == [[1, 4, 6], [2], [3, 5], [7], [8], [9]]


def test_rows_that_failed_before_run_alone() -> None:
    """Whatever is wrong with them takes nobody along, and nobody's batch is cut short for them."""
    claimed = [raw(1, "three"), raw(2, "three", fail_count=1), raw(3, "three"), raw(4, "three", fail_count=2)]

    assert ids(grouping().groups(claimed)) == [[1, 3], [2], [4]]


def test_rows_that_mostly_run_alone_are_claimed_as_such() -> None:
    """After an outage a backlog has failed before: claimed by batches, hundreds of rows would wait here for slots."""
    grouped = grouping()

    grouped.groups([raw(1, "three", fail_count=1), raw(2, "three", fail_count=1), raw(3, "three")])
    after_failures = grouped.parts([lane("three")])[0].size.rows_per_run
    grouped.groups([raw(4, "three"), raw(5, "three")])

    assert (after_failures, grouped.parts([lane("three")])[0].size.rows_per_run) == (1, 3)


def test_automatic_rows_share_runs_when_there_are_many() -> None:
    """Singly while there are no more than slots and budget; then in no more runs than that."""
    few = grouping().groups([raw(n, "auto") for n in range(8)])
    many = grouping().groups([raw(n, "auto") for n in range(100)])
    poor = grouping(runs_per_second=2).groups([raw(n, "auto") for n in range(8)])

    assert [len(group) for group in few] == [1] * 8
    assert [len(group) for group in many] == [13] * 7 + [9]
    assert [len(group) for group in poor] == [4, 4]


def test_runs_of_every_lane_spend_the_budget() -> None:
    """The server does not mind which processor its runs are of."""
    grouped = grouping(runs_per_second=0.001)
    grouped.started()

    assert ids(grouped.groups([raw(n, "auto") for n in range(5)])) == [[0, 1, 2, 3, 4]]
