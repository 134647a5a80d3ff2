"""A flood: 20,000 rows due at once in the automatic lane, and how long the Prefect server has to do with them.

One claim flow under a real Prefect server, ``rows_per_run="auto"`` and the default budget of visible runs. Rows a
second between the first claim and the last settlement; the runs that the server shows afterwards; and the seconds from
the end of the flow's call until the server is quiet: for two seconds it takes less than a tenth of a core, and does not
wait for one.

What would be unfair to read into it: rows that do nothing are over sooner than the budget of 30 runs a second could
bring many runs; with real work there are more of them, spread over more time. What a run for each of them would cost
the server follows from `task_lane.py`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import kit
import metering
from claim_settle import fill

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.schema import actions_table

ROWS = 20_000
GOALS = [kit.Goal(figure="seconds until quiet", at_most=60)]
TABLE = actions_table()


def noop() -> None:
    """No work."""


def measure(dsn: str, server: metering.Watched, options: argparse.Namespace) -> list[dict[str, Any]]:
    """*rounds* floods, and their medians."""
    rows = max(100, int(ROWS * options.scale))
    engine = engines.create(dsn)
    TABLE.metadata.create_all(engine)
    metering.registered(noop, rows_per_run="auto")

    def flood() -> dict[str, float]:
        fill(engine, TABLE, rows)
        server.wait_until_quiet()
        shown, cpu = server.task_runs, server.cpu_seconds
        inside, report = metering.drained(engine, rows)
        ended = time.perf_counter()
        quiet_after = max(0.0, server.wait_until_quiet() - ended)
        return {
            "rows/s": rows / inside,
            "runs": report.runs,
            "runs shown": server.task_runs - shown,
            "seconds until quiet": quiet_after,
            "server CPU, s": server.cpu_seconds - cpu,
        }

    measured = kit.rates({"flood": flood}, options.rounds)["flood"]
    engine.dispose()
    return [{"rows": rows} | {figure: statistics.median(one[figure] for one in measured) for figure in measured[0]}]


def main() -> None:
    """Start a PostgreSQL from the wheel and a Prefect server, measure, end them."""
    options = kit.parser(__doc__).parse_args()
    with metering.stage() as (dsn, server):
        results = measure(dsn, server, options)
    kit.show("a flood in the automatic lane (medians)", results, options, labels=["rows"], goals=GOALS)


if __name__ == "__main__":
    main()
