"""Children that have imported Prefect before they start: forks of one process that has.

The import takes a second or two of a core, and most children that tests start are whole claim flows. A fork reads the
settings and the configuration of logging anew, as the import would have. The process that forks has a single thread,
and opens no database and no connection, so that nothing is there twice.

Linux only: the one who asked adopts the fork (it is made its "child subreaper"), so that it can wait for it.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

PRELOAD = ("prefect_claim_dispatch.flow", "prefect_claim_dispatch.cli", "prefect_claim_dispatch.migrations", "psycopg")
MODULES = ("prefect_claim_dispatch.cli", "tests.faults.laning_flow")
"""What is started so: whatever else a process imports at its start must not be imported before."""

PR_SET_CHILD_SUBREAPER = 36
ANSWER_SECONDS = 60


class Forked:
    """A process that was forked for this one: what `subprocess.Popen` offers of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once there is one.

        Raises:
            TimeoutExpired: it still runs after *timeout* seconds.
        """
        if self.poll() is None:
            ended = os.pidfd_open(self.pid)
            try:
                with selectors.DefaultSelector() as selector:
                    selector.register(ended, selectors.EVENT_READ)
                    selector.select(timeout)
            finally:
                os.close(ended)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return code

    def send_signal(self, signum: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)


class _Parent:
    """The process that forks, started by the first who wants a fork; it ends with this one."""

    def __init__(self, root: Path) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        self._lock = threading.Lock()

    def start(self, message: dict[str, Any]) -> Forked:
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                line = self._process.stdout.readline() if selector.select(ANSWER_SECONDS) else b""
        if not line:
            msg = f"the process that forks did not answer in {ANSWER_SECONDS} s (exit code {self._process.poll()})"
            raise AssertionError(msg)
        return Forked(json.loads(line))


@cache
def _parent(root: Path) -> _Parent:
    return _Parent(root)


def is_for(arguments: Sequence[str]) -> bool:
    """Whether a Python with these *arguments* can be a fork."""
    return sys.platform == "linux" and arguments[:1] == ("-m",) and arguments[1] in MODULES


def start(
    root: Path,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdout: Path,
    stderr: Path,
    is_interrupted: bool,
) -> Forked:
    """Start ``python -m MODULE ...`` as a fork, in a session of its own, with nothing in its environment but *env*."""
    message = {
        "module": arguments[1],
        "arguments": arguments[2:],
        "env": dict(env),
        "cwd": str(cwd),
        "files": [os.devnull, str(stdout), str(stderr)],
        "is_interrupted": is_interrupted,
    }
    return _parent(root).start(message)


def serve() -> None:
    """Fork for each line of standard input, and tell the pid; until it ends."""
    for name in PRELOAD:
        __import__(name)
    for line in sys.stdin:
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            # The fork of a fork: its parent ends at once, so that whoever asked adopts it.
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                os.close(writer)
                _live(**json.loads(line))
            os.write(writer, str(pid).encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(between, 0)
        pid = int(os.read(reader, 32))
        os.close(reader)
        print(pid, flush=True)


def _live(
    *, module: str, arguments: list[str], env: dict[str, str], cwd: str, files: list[str], is_interrupted: bool
) -> NoReturn:
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler if is_interrupted else signal.SIG_IGN)
        for number, file in enumerate(files):
            opened = os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(opened, number)
            os.close(opened)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        _read_anew(cwd)
        sys.argv = [module, *arguments]
        code = _ended(module)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined] - as the interpreter's end: threads first, then who wants to know
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _read_anew(cwd: str) -> None:
    """Have what was read at the import of Prefect read in this process's environment."""
    from prefect import context
    from prefect.logging import configuration

    sys.path[:] = [cwd, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
    context.refresh_global_settings_context()
    configuration.PROCESS_LOGGING_CONFIG.clear()
    configuration.setup_logging()


def _ended(module: str) -> int:
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    serve()
