"""The task lane: what a row costs that has a task run of its own, against Prefect's own `map` and a loop by hand.

No-op rows under a real Prefect server; all sides with a `ThreadPoolTaskRunner` of as many threads.

- *ours*: a flow run of `claim_dispatch`, its processor in the task lane: claimed, guarded, leased, fenced, settled.
- *map*: a flow that maps a no-op task over a range: no table at all.
- *by hand*: the flow that one would write: claim by ``SKIP LOCKED`` from a table of its own, a task for each row, wait
  for all, mark them done. It is what *map* leaves out, without lease, fence, retry, rescue or validation.

Of each side, for a row: milliseconds of the whole call (*wall*); of what is between the flow's start and its end
(*inside*; ours by the database's clock, first claim to last settlement); of processor time in the client; of processor
time in the server until it is quiet again, since it stores events long after the flow is over; API requests by the
server's access log, and events that it stored. Logs go to the API, as they do in production, not to the terminal; they
are sent every two seconds, and a side has one request more or less by where these fall: the goal is for the others.

What would be unfair to read into it: with real work all wait for it, and so many threads hide what is measured here.
The server (on SQLite) shares the machine with its clients. Each round runs all sides, every other one in the opposite
order; the ratios are medians of the rounds' own, and below 1 where ours is cheaper.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import kit
import metering
import psycopg
from claim_settle import fill

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.schema import actions_table

ROWS = 500
THREADS = 16
SIDES = ("ours", "map", "by hand")
RATIOS = (("ours", "map"), ("ours", "by hand"))
GOALS = [
    kit.Goal(figure="ours/map", at_most=bound, of={"of a row": figure})
    for figure, bound in (("wall", 1.05), ("server CPU", 1.05), ("requests but logs", 1.05))
]
TABLE = actions_table()
BY_HAND = """
    UPDATE by_hand SET status = 'claimed' WHERE id IN (
        SELECT id FROM by_hand WHERE status = 'pending' AND due_at <= now()
        ORDER BY due_at, id LIMIT 1000 FOR UPDATE SKIP LOCKED
    ) RETURNING id
"""


def noop() -> None:
    """No work."""


def flows(dsn: str, threads: int) -> tuple[Callable[[int], float], Callable[[], float]]:
    """The two flows that are not ours; each returns its seconds inside."""
    from prefect import flow, task
    from prefect.futures import wait
    from prefect.task_runners import ThreadPoolTaskRunner

    @task
    def nothing(_number: int) -> None:
        """No work."""

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=threads))
    def mapped(rows: int) -> float:
        began = time.perf_counter()
        wait(nothing.map(range(rows)))
        return time.perf_counter() - began

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=threads))
    def by_hand() -> float:
        began = time.perf_counter()
        with psycopg.connect(dsn) as connection:
            while rows := connection.execute(BY_HAND).fetchall():
                connection.commit()
                wait([nothing.submit(id_) for (id_,) in rows])
                ids = [id_ for (id_,) in rows]
                connection.execute("UPDATE by_hand SET status = 'done' WHERE id = ANY(%s)", [ids])
                connection.commit()
        return time.perf_counter() - began

    return mapped, by_hand


def filled_by_hand(dsn: str, rows: int) -> None:
    """A table as one would make it, with *rows* due."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS by_hand")
        connection.execute(
            "CREATE TABLE by_hand (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload jsonb,"
            " status text NOT NULL DEFAULT 'pending', due_at timestamptz NOT NULL DEFAULT now())"
        )
        connection.execute("CREATE INDEX ON by_hand (due_at, id) WHERE status = 'pending'")
        connection.execute("INSERT INTO by_hand (payload) SELECT '{\"n\": 1}' FROM generate_series(1, %s)", (rows,))
        connection.execute("VACUUM ANALYZE by_hand")


def measure(dsn: str, server: metering.Watched, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sides in turn, *rounds* times; one entry for each thing that a row costs."""
    rows = max(THREADS, int(ROWS * options.scale))
    engine = engines.create(dsn)
    TABLE.metadata.create_all(engine)
    mapped, by_hand = flows(dsn, THREADS)

    def ours() -> dict[str, float]:
        fill(engine, TABLE, rows)
        return metering.metered(server, rows, lambda: metering.drained(engine, rows, max_concurrency=THREADS)[0])

    def theirs() -> dict[str, float]:
        filled_by_hand(dsn, rows)
        return metering.metered(server, rows, by_hand)

    metering.registered(noop)
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "ours": ours,
        "map": lambda: metering.metered(server, rows, lambda: mapped(rows)),
        "by hand": theirs,
    }
    for side in sides.values():
        side()  # what is only done once, by whichever comes first
    measured = kit.rates(sides, options.rounds)
    engine.dispose()
    results: list[dict[str, Any]] = []
    for figure in metering.FIGURES:
        of_figure = {side: [one[figure] for one in ones] for side, ones in measured.items()}
        results.append({"of a row": figure, "rows": rows} | kit.figures(of_figure, SIDES, RATIOS))
    return results


def main() -> None:
    """Start a PostgreSQL from the wheel and a Prefect server, measure, end them."""
    options = kit.parser(__doc__).parse_args()
    with metering.stage() as (dsn, server):
        results = measure(dsn, server, options)
    title = "task lane: milliseconds, requests, events for a row, and ratios (medians)"
    kit.show(title, results, options, labels=["of a row"], goals=GOALS)


if __name__ == "__main__":
    main()
