"""What a person on call does to the table, and what the table does not let them do."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, insert, select, text, update

from prefect_claim_dispatch import engines, migrations, operations
from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.dialects import now_plus
from prefect_claim_dispatch.errors import (
    ActionNotFoundError,
    ConfigurationError,
    InvalidInstantError,
    SchemaMissingError,
)
from prefect_claim_dispatch.schema import actions_table

TABLE = actions_table()
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def insert_action(engine: Engine, status: str = "pending", **values: Any) -> int:
    """One row in *status*, as the loop would have left it."""
    row: dict[str, Any] = {"type": "email.welcome", "status": status}
    if status != "pending":
        row |= {"claimed_at": LONG_AGO, "claimed_by": "flow-run", "claim_count": 3, "fail_count": 2}
    if status == "claimed":
        row |= {"lease_expires_at": LONG_AGO}
    if status in ("processed", "dead", "cancelled"):
        row |= {"settled_at": LONG_AGO}
    if status == "processed":
        row |= {"processed_at": LONG_AGO}
    with engine.begin() as connection:
        return connection.execute(insert(TABLE).values(row | values).returning(TABLE.c.id)).scalar_one()


def insert_hostile(connection: Connection) -> None:
    """Rows that nobody should have written, as far as each database lets one."""
    if connection.dialect.name == "sqlite":
        hostile = [
            ("'not json'", "'[}'"),
            ("x'ff00'", "7"),
            ("'[1e999]'", "'{}'"),
            ("'" + "[" * 100_000 + "'", "'[1]'"),
        ]
        statement = "INSERT INTO action_logs (type, payload, errors) VALUES ('raw', {}, {})"
        for payload, errors in hostile:
            connection.exec_driver_sql(statement.format(payload, errors))
        connection.execute(text("UPDATE action_logs SET updated_at = '2026-01-31 12:00:00', run_id = x'fe'"))
    else:
        statement = "INSERT INTO action_logs (type, payload, errors, updated_at) VALUES ('raw', {}, {}, {})"
        hostile = [
            ("'[1]'", "'7'", "'infinity'"),
            ("'\"text\"'", "'[1]'", "'0044-03-15 BC'"),
            ("'1e999'", "'{}'", "now()"),
        ]
        for values in hostile:
            connection.exec_driver_sql(statement.format(*values))


def test_get_returns_every_column(engine: Engine) -> None:
    """`show` is what somebody looks at in the night: nothing may be missing."""
    id_ = insert_action(engine, "dead", payload={"to": "ada"}, errors=[{"message": "no route"}], priority=4)

    row = operations.get(engine, id_)

    assert set(row.as_dict()) == {column.key for column in TABLE.c}
    assert (row.payload, row.priority, row.status) == ({"to": "ada"}, 4, ActionStatus.DEAD)
    assert (row.settled_at, row.last_error) == (LONG_AGO, "no route")
    assert json.loads(json.dumps(row.as_dict()))["settled_at"] == "2020-01-01T00:00:00+00:00"


@pytest.mark.parametrize("id_", [1, 0, -1, 2**63, 10**30])
def test_get_of_no_action_says_so(engine: Engine, id_: int) -> None:
    """Also for numbers that no column can hold."""
    with pytest.raises(ActionNotFoundError, match=f"no action #{id_} in action_logs"):
        operations.get(engine, id_)


def test_find_answers_newest_first_and_at_most_limit(engine: Engine) -> None:
    """A terminal shows the beginning of a listing, so the newest belong there."""
    ids = [insert_action(engine) for _ in range(3)]

    assert [row.id for row in operations.find(engine, limit=2)] == [ids[2], ids[1]]
    assert [row.id for row in operations.find(engine, limit=None)] == ids[::-1]


def test_find_combines_filters(engine: Engine) -> None:
    """Each narrows what the others have left."""
    old = insert_action(engine, "dead", created_at=LONG_AGO, idempotency_key="k")
    new = insert_action(engine, "dead")
    other = insert_action(engine, type="other")

    def found(**where: Any) -> set[int]:
        return {row.id for row in operations.find(engine, **where)}

    assert found(type="email.welcome") == {old, new}
    assert found(type="email.welcome", older_than=timedelta(days=1)) == {old}
    assert found(status="dead", ids=[new, other, 2**70]) == {new}
    assert found(status=["dead", "pending"]) == {old, new, other}
    assert found(idempotency_key="k") == {old}
    assert found(ids=[]) == set()
    assert operations.find_ids(engine, status="dead") == [old, new]


@pytest.mark.parametrize(
    "where",
    [
        {"status": "done"},
        {"limit": 0},
        {"older_than": timedelta(seconds=-1)},
        {"older_than": timedelta.max},
        {"type": "nul\0"},
        {"idempotency_key": "\ud800"},
    ],
)
def test_find_refuses_what_makes_no_sense(engine: Engine, where: dict[str, Any]) -> None:
    """With our error, on both databases, instead of the driver's on one."""
    with pytest.raises(ConfigurationError):
        operations.find(engine, **where)


def test_hostile_rows_are_shown_and_counted(engine: Engine) -> None:
    """One row written by raw SQL must not blind the people who look for it."""
    good = insert_action(engine, payload={"fine": True})
    with engine.begin() as connection:
        insert_hostile(connection)

    rows = operations.find(engine)

    assert len(rows) == (4 if engine.dialect.name == "postgresql" else 5)
    assert rows[-1].id == good
    assert rows[-1].payload == {"fine": True}
    assert all(row.errors == () for row in rows)
    json.dumps([row.as_dict() for row in rows], allow_nan=False)
    assert {counts.type: counts.due for counts in operations.counts(engine).types}["raw"] == len(rows) - 1


def test_hostile_rows_can_be_cancelled(engine: Engine) -> None:
    """That is what one does with them; their broken errors are replaced by the reason."""
    with engine.begin() as connection:
        insert_hostile(connection)

    changed = operations.cancel(engine, type="raw", reason="broken")

    assert len(changed) >= 3
    assert {row.last_error for row in operations.find(engine)} == {"broken"}


def test_counts_tell_what_waits_and_what_hangs(engine: Engine) -> None:
    """The numbers that alerts are made of."""
    insert_action(engine, end_at=datetime.now(UTC) - timedelta(minutes=10))
    insert_action(engine, end_at=datetime.now(UTC) + timedelta(minutes=10))
    insert_action(engine, "claimed", type="video.encode")
    insert_action(engine, "processed", type="video.encode")

    counts = operations.counts(engine)

    assert [kind.type for kind in counts.types] == ["email.welcome", "video.encode"]
    assert counts.statuses == {"pending": 2, "claimed": 1, "processed": 1, "dead": 0, "cancelled": 0}
    assert (counts.due, counts.expired_leases) == (1, 1)
    assert counts.oldest_due_age is not None
    assert timedelta(minutes=9) < counts.oldest_due_age < timedelta(minutes=11)
    assert json.loads(json.dumps(counts.as_dict()))["types"][1]["expired_leases"] == 1


def test_counts_of_an_empty_table(engine: Engine) -> None:
    """Nothing is due, and nothing fails."""
    counts = operations.counts(engine)

    assert (counts.types, counts.due, counts.oldest_due_age, counts.expired_leases) == ((), 0, None, 0)


@pytest.mark.parametrize("status", list(ActionStatus))
def test_cancel_touches_pending_actions_only(engine: Engine, status: ActionStatus) -> None:
    """A claimed action is being worked on; a settled one is history."""
    id_ = insert_action(engine, status)

    changed = operations.cancel(engine, id_, reason="order withdrawn")

    row = operations.get(engine, id_)
    if status is ActionStatus.PENDING:
        assert (changed, row.status, row.last_error) == ([id_], ActionStatus.CANCELLED, "order withdrawn")
        assert row.errors[-1]["kind"] == "cancelled"
        assert row.settled_at is not None
    else:
        assert (changed, row.status, row.errors) == ([], status, ())


def test_cancel_keeps_errors_bounded(engine: Engine) -> None:
    """Cancel and retry, a hundred times over, must not grow the row."""
    id_ = insert_action(engine)

    for number in range(8):
        operations.cancel(engine, id_, reason=f"reason {number}")
        operations.retry(engine, id_)

    errors = operations.get(engine, id_).errors
    assert [error["message"] for error in errors] == [f"reason {number}" for number in range(3, 8)]


@pytest.mark.parametrize("status", list(ActionStatus))
def test_retry_revives_dead_and_cancelled_actions_only(engine: Engine, status: ActionStatus) -> None:
    """`claim_count` stays where it was, or a zombie of an old claim could settle the new one."""
    id_ = insert_action(engine, status, end_at=LONG_AGO)
    before = operations.get(engine, id_)

    changed = operations.retry(engine, id_)

    row = operations.get(engine, id_)
    if status in (ActionStatus.DEAD, ActionStatus.CANCELLED):
        assert changed == [id_]
        assert (row.status, row.fail_count, row.claim_count) == (ActionStatus.PENDING, 0, before.claim_count)
        assert (row.claimed_at, row.claimed_by, row.settled_at) == (None, None, None)
        assert row.end_at is not None
        assert row.end_at > LONG_AGO
        assert operations.counts(engine).due == 1
    else:
        assert changed == []
        assert row == before


def test_reschedule_moves_pending_actions_only(engine: Engine) -> None:
    """By instant, or by delay on the database's clock."""
    pending, dead = insert_action(engine), insert_action(engine, "dead")
    later = datetime(2100, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)

    by_instant = operations.reschedule(engine, [pending, dead], end_at=later)
    moved = operations.get(engine, pending).end_at
    by_delay = operations.reschedule(engine, pending, delay=timedelta(hours=1))

    assert (by_instant, by_delay, moved) == ([pending], [pending], later)
    with engine.begin() as connection:
        left = select(func.count()).where(
            TABLE.c.end_at > now_plus(3500), TABLE.c.end_at <= now_plus(3600), TABLE.c.status == "pending"
        )
        assert connection.execute(left).scalar_one() == 1


@pytest.mark.parametrize(
    "when",
    [
        {},
        {"end_at": datetime(2100, 1, 1)},  # noqa: DTZ001 - naive on purpose
        {"end_at": datetime.max.replace(tzinfo=UTC)},
        {"delay": timedelta(seconds=-1)},
        {"delay": timedelta.max},
        {"delay": timedelta(0), "end_at": LONG_AGO},
    ],
)
def test_reschedule_refuses_instants_that_make_no_sense(engine: Engine, when: dict[str, Any]) -> None:
    """Before any SQL."""
    with pytest.raises(InvalidInstantError):
        operations.reschedule(engine, 1, **when)


def test_changes_refuse_to_mean_everything(engine: Engine) -> None:
    """A forgotten filter must not cancel the whole table; whoever means it can say so."""
    id_ = insert_action(engine)

    with pytest.raises(ConfigurationError, match="at least one of"):
        operations.cancel(engine)
    with pytest.raises(ConfigurationError, match="at least one of"):
        operations.retry(engine)
    with pytest.raises(ConfigurationError, match="at least one of"):
        operations.reschedule(engine, delay=timedelta(0))
    with pytest.raises(ConfigurationError, match="dead or cancelled"):
        operations.retry(engine, status="processed")

    assert operations.cancel(engine, status="pending") == [id_]


def test_prune_deletes_old_settled_actions_oldest_first(engine: Engine) -> None:
    """In bites of *limit*; what is live or young stays."""
    kept = [
        insert_action(engine, created_at=LONG_AGO),
        insert_action(engine, "claimed", created_at=LONG_AGO),
        insert_action(engine, "dead", settled_at=datetime.now(UTC)),
    ]
    younger = insert_action(engine, "processed", settled_at=LONG_AGO + timedelta(days=1))
    oldest = [insert_action(engine, "dead"), insert_action(engine, "cancelled")]

    bites = [operations.prune(engine, timedelta(days=30), limit=2) for _ in range(3)]

    assert bites == [oldest, [younger], []]
    assert {row.id for row in operations.find(engine)} == set(kept)


def test_prune_of_chosen_statuses(engine: Engine) -> None:
    """Dead actions are kept for a person; processed ones rarely are."""
    dead, processed = insert_action(engine, "dead"), insert_action(engine, "processed")

    assert operations.prune(engine, timedelta(days=30), statuses="processed") == [processed]
    with pytest.raises(ConfigurationError, match="pending"):
        operations.prune(engine, timedelta(days=30), statuses=["pending"])
    assert operations.get(engine, dead).status is ActionStatus.DEAD


def test_joined_transaction_is_not_committed(engine: Engine) -> None:
    """Connection first, as in publishing: what the caller opened, the caller ends."""
    id_ = insert_action(engine)

    with engine.connect() as connection:
        assert operations.cancel(connection, id_) == [id_]
        assert operations.get(connection, id_).status is ActionStatus.CANCELLED
        connection.rollback()

    assert operations.get(engine, id_).status is ActionStatus.PENDING


def wait_for_lock(engine: Engine) -> None:
    """Return when some statement of this database waits for a lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with engine.connect() as connection:
            if connection.execute(waiting).scalar_one():
                return
    pytest.fail("nothing waited for a lock")


def test_claim_that_comes_in_between_is_not_disturbed(postgres_url: str) -> None:
    """The operator waits for the claimer's row lock, and then finds the action claimed."""
    migrations.upgrade(postgres_url)
    engine = engines.create(postgres_url)
    id_ = insert_action(engine)

    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as claimer:
            claim = {
                "status": "claimed",
                "claimed_at": LONG_AGO,
                "lease_expires_at": LONG_AGO,
                "claim_count": 1,
            }
            claimer.execute(update(TABLE).values(claim))
            cancelling = pool.submit(operations.cancel, engine, id_)
            wait_for_lock(engine)
        assert cancelling.result(timeout=10) == []

    assert operations.get(engine, id_).status is ActionStatus.CLAIMED
    engine.dispose()


def test_missing_table_says_what_to_run(empty_database_url: str) -> None:
    """The first thing that goes wrong in a new installation."""
    engine = engines.create(empty_database_url)

    with pytest.raises(SchemaMissingError, match="claim-dispatch db upgrade"):
        operations.counts(engine)

    engine.dispose()
