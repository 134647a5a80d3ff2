"""`max_running`: how many actions of one type are claimed at a time, in all claim flows together."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from prefect_claim_dispatch import Action, claiming, deployment_processor, engines, limiting, processor, testing
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.errors import ConfigurationError
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.settling import settle
from prefect_claim_dispatch.statements import limit as limit_module
from tests.faults import failpoints
from tests.kit.looping import ThreadDispatcher, run_loop, staying_loop
from tests.kit.tables import (
    LEASE,
    POLICY,
    TABLE,
    add,
    add_many,
    by_status,
    claim_due,
    expire_leases,
    statements_of,
    verdicts,
)
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(120)


def claim_limited(engine: Engine, max_running: int, type_: str = "a", limit: int = 10) -> list[RawAction]:
    """One claim of a type that has a limit."""
    lanes = [lane for lane in claiming.survey(engine, TABLE).due() if lane.type == type_]
    return claiming.claim(engine, TABLE, lanes, limit=limit, lease=LEASE, claimed_by="flow", max_running=max_running)


def count_claimed(engine: Engine, type_: str = "a") -> int:
    with engine.connect() as connection:
        query = select(func.count()).where(TABLE.c.status == "claimed", TABLE.c.type == type_)
        return connection.execute(query).scalar_one()


def test_no_more_are_claimed_than_may_run(engine: Engine) -> None:
    """Whoever claimed them, and whatever their priority; other types don't count."""
    add_many(engine, [{"priority": n % 2} for n in range(6)])
    add(engine, "b")
    claim_due(engine, "b")

    first = claim_limited(engine, 3)
    none = claim_limited(engine, 3)
    settle(engine, TABLE, verdicts(Processed(), first[:1]))
    next_one = claim_limited(engine, 3)

    assert [len(first), len(none), len(next_one)] == [3, 0, 1]
    assert limiting.running(engine, TABLE) == {"a": 3, "b": 1}


def test_expired_leases_count_until_they_are_rescued(engine: Engine) -> None:
    """Whose lease is over may still be at work; to start another beside it would be one too many."""
    add_many(engine, [{}, {}])
    (held,) = claim_limited(engine, 1)
    expire_leases(engine, held.id)

    assert claim_limited(engine, 1) == []
    rescue(engine, TABLE, lambda _: POLICY, limit=10)

    assert len(claim_limited(engine, 1)) == 1


def test_two_claimers_at_the_same_moment_do_not_exceed_the_limit_together(engine: Engine) -> None:
    """The second counts while the first has claimed and not committed: what it can't see, it must not guess."""
    add_many(engine, [{} for _ in range(6)])
    claimed: list[RawAction] = []
    second = threading.Thread(target=lambda: claimed.extend(claim_limited(engine, 2)))

    def claim_beside() -> None:
        second.start()
        if engine.dialect.name != "sqlite":  # where it waits for the first
            second.join(30)

    failpoints.arm("claim:after:call")
    failpoints.called = claim_beside
    try:
        claimed.extend(claim_limited(engine, 2))
    finally:
        failpoints.disarm()
        failpoints.called = list
    second.join(30)

    assert len(claimed) == 2
    assert by_status(engine) == {"claimed": 2, "pending": 4}


def test_what_another_has_claimed_before_the_lock_is_ours_is_counted(postgres_url: str) -> None:
    """Counted before the lock is taken, what was committed in between would be missing, and the limit exceeded."""
    engine, other = engines.create(postgres_url), engines.create(postgres_url)
    add_many(engine, [{} for _ in range(6)])
    claimed: list[RawAction] = []

    def claim_in_between() -> None:
        claimed.extend(claim_limited(other, 2))

    failpoints.arm("lock_type:before:call")
    failpoints.called = claim_in_between
    try:
        ours = claim_limited(engine, 2)
    finally:
        failpoints.disarm()
        failpoints.called = list

    assert (len(claimed), ours) == (2, [])
    assert by_status(engine) == {"claimed": 2, "pending": 4}
    engine.dispose()
    other.dispose()


def test_claimer_that_stopped_in_the_middle_blocks_its_type_for_a_moment_only(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is stopped holds its connection and its lock; nobody else may wait until it is continued."""
    monkeypatch.setattr(limit_module, "LONGEST_IDLE", "500ms")
    engine, stopped = engines.create(postgres_url), engines.create(postgres_url).connect()
    add_many(engine, [{}, {"type": "b"}])
    is_ours = stopped.execute(limit_module.lock_type.__wrapped__(TABLE), {"type": "a"}).scalar()

    other = claim_limited(engine, 1, "b")
    wait_until(lambda: claim_limited(engine, 1), description="the server has ended the stopped one's transaction")

    assert is_ours
    assert len(other) == 1
    stopped.invalidate()
    stopped.close()
    stopped.engine.dispose()
    engine.dispose()


@pytest.mark.parametrize("max_running", [0, -1, True, 2.5, "4"])
def test_limit_by_which_nothing_would_run_is_refused(max_running: Any) -> None:
    """To stop a type is what a pause is for."""
    with pytest.raises(ConfigurationError, match="max_running must be 1 or more"):
        processor("a", max_running=max_running, registry=Registry())
    with pytest.raises(ConfigurationError, match="max_running must be 1 or more"):
        deployment_processor("a", deployment="flow/name", max_running=max_running, registry=Registry())


def test_three_flows_run_no_more_than_the_limit_together(engine: Engine) -> None:
    """Each has slots for all of them. Of a pattern's types each has the limit for itself."""
    registry, seen, lock = Registry(), dict[str, list[int]](), threading.Lock()
    url = engine.url.render_as_string(hide_password=False)

    @processor("limited.*", registry=registry, max_running=2)
    def look(action: Action) -> None:
        number = count_claimed(engine, action.type)
        with lock:
            seen.setdefault(action.type, []).append(number)

    add_many(engine, [{"type": f"limited.{'xy'[n % 2]}"} for n in range(16)])
    flows = [threading.Thread(target=loop_in_thread, args=(url, registry)) for _ in range(3)]
    for flow in flows:
        flow.start()
    for flow in flows:
        flow.join(100)

    assert by_status(engine) == {"processed": 16}
    assert {type_: (len(numbers), max(numbers) <= 2) for type_, numbers in seen.items()} == {
        "limited.x": (8, True),
        "limited.y": (8, True),
    }


def loop_in_thread(url: str, registry: Registry) -> None:
    """A loop that stays until what others have claimed is done, on an engine of its own."""
    engine, dispatcher = engines.create(url), ThreadDispatcher(4)
    try:
        while by_status(engine).keys() - {"processed"}:
            run_loop(engine, registry, dispatcher)
    finally:
        dispatcher.close()
        engine.dispose()


def test_full_type_hides_no_other_and_its_own_rows_are_waited_for(engine: Engine, dispatcher: ThreadDispatcher) -> None:
    """One after the other, beside the rest: a drain that ended while its own rows run would leave the others lying."""
    registry, order = Registry(), list[str]()
    others_done = threading.Event()

    @processor("a", registry=registry, max_running=1)
    def one_at_a_time() -> None:
        assert others_done.wait(30)
        assert count_claimed(engine) == 1
        order.append("a")

    @processor("b", registry=registry)
    def other() -> None:
        order.append("b")
        if order.count("b") == 5:
            others_done.set()

    add_many(engine, [*({"due_in": -3600} for _ in range(3)), *({"type": "b"} for _ in range(5))])
    report = run_loop(engine, registry, dispatcher).report()

    assert order == [*"bbbbb", *"aaa"]
    assert (report.processed, report.held_back) == (8, 0)


def test_drain_ends_when_only_a_type_that_is_full_elsewhere_is_left(
    engine: Engine, dispatcher: ThreadDispatcher
) -> None:
    """The next tick goes on; until then nobody looks again and again. The report says how many are left."""
    registry = Registry()
    processor("a", registry=registry, max_running=1)(do_nothing)
    add_many(engine, [{}, {}, {}])
    claim_due(engine, limit=1)

    with statements_of(engine) as statements:
        report = run_loop(engine, registry, dispatcher).report()

    assert statements == ["survey", "running", "count_due"]
    assert report.as_dict() | {"held_back": 2} == report.as_dict()
    assert (report.claimed, report.unroutable, report.is_empty) == (0, 0, False)


def do_nothing() -> None: ...


def test_flow_that_stays_goes_on_when_another_has_ended(engine: Engine) -> None:
    """Nobody tells it; it looks again with its next poll."""
    registry = Registry()
    processor("a", registry=registry, max_running=1)(do_nothing)
    add_many(engine, [{}, {}])
    elsewhere = claim_due(engine, limit=1)

    with staying_loop(engine, registry):
        settle(engine, TABLE, verdicts(Processed(), elsewhere))
        wait_until(lambda: by_status(engine) == {"processed": 2}, description="the second was claimed", timeout=30)

    with engine.connect() as connection:
        claimants = connection.execute(select(TABLE.c.claimed_by).order_by(TABLE.c.id)).scalars().all()
    assert claimants == ["flow-run", "loop"]


def test_batches_are_no_larger_than_the_limit(engine: Engine, dispatcher: ThreadDispatcher) -> None:
    """Actions are counted, and not runs: what shares one run is as much work for whoever must be spared."""
    registry, sizes = Registry(), list[int]()

    @processor("a", registry=registry, rows_per_run=10, max_running=3)
    def load(payloads: list[dict[str, Any]]) -> None:
        sizes.append(len(payloads))

    add_many(engine, [{} for _ in range(7)])
    run_loop(engine, registry, dispatcher)

    assert sum(sizes) == 7
    assert max(sizes) <= 3


def test_drain_of_a_test_keeps_the_limit(engine: Engine) -> None:
    """In the test's own transaction, too, where no lock is held that other tests would meet."""
    registry, sizes = Registry(), list[int]()

    @processor("a", registry=registry, rows_per_run=10, max_running=3)
    def load(payloads: list[dict[str, Any]]) -> None:
        sizes.append(len(payloads))

    add_many(engine, [{} for _ in range(4)])
    claim_due(engine, limit=1)
    with engine.begin() as connection, statements_of(engine) as statements:
        report = testing.drain(connection, registry)

    assert (report.processed, report.held_back, max(sizes)) == (3, 0, 2)
    assert "lock_type" not in statements


def test_type_without_a_limit_pays_nothing(engine: Engine, dispatcher: ThreadDispatcher) -> None:
    """The same statements as ever, though another type has a limit."""
    registry = Registry()
    processor("b", registry=registry, max_running=1)(do_nothing)
    processor("a", registry=registry)(do_nothing)
    add_many(engine, [{}, {}])

    with statements_of(engine) as statements:
        run_loop(engine, registry, dispatcher)

    assert not {"running", "lock_type"} & set(statements)
