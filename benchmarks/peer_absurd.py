"""Run by the peer's own Python.

Spawn no-op tasks with absurd, run them all, print the seconds that running took.

Usage: peer_absurd.py DSN ROWS BATCH. The schema that absurdctl brings, tasks spawned by its SQL function, run by the
sync SDK's `work_batch`: claims of BATCH, each task run and its end written by itself on one connection. It is a durable
workflow engine: a task has a run, and its result is kept.
"""

import sys
import time

import psycopg
from absurd_sdk import Absurd
from absurdctl import BUNDLED_SCHEMA_SQL


def main(dsn: str, rows: int, batch: int) -> None:
    done = 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(BUNDLED_SCHEMA_SQL)
        app = Absurd(connection, queue_name="noop")
        app.create_queue()

        @app.register_task(name="noop")
        def noop(_params: object, _context: object) -> None:
            nonlocal done
            done += 1

        connection.execute("SELECT absurd.spawn_task('noop', 'noop', '{}') FROM generate_series(1, %s)", (rows,))
        connection.execute("VACUUM ANALYZE")
        began = time.perf_counter()
        while done < rows:
            app.work_batch(worker_id="benchmark", batch_size=batch)
        seconds = time.perf_counter() - began
    print(seconds)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
