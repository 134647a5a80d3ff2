"""Run by the peer's own Python.

Enqueue no-op jobs with oban, consume them all, print the seconds that consuming took.

Usage: peer_oban.py DSN ROWS LIMIT. One node with one queue of LIMIT jobs at a time, an async no-op worker, its own pool
of psycopg connections; from the start of the node until every job is completed in the table.
"""

import asyncio
import sys
import time

from oban import Oban, worker
from oban.schema import install
from psycopg_pool import AsyncConnectionPool


@worker(queue="default")
class Noop:
    async def process(self, _job: object) -> None:
        pass


async def main(dsn: str, rows: int, limit: int) -> None:
    async with AsyncConnectionPool(dsn, min_size=2, max_size=10) as pool:
        await install(pool)
        client = Oban(pool=pool)
        for start in range(0, rows, 1_000):
            await client.enqueue_many([Noop.new({}) for _ in range(min(1_000, rows - start))])
        async with pool.connection() as connection:
            await connection.set_autocommit(True)
            await connection.execute("VACUUM ANALYZE")
            await connection.set_autocommit(False)
        began = time.perf_counter()
        async with Oban(pool=pool, queues={"default": limit}):
            while await count(pool) < rows:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.02)
            seconds = time.perf_counter() - began
    print(seconds)


async def count(pool: AsyncConnectionPool) -> int:
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT count(*) FROM oban_jobs WHERE state = 'completed'")
        return (await cursor.fetchone())[0]


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
