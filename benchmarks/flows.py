"""Several claim loops at once: four processes on one backlog against one, and whether anything goes to two of them.

Each process is *ours* of `claim_settle.py`: survey, claim, decode, settle by its keeper, until nothing is due; no work,
no Prefect. They start together when all are ready, and what counts is the time until the last has ended. After each
round: every row was claimed exactly once and settled, and what the processes say that they settled adds up; otherwise
the benchmark fails. *deadlocks* are PostgreSQL's own count, and 0 is the goal.

What would be unfair to read into it: on two cores, one loop and its database keep both busy already, so the ratio says
what contention costs, and not what four machines would do. With real work, loops wait for it and not for one another.
Each round runs both sides, every other one in the opposite order; medians count.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from typing import Any

import kit
import psycopg
from claim_settle import fill, ours

from prefect_claim_dispatch import engines, heap
from prefect_claim_dispatch.schema import actions_table

ROWS = 100_000
LOOPS = 4
BATCH = 500
SECONDS = 600
GOALS = [kit.Goal(figure="four/one", at_least=1.0), kit.Goal(figure="deadlocks", at_most=0)]
TABLE = actions_table()
EXACTLY_ONCE = "SELECT count(*) FROM action_logs WHERE status = 'processed' AND claim_count = 1"


def loop(dsn: str, ready: Barrier, settled: Any) -> None:
    """One process: wait for the others, work, say how many it settled."""
    engine = engines.create(dsn)
    with engine.connect():
        pass
    with heap.frozen():
        ready.wait(SECONDS)
        done = ours(engine, TABLE, BATCH)
    settled.put(done)
    engine.dispose()


def run(dsn: str, rows: int, loops: int) -> float:
    """Rows a second of so many loops together."""
    context = multiprocessing.get_context("spawn")
    ready, settled = context.Barrier(loops + 1), context.Queue()
    processes = [context.Process(target=loop, args=(dsn, ready, settled)) for _ in range(loops)]
    for process in processes:
        process.start()
    ready.wait(SECONDS)
    began = time.perf_counter()
    told = [settled.get(timeout=SECONDS) for _ in processes]
    seconds = time.perf_counter() - began
    for process in processes:
        process.join(SECONDS)
    with psycopg.connect(dsn) as connection:
        ((once,),) = connection.execute(EXACTLY_ONCE).fetchall()
    if (once, sum(told)) != (rows, rows):
        raise SystemExit(f"{once} of {rows} rows were claimed once and settled; the loops settled {told}")
    return rows / seconds


def deadlocks(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        ((count,),) = connection.execute("SELECT sum(deadlocks) FROM pg_stat_database").fetchall()
    return int(count)


def measure(dsn: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both sides in turn, *rounds* times."""
    rows = max(1_000, int(ROWS * options.scale))
    engine = engines.create(dsn)
    TABLE.metadata.create_all(engine)

    def side(loops: int) -> Callable[[], float]:
        def filled() -> float:
            fill(engine, TABLE, rows)
            return run(dsn, rows, loops)

        return filled

    measured = kit.rates({"one": side(1), "four": side(LOOPS)}, options.rounds)
    engine.dispose()
    figures = kit.figures(measured, ("one", "four"), [("four", "one")])
    return [{"rows": rows, "batch": BATCH} | figures | {"deadlocks": deadlocks(dsn)}]


def main() -> None:
    """Start a PostgreSQL from the wheel, measure, end it."""
    options = kit.parser(__doc__).parse_args()
    with kit.postgresql() as dsn:
        results = measure(dsn, options)
    kit.show("claim loops at once: rows a second (medians)", results, options, labels=["rows"], goals=GOALS)


if __name__ == "__main__":
    main()
