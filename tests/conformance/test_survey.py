"""Survey: what there is to do, in one statement whose cost is the number of lanes and not of rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch.claiming import Lane, Survey, count_due, survey
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.settling import settle
from tests.kit.tables import (
    TABLE,
    add,
    add_many,
    change,
    claim_due,
    expire_leases,
    make_due,
    row,
    seconds_from_now,
    statements_of,
    verdicts,
)

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def test_empty_table_is_one_statement(engine: Engine) -> None:
    """The idle tick, every minute for years."""
    with statements_of(engine) as sent:
        found = survey(engine, TABLE)

    assert sent == ["survey"]
    assert (found.lanes, found.oldest_lease_at, found.has_expired_leases, found.due()) == ((), None, False, ())


def test_lease_that_ends_now_is_not_over_and_what_is_due_now_is_due() -> None:
    """As the statements have it: a rescue at that instant would find nothing, a claim would find the action."""
    lane = Lane(type="a", priority=0, end_at=LONG_AGO)

    at_once = Survey(now=LONG_AGO, lanes=(lane,), oldest_lease_at=LONG_AGO)

    assert not at_once.has_expired_leases
    assert at_once.due() == (lane,)


def test_now_is_the_databases(engine: Engine) -> None:
    """What is due is decided by one clock, and it is not the application's."""
    id_ = add(engine)

    found = survey(engine, TABLE)

    assert found.now.tzinfo is not None
    assert timedelta(0) <= row(engine, id_).now - found.now < timedelta(seconds=30)


def test_each_type_and_priority_is_a_lane_with_its_earliest_action(engine: Engine) -> None:
    """Finished and claimed rows are in none."""
    add_many(
        engine,
        [
            {"type": type_, "priority": priority, "end_at": LONG_AGO + timedelta(days=day)}
            for type_, priority, day in [("b", 0, 3), ("a", 1, 5), ("b", 0, 1), ("a", 0, 2), ("b", 0, 2), ("a", -1, 9)]
        ],
    )
    done = add(engine, "done", priority=7)
    settle(engine, TABLE, verdicts(Processed(), claim_due(engine, "done")))
    add(engine, "held", priority=7)
    claim_due(engine, "held")

    found = survey(engine, TABLE)

    lanes = {(lane.type, lane.priority): lane.end_at for lane in found.lanes}
    assert row(engine, done).status == "processed"
    assert lanes == {
        ("a", -1): LONG_AGO + timedelta(days=9),
        ("a", 0): LONG_AGO + timedelta(days=2),
        ("a", 1): LONG_AGO + timedelta(days=5),
        ("b", 0): LONG_AGO + timedelta(days=1),
    }


def test_due_lanes_come_by_priority_then_by_waiting(engine: Engine) -> None:
    """Lanes of the future are left out."""
    add(engine, "low", priority=0, end_at=LONG_AGO)
    add(engine, "later", priority=5, due_in=-10)
    add(engine, "sooner", priority=5, due_in=-20)
    add(engine, "future", priority=9, due_in=3600)

    found = survey(engine, TABLE)

    assert [lane.type for lane in found.due()] == ["sooner", "later", "low"]


def test_until_narrows_what_is_due_and_never_widens(engine: Engine) -> None:
    """No `until` makes anything due before its time."""
    add(engine, "old", end_at=LONG_AGO)
    add(engine, "fresh", due_in=-10)
    add(engine, "future", due_in=3600)

    found = survey(engine, TABLE)

    assert [lane.type for lane in found.due(LONG_AGO)] == ["old"]
    assert [lane.type for lane in found.due(found.now + timedelta(days=9))] == ["old", "fresh"]
    assert found.due(LONG_AGO - timedelta(seconds=1)) == ()


def test_action_due_this_instant_is_due() -> None:
    """`end_at <= now`, in the survey as in the claim; otherwise the loop would spin between them."""
    lane = Lane(type="a", priority=0, end_at=LONG_AGO)

    assert Survey(now=LONG_AGO, lanes=(lane,), oldest_lease_at=None).due() == (lane,)


def test_lane_behind_the_future_is_seen_when_it_comes(engine: Engine) -> None:
    """A lane whose earliest action waits is there all the same, with the instant to wait for."""
    id_ = add(engine, due_in=3600)
    (lane,) = survey(engine, TABLE).lanes

    make_due(engine, id_)

    assert lane.end_at > survey(engine, TABLE).now
    assert len(survey(engine, TABLE).due()) == 1


def test_strays_are_lanes_too(engine: Engine) -> None:
    """Types that nobody registered must be seen, to be reported; the survey knows no registry."""
    add_many(engine, [{"type": "stray"}] * 3)

    assert [lane.type for lane in survey(engine, TABLE).due()] == ["stray"]


def test_oldest_lease_is_seen(engine: Engine) -> None:
    """One instant is enough to know whether rescue has something to do, without asking for it each tick."""
    ids = add_many(engine, [{}] * 3)
    claim_due(engine)
    change(engine, ids[1], lease_expires_at=seconds_from_now(30))

    found = survey(engine, TABLE)

    assert found.oldest_lease_at == row(engine, ids[1]).lease_expires_at
    assert not found.has_expired_leases
    assert found.lanes == ()


def test_expired_lease_is_seen(engine: Engine) -> None:
    """By the database's clock."""
    id_, _ = add_many(engine, [{}] * 2)
    claim_due(engine)

    expire_leases(engine, id_)

    assert survey(engine, TABLE).has_expired_leases


def test_many_lanes_are_one_statement(engine: Engine) -> None:
    """A type for each tenant, and a few priorities: all of them found, in one round trip."""
    pairs = {(f"tenant.{number}", priority) for number in range(100) for priority in (-1, 0, 3)}
    add_many(engine, [{"type": type_, "priority": priority} for type_, priority in pairs for _ in range(2)])

    with statements_of(engine) as sent:
        found = survey(engine, TABLE)

    assert sent == ["survey"]
    assert {(lane.type, lane.priority) for lane in found.lanes} == pairs
    assert len(found.lanes) == len(pairs)


@pytest.mark.parametrize("type_", ["a'b", 'a"b', "ä", "a b", "A", "%", "a\\b", "\N{SNOWMAN}" * 120, "0"])
def test_odd_types_are_told_apart(engine: Engine, type_: str) -> None:
    """The scan jumps by comparing types; quotes, case and collation must not make it jump too far, or stand still."""
    add_many(engine, [{"type": name} for name in ("a", "b", "~", type_)])

    assert sorted(lane.type for lane in survey(engine, TABLE).lanes) == sorted(["a", "b", "~", type_])
    assert len(claim_due(engine)) == 4


def test_due_actions_are_counted_by_lane(engine: Engine) -> None:
    """What the report calls unroutable: due rows only, of these lanes only."""
    add_many(engine, [{"type": "stray"}] * 3 + [{"type": "stray", "priority": 2}, {"type": "stray", "due_in": 3600}])
    add(engine, "mine")
    lanes = [lane for lane in survey(engine, TABLE).due() if lane.type == "stray"]

    with statements_of(engine) as sent:
        number = count_due(engine, TABLE, lanes)

    assert number == 4
    assert sent == ["count_due"] * 2


def test_no_more_are_counted_than_one_wants_to_know(engine: Engine) -> None:
    """And no lane is asked for when there are enough."""
    add_many(engine, [{"type": "a"}] * 5 + [{"type": "b"}] * 5)
    lanes = survey(engine, TABLE).due()

    with statements_of(engine) as sent:
        numbers = [count_due(engine, TABLE, lanes, at_most=most) for most in (3, 5, 8, 100)]

    assert numbers == [3, 5, 8, 10]
    assert sent == ["count_due"] * (1 + 1 + 2 + 2)
