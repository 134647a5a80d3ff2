"""Run by the peer's own Python.

Push no-op jobs with chancy, consume them all, print the seconds that consuming took.

Usage: peer_chancy.py DSN ROWS CONCURRENCY. One worker, one queue with its asyncio executor, CONCURRENCY jobs at a time,
eager polling, no log; from the start of the worker until every job is succeeded in the table. Its worker writes ends
once a second, all together: on few jobs that second is most of what is measured.
"""

import asyncio
import logging
import sys
import time

from chancy import Chancy, Queue, Worker, job


@job(queue="noop")
async def noop() -> None:
    pass


async def main(dsn: str, rows: int, concurrency: int) -> None:
    log = logging.getLogger("chancy-silent")
    log.setLevel(logging.CRITICAL)
    async with Chancy(dsn, log=log) as chancy:
        await chancy.migrate()
        await chancy.declare(
            Queue(
                "noop", concurrency=concurrency, executor=Chancy.Executor.Async, polling_interval=1, eager_polling=True
            )
        )
        async for _ in chancy.push_many([noop.job] * rows):
            pass
        async with chancy.pool.connection() as connection:
            await connection.set_autocommit(True)
            await connection.execute("VACUUM ANALYZE")
            await connection.set_autocommit(False)
        began = time.perf_counter()
        async with Worker(chancy, register_signal_handlers=False):
            while await count(chancy) < rows:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.02)
            seconds = time.perf_counter() - began
    print(seconds)


async def count(chancy: Chancy) -> int:
    async with chancy.pool.connection() as connection:
        cursor = await connection.execute("SELECT count(*) FROM chancy_jobs WHERE state = 'succeeded'")
        return (await cursor.fetchone())[0]


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
