"""Claim + settle: rows a second, against the same SQL by bare psycopg and against pgqueuer consuming as many.

Prints ratios.

What it measures: one client that surveys, claims a batch, decodes each row, concludes *processed* and settles, until
nothing is due; no work, no Prefect. The bare side sends the same compiled SQL with the same parameters through
psycopg, decodes the same JSON, and builds the same arrays;
it leaves out what a library adds: SQLAlchemy, our values, the state machine. pgqueuer consumes no-op jobs in its
drain mode, on the same server, with its fastest driver.

What would be unfair to read into it: pgqueuer calls a coroutine for each job and deletes finished rows, we keep ours;
neither does any work; with real work all of them wait for it. All sides share the machine with the server. Rounds
alternate, so that drift hits all alike; medians count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table as RichTable
from sqlalchemy import Engine, Table, text

from prefect_claim_dispatch import claiming, engines, settling
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.policies import RetryPolicy, settlement_for
from prefect_claim_dispatch.schema import actions_table
from prefect_claim_dispatch.statements.claim import claim as claim_statement
from prefect_claim_dispatch.statements.settle import settle as settle_statement
from prefect_claim_dispatch.statements.survey import survey as survey_statement

ROOT = Path(__file__).parents[1]
LEASE = timedelta(minutes=5)
POLICY = RetryPolicy()
ROWS_BY_BATCH = {1: 1_500, 100: 20_000, 1_000: 50_000}


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
    done = 0
    while lanes := claiming.survey(engine, table).due():
        raws = claiming.claim(engine, table, lanes, limit=batch, lease=LEASE, claimed_by="benchmark")
        actions = [raw.action() for raw in raws]
        verdicts = [settlement_for(Processed(), action, POLICY) for action in actions]
        done += len(settling.settle(engine, table, verdicts))
    return done


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
                "settled_id": [row[0] for row in rows],
                "settled_claim_count": [row[5] for row in rows],
                "settled_status": ["processed"] * len(rows),
                "settled_fail_count": [row[6] for row in rows],
                "settled_delay_seconds": [None] * len(rows),
                "settled_errors": [None] * len(rows),
                "settled_run_id": [None] * len(rows),
            }
            with self.connection.transaction():
                done += len(self.connection.execute(settle, self.settle.construct_params(arrays)).fetchall())


def timed(fill_table: Callable[[], None], run: Callable[[], int], rows: int) -> float:
    """Rows a second of *run*, which must have done all of them."""
    fill_table()
    began = time.perf_counter()
    done = run()
    seconds = time.perf_counter() - began
    if done != rows:
        message = f"settled {done} of {rows}"
        raise SystemExit(message)
    return rows / seconds


def peer_rate(python: str, dsn: str, rows: int, batch: int) -> float:
    """Rows a second of pgqueuer, in its own Python, on a database of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS peer WITH (FORCE)")
        connection.execute("CREATE DATABASE peer")
    script = str(Path(__file__).with_name("peer_pgqueuer.py"))
    command = [python, script, dsn.replace("/postgres?", "/peer?"), str(rows), str(batch)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return rows / float(finished.stdout.split()[-1])


def measure(dsn: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sides in turn, *rounds* times; one entry for each batch size."""
    engine = engines.create(dsn)
    table = actions_table()
    table.metadata.create_all(engine)
    bare = Bare(engine, table)
    results: list[dict[str, Any]] = []
    for batch, usual in ROWS_BY_BATCH.items():
        rows = max(batch, int(usual * options.scale))
        rates: dict[str, list[float]] = {"ours": [], "bare": [], "pgqueuer": []}
        for _ in range(options.rounds):
            refill = lambda rows=rows: fill(engine, table, rows)  # noqa: E731
            rates["ours"].append(timed(refill, lambda batch=batch: ours(engine, table, batch), rows))
            rates["bare"].append(timed(refill, lambda batch=batch: bare.run(batch), rows))
            if options.peer_python and batch == max(ROWS_BY_BATCH):
                rates["pgqueuer"].append(peer_rate(options.peer_python, dsn, rows, batch))
        ratios = [a / b for a, b in zip(rates["ours"], rates["bare"], strict=True)]
        peers = [a / b for a, b in zip(rates["ours"], rates["pgqueuer"], strict=False)]
        medians = {side: statistics.median(values) if values else None for side, values in rates.items()}
        results.append(
            {
                "batch": batch,
                "rows": rows,
                **medians,
                "ours/bare": statistics.median(ratios),
                "ours/pgqueuer": statistics.median(peers) if peers else None,
            }
        )
    bare.connection.close()
    engine.dispose()
    return results


def show(results: list[dict[str, Any]], console: Console) -> None:
    """One table, ratios last."""
    shown = RichTable(title="claim + settle, rows a second (medians) and ratios (medians of the rounds' own)")
    for column in results[0]:
        shown.add_column(column, justify="right")
    for result in results:
        shown.add_row(*(_cell(value) for value in result.values()))
    console.print(shown)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"


def main() -> None:
    """Start a PostgreSQL from the wheel, with its default settings; measure; end it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual number of rows")
    parser.add_argument(
        "--peer-python", help="Python of an environment with benchmarks/peers.txt; without it no peer is measured"
    )
    parser.add_argument("--json", type=Path, help="write the results here as well")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.kit import postgres

    folder = Path(tempfile.mkdtemp(prefix="pcd-bench-"))
    try:
        server = postgres.start("postgresql-18", folder / "pg", durable=True)
        dsn = f"postgresql://postgres@/postgres?host={server.sockets}"
        results = measure(dsn, options)
    finally:
        postgres.discard(folder / "pg")
        shutil.rmtree(folder, ignore_errors=True)
    console = Console(width=110)
    show(results, console)
    if not options.peer_python:
        console.print("pgqueuer was not measured: no --peer-python")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
