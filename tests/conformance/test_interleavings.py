"""Schedules of two and three sessions on PostgreSQL, statement by statement.

The first session changes the row in a transaction that stays open. The second, a call of the package with a transaction
of its own, then passes the row over, finds nothing, or waits. The first commits or rolls back, and the second comes to
its end. What must never happen: a lost update, two live claims, a terminal row that changes (S1 to S3). SQLite has one
writer at a time, and so none of these schedules.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from sqlalchemy import Connection, Engine, create_engine, delete, func, select
from sqlalchemy.exc import OperationalError

from prefect_claim_dispatch import Draft, claiming, engines, operations, publish, publish_many
from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.claiming import Lane, RawAction
from prefect_claim_dispatch.errors import DatabaseContendedError
from prefect_claim_dispatch.outcomes import Cancel, Processed, Released, Snooze
from prefect_claim_dispatch.policies import RetryPolicy, Settlement
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.settling import settle
from tests.conftest import MIGRATE
from tests.kit import postgres
from tests.kit.tables import LEASE, TABLE, add, change, claim_due, row, seconds_from_now, verdicts
from tests.kit.waiting import wait_until

Step = Callable[[Any, int], Any]

LEVELS: Final = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
TERMINAL: Final = ("processed", "dead", "cancelled")
LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)
CONTENDED: Final = "contended"
# Dead after the first crash, so that the operators' retry has something to meet.
POLICY: Final = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="module")
def database(postgres_server: postgres.Server) -> Iterator[Engine]:
    """One database for all schedules."""
    with postgres.fresh_database(postgres_server, prepare=MIGRATE) as url:
        engine = engines.create(url, pool_size=10)
        yield engine
        engine.dispose()


@pytest.fixture
def engine(database: Engine) -> Engine:
    """The database of all schedules, its table empty."""
    with database.begin() as connection:
        connection.execute(delete(TABLE))
    return database


# What a session does to the row, and what it says it did: a word when it did something, None when it found nothing.


def do_claim(bind: Any, id_: int) -> str | None:
    lane = Lane(type="a", priority=0, end_at=LONG_AGO)
    taken = claiming.claim(bind, TABLE, [lane], limit=9, lease=LEASE, claimed_by="other")
    return "claimed" if [raw.id for raw in taken] == [id_] else None


def do_settle(bind: Any, id_: int) -> str | None:
    verdict = Settlement(id_, 1, ActionStatus.PROCESSED, 0, Processed())
    return "settled" if settle(bind, TABLE, [verdict]) else None


def do_publish(bind: Any, on_conflict: Any) -> str:
    return publish(bind, "a", {"new": True}, idempotency_key="k", on_conflict=on_conflict).outcome


STEPS: Final[dict[str, Step]] = {
    "claim": do_claim,
    "settle": do_settle,
    "begin": lambda bind, id_: "begun" if claiming.begin(bind, TABLE, [(id_, 1, "run")]) else None,
    "renew": lambda bind, id_: "renewed" if claiming.renew(bind, TABLE, [(id_, 1)], lease=LEASE) else None,
    "rescue": lambda bind, _: "rescued" if rescue(bind, TABLE, lambda _: POLICY, limit=9) else None,
    "cancel": lambda bind, id_: "cancelled" if operations.cancel(bind, id_) else None,
    "cancel all": lambda bind, _: "cancelled" if operations.cancel(bind, type="a") else None,
    "retry": lambda bind, id_: "retried" if operations.retry(bind, id_) else None,
    "reschedule": lambda bind, id_: "moved" if operations.reschedule(bind, id_, delay=timedelta(days=1)) else None,
    "prune": lambda bind, _: "pruned" if operations.prune(bind, timedelta(days=1)) else None,
    "replace": lambda bind, _: do_publish(bind, "replace"),
    "keep": lambda bind, _: do_publish(bind, "keep"),
}
CLAIMED: Final = {
    "status": "claimed",
    "claimed_at": LONG_AGO,
    "claimed_by": "holder",
    "run_id": "holder",
    "claim_count": 1,
}
ROWS: Final[dict[str, dict[str, Any]]] = {
    "due": {},
    "held": {**CLAIMED, "lease_expires_at": seconds_from_now(300)},
    "expired": {**CLAIMED, "lease_expires_at": seconds_from_now(-1)},
    "dead": {"status": "dead", "claim_count": 1, "settled_at": LONG_AGO},
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """*first* then *second* on a row that is *given*.

    What the second is told and the row then is, when the first commits and when it rolls back. That is the same at
    every isolation level, since a transaction of the package's is done again, where the second *waits*; but what is
    published then may have to be published again by whoever did: it *gives up*.
    """

    given: str
    first: str
    second: str
    committed: tuple[str | None, str | None]
    rolled_back: tuple[str | None, str | None]
    waits: bool = False
    gives_up: bool = False

    def __str__(self) -> str:
        return f"{self.first}, {self.second}: {self.given}"


def waiting(
    given: str, first: str, second: str, *ends: tuple[str | None, str | None], gives_up: bool = False
) -> Schedule:
    return Schedule(given, first, second, *ends, waits=True, gives_up=gives_up)


GONE: Final = None
SCHEDULES: Final = [
    Schedule("expired", "settle", "rescue", (None, "processed"), (None, "claimed")),
    waiting("expired", "rescue", "settle", (None, "dead"), ("settled", "processed")),
    Schedule("due", "cancel", "claim", (None, "cancelled"), (None, "pending")),
    waiting("due", "claim", "cancel", (None, "claimed"), ("cancelled", "cancelled")),
    waiting("due", "claim", "cancel all", (None, "claimed"), ("cancelled", "cancelled")),
    Schedule("expired", "retry", "rescue", ("rescued", "dead"), ("rescued", "dead")),
    Schedule("expired", "rescue", "retry", (None, "dead"), (None, "claimed")),
    Schedule("due", "replace", "claim", (None, "pending"), (None, "pending")),
    waiting("due", "claim", "replace", ("kept", "claimed"), ("replaced", "pending"), gives_up=True),
    waiting("due", "cancel", "replace", ("kept", "cancelled"), ("replaced", "pending"), gives_up=True),
    waiting("due", "replace", "cancel", ("cancelled", "cancelled"), ("cancelled", "cancelled")),
    Schedule("dead", "retry", "prune", (None, "pending"), (None, "dead")),
    waiting("dead", "prune", "retry", (None, GONE), ("retried", "pending")),
    waiting("dead", "prune", "keep", ("created", "pending"), ("kept", "dead")),
    Schedule("dead", "keep", "prune", ("pruned", GONE), ("pruned", GONE)),
    waiting("dead", "retry", "retry", (None, "pending"), ("retried", "pending")),
    Schedule("expired", "rescue", "rescue", (None, "dead"), (None, "claimed")),
    Schedule("due", "claim", "claim", (None, "claimed"), (None, "pending")),
    Schedule("due", "reschedule", "claim", (None, "pending"), (None, "pending")),
    waiting("due", "claim", "reschedule", (None, "claimed"), ("moved", "pending")),
    Schedule("expired", "rescue", "renew", (None, "dead"), (None, "claimed")),
    Schedule("held", "renew", "rescue", (None, "claimed"), (None, "claimed")),
    waiting("held", "settle", "renew", (None, "processed"), ("renewed", "claimed")),
    waiting("held", "renew", "settle", ("settled", "processed"), ("settled", "processed")),
    waiting("held", "settle", "settle", (None, "processed"), ("settled", "processed")),
    Schedule("held", "begin", "cancel", (None, "claimed"), (None, "claimed")),
    Schedule("held", "cancel", "begin", ("begun", "claimed"), ("begun", "claimed")),
    waiting("held", "settle", "begin", (None, "processed"), ("begun", "claimed")),
    waiting("held", "begin", "settle", ("settled", "processed"), ("settled", "processed")),
    Schedule("held", "settle", "cancel", (None, "processed"), (None, "claimed")),
    Schedule("held", "cancel", "settle", ("settled", "processed"), ("settled", "processed")),
]


@dataclass(slots=True)
class Sessions:
    """The first session's open connection, and threads for those that come after it, each at the same level."""

    engine: Engine
    first: Connection
    pool: ThreadPoolExecutor

    def begin(self, step: str, id_: int) -> Future[Any]:
        """Let another session do *step* in a transaction of the package's; returns once it is done or waits."""

        def told() -> Any:
            try:
                return STEPS[step](self.engine, id_)
            except DatabaseContendedError:
                return CONTENDED

        before = blocked(self.engine)
        future = self.pool.submit(told)
        wait_until(lambda: future.done() or blocked(self.engine) > before, description=f"{step} is done, or waits")
        return future


@contextmanager
def sessions(engine: Engine, level: str = "READ COMMITTED") -> Iterator[Sessions]:
    """Sessions at isolation *level*; the first one's transaction has begun, and has seen nothing yet."""
    levelled = engine.execution_options(isolation_level=level)
    with ThreadPoolExecutor(4) as pool, levelled.connect() as first:
        first.exec_driver_sql("SET LOCAL application_name = 'first'")
        yield Sessions(levelled, first, pool)


def blocked(engine: Engine) -> int:
    """How many sessions of this database wait for a row, or for the transaction that has it."""
    # Not for anything else: a vacuum that is in the way for a moment is not what a schedule waits for.
    query = (
        "SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid) "
        "WHERE NOT granted AND locktype IN ('transactionid', 'tuple') AND datname = current_database()"
    )
    with engine.connect() as connection:
        return connection.exec_driver_sql(query).scalar_one()


def states(engine: Engine, id_: int) -> list[Any]:
    with engine.connect() as connection:
        query = select(TABLE).where((TABLE.c.id == id_) | (TABLE.c.idempotency_key == "k"))
        return list(connection.execute(query))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("ends", ["commit", "rollback"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_second_session_never_undoes_the_first(engine: Engine, schedule: Schedule, ends: str, level: str) -> None:
    """The second is told what it did, or that it must try again; the row is what the told ones made of it."""
    id_ = add(engine, idempotency_key="k", **ROWS[schedule.given])
    with sessions(engine, level) as session:
        if (schedule.first, schedule.second) == ("renew", "rescue"):
            # Between the beginnings of both transactions, whose clocks stand still from then on.
            change(engine, id_, lease_expires_at=func.clock_timestamp())
        did = STEPS[schedule.first](session.first, id_)
        second = session.begin(schedule.second, id_)
        waited = not second.done()
        getattr(session.first, ends)()
        told = second.result(10)
    final = states(engine, id_)

    wanted, status = schedule.committed if ends == "commit" else schedule.rolled_back
    if schedule.gives_up and ends == "commit" and level != "READ COMMITTED":
        wanted = CONTENDED
    assert (waited, told) == (schedule.waits, wanted)
    assert [found.status for found in final] == ([] if status is GONE else [status])
    assert_promises(schedule, ends, did, told, final)


def assert_promises(schedule: Schedule, ends: str, did: Any, told: Any, final: list[Any]) -> None:
    """S1 to S3, whatever the table of schedules says."""
    claims = int(did == "claimed" and ends == "commit") + int(told == "claimed")
    before = ROWS[schedule.given].get("claim_count", 0)
    for found in final:
        assert found.claim_count in (before + claims, claims), "S1: a claim without its count"
    assert claims <= 1, "S1: two claims of one row"
    changed = [
        word for word in (did if ends == "commit" else None, told) if word in ("settled", "rescued", "cancelled")
    ]
    assert len(changed) <= 1, "S3: two verdicts on one claim"


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("step", ["cancel", "reschedule", "replace"])
def test_failure_in_the_callers_transaction_is_the_callers(engine: Engine, step: str, level: str) -> None:
    """What else the caller did in it is lost too, so only the caller can do it again: the driver's error says so."""
    id_ = add(engine, idempotency_key="k")
    with engine.execution_options(isolation_level=level).connect() as caller:
        caller.execute(select(TABLE.c.id))  # its snapshot
        STEPS["claim"](engine, id_)

        with pytest.raises(OperationalError) as raised:
            STEPS[step](caller, id_)

    assert raised.value.orig.sqlstate == "40001"
    assert row(engine, id_).status == "claimed"


@pytest.mark.parametrize("level", LEVELS)
def test_zombie_that_waits_for_its_rescue_writes_nothing_then_or_later(engine: Engine, level: str) -> None:
    """Three sessions: what a zombie sent before its rescue committed is as late as what it sends afterwards."""
    id_ = add(engine, **ROWS["expired"])
    change(engine, id_, lease_expires_at=seconds_from_now(-1))
    with sessions(engine, level) as session:
        STEPS["rescue"](session.first, id_)
        zombies = [session.begin(step, id_) for step in ("settle", "begin")]
        assert not any(zombie.done() for zombie in zombies)
        session.first.commit()
        told = {zombie.result(10) for zombie in zombies}
    assert operations.retry(engine, id_) == [id_]
    claimed = STEPS["claim"](engine, id_)

    assert told == {None}
    assert claimed == "claimed"
    assert [STEPS[step](engine, id_) for step in ("settle", "begin", "renew")] == [None] * 3
    assert (row(engine, id_).status, row(engine, id_).claim_count, row(engine, id_).run_id) == ("claimed", 2, "other")


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_operator_and_publisher_that_wait_for_a_claim_agree(engine: Engine, ends: str) -> None:
    """Three sessions on one row: whichever of both comes first, nobody is told what is not so."""
    id_ = add(engine, idempotency_key="k")
    with sessions(engine) as session:
        STEPS["claim"](session.first, id_)
        operator, publisher = (session.begin(step, id_) for step in ("cancel", "replace"))
        assert STEPS["claim"](engine, id_) is None
        getattr(session.first, ends)()
        told = operator.result(10), publisher.result(10)

    final = row(engine, id_)
    if ends == "commit":
        assert (*told, final.status) == (None, "kept", "claimed")
    else:
        assert told in {("cancelled", "kept"), ("cancelled", "replaced")}
        assert final.status == "cancelled"
        assert final.payload == ({"new": True} if told[1] == "replaced" else {})


# Lock order

KEYS: Final = [f"k{number}" for number in range(50)]


class Crowd:
    """Threads that do everything that locks many rows, at random, on the same fifty rows."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.contended: list[str] = []
        self.done: Counter[str] = Counter()
        self.claims: deque[RawAction] = deque(maxlen=200)

    def work(self, seed: int, rounds: int, without: str | None) -> None:
        dice = random.Random(seed)
        for _ in range(rounds):
            name = dice.choice([name for name in CROWD if name != without])
            try:
                CROWD[name](self, dice)
                self.done[name] += 1
            except DatabaseContendedError:
                self.contended.append(name)

    def some_claims(self, dice: random.Random) -> list[RawAction]:
        known = {(raw.id, raw.claim_count): raw for raw in list(self.claims)}
        return dice.sample(list(known.values()), min(len(known), 30))

    def claim(self, dice: random.Random) -> None:
        self.claims.extend(claim_due(self.engine, limit=dice.randint(1, 30)))

    def settle(self, dice: random.Random) -> None:
        outcome = dice.choice([Processed(), Released(), Cancel("no"), Snooze(timedelta(0))])
        settle(self.engine, TABLE, verdicts(outcome, self.some_claims(dice)))

    def begin(self, dice: random.Random) -> None:
        claiming.begin(self.engine, TABLE, [(raw.id, raw.claim_count, "run") for raw in self.some_claims(dice)])

    def renew(self, dice: random.Random) -> None:
        # Some for no time, so that rescue finds something.
        claims = [(raw.id, raw.claim_count) for raw in self.some_claims(dice)]
        claiming.renew(self.engine, TABLE, claims, lease=dice.choice([timedelta(0), LEASE]))

    def rescue(self, _: random.Random) -> None:
        rescue(self.engine, TABLE, lambda _: POLICY, limit=30)

    def cancel(self, _: random.Random) -> None:
        operations.cancel(self.engine, type="a")

    def retry(self, _: random.Random) -> None:
        operations.retry(self.engine, type="a")

    def reschedule(self, _: random.Random) -> None:
        operations.reschedule(self.engine, type="a", delay=timedelta(0))

    def prune(self, dice: random.Random) -> None:
        operations.prune(self.engine, timedelta(0), limit=dice.randint(1, 20))

    def publish(self, dice: random.Random) -> None:
        chosen = dice.sample(KEYS, 40)
        conflict = dice.choice(["keep", "replace"])
        drafts = [Draft().type("a").idempotency(key).on_conflict(conflict) for key in chosen]
        publish_many(self.engine, drafts)


CROWD: Final[dict[str, Callable[[Crowd, random.Random], None]]] = {
    name: getattr(Crowd, name)
    for name in ("claim", "settle", "begin", "renew", "rescue", "cancel", "retry", "reschedule", "prune", "publish")
}


@pytest.mark.parametrize("prunes", [False, True])
def test_no_deadlock_of_many_rows_reaches_anybody(postgres_url: str, prunes: bool) -> None:
    """Everything at once on the same rows: they are locked in order of id, and what a planner disordered is done again.

    But a batch is not done again, since its drafts are gone: one that meets a settle, or a prune of its keys, may be
    told to publish again.
    """
    engine = engines.create(postgres_url, pool_size=10)
    publish_many(engine, [Draft().type("a").idempotency(key) for key in reversed(KEYS)])
    crowd = Crowd(engine)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(crowd.work, seed, 40, None if prunes else "prune") for seed in range(8)]:
            future.result()

    engine.dispose()
    assert set(crowd.contended) <= {"publish"}
    assert set(crowd.done) == set(CROWD) - (set() if prunes else {"prune"})


@pytest.mark.parametrize("step", ["settle", "begin", "cancel", "retry"])
def test_loser_of_a_deadlock_does_it_again(postgres_url: str, step: str) -> None:
    """An application that locks actions in an order of its own costs the package a moment, and nobody an error."""
    # Looked for once, so long after the wait began: until then the rival must wait too.
    plain = create_engine(postgres_url)
    with plain.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {plain.url.database} SET deadlock_timeout = '2s'")
    plain.dispose()
    engine = engines.create(postgres_url)
    given = {"cancel": "due", "retry": "dead"}.get(step, "held")
    ids = [add(engine, **ROWS[given]) for _ in range(2)]
    with engine.connect() as rival, ThreadPoolExecutor(1) as pool:
        rival.exec_driver_sql("SET deadlock_timeout = '60s'")  # so that it is ours that loses
        rival.execute(select(TABLE.c.id).where(TABLE.c.id == ids[1]).with_for_update())
        ours = pool.submit(CROSSWISE[step], engine, ids)
        wait_until(lambda: blocked(engine), description=f"{step} waits")
        rival.execute(select(TABLE.c.id).where(TABLE.c.id == ids[0]).with_for_update())
        rival.commit()

        assert sorted(ours.result(10)) == ids
    wait_until(lambda: deadlocks(engine) > 0, description="the server has counted the deadlock")
    engine.dispose()


CROSSWISE: Final[dict[str, Callable[[Engine, list[int]], Any]]] = {
    "settle": lambda engine, ids: settle(
        engine, TABLE, [Settlement(id_, 1, ActionStatus.PROCESSED, 0, Processed()) for id_ in ids]
    ),
    "begin": lambda engine, ids: claiming.begin(engine, TABLE, [(id_, 1, "run") for id_ in ids]),
    "cancel": operations.cancel,
    "retry": operations.retry,
}


def deadlocks(engine: Engine) -> int:
    with engine.connect() as connection:
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        return connection.exec_driver_sql(query).scalar_one()
