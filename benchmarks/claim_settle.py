"""Claim + settle: rows a second, against the same SQL by bare psycopg and against pgqueuer consuming as many.

Prints ratios. No work, no Prefect: each side claims a batch, decodes each row, concludes *processed*, settles, until
nothing is due.

- *ours*: as a claim flow does it. Its main thread surveys, claims and decodes, its keeper settles meanwhile, on a
  connection of its own and by group commit.
- *in turn*: the same functions one after another on one connection, each batch settled before the next is claimed.
- *bare*: the same compiled SQL with the same parameters, in turn, by psycopg alone. It leaves out what a library adds:
  SQLAlchemy, our values, the state machine, leases renewed, lost ones noticed.
- *pgqueuer*: no-op jobs in its drain mode, on the same server, with its fastest driver and event loop.

What would be unfair to read into it: pgqueuer calls a coroutine for each job and deletes finished rows, we keep ours;
with real work all of them wait for it. All sides share the machine with the server. Each round runs all sides, every
other one in the opposite order, so that drift hits all alike; medians count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import kit
import psycopg
from sqlalchemy import Engine, Table, text

from prefect_claim_dispatch import claiming, engines, heap, settling
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dialects import bind_rows
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.policies import RetryPolicy, settlement_for
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.schema import actions_table
from prefect_claim_dispatch.statements.claim import claim as claim_statement
from prefect_claim_dispatch.statements.settle import settle as settle_statement
from prefect_claim_dispatch.statements.survey import survey as survey_statement

SIDES = ("ours", "in turn", "bare", "pgqueuer")
RATIOS = (("ours", "bare"), ("in turn", "bare"), ("ours", "pgqueuer"))
GOALS = [
    kit.Goal(figure="ours/bare", at_least=0.9, of={"batch": 1_000}),
    kit.Goal(figure="ours/pgqueuer", at_least=2.5, of={"batch": 1_000}),
]
LEASE = timedelta(minutes=5)
POLICY = RetryPolicy()
ROWS_BY_BATCH = {1: 2_000, 100: 40_000, 1_000: 100_000}


def fill(engine: Engine, table: Table, rows: int) -> None:
    """A fresh table with *rows* due actions, vacuumed and analyzed."""
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {table.name}"))
        connection.execute(
            text("INSERT INTO action_logs (type, payload) SELECT 'noop', '{\"n\"\\:1}' FROM generate_series(1, :n)"),
            {"n": rows},
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"VACUUM ANALYZE {table.name}"))


def ours(engine: Engine, table: Table, batch: int) -> int:
    """Through the library, as a claim flow does it."""
    tally = Tally()
    with Keeper(engine, table, lease=LEASE, tally=tally) as keeper:
        while raws := claim(engine, table, batch):
            keeper.hold(raws)
            for raw in raws:
                keeper.settle(settlement_for(Processed(), raw.action(), POLICY))
    return tally.report().processed


def in_turn(engine: Engine, table: Table, batch: int) -> int:
    """Through the library, each batch settled before the next is claimed."""
    done = 0
    while raws := claim(engine, table, batch):
        settlements = [settlement_for(Processed(), raw.action(), POLICY) for raw in raws]
        done += len(settling.settle(engine, table, settlements))
    return done


def claim(engine: Engine, table: Table, batch: int) -> list[RawAction]:
    """The next *batch* of what is due."""
    lanes = claiming.survey(engine, table).due()
    return claiming.claim(engine, table, lanes, limit=batch, lease=LEASE, claimed_by="benchmark")


class Bare:
    """The same SQL by psycopg alone."""

    def __init__(self, engine: Engine, table: Table) -> None:
        self.survey = survey_statement(table).compile(dialect=engine.dialect)
        self.claim = claim_statement(table, "postgresql", (1,)).compile(dialect=engine.dialect)
        self.settle = settle_statement(table, "postgresql").compile(dialect=engine.dialect)
        url = engine.url
        self.connection = psycopg.connect(host=url.query["host"], dbname=url.database, user=url.username)

    def run(self, batch: int) -> int:
        done = 0
        survey, claim, settle = str(self.survey), str(self.claim), str(self.settle)
        while True:
            with self.connection.transaction():
                lanes = self.connection.execute(survey, self.survey.construct_params()).fetchall()
            lanes = [lane for lane in lanes if lane[0] is not None and lane[2] <= lane[3]]
            if not lanes:
                return done
            parameters = {
                "limit": batch,
                "lease_seconds": LEASE.total_seconds(),
                "claimed_by": "benchmark",
                "run_id": "benchmark",
                "type_0": lanes[0][0],
                "priority_0": lanes[0][1],
            }
            with self.connection.transaction():
                rows = self.connection.execute(claim, self.claim.construct_params(parameters)).fetchall()
            for row in rows:
                json.loads(row[2])
                json.loads(row[10])
            rows.sort()
            arrays: dict[str, list[Any]] = {
                "id": [row[0] for row in rows],
                "claim_count": [row[5] for row in rows],
                "status": ["processed"] * len(rows),
                "fail_count": [row[6] for row in rows],
                "delay_seconds": [None] * len(rows),
                "errors": [None] * len(rows),
                "run_id": [None] * len(rows),
            }
            with self.connection.transaction():
                done += len(
                    self.connection.execute(
                        settle, self.settle.construct_params(bind_rows("postgresql", "settled", arrays))
                    ).fetchall()
                )


def timed(fill_table: Callable[[], None], run: Callable[[], int], rows: int) -> float:
    """Rows a second of *run*, which must have done all of them."""
    fill_table()
    # As the flow does it. For all sides: the bare one would else pay for what the others have imported.
    with heap.frozen():
        began = time.perf_counter()
        done = run()
        seconds = time.perf_counter() - began
    if done != rows:
        message = f"settled {done} of {rows}"
        raise SystemExit(message)
    return rows / seconds


def measure(dsn: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sides in turn, *rounds* times; one entry for each batch size."""
    engine = engines.create(dsn)
    table = actions_table()
    table.metadata.create_all(engine)
    bare = Bare(engine, table)
    refill = lambda rows: lambda: fill(engine, table, rows)  # noqa: E731
    results: list[dict[str, Any]] = []
    for batch, usual in ROWS_BY_BATCH.items():
        rows = max(batch, int(usual * options.scale))
        sides: dict[str, Callable[[], float]] = {
            "ours": lambda batch=batch, rows=rows: timed(refill(rows), lambda: ours(engine, table, batch), rows),
            "in turn": lambda batch=batch, rows=rows: timed(refill(rows), lambda: in_turn(engine, table, batch), rows),
            "bare": lambda batch=batch, rows=rows: timed(refill(rows), lambda: bare.run(batch), rows),
        }
        if options.peer_python and batch == max(ROWS_BY_BATCH):
            sides["pgqueuer"] = lambda batch=batch, rows=rows: (
                rows / kit.peer_seconds(options.peer_python, "peer_pgqueuer.py", dsn, rows, batch)
            )
        rates = kit.rates(sides, options.rounds)
        results.append({"batch": batch, "rows": rows} | kit.figures(rates, SIDES, RATIOS))
    bare.connection.close()
    engine.dispose()
    return results


def main() -> None:
    """Start a PostgreSQL from the wheel, measure, end it."""
    options = kit.parser(__doc__).parse_args()
    with kit.postgresql() as dsn:
        results = measure(dsn, options)
    title = "claim + settle: rows a second, and ratios (medians)"
    kit.show(title, results, options, labels=["batch"], goals=GOALS)


if __name__ == "__main__":
    main()
