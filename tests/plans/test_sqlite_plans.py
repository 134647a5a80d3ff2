"""What SQLite makes of the same statements: every one of them by an index, and none by sorting the backlog."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, Executable

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.dialects import bind_rows
from prefect_claim_dispatch.statements.begin import begin, begin_once
from prefect_claim_dispatch.statements.claim import claim, claim_behind
from prefect_claim_dispatch.statements.ordering import heads
from prefect_claim_dispatch.statements.outstanding import follow, held, outstanding, take
from prefect_claim_dispatch.statements.recognise import recognise
from prefect_claim_dispatch.statements.renew import renew
from prefect_claim_dispatch.statements.rescue import expired, unheard
from prefect_claim_dispatch.statements.settle import settle
from prefect_claim_dispatch.statements.survey import count_due, survey
from tests.kit.tables import TABLE

BACKLOG = """
    WITH RECURSIVE series (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM series WHERE i < 5000)
    INSERT INTO action_logs (type, priority, end_at)
    SELECT 'type.' || i % 5, i % 3, datetime('now', '-1 hour') FROM series"""
DUE = "SEARCH candidate USING INDEX ix_action_logs_due (type=? AND priority=? AND end_at<?)"
LANES = {f"type_{n}": f"type.{n % 2}" for n in range(4)} | {f"priority_{n}": 2 - n // 2 for n in range(4)}
CLAIM = {"limit": 10, "lease_seconds": 60.0, "claimed_by": "run", "run_id": "run"} | LANES
BY_ID = "SEARCH action_logs USING INTEGER PRIMARY KEY (rowid=?)"


@pytest.fixture(params=["", "ANALYZE"], ids=["never analyzed", "analyzed"])
def engine(request: pytest.FixtureRequest, sqlite_url: str) -> Iterator[Engine]:
    """A backlog, and a planner that knows about it or not."""
    engine = engines.create(sqlite_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(BACKLOG)
        if request.param:
            connection.exec_driver_sql(request.param)
    yield engine
    engine.dispose()


def plan_of(engine: Engine, statement: Executable, parameters: dict[str, Any]) -> list[str]:
    """The lines of EXPLAIN QUERY PLAN."""
    compiled = statement.compile(dialect=engine.dialect)  # pyright: ignore[reportAttributeAccessIssue] - a ClauseElement
    values = compiled.construct_params(parameters)
    with engine.connect() as connection:
        arguments = tuple(values[name] for name in compiled.positiontup)
        return [line.detail for line in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", arguments)]


def assert_walks_through_nothing(plan: list[str]) -> None:
    """No table is read from its beginning, and nothing is sorted."""
    assert not [line for line in plan if "TEMP B-TREE" in line], plan
    scans = [line for line in plan if line.startswith("SCAN") and "USING INDEX" not in line]
    assert not [line for line in scans if line.split()[1] in ("action_logs", "candidate", "earlier", "running")], plan


def test_survey_jumps_from_lane_to_lane(engine: Engine) -> None:
    """Each step is a search in the index; the first lane, the oldest lease and a key are first entries of theirs."""
    plan = plan_of(engine, survey(TABLE, "sqlite"), {})

    assert_walks_through_nothing(plan)
    assert "SCAN first USING INDEX ix_action_logs_due" in plan
    assert any(line.startswith("SEARCH following USING INDEX ix_action_logs_due (type>?") for line in plan)
    assert any(
        line.startswith("SEARCH same_type USING INDEX ix_action_logs_due (type=? AND priority>?") for line in plan
    )
    assert "SCAN action_logs USING INDEX ix_action_logs_leases" in plan
    assert "SEARCH head USING INTEGER PRIMARY KEY (rowid=?)" in plan


@pytest.mark.parametrize(("shape", "lanes"), [((1,), 1), ((2,), 2), ((2, 2), 4), ((1, 1), 2)], ids=str)
def test_claim_merges_what_is_in_order(engine: Engine, shape: tuple[int, ...], lanes: int) -> None:
    """Due rows come from the index in order, lanes of one priority are merged, and rows are found by their ids."""
    plan = plan_of(engine, claim(TABLE, "sqlite", shape, windowed=False), CLAIM)

    assert_walks_through_nothing(plan)
    assert plan[0] == BY_ID
    assert plan.count(DUE) == lanes
    assert plan.count("MERGE (UNION ALL)") == sum(number - 1 for number in shape)
    assert plan.count("SEARCH running USING INDEX uq_action_logs_running (ordering_key=?)") == lanes
    assert plan.count("SEARCH earlier USING INDEX ix_action_logs_ordering (ordering_key=? AND id<?)") == lanes


@pytest.mark.parametrize(("shape", "lanes"), [((1,), 1), ((2, 1), 3)], ids=str)
def test_claim_beside_ordering_keys_sorts_no_more_than_it_looks_at(
    engine: Engine, shape: tuple[int, ...], lanes: int
) -> None:
    """The first rows of each lane come from the index, in order; only these few are sorted once more to be merged."""
    plan = plan_of(engine, claim(TABLE, "sqlite", shape), CLAIM)

    assert plan[0] == BY_ID
    assert plan.count(DUE) == plan.count("SCAN first") == lanes
    assert plan.count("SEARCH earlier USING INDEX ix_action_logs_ordering (ordering_key=? AND id<?)") == lanes


def test_claim_behind_ordering_keys_begins_where_there_was_something(engine: Engine) -> None:
    """In the midst of the lane; heads are looked up by their ids."""
    where = {"from_at_0": "2026-01-31 12:00:00", "from_id_0": 1, "head_rows": "[]"}

    plan = plan_of(engine, claim_behind(TABLE, "sqlite", (1,)), CLAIM | where)

    assert "SEARCH candidate USING INDEX ix_action_logs_due (type=? AND priority=? AND end_at>? AND end_at<?)" in plan
    assert "SEARCH candidate USING INTEGER PRIMARY KEY (rowid=?)" in plan


@pytest.mark.parametrize("further", [False, True])
def test_heads_are_found_by_jumping_from_key_to_key(engine: Engine, *, further: bool) -> None:
    """Each step is a search in the index of ordering keys."""
    plan = plan_of(engine, heads(TABLE, "sqlite", further=further), {"limit": 10, "after_key": "k"})

    assert "SEARCH following USING INDEX ix_action_logs_ordering (ordering_key>?)" in plan
    assert "SEARCH first USING INDEX ix_action_logs_ordering (ordering_key=?)" in plan
    assert not [line for line in plan if line.startswith("SCAN") and "action_logs" in line], plan


@pytest.mark.parametrize(
    ("statement", "prefix", "more"),
    [
        (settle, "settled", {}),
        (begin, "begun", {}),
        (begin_once, "entered", {"lease_seconds": 60.0}),
        (renew, "held", {"lease_seconds": 60.0}),
        (recognise, "sent", {}),
        (held, "wanted", {}),
        (follow, "followed", {}),
        (take, "taken", {}),
    ],
    ids=["settle", "begin", "begin_once", "renew", "recognise", "held", "follow", "take"],
)
def test_batches_are_joined_by_the_primary_key(
    engine: Engine, statement: Any, prefix: str, more: dict[str, Any]
) -> None:
    """The document of parameters is read once, and each of its rows looked up."""
    plan = plan_of(engine, statement(TABLE, "sqlite"), bind_rows("sqlite", prefix, {"id": [1]}) | more)

    assert_walks_through_nothing(plan)
    assert plan[0] == f"MATERIALIZE {prefix}"
    assert plan[-2:] == [f"SCAN {prefix}", BY_ID]


def test_rescue_reads_the_oldest_leases(engine: Engine) -> None:
    """In the order of the index."""
    plan = plan_of(engine, expired(TABLE, "sqlite"), {"limit": 10})

    assert plan == ["SEARCH action_logs USING INDEX ix_action_logs_leases (lease_expires_at<?)"]


def test_claims_that_were_not_heard_of_are_looked_for_among_the_claimed(engine: Engine) -> None:
    """Seldom, and never through what is pending or done."""
    plan = plan_of(engine, unheard(TABLE, "sqlite"), {"claimed_by": "me", "since": "2026-01-31 12:00:00"})

    assert plan == ["SCAN action_logs USING INDEX ix_action_logs_leases"]


@pytest.mark.parametrize("further", [False, True])
def test_outstanding_claims_are_read_from_the_index_of_leases(engine: Engine, *, further: bool) -> None:
    """In its order; claims of other lanes are stepped over."""
    parameters = {"limit": 10, "after_at": "2026-01-31 12:00:00", "after_id": 1}
    plan = plan_of(engine, outstanding(TABLE, "sqlite", further=further), parameters)

    used = "action_logs USING INDEX ix_action_logs_leases"
    assert plan == [f"SEARCH {used} (lease_expires_at>?)" if further else f"SCAN {used}"]


def test_counting_due_actions_reads_one_lane_of_the_index(engine: Engine) -> None:
    """Its rows only."""
    (line,) = plan_of(engine, count_due(TABLE), {"type": "type.1", "priority": 1})

    assert "ix_action_logs_due (type=? AND priority=? AND end_at<?)" in line


def test_counting_a_few_due_actions_sorts_nothing(engine: Engine) -> None:
    """They come in the index's order."""
    plan = plan_of(engine, count_due(TABLE, bounded=True), {"type": "type.1", "priority": 1, "limit": 10})

    assert "ix_action_logs_due (type=? AND priority=? AND end_at<?)" in " ".join(plan)
    assert not [line for line in plan if "TEMP B-TREE" in line]
