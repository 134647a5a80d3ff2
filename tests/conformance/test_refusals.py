"""Rows that make the database refuse a statement, or a driver an answer: they harm only themselves, and readably."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from prefect_claim_dispatch import claiming, engines, operations, outstanding, processor, settling, testing
from prefect_claim_dispatch.actions import MAX_CLAIM_COUNT, MAX_FAIL_COUNT, ActionStatus
from prefect_claim_dispatch.diagnosing import asking
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.outcomes import Failed, Outcome, Processed, Snooze
from prefect_claim_dispatch.policies import RetryPolicy, Settlement
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.schema import ELSEWHERE
from tests.kit.tables import (
    LEASE,
    POLICY,
    TABLE,
    add,
    add_many,
    claim_due,
    expire_leases,
    row,
    statements_of,
    verdicts,
)

BAD = 2
"""The id of the row that is refused; its neighbours are 1 and 3."""

REFUSAL = {
    "sqlite": """
        CREATE TRIGGER refuse BEFORE UPDATE ON action_logs WHEN {condition}
        BEGIN SELECT RAISE(ABORT, 'the application says no'); END""",
    "postgresql": """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF {condition} THEN RAISE EXCEPTION 'the application says no'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON action_logs FOR EACH ROW EXECUTE FUNCTION refuse()""",
}


def refuse(engine: Engine, condition: str) -> None:
    """Let the database refuse updates of the bad row that fit *condition*."""
    with engine.begin() as connection:
        connection.execute(text(REFUSAL[engine.dialect.name].format(condition=f"NEW.id = {BAD} AND {condition}")))


def states(engine: Engine) -> list[str]:
    return [found.status.value for found in reversed(operations.find(engine))]


def error_of(engine: Engine, id_: int = BAD) -> dict[str, Any]:
    return dict(operations.get(engine, id_).errors[-1])


# Values at their limits


def test_fail_count_at_its_limit_stays_there(engine: Engine) -> None:
    """One more would be refused, together with the verdicts of all others; rescue, too, counts."""
    ids = add_many(engine, [{"fail_count": count} for count in (0, MAX_FAIL_COUNT, 0, MAX_FAIL_COUNT)])
    unlimited = RetryPolicy(max_attempts=2**31)
    claimed = claim_due(engine)

    settled = settling.settle(engine, TABLE, verdicts(Failed(error_type="E", message=""), claimed[:3], unlimited))
    expire_leases(engine, ids[3])
    rescue(engine, TABLE, lambda _: None, limit=9)

    assert settled == set(ids[:3])
    assert [row(engine, id_).fail_count for id_ in ids] == [1, MAX_FAIL_COUNT, 1, MAX_FAIL_COUNT]


def test_claims_that_can_be_counted_no_further_end_dead(engine: Engine) -> None:
    """Without a new count there is no fence; and refused as a whole, a claim would bring nothing for ever."""
    ids = add_many(engine, [{"claim_count": count} for count in (0, MAX_CLAIM_COUNT, 0, MAX_CLAIM_COUNT - 1)])

    claimed = claim_due(engine)

    assert [raw.id for raw in claimed] == [ids[0], ids[2]]
    assert states(engine) == ["claimed", "dead", "claimed", "dead"]
    assert (error_of(engine)["type"], "set it lower" in error_of(engine)["message"]) == ("ClaimsUsedUp", True)


@pytest.mark.parametrize("outcome", [Failed(error_type="E", message=""), Snooze(timedelta(days=3650))], ids=str)
def test_delay_that_leaves_the_calendar_is_cut(engine: Engine, outcome: Outcome) -> None:
    """No policy may take the verdicts of others with it."""
    add_many(engine, [{}, {}])
    endless = RetryPolicy(backoff=timedelta(days=999_999), backoff_max=timedelta.max)
    settlements = verdicts(outcome, claim_due(engine), endless)
    settlements[1] = settlements[1]._replace(delay=timedelta.max)

    assert settling.settle(engine, TABLE, settlements) == {1, 2}

    waits = [(row(engine, id_).end_at - row(engine, id_).now) for id_ in (1, 2)]
    assert all(timedelta(days=3_200) < wait < timedelta(days=4_100) for wait in waits)


@pytest.mark.parametrize("name", ["Bad\x00Name", "Bad\udcffName", "x" * 5_000], ids=["NUL", "surrogate", "long"])
def test_name_of_an_error_is_as_clean_as_its_text(engine: Engine, name: str) -> None:
    """A class's qualified name and a state's name are text of users', too."""
    add_many(engine, [{}, {}])
    kind = type("Boom", (RuntimeError,), {"__qualname__": name})

    settled = settling.settle(engine, TABLE, verdicts(Failed.from_exception(kind("no")), claim_due(engine)))

    assert settled == {1, 2}
    shown = error_of(engine)["type"]
    assert shown.startswith(("Bad", "xxx"))
    assert len(shown) <= 200
    assert not {"\x00", "\udcff"} & set(shown)


LEASES = {
    "sqlite": ["0000-01-01 00:00:00", "9999-12-31 23:59:59"],
    "postgresql": ["infinity", "-infinity", "0044-03-15 00:00:00+00 BC", "20000-01-01 00:00:00+00"],
}


@pytest.mark.parametrize("number", range(4))
def test_lease_that_no_calendar_has_is_rescued(engine: Engine, number: int) -> None:
    """One such row made every survey fail. Nobody renews it: it counts as over."""
    leases = LEASES[engine.dialect.name]
    lease = leases[number % len(leases)]
    add_many(engine, [{}, {}])
    claim_due(engine, limit=1)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE action_logs SET lease_expires_at = '{lease}' WHERE id = 1"))

    found = claiming.survey(engine, TABLE)
    facts = asking.ask_claims(engine, TABLE)
    rescued = rescue(engine, TABLE, lambda _: POLICY, limit=9)

    assert found.has_expired_leases
    assert len(found.lanes) == 1
    assert facts.oldest >= timedelta(0)
    assert [(settlement.id, settlement.status) for settlement in rescued] == [(1, ActionStatus.PENDING)]
    assert not claiming.survey(engine, TABLE).has_expired_leases


@pytest.mark.parametrize("instant", ["infinity", "-infinity"])
def test_claim_elsewhere_at_no_instant_hides_no_other(postgres_engine: Engine, instant: str) -> None:
    """What runs elsewhere is asked for by the page; one row that can't be read would stop them all."""
    add_many(postgres_engine, [{}, {}])
    claim_due(postgres_engine, claimed_by=f"{ELSEWHERE}flow")
    with postgres_engine.begin() as connection:
        odd = f"claimed_at = '{instant}', lease_expires_at = '{instant}'"
        connection.execute(text(f"UPDATE action_logs SET {odd} WHERE id = 1"))

    rows, _ = outstanding.page(postgres_engine, TABLE, None, limit=1)
    found, after = outstanding.page(postgres_engine, TABLE, None, limit=9)

    assert len(rows) == 1
    assert ({each.id for each in found}, after) == ({1, 2}, None)
    assert not claiming.survey(postgres_engine, TABLE).has_expired_leases or instant == "-infinity"


@pytest.fixture
def postgres_engine(postgres_url: str) -> Iterator[Engine]:
    """An engine on PostgreSQL, which alone stores infinity."""
    engine = engines.create(postgres_url)
    yield engine
    engine.dispose()


# What the database refuses


def test_claim_that_one_row_makes_refused_brings_the_others(engine: Engine) -> None:
    """And that row is dead, with what the database said; otherwise no claim would ever bring anything."""
    add_many(engine, [{}, {}, {}])
    refuse(engine, "NEW.status = 'claimed'")

    claimed = claim_due(engine)

    assert [raw.id for raw in claimed] == [1, 3]
    assert states(engine) == ["claimed", "dead", "claimed"]
    assert (error_of(engine)["type"], error_of(engine)["kind"]) == ("RefusedByDatabase", "unprocessable")
    assert "the application says no" in error_of(engine)["message"]


def test_verdict_that_is_refused_costs_no_other(engine: Engine) -> None:
    """The work is done; of the one whose verdict can't be written, that it is dead can be, and why."""
    add_many(engine, [{}, {}, {}])
    claimed = claim_due(engine)
    refuse(engine, "NEW.status = 'processed'")
    buried: dict[int, Settlement] = {}

    settled = settling.settle(engine, TABLE, verdicts(Processed(), claimed), buried=buried)

    assert settled == {1, 2, 3}
    assert {id_: settlement.status for id_, settlement in buried.items()} == {BAD: ActionStatus.DEAD}
    assert states(engine) == ["processed", "dead", "processed"]
    assert "its verdict (processed) can't be written" in error_of(engine)["message"]


def test_row_that_may_not_be_changed_at_all_is_left_to_a_person(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even dead may it be: it stays as it is, in the log, and the others are settled."""
    add_many(engine, [{}, {}, {}])
    claimed = claim_due(engine)
    refuse(engine, "1 = 1")

    settled = settling.settle(engine, TABLE, verdicts(Processed(), claimed))

    assert settled == {1, 3}
    assert states(engine) == ["processed", "claimed", "processed"]
    assert "action #2 can't be made dead" in caplog.text


def test_keeper_counts_what_the_table_says(engine: Engine) -> None:
    """The report must not call processed what is dead."""
    add_many(engine, [{}, {}, {}])
    claimed, tally = claim_due(engine), Tally()
    refuse(engine, "NEW.status = 'processed'")

    with Keeper(engine, TABLE, lease=LEASE, tally=tally) as keeper:
        keeper.hold(claimed)
        for settlement in verdicts(Processed(), claimed):
            keeper.settle(settlement)

    report = tally.report()
    assert (report.processed, report.dead, report.lost_leases) == (2, 1, 0)


def test_rescue_that_is_refused_takes_back_the_others(engine: Engine) -> None:
    """A crash that can't be written must not keep all other crashes for ever."""
    ids = add_many(engine, [{}, {}, {}])
    claim_due(engine)
    expire_leases(engine, *ids)
    refuse(engine, "NEW.status = 'pending'")

    rescued = rescue(engine, TABLE, lambda _: POLICY, limit=9)

    assert {settlement.id: settlement.status.value for settlement in rescued} == {1: "pending", 2: "dead", 3: "pending"}
    assert states(engine) == ["pending", "dead", "pending"]


def test_policy_that_raises_stops_no_other_types_rescue(engine: Engine) -> None:
    """What is registered wrongly is the trouble of its own type."""
    ids = add_many(engine, [{"type": "bad"}, {}])
    claim_due(engine)
    expire_leases(engine, *ids)

    def policy_of(type_: str) -> RetryPolicy:
        if type_ == "bad":
            raise TypeError
        return RetryPolicy(max_attempts=1)

    rescue(engine, TABLE, policy_of, limit=9)

    assert states(engine) == ["pending", "dead"]


@pytest.mark.parametrize("which", ["begin", "renew"])
def test_claim_that_may_not_be_renewed_or_begun_loses_its_own_lease_alone(engine: Engine, which: str) -> None:
    """The others go on to hold theirs."""
    add_many(engine, [{}, {}, {}])
    keys = [(raw.id, raw.claim_count) for raw in claim_due(engine)]
    refuse(engine, "NEW.status = 'claimed'")

    held = (
        claiming.renew(engine, TABLE, keys, lease=LEASE)
        if which == "renew"
        else claiming.begin(engine, TABLE, [(*key, "run") for key in keys])
    )

    assert held == {1, 3}


def test_drain_tells_what_was_refused(engine: Engine) -> None:
    """A test sees the same as production."""
    registry = Registry()
    processor("a", registry=registry)(lambda payload: None)
    add_many(engine, [{}, {}, {}])
    refuse(engine, "NEW.status = 'processed'")

    report = testing.drain(engine, registry)

    assert (report.processed, report.dead) == (2, 1)


def test_refusal_of_the_whole_is_no_rows_fault(engine: Engine) -> None:
    """A table that may not be written, or is not there, makes nobody dead."""
    add(engine)
    claimed = claim_due(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE action_logs RENAME TO elsewhere"))

    with pytest.raises(Exception, match="not there"):
        settling.settle(engine, TABLE, verdicts(Processed(), claimed))

    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO action_logs"))
    assert states(engine) == ["claimed"]


def test_nothing_is_done_row_by_row_without_need(engine: Engine) -> None:
    """One statement, as ever, for what is in order."""
    add_many(engine, [{}, {}, {}])
    claimed = claim_due(engine)

    with statements_of(engine) as sent:
        settling.settle(engine, TABLE, verdicts(Processed(), claimed))

    assert sent == ["settle"]
