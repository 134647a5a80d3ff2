"""Rows fetched by reference, in another process than the one that claimed them: begun once, however often tried."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import fetching, outstanding
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.outcomes import Released
from prefect_claim_dispatch.settling import settle
from tests.kit.tables import TABLE, add, change, claim_due, expire_leases, row, seconds_from_now, verdicts

LEASE = timedelta(minutes=5)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def claimed(engine: Engine, number: int = 1) -> list[RawAction]:
    """So many rows, claimed to begin at once."""
    for _ in range(number):
        add(engine, "a", payload={"secret": "of the row"})
    return claim_due(engine)


def keys(raws: list[RawAction]) -> list[tuple[int, int]]:
    return [(raw.id, raw.claim_count) for raw in raws]


def begun(engine: Engine, raws: list[RawAction], run_id: str = "run") -> list[int]:
    return [raw.id for raw in fetching.begin_once(engine, TABLE, keys(raws), run_id, lease=LEASE)]


def test_fetched_row_is_as_it_was_claimed(engine: Engine) -> None:
    """Payload and all: of a reference, nothing but id and claim count came along."""
    raws = claimed(engine, 3)

    fetched = fetching.begin_once(engine, TABLE, list(reversed(keys(raws))), "run", lease=LEASE)

    assert [raw.id for raw in fetched] == [raw.id for raw in reversed(raws)]
    assert fetched[0].action().payload == {"secret": "of the row"}
    assert fetched[0].lease.holds
    assert row(engine, raws[0].id).run_id == "run"


def test_same_run_begins_its_row_once(engine: Engine) -> None:
    """A task runner starts again what a dead process ran, under the same run's id: the row may be done already."""
    raws = claimed(engine)

    assert begun(engine, raws) == [raws[0].id]
    assert begun(engine, raws) == []
    assert begun(engine, raws, "another run") == []


def test_lease_begins_anew_with_the_work(engine: Engine) -> None:
    """What waited in a cluster's queue has used up some of it; and an operator sees when it began."""
    (raw,) = claimed(engine)
    change(engine, raw.id, updated_at=LONG_AGO, lease_expires_at=seconds_from_now(20))
    before = row(engine, raw.id).lease_expires_at

    begun(engine, [raw])

    after = row(engine, raw.id)
    assert after.lease_expires_at - before > LEASE / 2
    assert after.updated_at > LONG_AGO


def test_lost_claim_is_not_begun(engine: Engine) -> None:
    """A run that comes after its claim was given to another does nothing."""
    raws = claimed(engine)
    settle(engine, TABLE, verdicts(Released(), raws))
    again = claim_due(engine)

    assert begun(engine, raws) == []
    assert begun(engine, again) == [raws[0].id]


def test_row_that_may_not_begin_yet_is_not_begun(engine: Engine) -> None:
    """What waits in the line has no leave, and would cost no attempt if its claim flow died."""
    add(engine, "a")
    raws = claim_due(engine, may_begin=False)

    assert begun(engine, raws) == []


def test_leave_is_taken_back_of_what_has_not_begun_only(engine: Engine) -> None:
    """So the claim flow knows whom it may give back at no attempt; nobody begins those any more."""
    first, second = claimed(engine, 2)
    begun(engine, [first])

    taken_back = fetching.take_back(engine, TABLE, keys([first, second]), lease=LEASE)

    assert taken_back == {(second.id, second.claim_count)}
    assert begun(engine, [second]) == []
    assert row(engine, second.id).status == "claimed"


def test_lease_that_another_process_renews_is_asked_for(engine: Engine) -> None:
    """The run's own process hears of no renewal: what would be over by its clock may hold, and is asked, once."""
    (raw,) = fetching.begin_once(engine, TABLE, keys(claimed(engine)), "run", lease=LEASE)
    raw.lease.expires = 0.0

    assert raw.lease.holds
    assert raw.lease.expires > 0.0

    change(engine, raw.id, claim_count=raw.claim_count + 1)
    assert raw.lease.holds  # not asked again yet
    raw.lease.expires = 0.0
    assert not raw.lease.holds
    assert raw.lease.lost


def test_lease_that_was_rescued_does_not_hold(engine: Engine) -> None:
    """`action.lease_holds` must say so before an effect that must not happen twice."""
    (raw,) = fetching.begin_once(engine, TABLE, keys(claimed(engine)), "run", lease=LEASE)
    expire_leases(engine, raw.id)
    settle(engine, TABLE, verdicts(Released(), [raw]))
    raw.lease.expires = 0.0

    assert not raw.lease.holds


@pytest.mark.parametrize("holder", ["elsewhere", None])
def test_nothing_is_begun_of_rows_without_their_mark(engine: Engine, holder: str | None) -> None:
    """Whatever stands in `run_id`, if it is not the holder's own mark, somebody else has written it."""
    raws = claimed(engine)
    change(engine, raws[0].id, run_id=holder)

    assert begun(engine, raws) == []


def test_no_keys_ask_nothing(engine: Engine) -> None:
    """A run whose rows were all given back before it was handed over."""
    assert fetching.begin_once(engine, TABLE, [], "run", lease=LEASE) == []
    assert fetching.take_back(engine, TABLE, [], lease=LEASE) == set()


def test_identity_tells_tables_apart(engine: Engine, sqlite_url: str) -> None:
    """A worker process with other settings would find none of the rows, for ever."""
    from prefect_claim_dispatch import databases

    assert outstanding.identity(engine, TABLE) != outstanding.identity(databases.engine_for(sqlite_url), TABLE)
