"""One call of an author's function, within its time limit where Prefect does not keep it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from prefect.utilities.timeout import timeout


def called(function: Callable[..., Any], arguments: dict[str, Any], within: timedelta | None) -> Any:
    """What *function* returns.

    Raises:
        TimeoutError: it took longer than *within*. Anything else: it raised that.
    """
    if within is None:
        return function(**arguments)
    try:
        with timeout(seconds=within.total_seconds(), timeout_exc_type=_OverTimeLimitError):
            return function(**arguments)
    except _OverTimeLimitError:
        raise _over(within) from None


async def called_async(function: Callable[..., Any], arguments: dict[str, Any], within: timedelta | None) -> Any:
    """As `called`, for a coroutine function."""
    if within is None:
        return await function(**arguments)
    limit = asyncio.timeout(within.total_seconds())
    try:
        async with limit:
            return await function(**arguments)
    except TimeoutError:
        if not limit.expired():
            raise
        raise _over(within) from None


class _OverTimeLimitError(TimeoutError):
    """Told apart from the processor's own."""


def _over(limit: timedelta) -> TimeoutError:
    return TimeoutError(f"over its time limit of {limit}")
