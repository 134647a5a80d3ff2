"""One attempt in a child process: it can be ended at its time limit, and what kills it kills nothing else.

Children are forked from a template process without threads (multiprocessing's forkserver), which holds none of our
connections. Forking the flow's own process is not safe: its other threads may hold locks that no one would open again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

from prefect_claim_dispatch.dispatching import child as childs_side
from prefect_claim_dispatch.outcomes import Cancel, Snooze
from prefect_claim_dispatch.registrations import Isolation, Processor

_FORKSERVER = multiprocessing.get_context("forkserver")
_MAX_ANSWER_BYTES = 64 << 10
_preloaded: set[str] = set()


class IsolatedError(Exception):
    """What an isolated processor raised, told as text; its class has the name of the original."""


class ProcessorKilledError(IsolatedError):
    """The child ended without an answer: a signal, `os._exit`, or not enough memory to say so."""


def preload(modules: Iterable[str]) -> None:
    """Have the template import *modules*, so that no child has to; without effect once the template runs."""
    _preloaded.update({childs_side.__name__}, modules)
    _FORKSERVER.set_forkserver_preload(sorted(_preloaded))


def call(processor: Processor, isolation: Isolation, arguments: dict[str, Any]) -> Snooze | Cancel | None:
    """What *processor* answers to *arguments* from a child process of its own; any other value is dropped.

    Raises:
        TimeoutError: it was over its time limit, and is ended, with all of its process group.
        ProcessorKilledError: it died without an answer.
        IsolatedError: it raised.
    """
    errand = childs_side.Errand(
        place=(processor.function.__module__, processor.function.__qualname__),
        arguments=arguments,
        environment=dict(os.environ),
        memory_bytes=isolation.memory_bytes,
    )
    preload((processor.function.__module__,))
    reader, writer = _FORKSERVER.Pipe(duplex=False)
    with reader:
        with writer:
            child = _FORKSERVER.Process(target=childs_side.guard, args=(writer, errand), daemon=True)
            child.start()
        try:
            return _meaning(_answer(reader, child, processor.time_limit))
        finally:
            _end(child)
            child.join()


def _answer(reader: Connection, child: Any, time_limit: timedelta | None) -> list[Any]:
    deadline = None if time_limit is None else time.monotonic() + time_limit.total_seconds()
    received = b""
    while len(received) < _MAX_ANSWER_BYTES:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = wait([reader, child.sentinel], left)
        if not ready:
            msg = f"over its time limit of {time_limit}; its process was killed"
            raise TimeoutError(msg)
        # Never `recv`: it waits for the rest of an answer without a limit, and unpickling runs what it is sent.
        part = os.read(reader.fileno(), _MAX_ANSWER_BYTES) if reader in ready else b""
        received += part
        for line in received.split(b"\n")[:-1]:
            with suppress(ValueError):
                return json.loads(line)
        if not part:
            child.join()
            return ["ended", child.exitcode]
    msg = f"its process sent {len(received)} bytes that are no answer"
    raise ProcessorKilledError(msg)


def _meaning(answer: Any) -> Snooze | Cancel | None:
    match answer:
        case ["returned"]:
            return None
        case ["snoozed", float(seconds), str(reason)]:
            return Snooze(timedelta(seconds=seconds), reason)
        case ["cancelled", str(reason)]:
            return Cancel(reason)
        case ["raised", str(name), str(message)]:
            raise type(name, (IsolatedError,), {})(message)
        case ["ended", int(exitcode)]:
            raise ProcessorKilledError(_ending(exitcode))
        case _:
            msg = "its process sent something that is no answer"
            raise ProcessorKilledError(msg)


def _ending(exitcode: int) -> str:
    if exitcode < 0:
        known = {int(one): one.name for one in signal.Signals}
        return f"its process was killed by {known.get(-exitcode, f'signal {-exitcode}')}"
    return f"its process exited with status {exitcode} before it answered"


def _end(child: Any) -> None:
    # The template reaps what has ended: by its sentinel the guardian is gone, and its number may be another's.
    if wait([child.sentinel], 0):
        return
    try:
        # The group, so that what the processor started does not outlive it.
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)  # it had no group yet
