"""Run by the peer's own Python.

Print the milliseconds from the commit of each enqueue to the entrypoint's first line, pgqueuer.

Usage: peer_pgqueuer_latency.py DSN ACTIONS SHORTEST_PAUSE LONGEST_PAUSE. asyncpg, uvloop, an async entrypoint,
continuous mode; another process enqueues.
"""

import asyncio
import multiprocessing
import random
import sys
import time

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

WARM = 5


async def publish(dsn: str, actions: int, shortest: float, longest: float) -> dict[int, int]:
    connection = await asyncpg.connect(dsn)
    queries = Queries(AsyncpgDriver(connection))
    committed = {}
    for number in range(-WARM, actions):
        await asyncio.sleep(1 if number < 0 else random.uniform(shortest, longest))
        await queries.enqueue(["noop"], [str(number).encode()], [0])
        committed[number] = time.monotonic_ns()
    await connection.close()
    return committed


def publisher(pipe, *arguments):
    pipe.send(asyncio.run(publish(*arguments)))


async def main(dsn: str, actions: int, shortest: float, longest: float) -> None:
    connection = await asyncpg.connect(dsn)
    await Queries(AsyncpgDriver(connection)).install()
    consumer = PgQueuer(AsyncpgDriver(connection))
    called: dict[int, int] = {}
    is_done = asyncio.Event()

    @consumer.entrypoint("noop")
    async def noop(job: Job) -> None:
        called[int(job.payload or b"0")] = time.monotonic_ns()
        if len(called) == actions + WARM:
            is_done.set()

    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(
        target=publisher, args=(theirs, dsn, actions, shortest, longest)
    )
    child.start()
    running = asyncio.create_task(consumer.run())
    await is_done.wait()
    committed = ours.recv()
    child.join()
    running.cancel()
    print(*((called[number] - at) / 1e6 for number, at in committed.items() if number >= 0), flush=True)


if __name__ == "__main__":
    uvloop.run(asyncio.wait_for(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])), 240))
