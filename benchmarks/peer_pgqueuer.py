"""Run by the peer's own Python.

Enqueue no-op jobs with pgqueuer, consume them all, print the seconds that consuming took.

Usage: peer_pgqueuer.py DSN ROWS BATCH. Its fastest documented shape: asyncpg, an async no-op entrypoint, drain mode,
large batches.
"""

import sys
import time
from datetime import timedelta

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode


async def main(dsn: str, rows: int, batch: int) -> None:
    connection = await asyncpg.connect(dsn)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    await queries.optimize_autovacuum()
    for start in range(0, rows, 1_000):
        size = min(1_000, rows - start)
        await queries.enqueue(["noop"] * size, [b"{}"] * size, [0] * size)
    await connection.execute("VACUUM ANALYZE")
    consumer = PgQueuer(AsyncpgDriver(connection))
    done = 0

    @consumer.entrypoint("noop")
    async def noop(_job: Job) -> None:
        nonlocal done
        done += 1

    began = time.perf_counter()
    await consumer.qm.run(dequeue_timeout=timedelta(seconds=1), batch_size=batch, mode=QueueExecutionMode.drain)
    seconds = time.perf_counter() - began
    await connection.close()
    if done != rows:
        message = f"consumed {done} of {rows}"
        raise SystemExit(message)
    print(seconds)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
