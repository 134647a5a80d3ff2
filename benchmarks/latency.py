"""Latency: from the commit of a publish to the first line of its processor, in a claim flow that stays and is idle.

Three processes on one machine, whose monotonic clock they share: this one publishes, one action at a time with a
pause that varies; another runs the claim flow and notes when its processor is called; the third is Prefect's server.

- *batch lane*: `rows_per_run=500`; *task lane*: a task run for each action.
- *flow*: `claim_dispatch` under a Prefect server. *loop*: the same loop with plain threads in place of Prefect's, to
  tell what is ours.
- *trigger*, *polled*: PostgreSQL with the wake-up installed, and without; *SQLite*: the file is watched.
- pgqueuer and procrastinate: their own worker, by LISTEN/NOTIFY, with asyncpg and psycopg; no run is shown anywhere.

What would be unfair to read into it: the peers call a coroutine in their own loop, and no server is told of it. All
share the machine, the Prefect server included, and the disk (fsync is on).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import kit
import psycopg

ACTIONS = 200
WARM = 5
PAUSE = (0.05, 0.25)
STAY = timedelta(minutes=30)
LANES = {"batch": {"rows_per_run": 500}, "task": {}}
DEADLINE = 60.0


def consume(kind: str, ledger: str) -> None:
    """Stay, and write the number and the moment of each call of a processor to *ledger*."""
    from prefect_claim_dispatch import databases, processor
    from prefect_claim_dispatch.processors import registry

    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(payload: dict[str, Any]) -> None:
        now = time.monotonic_ns()
        os.write(file, f"{payload['n']} {now}\n".encode())

    for lane, options in LANES.items():
        processor(lane, **options)(note)
    if kind == "flow":
        from prefect_claim_dispatch import claim_dispatch

        claim_dispatch(stay=STAY, processors=[])
    else:
        sys.path.insert(0, str(kit.ROOT))
        from tests.kit.looping import ThreadDispatcher, run_loop

        run_loop(databases.engine_for(None), registry, ThreadDispatcher(4), stay=STAY)


@contextmanager
def consumer(kind: str, url: str, folder: Path) -> Generator[Path]:
    """A claim flow in a process of its own; its ledger."""
    ledger = folder / f"ledger-{os.urandom(4).hex()}"
    ledger.touch()
    command = [sys.executable, __file__, "--consume", kind, "--ledger", str(ledger)]
    with (folder / "consumer.log").open("ab") as log:
        child = subprocess.Popen(
            command, env={**os.environ, "CLAIM_DISPATCH_DATABASE_URL": url}, stdout=log, stderr=log
        )
        try:
            yield ledger
        finally:
            child.kill()
            child.wait()


def called(ledger: Path) -> dict[int, int]:
    """When each action was called, first."""
    lines = [line.split() for line in ledger.read_text().splitlines()]
    return {int(number): int(moment) for number, moment in reversed(lines)}


def wait_for(ledger: Path, number: int, seconds: float) -> None:
    """Until so many were called."""
    until = time.monotonic() + seconds
    while len(called(ledger)) < number:
        if time.monotonic() > until:
            log = ledger.with_name("consumer.log").read_text()[-2000:]
            raise SystemExit(f"{len(called(ledger))} of {number} after {seconds} s: {log}")
        time.sleep(0.05)


def measure(lane: str, kind: str, url: str, folder: Path, actions: int) -> list[float]:
    """Milliseconds of each of *actions*."""
    from prefect_claim_dispatch import engines, publish

    engine = engines.create(url)
    random.seed(actions)
    with consumer(kind, url, folder) as ledger:
        for number in range(WARM):
            publish(engine, lane, {"n": -1 - number})
            wait_for(ledger, number + 1, DEADLINE)
        committed: dict[int, int] = {}
        for number in range(actions):
            time.sleep(random.uniform(*PAUSE))
            publish(engine, lane, {"n": number})
            committed[number] = time.monotonic_ns()
        wait_for(ledger, WARM + actions, DEADLINE)
        moments = called(ledger)
    engine.dispose()
    return [(moments[number] - at) / 1e6 for number, at in committed.items()]


def fresh(dsn: str, folder: Path, side: str) -> str:
    """An empty action table for *side*."""
    from prefect_claim_dispatch import migrations

    name = f"latency_{os.urandom(4).hex()}"
    if side == "SQLite":
        url = f"sqlite:///{folder / name}.db"
    else:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        url = dsn.replace("/postgres?", f"/{name}?")
    migrations.upgrade(url)
    if side == "trigger":
        migrations.install_wake_up(url)
    return url


def peer(python: str, script: str, dsn: str, actions: int) -> list[float]:
    """Milliseconds of each action of a peer, by its own Python."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {kit.PEER} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {kit.PEER}")
    path = str(Path(__file__).with_name(script))
    command = [python, path, dsn.replace("/postgres?", f"/{kit.PEER}?"), str(actions), *map(str, PAUSE)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return [float(word) for word in finished.stdout.split()]


def row(name: str, milliseconds: list[float]) -> dict[str, Any]:
    """What is shown of a side."""
    cuts = statistics.quantiles(milliseconds, n=100)
    return {
        "side": name,
        "actions": len(milliseconds),
        "p50 ms": cuts[49],
        "p95 ms": cuts[94],
        "p99 ms": cuts[98],
        "max ms": max(milliseconds),
    }


def all_sides(dsn: str, folder: Path, options: argparse.Namespace) -> Generator[tuple[str, Callable[[], list[float]]]]:
    """Each side's name, and how it is measured once."""
    actions = max(10, int(ACTIONS * options.scale))
    for kind in options.kinds:
        for side in ("trigger", "SQLite", "polled"):
            for lane in LANES:
                yield (
                    f"{lane} lane, {side}, {kind}",
                    lambda lane=lane, side=side, kind=kind: measure(
                        lane, kind, fresh(dsn, folder, side), folder, actions
                    ),
                )
    if options.peer_python:
        for name in ("pgqueuer", "procrastinate"):
            script = f"peer_{name}_latency.py"
            yield name, lambda script=script: peer(options.peer_python, script, dsn, actions)


def main() -> None:
    """Start a PostgreSQL from the wheel and a Prefect server, measure, end them."""
    parser = kit.parser(__doc__)
    parser.add_argument("--kinds", nargs="*", default=["flow", "loop"], choices=["flow", "loop"])
    parser.add_argument("--only", default="", help="sides whose name has this in it")
    parser.add_argument("--consume", help=argparse.SUPPRESS)
    parser.add_argument("--ledger", help=argparse.SUPPRESS)
    parser.set_defaults(rounds=1)
    options = parser.parse_args()
    if options.consume:
        consume(options.consume, options.ledger)
        return
    folder = Path(tempfile.mkdtemp(prefix="pcd-bench-"))
    sys.path.insert(0, str(kit.ROOT))
    from tests.kit import prefect_server

    measured: dict[str, list[float]] = {}
    try:
        with kit.postgresql() as dsn, ExitStack() as stack:
            if "flow" in options.kinds:
                server = stack.enter_context(prefect_server.running(folder))
                os.environ |= server.env | {"PREFECT_HOME": str(folder / "client"), "PREFECT_LOGGING_LEVEL": "WARNING"}
            for _ in range(options.rounds):
                for name, once in all_sides(dsn, folder, options):
                    if options.only in name:
                        measured.setdefault(name, []).extend(once())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results = [row(name, milliseconds) for name, milliseconds in measured.items()]
    kit.show("latency: milliseconds from the commit of a publish to the processor's first line", results, options)


if __name__ == "__main__":
    main()
