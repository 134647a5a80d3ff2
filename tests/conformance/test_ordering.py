"""Ordering keys where it hurts: heads that were moved, a backlog of one key, lanes of which nothing may come."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from prefect_claim_dispatch import engines, hot_keys, operations, publish, rescuing, settling
from prefect_claim_dispatch.claiming import MAX_LANES
from prefect_claim_dispatch.outcomes import Crashed, Failed, Outcome, Processed, Released, Snooze, Unprocessable
from tests.kit.tables import (
    POLICY,
    TABLE,
    add,
    add_many,
    by_status,
    change,
    claim_due,
    expire_leases,
    make_due,
    seconds_from_now,
    statements_of,
    verdicts,
)

YEAR = timedelta(days=365)
WAITS: dict[str, Outcome] = {
    "failed": Failed(error_type="Boom", message="boom"),
    "crashed": Crashed(),
    "snoozed": Snooze(timedelta(hours=1)),
}
MOVES: dict[str, Callable[[Engine, int], object]] = {
    "rescheduled": lambda engine, id_: operations.reschedule(engine, id_, delay=YEAR),
    "replaced": lambda engine, _: publish(
        engine, "a", {"n": 2}, idempotency_key="head", ordering_key="k", on_conflict="replace", delay=YEAR
    ),
    "moved by SQL": lambda engine, id_: change(engine, id_, end_at=seconds_from_now(YEAR.total_seconds())),
}
HOT = {
    "sqlite": """
        WITH RECURSIVE series (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM series WHERE i < {number})
        INSERT INTO action_logs (type, end_at, ordering_key)
        SELECT 'a', datetime('now', '-1 hour'), {key} FROM series""",
    "postgresql": """
        INSERT INTO action_logs (type, end_at, ordering_key)
        SELECT 'a', now() - interval '1 hour', {key} FROM generate_series(1, {number}) AS series (i)""",
}


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test knows what another has seen; databases are made as new, and engines too, but names come again."""
    hot_keys._memories.clear()


def settled_head(engine: Engine, outcome: Outcome) -> tuple[int, int]:
    """An action that was claimed and came to *outcome*, and one that follows it."""
    head = add(engine, ordering_key="k", idempotency_key="head")
    follower = add(engine, ordering_key="k")
    settling.settle(engine, TABLE, verdicts(outcome, claim_due(engine)))
    return head, follower


@pytest.mark.parametrize("outcome", WAITS)
def test_head_that_waits_for_its_next_attempt_holds_its_followers(engine: Engine, outcome: str) -> None:
    """Whatever it waits for: who overtakes it now would be out of order."""
    head, _ = settled_head(engine, WAITS[outcome])

    assert claim_due(engine) == []
    make_due(engine, head)
    assert [raw.id for raw in claim_due(engine)] == [head]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("outcome", [*WAITS, "released"])
def test_head_that_was_moved_holds_nobody(engine: Engine, outcome: str, move: str) -> None:
    """As one that was never tried: next year's action must not block its key for a year. When it is due it is first."""
    head, follower = settled_head(engine, WAITS.get(outcome, Released()))

    MOVES[move](engine, head)

    claimed = claim_due(engine)
    assert [raw.id for raw in claimed] == [follower]
    settling.settle(engine, TABLE, verdicts(Processed(), claimed))
    add(engine, ordering_key="k")
    make_due(engine, head)
    again = claim_due(engine)
    assert [raw.id for raw in again] == [head]
    settling.settle(engine, TABLE, verdicts(WAITS["failed"], again))
    assert claim_due(engine) == []  # moved once, and tried since: it holds as any other


def test_head_that_was_rescued_or_retried_and_then_moved_holds_nobody(engine: Engine) -> None:
    """Its life before has ended otherwise than by a verdict of its own."""
    rescued, retried = add_many(engine, [{"ordering_key": key} for key in "kl"])
    followers = add_many(engine, [{"ordering_key": key} for key in "kl"])
    claimed = claim_due(engine)
    expire_leases(engine, rescued)
    rescuing.rescue(engine, TABLE, lambda _: POLICY, limit=9)
    dead = Unprocessable(error_type="Bad", message="bad")
    settling.settle(engine, TABLE, verdicts(dead, [raw for raw in claimed if raw.id == retried]))
    operations.retry(engine, retried)
    again = claim_due(engine)
    assert [raw.id for raw in again] == [retried]
    settling.settle(engine, TABLE, verdicts(Released(), again))

    operations.reschedule(engine, [rescued, retried], delay=YEAR)

    assert [raw.id for raw in claim_due(engine)] == followers


def test_head_that_older_code_has_settled_holds_its_followers_as_before(engine: Engine) -> None:
    """In a rolling deploy nobody knows yet whether it was moved; to wait is what the older code does."""
    head, _ = settled_head(engine, WAITS["failed"])

    change(engine, head, held_until=None)

    assert claim_due(engine) == []


# A hot key


def fill(engine: Engine, number: int, key: str = "'hot'") -> None:
    """*number* actions of one key, due for an hour."""
    with engine.begin() as connection:
        connection.execute(text(HOT[engine.dialect.name].format(number=number, key=key)))


def test_what_is_behind_the_backlog_of_one_key_is_claimed_beside_its_head(engine: Engine) -> None:
    """Without a key, and the heads of others; in order, all of them, and none twice."""
    fill(engine, 700)
    fill(engine, 3, "'cold.' || i")
    free = add_many(engine, [{"due_in": -60.0 + number} for number in range(50)])
    cold = add_many(engine, [{"ordering_key": f"key.{number}", "due_in": -5.0} for number in range(40)])

    claims = [claim_due(engine, limit=24) for _ in range(6)]

    ids = [raw.id for raws in claims for raw in raws]
    assert ids == [1, 701, 702, 703, *free, *cold]
    assert [len(raws) for raws in claims] == [24, 24, 24, 22, 0, 0]


def test_head_is_followed_by_the_next_of_its_key(engine: Engine) -> None:
    """One after another, however many wait."""
    fill(engine, 600)

    taken: list[int] = []
    for _ in range(4):
        claimed = claim_due(engine, limit=10)
        taken += [raw.id for raw in claimed]
        settling.settle(engine, TABLE, verdicts(Processed(), claimed))

    assert taken == [1, 2, 3, 4]


def test_more_keys_than_one_claim_looks_at_come_in_turn(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those at the end of the alphabet, too, though the first always have something due."""
    monkeypatch.setattr(hot_keys, "KEYS_AT_ONCE", 4)
    fill(engine, 900, "'key.' || (i % 9)")
    claim_due(engine, limit=1)
    hot_keys._memories.clear()

    seen: set[str] = set()
    with statements_of(engine) as sent:
        for _ in range(12):
            claimed = claim_due(engine, limit=2)
            seen |= {raw.row.ordering_key for raw in claimed}
            settling.settle(engine, TABLE, verdicts(Snooze(timedelta(days=1)), claimed))

    assert len(seen) == 8  # the ninth runs
    assert "claim_behind" in sent


def test_lane_that_fills_every_claim_does_not_hide_what_is_behind_a_key(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of another type is newer: what has waited longer comes before it, a look later."""
    fill(engine, 700)
    hidden = add(engine, due_in=-1800)
    add_many(engine, [{"type": "flood"} for _ in range(60)])
    monkeypatch.setattr(hot_keys, "LOOK_EVERY", 0.0)
    claim_due(engine, limit=1)  # the head runs

    with statements_of(engine) as sent:
        found = [raw.id for _ in range(3) for raw in claim_due(engine, limit=10)]

    assert hidden in found
    assert len(found) == 30
    assert "depth" in sent


def test_table_without_ordering_keys_pays_nothing(engine: Engine) -> None:
    """One statement a claim, also of one that brings less than it might, and the lanes are not cut short."""
    add_many(engine, [{} for _ in range(3)])

    with statements_of(engine) as sent:
        claimed = claim_due(engine)

    assert len(claimed) == 3
    assert sent == ["survey", "claim"]


def test_claim_of_a_hot_key_costs_the_same_however_long_its_backlog_on_sqlite(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of SQLite's machine, which no busy computer changes: a tenth of the rows or ten times as many."""
    monkeypatch.setattr(hot_keys, "SHORTEST", 600.0)
    steps: list[int] = []
    for number in (2_000, 20_000):
        engine = engines.create(sqlite_url)
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM action_logs"))
        fill(engine, number)
        add_many(engine, [{} for _ in range(30)])
        claim_due(engine, limit=10)  # it finds out where what has no key begins
        steps.append(_steps(engine, lambda engine=engine: claim_due(engine, limit=10)))
        engine.dispose()

    assert steps[1] < 1.5 * steps[0], steps


def _steps(engine: Engine, do: Callable[[], list[Any]]) -> int:
    """Hundreds of instructions that *do* takes."""
    count = [0]

    def note() -> None:
        count[0] += 1

    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(note, 100)
    assert len(do()) == 10
    with engine.connect() as connection:
        connection.connection.driver_connection.set_progress_handler(None, 0)  # pyright: ignore[reportOptionalMemberAccess]
    assert count[0]
    return count[0]


# Lanes


def test_lanes_that_wait_for_their_keys_starve_no_other(engine: Engine) -> None:
    """More of them than one statement names, of a higher priority, and for longer: the claim goes on with the next."""
    number = 2 * MAX_LANES + 2
    heads = [{"ordering_key": f"k{n}", "due_in": -9000, "type": "head"} for n in range(number)]
    followers = [{"ordering_key": f"k{n}", "due_in": -8000, "type": f"t{n}", "priority": 1} for n in range(number)]
    add_many(engine, [*heads, *followers])
    claim_due(engine, "head")
    free = add(engine, "free")

    claimed = claim_due(engine)

    assert [raw.id for raw in claimed] == [free]
    assert by_status(engine) == {"claimed": number + 1, "pending": number}


def test_claim_goes_on_with_further_lanes_no_longer_than_it_has_room(engine: Engine) -> None:
    """The limit is that of all its statements together, and the order, too."""
    add_many(engine, [{"ordering_key": f"k{n}", "type": "head"} for n in range(MAX_LANES - 1)])
    add_many(engine, [{"ordering_key": f"k{n}", "type": f"t{n}"} for n in range(MAX_LANES - 1)])
    claim_due(engine, "head")
    free = add_many(engine, [{"type": f"free{n}", "due_in": -1.0} for n in range(4)])

    first = claim_due(engine, limit=3)

    assert [raw.id for raw in first] == free[:3]
