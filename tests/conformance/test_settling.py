"""Settlement: what each verdict writes, and that none is written once the claim is not held any more."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, update
from sqlalchemy.exc import IntegrityError

from prefect_claim_dispatch import claiming, engines
from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dialects import bind_rows, now
from prefect_claim_dispatch.errors import LostLeaseError
from prefect_claim_dispatch.outcomes import (
    Cancel,
    Crashed,
    Failed,
    Outcome,
    Processed,
    Released,
    Snooze,
    Unprocessable,
)
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.settling import recognise, settle, settle_action
from prefect_claim_dispatch.statements.renew import renew as renew_statement
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

FAILED = Failed(error_type="ValueError", message="no such user")
SNOOZE = Snooze(timedelta(seconds=90))
OUTCOMES: list[Outcome] = [
    Processed(),
    FAILED,
    Crashed(),
    Unprocessable(error_type="E", message="m"),
    SNOOZE,
    Cancel("paid"),
    Released(),
]
ONCE = RetryPolicy(max_attempts=1)
SOME_TIME = datetime(2020, 1, 1, tzinfo=UTC)


def claimed(engine: Engine, **values: Any) -> RawAction:
    """One action, claimed."""
    add(engine, **values)
    (raw,) = claim_due(engine)
    return raw


def reclaimed(engine: Engine, raw: RawAction) -> RawAction:
    """The same action after its lease expired, was rescued, and was claimed by somebody else."""
    expire_leases(engine, raw.id)
    rescue(engine, TABLE, lambda _: None, limit=10)
    make_due(engine, raw.id)
    (again,) = claim_due(engine, claimed_by="another-run")
    return again


# What is written


@pytest.mark.parametrize(
    ("outcome", "policy", "expected"),
    [
        (Processed(), RetryPolicy(), {"status": "processed", "fail_count": 0, "errors": 0}),
        (FAILED, RetryPolicy(), {"status": "pending", "fail_count": 1, "errors": 1, "delay": (8.9, 11.1)}),
        (FAILED, ONCE, {"status": "dead", "fail_count": 1, "errors": 1}),
        (Crashed(), RetryPolicy(), {"status": "pending", "fail_count": 1, "errors": 1, "delay": (8.9, 11.1)}),
        (Crashed(), ONCE, {"status": "dead", "fail_count": 1, "errors": 1}),
        (Unprocessable(error_type="E", message="m"), RetryPolicy(), {"status": "dead", "fail_count": 0, "errors": 1}),
        (SNOOZE, RetryPolicy(), {"status": "pending", "fail_count": 0, "errors": 0, "delay": (89.9, 90.1)}),
        (
            Snooze(timedelta(0)),
            RetryPolicy(),
            {"status": "pending", "fail_count": 0, "errors": 0, "delay": (-0.1, 0.1)},
        ),
        (Cancel("paid"), RetryPolicy(), {"status": "cancelled", "fail_count": 0, "errors": 1}),
        (Released(), RetryPolicy(), {"status": "pending", "fail_count": 0, "errors": 0}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Outcome) else None,
)
def test_each_verdict_writes_its_columns(
    engine: Engine, outcome: Outcome, policy: RetryPolicy, expected: dict[str, Any]
) -> None:
    """Design §3, column by column.

    What is terminal is settled, what is pending belongs to nobody, `end_at` moves only where it must.
    """
    raw = claimed(engine, payload={"user": 7})
    before = row(engine, raw.id)

    assert settle(engine, TABLE, verdicts(outcome, [raw], policy), {raw.id: "task-run-1"}) == {raw.id}

    after = row(engine, raw.id)
    is_pending = expected["status"] == "pending"
    assert (after.status, after.fail_count, len(after.errors)) == (
        expected["status"],
        expected["fail_count"],
        expected["errors"],
    )
    assert (after.lease_expires_at, after.claim_count, after.run_id) == (None, 1, "task-run-1")
    assert (after.payload, after.created_at) == (before.payload, before.created_at)
    assert after.processed_at == (after.updated_at if after.status == "processed" else None)
    assert after.settled_at == (None if is_pending else after.updated_at)
    assert (after.claimed_at, after.claimed_by) == ((None, None) if is_pending else (before.claimed_at, "flow-run"))
    if "delay" in expected:
        shortest, longest = expected["delay"]
        assert shortest <= (after.end_at - after.updated_at).total_seconds() <= longest
    else:
        assert after.end_at == before.end_at


def test_many_verdicts_are_one_statement(engine: Engine) -> None:
    """Group commit: the cost of a batch is one round trip, whatever its verdicts are."""
    add_many(engine, [{} for _ in range(700)])
    raws = claim_due(engine)
    mixed = [
        verdict for raw, outcome in zip(raws, OUTCOMES * 100, strict=True) for verdict in verdicts(outcome, [raw], ONCE)
    ]

    with statements_of(engine) as sent:
        settled = settle(engine, TABLE, mixed, {raw.id: f"run-{raw.id}" for raw in raws})

    assert sent == ["settle"]
    assert settled == {raw.id for raw in raws}
    assert by_status(engine) == {"processed": 100, "dead": 300, "pending": 200, "cancelled": 100}
    assert row(engine, raws[5].id).run_id == f"run-{raws[5].id}"


def test_each_row_keeps_its_own_verdict(engine: Engine) -> None:
    """In one statement, given in any order: nobody gets the neighbour's errors, delay or run."""
    add_many(engine, [{} for _ in range(3)])
    first, second, third = claim_due(engine)
    settlements = [
        *verdicts(Failed(error_type="E", message="third"), [third]),
        *verdicts(Processed(), [first]),
        *verdicts(Snooze(timedelta(hours=1)), [second]),
    ]

    settle(engine, TABLE, settlements, {second.id: "run-2"})

    rows = [row(engine, raw.id) for raw in (first, second, third)]
    assert [found.status for found in rows] == ["processed", "pending", "pending"]
    assert [found.run_id for found in rows] == ["flow-run", "run-2", "flow-run"]  # the others' as claimed
    assert [[error["message"] for error in found.errors] for found in rows] == [[], [], ["third"]]
    assert [round((found.end_at - found.now).total_seconds(), -1) for found in rows[1:]] == [3600, 10]


def test_verdict_keeps_the_run_that_began(engine: Engine) -> None:
    """The link into the UI survives a settlement that knows no run."""
    raw = claimed(engine)
    claiming.begin(engine, TABLE, [(raw.id, raw.claim_count, "task-run-1")])

    settle(engine, TABLE, verdicts(Processed(), [raw]))

    assert row(engine, raw.id).run_id == "task-run-1"


def test_nothing_to_settle_is_no_statement(engine: Engine) -> None:
    """An idle keeper costs nothing."""
    with statements_of(engine) as sent:
        assert settle(engine, TABLE, []) == set()
        assert claiming.begin(engine, TABLE, []) == set()
        assert claiming.renew(engine, TABLE, [], lease=LEASE) == set()

    assert sent == []


def test_hostile_error_text_is_stored(engine: Engine) -> None:
    """An error's text is whatever a processor raised; it must never cost the batch its settlement."""
    messages = [
        "\x00 and \ud800",
        "'); DROP TABLE action_logs; --",
        "%s %(a)s :b ?",
        '{"a": "\\u0000"}',
        "\N{SNOWMAN}" * 5_000,
    ]
    add_many(engine, [{} for _ in messages])
    raws = claim_due(engine)
    failures = [Failed.from_exception(ValueError(message)) for message in messages]

    settled = settle(
        engine,
        TABLE,
        [verdict for raw, failed in zip(raws, failures, strict=True) for verdict in verdicts(failed, [raw])],
    )

    assert settled == {raw.id for raw in raws}
    assert [row(engine, raw.id).errors[0]["message"] for raw in raws] == [failed.message for failed in failures]


# The fence


def test_stale_claim_cannot_settle(engine: Engine) -> None:
    """S2: a zombie that finishes late must not overwrite what happens under the claim that came after.

    Whatever its verdict.
    """
    stale = claimed(engine)
    reclaimed(engine, stale)
    before = columns(engine, stale.id)

    settled = [settle(engine, TABLE, verdicts(outcome, [stale]), {stale.id: "zombie"}) for outcome in OUTCOMES]

    assert settled == [set()] * len(OUTCOMES)
    assert columns(engine, stale.id) == before


def test_stale_claim_can_neither_begin_nor_renew(engine: Engine) -> None:
    """S2, for the other two statements that a claim allows."""
    stale = claimed(engine)
    reclaimed(engine, stale)
    before = columns(engine, stale.id)

    assert claiming.begin(engine, TABLE, [(stale.id, stale.claim_count, "zombie")]) == set()
    assert claiming.renew(engine, TABLE, [(stale.id, stale.claim_count)], lease=LEASE) == set()

    assert columns(engine, stale.id) == before


def test_rescued_action_is_held_by_nobody(engine: Engine) -> None:
    """S2 before anybody has claimed it again: `claim_count` is still the same, so the status must be asked too."""
    stale = claimed(engine)
    expire_leases(engine, stale.id)
    rescue(engine, TABLE, lambda _: None, limit=10)
    before = columns(engine, stale.id)

    assert settle(engine, TABLE, verdicts(Processed(), [stale])) == set()
    assert claiming.begin(engine, TABLE, [(stale.id, stale.claim_count, "zombie")]) == set()
    assert claiming.renew(engine, TABLE, [(stale.id, stale.claim_count)], lease=LEASE) == set()

    assert columns(engine, stale.id) == before


@pytest.mark.parametrize("first", [Processed(), Cancel("paid"), Unprocessable(error_type="E", message="m")], ids=str)
def test_terminal_row_never_changes(engine: Engine, first: Outcome) -> None:
    """S3: also not by the very claim that settled it."""
    raw = claimed(engine)
    settle(engine, TABLE, verdicts(first, [raw]))
    before = columns(engine, raw.id)

    for second in OUTCOMES:
        assert settle(engine, TABLE, verdicts(second, [raw]), {raw.id: "again"}) == set()
    assert claiming.begin(engine, TABLE, [(raw.id, raw.claim_count, "again")]) == set()
    assert claiming.renew(engine, TABLE, [(raw.id, raw.claim_count)], lease=LEASE) == set()
    assert claim_due(engine) == []

    assert columns(engine, raw.id) == before


def test_lost_lease_costs_only_its_own_row(engine: Engine) -> None:
    """One stale verdict in a batch: the others are written."""
    add_many(engine, [{}] * 3)
    first, stale, last = claim_due(engine)
    reclaimed(engine, stale)

    settled = settle(engine, TABLE, verdicts(Processed(), [first, stale, last]))

    assert settled == {first.id, last.id}
    assert row(engine, stale.id).claimed_by == "another-run"


def test_verdict_on_a_lease_that_just_ended_still_counts(engine: Engine) -> None:
    """Expired but not rescued: the work was done under the winning claim, so writing it down is right (S7)."""
    raw = claimed(engine)
    expire_leases(engine, raw.id)

    assert settle(engine, TABLE, verdicts(Processed(), [raw])) == {raw.id}


# Begin and renew


def test_begin_writes_the_run_and_nothing_else(engine: Engine) -> None:
    """The link from a row that is being worked on to the Prefect UI."""
    raw = claimed(engine)
    before = columns(engine, raw.id)

    assert claiming.begin(engine, TABLE, [(raw.id, raw.claim_count, "task-run-1")]) == {raw.id}

    after = columns(engine, raw.id)
    assert {name for name in after if after[name] != before[name]} <= {"run_id", "updated_at"}
    assert after["run_id"] == "task-run-1"


def test_renew_counts_from_the_databases_now(engine: Engine) -> None:
    """Not from the old end: a holder that was late must not hoard time."""
    raw = claimed(engine)
    before = columns(engine, raw.id)

    assert claiming.renew(engine, TABLE, [(raw.id, raw.claim_count)], lease=timedelta(seconds=20)) == {raw.id}

    after = columns(engine, raw.id)
    assert after["lease_expires_at"] - after["updated_at"] == timedelta(seconds=20)
    assert {name for name in after if after[name] != before[name]} <= {"lease_expires_at", "updated_at"}


def test_renewal_after_expiry_is_refused(engine: Engine) -> None:
    """Whoever rescues the action must find it, and its holder must learn that it came too late."""
    raw = claimed(engine)
    expire_leases(engine, raw.id)
    before = columns(engine, raw.id)

    assert claiming.renew(engine, TABLE, [(raw.id, raw.claim_count)], lease=LEASE) == set()

    assert columns(engine, raw.id) == before


def test_many_begin_and_renew_in_one_statement(engine: Engine) -> None:
    """A thousand leases are prolonged in one round trip."""
    add_many(engine, [{} for _ in range(100)])
    raws = claim_due(engine)
    ids = {raw.id for raw in raws}

    with statements_of(engine) as sent:
        assert claiming.begin(engine, TABLE, [(raw.id, raw.claim_count, f"run-{raw.id}") for raw in raws]) == ids
        assert claiming.renew(engine, TABLE, [(raw.id, raw.claim_count) for raw in raws], lease=LEASE) == ids

    assert sent == ["begin", "renew"]
    assert all(row(engine, raw.id).run_id == f"run-{raw.id}" for raw in raws[::20])


@pytest.mark.parametrize("which", ["settle", "begin", "renew"])
def test_rows_are_bound_in_order_of_id(engine: Engine, which: str) -> None:
    """Rows are met in the order in which they are bound; two transactions in two orders can lock each other out."""
    add_many(engine, [{"type": type_, "end_at": SOME_TIME - timedelta(days=day)} for day, type_ in enumerate("abcd")])
    raws = claim_due(engine)
    assert [raw.id for raw in raws] == [4, 3, 2, 1]
    bound: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, _statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        bound.append(str(parameters))

    match which:
        case "settle":
            settle(engine, TABLE, verdicts(Processed(), raws))
        case "begin":
            claiming.begin(engine, TABLE, [(raw.id, raw.claim_count, "run") for raw in raws])
        case _:
            claiming.renew(engine, TABLE, [(raw.id, raw.claim_count) for raw in raws], lease=LEASE)

    ids = r"\{1, 2, 3, 4\}" if engine.dialect.name == "postgresql" else r"\[1, .*\[2, .*\[3, .*\[4, "
    assert re.search(ids, bound[-1])


def test_lease_ends_at_its_very_instant(postgres_url: str) -> None:
    """Neither renewed nor rescued then: asked in one transaction, where PostgreSQL's clock stands still."""
    engine = engines.create(postgres_url)
    raw = claimed(engine)
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(lease_expires_at=now()))
        parameters = {**bind_rows("postgresql", "held", {"id": [raw.id], "claim_count": [1]}), "lease_seconds": 60.0}

        renewed = connection.execute(renew_statement(TABLE, "postgresql"), parameters).all()
        rescued = rescue(connection, TABLE, lambda _: None, limit=10)

    assert (renewed, rescued) == ([], [])
    engine.dispose()


# In the caller's transaction


def action_of(raw: RawAction) -> Action:
    """What the processor is given."""
    return raw.action()


def test_settlement_commits_with_the_callers_work(engine: Engine) -> None:
    """Effects exactly once: the effect's row and the verdict are one transaction."""
    raw = claimed(engine)
    action = action_of(raw)

    with engine.begin() as connection:
        effect = connection.execute(insert(TABLE).values(type="effect").returning(TABLE.c.id)).scalar_one()
        settle_action(connection, action)

    assert (row(engine, raw.id).status, row(engine, effect).type) == ("processed", "effect")
    assert raw.lease.settled


def test_action_without_a_lease_can_be_settled(engine: Engine) -> None:
    """One that was sent to another process, or made by hand: the table knows whether the claim holds."""
    action = replace(action_of(claimed(engine)), lease=None)

    with engine.begin() as connection:
        settle_action(connection, action)

    assert row(engine, action.id).status == "processed"


def test_settlement_is_rolled_back_with_the_callers_work(engine: Engine) -> None:
    """No effect, no verdict: the action is claimed as before, and can be settled otherwise."""
    raw = claimed(engine)

    with engine.connect() as connection:
        settle_action(connection, action_of(raw))
        connection.rollback()

    assert row(engine, raw.id).status == "claimed"
    assert settle(engine, TABLE, verdicts(FAILED, [raw])) == {raw.id}


def test_other_outcomes_can_be_settled_too(engine: Engine) -> None:
    """A processor that cancels in its own transaction."""
    raw = claimed(engine)

    with engine.begin() as connection:
        settle_action(connection, action_of(raw), Cancel("paid meanwhile"))

    assert (row(engine, raw.id).status, row(engine, raw.id).errors[0]["message"]) == ("cancelled", "paid meanwhile")


def test_lost_lease_spoils_the_callers_transaction(engine: Engine) -> None:
    """A zombie that wakes up before its effect: the error makes it roll back, so that nothing happens twice."""
    stale = claimed(engine)
    action = action_of(stale)
    reclaimed(engine, stale)

    with pytest.raises(LostLeaseError) as caught, engine.begin() as connection:
        connection.execute(insert(TABLE).values(type="effect"))
        settle_action(connection, action)

    assert (caught.value.action_id, caught.value.claim_count) == (stale.id, 1)
    assert by_status(engine) == {"claimed": 1}
    assert not stale.lease.settled


# What no statement at all can write


IMPOSSIBLE: list[dict[str, Any]] = [
    {"status": "running"},
    {"status": "claimed"},
    {"status": "claimed", "claimed_at": SOME_TIME},
    {"status": "claimed", "lease_expires_at": SOME_TIME},
    {"lease_expires_at": SOME_TIME},
    {"claimed_at": SOME_TIME},
    {"status": "processed"},
    {"status": "processed", "settled_at": SOME_TIME},
    {"status": "processed", "processed_at": SOME_TIME},
    {"status": "dead"},
    {"status": "cancelled"},
    {"status": "dead", "settled_at": SOME_TIME, "processed_at": SOME_TIME},
    {"settled_at": SOME_TIME},
    {"processed_at": SOME_TIME},
    {"fail_count": -1},
    {"claim_count": -1},
    {"type": ""},
    {"end_at": datetime(1, 1, 1, tzinfo=UTC)},
    {"end_at": datetime(9999, 12, 31, tzinfo=UTC)},
    {"created_at": datetime(1, 1, 1, tzinfo=UTC)},
]


def test_impossible_states_are_refused_by_the_database(engine: Engine) -> None:
    """Raw SQL, an operator's slip or a bug of ours: the row that nobody could explain is never written."""
    id_ = add(engine)
    before = columns(engine, id_)

    written: list[dict[str, Any]] = []
    for values in IMPOSSIBLE:
        with suppress(IntegrityError):
            change(engine, id_, **values)
            written.append(values)
        with suppress(IntegrityError), engine.begin() as connection:
            connection.execute(insert(TABLE).values({"type": "a", **values}))
            written.append(values)

    assert written == []
    assert columns(engine, id_) == before


@pytest.mark.parametrize(
    "instant",
    [
        "2026-01-31T12:00:00",
        "2026-01-31 12:00:00+00:00",
        "2026-01-31 12:00:00Z",
        "2026-01-31",
        "2026-01-31 12:00",
        "2026-02-30 12:00:00",
        "2026-01-31 24:00:00",
        "2026-01-31 12:00:00.",
        "tomorrow",
        "now",
        "",
        1_769_860_800,
        b"2026-01-31 12:00:00",
    ],
    ids=str,
)
def test_sqlite_refuses_instants_that_do_not_sort(sqlite_url: str, instant: Any) -> None:
    """On SQLite instants are compared as text; one in another form would be due always or never."""
    engine = engines.create(sqlite_url)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO action_logs (type, end_at) VALUES ('a', ?)", (instant,))
    engine.dispose()


@pytest.mark.parametrize(
    "instant", ["2026-01-31 12:00:00", "2026-01-31 12:00:00.5", "2026-01-31 12:00:00.123456", "2024-02-29 23:59:59"]
)
def test_sqlite_takes_instants_that_sort(sqlite_url: str, instant: str) -> None:
    """What `datetime('now')`, `strftime('%f')` and we ourselves write."""
    engine = engines.create(sqlite_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO action_logs (type, end_at) VALUES ('a', ?)", (instant,))

    assert row(engine, 1).end_at == datetime.fromisoformat(instant).replace(tzinfo=UTC)
    engine.dispose()


def test_idempotency_key_is_unique_within_its_type(engine: Engine) -> None:
    """S6, by the database and not by a query that could race."""
    add(engine, "a", idempotency_key="k")
    add(engine, "b", idempotency_key="k")
    add(engine, "a"), add(engine, "a")

    with pytest.raises(IntegrityError):
        add(engine, "a", idempotency_key="k")


def test_lease_in_the_past_is_no_impossible_state(engine: Engine) -> None:
    """It is what a crash leaves behind."""
    raw = claimed(engine)

    change(engine, raw.id, lease_expires_at=seconds_from_now(-3600))

    assert row(engine, raw.id).status == "claimed"


def test_settlement_that_was_not_heard_of_is_recognised_and_a_rescue_is_not(engine: Engine) -> None:
    """Whoever holds the claim must tell "I settled it" from "I lost it" when the COMMIT's answer did not come."""
    ids = add_many(engine, [{} for _ in range(5)])
    raws = claim_due(engine)
    done, snoozed, rescued, held, unreadable = raws
    claims = [(raw.id, raw.claim_count) for raw in raws]
    settle(engine, TABLE, verdicts(Processed(), [done, unreadable]))
    settle(engine, TABLE, verdicts(Snooze(timedelta(0)), [snoozed]))
    expire_leases(engine, rescued.id)
    rescue(engine, TABLE, lambda _: None, limit=10)
    change(engine, unreadable.id, errors=["?"])

    assert recognise(engine, TABLE, claims) == {done.id, snoozed.id}

    make_due(engine, rescued.id, snoozed.id)
    assert {raw.id for raw in claim_due(engine)} == {rescued.id, snoozed.id}
    assert recognise(engine, TABLE, claims) == {done.id, snoozed.id}, "also when others have claimed them since"
    assert held.id in ids
    assert recognise(engine, TABLE, []) == set()


def test_settlement_of_another_is_not_taken_for_ones_own(engine: Engine) -> None:
    """Asked for one claim, the answer must not depend on what else stands in the table."""
    add_many(engine, [{} for _ in range(3)])
    done, held, _ = claim_due(engine)
    settle(engine, TABLE, verdicts(Processed(), [done]))

    assert recognise(engine, TABLE, [(held.id, held.claim_count)]) == set()
    assert recognise(engine, TABLE, [(done.id, done.claim_count)]) == {done.id}


def test_failure_is_a_settlement_and_an_earlier_crash_another_claims_end(engine: Engine) -> None:
    """Only a crash under this very claim says that it was rescued."""
    add_many(engine, [{} for _ in range(2)])
    failed, crashed = claim_due(engine)
    settle(engine, TABLE, verdicts(FAILED, [failed]))
    again = reclaimed(engine, crashed)
    settle(engine, TABLE, verdicts(Processed(), [again]))

    first, second = [(failed.id, 1), (crashed.id, 1)], [(crashed.id, 2)]
    assert recognise(engine, TABLE, first) == {failed.id}
    assert recognise(engine, TABLE, second) == {crashed.id}


@pytest.mark.parametrize("errors", ["not json", "[{}]", "[[]]", "7", "[" * 50_000 + "]" * 50_000], ids=len)
def test_record_that_cannot_be_read_recognises_nothing(sqlite_url: str, errors: str) -> None:
    """Whoever wrote it; the claim is given up as lost, and nobody's process ends over it."""
    engine = engines.create(sqlite_url)
    raw = claimed(engine)
    settle(engine, TABLE, verdicts(Processed(), [raw]))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE action_logs SET errors = ?", (errors,))

    assert recognise(engine, TABLE, [(raw.id, raw.claim_count)]) == set()
    engine.dispose()
