"""Wait for a condition instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02


def wait_until(
    predicate: Callable[[], T], *, description: str, timeout: float = 30.0, explain: Callable[[], str] = str
) -> T:
    """What *predicate* answers as soon as it is true.

    *description* completes the sentence "waited ... until"; *timeout* is in seconds. What the predicate raises passes
    unchanged. *explain* is asked when it was not true in time, and what it answers is added to the message.

    Raises:
        AssertionError: it was not true in time; the message holds the description and the last answer.
    """
    give_up_at = time.monotonic() + timeout
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() >= give_up_at:
            msg = f"waited {timeout:g} s until {description}; last answer: {answer!r}\n{explain()}".rstrip()
            raise AssertionError(msg)
        time.sleep(POLL_SECONDS)
