"""Scale: what a claim costs in a table with ten million rows that it does not want, against one without them.

10,000 due rows, claimed by tens of pages of 1,000 as a claim flow does it: survey, claim, commit; nothing is settled in
the time. The *large* table also has finished rows (nine of ten) and future ones, ten million at ``--scale 1``. It is
asked three times: with *stale* statistics, from when it had a hundredth of its rows; with *none*; and *fresh*, after a
VACUUM ANALYZE. Autovacuum is off in both tables, so that it changes nothing in between; the statements are prepared
after five executions, as they are in a flow, and may then have generic plans.

What would be unfair to read into it: the large table does not fit into PostgreSQL's default 128 MB of shared buffers,
but does into the machine's memory; on a cold disk the first claims pay for more pages. Each round runs both sides,
every other one in the opposite order; medians count. The ratio is of times: 1 is no difference.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import kit
from sqlalchemy import Engine, Table, text

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.schema import actions_table

HISTORY = 10_000_000
DUE = 10_000
BATCH = 1_000
CHUNK = 500_000
SMALL, LARGE = actions_table("small"), actions_table("large")
GOALS = [kit.Goal(figure="large/small", at_most=1.5)]
FINISHED = """
    INSERT INTO large (type, payload, status, end_at, claimed_at, claim_count, processed_at, settled_at)
    SELECT 'noop', '{"n": 1}', 'processed', now() - interval '1 day' + i * interval '1 ms', now(), 1, now(),
           now() - interval '1 day' + i * interval '1 ms'
    FROM generate_series(CAST(:first AS bigint), :last) i"""
FUTURE = """
    INSERT INTO large (type, payload, end_at)
    SELECT 'noop', '{"n": 1}', now() + interval '1 day' + i * interval '1 ms'
    FROM generate_series(CAST(:first AS bigint), :last) i"""
# What ANALYZE never saw: PostgreSQL 18 has a function for it, but this works on all of them.
FORGET = "DELETE FROM pg_statistic WHERE starelid = CAST('large' AS regclass)"


def execute(engine: Engine, statement: str, **parameters: Any) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(statement), parameters)


def prepared(engine: Engine, history: int) -> None:
    """Both tables, the large one with its *history*, which is analyzed when a hundredth of it is there."""
    for table in (SMALL, LARGE):
        table.metadata.create_all(engine)
        execute(engine, f"ALTER TABLE {table.name} SET (autovacuum_enabled = false)")
    add_history(engine, 1, max(10, history // 100))
    execute(engine, "ANALYZE large")
    add_history(engine, max(10, history // 100) + 1, history)


def add_history(engine: Engine, first: int, last: int) -> None:
    for start in range(first, last + 1, CHUNK):
        end = min(start + CHUNK - 1, last)
        finished = end - (end - start + 1) // 10
        execute(engine, FINISHED, first=start, last=finished)
        execute(engine, FUTURE, first=finished + 1, last=end)


def claims(engine: Engine, table: Table, due: int) -> float:
    """Milliseconds a claim, of those that take *due* rows; then they are gone."""
    from claim_settle import claim

    execute(
        engine,
        f"INSERT INTO {table.name} (type, payload) SELECT 'noop', '{{\"n\"\\:1}}' FROM generate_series(1, :due)",
        due=due,
    )
    began, claimed, pages = time.perf_counter(), 0, 0
    while raws := claim(engine, table, BATCH):
        claimed, pages = claimed + len(raws), pages + 1
    seconds = time.perf_counter() - began
    execute(engine, f"DELETE FROM {table.name} WHERE status = 'claimed'")
    if claimed != due:
        raise SystemExit(f"claimed {claimed} of {due}")
    return seconds / pages * 1_000


def measure(dsn: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both sides in turn, *rounds* times, for each belief of the planner's."""
    history = max(1_000, int(HISTORY * options.scale))
    due = max(BATCH, int(DUE * min(1.0, options.scale * 10)))
    engine = engines.create(dsn)
    prepared(engine, history)
    results: list[dict[str, Any]] = []
    for statistics, statement in (("stale", "SELECT 1"), ("none", FORGET), ("fresh", "VACUUM ANALYZE large")):
        execute(engine, statement)
        sides = {"small": lambda: claims(engine, SMALL, due), "large": lambda: claims(engine, LARGE, due)}
        figures = kit.figures(kit.rates(sides, options.rounds), ("small", "large"), [("large", "small")])
        results.append({"statistics": statistics, "rows": history, "due": due} | figures)
    engine.dispose()
    return results


def main() -> None:
    """Start a PostgreSQL from the wheel, measure, end it."""
    options = kit.parser(__doc__).parse_args()
    with kit.postgresql() as dsn:
        results = measure(dsn, options)
    kit.show("scale: milliseconds a claim (medians)", results, options, labels=["statistics", "rows"], goals=GOALS)


if __name__ == "__main__":
    main()
