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

``--server-stopped`` stops the Prefect server (SIGSTOP) between the first claim and the last settlement, and lets it do
its work afterwards: what is left when it does not take the flow's and the database's processors. Not what a flow would
do beside a server elsewhere: nobody answers meanwhile, and nothing travels.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import kit
import metering
from claim_settle import fill
from sqlalchemy import Engine, text

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
HAS_BEGUN = text("SELECT EXISTS (SELECT 1 FROM action_logs WHERE status = 'claimed')")
HAS_ENDED = text("SELECT NOT EXISTS (SELECT 1 FROM action_logs WHERE status IN ('pending', 'claimed'))")

Meanwhile = Callable[[], AbstractContextManager[None]]
"""What is done while a flow runs."""


def row_by_row() -> None:
    """No work."""


def together(payloads: list[dict[str, Any]]) -> None:
    """No work."""


@contextmanager
def server_stopped(engine: Engine, server: metering.Watched) -> Generator[None]:
    """Stop the *server* from the first claim in the block to the last settlement; it goes on when the block ends."""
    server.wait_until_quiet()
    is_over = threading.Event()

    def watch() -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for question, then in ((HAS_BEGUN, server.pause), (HAS_ENDED, server.resume)):
                while not connection.execute(question).scalar_one() and not is_over.wait(0.02):
                    pass
                then()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        is_over.set()
        watching.join()


def run_flow(
    engine: Engine, rows: int, shape: Callable[..., None], limit: int, meanwhile: Meanwhile
) -> tuple[float, float]:
    """Rows a second, from first claim to last settlement and of the whole call."""
    metering.registered(shape, rows_per_run=ROWS_PER_RUN)
    fill(engine, TABLE, rows)
    with meanwhile():
        began = time.perf_counter()
        inside, _ = metering.drained(engine, rows, limit=limit, max_concurrency=CONCURRENCY)
        return rows / inside, rows / (time.perf_counter() - began)


def measure(dsn: str, server: metering.Watched, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sides in turn, *rounds* times; one entry for each peer."""
    rows = max(ROWS_PER_RUN, int(ROWS * options.scale))
    engine = engines.create(dsn)
    TABLE.metadata.create_all(engine)
    meanwhile = partial(server_stopped, engine, server) if options.server_stopped else nullcontext
    ours = partial(run_flow, engine, rows, limit=options.limit, meanwhile=meanwhile)
    sides: dict[str, Callable[[], float]] = {
        "row by row": lambda: ours(row_by_row)[0],
        "together": lambda: ours(together)[0],
        "whole call": lambda: ours(row_by_row)[1],
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
    parser.add_argument("--server-stopped", action="store_true", help="stop the Prefect server while a flow works")
    options = parser.parse_args()
    with metering.stage() as (dsn, server):
        results = measure(dsn, server, options)
    title = "batch lane: rows a second of a whole claim flow, and ratios (medians)"
    if options.server_stopped:
        title += ", the Prefect server stopped"
    kit.show(title, results, options, labels=["against"], goals=GOALS)


if __name__ == "__main__":
    main()
