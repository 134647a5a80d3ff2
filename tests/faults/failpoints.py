"""Failpoints: die, raise or freeze at a named statement, with no code for it in the package.

The package's statements carry the execution option ``claim_dispatch_statement``. ``CLAIM_DISPATCH_FAILPOINT`` names
one, a moment and a fault::

    claim:before:kill            SIGKILL oneself just before the claim is sent
    settle:after:stop            SIGSTOP oneself once it was executed, its transaction still open
    claim:after-commit:kill      ... once the COMMIT of a transaction with that statement has returned
    renew:before:raise:3         raise `FailpointError`, the third time only
    claim:after-commit:tell      SIGTERM oneself, as whoever ends a process politely does
    settle:after:call            call what was put into `called`, for faults that only one test needs

Importing this module arms it when the variable is set, so a child process needs no more than to import it, as one of
its ``--processors`` for example. Listeners sit on the class `Engine`: every engine counts, older ones too.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast, get_args

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext
from sqlalchemy.pool import PoolProxiedConnection

VARIABLE: Final = "CLAIM_DISPATCH_FAILPOINT"
OPTION: Final = "claim_dispatch_statement"
MEMORY: Final = "failpoint_statements"  # in Connection.info: the named statements of the open transaction

Moment = Literal["before", "after", "after-commit"]
Fault = Literal["kill", "raise", "stop", "tell", "call"]


class FailpointError(Exception):
    """Raised by a failpoint of kind ``raise``."""


@dataclass(slots=True, kw_only=True)
class Failpoint:
    """*fault* happens at the *nth* time (from 1) that *statement* comes to *moment*, and at no other time."""

    statement: str
    moment: Moment
    fault: Fault
    nth: int = 1
    hits: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def parse(cls, text: str) -> Failpoint:
        """Read ``statement:moment:fault[:nth]``.

        Raises:
            ValueError: anything else; a fault test with a misspelt failpoint would prove nothing.
        """
        statement, moment, fault, nth = (*text.split(":"), "1")[:4] if text.count(":") in (2, 3) else ("",) * 4
        is_known = moment in get_args(Moment) and fault in get_args(Fault)
        if not (statement and is_known and nth.isdecimal() and int(nth) >= 1):
            msg = f"failpoint must be statement:before|after|after-commit:kill|raise|stop|tell|call[:nth], got {text!r}"
            raise ValueError(msg)
        return cls(statement=statement, moment=cast("Moment", moment), fault=cast("Fault", fault), nth=int(nth))

    def reached(self, statement: str | None, moment: Moment) -> None:
        """Count, and let the fault happen when its time has come."""
        if statement != self.statement or moment != self.moment:
            return
        with self.lock:
            self.hits += 1
            is_due = self.hits == self.nth
        if is_due:
            self._happen()

    def _happen(self) -> None:
        match self.fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "tell":
                os.kill(os.getpid(), signal.SIGTERM)
            case "call":
                called()
            case "raise":
                msg = f"failpoint {self.statement}:{self.moment}"
                raise FailpointError(msg)


called: Callable[[], None] = list  # calling it does nothing
_armed: Failpoint | None = None
_plain_commit: Callable[[DefaultDialect, PoolProxiedConnection], None] | None = None


def arm(text: str | None = None) -> Failpoint | None:
    """Arm the failpoint *text*, or the environment's; None when there is none. It replaces the one armed before."""
    global _armed  # noqa: PLW0603 - one per process, as the environment variable is
    text = text or os.environ.get(VARIABLE)
    _armed = Failpoint.parse(text) if text else None
    if _armed:
        _install()
    return _armed


def disarm() -> None:
    """Let nothing happen any more, and leave nothing behind in SQLAlchemy."""
    global _armed  # noqa: PLW0603
    _armed = None
    _uninstall()


def _reached(statement: str | None, moment: Moment) -> None:
    if _armed:
        _armed.reached(statement, moment)


def _install() -> None:
    if _plain_commit is None:
        for name, listener in _LISTENERS.items():
            event.listen(Engine, name, listener)
        _wrap_commit()


def _uninstall() -> None:
    global _plain_commit  # noqa: PLW0603
    if _plain_commit is not None:
        for name, listener in _LISTENERS.items():
            event.remove(Engine, name, listener)
        DefaultDialect.do_commit = _plain_commit
        _plain_commit = None


def _name(context: ExecutionContext | None) -> str | None:
    return context.execution_options.get(OPTION) if context else None


def _before_cursor_execute(
    connection: Connection,
    _cursor: DBAPICursor,
    _statement: str,
    _parameters: Any,
    context: ExecutionContext | None,
    _executemany: bool,
) -> None:
    name = _name(context)
    if name:
        connection.info.setdefault(MEMORY, []).append(name)
    _reached(name, "before")


def _after_cursor_execute(
    _connection: Connection,
    _cursor: DBAPICursor,
    _statement: str,
    _parameters: Any,
    context: ExecutionContext | None,
    _executemany: bool,
) -> None:
    _reached(_name(context), "after")


def _forget(connection: Connection) -> None:
    if not connection.invalidated:  # else what it remembered is gone with it
        connection.info.pop(MEMORY, None)


_LISTENERS: dict[str, Callable[..., None]] = {
    "before_cursor_execute": _before_cursor_execute,
    "after_cursor_execute": _after_cursor_execute,
    "rollback": _forget,
}


def _wrap_commit() -> None:
    # SQLAlchemy's "commit" event comes before the COMMIT and there is none after it. Both drivers' dialects, and the
    # async ones, use this method of the base class. It is given the pooled connection, whose `info` is `Connection`'s.
    global _plain_commit  # noqa: PLW0603
    commit = _plain_commit = DefaultDialect.do_commit

    def do_commit(self: DefaultDialect, dbapi_connection: PoolProxiedConnection) -> None:
        commit(self, dbapi_connection)
        for name in dict.fromkeys(dbapi_connection.info.pop(MEMORY, ())):
            _reached(name, "after-commit")

    DefaultDialect.do_commit = do_commit


if VARIABLE in os.environ:
    arm()
