"""What an attempt came to. Processors return `Snooze` or `Cancel`; the rest is concluded about them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

MAX_ERROR_LENGTH = 1_000
MAX_DELAY = timedelta(days=3650)
MAX_NAME_LENGTH = 200
LEAST_SNOOZE = timedelta(seconds=1)

_CREDENTIALS = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*://)[^\s/@:]*:[^\s/@]*@")
_ASSIGNMENTS = re.compile(
    r"(?P<name>\b(?:password|passwd|pwd|secret|token|api[_-]?key|authorization)\b[\"']?\s*[:=]\s*[\"']?(?:bearer\s+)?)"
    r"[^\s\"',;&]+",
    re.IGNORECASE,
)


def redacted(text: str, limit: int = MAX_ERROR_LENGTH) -> str:
    """*text* without passwords in URLs or assignments, without NUL or surrogates, cut to *limit* characters."""
    # Cut first: a regular expression over a hundred megabytes of error text would hold up everybody's settlement.
    text = text[: limit * 4].encode("utf-8", "replace").decode("utf-8").replace("\x00", "\N{REPLACEMENT CHARACTER}")
    text = _CREDENTIALS.sub(r"\g<scheme>***@", text)
    text = _ASSIGNMENTS.sub(r"\g<name>***", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _check_text(outcome: str, remedy: str, reason: Any) -> None:
    # Found here, it is the processor's own error; later, the row would have no verdict at all.
    if not isinstance(reason, str):
        msg = f"{outcome} takes a text as its reason, got {type(reason).__name__}; write {remedy}"
        raise TypeError(msg)


NOTES: frozenset[object] = frozenset({"snoozed", "released"})
"""Kinds of entries in `errors` that are no errors: they say why a row waits, and are of no attempt that failed."""


@dataclass(frozen=True, slots=True)
class Snooze:
    """Run the action again after *delay*, counted on the database's clock. Costs no attempt.

    A *delay* below a second is kept the first time only; then it is a second: what always answers "at once" would
    never rest. *reason* is kept in `errors`, as one entry of the kind ``snoozed``, in the place of the last such.
    """

    delay: timedelta
    reason: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.delay, timedelta):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"Snooze takes a timedelta, got {type(self.delay).__name__}; write Snooze(timedelta(minutes=5))"
            raise TypeError(msg)
        if not timedelta(0) <= self.delay <= MAX_DELAY:
            msg = f"Snooze delay must be from zero to {MAX_DELAY.days} days, got {self.delay}"
            raise ValueError(msg)
        _check_text("Snooze", "Snooze(delay, str(reason))", self.reason)


@dataclass(frozen=True, slots=True)
class Cancel:
    """The action is not wanted any more: terminal, with *reason* kept in `errors`."""

    reason: str

    def __post_init__(self) -> None:
        _check_text("Cancel", "Cancel(str(reason))", self.reason)


@dataclass(frozen=True, slots=True)
class Processed:
    """The processor finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An attempt raised, or its run ended failed; may be tried again while attempts are left."""

    error_type: str
    message: str = field(repr=False)

    @classmethod
    def from_exception(cls, error: BaseException) -> Failed:
        """The failure that *error* stands for, redacted; survives a `__str__` that raises itself."""
        try:
            message = redacted(str(error))
        except BaseException as unprintable:  # noqa: BLE001 - a hostile __str__ must not take the batch with it
            message = f"<{type(unprintable).__name__} while printing the error>"
        return cls(error_type=redacted(type(error).__qualname__, MAX_NAME_LENGTH), message=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed:
    """The lease expired before the attempt was settled: its process died, hung or was cut off.

    *reason*: what Prefect says instead of a run of a deployment.
    """

    claimed_by: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unprocessable:
    """The row can never be processed as it stands (not JSON, does not validate, malformed rules): dead at once."""

    error_type: str
    message: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Released:
    """The claim is given back without having begun: costs nothing, due again at once.

    With a *reason*, what could not be begun would fail to again at once: it is put off, each time for longer, and the
    reason is kept in `errors`, as one entry of the kind ``released``.
    """

    reason: str = ""


Outcome = Processed | Failed | Crashed | Unprocessable | Snooze | Cancel | Released
