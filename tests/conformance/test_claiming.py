"""Claims: which actions, in what order, how many; what the row says then; and rows that somebody else wrote."""

from __future__ import annotations

import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, delete, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from prefect_claim_dispatch import claiming, engines, publish, settling
from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.claiming import MAX_LANES, Lane, RawAction
from prefect_claim_dispatch.dialects import now
from prefect_claim_dispatch.encoding import MAX_DEPTH
from prefect_claim_dispatch.errors import DatabaseError, InvalidPayloadError
from prefect_claim_dispatch.outcomes import Failed, Processed, Released
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.schema import actions_table
from tests.kit.tables import (
    LEASE,
    TABLE,
    add,
    add_many,
    by_status,
    change,
    claim_blindly,
    claim_due,
    columns,
    expire_leases,
    make_due,
    row,
    statements_of,
    verdicts,
)
from tests.kit.waiting import wait_until

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAILED = Failed(error_type="E", message="m")


def raw_connection(url: str) -> Any:
    """The driver alone, as an application in another language would use it."""
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///"))
    return psycopg.connect(url.replace("postgresql+psycopg", "postgresql"))


# Order and number


def test_claim_takes_highest_priority_then_earliest_then_lowest_id(engine: Engine) -> None:
    """The order that the README promises; ids alone would let a late urgent action wait behind a backlog."""
    later, urgent, early, twin, first = add_many(
        engine,
        [
            {"due_in": -10},
            {"due_in": -10, "priority": 5},
            {"end_at": LONG_AGO},
            {"end_at": LONG_AGO},
            {"due_in": -5, "priority": 9},
        ],
    )

    claimed = claim_due(engine)

    assert [raw.id for raw in claimed] == [first, urgent, early, twin, later]
    assert [raw.priority for raw in claimed] == [9, 5, 0, 0, 0]


def test_order_holds_across_types(engine: Engine) -> None:
    """Types are separate lanes of the index.

    Which one is served must be decided by the actions, not by the alphabet.
    """
    ids = add_many(
        engine,
        [
            {"type": type_, "priority": priority, "end_at": LONG_AGO + timedelta(seconds=second)}
            for second, (type_, priority) in enumerate(
                [("z", 0), ("a", 0), ("m", 1), ("a", 1), ("z", -1), ("m", 0), ("a", -1), ("z", 1), ("a", 0), ("z", 0)]
            )
        ],
    )
    wanted = [ids[position] for position in (2, 3, 7, 0, 1, 5, 8, 9, 4, 6)]

    taken: list[int] = []
    while claimed := claim_due(engine, limit=3):
        taken += [raw.id for raw in claimed]

    assert taken == wanted


def test_lane_whose_turn_it_is_comes_before_what_waited_longer(engine: Engine) -> None:
    """Within one priority: the higher one is not served later for it."""
    flood = Lane(type="flood", priority=0, end_at=LONG_AGO, turn=1)
    waiting = Lane(type="waiting", priority=0, end_at=LONG_AGO)
    urgent = Lane(type="urgent", priority=1, end_at=LONG_AGO, turn=2)
    add_many(
        engine, [{"type": "flood", "end_at": LONG_AGO}] * 3 + [{"type": "waiting"}, {"type": "urgent", "priority": 1}]
    )

    taken = [
        raw.type
        for _ in range(3)
        for raw in claiming.claim(engine, TABLE, [flood, waiting, urgent], limit=1, lease=LEASE, claimed_by="run")
    ]

    assert taken == ["urgent", "waiting", "flood"]


def test_claim_takes_no_more_than_its_limit(engine: Engine) -> None:
    """A crash strands what was claimed, so a claim must never take more than it was told to."""
    add_many(
        engine, [{"type": type_, "priority": priority} for type_ in "abc" for priority in (0, 1) for _ in range(5)]
    )

    claimed = claim_due(engine, limit=7)

    assert len(claimed) == 7
    assert by_status(engine) == {"pending": 23, "claimed": 7}


@pytest.mark.parametrize("limit", [0, -1])
def test_claim_of_nothing_asks_nothing(engine: Engine, limit: int) -> None:
    """No free slot: no statement."""
    add(engine)
    lane = Lane(type="a", priority=0, end_at=LONG_AGO)

    with statements_of(engine) as sent:
        assert claiming.claim(engine, TABLE, [lane], limit=limit, lease=LEASE, claimed_by="run") == []
        assert claiming.claim(engine, TABLE, [], limit=5, lease=LEASE, claimed_by="run") == []

    assert sent == []


def test_claim_finds_nothing_where_nothing_is_due(engine: Engine) -> None:
    """Between survey and claim somebody else may have taken it all: no error, no row changed."""
    add(engine, due_in=3600)

    assert claim_blindly(engine, ("a", 0), ("b", 7)) == []
    assert by_status(engine) == {"pending": 1}


def test_claim_takes_only_the_lanes_it_was_asked_for(engine: Engine) -> None:
    """Types that nobody registered stay pending, however long they have been due."""
    stray = add(engine, "stray", end_at=LONG_AGO, priority=9)
    other = add(engine, "mine", priority=3)
    mine = add(engine, "mine")

    claimed = claim_blindly(engine, ("mine", 0))

    assert [raw.id for raw in claimed] == [mine]
    assert (row(engine, stray).status, row(engine, other).status) == ("pending", "pending")


@pytest.mark.parametrize("priority", [0, 1])
def test_limit_takes_the_earliest_of_all_lanes_then_the_lowest_id(engine: Engine, priority: int) -> None:
    """Which rows the limit takes is the statement's own doing: sorting what it returned would come too late."""
    late, tied, early = add_many(
        engine,
        [
            {"type": "b", "end_at": LONG_AGO + timedelta(days=1)},
            {"type": "b", "end_at": LONG_AGO},
            {"type": "a", "end_at": LONG_AGO},
        ],
    )
    add(engine, "c", priority=priority, end_at=LONG_AGO + timedelta(days=2))  # alone in its priority, or third of three

    taken = [raw.id for _ in range(4) for raw in claim_due(engine, limit=1)]

    assert [id_ for id_ in taken if id_ in (late, tied, early)] == [tied, early, late]


def test_equal_instants_are_returned_by_id_whatever_their_types(engine: Engine) -> None:
    """The order in which runs are begun."""
    ids = add_many(engine, [{"type": type_, "end_at": LONG_AGO} for type_ in "cabcab"])

    assert [raw.id for raw in claim_due(engine)] == ids


def test_lanes_may_come_in_any_order(engine: Engine) -> None:
    """The statement wants them by priority; a caller must not have to know."""
    low, high = add(engine, "a", priority=-3), add(engine, "b", priority=3)

    claimed = claim_blindly(engine, ("a", -3), ("b", 3), limit=1)

    assert [raw.id for raw in claimed] == [high]
    assert row(engine, low).status == "pending"


def test_more_lanes_than_one_statement_names_are_claimed_in_turn(engine: Engine) -> None:
    """A thousand tenants with a type each must not make a statement that the database refuses."""
    add_many(engine, [{"type": f"tenant.{number}"} for number in range(MAX_LANES + 10)])

    first, second = claim_due(engine), claim_due(engine)

    assert (len(first), len(second)) == (MAX_LANES, 10)


# The clock


def test_nothing_is_claimed_before_its_time(engine: Engine) -> None:
    """S8: by the database's clock, asked in the claim itself, whatever the survey or the application believes."""
    add(engine, due_in=30)
    due = add(engine, due_in=0)

    claimed = claim_blindly(engine, ("a", 0))

    assert [raw.id for raw in claimed] == [due]


def test_until_leaves_what_is_due_later(engine: Engine) -> None:
    """A run that catches up with yesterday takes nothing of today."""
    old = add(engine, end_at=LONG_AGO)
    add(engine, end_at=LONG_AGO + timedelta(days=1))

    claimed = claim_due(engine, until=LONG_AGO)

    assert [raw.id for raw in claimed] == [old]


def test_until_in_the_future_claims_nothing_early(engine: Engine) -> None:
    """`until` can only narrow: no argument makes an action run before its time."""
    add(engine, due_in=30)

    assert claim_due(engine, until=datetime.now(UTC) + timedelta(days=1)) == []
    assert claim_blindly(engine, ("a", 0)) == []


def test_until_in_the_future_is_not_believed_by_the_claim_itself(engine: Engine) -> None:
    """S8: the survey has looked at the clock, but it may be another process's, or wrong."""
    add(engine, due_in=30)
    lane = Lane(type="a", priority=0, end_at=LONG_AGO)
    tomorrow = datetime.now(UTC) + timedelta(days=1)

    assert claiming.claim(engine, TABLE, [lane], limit=9, lease=LEASE, claimed_by="run", until=tomorrow) == []


def test_action_is_due_at_its_very_instant(postgres_url: str) -> None:
    """`end_at <= now()`; asked in one transaction, where PostgreSQL's clock stands still."""
    engine = engines.create(postgres_url)
    lane = Lane(type="mine", priority=0, end_at=LONG_AGO)
    with engine.begin() as connection:
        due = insert(TABLE).returning(TABLE.c.id)
        first = connection.execute(due.values(type="mine", end_at=now())).scalar_one()
        # Nobody here may run the stray one; it is due as well, and so comes before the one that shares its key.
        connection.execute(due.values(type="stray", end_at=now(), ordering_key="k"))
        connection.execute(due.values(type="mine", end_at=now(), ordering_key="k"))

        claimed = claiming.claim(connection, TABLE, [lane], limit=9, lease=LEASE, claimed_by="run")

    assert [raw.id for raw in claimed] == [first]
    engine.dispose()


# What the row says


def test_claim_writes_its_columns_and_no_others(engine: Engine) -> None:
    """Design §3, column by column."""
    id_ = add(engine, payload={"user": 7}, priority=2, idempotency_key="k", ordering_key="o")
    before = columns(engine, id_)

    (raw,) = claim_due(engine, lease=timedelta(seconds=90), claimed_by="flow-run-1")

    after = columns(engine, id_)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"status", "claimed_at", "claimed_by", "claim_count", "lease_expires_at", "run_id", "updated_at"}
    assert (after["status"], after["claimed_by"], after["claim_count"]) == ("claimed", "flow-run-1", 1)
    assert after["run_id"] == "flow-run-1"
    assert after["claimed_at"] == after["updated_at"]
    assert after["lease_expires_at"] - after["claimed_at"] == timedelta(seconds=90)
    assert (raw.id, raw.type, raw.claim_count, raw.fail_count, raw.claimed_by) == (id_, "a", 1, 0, "flow-run-1")


def test_claimed_row_becomes_an_action(engine: Engine) -> None:
    """What a processor gets; the reserved keys are taken out of its payload."""
    payload = {"user": 7, "__meta": {"source": "signup"}, "__rules": {"==": [1, 1]}}
    id_ = add(engine, "email.welcome", payload=payload, priority=2, idempotency_key="k", end_at=LONG_AGO)

    (raw,) = claim_due(engine)
    action = raw.action()

    assert (action.id, action.type, action.attempt, action.claim_count) == (id_, "email.welcome", 1, 1)
    assert (action.payload, action.meta, action.rules) == ({"user": 7}, {"source": "signup"}, {"==": [1, 1]})
    assert (action.priority, action.idempotency_key, action.end_at) == (2, "k", LONG_AGO)
    assert action.created_at == row(engine, id_).created_at
    assert action.lease_holds
    assert action == Action(**{field.name: getattr(action, field.name) for field in fields(Action)})
    with pytest.raises(FrozenInstanceError):
        action.id = 8  # pyright: ignore[reportAttributeAccessIssue]


def test_action_without_reserved_keys_has_no_meta_and_no_rules(engine: Engine) -> None:
    """An empty mapping: `action.meta.get(...)` must not fail for who published none."""
    add(engine, payload={"user": 7})

    (raw,) = claim_due(engine)

    assert (raw.action().payload, raw.action().meta, raw.action().rules) == ({"user": 7}, {}, None)


@pytest.mark.parametrize(
    ("kinds", "crashes"),
    [
        ([], 0),
        (["failed"], 0),
        (["crashed"], 1),
        (["failed", "crashed"], 1),
        (["crashed", "failed"], 0),
        (["crashed", "failed", "crashed", "crashed"], 2),
    ],
)
def test_crashes_in_a_row_are_counted_up_to_the_last_attempt(engine: Engine, kinds: list[str], crashes: int) -> None:
    """A suspect waits for its trial; a row that only fails, or has come to an end since, does not."""
    add(engine, errors=[{"kind": kind} for kind in kinds])

    (raw,) = claim_due(engine)

    assert (raw.crashes, raw.was_tried) == (crashes, bool(kinds))


def test_row_whose_errors_are_gone_was_tried_all_the_same(engine: Engine) -> None:
    """Somebody has tidied them up by hand; whatever is wrong with it still takes nobody along."""
    add(engine, fail_count=1, claim_count=1)

    (raw,) = claim_due(engine)

    assert (raw.crashes, raw.was_tried) == (0, True)


def test_every_statement_of_a_claim_says_when_it_changed_the_row(engine: Engine) -> None:
    """`updated_at` is how an operator sees that somebody still works on it."""
    id_ = add(engine)

    def is_touched() -> bool:
        touched = row(engine, id_).updated_at > LONG_AGO
        change(engine, id_, updated_at=LONG_AGO)
        return touched

    change(engine, id_, updated_at=LONG_AGO)
    (raw,) = claim_due(engine)
    assert is_touched()
    claiming.begin(engine, TABLE, [(id_, 1, "task-run-1")])
    assert is_touched()
    claiming.renew(engine, TABLE, [(id_, 1)], lease=LEASE)
    assert is_touched()
    settling.settle(engine, TABLE, verdicts(Processed(), [raw]))
    assert is_touched()


def test_error_that_is_no_contention_is_raised(engine: Engine) -> None:
    """An empty claim would say that there is nothing to do, where there is no table."""
    lane = Lane(type="a", priority=0, end_at=LONG_AGO)

    with pytest.raises(DatabaseError):
        claiming.claim(engine, actions_table("elsewhere"), [lane], limit=9, lease=LEASE, claimed_by="run")


def test_lease_is_judged_shorter_here_than_there(engine: Engine) -> None:
    """The local clock starts before the statement is sent: it may give up too early, never too late."""
    add(engine)

    (raw,) = claim_due(engine, lease=timedelta(seconds=30))

    in_table = row(engine, raw.id)
    assert raw.lease.remaining() <= in_table.lease_expires_at - in_table.now
    assert raw.lease.holds


def seen_by_others(engine: Engine) -> list[str]:
    """The status of each row, read outside of any transaction of the engine's: on SQLite each of those may write."""
    query = f"SELECT status FROM {TABLE.name} ORDER BY id"
    if engine.dialect.name == "sqlite":
        with closing(sqlite3.connect(str(engine.url.database))) as connection:
            return [status for (status,) in connection.execute(query)]
    with engine.connect() as connection:
        return list(connection.exec_driver_sql(query).scalars())


def test_what_is_kept_waiting_is_at_stake_at_no_moment(engine: Engine) -> None:
    """Its mark is taken back before the claim is committed; a holder that died in between would cost it an attempt."""
    ids = [add(engine, due_in=-60 + n) for n in range(3)]
    committed: list[str] = []

    def kept_waiting(claimed: list[RawAction]) -> list[RawAction]:
        committed.extend(seen_by_others(engine))
        return claimed[1:]

    claimed = claim_due(engine, kept_waiting=kept_waiting)

    assert committed == ["pending"] * 3
    assert [raw.lease.may_begin for raw in claimed] == [True, False, False]
    assert [row(engine, id_).run_id for id_ in ids] == ["flow-run", None, None]


@pytest.mark.parametrize(("may_begin", "run_id"), [(True, "flow-run"), (False, None)])
def test_next_claim_forgets_the_last_run(engine: Engine, may_begin: bool, run_id: str | None) -> None:
    """A row whose work has not begun must not point to the run of an earlier attempt, nor count as begun."""
    id_ = add(engine)
    (raw,) = claim_due(engine)
    settling.settle(engine, TABLE, verdicts(FAILED, [raw]), {id_: "task-run-1"})
    make_due(engine, id_)

    (again,) = claim_due(engine, may_begin=may_begin)

    assert (row(engine, id_).run_id, again.claim_count, again.fail_count) == (run_id, 2, 1)
    assert again.lease.may_begin is may_begin
    assert [error["kind"] for error in again.errors] == ["failed"]


def test_claim_is_committed_when_it_returns(engine: Engine, database_url: str) -> None:
    """Nothing may run under a claim that a crash would roll back."""
    id_ = add(engine)

    claim_due(engine)

    with closing(raw_connection(database_url)) as other:
        cursor = other.execute(f"SELECT status FROM action_logs WHERE id = {id_}")
        assert cursor.fetchone() == ("claimed",)


def test_claimed_action_is_not_claimed_again(engine: Engine) -> None:
    """S1."""
    add(engine)

    assert len(claim_due(engine)) == 1
    assert claim_blindly(engine, ("a", 0)) == []


def test_claim_count_rises_with_every_claim(engine: Engine) -> None:
    """S1: the fence. Failure, release and rescue alike leave it where it is, and the next claim lifts it."""
    id_ = add(engine)
    counts: list[int] = []

    for outcome in (FAILED, Released(), None, FAILED):
        make_due(engine, id_)
        (raw,) = claim_due(engine)
        counts.append(raw.claim_count)
        if outcome is None:
            expire_leases(engine, id_)
            rescue(engine, TABLE, lambda _: None, limit=10)
        else:
            settling.settle(engine, TABLE, verdicts(outcome, [raw]))

    assert counts == [1, 2, 3, 4]
    assert row(engine, id_).claim_count == 4


def test_claimers_at_once_share_the_backlog(engine: Engine) -> None:
    """S1 in miniature; `tests/faults/test_race.py` has it with processes and thousands of rows."""
    ids = add_many(engine, [{} for _ in range(200)])
    together = threading.Barrier(4)

    def claim_until_empty() -> list[int]:
        taken: list[int] = []
        together.wait()
        while claiming.survey(engine, TABLE).due():
            taken += [raw.id for raw in claim_due(engine, limit=7)]
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [future.result() for future in [pool.submit(claim_until_empty) for _ in range(4)]]

    assert sorted(id_ for part in taken for id_ in part) == ids


# Rows that others write


@pytest.mark.parametrize("end_at", ["CURRENT_TIMESTAMP", None], ids=["clock of the database", "default"])
def test_plain_insert_is_enough(engine: Engine, database_url: str, end_at: str | None) -> None:
    """The table is the contract: any language may INSERT, with no more than a type."""
    names, values = ("type, payload, end_at", f"'a', '{{\"user\": 7}}', {end_at}") if end_at else ("type", "'a'")
    with closing(raw_connection(database_url)) as driver:
        driver.execute(f"INSERT INTO action_logs ({names}) VALUES ({values})")
        driver.commit()

    (raw,) = claim_due(engine)

    assert raw.action().payload == ({"user": 7} if end_at else {})


def test_parameters_of_the_driver_are_enough(engine: Engine, database_url: str) -> None:
    """The very line of design §3, by psycopg or sqlite3 alone."""
    with closing(raw_connection(database_url)) as driver:
        if isinstance(driver, sqlite3.Connection):
            driver.execute(
                "INSERT INTO action_logs (type, payload, end_at) VALUES (?, ?, datetime('now', '-1 second'))",
                ("a", json.dumps({"user": 7})),
            )
        else:
            driver.execute(
                "INSERT INTO action_logs (type, payload, end_at) VALUES (%s, %s, now())",
                ("a", json.dumps({"user": 7})),
            )
        driver.commit()

    (raw,) = claim_due(engine)

    assert raw.action().payload == {"user": 7}


@pytest.mark.parametrize("modifier", ["+1 hour", "-1 hour"])
def test_sqlite_compares_its_own_clock_with_ours(sqlite_url: str, modifier: str) -> None:
    """Instants on SQLite are text; what `datetime('now')` wrote must sort among what we wrote."""
    engine = engines.create(sqlite_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO action_logs (type, end_at) VALUES ('a', datetime('now', '{modifier}'))"
        )

    claimed = claim_blindly(engine, ("a", 0))

    assert len(claimed) == (1 if modifier == "-1 hour" else 0)
    engine.dispose()


HOSTILE = {
    "sqlite": [
        "'not json'",
        "''",
        "'[1, 2]'",
        "'null'",
        "x'ff00fe'",
        "CAST(x'7b22ff227d' AS TEXT)",
        "7",
        "1.5",
        "'" + "[" * 10_000 + "]" * 10_000 + "'",
        '\'{"n": ' + "9" * 5_000 + "}'",
        "'{\"__meta\": [1]}'",
        "'{\"a\": 1} x'",
    ],
    "postgresql": [
        "'[1, 2]'",
        "'null'",
        "'7'",
        "'\"text\"'",
        "'" + "[" * 6_000 + "]" * 6_000 + "'",
        '\'{"n": ' + "9" * 5_000 + "}'",
        "('{\"n\": ' || repeat('[', 5000) || repeat(']', 5000) || '}')::jsonb",
        "'{\"__meta\": [1]}'",
    ],
}


def test_hostile_payloads_harm_only_themselves(engine: Engine) -> None:
    """L2: one bad row throws away its batch in the package that this one is modelled on."""
    hostile = HOSTILE[engine.dialect.name]
    with engine.begin() as connection:
        for payload in hostile:
            connection.exec_driver_sql(
                f"INSERT INTO action_logs (type, payload) VALUES ('bad', {payload})".replace("%", "%%")
            )
    add_many(engine, [{"type": "good", "payload": {"user": number}} for number in range(3)])
    make_due(engine, *range(1, len(hostile) + 1))

    claimed = claim_due(engine)

    assert len(claimed) == len(hostile) + 3
    for raw in claimed:
        if raw.type == "good":
            assert "user" in raw.action().payload
        else:
            with pytest.raises((ValueError, TypeError, RecursionError)):
                raw.action()
            assert raw.reference == f"bad #{raw.id} (attempt 1)"


@pytest.mark.parametrize(("levels", "is_taken"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False), (900, False)])
def test_what_publishing_would_refuse_as_too_deep_is_dead_on_every_python(
    engine: Engine, levels: int, is_taken: bool
) -> None:
    """Decoders differ in how deep they go, from one Python to the next; a row's verdict must not."""
    payload: dict[str, Any] = {}
    for _ in range(levels - 1):
        payload = {"n": payload}
    if is_taken:
        publish(engine, "a", payload)
    else:
        with pytest.raises(InvalidPayloadError):
            publish(engine, "a", payload)
        add(engine, payload=payload)
    make_due(engine, 1)

    (raw,) = claim_due(engine)

    if is_taken:
        assert raw.action().payload == payload
    else:
        with pytest.raises(ValueError, match="nested deeper than 100 levels"):
            raw.action()


def test_what_is_wide_is_not_deep(engine: Engine) -> None:
    """Levels are counted, not brackets: what publishing takes must not be dead at dispatch."""
    payload = {"rows": [[{"n": n, "text": "[{", "none": None}] for n in range(MAX_DEPTH)]}
    publish(engine, "a", payload)

    (raw,) = claim_blindly(engine, ("a", 0))

    assert raw.action().payload == payload


@pytest.mark.parametrize("opened", ["[", '{"n": '])
@pytest.mark.parametrize("levels", [MAX_DEPTH - 1, MAX_DEPTH])
def test_lists_and_objects_are_levels_alike(engine: Engine, opened: str, levels: int) -> None:
    """As publishing counts them, the payload itself being the first."""
    nested = opened * levels + ("1" if opened != "[" else "") + ("]" if opened == "[" else "}") * levels
    payload = {"n": json.loads(nested)}
    add(engine, payload=payload)

    (raw,) = claim_due(engine)

    if levels < MAX_DEPTH:
        assert raw.action().payload == payload
    else:
        with pytest.raises(ValueError, match="nested deeper"):
            raw.action()


@pytest.mark.parametrize("written", [' {"user": 7}', '{"user": 7}\n', '\t{"user" : 7} '])
def test_space_around_a_payload_is_nothing_wrong(sqlite_url: str, written: str) -> None:
    """SQLite keeps the text as another program wrote it."""
    engine = engines.create(sqlite_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO action_logs (type, payload) VALUES ('a', ?)", (written,))

    (raw,) = claim_blindly(engine, ("a", 0))

    assert raw.action().payload == {"user": 7}
    engine.dispose()


def test_deepest_nesting_is_claimed(engine: Engine) -> None:
    """10,000 levels, as far as the database itself takes them.

    Claimed with the others, and undecodable for itself alone.
    """
    nested = "[" * 10_000 + "]" * 10_000
    try:
        with engine.begin() as connection:
            connection.execute(
                text("INSERT INTO action_logs (type, payload) VALUES ('a', CAST(:nested AS JSON))")
                if engine.dialect.name == "postgresql"
                else text("INSERT INTO action_logs (type, payload) VALUES ('a', :nested)"),
                {"nested": nested},
            )
    except Exception as error:  # a server with a small stack
        pytest.skip(f"this database refuses such a row itself: {type(error).__name__}")
    good = add(engine)

    claimed = claim_due(engine)

    assert good in [raw.id for raw in claimed]
    with pytest.raises((ValueError, TypeError, RecursionError)):
        next(raw for raw in claimed if raw.id != good).action()


@pytest.mark.parametrize(
    "errors",
    [
        "'{\"a\": 1}'",
        "'[1, \"x\", null]'",
        "'null'",
        "'7'",
        "'not json'",
        "x'ff'",
        "'" + "[" * 5_000 + "]" * 5_000 + "'",
    ],
)
def test_hostile_errors_are_left_out(engine: Engine, errors: str) -> None:
    """`errors` is for people; what is no list of objects is dropped when the next entry is written."""
    if engine.dialect.name == "postgresql" and errors in ("'not json'", "x'ff'"):
        pytest.skip("jsonb refuses it")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO action_logs (type, errors) VALUES ('a', {errors})")

    (raw,) = claim_blindly(engine, ("a", 0))

    assert raw.errors == ()
    settled = settling.settle(engine, TABLE, verdicts(FAILED, [raw]))
    assert settled == {raw.id}
    assert [error["kind"] for error in row(engine, raw.id).errors] == ["failed"]


def test_unreadable_text_harms_only_itself(sqlite_url: str) -> None:
    """SQLite stores any bytes as text; a claim must survive reading them."""
    engine = engines.create(sqlite_url)
    with engine.begin() as connection:
        for column in ("idempotency_key", "claimed_by", "run_id"):
            connection.exec_driver_sql(f"INSERT INTO action_logs (type, {column}) VALUES ('a', CAST(x'ff41' AS TEXT))")
        connection.exec_driver_sql("INSERT INTO action_logs (type, idempotency_key) VALUES ('a', x'00ff')")
    good = add(engine)

    claimed = claim_due(engine)

    assert len(claimed) == 5
    assert good in [raw.id for raw in claimed]
    engine.dispose()


def test_lane_with_an_unreadable_name_is_passed_over(sqlite_url: str) -> None:
    """A type that is no text can belong to no processor; it must not stand in the way of one that can."""
    engine = engines.create(sqlite_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO action_logs (type, priority) VALUES (CAST(x'ff41' AS TEXT), 9)")
    good = add(engine)

    claimed = claim_due(engine)

    assert [raw.id for raw in claimed] == [good]
    engine.dispose()


# One at a time: ordering keys


def test_actions_of_one_key_run_one_at_a_time(engine: Engine) -> None:
    """However many slots are free and types are asked for: of one key, one."""
    first, second = add(engine, "a", ordering_key="user:42"), add(engine, "b", ordering_key="user:42", priority=9)
    free = add(engine, "a"), add(engine, "a", ordering_key="user:43")

    claimed = claim_due(engine)

    assert sorted(raw.id for raw in claimed) == [first, *free]
    assert claim_due(engine) == []
    assert row(engine, second).status == "pending"


def test_next_of_the_key_follows_when_the_first_is_terminal(engine: Engine) -> None:
    """In order of id, whatever their end_at and priority say."""
    ids = add_many(engine, [{"ordering_key": "k", "due_in": -seconds, "priority": seconds} for seconds in (1, 3, 2)])
    taken: list[int] = []

    while claimed := claim_due(engine):
        taken += [raw.id for raw in claimed]
        settling.settle(engine, TABLE, verdicts(Processed(), claimed))

    assert taken == ids


def test_follower_waits_for_the_next_attempt_of_the_first(engine: Engine) -> None:
    """The second must not overtake a first that failed and waits for its back-off, or "in order" means nothing."""
    first, second = add_many(engine, [{"ordering_key": "k"}] * 2)
    settling.settle(engine, TABLE, verdicts(FAILED, claim_due(engine)))

    assert claim_due(engine) == []

    make_due(engine, first)
    (again,) = claim_due(engine)
    assert again.id == first
    settling.settle(engine, TABLE, verdicts(Processed(), [again]))
    assert [raw.id for raw in claim_due(engine)] == [second]


def test_action_of_the_future_holds_nobody_back(engine: Engine) -> None:
    """A reminder for next year must not block its user's mails until then; once due, it comes first."""
    reminder, mail = add(engine, ordering_key="k", due_in=3600), add(engine, ordering_key="k")

    claimed = claim_due(engine)

    assert [raw.id for raw in claimed] == [mail]
    make_due(engine, reminder)
    assert claim_due(engine) == []  # the mail runs
    settling.settle(engine, TABLE, verdicts(Processed(), claimed))
    assert [raw.id for raw in claim_due(engine)] == [reminder]


def test_key_that_runs_holds_back_its_own_and_nobody_else(engine: Engine) -> None:
    """One that runs though it was published later, since the earlier was not due then: the others go on at once."""
    earlier, running, other = add_many(
        engine, [{"ordering_key": "k", "due_in": 3600}, {"ordering_key": "k"}, {"ordering_key": "l", "due_in": 3600}]
    )
    keyless = add(engine, due_in=3600)
    assert [raw.id for raw in claim_due(engine)] == [running]
    make_due(engine, earlier, other, keyless)

    with engine.begin() as connection:  # one try: the index would refuse the earlier one, and all of the claim with it
        lanes = claiming.survey(connection, TABLE).due()
        claimed = claiming.claim(connection, TABLE, lanes, limit=9, lease=LEASE, claimed_by="run")

    assert [raw.id for raw in claimed] == [other, keyless]


def test_stray_type_of_the_same_key_comes_first(engine: Engine) -> None:
    """The key orders actions, not types: one that nobody here may run still goes before."""
    add(engine, "stray", ordering_key="k")
    add(engine, "mine", ordering_key="k")

    assert claim_due(engine, "mine") == []


def test_two_claimers_never_run_one_key_twice(engine: Engine) -> None:
    """Keys with several due actions each, two claimers at once: at no moment two of one key."""
    add_many(engine, [{"ordering_key": f"k{number % 5}"} for number in range(40)])
    together = threading.Barrier(2)
    taken: list[int] = []

    def work() -> None:
        together.wait()
        while claiming.survey(engine, TABLE).due():
            claimed = claim_due(engine, limit=3)
            keys = [raw.row.ordering_key for raw in claimed]
            assert len(keys) == len(set(keys))
            taken.extend(raw.id for raw in claimed)
            assert settling.settle(engine, TABLE, verdicts(Processed(), claimed)) == {raw.id for raw in claimed}

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work) for _ in range(2)]:
            future.result()

    assert sorted(taken) == list(range(1, 41))


def test_unique_index_has_the_last_word(engine: Engine) -> None:
    """Two claimers that look at different moments can both find their row the first.

    The index lets only one of them write.
    """
    first, second = add_many(engine, [{"ordering_key": "k"}] * 2)
    claim_due(engine)

    with pytest.raises(IntegrityError):
        change(engine, second, status="claimed", claimed_at=LONG_AGO, lease_expires_at=LONG_AGO, claim_count=1)

    assert (row(engine, first).status, row(engine, second).status) == ("claimed", "pending")


def test_claim_that_meets_another_of_its_key_takes_the_rest(postgres_url: str) -> None:
    """The claim that loses at the index is not an error: it is asked again, and finds the key taken."""
    engine = engines.create(postgres_url)
    hidden, visible = add(engine, ordering_key="k", due_in=3600), add(engine, ordering_key="k")
    free = add(engine)
    with engine.connect() as rival:
        # As the rival sees it, the first is due by now and not claimed yet: it claims it, and commits while our claim
        # waits at the index.
        rival.execute(
            update(TABLE)
            .where(TABLE.c.id == hidden)
            .values(
                status="claimed", claimed_at=LONG_AGO, lease_expires_at=datetime(2100, 1, 1, tzinfo=UTC), claim_count=1
            )
        )
        with ThreadPoolExecutor(1) as pool:
            ours = pool.submit(claim_due, engine)
            _wait_until_blocked(engine)
            rival.commit()
            claimed = ours.result()

    assert [raw.id for raw in claimed] == [free]
    assert row(engine, visible).status == "pending"
    engine.dispose()


def test_claim_that_loses_a_deadlock_takes_the_rest(postgres_url: str) -> None:
    """Two claimers, each of which took an action of a key that the other wants: the loser is asked again."""
    engine = engines.create(postgres_url)
    hidden_k, hidden_l = add_many(engine, [{"ordering_key": key, "due_in": 3600} for key in "kl"])
    add_many(engine, [{"ordering_key": key} for key in "lk"])
    free = add(engine)
    claimed = {"status": "claimed", "claimed_at": LONG_AGO, "lease_expires_at": LONG_AGO, "claim_count": 1}
    with engine.connect() as rival:
        rival.exec_driver_sql("SET deadlock_timeout = '60s'")  # so that it is ours that loses
        rival.execute(update(TABLE).where(TABLE.c.id == hidden_k).values(claimed))
        with ThreadPoolExecutor(1) as pool:
            ours = pool.submit(claim_due, engine)
            _wait_until_blocked(engine)
            rival.execute(update(TABLE).where(TABLE.c.id == hidden_l).values(claimed))
            rival.commit()
            taken = ours.result()

    assert [raw.id for raw in taken] == [free]
    assert by_status(engine) == {"claimed": 3, "pending": 2}
    wait_until(lambda: _deadlocks(engine) == 1, description="the server has counted the deadlock")
    engine.dispose()


def _deadlocks(engine: Engine) -> int:
    with engine.connect() as connection:
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        return connection.exec_driver_sql(query).scalar_one()


def test_locked_rows_are_passed_over(postgres_url: str) -> None:
    """`SKIP LOCKED`: an operator's open transaction, or another claimer, holds back its own rows and no others.

    The limit is filled.
    """
    engine = engines.create(postgres_url)
    ids = add_many(
        engine, [{"type": type_, "end_at": LONG_AGO + timedelta(seconds=n)} for n, type_ in enumerate("abababab")]
    )
    with engine.begin() as other:
        other.execute(select(TABLE.c.id).where(TABLE.c.id.in_(ids[:3])).with_for_update())

        claimed = claim_due(engine, limit=4)

    assert [raw.id for raw in claimed] == ids[3:7]
    engine.dispose()


def test_row_changed_since_the_claim_looked_is_looked_at_again(postgres_url: str) -> None:
    """Settled, cancelled or postponed between the claim's snapshot and its lock.

    Then it is not due any more, whatever the snapshot says.
    """
    engine = engines.create(postgres_url)
    cancelled, postponed, deleted, due = add_many(engine, [{}] * 4)
    with engine.begin() as connection:
        # A view of the table whose rows make the claim wait when it looks at them, so that there is a moment between
        # looking and locking.
        connection.exec_driver_sql(
            "CREATE FUNCTION waits(bigint) RETURNS boolean LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_advisory_xact_lock_shared(77); RETURN true; END $$"
        )
        connection.exec_driver_sql("CREATE VIEW slow AS SELECT * FROM action_logs WHERE waits(id)")
    lane = Lane(type="a", priority=0, end_at=LONG_AGO)
    with engine.connect() as gate:
        gate.exec_driver_sql("SELECT pg_advisory_lock(77)")
        with ThreadPoolExecutor(1) as pool:
            ours = pool.submit(
                claiming.claim, engine, actions_table("slow"), [lane], limit=9, lease=LEASE, claimed_by="run"
            )
            _wait_until_blocked(engine)
            change(engine, cancelled, status="cancelled", settled_at=LONG_AGO)
            change(engine, postponed, end_at=datetime(2100, 1, 1, tzinfo=UTC))
            with engine.begin() as connection:
                connection.execute(delete(TABLE).where(TABLE.c.id == deleted))
            gate.exec_driver_sql("SELECT pg_advisory_unlock(77)")
            gate.commit()
            claimed = ours.result()

    assert [raw.id for raw in claimed] == [due]
    assert (row(engine, cancelled).status, row(engine, postponed).status) == ("cancelled", "pending")
    engine.dispose()


def _wait_until_blocked(engine: Engine) -> None:
    def is_blocked() -> bool:
        with engine.connect() as connection:
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return connection.exec_driver_sql(query).scalar_one() > 0

    wait_until(is_blocked, description="the claim waits for a lock")
