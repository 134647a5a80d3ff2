"""What PostgreSQL's planner makes of every statement of the loop, on 100,000 rows, whatever it believes about them.

With another number in ``CLAIM_DISPATCH_TEST_ROWS``, on so many: ten million take minutes and gigabytes, per belief.

Plans that are right by luck are the most expensive bug this package can have. So each is looked at with fresh
statistics, with stale ones and with none, as a custom and as a generic plan: its index, no walk through the table, no
sort of the backlog, and few rows touched.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache as cache_results
from typing import Any

import psycopg
import pytest
from sqlalchemy import Executable, event

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.dialects import bind_rows
from prefect_claim_dispatch.statements.begin import begin, begin_once
from prefect_claim_dispatch.statements.claim import FOR_EACH, WINDOW, claim, claim_behind
from prefect_claim_dispatch.statements.limit import running
from prefect_claim_dispatch.statements.ordering import SAMPLE, depth, heads
from prefect_claim_dispatch.statements.outstanding import follow, held, outstanding, take
from prefect_claim_dispatch.statements.recognise import recognise
from prefect_claim_dispatch.statements.renew import renew
from prefect_claim_dispatch.statements.rescue import expired
from prefect_claim_dispatch.statements.settle import settle
from prefect_claim_dispatch.statements.survey import count_due, survey
from tests.conftest import MIGRATE, shared_postgres
from tests.kit import postgres
from tests.kit.tables import TABLE, by_status, claim_due, seconds_from_now
from tests.plans.explained import Plan, PlanCache, explained

TOTAL = int(os.environ.get("CLAIM_DISPATCH_TEST_ROWS") or 100_000)
CLAIMED = 2_000  # of the moment, however large the table
LIVE_ROWS = TOTAL - CLAIMED - TOTAL * 6 // 10
STRAYS = FUTURE = TOTAL // 10
DUE = LIVE_ROWS - STRAYS - FUTURE

# One worker fills the backlogs, and keeps them.
FINISHED = f"""
    INSERT INTO action_logs (type, priority, status, end_at, claimed_at, claim_count, processed_at, settled_at)
    SELECT 'type.' || mod(i, 5), mod(i, 3), status, now() - interval '1 day', now(), 1,
           CASE status WHEN 'processed' THEN now() END, now()
    FROM generate_series(1, {TOTAL * 6 // 10}) i,
         LATERAL (SELECT CASE WHEN mod(i, 20) = 0 THEN 'dead' WHEN mod(i, 30) = 1 THEN 'cancelled' ELSE 'processed'
         END) s (status)"""
LIVE = (
    # The future, of the same types.
    f"""INSERT INTO action_logs (type, priority, end_at)
       SELECT 'type.' || mod(i, 5), mod(i, 3), now() + interval '1 hour' + i * interval '1 ms' FROM generate_series(1,
       {FUTURE}) i""",
    # Due, of five types and three priorities; one in forty has an ordering key, most of these behind another.
    f"""INSERT INTO action_logs (type, priority, end_at, ordering_key)
       SELECT 'type.' || mod(i, 5), mod(i, 3), now() - interval '1 hour' + i * interval '1 ms',
              CASE WHEN mod(i / 5, 40) = 0 THEN 'key.' || mod(i, 97) END
       FROM generate_series(1, {DUE}) i""",
    # Due longer than all others, of types that nobody registered.
    f"""INSERT INTO action_logs (type, priority, end_at)
       SELECT 'stray.' || mod(i, 4), 9, now() - interval '2 hours' + i * interval '1 ms' FROM generate_series(1,
       {STRAYS}) i""",
    # Claimed; half of the leases are over.
    f"""INSERT INTO action_logs (type, priority, status, end_at, claimed_at, claimed_by, run_id, claim_count,
              lease_expires_at)
       SELECT 'type.' || mod(i, 5), 0, 'claimed', now() - interval '1 hour', now(), 'run', 'run', 1, now()
              + CASE WHEN i <= {CLAIMED // 2} THEN i - 3600 ELSE i + 3600 END * interval '1 s'
       FROM generate_series(1, {CLAIMED}) i""",
)
NEVER, ANALYZE, VACUUM = "SELECT 1", "ANALYZE action_logs", "VACUUM ANALYZE action_logs"
STATISTICS = {
    "none": [FINISHED, *LIVE],
    "fresh": [FINISHED, *LIVE, ANALYZE],
    "fresh and vacuumed": [FINISHED, *LIVE, VACUUM],
    "from when it was empty": [ANALYZE, FINISHED, *LIVE],
    "from when all was finished": [FINISHED, VACUUM, *LIVE],
}
LANES = [(f"type.{type_}", priority) for priority in (2, 1, 0) for type_ in range(5)]


@dataclass(frozen=True, slots=True)
class Backlog:
    """A database with so many rows."""

    url: str
    connection: psycopg.Connection
    claimed: list[int]

    def explain(self, statement: Executable, parameters: dict[str, Any], cache: PlanCache) -> Plan:
        return explained(self.connection, statement, parameters, cache)


@contextmanager
def filled(make: str, statistics: str) -> Generator[Backlog]:
    """So many rows on a PostgreSQL of that *make*, and a planner that believes something about them."""
    with postgres.fresh_database(shared_postgres(make), prepare=MIGRATE) as url:
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("ALTER TABLE action_logs SET (autovacuum_enabled = false)")
            for statement in STATISTICS[statistics]:
                connection.execute(statement)
            claimed = connection.execute("SELECT id FROM action_logs WHERE status = 'claimed' ORDER BY id").fetchall()
            assert connection.execute("SELECT count(*) FROM action_logs").fetchone() == (TOTAL,)
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            yield Backlog(url, connection, [id_ for (id_,) in claimed])


@pytest.fixture(scope="session")
def backlogs() -> Iterator[Callable[[str, str], Backlog]]:
    """Each backlog, filled when it is first asked for: tests come in random order, and filling one takes seconds."""
    with ExitStack() as stack:
        yield cache_results(lambda make, statistics: stack.enter_context(filled(make, statistics)))


@pytest.fixture(params=itertools.product(postgres.available(), STATISTICS), ids=" - ".join)
def backlog(request: pytest.FixtureRequest, backlogs: Callable[[str, str], Backlog]) -> Backlog:
    """A backlog on each PostgreSQL there is (planners differ), for each belief; no test changes it."""
    return backlogs(*request.param)


@pytest.fixture(params=["force_custom_plan", "force_generic_plan"])
def cache(request: pytest.FixtureRequest) -> PlanCache:
    """Psycopg prepares after five executions, and then PostgreSQL may plan without knowing the parameters."""
    return request.param


def assert_frugal(plan: Plan, *, limit: int, indexes: set[str], touched: int | None = None) -> None:
    """Only these indexes, and no more than four times *limit* rows.

    No walk through the table, no sort of the backlog.
    """
    assert plan.indexes == indexes, plan.text
    assert not plan.kinds("Tid Scan", "Gather"), plan.text
    # The table of pauses, of some rows, is read as it is.
    assert {node.facts["Relation Name"] for node in plan.kinds("Seq Scan")} <= {"action_logs_paused"}, plan.text
    # A bitmap of the primary key, for the few ids that were chosen, is as good as the index itself.
    assert {node.index for node in plan.kinds("Bitmap Index Scan")} <= {"action_logs_pkey"}, plan.text
    assert all(node.rows_in <= limit for node in plan.kinds("Sort", "Incremental Sort", "Hash", "Materialize")), (
        plan.text
    )
    assert plan.rows_touched <= (4 * limit if touched is None else touched), plan.text


def assert_leases_are_not_walked_through(plan: Plan) -> None:
    """The worst plan seen: for each of a thousand rows, all entries of the index of leases."""
    for node in plan.scans:
        if node.index == "ix_action_logs_leases":
            assert node.facts["Actual Loops"] <= 1, plan.text


def claim_parameters(lanes: list[tuple[str, int]], limit: int) -> dict[str, Any]:
    parameters: dict[str, Any] = {"limit": limit, "lease_seconds": 60.0, "claimed_by": "run", "run_id": "run"}
    for position, (type_, priority) in enumerate(lanes):
        parameters |= {f"type_{position}": type_, f"priority_{position}": priority}
    return parameters


def test_survey_jumps_from_lane_to_lane(backlog: Backlog, cache: PlanCache) -> None:
    """Its cost is the number of lanes, 19 here, two leases and one key: not that of 40,000 live rows."""
    plan = backlog.explain(survey(TABLE), {}, cache)

    lanes = len(LANES) + 4
    assert_frugal(plan, limit=lanes, indexes={"ix_due", "_pkey", "ix_leases", "ix_ordering"})
    assert_leases_are_not_walked_through(plan)


def test_count_of_what_runs_reads_the_claims_of_the_moment_alone(backlog: Backlog, cache: PlanCache) -> None:
    """Types with a limit are counted before they are claimed; neither history nor backlog may cost that anything."""
    plan = backlog.explain(running(TABLE), {}, cache)

    # By the index or by a bitmap of it: all of its entries are wanted, once.
    assert plan.indexes == {"ix_leases"}, plan.text
    assert not plan.kinds("Seq Scan", "Tid Scan", "Gather"), plan.text
    assert plan.rows_touched <= CLAIMED, plan.text
    assert_leases_are_not_walked_through(plan)


@pytest.mark.parametrize(
    ("shape", "lanes"),
    [((1,), LANES[:1]), ((5,), LANES[:5]), ((5, 5, 5), LANES), ((1, 1), [LANES[0], LANES[5]])],
    ids=["one lane", "five types", "five types, three priorities", "two priorities"],
)
@pytest.mark.parametrize("limit", [10, 500])
def test_claim_reads_what_it_takes(
    backlog: Backlog, cache: PlanCache, shape: tuple[int, ...], lanes: list[tuple[str, int]], limit: int
) -> None:
    """Due rows come from the index in order, lanes are merged lazily.

    Strays, the future and the finished cost nothing.
    """
    plan = backlog.explain(claim(TABLE, "postgresql", shape), claim_parameters(lanes, limit), cache)

    print(f"{TOTAL:,} rows, {len(lanes)} lanes, limit {limit}: {plan.cost}")  # for the record: pytest -s
    assert plan.nodes[0].kind == "ModifyTable"
    keys = {"uq_running", "ix_ordering"}
    assert_frugal(
        plan, limit=limit, indexes={"ix_due", "_pkey"} | (plan.indexes & keys), touched=4 * limit + len(lanes)
    )
    (lock,) = plan.kinds("LockRows")
    assert lock.facts["Actual Rows"] * lock.facts["Actual Loops"] == limit, plan.text


def test_claim_touches_only_the_priority_that_is_enough(backlog: Backlog, cache: PlanCache) -> None:
    """Lower priorities are not even looked at while the highest fills the limit."""
    plan = backlog.explain(claim(TABLE, "postgresql", (5, 5, 5)), claim_parameters(LANES, 100), cache)

    due = [node for node in plan.scans if node.index == "ix_action_logs_due"]
    assert sum(node.is_executed for node in due) == 5, plan.text


def test_bounded_claim_has_the_same_plan(backlog: Backlog, cache: PlanCache) -> None:
    """`until` narrows the same range of the index."""
    parameters = claim_parameters(LANES, 100) | {"until": datetime(2100, 1, 1, tzinfo=UTC)}

    plan = backlog.explain(claim(TABLE, "postgresql", (5, 5, 5), bounded=True), parameters, cache)

    assert_frugal(
        plan, limit=100, indexes={"ix_due", "_pkey"} | (plan.indexes & {"uq_running", "ix_ordering"}), touched=415
    )


def test_claim_that_finds_nothing_costs_nothing(backlog: Backlog, cache: PlanCache) -> None:
    """Somebody else was faster."""
    plan = backlog.explain(claim(TABLE, "postgresql", (1,)), claim_parameters([("nobody", 0)], 100), cache)

    assert_frugal(plan, limit=0, indexes={"ix_due"} | (plan.indexes & {"_pkey"}))


def test_counting_due_actions_reads_one_lane_of_the_index(backlog: Backlog, cache: PlanCache) -> None:
    """Asked once per run, for what is unroutable."""
    plan = backlog.explain(count_due(TABLE), {"type": "stray.1", "priority": 9}, cache)

    assert plan.indexes == {"ix_due"}, plan.text
    assert not plan.kinds("Seq Scan"), plan.text
    assert plan.rows_touched <= 2 * STRAYS // 4, plan.text


@pytest.mark.parametrize("type_", ["stray.1", "nobody"])
def test_counting_a_few_due_actions_reads_no_more(backlog: Backlog, cache: PlanCache, type_: str) -> None:
    """Asked in each round, for what lingers."""
    plan = backlog.explain(count_due(TABLE, bounded=True), {"type": type_, "priority": 9, "limit": 10}, cache)

    assert plan.indexes <= {"ix_due"}, plan.text
    assert not plan.kinds("Seq Scan"), plan.text
    assert plan.rows_touched <= 3 * 10 + 1, plan.text


@pytest.mark.parametrize("limit", [10, 500])
def test_rescue_reads_the_oldest_leases(backlog: Backlog, cache: PlanCache, limit: int) -> None:
    """In order of the index of leases, as many as it takes."""
    plan = backlog.explain(expired(TABLE, "postgresql"), {"limit": limit}, cache)

    assert_frugal(plan, limit=limit, indexes={"ix_leases"})
    assert_leases_are_not_walked_through(plan)


@pytest.mark.parametrize("further", [False, True])
def test_outstanding_claims_are_read_from_the_index_of_leases(
    backlog: Backlog, cache: PlanCache, *, further: bool
) -> None:
    """All 2,000 claims are of other lanes here, the worst there is: stepped over once, and nothing else is read."""
    parameters = {"limit": 200, "after_at": datetime(2000, 1, 1, tzinfo=UTC), "after_id": 0}
    plan = backlog.explain(outstanding(TABLE, "postgresql", further=further), parameters, cache)

    assert_frugal(plan, limit=200, indexes={"ix_leases"}, touched=2_000)
    assert_leases_are_not_walked_through(plan)


@pytest.mark.parametrize(
    ("statement", "prefix", "more"),
    [
        (held, "wanted", {}),
        (follow, "followed", {"run_id": "run", "lease_seconds": 60.0}),
        (take, "taken", {"run_id": "run", "lease_seconds": 60.0}),
    ],
    ids=["held", "follow", "take"],
)
def test_claims_of_the_deployment_lane_are_found_by_the_primary_key(
    backlog: Backlog, cache: PlanCache, statement: Any, prefix: str, more: dict[str, Any]
) -> None:
    """A hundred runs that were just created are written onto their rows at once."""
    ids = backlog.claimed[:100]
    columns = {"id": ids, "claim_count": [1] * len(ids), **{name: [value] * len(ids) for name, value in more.items()}}
    plan = backlog.explain(statement(TABLE, "postgresql"), bind_rows("postgresql", prefix, columns), cache)

    assert_frugal(plan, limit=len(ids), indexes={"_pkey"})


def settle_parameters(ids: list[int]) -> dict[str, Any]:
    number = len(ids)
    columns: dict[str, list[Any]] = {
        "id": ids,
        "claim_count": [1] * number,
        "status": ["processed"] * number,
        "fail_count": [0] * number,
        "delay_seconds": [None] * number,
        "errors": [None] * number,
        "run_id": ["run"] * number,
    }
    return bind_rows("postgresql", "settled", columns)


def begin_parameters(ids: list[int]) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {"id": ids, "claim_count": [1] * len(ids), "run_id": ["run"] * len(ids)}
    return bind_rows("postgresql", "begun", columns)


def begin_once_parameters(ids: list[int]) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {"id": ids, "claim_count": [1] * len(ids), "run_id": ["run"] * len(ids)}
    return bind_rows("postgresql", "entered", columns) | {"lease_seconds": 60.0}


def renew_parameters(ids: list[int]) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {"id": ids, "claim_count": [1] * len(ids)}
    return bind_rows("postgresql", "held", columns) | {"lease_seconds": 60.0}


def recognise_parameters(ids: list[int]) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {"id": ids, "claim_count": [0] * len(ids)}
    return bind_rows("postgresql", "sent", columns)


@pytest.mark.parametrize("number", [1, 10, 1_000])
@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        (settle, settle_parameters),
        (begin, begin_parameters),
        (begin_once, begin_once_parameters),
        (renew, renew_parameters),
        (recognise, recognise_parameters),
    ],
    ids=["settle", "begin", "begin_once", "renew", "recognise"],
)
def test_batches_are_joined_by_the_primary_key(
    backlog: Backlog,
    cache: PlanCache,
    statement: Callable[..., Executable],
    parameters: Callable[[list[int]], dict[str, Any]],
    number: int,
) -> None:
    """Each row is looked up once.

    In order of id (two batches that lock in different orders could wait for each other for ever).
    """
    ids = backlog.claimed[-number:]

    plan = backlog.explain(statement(TABLE, "postgresql"), parameters(ids), cache)

    assert_frugal(plan, limit=number, indexes={"_pkey"}, touched=number)
    (loop,) = plan.kinds("Nested Loop")
    # A SELECT has its bound arrays, each a Result, below the join; an UPDATE has them elsewhere.
    joined = [child.kind for child in loop.children if child.kind != "Result"]
    assert joined == ["Function Scan", "Index Scan"], plan.text
    assert loop.facts["Actual Rows"] * loop.facts["Actual Loops"] == number, plan.text


# A hot key: so many actions of one, and behind them a few of others and without any.
HOT = (
    f"""INSERT INTO action_logs (type, end_at, ordering_key) SELECT 'hot', now() - interval '1 hour', 'hot'
       FROM generate_series(1, {TOTAL})""",
    """INSERT INTO action_logs (type, end_at, ordering_key) SELECT 'hot', now() - interval '1 minute', 'key.' || i
       FROM generate_series(1, 20) i""",
    "INSERT INTO action_logs (type, end_at) SELECT 'hot', now() - interval '1 minute' FROM generate_series(1, 100)",
    """UPDATE action_logs SET status = 'claimed', claimed_at = now(), claim_count = 1, lease_expires_at = now()
       + interval '1 hour' WHERE id = 1""",
)
HOT_LIMIT = 24
HOT_LANE: dict[str, Any] = {"type_0": "hot", "priority_0": 0, "limit": HOT_LIMIT}


@pytest.fixture(scope="session")
def hot() -> Iterator[Callable[[str, str], psycopg.Connection]]:
    """The table with a hot key, as the planner believes it to be empty or knows it."""

    @contextmanager
    def filled_hot(make: str, analyze: str) -> Generator[psycopg.Connection]:
        with postgres.fresh_database(shared_postgres(make), prepare=MIGRATE) as url:
            with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
                connection.execute("ALTER TABLE action_logs SET (autovacuum_enabled = false)")
                for statement in (*HOT, analyze):
                    connection.execute(statement)
            with psycopg.connect(url.replace("+psycopg", "")) as connection:
                yield connection

    with ExitStack() as stack:
        yield cache_results(lambda make, analyze: stack.enter_context(filled_hot(make, analyze)))


@pytest.mark.parametrize("make", postgres.available())
@pytest.mark.parametrize("analyze", [NEVER, pytest.param(VACUUM, marks=pytest.mark.exhaustive)], ids=["none", "fresh"])
def test_hot_key_costs_what_its_keys_do_and_not_its_backlog(
    hot: Callable[[str, str], psycopg.Connection], make: str, analyze: str, cache: PlanCache
) -> None:
    """100,000 actions wait for one key: each statement of a claim reads a few hundred rows, wherever it stops."""
    connection = hot(make, analyze)
    from_at = datetime.now(UTC) - timedelta(minutes=5)
    behind = HOT_LANE | {"from_at_0": from_at, "from_id_0": 0} | claim_parameters([("hot", 0)], HOT_LIMIT)
    behind |= bind_rows("postgresql", "head", {"id": [TOTAL + 1 + n for n in range(20)], "turn": [0] * 20})

    plans = {
        "claim": explained(connection, claim(TABLE, "postgresql", (1,)), claim_parameters([("hot", 0)], 24), cache),
        "depth": explained(connection, depth(TABLE, "postgresql", 1), HOT_LANE, cache),
        "heads": explained(connection, heads(TABLE, "postgresql", further=False), {"limit": 1_000}, cache),
        "behind": explained(connection, claim_behind(TABLE, "postgresql", (1,)), behind, cache),
    }

    print({name: plan.cost for name, plan in plans.items()})  # for the record: pytest -s
    window = WINDOW + FOR_EACH * HOT_LIMIT
    most = {"claim": 3 * window, "depth": 2 * window + 3 * SAMPLE, "heads": 5 * 22, "behind": 8 * HOT_LIMIT}
    for name, plan in plans.items():
        assert plan.rows_touched <= most[name], plan.text
        assert not plan.kinds("Seq Scan", "Tid Scan", "Gather"), plan.text
    (lock,) = plans["behind"].kinds("LockRows")
    assert lock.facts["Actual Rows"] * lock.facts["Actual Loops"] == HOT_LIMIT, plans["behind"].text


@pytest.mark.parametrize(
    "forced", ["enable_hashjoin = off; SET enable_mergejoin = off", "enable_nestloop = off", "enable_indexscan = off"]
)
def test_no_plan_claims_more_than_its_limit(postgres_server: postgres.Server, forced: str) -> None:
    """The claim of other packages, under a plan that runs the subquery again for each row.

    Claims everything there is.
    """
    with postgres.fresh_database(postgres_server, prepare=MIGRATE) as url:
        engine = engines.create(url)

        @event.listens_for(engine, "connect")
        def force(connection: Any, _record: Any) -> None:
            connection.execute(f"SET {forced}")
            connection.commit()

        with engine.begin() as connection:
            connection.execute(
                TABLE.insert().values(end_at=seconds_from_now(-60)),
                [{"type": f"type.{number % 5}", "priority": number % 3} for number in range(1_000)],
            )

        claimed = claim_due(engine, limit=50)

        assert len(claimed) == 50
        assert by_status(engine) == {"claimed": 50, "pending": 950}
        assert {raw.row.priority for raw in claimed} == {2}
        engine.dispose()
