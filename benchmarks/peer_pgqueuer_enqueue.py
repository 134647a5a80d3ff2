"""Run by the peer's own Python.

Enqueue jobs with pgqueuer, print the seconds that it took.

Usage: peer_pgqueuer_enqueue.py DSN ROWS SIZE: lists of SIZE jobs, or one by one when it is 1; asyncpg and uvloop.
"""

import json
import sys
import time

import asyncpg
import uvloop
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries


def payload(number: int) -> bytes:
    return json.dumps(
        {"user_id": number, "template": "welcome", "to": f"user-{number}@example.org", "tags": ["new", "trial"]}
    ).encode()


async def main(dsn: str, rows: int, size: int) -> None:
    connection = await asyncpg.connect(dsn)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    done = 0
    began = time.perf_counter()
    if size == 1:
        for number in range(rows):
            done += len(await queries.enqueue("email.welcome", payload(number)))
    else:
        # One transaction, as the others have it.
        async with connection.transaction():
            for start in range(0, rows, size):
                numbers = range(start, min(start + size, rows))
                count = len(numbers)
                jobs = await queries.enqueue(["email.welcome"] * count, [payload(n) for n in numbers], [0] * count)
                done += len(jobs)
    seconds = time.perf_counter() - began
    assert done == rows, f"enqueued {done} of {rows}"
    await connection.close()
    print(seconds)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
