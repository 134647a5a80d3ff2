"""Child processes, started and ended by their recorded pid, and never left behind.

Each set of children carries a random mark in its environment. On Linux, whatever a child started in turn (a Prefect
worker starts flow runs in sessions of their own) is found by that mark and ended with it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.kit import warm
from tests.kit.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MARK = "TEST_KIT_PROCESSES"
Interrupt = Literal["default", "ignored"]

# An exec keeps an ignored SIGINT ignored and resets a handled one. Set here, after the fork and before the exec,
# because `preexec_fn` is unsafe beside threads and warns about it.
_LAUNCH = (
    "import os, signal, sys; "
    "signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[1] == 'ignored' else signal.SIG_DFL); "
    "os.execvp(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process of ours; `stdout` and `stderr` are files."""

    process: subprocess.Popen[bytes] | warm.Forked
    stdout: Path
    stderr: Path

    @property
    def pid(self) -> int:
        """The recorded pid; it stays ours until the process was waited for."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Not ended yet; a stopped (SIGSTOP) process is running."""
        return self.process.poll() is None

    @property
    def output(self) -> str:
        """Standard output so far."""
        return self.stdout.read_text(errors="replace")

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return self.stderr.read_text(errors="replace")

    @property
    def told(self) -> str:
        """All that is known of it, for the message of a test that fails: exit code, standard output and error."""
        state = "still running" if self.is_running else f"exit code {self.process.returncode}"
        return f"process {self.pid}, {state}\n-- output\n{self.output}\n-- errors\n{self.errors}"

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self.process.send_signal(signum)

    def kill(self) -> int:
        """SIGKILL, and wait for the end; the exit code is -9 unless it had ended before."""
        self.send(signal.SIGKILL)
        return self.wait()

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        self.send(signal.SIGTERM)

    def interrupt(self) -> None:
        """SIGINT; does not wait."""
        self.send(signal.SIGINT)

    def pause(self) -> None:
        """SIGSTOP, and wait until the process stands still."""
        self.send(signal.SIGSTOP)
        self.wait_until_paused()

    def resume(self) -> None:
        """SIGCONT."""
        self.send(signal.SIGCONT)

    def wait_until_paused(self, timeout: float = 30.0) -> None:
        """Wait until the process is stopped, by `pause` or by itself (a failpoint)."""
        options = os.WSTOPPED | os.WNOHANG | os.WNOWAIT  # WNOWAIT and no WEXITED: the exit code is left to `wait`

        def is_paused() -> bool:
            if not self.is_running:
                msg = f"process {self.pid} ended ({self.process.returncode}) instead of stopping:\n{self.errors}"
                raise AssertionError(msg)
            return os.waitid(os.P_PID, self.pid, options) is not None

        wait_until(is_paused, description=f"process {self.pid} is stopped", timeout=timeout)

    def wait(self, timeout: float = 30.0) -> int:
        """The exit code, negative for a signal.

        Raises:
            AssertionError: still running after *timeout* seconds; the message holds its standard error.
        """
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            msg = f"process {self.pid} still runs after {timeout:g} s:\n{self.errors}"
            raise AssertionError(msg) from None

    def expect_success(self, timeout: float = 30.0) -> str:
        """Standard output, once the process has ended with exit code 0."""
        code = self.wait(timeout)
        assert code == 0, f"process {self.pid} ended with {code}:\n{self.errors}\n{self.output}"
        return self.output


@dataclass(slots=True)
class Processes:
    """Starts children, and ends all that are left with `end_all`. Their output is kept in *folder*."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    children: list[Child] = field(default_factory=list[Child])

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        interrupt: Interrupt = "default",
    ) -> Child:
        """Start a program in a session of its own, so that a Ctrl-C at the terminal does not reach it.

        *env* is laid over this process's environment; None takes a variable away. The project's root is on
        ``PYTHONPATH`` and is the working directory unless *cwd* is given. *interrupt*: whether SIGINT is at its
        default (a terminal, systemd, a container) or ignored (as after ``command &`` in a script); SIGTERM means
        different things to a Prefect worker in the two.
        """
        stdout, stderr = self._files(argv[0])
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCH, interrupt, *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd or ROOT,
                env=self._environment(env or {}),
                start_new_session=True,
            )
        return self._kept(Child(process=process, stdout=stdout, stderr=stderr))

    def python(
        self,
        *arguments: str,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        interrupt: Interrupt = "default",
    ) -> Child:
        """Start this Python with *arguments*: ``"-m", "module"``, ``"-c", "code"`` or a file.

        A module that imports Prefect first of all (see `warm`) is started as a fork of a process that has.
        """
        if not warm.is_for(arguments):
            return self.start([sys.executable, *arguments], env=env, cwd=cwd, interrupt=interrupt)
        stdout, stderr = self._files(sys.executable)
        process = warm.start(
            ROOT,
            arguments,
            env=self._environment(env or {}),
            cwd=cwd or ROOT,
            stdout=stdout,
            stderr=stderr,
            is_interrupted=interrupt == "default",
        )
        return self._kept(Child(process=process, stdout=stdout, stderr=stderr))

    def end_all(self) -> None:
        """SIGKILL every child that still runs, and all that they started, and reap them."""
        for child in self.children:
            if child.is_running:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
        for child in self.children:
            child.wait()
        kill_marked(MARK, self.mark)

    def _files(self, program: str) -> tuple[Path, Path]:
        """New files for the standard output and error of the next child."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{len(self.children):02d}-{Path(program).name}"
        stdout, stderr = self.folder / f"{name}.out", self.folder / f"{name}.err"
        stdout.touch()
        stderr.touch()
        return stdout, stderr

    def _kept(self, child: Child) -> Child:
        self.children.append(child)
        return child

    def _environment(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        wanted: dict[str, str | None] = {**os.environ, "PYTHONPATH": path, MARK: self.mark, **changes}
        return {name: value for name, value in wanted.items() if value is not None}


@contextmanager
def children(folder: Path) -> Generator[Processes]:
    """Processes that are all gone at the end."""
    started = Processes(folder)
    try:
        yield started
    finally:
        started.end_all()


def free_port() -> int:
    """A TCP port on the loopback that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def exists(pid: int) -> bool:
    """A process with this pid exists and is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True  # a system without /proc


def kill_marked(variable: str, value: str) -> None:
    """SIGKILL every process that was started with this variable in its environment, so by us; needs /proc."""
    for _ in range(100):  # again, since what was being forked in the meantime is found in the next round
        pids = marked(variable, value)
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with suppress(AssertionError):
            wait_until(lambda: not any(map(exists, pids)), description="killed processes are gone", timeout=5)  # noqa: B023


def marked(variable: str, value: str) -> list[int]:
    """The pids of living processes that were started with this variable in their environment, this process left out."""
    entry = f"{variable}={value}".encode()
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(folder.name)
            if pid != os.getpid() and entry in (folder / "environ").read_bytes().split(b"\0") and exists(pid):
                found.append(pid)
    return found
