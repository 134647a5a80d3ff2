"""Where the batch lane's time goes: processor seconds of a flow's threads, of PostgreSQL and of the Prefect server.

One flow over no-op rows, as in ``batch_lane.py``, *rounds* times, and the medians. No ratio and no goal: on two cores
that are busy to the end, what takes the most processor time is what there is to gain.

- *flow, ...*: the threads of this process by name, children of none. Those that Prefect sends events and logs by, and
  whatever else has no name of ours, are one line.
- *PostgreSQL*: all its processes, the checkpointer's and the writers' among them.
- *Prefect server*: until the last settlement, and then until it is quiet again.

What would be unfair to read into it: a thread's time is what it had a core for, waiting for the interpreter lock is not
in it. ``/proc`` is looked at every 20 ms, and a thread's last moments may be missed.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import kit
import metering
from batch_lane import CONCURRENCY, ROWS, ROWS_PER_RUN, TABLE, row_by_row
from claim_settle import fill
from sqlalchemy import Engine, text

from prefect_claim_dispatch import engines

TICKS = os.sysconf("SC_CLK_TCK")
NAMES = {
    "MainThread": "flow, survey and claim",
    "claim-dispatch-keeper": "flow, settle",
    "ThreadPoolExecutor": "flow, task runs",
    "claim-dispatch": "flow, artifacts, deadlines, listening",
}
LAST = ("flow, all", "PostgreSQL", "Prefect server", "Prefect server afterwards", "wall")


def seconds_of(stat: Path, *, with_ended: bool = False) -> float:
    """Processor time in a ``stat`` file of /proc; *with_ended*, of its children that have ended, too."""
    fields = stat.read_text().rpartition(") ")[2].split()
    return sum(int(field) for field in fields[11 : 15 if with_ended else 13]) / TICKS


def postgresql_seconds(postmaster: int) -> float:
    """All its processes so far."""
    total = seconds_of(Path(f"/proc/{postmaster}/stat"), with_ended=True)
    for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
        try:
            total += seconds_of(Path(f"/proc/{pid}/stat"))
        except OSError:  # ended, and counted with the postmaster's next time
            continue
    return total


def thread_seconds() -> dict[int, tuple[str, float]]:
    """Of each thread of this process, what it is called here and its time so far."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found: dict[int, tuple[str, float]] = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            spent = seconds_of(task / "stat")
        except OSError:
            continue
        name = names.get(int(task.name), "")
        told = next((NAMES[start] for start in NAMES if name.startswith(start)), "flow, Prefect's events, logs, loops")
        found[int(task.name)] = told, spent
    return found


@contextmanager
def threads_timed() -> Generator[dict[str, float]]:
    """Seconds by thread's name, when the block is over; of this look-out's own thread, none."""
    before, last, spent = thread_seconds(), dict[int, tuple[str, float]](), defaultdict[str, float](float)
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.02):
            last.update(thread_seconds())

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield spent
    finally:
        is_over.set()
        looking.join()
        last.pop(looking.native_id or 0, None)
        for thread, (name, seconds) in last.items():
            spent[name] += seconds - (before[thread][1] if thread in before else 0.0)


def run_once(engine: Engine, server: metering.Watched, postmaster: int, rows: int) -> dict[str, float]:
    """Processor seconds by part, and *wall*, of one flow over *rows*."""
    metering.registered(row_by_row, rows_per_run=ROWS_PER_RUN)
    fill(engine, TABLE, rows)
    server.wait_until_quiet()
    before = postgresql_seconds(postmaster), server.cpu_seconds, time.process_time()
    with threads_timed() as spent:
        inside, _ = metering.drained(engine, rows, limit=1_000, max_concurrency=CONCURRENCY)
    spent["flow, all"] = time.process_time() - before[2]
    spent["PostgreSQL"] = postgresql_seconds(postmaster) - before[0]
    spent["Prefect server"] = server.cpu_seconds - before[1]
    server.wait_until_quiet()
    spent["Prefect server afterwards"] = server.cpu_seconds - before[1] - spent["Prefect server"]
    spent["wall"] = inside
    return dict(spent)


def main() -> None:
    """Start a PostgreSQL from the wheel and a Prefect server, measure, end them."""
    options = kit.parser(__doc__).parse_args()
    rows = max(ROWS_PER_RUN, int(ROWS * options.scale))
    with metering.stage() as (dsn, server):
        engine = engines.create(dsn)
        TABLE.metadata.create_all(engine)
        with engine.connect() as connection:
            folder = connection.execute(text("SELECT current_setting('data_directory')")).scalar_one()
        postmaster = int((Path(folder) / "postmaster.pid").read_text().split()[0])
        rounds = [run_once(engine, server, postmaster, rows) for _ in range(options.rounds)]
        engine.dispose()
    medians = {part: statistics.median(one.get(part, 0.0) for one in rounds) for part in rounds[0]}
    total = sum(medians[part] for part in LAST[:3])
    parts = sorted((part for part in medians if part not in LAST), key=lambda part: -medians[part])
    results = [
        {"part": part, "seconds": medians[part], "of all": None if part in LAST[3:] else medians[part] / total}
        for part in (*parts, *LAST)
    ]
    kit.show(f"batch lane: processor seconds for {rows:,} rows (medians)", results, options, labels=["part"], goals=[])


if __name__ == "__main__":
    main()
