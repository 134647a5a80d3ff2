"""Publish: rows a second, against bare SQL through the same driver and against two peers' enqueue.

- *bulk*: `publish_many` of drafts made from a template, in chunks, in one transaction; against psycopg's
  ``INSERT ... SELECT FROM unnest`` in chunks of the same size, of the same columns, payloads encoded by ``json.dumps``;
  against pgqueuer's ``enqueue`` of lists and procrastinate's ``batch_defer``.
- *single*: `publish` with the application's engine, in a transaction of its own; against SQLAlchemy Core's
  ``insert().returning(id)`` in one of its own; against the peers' single calls, which commit as they are sent.
- *by URL*: the same with a URL, where `publish` commits as it is sent too; against Core on an engine in AUTOCOMMIT.
- *joined*: the same two in a transaction of the caller's, so that no commit hides what each costs.

Every side starts from the same numbers and makes its payloads of them.

What would be unfair to read into it: ours also checks each payload, type and key, which the bare sides don't; the peers
write other columns into other indexes, with drivers of their own. Each round runs all sides, every other one in the
opposite order; medians count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import kit
import psycopg
from sqlalchemy import Engine, Table, insert, text

from prefect_claim_dispatch import Draft, engines, publish, publish_many
from prefect_claim_dispatch.databases import engine_for
from prefect_claim_dispatch.schema import actions_table

CHUNK = 1_000
ROWS = {"bulk": 50_000, "single": 2_000, "by URL": 2_000, "joined": 5_000}
RIVALS = {
    "bulk": "psycopg unnest",
    "single": "SQLAlchemy Core",
    "by URL": "Core, AUTOCOMMIT",
    "joined": "SQLAlchemy Core",
}
PEERS = {"pgqueuer": "peer_pgqueuer_enqueue.py", "procrastinate": "peer_procrastinate_enqueue.py"}
GOALS = [kit.Goal(figure="ours/bare", at_least=0.8)] + [kit.Goal(figure=f"ours/{peer}", at_least=1.0) for peer in PEERS]
UNNEST = """
    INSERT INTO action_logs (type, payload, end_at, priority, idempotency_key, ordering_key)
    SELECT * FROM unnest(
        %s::text[], %s::jsonb[], %s::timestamptz[], %s::smallint[], %s::text[], %s::text[]
    )
    RETURNING id
"""


def payload(number: int) -> dict[str, Any]:
    """A payload as applications have them."""
    return {"user_id": number, "template": "welcome", "to": f"user-{number}@example.org", "tags": ["new", "trial"]}


def ours_bulk(engine: Engine, rows: int) -> int:
    """`publish_many`, lazily."""
    template = Draft().type("email.welcome")
    return len(publish_many(engine, (template.payload(payload(number)) for number in range(rows))))


def bare_bulk(connection: psycopg.Connection, rows: int) -> int:
    """The same rows by one array a column."""
    done = 0
    now = datetime.now(UTC)
    with connection.transaction():
        for start in range(0, rows, CHUNK):
            numbers = range(start, min(start + CHUNK, rows))
            size = len(numbers)
            columns = (
                ["email.welcome"] * size,
                [json.dumps(payload(number)) for number in numbers],
                [now] * size,
                [0] * size,
                [None] * size,
                [None] * size,
            )
            done += len(connection.execute(UNNEST, columns).fetchall())
    return done


def ours_single(bind: Engine | str, rows: int) -> int:
    """`publish`, each in a transaction of its own."""
    return sum(publish(bind, "email.welcome", payload(number)).id is not None for number in range(rows))


def bare_single(engine: Engine, table: Table, rows: int) -> int:
    """Core, each in a transaction of its own."""
    statement = insert(table).returning(table.c.id)
    done = 0
    for number in range(rows):
        with engine.begin() as connection:
            values = {"type": "email.welcome", "payload": payload(number)}
            done += connection.execute(statement, values).scalar_one() is not None
    return done


def ours_joined(engine: Engine, rows: int) -> int:
    """`publish` in the caller's transaction."""
    with engine.begin() as connection:
        return sum(publish(connection, "email.welcome", payload(number)).id is not None for number in range(rows))


def bare_joined(engine: Engine, table: Table, rows: int) -> int:
    """Core in one transaction."""
    statement = insert(table).returning(table.c.id)
    done = 0
    with engine.begin() as connection:
        for number in range(rows):
            values = {"type": "email.welcome", "payload": payload(number)}
            done += connection.execute(statement, values).scalar_one() is not None
    return done


def measure(dsn: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sides in turn; one entry for each way to publish."""
    engine = engines.create(dsn)
    table = actions_table()
    table.metadata.create_all(engine)
    driver = psycopg.connect(dsn)
    autocommitting = engines.create(dsn, isolation_level="AUTOCOMMIT")

    def timed(work: Callable[[int], int], rows: int) -> float:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("TRUNCATE action_logs"))
            connection.execute(text("VACUUM ANALYZE action_logs"))
        began = time.perf_counter()
        done = work(rows)
        seconds = time.perf_counter() - began
        if done != rows:
            message = f"published {done} of {rows}"
            raise SystemExit(message)
        return rows / seconds

    works: dict[str, tuple[Callable[[int], int], Callable[[int], int]]] = {
        "bulk": (lambda rows: ours_bulk(engine, rows), lambda rows: bare_bulk(driver, rows)),
        "single": (lambda rows: ours_single(engine, rows), lambda rows: bare_single(engine, table, rows)),
        "by URL": (lambda rows: ours_single(dsn, rows), lambda rows: bare_single(autocommitting, table, rows)),
        "joined": (lambda rows: ours_joined(engine, rows), lambda rows: bare_joined(engine, table, rows)),
    }
    results: list[dict[str, Any]] = []
    for way, (ours, bare) in works.items():
        rows = max(CHUNK, int(ROWS[way] * options.scale))
        sides: dict[str, Callable[[], float]] = {
            "ours": lambda ours=ours, rows=rows: timed(ours, rows),
            "bare": lambda bare=bare, rows=rows: timed(bare, rows),
        }
        if options.peer_python and way != "joined":
            for peer, script in PEERS.items():
                size = CHUNK if way == "bulk" else 1
                sides[peer] = lambda script=script, rows=rows, size=size: (
                    rows / kit.peer_seconds(options.peer_python, script, dsn, rows, size)
                )
        rates = kit.rates(sides, options.rounds)
        figures = kit.figures(rates, ("ours", "bare", *PEERS), [("ours", other) for other in ("bare", *PEERS)])
        results.append({"way": way, "rows": rows, "bare is": RIVALS[way]} | figures)
    driver.close()
    for used in (engine, autocommitting, engine_for(dsn)):
        used.dispose()
    return results


def main() -> None:
    """Start a PostgreSQL from the wheel, measure, end it."""
    options = kit.parser(__doc__).parse_args()
    with kit.postgresql() as dsn:
        results = measure(dsn, options)
    title = "publish: rows a second, and ratios (medians)"
    kit.show(title, results, options, labels=["way"], goals=GOALS)


if __name__ == "__main__":
    main()
