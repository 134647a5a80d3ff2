"""Run by the peer's own Python.

Print the milliseconds from the commit of each defer to the task's first line, procrastinate.

Usage: peer_procrastinate_latency.py DSN ACTIONS SHORTEST_PAUSE LONGEST_PAUSE. Its psycopg connectors; another process
defers.
"""

import asyncio
import multiprocessing
import random
import sys
import time

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

WARM = 5


def publisher(pipe, dsn, actions, shortest, longest):
    app = App(connector=SyncPsycopgConnector(conninfo=dsn))

    @app.task(name="noop")
    def noop(**_: object) -> None:
        pass

    committed = {}
    with app.open():
        for number in range(-WARM, actions):
            time.sleep(1 if number < 0 else random.uniform(shortest, longest))
            noop.defer(n=number)
            committed[number] = time.monotonic_ns()
    pipe.send(committed)


async def main(dsn: str, actions: int, shortest: float, longest: float) -> None:
    app = App(connector=PsycopgConnector(conninfo=dsn))
    called: dict[int, int] = {}
    is_done = asyncio.Event()

    @app.task(name="noop")
    async def noop(n: int) -> None:
        called[n] = time.monotonic_ns()
        if len(called) == actions + WARM:
            is_done.set()

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        child = context.Process(target=publisher, args=(theirs, dsn, actions, shortest, longest))
        child.start()
        running = asyncio.create_task(app.run_worker_async(install_signal_handlers=False))
        await is_done.wait()
        committed = ours.recv()
        child.join()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    print(*((called[number] - at) / 1e6 for number, at in committed.items() if number >= 0))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
