"""The child's side of an isolated attempt: a guardian, which never runs the author's code, and its ward, which does.

The guardian leads the process group and lives until that group is killed. So the group's number can't have been given
to others by then, whatever became of the ward; and when the flow is gone, the guardian ends them all.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

from prefect_claim_dispatch.dispatching.calling import called
from prefect_claim_dispatch.dispatching.records import Shipper
from prefect_claim_dispatch.dispatching.surroundings import Surroundings
from prefect_claim_dispatch.dispatching.tracebacks import told
from prefect_claim_dispatch.outcomes import Cancel, Failed, Snooze, redacted

LOGGED = "log"
"""What a line begins with that is no answer: a record."""

_PR_SET_PDEATHSIG = 1
_MAX_NAME_LENGTH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What a ward is to do: the function's module and qualified name, what it is called with, and within what.

    *hangs_after*: seconds after which it tells where it is, for the case that it is killed soon.
    """

    place: tuple[str, str]
    arguments: dict[str, Any]
    environment: dict[str, str]
    memory_bytes: int | None
    surroundings: Surroundings
    hangs_after: float | None


def guard(writer: Connection, last_words: Connection, errand: Errand) -> NoReturn:
    """Run *errand* in a ward, and tell *writer* how the ward ended, in case it could not answer itself.

    *last_words*: where the interpreter says where it was when it crashed, or hung.
    """
    os.setsid()
    # Else the first full collection writes to each page of the template's, and all of it is copied.
    gc.freeze()
    _die_with_parent()
    # The pipe that keeps the template alive: whoever writes into it ends the template.
    alive = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_alive_fd", None)
    if alive is not None:
        os.close(alive)
    # The template's are those of the flow at the first call.
    os.environ.clear()
    os.environ.update(errand.environment)
    ended, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.signal(signal.SIGCHLD, _ignored)
    signal.set_wakeup_fd(wakeup)
    guardian = os.getpid()
    ward = os.fork()
    if ward == 0:
        _as_ward(guardian, lambda: _answer(writer, last_words, errand))
    _watch(ward, ended, writer)
    while True:
        _wait_for_end(-1)


def _ignored(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN: only a handler makes the signal write to the wakeup pipe."""


def _watch(ward: int, ended: int, writer: Connection) -> None:
    while True:
        _wait_for_end(ended)
        pid, status = os.waitpid(ward, os.WNOHANG)
        if pid == ward:
            # A line of its own, also after half an answer.
            with suppress(OSError):
                os.write(writer.fileno(), b"\n" + _line("ended", os.waitstatus_to_exitcode(status)))
            return


def _wait_for_end(ended: int) -> None:
    flow = cast("Any", multiprocessing.parent_process()).sentinel
    ready = wait([flow] if ended < 0 else [flow, ended])
    if flow in ready:
        # Otherwise they would go on working under a lease that nobody renews.
        os.killpg(0, signal.SIGKILL)
    if ended in ready:
        os.read(ended, 4096)


def _as_ward(guardian: int, work: Callable[[], None]) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _die_with_parent()
        if os.getppid() == guardian:
            work()
    finally:
        os._exit(0)


def _die_with_parent() -> None:
    # A guardian whose template is gone could not be waited for; a ward without its guardian, not be ended.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Writer:
    """One line at a time, whichever thread has something to say."""

    def __init__(self, connection: Connection) -> None:
        self._descriptor = connection.fileno()
        self._lock = threading.RLock()

    def write(self, line: bytes) -> None:
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]


def _answer(writer: Connection, last_words: Connection, errand: Errand) -> None:
    pipe = _Writer(writer)
    try:
        _tell_last_words(last_words, errand.hangs_after)
        shipper = Shipper(lambda record: pipe.write(_line(LOGGED, record)))
        errand.surroundings.levels.take(shipper)
        with errand.surroundings.entered():
            function = _found(*errand.place)
            errand.surroundings.levels.take(shipper)  # again: its module may have set up logging
            _limit_memory(errand.memory_bytes)
            line = _told(called(function, errand.arguments).verdict())
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told to the flow
        failed = Failed.from_exception(error)
        names = (redacted(name, _MAX_NAME_LENGTH) for name in (type(error).__module__, failed.error_type))
        line = _line("raised", *names, failed.message, told(error))
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    pipe.write(line)


def _tell_last_words(last_words: Connection, hangs_after: float | None) -> None:
    pipe = os.dup(last_words.fileno())
    last_words.close()
    # Nobody reads it before the end: with the pipe full, to wait would be for ever.
    os.set_blocking(pipe, False)
    faulthandler.enable(pipe)
    if hangs_after is not None:
        faulthandler.dump_traceback_later(hangs_after, file=pipe)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            cast("Any", stream).reconfigure(line_buffering=True)


def _told(verdict: Snooze | Cancel | None) -> bytes:
    match verdict:
        case None:
            return _line("returned")
        case Snooze():
            return _line("snoozed", verdict.delay.total_seconds(), redacted(verdict.reason))
        case Cancel():
            return _line("cancelled", redacted(verdict.reason))


def _line(*told: Any) -> bytes:
    return json.dumps(told, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _found(module: str, qualname: str) -> Any:
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return getattr(found, "fn", found)


def _limit_memory(memory_bytes: int | None) -> None:
    if memory_bytes is None:
        return
    import resource  # noqa: PLC0415 - not on Windows

    held = 0
    with suppress(OSError):
        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (held + memory_bytes, held + memory_bytes))
