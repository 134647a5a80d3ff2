"""Run by the peer's own Python.

Defer no-op jobs with procrastinate, consume them all, print the seconds that consuming took.

Usage: peer_procrastinate.py DSN ROWS CONCURRENCY. Its asyncio connector, one worker until nothing is left, CONCURRENCY
async jobs at a time; it fetches and finishes jobs one by one.
"""

import asyncio
import logging
import sys
import time

from procrastinate import App, PsycopgConnector


async def main(dsn: str, rows: int, concurrency: int) -> None:
    logging.disable(logging.CRITICAL)
    app = App(connector=PsycopgConnector(conninfo=dsn, max_size=10))
    done = 0

    @app.task(name="noop")
    async def noop() -> None:
        nonlocal done
        done += 1

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for start in range(0, rows, 1_000):
            await noop.batch_defer_async(*({} for _ in range(min(1_000, rows - start))))
        await app.connector.execute_query_async("ANALYZE")
        began = time.perf_counter()
        await app.run_worker_async(
            wait=False, concurrency=concurrency, install_signal_handlers=False, listen_notify=False
        )
        seconds = time.perf_counter() - began
    assert done == rows, f"consumed {done} of {rows}"
    print(seconds)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
