"""A guard that takes its time: facts, validators and rules of one type hold up nobody else's rows, nor the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any, cast

import pytest
from pydantic import BeforeValidator
from sqlalchemy import Engine, event

from prefect_claim_dispatch import Action, operations, processor
from prefect_claim_dispatch.dispatching import guard_runs
from prefect_claim_dispatch.dispatching.loop import ClaimLoop
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.reports import Tally
from tests.kit.looping import ThreadDispatcher, run_loop
from tests.kit.tables import TABLE, add_many, by_status

RULES = {"var": "facts.is_wanted"}
LONG = 10.0
"""Seconds after which a guard goes on though what it waits for has not come: the test has failed then."""


def worked(engine: Engine, registry: Registry, **changes: Any) -> Tally:
    dispatcher = ThreadDispatcher(4)
    try:
        return run_loop(engine, registry, dispatcher, **changes)
    finally:
        dispatcher.close()


class Meeting:
    """A slow guard of some rows, which is over only when a row of another type was processed."""

    def __init__(self) -> None:
        self.is_done = threading.Event()
        self.registry = Registry()
        self.met: list[bool] = []
        processor("other", registry=self.registry)(self.is_done.set)

    def wait(self, value: Any = None) -> Any:
        self.met.append(self.is_done.wait(LONG))
        return value

    def facts(self, action: Action) -> dict[str, Any]:
        self.wait()
        return {"is_wanted": action.payload["n"] % 2 == 0}


def slow_facts(meeting: Meeting) -> None:
    processor("slow", registry=meeting.registry, facts=meeting.facts)(lambda payload: payload)


def slow_facts_of_a_batch(meeting: Meeting) -> None:
    def load(payloads: Any) -> None: ...

    processor("slow", registry=meeting.registry, facts=meeting.facts, rows_per_run=3)(load)


def slow_validator(meeting: Meeting) -> None:
    def even(value: Any) -> Any:
        if meeting.wait(value) % 2:
            msg = "odd"
            raise ValueError(msg)
        return value

    def take(payload: Any) -> None: ...

    take.__annotations__["payload"] = dict[str, Annotated[int, BeforeValidator(even)]]
    processor("slow", registry=meeting.registry)(take)


@pytest.mark.parametrize(
    ("register", "refused"), [(slow_facts, "cancelled"), (slow_facts_of_a_batch, "cancelled"), (slow_validator, "dead")]
)
def test_slow_guard_of_one_type_holds_up_no_other(
    engine: Engine, register: Callable[[Meeting], None], refused: str
) -> None:
    """Three rows whose guard would wait for ever for the fourth, if it ran in the loop's thread; each row by itself."""
    meeting = Meeting()
    register(meeting)
    rules = {} if register is slow_validator else {"__rules": RULES}
    slow = [{"type": "slow", "due_in": -60.0, "payload": {"n": n} | rules} for n in range(3)]
    add_many(engine, [*slow, {"type": "other", "due_in": -1.0}])

    tally = worked(engine, meeting.registry)

    assert meeting.met == [True] * 3
    assert by_status(engine) == {"processed": 3, refused: 1}
    assert tally.report().dispatched == 3


def test_more_slow_guards_than_slots_all_come_to_an_end(engine: Engine) -> None:
    """Each has the slot that its run will have; none is forgotten while others take the slots that are freed."""
    registry = Registry()

    def facts(action: Action) -> dict[str, Any]:
        return {"is_wanted": action.id % 3 > 0}

    processor("a", registry=registry, facts=facts)(lambda: None)
    ids = add_many(engine, [{"payload": {"__rules": RULES} if n % 2 else {}} for n in range(40)])

    worked(engine, registry, concurrency=2)

    unwanted = sum(not id_ % 3 and bool(index % 2) for index, id_ in enumerate(ids))
    assert by_status(engine) == {"processed": 40 - unwanted, "cancelled": unwanted}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_base_exception_in_the_guard_is_its_own_rows_failure(engine: Engine, error: BaseException) -> None:
    """It would end the flow, and the next, and the next; no signal is ever raised in the guard's thread."""
    registry = Registry()

    def facts(_action: Action) -> dict[str, Any]:
        raise error

    processor("bad", registry=registry, facts=facts, max_attempts=1)(lambda: None)
    processor("good", registry=registry)(lambda: None)
    bad, _ = add_many(engine, [{"type": "bad", "payload": {"__rules": RULES}}, {"type": "good", "due_in": -1.0}])

    worked(engine, registry)

    assert by_status(engine) == {"dead": 1, "processed": 1}
    assert type(error).__name__ in str(operations.get(engine, bad).errors)


def test_no_two_suspects_are_at_stake_together_from_guard_to_end(engine: Engine) -> None:
    """What takes a process with it may do so in its facts; its trial goes on when its run begins."""
    registry, lock, present, most = Registry(), threading.Lock(), set[int](), 0

    def facts(action: Action) -> dict[str, Any]:
        nonlocal most
        with lock:
            present.add(action.id)
            most = max(most, len(present))
        return {"is_wanted": action.id % 2}

    def leave(action: Action) -> None:
        with lock:
            present.discard(action.id)

    processor("a", registry=registry, facts=facts)(leave)
    # Those whose rules are false never begin: their trial is over with their guard.
    crashed = {"fail_count": 1, "claim_count": 1, "errors": [{"kind": "crashed", "claim_count": 1}]}
    ids = add_many(engine, [{"payload": {"__rules": {"var": "facts.is_wanted"}}, **crashed} for _ in range(6)])
    wanted = [id_ for id_ in ids if id_ % 2]
    operations.cancel(engine, [id_ for id_ in ids if id_ not in wanted])

    worked(engine, registry, trial=timedelta(seconds=30))

    assert by_status(engine) == {"processed": 3, "cancelled": 3}
    assert most == 1


def test_rows_without_rules_or_validators_need_no_thread(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the author's is called before the run: those keep their fast way."""

    def no_thread(_guard: Any) -> None:
        pytest.fail("a thread for nothing")

    monkeypatch.setattr(guard_runs.GuardRun, "start", no_thread)
    registry = Registry()

    def take(payload: dict[str, int]) -> None: ...

    processor("a", registry=registry, facts=lambda _: {"is_wanted": True})(take)
    add_many(engine, [{"payload": {"n": n}} for n in range(5)])

    worked(engine, registry)

    assert by_status(engine) == {"processed": 5}


class _StopError(Exception):
    """The flow is told to stop."""


def test_stopped_flow_gives_back_what_its_guard_has_no_answer_for(engine: Engine) -> None:
    """Nothing has begun: no attempt is charged, and nobody waits for facts that never come."""
    is_asked, answer, registry = threading.Event(), threading.Event(), Registry()

    def facts(_action: Action) -> dict[str, Any]:
        is_asked.set()
        return {"is_wanted": answer.wait(60)}

    def stop(*_: Any) -> None:
        if is_asked.is_set() and threading.current_thread() is threading.main_thread():
            raise _StopError

    processor("a", registry=registry, facts=facts)(lambda: None)
    (id_,) = add_many(engine, [{"payload": {"__rules": RULES}}])
    options = LoopOptions(
        limit=10, lease=timedelta(seconds=60), concurrency=4, claimed_by="loop", stay=timedelta(seconds=60)
    )
    tally, dispatcher = Tally(), ThreadDispatcher(4)
    with Keeper(engine, TABLE, lease=options.lease, tally=tally) as keeper:
        routing = Routing(registry, RetryPolicy())
        loop = ClaimLoop(engine, TABLE, routing, dispatcher, keeper, tally, options=options)
        event.listen(engine, "before_cursor_execute", stop)
        with pytest.raises(_StopError):
            loop.run()
        event.remove(engine, "before_cursor_execute", stop)

        assert loop.stop()

    answer.set()
    dispatcher.close()
    row = operations.get(engine, id_)
    assert (cast("str", row.status.value), row.fail_count) == ("pending", 0)
