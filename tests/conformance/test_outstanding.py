"""Claims of the deployment lane, as the table keeps them: found, followed, taken, and never given back by lease."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import claiming, engines, outstanding
from prefect_claim_dispatch.outcomes import Released
from prefect_claim_dispatch.outstanding import Followed
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.schema import ELSEWHERE, actions_table
from prefect_claim_dispatch.settling import settle
from tests.kit.tables import (
    TABLE,
    add,
    add_many,
    by_status,
    change,
    claim_due,
    expire_leases,
    row,
    seconds_from_now,
    verdicts,
)

HERE = f"{ELSEWHERE}claim-flow"
HOUR = timedelta(hours=1)


def claimed(engine: Engine, number: int = 1) -> list[claiming.RawAction]:
    """Rows that a claim flow has claimed for a deployment, without a run so far."""
    add_many(engine, [{}] * number)
    return claim_due(engine, claimed_by=HERE)


def test_only_claims_of_the_lane_are_outstanding(engine: Engine) -> None:
    """Every other claim's work is in the process that made it."""
    (mine,) = claimed(engine)
    add(engine)
    claim_due(engine, claimed_by="another flow")
    add(engine, due_in=3600)

    found, after = outstanding.page(engine, TABLE, None, limit=10)

    assert ([one.key for one in found], after) == ([(mine.id, mine.claim_count)], None)
    assert (found[0].claimed_by, found[0].run_id, found[0].is_over) == (HERE, None, False)
    assert timedelta(minutes=4) < found[0].left <= timedelta(minutes=5)
    assert timedelta(0) <= found[0].waited < timedelta(minutes=1)


def test_pages_follow_each_other_without_a_gap_though_all_leases_are_equal(engine: Engine) -> None:
    """A claim of a hundred has one lease; a row that falls between two pages is never settled."""
    ids = [raw.id for raw in claimed(engine, 7)]
    seen: list[int] = []
    after, first = None, True

    while first or after is not None:
        found, after = outstanding.page(engine, TABLE, after, limit=3)
        seen += [one.id for one in found]
        first = False

    assert seen == sorted(ids)


def test_lease_that_ends_first_is_looked_at_first(engine: Engine) -> None:
    """So what was renewed goes to the end of a line that is too long for one look."""
    ids = sorted(raw.id for raw in claimed(engine, 3))
    change(engine, ids[2], lease_expires_at=seconds_from_now(-60))

    found, _ = outstanding.page(engine, TABLE, None, limit=2)

    assert [one.id for one in found] == [ids[2], ids[0]]
    assert found[0].is_over


def test_rescue_leaves_the_lane_to_its_runs(engine: Engine) -> None:
    """With Prefect away no lease is renewed, and the runs go on: by lease alone there would be two of one action."""
    (raw,) = claimed(engine)
    expire_leases(engine, raw.id)

    assert rescue(engine, TABLE, lambda _: RetryPolicy(), limit=10) == []

    assert by_status(engine) == {"claimed": 1}


def test_rescue_takes_what_nobody_signed(engine: Engine) -> None:
    """A row that was claimed by hand has no holder's name, and must not be taken for one of the lane."""
    (raw,) = claimed(engine)
    change(engine, raw.id, claimed_by=None, lease_expires_at=seconds_from_now(-1))

    assert [one.id for one in rescue(engine, TABLE, lambda _: RetryPolicy(), limit=10)] == [raw.id]


def test_following_writes_run_and_lease_and_revives_a_lease_that_is_over(engine: Engine) -> None:
    """When Prefect is back after hours, a run that lives keeps its row."""
    first, second = claimed(engine, 2)
    expire_leases(engine, first.id, second.id)

    outstanding.follow(engine, TABLE, [Followed(second.id, 1, None, HOUR), Followed(first.id, 1, "run", HOUR)])

    for raw, run in ((first, "run"), (second, None)):
        now = row(engine, raw.id)
        assert now.run_id == run
        assert timedelta(minutes=59) < now.lease_expires_at - now.now <= HOUR


def test_stale_claim_is_not_followed(engine: Engine) -> None:
    """A claim flow that slept since must not put its run onto the claim of another."""
    (raw,) = claimed(engine)
    settle(engine, TABLE, verdicts(Released(), [raw]))
    claim_due(engine, claimed_by=HERE)

    assert outstanding.follow(engine, TABLE, [Followed(raw.id, raw.claim_count, "late", HOUR)]) == set()
    assert outstanding.held(engine, TABLE, [(raw.id, raw.claim_count)]) == []
    assert outstanding.take(engine, TABLE, (raw.id, raw.claim_count), "late", lease=HOUR) is None

    assert row(engine, raw.id).run_id is None


def test_run_that_takes_its_claim_is_its_holder(engine: Engine) -> None:
    """From then on the lease tells of the run's own life."""
    (raw,) = claimed(engine)
    outstanding.follow(engine, TABLE, [Followed(raw.id, 1, "run", HOUR)])

    taken = outstanding.take(engine, TABLE, (raw.id, 1), "run", lease=timedelta(seconds=30))

    assert taken is not None
    assert (taken.id, taken.action().payload, taken.lease.holds) == (raw.id, {}, True)
    (found,), _ = outstanding.page(engine, TABLE, None, limit=10)
    assert found.is_held_by_its_run
    assert found.left <= timedelta(seconds=30)


@pytest.mark.parametrize("server", ["", "@0123456789ab"])
@pytest.mark.parametrize("taker", ["run", None])
def test_taken_claim_names_its_server_still(engine: Engine, server: str, taker: str | None) -> None:
    """Twice, as Prefect's next try takes it again: only that server may say later that the run was deleted."""
    add(engine)
    (raw,) = claim_due(engine, claimed_by=HERE + server)

    for again in (False, True):
        assert outstanding.take(engine, TABLE, (raw.id, 1), taker, lease=HOUR, again=again) is not None

    (found,), _ = outstanding.page(engine, TABLE, None, limit=10)
    assert found.claimed_by == (HERE if taker is None else f"{ELSEWHERE}run") + server
    assert (found.server, found.is_held_by_its_run) == (server[1:] or None, taker is not None)


def test_run_whose_creator_died_before_it_wrote_it_down_may_take_its_claim(engine: Engine) -> None:
    """Its worker may be quicker than whoever adopts the row."""
    (raw,) = claimed(engine)

    assert outstanding.take(engine, TABLE, (raw.id, 1), "run", lease=HOUR) is not None

    assert row(engine, raw.id).run_id == "run"


def test_copy_of_a_run_takes_nothing(engine: Engine) -> None:
    """The UI copies a run with its parameters, the reference among them: two runs, one claim."""
    (raw,) = claimed(engine)
    outstanding.follow(engine, TABLE, [Followed(raw.id, 1, "run", HOUR)])

    assert outstanding.take(engine, TABLE, (raw.id, 1), "copy", lease=HOUR) is None


def test_claims_that_still_hold_come_back_with_their_payload(engine: Engine) -> None:
    """What an adopted claim's run is given is read again."""
    add(engine, payload={"a": 1})
    (raw,) = claim_due(engine, claimed_by=HERE)

    (held,) = outstanding.held(engine, TABLE, [(raw.id, 1), (raw.id, 7), (raw.id + 1, 1)])

    assert held.action().payload == {"a": 1}


def test_identity_is_the_same_for_everybody_and_another_for_each_table(
    engine: Engine, database_url: str, empty_database_url: str
) -> None:
    """It is in the key by which a run is found that may have been created: by another flow, to another database."""
    again, other = engines.create(database_url), engines.create(empty_database_url)

    names = {outstanding.identity(each, TABLE) for each in (engine, again)}

    assert len(names) == 1
    assert outstanding.identity(other, TABLE) not in names
    assert outstanding.identity(engine, actions_table("others")) not in names
    again.dispose()
    other.dispose()


@pytest.mark.parametrize("act", ["follow", "held"])
def test_nothing_asked_for_is_nothing_sent(engine: Engine, act: str) -> None:
    """Most looks find nothing to renew and nothing to adopt."""
    assert not getattr(outstanding, act)(engine, TABLE, [])
