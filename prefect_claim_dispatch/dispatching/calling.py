"""One call of an author's function, taken to its end, within its time limit where Prefect does not keep it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from prefect.utilities.timeout import timeout

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.dispatching.returns import ended, ended_async


def called(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    within: timedelta | None = None,
    *,
    limit: timedelta | None = None,
    each: bool = False,
) -> Any:
    """What *function* returns, all that it left open ended: see `ended`, also for *each*.

    *limit* is what its author gives the call, *within* the same where nobody else keeps it: Prefect's own strikes
    between two steps of Python code only, and what is waited for may take none for hours.

    Raises:
        TimeoutError: it took longer. Anything else: it raised that.
    """
    ends_at = _end_of(limit or within)
    if within is None:
        return ended(function(**arguments), ends_at, each=each)
    try:
        with timeout(seconds=within.total_seconds(), timeout_exc_type=_OverTimeLimitError):
            return ended(function(**arguments), ends_at, each=each)
    except _OverTimeLimitError as over:
        raise _over(within, over) from None


async def called_async(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    within: timedelta | None = None,
    *,
    limit: timedelta | None = None,
    each: bool = False,
) -> Any:
    """As `called`, for a coroutine function."""
    ends_at = _end_of(limit or within)
    if within is None:
        return await ended_async(await function(**arguments), ends_at, each=each)
    whole = asyncio.timeout(within.total_seconds())
    try:
        async with whole:
            return await ended_async(await function(**arguments), ends_at, each=each)
    except TimeoutError as over:
        if not whole.expired():
            raise
        raise _over(within, over) from None


def _end_of(limit: timedelta | None) -> float | None:
    return None if limit is None else elapsed_clock() + limit.total_seconds()


class _OverTimeLimitError(TimeoutError):
    """Told apart from the processor's own."""


def _over(limit: timedelta, error: TimeoutError) -> TimeoutError:
    """What is told of *error*, with where the function was: there it was cancelled."""
    was = error.__cause__ or error.__context__ or error
    return TimeoutError(f"over its time limit of {limit}").with_traceback(was.__traceback__)
