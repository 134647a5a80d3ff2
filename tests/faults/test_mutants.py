"""Mutants of our own code: each breaks one promise, and a short scenario with the auditor says which.

The machine of `tests/conformance/test_stateful.py` finds others, by comparing the table with a model. Here nothing
knows how the package works: only what really happened is held against the table.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Float, literal, select, update

from prefect_claim_dispatch import claiming, databases, inserting, limiting, operations, publish, rescuing, settling
from prefect_claim_dispatch.actions import ActionStatus, Lease
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dialects import now, now_plus
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.outcomes import Crashed, Processed
from prefect_claim_dispatch.policies import settlement_for
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.schema import status_is
from prefect_claim_dispatch.statements import claim as claim_module
from prefect_claim_dispatch.statements import renew as renew_module
from prefect_claim_dispatch.statements import rescue as rescue_module
from prefect_claim_dispatch.statements import settle as settle_module
from tests.faults import failpoints
from tests.faults.acts import AT_ONCE, FAILED, Scene
from tests.faults.strikes import scene_of
from tests.kit.auditor import audit
from tests.kit.tables import TABLE, claim_due, expire_leases, make_due, verdicts

Plant = Callable[[pytest.MonkeyPatch], None]
Life = Callable[[Scene], dict[str, Any]]


@pytest.fixture
def scene(engine: Engine, tmp_path: Path) -> Iterator[Scene]:
    """An empty table and the records beside it; once per database."""
    made = scene_of(engine, tmp_path)
    yield made
    made.ledger.close()
    made.published.close()


# Lives: what happens to a few actions, told to the ledger. Their answers are facts for the auditor.


def zombie_settles_late(scene: Scene) -> dict[str, Any]:
    """A run is stopped past its lease; another claims the action and works; then the first writes its verdict."""
    scene.publish("k")
    [stale] = scene.claim()
    scene.ledger.begin(stale)
    expire_leases(scene.engine, stale.id)
    rescue(scene.engine, TABLE, lambda _: AT_ONCE, limit=10)
    make_due(scene.engine, stale.id)
    [winner] = scene.claim()
    scene.ledger.begin(winner)
    scene.ledger.end(stale)
    scene.settle([stale], Processed())
    scene.ledger.end(winner)
    scene.settle([winner], Processed())
    return {}


def zombie_settles_what_is_terminal(scene: Scene) -> dict[str, Any]:
    """As above, but the winner has finished: the row is processed already, and must not change any more."""
    scene.publish("k")
    [stale] = scene.claim()
    scene.ledger.begin(stale)
    expire_leases(scene.engine, stale.id)
    rescue(scene.engine, TABLE, lambda _: AT_ONCE, limit=10)
    make_due(scene.engine, stale.id)
    scene.settle(scene.work(scene.claim()), Processed())
    earlier = operations.find(scene.engine)
    scene.ledger.end(stale, "failed")
    settling.settle(scene.engine, TABLE, verdicts(FAILED, [stale], AT_ONCE))
    return {"earlier": earlier}


def rescuer_looks_while_a_lease_stands(scene: Scene) -> dict[str, Any]:
    """Rescue has nothing to do, so the holder finds its claim as it was and begins."""
    scene.publish("k")
    [raw] = scene.claim()
    rescue(scene.engine, TABLE, lambda _: AT_ONCE, limit=10)
    if claiming.renew(scene.engine, TABLE, [(raw.id, raw.claim_count)], lease=timedelta(minutes=5)):
        scene.settle(scene.work([raw]), Processed())
    scene.drain()
    return {"bad": []}


def holder_dies(scene: Scene) -> dict[str, Any]:
    """A run is killed in mid-work; its claim is rescued and the action done again."""
    scene.publish("k")
    [dead] = scene.claim()
    scene.ledger.begin(dead)
    scene.drain()
    return {}


def holder_dies_while_a_row_waits(scene: Scene) -> dict[str, Any]:
    """A run that has one slot is killed: the row that was in it loses an attempt, the one that waited does not."""
    scene.publish("k", "l")
    waiting = claim_due(scene.engine, may_begin=False)
    scene.ledger.claimed(waiting)
    with Keeper(scene.engine, TABLE, lease=timedelta(minutes=5), tally=Tally()) as keeper:
        keeper.hold(waiting)
        assert keeper.allow(waiting[:1], "holder", timeout=10)
        scene.ledger.begin(waiting[0])
    scene.drain()
    return {"bad": []}


def holder_dies_before_it_works(scene: Scene) -> dict[str, Any]:
    """A run is killed between its claim and the first line of the processor, and nobody comes to do it again."""
    scene.publish("k")
    scene.claim()
    return {"ended": False}


def two_claim_at_once(scene: Scene) -> dict[str, Any]:
    """A second claimer comes while the first one's claim is not yet committed: it passes the locked rows over.

    Or, on SQLite, it waits.
    """
    scene.publish("k", "l")
    lanes = claiming.survey(scene.engine, TABLE).due()
    claimed: list[list[RawAction]] = []

    def claim() -> None:
        claimed.append(claiming.claim(scene.engine, TABLE, lanes, limit=10, lease=timedelta(minutes=5), claimed_by="x"))

    second = threading.Thread(target=claim)
    with scene.engine.connect() as connection:
        claimed.append(claiming.claim(connection, TABLE, lanes, limit=10, lease=timedelta(minutes=5), claimed_by="y"))
        second.start()
        second.join(0.5)
        connection.commit()
    second.join(30)
    for raws in claimed:
        scene.ledger.claimed(raws)
        for raw in raws:
            scene.ledger.begin(raw)
    for raws in claimed:
        for raw in raws:
            scene.ledger.end(raw)
        scene.settle(raws, Processed())
    return {}


def limited_are_claimed_at_once(scene: Scene) -> dict[str, Any]:
    """Two may run, and a second claimer counts while the first has claimed two and not committed."""
    scene.publish(None, None, None, None)
    lanes, lease = claiming.survey(scene.engine, TABLE).due(), timedelta(minutes=5)
    claimed: list[list[RawAction]] = []

    def claim(limit: int) -> None:
        options: dict[str, Any] = {"limit": limit, "lease": lease, "claimed_by": "x", "max_running": 2}
        claimed.append(claiming.claim(scene.engine, TABLE, lanes, **options))

    second = threading.Thread(target=claim, args=(10,))

    def claim_beside() -> None:
        second.start()
        if scene.engine.dialect.name != "sqlite":
            second.join(30)

    failpoints.arm("claim:after:call")
    failpoints.called = claim_beside
    try:
        claim(10)
    finally:
        failpoints.disarm()
        failpoints.called = list
        second.join(30)
    running = sum(map(len, claimed))
    assert running <= 2, f"max_running: {running} run"
    for raws in claimed:
        scene.ledger.claimed(raws)
        scene.settle(scene.work(raws), Processed())
    scene.drain()
    return {}


def caller_rolls_back(scene: Scene) -> dict[str, Any]:
    """The business data are not written, so nothing may happen about them."""
    token = scene.published.asked("a", "k")
    with scene.engine.connect() as connection:
        publish(connection, "a", {}, idempotency_key="k")
        connection.rollback()
    scene.published.refused(token)
    scene.drain()
    return {}


def renewal_comes_too_late(scene: Scene) -> dict[str, Any]:
    """A run sleeps past its lease. What it is told by its renewal decides whether it goes on, so it must be told."""
    scene.publish("k")
    [raw] = scene.claim()
    scene.ledger.begin(raw)
    expire_leases(scene.engine, raw.id)
    held = claiming.renew(scene.engine, TABLE, [(raw.id, raw.claim_count)], lease=timedelta(minutes=5))
    assert not held, "a lease that was over was renewed"
    scene.drain()
    return {}


def publishers_meet(scene: Scene) -> dict[str, Any]:
    """One key published three times over."""
    scene.publish("k", "k", "k")
    scene.drain()
    return {}


# Mutants: one condition, one value or one place of a transaction is not what it should be.


def no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle_module, "fence", lambda table, rows: table.c.id == rows.c.id)
    monkeypatch.setattr(settling, "settle_statement", settle_module.settle.__wrapped__)


def settle_by_id_while_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fence(table: Any, rows: Any) -> Any:
        return (table.c.id == rows.c.id) & status_is(table.c.status, ActionStatus.CLAIMED)

    monkeypatch.setattr(settle_module, "fence", fence)
    monkeypatch.setattr(settling, "settle_statement", settle_module.settle.__wrapped__)


def no_lease_check_in_rescue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescue_module, "now", lambda: now_plus(literal(1e8, Float)))
    monkeypatch.setattr(rescuing, "expired", rescue_module.expired.__wrapped__)


def rescue_without_count(monkeypatch: pytest.MonkeyPatch) -> None:
    write = settling.write_settlements

    def uncounted(connection: Any, table: Any, settlements: Any) -> Any:
        kept = [one._replace(fail_count=one.fail_count - 1, errors=None) for one in settlements]
        return write(connection, table, kept)

    monkeypatch.setattr(rescuing, "write_settlements", uncounted)


def rescue_only_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    write = settling.write_settlements

    def unexplained(connection: Any, table: Any, settlements: Any) -> Any:
        return write(connection, table, [one._replace(errors=None) for one in settlements])

    monkeypatch.setattr(rescuing, "write_settlements", unexplained)


def rescue_charges_what_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    crashed = Crashed(claimed_by="holder")
    monkeypatch.setattr(rescuing, "settlement_for", lambda _, raw, policy: settlement_for(crashed, raw, policy))


def mark_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "begin", lambda _engine, _table, runs: {id_ for id_, _, _ in runs})


def claim_without_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are chosen first and written by their ids afterwards, as by one who knows no better.

    The one that comes second has chosen before the first has committed.
    """
    chosen: list[list[int]] = []

    def claim(bind: Any, table: Any, _lanes: Any, *, lease: Any, **_: Any) -> list[RawAction]:
        columns = claim_module.action_columns(table, bind.dialect.name)
        pending = select(table.c.id).where(status_is(table.c.status, ActionStatus.PENDING))
        chosen.append(chosen[0] if chosen else list(bind.execute(pending).scalars()))
        values = {
            "status": "claimed",
            "claim_count": table.c.claim_count + 1,
            "claimed_at": now(),
            "lease_expires_at": now_plus(lease.total_seconds()),
        }
        write = update(table).where(table.c.id.in_(chosen[-1])).values(values).returning(*columns)
        with databases.transaction(bind) as connection:
            return [RawAction(row, Lease(expires=0.0), table) for row in connection.execute(write)]

    monkeypatch.setattr(claiming, "claim", claim)


def publish_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a transaction of its own, whatever the caller does with his."""
    join = databases.executor
    monkeypatch.setattr(databases, "executor", lambda bind: join(bind).engine)


def processed_at_dispatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the package that this one is modelled on does: handed over is done."""
    claim = claiming.claim

    def claim_and_settle(engine: Any, table: Any, *arguments: Any, **options: Any) -> list[RawAction]:
        raws = claim(engine, table, *arguments, **options)
        settling.settle(engine, table, verdicts(Processed(), raws))
        return raws

    monkeypatch.setattr(claiming, "claim", claim_and_settle)


def renew_after_expiry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renew_module, "now", lambda: now_plus(literal(-1e8, Float)))
    monkeypatch.setattr(claiming, "renew_statement", renew_module.renew.__wrapped__)


def key_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inserting.Row, "bound", _without_key(inserting.Row.bound))


def _without_key(bound: Any) -> Any:
    return lambda row: {**bound(row), "idempotency_key": None}


def limited_claim_without_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted and claimed in one transaction, which is not enough: neither sees what the other has not committed."""
    room = limiting.room
    monkeypatch.setattr(limiting, "room", lambda *where, is_joined: room(*where, is_joined=True))


def claim_with_one_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count stays, so that the next claim has the fence of the one before."""

    def claim(*arguments: Any, **options: Any) -> Any:
        return claim_module.claim(*arguments, **options).values(claim_count=1)

    monkeypatch.setattr(claiming, "claim_statement", claim)


MUTANTS: dict[str, tuple[Plant, Life, str]] = {
    "no fence": (no_fence, zombie_settles_what_is_terminal, "S3"),
    "settle by id only": (settle_by_id_while_claimed, zombie_settles_late, "S2"),
    "no lease check in rescue": (no_lease_check_in_rescue, rescuer_looks_while_a_lease_stands, "L2"),
    "rescue without count": (rescue_without_count, holder_dies, "S7"),
    "rescue without a record": (rescue_only_counts, holder_dies, "S5"),
    "rescue charges what only waited": (rescue_charges_what_waited, holder_dies_while_a_row_waits, "L2"),
    "work that begins without its mark": (mark_is_not_written, holder_dies_while_a_row_waits, "S7"),
    "claim without lock": (claim_without_lock, two_claim_at_once, "S1"),
    "claim of a limited type without lock": (limited_claim_without_lock, limited_are_claimed_at_once, "max_running"),
    "publish outside of the caller's transaction": (publish_outside, caller_rolls_back, "S4"),
    "processed at dispatch": (processed_at_dispatch, holder_dies_before_it_works, "S7"),
    "renew after expiry": (renew_after_expiry, renewal_comes_too_late, "renewed"),
    "the same count for every claim": (claim_with_one_count, holder_dies, "S1"),
    "the key is not sent": (key_is_not_sent, publishers_meet, "S6"),
}
NEEDING_TWO_WRITERS = (
    "claim without lock",
    "claim of a limited type without lock",
    "publish outside of the caller's transaction",
)
LIVES = {life.__name__: life for _, life, _ in MUTANTS.values()}


def broken(scene: Scene, life: Life) -> list[str]:
    """Live, and say which promises the auditor finds broken; what the life itself refuses to go on with is one."""
    try:
        facts = life(scene)
    except AssertionError as error:
        return [str(error)]
    return [str(violation) for violation in audit(scene.engine, scene.ledger, scene.published, **facts)]


@pytest.mark.parametrize("life", LIVES)
def test_unmutated_life_is_clean(scene: Scene, life: str) -> None:
    """Else the mutants would be found for a reason that is not theirs."""
    assert broken(scene, LIVES[life]) == []


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_found(scene: Scene, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    """A test suite that does not see this one would not see the same mistake made by one of us."""
    plant, life, promise = MUTANTS[mutant]
    if mutant in NEEDING_TWO_WRITERS:
        _needs_two_writers(scene)
    plant(monkeypatch)

    found = broken(scene, life)

    assert any(promise in one for one in found), found


def _needs_two_writers(scene: Scene) -> None:
    if scene.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time: the second transaction waits, and can't be got wrong so")
