"""A drain: a million due rows by one claim flow in the batch lane: how much memory, and whether it slows down.

- *peak, MB*: resident memory of the claim flow's process above what it had just before the call, looked at ten times a
  second. Whatever grows with the number of rows that a flow has done would be seen here.
- *last/first*: rows a second of the last tenth against those of the first, by the database's clock. Dead index entries
  of what is settled, and whatever else piles up, would be seen here.

One flow under a real Prefect server, ``rows_per_run=500``, a function that does nothing, row by row.

What would be unfair to read into it: a processor's own memory is its author's; the table has autovacuum as its
migration sets it, and a transaction that somebody holds open meanwhile would change the second figure.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kit
import metering
from claim_settle import fill
from sqlalchemy import Engine, select

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.schema import actions_table

ROWS = 1_000_000
GOALS = [kit.Goal(figure="peak, MB", at_most=150), kit.Goal(figure="last/first", at_least=0.9)]
TABLE = actions_table()


def noop() -> None:
    """No work."""


def resident() -> float:
    """Megabytes of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def peak_above() -> Generator[list[float]]:
    """One figure when the block is over: the most megabytes above those at its start."""
    start, peaks, is_over = resident(), [0.0], threading.Event()

    def look() -> None:
        while not is_over.wait(0.1):
            peaks[0] = max(peaks[0], resident() - start)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield peaks
    finally:
        is_over.set()
        looking.join()


def tenths(engine: Engine, rows: int) -> tuple[float, float]:
    """Rows a second of the first tenth and of the last."""

    def settled_at(place: int) -> Any:
        statement = select(TABLE.c.settled_at).order_by(TABLE.c.settled_at).offset(place - 1).limit(1)
        return connection.execute(statement).scalar_one()

    with engine.connect() as connection:
        began = connection.execute(select(TABLE.c.claimed_at).order_by(TABLE.c.claimed_at).limit(1)).scalar_one()
        tenth = rows // 10
        first = settled_at(tenth) - began
        last = settled_at(rows) - settled_at(rows - tenth)
    return tenth / first.total_seconds(), tenth / last.total_seconds()


def measure(dsn: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """*rounds* drains, and their medians."""
    rows = max(10_000, int(ROWS * options.scale))
    engine = engines.create(dsn)
    TABLE.metadata.create_all(engine)
    metering.registered(noop, rows_per_run=500)
    fill(engine, TABLE, 2_000)
    metering.drained(engine, 2_000)  # what is imported and made once is no part of it

    def drain() -> dict[str, float]:
        fill(engine, TABLE, rows)
        with peak_above() as peaks:
            inside, _ = metering.drained(engine, rows)
        first, last = tenths(engine, rows)
        return {"rows/s": rows / inside, "peak, MB": peaks[0], "first": first, "last": last, "last/first": last / first}

    measured = kit.rates({"drain": drain}, options.rounds)["drain"]
    engine.dispose()
    return [{"rows": rows} | {figure: statistics.median(one[figure] for one in measured) for figure in measured[0]}]


def main() -> None:
    """Start a PostgreSQL from the wheel and a Prefect server, measure, end them."""
    parser = kit.parser(__doc__)
    parser.set_defaults(rounds=1)
    options = parser.parse_args()
    with metering.stage() as (dsn, _):
        results = measure(dsn, options)
    kit.show("a drain in the batch lane (medians)", results, options, labels=["rows"], goals=GOALS)


if __name__ == "__main__":
    main()
