"""The servers of one test run, shared by all xdist workers, kept by a process that ends with the run.

pytest's controlling process starts this module as a *keeper* and holds its standard input open. Workers ask the
keeper for a server by name over a Unix socket. When the controller ends, in whatever way (SIGKILL too), the pipe
closes; the keeper then ends every server, every process that still carries the run's mark, and removes the run's
folder. A Ctrl-C does not reach it: it has a session of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.kit.processes import ROOT, Processes, kill_marked
from tests.kit.waiting import wait_until

RUN = "TEST_KIT_RUN"  # the run's folder, in the environment of all its processes; its name is random
SOCKET, LOG = "keeper", "keeper.log"
END_SECONDS = 60


def begin_run() -> Callable[[], None]:
    """Make the run's folder, put it into the environment and start the keeper; the answer ends all that again."""
    folder = Path(tempfile.mkdtemp(prefix="pcd-"))
    folder.chmod(0o755)  # PostgreSQL may have to run as another user
    before = os.environ.get(RUN)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with (folder / LOG).open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.keeping", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, RUN: str(folder)},
            start_new_session=True,
        )
    os.environ[RUN] = str(folder)

    def end_run() -> None:
        if before is None:
            os.environ.pop(RUN, None)
        else:
            os.environ[RUN] = before
        assert keeper.stdin
        keeper.stdin.close()
        keeper.wait(END_SECONDS)

    return end_run


def run_folder() -> Path:
    """The folder of this run; removed when the run ends, servers that have their data there ended."""
    return Path(os.environ[RUN])


@cache
def request(name: str) -> dict[str, Any]:
    """The shared server *name* (``prefect`` or one of `postgres.available`), started if nobody asked for it before.

    ``pgbouncer:`` before a PostgreSQL's name asks for a pgbouncer in front of it.

    Raises:
        RuntimeError: it did not start; the message holds what the keeper said.
    """
    path = run_folder() / SOCKET
    wait_until(path.exists, description="the keeper listens", timeout=30)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"{name}\n".encode())
        with connection.makefile() as answer:
            reply = json.loads(answer.read() or '{"error": "the keeper has ended"}')
    if "error" in reply:
        log = (run_folder() / LOG).read_text(errors="replace")
        msg = f"server {name!r} did not start:\n{reply['error']}\n{log}"
        raise RuntimeError(msg)
    return reply["server"]


class _Keeper(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder / SOCKET), _Handler)
        self.folder = folder
        self.processes = Processes(folder / "output")
        self.started: dict[str, dict[str, Any]] = {}
        self.locks: dict[str, threading.Lock] = {}
        self.guard = threading.Lock()

    def server_named(self, name: str) -> dict[str, Any]:
        with self.guard:
            lock = self.locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self.started:
                self.started[name] = self._start(name)
            return self.started[name]

    def _start(self, name: str) -> dict[str, Any]:
        # Imported here: the keeper starts with every run, also of tests that want no server.
        from tests.kit import postgres

        if name == "prefect":
            from tests.kit import prefect_server

            database = postgres.Server(**self.server_named(next(iter(postgres.available()))))
            server, _ = prefect_server.start(self.processes, self.folder / "prefect", database=database)
            return dataclasses.asdict(server)
        from tests.kit import pgbouncer

        if name.startswith(pgbouncer.PREFIX):
            behind = name.removeprefix(pgbouncer.PREFIX)
            server = postgres.Server(**self.server_named(behind))
            return {"port": pgbouncer.start(self.processes, server, self.folder / f"pgbouncer-{behind}")}
        return dataclasses.asdict(postgres.start(name, self.folder / name.removeprefix("postgresql-")))

    def end(self) -> None:
        self.processes.end_all()
        for data in self.folder.glob("*/data"):
            from tests.kit import postgres

            postgres.discard(data.parent)
        kill_marked(RUN, str(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)


class _Handler(socketserver.StreamRequestHandler):
    server: _Keeper  # pyright: ignore[reportIncompatibleVariableOverride] - it serves nobody else

    def handle(self) -> None:
        name = self.rfile.readline().decode().strip()
        try:
            reply = {"server": self.server.server_named(name)}
        except Exception:  # the one who asked is told
            reply = {"error": traceback.format_exc()}
        self.wfile.write(json.dumps(reply).encode())


def keep(folder: Path) -> None:
    """Serve requests until standard input ends; then end everything."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    keeper = _Keeper(folder)
    threading.Thread(target=keeper.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    sys.stdin.read()
    keeper.shutdown()
    keeper.end()


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
