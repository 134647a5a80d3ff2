"""Log records on their way from an isolated child to its flow, which logs them as if they had been logged there.

Each is written to the pipe before the author's next line runs: what ends the child takes nothing of it along. In the
flow they meet its own handlers and levels, in the context of the run: so they arrive wherever that run's logs do.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

MAX_LENGTH: Final = 100_000
"""Characters of one message, and of one traceback; Prefect takes a million bytes."""

MAX_LINE_BYTES: Final = 2 << 20
"""What a record takes in the pipe, at most."""

MAX_LOGGED_BYTES: Final = 16 << 20
"""What an attempt may log from a child: it waits in the flow's memory until the API has it."""

LAST_KEPT: Final = 20
"""Records that are told of those beyond: the last before the end say the most."""

MAX_EXTRAS, MAX_EXTRA_LENGTH = 50, 1_000

logger = logging.getLogger(__name__)

_FORMATTER = logging.Formatter()
_SENT: Final = (
    *("name", "levelno", "levelname", "pathname", "filename", "module", "lineno", "funcName"),
    *("created", "msecs", "thread", "threadName", "processName", "process"),
)
_KNOWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """How logging is set up in a process: the levels, and what is disabled; by name, the root's is the empty one."""

    levels: Mapping[str, int]
    disabled: frozenset[str]
    manager: int

    @classmethod
    def here(cls) -> Levels:
        """Those of this process."""
        levels, disabled = {"": logging.root.level}, set[str]()
        for name, one in _loggers().items():
            if one.level:
                levels[name] = one.level
            if one.disabled:
                disabled.add(name)
        return cls(levels=levels, disabled=frozenset(disabled), manager=logging.root.manager.disable)

    def take(self, handler: logging.Handler) -> None:
        """Have them in this process, and *handler* alone for whatever is logged."""
        for name in {*self.levels, *self.disabled} - {""}:
            logging.getLogger(name)
        for name, one in _loggers().items():
            for other in one.handlers[:]:
                one.removeHandler(other)
            one.propagate, one.disabled = True, name in self.disabled
            if one.level != self.levels.get(name, 0):
                one.setLevel(self.levels.get(name, 0))
        logging.root.handlers[:] = [handler]
        logging.root.setLevel(self.levels[""])
        logging.disable(self.manager)


class Shipper(logging.Handler):
    """Writes each record, as one line, by *send*."""

    def __init__(self, send: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send *record*; what can't be said of it is told on standard error, as by any handler."""
        try:
            self._send(_plain(record))
        except OSError:
            return  # the flow is gone, or has its answer
        except Exception:  # noqa: BLE001 - as handlers do
            self.handleError(record)


class Relay:
    """Logs here what a child has sent, up to a bound; of what is more, the last."""

    def __init__(self, most: int = MAX_LOGGED_BYTES) -> None:
        self._left = most
        self._last: deque[Mapping[str, Any]] = deque(maxlen=LAST_KEPT)
        self._beyond = 0

    def take(self, told: Mapping[str, Any], size: int) -> None:
        """Log the record *told*, of *size* bytes."""
        if self._left > 0:
            self._left -= size
            _log(told)
        else:
            self._beyond += 1
            self._last.append(told)

    def close(self) -> None:
        """Log the last of what was too much."""
        if self._beyond > LAST_KEPT:
            msg = "the child process logged more than is kept of one attempt: %s records are left out here"
            logger.warning(msg, f"{self._beyond - LAST_KEPT:,}")
        for told in self._last:
            _log(told)
        self._last.clear()
        self._beyond = 0


def _log(told: Mapping[str, Any]) -> None:
    name, level = told.get("name"), told.get("levelno")
    if not isinstance(name, str) or not isinstance(level, int):
        return
    known = _known(name)
    # A handler that fails here would fail its author's call there; here it would take the attempt along.
    with suppress(Exception):
        if known.isEnabledFor(level):
            known.handle(logging.makeLogRecord(_readable(told)))


def _known(name: str) -> logging.Logger:
    """The logger *name*, or the nearest above it that this process has: loggers are never forgotten."""
    while name:
        known = logging.root.manager.loggerDict.get(name)
        if isinstance(known, logging.Logger):
            return known
        name = name.rpartition(".")[0]
    return logging.root


def _plain(record: logging.LogRecord) -> dict[str, Any]:
    told = {name: getattr(record, name, None) for name in _SENT}
    told["msg"] = _cut(record.getMessage())
    if record.exc_info:
        told["exc_text"] = _cut(record.exc_text or _FORMATTER.formatException(record.exc_info))
    if record.stack_info:
        told["stack_info"] = _cut(record.stack_info)
    extras = [(name, value) for name, value in vars(record).items() if name not in _KNOWN]
    for name, value in extras[:MAX_EXTRAS]:
        if value is None or isinstance(value, bool | int | float):
            told[name[:MAX_EXTRA_LENGTH]] = value
        else:
            told[name[:MAX_EXTRA_LENGTH]] = str(value)[:MAX_EXTRA_LENGTH]
    return told


def _readable(told: Mapping[str, Any]) -> dict[str, Any]:
    """*told* without what would take the place of a method, whoever has sent it."""
    return {
        name: value
        for name, value in told.items()
        if (value is None or isinstance(value, str | int | float)) and not hasattr(logging.LogRecord, name)
    }


def _cut(text: str) -> str:
    if len(text) <= MAX_LENGTH:
        return text
    return f"{text[:MAX_LENGTH]}... ({len(text) - MAX_LENGTH:,} more characters)"


def _loggers() -> dict[str, logging.Logger]:
    return {name: one for name, one in list(logging.root.manager.loggerDict.items()) if isinstance(one, logging.Logger)}
