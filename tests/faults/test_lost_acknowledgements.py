"""The COMMIT arrives and its answer does not: whoever asked can't know, and the table is right all the same.

Each test goes through a proxy that cuts the connection when the server has answered and before the client has heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from prefect_claim_dispatch import Action, engines, processor, publish
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.errors import DatabaseUnavailableError
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.outcomes import Cancel, Failed, Outcome, Processed, Released, Snooze
from prefect_claim_dispatch.policies import RetryPolicy, settlement_for
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.settling import settle
from prefect_claim_dispatch.statements import NAME
from tests.kit import postgres
from tests.kit.auditor import audit, report
from tests.kit.ledger import Ledger, PublishLog
from tests.kit.looping import ThreadDispatcher, run_loop
from tests.kit.proxy import COMMIT, Mode, Proxy
from tests.kit.tables import (
    LEASE,
    TABLE,
    add,
    add_many,
    by_status,
    claim_blindly,
    claim_due,
    columns,
    expire_leases,
    make_due,
    row,
    verdicts,
)
from tests.kit.waiting import wait_until

AT_ONCE = RetryPolicy(backoff=timedelta(0))
FAILED = Failed(error_type="E", message="m")
AUTOCOMMITTED = b"INSERT INTO"  # a publish by URL has no COMMIT of its own


@pytest.fixture
def proxy(postgres_server: postgres.Server) -> Iterator[Proxy]:
    """A proxy before the shared PostgreSQL; only who comes by it is disturbed."""
    with Proxy.before(postgres_server) as proxy:
        yield proxy


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """The table as everybody else sees it, beside the proxy."""
    engine = engines.create(postgres_url)
    yield engine
    engine.dispose()


@pytest.fixture
def far(postgres_url: str, proxy: Proxy) -> Iterator[Engine]:
    """The same database by way of the proxy."""
    engine = engines.create(proxy.url(postgres_url))
    yield engine
    engine.dispose()


@pytest.fixture
def records(tmp_path: Path) -> tuple[Ledger, PublishLog]:
    """What really happens, for the auditor."""
    return Ledger(tmp_path / "ledger"), PublishLog(tmp_path / "published")


def unheard(proxy: Proxy, do: Callable[[], object], pattern: bytes = COMMIT) -> None:
    """Do what commits, and hear nothing of it."""
    lost = proxy.lost_answers
    proxy.cut_after(pattern)
    with pytest.raises(DatabaseUnavailableError):
        do()
    assert proxy.lost_answers == lost + 1


def assert_all_promises_hold(engine: Engine, records: tuple[Ledger, PublishLog]) -> None:
    """S1 to S8 and L1, of everything that happened."""
    assert report(audit(engine, *records)) == "all promises hold"


# Publishing


@pytest.mark.parametrize("pattern", [COMMIT, AUTOCOMMITTED], ids=["engine", "url"])
def test_unheard_publish_is_there_once_and_repeated_by_its_key(
    engine: Engine, far: Engine, proxy: Proxy, records: tuple[Ledger, PublishLog], pattern: bytes
) -> None:
    """S4 and S6: the publisher who can't know repeats with the key, and ends with exactly one."""
    log = records[1]
    bind = far if pattern == COMMIT else far.url.render_as_string(hide_password=False)
    log.asked("a", "k")

    unheard(proxy, lambda: publish(bind, "a", {"n": 1}, delay=timedelta(hours=1), idempotency_key="k"), pattern)

    assert by_status(engine) == {"pending": 1}
    token = log.asked("a", "k")
    receipt = publish(bind, "a", {"n": 1}, delay=timedelta(hours=1), idempotency_key="k")
    log.published(token, receipt, "a", "k")
    assert receipt.outcome == "kept"
    assert by_status(engine) == {"pending": 1}
    assert_all_promises_hold(engine, records)


def test_publish_that_was_cut_off_before_its_commit_is_not_there(engine: Engine, far: Engine, proxy: Proxy) -> None:
    """The other half of "0 or 1": the connection dies after the INSERT, and the transaction with it."""
    unheard(proxy, lambda: publish(far, "a", {}, idempotency_key="k"), AUTOCOMMITTED)

    assert by_status(engine) == {}
    assert publish(far, "a", {}, idempotency_key="k").outcome == "created"


# Claiming and rescuing


def test_unheard_claim_is_rescued_and_never_runs_twice_at_once(
    engine: Engine, far: Engine, proxy: Proxy, records: tuple[Ledger, PublishLog]
) -> None:
    """The rows are nobody's until their lease is over; then they are claimed again, and the gap is on record."""
    ledger, log = records
    receipt = publish(engine, "a")
    log.published(log.asked("a"), receipt, "a")
    ids = [receipt.id or 0]

    unheard(proxy, lambda: claim_blindly(far, ("a", 0)))  # whose COMMIT is the first: no survey before it

    assert by_status(engine) == {"claimed": 1}
    assert claim_due(far) == [], "a lease that nobody knows of is a lease"
    assert rescue(far, TABLE, lambda _: AT_ONCE, limit=10) == []

    expire_leases(engine, *ids)
    assert len(rescue(far, TABLE, lambda _: AT_ONCE, limit=10)) == 1
    make_due(engine, *ids)
    process(far, ledger)

    assert row(engine, ids[0]).claim_count == 2
    assert_all_promises_hold(engine, records)


def test_claim_flow_gives_back_what_it_has_not_heard_of(
    engine: Engine, far: Engine, proxy: Proxy, records: tuple[Ledger, PublishLog]
) -> None:
    """Never begun, so at no attempt; however often that happens, no row goes dead unexecuted."""
    ledger, log = records
    registry, cuts = Registry(), iter(range(3))
    for _ in range(5):
        log.published(log.asked("a"), publish(engine, "a"), "a")

    @processor("a", registry=registry, max_attempts=2)
    def work(action: Action) -> None:
        with ledger.attempt(action):
            pass

    def cut(*sent: Any) -> None:
        if sent[4].execution_options.get(NAME) == "claim" and next(cuts, None) is not None:
            proxy.cut_after(COMMIT)

    event.listen(far, "before_cursor_execute", cut)
    dispatcher = ThreadDispatcher(4)
    tally = run_loop(far, registry, dispatcher, lease=LEASE)
    dispatcher.close()

    report = tally.report()
    assert proxy.lost_answers == 3
    assert by_status(engine) == {"processed": 5}
    assert {row(engine, id_).fail_count for id_ in range(1, 6)} == {0}
    assert (report.processed, report.failed, report.rescued, report.lost_leases) == (5, 0, 0, 0)
    assert report.claimed == report.processed + report.released > 5
    assert_all_promises_hold(engine, records)


def test_unheard_rescue_counts_the_crash_once(engine: Engine, far: Engine, proxy: Proxy) -> None:
    """The rescuer repeats and finds nothing left to rescue."""
    id_ = add(engine)
    claim_due(engine)
    expire_leases(engine, id_)

    unheard(proxy, lambda: rescue(far, TABLE, lambda _: AT_ONCE, limit=10))

    after = columns(engine, id_)
    assert rescue(far, TABLE, lambda _: AT_ONCE, limit=10) == []
    assert columns(engine, id_) == after
    assert (after["status"], after["fail_count"], len(after["errors"])) == ("pending", 1, 1)


# The keeper


def kept(
    far: Engine, proxy: Proxy, outcome: Outcome, *, lease: timedelta = LEASE, then: Mode = "pass", of: int = 1
) -> tuple[Tally, list[RawAction]]:
    """Claim what is due under a keeper, and have the answer to the settlement of *outcome* lost."""
    tally = Tally()
    raws = claim_due(far, lease=lease)
    assert len(raws) == of
    with Keeper(far, TABLE, lease=lease, tally=tally) as keeper:
        keeper.hold(raws)
        proxy.cut_after(COMMIT, then=then)
        for raw in raws:
            keeper.settle(settlement_for(outcome, raw, AT_ONCE))
        assert keeper.flush(30), "the keeper gave no verdict up and wrote none"
    assert proxy.lost_answers == 1
    return tally, raws


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Processed(), ("processed", "processed", 0)),
        (Cancel("not wanted"), ("cancelled", "cancelled", 0)),
        (FAILED, ("retrying", "pending", 1)),
        (Snooze(timedelta(hours=1)), ("snoozed", "pending", 0)),
    ],
    ids=["processed", "cancelled", "failed", "snoozed"],
)
def test_unheard_settlement_is_recognised_as_the_keepers_own(
    engine: Engine,
    far: Engine,
    proxy: Proxy,
    outcome: Outcome,
    expected: tuple[str, str, int],
) -> None:
    """The keeper repeats, finds its own verdict, and counts it: not a lost lease, which would tell of a double run."""
    ids = add_many(engine, [{} for _ in range(3)])
    counted, status, fail_count = expected

    tally, raws = kept(far, proxy, outcome, of=3)

    found = tally.report().as_dict()
    assert (found[counted], found["lost_leases"]) == (3, 0), found
    assert by_status(engine) == {status: 3}
    assert {row(engine, id_).fail_count for id_ in ids} == {fail_count}
    assert not any(raw.lease.lost for raw in raws)


def test_unheard_settlement_is_given_up_with_the_lease_and_was_done_once(
    engine: Engine, far: Engine, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut off for longer than the lease: the keeper must give up loudly, and the row is processed and stays so."""
    id_ = add(engine)

    tally, _ = kept(far, proxy, Processed(), lease=timedelta(seconds=2), then="cut")

    settled = columns(engine, id_)
    assert settled["status"] == "processed"
    assert tally.report().lost_leases == 1
    assert "lost the lease" in caplog.text
    proxy.heal()
    assert rescue(far, TABLE, lambda _: AT_ONCE, limit=10) == []
    assert claim_due(far) == []
    assert columns(engine, id_) == settled


def test_lost_lease_is_not_taken_for_an_unheard_settlement(
    engine: Engine, far: Engine, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The settlement never arrived, somebody else processed the row meanwhile: that is a lost lease (S2)."""
    id_, tally = add(engine), Tally()
    raws = claim_due(far)
    with Keeper(far, TABLE, lease=LEASE, tally=tally) as keeper:
        keeper.hold(raws)
        proxy.cut()
        keeper.settle(settlement_for(Processed(), raws[0], AT_ONCE))
        wait_until(lambda: "can't be written" in caplog.text, description="the keeper was refused", timeout=10)
        expire_leases(engine, id_)
        rescue(engine, TABLE, lambda _: AT_ONCE, limit=10)
        make_due(engine, id_)
        settle(engine, TABLE, verdicts(Processed(), claim_due(engine, claimed_by="another")))
        theirs = columns(engine, id_)
        proxy.heal()
        assert keeper.flush(30)

    assert columns(engine, id_) == theirs
    assert tally.report().as_dict()["lost_leases"] == 1
    assert tally.report().processed == 0


def test_unheard_mark_is_repeated_and_changes_nothing(engine: Engine, far: Engine, proxy: Proxy) -> None:
    """The run's id stands on the row, the claim still holds, and the verdict is written as ever."""
    id_, tally = add(engine), Tally()
    (raw,) = claim_due(far)
    with Keeper(far, TABLE, lease=LEASE, tally=tally) as keeper:
        keeper.hold([raw])
        proxy.cut_after(COMMIT)
        keeper.begin((raw.id, raw.claim_count), "run-1")
        wait_until(lambda: proxy.lost_answers == 1, description="the mark's answer is lost", timeout=10)
        wait_until(lambda: row(engine, id_).run_id == "run-1", description="the mark is there", timeout=10)
        keeper.settle(settlement_for(Processed(), raw, AT_ONCE))
        assert keeper.flush(30)

    found = row(engine, id_)
    assert (found.status, found.run_id, found.claim_count) == ("processed", "run-1", 1)
    assert tally.report().lost_leases == 0


def test_unheard_release_costs_no_attempt_and_loses_nothing(engine: Engine, far: Engine, proxy: Proxy) -> None:
    """Given back, though the giver doesn't know: a repeat changes nothing, also when somebody has claimed it since."""
    id_ = add(engine)
    raws = claim_due(far)

    unheard(proxy, lambda: settle(far, TABLE, verdicts(Released(), raws)))
    (theirs,) = claim_due(engine, claimed_by="another")
    held = columns(engine, id_)

    assert settle(far, TABLE, verdicts(Released(), raws)) == set()
    assert columns(engine, id_) == held
    assert (theirs.claim_count, theirs.fail_count) == (2, 0)


def test_renewal_whose_answer_is_lost_keeps_the_lease(engine: Engine, far: Engine, proxy: Proxy) -> None:
    """Renewed once more; nobody else gets the row meanwhile, and the verdict counts."""
    add(engine)
    lease, tally = timedelta(seconds=3), Tally()
    (raw,) = claim_due(far, lease=lease)
    with Keeper(far, TABLE, lease=lease, tally=tally) as keeper:
        proxy.cut_after(COMMIT)
        keeper.hold([raw])
        wait_until(lambda: proxy.lost_answers == 1, description="a renewal's answer is lost", timeout=10)
        first = row(engine, raw.id).lease_expires_at
        wait_until(lambda: row(engine, raw.id).lease_expires_at > first, description="it is renewed again", timeout=10)
        assert rescue(engine, TABLE, lambda _: AT_ONCE, limit=10) == []
        keeper.settle(settlement_for(Processed(), raw, AT_ONCE))
        assert keeper.flush(30)

    assert by_status(engine) == {"processed": 1}
    assert tally.report().as_dict()["lost_leases"] == 0


def process(engine: Engine, ledger: Ledger) -> None:
    """Claim and process what is due, noting it."""
    for raw in claim_due(engine):
        action = raw.action()
        with ledger.attempt(action):
            pass
        settle(engine, TABLE, verdicts(Processed(), [raw]))
