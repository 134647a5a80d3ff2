"""Work that was handed to another process: what the claim flow concludes of it, with what came back and without."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from prefect.states import Completed
from prefect.states import Crashed as CrashedState
from prefect.states import Failed as FailedState
from sqlalchemy import Engine

from prefect_claim_dispatch import fetching
from prefect_claim_dispatch.dispatching.batches import Batch
from prefect_claim_dispatch.dispatching.runners import Handed
from prefect_claim_dispatch.dispatching.telling import told
from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.outcomes import Crashed, Failed, Outcome, Processed, Released, Snooze
from prefect_claim_dispatch.processors import Registry, processor
from prefect_claim_dispatch.settling import settle
from tests.kit.tables import TABLE, add, claim_due, row, verdicts

LEASE = timedelta(minutes=5)


@dataclass
class Scene:
    """Rows that were claimed and handed over as one batch; what each came to."""

    engine: Engine
    works: list[Work] = field(default_factory=list[Work])
    outcomes: dict[int, Outcome] = field(default_factory=dict[int, Outcome])

    def hand_over(self, number: int) -> Handed:
        """So many rows."""
        registry = Registry()
        processor("a", registry=registry, rows_per_run=10)(lambda action: action)
        found = registry.match("a")
        assert found is not None
        for _ in range(number):
            add(self.engine, "a")
        for raw in claim_due(self.engine):
            work = Work(raw.action(), found, {}, on_begin=lambda *_: None, on_outcome=self._note)
            self.works.append(work)
        return Handed(Batch(self.works), self.engine, TABLE, LEASE)

    def begin(self, *works: Work) -> None:
        """As the run in the other process does."""
        keys = [work.reference.key for work in works]
        assert len(fetching.begin_once(self.engine, TABLE, keys, "run", lease=LEASE)) == len(works)

    def _note(self, work: Work, outcome: Outcome) -> None:
        self.outcomes[work.action.id] = outcome


@pytest.fixture
def scene(engine: Engine) -> Scene:
    """A table and nothing in it."""
    return Scene(engine)


def test_what_has_not_begun_is_given_back_when_the_flow_stops(scene: Scene) -> None:
    """What waits in a cluster's queue costs no attempt, and can't begin any more; what runs is left to run."""
    scene.hand_over(2)
    waiting, running = scene.works
    scene.begin(running)

    assert [work.withdraw() for work in scene.works] == [True, False]
    assert (waiting.has_begun, running.has_begun) == (False, True)
    assert fetching.begin_once(scene.engine, TABLE, [waiting.reference.key], "run", lease=LEASE) == []


def test_each_row_gets_what_was_told_of_it(scene: Scene) -> None:
    """The others of its run notwithstanding."""
    handed = scene.hand_over(2)
    first, second = scene.works
    scene.begin(first, second)
    later = Snooze(timedelta(minutes=1), "not yet")
    answer = told({first.reference.key: Processed(), second.reference.key: later}, settled=[first.reference.key])

    assert handed.come_back(Completed(data=answer), "run") == "Completed"

    assert scene.outcomes == {first.action.id: Processed(), second.action.id: later}
    assert first.action.lease is not None
    assert first.action.lease.settled


def test_told_of_once_is_told_of_for_good(scene: Scene) -> None:
    """A late answer, of a run that the runner had given up, changes nothing."""
    handed = scene.hand_over(1)
    (work,) = scene.works
    scene.begin(work)

    handed.come_back(Completed(data=told({work.reference.key: Processed()})), "run")
    handed.come_back(ConnectionError("lost"), "run")

    assert scene.outcomes == {work.action.id: Processed()}


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (BrokenProcessPool("died"), Crashed),
        (ConnectionError("lost"), Crashed),
        (Completed(name="NotStarted", data=told({})), Crashed),
        (CrashedState(), Crashed),
        (FailedState(), Failed),
        (FailedState(name="TimedOut"), Failed),
    ],
    ids=str,
)
def test_begun_and_not_told_of_costs_an_attempt(scene: Scene, end: Any, outcome: type) -> None:
    """Its process is gone, and with it what became of the row: it may have been done, and is on record."""
    handed = scene.hand_over(1)
    scene.begin(*scene.works)

    handed.come_back(end, "run")

    (got,) = scene.outcomes.values()
    assert isinstance(got, outcome)
    assert getattr(got, "error_type", "TimeoutError") in {"TimeoutError", "RunEnded"}


@pytest.mark.parametrize(
    ("end", "is_put_off"),
    [(ConnectionError("no route to the scheduler"), True), (CrashedState(), True), (BrokenProcessPool("x"), False)],
    ids=str,
)
def test_what_the_runner_could_not_begin_costs_nothing(scene: Scene, end: Any, *, is_put_off: bool) -> None:
    """Put off: due at once, it would be claimed and fail in the same way, for ever.

    Of a pool that broke, and is made anew, it is given back, which is for the loop to do.
    """
    handed = scene.hand_over(1)

    handed.come_back(end, "run")

    (work,) = scene.works
    assert not work.has_begun
    assert [type(outcome) for outcome in scene.outcomes.values()] == ([Released] if is_put_off else [])


def test_row_whose_lease_is_over_is_not_handed_over(scene: Scene) -> None:
    """Nor one that was given back before its turn."""
    scene.hand_over(2)
    withdrawn, lost = scene.works
    again = [
        Work(work.action, work.processor, {}, on_begin=lambda *_: None, on_outcome=lambda *_: None)
        for work in (withdrawn, lost)
    ]
    assert lost.action.lease is not None
    lost.action.lease.expires = 0.0
    assert again[0].withdraw()

    handed = Handed(Batch(again), scene.engine, TABLE, LEASE)
    handed.come_back(ConnectionError("lost"), "run")

    assert handed.keys == ()
    assert not any(work.has_begun for work in again)
    assert [work.outcome for work in again] == [None, None]


def test_lost_lease_is_nobodys_failure(scene: Scene, engine: Engine) -> None:
    """The row is another's by then: whatever is concluded here, the fence keeps it out."""
    handed = scene.hand_over(1)
    (work,) = scene.works
    settle(engine, TABLE, verdicts(Released(), claimed_again(engine, work)))
    (again,) = claim_due(engine)

    handed.come_back(Completed(name="NotStarted", data=told({})), "run")

    assert row(engine, again.id).claim_count == again.claim_count
    assert row(engine, again.id).status == "claimed"


def claimed_again(engine: Engine, work: Work) -> list[Any]:
    """What the verdict of a rescue is written on."""
    from prefect_claim_dispatch import outstanding

    return outstanding.held(engine, TABLE, [work.reference.key])
