"""Durations as options take them: a `timedelta`, or seconds as a plain number, as Prefect takes them; checked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from prefect_claim_dispatch.errors import ClaimDispatchError

MAX_DURATION: Final = timedelta(days=3650)
"""The longest that any option takes: what is longer leaves the calendar of a database sooner or later."""

ZERO: Final = timedelta(0)
MOMENT: Final = timedelta(microseconds=1)
"""The shortest that is more than nothing."""


def checked_duration(
    value: Any,
    what: str,
    *,
    error: type[ClaimDispatchError],
    least: timedelta = ZERO,
    most: timedelta = MAX_DURATION,
    remedy: str = "",
) -> timedelta:
    """*value* as a `timedelta`, if it is one or a number of seconds, from *least* to *most*.

    Raises:
        ClaimDispatchError: *error*, which names *what* is wrong, what it got, what it wants, and the *remedy*.
    """
    duration = _as_timedelta(value)
    if duration is not None and least <= duration <= most:
        return duration
    start = "above zero" if least == MOMENT else f"{least} or more"
    got = str(value) if isinstance(value, timedelta) else shown(value)
    msg = f"{what} must be a timedelta or a number of seconds, {start} and {_spoken(most)} at most, got {got}"
    raise error(f"{msg}; {remedy}" if remedy else msg)


def shown(value: Any) -> str:
    """*value* as a refusal of an option names it: short, on one line, with its class."""
    try:
        text = ascii(value)
    except Exception as error:  # noqa: BLE001 - an author's own __repr__, or an integer of more digits than Python writes
        text = f"what can't be shown: {type(error).__name__}"
    return f"{text[:100]} ({type(value).__name__})"


def _as_timedelta(value: Any) -> timedelta | None:
    if isinstance(value, timedelta):
        return value
    # bool is an int, and True is no second.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return timedelta(seconds=value)
    except (ValueError, OverflowError):  # NaN, and what no timedelta holds
        return None


def _spoken(most: timedelta) -> str:
    return f"{most.days} days" if most.days else str(most)
