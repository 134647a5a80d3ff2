"""The batch lane: rows a second of a whole claim flow under a real Prefect server, against pgqueuer consuming as many.

No-op rows on the same PostgreSQL, `rows_per_run=500`.

- *row by row* and *together*: a flow run of `claim_dispatch` with a processor of either shape: survey, claim, decode,
  validate to nothing, dispatch in task runs, outcomes, settle, `run_id` on every row. Seconds from the first claim to
  the last settlement, by the database's clock.
- *whole call*: row by row, all that the call of the flow took, with Prefect's start and end of a flow run (about a
  second, whatever the number of rows).
- *pgqueuer*: no-op jobs in its drain mode, with its fastest driver and event loop.

What would be unfair to read into it: pgqueuer calls a coroutine for each job and deletes finished rows, we keep ours;
with real work all of them wait for it. All sides, and the Prefect server, share the machine. Each round runs all sides,
every other one in the opposite order; medians count.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
from claim_settle import fill
from sqlalchemy import Engine, func, select

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.schema import actions_table

ROWS = 50_000
ROWS_PER_RUN = 500
CONCURRENCY = 3
SIDES = ("row by row", "together", "whole call", "pgqueuer")
RATIOS = (("row by row", "pgqueuer"), ("together", "pgqueuer"), ("whole call", "pgqueuer"))
TABLE = actions_table()


def row_by_row() -> None:
    """No work."""


def together(payloads: list[dict[str, Any]]) -> None:
    """No work."""


def prepared(shape: Callable[..., None]) -> None:
    """Let *shape* process what the benchmark publishes."""
    from prefect_claim_dispatch.processors import processor, registry

    registry._exact.clear()
    processor("noop", rows_per_run=ROWS_PER_RUN)(shape)


def run_flow(engine: Engine, rows: int, shape: Callable[..., None], limit: int) -> tuple[float, float]:
    """Rows a second, from first claim to last settlement and of the whole call."""
    from prefect_claim_dispatch import claim_dispatch, heap

    prepared(shape)
    fill(engine, TABLE, rows)
    with heap.frozen():
        began = time.perf_counter()
        report = claim_dispatch(limit=limit, processors=[], max_concurrency=CONCURRENCY)
        seconds = time.perf_counter() - began
    with engine.connect() as connection:
        first, last, marked = connection.execute(
            select(func.min(TABLE.c.claimed_at), func.max(TABLE.c.settled_at), func.count(TABLE.c.run_id))
        ).one()
    if (report.processed, marked) != (rows, rows):
        raise SystemExit(f"processed {report.processed} of {rows}, {marked} with a run: {report.summary()}")
    return rows / (last - first).total_seconds(), rows / seconds


def measure(dsn: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sides in turn, *rounds* times."""
    rows = max(ROWS_PER_RUN, int(ROWS * options.scale))
    engine = engines.create(dsn)
    TABLE.metadata.create_all(engine)
    sides: dict[str, Callable[[], float]] = {
        "row by row": lambda: run_flow(engine, rows, row_by_row, options.limit)[0],
        "together": lambda: run_flow(engine, rows, together, options.limit)[0],
        "whole call": lambda: run_flow(engine, rows, row_by_row, options.limit)[1],
    }
    if options.peer_python:
        sides["pgqueuer"] = lambda: (
            rows / kit.peer_seconds(options.peer_python, "peer_pgqueuer.py", dsn, rows, ROWS_PER_RUN)
        )
    figures = kit.figures(kit.rates(sides, options.rounds), SIDES, RATIOS)
    engine.dispose()
    return [{"rows": rows, "rows_per_run": ROWS_PER_RUN} | figures]


def main() -> None:
    """Start a PostgreSQL from the wheel and a Prefect server, measure, end them."""
    parser = kit.parser(__doc__)
    parser.add_argument("--limit", type=int, default=1_000, help="most rows of one claim")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pcd-bench-"))
    sys.path.insert(0, str(kit.ROOT))
    from tests.kit import prefect_server

    try:
        with kit.postgresql() as dsn, prefect_server.running(folder) as server:
            # Before Prefect is imported, which reads them.
            os.environ |= server.env | {"PREFECT_HOME": str(folder / "client"), "PREFECT_LOGGING_LEVEL": "WARNING"}
            os.environ["CLAIM_DISPATCH_DATABASE_URL"] = dsn
            results = measure(dsn, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    kit.show("batch lane: rows a second of a whole claim flow, and ratios (medians)", results, options)


if __name__ == "__main__":
    main()
