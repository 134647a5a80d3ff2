"""Deadlines: no thread that holds claims waits for an answer of PostgreSQL for longer than its leases can bear.

A network that goes away without a word is noticed by keepalives, but not where something in between still
acknowledges what is sent: a pooler, a load balancer, a proxy whose other side is gone. The statement then waits for
ever, and with it whoever renews the leases. So a connection that such a thread has taken from its pool and not given
back in time has its statement cancelled, as a lock may be what it waits for; then its socket is shut down, and the
driver reports a lost connection like any other.

SQLite has no connection that could be lost.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Engine, event

from prefect_claim_dispatch.actions import elapsed_clock

logger = logging.getLogger(__name__)

CANCEL_SECONDS: Final = 1.0
"""How long a cancelled statement has to end before its connection is cut."""

LEAST_CONNECT_SECONDS: Final = 2  # libpq takes less for as much

LEASE_SHARE: Final = 4
LEAST_SECONDS: Final = 1.5  # a busy machine is no lost network

_bound = threading.local()


@contextmanager
def answered_in_time(lease: timedelta) -> Generator[None]:
    """What this thread asks of the database in the block is answered within a quarter of *lease*, or fails.

    It fails as a lost connection does. Counted from when a connection is taken from the pool of an engine that is
    `watched` until it is given back: a transaction, as short as all of ours are. New ones are made in that time, too.
    """
    before = getattr(_bound, "seconds", None)
    _bound.seconds = max(LEAST_SECONDS, lease.total_seconds() / LEASE_SHARE)
    try:
        yield
    finally:
        _bound.seconds = before


def watched(engine: Engine) -> None:
    """Have the connections of *engine* keep the deadlines of `answered_in_time`; others are not touched."""
    event.listen(engine, "do_connect", _limit_connecting)
    event.listen(engine, "connect", _taken)  # whoever is asked something when the connection is made may be silent, too
    event.listen(engine, "checkout", _taken)
    event.listen(engine, "checkin", _given_back)
    event.listen(engine, "invalidate", _given_back)
    event.listen(engine, "detach", _given_back)  # whoever takes it out of the pool sees to it alone


def _limit_connecting(_dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
    seconds = getattr(_bound, "seconds", None)
    if seconds is not None:
        usual = int(options.get("connect_timeout", 0)) or math.inf
        options["connect_timeout"] = max(LEAST_CONNECT_SECONDS, min(usual, math.ceil(seconds)))


@dataclass(slots=True)
class _Loan:
    connection: Any
    ends_at: float
    is_cancelled: bool = False


class _Watchman:
    """One thread for the process: it looks at what is lent, and ends what was not given back in time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # entered itself: `Condition.__enter__` keeps it where a signal's handler raises
        self._changed = threading.Condition(self._lock)
        self._loans: dict[int, _Loan] = {}
        self._wakes_at = -math.inf
        self._thread: threading.Thread | None = None

    def lend(self, record: Any, connection: Any, seconds: float) -> None:
        """Watch *connection* until it is given back."""
        ends_at = elapsed_clock() + seconds
        with self._lock:
            self._loans[id(record)] = _Loan(connection, ends_at)
            if self._thread is None or not self._thread.is_alive():  # the second in the child of a fork
                self._thread = threading.Thread(target=self._run, name="claim-dispatch-deadlines", daemon=True)
                self._thread.start()
            elif ends_at < self._wakes_at:
                self._changed.notify_all()

    def give_back(self, record: Any) -> None:
        """It has been given back, or given up."""
        if self._loans:  # without the lock: what was lent here is seen, and nearly always there is nothing
            with self._lock:
                self._loans.pop(id(record), None)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._wakes_at = min((loan.ends_at for loan in self._loans.values()), default=math.inf)
                pause = self._wakes_at - elapsed_clock()
                if pause > 0:
                    self._changed.wait(None if pause == math.inf else pause)
                    continue
                # Under the lock, so that it can't be given back, and lent to somebody else, while it is cut.
                late = self._late()
            for loan in late:
                _cancel(loan.connection)

    def _late(self) -> list[_Loan]:
        """Those whose time is up for the first time; the others are cut."""
        now = elapsed_clock()
        late = {key: loan for key, loan in self._loans.items() if loan.ends_at <= now}
        for key, loan in late.items():
            if loan.is_cancelled or not hasattr(loan.connection, "cancel_safe"):
                _cut(loan.connection)
                del self._loans[key]
        to_cancel = [loan for key, loan in late.items() if key in self._loans]
        for loan in to_cancel:
            loan.is_cancelled, loan.ends_at = True, now + 2 * CANCEL_SECONDS
        return to_cancel


_watchman = _Watchman()


def _taken(connection: Any, record: Any, *_: Any) -> None:
    seconds = getattr(_bound, "seconds", None)
    if seconds is not None:
        _watchman.lend(record, connection, seconds)


def _given_back(_connection: Any, record: Any, *_: Any) -> None:
    _watchman.give_back(record)


def _cancel(connection: Any) -> None:
    """Ask the server to end the statement: it may be there, and wait for a lock."""
    with suppress(Exception):  # the driver's errors, none of which changes what comes next
        connection.cancel_safe(timeout=CANCEL_SECONDS)


def _cut(connection: Any) -> None:
    logger.warning("the database has not answered in time; its connection is cut")
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as there:
        there.shutdown(socket.SHUT_RDWR)
