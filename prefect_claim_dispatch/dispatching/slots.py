"""Slots: the runs that a claim flow has started and that have not ended, and every way to wait for them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from prefect_claim_dispatch.dispatching.batches import Workload
from prefect_claim_dispatch.dispatching.guard_runs import GuardRun
from prefect_claim_dispatch.dispatching.signals import Signals
from prefect_claim_dispatch.dispatching.work import Work

POLL: Final = 1.0

Taker = Workload | GuardRun[Any]
"""What has a slot: a run, or the guard that comes before it."""


class Slots:
    """At most *number* runs at a time.

    Here and not in the dispatcher's modes, which have a pool each: tasks and subflows share the slots.
    Whoever waits here is at the end of a step: each wait heeds *signals*, and is over when one comes.
    """

    def __init__(self, number: int, signals: Signals | None = None) -> None:
        self._number = number
        self._signals = signals or Signals()
        self._signals.tell = self._tell
        self._lock = threading.RLock()  # entered itself: `Condition.__enter__` keeps it where a handler raises
        self._freed = threading.Condition(self._lock)
        self._taken: set[Taker] = set()
        self._ended = 0
        self._is_woken = False
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        with self._lock:
            return len(self._taken)

    @property
    def left(self) -> int:
        """How many runs may start."""
        with self._lock:
            return self._number - len(self._taken)

    @property
    def ended(self) -> int:
        """How many runs have ended so far."""
        with self._lock:
            return self._ended

    @property
    def runs(self) -> list[Taker]:
        """The runs that have not ended."""
        with self._lock:
            return list(self._taken)

    @property
    def works(self) -> list[Work]:
        """All that the runs do or are to do."""
        with self._lock:
            return [work for run in self._taken for work in run.works]

    def take(self, run: Taker) -> None:
        """Count *run* until it is freed."""
        with self._lock:
            self._taken.add(run)

    def free(self, run: Taker) -> None:
        """*run* has ended."""
        with self._lock:
            self._taken.discard(run)
            self._ended += 1
            self._freed.notify_all()

    def wait_for_one(self, within: float = math.inf) -> bool:
        """Until another run may start, *within* seconds at most; whether it may."""
        return self._wait(lambda: len(self._taken) < self._number, within)

    def wait_for_more_ended(self, ended: int, within: float = POLL) -> None:
        """Until more than *ended* have, or *within* seconds: a row may have become due meanwhile, with slots free."""
        self._wait(lambda: self._ended > ended, within)

    def wait_for_more_ended_or_wake(self, ended: int, within: float) -> None:
        """As `wait_for_more_ended`, or until something was published, if there is a slot for it."""
        self._wait(lambda: self._ended > ended or (self._is_woken and len(self._taken) < self._number), within)

    def wait_for_none(self, within: float = math.inf) -> bool:
        """Until all have ended, *within* seconds at most; whether they have."""
        return self._wait(lambda: not self._taken, within)

    def wait_for_none_begun(self, within: float) -> bool:
        """Until nothing that was begun goes on, *within* seconds at most; whether that is so."""
        return self._wait(lambda: not any(run.has_begun for run in self._taken), within)

    def pause(self, seconds: float) -> None:
        """Wait, or until something ends."""
        ended = self.ended
        self._wait(lambda: self._ended > ended, seconds)

    def doze(self, seconds: float) -> None:
        """As `pause`, or until something was published."""
        ended = self.ended
        self._wait(lambda: self._ended > ended or self._is_woken, seconds)

    def wake(self) -> None:
        """Something was published; from any thread. It holds until `heed`."""
        with self._lock:
            self._is_woken = True
            self._freed.notify_all()

    def heed(self) -> None:
        """What was published until now is about to be looked for."""
        with self._lock:
            self._is_woken = False

    def rest(self, seconds: float) -> None:
        """Wait, whatever ends meanwhile: each of a thousand ends would otherwise be a try of its own."""
        self._wait(lambda: False, seconds)

    def fail(self, error: BaseException) -> None:
        """Have every wait raise *error*, those that last included; from any thread."""
        with self._lock:
            self._failure = error
            self._freed.notify_all()

    def _wait(self, is_over: Callable[[], bool], within: float = math.inf) -> bool:
        """Until *is_over*, *within* seconds at most; whether it is. A signal that comes is heeded, and may end it."""
        until = time.monotonic() + within
        while True:
            with self._lock:
                left = None if within == math.inf else until - time.monotonic()
                self._freed.wait_for(lambda: self._signals.have_come or self._failure or is_over(), left)
                was_over = is_over()
            if self._failure is not None:
                raise self._failure
            if not self._signals.have_come:
                return was_over
            self._signals.heed()  # it raises, mostly; a handler that does not leaves what is waited for as it is

    def _tell(self) -> None:
        """A signal has come."""
        with self._lock:
            self._freed.notify_all()
