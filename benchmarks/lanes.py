"""Lanes: what a row costs in each, for whoever has to choose one.

The same no-op function in every lane, each in a claim flow of its own under a real Prefect server: *inside* is
milliseconds between the first claim and the last settlement; then milliseconds of processor time in the claim flow's
process, and in the server until it is quiet again; API requests and events. A second or so for the start and the end of
the claim flow is in *wall* alone, shared by all rows of the run.

What would be unfair to read into it: nobody does nothing. A lane whose row costs 3 ms is not slow where the work takes
100, and its threads overlap. Isolated rows cost more where the processor's module imports more. The deployment lane is
not here: a row costs it a process, seconds of it, and what the other pool takes to begin.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import kit
import metering
from claim_settle import fill

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.schema import actions_table

THREADS = 16
TABLE = actions_table()


def noop() -> None:
    """No work."""


def together(payloads: list[dict[str, Any]]) -> None:
    """No work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A way to run `noop`, and so many rows that a round takes seconds."""

    rows: int
    options: dict[str, Any] = field(default_factory=dict)
    function: Callable[..., None] = noop
    is_flow: bool = False


LANES = {
    "task": Lane(rows=500),
    "task, isolated": Lane(rows=200, options={"isolate": True}),
    "subflow": Lane(rows=30, is_flow=True),
    "automatic": Lane(rows=20_000, options={"rows_per_run": "auto"}),
    "batch, row by row": Lane(rows=20_000, options={"rows_per_run": 500}),
    "batch, together": Lane(rows=20_000, options={"rows_per_run": 500}, function=together),
}


def measure(dsn: str, server: metering.Watched, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All lanes in turn, *rounds* times; one entry for each."""
    from prefect import flow

    engine = engines.create(dsn)
    TABLE.metadata.create_all(engine)

    def run(lane: Lane, rows: int) -> dict[str, float]:
        metering.registered(flow(lane.function) if lane.is_flow else lane.function, **lane.options)
        fill(engine, TABLE, rows)
        return metering.metered(server, rows, lambda: metering.drained(engine, rows, max_concurrency=THREADS)[0])

    sizes = {name: max(2, int(lane.rows * options.scale)) for name, lane in LANES.items()}
    sides = {name: lambda lane=lane, rows=sizes[name]: run(lane, rows) for name, lane in LANES.items()}
    for lane in LANES.values():
        run(lane, 2)  # what is only done once: imports, the template of isolated calls
    measured = kit.rates(sides, options.rounds)
    engine.dispose()
    return [{"lane": name, "rows": sizes[name]} | metering.medians(measured[name]) for name in LANES]


def main() -> None:
    """Start a PostgreSQL from the wheel and a Prefect server, measure, end them."""
    options = kit.parser(__doc__).parse_args()
    with metering.stage() as (dsn, server):
        results = measure(dsn, server, options)
    kit.show("lanes: milliseconds, requests, events for a row (medians)", results, options, labels=["lane"])


if __name__ == "__main__":
    main()
