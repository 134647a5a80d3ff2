"""Run by the peer's own Python.

Defer jobs with procrastinate, print the seconds that it took.

Usage: peer_procrastinate_enqueue.py DSN ROWS SIZE: batches of SIZE jobs, or one by one when it is 1; its synchronous
psycopg connector.
"""

import sys
import time

from procrastinate import App, SyncPsycopgConnector


def payload(number: int) -> dict[str, object]:
    return {"user_id": number, "template": "welcome", "to": f"user-{number}@example.org", "tags": ["new", "trial"]}


def main(dsn: str, rows: int, size: int) -> None:
    app = App(connector=SyncPsycopgConnector(conninfo=dsn))

    @app.task(name="email.welcome")
    def welcome(**_: object) -> None:
        pass

    with app.open():
        app.schema_manager.apply_schema()
        done = 0
        began = time.perf_counter()
        if size == 1:
            for number in range(rows):
                done += welcome.defer(**payload(number)) is not None
        else:
            for start in range(0, rows, size):
                done += len(welcome.batch_defer(*(payload(n) for n in range(start, min(start + size, rows)))))
        seconds = time.perf_counter() - began
    assert done == rows, f"deferred {done} of {rows}"
    print(seconds)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
