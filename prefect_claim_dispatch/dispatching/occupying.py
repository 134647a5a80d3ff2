"""Prefect's global concurrency limits: a run has a slot of each that its processor names, while that is called.

A slot is waited for before anything has begun, so that waiting costs no attempt, and not for ever. Prefect is asked
once at a time and never left to wait by itself: it would wait in a queue of all runs of this process, without a bound.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Final

import httpx
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.asyncio import concurrency as concurrency_async
from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.outcomes import Snooze, redacted

LONGEST_WAIT = 30.0
"""Seconds that a run waits for its slots; then its actions make room for others."""

LEASE_SECONDS: Final = 60.0
"""How long a slot is taken after its holder has died; Prefect allows no less."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
"""Seconds between two questions, doubling: each costs the server as much as a task run."""

AGAIN_AFTER: Final = timedelta(seconds=10)
MISSING_FOR: Final = timedelta(minutes=1)
LOCKED: Final = 423

Refused = Callable[[Snooze], Any]


def limited(names: tuple[str, ...], call: Callable[[], Any], *, refused: Refused, is_wanted: Callable[[], bool]) -> Any:
    """What *call* returns, with a slot of each of the limits *names* held meanwhile.

    What *refused* returns of the snooze that is to be, where there is none in time, a limit does not exist, or it
    *is_wanted* no more.
    """
    if not names:
        return call()
    held, waiting = ExitStack(), _Waiting(names)
    for pause in waiting.pauses(is_wanted):
        _sleep(pause)
        try:
            with ExitStack() as slots:
                for name in names:
                    slots.enter_context(concurrency(name, **waiting.options))
                held = slots.pop_all()
            break
        except (ConcurrencySlotAcquisitionError, TimeoutError) as error:
            waiting.note(error)
    else:
        return refused(waiting.told())
    try:
        return call()
    finally:
        with _giving_back():
            held.close()


async def limited_async(
    names: tuple[str, ...],
    call: Callable[[], Awaitable[Any]],
    *,
    refused: Refused,
    is_wanted: Callable[[], bool],
) -> Any:
    """As `limited`, for a coroutine function."""
    if not names:
        return await call()
    held, waiting = AsyncExitStack(), _Waiting(names)
    for pause in waiting.pauses(is_wanted):
        await asyncio.sleep(pause)
        try:
            async with AsyncExitStack() as slots:
                for name in names:
                    await slots.enter_async_context(concurrency_async(name, **waiting.options))
                held = slots.pop_all()
            break
        except (ConcurrencySlotAcquisitionError, TimeoutError) as error:
            waiting.note(error)
    else:
        return refused(waiting.told())
    try:
        return await call()
    finally:
        with _giving_back():
            await held.aclose()


def _sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


@contextmanager
def _giving_back() -> Generator[None]:
    """What goes wrong here must not make a failure of what was done: Prefect would call the processor again."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - as above
        reason = redacted(str(error), 200)
        get_run_logger().warning("a slot was not given back (%s); Prefect frees it in a minute or two", reason)


class _Waiting:
    """One run that waits: when to ask, and why it gets nothing."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = ", ".join(names)
        self._ends = elapsed_clock() + LONGEST_WAIT
        self._is_over = False
        self.refusal: Snooze | None = None

    @property
    def options(self) -> dict[str, Any]:
        """How Prefect is asked: once, and not to end the work should the slot be lost: what was done stays done."""
        return {
            "max_retries": 0,
            "timeout_seconds": max(1.0, self._ends - elapsed_clock()),
            "lease_duration": LEASE_SECONDS,
            "strict": True,
            "raise_on_lease_renewal_failure": False,
        }

    def pauses(self, is_wanted: Callable[[], bool]) -> Iterator[float]:
        """Seconds before each question, as long as there is to be another; the last answer is in `refusal`."""
        pause = 0.0
        while True:
            yield pause
            if self.refusal is None or self._is_over or not is_wanted():
                return
            left = self._ends - elapsed_clock()
            if left <= 0:
                return
            pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, 2 * pause)) * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            pause = min(pause, left)

    def note(self, error: Exception) -> None:
        """Take the answer *error*."""
        match error.__cause__:
            case httpx.HTTPStatusError(response=httpx.Response(status_code=status)) if status == LOCKED:
                self.refusal = Snooze(AGAIN_AFTER, f"no slot of the concurrency limit {self._names} came free in time")
            case None:
                self._is_over = True
                what = (
                    f"the concurrency limit {self._names} does not exist; "
                    "create it: prefect global-concurrency-limit create NAME --limit N"
                )
                self.refusal = Snooze(MISSING_FOR, what)
            case _:
                what = f"Prefect can't be asked for the concurrency limit {self._names}: {redacted(str(error), 200)}"
                self.refusal = Snooze(AGAIN_AFTER, what)

    def told(self) -> Snooze:
        """The refusal, said in the run's log."""
        assert self.refusal is not None  # noqa: S101 - asked for where there is one
        get_run_logger().warning("%s; again in %s, at no attempt", self.refusal.reason, self.refusal.delay)
        return self.refusal
