"""What a test leaves behind is told at its end: connections to databases, child processes, threads.

Without this, a connection is missed where the garbage is collected, in some later test that has done nothing.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.kit.waiting import wait_until

KEPT_THREADS = (
    *("APILogWorkerThread", "EventsWorker", "GlobalEventLoopThread", "PrefectEvents", "QueueService"),
    *(
        "RunSyncEventLoopThread",
        "ConcurrencySlotAcquisition",
        "AnyIO",
        "asyncio_",
        "Dask-",
        "AsyncProcess Dask",
        "QueueFeederThread",
        "claim-dispatch-deadlines",
    ),
)
"""Begun once for the process: Prefect's and Dask's, and our watch over deadlines."""

KEPT_CHILDREN = ("tests.kit.warm", "multiprocessing.resource_tracker", "multiprocessing.forkserver", "/bin/postgres")
"""Begun once for the process; a PostgreSQL is a module's, or ended by the run's keeper."""

SECONDS = 5


@dataclass(frozen=True, slots=True)
class Held:
    """What this process holds: descriptors of databases, children by pid, threads.

    *threads_alone*: nobody looks at the others.
    """

    databases: frozenset[str]
    children: frozenset[int]
    threads_alone: bool
    threads: frozenset[threading.Thread]

    @classmethod
    def now(cls, *, threads_alone: bool = False) -> Held:
        """What it holds at this moment."""
        threads = frozenset(threading.enumerate())
        if threads_alone:
            return cls(frozenset(), frozenset(), threads_alone, threads)
        return cls(frozenset(_databases()), frozenset(_children()), threads_alone, threads)


def check(before: Held) -> None:
    """Fail for what is held beyond *before*, once what is about to end has had a moment to.

    Raises:
        AssertionError: with a line for each.
    """
    if not _left(before):
        return
    gc.collect()  # what warns that it was not closed does so here, in the test whose it is
    with suppress(AssertionError):
        wait_until(lambda: not _left(before), description="what the test began has ended", timeout=SECONDS)
    left = _left(before)
    assert not left, "the test leaves behind:\n" + "\n".join(left)


def _left(before: Held) -> list[str]:
    now = Held.now(threads_alone=before.threads_alone)
    threads = [thread for thread in now.threads - before.threads if not thread.name.startswith(KEPT_THREADS)]
    children = [(pid, _command(pid)) for pid in sorted(now.children - before.children)]
    return [
        *(f"an open database: {name}" for name in sorted(now.databases - before.databases)),
        *(f"a child process: {pid} {told}" for pid, told in children if not any(map(told.__contains__, KEPT_CHILDREN))),
        *(f"a thread: {thread.name} ({type(thread).__module__})" for thread in threads if thread.is_alive()),
    ]


def _databases() -> list[str]:
    """Descriptors of SQLite files and of connections to a PostgreSQL's socket, with their numbers."""
    found: list[str] = []
    for entry in os.scandir("/proc/self/fd"):
        with suppress(OSError):
            target = str(Path(entry.path).readlink())
            name = _peer(int(entry.name)) if target.startswith("socket:") else target
            if ".s.PGSQL" in name or name.endswith((".db", ".db-wal", ".db-shm")):
                found.append(f"{name} (descriptor {entry.name})")
    return found


def _peer(descriptor: int) -> str:
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        return str(connection.getpeername()) if connection.family == socket.AF_UNIX else ""


def _children() -> list[int]:
    """Living children of this process; dead ones that nobody waits for are reaped."""
    return [pid for task in Path("/proc/self/task").iterdir() for pid in _pids(task) if _is_alive(pid)]


def _pids(task: Path) -> list[int]:
    try:
        return [int(pid) for pid in (task / "children").read_text().split()]
    except OSError:
        return []


def _is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:200]
    return ""
