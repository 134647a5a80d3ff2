"""Publishing when transactions fail: nothing visible, nothing swallowed, and each error in its owner's words.

In a transaction of our own a failure is a `DatabaseError`; in the caller's it is what the driver says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import Any

import pytest
from sqlalchemy import Engine, Row, create_engine, event, func, select, text
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InternalError,
    OperationalError,
    PendingRollbackError,
    ResourceClosedError,
)
from sqlalchemy.orm import Session, registry

from prefect_claim_dispatch import Draft, Receipt, databases, engines, publish, publish_many
from prefect_claim_dispatch.engines import parsed_url
from prefect_claim_dispatch.errors import (
    ConfigurationError,
    DatabaseContendedError,
    DatabaseError,
    DatabaseUnavailableError,
    DuplicateActionError,
    SchemaMissingError,
)
from prefect_claim_dispatch.publishing import CHUNK_ROWS
from tests.kit.tables import TABLE
from tests.kit.waiting import wait_until

Publishing = Callable[[Any], Any]
KEYED = Draft().type("a").idempotency("k")


def publish_one(bind: Any) -> None:
    publish(bind, "a", {"n": 1}, idempotency_key="k")


def publish_several(bind: Any) -> None:
    publish_many(bind, [Draft().type("b"), KEYED])


both = pytest.mark.parametrize("publishing", [publish_one, publish_several])


@pytest.fixture
def plain_engine(database_url: str) -> Iterator[Engine]:
    """An engine as an application makes it, knowing nothing of ours."""
    engine = create_engine(parsed_url(database_url))
    yield engine
    engine.dispose()


def types(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.execute(select(TABLE.c.type).order_by(TABLE.c.id)).scalars())


def rows(engine: Engine) -> list[Row[Any]]:
    with engine.connect() as connection:
        return list(connection.execute(select(TABLE).order_by(TABLE.c.id)))


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


@pytest.fixture
def uncommittable(database_url: str) -> Iterator[Engine]:
    """An engine on a database where an action of type ``a`` can be inserted, and fails the commit."""
    engine = engines.create(database_url)
    if engine.dialect.name == "sqlite":
        # Enforced only where it is asked for, connection by connection.
        event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA foreign_keys = ON"))
    deferred = "DEFERRABLE INITIALLY DEFERRED"
    execute(engine, "CREATE TABLE known (type VARCHAR PRIMARY KEY)", "INSERT INTO known VALUES ('b')")
    if engine.dialect.name == "sqlite":
        execute(
            engine,
            f"CREATE TABLE uses (type VARCHAR REFERENCES known (type) {deferred})",
            "CREATE TRIGGER used AFTER INSERT ON action_logs BEGIN INSERT INTO uses VALUES (NEW.type); END",
        )
    else:
        execute(engine, f"ALTER TABLE action_logs ADD FOREIGN KEY (type) REFERENCES known (type) {deferred}")
    yield engine
    engine.dispose()


@pytest.fixture
def read_only(engine: Engine) -> Engine:
    """An engine whose transactions may not write: a replica, in effect."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("PRAGMA query_only = ON"))
        return engine
    return engine.execution_options(postgresql_readonly=True)


@both
def test_rollback_after_an_error_of_the_callers_leaves_nothing(plain_engine: Engine, publishing: Publishing) -> None:
    """The business data failed: the mail about it must not go out."""
    with pytest.raises(IntegrityError), plain_engine.begin() as connection:
        publishing(connection)
        connection.execute(text("INSERT INTO action_logs (type) VALUES ('')"))

    with pytest.raises(IntegrityError), Session(plain_engine) as session, session.begin():
        publishing(session)
        session.execute(text("INSERT INTO action_logs (type) VALUES ('')"))

    assert types(plain_engine) == []


@both
def test_savepoint_that_fails_takes_its_actions_along_and_no_others(engine: Engine, publishing: Publishing) -> None:
    """A part of a request that failed is given up; after it the key is free, and the rest commits."""
    with engine.begin() as connection:
        publish(connection, "before")
        with pytest.raises(IntegrityError), connection.begin_nested():
            publishing(connection)
            connection.execute(text("INSERT INTO action_logs (type) VALUES ('')"))
        again = publish(connection, "a", {}, idempotency_key="k")

    assert again.outcome == "created"
    assert types(engine) == ["before", "a"]


@both
def test_commit_that_fails_is_heard_and_leaves_nothing(uncommittable: Engine, publishing: Publishing) -> None:
    """The insert went well, the commit did not: whoever is told of success too early loses the action."""
    with pytest.raises(DatabaseError, match="the database refuses") as ours:
        publishing(uncommittable)
    with pytest.raises(IntegrityError), uncommittable.begin() as connection:
        publishing(connection)
    with pytest.raises(IntegrityError), Session(uncommittable) as session, session.begin():
        publishing(session)

    assert isinstance(ours.value.__cause__, IntegrityError)
    assert types(uncommittable) == []
    assert publish(uncommittable, "b").outcome == "created"


def sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


@both
def test_serialization_failure_reaches_the_caller_who_tries_again(database_url: str, publishing: Publishing) -> None:
    """The caller's retry loop looks for its driver's error; any other, or silence, would break it."""
    engine = create_engine(parsed_url(database_url))
    is_sqlite = engine.dialect.name == "sqlite"
    strict = engine if is_sqlite else engine.execution_options(isolation_level="REPEATABLE READ")
    with strict.connect() as connection:
        if is_sqlite:
            connection.exec_driver_sql("BEGIN")
        assert connection.execute(select(func.count()).select_from(TABLE)).scalar_one() == 0
        first = publish(engine, "a", {}, idempotency_key="k")

        with pytest.raises(OperationalError) as failed:
            publishing(connection)
        connection.rollback()
        assert len(types(engine)) == 1
        again = publish(connection, "a", {}, idempotency_key="k")
        connection.commit()
    engine.dispose()

    assert "locked" in str(failed.value) if is_sqlite else sqlstate(failed.value) == "40001"
    assert again == Receipt(id=first.id, outcome="kept")


def waiting(engine: Engine) -> int:
    """How many backends of this database wait for a lock."""
    asked = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with engine.connect() as connection:
        return connection.execute(asked).scalar_one()


@both
def test_serialization_failure_of_our_own_transaction_says_try_again(postgres_url: str, publishing: Publishing) -> None:
    """There the caller has no driver's error to look for, but an error of ours that means the same."""
    engine = engines.create(postgres_url)
    strict = engine.execution_options(isolation_level="SERIALIZABLE")
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as rival:
            publish(rival, "a", {}, idempotency_key="k")
            future = pool.submit(publishing, strict)
            wait_until(lambda: waiting(engine) == 1, description="the publisher waits for its rival")
        with pytest.raises(DatabaseContendedError, match="try again"):
            future.result()
    publishing(strict)

    assert types(engine).count("a") == 1
    engine.dispose()


@pytest.mark.parametrize("bind", ["connection", "session"])
@pytest.mark.parametrize("many", [False, True])
def test_raised_duplicate_leaves_the_transaction_usable(plain_engine: Engine, bind: str, many: bool) -> None:
    """PostgreSQL refuses everything after an error; so the conflict must be found without one."""
    held = publish(plain_engine, "a", {}, idempotency_key="k").id
    joined: Any = plain_engine.connect() if bind == "connection" else Session(plain_engine)

    with joined:
        publish(joined, "before")
        with pytest.raises(DuplicateActionError) as refused:
            if many:
                publish_many(joined, [Draft().type("lost"), KEYED.on_conflict("raise")])
            else:
                publish(joined, "a", {}, idempotency_key="k", on_conflict="raise")
        assert joined.execute(text("SELECT 1")).scalar_one() == 1
        publish(joined, "after")
        joined.commit()

    assert refused.value.existing_id == held
    assert types(plain_engine) == ["a", "before", "after"]


@pytest.mark.parametrize("born", [True, False])
def test_autocommit_publishes_one_at_once_and_no_batch(database_url: str, born: bool) -> None:
    """A batch is all or nothing, which nobody can promise where each statement commits by itself."""
    engine = create_engine(parsed_url(database_url), **({"isolation_level": "AUTOCOMMIT"} if born else {}))
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection:
        publish_one(connection)
        assert types(engine) == ["a"]
        with pytest.raises(DuplicateActionError):
            publish(connection, "a", {}, idempotency_key="k", on_conflict="raise")
        assert publish(connection, "a", {}, idempotency_key="k", on_conflict="replace").outcome == "replaced"

        with pytest.raises(ConfigurationError, match="all or nothing"):
            publish_several(connection)
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        publish_several(engine if born else autocommit)

    assert types(engine) == ["a"]
    engine.dispose()


@pytest.mark.not_through_pgbouncer(reason="it ends server connections, and its clients' connections go on")
@both
def test_terminated_backend_is_heard_once(postgres_url: str, publishing: Publishing) -> None:
    """The server restarted under the application: the publish fails aloud, and the next one gets a new connection."""
    engine = engines.create(postgres_url, pool_size=1, max_overflow=0)
    other = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    terminate = text(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    def kill() -> None:
        with other.connect() as connection:
            connection.execute(terminate)

    with pytest.raises(OperationalError), engine.begin() as connection:
        publish(connection, "before")
        kill()
        publishing(connection)
    assert types(engine) == []
    kill()
    with pytest.raises(DatabaseUnavailableError):
        publishing(engine)
    publishing(engine)

    assert types(engine).count("a") == 1
    engine.dispose()
    other.dispose()


@both
def test_server_that_is_not_there_is_unavailable(publishing: Publishing, tmp_path: Any) -> None:
    """One error for whoever publishes by URL or engine, whatever is wrong with the way there."""
    url = f"postgresql://nobody@/nowhere?host={tmp_path}"
    engine = create_engine(parsed_url(url))

    for bind in (url, engine):
        with pytest.raises(DatabaseUnavailableError, match="can't be reached"):
            publishing(bind)
    with pytest.raises(OperationalError), Session(engine) as session:
        publishing(session)


@both
def test_exhausted_pool_is_unavailable(database_url: str, publishing: Publishing) -> None:
    """SQLAlchemy's own error for it is no driver's; it must not be the one that gets through."""
    engine = engines.create(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)

    with engine.connect(), pytest.raises(DatabaseUnavailableError, match="make the pool larger"):
        publishing(engine)

    publishing(engine)
    engine.dispose()


@both
def test_closed_connection_is_refused_by_its_owner(plain_engine: Engine, publishing: Publishing) -> None:
    """It is not opened again behind the caller's back: that transaction would never be committed."""
    connection = plain_engine.connect()
    connection.close()

    with pytest.raises(ResourceClosedError, match="closed"):
        publishing(connection)

    assert types(plain_engine) == []


@both
def test_failed_session_must_be_rolled_back_first(plain_engine: Engine, publishing: Publishing) -> None:
    """What the session lost with its transaction must not be followed by a mail that says it was saved."""
    mapping = registry()
    model = type("Model", (), {})
    mapping.map_imperatively(model, TABLE)
    with Session(plain_engine) as session:
        publish(session, "lost")
        session.add(model(type=""))
        with pytest.raises(IntegrityError):
            session.flush()

        with pytest.raises(PendingRollbackError):
            publishing(session)
        session.rollback()
        publishing(session)
        session.commit()
    mapping.dispose()

    assert "lost" not in types(plain_engine)
    assert types(plain_engine).count("a") == 1


@both
def test_failed_transaction_of_postgresql_stays_failed(postgres_url: str, publishing: Publishing) -> None:
    """An error that the caller swallowed is not hidden by a publish that seems to succeed."""
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        with pytest.raises(IntegrityError):
            connection.execute(text("INSERT INTO action_logs (type) VALUES ('')"))
        with pytest.raises(InternalError) as failed:
            publishing(connection)
        connection.commit()

    assert sqlstate(failed.value) == "25P02"
    assert types(engine) == []
    engine.dispose()


@both
def test_disposed_engine_connects_again(engine: Engine, publishing: Publishing) -> None:
    """After a fork an engine is disposed and used on; publishing has no memory of the old pool."""
    publish(engine, "before")
    engine.dispose()
    publishing(engine)

    assert types(engine)[0] == "before"
    assert types(engine).count("a") == 1


@both
def test_read_only_transaction_is_refused(read_only: Engine, plain_engine: Engine, publishing: Publishing) -> None:
    """A replica is reachable and answers: the error must not send anybody to look at the network."""
    with pytest.raises(DatabaseError, match="connect where the table may be written") as ours:
        publishing(read_only)
    with pytest.raises(DBAPIError), read_only.begin() as connection:
        publishing(connection)

    assert type(ours.value) is DatabaseError
    assert types(plain_engine) == []


@both
def test_missing_table_is_ours_to_explain_only_in_our_transaction(
    empty_database_url: str, publishing: Publishing
) -> None:
    """In the caller's the driver's error passes unchanged, through a savepoint too."""
    engine = engines.create(empty_database_url)
    with pytest.raises(SchemaMissingError, match="claim-dispatch db upgrade"):
        publishing(engine)
    with pytest.raises(DBAPIError, match="action_logs"), Session(engine) as session, session.begin():
        publishing(session)

    engine.dispose()


PUBLISHERS = 50
LEVELS = [None, "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@pytest.fixture(params=LEVELS, ids=lambda level: level or "sqlite")
def crowded(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine with a connection for each publisher: SQLite, and PostgreSQL at each isolation level."""
    url = request.getfixturevalue("postgres_url" if request.param else "sqlite_url")
    options = {"isolation_level": request.param} if request.param else {}
    engine = engines.create(url, pool_size=PUBLISHERS, **options)
    yield engine
    engine.dispose()


def at_once(engine: Engine, publishing: Callable[[Any, int], Any], publishers: int = PUBLISHERS) -> list[Any]:
    """What each of *publishers* got who began together; each tries its whole transaction again when it must."""
    barrier = Barrier(publishers)

    def work(n: int) -> Any:
        barrier.wait()
        while True:
            try:
                with engine.begin() as connection:
                    return publishing(connection, n)
            except OperationalError as error:
                if engine.dialect.name == "sqlite" or sqlstate(error) != "40001":
                    raise

    with ThreadPoolExecutor(publishers) as pool:
        return list(pool.map(work, range(publishers)))


def test_fifty_publishers_of_one_key_make_one_action(crowded: Engine) -> None:
    """However they interleave: one created it, and all the others know it by its id."""
    receipts = at_once(crowded, lambda bind, n: publish(bind, "a", {"n": n}, idempotency_key="k"))

    [row] = rows(crowded)
    assert Counter(receipt.outcome for receipt in receipts) == {"created": 1, "kept": PUBLISHERS - 1}
    assert {receipt.id for receipt in receipts} == {row.id}
    assert receipts[row.payload["n"]].outcome == "created"


def test_last_of_fifty_replacements_wins(crowded: Engine) -> None:
    """Whoever committed last had the last word; no replacement is lost, and none makes a second row."""
    turns: list[int] = []
    lock = Lock()

    def replace(bind: Any, n: int) -> Receipt:
        receipt = publish(bind, "a", {"n": n}, idempotency_key="k", on_conflict="replace")
        # The row is locked until the commit, so nobody else comes here in between.
        with lock:
            turns.append(n)
        return receipt

    receipts = at_once(crowded, replace)

    [row] = rows(crowded)
    assert Counter(receipt.outcome for receipt in receipts) == {"created": 1, "replaced": PUBLISHERS - 1}
    assert {receipt.id for receipt in receipts} == {row.id}
    assert row.payload == {"n": turns[-1]}


def test_all_but_one_of_fifty_are_told_who_was_first(crowded: Engine) -> None:
    """Each of the losers has a transaction that goes on, and the id of the winner."""

    def raise_(bind: Any, n: int) -> tuple[str, int | None]:
        try:
            return "created", publish(bind, "a", {"n": n}, idempotency_key="k", on_conflict="raise").id
        except DuplicateActionError as error:
            publish(bind, "loser")
            return "refused", error.existing_id

    told = at_once(crowded, raise_)

    [winner] = [row for row in rows(crowded) if row.type == "a"]
    assert Counter(told) == {("created", winner.id): 1, ("refused", winner.id): PUBLISHERS - 1}
    assert types(crowded).count("loser") == PUBLISHERS - 1


def keyed(key: str, policy: Any, ordered: bool) -> Draft:
    draft = Draft().type("a").idempotency(key).on_conflict(policy)
    return draft.ordering_key(f"user:{key}") if ordered else draft


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("exists", [True, False])
def test_batches_in_opposite_orders_do_not_deadlock(postgres_url: str, exists: bool, ordered: bool) -> None:
    """Each would hold the key that the other wants next; the database would end one of them, after a second.

    A rival holds the key in the middle until both wait, so that they surely meet there. The table is large enough for
    the planner to look the keys up in the order of the batch.
    """
    engine = engines.create(postgres_url)
    publish_many(engine, [Draft().type("filler")] * 5_000)
    execute(engine, "ANALYZE action_logs")
    policy = "replace" if exists else "keep"
    if exists:
        publish_many(engine, [keyed(key, "keep", ordered) for key in "amz"])
    with ThreadPoolExecutor(2) as pool:
        with engine.begin() as rival:
            if exists:
                # Not replaced: the insert that is tried first would wait for that, holding nothing.
                rival.execute(select(TABLE.c.id).where(TABLE.c.idempotency_key == "m").with_for_update())
            else:
                publish_many(rival, [keyed("m", policy, ordered)])
            batches = [
                pool.submit(publish_many, engine, [keyed(key, policy, ordered) for key in keys])
                for keys in ("amz", "zma")
            ]
            wait_until(lambda: waiting(engine) == 2, description="both batches wait")
        outcomes = [[receipt.outcome for receipt in batch.result()] for batch in batches]

    if exists:
        assert outcomes == [["replaced"] * 3] * 2
    else:
        assert Counter(outcomes[0] + outcomes[1]) == {"created": 2, "kept": 4}
    assert types(engine).count("a") == 3
    engine.dispose()


def test_overlapping_batches_at_once_make_each_key_once(crowded: Engine) -> None:
    """Mixed policies, shifted and reversed: every key has one row, and every receipt names it."""

    def batch(bind: Any, n: int) -> list[Receipt]:
        keys = [str(number % 60) for number in range(n * 10, n * 10 + 40)]
        policies = ("keep", "replace")
        drafts = [keyed(key, policies[(n + number) % 2], False) for number, key in enumerate(keys)]
        return publish_many(bind, drafts[::-1] if n % 2 else drafts)

    batches = at_once(crowded, batch, publishers=8)

    receipts = [receipt for batch_ in batches for receipt in batch_]
    assert Counter(receipt.outcome for receipt in receipts)["created"] == 60
    assert {receipt.id for receipt in receipts} == {row.id for row in rows(crowded)}
    assert len({row.idempotency_key for row in rows(crowded)}) == len(rows(crowded)) == 60


def test_rows_of_one_ordering_key_keep_the_order_of_the_batch(engine: Engine) -> None:
    """They run in the order of their ids; that keys are inserted in theirs must not turn it round."""
    receipts = publish_many(
        engine,
        [
            Draft().type("a").idempotency("z").ordering_key("o"),
            Draft().type("a").idempotency("k"),
            Draft().type("b").ordering_key("o"),
            Draft().type("a").idempotency("a").ordering_key("o"),
            Draft().type("a").idempotency("k").ordering_key("o"),
            Draft().type("c"),
            Draft().type("d"),
        ],
    )

    ids = [receipt.id for receipt in receipts]
    assert [receipt.outcome for receipt in receipts] == ["created"] * 4 + ["kept"] + ["created"] * 2
    assert ids[0] < ids[2] < ids[3]
    assert ids[4] == ids[1]
    assert ids[5] < ids[6]
    stored = {row.id: (row.type, row.idempotency_key) for row in rows(engine)}
    assert [stored[id_] for id_ in ids] == [
        *(("a", "z"), ("a", "k"), ("b", None), ("a", "a"), ("a", "k"), ("c", None), ("d", None))
    ]


def test_one_publish_on_our_own_engine_is_one_round_trip(postgres_url: str) -> None:
    """By URL it commits as it is sent; an application's engine begins and commits, for what it may hang on that."""
    seen: list[bool] = []

    def look(connection: Any, *_: Any) -> None:
        seen.append(connection.connection.driver_connection.autocommit)

    theirs = create_engine(postgres_url)
    event.listen(Engine, "before_cursor_execute", look)
    try:
        publish(postgres_url, "a", idempotency_key="k")
        publish(postgres_url, "a", idempotency_key="k")
        publish(theirs, "b")
    finally:
        event.remove(Engine, "before_cursor_execute", look)
    for engine in (databases.engine_for(postgres_url), theirs):
        engine.dispose()

    created = [True]
    kept = [True, True]  # the insert, and the look at who holds the key
    assert seen == [*created, *kept, False]


@pytest.mark.not_through_pgbouncer(reason="it counts server connections, and pgbouncer keeps its own")
def test_disposing_of_our_engine_closes_what_publishes_by_url(postgres_url: str) -> None:
    """Whoever disposes of the engine before a fork must not find a connection of another pool in the child."""
    publish(postgres_url, "a")
    shared = databases.engine_for(postgres_url)
    assert connections_of(shared) == 2

    shared.dispose()

    # A server's process that is hung up on takes a moment to end.
    wait_until(lambda: connections_of(shared) == 1, description="only who asks is connected")
    shared.dispose()


def connections_of(engine: Engine) -> int:
    """How many the database has open, the one that asks included."""
    with engine.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        return connection.exec_driver_sql(query).scalar_one()


def test_long_batches_that_cross_lose_nothing_and_say_to_try_again(postgres_url: str) -> None:
    """Keys are sorted within a thousand, not in a whole stream: one of two may be given up, whole and by name."""
    meeting = Barrier(2, timeout=30)

    def crossing(first: str, last: str) -> Iterator[Draft]:
        yield Draft().type("a").idempotency(first)
        yield from [Draft().type("unkeyed")] * (CHUNK_ROWS - 1)
        meeting.wait()  # both have inserted their first thousand, and hold its key
        yield Draft().type("a").idempotency(last)

    def publishing(first: str, last: str) -> str:
        try:
            publish_many(engine, crossing(first, last))
        except DatabaseContendedError as refusal:
            return str(refusal)
        return "published"

    engine = create_engine(parsed_url(postgres_url))
    with ThreadPoolExecutor() as threads:
        said = sorted(threads.map(publishing, ["x", "y"], ["y", "x"]))
    with engine.connect() as connection:
        held = connection.execute(select(TABLE.c.type, func.count()).group_by(TABLE.c.type)).all()
    engine.dispose()

    assert said[1] == "published"
    assert "nothing was written; try again" in said[0]
    assert sorted(map(tuple, held)) == [("a", 2), ("unkeyed", CHUNK_ROWS - 1)]
