"""Rescue: claims whose holder died come back, are counted, and end at last."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy import Engine

from prefect_claim_dispatch import claiming, engines
from prefect_claim_dispatch.outcomes import Failed, Processed
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.rescuing import release_unheard, rescue
from prefect_claim_dispatch.settling import settle
from tests.kit.tables import (
    LEASE,
    TABLE,
    add,
    add_many,
    by_status,
    change,
    claim_due,
    columns,
    expire_leases,
    make_due,
    row,
    seconds_from_now,
    statements_of,
    verdicts,
)

POLICY = RetryPolicy(max_attempts=3, backoff=timedelta(seconds=10))


def policy_of(_type: str) -> RetryPolicy:
    """Every type is registered."""
    return POLICY


def crash(engine: Engine, id_: int) -> None:
    """One attempt that dies under its claim."""
    make_due(engine, id_)
    assert [raw.id for raw in claim_due(engine)] == [id_]
    expire_leases(engine, id_)


def test_policy_that_raises_stops_no_other_types_rescue(engine: Engine) -> None:
    """Nobody would rescue, and so nobody claim, anything of any type. Its own row is tried again, as by default."""

    class Raising(RetryPolicy):
        def delay_after(self, failures: int, seed: str) -> timedelta:
            msg = f"no wait after {failures} failures of {seed}"
            raise ArithmeticError(msg)

    class Endless(RetryPolicy):
        def delay_after(self, failures: int, seed: str) -> timedelta:
            return timedelta.max

    def policy_of(type_: str) -> RetryPolicy:
        return {"a": POLICY, "raising": Raising(), "endless": Endless()}[type_]

    ids = [add(engine, type_) for type_ in ("unknown", "raising", "endless", "a")]
    assert len(claim_due(engine)) == len(ids)
    expire_leases(engine, *ids)

    settlements = rescue(engine, TABLE, policy_of, limit=10)

    assert {settlement.id for settlement in settlements} == set(ids)
    assert by_status(engine) == {"pending": 4}
    assert all(settlement.delay is not None and settlement.delay.days <= 3650 for settlement in settlements)


def test_expired_claim_is_pending_again_and_counted(engine: Engine) -> None:
    """Counted at rescue and not at settle: an attempt that was killed must count, or it would kill for ever."""
    id_ = add(engine)
    crash(engine, id_)

    (settlement,) = rescue(engine, TABLE, policy_of, limit=10)

    after = row(engine, id_)
    assert (after.status, after.fail_count, after.claim_count) == ("pending", 1, 1)
    assert (after.claimed_at, after.claimed_by, after.lease_expires_at) == (None, None, None)
    assert 8.9 <= (after.end_at - after.updated_at).total_seconds() <= 11.1
    assert [(error["kind"], error["attempt"]) for error in after.errors] == [("crashed", 1)]
    assert "flow-run" in after.errors[0]["message"]
    assert settlement.id == id_


def test_claim_that_surely_never_began_costs_no_attempt(engine: Engine) -> None:
    """What only waited for a slot is due as before, with nothing on record, as often as it happens."""
    first, second = add(engine, due_in=-60), add(engine, due_in=-30)
    before = row(engine, second)
    for _ in range(7):
        make_due(engine, first)
        counts = {raw.id: raw.claim_count for raw in claim_due(engine, may_begin=False)}
        claiming.begin(engine, TABLE, [(first, counts[first], "flow-run")])
        expire_leases(engine, first, second)

        told = rescue(engine, TABLE, lambda _: None, limit=10)

        assert {settlement.id: str(settlement.status) for settlement in told} == {first: "pending", second: "pending"}
        assert counts.keys() == {first, second}
    begun, after = row(engine, first), row(engine, second)
    assert (begun.fail_count, len(begun.errors)) == (7, 5)
    assert (after.status, after.fail_count, after.errors, after.end_at) == ("pending", 0, [], before.end_at)
    assert (after.claim_count, after.claimed_at, after.lease_expires_at) == (7, None, None)


def test_claim_that_was_to_begin_and_was_kept_waiting_costs_no_attempt(engine: Engine) -> None:
    """It has no mark from the start: nothing has begun."""
    id_ = add(engine, errors=[{"kind": "crashed", "claim_count": 1}])
    claim_due(engine, kept_waiting=list)
    expire_leases(engine, id_)

    rescue(engine, TABLE, policy_of, limit=10)

    assert (row(engine, id_).status, row(engine, id_).fail_count) == ("pending", 0)


def test_rescue_keeps_the_run_that_crashed(engine: Engine) -> None:
    """Its logs are the only witness."""
    id_ = add(engine)
    (raw,) = claim_due(engine)
    claiming.begin(engine, TABLE, [(id_, raw.claim_count, "task-run-1")])
    expire_leases(engine, id_)

    rescue(engine, TABLE, policy_of, limit=10)

    assert row(engine, id_).run_id == "task-run-1"


def test_claim_that_crashes_every_time_ends_dead(engine: Engine) -> None:
    """S5: a poison row kills `max_attempts` processes and not one more."""
    id_ = add(engine)

    for _ in range(3):
        crash(engine, id_)
        rescue(engine, TABLE, policy_of, limit=10)

    after = row(engine, id_)
    assert (after.status, after.fail_count, after.claim_count) == ("dead", 3, 3)
    assert after.settled_at is not None
    assert [error["kind"] for error in after.errors] == ["crashed"] * 3


def test_crashes_and_failures_count_together(engine: Engine) -> None:
    """S5: otherwise a row could be tried twice as often as its owner allowed."""
    id_ = add(engine)
    settle(engine, TABLE, verdicts(Failed(error_type="E", message="m"), claim_due(engine), POLICY))
    crash(engine, id_)
    rescue(engine, TABLE, policy_of, limit=10)
    crash(engine, id_)

    rescue(engine, TABLE, policy_of, limit=10)

    after = row(engine, id_)
    assert (after.status, after.fail_count) == ("dead", 3)
    assert [error["kind"] for error in after.errors] == ["failed", "crashed", "crashed"]


def test_unregistered_type_is_never_dead_by_a_foreign_policy(engine: Engine) -> None:
    """Its own flow may allow a hundred attempts; here nobody can know."""
    id_ = add(engine)

    for _ in range(7):
        crash(engine, id_)
        rescue(engine, TABLE, lambda _: None, limit=10)

    after = row(engine, id_)
    assert (after.status, after.fail_count) == ("pending", 7)
    assert len(after.errors) == 5

    change(engine, id_, fail_count=1_000_000)
    crash(engine, id_)
    rescue(engine, TABLE, lambda _: None, limit=10)
    assert row(engine, id_).status == "pending"


def test_claim_that_still_stands_is_left_alone(engine: Engine) -> None:
    """S1: somebody works on it."""
    held, expired = add(engine), add(engine)
    claim_due(engine)
    expire_leases(engine, expired)
    before = columns(engine, held)

    rescued = rescue(engine, TABLE, policy_of, limit=10)

    assert [settlement.id for settlement in rescued] == [expired]
    assert columns(engine, held) == before


def test_rescue_is_bounded_and_takes_the_oldest_first(engine: Engine) -> None:
    """A thousand claims of a machine that died are not rescued in one long transaction."""
    ids = add_many(engine, [{}] * 5)
    claim_due(engine)
    for age, id_ in enumerate(ids):
        change(engine, id_, lease_expires_at=seconds_from_now(-60 - age))

    first = rescue(engine, TABLE, policy_of, limit=2)
    rest = rescue(engine, TABLE, policy_of, limit=10)

    assert [settlement.id for settlement in first] == [ids[4], ids[3]]
    assert [settlement.id for settlement in rest] == [ids[2], ids[1], ids[0]]
    assert rescue(engine, TABLE, policy_of, limit=10) == []


def test_rescue_is_two_statements_however_many(engine: Engine) -> None:
    """And two when there is nothing: the second looks for leases that no calendar has."""
    add_many(engine, [{} for _ in range(50)])
    expire_leases(engine, *(raw.id for raw in claim_due(engine)))

    with statements_of(engine) as sent:
        rescue(engine, TABLE, policy_of, limit=100)
        rescue(engine, TABLE, policy_of, limit=100)

    assert sent == ["rescue", "settle", "rescue", "rescue_endless"]


def test_rescuers_at_once_count_each_crash_once(engine: Engine) -> None:
    """Several claim flows rescue at the same moment; `fail_count` rises by one all the same."""
    ids = add_many(engine, [{} for _ in range(60)])
    claim_due(engine)
    expire_leases(engine, *ids)
    together = threading.Barrier(4)

    def rescue_all() -> list[int]:
        together.wait()
        taken: list[int] = []
        while rescued := rescue(engine, TABLE, policy_of, limit=7):
            taken += [settlement.id for settlement in rescued]
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [future.result() for future in [pool.submit(rescue_all) for _ in range(4)]]

    assert sorted(id_ for part in taken for id_ in part) == ids
    assert {row(engine, id_).fail_count for id_ in ids} == {1}


def test_rescue_and_settle_at_once_leave_one_verdict(engine: Engine) -> None:
    """S3: whoever comes first wins, the other changes nothing; no row is both rescued and settled."""
    add_many(engine, [{} for _ in range(60)])
    raws = claim_due(engine)
    expire_leases(engine, *(raw.id for raw in raws))
    together = threading.Barrier(2)

    def settle_slowly() -> set[int]:
        together.wait()
        return set().union(*(settle(engine, TABLE, verdicts(Processed(), [raw])) for raw in raws))

    def rescue_slowly() -> set[int]:
        together.wait()
        rescued: set[int] = set()
        while some := rescue(engine, TABLE, policy_of, limit=2):
            rescued |= {settlement.id for settlement in some}
        return rescued

    with ThreadPoolExecutor(2) as pool:
        settling, rescuing = pool.submit(settle_slowly), pool.submit(rescue_slowly)
        settled, rescued = settling.result(), rescuing.result()

    ids = {raw.id for raw in raws}
    assert settled | rescued == ids
    assert all(row(engine, id_).status == "processed" for id_ in settled)
    assert all(row(engine, id_).status == "pending" for id_ in rescued - settled)
    assert not settled & rescued
    assert sum(by_status(engine).values()) == 60


def test_row_that_is_being_settled_is_not_waited_for(postgres_url: str) -> None:
    """The rescuer passes over what somebody else has locked: it comes back a tick later."""
    engine = engines.create(postgres_url)
    busy, dead = add_many(engine, [{}] * 2)
    raws = claim_due(engine)
    expire_leases(engine, busy, dead)
    with engine.begin() as other:
        from prefect_claim_dispatch.settling import write_settlements

        write_settlements(other, TABLE, verdicts(Processed(), [raw for raw in raws if raw.id == busy]))

        rescued = rescue(engine, TABLE, policy_of, limit=10)

    assert [settlement.id for settlement in rescued] == [dead]
    assert row(engine, busy).status == "processed"
    engine.dispose()


def test_hostile_row_is_rescued_like_any_other(engine: Engine) -> None:
    """Rescue reads rows too; one that can't be decoded must not keep the others claimed for ever."""
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO action_logs (type, payload, errors) VALUES ('a', '[1]', '7')")
    add(engine)
    raws = claim_due(engine)
    expire_leases(engine, *(raw.id for raw in raws))

    assert len(rescue(engine, TABLE, policy_of, limit=10)) == len(raws) == 2
    assert by_status(engine) == {"pending": 2}


def test_renewed_claim_is_not_rescued(engine: Engine) -> None:
    """The renewal is what stands between a slow attempt and its repetition."""
    id_ = add(engine)
    (raw,) = claim_due(engine, lease=timedelta(seconds=1))
    claiming.renew(engine, TABLE, [(id_, raw.claim_count)], lease=LEASE)

    assert rescue(engine, TABLE, policy_of, limit=10) == []


# Claims whose COMMIT was not answered


def test_claim_that_its_claimant_has_not_heard_of_is_released_at_no_attempt(engine: Engine) -> None:
    """Of what was claimed under its name since then, only what nobody holds and no run has begun."""
    old, unheard, held, begun, others, ended = add_many(engine, [{} for _ in range(6)])
    raws = {raw.id: raw for raw in claim_due(engine, claimed_by="me")}
    before = row(engine, unheard).claimed_at
    change(engine, old, claimed_at=seconds_from_now(-3600))
    change(engine, others, claimed_by="another", run_id="another")
    claiming.begin(engine, TABLE, [(begun, raws[begun].claim_count, "run-1")])
    settle(engine, TABLE, verdicts(Processed(), [raws[ended]]))

    settlements = release_unheard(
        engine, TABLE, claimed_by="me", since=before, is_held=lambda key: key == (held, raws[held].claim_count)
    )

    assert [settlement.id for settlement in settlements] == [unheard]
    after = row(engine, unheard)
    assert (after.status, after.fail_count, after.errors, after.end_at) == ("pending", 0, [], raws_end(raws[unheard]))
    assert [row(engine, id_).status for id_ in (old, held, begun, others)] == ["claimed"] * 4


def raws_end(raw: claiming.RawAction) -> object:
    """When it was due."""
    return raw.action().end_at
