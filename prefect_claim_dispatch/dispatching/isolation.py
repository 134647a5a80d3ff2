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
from typing import Any, cast

from prefect_claim_dispatch.dispatching import child as childs_side
from prefect_claim_dispatch.dispatching.records import MAX_LINE_BYTES, Relay
from prefect_claim_dispatch.dispatching.surroundings import Surroundings
from prefect_claim_dispatch.outcomes import Cancel, Snooze
from prefect_claim_dispatch.registrations import Isolation, Processor

_FORKSERVER = multiprocessing.get_context("forkserver")
_READ_BYTES = 64 << 10
_MAX_ANSWER_BYTES = 64 << 10
"""An answer, and what may come that is neither a record nor an answer."""

_RECORD = f'["{childs_side.LOGGED}", '.encode()

_MAX_LAST_WORDS = 4_000
_MOST_READS, _REST_SECONDS = 100, 1.0
"""So long the rest of a pipe is waited for whose writers have been killed; one that got away may hold it open."""

_preloaded: set[str] = set()


class IsolatedError(Exception):
    """What an isolated processor raised, told as text; its class has the name of the original."""

    trace_told: str | None = None
    """Where it was raised, as the child tells it."""


class ProcessorKilledError(IsolatedError):
    """The child ended without an answer: a signal, `os._exit`, or not enough memory to say so."""


def preload(modules: Iterable[str]) -> None:
    """Have the template import *modules*, so that no child has to; without effect once the template runs."""
    _preloaded.update({childs_side.__name__}, modules)
    _FORKSERVER.set_forkserver_preload(sorted(_preloaded))


def call(processor: Processor, isolation: Isolation, arguments: dict[str, Any]) -> Snooze | Cancel | None:
    """What *processor* answers to *arguments* from a child process of its own; any other value is dropped.

    What it logs there is logged here, in the current run, while it works.

    Raises:
        TimeoutError: it was over its time limit, and is ended, with all of its process group.
        ProcessorKilledError: it died without an answer.
        IsolatedError: it raised.
    """
    errand = _errand(processor, isolation, arguments)
    preload((processor.function.__module__,))
    (reader, writer), (last_words, at_end) = _FORKSERVER.Pipe(duplex=False), _FORKSERVER.Pipe(duplex=False)
    with reader, last_words:
        with writer, at_end:
            child = _FORKSERVER.Process(target=childs_side.guard, args=(writer, at_end, errand), daemon=True)
            child.start()
        heard = _Heard(reader)
        try:
            return _meaning(_answer(heard, child, processor.time_limit))
        except (TimeoutError, ProcessorKilledError) as error:
            _end(child)
            heard.rest()
            _add_last_words(error, last_words)
            raise
        finally:
            heard.relay.close()
            _end(child)
            child.join()


def _errand(processor: Processor, isolation: Isolation, arguments: dict[str, Any]) -> childs_side.Errand:
    limit = processor.time_limit
    return childs_side.Errand(
        place=(processor.function.__module__, processor.function.__qualname__),
        arguments=arguments,
        environment=dict(os.environ),
        memory_bytes=isolation.memory_bytes,
        surroundings=Surroundings.here(),
        hangs_after=None if limit is None else _shortly_before(limit),
    )


class _Heard:
    """What has come from a child: records are logged at once, and the answer is kept."""

    def __init__(self, reader: Connection) -> None:
        self.reader = reader
        self.relay = Relay()
        self.answer: list[Any] | None = None
        self._part = b""
        self._junk = 0

    def read(self) -> bool:
        """Take what is there; False at the end of the pipe.

        Raises:
            ProcessorKilledError: there is no end to it, and no sense in it.
        """
        # Never `recv`: it waits for the rest of an answer without a limit, and unpickling runs what it is sent.
        part = os.read(self.reader.fileno(), _READ_BYTES)
        *lines, self._part = (self._part + part).split(b"\n")
        for line in lines:
            if self.answer is None:
                self._take(line)
        most = MAX_LINE_BYTES if self._part.startswith(_RECORD) else _MAX_ANSWER_BYTES
        if len(self._part) > most or self._junk > _MAX_ANSWER_BYTES:
            msg = f"its process sent {len(self._part) + self._junk} bytes that are no answer"
            raise ProcessorKilledError(msg)
        return bool(part)

    def rest(self) -> None:
        """Take what was written before its writers were killed."""
        with suppress(ProcessorKilledError):
            for _ in range(_MOST_READS):
                if not wait([self.reader], _REST_SECONDS) or not self.read():
                    return

    def _take(self, line: bytes) -> None:
        told: Any = None
        with suppress(ValueError, RecursionError):
            told = json.loads(line)
        match told:
            case [childs_side.LOGGED, dict()]:
                self.relay.take(cast("dict[str, Any]", told[1]), len(line))
            case list():
                self.answer = cast("list[Any]", told)
            case _:
                self._junk += len(line)


def _answer(heard: _Heard, child: Any, time_limit: timedelta | None) -> list[Any]:
    deadline = None if time_limit is None else time.monotonic() + time_limit.total_seconds()
    while heard.answer is None:
        left = None if deadline is None else deadline - time.monotonic()
        ready = () if left is not None and left <= 0 else wait([heard.reader, child.sentinel], left)
        if not ready:
            msg = f"over its time limit of {time_limit}; its process was killed"
            raise TimeoutError(msg)
        if heard.reader not in ready or not heard.read():
            child.join()
            return ["ended", child.exitcode]
    return heard.answer


def _shortly_before(limit: timedelta) -> float:
    """When a child tells where it is, in case that it hangs: late, but with time to say so."""
    seconds = limit.total_seconds()
    return max(seconds * 0.5, seconds - 1.0)


def _add_last_words(error: Exception, last_words: Connection) -> None:
    said = os.read(last_words.fileno(), _MAX_LAST_WORDS) if wait([last_words], 0) else b""
    if said:
        error.add_note(f"its process was here:\n{said.decode('utf-8', 'replace').strip()}")


def _meaning(answer: Any) -> Snooze | Cancel | None:
    match answer:
        case ["returned"]:
            return None
        case ["snoozed", float(seconds), str(reason)]:
            return Snooze(timedelta(seconds=seconds), reason)
        case ["cancelled", str(reason)]:
            return Cancel(reason)
        case ["raised", str(module), str(name), str(message), str(trace)]:
            kind = type(name, (IsolatedError,), {"__module__": module, "trace_told": trace or None})
            raise kind(message)
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
