"""Processors that harm the process they run in, and one that does not. Each execution leaves a line in the ledger."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

from prefect_claim_dispatch import Action, Isolation, databases, processor
from tests.acceptance.processors import note

HEALTHY = "p.healthy"
FATAL_TIMEOUT = timedelta(seconds=10)


class UnprintableError(Exception):
    """Can't be shown."""

    def __str__(self) -> str:
        """Raise what is no `Exception` either."""
        raise SystemExit(5)

    __repr__ = __str__


class OwnError(BaseException):
    """No `Exception`."""


class UnpicklableError(Exception):
    """Holds what can't be sent."""

    def __init__(self) -> None:
        super().__init__("unpicklable", threading.Lock())
        self.lock = threading.Lock()


def raises(make: Callable[[], BaseException]) -> Callable[[], NoReturn]:
    """What raises that."""

    def body() -> NoReturn:
        raise make()

    return body


def dispose_engine() -> None:
    """The pool that our own statements run on."""
    databases.engine_for(os.environ["CLAIM_DISPATCH_DATABASE_URL"]).dispose()


def change_handlers() -> None:
    """Not allowed in a thread; or in effect, in a main one."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def change_folder() -> None:
    """The whole process's."""
    os.chdir("/")


def lower_recursion_limit() -> None:
    """The whole process's."""
    sys.setrecursionlimit(400)


def flood_log() -> None:
    """Ten thousand lines."""
    for number in range(10_000):
        logging.getLogger(__name__).warning("line %d", number)


def leave_sleeper() -> None:
    """Nobody waits for it; the test ends it."""
    subprocess.Popen(["sleep", "600"])


def read_nowhere() -> None:
    """A null dereference."""
    ctypes.string_at(0)


def devour() -> None:
    """Wants more memory than it may have."""
    bytearray(4 << 30)


def hang() -> None:
    """Never comes back from C."""
    sum(range(10**12))


def exit_at_once() -> None:
    """Ends its process without a word."""
    os._exit(7)


FAILING: dict[str, Callable[[], object]] = {
    "p.unprintable": raises(UnprintableError),
    "p.system-exit": raises(lambda: SystemExit(3)),
    "p.keyboard-interrupt": raises(KeyboardInterrupt),
    "p.generator-exit": raises(GeneratorExit),
    "p.cancelled": raises(asyncio.CancelledError),
    "p.own-base": raises(lambda: OwnError("own")),
    "p.unpicklable": raises(UnpicklableError),
    "p.enormous": raises(lambda: ValueError("x" * 10_000_000)),
    "p.handlers": change_handlers,
}
"""Fail in the flow's process; the last because a thread may not."""

MEDDLING: dict[str, Callable[[], object]] = {
    "p.dispose": dispose_engine,
    "p.folder": change_folder,
    "p.recursion": lower_recursion_limit,
    "p.flood": flood_log,
    "p.sleeper": leave_sleeper,
}
"""Return, having changed something that the others need."""

FATAL: dict[str, Callable[[], object]] = {
    "p.fatal.exit": exit_at_once,
    "p.fatal.segv": read_nowhere,
    "p.fatal.memory": devour,
    "p.fatal.hang": hang,
}
"""Would end or hold up the whole flow; isolated."""


@processor(HEALTHY)
def be_healthy(action: Action) -> None:
    """Harms nobody."""
    note(action)


def poison(action: Action) -> None:
    """Does what its type says, in the flow's process."""
    note(action)
    (FAILING | MEDDLING)[action.type]()


for _type in FAILING | MEDDLING:
    processor(_type, max_attempts=1)(poison)


@processor(
    "p.fatal.*",
    retries=1,
    retry_delay_seconds=0,
    max_attempts=2,
    backoff=timedelta(0),
    timeout=FATAL_TIMEOUT,
    isolate=Isolation(memory_bytes=1 << 30),
)
def poison_in_a_child(action: Action) -> None:
    """Does what its type says, in a process of its own; tried twice in each of two attempts."""
    note(action)
    FATAL[action.type]()
