"""A tiny child process that ends a claim flow whose interpreter is stuck, before its leases are over.

Leases are renewed by a thread. Python code, however busy, lets it run; C code that never gives up the interpreter
lock does not. A thread sends a byte every second; when none comes for *patience* seconds, the flow can't renew,
can't settle and can't even notice, so it is killed while its leases still stand, and its claims are rescued like
those of any crash. A process that was merely stopped (SIGSTOP, a debugger) is left alone: when it wakes, its fence
tells it what it has lost.

Run as a script: ``python -I -S sentinel.py PATIENCE``, with the pipe of bytes on standard input.
"""

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

SLICES = 8
"""In how many steps the patience is counted: what has just been woken must not pay for the time when it was stopped."""


class Sentinel:
    """The child process, as the flow sees it."""

    def __init__(self, patience: float) -> None:
        """Start it. It ends this process when no thread of it could run for *patience* seconds."""
        self._process = subprocess.Popen(  # noqa: S603 - our own file, by our own interpreter
            [sys.executable, "-I", "-S", __file__, str(patience)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal must not take it away while work is finishing
            bufsize=0,
        )
        self._ending = threading.Event()
        # A thread of its own: one that also talks to the database would fall silent when a statement waits for a lock.
        self._beating = threading.Thread(target=self._beat_on, args=(min(1.0, patience / SLICES),), daemon=True)
        self._beating.start()

    def _beat_on(self, pause: float) -> None:
        while not self._ending.wait(pause):
            self._beat()

    def _beat(self) -> None:
        """Tell it that the interpreter still runs."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.write(b".")

    def stop(self) -> None:
        """End it."""
        self._ending.set()
        self._beating.join()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        self._process.wait()


def watch(patience: float) -> int:
    """Read bytes until the pipe closes; kill the parent after *patience* seconds without one."""
    parent = os.getppid()
    silent = 0
    while silent < SLICES:
        readable, _, _ = select.select([0], [], [], patience / SLICES)
        if readable:
            if not os.read(0, 4096):
                return 0
            silent = 0
        elif os.getppid() != parent:
            # The parent has died and something forked by it holds the pipe open. Its pid may be somebody else's by now.
            return 0
        else:
            silent = 0 if is_stopped(parent) else silent + 1
    sys.stderr.write(
        f"claim-dispatch: the interpreter of process {parent} has been stuck for {patience:.1f} s, "
        "so that it can't renew its leases; ending it, its claims will be rescued\n"
    )
    os.kill(parent, signal.SIGKILL)
    return 1


def is_stopped(pid: int) -> bool:
    """Whether process *pid* was stopped by a signal or a debugger."""
    status = Path(f"/proc/{pid}/stat")
    try:
        # The name in parentheses may hold anything, spaces included; the state follows the last of them.
        state = status.read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        shown = subprocess.run(["/bin/ps", "-o", "state=", "-p", str(pid)], capture_output=True, check=False)  # noqa: S603
        state = shown.stdout.decode().strip()[:1]
    return state in ("T", "t")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(watch(float(sys.argv[1])))
