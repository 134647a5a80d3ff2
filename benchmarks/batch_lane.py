"""The batch lane: rows a second of a whole claim flow under a real Prefect server, against peers that consume as many.

No-op rows, or jobs, on the same PostgreSQL; `rows_per_run=500`.

- *row by row* and *together*: a flow run of `claim_dispatch` with a processor of either shape: survey, claim, decode,
  validate to nothing, dispatch in task runs, outcomes, settle, `run_id` on every row. Seconds from the first claim to
  the last settlement, by the database's clock.
- *whole call*: row by row, all that the call of the flow took, with Prefect's start and end of a flow run (about a
  second, whatever the number of rows).
- *peer*: no-op jobs (the slower peers get fewer) in its fastest documented shape with one process; what that is, its
  ``peer_*.py`` says. The goal is set against the fastest of them.

What would be unfair to read into it: the peers call something for each job, *together* calls once for 500; pgqueuer
deletes finished rows, the others and we keep them; absurd records durable workflows, and writes each end by itself, as
procrastinate does; with real work all of them wait for it. All sides, and the Prefect server, share the machine. Each
round runs all sides, every other one in the opposite order; medians count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import kit
import metering
from claim_settle import fill
from sqlalchemy import Engine

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.schema import actions_table

ROWS = 50_000
ROWS_PER_RUN = 500
CONCURRENCY = 3
OURS = ("row by row", "together", "whole call")
PEERS = {"pgqueuer": 1.0, "oban": 0.4, "chancy": 0.2, "procrastinate": 0.1, "absurd": 0.1}
"""Of so many times our rows."""

MODULES = {"absurd": "absurd_sdk"}
GOALS = [kit.Goal(figure=f"{side}/peer", at_least=1.5, of={"against": "pgqueuer"}) for side in OURS[:2]]
TABLE = actions_table()


def row_by_row() -> None:
    """No work."""


def together(payloads: list[dict[str, Any]]) -> None:
    """No work."""


def run_flow(engine: Engine, rows: int, shape: Callable[..., None], limit: int) -> tuple[float, float]:
    """Rows a second, from first claim to last settlement and of the whole call."""
    metering.registered(shape, rows_per_run=ROWS_PER_RUN)
    fill(engine, TABLE, rows)
    began = time.perf_counter()
    inside, _ = metering.drained(engine, rows, limit=limit, max_concurrency=CONCURRENCY)
    return rows / inside, rows / (time.perf_counter() - began)


def measure(dsn: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sides in turn, *rounds* times; one entry for each peer."""
    rows = max(ROWS_PER_RUN, int(ROWS * options.scale))
    engine = engines.create(dsn)
    TABLE.metadata.create_all(engine)
    sides: dict[str, Callable[[], float]] = {
        "row by row": lambda: run_flow(engine, rows, row_by_row, options.limit)[0],
        "together": lambda: run_flow(engine, rows, together, options.limit)[0],
        "whole call": lambda: run_flow(engine, rows, row_by_row, options.limit)[1],
    }
    for peer, share in PEERS.items():
        if kit.has_peer(options.peer_python, MODULES.get(peer, peer)):
            jobs = max(ROWS_PER_RUN, int(rows * share))
            sides[peer] = lambda peer=peer, jobs=jobs: (
                jobs / kit.peer_seconds(options.peer_python, f"peer_{peer}.py", dsn, jobs, ROWS_PER_RUN)
            )
    measured = kit.rates(sides, options.rounds)
    engine.dispose()
    return [
        {"against": peer, "rows": rows}
        | {side: kit.median(measured, side) for side in OURS}
        | {"peer": kit.median(measured, peer)}
        | {f"{side}/peer": kit.ratio(measured, side, peer) for side in OURS}
        for peer in PEERS
    ]


def main() -> None:
    """Start a PostgreSQL from the wheel and a Prefect server, measure, end them."""
    parser = kit.parser(__doc__)
    parser.add_argument("--limit", type=int, default=1_000, help="most rows of one claim")
    options = parser.parse_args()
    with metering.stage() as (dsn, _):
        results = measure(dsn, options)
    title = "batch lane: rows a second of a whole claim flow, and ratios (medians)"
    kit.show(title, results, options, labels=["against"], goals=GOALS)


if __name__ == "__main__":
    main()
