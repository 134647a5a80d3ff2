"""The loop with processors that take many rows in a run: what shares one, what is claimed for it, how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, func, select

from prefect_claim_dispatch import Action, processor, testing
from prefect_claim_dispatch.dispatching import loop as loop_module
from prefect_claim_dispatch.dispatching.batches import Workload
from prefect_claim_dispatch.dispatching.dispatchers import OnDone
from prefect_claim_dispatch.dispatching.loop import ClaimLoop
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.reports import Tally
from tests.kit.looping import ThreadDispatcher, run_loop
from tests.kit.tables import TABLE, add_many, by_status, row
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(60)


class Metric(BaseModel):
    """A payload that must fit."""

    n: int


@dataclass
class Witnessed(ThreadDispatcher):
    """Keeps the ids of each run, in the order of their start."""

    runs: list[list[int]] = field(default_factory=list[list[int]])

    def __post_init__(self) -> None:
        super().__init__(4)

    def submit(self, work: Workload, on_done: OnDone) -> None:
        """Note, and hand on."""
        self.runs.append([one.action.id for one in work.works])
        super().submit(work, on_done)


def metrics(number: int, **values: Any) -> list[dict[str, Any]]:
    """Rows of type ``m``, in the order in which they are due."""
    return [{"type": "m", "payload": {"n": n}, "due_in": -60.0 + n / 1_000, **values} for n in range(number)]


def claimed_now(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).where(TABLE.c.status == "claimed")).scalar_one()


def test_rows_share_runs_and_each_is_settled_by_itself(engine: Engine) -> None:
    """One fails, one does not fit, one is alone because it failed before: all others are processed in few runs."""
    registry, dispatcher = Registry(), Witnessed()

    @processor("m", registry=registry, rows_per_run=5, max_attempts=2)
    def record(payload: Metric) -> None:
        if payload.n == 3:
            raise ValueError("three")

    ids = add_many(engine, metrics(12))
    (unfit, tried) = add_many(
        engine, [{"type": "m", "payload": {"n": "x"}, "due_in": -70.0}, *metrics(1, fail_count=1)]
    )
    tally = run_loop(engine, registry, dispatcher)
    dispatcher.close()

    report = tally.report()
    assert [tried] in dispatcher.runs
    assert not any(unfit in run for run in dispatcher.runs)
    assert max(map(len, dispatcher.runs)) == 5
    assert by_status(engine) == {"processed": 12, "dead": 2}
    assert (row(engine, unfit).fail_count, row(engine, ids[3]).fail_count) == (0, 2)
    # Three of the first attempts, the row tried before, and the second attempt of the one that fails.
    assert (report.dispatched, report.runs) == (14, 5)
    assert {row(engine, id_).run_id for id_ in ids[:3]} == {f"run-{dispatcher.runs[0][0]}"}


def test_rows_together_are_one_call(engine: Engine) -> None:
    """Asked for together they come together, validated each; an answer may fail one of them."""
    registry, dispatcher, seen = Registry(), Witnessed(), list[list[int]]()

    @processor("m", registry=registry, rows_per_run=5, max_attempts=1)
    def load(payloads: list[Metric], actions: Sequence[Action]) -> list[Exception | None]:
        assert [action.payload["n"] for action in actions] == [payload.n for payload in payloads]
        seen.append([payload.n for payload in payloads])
        return [ValueError("three") if payload.n == 3 else None for payload in payloads]

    add_many(engine, [*metrics(7), {"type": "m", "payload": {"n": "x"}, "due_in": -70.0}])
    run_loop(engine, registry, dispatcher)
    dispatcher.close()

    assert sorted(n for call in seen for n in call) == list(range(7))
    assert max(map(len, seen)) >= 4
    assert by_status(engine) == {"processed": 6, "dead": 2}


def test_no_more_is_claimed_than_can_start_soon(engine: Engine) -> None:
    """Slots times rows; of types that need a run each, no more than without batches: here, what is read ahead."""
    registry, dispatcher = Registry(), Witnessed()
    most, go_on = list[int](), threading.Event()

    @processor("m", registry=registry, rows_per_run=10)
    def record(action: Action) -> None:
        assert go_on.wait(30)

    @processor("single", registry=registry)
    def work(action: Action) -> None: ...

    def look() -> None:
        wait_until(lambda: len(dispatcher.runs) >= 4, description="all slots are taken")
        wait_until(lambda: claimed_now(engine) >= 44, description="what is read ahead is claimed")
        time.sleep(0.3)  # for more, if more were claimed
        most.append(claimed_now(engine))
        go_on.set()

    add_many(engine, [*metrics(200), *({"type": "single", "due_in": -50.0} for _ in range(40))])
    looking = threading.Thread(target=look)
    looking.start()
    run_loop(engine, registry, dispatcher, limit=1_000)
    looking.join()
    dispatcher.close()

    assert most == [44]
    assert by_status(engine) == {"processed": 240}


def test_slots_left_by_one_lane_are_filled_from_the_other(engine: Engine) -> None:
    """One claim without `drain` takes both, where few rows of the first are due: the others need not wait a tick."""
    registry, dispatcher = Registry(), Witnessed()
    for type_, rows in (("m", 10), ("single", None)):
        processor(type_, registry=registry, rows_per_run=rows)(lambda: None)

    ids = add_many(engine, [*metrics(3), {"type": "single"}, {"type": "single"}])
    run_loop(engine, registry, dispatcher, drain=False)
    dispatcher.close()

    assert sorted(dispatcher.runs) == [ids[:3], [ids[3]], [ids[4]]]


def test_automatic_rows_are_a_run_each_while_few_are_due(engine: Engine) -> None:
    """And share runs when many are: the report says what was done."""
    registry, dispatcher = Registry(), Witnessed()
    processor("m", registry=registry, rows_per_run="auto")(lambda: None)

    add_many(engine, metrics(5))
    few = run_loop(engine, registry, dispatcher).report()
    add_many(engine, metrics(300))
    many = run_loop(engine, registry, dispatcher, limit=1_000).report()
    dispatcher.close()

    assert (few.dispatched, few.runs) == (5, 5)
    assert many.dispatched == 300
    assert many.runs <= 12


def test_stop_gives_back_what_of_a_batch_has_not_begun(engine: Engine) -> None:
    """At once and at no attempt; the row that runs is finished, and what was done stays done."""
    registry, dispatcher, tally = Registry(), Witnessed(), Tally()
    begun, go_on = threading.Event(), threading.Event()

    @processor("m", registry=registry, rows_per_run=20)
    def record(payload: Metric) -> None:
        if payload.n == 2:
            begun.set()
            assert go_on.wait(30)

    ids = add_many(engine, metrics(10))
    # Without drain, so that the loop, which a flow has left by then, does not claim again.
    options = LoopOptions(limit=100, lease=timedelta(seconds=60), concurrency=4, claimed_by="me", drain=False)
    with Keeper(engine, TABLE, lease=options.lease, tally=tally) as keeper:
        routing = Routing(registry, RetryPolicy())
        loop = ClaimLoop(engine, TABLE, routing, dispatcher, keeper, tally, options=options)
        running = threading.Thread(target=loop.run)
        running.start()
        assert begun.wait(30)
        stopping = threading.Thread(target=loop.stop)
        stopping.start()
        wait_until(lambda: by_status(engine).get("pending") == 7, description="the rest is given back at once")
        pending = [row(engine, id_) for id_ in ids[3:]]
        go_on.set()
        stopping.join()
        running.join()
    dispatcher.close()

    assert {(one.fail_count, one.claim_count) for one in pending} == {(0, 1)}
    assert by_status(engine) == {"processed": 3, "pending": 7}


def test_drain_runs_both_shapes(engine: Engine) -> None:
    """In an application's tests, without Prefect: rows that are taken together come together there too."""
    registry, seen = Registry(), list[Any]()

    @processor("m", registry=registry, rows_per_run=4)
    def load(payloads: list[Metric]) -> list[Exception | None]:
        seen.append([payload.n for payload in payloads])
        return [ValueError("one") if payload.n == 1 else None for payload in payloads]

    @processor("row", registry=registry, rows_per_run=4)
    def record(action: Action) -> None:
        seen.append(action.type)

    add_many(engine, [*metrics(6), {"type": "row"}, {"type": "row"}])
    report = testing.drain(engine, registry)

    assert (report.processed, report.retrying) == (7, 1)
    assert sorted(seen, key=str) == [[0, 1, 2, 3], [4, 5], "row", "row"]


def test_drain_stops_at_its_limit_in_the_middle_of_a_batch(engine: Engine) -> None:
    """The limit is of claims, whatever takes them together."""
    registry, seen = Registry(), list[int]()

    @processor("m", registry=registry, rows_per_run=4)
    def load(payloads: list[Metric]) -> None:
        seen.append(len(payloads))

    add_many(engine, metrics(9))
    report = testing.drain(engine, registry, limit=6)

    assert (report.claimed, seen) == (6, [4, 2])


def test_lingering_fills_runs_and_ends_the_wait_of_what_is_left(engine: Engine) -> None:
    """Ten to a run, of 25: two full runs at once; the five go when they have waited, and the drain waits for them."""
    registry, dispatcher = Registry(), Witnessed()

    @processor("m", registry=registry, rows_per_run=10, linger=timedelta(seconds=2))
    def record(payload: Metric) -> None: ...

    @processor("single", registry=registry)
    def work(action: Action) -> None: ...

    add_many(engine, [*metrics(25, due_in=0.0), {"type": "single"}])
    began = time.monotonic()
    run_loop(engine, registry, dispatcher)
    took = time.monotonic() - began
    dispatcher.close()

    assert sorted(map(len, dispatcher.runs)) == [1, 5, 10, 10]
    assert len(dispatcher.runs[-1]) == 5
    assert 1.5 < took < 20
    assert by_status(engine) == {"processed": 26}


def test_what_lingers_is_left_in_the_table_by_a_flow_that_claims_once(engine: Engine) -> None:
    """It is claimed by nobody meanwhile, and the next flow takes it, when it is ripe or its run is full."""
    registry, dispatcher = Registry(), Witnessed()

    @processor("m", registry=registry, rows_per_run=10, linger=timedelta(minutes=1))
    def record(payload: Metric) -> None: ...

    add_many(engine, metrics(9, due_in=0.0))
    run_loop(engine, registry, dispatcher, drain=False)
    assert by_status(engine) == {"pending": 9}

    add_many(engine, metrics(2, due_in=0.0))
    run_loop(engine, registry, dispatcher, drain=False)
    dispatcher.close()

    assert list(map(len, dispatcher.runs)) == [10]
    assert by_status(engine) == {"pending": 1, "processed": 10}


def test_lingering_ends_with_its_time_and_not_with_the_next_poll(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop looks again when the first of what waits is ripe."""
    registry, dispatcher = Registry(), Witnessed()
    monkeypatch.setattr(loop_module, "POLL", 3_600.0)

    @processor("m", registry=registry, rows_per_run=10, linger=timedelta(milliseconds=300))
    def record(payload: Metric) -> None: ...

    add_many(engine, metrics(2, due_in=0.0))
    run_loop(engine, registry, dispatcher)
    dispatcher.close()

    assert list(map(len, dispatcher.runs)) == [2]
    assert by_status(engine) == {"processed": 2}
