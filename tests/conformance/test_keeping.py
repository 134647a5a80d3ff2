"""The keeper against a real table: group commit, renewal, lost leases, and a database that is away for a while."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.keeping import BATCH, Keeper
from prefect_claim_dispatch.outcomes import Cancel, Failed, Outcome, Processed, Snooze
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.settling import settle, settle_action
from tests.kit.lives import said
from tests.kit.processes import Child, Processes
from tests.kit.tables import (
    LEASE,
    POLICY,
    TABLE,
    add,
    add_many,
    by_status,
    claim_due,
    columns,
    expire_leases,
    make_due,
    row,
    statements_of,
    verdicts,
)
from tests.kit.waiting import wait_until

FAILED = Failed(error_type="E", message="m")
takes_the_database_away = pytest.mark.not_through_pgbouncer(
    reason="it ends server connections, of which pgbouncer's clients hear only after its query_wait_timeout"
)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a database with an empty action table; on SQLite one that gives up waiting for a lock at once."""
    engine = engines.create(database_url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA busy_timeout = 20"))
    yield engine
    engine.dispose()


@pytest.fixture
def tally() -> Tally:
    """What the keeper counts."""
    return Tally()


@pytest.fixture
def keeper(engine: Engine, tally: Tally) -> Iterator[Keeper]:
    """A keeper whose leases are far from ending by themselves."""
    with Keeper(engine, TABLE, lease=LEASE, tally=tally) as keeper:
        yield keeper


def held(engine: Engine, keeper: Keeper, number: int = 1) -> list[RawAction]:
    """So many claimed actions in the keeper's hands."""
    add_many(engine, [{} for _ in range(number)])
    raws = claim_due(engine, limit=number)
    keeper.hold(raws)
    return raws


def settle_all(keeper: Keeper, raws: list[RawAction], outcome: Outcome) -> None:
    for settlement in verdicts(outcome, raws):
        keeper.settle(settlement)


@contextmanager
def database_away(engine: Engine) -> Iterator[None]:
    """Nobody can write the table meanwhile, and whoever tries gets an error at once."""
    if engine.dialect.name == "sqlite":
        other = create_engine(engine.url, connect_args={"timeout": 30})
        with other.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield
            connection.rollback()
        other.dispose()
        return
    admin = engines.create(engine.url.set(database="postgres").render_as_string(hide_password=False))
    name = engine.url.database
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.exec_driver_sql(
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        yield
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    admin.dispose()


# Settling


def test_verdicts_are_written_within_a_fraction_of_a_second(engine: Engine, keeper: Keeper, tally: Tally) -> None:
    """Without anybody asking for it: a row must not stay claimed because its company never came."""
    (raw,) = held(engine, keeper)

    settle_all(keeper, [raw], Processed())

    wait_until(lambda: row(engine, raw.id).status == "processed", description="the verdict is written", timeout=5)
    wait_until(lambda: tally.report().processed == 1, description="the verdict is counted", timeout=5)


@pytest.mark.parametrize("number", [100, 2 * BATCH + 1])
def test_verdicts_that_come_together_are_written_together(
    engine: Engine, keeper: Keeper, tally: Tally, number: int
) -> None:
    """Group commit: statements by the batch, not by the row."""
    raws = held(engine, keeper, number)

    with statements_of(engine) as sent:
        settle_all(keeper, raws, Processed())
        assert keeper.flush(30)

    assert set(sent) == {"settle"}
    assert len(sent) <= number // BATCH + 3
    assert by_status(engine) == {"processed": number}
    assert tally.report().by_type == {"a": {"processed": number}}


def test_first_verdict_counts(engine: Engine, keeper: Keeper, tally: Tally) -> None:
    """An attempt that was ended at its timeout may still come back and say that it is done."""
    raws = held(engine, keeper)

    settle_all(keeper, raws, FAILED)
    settle_all(keeper, raws, Processed())
    assert keeper.flush(10)
    settle_all(keeper, raws, Processed())
    assert keeper.flush(10)

    assert row(engine, raws[0].id).fail_count == 1
    assert (tally.report().retrying, tally.report().processed, tally.report().lost_leases) == (1, 0, 0)


def test_close_writes_what_is_left(engine: Engine, tally: Tally) -> None:
    """The last verdicts of a run; claims without one are left to their leases."""
    with Keeper(engine, TABLE, lease=LEASE, tally=tally) as keeper:
        raws = held(engine, keeper, 3)
        settle_all(keeper, raws[:2], Processed())

    assert by_status(engine) == {"processed": 2, "claimed": 1}
    assert tally.report().processed == 2


def test_idle_keeper_sends_nothing(engine: Engine, tally: Tally) -> None:
    """A flow that claimed nothing starts no thread and no process, and closes at once."""
    with statements_of(engine) as sent, Keeper(engine, TABLE, lease=LEASE, tally=tally) as keeper:
        keeper.hold([])
        assert keeper.flush(1)

    assert sent == []


# Begin


def test_verdicts_on_two_claims_of_one_action_are_told_apart(engine: Engine, keeper: Keeper, tally: Tally) -> None:
    """A flow may lose an action and be the one that claims it again: its first verdict is lost, its second counts."""
    (first,) = held(engine, keeper)
    expire_leases(engine, first.id)
    rescue(engine, TABLE, lambda _: POLICY, limit=1)
    make_due(engine, first.id)
    (second,) = claim_due(engine)
    keeper.hold([second])

    settle_all(keeper, [first, second], Processed())
    assert keeper.flush(10)

    assert (first.id, second.claim_count) == (second.id, first.claim_count + 1)
    assert (tally.report().processed, tally.report().lost_leases) == (1, 1)
    assert (first.lease.lost, second.lease.lost) == (True, False)
    assert row(engine, first.id).status == "processed"


def test_run_that_begins_after_its_verdict_is_of_no_account(engine: Engine, keeper: Keeper, tally: Tally) -> None:
    """A thread that comes late, when the action was given back already, must not disturb the keeper."""
    first, second = held(engine, keeper, 2)
    settle_all(keeper, [first, second], Processed())

    keeper.begin((first.id, first.claim_count), "too-late")
    assert keeper.flush(10)
    keeper.begin((second.id, second.claim_count), "much-too-late")
    assert keeper.flush(10)

    assert [row(engine, raw.id).run_id for raw in (first, second)] == ["flow-run"] * 2  # as claimed
    assert tally.report().processed == 2


def test_work_may_begin_when_the_table_knows_it(engine: Engine, keeper: Keeper) -> None:
    """Not a moment before: who is killed then must have lost an attempt."""
    add_many(engine, [{}] * 3)
    raws = claim_due(engine, may_begin=False)
    keeper.hold(raws)

    assert keeper.allow(raws[:2], "flow-run", timeout=10)

    assert [row(engine, raw.id).run_id for raw in raws] == ["flow-run", "flow-run", None]
    assert [raw.lease.may_begin for raw in raws] == [True, True, False]
    assert keeper.allow(raws[:2], "flow-run", timeout=0)  # as it is


def test_verdicts_before_it_are_written_first(engine: Engine, keeper: Keeper) -> None:
    """A suspect that kills its process takes nothing with it that had ended when it was allowed to begin."""
    add_many(engine, [{}] * (2 * BATCH + 100))
    *ended, last = claim_due(engine, limit=5 * BATCH, may_begin=False)
    keeper.hold([*ended, last])
    settle_all(keeper, ended, Processed())

    assert keeper.allow([last], "flow-run", timeout=30)

    assert by_status(engine) == {"processed": len(ended), "claimed": 1}


def test_lost_claim_may_not_begin(engine: Engine, keeper: Keeper) -> None:
    """The mark finds out, before anything is done twice."""
    add(engine)
    (raw,) = claim_due(engine, may_begin=False)
    keeper.hold([raw])
    expire_leases(engine, raw.id)
    rescue(engine, TABLE, lambda _: POLICY, limit=9)

    keeper.allow([raw], "flow-run", timeout=10)

    assert raw.lease.lost
    assert not raw.lease.holds


def test_claim_that_was_kept_waiting_may_begin_later(engine: Engine, keeper: Keeper) -> None:
    """What was claimed to begin at once and had to wait gets its mark when its turn has come."""
    add(engine, fail_count=1, errors=[{"kind": "crashed", "claim_count": 1}])
    (raw,) = claim_due(engine, kept_waiting=list)
    keeper.hold([raw])

    keeper.allow([raw], "flow-run", timeout=10)

    assert (row(engine, raw.id).run_id, raw.lease.may_begin) == ("flow-run", True)


@takes_the_database_away
def test_nothing_may_begin_while_the_table_can_not_be_written(engine: Engine, keeper: Keeper) -> None:
    """The flow goes on with what it has begun; the rest waits, and begins when the table is back."""
    add(engine)
    (raw,) = claim_due(engine, may_begin=False)
    keeper.hold([raw])

    with database_away(engine):
        assert not keeper.allow([raw], "flow-run", timeout=10)
        assert not keeper.allow([raw], "flow-run", timeout=0.1)
        assert not raw.lease.may_begin

    wait_until(lambda: keeper.allow([raw], "flow-run", timeout=1), description="it may begin", timeout=20)
    assert row(engine, raw.id).run_id == "flow-run"


def test_run_is_on_the_row_while_it_works(engine: Engine, keeper: Keeper) -> None:
    """Within a fraction of a second of the start: the link from the row to the Prefect UI."""
    raws = held(engine, keeper, 20)

    for raw in raws:
        keeper.begin((raw.id, raw.claim_count), f"run-{raw.id}")

    wait_until(
        lambda: all(row(engine, raw.id).run_id == f"run-{raw.id}" for raw in raws),
        description="all runs are on their rows",
        timeout=5,
    )
    assert by_status(engine) == {"claimed": 20}


def test_short_attempt_is_begun_and_settled_in_one_statement(engine: Engine, keeper: Keeper) -> None:
    """The run is on the row no later than the verdict, and a fast row costs no extra statement."""
    raws = held(engine, keeper, 20)

    with statements_of(engine) as sent:
        for raw in raws:
            keeper.begin((raw.id, raw.claim_count), f"run-{raw.id}")
            settle_all(keeper, [raw], Processed())
        assert keeper.flush(10)

    assert sent.count("settle") <= 2
    assert sent.count("begin") <= 1
    assert all(row(engine, raw.id).run_id == f"run-{raw.id}" for raw in raws)


# Lost leases


def test_lost_lease_is_counted_and_overwrites_nothing(
    engine: Engine, keeper: Keeper, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    """S2, and loudly: another run may be doing the same work at this moment."""
    kept, lost = held(engine, keeper, 2)
    expire_leases(engine, lost.id)
    rescue(engine, TABLE, lambda _: None, limit=10)
    make_due(engine, lost.id)
    claim_due(engine, claimed_by="another-run")
    before = columns(engine, lost.id)

    with caplog.at_level(logging.ERROR):
        settle_all(keeper, [kept, lost], Processed())
        assert keeper.flush(10)
    wait_until(lambda: tally.report().lost_leases == 1, description="the lost lease is counted", timeout=5)

    assert columns(engine, lost.id) == before
    assert row(engine, kept.id).status == "processed"
    assert tally.report().processed == 1
    assert lost.lease.lost
    assert not lost.lease.holds
    assert [record.message for record in caplog.records if "lost the lease" in record.message] == [
        f"a #{lost.id} (attempt 1): lost the lease of claim 1; its verdict (processed) was not written, "
        "another run may do the work again"
    ]


def test_verdict_written_by_the_processor_is_no_lost_lease(engine: Engine, keeper: Keeper, tally: Tally) -> None:
    """A transactional settle: the keeper finds the action settled, counts it, and leaves it."""
    (raw,) = held(engine, keeper)
    with engine.begin() as connection:
        settle_action(connection, raw.action())
    before = columns(engine, raw.id)

    settle_all(keeper, [raw], Processed())
    assert keeper.flush(10)

    wait_until(lambda: tally.report().processed == 1, description="the verdict is counted", timeout=5)
    assert tally.report().lost_leases == 0
    assert columns(engine, raw.id) == before


def test_verdict_that_the_processor_wrote_is_counted_as_the_table_has_it(
    engine: Engine, keeper: Keeper, tally: Tally
) -> None:
    """Snoozed in its own transaction, and left normally: the report says snoozed, as the row does."""
    snoozed, cancelled, failed = held(engine, keeper, 3)
    with engine.begin() as connection:
        settle_action(connection, snoozed.action(), Snooze(timedelta(hours=1)))
        settle_action(connection, cancelled.action(), Cancel("not wanted"))
        settle_action(connection, failed.action(), Failed(error_type="E", message="m"))

    settle_all(keeper, [snoozed, cancelled, failed], Processed())
    assert keeper.flush(10)

    report = tally.report()
    assert (report.processed, report.snoozed, report.cancelled, report.retrying) == (0, 1, 1, 1)
    assert report.lost_leases == 0


def test_verdict_that_was_rolled_back_is_not_counted_as_written(engine: Engine, keeper: Keeper, tally: Tally) -> None:
    """The error was swallowed: what the processor returned counts then, and if the claim is lost, nothing does."""
    kept, lost = held(engine, keeper, 2)
    for raw in (kept, lost):
        with engine.connect() as connection:
            settle_action(connection, raw.action())
            connection.rollback()
    expire_leases(engine, lost.id)
    rescue(engine, TABLE, lambda _: None, limit=10)

    settle_all(keeper, [kept, lost], Processed())
    assert keeper.flush(10)

    assert [row(engine, raw.id).status for raw in (kept, lost)] == ["processed", "pending"]
    report = tally.report()
    assert (report.processed, report.lost_leases) == (1, 1)
    assert lost.lease.lost


# Renewal


def test_lease_is_kept_alive_however_busy_python_is(database_url: str, children: Processes, tmp_path: Path) -> None:
    """Several lease lengths, four threads of pure Python: the row stays the keeper's, and its verdict counts."""
    engine = engines.create(database_url)
    id_, end = add(engine), tmp_path / "end"
    child = children.python("-m", "tests.kit.lives", "keep", database_url, "4", "busy", str(end))
    wait_until(lambda: said(child.output).get("claimed") or ended(child), description="the row is claimed", timeout=30)
    leases: set[str] = set()

    def renewed_often() -> bool:
        found = row(engine, id_)
        assert (found.status, found.claimed_by, found.claim_count) == ("claimed", "the-keeper", 1), child.errors
        assert found.now < found.lease_expires_at, "the lease ran out"
        leases.add(str(found.lease_expires_at))
        return len(leases) >= 7  # each a third of a lease after the last: more than two lengths

    wait_until(renewed_often, description="the lease was renewed six times", timeout=60)
    assert rescue(engine, TABLE, lambda _: None, limit=10) == []
    end.touch()
    child.expect_success()

    assert said(child.output)["report"]["processed"] == 1
    assert row(engine, id_).status == "processed"
    engine.dispose()


def ended(child: Child) -> bool:
    assert child.is_running, child.errors
    return False


def test_lease_that_the_table_does_not_renew_is_lost(engine: Engine, tally: Tally) -> None:
    """A processor that asks whether its lease still holds hears it before its next effect."""
    lease = timedelta(seconds=6)
    with Keeper(engine, TABLE, lease=lease, tally=tally) as keeper:
        add(engine)
        (raw,) = claim_due(engine, lease=lease)
        action = raw.action()
        expire_leases(engine, raw.id)
        rescue(engine, TABLE, lambda _: None, limit=10)
        assert action.lease_holds
        keeper.hold([raw])

        wait_until(lambda: not action.lease_holds, description="the lease is known to be lost", timeout=5)

    assert row(engine, raw.id).status == "pending"


def test_lease_of_an_earlier_claim_is_lost_although_the_later_is_renewed(engine: Engine, tally: Tally) -> None:
    """A flow that woke late and claimed its own row again holds two claims of it; the table's answer names only the id.

    The earlier, believed to hold, would begin to work beside the later, and its processor would be told to go on.
    """
    lease = timedelta(seconds=6)
    with Keeper(engine, TABLE, lease=lease, tally=tally) as keeper:
        add(engine)
        (earlier,) = claim_due(engine, lease=lease)
        expire_leases(engine, earlier.id)
        rescue(engine, TABLE, lambda _: POLICY, limit=10)
        make_due(engine, earlier.id)
        (later,) = claim_due(engine, lease=lease)
        expires = later.lease.expires
        keeper.hold([earlier, later])

        wait_until(lambda: later.lease.expires > expires, description="the later claim is renewed", timeout=5)
        wait_until(lambda: earlier.lease.lost, description="the earlier claim is known to be lost", timeout=2)

        assert later.lease.holds


# A database that is away


@takes_the_database_away
def test_verdicts_wait_for_a_database_that_is_away(
    engine: Engine, keeper: Keeper, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    """A restart in the middle of a batch costs no work: the verdict is written when the database is back."""
    raws = held(engine, keeper, 5)

    with caplog.at_level(logging.WARNING):
        with database_away(engine):
            settle_all(keeper, raws, Processed())
            wait_until(lambda: is_logged(caplog, "trying again in"), description="the keeper noticed", timeout=10)
            assert not keeper.flush(0.1)
        assert keeper.flush(20)

    assert by_status(engine) == {"processed": 5}
    wait_until(lambda: tally.report().processed == 5, description="all are counted", timeout=5)
    assert tally.report().lost_leases == 0


@takes_the_database_away
def test_run_marks_wait_for_a_database_that_is_away(
    engine: Engine, keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    """So does the link into the UI."""
    raws = held(engine, keeper, 5)

    with caplog.at_level(logging.WARNING), database_away(engine):
        for raw in raws:
            keeper.begin((raw.id, raw.claim_count), f"run-{raw.id}")
        wait_until(lambda: is_logged(caplog, "trying again in"), description="the keeper noticed", timeout=10)

    wait_until(
        lambda: all(row(engine, raw.id).run_id == f"run-{raw.id}" for raw in raws),
        description="all runs are on their rows",
        timeout=20,
    )


@takes_the_database_away
def test_verdict_is_given_up_loudly_when_its_lease_is_over(
    engine: Engine, keeper: Keeper, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the table will hand the action to somebody else; writing later could only confuse."""
    kept, late = held(engine, keeper, 2)

    with caplog.at_level(logging.WARNING):
        with database_away(engine):
            settle_all(keeper, [kept, late], Processed())
            wait_until(lambda: is_logged(caplog, "trying again in"), description="the keeper noticed", timeout=10)
            late.lease.expires = elapsed_clock()
            wait_until(lambda: tally.report().lost_leases == 1, description="one is given up", timeout=20)
        assert keeper.flush(20)

    assert (row(engine, kept.id).status, row(engine, late.id).status) == ("processed", "claimed")
    assert is_logged(caplog, f"a #{late.id} (attempt 1): lost the lease of claim 1")
    assert not is_logged(caplog, f"a #{kept.id} (attempt 1): lost")


@takes_the_database_away
def test_close_gives_up_when_the_leases_are_over(
    engine: Engine, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    """A flow must be able to end while the database is away; its claims are rescued later."""
    with database_away_at_the_end(engine) as go_away, Keeper(engine, TABLE, lease=LEASE, tally=tally) as keeper:
        (raw,) = held(engine, keeper)
        go_away()
        raw.lease.expires = elapsed_clock()
        settle_all(keeper, [raw], Processed())

    assert tally.report().lost_leases == 1
    assert row(engine, raw.id).status == "claimed"


@contextmanager
def database_away_at_the_end(engine: Engine) -> Iterator[Callable[[], object]]:
    away = database_away(engine)
    yield away.__enter__
    away.__exit__(None, None, None)


def is_logged(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return any(words in record.getMessage() for record in list(caplog.records))


# What else a keeper meets


def test_other_keeper_is_not_disturbed(engine: Engine, tally: Tally) -> None:
    """Two claim flows in one process, or two processes: each settles its own."""
    with Keeper(engine, TABLE, lease=LEASE, tally=tally) as one, Keeper(engine, TABLE, lease=LEASE, tally=tally) as two:
        first, second = held(engine, one, 5), held(engine, two, 5)
        settle_all(one, first, Processed())
        settle_all(two, second, FAILED)
        settle_all(one, second, Processed())  # not held there: not its business

    report = tally.report()
    assert (report.processed, report.retrying, report.lost_leases) == (5, 5, 0)
    assert {row(engine, raw.id).fail_count for raw in second} == {1}


def test_settled_actions_are_forgotten(engine: Engine, keeper: Keeper) -> None:
    """A flow that stays for days must not renew, or remember, what it has long settled."""
    raws = held(engine, keeper, 10)
    settle_all(keeper, raws, Processed())
    assert keeper.flush(10)

    with statements_of(engine) as sent:
        assert settle(engine, TABLE, verdicts(Processed(), raws)) == set()
        settle_all(keeper, raws, FAILED)
        assert keeper.flush(10)

    assert sent == ["settle"]  # the test's own


def test_sentinel_ends_with_its_keeper(engine: Engine, keeper: Keeper) -> None:
    """No process is left behind by a flow that ended well."""
    held(engine, keeper)
    assert keeper._sentinel is not None
    pid = keeper._sentinel._process.pid
    os.kill(pid, 0)

    keeper.close()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
