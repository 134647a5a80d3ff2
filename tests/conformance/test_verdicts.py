"""What users' code does between a claim and its verdict is its own row's failure, by the loop and by a drain alike."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, field_validator
from sqlalchemy import Engine

from prefect_claim_dispatch import Action, Cancel, Snooze, operations, processor, publish, testing
from prefect_claim_dispatch.dispatching.batches import Workload
from prefect_claim_dispatch.dispatching.dispatchers import OnDone, once
from prefect_claim_dispatch.dispatching.reaching import ApiWatch
from prefect_claim_dispatch.errors import KeeperDiedError
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.settling import settle_action
from tests.kit.looping import ThreadDispatcher, run_loop
from tests.kit.tables import add, by_status, claim_due, row

pytestmark = pytest.mark.timeout(60)

WRONG: dict[str, BaseException] = {
    "SystemExit": SystemExit(3),
    "CancelledError": asyncio.CancelledError(),
    "GeneratorExit": GeneratorExit(),
    "RuntimeError": RuntimeError("x"),
}


class Lax(Cancel):
    """An outcome without its checks."""

    def __post_init__(self) -> None:
        pass


class Hostile(BaseModel):
    """A payload whose validator raises what its type says."""

    wrong: str

    @field_validator("wrong")
    @classmethod
    def refuse(cls, wrong: str) -> str:
        raise WRONG[wrong]


class Cast:
    """Processors of each kind of trouble, and healthy ones; what was called how often."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.calls: Counter[str] = Counter()
        self._register("healthy", lambda: None)
        self._register("coroutine", self._work)
        self._register("generator", self._rows)
        self._register("lax", lambda: Lax(404))  # type: ignore[arg-type]
        self._register("cancel", lambda: Cancel(404))  # type: ignore[arg-type]
        for name in WRONG:
            processor(f"facts.{name}", registry=self.registry, max_attempts=1, facts=self._raising(name))(self._never)
        processor("validator.*", registry=self.registry, max_attempts=1)(self._validated)
        processor("together", registry=self.registry, rows_per_run=10, max_attempts=1)(self._together)

    def _register(self, type_: str, work: Callable[[], Any]) -> None:
        def call() -> Any:
            self._count(type_)
            return work()

        processor(type_, registry=self.registry, max_attempts=1)(call)

    def _count(self, what: str) -> None:
        self.calls[what] += 1

    async def _work(self) -> None:
        self._count("awaited")

    def _rows(self) -> Iterator[None]:
        self._count("consumed")
        yield

    def _raising(self, name: str) -> Callable[[Action], dict[str, Any]]:
        def facts(_action: Action) -> dict[str, Any]:
            raise WRONG[name]

        return facts

    def _never(self) -> None:
        raise AssertionError("the guard let it pass")

    def _validated(self, payload: Hostile) -> None:
        raise AssertionError("the guard let it pass")

    def _together(self, payloads: list[dict[str, int]], actions: Sequence[Action]) -> list[Any]:
        self._count("together")
        answers: list[Any] = [None, Lax(LookupError("gone")), 7, self._work(), None]  # type: ignore[arg-type]
        return [answers[payload["n"]] for payload in payloads]

    def publish(self, engine: Engine) -> None:
        """One of each, the healthy ones last: a flow that one of the others ended would not come to them."""
        for type_ in ("coroutine", "generator", "lax", "cancel"):
            publish(engine, type_)
        for name in WRONG:
            publish(engine, f"facts.{name}", rules={"var": "facts.wanted"})
            publish(engine, f"validator.{name}", {"wrong": name})
        for number in range(5):
            publish(engine, "together", {"n": number})
        for _ in range(3):
            publish(engine, "healthy")

    def expect(self, engine: Engine) -> None:
        """Each has its own verdict, and none was called twice."""
        ends = Counter((one.type, str(one.status)) for one in operations.find(engine, limit=100))
        assert ends == {
            ("healthy", "processed"): 3,
            ("coroutine", "processed"): 1,
            ("together", "processed"): 3,
            ("together", "dead"): 2,
            **{(type_, "dead"): 1 for type_ in ("generator", "lax", "cancel")},
            **{(f"{what}.{name}", "dead"): 1 for what in ("facts", "validator") for name in WRONG},
        }
        assert self.calls == {
            **dict.fromkeys(("coroutine", "generator", "lax", "cancel", "together"), 1),
            "healthy": 3,
            "awaited": 2,
        }
        told = {one.type: one.last_error for one in operations.find(engine, limit=100)}
        assert "which nobody consumes" in told["generator"]
        assert told["cancel"].startswith("Cancel takes a text as its reason, got int")
        assert told["validator.SystemExit"] == "validation raised SystemExit"


def by_loop(engine: Engine, registry: Registry) -> None:
    """The loop of a claim flow."""
    dispatcher = ThreadDispatcher(4)
    run_loop(engine, registry, dispatcher)
    dispatcher.close()


@pytest.mark.parametrize("work_off", [by_loop, testing.drain])
def test_whatever_users_code_raises_or_returns_is_its_own_rows_verdict(
    engine: Engine, work_off: Callable[[Engine, Registry], Any]
) -> None:
    """Taken back and tried again for ever, released at no attempt, or claimed for good: each would be worse."""
    cast = Cast()
    cast.publish(engine)

    work_off(engine, cast.registry)

    cast.expect(engine)


def test_ctrl_c_in_the_guard_ends_a_drain_and_charges_nothing(engine: Engine) -> None:
    """It is meant for the test; the rows have not begun, and are due as before."""
    mine = Registry()

    def interrupted(_action: Action) -> dict[str, Any]:
        raise KeyboardInterrupt

    @processor("a", registry=mine, facts=interrupted, rows_per_run=10)
    def load(payloads: list[Any]) -> None:
        raise AssertionError("the guard let it pass")

    for _ in range(3):
        publish(engine, "a", rules={"==": [1, 1]})

    with pytest.raises(KeyboardInterrupt):
        testing.drain(engine, mine)

    assert by_status(engine) == {"pending": 3}
    assert [one.fail_count for one in operations.find(engine)] == [0] * 3


def test_snooze_for_no_time_does_not_spin(engine: Engine) -> None:
    """It was executed hundreds of times a second, for as long as the flow lived."""
    mine, calls = Registry(), list[int]()

    @processor("a", registry=mine)
    def again(action: Action) -> Snooze:
        calls.append(action.claim_count)
        return Snooze(timedelta(0))

    id_ = add(engine)

    by_loop(engine, mine)

    assert calls == [1, 2]
    assert row(engine, id_).status == "pending"


@pytest.mark.parametrize("outcome", ["done", Cancel, 404])
def test_settling_by_hand_takes_outcomes_only(engine: Engine, outcome: Any) -> None:
    """Said where it is written, in a transaction that is rolled back then."""
    add(engine)
    (raw,) = claim_due(engine)

    with (
        pytest.raises(TypeError, match=r"settle_action takes an outcome, such as Snooze\(\.\.\.\)"),
        engine.begin() as connection,
    ):
        settle_action(connection, raw.action(), outcome)

    assert by_status(engine) == {"claimed": 1}


class DyingTally(Tally):
    """Raises what ends a thread, when the first verdict is counted."""

    def settled(self, settlements: Any) -> None:
        raise SystemExit("the keeper")


def test_keeper_that_dies_ends_the_flow_loudly(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody else renews and settles: the flow would work on, and all of it be done again."""
    mine, dispatcher, calls = Registry(), ThreadDispatcher(4), list[int]()

    @processor("a", registry=mine)
    def work(action: Action) -> None:
        calls.append(action.id)

    for _ in range(50):
        add(engine)

    with pytest.raises(KeeperDiedError, match="died of SystemExit") as raised:
        run_loop(engine, mine, dispatcher, tally=DyingTally(), limit=5)
    dispatcher.close()

    assert raised.value.reason == "SystemExit"
    assert "has died" in caplog.text
    assert len(calls) < 50


class BrokenWatch(ApiWatch):
    """Can't say whether the API is away."""

    def require(self) -> None:
        """It is there."""

    def is_away(self) -> bool:
        """Breaks."""
        raise RuntimeError("the watch is broken")


class NeverStarting(ThreadDispatcher):
    """Its runs end before they have called anything."""

    def submit(self, work: Workload, on_done: OnDone) -> None:
        """Say so, as a future does: what the callback raises is heard by nobody."""
        self._executor.submit(on_done, work, "Crashed")


def test_end_of_a_run_that_can_not_be_told_frees_its_slot(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """With its slots lost one by one, a flow waits for ever; and the row has a verdict that says what happened."""
    mine, dispatcher = Registry(), NeverStarting(4)
    processor("a", registry=mine, max_attempts=1)(lambda: None)
    for _ in range(10):
        add(engine)

    tally = run_loop(engine, mine, dispatcher, api=BrokenWatch())
    dispatcher.close()

    assert tally.report().dead == 10
    assert {one.last_error for one in operations.find(engine)} == {"the watch is broken"}
    assert "can't be settled" in caplog.text


def test_future_that_can_not_say_how_it_ended_tells_of_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """A future swallows what its callbacks raise."""
    done = list[tuple[Any, str]]()

    def ended(_future: Any, _run: Any) -> str:
        raise asyncio.CancelledError

    class Run:
        class reference:  # noqa: N801 - stands for an attribute
            name = "a #1"

    run: Any = Run()
    once(run, lambda work, how: done.append((work, how)), ended)(None)

    assert done == [(run, "CancelledError")]
    assert "a #1 ended can't be told" in caplog.text
