"""One attempt in a child process: it can be ended at its time limit, and what kills it kills nothing else.

Children are forked from a template process without threads (multiprocessing's forkserver), which holds none of our
connections. Forking the flow's own process is not safe: its other threads may hold locks that no one would open again.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import inspect
import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from prefect_claim_dispatch.outcomes import Cancel, Failed, Snooze, redacted
from prefect_claim_dispatch.processors import Isolation, Processor

_PR_SET_PDEATHSIG = 1
_FORKSERVER = multiprocessing.get_context("forkserver")


class IsolatedError(Exception):
    """What an isolated processor raised, told as text; its class has the name of the original."""


class ProcessorKilledError(IsolatedError):
    """The child ended without an answer: a signal, `os._exit`, or not enough memory to say so."""


def call(processor: Processor, isolation: Isolation, arguments: dict[str, Any]) -> Snooze | Cancel | None:
    """What *processor* answers to *arguments* from a child process of its own; any other value is dropped.

    Raises:
        TimeoutError: it was over its time limit, and is ended, with all of its process group.
        ProcessorKilledError: it died without an answer.
        IsolatedError: it raised.
    """
    # Only the first call matters: the template imports once, and each child would otherwise pay for it again.
    _FORKSERVER.set_forkserver_preload([__name__, processor.function.__module__])
    reader, writer = _FORKSERVER.Pipe(duplex=False)
    place = (processor.function.__module__, processor.function.__qualname__)
    child = _FORKSERVER.Process(target=_child, args=(writer, place, isolation.memory_bytes, arguments), daemon=True)
    child.start()
    writer.close()
    timeout = processor.options.timeout
    try:
        ready = wait([reader, child.sentinel], None if timeout is None else timeout.total_seconds())
        if not ready:
            msg = f"over its time limit of {timeout}; its process was killed"
            raise TimeoutError(msg)
        return _answer(reader, child)
    finally:
        _end(child.pid)
        child.join()
        reader.close()


def _answer(reader: Connection, child: Any) -> Snooze | Cancel | None:
    try:
        kind, *told = reader.recv() if reader.poll() else ("died",)
    except EOFError:
        kind, told = "died", []
    if kind == "returned":
        return told[0]
    if kind == "raised":
        raise type(told[0], (IsolatedError,), {})(told[1])
    child.join()
    raise ProcessorKilledError(_ending(child.exitcode))


def _ending(exitcode: int) -> str:
    if exitcode < 0:
        return f"its process was killed by {signal.Signals(-exitcode).name}"
    return f"its process exited with status {exitcode} before it answered"


def _end(pid: int | None) -> None:
    # The group, so that what the processor started does not outlive it; the process too, if it had no group yet.
    if pid is not None:
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)


def _child(writer: Connection, place: tuple[str, str], memory_bytes: int | None, arguments: dict[str, Any]) -> None:
    os.setsid()
    _die_with_parent()
    try:
        function = _found(*place)
        _limit_memory(memory_bytes)
        result = function(**arguments)
        told = ("returned", _plain(asyncio.run(result) if inspect.iscoroutine(result) else result))
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told to the parent
        failed = Failed.from_exception(error)
        told = ("raised", failed.error_type, failed.message)
    writer.send(told)
    os._exit(0)


def _found(module: str, qualname: str) -> Any:
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return getattr(found, "fn", found)


def _plain(result: Any) -> Snooze | Cancel | None:
    match result:
        case Snooze():
            return Snooze(result.delay, redacted(result.reason))
        case Cancel():
            return Cancel(redacted(result.reason))
        case _:
            return None


def _die_with_parent() -> None:
    # The template ends when the flow does; without this, a child would go on working under a lease nobody renews.
    # Each child is handed the pipe that keeps the template alive, so that the template would outlive the flow by it.
    alive = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_alive_fd", None)
    if alive is not None:
        os.close(alive)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit_memory(memory_bytes: int | None) -> None:
    if memory_bytes is None:
        return
    import resource  # noqa: PLC0415 - not on Windows

    held = 0
    with suppress(OSError):
        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (held + memory_bytes, held + memory_bytes))
