"""Who waits for whom, when one type floods, another is paused, a third may run once only and a key has failed."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from prefect_claim_dispatch import Action, engines, operations, processor
from prefect_claim_dispatch.processors import Registry
from tests.kit.looping import ThreadDispatcher, run_loop
from tests.kit.tables import add_many, by_status, statements_of

pytestmark = pytest.mark.timeout(120)

FLOOD = 100_000
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number}) "
FLOODING = NUMBERS + "INSERT INTO action_logs (type, end_at) SELECT 'flood', '2020-01-01 00:00:00' FROM n"
ON_POSTGRESQL = (
    "INSERT INTO action_logs (type, end_at) SELECT 'flood', '2020-01-01 00:00:00+00' FROM generate_series(1, {number})"
)


def flood(engine: Engine, number: int) -> None:
    """So many rows, due for years, in one statement of SQL."""
    statement = FLOODING if engine.dialect.name == "sqlite" else ON_POSTGRESQL
    with engine.begin() as connection:
        connection.execute(text(statement.format(number=number)))


class Crowd:
    """Several flows, each in a thread with an engine of its own, that stop claiming when `is_over`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.registry = Registry()
        self.begun: list[str] = []
        self.failures: list[BaseException] = []
        self.lock = threading.Lock()

    def begin(self, action: Action) -> None:
        with self.lock:
            self.begun.append(action.ordering_key or action.type)

    def cancel_flood(self) -> None:
        """What is not claimed of it need not be worked off by a test."""
        with self.engine.begin() as connection:
            connection.execute(text("DELETE FROM action_logs WHERE type = 'flood' AND status = 'pending'"))

    def run(self, flows: int) -> None:
        threads = [threading.Thread(target=self._flow) for _ in range(flows)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
            assert not thread.is_alive(), "a flow has not ended"
        assert self.failures == []

    def _flow(self) -> None:
        engine, dispatcher = engines.create(self.engine.url.render_as_string(hide_password=False)), ThreadDispatcher(4)
        try:
            run_loop(engine, self.registry, dispatcher, stay=timedelta(seconds=1))
        except BaseException as error:
            self.failures.append(error)
        finally:
            dispatcher.close()
            engine.dispose()


def test_one_row_behind_a_hundred_thousand_begins_within_a_few_claims(engine: Engine) -> None:
    """However large the flood, and though the flood's type has a limit, which makes claims of its own."""
    crowd, dispatcher = Crowd(engine), ThreadDispatcher(4)
    claims_before = 0

    @processor("flood", registry=crowd.registry, max_running=3)
    def count(action: Action) -> None:
        crowd.begin(action)

    @processor("other", registry=crowd.registry)
    def end_the_flood() -> None:
        nonlocal claims_before
        claims_before = Counter(statements)["claim"]
        crowd.cancel_flood()

    flood(engine, FLOOD)
    add_many(engine, [{"type": "other"}])
    with statements_of(engine) as statements:
        run_loop(engine, crowd.registry, dispatcher)
    dispatcher.close()

    assert 1 <= claims_before <= 4
    assert set(by_status(engine)) == {"processed"}


def test_three_flows_leave_nobody_waiting_for_another(engine: Engine) -> None:
    """A flood, a type that may run once, a key whose second row fails at first, and a pause, all at once."""
    crowd, failed = Crowd(engine), threading.Event()
    running = Counter[str]()

    @processor("flood", registry=crowd.registry)
    def count(action: Action) -> None:
        crowd.begin(action)

    @processor("once", registry=crowd.registry, max_running=1)
    def alone(action: Action) -> None:
        with crowd.lock:
            running["once"] += 1
            assert running["once"] == 1, "two of a type that may run once"
        crowd.begin(action)
        with crowd.lock:
            running["once"] -= 1

    @processor("keyed", registry=crowd.registry, backoff=timedelta(0))
    def in_order(action: Action) -> None:
        with crowd.lock:
            crowd.begun.append(f"{action.payload['n']}")
        if action.payload["n"] == 2 and not failed.is_set():
            failed.set()
            msg = "the first try"
            raise RuntimeError(msg)
        if action.payload["n"] == 4:
            crowd.cancel_flood()

    @processor("paused.*", registry=crowd.registry)
    def never(action: Action) -> None:
        crowd.begin(action)

    flood(engine, 5_000)
    operations.pause(engine, "paused.*")
    add_many(engine, [{"type": "keyed", "ordering_key": "k", "payload": {"n": n}} for n in range(1, 5)])
    add_many(engine, [{"type": "once"} for _ in range(6)])
    add_many(engine, [{"type": "paused.x"} for _ in range(3)])
    crowd.run(flows=3)

    assert [name for name in crowd.begun if name in "1234"] == ["1", "2", "2", "3", "4"]
    assert (crowd.begun.count("once"), crowd.begun.count("paused.x")) == (6, 0)
    assert set(by_status(engine)) == {"processed", "pending"}
    assert by_status(engine)["pending"] == 3
    operations.resume(engine, "paused.*")
    crowd.run(flows=1)
    assert set(by_status(engine)) == {"processed"}
