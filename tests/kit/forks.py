"""Processes by fork from one that has imported everything: a child that may be killed costs milliseconds, not a second.

The server is a process of its own with a single thread and no database connection, so that a fork copies nothing that
must not be there twice. It ends with its standard input.
"""

from __future__ import annotations

import json
import os
import pkgutil
import selectors
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.kit.processes import ROOT

ANSWER_SECONDS = 60


class ForkServer:
    """Calls functions in forked processes, one after another; *preload* names the modules to import before."""

    def __init__(self, folder: Path, *preload: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "forks.log"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.kit.forks", *preload],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()

    def call(self, name: str, *arguments: Any, when_stopped: Callable[[], None] | None = None) -> int:
        """The exit code of *name* (``module:function``), which returns it, called in a fork; negative for a signal.

        When the fork stops itself (SIGSTOP), *when_stopped* is called, and then it goes on.
        """
        self._send({"call": name, "arguments": arguments})
        answer = self._answer()
        while "stopped" in answer:
            (when_stopped or (lambda: None))()
            self._send({"continue": answer["stopped"]})
            answer = self._answer()
        return int(answer["code"])

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(ANSWER_SECONDS) else b""
        if not line:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # the server and its fork, in the session made for them
            msg = f"no answer from the fork server in {ANSWER_SECONDS} s:\n{self.log.read_text(errors='replace')}"
            raise AssertionError(msg)
        return json.loads(line)


def serve(*preload: str) -> None:
    """Answer the calls of standard input until it ends."""
    for name in preload:
        pkgutil.resolve_name(name)
    for line in sys.stdin:
        message = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _live(message["call"], message["arguments"])
        status = os.waitpid(pid, os.WUNTRACED)[1]
        while os.WIFSTOPPED(status):
            print(json.dumps({"stopped": pid}), flush=True)
            sys.stdin.readline()
            os.kill(pid, signal.SIGCONT)
            status = os.waitpid(pid, os.WUNTRACED)[1]
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


def _live(name: str, arguments: list[Any]) -> None:
    code = 70
    try:
        os.dup2(2, 1)  # the server's answers are not the fork's to write
        code = pkgutil.resolve_name(name)(*arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(*sys.argv[1:])
